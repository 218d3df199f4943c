"""LM Eval Harness, its own tasks or local ones, with one BOS per request and results per item, from which intervals follow."""

import logging
import re
from functools import cache
from pathlib import Path

from ..data.template import clean_response
from ..following import form, wishes
from ..study import files
from ..study.parts import near
from ..study.profile import ROOT
from ..study.stages import STAGES
from ..training import precision
from . import stats


def strict_match(response: str, answer: str) -> bool:
    """The whole response is the answer; case counts, a full stop at the end does not."""
    return clean_response(response).rstrip(".") == answer


def answer_found(response: str, answer: str) -> bool:
    """The response contains the answer as a word. Sequential training forgets formats before it forgets knowledge."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", clean_response(response)) is not None


def reply_matches(response: str, answer: str) -> bool:
    """`strict_match` of the first sentence, so that closing words after it do not count."""
    return strict_match(clean_response(response).split(". ")[0], answer)


# What OpenLLaMA's README publishes for the paper's base, OpenLLaMA 3B v2, to two decimals [X]. The base alone shows whether
# our set-up of the harness agrees with others'.
PUBLISHED = {
    "anli_r1": {"acc": 0.33},
    "anli_r2": {"acc": 0.36},
    "anli_r3": {"acc": 0.38},
    "arc_challenge": {"acc": 0.34, "acc_norm": 0.36},
    "arc_easy": {"acc": 0.68, "acc_norm": 0.63},
    "boolq": {"acc": 0.66},
    "hellaswag": {"acc": 0.52, "acc_norm": 0.70},
    "openbookqa": {"acc": 0.26, "acc_norm": 0.38},
    "piqa": {"acc": 0.77, "acc_norm": 0.78},
    "record": {"em": 0.87, "f1": 0.88},
    "rte": {"acc": 0.55},
    "truthfulqa_mc1": {"acc": 0.22},
    "truthfulqa_mc2": {"acc": 0.35},
    "wic": {"acc": 0.50},
    "winogrande": {"acc": 0.63},
}


def open_tasks(evaluation: dict, stage, fewshot: dict[str, int] | None = None, only: str | None = None) -> list:
    """The profile's tasks, or `only` that one: files of a stage or a folder (`tasks_from`), or the harness's own by name, which the
    hub holds.

    `fewshot` is examples per prompt, by task or group of tasks, a task within a group before the group; others keep what the task
    itself says. Raises ValueError for a task that does not exist, or whose data cannot be read.
    """
    names, fewshot, found = [only] if only else evaluation["tasks"], fewshot or {}, set(evaluation["tasks"])
    folder, opened = _folder_of(evaluation["tasks_from"], names, stage), []
    for name in names:
        tasks = [load_task(folder, name)] if folder else harness_task(name)
        for task in tasks:
            found.add(task.config.task)
            shots = fewshot.get(task.config.task, fewshot.get(name))
            if shots is not None:
                task.set_config("num_fewshot", shots)
        opened += tasks
    # what a group that is not opened holds is not known here
    if unknown := [_stranger(name, found) for name in fewshot if name not in found and not only]:
        raise ValueError("; ".join(unknown))
    return opened


def _folder_of(place: str | None, names: list[str], stage) -> Path | None:
    """Where local tasks lie; what is read from a folder of the checkout is recorded, as an artifact is."""
    if place is None or place.split("/")[0] in STAGES:
        return place and stage.input(place)
    for file in (ROOT / place / f"{name}.{kind}" for name in names for kind in ("yaml", "jsonl")):
        if file.exists():
            stage.note_input(f"file:{file.relative_to(ROOT)}", files.sha256_file(file))
    return ROOT / place


def _stranger(name: str, known: set[str]) -> str:
    return f"benchmarks.fewshot.{name} is not a task of this profile{near(name, known)}; its tasks: {', '.join(sorted(known)[:20])}"


def unknown_names(evaluation: dict, fewshot: dict[str, int]) -> list[str]:
    """What is wrong with the names of the harness's own tasks, by its files alone: none of their data is asked for."""
    if evaluation["tasks_from"]:
        return []
    index = _task_manager().task_index
    wrong = [
        f"evaluation.tasks: LM Eval Harness has no task {name!r}{near(name, index)}"
        for name in evaluation["tasks"]
        if name not in index
    ]
    members = set().union(*(_members(name, index) for name in evaluation["tasks"]))
    return wrong + [_stranger(name, members) for name in fewshot if name not in members]


def _members(what, index: dict) -> set[str]:
    """A task, group or tag of the harness by name, and all that is in it; a group's file also holds groups of its own."""
    if isinstance(what, list | set):
        return set().union(*(_members(item, index) for item in what))
    if isinstance(what, dict):
        return _members(what.get("task") or what.get("group"), index)
    entry = index.get(what)
    inner = {"TAG": lambda: entry.tags, "GROUP": lambda: (entry.cfg or {}).get("task")}
    return {what} | _members(inner[entry.kind.name]() or [], index) if entry and entry.kind.name in inner else {what}


@cache
def _task_manager():
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager()  # looks through the harness's own tasks, which takes ten seconds


def harness_task(name: str) -> list:
    """A task that LM Eval Harness itself defines, or the tasks of a group; the hub holds their questions."""
    manager = _task_manager()
    if name not in manager.all_tasks:
        raise ValueError(f"LM Eval Harness has no task {name!r}{near(name, manager.all_tasks)}")
    try:
        return list(manager.load(name)["tasks"].values())
    except (OSError, ValueError) as error:  # the datasets library has many names for "offline" and "not there"
        raise ValueError(f"the data of task {name!r} cannot be read: {' '.join(str(error).split())[:200]}") from None


def task_items(tasks: list) -> dict[str, list[dict]]:
    """task -> its items, each with `text`: the text the harness itself would search training data for, else its prompt."""
    return {task.config.task: [doc | {"text": _searched_text(task, doc)} for doc in task.eval_docs] for task in tasks}


def texts_to_avoid(items: dict[str, list[dict]], questions: list[dict]) -> dict[str, list[str]]:
    """What no training row may repeat, by task: the items of `task_items` and the two-turn questions, without the sentences that
    only wish for a form, which many instructions share."""
    texts = {task: [wishes.without(item["text"]) for item in rows] for task, rows in items.items()}
    return texts | {"two-turn questions": [wishes.without(turn) for question in questions for turn in question["turns"]]}


def _searched_text(task, doc: dict) -> str:
    try:
        return str(task.doc_to_decontamination_query(doc) if task.should_decontaminate() else task.doc_to_text(doc))
    except (SyntaxError, ValueError):  # lm-eval 0.4.13 reads what a template gave as a Python literal, which ARC's is not
        return str(task.doc_to_text(doc))


def load_task(folder: Path, name: str):
    """A harness task from `<name>.yaml` beside `<name>.jsonl`. Raises ValueError for a task that does not exist or is empty."""
    import datasets
    import yaml
    from lm_eval.api.task import ConfigurableTask

    path = folder / f"{name}.yaml"
    if not path.exists():
        raise ValueError(f"no task {name!r} in {folder}; its tasks: {', '.join(p.stem for p in sorted(folder.glob('*.yaml')))}")
    rows = files.read_jsonl(folder / f"{name}.jsonl")
    if not rows:
        raise ValueError(f"task {name!r} has no items")
    config = yaml.safe_load(path.read_text(encoding="utf-8")) | {
        "task": name,
        "custom_dataset": lambda **_: datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}),
    }
    if config["output_type"] == "generate_until":
        config["process_results"] = SCORES[config["metric_list"][0]["metric"]]
    return ConfigurableTask(config=config)


def score_answer(doc: dict, results: list[str]) -> dict[str, float]:
    """What the harness calls with an item of a local task and the model's responses to it: 0 or 1 for each metric."""
    response = results[0]
    return {
        "strict_match": float(strict_match(response, doc["answer"])),
        "answer_found": float(answer_found(response, doc["answer"])),
    }


def score_wishes(doc: dict, results: list[str]) -> dict[str, float]:
    """The same of a task whose questions carry wishes that a program can check: are all of them fulfilled in good form, and which
    share of them whatever the form? A strict check, as IFEval's is (arXiv 2311.07911)."""
    response, asked = clean_response(results[0]), wishes.read(doc["question"])
    unmet = len(wishes.unmet(asked, response))
    met = not unmet and form.fault(response) is None
    return {"wishes_met": float(met), "share_of_wishes": 1 - unmet / max(1, len(asked))}


SCORES = {"strict_match": score_answer, "wishes_met": score_wishes}  # by a local task's first metric


def task_facts(task, limit: int | None) -> dict:
    """What makes a task's score comparable: its version, examples per prompt, and hashes of its wording and of its items."""
    worded = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter", "fewshot_delimiter")
    wording = {key: str(getattr(task.config, key)) for key in (*worded, "output_type", "metric_list", "generation_kwargs")}
    wording = {key: value if " at 0x" not in value else "code" for key, value in wording.items()}
    items = list(task.eval_docs)[:limit]
    fewshot = task.config.num_fewshot or 0
    return {
        "task": task.config.task,
        "version": (task.config.metadata or {}).get("version"),
        "fewshot": fewshot,
        "items": len(items),
        "task_hash": files.sha256_json([wording, fewshot])[:16],
        "items_hash": files.sha256_json([{k: str(v) for k, v in item.items()} for item in items])[:16],
    }


def evaluation_key(identity: str, tasks: list, limit: int | None, seed: int, max_length: int) -> str:
    """The name under which a model's scores are kept: a hash of the model's and the tasks' content, and of whatever else may
    change a score."""
    import lm_eval

    facts = [task_facts(task, limit) for task in tasks]
    code = [files.sha256_file(Path(module)) for module in (__file__, wishes.__file__, form.__file__)]
    computed = [precision.current().dtype, lm_eval.__version__, *code]
    return files.sha256_json([identity, facts, limit, seed, max_length, *computed])[:32]


def evaluate(model, tokenizer, tasks: list, batch_size: int, limit: int | None, seed: int, max_length: int = 512) -> list[dict]:
    """One row per item and metric: task, item, metric, value, reply. Requests are batched by length, longest first.

    Raises ValueError when a request gets other ids than a prompt in training (a BOS more or less, say).
    A metric that is not a number per item is left out. Of a
    task that reads replies in several ways (the harness calls them filters), a metric is named `metric,filter`.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    dtype = precision.current().dtype
    mixed = {} if dtype == "float32" else {"mixed_precision_dtype": dtype}
    harness = HFLM(**mixed, pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=True, max_length=max_length)
    if (ids := harness.tok_encode("a text")) != (own := tokenizer("a text")["input_ids"]):
        raise ValueError(f"the harness does not give a request the ids it was trained with: {ids}, not {own}")
    results = lm_eval.simple_evaluate(
        model=harness,
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),  # the tasks are here; looking through the harness's own takes ten seconds
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return [row for task, samples in results["samples"].items() for row in _item_rows(task, samples)]


def _item_rows(task: str, samples: list[dict]) -> list[dict]:
    several = len({sample["filter"] for sample in samples}) > 1
    return [
        {
            "task": task,
            "item": sample["doc_id"],
            "metric": f"{metric},{sample['filter']}" if several else metric,
            "value": float(sample[metric]),
            "reply": _reply(sample),
        }
        for sample in sorted(samples, key=lambda s: s["doc_id"])
        for metric in sample["metrics"]
        if isinstance(sample[metric], int | float)
    ]


WORDS = {"shown": "higher", "opposite": "lower", "not shown": "no difference shown"}  # of a difference, by its verdict


def compare(scores: list[dict], pairs: list[tuple[str, str]], intervals: dict, seed: int) -> list[dict]:
    """One row per task, metric and pair (before, after) of models: the difference on the same items, with its interval, as
    `stats.compare` gives it."""
    values: dict[tuple, dict] = {}
    for row in scores:
        values.setdefault((row["task"], row["metric"]), {}).setdefault(row["model"], {})[row["item"]] = row["value"]
    rows = []
    for task, metric in sorted(values):
        for before, after in pairs:
            numbers = stats.compare(values[task, metric][before], values[task, metric][after], **intervals, seed=seed)
            word = WORDS[stats.verdict(numbers["difference"], numbers["low"], numbers["high"])]
            row = {"task": task, "metric": metric, "before": before, "after": after}
            rows.append(row | {k: numbers[k] for k in ("difference", "low", "high", "n", "asked")} | {"verdict": word})
    return rows


def calibration(means: dict[tuple[str, str], tuple]) -> list[dict]:
    """OpenLLaMA's published rows beside ours of the base: `means` maps (task, metric) to (mean, low, high), maybe with counts."""
    return [
        {"task": task, "metric": metric, "published": value}
        | dict(zip(("ours", "low", "high", "n", "asked"), ours))
        | {"inside": ours[1] <= value <= ours[2]}
        for task, metrics in PUBLISHED.items()
        for metric, value in metrics.items()
        if (ours := means.get((task, metric)))
    ]


def _reply(sample: dict) -> str:
    first = sample["resps"][0][0]
    return first if isinstance(first, str) else ""
