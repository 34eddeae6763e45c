"""Figures of notebook 19: coloured words, and how well maps find a word."""

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
from xuqlib.study.names import plain

LETTER = 0.125  # width of a letter in inches, at 14 points


def word_frame(
    words: Sequence[str], rows: Mapping[str, tuple[Tensor, str, str]]
) -> pd.DataFrame:
    """One row per map and word: map, kind, unit, place, word, value.

    Args:
        words: of the sentence.
        rows: values, kind and unit of each map, by its name.
    """
    parts = [
        pd.DataFrame(
            {
                "map": name,
                "kind": kind,
                "unit": unit,
                "place": range(len(words)),
                "word": words,
                "value": np.asarray(values)[: len(words)],
            }
        )
        for name, (values, kind, unit) in rows.items()
    ]
    return pd.concat(parts, ignore_index=True)


@styled
def coloured_words(frame: pd.DataFrame, *, title: str) -> Figure:
    """Print a sentence once for each map, every word on the colour of its value.

    Args:
        frame: from `word_frame`; kind "signed" is coloured from -limit to limit,
            "spread" from 0 to limit, where the limit is the largest |value| of a map,
            and "truth" is 0 or 1.
        title: the finding.
    """
    maps = list(dict.fromkeys(frame["map"]))
    words = frame.loc[frame["map"] == maps[0], "word"].map(plain).tolist()
    ends = np.cumsum([len(word) + 1.6 for word in words])
    figure = Picture(
        figsize=(max(7.2, LETTER * ends[-1] + 0.6), 1.0 + 0.78 * len(maps))
    )
    axes = figure.subplots()
    for row, name in enumerate(maps):
        part = frame[frame["map"] == name]
        kind, unit = part[["kind", "unit"]].iloc[0]
        top = float(part["value"].abs().max()) or 1.0
        scale: str | Colormap = COLOURS["ratio" if kind == "truth" else kind]
        colours = colormaps[scale] if isinstance(scale, str) else scale
        for word, end, value in zip(words, ends, part["value"], strict=True):
            share = (value / top + 1) / 2 if kind == "signed" else value / top
            red, green, blue, _ = colours(float(share))
            width = len(word) + 1.6
            place = (end - width, row - 0.26)
            axes.add_patch(
                Rectangle(place, width - 0.15, 0.56, color=colours(float(share)))
            )
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
    axes.set(xlim=(-0.2, max(ends[-1], 54)), ylim=(len(maps) - 0.55, -0.75))
    axes.axis("off")
    figure.suptitle(title)
    return figure


@styled
def rank_dots(points: pd.DataFrame, *, interval: str, title: str) -> Figure:
    """Draw a row per map, a panel per word to be found, marks by posterior.

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

    said = f"(share of other words ranked below it; line: chance; bars: {interval})"
    figure = panels(
        points,
        draw,
        by="panel",
        labels=("", ""),
        columns=3,
        size=(4.4, 5.4),
        title=f"{title}\n{said}",
    )
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=15)
    return figure
