"""Mending the spread: planted factors and floors are found, and nothing is tested where it was fitted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from xuqlib import gradient, train_or_load
from xuqlib.lessons.recalibration import Repair, compare, declared, family, leave_one_out, recalibrate, roles, trial
from xuqlib.study.judging.coverage import Forecast, agreement, forecast, image_blind, unit_maps


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


def the_same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_no_network_is_tested_on_that_was_fitted_to_or_is_the_centre():
    members = [train_or_load("deep_ensemble", "planted", seed=0, progress=False).members, None]
    networks, ensembles = roles("planted", [5, 5], 1)
    assert [len(networks[name]) for name in ("own", "fit", "test")] == [1, 4, 5]
    assert list(ensembles) == ["networks_5"]
    assert the_same(networks["test"][0].network, members[0][0])  # seed 0 tests a centre of seed 1
    for tested in networks["test"]:
        assert not any(the_same(tested, other) for name in ("own", "fit") for other in networks[name])
        assert not any(the_same(tested, member) for member in ensembles["networks_5"])
    networks, ensembles = roles("planted", [5, 5, 1], 0)
    assert the_same(networks["own"][0].network, members[0][0]) and the_same(networks["fit"][3].network, members[0][4])


def test_a_posterior_after_training_offers_one_candidate_per_drop_rate():
    few, many = family("planted", "dropconnect_after", 0, num_draws=2, drop_rates=[0.01, 0.5])
    plain = train_or_load("deep_ensemble", "planted", seed=0, num_members=1, progress=False).network
    dropped = [
        [
            float((a == 0).double().mean())
            for a, b in zip(draws[0].network.parameters(), plain.parameters(), strict=True)
            if a.ndim > 1
        ]
        for draws in (few, many)
    ]
    np.testing.assert_allclose(dropped[0], 0.01, atol=0.02)  # weights, every layer; biases stay
    np.testing.assert_allclose(dropped[1], 0.5, atol=0.1)
    assert family("planted", "mc_dropout_all", 0, num_draws=3)[0].posterior == "mc_dropout"


def test_a_trial_puts_every_posterior_and_its_rivals_to_the_same_test():
    def linear(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.Linear(5, 1).double()

    networks = {"own": [linear(0)], "fit": [linear(1), linear(2)], "test": [linear(3)]}
    families, ensembles = (
        {"some": [[linear(s) for s in range(4, 9)]]},
        {"networks_3": [linear(s) for s in range(9, 12)]},
    )
    rows, repairs = trial(
        families,
        ensembles,
        networks,
        gradient,
        noise(6, 5, seed=0),
        None,
        others=(noise(9, 5, seed=1), None),
        levels=(0.9,),
    )
    assert list(dict.fromkeys(rows["posterior"])) == ["networks_3", "some", "one_map"]
    assert set(repairs["posterior"]) == set(rows["posterior"])
    test = unit_maps(networks["test"], gradient, noise(6, 5, seed=0), None)
    some = forecast(unit_maps(families["some"][0], gradient, noise(6, 5, seed=0), None))
    by_hand = agreement(some, test, levels=(0.9,))["score"].mean()
    mine = rows[(rows["posterior"] == "some") & (rows["version"] == "as it is")]
    assert mine["score"].mean() == pytest.approx(by_hand)
    even = torch.arange(6) % 2 == 0
    fit = unit_maps(networks["fit"], gradient, noise(6, 5, seed=0), None)
    fitted = repairs[(repairs["posterior"] == "some") & (repairs["version"] == "factor")].iloc[0]
    assert fitted["factor"] == pytest.approx(recalibrate(some.at(even), fit[:, even]).factor)
    blind = image_blind(unit_maps(networks["own"], gradient, noise(9, 5, seed=1), None)[0], (0.9,))
    by_hand = agreement(some, test, levels=(0.9,), band=blind)["score"].mean()
    assert mine["blind"].mean() == pytest.approx(by_hand)
