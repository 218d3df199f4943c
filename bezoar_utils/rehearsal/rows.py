"""Schema-true rows for every set a profile names: the real columns and shapes, around words that mean nothing."""

import gzip
import json
import random
from pathlib import Path

from ..data import sources
from ..study import files

WORDS = """apple river stone window garden letter music winter bridge market silver cotton forest island captain kitchen doctor
engine candle harbour mountain village teacher painter history number pattern signal planet valley orange bottle paper ladder
basket copper desert flower hammer journey lantern machine needle ocean pepper quarter rocket saddle temple umbrella velvet
whistle yellow anchor button circle dragon eagle feather glacier horizon insect jacket kettle lemon mirror""".split()
VERBS = "Describe Explain Compare List Summarise Rewrite Plan Name Sort Invent Translate Discuss".split()
CATEGORIES = (
    "brainstorming classification closed_qa creative_writing general_qa information_extraction open_qa summarization".split()
)
MT_BENCH = "writing roleplay reasoning math coding extraction stem humanities".split()
ROWS = 48  # a set: enough for a validation share of 2 % to hold a row and for two batches of eight pairs


def words(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def instruction(rng: random.Random) -> str:
    return f"{rng.choice(VERBS)} the {words(rng, 4, 12)}."


def answer(rng: random.Random) -> str:
    return f"The {words(rng, 5, 30)}."


def verdict(rng: random.Random, who: str) -> dict:
    status = "Accept" if rng.random() < 0.8 else "Reject"
    return {f"{who}_status": status, f"{who}_rating": str(rng.randint(1, 10)), f"{who}_reason": answer(rng)}


def seed(rng: random.Random, number: int) -> dict:
    return {
        "instruction": instruction(rng),
        "context": answer(rng) if number % 3 == 0 else "",
        "response": answer(rng),
        "category": CATEGORIES[number % len(CATEGORIES)],
    }


def flan(rng: random.Random, number: int) -> dict:
    kind = ("zs_opt", "zs_noopt", "fs_opt", "fs_noopt")[number % 4]
    options = f"\nOPTIONS:\n- {rng.choice(WORDS)}\n- {rng.choice(WORDS)}" if kind.endswith("_opt") else ""
    task = {"task_source": "rehearsal", "task_name": f"task_{number % 5}", "template_type": kind}
    return {"inputs": instruction(rng) + options, "targets": rng.choice(WORDS)} | task


def released_lamini(rng: random.Random, number: int) -> dict:
    row = {"instruction": instruction(rng), "source": ("example-guided", "topic-guided")[number % 2], "response": answer(rng)}
    return row | verdict(rng, "llama2") | verdict(rng, "gpt4") | verdict(rng, "falcon")


def released_orca(rng: random.Random, number: int) -> dict:
    told = {"system_message": answer(rng), "explained_targets": answer(rng), "dataset_source": "cot"}
    return {"original_index": number} | flan(rng, number) | told | verdict(rng, "falcon") | verdict(rng, "gpt4")


def released_evol(rng: random.Random, number: int) -> dict:
    row = {"instruction": instruction(rng), "response": answer(rng), "category": CATEGORIES[number % len(CATEGORIES)]}
    way = {"evolution_strategy": "in-depth", "in-depth-evolving_operation": "deepening", "epoch": 1 + number % 4}
    return row | way | verdict(rng, "gpt4")


def dialogs(rng: random.Random, number: int) -> dict:
    """A preference row; every twelfth is one of those that the study drops."""
    history = "".join(f"\n\nHuman: {instruction(rng)}\n\nAssistant: {answer(rng)}" for _ in range(number % 3))
    asked = f"{history}\n\nHuman: {instruction(rng)}\n\nAssistant:"
    row = {"chosen": f"{asked} {answer(rng)}", "rejected": f"{asked} {answer(rng)}"}
    return row | {"rejected": row["chosen"]} if number % 12 == 11 else row


def question(rng: random.Random, number: int) -> dict:
    category = MT_BENCH[number % len(MT_BENCH)]
    known = category in ("reasoning", "math", "coding")
    turns = [instruction(rng), instruction(rng)]
    references = [answer(rng), answer(rng)] if known else []
    return {"question_id": 81 + number, "category": category, "turns": turns, "reference": references}


def reference(rng: random.Random, number: int) -> dict:
    return {"question_id": 81 + number, "choices": [{"index": 0, "turns": [answer(rng), answer(rng)]}]}


def asked(rng: random.Random, number: int) -> dict:
    return {"question": instruction(rng), "prompt": instruction(rng), "answer": rng.choice(WORDS)}


# where in a profile a source stands -> a row of it
MAKERS = {
    "lamini.seeds": seed,
    "lamini.released": released_lamini,
    "orca.released": released_orca,
    "evol.seeds": seed,
    "evol.released": released_evol,
    "preference_rows": dialogs,
    "dpo.questions": asked,
    "evaluation.questions": question,
    "mt_bench.references": reference,
} | {f"orca.collections.{name}": flan for name in ("cot", "niv2", "t0", "flan2021")}


def made(place: str, source: dict) -> list[dict]:
    """Rows for the source that stands at `place` of a profile, under the source's own column names."""
    rng, theirs = random.Random(place), {ours: theirs for theirs, ours in source["rename"].items()}
    n = len(MT_BENCH) if MAKERS[place] in (question, reference) else ROWS
    rows = [MAKERS[place](rng, number) for number in range(n)]
    return [{theirs.get(name, name): value for name, value in row.items()} for row in rows]


def first_rows(path: Path) -> list[dict]:
    """The first rows of a user's own file. Raises SourceError as `sources.read_rows`."""
    return sources.read_rows(path, ())[:ROWS]


def write(path: Path, rows: list[dict]) -> None:
    """In the format that the name's ending asks for."""
    import pandas as pd

    path.parent.mkdir(parents=True, exist_ok=True)
    ending = next(ending for ending in sources.READERS if path.name.endswith(ending))
    if ending == ".parquet":
        files.write_table(path, rows)
    elif ending in (".csv", ".tsv"):
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    elif ending == ".json":
        files.write_bytes(path, json.dumps(rows).encode())
    else:
        data = files.to_jsonl(rows)
        files.write_bytes(path, gzip.compress(data) if ending == ".jsonl.gz" else data)


# --- LM Eval Harness: task -> (data set, its configuration, a row). From the tasks' own definitions in lm-eval 0.4.13.


def _choices(rng: random.Random, number: int) -> dict:
    return {"choices": {"text": [answer(rng) for _ in range(4)], "label": list("ABCD")}, "answerKey": "ABCD"[number % 4]}


def arc(rng, number):
    return {"id": str(number), "question": instruction(rng), **_choices(rng, number)}


def boolq(rng, number):
    return {"question": words(rng, 4, 8), "passage": answer(rng), "idx": number, "label": number % 2}


def hellaswag(rng, number):
    context = {"ctx_a": answer(rng), "ctx_b": rng.choice(WORDS), "ctx": answer(rng), "endings": [answer(rng) for _ in range(4)]}
    about = {"ind": number, "activity_label": rng.choice(WORDS), "source_id": "x", "split": "val", "split_type": "indomain"}
    return about | context | {"label": str(number % 4)}


def openbookqa(rng, number):
    return {"id": str(number), "question_stem": words(rng, 4, 8), **_choices(rng, number)}


def piqa(rng, number):
    return {"goal": instruction(rng), "sol1": answer(rng), "sol2": answer(rng), "label": number % 2}


def rte(rng, number):
    return {"sentence1": answer(rng), "sentence2": answer(rng), "label": number % 2, "idx": number}


def truthfulqa(rng, number):
    targets = {"choices": [answer(rng) for _ in range(4)], "labels": [1, 0, 0, 0]}
    return {"question": instruction(rng), "mc1_targets": targets, "mc2_targets": targets | {"labels": [1, 1, 0, 0]}}


def wic(rng, number):
    word = rng.choice(WORDS)
    sentences = {f"sentence{n}": f"{word} {words(rng, 3, 6)}" for n in (1, 2)}
    places = {"start1": 0, "start2": 0, "end1": len(word), "end2": len(word)}
    return {"word": word} | sentences | places | {"idx": number, "label": number % 2}


def winogrande(rng, number):
    options = {"option1": rng.choice(WORDS), "option2": rng.choice(WORDS), "answer": str(1 + number % 2)}
    return {"sentence": f"The _ {words(rng, 3, 6)} because the _ {words(rng, 3, 6)}."} | options


TASKS = {
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", arc),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy", arc),
    "boolq": ("aps/super_glue", "boolq", boolq),
    "hellaswag": ("Rowan/hellaswag", "default", hellaswag),
    "openbookqa": ("allenai/openbookqa", "main", openbookqa),
    "piqa": ("baber/piqa", "default", piqa),
    "rte": ("nyu-mll/glue", "rte", rte),
    "truthfulqa_mc1": ("truthfulqa/truthful_qa", "multiple_choice", truthfulqa),
    "truthfulqa_mc2": ("truthfulqa/truthful_qa", "multiple_choice", truthfulqa),
    "wic": ("aps/super_glue", "wic", wic),
    "winogrande": ("allenai/winogrande", "winogrande_xl", winogrande),
}
SPLITS = ("train", "validation", "test")


def write_tasks(names: list[str], folder_of) -> None:
    """The data sets behind harness tasks, each in `folder_of(its name)`, with the card that tells its configurations."""
    chosen = {TASKS[name] for name in names}
    for data_set in sorted({data_set for data_set, _, _ in chosen}):
        folder, card = folder_of(data_set), ["---", "configs:"]
        for _, configuration, maker in sorted((some for some in chosen if some[0] == data_set), key=lambda some: some[1]):
            card += [f"- config_name: {configuration}", "  data_files:"]
            for split in SPLITS:
                rng = random.Random(f"{data_set}/{configuration}/{split}")
                write(folder / configuration / f"{split}-00000-of-00001.parquet", [maker(rng, number) for number in range(12)])
                card += [f"  - split: {split}", f"    path: {configuration}/{split}-*"]
        files.write_bytes(folder / "README.md", "\n".join([*card, "---", ""]).encode())
