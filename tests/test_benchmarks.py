import json

import pytest

from bezoar_utils.evaluation import benchmarks
from bezoar_utils.evaluation.benchmarks import answer_found, reply_matches, strict_match
from bezoar_utils.miniature import corpus
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
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "answers.yaml").write_bytes(corpus.task_config("mini_answers"))
    rows = [
        {"question": f"What is {n}?", "prompt": f"### Instruction:\nWhat is {n}?\n\n### Response:", "answer": str(n)}
        for n in range(6)
    ]
    files.write_bytes(folder / "answers.jsonl", files.to_jsonl(rows))
    return Stage(tmp_path)


def tasks_of(stage, names=("answers",), **fewshot):
    return benchmarks.open_tasks({"tasks": list(names), "tasks_from": "tasks"}, stage, fewshot)


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


def test_a_task_that_is_not_there_is_named(stage):
    with pytest.raises(ValueError, match=r"no task 'riddles'.*there are answers"):
        tasks_of(stage, ["riddles"])
    with pytest.raises(ValueError, match=r"fewshot names riddles.*there are answers"):
        tasks_of(stage, riddles=5)


def test_a_task_without_items_is_refused(stage):
    files.write_bytes(stage.folder / "tasks" / "answers.jsonl", b"")
    with pytest.raises(ValueError, match="task 'answers' has no items"):
        tasks_of(stage)


def test_a_harness_task_with_a_typing_error_gets_names_like_it():
    with pytest.raises(ValueError, match=r"no task 'arc_chalenge'; names like it: arc_challenge"):
        benchmarks.harness_tasks(["arc_chalenge"])


def test_a_harness_task_whose_data_cannot_be_fetched_is_named():
    with pytest.raises(ValueError, match="the data of task 'arc_easy' cannot be had"):
        benchmarks.harness_tasks(["arc_easy"])


def test_facts_of_a_task_tell_its_wording_and_items_from_others(stage):
    (plain,) = (benchmarks.task_facts(task, None) for task in tasks_of(stage))
    assert (plain["task"], plain["version"], plain["fewshot"], plain["items"]) == ("answers", 1.0, 0, 6)
    assert benchmarks.task_facts(tasks_of(stage)[0], None) == plain
    fewer = benchmarks.task_facts(tasks_of(stage)[0], 3)
    assert fewer["items"] == 3 and fewer["items_hash"] != plain["items_hash"] and fewer["task_hash"] == plain["task_hash"]
    path = stage.folder / "tasks" / "answers.yaml"
    path.write_text(path.read_text().replace("{{prompt}}", "Q: {{prompt}}"))
    other = benchmarks.task_facts(tasks_of(stage)[0], None)
    assert other["task_hash"] != plain["task_hash"] and other["items_hash"] == plain["items_hash"]


def test_kept_scores_are_those_of_this_model_and_these_tasks_only(stage):
    def key(identity="a", limit=None, seed=1, length=512):
        return benchmarks.evaluation_key(identity, tasks_of(stage), limit, seed, length)

    assert key() == key()
    assert len({key(), key("b"), key(limit=2), key(seed=2), key(length=64)}) == 5
    few = benchmarks.evaluation_key("a", tasks_of(stage, answers=2), None, 1, 512)
    assert few != key()


def scores_of(model: str, values: list[float]) -> list[dict]:
    return [{"model": model, "task": "t", "metric": "acc", "item": n, "value": v, "reply": ""} for n, v in enumerate(values)]


def test_models_are_compared_on_the_same_items():
    scores = scores_of("base", [0, 0, 1, 0] * 10) + scores_of("sft", [1, 1, 1, 0] * 10)[::-1] + scores_of("dpo", [1, 1, 0, 1] * 10)
    rise, none = benchmarks.compare(scores, [("base", "sft"), ("sft", "dpo")], INTERVALS, 0)
    assert (rise["difference"], rise["n"], rise["verdict"]) == (0.5, 40, "higher") and 0 < rise["low"] < 0.5 < rise["high"]
    assert (none["difference"], none["verdict"]) == (0.0, "no difference shown") and none["low"] < 0 < none["high"]


def test_the_base_stands_beside_what_others_published_of_it():
    (row,) = benchmarks.calibration({("boolq", "acc"): (0.65, 0.63, 0.67), ("mini_answers", "strict_match"): (0.1, 0.0, 0.2)})
    assert (row["task"], row["published"], row["ours"], row["inside"]) == ("boolq", 0.66, 0.65, True)
    assert benchmarks.calibration({("boolq", "acc"): (0.5, 0.48, 0.52)})[0]["inside"] is False


def test_the_harness_must_give_a_request_exactly_one_bos(stage, model_folder, tokenizer, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    whole = HFLM.tok_encode
    monkeypatch.setattr(HFLM, "tok_encode", lambda self, text, **told: [tokenizer.bos_token_id, *whole(self, text, **told)])
    with pytest.raises(ValueError, match="exactly one BOS"):
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
