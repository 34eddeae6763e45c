"""UA-Backprop against every rival: tables, figures and claims of the tests in `pointing`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xuqlib.lessons.pointing import (
    CONTROL_NAMES,
    EPISTEMIC_ONLY,
    GREEDY,
    NAMES,
    OURS,
    SETTINGS_OF,
    Case,
    attacked,
    novel,
)
from xuqlib.lessons.sources import patch_scores
from xuqlib.study.figures.charts import HUES, LINES, MARKERS
from xuqlib.study.figures.maps import map_grid
from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_EXAMPLES, over_examples
from xuqlib.study.judging.anomaly import ada
from xuqlib.study.judging.rivals import RIVALS

SIGNED, PLAIN = NAMES["gradient_x_input"], NAMES["gradient"]
# What one picture is shown by: of each family the maps that look most unlike.
SHOWN = [*SETTINGS_OF.values(), OURS, PLAIN, SIGNED, *(NAMES[key] for key in ("ig_blurred", "fullgrad_of_u", "lime"))]
SHOWN += [NAMES["covgi_diag"], "CLUE", NAMES["distance_to_blur"], NAMES["fullgrad_of_prediction"]]
DRAWN = [GREEDY, OURS, *SETTINGS_OF.values(), SIGNED, NAMES["distance_to_blur"], "random"]
FAMILIES = {
    "UA-Backprop": [*SETTINGS_OF.values(), "UA-Backprop, linear"],
    OURS: [OURS],
    "explainers of U": [NAMES[key] for key in RIVALS if NAMES[key] not in EPISTEMIC_ONLY],
    "covariances": EPISTEMIC_ONLY,
    "generative": ["CLUE", "delta-CLUE", "path integral"],
    "controls": CONTROL_NAMES,
}
COLOURS = [*HUES[:3], *HUES[4:]]  # yellow is too pale for a mark
Points = pd.DataFrame  # columns panel, map, hue, value, low, high


def changes(
    each: Iterable[Mapping[str, Sequence[Case]]],
    *,
    num_examples: int,
    novel_of: Mapping[str, str],
    epsilon_of: Mapping[str, float],
    seed: int = 0,
) -> dict[str, tuple[list[Case], dict[str, str]]]:
    """What to change about the blurring test, one thing at a time: name to cases and options of `pointing.blur_scores`.

    Args:
        each: of `pointing.cases`, one per data set; the first training of each is taken, without its true classes.
        num_examples: of each.
        novel_of: data set to one whose pictures it does not know; others are left out.
        epsilon_of: data set to the strength of an attack; others are left out.
        seed: of the novel pictures.
    """
    per_set = list(each)
    firsts = {pictures: [case[pictures][0] for case in per_set] for pictures in ("uncertain", "random")}
    few = {key: [case._replace(x=case.x[:num_examples]) for case in found] for key, found in firsts.items()}
    plain, blind = few["uncertain"], {}
    blind["as before"] = blind["total uncertainty"] = blind["mean colour"] = blind["data mean"] = plain
    blind["random pictures"] = few["random"]
    blind["novel pictures"] = [
        novel(case, novel_of[case.dataset], seed=seed) for case in plain if case.dataset in novel_of
    ]
    hit = [case._replace(y=y) for case in plain if case.y is not None for y in [case.y[:num_examples]]]
    blind["attacked"] = [attacked(case, epsilon_of[case.dataset]) for case in hit if case.dataset in epsilon_of]
    options = {
        "total uncertainty": {"kind": "total"},
        "mean colour": {"fill": "mean_colour"},
        "data mean": {"fill": "data mean"},
    }
    return {
        key: ([case._replace(y=None) for case in found], options.get(key, {})) for key, found in blind.items() if found
    }


def at_budget(frame: pd.DataFrame, share: float = 0.05) -> pd.DataFrame:
    """Rows of `pointing.blur_scores` at one share of the pixels, each picture's mean over trainings."""
    by = ["dataset", "pictures", "kind", "fill", "map", "example"]
    columns = ["urr", "murr", "auc_urr", "kept", "right", "seconds"]
    return frame[np.isclose(frame["share"], share)].groupby(by, sort=False)[columns].mean().reset_index()


def mean_scores(frame: pd.DataFrame, by: Sequence[str], columns: Mapping[str, str | None]) -> Points:
    """Mean over examples of several columns, one below the other, with two standard errors either way.

    Args:
        frame: a row per example, after the mean over trainings.
        by: columns that tell groups apart.
        columns: column to the name of its panel; None where `by` has one.
    """
    parts = [over_examples(frame, by, column).rename(columns={column: "value"}) for column in columns]
    named = zip(parts, columns.values(), strict=True)
    return pd.concat([part if panel is None else part.assign(panel=panel) for part, panel in named], ignore_index=True)


def summary(frame: pd.DataFrame, budgets: Sequence[float]) -> pd.DataFrame:
    """Means over examples, a row per map: AUC-URR, MURR, kept and right at each budget."""
    parts = {}
    for share in budgets:
        part = at_budget(frame, share).groupby("map", sort=False)[["auc_urr", "murr", "kept", "right"]].mean()
        parts[f"{share:.0%}"] = part
    return pd.concat(parts, axis=1).swaplevel(axis=1).sort_index(axis=1, level=0, sort_remaining=False)


def anomaly_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean IoU, and ADA, the share of pictures whose IoU is above a half, of each map, of the same on clean pictures,
    and of random windows; a row per data set and map, over examples and trainings."""
    rows = []
    for (dataset, name), part in scores.groupby(["dataset", "map"], sort=False):
        row: dict[str, Any] = {"dataset": dataset, "map": name}
        for column in ("iou", "iou_clean", "iou_random"):
            values = torch.from_numpy(part[column].to_numpy(copy=True))
            row |= {column: float(values.mean()), column.replace("iou", "ada"): ada(values)}
        rows.append(row)
    return pd.DataFrame(rows)


def truth_table(
    maps: Mapping[int, Mapping[tuple[str, str], Tensor]], masks: Mapping[str, Tensor], kind: np.ndarray
) -> pd.DataFrame:
    """Rank and mass accuracy of each map of each kind on the planted squares, each picture's mean over trainings.

    Args:
        maps: training to maps, as `pointing.kind_maps` gives them.
        masks, kind: of the same pictures, as for `sources.patch_scores`.

    Returns:
        Columns patch ("ambiguous", "rare", "unseen"), map, kind, example, rank, mass, chance.
    """
    frame = pd.concat(patch_scores(each, masks, kind) for each in maps.values()).rename(columns={"setting": "kind"})
    frame = frame[~frame["patch"].str.contains(":")]
    by = ["patch", "map", "kind", "example"]
    return frame.groupby(by, sort=False)[["rank", "mass", "chance"]].mean().reset_index()


def curve_panels(frame: pd.DataFrame, *, title: str, limit: float = 0.1) -> tuple[Figure, pd.DataFrame]:
    """Draw the mean fall of the uncertainty along the way, one panel per data set, for the maps in `DRAWN`."""
    each = frame[frame["map"].isin(DRAWN) & (frame["share"] <= limit)]
    each = each.groupby(["dataset", "map", "share", "example"], sort=False)["murr"].mean().reset_index()
    points = over_examples(each, ["dataset", "map", "share"], "murr")

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for i, name in enumerate(DRAWN):
            line = part[part["map"] == name]
            look: dict[str, Any] = {
                "color": "black" if i == 0 else COLOURS[i - 1],
                "linestyle": LINES[i % 4],
            }
            axes.plot(line["share"], line["murr"], label=name, marker=MARKERS[i], markersize=6, **look)
            axes.fill_between(line["share"], line["low"], line["high"], color=look["color"], alpha=0.12, linewidth=0)

    several = points["dataset"].nunique() > 1
    look: dict[str, Any] = {"columns": 2, "size": (6.2, 4.4) if several else (9.0, 5.6)}
    look["title"] = f"{title}\n(bands: {OVER_EXAMPLES})"
    figure = panels(points, draw, by="dataset", labels=("", ""), **look)
    _label(figure, "share of pixels blurred", "highest fall of U so far")
    return _with_legend(figure, 3), points


def rival_dots(points: Points, *, title: str, columns: int = 4, line: str = "") -> Figure:
    """Draw a row per map, a panel per value of "panel", marks told apart by "hue".

    Args:
        points: columns panel, map, hue, value, low, high; and `line`, if given.
        title: the claim of the figure.
        columns: panels side by side.
        line: column whose first value in a panel is drawn as an upright line, such as chance.
    """
    names, hues = (list(dict.fromkeys(points[column])) for column in ("map", "hue"))

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for place in range(0, len(names), 2):
            axes.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", zorder=0)
        for i, hue in enumerate(hues):
            rows = part[part["hue"] == hue]
            places = [names.index(name) + 0.7 * ((i + 0.5) / len(hues) - 0.5) for name in rows["map"]]
            bars = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
            axes.errorbar(
                rows["value"],
                places,
                xerr=bars,
                fmt=MARKERS[i],
                color=COLOURS[i],
                label=hue,
                markersize=7,
                elinewidth=2,
            )
        if line:
            axes.axvline(part[line].iloc[0], color="black", linewidth=2)
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))

    across = min(columns, points["panel"].nunique())
    size = (4.2 + 3.0 / across, 1.2 + (0.3 + 0.06 * len(hues)) * len(names))  # room for the names, and for the rows
    look: dict[str, Any] = {"columns": columns, "size": size, "share": "y"}
    figure = panels(points, draw, by="panel", labels=("", ""), title=f"{title}\n(bars: {OVER_EXAMPLES})", **look)
    return _with_legend(figure, len(hues)) if len(hues) > 1 else figure


def cost_panels(frame: pd.DataFrame, *, title: str) -> tuple[Figure, pd.DataFrame]:
    """Draw the score against the seconds of each map, one panel per data set; `frame` is of `at_budget`."""
    points = frame.groupby(["dataset", "map"], sort=False)[["seconds", "auc_urr"]].mean().reset_index()
    points["family"] = points["map"].map({name: key for key, names in FAMILIES.items() for name in names})
    points = points.dropna()

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for i, family in enumerate(FAMILIES):
            rows = part[part["family"] == family]
            axes.plot(rows["seconds"], rows["auc_urr"], MARKERS[i], color=COLOURS[i], label=family, markersize=10)
        for _, row in part[part["map"].isin([*DRAWN, "CLUE"])].iterrows():
            low, slow = row["map"] == SETTINGS_OF["paper"], row["seconds"] > part["seconds"].median()
            look: dict[str, Any] = {"ha": "right" if slow else "left", "va": "top" if low else "bottom", "fontsize": 11}
            axes.annotate(
                row["map"],
                (row["seconds"], row["auc_urr"]),
                xytext=(0, -7 if low else 7),
                textcoords="offset points",
                **look,
            )
        axes.set_xscale("log")
        axes.margins(x=0.2, y=0.12)  # the highest label stays below the title

    figure = panels(points, draw, by="dataset", labels=("", ""), share="", columns=2, size=(7.0, 5.2), title=title)
    _label(figure, "seconds per picture, one thread", "mean AUC-URR at 5 %")
    return _with_legend(figure, 3), points


def rival_maps(
    picture: Tensor, truth: Tensor, maps: Mapping[str, Tensor], *, dataset: str, title: str
) -> tuple[Figure, dict[str, Tensor]]:
    """Draw one picture, what should be found, and its map by every rival, each divided by its largest |value|."""
    shown = {name: values / values.abs().max().clamp(min=1e-30) for name, values in maps.items()}
    names, left = list(shown), [picture, truth.to(picture)]
    rows: list[list[Tensor | None]] = []
    for first in range(0, len(names), 6):
        row = [shown[name] for name in names[first : first + 6]]
        rows.append([left.pop(0) if left else None, *row, *[None] * (6 - len(row))])
    look: dict[str, Any] = {"kinds": ["picture", *["signed"] * 6], "column_titles": [""] * 7}
    figure = map_grid(rows, **look, dataset=dataset, title=title)
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() + 0.7 * len(rows))  # titles of two lines
    titles = [[("picture", "to be found", "", "")[i], *names[6 * i : 6 * i + 6]] for i in range(len(rows))]
    for i, row_titles in enumerate(titles):
        for axes, name in zip(figure.axes[7 * i :], row_titles, strict=False):
            axes.set_title(name.replace(" (", "\n(").replace(", ", ",\n"), fontsize=13)
    return figure, shown


def _label(figure: Figure, x: str, y: str) -> None:
    """Label the axes themselves: a label of the whole figure would lie under the legend."""
    for axes in figure.axes:
        axes.set_xlabel(x if axes.get_visible() else "")
        if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            axes.set_ylabel(y)


def _with_legend(figure: Figure, columns: int) -> Figure:
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns, fontsize=14, frameon=False)
    return figure
