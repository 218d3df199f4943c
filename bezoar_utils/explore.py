"""What the notebook `explore.ipynb` does with a finished run. It reads; only `write_profile` and `branch` write, to new names."""

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import yaml

from .calls.endpoint import Reply
from .calls.judge import Verdict, read_verdict
from .data import filters, sources
from .data.template import clean_response, render_prompt
from .evaluation import benchmarks, mt_bench
from .study import files
from .study.profile import PROFILES, ROOT, STAGES, ProfileError, load_profile
from .study.stage import RUNS, Stage, StageError, finished_folder

SCHEMES = {"10_lamini": "lamini", "11_orca": "orca", "12_evol_instruct": "evol"}
NEEDED = (*SCHEMES, "20_judge_filter", "30_sft", "40_hh_sft", "50_dpo")


def open_run(*profiles: str) -> Stage:
    """A reader of the first of these profiles whose run is finished. Raises StageError when none is."""
    for profile in profiles:
        if not missing_stages(profile):
            return Stage("explore", profile, {}, RUNS / profile / "explore", reads=None)
    raise StageError(
        f"there is nothing to explore: {profiles[0]} lacks {', '.join(missing_stages(profiles[0]))}; run `make reproduce` first "
        "(some ten minutes), or `make reproduce PROFILE=tiny` (some two, its answers make no sense)"
    )


def missing_stages(profile: str) -> list[str]:
    def finished(stage: str) -> bool:
        try:
            return finished_folder(profile, stage).exists()
        except StageError:
            return False

    return [stage for stage in NEEDED if not finished(stage)]


def parameters(run: Stage, stage: str) -> dict:
    """The values a finished stage ran with."""
    return files.read_json(finished_folder(run.profile, stage) / "stage.json")["parameters"]


# -------------------------------------------------------------------------------------------------------- checkpoints


def checkpoints(run: Stage) -> dict[str, Path]:
    """Name -> folder, from the base to the aligned model."""
    from .training.models import locate_checkpoints

    wanted = load_profile(run.profile).model_dump()["checkpoints"]
    return {name: folder for name, (folder, _) in locate_checkpoints(run, wanted).items()}


@cache
def load(path: Path) -> tuple:
    """(model, tokenizer), loaded once."""
    from .training import models

    return models.load_model(path), models.load_tokenizer(path)


def reply(path: Path, question: str, temperature: float = 0.0, seed: int = 0, max_new_tokens: int = 40) -> str:
    """A checkpoint's answer under the study's template; greedy at temperature 0."""
    from .training.generation import generate

    settings = {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
    return clean_response(generate(*load(path), [render_prompt(question)], **settings)[0])


def some_questions(run: Stage) -> list[str]:
    """First turns of the run's two-turn questions."""
    questions = parameters(run, "20_judge_filter")["evaluation"]["questions"]
    return [question["turns"][0] for question in sources.read(questions, mt_bench.QUESTION_COLUMNS, run)]


# --------------------------------------------------------------------------------------------------------------- rows


def rows_of(run: Stage, stage: str = "20_judge_filter") -> list[dict]:
    """Every row a data stage made (of 20_judge_filter: of all three), with its verdict and its `number` within its scheme."""
    wanted = [SCHEMES[stage]] if stage in SCHEMES else list(SCHEMES.values())
    found = {scheme: files.read_table(run.input(f"20_judge_filter/judged_{scheme}.parquet")) for scheme in wanted}
    return [without_nan(row) | {"number": n} for rows in found.values() for n, row in enumerate(rows)]


def without_nan(row: dict) -> dict:
    """A table read from parquet says NaN where nothing stood."""
    return {key: None if isinstance(value, float) and value != value else value for key, value in row.items()}


def pick(rows: list[dict], words: str = "", **wanted) -> list[dict]:
    """Rows whose columns have these values and whose instruction holds `words`. Raises ValueError for a column none has."""
    unknown = [column for column in wanted if rows and column not in rows[0]]
    if unknown:
        raise ValueError(f"no column {', '.join(unknown)}; there are {', '.join(rows[0])}")
    return [r for r in rows if words.lower() in r["instruction"].lower() and all(r[c] == v for c, v in wanted.items())]


# -------------------------------------------------------------------------------------------- from seed to training label


def origin(row: dict, siblings: list[dict]) -> list[tuple[str, str]]:
    """(step, text) of what a row was made from, oldest first. `siblings` are all rows of its scheme."""
    if row["scheme"] == "lamini":
        return [("way", row["source"])]
    if row["scheme"] == "orca":
        return [("query's task", row["task_name"]), ("FLAN's own target", row["targets"]), ("system message", row["system"])]
    if row.get("parent") is None:  # a row the authors released does not say
        return []
    seed, *later = ancestors(row, siblings)
    return [("seed", seed), *((f"evolved, step {n}", text) for n, text in enumerate(later, start=1))]


def ancestors(row: dict, siblings: list[dict]) -> list[str]:
    """The instructions an evolved row grew from, the seed first. A survivor's parent survived an earlier epoch, or is the seed."""
    chain = []
    while row:
        chain.insert(0, row["parent"])
        row = next((r for r in siblings if is_parent(r, row)), None)
    return chain


def is_parent(older: dict, row: dict) -> bool:
    same_tree = older["seed_number"] == row["seed_number"] and older["epoch"] < row["epoch"]
    return same_tree and older["instruction"] == row["parent"]


def hygiene_rules(run: Stage) -> dict:
    """What 20_judge_filter drops rows by, for `fate`: built as the chapter builds it."""
    values = parameters(run, "20_judge_filter")
    tasks = benchmarks.task_items(benchmarks.open_tasks(values["evaluation"], run))
    questions = sources.read(values["evaluation"]["questions"], mt_bench.QUESTION_COLUMNS, run)
    texts = {task: [item["text"] for item in items] for task, items in tasks.items()}
    texts["two-turn questions"] = [turn for question in questions for turn in question["turns"]]
    column = values["held_out_column"]
    return {
        "evaluation": filters.EvaluationIndex(texts, values["ngram"]),
        "held_out": {item[column] for items in tasks.values() for item in items} if column else set(),
        "near_duplicate": values["near_duplicate"],
    }


def fate(row: dict, siblings: list[dict], **rules) -> str:
    """ "accepted", or the reason in `filters.REASONS` under which the row was dropped.

    The chapter's own code says so: it is asked about the rows before this one, then with it (a copy copies an earlier row).
    """
    before, after = (filters.select(siblings[: row["number"] + more], **rules)[1] for more in (0, 1))
    return next((reason for reason in filters.REASONS if after[reason] > before[reason]), "accepted")


def batch_of(tokenizer, row: dict, recipe: dict) -> dict:
    """The row as the SFT trainer would see it, a batch of one. Raises TrainingError when it is longer than `max_length`."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from .training.sft import sft_examples

    text = {"prompt": render_prompt(row["instruction"], row["system"]), "response": row["response"]}
    return DataCollatorForLanguageModeling(tokenizer.pad_token_id)(sft_examples(tokenizer, [text], recipe)[0])


# -------------------------------------------------------------------------------------------------------- judge's calls


def finished_calls(run: Stage, stage: str = "20_judge_filter") -> list[dict]:
    """The ledger's calls that brought a text. (They outlive reruns, so they are no artifact of the stage.)"""
    return [call for call in files.read_jsonl(finished_folder(run.profile, stage) / "calls.jsonl") if "text" in call]


def replay(call: dict, kind=Verdict) -> dict:
    """What a ledger's call says when its raw text is read again: last line, status, rating, failure. Nothing is sent."""
    verdict, failure = read_verdict(kind, Reply(call.get("text"), call.get("failure", ""), note=call.get("note", "")))
    last = (call.get("text") or "").strip().rpartition("\n")[2]
    return {"last line": last, **dict.fromkeys(kind.model_fields), **(verdict.model_dump() if verdict else {}), "failure": failure}


def with_last_line(call: dict, change) -> dict:
    """The same call, its last line changed by `change(line)`."""
    before, newline, last = call["text"].strip().rpartition("\n")
    return call | {"text": before + newline + change(last)}


# ---------------------------------------------------------------------------------------------------- a run of one's own


def write_profile(name: str, changes: dict, extends: str = "mini") -> Path:
    """profiles/<name>.yaml with the keys that differ. Raises ProfileError when it cannot work or the name is taken."""
    path, text = PROFILES / f"{name}.yaml", yaml.safe_dump({"extends": extends, **changes}, sort_keys=False)
    if path.exists() and path.read_text() != text:
        raise ProfileError(f"profiles/{path.name} is there and says something else; take another name, or delete it")
    new = not path.exists()
    files.write_bytes(path, text.encode())
    try:
        load_profile(name)
    except ProfileError:
        if new:
            path.unlink()
        raise
    return path


def branch(profile: str, name: str, stage: str) -> list[str]:
    """Copy the finished stages before `stage` to runs/<name>/, so that only what a change touches runs again.

    Returns the stages copied; those already there stay. Raises StageError when `make` has finished none of them: what a
    notebook opened by hand has made is no run.
    """
    proofs = {s: RUNS / profile / s / "stage.json" for s in STAGES if s < stage}
    earlier = [s for s, proof in proofs.items() if proof.exists() and "notebook" in files.read_json(proof)]
    if not earlier:
        raise StageError(f"runs/{profile} has nothing finished before {stage}: run `make reproduce PROFILE={profile}` first")
    copied = [s for s in earlier if not (RUNS / name / s).exists()]
    for one in copied:
        shutil.copytree(RUNS / profile / one, RUNS / name / one)
    return copied


def make_command(name: str, stage: str) -> list[str]:
    """What brings one stage of a profile up to date, with this very Python."""
    target = f"{(RUNS / name / stage / 'stage.json').relative_to(ROOT)}"
    return ["make", "-C", str(ROOT), target, f"PROFILE={name}", f"PY={sys.executable}"]


def make(name: str, stage: str) -> None:
    """Run that command, its lines shown as they come. Raises StageError when it fails."""
    with subprocess.Popen(make_command(name, stage), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        for line in running.stdout:
            print(line, end="")
    if running.returncode:
        raise StageError(f"{stage} of {name} was not made, see above")


def metrics_beside(stage: str, before: str, after: str) -> list[dict]:
    """A finished stage's metrics in two runs: name, both values, difference."""
    old, new = (files.read_json(finished_folder(p, stage) / "stage.json")["metrics"] for p in (before, after))
    return [
        {"metric": m, before: old[m]["value"], after: new[m]["value"], "difference": new[m]["value"] - old[m]["value"]}
        for m in old
        if m in new
    ]
