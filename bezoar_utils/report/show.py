"""What a chapter shows: tables, model answers, labels token by token, and figures with a caption, their data and a text for
readers who cannot see them. Every text is escaped: model text can hold anything. Source: ours.
"""

import base64
import html
import io
import math
import re
from itertools import groupby
from pathlib import Path

from ..evaluation.stats import bootstrap_mean, counted, is_measured

TEMPLATE = Path(__file__).parent / "template"


def render(template: str, **values) -> str:
    """A template from `template/`. In HTML every value is escaped, except where the template says `safe`."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATE)
    environment = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(["html.j2"]))
    environment.filters |= {"cell": _cell, "counted": counted}
    return environment.get_template(template).render(values)


def _display(markup: str) -> None:
    from IPython.display import HTML, display

    display(HTML(markup))


def _cell(value):
    """A value of a table: None is –, floats have three digits, line breaks stay."""
    from markupsafe import Markup, escape

    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return escape(str(value)).replace("\n", Markup("<br>"))


def table(rows: list[dict], columns: list[str] | None = None, caption: str = "", limit: int = 12) -> None:
    """Show the first rows as a table."""
    _display(table_html(rows, columns, caption, limit))


def table_html(rows: list[dict], columns: list[str] | None = None, caption: str = "", limit: int = 12) -> str:
    """At most `limit` rows; the caption says how many there are. A row's `n` says of how many where it has `asked` for more."""
    rows = [{k: counted(v, row.get("asked")) if k == "n" else v for k, v in row.items()} for row in rows]
    columns = columns or [c for c in (rows[0] if rows else ()) if c != "asked" or "n" not in rows[0]]
    more = f" ({limit} of {len(rows)} rows)" if len(rows) > limit else ""
    return render("table.html.j2", rows=rows[:limit], columns=columns, caption=caption, more=more)


def answers(rows: list[dict]) -> None:
    """Show one folded block per question: each model's answers in both turns, side by side, with grades and reasons."""
    _display(answers_html(rows))


def answers_html(rows: list[dict]) -> str:
    """`rows` have question_id, category, turn, question, model, answer, rating (None: failed) and reason."""
    questions: dict[int, list[dict]] = {}
    for row in rows:
        questions.setdefault(row["question_id"], []).append(row)
    return render("answers.html.j2", questions=list(questions.values()))


# role of a token -> (tag, text of the legend). The tag distinguishes roles where there is no style sheet: italic, plain,
# underlined, bold, struck through. Trained text is also in brackets, for readers who hear the page.
SIGNS = {
    "start": ("i", "BOS, context"),
    "context": ("span", "prompt, context"),
    "trained": ("u", "trained"),
    "end": ("b", "EOS, trained"),
    "padding": ("s", "padding, ignored"),
}
OPEN, CLOSE = "⟦", "⟧"


def labels(tokenizer, batch: dict, rows: int = 1) -> None:
    """Show the first rows of a collated batch, each token in the style of its role."""
    _display(labels_html(tokenizer, batch, rows))


def labels_html(tokenizer, batch: dict, rows: int = 1) -> str:
    """`batch` has `input_ids`, `labels` and `attention_mask`, each of shape (rows, tokens)."""
    legend = " · ".join(f"<{tag} class='{role}'>{meaning}</{tag}>" for role, (tag, meaning) in SIGNS.items())
    parts = [batch[name][:rows].tolist() for name in ("input_ids", "labels", "attention_mask")]
    blocks = "".join(f"<pre class='labels'>{_row_of_tokens(tokenizer, *row)}</pre>" for row in zip(*parts))
    return f"<p class='labels'>{legend} · The text that is trained is in {OPEN}brackets{CLOSE}.</p>{blocks}"


def _row_of_tokens(tokenizer, ids: list[int], row_labels: list[int], mask: list[int]) -> str:
    from ..training.labels import roles

    tokens = zip(roles(ids, row_labels, mask, tokenizer.eos_token_id), _pieces(tokenizer, ids))
    markup = ""
    for trained, run in groupby(tokens, lambda token: token[0] in ("trained", "end")):
        spans = "".join(_span(role, [text for _, text in same]) for role, same in groupby(run, lambda token: token[0]))
        markup += f"{OPEN}{spans}{CLOSE}" if trained else spans
    return markup


def _span(role: str, texts: list[str]) -> str:
    """One tag per token; of padding only the first token and the count."""
    tag = SIGNS[role][0]
    texts = [f"{texts[0]} × {len(texts)}"] if role == "padding" else texts
    return "".join(f"<{tag} class='{role}'>{html.escape(text)}</{tag}>".replace("\n", "↵\n") for text in texts)


def _pieces(tokenizer, ids: list[int]) -> list[str]:
    """The text each token adds. A token that ends inside a character adds nothing; the token that completes it adds it."""
    pieces, before = [], ""
    for number in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:number], clean_up_tokenization_spaces=False)
        complete = not text.endswith("\ufffd") or number == len(ids)
        pieces.append(text[len(before) :] if complete else "")
        before = text if complete else before
    return pieces


def figure(fig, alt: str, caption: str = "") -> None:
    """Show a matplotlib figure as an image with its alternative text, and close it."""
    _display(figure_html(fig, alt, caption))


def figure_html(fig, alt: str, caption: str = "", provenance: str = "#provenance") -> str:
    """An embedded image; below it the caption, its data as csv, and a link to the origin of its numbers."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
    title = fig.get_suptitle() or next((axis.get_title() for axis in fig.axes if axis.get_title()), "")
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "figure"
    data = figure_csv(fig).encode() if getattr(fig, "rows", ()) else b""
    plt.close(fig)
    image, csv = (base64.b64encode(content).decode() for content in (buffer.getvalue(), data))
    return render("figure.html.j2", image=image, csv=csv, name=name, alt=alt, caption=caption, provenance=provenance)


def figure_csv(fig) -> str:
    """The numbers that a chart keeps in `fig.rows`. Text that a spreadsheet would take for a formula gets a ' before it."""
    import pandas as pd

    panel = fig.axes[0].get_title()
    rows = [{key: _csv_cell(value) for key, value in ({"panel": panel} | row).items()} for row in fig.rows]
    return pd.DataFrame(rows, columns=["panel", "series", "x", "y", "low", "high"]).to_csv(index=False, lineterminator="\n")


def _csv_cell(value) -> str:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return f"{value:.10g}" if math.isfinite(value) else ""


def interval(mean: float, low: float, high: float, n=None, asked=None, digits: int = 2) -> str:
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{fewer(n, asked)}"


def fewer(n, asked) -> str:
    """What stands behind a number that rests on fewer values than were asked for."""
    return f" (n = {counted(n, asked)})" if counted(n, asked) != n else ""


def measured(stage, name: str, values: list[float | None], unit: str, asked: int | None = None) -> tuple:
    """(mean, low, high, n, asked) of values over items, noted as a headline number of the stage; intervals as its `intervals` say.

    None and NaN are values that were asked for and are missing.
    """
    known = [value for value in values if is_measured(value)]
    counts = {"n": len(known), "asked": asked or len(values)}
    interval = bootstrap_mean(known, **stage.parameters["intervals"], seed=stage.parameters["seed"])
    stage.measure(name, *interval, unit=unit, **counts)
    return *interval, *counts.values()
