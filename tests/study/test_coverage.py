"""Agreement of explanation intervals with unseen networks: Gaussians whose answer is known, and hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from xuqlib import MCDropout, gradient, gradient_x_input, mlp
from xuqlib.study.intervals import mean_of_centres, over_centres
from xuqlib.study.judging.coverage import (
    Forecast,
    agreement,
    centred_coverage,
    compare_intervals,
    counting_coverage,
    forecast,
    image_blind,
    interval_score,
    intervals,
    perfect_ratio,
    scaled_maps,
    simulated,
    unit_scale,
)

MU, S = 2.0, 0.7


def gaussian_maps(num_networks, *, seed, num_examples=4, num_pixels=5000):
    stream = torch.Generator().manual_seed(seed)
    return MU + S * torch.randn(num_networks, num_examples, num_pixels, generator=stream, dtype=torch.float64)


def around_one_network(width):
    centre = gaussian_maps(1, seed=0)[0]
    return Forecast(centre, torch.full_like(centre, width))


def mean_of(frame, column, pixels="all"):
    return frame.loc[frame["pixels"] == pixels, column].mean()


def test_a_unit_map_has_mean_size_one_whatever_the_logits_of_its_network():
    values = torch.tensor([[[1.0, -3.0]], [[10.0, -30.0]]])
    torch.testing.assert_close(unit_scale(values), torch.tensor([[[0.5, -1.5]], [[0.5, -1.5]]]))
    assert unit_scale(torch.zeros(1, 1, 2)).isnan().all()


def test_unit_maps_are_explanations_summed_over_channels_and_scaled():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(8, 1, bias=False)).eval()
    weight = torch.arange(1.0, 9.0)
    with torch.no_grad():
        network[1].weight.copy_(weight[None])
    x = torch.rand(3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = scaled_maps([network.double()], gradient_x_input, x, None, block=2)
    by_hand = (x.flatten(1) * weight.double()).view(3, 2, 4).sum(1)  # gradient x input of a linear network is w * x
    torch.testing.assert_close(found[0], by_hand / by_hand.abs().mean(1, keepdim=True))


def test_a_forecast_leaves_out_draws_without_a_map():
    values = torch.tensor([1.0, 3.0, math.nan], dtype=torch.float64).view(3, 1, 1)
    found = forecast(values)
    assert found.mean.item() == 2
    assert found.std.item() == pytest.approx(math.sqrt(2))  # divisor draws - 1
    assert forecast(values[:1]).std.item() == 0  # a single map knows of no spread


def test_an_interval_of_few_draws_holds_one_more_as_often_as_it_says():
    held_out = gaussian_maps(3, seed=2)
    for num_draws in (2, 5):
        frame = agreement(forecast(gaussian_maps(num_draws, seed=1)), held_out)
        found = frame[frame["pixels"] == "all"].groupby("level")["coverage"].mean()
        np.testing.assert_allclose(found, found.index, atol=0.01)  # 20,000 intervals: standard error 0.003 at most


def test_the_interval_of_five_draws_by_hand():
    expected = Forecast(torch.tensor([[1.0]]), torch.tensor([[2.0]]), 5)
    low, high = intervals(expected, (0.9,))
    half = 2.1318 * 2 * math.sqrt(1.2)  # 95 % quantile of Student's t with 4 degrees of freedom, from a table
    assert (low.item(), high.item()) == pytest.approx((1 - half, 1 + half), abs=1e-3)


def test_a_perfect_width_around_one_network_holds_too_few_and_the_root_of_two_mends_it():
    held_out = gaussian_maps(3, seed=1)
    found = agreement(around_one_network(S), held_out, levels=(0.9,))
    assert centred_coverage(0.9) == pytest.approx(0.755, abs=5e-4)
    assert mean_of(found, "coverage") == pytest.approx(0.755, abs=0.01)
    wider = agreement(around_one_network(S * math.sqrt(2)), held_out, levels=(0.9,))
    assert mean_of(wider, "coverage") == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("num_averaged", [1, 5])
def test_the_variance_ratio_of_a_perfect_posterior_is_that_of_the_formula(num_averaged):
    mean = gaussian_maps(num_averaged, seed=0).mean(0)
    found = agreement(Forecast(mean, torch.full_like(mean, S)), gaussian_maps(20, seed=1), levels=(0.9,))
    ratio = mean_of(found, "variance") / mean_of(found, "deviation")
    assert ratio == pytest.approx(perfect_ratio(num_averaged), rel=0.02)
    assert perfect_ratio(1) == 0.5
    assert perfect_ratio(5) == pytest.approx(5 / 6)


def test_the_range_of_networks_holds_one_more_by_counting_alone():
    values = torch.rand(5, 4, 5000, generator=torch.Generator().manual_seed(0))  # not Gaussian: it does not matter
    new = torch.rand(4, 5000, generator=torch.Generator().manual_seed(1))
    inside = (new > values.amin(0)) & (new < values.amax(0))
    assert inside.double().mean().item() == pytest.approx(counting_coverage(5), abs=0.01)
    assert counting_coverage(5) == pytest.approx(4 / 6)


def test_an_interval_score_by_hand():
    value = torch.tensor([0.0, 1.5, 4.0])
    found = interval_score(torch.tensor(1.0), torch.tensor(3.0), value, 0.8)
    torch.testing.assert_close(
        found, torch.tensor([2 + 10 * 1.0, 2.0, 2 + 10 * 1.0])
    )  # width, 2 / 0.2 per unit outside


def test_no_interval_scores_better_on_average_than_the_true_quantiles():
    value = gaussian_maps(1, seed=3).flatten()
    scores = {
        z: interval_score(*(torch.tensor(MU + k * z * S) for k in (-1, 1)), value, 0.9).mean()
        for z in (1.2, 1.645, 2.2)
    }
    assert min(scores, key=scores.get) == 1.645


def test_a_posterior_without_spread_holds_nothing():
    centre = gaussian_maps(1, seed=0)
    found = agreement(forecast(centre), gaussian_maps(2, seed=1))
    assert (found["coverage"] == 0).all() and (found["width"] == 0).all()
    assert np.isfinite(found["score"]).all()


def test_maps_that_are_missing_are_left_out_and_not_counted_as_misses():
    expected, held_out = around_one_network(S), gaussian_maps(3, seed=1)
    held_out[0, 0] = math.nan
    found, full = agreement(expected, held_out, levels=(0.9,)), agreement(expected, held_out[1:], levels=(0.9,))
    first = found["example"] == 0
    np.testing.assert_allclose(found.loc[first, "coverage"], full.loc[first, "coverage"])
    held_out[:, 0] = math.nan
    assert agreement(expected, held_out, levels=(0.9,)).loc[first, "coverage"].isna().all()


def test_the_largest_pixels_are_a_fifth_of_them_by_size_of_the_mean():
    expected = Forecast(torch.tensor([[0.1, -5.0, 1.0, 0.0, 2.0]]), torch.full((1, 5), 0.5))
    found = agreement(expected, torch.tensor([[[0.1, 9.0, 1.0, 0.0, 2.0]]]), levels=(0.9,))  # off at the largest only
    assert mean_of(found, "coverage") == pytest.approx(0.8)
    assert mean_of(found, "coverage", "largest") == 0


def test_an_image_blind_interval_is_quantiles_over_other_pictures():
    maps = torch.arange(101.0)[:, None] * torch.tensor([1.0, -1.0])
    low, high = image_blind(maps, (0.9,))
    torch.testing.assert_close(low, torch.tensor([[[5.0, -95.0]]]))
    torch.testing.assert_close(high, torch.tensor([[[95.0, -5.0]]]))
    with_a_gap = torch.cat([maps, torch.full((1, 2), math.nan)])
    torch.testing.assert_close(image_blind(with_a_gap, (0.9,))[0], low)


def test_the_simulation_agrees_with_its_formulas():
    found = simulated(seed=1)
    np.testing.assert_allclose(found["simulated"], found["formula"], atol=0.015)
    assert found["formula"].tolist() == pytest.approx([4 / 6, 0.755, 0.9, 0.9], abs=1e-3)


def test_an_interval_over_centres_covers_each_of_them():
    frame = pd.DataFrame({"seed": [0, 0, 1, 1], "name": "a", "score": [1.0, 3.0, 5.0, 5.0]})
    found = over_centres(frame, ["name"], "score").iloc[0]
    assert (found["score"], found["low"], found["high"], found["centres"]) == (3.5, 0.0, 5.0, 2)  # 2 ± 2, and 5 ± 0


@pytest.mark.parametrize(("values", "verdict"), [([0.9, 0.91], True), ([0.5, 0.52], False), ([0.8, 0.99], None)])
def test_a_claim_about_centres_is_decided_only_where_each_of_them_decides_it(values, verdict):
    frame = pd.DataFrame(
        {"seed": [0, 0, 1, 1], "example": [0, 1, 0, 1], "coverage": [values[0], values[0], values[1], values[1]]}
    )
    found = mean_of_centres(frame, "coverage")
    assert found.between(0.85, 0.95) is verdict
    assert (found.low, found.high, found.n, found.seeds) == (*values, 2, 2)


def test_tests_stand_side_by_side_under_their_names():
    expected, held_out = around_one_network(S), gaussian_maps(1, seed=1)
    found = compare_intervals(
        {"narrow": {"expected": expected, "held_out": held_out}, "same": {"expected": expected, "held_out": held_out}}
    )
    assert found.loc[("all", "narrow")].equals(found.loc[("all", "same")])
    by_hand = mean_of(agreement(expected, held_out, levels=(0.9,)), "score", "largest")
    assert found.loc[("largest", "narrow"), "score"] == pytest.approx(by_hand)


def test_draws_of_another_dtype_are_copied_into_that_of_x():
    draws, x = MCDropout(mlp(num_features=4, dropout=0.25)).sample(2), torch.eye(3, 4, dtype=torch.float64)
    maps = scaled_maps(draws, gradient, x, None)
    assert {weight.dtype for draw in draws for weight in draw.parameters()} == {torch.float32}
    torch.testing.assert_close(maps, scaled_maps(draws.to(torch.float64), gradient, x, None), rtol=0, atol=0)
