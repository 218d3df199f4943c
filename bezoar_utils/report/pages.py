"""The HTML report: one page a chapter and an index with the findings first, from `stage.json` and executed notebooks.

Nothing is run and no number is parsed from prose. Pages load nothing from outside; the one script they may run is our own
(`page.js`: the colours and the code switch), allowed by its hash. What models wrote was escaped when it was shown, and
every output is cleaned again here.
"""

import argparse
import base64
import hashlib
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

from ..study import files
from ..study.profile import REHEARSAL, ROOT
from ..study.stage import RUNS, finished_records
from .reference import expected_table

TEMPLATE = Path(__file__).parent / "template"
REPORTS = ROOT / "reports"
TITLES = {
    "00_miniature": "Miniature",
    "10_lamini": "LaMini",
    "11_orca": "Orca",
    "12_evol_instruct": "Evol-Instruct",
    "20_judge_filter": "Judge",
    "30_sft": "SFT",
    "40_hh_sft": "HH-RLHF SFT",
    "50_dpo": "DPO",
    "60_benchmarks": "Benchmarks",
    "61_mt_bench": "Two-turn questions",
    "70_loss_charts": "Loss charts",
    "75_filter": "Filter",
    "80_ablations": "Ablations",
    "90_findings": "Findings",
}
TAGS = """a b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img li ol p pre
s small span strong sub summary sup table tbody td tfoot th thead tr u ul""".split()


# ------------------------------------------------------------------------------------------------------------- cleaning


CSV = re.compile(r"data:text/csv;base64,[A-Za-z0-9+/]+={0,2}")
HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}


def clean(markup: str) -> str:
    """Only harmless tags and attributes survive; images only as embedded PNG, downloads only as embedded csv.

    Scripts are dropped with their content.
    """
    return _cleaned(markup, TAGS, [_paired_downloads])


def clean_prose(markup: str) -> str:
    """Cleaned; its headings can be linked to, its tables are readable by ear and on a phone."""
    return _cleaned(markup, TAGS, [_paired_downloads, _without_ids, _named_headings, _readable_tables])


def clean_output(markup: str) -> str:
    """Cleaned as prose is; besides, an output is no part of the page's outline: it has neither headings nor places to link to."""
    return _cleaned(markup, sorted(set(TAGS) - HEADINGS), [_paired_downloads, _readable_tables, _without_ids])


def _cleaned(markup: str, tags: list[str], filters: list) -> str:
    from bleach.sanitizer import Cleaner

    markup = re.sub(r"(?is)<(script|style|svg|math|iframe|object|template)\b.*?(</\1\s*>|$)", "", str(markup))
    protocols = ["http", "https", "data"]
    return Cleaner(tags=tags, attributes=_allowed, protocols=protocols, strip=True, filters=filters).clean(markup)


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag == "img":
        return name in ("alt", "width", "height") or (name == "src" and value.startswith("data:image/png;base64,"))
    if tag == "a" and name == "download":
        return bool(re.fullmatch(r"[a-z0-9-]+\.csv", value))
    if tag == "a" and name == "href":
        return value.startswith(("http://", "https://", "#")) or bool(CSV.fullmatch(value))
    if tag == "a":
        return name in ("id", "class")
    return name in ("class", "id", "scope", "colspan", "rowspan")


# Filters of the cleaned tokens, as bleach runs them: each takes the tokens and yields them.


def _paired_downloads(source):
    """Embedded csv is only ever downloaded, and nothing else is."""
    for token in source:
        if token["type"] == "StartTag" and token["name"] == "a":
            href = token["data"].get((None, "href"), "")
            if href.startswith("data:") and (None, "download") not in token["data"]:
                del token["data"][None, "href"]
            if not href.startswith("data:"):
                token["data"].pop((None, "download"), None)
        yield token


def _readable_tables(source):
    """Head cells say what they are the head of, and a wide table scrolls within the page."""
    before, wrapped, head = None, [], False
    for token in source:
        kind, name = token["type"], token.get("name")
        head = kind == "StartTag" if name == "thead" else head
        if kind == "StartTag" and name == "th":
            token["data"].setdefault((None, "scope"), "col" if head else "row")
        if kind == "StartTag" and name == "table":
            wrapped.append(not (before and before.get("name") == "div" and before["data"].get((None, "class")) == "scroll"))
            if wrapped[-1]:
                yield token | {"name": "div", "data": {(None, "class"): "scroll"}}
        yield token
        if kind == "EndTag" and name == "table" and wrapped and wrapped.pop():
            yield token | {"name": "div", "data": {}}
        before = token if kind == "StartTag" else before if kind == "SpaceCharacters" else None


def _named_headings(source):
    """An id from the heading's words. (nbconvert writes ids only together with anchor links, which a browser leaves open.)"""
    start, inside = None, []
    for token in source:
        if token["type"] == "StartTag" and token["name"] in HEADINGS:
            start, inside = token, []
        elif start and token["type"] == "EndTag" and token["name"] == start["name"]:
            words = "".join(some["data"] for some in inside if some["type"] in ("Characters", "SpaceCharacters"))
            start["data"][None, "id"] = "to-" + re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
            yield from (start, *inside, token)
            start = None
            continue
        if start is None:
            yield token
        elif token is not start:
            inside.append(token)
    if start:
        yield from (start, *inside)


def _without_ids(source):
    for token in source:
        if token["type"] in ("StartTag", "EmptyTag"):
            token["data"].pop((None, "id"), None)
        yield token


def chapter_exporter():
    """What turns an executed notebook into an HTML fragment; making one takes longer than using it."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name=TEMPLATE.name,
        extra_template_basedirs=[str(TEMPLATE.parent)],
        sanitize_html=True,
        filters={"clean_html": clean_output, "clean_prose": clean_prose},
    )
    exporter.exclude_anchor_links = True  # written as <a/>, which a browser leaves open: all that follows became a link
    return exporter


def chapter_body(notebook: Path, exporter=None) -> str:
    """An executed notebook as an HTML fragment."""
    import nbformat

    executed = nbformat.reads(without_machine_paths(notebook.read_text()), as_version=4)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = with_messages_last(cell.outputs)
    body, _ = (exporter or chapter_exporter()).from_notebook_node(executed)
    return body


def with_messages_last(outputs: list) -> list:
    """A cell's outputs, with what libraries wrote to stderr as one folded block at the end, each line once: a cell that
    trains ten times would else bury its table under a hundred folds."""
    said = [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    lines = dict.fromkeys(line for o in said for line in o.text.splitlines() if line.strip())
    if said and lines:
        said[0].text = "\n".join(lines)
    return [o for o in outputs if o not in said] + (said[:1] if lines else [])


class Headings(HTMLParser):
    """The headings of a page: `.found` lists level, id and text of each."""

    def __init__(self, markup: str):
        super().__init__()
        self.found, self.within = [], False
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        if tag in HEADINGS:
            self.found.append({"level": int(tag[1]), "id": dict(attributes).get("id"), "text": ""})
            self.within = True

    def handle_endtag(self, tag):
        self.within = self.within and tag not in HEADINGS

    def handle_data(self, data):
        if self.within:
            self.found[-1]["text"] += data


def without_machine_paths(text: str) -> str:
    """Library warnings name files by their full path, which says where somebody's home is and nothing else."""
    return re.sub(r"""/[^\s:'"\\]*/site-packages/""", "site-packages/", text).replace(f"{ROOT}/", "")


# --------------------------------------------------------------------------------------------------------------- pages


def write_report(profile: str) -> Path:
    """Render every finished stage of a profile. Raises ValueError when none is finished."""
    records = finished_records(RUNS / profile)
    if not records:
        raise ValueError(f"no finished stage in runs/{profile}: run `make reproduce PROFILE={profile}` first")
    target, exporter = REPORTS / profile, chapter_exporter()
    shutil.rmtree(target, ignore_errors=True)
    bodies = {"index.html": ("Overview", overview(profile, records))}
    for stage, record in records.items():
        body = chapter_body(RUNS / profile / stage / "chapter.ipynb", exporter) + provenance(record)
        bodies[f"{stage}.html"] = (f"{stage[:2]} {TITLES[stage]}", body)
    pages = [{"file": file, "label": label} for file, (label, _) in bodies.items()]
    newest = max(records.values(), key=lambda record: record["finished"])
    rehearsal = profile.startswith(REHEARSAL)
    made = {"rehearsal": rehearsal, "made_from": [f"runs/{profile}"], "commit": newest["git_commit"], "dirty": newest["git_dirty"]}
    for place, page in enumerate(pages):
        before, after = pages[place - 1] if place else None, pages[place + 1] if place + 1 < len(pages) else None
        body = bodies[page["file"]][1]
        write_page(target, body, page=page, pages=pages, before=before, after=after, subject=f"profile {profile}", **made)
    metrics = {f"{stage}/{name}": m for stage, record in records.items() for name, m in record["metrics"].items()}
    files.write_json(target / "metrics.json", metrics)
    files.write_json(target / "timings.json", {stage: record["wall_seconds"] for stage, record in records.items()})
    return target / "index.html"


def render(template: str, **values) -> str:
    """A template of `template/`, with every value escaped but those that are markup already."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True)
    return environment.get_template(template).render(values)


def write_page(target: Path, body: str, page: dict, **values) -> None:
    """A whole page around `body`, which is clean markup; `values` are those of `page.html.j2`.

    The page may use one style sheet and run one script, both ours, inline and named by their hash; nothing else.
    """
    from markupsafe import Markup

    style, script = (TEMPLATE / "style.css").read_text(), (TEMPLATE / "page.js").read_text()
    contents = [heading for heading in Headings(body).found if heading["level"] == 2 and heading["id"]]
    text = render(
        "page.html.j2",
        title=page["label"],
        here=page["file"],
        body=Markup(body),  # noqa: S704 cleaned, or rendered by our own templates
        contents=contents,
        style=Markup(style),  # noqa: S704 our own file
        script=Markup(script),  # noqa: S704 our own file
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        **values,
    )
    files.write_bytes(target / page["file"], text.encode())


def content_hash(text: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def overview(profile: str, records: dict) -> str:
    """Findings first, then headline charts, chapters with time and cost, what could not be reproduced, environment."""
    folder = RUNS / profile / "90_findings"
    found = "90_findings" in records
    claims = files.read_json(folder / "claims.json") if found else []
    if profile.startswith(REHEARSAL):
        claims = [claim | {"verdict": "no result"} for claim in claims]
    versions: dict[str, str] = {}
    for record in records.values():
        versions |= record["versions"]
    return render(
        "overview.html.j2",
        profile=profile,
        miniature="00_miniature" in records,
        claims=claims,
        verdicts={word: sum(c["verdict"] == word for c in claims) for word in ("shown", "not shown", "opposite")},
        figures=headline_figures(records),
        records=records,
        titles=TITLES,
        not_reproduced=files.read_json(folder / "not_reproduced.json") if found else [],
        versions=sorted(versions.items()),
    )


def headline_figures(records: dict) -> list:
    from markupsafe import Markup

    from . import charts
    from .show import figure_html

    wanted = (
        ("60_benchmarks", "mini_answers/answer_found/", "Answer found in replies to held-out questions", "share of items", 1),
        ("50_dpo", "preferred_rate_", "Preferred manner of sampled replies", "share of replies", 1),
        ("61_mt_bench", "both/", "Two-turn questions", "grade 1-10", 10),
    )
    figures = []
    for stage, prefix, title, unit, top in wanted:
        metrics = records.get(stage, {}).get("metrics", {})
        shown = {name: metrics[prefix + name] for name in charts.ORDER if prefix + name in metrics}
        if shown:
            chart = charts.bars({name: (m["value"], m["low"], m["high"]) for name, m in shown.items()}, title, unit, top)
            alt = f"{title}: " + ", ".join(f"{name} {m['value']:.2f}" for name, m in shown.items())
            n = next(iter(shown.values()))["n"]
            confidence = records[stage]["parameters"]["intervals"]["confidence"]
            caption = f"n = {n}, seed {records[stage]['seed']}; bars are means with {confidence:.0%} intervals"
            origin = f"{stage}.html#provenance"
            figures.append(Markup(figure_html(chart, alt, caption, origin)))  # noqa: S704 escaped there
    return figures


def provenance(record: dict) -> str:
    """Where a chapter's numbers come from: its `stage.json` as a folded table."""
    rows = [(key, record[key]) for key in ("finished", "git_commit", "git_dirty", "notebook", "seed", "wall_seconds")]
    for part in ("parameters", "notes", "inputs", "outputs", "code"):
        rows += [(f"{part}: {name}", value) for name, value in record.get(part, {}).items()]
    return render("provenance.html.j2", rows=rows)


# ---------------------------------------------------------------------------------------------- the committed reference


def results_table(claims: list[dict]) -> str:
    """The claims as a Markdown table for the README."""
    lines = ["| claim | test | before | after | difference [95 % interval] | verdict |", "|---|---|---|---|---|---|"]
    for c in claims:
        numbers = f"{c['before']:.2f} | {c['after']:.2f} | {c['difference']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]"
        lines.append(f"| {c['claim']} | {c['test']} (n = {c['n']}) | {numbers} | **{c['verdict']}** |")
    return "\n".join(lines)


def write_reference(profile: str) -> None:
    """Make this profile's report the committed one, and put its claims into the README and its values into REPRODUCING.md."""
    reference, made = REPORTS / "reference", REPORTS / profile
    results = results_table(files.read_json(RUNS / profile / "90_findings" / "claims.json"))
    expected = expected_table(files.read_json(made / "metrics.json"), files.read_json(made / "timings.json"))
    shutil.rmtree(reference, ignore_errors=True)
    shutil.copytree(made, reference)
    put_between(ROOT / "README.md", "results", results)
    put_between(ROOT / "REPRODUCING.md", "expected", expected)


def put_between(page: Path, mark: str, text: str) -> None:
    """Replace what stands between `<!-- mark -->` and `<!-- /mark -->`. Raises ValueError when the page lacks them."""
    before, begin, rest = page.read_text().partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not (begin and end):
        raise ValueError(f"{page.name} has no <!-- {mark} --> … <!-- /{mark} -->")
    files.write_bytes(page, f"{before}<!-- {mark} -->\n{text}\n<!-- /{mark} -->{after}".encode())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report.pages")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--if-changed", action="store_true", help="do nothing when the report is newer than every stage")
    parser.add_argument("--reference", action="store_true", help="make this report the committed one")
    options = parser.parse_args(arguments)
    index = REPORTS / options.profile / "index.html"
    stamps = [p.stat().st_mtime for p in (RUNS / options.profile).glob("*/stage.json")]
    if options.if_changed and index.exists() and stamps and index.stat().st_mtime >= max(stamps):
        print(f"nothing to do: {index.relative_to(ROOT)} is up to date")
        return 0
    try:
        if options.reference and options.profile.startswith(REHEARSAL):
            raise ValueError(f"{options.profile} is a rehearsal: it has no results to refer to")
        print(f"report: {write_report(options.profile).relative_to(ROOT)}")
        if options.reference:
            write_reference(options.profile)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
