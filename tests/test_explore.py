"""Looking around in a finished run: what is read, what is said of a row, and what is never overwritten."""

import json

import pytest
from test_report import PAYLOADS, live

from bezoar_utils import explore
from bezoar_utils.data import filters
from bezoar_utils.report import show
from bezoar_utils.study import files, stage
from bezoar_utils.study.profile import ProfileError, load_profile
from bezoar_utils.study.stage import StageError

RULES = {"evaluation": filters.EvaluationIndex({}, 8), "held_out": {"Tereso"}, "near_duplicate": 0.95}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "RUNS", tmp_path)
    monkeypatch.setattr(explore, "RUNS", tmp_path)
    return tmp_path


def finish(folder, **record):
    files.write_json(folder / "stage.json", {"outputs": {}, "metrics": {}, "parameters": {}} | record)


def row(number, instruction, status="Accept", **more):
    return {"number": number, "system": "", "instruction": instruction, "response": "Fado", "status": status} | more


# ------------------------------------------------------------------------------------------------------- which run


def test_the_first_finished_profile_is_opened(runs):
    for name in explore.NEEDED:
        finish(runs / "tiny" / name)
    assert explore.open_run("mini", "tiny").profile == "tiny"
    for name in explore.NEEDED[:-1]:
        finish(runs / "mini" / name)
    assert explore.open_run("mini", "tiny").profile == "tiny", "mini lacks its last stage"
    finish(runs / "mini" / "explore" / explore.NEEDED[-1])
    assert explore.open_run("mini", "tiny").profile == "mini", "a chapter run by hand counts"


def test_without_a_finished_run_one_line_says_what_to_do(runs):
    with pytest.raises(
        StageError, match=r"^there is nothing to explore: mini lacks 10_lamini, .*run `make reproduce` first"
    ) as error:
        explore.open_run("mini", "tiny")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ models' answers


def test_a_question_has_the_same_answer_again_and_a_seed_chooses_another(model_folder):
    explore.load.cache_clear()
    said = [explore.reply(model_folder, "Who?", max_new_tokens=8) for _ in range(2)]
    assert said[0] == said[1]
    sampled = {explore.reply(model_folder, "Who?", temperature=1.0, seed=seed, max_new_tokens=8) for seed in range(4)}
    assert len(sampled) > 1
    assert explore.load.cache_info().misses == 1


@pytest.mark.parametrize("payload", PAYLOADS)
def test_two_answers_side_by_side_are_inert(payload):
    assert not live(show.table_html([{"base": payload, "OpenBezoar-SFT": payload}], caption=payload))


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_of_a_stage_come_with_their_verdict_and_number(runs):
    folder = runs / "mine" / "20_judge_filter"
    for scheme in explore.SCHEMES.values():
        made = [row(0, "a", scheme=scheme, rating=10), row(0, "b", status=None, scheme=scheme, rating=None)]
        files.write_table(folder / f"judged_{scheme}.parquet", made)
    finish(folder, outputs={f"judged_{scheme}.parquet": {"sha256": ""} for scheme in explore.SCHEMES.values()})
    run = explore.Stage("explore", "mine", {}, runs / "mine" / "explore", reads=None)
    orca = explore.rows_of(run, "11_orca")
    assert [(r["scheme"], r["number"], r["status"], r["rating"]) for r in orca] == [
        ("orca", 0, "Accept", 10),
        ("orca", 1, None, None),
    ]
    assert len(explore.rows_of(run)) == 6


def test_rows_are_picked_by_columns_and_words():
    rows = [row(0, "Where is it?"), row(1, "Where to?", status="Reject"), row(2, "Who?")]
    assert explore.pick(rows, words="where", status="Accept") == rows[:1]
    assert explore.pick(rows, status=None) == []
    assert explore.pick([], scheme="orca") == []
    with pytest.raises(ValueError, match="no column colour; there are number, system, "):
        explore.pick(rows, colour="red")


def test_an_evolved_row_is_followed_back_to_its_seed():
    tree = {"scheme": "evol", "seed_number": 7}
    first = tree | {"instruction": "b", "parent": "a", "epoch": 1}
    second = tree | {"instruction": "c", "parent": "b", "epoch": 3}
    other = tree | {"instruction": "b", "parent": "z", "epoch": 1, "seed_number": 8}
    assert explore.origin(second, [other, first, second]) == [("seed", "a"), ("evolved, step 1", "b")]
    assert explore.origin(first, [other, first, second]) == [("seed", "a")]


def test_an_evolution_that_names_itself_as_parent_ends():
    loop = {"scheme": "evol", "seed_number": 1, "instruction": "a", "parent": "a", "epoch": 1}
    assert explore.ancestors(loop, [loop]) == ["a"]


def test_rows_of_the_other_schemes_say_what_they_were_made_from():
    assert explore.origin({"scheme": "lamini", "source": "topic-guided"}, []) == [("way", "topic-guided")]
    asked = {"scheme": "orca", "task_name": "t", "targets": "4", "system": "Explain."}
    assert [text for _, text in explore.origin(asked, [])] == ["t", "4", "Explain."]
    assert explore.origin({"scheme": "evol", "parent": None}, []) == [], "a released row does not say"


def test_the_fate_of_each_row_is_what_the_stage_counted():
    rows = [
        row(0, "Where does Kemeso live?"),
        row(1, "Where does Kemeso live?"),
        row(2, "Who?", status="Reject"),
        row(3, "Why?", status=None),
        row(4, "Where does Tereso live?"),
        row(5, "What is the opposite of far?"),
    ]
    fates = [explore.fate(r, rows, **RULES) for r in rows]
    assert fates == ["accepted", "copy", "judge_rejected", "judge_failed", "names_held_out_subject", "accepted"]
    kept, dropped = filters.select(rows, **RULES)
    assert {reason: fates.count(reason) for reason in filters.REASONS} == dropped and fates.count("accepted") == len(kept)


def test_a_row_is_tokenised_as_training_sees_it(tokenizer):
    recipe = {"max_length": 256, "loss_on": "completion"}
    batch = explore.batch_of(tokenizer, row(0, "Who?"), recipe)
    trained = [label for label in batch["labels"][0].tolist() if label != -100]
    assert tokenizer.decode(trained[:-1]) == "Fado" and trained[-1] == tokenizer.eos_token_id


# -------------------------------------------------------------------------------------------------------- judge's calls

VERDICT = '{"status": "Accept", "rating": 9, "reason": "right"}'
CALL = {"key": "k", "text": f"It is right.\n{VERDICT}"}


def test_a_finished_call_is_read_again():
    assert explore.replay(CALL) == {"last line": VERDICT, "status": "Accept", "rating": 9, "reason": "right", "failure": ""}


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line + " Thanks!",
        lambda line: f"```json\n{line}\n```",
        lambda line: json.dumps(json.loads(line) | {"rating": 11}),
        lambda line: json.dumps(json.loads(line) | {"rating": "9"}),
        lambda line: json.dumps(json.loads(line) | {"more": 1}),
        lambda line: "",
    ],
)
def test_a_changed_last_line_is_a_failure_and_never_a_score(change):
    read = explore.replay(explore.with_last_line(CALL, change))
    assert read["failure"] == "no verdict" and read["status"] is None and read["rating"] is None


def test_a_reply_that_was_cut_off_gives_no_verdict_whatever_its_last_line():
    assert explore.replay(CALL | {"note": "finish_reason length"})["failure"] == "cut short"


def test_a_ledger_gives_its_answered_calls_only(runs):
    finish(runs / "mine" / "20_judge_filter")
    files.append_jsonl(runs / "mine" / "20_judge_filter" / "calls.jsonl", CALL, {"key": "x", "failure": "timeout"})
    assert explore.finished_calls(explore.Stage("explore", "mine", {}, runs, reads=None)) == [CALL]


# --------------------------------------------------------------------------------------------------- a run of one's own


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    import shutil

    from bezoar_utils.study import profile

    shutil.copytree(profile.PROFILES, tmp_path / "profiles")
    monkeypatch.setattr(explore, "PROFILES", tmp_path / "profiles")
    monkeypatch.setattr(explore, "load_profile", lambda name: load_profile(name, tmp_path / "profiles"))
    return tmp_path / "profiles"


def test_a_profile_holds_what_differs_and_can_be_written_twice(profiles):
    for _ in range(2):
        path = explore.write_profile("mine", {"dpo": {"beta": 0.3}})
    assert path.read_text() == "extends: mini\ndpo:\n  beta: 0.3\n"
    assert load_profile("mine", profiles).dpo.beta == 0.3


def test_no_profile_is_overwritten(profiles):
    before = (profiles / "mini.yaml").read_text()
    with pytest.raises(ProfileError, match=r"profiles/mini.yaml is there and says something else; take another name"):
        explore.write_profile("mini", {"dpo": {"beta": 0.3}})
    assert (profiles / "mini.yaml").read_text() == before


def test_a_profile_that_cannot_work_is_one_line_and_leaves_no_file(profiles):
    with pytest.raises(ProfileError, match=r"unknown key dpo\.betta"):
        explore.write_profile("mine", {"dpo": {"betta": 0.3}})
    assert not (profiles / "mine.yaml").exists()


def test_a_run_made_by_hand_is_nothing_to_branch_from(runs):
    finish(runs / "tiny" / "explore" / "10_lamini")
    finish(runs / "tiny" / "10_lamini")  # no runner has put its notebook's hash there
    with pytest.raises(StageError, match="runs/tiny has nothing finished before 50_dpo: run `make reproduce PROFILE=tiny` first"):
        explore.branch("tiny", "mine", "50_dpo")


def test_metrics_of_two_runs_stand_side_by_side(runs):
    for name, value in (("mini", 0.5), ("mine", 0.75)):
        finish(
            runs / name / "50_dpo",
            metrics={"reward_accuracy": {"value": value}} | ({"old": {"value": 1}} if name == "mini" else {}),
        )
    (only,) = explore.metrics_beside("50_dpo", "mini", "mine")
    assert only == {"metric": "reward_accuracy", "mini": 0.5, "mine": 0.75, "difference": 0.25}


def test_make_is_told_one_stage_of_one_profile():
    command = explore.make_command("mine", "50_dpo")
    assert command[0] == "make" and "runs/mine/50_dpo/stage.json" in command and "PROFILE=mine" in command


def test_a_failing_make_is_an_error_after_its_own_lines(monkeypatch, capsys):
    monkeypatch.setattr(explore, "make_command", lambda *_: ["sh", "-c", "echo what went wrong; exit 2"])
    with pytest.raises(StageError, match="50_dpo of mine was not made, see above"):
        explore.make("mine", "50_dpo")
    assert capsys.readouterr().out == "what went wrong\n"
