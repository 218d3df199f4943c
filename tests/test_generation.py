import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from bezoar_utils.training import generation, models
from bezoar_utils.training.generation import by_length, continue_batch, generate, row_sampler, row_seeds, texts_of

PROMPTS = [
    "a long prompt about many things and more",
    "b",
    "c c c",
    "d d",
    "Where?",
    "one two three four five six",
    "x",
    "Name it.",
]
NEW = 16


@pytest.fixture(scope="module")
def lively(model_folder, tokenizer):
    """The small model with sharper logits, and an end of text that comes at every twentieth token or so."""
    model = models.load_model(model_folder)
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.eos_token_id] = 3.7
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: 6 * logits + bias)
    return model


@pytest.fixture
def rounds(lively, monkeypatch):
    """The batch sizes of every call of the library's own `generate`."""
    sizes, plain = [], lively.generate
    monkeypatch.setattr(lively, "generate", lambda **told: (sizes.append(len(told["input_ids"])), plain(**told))[1])
    return sizes


def generate_batch(model, tokenizer, prompts: list[str], seeds: list[int], **sampling) -> list[str]:
    return texts_of(tokenizer, continue_batch(model, tokenizer, prompts, seeds, **sampling))


def sampled(model, tokenizer, prompts: list[str], seeds: list[int], temperature: float = 0.8, top_p: float = 0.95) -> list[str]:
    return generate_batch(model, tokenizer, prompts, seeds, max_new_tokens=NEW, temperature=temperature, top_p=top_p)


def test_greedy_is_what_transformers_itself_says_prompt_by_prompt(lively, tokenizer):
    expected = []
    for prompt in PROMPTS:
        told = tokenizer(prompt, return_tensors="pt")
        out = lively.generate(**told, max_new_tokens=NEW, do_sample=False)[0, told["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(out, skip_special_tokens=True))
    assert generate_batch(lively, tokenizer, PROMPTS, [0] * len(PROMPTS), max_new_tokens=NEW) == expected
    assert generate(lively, tokenizer, PROMPTS, seed=3, batch_size=3, max_new_tokens=NEW) == expected
    assert len(set(expected)) > 5


def test_a_sampled_text_depends_on_its_own_prompt_and_seed_alone(lively, tokenizer):
    rows = [(prompt, seed) for seed in range(4) for prompt in PROMPTS]
    alone = {row: sampled(lively, tokenizer, [row[0]], [row[1]])[0] for row in rows}
    assert len(set(alone.values())) > 20
    rng = random.Random(9)
    for size in (2, 5, 32):
        rng.shuffle(rows)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            texts = sampled(lively, tokenizer, [prompt for prompt, _ in some], [seed for _, seed in some])
            assert texts == [alone[row] for row in some]


def test_rows_that_have_ended_leave_the_batch_and_the_others_say_the_same(lively, tokenizer, rounds):
    prompts, seeds = PROMPTS * 4, list(range(32))
    texts = sampled(lively, tokenizer, prompts, seeds)
    assert rounds[0] == 32 and len(rounds) > 1 and all(4 * after <= 3 * before for before, after in pairwise(rounds))
    assert texts == [sampled(lively, tokenizer, [prompt], [seed])[0] for prompt, seed in zip(prompts, seeds)]
    lengths = Counter(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts)
    assert min(lengths) < NEW / 2 and max(lengths) >= NEW - 2


def test_no_row_is_longer_than_it_may_be_and_its_end_is_its_last_token(lively, tokenizer):
    rows = continue_batch(lively, tokenizer, PROMPTS * 4, list(range(32)), max_new_tokens=NEW, temperature=0.8, top_p=0.95)
    assert all(0 < len(ids) <= NEW and tokenizer.eos_token_id not in ids[:-1] for ids in rows)
    assert {ids[-1] == tokenizer.eos_token_id for ids in rows} == {True, False}


def test_any_of_several_ends_ends_a_row(lively, tokenizer, monkeypatch):
    rows = continue_batch(lively, tokenizer, PROMPTS, [0] * 8, max_new_tokens=NEW)
    other = Counter(token for ids in rows for token in ids[1:-1]).most_common(1)[0][0]
    monkeypatch.setattr(tokenizer, "stop_ids", [tokenizer.eos_token_id, other], raising=False)
    ended = continue_batch(lively, tokenizer, PROMPTS, [0] * 8, max_new_tokens=NEW)
    assert ended == [ids[: ids.index(other) + 1] if other in ids else ids for ids in rows] != rows


def test_prompts_may_be_ids_already(lively, tokenizer):
    ids = tokenizer(PROMPTS)["input_ids"]
    settings = {"seed": 1, "max_new_tokens": NEW}
    assert generate(lively, tokenizer, ids, **settings) == generate(lively, tokenizer, PROMPTS, **settings)


def test_texts_come_in_the_order_of_the_prompts_and_progress_is_told(lively, tokenizer):
    seen = []
    settings = {"seed": 1, "max_new_tokens": NEW, "temperature": 0.8, "top_p": 0.95}
    texts = generate(lively, tokenizer, PROMPTS, batch_size=3, progress=lambda *told: seen.append(told), **settings)
    assert [told for told in seen if told[0] in (3, 6, 8)] and seen == sorted(seen) and seen[-1] == (8, 8)
    assert len(set(seen)) > 3, "inside a batch too, so that a long one is not a silence"
    assert texts == sampled(lively, tokenizer, PROMPTS, row_seeds(1, "generate", len(PROMPTS)))
    assert texts != generate(lively, tokenizer, PROMPTS, **settings | {"seed": 2})
    assert generate(lively, tokenizer, [], **settings) == []


# ----------------------------------------------------------------------------------------------------------- the sampler


def reference(logits: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """Nucleus sampling's probabilities as transformers has them."""
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    scores = TopPLogitsWarper(top_p)(None, TemperatureLogitsWarper(temperature)(None, logits[None].double()))
    return scores.softmax(-1)[0].numpy()


def drawn(logits: torch.Tensor, n: int, temperature: float, top_p: float, **other) -> np.ndarray:
    sample = row_sampler(list(range(n)), 1, 1, temperature, top_p, **other)
    scores = sample(torch.zeros(n, 1, dtype=torch.long), logits.expand(n, -1))
    assert torch.equal((scores == 0).sum(-1), torch.ones(n)) and torch.equal(torch.isinf(scores).sum(-1), (scores != 0).sum(-1))
    return np.bincount(scores.argmax(-1).numpy(), minlength=len(logits))


@pytest.mark.parametrize(
    ("vocabulary", "spread", "temperature", "top_p", "nucleus"),
    [
        (40, 1.0, 0.8, 0.95, range(10, 35)),
        (40, 0.8, 0.8, 0.3, range(2, 8)),
        (40, 1.0, 1.5, 1.0, range(40, 41)),
        (300, 0.5, 0.8, 0.95, range(200, 300)),  # more tokens than are sorted first
        (300, 3.0, 0.8, 0.95, range(10, 64)),
    ],
)
def test_tokens_are_drawn_as_often_as_transformers_would_draw_them(vocabulary, spread, temperature, top_p, nucleus):
    from scipy.stats import chisquare

    n = 30_000
    logits = spread * torch.randn(vocabulary, generator=torch.Generator().manual_seed(5))
    probs = reference(logits, temperature, top_p)
    inside = probs > 0
    assert inside.sum() in nucleus
    counts = drawn(logits, n, temperature, top_p)
    assert counts[~inside].sum() == 0
    often = probs * n >= 5
    seen = [*counts[often], counts[~often].sum()] if (inside & ~often).any() else counts[often]
    expected = [*(probs * n)[often], (probs * n)[~often].sum()] if (inside & ~often).any() else (probs * n)[often]
    assert chisquare(seen, np.array(expected) * n / sum(expected)).pvalue > 1e-3


def test_how_many_tokens_are_sorted_first_changes_nothing():
    logits = 1.5 * torch.randn(300, generator=torch.Generator().manual_seed(6))
    first = drawn(logits, 2000, 0.8, 0.9, likely=64)
    assert all(np.array_equal(first, drawn(logits, 2000, 0.8, 0.9, likely=likely)) for likely in (1, 8, 300, 1000))


def test_each_step_has_a_number_of_its_own_and_the_paddings_width_does_not_matter():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(7))
    texts = []
    for start in (3, 10):
        sample = row_sampler([1, 2, 3, 4], start, 30, 1.0, 1.0)
        texts.append([sample(torch.zeros(4, start + step, dtype=torch.long), logits).argmax(-1).tolist() for step in range(30)])
    assert texts[0] == texts[1] and all(len(set(row)) > 5 for row in zip(*texts[0]))


# ----------------------------------------------------------------------------------------------------------- small parts


def test_seeds_have_31_bits_and_are_others_for_another_study_another_text_and_another_row():
    seeds = row_seeds(42, "responses", 2000)
    assert all(0 <= seed < 2**31 for seed in seeds) and max(seeds) > 2**30
    assert len({*seeds, *row_seeds(42, "prompts", 2000), *row_seeds(43, "responses", 2000)}) > 5990
    assert row_seeds(42, "responses", 10) == seeds[:10]


def test_batches_hold_every_prompt_once_and_like_lengths_together():
    prompts = ["x" * n for n in (9, 1, 5, 2, 7, 3, 8)]
    batches = by_length(prompts, 3)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert [[len(prompts[i]) for i in batch] for batch in batches] == [[1, 2, 3], [5, 7, 8], [9]]
    assert by_length([], 3) == []


def test_the_largest_number_still_draws_a_token_of_the_nucleus(monkeypatch):
    class AlmostOne:
        def random(self, n):
            return np.full(n, np.nextafter(1.0, 0.0))

    monkeypatch.setattr(np.random, "default_rng", lambda seed: AlmostOne())
    logits = torch.randn(100, generator=torch.Generator().manual_seed(8))
    for top_p in (0.5, 1.0):
        inside = reference(logits, 0.8, top_p) > 0
        assert inside[generation_token(logits, top_p)]


def generation_token(logits: torch.Tensor, top_p: float) -> int:
    sample = generation.row_sampler([0], 1, 1, 0.8, top_p)
    return int(sample(torch.zeros(1, 1, dtype=torch.long), logits[None]).argmax())
