"""Notebook 12: what is left of a map while the network forgets."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels


def forgetting_panels(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """A panel per case: similarity by step, of the mean map (round) and the std map.

    Args:
        frame: columns case, statistic (two of them), step (the floor is 0), signed,
            low, high.
        title: the claim of the figure.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        maps = part.groupby("statistic", sort=False)
        for look, (_, each) in zip(("o-", "s--"), maps, strict=True):
            floor, steps = each.iloc[0], each.iloc[1:]
            (line,) = axes.plot(steps["step"], steps["signed"], look)
            axes.fill_between(steps["step"], steps["low"], steps["high"], alpha=0.15)
            axes.axhline(floor["signed"], color=line.get_color(), linewidth=1.2)
            axes.set_xticks(steps["step"])

    labels = (
        "layers that forgot, from the output",
        "rank correlation with before\n(band: ±2 standard errors)",
    )
    return panels(
        frame,
        draw,
        by="case",
        labels=labels,
        columns=3,
        size=(4.3, 3.4),
        title=title,
    )
