"""Properties that hold for every network, posterior, shape and seed: hypothesis looks for one for which they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_networks import EXACT, inplace_cnn, randn, seeded, table_mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from xuqlib import (
    Draws,
    ExplanationDistribution,
    Flipout,
    MCDropConnect,
    MCDropout,
    explain,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
    ua_backprop,
)
from xuqlib.explainers.gradients import completeness_gap
from xuqlib.explainers.lime import lime
from xuqlib.metrics.deletion import perturbed
from xuqlib.study.judging.controls import random_order
from xuqlib.study.judging.coverage import agreement, forecast
from xuqlib.ua_replacement import ua_replacement
from xuqlib.uncertainty import KINDS, decompose, uncertainties

# The same examples in every run, so that a red line is the fault of a change; a seed is a network, a posterior, an x.
FEW = settings(derandomize=True, database=None, deadline=None, max_examples=15)
SEEDS, SIZES = st.integers(0, 2**31 - 1), st.integers(1, 5)
POSTERIORS = {"dropout": MCDropout, "dropconnect": MCDropConnect, "flipout": Flipout}
OPTIONS: dict[Any, dict[str, Any]] = {
    gradient: {},
    gradient_x_input: {},
    guided_backprop: {},
    integrated_gradients: {"num_steps": 3},
    smoothgrad: {"num_samples": 3},
    lime: {"num_samples": 12},
}
LINEAR = [explainer for explainer in OPTIONS if explainer is not guided_backprop]


def draws_of(posterior: str, num_draws: int, seed: int) -> Draws:
    return POSTERIORS[posterior](seeded(table_mlp, seed=seed % 7)).sample(num_draws, seed=seed)


def targets(num_examples: int, seed: int) -> Tensor:
    return torch.randint(3, (num_examples,), generator=torch.Generator().manual_seed(seed))


@FEW
@given(num_examples=SIZES, is_table=st.booleans(), dtype=st.sampled_from([torch.float32, torch.float64]), seed=SEEDS)
@pytest.mark.parametrize("explainer", OPTIONS)
def test_an_attribution_has_the_shape_and_dtype_of_x(explainer, num_examples, is_table, dtype, seed):
    network = seeded(table_mlp if is_table else inplace_cnn, dtype=dtype).eval()
    x = randn(num_examples, *((5,) if is_table else (3, 8, 8)), seed=seed, dtype=dtype)
    options = OPTIONS[explainer] | ({"num_segments": 4} if explainer is lime and not is_table else {})
    found = explainer(network, x, targets(num_examples, seed), **options)
    assert found.shape == x.shape and found.dtype == dtype and found.isfinite().all()


@FEW
@given(posterior=st.sampled_from([*POSTERIORS]), few=SIZES, more=st.integers(0, 4), seed=SEEDS)
def test_the_first_of_many_draws_are_the_draws_of_few(posterior, few, more, seed):
    x = randn(2, 5, seed=seed)
    many = draws_of(posterior, few + more, seed)
    assert torch.equal(torch.stack([draw(x) for draw in many[:few]]), many(x)[:few])
    assert torch.equal(draws_of(posterior, few, seed)(x), many[:few](x))


@FEW
@given(posterior=st.sampled_from([*POSTERIORS]), num_examples=SIZES, chunk=SIZES, seed=SEEDS)
@pytest.mark.parametrize("explainer", OPTIONS)
def test_neither_order_nor_chunks_of_the_examples_matter(explainer, posterior, num_examples, chunk, seed):
    draws, x, target = draws_of(posterior, 2, seed), randn(num_examples, 5, seed=seed), targets(num_examples, seed)
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))
    whole = explain(draws, explainer, x, target, **OPTIONS[explainer]).values
    parts = explain(draws, explainer, x[order], target[order], chunk=chunk, **OPTIONS[explainer]).values
    assert_close(parts, whole[:, order], **EXACT)


@FEW
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), seed=SEEDS)
@pytest.mark.parametrize("explainer", LINEAR)
def test_an_explainer_that_is_linear_in_the_logit_explains_a_sum_of_networks_by_the_sum(explainer, a, b, seed):
    one, other = (seeded(table_mlp, seed=number).eval() for number in (seed % 7, 7 + seed % 5))
    x, target = randn(3, 5, seed=seed), targets(3, seed)
    both, *each = (
        explainer(network, x, target, **OPTIONS[explainer])
        for network in (lambda x: a * one(x) + b * other(x), one, other)
    )
    assert_close(both, a * each[0] + b * each[1], **EXACT)


@FEW
@given(degree=st.integers(1, 9), seed=SEEDS)
def test_integrated_gradients_are_complete_for_every_polynomial_of_which_gauss_knows_the_integral(degree, seed):
    weight, x, baseline = (randn(3, 4, seed=seed + number) for number in range(3))
    network = lambda x: x**degree @ weight.T  # noqa: E731
    steps = (degree + 1) // 2  # n nodes are exact up to degree 2 n - 1, and the slope has one degree less
    options: dict[str, Any] = {"baseline": baseline}
    found = integrated_gradients(network, x, targets(3, seed), num_steps=steps, **options)
    size = network(x).abs().max() + network(baseline).abs().max()
    assert completeness_gap(network, x, found, targets(3, seed), **options).abs().max() < 1e-10 * (1 + size)


@FEW
@given(posterior=st.sampled_from([*POSTERIORS]), kind=st.sampled_from(KINDS), num_draws=SIZES, seed=SEEDS)
@pytest.mark.parametrize("setting", ["paper", "recommended"])
def test_the_maps_of_an_uncertainty_sum_to_it(setting, posterior, kind, num_draws, seed):
    draws, x = draws_of(posterior, num_draws, seed), 3 * randn(2, 5, seed=seed)
    wanted = getattr(uncertainties(draws, x), kind)
    assert_close(ua_backprop(draws, x, kind, setting=setting).sum(1), wanted, **EXACT)
    assert_close(ua_replacement(draws, x, kind, reference="mean").sum(1), wanted, **EXACT)


@FEW
@given(num_draws=SIZES, num_classes=st.integers(2, 6), scale=st.floats(0, 100), seed=SEEDS)
def test_an_uncertainty_is_the_sum_of_its_parts_at_most_log_classes_and_blind_to_a_shift(
    num_draws, num_classes, scale, seed
):
    logits = scale * randn(num_draws, 4, num_classes, seed=seed)
    found, moved = decompose(logits), decompose(logits + randn(num_draws, 4, 1, seed=seed + 1))
    assert_close(found.total, found.aleatoric + found.epistemic, **EXACT)
    assert (found.aleatoric >= 0).all() and (found.epistemic >= 0).all()
    assert (found.total <= torch.tensor(num_classes).log() + 1e-12).all()
    for kind in KINDS:
        assert_close(getattr(moved, kind), getattr(found, kind), rtol=1e-9, atol=1e-12)


@FEW
@given(num_draws=st.integers(2, 8), scale=st.floats(1e-3, 1e3), seed=SEEDS)
def test_statistics_do_not_ask_for_the_order_of_draws_nor_ratios_for_the_unit(num_draws, scale, seed):
    values = randn(num_draws, 2, 3, 4, 4, seed=seed)
    order = torch.randperm(num_draws, generator=torch.Generator().manual_seed(seed))
    e, shuffled, scaled = (ExplanationDistribution(each) for each in (values, values[order], -scale * values))
    assert_close(shuffled.std(), e.std(), **EXACT)
    assert_close(scaled.std(), scale * e.std(), **EXACT)
    for kind in ("paper", "signed", "ratio"):
        for other in (shuffled, scaled):
            assert_close(other.cv(kind, floor=0.0), e.cv(kind, floor=0.0), equal_nan=True, rtol=1e-8, atol=1e-12)
    assert_close(scaled.snr(), e.snr(), **EXACT)


@FEW
@given(num_draws=st.integers(2, 6), levels=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=5), seed=SEEDS)
def test_the_higher_its_level_the_more_an_interval_covers_and_the_wider_it_is(num_draws, levels, seed):
    maps = randn(num_draws + 3, 2, 9, seed=seed)
    found = agreement(forecast(maps[:num_draws]), maps[num_draws:], levels=sorted(levels))
    for _, each in found.groupby(["pixels", "example"]):
        assert each["coverage"].is_monotonic_increasing and each["width"].is_monotonic_increasing
    quantiles = torch.stack([ExplanationDistribution(maps).quantile(level) for level in sorted(levels)])
    assert (quantiles.diff(dim=0) >= 0).all()


@FEW
@given(shares=st.lists(st.floats(0, 1), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_what_is_deleted_stays_deleted_while_the_share_grows(shares, seed):
    x = 1 + randn(2, 3, 4, 4, seed=seed).abs()
    order = random_order(2, (4, 4), seed=seed)
    gone = torch.stack([perturbed(x, order, share) == 0 for share in sorted(shares)])
    assert (gone[1:] | ~gone[:-1]).all()
    assert gone[:, 0, 0].flatten(1).sum(1).tolist() == [round(16 * share) for share in sorted(shares)]
