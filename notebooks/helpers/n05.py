"""The figure of notebook 05 that no chart of the library draws."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels
from xuqlib.study.names import plain


def class_panels(frame: pd.DataFrame, named: Mapping[str, str]) -> Figure:
    """CV of each class over its error, a panel per data set and explainer.

    Named are the classes of largest error, and of largest and smallest CV.

    Args:
        frame: one row per class: columns panel, dataset, kind (the class), error, cv.
        named: a class of a data set that is to be named, too.
    """

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        axes.plot(part["error"], part["cv"], "o")
        error, cv = part["error"], part["cv"]
        chosen = part.index[part["kind"] == named.get(part["dataset"].iloc[0], "")]
        rows = sorted({error.idxmax(), cv.idxmax(), cv.idxmin(), *chosen})
        for row in part.loc[rows].itertuples():
            axes.annotate(
                plain(row.kind),
                (row.error, row.cv),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=14,
            )
        axes.margins(0.3)

    return panels(
        frame,
        draw,
        by="panel",
        labels=("share of wrong answers", "ratio CV (geometric mean)"),
        share="",
        columns=3,
        title="Each dot is a class",
    )
