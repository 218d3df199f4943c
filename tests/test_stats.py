import math
import random

import pytest

from bezoar_utils.evaluation import claims
from bezoar_utils.evaluation.stats import agreement, bootstrap_difference, bootstrap_mean, no_loss_verdict, verdict


def test_interval_agrees_with_the_normal_approximation():
    values = [1.0] * 60 + [0.0] * 40
    mean, low, high = bootstrap_mean(values, 4000, 0.95, 0)
    error = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert mean == 0.6
    assert low == pytest.approx(0.6 - error, abs=0.02) and high == pytest.approx(0.6 + error, abs=0.02)


def test_a_pairing_makes_the_interval_of_a_difference_narrower():
    rng = random.Random(0)
    before = [rng.random() for _ in range(100)]
    after = [b + 0.1 for b in before]
    difference, low, high = bootstrap_difference(after, before, 500, 0.95, 0)
    assert difference == pytest.approx(0.1) and high - low < 1e-9


def test_unpaired_or_empty_values_are_refused():
    with pytest.raises(ValueError, match="equal length"):
        bootstrap_difference([1.0], [1.0, 2.0], 100, 0.95, 0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([], 100, 0.95, 0)


@pytest.mark.parametrize(
    ("numbers", "at_least", "word"),
    [
        ((0.4, 0.3, 0.5), 0.3, "shown"),
        ((0.2, 0.1, 0.3), 0.3, "not shown"),
        ((0.1, -0.1, 0.3), 0.0, "not shown"),
        ((-0.2, -0.3, -0.1), 0.0, "opposite"),
    ],
)
def test_verdict_of_a_gain(numbers, at_least, word):
    assert verdict(*numbers, at_least) == word


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        ((-0.02, -0.04, 0.02), "shown"),
        ((-0.02, -0.06, 0.02), "not shown"),
        ((-0.07, -0.1, -0.04), "not shown"),
        ((-0.2, -0.3, -0.1), "opposite"),
    ],
)
def test_verdict_of_no_loss(numbers, word):
    assert no_loss_verdict(*numbers, 0.05) == word


def test_agreement_is_cohens_kappa_worked_out_by_hand():
    first = ["Accept"] * 25 + ["Reject"] * 25
    second = ["Accept"] * 20 + ["Reject"] * 5 + ["Accept"] * 10 + ["Reject"] * 15
    # agree 35 of 50 = 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa (0.7 - 0.5) / (1 - 0.5) = 0.4
    assert agreement(first, second) == {"n": 50, "agree": pytest.approx(0.7), "kappa": pytest.approx(0.4), "flips": 15}


@pytest.mark.parametrize(
    ("first", "second", "kappa"), [("AARR", "AARR", 1.0), ("AARR", "RRAA", -1.0), ("AARR", "ARAR", 0.0), ("AAAA", "AARR", 0.0)]
)
def test_kappa_is_1_for_equal_0_for_chance_and_negative_below(first, second, kappa):
    assert agreement(list(first), list(second))["kappa"] == pytest.approx(kappa)


def test_kappa_equals_its_definition_on_random_words():
    rng = random.Random(2)
    for _ in range(50):
        first, second = (rng.choices(["a", "b", "c", None], k=60) for _ in range(2))
        both = [(a, b) for a, b in zip(first, second) if a and b]
        n = len(both)
        seen = sum(a == b for a, b in both) / n
        chance = sum(sum(a == w for a, _ in both) * sum(b == w for _, b in both) for w in "abc") / n**2
        found = agreement(first, second)
        assert found["kappa"] == pytest.approx((seen - chance) / (1 - chance))
        assert (found["n"], found["agree"], found["flips"]) == (n, pytest.approx(seen), sum(a != b for a, b in both))


def test_rows_that_one_judge_failed_on_count_for_neither():
    assert agreement(["A", None, "R", None], ["A", "R", None, None]) == {"n": 1, "agree": 1.0, "kappa": None, "flips": 0}


def test_agreement_that_chance_explains_or_nothing_shows_has_no_kappa():
    assert agreement(["A"] * 5, ["A"] * 5) == {"n": 5, "agree": 1.0, "kappa": None, "flips": 0}
    assert agreement([None], ["A"]) == agreement([], []) == {"n": 0, "agree": None, "kappa": None, "flips": 0}
    with pytest.raises(ValueError, match="zip"):
        agreement(["A"], [])


def study(better: float):
    """Scores in which everything that came later is `better`, on 200 items."""
    low, high = [0.0] * 100 + [1.0] * 100, [min(1.0, v + better) for v in [0.0] * 100 + [1.0] * 100]
    order = {claims.BASE: low, claims.SFT: high, claims.HH: low, claims.DPO: high}
    scores = [{"model": m, "task": "mini_answers", "metric": "answer_found", "value": v} for m, vs in order.items() for v in vs]
    ablation = [
        {"condition": c, "metric": "strict_match", "value": v}
        for c, vs in (("accepted", high), ("unfiltered", low), ("random_subset", low))
        for v in vs
    ]
    sampled = [{"model": m, "preferred": v, "exact": v} for m in (claims.HH, claims.DPO) for v in order[m]]
    grades = [{"model": m, "question_id": n // 2, "rating": v} for m, vs in order.items() for n, v in enumerate(vs)]
    return scores, ablation, sampled, grades


def test_claims_are_shown_when_everything_improves_and_not_when_nothing_does():
    by_id = {c["id"]: c for c in claims.test_all(*study(1.0), 200, 0.95, 0)[0]}
    assert by_id["sft_over_base"]["verdict"] == "shown" and by_id["sft_over_base"]["difference"] == pytest.approx(0.5)
    assert by_id["dpo_preferred"]["verdict"] == "shown"
    by_id = {c["id"]: c for c in claims.test_all(*study(0.0), 200, 0.95, 0)[0]}
    assert by_id["sft_over_base"]["verdict"] == by_id["dpo_preferred"]["verdict"] == "not shown"
    assert by_id["dpo_keeps_answers"]["verdict"] == "shown"


def test_a_failed_judgement_leaves_its_question_out_of_both_sides():
    scores, ablation, sampled, grades = study(1.0)
    grades[0]["rating"] = None
    by_id = {c["id"]: c for c in claims.test_all(scores, ablation, sampled, grades, 200, 0.95, 0)[0]}
    assert by_id["chat_sft_over_base"]["n"] == 99 and by_id["dpo_best_of_family"]["n"] == 100


def test_a_claim_that_the_profile_measures_nothing_for_is_listed_as_such_and_has_no_verdict():
    scores, _, sampled, grades = study(1.0)
    sampled = [row | {"exact": None} for row in sampled]
    tested, untested = claims.test_all(scores, [], sampled, grades, 200, 0.95, 0)
    assert {"filter_over_unfiltered", "filter_over_random", "dpo_keeps_answers"}.isdisjoint(c["id"] for c in tested)
    assert len(tested) == 5 and [u["why"].split("(")[1] for u in untested] == [
        "chapter 75_filter).",
        "chapter 75_filter).",
        "chapter 50_dpo).",
    ]


def test_the_two_turns_of_a_question_count_as_one_grade():
    grades = [{"model": "m", "question_id": q, "rating": r} for q, r in ((7, 2), (7, 4), (3, 9), (3, None), (5, 1), (5, 1))]
    assert claims.question_grades([*grades, {"model": "other", "question_id": 7, "rating": 10}], "m") == [3.0, None, 1.0]


GRADES = [{"model": "base", "question_id": q, "rating": r} for q, r in ((1, 2), (1, 4), (2, None), (2, 9))]


def test_our_side_of_the_papers_tables_has_an_interval_and_leaves_failures_out():
    ours = claims.measures(
        [{"task": "t", "metric": "acc", "model": "base", "value": v} for v in (0.0, 1.0)],
        GRADES,
        {"samples": 200, "confidence": 0.95},
        0,
    )
    assert ours["t/acc/base"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2, "unit": "share"}
    assert (ours["two-turn grade/base"]["value"], ours["two-turn grade/base"]["n"]) == (3.0, 1)


def test_what_the_paper_says_is_filled_from_a_csv_and_else_empty(tmp_path):
    path = tmp_path / "paper_values.csv"
    path.write_text("measure,value,mark,source\nt/acc/base,0.4,S,somewhere\nnever/acc/base,0.1,S,elsewhere\n")
    ours = {name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "unit": "share"} for name in ("t/acc/base", "u/acc/base")}
    both, mine, theirs = claims.paper_and_ours(ours, claims.read_paper_values(path))
    assert (both["paper"], both["ours"], both["mark"]) == (0.4, 0.5, "S") and both["difference"] == pytest.approx(0.1)
    assert (mine["paper"], mine["mark"], mine["difference"]) == (None, "U", None) and "not known" in mine["why"]
    assert theirs["ours"] is None and "not measured in this run" in theirs["why"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("measure,value\n", "columns must be measure, value, mark, source"),
        ("", "columns must be .*, not none"),
        ("measure,value,mark,source\na,many,S,x\n", "line 2: value 'many' is no number"),
        ("measure,value,mark,source\na\n", "line 2: value None is no number"),
        ("measure,value,mark,source\na,1,Z,x\n", "line 2: mark 'Z' is none of P, C"),
        ("measure,value,mark,source\na,1,S,\n", "line 2: a value of the paper needs its source"),
        ("measure,value,mark,source\na,1,S,x\na,2,S,x\n", "line 3: 'a' stands there twice"),
    ],
)
def test_a_csv_of_the_papers_values_that_cannot_be_trusted_is_refused(tmp_path, text, said):
    (tmp_path / "paper_values.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        claims.read_paper_values(tmp_path / "paper_values.csv")


def test_the_committed_csv_of_the_papers_values_can_be_read():
    from bezoar_utils.study.profile import CODE

    claims.read_paper_values(CODE / "profiles" / "paper_values.csv")
