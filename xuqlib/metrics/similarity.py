"""What a map is worth: does it agree with another one, and does it lie where the evidence is?"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import Tensor


def spearman(a: Tensor, b: Tensor) -> pd.Series:
    """Rank correlation (Spearman) of two attributions of each example, sign included, summed over channels.

    Args:
        a, b: (N, C, H, W) or (N, F).

    Returns:
        One number in [-1, 1] per example; NaN where one of the two is constant.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"attributions are {tuple(a.shape)} and {tuple(b.shape)}; pass the same examples")
    rows = ((m.sum(1) if m.ndim == 4 else m).detach().flatten(1).cpu().numpy() for m in (a, b))
    return pd.Series(spearman_rows(*rows))


def spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis; NaN where one of the two is constant, or has fewer than two numbers."""
    if a.shape[-1] < 2:
        return np.full(a.shape[:-1], np.nan)
    left, right = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(a, axis=-1), rankdata(b, axis=-1)))
    size = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    return np.divide((left * right).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)


def ssim(a: Tensor, b: Tensor) -> pd.Series:
    """Structural similarity of two maps of each example, summed over channels and divided by their largest |value|.

    Args:
        a, b: (N, C, H, W) or (N, H, W), at least 7 pixels high and wide.

    Returns:
        One number in [-1, 1] per example, 1 for equal maps; NaN where one of the two is 0 everywhere.

    Raises:
        ValueError: the shapes differ.

    Source: Wang et al. 2004; scikit-image's implementation, windows of 7 pixels.
    """
    if a.shape != b.shape:
        raise ValueError(f"maps are {tuple(a.shape)} and {tuple(b.shape)}; pass the same examples")
    flat = [(m.sum(1) if m.ndim == 4 else m).detach().cpu().double() for m in (a, b)]
    left, right = ((m / m.abs().amax((1, 2), keepdim=True)).numpy() for m in flat)
    return pd.Series([structural_similarity(*pair, data_range=2.0) for pair in zip(left, right, strict=True)])


def on_evidence(attribution: Tensor, mask: Tensor) -> pd.DataFrame:
    """How much of each map lies on the pixels that are known to matter.

    Args:
        attribution: (N, C, H, W).
        mask: True on the evidence, (N, H, W).

    Returns:
        One row per example: share of |attribution| on the mask; hit, whether the largest pixel lies on it (the part of
        them where several tie, as within a superpixel); area, the mask's share of the image.
    """
    size = attribution.double().abs().sum(1)  # (N, H, W)
    top = (size == size.amax((1, 2), keepdim=True)).double()
    inside = mask.to(size)
    share, hit = ((each * inside).sum((1, 2)) / each.sum((1, 2)) for each in (size, top))
    return pd.DataFrame({"share": share.numpy(), "hit": hit.numpy(), "area": inside.mean((1, 2)).numpy()})


def sparseness(maps: Tensor) -> Tensor:
    """Gini index of |map| of each example, summed over channels: on how few pixels, or features, it lies.

    Args:
        maps: (N, C, H, W) or (N, F), n pixels or features.

    Returns:
        (N,), float64: 0 where all are equal, 1 - 1/n where only one is not 0; NaN where all are 0.

    Source: Hurley & Rickard 2009, table 1, arXiv 0811.4706; for attributions Chalasani et al. 2020, arXiv 1810.06583.
    """
    values = (maps.sum(1) if maps.ndim == 4 else maps).double().flatten(1).abs().sort(1).values
    n = values.shape[1]
    shares = values / values.sum(1, keepdim=True)  # 0 / 0 is NaN
    return 1 - 2 * (shares * (n - torch.arange(n).to(shares) - 0.5) / n).sum(1)
