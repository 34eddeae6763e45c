"""Explanations of a table, as tables: each bar with its spread, its CV, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import Normal

from xuqlib.checks import check_count, check_number
from xuqlib.distribution import ExplanationDistribution
from xuqlib.metrics.similarity import spearman
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import Examples, FeatureScale, TargetScale
from xuqlib.study.intervals import bootstrap
from xuqlib.study.judging.controls import other_image
from xuqlib.uncertainty import decompose, logits_of

Orders = Mapping[str, Sequence[Tensor]]


def _table(examples: Examples, num_rows: int, num_features: int) -> tuple[tuple[str, ...], FeatureScale, TargetScale]:
    """Names and units of a table that has `num_features`, and at least `num_rows`."""
    names, features, target = examples.feature_names, examples.feature_scale, examples.target_scale
    if names is None or features is None or target is None:
        raise ValueError(f"{examples.name} is no table with a target in units; load diabetes or california_housing")
    if num_features != len(names) or num_rows > len(examples):
        raise ValueError(
            f"attributions are of {num_rows} examples x {num_features} features but the table has {len(examples)} x "
            f"{len(names)}; explain examples.x, or its first rows"
        )
    return names, features, target


def bar_table(e: ExplanationDistribution, examples: Examples, **keys: Any) -> pd.DataFrame:
    """Everything that one explained table says about each bar: one row per example and feature.

    Args:
        e: attributions of the first rows of `examples`, (draw, example, feature), in standardised target units.
        examples: the table, which has units.
        **keys: columns to put in front, such as posterior and explainer.

    Returns:
        Columns **keys, example, feature; value, the feature in its own unit; mean and std over draws, and the same of
        |attribution|, folded_mean and folded_std, all in target units; agreement, the share of draws with the more
        common sign, NaN where every draw gives 0.

    Raises:
        ValueError: examples are no table with units, or not those that were explained.
    """
    names, scale, (_, unit, _) = _table(examples, *e.mean().shape)
    count, folded = e.num_examples, e.moments.of["folded"]
    value = np.asarray(examples.x[:count]) * np.array(scale.std) + np.array(scale.mean)
    columns = {"value": value, "mean": e.mean() * unit, "std": e.std() * unit, "folded_mean": folded.mean * unit}
    columns |= {"folded_std": folded.std() * unit, "agreement": e.sign_agreement()}
    index = {"example": np.repeat(range(count), len(names)), "feature": list(names) * count}
    return pd.DataFrame({**keys, **index, **{name: np.asarray(each).ravel() for name, each in columns.items()}})


def prediction_table(draws: Draws, examples: Examples, *, level: float = 0.9, **keys: Any) -> pd.DataFrame:
    """What the draws predict for each row of a table, how surely, and whether the truth bears it out.

    Args:
        draws: of a regression, with their noise_variance; float64.
        examples: the table, with targets.
        level: of the central interval of the Gaussian with the predicted mean and total variance, in (0, 1).
        **keys: columns to put in front.

    Returns:
        One row per example: **keys, example; prediction, truth and the standard deviations epistemic, aleatoric,
        total, in target units; nll, in nats of the standardised target; covered, 1.0 where the interval has the truth.

    Raises:
        ValueError: examples are no table with units, or level is out of range.
    """
    *_, (centre, unit, _) = _table(examples, *examples.x.shape)
    if not 0 < check_number(level, 0, "level", above=True) < 1:
        raise ValueError(f"level is {level}; pass the share that the interval should cover, between 0 and 1")
    logits, truth = logits_of(draws, examples.x.double()), examples.y[:, 0].double()  # (S, N, 1), (N,)
    u, mean = decompose(logits, draws.noise_variance), logits.mean(0)[:, 0]
    gaussian, half = Normal(mean, u.total.sqrt()), Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2.0)).double()
    columns = {"prediction": mean * unit + centre, "truth": truth * unit + centre}
    columns |= {name: getattr(u, name).sqrt() * unit for name in ("epistemic", "aleatoric", "total")}
    columns |= {"nll": -gaussian.log_prob(truth)}
    columns |= {"covered": ((truth - mean).abs() <= half * gaussian.scale).double()}
    return pd.DataFrame(
        {**keys, "example": range(len(truth)), **{name: each.numpy() for name, each in columns.items()}}
    )


def by_feature(bars: pd.DataFrame, column: str) -> np.ndarray:
    """A column of `bar_table` as an array (example, feature), averaged over everything else."""
    wide = bars.pivot_table(column, "example", "feature", sort=False, dropna=False)
    return wide[list(dict.fromkeys(bars["feature"]))].sort_index().to_numpy()


def feature_cvs(bars: pd.DataFrame, by: Sequence[str], *, folded: bool = False, seed: int = 0) -> pd.DataFrame:
    """CV of each feature over all examples: the sum of the std divided by the sum of |mean|.

    Where a group holds several trainings of a posterior, std and |mean| are averaged over them first.

    Args:
        bars: rows of `bar_table`.
        by: columns that make the groups.
        folded: of |attribution| instead, whose CV has a noise ceiling, `ExplanationDistribution.noise_ceiling`.
        seed: of the bootstrap over examples, see `bootstrap`.

    Returns:
        Columns `by`, feature, cv, low, high; NaN where a feature's mean is 0 in every example.
    """
    prefix, frames = "folded_" if folded else "", []
    for key, part in bars.assign(size=bars[f"{prefix}mean"].abs()).groupby(list(by), sort=False):
        pair = [by_feature(part, column) for column in (f"{prefix}std", "size")]
        with np.errstate(invalid="ignore", divide="ignore"):
            value, low, high = bootstrap(lambda std, size: std.sum(0) / size.sum(0), *pair, seed=seed)
        columns = {"feature": list(dict.fromkeys(part["feature"])), "cv": value, "low": low, "high": high}
        frames.append(pd.DataFrame(dict(zip(by, key, strict=True)) | columns))
    return pd.concat(frames, ignore_index=True)


def permutation_importance(draws: Draws, x: Tensor, y: Tensor, *, num_repeats: int = 5, seed: int = 0) -> Tensor:
    """How much the squared error of each example's mean prediction rises when one feature is another example's.

    Args:
        draws, x, y: of a regression; examples (N, F) and targets (N, 1).
        num_repeats, seed: permutations of the rows, to average over, and their stream.

    Returns:
        (N, F), in squared units of y; its mean over examples is the usual importance.

    Source: Breiman 2001, section 10; here per example, so that it has an interval over examples.
    """
    stream, rise = torch.Generator().manual_seed(seed), torch.zeros_like(x)
    base = (_mean_answer(draws, x) - y[:, 0]).square()
    for _ in range(check_count(num_repeats, 1, "num_repeats")):
        other = x[torch.randperm(len(x), generator=stream)]
        for feature in range(x.shape[1]):
            changed = x.clone()
            changed[:, feature] = other[:, feature]
            rise[:, feature] += (_mean_answer(draws, changed) - y[:, 0]).square() - base
    return rise / num_repeats


def _mean_answer(draws: Draws, x: Tensor) -> Tensor:
    return logits_of(draws, x, batch_size=8192).mean(0)[:, 0]  # (N,)


def agreement_table(es: Sequence[ExplanationDistribution], **keys: Any) -> pd.DataFrame:
    """Do several posteriors order the bars of an example alike? Rank correlations, sign included, beside two controls.

    Args:
        es: one explanation distribution of the same examples by each posterior.
        **keys: columns to put in front.

    Returns:
        One row per example and pair: **keys, pair, example, alike. "two posteriors": mean over all pairs of the
        correlation of their means. "two draws": of the first two draws of a posterior, mean over posteriors. "two
        houses (control)": of its mean with that of the next example, mean over posteriors.
    """
    means, draws = [e.mean() for e in es], [e.values for e in es if e.values is not None]
    pairs = {"two posteriors": [spearman(a, b) for a, b in combinations(means, 2)]}
    pairs["two draws"] = [spearman(values[0], values[1]) for values in draws]
    pairs["two houses (control)"] = [spearman(mean, other_image(mean)) for mean in means]
    columns = {name: pd.concat(several, axis=1).mean(axis=1) for name, several in pairs.items()}
    long = pd.DataFrame(columns).rename_axis("example").melt(var_name="pair", value_name="alike", ignore_index=False)
    return long.reset_index()[["pair", "example", "alike"]].assign(**keys)


def replaced(x: Tensor, order: Tensor, by: Tensor | float) -> Tensor:
    """Copies of each row with its first 0, 1, ..., F features in `order` replaced.

    Args:
        x: rows (N, F).
        order: feature numbers of each row, the first to go first, (N, F).
        by: what replaces them, broadcastable to x.

    Returns:
        (F + 1, N, F): x first, all of `by` last.
    """
    place, count = order.argsort(1), torch.arange(x.shape[1] + 1).view(-1, 1, 1)
    return torch.where(place < count, torch.as_tensor(by, dtype=x.dtype).expand_as(x), x)


def orders_of(e: ExplanationDistribution, reach: Tensor | float, *, num_repeats: int = 3, seed: int = 0) -> Orders:
    """In which order to move features: by the mean over draws, and by what should be worse.

    Args:
        e: attributions (draw, example, feature).
        reach: multiplies each of them: 1 for a difference from the mean example, x for slopes, since moving a feature
            to its mean moves it that far.
        num_repeats, seed: single draws and random orders to average over, and the stream of the latter.

    Returns:
        Sizes (N, F) by name, the largest to go first: mean, one draw, sd, another house, random.
    """
    stream, mean = torch.Generator().manual_seed(seed), e.mean()
    values = mean[None] if e.values is None else e.values[:num_repeats]
    noise = [torch.rand(mean.shape, generator=stream, dtype=mean.dtype) for _ in range(num_repeats)]
    orders = {"mean": [mean * reach], "one draw": list(values * reach), "sd": [e.std() * reach]}
    return orders | {"another house": [other_image(mean) * reach], "random": noise}


def removal_table(draws: Draws, x: Tensor, orders: Orders, *, unit: float = 1.0, **keys: Any) -> pd.DataFrame:
    """Deletion and insertion on a table: move features, most important first, and watch the mean prediction.

    The gap is |prediction - that for the whole example|. Deletion starts from the example and replaces its features by
    0, the mean of standardised features: a large area under the gap is good. Insertion starts from the mean example and
    puts the features in: there a small area is good.

    Args:
        draws, x: whose mean prediction is asked, of which standardised examples (N, F).
        orders: from `orders_of`; the gaps of several are averaged.
        unit: of the target.
        **keys: columns to put in front.

    Returns:
        One row per order, way ("deletion", "insertion") and example: **keys, order, way, example; area, the mean gap
        over the share of features, by the trapezoid; and gap_0, gap_1, ..., by the number of features moved.
    """
    frames, count, zero = [], x.shape[1], torch.zeros_like(x)
    for name, several in orders.items():
        for way, start, end in (("deletion", x, zero), ("insertion", zero, x)):
            gaps = []
            for size in several:
                copies = replaced(start, size.abs().argsort(dim=1, descending=True, stable=True), end)
                answer = _mean_answer(draws, copies.flatten(0, 1)).view(count + 1, -1)
                gaps.append((answer - answer[0 if way == "deletion" else -1]).abs() * unit)
            gap = torch.stack(gaps).mean(0).numpy()  # (F + 1, N)
            columns = {"order": name, "way": way, "example": range(len(x)), "area": np.trapezoid(gap, axis=0) / count}
            frames.append(pd.DataFrame({**keys, **columns, **{f"gap_{k}": each for k, each in enumerate(gap)}}))
    return pd.concat(frames, ignore_index=True)


def removal_gain(removal: pd.DataFrame, rival: str) -> pd.Series:
    """How much better than another order the mean map marks what the prediction rests on.

    Args:
        removal: rows of `removal_table` with the columns posterior and explainer; of several rows of one example, the
            mean counts.
        rival: an order of `orders_of`.

    Returns:
        Mean of the area that deletion gains and the area that insertion saves, in the unit of the gaps, by posterior,
        explainer and example; above 0 where the mean is better.
    """
    by = ["posterior", "explainer", "example", "way", "order"]
    area = removal.groupby(by)["area"].mean().unstack(["way", "order"])
    deletion = area["deletion", "mean"] - area["deletion", rival]
    return (deletion + area["insertion", rival] - area["insertion", "mean"]) / 2


def verdict(low: float, high: float, *, above: float) -> bool | None:
    """What an interval says of "it lies above": True or False where all of it agrees, None where it does not decide."""
    return True if low > above else False if high <= above else None
