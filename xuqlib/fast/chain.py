"""Chains: draws as a trunk of layers, which they share, and a head of layers each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib.checks import check_logits, check_target
from xuqlib.fast.layers import Convolution, Dense, Dropout, Execution, Flatten, Layer, MaxPool, NotAChain, Other, Relu
from xuqlib.posteriors import kinds
from xuqlib.posteriors.fixing import Seed
from xuqlib.posteriors.shared import split

NUMBERS_AT_ONCE = 2**24  # in the weights of draws that are held side by side
DRAWS_KEPT = 64  # whose masks stay for the next examples; memory must not grow with the number of draws


@dataclass
class Passed:
    """Rows (step, example), R = K * N, that went through the trunk, and what is asked about them.

    Attributes:
        h: what came out of the trunk, (R, ...).
        kept: what its layers kept.
        examples, num_examples: of which examples they are.
        classes: of each row, (R,).
        weights: of each row, (R,); None if all are 1.
        are_checked: whether the classes are known to be some: of numbers on a device, an answer takes a wait.
    """

    h: Tensor
    kept: list[Any]
    examples: slice = field(default_factory=lambda: slice(None))
    num_examples: int = 1
    classes: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    weights: Tensor | None = None
    are_checked: bool = False

    def checked(self, num_classes: int) -> Tensor:
        """Return the classes, and refuse those that are none, once."""
        if not self.are_checked:
            check_target(self.classes, len(self.classes), num_classes)
            self.are_checked = True
        return self.classes


class Together(ABC):
    """Draws, and how they are evaluated.

    Attributes:
        networks: the draws.
        is_foldable: whether several draws side by side are as fast as one.
        is_masked_dense: whether draws differ in the dropout before their last layer alone.
        own_numbers: in the weights that a draw does not share.
        longer: how many times as many rows as a fold has go into a pass of one draw.
    """

    networks: Sequence[nn.Module]
    is_foldable, is_masked_dense, own_numbers, longer = True, False, 0, 1

    def folds(self, rows: int, rows_of_one: int, first: int = 0) -> list[range]:
        """Cut the draws from number `first` on into folds, one a pass of at most `rows` rows, `rows_of_one` a draw."""
        most, count = NUMBERS_AT_ONCE // max(self.own_numbers, 1) if self.is_foldable else 1, len(self.networks)
        at_once = max(1, min(rows // rows_of_one, most))
        return [range(start, min(start + at_once, count)) for start in range(first, count, at_once)]

    @abstractmethod
    def forward(self, points: Tensor) -> Passed:
        """Run points (R, ...) through what all draws share."""

    @abstractmethod
    def logits(self, passed: Passed, draws: range) -> Tensor:
        """Evaluate some draws: (S, R, C)."""

    @abstractmethod
    def slopes(self, passed: Passed, draws: range) -> Tensor:
        """Sum the weighted slopes of each example over its steps, for some draws: (S, N, ...), float32 or better."""


class Chain(Together):
    """Draws that can be seen as a trunk and heads of layers.

    Args:
        points: an example or more, on which the trunk and the first head are tried, layer by layer.

    Attributes:
        is_linear_behind_trunk: whether a draw's logits are linear in what its trunk gives.

    Raises:
        NotAChain: the draws are no layers in a row, or one of the fast path cannot stand for its own.
        TypeError, ValueError: what comes out of the last are no logits.
    """

    def __init__(self, networks: Sequence[nn.Module], execution: Execution, points: Tensor) -> None:
        parts = split(networks)
        if parts is None:
            raise NotAChain("draws that are no layers in a row")
        self.networks, self.split, self.execution = networks, parts, execution
        self.trunk = fast_layers([parts.trunk], [None], execution)
        self._heads: dict[range, list[Layer]] = {}
        own = [column for column in zip(*parts.heads, strict=True) if not kinds.have_same_tensors(column)]
        first = parts.heads[0][0]
        masked = type(first) in kinds.DROPOUTS and parts.seeds[0] is not None
        begins_at_once = masked or any(column[0] is first for column in own)
        self.is_foldable = begins_at_once and all(kinds.kind_of(column[0]) is nn.Linear for column in own)
        self.own_numbers = sum(p.numel() for column in own for p in column[0].parameters())
        with suppress(torch.OutOfMemoryError):  # evaluating a path halves the rows, or says what is wrong
            self.logits(self.forward(points), range(1))
        made = [type(layer) for layer in self._head(range(1))]
        self.is_masked_dense = made == [Dropout, Dense] and self.own_numbers == 0
        self.is_linear_behind_trunk = made[-1:] == [Dense] and set(made) <= {Dense, Dropout}

    def forward(self, points: Tensor) -> Passed:
        h, kept = self.execution.convert(points), []
        for layer in self.trunk:
            h, keep = layer.forward(h, len(points))
            kept.append(keep)
        return Passed(h, kept)

    def logits(self, passed: Passed, draws: range) -> Tensor:
        layers, h = self._head(draws), passed.h
        if self.is_masked_dense:
            return _masked_logits(h, *cast(tuple[Dropout, Dense], layers))
        for layer in layers:
            h, _ = layer.forward(h, len(passed.h))
        return check_logits(h, len(passed.h) * len(draws)).unflatten(0, (len(draws), -1))

    def slopes(self, passed: Passed, draws: range) -> Tensor:
        g, layers, kept = self._to_trunk(passed, draws)
        return self._through(g, [*self.trunk, *layers], [*passed.kept, *kept], len(draws), passed.num_examples)

    def mean_slope(self, passed: Passed, rows: int) -> Tensor:
        """Mean over all draws of `slopes`, (N, ...), by one backward pass; where `is_linear_behind_trunk`."""
        total = 0.0
        for draws in self.folds(rows, len(passed.h)):
            g, layers, kept = self._to_trunk(passed, draws)
            for layer, keep in zip(reversed(layers), reversed(kept), strict=True):
                g = layer.backward(g, keep)
            total = total + g.unflatten(0, (len(draws), -1)).sum(0, dtype=torch.promote_types(g.dtype, torch.float32))
        mean = (torch.as_tensor(total) / len(self.networks)).to(self.execution.dtype)
        return self._through(mean, self.trunk, passed.kept, 1, passed.num_examples)[0]

    def _to_trunk(self, passed: Passed, draws: range) -> tuple[Tensor, list[Layer], list[Any]]:
        """Run some draws forward: the slope of each row's class at the output of the last of these layers of a head."""
        layers, h, kept, classes = self._head(draws), passed.h, [], passed.classes
        last = layers[-1] if layers and isinstance(layers[-1], Dense) else None
        layers = layers[: -1 if last else None]
        for layer in layers:
            h, keep = layer.forward(h, len(classes))
            kept.append(keep)
        if last is not None:  # which needs no logits
            g = last.slope_of(passed.checked(last.weight.shape[-2]), len(draws))
        else:
            logits = check_logits(h, len(draws) * len(classes))
            classes = passed.checked(logits.shape[1])
            g = torch.zeros_like(logits).scatter_(1, classes.repeat(len(draws))[:, None], 1).view_as(h)
        if passed.weights is not None:
            g = g * passed.weights.to(g).repeat(len(draws)).view(-1, *(1,) * (g.ndim - 1))
        return g, layers, kept

    def _through(self, g: Tensor, layers: list[Layer], kept: list[Any], num_draws: int, num_examples: int) -> Tensor:
        # The first layer is linear, so it may wait until the steps of the path are summed.
        lead = layers[0] if layers and isinstance(layers[0], Convolution | Dense) else None
        for layer, keep in list(zip(layers, kept, strict=True))[: 0 if lead else None : -1]:
            g = layer.backward(g, keep)
        if len(g) > num_draws * num_examples:
            g = _summed_over_steps(g, num_draws, num_examples)
        if lead is not None:
            g = lead.backward(g, kept[0])
        return g.to(torch.promote_types(g.dtype, torch.float32)).unflatten(0, (num_draws, num_examples))

    def _head(self, draws: range) -> list[Layer]:
        """Make the layers of some draws side by side, behind the trunk."""
        if draws in self._heads:
            return self._heads[draws]
        some = slice(draws.start, draws.stop)
        layers = fast_layers(self.split.heads[some], self.split.seeds[some], self.execution)
        kept = sum(len(some) for some in self._heads)
        if not self._heads or (self.own_numbers == 0 and kept < DRAWS_KEPT):
            self._heads[draws] = layers
        return layers


def _masked_logits(h: Tensor, dropout: Dropout, last: Dense) -> Tensor:
    """Logits (S, R, C) of draws that mask what is before their last layer: on its few weights, not on many rows."""
    weights = last.weight * dropout.mask_of(h.shape[1:])  # (S, C, D)
    logits = F.linear(h, weights.flatten(0, 1)).unflatten(1, (len(weights), -1)).transpose(0, 1)
    return logits if last.bias is None else logits + last.bias


def _summed_over_steps(g: Tensor, num_draws: int, num_examples: int) -> Tensor:
    """Sum rows (draw, step, example) over steps: a product with ones, which runs through memory as it lies."""
    images = g.ndim == 4
    lying = g.permute(0, 2, 3, 1).contiguous() if images else g.contiguous()
    flat = lying.view(num_draws, -1, num_examples * lying[0].numel())
    total = (flat.new_ones(1, flat.shape[1]) @ flat).view(num_draws * num_examples, *lying.shape[1:])
    return total.permute(0, 3, 1, 2) if images else total


def fast_layers(heads: Sequence[list[nn.Module]], seeds: Sequence[Seed | None], execution: Execution) -> list[Layer]:
    """Make layers of the fast path of those of some draws: batch norms folded into what is before them.

    Args:
        heads: the layers of each draw, as many in each.
        seeds: of each draw's dropout masks.

    Raises:
        NotAChain: a layer of a user's own, or one with a hook.
    """
    if not all(kinds.is_known(layer) for layer in heads[0]):
        raise NotAChain("a layer of a user's own")
    columns: list[list[Any]] = [[kinds.plain(layer) for layer in column] for column in zip(*heads, strict=True)]
    layers: list[Layer] = []
    calls = 0
    while columns:
        column = columns.pop(0)
        kind, norms = kinds.kind_of(column[0]), [None] * len(column)
        if kind in (nn.Conv2d, nn.Linear) and columns and kinds.is_fixed_norm(columns[0][0], kind):
            norms = columns.pop(0)
        if kind is nn.Linear:
            layers.append(Dense(column, norms, execution))
        elif kind is nn.Conv2d and kinds.is_zero_padded(column[0]):
            layers.append(Convolution(column[0], norms[0], execution))
        elif kind is nn.ReLU:
            layers.append(Relu(execution.guided))
            execution.mode.num_met += 1
        elif kind is nn.MaxPool2d and not column[0].return_indices:
            layers.append(MaxPool(column[0], execution))
        elif kind in kinds.DROPOUTS:
            calls += 1
            if seeds[0] is not None:
                layers.append(Dropout(column[0], cast(Sequence[Seed], seeds), calls, execution))
        elif kind is nn.Flatten and (column[0].start_dim, column[0].end_dim) == (1, -1):
            layers.append(Flatten())
        elif kind is not nn.Identity:
            layers += [Other(layer, execution) for layer in (column[0], norms[0]) if layer is not None]
    return layers
