"""Notebook 23: a run that is killed, and what more of everything costs."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.charts import curve
from xuqlib.study.figures.panels import panels


def course(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """Images that are whole over time, a line for each run; a cross for each kill.

    Args:
        frame: columns seconds, images, run, victim (who was killed; NaN in other rows).
        title: the claim of the figure.
    """
    kills = frame[frame["victim"].notna()]
    figure = curve(
        frame[frame["victim"].isna()],
        x="seconds",
        y="images",
        hue="run",
        labels=("seconds since the store was made (cross: a kill)", "images whole"),
        title=title,
    )
    axes = figure.axes[0]
    axes.plot(kills["seconds"], kills["images"], "x", color="black", mew=3, zorder=5)
    if len(kills) <= 4:
        for kill in kills.itertuples():
            axes.annotate(
                f"{kill.victim} killed",
                (kill.seconds, kill.images),
                xytext=(10, -14),
                textcoords="offset points",
                fontsize=13,
            )
    axes.set_ylim(bottom=0)
    return figure


def cost_panels(frame: pd.DataFrame, *, title: str = "") -> Figure:
    """A panel for each size: time and memory over it, both logarithmic.

    Args:
        frame: columns what, times_size, times_seconds, times_memory (over the first of
            each), time_exponent, memory_exponent.
        title: the claim of the figure.
    """
    time, memory = (
        (frame[f"{of}_exponent"].round(2) + 0.0).map("{:.2f}".format)
        for of in ("time", "memory")
    )
    named = frame.assign(
        panel=frame["what"] + "\ntime ^" + time + ", memory ^" + memory
    )

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        axes.loglog(part["times_size"], part["times_seconds"], "o-", label="time")
        axes.loglog(part["times_size"], part["times_memory"], "s--", label="memory")
        axes.set_xticks(part["times_size"], [f"{x:g}" for x in part["times_size"]])
        axes.minorticks_off()

    figure = panels(
        named,
        draw,
        by="panel",
        labels=("size, over the smallest", "over that of the smallest"),
        share="y",
        columns=3,
        title=title,
    )
    figure.axes[0].legend(loc="upper left", fontsize=13)
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 8, 16, 32) if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return figure
