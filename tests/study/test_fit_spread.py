"""Mending a spread: planted factors and floors are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from xuqlib.study.judging.coverage import Forecast, agreement
from xuqlib.study.judging.recalibration import fit_spread


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def too_narrow(factor, *, of_mean=0.0, floor=0.0):
    """A forecast whose std is too small by a factor, and held-out maps that show it."""
    mean, std = 2 * noise(6, 3000, seed=0), 0.1 + noise(6, 3000, seed=1).abs()
    truth = ((factor * std) ** 2 + (of_mean * mean) ** 2 + floor**2).sqrt()
    return Forecast(mean, std, 20), mean + truth * noise(4, 6, 3000, seed=2)


def a_factor(f):
    return [f.std]


def with_floors(f):
    return [f.std, f.mean, torch.ones_like(f.mean)]


def test_the_planted_factor_is_found():
    expected, held_out = too_narrow(6.0)
    repair = fit_spread(expected, held_out, a_factor)
    assert repair.weights == (pytest.approx(6, rel=0.03),)  # 32,768 numbers: standard error about 0.5 %
    rows = agreement(repair(expected), held_out, levels=(0.5, 0.9)).groupby("level")["coverage"].mean()
    np.testing.assert_allclose(rows, [0.5, 0.9], atol=0.02)


def test_planted_floors_are_found_even_where_a_factor_alone_cannot_help():
    expected, held_out = too_narrow(3.0, of_mean=0.5, floor=0.8)
    repair = fit_spread(expected, held_out, with_floors)
    assert repair.weights == pytest.approx((3, 0.5, 0.8), rel=0.12)
    assert repair.score < fit_spread(expected, held_out, a_factor).score


def test_the_fitted_factor_is_the_best_of_a_grid():
    expected, held_out = too_narrow(2.0, floor=1.0)  # the family is wrong, so this is not the planted factor

    def score(factor):
        rows = agreement(Forecast(expected.mean, factor * expected.std), held_out, levels=(0.9,))
        return rows.loc[rows["pixels"] == "all", "score"].mean()

    grid = np.geomspace(1, 8, 40)
    best = grid[np.argmin([score(factor) for factor in grid])]
    found = fit_spread(expected, held_out, a_factor).weights[0]
    assert found == pytest.approx(best, rel=0.06)  # the grid's step is 5.5 %


def test_a_repair_adds_its_parts_as_variances():
    repair = fit_spread(*too_narrow(2.0, of_mean=0.5, floor=3.0), with_floors)
    mended = repair(Forecast(torch.tensor([[4.0]]), torch.tensor([[1.0]]), 5))
    a, b, c = repair.weights
    assert mended.std.item() == pytest.approx(math.sqrt(a**2 + (4 * b) ** 2 + c**2))
    assert (mended.mean.item(), mended.num_draws) == (4, math.inf)


def test_no_factor_mends_a_posterior_that_does_not_move():
    expected = Forecast(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="add one that is not the std"):
        fit_spread(expected, torch.ones(1, 2, 3), a_factor)
    assert fit_spread(expected, noise(4, 2, 3, seed=0), with_floors).weights[2] > 0


def test_missing_maps_do_not_enter_a_repair():
    expected, held_out = too_narrow(4.0)
    gap = held_out.clone()
    gap[0, 0], expected.mean[1] = math.nan, math.nan
    assert fit_spread(expected, gap, a_factor).weights[0] == pytest.approx(4, rel=0.03)
