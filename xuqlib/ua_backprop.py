"""UA-Backprop: an attribution that adds up to the uncertainty of a prediction.

Three steps, backwards: the uncertainty is a sum of shares, one per probability of each draw; the softmax hands them on
to that draw's logits; an explanation of each logit, made to sum to 1, spreads its share over the pixels.
"""

from __future__ import annotations

import math
import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xuqlib.checks import check_attribution, check_choice, check_examples, check_logits, check_number, check_tensor
from xuqlib.explainers import EXPLAINERS, Explainer
from xuqlib.explainers.declaring import Options, named
from xuqlib.explainers.fullgrad import FullGradTerms, fullgrad, logit_graph, saliency
from xuqlib.path import Network, blocks, rows_per_pass
from xuqlib.posteriors.draws import Draws, fixed_draws
from xuqlib.posteriors.trial import try_out
from xuqlib.uncertainty import KINDS, logits_of, uncertainty_shares

_AT_ONCE = 2**23  # numbers of coefficients, or of maps, that are held at once: 64 MB in float64
_REGRESSIONS = ("regression", "mean_variance")
COEFFICIENTS = ("softmax", "row-normalised", "ratio")
NORMALISATIONS = ("softmax", "relative", "sum")
_OF_LOGITS = ChainMap[str, Explainer]({"fullgrad": fullgrad}, EXPLAINERS)


class Setting(NamedTuple):
    """What the method leaves open; see `logit_coefficients`, `class_maps` and `spread_shares`."""

    coefficients: str
    tau1: float
    psi: str
    normalise: str
    tau2: float


# The paper's temperatures are not known. These were chosen on validation images by AUC-URR at 5 %, one pair for all
# data sets (notebook 18), and then frozen. At so small a tau1 a share all but stays with the logit of its class.
SETTINGS = {
    "paper": Setting(coefficients="softmax", tau1=1e-5, psi="minmax", normalise="softmax", tau2=1.0),
    "recommended": Setting(coefficients="softmax", tau1=1e-5, psi="raw", normalise="sum", tau2=1.0),
}


def ua_backprop(
    draws: Draws | Sequence[nn.Module],
    x: Any,
    kind: str = "epistemic",
    *,
    output: Any = None,
    setting: str = "paper",
    coefficients: str | None = None,
    tau1: float | None = None,
    psi: str | None = None,
    normalise: str | None = None,
    tau2: float | None = None,
    explainer: str | Explainer = "fullgrad",
    chunk: int | None = None,
    **options: Any,
) -> Tensor:
    """Attribute the uncertainty of each prediction to the pixels, or features, that it comes from.

    Complete: the attribution sums to `uncertainties(draws, x)` of that kind, up to the rounding of x's dtype, and is 0
    where that is 0. Completeness says nothing about the map: a flat one is complete too.

    Args:
        draws: fixed networks, from `posterior.sample`, or a list of networks.
        x, output: as for `explain`: logits, probabilities, binary, or one place of a segmentation; of a regression or
            "mean_variance", the variances are attributed, summed over the numbers, in squared target units (see
            `uncertainty_shares`).
        kind: "total", "aleatoric" or "epistemic". Pixels can be negative only for "epistemic".
        setting: "paper" or "recommended" (raw psi, divided by its sum, which points more at the uncertainty on
            validation images). The next five replace what it says; each None keeps it.
        coefficients, tau1: from probabilities to logits, see `logit_coefficients`.
        psi: what becomes of an explanation's terms before they are added, see `class_maps`.
        normalise, tau2: from the map of a logit to weights that sum to 1, see `spread_shares`.
        explainer: of each logit: "fullgrad", a name in `xuqlib.explainers.EXPLAINERS`, or a function like those.
        chunk: examples in one pass; chosen by device and size of x if None.
        **options: passed on to the explainer, such as num_steps; "fullgrad" has none.

    Returns:
        Attribution in nats, (N, H, W) or (N, F), of x's dtype; the sum over draws and classes runs in float64.

    Raises:
        TypeError, ValueError: bad draws, x or option; other outputs; a temperature that has no effect.

    Source: the three steps are those of Wang, Joshi, Wang & Ji 2023, arXiv 2304.04824; the formulas are derived anew.
    """
    check_choice(kind, KINDS, "kind")
    chosen = settle(setting, coefficients=coefficients, tau1=tau1, psi=psi, normalise=normalise, tau2=tau2)
    draws, x, where = fixed_draws(draws, x, output)
    if draws.output not in (None, "logits", *_REGRESSIONS):
        draws = draws.of_classes()
    given, attributions = Options(named(explainer, _OF_LOGITS), options, x), []
    for part, shares in logit_shares(draws, x, kind, chosen, given.parts(rows_per_pass(x[:1].to(where), None), chunk)):
        some, total = x[part].detach().to(where), torch.zeros((), dtype=torch.float64, device=where)
        for network, share in zip(draws.at(part), shares.to(where), strict=True):
            at_once = max(1, _AT_ONCE // some.numel())
            for labels, maps in _class_maps(network, some, explainer, chosen.psi, at_once, given.of(part, where)):
                total = total + spread_shares(share[:, labels], maps, normalise=chosen.normalise, tau2=chosen.tau2)
        attributions.append(total.to(x))
    return torch.cat(attributions)


def logit_coefficients(logits: Tensor, coefficients: str = "softmax", tau1: float = 1e-5) -> Tensor:
    """Return c[i, j], the part of probability i's share that goes to logit j; each row sums to 1.

    From J[i, j] = d p_i / d z_j = p_i (1[i = j] - p_j):
    "softmax": softmax_j(J[i, j] / tau1); uniform in the limit of a sure draw, since J vanishes there.
    "row-normalised": the same with each row of J divided by the sum of its absolute values, which does not vanish.
    "ratio": |J[i, j]| / sum_k |J[i, k]|: 1/2 where i = j, p_j / (2 (1 - p_i)) elsewhere; it has no temperature.

    Args:
        logits: (..., class).

    Returns:
        Coefficients (..., class, class), float64.
    """
    check_choice(coefficients, COEFFICIENTS, "coefficients")
    check_tensor(logits, "logits", axes=1)
    log_probs = logits.double().log_softmax(-1)
    probs, itself = log_probs.exp(), torch.eye(logits.shape[-1], dtype=torch.float64, device=logits.device)
    if coefficients == "softmax":
        return _softmax(probs[..., None] * (itself - probs[..., None, :]), tau1, "tau1")
    # p_j / (1 - p_i), and 0 where j = i; as a softmax it is exact even where 1 - p_i rounds to 0.
    others = log_probs[..., None, :].masked_fill(itself.bool(), -math.inf).softmax(-1)
    return (itself + others) / 2 if coefficients == "ratio" else _softmax((itself - others) / 2, tau1, "tau1")


def class_maps(
    network: Network, x: Tensor, *, explainer: str | Explainer = "fullgrad", psi: str = "minmax", **options: Any
) -> Tensor:
    """Explain every logit of one draw by a map that is nowhere negative.

    The map is the sum over terms and channels of psi(term): FullGrad's terms, or an attribution as the only term.

    Args:
        network, x: as for `fullgrad`; all examples in one pass.
        explainer, **options: as for `ua_backprop`.
        psi: "minmax", the absolute value rescaled to [0, 1], or "raw", the absolute value; see `saliency`.

    Returns:
        Maps, (example, class, H, W) or (example, class, F).
    """
    check_examples(x)
    try_out(network, x)
    return torch.cat([maps for _, maps in _class_maps(network, x, explainer, psi, sys.maxsize, options)], 1)


def _class_maps(
    network: Network, x: Tensor, explainer: str | Explainer, psi: str, at_once: int, options: dict[str, Any]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some classes at a time, and their maps."""
    check_choice(psi, ("minmax", "raw"), "psi")
    if explainer == "fullgrad":
        if options:
            raise TypeError(f"fullgrad takes no option {next(iter(options))!r}; leave it out")
        graph = logit_graph(network, x)
        one_hot = torch.eye(graph.logits.shape[1]).to(graph.logits)
        for labels in blocks(len(one_hot), at_once):
            yield labels, graph.saliencies(one_hot[labels, None].expand(-1, len(x), -1), psi).transpose(0, 1)
        return
    explain_one = named(explainer, _OF_LOGITS)
    with torch.no_grad():
        num_classes = check_logits(network(x.clone()), len(x)).shape[1]
    for labels in blocks(num_classes, at_once):
        attributions = [explain_one(network, x, label, **options) for label in range(num_classes)[labels]]
        yield labels, torch.stack([saliency(FullGradTerms(check_attribution(a, x)), psi) for a in attributions], 1)


def spread_shares(shares: Tensor, maps: Tensor, *, normalise: str = "softmax", tau2: float = 1.0) -> Tensor:
    """Spread the share of each logit over the pixels by its map; the result sums to the shares.

    Args:
        shares: of one draw's logits, (example, class), in nats.
        maps: of the same logits, (example, class, ...), nowhere negative.
        normalise: "softmax", over the pixels of maps / tau2; "relative", over those of maps / (tau2 times the standard
            deviation of the map over its pixels); or "sum", maps divided by their sum. All spread an even map evenly.
        tau2: of "softmax" in units of the maps, so what it does depends on the number of channels and layers that they
            add up; of "relative" without a unit, the same for any network.

    Returns:
        Attribution in nats, (example, ...), float64.
    """
    check_choice(normalise, NORMALISATIONS, "normalise")
    for value, what in ((shares, "shares"), (maps, "maps")):
        check_tensor(value, what, axes=2)
    if shares.shape != maps.shape[:2]:
        raise ValueError(
            f"shares are {tuple(shares.shape)} but maps {tuple(maps.shape)}; pass those of the same logits"
        )
    flat = maps.double().flatten(2)
    if normalise == "relative":
        spread = flat.std(-1, correction=0, keepdim=True)
        flat = flat / torch.where(spread > 0, spread, 1)
    if normalise != "sum":
        weights = _softmax(flat, tau2, "tau2")
    else:
        total = flat.sum(-1, keepdim=True)
        weights = torch.where(total > 0, flat / total, 1 / flat.shape[-1])
    return (shares.double()[..., None] * weights).sum(1).view(maps.shape[:1] + maps.shape[2:])


def _softmax(values: Tensor, tau: float, name: str) -> Tensor:
    # Shifted before it is divided, so that a tiny temperature cannot make infinity minus infinity.
    return ((values - values.amax(-1, keepdim=True)) / check_number(tau, 0, name, above=True)).softmax(-1)


def settle(setting: str, **given: Any) -> Setting:
    """Return a named setting with what is given, and not None, in the place of what it says.

    Raises:
        ValueError: unknown setting; a temperature that has no effect.
    """
    check_choice(setting, SETTINGS, "setting")
    given = {name: value for name, value in given.items() if value is not None}
    chosen = SETTINGS[setting]._replace(**given)
    for name, argument, value in (("tau1", "coefficients", "ratio"), ("tau2", "normalise", "sum")):
        if name in given and getattr(chosen, argument) == value:
            raise ValueError(f"{name} is {given[name]} but has no effect with {argument}={value!r}; leave it out")
    return chosen


def logit_shares(
    draws: Draws, x: Tensor, kind: str, chosen: Setting, parts: Iterable[slice]
) -> Iterator[tuple[slice, Tensor]]:
    """Yield some examples at a time, and the shares that the uncertainty has in all their logits, (draw, n, class).

    The shares come from the logits of all examples, so they do not depend on how the examples are cut.
    """
    logits = logits_of(draws, x)
    shares = uncertainty_shares(logits, kind, draws.noise_variance, draws.output)
    if draws.output in _REGRESSIONS or logits.shape[2] == 1:  # without a softmax to hand them on
        yield from ((part, shares[:, part].flatten(2)) for part in parts)
        return
    at_once = max(1, _AT_ONCE // (len(draws) * logits.shape[2] ** 2))  # examples
    for part in parts:
        handed_on = []
        for some in blocks(len(logits[0, part]), at_once):
            coefficients = logit_coefficients(
                logits[:, part][:, some], chosen.coefficients, chosen.tau1
            )  # (S, n, C, C)
            handed_on.append(torch.einsum("sni,snij->snj", shares[:, part][:, some], coefficients))
        yield part, torch.cat(handed_on, 1)
