"""Figures of notebook 18: temperatures, changed parts, and maps of few draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.charts import HUES, curve, dots
from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_EXAMPLES
from xuqlib.ua_backprop import Setting


def tau1_curve(
    frame: pd.DataFrame, y: str, *, hue: str, label: str, title: str
) -> Figure:
    """Draw a column over tau1, and its interval over examples; see `curve`."""
    return curve(
        frame,
        x="tau1",
        y=y,
        hue=hue,
        low="low",
        high="high",
        interval=OVER_EXAMPLES,
        log="x",
        labels=("tau1", label),
        title=title,
    )


def gain_dots(frame: pd.DataFrame, *, title: str) -> Figure:
    """Draw what each change does to AUC-URR, a row per change and a dot per data set.

    Args:
        frame: columns name, dataset, auc (a difference), low, high.
    """
    figure = dots(
        frame,
        x="auc",
        y="name",
        hue="dataset",
        low="low",
        high="high",
        interval=OVER_EXAMPLES,
        label="change of AUC-URR",
        title=title,
    )
    axes = figure.axes[0]
    axes.axvline(0, color="black", linewidth=1.5)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.label.set_fontsize(12)
    return figure


def loss_panels(frame: pd.DataFrame, *, frozen: Setting, title: str) -> Figure:
    """Write what each pair of temperatures loses into a grid; the frozen one in [].

    Args:
        frame: columns dataset, tau1, tau2, loss (of AUC-URR, at most 0).
    """
    lowest = frame["loss"].min()

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        table = part.pivot_table(index="tau1", columns="tau2", values="loss")
        tau1s, tau2s = list[Any](table.index), list[Any](table.columns)
        axes.imshow(table, cmap="cividis", vmin=lowest, vmax=0, aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            own = tau1s[row] == frozen.tau1 and tau2s[column] == frozen.tau2
            loss = f"{value:.3f}".replace("-0.000", "0.000")
            axes.text(
                column,
                row,
                f"[{loss}]" if own else loss,
                ha="center",
                va="center",
                fontsize=14,
                color="w" if value < lowest / 2 else "k",
                weight="bold" if own else "normal",
            )
        axes.set(xticks=range(len(tau2s)), xticklabels=[f"{tau:g}" for tau in tau2s])
        axes.set(yticks=range(len(tau1s)), yticklabels=[f"{tau:g}" for tau in tau1s])
        axes.grid(visible=False)

    return panels(
        frame,
        draw,
        by="dataset",
        labels=("tau2", "tau1"),
        share="",
        columns=3,
        size=(6.4, 5.2),
        title=title,
    )


def draws_panels(
    frame: pd.DataFrame, *, controls: Mapping[str, str], title: str
) -> Figure:
    """Draw AUC-URR over the number of draws as lines, and controls as crosses.

    Args:
        frame: columns panel, setting, name ("UA-Backprop" or a control), draws, auc,
            low.
        controls: marker to name.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        for place, (setting, rows) in enumerate(part.groupby("setting", sort=False)):
            line = rows[rows["name"] == "UA-Backprop"]
            axes.errorbar(
                line["draws"],
                line["auc"],
                line["auc"] - line["low"],
                color=HUES[place],
                marker="os"[place],
                label=str(setting),
            )
            for marker, name in controls.items():
                last = rows[rows["name"] == name]
                axes.plot(
                    last["draws"] * (1.06 + 0.06 * place),
                    last["auc"],
                    marker=marker,
                    color=HUES[place],
                    markersize=13,
                    markeredgewidth=3,
                    linestyle="none",
                    label=f"{setting}: {name}",
                )
        axes.set(xlabel="draws", xticks=sorted(set(part["draws"])))

    figure = panels(
        frame,
        draw,
        by="panel",
        labels=("", "AUC-URR at 5 %"),
        share="",
        columns=3,
        size=(4.8, 4.4),
        title=title,
    )
    lines = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        *lines, loc="outside lower center", ncols=2, fontsize=13, frameon=False
    )
    return figure
