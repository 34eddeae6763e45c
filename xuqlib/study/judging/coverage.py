"""Does a posterior's spread of explanations predict how another trained network would explain the same example?

A posterior gives an interval for every pixel. Networks that it has never seen, trained on the same data from other
weights in another order, are the test: the interval should hold their maps as often as it says, and be narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from scipy.special import ndtr, ndtri, stdtrit
from torch import Tensor, nn

from xuqlib.explain import explain
from xuqlib.posteriors.draws import Draws
from xuqlib.study.checked import (
    Band,
    Batch,
    Count,
    Floats,
    Level,
    Levels,
    Maps,
    Positive,
    Seed,
    Stack,
    Target,
    Tests,
    check_alike,
    checked,
    shown,
)

LEVELS = (0.5, 0.8, 0.9, 0.95)
LARGEST = 0.2  # share of pixels that count as large


@checked
def unit_scale(values: Stack) -> Tensor:
    """Divide every map by its own mean |.|: two networks may agree on a map and differ in the size of their logits.

    Args:
        values: (draw, example, pixel), signed. A map of zeros has no scale, and becomes NaN.
    """
    return values / values.abs().mean(-1, keepdim=True)


@checked
def scaled_maps(
    draws: Draws | Sequence[nn.Module],
    explainer: Callable[..., Tensor],
    x: Batch,
    target: Target | None,
    *,
    block: Count = 50,
    **options: Any,
) -> Tensor:
    """Explain, sum over channels, and scale: (draw, example, pixel or feature), float64, in units of the mean |map|.

    Args:
        draws, explainer, x, **options: as for `explain`; draws of another dtype than x are copied into it.
        target: one class per example, the same for every network that is compared; None for a regression.
        block: examples explained at a time, which bounds the memory.
    """
    parts = []
    if isinstance(draws, Draws) and any(w.dtype != x.dtype for network in draws for w in network.parameters()):
        draws = deepcopy(draws).to(x.dtype)
    for start in range(0, len(x), block):
        rows = slice(start, start + block)
        own = None if target is None else target[rows]
        values = explain(draws, explainer, x[rows], own, progress=False, **options).values
        assert values is not None  # keep is "all"
        parts.append(unit_scale((values.sum(2).flatten(2) if values.ndim == 5 else values).double()))
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Forecast:
    """What a posterior expects of one more network's map.

    Attributes:
        mean, std: over draws, (example, pixel); std with divisor draws - 1.
        num_draws: behind them; infinite where the std counts as known.
    """

    mean: Tensor
    std: Tensor
    num_draws: float = math.inf

    def at(self, examples: Tensor) -> Forecast:
        """Keep some examples: indices, or a mask."""
        return Forecast(self.mean[examples], self.std[examples], self.num_draws)


@checked
def forecast(values: Stack) -> Forecast:
    """Mean and std over draws of maps (draw, example, pixel); draws whose map is NaN are left out.

    A single draw knows of no spread: its std is 0.
    """
    if len(values) == 1:
        return Forecast(values[0], torch.zeros_like(values[0]))
    mean, count = values.nanmean(0), values.isfinite().sum(0)
    return Forecast(mean, ((values - mean) ** 2).nansum(0).div(count - 1).sqrt(), len(values))


@checked
def intervals(expected: Forecast, levels: Levels = LEVELS) -> tuple[Tensor, Tensor]:
    """Ends of the interval for one more draw, each (level, example, pixel).

    mean ± q std sqrt(1 + 1/S), with q of Student's t with S - 1 degrees of freedom: exact if the S draws and the new
    map are independent and from one Gaussian. An infinite S gives mean ± z std.
    """
    s = expected.num_draws
    q = torch.tensor([stdtrit(s - 1, (1 + level) / 2) * math.sqrt(1 + 1 / s) for level in levels], dtype=torch.float64)
    half = q.view(-1, 1, 1) * expected.std
    return expected.mean - half, expected.mean + half


@checked
def image_blind(maps: Maps, levels: Levels = LEVELS) -> tuple[Tensor, Tensor]:
    """Ends of an interval that never looks at the picture: quantiles of each pixel over other pictures' maps.

    Args:
        maps: of other examples, (example, pixel), all from one network.

    Returns:
        low and high, each (level, 1, pixel).
    """
    if maps.dim() != 2:
        raise ValueError(f"maps are {shown(maps)}; pass (example, pixel)")
    known = maps[maps.isfinite().all(1)]
    tails = torch.tensor([[(1 - level) / 2, (1 + level) / 2] for level in levels], dtype=maps.dtype)
    low, high = (known.quantile(tail, 0)[:, None] for tail in tails.T)
    return low, high


@checked
def interval_score(low: Floats, high: Floats, value: Floats, level: Level) -> Tensor:
    """Width plus 2 / (1 - level) times how far the value lies outside; lower is better, and honesty pays.

    Its expectation is smallest for the true quantiles. Source: Gneiting & Raftery 2007, eq. 43.
    """
    check_alike(low=low, high=high, value=value)
    outside = (low - value).clamp(min=0) + (value - high).clamp(min=0)
    return high - low + 2 / (1 - level) * outside


@checked
def centred_coverage(level: Level, num_averaged: Positive = 1) -> float:
    """Coverage of mean ± z s by a new network, where s is right but the mean is that of M networks only.

    The new map and the mean differ by a Gaussian of variance s^2 (1 + 1/M): 2 Phi(z / sqrt(1 + 1/M)) - 1. With M = 1,
    an interval of nominally 90 % whose width is perfect holds 75.5 %.
    """
    z = ndtri((1 + level) / 2)
    return float(2 * ndtr(z / math.sqrt(1 + 1 / num_averaged)) - 1)


@checked
def perfect_ratio(num_averaged: Positive = 1) -> float:
    """Variance ratio of a posterior whose spread is right: s^2 / (s^2 (1 + 1/M)), so 1/2 around one network."""
    return 1 / (1 + 1 / num_averaged)


@checked
def counting_coverage(num_networks: Count) -> float:
    """Coverage of the range of M networks by one more of the same kind, whatever their distribution.

    Each of the M + 1 is equally likely to be the smallest or the largest, so (M - 1) / (M + 1): no merit of theirs.
    """
    return (num_networks - 1) / (num_networks + 1)


@checked
def simulated(seed: Seed = 0) -> pd.DataFrame:
    """Show on Gaussian numbers what the three formulas above say; 20,000 pixels, six new networks.

    Returns:
        Columns interval, formula and simulated, the coverage of a new network.
    """
    stream = torch.Generator().manual_seed(seed)
    maps = torch.randn(11, 20, 1000, generator=stream, dtype=torch.float64)
    five, new = maps[:5], maps[5:]
    inside = ((new > five.amin(0)) & (new < five.amax(0))).double().mean()
    rows = [("range of 5 networks", counting_coverage(5), float(inside))]
    ones = torch.ones_like(maps[0])
    for name, formula, expected in (
        ("1 network ± 1.64 s", centred_coverage(0.9), Forecast(maps[0], ones)),
        ("1 network ± 1.64 √2 s", 0.9, Forecast(maps[0], ones * math.sqrt(2))),
        ("5 networks, Student's t", 0.9, forecast(five)),
    ):
        found = agreement(expected, new, levels=(0.9,))
        rows.append((name, formula, float(found.loc[found["pixels"] == "all", "coverage"].mean())))
    return pd.DataFrame(rows, columns=["interval", "formula", "simulated"])


@checked
def agreement(
    expected: Forecast,
    held_out: Stack,
    *,
    levels: Levels = LEVELS,
    band: Band | None = None,
) -> pd.DataFrame:
    """How well intervals hold the maps of networks that had no part in making them.

    Args:
        expected: of `forecast`.
        held_out: maps of other networks, (network, example, pixel). NaN maps are left out.
        band: other ends to test on the same pixels, each (level, 1 or example, pixel), such as `image_blind`.

    Returns:
        One row per pixels ("all", "largest": the 20 % with the largest |mean|), level and example, averaged over
        pixels and networks: coverage; width and score, in units of the mean |map|; variance, predicted; deviation, the
        squared distance of a held-out map from the mean. Over many examples, mean variance / mean deviation is the
        variance ratio: 1 is honest, `perfect_ratio` is the best that spread around M networks alone can give.
    """
    check_alike(held_out=held_out[0], expected=expected.mean)
    lows, highs = intervals(expected, levels) if band is None else band
    weights = torch.stack([torch.ones_like(expected.mean), _is_largest(expected.mean)], -1)
    weights = (weights / weights.sum(1, keepdim=True)).double()  # (example, pixel, 2)

    def mean(value: Tensor) -> Tensor:  # (network, example, pixel) to (2, example)
        return torch.einsum("knp,npw->wkn", value.double(), weights).nanmean(1)

    common = {"variance": mean(expected.std[None] ** 2), "deviation": mean((held_out - expected.mean) ** 2)}
    frames = []
    for low, high, level in zip(lows, highs, levels, strict=True):
        score = interval_score(low, high, held_out, level)
        inside = torch.where(score.isnan(), torch.nan, ((held_out >= low) & (held_out <= high)).double())
        width = mean((high - low).expand_as(expected.mean)[None])
        columns = {"coverage": mean(inside), "width": width, "score": mean(score), **common}
        for i, pixels in enumerate(("all", "largest")):
            numbers = {name: value[i].numpy() for name, value in columns.items()}
            frames.append(pd.DataFrame({"pixels": pixels, "level": level, "example": range(len(weights)), **numbers}))
    return pd.concat(frames, ignore_index=True)


def _is_largest(mean: Tensor) -> Tensor:
    count = max(1, round(LARGEST * mean.shape[1]))
    places = mean.abs().argsort(stable=True, dim=1, descending=True)[:, :count]
    return torch.zeros_like(mean).scatter(1, places, 1.0)


@checked
def compare_intervals(tests: Tests, level: Level = 0.9) -> pd.DataFrame:
    """Test intervals of one level side by side; means over examples.

    Args:
        tests: name of each, and its arguments of `agreement`.

    Returns:
        The columns of `agreement`, by pixels and test.
    """
    parts = [agreement(**arguments, levels=(level,)).assign(test=name) for name, arguments in tests.items()]
    return pd.concat(parts).groupby(["pixels", "test"], sort=False).mean().drop(columns=["level", "example"])
