"""Running means and variances, so that an explanation distribution of any length fits in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_WAITING = 2**24  # numbers on a device that are taken in at once
CLIP = 0.99  # quantile at which a folded map is clipped before it is scaled to [0, 1]; arXiv 2403.17224


def folded(attribution: Tensor) -> Tensor:
    """Make attributions non-negative: |.|, of images and volumes summed over channels, (N, C, H, W) to (N, H, W).

    Args:
        attribution: one draw, (N, C, H, W) or (N, F), say; a signal, (N, C, L) or (N, T, F), keeps its axes.
    """
    return attribution.abs().sum(1) if attribution.ndim > 3 else attribution.abs()


def rescaled(attribution: Tensor) -> Tensor:
    """Fold one draw's maps, clip each at its 99th percentile, and scale it to [0, 1]; a flat map becomes zeros."""
    maps = folded(attribution)
    flat = maps.flatten(1)
    # The quantile, interpolated between two of the largest numbers; a whole sort would take longer than the maps.
    place = CLIP * (flat.shape[1] - 1)
    largest = flat.topk(flat.shape[1] - int(place), dim=1).values
    top = torch.lerp(largest[:, -1:], largest[:, -2:][:, :1], place - int(place))
    low = flat.amin(1, keepdim=True)
    span = top - low
    scaled = (flat.minimum(top) - low) / torch.where(span > 0, span, torch.ones_like(span))
    return torch.where(span > 0, scaled, torch.zeros_like(scaled)).view_as(maps)


ONLY_MEAN = 'only the mean over draws was kept; explain with keep="moments", or "all"'


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {"raw": lambda value: value, "folded": folded, "rescaled": rescaled}


@dataclass
class Welford:
    """Mean and variance of tensors that come one after another, in float64. Source: Welford 1962."""

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor | None = field(default_factory=lambda: torch.zeros(()))  # None where only the mean was kept

    def append(self, value: Tensor) -> None:
        value = value.double()
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = value.clone(), torch.zeros_like(value)
        deviation = value - self.mean
        self.mean.add_(deviation, alpha=1 / self.count)
        self._summed().addcmul_(deviation, value.sub(self.mean))

    def extend(self, values: Tensor) -> None:
        """Append many at once, (S, ...), in about as few operations as one. Source: Chan, Golub & LeVeque 1983."""
        mean = values.mean(0, dtype=torch.float64)
        squares = (values - mean).square_().sum(0)
        before, self.count = self.count, self.count + len(values)
        deviation = mean - self.mean if before else torch.zeros_like(mean)
        self.mean = mean - deviation * (before / self.count)
        self.squares = self._summed() + squares + deviation.square_() * (before * len(values) / self.count)

    def std(self, correction: int = 0) -> Tensor:
        """Standard deviation over what was appended, divisor count - correction; NaN where that is 0.

        Raises:
            ValueError: only the mean was kept.
        """
        divisor, squares = self.count - correction, self._summed()
        return (squares / divisor).sqrt() if divisor > 0 else torch.full_like(squares, math.nan)

    def _summed(self) -> Tensor:
        if self.squares is None:
            raise ValueError(ONLY_MEAN)
        return self.squares


class Moments(dict[str, Welford]):
    """Moments of the attributions of one or more draws, by kind: "raw", "folded", and "rescaled" once folded.

    Attributes:
        stack: all draws, (draw, example, ...), if they were kept: each kind is then computed when first asked for.
    """

    stack: Tensor | None = None

    def append(self, attribution: Tensor) -> None:
        """Take in one draw's attributions, (N, ...)."""
        attribution = attribution.double()
        for kind, function in _KINDS.items():
            self.setdefault(kind, Welford()).append(function(attribution))

    def extend(self, attributions: Tensor) -> None:
        """Take in the attributions of some draws, (S, N, ...)."""
        rows = attributions.flatten(0, 1).double()
        for kind, function in _KINDS.items():
            self.setdefault(kind, Welford()).extend(function(rows).unflatten(0, attributions.shape[:2]))

    @property
    def num_draws(self) -> int:
        return self["raw"].count

    @classmethod
    def streamed(cls, attributions: Iterable[Tensor]) -> Moments:
        """Moments of draws that come one after another; on a device, which is asked seldom, of many at once."""
        moments, waiting = cls(), list[Tensor]()
        for attribution in attributions:
            if attribution.is_cpu:
                moments.append(attribution)
                continue
            waiting.append(attribution)
            if len(waiting) * attribution.numel() >= _WAITING:
                moments.extend(torch.stack(waiting))
                waiting.clear()
        if waiting:
            moments.extend(torch.stack(waiting))
        return moments

    @classmethod
    def over(cls, values: Tensor) -> Moments:
        """Moments of a stack of draws, (draw, example, ...)."""
        moments = cls()
        moments.stack = values
        return moments

    @classmethod
    def of_mean(cls, mean: Tensor, num_draws: int) -> Moments:
        """Nothing but the mean attribution over draws, (N, ...)."""
        return cls(raw=Welford(num_draws, mean.double(), None))

    @classmethod
    def joined(cls, parts: Sequence[Moments]) -> Moments:
        """Put the moments of consecutive examples together, on the CPU."""
        moments = cls()
        for kind in parts[0]:
            each = [part[kind] for part in parts]
            squares = [welford.squares.cpu() for welford in each if welford.squares is not None]
            mean = torch.cat([welford.mean.cpu() for welford in each])
            moments[kind] = Welford(each[0].count, mean, torch.cat(squares) if squares else None)
        return moments

    def __missing__(self, kind: str) -> Welford:
        if self.stack is None:
            raise ValueError(ONLY_MEAN)
        self[kind] = welford = Welford()
        for value in self.stack if kind != "raw" else ():
            welford.append(_KINDS[kind](value.double()))
        if kind == "raw":  # with all of them at hand, the mean first and then the squares takes half as long
            welford.count, welford.mean = len(self.stack), self.stack.mean(0, dtype=torch.float64)
            welford.squares = torch.zeros_like(welford.mean)
            for value in self.stack:
                deviation = value - welford.mean  # in float64
                welford.squares.addcmul_(deviation, deviation)
        return welford
