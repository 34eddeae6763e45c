"""Diagnosis: what looks wrong with an explanation distribution, in words."""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from xuqlib.moments import Moments

# Where a finding begins; choices, set so that the trained networks of this study stay silent.
MANY_UNDEFINED = 0.5  # share of an example's pixels without a CV
UNIFORM = 0.05  # spread of a folded map over its pixels, relative to its mean
NEAR_CEILING = 0.9  # folded CV, relative to that of noise
FEW_DRAWS = 10


class Explanations(Protocol):
    """What `diagnose` reads: an `ExplanationDistribution`, which stands on this module and not under it."""

    @property
    def num_draws(self) -> int: ...
    @property
    def moments(self) -> Moments: ...
    @property
    def noise_ceiling(self) -> float: ...
    def mean(self) -> Tensor: ...
    def std(self) -> Tensor: ...
    def cv(self, kind: str = ..., *, rescale: bool = ...) -> Tensor: ...
    def undefined_share(self, kind: str = ...) -> Tensor: ...


def diagnose(explanation: Explanations) -> list[str]:
    """Name the signatures of explanations that failed, or whose statistics cannot be trusted.

    Values that are not finite, maps of zeros, draws that do not differ, a map that is nearly equal everywhere, a CV
    that is undefined on most pixels or as large as that of noise without a sign, and too few draws.

    Returns:
        One sentence per finding: what was found, for how many examples, and what to do. Empty if nothing was.

    Source: arXiv 2403.17224, section 5, names undefined CVs and uniformly activated maps.
    """
    mean, std = explanation.mean().flatten(1), explanation.std().flatten(1)
    finite = (mean.isfinite() & std.isfinite()).all(1)  # (N,)
    dead = finite & (mean == 0).all(1) & (std == 0).all(1)
    alive = finite & ~dead
    # Round-off of the running variance is this far below the mean.
    identical = alive & (std <= 1e-12 * mean.abs().amax(1, keepdim=True)).all(1) & (explanation.num_draws > 1)
    found = [
        _sentence(~finite, "hold NaN or infinite attributions", "look for overflow in the network or its input"),
        _sentence(dead, "are zero everywhere, in every draw", "check the target, and for dead ReLUs"),
        _sentence(identical, "are the same in every draw", "check that the posterior is random where it matters"),
        *_of_maps(explanation, alive, alive & ~identical),
        _of_draws(explanation.num_draws),
    ]
    return [sentence for sentence in found if sentence]


def _of_maps(explanation: Explanations, alive: Tensor, spread: Tensor) -> list[str]:
    """Findings on the folded maps of those examples that have one, and whose draws differ."""
    folded = explanation.moments.of["folded"]
    size = folded.mean.flatten(1)
    evenness = size.std(1, correction=0) / size.mean(1)
    uniform = alive & (evenness < UNIFORM) & (size.shape[1] > 1)
    share = explanation.undefined_share("paper")
    undefined = alive & ~uniform & (share > MANY_UNDEFINED)
    cv, ceiling = explanation.cv("paper", rescale=False).flatten(1).nanmedian(1).values, explanation.noise_ceiling
    noisy = spread & (cv > NEAR_CEILING * ceiling)
    return [
        _sentence(
            uniform,
            f"are nearly equal everywhere (over pixels or features they vary by {_percent(evenness, uniform)} of their "
            "mean)",
            "do not read a place into them; try another explainer",
        ),
        _sentence(
            undefined,
            f"have no coefficient of variation on {_percent(share, undefined)} of their pixels or features, where the "
            "mean is too small",
            'report that share, and use cv("ratio") or sign_agreement()',
        ),
        _sentence(
            noisy,
            f"are no steadier than noise without a sign (median folded CV {_mean(cv, noisy):.2f}, noise has "
            f"{ceiling:.2f})",
            "do not trust a single draw's map; look at the mean and its standard_error()",
        ),
    ]


def _of_draws(num_draws: int) -> str:
    if num_draws == 1:
        return "There is 1 draw, so no spread can be told: take at least 10."
    if num_draws >= FEW_DRAWS:
        return ""
    error = 1 / math.sqrt(2 * (num_draws - 1))
    return f"There are {num_draws} draws, so each std is off by about {error:.0%}: take at least {FEW_DRAWS}."


def _sentence(which: Tensor, what: str, advice: str) -> str:
    affected = int(which.sum())
    return f"The explanations of {affected} of {len(which)} examples {what}: {advice}." if affected else ""


def _mean(values: Tensor, which: Tensor) -> float:
    return float(values[which].mean()) if which.any() else math.nan


def _percent(values: Tensor, which: Tensor) -> str:
    return f"{100 * _mean(values, which):.1f} %"
