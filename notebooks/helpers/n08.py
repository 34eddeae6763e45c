"""Notebook 08: an explained table as rows, and figures of it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib import ExplanationDistribution
from xuqlib.study.data.loading import Examples
from xuqlib.study.figures.charts import HUES, LINES, MARKERS, feature_bars
from xuqlib.study.figures.panels import panels
from xuqlib.study.names import plain


def stacked(parts: Mapping[Hashable, pd.DataFrame], keys: list[str]) -> pd.DataFrame:
    """Tables by key, one below the other, with the keys in columns of their own."""
    return pd.concat(parts, names=keys).reset_index(keys).reset_index(drop=True)


def bar_table(e: ExplanationDistribution, examples: Examples) -> pd.DataFrame:
    """One row per example and feature of an explained table, in units of the target.

    Args:
        e: attributions of the first rows, (draw, example, feature), standardised.
        examples: the table, which has units.

    Returns:
        Columns example, feature; value, the feature in its own unit; mean and std over
        draws, and the same of |attribution|, folded_mean and folded_std; agreement, the
        share of draws with the more common sign, NaN where every draw gives 0.
    """
    scale, target = examples.feature_scale, examples.target_scale
    if scale is None or target is None:
        wanted = "load diabetes or california_housing"
        raise ValueError(f"{examples.name} is no table with units; {wanted}")
    count, names = e.num_examples, list(examples.feature_names or ())
    folded, unit = e.moments["folded"], target.std
    x = np.asarray(examples.x[:count])
    columns = {
        "value": x * np.array(scale.std) + np.array(scale.mean),
        "mean": e.mean() * unit,
        "std": e.std() * unit,
        "folded_mean": folded.mean * unit,
        "folded_std": folded.std() * unit,
        "agreement": e.sign_agreement(),
    }
    index = {"example": np.repeat(range(count), len(names)), "feature": names * count}
    flat = {name: np.asarray(each).ravel() for name, each in columns.items()}
    return pd.DataFrame(index | flat)


def cv_panels(frame: pd.DataFrame, *, top: float = 1.0, title: str = "") -> Figure:
    """A grid of CVs for each explainer, a row per feature and a column per posterior.

    Args:
        frame: columns feature, posterior, explainer, cv.
        top: CV at which the colour ends.
        title: the claim of the figure.
    """
    features = list(dict.fromkeys(frame["feature"]))
    posteriors = list(dict.fromkeys(frame["posterior"]))
    words = [name.replace("_", " ") for name in posteriors]

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        wide = part.pivot(index="feature", columns="posterior", values="cv")
        grid = wide.loc[features, posteriors].to_numpy()
        axes.imshow(grid, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        for (row, column), cv in np.ndenumerate(grid):
            text = axes.text(column, row, f"{cv:.2f}", fontsize=13)
            text.set(color="black" if cv > 0.6 * top else "white")
            text.set(ha="center", va="center")
        axes.set_xticks(range(len(words)), words, rotation=40, ha="right")
        axes.set_yticks(range(len(features)), [plain(name, 24) for name in features])
        axes.grid(visible=False)

    size = (1.5 + 0.62 * len(posteriors), 2.3 + 0.42 * len(features))
    labels = ("", "")
    return panels(frame, draw, by="explainer", labels=labels, size=size, title=title)


def score_panels(
    frame: pd.DataFrame, *, right: Mapping[str, float], title: str = ""
) -> Figure:
    """Scores of posteriors: a panel per score, the value that is right dashed.

    Args:
        frame: columns score, posterior, value, low, high.
        right: value that a score should have, by its name.
        title: the claim of the figure.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        value, names = part["value"], part["posterior"].str.replace("_", " ")
        ends = np.array([value - part["low"], part["high"] - value])
        axes.errorbar(value, names, xerr=ends, fmt="o", color="black")
        if (wanted := right.get(str(part["score"].iloc[0]))) is not None:
            axes.axvline(wanted, linestyle="--", color=HUES[4])
        axes.margins(y=0.1)

    figure = panels(
        frame,
        draw,
        by="score",
        share="y",
        size=(3.6, 4.2),
        labels=("line: 95 % over examples; dashed: what is right", ""),
        title=title,
    )
    figure.axes[0].invert_yaxis()
    return figure


def removal_panels(frame: pd.DataFrame, *, unit: str, title: str = "") -> Figure:
    """How far the prediction has moved when so many features have, a line per order.

    Args:
        frame: columns way, order, moved, gap.
        unit: of the gaps.
        title: the claim of the figure.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for place, (name, line) in enumerate(part.groupby("order", sort=False)):
            marker, dash = MARKERS[place % len(MARKERS)], LINES[place % len(LINES)]
            x, y = line["moved"], line["gap"]
            axes.plot(x, y, marker=marker, linestyle=dash, label=str(name))
        if part["way"].iloc[0] == "deletion":
            axes.legend(fontsize=12, loc="lower right")

    labels = ("features moved", f"distance to the prediction\n({unit})")
    return panels(frame, draw, by="way", labels=labels, size=(5.2, 4.4), title=title)


def house_bars(rows: pd.DataFrame, chosen: Mapping[str, object]) -> tuple[Figure, str]:
    """Signed bars of one house, named with the features' own values, and a sentence.

    Args:
        rows: of `bar_table`, one per feature, and in each the house's prediction, total
            (1 sd) and truth, and unit, that of the target.
        chosen: its house, posterior and explainer.
    """
    first = rows.iloc[0]
    named = [
        f"{name} = {value:.5g}"
        for name, value in zip(rows["feature"], rows["value"], strict=True)
    ]
    words = {name: plain(value).replace("_", " ") for name, value in chosen.items()}
    title = f"{words['house'].capitalize()}, {words['explainer']}, {words['posterior']}"
    figure = feature_bars(rows.assign(feature=named), title=title, unit=first["unit"])
    figure.set_size_inches(10, figure.get_figheight())
    predicted = f"{first['prediction']:.4g} ± {first['total']:.2g} (1 sd)"
    split = int((rows["agreement"] < 1).sum())
    sentence = (
        f"Predicted {predicted}, true {first['truth']:.4g} ({first['unit']}). "
        f"The draws disagree about the sign of {split} of {len(rows)} bars."
    )
    return figure, sentence
