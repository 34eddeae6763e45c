"""Orderings: which statistic of an explanation distribution puts the pixels in order."""

from __future__ import annotations

import torch
from torch import Tensor

from xuqlib.checks import check_choice
from xuqlib.distribution import ExplanationDistribution
from xuqlib.study.checked import checked

STATISTICS = ("mean", "std", "cv", "signed")


@checked
def importance(e: ExplanationDistribution, statistic: str) -> Tensor:
    """Reduce an explanation distribution to one number per pixel, by which pixels can be put in order.

    Args:
        e: attributions, of images say; of a single draw, "mean" is that draw's map.
        statistic: of |attribution| summed over channels, over draws: "mean", "std" or "cv", the quotient of the two,
            -inf where it is undefined (`e.cv("paper", rescale=False)`), so that these pixels come last. "signed":
            the mean attribution summed over channels with its sign, so that what speaks against the class comes last.

    Returns:
        (N, H, W), or shaped like a table or signal, float64, in the unit of the attribution; "cv" has none.

    Source: arXiv 2403.17224, section 4, orders by mean and by std; how channels are folded is a choice.
    """
    check_choice(statistic, STATISTICS, "statistic")
    if statistic == "signed":
        return e.mean().sum(1) if e.has_channels else e.mean()
    if statistic == "cv":
        cv = e.cv("paper", rescale=False)
        return torch.where(cv.isnan(), -torch.inf, cv)
    folded = e.moments["folded"]
    return folded.mean if statistic == "mean" else folded.std()
