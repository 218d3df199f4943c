"""Two or more runs side by side, from their `stage.json`s and artifacts: what was set otherwise, and what came of it.

`make compare RUNS="mini mine"` writes `reports/compare/mini-and-mine.html`. Nothing is run.
"""

import argparse
import csv
import sys
from pathlib import Path

from ..study import files
from ..study.profile import REHEARSAL, STAGES, flat
from ..study.stage import RUNS, finished_records
from . import pages

TARGET = pages.REPORTS / "compare"
NONE = "–"
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

    Raises ValueError for fewer than two runs, an unknown one, or one without a finished stage.
    """
    names = list(dict.fromkeys(names))
    if len(names) < 2:
        raise ValueError(
            f'two or more different runs are needed, as in `make compare RUNS="mini mine"`; got {" ".join(names) or "none"}'
        )
    return {name: _records(name) for name in names}


def _records(name: str) -> dict[str, dict]:
    if name.startswith(REHEARSAL):
        raise ValueError(f"{name} is a rehearsal: it has no results to compare")
    known = sorted(p.name for p in RUNS.iterdir() if p.is_dir()) if RUNS.is_dir() else []
    if name not in known:
        raise ValueError(f"no run {name!r} in runs/; there is {', '.join(known) or 'none'}")
    records = finished_records(RUNS / name)
    if not records:
        raise ValueError(f"runs/{name} has no finished stage: run `make reproduce PROFILE={name}` first")
    return records


# -------------------------------------------------------------------------------------------------------- what is compared


def parameter_differences(runs: dict[str, dict[str, dict]]) -> list[dict]:
    """Rows stage, parameter and a value a run, for parameters that differ between runs that have finished that stage.

    – stands where a run has not finished it, or did not know the parameter.
    """
    rows = []
    for stage in _stages(runs):
        told = {name: flat(records[stage]["parameters"]) for name, records in runs.items() if stage in records}
        for key in dict.fromkeys(key for values in told.values() for key in values):
            first, *others = [values.get(key) for values in told.values()]
            if any(value != first for value in others):
                cells = {name: str(told[name][key]) if key in told.get(name, {}) else NONE for name in runs}
                rows.append({"stage": stage, "parameter": key} | cells)
    return rows


def metrics_side_by_side(runs: dict[str, dict[str, dict]]) -> list[dict]:
    """Rows stage, metric, unit and "value [low, high]" a run: the union of all metrics, – for what a run did not measure."""
    rows = []
    for stage in _stages(runs):
        found = {name: records[stage]["metrics"] for name, records in runs.items() if stage in records}
        for metric in dict.fromkeys(metric for metrics in found.values() for metric in metrics):
            unit = next(metrics[metric]["unit"] for metrics in found.values() if metric in metrics)
            cells = {name: _measured(found.get(name, {}).get(metric)) for name in runs}
            rows.append({"stage": stage, "metric": metric, "unit": unit} | cells)
    return rows


def claims_side_by_side(claims: dict[str, list[dict]]) -> list[dict]:
    """Rows claim, test and "verdict: difference [low, high]" a run; – where a run has not tested it."""
    every = {(c["claim"], c["test"]): None for some in claims.values() for c in some}
    found = {name: {(c["claim"], c["test"]): c for c in some} for name, some in claims.items()}
    return [{"claim": key[0], "test": key[1]} | {name: _verdict(found[name].get(key)) for name in claims} for key in every]


def loss_panels(runs, panels) -> dict[str, dict[str, list[dict]]]:
    """Rows of each run's log, by panel and run; panels that no run has are left out."""
    logs = {}
    for title, stage, log in panels:
        paths = {name: RUNS / name / stage / log for name, records in runs.items() if stage in records}
        read = {name: read_log(path) for name, path in paths.items() if path.exists()}
        logs |= {title: read} if read else {}
    return logs


def read_log(path: Path) -> list[dict]:
    """A training's log.csv with numbers for what is a number, and without the empty cells."""
    with open(path, newline="") as handle:
        return [{key: _number(text) for key, text in row.items() if text} for row in csv.DictReader(handle)]


def _stages(runs) -> list[str]:
    return [stage for stage in STAGES if any(stage in records for records in runs.values())]


def _measured(metric: dict | None) -> str:
    if metric is None or metric["value"] is None:
        return NONE
    interval = f" [{metric['low']:.3f}, {metric['high']:.3f}]" if metric["low"] is not None else ""
    return f"{metric['value']:.3f}{interval}" + (f", n = {metric['n']}" if metric["n"] else "")


def _verdict(claim: dict | None) -> str:
    return f"{claim['verdict']}: {claim['difference']:+.2f} [{claim['low']:+.2f}, {claim['high']:+.2f}]" if claim else NONE


def _number(text: str):
    try:
        return float(text)
    except ValueError:
        return text


# --------------------------------------------------------------------------------------------------------------- the page


def body(runs: dict[str, dict[str, dict]]) -> str:
    """The page's content, everything in it escaped."""
    from markupsafe import Markup

    from . import charts
    from .show import figure_html, table_html

    def table(rows, caption):
        return Markup(table_html(rows, caption=caption, limit=len(rows)))  # noqa: S704 escaped there

    figures = []
    for title, panels in LOGS:
        if logs := loss_panels(runs, panels):
            alt = f"{title} over optimizer steps of {', '.join(runs)}: " + "; ".join(_last_losses(logs))
            markup = figure_html(charts.overlaid_losses(logs, title), alt, "thin: training; with points: validation", "#provenance")
            figures.append(Markup(markup))  # noqa: S704 escaped there
    claims = {name: RUNS / name / "90_findings" / "claims.json" for name in runs}
    claims = {name: files.read_json(path) if "90_findings" in runs[name] else [] for name, path in claims.items()}
    return pages.render(
        "compare.html.j2",
        runs=runs,
        stages=_stages(runs),
        parameters=table(parameter_differences(runs), "Parameters that differ"),
        claims=table(claims_side_by_side(claims), "Verdicts, with difference and interval"),
        metrics=table(metrics_side_by_side(runs), "Value [interval]; – is not measured"),
        figures=figures,
    )


def _last_losses(logs: dict[str, dict[str, list[dict]]]) -> list[str]:
    told = []
    for panel, some in logs.items():
        last = {name: [row["eval_loss"] for row in rows if "eval_loss" in row] for name, rows in some.items()}
        told.append(f"{panel}, last validation " + ", ".join(f"{name} {values[-1]:.3f}" for name, values in last.items() if values))
    return told


def write_comparison(names: list[str]) -> Path:
    """Raises ValueError as `read_runs` does."""
    runs = read_runs(names)
    page = {"file": f"{'-and-'.join(runs)}.html", "label": f"{' and '.join(runs)} compared"}
    sources = {"made_from": [f"runs/{name}" for name in runs], "commit": None, "dirty": False}
    pages.write_page(TARGET, body(runs), page=page, pages=[page], before=None, after=None, subject="runs compared", **sources)
    return TARGET / page["file"]


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
