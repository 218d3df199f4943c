import pytest
from test_resume import LORA, NF4, RECIPE, ROWS

from bezoar_utils.training import launch, models, sft
from bezoar_utils.training.loop import TrainingError

STILL = LORA | {"dropout": 0.0}  # each process drops other values
ONE = {"processes": 1, "config_file": None}
TWO = {"processes": 2, "config_file": None}

pytestmark = pytest.mark.slow  # `.ci/run` runs it


def train(base, tokenizer, folder, where, recipe, seen=lambda *_: None, responses=None):
    models.prepare_torch(threads=1, seed=3)  # as a process of its own begins, before its adapter is drawn
    examples, _ = sft.sft_examples(tokenizer, ROWS, recipe)
    settings = {"lora": STILL, "quantisation": NF4, "threads": 1, "seed": 3, "folder": folder, "progress": seen}
    settings["responses"] = responses or {row["response"] for row in ROWS}
    return launch.adapt("sft", base, None, tokenizer, examples[8:], examples[:8], recipe, launch=where, **settings)


def test_two_processes_train_as_one_with_twice_the_accumulation(tmp_path, model_folder, tokenizer):
    recipe, steps = RECIPE | {"steps": 6, "batch_size": 4}, []
    _, one = train(model_folder, tokenizer, tmp_path / "one", ONE, recipe | {"accumulation": 2})
    (tmp_path / "two").mkdir()
    model, two = train(model_folder, tokenizer, tmp_path / "two", TWO, recipe, lambda done, _: steps.append(done))
    losses = [[row["loss"] for row in log if "loss" in row] for log in (one, two)]
    assert [row["num_tokens"] for row in one if "loss" in row] == [row["num_tokens"] for row in two if "loss" in row]
    assert len(losses[0]) == len(losses[1]) == 6 and losses[0][0] - losses[0][-1] > 0.05
    assert max(abs(a - b) for a, b in zip(*losses)) < 0.02
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 12 and all(p.abs().sum() > 0 for n, p in trained.items() if "lora_B" in n)


def test_a_failing_process_ends_the_training_with_what_it_said(tmp_path, model_folder, tokenizer):
    with pytest.raises(TrainingError, match=r"training in 2 processes failed: .*no response of the data"):
        train(model_folder, tokenizer, tmp_path, TWO, RECIPE, responses={"another"})


def test_a_configuration_file_is_accelerates_own_business():
    command = launch.command({"processes": 4, "config_file": "fsdp.yaml"})
    assert command[-4:] == ["--config_file", "fsdp.yaml", "-m", "bezoar_utils.training.launch"]
    assert "--num_processes" not in command


def test_one_process_trains_in_the_chapter_itself(tmp_path, model_folder, tokenizer, monkeypatch):
    monkeypatch.setattr(launch, "train_apart", None)
    model, _ = train(model_folder, tokenizer, tmp_path, ONE, RECIPE | {"steps": 3})
    assert isinstance(model, models.load_model(model_folder).__class__) is False  # it carries an adapter
