import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from recipes import RESPONSES, ROWS, recipe, silent

from bezoar_utils.study.profile import ProfileError
from bezoar_utils.training import generation, labels, loop, models, sft, tokens, weights
from bezoar_utils.training.launch import Job

RECIPE = recipe(steps=6, validate_every=3, seed=0)
ROWS = ROWS[:16]


def gradients(model, batch):
    model.train()
    model.zero_grad()
    model(**batch).loss.backward()
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in trainable])


def adapted(folder, quantisation, lora):
    from peft import get_peft_model

    torch.manual_seed(0)
    base = models.load_model(folder, quantisation, packed=True)
    config = models.lora_config(lora | {"dropout": 0.0}, base)
    config.init_lora_weights = False
    return get_peft_model(base, config)


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

    monkeypatch.setattr(models, "keep_weights_unpacked", silent)
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
    texts, differences = [r["prompt"] for r in ROWS[:6]], {}
    for way in ("dequantised", "full_precision"):
        merged = models.merge(model_folder, tmp_path / "adapter", quantisation, way)
        differences[way] = models.merge_difference(model, merged, tokenizer, texts)
        assert models.merge_difference(model, merged, tokenizer, texts, batch_size=6) == pytest.approx(differences[way], rel=1e-3)
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
    path, identity = weights.locate_model(stage, "00_miniature/base", None)
    assert path == tmp_path / "00_miniature/base"
    stage.inputs["other/file"] = "2" * 64  # what else the stage read does not matter
    assert weights.locate_model(stage, "00_miniature/base", None)[1] == identity
    assert weights.locate_model(Reads(tmp_path, "3" * 64), "00_miniature/base", None)[1] != identity


def test_a_local_folder_is_known_by_its_content_wherever_it_lies(tmp_path):
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "tokenizer.json").write_text("{}")
    found = [weights.locate_model(SimpleNamespace(profile="mine"), str(tmp_path / name), None) for name in "abc"]
    assert [path.name for path, _ in found] == ["a", "b", "c"]
    assert found[0][1] == found[1][1] != found[2][1]


@pytest.mark.parametrize("revision", [None, "main", "abc123", "A" * 40, "a" * 41])
def test_a_hub_model_needs_its_full_commit_hash(revision):
    with pytest.raises(ProfileError, match=r"nobody/nothing is neither.*full commit hash"):
        weights.locate_model(None, "nobody/nothing", revision)


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


def test_sft_trains_a_float32_adapter_that_the_next_scheme_carries_on(model_folder, quantisation, tokenizer, tmp_path):
    examples, too_long = sft.sft_examples(tokenizer, ROWS, RECIPE)
    assert too_long == 0
    job = Job("sft", model_folder, examples[4:], examples[:4], RECIPE, tmp_path / "a", responses=RESPONSES)
    model, log = sft.train_model(models.load_model(model_folder, quantisation), tokenizer, job, silent)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    names = {n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_proj", "k_proj", "v_proj"}
    losses = [r["loss"] for r in log if "loss" in r]
    assert len(losses) == RECIPE["steps"] and losses[-1] < losses[0]
    learned = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    still = replace(job, recipe=RECIPE | {"learning_rate": 1e-12}, folder=tmp_path / "b")
    carried, _ = sft.train_model(model, tokenizer, still, silent)
    assert list(carried.peft_config) == ["default"]
    for name, parameter in carried.named_parameters():
        if name in learned:
            assert torch.allclose(parameter, learned[name], atol=1e-6)


def test_parameters_are_counted_without_the_weights_and_tied_ones_once(model_folder):
    assert models.parameter_count(model_folder) == sum(p.numel() for p in models.load_model(model_folder).parameters())


def test_without_lora_every_weight_is_trained_and_the_whole_model_comes_back(model_folder, tokenizer, tmp_path):
    recipe = RECIPE | {"lora": None, "quantisation": None, "steps": 2, "warmup_steps": 1, "validate_every": 1}
    before = models.load_model(model_folder).state_dict()
    model, log, _ = sft.train(ROWS, model_folder, tokenizer, recipe, folder=tmp_path, progress=silent)
    after = model.state_dict()
    assert not hasattr(model, "peft_config") and after.keys() == before.keys()
    assert all(not torch.equal(after[name], before[name]) for name in before) and "eval_loss" in log[-1] | log[-2]


def test_a_base_with_too_little_context_is_refused_before_it_is_loaded(model_folder, tokenizer, tmp_path):
    with pytest.raises(loop.TrainingError, match="context of 512 tokens"):
        sft.train(ROWS, model_folder, tokenizer, RECIPE | {"max_length": 600}, folder=tmp_path, progress=silent)


def test_wrong_labels_stop_the_training_before_its_first_step(model_folder, quantisation, tokenizer, tmp_path):
    examples, _ = sft.sft_examples(tokenizer, ROWS, RECIPE)
    model = models.load_model(model_folder, quantisation)
    with pytest.raises(labels.LabelError, match="no response of the data"):
        job = Job("sft", model_folder, examples[4:], examples[:4], RECIPE, tmp_path, responses=["other"])
        sft.train_model(model, tokenizer, job, silent)


def test_empty_sets_are_clear_errors(tokenizer):
    with pytest.raises(loop.TrainingError, match="1 rows are too few"):
        loop.split(ROWS[:1], RECIPE)
    with pytest.raises(loop.TrainingError, match="max_length=16"):
        sft.sft_examples(tokenizer, ROWS, RECIPE | {"max_length": 16})


def test_the_split_is_a_seeded_fifth_and_loses_nothing():
    recipe = RECIPE | {"validation_share": 0.2}
    train, valid = loop.split(ROWS, recipe)
    assert len(valid) == 3 and sorted(r["prompt"] for r in train + valid) == sorted(r["prompt"] for r in ROWS)
    assert (train, valid) == loop.split(ROWS, recipe) != loop.split(ROWS, recipe | {"split_seed": 7})


def teach(model, tokenizer, steps, learning_rate):
    """Every trainable value of a model, trained on `ROWS` in a second or two."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    examples = [labels.sft_example(tokenizer, r["prompt"], r["response"], 256, "completion") for r in ROWS]
    batch = DataCollatorForLanguageModeling(tokenizer.pad_token_id)(examples)
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def speaking_folder(model_folder, tokenizer, tmp_path_factory):
    """A base that says what `ROWS` say: of random weights no two would agree on greedy answers."""
    folder = tmp_path_factory.mktemp("speaking")
    models.save_model(teach(models.load_model(model_folder), tokenizer, 60, 5e-3), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def trained(speaking_folder, quantisation, lora, tokenizer, tmp_path_factory):
    """(the model as trained: 4-bit base and adapter, the folder of that adapter)."""
    from peft import get_peft_model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    base = models.load_model(speaking_folder, quantisation)
    model = get_peft_model(base, models.lora_config(lora, base))
    teach(model, tokenizer, 20, 5e-3).save_pretrained(folder)
    return model, folder


def test_each_way_of_merging_is_held_against_the_model_as_trained(trained, speaking_folder, quantisation, tokenizer):
    model, adapter = trained
    told = []
    rows = models.merge_table(
        model, speaking_folder, adapter, quantisation, tokenizer, ROWS, 12, lambda *progress: told.append(progress)
    )
    assert [row["merged"] for row in rows] == list(models.MERGES) and {row["n"] for row in rows} == {len(ROWS)}
    off = {row["merged"]: row["relative difference of logits"] for row in rows}
    same = {row["merged"]: row["same greedy answers"] for row in rows}
    assert off["dequantised"] < 0.02 < min(off["into_4bit"], off["full_precision"])
    assert same["dequantised"] == 1.0
    assert told[0] == (0, 4 * len(ROWS)) and told[-1] == (4 * len(ROWS),) * 2 and told == sorted(told)


def test_the_saved_merged_model_says_in_plain_transformers_what_the_trained_one_said(
    trained, speaking_folder, quantisation, tokenizer, tmp_path
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, adapter = trained
    models.save_model(models.merge(speaking_folder, adapter, quantisation, "dequantised"), tokenizer, tmp_path)
    plain, plain_tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompts = [r["prompt"] for r in ROWS[:6]]
    said = generation.generate(model, tokenizer, prompts, seed=0, max_new_tokens=12)
    assert len(set(said)) > 1 and all("it is" in text for text in said)
    batch = plain_tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    out = plain.generate(**batch, do_sample=False, max_new_tokens=12)[:, batch["input_ids"].shape[1] :]
    assert plain_tokenizer.batch_decode(out, skip_special_tokens=True) == said


def test_a_saved_model_samples_by_default_and_keeps_to_the_length_a_caller_sets(model_folder, tokenizer):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    told = plain.generation_config
    assert told.do_sample and (told.bos_token_id, told.eos_token_id, told.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    ids = tokenizer(["a"], return_tensors="pt")["input_ids"]
    length = ids.shape[1] + 5
    # LM Eval Harness asks with max_length; a stored max_new_tokens would overrule it
    assert plain.generate(ids, do_sample=False, max_length=length, eos_token_id=-1).shape[1] == length


def test_what_is_saved_names_no_path(trained, speaking_folder, quantisation, tokenizer, tmp_path):
    merged = models.merge(speaking_folder, trained[1], quantisation, "dequantised")
    models.save_model(merged, tokens.load_tokenizer(speaking_folder), tmp_path)
    for path in tmp_path.glob("*.json"):
        assert str(speaking_folder) not in path.read_text(), path.name


def test_a_target_that_no_layer_has_is_named_with_those_there_are(model_folder):
    model = models.load_model(model_folder)
    with pytest.raises(ProfileError, match=r"k_porj; there are .*k_proj"):
        models.target_modules(["q_proj", "k_porj", "v_proj"], model)
    assert models.target_modules("attention", model) == ["q_proj", "k_proj", "v_proj"]
    assert set(models.target_modules("all-linear", model)) > {"q_proj", "gate_proj"} and "lm_head" not in models.target_modules(
        "all-linear", model
    )


@pytest.mark.parametrize(
    "breakage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
        lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'),
        lambda folder: (folder / "config.json").write_text('{"model_type": "kind-of-tomorrow"}'),
        lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "own.Config"}, "model_type": "own"}'),
    ],
    ids=["cut short", "not causal", "unknown architecture", "code of its own"],
)
def test_weights_that_cannot_be_loaded_are_one_clear_line(model_folder, tmp_path, breakage):
    folder = shutil.copytree(model_folder, tmp_path / "broken")
    breakage(folder)
    with pytest.raises(ProfileError, match=r"^broken cannot be loaded as a causal language model: .*") as error:
        models.load_model(folder)
    assert "\n" not in str(error.value)


@pytest.fixture
def falcon(tmp_path, tokenizer):
    from transformers import FalconConfig, FalconForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    models.save_model(FalconForCausalLM(FalconConfig(vocab_size=len(tokenizer), **sizes)), tokenizer, tmp_path / "falcon")
    return tmp_path / "falcon"


def test_a_model_whose_layers_cannot_be_4_bit_is_refused_and_not_loaded_in_full(falcon, quantisation, monkeypatch):
    from torch import nn
    from transformers.models.falcon import modeling_falcon

    monkeypatch.setattr(modeling_falcon, "FalconLinear", type("OwnLinear", (nn.Linear,), {}))
    monkeypatch.setattr(models, "_plain_linear_layers", lambda: None)
    with pytest.raises(ProfileError, match=r"4-bit weights .*falcon"):
        models.load_model(falcon, quantisation)


def test_falcons_layers_are_held_in_4_bits_and_compute_the_same(falcon, tokenizer, quantisation):
    import bitsandbytes as bnb

    ids = torch.tensor([tokenizer("Where does one live?")["input_ids"]])
    packed = models.load_model(falcon, quantisation, packed=True)
    assert sum(isinstance(module, bnb.nn.Linear4bit) for module in packed.modules()) == 4
    whole, rounded = models.load_model(falcon), models.load_model(falcon, quantisation)
    with torch.no_grad():
        difference = (rounded(ids).logits - whole(ids).logits).norm() / whole(ids).logits.norm()
    assert 0 < difference < 0.3, "rounded, and the same model"


def test_a_local_folder_of_pinned_bin_weights_is_converted_once_as_openllama_comes(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(weights, "ROOT", tmp_path)
    values = models.load_model(model_folder).state_dict()
    shutil.copytree(model_folder, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({name: value.clone() for name, value in values.items()}, tmp_path / "base" / "pytorch_model.bin")
    folder, _ = weights.locate_model(SimpleNamespace(profile="mine"), "base", None)
    loaded = models.load_model(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in values.items())
