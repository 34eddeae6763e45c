"""Does a map of the uncertainty find what does not belong? Pasted patches, search windows and planted masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xuqlib.checks import check_count, check_examples, check_number
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Amount, Boxes, Count, Maps, Masks, Pictures, Seed, Shape, Share, checked, shown
from xuqlib.study.judging.properties import on_evidence

MAX_TRIES = 1000


class Pasted(NamedTuple):
    """Pictures (N, C, H, W) with a square patch each; masks, True on it, (N, H, W); boxes, where it begins, (N, 2)."""

    pictures: Tensor
    masks: Tensor
    boxes: Tensor


@checked
def paste(
    x: Pictures,
    others: Pictures | None,
    size: Count,
    *,
    seed: Seed,
    matched: bool = False,
    min_change: Amount = 0.0,
) -> Pasted:
    """Paste into each picture a square patch of another one, at a random place.

    The patch is the middle of the other picture, where its object is: the rim of a digit is blank.

    Args:
        x: pictures in [0, 1], (N, C, H, W).
        others: pictures to take patches from, at least `size` high and wide, with as many channels, each picture one
            at random; ready-made patches are such pictures, too. None: from another picture of x, never itself.
        size: side of the patch, in pixels.
        seed: of the choice of others, and of the places.
        matched: scale each channel of the patch towards black, or towards white, until its mean is that of what it
            covers. Without this a map of raw brightness may find patches that are brighter than their surroundings;
            with it a patch over a black ground is black, and cannot be found.
        min_change: mean |difference| of the patch and what it covers; another place is drawn where it is less. Places
            are then no longer uniform, so show controls.

    Returns:
        `Pasted`; `boxes` is (row, column) of the top left pixel of each patch.

    Raises:
        ValueError: a patch larger than a picture, channels that differ, numbers outside [0, 1], or no place found in
            1000 tries.

    Source: arXiv 2304.04824, anomaly test; where patches come from, and matching, are choices.
    """
    _check_pictures(x, size, "x")
    stream, least = generator_of(seed), check_number(min_change, 0, "min_change")
    patches = _patches(x, others, size, stream)
    boxes = _boxes(len(x), x.shape[2:], size, stream)
    for _ in range(MAX_TRIES):
        masks = _squares(boxes, x.shape[2:], size)
        where = masks[:, None].expand_as(x)
        covered = x.masked_select(where).view(patches.shape)
        new = _matched(patches, covered) if matched else patches
        waiting = (new - covered).abs().mean((1, 2, 3)) < least
        if not waiting.any():
            return Pasted(x.masked_scatter(where, new), masks, boxes)
        boxes = torch.where(waiting[:, None], _boxes(len(x), x.shape[2:], size, stream), boxes)
    raise ValueError(
        f"{int(waiting.sum())} of {len(x)} patches change their picture by less than {least} at {MAX_TRIES} places; "
        "pass a smaller min_change"
    )


@checked
def window(maps: Maps, size: Count) -> Tensor:
    """Find the square window with the largest sum of attribution; of equal ones the first in order of reading.

    Of the map of the same picture without its patch, it is a control: what the picture alone draws the eye to.

    Args:
        maps: (N, H, W), with their signs.
        size: side of the window, in pixels.

    Returns:
        Row and column of its top left pixel, (N, 2).

    Raises:
        ValueError: maps of another shape, with NaN, or smaller than the window.
    """
    _check_maps(maps)
    _check_size(size, maps.shape[1:], "the maps")
    # Not from an integral image: its rounding would break ties, of which maps of superpixels are full.
    means = F.avg_pool2d(maps.detach().double()[:, None], size, stride=1)  # (N, 1, H - size + 1, W - size + 1)
    best = means.flatten(1).argmax(1)
    return torch.stack([best // means.shape[3], best % means.shape[3]], 1)


@checked
def random_windows(num_examples: Count, shape: Shape, size: Count, *, seed: Seed) -> Tensor:
    """Draw a window for each picture, `shape` = (height, width), uniform where it fits: a control; (N, 2)."""
    check_count(num_examples, 1, "num_examples")
    _check_size(size, shape, "the pictures")
    return _boxes(num_examples, shape, size, generator_of(seed))


@checked
def iou(a: Boxes, b: Boxes, size: Count) -> Tensor:
    """Intersection over union of two squares of one size; boxes (N, 2) each to (N,), float64, in [0, 1]."""
    check_count(size, 1, "size")
    if a.shape != b.shape or a.shape[-1:] != (2,):
        raise ValueError(f"boxes are {tuple(a.shape)} and {tuple(b.shape)}; pass (N, 2) of the same examples, twice")
    shared = (size - (a - b).abs()).clamp(min=0).prod(-1).double()
    return shared / (2 * size**2 - shared)


@checked
def ada(overlap: Tensor, at: Share = 0.5) -> float:
    """Anomaly detection accuracy: the share of examples whose `iou` exceeds `at`."""
    fits = overlap.is_floating_point() and overlap.dim() == 1 and len(overlap) and (overlap >= 0).all()
    if at == 1 or not fits or overlap.max() > 1:
        raise ValueError(
            f"overlap is {shown(overlap)}, at is {at}; pass what iou gives, one number or more, and at below 1"
        )
    return float((overlap > at).double().mean())


@checked
def mass_accuracy(maps: Maps, masks: Masks) -> Tensor:
    """Share of the positive attribution of each map that lies on its mask: relevance mass accuracy.

    Args:
        maps: (N, H, W); what is below 0 counts as 0.
        masks: True on what is to be found, (N, H, W).

    Returns:
        (N,), float64, in [0, 1]; NaN where the mask is empty or nothing in the map is positive.

    Source: Arras, Osman & Samek 2022, eq. 1, arXiv 2003.07258.
    """
    _check_masks(maps, masks)
    share = on_evidence(maps.detach().clamp(min=0)[:, None], masks)["share"]
    return torch.where(masks.flatten(1).any(1), torch.tensor(share.to_numpy()), math.nan)


@checked
def rank_accuracy(maps: Maps, masks: Masks) -> Tensor:
    """Share of the mask among the largest pixels of each map, as many as the mask has: relevance rank accuracy.

    Of pixels that tie for the last places, as within a superpixel, each counts in part: the mean over all orders, so
    that a flat map scores `chance`.

    Args:
        maps: (N, H, W), with their signs.
        masks: True on what is to be found, (N, H, W).

    Returns:
        (N,), float64, in [0, 1]; NaN where the mask is empty.

    Source: Arras, Osman & Samek 2022, eq. 2, arXiv 2003.07258; ties are a choice.
    """
    _check_masks(maps, masks)
    values, inside = maps.detach().double().flatten(1), masks.flatten(1)
    count = inside.sum(1, keepdim=True)
    last = values.sort(1, descending=True).values.gather(1, (count - 1).clamp(min=0))
    above, tied = values > last, values == last
    places_left = count - above.sum(1, keepdim=True)
    hits = (above & inside).sum(1) + (places_left / tied.sum(1, keepdim=True))[:, 0] * (tied & inside).sum(1)
    return torch.where(count[:, 0] > 0, hits.double() / count[:, 0], math.nan)


@checked
def chance(masks: Masks) -> Tensor:
    """What a flat map scores by `mass_accuracy` and `rank_accuracy`: the mask's share of the picture, (N,), float64."""
    return masks.double().mean((1, 2))


def _patches(x: Tensor, others: Tensor | None, size: int, stream: torch.Generator) -> Tensor:
    """The middle of a picture for each example, (N, C, size, size)."""
    if others is None:
        if len(x) < 2:
            raise ValueError("x is one picture, which has no other to take a patch from; pass more, or others")
        steps = torch.randint(1, len(x), (len(x),), generator=stream)
        others, chosen = x, (torch.arange(len(x)) + steps) % len(x)
    else:
        _check_pictures(others, size, "others")
        if others.shape[1] != x.shape[1]:
            raise ValueError(f"others have {others.shape[1]} channels but x has {x.shape[1]}; pass as many")
        chosen = torch.randint(len(others), (len(x),), generator=stream)
    top, left = (others.shape[2] - size) // 2, (others.shape[3] - size) // 2
    return others[chosen, :, top : top + size, left : left + size].to(x)


def _matched(patches: Tensor, covered: Tensor) -> Tensor:
    """Scale patches in [0, 1] towards 0 or towards 1, channel by channel, to the means of `covered`."""
    have, want = (each.mean((2, 3), keepdim=True) for each in (patches, covered))
    darker = (patches * (want / have)).nan_to_num()  # 0 / 0 where both are black
    lighter = 1 - (1 - patches) * ((1 - want) / (1 - have))
    return torch.where(want <= have, darker, lighter).clamp(0, 1)


def _boxes(num_examples: int, shape: Sequence[int], size: int, stream: torch.Generator) -> Tensor:
    corners = [torch.randint(side - size + 1, (num_examples,), generator=stream) for side in shape]
    return torch.stack(corners, 1)


def _squares(boxes: Tensor, shape: Sequence[int], size: int) -> Tensor:
    """Mark the square of each box, bool (N, H, W)."""
    rows, columns = (torch.arange(side) - boxes[:, axis, None] for axis, side in enumerate(shape))
    inside = [(each >= 0) & (each < size) for each in (rows, columns)]
    return inside[0][:, :, None] & inside[1][:, None, :]


def _check_size(size: int, shape: Sequence[int], what: str) -> None:
    if check_count(size, 1, "size") > min(shape):
        raise ValueError(f"size is {size} but {what} are {shape[0]} x {shape[1]} pixels; pass a smaller size")


def _check_pictures(x: Tensor, size: int, name: str) -> None:
    check_examples(x)
    if x.ndim != 4 or x.min() < 0 or x.max() > 1:
        raise ValueError(f"{name} is {tuple(x.shape)}; pass pictures (N, C, H, W) with numbers in [0, 1]")
    _check_size(size, x.shape[2:], f"pictures of {name}")


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 3 or not len(maps) or not maps.isfinite().all():
        raise ValueError(f"maps are {tuple(maps.shape)}; pass (N, H, W), channels summed, without NaN or infinity")


def _check_masks(maps: Tensor, masks: Tensor) -> None:
    _check_maps(maps)
    if masks.shape != maps.shape or masks.dtype != torch.bool:
        given = f"{masks.dtype} {tuple(masks.shape)}"
        raise ValueError(f"masks are {given} but maps {tuple(maps.shape)}; pass one bool per pixel")
