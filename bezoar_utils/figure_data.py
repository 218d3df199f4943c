"""The numbers behind a figure, read off its artists, as csv: what a chart shows can be checked and drawn again."""

import base64
import csv
import io
import math
import re

COLUMNS = ("panel", "series", "x", "y", "low", "high")


def figure_rows(fig) -> list[dict]:
    """One row a drawn value: panel, series, x, y, and low and high where an interval is drawn.

    Lines, points, error bars, bars (named by their ticks, intervals included), outlines of histograms (x is a bin's left
    edge; the last row closes the last bin) and radar charts (x is the spoke's name). An upright or level line across a
    whole panel has only its x, or only its y. Low and high belong to y, of level intervals to x.
    """
    rows = []
    for number, axis in enumerate(fig.axes, 1):
        panel = axis.get_title() or (f"panel {number}" if len(fig.axes) > 1 else "")
        drawn = _bars(axis) + _error_bars(axis) + _outlines(axis) + _lines(axis)
        rows += [dict.fromkeys(COLUMNS, "") | {"panel": panel} | row for row in drawn]
    return rows


def figure_csv(fig) -> str:
    """The rows as csv text. Text that a spreadsheet would take for a formula gets a ' before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row[c]) for c in COLUMNS] for row in figure_rows(fig))
    return text.getvalue()


def download_link(fig) -> str:
    """A link that holds the csv itself; empty for a figure without values."""
    text = figure_csv(fig)
    if text.count("\n") < 2:
        return ""
    data = base64.b64encode(text.encode()).decode()
    return f'<a download="{_file_name(fig)}.csv" href="data:text/csv;base64,{data}">data (csv)</a>'


def _file_name(fig) -> str:
    title = fig.get_suptitle() or next((axis.get_title() for axis in fig.axes if axis.get_title()), "")
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "figure"


def _cell(value) -> str:
    if isinstance(value, float):
        return f"{value:.10g}" if math.isfinite(value) else ""
    text = str(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


# --------------------------------------------------------------------------------------------------------- kinds of artists


def _bars(axis) -> list[dict]:
    from matplotlib.container import BarContainer

    rows = []
    for bars in (c for c in axis.containers if isinstance(c, BarContainer)):
        upright = bars.orientation != "horizontal"
        intervals = _intervals(bars.errorbar, along=1 if upright else 0)
        for place, patch in enumerate(bars.patches):
            if upright:
                row = {"x": _named(axis.xaxis, patch.get_x() + patch.get_width() / 2), "y": float(patch.get_height())}
            else:
                row = {"x": float(patch.get_width()), "y": _named(axis.yaxis, patch.get_y() + patch.get_height() / 2)}
            rows.append({"series": _label(bars)} | row | (intervals[place] if place < len(intervals) else {}))
    return rows


def _error_bars(axis) -> list[dict]:
    from matplotlib.container import ErrorbarContainer

    of_bars = {id(c.errorbar) for c in axis.containers if getattr(c, "errorbar", None) is not None}
    rows = []
    for drawn in (c for c in axis.containers if isinstance(c, ErrorbarContainer) and id(c) not in of_bars):
        intervals = _intervals(drawn, along=1 if drawn.has_yerr else 0)
        points = zip(drawn.lines[0].get_xdata(), drawn.lines[0].get_ydata()) if drawn.lines[0] is not None else ()
        for place, (x, y) in enumerate(points):
            rows.append({"series": _label(drawn)} | _point(axis, x, y) | (intervals[place] if place < len(intervals) else {}))
    return rows


def _intervals(errors, along: int) -> list[dict]:
    """The ends of each error bar; `along` is 1 for upright ones, 0 for level ones."""
    if errors is None or not errors.lines[2]:
        return []
    ends = [[float(point[along]) for point in segment] for segment in errors.lines[2][0].get_segments()]
    return [{"low": min(pair), "high": max(pair)} if pair else {} for pair in ends]


def _outlines(axis) -> list[dict]:
    """Histograms drawn as an outline: the corners (left edge, height) of its polygon."""
    from matplotlib.patches import Polygon, StepPatch

    rows = []
    for patch in axis.patches:
        if isinstance(patch, StepPatch):
            heights, edges, _ = patch.get_data()
            steps = zip(edges, [*heights, 0])
        elif isinstance(patch, Polygon) and not patch.get_closed():
            steps = patch.get_xy()[1::2]
        else:
            continue
        rows += [{"series": _label(patch), "x": float(x), "y": float(y)} for x, y in steps]
    return rows


def _lines(axis) -> list[dict]:
    lines = [line for line in axis.get_lines() if id(line) not in _parts_of_errors(axis) and len(line.get_xdata())]
    single = {float(line.get_ydata()[0]) for line in lines if len(line.get_ydata()) == 1}
    spans = {float(line.get_ydata()[0]): line for line in lines if _is_span(axis, line)}
    spans = {y: line for y, line in spans.items() if y in single}
    rows = []
    for line in (some for some in lines if some not in spans.values()):
        label, points = {"series": _label(line)}, list(zip(line.get_xdata(), line.get_ydata()))
        if _in_data(axis, line) != (True, True):
            rows.append(label | _crossing(axis, line))
            continue
        if axis.name == "polar" and len(points) > 1 and points[0][1] == points[-1][1]:
            points = points[:-1]  # a radar's outline returns to where it began
        span = spans.get(float(points[0][1])) if len(points) == 1 else None
        interval = {"low": float(min(span.get_xdata())), "high": float(max(span.get_xdata()))} if span else {}
        rows += [label | _point(axis, x, y) | interval for x, y in points]
    return rows


def _parts_of_errors(axis) -> set[int]:
    from matplotlib.container import ErrorbarContainer

    errors = [c if isinstance(c, ErrorbarContainer) else getattr(c, "errorbar", None) for c in axis.containers]
    return {id(line) for some in errors if some for line in (some.lines[0], *some.lines[1])}


def _in_data(axis, line) -> tuple[bool, bool]:
    """Whether x, and y, are data; the other is a share of the panel."""
    return line.get_transform().contains_branch_seperately(axis.transData)


def _is_span(axis, line) -> bool:
    """A level line between two points without marks: an interval drawn by hand, around the single point at its height."""
    ys = line.get_ydata()
    return _in_data(axis, line) == (True, True) and len(ys) == 2 and ys[0] == ys[1] and line.get_marker() in ("None", "", None)


def _crossing(axis, line) -> dict:
    """A line across the whole panel: its place on the one axis it has a place on."""
    return {"x": float(line.get_xdata()[0])} if _in_data(axis, line)[0] else {"y": float(line.get_ydata()[0])}


def _point(axis, x, y) -> dict:
    return {"x": _named(axis.xaxis, x), "y": _named(axis.yaxis, y)}


def _named(axis, value):
    """The tick's own text where ticks were given as words, else the number."""
    from matplotlib.category import StrCategoryLocator
    from matplotlib.ticker import FixedLocator, ScalarFormatter

    locator, formatter = axis.get_major_locator(), axis.get_major_formatter()
    if isinstance(locator, (FixedLocator, StrCategoryLocator)) and not isinstance(formatter, ScalarFormatter):
        ticks = locator.tick_values(None, None)
        nearest = min(range(len(ticks)), key=lambda place: abs(ticks[place] - value), default=None)
        if nearest is not None and abs(ticks[nearest] - value) < 0.5:
            return formatter.format_ticks(ticks)[nearest]
    return float(value)


def _label(artist) -> str:
    label = str(artist.get_label() or "")
    return "" if label.startswith("_") else label
