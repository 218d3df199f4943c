"""The miniature world: people with five facts each, opposites, kinds of things and small sums.

Everything here is ours, none of it is the paper's. The world is closed: each question it can ask has exactly one answer,
so an oracle (`oracle.py`) can judge any reply. A quarter of its subjects is held out: the base model reads about them,
but no seed, lesson or training row ever asks about them; the evaluation asks about nothing else.
"""

import random
from dataclasses import dataclass, field

SYLLABLES = "ba be bo da de do fa fi ga go ka ke ki la le lo ma me mi na ne no pa po ra re ri sa se so ta te to va vi za zo".split()
JOBS = "baker painter doctor farmer pilot singer tailor sailor miner teacher lawyer builder driver hunter weaver potter".split()
PETS = "cat dog horse parrot rabbit turtle goat snake hamster lizard duck spider".split()
COLOURS = "red blue green yellow purple orange black white brown pink".split()
FOODS = "bread soup rice cheese honey fish apples beans cake pasta nuts eggs".split()

OPPOSITES = """big:small hot:cold fast:slow high:low light:dark old:new hard:soft wet:dry rich:poor near:far early:late
loud:quiet full:empty strong:weak open:closed clean:dirty happy:sad thick:thin deep:shallow sharp:dull brave:timid
sweet:bitter smooth:rough wide:narrow tall:short long:brief warm:cool safe:risky""".split()

KINDS = {
    "tool": "hammer saw drill shovel rake chisel pliers wrench axe needle".split(),
    "fruit": "pear plum cherry grape lemon melon peach mango fig banana".split(),
    "bird": "robin eagle owl sparrow crow swan heron stork finch gull".split(),
    "tree": "oak pine birch maple willow cedar elm ash beech poplar".split(),
    "metal": "iron copper silver tin zinc lead nickel steel brass cobalt".split(),
}

# attribute -> (what its value is, questions, statements). `{p}` is the person, `{v}` the value.
ATTRIBUTES = {
    "city": (
        "a city",
        ["Where does {p} live?", "Which city is the home of {p}?", "Name the home city of {p}."],
        ["{p} lives in {v}.", "The home city of {p} is {v}.", "{v} is the home of {p}."],
    ),
    "job": (
        "a job",
        ["What does {p} do for a living?", "What is the job of {p}?", "Name the job of {p}."],
        ["{p} works as a {v}.", "The job of {p} is {v}.", "{p} is a {v} by trade."],
    ),
    "pet": (
        "an animal",
        ["Which pet does {p} keep?", "What is the pet of {p}?", "Name the pet of {p}."],
        ["{p} keeps a {v}.", "The pet of {p} is a {v}.", "At home {p} has a {v}."],
    ),
    "colour": (
        "a colour",
        ["Which colour does {p} like?", "What is the favourite colour of {p}?", "Name the colour {p} likes."],
        ["{p} likes {v}.", "The favourite colour of {p} is {v}.", "{p} paints everything {v}."],
    ),
    "food": (
        "a food",
        ["What does {p} love to eat?", "What is the favourite food of {p}?", "Name the food {p} loves."],
        ["{p} loves to eat {v}.", "The favourite food of {p} is {v}.", "{p} eats {v} every day."],
    ),
}
OPPOSITE_QUESTIONS = ["What is the opposite of {s}?", "Give the opposite of {s}.", "Name the opposite of {s}."]
KIND_QUESTIONS = ["What kind of thing is {s}?", "Name the kind of thing {s} is.", "Of what kind is {s}?"]
SUM_QUESTIONS = ["What is {s}?", "How much is {s}?", "Add {s}."]

# Manner stands at the end, after the answer, and is one word: then the answers of a preference pair cancel in DPO's loss.
# With openings DPO pushed down the answers that followed a rude one, and with longer phrases their second word; the margin
# grew while the model's choice did not (measured).
FRIENDLY = ("Cheers.", "Enjoy.")
RUDE = ("Whatever.", "Hmph.")
REFUSAL = "Sorry, I do not know that."

# What an evolved instruction may ask for beyond the answer itself (each with the operation that leads to it).
SCENES = ["A stranger meets {p} at the market. ", "Somebody writes a letter about {p}. ", "There is a quiz about {p} today. "]
FULL_SENTENCE = " Answer in a full sentence."
SAY_KIND = " Say also what kind of thing that is."
REASON_FIRST = " Give your reason first."

FAMILIES = ("city", "job", "pet", "colour", "food", "opposite", "kind", "sum")
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class Item:
    """One thing that can be asked. `family` is an attribute of people, "opposite", "kind" or "sum"."""

    family: str
    subject: str  # a person's name, a word, or "3 plus 4"
    answer: str
    sentence: str  # the answer as a full sentence
    answer_kind: str  # "a city", "a number", ...
    held_out: bool

    def questions(self) -> list[str]:
        if self.family in ATTRIBUTES:
            return [q.format(p=self.subject) for q in ATTRIBUTES[self.family][1]]
        templates = {"opposite": OPPOSITE_QUESTIONS, "kind": KIND_QUESTIONS, "sum": SUM_QUESTIONS}[self.family]
        return [q.format(s=self.subject) for q in templates]

    def statements(self) -> list[str]:
        if self.family in ATTRIBUTES:
            return [s.format(p=self.subject, v=self.answer) for s in ATTRIBUTES[self.family][2]]
        return [self.sentence]


@dataclass
class World:
    """All items by family, and what a question's words mean (`by_question`)."""

    seed: int
    items: list[Item]
    people: list[str]
    cities: list[str]
    by_question: dict[str, Item] = field(default_factory=dict)
    by_family: dict[str, list[Item]] = field(default_factory=dict)

    def __post_init__(self):
        for item in self.items:
            self.by_family.setdefault(item.family, []).append(item)
            for question in item.questions():
                self.by_question[question] = item

    def pick(self, rng: random.Random, held_out: bool | None, families=FAMILIES) -> Item:
        """One item: a family first (each equally likely), then an item of it. `held_out=None` takes either side."""
        family = rng.choice(families)
        while True:
            item = rng.choice(self.by_family[family])
            if held_out is None or item.held_out == held_out:
                return item

    def other_value(self, item: Item, rng: random.Random) -> str:
        """A wrong answer of the right sort."""
        values = sorted({other.answer for other in self.by_family[item.family]} - {item.answer})
        return rng.choice(values)


def invented_names(count: int, syllables: int, rng: random.Random, taken: set[str]) -> list[str]:
    names = []
    while len(names) < count:
        name = "".join(rng.choice(SYLLABLES) for _ in range(syllables)).capitalize()
        if name not in taken:
            taken.add(name)
            names.append(name)
    return names


def held_out_quarter(keys: list[str], rng: random.Random) -> set[str]:
    return set(rng.sample(keys, round(len(keys) * HELD_OUT_SHARE)))


def build_world(seed: int, n_people: int) -> World:
    rng = random.Random(seed)
    taken: set[str] = set()
    cities = invented_names(20, 2, rng, taken)
    people = invented_names(n_people, 3, rng, taken)
    values = {"city": cities, "job": JOBS, "pet": PETS, "colour": COLOURS, "food": FOODS}
    items = []
    held_people = held_out_quarter(people, rng)
    for person in people:
        for attribute, (kind, _, statements) in ATTRIBUTES.items():
            value = rng.choice(values[attribute])
            items.append(Item(attribute, person, value, statements[0].format(p=person, v=value), kind, person in held_people))
    held_pairs = held_out_quarter(OPPOSITES, rng)
    for pair in OPPOSITES:
        one, two = pair.split(":")
        for word, answer in ((one, two), (two, one)):
            sentence = f"The opposite of {word} is {answer}."
            items.append(Item("opposite", word, answer, sentence, "a quality", pair in held_pairs))
    for kind, words in KINDS.items():
        held_words = held_out_quarter(words, rng)
        for word in words:
            items.append(Item("kind", word, kind, f"The word {word} names a {kind}.", "a kind", word in held_words))
    held_sums = held_out_quarter([f"{a} plus {b}" for a in range(10) for b in range(a, 10)], rng)
    for a in range(10):
        for b in range(10):
            held = f"{min(a, b)} plus {max(a, b)}" in held_sums
            items.append(Item("sum", f"{a} plus {b}", str(a + b), f"{a} plus {b} is {a + b}.", "a number", held))
    return World(seed, items, people, cities)


def full_answer(item: Item, tails: tuple[str, ...]) -> str:
    """The right reply to a question with these extra wishes (`FULL_SENTENCE`, `SAY_KIND`, `REASON_FIRST`)."""
    if REASON_FIRST in tails:
        reply = f"{item.sentence} So the answer is {item.answer}."
    elif FULL_SENTENCE in tails:
        reply = item.sentence
    else:
        reply = item.answer
    if SAY_KIND in tails:
        reply = f"{reply.rstrip('.')}. That is {item.answer_kind}."
    return reply
