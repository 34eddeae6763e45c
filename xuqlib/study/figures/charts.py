"""Charts of tidy frames: lines, bars and dots, each with its interval; and the look that every figure shares.

Large type, colours told apart by colour-blind readers and in grey, and no interval without what it is of.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator

from xuqlib.checks import check_choice
from xuqlib.study.checked import Column, Table, check_columns, checked
from xuqlib.study.names import in_words, known

# Okabe and Ito's colours without black, in an order whose neighbours also differ in lightness.
HUES = ("#0072B2", "#E69F00", "#009E73", "#F0E442", "#D55E00", "#56B4E9", "#CC79A7")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
LOOK: Any = {  # rcParams; matplotlib types their names one by one
    "font.size": 15,
    "axes.titlesize": 15,
    "axes.labelsize": 15,
    "figure.titlesize": 17,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "lines.linewidth": 2.5,
    "lines.markersize": 8,
    "image.interpolation": "nearest",
    "figure.dpi": 72,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a name may hold dollar signs
}
Options = ParamSpec("Options")


def _worded(format_ticks: Callable[[Any], list[str]], values: Any) -> list[str]:
    return [in_words(label) for label in format_ticks(values)]


class Picture(Figure):
    """A matplotlib Figure that a notebook shows when it is the value of a cell, whether or not pyplot was imported.

    No text of it is a formula, and every sign is `seen`: names that come with data may hold dollar signs, and worse.
    Names of our code are shown `in_words`. While $XUQ_SMALL is set, as for stored notebooks, it is shown small.
    """

    def draw(self, renderer: RendererBase) -> None:
        """Draw it, whoever put text into it, and when."""
        with mpl.rc_context({"text.parse_math": False}):  # ticks are made while they are drawn
            for axis in (each for axes in self.axes for each in (axes.xaxis, axes.yaxis)):
                ticks = axis.get_major_formatter()
                if not isinstance(ticks.format_ticks, partial):  # drawn before
                    setattr(ticks, "format_ticks", partial(_worded, ticks.format_ticks))  # noqa: B010, mypy
            for text in self.findobj(Text):
                text.set_parse_math(False)
                text.set_text(in_words(text.get_text()))
            super().draw(renderer)

    def _repr_png_(self) -> bytes | tuple[bytes, dict[str, int]]:
        import PIL.Image

        full, small = io.BytesIO(), io.BytesIO()
        if not os.environ.get("XUQ_SMALL"):
            self.savefig(full, format="png", dpi=144, metadata={"Software": None})
            with PIL.Image.open(full) as picture:
                return full.getvalue(), {"width": picture.width // 2, "height": picture.height // 2}
        self.savefig(full, format="png", dpi=60, metadata={"Software": None})
        colours = 256 if any(axes.images for axes in self.axes) else 64  # a palette: a third of the bytes
        with PIL.Image.open(full) as picture:
            flat = picture.convert("RGB").quantize(colours, dither=PIL.Image.Dither.NONE)
            flat.save(small, format="png", optimize=True)
        return small.getvalue()


def styled(draw: Callable[Options, Figure]) -> Callable[Options, Figure]:
    """Draw in the study's look and leave matplotlib's settings as they were."""

    @wraps(draw)
    def styled(*args: Options.args, **kwargs: Options.kwargs) -> Figure:
        with mpl.rc_context(LOOK):
            return draw(*args, **kwargs)

    return styled


@styled
@checked
def feature_bars(frame: Table, *, hue: Column | None = None, title: str = "", unit: str = "") -> Figure:
    """Signed bars, one per feature: mean attribution, and how far it spreads over draws (one standard deviation).

    Args:
        frame: columns feature, mean, std, and `hue` if given; features keep their order.
        hue: column that makes one panel per value, side by side on one scale.
        title: the claim of the figure.
        unit: unit of the attribution.
    """
    check_columns(frame, "feature", "mean", "std")
    panels = [("", frame)] if hue is None else [(known(name), part) for name, part in frame.groupby(hue, sort=False)]
    names = list(dict.fromkeys(frame["feature"]))
    width = 4.0 if len(panels) < 3 else 2.7
    figure = Picture(figsize=(2.5 + width * len(panels), 1.8 + 0.5 * len(names)))
    grid = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (name, part) in zip(grid, panels, strict=True):
        colours = [HUES[0] if mean >= 0 else HUES[1] for mean in part["mean"]]
        places = [names.index(name) for name in part["feature"]]
        axes.barh(places, part["mean"], xerr=part["std"], color=colours, edgecolor="black", capsize=5)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_title(name)
    grid[0].set_yticks(range(len(names)), [known(name) for name in names])
    grid[0].invert_yaxis()
    figure.supxlabel(f"attribution{f' ({unit})' if unit else ''}; error bars: spread over draws (1 sd)", fontsize=14)
    figure.suptitle(title)
    return figure


def _chart(
    draw: Callable[[Axes, pd.DataFrame, str, int, int], None],
    frame: pd.DataFrame,
    hue: str | None,
    ends: tuple[str | None, str | None],
    interval: str,
    labels: tuple[str, str],
    title: str,
) -> Figure:
    """One axes on which `draw` adds each group of `hue`: (axes, part of the frame, its name, its place, how many)."""
    if None in ends and ends != (None, None):
        raise ValueError(f"low is {ends[0]!r} and high is {ends[1]!r}; name both columns, or neither")
    if None not in ends and not interval:
        raise ValueError("an interval needs a label; pass interval='95 % over examples', or what it is of")
    figure = Picture(figsize=(9, 5.2 if hue is None else 6.0))
    axes = figure.subplots()
    groups = [("", frame)] if hue is None else [(known(name), part) for name, part in frame.groupby(hue, sort=False)]
    for place, (name, part) in enumerate(groups):
        draw(axes, part, name, place, len(groups))
    axes.set(xlabel=labels[0], ylabel=labels[1] + (f"\n(interval: {interval})" if interval else ""))
    axes.yaxis.label.set_fontsize(13 if interval else 15)  # two lines have to fit beside the axes
    if hue is not None:
        _legend_below(figure)
    figure.suptitle(title)
    return figure


def _legend_below(figure: Figure) -> None:
    """One legend under the axes, in as many columns, up to three, as the figure is wide enough for."""
    for columns in (3, 2, 1):
        legend = figure.legend(loc="outside lower center", ncols=columns)
        needed = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width
        if needed <= figure.bbox.width or columns == 1:
            break
        legend.remove()


@styled
@checked
def curve(
    frame: Table,
    *,
    x: Column,
    y: Column,
    hue: Column | None = None,
    low: Column | None = None,
    high: Column | None = None,
    interval: str = "",
    log: str = "",
    labels: tuple[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Lines of `y` over `x`, one per value of `hue`, told apart by colour, dash and marker.

    Args:
        frame: one point per row.
        x, y, hue: column names.
        low, high: columns of a band around y.
        interval: what the band is of, such as "95 % over examples"; required with low and high.
        log: axes that are logarithmic: "", "x", "y" or "xy".
        labels: axis labels with units, instead of the column names.
        title: the claim of the figure.

    Raises:
        ValueError: a band without a label, or with one end.
    """

    check_choice(log, ("", "x", "y", "xy"), "log")

    def draw(axes: Axes, part: pd.DataFrame, name: str, i: int, _: int) -> None:
        colour, dash, marker = HUES[i % len(HUES)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]
        axes.plot(part[x], part[y], label=name, color=colour, linestyle=dash, marker=marker)
        if low is not None and high is not None:
            axes.fill_between(part[x], part[low], part[high], color=colour, alpha=0.18, linewidth=0)

    figure = _chart(draw, frame, hue, (low, high), interval, labels or (x, y), title)
    if "x" in log:
        ticks = sorted(set(frame[x]))[:: 1 + frame[x].nunique() // 10]
        figure.axes[0].set_xscale("log")
        figure.axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        figure.axes[0].set_xticks([], minor=True)
    if "y" in log:
        figure.axes[0].set_yscale("log")
        figure.axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        figure.axes[0].yaxis.set_major_formatter("{x:g}")
        figure.axes[0].yaxis.set_minor_locator(NullLocator())
    return figure


@styled
@checked
def bars(
    frame: Table,
    *,
    x: Column,
    y: Column,
    hue: Column | None = None,
    low: Column | None = None,
    high: Column | None = None,
    interval: str = "",
    labels: tuple[str, str] | None = None,
    title: str = "",
) -> Figure:
    """Bars of `y` for each `x`, side by side by `hue`, told apart by colour and hatch; options as in `curve`.

    An underscore in a name under the axis breaks its line.
    """
    names = list(dict.fromkeys(frame[x]))

    def draw(axes: Axes, part: pd.DataFrame, name: str, i: int, count: int) -> None:
        places = np.array([names.index(value) for value in part[x]]) + (i - (count - 1) / 2) * 0.8 / count
        error = None if low is None else np.abs(np.array([part[y] - part[low], part[high] - part[y]]))
        look: dict[str, Any] = {"color": HUES[i % len(HUES)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
        axes.bar(places, part[y], 0.8 / count, yerr=error, label=name, capsize=5, ecolor="#444444", **look)

    figure = _chart(draw, frame, hue, (low, high), interval, labels or (x, y), title)
    figure.axes[0].set_xticks(
        range(len(names)), [known(name).replace(" ", "\n", 1).replace("_", "\n") for name in names]
    )
    return figure


@styled
@checked
def dots(
    frame: Table,
    *,
    x: Column,
    y: Column,
    hue: Column | None = None,
    low: Column | None = None,
    high: Column | None = None,
    interval: str = "",
    target: Column | None = None,
    log: bool = False,
    label: str,
    title: str = "",
) -> Figure:
    """Dots of `x` for each name in `y`, in their order from the top, told apart by `hue`; options as in `curve`.

    Args:
        target: column of the value that a dot should reach, drawn as an upright bar; NaN draws none.
        log: whether x is on a logarithmic axis.
        label: of x, with its unit.
    """
    names = list(dict.fromkeys(frame[y]))

    def draw(axes: Axes, part: pd.DataFrame, name: str, i: int, count: int) -> None:
        places = np.array([names.index(value) for value in part[y]]) + (i - (count - 1) / 2) * 0.24
        error = None if low is None else np.abs(np.array([part[x] - part[low], part[high] - part[x]]))
        axes.errorbar(part[x], places, xerr=error, label=name, color=HUES[i], fmt=MARKERS[i], elinewidth=2.5)
        if target is not None:
            text = "target" if i == count - 1 else None
            axes.plot(part[target], places, "|", color="black", markersize=15, markeredgewidth=3, label=text)

    figure = _chart(draw, frame, hue, (low, high), interval, ("", ""), title)
    figure.set_size_inches(10, 2.2 + 0.46 * len(names))
    axes = figure.axes[0]
    axes.set(xlabel=label + (f" (line: {interval})" if interval else ""), ylabel="")
    axes.set_yticks(range(len(names)), [known(name) for name in names])
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
        low_end, high_end = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high_end < 100 * low_end else (1,)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    return figure
