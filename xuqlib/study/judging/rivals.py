"""Rivals of UA-Backprop on the same scalar, and the controls that stand beside them.

An uncertainty is a scalar function of the input, so any explainer explains it: `UncertaintyOf` is that function, and
`attribute_uncertainty` an explainer of it. Every entry of RIVALS and CONTROLS is called like `ua_backprop`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice
from xuqlib.explain import explain
from xuqlib.explainers import Explainer
from xuqlib.explainers.baselines import make_baseline
from xuqlib.explainers.declaring import Options, named
from xuqlib.explainers.fullgrad import fullgrad, logit_graph
from xuqlib.moments import folded
from xuqlib.path import blocks, rows_per_pass
from xuqlib.posteriors.draws import Draws, fixed_draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Batch, Count, Seed, checked
from xuqlib.ua_backprop import (
    SETTINGS,
    Setting,
    class_maps,
    logit_coefficients,
    logit_shares,
    settle,
    spread_shares,
)
from xuqlib.uncertainty import (
    KINDS,
    attribute_uncertainty,
    logits_of,
    uncertainty_shares,
    without_channels,
)

LARGEST = 2**23  # numbers of all explanations that are held at once: 64 MB in float64


@checked
def ua_backprop_linear(
    draws: Draws | Sequence[nn.Module],
    x: Batch,
    kind: str = "epistemic",
    *,
    setting: str = "paper",
    coefficients: str | None = None,
    tau1: float | None = None,
    chunk: Count | None = None,
) -> Tensor:
    """Attribute the logits of all draws, each times its share of the uncertainty: neither UA-Backprop nor complete.

    FullGrad's terms keep their sign and are not normalised, so one backward pass per draw gives the map of
    sum_j share[s, j] * logit[s, j]. Summed over draws s, it adds up to that without its dense terms (for a table, to
    its input term alone), not to the uncertainty, and it changes if a constant is added to all logits.

    Args, Raises: as for `ua_backprop`.

    Returns:
        Attribution in nats times logits, (N, H, W) or (N, F), of x's dtype.
    """
    chosen = settle(setting, coefficients=coefficients, tau1=tau1)
    draws, x, where = fixed_draws(draws, x)
    parts, attributions = blocks(len(x), rows_per_pass(x[:1].to(where), chunk)), []
    for part, shares in logit_shares(draws, x, kind, chosen, parts):
        total = torch.zeros((), dtype=torch.float64, device=where)
        for network, share in zip(draws, shares.to(where), strict=True):
            graph = logit_graph(network, x[part].detach().to(where))
            total = total + graph.saliencies(share.to(graph.logits)[None], "signed")[0]
        attributions.append(total.to(x))
    return torch.cat(attributions)


def _draws_of_classes(draws: Draws | Sequence[nn.Module], x: Tensor, kind: str) -> tuple[Draws, Tensor, torch.device]:
    """As `fixed_draws`, of networks that tell classes apart: others are refused, and so is an unknown kind."""
    check_choice(kind, KINDS, "kind")
    draws, x, where = fixed_draws(draws, x)
    logits = logits_of(draws.at(slice(1)), x[:1])
    if logits.shape[2] < 2 or draws.output in ("multilabel", "mean_variance", "segmentation"):
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; entropies are of class probabilities, so pass draws of at least "
            "two classes, not a regression"
        )
    return draws, x, where


@checked
def covariance_of_explanations(
    draws: Draws | Sequence[nn.Module],
    x: Batch,
    kind: str = "epistemic",
    *,
    explainer: str | Explainer = "gradient_x_input",
    form: str = "diag",
    **options: Any,
) -> Tensor:
    """Attribute disagreement of the draws by the covariance over them of their explanations a of one logit.

    "diag" is the variance of a at each pixel: where x has one channel, or is a table, `explain(...).std() ** 2`.
    "marg" is sum_j cov(a_i, a_j) = cov(a_i, sum_j a_j) at pixel i, which may be negative; it sums to the variance of
    sum_j a_j, which is that of logit(x) - logit(baseline) if the explainer is complete. Neither sums to the mutual
    information.

    Args:
        draws, x: as for `ua_backprop`. The logit is that of the class with the largest mean probability.
        kind: "epistemic" alone: the covariance knows nothing but how draws differ.
        explainer: as for `explain`, or its name: gradient x input for CovGI, Integrated Gradients for CovIG.
        form: "diag" or "marg".
        **options: passed on to the explainer, such as num_steps or baseline.

    Returns:
        Attribution in squared logits, (N, H, W) or (N, F), of x's dtype; divisor of the variances: number of draws.

    Raises:
        TypeError, ValueError: bad draws, x or option; networks with one output; another kind.

    Source: Bley, Lapuschkin, Samek & Montavon 2024, arXiv 2401.17441.
    """
    draws, x, where = _draws_of_classes(draws, x, kind)
    check_choice(form, ("diag", "marg"), "form")
    if kind != "epistemic":
        raise ValueError(f"kind is {kind!r}; a covariance over draws knows their disagreement alone, pass 'epistemic'")
    explainer = named(explainer)
    found, rows = [], max(1, LARGEST // (len(draws) * x[0].numel()))
    given = Options(explainer, options, x)
    for part in given.parts(rows):
        explained = explain(draws, explainer, x[part], device=where, progress=False, **given.of(part, where))
        deviation = explained._values("covariance").double() - explained.mean()  # (S, n, *shape of an example)
        deviation = deviation.sum(2) if x.dim() == 4 else deviation
        other = deviation if form == "diag" else deviation.sum(tuple(range(2, deviation.dim())), keepdim=True)
        found.append((deviation * other).mean(0).to(x))
    return torch.cat(found)


@checked
def random(draws: Draws | Sequence[nn.Module], x: Batch, kind: str = "epistemic", *, seed: Seed = 0) -> Tensor:
    """Uniform noise, another for each example; it knows nothing. Called like `ua_backprop`."""
    _draws_of_classes(draws, x, kind)
    shape = x.shape[:1] + x.shape[-2:] if x.dim() == 4 else x.shape
    return torch.rand(shape, generator=generator_of(seed), dtype=torch.float64).to(x)


@checked
def intensity(draws: Draws | Sequence[nn.Module], x: Batch, kind: str = "epistemic") -> Tensor:
    """The example itself, its channels summed; it knows no network. Called like `ua_backprop`."""
    _draws_of_classes(draws, x, kind)
    return without_channels(x.detach().clone())


@checked
def distance_to_blur(draws: Draws | Sequence[nn.Module], x: Batch, kind: str = "epistemic") -> Tensor:
    """|x - blurred x|, summed over channels; it knows no network. Pictures only. Called like `ua_backprop`."""
    _draws_of_classes(draws, x, kind)
    return folded(x.detach() - make_baseline("blurred", x))


@checked
def fullgrad_of_prediction(
    draws: Draws | Sequence[nn.Module], x: Batch, kind: str = "epistemic", *, setting: str = "paper"
) -> Tensor:
    """FullGrad's map of the predicted logit, averaged over draws: it explains the prediction, not its uncertainty.

    UA-Backprop is made of such maps, one for each logit, so what it shows beyond this one is what its shares add.

    Args:
        draws, x, kind: as for `ua_backprop`. The logit is that of the class with the largest mean probability.
        setting: of UA-Backprop, whose psi is taken.

    Returns:
        Map (N, H, W) or (N, F), of x's dtype, in logits if psi is "raw".
    """
    draws, x, where = _draws_of_classes(draws, x, kind)
    check_choice(setting, SETTINGS, "setting")
    explained = explain(draws, fullgrad, x, keep="mean", device=where, progress=False, psi=SETTINGS[setting].psi)
    return without_channels(explained.mean()).to(x)


@checked
def shuffled_shares(
    draws: Draws | Sequence[nn.Module],
    x: Batch,
    kind: str = "epistemic",
    *,
    setting: str = "paper",
    seed: Seed = 0,
    chunk: Count | None = None,
    **choices: Any,
) -> Tensor:
    """UA-Backprop with each logit's share dealt to the map of another logit, of any draw and class.

    As complete as `ua_backprop`, with FullGrad's maps and the same shares; only which map gets which is lost.

    Args:
        draws, x, kind, setting, chunk: as for `ua_backprop`.
        seed: of the deal, another for each example; none of its (draw, class) keeps its own share.
        **choices: coefficients, tau1, psi, normalise or tau2, which replace what the setting says.

    Returns:
        Attribution in nats, (N, H, W) or (N, F), of x's dtype.
    """
    draws, x, where = _draws_of_classes(draws, x, kind)
    check_choice(setting, SETTINGS, "setting")
    for name in choices:
        check_choice(name, Setting._fields, "option")
    chosen = SETTINGS[setting]._replace(**choices)
    logits = logits_of(draws, x)  # (S, N, C)
    order = torch.rand(len(x), logits[:, 0].numel(), generator=generator_of(seed)).argsort(1)
    dealt = torch.empty_like(order).scatter_(1, order, order.roll(1, 1))  # one cycle through all slots: none stays
    rows, parts = rows_per_pass(x[:1].to(where), chunk), []
    for first in range(0, len(x), rows):
        here = slice(first, first + rows)
        handed_on = logit_coefficients(logits[:, here], chosen.coefficients, chosen.tau1)
        shares = torch.einsum("sni,snij->nsj", uncertainty_shares(logits[:, here], kind), handed_on)
        shares = shares.flatten(1).gather(1, dealt[here]).view_as(shares).to(where)
        part, found = x[here].detach().to(where), torch.zeros((), dtype=torch.float64, device=where)
        for network, share in zip(draws, shares.unbind(1), strict=True):
            maps = class_maps(network, part, psi=chosen.psi)
            found = found + spread_shares(share, maps, normalise=chosen.normalise, tau2=chosen.tau2)
        parts.append(found.to(x))
    return torch.cat(parts)


RIVALS: dict[str, Callable[..., Tensor]] = {
    "gradient": partial(attribute_uncertainty, explainer="gradient", absolute=True),
    "gradient_x_input": partial(attribute_uncertainty, explainer="gradient_x_input"),
    "gradient_x_input_abs": partial(attribute_uncertainty, explainer="gradient_x_input", absolute=True),
    "smoothgrad": partial(attribute_uncertainty, explainer="smoothgrad", absolute=True, num_samples=25),
    "ig_black": partial(attribute_uncertainty, explainer="integrated_gradients", baseline="black", num_steps=32),
    "ig_blurred": partial(attribute_uncertainty, explainer="integrated_gradients", baseline="blurred", num_steps=32),
    "fullgrad_of_u": partial(attribute_uncertainty, explainer="fullgrad"),
    "lime": partial(attribute_uncertainty, explainer="lime"),
    "covgi_diag": partial(covariance_of_explanations, explainer="gradient_x_input", form="diag"),
    "covgi_marg": partial(covariance_of_explanations, explainer="gradient_x_input", form="marg"),
    "covig_diag": partial(covariance_of_explanations, explainer="integrated_gradients", form="diag"),
    "covig_marg": partial(covariance_of_explanations, explainer="integrated_gradients", form="marg"),
}
CONTROLS: dict[str, Callable[..., Tensor]] = {
    "random": random,
    "distance_to_blur": distance_to_blur,
    "intensity": intensity,
    "fullgrad_of_prediction": fullgrad_of_prediction,
    "shuffled_shares": shuffled_shares,
    "signed_gradient_x_input": RIVALS["gradient_x_input"],
}
