"""Notebook 07: the figure of nominal against found coverage."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels


def reliability(frame: pd.DataFrame, *, title: str) -> Figure:
    """Draw coverage over level, a panel per version and a line per posterior."""

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for name, line in part.groupby("posterior", sort=False):
            axes.plot(line["level"], line["coverage"], marker="o", label=name)
        axes.plot([0, 1], [0, 1], color="black", linewidth=1)

    figure = panels(
        frame, draw, by="version", labels=("nominal coverage", "found"), title=title
    )
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize=13, frameon=False)
    return figure
