"""Do the marked pixels make a prediction uncertain? Blur them in the order of a map and watch the uncertainty fall."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_count, check_examples, check_fixed, check_number, check_target
from xuqlib.explainers.baselines import make_baseline
from xuqlib.metrics.deletion import perturbed
from xuqlib.path import slope
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.checked import Batch, Count, Order, Pictures, Seed, Several, Share, Shares, Target, checked
from xuqlib.study.intervals import from_resamples
from xuqlib.uncertainty import KINDS, UncertaintyOf, decompose, logits_of, uncertainties

BUDGETS = (0.02, 0.05, 1.0)
MAX_FINE_STEPS = 64
ROUNDING = 1e-12  # nats; what the rounding of logits alone makes of draws that agree


class BlurringCurves(NamedTuple):
    """What became of each prediction while its picture's pixels were replaced; column k belongs to share k.

    Attributes:
        shares: of the pixels, ascending from 0, (K + 1,).
        uncertainty: in nats, (N, K + 1), float64.
        probability: of the target, the mean over draws, (N, K + 1), float64.
        kept: whether the target is still the answer, bool (N, K + 1); with true labels, whether it is right.
    """

    shares: Tensor
    uncertainty: Tensor
    probability: Tensor
    kept: Tensor


class Chosen(NamedTuple):
    """Numbers of examples, ascending: `uncertain` ones, above the median, and any at `random`; they may overlap."""

    uncertain: Tensor
    random: Tensor


@checked
def default_shares(num_pixels: Count) -> Tensor:
    """Shares of the pixels at which curves are followed, float64: fine at first, where budgets are small.

    Every pixel up to 5 % (in pictures of more than 1,280 pixels every so many, in 64 steps at most), then every 5 %,
    and each of `BUDGETS`.
    """
    last = int(BUDGETS[1] * num_pixels)
    fine = range(0, last + 1, max(1, math.ceil(last / MAX_FINE_STEPS)))
    shares = {*(count / num_pixels for count in fine), *(step / 20 for step in range(1, 21)), *BUDGETS}
    return torch.tensor(sorted(shares), dtype=torch.float64)


@checked
def uncertainty_curves(
    draws: Draws | Sequence[nn.Module],
    x: Pictures,
    order: Order,
    kind: str = "epistemic",
    *,
    target: Target | None = None,
    fill: str | Tensor = "blurred",
    shares: Shares | Tensor | None = None,
    batch_size: Count = 128,
) -> BlurringCurves:
    """Follow the uncertainty of each prediction, and the prediction itself, while pixels are replaced in order.

    No share is exceeded: at share b of P pixels, the first floor(b P) are replaced. A map that destroys the object
    may lower the uncertainty, too: read the uncertainty beside `kept`.

    Args:
        draws: fixed networks with at least two classes.
        x: pictures, (N, C, H, W).
        order: pixel numbers, first to be replaced first, (N, H * W); from `pixel_order`, `random_order` or
            `greedy_order`.
        kind: "total", "aleatoric" or "epistemic".
        target: class to watch, (N,), such as the true one; the first prediction by default.
        fill: as for `make_baseline`: the blurred picture, "black", "mean_colour" or a tensor.
        shares: of the pixels, rising from 0 to at most 1; `default_shares` if None.
        batch_size: pictures evaluated at a time. Beyond that, memory holds one changed copy of x.

    Raises:
        TypeError, ValueError: bad draws, x, order, kind or shares; networks with one output.

    Source: arXiv 2304.04824, blurring test; fill, steps and rounding are choices.
    """
    check_examples(x)
    draws, replacement = _checked(draws, kind), make_baseline(fill, x)
    num_pixels = x.shape[-2] * x.shape[-1]
    points = default_shares(num_pixels) if shares is None else _check_shares(shares)
    # Shares of a whole number of pixels are not exact; a millionth of a pixel brings them back.
    counts, column = (points * num_pixels + 1e-6).floor().long().unique(return_inverse=True)
    target = None if target is None else target.cpu()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for count in counts.tolist():
        moved = perturbed(x, order, count / num_pixels, fill=replacement)
        logits = logits_of(draws, moved, batch_size=batch_size)
        if logits.shape[-1] < 2:
            raise ValueError("the networks give one output, a regression; the curves follow entropies of classes")
        probs = logits.double().softmax(-1).mean(0)
        answer = probs.argmax(1)
        target = answer if target is None else check_target(target, len(x), probs.shape[1])
        left = getattr(decompose(logits), kind)
        found.append((left, probs.gather(1, target[:, None]).squeeze(1), answer == target))
    return BlurringCurves(points, *(torch.stack(each, 1)[:, column] for each in zip(*found, strict=True)))


@checked
def reduction(curves: BlurringCurves) -> Tensor:
    """Uncertainty reduction rate URR(k) = (U(x) - U(x_k)) / U(x) at each share.

    Returns:
        (N, K + 1), at most 1, and below 0 where the uncertainty rose; NaN where U(x) is no more than rounding,
        1e-12 nats.
    """
    start = curves.uncertainty[:, :1]
    return torch.where(start > ROUNDING, (start - curves.uncertainty) / start, math.nan)


@checked
def highest_reduction(curves: BlurringCurves) -> Tensor:
    """Running maximum of `reduction` over the shares up to each one, (N, K + 1), in [0, 1] or NaN."""
    return reduction(curves).cummax(1).values


@checked
def murr(curves: BlurringCurves, budget: Share) -> Tensor:
    """Maximum uncertainty reduction rate within a budget, (N,), in [0, 1]; NaN where `reduction` is.

    Args:
        budget: share of the pixels, one of `curves.shares` above 0.
    """
    return highest_reduction(curves)[:, _place(curves, budget)]


@checked
def auc_urr(curves: BlurringCurves, budget: Share) -> Tensor:
    """Area under the running maximum of URR up to a budget, divided by the budget, (N,), in [0, 1]; higher is better.

    By trapezoid between the shares. NaN where `reduction` is.

    Args:
        budget: share of the pixels, one of `curves.shares` above 0.
    """
    end = _place(curves, budget) + 1
    return torch.trapezoid(highest_reduction(curves)[:, :end], curves.shares[:end], dim=1) / curves.shares[end - 1]


@checked
def budget_table(
    curves: BlurringCurves, budgets: Shares = BUDGETS, *, num_resamples: Several = 1000, seed: Seed = 0
) -> pd.DataFrame:
    """Mean and median of MURR and AUC-URR over examples at each budget, and what the budget cost the prediction.

    Args:
        num_resamples, seed: of the bootstrap over examples.

    Returns:
        Columns budget, score ("MURR" or "AUC-URR"), mean, low, high (95 % bootstrap over examples), median, kept
        (share of examples whose answer is the target at the budget), undefined (share without a score, left out).
    """
    stream = np.random.default_rng(seed)
    resamples, rows = stream.random((num_resamples, len(curves.uncertainty))), []
    for budget in budgets:
        kept = float(curves.kept[:, _place(curves, budget)].double().mean())
        for name, score in (("MURR", murr), ("AUC-URR", auc_urr)):
            values = score(curves, budget)
            missing, known = float(values.isnan().double().mean()), values[~values.isnan()].numpy()
            drawn = known[(resamples[:, : len(known)] * len(known)).astype(int)]  # (resample, n)
            mean = known.mean() if len(known) else math.nan
            found = from_resamples(np.array([mean, *(drawn.mean(1) if len(known) else ())]))
            rows.append((budget, name, *found, np.median(known) if len(known) else math.nan, kept, missing))
    return pd.DataFrame(rows, columns=["budget", "score", "mean", "low", "high", "median", "kept", "undefined"])


@checked
def greedy_order(
    draws: Draws | Sequence[nn.Module],
    x: Pictures,
    kind: str = "epistemic",
    *,
    budget: Share,
    fill: str | Tensor = "blurred",
    group: Count = 1,
    candidates: Count = 1,
    batch_size: Count = 128,
) -> Tensor:
    """Put pixels in the order that lowers the uncertainty most, one gradient after another: a ceiling for maps.

    Each step replaces the pixels whose replacement lowers U most to first order, slope times (fill - picture) at
    the picture as it is by then. Unlike a map it knows the replacement, and looks again after each step. The linear
    guess can overshoot, where a single gradient may do better: several candidates make a truer ceiling, still greedy.

    Args:
        draws, x, kind, fill: as for `uncertainty_curves`, with the same fill.
        budget: share of the pixels, in (0, 1], put in order so; the others follow as the last step saw them. Rounded
            down to whole pixels, but at least one.
        group: pixels replaced at each step, which costs one pass over the draws, forward and back.
        candidates: first pixels by slope that are each tried, for one forward pass, and put in order by the U that is
            left; 1 trusts the slope.
        batch_size: pictures evaluated at a time.

    Returns:
        Pixel numbers, first to be replaced first, (N, H * W); among equals in order of reading.
    """
    check_examples(x)
    draws, replacement = _checked(draws, kind), make_baseline(fill, x)
    for name, count in (("group", group), ("candidates", candidates), ("batch_size", batch_size)):
        check_count(count, 1, name)
    if check_number(budget, 0, "budget", above=True) > 1:
        raise ValueError(f"budget is {budget}; a share of the pixels lies in (0, 1]")
    num_pixels = x.shape[-2] * x.shape[-1]
    wanted = max(1, int(budget * num_pixels + 1e-6))
    uncertainty, orders = UncertaintyOf(draws, kind), []
    for start, end in zip(x.split(batch_size), replacement.split(batch_size), strict=True):
        order = torch.empty(len(start), 0, dtype=torch.int64, device=x.device)
        for done in range(0, wanted, group):
            gone = _marked(order, start)
            picture = torch.where(gone, end, start)
            fall = slope(uncertainty, picture, 0) * (picture - end)  # to first order
            gain = fall.sum(1, keepdim=True).masked_fill(gone, -math.inf).flatten(1)
            best = gain.sort(dim=1, descending=True, stable=True).indices[:, : num_pixels - done]
            if candidates > 1:
                first = _tried(draws, picture, end, best[:, :candidates], kind, batch_size)
                best = torch.cat([first, best[:, candidates:]], 1)
            order = torch.cat([order, best[:, :group] if done + group < wanted else best], 1)
        orders.append(order)
    return torch.cat(orders)


@checked
def uncertain(
    draws: Draws | Sequence[nn.Module], x: Batch, kind: str = "epistemic", *, num_examples: Count, seed: Seed = 0
) -> Chosen:
    """Choose examples to blur: some whose uncertainty lies above the median of x, and as many of all.

    Args:
        draws, kind: as for `uncertainty_curves`.
        x: examples (N, ...).
        num_examples: in each set, drawn without replacement.
        seed: of both sets.

    Raises:
        ValueError: fewer examples than that lie above the median.
    """
    values = getattr(uncertainties(_checked(draws, kind), x), kind)
    above, stream = (values > values.median()).nonzero().squeeze(1), generator_of(seed)
    if check_count(num_examples, 1, "num_examples") > len(above):
        raise ValueError(
            f"{len(above)} of {len(x)} examples lie above the median, {num_examples} were wanted; pass more examples"
        )
    both = (among[torch.randperm(len(among), generator=stream)] for among in (above, torch.arange(len(x))))
    return Chosen(*(each[:num_examples].sort().values for each in both))


def _marked(pixels: Tensor, x: Tensor) -> Tensor:
    """Mark pixel numbers (N, any) of pictures x, bool (N, 1, H, W)."""
    flat = torch.zeros(len(x), x.shape[2] * x.shape[3], dtype=torch.bool, device=x.device)
    return flat.scatter(1, pixels, True).view(len(x), 1, *x.shape[2:])


def _tried(draws: Draws, picture: Tensor, end: Tensor, first: Tensor, kind: str, batch_size: int) -> Tensor:
    """Put pixels, (N, few), in order by the uncertainty after each of them alone was replaced."""
    picture, end = (each.repeat_interleave(first.shape[1], 0) for each in (picture, end))  # (N * few, C, H, W)
    moved = torch.where(_marked(first.reshape(-1, 1), picture), end, picture)
    left = getattr(decompose(logits_of(draws, moved, batch_size=batch_size)), kind).view(first.shape)
    return first.gather(1, left.sort(dim=1, stable=True).indices.to(first.device))


def _checked(draws: Draws | Sequence[nn.Module], kind: str) -> Draws:
    check_choice(kind, KINDS, "kind")
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    for network in draws:
        check_fixed(network)
    return draws


def _check_shares(shares: Sequence[float] | Tensor) -> Tensor:
    points = torch.as_tensor(shares, dtype=torch.float64)
    if points.ndim != 1 or len(points) < 2 or points[0] != 0 or points[-1] > 1 or not (points.diff() > 0).all():
        raise ValueError(f"shares are {points.tolist()}; pass shares of the pixels that rise from 0 to at most 1")
    return points


def _place(curves: BlurringCurves, budget: float) -> int:
    check_number(budget, 0, "budget", above=True)
    near = (curves.shares - budget).abs()
    if near.min() > 1e-9:
        raise ValueError(
            f"budget is {budget}, where the curves have no point; take one of their shares, up to "
            f"{float(curves.shares[-1]):g}, or compute the curves with shares that hold it"
        )
    return int(near.argmin())
