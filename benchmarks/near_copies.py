"""What MinHashLSH saves the search for near copies, and what it misses.

    .venv/bin/python benchmarks/near_copies.py [--quick]

Texts are drawn by Zipf's law from 30,000 words; one in ten is an earlier text with some of its words replaced, from none up to
twice what the threshold allows. Each text is searched for among those before it and added unless it is a near copy, as
chapter 20 does it. Two kinds of text: instructions (15 words on average, ROUGE-L 0.7, as `paper`), whole rows (100 words, 0.9,
as `released`). First the exact search and this one on the same 20,000 texts, then this one alone on 100,000. CPU seconds.
`--quick` takes a tenth of the texts and lets MinHashLSH begin earlier.

The ratio of the last line is the exact search's time over this one's for 20,000 whole rows. Exit code 1 below a recall of 0.99.
"""

import random
import sys
import time
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bezoar_utils.data.filters import EXACT_UP_TO, NearCopies

VOCABULARY = [f"w{number}" for number in range(30_000)]
ZIPF = list(accumulate(1 / (number + 2.7) for number in range(len(VOCABULARY))))
KINDS = (("instructions", 15, 0.7), ("whole rows", 100, 0.9))  # name, mean words, threshold


def make_texts(n: int, mean_words: int, threshold: float, rng: random.Random) -> list[str]:
    texts: list[list[str]] = []
    for _ in range(n):
        if texts and rng.random() < 0.1:
            replaced = rng.uniform(0, 2 * (1 - threshold))
            text = [rng.choice(VOCABULARY) if rng.random() < replaced else word for word in rng.choice(texts)]
        else:
            text = rng.choices(VOCABULARY, cum_weights=ZIPF, k=max(3, int(rng.lognormvariate(0, 0.5) * mean_words)))
        texts.append(text)
    return [" ".join(text) for text in texts]


def search(texts: list[str], threshold: float, exact_up_to: int) -> tuple[float, list[bool]]:
    """(CPU seconds, whether each text is a near copy of one that was added before it)."""
    near, answers, start = NearCopies(threshold, exact_up_to=exact_up_to), [], time.process_time()
    for text in texts:
        answers.append(near.holds(text))
        if not answers[-1]:
            near.add(text)
    return time.process_time() - start, answers


def main() -> int:
    share = 10 if "--quick" in sys.argv[1:] else 1
    exact_up_to, recalls, ratio = EXACT_UP_TO // share, [], 0.0
    for name, mean_words, threshold in KINDS:
        texts = make_texts(100_000 // share, mean_words, threshold, random.Random(0))
        first = texts[: len(texts) // 5]
        exact_s, exact = search(first, threshold, len(first))
        ours_s, ours = search(first, threshold, exact_up_to)
        recalls.append(sum(a and b for a, b in zip(exact, ours)) / sum(exact))
        print(f"{name}, {len(first)}: exact {exact_s:.1f} s, this one {ours_s:.1f} s, recall of {sum(exact)} {recalls[-1]:.4f}")
        print(f"{name}, {len(texts)}: this one {search(texts, threshold, exact_up_to)[0]:.1f} s", flush=True)
        ratio = exact_s / ours_s
    print(f"near_copies: {ratio:.1f}")
    return 0 if min(recalls) >= 0.99 else 1


if __name__ == "__main__":
    sys.exit(main())
