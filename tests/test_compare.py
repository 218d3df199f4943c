import re
import subprocess

import pytest
from small_report import PAYLOAD, claim, write_run
from test_report import live

from bezoar_utils.report import compare, pages
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(compare, "TARGET", tmp_path / "reports" / "compare")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    write_run(tmp_path / "runs", "mini", rate=0.001)
    write_run(tmp_path / "runs", "mine", rate=0.00123456, verdict="not shown", stages=("30_sft", "90_findings"))
    return tmp_path / "runs"


def test_only_parameters_that_differ_are_listed_and_to_the_last_digit(runs):
    rows = compare.parameter_differences(compare.read_runs(["mini", "mine"]))
    assert rows[0] == {"stage": "30_sft", "parameter": "training.learning_rate", "mini": "0.001", "mine": "0.00123456"}
    assert {row["stage"] for row in rows} == {"30_sft", "90_findings"}, "a stage only one run finished has nothing to differ from"
    assert "seed" not in {row["parameter"] for row in rows}


def test_metrics_are_the_union_with_intervals_and_a_dash_for_what_is_missing(runs):
    rows = {(row["stage"], row["metric"]): row for row in compare.metrics_side_by_side(compare.read_runs(["mini", "mine"]))}
    assert rows["30_sft", "found"]["mini"] == "0.100 [0.050, 0.200], n = 3"
    assert (rows["30_sft", "only_mini"]["mini"], rows["30_sft", "only_mini"]["mine"]) == ("1.000", "–")
    assert rows["10_lamini", "found"]["mine"] == "–"


def test_each_claim_shows_every_runs_verdict(runs):
    claims = {name: files.read_json(runs / name / "90_findings" / "claims.json") for name in ("mini", "mine")}
    (row,) = compare.claims_side_by_side(claims)
    assert row["mini"] == "shown: +0.70 [+0.60, +0.80]" and row["mine"].startswith("not shown: ")
    (row,) = compare.claims_side_by_side(claims | {"mine": []})
    assert row["mine"] == "–"


def test_losses_are_overlaid_from_the_logs(runs):
    from bezoar_utils.report import charts

    logs = compare.loss_panels(compare.read_runs(["mini", "mine"]), compare.LOGS[0][1])
    drawn = [(row["panel"], row["series"], row["x"], row["y"]) for row in charts.overlaid_losses(logs, "SFT loss").rows]
    assert ("SFT loss", "mini, training", 1, 3) in drawn and ("SFT loss", "mine, training", 2, 2) in drawn
    assert ("SFT loss", "mini, validation", 2, 1) in drawn and ("SFT loss", "mine, validation", 2, pytest.approx(1.23456)) in drawn


def test_the_page_holds_all_of_it_and_nothing_live(runs):
    files.write_json(
        runs / "mine" / "90_findings" / "claims.json",
        [claim(claim=PAYLOAD)],
    )
    text = compare.write_comparison(["mini", "mine"]).read_text()
    assert not live(text[text.index("<main") : text.index("</main>")])
    for part in ("parameters", "losses", "claims", "metrics", "provenance"):
        assert f'<h2 id="{part}">' in text
    assert re.search(r'<a download="sft-loss[a-z-]*\.csv" href="data:text/csv;base64,', text) and text.count("<h1") == 1
    assert compare.main(["mini", "mine"]) == 0


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "two or more different runs are needed.*got none"),
        (["mini", "mini"], "two or more different runs are needed.*got mini"),
        (["mini", "nope"], "no run 'nope' in runs/; there is bare, mine, mini"),
        (["mini", "../mini"], "no run '../mini'"),
        (["mini", "bare"], "runs/bare has no finished stage: run `make reproduce PROFILE=bare` first"),
    ],
)
def test_a_wrong_request_is_one_clear_line(runs, names, words, capsys):
    (runs / "bare" / "10_lamini").mkdir(parents=True)
    assert compare.main(names) == 2
    assert re.fullmatch(f"error: .*{words}.*\n", capsys.readouterr().err)


def test_make_compare_passes_the_runs_on():
    command = ["make", "-n", "compare", "RUNS=mini mine", "PY=python3"]
    told = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=True).stdout
    assert "python3 -m bezoar_utils.report.compare mini mine" in told
