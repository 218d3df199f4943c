"""What batching buys when a local teacher generates: one prompt at a time, plain batches, and the study's own way.

    make reproduce && .venv/bin/python benchmarks/generation.py [profile]

The finished run's teacher answers prompts of all three schemes, mixed as they come. *One at a time* is what the authors'
code does (`generate` on one prompt, sampled). *Plain batches* takes the prompts as they come, so that a batch waits for its
longest answer. The study sorts by length and goes on with half a batch once the other half has ended. Figures are tokens a
second of answers, all in one process; the ratios count, for a machine's absolute speed drifts.
"""

import random
import sys
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
WANTED = {"one at a time": 8.0, "plain batches": 1.3}
PROMPTS, SAMPLED_ALONE, BATCH = 512, 64, 128
SAMPLING = {"max_new_tokens": 64, "temperature": 0.8, "top_p": 0.95}


def main() -> None:
    sys.path.insert(0, str(HOME))
    from bezoar_utils import files, models
    from bezoar_utils.generation import count_tokens, generate

    run = HOME / "runs" / (sys.argv[1] if len(sys.argv) > 1 else "mini")
    if not (run / "12_evol_instruct" / "stage.json").exists():
        sys.exit(f"{run} has no finished data chapters: run `make reproduce` first")
    models.prepare_torch(threads=2, seed=1)
    model, tokenizer = models.load_model(run / "00_miniature" / "teacher"), models.load_tokenizer(run / "00_miniature" / "teacher")
    settings = files.read_json(run / "10_lamini" / "stage.json")["parameters"]["teacher"]
    prompts = [settings["wrapper"].format(prompt=prompt) for prompt in mixed_prompts(run, settings)]

    def speed(answer, some: list[str]) -> float:
        started = time.perf_counter()
        texts = answer(some)
        return count_tokens(tokenizer, texts) / (time.perf_counter() - started)

    speed(lambda some: generate(model, tokenizer, some, seed=1, batch_size=BATCH, **SAMPLING), prompts[:BATCH])  # warm up
    found = {
        "one at a time": speed(lambda some: plain(model, tokenizer, some, 1), prompts[:SAMPLED_ALONE]),
        "plain batches": speed(lambda some: plain(model, tokenizer, some, BATCH), prompts),
        "the study": speed(lambda some: generate(model, tokenizer, some, seed=1, batch_size=BATCH, **SAMPLING), prompts),
    }
    ratios = {name: found["the study"] / found[name] for name in WANTED}
    for name, tokens in found.items():
        print(f"{name:14} {tokens:8.0f} tokens/s" + (f"   the study is {ratios[name]:.1f}x as fast" if name in ratios else ""))
    sys.exit(any(ratios[name] < wanted for name, wanted in WANTED.items()))


def mixed_prompts(run: Path, settings: dict) -> list[str]:
    """What the three data chapters ask the teacher, in a seeded random order."""
    from bezoar_utils import evol, files, lamini, orca

    rng = random.Random(1)
    seeds = [row["instruction"] for row in files.read_table(run / "00_miniature" / "seeds.parquet")]
    written = files.read_table(run / "10_lamini" / "lamini.parquet")
    queries = files.read_table(run / "11_orca" / "orca.parquet")
    prompts = [lamini.example_guided_prompt(rng.sample(seeds, 2), 3) for _ in range(PROMPTS // 4)]
    prompts += [row["instruction"] for row in rng.sample(written, PROMPTS // 4)]
    prompts += [orca.teacher_prompt(row["system_message"], row["inputs"]) for row in rng.sample(queries, PROMPTS // 4)]
    prompts += [evol.evolve_prompt(rng.choice(seeds), "in-depth", rng.choice(sorted(evol.OPERATIONS))) for _ in range(PROMPTS // 4)]
    rng.shuffle(prompts)
    return prompts


def plain(model, tokenizer, prompts: list[str], batch_size: int) -> list[str]:
    """transformers' own sampling on batches in the prompts' order."""
    import torch

    texts, sampling = [], SAMPLING | {"do_sample": True, "top_k": 0, "pad_token_id": tokenizer.pad_token_id}
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer(prompts[start : start + batch_size], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            out = model.generate(**batch, **sampling)
        texts += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


if __name__ == "__main__":
    main()
