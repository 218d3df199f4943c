import math
import random
import re

import pytest

from bezoar_utils.evaluation import claims, stats
from bezoar_utils.evaluation.stats import (
    agreement,
    bootstrap_mean,
    by_question,
    compare,
    counted,
    no_loss_verdict,
    over_seeds,
    verdict,
)
from bezoar_utils.study.profile import CODE, PROFILES, STAGES

INTERVALS = {"samples": 500, "confidence": 0.95, "seed": 0}


def test_interval_agrees_with_the_normal_approximation():
    values = [1.0] * 60 + [0.0] * 40
    mean, low, high = bootstrap_mean(values, 4000, 0.95, 0)
    error = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert mean == 0.6
    assert low == pytest.approx(0.6 - error, abs=0.02) and high == pytest.approx(0.6 + error, abs=0.02)


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([], 100, 0.95, 0)


def test_a_pairing_makes_the_interval_of_a_difference_narrower():
    rng = random.Random(0)
    before = {item: rng.random() for item in range(100)}
    row = compare(before, {item: value + 0.1 for item, value in before.items()}, **INTERVALS)
    assert row["difference"] == pytest.approx(0.1) and row["high"] - row["low"] < 1e-9
    assert row["after"] - row["before"] == pytest.approx(0.1)


def test_items_are_paired_by_key_whatever_their_order():
    before, after = {"a": 1.0, "b": 5.0, "c": 2.0}, {"c": 3.0, "a": 1.5, "b": 4.0}
    row = compare(before, after, **INTERVALS)
    assert row == compare(before, dict(sorted(after.items())), **INTERVALS)
    assert (row["n"], row["asked"], row["difference"]) == (3, 3, pytest.approx(0.5 / 3))


@pytest.mark.parametrize("missing", [{"b": None}, {"b": float("nan")}, {}])
def test_an_item_without_a_value_on_either_side_is_left_out_and_counted(missing):
    row = compare({"a": 1.0, "b": 9.0, "c": 0.0}, {"a": 2.0, "c": 0.0} | missing, **INTERVALS)
    assert (row["n"], row["asked"], row["before"], row["after"], row["difference"]) == (2, 3, 0.5, 1.0, 0.5)
    row = compare({"a": 1.0} | missing, {"a": 2.0, "b": 9.0, "c": 0.0}, **INTERVALS)
    assert (row["n"], row["asked"], row["difference"]) == (1, 3, 1.0)


def test_sides_without_a_common_item_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        compare({"a": 1.0}, {"b": 1.0}, **INTERVALS)


def test_an_interval_over_seeds_is_students():
    # by hand: mean 2, standard deviation 1, t(0.975, 2 degrees) = 4.30265
    assert over_seeds([1.0, 2.0, 3.0], 0.95) == pytest.approx((2.0, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)
    with pytest.raises(ValueError, match="at least two"):
        over_seeds([1.0], 0.95)


@pytest.mark.parametrize(
    ("judge", "numbers", "threshold", "word"),
    [
        (verdict, (0.4, 0.3, 0.5), 0.3, "shown"),
        (verdict, (0.2, 0.1, 0.3), 0.3, "not shown"),
        (verdict, (0.1, -0.1, 0.3), 0.0, "not shown"),
        (verdict, (-0.2, -0.3, -0.1), 0.0, "opposite"),
        (no_loss_verdict, (-0.02, -0.04, 0.02), 0.05, "shown"),
        (no_loss_verdict, (-0.02, -0.06, 0.02), 0.05, "not shown"),
        (no_loss_verdict, (-0.07, -0.1, -0.04), 0.05, "not shown"),
        (no_loss_verdict, (-0.2, -0.3, -0.1), 0.05, "opposite"),
    ],
)
def test_verdicts_of_a_gain_and_of_no_loss(judge, numbers, threshold, word):
    assert judge(*numbers, threshold) == word


def test_agreement_is_cohens_kappa_worked_out_by_hand():
    first = ["Accept"] * 25 + ["Reject"] * 25
    second = ["Accept"] * 20 + ["Reject"] * 5 + ["Accept"] * 10 + ["Reject"] * 15
    # agree 35 of 50 = 0.7; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5; kappa (0.7 - 0.5) / (1 - 0.5) = 0.4
    result = {"n": 50, "asked": 50, "agree": pytest.approx(0.7), "kappa": pytest.approx(0.4), "flips": 15}
    assert agreement(first, second) == result


def test_kappa_equals_its_definition_on_random_words():
    rng = random.Random(2)
    for _ in range(50):
        first, second = (rng.choices(["a", "b", "c", None], k=60) for _ in range(2))
        both = [(a, b) for a, b in zip(first, second) if a and b]
        n = len(both)
        seen = sum(a == b for a, b in both) / n
        chance = sum(sum(a == w for a, _ in both) * sum(b == w for _, b in both) for w in "abc") / n**2
        result = agreement(first, second)
        assert result["kappa"] == pytest.approx((seen - chance) / (1 - chance))
        assert (result["n"], result["asked"], result["flips"]) == (n, 60, sum(a != b for a, b in both))
        assert result["agree"] == pytest.approx(seen)


NO_KAPPA = {"n": 0, "asked": 0, "agree": None, "kappa": None, "flips": 0}


@pytest.mark.parametrize(
    ("first", "second", "result"),
    [
        (["A", None, "R", None], ["A", "R", None, None], NO_KAPPA | {"n": 1, "asked": 4, "agree": 1.0}),
        (["A"] * 5, ["A"] * 5, NO_KAPPA | {"n": 5, "asked": 5, "agree": 1.0}),
        ([None], ["A"], NO_KAPPA | {"asked": 1}),
        ([], [], NO_KAPPA),
    ],
)
def test_rows_that_one_judge_failed_on_count_for_neither_and_agreement_by_chance_alone_has_no_kappa(first, second, result):
    assert agreement(first, second) == result


def test_judges_of_different_numbers_of_rows_are_refused():
    with pytest.raises(ValueError, match="zip"):
        agreement(["A"], [])


CLAIMS = claims.read_lines(CODE / "profiles" / "claims.csv", claims.Claim)
CHAPTERS = ("60_benchmarks", "75_filter", "50_dpo", "61_mt_bench")


def study(better: float):
    """Scores in which everything that came later is `better`, on 200 items."""
    low, high = [0.0] * 100 + [1.0] * 100, [min(1.0, v + better) for v in [0.0] * 100 + [1.0] * 100]
    order = {claims.BASE: low, claims.SFT: high, claims.HH: low, claims.DPO: high}
    conditions = {"accepted": high, "unfiltered": low, "random_subset": low}

    def rows(name, sides, metric):
        shared = {"task": "mini_answers", "metric": metric}
        return [{name: side, "item": n, "value": v} | shared for side, values in sides.items() for n, v in enumerate(values)]

    sampled = [
        {"model": m, "question": f"q{n}", "preferred": v, "exact": v}
        for m in (claims.HH, claims.DPO)
        for n, v in enumerate(order[m])
    ]
    grades = [{"model": m, "question_id": n // 2, "rating": v} for m, vs in order.items() for n, v in enumerate(vs)]
    return rows("model", order, "answer_found"), rows("condition", conditions, "strict_match"), sampled, grades


def outcomes_of(*tables):
    return claims.test_all(CLAIMS, dict(zip(CHAPTERS, tables)), {"samples": 200, "confidence": 0.95}, 0)


def verdicts(*tables):
    return {row["id"]: row for row in outcomes_of(*tables)[0]}


def test_claims_are_shown_when_everything_improves_and_not_when_nothing_does():
    by_id = verdicts(*study(1.0))
    assert by_id["sft_over_base"]["difference"] == pytest.approx(0.5) and {row["n"] for row in by_id.values()} == {200, 100, 1}
    assert {name for name, row in by_id.items() if row["verdict"] != "shown"} == {"dpo_best_of_family"}  # SFT was as good
    by_id = verdicts(*study(0.0))
    assert {name for name, row in by_id.items() if row["verdict"] == "shown"} == {"dpo_keeps_answers", "chat_dpo_over_hh"}


def test_a_claim_does_not_depend_on_the_order_of_rows():
    tables = study(1.0)
    mixed = [random.Random(1).sample(table, len(table)) for table in tables]
    for name, row in verdicts(*tables).items():
        other = verdicts(*mixed)[name]
        assert (row["difference"], row["n"], row["verdict"]) == (other["difference"], other["n"], other["verdict"])


def test_a_failed_judgement_leaves_its_question_out_of_both_sides_and_is_counted():
    scores, ablation, sampled, grades = study(1.0)
    grades[0]["rating"] = sampled[0]["preferred"] = None
    del scores[-1], scores[5]
    by_id = verdicts(scores, ablation, sampled, grades)
    counts = {name: counted(row["n"], row["asked"]) for name, row in by_id.items() if row["n"] < row["asked"]}
    assert counts == {"sft_over_base": "199 of 200", "dpo_preferred": "199 of 200", "chat_sft_over_base": "99 of 100"}


def test_a_question_asked_twice_is_two_items():
    scores, ablation, sampled, grades = study(1.0)
    by_id = verdicts(scores, ablation, [row | {"question": "same"} for row in sampled], grades)
    assert by_id["dpo_preferred"]["n"] == 200 and by_id["dpo_preferred"]["difference"] == pytest.approx(0.5)


def test_a_claim_that_the_profile_measures_nothing_for_is_listed_as_such_and_has_no_verdict():
    scores, _, sampled, grades = study(1.0)
    tested, untested = outcomes_of(scores, [], [row | {"exact": None} for row in sampled], grades)
    assert {"filter_over_unfiltered", "filter_over_random", "dpo_keeps_answers"}.isdisjoint(c["id"] for c in tested)
    chapters = [re.findall(r"\d\d_\w+", u["why"]) for u in untested]
    assert len(tested) == 7 and chapters == [["75_filter"], ["75_filter"], ["60_benchmarks"], ["50_dpo"]]


def test_the_two_turns_of_a_question_count_as_one_grade():
    grades = [{"model": "m", "question_id": q, "rating": r} for q, r in ((7, 2), (7, 4), (3, 9), (3, None), (5, 1), (5, 1))]
    other = {"model": "other", "question_id": 7, "rating": 10}
    assert by_question(grades, "rating") == {7: 3.0, 3: None, 5: 1.0}
    assert claims.values("61_mt_bench", "rating", "m", [*grades, other]) == {7: 3.0, 3: None, 5: 1.0}


GRADES = [{"model": "base", "question_id": q, "rating": r} for q, r in ((1, 2), (1, 4), (2, None), (2, 9))]


def test_our_side_of_the_papers_tables_has_an_interval_and_leaves_failures_out():
    ours = claims.measures(
        [{"task": "t", "metric": "acc", "model": "base", "value": v} for v in (0.0, 1.0)],
        GRADES,
        {"samples": 200, "confidence": 0.95},
        0,
    )
    assert ours["t/acc/base"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2, "asked": 2, "unit": "share"}
    grade = ours["two-turn grade/base"]
    assert (grade["value"], counted(grade["n"], grade["asked"])) == (3.0, "1 of 2")


def test_what_the_paper_says_is_filled_from_a_csv_and_else_empty(tmp_path):
    path = tmp_path / "paper_values.csv"
    path.write_text("measure,value,mark,source\nt/acc/base,0.4,S,somewhere\nnever/acc/base,0.1,S,elsewhere\n")
    ours = {name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "unit": "share"} for name in ("t/acc/base", "u/acc/base")}
    both, own, theirs = claims.paper_and_ours(ours, claims.read_lines(path, claims.PaperValue))
    assert (both["paper"], both["ours"], both["mark"]) == (0.4, 0.5, "S") and both["difference"] == pytest.approx(0.1)
    assert (own["paper"], own["mark"], own["difference"]) == (None, "U", None) and "not known" in own["why"]
    assert theirs["ours"] is None and "not measured in this run" in theirs["why"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("measure,value\n", "columns .*measure, value, mark, source"),
        ("", "columns .*none"),
        ("measure,value,mark,source\na,many,S,x\n", "line 2: value 'many'"),
        ("measure,value,mark,source\na,nan,S,x\n", "line 2: value 'nan'"),
        ("measure,value,mark,source\na\n", "line 2: value None"),
        ("measure,value,mark,source\na,1,Z,x\n", "line 2: mark 'Z'.*'P', 'C'"),
        ("measure,value,mark,source\na,1,S,\n", "line 2: source ''"),
        ("measure,value,mark,source\na,1,S,x\na,2,S,x\n", "line 3: duplicate measure 'a'"),
    ],
)
def test_a_csv_of_the_papers_values_that_cannot_be_trusted_is_refused(tmp_path, text, words):
    (tmp_path / "paper_values.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"paper_values\.csv.*{words}"):
        claims.read_lines(tmp_path / "paper_values.csv", claims.PaperValue)


def test_the_committed_tables_can_be_read():
    claims.read_lines(CODE / "profiles" / "paper_values.csv", claims.PaperValue)
    assert len(claims.read_lines(CODE / "profiles" / "not_reproduced.csv", claims.NotReproduced)) > 5


def test_what_the_paper_reports_of_its_tasks_is_measured_here_by_one_metric_a_task_and_one_mean_a_group():
    told = {
        "arc": {"base": (0.5, "acc_norm"), "OpenBezoar-SFT": (0.6, "acc_norm")},
        "mmlu_law": {"base": (0.2, "acc"), "OpenBezoar-SFT": (0.4, "acc")},
        "mmlu_art": {"base": (0.4, "acc"), "OpenBezoar-SFT": (0.1, "acc")},
    }
    scores = [
        {"task": t, "model": m, "metric": k, "item": 0, "value": v} for t, models in told.items() for m, (v, k) in models.items()
    ]
    scores += [
        {"task": "arc", "model": m, "metric": "acc", "item": 0, "value": v} for m, v in (("base", 0.9), ("OpenBezoar-SFT", 0.1))
    ]
    ours = claims.task_changes(scores)
    step = "OpenBezoar-SFT against base"
    assert ours[f"arc, relative change: {step}"]["value"] == pytest.approx(0.2)
    assert ours[f"mmlu, relative change: {step}"]["value"] == pytest.approx(0.25 / 0.3 - 1)
    assert (ours[f"tasks that are better: {step}"]["value"], ours[f"tasks that are better: {step}"]["n"]) == (0.5, 2)


def tasks(*shares):
    """task -> item -> value: of each task's 100 items, as many are right."""
    return {f"task {i}": {n: float(n < 100 * share) for n in range(100)} for i, share in enumerate(shares)}


def test_better_on_eight_of_ten_is_eight_better_less_two_worse_and_a_sign_test_finds_it_rare():
    before, after = tasks(*[0.5] * 10), tasks(*[0.9] * 8, *[0.1] * 2)
    numbers = stats.compare_tasks(before, after, samples=500, confidence=0.95, seed=0)
    assert (numbers["after"], numbers["before"], numbers["n"]) == (0.8, 0.2, 10) and numbers["difference"] == pytest.approx(0.6)
    assert numbers["p"] == pytest.approx(56 / 1024), "(45 + 10 + 1) of 1,024 ways of ten coins"
    assert numbers["low"] == numbers["high"] == pytest.approx(0.6), "no draw of items turns any of these tasks"


def test_tasks_that_move_less_than_their_items_can_tell_widen_the_interval_and_equal_ones_count_for_nothing():
    before, after = tasks(0.5, 0.5, 0.5), tasks(0.51, 0.51, 0.5)
    numbers = stats.compare_tasks(before, after, samples=500, confidence=0.95, seed=0)
    assert numbers["difference"] == pytest.approx(2 / 3) and numbers["low"] < 0.4
    assert numbers["p"] == 0.25, "two of two unequal ones"


def test_tasks_that_one_side_lacks_are_counted_and_none_in_common_is_an_error():
    numbers = stats.compare_tasks(tasks(0.1, 0.1), tasks(0.9), samples=50, confidence=0.95, seed=0)
    assert (numbers["n"], numbers["asked"]) == (1, 2)
    with pytest.raises(ValueError, match="no task"):
        stats.compare_tasks({"a": {0: 1.0}}, {"b": {0: 1.0}}, samples=50, confidence=0.95, seed=0)


def test_where_one_more_training_would_lie_leans_on_numbers_like_it():
    values = [1.0, 2.0, 3.0]  # standard deviation 1
    mean, low, high = stats.one_more(values, 0.95, like=2.0)
    half = 2.776445 * math.sqrt((1 + 4) / 2) * math.sqrt(1 + 1 / 3)  # Student's t for four degrees of freedom, by the table
    assert mean == 2.0 and high - mean == pytest.approx(half) and mean - low == pytest.approx(half)
    assert stats.one_more(values, 0.95, least=5.0)[2] == pytest.approx(2 + 4.302653 * 5 * math.sqrt(4 / 3))


def test_what_a_comparison_could_have_seen_is_what_shows_four_times_out_of_five():
    assert stats.detectable(1.96, 0.95) == pytest.approx(1.96 + 0.8416, abs=0.001)  # the normal distribution's own table
    assert stats.detectable(4.3027, 0.95, seeds=3) == pytest.approx(4.3027 + 1.0607, abs=0.001)  # Student's, two degrees of freedom


def test_a_claim_about_a_task_of_its_own_reads_that_tasks_metric():
    rows = [{"model": m, "task": "mini_people", "metric": "acc", "item": 0, "value": v} for m, v in (("a", 1.0), ("b", 0.0))]
    assert claims.values("60_benchmarks", "mini_people/acc", "b", rows) == {(0, 0): 0.0}
    assert claims.values("60_benchmarks", "acc", "b", rows) == {}


def test_the_papers_values_have_the_names_of_what_is_measured_here():
    lines = claims.read_lines(PROFILES / "paper_values.csv", claims.PaperValue)
    scores = [
        {"task": task, "model": model, "metric": "acc", "item": 0, "value": 0.5}
        for task in ("mmlu_law", "openbookqa", "truthfulqa_mc2")
        for model in ("base", "OpenBezoar-SFT", "OpenBezoar-HH-RLHF-SFT", "OpenBezoar-HH-RLHF-DPO")
    ]
    assert {line["measure"] for line in lines} <= set(claims.task_changes(scores)) and {line["mark"] for line in lines} == {"V"}


def test_reliability_sets_how_sure_a_model_was_against_how_often_it_was_right():
    """Gaps of ln 3 and ln 9 are probabilities of 0.75 and 0.9; a negative one means that the model named the loser."""
    gaps = [math.log(3), math.log(3), -math.log(3), math.log(9), 0.0]
    low, middle, high = stats.reliability(gaps, (0.5, 0.6, 0.8, 1.0))
    assert (low["n"], low["chosen"], low["predicted"]) == (1, [0.5], 0.5), "no gap is a coin"
    assert middle["n"] == 3 and middle["predicted"] == pytest.approx(0.75) and middle["chosen"] == [1.0, 1.0, 0.0]
    assert high["predicted"] == pytest.approx(0.9) and high["chosen"] == [1.0]
    assert stats.reliability([math.log(3)], (0.5, 0.6, 1.0))[0] == {"bin": "0.5 to 0.6", "predicted": None, "chosen": [], "n": 0}


def test_a_model_that_is_wholly_sure_is_in_the_last_bin():
    assert stats.reliability([800.0, -800.0], (0.5, 1.0))[0]["chosen"] == [1.0, 0.0]


# ------------------------------------------------------------------------------------------------ what other systems claim


def neighbour(expected: str, metric: str = "right") -> dict:
    names = {"chapter": "82_merge", "question": "tasks", "variant": "merged: ties", "metric": metric}
    return {"system": "X", "arxiv": "2403.13187", "claim": "Y", "mark": "S", "expected": expected} | names


@pytest.mark.parametrize(
    ("expected", "interval", "found"),
    [
        ("higher", (0.1, 0.2, 0.3), "shown"),
        ("higher", (-0.1, 0.2, 0.3), "not shown"),
        ("higher", (-0.3, -0.2, -0.1), "opposite"),
        ("lower", (-0.3, -0.2, -0.1), "shown"),
        ("lower", (0.1, 0.2, 0.3), "opposite"),
        ("no lower", (-0.01, 0.0, 0.01), "shown"),
        ("no lower", (-0.03, 0.0, 0.03), "not shown"),
        ("no lower", (-0.3, -0.2, -0.1), "opposite"),
    ],
)
def test_what_another_paper_claims_is_shown_or_not_by_the_interval_of_the_same_comparison(expected, interval, found):
    row = {"question": "tasks", "variant": "merged: ties", "against": "one after another", "metric": "right"}
    row |= dict(zip(("low", "difference", "high"), interval))
    seen = claims.seen_here(neighbour(expected), {"82_merge": [row | {"metric": "loss"}, row]})
    assert seen["verdict"] == found and seen["against"] == "one after another"


def test_a_claim_that_no_chapter_asked_says_so_and_a_mark_on_the_scale_is_not_compared():
    assert claims.seen_here(neighbour("higher"), {}) == {"verdict": "not asked by 82_merge"}
    assert claims.seen_here(neighbour("") | {"chapter": ""}, {}) == {"verdict": "not compared"}


def test_each_of_the_nine_neighbours_names_a_chapter_beside_the_recipe_and_a_question_that_it_asks():
    lines = claims.read_lines(PROFILES / "neighbours.csv", claims.Neighbour)
    assert len(lines) == 9
    for line in (line for line in lines if line["chapter"]):
        assert STAGES[line["chapter"]].target in ("ablations", "neighbours")
        chapter = (CODE / "notebooks" / f"{line['chapter']}.ipynb").read_text(encoding="utf-8")
        assert f'\\"{line["question"]}\\"' in chapter
