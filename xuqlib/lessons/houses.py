"""Figures of an explained table: signed bars of a house that the reader chooses, grids of CVs, scores of posteriors."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.charts import HUES, LINES, MARKERS, bars, feature_bars
from xuqlib.study.figures.choosers import explore
from xuqlib.study.figures.panels import panels


def cv_panels(frame: pd.DataFrame, *, top: float = 1.0, title: str = "") -> Figure:
    """A grid of CVs for each explainer: a row per feature, a column per posterior, the number in every cell.

    Args:
        frame: columns feature, posterior, explainer, cv.
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
    return panels(frame, draw, by="explainer", labels=("", ""), columns=3, size=size, title=title)


def noise_bars(frame: pd.DataFrame, ceiling: float, *, title: str = "") -> Figure:
    """The folded CV of each feature under each posterior, and the CV of noise as a dashed line.

    Args:
        frame: columns feature, posterior, cv, low, high, as `tables.feature_cvs` gives them with folded=True.
        ceiling: `ExplanationDistribution.noise_ceiling`.
        title: the claim of the figure.
    """
    ends = {"low": "low", "high": "high", "interval": "95 % bootstrap over examples"}
    labels = ("", f"CV of |attribution| (dashed: noise, {ceiling:.2f})")
    figure = bars(frame, x="feature", y="cv", hue="posterior", labels=labels, title=title, **ends)
    figure.axes[0].axhline(ceiling, linestyle="--", color="black")
    figure.axes[0].tick_params(axis="x", rotation=25)
    return figure


def score_panels(frame: pd.DataFrame, *, right: Mapping[str, float], title: str = "") -> Figure:
    """Scores of posteriors: a panel per score, a dot and its interval per posterior, the right value dashed.

    Args:
        frame: columns score, posterior, value, low, high.
        right: value that a score should have, by its name.
        title: the claim of the figure.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        ends = np.array([part["value"] - part["low"], part["high"] - part["value"]])
        axes.errorbar(part["value"], part["posterior"].str.replace("_", " "), xerr=ends, fmt="o", color="black")
        if (value := right.get(str(part["score"].iloc[0]))) is not None:
            axes.axvline(value, linestyle="--", color=HUES[4])
        axes.margins(y=0.1)

    labels = ("line: 95 % over examples; dashed: what is right", "")
    figure = panels(frame, draw, by="score", share="y", size=(3.6, 4.2), labels=labels, title=title)
    figure.axes[0].invert_yaxis()
    return figure


def removal_panels(removal: pd.DataFrame, *, unit: str, title: str = "") -> tuple[Figure, pd.DataFrame]:
    """How far the prediction has moved when so many features have: a panel per way, a line per order.

    Args:
        removal: rows of `tables.removal_table`.
        unit: of the gaps.
        title: the claim of the figure.

    Returns:
        The figure, and its frame: columns way, order, moved, gap (mean over the rows).
    """
    means = removal.groupby(["way", "order"], sort=False).mean(numeric_only=True).filter(regex="^gap_").reset_index()
    frame = means.melt(["way", "order"], var_name="moved", value_name="gap")
    frame["moved"] = frame["moved"].str.removeprefix("gap_").astype(int)

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for (name, line), marker, dash in zip(part.groupby("order", sort=False), MARKERS, LINES * 2, strict=False):
            axes.plot(line["moved"], line["gap"], marker=marker, linestyle=dash, label=str(name))
        if part["way"].iloc[0] == "deletion":
            axes.legend(fontsize=12, loc="lower right")

    labels = ("features moved", f"distance to the prediction\n({unit})")
    return panels(frame, draw, by="way", labels=labels, size=(5.2, 4.4), title=title), frame


def house_bars(rows: pd.DataFrame, chosen: Mapping[str, object]) -> tuple[Figure, str]:
    """The signed bars of one house, each labelled with the feature's own value, and one sentence about them.

    Args:
        rows: as for `explore_houses`, one per feature.
        chosen: its house, posterior and explainer.
    """
    first = rows.iloc[0]
    labels = [f"{name} = {value:.5g}" for name, value in zip(rows["feature"], rows["value"], strict=True)]
    words = {name: str(value).replace("_", " ") for name, value in chosen.items()}
    title = f"{words['house'].capitalize()}, {words['explainer']}, {words['posterior']}"
    figure = feature_bars(rows.assign(feature=labels), title=title, unit=first["unit"])
    figure.set_size_inches(10, figure.get_figheight())
    split = int((rows["agreement"] < 1).sum())
    sentence = (
        f"Predicted {first['prediction']:.4g} ± {first['total']:.2g} (1 sd), true {first['truth']:.4g} "
        f"({first['unit']}). The draws disagree about the sign of {split} of {len(rows)} bars."
    )
    return figure, sentence


def explore_houses(frame: pd.DataFrame) -> ipywidgets.VBox:
    """Choose a house, a posterior and an explainer, and see the house's signed bars; see `widgets.explore`.

    Args:
        frame: rows of `tables.bar_table` with the columns house, posterior and explainer; unit, of the target; and
            prediction, total, truth of `tables.prediction_table`.
    """
    return explore(frame, ["house", "posterior", "explainer"], house_bars)
