"""Profiles: the one place where a study's choices stand. A strict schema, so that a typing error is an error.

`load_profile` reads `profiles/<name>.yaml`, merges it over the profile it `extends:`, and checks everything before any
stage runs. `stage_parameters` is what one stage may know: its own section, flat, and the shared sections it uses.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

CODE = Path(__file__).resolve().parent.parent
# where notebooks/, profiles/, runs/ and reports/ lie: the checkout, unless a caller (a test, say) works elsewhere
ROOT = Path(os.environ.get("BEZOAR_HOME", CODE))
PROFILES = ROOT / "profiles"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Schemes = Literal["lamini", "orca", "evol"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Miniature(Section):
    training_threads: Positive
    people: Annotated[int, Field(ge=8)]
    documents: Positive
    vocabulary: Annotated[int, Field(ge=300)]
    hidden: Annotated[int, Field(ge=64, multiple_of=64)]
    layers: Positive
    heads: Positive
    base_steps: Positive
    base_batch: Positive
    base_length: Annotated[int, Field(ge=16)]
    base_learning_rate: Rate
    teacher_steps: Positive
    teacher_batch: Positive
    teacher_learning_rate: Rate
    seeds: Positive
    flan_rows_per_collection: Positive
    preference_pairs: Positive
    answer_items: Positive
    choice_items: Positive
    questions_per_category: Positive

    @model_validator(mode="after")
    def heads_divide_hidden(self):
        if self.hidden % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden={self.hidden}")
        return self


class Teacher(Section):
    model: str
    wrapper: str
    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Rate
    max_new_tokens: Positive
    batch_size: Positive

    @model_validator(mode="after")
    def wrapper_has_prompt(self):
        if "{prompt}" not in self.wrapper:
            raise ValueError("wrapper must contain {prompt}")
        return self


class Judge(Section):
    model: str
    base_url: str | None
    local_server: str | None
    api_key_env: str
    temperature: Annotated[float, Field(ge=0, le=2)]
    max_tokens: Positive
    concurrency: Annotated[int, Field(ge=1, le=64)]
    timeout_s: Annotated[float, Field(gt=0)]
    max_retries: Count

    @model_validator(mode="after")
    def one_address(self):
        if (self.base_url is None) == (self.local_server is None):
            raise ValueError("give exactly one of base_url and local_server")
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is the NAME of an environment variable in capitals, never the key itself")
        return self


class Lora(Section):
    r: Positive
    alpha: Positive
    dropout: Share
    target_modules: list[str]


class Quantisation(Section):
    type: Literal["nf4", "fp4"]
    double: bool
    compute_dtype: Literal["bfloat16", "float16", "float32"]


class Lamini(Section):
    example_guided_calls: Count
    topic_guided_calls: Count
    examples_per_prompt: Positive
    topics_per_prompt: Positive
    instructions_per_call: Positive
    topics: list[str]

    @model_validator(mode="after")
    def enough_topics(self):
        if self.topic_guided_calls and len(self.topics) < self.topics_per_prompt:
            raise ValueError(f"topics_per_prompt={self.topics_per_prompt} but only {len(self.topics)} topics")
        return self


class Orca(Section):
    per_collection: dict[Literal["cot", "niv2", "t0", "flan2021"], Count]


class Evol(Section):
    seeds_per_category: Positive
    epochs: Positive


class JudgeFilter(Section):
    ngram: Positive
    held_out_column: str | None


class Recipe(Section):
    """How one model is trained; shared by the three training stages and the ablations."""

    learning_rate: Rate
    schedule: Literal["linear", "cosine", "constant"]
    warmup_steps: Count
    steps: Positive
    batch_size: Positive
    accumulation: Positive
    optimizer: Literal["adamw_torch", "paged_adamw_8bit"]
    max_length: Annotated[int, Field(ge=16)]
    log_every: Positive
    validate_every: Positive
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    split_seed: Count
    gradient_checkpointing: bool

    @model_validator(mode="after")
    def warmup_fits(self):
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be below steps={self.steps}")
        return self


class SupervisedRecipe(Recipe):
    loss_on: Literal["full", "completion"]


class Sft(SupervisedRecipe):
    order: list[Schemes]
    merge_onto: Literal["dequantised", "full_precision"]

    @model_validator(mode="after")
    def order_is_a_sequence(self):
        if not self.order or len(set(self.order)) != len(self.order):
            raise ValueError(f"order must name each scheme at most once and at least one, got {self.order}")
        return self


class HhSft(SupervisedRecipe):
    rows: Positive
    merge_onto: Literal["dequantised", "full_precision"]


class Dpo(Recipe):
    rows: Positive
    beta: Annotated[float, Field(gt=0)]
    nll_weight: Annotated[float, Field(ge=0)]
    merge_onto: Literal["dequantised", "full_precision"]
    sampled_prompts: Positive
    sampling_temperature: Annotated[float, Field(gt=0, le=2)]
    max_new_tokens: Positive


class Benchmarks(Section):
    tasks: list[str]
    limit: Positive | None
    batch_size: Positive


class MtBench(Section):
    temperature: dict[str, Annotated[float, Field(ge=0, le=2)]]
    default_temperature: Annotated[float, Field(ge=0, le=2)]
    max_new_tokens: Positive


class Charts(Section):
    smoothing: Annotated[float, Field(ge=0, lt=1)]


class Ablations(SupervisedRecipe):
    conditions: list[Literal["accepted", "unfiltered", "random_subset"]]
    scheme: Schemes


class Findings(Section):
    bootstrap_samples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class Profile(Section):
    seed: Count
    threads: Positive
    offline: bool
    base_model: str
    teacher: Teacher
    judge: Judge
    lora: Lora
    quantisation: Quantisation
    miniature: Miniature
    lamini: Lamini
    orca: Orca
    evol: Evol
    judge_filter: JudgeFilter
    sft: Sft
    hh_sft: HhSft
    dpo: Dpo
    benchmarks: Benchmarks
    mt_bench: MtBench
    charts: Charts
    ablations: Ablations
    findings: Findings


# stage -> (its own section, what else of the profile it may read)
STAGES = {
    "00_miniature": ("miniature", ("teacher",)),
    "10_lamini": ("lamini", ("teacher",)),
    "11_orca": ("orca", ("teacher",)),
    "12_evol_instruct": ("evol", ("teacher", "judge")),
    "20_judge_filter": ("judge_filter", ("judge",)),
    "30_sft": ("sft", ("base_model", "lora", "quantisation")),
    "40_hh_sft": ("hh_sft", ("lora", "quantisation")),
    "50_dpo": ("dpo", ("lora", "quantisation", "judge")),
    "60_benchmarks": ("benchmarks", ("base_model",)),
    "61_mt_bench": ("mt_bench", ("base_model", "judge")),
    "70_loss_charts": ("charts", ()),
    "80_ablations": ("ablations", ("base_model", "lora", "quantisation")),
    "90_findings": ("findings", ()),
}
EVERY_STAGE = ("seed", "threads")


class ProfileError(ValueError):
    """A profile that cannot work. The message is one line: file, key, value, what is allowed."""


def load_profile(name: str, folder: Path = PROFILES) -> Profile:
    data = _merged(name, folder, ())
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileError("; ".join(_one_line(name, e) for e in error.errors())) from None


def stage_parameters(profile: Profile, stage: str) -> dict:
    """What papermill injects: plain literals, own section flat, shared sections under their names."""
    if stage not in STAGES:
        raise ProfileError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
    own, shared = STAGES[stage]
    values = profile.model_dump(mode="json")
    return {name: values[name] for name in EVERY_STAGE} | values[own] | {name: values[name] for name in shared}


def check_parameters(stage: str, values: dict) -> None:
    """The same schema for values edited by hand in a notebook. Raises ProfileError."""
    own, shared = STAGES[stage]
    section = Profile.model_fields[own].annotation
    parts = {own: {name: values[name] for name in section.model_fields}} | {n: values[n] for n in (*EVERY_STAGE, *shared)}
    for name, value in parts.items():
        try:
            _Single[name].model_validate({name: value})
        except ValidationError as error:
            raise ProfileError("; ".join(_one_line(f"the parameters of {stage}", e) for e in error.errors())) from None


class _SingleFields(dict):
    """One-field models, so that a part of a profile is checked by the very schema of the whole."""

    def __missing__(self, name):
        from pydantic import create_model

        self[name] = create_model(name, __base__=Section, **{name: (Profile.model_fields[name].annotation, ...)})
        return self[name]


_Single = _SingleFields()


def _merged(name: str, folder: Path, seen: tuple[str, ...]) -> dict:
    if name in seen:
        raise ProfileError(f"{name}: extends itself through {' -> '.join(seen)}")
    path = folder / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise ProfileError(f"there is no profile {name!r} ({path.name}); known: {known}")
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ProfileError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ProfileError(f"{path.name} must be a mapping of keys, got {type(data).__name__}")
    parent = data.pop("extends", None)
    return _over(_merged(parent, folder, (*seen, name)), data) if parent else data


def _over(base: dict, changes: dict) -> dict:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _over(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


def _one_line(where: str, error: dict) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the profile"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {key} = {error['input']!r}; allowed here: {', '.join(_siblings(error['loc']))}"
    if error["type"] == "missing":
        return f"{where}: {key} is missing"
    given = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"
    return f"{where}: {key}{given}: {error['msg'].removeprefix('Value error, ')}"


def _siblings(location: tuple) -> list[str]:
    model = Profile
    for part in location[:-1]:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
