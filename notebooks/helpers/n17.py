"""Figures of notebook 17: tiles, rows of dots, score against score."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from xuqlib.study.figures.charts import HUES, MARKERS
from xuqlib.study.figures.panels import panels
from xuqlib.study.figures.rows import behind_first, row_dots
from xuqlib.study.intervals import OVER_EXAMPLES
from xuqlib.study.names import spoken

SHORT = {"integrated_gradients": "IG", "lime": "LIME"}
STEADIER = ("steadier", "less steady", "undecided")
PLACES = ("first", "decidedly behind", "might as well be first")


def tiles(
    frame: pd.DataFrame,
    value: str,
    *,
    columns: str = "explainer",
    rows: str = "posterior",
    by: str = "dataset",
    text: str | None = None,
    log: bool = False,
    panel_columns: int = 3,
    title: str = "",
) -> Figure:
    """Write each number on a coloured tile, light for large; a panel per value of `by`.

    Args:
        frame: one tile per row; what has no row stays white.
        value: column that gives colour and number; all panels share the colours.
        columns, rows, by: columns of the frame.
        text: column of words to write instead of the number.
        log: colours on a logarithmic scale, for values above 0.
        panel_columns: panels side by side.
        title: the claim of the figure.
    """
    heads = [list(dict.fromkeys(frame[axis])) for axis in (rows, columns)]
    low, high = frame[value].min(), frame[value].max()
    scale = (LogNorm if log else Normalize)(low, high, clip=True)
    colours = mpl.colormaps["viridis"]

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        axes.grid(visible=False)
        axes.imshow([[np.nan] * len(heads[1])] * len(heads[0]), aspect="auto")
        for row, column, number, words in zip(
            part[rows], part[columns], part[value], part[text or value], strict=True
        ):
            x, y, paint = (
                heads[1].index(column),
                heads[0].index(row),
                colours(scale(number)),
            )
            axes.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=paint, edgecolor="white")
            )
            colour = "white" if np.dot(paint[:3], (0.21, 0.72, 0.07)) < 0.5 else "black"
            axes.text(
                x,
                y,
                str(words) if text else f"{number:.2g}",
                ha="center",
                va="center",
                color=colour,
                size=13,
            )
        axes.set_xticks(
            range(len(heads[1])),
            [str(name).replace("_", "\n") for name in heads[1]],
            fontsize=12,
        )
        axes.set_yticks(range(len(heads[0])), heads[0], fontsize=13)
        axes.tick_params(labelbottom=True)  # the panel below may be empty

    size = (1.6 + 0.95 * len(heads[1]), 1.0 + 0.45 * len(heads[0]))
    return panels(
        frame,
        draw,
        by=by,
        labels=("", ""),
        share="xy",
        columns=panel_columns,
        size=size,
        title=title,
    )


def quotient_dots(frame: pd.DataFrame) -> Figure:
    """Draw CV of Guided Backprop / CV of the rival: a panel per definition of the CV.

    Args:
        frame: columns dataset, posterior, definition, panel (data set and rival),
            quotient, low and high.
    """
    low, high = frame["high"] < 1, frame["low"] > 1
    marks = pd.Series(np.select([low, high], STEADIER[:2], STEADIER[2]), frame.index)
    pairs = zip(frame["dataset"], frame["panel"], strict=True)
    rivals = [panel.removeprefix(f"{name}: against ") for name, panel in pairs]
    rows = pd.Series([SHORT.get(name, spoken(name)) for name in rivals], frame.index)
    keys = [frame["dataset"], rows]
    counts = low.groupby(keys).transform("sum").astype(str)
    sizes = low.groupby(keys).transform("size").astype(str)
    shares = low.groupby(frame["dataset"]).mean()
    worst = low[frame["dataset"] == shares.idxmin()]
    order = "; ".join(map(spoken, dict.fromkeys(frame["posterior"])))
    return row_dots(
        frame.assign(
            panel=frame["definition"].map(spoken).str.replace(" CV", ""),
            group=frame["dataset"].map(spoken),
            row="against " + rows,
            lane=frame["posterior"],
            value=frame["quotient"],
            mark=marks,
            note=counts + " of " + sizes,
        ),
        marks=STEADIER,
        label="CV of Guided Backprop / CV of the rival (right: how often steadier)",
        caption=f"Line: {OVER_EXAMPLES}. A panel per definition of the CV. "
        f"From the top of a row: {order}.",
        line=1,
        log=True,
        title=f"Guided Backprop is steadier in {low.sum()} of {len(low)} comparisons; "
        f"fewest on {spoken(shares.idxmin())}, {worst.sum()} of {len(worst)}",
    )


def calibration_dots(frame: pd.DataFrame) -> Figure:
    """Draw how far each posterior lies behind the first by each score, at the usual T.

    Args:
        frame: columns dataset, criterion, size, who, value, low, high and tied.
    """
    by = ["criterion", "dataset"]
    usual = frame[frame["size"] == "usual"].assign(good=-1)
    usual = behind_first(usual, by)
    marks = usual["tied"].map({True: PLACES[2], False: PLACES[1]})
    ties = usual.groupby(by, sort=False)["tied"].sum()
    firsts = usual[usual["first"]].set_index(by)["who"]
    leader = firsts.value_counts().idxmax()
    alone = (firsts == leader) & (ties == 1)
    sets = ", ".join(map(spoken, dict.fromkeys(usual["dataset"])))
    return row_dots(
        usual.assign(
            panel=usual["criterion"].map(spoken),
            group="",
            row=usual["who"].map(spoken),
            lane=usual["dataset"],
            mark=marks.where(~usual["first"], PLACES[0]),
        ),
        marks=PLACES,
        label="distance behind the first, in half-widths of an interval",
        caption="Line: 95 % bootstrap over trainings and examples. "
        f"From the top of a row: {sets}.",
        line=0,
        title=f"{spoken(leader)} is first in {(firsts == leader).sum()} of "
        f"{len(firsts)} contests of calibration, beyond doubt in {alone.sum()}",
    )


def crosses(frame: pd.DataFrame) -> Figure:
    """NLL against insertion gain, a cross of two intervals each; a panel per data set.

    Args:
        frame: columns dataset, who, and nll, insertion, each also with _low and _high.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for number, row in enumerate(part.to_dict("records")):
            x, y, colour = row["nll"], row["insertion"], HUES[number]
            axes.plot(
                x,
                y,
                linestyle="",
                marker=MARKERS[number],
                color=colour,
                label=row["who"],
            )
            axes.hlines(y, row["nll_low"], row["nll_high"], color=colour, linewidth=1.5)
            axes.vlines(
                x,
                row["insertion_low"],
                row["insertion_high"],
                color=colour,
                linewidth=1.5,
            )

    labels, title = (
        ("NLL (nats; bars: 95 % bootstrap)", "insertion gain"),
        "Better predictions, better explanations?",
    )
    figure = panels(
        frame,
        draw,
        by="dataset",
        labels=labels,
        share="",
        columns=2,
        size=(5.2, 4.2),
        title=title,
    )
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", fontsize=12, frameon=False)
    return figure
