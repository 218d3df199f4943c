"""Charts keep the numbers they were given, and the csv under a figure holds them."""

import base64
import csv
import io

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest

from bezoar_utils.report import charts, show
from bezoar_utils.report.clean import clean_output

KEYS = ("panel", "series", "x", "y", "low", "high")


def numbers_of(figure):
    rows = [tuple(row.get(key, "") for key in KEYS) for row in figure.rows]
    plt.close(figure)
    return rows


def test_bars_come_with_their_names_and_intervals():
    values = {"base": (0.5, 0.4, 0.7), "OpenBezoar-SFT": (0.2, 0.1, 0.25)}
    assert numbers_of(charts.bars(values, "T", "share")) == [("", "", "base", 0.5, 0.4, 0.7), ("", "", "SFT", 0.2, 0.1, 0.25)]


def test_groups_name_the_series_and_the_category():
    values = {"one": {"math": 1.0, "writing": 2.0}, "two": {"math": 3.0}}
    rows = [("one", "math", 1), ("one", "writing", 2), ("two", "math", 3)]
    assert [row[1:4] for row in numbers_of(charts.grouped_bars(values, "T", "grade"))] == rows
    assert [row[1:4] for row in numbers_of(charts.radar(values, "T", "grade", 10))] == rows


def test_groups_are_drawn_with_their_intervals_and_a_missing_bar_is_a_gap():
    values = {"base": {"turn 1": (2.0, 1.5, 3.0), "turn 2": (6.0, 5.0, 7.0)}, "OpenBezoar-SFT": {"turn 2": (1.0, 1.0, 1.0)}}
    figure = charts.grouped_bars(values, "Grades", "grade, 1 to 10", top=10)
    (axis,) = figure.axes
    first, second = axis.containers[1], axis.containers[3]
    assert [bar.get_height() for bar in first] == [2.0, 6.0] and [bar.get_height() for bar in second] == [1.0]
    assert second[0].get_x() > first[1].get_x(), "the second series' only bar is in the second group"
    segments = first.errorbar.lines[2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [[1.5, 3.0], [5.0, 7.0]]
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["base", "SFT"] and axis.get_ylabel() == "grade, 1 to 10"
    assert numbers_of(figure)[2] == ("", "SFT", "turn 2", 1.0, 1.0, 1.0)


def test_a_difference_keeps_its_interval_and_its_name():
    row = {"low": -1, "high": 2, "difference": 0.5, "variant": "rank 4", "against": "rank 16"}
    assert numbers_of(charts.differences([row], "T", "share")) == [("", "", 0.5, "rank 4 against rank 16", -1, 2)]


def test_a_scatter_keeps_the_order_of_its_points_and_their_names_and_intervals():
    tried = [{"x": 0.5, "y": 0.6, "name": "0"}, {"x": 0.4, "y": 0.9, "name": "0.002"}]
    figure = charts.scatter({"rate": tried, "SFT": [{"x": 2, "y": 0.7, "low": 0.6, "high": 0.8}]}, "T", "x", "y", joined=("rate",))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "0.002", ""]
    rows = [("", "rate 0", 0.5, 0.6, "", ""), ("", "rate 0.002", 0.4, 0.9, "", ""), ("", "SFT", 2, 0.7, 0.6, 0.8)]
    assert numbers_of(figure) == rows


def test_a_mark_on_a_scatter_is_a_place_on_its_scale_without_a_height():
    figure = charts.scatter({"ours": [{"x": 10, "y": 0.5}]}, "T", "FLOPs", "share", log=True, marks={"theirs": 1e22})
    assert [row[1:3] for row in numbers_of(figure)] == [("ours", 10), ("theirs", 1e22)]
    assert figure.axes[0].get_xlim()[1] > 1e22


def test_lines_keep_their_points_and_a_single_point_is_a_level_drawn_all_along():
    values = {"share": {"all": [(2, 0.5, 0.4, 0.6)], "gptq": [(2, 0.1, 0.0, 0.2), (8, 0.5, 0.4, 0.6)]}}
    values["loss"] = {"gptq": [(2, 9.0, 8.0, 10.0)]}
    figure = charts.lines(values, "T", "bits", log="loss")
    share, loss = figure.axes
    assert [r[:3] for r in numbers_of(figure)] == [
        ("share", "all", 2),
        ("share", "gptq", 2),
        ("share", "gptq", 8),
        ("loss", "gptq", 2),
    ]
    assert (share.get_yscale(), loss.get_yscale()) == ("linear", "log")
    assert (share.get_xlabel(), share.get_ylabel(), loss.get_ylabel()) == ("bits", "share", "loss")
    (level,) = share.collections[0].get_segments()
    assert level[:, 0].tolist() == [2, 8] and [t.get_text() for t in share.get_legend().get_texts()] == ["all", "gptq"]
    plt.close(figure)


@pytest.mark.parametrize(("names", "turned"), [("abc", 0), ([f"a long category {n}" for n in range(8)], 25)])
def test_many_long_names_are_tilted_so_that_they_do_not_run_into_each_other(names, turned):
    figure = charts.grouped_bars({"a": dict.fromkeys(names, 0.5)}, "T", "share")
    assert {label.get_rotation() for label in figure.axes[0].get_xticklabels()} == {turned}
    plt.close(figure)


def test_losses_name_the_panel_and_the_curve_and_are_those_that_were_logged():
    logs = {
        "lamini": [{"step": 1, "loss": 2.0}, {"step": 2, "eval_loss": 1.5}],
        "orca": [{"step": n, "loss": 3.0 / n} for n in (1, 2)],
    }
    assert [row[:4] for row in numbers_of(charts.losses(logs, "T", smoothing=0.9))] == [
        ("lamini", "training", 1, 2),
        ("lamini", "validation", 2, 1.5),
        ("orca", "training", 1, 3),
        ("orca", "training", 2, 1.5),
    ]
    rows = [{"step": 1, "loss": 0.7, "logps/chosen": -3.0, "eval_loss": float("nan")}]
    assert [row[:4] for row in numbers_of(charts.dpo_curves(rows, "T"))] == [
        ("loss", "training", 1, 0.7),
        ("log-probability", "chosen, training", 1, -3.0),
    ]


def test_a_histogram_gives_its_edges_and_a_line_its_place():
    rows = [row[1:4] for row in numbers_of(charts.lengths({"lamini": [1, 2, 3, 3]}, 192, "T"))]
    heights = zip((1, 2, 3, 4), (0.25, 0.25, 0.5, 0))
    assert rows[:4] == [("lamini (n = 4)", edge, height) for edge, height in heights] and ("max_length (192)", 192, "") in rows


@pytest.mark.parametrize("name", ["=1+1", "+1", "-x", "@SUM(A1)", "\tx"])
def test_text_is_no_formula_and_a_negative_number_stays_one(name):
    figure = charts.grouped_bars({name: {"math": -2.5}}, "T", "grade")
    (row,) = csv.DictReader(io.StringIO(show.figure_csv(figure)))
    plt.close(figure)
    assert (row["series"], row["y"]) == (f"'{name}", "-2.5")


def test_the_csv_under_a_figure_survives_cleaning_and_holds_what_is_drawn():
    markup = show.figure_html(charts.bars({"base": (0.5, 0.4, 0.7)}, "Answers: <found>", "share"), "alt", "n = 3")
    markup = clean_output(markup)
    link = markup[markup.index('<a download="answers-found.csv" href="data:text/csv;base64,') :].split('"')
    text = base64.b64decode(link[3].removeprefix("data:text/csv;base64,")).decode()
    assert text == "panel,series,x,y,low,high\nAnswers: <found>,,base,0.5,0.4,0.7\n"
    assert markup.endswith('>data (csv)</a> · <a href="#provenance">provenance</a></span></figcaption></figure>')


def test_a_figure_without_values_has_no_download():
    figure, _ = plt.subplots()
    assert "csv" not in show.figure_html(figure, "nothing")


def test_dpo_curves_show_training_and_validation_of_every_value():
    names = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
    rows = [{"step": s} | {n: s + i for i, n in enumerate(names)} for s in (1, 2)]
    rows.append({"step": 2} | {f"eval_{n}": 10 + i for i, n in enumerate(names)})
    figure = charts.dpo_curves(rows, "Title")
    drawn = {
        axis.get_title(): {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()} for axis in figure.get_axes()
    }
    assert drawn == {
        "loss": {"training": [1, 2], "validation": [10]},
        "reward accuracy": {"training": [2, 3], "validation": [11]},
        "reward margin": {"training": [3, 4], "validation": [12]},
        "log-probability": {
            "chosen, training": [4, 5],
            "chosen, validation": [13],
            "rejected, training": [5, 6],
            "rejected, validation": [14],
        },
    }
    show.figure_html(figure, "alt")


def test_lengths_are_drawn_with_both_limits():
    figure = charts.lengths({"lamini": [10, 20, 300], "orca": []}, 192, "Title")
    legend = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert legend == {"lamini (n = 3)", "max_length (192)", "the authors' cut (256)"}
    show.figure_html(figure, "alt")


def test_a_users_own_matplotlib_settings_do_not_matter(monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    show.figure_html(charts.losses({"a": [{"step": 1, "loss": 1.0}]}, "A"), "alt")
