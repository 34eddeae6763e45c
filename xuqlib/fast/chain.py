"""Chains: draws as a trunk of layers, which they share, and a head of layers each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib.checks import check_logits, check_target
from xuqlib.fast.layers import Convolution, Dense, Dropout, Execution, Flatten, Layer, MaxPool, NotAChain, Other, Relu
from xuqlib.posteriors import kinds
from xuqlib.posteriors.shared import Split

NUMBERS_AT_ONCE = 2**24  # in the weights of draws that are held side by side
DRAWS_KEPT = 64  # whose masks stay for the next examples; memory must not grow with the number of draws


@dataclass
class Passed:
    """A forward pass through the trunk: what came out of it, what its layers kept, and of which examples it is."""

    h: Tensor
    kept: list[Any]
    rows: int
    examples: slice = field(default_factory=lambda: slice(None))


@dataclass
class _Head:
    """Draws side by side, behind the trunk. `last` gives the logits, if that is a dense layer."""

    layers: list[Layer]
    last: Dense | None
    num_draws: int

    def cotangent(self, h: Tensor, classes: Tensor) -> Tensor:
        """Slope of each row's class at the output of the last of `layers`: (S * R, ...) for classes (R,)."""
        if self.last is not None:
            return self.last.slope_of(classes, self.num_draws)  # which needs no logits
        logits = check_logits(h, self.num_draws * len(classes))
        check_target(classes, len(classes), logits.shape[1])
        return torch.zeros_like(logits).scatter_(1, classes.repeat(self.num_draws)[:, None], 1).view_as(h)

    @property
    def all_layers(self) -> list[Layer]:
        return self.layers if self.last is None else [*self.layers, self.last]

    @property
    def is_masked_dense(self) -> bool:
        """Whether draws differ in the dropout before their last layer alone."""
        return len(self.layers) == 1 and isinstance(self.layers[0], Dropout) and self.last is not None

    def masked_logits(self, h: Tensor) -> Tensor:
        """Logits of such draws, (S, R, C): masks on the few weights instead of on the many rows."""
        dropout, last = cast(Dropout, self.layers[0]), cast(Dense, self.last)
        weights = last.weight * dropout.mask_of(h.shape[1:])  # (S, C, D)
        logits = F.linear(h, weights.flatten(0, 1)).unflatten(1, (len(weights), -1)).transpose(0, 1)
        return logits if last.bias is None else logits + last.bias


class Chain:
    """Draws that can be seen as a trunk and heads of layers; others raise `NotAChain`.

    Attributes:
        is_foldable: whether several draws side by side are as fast as one.
        is_masked_dense: whether draws differ in the dropout before their last layer alone.
        is_linear_behind_trunk: whether a draw's logits are linear in what its trunk gives.
        num_classes: how many logits there are, where that can be told without a forward pass.
        own_numbers: in the weights that a draw does not share.
    """

    def __init__(self, split: Split, execution: Execution) -> None:
        self.split, self.execution = split, execution
        self.trunk = fast_layers([split.trunk], [None], execution)
        self._heads: dict[range, _Head] = {}
        self.unguided: set[str] = set()
        self._num_met = 0  # ReLUs met in heads, most of which are let go
        columns = list(zip(*split.heads, strict=True))
        own = [column for column in columns if not kinds.have_same_tensors(column)]
        self._shared = _Shared(id(column[0]) for column in columns if all(layer is column[0] for layer in column))
        dense = all(kinds.kind_of(column[0]) is nn.Linear for column in own)
        first = split.heads[0][0]
        masked = type(first) in kinds.DROPOUTS and any(seed is not None for seed in split.seeds)
        folds = masked or any(column[0] is first for column in own)
        self.is_foldable = dense and folds and all(kinds.is_known(layer) for layer in split.heads[0])
        self.own_numbers = sum(p.numel() for column in own for p in column[0].parameters())
        head = self._head(range(1))
        self.is_masked_dense = head.is_masked_dense and self.own_numbers == 0
        self.is_linear_behind_trunk = head.last is not None and all(isinstance(x, Dense | Dropout) for x in head.layers)
        self.num_classes = None if head.last is None else head.last.weight.shape[-2]

    def folds(self, rows: int, rows_of_one: int, first: int = 0) -> list[range]:
        """Cut the draws from number `first` on into folds, one a pass of at most `rows` rows, `rows_of_one` a draw."""
        num_draws, most = len(self.split.heads), max(1, NUMBERS_AT_ONCE // max(self.own_numbers, 1))
        at_once = min(max(1, rows // rows_of_one), most) if self.is_foldable else 1
        return [range(start, min(start + at_once, num_draws)) for start in range(first, num_draws, at_once)]

    def is_worth_it(self, rows: int, rows_of_one: int) -> bool:
        """Whether this is faster than one draw after another: always."""
        return True

    def rows_of_a_draw(self, rows: int) -> int:
        """Rows of a pass through the trunk, where `rows` are the most of any pass."""
        return rows

    @property
    def num_relus(self) -> int:
        """ReLUs met so far; 0 after a pass means that there was none to guide."""
        return _num_relus(self.trunk) + self._num_met

    def probe(self, points: Tensor) -> None:
        """Run points (R, ...) through the trunk and the first head, layer by layer; draws differ in tensors alone.

        Raises:
            NotAChain: a layer of the fast path cannot stand for its own, given what comes to it.
            TypeError, ValueError: what comes out of the last are no logits.
        """
        passed = self.forward(points)
        h = passed.h
        for layer in self._head(range(1)).all_layers:
            h, _ = layer.forward(h, passed.rows)
        check_logits(h, passed.rows)

    def forward(self, points: Tensor) -> Passed:
        """Run points (R, ...) through the trunk."""
        h, kept = self.execution.convert(points), []
        for layer in self.trunk:
            h, keep = layer.forward(h, len(points))
            kept.append(keep)
        return Passed(h, kept, len(points))

    def logits(self, passed: Passed, draws: range) -> Tensor:
        """Evaluate some draws behind the trunk: (S, R, C)."""
        head, h = self._head(draws), passed.h
        if head.is_masked_dense:
            return head.masked_logits(h)
        for layer in head.all_layers:
            h, _ = layer.forward(h, passed.rows)
        return check_logits(h, len(h)).unflatten(0, (len(draws), -1))

    def slopes(self, passed: Passed, draws: range, classes: Tensor, weights: Tensor | None) -> Tensor:
        """Sum the weighted slopes of each example over its steps, for some draws.

        Args:
            passed: rows (step, example), R = K * N.
            classes: of each example, (N,).
            weights: of each row, (R,); None if all are 1.

        Returns:
            (S, N, ...) in float32 or better.
        """
        g, layers, kept = self._to_trunk(passed, draws, classes, weights)
        return self._through(g, [*self.trunk, *layers], [*passed.kept, *kept], len(draws), len(classes))

    def mean_slope(self, passed: Passed, classes: Tensor, weights: Tensor | None, rows: int) -> Tensor:
        """Mean over all draws of `slopes`, (N, ...), by one backward pass; where `is_linear_behind_trunk`."""
        total = 0.0
        for draws in self.folds(rows, passed.rows):
            g, layers, kept = self._to_trunk(passed, draws, classes, weights)
            for layer, keep in zip(reversed(layers), reversed(kept), strict=True):
                g = layer.backward(g, keep)
            total = total + g.unflatten(0, (len(draws), -1)).sum(0, dtype=torch.promote_types(g.dtype, torch.float32))
        mean = torch.as_tensor(total) / len(self.split.heads)
        return self._through(mean.to(self.execution.dtype), self.trunk, passed.kept, 1, len(classes))[0]

    def _to_trunk(
        self, passed: Passed, draws: range, classes: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, list[Layer], list[Any]]:
        head, h, kept = self._head(draws), passed.h, []
        for layer in head.layers:
            h, keep = layer.forward(h, passed.rows)
            kept.append(keep)
        self._num_met += _num_relus(head.layers)
        self.unguided |= _unguided([*self.trunk, *head.layers])
        g = head.cotangent(h, classes.repeat(passed.rows // len(classes)))
        if weights is not None:
            g = g * weights.to(g).repeat(len(draws)).view(-1, *(1,) * (g.ndim - 1))
        return g, head.layers, kept

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

    def _head(self, draws: range) -> _Head:
        if draws in self._heads:
            return self._heads[draws]
        some = slice(draws.start, draws.stop)
        layers = fast_layers(self.split.heads[some], self.split.seeds[some], self.execution, self._shared)
        last = layers[-1] if layers and isinstance(layers[-1], Dense) else None
        head = _Head(layers[: -1 if last else None], last, len(draws))
        kept = sum(len(some) for some in self._heads)
        if not self._heads or (self.own_numbers == 0 and kept < DRAWS_KEPT):
            self._heads[draws] = head
        return head


def _unguided(layers: Sequence[Layer]) -> set[str]:
    return set().union(*(layer.mode.unguided for layer in layers if isinstance(layer, Other) and layer.mode))


def _num_relus(layers: Sequence[Layer]) -> int:
    by_hand = sum(isinstance(layer, Relu) for layer in layers)
    return by_hand + sum(layer.mode.num_met for layer in layers if isinstance(layer, Other) and layer.mode)


def _summed_over_steps(g: Tensor, num_draws: int, num_examples: int) -> Tensor:
    """Sum rows (draw, step, example) over steps: a product with ones, which runs through memory as it lies."""
    images = g.ndim == 4
    lying = g.permute(0, 2, 3, 1).contiguous() if images else g.contiguous()
    flat = lying.view(num_draws, -1, num_examples * lying[0].numel())
    total = (flat.new_ones(1, flat.shape[1]) @ flat).view(num_draws * num_examples, *lying.shape[1:])
    return total.permute(0, 3, 1, 2) if images else total


class _Shared(set[int]):
    """Layers that all draws have in common, by id, and what was made of them."""

    def __init__(self, layers: Iterable[int] = ()) -> None:
        super().__init__(layers)
        self.made: dict[tuple[int, ...], Layer] = {}

    def affine(self, layers: Sequence[Any], norms: Sequence[Any], execution: Execution) -> Layer:
        """Make a convolution or a dense layer of a layer of each draw, or find the one that was made."""
        key = tuple(id(part) for part in (layers[0], norms[0]) if part is not None)
        if key in self.made:
            return self.made[key]
        made: Layer
        if isinstance(layers[0], nn.Linear):
            same = kinds.have_same_tensors(layers) and (norms[0] is None or kinds.have_same_tensors(norms))
            count = 1 if same else len(layers)
            made = Dense(layers[:count], norms[:count], execution)
        else:
            made = Convolution(layers[0], norms[0], execution)
        if self.issuperset(key):
            self.made[key] = made
        return made


def fast_layers(
    heads: Sequence[Sequence[nn.Module]],
    seeds: Sequence[int | None],
    execution: Execution,
    shared: _Shared | None = None,
) -> list[Layer]:
    """Make layers of the fast path of those of some draws: batch norms folded into what is before them.

    Args:
        heads: the layers of each draw, as many in each.
        seeds: of each draw's dropout masks.
        shared: layers that were made for other draws and serve these too.

    Raises:
        NotAChain: several draws with a layer of a user's own.
    """
    if not all(kinds.is_known(layer) for layer in heads[0]):
        if len(heads) > 1:
            raise NotAChain("layers of a user's own, in several draws side by side")
        return [Other(nn.Sequential(*heads[0]), seeds[0], execution)]
    columns: list[list[Any]] = [[kinds.plain(layer) for layer in column] for column in zip(*heads, strict=True)]
    made: list[Layer] = []
    calls, shared = 0, shared or _Shared()

    def may_wait(pool: nn.MaxPool2d) -> bool:
        # A guided ReLU in front of windows that overlap sees the sum of their slopes, not each by itself.
        return not (execution.guided and kinds.windows_overlap(pool))

    while columns:
        column = columns.pop(0)
        kind, norms = kinds.kind_of(column[0]), [None] * len(column)
        if kind in (nn.Conv2d, nn.Linear) and columns and kinds.is_fixed_norm(columns[0][0], kind):
            norms = columns.pop(0)
        if kind is nn.Linear or (kind is nn.Conv2d and kinds.is_zero_padded(column[0])):
            made.append(shared.affine(column, norms, execution))
        elif kind is nn.ReLU and columns and kinds.kind_of(columns[0][0]) is nn.MaxPool2d and may_wait(columns[0][0]):
            columns.insert(1, column)  # the same after the pooling, on a quarter of the numbers
        elif kind is nn.ReLU:
            fresh = bool(made) and isinstance(made[-1], Convolution | Dense | MaxPool)
            made.append(Relu(execution.guided, in_place=fresh))
        elif kind is nn.MaxPool2d and not column[0].return_indices:
            made.append(MaxPool(column[0], execution))
        elif kind in kinds.DROPOUTS:
            calls += 1
            if any(seed is not None for seed in seeds):
                made.append(Dropout(column[0], seeds, calls, execution))
        elif kind is nn.Flatten and (column[0].start_dim, column[0].end_dim) == (1, -1):
            made.append(Flatten())
        elif kind is not nn.Identity:
            made += [Other(layer, None, execution) for layer in (column[0], norms[0]) if layer is not None]
    return made
