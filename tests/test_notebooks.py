import ast
import json
import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from bezoar_utils.run import literal_assignments
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE, STAGES, load_profile, stage_parameters

# not stages: they read finished runs
EXPLORE, COMPARE, REPLICATES = (CODE / "notebooks" / f"{name}.ipynb" for name in ("explore", "compare", "replicates"))
NOTEBOOKS = sorted(p for p in (CODE / "notebooks").glob("*.ipynb") if p not in (EXPLORE, COMPARE, REPLICATES))


def test_there_is_one_chapter_a_stage():
    assert [p.stem for p in NOTEBOOKS] == list(STAGES)


@pytest.mark.parametrize("path", [EXPLORE, COMPARE, REPLICATES], ids=lambda p: p.stem)
def test_a_notebook_that_is_not_a_stage_is_valid_stripped_and_has_short_cells(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    assert notebook.cells[0].cell_type == "markdown"
    lengths = sorted(len(c.source.splitlines()) for c in code)
    assert lengths[len(lengths) // 2] <= 10 and lengths[-1] <= 40


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_has_one_parameters_cell_of_literals_which_say_what_tiny_says(path):
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    assert literal_assignments(cells[0].source) == {
        "profile": "tiny",
        **stage_parameters(load_profile("tiny"), path.stem, short=True),
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_parameter_is_used_by_name_in_its_chapter_or_its_cell_says_where(path):
    cells = [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    named, _, elsewhere = (
        cells[0].source.partition("\n# read by ") if "\n# read by " in cells[0].source else (cells[0].source, "", "")
    )
    code = "\n".join(c.source for c in cells[1:])
    used = {name for name in literal_assignments(cells[0].source) if re.search(rf"(?<![\"'\w.]){name}\b", code)}
    assert set(literal_assignments(named)) - used <= {"profile"}
    assert not elsewhere or re.match(r"[\w.]+ from stage.parameters|nothing here", elsewhere)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_call_in_a_chapter_has_more_than_eight_arguments(path):
    code = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert [ast.unparse(call)[:60] for call in calls if len(call.args) + len(call.keywords) > 8] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_is_valid_stripped_and_tells_its_story(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code)
    assert "papermill" not in notebook.metadata
    opening = notebook.cells[0].source
    assert opening.startswith(f"# {path.stem[:2]} · ") and "**Question.**" in opening and "| reads | makes |" in opening
    assert code[-1].source == "stage.finish()"
    lengths = sorted(len(c.source.splitlines()) for c in code[1:])
    assert lengths[len(lengths) // 2] <= 10 and lengths[-1] <= 40


@pytest.fixture(scope="module")
def opened_in_order(tmp_path_factory):
    """(folder, environment, nbval's result): all chapters in a folder of their own, one after another, as in JupyterLab."""
    folder = tmp_path_factory.mktemp("study")
    for name in ("profiles", "notebooks"):
        (folder / name).symlink_to(CODE / name)
    environment = {k: v for k, v in os.environ.items() if k != "BEZOAR_READS"}
    environment |= {
        "BEZOAR_HOME": str(folder),
        "PYTHONPATH": str(CODE),
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-kernel-name=python3",
        *map(str, NOTEBOOKS),
    ]
    return folder, environment, subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)


@pytest.mark.slow
def test_every_chapter_runs_on_its_own_defaults_in_order(opened_in_order):
    folder, _, result = opened_in_order
    assert result.returncode == 0, result.stdout[-6000:]
    explored = folder / "runs" / "tiny" / "explore"
    assert [s for s in STAGES if not (explored / s / "stage.json").exists()] == []
    claims = json.loads((explored / "90_findings" / "claims.json").read_text())
    assert len(claims) == len(pd.read_csv(CODE / "profiles" / "claims.csv"))
    assert {c["verdict"] for c in claims} <= {"shown", "not shown", "opposite"}


@pytest.mark.slow
def test_the_exploring_notebook_runs_on_a_finished_tiny_run_and_changes_nothing_in_it(opened_in_order):
    folder, environment, _ = opened_in_order
    before = contents(folder / "runs")
    notebook = nbformat.read(EXPLORE, 4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(folder), env=environment)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in shown)
    assert "exploring runs/tiny" in printed and "nothing was run: set RUN = True" in printed
    markup = "".join(output.get("data", {}).get("text/html", "") for output in shown)
    assert all(said in markup for said in ("OpenBezoar-HH-RLHF-DPO", "the judge wrote", "trained is in", "no verdict"))
    assert contents(folder / "runs") == before


def contents(folder):
    return {path: files.sha256_file(path) for path in folder.rglob("*") if path.is_file()}
