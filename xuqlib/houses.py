"""Explanations of a table: signed bars with their spread for each feature, and how far to believe them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal

from xuqlib.charts import Picture, feature_bars
from xuqlib.checks import check_count, check_number
from xuqlib.data import Examples
from xuqlib.distribution import ExplanationDistribution
from xuqlib.draws import Draws
from xuqlib.panels import panels
from xuqlib.uncertainty import decompose, logits_of
from xuqlib.widgets import explore


def _check_table(examples: Examples, shape: Sequence[int]) -> None:
    names = examples.feature_names
    if names is None or examples.target_scale is None or examples.feature_scale is None:
        raise ValueError(f"{examples.name} is no table with a target in units; load diabetes or california_housing")
    if shape[1] != len(names) or shape[0] > len(examples):
        raise ValueError(
            f"attributions are of {shape[0]} examples x {shape[1]} features but the table has {len(examples)} x "
            f"{len(names)}; explain examples.x, or its first rows"
        )


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
    _check_table(examples, e.mean().shape)
    names, scale = examples.feature_names or (), examples.feature_scale
    count, unit, folded = e.num_examples, examples.target_scale.std, e.moments.of["folded"]  # type: ignore[union-attr]
    value = np.asarray(examples.x[:count]) * np.array(scale.std) + np.array(scale.mean)  # type: ignore[union-attr]
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
    _check_table(examples, examples.x.shape)
    if not 0 < check_number(level, 0, "level", above=True) < 1:
        raise ValueError(f"level is {level}; pass the share that the interval should cover, between 0 and 1")
    logits, truth = logits_of(draws, examples.x.double()), examples.y[:, 0].double()  # (S, N, 1), (N,)
    u, mean = decompose(logits, draws.noise_variance), logits.mean(0)[:, 0]
    gaussian, half = Normal(mean, u.total.sqrt()), Normal(0.0, 1.0).icdf(torch.tensor((1 + level) / 2.0)).double()
    centre, unit, _ = examples.target_scale or (0.0, 1.0, "")
    columns = {"prediction": mean * unit + centre, "truth": truth * unit + centre}
    columns |= {name: getattr(u, name).sqrt() * unit for name in ("epistemic", "aleatoric", "total")}
    columns |= {"nll": -gaussian.log_prob(truth)}
    columns |= {"covered": ((truth - mean).abs() <= half * gaussian.scale).double()}
    return pd.DataFrame(
        {**keys, "example": range(len(truth)), **{name: each.numpy() for name, each in columns.items()}}
    )


def resampled(
    statistic: Callable[..., Any], *tables: np.ndarray, num_resamples: int = 499, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of whole tables, and its 95 % interval over which examples happened to be in them.

    The percentile bootstrap over rows, the same rows of every table at once: each example stays its own control.

    Args:
        statistic: of the tables, a number or an array.
        *tables: (example, ...), of one length.
        num_resamples: times that the rows are drawn anew.
        seed: of the rows.

    Returns:
        Value, low and high, each shaped like the statistic.

    Raises:
        ValueError: the tables have different lengths.
    """
    if len({len(table) for table in tables}) != 1:
        raise ValueError(f"tables have {[len(table) for table in tables]} rows; pass the same examples")
    rows = np.random.default_rng(seed).integers(
        len(tables[0]), size=(check_count(num_resamples, 2, "num_resamples"), len(tables[0]))
    )
    found = np.stack([statistic(*(table[row] for table in tables)) for row in rows])
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return np.asarray(statistic(*tables)), low, high


def by_feature(bars: pd.DataFrame, column: str) -> np.ndarray:
    """A column of `bar_table` as an array (example, feature), averaged over everything else, features in their order."""
    wide = bars.pivot_table(column, "example", "feature", sort=False, dropna=False)
    return wide[list(dict.fromkeys(bars["feature"]))].sort_index().to_numpy()


def feature_cvs(bars: pd.DataFrame, by: Sequence[str], *, folded: bool = False, seed: int = 0) -> pd.DataFrame:
    """CV of each feature over all examples: the sum of the std divided by the sum of |mean|.

    Where a group holds several trainings of a posterior, std and |mean| are averaged over them first.

    Args:
        bars: rows of `bar_table`.
        by: columns that make the groups.
        folded: of |attribution| instead, whose CV has a noise ceiling, `ExplanationDistribution.noise_ceiling`.
        seed: of the bootstrap over examples, see `resampled`.

    Returns:
        Columns `by`, feature, cv, low, high; NaN where a feature's mean is 0 in every example.
    """
    prefix, frames = "folded_" if folded else "", []
    for key, part in bars.assign(size=bars[f"{prefix}mean"].abs()).groupby(list(by), sort=False):
        pair = [by_feature(part, column) for column in (f"{prefix}std", "size")]
        with np.errstate(invalid="ignore", divide="ignore"):
            value, low, high = resampled(lambda std, size: std.sum(0) / size.sum(0), *pair, seed=seed)
        columns = {"feature": list(dict.fromkeys(part["feature"])), "cv": value, "low": low, "high": high}
        frames.append(pd.DataFrame(dict(zip(by, key, strict=True)) | columns))
    return pd.concat(frames, ignore_index=True)


def permutation_importance(draws: Draws, x: Tensor, y: Tensor, *, num_repeats: int = 5, seed: int = 0) -> Tensor:
    """How much the squared error of each example's mean prediction rises when one feature is another example's.

    Unlike an attribution it asks the truth, and it moves a feature without those that are correlated with it.

    Args:
        draws: of a regression.
        x, y: examples (N, F) and targets (N, 1).
        num_repeats: permutations of the rows, to average over.
        seed: of the permutations.

    Returns:
        (N, F), in squared units of y; its mean over examples is the usual importance.

    Source: Breiman 2001, section 10; here per example, so that it has an interval over examples.
    """
    stream, base = torch.Generator().manual_seed(seed), (logits_of(draws, x).mean(0) - y).square()  # (N, 1)
    rise = torch.zeros_like(x)
    for _ in range(check_count(num_repeats, 1, "num_repeats")):
        other = x[torch.randperm(len(x), generator=stream)]
        for feature in range(x.shape[1]):
            changed = x.clone()
            changed[:, feature] = other[:, feature]
            rise[:, feature] += ((logits_of(draws, changed).mean(0) - y).square() - base)[:, 0]
    return rise / num_repeats


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


def removal_table(
    draws: Draws, x: Tensor, sizes: Mapping[str, Sequence[Tensor]], *, unit: float = 1.0, **keys: Any
) -> pd.DataFrame:
    """Deletion and insertion on a table: replace features by their mean, most important first, and watch the prediction.

    The gap is |mean prediction - that for the whole example|. Deletion starts from the example and replaces its features
    by 0, the mean of standardised features: a large gap early, a large area, is good. Insertion starts from the mean
    example and puts the features in: there a small area is good.

    Args:
        draws: whose mean prediction is asked.
        x: standardised examples (N, F).
        sizes: name of each order and one or more tensors (N, F), whose largest |value| goes first; areas of several
            are averaged.
        unit: of the target.
        **keys: columns to put in front.

    Returns:
        One row per order, way ("deletion", "insertion") and example: **keys, order, way, example; area, the mean gap
        over the share of features, by the trapezoid; and gap_0, gap_1, ..., by the number of features replaced.
    """
    frames, count = [], x.shape[1]
    for name, several in sizes.items():
        for way, start, end in (("deletion", x, torch.zeros_like(x)), ("insertion", torch.zeros_like(x), x)):
            gaps = []
            for size in several:
                copies = replaced(start, size.abs().argsort(1, descending=True, stable=True), end)
                answer = logits_of(draws, copies.flatten(0, 1)).mean(0).view(count + 1, -1)
                gaps.append((answer - answer[0 if way == "deletion" else -1]).abs() * unit)
            gap = torch.stack(gaps).mean(0).numpy()  # (F + 1, N)
            columns = {"order": name, "way": way, "example": range(len(x)), "area": np.trapezoid(gap, axis=0) / count}
            frames.append(pd.DataFrame({**keys, **columns, **{f"gap_{k}": each for k, each in enumerate(gap)}}))
    return pd.concat(frames, ignore_index=True)


def cv_panels(frame: pd.DataFrame, *, by: str = "explainer", top: float = 1.0, title: str = "") -> Picture:
    """A grid of CVs for each explainer: a row per feature, a column per posterior, the number in every cell.

    Args:
        frame: columns feature, posterior, cv and `by`.
        by: column that makes the panels.
        top: CV at which the colour ends.
        title: the claim of the figure.
    """
    features, posteriors = (list(dict.fromkeys(frame[name])) for name in ("feature", "posterior"))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        grid = part.pivot(index="feature", columns="posterior", values="cv").loc[features, posteriors].to_numpy()
        axes.imshow(grid, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        for (row, column), cv in np.ndenumerate(grid):
            colour = "black" if cv > 0.6 * top else "white"
            axes.text(column, row, f"{cv:.2f}", ha="center", va="center", color=colour, fontsize=13)
        axes.set_xticks(
            range(len(posteriors)), [name.replace("_", " ") for name in posteriors], rotation=40, ha="right"
        )
        axes.set_yticks(range(len(features)), features)
        axes.grid(visible=False)

    size = (1.5 + 0.62 * len(posteriors), 2.3 + 0.42 * len(features))
    return panels(frame, draw, by=by, labels=("", ""), columns=3, size=size, title=title)


def house_table(bars: pd.DataFrame, predictions: pd.DataFrame, *, unit: str) -> pd.DataFrame:
    """What `explore_houses` shows: the bars of each house beside its prediction, and the unit of both.

    Args:
        bars: rows of `bar_table` with the columns posterior and explainer.
        predictions: rows of `prediction_table` with the column posterior.
        unit: name of the target's unit.

    Returns:
        The rows of bars, with columns house ("house 3"), prediction, total, truth and unit added.
    """
    known = predictions[["posterior", "example", "prediction", "total", "truth"]]
    frame = bars.merge(known, on=["posterior", "example"], how="left", validate="many_to_one")
    return frame.assign(house="house " + frame["example"].astype(str), unit=unit)


def house_bars(rows: pd.DataFrame, chosen: Mapping[str, object]) -> tuple[Figure, str]:
    """The signed bars of one house, each labelled with the feature's own value, and one sentence about them.

    Args:
        rows: of `house_table`, one per feature.
        chosen: its house, posterior and explainer.
    """
    first, unit = rows.iloc[0], str(rows["unit"].iloc[0])
    shown = rows.assign(
        feature=[f"{name} = {value:.5g}" for name, value in zip(rows["feature"], rows["value"], strict=True)]
    )
    words = {name: str(value).replace("_", " ") for name, value in chosen.items()}
    title = f"{words['house'].capitalize()}, {words['explainer']}, {words['posterior']}"
    figure = feature_bars(shown, title=title, unit=unit)
    figure.set_size_inches(10, figure.get_figheight())
    split = int((rows["agreement"] < 1).sum())
    sentence = (
        f"Predicted {first['prediction']:.4g} ± {first['total']:.2g} (1 sd), true {first['truth']:.4g} ({unit}). "
        f"The draws disagree about the sign of {split} of {len(rows)} bars."
    )
    return figure, sentence


def explore_houses(frame: pd.DataFrame) -> ipywidgets.VBox:
    """Choose a house, a posterior and an explainer, and see the house's signed bars; see `widgets.explore`.

    Args:
        frame: of `house_table`.
    """
    return explore(frame, ["house", "posterior", "explainer"], house_bars)
