"""Rows of dots: what they show, by hand; and that every text of the published figures of this kind can be read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from figure_layout import layout_problems
from helpers import n01, n02, n05, n06, n09, n12, n17
from matplotlib.figure import Figure

from xuqlib.study.figures.rows import ACCENT, MARKS, behind_first, row_dots
from xuqlib.study.files import ROOT
from xuqlib.study.names import spoken

ONE = pd.DataFrame(
    {
        "panel": ["p", "p", "q", "q"],
        "group": "g",
        "row": ["a", "b", "a", "b"],
        "value": [1.0, 2.0, 3.0, 4.0],
        "low": 0.5,
        "high": 4.5,
        "mark": ["yes", "no", "no", "yes"],
    }
)


def dots(axes):
    return {line.get_markerfacecolor(): line.get_xdata().tolist() for line in axes.lines if line.get_marker() != "None"}


def test_each_panel_has_its_dots_in_the_rows_of_all_and_the_accent_marks_the_first():
    figure = row_dots(ONE, marks=["yes", "no"], label="value")
    assert [axes.get_title() for axes in figure.axes] == ["p", "q"]
    assert dots(figure.axes[0]) == {ACCENT: [1.0], "white": [2.0]}
    assert dots(figure.axes[1]) == {ACCENT: [4.0], "white": [3.0]}
    assert [(text.get_text(), text.get_fontweight()) for text in figure.axes[0].get_yticklabels()] == [
        ("g", "bold"),
        ("a", "normal"),
        ("b", "normal"),
    ]
    places = [text.get_position()[1] for text in figure.axes[0].get_yticklabels()]
    assert places == sorted(places)
    assert figure.axes[0].get_ylim()[1] == 0  # the first row is on top


def test_marks_are_told_apart_in_grey_by_shape_or_filling():
    assert len({(marker, face == "white") for _, marker, face in MARKS}) == len(MARKS)


def test_lanes_of_a_row_lie_one_below_the_other_inside_it():
    frame = ONE.assign(lane=["1", "2", "1", "2"], row="a", mark="yes")
    figure = row_dots(frame, marks=["yes"], label="value")
    first, second = figure.axes[0].lines[0].get_ydata()
    place = figure.axes[0].get_yticks()[1]
    assert first < place < second and first + second == pytest.approx(2 * place)


def test_a_lane_has_one_height_in_every_panel_whatever_else_the_panel_holds():
    frame = ONE.iloc[:3].assign(lane=["1", "2", "2"], row="a", mark="yes")
    figure = row_dots(frame, marks=["yes"], label="value")
    assert figure.axes[0].lines[0].get_ydata()[1] == figure.axes[1].lines[0].get_ydata()[0]


def test_a_note_stands_at_the_right_of_its_row():
    figure = row_dots(ONE.assign(note=["1 of 2", "2 of 2"] * 2), marks=["yes", "no"], label="value")
    right = figure.axes[1].child_axes[0]
    assert [text.get_text() for text in right.get_yticklabels()] == ["1 of 2", "2 of 2"]


def test_what_cannot_be_told_apart_or_has_no_place_is_refused():
    with pytest.raises(ValueError, match="marks has 4 entries; pass up to 3"):
        row_dots(ONE, marks=list("abcd"), label="value")
    with pytest.raises(ValueError, match="mark is 'no', which is not in marks; pass marks with all of its values"):
        row_dots(ONE, marks=["yes"], label="value")


def test_the_distance_behind_the_first_is_in_half_widths_of_an_interval():
    frame = pd.DataFrame({"set": "s", "good": -1, "value": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.5, 2.5]})
    found = behind_first(frame, ["set"])
    assert found["value"].tolist() == [0.0, 2.0]  # one behind, and half a width is 0.5
    assert found["low"].tolist() == [-1.0, 1.0] and found["high"].tolist() == [1.0, 3.0]
    assert found["first"].tolist() == [True, False]
    turned = behind_first(frame.assign(good=1), ["set"])
    assert turned["value"].tolist() == [2.0, 0.0] and turned["first"].tolist() == [False, True]


def test_contests_are_apart_and_one_without_widths_has_no_distances():
    frame = pd.DataFrame({"set": list("aabb"), "good": 1, "value": [1.0, 2.0, 5.0, 7.0]})
    found = behind_first(frame.assign(low=frame["value"] - [1, 1, 0, 0], high=frame["value"] + [1, 1, 0, 0]), ["set"])
    assert found["value"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert found["first"].tolist() == [False, True, False, True]


def test_names_that_are_code_are_said_in_words():
    assert spoken("mc_dropout_all") == "dropout, every block"
    assert spoken("my_own\n") == "my own\\n"


def published(name: str, preset: str = "full") -> Figure:
    """A figure of the notebooks, drawn anew from its published numbers."""
    frame = pd.read_csv(ROOT / "figures" / preset / f"{name}.csv")
    if name == "02_masks":
        return n02.mask_lines({key: torch.tensor(frame[key].to_numpy()).view(50, -1) for key in ("units", "weights")})
    if name == "09_kinds":
        pixels = torch.tensor(frame.drop(columns="pixel").to_numpy()).view(4, 32, 32, 3)
        maps = [dict(zip(("total", "aleatoric", "epistemic"), each.movedim(2, 0), strict=True)) for each in pixels]
        truth = torch.zeros(4, 32, 32)
        truth[1:, 3:12, 5:14] = 1
        return n09.kind_maps(torch.zeros(4, 3, 32, 32), truth, maps, ["plain", "ambiguous", "rare", "unseen"])
    draw = {
        "01": n01.score_dots,
        "05": n05.asked_dots if name == "05_asked" else lambda frame: n05.class_factors(frame, "CV at equal entropy"),
        "06": n06.area_dots,
        "12": n12.blind_dots,
        "17": n17.quotient_dots if name == "17_quotients" else n17.calibration_dots,
    }
    return draw[name[:2]](frame)


REDRAWN = ["01_scores", "02_masks", "05_asked", "05_at_equal_entropy", "05_log_cv", "06_aucs", "06_aucs_fer_plus"]
REDRAWN += ["06_aucs_planted", "09_kinds", "12_blind", "17_calibration", "17_quotients"]


@pytest.mark.parametrize("preset", ["quick", "full"])
@pytest.mark.parametrize("name", REDRAWN)
def test_every_text_of_a_published_figure_is_large_whole_and_free(name, preset):
    if not (ROOT / "figures" / preset / f"{name}.csv").exists():
        pytest.skip("the quick run has one data set")
    assert layout_problems(published(name, preset)) == []


def test_a_text_that_cannot_be_read_is_found():
    figure = row_dots(ONE, marks=["yes", "no"], label="value")
    assert layout_problems(figure) == []
    figure.text(0.5, 0.5, "small", fontsize=14)
    figure.text(0.99, 0.5, "at the edge", fontsize=15)
    figure.text(0.3, 0.6, "two words", fontsize=15)
    figure.text(0.31, 0.6, "of text", fontsize=15)
    found = layout_problems(figure)
    assert [line for line in found if "'small' is seen at 8.8 pt" in line]
    assert "'at the edge' is cut off" in found
    assert "'two words' lies on 'of text'" in found


def counted(title: str) -> list[int]:
    return [int(word) for word in title.replace(",", " ").replace(";", " ").split() if word.isdigit()]


def test_titles_count_what_the_numbers_say():
    frame = pd.DataFrame({"dataset": "d", "explainer": "lime", "class": ["d: a", "d: b"], "value": [1.2, 1.0]})
    figure = n05.class_factors(frame.assign(low=[1.1, 0.9], high=[1.3, 1.1]), "CV")
    assert counted(figure.get_suptitle()) == [1, 2]
    rows = [
        ("e", name, kind, auc) for name, auc in (("mean", 0.4), ("random", 0.7)) for kind in ("deletion", "insertion")
    ]
    frame = pd.DataFrame(rows, columns=["explainer", "ordering", "curve", "auc"])
    frame = frame.assign(dataset="d", posterior="p", low=frame["auc"] - 0.1, high=frame["auc"] + 0.1)
    assert counted(n06.area_dots(frame).get_suptitle()) == [1, 1, 0, 1]  # low is good in deletion alone
    frame = pd.DataFrame({"posterior": "p", "definition": "cv_ratio", "quotient": [0.5, 2.0, 0.9]})
    frame = frame.assign(dataset=["d", "d", "e"], low=[0.4, 1.5, 0.8], high=[0.6, 3.0, 1.1])
    title = n17.quotient_dots(frame.assign(panel=frame["dataset"] + ": against lime")).get_suptitle()
    assert counted(title) == [1, 3, 0, 1] and "fewest on e" in title.replace("\n", " ")


def test_the_classes_with_the_most_and_the_least_are_named_by_insertion_alone():
    rows = [("deletion", "a", 0.9), ("deletion", "b", 0.1), ("insertion", "a", 0.1), ("insertion", "b", 0.35)]
    frame = pd.DataFrame(rows, columns=["measure", "class", "value"]).assign(explainer="guided_backprop", differs=False)
    figure = n06.class_dots(frame.assign(low=frame["value"] - 0.1, high=frame["value"] + 0.1))
    assert " ".join(figure.get_suptitle().split()).endswith("insertion gains most on b (0.35), least on a (0.1)")
    assert [axes.get_title() for axes in figure.axes] == ["insertion gains", "deletion gains"]
    assert layout_problems(figure) == []


def test_the_first_place_is_clear_where_no_interval_reaches_its_own():
    table = pd.DataFrame({"dataset": ["d", "d", "e", "e"], "posterior": ["flipout", "laplace"] * 2})
    table = table.assign(accuracy=[0.9, 0.7, 0.9, 0.89], accuracy_se=0.02)
    for name in ("r2", "nll", "brier", "ece"):
        table = table.assign(**{name: np.nan, f"{name}_se": np.nan})
    assert counted(n01.score_dots(table).get_suptitle()) == [1, 2, 2]


def test_the_explainer_that_keeps_its_map_is_named_with_what_is_left():
    cases = ["GBP, laplace", "IG, laplace"]
    frame = pd.DataFrame({"what": [n12.CV] * 2 + [n12.LEFT] * 2, "case": cases * 2, "value": [0.2, 0.4, 0.6, 0.1]})
    title = n12.blind_dots(frame.assign(low=0.0, high=1.0)).get_suptitle().replace("\n", " ")
    assert title.startswith("Guided Backprop is steadiest for 1 of 1 posteriors; 0.60 to 0.60")
