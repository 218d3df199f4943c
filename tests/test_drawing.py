"""A wish is added to an instruction so that it can be read back, and never against one that is there."""

import json
import random

import pytest

from bezoar_utils.following import drawing, wishes
from bezoar_utils.study.profile import CODE

SEEDS = [json.loads(line) for line in (CODE / "profiles" / "smol" / "seeds.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", drawing.DRAWN)
def test_every_kind_that_is_drawn_is_read_back_in_every_wording(kind):
    for seed in range(20):
        sentence = drawing.sentence(kind, random.Random(seed))
        assert [wish.kind for wish in wishes.read(f"Name a river. {sentence}")] == [kind], sentence


@pytest.mark.parametrize("seed", range(3))
def test_an_instruction_grows_by_one_wish_that_agrees_with_the_others_and_its_task_stays(seed):
    rng, unchanged = random.Random(seed), 0
    for row in SEEDS:
        before = f"{row['instruction']}\n\n{row['context']}".strip()
        after = drawing.add(before, rng)
        asked, found = wishes.read(before), wishes.read(after)
        assert wishes.without(before) == wishes.without(after) and not wishes.conflict(found)
        unchanged += before == after
        assert before == after or (len(found) == len(asked) + 1 and all(wish in found for wish in asked))
    assert unchanged < len(SEEDS) / 10


def test_an_instruction_that_has_room_for_no_more_stays_as_it_is():
    full = "Name a river. Answer with a number only. Write everything in lower case. Use no commas. Do not use digits."
    full += ' Use the word "a". Avoid the word "b".'
    assert drawing.add(full, random.Random(1)) == full


def test_the_same_seed_draws_the_same_wish():
    drawn = {drawing.add("Name a river.", random.Random("1/2/3")) for _ in range(5)}
    assert len(drawn) == 1 and drawn != {"Name a river."}


@pytest.mark.parametrize(
    "context", ["\n\nA text: it ends with a colon:", "\n\n- a list\n- of two", '\n\n\ud800 "quoted. Use no commas."']
)
def test_a_context_stays_below_the_wish(context):
    after = drawing.add(f"Sum up the text.{context}", random.Random(4))
    assert after.endswith(context) and len(wishes.read(after)) == 1


def test_solved_seeds_that_are_shown_have_the_wish_and_another_task():
    solved = [(f"{row['instruction']}\n\n{row['context']}".strip(), row["response"]) for row in SEEDS]
    asked = drawing.add(wishes.without(solved[0][0]), random.Random(2))
    kinds = {wish.kind for wish in wishes.read(asked)}
    shown = drawing.solved_alike(asked, solved, 2, random.Random(3))
    assert len(shown) == 2 and all(kinds & {wish.kind for wish in wishes.read(text)} for text, _ in shown)
    assert wishes.without(asked) not in [
        wishes.without(text) for text, _ in drawing.solved_alike(asked, solved, 500, random.Random(3))
    ]
    assert all(not wishes.unmet(wishes.read(text), reply) for text, reply in shown)


def test_without_solved_seeds_nothing_is_shown():
    assert drawing.solved_alike("Name a river. Use no commas.", [], 2, random.Random(1)) == ()
