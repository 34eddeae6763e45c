"""Predictive uncertainty: total = aleatoric + epistemic, and how well a posterior predicts."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import check_attribution, check_choice, check_count, check_examples, check_fixed, check_number
from xuqlib.explainers import EXPLAINERS, Explainer
from xuqlib.explainers.declaring import Options, named
from xuqlib.explainers.fullgrad import check_mappable, fullgrad
from xuqlib.moments import folded
from xuqlib.path import rows_per_pass
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
        columns = {name: value.numpy() for name, value in vars(self).items()}
        return pd.DataFrame({"example": range(len(self.total)), **columns})


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


KINDS = ("total", "aleatoric", "epistemic")


def probability_shares(logits: Tensor, kind: str = "epistemic") -> Tensor:
    """Split an uncertainty into one share per probability of each draw; they sum to it over draws and classes.

    total -p log(mean p) / S, aleatoric -p log(p) / S, epistemic p log(p / mean p) / S. An epistemic share may be below
    0; its sums over draws and over classes are not.

    Args:
        logits: (draw, example, class), at least two classes.
        kind: "total", "aleatoric" or "epistemic".

    Returns:
        Shares in nats, (draw, example, class), float64.

    Raises:
        ValueError: unknown kind; logits of another shape, or of a regression.
    """
    check_choice(kind, KINDS, "kind")
    if logits.ndim != 3 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; UA-Backprop splits entropies of class probabilities, so pass "
            "(draw, example, class) with at least two classes, not a regression"
        )
    log_probs = logits.double().log_softmax(-1)  # (S, N, C)
    log_mean = log_probs.logsumexp(0) - math.log(len(logits))  # (N, C)
    surprise = {"total": -log_mean, "aleatoric": -log_probs, "epistemic": log_probs - log_mean}[kind]
    return log_probs.exp() * surprise / len(logits)


# FullGrad's signed terms add up to U as far as it can; other explainers are taken as they come.
OF_UNCERTAINTY = ChainMap[str, Explainer]({"fullgrad": partial(fullgrad, psi="signed")}, EXPLAINERS)


class UncertaintyOf(nn.Module):
    """The uncertainty of a prediction as a network of one output, (N, 1), in nats: differentiable in x.

    Equals `uncertainties(draws, x)` of that kind. Wherever an explainer takes a network, it takes this one, with
    target 0. Entropies are computed in float64, the answer has x's dtype.

    Args:
        draws: fixed networks with at least two classes, or a list of networks. They are held, not copied.
        kind: "total", "aleatoric" or "epistemic".

    Raises:
        TypeError, ValueError: no networks; unknown kind; when called, networks with one output.
    """

    def __init__(self, draws: Draws | Sequence[nn.Module], kind: str = "epistemic") -> None:
        super().__init__()
        check_choice(kind, KINDS, "kind")
        self.draws, self.kind = draws if isinstance(draws, Draws) else Draws(draws), kind
        self.networks = nn.ModuleList(self.draws)  # so that a check of this network finds what is inside
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        shares = probability_shares(self.draws(x), self.kind)  # (S, N, C), float64
        return shares.sum((0, 2)).clamp(min=0).to(x.dtype)[:, None]  # only rounding is below 0


def attribute_uncertainty(
    draws: Draws | Sequence[nn.Module],
    x: Tensor,
    kind: str = "epistemic",
    *,
    explainer: str | Explainer = "gradient_x_input",
    absolute: bool = False,
    chunk: int | None = None,
    **options: Any,
) -> Tensor:
    """Attribute the uncertainty of each prediction to the input by any explainer.

    What the explainer promises holds for U: Integrated Gradients sums to U(x) - U(baseline), gradient x input to
    nothing in particular.

    Args:
        draws, x, kind: as for `ua_backprop`.
        explainer: a name in `xuqlib.explainers.EXPLAINERS`; "fullgrad", which keeps the signs of its terms unless
            `psi` says otherwise; or a function (network, x, target) like those.
        absolute: add up absolute values over channels, instead of the values.
        chunk: rows (examples, or examples times steps) in one pass through all draws; chosen by device, size of x and
            number of draws if None.
        **options: passed on to the explainer, such as num_steps, baseline or segments; cut with the examples as by
            `explain`.

    Returns:
        Attribution (N, H, W) or (N, F), of x's dtype: for a gradient in nats per unit of x, else in nats.

    Raises:
        TypeError, ValueError: bad draws, x or option; networks with one output; an attribution not shaped like x.

    Source: the rivals of Wang, Joshi, Wang & Ji 2023, arXiv 2304.04824; each explainer names its own.
    """
    draws, where = checked_draws(draws, x, kind)
    explainer = named(explainer, OF_UNCERTAINTY)
    rows = rows_per_pass(x[:1].to(where), chunk)
    if chunk is None:  # U keeps the graphs of all its draws
        rows = max(1, min(rows, 8 * rows // len(draws)))
    if "chunk" in inspect.signature(explainer).parameters:
        options["chunk"] = rows
    network, attributions, given = UncertaintyOf(draws, kind), [], Options(explainer, options, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FullGrad's terms miss")  # an entropy is not linear, so they always do
        for part in given.parts(rows, chunk):
            some = x[part].detach().to(where)
            attribution = check_attribution(explainer(network, some, 0, **given.of(part, where)), some)
            attributions.append((folded(attribution) if absolute else without_channels(attribution)).to(x))
    return torch.cat(attributions)


def checked_draws(draws: Draws | Sequence[nn.Module], x: Tensor, kind: str) -> tuple[Draws, torch.device]:
    """Refuse what `ua_backprop` refuses; return the draws, and where they are."""
    draws, where = fixed_draws(draws, x)
    probability_shares(logits_of(draws, x[:1]), kind)  # refuses an unknown kind, and a regression
    return draws, where


def fixed_draws(draws: Draws | Sequence[nn.Module], x: Tensor) -> tuple[Draws, torch.device]:
    """Refuse networks in training mode, and examples that are neither images nor a table; return where draws are."""
    check_mappable(x)
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    for network in draws:
        check_fixed(network)
    return draws, next((parameter.device for parameter in draws[0].parameters()), x.device)


def without_channels(attribution: Tensor) -> Tensor:
    """Sum an attribution over channels, (N, H, W); that of a table stays as it is."""
    return attribution.sum(1) if attribution.dim() == 4 else attribution
