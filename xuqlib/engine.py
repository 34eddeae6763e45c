"""The engine: how draws x examples x steps are evaluated.

1. What draws share is done once: the trunk, all before the first random layer, is run forward once for all of them.
   Each draw then has its own way back through what was kept.
2. What they do not share is folded into rows where that pays: draws that differ in masks or in dense layers are,
   draws with convolutions of their own are not.
3. The steps of a path are rows too. The first layer is linear, so the steps are summed before its backward pass.
4. Rows are cut to what a cache holds (CPU) or fills a device, and halved when memory runs out.
5. A network that is no chain of layers is explained by the plain loop over draws.

All of it equals that loop up to round-off.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xuqlib.chains import Chain, Passed
from xuqlib.checks import check_choice, check_fixed
from xuqlib.draws import Draws, inner
from xuqlib.paths import NO_RELU, Path, along, rows_per_pass
from xuqlib.sharing import split
from xuqlib.steps import NotAChain, Setting

PRECISIONS = ("float32", "tf32", "bfloat16")


def over_draws(draws: Draws, path: Path, target: Tensor | None, *, precision: str = "float32") -> Iterator[Tensor]:
    """Evaluate a path for every draw. Yields one attribution (N, ...) per draw, in their order.

    Args:
        target: class of each example; None for the one output of a regression.
        precision: see `explain`.
    """
    run, done = _Run(draws, path, target, precision), 0
    while done < len(draws):
        try:
            for attributions in run.attributions(done):
                done += len(attributions)
                yield from attributions
        except NotAChain:
            run.chain = None
        except torch.OutOfMemoryError:
            run.halve()


def mean_over_draws(draws: Draws, path: Path, target: Tensor | None, *, precision: str = "float32") -> Tensor:
    """Mean over draws of the attribution, (N, ...).

    Where draws differ in linear layers at their end alone, the slope is linear in what differs, unless ReLUs are
    guided: the mean slope is one way back for all draws.
    """
    run = _Run(draws, path, target, precision)
    while run.chain is not None and run.chain.is_linear_behind_trunk and not path.guided:
        try:
            return run.mean(run.chain)
        except NotAChain:
            run.chain = None
        except torch.OutOfMemoryError:
            run.halve()
    total = torch.zeros_like(path.origin)
    for attribution in over_draws(draws, path, target, precision=precision):
        total += attribution
    return total / len(draws)


class _Run:
    """One path for some draws: `rows` is how much goes through a network at a time."""

    def __init__(self, draws: Draws, path: Path, target: Tensor | None, precision: str) -> None:
        for network in {id(inner(network)): network for network in draws}.values():
            check_fixed(network)
        x = path.origin
        self.draws, self.path, self.target, self.precision = draws, path, target, precision
        self.classes = (torch.zeros(len(x), dtype=torch.long) if target is None else target).to(x.device)
        self.rows = rows_per_pass(x, None)
        self.chain = self._chain()

    def _chain(self) -> Chain | None:
        x, found = self.path.origin, split(self.draws.networks, self.path.origin)
        dtype = torch.bfloat16 if self.precision == "bfloat16" else x.dtype
        try:
            return None if found is None else Chain(found, Setting(dtype, x.device, self.path.guided))
        except NotAChain:
            return None

    def attributions(self, done: int) -> Iterator[Tensor]:
        """Yield attributions (S, N, ...) of the draws from number `done` on, as many at a time as fit."""
        x, path = self.path.origin, self.path
        if self.chain is None:
            for network in self.draws[done:]:
                with computing_in(self.precision, x.device):
                    attribution = along(network, path, self.target, self.rows)
                yield attribution[None]
            return
        blocks = [self._pass(self.chain, *block) for block in self._blocks()]
        at_once = self.chain.draws_at_once(self.rows, max(block.passed.rows for block in blocks))
        for start in range(done, len(self.draws), at_once):
            finished = self._finished(self.chain, blocks, range(start, min(start + at_once, len(self.draws))))
            if start == 0 and self.path.guided and not self.chain.num_relus:
                warnings.warn(NO_RELU, stacklevel=2)
            yield finished

    def _blocks(self) -> list[tuple[slice, slice]]:
        """Cut examples and steps into blocks of at most `rows` rows, at least one; whole paths where they fit."""
        steps = min(self.rows, self.path.num_steps)
        examples = max(1, self.rows // steps)
        return [
            (slice(first, first + examples), slice(step, step + steps))
            for first in range(0, len(self.path.origin), examples)
            for step in range(0, self.path.num_steps, steps)
        ]

    @torch.no_grad()
    def _pass(self, chain: Chain, examples: slice, steps: slice) -> _Block:
        with computing_in(self.precision, self.path.origin.device):
            passed = chain.forward(self.path.points(examples, steps))
        classes = self.classes[examples]
        return _Block(examples, passed, classes, self.path.weights_of(steps, len(classes)))

    @torch.no_grad()
    def _finished(self, chain: Chain, blocks: list[_Block], draws: range) -> Tensor:
        x = self.path.origin
        total = torch.zeros((len(draws), *x.shape), dtype=x.dtype, device=x.device)
        with computing_in(self.precision, x.device):
            for block in blocks:
                total[:, block.examples] += chain.slopes(block.passed, draws, block.classes, block.weights)
        return self.path.finished(total, slice(None))

    @torch.no_grad()
    def mean(self, chain: Chain) -> Tensor:
        """Mean attribution over all draws by one way back through the trunk, (N, ...)."""
        x, total = self.path.origin, torch.zeros_like(self.path.origin)
        for examples, steps in self._blocks():
            block = self._pass(chain, examples, steps)
            with computing_in(self.precision, x.device):
                total[examples] += chain.mean_slope(block.passed, block.classes, block.weights, self.rows)
        return self.path.finished(total, slice(None))

    def halve(self) -> None:
        """Go on with half as many rows.

        Raises:
            torch.OutOfMemoryError: there is nothing to halve.
        """
        if self.rows == 1:
            raise torch.OutOfMemoryError("one example at one step of its path does not fit into memory")
        self.rows //= 2
        warnings.warn(f"out of memory; going on with {self.rows} rows in one pass", stacklevel=3)


class _Block(NamedTuple):
    """Some examples at some steps: their forward pass through the trunk, their classes, and the weight of each row."""

    examples: slice
    passed: Passed
    classes: Tensor
    weights: Tensor | None


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in this precision: TF32 only where it is asked for, bfloat16 by autocast.

    Raises:
        ValueError: unknown precision.
    """
    check_choice(precision, PRECISIONS, "precision")
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = precision == "tf32"
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
