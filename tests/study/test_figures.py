"""What figures show: scales, labels, and what must not be shown."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
from figure_layout import layout_problems
from matplotlib.text import Text

from xuqlib.study.figures import charts
from xuqlib.study.figures import maps as figures

PICTURE = torch.linspace(0, 1, 3 * 4 * 4).reshape(3, 4, 4)


def grid(rows, kinds, **options):
    options = {"column_titles": list(kinds), "dataset": "planted", **options}
    return figures.map_grid(rows, kinds=kinds, **options)


def shown(figure, place):
    return np.ma.filled(figure.axes[place].images[0].get_array(), np.nan)


def test_channels_are_summed_for_a_signed_map_and_added_in_quadrature_for_a_spread():
    values = torch.tensor([[[3.0]], [[-4.0]]])
    assert figures.flat_map(values, "signed") == [[-1.0]]
    assert figures.flat_map(values, "spread") == [[5.0]]
    assert figures.flat_map(values[:1], "ratio") == [[3.0]]


def test_a_ratio_of_several_channels_is_refused():
    with pytest.raises(ValueError, match="a ratio of 3 channels has no sum"):
        figures.flat_map(torch.ones(3, 4, 4), "ratio")


def test_a_map_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"not \(2, 3, 4, 4\)"):
        figures.flat_map(torch.ones(2, 3, 4, 4), "signed")


def test_signed_maps_are_centred_at_zero_and_share_their_scale_within_a_row():
    small, large = torch.full((4, 4), 0.5), torch.full((4, 4), -2.0)
    figure = grid([[small, large], [small, small]], ["signed", "signed"])
    limits = [axes.images[0].get_clim() for axes in figure.axes]
    assert limits == [(-2.0, 2.0), (-2.0, 2.0), (-0.5, 0.5), (-0.5, 0.5)]
    assert [axes.get_xlabel() for axes in figure.axes] == ["±2", "", "±0.5", ""]  # once in a row


def test_spreads_start_at_zero_and_do_not_share_the_scale_of_signed_maps():
    figure = grid([[torch.full((4, 4), 9.0), torch.full((4, 4), 2.0)]], ["signed", "spread"])
    assert figure.axes[1].images[0].get_clim() == (0.0, 2.0)
    assert figure.axes[1].get_xlabel() == "0 to 2"


def test_an_undefined_ratio_stays_undefined_over_a_hatch():
    ratio = torch.ones(4, 4)
    ratio[0, 0] = float("nan")
    figure = grid([[ratio]], ["ratio"])
    assert np.isnan(shown(figure, 0)[0, 0])
    assert figure.axes[0].patches[0].get_hatch() == "///"


def test_a_map_of_zeros_or_of_nothing_has_a_scale():
    figure = grid([[torch.zeros(4, 4), torch.full((4, 4), float("nan"))]], ["signed", "ratio"])
    assert figure.axes[0].images[0].get_clim() == (-1.0, 1.0)
    assert figure.axes[1].images[0].get_clim() == (0.0, 1.0)


def test_a_picture_is_drawn_as_it_is():
    figure = grid([[PICTURE]], ["picture"])
    np.testing.assert_allclose(shown(figure, 0), PICTURE.permute(1, 2, 0), atol=1e-6)


def test_a_grey_picture_and_a_standardised_one_are_drawn_within_their_range():
    figure = grid([[PICTURE[:1], PICTURE * 4 - 2]], ["picture", "picture"])
    assert shown(figure, 0).shape == (4, 4)
    assert (shown(figure, 1).min(), shown(figure, 1).max()) == (0.0, 1.0)


@pytest.mark.parametrize("draw", ["grid", "maps"])
def test_no_face_is_ever_drawn(draw):
    if draw == "grid":
        figure = grid([[PICTURE]], ["picture"], dataset="fer_plus")
    else:
        figure = figures.maps(PICTURE[None], PICTURE[None], PICTURE[None], PICTURE[:1], dataset="fer_plus")
    assert shown(figure, 0).tolist() == [[0.5]]
    assert figure.axes[0].texts[0].get_text() == "not shown"


def test_maps_say_that_the_spread_is_over_draws():
    figure = figures.maps(
        PICTURE[None], PICTURE[None], PICTURE[None], PICTURE[:1], dataset="planted", row_titles=["dog"]
    )
    assert [axes.get_title() for axes in figure.axes] == ["picture", "mean", "std over draws", "CV over draws"]
    assert figure.axes[0].get_ylabel() == "dog"


def test_maps_that_disagree_in_examples_are_refused():
    with pytest.raises(ValueError, match="hold 1, 3, 1, 1 examples"):
        figures.maps(PICTURE[None], PICTURE, PICTURE[None], PICTURE[:1], dataset="planted")


def test_an_unknown_kind_and_a_short_row_are_refused():
    with pytest.raises(ValueError, match="kind heat is not known; choose among picture, signed, spread, ratio"):
        grid([[PICTURE]], ["heat"])
    with pytest.raises(ValueError, match="but there are 2 kinds"):
        grid([[PICTURE]], ["picture", "signed"])


def test_a_strip_shows_the_first_draws_in_order():
    values = torch.arange(5.0)[:, None, None].expand(5, 4, 4)
    figure = figures.draw_strip(values, num_draws=4, columns=3)
    assert [shown(figure, place)[0, 0] for place in range(4)] == [0.0, 1.0, 2.0, 3.0]
    assert not figure.axes[4].images


def test_a_strip_of_many_draws_can_be_read():
    values = torch.linspace(-1, 1, 30 * 16).reshape(30, 4, 4)
    assert layout_problems(figures.draw_strip(values, num_draws=30, title="thirty draws")) == []


def test_the_signed_colours_keep_the_sign_in_grey():
    rgb = figures.SIGNED(np.linspace(0, 1, 65))[:, :3]
    luminance = rgb @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert np.ptp(rgb[32]) < 0.01  # zero is grey


FEATURES = pd.DataFrame({"feature": ["rooms", "age"], "mean": [2.0, -1.0], "std": [0.5, 0.25]})


def test_feature_bars_show_the_mean_and_label_the_spread():
    figure = charts.feature_bars(FEATURES, unit="100,000 dollars")
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rooms", "age"]
    segments = axes.collections[0].get_segments()
    assert segments[0][:, 0].tolist() == [1.5, 2.5]
    assert figure.get_supxlabel() == "attribution (100,000 dollars); error bars: spread over draws (1 sd)"


def test_feature_bars_make_one_panel_for_each_hue():
    frame = pd.concat([FEATURES.assign(posterior=name) for name in ("flipout", "laplace")])
    figure = charts.feature_bars(frame, hue="posterior")
    assert [axes.get_title() for axes in figure.axes] == ["Flipout", "Laplace"]


LINES = pd.DataFrame(
    {"steps": [8, 64, 8, 64], "gap": [1.0, 0.5, 2.0, 1.5], "masks": ["fixed"] * 2 + ["drawn"] * 2}
).assign(low=lambda frame: frame["gap"] - 0.25, high=lambda frame: frame["gap"] + 0.5)


def test_curves_differ_in_colour_dash_and_marker_and_their_band_is_labelled():
    figure = charts.curve(
        LINES, x="steps", y="gap", hue="masks", low="low", high="high", interval="95 % over examples", log="x"
    )
    first, second = figure.axes[0].lines
    assert first.get_ydata().tolist() == [1.0, 0.5]
    assert len({first.get_color(), second.get_color()}) == 2
    assert len({first.get_linestyle(), second.get_linestyle()}) == 2
    assert len({first.get_marker(), second.get_marker()}) == 2
    assert figure.axes[0].get_ylabel() == "gap\n(interval: 95 % over examples)"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["8", "64"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fixed", "drawn"]


@pytest.mark.parametrize(("letters", "columns"), [(1, 3), (25, 2), (45, 1)])
def test_a_legend_of_long_names_has_fewer_columns_and_stays_in_the_picture(letters, columns):
    frame = pd.DataFrame(
        {"x": [0.0, 1.0] * 6, "y": range(12), "who": [name * letters for name in "abcdef" for _ in "12"]}
    )
    figure = charts.curve(frame, x="x", y="y", hue="who")
    (legend,) = figure.legends
    figure.savefig(io.BytesIO())
    places = {round(text.get_window_extent().x0) for text in legend.get_texts()}
    assert len(places) == columns
    assert legend.get_window_extent().x0 >= 0


def test_bars_stand_side_by_side_with_their_own_intervals():
    figure = charts.bars(LINES, x="steps", y="gap", hue="masks", low="low", high="high", interval="standard error")
    left = [bar.get_x() for bar in figure.axes[0].patches]
    assert left == pytest.approx([-0.4, 0.6, 0.0, 1.0])
    low, high = figure.axes[0].collections[0].get_segments()[0][:, 1]
    assert (low, high) == (0.75, 1.5)


@pytest.mark.parametrize("chart", [charts.curve, charts.bars])
def test_an_interval_without_a_label_or_with_one_end_is_refused(chart):
    with pytest.raises(ValueError, match="an interval needs a label"):
        chart(LINES, x="steps", y="gap", low="low", high="high")
    with pytest.raises(ValueError, match="name both columns, or neither"):
        chart(LINES, x="steps", y="gap", low="low", interval="1 sd")


def test_drawing_leaves_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    charts.feature_bars(FEATURES)
    assert dict(mpl.rcParams) == before


def test_a_figure_shows_itself_in_a_notebook_without_pyplot_sharp_or_small(monkeypatch):
    monkeypatch.delenv("XUQ_SMALL", raising=False)
    figure = charts.Picture(figsize=(2, 1))
    figure.subplots().imshow(np.linspace(0, 1, 400).reshape(20, 20))
    sharp, told = figure._repr_png_()
    with PIL.Image.open(io.BytesIO(sharp)) as seen:
        assert (seen.size, seen.mode) == ((288, 144), "RGBA")
    assert told == {"width": 144, "height": 72}
    monkeypatch.setenv("XUQ_SMALL", "1")
    with PIL.Image.open(io.BytesIO(figure._repr_png_())) as seen:
        assert (seen.size, seen.mode) == ((120, 60), "P")
        assert len(seen.getcolors()) > 200  # a map keeps its colours


def test_a_figure_says_the_names_of_our_code_in_words_wherever_they_stand():
    figure = charts.Picture(figsize=(6, 4))
    left, right = figure.subplots(1, 2)
    left.bar(["mc_dropout", "laplace_mean"], [1, 2])
    left.set_title("One house under integrated_gradients")
    right.plot([0, 1], [0, 1], label="mc_dropout_all, fer_plus")
    right.set_yticks([0, 1], ["guided_backprop", "mc_dropout_none"])
    right.legend()
    for _ in range(2):  # drawn again, the same
        figure.savefig(io.BytesIO(), format="png")
        found = {text.get_text() for text in figure.findobj(Text)}
        assert {"dropout, last layer", "laplace_mean", "Guided Backprop", "mc_dropout_none"} <= found
        assert {"One house under Integrated Gradients", "dropout, every block, FER+"} <= found


def test_a_row_of_a_pixel_frame_is_the_same_pixel_of_every_map():
    frame = figures.pixel_frame({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(2, 2)})
    assert frame["pixel"].tolist() == [0, 1, 2, 3]
    assert frame["a"].tolist() == [1.0, 2.0, 3.0, 4.0]
