"""What the training and evaluation stages need of one GPU, and for how long, from the base model's shape. Nothing is run.

Bytes follow what the code does: `load_model` loads float32, of a 4-bit model all but the linear layers, TRL's trainers run under
bfloat16 autocast, chapters compare a merged float32 model with the 4-bit one. Tests hold parameter counts, 4-bit bytes, adapters
and saved activations against real models on a CPU. Nothing was measured on a GPU: working buffers, and all hours, are guesses.
"""

import math

from ..study.schema import Benchmarks, Bits, Dpo, FilterTest, HhSft, MtBench, Profile, Recipe, Reward, Sft, Smaller
from ..study.stages import STAGES, names
from ..training.generation import KEPT_BYTES, rows_at_once

GIB = 2**30
CONTEXT = GIB  # a guess: CUDA context and cuBLAS workspace of one process
VALIDATION_ROWS, COMPARED_TEXTS = 32, 32  # of training.arguments and sft.mean_loss; of the chapters' merge tables
HEAD_TILE = 4096 * 32768 * 4  # bytes: tokens x vocabulary at a time, in TRL's head


# ------------------------------------------------------------------------------------------------------- the model's shape


LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _widths(base) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each linear layer of one Llama block."""
    h, i, kv = base.hidden, base.intermediate, base.hidden * base.kv_heads // base.heads
    return dict(zip(LLAMA_LAYERS, [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]))


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


def _adapted(base, lora) -> dict[str, tuple[int, int]]:
    groups = {"attention": ("q_proj", "k_proj", "v_proj"), "all-linear": _widths(base)}
    asked = lora.target_modules if isinstance(lora.target_modules, list) else groups[lora.target_modules]
    return {name: widths for name, widths in _widths(base).items() if name in asked}


def adapter_values(base, lora) -> int:
    return base.layers * sum(lora.r * sum(widths) for widths in _adapted(base, lora).values())


def saved_bytes(base, lora, dropout_mask: int = 1) -> int:
    """Bytes a token that one block keeps for its backward pass, under bfloat16 autocast with a float32 stream.

    Norms, residual and MLP keep float32; attention keeps q, k, v and its output in bfloat16; each adapted layer keeps its input
    in bfloat16, a `dropout_mask` (one byte a value on GPUs, four on CPUs) and twice r. Frozen layers keep nothing.
    """
    h, kv = base.hidden, base.hidden * base.kv_heads // base.heads
    adapted = sum((2 + dropout_mask) * inputs + 2 * lora.r for inputs, _ in _adapted(base, lora).values())
    return 2 * 4 * h + 12 * base.intermediate + 2 * (2 * h + 2 * kv) + 4 * base.heads + 8 + adapted


def working_bytes(base) -> int:
    """Bytes a token of one block's forward pass without gradients: four MLP-wide and three hidden float32 tensors. A guess."""
    return 16 * base.intermediate + 12 * base.hidden


def kept_bytes(base) -> int:
    """Bytes a token of keys and values, in float32."""
    return 2 * 4 * base.layers * base.hidden * base.kv_heads // base.heads


# ------------------------------------------------------------------------------------------------------------- GPU memory


def stage_memory(profile: Profile, roles: dict[str, list[str]]) -> list[dict]:
    """A row for each stage and moment, in bytes: weights, adapter (with gradient and optimizer), activations, logits, what is
    served beside, and all of it. `roles`: stage -> the model roles it calls. Empty when the profile names no GPU."""
    if not profile.plan.gpu:
        return []
    rows = []
    for stage in profile.chapters():
        moments: dict[str, dict[str, float]] = {}
        for section in _sections(profile, stage):
            for name, (kinds, parts) in MOMENTS.items():
                if isinstance(section, kinds):
                    moments[name] = max(moments.get(name, {}), parts(profile, section), key=lambda found: sum(found.values()))
        beside = sum(_served_bytes(profile, role) for role in roles.get(stage, ()))
        if beside and not moments:
            moments = {"served": {}}
        rows += [_memory_row(stage, name, parts, beside) for name, parts in moments.items()]
    return rows


def _sections(profile: Profile, stage: str) -> list:
    """The parts of the profile that say how much a stage holds: its own, and beside the recipe those that it trains adapters by."""
    row = STAGES[stage]
    apart = row.target != "reproduce" and "trains" in row.does and "quantisation" in row.shared
    shared = row.shared if apart else ()
    return [getattr(profile, name) for name in (row.section, *shared)]


def _memory_row(stage: str, moment: str, parts: dict[str, float], beside: float) -> dict:
    parts = dict.fromkeys(("weights", "adapter", "activations", "logits"), 0) | parts
    context = CONTEXT if any(parts.values()) else 0
    return {"stage": stage, "moment": moment, **parts, "beside": beside, "all": sum(parts.values()) + beside + context}


def _training(profile: Profile, recipe: Recipe) -> dict[str, float]:
    base, (sequences, copies) = profile.plan.base, _held(recipe)
    tokens = recipe.batch_size * sequences * recipe.max_length
    blocks = base.layers * saved_bytes(base, profile.lora)
    if recipe.gradient_checkpointing:
        blocks = base.layers * 4 * base.hidden + saved_bytes(base, profile.lora)
    return {
        "weights": copies * _four_bit(profile),
        "adapter": adapter_values(base, profile.lora) * (4 + 4 + _optimizer_bytes(recipe)),
        "activations": tokens * (blocks + working_bytes(base)),
        "logits": 2 * base.vocabulary * base.hidden + HEAD_TILE + 8 * tokens * base.hidden,
    }


def _validation(profile: Profile, recipe: Recipe) -> dict[str, float]:
    """As in training, but nothing is saved for a backward pass."""
    sequences, copies = _held(recipe)
    tokens = VALIDATION_ROWS * sequences * recipe.max_length
    weights = {"weights": copies * _four_bit(profile), "activations": tokens * working_bytes(profile.plan.base)}
    return _training(profile, recipe) | weights


def _from_the_start(profile: Profile, smaller: Smaller) -> dict[str, float]:
    """A cut of the model whose every weight is trained: chapter 84, as `sft` says. Its recovery with an adapter holds less."""
    whole = _training(profile, profile.sft)
    values = smaller.at_most * parameters(profile.plan.base)
    return whole | {"weights": 4 * values, "adapter": (4 + _optimizer_bytes(profile.sft)) * values}


def _optimizer_bytes(recipe: Recipe) -> int:
    """A trained value."""
    return 2 if recipe.optimizer == "paged_adamw_8bit" else 8


def _rounding(profile: Profile, _) -> dict[str, float]:
    """Chapter 83: the float model, and of its widest layer what the texts say, its inverse and two factors."""
    base = profile.plan.base
    return {"weights": 4 * parameters(base), "activations": 4 * 4 * base.intermediate**2}


def _loss(profile: Profile, recipe: Recipe) -> dict[str, float]:
    tokens = COMPARED_TEXTS * recipe.max_length
    return {"weights": _four_bit(profile), "logits": 10 * tokens * profile.plan.base.vocabulary}


def _merged(profile: Profile, recipe: Recipe) -> dict[str, float]:
    base, tokens = profile.plan.base, COMPARED_TEXTS * recipe.max_length
    activations = max(tokens * working_bytes(base), 4 * tokens * base.vocabulary)
    return {"weights": 4 * parameters(base) + _four_bit(profile), "activations": activations}


def _request_batch(profile: Profile, _) -> dict[str, float]:
    base, tokens = profile.plan.base, profile.benchmarks.batch_size * profile.benchmarks.max_length
    return {"weights": 4 * parameters(base), "logits": tokens * max(8 * base.vocabulary, working_bytes(base))}


def _answering(profile: Profile, _) -> dict[str, float]:
    base = profile.plan.base
    activations = KEPT_BYTES + KEPT_BYTES // kept_bytes(base) * working_bytes(base)
    return {"weights": 4 * parameters(base), "activations": activations}


# moment -> (the sections whose stages have it, the bytes of its parts)
MOMENTS = {
    "training": (Recipe, _training),
    "validation": (Recipe, _validation),
    "loss a scheme": (Sft, _loss),
    "merged beside": (Sft | HhSft | Dpo, _merged),
    "from the start": (Smaller, _from_the_start),
    "rounding": (Bits, _rounding),
    "a request batch": (Benchmarks | Bits | Smaller, _request_batch),
    "answering": (MtBench, _answering),
}


def _four_bit(profile: Profile) -> float:
    base, quantisation = profile.plan.base, profile.quantisation
    return four_bit_bytes(base, quantisation.double) if quantisation else 4 * parameters(base)


def _held(recipe: Recipe) -> tuple[int, int]:
    """(sequences a row, 4-bit copies) of a training. SFT keeps the last scheme's model until the next is trained, and so does the
    filter's test; DPO and a reward model read two replies a pair."""
    return 2 if isinstance(recipe, Dpo | Reward) else 1, 2 if isinstance(recipe, Sft | FilterTest) else 1


def _trainings(profile: Profile) -> dict[str, Recipe]:
    """stage -> recipe, of the stages of `make reproduce` that train an adapter by one, of those that this profile runs."""
    recipes = {stage: getattr(profile, STAGES[stage].section) for stage in names("trains") if stage in profile.chapters()}
    return {stage: recipe for stage, recipe in recipes.items() if isinstance(recipe, Recipe)}


def _served_bytes(profile: Profile, role: str) -> float:
    """Weights and the full contexts of all calls in flight, when this role is served on this very GPU; else 0. Judges other than
    the first are not included."""
    plan, caller = getattr(profile.plan, role, None), getattr(profile, role, None)
    if not (plan and plan.served and caller.endpoint):
        return 0
    return plan.served.weights_gb * 1e9 + caller.endpoint.concurrency * plan.context * plan.served.kv_bytes + GIB / 2


def too_large(profile: Profile, roles: dict[str, list[str]]) -> list[str]:
    """One line for each stage whose largest moment does not fit in the GPU."""
    gpu, largest = profile.plan.gpu, {}
    for row in stage_memory(profile, roles):
        largest[row["stage"]] = max(row, largest.get(row["stage"], row), key=lambda r: r["all"])
    size = f"{gpu.memory_gib:g} GiB ({gpu.name}; name yours in plan.gpu)" if gpu else ""
    return [
        f"{stage} will not fit in {size}: {row['moment']} needs {row['all'] / GIB:.1f}"
        for stage, row in largest.items()
        if row["all"] > gpu.memory_gib * GIB
    ]


# ----------------------------------------------------------------------------------------------------------- hours and disk


def stage_hours(profile: Profile) -> dict[str, float]:
    """stage -> hours on the named GPU, at the assumed share of its peak. Calls are not included.

    Training: 2 N FLOPs a token forward, 2 N for the gradients of activations (frozen weights get none), 2 N more forward where
    checkpoints are recomputed. Validation and DPO's reference pass: 2 N. Benchmarks: 2 N in float32, at half the bfloat16 peak.
    Answers: a step reads the float32 weights once; every answer is assumed to be as long as it may be.
    """
    if not profile.plan.gpu:
        return {}
    gpu, work, stages = profile.plan.gpu, profile.plan.work, profile.chapters()
    n, flops_an_hour = parameters(profile.plan.base), gpu.tflops * 1e12 * gpu.share * 3600
    passes = {stage: _training_passes(profile, stage, recipe) for stage, recipe in _trainings(profile).items()}
    passes |= {stage: found for stage, found in _passes_apart(profile).items() if stage in stages}
    hours = {stage: found * 2 * n / flops_an_hour for stage, found in passes.items()}
    if "50_dpo" in hours:
        dpo = profile.dpo
        hours["50_dpo"] += 2 * _answer_hours(profile, dpo.sampled_prompts, dpo.max_new_tokens, work.tokens_per_row["50_dpo"])
    if "60_benchmarks" in stages:
        hours["60_benchmarks"] = len(profile.checkpoints) * work.benchmark_tokens * 2 * n / (flops_an_hour / 2)
    if "61_mt_bench" in stages:
        new_tokens = profile.mt_bench.max_new_tokens
        hours["61_mt_bench"] = len(profile.checkpoints) * 2 * _answer_hours(profile, profile.plan.questions, new_tokens, new_tokens)
    return hours


def _training_passes(profile: Profile, stage: str, recipe: Recipe) -> float:
    """Tokens through the model, each as often as it costs 2 N FLOPs."""
    sequences, _ = _held(recipe)
    work, step = profile.plan.work, recipe.batch_size * recipe.accumulation
    rows, schemes = (work.sft_rows, len(profile.sft.order)) if isinstance(recipe, Sft | FilterTest) else (recipe.rows, 1)
    steps = _steps(recipe, rows) * (schemes if recipe.steps else 1)
    validated = steps / recipe.validate_every * rows / schemes * recipe.validation_share
    referred = rows if isinstance(recipe, Dpo) else 0
    passes = _passes_a_row(recipe) * steps * step + validated + referred
    return passes * work.tokens_per_row.get(stage, recipe.max_length) * sequences


def _steps(recipe: Recipe, rows: int) -> float:
    """Of a training on these rows, of which it holds some back."""
    return recipe.steps or rows * (1 - recipe.validation_share) * recipe.epochs / (recipe.batch_size * recipe.accumulation)


def _passes_a_row(recipe: Recipe) -> int:
    return 3 if recipe.gradient_checkpointing else 2


def _passes_apart(profile: Profile) -> dict[str, float]:
    """As `_training_passes`, of the chapters beside the recipe: their trainings alone, validations and searches not included."""
    tests, reward, merge, smaller = profile.ablations, profile.reward, profile.merge, profile.smaller
    filtered, preferred = 12 + len(tests.ranks), 2 + len(tests.methods) + len(tests.dpo_rates)  # trainings of chapter 80
    steps: dict[str, list[tuple[Recipe, int]]] = {
        "80_ablations": [(profile.filter_test, filtered * tests.steps), (profile.dpo, preferred * tests.dpo_steps)],
        # the reward model; three choices of rows; nine trainings on pairs, of one to three rounds' steps
        "81_reward": [
            (reward, round(_steps(reward, profile.dpo.rows))),
            (profile.filter_test, 3 * reward.filter_steps),
            (profile.dpo, 15 * reward.round_steps),
        ],
        "82_merge": [(profile.sft, 8 * merge.steps)],  # three alone, of which one is carried on twice, and three mixed
        "84_smaller": [(profile.sft, 2 * smaller.recovery_steps)],  # recovered, and about as many FLOPs from the start
    }
    seeds = {"80_ablations": tests.seeds, "81_reward": reward.seeds, "82_merge": merge.seeds, "84_smaller": smaller.seeds}
    return {stage: seeds[stage] * sum(_step_passes(profile, *part) for part in found) for stage, found in steps.items()}


def _step_passes(profile: Profile, recipe: Recipe, steps: int) -> float:
    """Tokens of so many steps, each as often as it costs 2 N FLOPs; rows are as long as those of the recipe's own stage."""
    like = "50_dpo" if isinstance(recipe, Dpo | Reward) else "30_sft"
    tokens = profile.plan.work.tokens_per_row.get(like, recipe.max_length) * _held(recipe)[0]
    return _passes_a_row(recipe) * steps * recipe.batch_size * recipe.accumulation * tokens


def _answer_hours(profile: Profile, count: int, new_tokens: int, prompt_tokens: int) -> float:
    gpu, base = profile.plan.gpu, profile.plan.base
    batches = math.ceil(count / rows_at_once(kept_bytes(base), prompt_tokens + new_tokens, 128))
    return batches * new_tokens * 4 * parameters(base) / (gpu.gb_per_second * 1e9 * gpu.share) / 3600


def disk_gb(profile: Profile) -> dict[str, float]:
    """What is on the disk in the end, in GB: downloads, `.bin` weights kept as safetensors too, merged float32 checkpoints, and
    adapters with their optimizer, about five at a time."""
    if not profile.plan.gpu:
        return {}
    work, base, trainings = profile.plan.work, profile.plan.base, _trainings(profile)
    merged = sum(not isinstance(recipe, FilterTest) for recipe in trainings.values()) * 4 * parameters(base) / 1e9
    adapters = 5 * len(trainings) * 16 * adapter_values(base, profile.lora) / 1e9
    return {"downloads": work.downloads_gb, "safetensors of .bin": work.converted_gb, "merged": merged, "adapters": adapters}
