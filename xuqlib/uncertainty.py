"""Predictive uncertainty: total = aleatoric + epistemic, and how well a posterior predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from xuqlib.checks import check_count, check_examples, check_number, check_target
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import Examples


@dataclass(frozen=True)
class Uncertainties:
    """What is uncertain about each example's prediction, (N,), float64: in nats, for regression in squared units.

    total = aleatoric + epistemic.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    def to_frame(self) -> pd.DataFrame:
        """One row per example: example, total, aleatoric, epistemic."""
        columns = {"total": self.total, "aleatoric": self.aleatoric, "epistemic": self.epistemic}
        return pd.DataFrame(
            {"example": range(len(self.total)), **{key: value.numpy() for key, value in columns.items()}}
        )


def logits_of(draws: Draws, x: Tensor, *, batch_size: int = 256) -> Tensor:
    """Evaluate all draws in batches without a graph: (draw, example, class), on the CPU."""
    check_examples(x)
    if not isinstance(draws, Draws):
        raise TypeError(f"draws is a {type(draws).__name__}; pass posterior.sample(num_draws)")
    check_count(batch_size, 1, "batch_size")
    where = next((p.device for p in draws[0].parameters()), torch.device("cpu"))
    with torch.no_grad():
        return torch.cat([draws(part.to(where)).cpu() for part in x.split(batch_size)], dim=1)


def uncertainties(draws: Draws, x: Tensor, *, noise_variance: float | None = None) -> Uncertainties:
    """Split the uncertainty about each prediction into what more networks would and would not resolve.

    Classification: total is the entropy of the mean probability, aleatoric the mean entropy over draws, epistemic
    their difference, the mutual information; computed in float64, since in float32 it can fall below 0.
    Regression (one output): epistemic is the variance of the draws' answers, aleatoric the variance of the targets
    about one draw's answer.

    Args:
        draws: fixed networks, from `posterior.sample`.
        x: examples (N, ...).
        noise_variance: for regression; `draws.noise_variance` by default, which `train_or_load` takes from validation
            residuals. Networks with one output state no noise of their own: without either it is 0.

    Source: arXiv 2304.04824, section 3; Depeweg et al. 2018, arXiv 1710.07283.
    """
    logits = logits_of(draws, x)
    return decompose(logits, draws.noise_variance if noise_variance is None else noise_variance)


def decompose(logits: Tensor, noise_variance: float = 0.0) -> Uncertainties:
    """`uncertainties` of given outputs, (draw, example, class); one class means regression."""
    _check_stack(logits)
    check_number(noise_variance, 0, "noise_variance")
    logits = logits.double()
    if logits.shape[-1] == 1:
        epistemic = logits[..., 0].var(0, correction=0)
        aleatoric = torch.full_like(epistemic, noise_variance)
        return Uncertainties(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)
    log_probs = logits.log_softmax(-1)  # (S, N, C)
    log_mean = log_probs.logsumexp(0) - math.log(len(logits))  # (N, C)
    aleatoric = torch.special.entr(log_probs.exp()).sum(-1).mean(0)
    # The mean divergence from the mean, which is never a difference of two large numbers; only rounding is below 0.
    epistemic = (log_probs.exp() * (log_probs - log_mean)).sum(-1).mean(0).clamp(min=0)
    return Uncertainties(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)


def negative_log_likelihood(probs: Tensor, target: Tensor) -> float:
    """Mean of -log p of the true class over examples, in nats. `probs` (N, C), `target` (N,)."""
    _check_probs(probs)
    return float(F.nll_loss(probs.double().log(), check_target(target, len(probs), probs.shape[1])))


def brier_score(probs: Tensor, target: Tensor) -> float:
    """Mean over examples of the squared distance to the one-hot truth, summed over classes; 0 to 2. Brier 1950."""
    _check_probs(probs)
    truth = F.one_hot(check_target(target, len(probs), probs.shape[1]), probs.shape[1])
    return float((probs.double() - truth).square().sum(1).mean())


def expected_calibration_error(probs: Tensor, target: Tensor, *, num_bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence, by torchmetrics; 0 to 1.

    Source: Guo et al. 2017, eq. 3. arXiv 1706.04599.
    """
    from torchmetrics.functional.classification import multiclass_calibration_error

    _check_probs(probs)
    check_count(num_bins, 1, "num_bins")
    classes = check_target(target, len(probs), probs.shape[1])
    return float(multiclass_calibration_error(probs, classes, num_classes=probs.shape[1], n_bins=num_bins, norm="l1"))


def scores(draws: Draws, examples: Examples) -> dict[str, float]:
    """Measure how well the mean prediction of the draws does on labelled examples; see `scores_of`."""
    if not isinstance(examples, Examples):
        raise TypeError(f"examples is a {type(examples).__name__}; pass Examples, as load gives them")
    return scores_of(logits_of(draws, examples.x), examples.y, noise_variance=draws.noise_variance)


def scores_of(logits: Tensor, target: Tensor, *, noise_variance: float = 0.0) -> dict[str, float]:
    """Score given outputs, (draw, example, class), by their mean prediction.

    Returns:
        Classification: accuracy, nll (nats), brier, ece. Regression, in standardised units: r2, rmse, nll (nats; a
        Gaussian with the total variance).
    """
    _check_stack(logits)
    if logits.shape[-1] == 1:
        if target.shape != logits.shape[1:]:
            raise ValueError(f"target has shape {tuple(target.shape)}; wanted {tuple(logits.shape[1:])}, as Examples.y")
        mean, truth = logits.double().mean(0), target.double()
        mse = float(F.mse_loss(mean, truth))
        variance = decompose(logits, noise_variance).total[:, None]
        nll = 0.5 * (variance.log() + (mean - truth) ** 2 / variance + math.log(2 * math.pi))
        return {"r2": 1 - mse / float(truth.var(correction=0)), "rmse": mse**0.5, "nll": float(nll.mean())}
    probs = logits.double().softmax(-1).mean(0)
    return {
        "accuracy": float((probs.argmax(1) == target).double().mean()),
        "nll": negative_log_likelihood(probs, target),
        "brier": brier_score(probs, target),
        "ece": expected_calibration_error(probs, target),
    }


def standard_errors(
    logits: Tensor, target: Tensor, *, noise_variance: float = 0.0, num_resamples: int = 100, seed: int = 0
) -> dict[str, float]:
    """Standard error over examples of each score of `scores_of`, by the bootstrap.

    The examples are drawn anew with replacement `num_resamples` times, and the scores of these sets spread by it. The
    draws stay as they are: it says nothing about another training run.
    """
    check_count(num_resamples, 2, "num_resamples")
    stream = torch.Generator().manual_seed(seed)
    if logits.shape[-1] > 1:  # the mean prediction is all that the scores read
        logits = logits.double().softmax(-1).mean(0, keepdim=True).log()
    rows = torch.randint(len(target), (num_resamples, len(target)), generator=stream)
    frame = pd.DataFrame([scores_of(logits[:, r], target[r], noise_variance=noise_variance) for r in rows])
    return {str(name): float(frame[name].std()) for name in frame}


def _check_stack(logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError("logits are no floating point tensor; pass draws(x), (draw, example, class)")
    if logits.ndim != 3 or not logits.numel():
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; wanted (draw, example, class), at least one of each"
        )
    if not logits.isfinite().all():
        raise ValueError("logits hold NaN or infinite values, so their uncertainty is undefined; did training diverge?")


def _check_probs(probs: Tensor) -> None:
    if not isinstance(probs, Tensor) or not probs.is_floating_point():
        raise TypeError("probs are no floating point tensor; pass probabilities (N, C), as from logits.softmax(-1)")
    if probs.ndim != 2 or (probs < 0).any() or not torch.allclose(probs.sum(1), probs.new_ones(()), atol=1e-4):
        raise ValueError(f"probs of shape {tuple(probs.shape)}: wanted (N, C), each row at least 0 and summing to 1")
