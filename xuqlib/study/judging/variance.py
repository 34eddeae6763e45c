"""How much of the spread of an explanation is the networks', and how much the explainer's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xuqlib.checks import check_count, check_examples
from xuqlib.device import device as default_device
from xuqlib.explain import explain, mean_probs, most_probable
from xuqlib.explainers import Explainer
from xuqlib.moments import Moments
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import seed_of
from xuqlib.study.checked import Batch, Seed, Several, Target, checked


@dataclass(frozen=True)
class VarianceSplit:
    """Var_total = Var_model + E[Var_explainer], each shaped like x, in squared units of the attribution.

    Unbiased estimates, so `model` may fall below 0 where the explainer's own noise hides the networks' spread.
    """

    model: Tensor
    explainer: Tensor

    @property
    def total(self) -> Tensor:
        return self.model + self.explainer


@checked
def variance_split(
    draws: Draws | Sequence[nn.Module],
    explainer: Explainer,
    x: Batch,
    target: Target | int | None = None,
    *,
    num_repeats: Several = 5,
    seed: Seed = 0,
    **options: Any,
) -> VarianceSplit:
    """Split the spread of an explainer that samples into the networks' part and its own.

    Every draw is explained `num_repeats` times, each time with another seed. The variance of one explanation, of a
    random draw under a random seed, is the variance over draws of the mean explanation plus the mean over draws of the
    variance over seeds (law of total variance), estimated without bias as in a one-way analysis of variance.

    Args:
        draws, explainer, x, target, **options: as for `explain`; the explainer takes `seed=`.
        num_repeats: explanations of each draw, at least 2.
        seed: of the explainer's seeds.

    Raises:
        ValueError: fewer than two draws or repeats.
    """
    check_examples(x)
    check_count(num_repeats, 2, "num_repeats")
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    check_count(len(draws), 2, "the number of draws")
    if target is None:
        where = default_device()
        target = most_probable(mean_probs(draws.on(where), x, where))
    means, variances = [], []
    for number, network in enumerate(draws):
        repeats = Moments()
        for repeat in range(num_repeats):
            one = explain([network], explainer, x, target, seed=seed_of(seed, number, repeat), **options)
            repeats.append(one.mean())
        means.append(repeats["raw"].mean)
        variances.append(repeats["raw"].std(correction=1) ** 2)
    within = torch.stack(variances).mean(0)
    between = torch.stack(means).var(0)  # holds 1/num_repeats of the explainer's variance
    return VarianceSplit(model=between - within / num_repeats, explainer=within)
