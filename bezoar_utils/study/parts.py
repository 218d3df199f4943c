"""What several sections of a profile share: sources of rows, endpoints, models, the plan. Strict: a typing error is an error.

A value that has a default here may be left out of a profile and of a parameters cell.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Price = Annotated[float, Field(ge=0)]
ORIGINS = ("artifact", "file", "hub")
# Both sets are CC BY-NC 4.0; the paper makes its own data instead.
NEVER_MIXED = ("lamini-instruction", "wizardlm_evol_instruct")


def near(name, known: Iterable[str]) -> str:
    """A suggestion in brackets, or nothing where no known name is like this one."""
    close = difflib.get_close_matches(str(name), [*known], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def near_or_all(name, known: Iterable[str]) -> str:
    """The end of an error about a name that is not known: the one like it, and all there are."""
    return f"{near(name, known)}; known: {', '.join(known)}"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


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


Sent = Literal["max_tokens", "seed", "stop", "temperature", "top_p"]  # beside model and prompt


class Endpoint(Section):
    base_url: str | Annotated[list[str], Field(min_length=1)] | None = None
    local_server: str | None = None
    api_key_env: str | None = None
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    attempts: Positive = 5
    lose_at_most: Share = 0.01
    parameters: dict[Sent, str | None] = {}
    extra: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def one_address(self):
        if (self.base_url is None) == (self.local_server is None):
            raise ValueError("give exactly one of base_url and local_server")
        if isinstance(self.base_url, list) and len(set(self.base_url)) < len(self.base_url):
            raise ValueError(f"base_url names an address twice: {', '.join(self.base_url)}")
        if self.api_key_env is not None and not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.api_key_env):
            raise ValueError("api_key_env is the NAME of an environment variable in capitals, never the key itself")
        ours = {*get_args(Sent), *self.parameters.values(), "model", "messages", "prompt", "n", "stream"}
        if taken := sorted(ours & set(self.extra)):
            raise ValueError(f"extra names {', '.join(taken)}, which the study sends itself or cannot use; see parameters")
        return self


class Launch(Section):
    processes: Positive = 1
    config_file: str | None = None


def _holds_prompt(wrapper: str) -> str:
    try:
        filled = wrapper.format(prompt="\0")
    except (LookupError, ValueError, AttributeError):
        raise ValueError("wrapper must hold {prompt} once and no other braces; double a brace of the text: {{") from None
    if filled.count("\0") != 1:
        raise ValueError("wrapper must hold {prompt} once, in single braces")
    return wrapper


class Role(Section):
    """A model that is asked: at an endpoint, or local weights, which read `batch_size` prompts at a time."""

    model: str
    revision: str | None = None
    licence: str
    endpoint: Endpoint | None = None
    mode: Literal["raw", "chat"]
    wrapper: Annotated[str, AfterValidator(_holds_prompt)] = "{prompt}"
    batch_size: Positive = 8
    four_bit: bool = False


class Teacher(Role):
    mode: Literal["raw", "chat"] = "raw"
    wrapper: Annotated[str, AfterValidator(_holds_prompt)]
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] = []
    temperature: Annotated[float, Field(ge=0, le=2)]
    top_p: Rate
    max_new_tokens: Positive
    batch_size: Positive


class RewardVerdicts(Section):
    """A judge's `model` is a reward model: above which number it accepts, how it is asked, and the weights of its numbers."""

    accept_above: float
    mode: Literal["raw", "chat"] = "raw"
    weights: list[float] = []


class Judge(Role):
    mode: Literal["raw", "chat"] = "chat"
    reward_model: RewardVerdicts | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Positive = 256

    @model_validator(mode="after")
    def a_reward_model_is_in_this_process(self):
        if self.reward_model and self.endpoint:
            raise ValueError("reward_model says that the model is a reward model in this process: endpoint must be null")
        return self


class BaseModelSource(Section):
    model: str
    revision: str | None = None
    licence: str


class RewardModel(BaseModelSource):
    """A finished one. Several numbers a reply become one by their `weights`; `chat` asks in its own chat template."""

    mode: Literal["raw", "chat"] = "raw"
    weights: list[float] = []


Checkpoints = Annotated[dict[str, BaseModelSource], Field(min_length=2)]  # the first is the base; each later one follows it


class Lora(Section):
    r: Positive
    alpha: Positive
    dropout: Share
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["attention", "all-linear"]


class Quantisation(Section):
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"


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
    context: Positive | None = None
    served: Served | None = None

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
    """What `make plan` estimates with before anything is measured; no stage reads it."""

    seed_categories: Positive
    questions: Positive
    teacher: Expected
    judge: Expected
    same_family: bool = False
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    gpu: Gpu | None = None
    base: Shape | None = None
    work: Work | None = None

    @model_validator(mode="after")
    def a_gpu_has_work(self):
        if self.gpu and not (self.base and self.work):
            raise ValueError("gpu needs base, the base model's shape, and work, how many rows and tokens there are")
        return self
