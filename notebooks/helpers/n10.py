"""Figures of notebook 10: curves, gains of one map over another, and rows of scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xuqlib.study.figures.charts import HUES, LINES, MARKERS
from xuqlib.study.figures.maps import map_grid
from xuqlib.study.figures.panels import panels
from xuqlib.study.figures.rows import row_dots
from xuqlib.study.intervals import OVER_EXAMPLES, over_examples
from xuqlib.study.names import spoken

COLOURS = [*HUES[:3], *HUES[4:]]  # yellow is too pale for a mark
GAINS = ("above", "below", "undecided")
KINDS = ("right kind of uncertainty", "other kind")
WINDOWS = ("picture with patch", "clean picture", "window at random")
WHOSE = ("UA-Backprop", "other maps")


def mean_scores(
    frame: pd.DataFrame, by: Sequence[str], columns: Mapping[str, str | None]
) -> pd.DataFrame:
    """Mean over examples of several columns, and two standard errors either way.

    Args:
        frame: a row per example, after the mean over trainings.
        by: columns that tell groups apart.
        columns: column to the name of its panel; None where `by` has one.

    Returns:
        Columns `by`, value, low, high, and panel where `columns` names it.
    """
    parts = []
    for column, panel in columns.items():
        part = over_examples(frame, by, column).rename(columns={column: "value"})
        parts.append(part if panel is None else part.assign(panel=panel))
    return pd.concat(parts, ignore_index=True)


def curve_panels(
    frame: pd.DataFrame, names: Sequence[str], *, own: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw the mean fall of the uncertainty up to 10 % of the pixels; and the frame.

    Args:
        frame: columns dataset, training, map, share, example, murr. Images that one of
            the maps lacks are left out; trainings are averaged first.
        names: maps to draw; the first, the ceiling, in black.
        own: the map that the title is about.
    """
    each = frame[frame["map"].isin(names) & (frame["share"] <= 0.1)]
    keys = [each[name] for name in ("dataset", "training", "example")]
    each = each[each["map"].groupby(keys).transform("nunique") == len(names)]
    each = (
        each.groupby(["dataset", "map", "share", "example"], sort=False)["murr"]
        .mean()
        .reset_index()
    )
    points = over_examples(each, ["dataset", "map", "share"], "murr")
    at = points[np.isclose(points["share"], 0.05)]
    murr = at.pivot(index="dataset", columns="map", values="murr")
    part = murr[own] / murr[names[0]]

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for i, name in enumerate(names):
            line, colour = part[part["map"] == name], ["black", *COLOURS][i]
            axes.plot(
                line["share"],
                line["murr"],
                label=name,
                color=colour,
                linestyle=LINES[i % 4],
                marker=MARKERS[i],
                markersize=6,
            )
            axes.fill_between(
                line["share"],
                line["low"],
                line["high"],
                color=colour,
                alpha=0.12,
                linewidth=0,
            )

    size = (6.2, 4.4) if points["dataset"].nunique() > 1 else (9.0, 5.6)
    title = (
        f"With 5 % of the pixels {own} takes away\n{_span(part)} of what the ceiling "
        f"does (bands: {OVER_EXAMPLES})"
    )
    figure = panels(
        points.assign(dataset=points["dataset"].map(spoken)),
        draw,
        by="dataset",
        labels=("", ""),
        columns=2,
        size=size,
        title=title,
    )
    for axes in figure.axes:  # a label of the whole figure would lie under the legend
        axes.set_xlabel("share of pixels blurred" if axes.get_visible() else "")
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel("highest fall of U so far")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=3, fontsize=14, frameon=False
    )
    return figure, points


def _span(values: pd.Series, digits: int = 2) -> str:
    low, high = (f"{end:.{digits}f}" for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def gain_marks(points: pd.DataFrame) -> pd.Series:
    """Whether each interval lies above 0, below 0, or holds it."""
    ends = [points["low"] > 0, points["high"] <= 0]
    return pd.Series(np.select(ends, GAINS[:2], GAINS[2]), points.index)


def gain_dots(points: pd.DataFrame, *, title: str) -> Figure:
    """Draw how far one map is above another by AUC-URR at 5 %: a panel per data set.

    Args:
        points: columns dataset, group, row, value, low, high.
        title: the claim of the figure.
    """
    return row_dots(
        points.assign(panel=points["dataset"].map(spoken), mark=gain_marks(points)),
        marks=GAINS,
        label="AUC-URR at 5 %, difference",
        caption=f"Line: {OVER_EXAMPLES}.",
        line=0,
        title=title,
    )


def league_dots(points: pd.DataFrame, blind: Sequence[str]) -> Figure:
    """Draw how far a map of each league is above its rivals.

    Args:
        points: columns dataset, own, rival, value, low, high. The title is about the
            first own.
        blind: rivals that do not know the uncertainty, to be named first.
    """
    own = points["own"].iloc[0]
    mine = points[points["own"] == own].assign(mark=gain_marks)
    sure = mine["mark"] == GAINS[0]
    told = [
        f"{name} on {sure[mine['rival'] == name].sum()} of "
        f"{(mine['rival'] == name).sum()} data sets"
        for name in blind
    ]
    rest = ~mine["rival"].isin(blind)
    return gain_dots(
        points.assign(group=points["own"] + " less ...", row=points["rival"]),
        title=f"{own} is above {', above '.join(told)}; above other rivals of its "
        f"league in {sure[rest].sum()} of {rest.sum()} comparisons",
    )


def change_dots(points: pd.DataFrame) -> Figure:
    """Draw two gains while one thing changes at a time.

    Args:
        points: columns dataset, own, rival, change, value, low, high.
    """
    pairs = points[["own", "rival"]].drop_duplicates().itertuples(index=False)
    marks, told = gain_marks(points), []
    for own, rival in pairs:
        some = marks[(points["own"] == own) & (points["rival"] == rival)]
        told.append(
            f"{own} is above {rival} in {(some == GAINS[0]).sum()} of {len(some)} cases"
        )
    return gain_dots(
        points.assign(
            group=points["own"] + " less " + points["rival"], row=points["change"]
        ),
        title="; ".join(told),
    )


def anomaly_dots(points: pd.DataFrame) -> Figure:
    """Draw the overlap of the patch with each map's window, and with two controls.

    Args:
        points: columns dataset, map, window (of WINDOWS), value, low, high.
    """
    keys, patched = ["dataset", "map"], points["window"] == WINDOWS[0]
    controls = points[~patched].groupby(keys)["high"].max()
    own = points[patched].set_index(keys)["low"]
    found = own > controls.reindex(own.index)
    return row_dots(
        points.assign(
            panel=points["dataset"].map(spoken),
            group="",
            row=points["map"],
            mark=points["window"],
        ),
        marks=WINDOWS,
        label="IoU of window and patch",
        caption=f"Line: {OVER_EXAMPLES}.",
        title=f"{found.sum()} of {len(found)} windows overlap the patch more than "
        "both controls do",
    )


def truth_dots(
    points: pd.DataFrame, truths: pd.DataFrame, names: Sequence[str]
) -> Figure:
    """Draw how well maps of the right and of the other kind find each square.

    Args:
        points: columns patch, map, kind, right (whether the kind is), chance, value,
            low, high.
        truths: the images behind them: columns patch, map, example, right, rank.
        names: maps to draw.
    """
    some = truths[truths["map"].isin(names)]
    by = ["map", "patch"]
    wide = some.pivot(index=[*by, "example"], columns="right", values="rank").dropna()
    gain = over_examples(
        (wide[True] - wide[False]).reset_index(name="gain"), by, "gain"
    )
    drawn = points[points["map"].isin(names)]
    order = {name: place for place, name in enumerate(names)}
    drawn = drawn.sort_values("map", key=lambda each: each.map(order), kind="stable")
    return row_dots(
        drawn.assign(
            panel=drawn["patch"] + " square",
            group="",
            row=drawn["map"],
            mark=drawn["right"].map({True: KINDS[0], False: KINDS[1]}),
        ),
        marks=KINDS,
        label="rank accuracy (upright line: chance)",
        caption=f"Line: {OVER_EXAMPLES}.",
        line=float(drawn["chance"].mean()),
        title=f"In {(gain['low'] > 0).sum()} of {len(gain)} cases the map of the right "
        "kind of uncertainty finds the square better than that of the other kind",
    )


def cost_dots(
    points: pd.DataFrame, *, own: str, slow: str = "CLUE", fast: str = "gradient, abs"
) -> Figure:
    """Draw the seconds of each map.

    Args:
        points: columns dataset, family, map, seconds.
        own: the map that others are compared with; slow, fast: those that the title
            compares.
    """
    wide = points.pivot(index="dataset", columns="map", values="seconds")
    told = [_span(wide[name] / wide[own], 1) for name in (slow, fast)]
    mine = points["family"] == WHOSE[0]
    return row_dots(
        points.assign(
            panel=points["dataset"].map(spoken),
            group=points["family"],
            row=points["map"],
            value=points["seconds"],
            low=points["seconds"],
            high=points["seconds"],
            mark=mine.map({True: WHOSE[0], False: WHOSE[1]}),
        ),
        marks=WHOSE,
        label="seconds per picture, one thread",
        log=True,
        title=f"{slow} takes {told[0]} times as long as {own}; {fast}, {told[1]} times",
    )


def rival_maps(
    picture: Tensor,
    truth: Tensor,
    leagues: Mapping[str, Mapping[str, Tensor]],
    *,
    dataset: str,
    title: str,
) -> tuple[Figure, pd.DataFrame]:
    """Draw an image and its maps, a row per league; and the frame.

    Each map is divided by its largest |value|.

    Args:
        picture: (channel, height, width), at the head of the first row.
        truth: (height, width), what is to be found; at the head of the second.
        leagues: name of each to its maps by name, as many in each.
        dataset: name of the picture's data set.
        title: the claim of the figure.
    """
    heads = {"picture": picture, "to be found": truth.to(picture)}
    shown = {
        name: values / values.abs().max().clamp(min=1e-30)
        for maps in leagues.values()
        for name, values in maps.items()
    }
    rows = [
        [head, *(shown[name] for name in maps)]
        for head, maps in zip(heads.values(), leagues.values(), strict=True)
    ]
    figure = map_grid(
        rows,
        kinds=["picture", *["signed"] * (len(rows[0]) - 1)],
        column_titles=[""] * len(rows[0]),
        row_titles=list(leagues),
        dataset=dataset,
        title=title,
    )
    figure.set_size_inches(
        figure.get_figwidth(), figure.get_figheight() + 0.35 * len(rows)
    )  # titles of two lines
    names = [
        name
        for head, maps in zip(heads, leagues.values(), strict=True)
        for name in (head, *maps)
    ]
    for axes, name in zip(figure.axes, names, strict=False):
        axes.set_title(name.replace(" (", "\n(").replace(", ", ",\n"), fontsize=13)
    return figure, pd.DataFrame(
        {name: values.flatten().numpy() for name, values in shown.items()}
    )
