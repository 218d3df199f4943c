"""A reward model where a judge stands (`judge.reward_model`): its numbers as verdicts, so that a filter needs no API.

A number says only which of two replies to one instruction is better. What counts as good enough, `accept_above`, is for the
profile to say; chapter 81 shows above which number a model would accept as many rows as the judge did.
"""

import json
import math

from ..data.filters import words
from ..data.template import NEXT_TURN, render_prompt
from ..training.reward import open_model, score
from ..training.tokens import load_tokenizer
from ..training.weights import locate_model
from .endpoint import Request
from .judge import read_sections, task_of
from .replies import Reply

# task of a judge prompt -> the parts of it that are replies to be scored
REPLIES: dict[str, tuple[str, ...]] = {"filter": ("response",), "grade": ("answer",), "preference": ("reply",)}
REPLIES |= {"comparison": ("first", "second"), "equality": ()}


def to_score(prompt: str) -> list[dict]:
    """The rows of `prompt` and `reply` that a judge prompt's verdict rests on: one, of a comparison two, of an equality none.

    Raises ValueError for a judge prompt of no known task.
    """
    parts, task = read_sections(prompt), task_of(prompt)
    if task not in REPLIES:
        raise ValueError(f"a reward model has no verdict of the kind {task!r}")
    asked = parts.get("instruction", parts.get("question", ""))
    rendered = asked.endswith(NEXT_TURN.rpartition("{instruction}")[2])  # a dialog's earlier turns are in it
    asked = asked if rendered else render_prompt(asked, parts.get("system", ""))
    return [{"prompt": asked, "reply": parts[name]} for name in REPLIES[task]]


def verdict(prompt: str, rewards: list[float], accept_above: float) -> str:
    """What a judge would write on its last line, from the rewards of `to_score`'s rows in their order."""
    parts, task = read_sections(prompt), task_of(prompt)
    if task == "equality":
        return json.dumps({"equality": "equal" if words(parts["first"]) == words(parts["second"]) else "not equal"})
    reason, above = f"reward {', '.join(f'{reward:.3f}' for reward in rewards)}", rewards[0] - accept_above
    if task == "comparison":
        first, second = rewards
        return json.dumps({"better": "tie" if first == second else "first" if first > second else "second", "reason": reason})
    if task == "preference":
        return json.dumps({"preferred": above > 0})
    rating = {"rating": 1 + round(9 / (1 + math.exp(-min(max(above, -50.0), 50.0)))), "reason": reason}
    return json.dumps(rating if task == "grade" else {"status": "Accept" if above > 0 else "Reject", **rating})


class Rewards:
    """Answers judge prompts as an endpoint would. Nothing is kept on disk: numbers are read, not written, and cost little."""

    def __init__(self, stage, role: dict):
        self.role, (path, _) = role, locate_model(stage, role["model"], role["revision"])
        self.model, self.tokenizer = open_model(path, role["reward_model"]["weights"]), load_tokenizer(path, stage)

    def ask(self, requests: list[Request], progress=None) -> list[Reply]:
        """A reply for each request, in their order, `batch_size` rows at a time."""
        settings, size, replies = self.role["reward_model"], self.role["batch_size"], []
        for start in range(0, len(requests), size):
            prompts = [request.prompt for request in requests[start : start + size]]
            rows = [to_score(prompt) for prompt in prompts]
            form = {"weights": settings["weights"], "mode": settings["mode"], "batch_size": size}
            rewards, read = score(self.model, self.tokenizer, [row for some in rows for row in some], **form)
            numbers = iter(rewards)
            texts = [
                verdict(prompt, [next(numbers) for _ in some], settings["accept_above"]) for prompt, some in zip(prompts, rows)
            ]
            replies += [Reply(text, tokens_in=read // len(prompts)) for text in texts]
            if progress:
                progress(len(replies), len(requests))
        return replies
