"""A run against the committed reference: what may move, what may not, and which message tells it."""

import json
import math
import os
import re
import shutil
import subprocess
import sys

import pytest

from bezoar_utils.evaluation.claims import DPO, HH, SFT
from bezoar_utils.report import pages, reference
from bezoar_utils.report.reference import APART, MetricsError, compare, expected_table, read_metrics
from bezoar_utils.study import files, pace
from bezoar_utils.study.profile import CODE, STAGES

COMMITTED = read_metrics(CODE / "reports" / "reference" / "metrics.json")
TIMINGS, CLAIMS = (files.read_json(CODE / "reports" / "reference" / f"{name}.json") for name in ("timings", "claims"))
SPREAD, _ = reference.spread_of_replicates("mini")
RUNS = list(next(iter(SPREAD.values()))["values"])
EIGHT = [0.50, 0.52, 0.48, 0.51, 0.49, 0.53, 0.47, 0.50]


def metric(value, unit="share of items", n=320):
    return {"value": value, "low": None, "high": None, "n": n, "unit": unit}


def spread(values=EIGHT, unit="grade 1-10", name="50_dpo/x"):
    return {name: {"unit": unit, "values": {f"run {i}": value for i, value in enumerate(values)}}}


def lies(row, n, among):
    return reference.limits(row, n, len(among), reference.shared_spread(among))


def problems(value, values=EIGHT, unit="grade 1-10", n=320):
    return compare({"50_dpo/x": metric(0.5, unit)}, {"50_dpo/x": metric(value, unit, n)}, spread(values, unit)).problems


# ------------------------------------------------------------------------------------------------------------- draws


def test_the_reference_agrees_with_itself_to_the_last_bit():
    result = compare(COMMITTED, COMMITTED, SPREAD)
    assert result.problems == [] and result.equal == len(COMMITTED)
    assert len(result.notes) == len(APART) and all(any(s in note for s in APART) for note in result.notes), (
        "only what no replicate runs is not checked, and that in a line a chapter"
    )


def test_a_number_lies_where_students_prediction_interval_of_the_replicates_puts_it():
    mean, low, high = lies(spread()["50_dpo/x"], 320, spread())
    half = 2.364624 * 0.02 * math.sqrt(1 + 1 / 8)  # Student's t for seven degrees of freedom, by the table; the spread is 0.02
    assert (mean, low, high) == (pytest.approx(0.5), pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert problems(0.5 + half - 0.001) == [] and len(problems(0.5 + half + 0.001)) == 1


def test_the_more_numbers_are_looked_at_the_further_each_may_lie():
    many = [{f"50_dpo/{name}": spread()["50_dpo/x"] for name in range(numbers)} for numbers in (1, 10, 100)]
    reaches = [lies(spread()["50_dpo/x"], 320, some)[2] for some in many]
    assert reaches == sorted(reaches) and reaches[2] > 2 * reaches[0] - 0.5


def test_a_share_is_not_believed_to_be_steadier_than_its_like():
    steady, unsteady = [0.95, 0.94, 0.96, 0.95], [0.5, 0.9, 0.7, 0.8]
    both = spread(steady, "share of items", "a") | spread(unsteady, "share of items", "b")
    alone = lies(both["a"], 10_000, spread(steady, "share of items", "a"))
    among = lies(both["a"], 10_000, both)
    assert among[0] == alone[0] and among[0] - among[1] > 3 * (alone[0] - alone[1])
    assert reference.shared_spread(spread([10.0, 500.0], "rows")) == {}, "rows of one scheme say nothing of another's"


def test_a_number_that_lies_outside_is_named_with_where_it_should_lie():
    (line,) = problems(0.9)
    assert line.startswith("50_dpo/x: 0.9 ") and "8 replicates" in line and "0.4" in line and "0.5" in line


def test_its_distance_is_known_as_a_share_of_what_is_allowed():
    _, _, high = lies(spread()["50_dpo/x"], 320, spread())
    result = compare({"50_dpo/x": metric(0.5)}, {"50_dpo/x": metric((0.5 + high) / 2, "grade 1-10")}, spread())
    assert result.moves["50_dpo/x"] == pytest.approx(0.5) and result.equal == 0


@pytest.mark.parametrize(
    ("unit", "value", "near", "far"),
    [
        ("parameters", 2066112, 2066112, 2066113),
        ("rows", 570, 560, 400),
        ("share of items", 0.0, 0.006, 0.2),
        ("share of items", 1.0, 0.994, 0.8),
        ("relative logit norm", 3e-7, 6e-7, 0.03),
        ("Cohen's kappa", 1.0, 0.98, 0.5),
        ("difference of strict_match", 0.14, 0.12, -0.2),
    ],
)
def test_replicates_that_happen_to_be_equal_still_leave_room_for_one_item_more(unit, value, near, far):
    assert problems(near, [value] * 8, unit) == [] and len(problems(far, [value] * 8, unit)) == 1


@pytest.mark.parametrize("run", RUNS)
def test_each_replicate_lies_where_the_others_put_it(run):
    """So that a seed that is not among the replicates passes: each is such a seed to the other ones."""
    others = {n: row | {"values": {r: v for r, v in row["values"].items() if r != run}} for n, row in SPREAD.items()}
    own = {n: COMMITTED[n] | {"value": row["values"][run]} for n, row in SPREAD.items() if run in row["values"] and n in COMMITTED}
    assert len(own) > 60 and compare(own, own, {n: row for n, row in others.items() if len(row["values"]) > 1}).problems == []


def as_if(broken, of):
    """The metrics of a checkpoint that came out as the one before it."""
    before = {name: name.replace(broken, of) for name in COMMITTED if name.endswith(f"/{broken}")}
    return {name: COMMITTED[other]["value"] for name, other in before.items() if other in COMMITTED}


BROKEN = {
    "SFT learned nothing": as_if(SFT, "base"),
    "HH-SFT lost everything": as_if(HH, "base"),
    "DPO lost everything": as_if(DPO, "base"),
    "DPO learned nothing": {"50_dpo/reward_accuracy": 0.5},
    "the judge accepts all": {"20_judge_filter/accept_rate_all": 1.0},
    "the judge accepts none": {"20_judge_filter/accept_rate_all": 0.0},
    "no rows": {"11_orca/rows": 0},
    "a wrong merge": {"30_sft/merge_difference_dequantised": 0.5},
}


@pytest.mark.parametrize("stage", BROKEN)
def test_a_broken_stage_is_seen_against_the_committed_replicates(stage):
    """As far as numbers alone go; `test_planted_faults.py` plants faults in the code."""
    changed = {name: COMMITTED[name] | {"value": value} for name, value in BROKEN[stage].items()}
    assert changed and compare(COMMITTED, COMMITTED | changed, SPREAD).problems


# ------------------------------------------------------------------------------------------- other files, other metrics


def test_a_metric_that_is_gone_fails_and_one_that_is_new_is_noted():
    before, after = ({f"50_dpo/{name}": metric(0.5, "grade 1-10") for name in names} for names in ("ab", "ac"))
    result = compare(before, after, spread(name="50_dpo/a"))
    assert len(result.problems) == len(result.notes) == 1 and "50_dpo/b" in result.problems[0] and "50_dpo/c" in result.notes[0]


def test_a_stage_that_was_not_run_fails_once_unless_it_stands_apart():
    before = {name: metric(1.0) for name in ("50_dpo/a", "60_benchmarks/a", "60_benchmarks/b", "80_ablations/a")}
    result = compare(before, {"50_dpo/a": metric(0.5)}, spread(unit="share of items", name="50_dpo/a"))
    assert len(result.problems) == len(result.notes) == 1
    assert "60_benchmarks" in result.problems[0] and "80_ablations" in result.notes[0]


@pytest.mark.parametrize("value", [None, float("nan"), "0.5"])
def test_a_value_that_is_not_a_number_is_a_problem(value):
    (line,) = problems(value)
    assert "not a number" in line


def test_another_unit_is_a_problem():
    (line,) = compare({"50_dpo/x": metric(0.5)}, {"50_dpo/x": metric(50, "percent")}, spread()).problems
    assert "'percent'" in line and "'grade 1-10'" in line


def test_a_number_that_no_replicate_measured_is_named_as_not_checked():
    both = {"50_dpo/x": metric(0.5, "grade 1-10"), "50_dpo/y": metric(0.5)}
    result = compare(both, both, spread())
    assert result.problems == [] and "50_dpo/y" in result.notes[0] and set(result.moves) == {"50_dpo/x"}


def test_files_without_a_metric_in_common_do_not_agree():
    assert len(compare({"80_ablations/a": metric(1.0)}, {"50_dpo/a": metric(1.0)}, spread(name="50_dpo/a")).problems) == 1


def test_a_missing_metrics_file_says_which_command_makes_it(tmp_path):
    with pytest.raises(MetricsError, match=r"reports/mine/metrics\.json .*make reproduce PROFILE=mine"):
        read_metrics(tmp_path / "mine" / "metrics.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"a": {"value": 1}}'])
def test_a_file_that_does_not_hold_metrics_is_named_in_one_line(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(MetricsError, match=r"metrics\.json") as error:
        read_metrics(tmp_path / "metrics.json")
    assert "\n" not in str(error.value)


def test_metrics_that_say_how_many_were_asked_for_are_read_beside_older_ones_that_do_not(tmp_path):
    metrics = {"50_dpo/old": metric(0.5), "50_dpo/new": metric(0.5) | {"asked": 400}}
    files.write_json(tmp_path / "metrics.json", metrics)
    assert read_metrics(tmp_path / "metrics.json") == metrics


# ----------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pace, "REPORTS", tmp_path)
    monkeypatch.setattr(reference, "REPORTS", tmp_path)

    def put(expected, found):
        files.write_json(tmp_path / "reference" / "metrics.json", {"50_dpo/x": metric(expected)})
        told = {"profile": "mini", "metrics": spread(unit="share of items"), "confidence": 0.95}
        files.write_json(tmp_path / "reference" / "replicates.json", told)
        files.write_json(tmp_path / "mine" / "metrics.json", {"50_dpo/x": metric(found), "50_dpo/y": metric(1.0)})
        return reference.main(["--profile", "mine"])

    return put


def test_the_command_says_how_well_they_agree(two_files, capsys):
    assert two_files(0.5, 0.53) == 0
    printed = capsys.readouterr()
    assert "1 metrics are where the replicates put one more run" in printed.out and "(50_dpo/x)" in printed.out
    assert "note: new: 50_dpo/y" in printed.out and printed.err == ""


def test_the_command_fails_and_says_which_metric_moved(two_files, capsys):
    assert two_files(0.5, 0.9) == 1
    printed = capsys.readouterr()
    assert "error: 50_dpo/x" in printed.err and "replicates put" not in printed.out


def test_the_command_without_a_run_is_one_line(two_files, capsys):
    two_files(0.5, 0.5)
    capsys.readouterr()
    assert reference.main(["--profile", "nobody"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "make reproduce PROFILE=nobody" in line


# --------------------------------------------------------------------------------------------------------- REPRODUCING.md


def test_reproducing_says_what_the_reference_says():
    page = (CODE / "REPRODUCING.md").read_text()
    table = page.partition("<!-- expected -->\n")[2].partition("\n<!-- /expected -->")[0]
    assert table == expected_table(COMMITTED, TIMINGS, CLAIMS, SPREAD)


def test_each_row_has_its_value_and_its_limits_and_each_claim_has_a_row():
    lines = [line.strip("| ").split(" | ") for line in expected_table(COMMITTED, TIMINGS, CLAIMS, SPREAD).splitlines()[2:]]
    names = [metric for _, metric in reference.ROWS] + [f"90_findings/{claim['id']}" for claim in CLAIMS]
    assert {name for name in COMMITTED if name.startswith("90_findings/")} == set(names[len(reference.ROWS) :])
    for name, (_, chapter, *_, expected, allowed) in zip(names, lines, strict=True):
        value, _, unit = expected.partition(" ")
        metric = COMMITTED[name]
        low, _, high = allowed.partition(" to ")
        assert unit == metric["unit"] and abs(float(value) - metric["value"]) < 0.00051 and float(low) < float(high)
        assert chapter.strip("`") in STAGES


def test_time_is_that_of_all_chapters_up_to_this_one_but_those_apart():
    timings = {"00_miniature": 100.0, "50_dpo": 21.0, "80_ablations": 6000.0, "90_findings": 1.0}
    assert [reference.minutes_from_nothing(stage, timings) for stage in ("00_miniature", "50_dpo", "90_findings")] == [2, 3, 3]


def test_a_row_whose_metric_is_gone_is_one_clear_line():
    with pytest.raises(MetricsError, match="10_lamini/rows"):
        expected_table({}, {}, [], {})


def test_the_readmes_table_names_the_confidence_of_its_intervals():
    numbers = {"before": 0.1, "after": 0.4, "difference": 0.3, "low": 0.2, "high": 0.4}
    table = pages.results_table([{"claim": "It answers", "test": "found", "n": 9, "verdict": "shown"} | numbers], confidence=0.9)
    assert "90 %" in table and "+0.30 [+0.20, +0.40]" in table and "95" not in table


def test_a_table_is_put_between_its_marks_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter\n")
    for _ in range(2):
        pages.put_between(page, "x", "new")
        assert page.read_text() == "before\n<!-- x -->\nnew\n<!-- /x -->\nafter\n"
    with pytest.raises(ValueError, match=r"page\.md.*<!-- y -->"):
        pages.put_between(page, "y", "new")


def test_links_and_files_that_reproducing_names_are_there():
    page = (CODE / "REPRODUCING.md").read_text()
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", page)
    targets += [name for name in re.findall(r"`([\w./]+\.(?:py|md|yaml|yml|txt|cff))`", page) if "/" in name]
    assert len(targets) > 15 and [name for name in targets if not (CODE / name).exists()] == []


# ----------------------------------------------------------------------------------------------- twice from nothing


@pytest.mark.slow
def test_two_runs_from_nothing_give_the_same_metrics_byte_for_byte(tmp_path):
    """`tiny`, in two copies of the checkout, as two people would run it: about five minutes."""
    first, second = (reproduced(tmp_path / name) for name in ("first", "second"))
    assert len(json.loads(first)) > 40 and first == second


def reproduced(folder):
    left_out = shutil.ignore_patterns(".git", ".venv", "runs", "reports", "__pycache__", ".*_cache")
    shutil.copytree(CODE, folder, ignore=left_out)
    inherited = ("BEZOAR_HOME", "BEZOAR_READS", "BEZOAR_SEEDS", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
    environment = {k: v for k, v in os.environ.items() if k not in inherited}
    command = ["make", "reproduce", "PROFILE=tiny", f"PY={sys.executable}"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stderr[-3000:]
    return (folder / "reports" / "tiny" / "metrics.json").read_bytes()
