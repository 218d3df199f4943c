"""What a choice of the recipe buys: variants against the recipe's own, on the same items, with an interval and a sentence."""

from .benchmarks import answer_found, strict_match
from .stats import bootstrap_difference, over_seeds, verdict


def reply_scores(reply: str, response: str) -> dict[str, float]:
    """How a reply to a held-back row stands to that row's response: the very same, or its answer is in it."""
    return {
        "strict_match": float(strict_match(reply, response.strip().rstrip("."))),
        "answer_found": float(answer_found(reply, answer_of(response))),
    }


def answer_of(response: str) -> str:
    """A response's answer: what follows "answer is", else its last word. Ours; good for short answers only."""
    words = response.strip().rstrip(".").rpartition("answer is ")[2].split()
    return words[-1] if words else ""


def compare(scores: list[dict], question: str, own: str, metric: str, intervals: dict, seed: int) -> list[dict]:
    """One row a variant of `question`, against the recipe's `own`, paired by item and seed: the rows of the chapter's table.

    With one seed the interval is a bootstrap over items; with more it is Student's over the seeds' mean differences, which
    also covers how a training's luck moves a result. Items without a value on either side are left out.
    """
    values = {
        (r["variant"], r["seed"], r["item"]): r["value"] for r in scores if (r["question"], r["metric"]) == (question, metric)
    }
    seeds = sorted({s for _, s, _ in values})
    rows = []
    for variant in dict.fromkeys(v for v, _, _ in values if v != own):
        pairs = {
            s: [
                (values[own, s, item], value)
                for (name, at, item), value in values.items()
                if (name, at) == (variant, s) and value is not None and values.get((own, s, item)) is not None
            ]
            for s in seeds
        }
        if len(seeds) == 1:
            before, after = zip(*pairs[seeds[0]])
            difference, low, high = bootstrap_difference(after, before, **intervals, seed=seed)
        else:
            means = [sum(b - a for a, b in some) / len(some) for some in pairs.values()]
            difference, low, high = over_seeds(means, intervals["confidence"])
        everything = [pair for some in pairs.values() for pair in some]
        rows.append(
            {
                "question": question,
                "variant": variant,
                "against": own,
                "metric": metric,
                "before": sum(a for a, _ in everything) / len(everything),
                "after": sum(b for _, b in everything) / len(everything),
                "difference": difference,
                "low": low,
                "high": high,
                "n": len(everything),
                "seeds": len(seeds),
            }
        )
    return rows


def sentence(row: dict) -> str:
    """One comparison in words; a difference that an interval does not hold up is said to be none."""
    told = {"shown": "higher", "opposite": "lower", "not shown": "not shown to differ"}[
        verdict(row["difference"], row["low"], row["high"])
    ]
    over = f"{row['seeds']} seeds" if row["seeds"] > 1 else f"{row['n']} items, one seed"
    return (
        f"{row['variant']} against {row['against']}: {row['metric'].replace('_', ' ')} {row['after']:.2f} and {row['before']:.2f}, "
        f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] over {over}: {told}."
    )
