"""Intervals, paired comparisons and verdicts: no difference is reported without an interval."""


def bootstrap_mean(values: list[float], samples: int, confidence: float, seed: int) -> tuple[float, float, float]:
    """(mean, low, high): percentile bootstrap over items. Raises ValueError without values."""
    import numpy as np

    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("an interval needs at least one value")
    draws = np.random.default_rng(seed).integers(0, data.size, (samples, data.size))
    low, high = np.quantile(data[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(data.mean()), float(low), float(high)


def is_measured(value) -> bool:
    """None and NaN are measurements that failed."""
    return value is not None and value == value


def counted(n, asked=None):
    """How many values a number rests on, and of how many where some are missing: 200, or "190 of 200"."""
    return f"{n} of {asked}" if asked and n < asked else n


def by_question(rows: list[dict], column: str) -> dict[int, float | None]:
    """question_id -> the mean of `column` over its turns, which are not independent; None where that of a turn is missing."""
    turns: dict[int, list] = {}
    for row in rows:
        turns.setdefault(row["question_id"], []).append(row[column])
    return {question: sum(values) / len(values) if all(map(is_measured, values)) else None for question, values in turns.items()}


def pair(before: dict, after: dict) -> dict:
    """item key -> (value before, value after), in the order of `before`, of the items that have a value on both sides."""
    return {key: (value, after[key]) for key, value in before.items() if is_measured(value) and is_measured(after.get(key))}


def compare(before: dict, after: dict, samples: int, confidence: float, seed: int) -> dict:
    """The same items measured twice, each side as item key -> value: their means `before` and `after`, the mean `difference`
    with `low` and `high` (percentile bootstrap over items), and `n` pairs of the items `asked` on either side.

    Raises ValueError when no item has a value on both sides.
    """
    pairs = pair(before, after)
    difference, low, high = bootstrap_mean([new - old for old, new in pairs.values()], samples, confidence, seed)
    return {
        "before": sum(old for old, _ in pairs.values()) / len(pairs),
        "after": sum(new for _, new in pairs.values()) / len(pairs),
        "difference": difference,
        "low": low,
        "high": high,
        "n": len(pairs),
        "asked": len(before.keys() | after.keys()),
    }


def compare_tasks(before: dict, after: dict, samples: int, confidence: float, seed: int) -> dict:
    """Several tasks measured twice, each side as task -> item key -> value: the share of tasks that are better (`after`), that are
    worse (`before`), the `difference` of the two, with `low` and `high` (bootstrap over items within each task), and `p`: how
    likely so many better ones among the unequal are where each task is a coin (sign test, one-sided). `n` counts tasks.

    Raises ValueError when no task is on both sides, or one has no item that is.
    """
    import numpy as np
    from scipy.stats import binomtest

    rng, signs, drawn = np.random.default_rng(seed), [], []
    for task in (task for task in before if task in after):
        pairs = pair(before[task], after[task])
        if not pairs:
            raise ValueError(f"no item of {task} has a value on both sides")
        data = np.asarray([new - old for old, new in pairs.values()], dtype=float)
        signs.append(np.sign(data.mean()))
        drawn.append(np.sign(data[rng.integers(0, data.size, (samples, data.size))].mean(axis=1)))
    if not signs:
        raise ValueError("no task was measured on both sides")
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - confidence) / 2, (1 + confidence) / 2])
    better, worse = signs.count(1), signs.count(-1)
    return {
        "before": worse / len(signs),
        "after": better / len(signs),
        "difference": (better - worse) / len(signs),
        "low": float(low),
        "high": float(high),
        "p": float(binomtest(better, better + worse, alternative="greater").pvalue) if better + worse else 1.0,
        "n": len(signs),
        "asked": len(before.keys() | after.keys()),
    }


def over_seeds(values: list[float], confidence: float) -> tuple[float, float, float]:
    """(mean, low, high) of one value per training: Student's interval, wide for few seeds as it must be.

    Raises ValueError for fewer than two values.
    """
    import numpy as np
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two")
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    reach = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * spread / len(values) ** 0.5
    return mean, mean - reach, mean + reach


def one_more(values: list[float], confidence: float, least: float = 0.0, like: float | None = None) -> tuple[float, float, float]:
    """(mean, low, high): where the value of one more training would lie, Student's prediction interval.

    `least` is the smallest standard deviation to believe in. `like` is that of numbers like this one; its square is averaged with
    the values' own and counts as many degrees of freedom (a moderated t, Smyth 2004). Raises ValueError for fewer than two values.
    """
    import numpy as np
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError("where one more would lie needs at least two")
    mean, variance, freedom = float(np.mean(values)), float(np.var(values, ddof=1)), len(values) - 1
    if like is not None:
        variance, freedom = (variance + like**2) / 2, 2 * freedom
    spread = max(least, variance**0.5)
    reach = float(t.ppf((1 + confidence) / 2, freedom)) * spread * (1 + 1 / len(values)) ** 0.5
    return mean, mean - reach, mean + reach


def detectable(reach: float, confidence: float, seeds: int = 1, power: float = 0.8) -> float:
    """The smallest true difference that a comparison with half-width `reach` shows with probability `power`: of Student's interval
    over `seeds`, or with one seed of a normal one over items."""
    from scipy.stats import norm, t

    quantile = norm.ppf if seeds < 2 else lambda p: t.ppf(p, seeds - 1)
    return float(reach * (1 + quantile(power) / quantile((1 + confidence) / 2)))


def mean(values: list) -> float | None:
    """Of the values that were measured; None where none was."""
    known = [value for value in values if is_measured(value)]
    return sum(known) / len(known) if known else None


def at_equal_length(grades: list[float], lengths: list[float], samples: int, confidence: float, seed: int) -> dict:
    """The grade difference two models would have at equal length, if a line of grade on length differences holds.

    Least squares: grade difference = difference + slope x word difference, so `difference` is the intercept. `low` and
    `high` are its percentile bootstrap over questions. Where all length differences are equal, the slope is 0.
    Raises ValueError for lists of unequal length or none.
    """
    import numpy as np

    y, x = np.asarray(grades, dtype=float), np.asarray(lengths, dtype=float)
    if len(x) != len(y) or not len(x):
        raise ValueError(f"a line needs as many grades as lengths and at least one, got {len(y)} and {len(x)}")
    difference, slope = _line(y, x)
    draws = np.random.default_rng(seed).integers(0, len(x), (samples, len(x)))
    low, high = np.quantile(_line(y[draws], x[draws])[0], [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"difference": float(difference), "low": float(low), "high": float(high), "slope": float(slope), "n": len(x)}


def _line(y, x):
    """(intercept, slope) of least squares along the last axis."""
    import numpy as np

    across = x - x.mean(-1, keepdims=True)
    spread = (across**2).sum(-1)
    slope = (across * y).sum(-1) / np.where(spread > 0, spread, 1)
    return y.mean(-1) - slope * x.mean(-1), slope


def agreement(first: list[str | None], second: list[str | None]) -> dict:
    """How two judges' words on the same rows agree: n (rows with a word from both, of `asked`), share, Cohen's kappa, flips.

    Kappa is agreement beyond chance: 1 perfect, 0 what chance gives. It is None where both gave one and the same word
    to all rows, because then chance explains everything.
    """
    from sklearn.metrics import cohen_kappa_score

    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    flips = sum(a != b for a, b in both)
    kappa = float(cohen_kappa_score(*zip(*both))) if len({word for words in both for word in words}) > 1 else None
    share = 1 - flips / len(both) if both else None
    return {"n": len(both), "asked": len(first), "agree": share, "kappa": kappa, "flips": flips}


def reliability(gaps: list[float], edges: tuple[float, ...]) -> list[dict]:
    """Of pairs whose chosen reply has so much more reward than the rejected one: how sure a model was of its winner, by Bradley and
    Terry's 1 / (1 + exp(-gap)), against how often that was the one chosen. One row a bin of what it `predicted`, with n."""
    from itertools import pairwise

    import numpy as np

    sure = 1 / (1 + np.exp(-np.abs(np.asarray(gaps, dtype=float))))
    won = (np.sign(gaps) + 1) / 2
    rows = []
    for low, high in pairwise(edges):
        inside = (sure >= low) & ((sure < high) | (high == edges[-1]))
        values = {"predicted": float(sure[inside].mean()), "chosen": won[inside].tolist()} if inside.any() else {}
        rows.append({"bin": f"{low:g} to {high:g}", "predicted": None, "chosen": [], "n": int(inside.sum())} | values)
    return rows


def verdict(difference: float, low: float, high: float, at_least: float = 0.0) -> str:
    """ "shown": the whole interval is above 0 and the difference reaches `at_least`; "opposite": all of it is below 0;
    "not shown" otherwise."""
    if high < 0:
        return "opposite"
    return "shown" if low > 0 and difference >= at_least else "not shown"


def no_loss_verdict(difference: float, low: float, high: float, at_most: float) -> str:
    """For claims of the kind "loses at most x": "shown" when the whole interval is above -x, "opposite" when all of it is
    below; "not shown" otherwise. (A difference near zero with a wide interval shows nothing.)"""
    if high < -at_most:
        return "opposite"
    return "shown" if low >= -at_most else "not shown"
