"""Figures of notebook 19: sentences whose words are coloured, and how well maps find a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from xuqlib.study.figures.charts import HUES, MARKERS, Picture, styled
from xuqlib.study.figures.maps import COLOURS
from xuqlib.study.figures.panels import panels

LETTER = 0.125  # width of a letter in inches, at 14 points


def word_frame(
    words: Sequence[str], rows: Mapping[str, tuple[Tensor, str]]
) -> pd.DataFrame:
    """One row per map and word: map, kind, place, word, value."""
    parts = [
        pd.DataFrame(
            {
                "map": name,
                "kind": kind,
                "place": range(len(words)),
                "word": words,
                "value": np.asarray(values)[: len(words)],
            }
        )
        for name, (values, kind) in rows.items()
    ]
    return pd.concat(parts, ignore_index=True)


@styled
def coloured_words(frame: pd.DataFrame, *, unit: str, title: str) -> Figure:
    """Print a sentence once for each map, every word on the colour of its value.

    Args:
        frame: from `word_frame`; kind "signed" is coloured from -limit to limit, "spread" from 0 to limit, where the
            limit is the largest |value| of a map, and "truth" is 0 or 1.
        unit: of the values.
        title: the finding.
    """
    maps = list(dict.fromkeys(frame["map"]))
    words = frame.loc[frame["map"] == maps[0], "word"].astype(str).tolist()
    ends = np.cumsum([len(word) + 1.6 for word in words])
    figure = Picture(figsize=(max(9.0, LETTER * ends[-1] + 0.6), 1.0 + 0.78 * len(maps)))
    axes = figure.subplots()
    for row, name in enumerate(maps):
        part = frame[frame["map"] == name]
        kind, top = part["kind"].iloc[0], float(part["value"].abs().max()) or 1.0
        scale: str | Colormap = COLOURS["ratio" if kind == "truth" else kind]
        colours = colormaps[scale] if isinstance(scale, str) else scale
        for word, end, value in zip(words, ends, part["value"], strict=True):
            share = (value / top + 1) / 2 if kind == "signed" else value / top
            red, green, blue, _ = colours(float(share))
            width = len(word) + 1.6
            place = (end - width, row - 0.26)
            axes.add_patch(Rectangle(place, width - 0.15, 0.56, color=colours(float(share))))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            axes.text(
                end - width / 2 - 0.08,
                row + 0.03,
                word,
                ha="center",
                va="center",
                family="monospace",
                fontsize=14,
                color="white" if dark else "black",
            )
        scaled = {"signed": f"±{top:.2g} {unit}", "spread": f"0 to {top:.2g} {unit}"}
        label = name + (f"  ({scaled[kind]})" if kind in scaled else "")
        axes.text(0, row - 0.44, label, va="center", fontsize=13)
    axes.set(xlim=(-0.2, max(ends[-1], 70)), ylim=(len(maps) - 0.55, -0.75))
    axes.axis("off")
    figure.suptitle(title)
    return figure


def rank_dots(points: pd.DataFrame, *, interval: str, title: str) -> Figure:
    """Draw a row per map, a panel per word that is to be found, marks told apart by posterior.

    Args:
        points: columns panel, map, posterior, value, low and high.
        interval: what low and high are of.
        title: the finding.
    """
    names = list(dict.fromkeys(points["map"]))
    posteriors = list(dict.fromkeys(points["posterior"]))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for i, (name, rows) in enumerate(part.groupby("posterior", sort=False)):
            middle = rows["value"]
            axes.errorbar(
                middle,
                rows["map"].map(names.index) + 0.3 * (i - (len(posteriors) - 1) / 2),
                xerr=[middle - rows["low"], rows["high"] - middle],
                fmt=MARKERS[i],
                color=HUES[i],
                label=str(name).replace("_", " "),
                elinewidth=2.5,
            )
        axes.axvline(0.5, color="black", linewidth=1.5)
        axes.set(yticks=range(len(names)), yticklabels=names, xlim=(-0.03, 1.03))
        axes.set_ylim(len(names) - 0.5, -0.5)

    label = f"share of the other words ranked below it (black: chance; bars: {interval})"
    figure = panels(
        points,
        draw,
        by="panel",
        labels=(label, ""),
        columns=3,
        size=(4.4, 5.4),
        title=title,
    )
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=15)
    return figure
