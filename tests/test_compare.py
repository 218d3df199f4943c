"""Runs side by side: what differs, what is missing, and which requests are refused."""

import os
import subprocess
import sys

import pytest
from bs4 import BeautifulSoup
from small_report import PAYLOAD, claim, write_run
from test_report import live

from bezoar_utils.report import compare
from bezoar_utils.study import files
from bezoar_utils.study.profile import CODE


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of two runs, of which one has not finished 10_lamini and one makes a claim full of markup."""
    home = tmp_path_factory.mktemp("study")
    write_run(home / "runs", "mini", rate=0.001)
    write_run(home / "runs", "mine", rate=0.00123456, verdict="not shown", stages=("30_sft", "90_findings"))
    files.write_json(
        home / "runs" / "mine" / "90_findings" / "claims.json", [claim(verdict="not shown", asked=12), claim(claim=PAYLOAD)]
    )
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"  # the kernel named python3 is this environment's
    environment = os.environ | {"BEZOAR_HOME": str(home), "PATH": path}
    command = [sys.executable, "-m", "bezoar_utils.report.compare", "mini", "mine"]
    result = subprocess.run(command, cwd=CODE, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return (home / "reports" / "compare" / "index.html").read_text()


def rows_under(page, heading):
    """The first table after a heading, as one dictionary per row."""
    table = BeautifulSoup(page, "html.parser").find("h2", id=heading).find_next("table")
    head = [cell.get_text() for cell in table.thead.find_all("th")]
    return [dict(zip(head, (cell.get_text() for cell in row.find_all(["th", "td"])))) for row in table.tbody.find_all("tr")]


def test_only_parameters_that_differ_are_listed_and_to_the_last_digit(page):
    rows = rows_under(page, "to-parameters-that-differ")
    assert rows[0] == {"stage": "30_sft", "parameter": "training.learning_rate", "mini": "0.001", "mine": "0.00123456"}
    assert {row["stage"] for row in rows} == {"30_sft", "90_findings"}, "a stage of one run alone has nothing to differ from"
    assert "seed" not in {row["parameter"] for row in rows}


def test_metrics_are_the_union_with_intervals_and_a_dash_for_what_is_missing(page):
    rows = {(row["stage"], row["metric"]): row for row in rows_under(page, "to-metrics")}
    assert rows["30_sft", "found"]["mini"] == "0.100 [0.050, 0.200], n = 3"
    assert (rows["30_sft", "only_mini"]["mini"], rows["30_sft", "only_mini"]["mine"]) == ("1.000, n = 9 of 12", "–")
    assert rows["10_lamini", "found"]["mine"] == "–"


def test_each_claim_shows_every_runs_verdict(page):
    first, second = sorted(rows_under(page, "to-claims"), key=lambda row: row["claim"], reverse=True)
    assert first["mini"] == "shown: +0.70 [+0.60, +0.80]" and first["mine"].endswith("+0.80] (n = 9 of 12)")
    assert second["mini"] == "–" and second["claim"] == PAYLOAD


def test_the_page_says_what_each_run_was_made_from_and_which_stage_is_missing(page):
    rows = {row["stage"]: row for row in rows_under(page, "provenance")}
    assert "seed 1" in rows["10_lamini"]["mini"] and rows["10_lamini"]["mine"] == "not finished"


def test_the_page_has_the_losses_with_their_data_and_nothing_live(page):
    assert not live(page[page.index("<main") : page.index("</main>")]) and page.count("<h1") == 1
    figure = BeautifulSoup(page, "html.parser").find("h2", id="to-losses").find_next("figure")
    assert "mini, mine" in figure.img["alt"] and figure.find("a", download=True)["href"].startswith("data:text/csv;base64,")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RUNS", tmp_path)
    for name, rate in (("mini", 0.001), ("mine", 0.002)):
        write_run(tmp_path, name, rate=rate, stages=("30_sft",))
    return tmp_path


def test_losses_are_overlaid_from_the_logs(runs):
    from bezoar_utils.report import charts

    logs = compare.loss_panels(compare.read_runs(["mini", "mine"]), compare.LOGS[0][1])
    drawn = {(row["series"], row["x"], row["y"]) for row in charts.overlaid_losses(logs, "SFT loss").rows}
    assert {("mini, training", 1, 3), ("mine, training", 2, 2), ("mini, validation", 2, 1), ("mine, validation", 2, 2)} <= drawn


@pytest.mark.parametrize(
    "names, words",
    [
        ([], ["two or more"]),
        (["mini", "mini"], ["two or more", "mini"]),
        (["mini", "nope"], ["'nope'", "bare, mine, mini"]),
        (["mini", "../mini"], ["'../mini'"]),
        (["mini", "rehearse-paper"], ["rehearse-paper", "rehearsal"]),
        (["mini", "bare"], ["runs/bare", "make reproduce PROFILE=bare"]),
    ],
)
def test_a_wrong_request_is_one_clear_line_and_starts_nothing(runs, names, words, capsys, monkeypatch):
    monkeypatch.setattr(compare, "TARGET", runs / "never made")
    (runs / "bare" / "10_lamini").mkdir(parents=True)
    assert compare.main(names) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words) and not (runs / "never made").exists()


def test_a_cell_that_fails_is_an_error_and_no_page(runs, monkeypatch, tmp_path, capsys):
    import papermill

    def fail(*_, **__):
        raise papermill.PapermillExecutionError(3, 3, "", "ValueError", "no such column", [])

    monkeypatch.setattr(compare, "TARGET", tmp_path / "compare")
    monkeypatch.setattr(papermill, "execute_notebook", fail)
    assert compare.main(["mini", "mine"]) == 2 and "no such column" in capsys.readouterr().err
    assert not (tmp_path / "compare" / "index.html").exists()


def test_make_compare_passes_the_runs_on():
    command = ["make", "-n", "compare", "RUNS=mini mine", "PY=python3"]
    printed = subprocess.run(command, cwd=CODE, capture_output=True, text=True, check=True).stdout
    assert f"python3 -m {compare.__name__} mini mine" in printed
