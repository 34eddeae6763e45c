"""Rivals of UA-Backprop on the same scalar, and the controls that stand beside them.

An uncertainty is a scalar function of the input, so any explainer explains it: `UncertaintyOf` is that function, and
`attribute_uncertainty` an explainer of it. Every entry of RIVALS and CONTROLS is called like `ua_backprop`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_fixed
from xuqlib.explain import explain
from xuqlib.explainers import EXPLAINERS
from xuqlib.explainers.baselines import make_baseline
from xuqlib.explainers.fullgrad import check_mappable, fullgrad
from xuqlib.explainers.gradients import Explainer
from xuqlib.moments import folded
from xuqlib.path import rows_per_pass
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.ua_backprop import (
    KINDS,
    SETTINGS,
    Setting,
    class_maps,
    logit_coefficients,
    probability_shares,
    spread_shares,
)
from xuqlib.uncertainty import logits_of

LARGEST = 2**23  # numbers of all explanations that are held at once: 64 MB in float64
# FullGrad's signed terms add up to U as far as it can; other explainers are taken as they come.
OF_UNCERTAINTY: dict[str, Explainer] = EXPLAINERS | {"fullgrad": partial(fullgrad, psi="signed")}


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
            `psi` says
            otherwise; or a function (network, x, target) like those.
        absolute: add up absolute values over channels, instead of the values.
        chunk: rows (examples, or examples times steps) in one pass through all draws; chosen by device, size of x and
            number of draws if None.
        **options: passed on to the explainer, such as num_steps, baseline or segments.

    Returns:
        Attribution (N, H, W) or (N, F), of x's dtype: for a gradient in nats per unit of x, else in nats.

    Raises:
        TypeError, ValueError: bad draws, x or option; networks with one output; an attribution not shaped like x.

    Source: the rivals of Wang, Joshi, Wang & Ji 2023, arXiv 2304.04824; each explainer names its own.
    """
    draws, where = _checked(draws, x, kind)
    if not callable(explainer):
        check_choice(explainer, OF_UNCERTAINTY, "explainer")
        explainer = OF_UNCERTAINTY[explainer]
    rows = rows_per_pass(x[:1].to(where), chunk)
    if chunk is None:  # U keeps the graphs of all its draws
        rows = max(1, min(rows, 8 * rows // len(draws)))
    if "chunk" in inspect.signature(explainer).parameters:
        options["chunk"] = rows
    network, found = UncertaintyOf(draws, kind), []
    for part, here in _parts(x, rows, options, where):
        attribution = explainer(network, part, 0, **here)
        if attribution.shape != part.shape:
            given, wanted = tuple(attribution.shape), tuple(part.shape)
            raise ValueError(f"the explainer returned {given}, not an attribution shaped like x {wanted}")
        found.append((folded(attribution) if absolute else _without_channels(attribution)).to(x))
    return torch.cat(found)


def covariance_of_explanations(
    draws: Draws | Sequence[nn.Module],
    x: Tensor,
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
    draws, where = _checked(draws, x, kind)
    check_choice(form, ("diag", "marg"), "form")
    if kind != "epistemic":
        raise ValueError(f"kind is {kind!r}; a covariance over draws knows their disagreement alone, pass 'epistemic'")
    if not callable(explainer):
        check_choice(explainer, EXPLAINERS, "explainer")
        explainer = EXPLAINERS[explainer]
    found, rows = [], max(1, LARGEST // (len(draws) * x[0].numel()))
    for part, here in _parts(x, rows, options, where):
        explained = explain(draws, explainer, part, device=where, progress=False, **here)
        deviation = explained._values("covariance").double() - explained.mean()  # (S, n, *shape of an example)
        deviation = deviation.sum(2) if x.dim() == 4 else deviation
        other = deviation if form == "diag" else deviation.sum(tuple(range(2, deviation.dim())), keepdim=True)
        found.append((deviation * other).mean(0).to(x))
    return torch.cat(found)


def random(draws: Draws | Sequence[nn.Module], x: Tensor, kind: str = "epistemic", *, seed: int = 0) -> Tensor:
    """Uniform noise, another for each example; it knows nothing. Called like `ua_backprop`."""
    _checked(draws, x, kind)
    shape = x.shape[:1] + x.shape[-2:] if x.dim() == 4 else x.shape
    return torch.rand(shape, generator=generator_of(seed), dtype=torch.float64).to(x)


def intensity(draws: Draws | Sequence[nn.Module], x: Tensor, kind: str = "epistemic") -> Tensor:
    """The example itself, its channels summed; it knows no network. Called like `ua_backprop`."""
    _checked(draws, x, kind)
    return _without_channels(x.detach().clone())


def distance_to_blur(draws: Draws | Sequence[nn.Module], x: Tensor, kind: str = "epistemic") -> Tensor:
    """|x - blurred x|, summed over channels; it knows no network. Pictures only. Called like `ua_backprop`."""
    _checked(draws, x, kind)
    return folded(x.detach() - make_baseline("blurred", x))


def fullgrad_of_prediction(
    draws: Draws | Sequence[nn.Module], x: Tensor, kind: str = "epistemic", *, setting: str = "paper"
) -> Tensor:
    """FullGrad's map of the predicted logit, averaged over draws: it explains the prediction, not its uncertainty.

    UA-Backprop is made of such maps, one for each logit, so what it shows beyond this one is what its shares add.

    Args:
        draws, x, kind: as for `ua_backprop`. The logit is that of the class with the largest mean probability.
        setting: of UA-Backprop, whose psi is taken.

    Returns:
        Map (N, H, W) or (N, F), of x's dtype, in logits if psi is "raw".
    """
    draws, where = _checked(draws, x, kind)
    check_choice(setting, SETTINGS, "setting")
    explained = explain(draws, fullgrad, x, keep="mean", device=where, progress=False, psi=SETTINGS[setting].psi)
    return _without_channels(explained.mean()).to(x)


def shuffled_shares(
    draws: Draws | Sequence[nn.Module],
    x: Tensor,
    kind: str = "epistemic",
    *,
    setting: str = "paper",
    seed: int = 0,
    chunk: int | None = None,
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
    draws, where = _checked(draws, x, kind)
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
        shares = torch.einsum("sni,snij->nsj", probability_shares(logits[:, here], kind), handed_on)
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


def _checked(draws: Draws | Sequence[nn.Module], x: Tensor, kind: str) -> tuple[Draws, torch.device]:
    """Refuse what `ua_backprop` refuses; return the draws, and where they are."""
    check_mappable(x)
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    for network in draws:
        check_fixed(network)
    probability_shares(logits_of(draws, x[:1]), kind)  # refuses an unknown kind, and a regression
    return draws, next((parameter.device for parameter in draws[0].parameters()), x.device)


def _parts(x: Tensor, rows: int, options: Any, where: torch.device) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yield a few examples at a time, where the draws are, with those options that hold something for each of them."""
    if options.get("baseline") is not None:
        options = options | {"baseline": make_baseline(options["baseline"], x)}  # from all examples, whatever the rows
    per_example = [shape for shape in (x.shape, x.shape[:1] + x.shape[2:]) if len(shape) > 1]
    for first in range(0, len(x), rows):
        here = slice(first, first + rows)
        part, cut = x[here].detach().to(where), dict(options)
        for name, value in options.items():
            if isinstance(value, Tensor) and value.shape in per_example:
                cut[name] = value[here].to(where)
        yield part, cut


def _without_channels(attribution: Tensor) -> Tensor:
    return attribution.sum(1) if attribution.dim() == 4 else attribution
