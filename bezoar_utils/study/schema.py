"""The schema of a profile: one section a stage, and the profile that holds them all."""

from difflib import get_close_matches
from operator import attrgetter
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from .parts import (
    BaseModelSource,
    Checkpoints,
    Count,
    Intervals,
    Judge,
    Launch,
    Lora,
    Money,
    Plan,
    Positive,
    Quantisation,
    Rate,
    RewardModel,
    Section,
    Source,
    Teacher,
    near,
    near_or_all,
)
from .stages import STAGES

Schemes = Literal["lamini", "orca", "evol"]
Collections = Literal["cot", "niv2", "t0", "flan2021"]
MODEL_ROLES = ("teacher", "judge", "evol.equality_judge", "judge_filter.second_judge", "mt_bench.second_judge")


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
    task_items: Positive
    questions_per_category: Positive

    @model_validator(mode="after")
    def heads_divide_hidden(self):
        if self.hidden % self.heads:
            raise ValueError(f"heads={self.heads} must divide hidden={self.hidden}")
        return self


class Lamini(Section):
    seeds: Source
    released: Source | None
    example_guided_calls: Count
    topic_guided_calls: Count
    continued_calls: Count
    magpie_calls: Count
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
    rewriter: Literal["teacher", "wishes"]
    shown_seeds: Count
    equality_judge: Judge | None
    equality_tries: Positive


class JudgeFilter(Section):
    verdicts: Literal["judge", "released"]
    screen: bool
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


class Pairs(Section):
    """Preference pairs of the SFT model's own replies; the stage runs where `preference_rows` come from it."""

    rows: Positive
    replies: Annotated[int, Field(ge=2)]
    temperature: Annotated[float, Field(gt=0, le=2)]
    max_new_tokens: Positive


class HhSft(SupervisedRecipe):
    rows: Positive
    merge_onto: Literal["dequantised", "full_precision"]


Change = Literal["beta", "gamma", "learning_rate", "nll_weight", "sync_every", "sync_weight", "eta", "warmup_steps"]
Method = Literal["dpo", "ipo", "simpo", "orpo", "tr_dpo", "rpo", "rpo_kl"]


class Dpo(Recipe):
    rows: Positive
    method: Method
    beta: Annotated[float, Field(gt=0)]
    gamma: Annotated[float, Field(ge=0)]
    sync_every: Positive
    sync_weight: Rate
    eta: Annotated[float, Field(gt=0)]
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
    task: str


class Findings(Section):
    claims_from: str
    limits: str = ""


class Ablations(Section):
    """What `make ablations` varies; it trains as `filter_test` and `dpo` say, but for this many steps."""

    seeds: Positive
    steps: Annotated[int, Field(ge=2)]
    dpo_steps: Annotated[int, Field(ge=2)]
    order: list[Schemes]
    ranks: list[Positive]
    methods: dict[Method, dict[Change, float]]
    dpo_rates: list[Rate]
    sampled_prompts: Positive

    @model_validator(mode="after")
    def order_is_another(self):
        if sorted(self.order) != sorted(get_args(Schemes)) or self.order == list(get_args(Schemes)):
            raise ValueError(f"order must name all of {', '.join(get_args(Schemes))}, in another order than that")
        return self


class Merge(Section):
    """How several adapters become one. They train as `sft` says, for these steps."""

    seeds: Positive
    steps: Annotated[int, Field(ge=2)]
    ways: list[Literal["cat", "linear", "ties", "dare_ties"]]
    most: Annotated[float, Field(gt=0)]
    budget: Positive
    limit: Positive


class Smaller(Section):
    """Which checkpoint is cut to a smaller one, how small, and how long it recovers; it trains as `sft` says."""

    seeds: Positive
    checkpoint: str
    at_most: Annotated[float, Field(gt=0, le=1)]
    budget: Annotated[int, Field(ge=5)]
    calibration_rows: Positive
    recovery_steps: Annotated[int, Field(ge=2)]
    limit: Positive


class Choice(Section):
    """What an hour of a GPU costs, and how many TFLOP/s it sustains, for a price of FLOPs."""

    gpu_hour_usd: Annotated[float, Field(ge=0)]
    tflops: Annotated[float, Field(gt=0)]


class Bits(Section):
    """Which checkpoint is rounded to fewer bits, and how."""

    checkpoint: str
    bits: list[Annotated[int, Field(ge=2, le=8)]]
    methods: list[Literal["rtn", "gptq", "awq"]]
    group: Positive
    calibration_rows: Positive
    held_back_rows: Positive
    limit: Positive


class Reward(Recipe):
    """How a reward model is trained, and for how many steps its uses are; else they train as `filter_test` and `dpo` say."""

    seeds: Positive
    model: RewardModel | None
    prompts: Positive
    replies: Annotated[int, Field(ge=2)]
    temperature: Annotated[float, Field(gt=0, le=2)]
    length_penalty: Annotated[float, Field(gt=0)]
    filter_steps: Annotated[int, Field(ge=2)]
    round_steps: Annotated[int, Field(ge=2)]
    sampled_prompts: Positive


def _known_stage(name: str) -> str:
    if name not in STAGES:
        raise ValueError(f"this is not a stage{near_or_all(name, STAGES)}")
    return name


def _mistyped(name: str, tasks: list[str]) -> bool:
    """Whether this means one of the tasks; else it may be a task within a group, which only the harness knows (`make plan`)."""
    return bool(get_close_matches(name, tasks, 1, 0.85)) and not any(name.startswith(f"{task}_") for task in tasks)


class Profile(Section):
    stages: Annotated[list[Annotated[str, AfterValidator(_known_stage)]], Field(min_length=1)] | None
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
    quantisation: Quantisation | None
    miniature: Miniature
    lamini: Lamini
    orca: Orca
    evol: Evol
    judge_filter: JudgeFilter
    sft: Sft
    preference_rows: Source
    pairs: Pairs
    hh_sft: HhSft
    dpo: Dpo
    checkpoints: Checkpoints
    evaluation: Evaluation
    benchmarks: Benchmarks
    mt_bench: MtBench
    charts: Charts
    filter_test: FilterTest
    findings: Findings
    ablations: Ablations
    merge: Merge
    smaller: Smaller
    choice: Choice
    bits: Bits
    reward: Reward
    intervals: Intervals

    @model_validator(mode="after")
    def names_exist_and_calls_have_a_price(self):
        named = [(f"mt_bench.pairs.{n} names", name) for n, pair in enumerate(self.mt_bench.pairs) for name in pair]
        for place, name in [
            *named,
            ("bits.checkpoint is", self.bits.checkpoint),
            ("smaller.checkpoint is", self.smaller.checkpoint),
        ]:
            if name not in self.checkpoints:
                raise ValueError(f"{place} {name}, which is not a checkpoint{near_or_all(name, self.checkpoints)}")
        for name in set(self.benchmarks.fewshot) - set(self.evaluation.tasks):
            if self.evaluation.tasks_from or _mistyped(name, self.evaluation.tasks):
                tasks = near_or_all(name, self.evaluation.tasks)
                raise ValueError(f"benchmarks.fewshot.{name} is not one of evaluation.tasks{tasks}")
        for role, asked in self.model_roles().items():
            if asked.endpoint and asked.endpoint.base_url and asked.model not in self.money.prices:
                lacks = f"money.prices lacks {asked.model!r}{near(asked.model, self.money.prices)}"
                raise ValueError(f"{role}.model answers at a remote endpoint, and {lacks}; [0, 0] when it is yours")
        return self

    @model_validator(mode="after")
    def no_warmup_outlasts_a_comparison(self):
        """The chapters beside the recipe train by its sections, but for steps of their own."""
        trained = {
            "80_ablations": {"ablations.steps": "filter_test", "ablations.dpo_steps": "dpo"},
            "81_reward": {"reward.filter_steps": "filter_test", "reward.round_steps": "dpo"},
            "82_merge": {"merge.steps": "sft"},
            "84_smaller": {"smaller.recovery_steps": "sft"},
        }
        for place, section in (found for stage in self.chapters() for found in trained.get(stage, {}).items()):
            steps, warmup = attrgetter(place)(self), getattr(self, section).warmup_steps
            if steps <= warmup:
                raise ValueError(f"{place}={steps} must be above {section}.warmup_steps={warmup}, with which it trains")
        return self

    def chapters(self) -> list[str]:
        """The stages that this profile runs, in the table's order; pairs are made only where they are trained on."""
        unasked = set() if (self.preference_rows.artifact or "").startswith("35_pairs/") else {"35_pairs"}
        return [stage for stage in STAGES if stage in (self.stages or STAGES) and stage not in unasked]

    def model_roles(self) -> dict[str, Teacher | Judge]:
        """Place -> the teacher, and every judge there is."""
        return {place: role for place in MODEL_ROLES if (role := attrgetter(place)(self))}
