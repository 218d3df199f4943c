import pytest
from recipes import LORA, ROWS, recipe, silent

from bezoar_utils.training import dpo, launch, models, sft
from bezoar_utils.training.loop import TrainingError

# 32 rows to train on, so that an epoch ends with a whole batch in one process and in two
RECIPE = recipe(steps=14, warmup_steps=2, validate_every=3, validation_share=0.2, lora=LORA | {"dropout": 0.0}, seed=3, threads=1)
ONE = {"processes": 1, "config_file": None}
TWO = {"processes": 2, "config_file": None}

pytestmark = pytest.mark.slow  # `.ci/run` runs it


def train(base, tokenizer, folder, where, changes, progress=silent):
    models.prepare_torch(threads=1, seed=3)  # as a process of its own begins, before its adapter is drawn
    model, log, _ = sft.train(ROWS, base, tokenizer, RECIPE | changes | {"launch": where}, folder=folder, progress=progress)
    return model, log


def test_two_processes_train_as_one_with_twice_the_accumulation(tmp_path, model_folder, tokenizer):
    changes, steps = {"steps": 6, "batch_size": 4}, []
    _, one = train(model_folder, tokenizer, tmp_path / "one", ONE, changes | {"accumulation": 2})
    (tmp_path / "two").mkdir()
    model, two = train(model_folder, tokenizer, tmp_path / "two", TWO, changes, lambda done, _: steps.append(done))
    losses = [[row["loss"] for row in log if "loss" in row] for log in (one, two)]
    assert [row["num_tokens"] for row in one if "loss" in row] == [row["num_tokens"] for row in two if "loss" in row]
    assert len(losses[0]) == len(losses[1]) == 6 and losses[0][0] - losses[0][-1] > 0.05
    assert max(abs(a - b) for a, b in zip(*losses)) < 0.02
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 12 and all(p.abs().sum() > 0 for n, p in trained.items() if "lora_B" in n)


def test_a_failing_process_ends_the_training_with_what_it_said(tmp_path, model_folder, tokenizer):
    with pytest.raises(TrainingError, match=r"training in 2 processes failed: .*warmup_steps=9 outlasts"):
        train(model_folder, tokenizer, tmp_path, TWO, {"steps": 3, "warmup_steps": 9})


def test_a_configuration_file_is_accelerates_own_business():
    command = launch.command({"processes": 4, "config_file": "fsdp.yaml"})
    assert command[-4:] == ["--config_file", "fsdp.yaml", "-m", "bezoar_utils.training.launch"]
    assert "--num_processes" not in command


def test_one_process_trains_in_the_chapter_itself(tmp_path, model_folder, tokenizer, monkeypatch):
    monkeypatch.setattr(launch, "train_apart", None)
    model, _ = train(model_folder, tokenizer, tmp_path, ONE, {"steps": 3})
    assert isinstance(model, models.load_model(model_folder).__class__) is False  # it carries an adapter


def test_a_moving_reference_follows_in_two_processes_as_in_one(tmp_path, model_folder, tokenizer):
    pairs = [{"prompt": f"Say {n}.", "chosen": f"Sure: {n}" + " again" * (n % 3), "rejected": f"No: {n}"} for n in range(20)]
    examples, _ = dpo.dpo_examples(tokenizer, pairs, 256)
    changes = {"method": "tr_dpo", "sync_every": 2, "sync_weight": 1.0, "nll_weight": 0.0, "steps": 6, "batch_size": 4, "seed": 3}
    changes |= {"lora": LORA | {"dropout": 0.0}, "threads": 1, "validate_every": 6, "learning_rate": 2e-3}
    logs = []
    for where, accumulation in ((ONE, 2), (TWO, 1)):
        models.prepare_torch(threads=1, seed=3)
        folder = tmp_path / str(where["processes"])
        folder.mkdir()
        asked = recipe("50_dpo", **changes, accumulation=accumulation, launch=where)
        model, log = dpo.train(examples[:16], examples[16:], model_folder, tokenizer, asked, folder=folder, progress=silent)
        logs.append([row["rewards/margins"] for row in log if "loss" in row])
        assert list(model.peft_config) == ["default"]
    assert max(abs(a - b) for a, b in zip(*logs)) < 0.02 and max(map(abs, logs[0])) > 0.02
