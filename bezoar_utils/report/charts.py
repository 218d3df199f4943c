"""The study's charts. Each function takes numbers and returns a matplotlib figure with title, units and legend.

The numbers stay with the figure as `fig.rows`, one row per value, for the csv below it: panel, series, x, y, low, high.
A training's log is a list of rows with `step` and the trainer's columns. Source: ours.
"""

import math

COLOURS = {"train": "#1f6f8b", "validation": "#d1495b", "chosen": "#2a7f3f", "rejected": "#b03a2e", "other": "#6c5b7b"}
BARS = ("#1f6f8b", "#b8c4cc", "#12475a", "#7fa7b8")  # neighbours differ in lightness
ORDER = ("base", "OpenBezoar-SFT", "OpenBezoar-HH-RLHF-SFT", "OpenBezoar-HH-RLHF-DPO")


def _axes(width=7.0, height=3.6, columns=1, lines=1, projection=None):
    import matplotlib

    matplotlib.rcdefaults()  # a user's own matplotlibrc may ask for LaTeX, or for other fonts
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    kind = {"projection": projection}
    fig, axes = plt.subplots(lines, columns, figsize=(width, height), squeeze=False, layout="constrained", subplot_kw=kind)
    fig.rows = []
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        if projection is None:
            axis.spines[["top", "right"]].set_visible(False)
    return fig, list(axes.flat)


def smooth(values: list[float], weight: float) -> list[float]:
    """Exponential moving average that starts at the first value; weight 0 leaves the values as they are."""
    smoothed = []
    for value in values:
        smoothed.append(value if not smoothed else weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def losses(logs: dict[str, list[dict]], title: str, smoothing: float = 0.0):
    """Training and validation loss over steps, one panel per training: logs[panel] is its log."""
    fig, axes = _axes(width=max(7.0, 3.4 * len(logs)), columns=len(logs))
    for axis, (name, rows) in zip(axes, logs.items()):
        axis.set(title=name, xlabel="optimizer step", ylabel="loss (nats per token)")
        _curves(axis, rows, "loss", COLOURS["train"], COLOURS["validation"], smoothing=smoothing)
    fig.suptitle(title)
    return fig


def overlaid_losses(panels: dict[str, dict[str, list[dict]]], title: str):
    """One panel per training, one colour per run: panels[training][run] is its log."""
    fig, axes = _axes(width=max(7.0, 3.6 * len(panels)), columns=len(panels))
    runs = list(dict.fromkeys(run for logs in panels.values() for run in logs))
    colours = dict(zip(runs, list(COLOURS.values()) * len(runs)))
    for axis, (name, logs) in zip(axes, panels.items()):
        axis.set(title=name if len(panels) > 1 else title, xlabel="optimizer step", ylabel="loss (nats)")
        for run, rows in logs.items():
            _curves(axis, rows, "loss", colours[run], colours[run], prefix=f"{run}, ")
    fig.suptitle(title if len(panels) > 1 else "")
    return fig


def dpo_curves(rows: list[dict], title: str):
    """Loss, reward accuracy, margin, and the log-probs of chosen and rejected replies, on training and validation pairs."""
    fig, axes = _axes(width=9.5, height=6.4, columns=2, lines=2)
    panels = [
        ("loss", "DPO loss (nats)", "loss"),
        ("reward accuracy", "share of pairs", "rewards/accuracies"),
        ("reward margin", "beta x nats", "rewards/margins"),
    ]
    for axis, (name, unit, column) in zip(axes, panels):
        axis.set(title=name, xlabel="optimizer step", ylabel=unit)
        _curves(axis, rows, column, COLOURS["train"], COLOURS["validation"])
    axes[-1].set(title="log-probability", xlabel="optimizer step", ylabel="nats per reply")
    for kind in ("chosen", "rejected"):
        _curves(axes[-1], rows, f"logps/{kind}", COLOURS[kind], COLOURS[kind], prefix=f"{kind}, ")
    fig.suptitle(title)
    return fig


def _curves(axis, rows: list[dict], column: str, training: str, validation: str, prefix: str = "", smoothing: float = 0.0):
    """Training is a thin line, each value measured on a step's batch; validation has points, each measured on the whole set.

    The figure keeps the values as they were logged, not as they were smoothed.
    """
    thin = {"lw": 1, "alpha": 0.55, "color": training, "label": f"{prefix}training"}
    pointed = {"marker": "o", "ms": 4, "lw": 1.6, "color": validation, "label": f"{prefix}validation"}
    for name, style, weight in ((column, thin, smoothing), (f"eval_{column}", pointed, 0.0)):
        points = [(r["step"], r[name]) for r in rows if r.get(name) is not None and not math.isnan(r[name])]
        if points:
            steps, values = zip(*points)
            axis.plot(steps, smooth(values, weight), **style)
        axis.figure.rows += [{"panel": axis.get_title(), "series": style["label"], "x": x, "y": y} for x, y in points]
    axis.legend(frameon=False, fontsize=8)


def _short(model: str) -> str:
    return model.replace("OpenBezoar-", "")


def bars(values: dict[str, tuple | float], title: str, unit: str, top: float | None = None):
    """One bar per name: values[name] is a mean, or (mean, low, high) with its interval."""
    return grouped_bars({"": {_short(name): value for name, value in values.items()}}, title, unit, top)


def grouped_bars(values: dict[str, dict[str, tuple | float]], title: str, unit: str, top: float | None = None):
    """One group per category, one bar per series: values[series][category] is a mean, or (mean, low, high)."""
    fig, (axis,) = _axes(width=9.5 if len(values) > 1 else 7.0)
    categories = list(dict.fromkeys(category for row in values.values() for category in row))
    width = 0.8 / max(1, len(values))
    for number, (series, row) in enumerate(values.items()):
        shift = (number - (len(values) - 1) / 2) * width
        points = [(c, *(value[:3] if isinstance(value, tuple | list) else [value])) for c, value in row.items()]
        fig.rows += [{"series": _short(series)} | dict(zip(("x", "y", "low", "high"), point)) for point in points]
        places, heights = [categories.index(c) + shift for c, *_ in points], [point[1] for point in points]
        axis.bar(places, heights, width, yerr=_reach(points), capsize=4, label=_short(series), color=BARS[number % len(BARS)])
    tilt = {"rotation": 25, "ha": "right"} if sum(map(len, categories)) > 80 else {}  # long names would run into each other
    axis.set_xticks(range(len(categories)), categories, **tilt)
    axis.set(title=title, ylabel=unit, ylim=(0, top))
    if len(values) > 1:
        axis.legend(frameon=False, ncols=2, fontsize=8)
    return fig


def _reach(points: list[tuple]) -> list | None:
    """Lengths of the error bars of (category, mean, low, high) below and above the mean; None without intervals."""
    if not points or len(points[0]) < 4:
        return None
    return [[mean - low for _, mean, low, _ in points], [high - mean for _, mean, _, high in points]]


LINES = ("-", "--", "-.", ":")  # so that models differ by more than their colour


def radar(values: dict[str, dict[str, float]], title: str, unit: str, top: float):
    """One closed line per model over the categories around a circle: values[model][category]. A missing value is a gap."""
    categories = sorted({c for row in values.values() for c in row})
    fig, (axis,) = _axes(width=7.5, height=5.5, projection="polar")
    angles = [2 * math.pi * place / len(categories) for place in range(len(categories))]
    colours = ("other", "train", "validation", "chosen")
    for (model, row), colour, line in zip(values.items(), colours, LINES, strict=False):
        radii = [row.get(c, math.nan) for c in categories]
        axis.plot([*angles, *angles[:1]], [*radii, *radii[:1]], line, marker="o", ms=3, color=COLOURS[colour], label=_short(model))
        fig.rows += [{"series": _short(model), "x": c, "y": row[c]} for c in categories if c in row]
    axis.set_theta_zero_location("N")
    axis.set_xticks(angles, categories)
    axis.tick_params("x", pad=12)
    axis.set_ylim(0, top)
    axis.set_title(title, pad=18)
    axis.legend(title=unit, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.1, 0.5))
    return fig


def differences(rows: list[dict], title: str, unit: str):
    """One line per row: a difference with its interval; left of zero it is worse. Dots are those of single runs (`each`)."""
    fig, (axis,) = _axes(width=8.5, height=1.4 + 0.32 * len(rows))
    for place, row in enumerate(reversed(rows)):
        excludes_zero = row["low"] > 0 or row["high"] < 0
        axis.plot([row["low"], row["high"]], [place, place], color=COLOURS["train"], lw=2, alpha=1.0 if excludes_zero else 0.45)
        axis.plot(row.get("each", []), [place - 0.25] * len(row.get("each", [])), ".", color=COLOURS["other"], alpha=0.6)
        axis.plot(row["difference"], place, "o", color=COLOURS["train"] if excludes_zero else "white", mec=COLOURS["train"])
    axis.axvline(0, color="#555555", lw=0.8)
    names = [r.get("name") or f"{r['variant']} against {r['against']}" for r in rows]
    axis.set_yticks(range(len(rows)), names[::-1], fontsize=8)
    fig.rows += [{"x": r["difference"], "y": name, "low": r["low"], "high": r["high"]} for name, r in zip(names, rows)]
    fig.rows += [{"series": "a run", "x": value, "y": name} for name, r in zip(names, rows) for value in r.get("each", [])]
    axis.set(title=title, xlabel=unit, ylim=(-0.6, len(rows) - 0.4))
    return fig


def scatter(
    series: dict[str, list[dict]],
    title: str,
    xlabel: str,
    ylabel: str,
    joined: tuple[str, ...] = (),
    log: bool = False,
    marks: dict[str, float] | None = None,
):
    """A point a row, at `x` and `y`, with its `name` and its interval (`low`, `high`) where it has them; the rows of a series in
    `joined` are a line, in their order. `log`: x grows by factors. `marks` are places on x of which no y is known."""
    fig, (axis,) = _axes(width=8.5, height=4.6)
    for number, (name, points) in enumerate(series.items()):
        x, y = [point["x"] for point in points], [point["y"] for point in points]
        reach = [(p.get("name", ""), p["y"], p.get("low", p["y"]), p.get("high", p["y"])) for p in points]
        style = {"color": [*COLOURS.values()][number % len(COLOURS)], "label": name}
        axis.errorbar(x, y, _reach(reach), fmt="-o" if name in joined else "o", ms=5, capsize=3, **style)
        for point in points:
            where = (point["x"], point["y"])
            axis.annotate(point.get("name", ""), where, textcoords="offset points", xytext=(6, -10), fontsize=8)
        fig.rows += [
            {"series": " ".join([name, str(p.get("name", ""))]).strip(), **{k: p[k] for k in p if k != "name"}} for p in points
        ]
    for name, x in (marks or {}).items():
        axis.axvline(x, linestyle="--", color=COLOURS["other"], label=name)
        fig.rows.append({"series": name, "x": x})
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if log:
        reach = [point["x"] for points in series.values() for point in points] + [*(marks or {}).values()]
        near = reach and max(reach) < 100 * min(reach)
        axis.set_xscale("log", base=2 if near else 10)
        if near:
            axis.xaxis.set_major_formatter("{x:g}")
    if len(series) > 1 or marks:
        axis.legend(frameon=False, fontsize=8)
    return fig


def histograms(values: dict[str, list[float]], title: str, unit: str, bins: int = 20):
    """Shares of each list's values over common bins, one outline per name."""
    fig, (axis,) = _axes()
    everything = [value for numbers in values.values() for value in numbers]
    low, high = (min(everything), max(everything)) if everything else (0, 1)
    bins = min(bins, high - low + 1)
    edges = [low + (high - low + 1) * i / bins for i in range(int(bins) + 1)]
    for name, numbers in values.items():
        if numbers:
            label, weights = f"{name} (n = {len(numbers)})", [1 / len(numbers)] * len(numbers)
            heights, _, _ = axis.hist(numbers, bins=edges, weights=weights, histtype="step", linewidth=1.6, label=label)
            fig.rows += [{"series": label, "x": edge, "y": height} for edge, height in zip(edges, [*heights, 0])]
    axis.set(title=title, xlabel=unit, ylabel="share of rows")
    if everything:
        axis.legend(frameon=False, fontsize=8)
    return fig


def lengths(values: dict[str, list[int]], max_length: int, title: str):
    """Tokens per row, with the longest row that fits here and the length at which the authors' code would cut."""
    from ..training.labels import AUTHORS_CUT

    fig = histograms(values, title, "tokens per row")
    axis = fig.axes[0]
    limits = [("max_length", max_length, "validation", "-"), ("the authors' cut", AUTHORS_CUT, "other", "--")]
    for name, limit, colour, line in limits:
        label = f"{name} ({limit})"
        axis.axvline(limit, color=COLOURS[colour], linestyle=line, label=label)
        fig.rows.append({"series": label, "x": limit})
    axis.legend(fontsize=8, edgecolor="none")  # over the lines where they meet
    return fig


def lines(panels: dict[str, dict[str, list[tuple]]], title: str, xlabel: str, log: str = ""):
    """One panel per unit, one line per series: panels[unit][series] is a list of (x, y, low, high). A series of one point is a
    level, drawn all along. The panel of the unit `log` has a logarithmic scale. Lines are drawn a little apart."""
    fig, axes = _axes(width=9.5, columns=len(panels))
    from matplotlib.ticker import LogFormatter

    for axis, (unit, values) in zip(axes, panels.items()):
        everywhere = sorted({point[0] for points in values.values() for point in points})
        apart = (everywhere[-1] - everywhere[0]) / 100
        axis.set(xlabel=xlabel, ylabel=unit, yscale="log" if unit == log else "linear")
        for number, (series, points) in enumerate(values.items()):
            x, y = [point[0] + (number - len(values) / 2) * apart for point in points], [point[1] for point in points]
            style = {"color": [*COLOURS.values()][number % len(COLOURS)], "label": series}
            if len(points) == 1:
                axis.hlines(y, everywhere[0], everywhere[-1], linestyles=LINES[1 + number % 3], lw=1.4, **style)
            else:
                axis.errorbar(x, y, _reach(points), fmt="-o", ms=4, capsize=3, **style)
            fig.rows += [{"panel": unit, "series": series} | dict(zip(("x", "y", "low", "high"), point)) for point in points]
        axis.set_xticks(everywhere, [f"{x:g}" for x in everywhere])
        if unit == log:
            axis.yaxis.set_major_formatter(LogFormatter())
            axis.yaxis.set_minor_formatter(LogFormatter())
        axis.legend(frameon=False, fontsize=8)
    fig.suptitle(title)
    return fig
