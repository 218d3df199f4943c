"""Does a finished run say what the committed reference says? `make check-reference`.

On x86-64 processors with AVX2 a run repeats to the last bit (precision.same_kernels). With other kernels (ARM, another torch build)
sums are rounded differently, so one sampled token differs, then a row, then weights: such a run is another draw of the same
study. Each number may move as far as such draws do; a broken stage moves some number further.

A tolerance is the larger of two: what sampling errors of its kind of number allow (`TOLERANCES`), and one and a half times the
largest move that this very number made in draws with other kernels (`other_kernels.json`, beside the reference; REPRODUCING.md).
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

from ..study import files
from ..study.profile import ROOT
from ..study.stages import STAGES
from .show import render

REPORTS = ROOT / "reports"
REFERENCE = REPORTS / "reference" / "metrics.json"
OTHER_KERNELS = REPORTS / "reference" / "other_kernels.json"
APART = {row.name for row in STAGES.values() if row.target != "reproduce"}  # a run without these is complete
ROOM = 1.5  # times the largest move between draws that were made: three draws hardly hold the widest
FIELDS = {"value", "low", "high", "n", "unit"}


class Tolerance(NamedTuple):
    """A value may move by the larger of `absolute` (in its unit) and `relative` times the expected value; `why` is the reason."""

    absolute: float
    relative: float
    why: str

    def allows(self, expected: float) -> float:
        return max(self.absolute, self.relative * abs(expected))


SHARE = Tolerance(0.12, 0.0, "three standard errors of the difference of two shares near 0.7, n = 320; a lost effect moves more")
TOLERANCES = {
    "parameters": Tolerance(0, 0.0, "the model's shape, no arithmetic that rounds"),
    "rows": Tolerance(3, 0.15, "sampled text is parsed and filtered; a scheme that writes nothing loses all of it"),
    "share": SHARE,
    "share of prompts": Tolerance(0.25, 0.0, "eight of 32 prompts"),
    "grade 1-10": Tolerance(1.5, 0.0, "half-widths of the intervals reach 1.2; untrained and tuned models are four grades apart"),
    "grade points": Tolerance(1.2, 0.0, "differences of paired grades, n = 64: twice the widest half-width"),
    "nats per reply": Tolerance(0.2, 0.25, "rejected replies fell by 7.3 and by 8.1 in two trainings with one kind of kernels"),
    "nats of loss": Tolerance(0.15, 0.0, "the lowest validation loss of three draws: 0.09 apart in SFT, 0.13 in DPO"),
    "relative logit norm": Tolerance(0.01, 1.0, "rounding, of which twice as much is still rounding; a wrong merge is tenfold"),
    "Cohen's kappa": Tolerance(0.2, 0.0, "of 120 rows; three standard errors"),
}
FAMILIES = {"share of ": SHARE, "difference of ": SHARE}  # of all units that begin so and are not named above


class MetricsError(ValueError):
    """Two files that cannot be compared; the message is one line."""


def tolerance(unit: str) -> Tolerance | None:
    """How far numbers of this unit may move; None for an unknown unit."""
    family = (limit for start, limit in FAMILIES.items() if unit.startswith(start))
    return TOLERANCES.get(unit) or next(family, None)


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


def other_draws() -> dict[str, dict[str, float]]:
    """kind of kernels -> name -> value, of the draws beside the committed reference."""
    return files.read_json(OTHER_KERNELS) if OTHER_KERNELS.exists() else {}


class Comparison(NamedTuple):
    """`problems` fail the check, `notes` do not. `moves` is the move of each metric as a share of its tolerance; `equal` is
    the number of metrics that did not move at all."""

    problems: list[str]
    notes: list[str]
    moves: dict[str, float]
    equal: int


def compare(expected: dict[str, dict], actual: dict[str, dict], draws: dict[str, dict[str, float]] | None = None) -> Comparison:
    """Compare a run's metrics with the reference's, both as `read_metrics` gives them; `draws` are the values of other draws."""
    problems, notes = _stages_not_run(expected, actual)
    run_stages = {_stage(name) for name in actual}
    problems += [f"gone: {name}" for name in expected if name not in actual and _stage(name) in run_stages]
    notes += [f"new: {name}, which is not in the reference" for name in actual if name not in expected]
    moves = {}
    for name in (name for name in expected if name in actual):
        problem, moves[name] = compare_one(expected[name], actual[name], seen_moves(draws, name, expected[name]["value"]))
        if problem:
            problems.append(f"{name}: {problem}")
    if not moves:
        problems.append("no metric is in both files")
    equal = sum(actual[name]["value"] == expected[name]["value"] for name in moves)
    return Comparison(problems, notes, moves, equal)


def _stages_not_run(expected: dict, actual: dict) -> tuple[list[str], list[str]]:
    """(problems, notes) about stages of the reference that this run has not finished."""
    missing = sorted({_stage(name) for name in expected} - {_stage(name) for name in actual})
    problems = [f"not run: {stage}, which is in the reference" for stage in missing if stage not in APART]
    return problems, [f"not compared: {stage} was not run" for stage in missing if stage in APART]


def _stage(metric: str) -> str:
    return metric.split("/")[0]


def seen_moves(draws: dict[str, dict[str, float]] | None, name: str, value: float) -> list[float]:
    """How far this metric was from the reference in each other draw that measured it."""
    return [abs(draw[name] - value) for draw in (draws or {}).values() if name in draw]


def allowance(limit: Tolerance, value: float, seen: list[float]) -> float:
    """How far a value may move: what its unit allows, or half again as far as it was seen to move."""
    return max([limit.allows(value), *(ROOM * distance for distance in seen)])


def compare_one(expected: dict, actual: dict, seen: list[float]) -> tuple[str, float]:
    """(the problem or an empty text, the move as a share of the tolerance); `seen` are the metric's moves in other draws."""
    before, after, unit = expected["value"], actual["value"], expected["unit"]
    if actual["unit"] != unit:
        return f"is in {actual['unit']!r}, the reference is in {unit!r}", math.inf
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (before, after)):
        return f"not a number to compare: {before} in the reference, {after} here", math.inf
    limit = tolerance(unit)
    if limit is None:
        return f"unknown unit {unit!r}: add its tolerance to TOLERANCES in reference.py", math.inf
    move, allowed = after - before, allowance(limit, before, seen)
    share = abs(move) / allowed if allowed else (math.inf if move else 0.0)
    problem = f"moved from {before:.4g} to {after:.4g} ({move:+.3g}; allowed ±{allowed:.3g}: {limit.why})"
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


def expected_table(metrics: dict[str, dict], timings: dict[str, float], claims: list[dict], draws: dict) -> str:
    """The table of REPRODUCING.md as Markdown, from the reference's metrics, seconds per stage, claims and other draws.

    Raises MetricsError naming a metric that was not measured.
    """
    rows = [{"claim": claim, "chapter": _stage(name), "metric": name} for claim, name in ROWS]
    rows += [c | {"metric": f"90_findings/{c['id']}"} for c in claims]
    for row in rows:
        if row["metric"] not in metrics:
            raise MetricsError(f"the run did not measure {row['metric']}, which REPRODUCING.md names (ROWS in reference.py)")
        value, unit, stage = metrics[row["metric"]]["value"], metrics[row["metric"]]["unit"], _stage(row["metric"])
        row |= {"stage": stage, "value": value, "unit": unit, "minutes": minutes_from_nothing(stage, timings)}
        row |= {"allowed": allowance(tolerance(unit), value, seen_moves(draws, row["metric"], value))}
        row |= {"artifact": f"{stage}/{STAGES[stage].artifact}"}
    return render("expected.md.j2", rows=rows).rstrip()


def minutes_from_nothing(stage: str, timings: dict[str, float]) -> int:
    """Minutes, rounded up, of all chapters up to and including this one, run one after another."""
    return math.ceil(sum(seconds for name, seconds in timings.items() if name <= stage and name not in APART) / 60)


# ------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.reference")
    parser.add_argument("--profile", default="mini")
    path = REPORTS / parser.parse_args(arguments).profile / "metrics.json"
    try:
        result = compare(read_metrics(REFERENCE), read_metrics(path), other_draws())
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
    print(f"{len(result.moves)} metrics agree with the reference, {result.equal} of them to the last bit")
    print(f"the largest move: {result.moves[largest]:.0%} of what is allowed ({largest})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
