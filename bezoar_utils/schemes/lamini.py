"""LaMini-LM's two ways to have a teacher write instructions (arXiv 2304.14402), in our own words.

Example-guided: the teacher sees k sampled seeds and writes more like them. Topic-guided: the same, steered to t topics.
The original asks for 20 instructions from 3 examples and 3 topics; how many the OpenBezoar authors used is unknown.
"""

import re

from ..data.filters import NearCopies, words

# as small teachers write them: in any case, with spaces, or with the word doubled
OPENING = re.compile(r"<\s*(?:example)+\s*>", re.IGNORECASE)
CLOSING = re.compile(r"<\s*/\s*(?:example)+\s*>?", re.IGNORECASE)
# possessive (*+), so that no run of blanks is tried in every way; not the beginning of "1.5 litres", "10:30" or "-5"
LABEL = re.compile(r"^\s*(?:(?:\d+\s*[.):](?!\d)|[-*](?=\s)|•|(?:example|instruction|question)\s*+\d*\s*+:)\s*)+", re.IGNORECASE)


def example_guided_prompt(examples: list[str], n_new: int) -> str:
    return _prompt(examples, n_new, topics=[])


def topic_guided_prompt(examples: list[str], topics: list[str], n_new: int) -> str:
    if not topics:
        raise ValueError("topic-guided generation needs at least one topic")
    return _prompt(examples, n_new, topics)


def _prompt(examples: list[str], n_new: int, topics: list[str]) -> str:
    if not examples:
        raise ValueError("LaMini prompts need at least one example")
    about = f" about the topics {', '.join(topics)}" if topics else ""
    tagged = "\n".join(f"<example>{example}</example>" for example in examples)
    return (
        f"Write {n_new} varied instructions{about} like the examples. Write no answers. "
        f"Each one is a command or a question between the same tags.\n{tagged}"
    )


def parse_instructions(completion: str) -> list[str]:
    """The tagged instructions of one completion, in order, without the numbers and labels teachers put before them.

    An instruction whose closing tag was forgotten ends where the next one opens; the last one without a closing tag was
    cut off by the length limit and is left out. Text outside the tags is ignored.

    Example: "Sure! <example>1. Name a river.</example> <example>Add 2 and 3.<example>Name a la" gives
    ["Name a river.", "Add 2 and 3."].
    """
    pieces = OPENING.split(completion)[1:]
    if pieces and not CLOSING.search(pieces[-1]):
        pieces.pop()
    return [text for piece in pieces if (text := LABEL.sub("", CLOSING.split(piece)[0]).strip())]


def drop_repeats(instructions: list[dict], seeds: list[str], near_duplicate: float) -> tuple[list[dict], dict[str, int]]:
    """(instructions that are new, number dropped per reason). The first copy of each instruction that does not repeat a seed
    is new.

    Equal means equal words; near is ROUGE-L of at least `near_duplicate` (Self-Instruct, arXiv 2212.10560, took 0.7).
    """
    new, dropped = [], dict.fromkeys(("copy_of_seed", "near_copy_of_seed", "repeated", "near_repeat"), 0)
    equal_seeds, equal = {tuple(words(seed)) for seed in seeds}, set()
    near_seeds, near = NearCopies(near_duplicate, seeds), NearCopies(near_duplicate)
    for row in instructions:
        text = row["instruction"]
        if (key := tuple(words(text))) in equal_seeds:
            dropped["copy_of_seed"] += 1
        elif key in equal:
            dropped["repeated"] += 1
        elif near_seeds.holds(text):
            dropped["near_copy_of_seed"] += 1
        elif near.holds(text):
            dropped["near_repeat"] += 1
        else:
            equal.add(key)
            near.add(text)
            new.append(row)
    return new, dropped
