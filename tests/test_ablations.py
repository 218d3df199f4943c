import pytest

from bezoar_utils.calls import judge
from bezoar_utils.evaluation import ablations
from bezoar_utils.evaluation.stats import over_seeds
from bezoar_utils.report import charts, trials
from bezoar_utils.study import files
from bezoar_utils.study.profile import ProfileError, load_profile

INTERVALS = {"samples": 500, "confidence": 0.95}


def scores_of(variant: str, values: list, seed: int = 1) -> list[dict]:
    shared = {"question": "filter", "variant": variant, "seed": seed, "metric": "strict_match"}
    return [shared | {"item": item, "value": value} for item, value in enumerate(values)]


def compare(scores: list[dict]) -> list[dict]:
    return ablations.compare(scores, "filter", "accepted", "strict_match", INTERVALS, 0)


@pytest.mark.parametrize(
    ("reply", "response", "strict", "found"),
    [
        ("red", "red", 1, 1),
        ("red", "red.", 1, 1),
        ("Lino likes red. So the answer is red.", "red", 0, 1),
        ("red", "Lino likes red. So the answer is red.", 0, 1),
        ("Lino likes red.", "Lino likes red. So the answer is red.", 0, 1),
        ("redder", "red", 0, 0),
        ("", "red", 0, 0),
    ],
)
def test_a_reply_to_a_held_back_row_is_scored_by_form_and_by_answer(reply, response, strict, found):
    assert ablations.reply_scores(reply, response) == {"strict_match": strict, "answer_found": found}


def test_variants_are_compared_item_by_item_with_the_recipes_own():
    rows = compare(
        scores_of("accepted", [1, 1, 1, 0] * 20) + scores_of("unfiltered", [0, 1, 0, 0] * 20) + scores_of("same", [1, 1, 1, 0] * 20)
    )
    worse, same = rows
    assert (worse["variant"], worse["before"], worse["after"], worse["n"], worse["seeds"]) == ("unfiltered", 0.75, 0.25, 80, 1)
    assert worse["difference"] == -0.5 and worse["low"] < -0.5 < worse["high"] < 0
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    assert ablations.sentence(worse).endswith("over 80 items, one seed: lower.")
    assert ablations.sentence(same).endswith("not shown to differ.")


def test_an_item_without_a_value_on_either_side_is_left_out():
    (row,) = compare(scores_of("accepted", [1, None, 0, 1]) + scores_of("unfiltered", [0, 1, None, 1]))
    assert (row["n"], row["asked"], row["before"], row["after"]) == (2, 4, 1.0, 0.5)
    assert "over 2 of 4 items" in ablations.sentence(row)


def test_with_more_seeds_the_interval_is_over_the_trainings():
    seeds = {1: [1, 1, 1, 0], 2: [1, 1, 0, 0], 3: [1, 1, 1, 1]}
    scores = [
        r
        for seed, values in seeds.items()
        for r in scores_of("accepted", values, seed) + scores_of("unfiltered", [1, 0, 0, 0], seed)
    ]
    (row,) = compare(scores)
    assert row["seeds"] == 3 and row["n"] == 12
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(over_seeds([-0.5, -0.25, -0.75], 0.95))
    assert ablations.sentence(row).endswith("over 3 seeds: not shown to differ.")


@pytest.mark.parametrize(
    ("answer", "preferred", "outcome"),
    [
        ("mill", True, {"preferred": 1.0, "exact": 1.0}),
        ("mine", False, {"preferred": 0.0, "exact": 0.0}),
        (None, None, {"preferred": None}),
    ],
)
def test_a_sampled_replys_outcomes_are_what_is_known_of_it(answer, preferred, outcome):
    verdict = None if preferred is None else judge.Preference(preferred=preferred)
    assert ablations.outcomes({"reply": "mill", "answer": answer}, verdict) == outcome


def test_the_chart_has_a_line_for_every_variant():
    rows = compare(scores_of("accepted", [1, 0] * 9) + scores_of("unfiltered", [0, 0] * 9) + scores_of("random", [1, 1] * 9))
    (axis,) = charts.differences(rows, "filter", "difference").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["random against accepted", "unfiltered against accepted"]


def test_seeds_come_from_make(monkeypatch):
    assert load_profile("mini").ablations.seeds == 1
    monkeypatch.setenv("BEZOAR_SEEDS", "3")
    mini = load_profile("mini")
    assert {mini.ablations.seeds, mini.reward.seeds, mini.merge.seeds, mini.smaller.seeds} == {3}
    monkeypatch.setenv("BEZOAR_SEEDS", "many")
    with pytest.raises(ProfileError, match=r"ablations\.seeds = 'many'"):
        load_profile("mini")


class Kept:
    """What a stage is to a chapter of trials: a place for files, its parameters, its headline numbers."""

    def __init__(self, folder):
        self.output, self.measured = lambda name: folder / name, {}
        self.parameters = {"seeds": 1, "seed": 1, "intervals": INTERVALS}

    def measure(self, name, value, *_, **__):
        self.measured[name] = value


def test_a_choice_keeps_what_it_and_the_one_it_stands_against_cost_and_only_by_its_main_metric(tmp_path):
    row = {"question": "filter", "variant": "unfiltered", "against": "accepted", "difference": -0.1}
    compared = [row | {"metric": metric, "main": metric == "strict_match"} for metric in ("strict_match", "answer_found")]
    trials.save_choices(Kept(tmp_path), compared, {"accepted": 4.0, "unfiltered": 6.0}, {"accepted": 2.0, "unfiltered": 2.0})
    assert files.read_json(tmp_path / "choices.json") == [compared[0] | {"flops": [6.0, 4.0], "mb": [2.0, 2.0]}]


@pytest.mark.parametrize(
    ("metrics", "first"), [(("answer_found", "strict_match"), "strict_match"), (("acc", "acc_norm"), "acc_norm"), (("loss",), None)]
)
def test_a_question_has_one_main_metric_and_a_loss_is_none(metrics, first, tmp_path):
    scores = [
        {"question": "filter", "variant": variant, "seed": 1, "item": item, "metric": metric, "value": float(item % 2)}
        for metric in metrics
        for variant in ("accepted", "unfiltered")
        for item in range(8)
    ]
    rows = trials.answer(Kept(tmp_path), scores, "filter", "accepted")
    assert [row["metric"] for row in rows if row["main"]] == [first] * bool(first) and len(rows) == len(metrics)
