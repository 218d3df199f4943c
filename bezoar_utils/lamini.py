"""LaMini-LM's two ways to have a teacher write instructions (arXiv 2304.14402), in our own words.

Example-guided: the teacher sees k sampled seeds and writes more like them. Topic-guided: the same, steered to t topics.
The original asks for 20 instructions from 3 examples and 3 topics; how many the OpenBezoar authors used is unknown.
"""

import re

TAGGED = re.compile(r"<example>(.*?)</example>", re.DOTALL)


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
    shown = "\n".join(f"<example>{example}</example>" for example in examples)
    return (
        f"Write {n_new} varied instructions{about} like the examples. Write no answers. "
        f"Each one is a command or a question between the same tags.\n{shown}"
    )


def parse_instructions(completion: str) -> list[str]:
    """The tagged instructions of one completion, in order; text outside the tags and empty tags are ignored."""
    return [text.strip() for text in TAGGED.findall(completion) if text.strip()]


def normalise(instruction: str) -> str:
    """The key under which two instructions count as the same: case, spacing and end punctuation do not matter."""
    return re.sub(r"\W+", " ", instruction.lower()).strip()


def drop_repeats(instructions: list[dict], seeds: list[str]) -> tuple[list[dict], dict[str, int]]:
    """Keep the first of each instruction that is no copy of a seed; count what went, by reason."""
    seen_seeds, seen, kept = {normalise(s) for s in seeds}, set(), []
    dropped = {"copy_of_seed": 0, "repeated": 0}
    for row in instructions:
        key = normalise(row["instruction"])
        if key in seen_seeds:
            dropped["copy_of_seed"] += 1
        elif key in seen:
            dropped["repeated"] += 1
        else:
            seen.add(key)
            kept.append(row)
    return kept, dropped
