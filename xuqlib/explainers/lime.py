"""LIME: a weighted ridge regression on perturbed copies of an example, whose coefficients are the attribution.

Perturbations come from the seed alone, so all draws and all examples share them: over draws only the networks differ.
Since the design is then the same too, one factorisation serves all examples: coefficients = H y.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from xuqlib.checks import check_count, check_examples, check_number, check_seed, check_target
from xuqlib.device import device_of
from xuqlib.explainers.baselines import expand
from xuqlib.explainers.declaring import explainer
from xuqlib.fast.engine import Engine
from xuqlib.path import Network, rows_per_pass
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.trial import try_out
from xuqlib.superpixels import check_segments, filled, superpixels
from xuqlib.views import View


class LimeFit(NamedTuple):
    """A LIME attribution, shaped like x, and how well its linear surrogate fits each example.

    r2 is the share of the weighted variance of the perturbed logits that the surrogate explains, (N,); NaN where the
    logit does not change at all. A low one means that the attribution describes the network badly.
    """

    attribution: Tensor
    r2: Tensor


class _Copies(NamedTuple):
    """How examples are perturbed, and what a coefficient of the surrogate is of.

    labels: number of the coefficient that each place of x belongs to, (N, ...), broadcastable to x.
    design: what each copy is made of, (M, K); the first is the example itself.
    weigh: from a design to the weights of its copies, (M,).
    perturb: from numbers of examples and of copies, (R,), to rows (R, ...).
    unit: what a coefficient is divided by, to be in logits per unit of x, or the share of one of several places.
    """

    labels: Tensor
    design: Tensor
    weigh: Callable[[Tensor], Tensor]
    perturb: Callable[[Tensor, Tensor], Tensor]
    unit: Tensor | int


def _surrogate(design: Tensor, weights: Tensor, alpha: float, y: Tensor, rounding: float) -> tuple[Tensor, Tensor]:
    """Fit a weighted ridge regression with a free intercept to each row of y, on a fixed design, in float64 on the CPU.

    Minimises sum_m w_m (y_m - b - z_m coefficients)^2 + alpha |coefficients|^2.

    Args:
        design: z, (M, K).
        weights: w, (M,), positive.
        alpha: ridge penalty.
        y: logits, (..., M).
        rounding: precision of the network's numbers; a logit that changes by less than 32 of its last digits, which a
            sum may well lose, has no variance to explain.

    Returns:
        Coefficients, (..., K), and the weighted R2, (...).
    """
    share = weights / weights.sum()
    centred = design - share @ design
    weighted = centred * weights[:, None]
    factor, failed = torch.linalg.cholesky_ex(centred.T @ weighted + alpha * torch.eye(len(design.T)).to(design))
    if failed:
        raise ValueError(
            f"{len(design)} perturbations do not determine {design.shape[1]} coefficients at alpha = {alpha}; "
            "raise num_samples, or alpha above 0"
        )
    # The centred design makes weighted sums of a constant 0, so y needs no centring.
    coefficients = y @ torch.cholesky_solve(weighted.T, factor).T
    moved = y - (y @ share)[..., None]
    unexplained, variance = ((moved - coefficients @ centred.T) ** 2) @ share, (moved**2) @ share
    constant = variance <= (32 * rounding * y.abs().amax(-1)) ** 2
    r2 = torch.where(constant, torch.nan, 1 - unexplained / variance)
    return torch.where(constant[..., None], 0, coefficients), r2  # of a constant they would be rounding


def lime_fit(
    network: Network | Draws,
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
        network, x, target: as for `gradient`. No gradient is taken. Of draws, each is fitted, and comes out along a
            first axis; what they share meets each perturbed copy once.
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
    check_examples(x)
    first = network[0] if isinstance(network, Draws) else network
    where = device_of(first, x) if isinstance(first, nn.Module) else x.device
    try_out(first, x.to(where))
    check_count(num_samples, 2, "num_samples")
    check_number(alpha, 0, "alpha")
    check_number(1 if kernel_width is None else kernel_width, 0, "kernel_width", above=True)
    rng, given = np.random.default_rng(check_seed(seed)), x
    x = x.detach().to(where)
    if isinstance(first, View) and first.inputs.are_tokens:
        segments = torch.arange(x.shape[1])[None] if segments is None else segments
        fill = 0.0 if fill == "mean" else fill
    if x.dim() == 3 and segments is None:
        raise ValueError(
            f"x is {tuple(x.shape)}, and which of its axes is time is not known; pass segments=windows(x, axis=2), or 1"
        )
    if x.dim() == 2 and segments is None:
        copies = _of_table(x, scale, rng, num_samples, kernel_width or 0.75 * x.shape[1] ** 0.5)
    else:
        labels = superpixels(x, num_segments)[:, None] if segments is None else check_segments(segments, x)
        copies = _of_regions(x, labels, filled(x, labels, fill), rng, num_samples, kernel_width or 0.25)
    if not isinstance(network, Draws):
        draws = Draws([network if isinstance(network, nn.Module) else _Function(network)])
        return LimeFit(*(each[0].to(given) for each in _fitted(draws, copies, x, target, alpha)))
    return LimeFit(*(each.to(given) for each in _fitted(network, copies, x, target, alpha)))


@explainer(
    "lime",
    over_draws=lambda draws, x, target, **options: lime_fit(draws, x, target, **options).attribution,
    per_example={
        "segments": lambda segments, x: None if segments is None else check_segments(segments, x),
        "fill": lambda fill, x: expand(fill, x, "fill") if isinstance(fill, Tensor) else fill,
    },
)
@functools.wraps(lime_fit, assigned=())
def lime(*args: Any, **options: Any) -> Tensor:
    """Attribute each target logit by the coefficients of a local linear surrogate.

    Args, Warns, Raises, Source: as for `lime_fit`, which also says how well the surrogate fits.

    Returns:
        Attribution, shaped like x.
    """
    return lime_fit(*args, **options).attribution


def _of_table(
    x: Tensor, scale: float | Tensor, rng: np.random.Generator, num_samples: int, kernel_width: float
) -> _Copies:
    spread = torch.as_tensor(scale, dtype=torch.float64).detach().cpu()
    if spread.shape not in ((), (1,), x.shape[1:]) or not bool((torch.isfinite(spread) & (spread > 0)).all()):
        raise ValueError(f"scale is {scale}; pass a positive number, or one for each of the {x.shape[1]} features")
    design = torch.from_numpy(rng.standard_normal((num_samples, x.shape[1])))
    design[0] = 0
    offsets = (spread * design).to(x)

    def weigh(design: Tensor) -> Tensor:
        return torch.exp(-((design / kernel_width) ** 2).sum(1))

    def perturb(example: Tensor, copy: Tensor) -> Tensor:
        return x[example] + offsets[copy]

    return _Copies(torch.arange(x.shape[1]).expand(x.shape), design, weigh, perturb, unit=spread)


def _of_regions(
    x: Tensor, labels: Tensor, hidden: Tensor, rng: np.random.Generator, num_samples: int, kernel_width: float
) -> _Copies:
    # One row of numbers per superpixel: those of the first do not depend on how many there are in other images.
    shown = torch.from_numpy(rng.random((int(labels.max()) + 1, num_samples)) < 0.5).T.contiguous()  # (M, K)
    shown[0] = True
    keep, where = shown.to(x.device), labels.flatten(1).to(x.device)
    unhidden = int(((hidden - x).abs() <= torch.finfo(x.dtype).eps * x.abs()).flatten(1).all(1).sum())
    if unhidden:
        warnings.warn(
            f"LIME hides nothing in {unhidden} of {len(x)} examples, since what fills each superpixel is what it was; "
            "pass another fill, such as 0, or a smaller num_segments",
            stacklevel=4,
        )

    def weigh(design: Tensor) -> Tensor:
        # Cosine similarity of a 0/1 row with the row of ones; an image with everything hidden gets 0.
        distance = 1 - design.mean(1).sqrt()
        return torch.exp(-0.5 * (distance / kernel_width) ** 2)

    def perturb(example: Tensor, copy: Tensor) -> Tensor:
        visible = keep[copy].gather(1, where[example]).view(-1, *labels.shape[1:])
        return torch.where(visible, x[example], hidden[example])

    return _Copies(labels, shown.double(), weigh, perturb, unit=x[0].numel() // labels[0].numel())


def _fitted(draws: Draws, copies: _Copies, x: Tensor, target: Any, alpha: float) -> LimeFit:
    """Fit a surrogate to every draw around every example; both results have the draws on their first axis."""
    labels, logits = copies.labels.cpu(), _perturbed_logits(draws, copies, x, target)  # (S, N, M)
    maps = torch.zeros((len(draws), *labels.shape), dtype=torch.float64, device=x.device)
    r2 = torch.zeros((len(draws), len(x)), dtype=torch.float64)
    sizes = labels.flatten(1).amax(1) + 1  # (N,)
    for size in sizes.unique().tolist():
        same, design = sizes == size, copies.design[:, :size]
        y = logits[:, same]
        coefficients, r2[:, same] = _surrogate(design, copies.weigh(design), alpha, y, torch.finfo(x.dtype).eps)
        where = labels[same].flatten(1).to(x.device).expand(len(draws), -1, -1)
        maps[:, same] = coefficients.to(maps).gather(2, where).unflatten(2, labels.shape[1:])
    unit = copies.unit.to(maps) if isinstance(copies.unit, Tensor) else copies.unit
    return LimeFit((maps / unit).expand(-1, *x.shape).to(x).contiguous(), r2.to(x))


def _perturbed_logits(draws: Draws, copies: _Copies, x: Tensor, target: Any) -> Tensor:
    """Return the target logit of every copy of every example by every network, (S, N, M), float64 on the CPU."""
    rows, num_examples, num_copies = rows_per_pass(x, None), len(x), len(copies.design)
    engine, first = Engine(draws.at(slice(1)), x[:1]), slice(rows)
    # What is wrong with an output is said of the examples, not of their copies.
    logits = engine.at(draws.at(first)).logits(x[first])
    classes = check_target(target, num_examples, logits.shape[2]).to(logits.device)
    selected = torch.empty((len(draws), num_examples, num_copies), dtype=torch.float64)
    for seen, example, copy in draws.in_rows(num_examples, num_copies, rows):
        logits = engine.at(seen).logits(copies.perturb(example.to(x.device), copy.to(x.device)))  # (S, R, C)
        wanted = classes[example.to(classes.device)].expand(len(draws), -1)
        selected[:, example, copy] = logits.gather(2, wanted[..., None]).squeeze(2).cpu().double()
    return selected


class _Function(nn.Module):
    """A network that is given as a function."""

    def __init__(self, function: Network) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
