"""Looking around in a finished run: what is read, where a row came from and why it was dropped."""

import json

import pytest

from bezoar_utils import explore
from bezoar_utils.data import filters
from bezoar_utils.study import files, stage
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
    with pytest.raises(StageError, match=r"mini lacks 10_lamini, .*make reproduce") as error:
        explore.open_run("mini", "tiny")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ models' answers


def test_a_question_has_the_same_answer_again_and_a_seed_chooses_another(model_folder):
    explore.load.cache_clear()
    first, again = (explore.reply(model_folder, "Who?", max_new_tokens=8) for _ in range(2))
    assert first == again
    sampled = {explore.reply(model_folder, "Who?", temperature=1.0, seed=seed, max_new_tokens=8) for seed in range(4)}
    assert len(sampled) > 1
    assert explore.load.cache_info().misses == 1


# ---------------------------------------------------------------------------------------------------------------- rows


def test_rows_of_a_stage_come_with_their_verdict_and_number(runs):
    folder = runs / "mine" / "20_judge_filter"
    for scheme in explore.SCHEMES.values():
        rows = [row(0, "a", scheme=scheme, rating=10), row(0, "b", status=None, scheme=scheme, rating=None)]
        files.write_table(folder / f"judged_{scheme}.parquet", rows)
    finish(folder, outputs={f"judged_{scheme}.parquet": {"sha256": ""} for scheme in explore.SCHEMES.values()})
    run = explore.Stage("explore", "mine", {}, runs / "mine" / "explore", reads=None)
    orca = [(r["scheme"], r["number"], r["status"], r["rating"]) for r in explore.rows_of(run, "11_orca")]
    assert orca == [("orca", 0, "Accept", 10), ("orca", 1, None, None)]
    assert len(explore.rows_of(run)) == 6


def test_rows_are_picked_by_columns_and_words():
    rows = [row(0, "Where is it?"), row(1, "Where to?", status="Reject"), row(2, "Who?")]
    assert explore.pick(rows, words="where", status="Accept") == rows[:1]
    assert explore.pick(rows, status=None) == []
    assert explore.pick([], scheme="orca") == []
    with pytest.raises(ValueError, match=r"colour.*number, system, "):
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
    query = {"scheme": "orca", "task_name": "t", "targets": "4", "system": "Explain."}
    assert [text for _, text in explore.origin(query, [])] == ["t", "4", "Explain."]
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
    accepted, dropped = filters.select(rows, **RULES)
    assert {reason: fates.count(reason) for reason in filters.REASONS} == dropped and fates.count("accepted") == len(accepted)


def test_a_wish_that_an_evaluation_item_carries_too_is_no_overlap_as_in_the_chapter(monkeypatch):
    wish = 'Put the whole answer in double quotation marks. Do not use the word "very". Write everything in capital letters.'
    values = {"evaluation": None, "held_out_column": None, "ngram": 6, "near_duplicate": 0.7}
    monkeypatch.setattr(explore, "parameters", lambda run, stage: values)
    monkeypatch.setattr(explore.benchmarks, "open_tasks", lambda evaluation, run: [])
    monkeypatch.setattr(explore.benchmarks, "task_items", lambda tasks: {"following": [{"text": f"Name a river of Asia. {wish}"}]})
    monkeypatch.setattr(explore, "two_turn_questions", lambda run: [{"turns": [f"Name a lake in the far north. {wish}"]}])
    rules = explore.filter_rules(None)
    assert explore.fate(row(0, f"Say sorry to a friend. {wish}"), [row(0, f"Say sorry to a friend. {wish}")], **rules) == "accepted"
    same = row(0, "Name a lake in the far north.")
    assert explore.fate(same, [same], **rules) == "overlaps_evaluation"


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
