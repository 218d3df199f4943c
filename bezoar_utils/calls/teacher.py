"""The teacher: one small protocol, `generate(prompts, what) -> completions`, over local weights or an endpoint."""

from functools import cached_property

from ..training.generation import row_seeds
from .endpoint import record_calls
from .engine import open_engine, request

SCHEME = "teacher-2"  # of the key; a change of what is sent under the same settings needs a new one


class Teacher:
    """Answers prompts for one stage, through whichever engine the profile names."""

    def __init__(self, stage, settings: dict, seed: int):
        self.stage, self.settings, self.seed = stage, settings, seed

    @cached_property
    def engine(self):  # made by the first prompt, so that a teacher without prompts needs no weights and no key
        return open_engine(self.stage, self.settings)

    def generate(self, prompts: list[str], what: str, systems: list[str] | None = None, form=None, shown=None) -> list[str | None]:
        """One stripped completion a prompt, in order, each sampled from a seed of its own; None where the teacher failed.

        `systems` holds a system message for each prompt, "" for none; `shown` the earlier turns for each; `form` is as in
        `engine.request`.
        """
        if not prompts:
            return []
        stop = self.settings["stop"]
        sampling = {"max_tokens": self.settings["max_new_tokens"]} | {k: self.settings[k] for k in ("temperature", "top_p")}
        sampling |= {"stop": stop} if stop else {}
        seeds = row_seeds(self.seed, what, len(prompts))
        requests = [
            request(self.settings, prompt, sampling | {"seed": seed}, SCHEME, system=system, form=form, shown=turns)
            for prompt, system, turns, seed in zip(prompts, systems or [""] * len(prompts), shown or [()] * len(prompts), seeds)
        ]
        replies = self.engine.ask(requests, self.stage.reporter(what))
        record_calls(self.stage, replies)
        return [reply.text if reply.text is None else before_any(reply.text, stop).strip() for reply in replies]


def before_any(text: str, marks: list[str]) -> str:
    """The text before the first of these marks: a teacher may go on to ask itself the next question."""
    for mark in marks:
        text = text.split(mark)[0]
    return text
