"""From rows per example to numbers, ranks and verdicts: who comes first, and is it decided?

`resampled` gives a table with one column per competitor: the measured value in row 0, bootstrap values below. The
functions after it read such tables. Smaller is better, but for the criteria in `LARGER`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

KEYS = ("dataset", "posterior", "explainer", "draws")
CRITERIA = ("nll", "brier", "ece", "insertion", "deletion", "cv")
LARGER = ("insertion", "deletion")
Samples = dict[tuple[str, str, str], pd.DataFrame]  # (size, criterion, data set)
NUM_BINS = 15  # of confidence, as in `expected_calibration_error`


def tidy(frame: pd.DataFrame, measures: Sequence[str], by: Sequence[str] = KEYS) -> pd.DataFrame:
    """One number per row: the mean of each measure over examples, where each example is first averaged over seeds.

    Returns:
        Columns `by`, measure, value, se (standard error over examples), n (examples), seeds (trainings).
    """
    keys = [*by, "measure"]
    long = frame.melt([*by, "seed", "example"], list(measures), "measure").dropna(subset="value")
    examples = long.groupby([*keys, "example"], sort=False)["value"].mean().groupby(keys, sort=False)
    seeds = long.groupby(keys, sort=False)["seed"].nunique()
    columns = {"value": examples.mean(), "se": examples.sem(), "n": examples.size(), "seeds": seeds}
    return pd.DataFrame(columns).reset_index()


def resampled(
    frame: pd.DataFrame, criterion: str, *, who: str = "posterior", num_resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Draw a mean over examples anew, by a bootstrap in two stages: training seeds, then examples.

    All of `who` share the resampled examples, so differences are paired; seeds are drawn for each apart. Where there is
    one seed, the spread says nothing about another training. Two or three understate it: theirs is divided by S, not
    S - 1.

    Args:
        frame: columns `who`, seed, example, and the criterion; for "ece" confidence and error.
        criterion: a column, or "ece", the expected calibration error.
        who: what is compared.
        seed: of the bootstrap.

    Returns:
        A column for each of `who`; row 0 is the measured value, the others the resamples. Only examples for which all
        have a value count.

    Raises:
        ValueError: there are no such examples.
    """
    parts = {key: _parts(part, criterion) for key, part in frame.groupby([who, "seed"], sort=False)}
    shared = pd.concat([part.iloc[:, :0] for part in parts.values()], axis=1, join="inner").index
    if not len(shared):
        raise ValueError(f"no example has a {criterion!r} under every {who}; measure all of them on the same examples")
    rng, n = np.random.default_rng(seed), len(shared)
    weights = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), num_resamples)]) / n
    runs: dict[Any, list[np.ndarray]] = {}
    for (name, _), part in parts.items():
        means = weights @ part.loc[shared].to_numpy()
        runs.setdefault(name, []).append(np.abs(means).sum(1) if criterion == "ece" else means[:, 0])
    columns = {}
    for name, found in runs.items():
        values = np.stack(found, 1)  # (resample, seed)
        picked = rng.integers(values.shape[1], size=values.shape)
        picked[0] = range(values.shape[1])
        columns[name] = np.take_along_axis(values, picked, 1).mean(1)
    return pd.DataFrame(columns)


def _parts(frame: pd.DataFrame, criterion: str) -> pd.DataFrame:
    """Numbers per example whose mean over examples makes the criterion; for "ece" one column per bin of confidence."""
    frame = frame.set_index("example")
    if criterion != "ece":
        return frame[[criterion]].dropna()
    bins = (frame["confidence"] * NUM_BINS).clip(upper=NUM_BINS - 0.5).astype(int)
    gap = frame["confidence"] - (1 - frame["error"])
    return pd.get_dummies(bins, dtype=float).mul(gap, axis=0)


def ranking(samples: pd.DataFrame, *, larger: bool = False) -> pd.DataFrame:
    """Rank the columns of `resampled`: value, 95 % interval (low, high), rank from 1, and how often each came first.

    Args:
        samples: as `resampled` gives them.
        larger: whether the largest is best; by default the smallest.

    Returns:
        One row per column, in their order: who, value, low, high, rank, first (share of the resamples).
    """
    places = samples.rank(axis=1, ascending=not larger, method="min")
    found = {
        "value": samples.iloc[0],
        "low": samples.iloc[1:].quantile(0.025),
        "high": samples.iloc[1:].quantile(0.975),
        "rank": places.iloc[0].astype(int),
        "first": (places.iloc[1:] == 1).mean(),
    }
    return pd.DataFrame(found).rename_axis("who").reset_index()


def beats(samples: pd.DataFrame, *, larger: bool = False, num_comparisons: int | None = None) -> pd.DataFrame:
    """Which differences are decided: True where the row is better than the column beyond doubt.

    A difference counts if it is larger than z bootstrap standard errors; z is that of a two-sided 5 % test, divided by
    the number of comparisons (Bonferroni), all pairs of columns by default.

    Returns:
        A square table of truth values.
    """
    names = list(samples)
    comparisons = num_comparisons or max(1, len(names) * (len(names) - 1) // 2)
    z, sign = norm.isf(0.025 / comparisons), 1 if larger else -1
    off = {b: {a: sign * (samples[a] - samples[b]) for a in names} for b in names}
    return pd.DataFrame({b: {a: d[0] > z * d[1:].std() for a, d in column.items()} for b, column in off.items()})


def best_depends(samples: Mapping[str, pd.DataFrame], *, larger: bool = False) -> tuple[bool | None, str]:
    """Does the best one depend on the data set? Decided as a whole, by `beats` with all comparisons counted.

    Args:
        samples: `resampled` of each data set; columns that some data set lacks do not count.

    Returns:
        True if two data sets have unlike winners, each of which beats the other on its own; False if one beats all
        others on all of them; None if neither is decided. And the winners in words.
    """
    names = [name for name in next(iter(samples.values())) if all(name in each for each in samples.values())]
    pairs = len(samples) * len(names) * (len(names) - 1) // 2
    wins, best = {}, {}
    for dataset, each in samples.items():
        wins[dataset] = beats(each[names], larger=larger, num_comparisons=pairs)
        best[dataset] = str(each[names].iloc[0].agg("idxmax" if larger else "idxmin"))
    words = ", ".join(f"{dataset}: {name}" for dataset, name in best.items())
    for a, b in combinations(samples, 2):
        if wins[a].at[best[a], best[b]] and wins[b].at[best[b], best[a]]:
            return True, words
    alone = (
        len(names) > 1
        and len(set(best.values())) == 1
        and all(wins[d].loc[best[d]].sum() == len(names) - 1 for d in samples)
    )
    return (False if alone else None), words


def rank_agreement(a: pd.DataFrame, b: pd.DataFrame) -> tuple[float, float, float]:
    """Kendall's rank correlation (tau-a) of two sets of `resampled` columns: value, and its 95 % bootstrap interval.

    Noise pulls the resampled correlations towards 0, so the interval may lie below the value.

    Raises:
        ValueError: fewer than two columns in common.
    """
    names = [name for name in a if name in b]
    if len(names) < 2:
        raise ValueError(f"{len(names)} columns in common; a rank correlation needs two or more")
    first, second = np.triu_indices(len(names), 1)
    signs = [np.sign(each[names].to_numpy()[:, first] - each[names].to_numpy()[:, second]) for each in (a, b)]
    tau = (signs[0] * signs[1]).mean(1)
    low, high = np.quantile(tau[1:], (0.025, 0.975))
    return float(tau[0]), float(low), float(high)


def at_each_size(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Pick the rows of each posterior's usual number of draws, its largest, and those of the number that all have.

    Args:
        frame: columns dataset, posterior, draws.

    Returns:
        The rows of size "usual" and "equal"; a posterior that has one number of draws is in both.
    """
    numbers = frame.groupby(["dataset", "posterior"])["draws"]
    return {
        "usual": frame[frame["draws"] == numbers.transform("max")],
        "equal": frame[frame["draws"] == frame["draws"].min()],
    }


def resample_all(cells: pd.DataFrame, predictions: pd.DataFrame, *, num_scored: int, **options: Any) -> Samples:
    """Resample every one of `CRITERIA` that a data set has, for both sizes of `at_each_size`.

    Explanations are averaged over explainers, example by example: insertion and deletion are the gains of a blurred
    fill, cv the logarithm of the ratio CV.

    Args:
        cells: rows of `grid.explained` and `grid.gains`, with the columns dataset, posterior, explainer, seed.
        predictions: rows of `grid.predicted`, with the columns dataset, posterior, seed.
        num_scored: examples, the first ones, that count for explanations: all explainers should have them.
        **options: of `resampled`.
    """
    columns = {"insertion_blurred_gain": "insertion", "deletion_blurred_gain": "deletion"}
    few = cells[cells["example"] < num_scored].assign(cv=np.log(cells["cv_ratio"])).rename(columns=columns)
    keys, count = ["dataset", "posterior", "draws", "seed", "example"], cells["explainer"].nunique()
    means = few.groupby(keys, sort=False)[[*LARGER, "cv"]].sum(min_count=count) / count
    samples = {}
    for frame in (predictions.assign(ece=predictions.get("confidence")), means.reset_index()):
        for size, part in at_each_size(frame).items():
            for dataset, rows in part.groupby("dataset", sort=False):
                for criterion in [name for name in CRITERIA if name in rows and rows[name].notna().any()]:
                    samples[size, criterion, str(dataset)] = resampled(rows, criterion, **options)
    return samples


def rank_table(samples: Samples) -> pd.DataFrame:
    """`ranking` of every table, with the columns size, criterion, dataset, and tied: not decidedly behind the first.

    Rows are in order of appearance of the data set, then of `CRITERIA`.
    """
    frames = []
    datasets = list(dict.fromkeys(dataset for _, _, dataset in samples))
    for size, criterion, dataset in sorted(samples, key=lambda k: (datasets.index(k[2]), CRITERIA.index(k[1]), k[0])):
        one, larger = samples[size, criterion, dataset], criterion in LARGER
        frame = ranking(one, larger=larger)
        lost = beats(one, larger=larger).iloc[int(frame["rank"].argmin())]
        frames.append(
            frame.assign(size=size, criterion=criterion, dataset=dataset, tied=~frame["who"].map(lost).astype(bool))
        )
    return pd.concat(frames, ignore_index=True)
