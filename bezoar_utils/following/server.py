"""A judge of form and checkable wishes, without a model: an OpenAI-compatible chat endpoint on this machine.

`python -m bezoar_utils.following.server` serves until its standard input closes. It knows no facts: a reply that fulfils every
wish in good form may still be wrong. Wishes of a system message are not read.
"""

import json

from ..calls import judge, local_server
from ..data import filters, preferences
from ..data.template import NEXT_TURN
from . import form, wishes

MODEL = "wishes"
READS = ()


def answer(prompt: str) -> str:
    """The reply to a judge prompt: a reason, then the verdict as JSON on the last line.

    Raises KeyError for a missing part, ValueError for an unknown task or a prompt without marks.
    """
    parts = judge.read_sections(prompt)
    task = judge.task_of(prompt)
    if task == "equality":
        same = filters.words(parts["first"]) == filters.words(parts["second"])
        return _reply("", equality="equal" if same else "not equal")
    if task == "filter":
        rating, reason = grade(parts["instruction"], parts["response"])
        return _reply(reason, status="Accept" if rating == 10 else "Reject", rating=rating, reason=reason)
    question = last_instruction(parts["question"])
    if task == "grade":
        rating, reason = grade(question, parts["answer"])
        return _reply(reason, rating=rating, reason=reason)
    if task == "comparison":
        (one, why_one), (two, why_two) = (grade(question, parts[side]) for side in ("first", "second"))
        better = "tie" if one == two else "first" if one > two else "second"
        return _reply("", better=better, reason=f"first: {why_one}; second: {why_two}")
    if task == "preference":
        rating, reason = grade(question, parts["reply"])
        return _reply(reason, preferred=rating == 10)
    raise ValueError(f"unknown judge task {task!r}")


def grade(instruction: str, reply: str) -> tuple[int, str]:
    """(rating, reason). 2 for a fault of form, or for wishes that exclude each other; 10 for good form with every readable wish
    fulfilled, also when there is none; else 3 + the whole part of 6 x the share of fulfilled wishes: of three 3, 5 or 7, of two
    3 or 6."""
    asked = wishes.read(instruction)
    if pair := wishes.conflict(asked):
        return 2, f"no reply can fulfil both {pair}"
    unmet = wishes.unmet(asked, reply)
    ends_as_asked = any(wish.kind == "ends_with" and not wishes.unmet([wish], reply) for wish in asked)
    if fault := form.fault(f"{reply.rstrip()}." if ends_as_asked else reply):  # with the phrase asked for it is not cut off
        return 2, fault
    if unmet:
        return 3 + 6 * (len(asked) - len(unmet)) // len(asked), "; ".join(unmet)
    return 10, f"fulfils every wish ({len(asked)})" if asked else "no readable wish: judged by its form only"


def last_instruction(text: str) -> str:
    """The last instruction of a rendered study prompt, or the last human turn of a dialog; any other text as it is."""
    before, after = NEXT_TURN.split("{instruction}")
    if text.startswith("### System:") and text.endswith(after):
        return text.removesuffix(after).rpartition(before)[2]
    turns = preferences.turns(text)
    return turns[-2][1] if turns else text


def _reply(thoughts: str, **verdict) -> str:
    return f"{thoughts}\n{json.dumps(verdict)}"


if __name__ == "__main__":
    local_server.serve_until_closed(local_server.api((MODEL,), lambda _, prompt: answer(prompt)))
