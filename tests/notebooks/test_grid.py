"""The whole grid: rows that agree with the functions they are made of, and gains and means by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.n17 import crosses, tiles
from notebook_cells import definitions

import xuqlib as xuq
from xuqlib.distribution import ExplanationDistribution
from xuqlib.metrics.deletion import pixel_order
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.study.data.loading import Examples
from xuqlib.study.judging.controls import random_order
from xuqlib.study.judging.orderings import importance
from xuqlib.study.judging.steadiness import pool, steadiness
from xuqlib.study.training.networks import mini_vgg
from xuqlib.superpixels import superpixels

CELLS = definitions("17")
MEASURES, PROTOCOLS = list(CELLS.MEASURES), list(CELLS.PROTOCOLS)
curve_areas, measure_maps, measure_run = CELLS.curve_areas, CELLS.measure_maps, CELLS.measure_run
score_predictions, gains, maps_by = CELLS.score_predictions, CELLS.gains, CELLS.maps_by
TARGET = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture(scope="module")
def draws():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        nets = [mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3).double() for _ in range(3)]
        return Draws([FixedNetwork(net) for net in nets])


@pytest.fixture(scope="module")
def x():
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class _Centre(torch.nn.Module):
    """The logit of class 1 is the middle pixel; no other pixel counts."""

    def forward(self, x):
        middle = 8 * x[:, 0, 1, 1] - 4
        return torch.stack([-middle / 2, middle / 2], 1)


def test_the_one_pixel_that_counts_moves_both_curves_where_it_comes_first():
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    x[0, 0, 1, 1] = 1
    first = torch.tensor([[5, *(i for i in range(16) if i != 5)]])
    areas = curve_areas(Draws([_Centre()]), x, first, torch.tensor([1]), num_steps=16)
    full, empty = (1 / (1 + math.exp(-z)) for z in (4, -4))  # the class's probability with and without the pixel
    # It is gone after one step of sixteen: half a step at the mean of both heights, then flat.
    assert areas.at[0, "deletion_black"] == pytest.approx(empty + (full - empty) / 32)
    assert areas.at[0, "deletion_black_room"] == pytest.approx(full - empty)
    last = curve_areas(Draws([_Centre()]), x, first.flip(1), torch.tensor([1]), num_steps=16)
    assert last.at[0, "insertion_blurred"] < areas.at[0, "insertion_blurred"]
    assert last.at[0, "insertion_blurred_room"] == areas.at[0, "insertion_blurred_room"] > 0
    assert areas.at[0, "insertion_blurred_room"] == areas.at[0, "deletion_blurred_room"]


def test_the_steadiness_of_each_number_of_draws_is_that_of_the_first_draws(draws, x):
    found = measure_maps(draws, maps_by(xuq.gradient), x, TARGET, counts=(2, 3), block=2)
    for count in (2, 3):
        wanted = steadiness(draws[:count], xuq.gradient, x, target=TARGET, block=5)
        rows = found[found["draws"] == count].reset_index(drop=True)
        columns = [name for name in MEASURES if name in wanted and name != "cv_pooled"]  # other superpixels
        pd.testing.assert_frame_equal(rows[columns], wanted[columns], rtol=1e-9)
        assert list(rows["example"]) == [0, 1, 2, 3, 4]


class _Signed(torch.nn.Module):
    """Both features speak for class 0, only the second one for class 1, all with one sign."""

    def __init__(self, sign):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[sign, sign], [0.0, sign]]), requires_grad=False)

    def forward(self, x):
        return x @ self.weight.T


def test_every_number_of_draws_explains_the_same_target():
    draws, x = Draws([_Signed(1.0), _Signed(-2.0), _Signed(-2.0)]), torch.tensor([[1.0, 0.5]])
    assert draws[:1](x).argmax() == 0 and draws(x).softmax(-1).mean(0).argmax() == 1
    found = measure_maps(draws, maps_by(xuq.gradient_x_input), x, counts=(1, 3)).set_index("draws")
    # Class 1 leaves one of two features without a CV; class 0, the first draw's own answer, would leave none.
    assert found["cv_signed_undefined"].to_dict() == {1: 0.5, 3: 0.5}


def test_the_first_pictures_are_scored_by_the_fewest_draws(draws, x):
    found = measure_maps(draws, maps_by(xuq.gradient), x, TARGET, counts=(2, 3), num_scored=3, curve_steps=8, block=2)
    e = xuq.explain(draws, xuq.gradient, x[:3], TARGET[:3])
    wanted = curve_areas(draws[:2], x[:3], pixel_order(importance(e, "mean")), TARGET[:3], num_steps=8)
    rows = found[found["draws"] == 3].set_index("example")
    pd.testing.assert_frame_equal(rows.loc[:2, list(PROTOCOLS)], wanted[list(PROTOCOLS)], check_names=False)
    assert rows.loc[3:, list(PROTOCOLS)].isna().all(axis=None)


def test_tables_are_measured_without_curves_and_superpixels():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = Draws([FixedNetwork(xuq.mlp(num_features=4, num_outputs=1)) for _ in range(3)])
    table = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    found = measure_maps(draws, maps_by(xuq.gradient), table, counts=(3,))
    np.testing.assert_allclose(found["cv_ratio"], xuq.explain(draws, xuq.gradient, table).cv("ratio"), rtol=1e-5)
    assert found[[*PROTOCOLS, "cv_pooled"]].isna().all(axis=None)


def test_the_noise_ceiling_is_that_of_one_channel_for_lime(draws, x):
    each = {"sum": maps_by(xuq.gradient), "mean": CELLS.maps_by_lime}
    found = [measure_maps(draws, maps_of, x[:1], TARGET[:1], how=how, counts=(2,)) for how, maps_of in each.items()]
    ceilings = [math.sqrt((math.pi / 2 - 1) / 3), math.sqrt(math.pi / 2 - 1)]
    assert [frame.at[0, "noise_ceiling"] for frame in found] == pytest.approx(ceilings)


def test_lime_hides_regions_that_are_larger_than_a_pixel(draws, x):
    found = measure_maps(draws, CELLS.maps_by_lime, x[:2], TARGET[:2], how="mean", counts=(3,))
    e = xuq.explain(draws, xuq.lime, x[:2], TARGET[:2], num_samples=CELLS.num_samples, num_segments=16)
    np.testing.assert_allclose(found["cv_ratio"], e.cv("ratio"))
    pooled = ExplanationDistribution(pool(e.values, superpixels(x[:2], 16), "mean"))
    np.testing.assert_allclose(found["cv_pooled"], pooled.cv("ratio"))


def test_more_draws_than_there_are_is_refused(draws, x):
    with pytest.raises(ValueError, match="there are 3 draws"):
        measure_maps(draws, maps_by(xuq.gradient), x, TARGET, counts=(2, 4))


def test_the_means_of_predictions_are_the_scores(draws, x):
    examples = Examples("toy", "test", x, TARGET, torch.arange(5), class_names=("a", "b", "c"))
    found = score_predictions(draws, examples, (2, 3))
    for count in (2, 3):
        rows, wanted = found[found["draws"] == count], xuq.scores(draws[:count], examples)
        means = rows[["nll", "brier", "error"]].mean()
        assert means["nll"] == pytest.approx(wanted["nll"]) and means["brier"] == pytest.approx(wanted["brier"])
        assert means["error"] == pytest.approx(1 - wanted["accuracy"])
        ece = CELLS.calibration_error(rows, np.full((1, 5), 0.2), column="confidence")
        assert ece[0] == pytest.approx(wanted["ece"], abs=1e-6)


def test_the_means_of_a_regression_are_its_scores():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = [FixedNetwork(xuq.mlp(num_features=4, num_outputs=1)) for _ in range(3)]
    table, y = (torch.randn(6, size, generator=torch.Generator().manual_seed(size)) for size in (4, 1))
    draws, examples = Draws(networks, noise_variance=0.3), Examples("toy", "test", table, y, torch.arange(6))
    found, wanted = score_predictions(draws, examples, (2, 3)), xuq.scores(draws, examples)
    means = found[found["draws"] == 3].mean()
    assert means["nll"] == pytest.approx(wanted["nll"]) and means["squared_error"] == pytest.approx(wanted["rmse"] ** 2)


def test_a_gain_is_a_share_of_the_mean_room():
    key = {"dataset": "d", "posterior": "p", "seed": 0}
    control = pd.DataFrame({"example": [0, 1]}).assign(**key)
    for name in PROTOCOLS:
        control = control.assign(**{name: [0.5, 0.4], f"{name}_room": [0.7, 0.9]})
    frame = pd.DataFrame({"example": [1, 2], **{name: [0.6, 0.6] for name in PROTOCOLS}}).assign(**key)
    found = gains(frame, control)
    assert found.at[0, "insertion_blurred_gain"] == pytest.approx(0.2 / 0.8)
    assert found.at[0, "deletion_black_gain"] == pytest.approx(-0.2 / 0.8)
    assert math.isnan(found.at[1, "deletion_blurred_gain"])  # the control did not score example 2


def test_tiles_carry_their_numbers_where_they_belong():
    rows = [("d1", "p", "e", 0.25), ("d1", "q", "f", 4.0), ("d2", "q", "e", 1.0)]
    frame = pd.DataFrame(rows, columns=["dataset", "posterior", "explainer", "cv"])
    figure = tiles(frame, "cv", log=True)
    texts = [{text.get_text(): text.get_position() for text in axes.texts} for axes in figure.axes]
    assert texts == [{"0.25": (0, 0), "4": (1, 1)}, {"1": (0, 1)}]
    assert [axes.get_title() for axes in figure.axes] == ["d1", "d2"]
    worded = tiles(frame.assign(words=["a", "b", "c"]), "cv", text="words")
    assert [text.get_text() for text in worded.axes[0].texts] == ["a", "b"]


def test_a_run_is_measured_by_the_functions_for_its_parts(draws, x):
    examples = Examples("toy", "test", x, TARGET, torch.arange(5), class_names=("a", "b", "c"))
    sizes = {"counts": (2, 3), "num_scored": 2, "curve_steps": 8}
    ig = maps_by(xuq.integrated_gradients, num_steps=2)
    explainers = {"gradient": (maps_by(xuq.gradient), 3, "sum"), "ig": (ig, 2, "sum")}
    found = measure_run(draws, examples, explainers, **sizes, seed=4)
    assert list(found["explanations"].groupby("explainer", sort=False).size()) == [6, 4]
    target = draws(x).softmax(-1).mean(0).argmax(1)
    wanted = measure_maps(draws, ig, x[:2], target[:2], **sizes)
    rows = found["explanations"].query("explainer == 'ig'").drop(columns="explainer").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, wanted)
    order = random_order(2, (8, 8), seed=4)
    control = curve_areas(draws[:2], x[:2], order, target[:2], num_steps=8)
    pd.testing.assert_frame_equal(found["control"].drop(columns="example"), control)
    pd.testing.assert_frame_equal(found["predictions"], score_predictions(draws, examples, (2, 3)))


def test_a_cross_reaches_from_low_to_high():
    frame = pd.DataFrame({"dataset": ["d"], "who": ["p"], "nll": [1.0], "insertion": [0.2]})
    frame = frame.assign(nll_low=0.8, nll_high=1.1, insertion_low=0.1, insertion_high=0.5)
    (axes,) = crosses(frame).axes
    arms = [segment.tolist() for group in axes.collections for segment in group.get_segments()]
    assert arms == [[[0.8, 0.2], [1.1, 0.2]], [[1.0, 0.1], [1.0, 0.5]]]
