"""The table of stages: what it may not say, and that a line in it is all that a new stage needs."""

import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from bezoar_utils.study.profile import CODE, load_profile
from bezoar_utils.study.schema import Profile
from bezoar_utils.study.stages import STAGES, read_table

HEAD, *LINES = (CODE / "notebooks" / "stages.csv").read_text().splitlines()
MADE_UP = "65_extra,Extra measures,charts,intervals,,extra.json,evaluates,reproduce"
CELLS = (
    "profile = 'tiny'\nseed = 42\nthreads = 2\nprecision = 'auto'\n"
    "smoothing = 0.6\nintervals = {'samples': 200, 'confidence': 0.95}",
    "from bezoar_utils.study.stage import open_stage\nstage = open_stage('65_extra', globals())",
    "stage.measure('extra', 0.5, unit='share')\nstage.output('extra.json').write_text('{}')",
    "stage.finish()",
)


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("65_x,X,charts,,90_findings,,evaluates,reproduce", "90_findings"),
        ("65_x,X,charts,,,,ponders,reproduce", "ponders"),
        ("65_x,X,charts,,,,evaluates,test", "test"),
    ],
    ids=["reads a later stage", "unknown work", "unknown target"],
)
def test_a_line_that_cannot_be_is_one_error_that_names_it(tmp_path, line, word):
    (tmp_path / "stages.csv").write_text("\n".join([HEAD, *LINES[:3], line]))
    with pytest.raises(ValueError, match=f"65_x names {word}"):
        read_table(tmp_path / "stages.csv")


def test_every_stage_has_its_chapter_and_its_sections():
    for row in STAGES.values():
        assert (CODE / "notebooks" / f"{row.name}.ipynb").exists()
        assert {row.section, *row.shared} <= Profile.model_fields.keys()


def test_a_profile_runs_every_stage_or_those_it_names_in_their_order():
    mini = load_profile("mini")
    assert mini.chapters() == [stage for stage in STAGES if stage != "35_pairs"]
    own = mini.preference_rows.model_copy(update={"artifact": "35_pairs/preferences.parquet"})
    assert mini.model_copy(update={"preference_rows": own}).chapters() == list(STAGES), "where its pairs are trained on"
    assert mini.model_copy(update={"stages": ["30_sft", "10_lamini"]}).chapters() == ["10_lamini", "30_sft"]


def test_a_made_up_stage_needs_one_line_and_is_seen_everywhere(tmp_path):
    for name in ("bezoar_utils", "profiles", "notebooks", "Makefile", "reports/reference"):
        copy = shutil.copy if (CODE / name).is_file() else shutil.copytree
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(CODE / name, tmp_path / name)
    place = next(n for n, line in enumerate(LINES) if line.startswith("70_"))
    (tmp_path / "notebooks" / "stages.csv").write_text("\n".join([HEAD, *LINES[:place], MADE_UP, *LINES[place:]]) + "\n")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    notebook.cells[0].metadata.tags = ["parameters"]
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "notebooks" / "65_extra.ipynb")

    def make(*arguments):
        inherited = ("BEZOAR_HOME", "BEZOAR_READS", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
        environment = {k: v for k, v in os.environ.items() if k not in inherited}
        command = ["make", "PROFILE=tiny", f"PY={sys.executable}", *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert "stage 65_extra" in make("-n", "stages"), "make runs it"
    assert "65_extra" in make("plan"), "the plan lists it"
    assert "[11/14] 65_extra: done" in make("runs/tiny/65_extra/stage.json")
    make("report")
    assert "65 Extra measures" in (tmp_path / "reports" / "tiny" / "index.html").read_text(), "the report has its page"
    assert (tmp_path / "reports" / "tiny" / "65_extra.html").exists()
