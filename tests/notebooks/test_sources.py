"""Maps of every kind at once against one at a time, controls and scores by hand, verdicts that can go either way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import EXACT, randn
from helpers import n09
from notebook_cells import definitions
from torch import nn
from torch.testing import assert_close

from xuqlib import Draws, Notebook, ua_backprop, uncertainties
from xuqlib.study.data.planted import kinds
from xuqlib.study.training.networks import mini_vgg
from xuqlib.ua_backprop import SETTINGS, class_maps
from xuqlib.uncertainty import KINDS

lesson = definitions("09")
X = randn(5, 3, 8, 8).sigmoid()


def small(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3).eval().double()


DRAWS = Draws([small(seed) for seed in (1, 2)])
# Two pictures of each kind but plain, of 4 x 4 pixels: the deciding square is top left, the unseen one bottom right.
KIND = np.array(["plain", "ambiguous", "ambiguous", "rare", "rare", "unseen", "unseen"])


def masks():
    found = {name: torch.zeros(7, 4, 4, dtype=torch.bool) for name in ("evidence", "ambiguous", "novel")}
    found["evidence"][:, :2, :2] = found["ambiguous"][1:3, :2, :2] = found["novel"][3:5, :2, :2] = True
    found["novel"][5:, 2:, 2:] = True
    return found


def test_the_masks_of_these_tests_are_those_of_planted_pictures():
    assert list(kinds({name: mask.numpy() for name, mask in masks().items()})) == list(KIND)


@pytest.mark.parametrize("setting", SETTINGS)
def test_all_maps_at_once_are_those_of_ua_backprop(setting):
    many = randn(18, 3, 8, 8).sigmoid()  # more than are made in one pass
    found = lesson.maps_of(DRAWS, many, settings=[setting])
    for kind in KINDS:
        assert_close(found[kind, setting], ua_backprop(DRAWS, many, kind, setting=setting), **EXACT)


def test_the_controls_are_maps_of_all_logits_and_of_the_predicted_one():
    found = lesson.maps_of(DRAWS, X, settings=["recommended"])
    total, predicted = uncertainties(DRAWS, X).total, DRAWS(X).softmax(-1).mean(0).argmax(1)
    even, own = torch.zeros(5, 8, 8, dtype=X.dtype), torch.zeros(5, 8, 8, dtype=X.dtype)
    for network in DRAWS:
        maps = class_maps(network, X, psi="raw")
        for i in range(5):
            own[i] += total[i] / 2 * maps[i, predicted[i]] / maps[i, predicted[i]].sum()
            for label in range(3):
                even[i] += total[i] / 6 * maps[i, label] / maps[i, label].sum()
    assert set(found) == {(name, "recommended") for name in (*KINDS, "even shares", "prediction")}
    assert_close(found["even shares", "recommended"], even, **EXACT)
    assert_close(found["prediction", "recommended"], own, **EXACT)


def test_a_row_that_is_added_to_the_shares_is_spread_like_the_others(monkeypatch):
    twice = lambda logits, c: 2 * lesson.evenly(logits, c)  # noqa: E731
    monkeypatch.setitem(lesson.SHARES, "twice", twice)
    found = lesson.maps_of(DRAWS, X, settings=["paper"])
    assert_close(found["twice", "paper"], 2 * found["even shares", "paper"], **EXACT)


def test_every_map_of_a_kind_is_complete_and_the_gap_says_where_it_is_not():
    found, parts = lesson.maps_of(DRAWS, X, settings=SETTINGS), uncertainties(DRAWS, X)
    assert lesson.gaps(found, parts).shape == (6, 5)
    assert lesson.gaps(found, parts).max() < 1e-13
    assert parts.total[2] > 1 > parts.epistemic[2]
    found["total", "paper"][2, 0, 0] += 0.25
    found["epistemic", "paper"][2, 0, 0] += 0.25
    gap = lesson.gaps(found, parts)
    assert_close(gap[0, 2], 0.25 / parts.total[2], **EXACT)
    assert gap[2, 2].item() == pytest.approx(0.25, abs=1e-12)  # in nats, where U is below 1
    assert gap[:, :2].max() < 1e-13


def test_sharpened_networks_answer_alike_with_larger_logits_and_leave_the_network_alone():
    assert_close(lesson.Sharpened(DRAWS[0], 3.0)(X), 3 * DRAWS[0](X), **EXACT)
    assert not any(module.training for module in DRAWS[0].modules())


class Line(nn.Module):
    """Two classes, whose logits are +-a x for the sum x of the picture; its own bias makes FullGrad's map."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x):
        z = self.a * x.flatten(1).sum(1)
        return torch.stack([z, -z], 1)


def test_of_sharper_draws_the_map_keeps_the_uncertainty_and_the_gradient_goes_to_nothing():
    x = torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)  # sums to 1
    frame = lesson.sharpening([Line(1.0), Line(-1.0)], x, [1, 20])
    value = frame.set_index(["quantity", "factor"])["value"]
    # Two sure draws that contradict each other: the entropy of a fair coin, and no slope.
    assert value["uncertainty", 20] == pytest.approx(np.log(2))
    assert value["sum of UA-Backprop", 20] == pytest.approx(np.log(2))
    assert value["sum of input x gradient", 20] == pytest.approx(0, abs=1e-12)
    assert value["own share", 20] == pytest.approx(0.5)
    # U = log 2 - H(p), p = 1 / (1 + exp(-2 z)); dU/dz = 2 p (1 - p) 2 z; and J = +-p (1 - p).
    p = 1 / (1 + np.exp(-2))
    assert value["uncertainty", 1] == pytest.approx(np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p))
    assert value["sum of input x gradient", 1] == pytest.approx(4 * p * (1 - p))
    assert value["own share", 1] == pytest.approx(1 / (1 + np.exp(-2 * p * (1 - p) / SETTINGS["paper"].tau1)))


def test_patch_scores_look_at_the_patch_of_each_kind():
    evidence = masks()["evidence"].double()
    frame = lesson.patch_scores({("all on evidence", "paper"): evidence}, masks(), KIND)
    found = frame.groupby("patch", sort=False)[["mass", "rank", "chance"]].mean()
    assert list(found.index) == ["ambiguous", "rare", "unseen", "unseen: evidence"]
    assert list(frame["example"]) == [1, 2, 3, 4, 5, 6, 5, 6]
    np.testing.assert_allclose(found["mass"], [1, 1, 0, 1])
    np.testing.assert_allclose(found["rank"], [1, 1, 0, 1])
    np.testing.assert_allclose(found["chance"], 0.25)


def test_a_flat_map_finds_by_chance():
    frame = lesson.patch_scores({("flat", lesson.ALONE): torch.full((7, 4, 4), 0.2)}, masks(), KIND)
    np.testing.assert_allclose(frame[["rank", "mass", "chance"]], 0.25)


def test_likeness_is_one_for_equal_maps_and_undefined_for_constant_ones():
    ramp = torch.arange(16.0).view(1, 4, 4)
    same = {(name, "paper"): torch.cat([ramp, -ramp]) for name in (*KINDS, "even shares")}
    same["prediction", "paper"] = torch.cat([-ramp, torch.ones_like(ramp)])
    found = {pair: lesson.likeness(same, pair, "paper") for pair in lesson.PAIRS}
    assert found["total, epistemic"].tolist() == pytest.approx([1, 1])
    assert found["epistemic, other picture"].tolist() == pytest.approx([-1, -1])
    assert found["epistemic, prediction"].tolist() == pytest.approx([-1, np.nan], nan_ok=True)


def notebook():
    return Notebook("09", preset="quick", seed=0, dataset="planted")


def test_completeness_is_claimed_in_both_precisions_and_the_networks_stay_as_they_were():
    study = notebook()
    lesson.judge_completeness(study, {"toy": DRAWS}, {"toy": X})
    assert [claim["verdict"] for claim in study._claims] == ["holds", "holds"]
    assert [claim["n"] for claim in study._claims] == [30, 30]
    assert 1e-12 < study._claims[0]["value"] < 1e-5
    assert study._claims[1]["value"] < 1e-13
    assert {parameter.dtype for network in DRAWS for parameter in network.parameters()} == {torch.float64}


def scores(right):
    """Every map ranks the patch at 0.3, the map of the patch's kind at `right`; chance is 0.25."""
    rows = []
    names = [(kind, setting) for kind in (*KINDS, "prediction") for setting in SETTINGS]
    names += [(f"input x gradient, {kind}", lesson.ALONE) for kind in KINDS] + [("|x - blur|", lesson.ALONE)]
    for patch in lesson.PATCHES:
        own = {"ambiguous": "aleatoric", "unseen: evidence": ""}.get(patch, "epistemic")
        for name, setting in names:
            for example in range(3):
                rank = (right if name == own else 0.3) + 0.01 * example
                row = {"patch": patch, "map": name, "setting": setting, "example": example}
                rows.append(row | {"rank": rank, "mass": 0.0, "chance": 0.25})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("right", "verdict"), [(0.6, "holds"), (0.1, "fails")])
def test_a_map_is_judged_against_chance_the_other_kind_and_the_rivals(right, verdict):
    study = notebook()
    lesson.judge_patches(study, scores(right), seeds=3)
    assert {claim["verdict"] for claim in study._claims} == {verdict}
    assert len(study._claims) == 2 * (3 * 5 + 1)
    assert {claim["seeds"] for claim in study._claims} == {3}
    values = {claim["statement"]: claim["value"] for claim in study._claims}
    start = "paper: rank accuracy of the aleatoric map on the ambiguous patch is above that of "
    assert values[start + "chance"] == pytest.approx(right + 0.01 - 0.25)
    assert values[start + "the epistemic map"] == pytest.approx(right - 0.3)
    assert sum(claim["source"] == lesson.PAPER for claim in study._claims) == 12


def test_the_figure_has_a_row_for_every_map_and_marks_both_settings():
    frame = scores(0.6).rename(columns={"rank": "value"})
    frame = frame.assign(panel=frame["patch"], low=frame["value"] - 0.1, high=frame["value"] + 0.1)
    figure = n09.patch_dots(frame, title="?")
    assert [axes.get_title() for axes in figure.axes[:4]] == list(lesson.PATCHES)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == list(dict.fromkeys(frame["map"]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*SETTINGS, lesson.ALONE]
