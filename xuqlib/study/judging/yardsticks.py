"""Measures of a map of uncertainty, after an evaluation suite of 2026: what each says, and where it breaks.

A map is the variance of an explanation over draws, pixel by pixel: not negative. Where the suite departs from what it
says, or where a choice decides the number, the published form is an option and named as such.

Source: arXiv 2603.24524; the formulas are those of its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from xuqlib.checks import check_choice
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Batch, Count, Maps, Masks, Pictures, Positive, Seed, Shape, Stack, checked, shown
from xuqlib.study.judging.similarity import spearman_rows

TIES = ("mean", "first")


def _variances(maps: Tensor) -> Tensor:
    """The maps in float64, (N, ...); refuses what is no variance."""
    if not bool((maps >= 0).all()) or not bool(torch.isfinite(maps).all()):
        raise ValueError("maps hold negative numbers, NaN or infinities; pass variances")
    return maps.detach().double()


def _stack(values: Tensor, maps: Tensor) -> Tensor:
    """The stack in float64; refuses one of other maps."""
    if values.shape[1:] != maps.shape:
        raise ValueError(f"values are {tuple(values.shape)}, maps {tuple(maps.shape)}; pass maps of the same examples")
    return values.detach().double()


@checked
def complexity(maps: Maps) -> Tensor:
    """Entropy of each map, taken as shares of its sum: on how many pixels it lies.

    Args:
        maps: variances, (N, ...).

    Returns:
        (N,), in nats: 0 where one pixel holds all, and where all are 0; ln d where all d pixels are equal.

    Raises:
        ValueError: a number is negative or not finite.
    """
    flat = _variances(maps).flatten(1)
    total = flat.sum(1, keepdim=True)
    return torch.special.entr(torch.where(total > 0, flat / total, 0.0)).sum(1)


@checked
def likeness(a: Maps, b: Maps, *, mask: Masks | None = None) -> pd.DataFrame:
    """Cosine and rank correlation (Spearman) of two maps of each example.

    Args:
        a, b: variances, (N, ...). A factor on either changes nothing.
        mask: pixels that count, (N, H, W); all by default. Pixels that are 0 in both maps whatever was drawn, such as
            the black ones of a picture under gradient x input, are ties that agree.

    Returns:
        Columns cosine and spearman, a row per example; NaN where that is undefined, as for a map of zeros.

    Raises:
        ValueError: the shapes differ, or a number is negative or not finite.
    """
    if a.shape != b.shape or (mask is not None and mask.shape != a.shape):
        beside = "" if mask is None else f", the mask {tuple(mask.shape)}"
        raise ValueError(f"maps are {tuple(a.shape)} and {tuple(b.shape)}{beside}; pass the same examples")
    left, right = (_variances(each).flatten(1).cpu().numpy() for each in (a, b))
    counted = np.ones(left.shape, bool) if mask is None else mask.flatten(1).cpu().numpy()
    rows = []
    for one, other, some in zip(left, right, counted, strict=True):
        one, other = one[some], other[some]
        size = math.sqrt(float(one @ one)) * math.sqrt(float(other @ other))
        rows.append((float(one @ other) / size if size > 0 else math.nan, float(spearman_rows(one, other))))
    return pd.DataFrame(rows, columns=["cosine", "spearman"])


@checked
def repeatability(maps: Maps, values: Stack, *, mask: Masks | None = None) -> pd.DataFrame:
    """Mean `likeness` of each map to those that other sets of draws of the same network gave.

    Args:
        maps: variances over one set of draws, (N, ...).
        values: over further sets, (set, N, ...).
        mask: as for `likeness`.
    """
    parts = [likeness(maps, other, mask=mask) for other in _stack(values, maps)]
    return sum(parts[1:], parts[0]) / len(parts)


@checked
def first_order(values: Stack) -> Tensor:
    """First-order variance of an explanation under independent noises: the sum of squared changes.

    Args:
        values: change of the explanation per standard deviation of each noise, (noise, N, ...): its derivative times
            that standard deviation. Exact where the explanation is linear in the noises.

    Returns:
        (N, ...), float64. `likeness` of a map to it is what the suite calls uncertainty conveyance.

    Raises:
        ValueError: a number is not finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise ValueError("values hold NaN or infinities; pass changes of the explanation")
    return values.detach().double().square().sum(0)


@checked
def blurred_rows(x: Pictures, *, radius: Positive = 1.0) -> Tensor:
    """Blur each picture along its flattened pixels, over the ends of its rows: what the suite fills pixels with.

    Args:
        x: pictures, (N, C, H, W).
        radius: standard deviation of the Gaussian, in pixels.
    """
    from scipy.ndimage import gaussian_filter1d

    flat = x.detach().cpu().flatten(2).double().numpy()
    return torch.from_numpy(gaussian_filter1d(flat, radius, axis=2)).view(x.shape).to(x)


Uncertainty = Callable[[Tensor], Tensor]


def _curve(function: Uncertainty, x: Tensor, maps: Tensor, size: int, filled: Callable[[Tensor], Tensor]) -> Tensor:
    """Uncertainty (step, N) while more and more pixels are replaced; `filled` gives copies (C, N, ...)."""
    flat = _variances(maps).flatten(1)
    places = flat.argsort(dim=1, descending=True, stable=True).argsort(1)  # of each pixel in the order
    steps = flat.shape[1] // size
    if not steps:
        raise ValueError(f"size is {size}, but maps have {flat.shape[1]} pixels; pass a step of at most that many")

    def at(examples: Tensor) -> Tensor:
        found = function(examples)
        if not isinstance(found, Tensor) or found.shape != (len(x),):
            raise TypeError(f"function gave {shown(found)}; let it return one uncertainty per example")
        return found.detach().double()

    curve = [at(x)]
    for step in range(1, steps + 1):
        copies = filled(places < step * size)
        curve.append(torch.stack([at(copy) for copy in copies]).mean(0))
    return torch.stack(curve)


@checked
def flipping(function: Callable[..., Any], x: Pictures, maps: Maps, reference: Tensor, *, size: Count = 5) -> Tensor:
    """Uncertainty of each picture while its pixels are replaced, the largest of its map first.

    Args:
        function: uncertainty (N,) of pictures like x.
        x: pictures, (N, C, H, W).
        maps: variances, (N, H, W). The suite passes the maps in another order than the pictures.
        reference: what takes the place of pixels, shaped like x, such as `blurred_rows(x)`.
        size: pixels in a step. What is left behind the last whole step stays.

    Returns:
        (1 + steps, N), float64; it begins with the uncertainty of x.

    Raises:
        TypeError, ValueError: shapes do not fit; the function gives something else.
    """
    if maps.shape != x[:, 0].shape or reference.shape != x.shape:
        shapes = f"x is {tuple(x.shape)}, maps {tuple(maps.shape)}, reference {tuple(reference.shape)}"
        raise ValueError(f"{shapes}; pass a map and a filled picture for each")

    def filled(flipped: Tensor) -> Tensor:
        return torch.where(flipped.view(len(x), 1, *x.shape[2:]), reference, x)[None]

    return _curve(function, x, maps, size, filled)


@checked
def flipping_of_rows(
    function: Callable[..., Any],
    x: Batch,
    maps: Maps,
    known: Tensor,
    *,
    num_copies: Count = 25,
    radius: Positive = 0.1,
    size: Count = 1,
    seed: Seed = 0,
) -> Tensor:
    """`flipping` of rows of a table, filled with rows that look alike in what is left: a conditional fill.

    Copies are drawn from `known` with weight exp(-||difference of what is left||^2 / (2 radius^2)), evenly where these
    weights sum to at most 1e-6.

    Args:
        function, size: as for `flipping`.
        x: rows, (N, F).
        maps: variances, (N, F).
        known: rows to fill from, (R, F).
        num_copies: rows that are drawn for each example and step; the uncertainty is their mean.
        radius: how alike what is left has to be, in units of x.
        seed: of the drawn rows.
    """
    if maps.shape != x.shape or x.dim() != 2 or known.dim() != 2 or known.shape[1] != x.shape[1] or not len(known):
        raise ValueError(f"x is {shown(x)}, maps are {shown(maps)}, known is {shown(known)}; pass rows (N, F)")
    if not known.is_floating_point() or not bool(torch.isfinite(known).all()):
        raise ValueError("known holds NaN, infinities or no floating point numbers; pass whole rows")
    stream = generator_of(seed)

    def filled(flipped: Tensor) -> Tensor:
        apart = ((x[:, None] - known) * ~flipped[:, None]).double().square().sum(2)  # (N, R)
        weights = torch.exp(-apart / (2 * radius**2))
        weights[weights.sum(1) <= 1e-6] = 1.0
        drawn = torch.multinomial(weights.cpu(), num_copies, replacement=True, generator=stream).T  # (copy, N)
        return torch.where(flipped, known[drawn.to(known.device)], x)

    return _curve(function, x, maps, size, filled)


@checked
def flipping_area(values: Maps) -> Tensor:
    """Area under each curve of `flipping` by the trapezoid rule, over its own start: the published score.

    A mean of such quotients is one of numbers over starts that may be tiny; the quotient of means is not.

    Args:
        values: (1 + steps, N).

    Returns:
        (N,): below 1 where replacing pixels lowers the uncertainty; NaN where the start is 0.

    Raises:
        ValueError: values are no curves of two points or more.
    """
    if values.dim() != 2 or len(values) < 2 or not bool(torch.isfinite(values).all()):
        raise ValueError(f"values are {shown(values)}; pass finite curves (1 + steps, N) of one step or more")
    start = values[0].double()
    area = ((values[1:] + values[:-1]) / 2).double().mean(0)
    return torch.where(start > 0, area / start, math.nan)


@checked
def patch_masks(shape: Shape, *, size: Count = 4, num_samples: Count = 25, seed: Seed = 0) -> Tensor:
    """Squares at random places, cut where they would leave the picture, as the suite draws them.

    Args:
        shape: height and width of a picture.
        size: of a square.
        num_samples: squares; no two at one place.
        seed: of the places.

    Returns:
        (num_samples, H, W), bool.

    Raises:
        ValueError: there are fewer places than squares.
    """
    height, width = shape
    if num_samples > height * width:
        raise ValueError(f"num_samples is {num_samples}, but there are {height * width} places; pass at most as many")
    corners = torch.randperm(height * width, generator=generator_of(seed))[:num_samples]
    row, column = torch.arange(height)[:, None], torch.arange(width)
    top, left = (corners // width)[:, None, None], (corners % width)[:, None, None]
    return (row >= top) & (row < top + size) & (column >= left) & (column < left + size)


@checked
def rank_improvement(maps: Maps, values: Stack, masks: Masks, *, ties: str = "mean") -> Tensor:
    """How far pixels of a patch rise in the order of a map when the patch is inverted (RRI).

    With r the rank of a pixel, 1 for the largest: the mean of (r before - r after) / r before over the pixels of each
    patch, then over patches. It lies below 1 and has no lower bound: a pixel that was first can only fall.

    Args:
        maps: variances, (N, H, W).
        values: those of the pictures with one patch inverted each, (patch, N, H, W).
        masks: the patches, (patch, H, W), as from `patch_masks`.
        ties: ranks of equal pixels: "mean", or "first", their order in the picture, as published.

    Returns:
        (N,).

    Raises:
        ValueError: shapes do not fit; a patch has no pixel.
    """
    check_choice(ties, TIES, "ties")
    after = _stack(values, maps)
    if masks.shape != (len(values), *maps.shape[1:]) or not bool(masks.flatten(1).any(1).all()):
        raise ValueError(f"masks are {shown(masks)}, values {shown(values)}; pass one patch with pixels for each")
    before = _ranks(_variances(maps), ties)
    parts = [
        ((before - _ranks(_variances(some), ties)) / before)[:, mask.flatten()].mean(1)
        for some, mask in zip(after, masks, strict=True)
    ]
    return torch.stack(parts).mean(0)


def _ranks(maps: Tensor, ties: str) -> Tensor:
    """Rank of each pixel (N, d), 1 for the largest."""
    columns = pd.DataFrame(maps.flatten(1).cpu().numpy().T)
    ranks = columns.rank(ascending=False, method="average" if ties == "mean" else "first")
    return torch.from_numpy(ranks.to_numpy().T.copy())


@checked
def input_stability(maps: Maps, values: Stack, x: Batch, copies: Tensor, *, by_pixel: bool = False) -> Tensor:
    """By how many per cent a map changes at worst when its picture changes by one per cent (RIS).

    The largest quotient, over copies x', of |u(x) - u(x')| / |u(x)| and |x - x'| / |x|, in Euclidean norms.

    Args:
        maps: variances at x, (N, ...).
        values: at the copies, (copy, N, ...); a copy with a NaN in its map does not count for that example.
        x: examples, (N, ...).
        copies: of x with small changes, (copy, N, ...).
        by_pixel: divide pixel by pixel before the norm, as published, a number below 1e-6 standing for 0. Then each
            black pixel adds a million times its change to |x - x'|, and the score counts black pixels.

    Returns:
        (N,), 0 or more; NaN where no copy counts, or the map or the picture is 0.

    Raises:
        ValueError: shapes do not fit; copies are not finite.
    """
    after, before = _stack(values, maps).flatten(2), _variances(maps).flatten(1)
    fits = copies.shape == (len(values), *x.shape) and len(x) == len(maps)
    if not fits or not bool(torch.isfinite(copies).all()) or bool(values.isinf().any()):
        given = f"values are {shown(values)}, copies {shown(copies)}, x is {shown(x)}"
        raise ValueError(f"{given}; pass finite copies (copy, N, ...) of x, and their maps")
    at, moved = x.detach().double().flatten(1), copies.detach().double().flatten(2)
    if by_pixel:
        small = 1e-6
        change = ((before - after) / torch.where(before == 0, small, before)).norm(dim=2)
        step = ((at - moved) / torch.where(at == 0, small, at)).norm(dim=2)
    else:
        change = (before - after).norm(dim=2) / before.norm(dim=1)
        step = (at - moved).norm(dim=2) / at.norm(dim=1)
    quotient = torch.where(step > 0, change / step, math.nan)
    worst = torch.where(quotient.isfinite(), quotient, -math.inf).amax(0)
    return torch.where(worst.isfinite(), worst, math.nan)


@checked
def rank_agreement(values: Maps) -> float:
    """Mean rank correlation (Spearman) over all pairs of columns: does a score order the rows alike?

    The suite takes rows for pictures and columns for methods, and calls that of the transpose inter-sample reliability.

    Args:
        values: (row, column), two columns at least.

    Returns:
        A number in [-1, 1]; NaN where no pair has a correlation, as of columns that are constant.

    Raises:
        ValueError: fewer than two columns, or a number is not finite.
    """
    if values.dim() != 2 or values.shape[1] < 2 or not bool(torch.isfinite(values).all()):
        raise ValueError(f"values are {shown(values)}; pass finite numbers (row, column), two columns at least")
    columns = values.detach().double().T.cpu().numpy()
    first, second = np.triu_indices(len(columns), 1)
    found = spearman_rows(columns[first], columns[second])
    return float(found[~np.isnan(found)].mean()) if not np.isnan(found).all() else math.nan
