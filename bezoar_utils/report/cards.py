"""Cards of data sets and models in the hub's form. Their prose is in `template/data_card.md.j2` and `model_card.md.j2`; here
are the values: counts, parameters, metrics, and whose licences apply. Source: ours, after the hub's card templates.

A part is a dictionary with `part` (what it is), `licence`, and its origin: `model`, `hub`, `file` or `artifact`, with `revision`
where the hub has one.
"""

import html
from pathlib import Path

from ..data.template import DEFAULT_SYSTEM, TEMPLATE
from ..evaluation.stats import counted
from ..study import files
from ..study.profile import flat

TEMPLATES = Path(__file__).parent / "template"
LICENCE = {"license": "other", "license_name": "by-its-parts"}  # the parts have several; nobody chose one for the whole
# Where a judge answers and how processes start is not part of a recipe, and must not be published.
PRIVATE = ("endpoint", "launch")
JUDGED = ("status", "rating", "reason", "judge_text", "failure")


def data_card(scheme: str, profile: str, made: dict, authors: list[dict], drops: dict[str, int], columns: list[str]) -> str:
    """The card of one scheme's rows, as Markdown.

    `made` is the stage's own record (steps, prompts, licences), `authors` the parts that every set shares (teacher, judge),
    `drops` the number of rows per reason of the filter, `columns` those the stage made.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    card = DatasetCard.from_template(
        DatasetCardData(**LICENCE, pretty_name=f"{scheme}, profile {profile}", tags=["openbezoar", "synthetic"]),
        template_path=TEMPLATES / "data_card.md.j2",
        scheme=scheme,
        profile=profile,
        columns=[*columns, *(c for c in JUDGED if c not in columns)],
        steps=made["steps"],
        drops=drops,
        prompts=made["prompts"],
        parts=[part | {"from": _origin(part)} for part in [*made["licences"], *authors]],
    )
    return str(card).rstrip() + "\n"


def model_card(name: str, facts: dict) -> str:
    """The README.md of a checkpoint, as Markdown. No model text is in it.

    `facts`: the `profile`, the stage's `parameters` and `metrics`, and `parts`, the base first.
    """
    from huggingface_hub import ModelCard, ModelCardData

    parts = facts["parts"]
    datasets = list(dict.fromkeys(part["hub"] for part in parts if part.get("hub")))
    head = ModelCardData(
        **LICENCE,
        base_model=[parts[0]["model"]] if parts[0].get("revision") else None,  # the hub links it, so only what is on the hub
        datasets=datasets or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["openbezoar", "qlora", "dpo" if name.endswith("DPO") else "sft"],
    )
    card = ModelCard.from_template(
        head,
        template_path=TEMPLATES / "model_card.md.j2",
        name=name,
        profile=facts["profile"],
        parameters=facts["parameters"],
        miniature=any(_origin(part).startswith("00_miniature") for part in parts),
        template=TEMPLATE,
        default_system=DEFAULT_SYSTEM,
        parts_table=_table(["part", "from", "licence"], [[p["part"], _origin(p), p["licence"]] for p in parts]),
        values_table=_table(["key", "value"], _public_values(facts["parameters"])),
        metrics_table=_table(["metric", "value", "interval", "n", "unit"], _measured(facts["metrics"])),
    )
    return str(card).rstrip() + "\n"


def licence_table(made: dict[str, dict], authors: list[dict]) -> list[dict]:
    """Rows set, part, from and licence: `made` maps a scheme to its stage's record; `authors` are parts of all sets."""
    parts = [(scheme, part) for scheme, record in made.items() for part in record["licences"]]
    parts += [("all", part) for part in authors]
    return [{"set": scheme, "part": p["part"], "from": _origin(p), "licence": p["licence"]} for scheme, p in parts]


def _measured(metrics: dict[str, dict]) -> list[list]:
    rows = []
    for metric, m in metrics.items():
        interval = None if m["low"] is None else f"[{m['low']:.4g}, {m['high']:.4g}]"
        rows.append([metric, f"{m['value']:.4g}", interval, counted(m["n"], m.get("asked")), m["unit"]])
    return rows


def _public_values(parameters: dict) -> list[list]:
    return [[key, _last_part(value)] for key, value in flat(parameters).items() if not {*PRIVATE} & {*key.split(".")}]


def _last_part(value):
    """Of a path only its last part: the rest says whose disk it is on."""
    return value.rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) and value.startswith(("/", "~")) else value


def _origin(part: dict) -> str:
    """Where a part comes from, with the first twelve characters of its pinned revision."""
    pin = part.get("revision") or part.get("expect_prefix")
    place = _last_part(part.get("model") or part.get("hub") or part.get("file") or part.get("artifact") or "")
    return f"{place} at {pin[:12]}" if pin else place


def _table(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "None."


def _cell(value) -> str:
    return html.escape("–" if value is None else str(value), quote=False).replace("|", "\\|").replace("\n", " ")


def add_model_card(stage, name: str, parts: list[dict]) -> None:
    """Write a stage's `made.json` (the licences that apply) and the README.md of its checkpoint `name`; `parts`: the base first."""
    facts = {"profile": stage.profile, "parameters": stage.parameters, "metrics": stage.metrics, "parts": parts}
    files.write_json(stage.output("made.json"), {"licences": parts})
    files.write_bytes(stage.output(f"{name}/README.md"), model_card(name, facts).encode())


def used_parts(parts: dict[str, dict | None]) -> list[dict]:
    """The parts that were used, as cards list them, from name -> a source or a model of the profile (none: not used)."""
    return [
        {"part": name, **({k: part[k] for k in ("model", "licence")} if "model" in part else part)}
        for name, part in parts.items()
        if part
    ]
