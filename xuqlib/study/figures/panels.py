"""One figure, several panels: a chart repeated for each value of a column."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import AutoLocator, MaxNLocator

from xuqlib.checks import check_choice
from xuqlib.study.checked import Column, Count, Size, Table, checked
from xuqlib.study.figures.charts import HUES, Picture, styled
from xuqlib.study.names import plain_lines


@styled
@checked
def panels(
    frame: Table,
    draw: Callable[[Axes, pd.DataFrame], object],
    *,
    by: Column,
    labels: tuple[str, str],
    share: str = "xy",
    columns: Count = 4,
    size: Size = (4.2, 3.6),
    title: str = "",
) -> Picture:
    """Repeat a chart side by side, one panel for each value of a column, in order of appearance.

    Args:
        frame: one observation per row.
        draw: adds one part of the frame to its axes.
        by: column whose values make the panels.
        labels: of the x and the y axis, with units.
        share: axes that all panels share: "", "x", "y" or "xy".
        columns: panels in a row, at most.
        size: width and height of a panel, in inches.
        title: the claim of the figure.

    Raises:
        ValueError: the frame has no row or no such column.
    """
    check_choice(share, ("", "x", "y", "xy"), "share")
    parts = list(frame.groupby(by, sort=False))
    columns = min(columns, len(parts))
    num_rows = -(-len(parts) // columns)
    figure = Picture(figsize=(size[0] * columns, size[1] * num_rows + 0.6))
    grid = figure.subplots(num_rows, columns, sharex="x" in share, sharey="y" in share, squeeze=False).ravel()
    for axes, (name, part) in zip(grid, parts, strict=False):
        axes.set_prop_cycle(color=HUES)
        draw(axes, part)
        if isinstance(axes.xaxis.get_major_locator(), AutoLocator):
            axes.xaxis.set_major_locator(MaxNLocator(4))  # panels are narrow, and the type is large
        axes.set_title(plain_lines(str(name)))
    for axes in grid[len(parts) :]:
        axes.set_visible(False)
    figure.supxlabel(labels[0], fontsize=15)
    figure.supylabel(labels[1], fontsize=15)
    figure.suptitle(title)
    return figure
