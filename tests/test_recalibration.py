"""Mending the spread: planted factors and floors are found, and nothing is tested where it was fitted."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from xuqlib.agreement import Forecast, agreement, forecast
from xuqlib.recalibration import Repair, compare, declared, leave_one_out, over_centres, recalibrate


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def too_narrow(factor, *, of_mean=0.0, floor=0.0):
    """A forecast whose std is too small by a factor, and held-out maps that show it."""
    mean, std = 2 * noise(6, 3000, seed=0), 0.1 + noise(6, 3000, seed=1).abs()
    truth = ((factor * std) ** 2 + (of_mean * mean) ** 2 + floor**2).sqrt()
    return Forecast(mean, std, 20), mean + truth * noise(4, 6, 3000, seed=2)


@pytest.mark.parametrize("by", ["score", "moments"])
def test_the_planted_factor_is_found(by):
    expected, held_out = too_narrow(6.0)
    repair = recalibrate(expected, held_out, by=by)
    assert repair.factor == pytest.approx(6, rel=0.03)  # 32,768 numbers: standard error about 0.5 %
    assert (repair.of_mean, repair.floor) == (0, 0)
    rows = agreement(repair(expected), held_out, levels=(0.5, 0.9)).groupby("level")["coverage"].mean()
    np.testing.assert_allclose(rows, [0.5, 0.9], atol=0.02)


def test_planted_floors_are_found_even_where_a_factor_alone_cannot_help():
    expected, held_out = too_narrow(3.0, of_mean=0.5, floor=0.8)
    repair = recalibrate(expected, held_out, floors=True)
    assert (repair.factor, repair.of_mean, repair.floor) == pytest.approx((3, 0.5, 0.8), rel=0.12)
    assert repair.score < recalibrate(expected, held_out).score


def test_the_fitted_factor_is_the_best_of_a_grid():
    expected, held_out = too_narrow(2.0, floor=1.0)  # the family is wrong, so this is not the planted factor

    def score(factor):
        rows = agreement(Repair(factor)(expected), held_out, levels=(0.9,))
        return rows.loc[rows["pixels"] == "all", "score"].mean()

    grid = np.geomspace(1, 8, 40)
    best = grid[np.argmin([score(factor) for factor in grid])]
    assert recalibrate(expected, held_out).factor == pytest.approx(best, rel=0.06)  # the grid's step is 5.5 %


def test_a_repair_adds_its_parts_as_variances():
    mended = Repair(2.0, 0.5, 3.0)(Forecast(torch.tensor([[4.0]]), torch.tensor([[1.0]]), 5))
    assert mended.std.item() == pytest.approx(math.sqrt(4 + 4 + 9))
    assert mended.num_draws == math.inf


def test_no_factor_mends_a_posterior_that_does_not_move():
    expected = Forecast(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="pass floors=True"):
        recalibrate(expected, torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="fit floors by='score'"):
        recalibrate(expected, torch.ones(1, 2, 3), by="moments", floors=True)
    assert recalibrate(expected, noise(4, 2, 3, seed=0), floors=True).floor > 0


def test_missing_maps_do_not_enter_a_repair():
    expected, held_out = too_narrow(4.0)
    gap = held_out.clone()
    gap[0, 0], expected.mean[1] = math.nan, math.nan
    assert recalibrate(expected, gap).factor == pytest.approx(4, rel=0.03)


def test_leaving_one_out_forecasts_each_draw_by_the_others():
    values = noise(4, 2, 3, seed=0)
    expected, held_out = leave_one_out(values)
    others = forecast(values[[0, 1, 3]])
    torch.testing.assert_close(expected.mean[4:6], others.mean)  # draw 2, two examples
    torch.testing.assert_close(expected.std[4:6], others.std)
    torch.testing.assert_close(held_out[0, 4:6], values[2])
    assert expected.num_draws == 3


def test_comparing_fits_on_one_half_and_tests_on_the_other():
    values, fit, test = noise(8, 6, 400, seed=0), noise(3, 6, 400, seed=1), noise(2, 6, 400, seed=2)
    fit[:, ::2] *= 10  # even examples: what is fitted there shows on the odd ones, and only there
    rows, repairs = compare([values], noise(6, 400, seed=3), fit, test, levels=(0.9,))
    mended = rows[(rows["version"] == "factor") & (rows["pixels"] == "all")].set_index("example")["width"]
    assert mended.loc[[1, 3, 5]].min() > 5 * mended.loc[[0, 2, 4]].max()
    assert sorted(mended.index) == list(range(6))
    assert set(repairs["version"]) == {"as it is", "factor", "floors"}


def test_the_best_candidate_is_chosen_where_it_is_fitted():
    truth = noise(6, 400, seed=0)
    good, bad = truth + noise(8, 6, 400, seed=1), noise(8, 6, 400, seed=2)
    fit, test = truth + noise(3, 6, 400, seed=3), truth + noise(2, 6, 400, seed=4)
    _, repairs = compare([bad, good], truth, fit, test, levels=(0.9,))
    assert (repairs["candidate"] == 1).all()


def test_a_single_map_is_given_floors_and_nothing_else():
    own, fit, test = noise(6, 50, seed=0), noise(3, 6, 50, seed=1), noise(2, 6, 50, seed=2)
    rows, _ = compare([own[None]], own, fit, test, levels=(0.9,), evidence=torch.ones(6, 50, dtype=torch.bool))
    assert set(rows["version"]) == {"floors"}
    assert {"blind", "declared", "precision", "recall"} <= set(rows)


def test_pixels_are_declared_where_the_interval_excludes_zero():
    expected = Forecast(torch.tensor([[3.0, -3.0, 1.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0, 2.0]]))
    evidence = torch.tensor([[True, False, True, False]])
    row = declared(expected, evidence).iloc[0]
    assert (row["declared"], row["precision"], row["recall"]) == (0.5, 0.5, 0.5)
    nothing = declared(Forecast(expected.mean, expected.std * 10), evidence).iloc[0]
    assert math.isnan(nothing["precision"]) and nothing["recall"] == 0


def test_an_interval_over_centres_covers_each_of_them():
    frame = pd.DataFrame({"seed": [0, 0, 1, 1], "name": "a", "score": [1.0, 3.0, 5.0, 5.0]})
    found = over_centres(frame, ["name"], "score").iloc[0]
    assert (found["score"], found["low"], found["high"], found["centres"]) == (3.5, 0.0, 5.0, 2)  # 2 ± 2, and 5 ± 0
