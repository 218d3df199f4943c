import math

import pytest
import torch

from bezoar_utils import dpo, generation, labels, models, sft, training
from bezoar_utils.profile import ProfileError
from bezoar_utils.template import render_prompt

RECIPE = {
    "loss_on": "completion",
    "learning_rate": 5e-3,
    "schedule": "linear",
    "warmup_steps": 1,
    "steps": 6,
    "batch_size": 4,
    "accumulation": 1,
    "optimizer": "adamw_torch",
    "max_length": 256,
    "log_every": 1,
    "validate_every": 3,
    "validation_share": 0.25,
    "split_seed": 42,
    "gradient_checkpointing": False,
}
ROWS = [{"prompt": render_prompt(f"Say number {i}."), "response": f"number {i} it is"} for i in range(16)]
PAIRS = [{"prompt": r["prompt"], "chosen": "Sure: yes", "rejected": "Whatever: no"} for r in ROWS]


def nothing(*_):
    pass


def gradients(model, batch):
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in trainable])


def adapted(folder, quantisation, lora):
    from peft import get_peft_model

    torch.manual_seed(0)
    config = models.lora_config(lora | {"dropout": 0.0})
    config.init_lora_weights = False
    return get_peft_model(models.load_model(folder, quantisation), config)


def test_four_bit_gradients_are_the_same_before_and_after_an_eval_forward(model_folder, quantisation, lora, tokenizer):
    """bitsandbytes re-packs weights for CPU inference at the first eval forward; unguarded, gradients were 63 % wrong."""
    batch = dict(tokenizer(["### Response:number one"], return_tensors="pt"))
    batch["labels"] = batch["input_ids"]
    model = adapted(model_folder, quantisation, lora)
    before = gradients(model, batch)
    model.eval()
    with torch.no_grad():
        model(**batch)
    after = gradients(model, batch)
    assert float((after - before).norm() / before.norm()) < 1e-6


def test_the_guard_is_what_keeps_them_the_same(model_folder, quantisation, lora, tokenizer, monkeypatch):
    """Without the guard the same measurement must show the damage, where this CPU has the fast path at all."""
    from bitsandbytes.nn import Linear4bit

    monkeypatch.setattr(models, "keep_weights_unpacked", nothing)
    model = adapted(model_folder, quantisation, lora)
    if not any(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules() if isinstance(m, Linear4bit)):
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes does not re-pack")
    batch = dict(tokenizer(["### Response:number one"], return_tensors="pt"))
    batch["labels"] = batch["input_ids"]
    before = gradients(model, batch)
    model.eval()
    with torch.no_grad():
        model(**batch)
    assert float((gradients(model, batch) - before).norm() / before.norm()) > 0.1


def test_merging_onto_the_dequantised_base_is_the_model_that_was_trained(model_folder, quantisation, lora, tokenizer, tmp_path):
    model = adapted(model_folder, quantisation, lora)
    model.save_pretrained(tmp_path / "adapter")
    merged = {w: models.merge(model_folder, tmp_path / "adapter", quantisation, w) for w in ("dequantised", "full_precision")}
    differences = models.merge_differences(model, merged, tokenizer, [r["prompt"] for r in ROWS[:4]])
    assert differences["dequantised"] < 0.02 < differences["full_precision"]


def test_a_saved_model_loads_with_plain_transformers_and_says_the_same(model_folder, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = models.load_model(model_folder)
    models.save_model(model, tokenizer, tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors"} and (tmp_path / "prompt_template.json").exists()
    plain, plain_tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompts = [r["prompt"] for r in ROWS[:3]]
    settings = {"max_new_tokens": 8, "seed": 1}
    said = generation.generate(model, tokenizer, prompts, **settings)
    assert generation.generate(plain, plain_tokenizer, prompts, **settings) == said


class Reads:
    """A stage that finished `made`, as far as `locate_model` looks."""

    def __init__(self, folder, digest="0" * 64):
        self.folder, self.digest, self.inputs = folder, digest, {"other/file": "1" * 64}

    def input(self, reference):
        self.inputs |= {f"{reference}/model.safetensors": self.digest}
        return self.folder / reference


def test_an_earlier_stages_model_is_known_by_its_recorded_content(tmp_path):
    stage = Reads(tmp_path)
    path, identity = models.locate_model(stage, "00_miniature/base", None)
    assert path == tmp_path / "00_miniature/base"
    stage.inputs["other/file"] = "2" * 64  # what else the stage read does not matter
    assert models.locate_model(stage, "00_miniature/base", None)[1] == identity
    assert models.locate_model(Reads(tmp_path, "3" * 64), "00_miniature/base", None)[1] != identity


def test_a_local_folder_is_known_by_its_content_wherever_it_lies(tmp_path):
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    found = [models.locate_model(None, str(tmp_path / name), None) for name in "abc"]
    assert [path.name for path, _ in found] == ["a", "b", "c"]
    assert found[0][1] == found[1][1] != found[2][1]


@pytest.mark.parametrize("revision", [None, "main", "abc123", "A" * 40, "a" * 41])
def test_a_hub_model_needs_its_full_commit_hash(revision):
    with pytest.raises(ProfileError, match=r"nobody/nothing is no stage's model and no folder.*full commit hash"):
        models.locate_model(None, "nobody/nothing", revision)


@pytest.mark.parametrize("loss_on", ["completion", "full"])
def test_mean_loss_equals_an_independent_computation(model_folder, tokenizer, loss_on):
    examples, _ = sft.sft_examples(tokenizer, ROWS[:5], RECIPE | {"loss_on": loss_on})
    model = models.load_model(model_folder)
    total = count = 0
    for example in examples:
        with torch.no_grad():
            log_probs = model(torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        for place in range(1, len(example["labels"])):
            if example["labels"][place] != labels.IGNORED:
                total -= float(log_probs[place - 1, example["labels"][place]])
                count += 1
    assert sft.mean_loss(model, tokenizer, examples, batch_size=2) == pytest.approx(total / count, abs=1e-5)


def test_sft_trains_a_float32_adapter_that_the_next_scheme_carries_on(model_folder, quantisation, lora, tokenizer, tmp_path):
    examples, too_long = sft.sft_examples(tokenizer, ROWS, RECIPE)
    assert too_long == 0
    responses = {r["response"] for r in ROWS}
    settings = {"lora": lora, "responses": responses, "seed": 0, "progress": nothing}
    model = models.load_model(model_folder, quantisation)
    model, log = sft.train_sft(model, tokenizer, examples[4:], examples[:4], RECIPE, folder=tmp_path / "a", **settings)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    names = {n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "k_proj", "v_proj"}
    losses = [r["loss"] for r in log if "loss" in r]
    assert len(losses) == RECIPE["steps"] and losses[-1] < losses[0]
    learned = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    carried, _ = sft.train_sft(
        model, tokenizer, examples[4:], examples[:4], RECIPE | {"learning_rate": 1e-12}, folder=tmp_path / "b", **settings
    )
    assert list(carried.peft_config) == ["default"]
    for name, parameter in carried.named_parameters():
        if name in learned:
            assert torch.allclose(parameter, learned[name], atol=1e-6)


def test_wrong_labels_stop_the_training_before_its_first_step(model_folder, quantisation, lora, tokenizer, tmp_path):
    examples, _ = sft.sft_examples(tokenizer, ROWS, RECIPE)
    model = models.load_model(model_folder, quantisation)
    with pytest.raises(labels.LabelError, match="no response of the data"):
        sft.train_sft(
            model,
            tokenizer,
            examples[4:],
            examples[:4],
            RECIPE,
            lora=lora,
            responses={"other"},
            folder=tmp_path,
            seed=0,
            progress=nothing,
        )


@pytest.mark.parametrize("nll_weight", [0.0, 0.2])
def test_dpo_starts_at_ln_2_with_the_adapter_off_as_reference(model_folder, quantisation, lora, tokenizer, tmp_path, nll_weight):
    examples, dropped = dpo.dpo_examples(tokenizer, PAIRS, 256)
    assert dropped == {"too_long": 0, "equal_as_tokens": 0}
    recipe = {k: v for k, v in RECIPE.items() if k != "loss_on"} | {"beta": 0.1, "nll_weight": nll_weight}
    model = models.load_model(model_folder, quantisation)
    model, log = dpo.train_dpo(
        model, tokenizer, examples[4:], examples[:4], recipe, lora=lora, folder=tmp_path, seed=0, progress=nothing
    )
    losses = [r["loss"] for r in log if "loss" in r]
    assert dpo.check_first_dpo_loss(log, nll_weight) == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0]
    assert (losses[0] > 1.0) == (nll_weight > 0), "the likelihood term comes on top"
    assert list(model.peft_config) == ["default"]


def test_a_reference_that_is_not_the_policy_is_caught():
    equal = {"rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/margins": 0.0}
    for row, weight in (({"loss": 0.52, **equal}, 0.0), ({"loss": 1.3, **equal, "rewards/margins": 0.1}, 0.2)):
        with pytest.raises(training.TrainingError, match="not ln 2"):
            dpo.check_first_dpo_loss([row], weight)
    with pytest.raises(training.TrainingError, match="did not start equal"):
        dpo.check_first_dpo_loss([{"loss": math.log(2), **equal, "rewards/chosen": -0.4, "rewards/rejected": -0.4}], 0.0)


def test_pairs_that_do_not_fit_or_are_equal_are_dropped_and_counted(tokenizer):
    pairs = [*PAIRS[:2], PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}, PAIRS[0] | {"chosen": "very " * 300}]
    kept, dropped = dpo.dpo_examples(tokenizer, pairs, 256)
    assert len(kept) == 2 and dropped == {"too_long": 1, "equal_as_tokens": 1}
    assert all(tokenizer.decode(k["chosen_ids"][:-1]) == "Sure: yes" for k in kept)


def test_empty_sets_are_clear_errors(tokenizer):
    with pytest.raises(training.TrainingError, match="1 rows are too few"):
        training.split(ROWS[:1], RECIPE)
    with pytest.raises(training.TrainingError, match="max_length=16"):
        sft.sft_examples(tokenizer, ROWS, RECIPE | {"max_length": 16})
    with pytest.raises(training.TrainingError, match="no preference pair is left"):
        dpo.dpo_examples(tokenizer, [PAIRS[0] | {"rejected": PAIRS[0]["chosen"]}], 256)


def test_the_split_is_a_seeded_fifth_and_loses_nothing():
    recipe = RECIPE | {"validation_share": 0.2}
    train, valid = training.split(ROWS, recipe)
    assert len(valid) == 3 and sorted(r["prompt"] for r in train + valid) == sorted(r["prompt"] for r in ROWS)
    assert (train, valid) == training.split(ROWS, recipe) != training.split(ROWS, recipe | {"split_seed": 7})
