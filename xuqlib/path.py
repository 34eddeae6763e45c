"""Paths: where a gradient explainer takes slopes, and what it makes of them.

Gradient, gradient x input, Guided Backprop, Integrated Gradients and SmoothGrad are one formula,

    attribution = scale * sum_k weights[k] * slope(origin + factor[k] * spread),    slope = d logit[target] / d x.

An explainer says which path it takes; what evaluates the path, for one network or for many draws, is told elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xuqlib.checks import check_count, check_logits, check_target
from xuqlib.guided import GuidedMode
from xuqlib.views import at

Network = Callable[[Tensor], Tensor]

# Numbers that enter the network in one pass: 64 colour images of 32 x 32. On a CPU a larger batch is slower, since
# its intermediate results leave the cache; an accelerator wants thousands of rows.
_NUMBERS_CPU = 64 * 3 * 32 * 32
NO_RELU = "network called no ReLU, so guided_backprop gave the plain gradient"
NO_GRADIENT = (
    "network's output does not depend on x as far as autograd can see (a detach, no_grad or argmax in "
    "forward?); return logits that are differentiable in x, or explain with lime, which needs no gradient"
)


@dataclass(frozen=True)
class Path:
    """Points and weights of a sum of slopes; with `origin` alone, the slope at x itself.

    Args:
        origin: (N, ...), shaped like x.
        spread: (N, ...), broadcastable to origin.
        factor: (K, ...), broadcastable over an example.
        weights: (K,), not negative.
        scale: (N, ...), what the sum is multiplied with.
        guided: let only positive signal back through ReLUs.
    """

    origin: Tensor
    spread: Tensor | None = None
    factor: Tensor | None = None
    weights: Tensor | None = None
    scale: Tensor | None = None
    guided: bool = False

    @property
    def num_steps(self) -> int:
        return 1 if self.factor is None else len(self.factor)

    def points(self, examples: slice, steps: slice) -> Tensor:
        """Return the points of some examples and steps as rows, (k * n, ...), the steps outermost."""
        origin = self.origin[examples]
        if self.factor is None or self.spread is None:
            return origin
        return (origin + self.factor[steps, None] * self.spread[examples]).flatten(0, 1)

    def weights_of(self, steps: slice, num_examples: int) -> Tensor | None:
        """Return the weight of each row of `points`, (k * n,); None where all are 1."""
        return None if self.weights is None else self.weights[steps].repeat_interleave(num_examples)

    def finished(self, total: Tensor) -> Tensor:
        """Turn sums of slopes, (..., N, *shape of x), into attributions."""
        return total if self.scale is None else self.scale * total


def warning_of(num_met: int, unguided: Iterable[str]) -> str | None:
    """Return what a user has to know after a guided backward pass; None if all is well."""
    if not num_met:
        return NO_RELU
    names = ", ".join(sorted(unguided))
    return f"guided_backprop guides ReLUs alone; these keep their plain gradient: {names}" if names else None


def rows_per_pass(x: Tensor, chunk: int | None) -> int:
    """Rows (examples times steps) of one pass: `chunk` if given, else what suits the size of x and its device."""
    if chunk is not None:
        return check_count(chunk, 1, "chunk")
    numbers = _NUMBERS_CPU if x.device.type == "cpu" else 64 * _NUMBERS_CPU
    return min(max(numbers // x[0].numel(), 8), 4096)


def blocks(total: int, size: int) -> list[slice]:
    """Cut `total` rows into blocks of `size`, the last one perhaps smaller."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def select_logits(network: Network, x: Tensor, target: Any) -> Tensor:
    """Return the logit of each example's target, (N,); checks the network's output and the target.

    Args:
        target: as for `check_target`, or a function from the number of classes to classes that were checked.
    """
    logits = check_logits(network(x), len(x))
    classes = target(logits.shape[1]) if callable(target) else check_target(target, len(x), logits.shape[1])
    # A copy, since autograd will not keep a target that was made in inference mode.
    classes = classes.to(logits.device).clone()
    return logits.gather(1, classes[:, None]).squeeze(1)


def slope(network: Network, x: Tensor, target: Any) -> Tensor:
    """Gradient of each target logit with respect to its own example; checks nothing but output and target."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        # The network gets a copy: an in-place first layer may not write into a leaf.
        selected = select_logits(network, leaf.clone(), target)
        gradient = torch.autograd.grad(selected.sum(), leaf, allow_unused=True)[0] if selected.requires_grad else None
    if gradient is None:
        raise ValueError(NO_GRADIENT)
    return gradient


def along(network: Network, path: Path, target: Any, rows: int) -> Tensor:
    """Evaluate a path for one network, at most `rows` rows in one pass, or x itself. Returns (N, ...)."""
    mode, origin = GuidedMode() if path.guided else None, path.origin

    def evaluated(examples: slice) -> Network:
        seen = at(network, examples)
        return seen if mode is None else partial(mode.evaluate, seen)

    if path.factor is None:
        total = slope(evaluated(slice(None)), origin, target)
    else:
        total, first = torch.zeros_like(origin), slice(rows)
        with torch.no_grad():  # a network may write into its input, so it gets a copy
            num_classes = check_logits(evaluated(first)(origin[first].clone()), len(origin[first])).shape[1]
        classes = check_target(target, len(origin), num_classes)
        for block in blocks(len(origin), rows):
            num_examples, seen = len(origin[block]), evaluated(block)
            for steps in blocks(path.num_steps, max(1, rows // num_examples)):
                points = path.points(block, steps)
                slopes = slope(seen, points, classes[block].repeat(len(points) // num_examples))
                weights = path.weights[steps] if path.weights is not None else slopes.new_ones(1)
                total[block] += torch.tensordot(weights, slopes.unflatten(0, (-1, num_examples)), dims=1)
    message = None if mode is None else warning_of(mode.num_met, mode.unguided)
    if message is not None:
        warnings.warn(message, stacklevel=4)  # where the explainer was called
    return path.finished(total)
