"""Regions: what LIME shows and hides; superpixels of an image, windows of a signal, groups of features."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xuqlib.checks import check_count, check_examples, check_number, check_tensor
from xuqlib.explainers.baselines import expand


def superpixels(x: Tensor, num_segments: int = 40) -> Tensor:
    """Cut each image, or volume, into about `num_segments` regions of like colour, (N, H, W), numbered from 0.

    SLIC; its compactness is 10 for colour (compared in Lab), and 0.1 for any other number of channels (in [0, 1]).

    Raises:
        TypeError, ValueError: x is not images (N, C, H, W) or volumes (N, C, D, H, W); num_segments is below 1.

    Source: Achanta et al. 2012, through skimage.segmentation.slic.
    """
    check_examples(x)
    check_count(num_segments, 1, "num_segments")
    if x.dim() not in (4, 5):
        raise ValueError(f"superpixels need images (N, C, H, W) or volumes, x is {tuple(x.shape)}")
    images = x.detach().movedim(1, -1).double().cpu().numpy()
    labels = [_segment(np.ascontiguousarray(p).tobytes(), p.shape, num_segments) for p in images]
    return torch.as_tensor(np.stack(labels))


@functools.lru_cache(maxsize=512)
def _segment(pixels: bytes, shape: tuple[int, ...], num_segments: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Superpixels of one image (H, W, C). Kept, since every draw asks for the same ones again."""
    image = np.frombuffer(pixels, dtype=np.float64).reshape(shape)
    compactness = 10.0 if shape[-1] == 3 else 0.1
    from skimage.segmentation import slic  # half a second, which not every user of this package needs

    labels = slic(image, n_segments=num_segments, compactness=compactness, channel_axis=-1, start_label=0)
    return np.unique(labels, return_inverse=True)[1].reshape(shape[:-1]).astype(np.int64)


def windows(x: Tensor, num_segments: int = 20, *, axis: int) -> Tensor:
    """Cut an axis of x, such as time, into `num_segments` windows of like length, numbered from 0.

    Args:
        x: examples, (N, ...).
        axis: 2 in (N, channel, time), 1 in (N, time, feature).

    Returns:
        Labels (1, ..., n, ...), which broadcast to x.

    Raises:
        ValueError: no such axis; num_segments is below 1 or above n.
    """
    check_tensor(x, "x", axes=2)
    if not isinstance(axis, int) or not 1 <= axis < x.dim():
        raise ValueError(f"axis is {axis!r}; x {tuple(x.shape)} has the axes 1 to {x.dim() - 1} after the examples")
    length = x.shape[axis]
    if check_count(num_segments, 1, "num_segments") > length:
        raise ValueError(f"num_segments is {num_segments} but there are {length} places along axis {axis}")
    return (torch.arange(length) * num_segments // length).view([-1 if a == axis else 1 for a in range(x.dim())])


def check_segments(segments: Tensor, x: Tensor) -> Tensor:
    """Return given regions, with labels 0, 1, ... without gaps in each example, on the CPU: (N, ...), broadcast to x.

    Args:
        segments: whole numbers that broadcast to x; or (N, H, W), without the channels of x; or without examples.

    Raises:
        ValueError: not whole numbers, or not shaped like the examples.
    """
    check_tensor(segments, "segments")
    if segments.is_floating_point():
        raise ValueError(
            f"segments are {segments.dtype}; pass a whole-number tensor, one label per place of x {tuple(x.shape)}"
        )
    labels, without_channels = segments, (len(x), *x.shape[2:])
    if x.dim() > 2 and segments.shape == without_channels:
        labels = segments[:, None]
    elif segments.dim() == x.dim() - 1:
        labels = segments[None]
    if labels.dim() != x.dim() or any(n not in (1, of) for n, of in zip(labels.shape, x.shape, strict=True)):
        raise ValueError(
            f"segments are {tuple(segments.shape)}; pass one label per place of x {tuple(x.shape)}, such as "
            f"{without_channels} where channels share them"
        )
    each = (np.unique(one, return_inverse=True)[1] for one in labels.expand(len(x), *labels.shape[1:]).cpu().numpy())
    return torch.from_numpy(np.stack([one.reshape(labels.shape[1:]) for one in each]))


def filled(x: Tensor, labels: Tensor, fill: str | float | Tensor) -> Tensor:
    """Return the examples with everything hidden, shaped like x; `labels` broadcast to x."""
    if isinstance(fill, Tensor):
        return expand(fill, x, "fill")
    if not isinstance(fill, str):
        return torch.full_like(x, check_number(fill, float("-inf"), "fill"))
    if fill != "mean":
        raise ValueError(f"unknown fill {fill!r}; known: mean, a number (0 for black), or a tensor")
    # Along an axis that shares labels, such as the channels, each place has a mean of its own.
    sizes = [of if n == 1 else 1 for n, of in zip(labels.shape, x.shape, strict=True)][1:]
    shared = torch.arange(math.prod(sizes)).view(sizes)
    where = (labels + shared * (int(labels.max()) + 1)).expand_as(x).flatten(1).to(x.device)
    means = x.new_zeros((len(x), int(where.max()) + 1))
    means.scatter_reduce_(1, where, x.flatten(1), "mean", include_self=False)
    return means.gather(1, where).view_as(x)
