"""Superpixels: the regions of an image that LIME shows and hides."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from skimage.segmentation import slic
from torch import Tensor

from xuqlib.checks import check_count, check_examples, check_number
from xuqlib.explainers.baselines import expand


def superpixels(x: Tensor, num_segments: int = 40) -> Tensor:
    """Cut each image into about `num_segments` regions of like colour, (N, H, W), numbered from 0.

    SLIC; its compactness is 10 for colour (compared in Lab), and 0.1 for any other number of channels (in [0, 1]).

    Raises:
        TypeError, ValueError: x is not images (N, C, H, W); num_segments is below 1.

    Source: Achanta et al. 2012, through skimage.segmentation.slic.
    """
    check_examples(x)
    check_count(num_segments, 1, "num_segments")
    if x.dim() != 4:
        raise ValueError(f"superpixels need images (N, C, H, W), x is {tuple(x.shape)}")
    images = x.detach().movedim(1, -1).double().cpu().numpy()
    labels = [_segment(np.ascontiguousarray(p).tobytes(), p.shape, num_segments) for p in images]
    return torch.as_tensor(np.stack(labels))


@functools.lru_cache(maxsize=512)
def _segment(pixels: bytes, shape: tuple[int, int, int], num_segments: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Superpixels of one image (H, W, C). Kept, since every draw asks for the same ones again."""
    image = np.frombuffer(pixels, dtype=np.float64).reshape(shape)
    compactness = 10.0 if shape[2] == 3 else 0.1
    labels = slic(image, n_segments=num_segments, compactness=compactness, channel_axis=-1, start_label=0)
    return np.unique(labels, return_inverse=True)[1].reshape(shape[:2]).astype(np.int64)


def check_segments(segments: Tensor, x: Tensor) -> Tensor:
    """Return given superpixels with labels 0, 1, ... without gaps in each image, (N, H, W), on the CPU.

    Raises:
        ValueError: not whole numbers, or not shaped like the images.
    """
    wanted = (len(x), *x.shape[2:])
    if not isinstance(segments, Tensor) or segments.is_floating_point() or segments.shape != wanted:
        given = f"{segments.dtype} {tuple(segments.shape)}" if isinstance(segments, Tensor) else type(segments).__name__
        raise ValueError(f"segments are {given}; pass a whole-number tensor {wanted}, one label per pixel")
    labels = (np.unique(each, return_inverse=True)[1] for each in segments.cpu().numpy())
    return torch.stack([torch.from_numpy(each).view(wanted[1:]) for each in labels])


def filled(x: Tensor, labels: Tensor, fill: str | float | Tensor) -> Tensor:
    """Return the images with everything hidden, shaped like x."""
    if isinstance(fill, Tensor):
        return expand(fill, x, "fill")
    if not isinstance(fill, str):
        return torch.full_like(x, check_number(fill, float("-inf"), "fill"))
    if fill != "mean":
        raise ValueError(f"unknown fill {fill!r}; known: mean, a number (0 for black), or a tensor")
    where = labels.flatten(1)[:, None].expand(-1, x.shape[1], -1).to(x.device)  # (N, C, H * W)
    means = torch.zeros((*x.shape[:2], int(labels.max()) + 1), dtype=x.dtype, device=x.device)
    means.scatter_reduce_(2, where, x.flatten(2), "mean", include_self=False)
    return means.gather(2, where).view(x.shape)
