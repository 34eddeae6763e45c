"""The exact distribution of a linear explanation over draws of a last layer, without drawing.

A slope of a logit is linear in the weights w of that logit: e = J w, J the slopes of the last layer's input. So the
explanation has mean J E[w] and covariance J Cov[w] J^T. With Cov[w] = sum_j r_j r_j^T, each J r_j is the explanation
by a network whose last weights are r_j, so the engine that explains draws gives them all. One backward pass each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from xuqlib.checks import check_examples, check_target
from xuqlib.device import device as default_device
from xuqlib.explainers import Explainer
from xuqlib.explainers.declaring import declared_by
from xuqlib.fast.engine import Engine
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.draws import Draws, copy_with, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.posteriors.laplace import Laplace
from xuqlib.posteriors.random_weights import DropConnectLayer, Flipout, FlipoutLayer, MCDropConnect
from xuqlib.study.checked import Batch, Place, Target, checked

_AT_ONCE = 64  # roots that are held as networks at a time


@dataclass(frozen=True)
class AnalyticDistribution:
    """Mean and covariance of the explanation of each example over all draws that there could be.

    Args:
        mean: attribution (N, ...).
        std: its standard deviation, (N, ...), in the same unit.
        roots: (D, N, ...), whose outer products sum to the covariance; None if they were not kept.
    """

    mean: Tensor
    std: Tensor
    roots: Tensor | None = None

    @checked
    def covariance(self, example: Place) -> Tensor:
        """Covariance between the attributions of one example, (P, P), P numbers of x in their order of memory.

        Raises:
            ValueError: the roots were not kept.
        """
        if self.roots is None:
            raise ValueError("only mean and std were kept; ask analytic_distribution(..., keep_roots=True)")
        root = self.roots[:, example].flatten(1)  # (D, P)
        return root.T @ root


@checked
def analytic_distribution(
    posterior: Posterior,
    explainer: Explainer,
    x: Batch,
    target: Target | int | None = None,
    *,
    keep_roots: bool = False,
    **options: Any,
) -> AnalyticDistribution:
    """Give the distribution that `explain` tends to as the number of draws grows; Gaussian for Laplace and Flipout.

    Args:
        posterior: Laplace, Flipout or MCDropConnect over a dense last layer; the first two are Gaussian.
        explainer: linear in the network: gradient, gradient_x_input, integrated_gradients or smoothgrad.
        x: examples (N, ...), in the units that the network was trained on.
        target: class of each example; that with the largest logit of the mean network by default.
        keep_roots: keep what the covariance between pixels is made of: as many maps as the last layer has inputs.
        **options: of the explainer.

    Raises:
        TypeError: another posterior.
        ValueError: an explainer that is not linear; random layers other than a dense last one.

    Source: arXiv 2504.03736 compares such analytical covariances with empirical ones.
    """
    check_examples(x)
    x, path_of = x.detach(), declared_by(explainer).path
    if path_of is None or path_of(x[:1], **options).guided:
        name = getattr(explainer, "__name__", type(explainer).__name__)
        raise ValueError(f"{name} is not linear in the last layer; only draws show its distribution: use explain")
    where = default_device()
    layer, network = _last_layer(posterior), detached_copy(posterior.network).to(where)
    x = x.to(where)
    with torch.no_grad():
        logits = FixedNetwork(network)(x)
    logits = logits.view(len(x), -1)
    chosen = logits.argmax(1) if target is None else check_target(target, len(x), logits.shape[1]).to(where)
    path, name = path_of(x, **options), f"{layer}.weight" if layer else "weight"
    mean = next(Engine(Draws([FixedNetwork(network)]), x).attributions(path, chosen))
    variance, roots = torch.zeros_like(mean, dtype=torch.float64), []
    for weights in _roots(posterior, layer).split(_AT_ONCE):
        draws = Draws([FixedNetwork(copy_with(network, {name: weight})) for weight in weights])
        for root in Engine(draws, x).attributions(path, chosen):
            variance += root.double().square()
            if keep_roots:
                roots.append(root.cpu())
    return AnalyticDistribution(mean.cpu(), variance.sqrt().to(mean).cpu(), torch.stack(roots) if roots else None)


def _last_layer(posterior: Posterior) -> str:
    """Name the dense layer that alone is random."""
    if isinstance(posterior, Laplace):
        name, names = posterior.last_layer, [posterior.last_layer]
    elif isinstance(posterior, Flipout | MCDropConnect):
        names = posterior.layers
        name = f"{names[-1]}.layer" if names[-1] else "layer"
    else:
        raise TypeError(f"got a {type(posterior).__name__}; pass Laplace, Flipout or MCDropConnect over a last layer")
    if len(names) > 1 or not isinstance(posterior.network.get_submodule(name), nn.Linear):
        raise ValueError(f"the random layers are {names}; wanted one dense layer, the last: draw, and use explain")
    return name


def _roots(posterior: Posterior, layer: str) -> Tensor:
    """Weights r_j, (D, C, D), with Cov[w_c] = sum_j r_jc r_jc^T for the weights w_c of each class c."""
    if isinstance(posterior, Laplace):
        if not posterior.factors:
            raise ValueError("this Laplace posterior has no curvature yet; call fit(loader) first")
        factor = posterior.factors[f"{layer}.weight" if layer else "weight"]
        variance = factor["rows"].square() @ (1 / factor["precision"])  # (C, D), in the basis of the columns
        return (variance.sqrt()[:, None] * factor["columns"]).permute(2, 0, 1)
    random = posterior.network.get_submodule(layer.rpartition(".")[0])
    if isinstance(random, DropConnectLayer):  # w times a mask that is 1 / (1 - p) or 0
        deviation = random.weight.abs() * (random.p / (1 - random.p)) ** 0.5
    else:
        deviation = cast(FlipoutLayer, random).std
    return torch.diag_embed(deviation.detach()).transpose(0, 1)
