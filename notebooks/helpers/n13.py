"""Notebook 13: what a call's time is spent on."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from xuqlib.study.figures.charts import HATCHES, HUES, Picture, styled


@styled
def spent(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """One bar for each run, cut into the parts of its time.

    Args:
        frame: columns run, part, percent; parts in their order.
        title: the claim of the figure.
    """
    wide = frame.pivot(index="run", columns="part", values="percent")
    wide = wide.loc[frame["run"].unique()[::-1], frame["part"].unique()]
    figure = Picture(figsize=(9, 1.5 + 0.3 * len(wide)))
    axes = figure.subplots()
    start = wide.iloc[:, 0] * 0
    for (part, width), hue, hatch in zip(wide.items(), HUES, HATCHES, strict=False):
        bars = axes.barh(wide.index, width, left=start, label=part)
        for bar in bars:
            bar.set(color=hue, hatch=hatch, edgecolor="white")
        start = start + width
    axes.margins(y=0.01)
    axes.axvline(85, color="black", linewidth=1)
    axes.set(xlim=(0, 100), xlabel="share of the time (%)")
    axes.tick_params(axis="y", labelsize=13)
    figure.legend(loc="outside lower center", ncols=2, fontsize=13)
    figure.suptitle(title)
    return figure
