"""`make check-reference` sees a stage that is broken without failing: each fault is planted in a copy of the code, the stage runs
again on the finished run of `mini`, and its numbers are held against the replicates'. Needs `make reproduce`; some four minutes."""

import os
import shutil
import subprocess
import sys

import pytest

from bezoar_utils.report import reference
from bezoar_utils.study.pace import committed
from bezoar_utils.study.profile import CODE
from bezoar_utils.study.stage import RUNS, finished_records
from bezoar_utils.study.stages import STAGES

pytestmark = pytest.mark.slow

# what is broken -> (file, line as it is, line with the fault, the stage that runs again)
FAULTS = {
    "a training that does nothing": (
        "bezoar_utils/training/loop.py",
        '"learning_rate": recipe["learning_rate"],',
        '"learning_rate": 1e-12,',
        "50_dpo",
    ),
    "a judge that accepts all": (
        "bezoar_utils/miniature/oracle.py",
        'return ("Accept" if rating == 10 else "Reject"), rating, reason',
        'return "Accept", 10, reason',
        "20_judge_filter",
    ),
    "a merge that drops the adapter": (
        "bezoar_utils/training/models.py",
        "return PeftModel.from_pretrained(model, adapter).merge_and_unload()",
        "return PeftModel.from_pretrained(model, adapter).unload()",
        "50_dpo",
    ),
    "chosen and rejected swapped": (
        "notebooks/50_dpo.ipynb",
        "pairs, dropped = preferences.preference_pairs(raw)",
        "pairs, dropped = preferences.preference_pairs([{'chosen': r['rejected'], 'rejected': r['chosen']} for r in raw])",
        "50_dpo",
    ),
    "another template at evaluation": (
        "bezoar_utils/evaluation/benchmarks.py",
        'rows = files.read_jsonl(folder / f"{name}.jsonl")',
        'rows = files.read_jsonl(folder / f"{name}.jsonl")\n'
        '    rows = [r | {"prompt": r["prompt"].replace("### Response:", "ASSISTANT:")} for r in rows]',
        "60_benchmarks",
    ),
}
DAG = " ".join(f"{row.name}:{','.join(row.reads)}" for row in STAGES.values())
CODE_PARTS = ("bezoar_utils", "notebooks", "profiles")


@pytest.fixture
def home(tmp_path):
    """A copy of the code, and of the finished run."""
    if not reference.spread_of_replicates("mini")[0] or "90_findings" not in finished_records(RUNS / "mini"):
        pytest.skip("no finished run of mini: make reproduce")
    for part in CODE_PARTS:
        shutil.copytree(CODE / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(RUNS / "mini", tmp_path / "runs" / "mini")
    return tmp_path


@pytest.mark.parametrize("fault", FAULTS)
def test_a_stage_that_is_broken_but_finishes_is_not_taken_for_another_draw(home, fault):
    path, line, broken, stage = FAULTS[fault]
    text = (home / path).read_text(encoding="utf-8")
    assert text.count(line) == 1, "the fault has lost its place"
    (home / path).write_text(text.replace(line, broken), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(home), "BEZOAR_HOME": str(home)}
    command = [sys.executable, "-m", "bezoar_utils.run", "stage", stage, "--profile", "mini", "--dag", DAG]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = {f"{stage}/{name}": m for name, m in finished_records(home / "runs" / "mini")[stage]["metrics"].items()}
    spread, _ = reference.spread_of_replicates("mini")
    numbers = reference.read_metrics(committed("mini") / "metrics.json")
    expected = {name: m for name, m in numbers.items() if name.split("/")[0] == stage}
    assert reference.compare(expected, measured, spread).problems
