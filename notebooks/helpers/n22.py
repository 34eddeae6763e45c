"""The two figures of notebook 22: where a share is lost, and how far a CV can go."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.charts import HUES, Picture, styled
from xuqlib.study.figures.panels import panels


@styled
def own_share_curve(frame: pd.DataFrame, *, paper: float, title: str) -> Figure:
    """Own share over tau1, a line for each probability, named where it falls.

    Args:
        frame: columns p, tau1 and "own share".
        paper: tau1 of the setting "paper", drawn as an upright line.
        title: the claim of the figure.
    """
    figure = Picture(figsize=(9, 5.2))
    axes = figure.subplots()
    for p, part in frame.groupby("p"):
        axes.plot(part["tau1"], part["own share"], color=HUES[0])
        half = part.loc[part["own share"] < 0.5, "tau1"].min()
        axes.text(half, 0.52, f"{p:g}", fontsize=14)
    axes.axvline(paper, color="black", linewidth=1.5)
    axes.text(paper / 1.2, 0.3, "tau1\nof paper", fontsize=13, ha="right")
    axes.set(xscale="log", ylim=(0, 1.05), xlabel="tau1; beside each line: p")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("share that stays with its own logit")
    figure.suptitle(title)
    return figure


def ceiling_panels(frame: pd.DataFrame, *, most: float, title: str) -> Figure:
    """CV of each pixel over its mean, below the two ceilings, a panel per data set.

    Args:
        frame: columns dataset, mean (of maps in [0, 1]) and cv.
        most: the largest CV of so many draws.
        title: the claim of the figure.
    """
    means = np.linspace(1 / (1 + most**2), 1, 200)

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        axes.plot(part["mean"], part["cv"], ".", markersize=3)
        axes.plot(means, ((1 - means) / means) ** 0.5, color="black")
        axes.plot([0, means[0]], [most, most], color="black")
        axes.text(0.23, 2.1, "ceiling", fontsize=14)

    return panels(
        frame,
        draw,
        by="dataset",
        labels=("mean over draws of a rescaled pixel, in [0, 1]", "CV"),
        columns=2,
        size=(5.0, 4.0),
        title=title,
    )
