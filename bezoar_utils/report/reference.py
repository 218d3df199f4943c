"""Does a finished run say what the committed replicates say? `make check-reference`.

On x86-64 processors with AVX2 a run repeats to the last bit (precision.same_kernels). With other kernels (ARM, another torch build)
or another seed it is another draw of the same recipe. How far such draws lie apart is measured: the replicates are eight of them.
One more draw lies in the prediction interval of their values, whose level is such that of honest runs one in twenty has any
number outside. A broken stage moves some number further. Source: ours.
"""

import argparse
import math
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ..evaluation import stats
from ..study import files
from ..study.pace import REPORTS, committed
from ..study.stages import STAGES
from .show import render

APART = {row.name for row in STAGES.values() if row.target != "reproduce"}  # a run without these is complete
SHARES = ("share", "difference of ")  # how units of shares of something begin
ALARM = 0.05  # share of honest runs of which some number, whichever, lies outside
FIELDS = {"value", "low", "high", "n", "unit"}


class MetricsError(ValueError):
    """Two files that cannot be compared; the message is one line."""


def read_metrics(path: Path) -> dict[str, dict]:
    """name -> {value, low, high, n, unit}, some with `asked`. Raises MetricsError for a file that is missing, damaged or of
    another version."""
    if not path.exists():
        raise MetricsError(
            f"reports/{path.parent.name}/{path.name} is missing: run `make reproduce PROFILE={path.parent.name}` first"
        )
    try:
        metrics = files.read_json(path)
    except ValueError as error:
        raise MetricsError(str(error)) from None
    complete = isinstance(metrics, dict) and all(isinstance(m, dict) and m.keys() - {"asked"} == FIELDS for m in metrics.values())
    if not complete or not metrics:
        fields = ", ".join(sorted(FIELDS))
        raise MetricsError(f"{path} is of another version: expected at least one metric, each with {fields}; run `make report`")
    return metrics


def spread_of_replicates(profile: str) -> tuple[dict[str, dict], float]:
    """(name -> unit, and the value in each replicate, as `replicates.metric_rows` gives them; the confidence of its intervals).
    Empty when this profile has no replicates committed."""
    path = committed(profile) / "replicates.json"
    told = files.read_json(path) if path.exists() else {"metrics": {}, "confidence": 0.95}
    return {name: row for name, row in told["metrics"].items() if len(row["values"]) > 1}, told["confidence"]


class Comparison(NamedTuple):
    """`problems` fail the check, `notes` do not. `moves` is each metric's distance from the replicates' mean as a share of what is
    allowed; `equal` is the number of metrics that have the reference's value to the last bit."""

    problems: list[str]
    notes: list[str]
    moves: dict[str, float]
    equal: int


def compare(expected: dict[str, dict], actual: dict[str, dict], spread: dict[str, dict]) -> Comparison:
    """Hold a run's metrics against the reference's, both as `read_metrics` gives them, and against the replicates' spread."""
    problems, notes = _stages_not_run(expected, actual)
    run_stages = {_stage(name) for name in actual}
    problems += [f"gone: {name}" for name in expected if name not in actual and _stage(name) in run_stages]
    notes += [f"new: {name}, which is not in the reference" for name in actual if name not in expected]
    moves, common, likes = {}, [name for name in expected if name in actual], shared_spread(spread)
    unchecked = [name for name in common if name not in spread]
    beside = Counter(stage for name in unchecked if (stage := _stage(name)) in APART)
    notes += [f"not checked: {n} numbers of {stage}, which no replicate runs" for stage, n in beside.items()]
    notes += [f"not checked: {name}, of which there are no replicates" for name in unchecked if _stage(name) not in APART]
    for name in (name for name in common if name in spread):
        problem, moves[name] = compare_one(spread[name], actual[name], len(spread), likes)
        if problem:
            problems.append(f"{name}: {problem}")
    if not moves:
        problems.append("no metric is in both files and in the replicates")
    equal = sum(actual[name]["value"] == expected[name]["value"] for name in common)
    return Comparison(problems, notes, moves, equal)


def _stages_not_run(expected: dict, actual: dict) -> tuple[list[str], list[str]]:
    """(problems, notes) about stages of the reference that this run has not finished."""
    missing = sorted({_stage(name) for name in expected} - {_stage(name) for name in actual})
    problems = [f"not run: {stage}, which is in the reference" for stage in missing if stage not in APART]
    return problems, [f"not compared: {stage} was not run" for stage in missing if stage in APART]


def _stage(metric: str) -> str:
    return metric.split("/")[0]


def least_spread(unit: str, mean: float, n: int | None) -> float:
    """How far two honest draws of a number differ at least (standard deviation), though some replicates happened to be equal.

    Of shares what n items can tell apart (Agresti and Coull's share), of rows the root of their number, of a merge's difference the
    rounding of float32, of kappa one row in a hundred. A number without arithmetic that rounds, as a model's parameters, has none.
    """
    if unit.startswith(SHARES):
        counted = (n or 1) + 4
        share = (min(1.0, abs(mean)) * (n or 1) + 2) / counted
        return math.sqrt(share * (1 - share) / counted)
    return {"rows": math.sqrt(abs(mean)), "relative logit norm": 1e-6, "Cohen's kappa": 0.02}.get(unit, 0.0)


def shared_spread(spread: dict[str, dict]) -> dict[str, float]:
    """unit -> root mean square of the standard deviations of all numbers that are shares in it.

    Eight values say little about the spread of one number: of seven worlds whose base knew nearly all words, none told that the
    eighth's would not know one kind of five.
    """
    import numpy as np

    found: dict[str, list[float]] = {}
    for row in spread.values():
        if row["unit"].startswith(SHARES):
            found.setdefault(row["unit"], []).append(float(np.std([*row["values"].values()], ddof=1)))
    return {unit: float(np.sqrt(np.mean(np.square(some)))) for unit, some in found.items()}


def limits(row: dict, n: int | None, numbers: int, likes: dict[str, float]) -> tuple[float, float, float]:
    """(mean, low, high): where a number of one more run lies. `row` is the number in the replicates, `n` what it rests on,
    `numbers` how many are looked at together, each of which is allowed an equal part of `ALARM`, `likes` their `shared_spread`."""
    values, unit = [*row["values"].values()], row["unit"]
    least = least_spread(unit, sum(values) / len(values), n)
    return stats.one_more(values, 1 - ALARM / numbers, least, likes.get(unit))


def compare_one(row: dict, actual: dict, numbers: int, likes: dict[str, float]) -> tuple[str, float]:
    """As `limits`: (the problem or an empty text, the distance from the replicates' mean as a share of what is allowed)."""
    value, unit = actual["value"], actual["unit"]
    if unit != row["unit"]:
        return f"is in {unit!r}, the replicates are in {row['unit']!r}", math.inf
    if not (isinstance(value, int | float) and math.isfinite(value)):
        return f"not a number to compare: {value}", math.inf
    mean, low, high = limits(row, actual["n"], numbers, likes)
    away, allowed = abs(value - mean), high - mean
    share = away / allowed if allowed else (math.inf if away else 0.0)
    problem = (
        f"{value:.4g} is not a draw of this recipe: {len(row['values'])} replicates put one more run in {low:.4g} to {high:.4g}"
    )
    return problem if share > 1 else "", share


# ------------------------------------------------------------------------------------- the table of REPRODUCING.md


# (claim, metric) of numbers that chapter 90 does not test; its claims have rows of their own in their own words.
ROWS = (
    ("LaMini's way of writing instructions gives rows", "10_lamini/rows"),
    ("Orca's way of asking for explanations gives rows", "11_orca/rows"),
    ("Evol-Instruct's rules keep rows", "12_evol_instruct/rows"),
    ("The judge accepts some of them", "20_judge_filter/accept_rate_all"),
    ("Merged onto the dequantised base, the model is the one that was trained", "30_sft/merge_difference_dequantised"),
    ("DPO tells chosen from rejected replies it has not seen", "50_dpo/reward_accuracy"),
)


def expected_table(metrics: dict[str, dict], timings: dict[str, float], claims: list[dict], spread: dict[str, dict]) -> str:
    """The table of REPRODUCING.md as Markdown, from the reference's metrics, seconds per stage, claims and the replicates.

    Raises MetricsError naming a metric that was not measured.
    """
    likes = shared_spread(spread)
    rows = [{"claim": claim, "chapter": _stage(name), "metric": name} for claim, name in ROWS]
    rows += [c | {"metric": f"90_findings/{c['id']}"} for c in claims]
    for row in rows:
        name = row["metric"]
        if name not in metrics:
            raise MetricsError(f"the run did not measure {name}, which REPRODUCING.md names (ROWS in reference.py)")
        stage, metric, unit = _stage(name), metrics[name], metrics[name]["unit"]
        row |= {"stage": stage, "value": metric["value"], "unit": unit, "minutes": minutes_from_nothing(stage, timings)}
        row |= {"limits": possible(*limits(spread[name], metric["n"], len(spread), likes)[1:], unit) if name in spread else None}
        row |= {"artifact": f"{stage}/{STAGES[stage].artifact}"}
    return render("expected.md.j2", rows=rows).rstrip()


def possible(low: float, high: float, unit: str) -> tuple[float, float]:
    """The limits within what such a number can be: no fewer than 0 rows, a share or a difference of shares from -1 to 1."""
    if unit == "rows":
        return max(0, round(low)), round(high)
    return (max(-1.0, low), min(1.0, high)) if unit.startswith(SHARES) else (low, high)


def minutes_from_nothing(stage: str, timings: dict[str, float]) -> int:
    """Minutes, rounded up, of all chapters up to and including this one, run one after another."""
    return math.ceil(sum(seconds for name, seconds in timings.items() if name <= stage and name not in APART) / 60)


# ------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.reference")
    parser.add_argument("--profile", default="mini")
    path = REPORTS / parser.parse_args(arguments).profile / "metrics.json"
    try:
        result = compare(read_metrics(committed("mini") / "metrics.json"), read_metrics(path), spread_of_replicates("mini")[0])
    except MetricsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in result.notes:
        print(f"note: {line}")
    for line in result.problems:
        print(f"error: {line}", file=sys.stderr)
    if result.problems:
        return 1
    largest = max(result.moves, key=result.moves.get)
    print(
        f"{len(result.moves)} metrics are where the replicates put one more run; {result.equal} are the reference's to the last bit"
    )
    print(f"the farthest from the replicates' mean: {result.moves[largest]:.0%} of what is allowed ({largest})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
