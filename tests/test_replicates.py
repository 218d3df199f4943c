"""Replicates: the same recipe from other seeds, taken together only when they are that."""

import math

import pytest

from bezoar_utils.evaluation import stats
from bezoar_utils.report import compare, pages, replicates
from bezoar_utils.study import files, stage
from bezoar_utils.study.profile import load_profile, stage_parameters

EFFECTS = {"sft_over_base": [0.4, 0.5, 0.6], "dpo_preferred": [0.3, -0.2, 0.0], "dpo_keeps_answers": [0.0, 0.0, 0.0]}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Three finished replicates of `tiny`, as far as their records go."""
    for module in (stage, pages, replicates, compare):
        monkeypatch.setattr(module, "RUNS", tmp_path, raising=False)
    for number in range(3):
        name = f"tiny-seed-{replicates.FIRST_SEED + number}"
        for chapter in replicates.RECIPE:
            parameters = stage_parameters(load_profile(name), chapter)
            metrics = {"rows": {"value": 10.0 + number, "low": None, "high": None, "n": None, "unit": "rows"}}
            record = {
                "parameters": parameters,
                "code": {"a.py": "1"},
                "notebook": "2",
                "metrics": metrics,
                "seed": parameters["seed"],
            }
            files.write_json(tmp_path / name / chapter / "stage.json", record)
        told = [
            {"id": i, "claim": i, "difference": values[number], "n": 40, "unit": "share of items"} for i, values in EFFECTS.items()
        ]
        files.write_json(tmp_path / name / "90_findings" / "claims.json", told)
    return tmp_path


def summary_of(seeds):
    return replicates.summary("tiny", *replicates.read_replicates("tiny", seeds))


def test_a_replicate_is_the_profile_with_another_seed_and_nothing_else():
    one, other = (load_profile(name).model_dump() for name in ("tiny", "tiny-seed-107"))
    assert other["seed"] == 107 and one | {"seed": 107} == other


def test_an_effect_is_judged_over_runs_by_the_claims_own_rule(runs):
    told = summary_of(3)
    rows = {row["id"]: row for row in told["claims"]}
    assert rows["sft_over_base"]["verdict"] == "shown" and rows["dpo_preferred"]["verdict"] == "not shown"
    assert rows["dpo_keeps_answers"]["verdict"] == "not shown", "runs that do not differ at all say nothing of other runs"
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # Student's t for two degrees of freedom, by the table
    assert rows["sft_over_base"]["low"] == pytest.approx(0.5 - half) and rows["sft_over_base"]["runs"] == 3
    assert rows["sft_over_base"]["items"] == [40] * 3 and told["seeds"] == [101, 102, 103]


def test_where_one_more_run_would_lie_is_wider_than_where_the_mean_is():
    mean, low, high = stats.one_more([1.0, 2.0, 3.0], 0.95)
    assert (mean, high - mean) == (2.0, pytest.approx(4.302652729911275 * math.sqrt(1 + 1 / 3))) and mean - low == high - mean
    assert low < stats.over_seeds([1.0, 2.0, 3.0], 0.95)[1]


def test_a_replicate_that_lacks_a_chapter_is_named_and_in_no_mean(runs):
    (runs / "tiny-seed-102" / "50_dpo" / "stage.json").unlink()
    told = summary_of(3)
    assert told["left out"] == {"tiny-seed-102": "has not finished 50_dpo"} and told["seeds"] == [101, 103]
    assert set(told["metrics"]["00_miniature/rows"]["values"]) == {"tiny-seed-101", "tiny-seed-103"}


@pytest.mark.parametrize(("what", "value"), [("code", {"a.py": "2"}), ("notebook", "3"), ("parameters", {"seed": 102, "steps": 9})])
def test_replicates_of_another_code_or_profile_are_refused_with_what_differs(runs, what, value):
    path = runs / "tiny-seed-102" / "30_sft" / "stage.json"
    files.write_json(path, files.read_json(path) | {what: value})
    with pytest.raises(replicates.ReplicateError, match=f"tiny-seed-102 .*30_sft was made with other {what}"):
        summary_of(3)


def test_one_run_is_an_anecdote(runs):
    with pytest.raises(replicates.ReplicateError, match="at least two are needed"):
        summary_of(1)


def test_the_page_shows_each_claim_with_its_runs(runs, tmp_path):
    files.write_json(tmp_path / "replicates.json", summary_of(3))
    complete, _ = replicates.read_replicates("tiny", 3)
    for records in complete.values():
        for record in records.values():
            record |= {"finished": "2026-11-28", "git_commit": "abc", "git_dirty": False}
    parameters = {"summary": str(tmp_path / "replicates.json")}
    page = compare.write_notebook_page(replicates.NOTEBOOK, tmp_path / "page", parameters, complete, "tiny, 3 seeds")
    text = page.read_text()
    assert "sft_over_base" in text or "Instruction tuning on the three schemes makes the base answer" in text
    assert "3 of 3" in text and "shown, 1 of 3" in text


def test_the_change_of_each_task_is_that_of_its_main_metric_in_each_run():
    def metric(*values):
        return {"unit": "share of items", "values": dict(zip("abc", values))}

    names = {"t/strict_match/base": metric(0.9, 0.9, 0.9), "t/strict_match/OpenBezoar-SFT": metric(0.0, 0.0, 0.0)}
    names |= {"t/answer_found/base": metric(0.1, 0.2, 0.3), "t/answer_found/OpenBezoar-SFT": metric(0.3, 0.3, 0.6)}
    (row,) = replicates.task_rows({f"60_benchmarks/{name}": m for name, m in names.items()}, 0.95)
    assert (row["task"], row["metric"], row["before"], row["after"]) == ("t", "answer_found", "base", "OpenBezoar-SFT")
    assert row["each"] == pytest.approx([0.2, 0.1, 0.3]) and row["difference"] == pytest.approx(0.2) and row["low"] < 0.0
