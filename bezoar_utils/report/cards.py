"""Cards. Of data: what a set holds, how it came about step by step, whose licences stand in it, and what is wrong with it.
Of models: what a checkpoint is, what made it, what it measured, what it is not good for."""

import html

from ..study.profile import flat

ABOUT = {
    "lamini": "Instructions an open teacher wrote after examples (LaMini-LM's way, arXiv 2304.14402), with its own responses.",
    "orca": "Queries of the FLAN collection, answered under Orca's system messages (arXiv 2306.02707).",
    "evol": "Seeds rewritten epoch by epoch (WizardLM's Evol-Instruct, arXiv 2304.12244), with the teacher's responses.",
}
COLUMNS = {
    "instruction": "what is asked",
    "response": "the teacher's answer",
    "source": "example-guided or topic-guided",
    "original_index": "row number in the sub-collection, from 0",
    "inputs": "FLAN's query",
    "targets": "FLAN's own answer, which the teacher did not see",
    "task_source": "FLAN's name of the collection",
    "task_name": "FLAN's name of the task",
    "template_type": "zs or fs (zero- or few-shot), opt or noopt (with or without options)",
    "system_message": "what the teacher was told to be; empty means the default",
    "explained_targets": "the teacher's answer under that message",
    "dataset_source": "sub-collection",
    "category": "category of the seed",
    "evolution_strategy": "in-depth or in-breadth",
    "in-depth-evolving_operation": "one of four, empty for in-breadth",
    "epoch": "round of evolution, from 1",
    "parent": "the instruction it was made from",
    "seed_number": "which seed it descends from",
    "system": "the system message it is trained under; empty means the default",
    "scheme": "lamini, orca or evol",
    "prompt": "the rendered prompt it is trained on",
    **{
        f"{who}_{what}": f"{what} by the authors' judge"
        for who in ("gpt4", "llama2", "falcon")
        for what in ("status", "rating", "reason")
    },
    "status": "Accept or Reject; empty when the judge failed",
    "rating": "1 to 10",
    "reason": "the judge's, one sentence",
    "judge_text": "the judge's whole reply",
    "failure": "why there is no verdict",
}
FLAWS = (
    "Teacher and judge err: accepted rows can be wrong, refused ones right.",
    "Responses carry the teacher's habits; nobody but the judge has read them.",
    "Near-copies below the threshold, and overlaps with the evaluation in other words, remain.",
)
MODELS = {
    "OpenBezoar-SFT": "One LoRA adapter, trained on accepted rows of one scheme after another and merged into the base.",
    "OpenBezoar-HH-RLHF-SFT": "OpenBezoar-SFT, tuned on the replies people chose, to bring it near the preference data before DPO.",
    "OpenBezoar-HH-RLHF-DPO": "OpenBezoar-HH-RLHF-SFT, aligned by direct preference optimisation (arXiv 2305.18290).",
}
RECIPES = {
    "OpenBezoar-SFT": (
        "QLoRA: the base in 4 bits, frozen; a LoRA adapter in float32 is what learns.",
        "The same adapter goes from scheme to scheme in the order below, with a fresh optimizer and schedule each time.",
        "The adapter with the lowest validation loss of a scheme goes on; one merge at the end.",
    ),
    "OpenBezoar-HH-RLHF-SFT": (
        "QLoRA on the merged OpenBezoar-SFT: a fresh adapter, trained on prompt and chosen reply of each preference pair.",
        "The adapter with the lowest validation loss is merged.",
    ),
    "OpenBezoar-HH-RLHF-DPO": (
        "DPO with a fresh adapter on the merged OpenBezoar-HH-RLHF-SFT in 4 bits; the reference is that model, adapter off.",
        "The first step's DPO loss was ln 2: policy and reference started as one model.",
        "The adapter with the lowest validation loss is merged.",
    ),
}
LIMITS = (
    "It may not follow instructions, and may loop, make things up or respond inappropriately.",
    "Nobody has tested it for safety. Its data come from models and are judged by models, with the errors of both.",
    "It was trained on the prompt template above; other prompts get worse answers.",
)
TOY = "A miniature: it knows the few words and people of its toy world and nothing else. Nothing here holds for a larger model."
USE = (
    "To study the recipe: how data, filtering, sequence and alignment change a small model. Not for advice, decisions, or "
    "people who do not know what they are talking to."
)
# Where a judge answers and how processes are started is no part of a recipe, and nobody else's business.
UNTOLD = ("endpoint", "launch")
JUDGED = ("status", "rating", "reason", "judge_text", "failure")


def data_card(scheme: str, profile: str, made: dict, authors: list[dict], drops: dict[str, int], columns: list[str]) -> str:
    """A markdown card. `made` is the stage's own record (steps, prompts, licences), `drops` what the filter did with its rows.

    Texts of models stand indented, as code: a card shows them and renders none.
    """
    shown = [*columns, *(c for c in JUDGED if c not in columns)]
    sections = {
        "Columns": [f"- `{c}`: {COLUMNS.get(c, 'as it came')}" for c in shown],
        "Made": [f"- {step}: {count}" for step, count in made["steps"]],
        "Filtered": [f"- {reason}: {count}" for reason, count in drops.items()],
        "Prompts": [f"{name}:\n\n{_indented(prompt)}\n" for name, prompt in made["prompts"].items()]
        or ["None: nothing was generated."],
        "Licences": [f"- {_part(p)}: {p['licence']}" for p in [*made["licences"], *authors]],
        "Known flaws": [f"- {flaw}" for flaw in FLAWS],
    }
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items())
    return f"# {scheme}, profile {profile}\n\n{ABOUT[scheme]}\n\n{body}\n"


def model_card(name: str, facts: dict) -> str:
    """A README.md in the hub's form for one of `MODELS`. `facts`: the `profile`, the stage's `parameters` and `metrics`, and
    `parts`: what stands in it, as in a stage's `made.json`, the base first.

    Nothing a model wrote is in it. The licence is `other`: its parts have several, and nobody here chose one for the whole.
    """
    from ..data.template import DEFAULT_SYSTEM, TEMPLATE

    parameters, parts = facts["parameters"], facts["parts"]
    toy = [TOY] * any(_origin(part).startswith("00_miniature") for part in parts)
    metrics = [
        [metric, f"{m['value']:.4g}", None if m["low"] is None else f"[{m['low']:.4g}, {m['high']:.4g}]", m["n"], m["unit"]]
        for metric, m in facts["metrics"].items()
    ]
    sections = {
        "Base and data": _markdown_table(["part", "from", "licence"], [[p["part"], _origin(p), p["licence"]] for p in parts]),
        "Licence": "Each part's own terms, above, bind whoever passes this model on.",
        "Training": _listed(RECIPES[name]),
        "Profile values": _markdown_table(["key", "value"], _told_values(parameters)),
        "Measured": _markdown_table(["metric", "value", "interval", "n", "unit"], metrics),
        "Prompt": "\n\n".join(
            [
                "The response follows the last colon directly, without a space or a line break.",
                _indented(TEMPLATE),
                "Where there is no system message of its own, `system` is:",
                _indented(DEFAULT_SYSTEM),
                "The authors sample with `max_new_tokens=1024, do_sample=True`. The tokenizer puts one BOS in front.",
            ]
        ),
        "Intended use": USE,
        "Limits": _listed([*toy, *LIMITS]),
        "What differs from the paper": _listed(_differences(parameters)),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_front_matter(name, parts)}---\n\n# {name}, profile {facts['profile']}\n\n{MODELS[name]}\n\n{body}\n"


def _front_matter(name: str, parts: list[dict]) -> str:
    """What the hub reads. It links bases and data sets, so only those that lie on the hub are named."""
    import yaml

    base = [parts[0]["model"]] if parts[0].get("revision") else []
    sets = list(dict.fromkeys(part["hub"] for part in parts if part.get("hub")))
    known = {key: names for key, names in {"base_model": base, "datasets": sets}.items() if names}
    head = {"license": "other", "license_name": "by-its-parts", "library_name": "transformers", "pipeline_tag": "text-generation"}
    tags = {"tags": ["openbezoar", "qlora", "dpo" if name.endswith("DPO") else "sft"]}
    return yaml.safe_dump(head | known | tags, sort_keys=False, allow_unicode=True)


def _differences(parameters: dict) -> list[str]:
    found = ["The paper's learning rates, batches and lengths as run are not known; those above are this profile's."]
    if parameters["merge_onto"] == "dequantised":
        found.append("Merged onto the dequantised 4-bit base, which is the model that was trained; the authors merged onto fp16.")
    if parameters.get("loss_on") == "completion":
        found.append("Loss on the response alone; the authors' code trains on the whole sequence.")
    if "rows" in parameters:
        found.append("Which reply was the target and how earlier turns were rendered is not known; the rules here are ours.")
    if parameters.get("nll_weight"):
        found.append("A share of the chosen replies' likelihood is added to the DPO loss (`nll_weight`).")
    return found


def _told_values(parameters: dict) -> list[list]:
    """[key, value] of what a card tells. Of a path only its last part, for the rest says whose disk it is."""
    return [[key, _told(value)] for key, value in flat(parameters).items() if not {*UNTOLD} & {*key.split(".")}]


def _told(value):
    return value.rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) and value.startswith(("/", "~")) else value


def _markdown_table(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *(map(_markdown_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else "None."


def _markdown_cell(value) -> str:
    return html.escape("–" if value is None else str(value), quote=False).replace("|", "\\|").replace("\n", " ")


def _listed(lines) -> str:
    return "\n".join(f"- {line}" for line in lines)


def licence_table(made: dict[str, dict], authors: list[dict]) -> list[dict]:
    parts = [{"set": scheme, **part} for scheme, facts in made.items() for part in facts["licences"]]
    parts += [{"set": "all", **part} for part in authors]
    return [{"set": p["set"], "part": p["part"], "from": _origin(p), "licence": p["licence"]} for p in parts]


def _part(part: dict) -> str:
    return f"{part['part']} ({_origin(part)})"


def _origin(part: dict) -> str:
    pin = part.get("revision") or part.get("expect_prefix")
    place = part.get("model") or part.get("hub") or part.get("file") or part.get("artifact") or ""
    return f"{_told(place)} at {pin[:12]}" if pin else _told(place)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
