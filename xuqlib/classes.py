"""Class by class: is a class explained unsteadily because it is hard?

Intervals are percentile bootstraps over examples: each class's examples are drawn anew with replacement, as many as
there are, so every class keeps its size. Draws and trained networks stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

from xuqlib.checks import check_count
from xuqlib.data import Examples
from xuqlib.draws import Draws
from xuqlib.explaining import Explainer
from xuqlib.lime import lime
from xuqlib.predictions import answers
from xuqlib.steadiness import steadiness
from xuqlib.study import Notebook
from xuqlib.uncertainty import logits_of

BOOTSTRAP = "95 % bootstrap over examples"
CVS = ("cv_ratio", "cv_pooled", "cv_paper")
RUN = ("dataset", "posterior", "training", "explainer")


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


class Way(NamedTuple):
    """One explainer and how much of it: options, pictures of each class, draws, and right and wrong answers each."""

    explainer: Explainer
    options: Mapping[str, Any]
    per_class: int
    num_draws: int
    num_answers: int = 0


def hardness(draws: Draws, examples: Examples) -> pd.DataFrame:
    """How hard each example is for the mean prediction of the draws.

    Returns:
        One row per example: example, class (its true one), error (0 or 1), entropy (of the mean prediction) and
        mutual_information in nats, label_entropy (of the soft label, in nats; NaN without one).

    Raises:
        ValueError: the examples have no classes.
    """
    if examples.class_names is None:
        raise ValueError(f"{examples.name} is a regression; pass examples that have classes")
    found = answers(logits_of(draws, examples.x), examples.y)
    columns = {
        "example": found["example"],
        "class": [examples.class_names[label] for label in examples.y],
        "error": found["answer"].eq("wrong").astype(float),
        "entropy": found["total"],
        "mutual_information": found["epistemic"],
        "label_entropy": math.nan,
    }
    if examples.probs is not None:
        columns["label_entropy"] = torch.special.entr(examples.probs.double()).sum(1).numpy()
    return pd.DataFrame(columns)


def steadiness_of_classes(draws: Draws, examples: Examples, ways: Mapping[str, Way]) -> pd.DataFrame:
    """CVs of the first examples of each class, beside their hardness.

    Args:
        draws: the hardness is that of all of them.
        examples: pictures with classes.
        ways: name of each explainer and how to use it.

    Returns:
        The columns of `hardness`, then explainer and the CVs named in `CVS`, as `steadiness` gives them.
    """
    found, parts = hardness(draws, examples), []
    for name, way in ways.items():
        rows = found.groupby("class").head(way.per_class)
        x, how = examples.x[rows.index.to_numpy()], "mean" if way.explainer is lime else "sum"
        table = steadiness(draws[: way.num_draws], way.explainer, x, how=how, block=16, **way.options)
        parts.append(rows.assign(explainer=name).join(table.set_index(rows.index)[list(CVS)]))
    return pd.concat(parts, ignore_index=True)


def beside_entropy(cvs: pd.DataFrame) -> pd.DataFrame:
    """Add log_cv, of the ratio CV, and at_equal_entropy: what is left of it when the entropy's rank is taken out.

    Args:
        cvs: rows of `steadiness_of_classes`, with the columns of `RUN` that they lack.
    """
    found = cvs.assign(log_cv=np.log(cvs["cv_ratio"].where(cvs["cv_ratio"] > 0)))
    return found.assign(at_equal_entropy=taken_out(found, "log_cv", "entropy", by=RUN))


def per_picture(cvs: pd.DataFrame, *, posteriors: bool = False) -> pd.DataFrame:
    """Average each example's numbers over trainings, and then over posteriors unless these are to be kept.

    Args:
        cvs: columns of `RUN`, class, example, and numbers.
        posteriors: whether there is a row per posterior.
    """
    keys = ["dataset", "posterior", "explainer", "class", "example"]
    numbers = list(cvs.select_dtypes("number").columns.difference(["example", "training"], sort=False))
    means = cvs.groupby(keys, sort=False)[numbers].mean()
    if not posteriors:
        means = means.groupby([key for key in keys if key != "posterior"], sort=False).mean()
    return means.reset_index()


def taken_out(frame: pd.DataFrame, value: str, given: str, *, by: Sequence[str]) -> pd.Series:
    """What is left of a column when its straight line in the rank of another one is taken out, group by group.

    The rank does not ask for the other column's scale. What is left has mean 0 in each group; where the other column
    is constant, only the mean is taken out.

    Args:
        frame: one row per example and group; rows with a NaN in either column stay NaN.
        value, given: names of the two columns.
        by: columns that make the groups.
    """
    both = frame.dropna(subset=[value, given])
    groups = [both[column] for column in by]
    rank = both.groupby(groups)[given].rank()
    x, y = (each - each.groupby(groups).transform("mean") for each in (rank, both[value]))
    square = (x**2).groupby(groups).transform("sum")
    slope = (x * y).groupby(groups).transform("sum") / square.where(square > 0)
    return (y - slope.fillna(0) * x).reindex(frame.index)


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
            value, low, high = _estimate(means[0][:, place])
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
    return _estimate(means[0][:, place] - np.delete(means[0], place, 1).mean(1))


def class_correlation(frame: pd.DataFrame, a: str, b: str, *, num_resamples: int = 1000, seed: int = 0) -> Estimate:
    """Rank correlation (Spearman) over classes between the class means of two columns; NaN where one is constant.

    The interval says how far the few examples of each class may mislead, not what other classes would do. Noise in
    the class means pulls a resampled correlation towards 0, so the interval may lie lower than its value.

    Args:
        frame, num_resamples, seed: as for `class_means`; only examples that have both columns count.
        a, b: the columns.
    """
    _, _, (left, right), _ = _resampled(frame, [a, b], num_resamples, seed)
    return _estimate(_spearman(left, right))


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
        return _estimate(_spearman(left, right))
    cuts = np.cumsum(counts)[:-1]
    parts = zip(np.split(left, cuts, 1), np.split(right, cuts, 1), strict=True)
    inside = pd.DataFrame({i: _spearman(*part) for i, part in enumerate(parts) if part[0].shape[1] > 2})
    return _estimate(inside.mean(axis=1).to_numpy())  # pandas leaves out NaN: a class that is constant


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


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis; NaN where one of the two is constant."""
    left, right = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(a, axis=-1), rankdata(b, axis=-1)))
    size = np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
    return np.divide((left * right).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)


def _estimate(values: np.ndarray) -> Estimate:
    """The first of the values, and the 95 % percentile interval of the others that are defined."""
    defined = values[1:][np.isfinite(values[1:])]
    if np.isnan(values[0]) or not len(defined):
        return Estimate(math.nan, math.nan, math.nan)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high))


def least_steady(frame: pd.DataFrame, value: str) -> tuple[str, pd.DataFrame]:
    """Pick the class with the largest mean on every other example of each class, and leave the others to judge it.

    The largest of several noisy means is too large, so the examples that picked a class may not judge it.

    Returns:
        The class, and the rows that did not pick it.
    """
    second = frame.groupby("class").cumcount() % 2 == 1
    return str(frame[~second].groupby("class", sort=False)[value].mean().idxmax()), frame[second]


def decide(study: Notebook, text: str, found: Estimate, *, above: float = 0.0, how: str = "", **facts: Any) -> None:
    """Claim that an estimate lies above a bound.

    Args:
        study: the notebook that makes the claim.
        text: the claim, in words that can be wrong.
        found: the estimate.
        above: the bound.
        how: a remark before what the interval is of.
        **facts: n, unit, claim, dataset, seeds and source, as for `Notebook.claim`.
    """
    note = f"{how}; {BOOTSTRAP}" if how else BOOTSTRAP
    study.claim(text, found.above(above), value=found.value, interval=found[1:], note=note, **facts)
