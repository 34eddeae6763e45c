"""Corruptions, attacks and detection, against closed forms, scipy and scikit-learn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import seeded
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from xuqlib import DeepEnsemble, load
from xuqlib.study.judging.stress import CORRUPTIONS, combined, corrupt, detection, fgsm, pgd
from xuqlib.study.training.networks import mini_vgg


def pictures(count=3, channels=3, side=16):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear_draws(count=2, classes=2, features=4):
    layers = [seeded(lambda: nn.Linear(features, classes), seed=seed) for seed in range(count)]
    return DeepEnsemble([nn.Sequential(nn.Flatten(), layer) for layer in layers]).sample()


def loss(draws, x, target):
    return F.nll_loss(draws(x).softmax(-1).mean(0).log(), target, reduction="none")


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_corruption_keeps_the_range_and_goes_further_at_higher_severity(kind, channels):
    x = load("planted", num_examples=10).x[:, :channels]
    worse = [corrupt(x, kind, severity) for severity in range(1, 6)]
    assert all(each.shape == x.shape and each.min() >= 0 and each.max() <= 1 for each in worse)
    distance = [float((each - x).norm()) for each in worse]
    assert distance == sorted(distance)
    assert distance[0] > 0


def test_contrast_brightness_and_pixels_by_hand():
    x = torch.tensor([[[[0.0, 0.4], [0.8, 0.8]]]])  # mean 0.5
    torch.testing.assert_close(corrupt(x, "contrast", 2), torch.tensor([[[[0.25, 0.45], [0.65, 0.65]]]]))
    torch.testing.assert_close(corrupt(x, "brightness", 5), torch.tensor([[[[0.3, 0.7], [1.0, 1.0]]]]))
    torch.testing.assert_close(corrupt(x, "pixelate", 1), torch.full_like(x, 0.8))  # one pixel is left of four


def test_noise_has_its_level_and_is_the_same_for_the_same_seed(untouched_generators):
    x = torch.full((4, 3, 32, 32), 0.5)
    noisy = corrupt(x, "gaussian_noise", 5, seed=1)
    assert float((noisy - x).std()) == pytest.approx(0.10, rel=0.03)
    assert torch.equal(noisy, corrupt(x, "gaussian_noise", 5, seed=1))
    assert not torch.equal(noisy, corrupt(x, "gaussian_noise", 5, seed=2))


def test_a_blur_spreads_a_dot_as_a_gaussian():
    x = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    x[..., 7, 7] = 1
    blurred = corrupt(x, "blur", 5)[0, 0]  # sigma 1
    assert float(blurred.sum()) == pytest.approx(1)
    assert float(blurred[7, 7] / blurred[7, 8]) == pytest.approx(math.exp(0.5))


@pytest.mark.parametrize(("kind", "severity"), [("fog of war", 1), ("blur", 0), ("blur", 6)])
def test_unknown_corruptions_are_refused(kind, severity):
    with pytest.raises(
        ValueError,
        match="unknown corruption|severity is 0; pass a whole number of at least 1|severity is 6; pass 1 to 5",
    ):
        corrupt(pictures(), kind, severity)


def test_fgsm_of_a_linear_network_moves_each_pixel_against_its_weight():
    draws = linear_draws(count=1)
    weight = draws[0].network[1].weight
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    moved = fgsm(draws, x, torch.tensor([0]), 0.1)
    expected = x + 0.1 * (weight[1] - weight[0]).sign().view_as(x)
    torch.testing.assert_close(moved, expected)


def test_fgsm_finds_the_worst_corner_of_a_linear_network_and_pgd_reaches_it():
    draws, x = linear_draws(count=1), pictures(3, 1, 2) * 0.6 + 0.2
    target = torch.tensor([0, 1, 0])
    corners = torch.tensor(list(itertools.product([-0.1, 0.1], repeat=4)), dtype=x.dtype).view(-1, 1, 1, 2, 2)
    worst = torch.stack([loss(draws, x + corner, target) for corner in corners]).amax(0)
    torch.testing.assert_close(loss(draws, fgsm(draws, x, target, 0.1), target), worst)
    for seed in (None, 4):
        moved = pgd(draws, x, target, 0.1, num_steps=10, seed=seed)
        torch.testing.assert_close(loss(draws, moved, target), worst)


def test_the_attack_is_on_the_mean_probability_of_all_draws():
    draws, target = linear_draws(count=3, classes=3), torch.tensor([2, 0] * 10)
    for draw in draws:
        draw.network[1].weight *= 8  # sure draws, which disagree
    x = (pictures(20, 1, 2) * 0.5 + 0.25).requires_grad_()
    slope = torch.autograd.grad(loss(draws, x, target).sum(), x)[0]
    other = torch.autograd.grad(F.cross_entropy(draws(x).mean(0), target), x)[0]
    assert (slope.sign() != other.sign()).any()  # or the next line could not tell them apart
    own = torch.autograd.grad(-draws(x).log_softmax(-1).mean(0)[range(20), target].sum(), x)[0]
    assert (slope.sign() != own.sign()).any()
    torch.testing.assert_close(fgsm(draws, x.detach(), target, 0.01), x.detach() + 0.01 * slope.sign())


def test_one_full_step_of_pgd_is_fgsm_and_no_attack_leaves_the_ball_or_the_range(untouched_generators):
    network = seeded(lambda: mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3))
    draws, x, target = DeepEnsemble([network]).sample(), pictures(5, 3, 8), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(pgd(draws, x, target, 0.05, num_steps=1, step_size=0.05), fgsm(draws, x, target, 0.05))
    moved = pgd(draws, x, target, 0.05, num_steps=7, seed=3, batch_size=2)
    assert float((moved - x).abs().max()) <= 0.05 + 1e-12
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert loss(draws, moved, target).mean() > loss(draws, fgsm(draws, x, target, 0.05), target).mean()
    torch.testing.assert_close(moved, pgd(draws, x, target, 0.05, num_steps=7, seed=3))  # whatever the batches
    with torch.no_grad():
        torch.testing.assert_close(fgsm(draws, x, target, 0.0), x)


def frames(seed=0, clean=40, odd=30):
    stream = np.random.default_rng(seed)
    low, high = stream.normal(size=(clean, 2)), stream.normal(1.0, size=(odd, 2)).round(1)
    return pd.DataFrame(low.round(1), columns=["entropy", "cv"]), pd.DataFrame(high, columns=["entropy", "cv"])


def test_auroc_is_that_of_scikit_learn_with_ties():
    clean, odd = frames()
    found = detection(clean, odd, num_resamples=200).set_index("detector")
    truth = [0] * len(clean) + [1] * len(odd)
    for name in clean:
        scores = [*clean[name], *odd[name]]
        assert len(set(scores)) < len(scores)
        assert found.loc[name, "auroc"] == pytest.approx(roc_auc_score(truth, scores))
    assert found.loc["cv", "gain"] == pytest.approx(found.loc["cv", "auroc"] - found.loc["entropy", "auroc"])
    assert found.loc["entropy", ["gain", "gain_low", "gain_high"]].tolist() == [0, 0, 0]


def test_the_interval_is_as_wide_as_that_of_resampling_rows_one_set_at_a_time():
    clean, odd = frames()
    found = detection(clean, odd, num_resamples=2000).set_index("detector")
    stream, areas = np.random.default_rng(5), []
    for _ in range(400):
        low, high = (frame["cv"].to_numpy()[stream.integers(len(frame), size=len(frame))] for frame in (clean, odd))
        areas.append(roc_auc_score([0] * len(low) + [1] * len(high), [*low, *high]))
    # 400 resamples tell a percentile in the tail to about a tenth of the width
    width = found.loc["cv", "high"] - found.loc["cv", "low"]
    np.testing.assert_allclose(
        found.loc["cv", ["low", "high"]].astype(float), np.quantile(areas, [0.025, 0.975]), atol=0.15 * width
    )


def test_pairs_are_resampled_together():
    clean = pd.DataFrame({"entropy": np.arange(50.0)})
    odd = clean + 25.0
    alone, paired = (detection(clean, odd, paired=each).iloc[0] for each in (False, True))
    assert paired["auroc"] == alone["auroc"]
    # A resample that happens to hold large clean scores holds large odd ones, too.
    assert paired["high"] - paired["low"] < 0.75 * (alone["high"] - alone["low"])


def test_an_undefined_score_is_left_out_and_counted():
    clean, odd = frames()
    clean.loc[3, "cv"] = np.nan
    found, without = (detection(frame, odd).set_index("detector") for frame in (clean, clean.drop(3)))
    assert found.loc["cv", "auroc"] == pytest.approx(without.loc["cv", "auroc"])
    assert found.loc["cv", "undefined"] == pytest.approx(1 / 70)
    assert found.loc["entropy", "undefined"] == 0
    with pytest.raises(ValueError, match="as many of both"):
        detection(clean, odd, paired=True)


def test_two_half_blind_detectors_together_beat_either_and_noise_adds_nothing():
    stream = np.random.default_rng(0)
    clean, odd = (pd.DataFrame(stream.normal(shift, size=(300, 2)), columns=["a", "b"]) for shift in (0, 1))
    noise = pd.DataFrame(stream.normal(size=(300, 2)), columns=["clean", "odd"])
    scores = {}
    for name, columns in {"both": ["a", "b"], "alone": ["a"], "noise": ["noise"]}.items():
        parts = combined(clean.assign(noise=noise["clean"]), odd.assign(noise=noise["odd"]), columns)
        scores[name] = roc_auc_score([0] * 300 + [1] * 300, np.concatenate(parts))
    assert scores["both"] == pytest.approx(0.84, abs=0.03)  # Phi(shift sqrt(2) / sqrt(2)) of the sum
    assert scores["alone"] == pytest.approx(0.76, abs=0.03)  # Phi(1 / sqrt(2))
    assert scores["noise"] < 0.57


def test_an_example_and_its_changed_copy_are_in_one_fold():
    # Labels cannot be told from the scores, but a copy in the training folds would give its partner away.
    stream = np.random.default_rng(0)
    clean = pd.DataFrame(stream.normal(size=(60, 1)), columns=["a"])
    left, right = combined(clean, clean, ["a"])
    np.testing.assert_allclose(left, right)


def test_a_random_start_lies_in_the_ball_and_is_that_of_its_seed():
    draws = DeepEnsemble([nn.Sequential(nn.Flatten(), nn.Linear(12, 3))]).sample()
    x, target = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    start = pgd(draws, x, target, 0.1, num_steps=1, step_size=0, seed=3)
    moved = (start - x).abs()
    assert 0.05 < moved.max() <= 0.1 + 1e-6
    assert torch.equal(start, pgd(draws, x, target, 0.1, num_steps=1, step_size=0, seed=3))
    assert not torch.equal(start, pgd(draws, x, target, 0.1, num_steps=1, step_size=0, seed=4))
