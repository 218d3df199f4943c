"""What models and data sets write, read by our parsers: an answer or a counted failure, never an exception, never by accident."""

import json
import random
import re
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bezoar_utils.calls import judge
from bezoar_utils.data import preferences
from bezoar_utils.schemes import evol, lamini, orca

ANY_TEXT = st.text(st.characters(codec=None), max_size=200)  # half characters too
WORDS = st.text(string.ascii_letters + " äß€,?'", min_size=1, max_size=40).filter(str.strip)
KINDS = st.sampled_from([judge.Verdict, judge.Equality, judge.Grade, judge.Comparison, judge.Preference])

# ---------------------------------------------------------------------------------------------------------------- verdicts

FIELDS = ["status", "rating", "reason", "equality", "better", "preferred", "other"]
VALUES = st.one_of(
    st.sampled_from(["Accept", "Reject", "accept", "equal", "not equal", "first", "second", "tie", "", "9"]),
    st.integers(-3, 13),
    st.sampled_from([8.0, 0.5, True, False, None, float("nan"), float("inf"), 10**400, [], {}, ["Accept"]]),
    ANY_TEXT,
)
JSON_LINE = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4).map(json.dumps)
BROKEN_LINE = st.tuples(JSON_LINE, st.integers(0, 60), st.sampled_from(["", "}", "**", "```", ",", "\0", "\ufeff"])).map(
    lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] :]
)
REPLY = st.lists(st.one_of(JSON_LINE, BROKEN_LINE, ANY_TEXT, st.just("```json"), st.just("```")), max_size=5).map("\n".join)


@given(KINDS, REPLY)
@example(judge.Verdict, "[" * 100_000)
@example(judge.Verdict, '{"status": "Accept", "rating": 9, "reason": "\ud83d"}')
@example(judge.Preference, '{"preferred": true, "preferred": false}')
def test_a_verdict_is_exactly_what_the_last_line_says_or_there_is_none(kind, reply):
    verdict = judge.parse_verdict(kind, reply)
    if verdict is not None:
        last = reply.strip().removesuffix("```").rstrip().rpartition("\n")[2]
        assert json.loads(last, object_pairs_hook=sorted) == sorted(verdict.model_dump().items())


@given(st.sampled_from(["Accept", "Reject"]), st.integers(1, 10), st.text(st.characters(codec="utf-8")), st.booleans())
def test_every_whole_verdict_is_read_whatever_its_reason_says(status, rating, reason, fenced):
    line = json.dumps({"status": status, "rating": rating, "reason": reason}, ensure_ascii=False)
    reply = f"Because.\n```json\n{line}\n```" if fenced else f"Because.\n{line}"
    assert judge.parse_verdict(judge.Verdict, reply) == judge.Verdict(status=status, rating=rating, reason=reason)


@given(
    st.fixed_dictionaries({}, optional={f"gpt4_{name}": st.one_of(VALUES, st.from_regex(r"[\d ]*\.?\d*")) for name in FIELDS[:3]})
)
@example({"gpt4_status": "Accept", "gpt4_rating": "9" * 400})
def test_a_released_verdict_has_a_known_status_and_a_finite_rating_or_none(row):
    verdict = judge.released_verdict(row, "gpt4")
    if verdict:
        assert verdict["status"] in ("Accept", "Reject") and isinstance(verdict["reason"], str)
        assert verdict["rating"] is None or 0 <= verdict["rating"] < 1e6


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.text(st.characters(codec="utf-8")), min_size=1, max_size=4)
)
def test_what_is_judged_comes_back_whole_from_between_its_marks(sections):
    assert judge.read_sections(judge.judge_prompt(judge.Verdict, **sections)) == sections


# ------------------------------------------------------------------------------------------------------------ LaMini's lists

TAGS = st.sampled_from(
    ["<example>", "</example>", "< Example >", "</ example", "<exampleexample>", "<", ">", "\n", "1. ", "- ", "Question 2:"]
)
TAGGED = st.lists(st.one_of(TAGS, WORDS, ANY_TEXT), max_size=12).map("".join)


@given(TAGGED)
def test_an_instruction_is_text_without_tags_and_never_empty(completion):
    for instruction in lamini.parse_instructions(completion):
        assert instruction == instruction.strip() != ""
        assert not lamini.OPENING.search(instruction) and not lamini.CLOSING.search(instruction)


@given(st.lists(WORDS.map(str.strip), max_size=8), st.sampled_from(["", "\n", " and ", "\n2. "]))
def test_tagged_instructions_come_back_in_their_order(instructions, between):
    assert lamini.parse_instructions(between.join(f"<example>{text}</example>" for text in instructions)) == instructions


@pytest.mark.parametrize("piece", ["example", "1", "1 .", "- ", "<", "< example", "</ ", "<example", "instruction 1"])
@pytest.mark.parametrize("filler", [" ", "1", "example", "\n", "- "])
def test_no_completion_takes_long_to_read(piece, filler):
    before = time.process_time()
    lamini.parse_instructions(f"<example>{piece}{filler * 20_000}x</example>")
    lamini.parse_instructions(f"<example>{(piece + filler) * 10_000}")
    assert time.process_time() - before < 0.3


# ------------------------------------------------------------------------------------------------- Evol-Instruct and Orca

SAID = st.one_of(st.none(), WORDS, ANY_TEXT, st.sampled_from(["Sorry.", "given prompt", "the and of", "", " ", "!?"]))
EQUALITY = st.sampled_from([None, "equal", "not equal"])


@given(SAID, SAID, EQUALITY)
def test_an_evolution_survives_only_with_an_instruction_a_response_and_a_gain(child, response, equality):
    rule = evol.failed_rule(child, response, equality)
    assert rule is None or re.fullmatch("[a-z_]+", rule)
    if rule is None:
        assert child.strip() and response.strip() and equality == "not equal"


@given(st.lists(st.tuples(SAID, SAID, EQUALITY), min_size=1, max_size=6), st.integers(0, 9))
def test_each_seed_keeps_its_place_in_the_pool_and_its_lineage_can_be_told(outcomes, seed):
    pool = evol.seed_pool([{"category": "qa", "instruction": f"Name {n}.", "context": ""} for n in range(len(outcomes))], 99, 9)
    draws = evol.draw_operations(pool, 1, seed, "row")
    rows, following = evol.settle(pool, draws, *zip(*outcomes), epoch=1)
    assert [row["seed_number"] for row in following] == [row["seed_number"] for row in rows] == list(range(len(outcomes)))
    assert [row["instruction"] for row in following] == [r["parent"] if r["rule"] else r["instruction"] for r in rows]
    assert all(len(evol.lineage(rows, number)) == 2 for number in range(len(outcomes)))


@given(ANY_TEXT, st.integers(1, 30))
def test_a_seed_is_cut_after_whole_words(text, n_words):
    cut = evol.cut(text, n_words)
    assert text.startswith(cut) and cut.split() == text.split()[:n_words]


QUERIES = st.lists(st.tuples(st.sampled_from(["a", "b", "qa_c", ""]), st.sampled_from(["zs_opt", "fs_opt", ""])), max_size=30)


@given(QUERIES, st.integers(0, 12), st.integers(0, 99), st.one_of(st.none(), st.integers(1, 4)), st.sampled_from([(), ("qa",)]))
def test_orca_draws_as_many_fitting_queries_as_asked_for_or_says_how_many_there_are(rows, count, seed, most, without):
    tasks, templates = [task for task, _ in rows], [template for _, template in rows]
    try:
        drawn = orca.draw_queries(tasks, templates, count, random.Random(seed), most, without)
    except ValueError as error:
        assert re.match(r"only \d+ queries fit", str(error))
        return
    assert len(set(drawn)) == len(drawn) == count
    assert not any(templates[n].startswith("fs_") or any(part in tasks[n] for part in without) for n in drawn)
    assert all(sum(tasks[n] == task for n in drawn) <= (most or count) for task in set(tasks))


# ------------------------------------------------------------------------------------------------------------------ HH-RLHF

MARKED = st.lists(
    st.one_of(st.sampled_from(["\n\nHuman:", "\n\nAssistant:", "Human:", "\r\n\r\nHuman:", "\n", "\r", " "]), ANY_TEXT), max_size=9
)


@given(MARKED.map("".join), MARKED.map("".join))
def test_any_two_texts_are_a_pair_or_a_reason(chosen, rejected):
    pair, reason = preferences.preference_pair({"chosen": chosen, "rejected": rejected})
    assert (pair is None) == (reason in preferences.REASONS)
    if pair:
        assert pair["chosen"].strip() and pair["rejected"].strip() and pair["chosen"] != pair["rejected"]


@given(st.lists(WORDS, min_size=1, max_size=5).filter(lambda said: len(said) % 2), WORDS, WORDS, st.sampled_from(["\n", "\r\n"]))
def test_a_dialog_keeps_its_history_and_both_its_replies(history, chosen, rejected, newline):
    dialog = "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {text}" for n, text in enumerate(history))
    texts = [f"{dialog}\n\nAssistant: {reply}".replace("\n", newline) for reply in (chosen, rejected)]
    pair, reason = preferences.preference_pair({"chosen": texts[0], "rejected": texts[1]})
    if chosen.strip() == rejected.strip():
        assert reason == "identical_replies"
    else:
        assert (pair["chosen"], pair["rejected"]) == (chosen.strip(), rejected.strip())
        assert all(text.strip() in pair["prompt"] for text in history)
