import re
from html.parser import HTMLParser

import nbformat
import pytest

from bezoar_utils import files, report, show
from bezoar_utils.profile import CODE, STAGES
from bezoar_utils.report import clean

PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<a href='javascript:alert(1)'>x</a>",
    "<svg onload=alert(1)><circle/></svg>",
    "<style>body{background:url(http://evil.example/x)}</style>",
    "<iframe src='http://evil.example'></iframe>",
    "<img src='http://evil.example/x.png'>",
    "<math><mtext></mtext><script>alert(1)</script></math>",
    "<div style='background:url(http://evil.example)' onclick=alert(1)>x</div>",
    "<object data='http://evil.example'></object><embed src=x><link rel=stylesheet href=http://evil.example>",
    "$\\href{javascript:alert(1)}{x}$",
    "<details open ontoggle=alert(1)>x</details>",
    "<<script>script>alert(1)<</script>/script>",
    "<script>alert(1)",
]


class LiveParts(HTMLParser):
    """What a browser would run or load: live tags, event handlers, and addresses other than links to the web."""

    def __init__(self, markup):
        super().__init__()
        self.found = []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        if tag in ("script", "svg", "style", "iframe", "math", "object", "embed", "link", "form", "meta", "base"):
            self.found.append(tag)
        for name, value in attributes:
            loads = name in ("src", "srcset", "data", "style", "action") and not (value or "").startswith("data:image/png;base64,")
            leads = name == "href" and not re.match(r"https?://|#|[\w.]+\.html$", value or "")
            if name.startswith("on") or loads or leads:
                self.found.append(f"{tag} {name}={value}")


def live(markup):
    return LiveParts(markup).found


def test_the_measure_of_these_tests_sees_what_is_live():
    assert [p for p in PAYLOADS if not live(p)] == ["$\\href{javascript:alert(1)}{x}$"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_live_survives_cleaning(payload):
    assert not live(clean(payload))


def test_tables_headings_links_and_embedded_figures_survive_cleaning():
    kept = '<h2>T</h2><table><tbody><tr><td>a</td></tr></tbody></table><a href="https://arxiv.org/abs/1">p</a>'
    assert clean(kept) == kept
    image = '<img src="data:image/png;base64,AAAA" alt="a chart">'
    assert clean(image) == image


@pytest.mark.parametrize("payload", PAYLOADS)
def test_model_text_is_inert_wherever_a_chapter_can_show_it(payload, tmp_path):
    """Through a table, printed text, plain repr, raw HTML and Markdown outputs, and a JavaScript output."""
    html_table = show.table_html([{"answer": payload, payload: "x"}], caption=payload)
    outputs = [
        nbformat.v4.new_output("display_data", {"text/html": html_table}),
        nbformat.v4.new_output("display_data", {"text/html": payload}),
        nbformat.v4.new_output("display_data", {"text/markdown": payload}),
        nbformat.v4.new_output("display_data", {"image/svg+xml": "<svg onload=alert(1)></svg>"}),
        nbformat.v4.new_output("display_data", {"application/javascript": "alert(1)"}),
        nbformat.v4.new_output("execute_result", {"text/plain": payload}),
        nbformat.v4.new_output("stream", name="stdout", text=payload),
        nbformat.v4.new_output("stream", name="stderr", text=payload),
    ]
    cells = [nbformat.v4.new_markdown_cell(payload), nbformat.v4.new_code_cell("x = 1", outputs=outputs)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    body = report.chapter_body(tmp_path / "n.ipynb")
    assert not live(body)
    assert "<table>" in body and '<details class="code">' in body


def test_prose_after_a_heading_is_no_link(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title\n\nA text.")]), tmp_path / "n.ipynb")
    body = report.chapter_body(tmp_path / "n.ipynb")
    assert "<p>A text.</p>" in body and "Title</h1>" in body and "<a" not in body


def test_no_page_says_where_it_was_made():
    warning = "/home/me/study/.venv/lib/python3.11/site-packages/tqdm/auto.py:21: TqdmWarning"
    assert report.without_machine_paths(warning) == "site-packages/tqdm/auto.py:21: TqdmWarning"
    assert report.without_machine_paths(f"{report.ROOT}/runs/mini") == "runs/mini"


def page(tmp_path):
    pages = [{"file": "index.html", "label": "Overview"}, {"file": "a.html", "label": "A <b>"}]
    record = {"git_commit": "0" * 40, "git_dirty": False}
    report.write_page(tmp_path, "mine", pages, pages[1], "<p>body</p>", record, before=pages[0], after=None)
    return (tmp_path / "a.html").read_text()


def test_a_page_loads_nothing_and_can_run_nothing(tmp_path):
    text = page(tmp_path)
    assert "Content-Security-Policy" in text and "default-src 'none'" in text
    assert not re.search(r"<script|<link[^>]+(http|stylesheet)|src=|url\(|@import", text)


def test_a_page_has_navigation_language_and_a_way_past_it(tmp_path):
    text = page(tmp_path)
    for needed in (
        '<html lang="en">',
        'name="viewport"',
        'aria-label="Chapters"',
        'aria-current="page"',
        'class="skip"',
        "<title>",
    ):
        assert needed in text
    assert "A &lt;b&gt;" in text and "A <b>" not in text


def test_a_figure_has_a_text_for_those_who_cannot_see_it():
    from bezoar_utils import charts

    figure = charts.bars({"base": (0.5, 0.4, 0.6)}, "Title", "share")
    markup = show.figure_html(figure, 'bars of "share"', "n = 3")
    assert 'alt="bars of &quot;share&quot;"' in markup and "<figcaption>n = 3</figcaption>" in markup


def test_a_report_of_nothing_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RUNS", tmp_path)
    with pytest.raises(ValueError, match=r"no finished stage.*make reproduce PROFILE=none"):
        report.write_report("none")


def test_the_overview_shows_each_claim_with_verdict_and_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RUNS", tmp_path)
    claim = {"claim": "<b>", "verdict": "not shown", "before": 0.1, "after": 0.2, "difference": 0.1, "low": -0.1, "high": 0.3}
    claim |= {"unit": "share", "n": 9, "test": "t", "chapter": "50_dpo"}
    files.write_json(tmp_path / "mine" / "90_findings" / "claims.json", [claim])
    files.write_json(tmp_path / "mine" / "90_findings" / "not_reproduced.json", [{"what": "<i>", "why": "because"}])
    record = {
        "counts": {"tokens": 1, "calls": 2, "cost_usd": 0.5},
        "wall_seconds": 2.0,
        "work_seconds": 1.0,
        "versions": {},
        "metrics": {},
    }
    text = report.overview("mine", {"90_findings": record})
    assert "&lt;b&gt;" in text and "&lt;i&gt;" in text and "<b></td>" not in text
    assert 'class="verdict not-shown"' in text and "+0.10 [-0.10, +0.30]" in text and "<td>0.50</td>" in text


def test_the_committed_reference_is_small_complete_and_what_the_readme_says():
    reference = CODE / "reports" / "reference"
    sizes = {p.name: p.stat().st_size for p in reference.rglob("*") if p.is_file()}
    assert sum(sizes.values()) < 3_000_000
    assert {"index.html", "metrics.json", *(f"{stage}.html" for stage in STAGES)} <= set(sizes)
    metrics = files.read_json(reference / "metrics.json")
    readme = (CODE / "README.md").read_text()
    found = [m for name, m in metrics.items() if name.startswith("90_findings/")]
    assert len(found) == 8
    for m in found:
        assert f"{m['value']:+.2f} [{m['low']:+.2f}, {m['high']:+.2f}]" in readme


def test_the_committed_reference_loads_nothing_and_names_no_path_of_a_machine():
    for path in (CODE / "reports" / "reference").glob("*.html"):
        text = path.read_text()
        body = text[text.index("<main") : text.index("</main>")]
        assert not live(body), path.name
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr)/\w", text), path.name
