import random
from collections import Counter

import pytest

from bezoar_utils import evol, lamini, orca


def test_example_guided_prompt_shows_every_example_and_asks_for_the_count():
    prompt = lamini.example_guided_prompt(["Do a.", "Do b."], 20)
    assert "<example>Do a.</example>" in prompt and "<example>Do b.</example>" in prompt
    assert "20" in prompt and "topic" not in prompt


def test_topic_guided_prompt_is_the_same_with_topics_named():
    plain, guided = lamini.example_guided_prompt(["Do a."], 5), lamini.topic_guided_prompt(["Do a."], ["rivers", "maps"], 5)
    assert guided.replace(" about the topics rivers, maps", "") == plain


def test_prompts_without_examples_or_topics_are_refused():
    with pytest.raises(ValueError, match="example"):
        lamini.example_guided_prompt([], 5)
    with pytest.raises(ValueError, match="topic"):
        lamini.topic_guided_prompt(["Do a."], [], 5)


def test_only_whole_tags_are_instructions():
    text = "Sure!\n<example>One?</example><example> Two. </example>\n<example></example><example>cut off"
    assert lamini.parse_instructions(text) == ["One?", "Two."]


def test_repeats_and_copies_of_seeds_are_dropped_and_counted():
    rows = [{"instruction": i} for i in ("Name a river.", "name  a river", "Add 2 and 3.", "Seed?")]
    kept, dropped = lamini.drop_repeats(rows, ["SEED"])
    assert [r["instruction"] for r in kept] == ["Name a river.", "Add 2 and 3."]
    assert dropped == {"copy_of_seed": 1, "repeated": 1}
    assert len(kept) + sum(dropped.values()) == len(rows)


def test_system_messages_follow_the_orca_table():
    assert len(orca.SYSTEM_MESSAGES) == 16 and orca.SYSTEM_MESSAGES[1] == ""
    assert set().union(*orca.MESSAGES_FOR.values()) == set(range(1, 17))
    drawn = {orca.draw_system_message("flan2021", False, random.Random(i)) for i in range(200)}
    assert drawn == {3, 4, 7}
    drawn = {orca.draw_system_message("flan2021", True, random.Random(i)) for i in range(200)}
    assert drawn == {3, 4, 7, 8, 10}


def test_unknown_sub_collection_is_named():
    with pytest.raises(ValueError, match="dialog"):
        orca.draw_system_message("dialog", False, random.Random(0))


def test_queries_are_drawn_by_task_first_and_never_twice():
    rows = [{"task_source": "cot", "task_name": "large", "inputs": i} for i in range(90)]
    rows += [{"task_source": "cot", "task_name": "small", "inputs": i} for i in range(10)]
    drawn = orca.draw_queries(rows, {"cot": 20}, random.Random(0))
    assert len({(r["task_name"], r["inputs"]) for r in drawn}) == 20
    assert Counter(r["task_name"] for r in drawn)["small"] >= 6  # drawn by rows it would be about 2


def test_asking_for_more_queries_than_there_are_is_refused():
    with pytest.raises(ValueError, match="5 queries asked of 'cot', which has 1"):
        orca.draw_queries([{"task_source": "cot", "task_name": "t", "inputs": 1}], {"cot": 5}, random.Random(0))


def test_in_depth_draws_one_of_four_operations_and_in_breadth_none():
    draws = {evol.draw_operation(random.Random(i)) for i in range(300)}
    assert {s for s, _ in draws} == {"in-depth", "in-breadth"}
    assert {o for s, o in draws if s == "in-depth"} == set(evol.OPERATIONS) and len(evol.OPERATIONS) == 4
    assert {o for s, o in draws if s == "in-breadth"} == {""}


@pytest.mark.parametrize(
    ("child", "response", "equality", "rule"),
    [
        ("Name two rivers.", "The Rhine and the Danube.", "not equal", None),
        ("Name two rivers.", "The Rhine and the Danube.", "equal", "no_information_gain"),
        ("Name two rivers.", "Sorry, I cannot.", "not equal", "refusal"),
        ("Name two rivers.", "It is what it is.", "not equal", "only_stop_words"),
        ("Name two rivers.", "  ?!", "not equal", "only_stop_words"),
        ("Rewritten Instruction: name two rivers.", "The Rhine and the Danube.", "not equal", "leaked_prompt_words"),
        ("As the GIVEN PROMPT says, go.", "Fine rivers.", "not equal", "leaked_prompt_words"),
        ("  ", "Rhine", "not equal", "empty_instruction"),
    ],
)
def test_elimination_rules(child, response, equality, rule):
    assert evol.failed_rule("Name a river.", child, response, equality) == rule


def test_a_long_answer_that_says_sorry_is_no_refusal():
    assert evol.is_refusal("Sorry, no.")
    assert not evol.is_refusal("sorry " + "word " * 80)


def test_a_survivor_takes_its_parents_place_and_a_failure_leaves_the_parent():
    pool = [{"category": "qa", "instruction": "Name a river."}, {"category": "qa", "instruction": "Name a lake."}]
    rows, following = evol.settle(
        pool,
        {"qa": ("in-depth", "deepening")},
        ["Name two rivers.", "Name a lake."],
        ["Rhine, Danube", "Garda"],
        ["not equal", "equal"],
        1,
    )
    assert [r["rule"] for r in rows] == [None, "no_information_gain"]
    assert [p["instruction"] for p in following] == ["Name two rivers.", "Name a lake."]
    assert rows[0]["parent"] == "Name a river." and rows[0]["in-depth-evolving_operation"] == "deepening"
    assert pool[0]["instruction"] == "Name a river."
