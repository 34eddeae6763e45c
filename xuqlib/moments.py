"""Running means and variances, so that an explanation distribution of any length fits in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CLIP = 0.99  # quantile at which a folded map is clipped before it is scaled to [0, 1]; arXiv 2403.17224


def folded(attribution: Tensor) -> Tensor:
    """Make attributions non-negative: |.| summed over channels, (..., C, H, W) to (..., H, W); tables keep features.

    Args:
        attribution: one draw, (N, C, H, W) or (N, F).
    """
    return attribution.abs().sum(1) if attribution.ndim == 4 else attribution.abs()


def rescaled(attribution: Tensor) -> Tensor:
    """Fold one draw's maps, clip each at its 99th percentile, and scale it to [0, 1]; a flat map becomes zeros."""
    maps = folded(attribution)
    flat = maps.flatten(1)
    top = flat.quantile(CLIP, dim=1, keepdim=True)
    low = flat.amin(1, keepdim=True)
    span = top - low
    scaled = (flat.minimum(top) - low) / torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(span > 0, scaled, torch.zeros_like(scaled)).view_as(maps)


class Welford:
    """Mean and variance of tensors that come one after another, in float64. Source: Welford 1962."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def append(self, value: Tensor) -> None:
        value = value.double()
        self.count += 1
        deviation = value - self.mean
        self.mean = self.mean + deviation / self.count
        self.squares = self.squares + deviation * (value - self.mean)

    def std(self, correction: int = 0) -> Tensor:
        """Standard deviation over what was appended, divisor count - correction; NaN where that is 0."""
        divisor = self.count - correction
        return (self.squares / divisor).sqrt() if divisor > 0 else torch.full_like(self.squares, math.nan)


class Moments:
    """Moments of the attributions of one or more draws: as they are, folded, and folded then rescaled."""

    def __init__(self) -> None:
        self.of = {"raw": Welford(), "folded": Welford(), "rescaled": Welford()}

    def append(self, attribution: Tensor) -> None:
        """Take in one draw's attributions, (N, C, H, W) or (N, F)."""
        attribution = attribution.double()
        self.of["raw"].append(attribution)
        self.of["folded"].append(folded(attribution))
        self.of["rescaled"].append(rescaled(attribution))

    @property
    def num_draws(self) -> int:
        return self.of["raw"].count

    @classmethod
    def over(cls, values: Tensor) -> Moments:
        """Moments of a stack of draws, (draw, example, ...)."""
        moments = cls()
        for value in values:
            moments.append(value)
        return moments

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Put the moments of consecutive examples together."""
        moments = cls()
        for name, welford in moments.of.items():
            welford.count = parts[0].num_draws
            welford.mean = torch.cat([part.of[name].mean for part in parts])
            welford.squares = torch.cat([part.of[name].squares for part in parts])
        return moments
