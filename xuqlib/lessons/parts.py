"""Which parts of UA-Backprop matter: examples, tables, figures and claims about what `inside` measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from joblib import delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from xuqlib.lessons.inside import CONTROLS, EVENLY, FULLGRAD, SIGNED, UNCHANGED
from xuqlib.lessons.reporting import judge
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import load
from xuqlib.study.figures.charts import HUES
from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_EXAMPLES, over_examples
from xuqlib.study.judging.blurring import uncertain
from xuqlib.study.record import Notebook
from xuqlib.study.resuming import side_by_side
from xuqlib.study.training.loading import train_or_load
from xuqlib.ua_backprop import SETTINGS, Setting

Task = tuple[Draws, Tensor]  # networks, and the pictures that they are asked about
BOUND = 0.01  # of AUC-URR; smaller differences are called none
PAPER = "arXiv 2304.04824, ablations"
FIELDS = list(Setting._fields)


def unsure(
    dataset: str,
    split: str,
    *,
    num_scanned: int,
    num_examples: int,
    dtype: str,
    preset: str,
    posterior: str = "deep_ensemble",
    num_draws: int = 5,
    seed: int = 0,
) -> Task:
    """Draws of a posterior, and pictures about which their epistemic uncertainty is above the median of those scanned.

    Args:
        dataset, split: as for `load`.
        num_scanned: pictures drawn from the split, by seed.
        num_examples: of those above the median.
        dtype: name of the dtype of networks and pictures.
        preset, posterior: as for `train_or_load`.
        num_draws, seed: of the posterior.
    """
    trained = train_or_load(posterior, dataset, preset=preset, progress=False)
    number = getattr(torch, dtype)
    draws = trained.sample(num_draws, seed=seed).to(number)
    x = load(dataset, split=split, num_examples=num_scanned, seed=seed).x.to(number)
    return draws, x[uncertain(draws, x, num_examples=num_examples, seed=seed).uncertain]


def best(frame: pd.DataFrame) -> Setting:
    """The setting of `sweep` with the largest AUC-URR, a mean over examples and then over the data sets.

    frame holds rows of `sweep` with the column dataset added.
    """
    means = frame.groupby([*Setting._fields, "dataset"], sort=False)["auc"].mean()
    fields: Any = means.groupby(list(Setting._fields), sort=False).mean().idxmax()
    return Setting(*fields)


def over_blocks(
    measure: Callable[..., pd.DataFrame],
    tasks: Mapping[str, tuple[Draws, Tensor]],
    *,
    rows: int = 25,
    num_jobs: int = 1,
    **options: Any,
) -> pd.DataFrame:
    """Measure several data sets, some examples at a time, so that memory does not grow with their number.

    Args:
        measure: a function of draws and x, such as `ablation`, whose table has the column example.
        tasks: name of the data set to draws and examples.
        rows: examples at a time; a seed deals the same to each such lot.
        num_jobs: processes that share the work, one thread each.
        **options: passed on to `measure`.

    Returns:
        The tables below each other, with the column dataset; example counts through a data set.
    """
    lots = [(name, first) for name, (_, x) in tasks.items() for first in range(0, len(x), rows)]
    jobs = (delayed(measure)(tasks[name][0], tasks[name][1][first : first + rows], **options) for name, first in lots)
    frames = side_by_side(jobs, num_jobs)
    pairs = zip(lots, frames, strict=True)
    named = [frame.assign(dataset=name, example=frame["example"] + first) for (name, first), frame in pairs]
    return pd.concat(named, ignore_index=True)


def differences(frame: pd.DataFrame, to: Mapping[str, Any], value: str = "auc") -> pd.DataFrame:
    """Subtract from each value that of a reference on the same example.

    Args:
        frame: several rows per example, which the columns dataset, setting (where it has them) and example name.
        to: column and value of the reference, such as {"change": "unchanged"}.
        value: column that is compared.

    Returns:
        The rows of frame that are not the reference and have a value on either side; `value` is the difference.
    """
    own = (frame[list(to)] == pd.Series(to)).all(axis=1)
    keys = [column for column in ("dataset", "setting", "example") if column in frame]
    level = frame[own].set_index(keys)[value]
    rest = frame[~own].set_index(keys)
    rest[value] -= level.reindex(rest.index)
    return rest.reset_index().dropna(subset=value)


def loss_figure(frame: pd.DataFrame, frozen: Setting) -> tuple[Figure, pd.DataFrame]:
    """Draw what each pair of temperatures loses against the best pair of its data set; the frozen pair in brackets.

    Args:
        frame: rows of `sweep` with the column dataset.

    Returns:
        The figure and its table: dataset, tau1, tau2, auc, loss.
    """
    means = frame.groupby(["dataset", "tau1", "tau2"], sort=False)["auc"].mean().reset_index()
    means["loss"] = means["auc"] - means.groupby("dataset")["auc"].transform("max")
    lowest = means["loss"].min()

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        table = part.pivot_table(index="tau1", columns="tau2", values="loss")
        tau1s, tau2s = list[Any](table.index), list[Any](table.columns)
        axes.imshow(table, cmap="cividis", vmin=lowest, vmax=0, aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            own = tau1s[row] == frozen.tau1 and tau2s[column] == frozen.tau2
            look: Any = {"color": "w" if value < lowest / 2 else "k", "weight": "bold" if own else "normal"}
            loss = f"{value:.3f}".replace("-0.000", "0.000")
            text = f"[{loss}]" if own else loss
            axes.text(column, row, text, ha="center", va="center", fontsize=14, **look)
        axes.set(xticks=range(len(tau2s)), xticklabels=[f"{tau:g}" for tau in tau2s])
        axes.set(yticks=range(len(tau1s)), yticklabels=[f"{tau:g}" for tau in tau1s])
        axes.grid(visible=False)

    look: Any = {"labels": ("tau2", "tau1"), "size": (6.4, 5.2), "columns": 3, "share": ""}
    return panels(means, draw, by="dataset", title="AUC-URR lost against the best pair, setting paper", **look), means


def draws_figure(frame: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Draw the score of maps of few draws as lines, and the two controls of all draws as crosses.

    Args:
        frame: rows of `few_draws` with the columns dataset and posterior.

    Returns:
        The figure and its table: panel, setting, name, draws, auc, low, high.
    """
    named = frame.assign(panel=frame["dataset"] + ": " + frame["posterior"])
    points = over_examples(named, ["panel", "setting", "name", "draws"], "auc")

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for place, (setting, rows) in enumerate(part.groupby("setting", sort=False)):
            line = rows[rows["name"] == "UA-Backprop"]
            look: Any = {"color": HUES[place], "marker": "os"[place], "label": setting}
            axes.errorbar(line["draws"], line["auc"], line["auc"] - line["low"], **look)
            look = {"color": HUES[place], "markersize": 13, "markeredgewidth": 3, "linestyle": "none"}
            for marker, name in {"+": EVENLY[1], "x": FULLGRAD[1]}.items():
                last, text = rows[rows["name"] == name], f"{setting}: {name}"
                offset = last["draws"] * (1.06 + 0.06 * place)
                axes.plot(offset, last["auc"], marker=marker, label=text, **look)
        axes.set(xlabel="draws", xticks=sorted(set(part["draws"])))

    options: Any = {"labels": ("", "AUC-URR at 5 %"), "share": "", "columns": 3}
    figure = panels(
        points,
        draw,
        by="panel",
        size=(4.8, 4.4),
        title=f"How many draws does a map need? (bars: {OVER_EXAMPLES})",
        **options,
    )
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=2, fontsize=13, frameon=False)
    return figure, points


def claim_frozen(study: Notebook, frame: pd.DataFrame, setting: str) -> None:
    """Claim that the temperatures of a named setting lose less than `BOUND` against the best of a sweep."""
    keys = ["dataset", "example"]
    sides = [
        frame[(frame[FIELDS] == pd.Series(pair._asdict())).all(axis=1)].set_index(keys)["auc"]
        for pair in (SETTINGS[setting], best(frame))
    ]
    text = f"{setting}: on validation pictures the frozen temperatures lose less than {BOUND} against the best"
    judge(study, text, (sides[0] - sides[1]).dropna(), above=-BOUND)


def claim_parts(study: Notebook, frame: pd.DataFrame) -> None:
    """Claim, for each data set and setting, that its parts are worth something.

    Args:
        study: the notebook that makes the claims.
        frame: rows of `ablation` with the column dataset.
    """
    for (dataset, setting), part in frame.groupby(["dataset", "setting"], sort=False):
        table = part.pivot(index="example", columns=["part", "change"], values="auc").dropna()
        own, keys = table[UNCHANGED], list[Any](table)
        facts: dict[str, Any] = {"dataset": str(dataset), "source": PAPER}
        for rival in CONTROLS:
            against = f"with {rival[1]}" if rival[0] == "coefficients" else rival[1]
            judge(study, f"{setting}: the map has a larger AUC-URR than {against}", own - table[rival], **facts)
        gaps = {key: table[key] - own for key in keys if key[0] == "coefficients" and key not in CONTROLS}
        name, gap = max(gaps.items(), key=lambda pair: abs(float(pair[1].mean())))
        size = gap * (1 if gap.mean() > 0 else -1)
        text = f"{setting}: other coefficients ({name[1]}) change AUC-URR by more than {BOUND}"
        judge(study, text, size, above=BOUND, **facts)
        variants = [key for key in keys if key[0] != SIGNED[0]]
        text = f"{setting}: signed gradient x input of U has a larger AUC-URR than the best of all variants"
        judge(study, text, table[SIGNED] - table[table[variants].mean().idxmax()], **facts)
        text = f"{setting}: rank correlation with FullGrad of the prediction is below 0.9 (0.9 less the correlation)"
        like = part[part["change"] == UNCHANGED[1]]["prediction"].dropna()
        judge(study, text, 0.9 - like, dataset=str(dataset))


def claim_draws(study: Notebook, frame: pd.DataFrame) -> None:
    """Claim, for each data set, posterior and setting, that a map of all draws is better than one of the fewest.

    Args:
        study: the notebook that makes the claims.
        frame: rows of `few_draws` with the columns dataset and posterior.
    """
    rows = frame[frame["name"] == "UA-Backprop"]
    for (dataset, posterior, setting), part in rows.groupby(["dataset", "posterior", "setting"], sort=False):
        table = part.pivot(index="example", columns="draws", values="auc").dropna()
        few, many = table.columns[[0, -1]]
        text = f"{setting}, {posterior}: the map of {many} draws has a larger AUC-URR than that of {few}"
        judge(study, text, table[many] - table[few], dataset=str(dataset), source=PAPER)
