"""Pages: nothing that runs or loads survives, whoever wrote it, and every text does."""

import html
import io
import re
from types import SimpleNamespace

import pandas as pd
from bleach._vendor import html5lib
from bs4 import BeautifulSoup
from hypothesis import example, given
from hypothesis import strategies as st

from bezoar_utils.report import clean, show

# what bleach and HTML leave as it is: no control characters, no half characters
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=40)
NAUGHTY = st.sampled_from(
    [
        "<script>alert(1)</script>",
        "<script",
        "<SCRIPT/x>",
        "</script>",
        "<img src=x onerror=alert(1)>",
        "<svg/onload=alert(1)>",
        "<a href='javascript:alert(1)'>",
        "<a href=' java\nscript:alert(1)'>",
        "<a href='&#106;avascript:alert(1)'>",
        "<a href='data:text/html,x'>",
        "<iframe src=//x>",
        "<object data=x>",
        "<math><mi//xlink:href='data:x'>",
        "<style>@import 'x'</style>",
        "<p style='background:url(x)'>",
        "<base href=//x>",
        "<meta http-equiv=refresh>",
        "<form action=x><input>",
        "<template>",
        "<noscript>",
        "<textarea>",
        "<xmp>",
        "<!--",
        "-->",
        "<![CDATA[",
        "]]>",
        "<?x",
        "<b",
        "<table><td>",
        "</p>",
        "<details ontoggle=x open>",
        "<b class='",
        '"><u>',
        "'",
        '"',
        "`",
        "&lt;script&gt;",
        "&#60;script>",
        "&amp;",
        "&",
        "<a id=x class=y>",
        "<h2 id=provenance>",
        "<img src='data:image/png;base64,AAAA' alt=''>",
        "<img src=//x srcset=//y>",
        "<video src=x>",
        "<link rel=stylesheet href=x>",
        "\0",
        "\x0b",
        "\r",
        "\ufeff",
        "\u2028",
    ]
)
SOUP = st.lists(st.one_of(NAUGHTY, NAUGHTY, TEXT), max_size=8).map("".join)
URLS = ("href", "src", "action", "formaction", "data", "xlink:href", "poster", "srcset", "background")


def live(markup: str) -> list[str]:
    """What in a page could run or load something, as a browser reads it: by the rules of HTML 5, not by those of our own parser."""
    found = []
    for tag in html5lib.parseFragment(markup, namespaceHTMLElements=False).iter():
        if tag.tag not in {*clean.INLINE, *clean.HEADINGS, "DOCUMENT_FRAGMENT"}:
            found.append(str(tag.tag))
        for name, value in tag.attrib.items():
            harmless = re.match(r"https?://|#|data:image/png;base64,|data:text/csv;base64,", value)
            if name.startswith("on") or name == "style" or (name in URLS and not harmless):
                found.append(f"{tag.tag} {name}={value}")
    return found


def text_of(markup: str) -> str:
    return BeautifulSoup(markup, "html.parser").get_text()


@given(SOUP, st.sampled_from([clean.clean_prose, clean.clean_output]))
@example("<b class='\"><script>alert(1)</script>", clean.clean_output)
def test_nothing_live_survives_cleaning(markup, way):
    cleaned = way(markup)
    assert not live(cleaned)
    assert not live(way(cleaned)) and text_of(way(cleaned)) == text_of(cleaned)
    cleaned.encode()


@given(
    st.lists(st.one_of(TEXT, NAUGHTY), max_size=5).map("".join),
    st.sampled_from([clean.clean_prose, clean.clean_output]),
)
@example("\ud83d", clean.clean_output)
def test_escaped_text_survives_cleaning_as_it_is(text, way):
    text = re.sub(r"[\0-\x1f]", " ", text)
    cleaned = way(f"<pre>{html.escape(text)}</pre>")
    assert text_of(cleaned) == text.encode(errors="replace").decode()
    assert not live(cleaned)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["a", "<b>", "rating"]), st.one_of(SOUP, st.none(), st.floats(), st.integers()), min_size=1
        ),
        max_size=3,
    ),
    SOUP,
)
def test_a_table_shows_every_cell_as_text(rows, caption):
    shown = show.table_html(rows, caption=caption)
    for markup in (shown, clean.clean_output(shown)):
        assert not live(markup) and len(BeautifulSoup(markup, "html.parser").find_all("table")) == 1
    cells = [row[key] for row in rows for key in rows[0] if isinstance(row.get(key), str)]
    assert all(visible(cell) in visible(text_of(shown)) for cell in cells)


def visible(text: str) -> str:
    return re.sub(r"\s|[\0-\x1f]", "", text)


@given(SOUP, SOUP, SOUP, SOUP, st.one_of(st.none(), st.integers(1, 10)))
def test_answers_of_models_are_shown_as_text(question, model, answer, reason, rating):
    row = {
        "question_id": 1,
        "category": "x",
        "turn": 1,
        "question": question,
        "model": model,
        "answer": answer,
        "rating": rating,
        "reason": reason,
    }
    shown = show.answers_html([row])
    for markup in (shown, clean.clean_output(shown)):
        assert not live(markup)
    assert visible(answer) in visible(text_of(shown)) and visible(question) in visible(text_of(shown))


@given(st.lists(st.tuples(TEXT, st.floats(), st.floats()), min_size=1, max_size=3))
def test_the_numbers_of_a_chart_are_one_row_each_and_no_formula(points):
    axis = SimpleNamespace(get_title=lambda: "=1+1")
    rows = [{"series": name, "x": x, "y": y, "low": y, "high": y} for name, x, y in points]
    lines = pd.read_csv(io.StringIO(show.figure_csv(SimpleNamespace(axes=[axis], rows=rows))), dtype=str, keep_default_na=False)
    assert len(lines) == len(points)
    assert not any(str(cell).startswith(("=", "+", "@")) for cell in [*lines["panel"], *lines["series"]])
