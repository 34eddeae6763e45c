"""Views: a draw seen as a map from the one tensor that is explained to the numbers that are explained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from xuqlib.inputs import Inputs
from xuqlib.outputs import Output


class OfExamples(nn.Module):
    """A network that answers for N given examples alone, or for any number of copies of all of them."""

    @abstractmethod
    def at(self, examples: slice) -> Self:
        """Return the same for some of the examples."""


def at(network: Any, examples: slice) -> Any:
    """Return a network for some of the examples; most are the same for all."""
    return network.at(examples) if isinstance(network, OfExamples) else network


class View(OfExamples):
    """A network from x, (N, ...), to numbers (N, K): x takes its place among the inputs, and the answer is read.

    It may be given k * N rows: its N examples repeated whole, k times.

    Args:
        network: what is seen; held, not copied.
        inputs: of N examples, whose x is what comes in.
        output: what of the answer goes out.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, output: Output) -> None:
        super().__init__()
        self.network, self.inputs, self.output = network, inputs, output
        self.training = False

    def at(self, examples: slice) -> View:
        return View(self.network, self.inputs.at(examples), self.output.at(examples))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.inputs, self.output = self.inputs.changed(fn), self.output.changed(fn)
        return super()._apply(fn, recurse)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What of the inputs and the output decides how the network is evaluated, whichever the examples are."""
        given = [
            (key, value.shape[1:], value.dtype) if isinstance(value, Tensor) else (key, repr(value))
            for key, value in self.inputs.values.items()
        ]
        return (*given, self.inputs.layer, self.output.kind, self.output.key)

    def read(self, x: Tensor) -> Tensor:
        """Return the numbers of the answer before places of a segmentation are summed, (N, K, ...)."""
        copies, rest = divmod(len(x), self.inputs.num_examples)
        if rest:
            raise ValueError(f"a view of {self.inputs.num_examples} examples got {len(x)} rows; repeat them whole")
        return self.output.read(self.inputs.call(self.network, x, copies), len(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.output.columns(self.read(x))


class OfClasses(OfExamples):
    """A view as a map to the logits of classes that exclude each other, which is what an entropy is of."""

    def __init__(self, view: View) -> None:
        super().__init__()
        self.view, self.training = view, False

    def at(self, examples: slice) -> OfClasses:
        return OfClasses(self.view.at(examples))

    def forward(self, x: Tensor) -> Tensor:
        return self.view.output.of_classes(self.view.read(x))
