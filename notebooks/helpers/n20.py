"""Figures of notebook 20: maps along time with their spread, and bars of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.charts import HUES, LINES, MARKERS, Picture, styled
from xuqlib.study.figures.panels import panels

SHADES = {"decides": "#bbbbbb", "new": "#f2c3a7", "two classes at once": "#cfe3f5"}


@styled
def along_time(
    signal: Sequence[float],
    lines: pd.DataFrame,
    *,
    marked: Mapping[str, np.ndarray],
    unit: str,
    title: str,
) -> Figure:
    """Draw a signal above maps of it along time; bands are one sd over draws.

    Args:
        signal: a number per time step.
        lines: columns map, step, value and, where there is a spread, std.
        marked: by what they are, the time steps to shade: a key of `SHADES`.
        unit: of the maps.
        title: the claim of the figure.
    """
    maps = list(lines.groupby("map", sort=False))
    figure = Picture(figsize=(9, 2.0 + 1.4 * len(maps)))
    grid = figure.subplots(1 + len(maps), 1, sharex=True)
    grid[0].plot(signal, color="black", linewidth=1.8)
    grid[0].set_ylabel("signal")
    for axes, (name, part) in zip(grid[1:], maps, strict=True):
        value, step = part["value"], part["step"]
        axes.plot(step, value, color=HUES[0], linewidth=1.8)
        if part["std"].notna().all():
            low, high = value - part["std"], value + part["std"]
            axes.fill_between(step, low, high, color=HUES[0], alpha=0.3, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_title(str(name), loc="left", fontsize=14)
    for axes in grid:
        for what, inside in marked.items():
            axes.fill_between(
                np.arange(len(inside)),
                *(0, 1),
                where=inside,
                transform=axes.get_xaxis_transform(),
                color=SHADES[what],
                alpha=0.6,
                linewidth=0,
            )
        axes.locator_params(axis="y", nbins=3)
    for what, inside in marked.items():
        if inside.any():
            where = float(np.flatnonzero(inside).mean())
            at = {"xy": (where, 1.02), "xycoords": ("data", "axes fraction")}
            grid[0].annotate(what, **at, ha="center", fontsize=13)
    grid[-1].set_xlabel("time step")
    figure.supylabel(unit, fontsize=14)
    figure.suptitle(title)
    return figure


def feature_dots(
    frame: pd.DataFrame,
    *,
    hue: str,
    label: str,
    most: int = 14,
    title: str,
) -> Figure:
    """Draw a row per feature, a panel per value of "panel", marks told apart by `hue`.

    Args:
        frame: columns panel, feature, hue, value, low, high, and planted: whether the
            feature is one of those that matter, whose row is shaded.
        hue: column that tells marks apart.
        label: of the values, with their unit and what the lines are of.
        most: features that are shown, those with the largest value anywhere.
        title: the claim of the figure.
    """
    largest = frame.groupby("feature")["value"].max().nlargest(most).index
    features = [name for name in dict.fromkeys(frame["feature"]) if name in largest]
    hues = list(dict.fromkeys(frame[hue]))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for place, name in enumerate(hues):
            rows = part[(part[hue] == name) & part["feature"].isin(features)]
            y = rows["feature"].map(features.index)
            ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            axes.errorbar(
                rows["value"],
                y + (place - (len(hues) - 1) / 2) * 0.28,
                xerr=ends,
                fmt=MARKERS[place],
                color=HUES[place],
                elinewidth=2.5,
                label=name,
            )
        for feature in part.loc[part["planted"], "feature"].unique():
            row = features.index(feature)
            axes.axhspan(row - 0.5, row + 0.5, color="#e8e8e8", zorder=0)
        axes.set(yticks=range(len(features)), yticklabels=features)
        axes.set_ylim(len(features) - 0.5, -0.5)
        axes.axvline(0, color="black", linewidth=1)

    figure = panels(
        frame,
        draw,
        by="panel",
        labels=(label, ""),
        share="y",
        size=(10 / frame["panel"].nunique(), 1.2 + 0.42 * len(features)),
        title=title,
    )
    last = [axes for axes in figure.axes if axes.get_visible()][-1]
    last.legend(loc="lower right", fontsize=13, frameon=True)
    return figure


def share_panels(frame: pd.DataFrame, *, title: str, label: str) -> Figure:
    """Draw a row per map, a panel per value of "panel", with chance as a line.

    Args:
        frame: columns panel, map, value, low, high, chance.
        title: the claim of the figure.
        label: of the values, and what their intervals are of.
    """
    names = list(dict.fromkeys(frame["map"]))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        y = part["map"].map(names.index)
        ends = [part["value"] - part["low"], part["high"] - part["value"]]
        axes.errorbar(part["value"], y, xerr=ends, fmt="o", color=HUES[0])
        axes.axvline(part["chance"].mean(), color="black", linestyle=LINES[1])
        axes.set(yticks=range(len(names)), yticklabels=names)
        axes.set(xlim=(0, 1), xticks=(0, 0.5, 1), xticklabels=("0", "0.5", "1"))
        axes.set_ylim(len(names) - 0.5, -0.5)

    return panels(
        frame,
        draw,
        by="panel",
        labels=(f"{label}; dashed: chance", ""),
        columns=4,
        size=(3.9, 1.3 + 0.5 * len(names)),
        title=title,
    )
