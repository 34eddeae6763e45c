"""Draws of any network side by side, by `torch.func.vmap` over their masks and over the few weights that differ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from xuqlib.checks import check_logits
from xuqlib.fast.chain import DRAWS_KEPT, Passed, Together
from xuqlib.fast.layers import Execution
from xuqlib.path import slope
from xuqlib.posteriors.fixing import FixedNetwork, Fold
from xuqlib.posteriors.kinds import is_hooked
from xuqlib.posteriors.shared import look_alike
from xuqlib.views import View, at

# Rows of a draw up to which attention behind a mask is as fast side by side. By itself a draw has it fused: measured
# on a small vision transformer, 2 rows took 0.8 of its time side by side, 4 the same, 8 up to 1.1, 16 and 24 1.2 of it.
_ROWS_ATTENDED = 4


class NotVmapped(Exception):
    """Draws that cannot be evaluated under vmap, and why."""


class OneByOne(Together):
    """Draws of any kind, each evaluated by itself: the plain loop over them.

    Its passes are longer than a chain's: the weights of a network of any kind are read anew in each. Measured for a row
    of ResNet-18 at 64 pixels, in ms: 4.9 of 16 rows, 4.5 of 24, 4.4 of 32; at 224 pixels 51 of 8 or 16, 74 of 32.
    """

    is_foldable, longer = False, 2

    def __init__(self, networks: Sequence[nn.Module], execution: Execution) -> None:
        self.networks, self.execution = networks, execution
        self.mode = execution.mode if execution.guided else None

    def forward(self, points: Tensor) -> Passed:
        """Hold points (R, ...); what draws share is evaluated with each fold of them."""
        return Passed(points.detach().clone(), [])

    def logits(self, passed: Passed, draws: range) -> Tensor:
        network = at(self.networks[draws[0]], passed.examples)
        return check_logits(network(passed.h.clone()), len(passed.h))[None]

    def slopes(self, passed: Passed, draws: range) -> Tensor:
        network = at(self.networks[draws[0]], passed.examples)
        evaluated = network if self.mode is None else partial(self.mode.evaluate, network)
        return _over_steps(slope(evaluated, passed.h, passed.checked)[None], passed)


def _over_steps(slopes: Tensor, passed: Passed) -> Tensor:
    """Sum weighted slopes (S, R, ...) of each example over its steps: (S, N, ...)."""
    if passed.weights is not None:
        slopes = slopes * passed.weights.to(slopes).view(-1, *(1,) * (slopes.ndim - 2))
    return slopes.unflatten(1, (-1, passed.num_examples)).sum(1)


class Vmapped(OneByOne):
    """Draws that share a network but for dropout masks and small weights.

    What is evaluated before the first mask, or the first weight of a draw's own, has no axis of draws: it is evaluated
    once for all of them. A draw may be seen through a view, a module that holds it as `network`.

    Args:
        points: an example or more, on which the last draw is compared with itself; what comes out is remembered.

    Raises:
        NotVmapped: any other draws.
    """

    is_foldable, attends = True, False

    def __init__(self, networks: Sequence[nn.Module], execution: Execution, points: Tensor) -> None:
        super().__init__(networks, execution)
        fixed = [each if isinstance(each, FixedNetwork) else getattr(each, "network", None) for each in networks]
        if not all(isinstance(each, FixedNetwork) and each.resampling is None for each in fixed):
            raise NotVmapped("not every draw is a network with fixed masks")
        self.fixed = cast(list[FixedNetwork], fixed)
        if any(map(is_hooked, networks)) or any(map(is_hooked, networks[0].modules())):
            raise NotVmapped("hooks see what goes through the network")
        if len(networks) < 2 or len({each.seed is None for each in self.fixed}) > 1:
            raise NotVmapped("one draw, or draws of several kinds")
        if points.device.type == "cpu" and any(isinstance(layer, nn.LSTM) for layer in networks[0].modules()):
            raise NotVmapped(
                "an LSTM is one operation on a CPU, but some for each time step under vmap, at half the speed"
            )
        self.own = self._own_tensors()
        self.own_numbers = sum(tensor[0].numel() for tensor in self.own.values())
        self._folds: dict[range, Fold] = {}
        is_view = isinstance(networks[0], View)
        known = self.fixed[0].plans.known_of_vmap if is_view or networks[0] is self.fixed[0] else {}
        key = points.shape[1:], execution, tuple(self.own), networks[0].kind if is_view else ()
        if key not in known:
            known[key] = self._probe(points), any(fold.attends for fold in self._folds.values())
        refusal, self.attends = known[key]
        if refusal:
            raise NotVmapped(refusal)

    def _own_tensors(self) -> dict[str, Tensor]:
        """Tensors in which draws differ, by their names in `networks[0]`, stacked: (S, ...); no kernels."""
        inner = [each.network for each in self.fixed]
        if all(network is inner[0] for network in inner):
            return {}
        pairs = (pair for network in inner for pair in zip(inner[0].parameters(), network.parameters(), strict=False))
        if any(one.ndim > 2 and one is not other for one, other in pairs):  # seen at the first layer of most
            raise NotVmapped("draws have convolutions of their own, which are no faster side by side")
        if not look_alike(inner):
            raise NotVmapped("draws are networks of several kinds")
        tensors = [dict(network.named_parameters()) | dict(network.named_buffers()) for network in self.networks]
        differing = [key for key, first in tensors[0].items() if any(each[key] is not first for each in tensors)]
        return {key: torch.stack([each[key].detach() for each in tensors]) for key in differing}

    def _probe(self, points: Tensor) -> str:
        """Compare the last draw under vmap with itself; say what vmap refuses, an empty string if nothing."""
        passed, count = self.forward(points), len(self.networks)
        passed.num_examples, passed.classes = len(points), passed.classes.to(points.device).repeat(len(points))
        last, draws = range(count - 1, count), range(count - 2, count)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                wanted = self.logits(passed, last)[0], self.slopes(passed, last)[0]
                if self.mode and self.mode.num_inside:
                    return "a ReLU inside one of torch's own layers is guided in the graph of a draw by itself"
                given = self.logits(passed, draws)[1], self.slopes(passed, draws)[1]
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError) as error:  # by which vmap refuses, and a draw in whose forward it does
                return str(error.__cause__ or error).partition("\n")[0]
        slow = [str(warning.message) for warning in caught if "batching rule" in str(warning.message)]
        tolerance = 1e-3 if self.execution.dtype in (torch.float32, torch.float64) else 0.1
        if not all((a - b).norm() <= tolerance * b.norm() for a, b in zip(given, wanted, strict=True)):  # nor NaN
            return "vmap gives another answer than the draw by itself"
        return slow[0].partition("\n")[0] if slow else ""

    def folds(self, rows: int, rows_of_one: int, first: int = 0) -> list[range]:
        """Cut the draws into folds as any, but into single ones where side by side is slower: where one has many rows.

        A row costs more under vmap. Measured on residual networks and a U-Net: side by side, draws of half a pass or
        more took 0.8 to 1.4 times as long as one by one; of fewer rows, 0.2 to 1.0 times.
        """
        is_slower = 2 * rows_of_one >= rows or (self.attends and rows_of_one > _ROWS_ATTENDED)
        return super().folds(rows_of_one if is_slower else rows, rows_of_one, first)

    def logits(self, passed: Passed, draws: range) -> Tensor:
        if len(draws) == 1:
            return super().logits(passed, draws)
        return self._over(draws, lambda x, evaluated: evaluated(x), passed)

    def slopes(self, passed: Passed, draws: range) -> Tensor:
        if len(draws) == 1:
            return super().slopes(passed, draws)

        def selected(x: Tensor, evaluated: Callable[[Tensor], Tensor]) -> Tensor:
            logits = evaluated(x)
            return logits.gather(1, passed.checked(logits.shape[1])[:, None]).sum()

        def slope_of(x: Tensor, evaluated: Callable[[Tensor], Tensor]) -> Tensor:
            return grad(lambda x: selected(x, evaluated))(x)

        return _over_steps(self._over(draws, slope_of, passed), passed)

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
