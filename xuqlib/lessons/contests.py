"""Claims about the weakest of several cases."""

from __future__ import annotations

from typing import Any

import pandas as pd

from xuqlib.lessons.reporting import judge
from xuqlib.study.intervals import OVER_EXAMPLES
from xuqlib.study.record import Notebook


def judge_weakest(study: Notebook, text: str, gains: pd.DataFrame, by: str = "posterior", **facts: Any) -> None:
    """Claim that a mean advantage lies above 0 in every group of `by`: the row shows the weakest case, by name.

    If the weakest in units of its standard error holds, all hold; if any fails, so does the weakest.

    Args:
        study, text, **facts: as for `judge`.
        gains: columns `by` and advantage.
    """
    cases = gains.groupby(by, sort=False)["advantage"]
    name = (cases.mean() / cases.sem()).idxmin()
    judge(study, text, cases.get_group(name), of=f"{OVER_EXAMPLES}; weakest: {name}", **facts)
