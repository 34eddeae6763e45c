"""LIME: a weighted ridge regression on perturbed copies of an example, whose coefficients are the attribution.

Perturbations come from the seed alone, so all draws and all examples share them: over draws only the networks differ.
Since the design is then the same too, one factorisation serves all examples: coefficients = H y.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import torch
from torch import Tensor, nn

from xuqlib.checks import check_count, check_examples, check_fixed, check_number, check_target
from xuqlib.explainers.baselines import expand
from xuqlib.explainers.declaring import explainer
from xuqlib.fast.engine import Engine
from xuqlib.path import Network, rows_per_pass
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.trial import try_out
from xuqlib.superpixels import check_segments, filled, superpixels
from xuqlib.views import View

_Perturb = Callable[[Tensor, Tensor], Tensor]
_Parameters = ParamSpec("_Parameters")


class LimeFit(NamedTuple):
    """A LIME attribution, shaped like x, and how well its linear surrogate fits each example.

    r2 is the share of the weighted variance of the perturbed logits that the surrogate explains, (N,); NaN where the
    logit does not change at all. A low one means that the attribution describes the network badly.
    """

    attribution: Tensor
    r2: Tensor


class _Options(NamedTuple):
    """The options of `lime_fit`, which holds their defaults."""

    num_samples: int
    seed: int
    alpha: float
    kernel_width: float | None
    scale: float | Tensor
    num_segments: int
    segments: Tensor | None
    fill: str | float | Tensor


class _Surrogate:
    """Weighted ridge regression with a free intercept on a fixed design.

    Minimises sum_m w_m (y_m - b - z_m coefficients)^2 + alpha |coefficients|^2, in float64 on the CPU.

    Args:
        design: z, (M, K).
        weights: w, (M,), positive.
        alpha: ridge penalty.
    """

    def __init__(self, design: Tensor, weights: Tensor, alpha: float) -> None:
        self.share = weights / weights.sum()
        self.centred = design - self.share @ design
        weighted = self.centred * weights[:, None]
        gram = self.centred.T @ weighted + alpha * torch.eye(design.shape[1], dtype=design.dtype)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            raise ValueError(
                f"{len(design)} perturbations do not determine {design.shape[1]} coefficients at alpha = {alpha}; "
                "raise num_samples, or alpha above 0"
            )
        # The centred design makes weighted sums of a constant 0, so y needs no centring.
        self.smoother = torch.cholesky_solve(weighted.T, factor)  # (K, M)

    def fit(self, y: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
        """Return the coefficients, (N, K), and the weighted R2, (N,), for logits y, (N, M).

        `rounding` is the precision of the network's numbers; a logit that changes by less than 32 of its last digits,
        which a sum may well lose, has no variance to explain.
        """
        coefficients = y @ self.smoother.T
        centred = y - (y @ self.share)[:, None]
        unexplained = ((centred - coefficients @ self.centred.T) ** 2) @ self.share
        variance = (centred**2) @ self.share
        constant = variance <= (32 * rounding * y.abs().amax(1)) ** 2
        r2 = torch.where(constant, torch.nan, 1 - unexplained / variance)
        return torch.where(constant[:, None], 0, coefficients), r2  # of a constant they would be rounding


def lime_fit(
    network: Network,
    x: Tensor,
    target: Any = None,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    alpha: float = 1.0,
    kernel_width: float | None = None,
    scale: float | Tensor = 1.0,
    num_segments: int = 40,
    segments: Tensor | None = None,
    fill: str | float | Tensor = "mean",
) -> LimeFit:
    """Attribute each target logit by the coefficients of a local linear surrogate, and say how well it fits.

    Tables (N, F): copies are x + scale * z, z standard normal. The attribution of a feature is the surrogate's slope,
    in logits per unit of x. Weights are exp(-|z|^2 / width^2), width 0.75 sqrt(F).
    Images (N, C, H, W), and whatever has `segments`: each region is shown or hidden with chance 1/2. The coefficient of
    a region is the logit that showing it adds; the attribution holds it at each of its pixels, divided by C, so that a
    sum over channels gives the coefficient. Weights are sqrt(exp(-d^2 / width^2)), d the cosine distance to the whole
    image, width 0.25: the `lime` package's, as are alpha and the fill. Unlike there, the regions are SLIC's.
    Token ids: each token is a region, hidden as no token (see `Inputs`).

    Args:
        network, x, target: as for `gradient`. No gradient is taken.
        num_samples: perturbed copies of each example, the example itself among them.
        seed: of the perturbations, which all examples and draws share.
        alpha: ridge penalty on the coefficients, not on the intercept.
        kernel_width: replaces the width above.
        scale: tables only: the standard deviation of the features, (F,) or one for all; 1 for standardised ones.
        num_segments: images only: superpixels per image, about.
        segments: whole numbers that broadcast to x, or (N, H, W): regions, instead of `superpixels(x, num_segments)`.
            For a signal, `windows(x, axis=2)`; for a table (F,), one label for all columns of a categorical feature.
        fill: what a hidden region becomes: "mean", its own mean colour (for a table, 0 or a tensor of typical values
            is what hides); a number; or a tensor broadcastable to x.

    Warns:
        UserWarning: hiding all superpixels changes nothing, so that there is nothing to attribute.

    Raises:
        TypeError, ValueError: as for `gradient`; an option is out of range or of another shape.

    Source: Ribeiro, Singh & Guestrin 2016, eq. 2 and section 3.4. arXiv 1602.04938.
    """
    options = _Options(num_samples, seed, alpha, kernel_width, scale, num_segments, segments, fill)
    return _fits([network], x, target, options)[0]


def _over_draws(draws: Sequence[Network], x: Tensor, target: Any = None, **options: Any) -> list[Tensor]:
    """Return `lime` of every draw at once: what draws share of the network meets each perturbed copy once."""
    given = inspect.signature(lime_fit).bind(draws, x, target, **options)
    given.apply_defaults()
    return [fit.attribution for fit in _fits(list(draws), x, target, _Options(**given.kwargs))]


def _fits(networks: list[Network], x: Tensor, target: Any, options: _Options) -> list[LimeFit]:
    check_examples(x)
    for network in networks:
        check_fixed(network)
    try_out(networks[0], x)
    check_count(options.num_samples, 2, "num_samples")
    check_number(options.alpha, 0, "alpha")
    if options.kernel_width is not None:
        check_number(options.kernel_width, 0, "kernel_width", above=True)
    rng = np.random.default_rng(check_count(options.seed, 0, "seed"))
    if isinstance(networks[0], View) and networks[0].inputs.are_tokens:
        options = options._replace(
            segments=torch.arange(x.shape[1])[None] if options.segments is None else options.segments,
            fill=0.0 if options.fill == "mean" else options.fill,
        )
    if x.dim() == 3 and options.segments is None:
        raise ValueError(
            f"x is {tuple(x.shape)}, and which of its axes is time is not known; pass segments=windows(x, axis=2), or 1"
        )
    is_table = x.dim() == 2 and options.segments is None
    return (_fit_table if is_table else _fit_regions)(networks, x.detach(), target, rng, options)


def _attribution_of(fit: Callable[_Parameters, LimeFit]) -> Callable[_Parameters, Tensor]:
    """Turn a function that also returns the quality of the fit into an explainer with the same parameters."""

    def lime(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Tensor:
        return fit(*args, **kwargs).attribution

    signature = inspect.signature(fit).replace(return_annotation="Tensor")
    lime.__qualname__, lime.__doc__ = "lime", f"{fit.__doc__}".replace(", and say how well it fits", "", 1)
    setattr(lime, "__signature__", signature)  # noqa: B010 - as an assignment it does not type-check
    return lime


_PER_EXAMPLE: dict[str, Callable[[Any, Tensor], Any]] = {
    # Labels that all examples share become one row for each, so that they are cut with the examples.
    "segments": lambda segments, x: None if segments is None else check_segments(segments, x),
    "fill": lambda fill, x: expand(fill, x, "fill") if isinstance(fill, Tensor) else fill,
}
lime = explainer("lime", over_draws=_over_draws, per_example=_PER_EXAMPLE)(_attribution_of(lime_fit))


def _fit_table(
    networks: list[Network], x: Tensor, target: Any, rng: np.random.Generator, options: _Options
) -> list[LimeFit]:
    num_samples, alpha, scale = options.num_samples, options.alpha, options.scale
    spread = torch.as_tensor(scale, dtype=torch.float64).detach().cpu()
    if spread.shape not in ((), (1,), x.shape[1:]) or not bool((torch.isfinite(spread) & (spread > 0)).all()):
        raise ValueError(f"scale is {scale}; pass a positive number, or one for each of the {x.shape[1]} features")
    design = torch.from_numpy(rng.standard_normal((num_samples, x.shape[1])))
    design[0] = 0
    width = 0.75 * x.shape[1] ** 0.5 if options.kernel_width is None else options.kernel_width
    surrogate = _Surrogate(design, torch.exp(-((design / width) ** 2).sum(1)), alpha)
    offsets = (spread * design).to(x)
    logits = _perturbed_logits(networks, lambda example, copy: x[example] + offsets[copy], x, target, num_samples)
    fits = [surrogate.fit(y, torch.finfo(x.dtype).eps) for y in logits]
    return [LimeFit((coefficients / spread).to(x), r2.to(x)) for coefficients, r2 in fits]


def _fit_regions(
    networks: list[Network], x: Tensor, target: Any, rng: np.random.Generator, options: _Options
) -> list[LimeFit]:
    given, num_samples = options.segments, options.num_samples
    labels = superpixels(x, options.num_segments)[:, None] if given is None else check_segments(given, x)
    sizes = labels.flatten(1).amax(1) + 1  # (N,)
    # One row of numbers per superpixel: those of the first do not depend on how many there are in other images.
    shown = torch.from_numpy(rng.random((int(sizes.max()), num_samples)) < 0.5).T.contiguous()  # (M, K)
    shown[0] = True
    hidden, keep, where = filled(x, labels, options.fill), shown.to(x.device), labels.flatten(1).to(x.device)
    unhidden = int(((hidden - x).abs() <= torch.finfo(x.dtype).eps * x.abs()).flatten(1).all(1).sum())
    if unhidden:
        warnings.warn(
            f"LIME hides nothing in {unhidden} of {len(x)} examples, since what fills each superpixel is what it was; "
            "pass another fill, such as 0, or a smaller num_segments",
            stacklevel=4,
        )

    def perturb(example: Tensor, copy: Tensor) -> Tensor:
        visible = keep[copy].gather(1, where[example]).view(-1, *labels.shape[1:])
        return torch.where(visible, x[example], hidden[example])

    logits = _perturbed_logits(networks, perturb, x, target, num_samples)  # (S, N, M)
    width = 0.25 if options.kernel_width is None else options.kernel_width
    maps = torch.zeros((len(networks), *labels.shape), dtype=torch.float64)
    r2 = torch.zeros((len(networks), len(x)), dtype=torch.float64)
    for size in sizes.unique().tolist():
        same = sizes == size
        design = shown[:, :size].double()
        # Cosine similarity of a 0/1 row with the row of ones; an image with everything hidden gets 0.
        distance = 1 - design.mean(1).sqrt()
        surrogate = _Surrogate(design, torch.exp(-0.5 * (distance / width) ** 2), options.alpha)
        for draw, y in enumerate(logits):
            coefficients, r2[draw, same] = surrogate.fit(y[same], torch.finfo(x.dtype).eps)
            maps[draw, same] = coefficients.gather(1, labels[same].flatten(1)).view(-1, *labels.shape[1:])
    attributions = (maps / (x[0].numel() // labels[0].numel())).expand(-1, -1, *x.shape[1:]).to(x)
    return [LimeFit(attribution.contiguous(), fit.to(x)) for attribution, fit in zip(attributions, r2, strict=True)]


def _perturbed_logits(networks: list[Network], perturb: _Perturb, x: Tensor, target: Any, num_samples: int) -> Tensor:
    """Return the target logit of every copy of every example by every network, (S, N, M), float64 on the CPU."""
    rows, num_examples = rows_per_pass(x, None), len(x)
    modules = [network if isinstance(network, nn.Module) else _Function(network) for network in networks]
    draws, first = Draws(modules), slice(rows)
    engine = Engine(draws.at(slice(1)), x[:1])
    if not engine.is_fast:  # what is wrong with an output is said of the examples, not of their copies
        engine.at(draws.at(first)).logits(x[first])
    classes, selected = None, torch.empty((len(networks), num_examples, num_samples), dtype=torch.float64)
    for seen, example, copy in draws.in_rows(num_examples, num_samples, rows):
        logits = engine.at(seen).logits(perturb(example.to(x.device), copy.to(x.device)))  # (S, R, C)
        if classes is None:
            classes = check_target(target, num_examples, logits.shape[2]).to(logits.device)
        wanted = classes[example.to(classes.device)].expand(len(networks), -1)
        selected[:, example, copy] = logits.gather(2, wanted[..., None]).squeeze(2).cpu().double()
    return selected


class _Function(nn.Module):
    """A network that is given as a function."""

    def __init__(self, function: Network) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
