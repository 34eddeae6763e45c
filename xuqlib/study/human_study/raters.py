"""What the answers of several raters say together: do they agree, and do they follow a metric?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from xuqlib.checks import check_choice
from xuqlib.study.checked import Ratings, Seed, Several, check_columns, checked
from xuqlib.study.intervals import Estimate, from_resamples, wilson
from xuqlib.study.judging.similarity import spearman_rows

LEVELS = ("nominal", "ordinal", "interval")
COLUMNS = ["what", "value", "low", "high", "n", "interval"]
OVER_PAIRS, OVER_ANSWERS = "95 % over pairs", "95 % over answers"
Array = np.ndarray[Any, np.dtype[Any]]


@checked
def krippendorff_alpha(ratings: Ratings, level: str = "nominal") -> float:
    """How far raters agree beyond chance: 1 - observed disagreement / disagreement of ratings put together by chance.

    1 is full agreement; 0 is what chance gives; below 0, raters disagree more than by chance.

    Args:
        ratings: a row per rater, a column per item, NaN or None where a rating is missing.
        level: what a difference of two ratings counts: "nominal", 1; "interval", its square; "ordinal", the square of
            the number of ratings between them. Numbers are needed for the last two.

    Returns:
        NaN where it is undefined: no item has two ratings, or all of those ratings are the same, so that nothing shows
        whether raters can tell items apart.

    Raises:
        ValueError: an unknown level.

    Source: Krippendorff 2011, Computing Krippendorff's alpha-reliability, section E.
    """
    check_choice(level, LEVELS, "level")
    counts, values = _counts(ratings)
    return _alpha(counts, np.ones(len(counts)), values, level)


@checked
def alpha_interval(
    ratings: Ratings, level: str = "nominal", *, num_resamples: Several = 1000, seed: Seed = 0
) -> Estimate:
    """`krippendorff_alpha` with its 95 % percentile bootstrap interval over items: other items, the same raters.

    Resamples in which alpha is undefined are left out; NaN where fewer than two items have two ratings.
    """
    check_choice(level, LEVELS, "level")
    counts, values = _counts(ratings)
    value = krippendorff_alpha(ratings, level)
    if len(counts) < 2:
        return Estimate(value, of=OVER_PAIRS, n=len(counts))
    even = np.full(len(counts), 1 / len(counts))
    weights = np.random.default_rng(seed).multinomial(len(counts), even, size=num_resamples)
    resamples = [_alpha(counts, each, values, level) for each in weights]
    return from_resamples(np.array([value, *resamples]), of=OVER_PAIRS, n=len(counts))


def _counts(ratings: pd.DataFrame | Sequence[Sequence[Any]]) -> tuple[Array, Array]:
    """How often each value was given to each item that has two ratings or more, (item, value), and the values."""
    table = pd.DataFrame(ratings).T.reset_index(drop=True)  # (item, rater)
    long = table.melt(value_name="rating", ignore_index=False).dropna()["rating"]
    counts = pd.crosstab(long.index, long)
    counts = counts[counts.sum(axis=1) > 1]
    return counts.to_numpy(float), counts.columns.to_numpy()


def _alpha(counts: Array, weights: Array, values: Array, level: str) -> float:
    """Alpha with each item counted `weights` times."""
    of_value = weights @ counts
    places = {"interval": values, "ordinal": np.cumsum(of_value) - of_value / 2}.get(level, np.arange(len(values)))
    distance = np.subtract.outer(places, places).astype(float) ** 2
    if level == "nominal":
        distance = np.minimum(distance, 1)  # equal or not
    together = counts.T @ ((weights / np.maximum(counts.sum(1) - 1, 1))[:, None] * counts)  # right off the diagonal
    expected = float(of_value @ distance @ of_value) / max(of_value.sum() - 1, 1)
    return float(1 - (together * distance).sum() / expected) if expected > 0 else float("nan")


@checked
def results(answers: pd.DataFrame, metrics: Sequence[str] = ()) -> pd.DataFrame:
    """Everything that the answers say, a row each; without answers, one row that says so and holds no number.

    Args:
        answers: as from `PairStudy.answers`.
        metrics: for `follows_metric`.

    Returns:
        Columns what, value, low, high, n, interval (what it is of): the share that could not say; the share of decided
        answers for the left side; the share of repeated pairs with the same answer twice; alpha of the decided answers
        (nominal) and of all, with "cannot say" between the two maps (ordinal); and the rows of `follows_metric`.
    """
    if answers.empty:
        return pd.DataFrame({"what": ["no answers yet"]})
    check_columns(answers, "rater", "pair", "showing", "choice", "prefers_first")
    first, silent = answers[answers["showing"] == 1], answers["prefers_first"] == 0.5
    left = answers.loc[~silent, "choice"] == "left"
    both = answers.pivot(index=["rater", "pair"], columns="showing", values="prefers_first").reindex(columns=[1, 2])
    both = both.dropna()
    rows: list[tuple[object, ...]] = [("raters", answers["rater"].nunique(), np.nan, np.nan, len(answers), "")]
    shares = {"could not say": silent, "chose the left side": left, "same answer twice": both[1] == both[2]}
    for what, said in shares.items():
        share = float(said.mean()) if len(said) else float("nan")
        rows.append((what, *wilson(share, len(said)), len(said), OVER_ANSWERS))
    table = first.pivot(index="rater", columns="pair", values="prefers_first")
    for level, ratings in {"nominal": table.mask(table == 0.5), "ordinal": table}.items():
        alpha = alpha_interval(ratings, level)
        rows.append((f"agreement: alpha, {level}", *alpha, alpha.n, alpha.of))
    frames = [pd.DataFrame(rows, columns=COLUMNS), *(follows_metric(answers, metric) for metric in metrics)]
    return pd.concat(frames, ignore_index=True)


@checked
def follows_metric(
    answers: pd.DataFrame, metric: str, *, num_resamples: Several = 1000, seed: Seed = 0
) -> pd.DataFrame:
    """Do people prefer the map with more of `metric`? Each pair counts once, however many answered it.

    Answers that "cannot say", repeats, and pairs whose maps have the same value, or none, are left out.

    Args:
        answers: as from `PairStudy.answers`.
        metric: one with columns `metric`_first and `metric`_second.
        num_resamples, seed: of the bootstrap.

    Returns:
        Columns as of `results`: the mean share of answers for the map with more of it, with a Wilson interval in which
        n is the number of pairs (too wide rather than too narrow); and the rank correlation (Spearman) over pairs
        between the difference of the metric and the share for the first map, with a bootstrap interval. NaN where
        undefined; without answers, one row that says so.

    Raises:
        ValueError: the answers have no such metric.
    """
    if answers.empty:
        return pd.DataFrame({"what": ["no answers yet"]})
    check_columns(answers, "pair", "showing", "prefers_first")
    if f"{metric}_first" not in answers:
        known = [name[:-6] for name in map(str, answers) if name.endswith("_first") and name != "prefers_first"]
        raise ValueError(f"the answers have no metric {metric!r}; known: {', '.join(known)}")
    kept = answers[(answers["showing"] == 1) & (answers["prefers_first"] != 0.5)]
    kept = kept.assign(more=kept[f"{metric}_first"] - kept[f"{metric}_second"])
    kept = kept[kept["more"].notna() & (kept["more"] != 0)]
    pairs = kept.groupby("pair")[["more", "prefers_first"]].mean()
    more, likes = pairs["more"].to_numpy(), pairs["prefers_first"].to_numpy()
    share = float(np.where(more > 0, likes, 1 - likes).mean()) if len(pairs) else float("nan")
    picks = np.random.default_rng(seed).integers(
        0, max(len(pairs), 1), (num_resamples if len(pairs) else 0, len(pairs))
    )
    rho = np.concatenate([spearman_rows(more[None], likes[None]), spearman_rows(more[picks], likes[picks])])
    found = [
        (f"prefer the map with more {metric}", *wilson(share, len(pairs)), len(pairs), OVER_PAIRS),
        (f"rank correlation with {metric}", *from_resamples(rho), len(pairs), OVER_PAIRS),
    ]
    return pd.DataFrame(found, columns=COLUMNS)
