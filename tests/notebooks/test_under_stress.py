"""Notebook 12: signals, detectors, attacks, forgetting and its rules, against closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import seeded
from helpers.n12 import forgetting_panels
from notebook_cells import definitions
from sklearn.metrics import roc_auc_score

from xuqlib import DeepEnsemble, explain, gradient, guided_backprop
from xuqlib.study.judging.sanity import sanity_checks
from xuqlib.study.judging.stress import combined, pgd
from xuqlib.study.training.networks import mini_vgg


def images(count):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def vgg(num_classes=3, seed=0):
    return seeded(lambda: mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=num_classes), seed=seed)


def by_gbp(draws, x, target):
    return explain(draws, guided_backprop, x, target)


def by_gradient(draws, x, target):
    return explain(draws, gradient, x, target)


def test_signals_are_those_of_the_answer_and_of_the_explanation_of_that_answer():
    draws, x = DeepEnsemble([vgg(seed=1), vgg(seed=2)]).sample(), images(40)  # more than one block
    found = definitions("12").signals(draws, x, {"gbp": by_gbp})
    probs = draws(x).softmax(-1)
    entropy = -(probs.mean(0) * probs.mean(0).log()).sum(1)
    e = explain(draws, guided_backprop, x, probs.mean(0).argmax(1))
    own = -(probs * probs.log()).sum(-1).mean(0)
    assert found["answer"].tolist() == probs.mean(0).argmax(1).tolist()
    np.testing.assert_allclose(found["entropy"], entropy, rtol=1e-9)
    np.testing.assert_allclose(found["mutual_information"], entropy - own, rtol=1e-6)
    np.testing.assert_allclose(found["cv gbp"], e.cv("ratio"), rtol=1e-9)
    np.testing.assert_allclose(found["std gbp"], e.std().sum((1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found["mean gbp"], e.mean().abs().sum((1, 2, 3)), rtol=1e-9)
    np.testing.assert_allclose(found["brightness"], x.mean((1, 2, 3)), rtol=1e-9)


def test_only_brightness_rises_for_every_image_that_is_made_brighter():
    draws, x = DeepEnsemble([vgg(seed=1), vgg(seed=2)]).sample(), images(6) / 2
    alarms = ["entropy", "brightness"]
    one = definitions("12", main={"m": draws}, alarms=alarms, num_worse=4, x=x, EXPLAINERS={})
    one = definitions("12", **vars(one) | {"clean": {"m": one.signals(draws, x)}})
    damages = {"brighter": lambda x, severity: x + severity / 10, "none": lambda x, severity: x}
    found = one.rises(damages, severities=[1, 2])
    rose = found.groupby(["kind", "severity", "signal"])["rose"].mean()
    assert rose["brighter", 1, "brightness"] == rose["brighter", 2, "brightness"] == 1
    assert rose["none"].max() == 0
    assert len(found) == 2 * 2 * 2 * 4  # damages, severities, signals, images
    once = found.query("kind == 'brighter' and severity == 2 and signal == 'brightness'")
    mean = x[:4].mean((1, 2, 3))
    np.testing.assert_allclose(once["log_ratio"], ((mean + 0.2) / mean).log(), rtol=1e-9)


def test_the_combined_detectors_are_those_of_the_named_columns_and_have_their_own_rivals():
    stream = np.random.default_rng(0)
    columns = ["entropy", "mutual_information", "cv gbp"]
    clean, odd = (pd.DataFrame(stream.normal(shift, size=(30, 3)), columns=columns) for shift in (0, 1))
    clean, odd = (frame.assign(answer=range(30), brightness=np.arange(30.0)) for frame in (clean, odd))
    found, pair = definitions("12", seed=3).compared(clean, odd)
    assert [list(each["cv gbp"]) for each in pair] == [list(each["cv gbp"]) for each in (clean, odd)]
    assert all({"answer only", "answer + explanation"} <= set(each) for each in pair)
    found = found.set_index("detector")
    assert list(found.index) == [*columns, "brightness", "answer only", "answer + explanation"]
    assert (found["against"] == ["entropy"] * 5 + ["answer only"]).all()
    areas = {}
    for name, used in {"answer only": [], "answer + explanation": ["cv gbp"]}.items():
        scores = np.concatenate(combined(clean, odd, ["entropy", "mutual_information", *used], seed=3))
        areas[name] = roc_auc_score([0] * 30 + [1] * 30, scores)
        assert found.loc[name, "auroc"] == pytest.approx(areas[name])
    gain = areas["answer + explanation"] - areas["answer only"]
    assert found.loc["answer + explanation", "gain"] == pytest.approx(gain)


def test_the_attacks_of_the_list_take_one_step_and_several():
    draws, x, target = DeepEnsemble([vgg()]).sample(), images(6), torch.tensor([0, 1, 2, 0, 1, 2])
    attacks = definitions("12", num_pgd=3, seed=1).ATTACKS
    assert torch.equal(attacks["PGD"](draws, x, target, 0.1), pgd(draws, x, target, 0.1, num_steps=3, seed=1))
    moved = (attacks["FGSM"](draws, x, target, 0.1) - x).abs()
    assert float(moved.max()) == pytest.approx(0.1)
    assert definitions("12").DAMAGES["brightness"](x / 2, severity=1).mean() > (x / 2).mean()


def test_forgetting_step_by_step_is_the_cascade_of_the_library():
    draws, x, target = DeepEnsemble([vgg(seed=1), vgg(seed=2)]).sample(), images(4), torch.tensor([0, 1, 2, 0])
    found = definitions("12", seed=5).forgetting(draws, by_gradient, x, target)
    wanted = sanity_checks(draws, gradient, x, target, seed=5)
    pd.testing.assert_frame_equal(found, wanted[["statistic", "step", "example", "signed"]], check_dtype=False)


def test_a_map_passes_by_how_far_it_lies_below_the_bound_of_each_rule():
    rows = [(0, "a", 0.2), (1, "a", 0.5), (2, "a", 0.25), (0, "b", 0.2), (1, "b", 0.9), (2, "b", 0.4)]
    frame = pd.DataFrame(rows, columns=["step", "case", "signed"]).assign(statistic="std", example=7)
    one = definitions("12")
    halfway, near = (one.margins(frame, rule) for rule in (one.falls_halfway, one.falls_near))
    assert halfway.tolist() == pytest.approx([0.6 - 0.5, 0.6 - 0.9])
    assert near.tolist() == pytest.approx([0.3 - 0.25, 0.3 - 0.4])
    assert halfway.index.tolist() == [("a", "std", 7), ("b", "std", 7)]


def test_a_constant_map_neither_passes_nor_fails():
    frame = pd.DataFrame({"step": [0, 1], "signed": [0.1, math.nan], "statistic": "std", "example": 0, "case": "a"})
    one = definitions("12")
    assert one.margins(frame, one.falls_near).empty


def test_a_panel_of_forgetting_has_both_maps_and_their_floors():
    rows = [("c", name, step, 0.1 + step, 0.0, 1.0) for name in ("mean", "std") for step in range(3)]
    frame = pd.DataFrame(rows, columns=["case", "statistic", "step", "signed", "low", "high"])
    lines = forgetting_panels(frame).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[1.1, 2.1], [0.1, 0.1]] * 2
