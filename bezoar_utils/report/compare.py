"""Two or more runs side by side: `make compare RUNS="mini mine"` executes `notebooks/compare.ipynb` and writes
`reports/compare/index.html`. No stage is run. Here is what the notebook needs beside pandas. Source: ours.
"""

import argparse
import sys
from pathlib import Path

from ..study.profile import CODE, REHEARSAL, STAGES
from ..study.stage import RUNS, finished_records
from . import pages

NOTEBOOK = CODE / "notebooks" / "compare.ipynb"
TARGET = pages.REPORTS / "compare"
# what a chart shows: its title, and for each of its panels (name, stage, log)
LOGS = (
    (
        "SFT loss, scheme after scheme",
        (("LaMini", "30_sft", "log_lamini.csv"), ("Orca", "30_sft", "log_orca.csv"), ("Evol-Instruct", "30_sft", "log_evol.csv")),
    ),
    ("SFT loss on the chosen replies", (("HH-RLHF SFT", "40_hh_sft", "log.csv"),)),
    ("DPO loss", (("DPO", "50_dpo", "log.csv"),)),
)


def read_runs(names: list[str]) -> dict[str, dict[str, dict]]:
    """`stage.json` of each finished stage, by run and stage.

    Raises ValueError for fewer than two runs, an unknown run, a rehearsal, or a run without a finished stage.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise ValueError(f'expected two or more different runs, as in `make compare RUNS="mini mine"`; got {names}')
    return {name: _records(name) for name in names}


def _records(name: str) -> dict[str, dict]:
    if name.startswith(REHEARSAL):
        raise ValueError(f"{name} is a rehearsal: it has no results to compare")
    known = sorted(p.name for p in RUNS.iterdir() if p.is_dir()) if RUNS.is_dir() else []
    if name not in known:
        raise ValueError(f"there is no run {name!r} in runs/: choose from {', '.join(known) or 'none'}")
    records = finished_records(RUNS / name)
    if not records:
        raise ValueError(f"runs/{name} has no finished stage: run `make reproduce PROFILE={name}` first")
    return records


def loss_panels(runs: dict[str, dict[str, dict]], panels) -> dict[str, dict[str, list[dict]]]:
    """Each run's log of a training as rows, by panel and run. A panel that no run has is left out."""
    import pandas as pd

    logs = {}
    for title, stage, log in panels:
        paths = {name: RUNS / name / stage / log for name, records in runs.items() if stage in records}
        rows = {name: pd.read_csv(path).to_dict("records") for name, path in paths.items() if path.exists()}
        if rows:
            logs[title] = rows
    return logs


def write_comparison(names: list[str]) -> Path:
    """Execute the notebook for these runs and return its page. Raises ValueError as `read_runs` does, and when a cell fails."""
    runs = read_runs(names)
    return write_notebook_page(NOTEBOOK, TARGET, {"runs": list(runs)}, runs, f"{' and '.join(runs)} compared")


def write_notebook_page(notebook: Path, target: Path, parameters: dict, runs: dict[str, dict], label: str) -> Path:
    """Execute a notebook that reads these runs, and return its page in `target`. Raises ValueError when a cell fails."""
    import papermill

    executed = target / notebook.name
    target.mkdir(parents=True, exist_ok=True)
    options = {"cwd": str(CODE), "kernel_name": "python3", "progress_bar": False, "extra_arguments": ["--log-level=40"]}
    try:
        papermill.execute_notebook(str(notebook), str(executed), parameters=parameters, **options)
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{executed} failed in cell {error.exec_count}: {error.ename}: {error.evalue}") from None
    stages = [stage for stage in STAGES if any(stage in records for records in runs.values())]
    body = pages.render("compare.html.j2", notebook=pages.chapter_body(executed), runs=runs, stages=stages)
    page = {"file": "index.html", "label": label}
    shared = {"pages": [page], "subject": "runs compared", "made_from": [f"runs/{name}" for name in runs]}
    pages.write_page(target, body, page=page, **shared)
    return target / page["file"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.compare")
    parser.add_argument("runs", nargs="*", help="names of runs, as in runs/<name>/")
    try:
        print(f"comparison: {write_comparison(parser.parse_args(arguments).runs).relative_to(pages.ROOT)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
