"""What a chapter shows, with model text escaped: tables, labels token by token, and figures with a caption and a text for
those who cannot see them."""

import base64
import html
import io
import math
import re


def table(rows: list[dict], columns: list[str] | None = None, caption: str = "", limit: int = 12) -> None:
    """The first rows as a table in the cell's output."""
    from IPython.display import HTML, display

    display(HTML(table_html(rows, columns, caption, limit)))


def table_html(rows: list[dict], columns: list[str] | None = None, caption: str = "", limit: int = 12) -> str:
    """Every value is escaped: model text can hold anything."""
    columns = columns or (list(rows[0]) if rows else [])
    head = "".join(f"<th scope='col'>{html.escape(str(c))}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(c))}</td>" for c in columns) + "</tr>" for row in rows[:limit])
    body = body or f"<tr><td colspan='{max(1, len(columns))}'>none</td></tr>"
    more = f" ({limit} of {len(rows)} rows)" if len(rows) > limit else ""
    label = f"<caption>{html.escape(caption)}{more}</caption>" if caption or more else ""
    return f"<div class='scroll'><table>{label}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return html.escape(str(value)).replace("\n", "<br>")


def answers(rows: list[dict]) -> None:
    """A folded block a question: what each model answered in both turns, side by side, with grades and the judge's words."""
    from IPython.display import HTML, display

    display(HTML(answers_html(rows)))


def answers_html(rows: list[dict]) -> str:
    """`rows` have question_id, category, turn, question, model, answer, rating (None: failed) and reason."""
    by_question: dict[int, list[dict]] = {}
    for row in rows:
        by_question.setdefault(row["question_id"], []).append(row)
    return "".join(map(_answers_to_one, by_question.values()))


def _answers_to_one(rows: list[dict]) -> str:
    models = list(dict.fromkeys(row["model"] for row in rows))
    head = "".join(f"<th scope='col'>{html.escape(model)}</th>" for model in models)
    body = ""
    for turn in sorted({row["turn"] for row in rows}):
        mine = {row["model"]: row for row in rows if row["turn"] == turn}
        question = next(iter(mine.values()))["question"]
        body += f"<tr><th scope='row'>turn {turn}</th><td colspan='{len(models)}'>{_cell(question)}</td></tr>"
        for label, shown in (("answer", _answer), ("grade", _grade)):
            body += f"<tr><th scope='row'>{label}</th>" + "".join(f"<td>{shown(mine.get(m))}</td>" for m in models) + "</tr>"
    title = html.escape(f"Question {rows[0]['question_id']} · {rows[0]['category']} · {rows[0]['question'][:100]}")
    table = f"<table><thead><tr><th scope='col'></th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<details class='answers'><summary>{title}</summary><div class='scroll'>{table}</div></details>"


def _answer(row: dict | None) -> str:
    return _cell(row and (row["answer"] or "(empty)"))


def _grade(row: dict | None) -> str:
    if row is None:
        return _cell(None)
    return "failed" if row["rating"] is None else f"<b>{_cell(row['rating'])}</b> {_cell(row['reason'])}"


# role of a token -> (tag, what the legend says). The tag tells roles apart where no style sheet is: italic, plain,
# underlined, bold, struck through; what is trained stands in brackets besides, for those who hear the page.
SIGNS = {
    "start": ("i", "BOS, context"),
    "context": ("span", "prompt, context"),
    "trained": ("u", "trained"),
    "end": ("b", "EOS, trained"),
    "padding": ("s", "padding, ignored"),
}
OPEN, CLOSE = "⟦", "⟧"


def labels(tokenizer, batch: dict, rows: int = 1) -> None:
    """The first rows of a collated batch, each token in the manner of its role."""
    from IPython.display import HTML, display

    display(HTML(labels_html(tokenizer, batch, rows)))


def labels_html(tokenizer, batch: dict, rows: int = 1) -> str:
    legend = " · ".join(f"<{tag} class='{role}'>{meaning}</{tag}>" for role, (tag, meaning) in SIGNS.items())
    parts = [batch[name][:rows].tolist() for name in ("input_ids", "labels", "attention_mask")]
    shown = "".join(f"<pre class='labels'>{_row_of_tokens(tokenizer, *row)}</pre>" for row in zip(*parts))
    return f"<p class='labels'>{legend} · What is trained stands in {OPEN}brackets{CLOSE}.</p>{shown}"


def _row_of_tokens(tokenizer, ids: list[int], row_labels: list[int], mask: list[int]) -> str:
    from itertools import groupby

    from ..training.labels import roles

    tokens = zip(roles(ids, row_labels, mask, tokenizer.eos_token_id), _pieces(tokenizer, ids))
    markup = ""
    for trained, run in groupby(tokens, lambda token: token[0] in ("trained", "end")):
        spans = "".join(_span(role, [text for _, text in some]) for role, some in groupby(run, lambda token: token[0]))
        markup += f"{OPEN}{spans}{CLOSE}" if trained else spans
    return markup


def _span(role: str, texts: list[str]) -> str:
    """A tag a token; of padding the first one and how many there are."""
    tag = SIGNS[role][0]
    texts = [f"{texts[0]} × {len(texts)}"] if role == "padding" else texts
    return "".join(f"<{tag} class='{role}'>{html.escape(text)}</{tag}>".replace("\n", "↵\n") for text in texts)


def _pieces(tokenizer, ids: list[int]) -> list[str]:
    """What each token adds to the text; a token that ends within a character adds nothing, the one that completes it does."""
    texts, said = [], ""
    for number in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:number], clean_up_tokenization_spaces=False)
        whole = not text.endswith("\ufffd") or number == len(ids)
        texts.append(text[len(said) :] if whole else "")
        said = text if whole else said
    return texts


def figure(fig, alt: str, caption: str = "") -> None:
    """A matplotlib figure as an image with its alternative text, and closed."""
    from IPython.display import HTML, display

    display(HTML(figure_html(fig, alt, caption)))


def figure_html(fig, alt: str, caption: str = "", provenance: str = "#provenance") -> str:
    """An embedded image; below it the caption, its data as csv, and a link to where its numbers come from."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
    link = _download_link(fig)
    _close(fig)
    data = base64.b64encode(buffer.getvalue()).decode()
    origin = f'<a href="{html.escape(provenance, quote=True)}">provenance</a>'
    links = ("· " if caption else "") + (f"{link} · " if link else "") + origin
    image = f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">'
    return f"<figure>{image}<figcaption>{html.escape(caption)} <span class='links'>{links}</span></figcaption></figure>"


COLUMNS = ("panel", "series", "x", "y", "low", "high")


def figure_csv(fig) -> str:
    """The numbers that a chart keeps in `fig.rows`, as csv. Text that a spreadsheet would take for a formula gets a ' before it."""
    import csv

    text, only_panel = io.StringIO(), fig.axes[0].get_title()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_cell(value) for key, value in ({"panel": only_panel} | row).items()} for row in fig.rows)
    return text.getvalue()


def _csv_cell(value) -> str:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return f"{value:.10g}" if math.isfinite(value) else ""


def _download_link(fig) -> str:
    """A link that holds the csv itself; empty for a figure without values."""
    if not getattr(fig, "rows", ()):
        return ""
    title = fig.get_suptitle() or next((axis.get_title() for axis in fig.axes if axis.get_title()), "")
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60].strip("-") or "figure"
    data = base64.b64encode(figure_csv(fig).encode()).decode()
    return f'<a download="{name}.csv" href="data:text/csv;base64,{data}">data (csv)</a>'


def _close(fig) -> None:
    import matplotlib.pyplot as plt

    plt.close(fig)


def interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
