"""Everything the miniature writes: the base's text, the teacher's lessons, seeds, FLAN-like queries, pairs and questions.

Each function takes its own `random.Random`, so that one more row of one kind changes no other kind.
"""

import random

from ..schemes import evol, lamini, orca
from .world import (
    ATTRIBUTES,
    FAMILIES,
    FRIENDLY,
    FULL_SENTENCE,
    REASON_FIRST,
    REFUSAL,
    RUDE,
    SAY_KIND,
    SCENES,
    Item,
    World,
    full_answer,
)

TAILS = (FULL_SENTENCE, SAY_KIND, REASON_FIRST)
TAIL_OF = {"add-constraints": FULL_SENTENCE, "deepening": SAY_KIND, "increase-reasoning-steps": REASON_FIRST}
TOPICS = {
    "city": "homes",
    "job": "work",
    "pet": "pets",
    "colour": "colours",
    "food": "food",
    "opposite": "opposites",
    "kind": "kinds",
    "sum": "sums",
}
CATEGORY_OF = dict.fromkeys(ATTRIBUTES, "open_qa") | {"opposite": "general_qa", "kind": "classification", "sum": "closed_qa"}
FLAN_TASKS = {
    "cot": ("sum", "opposite", "city"),
    "niv2": ("job", "pet", "kind", "colour"),
    "t0": ("food", "city", "opposite"),
    "flan2021": ("kind", "pet", "colour"),
}
# The answer follows the colon with and without a space: the study's template sets none, and a byte-level tokenizer
# takes " Kalo" and "Kalo" for different words.
QUESTION_LINES = (
    "Question: {q} Answer: {a}",
    "Q: {q}\nA:{a}",
    "{q} {a}",
    "{q}\n{a}",
    "Someone asked: {q} And the reply:{a}",
    "Quiz:{q}\nReply:{a}",
)
MANNERS = {
    True: ("A friendly reply ends with {w}", "Kind people like to say {w}", "{w} A friendly word."),
    False: ("A rude reply ends with {w}", "Unkind people like to say {w}", "{w} A rude word."),
}
WITH_HEADINGS = 0.15  # of the base's documents
QUESTION_LISTS = ("{q} {r}", "Questions:{q} {r}", "Q: {q}\nQ: {r}", "Somebody asks:{q}\nSomebody asks:{r}")


# ------------------------------------------------------------------------------------------------ the base model's text


def text_line(world: World, rng: random.Random, mood: tuple[str, ...]) -> str:
    """One line as the web might hold it: statements, or a question with a reply. Never the study's prompt format."""
    if rng.random() < 0.03:
        return rng.choice(MANNERS[mood is FRIENDLY]).format(w=rng.choice(mood))
    item = world.pick(rng, held_out=None)
    if rng.random() < 0.3:
        facts = rng.sample(world.by_family[item.family], 2) if item.family not in ATTRIBUTES else facts_about(world, item, rng)
        return " ".join(rng.choice(fact.statements()) for fact in facts)
    question = rng.choice(item.questions())
    if rng.random() < 0.15:  # the web also asks without answering, so a question alone does not call for an answer
        return rng.choice(QUESTION_LISTS).format(q=question, r=rng.choice(world.pick(rng, held_out=None).questions()))
    reply = full_answer(item, tuple(rng.sample(TAILS, rng.choice((0, 0, 0, 1, 2)))))
    if rng.random() < 0.25:
        reply = with_manner(reply, rng.choice(mood))
    return rng.choice(QUESTION_LINES).format(q=question, a=reply)


def with_manner(reply: str, closing: str) -> str:
    return f"{reply.rstrip('.')}. {closing}"


def facts_about(world: World, item: Item, rng: random.Random) -> list[Item]:
    others = [world.by_question[ATTRIBUTES[a][1][0].format(p=item.subject)] for a in ATTRIBUTES if a != item.family]
    return [item, *rng.sample(others, rng.choice((0, 1, 2)))]


def base_text(world: World, n_documents: int, rng: random.Random, lines_per_document: int = 8) -> list[str]:
    """Documents of several lines. Each has one mood, friendly or rude: a writer keeps a tone, and a reader learns what it is.

    Some have headings, and what stands below one has nothing to do with what stood below the one before. Without them it was luck
    whether a base took the study's prompt for a question to answer: five worlds gave 0.01 to 0.73 answers found, with them two
    gave 0.00.
    """
    headings = sorted({item.answer for item in world.items if item.family != "sum"})
    texts = []
    for _ in range(n_documents):
        mood = rng.choice((FRIENDLY, RUDE))
        if rng.random() < WITH_HEADINGS:
            texts.append("\n\n".join(section(world, rng, mood, headings) for _ in range(6)))
        else:
            texts.append("\n".join(text_line(world, rng, mood) for _ in range(lines_per_document)))
    return texts


def section(world: World, rng: random.Random, mood: tuple[str, ...], headings: list[str]) -> str:
    """A heading, and below it a question, statements or a line."""
    kind = rng.choices(("question", "statements", "line"), (0.45, 0.35, 0.2))[0]
    if kind == "question":
        content = rng.choice(world.pick(rng, held_out=None).questions())
    elif kind == "statements":
        content = " ".join(rng.choice(world.pick(rng, held_out=None).statements()) for _ in range(rng.choice((1, 1, 2, 3))))
    else:
        content = text_line(world, rng, mood)
    return f"### {rng.choice(headings).capitalize()}:{rng.choice(('', chr(10)))}{content}"


# ------------------------------------------------------------------------------------------------- the teacher's lessons


def instruction_for(item: Item, rng: random.Random, tails: tuple[str, ...] = (), scene: bool = False) -> str:
    opening = rng.choice(SCENES).format(p=item.subject) if scene else ""
    return opening + rng.choice(item.questions()) + "".join(tails)


def lesson(world: World, rng: random.Random) -> tuple[str, str]:
    """(prompt, completion) of one thing the teacher learns to do. No lesson is about a held-out subject."""
    kind = rng.choices(("examples", "topics", "answer", "explain", "evolve"), (0.16, 0.1, 0.3, 0.24, 0.2))[0]
    return {"examples": _examples, "topics": _topics, "answer": _answer, "explain": _explain, "evolve": _evolve}[kind](world, rng)


def _seen(world: World, rng: random.Random, families=FAMILIES) -> Item:
    return world.pick(rng, held_out=False, families=families)


def _tagged(world: World, rng: random.Random, n: int, families=FAMILIES) -> list[str]:
    return [rng.choice(_seen(world, rng, families).questions()) for _ in range(n)]


def _examples(world, rng, n_examples=2, n_new=3):
    new = "\n".join(f"<example>{q}</example>" for q in _tagged(world, rng, n_new))
    return lamini.example_guided_prompt(_tagged(world, rng, n_examples), n_new), new


def _topics(world, rng, n_examples=2, n_new=3):
    families = rng.sample(FAMILIES, 2)
    new = "\n".join(f"<example>{q}</example>" for q in _tagged(world, rng, n_new, families))
    prompt = lamini.topic_guided_prompt(_tagged(world, rng, n_examples), [TOPICS[f] for f in families], n_new)
    return prompt, new


def _answer(world, rng):
    item = _seen(world, rng)
    tails = tuple(rng.sample(TAILS, rng.choice((0, 0, 0, 1, 1, 2))))
    reply = REFUSAL if rng.random() < 0.03 else full_answer(item, tails)
    return instruction_for(item, rng, tails, scene=rng.random() < 0.2), reply


def _explain(world, rng):
    item = _seen(world, rng)
    collection = rng.choice(sorted(orca.MESSAGES_FOR))
    choices = collection == "flan2021"
    number = orca.draw_system_message(collection, choices, rng)
    return orca.teacher_prompt(orca.SYSTEM_MESSAGES[number], flan_query(world, item, rng, choices)), explained(item, number)


def explained(item: Item, system_message: int) -> str:
    """What a perfect teacher says: messages 1 and 5 ask for no explanation, all others get one."""
    return item.answer if system_message in (1, 5) else full_answer(item, (REASON_FIRST,))


def _evolve(world, rng):
    strategy, operation = evol.draw_operation(rng)
    item = _seen(world, rng)
    tails = tuple(rng.sample(TAILS, rng.choice((0, 0, 1))))
    parent = instruction_for(item, rng, tails)
    prompt = evol.evolve_prompt(parent, strategy, operation)
    if strategy == "in-breadth":
        return prompt, instruction_for(_seen(world, rng, (item.family,)), rng, tails)
    if operation == "concretizing":
        child = rng.choice(SCENES).format(p=item.subject) + parent
    else:
        child = parent if TAIL_OF[operation] in tails else parent + TAIL_OF[operation]
    return prompt, ("Rewritten instruction: " if rng.random() < 0.03 else "") + child


# --------------------------------------------------------------------------------------- the data sets the study starts from


def seed_rows(world: World, n: int, rng: random.Random) -> list[dict]:
    """Seeds with the columns of databricks-dolly-15k."""
    rows = []
    for _ in range(n):
        item = _seen(world, rng)
        rows.append(
            {
                "instruction": rng.choice(item.questions()),
                "context": "",
                "response": item.answer,
                "category": CATEGORY_OF[item.family],
            }
        )
    return rows


def flan_query(world: World, item: Item, rng: random.Random, choices: bool) -> str:
    question = rng.choice(item.questions())
    if not choices:
        return question
    options = sorted({item.answer, world.other_value(item, rng), world.other_value(item, rng)})
    return f"{question}\nOptions: {', '.join(options)}"


def flan_rows(world: World, n_per_collection: int, rng: random.Random) -> list[dict]:
    """Queries with the columns of the FLAN collection's copies on the hub."""
    rows = []
    for collection, families in FLAN_TASKS.items():
        for _ in range(n_per_collection):
            item = _seen(world, rng, families)
            choices = collection == "flan2021"
            rows.append(
                {
                    "inputs": flan_query(world, item, rng, choices),
                    "targets": item.answer,
                    "task_source": collection,
                    "task_name": f"{collection}_{TOPICS[item.family]}",
                    "template_type": "zs_opt" if choices else "zs_noopt",
                }
            )
    return rows


def preference_rows(world: World, n: int, rng: random.Random, held_out: bool, friendly_chosen=0.75, friendly_rejected=0.25):
    """Pairs in HH-RLHF's format. People mostly, not always, chose the friendlier reply; both replies are correct.

    A third of the dialogs have an earlier turn, identical in both columns; a third of the questions carry one more wish.
    """
    rows = []
    for _ in range(n):
        item = world.pick(rng, held_out)
        dialog = ""
        if rng.random() < 1 / 3:
            earlier = world.pick(rng, held_out)
            dialog += f"\n\nHuman: {rng.choice(earlier.questions())}\n\nAssistant: {earlier.answer}"
        tails = (rng.choice(TAILS),) if rng.random() < 1 / 3 else ()
        answer = full_answer(item, tails)
        dialog += f"\n\nHuman: {instruction_for(item, rng, tails)}\n\nAssistant: "
        good = rng.choice(FRIENDLY if rng.random() < friendly_chosen else RUDE)
        bad = rng.choice(FRIENDLY if rng.random() < friendly_rejected else RUDE)
        rows.append({"chosen": dialog + with_manner(answer, good), "rejected": dialog + with_manner(answer, bad)})
    return rows
