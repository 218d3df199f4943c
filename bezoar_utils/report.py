"""The HTML report: one page a chapter and an index with the findings first, from `stage.json` and executed notebooks.

Nothing is run and no number is parsed from prose. Pages load nothing from outside and contain no script; what models
wrote was escaped when it was shown, and every output is cleaned again here.
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from . import files
from .profile import ROOT, STAGES
from .reference import expected_table
from .stage import RUNS

TEMPLATE = Path(__file__).parent / "report_template"
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


def clean(markup: str) -> str:
    """Only harmless tags and attributes survive; images only as embedded PNG. Scripts are dropped with their content."""
    import bleach

    markup = re.sub(r"(?is)<(script|style|svg|math|iframe|object|template)\b.*?(</\1\s*>|$)", "", str(markup))
    return bleach.clean(markup, tags=TAGS, attributes=_allowed, protocols=["http", "https", "data"], strip=True)


def _allowed(tag: str, name: str, value: str) -> bool:
    if tag == "img":
        return name in ("alt", "width", "height") or (name == "src" and value.startswith("data:image/png;base64,"))
    if tag == "a":
        return name in ("id", "class") or (name == "href" and value.startswith(("http://", "https://", "#")))
    return name in ("class", "id", "scope", "colspan", "rowspan")


def chapter_body(notebook: Path) -> str:
    """An executed notebook as an HTML fragment."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name=TEMPLATE.name,
        extra_template_basedirs=[str(TEMPLATE.parent)],
        sanitize_html=True,
        filters={"clean_html": clean},
    )
    exporter.exclude_anchor_links = True  # written as <a/>, which a browser leaves open: all that follows became a link
    body, _ = exporter.from_notebook_node(nbformat.reads(without_machine_paths(notebook.read_text()), as_version=4))
    return body


def without_machine_paths(text: str) -> str:
    """Library warnings name files by their full path, which says where somebody's home is and nothing else."""
    return re.sub(r"""/[^\s:'"\\]*/site-packages/""", "site-packages/", text).replace(f"{ROOT}/", "")


# --------------------------------------------------------------------------------------------------------------- pages


def write_report(profile: str) -> Path:
    """Render every finished stage of a profile. Raises ValueError when none is finished."""
    proofs = {stage: RUNS / profile / stage / "stage.json" for stage in STAGES}
    records = {stage: files.read_json(proof) for stage, proof in proofs.items() if proof.exists()}
    if not records:
        raise ValueError(f"no finished stage in runs/{profile}: run `make reproduce PROFILE={profile}` first")
    target = REPORTS / profile
    shutil.rmtree(target, ignore_errors=True)
    bodies = {"index.html": ("Overview", overview(profile, records))}
    for stage, record in records.items():
        body = chapter_body(RUNS / profile / stage / "chapter.ipynb") + provenance(record)
        bodies[f"{stage}.html"] = (f"{stage[:2]} {TITLES[stage]}", body)
    pages = [{"file": file, "label": label} for file, (label, _) in bodies.items()]
    newest = max(records.values(), key=lambda record: record["finished"])
    for place, page in enumerate(pages):
        before, after = pages[place - 1] if place else None, pages[place + 1] if place + 1 < len(pages) else None
        write_page(target, profile, pages, page, bodies[page["file"]][1], newest, before, after)
    metrics = {f"{stage}/{name}": m for stage, record in records.items() for name, m in record["metrics"].items()}
    files.write_json(target / "metrics.json", metrics)
    files.write_json(target / "timings.json", {stage: record["wall_seconds"] for stage, record in records.items()})
    return target / "index.html"


def render(template: str, **values) -> str:
    """A template of `report_template/`, with every value escaped but those that are markup already."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True)
    return environment.get_template(template).render(values)


def write_page(target: Path, profile: str, pages: list[dict], page: dict, body: str, record: dict, before, after) -> None:
    from markupsafe import Markup

    text = render(
        "page.html.j2",
        title=page["label"],
        profile=profile,
        pages=pages,
        here=page["file"],
        body=Markup(body),  # noqa: S704 cleaned, or rendered by our own templates
        style=Markup((TEMPLATE / "style.css").read_text()),  # noqa: S704 our own file
        commit=record["git_commit"],
        dirty=record["git_dirty"],
        before=before,
        after=after,
    )
    files.write_bytes(target / page["file"], text.encode())


def overview(profile: str, records: dict) -> str:
    """Findings first, then headline charts, chapters with time and cost, what could not be reproduced, environment."""
    folder = RUNS / profile / "90_findings"
    found = "90_findings" in records
    claims = files.read_json(folder / "claims.json") if found else []
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
            caption = f"n = {n}, seed {records[stage]['seed']}; bars are means with 95 % intervals"
            figures.append(Markup(figure_html(chart, alt, caption)))  # noqa: S704 escaped there
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
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report")
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
        print(f"report: {write_report(options.profile).relative_to(ROOT)}")
        if options.reference:
            write_reference(options.profile)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
