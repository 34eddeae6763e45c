"""The figures of notebook 05 that no chart of the library draws."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels
from xuqlib.study.figures.rows import row_dots
from xuqlib.study.intervals import BOOTSTRAP, OVER_EXAMPLES
from xuqlib.study.names import plain, spoken

DIFFERS, OPEN = "differs from the other classes", "might not"
ASKED = ("asked about the runner-up", "asked otherwise", "floor: another picture")


def class_factors(frame: pd.DataFrame, words: str) -> Figure:
    """Draw how many times larger a class's CV is than the others', by explainer.

    Args:
        frame: columns dataset, explainer, class ("data set: class"), value, low, high.
        words: what is compared.
    """
    differs = (frame["low"] > 1) | (frame["high"] < 1)
    names = frame[["dataset", "class"]].itertuples(index=False)
    return row_dots(
        frame.assign(
            panel=frame["explainer"].map(spoken),
            group=frame["dataset"].map(spoken),
            row=[name.removeprefix(f"{dataset}: ") for dataset, name in names],
            mark=differs.map({True: DIFFERS, False: OPEN}),
        ),
        marks=(DIFFERS, OPEN),
        label="CV of the class / CV of the other classes",
        caption=f"Line: {BOOTSTRAP}. Easiest class on top.",
        line=1,
        title=f"{words}: a class differs from the others "
        f"in {differs.sum()} of {len(frame)} cases",
    )


def asked_dots(frame: pd.DataFrame) -> Figure:
    """Draw how alike the map of each question is to that of the predicted class.

    Args:
        frame: columns dataset, answer, asked, explainer, spearman, low and high.
    """
    kinds = {"runner-up": ASKED[0], "another picture": ASKED[2]}
    runner_up = frame[frame["asked"] == "runner-up"]
    alike = runner_up.groupby("explainer")["spearman"].mean().round(2) + 0.0
    most, *rest = alike.sort_values(ascending=False).items()
    others = ", ".join(f"{spoken(name)}: {value:.2f}" for name, value in rest)
    return row_dots(
        frame.assign(
            panel=frame["explainer"].map(spoken),
            group=frame["dataset"].map(spoken) + ", " + frame["answer"] + " answers",
            row=frame["asked"],
            value=frame["spearman"],
            mark=frame["asked"].map(kinds).fillna(ASKED[1]),
        ),
        marks=ASKED,
        label="rank correlation with the map of the predicted class",
        caption=f"Line: {OVER_EXAMPLES}.",
        line=0,
        title=f"{spoken(most[0])}'s map of the runner-up is {most[1]:.2f} like "
        f"that of the predicted class ({others})",
    )


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
