"""What the notebook `explore.ipynb` needs to look around in a finished run. It only reads. Source: ours."""

from functools import cache
from math import isnan
from pathlib import Path

from .calls.judge import Verdict, read_verdict
from .calls.replies import Reply
from .data import filters, sources
from .data.template import clean_response, render_prompt
from .evaluation import benchmarks, mt_bench
from .study import files
from .study.profile import load_profile
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
        "(10 to 20 minutes), or `make reproduce PROFILE=tiny` (about two, but its answers make no sense)"
    )


def missing_stages(profile: str) -> list[str]:
    """The stages this notebook needs that are not finished, neither by `make` nor by hand."""
    proofs = {stage: [RUNS / profile / folder / stage / "stage.json" for folder in ("", "explore")] for stage in NEEDED}
    return [stage for stage, paths in proofs.items() if not any(path.exists() for path in paths)]


def parameters(run: Stage, stage: str) -> dict:
    """The values a finished stage ran with."""
    return files.read_json(finished_folder(run.profile, stage) / "stage.json")["parameters"]


# -------------------------------------------------------------------------------------------------------- checkpoints


def checkpoints(run: Stage) -> dict[str, Path]:
    """Name -> folder, from the base to the aligned model."""
    from .training.models import locate_checkpoints

    names = load_profile(run.profile).model_dump()["checkpoints"]
    return {name: folder for name, (folder, _) in locate_checkpoints(run, names).items()}


@cache
def load(path: Path) -> tuple:
    """(model, tokenizer), loaded once."""
    from .training import models, tokens

    return models.load_model(path), tokens.load_tokenizer(path)


def reply(path: Path, question: str, temperature: float = 0.0, seed: int = 0, max_new_tokens: int = 40) -> str:
    """A checkpoint's answer under the study's template; greedy at temperature 0."""
    from .training.generation import generate

    settings = {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
    return clean_response(generate(*load(path), [render_prompt(question)], **settings)[0])


def two_turn_questions(run: Stage) -> list[dict]:
    """The questions of the evaluation; `turns` holds both texts."""
    return sources.read(parameters(run, "20_judge_filter")["evaluation"]["questions"], mt_bench.QUESTION_COLUMNS, run)


# --------------------------------------------------------------------------------------------------------------- rows


def rows_of(run: Stage, stage: str = "20_judge_filter") -> list[dict]:
    """Every row of a data stage (20_judge_filter: of all three), with its verdict and its `number` within its scheme."""
    schemes = [SCHEMES[stage]] if stage in SCHEMES else list(SCHEMES.values())
    tables = [files.read_table(run.input(f"20_judge_filter/judged_{scheme}.parquet")) for scheme in schemes]
    rows = [row | {"number": n} for table in tables for n, row in enumerate(table)]
    # parquet gives NaN for a missing value; here it is None
    return [{key: None if isinstance(value, float) and isnan(value) else value for key, value in row.items()} for row in rows]


def pick(rows: list[dict], words: str = "", **values) -> list[dict]:
    """Rows whose columns have these values and whose instruction contains `words`. Raises ValueError for an unknown column."""
    unknown = [column for column in values if rows and column not in rows[0]]
    if unknown:
        raise ValueError(f"unknown column {', '.join(unknown)}: choose from {', '.join(rows[0])}")
    return [r for r in rows if words.lower() in r["instruction"].lower() and all(r[c] == v for c, v in values.items())]


# -------------------------------------------------------------------------------------------- from seed to training label


def origin(row: dict, siblings: list[dict]) -> list[tuple[str, str]]:
    """(step, text) of what a row was made from, oldest first. `siblings` are all rows of its scheme."""
    if row["scheme"] == "lamini":
        return [("way", row["source"])]
    if row["scheme"] == "orca":
        return [("query's task", row["task_name"]), ("FLAN's own target", row["targets"]), ("system message", row["system"])]
    if row.get("parent") is None:  # rows that the authors released do not name their parent
        return []
    seed, *later = ancestors(row, siblings)
    return [("seed", seed), *((f"evolved, step {n}", text) for n, text in enumerate(later, start=1))]


def ancestors(row: dict, siblings: list[dict]) -> list[str]:
    """The instructions an evolved row grew from, the seed first. Its parent survived an earlier epoch, or is the seed."""
    chain = []
    while row:
        chain.insert(0, row["parent"])
        tree = [r for r in siblings if r["seed_number"] == row["seed_number"] and r["epoch"] < row["epoch"]]
        row = next((older for older in tree if older["instruction"] == row["parent"]), None)
    return chain


def filter_rules(run: Stage) -> dict:
    """The rules of chapter 20's filter, for `fate`: built as the chapter builds them."""
    values = parameters(run, "20_judge_filter")
    tasks = benchmarks.task_items(benchmarks.open_tasks(values["evaluation"], run))
    column = values["held_out_column"]
    return {
        "evaluation": filters.EvaluationIndex(benchmarks.texts_to_avoid(tasks, two_turn_questions(run)), values["ngram"]),
        "held_out": filters.word_forms({item[column] for items in tasks.values() for item in items}) if column else set(),
        "near_duplicate": values["near_duplicate"],
    }


def fate(row: dict, siblings: list[dict], **rules) -> str:
    """The reason in `filters.REASONS` under which the row was dropped, or "accepted".

    The chapter's own filter runs on the rows before this one, then on those and this one: the count that grew is the reason.
    """
    before, after = (filters.select(siblings[: row["number"] + more], **rules)[1] for more in (0, 1))
    return next((reason for reason in filters.REASONS if after[reason] > before[reason]), "accepted")


def batch_of(tokenizer, row: dict, recipe: dict) -> dict:
    """The row as the SFT trainer sees it, a batch of one. Raises TrainingError when it is longer than `max_length`."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from .training.sft import sft_examples

    text = {"prompt": render_prompt(row["instruction"], row["system"]), "response": row["response"]}
    return DataCollatorForLanguageModeling(tokenizer.pad_token_id)(sft_examples(tokenizer, [text], recipe)[0])


# -------------------------------------------------------------------------------------------------------- judge's calls


def finished_calls(run: Stage) -> list[dict]:
    """The judge's calls that returned a text, from the ledger. (They survive reruns, so they are not an artifact of the stage.)"""
    return [call for call in files.read_jsonl(finished_folder(run.profile, "20_judge_filter") / "calls.jsonl") if "text" in call]


def replay(call: dict) -> dict:
    """Read a call's raw text again: its last line, status, rating, reason and failure. Nothing is sent."""
    verdict, failure = read_verdict(Verdict, Reply(call["text"], call.get("failure", ""), note=call.get("note", "")))
    values = verdict.model_dump() if verdict else dict.fromkeys(Verdict.model_fields)
    return {"last line": call["text"].strip().rpartition("\n")[2], **values, "failure": failure}


def with_last_line(call: dict, change) -> dict:
    """The same call with its last line replaced by `change(line)`."""
    before, newline, last = call["text"].strip().rpartition("\n")
    return call | {"text": before + newline + change(last)}
