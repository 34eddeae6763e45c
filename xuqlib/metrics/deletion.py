"""Do the marked pixels matter? Deletion and insertion: replace pixels in the order of a map and watch the class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_count, check_number, check_target, check_tensor
from xuqlib.explainers.baselines import make_baseline
from xuqlib.outputs import probabilities
from xuqlib.posteriors.draws import Draws, fixed_draws
from xuqlib.uncertainty import logits_of

FILL_OF = {"deletion": "black", "insertion": "blurred"}  # the protocol, after RISE, arXiv 1806.07421


def pixel_order(maps: Tensor) -> Tensor:
    """Put the pixels of each map in order, the largest value first; equal values keep the order of reading.

    Args:
        maps: (N, H, W), or of other examples (N, ...), one number per place.

    Returns:
        Pixel numbers, row by row from the top left, (N, H * W).

    Raises:
        ValueError: a map holds NaN.
    """
    check_tensor(maps, "maps", axes=2)
    if maps.isnan().any():
        raise ValueError("a map holds NaN, which has no place in an order; give such pixels a number, such as -inf")
    return maps.flatten(1).sort(dim=1, descending=True, stable=True).indices


def perturbed(
    x: Tensor, order: Tensor, share: float, *, kind: str = "deletion", fill: str | Tensor | None = None
) -> Tensor:
    """Images after a share of their pixels was replaced, all channels of a pixel at once.

    Args:
        x, order: as for `deletion`.
        kind: "deletion" goes from the image to the fill, "insertion" from the fill to the image.
        fill: as for `make_baseline`; by default that of the kind in `FILL_OF`.
        share: of the pixels, in [0, 1]; rounded to whole pixels.

    Returns:
        Images shaped like x.
    """
    check_choice(kind, FILL_OF, "kind")
    if check_number(share, 0, "share") > 1:
        raise ValueError(f"share is {share}; a share of the pixels lies in [0, 1]")
    replacement = make_baseline(FILL_OF[kind] if fill is None else fill, x)
    start, end = (x, replacement) if kind == "deletion" else (replacement, x)
    return torch.where(_places(x, order) < round(share * order.shape[1]), end, start)


def _places(x: Tensor, order: Tensor) -> Tensor:
    """Place of each pixel in the order, 0 for the first to be replaced, laid out so that it broadcasts to x.

    Channels (N, C, ...) share their places; a table, (N, F), or a signal (N, T, F), has one for each number or time.
    """
    check_tensor(order, "order")
    order = order.to(x.device)
    layouts = {tuple(x.shape[1:])}
    if x.dim() > 2:
        layouts = {(1, *x.shape[2:])} if x.dim() > 3 else layouts | {(1, x.shape[2]), (x.shape[1], 1)}
    fitting = [layout for layout in layouts if order.dim() == 2 and math.prod(layout) == order.shape[1]]
    every = torch.arange(order.numel() // max(1, len(x)), device=x.device).expand(len(x), -1)
    if len(fitting) != 1 or not torch.equal(order.sort(1).values, every):
        last = " or ".join(str(math.prod(layout) - 1) for layout in sorted(layouts))
        raise ValueError(
            f"order is {tuple(order.shape)}; wanted every pixel number from 0 to {last} once for each of {len(x)} "
            "examples; make it with pixel_order(maps)"
        )
    return order.argsort(1).view(len(x), *fitting[0])


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
        fill: what replaces a pixel: "black" (for tokens: no token), "blurred", "mean_colour", or what else
            `make_baseline` knows.
        num_steps: K, which divides the number of pixels; by default one image row of pixels per step, else as many
            as there are places, or the most below 65 that divide them.
        batch_size: images evaluated at a time.

    Returns:
        Probability of the target after k / K of the pixels, (N, K + 1).

    Raises:
        ValueError: an order that is none, a number of steps that leaves a rest, or a regression.

    Source: Petsiuk et al. 2018, arXiv 1806.07421; arXiv 2403.17224, section 4, leaves the protocol open.
    """
    draws, x, _ = fixed_draws(draws, x, output)
    target = check_target(target, len(x), None).cpu()
    replacement, places, num_places = make_baseline(fill, x), _places(x, order), order.shape[1]
    if num_steps is None:
        num_steps = x.shape[-2] if x.dim() == 4 else max(k for k in range(1, 65) if num_places % k == 0)
    size, rest = divmod(num_places, check_count(num_steps, 1, "num_steps"))
    if rest:
        raise ValueError(f"{num_steps} steps do not divide {num_places} pixels; choose a number that does")
    scores = torch.empty(len(x), num_steps + 1, dtype=x.dtype)
    for seen, example, step in draws.in_rows(len(x), num_steps + 1, check_count(batch_size, 1, "batch_size")):
        gone = places[example] < size * step.view(-1, *[1] * (x.dim() - 1)).to(x.device)
        logits = logits_of(seen, torch.where(gone, replacement[example], x[example]), batch_size=batch_size)
        kind = draws.output or ("logits" if logits.shape[2] > 1 else "regression")
        if kind in ("regression", "mean_variance", "segmentation"):
            raise ValueError(f"the networks give a {kind}; deletion and insertion need class scores")
        probs = probabilities(logits, kind).mean(0)
        target = check_target(target, len(x), probs.shape[1])
        scores[example, step] = probs.gather(1, target[example, None]).squeeze(1).to(scores)
    return scores


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
    check_tensor(order, "order", axes=2)
    options: dict[str, Any] = {"output": output, "fill": fill, "num_steps": num_steps, "batch_size": batch_size}
    return deletion(draws, x, order.flip(-1), target, **options).flip(1)


CURVES = {"deletion": deletion, "insertion": insertion}


def auc(scores: Tensor) -> Tensor:
    """Area under each curve over the share of pixels in [0, 1], by trapezoid; (N, K + 1) to (N,), in [0, 1].

    Lower is better for deletion, higher for insertion.
    """
    check_tensor(scores, "scores", axes=2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return torch.trapezoid(scores, dx=1 / (scores.shape[1] - 1), dim=1)
