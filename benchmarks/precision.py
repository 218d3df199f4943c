"""What the choice of arithmetic costs on this machine: `python benchmarks/precision.py`. The last line is `precision: <ratio>`, the
time of the slowest precision over that of the one the study takes here, never under 1.

Both trainings have the miniature's shapes: the base (all weights, 8 windows of 128 tokens, two threads) and QLoRA (16 rows of 80
tokens, one thread). A CPU that computes QLoRA in float32 unpacks the 4-bit weights once (`models.load_model`).
"""

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from bezoar_utils.study.profile import load_profile
from bezoar_utils.training import models, precision

logging.getLogger("transformers").setLevel(logging.ERROR)
SHAPE = {
    "vocab_size": 1536,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
STEPS = 5


def seconds_a_step(model, rows: int, tokens: int, threads: int) -> float:
    """Median over STEPS training steps, after one that is not counted."""
    torch.set_num_threads(threads)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    ids = torch.randint(0, SHAPE["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(STEPS + 1):
        started = time.perf_counter()
        with precision.autocast(model.device.type):
            loss = model(input_ids=ids.to(model.device), labels=ids.to(model.device), use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def steps_in(dtype: str, folder: Path, profile) -> dict[str, float]:
    """Training -> seconds a step in this precision."""
    precision.use(dtype)
    torch.manual_seed(0)
    base = models.load_model(folder, profile.quantisation.model_dump())
    adapted = get_peft_model(base, models.lora_config(profile.lora.model_dump(), base))
    models.claim_adapter(adapted, {})
    return {"base": seconds_a_step(models.load_model(folder), 8, 128, 2), "QLoRA": seconds_a_step(adapted, 16, 80, 1)}


def main() -> None:
    profile, device = load_profile("mini"), precision.here()
    chosen = precision.choose(profile.precision, device)
    tried = ["float32", "bfloat16"] if device.kind == "cpu" else ["float32", "float16", *["bfloat16"] * device.bfloat16]
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder)
        times = {dtype: steps_in(dtype, Path(folder), profile) for dtype in tried}
    print(f"{device.kind}, bfloat16 {'native' if device.bfloat16 else 'not native'}; chosen: {chosen.dtype} ({chosen.why})")
    print(f"{'':10} {'base, s a step':>16} {'QLoRA, s a step':>16}")
    for dtype, row in times.items():
        print(f"{dtype:10} {row['base']:16.3f} {row['QLoRA']:16.3f}")
    total = {dtype: sum(row.values()) for dtype, row in times.items()}
    print(f"precision: {max(total.values()) / total[chosen.dtype]:.1f}")


if __name__ == "__main__":
    main()
