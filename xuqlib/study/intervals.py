"""The statistics of the study: every number that is published with an interval gets it here.

An `Estimate` is a number, its interval, and what that interval is of. It comes from one number per example
(`mean_of_examples`), from one per training (`mean_of_trainings`), from both at once (`clustered`), from resamples of
whole tables (`bootstrapped`, `roc_area`), from a count (`wilson`), or from a clock (`ratio_of_rounds`).
`Notebook.judge` turns it into a verdict, and publishes the rows that it rests on, with the rule by which it follows
from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from xuqlib.checks import check_choice
from xuqlib.study.checked import (
    Column,
    Columns,
    Count,
    Finite,
    Place,
    Seed,
    Several,
    Table,
    check_columns,
    checked,
    shown,
)
from xuqlib.study.judging.similarity import spearman_rows

OVER_EXAMPLES = "±2 standard errors over examples"
OVER_SEEDS = "95 % t-interval over seeds, paired"
OVER_CENTRES = "±2 standard errors over examples, spanning all centres"
BOOTSTRAP = "95 % bootstrap over examples"
OVER_ROUNDS = "range over rounds"
ONCE = "measured once, no interval"
NUM_BINS = 15  # of confidence, in a calibration error

Numbers = Sequence[float] | np.ndarray | pd.Series


@checked
@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95 % interval; NaN where they are undefined. Unpacks to value, low, high.

    Args:
        value, low, high: in one unit.
        of: what the interval is of, such as "±2 standard errors over examples".
        n: examples behind the number.
        seeds: independent trainings behind it. With one, the interval says nothing about another training.
        decides: whether the interval may decide a claim.
        rule: how number and interval follow from the rows, as `tests/recomputing.py` reads it; "" for none.
        rows: what they rest on: seed (of a training), example and group, as far as there are any, and numbers.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    of: str = ""
    n: Place | None = None
    seeds: Count = 1
    decides: bool = True
    rule: str = ""
    rows: pd.DataFrame | None = field(default=None, compare=False, repr=False)

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    @checked
    def above(self, bound: Finite) -> bool | None:
        """Whether the number lies above the bound: True or False where the interval decides it, else None."""
        return None if not self.decides else True if self.low > bound else False if self.high <= bound else None

    @checked
    def between(self, at_least: Finite, at_most: Finite) -> bool | None:
        """Whether the number lies between the bounds: decided where the interval is all inside, or all outside."""
        if self.decides and at_least <= self.low and self.high <= at_most:
            return True
        return False if self.decides and (self.high < at_least or self.low > at_most) else None

    def exp(self) -> Estimate:
        """The estimate of a logarithm as one of a factor."""
        value, low, high = map(math.exp, self)
        return replace(self, value=value, low=low, high=high, rule=self.rule and f"exp of {self.rule}")

    @checked
    def over(self, frame: Table, rule: str, **settings: object) -> Estimate:
        """The estimate with the rows that it rests on, and the rule and its settings by which it follows from them."""
        told = ", ".join(f"{name}={value}" for name, value in settings.items())
        return replace(self, rule=f"{rule} ({told})" if told else rule, rows=frame.reset_index(drop=True))


# One number per example, or per training.


@checked
def mean_of_examples(values: Numbers, *, against: Numbers | None = None, of: str = OVER_EXAMPLES) -> Estimate:
    """Mean over examples, and two standard errors either way.

    Args:
        values: one number per example; a difference where each example is its own control.
        against: other examples, whose mean is taken off; its error counts, too.
        of: what the interval is of.

    Raises:
        ValueError: fewer than two values, or values that are not finite.
    """
    sides = [pd.Series(side) for side in ([values] if against is None else [values, against])]
    for side in sides:
        if len(side) < 2 or not side.abs().lt(math.inf).all():
            raise ValueError(f"a mean with an interval rests on {len(side)} values; wanted two or more finite numbers")
    means = [float(side.mean()) for side in sides]
    mean, error = means[0] - sum(means[1:]), sum(float(side.var()) / len(side) for side in sides) ** 0.5
    rows = pd.concat([pd.DataFrame({"example": _names(side), "value": side.to_numpy()}) for side in sides])
    if against is not None:
        rows["group"] = np.repeat(["these", "those"], [len(side) for side in sides])
    found = Estimate(mean, mean - 2 * error, mean + 2 * error, of, n=len(sides[0]))
    return found.over(rows, "mean" if against is None else "mean of these less mean of those")


def _names(values: pd.Series) -> np.ndarray:
    """Which example each value is of: its name if the index has them, else its place."""
    names = values.index.names
    return values.index.get_level_values("example").to_numpy() if "example" in names else np.arange(len(values))


@checked
def mean_of_trainings(values: Numbers, *, of: str = OVER_SEEDS) -> Estimate:
    """Mean over trainings, and its 95 % t-interval, NaN for a single one.

    Numbers that are all the same, as accuracies in steps of one example may be, say nothing about other seeds: their
    interval has no width, and decides nothing.

    Args:
        values: one number per training, or one paired difference.
    """
    values = pd.Series(values)
    mean, count = float(values.mean()), len(values)
    reach = float(values.sem() * stdtrit(count - 1, 0.975)) if count > 1 else math.nan
    found = Estimate(mean, mean - reach, mean + reach, of, n=count, seeds=count, decides=values.nunique() > 1)
    return found.over(pd.DataFrame({"seed": range(count), "value": values.to_numpy()}), "mean of trainings")


@checked
def clustered(frame: Table, value: Column, *, num_resamples: Several = 1000, seed: Seed = 0) -> Estimate:
    """Mean over trainings and examples, with an interval over both: each is drawn anew, and all of its numbers with it.

    Examples of one training share its network, and trainings share the examples, so neither rows nor examples alone
    are independent. The bootstrap of both axes is a little too wide rather than too narrow. With one training, the
    interval is over examples, of this training.

    Args:
        frame: columns seed, example and `value`, one row per training and example; missing ones do not count.
        num_resamples, seed: of the bootstrap.

    Raises:
        ValueError: fewer than two examples.

    Source: Owen 2007, The pigeonhole bootstrap, section 3. arXiv 0712.1111.
    """
    check_columns(frame, "seed", "example")
    table = frame.pivot(index="seed", columns="example", values=value).dropna(axis=1, how="all").to_numpy(float)
    trainings, examples = table.shape
    if examples < 2:
        raise ValueError(f"{examples} examples have a {value!r}; an interval over examples needs two or more")
    stream, there = np.random.default_rng(seed), ~np.isnan(table)
    weights = [
        np.vstack([np.ones(n, int), stream.multinomial(n, np.full(n, 1 / n), num_resamples)])
        for n in (trainings, examples)
    ]
    sums, counts = (((weights[0] @ part) * weights[1]).sum(1) for part in (np.where(there, table, 0), there))
    means = np.divide(sums, counts, out=np.full(len(sums), math.nan), where=counts > 0)
    of = (
        f"95 % bootstrap over {trainings} trainings and {examples} examples"
        if trainings > 1
        else f"{BOOTSTRAP}, this training"
    )
    found = replace(from_resamples(means, of=of), n=examples, seeds=trainings)
    rows = frame[["seed", "example", value]].rename(columns={value: "value"})
    return found.over(rows, "mean of trainings and examples", resamples=num_resamples, seed=seed)


@checked
def wilson(share: float, n: Place, *, of: str = "95 % Wilson interval") -> Estimate:
    """Interval of a share of n independent answers; it is inside [0, 1], and not of zero width at its ends.

    Source: Wilson 1927; Brown, Cai & DasGupta 2001, equation 4.
    """
    if n == 0:
        return Estimate(share, of=of, n=0)
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; pass a number from 0 to 1")
    z = float(ndtri(0.975))
    middle, half = share + z**2 / 2 / n, z * (share * (1 - share) / n + z**2 / 4 / n**2) ** 0.5
    found = Estimate(share, (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n), of, n=n)
    answers = np.arange(n) < round(share * n)
    return found.over(pd.DataFrame({"example": range(n), "value": answers.astype(float)}), "share")


# Resamples.


@checked
def from_resamples(values: Numbers, *, of: str = BOOTSTRAP, n: Place | None = None) -> Estimate:
    """The first of the values, and the 95 % percentile interval of the others, its resamples, that are defined."""
    values = np.asarray(values, float)
    defined = values[1:][np.isfinite(values[1:])]
    if np.isnan(values[0]) or not len(defined):
        return Estimate(math.nan, of=of, n=n)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high), of, n=n)


@checked
def bootstrap(
    statistic: Callable[..., Any], *tables: np.ndarray, num_resamples: Several = 499, seed: Seed = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of whole tables, and its 95 % interval over which examples happened to be in them.

    The percentile bootstrap over rows, the same rows of every table at once: each example stays its own control.

    Args:
        statistic: of the tables, a number or an array.
        *tables: (example, ...), of one length.
        num_resamples, seed: how often the rows are drawn anew, and from which stream.

    Returns:
        Value, low and high, each shaped like the statistic.

    Raises:
        ValueError: the tables have different lengths.
    """
    if not tables:
        raise ValueError("there are no tables; pass one or more")
    count = len(tables[0])
    if not count:
        raise ValueError("the tables are empty; pass one row or more")
    if any(len(table) != count for table in tables):
        raise ValueError(f"tables have {[len(table) for table in tables]} rows; pass the same examples")
    rows = np.random.default_rng(seed).integers(count, size=(num_resamples, count))
    found = np.stack([statistic(*(table[row] for table in tables)) for row in rows])
    if found.dtype == object:
        raise TypeError(f"the statistic gave {shown(found[0])}; let it return a number, or an array")
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return np.asarray(statistic(*tables)), low, high


def _ratio_of_means(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.mean() / b.mean()) if b.mean() > 0 else math.nan


def _column_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearman_rows(_order(a.mean(0)[None]), _order(b.mean(0)[None]))[0])


def _order(means: np.ndarray) -> np.ndarray:
    """The order (line, place) of means along each line; what differs by less than 1e-6 of the largest is one."""
    places = means.argsort(1)
    steps = np.diff(np.take_along_axis(means, places, 1), axis=1, prepend=-np.inf)
    order = np.empty_like(places)
    np.put_along_axis(order, places, (steps > 1e-6 * np.abs(means).max(1, keepdims=True)).cumsum(1), 1)
    return order


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """|confidence - accuracy| of each bin, weighted by its size. Guo et al. 2017, eq. 3. arXiv 1706.04599."""
    bins = (confidence * NUM_BINS).astype(int).clip(max=NUM_BINS - 1)
    return float(np.abs(np.bincount(bins, confidence - right, NUM_BINS)).sum() / len(bins))


STATISTICS: Mapping[str, Callable[..., float]] = {
    "difference of means": lambda a, b: float(a.mean() - b.mean()),
    "ratio of means": _ratio_of_means,  # undefined unless the second is above 0
    "root of the ratio of means": lambda a, b: _ratio_of_means(a, b) ** 0.5,
    "rank correlation of column means": _column_correlation,
    "smallest column mean of these less the largest of those": lambda a, b: float(a.mean(0).min() - b.mean(0).max()),
    # of tables confidence and right, and the same of a rival
    "difference of calibration errors": lambda a, b, c, d: _calibration_error(a, b) - _calibration_error(c, d),
}
# Of measurements that have no resamples.
MEASURES: Mapping[str, Callable[..., float]] = {
    "the value": lambda a: float(a[0]),
    "largest over smallest, less 1": lambda a: float(a.max() / a.min() - 1),
    "share of the first in the sum": lambda a: float(a[0] / a.sum()),
    "slope of logarithms": lambda a, b: float(np.polyfit(np.log(a), np.log(b), 1)[0]),  # least squares
}


@checked
def bootstrapped(
    statistic: str, *tables: np.ndarray, num_resamples: Several = 499, seed: Seed = 0, of: str = BOOTSTRAP
) -> Estimate:
    """A statistic of whole tables and its 95 % interval, as by `bootstrap`, with the rows that it rests on.

    Args:
        statistic: a name in `STATISTICS`.
        *tables: (example,) or (example, column), of the same examples.
        num_resamples, seed: of the bootstrap.
        of: what the interval is of.

    Raises:
        ValueError: the statistic is not known; the tables are empty, or of different lengths.
    """
    check_choice(statistic, tuple(STATISTICS), "statistic")
    arrays = [np.asarray(table, float) for table in tables]
    count = _length(arrays)
    drawn = np.random.default_rng(seed).integers(count, size=(num_resamples, count))
    function = STATISTICS[statistic]
    values = [function(*arrays), *(function(*(array[some] for array in arrays)) for some in drawn)]
    found = from_resamples(np.array(values), of=of, n=count)
    return found.over(_rows_of(arrays), statistic, resamples=num_resamples, seed=seed)


@checked
def measured_once(statistic: str, *tables: Numbers, of: str = ONCE) -> Estimate:
    """A number that follows from measurements made once: it has no interval, and both ends are the number itself.

    Args:
        statistic: a name in `MEASURES`.
        *tables: what was measured, one number per measurement.
        of: what is said instead of what the interval is of.

    Raises:
        ValueError: the statistic is not known; there is no measurement, or more of one kind than of another.
    """
    check_choice(statistic, tuple(MEASURES), "statistic")
    arrays = [np.asarray(table, float) for table in tables]
    _length(arrays)
    value = MEASURES[statistic](*arrays)
    return Estimate(value, value, value, of).over(_rows_of(arrays), statistic)


def _length(tables: Sequence[np.ndarray]) -> int:
    """The common length of tables, 1 or more."""
    lengths = {len(table) for table in tables if table.ndim}
    if len(lengths) != 1 or not min(lengths) or not all(table.ndim for table in tables):
        raise ValueError(f"tables have {sorted(lengths)} rows; pass one row or more, of the same examples in each")
    return lengths.pop()


def _rows_of(tables: Sequence[np.ndarray]) -> pd.DataFrame:
    """Tables side by side: columns example; a, b, ..., or "a 0", "a 1", ... of a table with columns."""
    columns: dict[str, np.ndarray] = {"example": np.arange(len(tables[0]))}
    for letter, table in zip("abcd", tables, strict=False):
        parts = {letter: table} if table.ndim == 1 else {f"{letter} {i}": each for i, each in enumerate(table.T)}
        columns |= parts
    return pd.DataFrame(columns)


@checked
def roc_area(
    values: Numbers,
    against: Numbers,
    *,
    other_values: Numbers | None = None,
    other_against: Numbers | None = None,
    paired: bool = False,
    num_resamples: Several = 1000,
    seed: Seed = 0,
) -> Estimate:
    """How well a score tells these examples from those: the area under the ROC, or its gain over another score's.

    The area is the chance that the score of one of these exceeds that of one of those, ties counting half. A NaN drops
    an example from that score alone.

    Args:
        values, against: the score of these examples, and of those.
        other_values, other_against: another score of the same examples, on the same resamples; the estimate is the
            gain over it.
        paired: whether these[i] is those[i], changed; then both are resampled together.
        num_resamples, seed: of the bootstrap over examples.

    Raises:
        ValueError: the other score is of other examples, or paired examples differ in number.
    """
    if (other_values is None) != (other_against is None):
        raise ValueError(
            "one of other_values and other_against is missing; pass numbers of these and of those examples"
        )
    pairs = [(against, values)]
    if other_values is not None and other_against is not None:
        pairs.append((other_against, other_values))
    sizes = (len(against), len(values))
    if any((len(those), len(these)) != sizes for those, these in pairs) or (paired and sizes[0] != sizes[1]):
        told = ", ".join(f"{len(these)} of these and {len(those)} of those" for those, these in pairs)
        raise ValueError(f"there are numbers {told}; pass one per example{', as many of both' * paired}")
    stream = np.random.default_rng(seed)
    counts = [stream.multinomial(n, np.full(n, 1 / n), num_resamples) for n in sizes[: 1 if paired else 2]]
    weights = [np.vstack([np.ones(len(count[0]), int), count]) for count in (counts[0], counts[-1])]  # first: all once
    areas = []
    for those, these in pairs:
        low, high = np.asarray(those, float), np.asarray(these, float)
        wins = (high > low[:, None]) + 0.5 * (high == low[:, None])  # NaN never wins
        there = (weights[0] @ ~np.isnan(low)) * (weights[1] @ ~np.isnan(high))
        areas.append(np.divide(((weights[0] @ wins) * weights[1]).sum(1), there, where=there > 0, out=there * np.nan))
    found = from_resamples(areas[0] if len(areas) == 1 else areas[0] - areas[1], n=sizes[1])
    columns = {name: np.concatenate(pair) for name, pair in zip(("value", "rival"), pairs, strict=False)}
    keys = {"example": [*range(sizes[0]), *range(sizes[1])], "group": np.repeat(["those", "these"], sizes)}
    rule = "area under the ROC" if len(areas) == 1 else "gain in area under the ROC"
    rule += ", paired" if paired else ""
    return found.over(pd.DataFrame({**keys, **columns}), rule, resamples=num_resamples, seed=seed)


@checked
def ratio_of_rounds(a: Numbers, b: Numbers, *, of: str = OVER_ROUNDS) -> Estimate:
    """How many times as long a takes as b: the ratio of medians over rounds, and the range of ratios within a round.

    Args:
        a, b: seconds, one number per round.
        of: what the interval is of.

    Raises:
        ValueError: there are more of one than of the other, or one is not above 0.
    """
    arrays = [np.asarray(each, float) for each in (a, b)]
    _length(arrays)
    if not all((each > 0).all() and np.isfinite(each).all() for each in arrays):
        raise ValueError("some numbers of seconds are not above 0, or not finite; pass those of `interleaved`")
    ratios = arrays[0] / arrays[1]
    value = float(np.median(arrays[0]) / np.median(arrays[1]))
    found = Estimate(value, float(ratios.min()), float(ratios.max()), of)
    return found.over(_rows_of(arrays), "ratio of medians, range over rounds")


@checked
def resamples(
    frame: Table,
    statistic: Callable[[pd.DataFrame, np.ndarray], np.ndarray],
    *,
    by: Column,
    num_resamples: Several = 1000,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Resample a statistic of several competitors in two stages: training seeds, then examples.

    All competitors share the resampled examples, so their differences are paired; seeds are drawn for each apart. With
    one seed, the spread says nothing about another training. Two or three understate it: theirs is divided by S, not
    S - 1.

    Args:
        frame: columns `by`, seed and example, one row for each of the three, and whatever the statistic reads.
        statistic: of (rows, weights), a value per resample. The rows are those of one competitor and one training, one
            per example; the weights (1 + resample, example) say how much each counts, and sum to 1.
        by: column of the competitors.
        num_resamples, seed: of the bootstrap.

    Returns:
        A column per competitor, the mean over its trainings; row 0 is the measured value, the others are resamples.
        Only examples that all competitors have, under every seed, count.

    Raises:
        ValueError: there are no such examples.
    """
    check_columns(frame, "seed", "example")
    parts = {key: part.set_index("example") for key, part in frame.groupby([by, "seed"], sort=False)}
    examples = [part.index for part in parts.values()]
    shared = reduce(lambda a, b: a.intersection(b, sort=False), examples) if examples else pd.Index([])
    if not len(shared):
        raise ValueError(f"no example is there for every {by} and seed; measure all of them on the same examples")
    stream, n = np.random.default_rng(seed), len(shared)
    weights = np.vstack([np.ones(n), stream.multinomial(n, np.full(n, 1 / n), num_resamples)]) / n
    found: dict[Any, list[np.ndarray]] = {}
    for (name, _), part in parts.items():
        values = np.asarray(statistic(part.loc[shared], weights))
        if values.shape != (len(weights),):
            raise ValueError(f"the statistic gave an array {values.shape}; let it return one value per row of weights")
        found.setdefault(name, []).append(values)
    columns = {}
    for name, each in found.items():
        values = np.stack(each, 1)  # (1 + resample, seed)
        picked = stream.integers(values.shape[1], size=values.shape)
        picked[0] = range(values.shape[1])
        columns[name] = np.take_along_axis(values, picked, 1).mean(1)
    return pd.DataFrame(columns)


@checked
def rank_correlation(
    a: Numbers,
    b: Numbers,
    *,
    given: Numbers | None = None,
    num_resamples: Several = 1000,
    seed: Seed = 0,
) -> Estimate:
    """Spearman's correlation over examples, with a 95 % bootstrap interval.

    Args:
        a, b: one number per example; an example with a NaN is left out.
        given: a third number per example, whose linear part is taken out of both ranks: the partial correlation.
        num_resamples, seed: of the bootstrap over examples.

    Raises:
        ValueError: fewer than four examples are whole.
    """
    given_too = [] if given is None else [given]
    if len(lengths := {len(each) for each in (a, b, *given_too)}) > 1:
        raise ValueError(f"there are {sorted(lengths)} numbers; pass one per example of each")
    columns = np.stack([np.asarray(each, float) for each in (a, b, *given_too)])
    columns = columns[:, ~np.isnan(columns).any(0)]
    count = columns.shape[1]
    if count < 4:
        raise ValueError(f"{count} examples have all numbers; a rank correlation with an interval needs four or more")
    drawn = np.random.default_rng(seed).integers(count, size=(num_resamples, count))
    drawn = columns[:, np.vstack([np.arange(count), drawn])]  # (2 or 3, 1 + resamples, n)
    rho = spearman_rows(drawn[0], drawn[1])
    if given is not None:
        left, right = spearman_rows(drawn[0], drawn[2]), spearman_rows(drawn[1], drawn[2])
        scale = np.sqrt((1 - left**2).clip(0) * (1 - right**2).clip(0))
        rho = np.divide(rho - left * right, scale, where=scale > 0, out=np.full(scale.shape, np.nan))
    rows = pd.DataFrame(dict(zip(("a", "b", "given"), columns, strict=False))).rename_axis("example").reset_index()
    rule = "rank correlation" if given is None else "rank correlation beyond what is given"
    return replace(from_resamples(rho), n=count).over(rows, rule, resamples=num_resamples, seed=seed)


@checked
def rank_correlations(frame: Table, truth: Numbers, *, given: Column, seed: Seed = 0) -> pd.DataFrame:
    """`rank_correlation` of every column of floats with `truth`, alone and beyond what the column `given` tells.

    Args:
        frame, truth: one row, and one number, per example.
        given: the column that is held fixed; it has no row of its own beyond itself.

    Returns:
        Columns signal, kind ("alone" or "beyond GIVEN"), value, low, high.
    """
    rows: list[tuple[Any, ...]] = []
    for name, column in frame.select_dtypes("float").items():
        rows.append((name, "alone", *rank_correlation(column, truth, seed=seed)))
        if name != given:
            rows.append((name, f"beyond {given}", *rank_correlation(column, truth, given=frame[given], seed=seed)))
    return pd.DataFrame(rows, columns=["signal", "kind", "value", "low", "high"])


# By class: each class's examples are drawn anew, as many as there are, so every class keeps its size.


@checked
def class_means(frame: Table, statistics: Columns, *, num_resamples: Several = 1000, seed: Seed = 0) -> pd.DataFrame:
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
            value, low, high = from_resamples(means[0][:, place])
            ends = (low, high) if counts[place] > 1 else (math.nan, math.nan)
            rows.append((name, statistic, value, *ends, counts[place]))
    return pd.DataFrame(rows, columns=["class", "statistic", "value", "low", "high", "n"])


@checked
def class_gap(frame: Table, value: Column, name: str, *, num_resamples: Several = 1000, seed: Seed = 0) -> Estimate:
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
    found = from_resamples(means[0][:, place] - np.delete(means[0], place, 1).mean(1))
    rows = _by_class(frame, {"value": value}).assign(this=lambda rows: (rows["group"] == str(name)).astype(float))
    return found.over(rows, "mean of this class less those of the others", resamples=num_resamples, seed=seed)


@checked
def class_correlation(frame: Table, a: Column, b: Column, *, num_resamples: Several = 1000, seed: Seed = 0) -> Estimate:
    """Rank correlation (Spearman) over classes between the class means of two columns; NaN where one is constant.

    The interval says how far the few examples of each class may mislead, not what other classes would do. Noise in
    the class means pulls a resampled correlation towards 0, so the interval may lie lower than its value. Means that
    differ by less than 1e-6 of the largest are a tie: rounding may not decide which class comes first.

    Args:
        frame, num_resamples, seed: as for `class_means`; only examples that have both columns count.
        a, b: the columns.
    """
    _, _, (left, right), _ = _resampled(frame, [a, b], num_resamples, seed)
    found, rows = from_resamples(spearman_rows(_order(left), _order(right))), _by_class(frame, {"a": a, "b": b})
    return found.over(rows, "rank correlation of class means", resamples=num_resamples, seed=seed)


@checked
def correlation(
    frame: Table, a: Column, b: Column, *, within: bool = False, num_resamples: Several = 1000, seed: Seed = 0
) -> Estimate:
    """Rank correlation (Spearman) over examples between two columns; NaN where one is constant.

    Args:
        frame, a, b, num_resamples, seed: as for `class_correlation`.
        within: the mean over classes of the correlation inside a class, so that no class difference can make it;
            classes of fewer than three examples do not count.
    """
    _, (left, right), _, counts = _resampled(frame, [a, b], num_resamples, seed)
    rows, how = _by_class(frame, {"a": a, "b": b}), {"resamples": num_resamples, "seed": seed}
    if not within:
        return from_resamples(spearman_rows(left, right)).over(rows, "rank correlation, by class", **how)
    cuts = np.cumsum(counts)[:-1]
    parts = zip(np.split(left, cuts, 1), np.split(right, cuts, 1), strict=True)
    inside = pd.DataFrame({i: spearman_rows(*part) for i, part in enumerate(parts) if part[0].shape[1] > 2})
    lines = range(len(left))  # pandas leaves out NaN, which a constant class has
    found = from_resamples(inside.reindex(lines).mean(axis=1).to_numpy())
    return found.over(rows, "mean of rank correlations within classes", **how)


def _by_class(frame: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The rows of `_resampled`: example, group (its class) and the columns, by their new names."""
    whole = frame.dropna(subset=list(columns.values()))
    names = whole["example"].to_numpy() if "example" in whole else np.arange(len(whole))
    values = {new: whole[old].to_numpy(float) for new, old in columns.items()}
    return pd.DataFrame({"example": names, "group": whole["class"].astype(str).to_numpy(), **values})


def _resampled(
    frame: pd.DataFrame, columns: Sequence[str], num_resamples: int, seed: int
) -> tuple[list[Any], list[np.ndarray], list[np.ndarray], list[int]]:
    """Classes, columns (1 + resample, example) sorted by class, their class means (1 + resample, class), class sizes.

    The first line is the sample itself.
    """
    check_columns(frame, "class", *columns)
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


# Tables of means, one row per group.


@checked
def over_examples(frame: Table, by: Columns, value: Column) -> pd.DataFrame:
    """Mean of a column over the rows of each group, one row per example, and two standard errors either way.

    Returns:
        Columns `by`, `value`, low, high; groups in order of appearance. low and high are NaN for a single example.
    """
    groups = frame.groupby(list(by), sort=False)[value]
    mean, error = groups.mean(), groups.sem()
    return pd.DataFrame({value: mean, "low": mean - 2 * error, "high": mean + 2 * error}).reset_index()


@checked
def over_centres(frame: Table, by: Columns, value: Column) -> pd.DataFrame:
    """Mean of a column over centre networks, in an interval that covers every centre's own; see `OVER_CENTRES`.

    Networks matter more than examples: centres that disagree make this interval wide, as they should.

    Args:
        frame: one row per group, seed (of the centre) and example.

    Returns:
        Columns `by`, `value`, low, high, centres; groups in order of appearance.
    """
    check_columns(frame, "seed")
    each = over_examples(frame, [*by, "seed"], value).groupby(list(by), sort=False)
    ends = {value: each[value].mean(), "low": each["low"].min(), "high": each["high"].max(), "centres": each.size()}
    return pd.DataFrame(ends).reset_index()


@checked
def mean_of_centres(frame: Table, value: Column) -> Estimate:
    """Mean of a column over centre networks, with the interval of `over_centres`: it decides what every centre decides.

    Args:
        frame, value: as for `over_centres`.
    """
    check_columns(frame, "seed", "example")
    row = over_centres(frame.assign(all=0), ["all"], value).iloc[0]
    ends = (float(row[value]), float(row["low"]), float(row["high"]))
    found = Estimate(*ends, OVER_CENTRES, n=int(frame["example"].nunique()), seeds=int(row["centres"]))
    rows = frame[["seed", "example", value]].rename(columns={value: "value"})
    return found.over(rows, "mean of centres, spanning their intervals")


@checked
def over_seeds(frame: Table, by: Columns, value: Column = "gain") -> pd.DataFrame:
    """`mean_of_trainings` of a column in each group: columns `by`, `value`, low, high."""
    groups = frame.groupby(list(by), sort=False)[value]
    rows = [(*key, *mean_of_trainings(part)) for key, part in groups]
    return pd.DataFrame(rows, columns=[*by, value, "low", "high"])
