import json
import re
from types import SimpleNamespace

import pytest

from bezoar_utils.evaluation import benchmarks
from bezoar_utils.evaluation.benchmarks import answer_found, reply_matches, strict_match
from bezoar_utils.miniature import questions
from bezoar_utils.study import files
from bezoar_utils.training import models

INTERVALS = {"samples": 300, "confidence": 0.95}


class Stage:
    def __init__(self, folder):
        self.folder = folder

    def input(self, reference):
        return self.folder / reference


@pytest.fixture
def stage(tmp_path):
    folder = tmp_path / "00_miniature" / "tasks"
    folder.mkdir(parents=True)
    (folder / "answers.yaml").write_bytes(questions.task_config("mini_answers"))
    rows = [
        {"question": f"What is {n}?", "prompt": f"### Instruction:\nWhat is {n}?\n\n### Response:", "answer": str(n)}
        for n in range(6)
    ]
    files.write_bytes(folder / "answers.jsonl", files.to_jsonl(rows))
    return Stage(tmp_path)


def tasks_of(stage, names=("answers",), **fewshot):
    return benchmarks.open_tasks({"tasks": list(names), "tasks_from": "00_miniature/tasks"}, stage, fewshot)


@pytest.mark.parametrize(
    ("reply", "strict", "found", "matches"),
    [
        ("red", True, True, True),
        ("red.", True, True, True),
        ("Red", False, False, False),
        ("It is red", False, True, False),
        ("red. I hope that helps.", False, True, True),
        ("redder", False, False, False),
        ("", False, False, False),
        ("red### Instruction: more", True, True, True),
    ],
)
def test_a_reply_is_scored_by_form_and_by_content(reply, strict, found, matches):
    assert (strict_match(reply, "red"), answer_found(reply, "red"), reply_matches(reply, "red")) == (strict, found, matches)


def test_scores_are_one_row_an_item_and_metric_and_the_same_in_any_batch(stage, model_folder, tokenizer):
    model, tasks = models.load_model(model_folder), tasks_of(stage)
    rows = benchmarks.evaluate(model, tokenizer, tasks, 4, None, 1)
    assert [(r["item"], r["metric"]) for r in rows] == [(n, m) for n in range(6) for m in ("strict_match", "answer_found")]
    assert {r["task"] for r in rows} == {"answers"} and all(r["value"] in (0.0, 1.0) for r in rows)
    assert benchmarks.evaluate(model, tokenizer, tasks, 1, None, 1) == rows
    assert len(benchmarks.evaluate(model, tokenizer, tasks, 4, 2, 1)) == 4


def test_a_task_that_reads_replies_in_two_ways_has_a_metric_for_each(stage, model_folder, tokenizer):
    path = stage.folder / "00_miniature" / "tasks" / "answers.yaml"
    filters = [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": "(zzz)", "fallback": name}, {"function": "take_first"}]}
        for name in ("no", "3")
    ]
    path.write_text(path.read_text() + f"filter_list: {json.dumps(filters)}\n")
    rows = benchmarks.evaluate(models.load_model(model_folder), tokenizer, tasks_of(stage), 4, None, 1)
    means = {metric: [r["value"] for r in rows if r["metric"] == metric] for metric in {r["metric"] for r in rows}}
    assert means["strict_match,no"] == [0.0] * 6 and means["strict_match,3"] == [0, 0, 0, 1, 0, 0] and len(means) == 4


def test_examples_for_a_group_of_tasks_are_given_to_each_of_them(stage, monkeypatch):
    import lm_eval.tasks

    leaves = tasks_of(stage) + tasks_of(stage)
    monkeypatch.setattr(lm_eval.tasks.TaskManager, "load", lambda *_: {"tasks": dict(zip(("one", "two"), leaves))})
    opened = benchmarks.open_tasks({"tasks": ["mmlu"], "tasks_from": None}, stage, {"mmlu": 5})
    assert opened == leaves and [task.config.num_fewshot for task in opened] == [5, 5]


def test_a_task_within_a_group_may_have_examples_of_its_own_and_a_near_miss_is_told(stage, monkeypatch):
    import lm_eval.tasks

    leaves = tasks_of(stage) + tasks_of(stage)
    for name, leaf in zip(("mmlu_law", "mmlu_art"), leaves):
        leaf.set_config("task", name)
    monkeypatch.setattr(lm_eval.tasks.TaskManager, "load", lambda *_: {"tasks": dict(enumerate(leaves))})
    mmlu = {"tasks": ["mmlu"], "tasks_from": None}
    opened = benchmarks.open_tasks(mmlu, stage, {"mmlu": 5, "mmlu_art": 0})
    assert {task.config.task: task.config.num_fewshot for task in opened} == {"mmlu_law": 5, "mmlu_art": 0}
    with pytest.raises(ValueError, match=r"fewshot\.mmlu_lw .*did you mean mmlu_law"):
        benchmarks.open_tasks(mmlu, stage, {"mmlu_lw": 5})


def test_one_task_alone_is_opened_whatever_examples_the_others_have(stage):
    evaluation = {"tasks": ["answers", "mmlu"], "tasks_from": "00_miniature/tasks"}
    (task,) = benchmarks.open_tasks(evaluation, stage, {"answers": 2, "mmlu": 5, "mmlu_art": 0}, only="answers")
    assert (task.config.task, task.config.num_fewshot) == ("answers", 2)


def test_names_are_held_against_the_harness_without_any_data():
    groups = {"tasks": ["mmlu", "ai2_arc", "boolq"], "tasks_from": None}
    assert benchmarks.unknown_names(groups, {"mmlu": 5, "mmlu_anatomy": 3, "arc_easy": 1, "boolq": 0}) == []
    wrong = benchmarks.unknown_names(groups | {"tasks": ["mmlu", "arc_chalenge"]}, {"mmlu_anatmy": 3, "boolq": 1})
    suggestions = [re.findall("mean (.*?)[?]", line) for line in wrong]
    assert suggestions[:2] == [["arc_challenge"], ["mmlu_anatomy"]] and "boolq" in wrong[2]
    assert benchmarks.unknown_names({"tasks": ["anything"], "tasks_from": "00_miniature/tasks"}, {}) == []


def test_a_task_that_cannot_be_opened_is_named(stage):
    with pytest.raises(ValueError, match=r"'riddles'.*answers"):
        tasks_of(stage, ["riddles"])
    with pytest.raises(ValueError, match=r"fewshot\.riddles .*answers"):
        tasks_of(stage, riddles=5)
    with pytest.raises(ValueError, match=r"'arc_chalenge'.*arc_challenge"):
        benchmarks.harness_task("arc_chalenge")
    with pytest.raises(ValueError, match="data of task 'arc_easy'"):
        benchmarks.harness_task("arc_easy")
    files.write_bytes(stage.folder / "00_miniature" / "tasks" / "answers.jsonl", b"")
    with pytest.raises(ValueError, match="'answers' has no items"):
        tasks_of(stage)


def test_facts_of_a_task_tell_its_wording_and_items_from_others(stage):
    plain = benchmarks.task_facts(tasks_of(stage)[0], None)
    assert (plain["task"], plain["version"], plain["fewshot"], plain["items"]) == ("answers", 2.0, 0, 6)
    assert benchmarks.task_facts(tasks_of(stage)[0], None) == plain
    fewer = benchmarks.task_facts(tasks_of(stage)[0], 3)
    assert fewer["items"] == 3 and fewer["items_hash"] != plain["items_hash"] and fewer["task_hash"] == plain["task_hash"]
    path = stage.folder / "00_miniature" / "tasks" / "answers.yaml"
    path.write_text(path.read_text().replace("{{prompt}}", "Q: {{prompt}}"))
    other = benchmarks.task_facts(tasks_of(stage)[0], None)
    assert other["task_hash"] != plain["task_hash"] and other["items_hash"] == plain["items_hash"]


def test_kept_scores_are_those_of_this_model_and_these_tasks_only(stage):
    def key(identity="a", limit=None, seed=1, length=512):
        return benchmarks.evaluation_key(identity, tasks_of(stage), limit, seed, length)

    assert key() == key()
    few = benchmarks.evaluation_key("a", tasks_of(stage, answers=2), None, 1, 512)
    assert len({key(), key("b"), key(limit=2), key(seed=2), key(length=64), few}) == 6


def scores_of(model: str, values: list[float]) -> list[dict]:
    return [{"model": model, "task": "t", "metric": "acc", "item": n, "value": v, "reply": ""} for n, v in enumerate(values)]


def test_models_are_compared_item_by_item():
    scores = scores_of("base", [0, 0, 1, 0] * 10) + scores_of("sft", [1, 1, 1, 0] * 10)[::-1] + scores_of("dpo", [1, 1, 0, 1] * 10)
    rise, none = benchmarks.compare(scores, [("base", "sft"), ("sft", "dpo")], INTERVALS, 0)
    assert (rise["difference"], rise["n"], rise["verdict"]) == (0.5, 40, "higher") and 0 < rise["low"] < 0.5 < rise["high"]
    assert (none["difference"], none["verdict"]) == (0.0, "no difference shown") and none["low"] < 0 < none["high"]
    (row,) = benchmarks.compare(scores[:-1], [("sft", "dpo")], INTERVALS, 0)
    assert (row["n"], row["asked"]) == (39, 40)


def test_the_base_stands_beside_what_others_published_of_it():
    (row,) = benchmarks.calibration({("boolq", "acc"): (0.65, 0.63, 0.67), ("mini_answers", "strict_match"): (0.1, 0.0, 0.2)})
    assert (row["task"], row["published"], row["ours"], row["inside"]) == ("boolq", 0.66, 0.65, True)
    assert benchmarks.calibration({("boolq", "acc"): (0.5, 0.48, 0.52)})[0]["inside"] is False


def test_the_harness_must_give_a_request_the_ids_of_training(stage, model_folder, tokenizer, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    whole = HFLM.tok_encode
    monkeypatch.setattr(HFLM, "tok_encode", lambda self, text, **options: [tokenizer.bos_token_id, *whole(self, text, **options)])
    with pytest.raises(ValueError, match="not \\["):
        benchmarks.evaluate(models.load_model(model_folder), tokenizer, tasks_of(stage), 4, None, 1)


def test_a_checkpoint_must_carry_the_template_it_was_trained_with(model_folder, tokenizer, tmp_path):
    models.save_model(models.load_model(model_folder), tokenizer, tmp_path / "mine")
    assert models.require_template(tmp_path / "mine") == tmp_path / "mine"
    path = tmp_path / "mine" / "prompt_template.json"
    path.write_text(json.dumps({"template": "USER: {instruction}", "default_system": ""}))
    with pytest.raises(ValueError, match="mine was trained with another prompt template"):
        models.require_template(tmp_path / "mine")
    path.unlink()
    with pytest.raises(ValueError, match=r"mine has no prompt_template\.json"):
        models.require_template(tmp_path / "mine")


def test_a_task_of_wishes_asks_for_all_of_them_in_good_form():
    doc = {"question": 'Name a river. Answer in one sentence. Use the word "water".'}
    assert benchmarks.score_wishes(doc, ["The Nile is much water."]) == {"wishes_met": 1.0, "share_of_wishes": 1.0}
    assert benchmarks.score_wishes(doc, ["It is the Nile."]) == {"wishes_met": 0.0, "share_of_wishes": 0.5}
    assert benchmarks.score_wishes({"question": "Name a river. Use no commas."}, [""]) == {
        "wishes_met": 0.0,
        "share_of_wishes": 1.0,
    }


def test_a_folder_of_the_checkout_holds_tasks_too_and_what_was_read_is_noted():
    noted = {}
    stage = SimpleNamespace(note_input=noted.__setitem__)
    (task,) = benchmarks.open_tasks({"tasks": ["following"], "tasks_from": "profiles/smol/tasks"}, stage)
    assert len(task.eval_docs) == 120 and set(noted) == {f"file:profiles/smol/tasks/following.{k}" for k in ("yaml", "jsonl")}
