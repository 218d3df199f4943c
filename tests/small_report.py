"""A run of three stages that trained nothing, for tests of the pages made from it."""

import nbformat
import pytest

from bezoar_utils.report import charts, pages, show
from bezoar_utils.study import files

PAYLOAD = "<img src=x onerror=alert(1)><script>alert(2)</script><a href='javascript:alert(3)'>x</a>"
LONG = "unbroken" * 60
CODE = "def answer():\n    return 'a line of code that is by far too long for a phone' + " + repr("x" * 160)


def chart():
    return charts.bars({"base": (0.1, 0.05, 0.2), "OpenBezoar-SFT": (0.8, 0.7, 0.9)}, "Answers found", "share of items", 1)


def chapter(title: str):
    wide = [{f"column {n}": PAYLOAD if n == 3 else f"value {n}" for n in range(12)}]
    figure = show.figure_html(chart(), "Answers found: base 0.10, SFT 0.80", "n = 3")
    pieces = (show.table_html(wide, caption=PAYLOAD), figure, PAYLOAD + "<h1 id='provenance'>not ours</h1>")
    outputs = [
        *(nbformat.v4.new_output("display_data", {"text/html": markup}) for markup in pieces),
        nbformat.v4.new_output("display_data", {"text/markdown": "# not ours\n\n" + PAYLOAD}),
        nbformat.v4.new_output("stream", name="stdout", text=LONG),
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
    ]
    cells = [
        nbformat.v4.new_markdown_cell(f"# {title}\n\n**Question.** Why?\n\n| reads | makes |\n|---|---|\n| nothing | `{LONG}` |"),
        nbformat.v4.new_code_cell(CODE, outputs=outputs),
        nbformat.v4.new_markdown_cell("## Training & loss\n\nProse with a [link](https://arxiv.org/abs/2404.12195)."),
        nbformat.v4.new_code_cell("print(1)", outputs=[nbformat.v4.new_output("stream", name="stdout", text="1\n" * 60)]),
        nbformat.v4.new_markdown_cell("## What we see\n\nNothing."),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def record(stage: str, parameters: dict, metrics: dict) -> dict:
    return {
        "stage": stage,
        "finished": "2026-01-01T00:00:00Z",
        "git_commit": "0" * 40,
        "git_dirty": False,
        "notebook": "f" * 64,
        "seed": parameters["seed"],
        "wall_seconds": 2.0,
        "work_seconds": 1.0,
        "parameters": parameters,
        "inputs": {"00_miniature/some/file.parquet": "a" * 64},
        "outputs": {"log.csv": {"sha256": "b" * 64, "bytes": 1}},
        "code": {"bezoar_utils/report/show.py": "c" * 64},
        "metrics": metrics,
        "counts": {"tokens": 1, "calls": 2, "cost_usd": 0.0},
        "versions": {"python": "3.11.7"},
    }


def claim(**changes) -> dict:
    row = {"id": "answers", "claim": "It answers", "test": "answer found", "chapter": "30_sft", "verdict": "shown"}
    return row | {"before": 0.1, "after": 0.8, "difference": 0.7, "low": 0.6, "high": 0.8, "unit": "share", "n": 9} | changes


def write_run(runs, name: str, rate: float = 0.001, verdict: str = "shown", stages=("10_lamini", "30_sft", "90_findings")) -> None:
    for stage in stages:
        folder = runs / name / stage
        folder.mkdir(parents=True)
        nbformat.write(chapter(f"{stage[:2]} · A chapter"), folder / "chapter.ipynb")
        metrics = {"found": {"value": rate * 100, "low": 0.05, "high": 0.2, "n": 3, "unit": "share of items"}}
        only = {"value": 1.0, "low": None, "high": None, "n": 9, "unit": "", "asked": 12}
        metrics |= {f"only_{name}": only} if stage == "30_sft" else {}
        files.write_json(folder / "stage.json", record(stage, {"seed": 1, "training": {"learning_rate": rate}}, metrics))
    if "30_sft" in stages:
        log = "step,loss,eval_loss\n1,3.0,\n2,2.0,\n2,,2.5\n"
        (runs / name / "30_sft" / "log_lamini.csv").write_text(log.replace("2.5", str(rate * 1000)))
    if "90_findings" in stages:
        files.write_json(runs / name / "90_findings" / "claims.json", [claim(verdict=verdict)])
        files.write_json(runs / name / "90_findings" / "not_reproduced.json", [{"what": "the judges", "why": "retired"}])


def rendered(folder):
    """The folder of that run's pages."""
    write_run(folder / "runs", "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "RUNS", folder / "runs")
        patch.setattr(pages, "REPORTS", folder / "reports")
        pages.write_report("small")
    return folder / "reports" / "small"
