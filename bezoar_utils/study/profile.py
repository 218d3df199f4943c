"""Profiles: the one place where a study's choices stand. A strict schema, so that a typing error is an error.

`load_profile` reads `profiles/<name>.yaml`, merges it over the profile it `extends:`, and checks everything before any
stage runs. `stage_parameters` is what one stage may know: its own section, flat, and the shared sections it uses.
"""

import os
import re
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

CODE = Path(__file__).resolve().parents[2]
# where notebooks/, profiles/, runs/ and reports/ lie: the checkout, unless a caller (a test, say) works elsewhere
ROOT = Path(os.environ.get("BEZOAR_HOME", CODE))
PROFILES = ROOT / "profiles"
REHEARSAL = "rehearse-"  # begins the name of a rehearsal's profile, whose results are none

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Price = Annotated[float, Field(ge=0)]
Schemes = Literal["lamini", "orca", "evol"]
Collections = Literal["cot", "niv2", "t0", "flan2021"]
SPEAKERS = ("teacher", "judge", "evol.equality_judge", "judge_filter.second_judge", "mt_bench.second_judge")
ORIGINS = ("artifact", "file", "hub")
# Both sets are CC BY-NC 4.0; the paper makes its own data instead.
NEVER_MIXED = ("lamini-instruction", "wizardlm_evol_instruct")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Source(Section):
    """Where rows come from: an earlier stage's artifact, a local file, or files of a hub data set at a pinned commit."""

    artifact: str | None = None
    file: str | None = None
    hub: str | None = None
    revision: str | None = None
    expect_prefix: str | None = None
    files: list[str] = []
    rename: dict[str, str] = {}
    licence: str

    @model_validator(mode="after")
    def one_pinned_origin(self):
        if sum(getattr(self, origin) is not None for origin in ORIGINS) != 1:
            raise ValueError(f"give exactly one of {', '.join(ORIGINS)}")
        if self.hub is None:
            return self
        if (self.revision is None) == (self.expect_prefix is None):
            raise ValueError(f"{self.hub}: give its revision, or expect_prefix where only a commit's beginning is known")
        if self.revision and not re.fullmatch("[0-9a-f]{40}", self.revision):
            raise ValueError(f"{self.hub}: revision must be a full commit hash of 40 hex digits, not {self.revision!r}")
        if self.expect_prefix and not re.fullmatch("[0-9a-f]{7,39}", self.expect_prefix):
            raise ValueError(f"{self.hub}: expect_prefix must be 7 to 39 hex digits, not {self.expect_prefix!r}")
        if not self.files:
            raise ValueError(f"{self.hub}: name its files; hub bots rename what is not named")
        if any(name in self.hub.lower() for name in NEVER_MIXED):
            raise ValueError(f"{self.hub} is CC BY-NC 4.0 data that this study never mixes in")
        return self


class Money(Section):
    budget_usd: Price
    prices: dict[str, Annotated[list[Price], Field(min_length=2, max_length=2)]]


class Endpoint(Section):
    base_url: str | Annotated[list[str], Field(min_length=1)] | None
    local_server: str | None
    api_key_env: str | None
    concurrency: Annotated[int, Field(ge=1, le=256)]
    timeout_s: Annotated[float, Field(gt=0)]
    attempts: Positive

    @model_validator(mode="after")
    def one_address(self):
        if (self.base_url is None) == (self.local_server is None):
            raise ValueError("give exactly one of base_url and local_server")
        if isinstance(self.base_url, list) and len(set(self.base_url)) < len(self.base_url):
            raise ValueError(f"base_url names an address twice: {', '.join(self.base_url)}")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is the NAME of an environment variable in capitals, never the key itself")
        return self


class Launch(Section):
    processes: Positive
    config_file: str | None


class Miniature(Section):
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
    revision: str | None
    licence: str
    endpoint: Endpoint | None
    mode: Literal["raw", "chat"]
    wrapper: str
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Rate
    max_new_tokens: Positive
    batch_size: Positive
    four_bit: bool

    @model_validator(mode="after")
    def wrapper_has_prompt(self):
        if "{prompt}" not in self.wrapper:
            raise ValueError("wrapper must contain {prompt}")
        return self


class Judge(Section):
    model: str
    licence: str
    endpoint: Endpoint
    temperature: Annotated[float, Field(ge=0, le=2)]
    max_tokens: Positive


class BaseModelSource(Section):
    model: str
    revision: str | None
    licence: str


Checkpoints = Annotated[dict[str, BaseModelSource], Field(min_length=2)]  # the first is the base; each later one follows it


class Lora(Section):
    r: Positive
    alpha: Positive
    dropout: Share
    target_modules: list[str]


class Quantisation(Section):
    type: Literal["nf4", "fp4"]
    double: bool
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"]


class Lamini(Section):
    seeds: Source
    released: Source | None
    example_guided_calls: Count
    topic_guided_calls: Count
    examples_per_prompt: Positive
    topics_per_prompt: Positive
    instructions_per_call: Positive
    topics: list[str]
    near_duplicate: Rate

    @model_validator(mode="after")
    def enough_topics(self):
        if self.topic_guided_calls and len(self.topics) < self.topics_per_prompt:
            raise ValueError(f"topics_per_prompt={self.topics_per_prompt} but only {len(self.topics)} topics")
        return self


class Orca(Section):
    collections: dict[Collections, Source]
    released: Source | None
    per_collection: dict[Collections, Count]
    most_per_task: dict[Collections, Positive]
    without_tasks: dict[Collections, list[str]]
    zero_shot_only: bool

    @model_validator(mode="after")
    def counts_have_sources(self):
        if missing := [name for name, count in self.per_collection.items() if count and name not in self.collections]:
            raise ValueError(f"per_collection asks for {', '.join(missing)}, of which collections has no source")
        return self


class Evol(Section):
    seeds: Source
    released: Source | None
    seeds_per_category: Count
    seed_words: Positive
    epochs: Count
    draw_per: Literal["category", "row"]
    equality_judge: Judge | None
    equality_tries: Positive


class JudgeFilter(Section):
    verdicts: Literal["judge", "released"]
    repeat_rows: Count
    second_judge: Judge | None
    near_duplicate: Rate
    ngram: Positive
    held_out_column: str | None


class Evaluation(Section):
    """What is evaluated; chapter 20 keeps all of it out of training."""

    tasks: list[str]
    tasks_from: str | None
    questions: Source


class Recipe(Section):
    """How one model is trained; shared by the three training stages and the test of the filter."""

    learning_rate: Rate
    schedule: Literal["linear", "cosine", "constant"]
    warmup_steps: Count
    steps: Positive | None
    epochs: Annotated[float, Field(gt=0)] | None
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
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        if self.steps and self.warmup_steps >= self.steps:
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


def _known_changes(methods: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    known = ("beta", "gamma", "learning_rate", "nll_weight", "sync_every", "sync_weight", "warmup_steps")
    if unknown := sorted({key for changes in methods.values() for key in changes} - set(known)):
        raise ValueError(f"a method changes {', '.join(unknown)}; it may change {', '.join(known)}")
    return methods


Method = Literal["dpo", "ipo", "simpo", "orpo", "tr_dpo"]
Methods = Annotated[dict[Method, dict[str, float]], AfterValidator(_known_changes)]


class Dpo(Recipe):
    rows: Positive
    method: Method
    beta: Annotated[float, Field(gt=0)]
    gamma: Annotated[float, Field(ge=0)]
    sync_every: Positive
    sync_weight: Rate
    nll_weight: Annotated[float, Field(ge=0)]
    merge_onto: Literal["dequantised", "full_precision"]
    questions: Source | None
    sampled_prompts: Count
    sampling_temperature: Annotated[float, Field(gt=0, le=2)]
    max_new_tokens: Positive


class Benchmarks(Section):
    limit: Positive | None
    batch_size: Positive
    fewshot: dict[str, Count]
    max_length: Annotated[int, Field(ge=16)]


class MtBench(Section):
    temperature: dict[str, Annotated[float, Field(ge=0, le=2)]]
    default_temperature: Annotated[float, Field(ge=0, le=2)]
    max_new_tokens: Positive
    references: Source | None
    reference_categories: list[str]
    pairs: list[Annotated[list[str], Field(min_length=2, max_length=2)]]
    repeat_rows: Count
    second_judge: Judge | None

    @model_validator(mode="after")
    def pairs_are_of_two(self):
        if alone := [one for one, other in self.pairs if one == other]:
            raise ValueError(f"pairs sets {alone[0]} against itself")
        return self


class Charts(Section):
    smoothing: Annotated[float, Field(ge=0, lt=1)]


class FilterTest(SupervisedRecipe):
    conditions: list[Literal["accepted", "unfiltered", "random_subset"]]
    scheme: Schemes


class Ablations(Section):
    """What `make ablations` varies; it trains as `filter_test` and `dpo` say, but for this many steps."""

    seeds: Positive
    steps: Annotated[int, Field(ge=2)]
    dpo_steps: Annotated[int, Field(ge=2)]
    order: list[Schemes]
    ranks: list[Positive]
    methods: Methods
    sampled_prompts: Positive

    @model_validator(mode="after")
    def order_is_another(self):
        if sorted(self.order) != sorted(get_args(Schemes)) or self.order == list(get_args(Schemes)):
            raise ValueError(f"order must name all of {', '.join(get_args(Schemes))}, in another order than that")
        return self


class Intervals(Section):
    samples: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class Served(Section):
    """A model that a server holds on the GPU of `plan.gpu`; `kv_bytes` are keys and values of one token of context."""

    weights_gb: Annotated[float, Field(gt=0)]
    kv_bytes: Positive


class Expected(Section):
    prompt_tokens: Positive
    reply_tokens: Positive
    calls_per_second: Annotated[float, Field(gt=0)]
    context: Positive | None
    served: Served | None

    @model_validator(mode="after")
    def served_with_a_context(self):
        if self.served and not self.context:
            raise ValueError("served needs the context that the server gives each call")
        return self


class Gpu(Section):
    """Peaks from the vendor's data sheet: dense bfloat16 TFLOP/s with float32 accumulation, GB/s of its memory."""

    name: str
    memory_gib: Annotated[float, Field(gt=0)]
    tflops: Annotated[float, Field(gt=0)]
    gb_per_second: Annotated[float, Field(gt=0)]
    share: Rate


class Shape(Section):
    """A Llama's shape, as its config.json has it."""

    hidden: Positive
    layers: Positive
    intermediate: Positive
    heads: Positive
    kv_heads: Positive
    vocabulary: Positive
    tied: bool
    context: Positive


class Work(Section):
    sft_rows: Positive
    tokens_per_row: dict[Literal["30_sft", "40_hh_sft", "50_dpo", "75_filter"], Positive]
    benchmark_tokens: Positive
    downloads_gb: Price
    converted_gb: Price


class Plan(Section):
    """What `make plan` reckons with before anything is measured; no stage reads it."""

    seed_categories: Positive
    questions: Positive
    teacher: Expected
    judge: Expected
    same_family: bool
    gpu: Gpu | None
    base: Shape | None
    work: Work | None

    @model_validator(mode="after")
    def a_gpu_has_work(self):
        if self.gpu and not (self.base and self.work):
            raise ValueError("gpu needs base, the base model's shape, and work, how many rows and tokens there are")
        return self


class Profile(Section):
    stages: list[str] | None
    seed: Count
    threads: Positive
    precision: Literal["auto", "bfloat16", "float16", "float32"]
    offline: bool
    money: Money
    plan: Plan
    base_model: BaseModelSource
    teacher: Teacher
    judge: Judge
    launch: Launch
    lora: Lora
    quantisation: Quantisation
    miniature: Miniature
    lamini: Lamini
    orca: Orca
    evol: Evol
    judge_filter: JudgeFilter
    sft: Sft
    preference_rows: Source
    hh_sft: HhSft
    dpo: Dpo
    checkpoints: Checkpoints
    evaluation: Evaluation
    benchmarks: Benchmarks
    mt_bench: MtBench
    charts: Charts
    filter_test: FilterTest
    ablations: Ablations
    intervals: Intervals

    @model_validator(mode="after")
    def names_exist_and_calls_have_a_price(self):
        if unknown := [stage for stage in self.stages or () if stage not in STAGES]:
            raise ValueError(f"stages names {', '.join(unknown)}; known: {', '.join(STAGES)}")
        if strangers := {name for pair in self.mt_bench.pairs for name in pair} - set(self.checkpoints):
            known = ", ".join(self.checkpoints)
            raise ValueError(f"mt_bench.pairs names {', '.join(sorted(strangers))}, which is no checkpoint; known: {known}")
        if self.dpo.method == "tr_dpo" and self.launch.processes > 1:
            raise ValueError("dpo.method tr_dpo trains all weights, which only one process does here: launch.processes must be 1")
        for asked in self.speakers().values():
            if asked.endpoint and asked.endpoint.base_url and asked.model not in self.money.prices:
                raise ValueError(
                    f"money.prices lacks {asked.model!r}, which answers at a remote endpoint ([0, 0] when it is yours)"
                )
        return self

    def speakers(self) -> dict[str, Teacher | Judge]:
        """Place -> the teacher, and every judge there is."""
        return {place: speaker for place in SPEAKERS if (speaker := attrgetter(place)(self))}


# stage -> (its own section, what else of the profile it may read)
STAGES = {
    "00_miniature": ("miniature", ("teacher",)),
    "10_lamini": ("lamini", ("teacher",)),
    "11_orca": ("orca", ("teacher",)),
    "12_evol_instruct": ("evol", ("teacher", "judge")),
    "20_judge_filter": ("judge_filter", ("judge", "evaluation", "intervals")),
    "30_sft": ("sft", ("base_model", "launch", "lora", "quantisation")),
    "40_hh_sft": ("hh_sft", ("preference_rows", "launch", "lora", "quantisation")),
    "50_dpo": ("dpo", ("preference_rows", "launch", "lora", "quantisation", "judge", "intervals")),
    "60_benchmarks": ("benchmarks", ("evaluation", "checkpoints", "intervals")),
    "61_mt_bench": ("mt_bench", ("evaluation", "checkpoints", "judge", "intervals")),
    "70_loss_charts": ("charts", ("intervals",)),
    "75_filter": ("filter_test", ("evaluation", "base_model", "launch", "lora", "quantisation", "intervals")),
    "80_ablations": (
        "ablations",
        (
            "filter_test",
            "dpo",
            "preference_rows",
            "evaluation",
            "base_model",
            "launch",
            "lora",
            "quantisation",
            "judge",
            "intervals",
        ),
    ),
    "90_findings": ("intervals", ()),
}
EVERY_STAGE = ("seed", "threads", "precision")


class ProfileError(ValueError):
    """A profile that cannot work. The message is one line: file, key, value, what is allowed."""


def load_profile(name: str, folder: Path = PROFILES) -> Profile:
    data = _merged(name, folder, ())
    if seeds := os.environ.get("BEZOAR_SEEDS"):  # make ablations SEEDS=3
        data["ablations"] = data.get("ablations", {}) | {"seeds": int(seeds) if seeds.isdigit() else seeds}
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


def flat(values: dict, above: str = "") -> dict:
    """Nested sections as one mapping, keys joined by dots; an empty section stays a value."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return found


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
    if name.startswith(REHEARSAL) and not seen:
        return _rehearsed(name)
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


def _rehearsed(name: str) -> dict:
    """What `make rehearse` wrote into the run itself, for it is made anew each time."""
    path = ROOT / "runs" / name / "profile.yaml"
    if not path.exists():
        raise ProfileError(f"there is no rehearsal {name!r}: run `make rehearse PROFILE={name.removeprefix(REHEARSAL)}`")
    return yaml.safe_load(path.read_text())


def _over(base: dict, changes: dict) -> dict:
    """Section by section, key by key; a source of rows is replaced whole, for half of another origin would be nonsense."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict) and not any(origin in value for origin in ORIGINS)
        merged[key] = _over(base[key], value) if both else value
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
    section = Profile
    for part in location[:-1]:
        section = _section_of(section.model_fields[part].annotation) if part in section.model_fields else section
    return list(section.model_fields)


def _section_of(annotation):
    """The section behind `Section`, `Section | None` or `dict[str, Section]`."""
    return next(kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields"))
