"""Wishes drawn at random: what Evol-Instruct's *add constraints* adds where no teacher is able to. Source: ours."""

import random
import re

from . import wishes

ARGUMENTS = {  # what a drawn wish names; any reply can, whatever its subject
    "n": {
        "at_most_words": (10, 15, 20, 30, 40),
        "at_least_words": (15, 20, 30, 40),
        "bullets": ("two", "three", "four"),
        "numbered": ("two", "three", "four"),
        "paragraphs": ("two",),
    },
    "fewer": {"at_most_words": (12, 16, 21, 31, 41)},
    "word": {
        "contains": ("always", "because", "often", "people", "small", "together"),
        "avoids": ("also", "can", "good", "important", "many", "very"),
        "begins_with": ("Often", "Perhaps", "Simply", "Today", "Well", "Yes"),
    },
    "phrase": {"ends_with": ("I hope this helps", "Let me know", "That is all", "Thank you for asking")},
    "keys": {"json": ('"answer" and "reason"', '"short" and "long"')},
}
# one of each line is enough for a reply; "number" and "yes_no" are for questions that have such an answer, and are never drawn
APART = (
    ("bullets", "json", "numbered", "one_sentence", "paragraphs", "quoted", "title", "number", "yes_no"),
    ("ends_with", "question", "json", "quoted", "number", "yes_no"),
    ("at_least_words", "at_most_words", "number", "yes_no"),
    ("lower_case", "upper_case"),
    ("begins_with", "json", "quoted", "bullets", "numbered", "title", "number", "yes_no"),
)
LONGEST_SHOWN = 60  # words: a small teacher reads slowly, and loses the thread
DRAWN = tuple(kind for kind in wishes.KINDS if kind not in ("number", "yes_no"))


def sentence(kind: str, rng: random.Random) -> str:
    """One wording of a wish, filled. Example: "bullets" gives "Give exactly three bullet points."."""
    wording = rng.choice(re.split(r"\|(?![^(]*\))", wishes.KINDS[kind].sentences))
    chosen = re.sub(r"\((.+?)\)", lambda m: rng.choice(m[1].split("|")), wording)
    return re.sub(r"\{(\w+)\}", lambda m: str(rng.choice(ARGUMENTS[m[1]][kind])), chosen)


def solved_alike(instruction: str, solved: list[tuple[str, str]], n: int, rng: random.Random) -> tuple[tuple[str, str], ...]:
    """`n` of the `solved` (instruction, response), in random order: those with a wish of a kind that this instruction has, then
    others with a wish; none of the same task, none longer than `LONGEST_SHOWN` words."""
    asked, task = wishes.split(instruction)
    kinds, alike, others = {wish.kind for wish in asked}, [], []
    short = [(pair, *wishes.split(pair[0])) for pair in solved if len(pair[0].split()) <= LONGEST_SHOWN]
    fitting = [(pair, {wish.kind for wish in theirs}) for pair, theirs, their_task in short if their_task != task]
    for pair, their_kinds in rng.sample(fitting, len(fitting)):
        if their_kinds:
            (alike if their_kinds & kinds else others).append(pair)
    return tuple((alike + others)[:n])


def add(instruction: str, rng: random.Random) -> str:
    """The instruction with one more wish that agrees with those it has: at the end of its task, before a context below an empty
    line, or else in front. Unchanged where it has room for none, or where the wish could not be read back."""
    asked = wishes.read(instruction)
    taken = {wish.kind for wish in asked} | {kind for group in APART for kind in group if any(w.kind in group for w in asked)}
    open_kinds = [kind for kind in DRAWN if kind not in taken]
    if not open_kinds:
        return instruction
    new = sentence(rng.choice(open_kinds), rng)
    head, line, context = instruction.partition("\n\n")
    for text in (f"{head} {new}{line}{context}", f"{new} {instruction}"):
        found = wishes.read(text)
        if len(found) == len(asked) + 1 and not wishes.conflict(found):
            return text
    return instruction
