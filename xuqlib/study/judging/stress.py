"""Stress: pictures made odd on purpose, and how well uncertainty notices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from xuqlib.checks import check_choice, check_count, check_examples, check_number, check_target
from xuqlib.explain import explain
from xuqlib.explainers import Explainer
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.intervals import from_resamples
from xuqlib.uncertainty import decompose, logits_of

CORRUPTIONS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # sigma in pixels
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # what is left of it
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added
    "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),  # size of the small copy
}


def corrupt(x: Tensor, kind: str, severity: int, *, seed: int = 0) -> Tensor:
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
    check_examples(x)
    check_choice(kind, CORRUPTIONS, "corruption")
    if x.ndim != 4 or severity not in range(1, 6):
        raise ValueError(f"x is {tuple(x.shape)} and severity {severity}; pass pictures (N, C, H, W) and 1 to 5")
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


def fgsm(draws: Draws, x: Tensor, target: Tensor, epsilon: float) -> Tensor:
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


def pgd(
    draws: Draws,
    x: Tensor,
    target: Tensor,
    epsilon: float,
    *,
    num_steps: int = 10,
    step_size: float | None = None,
    seed: int | None = None,
    batch_size: int = 32,
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
    check_examples(x)
    check_number(epsilon, 0, "epsilon")
    check_count(num_steps, 1, "num_steps")
    step = check_number(2.5 * epsilon / num_steps if step_size is None else step_size, 0, "step_size")
    classes = check_target(target, len(x), draws(x[:1]).shape[-1]).to(x.device)
    low, high = (x - epsilon).clamp(min=0), (x + epsilon).clamp(max=1)
    moved = x.detach().clone()
    if seed is not None:
        start = torch.rand(x.shape, generator=generator_of(seed), dtype=torch.float64, device="cpu")
        moved = (moved + epsilon * (2 * start - 1).to(x)).clamp(low, high)
    for rows in torch.arange(len(x)).split(batch_size):
        for _ in range(num_steps):
            uphill = _slope_of_loss(draws, moved[rows], classes[rows]).sign()
            moved[rows] = (moved[rows] + step * uphill).clamp(low[rows], high[rows])
    return moved


@torch.enable_grad()
def _slope_of_loss(draws: Draws, x: Tensor, target: Tensor) -> Tensor:
    point = x.detach().requires_grad_()
    log_mean = draws(point).log_softmax(-1).logsumexp(0) - math.log(len(draws))  # (N, C)
    return torch.autograd.grad(F.nll_loss(log_mean, target, reduction="sum"), point)[0]


def signals(
    draws: Draws, x: Tensor, explainers: Mapping[str, tuple[Explainer, Mapping[str, Any]]], *, block: int = 32
) -> pd.DataFrame:
    """Everything about each example that might tell an odd one: uncertainty of the answer, and of its explanations.

    Each example is explained for the class that the draws answer to it, right or wrong: a user has no other.

    Args:
        draws: fixed networks of a classifier.
        x: pictures (N, C, H, W).
        explainers: name of each, with the function and its options.
        block: examples explained at a time.

    Returns:
        One row per example: example, answer (class), entropy and mutual_information of the answer (nats), brightness
        (the mean of x, a control that asks no network), and for each explainer "cv NAME", sum of std over sum of
        |mean|, and "std NAME", the sum of the std, in logits.
    """
    logits = logits_of(draws, x)
    answer, parts = logits.double().softmax(-1).mean(0).argmax(1), decompose(logits)
    columns: dict[str, Any] = {"example": range(len(x)), "answer": answer.numpy(), "entropy": parts.total.numpy()}
    columns |= {"mutual_information": parts.epistemic.numpy(), "brightness": x.double().flatten(1).mean(1).numpy()}
    for name, (explainer, options) in explainers.items():
        found = []
        for rows in torch.arange(len(x)).split(block):
            e = explain(draws, explainer, x[rows], answer[rows], progress=False, **options)
            found.append(torch.stack([e.cv("ratio"), e.std().flatten(1).sum(1)]))
        columns[f"cv {name}"], columns[f"std {name}"] = torch.cat(found, 1).numpy()
    return pd.DataFrame(columns)


def detection(
    clean: pd.DataFrame,
    odd: pd.DataFrame,
    *,
    against: str = "entropy",
    paired: bool = False,
    num_resamples: int = 1000,
    seed: int = 0,
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
    if clean.empty or odd.empty or against not in clean or (paired and len(clean) != len(odd)):
        raise ValueError(
            f"{len(clean)} clean and {len(odd)} odd rows, columns {list(clean)}; pass one or more of each (as many of "
            f"both if paired) and a column {against!r}"
        )
    clean, odd = clean.select_dtypes("float"), odd.select_dtypes("float")
    stream, sizes = np.random.default_rng(check_count(seed, 0, "seed")), (len(clean), len(odd))
    counts = [stream.multinomial(n, np.full(n, 1 / n), num_resamples) for n in sizes[: 1 if paired else 2]]
    weights = [np.vstack([np.ones(len(count[0]), int), count]) for count in (counts[0], counts[-1])]  # first: all once
    areas, missing = {}, {}
    for name in clean.columns:
        low, high = (frame[name].to_numpy(float) for frame in (clean, odd))
        wins = (high > low[:, None]) + 0.5 * (high == low[:, None])  # NaN never wins
        there = (weights[0] @ ~np.isnan(low)) * (weights[1] @ ~np.isnan(high))
        areas[name] = np.divide(((weights[0] @ wins) * weights[1]).sum(1), there, where=there > 0, out=there * np.nan)
        missing[name] = float(np.isnan(np.concatenate([low, high])).mean())
    names = ["detector", "auroc", "low", "high", "gain", "gain_low", "gain_high", "undefined"]
    gains = {name: area - areas[against] for name, area in areas.items()}
    rows = [(n, *from_resamples(area), *from_resamples(gains[n]), missing[n]) for n, area in areas.items()]
    return pd.DataFrame(rows, columns=names)


def combined(
    clean: pd.DataFrame, odd: pd.DataFrame, columns: Sequence[str], *, num_folds: int = 5, seed: int = 0
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

    order = np.random.default_rng(check_count(seed, 0, "seed")).permutation(max(len(clean), len(odd))) % num_folds
    folds = PredefinedSplit(np.concatenate([order[: len(clean)], order[: len(odd)]]))
    values = np.concatenate([frame[list(columns)].to_numpy(float) for frame in (clean, odd)])
    truth = np.repeat([0, 1], [len(clean), len(odd)])
    model = make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, values, truth, cv=folds, method="decision_function")
    return scores[: len(clean)], scores[len(clean) :]


def compare(clean: pd.DataFrame, odd: pd.DataFrame, *, paired: bool = False, seed: int = 0) -> pd.DataFrame:
    """`detection` by each of `signals`, and by two of `combined`: do explanations add to what the answer says?

    Returns:
        As `detection`, and against: every signal is compared with "entropy", which is also the rival of "answer only"
        (entropy and mutual information); that in turn is the rival of "answer + explanation" (every CV and std, too).
    """
    answer = ["entropy", "mutual_information"]
    explanation = [str(name) for name in clean if str(name).startswith(("cv ", "std "))]
    both = [clean, odd]
    for name, columns in (("answer only", answer), ("answer + explanation", [*answer, *explanation])):
        scores = combined(clean, odd, columns, seed=seed)
        both = [frame.assign(**{name: score}) for frame, score in zip(both, scores, strict=True)]
    options: dict[str, Any] = {"paired": paired, "seed": seed}
    frames = [detection(*both, against=rival, **options).assign(against=rival) for rival in ("entropy", "answer only")]
    return pd.concat([frames[0].iloc[:-1], frames[1].iloc[-1:]], ignore_index=True)


def attacked(
    draws: Draws,
    x: Tensor,
    target: Tensor,
    explainers: Mapping[str, tuple[Explainer, Mapping[str, Any]]],
    *,
    epsilons: Sequence[int],
    num_steps: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """`detection` of pictures that `fgsm` and `pgd` (from a random start) attacked, each against its clean self.

    Args:
        draws, x, target, num_steps: as for `pgd`; explainers: as for `signals`.
        epsilons: in units of 1/255.

    Returns:
        As `detection`, and attack ("FGSM 2"), epsilon, accuracy (of the mean prediction under the attack).
    """
    frames, clean = [], signals(draws, x, explainers)
    for epsilon in epsilons:
        moved = {"FGSM": fgsm(draws, x, target, epsilon / 255)}
        moved["PGD"] = pgd(draws, x, target, epsilon / 255, num_steps=num_steps, seed=seed)
        for name, pictures in moved.items():
            after = signals(draws, pictures, explainers)
            right = float((after["answer"].to_numpy() == np.asarray(target)).mean())
            about: dict[str, Any] = {"attack": f"{name} {epsilon}", "epsilon": epsilon, "accuracy": right}
            frames.append(detection(clean, after, paired=True, seed=seed).assign(**about))
    return pd.concat(frames, ignore_index=True)
