"""What the miniature is evaluated on: ten tasks of different skills and two-turn questions, all about held-out subjects.

Four tasks are answered in words, six choose among options by likelihood. Four stand in the study's prompt template, so that the
form which SFT teaches should help; the others ask for knowledge as plain text, or for reading. Source: ours; the paper's ten are
LM Eval Harness tasks, three of which are known.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from ..data.template import render_prompt
from .corpus import TAILS, TOPICS, flan_query
from .world import ATTRIBUTES, FAMILIES, SCENES, Item, World, full_answer, invented_names

WORDS = {
    "output_type": "generate_until",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["###"], "max_gen_toks": 24, "do_sample": False},
    "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("strict_match", "answer_found")],
}
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
SHARED = {
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "metadata": {"version": 2.0},
    "should_decontaminate": True,
    "doc_to_decontamination_query": "question",
}


def _held(world: World, rng: random.Random, families=FAMILIES) -> Item:
    return world.pick(rng, held_out=True, families=families)


def _row(item: Item, question: str, prompt: str, answer: str) -> dict:
    return {"question": question, "prompt": prompt, "answer": answer, "family": item.family, "subject": item.subject}


def open_questions(world: World, n: int, rng: random.Random) -> list[dict]:
    """Open questions in the template, families in turn, no question twice while a family has others left."""
    pools = {f: [(i, q) for i in world.by_family[f] if i.held_out for q in i.questions()] for f in FAMILIES}
    for pool in pools.values():
        rng.shuffle(pool)
    rows = []
    for number in range(n):
        pool = pools[FAMILIES[number % len(FAMILIES)]]
        item, question = pool[number // len(FAMILIES) % len(pool)]
        rows.append(_row(item, question, render_prompt(question), item.answer))
    return rows


def _wishes(world: World, rng: random.Random) -> dict:
    item, wish = _held(world, rng), rng.choice(TAILS)
    scene = rng.choice(("", rng.choice(SCENES).format(p=item.subject)))
    question = scene + rng.choice(item.questions()) + wish
    return _row(item, question, render_prompt(question), full_answer(item, (wish,)).rstrip("."))


def _options(world: World, rng: random.Random) -> dict:
    item = _held(world, rng)
    question = flan_query(world, item, rng, choices=True)
    return _row(item, question, render_prompt(question), item.answer)


def _plain(world: World, rng: random.Random) -> dict:
    item = _held(world, rng)
    question = rng.choice(item.questions())
    return _row(item, question, f"Q: {question}\nA:", item.answer)


def _choice(world: World, item: Item, question: str, prompt: str, rng: random.Random, before: str = "") -> dict:
    """The right answer among up to three wrong ones of its sort, each after `before`; `answer` is the right one's index."""
    wrong = sorted({other.answer for other in world.by_family[item.family]} - {item.answer})
    choices = [item.answer, *rng.sample(wrong, min(3, len(wrong)))]
    rng.shuffle(choices)
    return _row(item, question, prompt, choices.index(item.answer)) | {"choices": [before + choice for choice in choices]}


def _known(world: World, rng: random.Random, families) -> dict:
    item = _held(world, rng, families)
    question = rng.choice(item.questions())
    return _choice(world, item, question, f"Q: {question}\nA:", rng)


def _people(world: World, rng: random.Random) -> dict:
    return _known(world, rng, tuple(ATTRIBUTES))


def _words(world: World, rng: random.Random) -> dict:
    return _known(world, rng, ("opposite", "kind"))


def _sums(world: World, rng: random.Random) -> dict:
    return _known(world, rng, ("sum",))


def _sentences(world: World, rng: random.Random) -> dict:
    item = _held(world, rng)
    start = item.sentence.removesuffix(f" {item.answer}.")
    return _choice(world, item, start, start, rng, before=" ")


def _reading(world: World, rng: random.Random) -> dict:
    [stranger] = invented_names(1, 3, rng, {*world.people, *world.cities})
    fact = _held(world, rng, tuple(ATTRIBUTES))
    told = Item(fact.family, stranger, fact.answer, "", fact.answer_kind, held_out=True)
    question = rng.choice(told.questions())
    return _choice(world, told, question, f"{rng.choice(told.statements())}\nQ: {question}\nA:", rng)


def _dialog(world: World, rng: random.Random) -> dict:
    earlier, item = _held(world, rng), _held(world, rng)
    question = rng.choice(item.questions())
    history = [(rng.choice(earlier.questions()), earlier.answer)]
    return _choice(world, item, question, render_prompt(question, history=history), rng)


class Task(NamedTuple):
    """`answered`: in words, or by choice among options; `place`: where the question stands."""

    answered: str
    place: str
    skill: str
    make: Callable[[World, int, random.Random], list[dict]]


def _each(row: Callable[[World, random.Random], dict]) -> Callable[[World, int, random.Random], list[dict]]:
    return lambda world, n, rng: [row(world, rng) for _ in range(n)]


TASKS = {
    "mini_answers": Task("words", "template", "answer a question", open_questions),
    "mini_wishes": Task("words", "template", "answer in the form that is wished for", _each(_wishes)),
    "mini_options": Task("words", "template", "pick one of the options that the prompt names", _each(_options)),
    "mini_plain": Task("words", "plain text", "answer a question after Q: and A:", _each(_plain)),
    "mini_people": Task("choice", "plain text", "know a fact about a person", _each(_people)),
    "mini_words": Task("choice", "plain text", "know opposites and kinds", _each(_words)),
    "mini_sums": Task("choice", "plain text", "add two digits", _each(_sums)),
    "mini_sentences": Task("choice", "plain text", "go on with a statement", _each(_sentences)),
    "mini_reading": Task("choice", "plain text", "find the answer in the line before it", _each(_reading)),
    "mini_dialog": Task("choice", "template", "answer the second question of a dialog", _each(_dialog)),
}


def task_config(name: str) -> bytes:
    """A task as LM Eval Harness reads it, beside its items."""
    import yaml

    config = (CHOICE if TASKS[name].answered == "choice" else WORDS) | SHARED
    if TASKS[name][:2] == ("words", "plain text"):  # the line after the answer is another text
        config |= {"generation_kwargs": WORDS["generation_kwargs"] | {"until": ["\n"]}}
    return yaml.safe_dump(config, sort_keys=False).encode()


def evaluation_tasks(world: World, n_answers: int, n_items: int, seed: int) -> dict[str, list[dict]]:
    """task -> its items, each with `question`, `prompt`, `answer` and `subject`: of `mini_answers` `n_answers`, of every other
    `n_items`. Each task draws its own."""
    counts = dict.fromkeys(TASKS, n_items) | {"mini_answers": n_answers}
    return {name: task.make(world, counts[name], random.Random(f"{seed} {name}")) for name, task in TASKS.items()}


def two_turn_questions(world: World, per_category: int, rng: random.Random) -> list[dict]:
    """Two-turn questions in FastChat's format, with references; the second turn asks the same of another subject, with one
    more wish."""
    rows = []
    for family in FAMILIES:
        items = rng.sample([i for i in world.by_family[family] if i.held_out], 2 * per_category)
        for first, second in zip(items[::2], items[1::2]):
            wish = rng.choice(TAILS)
            turns = [rng.choice(first.questions()), rng.choice(second.questions()) + wish]
            reference = [full_answer(first, ()), full_answer(second, (wish,))]
            rows.append({"question_id": len(rows) + 1, "category": TOPICS[family], "turns": turns, "reference": reference})
    return rows
