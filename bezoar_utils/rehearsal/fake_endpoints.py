"""Every endpoint of a profile, in one server on 127.0.0.1: a teacher and a judge that answer in the right form, at random.

What they say follows from the prompt alone, so two rehearsals are the same. Now and then they do what real ones do: a busy
server (429), a reply without a verdict, a refusal, an unclosed tag.
"""

import json
import random
import re

from ..calls import judge, local_server
from . import rows

BUSY, MALFORMED, REFUSING = 0.05, 0.04, 0.04


def reply(prompt: str) -> str:
    """What a teacher or judge would reply to this prompt, in form."""
    rng = random.Random(prompt)
    kind = next((kind for kind, task in judge.TASKS.items() if prompt.startswith(task)), None)
    if kind:
        return "I cannot decide." if rng.random() < MALFORMED else f"{rows.answer(rng)}\n{json.dumps(verdict(kind, rng))}"
    if count := re.search(r"Write (\d+) varied instructions", prompt):
        lines = [f"<example>{number}. {rows.instruction(rng)}</example>" for number in range(1, int(count[1]) + 1)]
        return "\n".join(lines).removesuffix("</example>" if rng.random() < MALFORMED else "")
    if re.search(r"^(Rewrite this|Write one new) instruction", prompt, re.MULTILINE):
        return rows.instruction(rng)
    return "Sorry, I cannot help with that." if rng.random() < REFUSING else rows.answer(rng)


def verdict(kind: type, rng: random.Random) -> dict:
    values = {
        "status": "Accept" if rng.random() < 0.7 else "Reject",
        "rating": rng.randint(1, 10),
        "reason": rows.answer(rng),
        "equality": "equal" if rng.random() < 0.1 else "not equal",
        "better": rng.choice(["first", "second", "tie"]),
        "preferred": rng.random() < 0.5,
    }
    return {name: values[name] for name in kind.model_fields}


def handler_for(models: tuple[str, ...]) -> type[local_server.Handler]:
    """A server's handler that answers for these models, and is busy at the first request of a few prompts."""
    seen = set()

    def answer(model: str, prompt: str) -> str:
        if prompt not in seen and random.Random(f"busy/{prompt}").random() < BUSY:
            seen.add(prompt)
            raise local_server.Busy
        return reply(prompt)

    return local_server.api(models, answer)
