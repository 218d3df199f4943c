"""WizardLM's Evol-Instruct (arXiv 2304.12244) as the OpenBezoar authors ran it, with prompts in our own words.

Strategy (in-depth or in-breadth) and one of four in-depth operations are drawn uniformly once per category and epoch, as
in the authors' code. A survivor replaces its parent in the pool and is kept as a row; a failure leaves the parent.
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
PROMPT_MARKERS = (
    "given prompt",
    "rewritten prompt",
    "created prompt",
    "given instruction",
    "rewritten instruction",
    "created instruction",
)
SORRY_WORDS = 80


def draw_operation(rng: random.Random) -> tuple[str, str]:
    """(strategy, in-depth operation or ""), both uniform."""
    strategy = rng.choice(STRATEGIES)
    return strategy, rng.choice(sorted(OPERATIONS)) if strategy == "in-depth" else ""


def evolve_prompt(instruction: str, strategy: str, operation: str) -> str:
    if strategy == "in-breadth":
        return f"Write one new instruction in the same field as this one, about something rarer. Do not answer it.\n{instruction}"
    return f"Rewrite this instruction {OPERATIONS[operation]}. Add at most 20 words. Do not answer it.\n{instruction}"


def failed_rule(parent: str, child: str, response: str, equality: str) -> str | None:
    """The first of WizardLM's elimination rules that this evolution breaks, or None when it survives.

    `equality` is the judge's word on parent and child: "equal" means no information was gained.
    """
    if not child.strip():
        return "empty_instruction"
    if has_prompt_marker(child):
        return "leaked_prompt_words"
    if equality == EQUAL:
        return "no_information_gain"
    if is_refusal(response):
        return "refusal"
    if only_stop_words(response):
        return "only_stop_words"
    return None


def settle(pool: list[dict], draws: dict, children: list[str], responses: list[str], equalities: list[str], epoch: int):
    """(rows, next pool) of one epoch. Each evolution is a row; `rule` says why it was eliminated, or is None.

    `pool` holds {"category", "instruction"}; `draws` maps a category to its (strategy, operation). A survivor takes its
    parent's place in the next pool.
    """
    rows, following = [], list(pool)
    for number, (parent, child, response, equality) in enumerate(zip(pool, children, responses, equalities, strict=True)):
        strategy, operation = draws[parent["category"]]
        rule = failed_rule(parent["instruction"], child, response, equality)
        rows.append(
            {
                "instruction": child,
                "response": response,
                "category": parent["category"],
                "evolution_strategy": strategy,
                "in-depth-evolving_operation": operation,
                "epoch": epoch,
                "parent": parent["instruction"],
                "seed_number": number,
                "rule": rule,
            }
        )
        if rule is None:
            following[number] = parent | {"instruction": child}
    return rows, following


def is_refusal(response: str) -> bool:
    """Says "sorry" and is short: under 80 words."""
    return "sorry" in response.lower() and len(re.findall(r"\w+", response)) < SORRY_WORDS


def only_stop_words(response: str) -> bool:
    """Nothing but stop words and punctuation (an empty response too)."""
    return all(word in STOP_WORDS for word in re.findall(r"\w+", response.lower()))


def has_prompt_marker(instruction: str) -> bool:
    return any(marker in instruction.lower() for marker in PROMPT_MARKERS)
