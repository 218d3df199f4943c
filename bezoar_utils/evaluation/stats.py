"""Intervals and verdicts: no difference is reported without one."""


def bootstrap_mean(values: list[float], samples: int, confidence: float, seed: int) -> tuple[float, float, float]:
    """(mean, low, high): percentile bootstrap over items."""
    import numpy as np

    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise ValueError("an interval needs at least one value")
    draws = np.random.default_rng(seed).integers(0, data.size, (samples, data.size))
    low, high = np.quantile(data[draws].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(data.mean()), float(low), float(high)


def bootstrap_difference(after: list[float], before: list[float], samples: int, confidence: float, seed: int):
    """(mean difference, low, high) of paired values: the same items measured twice."""
    if len(after) != len(before):
        raise ValueError(f"paired values need equal length, got {len(after)} and {len(before)}")
    return bootstrap_mean([a - b for a, b in zip(after, before)], samples, confidence, seed)


def over_seeds(values: list[float], confidence: float) -> tuple[float, float, float]:
    """(mean, low, high) of one value a training: Student's interval, wide for few seeds as it must be."""
    import numpy as np
    from scipy.stats import t

    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = float(t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return mean, mean - reach, mean + reach


def agreement(first: list[str | None], second: list[str | None]) -> dict:
    """How two judges' words on the same rows agree: n (rows with a word of both), share, Cohen's kappa, flips.

    Kappa is agreement beyond chance: 1 perfect, 0 what chance gives. It is None where both gave one and the same word
    to all rows, for then chance explains everything.
    """
    from sklearn.metrics import cohen_kappa_score

    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    flips = sum(a != b for a, b in both)
    kappa = float(cohen_kappa_score(*zip(*both))) if len({word for pair in both for word in pair}) > 1 else None
    return {"n": len(both), "agree": 1 - flips / len(both) if both else None, "kappa": kappa, "flips": flips}


def verdict(difference: float, low: float, high: float, at_least: float = 0.0) -> str:
    """ "shown": the whole interval lies above 0 and the difference reaches `at_least`; "opposite": all of it lies below
    0; "not shown" otherwise."""
    if high < 0:
        return "opposite"
    return "shown" if low > 0 and difference >= at_least else "not shown"


def no_loss_verdict(difference: float, low: float, high: float, at_most: float) -> str:
    """For claims of the kind "loses at most x": shown when the whole interval lies above -x, opposite when all of it is
    below; "not shown" otherwise. (A difference near zero with a wide interval shows nothing.)"""
    if high < -at_most:
        return "opposite"
    return "shown" if low >= -at_most else "not shown"
