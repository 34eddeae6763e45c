"""Agreement of maps and the share on the evidence, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import randn
from scipy.stats import spearmanr

from xuqlib import DeepEnsemble, explain, gradient
from xuqlib.study.figures.maps import example_maps
from xuqlib.study.intervals import rank_correlation, rank_correlations
from xuqlib.study.judging.properties import on_evidence, properties, relative_input_stability, sparseness
from xuqlib.study.judging.similarity import spearman, ssim


def test_maps_are_alike_by_the_order_of_their_pixels_with_sign():
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    b = torch.tensor([[1.0, 8.0, 27.0, 64.0], [-1.0, -2.0, -3.0, -4.0], [5.0, 5.0, 5.0, 5.0]])
    found = spearman(a, b)
    assert found[:2].tolist() == pytest.approx([1.0, -1.0])
    assert math.isnan(found[2])


def test_channels_are_summed_before_maps_are_compared():
    a = torch.tensor([[[[1.0, 2.0, 3.0]], [[3.0, 2.0, -5.0]]]])  # sums 4, 4, -2
    assert spearman(a, torch.tensor([[[[4.0, 4.0, -2.0]], [[0.0, 0.0, 0.0]]]])).tolist() == pytest.approx([1.0])
    with pytest.raises(ValueError, match="the same examples"):
        spearman(a, a[:, :1])


def test_the_share_the_hit_and_the_area_of_a_map_by_hand():
    attribution = torch.tensor([[[[1.0, -2.0], [0.0, 1.0]]], [[[4.0, 4.0], [4.0, 0.0]]]])
    mask = torch.tensor([[[False, True], [False, False]], [[True, False], [False, False]]])
    found = on_evidence(attribution, mask)
    assert found["share"].tolist() == pytest.approx([0.5, 1 / 3])
    assert found["hit"].tolist() == pytest.approx([1.0, 1 / 3])  # three pixels tie for the largest
    assert found["area"].tolist() == pytest.approx([0.25, 0.25])


def test_example_maps_publish_what_they_show():
    x, maps = torch.rand(3, 3, 2, 2), {"one": torch.tensor([[[[1.0, -4.0], [0.0, 2.0]]]])}
    figure, frame = example_maps(x, maps, dataset="planted", scaled=True)
    assert len(figure.axes) == 2  # one row: the only example with a map
    assert frame["one, picture 0"].tolist() == [0.25, -1.0, 0.0, 0.5]


def test_structural_similarity_is_one_for_equal_maps_of_any_scale_and_low_for_others():
    torch.manual_seed(0)
    a = torch.randn(3, 2, 8, 8)
    a[2] = 0
    found = ssim(a, 5 * a)
    assert found[:2].tolist() == pytest.approx([1.0, 1.0])
    assert math.isnan(found[2])
    assert (ssim(a, a.roll(1, 0))[1:2] < 0.5).all()
    assert ssim(a.sum(1), a.sum(1))[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="the same examples"):
        ssim(a, a[:, :1])


def test_sparseness_is_0_for_equal_pixels_and_nearly_1_for_a_single_one():
    maps = torch.tensor([[2.0, -2.0, 2.0, 2.0], [0.0, 0.0, -7.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    found = sparseness(maps)
    assert found[:2].tolist() == pytest.approx([0, 0.75])
    assert math.isnan(found[2])
    # Half the mean absolute difference of two pixels, relative to their mean: 20 / 16 / 2 / 2.5.
    assert float(found[3]) == pytest.approx(0.25)


def test_sparseness_sums_channels_first():
    maps = torch.tensor([[[[1.0, 5.0]], [[-1.0, 0.0]]]])  # 0 and 5
    assert sparseness(maps).tolist() == pytest.approx([0.5])


def product_draws(weights):
    layers = [torch.nn.Linear(2, 2, bias=False, dtype=torch.float64) for _ in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = torch.nn.Parameter(torch.tensor([[weight, weight], [0.0, 0.0]], dtype=torch.float64))
    return DeepEnsemble(layers).sample()


def in_proportion(network, x, target):
    return x * network(x)[:, :1] / x.sum(1, keepdim=True)  # x times the weight of a network of product_draws


def test_a_map_in_proportion_to_its_input_has_stability_1_and_a_constant_one_0():
    x = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
    draws = product_draws([1.0, 3.0])
    columns = ["mean", "std"]
    assert (relative_input_stability(draws, gradient, x)[columns].to_numpy() == 0).all()
    found = relative_input_stability(draws, in_proportion, x, num_copies=3)
    assert found[columns].to_numpy() == pytest.approx(1)


def test_stability_is_that_of_the_worst_copy():
    x, draws = torch.tensor([[1.0, 1.0]], dtype=torch.float64), product_draws([1.0, 3.0])
    copies = [relative_input_stability(draws, lambda n, x, t: x**3, x, num_copies=n)["mean"][0] for n in (1, 2, 9)]
    assert copies == sorted(copies)
    assert copies[-1] > copies[0]
    # |d x^3| / |x^3| is 3 |d x| / |x| to first order, where all entries of x are equal.
    assert copies[-1] == pytest.approx(3, rel=0.1)
    with pytest.raises(ValueError, match="radius"):
        relative_input_stability(draws, gradient, x, radius=0.0)


def test_copies_with_another_answer_do_not_count():
    def torn(network, x, target):
        return torch.where(x.sum(1, keepdim=True) > 0, x, 1000 + x)  # the answer is 0 where the sum is above 0

    x = torch.tensor([[1e-3, 1e-3]], dtype=torch.float64)
    draws, copies = product_draws([1.0]), {"num_copies": 1, "radius": 1.0}
    found = [relative_input_stability(draws, torn, x, seed=seed, **copies)["mean"][0] for seed in range(8)]
    kept = [value for value in found if not math.isnan(value)]
    assert 0 < len(kept) < len(found)
    assert kept == pytest.approx([1] * len(kept))


def test_properties_are_those_of_the_mean_map_and_of_the_std_map():
    x, draws = torch.tensor([[3.0, 4.0], [1.0, 2.0]], dtype=torch.float64), product_draws([1.0, 3.0])
    found = properties(draws, in_proportion, x, num_copies=2)
    e = explain(draws, in_proportion, x)
    assert found["sparse mean"].tolist() == pytest.approx(sparseness(e.mean()).tolist())
    assert found["sparse std"].tolist() == pytest.approx(sparseness(e.std()).tolist())
    assert found[["stability mean", "stability std"]].to_numpy() == pytest.approx(1)


def test_rank_correlation_is_that_of_scipy_and_its_interval_covers_it():
    stream = np.random.default_rng(0)
    a = stream.normal(size=80).round(1)
    b = (a + stream.normal(size=80)).round(1)
    found = rank_correlation(a, b)
    assert found.value == pytest.approx(spearmanr(a, b).statistic)
    error = (found.high - found.low) / 4
    assert error == pytest.approx((1 - found.value**2) / math.sqrt(78), rel=0.35)  # the error of a plain correlation
    assert rank_correlation([*a, np.nan], [*b, 1.0]) == found
    with pytest.raises(ValueError, match="four or more"):
        rank_correlation([1, 2, 3], [1, 2, np.nan])


def test_a_partial_correlation_vanishes_where_a_third_number_explains_both():
    given = randn(2000).numpy()
    a, b = given + randn(2000, seed=1).numpy(), given + randn(2000, seed=2).numpy()
    assert rank_correlation(a, b, num_resamples=20).value > 0.4
    assert abs(rank_correlation(a, b, given=given, num_resamples=20).value) < 0.1
    ranks = pd.DataFrame({"a": a, "b": b, "given": given}).rank()
    rest = [ranks[c] - np.polyval(np.polyfit(ranks["given"], ranks[c], 1), ranks["given"]) for c in ("a", "b")]
    expected = np.corrcoef(rest)[0, 1]  # the definition: what is left of both after regression on the third
    assert rank_correlation(a, b, given=given, num_resamples=20).value == pytest.approx(expected)


def test_a_table_of_rank_correlations_has_every_signal_alone_and_beyond_the_given_one():
    stream = np.random.default_rng(0)
    frame = pd.DataFrame(stream.normal(size=(30, 2)), columns=["entropy", "cv"]).assign(answer=1)
    truth = frame["cv"] + frame["entropy"]
    found = rank_correlations(frame, truth, given="entropy", seed=2).set_index(["signal", "kind"])
    assert list(found.index) == [("entropy", "alone"), ("cv", "alone"), ("cv", "beyond entropy")]
    assert tuple(found.loc[("cv", "alone")]) == tuple(rank_correlation(frame["cv"], truth, seed=2))
    beyond = rank_correlation(frame["cv"], truth, given=frame["entropy"], seed=2)
    assert tuple(found.loc[("cv", "beyond entropy")]) == tuple(beyond)
