"""Do the marked pixels matter? Deletion and insertion: replace pixels in the order of a map and watch the class."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_count, check_number, check_target
from xuqlib.distribution import ExplanationDistribution
from xuqlib.explainers.baselines import make_baseline
from xuqlib.posteriors.draws import Draws
from xuqlib.uncertainty import logits_of

STATISTICS = ("mean", "std", "cv", "signed")
FILLS = ("black", "blurred", "mean_colour")
FILL_OF = {"deletion": "black", "insertion": "blurred"}  # the protocol, after RISE, arXiv 1806.07421


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
    folded = e.moments.of["folded"]
    return folded.mean if statistic == "mean" else folded.std()


def pixel_order(maps: Tensor) -> Tensor:
    """Put the pixels of each map in order, the largest value first; equal values keep the order of reading.

    Args:
        maps: (N, H, W), or of other examples (N, ...), one number per place.

    Returns:
        Pixel numbers, row by row from the top left, (N, H * W).

    Raises:
        ValueError: a map holds NaN.
    """
    if maps.isnan().any():
        raise ValueError("a map holds NaN, which has no place in an order; give such pixels a number, such as -inf")
    return maps.flatten(1).sort(dim=1, descending=True, stable=True).indices


def filled(x: Tensor, fill: str | Tensor) -> Tensor:
    """What replaces the pixels of each image.

    Args:
        x: images, (N, C, H, W), or other examples, (N, ...).
        fill: "black", zeros, for tokens no token; "blurred", the image itself under a Gaussian blur whose sigma is an
            eighth of the longer side, as in `make_baseline`; "mean_colour", each channel's mean over the image's own
            pixels; or a tensor broadcastable to x.

    Returns:
        Images shaped like x.
    """
    if isinstance(fill, Tensor):
        return make_baseline(fill, x)
    check_choice(fill, FILLS, "fill")
    if fill != "mean_colour":
        return make_baseline(fill, x)
    if x.dim() < 3:
        raise ValueError(f"x is {tuple(x.shape)}, without places to take a mean colour of; use black or a tensor")
    return x.mean(tuple(range(2, x.dim())), keepdim=True).expand_as(x)


def perturbed(
    x: Tensor, order: Tensor, share: float, *, kind: str = "deletion", fill: str | Tensor | None = None
) -> Tensor:
    """Images after a share of their pixels was replaced, all channels of a pixel at once.

    Args:
        x, order: as for `deletion`.
        kind: "deletion" goes from the image to the fill, "insertion" from the fill to the image.
        fill: as for `filled`; by default that of the kind in `FILL_OF`.
        share: of the pixels, in [0, 1]; rounded to whole pixels.

    Returns:
        Images shaped like x.
    """
    if check_number(share, 0, "share") > 1:
        raise ValueError(f"share is {share}; a share of the pixels lies in [0, 1]")
    start, end = _ends(x, kind, fill)
    gone = _places(x, order) < round(share * order.shape[1])
    return torch.where(gone.view(len(x), *_layout(x, order)), end, start)


def _ends(x: Tensor, kind: str, fill: str | Tensor | None) -> tuple[Tensor, Tensor]:
    check_choice(kind, tuple(FILL_OF), "kind")
    replacement = filled(x, FILL_OF[kind] if fill is None else fill)
    return (x, replacement) if kind == "deletion" else (replacement, x)


def _layout(x: Tensor, order: Tensor) -> tuple[int, ...]:
    """How the places of an order lie in an example, so that they broadcast to it.

    Channels (N, C, ...) share their places; a table, (N, F), or a signal (N, T, F), has one for each number or time.
    """
    layouts = {tuple(x.shape[1:])}
    if x.dim() > 2:
        layouts = {(1, *x.shape[2:])} if x.dim() > 3 else layouts | {(1, x.shape[2]), (x.shape[1], 1)}
    fitting = [layout for layout in layouts if order.dim() == 2 and math.prod(layout) == order.shape[1]]
    if len(fitting) != 1:
        wanted = " or ".join(str(math.prod(layout)) for layout in sorted(layouts))
        raise ValueError(
            f"order is {tuple(order.shape)}; wanted every pixel number of x {tuple(x.shape)}, {wanted} of them (all "
            "different), once for each example; make it with pixel_order(maps)"
        )
    return fitting[0]


def _places(x: Tensor, order: Tensor) -> Tensor:
    """Place of each pixel in the order, (N, P), 0 for the first to be replaced."""
    pixels = torch.arange(math.prod(_layout(x, order)))
    if len(order) != len(x) or not torch.equal(order.sort(1).values, pixels.expand(order.shape)):
        raise ValueError(
            f"order is {tuple(order.shape)}; wanted every pixel number from 0 to {len(pixels) - 1} once for each of "
            f"{len(x)} examples; make it with pixel_order(maps)"
        )
    return order.argsort(1)


def deletion(
    draws: Draws | Sequence[nn.Module],
    x: Any,
    order: Tensor,
    target: Tensor,
    *,
    output: Any = None,
    fill: str | Tensor = "black",
    num_steps: int | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Follow the probability of a class while pixels are deleted in order, the same number of them at each step.

    It runs exactly from the image to the fill. The sooner the curve falls, the more the first pixels mattered.

    Args:
        draws: fixed networks; the score is the mean of their probabilities.
        x, output: as for `explain`: images (N, C, H, W), say; classes or labels.
        order: pixel numbers, first to be replaced first, (N, H * W); for other examples numbers of places, as
            `pixel_order` makes of a map.
        target: class or label of each example, (N,).
        fill: what replaces a pixel, as for `filled`.
        num_steps: K, which divides the number of pixels; by default one image row of pixels per step, else as many
            as there are places, or the most below 65 that divide them.
        batch_size: images evaluated at a time.

    Returns:
        Probability of the target after k / K of the pixels, (N, K + 1).

    Raises:
        ValueError: an order that is none, a number of steps that leaves a rest, or a regression.

    Source: Petsiuk et al. 2018, arXiv 1806.07421; arXiv 2403.17224, section 4, leaves the protocol open.
    """
    return _curve(draws, x, output, order, target, "deletion", fill, num_steps, batch_size)


def insertion(
    draws: Draws | Sequence[nn.Module],
    x: Any,
    order: Tensor,
    target: Tensor,
    *,
    output: Any = None,
    fill: str | Tensor = "blurred",
    num_steps: int | None = None,
    batch_size: int = 128,
) -> Tensor:
    """Follow the probability of a class while pixels are put into the fill in order: `deletion` from the other end.

    The sooner the curve rises, the more the first pixels mattered. With one fill it is deletion in reverse order, read
    backwards. Args, Returns, Raises, Source: as for `deletion`.
    """
    return _curve(draws, x, output, order, target, "insertion", fill, num_steps, batch_size)


CURVES = {"deletion": deletion, "insertion": insertion}


def _curve(
    draws: Draws | Sequence[nn.Module],
    x: Any,
    output: Any,
    order: Tensor,
    target: Tensor,
    kind: str,
    fill: str | Tensor,
    num_steps: int | None,
    batch_size: int,
) -> Tensor:
    draws, x = (draws if isinstance(draws, Draws) else Draws(draws)).seen(x, output)
    target = check_target(target, len(x), sys.maxsize)
    (start, end), places, layout = _ends(x, kind, fill), _places(x, order), _layout(x, order)
    if num_steps is None:
        num_steps = x.shape[-2] if x.dim() == 4 else max(k for k in range(1, 65) if places.shape[1] % k == 0)
    size, rest = divmod(places.shape[1], check_count(num_steps, 1, "num_steps"))
    if rest:
        raise ValueError(f"{num_steps} steps do not divide {places.shape[1]} pixels; choose a number that does")
    scores = torch.empty(len(x), num_steps + 1, dtype=x.dtype)
    for seen, example, step in draws.in_rows(len(x), num_steps + 1, check_count(batch_size, 1, "batch_size")):
        gone = places[example] < size * step[:, None]  # (row, P)
        mixed = torch.where(gone.view(len(example), *layout), end[example], start[example])
        probs = _probs(seen, logits_of(seen, mixed, batch_size=batch_size))
        scores[example, step] = probs.mean(0).gather(1, target[example, None]).squeeze(1).to(scores)
    return scores


def _probs(draws: Draws, numbers: Tensor) -> Tensor:
    """Probability of each class, or label, of each draw: (draw, example, class)."""
    is_one = draws.output is None and numbers.shape[2] == 1
    if is_one or draws.output in ("regression", "mean_variance", "segmentation"):
        raise ValueError(
            f"the networks give {draws.output or 'one output, a regression'}; deletion and insertion need class scores"
        )
    if draws.output == "probabilities":
        return numbers
    return numbers.sigmoid() if draws.output in ("binary", "multilabel") else numbers.softmax(-1)


def auc(scores: Tensor) -> Tensor:
    """Area under each curve over the share of pixels in [0, 1], by trapezoid; (N, K + 1) to (N,), in [0, 1].

    Lower is better for deletion, higher for insertion.
    """
    return torch.trapezoid(scores, dx=1 / (scores.shape[1] - 1), dim=1)
