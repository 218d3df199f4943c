import random
from collections import Counter

import pytest

from bezoar_utils.schemes import evol, lamini, orca

# ----------------------------------------------------------------------------------------------------------- LaMini


def test_both_prompts_show_every_example_and_ask_for_the_count_and_one_names_topics():
    plain = lamini.example_guided_prompt(["Do a.", "Do b."], 20)
    guided = lamini.topic_guided_prompt(["Do a.", "Do b."], ["rivers", "maps"], 20)
    for prompt in (plain, guided):
        assert "<example>Do a.</example>" in prompt and "<example>Do b.</example>" in prompt and "20" in prompt
    assert "topic" not in plain and "rivers, maps" in guided


def test_prompts_without_examples_or_topics_are_refused():
    with pytest.raises(ValueError, match="example"):
        lamini.example_guided_prompt([], 5)
    with pytest.raises(ValueError, match="topic"):
        lamini.topic_guided_prompt(["Do a."], [], 5)


@pytest.mark.parametrize(
    ("completion", "instructions"),
    [
        ("Sure!\n<example>One?</example><example> Two. </example>\nThat was all.", ["One?", "Two."]),
        ("<EXAMPLE>One?</Example> < example >Two.< / example >", ["One?", "Two."]),
        ("<example>One?<example>Two.</example>", ["One?", "Two."]),
        ("<example>One?</example><example>cut of", ["One?"]),
        ("<example>One?</example><example>cut off</exam", ["One?"]),
        ("Sure! <example>1. Name a river.</example> <example>Add 2 and 3.<example>Name a la", ["Name a river.", "Add 2 and 3."]),
        ("<example>outer <example>inner</example> garbage</example>", ["outer", "inner"]),
        ("</example><example>One?</example></example>", ["One?"]),
        ("<example></example><example> \n </example><example>Three.</example>", ["Three."]),
        ("<example>Two\nlines.</example>", ["Two\nlines."]),
        ("no tags at all", []),
        ("<example>only begun", []),
        ("</example>", []),
        ("", []),
    ],
)
def test_instructions_are_what_stands_between_tags_however_they_are_written(completion, instructions):
    assert lamini.parse_instructions(completion) == instructions


LABELS = [
    "1. ",
    "12) ",
    "3: ",
    "1.",
    "- ",
    "* ",
    "• ",
    "•",
    "Instruction 3: ",
    "instruction: ",
    "EXAMPLE 2 : ",
    "Question 1:\n",
    " ",
]


@pytest.mark.parametrize("label", [*LABELS, "- 1. ", "1. Instruction 1: "])
def test_numbers_and_labels_before_an_instruction_go(label):
    assert lamini.parse_instructions(f"<example>{label}Name a river.</example>") == ["Name a river."]


@pytest.mark.parametrize(
    "text",
    [
        "1.5 litres are how many millilitres?",
        "10:30 in words?",
        "3 plus 4?",
        "-5 plus 3 is what?",
        "*args means what?",
        "Question everything you read: why?",
        "Examples of rivers, please.",
        "Name 1. a river, 2. a lake.",
    ],
)
def test_numbers_and_words_that_belong_to_an_instruction_stay(text):
    assert lamini.parse_instructions(f"<example>{text}</example>") == [text]


def test_well_formed_completions_are_read_back_whole():
    rng = random.Random(0)
    for _ in range(200):
        texts = [" ".join(rng.choices(["river", "lake", "5", "name", "why?", "<b>", "a > b", "é"], k=6)) for _ in range(5)]
        between = rng.choice(["", "\n", "\nSure: ", " and\n\n"])
        labels = rng.choices([label for label in LABELS if label[-1].isspace()], k=5)
        completion = between.join(f"<example>{label}{text}</example>" for label, text in zip(labels, texts))
        assert lamini.parse_instructions(completion) == texts
        cut = completion[: completion.rindex("</example>")]
        assert lamini.parse_instructions(cut) == texts[:-1]


def test_a_list_to_be_continued_numbers_its_examples_and_stands_open_at_the_next():
    prompt = lamini.continued_prompt(["Do a.", "Do\nb."])
    assert "1. Do a.\n2. Do b.\n" in prompt and prompt.endswith("\n3.")
    with pytest.raises(ValueError, match="at least one example"):
        lamini.continued_prompt([])


@pytest.mark.parametrize(
    ("completion", "instructions"),
    [
        (" Name a river.\n4. Add 2 and 3.\n5. Say hel", ["Name a river.", "Add 2 and 3."]),
        ("Name a river.\n2) Add 2 and 3.\n- Say hello!", ["Name a river.", "Add 2 and 3.", "Say hello!"]),
        ("Name a river.\n\n4. Add.\n\nHere are the answers:\n1. The Rhine.", ["Name a river.", "Add."]),
        ("4. Name a river.", ["Name a river."]),
        ('Use the word "sun"', ['Use the word "sun"']),
        ("no end at al", []),
        ("", []),
        ("\n\n", []),
    ],
)
def test_a_continued_list_ends_where_its_numbers_do_and_a_line_that_was_cut_off_is_left_out(completion, instructions):
    assert lamini.parse_list(completion) == instructions


def test_a_list_without_tags_is_read_by_its_numbers_and_nothing_else_is():
    completion = "Sure, here they are:\n1. Name a river.\n2. Add 2 and 3.\nI hope this helps."
    assert lamini.parse_instructions(completion) == ["Name a river.", "Add 2 and 3."]
    assert lamini.parse_instructions("I cannot do that.") == []


def test_the_instruction_that_a_model_writes_as_the_user_is_its_first_paragraph():
    assert lamini.parse_turn(" Why is the sky blue?\nIn one line.\n\nThe sky is") == ["Why is the sky blue?\nIn one line."]
    assert lamini.parse_turn(" \n ") == []


def test_each_way_has_a_form_and_a_parser():
    assert lamini.FORMS.keys() == lamini.PARSERS.keys() == {"example-guided", "topic-guided", "continued", "magpie"}


def test_repeats_and_copies_are_dropped_each_under_its_reason():
    seeds = ["Name one river in the north of Italy.", "Seed?"]
    texts = [
        "Name a lake in the far south of Norway.",  # kept
        "SEED!",  # a seed's words
        "name  a lake in the far south of norway",  # kept before, word for word
        "Name one river in the north of Spain.",  # 7 of 8 words of a seed
        "Name a lake in the far south of Finland.",  # 8 of 9 words of one kept before
        "Add 2 and 3.",  # kept
    ]
    new, dropped = lamini.drop_repeats([{"instruction": t, "source": n} for n, t in enumerate(texts)], seeds, 0.85)
    assert [r["source"] for r in new] == [0, 5]
    assert dropped == {"copy_of_seed": 1, "repeated": 1, "near_copy_of_seed": 1, "near_repeat": 1}


def test_no_instruction_is_lost_or_counted_twice():
    rng = random.Random(4)
    vocabulary = "name river lake add red blue what is the".split()
    make_texts = lambda n: [" ".join(rng.choices(vocabulary, k=rng.randint(1, 5))) for _ in range(n)]  # noqa: E731
    for threshold in (0.5, 0.8, 1.0):
        seeds, rows = make_texts(10), [{"instruction": text} for text in make_texts(80)]
        new, dropped = lamini.drop_repeats(rows, seeds, threshold)
        assert len(new) + sum(dropped.values()) == len(rows)
        assert lamini.drop_repeats(new, seeds, threshold) == (new, dict.fromkeys(dropped, 0))


# ----------------------------------------------------------------------------------------------------------- Orca


def test_system_messages_follow_the_orca_table_8_and_10_for_multiple_choice_only():
    assert len(orca.SYSTEM_MESSAGES) == 16 and orca.SYSTEM_MESSAGES[1] == ""
    assert set().union(*orca.MESSAGES_FOR.values()) == set(range(1, 17))
    for collection, numbers in orca.MESSAGES_FOR.items():
        for multiple_choice, fitting in ((True, set(numbers)), (False, set(numbers) - {8, 10})):
            drawn = {orca.draw_system_message(collection, multiple_choice, random.Random(i)) for i in range(300)}
            assert drawn == fitting
    with pytest.raises(ValueError, match="dialog"):
        orca.draw_system_message("dialog", False, random.Random(0))


def test_an_empty_system_message_leaves_the_query_alone():
    assert orca.teacher_prompt("", "Q?") == "Q?" and orca.teacher_prompt("Be kind.", "Q?") == "Be kind.\n\nQ?"


def draw(tasks: list[str], count: int, templates: list[str] | None = None, seed: int = 0, **rules) -> list[int]:
    return orca.draw_queries(tasks, templates or ["zs_noopt"] * len(tasks), count, random.Random(seed), **rules)


def test_a_task_is_drawn_first_so_that_small_ones_count_as_much_as_large_ones():
    tasks = ["large"] * 990 + ["small"] * 10
    small = [sum(tasks[n] == "small" for n in draw(tasks, 12, seed=s)) for s in range(200)]
    assert 5.5 < sum(small) / 200 < 6.5  # drawn by rows it would be 0.12


def test_no_query_is_drawn_twice_and_all_can_be():
    tasks = [random.Random(n).choice("abc") for n in range(50)]
    assert sorted(draw(tasks, 50)) == list(range(50))
    assert len(set(draw(tasks, 20))) == 20


def test_no_task_gives_more_than_its_most():
    tasks = ["a"] * 40 + ["b"] * 40 + ["c"] * 2
    drawn = Counter(tasks[n] for n in draw(tasks, 12, most_per_task=5))
    assert drawn == {"a": 5, "b": 5, "c": 2}
    assert len({tuple(sorted(draw(tasks, 12, most_per_task=5, seed=s))) for s in range(5)}) == 5  # which five is drawn too


def test_tasks_with_an_excluded_part_in_their_name_give_none():
    tasks = ["bigbench:sums", "BIG-Bench_words", "trivia", "big_bench_x"] * 5
    drawn = draw(tasks, 5, without=("bigbench", "big_bench", "big-bench"))
    assert {tasks[n] for n in drawn} == {"trivia"}


def test_few_shot_queries_are_left_out_unless_wanted():
    tasks, templates = ["t"] * 6, ["fs_opt", "zs_opt", "fs_noopt", "zs_noopt", "zs_opt", "fs_opt"]
    assert sorted(draw(tasks, 3, templates)) == [1, 3, 4]
    assert sorted(draw(tasks, 6, templates, zero_shot=False)) == list(range(6))


@pytest.mark.parametrize("rules", [{}, {"most_per_task": 2}, {"without": ("b",)}])
def test_asking_for_more_queries_than_fit_is_refused(rules):
    fit = {"": 6, "most_per_task": 4, "without": 3}["".join(rules)]
    draw(["a", "b"] * 3, fit, **rules)
    with pytest.raises(ValueError, match=rf"\b{fit} .*\b{fit + 1} "):
        draw(["a", "b"] * 3, fit + 1, **rules)


def test_the_same_seed_draws_the_same_queries():
    tasks = ["a"] * 30 + ["b"] * 30
    assert draw(tasks, 20, seed=1) == draw(tasks, 20, seed=1) != draw(tasks, 20, seed=2)


# ----------------------------------------------------------------------------------------------------------- Evol-Instruct


def test_in_depth_draws_one_of_four_operations_and_in_breadth_none():
    draws = Counter(evol.draw_operation(random.Random(i)) for i in range(4000))
    assert set(draws) == {("in-breadth", ""), *(("in-depth", operation) for operation in evol.OPERATIONS)} and len(draws) == 5
    assert draws["in-breadth", ""] / 4000 == pytest.approx(0.5, abs=0.03)
    assert all(draws["in-depth", operation] / 4000 == pytest.approx(0.125, abs=0.02) for operation in evol.OPERATIONS)


def evol_pool(n: int = 40) -> list[dict]:
    return [{"seed_number": i, "category": "qa chat list".split()[i % 3], "instruction": f"seed {i}"} for i in range(n)]


@pytest.mark.parametrize(("draw_per", "fewest", "most"), [("category", 1, 1), ("row", 3, 5)])
def test_one_draw_serves_a_whole_category_and_epoch_or_one_row(draw_per, fewest, most):
    epochs = [evol.draw_operations(evol_pool(60), epoch, 42, draw_per) for epoch in range(20)]
    for draws in epochs:
        assert fewest <= len({draw for row, draw in zip(evol_pool(60), draws) if row["category"] == "qa"}) <= most
    assert len(set(map(tuple, epochs))) > 10 and len({draw for draws in epochs for draw in draws}) == 5


@pytest.mark.parametrize("draw_per", ["category", "row"])
def test_no_draw_depends_on_the_rows_around_it(draw_per):
    pool = evol_pool()
    place = lambda row: row["category"] if draw_per == "category" else row["seed_number"]  # noqa: E731
    whole = {place(row): drawn for row, drawn in zip(pool, evol.draw_operations(pool, 2, 42, draw_per))}
    sample = random.Random(5).sample(pool, 17)
    assert evol.draw_operations(sample, 2, 42, draw_per) == [whole[place(row)] for row in sample]
    assert evol.draw_operations(pool, 2, 42, draw_per) != evol.draw_operations(pool, 2, 43, draw_per)


def test_every_operation_has_a_prompt_of_its_own_that_holds_the_instruction():
    draws = [("in-breadth", ""), *(("in-depth", operation) for operation in evol.OPERATIONS)]
    prompts = {evol.evolve_prompt("Name a river.", *drawn) for drawn in draws}
    assert len(prompts) == 5 and all(prompt.endswith("\nName a river.") for prompt in prompts)


GOOD = ("Name two rivers.", "The Rhine and the Danube.", "not equal")


@pytest.mark.parametrize(
    ("child", "response", "equality", "rule"),
    [
        (*GOOD, None),
        (None, GOOD[1], "not equal", "teacher_failed"),
        (GOOD[0], None, "not equal", "teacher_failed"),
        ("  ", "Rhine", "not equal", "empty_instruction"),
        (*GOOD[:2], None, "no_word_on_equality"),
        ("Rewritten Instruction: name two rivers.", *GOOD[1:], "leaked_prompt_words"),
        ("As the GIVEN PROMPT says, go.", *GOOD[1:], "leaked_prompt_words"),
        (*GOOD[:2], "equal", "no_information_gain"),
        (GOOD[0], "Sorry, I cannot.", "not equal", "refusal"),
        (GOOD[0], "sorry " + "word " * 78, "not equal", "refusal"),
        (GOOD[0], "sorry " + "word " * 79, "not equal", None),
        (GOOD[0], "It is what it is.", "not equal", "only_stop_words"),
        (GOOD[0], "  ?!", "not equal", "only_stop_words"),
        (GOOD[0], "", "not equal", "only_stop_words"),
    ],
)
def test_elimination_rules(child, response, equality, rule):
    assert evol.failed_rule(child, response, equality) == rule


@pytest.mark.parametrize("marker", evol.PROMPT_MARKERS)
def test_every_marker_of_a_leaked_prompt_is_seen(marker):
    assert evol.failed_rule(f"The #{marker.title()}#: go.", *GOOD[1:]) == "leaked_prompt_words"


def test_a_survivor_takes_its_parents_place_and_a_failure_leaves_the_parent():
    pool = [
        {"seed_number": n, "category": "qa", "instruction": f"Name a {what}."} for n, what in enumerate(["river", "lake", "hill"])
    ]
    draws = [("in-depth", "deepening"), ("in-breadth", ""), ("in-depth", "concretizing")]
    children, responses = ["Name two rivers.", "Name a lake.", None], ["Rhine, Danube", "Garda", None]
    rows, following = evol.settle(pool, draws, children, responses, ["not equal", "equal", None], 3)
    assert [r["rule"] for r in rows] == [None, "no_information_gain", "teacher_failed"]
    assert following == [pool[0] | {"instruction": "Name two rivers."}, *pool[1:]]
    assert pool[0]["instruction"] == "Name a river."
    assert rows[0] == {
        "instruction": "Name two rivers.",
        "response": "Rhine, Danube",
        "category": "qa",
        "evolution_strategy": "in-depth",
        "in-depth-evolving_operation": "deepening",
        "epoch": 3,
        "parent": "Name a river.",
        "seed_number": 0,
        "rule": None,
    }


def test_an_epoch_that_lost_a_row_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        evol.settle(evol_pool(2), [("in-breadth", "")] * 2, ["a"], ["b", "c"], ["equal"] * 2, 1)


def test_the_first_pool_is_the_first_rows_of_each_category_with_their_context():
    rows = [
        {"category": "qa", "instruction": "One?", "context": "Read  this."},
        {"category": "chat", "instruction": "Two?", "context": ""},
        {"category": "qa", "instruction": "Three?", "context": ""},
        {"category": "qa", "instruction": "Four?", "context": ""},
    ]
    assert evol.seed_pool(rows, 2, 700) == [
        {"seed_number": 0, "category": "chat", "instruction": "Two?"},
        {"seed_number": 1, "category": "qa", "instruction": "One?\n\nRead  this."},
        {"seed_number": 2, "category": "qa", "instruction": "Three?"},
    ]
    assert evol.seed_pool(rows, 1, 2)[1]["instruction"] == "One?\n\nRead"
    assert evol.seed_pool(rows, 0, 700) == []


def test_a_cut_keeps_whole_words_and_the_space_between_them():
    assert evol.cut("a  b\n\nc d ", 3) == "a  b\n\nc" and evol.cut("a b ", 9) == "a b" and evol.cut("  ", 3) == ""


def test_a_lineage_shows_survivors_one_step_in_and_failures_with_their_rule():
    pool, rows = [{"seed_number": 7, "category": "qa", "instruction": "Seed."}], []
    steps = [("First.", "not equal"), ("First.", "equal"), ("Second.", "not equal"), ("Third.", "not equal")]
    for epoch, (child, equality) in enumerate(steps, 1):
        operation = ("in-breadth", "") if epoch == 3 else ("in-depth", "deepening")
        settled, pool = evol.settle(pool, [operation], [child], ["Rhine"], [equality], epoch)
        rows += settled
    others = [row | {"seed_number": 8} for row in rows]
    assert evol.lineage([*reversed(rows), *others], 7) == [
        "qa: Seed.",
        "└─ epoch 1, deepening: First.",
        "   └─ epoch 2, deepening: First.   ✗ no_information_gain",
        "   └─ epoch 3, in-breadth: Second.",
        "      └─ epoch 4, deepening: Third.",
    ]
