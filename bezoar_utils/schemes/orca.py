"""Orca's explanation tuning (arXiv 2306.02707): system messages that ask for explained answers to FLAN queries.

The sixteen messages are ours, written to the published gists; which messages go with which FLAN sub-collection follows
the Orca paper's table. How many rows the OpenBezoar authors drew from each is unknown.
"""

import random

SYSTEM_MESSAGES = {
    1: "",
    2: "You are a helpful assistant. Give a detailed answer, so that nobody has to look anything up elsewhere.",
    3: "You are a helpful assistant. Answer at length and in detail.",
    4: "You are a helpful assistant. Always explain your answer, as if to a child of five.",
    5: "You are a helpful assistant who follows instructions very well.",
    6: "You are an assistant that helps to find information. Give a detailed answer that is easy to understand.",
    7: "You are an assistant. You get a task and complete it faithfully. Think step by step and justify each step.",
    8: "Describe the task first. For a choice question give the right answer, then say why the others are wrong, as if to a "
    "child of five.",
    9: "Explain how you used the definition of the task to come to the answer.",
    10: "Describe the task first. For a choice question give the right answer, then say why the others are wrong, with "
    "further knowledge where it helps.",
    11: "You are an assistant that helps to find information. Answer faithfully and think step by step.",
    12: "You follow the instructions of a task. Work step by step and justify your steps.",
    13: "You are a teacher. Explain in simple steps what the task asks and what its rules are, then solve it.",
    14: "You know every language and how to translate. Explain the task, then solve it by its guidelines.",
    15: "Split the definition into numbered parts. Say for each part how it is used, then answer by them.",
    16: "You are an assistant that helps to find information.",
}
MULTIPLE_CHOICE_ONLY = frozenset({8, 10})
MESSAGES_FOR = {
    "cot": (6, 11, 16),
    "niv2": (1, 2, 5, 7, 9, 12, 13, 14, 15),
    "t0": (1, 2, 3, 5, 7),
    "flan2021": (3, 4, 7, 8, 10),
}


def draw_system_message(sub_collection: str, multiple_choice: bool, rng: random.Random) -> int:
    """Number of a system message for a row of this FLAN sub-collection; two of them fit multiple choice only.

    Raises ValueError for a sub-collection that Orca's table does not have.
    """
    if sub_collection not in MESSAGES_FOR:
        raise ValueError(f"unknown FLAN sub-collection {sub_collection!r}; known: {', '.join(MESSAGES_FOR)}")
    fitting = [n for n in MESSAGES_FOR[sub_collection] if multiple_choice or n not in MULTIPLE_CHOICE_ONLY]
    return rng.choice(fitting)


def draw_queries(
    task_names: list[str], template_types: list[str], count: int, rng: random.Random, most_per_task=None, without=(), zero_shot=True
) -> list[int]:
    """Orca's Algorithm 1 on one sub-collection: draw a task, then one of its queries without replacement.

    Returns row numbers. No task gives more than `most_per_task`; tasks with one of `without` in their name give none;
    `zero_shot` leaves out few-shot templates (`fs_…`). Raises ValueError when fewer than `count` queries remain.
    """
    pools: dict[str, list[int]] = {}
    for number, (task, template) in enumerate(zip(task_names, template_types, strict=True)):
        if not (zero_shot and template.startswith("fs_")):
            pools.setdefault(task, []).append(number)
    pools = {t: p for t, p in sorted(pools.items()) if not any(part in t.lower() for part in without)}
    for pool in pools.values():
        rng.shuffle(pool)
        del pool[most_per_task or len(pool) :]
    fit = sum(map(len, pools.values()))
    if fit < count:
        raise ValueError(f"only {fit} queries fit, but {count} are asked for; ask for fewer or allow more per task")
    numbers: list[int] = []
    open_tasks = list(pools)
    while len(numbers) < count:
        place = rng.randrange(len(open_tasks))
        numbers.append(pools[open_tasks[place]].pop())
        if not pools[open_tasks[place]]:
            open_tasks.pop(place)
    return numbers


def teacher_prompt(system_message: str, query: str) -> str:
    """What a teacher sees that has no place of its own for a system message. The targets are not shown to it (ours: the paper does
    not say)."""
    return f"{system_message}\n\n{query}" if system_message else query
