"""What a choice of the recipe buys: variants against the recipe's own, on the same items, with an interval and a sentence."""

from . import stats
from .benchmarks import answer_found, reply_matches, strict_match

MAIN = ("strict_match", "wishes_met", "preferred", "right", "acc_norm", "acc")  # a question is decided by the first that it has


def reply_scores(reply: str, response: str) -> dict[str, float]:
    """A reply to a held-back row beside that row's response: is it exactly the same, and does it contain its answer?"""
    return {
        "strict_match": float(strict_match(reply, response.strip().rstrip("."))),
        "answer_found": float(answer_found(reply, answer_of(response))),
    }


def outcomes(row: dict, verdict) -> dict[str, float | None]:
    """Of a sampled reply: whether people would prefer its manner, by the judge (None where it gave no verdict), and where the
    question's answer is known whether it is exact."""
    exact = {"exact": float(reply_matches(row["reply"], row["answer"]))} if row["answer"] else {}
    return {"preferred": float(verdict.preferred) if verdict else None} | exact


def answer_of(response: str) -> str:
    """A response's answer: what follows "answer is", else its last word. Ours; good for short answers only."""
    words = response.strip().rstrip(".").rpartition("answer is ")[2].split()
    return words[-1] if words else ""


def compare(scores: list[dict], question: str, own: str, metric: str, intervals: dict, seed: int) -> list[dict]:
    """One row per variant of `question`, against the recipe's `own`, paired by seed and item: `stats.compare`'s numbers.

    With one seed the interval is a bootstrap over items; with more it is Student's over the seeds' mean differences, which
    also covers how a training's luck moves a result. Items without a value on a side are left out: `n` of `asked`.
    """
    values: dict[str, dict] = {}
    for row in scores:
        if (row["question"], row["metric"]) == (question, metric):
            values.setdefault(row["variant"], {})[row["seed"], row["item"]] = row["value"]
    seeds = sorted({at for variant in values.values() for at, _ in variant})
    rows = []
    for variant in (name for name in values if name != own):
        numbers = stats.compare(values[own], values[variant], **intervals, seed=seed)
        if len(seeds) > 1:
            means = [_mean_difference(values[own], values[variant], at) for at in seeds]
            numbers |= zip(("difference", "low", "high"), stats.over_seeds(means, intervals["confidence"]))
        rows.append({"question": question, "variant": variant, "against": own, "metric": metric} | numbers | {"seeds": len(seeds)})
    return rows


def _mean_difference(before: dict, after: dict, at: int) -> float:
    differences = [new - old for (seed, _), (old, new) in stats.pair(before, after).items() if seed == at]
    return sum(differences) / len(differences)


def sentence(row: dict) -> str:
    """One comparison in words. A difference whose interval includes 0 is called not shown."""
    outcome = {"shown": "higher", "opposite": "lower", "not shown": "not shown to differ"}[
        stats.verdict(row["difference"], row["low"], row["high"])
    ]
    over = f"{row['seeds']} seeds" if row["seeds"] > 1 else f"{stats.counted(row['n'], row['asked'])} items, one seed"
    return (
        f"{row['variant']} against {row['against']}: {row['metric'].replace('_', ' ')} {row['after']:.2f} and {row['before']:.2f}, "
        f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] over {over}: {outcome}."
    )
