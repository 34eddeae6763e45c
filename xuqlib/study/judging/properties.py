"""Properties that an explanation should have, whatever it shows: stability and sparseness."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from xuqlib.checks import check_count, check_number
from xuqlib.explain import explain
from xuqlib.explainers import Explainer
from xuqlib.metrics.similarity import sparseness
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.uncertainty import logits_of


def relative_input_stability(
    draws: Draws,
    explainer: Explainer,
    x: Tensor,
    *,
    radius: float = 0.02,
    num_copies: int = 5,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """How many per cent an explanation changes at worst when its input changes by one per cent.

    The largest quotient, over noisy copies x' with the same answer, of |e(x') - e(x)| / |e(x)| and |x' - x| / |x|, in
    Euclidean norms. The source divides pixel by pixel, which zeros in a map or a picture send to infinity: a choice.

    Args:
        draws: fixed networks of a classifier.
        explainer, **options: as for `explain`; the class is the answer to x, for the copies too.
        x: examples (N, ...).
        radius: standard deviation of the noise.
        num_copies: noisy copies of each example.
        seed: of the noise.

    Returns:
        One row per example: example, mean and std, the stability of the map over draws of this name; lower is
        steadier. NaN where no copy keeps the answer or the map is 0.

    Raises:
        ValueError: radius is not above 0, or there is no copy.

    Source: Agarwal et al. 2022, eq. 2. arXiv 2203.06877.
    """
    check_number(radius, 0, "radius", above=True)
    noise = torch.randn((check_count(num_copies, 1, "num_copies"), *x.shape), generator=generator_of(seed))
    target = logits_of(draws, x).softmax(-1).mean(0).argmax(1)

    def both(at: Tensor) -> dict[str, Tensor]:
        e = explain(draws, explainer, at, target, progress=False, **options)
        return {"mean": e.mean().flatten(1), "std": e.std().flatten(1)}

    before, worst = both(x), dict.fromkeys(("mean", "std"), torch.full((len(x),), math.nan, dtype=torch.float64))
    for each in noise.to(x):
        copies = x + radius * each
        same = logits_of(draws, copies).softmax(-1).mean(0).argmax(1) == target
        moved = (copies - x).double().flatten(1).norm(dim=1) / x.double().flatten(1).norm(dim=1)
        for name, after in both(copies).items():
            change = (after - before[name]).norm(dim=1) / before[name].norm(dim=1)
            quotient = torch.where(same, change / moved.to(change), math.nan)
            worst[name] = torch.fmax(worst[name], quotient)
    return pd.DataFrame({"example": range(len(x)), **{name: value.numpy() for name, value in worst.items()}})


def properties(
    draws: Draws, explainer: Explainer, x: Tensor, *, num_copies: int = 3, seed: int = 0, **options: Any
) -> pd.DataFrame:
    """`sparseness` and `relative_input_stability` of the mean map and the std map of each example.

    Returns:
        One row per example: "sparse mean", "sparse std", "stability mean", "stability std".
    """
    e = explain(draws, explainer, x, progress=False, **options)
    stable = relative_input_stability(draws, explainer, x, num_copies=num_copies, seed=seed, **options)
    sparse = {f"sparse {name}": sparseness(each).numpy() for name, each in (("mean", e.mean()), ("std", e.std()))}
    return pd.DataFrame(sparse | {f"stability {name}": stable[name] for name in ("mean", "std")})
