import random

import pytest

from bezoar_utils.miniature import corpus, oracle, questions, world
from bezoar_utils.miniature.world import FAMILIES, FULL_SENTENCE, REASON_FIRST, SAY_KIND


def held_out_subjects(small_world):
    return {i.subject for i in small_world.items if i.held_out}


def test_the_same_seed_is_the_same_world():
    assert world.build_world(5, 10).items == world.build_world(5, 10).items != world.build_world(6, 10).items


def test_a_quarter_of_each_family_is_held_out_and_a_subject_is_so_with_all_its_facts(small_world):
    for family in FAMILIES:
        items = small_world.by_family[family]
        assert sum(i.held_out for i in items) / len(items) == pytest.approx(0.25, abs=0.06)
    for person in small_world.people:
        assert len({i.held_out for i in small_world.items if i.subject == person}) == 1


def test_every_question_means_one_item(small_world):
    assert len(small_world.by_question) == sum(len(i.questions()) for i in small_world.items)


def test_nothing_the_study_trains_on_asks_about_a_held_out_subject(small_world):
    rng = random.Random(0)
    seeds = [r["instruction"] for r in corpus.seed_rows(small_world, 300, rng)]
    flan = [r["inputs"] for r in corpus.flan_rows(small_world, 100, rng)]
    pairs = [
        turn.split("\n\nAssistant")[0]
        for r in corpus.preference_rows(small_world, 200, rng, False)
        for turn in r["chosen"].split("\n\nHuman: ")[1:]
    ]
    instructions = [oracle.read_instruction(small_world, text) for text in seeds + flan + pairs]
    assert all(a is not None and not a.item.held_out for a in instructions)
    lessons = [corpus.lesson(small_world, rng) for _ in range(500)]
    names = held_out_subjects(small_world) & set(small_world.people)
    assert names and not any(name in text for lesson in lessons for text in lesson for name in names)


def test_the_evaluation_asks_about_nothing_else(small_world):
    tasks = questions.evaluation_tasks(small_world, 40, 20, seed=0)
    strangers = {row["subject"] for row in tasks.pop("mini_reading")}
    assert not strangers & set(small_world.people), "whom a line to be read is about, nobody has heard of"
    assert all(row["subject"] in held_out_subjects(small_world) for rows in tasks.values() for row in rows)
    assert {row["family"] for row in tasks["mini_answers"]} == set(FAMILIES)


@pytest.mark.parametrize("name", questions.TASKS)
def test_each_task_has_one_right_answer_and_stands_where_it_says(small_world, name):
    rows = questions.evaluation_tasks(small_world, 40, 40, seed=0)[name]
    task = questions.TASKS[name]
    for row in rows:
        assert ("### Instruction:" in row["prompt"]) == (task.place == "template")
        if task.answered == "choice":
            assert len(set(row["choices"])) == len(row["choices"]) > 1 and 0 <= row["answer"] < len(row["choices"])
        else:
            assert oracle.check(small_world, row["question"], row["answer"])[0] == 10
    assert (
        rows
        == questions.evaluation_tasks(small_world, 40, 40, seed=0)[name]
        != questions.evaluation_tasks(small_world, 40, 40, seed=1)[name]
    )


def test_the_right_choice_is_what_the_line_before_says(small_world):
    for row in questions.evaluation_tasks(small_world, 8, 40, seed=0)["mini_reading"]:
        assert row["choices"][row["answer"]] in row["prompt"].splitlines()[0] and row["subject"] in row["prompt"].splitlines()[0]


def test_the_base_text_never_shows_the_studys_template(small_world):
    text = "".join(corpus.base_text(small_world, 400, random.Random(0)))
    assert "### " in text and not any(heading in text for heading in ("### System", "### Instruction", "### Response"))


def test_the_base_reads_about_held_out_people_too(small_world):
    text = "".join(corpus.base_text(small_world, 200, random.Random(0)))
    assert all(p in text for p in held_out_subjects(small_world) & set(small_world.people))


@pytest.mark.parametrize(
    "tails", [(), (FULL_SENTENCE,), (SAY_KIND,), (REASON_FIRST,), (FULL_SENTENCE, SAY_KIND), (REASON_FIRST, SAY_KIND)]
)
def test_the_oracle_accepts_the_right_reply_to_every_kind_of_instruction(small_world, tails):
    rng = random.Random(1)
    for family in FAMILIES:
        item = rng.choice(small_world.by_family[family])
        for scene in (False, True):
            instruction = corpus.instruction_for(item, rng, tails, scene)
            assert oracle.check(small_world, instruction, world.full_answer(item, tails))[0] == 10


def test_the_oracle_refuses_wrong_garbled_and_misdirected_replies(small_world):
    item = small_world.by_family["city"][0]
    question = item.questions()[0]
    wrong = small_world.other_value(item, random.Random(0))
    assert oracle.verdict(small_world, "", question, wrong)[:2] == ("Reject", 3)
    assert oracle.verdict(small_world, "", question, "Sorry, I do not know that.")[:2] == ("Reject", 1)
    assert oracle.verdict(small_world, "", question, f"{item.answer} or {wrong}")[0] == "Reject"
    assert oracle.verdict(small_world, "", "What what?", item.answer)[:2] == ("Reject", 1)
    assert oracle.verdict(small_world, "", question + FULL_SENTENCE, item.answer)[0] == "Reject"
    other = next(p for p in small_world.people if p != item.subject)
    assert oracle.read_instruction(small_world, world.SCENES[0].format(p=other) + question) is None


def test_a_grade_looks_at_content_first_then_manner(small_world):
    item = small_world.items[0]
    question = item.questions()[0]
    grade = lambda reply: oracle.grade(small_world, question, reply)[0]  # noqa: E731
    assert grade(f"{item.answer}. Cheers.") > grade(item.answer) > grade(f"{item.answer}. Whatever.") > grade("nonsense. Cheers.")


def test_equal_questions_differ_in_words_only(small_world):
    one, two, _ = small_world.items[0].questions()
    assert oracle.same_question(small_world, one, two)
    assert not oracle.same_question(small_world, one, one + FULL_SENTENCE)
    assert not oracle.same_question(small_world, one, small_world.items[1].questions()[0])
    assert oracle.same_question(small_world, "garbled", "garbled ") and not oracle.same_question(small_world, one, "garbled")


def test_both_replies_of_a_preference_pair_are_correct_and_the_friendly_one_is_mostly_chosen(small_world):
    from bezoar_utils.data.preferences import preference_pairs

    pairs, dropped = preference_pairs(corpus.preference_rows(small_world, 1000, random.Random(0), held_out=False))
    assert set(dropped) - {r for r, n in dropped.items() if n} >= {"malformed", "histories_differ", "empty_reply"}
    assert sum(oracle.is_preferred(p["chosen"]) for p in pairs) / len(pairs) == pytest.approx(0.75, abs=0.06)
    assert all(oracle.strip_manner(p["chosen"])[0] == oracle.strip_manner(p["rejected"])[0] for p in pairs)
