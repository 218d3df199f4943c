"""What batching buys when a local teacher generates: one prompt at a time, plain batches, and the study's own way.

    make reproduce && .venv/bin/python benchmarks/generation.py [profile]

The finished run's teacher answers LaMini's instructions, the largest of the study's writing jobs. The miniature's own answers
end after some eight tokens, a real teacher's do not: its end of text is made rarer here, so that answers are some twice as
long as their prompts and very uneven. *One at a time* is what the authors' code does (`generate` on one prompt, sampled).
*Plain batches* takes the prompts as they come, so that a batch waits for its longest answer. The study sorts by length and
lets rows leave the batch when they have ended. Figures are tokens a second of answers. The ways take turns and each turn
gives a ratio, for a machine's speed drifts by a third within seconds; the median is the result, and the benchmark fails when
no turn reaches what is wanted. Printed beside them, without a bound: prompts of all three
schemes with the miniature's short answers, where most of the time goes into reading prompts.
"""

import random
import sys
import time
from pathlib import Path
from statistics import median

HOME = Path(__file__).resolve().parent.parent
WANTED = {"one at a time": 8.0, "plain batches": 1.3}
PROMPTS, SAMPLED_ALONE, BATCH, TURNS = 512, 32, 128, 5
SAMPLING = {"max_new_tokens": 64, "temperature": 0.8, "top_p": 0.95}
RARER_END = -7.0  # added to the end of text's logit


def main() -> None:
    sys.path.insert(0, str(HOME))
    from bezoar_utils.study import files
    from bezoar_utils.training import models, tokens

    run = HOME / "runs" / (sys.argv[1] if len(sys.argv) > 1 else "mini")
    if not (run / "12_evol_instruct" / "stage.json").exists():
        sys.exit(f"{run} has no finished data chapters: run `make reproduce` first")
    models.prepare_torch(threads=2, seed=1)
    model, tokenizer = models.load_model(run / "00_miniature" / "teacher"), tokens.load_tokenizer(run / "00_miniature" / "teacher")
    wrapper = files.read_json(run / "10_lamini" / "stage.json")["parameters"]["teacher"]["wrapper"]
    compare("the miniature's own answers", model, tokenizer, [wrapper.format(prompt=asked) for asked in mixed_prompts(run)])
    model.generation_config.sequence_bias = [[[tokenizer.eos_token_id], RARER_END]]
    written = [row["instruction"] for row in files.read_table(run / "10_lamini" / "lamini.parquet")]
    asked = random.Random(1).choices(written, k=PROMPTS)
    ratios = compare("answers with a rarer end", model, tokenizer, [wrapper.format(prompt=prompt) for prompt in asked])
    sys.exit(any(ratios[name] < wanted for name, wanted in WANTED.items()))


def count_tokens(tokenizer, texts: list[str]) -> int:
    return sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else 0


def compare(what: str, model, tokenizer, prompts: list[str]) -> dict[str, float]:
    """How many times as fast the study's way is as each other one, in the best of `TURNS` turns; all of them are printed."""
    from bezoar_utils.training.generation import generate

    ways = {
        "one at a time": lambda: plain(model, tokenizer, prompts[:SAMPLED_ALONE], 1),
        "plain batches": lambda: plain(model, tokenizer, prompts, BATCH),
        "the study": lambda: generate(model, tokenizer, prompts, seed=1, batch_size=BATCH, **SAMPLING),
    }
    turns: list[dict[str, float]] = []
    for _ in range(TURNS):
        speeds = {}
        for name, answer in ways.items():
            started = time.perf_counter()
            texts = answer()
            speeds[name] = count_tokens(tokenizer, texts) / (time.perf_counter() - started)
        turns.append(speeds)
    read, written = (count_tokens(tokenizer, some) / len(some) for some in (prompts, texts))
    print(f"{what}: {read:.0f} tokens a prompt, {written:.0f} an answer, {TURNS} turns")
    found = {name: sorted(speeds["the study"] / speeds[name] for speeds in turns) for name in WANTED}
    for name in ways:
        told = f"  {name:14} {median(speeds[name] for speeds in turns):6.0f} tokens/s"
        if name in WANTED:
            told += f"   the study is {median(found[name]):.1f}x as fast ({found[name][0]:.1f} to {found[name][-1]:.1f})"
        print(told)
    return {name: ratios[-1] for name, ratios in found.items()}


def mixed_prompts(run: Path) -> list[str]:
    """What the three data chapters ask the teacher, in a seeded random order."""
    from bezoar_utils.schemes import evol, lamini, orca
    from bezoar_utils.study import files

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
