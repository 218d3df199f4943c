"""A run against the committed reference: what may move, what may not, and which message tells it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

from bezoar_utils.evaluation.claims import DPO, HH, SFT
from bezoar_utils.report import pages, reference
from bezoar_utils.report.reference import MetricsError, compare, expected_table, read_metrics, tolerance
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE, STAGES

COMMITTED = read_metrics(CODE / "reports" / "reference" / "metrics.json")
TIMINGS, CLAIMS, DRAWS = (
    files.read_json(CODE / "reports" / "reference" / f"{name}.json") for name in ("timings", "claims", "other_kernels")
)


def metric(value, unit="share of items", n=320):
    return {"value": value, "low": None, "high": None, "n": n, "unit": unit}


def problems(before, after, unit="share of items"):
    return compare({"50_dpo/x": metric(before, unit)}, {"50_dpo/x": metric(after, unit)}).problems


# ------------------------------------------------------------------------------------------------------------- moves


def test_the_reference_agrees_with_itself_to_the_last_bit():
    result = compare(COMMITTED, COMMITTED)
    assert (result.problems, result.notes, result.equal) == ([], [], len(COMMITTED))
    assert set(result.moves.values()) == {0.0}


def test_a_metric_within_its_tolerance_is_no_problem_and_its_move_is_known():
    result = compare({"50_dpo/x": metric(0.5)}, {"50_dpo/x": metric(0.56)})
    assert result.problems == [] and result.equal == 0
    assert result.moves["50_dpo/x"] == pytest.approx(0.5), "half of what it may"


def test_a_metric_that_moved_is_named_with_both_values_and_the_reason():
    (line,) = problems(0.81, 0.5, "share of pairs")
    assert line.startswith("50_dpo/x: ") and all(part in line for part in ("0.81", "0.5", "-0.31", "±0.12", "standard errors"))


@pytest.mark.parametrize(
    ("unit", "before", "near", "far"),
    [
        ("parameters", 2066112, 2066112, 2066113),
        ("rows", 687, 600, 500),
        ("rows", 4, 2, 0),
        ("share", 0.55, 0.45, 1.0),
        ("share of replies", 0.73, 0.65, 0.58),
        ("share of prompts", 1.0, 0.8, 0.6),
        ("grade 1-10", 5.8, 4.9, 1.4),
        ("grade points", 4.4, 3.9, 0.0),
        ("nats per reply", -0.33, -0.40, -2.8),
        ("relative logit norm", 0.004, 0.008, 0.055),
        ("Cohen's kappa", 0.56, 0.45, 0.0),
        ("difference of strict_match", 0.14, 0.05, -0.2),
    ],
)
def test_each_unit_has_room_for_another_draw_and_none_for_a_broken_stage(unit, before, near, far):
    assert problems(before, near, unit) == [] and len(problems(before, far, unit)) == 1


def as_if(broken, of):
    """The metrics of a checkpoint that came out as the one before it."""
    return {name: COMMITTED[name.replace(broken, of)]["value"] for name in COMMITTED if name.endswith(f"/{broken}")}


BROKEN = {
    "SFT learned nothing": as_if(SFT, "base"),
    "HH-SFT lost everything": as_if(HH, "base"),
    "DPO lost everything": as_if(DPO, "base"),
    "DPO learned nothing": {"50_dpo/reward_accuracy": 0.5},
    "the judge accepts all": {"20_judge_filter/accept_rate_all": 1.0},
    "the judge accepts none": {"20_judge_filter/accept_rate_all": 0.0},
    "no rows": {"10_lamini/rows": 0},
    "a wrong merge": {"30_sft/merge_difference_dequantised": 0.5},
}


@pytest.mark.parametrize("stage", BROKEN)
def test_a_broken_stage_is_seen_against_the_committed_reference(stage):
    changed = {name: COMMITTED[name] | {"value": value} for name, value in BROKEN[stage].items()}
    assert changed and compare(COMMITTED, COMMITTED | changed, DRAWS).problems


def test_a_number_may_move_half_again_as_far_as_it_did_with_other_kernels():
    before, draws = {"50_dpo/x": metric(0.5)}, {"AVX": {"50_dpo/x": 0.7}, "AVX-512": {"50_dpo/x": 0.4}}
    assert compare(before, {"50_dpo/x": metric(0.79)}, draws).problems == []
    assert "±0.3" in compare(before, {"50_dpo/x": metric(0.81)}, draws).problems[0]


@pytest.mark.parametrize("kernels", DRAWS)
def test_the_draws_with_other_kernels_are_within_the_tolerances(kernels):
    draw = {name: COMMITTED[name] | {"value": value} for name, value in DRAWS[kernels].items()}
    assert compare({name: COMMITTED[name] for name in draw}, draw, DRAWS).problems == []


# ------------------------------------------------------------------------------------------- other files, other metrics


def test_a_metric_that_is_gone_fails_and_one_that_is_new_is_noted():
    result = compare({"50_dpo/a": metric(1.0), "50_dpo/b": metric(1.0)}, {"50_dpo/a": metric(1.0), "50_dpo/c": metric(1.0)})
    assert len(result.problems) == len(result.notes) == 1 and "50_dpo/b" in result.problems[0] and "50_dpo/c" in result.notes[0]


def test_a_stage_that_was_not_run_fails_once_unless_it_stands_apart():
    before = {name: metric(1.0) for name in ("50_dpo/a", "60_benchmarks/a", "60_benchmarks/b", "80_ablations/a")}
    result = compare(before, {"50_dpo/a": metric(1.0)})
    assert len(result.problems) == len(result.notes) == 1
    assert "60_benchmarks" in result.problems[0] and "80_ablations" in result.notes[0]


@pytest.mark.parametrize("value", [None, float("nan"), "0.5"])
def test_a_value_that_is_not_a_number_is_a_problem(value):
    (line,) = problems(0.5, value)
    assert "not a number" in line


def test_another_unit_and_an_unknown_one_are_problems():
    result = compare({"50_dpo/x": metric(0.5)}, {"50_dpo/x": metric(50, "percent")})
    assert "'percent'" in result.problems[0] and "'share of items'" in result.problems[0]
    assert "TOLERANCES" in problems(50, 50, "percent")[0] and "'percent'" in problems(50, 50, "percent")[0]


def test_files_without_a_metric_in_common_do_not_agree():
    assert len(compare({"80_ablations/a": metric(1.0)}, {"50_dpo/a": metric(1.0)}).problems) == 1


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
    assert read_metrics(tmp_path / "metrics.json") == metrics and compare(metrics, metrics).problems == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_unit_a_chapter_measures_in_has_a_tolerance(stage):
    cells = [c for c in nbformat.read(CODE / "notebooks" / f"{stage}.ipynb", 4).cells if c.cell_type == "code"]
    calls = [node for c in cells for node in ast.walk(ast.parse(c.source)) if isinstance(node, ast.Call)]
    values = [k.value for call in calls for k in call.keywords if k.arg == "unit"]
    units = [node.value for node in values if isinstance(node, ast.Constant)]
    units += [node.values[0].value for node in values if isinstance(node, ast.JoinedStr)]  # how a composed one begins
    assert [unit for unit in units if tolerance(unit) is None] == []


def test_every_unit_of_the_committed_reference_has_a_tolerance():
    assert {m["unit"] for m in COMMITTED.values() if tolerance(m["unit"]) is None} == set()


# ----------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "REPORTS", tmp_path)
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "reference" / "metrics.json")

    def put(expected, found):
        files.write_json(tmp_path / "reference" / "metrics.json", {"50_dpo/x": metric(expected)})
        files.write_json(tmp_path / "mine" / "metrics.json", {"50_dpo/x": metric(found), "50_dpo/y": metric(1.0)})
        return reference.main(["--profile", "mine"])

    return put


def test_the_command_says_how_well_they_agree(two_files, capsys):
    assert two_files(0.5, 0.53) == 0
    printed = capsys.readouterr()
    assert "1 metrics agree" in printed.out and "25%" in printed.out and "(50_dpo/x)" in printed.out
    assert "note: new: 50_dpo/y" in printed.out and printed.err == ""


def test_the_command_fails_and_says_which_metric_moved(two_files, capsys):
    assert two_files(0.5, 0.9) == 1
    printed = capsys.readouterr()
    assert "error: 50_dpo/x" in printed.err and "agree" not in printed.out


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
    assert table == expected_table(COMMITTED, TIMINGS, CLAIMS, DRAWS)


def test_each_row_has_its_value_and_its_tolerance_and_each_claim_has_a_row():
    lines = [line.strip("| ").split(" | ") for line in expected_table(COMMITTED, TIMINGS, CLAIMS, DRAWS).splitlines()[2:]]
    names = [metric for _, metric in reference.ROWS] + [f"90_findings/{claim['id']}" for claim in CLAIMS]
    assert {name for name in COMMITTED if name.startswith("90_findings/")} == set(names[len(reference.ROWS) :])
    for name, (_, chapter, *_, expected, allowed) in zip(names, lines, strict=True):
        value, _, unit = expected.partition(" ")
        metric = COMMITTED[name]
        assert unit == metric["unit"] and abs(float(value) - metric["value"]) < 0.00051 < float(allowed[2:])
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
