"""Results about several centre networks: tables and claims in which networks that disagree stay visible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from xuqlib.study.intervals import OVER_CENTRES, over_centres
from xuqlib.study.record import Notebook


def variance_ratios(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean variance over mean deviation, centre by centre; columns `by`, ratio, low and high: the extreme centres."""
    each = frame.groupby([*by, "seed"], sort=False)[["variance", "deviation"]].mean()
    ratio = (each["variance"] / each["deviation"]).groupby(list(by), sort=False)
    return pd.DataFrame({"ratio": ratio.mean(), "low": ratio.min(), "high": ratio.max()}).reset_index()


def settle(
    study: Notebook,
    text: str,
    frame: pd.DataFrame,
    value: str,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    **facts: Any,
) -> None:
    """Claim that the mean of a column lies between two bounds, at every centre; undecided where the interval does not.

    Args:
        study, text, **facts: as for `reporting.judge`.
        frame, value: as for `over_centres`.
    """
    row = over_centres(frame.assign(all=0), ["all"], value).iloc[0]
    low, high = float(row["low"]), float(row["high"])
    holds = True if at_least <= low and high <= at_most else False if high < at_least or low > at_most else None
    facts = {"n": int(frame["example"].nunique()), "seeds": int(row["centres"]), "note": OVER_CENTRES, **facts}
    study.claim(text, holds, value=float(row[value]), interval=(low, high), **facts)


def gain(frame: pd.DataFrame, better: Sequence[str], rival: Sequence[str], *, times: float = 1.0) -> pd.DataFrame:
    """How much lower a score is than `times` that of a rival, picture by picture, as a share of the rival's mean.

    Args:
        frame: columns posterior, version, seed, example and score.
        better, rival: a posterior and a version each.

    Returns:
        Columns seed, example and gain, where both are known.
    """
    sides = [
        frame[(frame["posterior"] == name) & (frame["version"] == version)].set_index(["seed", "example"])["score"]
        for name, version in (better, rival)
    ]
    return ((times * sides[1] - sides[0]) / sides[1].mean()).dropna().rename("gain").reset_index()
