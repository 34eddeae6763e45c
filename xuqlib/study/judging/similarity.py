"""What a map is worth: does it agree with another one, and does it lie where the evidence is?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from skimage.metrics import structural_similarity

from xuqlib.study.checked import Maps, checked


@checked
def spearman(a: Maps, b: Maps) -> pd.Series:
    """Rank correlation (Spearman) of two attributions of each example, sign included, summed over channels.

    Args:
        a, b: (N, C, H, W), (N, F) or others, (N, ...).

    Returns:
        One number in [-1, 1] per example; NaN where one of the two is constant.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"attributions are {tuple(a.shape)} and {tuple(b.shape)}; pass the same examples")
    rows = ((m.sum(1) if m.ndim > 3 else m).detach().flatten(1).cpu().numpy() for m in (a, b))
    return pd.Series(spearman_rows(*rows))


def spearman_rows(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis; NaN where one of the two is constant, or has fewer than two numbers."""
    if a.shape[-1] < 2:
        return np.full(a.shape[:-1], np.nan)
    left, right = (ranks - ranks.mean(-1, keepdims=True) for ranks in (_ranks(a), _ranks(b)))
    size = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    return np.divide((left * right).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, ties at their mean; by pandas, as `scipy.stats` takes long to import."""
    columns = pd.DataFrame(values.reshape(-1, values.shape[-1]).T)
    return columns.rank().to_numpy().T.reshape(values.shape)


@checked
def ssim(a: Maps, b: Maps) -> pd.Series:
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
