"""Data cards: what a set holds, how it came about step by step, whose licences stand in it, and what is wrong with it."""

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


def licence_table(made: dict[str, dict], authors: list[dict]) -> list[dict]:
    parts = [{"set": scheme, **part} for scheme, facts in made.items() for part in facts["licences"]]
    parts += [{"set": "all", **part} for part in authors]
    return [{"set": p["set"], "part": p["part"], "from": _origin(p), "licence": p["licence"]} for p in parts]


def _part(part: dict) -> str:
    return f"{part['part']} ({_origin(part)})"


def _origin(part: dict) -> str:
    pin = part.get("revision") or part.get("expect_prefix")
    place = part.get("model") or part.get("hub") or part.get("file") or part.get("artifact") or ""
    return f"{place} at {pin[:12]}" if pin else place


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
