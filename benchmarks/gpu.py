"""What QLoRA training of the paper's model costs on a GPU: tokens a second, peak memory, and how much of the GPU is used.

    .venv/bin/python benchmarks/gpu.py [--peak A100] [--steps 4] [--compile] [--out table.md]

A Llama of OpenLLaMA-3B-v2's shape with random weights (speed does not depend on them; nothing is downloaded) is loaded in
NF4 with double quantisation, with the paper's adapter: r 16 on q, k and v. Rows are random tokens of 64 to 256, evenly spread.
SFT takes the loss on every token, as the authors do; DPO splits each row into a prompt and two replies. Measured are

- the paper's settings: micro-batch 4, accumulation 32, gradient checkpointing, paged 8-bit AdamW, no packing;
- fast settings, equal in rows a step: no checkpointing, larger micro-batches of rows of like length, or packs; for DPO the
  reference's log-probs computed once, their pass being charged to one epoch. Out of memory halves the micro-batch.

Tokens are real ones, padding not counted. Model-FLOPs utilisation is tokens/s x FLOPs a token / the GPU's peak. Each of the N
weights in matrix products costs 2 FLOPs a token forward and 2 backward: gradients flow through the frozen base to the
activations, not to its weights. So 4 N, plus 3 x 2 x layers x hidden x length for causal attention (forward once, backward
twice that). The adapter's share (0.2 % of N) and recomputation under checkpointing are left out. The reference's forward pass
of DPO, 2 N and a third of the attention, counts whether done in a step or beforehand.

Without a GPU everything runs at toy size on the CPU with plain AdamW in less than a minute, to show that it runs; those
figures say nothing about a GPU.
"""

import argparse
import gc
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

# dense bfloat16 with float32 accumulation, TFLOP/s, from the vendor's data sheets
PEAKS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "4090": 165.2, "A10G": 70.0}
OPENLLAMA_3B_V2 = {
    "vocab_size": 32000,
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_hidden_layers": 26,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
TOY = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
}
QUANTISATION = {"type": "nf4", "double": True, "compute_dtype": "auto"}
LORA = {"r": 16, "alpha": 16, "dropout": 0.05, "target_modules": ["q_proj", "k_proj", "v_proj"]}
WARMUP_STEPS = 2


@dataclass(frozen=True)
class Setting:
    name: str
    kind: str  # sft or dpo
    micro_batch: int
    arguments: dict = field(default_factory=dict)
    precomputed: bool = False

    @property
    def fast(self) -> bool:
        return not self.arguments["gradient_checkpointing"]


@dataclass(frozen=True)
class Machine:
    """A model on disk, its tokenizer, and what one step takes: on a GPU the paper's sizes, without one toy sizes."""

    shape: dict
    folder: Path
    tokenizer: object
    rows_a_step: int
    longest: int
    optimizer: str
    attention: str
    compiled: bool = False


CHECKPOINTED, UNCHECKPOINTED = {"gradient_checkpointing": True}, {"gradient_checkpointing": False}
BUCKETED = UNCHECKPOINTED | {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
PACKED = UNCHECKPOINTED | {"packing": True}
SETTINGS = (
    Setting("SFT, the paper's", "sft", 4, CHECKPOINTED),
    Setting("SFT, fast: by length", "sft", 32, BUCKETED),
    Setting("SFT, fast: packed", "sft", 32, PACKED),
    Setting("DPO, the paper's", "dpo", 4, CHECKPOINTED),
    Setting("DPO, fast: by length, reference once", "dpo", 16, BUCKETED, precomputed=True),
)


def main() -> None:
    options = argparse.ArgumentParser(description="QLoRA of OpenLLaMA-3B-v2's shape: speed, memory, utilisation")
    options.add_argument("--peak", help=f"the GPU's peak: one of {', '.join(PEAKS)}, or TFLOP/s; default: by the GPU's name")
    options.add_argument("--steps", type=int, default=3, help="timed optimizer steps a setting")
    options.add_argument("--compile", action="store_true", help="torch.compile the fast settings")
    options.add_argument("--out", type=Path, help="write the table there, too")
    given = options.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        machine = prepare(Path(folder), torch.cuda.is_available(), given.compile)
        results = [measure(machine, setting, given.steps) for setting in SETTINGS]
    table = markdown(results, machine, device_name(), peak_of(given.peak, device_name()))
    print(table)
    if given.out:
        given.out.write_text(table)


# --------------------------------------------------------------------------------------------------- the model and its rows


def prepare(folder: Path, on_gpu: bool, compiled: bool = False) -> Machine:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.utils import is_flash_attn_2_available

    from bezoar_utils.training import models

    quiet()
    models.prepare_torch(threads=torch.get_num_threads() if on_gpu else 1, seed=1)
    shape, tokenizer = OPENLLAMA_3B_V2 if on_gpu else TOY, bare_tokenizer()
    with torch.device("cuda" if on_gpu else "cpu"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape, tie_word_embeddings=False), dtype=torch.bfloat16)
    model.save_pretrained(folder / "model")
    del model
    attention = "flash_attention_2" if on_gpu and is_flash_attn_2_available() else "sdpa"
    optimizer = "paged_adamw_8bit" if on_gpu else "adamw_torch"
    rows_a_step, longest = (128, 256) if on_gpu else (8, 64)
    return Machine(shape, folder, tokenizer, rows_a_step, longest, optimizer, attention, compiled)


def quiet() -> None:
    import warnings

    from datasets import disable_progress_bars

    warnings.simplefilter("ignore", FutureWarning)
    disable_progress_bars()


def bare_tokenizer():
    """The trainers want one for its padding token; the rows are random token numbers."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    vocabulary = {token: number for number, token in enumerate(special.values())}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>")), **special)


def rows_for(machine: Machine, setting: Setting, steps: int) -> list[dict]:
    """Enough rows for the warm-up and the timed steps, with a quarter to spare for packs that come out uneven."""
    rng = random.Random(1)
    count = (WARMUP_STEPS + steps) * machine.rows_a_step * 5 // 4

    def tokens(length: int) -> list[int]:
        return [rng.randrange(3, machine.shape["vocab_size"]) for _ in range(length)]

    lengths = [rng.randint(machine.longest // 4, machine.longest) for _ in range(count)]
    if setting.kind == "sft":
        return [{"input_ids": ids, "labels": ids, "length": len(ids)} for ids in map(tokens, lengths)]
    sides = [(tokens(n // 2), tokens(n - n // 2), tokens(n - n // 2)) for n in lengths]
    return [{"prompt_ids": p, "chosen_ids": c, "rejected_ids": r, "length": len(p + c)} for p, c, r in sides]


def arguments_for(machine: Machine, setting: Setting, steps: int) -> dict:
    """The setting's own over what all share. Packs of the context's length take the place of the rows that fit into them."""
    import torch

    from bezoar_utils.training.precision import trainer_flags

    micro, pack = min(setting.micro_batch, machine.rows_a_step), machine.shape["max_position_embeddings"]
    accumulation, packed = machine.rows_a_step // micro, setting.arguments.get("packing", False)
    if packed:
        micro = max(1, micro * machine.longest * 5 // 8 // pack)  # rows have five eighths of the longest's tokens on average
    return setting.arguments | {
        "output_dir": str(machine.folder / "trainer"),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "max_steps": WARMUP_STEPS + steps,
        "learning_rate": 3e-4,
        "optim": machine.optimizer,
        "max_length": pack if packed else None,
        **trainer_flags(),
        "use_cpu": not torch.cuda.is_available(),
        "torch_compile": machine.compiled and setting.fast,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": 1,
    }


# --------------------------------------------------------------------------------------------------------------- measuring


def measure(machine: Machine, setting: Setting, steps: int) -> dict:
    """The setting, or the largest of it that fits into memory. Raises what torch raised when not even the smallest does."""
    import torch

    *larger, smallest = smaller_and_smaller(setting)
    for attempt in larger:
        try:
            return run(machine, attempt, steps)
        except torch.OutOfMemoryError:
            print(f"{attempt.name}: micro-batch {attempt.micro_batch} does not fit into memory", file=sys.stderr)
        forget()
    return run(machine, smallest, steps)


def smaller_and_smaller(setting: Setting):
    """Half the micro-batch, and half again; then all of that with gradient checkpointing."""
    for name, extra in ((setting.name, {}), (f"{setting.name}, checkpointed", CHECKPOINTED)):
        micro = setting.micro_batch
        while micro:
            yield replace(setting, name=name, micro_batch=micro, arguments=setting.arguments | extra)
            micro //= 2


def run(machine: Machine, setting: Setting, steps: int) -> dict:
    """Tokens a second over the timed steps, the reference's pass charged to one epoch, and peak memory in GiB."""
    import torch

    from bezoar_utils.training import models

    forget()
    rows = rows_for(machine, setting, steps)
    model = models.load_model(machine.folder / "model", QUANTISATION)
    model.set_attn_implementation(machine.attention)
    seconds_a_token = 0.0
    if setting.precomputed:
        rows, seconds_a_token = with_reference(machine, setting, model, rows)
    trainer = trainer_for(machine, setting, model, rows, steps)
    clock = clock_of(trainer)
    trainer.train()
    (began, before), (ended, after) = clock.ticks[WARMUP_STEPS - 1], clock.ticks[-1]
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    speed = 1 / ((ended - began) / (after - before) + seconds_a_token)
    flops = flops_a_token(machine.shape, [row["length"] for row in rows], reference=setting.kind == "dpo")
    batches = (trainer.args.per_device_train_batch_size, trainer.args.gradient_accumulation_steps)
    return {"name": setting.name, "batches": batches, "tokens/s": speed, "GiB": memory, "flops": flops}


def with_reference(machine: Machine, setting: Setting, model, rows: list[dict]) -> tuple[list[dict], float]:
    """(pairs with the reference's log-probs, seconds a token of that pass)."""
    from bezoar_utils.training.dpo import pair_log_probs

    began = time.perf_counter()
    values = pair_log_probs(model, machine.tokenizer, rows, setting.micro_batch)
    seconds = time.perf_counter() - began
    pairs = [row | {"ref_chosen_logps": c, "ref_rejected_logps": r} for row, (c, r) in zip(rows, values)]
    return pairs, seconds / sum(2 * row["length"] for row in rows)


def trainer_for(machine: Machine, setting: Setting, model, rows: list[dict], steps: int):
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, SFTConfig, SFTTrainer

    from bezoar_utils.training import dpo, models

    arguments = arguments_for(machine, setting, steps)
    if setting.kind == "sft":
        kind, config = SFTTrainer, SFTConfig(**arguments)
    else:
        kind, config = dpo._tokenised_dpo_trainer(), DPOConfig(**arguments, precompute_ref_log_probs=setting.precomputed)
    settings = {"processing_class": machine.tokenizer, "peft_config": models.lora_config(LORA, model)}
    trainer = kind(model=model, args=config, train_dataset=Dataset.from_list(rows), **settings)
    models.claim_adapter(trainer.model, {})
    trainer.remove_callback(PrinterCallback)
    return trainer


def clock_of(trainer):
    """A callback that notes time and tokens so far (TRL counts those that are no padding) at the end of each step."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *_, **__):
            self.ticks = []

        def on_step_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.ticks.append((time.perf_counter(), trainer._total_train_tokens))

    clock = Clock()
    trainer.add_callback(clock)
    return clock


def forget() -> None:
    """What an earlier setting left in memory, and its peak."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def flops_a_token(shape: dict, lengths: list[int], reference: bool) -> float:
    """Of training with a frozen base, as estimated at the top of this file."""
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    weights = layers * (4 * hidden**2 + 3 * hidden * shape["intermediate_size"]) + hidden * shape["vocab_size"]
    length = sum(n * n for n in lengths) / sum(lengths)  # of the row that an average token stands in
    forward, attention = 2 * weights, 2 * layers * hidden * length
    return 2 * forward + 3 * attention + (forward + attention if reference else 0)


# ------------------------------------------------------------------------------------------------------------ what is said


def device_name() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def peak_of(given: str | None, device: str) -> float | None:
    """TFLOP/s: a number, a known GPU's, or that of the GPU whose name the device has; None when unknown."""
    if given and given not in PEAKS:
        return float(given)
    return PEAKS[given] if given else next((peak for name, peak in PEAKS.items() if name in device), None)


def markdown(results: list[dict], machine: Machine, device: str, peak: float | None) -> str:
    shape = f"hidden {machine.shape['hidden_size']}, {machine.shape['num_hidden_layers']} layers"
    lines = [
        f"{device}, {shape}, rows of {machine.longest // 4} to {machine.longest} tokens, {machine.optimizer}, {machine.attention}"
        + (", fast settings compiled" if machine.compiled else "")
        + (". **Toy size: this shows that the code runs, and says nothing about a GPU.**" if machine.shape is TOY else ""),
        "",
        "| setting | micro-batch x accumulation | tokens/s | against the paper's | peak memory | GFLOP a token | utilisation |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        first = next(r for r in results if r["name"][:3] == result["name"][:3])
        memory = "–" if result["GiB"] is None else f"{result['GiB']:.1f} GiB"
        used = "–" if peak is None else f"{result['tokens/s'] * result['flops'] / peak / 1e10:.1f} %"
        cells = [
            result["name"],
            " x ".join(map(str, result["batches"])),
            f"{result['tokens/s']:.0f}",
            f"{result['tokens/s'] / first['tokens/s']:.2f}",
            memory,
            f"{result['flops'] / 1e9:.3g}",
            used,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
