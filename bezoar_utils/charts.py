"""The study's charts. Each function takes rows and returns a matplotlib figure with title, units and legend."""

COLOURS = {"train": "#1f6f8b", "validation": "#d1495b", "chosen": "#2a7f3f", "rejected": "#b03a2e", "other": "#6c5b7b"}
ORDER = ("base", "OpenBezoar-SFT", "OpenBezoar-HH-RLHF-SFT", "OpenBezoar-HH-RLHF-DPO")


def _axes(width=7.0, height=3.6, columns=1):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return fig, axes[0]


def smooth(values: list[float], weight: float) -> list[float]:
    """Exponential moving average started at the first value; weight 0 leaves the values as they are."""
    smoothed = []
    for value in values:
        smoothed.append(value if not smoothed else weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def losses(logs: dict[str, list[dict]], title: str, smoothing: float = 0.0):
    """Training and validation loss over steps, one panel a stage of training."""
    fig, axes = _axes(width=max(7.0, 3.4 * len(logs)), columns=len(logs))
    for axis, (name, rows) in zip(axes, logs.items()):
        train = [(r["step"], r["loss"]) for r in rows if _number(r.get("loss"))]
        valid = [(r["step"], r["eval_loss"]) for r in rows if _number(r.get("eval_loss"))]
        axis.plot([s for s, _ in train], smooth([v for _, v in train], smoothing), color=COLOURS["train"], label="training")
        axis.plot(*zip(*valid), "o-", ms=4, color=COLOURS["validation"], label="validation")
        axis.set(title=name, xlabel="optimizer step", ylabel="loss (nats per token)")
        axis.legend(frameon=False)
    fig.suptitle(title)
    return fig


def dpo_curves(rows: list[dict], title: str):
    """Loss, reward accuracy, margin, and the log-probs of chosen and rejected replies, on training and validation pairs."""
    fig, axes = _axes(width=13, columns=4)
    panels = [
        ("loss", "DPO loss (nats)", [("loss", "train"), ("eval_loss", "validation")]),
        ("reward accuracy", "share of pairs", [("rewards/accuracies", "train"), ("eval_rewards/accuracies", "validation")]),
        ("reward margin", "beta x nats", [("rewards/margins", "train"), ("eval_rewards/margins", "validation")]),
        ("log-probability", "nats per reply (validation)", [("eval_logps/chosen", "chosen"), ("eval_logps/rejected", "rejected")]),
    ]
    for axis, (name, unit, lines) in zip(axes, panels):
        for column, label in lines:
            points = [(r["step"], r[column]) for r in rows if _number(r.get(column))]
            if points:
                axis.plot(*zip(*points), "o-", ms=3, color=COLOURS[label], label=label)
        axis.set(title=name, xlabel="optimizer step", ylabel=unit)
        axis.legend(frameon=False)
    fig.suptitle(title)
    return fig


def bars(values: dict[str, tuple[float, float, float]], title: str, unit: str, top: float | None = None):
    """Means with their intervals, one bar a name."""
    fig, (axis,) = _axes(height=3.4)
    names = list(values)
    means = [values[n][0] for n in names]
    errors = [[values[n][0] - values[n][1] for n in names], [values[n][2] - values[n][0] for n in names]]
    axis.bar(range(len(names)), means, yerr=errors, capsize=4, color=COLOURS["train"], alpha=0.85)
    axis.set_xticks(range(len(names)), [n.replace("OpenBezoar-", "") for n in names])
    axis.set(title=title, ylabel=unit, ylim=(0, top))
    return fig


def grouped_bars(values: dict[str, dict[str, float]], title: str, unit: str, top: float | None = None):
    """One group a category, one bar a model: values[model][category]."""
    fig, (axis,) = _axes(width=9.5)
    categories = sorted({c for row in values.values() for c in row})
    width = 0.8 / len(values)
    shades = ("#b8c4cc", "#7fa7b8", "#3d7f96", "#12475a")
    for number, (model, row) in enumerate(values.items()):
        places = [i + (number - (len(values) - 1) / 2) * width for i in range(len(categories))]
        axis.bar(
            places, [row.get(c, 0) for c in categories], width, label=model.replace("OpenBezoar-", ""), color=shades[number % 4]
        )
    axis.set_xticks(range(len(categories)), categories)
    axis.set(title=title, ylabel=unit, ylim=(0, top))
    axis.legend(frameon=False, ncols=2, fontsize=8)
    return fig


def histograms(values: dict[str, list[float]], title: str, unit: str, bins: int = 20):
    """Shares of each list's values, one outline a name, over common bins."""
    fig, (axis,) = _axes()
    everything = [v for some in values.values() for v in some]
    low, high = (min(everything), max(everything)) if everything else (0, 1)
    edges = [low + (high - low + 1) * i / min(bins, high - low + 1) for i in range(int(min(bins, high - low + 1)) + 1)]
    for name, some in values.items():
        if some:
            weights = [1 / len(some)] * len(some)
            axis.hist(some, bins=edges, weights=weights, histtype="step", linewidth=1.6, label=f"{name} (n = {len(some)})")
    axis.set(title=title, xlabel=unit, ylabel="share of rows")
    if everything:
        axis.legend(frameon=False, fontsize=8)
    return fig


def _number(value) -> bool:
    return value is not None and value == value
