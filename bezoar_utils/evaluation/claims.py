"""The paper's claims as tests on paired items; the claims are in `profiles/claims.csv`."""

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import BaseModel, FiniteFloat, ValidationError

from ..study.stages import STAGES
from . import stats
from .stats import no_loss_verdict, verdict

BASE, SFT, HH, DPO = "base", "OpenBezoar-SFT", "OpenBezoar-HH-RLHF-SFT", "OpenBezoar-HH-RLHF-DPO"
STEPS = ((BASE, SFT), (HH, DPO))  # "SFT against base" and "DPO against SFT"; which SFT the second one means is not said
PRIMARY = ("answer_found", "acc_norm", "acc")
IN_PARTS = ("mmlu", "truthfulqa")
UNITS = {"50_dpo": "share of replies", "61_mt_bench": "grade points"}  # of the others: share of items
VERDICTS = {"at least": verdict, "loses at most": no_loss_verdict}
Text = Annotated[str, Len(1)]


class Claim(BaseModel):
    """A line of `profiles/claims.csv`: one measure of a chapter's artifact for two models, or for two of chapter 75's conditions.

    `verdict` and `threshold` say when the paired difference shows the claim; they were set before the runs that they judge.
    """

    id: Text
    claim: Text
    test: Text
    chapter: Literal["50_dpo", "60_benchmarks", "61_mt_bench", "75_filter"]
    measure: Text
    before: Text
    after: Text
    verdict: Literal["at least", "loses at most"]
    threshold: FiniteFloat


class NotReproduced(BaseModel):
    """A line of `profiles/not_reproduced.csv`."""

    what: Text
    why: Text


class Neighbour(BaseModel):
    """A line of `profiles/neighbours.csv`: what another system's paper claims, and the comparison here that asks the same: which of
    a chapter's variants should be `expected` (higher, say) in which metric. `mark` as in `PaperValue`."""

    system: Text
    arxiv: Text
    claim: Text
    mark: Literal["P", "C", "S", "I", "X"]
    expected: Literal["higher", "no lower", "lower", ""]
    chapter: str
    question: str
    variant: str
    metric: str


class PaperValue(BaseModel):
    """A line of `profiles/paper_values.csv`. `mark` says how it is known, as in the chapters' first paragraphs."""

    measure: Text
    value: FiniteFloat
    mark: Literal["P", "C", "A", "V", "S", "I", "X"]
    source: Text


LITTLE = 0.02  # of a share of items, where a paper says that little is lost; ours


def seen_here(claimed: dict, comparisons: dict[str, list[dict]]) -> dict:
    """The comparison of chapter -> comparisons that asks what a `Neighbour` claims, and whether it shows the claim, the opposite or
    neither; without one, which chapter asks it."""
    places = ("question", "variant", "metric")
    rows = comparisons.get(claimed["chapter"], [])
    row = next((row for row in rows if all(row[place] == claimed[place] for place in places)), None)
    if row is None:
        return {"verdict": f"not asked by {claimed['chapter']}" if claimed["chapter"] else "not compared"}
    low, middle, high = (row[end] for end in ("low", "difference", "high"))
    if claimed["expected"] == "no lower":
        return row | {"verdict": no_loss_verdict(middle, low, high, LITTLE)}
    return row | {"verdict": verdict(middle, low, high) if claimed["expected"] == "higher" else verdict(-middle, -high, -low)}


def read_lines(path: Path, kind: type[BaseModel]) -> list[dict]:
    """The lines of a csv that anyone can fill, each checked by `kind`, whose first column names each line once.

    Raises ValueError naming file, line and column for other columns, a wrong value or a second line of one name.
    """
    lines: list[dict] = []
    columns = list(kind.model_fields)
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != columns:
            raise ValueError(f"{path.name}: columns must be {', '.join(columns)}, got {', '.join(rows.fieldnames or ['none'])}")
        for row in rows:
            place = f"{path.name}, line {rows.line_num}"
            try:
                line = kind.model_validate(row).model_dump()
            except ValidationError as error:
                fault = error.errors()[0]
                raise ValueError(f"{place}: {fault['loc'][0]} {fault['input']!r}: {fault['msg']}") from None
            if any(line[columns[0]] == earlier[columns[0]] for earlier in lines):
                raise ValueError(f"{place}: duplicate {columns[0]} {line[columns[0]]!r}")
            lines.append(line)
    return lines


def test_all(claims: list[dict], tables: dict[str, list[dict]], intervals: dict, seed: int) -> tuple[list[dict], list[dict]]:
    """(a row per claim: what was compared, `stats.compare`'s numbers and the verdict; the claims that this run measures nothing
    for, each with why). `claims` as `read_lines` gives them, `tables`: chapter -> rows of its artifact, none if it was not run."""
    tested, untested = [], []
    for claim in claims:
        chapter = claim["chapter"]
        before, after = (values(chapter, claim["measure"], claim[side], tables[chapter]) for side in ("before", "after"))
        of_tasks = claim["measure"] == "tasks"
        if not (before.keys() & after.keys() if of_tasks else stats.pair(before, after)):
            why = f"This profile measures nothing that tests it: {claim['test']} (chapter {chapter})."
            untested.append({"what": claim["claim"], "why": why})
            continue
        numbers = (stats.compare_tasks if of_tasks else stats.compare)(before, after, **intervals, seed=seed)
        judge = VERDICTS[claim["verdict"]]
        outcome = judge(numbers["difference"], numbers["low"], numbers["high"], claim["threshold"])
        row = {name: claim[name] for name in ("id", "claim", "test")} | numbers
        unit = "share of tasks" if of_tasks else UNITS.get(chapter, "share of items")
        row |= {"unit": unit, "verdict": outcome}
        tested.append(row | {"chapter": chapter, "artifact": f"{chapter}/{STAGES[chapter].artifact}"})
    return tested, untested


def values(chapter: str, measure: str, side: str, rows: list[dict]) -> dict:
    """item key -> what a chapter's rows say of one side: a model, or one of chapter 75's conditions. Of the measure `tasks`:
    task -> such values of its main metric; of `task/metric`: of that task, else of `mini_answers`."""
    if chapter == "61_mt_bench":
        return stats.by_question([row for row in rows if row["model"] == side], "rating")
    if chapter == "50_dpo":
        return _by_key([(row["question"], row[measure]) for row in rows if row["model"] == side])
    if measure == "tasks":
        return by_task(rows).get(side, {})
    name = "condition" if chapter == "75_filter" else "model"
    task, metric = measure.split("/") if "/" in measure else ("mini_answers", measure)
    chosen = [row for row in rows if (row[name], row["task"], row["metric"]) == (side, task, metric)]
    return _by_key([(row["item"], row["value"]) for row in chosen])


def _by_key(items: list[tuple]) -> dict:
    """(key, occurrence) -> value: of a question asked twice, the first and the second reply are items of their own."""
    counts: Counter = Counter()
    by_key = {}
    for key, value in items:
        by_key[key, counts[key]] = value
        counts[key] += 1
    return by_key


def measures(scores: list[dict], grades: list[dict], intervals: dict, seed: int) -> dict[str, dict]:
    """What the paper's tables would hold, as measured here: `task/metric/model` and `two-turn grade/model`, each with value,
    interval, n of asked, and unit."""
    by_name: dict[str, list] = {}
    for row in scores:
        by_name.setdefault(f"{row['task']}/{row['metric']}/{row['model']}", []).append(row["value"])
    for model in dict.fromkeys(row["model"] for row in grades):
        by_name[f"two-turn grade/{model}"] = [*values("61_mt_bench", "rating", model, grades).values()]
    rows = {}
    for name, asked in by_name.items():
        if measured := [value for value in asked if stats.is_measured(value)]:
            mean, low, high = stats.bootstrap_mean(measured, **intervals, seed=seed)
            unit = "grade" if max(measured) > 1 else "share"
            rows[name] = {"value": mean, "low": low, "high": high, "n": len(measured), "asked": len(asked), "unit": unit}
    return rows


def main_metric(names) -> str:
    """The one metric by which a task counts: the first of `PRIMARY` that it has, else the first by name."""
    return next((name for name in PRIMARY if name in names), min(names))


def by_task(scores: list[dict]) -> dict[str, dict[str, dict]]:
    """model -> task -> item key -> value of its `main_metric`; a task in parts (MMLU's subjects) counts as one."""
    metrics: dict[str, set] = {}
    for row in scores:
        metrics.setdefault(row["task"], set()).add(row["metric"])
    primary = {task: main_metric(names) for task, names in metrics.items()}
    values: dict[str, dict] = {}
    for row in scores:
        if row["metric"] == primary[row["task"]]:
            name = next((whole for whole in IN_PARTS if row["task"].startswith(whole)), row["task"])
            values.setdefault(row["model"], {}).setdefault(name, {})[row["task"], row["item"]] = row["value"]
    return values


def task_changes(scores: list[dict]) -> dict[str, dict]:
    """What the paper is known to report of its benchmarks, as measured here: `<task>, relative change: <after> against <before>`,
    and `tasks that are better: …` as a share of the tasks, without intervals: for those see chapter 60."""
    values = by_task(scores)
    means = {model: {task: sum(some.values()) / len(some) for task, some in tasks.items()} for model, tasks in values.items()}
    rows = {}
    for before, after in STEPS:
        both = [(task, means[before][task], means[after][task]) for task in means.get(before, {}) if task in means.get(after, {})]
        step = f"{after} against {before}"
        for task, old, new in both:
            if old:
                rows[f"{task}, relative change: {step}"] = {"value": new / old - 1, "n": len(values[after][task]), "unit": "share"}
        if both:
            better = sum(new > old for _, old, new in both)
            rows[f"tasks that are better: {step}"] = {"value": better / len(both), "n": len(both), "unit": "share of tasks"}
    return rows


def paper_and_ours(ours: dict[str, dict], values_of_paper: list[dict]) -> list[dict]:
    """One row per measure of either side; an unknown cell is empty and the last column says why."""
    rows, paper = [], {line["measure"]: line for line in values_of_paper}
    for name in ours | paper:
        own, theirs = ours.get(name, {}), paper.get(name, {})
        why = "another base, data and judge than the paper's: compare the direction only"
        if not own:
            why = "not measured in this run"
        elif not theirs:
            why = "the paper's value is not known to us"
        row = {"measure": name, "paper": theirs.get("value"), "mark": theirs.get("mark", "U"), "ours": own.get("value")}
        row |= {key: own.get(key) for key in ("low", "high", "n", "asked")}
        row |= {"difference": own["value"] - theirs["value"] if own and theirs else None}
        rows.append(row | {"why": f"{why} ({theirs['source']})" if theirs else why})
    return rows
