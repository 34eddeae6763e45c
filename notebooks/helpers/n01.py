"""The figure of notebook 01 that holds every score."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from xuqlib.study.figures.rows import behind_first, row_dots
from xuqlib.study.intervals import OVER_EXAMPLES
from xuqlib.study.judging.predictions import score_points
from xuqlib.study.names import spoken

PANELS = {"accuracy": "accuracy or R2", "r2": "accuracy or R2"}
MARKS = ("first", "clear of the first", "overlaps the first")


def score_dots(table: pd.DataFrame) -> Figure:
    """Draw how far each posterior lies behind the best of each data set and score.

    Args:
        table: rows of `score_row` with dataset and posterior.
    """
    points = score_points(table)
    points["good"] = points["score"].isin(PANELS).map({True: 1, False: -1})
    points["low"] = points["value"] - 2 * points["se"]
    points["high"] = points["value"] + 2 * points["se"]
    by = ["dataset", "score"]
    points = behind_first(points, by)
    keys = [points[name] for name in by]
    end = points["high"].where(points["first"]).groupby(keys).transform("max")
    clear = points["low"] > end
    points["mark"] = clear.map({True: MARKS[1], False: MARKS[2]})
    points.loc[points["first"], "mark"] = MARKS[0]

    alone = (clear | points["first"]).groupby(keys).all()
    firsts = points.loc[points["first"], "posterior"].value_counts()
    sets = ", ".join(spoken(name) for name in dict.fromkeys(points["dataset"]))
    return row_dots(
        points.assign(
            panel=points["score"].map(lambda name: PANELS.get(name, spoken(name))),
            group="",
            row=points["posterior"].map(spoken),
            lane=points["dataset"],
        ),
        marks=MARKS,
        label="distance behind the first, in units of two standard errors",
        caption=f"Line: {OVER_EXAMPLES}. From the top of a row: {sets}.",
        line=0,
        title=f"{alone.sum()} of {len(alone)} first places are clear of all rivals; "
        f"{spoken(firsts.index[0])} is first in {firsts.iloc[0]}",
    )
