"""Orders of pixels against each other: tables, figures and claims of deletion and insertion."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import ipywidgets
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from xuqlib.explain import explain
from xuqlib.explainers.gradients import Explainer
from xuqlib.lessons.reporting import judge
from xuqlib.metrics.deletion import (
    CURVES,
    FILL_OF,
    STATISTICS,
    auc,
    deletion,
    importance,
    one_draw,
    perturbed,
    pixel_order,
)
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.draws import Draws
from xuqlib.study.figures.charts import HUES, LINES, MARKERS, dots
from xuqlib.study.figures.choosers import explore
from xuqlib.study.figures.maps import map_grid
from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_EXAMPLES, over_examples
from xuqlib.study.judging.controls import other_image
from xuqlib.study.record import Notebook
from xuqlib.study.resuming import resumable
from xuqlib.study.training.loading import train_or_load

UNMOVED = 0.05  # a curve whose highest and lowest point differ by less says nothing about any order
Scores = Mapping[tuple[str, str], Tensor]  # (ordering, curve) to (N, K + 1)


def trained(name: str, dataset: str, *, preset: str, seed: int = 0) -> Posterior:
    """Load a posterior by method; a name that ends in "_all" has every layer random. Options as `train_or_load`."""
    method, placement = name.removesuffix("_all"), "all" if name.endswith("_all") else "last"
    return train_or_load(method, dataset, preset=preset, seed=seed, placement=placement, progress=False)


def maps_of(
    draws: Draws | Sequence[nn.Module],
    explainer: Explainer,
    x: Tensor,
    target: Tensor,
    *,
    block: int = 100,
    **options: Any,
) -> dict[str, Tensor]:
    """Every map of an explainer that makes an order, explained in blocks of examples to save memory.

    Args:
        draws, explainer, x, target, **options: as for `explain`; x is pictures, and target one class per example.
        block: examples explained at a time.

    Returns:
        (N, H, W) each: those of `STATISTICS`; "single", see `one_draw`; and two controls, "reversed", the least
        important pixel of the mean map first, and "other_image", the mean map of another example.
    """
    parts = []
    for start in range(0, len(x), block):
        here = slice(start, start + block)
        e = explain(draws, explainer, x[here], target[here], progress=False, **options)
        parts.append({name: importance(e, name) for name in STATISTICS} | {"single": one_draw(e, first=start)})
    maps = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return maps | {"reversed": -maps["mean"], "other_image": other_image(maps["mean"])}


def score_orders(
    draws: Draws | Sequence[nn.Module], x: Tensor, orders: Mapping[str, Tensor], target: Tensor, **options: Any
) -> dict[tuple[str, str], Tensor]:
    """Both curves of every order.

    Args:
        draws, x, target, **options: as for `curves`.
        orders: pixel numbers, (N, H * W), by the name of the ordering.

    Returns:
        Scores (N, K + 1) by (ordering, curve), curve being "deletion" or "insertion".
    """
    return {
        (name, kind): CURVES[kind](draws, x, order, target, **options)
        for (name, order), kind in product(orders.items(), FILL_OF)
    }


@resumable
def contest(
    draws: Draws | Sequence[nn.Module],
    explainers: Mapping[str, tuple[Explainer, dict[str, Any], int]],
    x: Tensor,
    target: Tensor,
    *,
    orderings: Iterable[str] | None = None,
    controls: Mapping[str, Draws | Sequence[nn.Module]] | None = None,
    blind: Mapping[str, Tensor] | None = None,
    **options: Any,
) -> dict[str, Scores]:
    """Both curves of many orders of the same pictures.

    Args:
        draws, x, target, **options: as for `curves`; the same draws are explained and give the scores.
        explainers: by name: the function, its options, and how many of the examples it explains, the first ones.
        orderings: which maps of `maps_of` make an order; all by default.
        controls: other networks by the name of the control; their mean map makes an order.
        blind: orders that need no explainer, by name, (N, H * W).

    Returns:
        For each explainer the scores of its own orders, of the controls, and of the blind ones on the same examples.
    """
    common = score_orders(draws, x, blind or {}, target, **options)
    found: dict[str, Scores] = {}
    for name, (function, settings, count) in explainers.items():
        some, classes = x[:count], target[:count]
        maps = maps_of(draws, function, some, classes, **settings)
        kept = {each: maps[each] for each in (maps if orderings is None else orderings)}
        for control, networks in (controls or {}).items():
            kept[control] = maps_of(networks, function, some, classes, **settings)["mean"]
        own = score_orders(draws, some, {key: pixel_order(each) for key, each in kept.items()}, classes, **options)
        found[name] = own | {key: each[: len(some)] for key, each in common.items()}
    return found


def auc_table(scores: Mapping[str, Scores]) -> pd.DataFrame:
    """Areas under the curves of a contest, one row per explainer, ordering, curve and example.

    Returns:
        Columns explainer, ordering, curve, example, auc, and range, the curve's highest point less its lowest.
    """
    rows = []
    for explainer, own in scores.items():
        for (name, kind), each in own.items():
            frame = pd.DataFrame({"example": range(len(each)), "auc": auc(each), "range": each.amax(1) - each.amin(1)})
            rows.append(frame.assign(explainer=explainer, ordering=name, curve=kind))
    return pd.concat(rows, ignore_index=True)


def mean_curves(scores: Mapping[str, Scores], orderings: Sequence[str]) -> pd.DataFrame:
    """Mean curve over the examples of a contest, for the orderings that are to be drawn.

    Returns:
        Columns explainer, curve, ordering, share of pixels replaced, score, and low, high: two standard errors.
    """
    rows = []
    for explainer, own in scores.items():
        for kind in FILL_OF:
            for name in orderings:
                each = own[name, kind]
                error = 2 * each.std(0) / len(each) ** 0.5  # NaN for a single example
                columns = {"share": torch.linspace(0, 1, each.shape[1]), "score": each.mean(0)}
                frame = pd.DataFrame({**columns, "low": each.mean(0) - error, "high": each.mean(0) + error})
                rows.append(frame.assign(explainer=explainer, curve=kind, ordering=name))
    return pd.concat(rows, ignore_index=True)


def mean_areas(aucs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean area over examples; rows that agree in `by` and example, those of several trainings, are averaged first.

    Returns:
        Columns `by`, which hold curve, and the fill of the protocol, n examples, auc, and low, high as in
        `over_examples`.
    """
    each = aucs.groupby([*by, "example"], sort=False)["auc"].mean().reset_index()
    number = each.groupby(list(by), sort=False).size().to_numpy()
    return over_examples(each, by, "auc").assign(n=number, fill=lambda frame: frame["curve"].map(FILL_OF))


def advantage(aucs: pd.DataFrame, ordering: str, rival: str, by: Sequence[str] = ()) -> pd.DataFrame:
    """How much better one ordering is than another on the same example, positive where it is better.

    Args:
        aucs: rows of `auc_table`; rows that agree in `by`, curve and example, such as those of several training
            seeds, are averaged first.
        ordering, rival: two values of the column ordering; groups without one of the two are left out.
        by: further columns that tell rows apart.

    Returns:
        Columns `by`, curve, example, advantage: the rival's deletion AUC less the ordering's; the ordering's insertion
        AUC less the rival's; and, where curve is "both", their sum.
    """
    if missing := {ordering, rival} - set(aucs["ordering"]):
        raise ValueError(f"no ordering {', '.join(sorted(missing))} in the table; it has {set(aucs['ordering'])}")
    sign = aucs["curve"].map({"deletion": -1.0, "insertion": 1.0})
    gains = aucs.assign(gain=aucs["auc"] * sign)
    sides = [
        gains[gains["ordering"] == name].groupby([*by, "curve", "example"], sort=False)["gain"].mean()
        for name in (ordering, rival)
    ]
    each = (sides[0] - sides[1].reindex(sides[0].index)).dropna().rename("advantage").reset_index()
    both = each.groupby([*by, "example"], sort=False)["advantage"].sum().reset_index().assign(curve="both")
    return pd.concat([each, both], ignore_index=True)


def curve_lines(frame: pd.DataFrame, *, title: str) -> Figure:
    """Draw `mean_curves`: one panel per explainer and curve, one line per ordering."""

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        axes.set_prop_cycle(color=[*HUES[:3], *HUES[4:]])  # yellow is too pale for a line
        for dash, (name, one) in zip(LINES * 2, part.groupby("ordering", sort=False), strict=False):
            axes.plot(one["share"], one["score"], label=name, linestyle=dash)
            axes.fill_between(one["share"], one["low"], one["high"], alpha=0.1, linewidth=0)

    parts = frame.assign(panel=frame["explainer"] + ",\n" + frame["curve"])
    labels = ("", f"mean probability of the class\n(band: {OVER_EXAMPLES})")
    figure = panels(parts, draw, by="panel", labels=labels, columns=2, size=(5.2, 3.6), title=title)
    return _finished(figure, "share of pixels replaced")


def area_dots(frame: pd.DataFrame, *, title: str) -> Figure:
    """Draw `mean_areas`: one panel per posterior and curve, one line of dots per ordering, told apart by explainer."""

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        names = list(dict.fromkeys(part["ordering"]))
        for i, (name, one) in enumerate(part.groupby("explainer", sort=False)):
            places = [names.index(each) + 0.24 * (i - 1) for each in one["ordering"]]
            axes.errorbar(one["auc"], places, xerr=one["high"] - one["auc"], fmt=MARKERS[i], label=name)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()

    parts = frame.assign(panel=frame["posterior"] + ",\n" + frame["curve"])
    title = f"{title} (lines: {OVER_EXAMPLES})"
    figure = panels(parts, draw, by="panel", labels=("", ""), share="", columns=2, size=(5.6, 4.4), title=title)
    return _finished(figure, "area under the curve")


def _finished(figure: Figure, label: str) -> Figure:
    for axes in figure.axes[-2:]:  # the lower row; a label of the whole figure would lie under the legend
        axes.set_xlabel(label, fontsize=15)
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, fontsize=15, frameon=False)
    return figure


def gain_dots(gains: pd.DataFrame, *, y: str, hue: str, label: str, title: str) -> tuple[Figure, pd.DataFrame]:
    """Draw the mean of `advantage` over examples, as `dots`, with a line at 0; the figure, and its frame."""
    frame = over_examples(gains, [y, hue], "advantage")
    ends: dict[str, Any] = {"low": "low", "high": "high", "interval": OVER_EXAMPLES}
    figure = dots(frame, x="advantage", y=y, hue=hue, label=label, title=title, **ends)
    figure.axes[0].axvline(0, color="black")
    return figure, frame


def judge_weakest(study: Notebook, text: str, gains: pd.DataFrame, by: str = "posterior", **facts: Any) -> None:
    """Claim that a mean advantage lies above 0 in every group of `by`: the row shows the weakest case, by name.

    If the weakest in units of its standard error holds, all hold; if any fails, so does the weakest.

    Args:
        study, text, **facts: as for `judge`.
        gains: rows of `advantage`.
    """
    cases = gains.groupby(by, sort=False)["advantage"]
    name = (cases.mean() / cases.sem()).idxmin()
    judge(study, text, cases.get_group(name), of=f"{OVER_EXAMPLES}; weakest: {name}", **facts)


def deletion_steps(
    draws: Draws | Sequence[nn.Module], x: Tensor, orders: Mapping[str, Tensor], target: Tensor, *, num_steps: int = 16
) -> pd.DataFrame:
    """Follow the deletion of one picture, black and blurred; arguments as for `score_orders`.

    Returns:
        Columns fill, ordering, deleted (share of the pixels, as text), share, and score, the probability of the class.
    """
    share, parts = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64), []
    common = {"deleted": [f"{each:.0%}" for each in share], "share": share}
    for fill, (name, order) in product(("black", "blurred"), orders.items()):
        score = deletion(draws, x, order, target, fill=fill, num_steps=num_steps)[0]
        parts.append(pd.DataFrame({"fill": fill, "ordering": name, **common, "score": score}))
    return pd.concat(parts, ignore_index=True)


def deletion_look(
    steps: pd.DataFrame, x: Tensor, orders: Mapping[str, Tensor], row: pd.Series, *, dataset: str
) -> tuple[Figure, str]:
    """A picture without a share of its pixels, beside the curves of all orders; and a sentence.

    Args:
        steps, x, orders, dataset: of `deletion_steps`, its picture and orders; as for `map_grid`.
        row: of steps, the state to show.
    """
    fill, order, share = row["fill"], row["ordering"], row["share"]
    left, heads = perturbed(x, orders[order], share, fill=fill)[0], [f"{row['deleted']} {fill}", f"{order} order"]
    figure = map_grid([[left, None]], kinds=["picture"] * 2, column_titles=heads, dataset=dataset)
    for name, line in steps[steps["fill"] == fill].groupby("ordering", sort=False):
        shade = "black" if name == order else "0.7"
        figure.axes[1].plot(line["share"], line["score"], color=shade, zorder=2 + (name == order), linewidth=2)
    figure.axes[1].plot(share, row["score"], "o", color=HUES[4], markersize=11, zorder=4, clip_on=False)
    figure.axes[1].set(xticks=[0, 1], yticks=[0, 1], ylim=(0, 1), xlabel="share of pixels", ylabel="probability")
    figure.set_size_inches(7.2, 3.6)
    figure.set_layout_engine("none")  # it would lay out each figure twice, and a slider should not wait
    for axes, place in zip(figure.axes, ((0.01, 0.05, 0.43, 0.84), (0.57, 0.19, 0.4, 0.68)), strict=True):
        axes.set_position(place)
    return figure, f"{row['deleted']} of the pixels deleted: probability of the class {row['score']:.2f}."


def explore_deletion(steps: pd.DataFrame, x: Tensor, orders: Mapping[str, Tensor], *, dataset: str) -> ipywidgets.VBox:
    """Choose fill and order, drag the share of deleted pixels, and see `deletion_look`; arguments as there."""
    by, all_of = ["fill", "ordering", "deleted"], (steps, x, orders)
    return explore(steps, by, lambda rows, _: deletion_look(*all_of, rows.iloc[0], dataset=dataset), sliders=by[2:])
