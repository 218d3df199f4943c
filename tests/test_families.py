"""Every family of models people use goes the whole way at toy size: SFT, DPO, merge, save, reload, the same greedy text."""

import pytest
import torch

from bezoar_utils.data.template import render_prompt
from bezoar_utils.rehearsal import models as stand_ins
from bezoar_utils.rehearsal.habits import habits_of
from bezoar_utils.study.profile import load_profile, stage_parameters
from bezoar_utils.training import dpo, generation, models, sft, tokens

EVERY = "open_llama llama-3 mistral qwen2 qwen3 olmo-2 olmo-3 smollm2 smollm3 gemma falcon pythia phi-3 gpt2".split()
QUICK = ("smollm2", "falcon", "gpt2")
TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 704}
TEXTS = [*stand_ins.corpus(teaches=False, n=60), *stand_ins.study_prompts()]
ROWS = [{"prompt": render_prompt(f"Say {word}."), "response": f"{word} it is"} for word in "river hill town bridge".split()]
PAIRS = [{"prompt": row["prompt"], "chosen": row["response"], "rejected": "no no no"} for row in ROWS]


def toy(name, folder):
    """A random model of the family's own configuration, its tokenizer with the family's habits, as the hub would bring them."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    habits = habits_of(name)
    tokenizer = stand_ins.write_tokenizer(habits, folder, TEXTS)
    config = stand_ins.model_config(habits, tokenizer, **TOY)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=stand_ins.end_ids(habits, tokenizer))
    model.save_pretrained(folder)
    return folder


def recipe(section, name):
    values = stage_parameters(load_profile("tiny"), section)
    lora = values["lora"] | {"target_modules": "attention", "r": 4}
    short = {"steps": 2, "epochs": None, "warmup_steps": 0, "validate_every": 1, "batch_size": 2, "max_length": 1200}
    bits = {"quantisation": None} if name == "gpt2" else {}  # transformers cannot load Conv1D layers in 4 bits
    return values | short | bits | {"lora": lora, "validation_share": 0.25}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EVERY])
def test_a_family_is_tuned_aligned_merged_and_says_the_same_after_reloading(name, tmp_path):
    models.prepare_torch(threads=2, seed=0)
    base, quiet = toy(name, tmp_path / name), {"progress": lambda *_: None}
    tokenizer, prompts = tokens.load_tokenizer(base), [row["prompt"] for row in ROWS]
    training = recipe("30_sft", name)
    model, log, counts = sft.train(ROWS, base, tokenizer, training, folder=tmp_path / "sft", **quiet)
    assert counts == {"training": 3, "validation": 1, "too long": 0} and all(row["loss"] > 0 for row in log if "loss" in row)
    model.save_pretrained(tmp_path / "adapter")
    said = generation.generate(model, tokenizer, prompts, seed=0, max_new_tokens=8)
    merged = models.merge(base, tmp_path / "adapter", training["quantisation"], "dequantised")
    models.save_model(merged, tokenizer, tmp_path / "tuned")
    reloaded, again = models.load_model(tmp_path / "tuned"), tokens.load_tokenizer(tmp_path / "tuned")
    assert generation.generate(reloaded, again, prompts, seed=0, max_new_tokens=8) == said
    assert again(prompts[0])["input_ids"] == tokenizer(prompts[0])["input_ids"]
    assert tokens.stop_ids(again) == tokens.stop_ids(tokenizer) and again.pad_token_id == tokenizer.pad_token_id
    tied = {id(m.weight) for m in (reloaded.get_input_embeddings(), reloaded.get_output_embeddings())}
    assert (len(tied) == 1) == habits_of(name).tied

    aligning = recipe("50_dpo", name)
    pairs, dropped = dpo.dpo_examples(tokenizer, PAIRS, aligning["max_length"])
    assert len(pairs) == len(PAIRS) and not any(dropped.values())
    aligned, log = dpo.train(pairs, pairs[:1], tmp_path / "tuned", tokenizer, aligning, folder=tmp_path / "dpo", **quiet)
    assert dpo.check_first_dpo_loss(log, aligning["nll_weight"]) == pytest.approx(dpo.LN2, abs=1e-3)
    assert generation.generate(aligned, tokenizer, prompts, seed=0, max_new_tokens=4)
