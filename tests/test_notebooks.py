import json
import os
import subprocess
import sys

import nbformat
import pytest

from bezoar_utils.profile import CODE, STAGES, load_profile, stage_parameters
from bezoar_utils.run import literal_assignments

NOTEBOOKS = sorted((CODE / "notebooks").glob("*.ipynb"))


def test_there_is_one_chapter_a_stage():
    assert [p.stem for p in NOTEBOOKS] == list(STAGES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_has_one_parameters_cell_of_literals_which_say_what_tiny_says(path):
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    assert literal_assignments(cells[0].source) == {"profile": "tiny", **stage_parameters(load_profile("tiny"), path.stem)}


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


def test_every_chapter_runs_on_its_own_defaults_in_order(tmp_path):
    """nbval, in a folder of its own, as somebody opening the chapters one after another in JupyterLab would run them."""
    for name in ("profiles", "notebooks"):
        (tmp_path / name).symlink_to(CODE / name)
    environment = {k: v for k, v in os.environ.items() if k != "BEZOAR_READS"}
    environment |= {
        "BEZOAR_HOME": str(tmp_path),
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
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout[-6000:]
    explored = tmp_path / "runs" / "tiny" / "explore"
    assert [s for s in STAGES if not (explored / s / "stage.json").exists()] == []
    claims = json.loads((explored / "90_findings" / "claims.json").read_text())
    assert len(claims) == 8 and {c["verdict"] for c in claims} <= {"shown", "not shown", "opposite"}
