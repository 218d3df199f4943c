"""WizardLM's Evol-Instruct (arXiv 2304.12244) as the OpenBezoar authors ran it, with prompts in our own words.

Strategy (in-depth or in-breadth) and one of four in-depth operations are drawn uniformly. A survivor replaces its parent
in the pool and becomes a row; after a failure the parent stays.
"""

import random
import re

STRATEGIES = ("in-depth", "in-breadth")
OPERATIONS = {
    "add-constraints": "with one more constraint or requirement",
    "deepening": "so that it asks deeper and wider",
    "concretizing": "with a more concrete case in place of the general one",
    "increase-reasoning-steps": "so that it asks for more steps of reasoning",
}
EQUAL = "equal"
STOP_WORDS = frozenset(
    """a about above after again against all am an and any are as at be because been before being below between both but by
    can did do does doing down during each few for from further had has have having he her here hers him his how i if in
    into is it its just me more most my no nor not now of off on once only or other our out over own same she so some such
    than that the their them then there these they this those through to too under until up very was we were what when
    where which while who whom why will with you your""".split()
)
PROMPT_MARKERS = tuple(f"{which} {what}" for what in ("prompt", "instruction") for which in ("given", "rewritten", "created"))
SORRY_WORDS = 80


def draw_operation(rng: random.Random) -> tuple[str, str]:
    """(strategy, in-depth operation or ""), both uniform."""
    strategy = rng.choice(STRATEGIES)
    return strategy, rng.choice(sorted(OPERATIONS)) if strategy == "in-depth" else ""


def draw_operations(pool: list[dict], epoch: int, seed: int, draw_per: str) -> list[tuple[str, str]]:
    """One (strategy, operation) per row of the pool: drawn once per `category`, as in the authors' code, or per `row`, as in
    WizardLM's. Each draw has a random stream of its own, so that no draw depends on the order of others."""
    places = [row["category"] if draw_per == "category" else row["seed_number"] for row in pool]
    return [draw_operation(random.Random(f"{seed}/{epoch}/{place}")) for place in places]


def seed_pool(rows: list[dict], per_category: int, seed_words: int) -> list[dict]:
    """The first rows of each category as the pool of the first epoch: seed_number, category, instruction.

    A seed is its instruction, a blank line and its context, cut after `seed_words` words.
    """
    pool = []
    for category in sorted({row["category"] for row in rows}):
        first = [row for row in rows if row["category"] == category][:per_category]
        pool += [{"category": category, "instruction": cut(f"{r['instruction']}\n\n{r['context']}", seed_words)} for r in first]
    return [{"seed_number": number, **row} for number, row in enumerate(pool)]


def cut(text: str, n_words: int) -> str:
    ends = [match.end() for match in re.finditer(r"\S+", text)][:n_words]
    return text[: ends[-1]] if ends else ""


def evolve_prompt(instruction: str, strategy: str, operation: str) -> str:
    if strategy == "in-breadth":
        return f"Write one new instruction in the same field as this one, about something rarer. Do not answer it.\n{instruction}"
    return f"Rewrite this instruction {OPERATIONS[operation]}. Add at most 20 words. Do not answer it.\n{instruction}"


def failed_rule(child: str | None, response: str | None, equality: str | None) -> str | None:
    """The first rule that this evolution breaks, or None when it survives. The last four are WizardLM's elimination rules.

    `child` and `response` are None when the teacher failed; `equality` is the judge's word on parent and child ("equal":
    no information was gained), None when it gave no readable one in all its tries.

    Example: the child "Name two rivers." with the response "Sorry, I cannot." and "not equal" breaks "refusal": it says sorry
    in fewer than 80 words. With the response "The Rhine and the Danube." it survives, with "equal" it would be
    "no_information_gain".
    """
    if child is None or response is None:
        return "teacher_failed"
    if not child.strip():
        return "empty_instruction"
    if equality is None:
        return "no_word_on_equality"
    if any(marker in child.lower() for marker in PROMPT_MARKERS):
        return "leaked_prompt_words"
    if equality == EQUAL:
        return "no_information_gain"
    if is_refusal(response):
        return "refusal"
    if only_stop_words(response):
        return "only_stop_words"
    return None


def settle(pool: list[dict], draws: list[tuple[str, str]], children: list, responses: list, equalities: list, epoch: int):
    """(rows, next pool) of one epoch. Each evolution is a row; `rule` says why it was eliminated, or is None.

    A survivor takes its parent's place in the next pool; after a failure the parent stays there.
    """
    rows, following = [], []
    for parent, draw, child, response, equality in zip(pool, draws, children, responses, equalities, strict=True):
        rule = failed_rule(child, response, equality)
        rows.append(
            {
                "instruction": child,
                "response": response,
                "category": parent["category"],
                "evolution_strategy": draw[0],
                "in-depth-evolving_operation": draw[1],
                "epoch": epoch,
                "parent": parent["instruction"],
                "seed_number": parent["seed_number"],
                "rule": rule,
            }
        )
        following.append(parent if rule else parent | {"instruction": child})
    return rows, following


def lineage(rows: list[dict], seed_number: int) -> list[str]:
    """One seed's tree over the epochs as lines of text: survivors go one step in, failures stay and name their rule."""
    steps = sorted((r for r in rows if r["seed_number"] == seed_number), key=lambda r: r["epoch"])
    lines, depth = [f"{steps[0]['category']}: {_line(steps[0]['parent'])}"], 0
    for row in steps:
        way = row["in-depth-evolving_operation"] or row["evolution_strategy"]
        end = f"   ✗ {row['rule']}" if row["rule"] else ""
        lines.append(f"{'   ' * depth}└─ epoch {row['epoch']}, {way}: {_line(row['instruction'])}{end}")
        depth += not row["rule"]
    return lines


def _line(text: str | None) -> str:
    return " ".join((text or "(nothing)").split())


def is_refusal(response: str) -> bool:
    """Says "sorry" and is short: under 80 words."""
    return "sorry" in response.lower() and len(re.findall(r"\w+", response)) < SORRY_WORDS


def only_stop_words(response: str) -> bool:
    """Contains only stop words and punctuation (or nothing at all)."""
    return all(word in STOP_WORDS for word in re.findall(r"\w+", response.lower()))
