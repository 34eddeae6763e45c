"""Means and correlations by class, with intervals from resampled examples.

Intervals are 95 % percentile bootstraps over examples: each class's examples are drawn anew with replacement, as many
as there are, so every class keeps its size. Draws and trained networks stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from xuqlib.checks import check_count
from xuqlib.metrics.intervals import Estimate, estimate, spearman


def class_means(
    frame: pd.DataFrame, statistics: Sequence[str], *, num_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean of each column over the examples of each class, with its interval.

    Args:
        frame: one row per example, with a column class; NaN does not count.
        statistics: columns to average.
        num_resamples, seed: of the bootstrap.

    Returns:
        Columns class, statistic, value, low, high, n (examples behind it). low and high are NaN for one example; a
        class without any has no row.
    """
    rows = []
    for statistic in statistics:
        names, _, means, counts = _resampled(frame, [statistic], num_resamples, seed)
        for place, name in enumerate(names):
            value, low, high = estimate(means[0][:, place])
            ends = (low, high) if counts[place] > 1 else (math.nan, math.nan)
            rows.append((name, statistic, value, *ends, counts[place]))
    return pd.DataFrame(rows, columns=["class", "statistic", "value", "low", "high", "n"])


def class_gap(frame: pd.DataFrame, value: str, name: str, *, num_resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean of a column in one class, minus the mean of the other classes' means.

    Args:
        frame, num_resamples, seed: as for `class_means`.
        value: the column.
        name: the class.

    Raises:
        ValueError: no example of that class, or of another one.
    """
    names, _, means, _ = _resampled(frame, [value], num_resamples, seed)
    if name not in names or len(names) < 2:
        raise ValueError(f"classes with examples are {', '.join(map(str, names))}; wanted {name!r} and one more")
    place = names.index(name)
    return estimate(means[0][:, place] - np.delete(means[0], place, 1).mean(1))


def class_correlation(frame: pd.DataFrame, a: str, b: str, *, num_resamples: int = 1000, seed: int = 0) -> Estimate:
    """Rank correlation (Spearman) over classes between the class means of two columns; NaN where one is constant.

    The interval says how far the few examples of each class may mislead, not what other classes would do. Noise in
    the class means pulls a resampled correlation towards 0, so the interval may lie lower than its value.

    Args:
        frame, num_resamples, seed: as for `class_means`; only examples that have both columns count.
        a, b: the columns.
    """
    _, _, (left, right), _ = _resampled(frame, [a, b], num_resamples, seed)
    return estimate(spearman(left, right))


def correlation(
    frame: pd.DataFrame, a: str, b: str, *, within: bool = False, num_resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Rank correlation (Spearman) over examples between two columns; NaN where one is constant.

    Args:
        frame, a, b, num_resamples, seed: as for `class_correlation`.
        within: the mean over classes of the correlation inside a class, so that no class difference can make it;
            classes of fewer than three examples do not count.
    """
    _, (left, right), _, counts = _resampled(frame, [a, b], num_resamples, seed)
    if not within:
        return estimate(spearman(left, right))
    cuts = np.cumsum(counts)[:-1]
    parts = zip(np.split(left, cuts, 1), np.split(right, cuts, 1), strict=True)
    inside = pd.DataFrame({i: spearman(*part) for i, part in enumerate(parts) if part[0].shape[1] > 2})
    lines = range(len(left))  # pandas leaves out NaN, which a constant class has
    return estimate(inside.reindex(lines).mean(axis=1).to_numpy())


def _resampled(
    frame: pd.DataFrame, columns: Sequence[str], num_resamples: int, seed: int
) -> tuple[list[Any], list[np.ndarray], list[np.ndarray], list[int]]:
    """Classes, columns (1 + resample, example) sorted by class, their class means (1 + resample, class), class sizes.

    The first line is the sample itself.
    """
    check_count(num_resamples, 2, "num_resamples")
    whole = frame.dropna(subset=list(columns))
    if whole.empty:
        raise ValueError(f"no example has {' and '.join(columns)}; pass a frame with one row per example")
    stream, parts = np.random.default_rng(seed), dict(list(whole.groupby("class", sort=False)))
    counts = [len(part) for part in parts.values()]
    picks = [np.vstack([np.arange(n), stream.integers(n, size=(num_resamples, n))]) for n in counts]
    drawn = [
        [part[column].to_numpy(float)[pick] for part, pick in zip(parts.values(), picks, strict=True)]
        for column in columns
    ]
    values = [np.concatenate(each, 1) for each in drawn]
    return list(parts), values, [np.stack([part.mean(1) for part in each], 1) for each in drawn], counts
