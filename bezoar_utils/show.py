"""What a chapter shows: tables with model text escaped, and figures with a caption and a text for those who cannot see them."""

import base64
import html
import io


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


def figure(fig, alt: str, caption: str = "") -> None:
    """A matplotlib figure as an image with its alternative text, and closed."""
    from IPython.display import HTML, display

    display(HTML(figure_html(fig, alt, caption)))


def figure_html(fig, alt: str, caption: str = "") -> str:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=100, bbox_inches="tight", metadata={"Software": None})
    _close(fig)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(alt, quote=True)}">{text}</figure>'


def _close(fig) -> None:
    import matplotlib.pyplot as plt

    plt.close(fig)


def interval(mean: float, low: float, high: float, digits: int = 2) -> str:
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
