import random
from fractions import Fraction

import pytest
from rouge_score import rouge_scorer

from bezoar_utils.data import filters
from bezoar_utils.data.filters import EvaluationIndex, NearCopies, contamination, names_any, seen_in_flan, select

NO_EVALUATION = EvaluationIndex({}, 8)


def row(instruction, response="r", status="Accept", system=""):
    return {"system": system, "instruction": instruction, "response": response, "status": status}


# ----------------------------------------------------------------------------------------------------------- near-copies


def word_pairs(n: int):
    """Pairs of word sequences, from unrelated to nearly equal."""
    rng = random.Random(11)
    vocabulary = [f"w{i}" for i in range(30)]
    for _ in range(n):
        one = rng.choices(vocabulary, k=rng.randint(1, 24))
        two = [w for w in one if rng.random() > 0.15]
        for _ in range(rng.randint(0, 4)):
            two.insert(rng.randint(0, len(two)), rng.choice(vocabulary))
        yield one, two if two and rng.random() < 0.9 else rng.choices(vocabulary, k=rng.randint(1, 24))


def test_near_is_what_the_rouge_score_package_calls_near_also_right_at_the_threshold():
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    decisions, at_the_threshold = [], 0
    for one, two in word_pairs(1500):
        measured = scorer.score(" ".join(one), " ".join(two))["rougeL"].fmeasure
        common = round(measured * (len(one) + len(two)) / 2)
        exact = Fraction(2 * common, len(one) + len(two))
        assert float(exact) == pytest.approx(measured)
        for threshold in ("0.5", "0.7", "0.8", "0.95", "1"):
            near = NearCopies(float(threshold), [" ".join(one)]).holds(" ".join(two))
            assert near == (exact >= Fraction(threshold)), (one, two, threshold)
            decisions.append(near)
            at_the_threshold += exact == Fraction(threshold)
    assert 0.1 < sum(decisions) / len(decisions) < 0.9 and at_the_threshold > 50


@pytest.mark.parametrize("exact_up_to", [0, 1, 2])
def test_a_text_is_compared_with_every_text_before_it(exact_up_to):
    near = NearCopies(0.7, ["name one of the rivers"], exact_up_to)
    near.add("Add two and three please")
    assert near.holds("add two and three, PLEASE!") and near.holds("name one of these rivers") and not near.holds("Name a lake")
    assert not NearCopies(0.1, exact_up_to=exact_up_to).holds("anything")


def texts_with_near_copies(n: int, threshold: float):
    """Texts of which a third repeats an earlier one with some words replaced, about as many as the threshold allows."""
    rng = random.Random(5)
    vocabulary = [f"w{i}" for i in range(500)]
    texts: list[list[str]] = []
    for _ in range(n):
        copied = texts and rng.random() < 0.3
        text = list(rng.choice(texts)) if copied else rng.choices(vocabulary, weights=range(500, 0, -1), k=rng.randint(8, 60))
        for _ in range(int(rng.uniform(0, 1.5) * (1 - threshold) * len(text)) if copied else 0):
            text[rng.randrange(len(text))] = rng.choice(vocabulary)
        texts.append(text)
    return [" ".join(text) for text in texts]


def answers(texts, threshold, exact_up_to):
    near = NearCopies(threshold, exact_up_to=exact_up_to)
    return [near.holds(text) or near.add(text) or False for text in texts]


@pytest.mark.parametrize("threshold", [0.7, 0.9, 1.0])
def test_among_many_texts_almost_every_near_copy_is_found_none_is_made_up_and_each_time_the_same(threshold):
    texts = texts_with_near_copies(1000, threshold)
    exact, proposed = answers(texts, threshold, len(texts)), answers(texts, threshold, 100)
    assert 100 < sum(exact) < 400 and proposed[:101] == exact[:101] and proposed == answers(texts, threshold, 100)
    everything = NearCopies(threshold, exact_up_to=len(texts))
    for text, near in zip(texts, proposed):
        assert not near or everything.holds(text)
        everything.add(text)
    assert sum(a and b for a, b in zip(exact, proposed)) / sum(exact) > 0.97


def test_the_rows_of_the_miniature_are_all_compared():
    assert filters.EXACT_UP_TO > 2 * 2000  # so that its metrics do not depend on MinHashLSH


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_a_shared_run_of_n_words_is_an_overlap_and_a_shorter_one_is_none():
    index = EvaluationIndex({"t": ["one two three four five six"]}, 4)
    assert index.tasks_met("say: Two, three; FOUR five!") == {"t"}
    assert index.tasks_met("one two three and four five six") == set()
    assert index.tasks_met("one two three", "four five six") == set()  # a run does not go on in the next text


def test_a_shorter_item_is_looked_for_whole_and_a_very_short_one_not_at_all():
    index = EvaluationIndex({"whole": ["who killed the king"], "short": ["the king"], "empty": ["?"]}, 8)
    assert index.tasks_met("Tell me who killed the king please") == {"whole"}
    assert index.tasks_met("who killed the queen", "the king") == set()
    assert EvaluationIndex({"half": ["a b c d"], "less": ["e f g"]}, 8).tasks_met("a b c d e f g") == {"half"}
    assert EvaluationIndex({"half": ["a b c d"], "less": ["e f g"]}, 9).tasks_met("a b c d e f g") == set()


def test_overlaps_are_those_a_plain_search_finds():
    rng = random.Random(3)
    make_text = lambda: " ".join(rng.choices("a b c".split(), k=rng.randint(0, 9)))  # noqa: E731
    for n in (2, 4, 5):
        tasks = {f"t{i}": [make_text(), make_text()] for i in range(6)}
        index = EvaluationIndex(tasks, n)
        for _ in range(60):
            text, expected = make_text(), set()
            for task, items in tasks.items():
                for item in map(str.split, items):
                    length = min(n, len(item))
                    parts = [" ".join(item[i : i + length]) for i in range(len(item) - length + 1)]
                    if len(item) >= n / 2 and any(f" {part} " in f" {text} " for part in parts):
                        expected.add(task)
            assert index.tasks_met(text) == expected


def test_the_table_counts_the_rows_of_each_set_that_overlap_with_each_task():
    tasks = {"rivers": ["which river runs through paris", "which river runs through rome"], "sums": ["how much is two plus two"]}
    one = [row("Which river runs through Paris or Rome?"), row("Say: which river runs through it", "how much is two plus two")]
    sets = {"one": one, "two": [row("nothing of the kind")], "none": []}
    assert contamination(sets, tasks, 4) == [
        {"task": "rivers", "items": 2, "one": 2, "two": 0, "none": 0},
        {"task": "sums", "items": 1, "one": 1, "two": 0, "none": 0},
    ]


def test_benchmarks_that_flan_was_built_from_are_marked():
    for task in ("arc_challenge", "boolq", "gsm8k_cot", "hellaswag", "winogrande", "triviaqa", "drop"):
        assert seen_in_flan(task) == seen_in_flan(task.upper()) == "yes"
    for task in ("mmlu", "truthfulqa_mc2", "mini_answers", "two-turn questions", "lambada_openai", "humaneval"):
        assert seen_in_flan(task) == "no"


# ----------------------------------------------------------------------------------------------------------- selection


def test_a_subject_counts_as_whole_words_only():
    assert names_any("What is 3 plus 4?", {"3 plus 4"})
    assert not names_any("What is 13 plus 4?", {"3 plus 4"}) and not names_any("Mitosis", {"Mito"})


def test_every_row_is_accepted_or_dropped_under_one_reason():
    rows = [
        row("Name a river in the north of Italy please."),
        row("Name a river in the north of Italy please."),
        row("Name a river in the north of Italy, please do."),
        row("Name a lake.", status="Reject"),
        row("Name a hill.", status=None),
        row("Where does Mito live?"),
        row("Tell me which of the five oceans is the deepest one."),
        row("Of oceans?", "Say which of the five oceans is the deepest one."),
    ]
    evaluation = EvaluationIndex({"oceans": ["Which of the five oceans is the deepest one?"]}, 8)
    selected, dropped = select(rows, evaluation, {"Mito"}, 0.9)
    assert selected == [rows[0]]
    assert dropped == dict.fromkeys(filters.REASONS, 1) | {"overlaps_evaluation": 2}


def test_a_row_that_is_dropped_makes_no_later_one_a_copy():
    for first in (row("Name a river.", status="Reject"), row("Name a river.", status=None)):
        assert select([first, row("Name a river.")], NO_EVALUATION, set(), 0.9)[0] == [row("Name a river.")]


def test_another_system_message_makes_no_copy_but_a_near_copy():
    _, dropped = select([row("Name a river."), row("Name a river.", system="Explain.")], NO_EVALUATION, set(), 0.9)
    assert (dropped["copy"], dropped["near_copy"]) == (0, 1)


def test_without_the_judge_the_same_hygiene_holds():
    rows = [row("a b c", status="Reject"), row("a b c", status="Reject"), row("Mito?"), row("x y", status=None)]
    selected, dropped = select(rows, NO_EVALUATION, {"Mito"}, 0.9, use_judge=False)
    assert selected == [rows[0], rows[3]]
    assert {k: n for k, n in dropped.items() if n} == {"copy": 1, "names_held_out_subject": 1}


def test_each_of_many_random_rows_is_in_exactly_one_place():
    rng = random.Random(8)
    vocabulary = "name river lake Mito the king of old rome".split()
    make_text = lambda: " ".join(rng.choices(vocabulary, k=rng.randint(1, 8)))  # noqa: E731
    evaluation = EvaluationIndex({"t": ["the king of rome", "lake of old"]}, 3)
    for use_judge in (True, False):
        rows = [{"n": n} | row(make_text(), rng.choice("xyz"), rng.choice(["Accept"] * 3 + ["Reject", None])) for n in range(300)]
        selected, dropped = select(rows, evaluation, {"Mito"}, 0.8, use_judge)
        assert len(selected) + sum(dropped.values()) == len(rows) and set(dropped) == set(filters.REASONS)
        assert [r["n"] for r in selected] == sorted({r["n"] for r in selected})
        assert select(selected, evaluation, {"Mito"}, 0.8, use_judge) == (selected, dict.fromkeys(filters.REASONS, 0))
        assert all(dropped[reason] for reason in filters.REASONS if use_judge or not reason.startswith("judge"))


def test_a_held_out_word_is_found_in_its_plural_and_at_the_head_of_a_sentence():
    held_out = filters.word_forms({"bee", "brush"})
    for text in ("A bee flew.", "Bees fly.", "two brushes"):
        assert filters.names_any(text, held_out)
    assert not filters.names_any("a beehive and a bench", held_out)
