"""Guided ReLUs: a mode in which every ReLU call of torch lets only positive signal back through."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode


class _GuidedRelu(torch.autograd.Function):
    """ReLU, perhaps with a ceiling, whose backward pass is dy * 1[dy > 0] * 1[open]; also under vmap."""

    @staticmethod
    def forward(x: Tensor, ceiling: float | None) -> Tensor:
        return x.clamp(0, ceiling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float | None], output: Tensor) -> None:
        ceiling = inputs[1]
        # A mask of its own: a network may write into the ReLU's input, and into its output too.
        ctx.save_for_backward(output > 0 if ceiling is None else (output > 0) & (output < ceiling))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (is_open,), (dy,) = ctx.saved_tensors, grad_outputs
        return torch.where(is_open & (dy > 0), dy, torch.zeros_like(dy)), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], x: Tensor, ceiling: float | None
    ) -> tuple[Tensor, int | None]:
        return _GuidedRelu.apply(x, ceiling), in_dims[0]  # element by element, so one more axis is no matter


def _larger(input: Tensor, other: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    if not isinstance(other, Tensor):  # the largest number of one tensor
        return input, None, None, False
    return (other, input, None, False) if _is_zero(input) else (input, other, None, False)


# Every way to write a ReLU that torch has, as a clamp: its own parameters to x, both bounds, and whether in place.
_READERS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "relu": lambda input, inplace=False: (input, 0, None, inplace),
    "relu6": lambda input, inplace=False: (input, 0, 6, inplace),
    "hardtanh": lambda input, min_val=-1.0, max_val=1.0, inplace=False: (input, min_val, max_val, inplace),
    "threshold": lambda input, threshold, value, inplace=False: (input, threshold or value, None, inplace),
    "leaky_relu": lambda input, negative_slope=0.01, inplace=False: (input, negative_slope, None, inplace),
    **dict.fromkeys(("clamp", "clip", "clamp_min"), lambda input, min=None, max=None: (input, min, max, False)),
    **dict.fromkeys(("maximum", "fmax", "max"), _larger),
}
# Of a ReLU that is written as a product with (x > 0), or by torch.where, only the comparison can be seen.
_COMPARISONS = ("gt", "ge", "lt", "le")
# Nodes of autograd's graph that stop some signal but follow no ReLU's rule, or that hide what is in them.
_UNGUIDED = {"LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Gelu", "Silu", "Mish", "Softplus"}
_UNGUIDED |= {"Hardswish", "CudnnRnn", "MiopenRnn", "CompiledFunction"}


class GuidedMode(TorchFunctionMode):
    """While on, every ReLU call of torch is guided, whether a module, a function or a method makes it, in place or not.

    Replacing the call, rather than hooking a module, is what makes functional ReLUs, ReLUs built inside forward and
    reused ones right; and since only the ReLU's own edge is changed, so is a skip connection around it.
    `num_met` counts the ReLU calls so far. Composes with other torch-function modes, outside or inside.

    Attributes:
        num_inside: how many of them were inside torch's own layers, which autograd's graph alone shows.
        unguided: names of what was met that resembles a ReLU, or may hide one, and keeps its plain gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_met = self.num_inside = 0
        self.unguided: set[str] = set()

    def evaluate(self, network: Callable[[Tensor], Any], x: Tensor) -> Any:
        """Evaluate a network; guides the ReLUs inside torch's own layers too, such as nn.RNN, and notes `unguided`."""
        # Before the call, since a first layer may work in place.
        known: dict[Any, bool] = {get_gradient_edge(x).node: True} if x.requires_grad else {}
        with self:
            output = network(x)
        if known and isinstance(output, Tensor) and output.requires_grad:
            depends(get_gradient_edge(output).node, known)
        for node in [node for node, is_between in known.items() if is_between][1:]:
            name = node.name().split("Backward")[0]
            is_users_own = isinstance(node, torch.autograd.function.BackwardCFunction) and "_GuidedRelu" not in name
            if name == "Relu":
                node.register_prehook(lambda slopes: (slopes[0].clamp(min=0),))
                self.num_met += 1
                self.num_inside += 1
            elif is_users_own or name in _UNGUIDED:
                self.unguided.add(name)
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        # Without a graph, as inside an autograd function of the network's own, there is nothing to guide.
        if not torch.is_grad_enabled() or "out" in kwargs:
            return func(*args, **kwargs)
        written = getattr(func, "__name__", "").split(".")[0]  # that of torch.ops.aten has its overload behind it
        name = written.strip("_")  # F.threshold calls itself _threshold
        if name in _COMPARISONS and len(args) == 2 and _is_zero(args[1]) and args[0].requires_grad:
            self.unguided.add(f"{name}(x, 0)")
        if name in ("abs", "absolute") and args and args[0].requires_grad:  # as in (x + |x|) / 2
            self.unguided.add("abs")
        if name not in _READERS:
            return func(*args, **kwargs)
        x, low, ceiling, in_place = _READERS[name](*args, **kwargs)
        if isinstance(ceiling, Tensor) and ceiling.numel() == 1:
            ceiling = ceiling.item()
        is_number = ceiling is None or (isinstance(ceiling, int | float) and ceiling > 0)
        if not (is_number and _is_zero(low) and x.is_floating_point()):
            return func(*args, **kwargs)
        if name in ("clamp", "clip") and ceiling not in (None, 6, math.inf):  # to the range of an image, say
            if x.requires_grad:
                self.unguided.add(f"{name}(0, {ceiling})")
            return func(*args, **kwargs)
        self.num_met += 1
        guided = _GuidedRelu.apply(x + low if isinstance(low, Tensor) else x, ceiling)  # in the shape of both
        return x.copy_(guided) if in_place or written == f"{name}_" else guided


def _is_zero(bound: Any) -> bool:
    if isinstance(bound, Tensor):
        while torch._C._functorch.is_functorch_wrapped_tensor(bound):  # vmap has no answer to whether any is not 0
            bound = torch._C._functorch.get_unwrapped(bound)
        return not bound.requires_grad and not bound.any()
    return isinstance(bound, int | float) and bound == 0


def depends(node: Any, known: dict[Any, bool]) -> bool:
    """Whether autograd's graph leads from a node to one that is known to; adds what is found of all between."""
    waiting = [] if node in known else [node]
    while waiting:
        earlier = [one for one, _ in waiting[-1].next_functions if one is not None]
        unknown = [one for one in earlier if one not in known]
        if not unknown:
            known[waiting.pop()] = any(known[one] for one in earlier)
        waiting += unknown
    return known[node]
