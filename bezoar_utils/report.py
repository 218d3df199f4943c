"""The HTML report: one page a chapter and an index with the findings first, from `stage.json` and executed notebooks.

Nothing is run and no number is parsed from prose. Pages load nothing from outside and contain no script; what models
wrote was escaped when it was shown, and every output is cleaned again here.
"""

import argparse
import html
import shutil
import sys
from pathlib import Path

from . import files
from .profile import ROOT, STAGES
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
    "80_ablations": "Ablations",
    "90_findings": "Findings",
}
TAGS = """a b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img li ol p pre
s small span strong sub summary sup table tbody td tfoot th thead tr u ul""".split()


# ------------------------------------------------------------------------------------------------------------- cleaning


def clean(markup: str) -> str:
    """Only harmless tags and attributes survive; images only as embedded PNG. Scripts are dropped with their content."""
    import re

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
    exporter.anchor_link_text = ""
    body, _ = exporter.from_notebook_node(nbformat.read(notebook, as_version=4))
    return body


# --------------------------------------------------------------------------------------------------------------- pages


def write_report(profile: str) -> Path:
    """Render every finished stage of a profile. Raises ValueError when none is finished."""
    records = {
        s: files.read_json(RUNS / profile / s / "stage.json") for s in STAGES if (RUNS / profile / s / "stage.json").exists()
    }
    if not records:
        raise ValueError(f"no finished stage in runs/{profile}: run `make reproduce PROFILE={profile}` first")
    target = REPORTS / profile
    shutil.rmtree(target, ignore_errors=True)
    pages = [{"file": "index.html", "label": "Overview"}] + [
        {"file": f"{s}.html", "label": f"{s[:2]} {TITLES[s]}"} for s in records
    ]
    write_page = _page_writer(target, profile, pages, next(reversed(records.values())))
    for stage, record in records.items():
        body = chapter_body(RUNS / profile / stage / "chapter.ipynb") + provenance(record)
        write_page(f"{stage}.html", TITLES[stage], body)
    write_page("index.html", "Overview", overview(profile, records))
    files.write_json(target / "metrics.json", {f"{s}/{name}": m for s, r in records.items() for name, m in r["metrics"].items()})
    files.write_json(target / "timings.json", {s: r["wall_seconds"] for s, r in records.items()})
    return target / "index.html"


def _page_writer(target: Path, profile: str, pages: list[dict], record: dict):
    import jinja2

    template = jinja2.Environment(autoescape=False).from_string((TEMPLATE / "page.html.j2").read_text())  # noqa: S701 values are escaped in it
    style = (TEMPLATE / "style.css").read_text()

    def write(file: str, title: str, body: str) -> None:
        place = [p["file"] for p in pages].index(file)
        text = template.render(
            title=title,
            profile=profile,
            pages=pages,
            here=file,
            body=body,
            style=style,
            commit=record["git_commit"],
            dirty=record["git_dirty"],
            before=pages[place - 1] if place else None,
            after=pages[place + 1] if place + 1 < len(pages) else None,
        )
        files.write_bytes(target / file, text.encode())

    return write


def overview(profile: str, records: dict) -> str:
    """Findings first, then headline charts, chapters, cost, what could not be reproduced, environment."""
    parts = [
        "<h1>OpenBezoar: small, cost-effective and open models, re-run end to end</h1>",
        "<p>Instruction data from an open teacher by three schemes, a judge as human proxy, one QLoRA adapter carried from scheme to "
        "scheme, alignment by SFT and DPO, and evaluation: the recipe of <a href='https://arxiv.org/abs/2404.12195'>arXiv 2404.12195</a>, "
        f"run with the profile <b>{html.escape(profile)}</b>.</p>",
        "<p class='notice'>The paper's exact numbers cannot be re-obtained: its judges (GPT-4 of 2023, Claude 2.1) are retired, and its "
        "result tables are not known to us. What is checked here is the method, and the direction and size of its effects"
        + (
            ", in a closed miniature world whose models have two million parameters.</p>"
            if profile in ("mini", "tiny", "reference")
            else ".</p>"
        ),
    ]
    folder = RUNS / profile / "90_findings"
    if "90_findings" in records:
        parts += ["<h2>Findings</h2>", claims_table(files.read_json(folder / "claims.json"))]
    parts += headline_charts(records)
    parts += ["<h2>Chapters, time and cost</h2>", stage_table(records)]
    if "90_findings" in records:
        rows = [[r["what"], r["why"]] for r in files.read_json(folder / "not_reproduced.json")]
        parts += ["<h2>What could not be reproduced</h2>", html_table(["what", "why"], rows)]
    versions: dict[str, str] = {}
    for record in records.values():
        versions |= record["versions"]
    parts += ["<h2>Environment</h2>", html_table(["package", "version"], sorted(versions.items()))]
    return "\n".join(parts)


def claims_table(claims: list[dict]) -> str:
    head = "".join(
        f"<th scope='col'>{c}</th>"
        for c in ("claim", "verdict", "before", "after", "difference [interval]", "n", "test", "chapter")
    )
    rows = []
    for c in claims:
        verdict = f"<span class='verdict {c['verdict'].replace(' ', '-')}'>{html.escape(c['verdict'])}</span>"
        numbers = f"<td>{c['before']:.2f}</td><td>{c['after']:.2f}</td><td>{c['difference']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}] {html.escape(c['unit'])}</td>"
        link = f"<a href='{c['chapter']}.html'>{TITLES[c['chapter']]}</a>"
        rows.append(
            f"<tr><td>{html.escape(c['claim'])}</td><td>{verdict}</td>{numbers}<td>{c['n']}</td><td>{html.escape(c['test'])}</td><td>{link}</td></tr>"
        )
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def headline_charts(records: dict) -> list[str]:
    from . import charts
    from .show import figure_html

    parts = []
    wanted = [
        (
            "60_benchmarks",
            "mini_answers/answer_found/",
            charts.ORDER,
            "Answer found in replies to held-out questions",
            "share of items",
            1,
        ),
        ("50_dpo", "preferred_rate_", charts.ORDER[2:], "Preferred manner of sampled replies", "share of replies", 1),
        ("61_mt_bench", "both/", charts.ORDER, "Two-turn questions", "grade 1-10", 10),
    ]
    for stage, prefix, names, title, unit, top in wanted:
        metrics = records.get(stage, {}).get("metrics", {})
        values = {n: tuple(metrics[prefix + n][k] for k in ("value", "low", "high")) for n in names if prefix + n in metrics}
        if values:
            n, seed = metrics[prefix + names[0]]["n"], records[stage]["seed"]
            alt = f"{title}: " + ", ".join(f"{name} {v[0]:.2f}" for name, v in values.items())
            caption = f"n = {n}, seed {seed}; bars are means with 95 % intervals"
            parts.append(figure_html(charts.bars(values, title, unit, top), alt, caption))
    return parts


def stage_table(records: dict) -> str:
    rows = []
    for stage, r in records.items():
        link = f"<a href='{stage}.html'>{stage[:2]} {TITLES[stage]}</a>"
        counts = r["counts"]
        rows.append(
            [
                link,
                f"{r['wall_seconds']:.0f} s",
                f"{r['work_seconds']:.0f} s",
                f"{counts['tokens']:,}",
                f"{counts['calls']:,}",
                f"{counts['cost_usd']:.2f}",
            ]
        )
    total = [sum(r[k] for r in records.values()) for k in ("wall_seconds", "work_seconds")]
    cost = sum(r["counts"]["cost_usd"] for r in records.values())
    rows.append(["all stages", f"{total[0]:.0f} s", f"{total[1]:.0f} s", "", "", f"{cost:.2f}"])
    return html_table(["chapter", "wall time", "its own work", "tokens", "model calls", "US dollars"], rows, escaped=True)


def provenance(record: dict) -> str:
    rows = [
        ["finished", record["finished"]],
        ["git commit", f"{record['git_commit']}{' with local changes' if record['git_dirty'] else ''}"],
        ["notebook (sha256)", record["notebook"]],
        ["seed", record["seed"]],
        ["wall time", f"{record['wall_seconds']} s"],
    ]
    rows += [[f"parameter {k}", v] for k, v in record["parameters"].items()]
    rows += [[f"input {k}", v] for k, v in record["inputs"].items()]
    rows += [[f"output {k}", f"{v['sha256']} ({v['bytes']:,} bytes)"] for k, v in record["outputs"].items()]
    rows += [[f"code {k}", v] for k, v in record["code"].items()]
    return f"<h2 id='provenance'>Provenance</h2><details class='code'><summary>Parameters, inputs, outputs and code of this stage</summary>{html_table(['what', 'value'], rows)}</details>"


def html_table(head: list[str], rows, escaped: bool = False) -> str:
    cell = str if escaped else (lambda value: html.escape(str(value)))
    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><thead><tr>{''.join(f'<th scope=col>{h}</th>' for h in head)}</tr></thead><tbody>{body}</tbody></table></div>"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bezoar_utils.report")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--if-changed", action="store_true", help="do nothing when the report is newer than every stage")
    options = parser.parse_args(arguments)
    index = REPORTS / options.profile / "index.html"
    stamps = [p.stat().st_mtime for p in (RUNS / options.profile).glob("*/stage.json")]
    if options.if_changed and index.exists() and stamps and index.stat().st_mtime >= max(stamps):
        print(f"nothing to do: {index.relative_to(ROOT)} is up to date")
        return 0
    try:
        print(f"report: {write_report(options.profile).relative_to(ROOT)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
