"""The whole grid: every posterior under every explainer on every data set, measured example by example.

T is the number of draws, each a fixed network. The caller adds the columns of `KEYS` and seed (of the training).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torch.nn import functional as F

from xuqlib.distribution import ExplanationDistribution
from xuqlib.explain import explain
from xuqlib.explainers.lime import lime
from xuqlib.explainers.superpixels import superpixels
from xuqlib.metrics.deletion import CURVES, auc, importance, pixel_order, random_order
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import Examples
from xuqlib.study.figures.maps import SIGNED
from xuqlib.study.figures.panels import panels
from xuqlib.study.judging.predictions import answers
from xuqlib.study.judging.steadiness import CVS, pool
from xuqlib.study.resuming import resumable
from xuqlib.study.training.loading import train_or_load
from xuqlib.uncertainty import decompose, logits_of

POSTERIORS: Mapping[str, tuple[str, str]] = {  # name: method and placement, as for `train_or_load`
    "deep_ensemble": ("deep_ensemble", "last"),
    "mc_dropout": ("mc_dropout", "last"),
    "mc_dropout_all": ("mc_dropout", "all"),
    "mc_dropconnect": ("mc_dropconnect", "last"),
    "flipout": ("flipout", "last"),
    "laplace": ("laplace", "last"),
}
PROTOCOLS: Mapping[str, tuple[str, str]] = {  # column: kind of curve and fill, as for `orderings.curves`
    "deletion_black": ("deletion", "black"),
    "deletion_blurred": ("deletion", "blurred"),
    "insertion_blurred": ("insertion", "blurred"),
}
MEASURES = (*CVS, "cv_paper_undefined", "cv_signed_undefined", "noise_ceiling", *PROTOCOLS)


def curve_areas(draws: Draws, x: Tensor, order: Tensor, target: Tensor, *, num_steps: int = 16) -> pd.DataFrame:
    """Area under deletion and insertion curves of one pixel order, and the room that each curve had.

    Args:
        draws: networks whose mean softmax probability of `target` is the height of the curves.
        x: pictures, (N, C, H, W).
        order: pixels, most important first, (N, H * W).
        target: class of each example, (N,).
        num_steps: of each curve.

    Returns:
        One row per example: a column of each name in `PROTOCOLS`, in [0, 1], low is good for deletion, high for
        insertion; and NAME_room, the score of the picture less that of the fill alone.
    """
    columns = {}
    for name, (kind, fill) in PROTOCOLS.items():
        heights = CURVES[kind](draws, x, order, target, fill=fill, num_steps=num_steps).double()  # (N, K + 1)
        columns[name] = auc(heights).numpy()
        sign = 1 if kind == "deletion" else -1
        columns[f"{name}_room"] = sign * (heights[:, 0] - heights[:, -1]).numpy()
    return pd.DataFrame(columns)


def explained(
    draws: Draws,
    explainer: Any,
    x: Tensor,
    target: Tensor | None = None,
    *,
    counts: Sequence[int],
    num_scored: int = 0,
    curve_steps: int = 16,
    block: int = 16,
    **options: Any,
) -> pd.DataFrame:
    """Explain every example by every draw, and measure how steady the maps are and how much the mean map is worth.

    Every T takes the first of the same draws, and the same target, so that only T differs. Superpixels, LIME's and
    those of cv_pooled, have four pixels or more: the mean colour that hides one pixel is its own.

    Args:
        draws: as many as the largest of `counts`.
        explainer, x, target, **options: as for `explain`.
        counts: the numbers of draws T.
        num_scored: pictures, the first of x, whose mean |map| is scored by `curve_areas`, by the first min(counts)
            networks, whatever T is.
        curve_steps: num_steps of `curve_areas`.
        block: examples explained at a time.

    Returns:
        Columns draws (T), example, and `MEASURES`: CVs, noise ceiling of cv_paper_unscaled, areas; NaN where undefined.

    Raises:
        ValueError: a count is larger than the number of draws.
    """
    if max(counts) > len(draws):
        raise ValueError(f"counts are {list(counts)} but there are {len(draws)} draws; sample more, or ask for fewer")
    frames, num_segments = [], min(40, x[0].shape[-2:].numel() // 4)
    if explainer is lime and x.ndim == 4:
        options = {"num_segments": num_segments, **options}
    for start in range(0, len(x), block):
        here = x[start : start + block]
        there = None if target is None else target[start : start + block]
        e = explain(draws[: max(counts)], explainer, here, there, progress=False, **options)
        for count in counts:
            few = replace(e, values=e.values[:count] if e.values is not None else None)
            frame = _steady(few, here, "mean" if explainer is lime else "sum", num_segments).assign(draws=count)
            scored = min(max(num_scored - start, 0), len(here))
            if scored and few.target is not None:
                order = pixel_order(importance(few, "mean")[:scored])
                job = draws[: min(counts)], here[:scored], order, few.target[:scored]
                frame = frame.join(curve_areas(*job, num_steps=curve_steps))
            frames.append(frame.assign(example=frame["example"] + start))
    return pd.concat(frames, ignore_index=True).reindex(columns=["draws", "example", *MEASURES])


def _steady(e: ExplanationDistribution, x: Tensor, how: str, num_segments: int) -> pd.DataFrame:
    frame = e.summary().assign(cv_pooled=np.nan, noise_ceiling=e.noise_ceiling)
    if not e.is_picture or e.values is None:
        return frame
    pooled = ExplanationDistribution(pool(e.values, superpixels(x, num_segments), how)).cv("ratio").numpy()
    one_channel = x.shape[1] ** 0.5 if how == "mean" else 1.0  # LIME says the same in every channel
    return frame.assign(cv_pooled=pooled, noise_ceiling=e.noise_ceiling * one_channel)


def predicted(draws: Draws, examples: Examples, counts: Sequence[int]) -> pd.DataFrame:
    """Score every example's mean prediction over the first T draws.

    Args:
        draws: as many as the largest of `counts`.
        examples: what is predicted.
        counts: the numbers of draws T.

    Returns:
        Columns draws (T), example, nll (nats); for classes brier, error (0 or 1) and confidence; for a regression
        squared_error, in standardised units.
    """
    logits, frames = logits_of(draws[: max(counts)], examples.x), []
    for count in counts:
        if examples.num_classes is None:
            mean, truth = logits[:count, :, 0].double().mean(0), examples.y[:, 0].double()
            variance = decompose(logits[:count], draws.noise_variance).total
            nll = F.gaussian_nll_loss(mean, truth, variance, full=True, eps=1e-12, reduction="none")
            frame = pd.DataFrame({"nll": nll, "squared_error": (mean - truth) ** 2})
        else:
            probs = logits[:count].double().softmax(-1).mean(0)
            brier = (probs - F.one_hot(examples.y, examples.num_classes)).square().sum(1)
            frame = answers(logits[:count], examples.y)[["answer", "confidence", "nll"]]
            frame = frame.assign(brier=brier.numpy(), error=1.0 * (frame.pop("answer") == "wrong"))
        frames.append(frame.assign(draws=count, example=range(len(frame))))
    return pd.concat(frames, ignore_index=True)


def runs(
    datasets: Sequence[str],
    seeds_of: Mapping[str, Sequence[int]],
    without: Sequence[str] = (),
    *,
    preset: str = "full",
    seed: int = 0,
) -> Iterator[tuple[str, str, int, Posterior]]:
    """Load every trained posterior of the grid, or train it.

    Args:
        datasets: names of `load`.
        seeds_of: training seeds of a data set, where they are not `seed` alone.
        without: runs to leave out, such as "cifar10 laplace 1".
        preset: as for `train_or_load`.

    Yields:
        Data set, posterior (of `POSTERIORS`), training seed, and the posterior itself.
    """
    for dataset, (name, (method, placement)) in product(datasets, POSTERIORS.items()):
        for number in seeds_of.get(dataset, [seed]):
            if f"{dataset} {name} {number}" not in without:
                recipe: dict[str, Any] = {"preset": preset, "seed": number, "placement": placement, "progress": False}
                yield dataset, name, number, train_or_load(method, dataset, **recipe)


@resumable
def measured(
    draws: Draws,
    test: Examples,
    explainers: Mapping[str, tuple[Any, int, Mapping[str, Any]]],
    *,
    counts: Sequence[int],
    num_scored: int = 0,
    curve_steps: int = 16,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Measure one run, that is one posterior on one data set: its predictions, its explanations, and a control.

    The target is the class with the largest mean probability over all draws; a regression has none.

    Args:
        draws: as many as the largest of `counts`, in the numbers of `test.x`.
        test: examples; explainers get the first ones.
        explainers: by name: the function, how many examples it gets, and its options.
        counts, num_scored, curve_steps: as for `explained`; seed: of the random order.

    Returns:
        Frames by name: "predictions" (`predicted`); "explanations" (`explained`, with the column explainer); and, for
        pictures, "control" (`curve_areas` of a random order, with the column example).
    """
    x, pictures = test.x[: max(size for _, size, _ in explainers.values())], test.x.ndim == 4
    target = logits_of(draws, x).softmax(-1).mean(0).argmax(1) if test.num_classes else None
    frames = {"predictions": predicted(draws, test, counts)}
    if pictures and target is not None and num_scored:
        order = random_order(num_scored, x.shape[2:], seed=seed)
        job = draws[: min(counts)], x[:num_scored], order, target[:num_scored]
        frames["control"] = curve_areas(*job, num_steps=curve_steps).assign(example=range(num_scored))
    parts = []
    for name, (function, size, options) in explainers.items():
        few, own = None if target is None else target[:size], {**options, "curve_steps": curve_steps}
        own["num_scored"] = num_scored if pictures else 0
        rows = explained(draws, function, x[:size], few, counts=counts, **own)
        parts.append(rows.assign(explainer=name))
    return frames | {"explanations": pd.concat(parts, ignore_index=True)}


def gains(frame: pd.DataFrame, control: pd.DataFrame) -> pd.DataFrame:
    """How much better than a random order a map orders pixels, as a share of the room between picture and fill.

    A posterior that is never sure has low curves, whatever its maps are worth; the division by the mean room takes
    that out. Positive is better than random, for deletion and insertion alike.

    Args:
        frame: rows of `explained`.
        control: rows of `curve_areas` of a random order, with columns dataset, posterior, seed and example.

    Returns:
        The frame with a column NAME_gain for each name in `PROTOCOLS`.
    """
    run, columns = ["dataset", "posterior", "seed"], {}
    places = pd.MultiIndex.from_frame(frame[[*run, "example"]])
    for name, (kind, _) in PROTOCOLS.items():
        random = control.set_index([*run, "example"])[name].reindex(places).to_numpy()
        room = control.groupby(run)[f"{name}_room"].mean().reindex(places.droplevel("example")).to_numpy()
        columns[f"{name}_gain"] = (frame[name] - random) / room * (-1 if kind == "deletion" else 1)
    return frame.assign(**columns)


def tiles(
    frame: pd.DataFrame,
    value: str,
    *,
    columns: str = "explainer",
    rows: str = "posterior",
    by: str = "dataset",
    text: str | None = None,
    log: bool = False,
    middle: float | None = None,
    panel_columns: int = 3,
    title: str = "",
) -> Figure:
    """Write each number on a coloured tile, light for large, by row and column; one panel for each value of `by`.

    Args:
        frame: one tile per row; what has no row stays white.
        value: column that gives colour and number; all panels share the colours.
        columns, rows, by: columns of the frame.
        text: column of words to write instead of the number.
        log: colours on a logarithmic scale, for values above 0.
        middle: on such a scale, the value of the neutral colour; colours then end at a third and three times it.
        panel_columns: panels side by side.
        title: the claim of the figure.
    """
    heads = [list(dict.fromkeys(frame[axis])) for axis in (rows, columns)]
    low, high = (frame[value].min(), frame[value].max()) if middle is None else (middle / 3, middle * 3)
    scale = (LogNorm if log else Normalize)(low, high, clip=True)
    colours = mpl.colormaps["viridis"] if middle is None else SIGNED

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        axes.grid(visible=False)
        axes.imshow([[np.nan] * len(heads[1])] * len(heads[0]), aspect="auto")
        for row, column, number, words in zip(part[rows], part[columns], part[value], part[text or value], strict=True):
            x, y, paint = heads[1].index(column), heads[0].index(row), colours(scale(number))
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=paint, edgecolor="white"))
            colour = "white" if np.dot(paint[:3], (0.21, 0.72, 0.07)) < 0.5 else "black"
            axes.text(x, y, str(words) if text else f"{number:.2g}", ha="center", va="center", color=colour, size=13)
        axes.set_xticks(range(len(heads[1])), [str(name).replace("_", "\n") for name in heads[1]], fontsize=12)
        axes.set_yticks(range(len(heads[0])), heads[0], fontsize=13)
        axes.tick_params(labelbottom=True)  # the panel below may be empty

    size = (1.6 + 0.95 * len(heads[1]), 1.0 + 0.45 * len(heads[0]))
    return panels(frame, draw, by=by, labels=("", ""), share="xy", columns=panel_columns, size=size, title=title)
