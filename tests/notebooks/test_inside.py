"""Every setting from the same maps of logits against `ua_backprop` one at a time; scores and differences by hand."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import EXACT, randn
from helpers import n18
from notebook_cells import definitions
from torch import nn
from torch.testing import assert_close

from xuqlib import Draws, Notebook, attribute_uncertainty, ua_backprop, uncertainties
from xuqlib.explainers.baselines import make_baseline
from xuqlib.metrics.deletion import pixel_order
from xuqlib.study.intervals import over_examples
from xuqlib.study.judging.blurring import auc_urr, uncertainty_curves
from xuqlib.study.judging.rivals import distance_to_blur, fullgrad_of_prediction
from xuqlib.study.training.networks import mini_vgg
from xuqlib.ua_backprop import SETTINGS, Setting
from xuqlib.uncertainty import KINDS

inside = definitions("18", num_steps=2, num_path=2, BLOCK=3, num_scanned=40)
steps3 = definitions("18", num_steps=3)
SIGNED = ("rival", "signed gradient x input of U")
X = randn(4, 3, 8, 8).sigmoid()


def small(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3).eval().double()


DRAWS = Draws([small(seed) for seed in (1, 2, 3)])
SOME = [
    Setting("softmax", 0.1, "minmax", "softmax", 1.0),
    Setting("softmax", 0.01, "raw", "sum", 1.0),
    Setting("row-normalised", 0.1, "raw", "softmax", 0.3),
    Setting("ratio", 0.1, "minmax", "sum", 1.0),
    Setting("softmax", 0.02, "minmax", "softmax", 10.0),
]


class Line(nn.Module):
    """Two classes, whose logits are +-a x for the first pixel x of the image."""

    def __init__(self, a):
        super().__init__()
        self.a, self.training = a, False

    def forward(self, x):
        z = self.a * x[:, 0, 0, 0]
        return torch.stack([z, -z], 1)


LINES = Draws([Line(3.0), Line(-1.0)])


def one_pixel():
    x = torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    x[:, :, 0, 0] = torch.tensor([1.0, 0.5])[:, None]
    return x


def test_every_setting_from_the_same_maps_is_that_of_ua_backprop():
    found = inside.ua_maps(DRAWS, X, SOME)
    assert list(found) == SOME
    for chosen, values in found.items():
        assert_close(values, ua_backprop(DRAWS, X, **arguments(chosen)), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_shares_of_each_kind_spread_by_the_same_maps_are_those_of_ua_backprop(kind):
    for chosen in SOME:
        shares = inside.logit_shares(inside.logits_of(DRAWS, X), chosen, kind)
        values = inside.spread(shares, inside.logit_maps(DRAWS, X, chosen.psi), chosen)
        assert_close(values, ua_backprop(DRAWS, X, kind, **arguments(chosen)), **EXACT)


def arguments(chosen):
    """The fields of a setting that have an effect, as `ua_backprop` wants them."""
    without = {"tau1"} if chosen.coefficients == "ratio" else set()
    without |= {"tau2"} if chosen.normalise == "sum" else set()
    return {name: value for name, value in chosen._asdict().items() if name not in without}


def test_the_score_is_the_area_under_the_fall_by_hand():
    x = one_pixel()
    marks = torch.zeros(2, 8, 8, dtype=torch.float64)
    marks[:, 0, 0] = 1
    frame = steps3.scored(LINES, x, {"right": marks, "wrong": -marks}).set_index(["map", "example"])
    moved = torch.where(x > 0, make_baseline("blurred", x), x)
    u, left = uncertainties(LINES, x).epistemic, uncertainties(LINES, moved).epistemic
    fall = (u - left) / u
    assert (fall > 0.1).all()
    # The pixel goes at the first of three steps, and stays away: half a step on the way up, two at the top.
    np.testing.assert_allclose(frame.loc["right", "auc"], fall * 2.5 / 3)
    np.testing.assert_allclose(frame.loc["wrong", "auc"], 0, atol=1e-12)
    assert frame["kept"].tolist() == [1, 1, 1, 1]


def test_the_score_says_how_often_the_answer_is_kept_and_watches_the_kind_that_is_asked_for():
    x, order = X[:2], pixel_order(X[:2].sum(1))
    maps = {"bright": x.sum(1)}
    for kind in KINDS:
        shares = [0, 0.025, 0.05]
        curves = uncertainty_curves(DRAWS, x, order, kind, shares=shares)
        frame = inside.scored(DRAWS, x, maps, kind)
        np.testing.assert_allclose(frame["auc"], auc_urr(curves, 0.05))
    marks = torch.zeros(1, 8, 8, dtype=torch.float64)
    marks[0, 0, 0] = 1
    turned = one_pixel()[:1] * -1
    turned[0, 0, 0, 1:3] = turned[0, 0, 1:3, :3] = 60.0  # so the blurred first pixel has the other sign
    assert steps3.scored(LINES, turned, {"": marks})["kept"].tolist() == [0]


def test_a_sweep_has_a_row_for_each_setting_and_example():
    frame = inside.sweep(DRAWS, X, SOME)
    assert list(frame) == [*Setting._fields, "example", "auc", "kept"]
    assert len(frame) == len(SOME) * len(X)
    maps = {"": inside.ua_maps(DRAWS, X, SOME[2:3])[SOME[2]]}
    np.testing.assert_allclose(frame["auc"][8:12], inside.scored(DRAWS, X, maps)["auc"])
    assert (frame["coefficients"][8:12] == "row-normalised").all()


def test_the_best_setting_has_the_largest_mean_over_data_sets_however_many_examples_each_has():
    rows = [("a", SOME[0], 0.9)] * 9 + [("b", SOME[0], 0.1)] + [("a", SOME[1], 0.6)] * 9 + [("b", SOME[1], 0.5)]
    frame = pd.DataFrame([{"dataset": name, **chosen._asdict(), "auc": auc} for name, chosen, auc in rows])
    assert inside.best(frame) == SOME[1]


def test_own_shares_run_from_all_to_an_even_part():
    chosen = SOME[0]
    settings = [chosen._replace(tau1=1e-9), chosen._replace(tau1=inside.VERY_LARGE), SOME[3]]
    own = inside.own_shares(DRAWS, X, settings)["own"].to_numpy().reshape(3, 4)
    np.testing.assert_allclose(own, np.array([[1], [1 / 3], [1 / 2]]) + np.zeros(4), atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_changed_maps_change_one_part_and_stay_complete(name):
    maps, parts = inside.changed_maps(DRAWS, X, name), uncertainties(DRAWS, X)
    other = "raw" if SETTINGS[name].psi == "minmax" else "minmax"
    for (part, change), values in maps.items():
        if part in ("", "coefficients", "logit map", "normalisation"):
            assert_close(values.flatten(1).sum(1), parts.epistemic, **EXACT)
        elif part == "kind":
            assert_close(values.flatten(1).sum(1), getattr(parts, change.split()[0]), **EXACT)
    expected = {
        inside.UNCHANGED: {},
        ("coefficients", "row-normalised"): {"coefficients": "row-normalised"},
        ("coefficients", "ratio"): {"coefficients": "ratio"},
        inside.EVEN: {"tau1": inside.VERY_LARGE},
        ("logit map", f"FullGrad, {other}"): {"psi": other},
        ("logit map", "gradient x input"): {"explainer": "gradient_x_input"},
        ("logit map", "integrated gradients"): {"explainer": "integrated_gradients", "num_steps": 2},
    }
    for key, changes in expected.items():
        assert_close(maps[key], ua_backprop(DRAWS, X, setting=name, **changes), **EXACT)
    assert_close(maps[inside.FULLGRAD], fullgrad_of_prediction(DRAWS, X, setting=name), **EXACT)
    assert_close(maps[SIGNED], attribute_uncertainty(DRAWS, X), **EXACT)
    assert_close(maps["rival", "|x - blur|"], distance_to_blur(DRAWS, X), **EXACT)
    assert len(maps) == 17
    same = [key for key, values in maps.items() if torch.allclose(values, maps[inside.UNCHANGED], rtol=1e-6, atol=0)]
    # With a small tau1 and unsure draws, either softmax leaves each share with its own logit.
    assert set(same) - {("coefficients", "row-normalised")} == {inside.UNCHANGED}


def test_an_ablation_scores_every_map_and_says_what_it_looks_like():
    frame = inside.ablation(DRAWS, X)
    assert len(frame) == 2 * 17 * 4
    same = frame[frame["change"] == "unchanged"]
    assert same["unchanged"].tolist() == pytest.approx([1] * 8)
    assert frame.loc[frame["change"] == inside.FULLGRAD[1], "prediction"].tolist() == pytest.approx([1] * 8)
    assert frame.loc[frame["change"] == "random", "unchanged"].abs().max() < 0.5
    maps = {"": ua_backprop(DRAWS, X, setting="recommended")}
    alone = inside.scored(DRAWS, X, maps)
    np.testing.assert_allclose(same.loc[same["setting"] == "recommended", "auc"], alone["auc"])


def test_maps_of_each_kind_are_scored_by_each_uncertainty():
    frame = inside.crossed(DRAWS, X).set_index(["setting", "kind", "uncertainty"])["auc"]
    assert len(frame) == 2 * 3 * 3 * 4
    maps = {"": ua_backprop(DRAWS, X, "total", setting="paper")}
    alone = inside.scored(DRAWS, X, maps, "aleatoric")["auc"]
    np.testing.assert_allclose(frame.loc["paper", "total", "aleatoric"], alone)


def test_maps_of_few_draws_are_scored_by_the_uncertainty_over_all():
    frame = inside.few_draws(DRAWS, X, counts=[2, 3]).set_index(["setting", "name", "draws"])["auc"]
    for count in (2, 3):
        maps = {"": ua_backprop(DRAWS[:count], X, setting="recommended")}
        alone = inside.scored(DRAWS, X, maps)["auc"]
        np.testing.assert_allclose(frame.loc["recommended", "UA-Backprop", count], alone)
    maps = {"": fullgrad_of_prediction(DRAWS, X)}
    alone = inside.scored(DRAWS, X, maps)["auc"]
    np.testing.assert_allclose(frame.loc["paper", inside.FULLGRAD[1], 3], alone)


def test_a_part_that_is_put_in_is_tried_and_stays_complete():
    own = definitions("18", num_steps=2, num_path=2)
    own.COEFFICIENTS["own logit"] = lambda logits, tau1: torch.eye(3).double().expand(*logits.shape, -1)
    own.PSIS["even"] = lambda network, x: torch.ones(len(x), 3, 8, 8).double()
    own.NORMALISATIONS["first pixel"] = lambda shares, maps, tau2: shares.sum(1)[:, None, None] * one_pixel()[:1, 0]
    own.EXPLAINERS["half"] = lambda network, x, target: x / 2
    own.CONTROLS["zero"] = lambda draws, x: torch.zeros_like(x[:, 0])
    maps = own.changed_maps(DRAWS, X, "paper")
    assert len(maps) == 17 + 5
    epistemic = uncertainties(DRAWS, X).epistemic
    for key in [("coefficients", "own logit"), ("logit map", "FullGrad, even"), ("logit map", "half")]:
        assert_close(maps[key].flatten(1).sum(1), epistemic, **EXACT)
    assert_close(maps["normalisation", "first pixel"][:, 0, 0], epistemic, **EXACT)
    assert maps["rival", "zero"].abs().max() == 0
    assert set(own.ablation(DRAWS, X[:1])["change"]) >= {"own logit", "FullGrad, even", "half", "first pixel", "zero"}


def test_lots_of_images_are_put_together_in_order():
    tasks = {"a": (DRAWS, X), "b": (DRAWS, X[:1])}
    frame = inside.in_lots(partial(inside.sweep, settings=SOME[:2]), tasks, rows=3)
    whole = inside.sweep(DRAWS, X, SOME[:2])
    found = frame[frame["dataset"] == "a"].sort_values([*Setting._fields, "example"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(
        found.drop(columns="dataset"), whole.sort_values([*Setting._fields, "example"]).reset_index(drop=True)
    )
    assert frame.loc[frame["dataset"] == "b", "example"].tolist() == [0, 0]


def test_gains_are_taken_on_the_same_example_and_setting():
    rows = [("p", "unchanged", 0, 0.2), ("p", "unchanged", 1, 0.3), ("p", "other", 1, 0.9), ("p", "other", 0, 0.1)]
    rows += [("q", "unchanged", 0, 0.5), ("q", "other", 0, 0.5), ("q", "unchanged", 1, np.nan), ("q", "other", 1, 1.0)]
    frame = pd.DataFrame(rows, columns=["setting", "change", "example", "auc"]).assign(dataset="toy")
    found = inside.gains(frame).set_index(["setting", "change", "example"])["auc"]
    assert found.to_dict() == pytest.approx({("p", "other", 1): 0.6, ("p", "other", 0): -0.1, ("q", "other", 0): 0})


def test_strata_are_of_absolute_uncertainty_in_nats():
    found = inside.strata_of([0.5, 0.1, 0.011, 0.01, 0.0])
    assert found == ["above 0.1", "0.01 to 0.1", "0.01 to 0.1", "below 0.01", "below 0.01"]


def test_images_of_each_stratum_are_drawn_from_those_that_were_scanned():
    draws, x, names = inside.unsure("digits", "validation", wanted=4, posterior="laplace", num_draws=3)
    assert (len(draws), x.shape[1:], x.dtype) == (3, (1, 8, 8), torch.float64)
    u = uncertainties(draws, x).epistemic
    low = torch.tensor([inside.STRATA[name] for name in names])
    high = torch.tensor([{0.1: np.inf, 0.01: 0.1, 0.0: 0.01}[inside.STRATA[name]] for name in names])
    assert ((u > low) & (u <= high)).all()
    assert pd.Series(names).value_counts().max() <= 4
    _, decide = inside.deciding((draws, x, names))
    assert torch.equal(decide, x[u > 0.1])


def test_a_relative_temperature_is_one_in_standard_deviations_and_keeps_the_order_of_each_map():
    maps, shares = randn(1, 1, 5, 5).exp(), torch.ones(1, 1, dtype=torch.float64)
    for tau2 in (0.3, 3.0):
        found = inside.NORMALISATIONS["relative"](shares, maps, tau2=tau2)
        plain = (maps[0] / (tau2 * maps.std(correction=0))).flatten().softmax(0).view(1, 5, 5)
        assert_close(found, plain, **EXACT)
        assert torch.equal(pixel_order(found), pixel_order(maps[0]))
        assert_close(inside.NORMALISATIONS["relative"](shares, 140 * maps, tau2=tau2), found, **EXACT)


def test_peaks_are_the_largest_weights_over_their_mean():
    own = definitions("18", BLOCK=3)
    own.PSIS["minmax"] = lambda network, x: torch.eye(2).double().expand(len(x), 2, 2, 2)
    # a map of 1, 0, 0, 1, whose standard deviation is 1/2, so a softmax of 1 and 0, and of 2 and 0
    plain, relative = (own.peaks(DRAWS, X[:2], form, 1.0).tolist() for form in ("softmax", "relative"))
    e = np.exp(1)
    assert plain == pytest.approx([4 * e / (2 * e + 2)] * 2)
    assert relative == pytest.approx([4 * e**2 / (2 * e**2 + 2)] * 2)


def test_temperatures_are_moved_one_at_a_time_and_compared_on_the_same_image():
    auc = {(1e-5, 1.0): 0.3, (0.1, 1.0): 0.2, (1e-5, 10.0): 0.35, (0.1, 10.0): 0.9}
    paper = SETTINGS["paper"]
    rows = [
        {"dataset": "a", "example": i, "auc": value + 0.01 * i, **paper._replace(tau1=one, tau2=two)._asdict()}
        for (one, two), value in auc.items()
        for i in range(3)
    ]
    other = {**paper._replace(normalise="relative", tau2=3.0)._asdict(), "dataset": "a", "auc": 0.4}
    tables = {"paper": pd.DataFrame(rows), "relative": pd.DataFrame([{**other, "example": i} for i in range(3)])}
    space = definitions("18", paper=paper)
    found = space.against_frozen(tables)
    means = found.groupby(["moved", "at"])["auc"].mean().to_dict()
    wanted = {("tau1", 1e-5): 0, ("tau1", 0.1): -0.1, ("tau2", 1.0): 0, ("tau2", 10.0): 0.05}
    assert means == pytest.approx({**wanted, ("tau2, relative", 3.0): 0.4 - 0.31})
    figure = n18.temperature_dots(over_examples(found, ["dataset", "moved", "at"], "auc"), frozen=paper)
    told = " ".join(figure.get_suptitle().split())
    assert told == "Moved alone, tau1 changes AUC-URR by up to 0.100, and tau2 by up to 0.050"


@pytest.mark.parametrize(("gain", "verdicts"), [(0.1, ["fails"] * 3), (0.004, ["holds"] * 3)])
def test_what_was_chosen_is_judged_on_other_images(gain, verdicts):
    """The frozen settings lose `gain` against those chosen, and these as much against the relative form."""
    chosen = {name: setting._replace(tau1=0.5) for name, setting in SETTINGS.items()}
    chosen["relative"] = SETTINGS["paper"]._replace(normalise="relative")
    scores = dict.fromkeys(SETTINGS.values(), 0.3) | {chosen[name]: 0.3 + gain for name in SETTINGS}
    scores[chosen["relative"]] = 0.3 + 2 * gain
    best = [chosen[name] for name in SETTINGS]
    rows = [
        {**setting._asdict(), "dataset": "toy", "example": i, "auc": auc + 0.001 * (i % 2) * (setting in best)}
        for setting, auc in scores.items()
        for i in range(6)
    ]
    study = Notebook("18", preset="quick", seed=0)
    inside.judge_chosen(study, pd.DataFrame(rows), chosen)
    assert [claim["value"] for claim in study._claims] == pytest.approx([-gain, -gain, gain], abs=0.001)
    assert [claim["verdict"] for claim in study._claims] == verdicts
    assert study._claims[2]["test"] == "from -0.01 to 0.01"


def ablated(own, signed, ratio):
    values = {inside.UNCHANGED: own, SIGNED: signed, ("coefficients", "ratio"): ratio}
    controls = [inside.EVEN, inside.SHUFFLED, inside.FULLGRAD, ("rival", "|x - blur|"), ("rival", "random")]
    values |= {("coefficients", "row-normalised"): own} | dict.fromkeys(controls, 0.4)
    about = {"dataset": "toy", "setting": "paper", "prediction": 0.7}
    rows = []
    for (part, change), auc in values.items():
        rows += [about | {"part": part, "change": change, "example": i, "auc": auc + 0.001 * i} for i in range(4)]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("values", "better", "other", "signed"),
    [((0.6, 0.9, 0.7), "holds", "holds", "holds"), ((0.2, 0.1, 0.205), "fails", "fails", "fails")],
)
def test_parts_are_judged_against_controls_other_coefficients_and_signed_gradients(values, better, other, signed):
    study = Notebook("18", preset="quick", seed=0)
    own, signs, ratio = values
    inside.judge_parts(study, ablated(own, signs, ratio))
    verdicts = [claim["verdict"] for claim in study._claims]
    assert verdicts == [*[better] * 5, other, signed, "holds"]
    assert study._claims[5]["value"] == pytest.approx(ratio - own)
    assert study._claims[7]["value"] == pytest.approx(0.2)


def test_the_best_variant_is_what_signed_gradients_have_to_beat():
    study = Notebook("18", preset="quick", seed=0)
    inside.judge_parts(study, ablated(0.5, 0.55, 0.6))
    assert study._claims[6]["verdict"] == "fails"
    assert study._claims[6]["value"] == pytest.approx(-0.05)


def test_the_most_draws_are_judged_against_the_fewest_and_drawn():
    rows = []
    for posterior, gain in {"a": 0.1, "b": -0.1}.items():
        for name in ("UA-Backprop", inside.EVEN[1], inside.FULLGRAD[1]):
            for count in (2, 5) if name == "UA-Backprop" else (5,):
                about = {"dataset": "toy", "posterior": posterior, "setting": "paper", "name": name, "draws": count}
                rows += [about | {"example": i, "auc": 0.3 + gain * (count == 5)} for i in range(3)]
    frame, study = pd.DataFrame(rows), Notebook("18", preset="quick", seed=0)
    inside.judge_draws(study, frame)
    assert [claim["verdict"] for claim in study._claims] == ["holds", "fails"]
    space = definitions("18", cases=["dataset", "posterior", "setting"])
    found = space.against_all(frame.assign(auc=frame["auc"] + 0.1 * (frame["name"] == inside.EVEN[1])))
    points = over_examples(found, ["dataset", "posterior", "setting", "name"], "auc")
    means = points.set_index(["posterior", "name"])["auc"].to_dict()
    few = "UA-Backprop, fewest draws"
    wanted = {("a", few): -0.1, ("a", inside.EVEN[1]): 0.1, ("a", inside.FULLGRAD[1]): 0.0}
    wanted |= {("b", few): 0.1, ("b", inside.EVEN[1]): 0.1, ("b", inside.FULLGRAD[1]): 0.0}
    assert means == pytest.approx(wanted)
    figure = n18.draws_dots(points)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    told = " ".join(figure.get_suptitle().split())
    assert told.startswith("The fewest draws are worse than all in 1 of 2 cases;") and told.endswith("in 2 of 4")
