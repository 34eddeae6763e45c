"""The statistics of explanation distributions against numpy, theory and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from core_networks import EXACT, randn
from torch import Tensor, tensor
from torch.testing import assert_close

from xuqlib import ExplanationDistribution, distribution
from xuqlib.moments import Moments


def of(values: Tensor | list) -> ExplanationDistribution:
    return ExplanationDistribution(torch.as_tensor(values, dtype=torch.float64))


def moments_only(e: ExplanationDistribution) -> ExplanationDistribution:
    assert e.values is not None
    return ExplanationDistribution(None, Moments.over(e.values))


HAND = of([[[1.0, -2.0, 0.0]], [[3.0, 2.0, 0.0]]])  # two draws of one example with three features


def test_mean_and_std_by_hand():
    assert torch.equal(HAND.mean(), tensor([[2.0, 0.0, 0.0]], dtype=torch.float64))
    assert torch.equal(HAND.std(), tensor([[1.0, 2.0, 0.0]], dtype=torch.float64))
    assert_close(HAND.std(correction=1), HAND.std() * math.sqrt(2), **EXACT)
    assert (HAND.num_draws, HAND.num_examples) == (2, 1)


def test_the_signed_cv_by_hand_is_undefined_where_the_mean_is_below_its_floor():
    cv = HAND.cv("signed")
    assert cv[0, 0] == 0.5
    assert cv[0, 1:].isnan().all()
    assert HAND.undefined_share("signed").tolist() == [2 / 3]
    low = of([[[1.0, 0.04, 0.06]], [[1.0, 0.04, 0.06]]])
    assert low.cv("signed").isnan().tolist() == [[False, True, False]]
    assert low.cv("signed", floor=0.0).isnan().tolist() == [[False] * 3]
    assert low.cv("signed", floor=0.06).isnan().tolist() == [[False, True, True]], "at the floor is undefined"


def test_the_ratio_cv_by_hand():
    assert HAND.cv("ratio").tolist() == [1.5]
    assert HAND.undefined_share("ratio").tolist() == [0.0]


def test_the_unscaled_paper_cv_by_hand_folds_signs_first():
    # |.|: (1, 2, 0) and (3, 2, 0): means 2, 2, 0; stds 1, 0, 0
    assert HAND.cv("paper", rescale=False)[0, :2].tolist() == [0.5, 0.0]
    assert HAND.undefined_share("paper", rescale=False).tolist() == [pytest.approx(1 / 3)]


def test_the_paper_cv_of_pictures_equals_numpy():
    values = randn(5, 2, 3, 6, 6)
    maps = values.abs().sum(2).numpy().reshape(5, 2, 36)
    top, low = np.quantile(maps, 0.99, axis=2, keepdims=True), maps.min(2, keepdims=True)
    scaled = (np.minimum(maps, top) - low) / (top - low)
    mean, std = scaled.mean(0), scaled.std(0)
    expected = np.where(mean > 0.05 * mean.max(1, keepdims=True), std / mean, np.nan).reshape(2, 6, 6)
    assert_close(of(values).cv(), torch.from_numpy(expected), equal_nan=True, **EXACT)
    assert of(values).cv().shape == (2, 6, 6) and of(values).cv("signed").shape == (2, 3, 6, 6)
    share = np.isnan(expected).reshape(2, -1).mean(1)
    assert_close(of(values).undefined_share(), torch.from_numpy(share), **EXACT)


def test_rescaling_hides_differences_in_scale_between_draws():
    one = randn(1, 1, 30)
    e = of(torch.cat([one, 3 * one]))
    assert e.cv("paper").nan_to_num().max() < 1e-12
    assert_close(e.cv("paper", rescale=False).nanmedian(), tensor(0.5, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("kind", distribution.CV_KINDS)
def test_a_map_of_zeros_has_no_cv_at_all(kind):
    e = of(torch.zeros(3, 2, 3, 4, 4))
    assert e.cv(kind).isnan().all()
    assert e.undefined_share(kind).tolist() == [1.0, 1.0]


def test_examples_are_never_mixed():
    values = randn(6, 3, 4)
    whole = of(values)
    for statistic in (lambda e: e.cv(), lambda e: e.cv("ratio"), lambda e: e.snr(), lambda e: e.mad()):
        alone = torch.cat([statistic(of(values[:, i : i + 1])) for i in range(3)])
        assert_close(statistic(whole), alone, equal_nan=True, **EXACT)


def test_signal_to_noise_by_hand_is_undefined_where_nothing_spreads():
    snr = HAND.snr()
    assert snr[0, :2].tolist() == [2.0, 0.0] and snr[0, 2].isnan()


def test_quantiles_median_and_mad_equal_numpys():
    values = randn(9, 2, 3, 4, 4)
    e, array = of(values), values.numpy()
    for q in (0.0, 0.05, 0.5, 1.0):
        assert_close(e.quantile(q), torch.from_numpy(np.quantile(array, q, axis=0)), **EXACT)
    median = np.median(array, axis=0)
    assert_close(e.median(), torch.from_numpy(median), **EXACT)
    assert_close(e.mad(), torch.from_numpy(np.median(np.abs(array - median), axis=0)), **EXACT)


def test_sign_agreement_by_hand():
    e = of([[[1.0, 1.0, 0.0, 0.0]], [[2.0, -1.0, 0.0, 1.0]], [[3.0, -1.0, 0.0, 0.0]]])
    agreement = e.sign_agreement()[0]
    assert agreement[[0, 1, 3]].tolist() == [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert agreement[2].isnan()


@pytest.mark.parametrize("of_what", ["std", "cv"])
def test_the_jackknife_equals_a_loop_that_leaves_each_draw_out(of_what):
    values = randn(8, 2, 5) + 1
    n, left = 8, []
    for t in range(n):
        rest = np.delete(values.numpy(), t, axis=0)
        left.append(rest.std(0) if of_what == "std" else rest.std(0) / np.abs(rest.mean(0)))
    expected = np.sqrt((n - 1) / n * ((np.stack(left) - np.mean(left, 0)) ** 2).sum(0))
    assert_close(of(values).standard_error(of_what), torch.from_numpy(expected), **EXACT)


def test_the_standard_error_of_the_mean_is_the_std_over_root_n():
    values = randn(8, 2, 5)
    expected = values.numpy().std(0, ddof=1) / math.sqrt(8)
    assert_close(of(values).standard_error(), torch.from_numpy(expected), **EXACT)
    assert_close(moments_only(of(values)).standard_error(), torch.from_numpy(expected), **EXACT)


@pytest.mark.parametrize("kept", ["all", "moments"])
def test_the_standard_error_of_the_std_covers_the_truth(kept):
    # 2,000 distributions of 200 standard normal draws; the interval of 1.96 standard errors covers 95 %.
    e = of(randn(200, 1, 2000, seed=3))
    e = e if kept == "all" else moments_only(e)
    covered = ((e.std(correction=1) - 1).abs() < 1.96 * e.standard_error("std")).double().mean()
    assert abs(covered - 0.95) < 0.02  # three binomial errors of 0.005, and the curvature of a root


def test_the_standard_error_of_the_mean_is_how_much_means_spread():
    repeats = randn(20, 1, 5000, seed=4)
    assert of(repeats).standard_error().square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(20), rel=0.02)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_noise_ceiling_is_the_cv_of_noise_without_a_mean(channels):
    e = of(randn(400, 1, channels, 40, 40, seed=5))
    simulated = e.cv("paper", rescale=False, floor=0.0).mean().item()
    # 1,600 pixels, each to 1/sqrt(2 * 400): 0.1 % on average, and a bias of the same size
    assert e.noise_ceiling == pytest.approx(simulated, rel=0.005)


def test_a_table_has_the_noise_ceiling_of_one_channel():
    assert HAND.noise_ceiling == pytest.approx(math.sqrt(math.pi / 2 - 1))


def test_moments_know_every_statistic_of_moments_and_refuse_the_others():
    full = of(randn(6, 2, 3, 4, 4))
    streamed = moments_only(full)
    for kind in distribution.CV_KINDS:
        assert torch.equal(streamed.cv(kind).nan_to_num(-1), full.cv(kind).nan_to_num(-1))
    assert torch.equal(streamed.mean(), full.mean()) and torch.equal(streamed.std(), full.std())
    assert torch.equal(streamed.snr(), full.snr())
    assert (streamed.num_draws, streamed.num_examples) == (6, 2)
    assert streamed.summary().equals(full.summary())
    for name in ("median", "mad", "sign_agreement", "to_frame", "to_xarray"):
        with pytest.raises(ValueError, match='needs every draw, but only moments were kept; explain with keep="all"'):
            getattr(streamed, name)()
    with pytest.raises(ValueError, match="standard_error of cv needs every draw"):
        streamed.standard_error("cv")


def test_picking_examples_keeps_every_draw():
    e = ExplanationDistribution(
        randn(4, 5, 3), target=torch.arange(5), explainer="gradient", posterior="flipout", feature_names=("a", "b", "c")
    )
    few = e[1:3]
    assert torch.equal(few.values, e.values[:, 1:3]) and few.target.tolist() == [1, 2]
    assert (few.explainer, few.posterior, few.feature_names) == ("gradient", "flipout", ("a", "b", "c"))
    assert torch.equal(e[-1].values, e.values[:, 4:]) and e[-1].target.tolist() == [4]
    assert torch.equal(e[tensor([3, 0])].mean(), e.mean()[[3, 0]])
    assert [one.num_examples for one in e] == [1] * 5
    assert "4 draws x 5 examples x (3,)" in repr(e) and "flipout gradient" in repr(e)


def test_the_frame_has_one_row_per_number():
    values = randn(2, 3, 1, 2, 2)
    frame = of(values).to_frame()
    assert list(frame.columns) == ["draw", "example", "channel", "height", "width", "attribution"]
    assert len(frame) == values.numel()
    row = frame.query("draw == 1 and example == 2 and channel == 0 and height == 1 and width == 0")
    assert row.attribution.item() == values[1, 2, 0, 1, 0]


def test_the_frame_of_a_table_names_its_features():
    e = ExplanationDistribution(randn(2, 3, 2), feature_names=("age", "rooms"))
    frame = e.to_frame()
    assert frame.query("draw == 1 and example == 0 and feature == 'rooms'").attribution.item() == e.values[1, 0, 1]
    assert list(of(randn(2, 3, 2)).to_frame().feature.unique()) == [0, 1]


def test_xarray_has_named_axes():
    values = randn(2, 3, 1, 2, 4)
    array = of(values).to_xarray()
    assert array.dims == ("draw", "example", "channel", "height", "width")
    assert_close(torch.from_numpy(array.std("draw").values), of(values).std(), **EXACT)
    named = ExplanationDistribution(randn(2, 3, 2), feature_names=("age", "rooms")).to_xarray()
    assert named.sel(feature="rooms", draw=0, example=1).item() == randn(2, 3, 2)[0, 1, 1]


def test_xarray_is_optional(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "xarray", None)
    with pytest.raises(ImportError, match="to_xarray needs xarray; install it"):
        HAND.to_xarray()


def test_the_summary_has_one_row_per_example():
    e = ExplanationDistribution(randn(6, 2, 3, 4, 4), target=tensor([7, 1]))
    row = e.summary().iloc[1]
    assert row.example == 1 and row.target == 1
    assert row.mean_abs == pytest.approx(e.mean()[1].abs().mean())
    assert row["std"] == pytest.approx(e.std()[1].mean())
    assert row.cv_ratio == pytest.approx(e.cv("ratio")[1])
    for name, cv in (("cv_paper", e.cv()), ("cv_paper_unscaled", e.cv(rescale=False)), ("cv_signed", e.cv("signed"))):
        assert row[name] == pytest.approx(cv[1].nanmedian())
        assert row[f"{name}_undefined"] == pytest.approx(cv[1].isnan().double().mean())
    assert "target" not in of(randn(3, 2, 4)).summary()


# Failure signatures


def healthy(num_draws: int = 20) -> Tensor:
    """Maps with a place of their own, steady to a fifth."""
    base = randn(1, 3, 1, 8, 8, seed=6)
    return base * (1 + 0.2 * randn(num_draws, 3, 1, 8, 8, seed=7))


def found(values: Tensor) -> str:
    sentences = of(values).diagnose()
    assert len(sentences) == 1, sentences
    return sentences[0]


def test_healthy_explanations_give_no_finding():
    assert of(healthy()).diagnose() == []
    assert moments_only(of(healthy())).diagnose() == []
    table = 1 + randn(1, 4, 8) + 0.1 * randn(20, 4, 8, seed=2)
    assert of(table).diagnose() == []


def test_values_that_are_not_finite_are_found():
    values = healthy()
    values[3, 1, 0, 2, 2] = math.nan
    values[4, 2, 0, 2, 2] = math.inf
    assert "2 of 3 examples hold NaN or infinite" in found(values)


def test_dead_maps_are_found():
    values = healthy()
    values[:, 2] = 0
    assert "1 of 3 examples are zero everywhere, in every draw" in found(values)


def test_draws_that_do_not_differ_are_found():
    values = healthy()
    values[:, :2] = values[:1, :2]
    assert "2 of 3 examples are the same in every draw: check that the posterior is random" in found(values)
    assert "same in every draw" in found(values.float().double() * 0.1)


def test_uniform_maps_are_found():
    values = healthy()
    values[:, 0] = 5 + 0.05 * randn(20, 1, 8, 8, seed=8)
    sentence = found(values)
    assert "1 of 3 examples are nearly equal everywhere" in sentence and "vary by 0." in sentence


def test_a_cv_that_is_mostly_undefined_is_found():
    values = healthy()
    values[:, 0] *= torch.where(torch.arange(64).view(1, 8, 8) < 60, 1e-4, 1.0)
    sentence = found(values)
    assert "1 of 3 examples have no coefficient of variation on 9" in sentence and "% of their pixels" in sentence


def test_noise_without_a_sign_is_found():
    values = healthy(60)
    values[:, :2] = randn(60, 2, 1, 8, 8, seed=9)
    sentence = found(values)
    assert "2 of 3 examples are no steadier than noise without a sign" in sentence
    assert "noise has 0.76" in sentence


@pytest.mark.parametrize(("num_draws", "percent"), [(5, "35%"), (9, "25%"), (2, "71%")])
def test_too_few_draws_are_found(num_draws, percent):
    assert f"There are {num_draws} draws, so each std is off by about {percent}" in found(healthy(num_draws))


def test_one_draw_is_no_distribution():
    assert found(healthy(1)) == "There is 1 draw, so no spread can be told: take at least 10."


def test_findings_add_up():
    values = torch.zeros(3, 2, 4, dtype=torch.float64)
    values[:, 1] = 1
    sentences = of(values).diagnose()
    assert len(sentences) == 4
    for what in ("zero everywhere", "same in every draw", "nearly equal everywhere", "3 draws"):
        assert any(what in sentence for sentence in sentences)
