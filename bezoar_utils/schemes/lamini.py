"""LaMini-LM's two ways to have a teacher write instructions (arXiv 2304.14402), in our own words, and two more for small teachers.

Example-guided: the teacher sees k sampled seeds and writes more like them. Topic-guided: the same, steered to t topics.
The original asks for 20 instructions from 3 examples and 3 topics; how many the OpenBezoar authors used is unknown.

A teacher of 135M parameters writes hardly any tagged list when it is told to. It can go on with a list (`continued`), and a
chat model can write the user's turn that its own template opens (`magpie`, arXiv 2406.08464). Neither is the paper's.
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


def continued_prompt(examples: list[str]) -> str:
    """A numbered list of the examples, open at the next number, for a teacher that goes on with a text."""
    if not examples:
        raise ValueError("a list to be continued needs at least one example")
    listed = "\n".join(f"{number}. {' '.join(example.split())}" for number, example in enumerate(examples, 1))
    return f"Varied instructions, one a line:\n\n{listed}\n{len(examples) + 1}."


def parse_list(completion: str) -> list[str]:
    """The instructions of a list that was gone on with: its first line stands behind a number already, each later one begins with a
    number or a bullet, and the list ends at the first line that does not. The last line was cut off by the length limit, and is
    left out, unless it ends like a sentence.

    Example: "Name a river.\n2) Add 2 and 3.\n- Say hel" gives ["Name a river.", "Add 2 and 3."].
    """
    lines = completion.strip().split("\n")
    found = [LABEL.sub("", lines[0])]
    for line in (line for line in lines[1:] if line.strip()):
        if not LABEL.match(line):
            break
        found.append(LABEL.sub("", line))
    if found[-1] and not re.search(r"[.?!\"')\]>]\s*$", found[-1]):
        found.pop()
    return [text for line in found if (text := line.strip())]


def parse_turn(completion: str) -> list[str]:
    """The instruction that a model wrote as the user: its first paragraph."""
    text = completion.strip().split("\n\n")[0].strip()
    return [text] if text else []


def parse_instructions(completion: str) -> list[str]:
    """The tagged instructions of one completion, in order, without the numbers and labels teachers put before them.

    An instruction whose closing tag was forgotten ends where the next one opens; the last one without a closing tag was
    cut off by the length limit and is left out. Text outside the tags is ignored.

    Without any tag, the lines with a number or a bullet count: that is how small teachers list.

    Example: "Sure! <example>1. Name a river.</example> <example>Add 2 and 3.<example>Name a la" gives
    ["Name a river.", "Add 2 and 3."].
    """
    if not OPENING.search(completion):
        return parse_list("\n".join(line for line in completion.split("\n") if LABEL.match(line)))
    pieces = OPENING.split(completion)[1:]
    if pieces and not CLOSING.search(pieces[-1]):
        pieces.pop()
    return [text for piece in pieces if (text := LABEL.sub("", CLOSING.split(piece)[0]).strip())]


# way -> how the teacher is asked (`engine.request`), and how its completion is read
FORMS = {"example-guided": None, "topic-guided": None, "continued": "continued", "magpie": "user_turn"}
PARSERS = {
    "example-guided": parse_instructions,
    "topic-guided": parse_instructions,
    "continued": parse_list,
    "magpie": parse_turn,
}


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
