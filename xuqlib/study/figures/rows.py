"""Many numbers, one message: rows of dots, the same rows in every panel, and a single accent colour."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator

from xuqlib.study.checked import Columns, Finite, Names, Table, check_columns, checked
from xuqlib.study.figures.charts import HUES, Picture, styled
from xuqlib.study.names import known

ACCENT, DARK, PALE = HUES[0], "#444444", "#8a8a8a"
# Colour, marker and face of the first, the second and the third mark: told apart by shape and filling, too.
MARKS = ((ACCENT, "o", ACCENT), (DARK, "s", DARK), (PALE, "o", "white"))
WIDTH = 10.0  # inches
HEAD, LINE, LANE = 0.33, 0.36, 0.115  # inches: a group's name, a row of one dot, each dot of a row of many


@checked
def behind_first(frame: Table, by: Columns) -> pd.DataFrame:
    """How far each value lies behind the best of its contest: scores of unlike units on one scale.

    Args:
        frame: columns value, low, high, and good: 1 where large is good, -1 where small is.
        by: columns whose values make a contest.

    Returns:
        The frame with value, low and high as distances, in half-widths of an interval (the mean of the contest's; 0
        for the best, and everywhere where no interval has a width), and `first`, True for the best.
    """
    check_columns(frame, "value", "low", "high", "good", *by)
    keys = [frame[name] for name in by]
    score, half = frame["value"] * frame["good"], (frame["high"] - frame["low"]) / 2
    best, unit = score.groupby(keys).transform("max"), half.groupby(keys).transform("mean")
    ends = [(best - frame[end] * frame["good"]).div(unit).where(unit > 0, 0.0) for end in ("low", "high")]
    leads = score.groupby(keys).rank(ascending=False, method="first") == 1
    return frame.assign(
        value=(best - score).div(unit).where(unit > 0, 0.0),
        low=pd.concat(ends, axis=1).min(axis=1),
        high=pd.concat(ends, axis=1).max(axis=1),
        first=leads,
    )


def _wrapped(text: str, width: float) -> str:
    """The text in as few lines of so many letters as it needs, all of them about as long."""
    lines = fill(text, int(width)).count("\n")
    return next((found for w in range(8, int(width)) if (found := fill(text, w)).count("\n") == lines), text)


def _looks(marks: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Look of each mark: the accent first, the hollow one last."""
    return dict(zip(marks, MARKS if len(marks) == len(MARKS) else MARKS[::2], strict=False))


def _places(frame: pd.DataFrame) -> tuple[dict[tuple[str, str], float], dict[str, float], float, float]:
    """Where each row and each group's name stands, in inches from the top; the height of a row; and of all."""
    lanes = frame["lane"].nunique() if "lane" in frame else 1
    height, at = max(LINE, LANE * (lanes + 1)), 0.0
    rows: dict[tuple[str, str], float] = {}
    heads: dict[str, float] = {}
    pairs = frame[["group", "row"]].drop_duplicates()
    for group in dict.fromkeys(pairs["group"]):
        if group:
            heads[group] = at + HEAD / 2
            at += HEAD
        for row in pairs.loc[pairs["group"] == group, "row"]:
            rows[group, row] = at + height / 2
            at += height
    return rows, heads, height, at


def _draw(
    axes: Axes, part: pd.DataFrame, marks: Sequence[str], rows: dict[tuple[str, str], float], lanes: list[str]
) -> None:
    size: dict[str, Any] = {"markersize": 6 if lanes else 9, "markeredgewidth": 1.6}
    for mark, (colour, marker, face) in reversed(_looks(marks).items()):
        some = part[part["mark"] == mark]
        places = [rows[key] for key in zip(some["group"], some["row"], strict=True)]
        if lanes:
            shifts = [LANE * (lanes.index(lane) - (len(lanes) - 1) / 2) for lane in some["lane"]]
            places = [place + shift for place, shift in zip(places, shifts, strict=True)]
        axes.hlines(places, some["low"], some["high"], color=colour, linewidth=1.4 if lanes else 2.2)
        axes.plot(some["value"], places, marker, color=colour, markerfacecolor=face, **size)


def _scale(axes: Axes, log: bool, ticks: int) -> None:
    if not log:
        axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
        return
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    places = [step * 10.0**power for power in range(-9, 10) for step in (1, 2, 5)]
    seen = [place for place in places if low <= place <= high]
    few = seen if len(seen) <= ticks else [place for place in seen if place in places[::3]]
    axes.set_xticks(few, [f"{place:g}" for place in few])
    axes.set_xticks([], minor=True)


@styled
@checked
def row_dots(
    frame: Table,
    *,
    marks: Names,
    label: str,
    caption: str = "",
    line: Finite | None = None,
    log: bool = False,
    own: bool = False,
    title: str = "",
) -> Figure:
    """Dots with intervals in rows, under the names of groups, once in each panel; colour says one thing alone.

    Args:
        frame: a dot per line: columns panel, group ("" for none), row, value, low, high and mark. If it has a column
            lane, a row holds a dot for each of its values, in order from the top. A column note, the same in all
            panels of a row, is written at its right end.
        marks: values of mark, up to three: the accent, dark, and hollow. More than one are named below.
        label: of the values, with their unit.
        caption: what a line is of, and what else there is to know.
        line: value at which an upright line stands.
        log: whether values are on a logarithmic axis.
        own: whether each panel has its own scale.
        title: the claim of the figure.

    Raises:
        ValueError: a column is missing, or there are more than three marks.
    """
    check_columns(frame, "panel", "group", "row", "value", "low", "high", "mark")
    if len(marks) > len(MARKS):
        raise ValueError(f"marks has {len(marks)} entries; pass up to {len(MARKS)}, since more cannot be told apart")
    if strangers := sorted({str(mark) for mark in frame["mark"]} - {str(mark) for mark in marks}):
        raise ValueError(f"mark is {strangers[0]!r}, which is not in marks; pass marks with all of its values")
    rows, heads, height, total = _places(frame)
    lanes = list(dict.fromkeys(frame["lane"])) if "lane" in frame else []
    panels = list(frame.groupby("panel", sort=False))
    title, caption = _wrapped(title[:1].upper() + title[1:], 7 * WIDTH), _wrapped(caption, 8 * WIDTH)
    names = [_wrapped(known(name), 5.6 * WIDTH / len(panels)) for name, _ in panels]
    lines = title.count("\n") + max(name.count("\n") for name in names) + caption.count("\n")
    figure = Picture(figsize=(WIDTH, total + 2.4 + 0.28 * lines))
    figure.set_layout_engine("constrained", w_pad=0.1)
    grid = figure.subplots(1, len(panels), sharex=not own, sharey=True, squeeze=False)[0]
    for axes, (_, part), name in zip(grid, panels, names, strict=True):
        for number, place in enumerate(rows.values()):
            if number % 2 == 0:
                axes.axhspan(place - height / 2, place + height / 2, color="#f1f1f1", linewidth=0, zorder=0)
        if line is not None:
            axes.axvline(line, color="black", linewidth=1.2)
        _draw(axes, part, marks, rows, lanes)
        _scale(axes, log, max(3 if log else 4, 7 - len(panels)))
        axes.grid(visible=False, axis="y")
        axes.set_title(name)
        axes.tick_params(axis="y", length=0)
    places = [*heads.values(), *rows.values()]
    texts = [known(name) for name in [*heads, *(row for _, row in rows)]]
    grid[0].set_yticks(places, texts)
    for text in grid[0].get_yticklabels()[: len(heads)]:
        text.set_fontweight("bold")
    grid[0].set_ylim(total, 0)
    if "note" in frame:
        notes = frame.drop_duplicates(["group", "row"]).set_index(["group", "row"])["note"]
        right = grid[-1].secondary_yaxis("right")
        right.yaxis.set_major_locator(FixedLocator(list(rows.values())))
        right.set_yticks(list(rows.values()), [str(notes[key]) for key in rows])
        right.tick_params(length=0)
        right.spines["right"].set_visible(False)
    _below(figure, marks, f"{label}\n{caption}".strip())
    figure.suptitle(title)
    return figure


def _below(figure: Figure, marks: Sequence[str], text: str) -> None:
    """What the values are and, where there are several marks, which is which."""
    if len(marks) == 1:
        figure.supxlabel(text, fontsize=15)
        return
    handles = [
        Line2D([], [], label=mark, linestyle="", color=colour, marker=marker, markerfacecolor=face, markeredgewidth=1.6)
        for mark, (colour, marker, face) in _looks(marks).items()
    ]
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(marks),
        title=text,
        fontsize=15,
        title_fontsize=15,
        handletextpad=0.2,
        columnspacing=1.5,
    )
    legend.get_title().set_multialignment("center")
