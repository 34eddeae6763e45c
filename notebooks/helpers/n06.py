"""Notebook 06: tables and figures of orders, and a chooser of one image's deletion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import ipywidgets
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from xuqlib.metrics.deletion import FILL_OF, deletion, perturbed
from xuqlib.posteriors.draws import Draws
from xuqlib.study.figures.charts import HUES, LINES, dots
from xuqlib.study.figures.choosers import explore
from xuqlib.study.figures.maps import map_grid
from xuqlib.study.figures.panels import panels
from xuqlib.study.figures.rows import row_dots
from xuqlib.study.intervals import OVER_EXAMPLES, over_examples
from xuqlib.study.names import spoken

DIFFERS, OPEN = "differs from the other classes", "might not"
MEASURES = {"insertion": 0, "deletion": 1, "CV": 2}  # from the left
SHOWN = {"mean": "mean map", "sobel": "edges (Sobel)", "random": "random order"}

# (explainer, ordering, curve) to (example, step)
Scores = Mapping[tuple[str, str, str], Tensor]


def mean_curves(
    scores: Scores, explainers: Iterable[str], orderings: Sequence[str]
) -> pd.DataFrame:
    """Mean curves: explainer, curve, ordering, share of pixels, score, low and high."""
    rows = []
    for explainer, kind, name in product(explainers, FILL_OF, orderings):
        each = scores[explainer, name, kind]
        error = 2 * each.std(0) / len(each) ** 0.5  # NaN for a single example
        columns = {"share": torch.linspace(0, 1, each.shape[1]), "score": each.mean(0)}
        frame = pd.DataFrame(
            {**columns, "low": each.mean(0) - error, "high": each.mean(0) + error}
        )
        rows.append(frame.assign(explainer=explainer, curve=kind, ordering=name))
    return pd.concat(rows, ignore_index=True)


def curve_lines(frame: pd.DataFrame, *, title: str) -> Figure:
    """Draw `mean_curves`: one panel per explainer and curve, one line per ordering."""

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        # Yellow is too pale for a line.
        axes.set_prop_cycle(color=[*HUES[:3], *HUES[4:]])
        lines = part.groupby("ordering", sort=False)
        for dash, (name, one) in zip(LINES * 2, lines, strict=False):
            share = one["share"]
            axes.plot(share, one["score"], label=name, linestyle=dash)
            axes.fill_between(share, one["low"], one["high"], alpha=0.1, linewidth=0)

    parts = frame.assign(panel=frame["explainer"] + ",\n" + frame["curve"])
    labels = ("", f"mean probability of the class\n(band: {OVER_EXAMPLES})")
    figure = panels(
        parts, draw, by="panel", labels=labels, columns=2, size=(5.2, 3.6), title=title
    )
    return _with_legend(figure, "share of pixels replaced")


def mean_areas(aucs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean area over examples; those of several trainings are averaged first.

    Returns:
        Columns `by`, which hold curve, and fill, n (of examples), auc, low and high.
    """
    each = aucs.groupby([*by, "example"], sort=False)["auc"].mean().reset_index()
    number = each.groupby(list(by), sort=False).size().to_numpy()
    frame = over_examples(each, by, "auc")
    return frame.assign(n=number, fill=frame["curve"].map(FILL_OF))


def class_dots(frame: pd.DataFrame) -> Figure:
    """Draw what the mean map gains in each class, and how much it moves.

    Args:
        frame: columns explainer, measure, class, value, low, high, and differs, from
            the other classes.
    """
    first = frame[frame["explainer"] == frame["explainer"].iloc[0]]
    gains = first[first["measure"] == "insertion"].set_index("class")["value"]
    order = gains.sort_values(ascending=False)
    shown = frame.set_index("class").loc[order.index].reset_index()
    names = {"deletion": "deletion gains", "insertion": "insertion gains"}
    name, ends = spoken(frame["explainer"].iloc[0]), order.round(2)
    return row_dots(
        shown.assign(
            panel=shown["measure"].replace(names),
            group=shown["explainer"].map(spoken),
            row=shown["class"],
            mark=shown["differs"].map({True: DIFFERS, False: OPEN}),
        ).sort_values("measure", key=lambda each: each.map(MEASURES), kind="stable"),
        marks=(DIFFERS, OPEN),
        label="area over a random order; CV without a unit",
        caption=f"Line: {OVER_EXAMPLES}. By what insertion gains, the most on top.",
        own=True,
        title=f"{name}: insertion gains most on {ends.index[0]} ({ends.iloc[0]}), "
        f"least on {ends.index[-1]} ({ends.iloc[-1]})",
    )


def area_dots(frame: pd.DataFrame) -> Figure:
    """Draw of `mean_areas` the mean map between an order that knows nothing and edges.

    Args:
        frame: of `mean_areas` by dataset, posterior, explainer, ordering and curve.
    """
    some = frame[frame["ordering"].isin(SHOWN)]
    good = some["curve"].map({"deletion": "low", "insertion": "high"})
    keys = ["explainer", "posterior"]
    counts = []
    for kind, part in some.groupby("curve", sort=False):
        ends = part.pivot(index=keys, columns="ordering", values=["low", "high"])
        low, high = ends["low"], ends["high"]
        clear = low["mean"] > high["random"]
        if kind == "deletion":
            clear = high["mean"] < low["random"]
        counts.append(f"by {kind} in {clear.sum()} of {len(clear)} cases")
    return row_dots(
        some.assign(
            panel=some["curve"] + ": " + good + " is good",
            group=some["explainer"].map(spoken),
            row=some["posterior"].map(spoken),
            lane=some["ordering"],
            value=some["auc"],
            mark=some["ordering"].map(SHOWN),
        ).sort_values("lane", key=lambda each: each.map(list(SHOWN).index)),
        marks=list(SHOWN.values()),
        label="area under the curve",
        caption=f"Line: {OVER_EXAMPLES}.",
        title=f"{spoken(frame['dataset'].iloc[0])}: the mean map is clear of a random "
        f"order {', '.join(counts)}",
    )


def _with_legend(figure: Figure, label: str) -> Figure:
    # The lower row; a label of the whole figure would lie under the legend.
    for axes in figure.axes[-2:]:
        axes.set_xlabel(label, fontsize=15)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=3, fontsize=15, frameon=False
    )
    return figure


def gain_dots(
    gains: pd.DataFrame, *, y: str, hue: str, label: str, title: str
) -> tuple[Figure, pd.DataFrame]:
    """Draw the mean advantage over examples, with a line at 0; figure and frame."""
    frame = over_examples(gains, [y, hue], "advantage")
    figure = dots(
        frame,
        x="advantage",
        y=y,
        hue=hue,
        low="low",
        high="high",
        interval=OVER_EXAMPLES,
        label=label,
        title=title,
    )
    figure.axes[0].axvline(0, color="black")
    return figure, frame


def deletion_steps(
    draws: Draws | Sequence[nn.Module],
    x: Tensor,
    orders: Mapping[str, Tensor],
    target: Tensor,
    *,
    num_steps: int = 16,
) -> pd.DataFrame:
    """Follow the deletion of one image, black and blurred, by every order.

    Returns:
        Columns fill, ordering, deleted (the share as text), share, and score, the
        probability of the class.
    """
    share, parts = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), []
    common = {"deleted": [f"{each:.0%}" for each in share], "share": share}
    for fill, (name, order) in product(("black", "blurred"), orders.items()):
        score = deletion(draws, x, order, target, fill=fill, num_steps=num_steps)[0]
        parts.append(
            pd.DataFrame({"fill": fill, "ordering": name, **common, "score": score})
        )
    return pd.concat(parts, ignore_index=True)


def deletion_look(
    steps: pd.DataFrame,
    x: Tensor,
    orders: Mapping[str, Tensor],
    row: pd.Series,
    *,
    dataset: str,
) -> tuple[Figure, str]:
    """An image without some pixels, beside the curves of all orders; and a sentence.

    Args:
        steps, x, orders: of `deletion_steps`, its image and orders.
        row: of steps, the state to show.
        dataset: as for `map_grid`.
    """
    fill, order, share = row["fill"], row["ordering"], row["share"]
    left = perturbed(x, orders[order], share, fill=fill)[0]
    heads = [f"{row['deleted']} {fill}", f"{order} order"]
    kinds = ["picture", "picture"]
    figure = map_grid([[left, None]], kinds=kinds, column_titles=heads, dataset=dataset)
    image, curves = figure.axes
    for name, line in steps[steps["fill"] == fill].groupby("ordering", sort=False):
        colour, above = ("black", 3) if name == order else ("0.7", 2)
        curves.plot(
            line["share"], line["score"], color=colour, zorder=above, linewidth=2
        )
    dot = curves.plot(share, row["score"], "o", color=HUES[4], markersize=11, zorder=4)
    dot[0].set_clip_on(False)
    curves.set(xticks=[0, 1], yticks=[0, 1], ylim=(0, 1))
    curves.set(xlabel="share of pixels", ylabel="probability")
    figure.set_size_inches(7.2, 3.6)
    # It would lay out each figure twice, and a slider should not wait.
    figure.set_layout_engine("none")
    image.set_position((0.01, 0.05, 0.43, 0.84))
    curves.set_position((0.57, 0.19, 0.4, 0.68))
    reached = f"probability of the class {row['score']:.2f}"
    return figure, f"{row['deleted']} of the pixels deleted: {reached}."


def explore_deletion(
    steps: pd.DataFrame, x: Tensor, orders: Mapping[str, Tensor], *, dataset: str
) -> ipywidgets.VBox:
    """Choose fill and order, drag the share of deleted pixels, see `deletion_look`."""
    by = ["fill", "ordering", "deleted"]

    def look(rows: pd.DataFrame, _: object) -> tuple[Figure, str]:
        return deletion_look(steps, x, orders, rows.iloc[0], dataset=dataset)

    return explore(steps, by, look, sliders=by[2:])
