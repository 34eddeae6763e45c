"""The figure of notebook 09 that several panels share."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_EXAMPLES

SHIFTS = {"paper": -0.15, "recommended": 0.15}  # of the marks of one map


def patch_dots(points: pd.DataFrame, *, title: str) -> Figure:
    """Draw a row per map, a panel per value of "panel", marks told apart by setting.

    Args:
        points: columns panel, map, setting, value, low, high and chance.
        title: the claim of the figure.
    """
    names = list(dict.fromkeys(points["map"]))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        settings = part.groupby("setting", sort=False)
        for marker, (setting, rows) in zip("os^", settings, strict=False):
            axes.errorbar(
                rows["value"],
                rows["map"].map(names.index) + SHIFTS.get(str(setting), 0),
                xerr=rows["value"] - rows["low"],
                fmt=marker,
                label=setting,
                elinewidth=2.5,
            )
        axes.axvline(part["chance"].iloc[0], color="black", linewidth=1.5)
        axes.set(yticks=range(len(names)), yticklabels=names)
        axes.set_ylim(len(names) - 0.5, -0.5)

    title = f"{title} (black line: chance; bars: {OVER_EXAMPLES})"
    figure = panels(
        points,
        draw,
        by="panel",
        labels=("", ""),
        columns=3,
        size=(4.6, 4.2),
        title=title,
    )
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=3, fontsize=15, frameon=False
    )
    return figure
