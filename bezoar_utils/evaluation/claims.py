"""The paper's claims as tests on paired items. Thresholds were set before the runs they judge."""

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import BaseModel, FiniteFloat, ValidationError

from . import stats
from .stats import no_loss_verdict, verdict

BASE, SFT, HH, DPO = "base", "OpenBezoar-SFT", "OpenBezoar-HH-RLHF-SFT", "OpenBezoar-HH-RLHF-DPO"
ARTIFACTS = {  # chapter -> what its claims were computed from
    "50_dpo": "sampled_replies.parquet",
    "60_benchmarks": "scores.parquet",
    "61_mt_bench": "answers.parquet",
    "75_filter": "scores.parquet",
}
UNITS = {"50_dpo": "share of replies", "61_mt_bench": "grade points"}  # of the others: share of items


@dataclass(frozen=True)
class Sides:
    """One measure of a chapter's artifact for two models, or for two of chapter 75's conditions."""

    chapter: str
    measure: str
    before: str
    after: str


@dataclass(frozen=True)
class Claim:
    """`verdict` says from the paired difference, its interval and `threshold` whether the claim is shown."""

    id: str
    sentence: str
    test: str
    sides: Sides
    verdict: Callable[[float, float, float, float], str] = verdict
    threshold: float = 0.0


CLAIMS = (
    Claim(
        "sft_over_base",
        "Instruction tuning on the three schemes makes the base answer",
        "answer found, at least +0.30",
        Sides("60_benchmarks", "answer_found", BASE, SFT),
        threshold=0.30,
    ),
    Claim(
        "filter_over_unfiltered",
        "Filtering by the judge makes better training data",
        "strict match, accepted against unfiltered rows, equal steps",
        Sides("75_filter", "strict_match", "unfiltered", "accepted"),
    ),
    Claim(
        "filter_over_random",
        "… and not because the set is smaller",
        "strict match, accepted against a random subset of that size",
        Sides("75_filter", "strict_match", "random_subset", "accepted"),
    ),
    Claim(
        "dpo_preferred",
        "DPO aligns replies with people's preferences",
        "preferred rate of sampled replies, at least +0.10",
        Sides("50_dpo", "preferred", HH, DPO),
        threshold=0.10,
    ),
    Claim(
        "dpo_keeps_answers",
        "DPO does not cost correctness",
        "exact answers among sampled replies, loses at most 0.05",
        Sides("50_dpo", "exact", HH, DPO),
        verdict=no_loss_verdict,
        threshold=0.05,
    ),
    Claim(
        "chat_sft_over_base",
        "The tuned model converses better than the base",
        "two-turn grade, SFT against base",
        Sides("61_mt_bench", "rating", BASE, SFT),
    ),
    Claim(
        "chat_dpo_over_hh",
        "DPO does not make conversation worse",
        "two-turn grade, DPO against HH-SFT, loses nothing",
        Sides("61_mt_bench", "rating", HH, DPO),
        verdict=no_loss_verdict,
    ),
    Claim(
        "dpo_best_of_family",
        "The DPO checkpoint is the best of the family",
        "two-turn grade, DPO against SFT",
        Sides("61_mt_bench", "rating", SFT, DPO),
    ),
)

NOT_REPRODUCED = [
    {
        "what": "The paper's numbers on LM Eval Harness and MT-Bench",
        "why": "Its tables, task list and shots are not among the facts known to us; its judge Claude 2.1 is retired.",
    },
    {
        "what": "Beating many models at the 3B scale, and the then best 3B model of the Open LLM Leaderboard in one category",
        "why": "Comparison models and scores are not known; a two-million-parameter world has no leaderboard.",
    },
    {
        "what": "GPT-4 as human proxy: accept rates and agreement with people",
        "why": "Prompt, scale and version are unknown and the model of 2023 is retired; here an exact oracle judges.",
    },
    {
        "what": "The teacher at its 2023 quantisation",
        "why": "The GGML level used then is unknown, and its runtime is no longer maintained.",
    },
    {
        "what": "SFT and DPO at the authors' values",
        "why": "Learning rates, batch, epochs, lengths and all of DPO's settings as run are unknown.",
    },
    {"what": "Cost and hours on the authors' hardware", "why": "Neither is among the facts known to us."},
]


def test_all(
    scores: list[dict], ablation: list[dict], sampled: list[dict], grades: list[dict], samples: int, confidence: float, seed: int
) -> tuple[list[dict], list[dict]]:
    """(a row per claim: what was compared, `stats.compare`'s numbers and the verdict; the claims that this run measures
    nothing for, each with why). The four tables are those of chapters 60, 75, 50 and 61."""
    tables = {"60_benchmarks": scores, "75_filter": ablation, "50_dpo": sampled, "61_mt_bench": grades}
    tested, untested = [], []
    for claim in CLAIMS:
        chapter, measure = claim.sides.chapter, claim.sides.measure
        before, after = (values(chapter, measure, side, tables[chapter]) for side in (claim.sides.before, claim.sides.after))
        if not stats.pair(before, after):
            why = f"This profile measures nothing that tests it: {claim.test} (chapter {chapter})."
            untested.append({"what": claim.sentence, "why": why})
            continue
        numbers = stats.compare(before, after, samples, confidence, seed)
        outcome = claim.verdict(numbers["difference"], numbers["low"], numbers["high"], claim.threshold)
        row = {"id": claim.id, "claim": claim.sentence, "test": claim.test} | numbers
        row |= {"unit": UNITS.get(chapter, "share of items"), "verdict": outcome}
        tested.append(row | {"chapter": chapter, "artifact": f"{chapter}/{ARTIFACTS[chapter]}"})
    return tested, untested


def values(chapter: str, measure: str, side: str, rows: list[dict]) -> dict:
    """item key -> what a chapter's rows say of one side: a model, or one of chapter 75's conditions."""
    if chapter == "61_mt_bench":
        return question_grades(rows, side)
    if chapter == "50_dpo":
        return _by_key([(row["question"], row[measure]) for row in rows if row["model"] == side])
    name = "condition" if chapter == "75_filter" else "model"
    chosen = [row for row in rows if (row[name], row["task"], row["metric"]) == (side, "mini_answers", measure)]
    return _by_key([(row["item"], row["value"]) for row in chosen])


def _by_key(items: list[tuple]) -> dict:
    """(key, occurrence) -> value: of a question asked twice, the first and the second reply are items of their own."""
    counts: Counter = Counter()
    by_key = {}
    for key, value in items:
        by_key[key, counts[key]] = value
        counts[key] += 1
    return by_key


def question_grades(grades: list[dict], model: str) -> dict[int, float | None]:
    """question_id -> the mean grade of its turns, which are not independent; None where a grade of a turn failed."""
    turns: dict[int, list] = {}
    for row in grades:
        if row["model"] == model:
            turns.setdefault(row["question_id"], []).append(row["rating"])
    return {
        question: None if any(r is None or r != r for r in ratings) else sum(ratings) / len(ratings)
        for question, ratings in turns.items()
    }


def measures(scores: list[dict], grades: list[dict], intervals: dict, seed: int) -> dict[str, dict]:
    """What the paper's tables would hold, as measured here: `task/metric/model` and `two-turn grade/model`, each with value,
    interval, n and unit."""
    by_name: dict[str, list[float]] = {}
    for row in scores:
        by_name.setdefault(f"{row['task']}/{row['metric']}/{row['model']}", []).append(row["value"])
    for model in dict.fromkeys(row["model"] for row in grades):
        graded = [grade for grade in question_grades(grades, model).values() if grade is not None]
        by_name |= {f"two-turn grade/{model}": graded} if graded else {}
    rows = {}
    for name, measured in by_name.items():
        mean, low, high = stats.bootstrap_mean(measured, **intervals, seed=seed)
        unit = "grade" if max(measured) > 1 else "share"
        rows[name] = {"value": mean, "low": low, "high": high, "n": len(measured), "unit": unit}
    return rows


class PaperValue(BaseModel):
    """A row of the csv of the paper's values. `mark` says how it is known, as in the chapters' first paragraphs."""

    measure: Annotated[str, Len(1)]
    value: FiniteFloat
    mark: Literal["P", "C", "A", "S", "I", "X"]
    source: Annotated[str, Len(1)]


def read_paper_values(path: Path) -> dict[str, dict]:
    """What is known of the paper's tables: measure -> {value, mark, source}, from a csv that anyone can fill.

    Raises ValueError naming file, line and column for anything but `PaperValue`'s columns and values, each measure once.
    """
    known: dict[str, dict] = {}
    with open(path, newline="", encoding="utf-8") as file:
        rows, columns = csv.DictReader(file), list(PaperValue.model_fields)
        if rows.fieldnames != columns:
            raise ValueError(f"{path.name}: columns must be {', '.join(columns)}, got {', '.join(rows.fieldnames or ['none'])}")
        for row in rows:
            place = f"{path.name}, line {rows.line_num}"
            try:
                value = PaperValue.model_validate(row)
            except ValidationError as error:
                fault = error.errors()[0]
                raise ValueError(f"{place}: {fault['loc'][0]} {fault['input']!r}: {fault['msg']}") from None
            if value.measure in known:
                raise ValueError(f"{place}: duplicate measure {value.measure!r}")
            known[value.measure] = value.model_dump(exclude={"measure"})
    return known


def paper_and_ours(ours: dict[str, dict], paper: dict[str, dict]) -> list[dict]:
    """One row per measure of either side; an unknown cell is empty and the last column says why."""
    rows = []
    for name in ours | paper:
        own, theirs = ours.get(name, {}), paper.get(name, {})
        why = "another base, data and judge than the paper's: compare the direction only"
        if not own:
            why = "not measured in this run"
        elif not theirs:
            why = "the paper's value is not known to us"
        rows.append(
            {
                "measure": name,
                "paper": theirs.get("value"),
                "mark": theirs.get("mark", "U"),
                "ours": own.get("value"),
                "low": own.get("low"),
                "high": own.get("high"),
                "n": own.get("n"),
                "difference": own["value"] - theirs["value"] if own and theirs else None,
                "why": f"{why} ({theirs['source']})" if theirs else why,
            }
        )
    return rows
