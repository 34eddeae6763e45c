"""Chains: draws as a trunk of steps, which they share, and a head of steps each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib.checks import check_logits, check_target
from xuqlib.fast.layers import Convolution, Dense, Dropout, Flatten, MaxPool, NotAChain, Other, Relu, Setting, Step
from xuqlib.posteriors.kinds import (
    DROPOUTS,
    have_same_tensors,
    is_fixed_norm,
    is_known,
    is_zero_padded,
    kind_of,
    plain,
    windows_overlap,
)
from xuqlib.posteriors.shared import Split

_NUMBERS_AT_ONCE = 2**24  # in the weights of draws that are held side by side
_DRAWS_KEPT = 64  # whose masks stay for the next examples; memory must not grow with the number of draws


@dataclass
class Passed:
    """A forward pass through the trunk: what came out of it, and what its steps kept."""

    h: Tensor
    kept: list[Any]
    rows: int


@dataclass
class _Head:
    """Draws side by side, behind the trunk. `last` gives the logits, if that is a dense layer."""

    steps: list[Step]
    last: Dense | None
    num_draws: int

    def cotangent(self, h: Tensor, classes: Tensor) -> Tensor:
        """Slope of each row's class at the output of the last of `steps`: (S * R, ...) for classes (R,)."""
        if self.last is not None:
            return self.last.slope_of(classes, self.num_draws)  # which needs no logits
        logits = check_logits(h, self.num_draws * len(classes))
        check_target(classes, len(classes), logits.shape[1])
        return torch.zeros_like(logits).scatter_(1, classes.repeat(self.num_draws)[:, None], 1).view_as(h)

    @property
    def all_steps(self) -> list[Step]:
        return self.steps if self.last is None else [*self.steps, self.last]

    @property
    def is_masked_dense(self) -> bool:
        """Whether draws differ in the dropout before their last layer alone."""
        return len(self.steps) == 1 and isinstance(self.steps[0], Dropout) and self.last is not None

    def masked_logits(self, h: Tensor) -> Tensor:
        """Logits of such draws, (S, R, C): masks on the few weights instead of on the many rows."""
        dropout, last = cast(Dropout, self.steps[0]), cast(Dense, self.last)
        weights = last.weight * dropout.mask_of(h.shape[1:])  # (S, C, D)
        logits = F.linear(h, weights.flatten(0, 1)).unflatten(1, (len(weights), -1)).transpose(0, 1)
        return logits if last.bias is None else logits + last.bias


class Chain:
    """Draws that can be seen as a trunk and heads of steps; others raise `NotAChain`."""

    def __init__(self, found: Split, setting: Setting) -> None:
        self.found, self.setting = found, setting
        self.trunk = steps_of([found.trunk], [None], setting)
        self._heads: dict[range, _Head] = {}
        self._num_met = 0  # ReLUs met in heads, most of which are let go
        columns = list(zip(*found.heads, strict=True))
        own = [column for column in columns if not have_same_tensors(column)]
        self._shared = _Shared(id(column[0]) for column in columns if all(layer is column[0] for layer in column))
        dense = all(kind_of(column[0]) is nn.Linear for column in own)
        first = found.heads[0][0]
        masked = type(first) in DROPOUTS and any(seed is not None for seed in found.seeds)
        folds = masked or any(column[0] is first for column in own)
        self.is_foldable = dense and folds and all(is_known(layer) for layer in found.heads[0])
        self.own_numbers = sum(p.numel() for column in own for p in column[0].parameters())

    def draws_at_once(self, rows: int, rows_of_one: int) -> int:
        """How many draws to fold into one pass of at most `rows` rows, of which each takes `rows_of_one`."""
        most = max(1, _NUMBERS_AT_ONCE // max(self.own_numbers, 1))
        return min(max(1, rows // rows_of_one), most, len(self.found.heads)) if self.is_foldable else 1

    @property
    def num_relus(self) -> int:
        """ReLUs met so far; 0 after a pass means that there was none to guide."""
        return _num_relus(self.trunk) + self._num_met

    @property
    def num_classes(self) -> int | None:
        """How many logits there are, where that can be told without a forward pass."""
        last = self._head(range(1)).last
        return None if last is None else last.weight.shape[-2]

    @property
    def is_masked_dense(self) -> bool:
        """Whether draws differ in the dropout before their last layer alone."""
        return self._head(range(1)).is_masked_dense and self.own_numbers == 0

    @property
    def is_linear_behind_trunk(self) -> bool:
        """Whether a draw's logits are linear in what its trunk gives."""
        head = self._head(range(1))
        return head.last is not None and all(isinstance(step, Dense | Dropout) for step in head.steps)

    def probe(self, points: Tensor) -> None:
        """Run points (R, ...) through the trunk and the first head, layer by layer; draws differ in tensors alone.

        Raises:
            NotAChain: a step cannot stand for its layer, given what comes to it.
            TypeError, ValueError: what comes out of the last are no logits.
        """
        passed = self.forward(points)
        h = passed.h
        for step in self._head(range(1)).all_steps:
            h, _ = step.forward(h, passed.rows)
        check_logits(h, passed.rows)

    def forward(self, points: Tensor) -> Passed:
        """Run points (R, ...) through the trunk."""
        h, kept = self.setting.taken(points), []
        for step in self.trunk:
            h, keep = step.forward(h, len(points))
            kept.append(keep)
        return Passed(h, kept, len(points))

    def logits(self, passed: Passed, draws: range) -> Tensor:
        """Evaluate some draws behind the trunk: (S, R, C)."""
        head, h = self._head(draws), passed.h
        if head.is_masked_dense:
            return head.masked_logits(h)
        for step in head.all_steps:
            h, _ = step.forward(h, passed.rows)
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
        g, steps, kept = self._to_trunk(passed, draws, classes, weights)
        return self._through(g, [*self.trunk, *steps], [*passed.kept, *kept], len(draws), len(classes))

    def mean_slope(self, passed: Passed, classes: Tensor, weights: Tensor | None, rows: int) -> Tensor:
        """Mean over all draws of `slopes`, (N, ...), by one backward pass; where `is_linear_behind_trunk`."""
        total, num_draws = 0.0, len(self.found.heads)
        at_once = self.draws_at_once(rows, passed.rows)
        for start in range(0, num_draws, at_once):
            draws = range(start, min(start + at_once, num_draws))
            g, steps, kept = self._to_trunk(passed, draws, classes, weights)
            for step, keep in zip(reversed(steps), reversed(kept), strict=True):
                g = step.backward(g, keep)
            total = total + g.unflatten(0, (len(draws), -1)).sum(0, dtype=torch.promote_types(g.dtype, torch.float32))
        mean = torch.as_tensor(total) / num_draws
        return self._through(mean.to(self.setting.dtype), self.trunk, passed.kept, 1, len(classes))[0]

    def _to_trunk(
        self, passed: Passed, draws: range, classes: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, list[Step], list[Any]]:
        head, h, kept = self._head(draws), passed.h, []
        for step in head.steps:
            h, keep = step.forward(h, passed.rows)
            kept.append(keep)
        self._num_met += _num_relus(head.steps)
        g = head.cotangent(h, classes.repeat(passed.rows // len(classes)))
        if weights is not None:
            g = g * weights.to(g).repeat(len(draws)).view(-1, *(1,) * (g.ndim - 1))
        return g, head.steps, kept

    def _through(self, g: Tensor, steps: list[Step], kept: list[Any], num_draws: int, num_examples: int) -> Tensor:
        # The first layer is linear, so it may wait until the steps of the path are summed.
        lead = steps[0] if steps and isinstance(steps[0], Convolution | Dense) else None
        for step, keep in list(zip(steps, kept, strict=True))[: 0 if lead else None : -1]:
            g = step.backward(g, keep)
        if len(g) > num_draws * num_examples:
            g = _summed_over_steps(g, num_draws, num_examples)
        if lead is not None:
            g = lead.backward(g, kept[0])
        return g.to(torch.promote_types(g.dtype, torch.float32)).unflatten(0, (num_draws, num_examples))

    def _head(self, draws: range) -> _Head:
        if draws in self._heads:
            return self._heads[draws]
        some = slice(draws.start, draws.stop)
        steps = steps_of(self.found.heads[some], self.found.seeds[some], self.setting, self._shared)
        last = steps[-1] if steps and isinstance(steps[-1], Dense) else None
        head = _Head(steps[: -1 if last else None], last, len(draws))
        kept = sum(len(some) for some in self._heads)
        if not self._heads or (self.own_numbers == 0 and kept < _DRAWS_KEPT):
            self._heads[draws] = head
        return head


def _num_relus(steps: Sequence[Step]) -> int:
    by_hand = sum(isinstance(step, Relu) for step in steps)
    return by_hand + sum(step.mode.num_met for step in steps if isinstance(step, Other) and step.mode)


def _summed_over_steps(g: Tensor, num_draws: int, num_examples: int) -> Tensor:
    """Sum rows (draw, step, example) over steps: a product with ones, which runs through memory as it lies."""
    pictures = g.ndim == 4
    lying = g.permute(0, 2, 3, 1).contiguous() if pictures else g.contiguous()
    flat = lying.view(num_draws, -1, num_examples * lying[0].numel())
    total = (flat.new_ones(1, flat.shape[1]) @ flat).view(num_draws * num_examples, *lying.shape[1:])
    return total.permute(0, 3, 1, 2) if pictures else total


class _Shared(set[int]):
    """Layers that all draws have in common, by id, and the steps that were made of them."""

    def __init__(self, layers: Iterable[int] = ()) -> None:
        super().__init__(layers)
        self.steps: dict[tuple[int, ...], Step] = {}

    def step(self, layers: Sequence[Any], norms: Sequence[Any], setting: Setting) -> Step:
        """Make a convolution or a dense step of a layer of each draw, or find the one that was made."""
        key = tuple(id(part) for part in (layers[0], norms[0]) if part is not None)
        if key in self.steps:
            return self.steps[key]
        same = have_same_tensors(layers) and (norms[0] is None or have_same_tensors(norms))
        count = 1 if same else len(layers)
        dense = isinstance(layers[0], nn.Linear)
        step = Dense(layers[:count], norms[:count], setting) if dense else Convolution(layers[0], norms[0], setting)
        if self.issuperset(key):
            self.steps[key] = step
        return step


def steps_of(
    heads: Sequence[Sequence[nn.Module]],
    seeds: Sequence[int | None],
    setting: Setting,
    shared: _Shared | None = None,
) -> list[Step]:
    """Make steps of the layers of some draws side by side: batch norms folded into what is before them.

    Args:
        heads: the layers of each draw, as many in each.
        seeds: of each draw's dropout masks.
        shared: steps that were made for other draws and serve these too.
    """
    if not all(is_known(layer) for layer in heads[0]):
        if len(heads) > 1:
            raise NotAChain("layers of a user's own, in several draws side by side")
        return [Other(nn.Sequential(*heads[0]), seeds[0], setting)]
    columns: list[list[Any]] = [[plain(layer) for layer in column] for column in zip(*heads, strict=True)]
    steps: list[Step] = []
    calls, shared = 0, shared or _Shared()

    def may_wait(pool: nn.MaxPool2d) -> bool:
        # A guided ReLU in front of windows that overlap sees the sum of their slopes, not each by itself.
        return not (setting.guided and windows_overlap(pool))

    while columns:
        column = columns.pop(0)
        kind, norms = kind_of(column[0]), [None] * len(column)
        if kind in (nn.Conv2d, nn.Linear) and columns and is_fixed_norm(columns[0][0], kind):
            norms = columns.pop(0)
        if kind is nn.Linear or (kind is nn.Conv2d and is_zero_padded(column[0])):
            steps.append(shared.step(column, norms, setting))
        elif kind is nn.ReLU and columns and kind_of(columns[0][0]) is nn.MaxPool2d and may_wait(columns[0][0]):
            columns.insert(1, column)  # the same after the pooling, on a quarter of the numbers
        elif kind is nn.ReLU:
            fresh = bool(steps) and isinstance(steps[-1], Convolution | Dense | MaxPool)
            steps.append(Relu(setting.guided, in_place=fresh))
        elif kind is nn.MaxPool2d and not column[0].return_indices:
            steps.append(MaxPool(column[0], setting))
        elif kind in DROPOUTS:
            calls += 1
            if any(seed is not None for seed in seeds):
                steps.append(Dropout(column[0], seeds, calls, setting))
        elif kind is nn.Flatten and (column[0].start_dim, column[0].end_dim) == (1, -1):
            steps.append(Flatten())
        elif kind is not nn.Identity:
            steps += [Other(layer, None, setting) for layer in (column[0], norms[0]) if layer is not None]
    return steps
