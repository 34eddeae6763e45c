"""Notebook 11: gains over another training of the same seed, in rows of dots."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from xuqlib.study.figures.rows import row_dots
from xuqlib.study.intervals import OVER_SEEDS, over_seeds

MASK = "true mask"
MARKS = ("UA-Backprop", "the true mask", "other arms")


def _dots(points: pd.DataFrame, ours: Sequence[str], label: str, title: str) -> Figure:
    """A row per arm and a panel per setting; ours and the true mask are marked."""
    kinds = {MASK: MARKS[1]} | dict.fromkeys(ours, MARKS[0])
    return row_dots(
        points.assign(
            panel=points["setting"],
            group="",
            row=points["arm"],
            value=points["gain"],
            mark=points["arm"].map(kinds).fillna(MARKS[2]),
        ),
        marks=MARKS,
        label=label,
        caption=f"Clean test. In brackets: training pictures. Line: {OVER_SEEDS}.",
        line=0,
        title=title,
    )


def _span(gains: pd.Series) -> str:
    """The range of some gains in whole points: "+50", or "-4 to +6"."""
    ends = dict.fromkeys(f"{round(100 * end):+d}" for end in (gains.min(), gains.max()))
    return " to ".join(ends).replace("+0", "0")


def accuracy_dots(
    frame: pd.DataFrame, *, ours: Sequence[str], counting: Sequence[str]
) -> tuple[Figure, pd.DataFrame]:
    """Draw what each arm gains in accuracy over no fading.

    Args:
        frame: columns setting, arm, seed and gain.
        ours: arms that fade by the map of the uncertainty.
        counting: settings in which the true mask gains enough; the title is of them.

    Returns:
        The figure, and the table that it shows.
    """
    points = over_seeds(frame, ["setting", "arm"])
    counted = points[points["setting"].isin(counting)].set_index("arm")["gain"]
    title = "No setting counts: even the true mask gains less than 3 points"
    if len(counted):
        truth, mine = counted[[MASK]], counted[counted.index.isin(ours)]
        title = (
            f"Where the true mask gains {_span(truth)} points of accuracy, "
            f"UA-Backprop's map gains {_span(mine)}"
        )
    return _dots(points, ours, "accuracy gained over the arm none", title), points


def likelihood_dots(frame: pd.DataFrame, *, ours: str) -> tuple[Figure, pd.DataFrame]:
    """Draw what each arm gains in nats over the shuffled pixels of our map.

    Args:
        frame: columns setting, arm, seed and gain.
        ours: the arm whose pixels were shuffled.

    Returns:
        The figure, and the table that it shows.
    """
    points = over_seeds(frame, ["setting", "arm"])
    mine = points[points["arm"] == ours]
    better, worse = (mine["low"] > 0).sum(), (mine["high"] < 0).sum()
    title = (
        f"UA-Backprop's map beats its own shuffled pixels in {better} of {len(mine)} "
        f"settings, and loses to them in {worse}"
    )
    label = "nats gained over the arm shuffled pixels"
    return _dots(points, [ours], label, title), points
