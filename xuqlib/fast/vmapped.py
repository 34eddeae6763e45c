"""Draws of any network side by side, by `torch.func.vmap` over their masks and over the few weights that differ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from xuqlib.checks import check_logits
from xuqlib.fast.chain import DRAWS_KEPT, NUMBERS_AT_ONCE, Passed
from xuqlib.fast.layers import Execution
from xuqlib.guided import GuidedMode
from xuqlib.path import slope
from xuqlib.posteriors.fixing import FixedNetwork, Fold
from xuqlib.posteriors.kinds import is_hooked
from xuqlib.posteriors.shared import look_alike
from xuqlib.views import at

# Draws in a pass at least, for which batches are cut. Measured: cut for 8 or 16, small networks are slower.
_SIDE_BY_SIDE = 4
_FEW_ROWS = 256  # of images, say. Small networks on more rows are as fast one draw after another, if few fit.


class NotVmapped(Exception):
    """Draws that cannot be evaluated under vmap, and why."""


class Vmapped:
    """Draws that share a network but for dropout masks and small weights; others raise `NotVmapped`.

    What is evaluated before the first mask, or the first weight of a draw's own, has no axis of draws: it is evaluated
    once for all of them. A draw may be seen through a view, a module that holds it as `network`.
    """

    is_masked_dense, num_classes = False, None

    def __init__(self, networks: Sequence[nn.Module], execution: Execution) -> None:
        self.networks, self.execution = networks, execution
        self.mode = GuidedMode() if execution.guided else None
        fixed = [each if isinstance(each, FixedNetwork) else getattr(each, "network", None) for each in networks]
        if not all(isinstance(each, FixedNetwork) and each.resampling is None for each in fixed):
            raise NotVmapped("not every draw is a network with fixed masks")
        self.fixed = cast(list[FixedNetwork], fixed)
        if any(map(is_hooked, networks)) or any(map(is_hooked, networks[0].modules())):
            raise NotVmapped("hooks see what goes through the network")
        if len(networks) < 2 or len({each.seed is None for each in self.fixed}) > 1:
            raise NotVmapped("one draw, or draws of several kinds")
        self.own = self._own_tensors()
        if any(tensor.ndim > 3 for tensor in self.own.values()):
            raise NotVmapped("draws have convolutions of their own, which are no faster side by side")
        self.own_numbers = sum(tensor[0].numel() for tensor in self.own.values())
        self._folds: dict[range, Fold] = {}

    def _own_tensors(self) -> dict[str, Tensor]:
        """Tensors in which draws differ, by their names in `networks[0]`, stacked: (S, ...)."""
        inner = [each.network for each in self.fixed]
        if all(network is inner[0] for network in inner):
            return {}
        if not look_alike(inner):
            raise NotVmapped("draws are networks of several kinds")
        tensors = [dict(network.named_parameters()) | dict(network.named_buffers()) for network in self.networks]
        differing = [key for key, first in tensors[0].items() if any(each[key] is not first for each in tensors)]
        return {key: torch.stack([each[key].detach() for each in tensors]) for key in differing}

    @property
    def num_relus(self) -> int:
        """ReLUs met so far; 0 after a pass means that there was none to guide."""
        return self.mode.num_met if self.mode else 0

    @property
    def unguided(self) -> set[str]:
        """Names of what keeps its plain gradient where ReLUs are guided."""
        return self.mode.unguided if self.mode else set()

    def folds(self, rows: int, rows_of_one: int, first: int = 0) -> list[range]:
        """Cut the draws from number `first` on into folds, one a pass of at most `rows` rows, `rows_of_one` a draw."""
        at_once = max(1, min(rows // rows_of_one, NUMBERS_AT_ONCE // max(self.own_numbers, 1)))
        return [range(i, min(i + at_once, len(self.networks))) for i in range(first, len(self.networks), at_once)]

    def is_worth_it(self, rows: int, rows_of_one: int) -> bool:
        """Whether this is faster than one draw after another, each of `rows_of_one` rows, with `rows` at once."""
        return rows <= _FEW_ROWS or rows >= (_SIDE_BY_SIDE - 1) * rows_of_one

    def rows_of_a_draw(self, rows: int) -> int:
        """Rows of one draw in a pass of at most `rows`, so that several stand side by side."""
        return max(1, rows // min(len(self.networks), _SIDE_BY_SIDE))

    def refusal(self, points: Tensor) -> str | None:
        """Say why draws of this network cannot be evaluated so, if it was found; "" where they can, None if unknown."""
        return self.fixed[0].plans.refused_by_vmap.get(self._key(points)) if self.networks[0] is self.fixed[0] else None

    def _key(self, points: Tensor) -> Any:
        return points.shape[1:], self.execution, tuple(self.own)

    def probe(self, points: Tensor) -> str:
        """Compare the last draw under vmap with itself, on points (R, ...); say what vmap refuses, if anything."""
        found = self.fixed[0].plans.refused_by_vmap[self._key(points)] = self._refusal(points)
        return found

    def _refusal(self, points: Tensor) -> str:
        passed, count = self.forward(points), len(self.networks)
        classes = points.new_zeros(len(points), dtype=torch.long)
        last, draws = range(count - 1, count), range(count - 2, count)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                wanted = self.logits(passed, last)[0], self.slopes(passed, last, classes, None)[0]
                if self.mode and self.mode.num_inside:
                    return "a ReLU inside one of torch's own layers is guided in the graph of a draw by itself"
                given = self.logits(passed, draws)[1], self.slopes(passed, draws, classes, None)[1]
            except (RuntimeError, ValueError) as error:  # by which vmap refuses, and a draw in whose forward it does
                return str(error.__cause__ or error).partition("\n")[0]
        slow = [str(warning.message) for warning in caught if "batching rule" in str(warning.message)]
        tolerance = 1e-3 if self.execution.dtype in (torch.float32, torch.float64) else 0.1
        if not all((a - b).norm() <= tolerance * b.norm() for a, b in zip(given, wanted, strict=True)):  # nor NaN
            return "vmap gives another answer than the draw by itself"
        return slow[0].partition("\n")[0] if slow else ""

    def forward(self, points: Tensor) -> Passed:
        """Hold points (R, ...); what draws share is evaluated with each fold of them."""
        return Passed(points.detach().clone(), [], len(points))

    def logits(self, passed: Passed, draws: range) -> Tensor:
        """Evaluate some draws: (S, R, C)."""
        if len(draws) == 1:
            return self._alone(at(self.networks[draws[0]], passed.examples), passed.h)[None]
        return self._over(draws, lambda x, evaluated: evaluated(x), passed)

    def slopes(self, passed: Passed, draws: range, classes: Tensor, weights: Tensor | None) -> Tensor:
        """Sum the weighted slopes of each example over its steps, for some draws: (S, N, ...), as a chain does."""
        chosen = classes.repeat(passed.rows // len(classes))

        def slope_of(x: Tensor, evaluated: Callable[[Tensor], Tensor]) -> Tensor:
            return grad(lambda x: evaluated(x).gather(1, chosen[:, None]).sum())(x)

        if len(draws) == 1:
            network = at(self.networks[draws[0]], passed.examples)
            g = slope(lambda x: self._alone(network, x), passed.h, chosen)[None]
        else:
            g = self._over(draws, slope_of, passed)
        g = g if weights is None else g * weights.to(g).view(-1, *(1,) * (g.ndim - 2))
        return g if len(chosen) == len(classes) else g.unflatten(1, (-1, len(classes))).sum(1)

    def _alone(self, network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
        return check_logits(self.mode.evaluate(network, x) if self.mode else network(x), len(x))

    def _logits(self, network: Callable[[Tensor], Any], x: Tensor) -> Tensor:
        # Of torch's attentions, the one in plain mathematics is known to vmap.
        with self.mode or nullcontext(), sdpa_kernel(SDPBackend.MATH):
            return check_logits(network(x), len(x))

    def _over(self, draws: range, function: Callable[[Tensor, Any], Tensor], passed: Passed) -> Tensor:
        """Return `function(x, logits of a draw)` of each of some draws, along a first axis."""
        if draws not in self._folds:
            if sum(len(some) for some in self._folds) + len(draws) > DRAWS_KEPT:
                self._folds.clear()
            self._folds[draws] = Fold([each.seed for each in self.fixed[draws.start : draws.stop]])
        fold = self._folds[draws]
        own = {key: tensor[draws.start : draws.stop] for key, tensor in self.own.items()}
        first = at(self.networks[0], passed.examples)

        def of_one(x: Tensor, index: Tensor, own: dict[str, Tensor]) -> Tensor:
            def network(x: Tensor) -> Any:
                return functional_call(first, own, (x,)) if own else first(x)

            with fold.at(index):
                return function(x, lambda x: self._logits(network, x))

        over = vmap(of_one, in_dims=(None, 0, 0), randomness="same")
        return over(passed.h, torch.arange(len(draws), device=passed.h.device), own)
