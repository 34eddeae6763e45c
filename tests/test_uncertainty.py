"""Uncertainties by hand, their bounds, and scores against closed forms and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from core_networks import EXACT, randn, seeded, table_mlp, tabular
from sklearn.metrics import brier_score_loss, log_loss
from torch import nn, tensor
from torch.distributions import Categorical, Normal
from torch.testing import assert_close

from xuqlib import DeepEnsemble, Draws, Flipout, MCDropout, scores, uncertainties
from xuqlib.study.judging.scores import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    scores_of,
    standard_errors,
)
from xuqlib.uncertainty import decompose, logits_of

LOG2 = math.log(2)


def test_two_draws_over_two_classes_by_hand():
    # Probabilities 3/4 and 1/4 of the first class: the mean is even, so the total is log 2.
    u = decompose(tensor([[[math.log(3), 0.0]], [[0.0, math.log(3)]]], dtype=torch.float64))
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert u.total.item() == pytest.approx(LOG2, rel=1e-14)
    assert u.aleatoric.item() == pytest.approx(entropy, rel=1e-14)
    assert u.epistemic.item() == pytest.approx(LOG2 - entropy, rel=1e-14)


def test_the_parts_equal_torchs_entropies():
    logits = 3 * randn(7, 50, 4)
    u = decompose(logits)
    total = Categorical(probs=logits.softmax(-1).mean(0)).entropy()
    aleatoric = Categorical(logits=logits).entropy().mean(0)
    assert_close(u.total, total, **EXACT)
    assert_close(u.aleatoric, aleatoric, **EXACT)
    assert_close(u.epistemic, total - aleatoric, rtol=1e-9, atol=1e-12)


def test_draws_that_agree_have_no_epistemic_part():
    u = decompose(randn(1, 200, 5).expand(10, 200, 5))
    assert (u.epistemic >= 0).all() and (u.epistemic < 1e-14).all()
    assert torch.equal(decompose(randn(1, 200, 1).expand(4, 200, 1)).epistemic, torch.zeros(200, dtype=torch.float64))


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_sure_draws_that_disagree_are_all_epistemic_and_finite(size):
    logits = tensor([[[size, 0.0, 0.0]], [[0.0, size, 0.0]]])
    u = decompose(logits)
    assert u.epistemic.item() == pytest.approx(LOG2, rel=1e-14)
    assert u.total.item() == pytest.approx(LOG2, rel=1e-14)
    assert u.aleatoric.item() == 0


def test_no_part_is_ever_negative_and_they_add_up():
    for size in (1e-4, 1.0, 30.0, 1e3):
        logits = (size * randn(5, 2000, 3, seed=3)).float()
        near = logits[:1] + 1e-7 * logits  # draws that nearly agree: where float32 falls below 0
        for stack in (logits, near):
            u = decompose(stack)
            for part in (u.total, u.aleatoric, u.epistemic):
                assert part.dtype == torch.float64 and part.isfinite().all() and (part >= 0).all()
            assert_close(u.total, u.aleatoric + u.epistemic, rtol=0, atol=0)
            assert (u.total <= math.log(3) + 1e-12).all()


def test_regression_splits_variances():
    answers = randn(6, 4, 1)
    u = decompose(answers, noise_variance=0.25)
    assert_close(u.epistemic, torch.from_numpy(answers[..., 0].numpy().var(0)), **EXACT)
    assert u.aleatoric.tolist() == [0.25] * 4
    assert_close(u.total, u.epistemic + 0.25, **EXACT)


def test_the_noise_of_the_draws_is_used_unless_another_is_given():
    posterior = Flipout(nn.Linear(5, 1))
    posterior.noise_variance = 0.3
    draws, x = posterior.sample(3), randn(4, 5, dtype=torch.float32)
    assert uncertainties(draws, x).aleatoric.unique().tolist() == [pytest.approx(0.3)]
    assert uncertainties(draws, x, noise_variance=0.0).aleatoric.unique().tolist() == [0.0]


def test_uncertainties_of_draws_have_one_row_per_example():
    draws, x = MCDropout(seeded(table_mlp)).sample(4), randn(6, 5)
    frame = uncertainties(draws, x).to_frame()
    assert list(frame.columns) == ["example", "total", "aleatoric", "epistemic"] and len(frame) == 6
    assert_close(tensor(frame.total), decompose(draws(x)).total, **EXACT)


def test_batches_do_not_change_the_logits_and_no_graph_is_kept():
    draws, x = MCDropout(seeded(table_mlp)).sample(4), randn(7, 5)
    logits = logits_of(draws, x.requires_grad_(), batch_size=3)
    assert not logits.requires_grad
    assert_close(logits, draws(x).detach(), **EXACT)


PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.25, 0.25, 0.5]], dtype=torch.float64)
TRUTH = tensor([0, 1, 0, 2])


def test_scores_by_hand():
    assert negative_log_likelihood(PROBS, TRUTH) == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.5]).mean(), rel=1e-12)
    squares = [0.09 + 0.04 + 0.01, 0.01 + 0.04 + 0.01, 0.49 + 0.09 + 0.16, 0.0625 + 0.0625 + 0.25]
    assert brier_score(PROBS, TRUTH) == pytest.approx(np.mean(squares), rel=1e-12)
    # Confidences 0.7, 0.8, 0.4, 0.5 lie in four bins of fifteen, each with one example.
    gaps = [0.3, 0.2, 0.4, 0.5]
    assert expected_calibration_error(PROBS, TRUTH) == pytest.approx(np.mean(gaps), rel=1e-6)  # float32 inside
    # One bin: mean confidence 0.6, accuracy 3/4.
    assert expected_calibration_error(PROBS, TRUTH, num_bins=1) == pytest.approx(0.15, rel=1e-6)


def test_scores_equal_scikit_learns():
    probs, truth = randn(200, 4).softmax(1), torch.arange(200) % 4
    assert negative_log_likelihood(probs, truth) == pytest.approx(log_loss(truth, probs, labels=range(4)), rel=1e-9)
    by_class = [brier_score_loss(truth == c, probs[:, c]) for c in range(4)]
    assert brier_score(probs, truth) == pytest.approx(sum(by_class), rel=1e-9)


def test_perfect_and_hopeless_predictions_have_the_extreme_scores():
    sure = torch.eye(3, dtype=torch.float64)
    right, wrong = tensor([0, 1, 2]), tensor([1, 2, 0])
    assert (negative_log_likelihood(sure, right), brier_score(sure, right)) == (0.0, 0.0)
    assert (negative_log_likelihood(sure, wrong), brier_score(sure, wrong)) == (math.inf, 2.0)
    assert expected_calibration_error(sure, wrong) == 1.0


def test_scores_of_draws_are_those_of_their_mean_prediction():
    draws, examples = MCDropout(seeded(table_mlp, dtype=torch.float32)).sample(5), tabular(60)
    probs = draws(examples.x).double().softmax(-1).mean(0)
    found = scores(draws, examples)
    assert found["accuracy"] == pytest.approx(float((probs.argmax(1) == examples.y).double().mean()))
    assert found["nll"] == pytest.approx(negative_log_likelihood(probs, examples.y), rel=1e-6)
    assert set(found) == {"accuracy", "nll", "brier", "ece"}


def test_scores_of_a_regression_are_gaussian():
    examples = tabular(60, classes=None)
    ensemble = DeepEnsemble([seeded(lambda: nn.Linear(5, 1), seed=s, dtype=torch.float32) for s in range(3)])
    ensemble.noise_variance = 0.4
    answers = torch.stack([member(examples.x) for member in ensemble.members]).detach().double()
    mean, std = answers.mean(0), (answers.var(0, correction=0) + 0.4).sqrt()
    found, truth = scores(ensemble.sample(), examples), examples.y.double()
    assert found["nll"] == pytest.approx(float(-Normal(mean, std).log_prob(truth).mean()), rel=1e-6)
    assert found["rmse"] == pytest.approx(float((mean - truth).square().mean().sqrt()), rel=1e-6)
    assert found["r2"] == pytest.approx(1 - found["rmse"] ** 2 / float(truth.var(correction=0)), rel=1e-6)


@pytest.mark.usefixtures("untouched_generators")
def test_the_standard_error_of_an_accuracy_is_the_binomial_one():
    logits = randn(1, 400, 2)
    truth = torch.where(torch.arange(400) < 300, logits[0].argmax(1), logits[0].argmin(1))
    errors = standard_errors(logits, truth, num_resamples=400, seed=1)
    assert set(errors) == {"accuracy", "nll", "brier", "ece"}
    # 400 resamples give a std to 1/sqrt(800) = 3.5 %
    assert errors["accuracy"] == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.15)
    assert errors == standard_errors(logits, truth, num_resamples=400, seed=1)
    assert errors != standard_errors(logits, truth, num_resamples=400, seed=2)


def test_draws_of_one_network_have_the_scores_of_that_network():
    examples = tabular(60)
    network = seeded(table_mlp, dtype=torch.float32).eval()
    one = scores(Draws([network]), examples)
    assert one == scores_of(network(examples.x).detach()[None], examples.y)
