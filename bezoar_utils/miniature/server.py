"""The miniature's judge: an OpenAI-compatible chat endpoint whose verdicts come from the world's exact oracle.

`python -m bezoar_utils.miniature.server world.json` serves until its standard input closes, so it never outlives the stage that
started it. The study reaches it only through the openai client.
"""

import json
import sys
from pathlib import Path

from ..calls import judge, local_server
from . import oracle
from .world import World, build_world

ORACLE, SKIMMER = "miniature-oracle", "miniature-skimmer"
READS = ("00_miniature/world.json",)


def answer(world: World, prompt: str, model: str = ORACLE) -> str:
    """The reply to a judge prompt: a sentence of reason, then the verdict as JSON on the last line."""
    parts = judge.read_sections(prompt)
    task = judge.task_of(prompt)
    if task == "filter" and model == SKIMMER:
        status, rating, reason = oracle.skim(world, parts["instruction"], parts["response"], list(parts)[-1] == "response")
        return _reply(reason, status=status, rating=rating, reason=reason)
    if task == "filter":
        status, rating, reason = oracle.verdict(world, parts["system"], parts["instruction"], parts["response"])
        return _reply(reason, status=status, rating=rating, reason=reason)
    if task == "equality":
        same = oracle.same_question(world, parts["first"], parts["second"])
        return _reply("", equality="equal" if same else "not equal")
    if task == "grade" and model == SKIMMER:
        _, rating, reason = oracle.skim(world, parts["question"], parts["answer"], reply_last=True)
        return _reply(reason, rating=rating, reason=reason)
    if task == "comparison":
        better, reason = oracle.compare(world, parts["question"], parts["first"], parts["second"])
        return _reply(reason, better=better, reason=reason)
    if task == "grade":
        rating, reason = oracle.grade(world, parts["question"], parts["answer"])
        return _reply(reason, rating=rating, reason=reason)
    if task == "preference":
        return _reply("", preferred=oracle.is_preferred(parts["reply"]))
    raise ValueError(f"unknown judge task {task!r}")


def _reply(thoughts: str, **verdict) -> str:
    return f"{thoughts}\n{json.dumps(verdict)}"


def main() -> None:
    world = build_world(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    local_server.serve_until_closed(local_server.api((ORACLE, SKIMMER), lambda model, prompt: answer(world, prompt, model)))


if __name__ == "__main__":
    main()
