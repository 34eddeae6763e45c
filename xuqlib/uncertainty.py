"""Predictive uncertainty: total = aleatoric + epistemic, and how well a posterior predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from xuqlib.checks import check_count, check_examples, check_number
from xuqlib.posteriors.draws import Draws


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


def _check_stack(logits: Tensor) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError("logits are no floating point tensor; pass draws(x), (draw, example, class)")
    if logits.ndim != 3 or not logits.numel():
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; wanted (draw, example, class), at least one of each"
        )
    if not logits.isfinite().all():
        raise ValueError("logits hold NaN or infinite values, so their uncertainty is undefined; did training diverge?")
