"""Notebook 12: what is left of a map while the network forgets, and beside its CV."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels
from xuqlib.study.figures.rows import row_dots
from xuqlib.study.intervals import OVER_EXAMPLES
from xuqlib.study.names import spoken

CV, LEFT = "CV, intact network", "left of mean map, all forgot"
HEADS = {
    CV: "CV of the intact network",
    LEFT: "left of its map when all layers forgot",
}
KEEPS, LOSES = "keeps most of its map", "keeps less"


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


def blind_dots(frame: pd.DataFrame) -> Figure:
    """Draw each explainer's CV beside what is left of its map when all layers forgot.

    Args:
        frame: columns what (CV or LEFT), case (explainer, posterior), value, low, high.
    """
    cases = frame["case"].str.split(", ", n=1, expand=True)
    frame = frame.assign(explainer=cases[0], posterior=cases[1])
    wide = frame.pivot(index=["explainer", "posterior"], columns="what", values="value")
    keeper = str(wide[LEFT].groupby("explainer").mean().idxmax())
    steadiest = wide[CV].unstack("explainer").idxmin(axis=1) == keeper
    left = wide[LEFT].xs(keeper, level="explainer")
    return row_dots(
        frame.assign(
            panel=frame["what"].map(HEADS),
            group=frame["explainer"].map(spoken),
            row=frame["posterior"].map(spoken),
            mark=(frame["explainer"] == keeper).map({True: KEEPS, False: LOSES}),
        ),
        marks=(KEEPS, LOSES),
        label="no unit",
        caption="What is left: rank correlation with the mean map before. "
        f"Line: {OVER_EXAMPLES}.",
        own=True,
        title=f"{spoken(keeper)} is steadiest for {steadiest.sum()} of "
        f"{len(steadiest)} posteriors; {left.min():.2f} to {left.max():.2f} of its map "
        "is left when all layers forgot",
    )
