"""Notebook 07, mending the spread: nothing is tested where it was fitted, and every posterior meets the same test."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import n07
from notebook_cells import definitions

from xuqlib import gradient, train_or_load
from xuqlib.study.judging.coverage import LEVELS, Forecast, agreement, forecast, image_blind, scaled_maps

cells = definitions("07", num_draws=2, drop_rates=[0.01, 0.5])


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_leaving_one_out_forecasts_each_draw_by_the_others():
    values = noise(4, 2, 3, seed=0)
    expected, held_out = cells.leave_one_out(values)
    others = forecast(values[[0, 1, 3]])
    torch.testing.assert_close(expected.mean[4:6], others.mean)  # draw 2, two examples
    torch.testing.assert_close(expected.std[4:6], others.std)
    torch.testing.assert_close(held_out[0, 4:6], values[2])
    assert expected.num_draws == 3


def compare(candidates, others, fit, test, *, repairs=cells.REPAIRS, evidence=None):
    band = image_blind(others, (0.9,))
    return cells.compare(candidates, fit, test, repairs=repairs, band=band, evidence=evidence, levels=(0.9,))


def test_comparing_fits_on_one_half_and_tests_on_the_other():
    values, fit, test = noise(8, 6, 400, seed=0), noise(3, 6, 400, seed=1), noise(2, 6, 400, seed=2)
    fit[:, ::2] *= 10  # even examples: what is fitted there shows on the odd ones, and only there
    rows, fitted = compare([values], noise(6, 400, seed=3), fit, test)
    mended = rows[(rows["version"] == "factor") & (rows["pixels"] == "all")].set_index("example")["width"]
    assert mended.loc[[1, 3, 5]].min() > 5 * mended.loc[[0, 2, 4]].max()
    assert sorted(mended.index) == list(range(6))
    assert set(fitted["version"]) == {"as it is", "factor", "floors"}
    assert (fitted.loc[fitted["version"] == "as it is", "factor"] == 1).all()


def test_the_best_candidate_is_chosen_where_it_is_fitted():
    truth = noise(6, 400, seed=0)
    good, bad = truth + noise(8, 6, 400, seed=1), noise(8, 6, 400, seed=2)
    fit, test = truth + noise(3, 6, 400, seed=3), truth + noise(2, 6, 400, seed=4)
    _, fitted = compare([bad, good], truth, fit, test)
    assert (fitted["candidate"] == 1).all()


def test_a_single_map_is_given_floors_and_nothing_else():
    own, fit, test = noise(6, 50, seed=0), noise(3, 6, 50, seed=1), noise(2, 6, 50, seed=2)
    evidence = torch.ones(6, 50, dtype=torch.bool)
    rows, _ = compare([own[None]], own, fit, test, repairs=cells.ONE_MAP, evidence=evidence)
    assert set(rows["version"]) == {"floors"}
    assert {"blind", "declared", "precision", "recall"} <= set(rows)


def test_pixels_are_declared_where_the_interval_excludes_zero():
    expected = Forecast(torch.tensor([[3.0, -3.0, 1.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0, 2.0]]))
    evidence = torch.tensor([[True, False, True, False]])
    found = cells.declared(expected, evidence)
    assert {name: each.item() for name, each in found.items()} == {"declared": 0.5, "precision": 0.5, "recall": 0.5}
    nothing = cells.declared(Forecast(expected.mean, expected.std * 10), evidence)
    assert nothing["precision"].isnan().all() and nothing["recall"].item() == 0


def the_same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_no_network_is_tested_on_that_was_fitted_to_or_is_the_centre():
    first = train_or_load("deep_ensemble", "planted", seed=0, progress=False).members
    networks = cells.roles("planted", [5, 5], 1)
    assert [len(networks[name]) for name in ("own", "fit", "test")] == [1, 4, 5]
    five = cells.plain("planted", 1, 0, 5)
    assert the_same(networks["test"][0].network, first[0])  # seed 0 tests a centre of seed 1
    for tested in networks["test"]:
        assert not any(the_same(tested, other) for name in ("own", "fit") for other in networks[name])
        assert not any(the_same(tested, member) for member in five)
    networks = cells.roles("planted", [5, 5, 1], 0)
    assert the_same(networks["own"][0].network, first[0]) and the_same(networks["fit"][3].network, first[4])


def test_a_posterior_after_training_offers_one_candidate_per_drop_rate():
    found = cells.posteriors_of("planted", [5, 5], 0, ["mc_dropout_all"])
    assert list(found) == ["networks_5", "mc_dropout_all", "dropconnect_after", "one_map"]
    assert found["mc_dropout_all"][0].posterior == "mc_dropout"
    plain = train_or_load("deep_ensemble", "planted", seed=0, num_members=1, progress=False).network
    assert len(found["one_map"][0]) == 1 and the_same(found["one_map"][0][0].network, plain)
    dropped = [
        [
            float((a == 0).double().mean())
            for a, b in zip(draws[0].network.parameters(), plain.parameters(), strict=True)
            if a.ndim > 1
        ]
        for draws in found["dropconnect_after"]
    ]
    np.testing.assert_allclose(dropped[0], 0.01, atol=0.02)  # weights, every layer; biases stay
    np.testing.assert_allclose(dropped[1], 0.5, atol=0.1)


def test_a_trial_puts_every_posterior_and_its_rivals_to_the_same_test():
    def linear(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.Linear(5, 1).double()

    def unit(draws, x, target):
        return scaled_maps(draws, gradient, x, target)

    networks = {"own": [linear(0)], "fit": [linear(1), linear(2)], "test": [linear(3)]}
    posteriors = {
        "networks_3": [[linear(s) for s in range(9, 12)]],
        "some": [[linear(s) for s in range(4, 9)]],
        "one_map": [networks["own"]],
    }
    x, others = noise(6, 5, seed=0), noise(9, 5, seed=1)
    rows, fitted = cells.trial(
        posteriors,
        networks,
        unit,
        x,
        None,
        others=(others, None),
        evidence=None,
        repairs=cells.REPAIRS,
        levels=(0.9,),
    )
    assert list(dict.fromkeys(rows["posterior"])) == ["networks_3", "some", "one_map"]
    assert set(fitted["posterior"]) == set(rows["posterior"])
    assert set(rows.loc[rows["posterior"] == "one_map", "version"]) == {"floors"}
    test, some = unit(networks["test"], x, None), forecast(unit(posteriors["some"][0], x, None))
    mine = rows[(rows["posterior"] == "some") & (rows["version"] == "as it is")]
    assert mine["score"].mean() == pytest.approx(agreement(some, test, levels=(0.9,))["score"].mean())
    blind = image_blind(unit(networks["own"], others, None)[0], (0.9,))
    assert mine["blind"].mean() == pytest.approx(agreement(some, test, levels=(0.9,), band=blind)["score"].mean())

    def factor(posterior, expected, held_out):
        row = fitted[(fitted["posterior"] == posterior) & (fitted["version"] == "factor")].iloc[0]
        assert row["factor"] == pytest.approx(cells.factor(expected, held_out).weights[0])

    even = torch.arange(6) % 2 == 0
    factor("some", some.at(even), unit(networks["fit"], x, None)[:, even])
    factor("networks_3", *cells.leave_one_out(unit(posteriors["networks_3"][0], x, None)[:, even]))


def test_a_gain_pairs_examples_at_the_same_centre():
    rows = [("a", 0, 1, 3.0), ("a", 0, 0, 1.0), ("b", 0, 0, 4.0), ("b", 0, 1, 2.0), ("b", 1, 0, 9.0)]
    frame = pd.DataFrame(rows, columns=["posterior", "seed", "example", "score"]).assign(version="factor")
    found = cells.gain(frame, ("a", "factor"), ("b", "factor"), times=2.0).set_index("example")["gain"]
    assert found.to_dict() == {0: (8 - 1) / 5, 1: (4 - 3) / 5}  # the mean score of b is 5


def test_the_figure_of_reliability_has_a_panel_per_version_and_a_line_per_posterior():
    frame = pd.DataFrame(
        [(version, name, level, level / 2) for version in ("x", "y") for name in ("a", "b") for level in LEVELS],
        columns=["version", "posterior", "level", "coverage"],
    )
    figure = n07.reliability(frame, title="coverage")
    assert [axes.get_title() for axes in figure.axes] == ["x", "y"]
    *lines, diagonal = figure.axes[1].lines
    assert [line.get_ydata().tolist() for line in lines] == [[level / 2 for level in LEVELS]] * 2
    assert list(diagonal.get_ydata()) == [0, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
