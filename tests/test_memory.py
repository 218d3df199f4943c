"""What `make plan` estimates of memory, compared with real models where a CPU can tell."""

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bezoar_utils.planning import memory, plan
from bezoar_utils.study.parts import Lora, Shape
from bezoar_utils.study.profile import load_profile
from bezoar_utils.training import generation, models

OPENLLAMA = load_profile("released").plan.base
SMALL = Shape(hidden=256, layers=2, intermediate=640, heads=4, kv_heads=4, vocabulary=512, tied=False, context=512)
WIDER = SMALL.model_copy(update={"hidden": 512, "intermediate": 1280, "heads": 8, "kv_heads": 2})
LORA = load_profile("released").lora


def llama(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.context,
    )


def on_disk(shape: Shape, folder):
    LlamaForCausalLM(llama(shape)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("shape", [OPENLLAMA, WIDER, SMALL.model_copy(update={"tied": True})])
def test_parameters_are_those_of_the_real_architecture(shape):
    with torch.device("meta"):
        model = LlamaForCausalLM(llama(shape))
    assert memory.parameters(shape) == sum(p.numel() for p in model.parameters())


def test_openllama_has_as_many_parameters_as_its_card_says():
    assert memory.parameters(OPENLLAMA) == 3_426_473_600


@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj"], ["o_proj", "up_proj", "down_proj"], "attention", "all-linear"])
def test_an_adapter_is_as_large_as_pefts(targets):
    lora = Lora(r=16, alpha=16, dropout=0.05, target_modules=targets)
    with torch.device("meta"):
        base = LlamaForCausalLM(llama(WIDER))
        model = get_peft_model(base, models.lora_config(lora.model_dump(), base))
    assert memory.adapter_values(WIDER, lora) == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_papers_adapter_is_the_authors_32_megabytes():
    assert 4 * memory.adapter_values(OPENLLAMA, LORA) == pytest.approx(32e6, rel=0.01)


@pytest.mark.parametrize("double", [True, False])
def test_four_bit_bytes_are_those_of_a_quantised_model_within_two_percent(tmp_path, double):
    model = models.load_model(on_disk(WIDER, tmp_path), {"type": "nf4", "double": double, "compute_dtype": "auto"}, packed=True)
    scales = 0
    for module in model.modules():
        if state := getattr(getattr(module, "weight", None), "quant_state", None):
            scales += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    assert memory.four_bit_bytes(WIDER, double) == pytest.approx(model.get_memory_footprint() + scales, rel=0.02)


@pytest.mark.parametrize("shape", [SMALL, WIDER])
def test_what_a_block_saves_for_its_backward_pass_is_estimated_within_three_percent(tmp_path, quantisation, shape):
    four_bit = quantisation | {"compute_dtype": "bfloat16"}  # as on the GPU that is planned for

    def saved(layers: int, rows: int, length: int) -> int:
        folder = tmp_path / str(layers)
        model = models.load_model(on_disk(shape.model_copy(update={"layers": layers}), folder), four_bit, packed=True)
        model = get_peft_model(model, models.lora_config(LORA.model_dump(), model))
        models.claim_adapter(model, {})
        own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        storages = {}

        def keep(tensor):
            if (storage := tensor.untyped_storage()).data_ptr() not in own:
                storages[storage.data_ptr()] = storage
            return tensor

        ids = torch.randint(0, shape.vocabulary, (rows, length))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            model.train().base_model.model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
        return sum(storage.nbytes() for storage in storages.values())

    a_block = saved(3, 4, 128) - saved(2, 4, 128)
    # dropout's mask takes four bytes a value here and one on a GPU
    assert memory.saved_bytes(shape, LORA, dropout_mask=4) * 4 * 128 == pytest.approx(a_block, rel=0.03)


def test_keys_and_values_are_those_of_the_real_cache(tmp_path):
    model = LlamaForCausalLM(llama(WIDER))
    assert memory.kept_bytes(WIDER) == generation._kept_bytes(model)
    cache = model(torch.ones(1, 10, dtype=torch.long), use_cache=True).past_key_values
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == 10 * memory.kept_bytes(WIDER)


def test_a_batch_has_no_more_rows_than_its_keys_and_values_have_room_for():
    assert generation.rows_at_once(memory.kept_bytes(OPENLLAMA), 1500, 128) == 2
    assert generation.rows_at_once(memory.kept_bytes(OPENLLAMA), 10**6, 128) == 1, "one row is always tried"
    assert generation.rows_at_once(6144, 164, 128) == 128, "the miniature's batches stay as they are"


# ------------------------------------------------------------------------------------------------------ the shipped profiles


def moments(profile):
    return {(r["stage"], r["moment"]): r for r in memory.stage_memory(profile, plan.roles_by_stage(profile))}


def test_checkpoints_save_memory_and_a_longer_row_takes_more():
    released = load_profile("released")
    plain = moments(released)["30_sft", "training"]["activations"]
    without = released.sft.model_copy(update={"gradient_checkpointing": False})
    longer = released.sft.model_copy(update={"max_length": 2048})
    assert moments(released.model_copy(update={"sft": without}))["30_sft", "training"]["activations"] > 5 * plain
    assert moments(released.model_copy(update={"sft": longer}))["30_sft", "training"]["activations"] == 2 * plain


def test_a_dpo_step_holds_chosen_and_rejected_rows():
    rows = moments(load_profile("released"))
    assert rows["50_dpo", "training"]["activations"] == 2 * rows["40_hh_sft", "training"]["activations"]


def test_a_chapter_beside_the_recipe_holds_what_the_trainings_hold_that_it_repeats():
    released = load_profile("released")
    rows = moments(released)
    assert rows["80_ablations", "training"]["all"] == rows["81_reward", "training"]["all"] == rows["50_dpo", "training"]["all"]
    assert rows["82_merge", "training"]["all"] == rows["30_sft", "training"]["all"]
    whole = 4 * memory.parameters(OPENLLAMA)
    # half of it from the start: weights, gradients and two 8-bit moments of each value
    start = rows["84_smaller", "from the start"]
    assert (start["weights"], start["adapter"]) == (whole / 2, 6 / 4 * whole / 2)
    assert rows["83_bits", "rounding"]["weights"] == whole
    plain = released.sft.model_copy(update={"optimizer": "adamw_torch"})
    lines = memory.too_large(released.model_copy(update={"sft": plain}), {})
    assert [line.split()[0] for line in lines] == ["84_smaller"] and "from the start needs" in lines[0]


def test_hours_beside_the_recipe_are_those_of_its_trainings():
    released = load_profile("released")
    hours, merge = memory.stage_hours(released), released.merge
    tokens = 8 * merge.steps * 16 * 350  # eight trainings' worth, 16 rows a step, 350 tokens a row
    assert hours["82_merge"] == pytest.approx(3 * tokens * 2 * 3_426_473_600 / (165.2e12 * 0.3) / 3600)
    # the reward model's 1,531 steps and 15 rounds of 200, 64 pairs each, two replies of 250 tokens; three of the filter's test
    tokens = (1531 + 15 * 200) * 64 * 2 * 250 + 3 * 225 * 16 * 350
    assert hours["81_reward"] == pytest.approx(3 * tokens * 2 * 3_426_473_600 / (165.2e12 * 0.3) / 3600)
    thrice = released.model_copy(update={"merge": merge.model_copy(update={"seeds": 3})})
    assert memory.stage_hours(thrice)["82_merge"] == pytest.approx(3 * hours["82_merge"])
    assert any("make neighbours" in line and "make reproduce" in line for line in plan.gpu_lines(released))


def test_all_is_the_sum_of_its_parts():
    for row in moments(load_profile("consumer")).values():
        parts = sum(row[part] for part in ("weights", "adapter", "activations", "logits", "beside"))
        assert row["all"] - parts == (memory.CONTEXT if row["weights"] else 0)


def test_teacher_and_judge_are_beside_each_other_and_the_judge_beside_the_answering_model():
    rows = moments(load_profile("consumer"))
    both, judge = rows["12_evol_instruct", "served"]["all"], rows["61_mt_bench", "answering"]["beside"]
    # weights, then calls x context x bytes a token, then half a GiB for the server's CUDA context
    assert judge == 4.4e9 + 2 * 8192 * 131072 + memory.GIB / 2
    assert both == judge + 7.8e9 + 4 * 4096 * 524288 + memory.GIB / 2


def test_a_stage_that_does_not_fit_is_named_with_what_it_needs():
    consumer = load_profile("consumer")
    smaller = consumer.plan.model_copy(update={"gpu": consumer.plan.gpu.model_copy(update={"memory_gib": 22.0})})
    lines = memory.too_large(consumer.model_copy(update={"plan": smaller}), plan.roles_by_stage(consumer))
    assert [line.split()[0] for line in lines] == ["12_evol_instruct", "61_mt_bench"]
    assert "22 GiB (RTX 4090" in lines[1] and "plan.gpu" in lines[1] and "answering needs 22." in lines[1]


def test_hours_follow_the_stated_formula():
    released = load_profile("released")
    step = released.hh_sft.batch_size * released.hh_sft.accumulation
    rows = 100_000 * 0.98
    validated = rows / step / 250 * 2000
    flops = (6 * rows + 2 * validated) * 250 * 3_426_473_600
    assert memory.stage_hours(released)["40_hh_sft"] == pytest.approx(flops / (165.2e12 * 0.3) / 3600)
    answers = 80 * 2 * 4 * 1024 * 4 * 3_426_473_600 / (1008e9 * 0.3) / 3600
    assert memory.stage_hours(load_profile("checkpoints"))["61_mt_bench"] == pytest.approx(answers)


def test_three_merged_checkpoints_in_float32_are_on_the_disk():
    assert memory.disk_gb(load_profile("released"))["merged"] == pytest.approx(3 * 13.7, rel=0.01)
    assert memory.disk_gb(load_profile("checkpoints"))["merged"] == 0


def test_the_miniature_needs_no_gpu_and_says_so_in_a_line():
    mini = load_profile("mini")
    assert moments(mini) == memory.stage_hours(mini) == {}
    assert len(plan.gpu_lines(mini)) == 1


def test_the_output_says_what_fits_and_that_no_gpu_was_measured():
    lines = plan.gpu_lines(load_profile("consumer"))
    assert any("fits in 24 GiB (RTX 4090)" in line and "JOBS=1" in line for line in lines)
    assert "Nothing was measured on a GPU" in lines[-1]
