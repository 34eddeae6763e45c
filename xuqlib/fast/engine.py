"""The engine: how draws x examples x steps are evaluated.

1. What draws share is done once: the trunk, all before the first random layer, is run forward once for all of them.
   Each draw then has its own backward pass through what was kept.
2. What they do not share is folded into rows where that pays: draws that differ in masks or in dense layers are,
   draws with convolutions of their own are not.
3. The steps of a path are rows too. The first layer is linear, so the steps are summed before its backward pass.
4. Rows are cut to what a cache holds (CPU) or fills a device, and halved when memory runs out.
5. Draws of a network that is no chain of layers are evaluated side by side by `torch.func.vmap`; those that it refuses,
   by the plain loop over draws. That is decided when an engine is built (`how`): an error while draws are evaluated is
   raised, and never answered by that loop.

All of it equals that loop up to round-off.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xuqlib.checks import check_choice, check_fixed
from xuqlib.fast.chain import Chain, Passed, Together
from xuqlib.fast.layers import Execution, NotAChain, without_graph
from xuqlib.fast.vmapped import NotVmapped, OneByOne, Vmapped
from xuqlib.path import Path, blocks, rows_per_pass, warning_of
from xuqlib.posteriors.draws import Draws, inner, stacked

PRECISIONS = ("float32", "tf32", "bfloat16")


class Engine:
    """Some draws, ready to be explained along any number of paths.

    Args:
        draws: fixed networks.
        x: one example or more, only to see what the networks do with it.
        guided: whether the paths let only positive signal back through ReLUs.
        precision: see `explain`.

    Raises:
        TypeError, ValueError: a network in training mode; unknown precision.
    """

    def __init__(self, draws: Draws, x: Tensor, *, guided: bool = False, precision: str = "float32") -> None:
        for network in {id(inner(network)): network for network in draws}.values():
            check_fixed(network)
        check_choice(precision, PRECISIONS, "precision")
        self.draws, self.precision = draws, precision
        self.rows, self.is_short_of_memory, self.has_warned = rows_per_pass(x, None), False, False
        self.execution = Execution(torch.bfloat16 if precision == "bfloat16" else x.dtype, x.device, guided)
        self.how, self.together = self._choose(x[:1])

    @without_graph
    def _choose(self, one: Tensor) -> tuple[str, Together]:
        """Choose how draws are evaluated, by the first of these that can: a chain, in folds; vmap; a chain; a loop.

        Measured on two cores: in folds, a chain is as fast as vmap or up to twice as fast; a chain whose draws are
        evaluated one after another only shares its trunk, as vmap does too.
        """
        networks, chain = self.draws.networks, None
        with computing_in(self.precision, one.device):
            try:
                with suppress(NotAChain):
                    chain = Chain(networks, self.execution, one)
                if chain is None or not chain.is_foldable:
                    return "vmap", Vmapped(networks, self.execution, one)
            except (NotVmapped, torch.OutOfMemoryError) as refusal:
                if chain is None:
                    return f"loop: {refusal}".partition("\n")[0], OneByOne(networks, self.execution)
            except Exception as error:
                loop = OneByOne(networks, self.execution)
                try:
                    loop.logits(loop.forward(one), range(1))
                except Exception:  # a user's network raises what it likes, and will raise it again
                    return "loop: a draw does not evaluate an example by itself", loop
                raise error
        return "chain", chain

    def at(self, draws: Draws) -> Engine:
        """Go on with the same draws, seen with other examples; see `Draws.at`."""
        self.draws = draws
        self.together.networks = draws.networks
        return self

    @property
    def is_fast(self) -> bool:
        """Whether the draws are evaluated together; else each is by itself, in the plain loop."""
        return not self.how.startswith("loop")

    @property
    def rows_of_pass(self) -> int:
        """Rows (examples times steps) of one pass of one draw."""
        return self.rows if self.is_short_of_memory else self.rows * self.together.longer

    @without_graph
    def logits(self, x: Tensor) -> Tensor:
        """Evaluate every draw, (draw, example, class), without a graph; `draws(x)` is differentiable."""
        passed, all_at_once = self.together.forward(x), self.together.is_masked_dense
        folds = [range(len(self.draws))] if all_at_once else self.together.folds(self.rows, len(x))
        return stacked([one for draws in folds for one in self.together.logits(passed, draws)])

    def attributions(self, path: Path, target: Tensor | None) -> Iterator[Tensor]:
        """Evaluate a path for every draw. Yields one attribution (N, ...) per draw, in their order.

        Args:
            target: class of each example; None for the one output of a regression.
        """
        done = 0
        while done < len(self.draws):
            try:
                for some in self._some_draws(path, target, done):
                    done += len(some)
                    yield from some
            except torch.OutOfMemoryError:
                self._halve(path)

    def mean(self, path: Path, target: Tensor | None) -> Tensor:
        """Mean over draws of the attribution, (N, ...).

        Where draws differ in linear layers at their end alone, the slope is linear in what differs, unless ReLUs are
        guided: the mean slope is one backward pass for all draws.
        """
        chain = self.together
        while isinstance(chain, Chain) and chain.is_linear_behind_trunk and not path.guided:
            try:
                passes = (self._pass(path, target, *cut) for cut in self._cuts(path))
                return self._total(path, passes, 1, partial(chain.mean_slope, rows=self.rows))[0]
            except torch.OutOfMemoryError:
                self._halve(path)
        total = torch.zeros_like(path.origin)
        for attribution in self.attributions(path, target):
            total += attribution
        return total / len(self.draws)

    def _some_draws(self, path: Path, target: Tensor | None, done: int) -> Iterator[Tensor]:
        """Yield attributions (S, N, ...) of the draws from number `done` on, as many at a time as fit."""
        cuts, mode = self._cuts(path), self.execution.mode
        held = None if self.is_short_of_memory else [self._pass(path, target, *cut) for cut in cuts]
        examples, steps = (part.stop - part.start for part in cuts[0])
        for draws in self.together.folds(self.rows, examples * steps, done):
            passes = held or (self._pass(path, target, *cut) for cut in cuts)
            total = self._total(path, passes, len(draws), partial(self.together.slopes, draws=draws))
            message = warning_of(mode.num_met, mode.unguided) if path.guided else None
            if message is not None and not self.has_warned:
                self.has_warned = True
                warnings.warn(message, stacklevel=2)
            yield total

    def _cuts(self, path: Path) -> list[tuple[slice, slice]]:
        """Cut examples and steps into blocks of few enough rows, at least one; whole paths where they fit."""
        at_once = min(self.rows_of_pass, path.num_steps)
        parts = blocks(len(path.origin), self.rows_of_pass // at_once)
        return [(examples, steps) for examples in parts for steps in blocks(path.num_steps, at_once)]

    @without_graph
    def _pass(self, path: Path, target: Tensor | None, examples: slice, steps: slice) -> Passed:
        with computing_in(self.precision, path.origin.device):
            passed = self.together.forward(path.points(examples, steps))
        where = path.origin.device
        classes = torch.zeros(len(path.origin), dtype=torch.long, device=where) if target is None else target
        some = classes[examples].to(where)
        passed.examples, passed.num_examples = examples, len(some)
        passed.classes, passed.weights = some.repeat(len(passed.h) // len(some)), path.weights_of(steps, len(some))
        return passed

    @without_graph
    def _total(
        self, path: Path, passes: Iterable[Passed], num_draws: int, slopes: Callable[[Passed], Tensor]
    ) -> Tensor:
        """Sum the slopes of some draws, or their mean, along a path: their attributions (S, N, ...)."""
        total = path.origin.new_zeros(num_draws, *path.origin.shape)
        for passed in passes:
            with computing_in(self.precision, path.origin.device):
                total[:, passed.examples] += slopes(passed)
            del passed  # where memory is short, the next one takes its place
        return path.finished(total)

    def _halve(self, path: Path) -> None:
        rows = min(self.rows, len(path.origin) * path.num_steps * len(self.draws))
        if rows == 1:
            raise torch.OutOfMemoryError("one example at one step of its path does not fit into memory")
        self.rows = rows // 2
        if not self.is_short_of_memory:
            warnings.warn(f"out of memory; going on with {self.rows} rows in one pass, or fewer", stacklevel=3)
        self.is_short_of_memory = True


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in this precision: TF32 only where it is asked for, bfloat16 by autocast.

    Raises:
        ValueError: unknown precision.
    """
    check_choice(precision, PRECISIONS, "precision")
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.fp32_precision = allowed
