"""LM Eval Harness on local tasks, with one BOS a request and per-item results kept for intervals."""

import logging
import re
from pathlib import Path

from . import files
from .template import clean_response


def strict_match(response: str, answer: str) -> bool:
    """The whole response is the answer; case counts, an end stop does not."""
    return clean_response(response).rstrip(".") == answer


def answer_found(response: str, answer: str) -> bool:
    """The answer stands in the response as a word. Sequential training forgets formats before it forgets knowledge."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", clean_response(response)) is not None


def reply_matches(response: str, answer: str) -> bool:
    """`strict_match` of the first sentence, so that a closing word after it does not count."""
    return strict_match(clean_response(response).split(". ")[0], answer)


def open_tasks(evaluation: dict, stage) -> list:
    """The profile's tasks: files of an earlier stage (`tasks_from`), or the harness's own by name, which the hub holds."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if evaluation["tasks_from"]:
        return load_tasks(stage.input(evaluation["tasks_from"]), evaluation["tasks"])
    from lm_eval.tasks import TaskManager, get_task_dict

    return _leaves(get_task_dict(evaluation["tasks"], TaskManager()))


def _leaves(tasks: dict) -> list:
    """The tasks of a dictionary in which groups hold further dictionaries."""
    return [leaf for task in tasks.values() for leaf in (_leaves(task) if isinstance(task, dict) else [task])]


def task_items(tasks: list) -> dict[str, list[dict]]:
    """task -> its items, each with `text`: what the harness itself would look for in training data, else its prompt."""
    return {
        task.config.task: [
            doc | {"text": str(task.doc_to_decontamination_query(doc) if task.should_decontaminate() else task.doc_to_text(doc))}
            for doc in task.eval_docs
        ]
        for task in tasks
    }


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


def evaluate(model, tokenizer, tasks: list, batch_size: int, limit: int | None, seed: int) -> list[dict]:
    """One row an item and metric: task, item, metric, value. Raises ValueError when a request does not get one BOS."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=True, max_length=512)
    ids = harness.tok_encode("a text")
    if ids.count(tokenizer.bos_token_id) != 1 or ids[0] != tokenizer.bos_token_id:
        raise ValueError(f"the harness does not give a request exactly one BOS: {ids}")
    results = lm_eval.simple_evaluate(
        model=harness,
        tasks=tasks,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
    )
    rows = []
    for task, samples in results["samples"].items():
        for sample in sorted(samples, key=lambda s: s["doc_id"]):
            for metric in sample["metrics"]:
                rows.append(
                    {
                        "task": task,
                        "item": sample["doc_id"],
                        "metric": metric,
                        "value": float(sample[metric]),
                        "reply": _reply(sample),
                    }
                )
    return rows


def _reply(sample: dict) -> str:
    first = sample["resps"][0][0]
    return first if isinstance(first, str) else ""
