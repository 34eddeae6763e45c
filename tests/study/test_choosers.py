from __future__ import annotations

import ipywidgets
import pandas as pd
import pytest
import torch

from xuqlib.study.figures.charts import Picture
from xuqlib.study.figures.choosers import class_dots, draw_distances, draw_step, explore, explore_classes, explore_draws

FRAME = pd.DataFrame(
    {"posterior": ["a", "a", "b"], "statistic": ["cv", "entropy", "cv"], "kind": "one", "value": [1, 2, 3]}
)


def draw(rows, chosen):
    figure = Picture(figsize=(1, 1))
    figure.text(0, 0.5, str(rows["value"].iloc[0]))
    return figure, f"{chosen['posterior']}: {rows['value'].iloc[0]}"


def parts(box):
    *choosers, picture, line = box.children
    return {chooser.description: chooser for chooser in choosers}, picture, line


def test_choosing_a_value_shows_the_figure_and_the_sentence_of_its_rows():
    choosers, picture, line = parts(explore(FRAME, ["posterior", "statistic", "kind"], draw))
    assert list(choosers) == ["posterior", "statistic"]  # nothing to choose in kind
    assert line.value == "a: 1"
    first = picture.value
    assert bytes(first).startswith(b"\x89PNG")
    choosers["statistic"].value = "entropy"
    assert line.value == "a: 2"
    assert picture.value != first


def test_a_combination_without_results_is_said_and_the_picture_stays():
    choosers, picture, line = parts(explore(FRAME, ["posterior", "statistic"], draw))
    choosers["statistic"].value = "entropy"
    before = picture.value
    choosers["posterior"].value = "b"
    assert "No such result" in line.value
    assert picture.value == before
    choosers["statistic"].value = "cv"
    assert line.value == "b: 3"


def test_choosers_are_operated_by_keyboard_and_labelled():
    choosers, *_ = parts(explore(FRAME, ["posterior", "statistic"], draw))
    assert all(isinstance(chooser, ipywidgets.ToggleButtons) and chooser.description for chooser in choosers.values())


@pytest.mark.parametrize(("frame", "by"), [(FRAME.iloc[:0], ["posterior"]), (FRAME, ["nothing"])])
def test_a_frame_without_rows_or_column_is_refused(frame, by):
    with pytest.raises(ValueError, match="pass a frame with at least one row|pass columns of the frame, posterior, "):
        explore(frame, by, draw)


def test_a_slider_is_labelled_and_steps_through_the_values_in_order_of_appearance():
    frame = pd.DataFrame({"posterior": "a", "level": [3, 1, 2], "value": [30, 10, 20]})
    choosers, picture, line = parts(explore(frame, ["posterior", "level"], draw, sliders=["level"]))
    slider = choosers["level"]
    assert isinstance(slider, ipywidgets.SelectionSlider)
    assert line.value == "a: 30"
    seen = []
    for place in range(3):
        slider.index = place
        seen.append((line.value, picture.value))
    assert [sentence for sentence, _ in seen] == ["a: 30", "a: 10", "a: 20"]
    assert len({image for _, image in seen}) == 3


def test_a_slider_beside_buttons_says_where_there_is_no_result():
    choosers, _, line = parts(explore(FRAME, ["posterior", "value"], draw, sliders=("value",)))
    assert isinstance(choosers["posterior"], ipywidgets.ToggleButtons)
    choosers["value"].value = 3
    assert "No such result" in line.value
    choosers["posterior"].value = "b"
    assert line.value == "b: 3"


def test_a_slider_for_a_column_that_is_not_chosen_by_is_refused():
    with pytest.raises(ValueError, match=r"sliders are \['value'\]"):
        explore(FRAME, ["posterior"], draw, sliders=["value"])


MAPS = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 3.0]])[:, None]  # (draw, height, width); their mean is (2, 2)


def test_the_distance_of_the_running_mean_is_that_of_a_small_case_by_hand():
    frame = draw_distances(MAPS)
    assert list(frame["draw"]) == [1, 2, 3]
    # The means are (3, 0), (1.5, 1.5) and (2, 2); the last one has length sqrt(8).
    assert list(frame["distance"]) == pytest.approx([(5 / 8) ** 0.5, 0.25, 0.0])
    assert frame["distance"].iloc[-1] == 0


def test_each_step_shows_the_draw_the_mean_so_far_and_the_mean_of_all_on_one_scale():
    for k, so_far in ((1, [3.0, 0.0]), (2, [1.5, 1.5]), (3, [2.0, 2.0])):
        figure, sentence = draw_step(MAPS, {"draw": k})
        images = [axes.images[0] for axes in figure.axes[:3]]
        shown = [image.get_array()[0].tolist() for image in images]
        assert shown == [MAPS[k - 1, 0].tolist(), so_far, [2.0, 2.0]]
        assert {image.get_clim() for image in images} == {(-3.0, 3.0)}
        assert sentence.startswith(f"Draw {k}; the mean of the first {k} is ")
        assert figure.axes[3].lines[1].get_xdata()[0] == k
    assert "25.0%" in draw_step(MAPS, {"draw": 2})[1]


def test_the_slider_over_draws_begins_at_the_first_and_shows_what_draw_step_draws():
    choosers, picture, line = parts(explore_draws(MAPS))
    assert line.value == draw_step(MAPS, {"draw": 1})[1]
    before = picture.value
    choosers["draw"].index = 2
    assert line.value == draw_step(MAPS, {"draw": 3})[1]
    assert picture.value != before


@pytest.mark.parametrize("shape", [(3, 2), (0, 2, 2)])
def test_maps_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(draw, height, width\)|\(0, 2, 2\)"):
        explore_draws(torch.ones(shape))


CLASSES = pd.DataFrame(
    [
        (posterior, explainer, statistic, name, start + place + 0.5, start + place, start + place + 1.0, 20)
        for posterior, first in (("ensemble", 0.0), ("mc_dropout", 20.0))
        for explainer, start in (("gradient", first), ("lime", first + 10.0))
        for statistic in ("CV", "entropy")
        for place, name in enumerate(("cat", "deer", "ship"))
    ],
    columns=["posterior", "explainer", "statistic", "class", "value", "low", "high", "n"],
)


def test_every_choice_of_class_shows_its_value_interval_and_place():
    choosers, picture, line = parts(explore_classes(CLASSES))
    assert list(choosers) == ["posterior", "explainer", "statistic", "class"]
    assert line.value.startswith("cat: CV 0.5 (0 to 1, 95 % over examples, n = 20); number 3 of 3")
    for chooser, option, sentence in (
        ("class", "deer", "deer: CV 1.5 (1 to 2, 95 % over examples, n = 20); number 2 of 3"),
        ("class", "ship", "ship: CV 2.5 "),
        ("statistic", "entropy", "ship: entropy 2.5 "),
        ("explainer", "lime", "ship: entropy 12.5 "),
        ("posterior", "mc_dropout", "ship: entropy 32.5 "),
    ):
        before = picture.value
        choosers[chooser].value = option
        assert line.value.startswith(sentence)
        assert picture.value != before


def test_the_chosen_class_is_marked_and_the_largest_is_on_top():
    chosen = {"posterior": "ensemble", "explainer": "lime", "statistic": "CV", "class": "deer"}
    figure, _ = class_dots(CLASSES, chosen)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ship", "deer", "cat"]
    assert [(patch.get_y(), patch.get_height()) for patch in axes.patches] == [(0.5, 1.0)]  # around place 1


def test_a_class_without_a_number_is_no_result():
    frame = CLASSES.assign(value=CLASSES["value"].mask(CLASSES["class"].eq("deer") & CLASSES["statistic"].eq("CV")))
    choosers, _, line = parts(explore_classes(frame))
    choosers["class"].value = "deer"
    assert "No such result" in line.value
    assert "of 2 classes" in class_dots(frame.dropna(), {**CLASSES.iloc[0]})[1]


def test_a_table_of_classes_without_a_column_or_row_is_refused():
    with pytest.raises(ValueError, match="no column n"):
        explore_classes(CLASSES.drop(columns="n"))
    with pytest.raises(ValueError, match="no row for ensemble, gradient, CV, owl"):
        class_dots(CLASSES, {**CLASSES.iloc[0], "class": "owl"})
