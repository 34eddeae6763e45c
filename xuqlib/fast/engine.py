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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_fixed, check_logits, check_target
from xuqlib.fast.chain import Chain, Passed
from xuqlib.fast.layers import Execution, NotAChain, raise_clearer, without_graph
from xuqlib.fast.vmapped import NotVmapped, Vmapped
from xuqlib.guided import GuidedMode
from xuqlib.path import Path, along_in, blocks, rows_per_pass, warning_of
from xuqlib.posteriors.draws import Draws, inner
from xuqlib.posteriors.fixing import can_evaluate
from xuqlib.posteriors.shared import Split, split

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
        self.mode, self.has_warned = GuidedMode() if guided else None, False
        dtype = torch.bfloat16 if precision == "bfloat16" else x.dtype
        self.how, self.chain = self._choose(x[:1], Execution(dtype, x.device, guided))

    def _choose(self, one: Tensor, execution: Execution) -> tuple[str, Chain | Vmapped | None]:
        """Choose how draws are evaluated, by the first of these that can: a chain, in folds; vmap; a chain; a loop.

        Measured on two cores: in folds, a chain is as fast as vmap or up to twice as fast; a chain whose draws are
        evaluated one after another only shares its trunk, as vmap does too.
        """
        try:
            vmapped = Vmapped(self.draws.networks, execution)
            reason = vmapped.refusal(one)
        except NotVmapped as refusal:
            vmapped, reason = None, str(refusal)
        if vmapped is not None and reason == "":
            return "vmap", vmapped
        parts = split(self.draws.networks, one)
        chain = None if parts is None else self._chain_of(parts, one, execution)
        if vmapped is not None and reason is None and not (chain is not None and chain.is_foldable):
            reason = self._probed(vmapped, one)
            if not reason:
                return "vmap", vmapped
        return ("chain", chain) if chain is not None else (f"loop: {reason}", None)

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
    def _probed(self, vmapped: Vmapped, one: Tensor) -> str:
        """Say why draws cannot be evaluated under vmap, which an example shows; an empty string where they can."""
        with computing_in(self.precision, one.device):
            if not can_evaluate(self.draws[-1], one):
                return "a draw does not evaluate an example by itself"
            try:
                return vmapped.probe(one)
            except torch.OutOfMemoryError:
                return "two draws do not fit into memory"

    @without_graph
    def _chain_of(self, parts: Split, one: Tensor, execution: Execution) -> Chain | None:
        """Make a chain if the draws are one, which an example shows; two, where they refuse an example by itself."""
        with computing_in(self.precision, one.device):
            for points in (one, torch.cat([one, one])):
                try:
                    chain = Chain(parts, execution)
                    with suppress(torch.OutOfMemoryError):  # evaluating a path halves the rows, or says what is wrong
                        chain.probe(points)
                    return chain
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    if not can_evaluate(self.draws[0], points):
                        continue
                    if not isinstance(error, NotAChain):
                        raise_clearer(error, lambda: None)
                    return None
        return None  # evaluating the draws themselves will say what is wrong with x

    @without_graph
    def logits(self, x: Tensor) -> Tensor:
        """Evaluate every draw, (draw, example, class), without a graph; `draws(x)` is differentiable."""
        if self.chain is None:
            return self.draws(x)
        with _clearer(lambda: check_logits(self.draws[0](x), len(x))):
            passed, all_draws = self.chain.forward(x), [range(len(self.draws))]
            folds = all_draws if self.chain.is_masked_dense else self.chain.folds(self.rows, len(x))
            return torch.cat([self.chain.logits(passed, draws) for draws in folds])

    def attributions(self, path: Path, target: Tensor | None) -> Iterator[Tensor]:
        """Evaluate a path for every draw. Yields one attribution (N, ...) per draw, in their order.

        Args:
            target: class of each example; None for the one output of a regression.
        """
        done, classes = 0, self._classes(path, target)
        while done < len(self.draws):
            try:
                for some in self._some_draws(path, classes, target, done):
                    done += len(some)
                    yield from some
            except torch.OutOfMemoryError:
                self._halve(path)

    def mean(self, path: Path, target: Tensor | None) -> Tensor:
        """Mean over draws of the attribution, (N, ...).

        Where draws differ in linear layers at their end alone, the slope is linear in what differs, unless ReLUs are
        guided: the mean slope is one backward pass for all draws.
        """
        classes = self._classes(path, target)
        while isinstance(self.chain, Chain) and self.chain.is_linear_behind_trunk and not path.guided:
            try:
                with _clearer(partial(self._plain, self.draws[0], path, target)):
                    return self._mean(self.chain, path, classes)
            except torch.OutOfMemoryError:
                self._halve(path)
        total = torch.zeros_like(path.origin)
        for attribution in self.attributions(path, target):
            total += attribution
        return total / len(self.draws)

    def _classes(self, path: Path, target: Tensor | None) -> Tensor:
        num_examples, known = len(path.origin), self.chain.num_classes if self.chain is not None else None
        if known is not None:
            check_target(target, num_examples, known)
        return (torch.zeros(num_examples, dtype=torch.long) if target is None else target).to(path.origin.device)

    def _some_draws(self, path: Path, classes: Tensor, target: Tensor | None, done: int) -> Iterator[Tensor]:
        """Yield attributions (S, N, ...) of the draws from number `done` on, as many at a time as fit."""
        if self.chain is None or not self.chain.is_worth_it(self.rows, len(path.origin) * path.num_steps):
            for network in self.draws[done:]:
                attribution = self._plain(network, path, target)
                if self.mode is not None:
                    self._check_guided(path, self.mode.num_met, self.mode.unguided)
                yield attribution[None]
            return
        chain, held = self.chain, None
        cuts = self._cuts(path, chain.rows_of_a_draw(self.rows))
        if not self.is_short_of_memory:
            with _clearer(partial(self._plain, self.draws[done], path, target)):
                held = [self._pass(chain, path, classes, *cut) for cut in cuts]
        examples, steps = (part.stop - part.start for part in cuts[0])
        for draws in chain.folds(self.rows, examples * steps, done):
            passes = held or (self._pass(chain, path, classes, *cut) for cut in cuts)
            with _clearer(partial(self._plain, self.draws[draws[0]], path, target)):
                total = self._total(chain, path, passes, draws)
            self._check_guided(path, chain.num_relus, chain.unguided)
            yield path.finished(total)

    def _plain(self, network: nn.Module, path: Path, target: Tensor | None) -> Tensor:
        """Evaluate a path for one draw by the plain loop."""
        with computing_in(self.precision, path.origin.device):
            return along_in(self.mode, network, path, target, self.rows)

    def _check_guided(self, path: Path, num_met: int, unguided: set[str]) -> None:
        message = warning_of(num_met, unguided) if path.guided else None
        if message is not None and not self.has_warned:
            self.has_warned = True
            warnings.warn(message, stacklevel=2)

    def _cuts(self, path: Path, rows: int) -> list[tuple[slice, slice]]:
        """Cut examples and steps into blocks of at most `rows` rows, at least one; whole paths where they fit."""
        at_once = min(rows, path.num_steps)
        parts = blocks(len(path.origin), max(1, rows // at_once))
        return [(examples, steps) for examples in parts for steps in blocks(path.num_steps, at_once)]

    @without_graph
    def _pass(self, chain: Chain | Vmapped, path: Path, classes: Tensor, examples: slice, steps: slice) -> _Block:
        with computing_in(self.precision, path.origin.device):
            passed = replace(chain.forward(path.points(examples, steps)), examples=examples)
        some = classes[examples]
        return _Block(examples, passed, some, path.weights_of(steps, len(some)))

    @without_graph
    def _total(self, chain: Chain | Vmapped, path: Path, passes: Iterable[_Block], draws: range) -> Tensor:
        """Sum the slopes of some draws along a path, (S, N, ...)."""
        total = path.origin.new_zeros(len(draws), *path.origin.shape)
        for block in passes:
            with computing_in(self.precision, path.origin.device):
                total[:, block.examples] += chain.slopes(block.passed, draws, block.classes, block.weights)
            del block  # where memory is short, the next one takes its place
        return total

    @without_graph
    def _mean(self, chain: Chain, path: Path, classes: Tensor) -> Tensor:
        total = torch.zeros_like(path.origin)
        for cut in self._cuts(path, self.rows):
            block = self._pass(chain, path, classes, *cut)
            with computing_in(self.precision, path.origin.device):
                total[block.examples] += chain.mean_slope(block.passed, block.classes, block.weights, self.rows)
        return path.finished(total)

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
