"""The authors' released rows through the data chapters: our own rows in their columns, from local files, no call made."""

import json
import os
import subprocess
import sys

import pytest

from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE

DAG = "10_lamini: 11_orca: 12_evol_instruct: 20_judge_filter:10_lamini,11_orca,12_evol_instruct"
PROFILE = """extends: released
lamini: {released: {file: lamini.parquet, licence: Apache-2.0}}
orca: {released: {file: orca.tsv, licence: none stated}}
evol: {released: {file: evol.jsonl, licence: none stated}}
evaluation: {tasks: [], questions: {file: questions.jsonl, rename: {prompt: turns, prompt_id: question_id}, licence: Apache-2.0}}
"""


def judged(who, status, rating):
    return {f"{who}_status": status, f"{who}_rating": rating, f"{who}_reason": "as it seems"}


def lamini_row(number, status, rating, other):
    text = f"Name the {number}th letter of the alphabet and a word with it"
    verdicts = judged("gpt4", status, rating) | judged("llama2", other, "7") | judged("falcon", "Accept", "9")
    return {"instruction": text, "source": "topic-guided", "response": "x" * (number + 1), **verdicts}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "notebooks").symlink_to(CODE / "notebooks")
    (home / "profiles").mkdir()
    for path in (CODE / "profiles").glob("*.yaml"):
        (home / "profiles" / path.name).symlink_to(path)
    (home / "profiles" / "mine.yaml").write_text(PROFILE)
    lamini = [
        lamini_row(0, "Accept", "8", "Accept"),
        lamini_row(1, "Accept", "9", "Reject"),
        lamini_row(2, "Reject", "2", "Reject"),
    ]
    lamini += [
        lamini_row(3, "accept", "8", "Reject"),
        lamini_row(4, "Accept", "4/5", "Accept"),
        lamini_row(5, None, None, "Reject"),
    ]
    files.write_table(home / "lamini.parquet", lamini)
    names = "inputs targets system_message explained_targets gpt4_status gpt4_rating gpt4_reason".split()
    cells = ["How many legs has a cat?", "four", "Explain.", "Cats walk on four legs.", "Accept", "9", "right"]
    (home / "orca.tsv").write_text("\t".join(names) + "\n" + "\t".join(cells) + "\n")
    evol = {"instruction": "What would you weigh on the moon, in words for a child of five?", "response": "Less.", "epoch": 1}
    files.append_jsonl(home / "evol.jsonl", evol | judged("gpt4", "Accept", "8"), evol | judged("gpt4", "Reject", "1"))
    question = {"prompt": ["What would you weigh on the moon, in words for a child of five, and why?", "On Mars?"], "prompt_id": 1}
    files.append_jsonl(home / "questions.jsonl", question | {"category": "stem"})
    environment = os.environ | {"BEZOAR_HOME": str(home), "PYTHONPATH": str(CODE)}
    environment["PATH"] = f"{os.path.dirname(sys.executable)}{os.pathsep}{environment['PATH']}"
    for part in DAG.split():
        command = [sys.executable, "-m", "bezoar_utils.run", "stage", part.split(":")[0], "--profile", "mine", "--dag", DAG]
        result = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
    return home / "runs" / "mine"


def test_only_rows_whose_status_is_exactly_accept_are_kept_and_every_other_is_counted(run):
    drops = json.loads((run / "20_judge_filter" / "drops.json").read_text())
    assert (drops["lamini"]["accepted"], drops["lamini"]["judge_rejected"], drops["lamini"]["judge_failed"]) == (3, 1, 2)
    assert sum(drops["lamini"].values()) == 6
    assert (drops["orca"]["accepted"], drops["evol"]["judge_rejected"]) == (1, 1)


def test_a_released_row_that_overlaps_with_an_evaluation_question_goes(run):
    drops = json.loads((run / "20_judge_filter" / "drops.json").read_text())
    assert drops["evol"]["overlaps_evaluation"] == 1
    table = json.loads((run / "20_judge_filter" / "contamination.json").read_text())
    assert [(row["task"], row["items"], row["evol"]) for row in table] == [("two-turn questions", 2, 2)]


def test_the_authors_judges_are_compared_with_each_other(run):
    measured = json.loads((run / "20_judge_filter" / "stage.json").read_text())["metrics"]
    # gpt4 A A R A against llama2 A R R A: agree 3/4, by chance (3/4 2/4 + 1/4 2/4) = 1/2
    assert measured["kappa: released: gpt4 and llama2"]["value"] == pytest.approx(0.5)
    assert measured["kappa: released: gpt4 and llama2"]["n"] == 4


def test_nobody_was_asked(run):
    assert not list(run.glob("*/calls.jsonl"))
    assert all(json.loads(p.read_text())["counts"]["calls"] == 0 for p in run.glob("*/stage.json"))


def test_the_orca_row_is_rendered_under_its_own_system_message(run):
    (row,) = files.read_table(run / "20_judge_filter" / "accepted_orca.parquet")
    assert row["prompt"].startswith("### System:\nExplain.\n\n### Instruction:\nHow many legs has a cat?")
    assert row["response"] == "Cats walk on four legs." and row["rating"] == 9


def test_each_set_has_a_card_with_counts_and_licences(run):
    card = (run / "20_judge_filter" / "card_lamini.md").read_text()
    assert "lamini.parquet): Apache-2.0" in card and "- accepted: 3" in card and "None: nothing was generated." in card
