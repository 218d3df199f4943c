"""The HTML report: one page per chapter and an index with the findings first, from `stage.json` and executed notebooks.

Nothing is run and no number is parsed from prose. Pages load nothing from outside; the only script they may run is our own
(`page.js`: the colours and the code switch), allowed by its hash. Model text was escaped when it was shown, and `clean.py`
cleans every output again here.
"""

import argparse
import base64
import hashlib
import re
import shutil
import sys
from pathlib import Path

from ..evaluation import stats
from ..evaluation.stats import counted
from ..study import files
from ..study.pace import REPORTS, committed
from ..study.profile import REHEARSAL, ROOT
from ..study.stage import RUNS, finished_records
from ..study.stages import STAGES
from . import charts
from .clean import clean_output, clean_prose, contents
from .reference import expected_table, spread_of_replicates
from .show import TEMPLATE, figure_html, render

# ------------------------------------------------------------------------------------------------- a chapter


def chapter_exporter():
    """The nbconvert exporter that turns an executed notebook into an HTML fragment. Making it takes longer than using it."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        template_name=TEMPLATE.name,
        extra_template_basedirs=[str(TEMPLATE.parent)],
        sanitize_html=True,
        filters={"clean_html": clean_output, "clean_prose": clean_prose},
    )
    exporter.exclude_anchor_links = True  # nbconvert writes <a/>, which a browser leaves open: all that follows becomes a link
    return exporter


def chapter_body(notebook: Path, exporter=None) -> str:
    """An executed notebook as an HTML fragment."""
    import nbformat

    executed = nbformat.reads(without_machine_paths(notebook.read_text(encoding="utf-8")), as_version=4)
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = with_messages_last(cell.outputs)
    body, _ = (exporter or chapter_exporter()).from_notebook_node(executed)
    return body


def with_messages_last(outputs: list) -> list:
    """A cell's outputs, with everything libraries wrote to stderr as one block at the end, each line once.

    Without this a cell that trains ten times would bury its table under a hundred folded blocks.
    """
    messages = [o for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    others = [o for o in outputs if o not in messages]
    lines = dict.fromkeys(line for o in messages for line in o.text.splitlines() if line.strip())
    if not lines:
        return others
    messages[0].text = "\n".join(lines)
    return [*others, messages[0]]


def without_machine_paths(text: str) -> str:
    """Library warnings name files by their full path. That tells readers nothing but where somebody's home folder is."""
    return re.sub(r"""/[^\s:'"\\]*/site-packages/""", "site-packages/", text).replace(f"{ROOT}/", "")


# --------------------------------------------------------------------------------------------------------------- pages


def write_report(profile: str) -> Path:
    """Render every finished stage of a profile and return its index. Raises ValueError when no stage is finished."""
    records = finished_records(RUNS / profile)
    if not records:
        raise ValueError(f"no finished stage in runs/{profile}: run `make reproduce PROFILE={profile}` first")
    target = REPORTS / profile
    shutil.rmtree(target, ignore_errors=True)
    write_pages(target, profile, records)
    metrics = {f"{stage}/{name}": m for stage, record in records.items() for name, m in record["metrics"].items()}
    files.write_json(target / "metrics.json", metrics)
    files.write_json(target / "timings.json", {stage: record["wall_seconds"] for stage, record in records.items()})
    claims = [{key: claim[key] for key in ("id", "claim", "chapter")} for claim in read_claims(profile, records)]
    files.write_json(target / "claims.json", claims)
    return target / "index.html"


def write_pages(target: Path, profile: str, records: dict) -> None:
    """The overview and one page per finished stage, each linked to the one before and after it."""
    exporter, (spread, confidence) = chapter_exporter(), spread_of_replicates(profile)
    bodies = {"index.html": ("Overview", overview(profile, records))}
    for stage, record in records.items():
        body = chapter_body(RUNS / profile / stage / "chapter.ipynb", exporter)
        body += among_replicates(stage, record, spread, confidence) + provenance(record)
        bodies[f"{stage}.html"] = (f"{stage[:2]} {STAGES[stage].title}", body)
    pages = [{"file": file, "label": label} for file, (label, _) in bodies.items()]
    newest = max(records.values(), key=lambda record: record["finished"])
    shared = {
        "pages": pages,
        "subject": f"profile {profile}",
        "rehearsal": profile.startswith(REHEARSAL),
        "made_from": [f"runs/{profile}"],
        "commit": newest["git_commit"],
        "dirty": newest["git_dirty"],
    }
    for page, before, after in zip(pages, [None, *pages[:-1]], [*pages[1:], None]):
        write_page(target, bodies[page["file"]][1], page=page, before=before, after=after, **shared)


def read_claims(profile: str, records: dict) -> list[dict]:
    """The tested claims of a run, or none when it has not finished 90_findings. A rehearsal's verdicts are not results."""
    if "90_findings" not in records:
        return []
    claims = files.read_json(RUNS / profile / "90_findings" / "claims.json")
    return [claim | {"verdict": "no result"} for claim in claims] if profile.startswith(REHEARSAL) else claims


def write_page(target: Path, body: str, page: dict, **values) -> None:
    """A whole page around `body`, which must be clean markup; `values` are the other variables of `page.html.j2`.

    The page may use one style sheet and run one script, both ours, inline and allowed by their hash; nothing else.
    """
    style, script = (TEMPLATE / "style.css").read_text(encoding="utf-8"), (TEMPLATE / "page.js").read_text(encoding="utf-8")
    text = render(
        "page.html.j2",
        title=page["label"],
        here=page["file"],
        body=body,
        contents=contents(body),
        style=style,
        script=script,
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        **values,
    )
    files.write_bytes(target / page["file"], text.encode())


def content_hash(text: str) -> str:
    """The hash of an inline script or style as a Content-Security-Policy writes it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def overview(profile: str, records: dict) -> str:
    """Findings first, then headline charts, chapters with time and cost, what could not be reproduced, and the environment."""
    claims = read_claims(profile, records)
    not_reproduced = RUNS / profile / "90_findings" / "not_reproduced.json"
    versions = {package: version for record in records.values() for package, version in record["versions"].items()}
    return render(
        "overview.html.j2",
        profile=profile,
        limits=records.get("90_findings", {}).get("parameters", {}).get("limits"),
        claims=claims,
        seeds=over_seeds(profile),
        verdicts={word: sum(c["verdict"] == word for c in claims) for word in ("shown", "not shown", "opposite")},
        figures=headline_figures(records),
        records=records,
        unanswered={stage: lost for stage, r in records.items() if (lost := r.get("notes", {}).get("unanswered"))},
        titles={row.name: row.title for row in STAGES.values()},
        not_reproduced=files.read_json(not_reproduced) if "90_findings" in records else [],
        versions=sorted(versions.items()),
    )


HEADLINES = (  # stage, prefix of its metrics, title, unit, highest value
    ("60_benchmarks", "mini_answers/answer_found/", "Answer found in replies to held-out questions", "share of items", 1),
    ("60_benchmarks", "following/wishes_met/", "Held-out instructions of which every wish is met", "share of items", 1),
    ("50_dpo", "preferred_rate_", "Sampled replies that the judge prefers", "share of replies", 1),
    ("61_mt_bench", "both/", "Two-turn questions", "grade 1-10", 10),
)


def headline_figures(records: dict) -> list:
    """A bar chart per headline whose metrics some model has; each links to the provenance of its stage."""
    figures = []
    for stage, prefix, title, unit, top in HEADLINES:
        measured = records.get(stage, {}).get("metrics", {})
        metrics = {name: measured[prefix + name] for name in charts.ORDER if prefix + name in measured}
        if metrics:
            chart = charts.bars({name: (m["value"], m["low"], m["high"]) for name, m in metrics.items()}, title, unit, top)
            alt = f"{title}: " + ", ".join(f"{name} {m['value']:.2f}" for name, m in metrics.items())
            n = " and ".join(dict.fromkeys(str(counted(m["n"], m.get("asked"))) for m in metrics.values()))
            confidence = records[stage]["parameters"]["intervals"]["confidence"]
            caption = f"n = {n}, seed {records[stage]['seed']}; bars are means with {confidence:.0%} intervals"
            figures.append(figure_html(chart, alt, caption, f"{stage}.html#provenance"))
    return figures


def among_replicates(stage: str, record: dict, spread: dict[str, dict], confidence: float) -> str:
    """Where each number of a chapter lies among the replicates' (`reference.spread_of_replicates`); nothing without replicates."""
    rows = []
    for name, metric in record["metrics"].items():
        told = spread.get(f"{stage}/{name}")
        if told and stats.is_measured(metric["value"]):
            values, value = sorted(told["values"].values()), metric["value"]
            place = {
                "lowest": values[0],
                "highest": values[-1],
                "below": sum(other < value for other in values),
                "runs": len(values),
            }
            within = {"range": (told["low"], told["high"]), "within": told["low"] <= value <= told["high"]}
            rows.append({"name": name, "value": value, "unit": metric["unit"], "mean": told["mean"], **place, **within})
    return render("among_replicates.html.j2", rows=rows, confidence=confidence) if rows else ""


def provenance(record: dict) -> str:
    """Where a chapter's numbers come from: its `stage.json` as a folded table."""
    rows = [(key, record[key]) for key in ("finished", "git_commit", "git_dirty", "notebook", "seed", "wall_seconds")]
    for part in ("parameters", "notes", "inputs", "outputs", "code"):
        rows += [(f"{part}: {name}", value) for name, value in record.get(part, {}).items()]
    return render("provenance.html.j2", rows=rows)


# ---------------------------------------------------------------------------------------------- the committed reference


def over_seeds(profile: str) -> dict[str, dict]:
    """claim id -> its row over this profile's replicates, whose summary lies beside its committed report; empty without one."""
    path = committed(profile) / "replicates.json"
    return {row["id"]: row for row in files.read_json(path)["claims"]} if path.exists() else {}


def results_table(claims: list[dict], confidence: float, seeds: dict[str, dict] | None = None) -> str:
    """The claims as a Markdown table for the README, over `seeds` first where there are replicates; `confidence` (0 to 1) is of the
    intervals."""
    return render("results.md.j2", claims=claims, confidence=confidence, seeds=seeds or {}).rstrip()


def commit_replicates(profile: str) -> None:
    """Put the summary and the page of this profile's replicates, where there are any, beside its committed report."""
    for name, kept in (("replicates.json", "replicates.json"), ("index.html", "replicates.html")):
        if (path := REPORTS / f"{profile}-replicates" / name).exists():
            files.write_bytes(committed(profile) / kept, path.read_bytes())


def write_reference(profile: str) -> None:
    """Make this profile's report the committed one and put its claims into the README; the miniature's values go into
    REPRODUCING.md too, for they are what `make check-reference` holds a run against."""
    reference, report, findings = committed(profile), REPORTS / profile, RUNS / profile / "90_findings"
    confidence = files.read_json(findings / "stage.json")["parameters"]["intervals"]["confidence"]
    results = results_table(files.read_json(findings / "claims.json"), confidence, over_seeds(profile))
    if profile == "mini":
        numbers = (files.read_json(report / f"{name}.json") for name in ("metrics", "timings", "claims"))
        put_between(ROOT / "REPRODUCING.md", "expected", expected_table(*numbers, spread_of_replicates(profile)[0]))
    put_between(ROOT / "README.md", f"results of {profile}", results)
    kept = {path.name: path.read_bytes() for path in reference.glob("replicates.*")}  # of other seeds than this run's
    shutil.rmtree(reference, ignore_errors=True)
    shutil.copytree(report, reference)
    for name, data in kept.items():
        files.write_bytes(reference / name, data)


def put_between(page: Path, mark: str, text: str) -> None:
    """Replace the text between `<!-- mark -->` and `<!-- /mark -->`. Raises ValueError when the page lacks these marks."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not (begin and end):
        raise ValueError(f"{page.name} has no <!-- {mark} --> … <!-- /{mark} -->: put both marks where the table belongs")
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
        if options.reference:
            commit_replicates(options.profile)
        print(f"report: {write_report(options.profile).relative_to(ROOT)}")
        if options.reference:
            write_reference(options.profile)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
