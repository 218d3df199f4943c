"""LM Eval Harness, its own tasks or local ones, with one BOS a request and per-item results kept for intervals."""

import difflib
import logging
import re
from pathlib import Path

from ..data.template import clean_response
from ..study import files
from ..training import precision
from .stats import bootstrap_difference, verdict


def strict_match(response: str, answer: str) -> bool:
    """The whole response is the answer; case counts, an end stop does not."""
    return clean_response(response).rstrip(".") == answer


def answer_found(response: str, answer: str) -> bool:
    """The answer stands in the response as a word. Sequential training forgets formats before it forgets knowledge."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", clean_response(response)) is not None


def reply_matches(response: str, answer: str) -> bool:
    """`strict_match` of the first sentence, so that a closing word after it does not count."""
    return strict_match(clean_response(response).split(". ")[0], answer)


# What OpenLLaMA's README publishes for the paper's base, OpenLLaMA 3B v2, to two decimals [X]: whether our set-up of the
# harness is like others' can be seen from the base alone.
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


def open_tasks(evaluation: dict, stage, fewshot: dict[str, int] | None = None) -> list:
    """The profile's tasks: files of an earlier stage (`tasks_from`), or the harness's own by name, which the hub holds.

    `fewshot` is examples a prompt, by task; others keep what the task itself says. Raises ValueError for a task that is not
    there, or whose data is not.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    names = evaluation["tasks"]
    if unknown := sorted(set(fewshot or {}) - set(names)):
        raise ValueError(
            f"fewshot names {', '.join(unknown)}, which no task of the profile is called; there are {', '.join(names)}"
        )
    tasks = load_tasks(stage.input(evaluation["tasks_from"]), names) if evaluation["tasks_from"] else harness_tasks(names)
    for task in tasks:
        if task.config.task in (fewshot or {}):
            task.set_config("num_fewshot", fewshot[task.config.task])
    return tasks


def harness_tasks(names: list[str]) -> list:
    """Tasks that LM Eval Harness itself defines; the hub holds their questions."""
    from lm_eval.tasks import TaskManager, get_task_dict

    manager, tasks = TaskManager(), []
    for name in names:
        if name not in manager.all_tasks:
            near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, 3)) or "none"
            raise ValueError(f"LM Eval Harness has no task {name!r}; names like it: {near}")
        try:
            tasks += _leaves(get_task_dict([name], manager))
        except (OSError, ValueError) as error:  # the datasets library has many names for "offline" and "not there"
            raise ValueError(f"the data of task {name!r} cannot be had: {' '.join(str(error).split())[:200]}") from None
    return tasks


def _leaves(tasks: dict) -> list:
    """The tasks of a dictionary in which groups hold further dictionaries."""
    return [leaf for task in tasks.values() for leaf in (_leaves(task) if isinstance(task, dict) else [task])]


def task_items(tasks: list) -> dict[str, list[dict]]:
    """task -> its items, each with `text`: what the harness itself would look for in training data, else its prompt."""
    return {task.config.task: [doc | {"text": _looked_for(task, doc)} for doc in task.eval_docs] for task in tasks}


def _looked_for(task, doc: dict) -> str:
    try:
        return str(task.doc_to_decontamination_query(doc) if task.should_decontaminate() else task.doc_to_text(doc))
    except (SyntaxError, ValueError):  # lm-eval 0.4.13 reads what a template gave as a Python literal, which ARC's is not
        return str(task.doc_to_text(doc))


def load_tasks(folder: Path, names: list[str]) -> list:
    """Harness tasks from `<name>.yaml` beside `<name>.jsonl`. Raises ValueError for a task that is not there."""
    import datasets
    import yaml
    from lm_eval.api.task import ConfigurableTask

    tasks = []
    for name in names:
        path = folder / f"{name}.yaml"
        if not path.exists():
            raise ValueError(f"no task {name!r} in {folder}; there are {', '.join(p.stem for p in sorted(folder.glob('*.yaml')))}")
        rows = files.read_jsonl(folder / f"{name}.jsonl")
        if not rows:
            raise ValueError(f"task {name!r} has no items")
        config = yaml.safe_load(path.read_text()) | {
            "task": name,
            "custom_dataset": lambda rows=rows, **_: datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}),
        }
        if config["output_type"] == "generate_until":
            config["process_results"] = score_answer
        tasks.append(ConfigurableTask(config=config))
    return tasks


def score_answer(doc: dict, results: list[str]) -> dict[str, float]:
    response = results[0]
    return {
        "strict_match": float(strict_match(response, doc["answer"])),
        "answer_found": float(answer_found(response, doc["answer"])),
    }


def task_facts(task, limit: int | None) -> dict:
    """What makes a task's score comparable: its version, examples a prompt, and hashes of its wording and of its items."""
    worded = ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "target_delimiter", "fewshot_delimiter")
    told = {key: str(getattr(task.config, key)) for key in (*worded, "output_type", "metric_list", "generation_kwargs")}
    told = {key: value if " at 0x" not in value else "code" for key, value in told.items()}
    items = list(task.eval_docs)[:limit]
    fewshot = task.config.num_fewshot or 0
    return {
        "task": task.config.task,
        "version": (task.config.metadata or {}).get("version"),
        "fewshot": fewshot,
        "items": len(items),
        "task_hash": files.sha256_json([told, fewshot])[:16],
        "items_hash": files.sha256_json([{k: str(v) for k, v in item.items()} for item in items])[:16],
    }


def evaluation_key(identity: str, tasks: list, limit: int | None, seed: int, max_length: int) -> str:
    """Under which a model's scores are kept: the model's content, the tasks', and whatever else may change a score."""
    import lm_eval

    facts = [task_facts(task, limit) for task in tasks]
    computed = [precision.current().dtype, lm_eval.__version__, files.sha256_file(Path(__file__))]
    return files.sha256_json([identity, facts, limit, seed, max_length, *computed])[:32]


def evaluate(model, tokenizer, tasks: list, batch_size: int, limit: int | None, seed: int, max_length: int = 512) -> list[dict]:
    """One row an item and metric: task, item, metric, value, reply. Requests are batched by length, longest first.

    Raises ValueError when a request does not get exactly one BOS. A metric that is no number an item is left out.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    dtype = precision.current().dtype
    mixed = {} if dtype == "float32" else {"mixed_precision_dtype": dtype}
    harness = HFLM(**mixed, pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=True, max_length=max_length)
    ids = harness.tok_encode("a text")
    if ids.count(tokenizer.bos_token_id) != 1 or ids[0] != tokenizer.bos_token_id:
        raise ValueError(f"the harness does not give a request exactly one BOS: {ids}")
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
    return [
        {"task": task, "item": sample["doc_id"], "metric": metric, "value": float(sample[metric]), "reply": _reply(sample)}
        for task, samples in results["samples"].items()
        for sample in sorted(samples, key=lambda s: s["doc_id"])
        for metric in sample["metrics"]
        if isinstance(sample[metric], int | float)
    ]


def compare(scores: list[dict], pairs: list[tuple[str, str]], intervals: dict, seed: int) -> list[dict]:
    """One row a task, metric and pair (before, after) of models: the difference on the same items, with its interval."""
    words = {"shown": "higher", "opposite": "lower", "not shown": "no difference shown"}
    values = {(r["model"], r["task"], r["metric"], r["item"]): r["value"] for r in scores}
    rows = []
    for task, metric in sorted({(r["task"], r["metric"]) for r in scores}):
        for before, after in pairs:
            items = [i for (m, t, k, i) in values if (m, t, k) == (before, task, metric)]
            old, new = ([values[m, task, metric, i] for i in items] for m in (before, after))
            difference, low, high = bootstrap_difference(new, old, **intervals, seed=seed)
            row = {"task": task, "metric": metric, "before": before, "after": after, "difference": difference}
            rows.append(row | {"low": low, "high": high, "n": len(items), "verdict": words[verdict(difference, low, high)]})
    return rows


def calibration(means: dict[tuple[str, str], tuple[float, float, float]]) -> list[dict]:
    """OpenLLaMA's published rows beside ours of the base: `means` maps (task, metric) to (mean, low, high)."""
    return [
        {
            "task": task,
            "metric": metric,
            "published": value,
            "ours": ours[0],
            "low": ours[1],
            "high": ours[2],
            "inside": ours[1] <= value <= ours[2],
        }
        for task, metrics in PUBLISHED.items()
        for metric, value in metrics.items()
        if (ours := means.get((task, metric)))
    ]


def _reply(sample: dict) -> str:
    first = sample["resps"][0][0]
    return first if isinstance(first, str) else ""
