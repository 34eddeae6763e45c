"""Notebook 26: pseudo-values of an area and of a difference, and what true and predicted class have apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_cells import definitions

from xuqlib.study.intervals import roc_area

SMALL = {"epochs": [0, 1], "end": 1, "widths": {"digits": [4, 4, 4]}, "hidden": 8, "num_draws": 3}
CELLS = definitions("26", num_train=40, num_held=40, num_wrong=5, num_steps=2, num_replaced=4, **SMALL)
SCORE = np.array([3.0, 1.0, 2.0, 0.0, 1.0])
FLAGGED = np.array([True, True, False, False, False])


def test_pseudo_values_by_hand():
    # Of six pairs 3 beats all three, and 1 beats one, loses to one and ties one.
    found = CELLS.pseudo_values(SCORE, FLAGGED)
    assert found.mean() == pytest.approx(4.5 / 6)
    assert found[:2] == pytest.approx([0.75 + 0.25 / 0.4, 0.75 - 0.25 / 0.4])
    assert found[2:] == pytest.approx([0.75 - 0.25 / 0.6, 0.75 + 0.25 / 0.6, 0.75])


def test_a_picture_without_a_score_does_not_count():
    found = CELLS.pseudo_values(np.append(SCORE, np.nan), np.append(FLAGGED, True))
    assert found[:5] == pytest.approx(CELLS.pseudo_values(SCORE, FLAGGED)) and np.isnan(found[5])


def test_the_spread_of_pseudo_values_is_the_uncertainty_of_the_area():
    stream = np.random.default_rng(0)
    flagged = np.arange(300) < 60
    score = stream.normal(0, 1, 300) + flagged
    found = CELLS.pseudo_values(score, flagged)
    area = roc_area(score[flagged], score[~flagged])
    assert found.mean() == pytest.approx(area.value)
    assert 4 * found.std() / 300**0.5 == pytest.approx(area.high - area.low, rel=0.1)  # of 1000 resamples


def test_a_change_is_a_difference_of_means_with_its_uncertainty():
    stream = np.random.default_rng(1)
    late = pd.DataFrame({"seed": 0, "example": range(40), "value": stream.normal(1, 1, 40)})
    early = pd.DataFrame({"seed": 0, "example": range(40, 100), "value": stream.normal(0, 2, 60)})
    found = CELLS.change(late, early)["value"]
    assert len(found) == 100 and found.mean() == pytest.approx(late["value"].mean() - early["value"].mean())
    error = (late["value"].var(ddof=0) / 40 + early["value"].var(ddof=0) / 60) ** 0.5
    assert found.std(ddof=0) / 10 == pytest.approx(error)


def test_a_change_of_the_same_pictures_is_that_of_each():
    one = pd.DataFrame({"seed": [0, 0, 1], "example": [0, 1, 0], "value": [1.0, 2.0, 6.0]})
    two = one.assign(value=one["value"] - [0.5, 1.5, 1.0])
    assert CELLS.change(one, two)["value"].tolist() == pytest.approx([0.5, 1.5, 1.0])


@pytest.fixture(scope="module")
def small():
    x, true, given = CELLS.labelled("digits")
    return x, true, given, CELLS.trained("digits", x, given, 0)


def test_labels_are_flipped_to_other_classes_at_the_known_rate():
    x, true, given = definitions("26", num_train=600, num_held=600).labelled("digits")
    share = float((true != given).double().mean())
    assert len(x) == 1200 and abs(share - CELLS.flip_rate) < 3 * (0.2 * 0.8 / 1200) ** 0.5
    assert set(given.tolist()) == set(range(10))


def test_a_checkpoint_is_an_earlier_end(small):
    x, _, given, weights = small
    again = definitions("26", **(SMALL | {"epochs": [0], "end": 0})).trained("digits", x, given, 0)
    assert all(torch.equal(again[0][name], each) for name, each in weights[0].items())
    assert any(not torch.equal(weights[1][name], each) for name, each in weights[0].items())


def test_wrong_answers_alone_are_explained_for_both_classes(small):
    x, true, _, weights = small
    right, rows = CELLS.which_class("digits", weights[1], x, true)
    predicted = CELLS.logits_of(CELLS.drawn("digits", weights[1], x), x).double().softmax(-1).mean(0).argmax(1)
    assert right == pytest.approx(float((predicted == true).double().mean()))
    wrong = (predicted != true).nonzero().flatten()[:5].tolist()
    for _, part in rows.groupby(["explainer", "measure"]):
        assert part["example"].tolist() == wrong
    cv = rows["measure"] == "CV"  # NaN where a map of so small a network is empty
    assert np.isfinite(rows.loc[~cv, "value"]).all() and np.isfinite(rows.loc[cv, "value"]).any()


def test_what_is_not_disputed_has_the_same_map_and_the_loss_is_that_of_the_given_label(small):
    x, _, given, weights = small
    frame = CELLS.label_scores("digits", weights[1], x, given)
    same = frame["disputed"] == 0
    assert 0 < same.sum() < len(frame)
    for name in CELLS.EXPLAINERS:
        assert (frame.loc[same, [f"{name}: distance", f"{name}: CV difference"]].fillna(0) == 0).all(axis=None)
        assert (frame.loc[~same, f"{name}: distance"] > 0).all()
    assert ((frame["margin"] > 0) == ~same).all()
    probs = CELLS.logits_of(CELLS.drawn("digits", weights[1], x), x).double().softmax(-1).mean(0)
    loss = -probs[range(len(x)), given].log()
    assert frame["loss"].to_numpy() == pytest.approx(loss.numpy())
