"""Figures of notebook 18: temperatures, changed parts, and maps of few draws."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from xuqlib.study.figures.charts import curve, dots
from xuqlib.study.figures.rows import row_dots
from xuqlib.study.intervals import OVER_EXAMPLES
from xuqlib.study.names import spoken
from xuqlib.ua_backprop import Setting

MOVED = {
    "tau1": "tau1 of step 2",
    "tau2": "tau2 of step 3",
    "tau2, relative": "tau2, relative",
}
FROZEN = ("frozen", "moved")
CONTROLS = ("UA-Backprop, fewest draws", "control, all draws")


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


def temperature_dots(frame: pd.DataFrame, *, frozen: Setting) -> Figure:
    """Draw what moving one temperature of a frozen pair does to AUC-URR.

    Args:
        frame: columns dataset, moved (a key of `MOVED`), at, auc (a difference), low,
            high.
        frozen: the pair.
    """
    reach = frame.groupby("moved")["auc"].agg(lambda values: values.abs().max())
    own = (frame["moved"] != "tau2, relative") & (
        frame["at"] == frame["moved"].map(frozen._asdict())
    )
    return row_dots(
        frame.assign(
            panel=frame["dataset"].map(spoken),
            group=frame["moved"].map(MOVED),
            row=frame["at"].map("{:g}".format),
            value=frame["auc"],
            mark=own.map({True: FROZEN[0], False: FROZEN[1]}),
        ),
        marks=FROZEN,
        label="change of AUC-URR",
        caption=f"Validation pictures. Line: {OVER_EXAMPLES}.",
        line=0,
        title=f"Moved alone, tau1 changes AUC-URR by up to {reach['tau1']:.3f}, "
        f"and tau2 by up to {reach['tau2']:.3f}",
    )


def draws_dots(frame: pd.DataFrame) -> Figure:
    """Draw how the map of the fewest draws, and controls, differ from that of all.

    Args:
        frame: columns dataset, posterior, setting, name, auc (a difference), low, high.
    """
    few = frame["name"].str.startswith("UA-Backprop")
    worse, better = frame.loc[few, "high"] < 0, frame.loc[~few, "low"] > 0
    lanes = ", ".join(dict.fromkeys(frame["setting"]))
    return row_dots(
        frame.assign(
            panel=frame["posterior"].map(spoken),
            group=frame["dataset"].map(spoken),
            row=frame["name"],
            lane=frame["setting"],
            value=frame["auc"],
            mark=few.map({True: CONTROLS[0], False: CONTROLS[1]}),
        ),
        marks=CONTROLS,
        label="AUC-URR less that of UA-Backprop with all draws",
        caption=f"From the top of a row: {lanes}. Line: {OVER_EXAMPLES}.",
        line=0,
        title=f"The fewest draws are worse than all in {worse.sum()} of {len(worse)} "
        "cases; a control that leaves the idea out beats all draws in "
        f"{better.sum()} of {len(better)}",
    )
