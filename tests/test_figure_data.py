import base64
import csv
import io

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest

from bezoar_utils import charts, report, show
from bezoar_utils.figure_data import download_link, figure_csv, figure_rows


def drawn(figure):
    rows = [tuple(row.values()) for row in figure_rows(figure)]
    plt.close(figure)
    return rows


def test_bars_come_with_their_names_and_intervals():
    assert drawn(charts.bars({"base": (0.5, 0.4, 0.7), "OpenBezoar-SFT": (0.2, 0.1, 0.25)}, "T", "share")) == [
        ("T", "", "base", 0.5, pytest.approx(0.4), pytest.approx(0.7)),
        ("T", "", "SFT", 0.2, pytest.approx(0.1), pytest.approx(0.25)),
    ]


def test_grouped_bars_name_the_model_and_the_category():
    figure = charts.grouped_bars({"one": {"math": 1.0, "writing": 2.0}, "two": {"math": 3.0}}, "T", "grade")
    assert [row[1:4] for row in drawn(figure)] == [
        ("one", "math", 1),
        ("one", "writing", 2),
        ("two", "math", 3),
        ("two", "writing", 0),
    ]


def test_a_difference_keeps_its_interval_and_its_name():
    row = {"low": -1, "high": 2, "difference": 0.5, "variant": "rank 4", "against": "rank 16"}
    assert ("T", "", 0.5, "rank 4 against rank 16", -1, 2) in drawn(charts.differences([row], "T", "share"))


def test_a_training_without_validation_draws_its_own_losses_only():
    logs = {"base": [{"step": n, "loss": 3.0 - n} for n in (1, 2)]}
    assert [row[1] for row in drawn(charts.losses(logs, "T"))] == ["training", "training"]


def test_losses_name_the_panel_and_the_curve():
    logs = {"lamini": [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}], "orca": [{"step": 1, "loss": 3.0}]}
    assert [row[:4] for row in drawn(charts.losses(logs | {"orca": [*logs["orca"], {"step": 1, "eval_loss": 2.5}]}, "T"))] == [
        ("lamini", "training", 1, 2),
        ("lamini", "validation", 2, 1.5),
        ("orca", "training", 1, 3),
        ("orca", "validation", 1, 2.5),
    ]


def test_a_histogram_gives_its_edges_and_a_line_across_its_place():
    rows = [row[1:4] for row in drawn(charts.lengths({"lamini": [1, 2, 3, 3]}, 192, "T"))]
    assert rows[:4] == [
        ("lamini (n = 4)", 1, 0.25),
        ("lamini (n = 4)", 2, 0.25),
        ("lamini (n = 4)", 3, 0.5),
        ("lamini (n = 4)", 4, 0),
    ]
    assert ("max_length (192)", 192, "") in rows


def test_a_radar_gives_each_spoke_once_by_its_name():
    figure, axis = plt.subplots(subplot_kw={"polar": True})
    axis.plot([0, 2, 4, 0], [1, 2, 3, 1], label="base")
    axis.fill([0, 2, 4, 0], [1, 2, 3, 1])
    axis.set_xticks([0, 2, 4], ["writing", "math", "coding"])
    assert [row[1:4] for row in drawn(figure)] == [("base", "writing", 1), ("base", "math", 2), ("base", "coding", 3)]


def test_error_bars_and_level_bars():
    figure, (left, right) = plt.subplots(1, 2)
    left.errorbar([1, 2], [3, 4], yerr=[0.5, 1], label="graded")
    right.barh([0, 1], [5, 6], xerr=[1, 1])
    right.set_yticks([0, 1], ["a", "b"])
    assert drawn(figure) == [
        ("panel 1", "graded", 1, 3, 2.5, 3.5),
        ("panel 1", "graded", 2, 4, 3, 5),
        ("panel 2", "", 5, "a", 4, 6),
        ("panel 2", "", 6, "b", 5, 7),
    ]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-x", "@SUM(A1)", "\tx"])
def test_text_is_no_formula_and_a_negative_number_stays_one(name):
    figure, axis = plt.subplots()
    axis.plot([1], [-2.5], label=name)
    (row,) = csv.DictReader(io.StringIO(figure_csv(figure)))
    plt.close(figure)
    assert (row["series"], row["y"]) == (f"'{name}", "-2.5")


def test_the_csv_under_a_figure_survives_cleaning_and_holds_what_is_drawn():
    markup = show.figure_html(charts.bars({"base": (0.5, 0.4, 0.7)}, "Answers: <found>", "share"), "alt", "n = 3")
    markup = report.clean_output(markup)
    link = markup[markup.index('<a download="answers-found.csv" href="data:text/csv;base64,') :].split('"')
    text = base64.b64decode(link[3].removeprefix("data:text/csv;base64,")).decode()
    assert text == "panel,series,x,y,low,high\nAnswers: <found>,,base,0.5,0.4,0.7\n"
    assert markup.endswith('>data (csv)</a> · <a href="#provenance">provenance</a></span></figcaption></figure>')


def test_a_figure_without_values_has_no_download():
    figure, _ = plt.subplots()
    assert download_link(figure) == ""
    plt.close(figure)
