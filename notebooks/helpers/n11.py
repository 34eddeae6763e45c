"""Notebook 11: gains over another training of the same seed, drawn."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_SEEDS, over_seeds


def gain_panels(
    frame: pd.DataFrame, *, by: str, side: str, unit: str, title: str
) -> tuple[Figure, pd.DataFrame]:
    """Dots of the mean gain of each `side`, in a panel for each value of `by`.

    Args:
        frame: columns `by`, `side`, seed and gain, of one score.
        by: column whose values make the panels.
        side: column whose values stand below each other, in their order.
        unit: of the gains.
        title: the claim of the figure.

    Returns:
        The figure, whose lines are 95 % t-intervals over seeds, cut where they would
        leave the frame; and the table that it shows, of `over_seeds`.
    """
    names = list(dict.fromkeys(frame[side]))
    reach = 1.4 * frame.groupby([by, side])["gain"].mean().abs().groupby(by).max()

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        limit = reach[part[by].iloc[0]] or 1.0
        ends = part[["low", "high"]].clip(
            -2 * limit, 2 * limit
        )  # a far end would cost precision, not show
        places = part[side].map(names.index)
        axes.hlines(places, ends["low"], ends["high"], linewidth=2.5)
        axes.plot(part["gain"], places, "o", markersize=9)
        axes.axvline(0, color="black", linewidth=1.5)
        axes.set(
            yticks=range(len(names)),
            yticklabels=names,
            ylim=(len(names) - 0.5, -0.5),
            xlim=(-limit, limit),
        )

    points = over_seeds(frame, [by, side])
    figure = panels(
        points,
        draw,
        by=by,
        labels=(f"{unit} (line: {OVER_SEEDS})", ""),
        share="y",
        columns=2,
        size=(5.8, 1.2 + 0.36 * len(names)),
        title=title,
    )
    return figure, points
