"""Tables and figures of notebook 10: scores of many maps, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xuqlib.study.figures.charts import HUES, LINES, MARKERS
from xuqlib.study.figures.maps import map_grid
from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_EXAMPLES, over_examples

COLOURS = [*HUES[:3], *HUES[4:]]  # yellow is too pale for a mark


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
    frame: pd.DataFrame, names: Sequence[str], *, title: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw the mean fall of the uncertainty up to 10 % of the pixels; and the frame.

    Args:
        frame: columns dataset, map, share, example, murr; trainings are averaged first.
        names: maps to draw; the first, the ceiling, in black.
        title: the claim of the figure.
    """
    each = frame[frame["map"].isin(names) & (frame["share"] <= 0.1)]
    each = (
        each.groupby(["dataset", "map", "share", "example"], sort=False)["murr"]
        .mean()
        .reset_index()
    )
    points = over_examples(each, ["dataset", "map", "share"], "murr")

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
    title = f"{title}\n(bands: {OVER_EXAMPLES})"
    figure = panels(
        points, draw, by="dataset", labels=("", ""), columns=2, size=size, title=title
    )
    _label(figure, "share of pixels blurred", "highest fall of U so far")
    return _with_legend(figure, 3), points


def rival_dots(
    points: pd.DataFrame, *, title: str, columns: int = 4, line: str = ""
) -> Figure:
    """Draw a row per map, a panel per value of "panel", marks told apart by "hue".

    Args:
        points: columns panel, map, hue, value, low, high; and `line`, if given.
        title: the claim of the figure.
        columns: panels side by side.
        line: column whose first value in a panel is an upright line, such as chance.
    """
    names, hues = (list(dict.fromkeys(points[column])) for column in ("map", "hue"))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for place in range(0, len(names), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", zorder=0)
        for i, hue in enumerate(hues):
            rows = part[part["hue"] == hue]
            axes.errorbar(
                rows["value"],
                [
                    names.index(name) + 0.7 * ((i + 0.5) / len(hues) - 0.5)
                    for name in rows["map"]
                ],
                xerr=[rows["value"] - rows["low"], rows["high"] - rows["value"]],
                fmt=MARKERS[i],
                color=COLOURS[i],
                label=hue,
                markersize=7,
                elinewidth=2,
            )
        if line:
            axes.axvline(part[line].iloc[0], color="black", linewidth=2)
        axes.set(
            yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5)
        )

    across = min(columns, points["panel"].nunique())
    size = (
        4.2 + 3.0 / across,
        1.2 + (0.3 + 0.06 * len(hues)) * len(names),
    )  # room for the names, and for the rows
    title = f"{title}\n(bars: {OVER_EXAMPLES})"
    figure = panels(
        points,
        draw,
        by="panel",
        labels=("", ""),
        share="y",
        columns=columns,
        size=size,
        title=title,
    )
    return _with_legend(figure, len(hues)) if len(hues) > 1 else figure


def cost_panels(
    scores: pd.DataFrame,
    families: Mapping[str, Sequence[str]],
    labelled: Sequence[str],
    *,
    title: str,
) -> tuple[Figure, pd.DataFrame]:
    """Draw the score against the seconds of each map; and the frame.

    Args:
        scores: columns dataset, map, seconds and auc_urr, a row per example.
        families: family to names of its maps; others are left out.
        labelled: maps whose name is written beside their mark.
        title: the claim of the figure.
    """
    points = (
        scores.groupby(["dataset", "map"], sort=False)[["seconds", "auc_urr"]]
        .mean()
        .reset_index()
    )
    points["family"] = points["map"].map(
        {name: key for key, names in families.items() for name in names}
    )
    points = points.dropna()

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for i, family in enumerate(families):
            rows = part[part["family"] == family]
            axes.plot(
                rows["seconds"],
                rows["auc_urr"],
                MARKERS[i % len(MARKERS)],
                color=COLOURS[i % len(COLOURS)],
                label=family,
                markersize=10,
            )
        for _, row in part[part["map"].isin(labelled)].iterrows():
            below = (
                row["map"] == "UA-Backprop (paper)"
            )  # its neighbour has nearly the same cost and score
            axes.annotate(
                row["map"],
                (row["seconds"], row["auc_urr"]),
                xytext=(0, -7 if below else 7),
                textcoords="offset points",
                ha="right" if row["seconds"] > part["seconds"].median() else "left",
                va="top" if below else "bottom",
                fontsize=11,
            )
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.12)  # the highest label stays below the title

    figure = panels(
        points,
        draw,
        by="dataset",
        labels=("", ""),
        share="",
        columns=2,
        size=(7.0, 5.2),
        title=title,
    )
    _label(figure, "seconds per picture, one thread", "mean AUC-URR at 5 %")
    return _with_legend(figure, 3), points


def rival_maps(
    picture: Tensor,
    truth: Tensor,
    maps: Mapping[str, Tensor],
    *,
    dataset: str,
    title: str,
) -> tuple[Figure, pd.DataFrame]:
    """Draw an image and its maps, over their largest |value|; and the frame."""
    shown = {
        name: values / values.abs().max().clamp(min=1e-30)
        for name, values in maps.items()
    }
    names, left, heads = (
        list(shown),
        [picture, truth.to(picture)],
        ["picture", "to be found"],
    )
    rows: list[list[Tensor | None]] = []
    for first in range(0, len(names), 6):
        row = [shown[name] for name in names[first : first + 6]]
        rows.append([left.pop(0) if left else None, *row, *[None] * (6 - len(row))])
    figure = map_grid(
        rows,
        kinds=["picture", *["signed"] * 6],
        column_titles=[""] * 7,
        dataset=dataset,
        title=title,
    )
    figure.set_size_inches(
        figure.get_figwidth(), figure.get_figheight() + 0.7 * len(rows)
    )  # titles of two lines
    for i in range(len(rows)):
        titles = [heads[i] if i < len(heads) else "", *names[6 * i : 6 * i + 6]]
        for axes, name in zip(figure.axes[7 * i :], titles, strict=False):
            axes.set_title(name.replace(" (", "\n(").replace(", ", ",\n"), fontsize=13)
    return figure, pd.DataFrame(
        {name: values.flatten().numpy() for name, values in shown.items()}
    )


def _label(figure: Figure, x: str, y: str) -> None:
    """Label the axes: a label of the whole figure would lie under the legend."""
    for axes in figure.axes:
        axes.set_xlabel(x if axes.get_visible() else "")
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(y)


def _with_legend(figure: Figure, columns: int) -> Figure:
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=columns, fontsize=14, frameon=False
    )
    return figure
