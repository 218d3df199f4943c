"""What the training and evaluation stages need of one GPU, and for how long, from the base model's shape. Nothing is run.

Bytes follow what the code does: `load_model` loads float32, of a 4-bit model all but the linear layers, TRL's trainers run under
bfloat16 autocast, chapters compare a merged float32 model with the 4-bit one. Tests hold parameter counts, 4-bit bytes, adapters
and saved activations against real models on a CPU. No GPU was asked: working buffers, and all hours, are guesses.
"""

import math

from ..study.profile import STAGES, Profile
from ..training.generation import KEPT_BYTES, rows_at_once

GIB = 2**30
CONTEXT = GIB  # a guess: CUDA context and cuBLAS workspace of one process
VALIDATION_ROWS, COMPARED_TEXTS = 32, 32  # of training.arguments and sft.mean_loss; of the chapters' merge tables
HEAD_TILE = 4096 * 32768 * 4  # bytes: tokens x vocabulary at a time, in TRL's head


# ------------------------------------------------------------------------------------------------------- the model's shape


def _widths(base) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear layer of one Llama block."""
    h, i, kv = base.hidden, base.intermediate, base.hidden * base.kv_heads // base.heads
    attention = {"q_proj": (h, h), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (h, h)}
    return attention | {"gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}


def linear_values(base) -> int:
    """Values in the blocks' linear layers: what 4-bit loading quantises."""
    return base.layers * sum(a * b for a, b in _widths(base).values())


def parameters(base) -> int:
    """All values of a Llama of this shape; of OpenLLaMA 3B v2: 3,426,473,600."""
    embeddings = base.vocabulary * base.hidden * (1 if base.tied else 2)
    return linear_values(base) + embeddings + (2 * base.layers + 1) * base.hidden


def four_bit_values(double: bool) -> float:
    """Bytes a value of a 4-bit layer: half a byte and a scale for each 64 (QLoRA, arXiv 2305.14314, section 3), which is one byte
    and a float32 for 256 scales when `double`, else a float32."""
    return 0.5 + ((1 + 4 / 256) if double else 4) / 64


def four_bit_bytes(base, double: bool) -> float:
    """A model whose linear layers are in 4 bits; embeddings, head and norms stay float32."""
    return linear_values(base) * four_bit_values(double) + 4 * (parameters(base) - linear_values(base))


def adapter_values(base, lora) -> int:
    return base.layers * sum(lora.r * sum(widths) for name, widths in _widths(base).items() if name in lora.target_modules)


def saved_bytes(base, lora, dropout_mask: int = 1) -> int:
    """Bytes a token that one block keeps for its backward pass, under bfloat16 autocast with a float32 stream.

    Norms, residual and MLP keep float32; attention keeps q, k, v and its output in bfloat16; each adapted layer keeps its input
    in bfloat16, a `dropout_mask` (one byte a value on GPUs, four on CPUs) and twice r. Frozen layers keep nothing.
    """
    h, kv = base.hidden, base.hidden * base.kv_heads // base.heads
    adapted = sum(
        (2 + dropout_mask) * inputs + 2 * lora.r for name, (inputs, _) in _widths(base).items() if name in lora.target_modules
    )
    return 2 * 4 * h + 12 * base.intermediate + 2 * (2 * h + 2 * kv) + 4 * base.heads + 8 + adapted


def working_bytes(base) -> int:
    """Bytes a token of one block's forward pass without gradients: four MLP-wide and three hidden float32 tensors. A guess."""
    return 16 * base.intermediate + 12 * base.hidden


def kept_bytes(base) -> int:
    """Bytes a token of keys and values, in float32."""
    return 2 * 4 * base.layers * base.hidden * base.kv_heads // base.heads


# ------------------------------------------------------------------------------------------------------------- GPU memory


def stage_memory(profile: Profile, served: dict[str, list[str]]) -> list[dict]:
    """A row a stage and moment: bytes of weights, adapter (with gradient and optimizer), activations, logits, what is served
    beside, in all. `served`: stage -> who of teacher and judge it asks. Empty when the profile names no GPU."""
    if not profile.plan.gpu:
        return []
    base, mine = profile.plan.base, profile.stages or STAGES
    whole, small = 4 * parameters(base), four_bit_bytes(base, profile.quantisation.double)
    rows = []

    def need(stage, moment, weights, activations, logits=0, adapter=0):
        parts = {"weights": weights, "adapter": adapter, "activations": activations, "logits": logits}
        beside = sum(_served_bytes(profile, who) for who in served.get(stage, ()))
        context = CONTEXT if any(parts.values()) else 0
        rows.append({"stage": stage, "moment": moment, **parts, "beside": beside, "all": sum(parts.values()) + beside + context})

    for stage, recipe, sequences, copies in _trainings(profile):
        tokens = recipe.batch_size * sequences * recipe.max_length
        blocks = base.layers * saved_bytes(base, profile.lora)
        if recipe.gradient_checkpointing:
            blocks = base.layers * 4 * base.hidden + saved_bytes(base, profile.lora)
        optimizer = 2 if recipe.optimizer == "paged_adamw_8bit" else 8
        adapter = adapter_values(base, profile.lora) * (4 + 4 + optimizer)
        head = 2 * base.vocabulary * base.hidden + HEAD_TILE + 8 * tokens * base.hidden
        every_weight = 20 * parameters(base) if getattr(recipe, "method", "") == "tr_dpo" else 0
        need(stage, "training", copies * small + every_weight, tokens * (blocks + working_bytes(base)), head, adapter)
        tokens = VALIDATION_ROWS * sequences * recipe.max_length
        need(stage, "validation", copies * small, tokens * working_bytes(base), head, adapter)
        tokens = COMPARED_TEXTS * recipe.max_length
        if stage == "30_sft":
            need(stage, "loss a scheme", small, 0, 10 * tokens * base.vocabulary)
        if stage != "75_filter":
            need(stage, "merged beside", whole + small, max(tokens * working_bytes(base), 4 * tokens * base.vocabulary))
    if "60_benchmarks" in mine:
        tokens = profile.benchmarks.batch_size * profile.benchmarks.max_length
        need("60_benchmarks", "a request batch", whole, 0, tokens * max(8 * base.vocabulary, working_bytes(base)))
    if "61_mt_bench" in mine:
        need("61_mt_bench", "answering", whole, KEPT_BYTES + KEPT_BYTES // kept_bytes(base) * working_bytes(base))
    trained = {row["stage"] for row in rows}
    for stage in served:
        if stage not in trained and any(_served_bytes(profile, who) for who in served[stage]):
            need(stage, "served", 0, 0)
    return sorted(rows, key=lambda row: list(STAGES).index(row["stage"]))


def _trainings(profile: Profile) -> list[tuple]:
    """(stage, recipe, sequences a row, 4-bit copies): chapter 30 keeps the last scheme's model until the next is trained."""
    stages = [("30_sft", profile.sft, 1, 2), ("40_hh_sft", profile.hh_sft, 1, 1), ("50_dpo", profile.dpo, 2, 1)]
    return [row for row in [*stages, ("75_filter", profile.filter_test, 1, 2)] if row[0] in (profile.stages or STAGES)]


def _served_bytes(profile: Profile, who: str) -> float:
    """Weights and the full contexts of all calls under way, when this one is served on this very GPU; else 0. Further judges are
    not reckoned."""
    reckoned, speaker = getattr(profile.plan, who, None), getattr(profile, who, None)
    if not (reckoned and reckoned.served and speaker.endpoint):
        return 0
    return reckoned.served.weights_gb * 1e9 + speaker.endpoint.concurrency * reckoned.context * reckoned.served.kv_bytes + GIB / 2


def too_large(profile: Profile, served: dict[str, list[str]]) -> list[str]:
    """One line for each stage whose largest moment the GPU does not hold."""
    gpu, largest = profile.plan.gpu, {}
    for row in stage_memory(profile, served):
        largest[row["stage"]] = max(row, largest.get(row["stage"], row), key=lambda r: r["all"])
    size = f"{gpu.memory_gib:g} GiB ({gpu.name}; name yours in plan.gpu)" if gpu else ""
    return [
        f"{stage} will not fit in {size}: {row['moment']} needs {row['all'] / GIB:.1f}"
        for stage, row in largest.items()
        if row["all"] > gpu.memory_gib * GIB
    ]


# ----------------------------------------------------------------------------------------------------------- hours and disk


def stage_hours(profile: Profile) -> dict[str, float]:
    """stage -> hours on the named GPU, at the assumed share of its peak. Calls come on top.

    Training: 2 N FLOPs a token forward, 2 N for the gradients of activations (frozen weights get none), 2 N more forward where
    checkpoints are recomputed. Validation and DPO's reference pass: 2 N. Benchmarks: 2 N in float32, at half the bfloat16 peak.
    Answers: a step reads the float32 weights once; every answer is taken to be as long as it may be.
    """
    if not profile.plan.gpu:
        return {}
    gpu, base, work, mine = profile.plan.gpu, profile.plan.base, profile.plan.work, profile.stages or STAGES
    n, hours = parameters(base), {}
    flops_an_hour = gpu.tflops * 1e12 * gpu.share * 3600

    def answers(count: int, new_tokens: int, prompt_tokens: int) -> float:
        batches = math.ceil(count / rows_at_once(kept_bytes(base), prompt_tokens + new_tokens, 128))
        return batches * new_tokens * 4 * n / (gpu.gb_per_second * 1e9 * gpu.share) / 3600

    for stage, recipe, sequences, _ in _trainings(profile):
        rows, schemes = (work.sft_rows, len(profile.sft.order)) if stage in ("30_sft", "75_filter") else (recipe.rows, 1)
        step = recipe.batch_size * recipe.accumulation
        steps = recipe.steps * schemes if recipe.steps else rows * (1 - recipe.validation_share) * recipe.epochs / step
        tokens = work.tokens_per_row[stage] * sequences
        validated = steps / recipe.validate_every * rows / schemes * recipe.validation_share
        asked = rows if stage == "50_dpo" else 0
        passes = (6 if recipe.gradient_checkpointing else 4) * steps * step + 2 * (validated + asked)
        hours[stage] = passes * n * tokens / flops_an_hour
    if "50_dpo" in hours:
        hours["50_dpo"] += 2 * answers(profile.dpo.sampled_prompts, profile.dpo.max_new_tokens, work.tokens_per_row["50_dpo"])
    if "60_benchmarks" in mine:
        hours["60_benchmarks"] = len(profile.checkpoints) * work.benchmark_tokens * 2 * n / (flops_an_hour / 2)
    if "61_mt_bench" in mine:
        new = profile.mt_bench.max_new_tokens
        hours["61_mt_bench"] = len(profile.checkpoints) * 2 * answers(profile.plan.questions, new, new)
    return hours


def disk_gb(profile: Profile) -> dict[str, float]:
    """What lies on the disk in the end, in GB: downloads, `.bin` weights kept as safetensors too, merged float32 checkpoints, and
    adapters with their optimizer, some five at a time."""
    if not profile.plan.gpu:
        return {}
    work, base, trainings = profile.plan.work, profile.plan.base, _trainings(profile)
    merged = sum(stage != "75_filter" for stage, *_ in trainings) * 4 * parameters(base) / 1e9
    adapters = 5 * len(trainings) * 16 * adapter_values(base, profile.lora) / 1e9
    return {"downloads": work.downloads_gb, "safetensors of .bin": work.converted_gb, "merged": merged, "adapters": adapters}
