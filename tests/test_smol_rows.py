"""What is true of the rows in profiles/smol, whichever of them a study draws."""

import re
from collections import Counter
from pathlib import Path

import pytest

from bezoar_utils.data import filters, sources
from bezoar_utils.data.template import render_prompt
from bezoar_utils.evaluation import mt_bench
from bezoar_utils.following import wishes

FOLDER = Path(__file__).parents[1] / "profiles" / "smol"
RUN = 8  # words in a row that a training text and an evaluation text may not share
WITH_CONTEXT = {"closed_qa", "information_extraction", "summarization"}
WITH_REFERENCE = {"math", "reasoning", "coding"}
WITH_ANSWER = {"fact", "sum", "choice"}
# How the sentence of a wish starts, also one that is misspelt further on.
WISH_LIKE = re.compile(
    r"(?:^|[.?!:]\s)\s*(?:answer (?:in|as|with)|use (?:a single|at|the word|no|exactly)|keep it under|(?:write|give) (?:at|exactly)"
    r"|write (?:everything|numbers)|do not use|avoid|include|(?:begin|start|end|finish) with|give a numbered"
    r"|put (?:the whole|a title))\b",
    re.IGNORECASE | re.MULTILINE,
)
# What no reply can fulfil together, or only one that nobody would write.
ALONE = {"number", "yes_no"}
CLASHES = {
    "one_sentence": {"bullets", "numbered", "paragraphs", "json", "title"},
    "json": {"bullets", "numbered", "title", "begins_with", "ends_with", "quoted", "question", "upper_case", "no_commas"},
    "quoted": {"begins_with", "ends_with", "question", "title", "bullets", "numbered", "paragraphs"},
    "numbered": {"no_digits", "bullets", "begins_with", "ends_with", "paragraphs", "question"},
    "bullets": {"paragraphs", "begins_with", "ends_with", "question"},
    "title": {"begins_with", "paragraphs"},
    "lower_case": {"upper_case"},
    "ends_with": {"question"},
    "at_most_words": {"at_least_words"},
}

SEEDS = sources.read_rows(FOLDER / "seeds.jsonl", ("instruction", "context", "response", "category"))
COLUMNS = ("inputs", "targets", "task_source", "task_name", "template_type")
QUERIES = [
    row for name in ("cot", "niv2", "t0", "flan2021") for row in sources.read_rows(FOLDER / f"queries_{name}.jsonl", COLUMNS)
]
QUESTIONS = [mt_bench.check_question(row) for row in sources.read_rows(FOLDER / "questions.jsonl", mt_bench.QUESTION_COLUMNS)]
HELD_OUT = sources.read_rows(FOLDER / "tasks" / "following.jsonl", ("question", "prompt", "answer", "subject", "family"))
TURNS = [(turn, reference) for row in QUESTIONS for turn, reference in zip(row["turns"], row["reference"], strict=True)]
INSTRUCTIONS = {
    "seeds": [row["instruction"] for row in SEEDS],
    "queries": [row["inputs"] for row in QUERIES],
    "questions": [turn for turn, _ in TURNS],
    "held_out": [row["question"] for row in HELD_OUT],
}
REPLIES = (
    [(row["instruction"], row["response"]) for row in SEEDS]
    + [(row["inputs"], row["targets"]) for row in QUERIES]
    + [(turn, reference) for turn, reference in TURNS if reference]
)
TRAINED_ON = [" ".join((row["instruction"], row["context"], row["response"])) for row in SEEDS]
TRAINED_ON += [f"{row['inputs']} {row['targets']}" for row in QUERIES]


def kinds(instruction):
    return [wish.kind for wish in wishes.read(instruction)]


def count_by_kind(texts):
    return Counter(kind for text in texts for kind in kinds(text))


def share_with_wishes(texts):
    return sum(bool(kinds(text)) for text in texts) / len(texts)


def task_runs(instruction, *other):
    """The word runs of a task without its wishes, and of what else belongs to it."""
    return set().union(*(filters.runs(filters.words(text), RUN) for text in (wishes.without(instruction), *other)))


def test_the_seeds_are_dollys_columns_evenly_over_its_eight_categories():
    assert set(Counter(row["category"] for row in SEEDS).values()) == {21}
    assert {row["category"] for row in SEEDS} == WITH_CONTEXT | {
        "open_qa",
        "general_qa",
        "classification",
        "brainstorming",
        "creative_writing",
    }
    assert all(bool(row["context"]) == (row["category"] in WITH_CONTEXT) for row in SEEDS)
    assert all(6 <= len(row["instruction"].split()) <= 60 and 1 <= len(row["response"].split()) <= 60 for row in SEEDS)


def test_the_first_eight_seeds_are_one_of_each_category():
    assert len({row["category"] for row in SEEDS[:8]}) == 8


def test_the_queries_are_flans_columns_evenly_over_its_four_collections():
    assert Counter(row["task_source"] for row in QUERIES) == dict.fromkeys(("cot", "niv2", "t0", "flan2021"), 16)
    assert len({row["task_name"] for row in QUERIES}) >= 8
    for row in QUERIES:
        options = row["inputs"].partition("\nOPTIONS:\n- ")[2].split("\n- ")
        assert (row["template_type"] == "zs_opt") == (row["task_source"] == "flan2021") == (options != [""])
        assert options == [""] or row["targets"].strip('"') in options


def test_the_questions_are_fastchats_format_evenly_over_eight_categories():
    assert len(QUESTIONS) == 48 and len({row["question_id"] for row in QUESTIONS}) == 48
    assert set(Counter(row["category"] for row in QUESTIONS).values()) == {6}
    assert all(all(row["reference"]) == any(row["reference"]) == (row["category"] in WITH_REFERENCE) for row in QUESTIONS)


def test_the_held_out_questions_name_their_subject_and_have_an_answer_where_one_is_right():
    assert Counter(row["family"] for row in HELD_OUT) == dict.fromkeys((*WITH_ANSWER, "explain", "list", "story"), 20)
    assert set(Counter(row["subject"] for row in HELD_OUT).values()) == {3}
    for row in HELD_OUT:
        assert filters.names_any(row["question"], filters.word_forms({row["subject"]}))
        assert row["prompt"] == render_prompt(row["question"])
        assert bool(row["answer"]) == (row["family"] in WITH_ANSWER)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_no_instruction_stands_twice(name):
    assert [text for text, n in Counter(text.lower() for text in INSTRUCTIONS[name]).items() if n > 1] == []


@pytest.mark.parametrize(("name", "share"), [("seeds", 2 / 3), ("queries", 1 / 2), ("questions", 2 / 3), ("held_out", 1)])
def test_as_many_instructions_carry_wishes_as_the_readme_says(name, share):
    assert share_with_wishes(INSTRUCTIONS[name]) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("name", "most"), [("seeds", 3), ("queries", 1), ("questions", 2), ("held_out", 3)])
def test_no_instruction_carries_more_wishes_than_its_file_allows(name, most):
    assert max(len(kinds(text)) for text in INSTRUCTIONS[name]) == most


@pytest.mark.parametrize(("name", "least"), [("seeds", 7), ("queries", 1), ("questions", 3), ("held_out", 4)])
def test_all_twenty_kinds_of_wishes_occur_about_evenly(name, least):
    counts = count_by_kind(INSTRUCTIONS[name])
    assert set(counts) == set(wishes.KINDS) and min(counts.values()) >= least and max(counts.values()) <= least + 11


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_every_wish_reads_back_and_none_is_left_in_a_task(name):
    assert [text for text in INSTRUCTIONS[name] if WISH_LIKE.search(wishes.without(text))] == []


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_the_wishes_of_an_instruction_can_be_fulfilled_together(name):
    for text in INSTRUCTIONS[name]:
        asked = kinds(text)
        assert len(set(asked)) == len(asked), text
        assert not ALONE & set(asked) or len(asked) == 1, text
        assert not any(CLASHES.get(kind, set()) & set(asked) for kind in asked), text


def test_every_reply_written_here_fulfils_the_wishes_of_its_instruction():
    assert [(text, why) for text, reply in REPLIES if (why := wishes.unmet(wishes.read(text), reply))] == []


def test_a_right_answer_to_a_held_out_question_breaks_none_of_its_wishes():
    """Only what an answer alone can tell: nobody asks for a word that the answer must not hold."""
    told = {"number", "yes_no", "no_digits", "no_commas", "avoids", "at_most_words"}
    for row in HELD_OUT:
        asked = [wish for wish in wishes.read(row["question"]) if wish.kind in told]
        assert not row["answer"] or wishes.unmet(asked, row["answer"]) == [], row


@pytest.mark.parametrize("subject", sorted({row["subject"] for row in HELD_OUT}))
def test_no_subject_of_the_held_out_questions_occurs_in_what_is_trained_on(subject):
    assert [text for text in TRAINED_ON if filters.names_any(text, filters.word_forms({subject}))] == []


def test_evaluation_and_training_texts_share_no_run_of_eight_words_beyond_wishes():
    trained = set().union(*(task_runs(row["instruction"], row["context"], row["response"]) for row in SEEDS))
    trained |= set().union(*(task_runs(row["inputs"], row["targets"]) for row in QUERIES))
    evaluated = [(row["question"], "") for row in HELD_OUT] + [(turn, reference or "") for turn, reference in TURNS]
    assert {run for pair in evaluated for run in task_runs(*pair)} & trained == set()


def test_the_readme_counts_the_wishes_of_each_kind():
    counts = {name: count_by_kind(texts) for name, texts in INSTRUCTIONS.items()}
    readme = (FOLDER / "README.md").read_text()
    for kind in wishes.KINDS:
        assert " | ".join([f"| {kind}", *(str(count[kind]) for count in counts.values())]) in readme
