"""What a rehearsal did, and what it could not: as JSON in its run, as a page beside its report, and a few lines on the screen."""

import math
import re
from pathlib import Path

from ..planning.preflight import hub_models, local_models
from ..report import pages
from ..run import clock
from ..study import files
from ..study.profile import REHEARSAL, Profile
from ..study.stage import RUNS, finished_records
from . import models, rows, shrink
from .habits import habits_of

PROGRESS = re.compile(r"\d+%\|")
TOTALS = ("accepted", "kept", "calls", "instructions written", "queries drawn", "evolutions")  # what was kept, or began
CUDA_ONLY = "CUDA kernels, the paged optimizer, memory and speed on a GPU: this machine has none"
UNTESTED = (
    "the download: network, disk space, gated or vanished repositories, the real files' bytes",
    "the real tokenizer and weights: tokens a row, quality, merges of real size",
    "real endpoints: rate limits, chat templates, context lengths, what models really say, prices",
    "full length: hours, memory over time, checkpoints of real size",
)


def write(name: str, profile: Profile, values: dict, seconds: float, finished: bool) -> Path:
    """Raises nothing of its own; a rehearsal that failed has an account too."""
    run = RUNS / (REHEARSAL + name)
    facts = account(run, name, profile, values, seconds, finished)
    files.write_json(run / "rehearsal.json", facts)
    page = write_page(facts, run.name)
    for line in (*summary(facts), *(f"  not tested: {line}" for line in facts["untested"])):
        print(line, flush=True)
    print(f"account: {page.relative_to(pages.ROOT)}", flush=True)
    return page


def account(run: Path, name: str, profile: Profile, values: dict, seconds: float, finished: bool) -> dict:
    records = finished_records(run)
    return {
        "rehearsal_of": name,
        "finished": finished,
        "seconds": round(seconds, 1),
        "stages": [stage_row(run, stage, record) for stage, record in records.items()],
        "shapes": [row for stage in records for row in shapes(run / stage)],
        "dropped": [row for stage, record in records.items() for row in dropped(run / stage, record)],
        "said": [row for stage in records for row in said_to_stderr(run / stage)],
        "stand_ins": stand_ins(profile),
        "changed": shrink.changes(profile, values),
        "fallbacks": fallbacks(values),
        "untested": untested(profile),
    }


def stage_row(run: Path, stage: str, record: dict) -> dict:
    told = {"stage": stage, "seconds": record["wall_seconds"]} | record["counts"]
    return told | {"artifacts": len(record["outputs"]), "bytes": sum(output["bytes"] for output in record["outputs"].values())}


def shapes(folder: Path) -> list[dict]:
    """Rows and columns of every table that a stage made, and the number of values of every model."""
    import pyarrow.parquet as pq
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        schema = pq.read_metadata(path)
        found[path] = f"{schema.num_rows} rows x {schema.num_columns}"
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            shape = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118 no mapping
        found[path] = f"{len(shape)} tensors, {sum(map(math.prod, shape)):,} values"
    return [{"artifact": f"{folder.name}/{path.relative_to(folder)}", "shape": shape} for path, shape in found.items()]


def dropped(folder: Path, record: dict) -> list[dict]:
    """What became of rows, under each reason, as the stage itself counted it."""
    found = [{"stage": folder.name, "of": "rows", "reason": k, "rows": v} for k, v in record["notes"].get("dropped", {}).items()]
    if (folder / "made.json").exists():
        steps = files.read_json(folder / "made.json").get("steps", [])
        found += [{"stage": folder.name, "of": "steps", "reason": reason, "rows": n} for reason, n in steps]
    if (folder / "drops.json").exists():
        counts = files.read_json(folder / "drops.json")
        found += [{"stage": folder.name, "of": s, "reason": r, "rows": n} for s, some in counts.items() for r, n in some.items()]
    return found


def said_to_stderr(folder: Path) -> list[dict]:
    """What libraries said beside the chapters' own output, each line once a stage."""
    outputs = [o for cell in files.read_json(folder / "chapter.ipynb")["cells"] for o in cell.get("outputs", [])]
    text = "".join("".join(o["text"]) for o in outputs if o.get("name") == "stderr")
    lines = dict.fromkeys(line.split("\r")[-1].strip() for line in pages.without_machine_paths(text).splitlines())
    return [{"stage": folder.name, "said": line} for line in lines if line and not PROGRESS.search(line)]


def stand_ins(profile: Profile) -> list[dict]:
    values, found = profile.model_dump(mode="json"), {}
    found |= {str(path): "itself, whole: it lies here" for path in local_models(profile).values()}
    for model in hub_models(profile):
        habits = habits_of(model)
        family = f"{habits.kind} with its tokenizer's habits" if habits else "llama, for its family is not known here"
        found[model] = f"{family}, {models.HIDDEN} wide, not trained"
    for place, source in shrink.sources(values).items():
        if source["hub"]:
            found[f"{source['hub']} ({place})"] = "made-up rows in its columns, or your own first ones"
    for place, one in shrink.remote_endpoints(values).items():
        found[f"{one['model']} ({place})"] = "a local server that answers at random, in form"
    return [{"real": real, "stand-in": stand_in} for real, stand_in in found.items()]


def fallbacks(values: dict) -> list[str]:
    from ..training.loop import usable_optimizer

    asked = {values[section]["optimizer"] for section in shrink.TRAININGS}
    return [f"optimizer {name}: {usable_optimizer(name)} stood in" for name in sorted(asked) if usable_optimizer(name) != name]


def untested(profile: Profile) -> list[str]:
    import torch

    skipped = [] if profile.evaluation.tasks_from else [task for task in profile.evaluation.tasks if task not in rows.TASKS]
    told = [f"harness tasks without a stand-in: {', '.join(skipped)}"] if skipped else []
    launch = ["accelerate's own configuration file, with its machines and sharding"] if profile.launch.config_file else []
    return [*([] if torch.cuda.is_available() else [CUDA_ONLY]), *told, *launch, *UNTESTED]


def summary(facts: dict) -> list[str]:
    end = "passed" if facts["finished"] else "FAILED"
    lost = sum(row["rows"] for row in facts["dropped"] if row["reason"] not in TOTALS)
    return [
        f"rehearsal of {facts['rehearsal_of']}: {end}, {len(facts['stages'])} stages in {clock(facts['seconds'])}",
        *(f"  fallback: {line}" for line in facts["fallbacks"]),
        f"  rows dropped under a reason: {lost}; lines that libraries said: {len(facts['said'])}",
    ]


def write_page(facts: dict, run: str) -> Path:
    from markupsafe import Markup

    from ..report.show import table_html

    def table(name: str, caption: str):
        return Markup(table_html(facts[name], caption=caption, limit=len(facts[name]) or 1))  # noqa: S704 escaped there

    captions = {
        "stages": "Stages: seconds, what they took (the dollars are pretended) and made",
        "shapes": "Tables and models",
        "dropped": "Rows and steps under each reason",
        "said": "What libraries said",
        "stand_ins": "What stood in",
        "changed": "Values that were cut",
    }
    tables = {name: table(name, caption) for name, caption in captions.items() if facts[name]}
    body = pages.render("rehearsal.html.j2", facts=facts, tables=tables, lines=summary(facts))
    page = {"file": "rehearsal.html", "label": f"Rehearsal of {facts['rehearsal_of']}"}
    made = {"made_from": [f"runs/{run}"], "commit": None, "dirty": False, "rehearsal": True}
    pages.write_page(pages.REPORTS / run, body, page=page, pages=[page], before=None, after=None, subject=run, **made)
    return pages.REPORTS / run / page["file"]
