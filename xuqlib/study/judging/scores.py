"""How well a posterior predicts: proper scores and calibration of the mean prediction."""

from __future__ import annotations

import math

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from xuqlib.checks import check_target
from xuqlib.posteriors.draws import Draws
from xuqlib.study.checked import Amount, Count, Maps, Seed, Several, Stack, Target, checked
from xuqlib.study.data.loading import Examples
from xuqlib.uncertainty import _check_stack, decompose, logits_of


@checked
def negative_log_likelihood(probs: Maps, target: Target) -> float:
    """Mean of -log p of the true class over examples, in nats. `probs` (N, C), `target` (N,)."""
    _check_probs(probs)
    return float(F.nll_loss(probs.double().log(), check_target(target, len(probs), probs.shape[1])))


@checked
def brier_score(probs: Maps, target: Target) -> float:
    """Mean over examples of the squared distance to the one-hot truth, summed over classes; 0 to 2. Brier 1950."""
    _check_probs(probs)
    truth = F.one_hot(check_target(target, len(probs), probs.shape[1]), probs.shape[1])
    return float((probs.double() - truth).square().sum(1).mean())


@checked
def expected_calibration_error(probs: Maps, target: Target, *, num_bins: Count = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, by torchmetrics; 0 to 1.

    Source: Guo et al. 2017, eq. 3. arXiv 1706.04599.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    _check_probs(probs)
    classes = check_target(target, len(probs), probs.shape[1])
    return float(multiclass_calibration_error(probs, classes, num_classes=probs.shape[1], n_bins=num_bins, norm="l1"))


@checked
def scores(draws: Draws, examples: Examples) -> dict[str, float]:
    """Measure how well the mean prediction of the draws does on labelled examples; see `scores_of`."""
    return scores_of(logits_of(draws, examples.x), examples.y, noise_variance=draws.noise_variance)


@checked
def scores_of(logits: Stack, target: Tensor, *, noise_variance: Amount = 0.0) -> dict[str, float]:
    """Score given outputs, (draw, example, class), by their mean prediction.

    Returns:
        Classification: accuracy, nll (nats), brier, ece. Regression, in standardised units: r2, rmse, nll (nats; a
        Gaussian with the total variance).
    """
    _check_stack(logits)
    if target.shape[:1] != logits.shape[1:2]:
        raise ValueError(f"target has shape {tuple(target.shape)}; wanted one per example, of {logits.shape[1]}")
    if logits.shape[-1] == 1:
        if target.shape != logits.shape[1:]:
            raise ValueError(f"target has shape {tuple(target.shape)}; wanted {tuple(logits.shape[1:])}, as Examples.y")
        mean, truth = logits.double().mean(0), target.double()
        mse = float(F.mse_loss(mean, truth))
        variance = decompose(logits, noise_variance).total[:, None]
        nll = 0.5 * (variance.log() + (mean - truth) ** 2 / variance + math.log(2 * math.pi))
        return {"r2": 1 - mse / float(truth.var(correction=0)), "rmse": mse**0.5, "nll": float(nll.mean())}
    target = check_target(target, logits.shape[1], logits.shape[2])
    probs = logits.double().softmax(-1).mean(0)
    return {
        "accuracy": float((probs.argmax(1) == target).double().mean()),
        "nll": negative_log_likelihood(probs, target),
        "brier": brier_score(probs, target),
        "ece": expected_calibration_error(probs, target),
    }


@checked
def standard_errors(
    logits: Stack, target: Tensor, *, noise_variance: Amount = 0.0, num_resamples: Several = 100, seed: Seed = 0
) -> dict[str, float]:
    """Standard error over examples of each score of `scores_of`, by the bootstrap.

    The examples are drawn anew with replacement `num_resamples` times, and the scores of these sets spread by it. The
    draws stay as they are: it says nothing about another training run.
    """
    scores_of(logits, target, noise_variance=noise_variance)  # checks that they go together
    stream = torch.Generator().manual_seed(seed)
    if logits.shape[-1] > 1:  # the mean prediction is all that the scores read
        logits = logits.double().softmax(-1).mean(0, keepdim=True).log()
    rows = torch.randint(len(target), (num_resamples, len(target)), generator=stream)
    frame = pd.DataFrame([scores_of(logits[:, r], target[r], noise_variance=noise_variance) for r in rows])
    return {str(name): float(frame[name].std()) for name in frame}


def _check_probs(probs: Tensor) -> None:
    if not isinstance(probs, Tensor) or not probs.is_floating_point():
        raise TypeError("probs are no floating point tensor; pass probabilities (N, C), as from logits.softmax(-1)")
    if probs.ndim != 2 or (probs < 0).any() or not torch.allclose(probs.sum(1), probs.new_ones(()), atol=1e-4):
        raise ValueError(f"probs of shape {tuple(probs.shape)}: wanted (N, C), each row at least 0 and summing to 1")
