"""Figures of notebook 17: tiles, scores with intervals, score against score."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from xuqlib.study.figures.charts import HUES, MARKERS
from xuqlib.study.figures.maps import SIGNED
from xuqlib.study.figures.panels import panels


def tiles(
    frame: pd.DataFrame,
    value: str,
    *,
    columns: str = "explainer",
    rows: str = "posterior",
    by: str = "dataset",
    text: str | None = None,
    log: bool = False,
    middle: float | None = None,
    panel_columns: int = 3,
    title: str = "",
) -> Figure:
    """Write each number on a coloured tile, light for large; a panel per value of `by`.

    Args:
        frame: one tile per row; what has no row stays white.
        value: column that gives colour and number; all panels share the colours.
        columns, rows, by: columns of the frame.
        text: column of words to write instead of the number.
        log: colours on a logarithmic scale, for values above 0.
        middle: on such a scale, the value of the neutral colour; colours then end at a
            third and three times it.
        panel_columns: panels side by side.
        title: the claim of the figure.
    """
    heads = [list(dict.fromkeys(frame[axis])) for axis in (rows, columns)]
    low, high = (
        (frame[value].min(), frame[value].max())
        if middle is None
        else (middle / 3, middle * 3)
    )
    scale = (LogNorm if log else Normalize)(low, high, clip=True)
    colours = mpl.colormaps["viridis"] if middle is None else SIGNED

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        axes.grid(visible=False)
        axes.imshow([[np.nan] * len(heads[1])] * len(heads[0]), aspect="auto")
        for row, column, number, words in zip(
            part[rows], part[columns], part[value], part[text or value], strict=True
        ):
            x, y, paint = (
                heads[1].index(column),
                heads[0].index(row),
                colours(scale(number)),
            )
            axes.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=paint, edgecolor="white")
            )
            colour = "white" if np.dot(paint[:3], (0.21, 0.72, 0.07)) < 0.5 else "black"
            axes.text(
                x,
                y,
                str(words) if text else f"{number:.2g}",
                ha="center",
                va="center",
                color=colour,
                size=13,
            )
        axes.set_xticks(
            range(len(heads[1])),
            [str(name).replace("_", "\n") for name in heads[1]],
            fontsize=12,
        )
        axes.set_yticks(range(len(heads[0])), heads[0], fontsize=13)
        axes.tick_params(labelbottom=True)  # the panel below may be empty

    size = (1.6 + 0.95 * len(heads[1]), 1.0 + 0.45 * len(heads[0]))
    return panels(
        frame,
        draw,
        by=by,
        labels=("", ""),
        share="xy",
        columns=panel_columns,
        size=size,
        title=title,
    )


def scores(frame: pd.DataFrame, posteriors: Sequence[str]) -> Figure:
    """Each posterior's score and interval; a panel per data set and criterion.

    Args:
        frame: columns dataset, criterion, size, who, value, low, high.
        posteriors: from the top.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for number, (size, rows) in enumerate(part.groupby("size", sort=False)):
            places, colour = (
                rows["who"].map(list(posteriors).index) + 0.3 * number - 0.15,
                HUES[number],
            )
            axes.hlines(places, rows["low"], rows["high"], color=colour, linewidth=1.5)
            axes.plot(
                rows["value"], places, MARKERS[number], color=colour, label=str(size)
            )
        axes.set_yticks(range(len(posteriors)), list(posteriors))
        axes.set_ylim(len(posteriors) - 0.5, -0.5)

    named = frame.assign(panel=frame["dataset"] + ": " + frame["criterion"])
    title = "How well the predictions are calibrated"
    figure = panels(
        named,
        draw,
        by="panel",
        labels=("", ""),
        share="y",
        columns=3,
        size=(4.0, 2.9),
        title=title,
    )
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title="score (lines: 95 % bootstrap, seeds and examples) at T =",
        title_fontsize=15,
        fontsize=15,
    )
    return figure


def crosses(frame: pd.DataFrame) -> Figure:
    """NLL against insertion gain, a cross of two intervals each; a panel per data set.

    Args:
        frame: columns dataset, who, and nll, insertion, each also with _low and _high.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for number, row in enumerate(part.to_dict("records")):
            x, y, colour = row["nll"], row["insertion"], HUES[number]
            axes.plot(
                x,
                y,
                linestyle="",
                marker=MARKERS[number],
                color=colour,
                label=row["who"],
            )
            axes.hlines(y, row["nll_low"], row["nll_high"], color=colour, linewidth=1.5)
            axes.vlines(
                x,
                row["insertion_low"],
                row["insertion_high"],
                color=colour,
                linewidth=1.5,
            )

    labels, title = (
        ("NLL (nats; bars: 95 % bootstrap)", "insertion gain"),
        "Better predictions, better explanations?",
    )
    figure = panels(
        frame,
        draw,
        by="dataset",
        labels=labels,
        share="",
        columns=2,
        size=(5.2, 4.2),
        title=title,
    )
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize=12, frameon=False)
    return figure
