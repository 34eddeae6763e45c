"""Stress: images made odd on purpose, and how well any score tells them from clean ones."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from xuqlib.checks import check_choice, check_target
from xuqlib.path import blocks
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import (
    Amount,
    Column,
    Columns,
    Count,
    Pictures,
    Seed,
    Several,
    Table,
    Target,
    check_columns,
    checked,
)
from xuqlib.study.intervals import roc_area

CORRUPTIONS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # sigma in pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # what is left of it
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # size of the small copy
}


@checked
def corrupt(x: Pictures, kind: str, severity: Count, *, seed: Seed = 0) -> Tensor:
    """Make pictures worse in one of five ways, at one of five strengths.

    The strengths are those of CIFAR-10-C, made for small pictures. Brightness is added to every channel (there: to the
    value channel of HSV), and pixelate keeps nearest pixels (there: means of boxes), so that any picture will do.

    Args:
        x: pictures (N, C, H, W) in [0, 1].
        kind, severity: a key of `CORRUPTIONS`, and 1 to 5.
        seed: of the noise; the others are not random.

    Returns:
        Pictures in [0, 1], shaped like x.

    Raises:
        ValueError: x is no stack of pictures, or kind or severity is not known.

    Source: Hendrycks & Dietterich 2019, arXiv 1903.12261; levels of the authors' script for CIFAR-10-C.
    """
    check_choice(kind, CORRUPTIONS, "corruption")
    if severity > 5:
        raise ValueError(f"severity is {severity}; pass 1 to 5")
    level = CORRUPTIONS[kind][severity - 1]
    if kind == "gaussian_noise":
        noise = torch.randn(x.shape, generator=generator_of(seed), dtype=torch.float64, device="cpu")
        worse = x + level * noise.to(x)
    elif kind == "blur":
        worse = torch.from_numpy(gaussian_filter(np.asarray(x.detach().cpu()), level, axes=(2, 3), mode="nearest"))
    elif kind == "contrast":
        worse = torch.lerp(x.mean((2, 3), keepdim=True), x, level)
    elif kind == "brightness":
        worse = x + level
    else:
        small = F.interpolate(x, size=[max(1, int(side * level)) for side in x.shape[2:]], mode="nearest-exact")
        worse = F.interpolate(small, size=x.shape[2:], mode="nearest-exact")
    return worse.to(x).clamp(0, 1)


@checked
def fgsm(draws: Draws, x: Pictures, target: Target, epsilon: Amount) -> Tensor:
    """Move every pixel by epsilon to where the mean prediction of the draws loses most, to first order.

    Args:
        draws: fixed networks, attacked together: the loss is the cross-entropy of their mean probability.
        x: pictures (N, C, H, W) in [0, 1].
        target: class to lead away from, (N,); the true one, as a rule.
        epsilon: how far each pixel moves.

    Returns:
        Pictures in [0, 1], shaped like x.

    Source: Goodfellow et al. 2015, section 4. arXiv 1412.6572.
    """
    return pgd(draws, x, target, epsilon, num_steps=1, step_size=epsilon)


@checked
def pgd(
    draws: Draws,
    x: Pictures,
    target: Target,
    epsilon: Amount,
    *,
    num_steps: Count = 10,
    step_size: Amount | None = None,
    seed: Seed | None = None,
    batch_size: Count = 32,
) -> Tensor:
    """Take several steps of `fgsm`, each brought back to where no pixel is further than epsilon from its own.

    Args:
        draws, x, target, epsilon: as for `fgsm`.
        step_size: of one step; 2.5 epsilon / num_steps by default, so that the far side of the ball can be reached.
        seed: of a random start within the ball; None starts at x itself.
        batch_size: examples attacked at a time.

    Returns:
        Pictures in [0, 1], shaped like x.

    Raises:
        ValueError: target does not fit, or a number is negative.

    Source: Madry et al. 2018, section 2.1. arXiv 1706.06083.
    """
    step = 2.5 * epsilon / num_steps if step_size is None else step_size
    classes = check_target(target, len(x), draws(x[:1]).shape[-1]).to(x.device)
    low, high = (x - epsilon).clamp(min=0), (x + epsilon).clamp(max=1)
    moved = x.detach().clone()
    if seed is not None:
        start = torch.rand(x.shape, generator=generator_of(seed), dtype=torch.float64, device="cpu")
        moved = (moved + epsilon * (2 * start - 1).to(x)).clamp(low, high)
    for rows in blocks(len(x), batch_size):  # slices: a device would be sent numbers of rows at each step
        for _ in range(num_steps):
            uphill = _slope_of_loss(draws, moved[rows], classes[rows]).sign()
            moved[rows] = (moved[rows] + step * uphill).clamp(low[rows], high[rows])
    return moved


@torch.enable_grad()
def _slope_of_loss(draws: Draws, x: Tensor, target: Tensor) -> Tensor:
    point = x.detach().requires_grad_()
    log_mean = draws(point).log_softmax(-1).logsumexp(0) - math.log(len(draws))  # (N, C)
    return torch.autograd.grad(F.nll_loss(log_mean, target.to(log_mean.device), reduction="sum"), point)[0]


@checked
def detection(
    clean: Table,
    odd: Table,
    *,
    against: Column = "entropy",
    paired: bool = False,
    num_resamples: Several = 1000,
    seed: Seed = 0,
) -> pd.DataFrame:
    """How well each column tells odd examples from clean ones, and how much better than one of them does.

    AUROC is the chance that the score of an odd example exceeds that of a clean one, ties counting half; 0.5 knows
    nothing, and less means that odd examples score lower. All columns meet the same bootstrap resamples.

    Args:
        clean, odd: one row per example, one column of floats per detector, higher meaning odder; other columns are
            passed over. NaN drops an example from that detector alone.
        against: the column that the others are compared with.
        paired: whether row i of `odd` is row i of `clean`, changed; then both are resampled together.
        num_resamples, seed: of the bootstrap over examples.

    Returns:
        One row per column: detector, auroc, low, high; gain = auroc - that of `against`, gain_low, gain_high (95 %
        percentiles); undefined, the share of NaN.

    Raises:
        ValueError: a frame is empty, `against` is no column, or paired frames differ in length.
    """
    check_columns(odd, *map(str, clean.select_dtypes("float")))
    if paired and len(clean) != len(odd):
        raise ValueError(f"paired, but {len(clean)} rows are clean and {len(odd)} odd; pass as many of both")
    clean, odd = clean.select_dtypes("float"), odd.select_dtypes("float")
    area, rows = partial(roc_area, paired=paired, num_resamples=num_resamples, seed=seed), []
    for name in clean.columns:
        scores = (odd[name], clean[name])
        missing = float(pd.concat(scores).isna().mean())
        gain = area(*scores, other_values=odd[against], other_against=clean[against])
        rows.append((name, *area(*scores), *gain, missing))
    names = ["detector", "auroc", "low", "high", "gain", "gain_low", "gain_high", "undefined"]
    return pd.DataFrame(rows, columns=names)


@checked
def combined(
    clean: Table, odd: Table, columns: Columns, *, num_folds: Several = 5, seed: Seed = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Score examples by several detectors together: a logistic regression, cross-validated over examples.

    An example and its changed copy, in the same row of both frames, are always in the same fold.

    Args:
        clean, odd: as for `detection`; NaN becomes the column's median.
        columns: the detectors to combine.
        num_folds, seed: of the folds; each is scored by a regression that saw the others.

    Returns:
        Log odds of being odd, of the clean and of the odd examples.
    """
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_columns(odd, *columns)
    order = np.random.default_rng(seed).permutation(max(len(clean), len(odd))) % num_folds
    folds = PredefinedSplit(np.concatenate([order[: len(clean)], order[: len(odd)]]))
    values = np.concatenate([frame[list(columns)].to_numpy(float) for frame in (clean, odd)])
    truth = np.repeat([0, 1], [len(clean), len(odd)])
    model = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, values, truth, cv=folds, method="decision_function")
    return scores[: len(clean)], scores[len(clean) :]
