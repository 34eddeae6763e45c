"""Guided ReLUs: a mode in which every ReLU call of torch lets only positive signal back through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _GuidedRelu(torch.autograd.Function):
    """ReLU, or ReLU6 with a ceiling, whose backward pass is dy * 1[dy > 0] * 1[open]; also under vmap."""

    @staticmethod
    def forward(x: Tensor, ceiling: float | None) -> Tensor:
        return x.clamp(0, ceiling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float | None], output: Tensor) -> None:
        # The output tells where the ReLU was open. The input would not do: an in-place ReLU overwrites it.
        ctx.save_for_backward(output)
        ctx.ceiling = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (y,), (dy,) = ctx.saved_tensors, grad_outputs
        is_open = y > 0 if ctx.ceiling is None else (y > 0) & (y < ctx.ceiling)
        return torch.where(is_open & (dy > 0), dy, torch.zeros_like(dy)), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], x: Tensor, ceiling: float | None
    ) -> tuple[Tensor, int | None]:
        return _GuidedRelu.apply(x, ceiling), in_dims[0]  # element by element, so one more axis is no matter


class _Clamp(NamedTuple):
    """What a call that may be a ReLU does: clamp `x` to [low, high], perhaps in place."""

    x: Tensor
    low: Any = 0
    high: Any = None
    in_place: bool = False

    def is_relu(self) -> bool:
        bounds = all(value is None or isinstance(value, (int, float)) for value in (self.low, self.high))
        return bounds and self.low == 0 and self.high in (None, 6)


def _read_clamp(in_place: bool) -> Callable[..., _Clamp]:
    return lambda input, min=None, max=None: _Clamp(input, min, max, in_place)


# Every way to write a ReLU that torch has, with its own parameter names.
_READERS: dict[Any, Callable[..., _Clamp]] = {
    F.relu: lambda input, inplace=False: _Clamp(input, in_place=inplace),
    F.relu6: lambda input, inplace=False: _Clamp(input, high=6, in_place=inplace),
    F.hardtanh: lambda input, min_val=-1.0, max_val=1.0, inplace=False: _Clamp(input, min_val, max_val, inplace),
    F.threshold: lambda input, threshold, value, inplace=False: _Clamp(
        input, threshold if value == threshold else None, in_place=inplace
    ),
    **dict.fromkeys((torch.relu, Tensor.relu), lambda input: _Clamp(input)),
    **dict.fromkeys((torch.relu_, Tensor.relu_), lambda input: _Clamp(input, in_place=True)),
    **dict.fromkeys((torch.clamp, torch.clip, Tensor.clamp, Tensor.clip), _read_clamp(False)),
    **dict.fromkeys((torch.clamp_, torch.clip_, Tensor.clamp_, Tensor.clip_), _read_clamp(True)),
    **dict.fromkeys((torch.clamp_min, Tensor.clamp_min), _read_clamp(False)),
    **dict.fromkeys((torch.clamp_min_, Tensor.clamp_min_), _read_clamp(True)),
}


class GuidedMode(TorchFunctionMode):
    """While on, every ReLU call of torch is guided, whether a module, a function or a method makes it, in place or not.

    Replacing the call, rather than hooking a module, is what makes functional ReLUs, ReLUs built inside forward and
    reused ones right; and since only the ReLU's own edge is changed, so is a skip connection around it.
    `num_met` counts the ReLU calls so far. Composes with other torch-function modes, outside or inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_met = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        reader = None if "out" in kwargs else _READERS.get(func)
        call = reader(*args, **kwargs) if reader else None
        if call is None or not call.is_relu():
            return func(*args, **kwargs)
        self.num_met += 1
        guided = _GuidedRelu.apply(call.x, call.high)
        return call.x.copy_(guided) if call.in_place else guided
