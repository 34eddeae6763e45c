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
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Batch, Count, Maps, Masks, Positive, Seed, checked, shown
from xuqlib.uncertainty import logits_of


@checked
def relative_input_stability(
    draws: Draws,
    explainer: Explainer,
    x: Batch,
    *,
    radius: Positive = 0.02,
    num_copies: Count = 5,
    seed: Seed = 0,
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


@checked
def properties(
    draws: Draws, explainer: Explainer, x: Batch, *, num_copies: Count = 3, seed: Seed = 0, **options: Any
) -> pd.DataFrame:
    """`sparseness` and `relative_input_stability` of the mean map and the std map of each example.

    Returns:
        One row per example: "sparse mean", "sparse std", "stability mean", "stability std".
    """
    e = explain(draws, explainer, x, progress=False, **options)
    stable = relative_input_stability(draws, explainer, x, num_copies=num_copies, seed=seed, **options)
    sparse = {f"sparse {name}": sparseness(each).numpy() for name, each in (("mean", e.mean()), ("std", e.std()))}
    return pd.DataFrame(sparse | {f"stability {name}": stable[name] for name in ("mean", "std")})


@checked
def on_evidence(attribution: Maps, mask: Masks) -> pd.DataFrame:
    """How much of each map lies on the pixels that are known to matter.

    Args:
        attribution: (N, C, H, W).
        mask: True on the evidence, (N, H, W).

    Returns:
        One row per example: share of |attribution| on the mask; hit, whether the largest pixel lies on it (the part of
        them where several tie, as within a superpixel); area, the mask's share of the image.
    """
    if attribution.dim() != 4 or mask.shape != attribution[:, 0].shape:
        raise ValueError(f"attribution is {shown(attribution)}, mask {shown(mask)}; pass (N, C, H, W) and (N, H, W)")
    size = attribution.double().abs().sum(1)  # (N, H, W)
    top = (size == size.amax((1, 2), keepdim=True)).double()
    inside = mask.to(size)
    share, hit = ((each * inside).sum((1, 2)) / each.sum((1, 2)) for each in (size, top))
    return pd.DataFrame({"share": share.numpy(), "hit": hit.numpy(), "area": inside.mean((1, 2)).numpy()})


@checked
def sparseness(maps: Maps) -> Tensor:
    """Gini index of |map| of each example, summed over channels: on how few pixels, or features, it lies.

    Args:
        maps: (N, C, H, W) or (N, F), n pixels or features.

    Returns:
        (N,), float64: 0 where all are equal, 1 - 1/n where only one is not 0; NaN where all are 0.

    Source: Hurley & Rickard 2009, table 1, arXiv 0811.4706; for attributions Chalasani et al. 2020, arXiv 1810.06583.
    """
    values = (maps.sum(1) if maps.ndim == 4 else maps).double().flatten(1).abs().sort(1).values
    n = values.shape[1]
    shares = values / values.sum(1, keepdim=True)  # 0 / 0 is NaN
    return 1 - 2 * (shares * (n - torch.arange(n).to(shares) - 0.5) / n).sum(1)
