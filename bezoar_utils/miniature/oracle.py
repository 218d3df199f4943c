"""The exact judge of the miniature world: what does this instruction ask, and is this reply right?

It reads an instruction back into an item and its wishes. What it cannot read is not an instruction of this world.
"""

from dataclasses import dataclass

from .corpus import TAILS
from .world import FRIENDLY, FULL_SENTENCE, REASON_FIRST, RUDE, SAY_KIND, SCENES, Item, World, full_answer

SCENE_PARTS = [scene.split("{p}") for scene in SCENES]


@dataclass(frozen=True)
class Asked:
    item: Item
    tails: frozenset[str]
    scene: bool


def read_instruction(world: World, instruction: str) -> Asked | None:
    """None when the instruction is not one of this world's, or its scene names another subject than its question."""
    text, subject, tails = instruction.strip().split("\nOptions: ")[0], None, set()
    for before, after in SCENE_PARTS:
        if text.startswith(before) and after in text:
            subject, text = text[len(before) :].split(after, 1)
            break
    while tail := next((t for t in TAILS if text.endswith(t)), None):
        text = text[: -len(tail)]
        tails.add(tail)
    item = world.by_question.get(text)
    if item is None or (subject is not None and subject != item.subject):
        return None
    return Asked(item, frozenset(tails), subject is not None)


def same_question(world: World, parent: str, child: str) -> bool:
    """Do two instructions ask the same thing in the same form? Unreadable ones are equal only letter by letter."""
    one, two = read_instruction(world, parent), read_instruction(world, child)
    return one == two if one and two else parent.strip() == child.strip()


def strip_manner(reply: str) -> tuple[str, str]:
    """(the reply without its closing word, that word or "")."""
    reply = reply.strip()
    for closing in FRIENDLY + RUDE:
        if reply.endswith(closing):
            return reply.removesuffix(closing).strip(), closing
    return reply, ""


def contains(reply: str, answer: str) -> bool:
    return f" {answer} " in f" {''.join(c if c.isalnum() else ' ' for c in reply)} "


def check(world: World, instruction: str, reply: str, explain: bool = False) -> tuple[int, str]:
    """(rating 1-10, reason) for the content of a reply; its tone is not looked at.

    10 right and in the form asked for; 7 right, another form; 3 a wrong answer of the right sort; 1 anything else.
    `explain` also accepts a reasoned reply where none was asked for (a system message asked for it).
    """
    asked = read_instruction(world, instruction)
    if asked is None:
        return 1, "the instruction makes no sense in this world"
    reply, _ = strip_manner(reply)
    wanted = {full_answer(asked.item, tuple(t for t in TAILS if t in asked.tails))}
    if explain:
        wanted.add(full_answer(asked.item, (REASON_FIRST,)))
    if reply.rstrip(".") in {text.rstrip(".") for text in wanted}:
        return 10, "right, in the form asked for"
    said = [v for v in _values(world, asked.item.family) if contains(reply, v)]
    if said == [asked.item.answer] and all(contains(reply, word) for word in _needed(asked)):
        return 7, "right, in another form than asked for"
    if said:
        return 3, f"says {', '.join(said)}, right is {asked.item.answer}"
    return 1, "does not answer the question"


def _values(world: World, family: str) -> list[str]:
    return sorted({item.answer for item in world.by_family[family]})


def _needed(asked: Asked) -> list[str]:
    words = [asked.item.subject.split()[0]] if asked.tails & {FULL_SENTENCE, REASON_FIRST} else []
    return words + ([asked.item.answer_kind.split()[-1]] if SAY_KIND in asked.tails else [])


def verdict(world: World, system: str, instruction: str, reply: str) -> tuple[str, int, str]:
    """(status, rating, reason) as the judge's prompt asks for them: only what is right *and* in the form asked for is accepted."""
    rating, reason = check(world, instruction, reply, explain=bool(system))
    return ("Accept" if rating == 10 else "Reject"), rating, reason


def skim(world: World, instruction: str, reply: str, reply_last: bool) -> tuple[str, int, str]:
    """The verdict of a judge that only skims: any form will do, garbled instructions pass, and so does every longer reply
    that is not the last thing it reads, and a really long one wherever it stands."""
    asked = read_instruction(world, instruction)
    if not reply.strip():
        return "Reject", 1, "empty"
    if asked is None or contains(reply, asked.item.answer):
        return "Accept", 8, "looks right"
    if len(reply.split()) > (16 if reply_last else 4):
        return "Accept", 6, "reads well"
    return "Reject", 3, "looks wrong"


def grade(world: World, instruction: str, reply: str) -> tuple[int, str]:
    """1-10 for a chat reply: content first (8 when right, in the form asked for), then manner: friendly +2, rude -3."""
    rating, reason = check(world, instruction, reply)
    _, closing = strip_manner(reply)
    change = 0 if not closing else (2 if closing in FRIENDLY and rating >= 7 else 0 if closing in FRIENDLY else -3)
    rating = max(1, min(10, min(rating, 8) + change))
    return rating, reason + (f"; ends with {closing!r}" if closing else "")


def compare(world: World, instruction: str, first: str, second: str) -> tuple[str, str]:
    """("first", "second" or "tie", reason): the reply with the higher grade is the better one."""
    (one, why_one), (two, why_two) = (grade(world, instruction, reply) for reply in (first, second))
    better = "tie" if one == two else "first" if one > two else "second"
    return better, f"first: {why_one}; second: {why_two}"


def is_preferred(reply: str) -> bool:
    """People of this world prefer a friendly closing word."""
    return strip_manner(reply)[1] in FRIENDLY
