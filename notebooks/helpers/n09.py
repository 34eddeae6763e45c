"""Figures of notebook 09: maps of each kind of image, and scores in several panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from xuqlib.study.figures.maps import map_grid
from xuqlib.study.figures.panels import panels
from xuqlib.study.figures.rows import ACCENT
from xuqlib.study.intervals import OVER_EXAMPLES

SHIFTS = {"paper": -0.15, "recommended": 0.15}  # of the marks of one map


def kind_maps(
    pictures: Sequence[Tensor],
    truth: Sequence[Tensor],
    maps: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
) -> Figure:
    """Draw an image per row beside its maps, with an outline of what is uncertain.

    Args:
        pictures: (channel, height, width) each.
        truth: 1 where the image is ambiguous or novel, (height, width) each.
        maps: of each image by name, (height, width); epistemic among them, and total.
        names: of the rows.
    """
    share = [float(row["epistemic"].sum() / row["total"].sum()) for row in maps]
    most = int(np.argmax(share))
    figure = map_grid(
        [[picture, *row.values()] for picture, row in zip(pictures, maps, strict=True)],
        kinds=["picture", *["signed"] * len(maps[0])],
        column_titles=["picture", *maps[0]],
        row_titles=names,
        dataset="planted",
        title=f"The epistemic part is largest in the {names[most]} picture:\n"
        f"{share[most]:.0%} of its uncertainty",
    )
    grid = np.array(figure.axes).reshape(len(maps), -1)
    for line, mask, row in zip(grid, truth, maps, strict=True):
        for axes, values in zip(line[1:], row.values(), strict=True):
            axes.set_xlabel(f"{float(values.sum()):.2f} nats", fontsize=15)
        for axes in line if mask.any() else ():
            _outline(axes, np.asarray(mask))
    figure.supxlabel(
        "Outline: what is ambiguous or novel. Below each map: its sum.\n"
        "The maps of a row share their colours; yellow adds, blue removes.",
        fontsize=15,
    )
    return figure


def _outline(axes: Axes, mask: np.ndarray) -> None:
    rows, columns = np.nonzero(mask)
    corner = columns.min() - 0.5, rows.min() - 0.5
    size = float(np.ptp(columns)) + 1, float(np.ptp(rows)) + 1
    for colour, width in (("white", 5.0), (ACCENT, 2.5)):
        box = Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=width)
        axes.add_patch(box)


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
