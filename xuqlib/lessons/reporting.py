"""What the notebooks write down about their results: maps as tables, and claims about a mean over examples."""

from __future__ import annotations

from typing import Any

import pandas as pd

from xuqlib.study.intervals import OVER_EXAMPLES
from xuqlib.study.record import Notebook


def judge(
    study: Notebook,
    text: str,
    values: pd.Series,
    *,
    above: float = 0.0,
    against: pd.Series | None = None,
    unit: str = "",
    of: str = OVER_EXAMPLES,
    **facts: Any,
) -> None:
    """Claim that the mean of `values` lies above a bound: it holds, or not, where two standard errors decide it.

    Args:
        study: the notebook that makes the claim.
        text: the claim, in words that can be wrong.
        values: one number per example; a difference where each example is its own control.
        above: the bound.
        against: other examples, whose mean is taken off; its error counts, too.
        unit: unit of the values.
        of: what the interval is of.
        **facts: claim, dataset, seeds and source, as for `Notebook.claim`.

    Raises:
        ValueError: fewer than two values, or values that are not finite.
    """
    sides = [values] if against is None else [values, against]
    for side in sides:
        if len(side) < 2 or not side.abs().lt(float("inf")).all():
            raise ValueError(f"claim {text!r} rests on {len(side)} values; wanted two or more finite numbers")
    means = [float(side.mean()) for side in sides]
    mean, error = means[0] - sum(means[1:]), sum(float(side.var()) / len(side) for side in sides) ** 0.5
    low, high = mean - 2 * error, mean + 2 * error
    holds = True if low > above else False if high <= above else None
    facts = {"n": len(values)} | facts
    study.claim(text, holds, value=mean, interval=(low, high), unit=unit, note=of, **facts)
