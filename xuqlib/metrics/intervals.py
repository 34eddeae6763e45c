"""A number with its interval: what resampled examples say about it, and rank correlations of many resamples at once."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

BOOTSTRAP = "95 % bootstrap over examples"


class Estimate(NamedTuple):
    """A number and the ends of its 95 % interval; all NaN where it is undefined."""

    value: float
    low: float
    high: float

    def above(self, bound: float) -> bool | None:
        """Whether the number lies above the bound: True or False where the interval decides it, else None."""
        return True if self.low > bound else False if self.high <= bound else None

    def exp(self) -> Estimate:
        """The estimate of a logarithm as one of a factor."""
        return Estimate(*(math.exp(number) for number in self))


def estimate(values: np.ndarray) -> Estimate:
    """The first of the values, and the 95 % percentile interval of the others, its resamples, that are defined."""
    defined = values[1:][np.isfinite(values[1:])]
    if np.isnan(values[0]) or not len(defined):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis; NaN where one of the two is constant."""
    left, right = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(a, axis=-1), rankdata(b, axis=-1)))
    size = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    return np.divide((left * right).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)
