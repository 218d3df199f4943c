"""Does a finished run say what the committed reference says? `make check-reference`.

On one machine a run repeats to the last bit. Elsewhere (another CPU, other threads, another torch build) sums are rounded
otherwise, so a sampled token differs, then a row, then weights: such a run is another draw of the same study. Each kind of
number may move as far as such draws do; a stage that is broken moves something further.

How wide that must be is estimated from sampling errors. Two comparisons are known (REPRODUCING.md): a run in bfloat16 against one
in float32 moved seven numbers further than this allows, which is why every CPU computes in float32; two versions of the study on
one machine, between which judge and parser had changed on purpose, moved the numbers of rows and the accept rates too far, rightly.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

from ..study import files
from ..study.profile import ROOT

REPORTS = ROOT / "reports"
REFERENCE = REPORTS / "reference" / "metrics.json"
APART = {"80_ablations"}  # only `make ablations` runs it, so a run without it is whole
FIELDS = {"value", "low", "high", "n", "unit"}


class Tolerance(NamedTuple):
    """A value may move by `absolute`, or by the share `relative` of the expected value, whichever is more."""

    absolute: float
    relative: float
    why: str

    def allows(self, expected: float) -> float:
        return max(self.absolute, self.relative * abs(expected))


SHARE = Tolerance(
    0.12, 0.0, "three standard errors of the difference of two shares near 0.7, n = 320; an effect that is gone is more"
)
TOLERANCES = {
    "parameters": Tolerance(0, 0.0, "the model's shape, no arithmetic that rounds"),
    "rows": Tolerance(3, 0.15, "sampled text is parsed and filtered; a scheme that writes nothing loses all of it"),
    "share": SHARE,
    "share of items": SHARE,
    "share of replies": SHARE,
    "share of pairs": SHARE,
    "share of prompts": Tolerance(0.25, 0.0, "of 32 prompts: eight of them"),
    "grade 1-10": Tolerance(1.5, 0.0, "half-widths of the intervals reach 1.2; untrained and tuned models are four grades apart"),
    "grade points": Tolerance(1.2, 0.0, "differences of paired grades, n = 64: twice the widest half-width"),
    "nats per reply": Tolerance(
        0.2, 0.25, "rejected replies fell by 7.3 and by 8.1 in two trainings in float32; DPO that does nothing gives 0"
    ),
    "relative logit norm": Tolerance(0.01, 1.0, "rounding, of which twice as much is still rounding; a wrong merge is tenfold"),
    "Cohen's kappa": Tolerance(0.2, 0.0, "of 120 rows; three standard errors"),
}
FAMILIES = {"share of ": SHARE, "difference of ": SHARE}


class MetricsError(ValueError):
    """Two files that cannot be compared; the message is one line."""


def tolerance(unit: str) -> Tolerance | None:
    """What numbers of this unit may move by; None for a unit nobody has thought about."""
    family = (found for start, found in FAMILIES.items() if unit.startswith(start))
    return TOLERANCES.get(unit) or next(family, None)


def read_metrics(path: Path) -> dict[str, dict]:
    """name -> {value, low, high, n, unit}. Raises MetricsError for a file that is missing, damaged or of another version."""
    if not path.exists():
        raise MetricsError(
            f"there is no reports/{path.parent.name}/{path.name}: run `make reproduce PROFILE={path.parent.name}` first"
        )
    try:
        metrics = files.read_json(path)
    except ValueError as error:
        raise MetricsError(str(error)) from None
    whole = isinstance(metrics, dict) and all(isinstance(m, dict) and m.keys() == FIELDS for m in metrics.values())
    if not whole or not metrics:
        raise MetricsError(f"{path} is of another version: each metric needs {', '.join(sorted(FIELDS))}, and there must be one")
    return metrics


class Comparison(NamedTuple):
    """`problems` fail the check, `notes` do not. `moves` is how far each metric went, as a share of what it may."""

    problems: list[str]
    notes: list[str]
    moves: dict[str, float]
    equal: int


def compare(expected: dict[str, dict], found: dict[str, dict]) -> Comparison:
    """A run's metrics against the reference's, both as `read_metrics` gives them."""
    problems, notes, moves = [], [], {}
    ran = {name.split("/")[0] for name in found}
    absent = sorted({name.split("/")[0] for name in expected} - ran)
    problems += [f"not run: {stage}, which the reference has" for stage in absent if stage not in APART]
    notes += [f"not compared: {stage} was not run" for stage in absent if stage in APART]
    problems += [f"gone: {name}" for name in expected if name not in found and name.split("/")[0] in ran]
    notes += [f"new: {name}, which the reference lacks" for name in found if name not in expected]
    for name in (name for name in expected if name in found):
        problem, moves[name] = compare_one(expected[name], found[name])
        problems += [f"{name}: {problem}"] * bool(problem)
    problems += ["no metric is in both files"] * (not moves)
    equal = sum(found[name]["value"] == expected[name]["value"] for name in moves)
    return Comparison(problems, notes, moves, equal)


def compare_one(expected: dict, found: dict) -> tuple[str, float]:
    """(what is wrong, or nothing, and the move as a share of what is allowed)."""
    before, after, unit = expected["value"], found["value"], expected["unit"]
    if found["unit"] != unit:
        return f"is in {found['unit']!r}, the reference in {unit!r}", math.inf
    if not (is_number(before) and is_number(after)):
        return f"no number to compare: {before} in the reference, {after} here", math.inf
    limit = tolerance(unit)
    if limit is None:
        return f"no tolerance is known for the unit {unit!r} (TOLERANCES in reference.py)", math.inf
    move, allowed = after - before, limit.allows(before)
    share = abs(move) / allowed if allowed else (math.inf if move else 0.0)
    told = f"moved from {before:.4g} to {after:.4g} ({move:+.3g}; allowed ±{allowed:.3g}: {limit.why})"
    return told if share > 1 else "", share


def is_number(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


# ------------------------------------------------------------------------------------- the table of REPRODUCING.md


class Row(NamedTuple):
    """A number of the study: the claim it stands for, the chapter that measures it, its metric and the artifact behind it.

    A claim's paired difference is reckoned in 90_findings from what its chapter has measured.
    """

    claim: str
    chapter: str
    metric: str
    artifact: str

    @property
    def stage(self) -> str:
        return self.metric.split("/")[0]


CLAIMS = "90_findings/claims.json"
ROWS = [
    Row("LaMini's way of writing instructions gives rows", "10_lamini", "10_lamini/rows", "10_lamini/lamini.parquet"),
    Row("Orca's way of asking for explanations gives rows", "11_orca", "11_orca/rows", "11_orca/orca.parquet"),
    Row(
        "Evol-Instruct gives rows that its rules let live",
        "12_evol_instruct",
        "12_evol_instruct/rows",
        "12_evol_instruct/evol.parquet",
    ),
    Row(
        "The judge accepts a part of them", "20_judge_filter", "20_judge_filter/accept_rate_all", "20_judge_filter/judged_*.parquet"
    ),
    Row(
        "Merged onto the dequantised base, it is the model that was trained",
        "30_sft",
        "30_sft/merge_difference_dequantised",
        "30_sft/summary.json",
    ),
    Row("Instruction tuning makes the base answer", "60_benchmarks", "90_findings/sft_over_base", CLAIMS),
    Row("Filtered rows train better than unfiltered ones", "75_filter", "90_findings/filter_over_unfiltered", CLAIMS),
    Row("… and better than as many chosen at random", "75_filter", "90_findings/filter_over_random", CLAIMS),
    Row("DPO tells chosen from rejected replies it has not seen", "50_dpo", "50_dpo/reward_accuracy", "50_dpo/log.csv"),
    Row("DPO moves replies to the preferred manner", "50_dpo", "90_findings/dpo_preferred", CLAIMS),
    Row("DPO keeps the answers right", "50_dpo", "90_findings/dpo_keeps_answers", CLAIMS),
    Row("The tuned model converses better than the base", "61_mt_bench", "90_findings/chat_sft_over_base", CLAIMS),
    Row("DPO does not make conversation worse", "61_mt_bench", "90_findings/chat_dpo_over_hh", CLAIMS),
    Row("The DPO checkpoint converses best of the family", "61_mt_bench", "90_findings/dpo_best_of_family", CLAIMS),
]


def expected_table(metrics: dict[str, dict], timings: dict[str, float]) -> str:
    """The rows above as Markdown, with the values and times of the reference. Raises MetricsError naming a missing metric."""
    lines = [
        "| claim | chapter | command | artifact in `runs/mini/` | time, cost | expected | tolerance |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        if row.metric not in metrics:
            raise MetricsError(f"REPRODUCING.md speaks of {row.metric}, which the run did not measure (ROWS in reference.py)")
        value, unit = metrics[row.metric]["value"], metrics[row.metric]["unit"]
        command = f"`make runs/mini/{row.stage}/stage.json`"
        numbers = f"{shown(value)} {unit} | ± {tolerance(unit).allows(value):.3g}"
        effort = f"{minutes_from_nothing(row.stage, timings)} min, 0 USD"
        lines.append(f"| {row.claim} | `{row.chapter}` | {command} | `{row.artifact}` | {effort} | {numbers} |")
    return "\n".join(lines)


def shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def minutes_from_nothing(stage: str, timings: dict[str, float]) -> int:
    """All chapters up to this one, one after another, in minutes, rounded up."""
    return math.ceil(sum(seconds for name, seconds in timings.items() if name <= stage and name not in APART) / 60)


# ------------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.reference")
    parser.add_argument("--profile", default="mini")
    path = REPORTS / parser.parse_args(arguments).profile / "metrics.json"
    try:
        result = compare(read_metrics(REFERENCE), read_metrics(path))
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
