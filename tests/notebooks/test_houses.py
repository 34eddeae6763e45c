"""Notebook 08: CVs, importances and removal against hand calculations; the chooser, for every option."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.n08 import bar_table, cv_panels, house_bars, removal_panels, score_panels, stacked
from notebook_cells import definitions
from scipy.stats import norm
from torch import nn

from xuqlib import ExplanationDistribution, load
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.study.figures.choosers import explore


def linear_draws(*weights, noise_variance=0.0):
    """One linear network per row of weights, without bias, in float64."""
    networks = []
    for row in weights:
        layer = nn.Linear(len(row), 1, bias=False).double()
        layer.weight.data[:] = torch.tensor([row], dtype=torch.float64)
        networks.append(FixedNetwork(nn.Sequential(layer)))
    return Draws(networks, noise_variance=noise_variance)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def diabetes():
    return load("diabetes", num_examples=4)


def test_a_bar_is_the_mean_and_std_over_draws_in_units_of_the_target(diabetes):
    values = normal(3, 2, 10)
    bars = bar_table(ExplanationDistribution(values), diabetes)
    assert len(bars) == 20
    row = bars[(bars["example"] == 1) & (bars["feature"] == "bmi")].iloc[0]
    draws, unit = values[:, 1, 2].numpy(), diabetes.target_scale.std
    np.testing.assert_allclose(row["mean"], draws.mean() * unit)
    np.testing.assert_allclose(row["std"], draws.std() * unit)
    np.testing.assert_allclose(row["folded_std"], np.abs(draws).std() * unit)
    assert row["agreement"] == max((draws > 0).mean(), (draws < 0).mean())
    scale = diabetes.feature_scale
    assert row["value"] == pytest.approx(float(diabetes.x[1, 2]) * scale.std[2] + scale.mean[2])


def test_bars_of_images_are_refused():
    with pytest.raises(ValueError, match="planted is no table"):
        bar_table(ExplanationDistribution(normal(2, 1, 10)), load("planted", num_examples=1))


def test_stacked_tables_keep_their_keys_in_front():
    one = pd.DataFrame({"a": [1, 2]})
    found = stacked({(0, "p"): one, (1, "q"): one}, ["seed", "posterior"])
    assert list(found) == ["seed", "posterior", "a"]
    assert found["posterior"].tolist() == ["p", "p", "q", "q"]
    assert found.index.tolist() == [0, 1, 2, 3]


def cells(diabetes=None, **given):
    """What the cells define, for the given names of the experiment."""
    if diabetes is not None:
        centre, unit, _ = diabetes.target_scale
        given |= {"x": diabetes.x.double(), "y": diabetes.y.double(), "centre": centre, "unit": unit}
    return definitions("08", **given)


def test_a_prediction_adds_variances_and_covers_as_a_gaussian_does(diabetes):
    draws = linear_draws([0.5] + [0.0] * 9, [-0.1] + [0.2] * 9, noise_variance=0.3)
    found = cells(diabetes).prediction_table(draws, level=0.8)
    answers = np.array([network(diabetes.x.double()).detach().numpy()[:, 0] for network in draws])
    sd, truth, unit = np.sqrt(answers.var(0) + 0.3), diabetes.y[:, 0].numpy(), diabetes.target_scale.std
    np.testing.assert_allclose(found["total"], sd * unit)
    np.testing.assert_allclose(found["total"] ** 2, found["epistemic"] ** 2 + found["aleatoric"] ** 2)
    np.testing.assert_allclose(found["nll"], -norm(answers.mean(0), sd).logpdf(truth))
    low, high = norm(answers.mean(0), sd).interval(0.8)
    np.testing.assert_array_equal(found["covered"], (low <= truth) & (truth <= high))
    np.testing.assert_allclose(found["truth"] - found["prediction"], (truth - answers.mean(0)) * unit)


def bars_by_hand():
    """Two houses, two features, two trainings; the mean of feature b changes its sign."""
    rows = [
        (s, "p", 0, feature, mean, std)
        for s, feature, mean, std in [(0, "b", -2.0, 1.0), (0, "a", 1.0, 4.0), (1, "b", 4.0, 2.0), (1, "a", 1.0, 0.0)]
    ]
    rows += [(s, "p", 1, feature, 1.0, 1.0) for s in (0, 1) for feature in ("b", "a")]
    return pd.DataFrame(rows, columns=["seed", "posterior", "example", "feature", "mean", "std"])


def test_the_cv_of_a_feature_is_the_sum_of_std_over_the_sum_of_sizes():
    found = cells(features=["b", "a"]).feature_cvs(bars_by_hand(), ["posterior"])
    assert list(found["feature"]) == ["b", "a"]  # in their order, not the alphabet's
    assert list(found["posterior"]) == ["p", "p"]
    # b: (1.5 + 1) / (3 + 1), a: (2 + 1) / (1 + 1); averaged over the two trainings first
    np.testing.assert_allclose(found["cv"], [2.5 / 4, 3 / 2])
    assert found["low"].tolist() == pytest.approx([0.5, 1.0])  # house 0 or house 1 alone: both happen often
    assert found["high"].tolist() == pytest.approx([1.0, 2.0])


def test_the_folded_cv_of_noise_is_at_the_ceiling(diabetes):
    e = ExplanationDistribution(normal(4000, 4, 10))
    bars = bar_table(e, diabetes).assign(posterior="p")
    feature_cvs = cells(features=list(diabetes.feature_names)).feature_cvs
    found = feature_cvs(bars, ["posterior"], prefix="folded_")["cv"]
    np.testing.assert_allclose(found, e.noise_ceiling, rtol=0.03)  # 16,000 numbers per feature
    assert feature_cvs(bars, ["posterior"])["cv"].min() > 10


def test_numbers_of_a_house_are_averaged_over_trainings():
    found = cells(features=["b", "a"]).by_house(bars_by_hand(), "std")
    np.testing.assert_allclose(found, [[1.5, 2.0], [1.0, 1.0]])


def test_a_posterior_as_wide_as_new_networks_has_width_one():
    one = cells(x=range(30))
    variance = np.random.default_rng(0).uniform(1, 2, size=(30, 4))
    width = "root of the ratio of means"
    assert tuple(one.resampled(width, variance, variance)) == (1, 1, 1)
    assert one.resampled(width, variance / 4, variance).value == pytest.approx(0.5)


def test_a_feature_that_no_network_reads_has_no_importance():
    x = normal(2000, 3) * torch.tensor([1.0, 1.0, 3.0])
    y = x[:, 2:] * 2
    draws = linear_draws([0.0, 0.0, 1.5], [0.0, 0.0, 2.5])
    found = cells().permutation_importance(draws, x, y, num_repeats=4)
    assert found.shape == x.shape
    assert found[:, :2].abs().max() == 0
    # The mean network is right; with another's last feature it is off by 2 (x' - x), of mean square 4 * 2 * 3^2.
    assert float(found[:, 2].mean()) == pytest.approx(72, rel=0.1)


def test_features_move_in_their_order():
    x = torch.tensor([[1.0, 2.0, 3.0]])
    found = cells().moves(x, torch.zeros_like(x), torch.tensor([[2, 0, 1]]))[:, 0]
    torch.testing.assert_close(found, torch.tensor([[1.0, 2, 3], [1, 2, 0], [0, 2, 0], [0, 0, 0]]))


def test_deletion_and_insertion_of_a_linear_network_by_hand():
    x, draws = torch.tensor([[3.0, 1.0]], dtype=torch.float64), linear_draws([1.0, 1.0], [1.0, 3.0])
    # Mean weights 1 and 2: the prediction is 5, of which feature 0 gives 3 and feature 1 gives 2.
    found = cells(unit=10).removal_table(draws, x, {"mean": [torch.tensor([[-3.0, 2.0]])]})
    gaps = found.set_index("way")[["gap_0", "gap_1", "gap_2", "area"]]
    np.testing.assert_allclose(gaps.loc["deletion"].astype(float), [0, 30, 50, 27.5])
    np.testing.assert_allclose(gaps.loc["insertion"].astype(float), [50, 20, 0, 22.5])


def test_the_true_order_beats_its_reverse_and_gains_nothing_over_itself():
    x, draws, one = normal(50, 4).abs(), linear_draws([4.0, 3.0, 2.0, 1.0]), cells(unit=1)
    true = x * torch.tensor([4.0, 3, 2, 1])
    orders = {"mean": [true], "one draw": [true], "random": [1 / true]}
    removal = one.removal_table(draws, x, orders).assign(posterior="p", explainer="e")
    for way in ("deletion", "insertion"):
        assert one.gain(removal, "random", way).min() > 0
        assert one.gain(removal, "one draw", way).abs().max() == 0
        assert one.gain(removal, "random", way).index.names == ["posterior", "explainer", "example"]


def test_orders_know_what_they_say():
    e, orders = ExplanationDistribution(normal(5, 3, 4)), cells(num_repeats=2).ORDERS
    sizes = {name: order(e, 2.0, seed=1) for name, order in orders.items()}
    torch.testing.assert_close(sizes["mean"][0], 2 * e.mean())
    torch.testing.assert_close(sizes["sd"][0], 2 * e.std())
    torch.testing.assert_close(sizes["one draw"][1], 2 * e.values[1])
    torch.testing.assert_close(sizes["another house"][0], 2 * e.mean()[[1, 2, 0]])
    assert [len(several) for several in sizes.values()] == [1, 2, 1, 1, 2]
    assert torch.equal(sizes["random"][0], orders["random"](e, 1.0, seed=1)[0])
    assert not torch.equal(sizes["random"][0], sizes["random"][1])


def test_agreement_tells_posteriors_from_houses():
    one = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]])  # two houses, opposite orders
    es = [ExplanationDistribution(torch.cat([one, scale * one])) for scale in (2.0, 5.0)]
    found = cells().agreement(es)
    assert found.mean().to_dict() == pytest.approx({"two posteriors": 1, "two draws": 1, "two houses (control)": -1})
    assert len(found) == 2


def stored(num_houses=3):
    frames = []
    for house in range(num_houses):
        for posterior in ("deep_ensemble", "laplace"):
            for explainer in ("lime", "integrated_gradients"):
                bars = {"feature": ["rooms", "age"], "value": [5.25, 30.0], "mean": [1.0 + house, -0.5]}
                rest = {"std": 0.2, "agreement": [1.0, 0.8], "prediction": 2.5, "total": 0.5, "truth": 3.0, "unit": "$"}
                keys = {"house": f"house {house}", "posterior": posterior, "explainer": explainer}
                frames.append(pd.DataFrame(bars | rest | keys))
    return pd.concat(frames, ignore_index=True)


def test_the_bars_of_a_house_carry_its_own_values_and_its_prediction():
    chosen = {"house": "house 1", "posterior": "deep_ensemble", "explainer": "lime"}
    rows = stored().query("house == 'house 1' and posterior == 'deep_ensemble' and explainer == 'lime'")
    figure, sentence = house_bars(rows, chosen)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rooms = 5.25", "age = 30"]
    assert [patch.get_width() for patch in axes.patches] == [2.0, -0.5]
    assert figure.get_suptitle() == "House 1, lime, deep ensemble"
    assert sentence == "Predicted 2.5 ± 0.5 (1 sd), true 3 ($). The draws disagree about the sign of 1 of 2 bars."


def test_every_choice_of_house_posterior_and_explainer_shows_its_own_bars(monkeypatch):
    def drawn(figure):  # without the time that pixels take
        return f"{figure.get_suptitle()} {[float(patch.get_width()) for patch in figure.axes[0].patches]}".encode()

    monkeypatch.setattr("xuqlib.study.figures.choosers.png", drawn)
    *choosers, picture, line = explore(stored(), ["house", "posterior", "explainer"], house_bars).children
    assert [chooser.description for chooser in choosers] == ["house", "posterior", "explainer"]
    seen = {}
    for house in choosers[0].options:
        for posterior in choosers[1].options:
            for explainer in choosers[2].options:
                for chooser, (_, value) in zip(choosers, (house, posterior, explainer), strict=True):
                    chooser.value = value
                seen[house, posterior, explainer] = bytes(picture.value).decode()
                assert str([1.0 + int(house[0][-1]), -0.5]) in bytes(picture.value).decode()
                assert "No such result" not in line.value
    assert len(seen) == len(set(seen.values())) == 12


def test_a_house_is_redrawn_once_for_each_choice():
    drawn = []

    def counted(rows, chosen):
        drawn.append(chosen["house"])
        return house_bars(rows, chosen)

    *choosers, _, _ = explore(stored(), ["house", "posterior", "explainer"], counted).children
    for value in ("house 1", "house 2", "house 0"):
        choosers[0].value = value
    assert drawn == ["house 0", "house 1", "house 2", "house 0"]


def test_a_grid_of_cvs_writes_the_number_into_every_cell():
    rows = [("e", "p_1", "b", 0.25), ("e", "p_2", "b", 1.5), ("e", "p_1", "a", 0.5), ("e", "p_2", "a", math.nan)]
    figure = cv_panels(pd.DataFrame(rows, columns=["explainer", "posterior", "feature", "cv"]), top=1.0)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.25", "1.50", "0.50", "nan"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["p 1", "p 2"]


def test_score_panels_draw_what_is_right_where_something_is():
    rows = [("covered", "p_1", 0.8, 0.7, 0.9), ("nll", "p_1", 1.0, 0.5, 1.5)]
    frame = pd.DataFrame(rows, columns=["score", "posterior", "value", "low", "high"])
    first, second = score_panels(frame, right={"covered": 0.9}).axes
    assert [list(line.get_xdata()) for line in first.lines if line.get_linestyle() == "--"] == [[0.9, 0.9]]
    assert not [line for line in second.lines if line.get_linestyle() == "--"]


def test_removal_panels_draw_a_line_for_each_order():
    rows = [
        (way, order, k, k * (order == "mean"))
        for way in ("deletion", "insertion")
        for order in ("mean", "random")
        for k in range(3)
    ]
    figure = removal_panels(pd.DataFrame(rows, columns=["way", "order", "moved", "gap"]), unit="$")
    assert [axes.get_title() for axes in figure.axes] == ["deletion", "insertion"]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines == {"mean": [0, 1, 2], "random": [0, 0, 0]}
