"""The whole recipe for several seeds: `make replicates SEEDS=8`. What holds over all of them is evidence, one run is an anecdote.

A replicate is the profile with another seed: its own world, tokenizer, base, data and trainings, in `runs/<profile>-seed-<n>/`, by
the same stages and make rules. The seeds are fresh: no setting was chosen on them. Source: ours.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..evaluation import claims, stats
from ..study import files
from ..study.profile import CODE, ROOT, STAGES, load_profile, stage_parameters
from ..study.stage import RUNS, finished_records, stale_reason
from . import compare, pages

NOTEBOOK = CODE / "notebooks" / "replicates.ipynb"
FIRST_SEED = 101  # the profile's own, 42, and those below 100 are for choosing settings
RECIPE = [row.name for row in STAGES.values() if row.target == "reproduce"]


class ReplicateError(ValueError):
    """Replicates that cannot be taken together. The message is one line."""


def names_of(profile: str, seeds: int) -> list[str]:
    return [f"{profile}-seed-{FIRST_SEED + number}" for number in range(seeds)]


def is_finished(name: str) -> bool:
    profile = load_profile(name)
    stages = [stage for stage in RECIPE if stage in profile.chapters()]
    return all(stale_reason(stage, name, stage_parameters(profile, stage)) is None for stage in stages)


def read_replicates(profile: str, seeds: int) -> tuple[dict[str, dict], dict[str, str]]:
    """(run -> `stage.json` of each stage, of the complete ones; run -> which stages it lacks).

    Raises ReplicateError when they are not of one profile and one code, and when fewer than two are complete.
    """
    wanted = [stage for stage in RECIPE if stage in load_profile(profile).chapters()]
    complete, lacking = {}, {}
    for name in names_of(profile, seeds):
        records = finished_records(RUNS / name)
        missing = [stage for stage in wanted if stage not in records]
        if missing:
            lacking[name] = f"has not finished {', '.join(missing)}"
        else:
            complete[name] = {stage: records[stage] for stage in wanted}
    if len(complete) < 2:
        raise ReplicateError(f"{len(complete)} replicates of {profile} are complete, at least two are needed: make replicates")
    first = next(iter(complete))
    for name, stage in ((name, stage) for name in complete for stage in wanted):
        if what := _difference(complete[first][stage], complete[name][stage]):
            raise ReplicateError(
                f"{name} and {first} are not replicates: {stage} was made with other {what}; run make replicates again"
            )
    return complete, lacking


def _difference(one: dict, other: dict) -> str:
    for what in ("parameters", "code", "notebook"):
        without_seed = [r[what] if what != "parameters" else r[what] | {"seed": None} for r in (one, other)]
        if without_seed[0] != without_seed[1]:
            return what
    return ""


def claim_rows(runs: dict[str, dict], confidence: float) -> list[dict]:
    """A row per claim: its effect in each run, their mean with Student's interval over runs, the verdict over runs, and how many
    runs, and items within a run, there are."""
    told = {run: {c["id"]: c for c in pages.read_claims(run, records)} for run, records in runs.items()}
    rows = []
    for claim in claims.read_lines(CODE / load_profile(next(iter(runs))).findings.claims_from, claims.Claim):
        tested = {run: mine[claim["id"]] for run, mine in told.items() if claim["id"] in mine}
        row = {name: claim[name] for name in ("id", "claim", "test")} | {"runs": len(tested)}
        row |= {"effects": {run: mine["difference"] for run, mine in tested.items()}, "items": [c["n"] for c in tested.values()]}
        if len(tested) > 1:
            mean, low, high = stats.over_seeds([*row["effects"].values()], confidence)
            row |= {"mean": mean, "low": low, "high": high}
            row["verdict"] = claims.VERDICTS[claim["verdict"]](mean, low, high, claim["threshold"])
            if low == high:  # equal to the last item in every run: too few items to tell runs apart
                row["verdict"] = "not shown"
            rows.append(row | {"unit": next(iter(tested.values()))["unit"]})
    return rows


def metric_rows(runs: dict[str, dict], confidence: float) -> dict[str, dict]:
    """metric -> unit, its value in each run, their mean, and where one more run would lie (`low`, `high`: prediction interval)."""
    values: dict[str, dict] = {}
    for run, records in runs.items():
        for stage, record in records.items():
            for name, measured in record["metrics"].items():
                row = values.setdefault(f"{stage}/{name}", {"unit": measured["unit"], "values": {}})
                if stats.is_measured(measured["value"]):
                    row["values"][run] = measured["value"]
    for row in values.values():
        if len(row["values"]) > 1:
            row |= dict(zip(("mean", "low", "high"), stats.one_more([*row["values"].values()], confidence)))
    return values


def task_rows(metrics: dict[str, dict], confidence: float) -> list[dict]:
    """A row per step of the recipe and task, as `charts.differences` takes it: how the task's main metric changed, its mean over
    runs with Student's interval, and each run's change. `metrics` as `metric_rows` gives them."""
    found: dict[str, dict] = {}
    for name, row in metrics.items():
        if name.startswith("60_benchmarks/") and name.count("/") == 3:
            _, task, metric, model = name.split("/")
            found.setdefault(task, {}).setdefault(metric, {})[model] = row["values"]
    rows = []
    for (before, after), (task, by_metric) in ((step, item) for step in claims.STEPS for item in found.items()):
        metric = claims.main_metric(by_metric)
        old, new = (by_metric[metric].get(model, {}) for model in (before, after))
        each = [new[run] - old[run] for run in old if run in new]
        if len(each) > 1:
            mean, low, high = stats.over_seeds(each, confidence)
            row = {"name": f"{task}: {after} against {before}", "before": before, "after": after, "task": task, "metric": metric}
            rows.append(row | {"difference": mean, "low": low, "high": high, "each": each})
    return rows


def summary(profile: str, runs: dict[str, dict], lacking: dict[str, str]) -> dict:
    """What is kept of the replicates, as `read_replicates` gives them."""
    confidence = load_profile(profile).intervals.confidence
    seeds_of = {name: records["90_findings"]["seed"] for name, records in runs.items() if "90_findings" in records}
    told = {"profile": profile, "runs": [*runs], "seeds": [*seeds_of.values()], "left out": lacking, "confidence": confidence}
    return told | {"claims": claim_rows(runs, confidence), "metrics": metric_rows(runs, confidence)}


# ------------------------------------------------------------------------------------------------------------- command


def run_all(profile: str, seeds: int, jobs: int, makefile: Path) -> list[str]:
    """Run what is not finished, `jobs` replicates side by side, one stage of each at a time; the names of those that failed."""
    waiting = [name for name in names_of(profile, seeds) if not is_finished(name)]
    started, done, failed = time.monotonic(), 0, []
    command = ["make", "-f", str(makefile), "--no-print-directory", "stages", "JOBS=1", f"PY={sys.executable}"]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "BEZOAR_SEEDS")
    }

    def run(name: str) -> tuple[str, int]:
        return name, subprocess.run([*command, f"PROFILE={name}"], cwd=ROOT, env=environment, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        for name, code in pool.map(run, waiting):
            done, failed = done + 1, failed + [name] * bool(code)
            left = (time.monotonic() - started) / done * (len(waiting) - done) / 60
            print(
                f"replicates: {name} {'failed' if code else 'done'}, {len(waiting) - done} to go, about {left:.0f} minutes",
                flush=True,
            )
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.replicates")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--makefile", type=Path, default=CODE / "Makefile")
    options = parser.parse_args(arguments)
    try:
        failed = run_all(options.profile, options.seeds, options.jobs, options.makefile)
        runs, lacking = read_replicates(options.profile, options.seeds)
        told = summary(options.profile, runs, lacking)
        target = pages.REPORTS / f"{options.profile}-replicates"
        changed = not (target / "replicates.json").exists() or files.read_json(target / "replicates.json") != told
        if changed or not (target / "index.html").exists():
            files.write_json(target / "replicates.json", told)
            label = f"{options.profile}, {len(runs)} seeds"
            compare.write_notebook_page(NOTEBOOK, target, {"summary": str(target / "replicates.json")}, runs, label)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, why in lacking.items():
        print(f"left out: {name} {why}", file=sys.stderr)
    print(f"replicates: {(target / 'index.html').relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
