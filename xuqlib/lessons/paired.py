"""One training against another of the same seed: paired gains, their intervals, their figure and their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from xuqlib.study.figures.panels import panels
from xuqlib.study.intervals import OVER_SEEDS, mean_of_trainings, over_seeds
from xuqlib.study.record import Notebook
from xuqlib.study.resuming import side_by_side

SCORES = ("accuracy", "nll", "ece", "epistemic")


def run_seeds(run: Callable[..., pd.DataFrame], jobs: Sequence[tuple[Any, ...]], *, num_jobs: int = 1) -> pd.DataFrame:
    """Call `run` with each job's arguments, in so many processes, and stack the frames in the order of the jobs."""
    return pd.concat(side_by_side((delayed(run)(*job) for job in jobs), num_jobs), ignore_index=True)


def gains(
    frame: pd.DataFrame, *, by: Sequence[str], side: str, against: str, scores: Sequence[str] = SCORES
) -> pd.DataFrame:
    """How much better than a reference each row scores, seed by seed: above 0 is better, or surer.

    Args:
        frame: of `one_seed` or `more_pictures`.
        by: columns that both sides have in common besides the seed.
        side: column that tells them apart, such as "arm".
        against: its value for the reference.
        scores: columns; of all but accuracy less is better.

    Returns:
        Columns `by`, `side`, seed, score, gain.
    """
    keys = [*by, "seed"]
    long = frame.melt([*keys, side], list(scores), "score", "value")
    reference = long[long[side] == against].drop(columns=side).rename(columns={"value": "reference"})
    both = long[long[side] != against].merge(reference, on=[*keys, "score"], how="left")
    sign = np.where(both["score"] == "accuracy", 1.0, -1.0)
    return both.assign(gain=sign * (both["value"] - both["reference"])).drop(columns=["value", "reference"])


def gain_panels(frame: pd.DataFrame, *, by: str, side: str, unit: str, title: str) -> tuple[Figure, pd.DataFrame]:
    """Dots of the mean gain of each `side`, a panel for each value of `by`, and the frame that they show.

    Args:
        frame: of `gains`, one score.
        by: column whose values make the panels.
        side: column whose values stand below each other, in their order.
        unit: of the gains.
        title: the claim of the figure.

    Returns:
        The figure, whose lines are `mean_of_trainings`, cut where they would leave the frame; and `over_seeds`.
    """
    names = list(dict.fromkeys(frame[side]))
    reach = 1.4 * frame.groupby([by, side])["gain"].mean().abs().groupby(by).max()

    def draw(axes: Axes, part: pd.DataFrame) -> None:
        limit = reach[part[by].iloc[0]] or 1.0
        ends = part[["low", "high"]].clip(-2 * limit, 2 * limit)  # a far end would cost precision, not show
        places = part[side].map(names.index)
        axes.hlines(places, ends["low"], ends["high"], linewidth=2.5)
        axes.plot(part["gain"], places, "o", markersize=9)
        axes.axvline(0, color="black", linewidth=1.5)
        axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), xlim=(-limit, limit))

    points = over_seeds(frame, [by, side])
    look: dict[str, Any] = {"share": "y", "columns": 2, "size": (5.8, 1.2 + 0.36 * len(names))}
    return panels(points, draw, by=by, labels=(f"{unit} (line: {OVER_SEEDS})", ""), title=title, **look), points


def judge_seeds(study: Notebook, text: str, values: pd.Series, score: str, **facts: str) -> None:
    """Claim that the mean gain over seeds is above 0, where its t-interval decides it.

    Args:
        study: the notebook that makes the claim.
        text: the claim, in words that can be wrong.
        values: one gain per seed.
        score: tells the unit.
        **facts: claim, dataset and source, as for `Notebook.claim`.
    """
    mean, low, high = mean_of_trainings(values)
    about: dict[str, Any] = {"n": len(values), "seeds": len(values), **facts}
    about |= {"unit": "nats" if score == "nll" else "", "interval": (low, high), "note": OVER_SEEDS}
    decided = high > low  # gains that are all alike, in steps of one example, say nothing about other seeds
    study.claim(text, True if decided and low > 0 else False if decided and high <= 0 else None, value=mean, **about)
