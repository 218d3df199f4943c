"""The teacher: one small protocol, `generate(prompts, settings) -> completions`, over local weights or an endpoint.

Either way each finished completion is on disk at once, under a key of prompt, model, settings and seed: a rerun after a
kill generates only what is missing, and the files come out the same.
"""

from functools import cached_property

from ..study import files
from ..training.generation import by_length, generate_batch, row_seeds
from ..training.models import load_model, load_tokenizer, locate_model
from ..training.precision import current
from .endpoint import Request, open_endpoint, record_calls
from .ledger import Answers, Ledger

SCHEME = "teacher-2"  # of the key; a change of what is sent under the same settings needs a new one
FOUR_BIT = {"type": "nf4", "double": True, "compute_dtype": "auto"}


class Teacher:
    """Answers prompts for one stage, through whichever engine the profile names."""

    def __init__(self, stage, settings: dict, seed: int):
        self.stage, self.settings, self.seed = stage, settings, seed

    @cached_property
    def engine(self):  # made by the first prompt, so that a teacher without prompts needs no weights and no key
        return (EndpointEngine if self.settings["endpoint"] else LocalEngine)(self.stage, self.settings)

    def generate(self, prompts: list[str], what: str) -> list[str | None]:
        """One stripped completion a prompt, in order, each sampled from a seed of its own; None where the teacher failed."""
        if not prompts:
            return []
        stop = self.settings["stop"]
        sampling = {"max_tokens": self.settings["max_new_tokens"]} | {k: self.settings[k] for k in ("temperature", "top_p")}
        sampling |= {"stop": stop} if stop else {}
        wrapped = [self.settings["wrapper"].format(prompt=p) if self.settings["mode"] == "raw" else p for p in prompts]
        settings = [sampling | {"seed": seed} for seed in row_seeds(self.seed, what, len(prompts))]
        completions = self.engine.generate(wrapped, settings, self.stage.reporter(what))
        return [text if text is None else before_any(text, stop).strip() for text in completions]


def before_any(text: str, marks: list[str]) -> str:
    """The text before the first of these marks: a teacher may go on to ask itself the next question."""
    for mark in marks:
        text = text.split(mark)[0]
    return text


class EndpointEngine:
    """Any OpenAI-compatible server: many calls in flight, retries, and no answered call is sent again."""

    def __init__(self, stage, settings: dict):
        self.stage, self.mode = stage, settings["mode"]
        self.endpoint = open_endpoint(stage, settings)

    def generate(self, prompts: list[str], settings: list[dict], progress) -> list[str | None]:
        requests = [Request(prompt, sampling, self.mode, SCHEME) for prompt, sampling in zip(prompts, settings)]
        replies = self.endpoint.ask(requests, progress)
        record_calls(self.stage, replies)
        return [reply.text for reply in replies]


class LocalEngine:
    """Local weights, loaded when first needed. A batch is written as a whole, so that resumed batches hold the same rows."""

    def __init__(self, stage, settings: dict):
        self.stage, self.settings, self.ledger = stage, settings, Ledger(stage.output("calls.jsonl"))
        self.path, self.identity = locate_model(stage, settings["model"], settings["revision"])
        self.tokenizer, self.model = load_tokenizer(self.path), None

    def generate(self, prompts: list[str], settings: list[dict], progress) -> list[str | None]:
        model = {"model": self.identity, "four_bit": self.settings["four_bit"], "precision": current().dtype, "scheme": SCHEME}
        calls = [
            {"key": files.sha256_json({"prompt": prompt, **sampling, **model}), "prompt": prompt, "seed": sampling["seed"]}
            for prompt, sampling in zip(prompts, settings)
        ]
        answers = Answers([call["key"] for call in calls], self.ledger.finished, progress)
        fits = self._fit(prompts)
        answers.add(*({"key": call["key"], "failure": "too long"} for call, fit in zip(calls, fits) if not fit))
        fitting = [call for call, fit in zip(calls, fits) if fit]
        for batch in by_length([call["prompt"] for call in fitting], self.settings["batch_size"]):
            rows = [fitting[i] for i in batch]
            if any(call["key"] in answers.missing for call in rows):
                answers.add(*self._answer(rows))
        done = [row for row in answers.in_order() if "text" in row]
        self.stage.spend(tokens=sum(row["tokens_in"] + row["tokens_out"] for row in done), calls=len(done))
        return [row.get("text") for row in answers.in_order()]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts)["input_ids"] if texts else []

    def _fit(self, prompts: list[str]) -> list[bool]:
        """Which prompts leave room for an answer in the model's context."""
        from transformers import AutoConfig

        limit = getattr(AutoConfig.from_pretrained(self.path, trust_remote_code=False), "max_position_embeddings", None)
        room = self.settings["max_new_tokens"]
        return [limit is None or len(ids) + room <= limit for ids in self._ids(prompts)]

    def _answer(self, calls: list[dict]) -> list[dict]:
        """The rows of one batch, which are on disk when this returns."""
        if self.model is None:
            self.model = load_model(self.path, FOUR_BIT if self.settings["four_bit"] else None)
        prompts, seeds = [call["prompt"] for call in calls], [call["seed"] for call in calls]
        sampling = {k: self.settings[k] for k in ("max_new_tokens", "temperature", "top_p")}
        texts = generate_batch(self.model, self.tokenizer, prompts, seeds, **sampling)
        rows = [
            {"key": call["key"], "text": text, "tokens_in": len(ids_in), "tokens_out": len(ids_out), "cost_usd": 0.0}
            for call, text, ids_in, ids_out in zip(calls, texts, self._ids(prompts), self._ids(texts))
        ]
        self.ledger.append(*rows)
        return rows
