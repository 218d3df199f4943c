"""The report's pages: nothing a model wrote is live, every page can be read, heard and walked through."""

import re
from itertools import pairwise

import nbformat
import pytest
from bs4 import BeautifulSoup
from small_report import chart, claim, rendered, write_run

from bezoar_utils.report import pages, show
from bezoar_utils.report.clean import clean_output, clean_prose
from bezoar_utils.study import files, pace
from bezoar_utils.study.profile import CODE, load_profile
from bezoar_utils.study.stage import Stage

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
    "<a href='data:text/html;base64,PHNjcmlwdD4=' download='x.csv'>x</a>",
    "<a href='data:text/csv;base64,YQ=='>opened, not downloaded</a>",
    "<a href='data:text/csv,a' download='x.csv'>not in base64</a>",
    "<a href='data:text/csv;base64,YQ==' download='x.html'>a page by its name</a>",
    "<a href='http://evil.example/x.exe' download='x.csv'>x</a>",
    "<a href='DATA:TEXT/HTML,<script>alert(1)</script>' download='x.csv'>x</a>",
    "<img src='data:text/csv;base64,YQ=='>",
]
CSV = "data:text/csv;base64,"


LIVE_TAGS = ("script", "svg", "style", "iframe", "math", "object", "embed", "link", "form", "meta", "base")
LOADING = ("src", "srcset", "data", "style", "action")


def live(markup):
    """What a browser would run or load: live tags, event handlers, addresses other than links to the web, and downloads
    other than embedded csv."""
    parts = []
    for tag in BeautifulSoup(markup, "html.parser").find_all(True):
        values, href = tag.attrs, tag.get("href", "")
        csv = re.fullmatch(rf"{CSV}[A-Za-z0-9+/=]+", href) and re.fullmatch(r"[a-z0-9-]+\.csv", values.get("download", ""))
        csv = csv and tag.name == "a"
        parts += [tag.name] if tag.name in LIVE_TAGS else []
        parts += [name for name in values if name.startswith("on")]
        parts += [name for name in LOADING if name in values and not values[name].startswith("data:image/png;base64,")]
        parts += [href] if "href" in values and not csv and not re.match(r"https?://|#|[\w.]+\.html(#\w+)?$", href) else []
        parts += ["download"] if "download" in values and not csv else []
    return parts


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_live_survives_cleaning(payload):
    assert live(payload) or payload.startswith("$"), "without cleaning it would be live"
    assert not live(clean_output(payload))


@pytest.mark.parametrize(
    "markup",
    [
        '<h2 id="to-t">T</h2><div class="scroll"><table><tbody><tr><td>a</td></tr></tbody></table></div>',
        '<a href="https://arxiv.org/abs/1">p</a>',
        '<img alt="a chart" src="data:image/png;base64,AAAA"/>',
        f'<a download="answers-found.csv" href="{CSV}YSxiCg==">data (csv)</a>',
    ],
)
def test_tables_headings_links_and_embedded_figures_survive_cleaning(markup):
    assert clean_prose(markup) == markup


@pytest.mark.parametrize("attribute", ["href", "download"])
def test_a_download_lives_or_dies_as_a_pair(attribute):
    whole = {"href": f"{CSV}YQ==", "download": "x.csv"}
    half = {attribute: whole[attribute]}
    assert clean_output("<a {}>x</a>".format(" ".join(f'{k}="{v}"' for k, v in half.items()))) == "<a>x</a>"


def test_an_output_has_no_heading_and_no_id():
    assert clean_output("<h1 id='main'>T</h1><p id='provenance'>p</p>") == "T<p>p</p>"


def test_a_heading_of_the_prose_can_be_linked_to_by_its_words():
    heading = "What <b>we</b> see &amp; say</h2>"
    assert clean_prose(f"<h2 id='main'>{heading}") == f'<h2 id="to-what-we-see-say">{heading}'
    assert not live(clean_prose("<h2>x<script>alert(1)</script>"))


def test_head_cells_say_what_they_head_and_a_table_scrolls_alone():
    table = "<table><thead><tr><th>a</th></tr></thead><tbody><tr><th>b</th><td>1</td></tr></tbody></table>"
    for cleaned in (clean_output(table), clean_output(f'<div class="scroll">{table}</div>'), clean_prose(table)):
        assert cleaned.startswith('<div class="scroll"><table>') and cleaned.endswith("</table></div>")
        assert '<th scope="col">a</th>' in cleaned and '<th scope="row">b</th>' in cleaned and cleaned.count("<div") == 1


def body_of(folder, *cells):
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "n.ipynb")
    return pages.chapter_body(folder / "n.ipynb")


@pytest.mark.parametrize("payload", PAYLOADS)
def test_model_text_is_inert_wherever_a_chapter_can_show_it(payload, tmp_path):
    """Through a table, printed text, plain repr, raw HTML and Markdown outputs, and a JavaScript output."""
    html_table = show.table_html([{"answer": payload, payload: "x"}], caption=payload)
    assert not live(html_table), "inert in JupyterLab too, where nothing is cleaned"
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
    body = body_of(tmp_path, nbformat.v4.new_markdown_cell(payload), nbformat.v4.new_code_cell("x = 1", outputs=outputs))
    assert not live(body)
    assert "<table>" in body and '<details class="code">' in body and '<details class="messages">' in body


def test_messages_of_libraries_are_one_folded_block_after_the_cells_own_outputs(tmp_path):
    outputs = [nbformat.v4.new_output("stream", name="stderr", text=text) for text in ("loading\n", "loading\n<b>careful</b>\n")]
    outputs.insert(1, nbformat.v4.new_output("stream", name="stdout", text="our own line"))
    body = body_of(tmp_path, nbformat.v4.new_code_cell("x", outputs=outputs))
    assert body.count("Messages of the libraries") == 1 and body.count("loading") == 1 and "careful" in body
    assert body.index("our own line") < body.index("Messages of the libraries")


def test_prose_after_a_heading_is_not_a_link(tmp_path):
    body = body_of(tmp_path, nbformat.v4.new_markdown_cell("# Title\n\nA text."))
    assert "<p>A text.</p>" in body and '<h1 id="to-title">Title</h1>' in body and "<a" not in body


def test_no_page_says_where_it_was_made():
    warning = "/home/me/study/.venv/lib/python3.11/site-packages/tqdm/auto.py:21: TqdmWarning"
    assert pages.without_machine_paths(warning) == "site-packages/tqdm/auto.py:21: TqdmWarning"
    assert pages.without_machine_paths(f"{pages.ROOT}/runs/mini") == "runs/mini"


def page(tmp_path):
    menu = [{"file": "index.html", "label": "Overview"}, {"file": "a.html", "label": "A <b>"}]
    made = {"made_from": ["runs/mine"], "commit": "0" * 40, "dirty": False, "subject": "profile mine"}
    pages.write_page(tmp_path, "<p>body</p>", page=menu[1], pages=menu, before=menu[0], after=None, **made)
    return (tmp_path / "a.html").read_text()


def test_a_page_loads_nothing_and_runs_nothing_but_our_own_script(tmp_path):
    text = page(tmp_path)
    assert not re.search(r"<link[^>]+(http|stylesheet)|src=|url\(|@import", text)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    (script,), (style,) = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for tag in ("script", "style"))
    assert text.count("<script") == 1 and script == (show.TEMPLATE / "page.js").read_text()
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "script-src": f"'{pages.content_hash(script)}'",
        "style-src": f"'{pages.content_hash(style)}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<body")


def test_our_script_makes_no_markup_and_no_request():
    script = (show.TEMPLATE / "page.js").read_text()
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval|Function\(|fetch|XMLHttp|import|createElement", script)


def test_a_page_has_navigation_language_and_a_way_past_it(tmp_path):
    text = page(tmp_path)
    for part in ('<html lang="en">', 'name="viewport"', 'aria-label="Chapters"', 'aria-current="page"', 'class="skip"', "<title>"):
        assert part in text
    assert "A &lt;b&gt;" in text and "A <b>" not in text


def test_a_figure_has_a_text_for_those_who_cannot_see_it():
    markup = show.figure_html(chart(), 'bars of "share"', "n = 3")
    figure = BeautifulSoup(markup, "html.parser").figure
    assert figure.img["alt"] == 'bars of "share"' and figure.figcaption.get_text().startswith("n = 3 ")


def test_a_report_of_nothing_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RUNS", tmp_path)
    with pytest.raises(ValueError, match=r"no finished stage.*make reproduce PROFILE=none"):
        pages.write_report("none")


@pytest.fixture
def stage(tmp_path):
    return Stage("50_dpo", "mine", {"seed": 1, "intervals": {"samples": 50, "confidence": 0.9}}, tmp_path, reads=None)


def test_a_number_that_rests_on_fewer_values_than_were_asked_for_says_so(stage):
    number = show.measured(stage, "rate", [1.0, None, 0.0, float("nan")], "share of replies")
    assert (stage.metrics["rate"]["value"], stage.metrics["rate"]["n"], stage.metrics["rate"]["asked"]) == (0.5, 2, 4)
    assert show.interval(*number).endswith("] (n = 2 of 4)")
    row = BeautifulSoup(show.table_html([{"rate": 0.5, **stage.metrics["rate"]}]), "html.parser")
    assert "2 of 4" in [cell.get_text() for cell in row.find_all("td")] and "asked" not in row.get_text()


def test_a_number_that_rests_on_all_values_says_nothing(stage):
    number = show.measured(stage, "rate", [1.0, 0.0], "share of replies")
    assert show.interval(*number).endswith("]") and "of" not in show.table_html([{"n": 2, "asked": 2}, {"n": 2}])
    stage.measure("rows", 7, unit="rows")
    assert stage.metrics["rows"] == {"value": 7, "low": None, "high": None, "n": None, "unit": "rows"}


def test_a_chart_on_page_one_says_of_how_many_replies_its_bars_are(stage):
    for name, replies in (("OpenBezoar-HH-RLHF-SFT", [1.0, 0.0]), ("OpenBezoar-HH-RLHF-DPO", [1.0, None])):
        show.measured(stage, f"preferred_rate_{name}", replies, "share of replies")
    record = {"metrics": stage.metrics, "parameters": stage.parameters, "seed": 1}
    (figure,) = pages.headline_figures({"50_dpo": record})
    assert "n = 2 and 1 of 2" in figure


def test_the_overview_shows_each_claim_with_verdict_and_interval(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "RUNS", tmp_path)
    write_run(tmp_path, "mine", stages=("90_findings",))
    numbers = {"difference": 0.1, "low": -0.1, "high": 0.3, "verdict": "not shown"}
    files.write_json(tmp_path / "mine" / "90_findings" / "claims.json", [claim(claim="<b>", **numbers, asked=12)])
    files.write_json(tmp_path / "mine" / "90_findings" / "not_reproduced.json", [{"what": "<i>", "why": "because"}])
    record = files.read_json(tmp_path / "mine" / "90_findings" / "stage.json")
    record |= {"counts": {"tokens": 1, "calls": 2, "cost_usd": 0.5}, "notes": {"unanswered": {"500": 3, "too long": 1}}}
    text = pages.overview("mine", {"90_findings": record})
    assert "no answer" in text and "3 (500), 1 (too long)" in text
    assert "&lt;b&gt;" in text and "&lt;i&gt;" in text and "<b></td>" not in text
    assert 'class="verdict not-shown"' in text and "+0.10 [-0.10, +0.30]" in text and "<td>0.50</td>" in text
    assert "<td>9 of 12</td>" in text and "(n = 9 of 12)" in pages.results_table([claim(asked=12)], 0.9)


def test_a_claim_stands_beside_what_other_seeds_say_of_it_where_there_are_replicates(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "REPORTS", tmp_path)
    monkeypatch.setattr(pace, "REPORTS", tmp_path)
    row = {"id": claim()["id"], "runs": 8, "mean": 0.25, "low": 0.125, "high": 0.375, "verdict": "shown"}
    files.write_json(tmp_path / "mine-replicates" / "replicates.json", {"profile": "mine", "claims": [row]})
    assert pages.over_seeds("mine") == {}, "what is committed is chosen by `make reference`"
    pages.commit_replicates("mine")
    assert pages.over_seeds("other") == {}
    seeds = pages.over_seeds("mine")
    table = pages.results_table([claim()], 0.95, seeds)
    assert "over 8 fresh seeds" in table and "+0.25 [+0.12, +0.38] **shown**" in table
    columns = {line.count("|") for line in table.splitlines()}
    assert len(columns) == 1, "a row has as many cells as the head"
    assert "fresh seeds" not in pages.results_table([claim()], 0.95)


COMMITTED = [("mini", 300_000, 11), ("smol", 230_000, 8)]  # bytes a chapter at most, claims


@pytest.mark.parametrize("profile, bytes_at_most, claims", [row for row in COMMITTED if pace.committed(row[0]).exists()])
def test_a_committed_report_is_small_complete_and_what_the_readme_says(profile, bytes_at_most, claims):
    folder = pace.committed(profile)
    sizes = {p.name: p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    chapters = {f"{stage}.html" for stage in load_profile(profile).chapters()}
    assert sum(sizes.values()) <= bytes_at_most * len(chapters)
    assert {"index.html", "metrics.json", "claims.json"} | chapters <= set(sizes)
    metrics = files.read_json(folder / "metrics.json")
    readme = (CODE / "README.md").read_text()
    findings = [m for name, m in metrics.items() if name.startswith("90_findings/")]
    assert len(findings) == claims
    for m in findings:
        assert f"{m['value']:+.2f} [{m['low']:+.2f}, {m['high']:+.2f}]" in readme


def test_a_committed_report_loads_nothing_and_names_no_path_of_a_machine():
    for path in (CODE / "reports").glob("*reference/*.html"):
        text = path.read_text()
        body = text[text.index("<main") : text.index("</main>")]
        assert not live(body), path.name
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|usr)/\w", text), path.name


def collated(tokenizer, prompt, responses):
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from bezoar_utils.training.labels import sft_example

    examples = [sft_example(tokenizer, prompt, response, 256, "completion") for response in responses]
    return DataCollatorForLanguageModeling(tokenizer.pad_token_id)(examples)


def tokens(markup):
    """(role, text) of each token of the `pre` blocks."""
    return [(tag["class"][0], tag.get_text()) for block in BeautifulSoup(markup, "html.parser")("pre") for tag in block(True)]


@pytest.mark.parametrize("response", ["Kalo", "naïve 中🙂\n\nyes", "a <b>\u202e"])
def test_labels_are_shown_token_by_token_and_survive_the_report(tokenizer, response):
    prompt = "### Instruction:\nWho?\n\n### Response:"
    markup = clean_output(show.labels_html(tokenizer, collated(tokenizer, prompt, [response, "long " * 40]), rows=1))
    text = {role: "".join(t for r, t in tokens(markup) if r == role).replace("↵\n", "\n") for role in show.SIGNS}
    assert (text["context"], text["trained"]) == (prompt, response)
    assert text["start"] == tokenizer.bos_token and text["end"] == tokenizer.eos_token
    assert text["padding"].startswith(f"{tokenizer.pad_token} × ") and int(text["padding"].split("× ")[1]) > 1
    outside = [str(node) for node in BeautifulSoup(markup, "html.parser").pre.find_all(string=True, recursive=False)]
    assert "".join(outside) == "⟦⟧", "one pair of brackets around the trained text"
    assert all(f'class="{role}"' in markup.split("<pre")[0] for role in show.SIGNS), "a legend for every role"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_token_is_markup(tokenizer, payload):
    markup = show.labels_html(tokenizer, collated(tokenizer, payload, [payload]))
    assert not live(markup) and not live(clean_output(markup))
    assert "".join(text for role, text in tokens(clean_output(markup)) if role == "trained") == payload


def test_the_style_sheet_knows_every_role():
    style = (show.TEMPLATE / "style.css").read_text()
    assert all(re.search(rf"\.labels \.{role}\b", style) for role in show.SIGNS)
    assert re.search(r"--mark: light-dark\(", style), "for light and for dark"


def luminance(colour):
    """WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_controls_contrast_with_their_background_as_wcag_asks(scheme):
    style = (show.TEMPLATE / "style.css").read_text()
    pairs = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", style))
    assert set(re.findall(r"var\(--(\w+)\)", style)) == set(pairs), "every colour in use is one of these"
    light = {name: luminance(pair.split(", ")[scheme]) for name, pair in pairs.items()}
    text = [(ink, on) for ink in ("ink", "soft", "accent", "good", "bad", "plain") for on in ("paper", "card")]
    text += [("ink", "line"), ("ink", "mark"), ("paper", "accent"), ("card", "good")]
    limits = dict.fromkeys(text, 4.5) | {("edge", "paper"): 3, ("edge", "card"): 3}
    contrast = {pair: (max(light[n] for n in pair) + 0.05) / (min(light[n] for n in pair) + 0.05) for pair in limits}
    assert not {pair: value for pair, value in contrast.items() if value < limits[pair]}


def assert_headings_are_in_order(page):
    """One first-level heading at the start, and no level is skipped on the way down."""
    levels = [int(tag.name[1]) for tag in page.find_all(re.compile("^h[1-6]$"))]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(deeper <= above + 1 for above, deeper in pairwise(levels))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return rendered(tmp_path_factory.mktemp("small"))


def test_every_page_can_be_heard(small):
    for path in small.glob("*.html"):
        page = BeautifulSoup(path.read_text(), "html.parser")
        assert_headings_are_in_order(page)
        assert {cell.get("scope") for cell in page("th")} <= {"col", "row"} and page("th"), path.name
        assert all(image.get("alt") for image in page("img")), path.name
        ids = [tag["id"] for tag in page.find_all(id=True)]
        links = {link["href"][1:] for link in page.find_all(href=re.compile("^#"))}
        assert len(set(ids)) == len(ids) and links <= set(ids), path.name


def test_every_chapter_has_contents_neighbours_and_provenance(small):
    text = (small / "30_sft.html").read_text()
    contents = text[text.index('<nav class="contents"') : text.index("<main")]
    for part in ("to-training-loss", "to-what-we-see", "provenance"):
        assert f'<li><a href="#{part}">' in contents and f'<h2 id="{part}">' in text
    assert "Training &amp; loss" in contents and "not ours" not in contents
    assert '<a rel="prev" href="10_lamini.html">' in text and '<a rel="next" href="90_findings.html">' in text
    assert not live(text[text.index("<main") : text.index("</main>")])


def test_the_overview_leads_to_every_stages_provenance(small):
    text = (small / "index.html").read_text()
    for stage in ("10_lamini", "30_sft", "90_findings"):
        assert f'href="{stage}.html#provenance"' in text


@pytest.mark.parametrize("path", sorted((CODE / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_chapters_headings_are_in_order_and_each_once(path):
    page = BeautifulSoup(pages.chapter_body(path), "html.parser")
    assert_headings_are_in_order(page)
    ids = [tag["id"] for tag in page.find_all(id=True)]
    assert len(set(ids)) == len(ids)


def test_each_number_of_a_chapter_stands_among_those_of_the_replicates():
    spread = {"30_sft/loss": {"unit": "nats", "values": {"a": 1.0, "b": 3.0, "c": 2.0}, "mean": 2.0, "low": 0.5, "high": 3.5}}
    metrics = {
        "loss": {"value": 2.5, "unit": "nats"},
        "new": {"value": 1.0, "unit": "nats"},
        "lost": {"value": None, "unit": "nats"},
    }
    page = pages.among_replicates("30_sft", {"metrics": metrics}, spread, 0.95)
    assert "2 of 3" in page and "0.5 to 3.5" in page and "1 to 3" in page and "95 %" in page
    assert "not this one" not in page and "new" not in page
    metrics["loss"]["value"] = 4.0
    assert "not this one" in pages.among_replicates("30_sft", {"metrics": metrics}, spread, 0.95)
    assert pages.among_replicates("40_hh_sft", {"metrics": metrics}, spread, 0.95) == ""
