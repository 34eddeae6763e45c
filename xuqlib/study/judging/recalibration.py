"""Mending a posterior's spread of explanations: a wider std, fitted to a few networks that are kept for fitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import ndtri
from torch import Tensor

from xuqlib.study.checked import Level, Stack, check_alike, checked, shown
from xuqlib.study.judging.coverage import Forecast

_SUBSET = 2**15  # numbers that a repair is fitted on, at most: spread evenly over networks, examples and pixels
_NO_WIDTH = 1e-4  # in units of the mean |map|: keeps the root differentiable where nothing moves


@dataclass(frozen=True)
class Repair:
    """A correction of a forecast, fitted; called with a forecast, it returns the corrected one.

    Attributes:
        mend: the correction.
        score: mean interval score that it reached where it was fitted.
        weights: the numbers that were fitted.
    """

    mend: Callable[[Forecast], Forecast]
    score: float
    weights: tuple[float, ...] = ()

    def __call__(self, expected: Forecast) -> Forecast:
        return self.mend(expected)


@checked
def fit_spread(
    expected: Forecast, held_out: Stack, parts: Callable[[Forecast], Sequence[Tensor]], *, level: Level = 0.9
) -> Repair:
    """Make std^2 a sum of squared parts, each times a weight, with the weights of the smallest mean interval score.

    The repaired std counts as known from then on: its interval is mean ± z std.

    Args:
        expected, held_out: as for `coverage.agreement`; test on other networks and other examples.
        parts: of a forecast, what the new std is made of, each (example, pixel). Its std alone gives one factor; no
            factor mends a pixel at which the posterior has no spread at all, a part that is 1 everywhere does.
        level: of the interval.

    Raises:
        ValueError: every part is 0 everywhere.
    """
    check_alike(held_out=held_out[0], expected=expected.mean)
    off = (held_out - expected.mean).abs().flatten()
    if not isinstance(found := parts(expected), Sequence):
        raise TypeError(f"parts gave {shown(found)}; let it return a list of tensors")
    terms = torch.stack([part**2 for part in found]).repeat(1, len(held_out), 1).flatten(1)
    known = off.isfinite() & terms.isfinite().all(0)
    off, terms = off[known], terms[:, known]
    step = len(off) // _SUBSET | 1  # odd, so that it walks through all columns of an image
    scale, means = float((off**2).mean()), terms.mean(1)
    if not means.any():
        raise ValueError("every part is 0 everywhere, so no weight can mend the spread; add one that is not the std")
    units = torch.where(means > 0, scale / means, torch.zeros_like(means)).numpy()
    found = _least_score(off[::step].numpy(), terms[:, ::step].numpy() * units[:, None], level)
    weights = tuple(np.sqrt(found.x * units).tolist())

    def mend(other: Forecast) -> Forecast:
        squares = [(weight * part) ** 2 for weight, part in zip(weights, parts(other), strict=True)]
        return Forecast(other.mean, sum(squares[1:], squares[0]).sqrt())

    return Repair(mend, float(found.fun), weights)


def _least_score(off: np.ndarray, terms: np.ndarray, level: float) -> Any:
    """Minimise the mean score of ± z std, std^2 a non-negative combination of the terms, each of the size of off^2."""
    z = ndtri((1 + level) / 2)

    def score(weights: np.ndarray) -> tuple[float, np.ndarray]:
        std = np.sqrt(weights @ terms + _NO_WIDTH**2)
        excess = off - z * std
        slope = 2 * z * (1 - (excess > 0) / (1 - level)) / (2 * std)  # of the score, by std^2
        return float(np.mean(2 * z * std + 2 / (1 - level) * np.maximum(excess, 0))), terms @ slope / len(off)

    start = np.full(len(terms), 1 / len(terms))
    return minimize(score, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(terms))
