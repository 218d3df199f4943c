import pytest

from bezoar_utils.planning import plan, preflight
from bezoar_utils.run import stages_of
from bezoar_utils.study import files
from bezoar_utils.study.profile import PROFILES, STAGES, load_profile
from bezoar_utils.study.stage import StageError

PAID = """extends: mini
stages: [10_lamini, 20_judge_filter]
money: {budget_usd: 3.0, prices: {big-judge: [30.0, 60.0]}}
judge: {model: big-judge, max_tokens: 100, endpoint: {base_url: "http://127.0.0.1:9/v1", local_server: null}}
lamini: {example_guided_calls: 10, topic_guided_calls: 0, instructions_per_call: 4}
orca: {per_collection: {cot: 30, niv2: 0, t0: 0, flan2021: 0}}
evol: {epochs: 0}
judge_filter: {repeat_rows: 5, second_judge: null}
plan: {judge: {prompt_tokens: 200, reply_tokens: 50, calls_per_second: 2.0}}
"""


@pytest.fixture
def paid(tmp_path):
    (tmp_path / "mini.yaml").write_text((PROFILES / "mini.yaml").read_text())
    (tmp_path / "paid.yaml").write_text(PAID)
    return load_profile("paid", tmp_path)


def test_calls_tokens_cost_and_time_are_estimated_before_anything_is_spent(paid):
    teacher, judge = plan.expected_calls(paid)
    assert (teacher["stage"], teacher["role"], teacher["calls"], teacher["usd"]) == ("10_lamini", "teacher", 10 + 40, 0.0)
    # 40 instructions and 30 queries are judged, 5 of them four times more
    assert (judge["role"], judge["calls"], judge["tokens_in"], judge["tokens_out"]) == ("judge", 90, 18_000, 4_500)
    assert judge["usd"] == pytest.approx(18_000 * 30e-6 + 4_500 * 60e-6)
    assert judge["worst_usd"] == pytest.approx(18_000 * 30e-6 + 9_000 * 60e-6)
    assert judge["hours"] == pytest.approx(45 / 3600)


def test_a_screen_says_what_it_saves_once_there_are_rows(paid, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "RUNS", tmp_path)
    screening = paid.model_copy(update={"judge_filter": paid.judge_filter.model_copy(update={"screen": True})})
    judging = plan.expected_calls(paid)[-1]
    assert plan.screen_lines("paid", paid, judging) == [] and "is known once" in plan.screen_lines("paid", screening, judging)[0]
    rows = [{"response": text} for text in ("A fine answer.", "", "I'm sorry, but I can't help with that.", "42")]
    files.write_table(tmp_path / "paid" / "10_lamini" / "lamini.parquet", rows)
    (line,) = plan.screen_lines("paid", screening, judging)
    assert "50.0% of 4 rows" in line and f"about {judging['usd'] / 2:.2f} USD less" in line


def test_grades_repeats_and_pairs_in_both_orders_are_counted():
    mini = load_profile("mini")
    # 32 questions of two turns: four models' grades, 64 of them again, and two pairs of models in two orders
    assert bench_calls(mini) == [4 * 64 + 64 + 2 * 2 * 64, 64]


def bench_calls(profile):
    return [row["calls"] for row in plan.expected_calls(profile) if row["stage"] == "61_mt_bench"]


def test_no_more_answers_are_graded_again_than_there_are():
    mini = load_profile("mini")
    section = mini.mt_bench.model_copy(update={"pairs": [], "repeat_rows": 10_000, "second_judge": None})
    assert bench_calls(mini.model_copy(update={"mt_bench": section})) == [2 * 4 * 64]


def test_stages_a_profile_does_not_run_make_no_calls(paid):
    assert {row["stage"] for row in plan.expected_calls(paid)} == {"10_lamini", "20_judge_filter"}
    assert "20_judge_filter" not in {row["stage"] for row in plan.expected_calls(load_profile("released"))}


def test_released_rows_that_a_judge_of_your_own_reads_are_calls_of_it_too():
    released = load_profile("released")
    judging = released.judge_filter.model_copy(update={"verdicts": "judge", "repeat_rows": 0})
    rows = plan.expected_calls(released.model_copy(update={"judge_filter": judging}))
    assert {row["stage"]: row["calls"] for row in rows}["20_judge_filter"] == released.plan.work.sft_rows


def test_the_chapters_beside_the_recipe_ask_the_judge_of_each_models_replies():
    mini = load_profile("mini")
    calls = {row["stage"]: row["calls"] for row in plan.expected_calls(mini)}
    # HH-SFT, SFT, DPO from both, four other methods, two rates; with 81's eight: 160 replies each
    assert (calls["80_ablations"], calls["81_reward"]) == (10 * 160, 8 * 160)
    twice = mini.model_copy(update={"reward": mini.reward.model_copy(update={"seeds": 2})})
    assert {row["stage"]: row["calls"] for row in plan.expected_calls(twice)}["81_reward"] == 2 * 8 * 160


@pytest.mark.parametrize(("budget", "words"), [(0.0, "budget_usd is 0"), (0.5, "stops"), (3.0, "covers the worst case")])
def test_the_plan_says_what_the_budget_will_do(paid, budget, words):
    money = paid.money.model_copy(update={"budget_usd": budget})
    assert words in plan.call_lines("paid", paid.model_copy(update={"money": money}))[-1]


def test_the_miniature_costs_nothing_and_says_so():
    assert plan.call_lines("mini", load_profile("mini"))[-1] == "no call costs money"


def test_answers_on_disk_are_counted(paid, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "RUNS", tmp_path)
    rows = [{"key": "a", "text": "x"}, {"key": "b", "failure": "429"}]
    files.append_jsonl(tmp_path / "paid" / "10_lamini" / "calls.jsonl", *rows)
    assert any(line.startswith("1 answers") for line in plan.call_lines("paid", paid))


def test_a_profile_runs_its_own_stages_and_reads_among_them_only():
    dag = "00_miniature: 10_lamini:00_miniature 20_judge_filter:00_miniature,10_lamini 30_sft:20_judge_filter"
    assert stages_of("released", dag) == {"10_lamini": [], "20_judge_filter": ["10_lamini"], "30_sft": ["20_judge_filter"]}
    assert list(stages_of("mini", dag)) == [part.split(":")[0] for part in dag.split()]
    with pytest.raises(StageError, match="99_other"):
        stages_of("mini", "99_other:")


@pytest.mark.parametrize("name", ["released", "paper"])
def test_every_hub_source_of_a_full_profile_is_pinned(name):
    sources = [source for _, source in preflight.sources_of(load_profile(name), list(STAGES)) if source.hub]
    assert len(sources) >= 5
    assert all(len(source.revision or "") == 40 or source.expect_prefix for source in sources)


def test_the_released_checkpoints_are_pinned_and_nothing_is_trained():
    profile = load_profile("checkpoints")
    assert profile.stages == ["60_benchmarks", "61_mt_bench"] and len(profile.evaluation.tasks) == 10
    assert list(profile.checkpoints) == ["base", "OpenBezoar-SFT", "OpenBezoar-HH-RLHF-SFT", "OpenBezoar-HH-RLHF-DPO"]
    assert all(len(checkpoint.revision or "") == 40 for checkpoint in profile.checkpoints.values())


def test_the_paper_profile_draws_as_many_orca_queries_as_were_released():
    assert sum(load_profile("paper").orca.per_collection.values()) == 5517
