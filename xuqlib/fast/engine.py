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
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_fixed, check_logits
from xuqlib.fast.chain import Chain, Passed
from xuqlib.fast.layers import Execution, NotAChain, raise_clearer, without_graph
from xuqlib.fast.vmapped import NotVmapped, Vmapped
from xuqlib.guided import GuidedMode
from xuqlib.path import Path, along_in, blocks, rows_per_pass, warning_of
from xuqlib.posteriors.draws import Draws, inner
from xuqlib.posteriors.fixing import can_evaluate

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
        RuntimeError: the fast path fails on x where the networks do not, which is a fault of this library; so do the
            methods, which else raise what the networks do.
    """

    def __init__(self, draws: Draws, x: Tensor, *, guided: bool = False, precision: str = "float32") -> None:
        for network in {id(inner(network)): network for network in draws}.values():
            check_fixed(network)
        check_choice(precision, PRECISIONS, "precision")
        self.draws, self.precision = draws, precision
        self.rows, self.is_short_of_memory = rows_per_pass(x, None), False
        execution = Execution(torch.bfloat16 if precision == "bfloat16" else x.dtype, x.device, guided)
        self.mode, self.has_warned = execution.mode if guided else None, False
        self.how, self.chain = self._choose(x[:1], execution)

    @without_graph
    def _choose(self, one: Tensor, execution: Execution) -> tuple[str, Chain | Vmapped | None]:
        """Choose how draws are evaluated, by the first of these that can: a chain, in folds; vmap; a chain; a loop.

        Measured on two cores: in folds, a chain is as fast as vmap or up to twice as fast; a chain whose draws are
        evaluated one after another only shares its trunk, as vmap does too.
        """
        networks, chain = self.draws.networks, None
        with computing_in(self.precision, one.device):
            try:
                with suppress(NotAChain):
                    chain = Chain(networks, execution, one)
                if chain is None or not chain.is_foldable:
                    return "vmap", Vmapped(networks, execution, one)
            except (NotVmapped, torch.OutOfMemoryError) as refusal:
                if chain is None:
                    return f"loop: {refusal}".partition("\n")[0], None
            except Exception as error:
                if can_evaluate(networks[0], one):
                    raise_clearer(error, lambda: None)
                return "loop: a draw does not evaluate an example by itself", None
        return "chain", chain

    def at(self, draws: Draws) -> Engine:
        """Go on with the same draws, seen with other examples; see `Draws.at`."""
        self.draws = draws
        if isinstance(self.chain, Vmapped):
            self.chain.networks = draws.networks
        return self

    @property
    def is_fast(self) -> bool:
        """Whether the draws are evaluated together; else each is by itself, in the plain loop."""
        return self.chain is not None

    @without_graph
    def logits(self, x: Tensor) -> Tensor:
        """Evaluate every draw, (draw, example, class), without a graph; `draws(x)` is differentiable."""
        if self.chain is None:
            return self.draws(x)
        with _clearer(lambda: check_logits(self.draws[0](x), len(x))):
            passed, all_at_once = self.chain.forward(x), self.chain.is_masked_dense
            folds = [range(len(self.draws))] if all_at_once else self.chain.folds(self.rows, len(x))
            return torch.cat([self.chain.logits(passed, draws) for draws in folds])

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
        while self.chain is not None and self.chain.is_linear_behind_trunk and not path.guided:
            try:
                with _clearer(partial(self._plain, self.draws[0], path, target)):
                    passes = (self._pass(path, target, *cut) for cut in self._cuts(path))
                    return path.finished(self._total(path, passes, None)[0])
            except torch.OutOfMemoryError:
                self._halve(path)
        total = torch.zeros_like(path.origin)
        for attribution in self.attributions(path, target):
            total += attribution
        return total / len(self.draws)

    def _some_draws(self, path: Path, target: Tensor | None, done: int) -> Iterator[Tensor]:
        """Yield attributions (S, N, ...) of the draws from number `done` on, as many at a time as fit."""
        if self.chain is None:
            for network in self.draws[done:]:
                attribution = self._plain(network, path, target)
                if self.mode is not None:
                    self._check_guided(self.mode)
                yield attribution[None]
            return
        held, cuts = None, self._cuts(path)
        if not self.is_short_of_memory:
            with _clearer(partial(self._plain, self.draws[done], path, target)):
                held = [self._pass(path, target, *cut) for cut in cuts]
        examples, steps = (part.stop - part.start for part in cuts[0])
        for draws in self.chain.folds(self.rows, examples * steps, done):
            passes = held or (self._pass(path, target, *cut) for cut in cuts)
            with _clearer(partial(self._plain, self.draws[draws[0]], path, target)):
                total = self._total(path, passes, draws)
            if self.mode is not None:
                self._check_guided(self.mode)
            yield path.finished(total)

    def _plain(self, network: nn.Module, path: Path, target: Tensor | None) -> Tensor:
        """Evaluate a path for one draw by the plain loop."""
        with computing_in(self.precision, path.origin.device):
            return along_in(self.mode, network, path, target, self.rows)

    def _check_guided(self, mode: GuidedMode) -> None:
        message = warning_of(mode.num_met, mode.unguided)
        if message is not None and not self.has_warned:
            self.has_warned = True
            warnings.warn(message, stacklevel=2)

    def _cuts(self, path: Path) -> list[tuple[slice, slice]]:
        """Cut examples and steps into blocks of few enough rows, at least one; whole paths where they fit."""
        rows = max(1, self.rows // self.chain.at_least) if self.chain is not None else self.rows
        at_once = min(rows, path.num_steps)
        parts = blocks(len(path.origin), max(1, rows // at_once))
        return [(examples, steps) for examples in parts for steps in blocks(path.num_steps, at_once)]

    @without_graph
    def _pass(self, path: Path, target: Tensor | None, examples: slice, steps: slice) -> _Block:
        where, chain = path.origin.device, cast(Chain | Vmapped, self.chain)
        with computing_in(self.precision, where):
            passed = replace(chain.forward(path.points(examples, steps)), examples=examples)
        classes = torch.zeros(len(path.origin), dtype=torch.long) if target is None else target
        some = classes[examples].to(where)
        return _Block(examples, passed, some, path.weights_of(steps, len(some)))

    @without_graph
    def _total(self, path: Path, passes: Iterable[_Block], draws: range | None) -> Tensor:
        """Sum the slopes of some draws along a path, (S, N, ...); for None, their mean over all, (1, N, ...)."""
        chain, count = cast(Chain, self.chain), 1 if draws is None else len(draws)
        total = path.origin.new_zeros(count, *path.origin.shape)
        for block in passes:
            with computing_in(self.precision, path.origin.device):
                if draws is not None:
                    total[:, block.examples] += chain.slopes(block.passed, draws, block.classes, block.weights)
                else:
                    total[:, block.examples] += chain.mean_slope(block.passed, block.classes, block.weights, self.rows)
            del block  # where memory is short, the next one takes its place
        return total

    def _halve(self, path: Path) -> None:
        rows = min(self.rows, len(path.origin) * path.num_steps * len(self.draws))
        if rows == 1:
            raise torch.OutOfMemoryError("one example at one step of its path does not fit into memory")
        self.rows = rows // 2
        if not self.is_short_of_memory:
            warnings.warn(f"out of memory; going on with {self.rows} rows in one pass, or fewer", stacklevel=3)
        self.is_short_of_memory = True


class _Block(NamedTuple):
    """Some examples at some steps: their forward pass through the trunk, their classes, and the weight of each row."""

    examples: slice
    passed: Passed
    classes: Tensor
    weights: Tensor | None


@contextmanager
def _clearer(plain: Callable[[], Any]) -> Iterator[None]:
    """Raise what `plain()` says of an error inside, by `raise_clearer`; that memory ran out is clear as it is."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise_clearer(error, plain)


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
