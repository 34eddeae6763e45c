"""Layers whose backward pass is written by hand, so that no autograd graph is built.

Rows are folded as (draw, row): a tensor (S * R, ...) holds R rows for each of S draws, and what a layer kept of R rows
that all draws share serves the backward passes of all S of them. A layer that is not known here (an attention layer, a
residual block) keeps an autograd graph of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib.guided import GuidedMode
from xuqlib.path import NO_GRADIENT
from xuqlib.posteriors.fixing import FixedNetwork, Seed, unit_mask
from xuqlib.posteriors.kinds import have_same_tensors

Norm = nn.BatchNorm1d | nn.BatchNorm2d
_Method = TypeVar("_Method", bound=Callable[..., Any])


class NotAChain(Exception):
    """A network that layers of the fast path cannot stand for."""


def without_graph(function: _Method) -> _Method:
    """Let a method build no graph, and make ordinary tensors even where its caller is in inference mode."""
    return torch.inference_mode(False)(torch.no_grad()(function))


@dataclass(frozen=True)
class Execution:
    """How layers are evaluated: in which dtype, on which device, and whether ReLUs are guided; `mode` counts them."""

    dtype: torch.dtype
    device: torch.device
    guided: bool = False
    mode: GuidedMode = field(default_factory=GuidedMode, compare=False)

    def layout(self, num_axes: int) -> torch.memory_format:
        """The order of memory in which convolutions of images and kernels (4 axes) are fast."""
        # On a CPU, float64 convolutions know no other order than torch's own.
        fast = num_axes == 4 and (self.device.type != "cpu" or self.dtype != torch.float64)
        return torch.channels_last if fast else torch.contiguous_format

    def arrange(self, tensor: Tensor) -> Tensor:
        """Put a tensor into that order of memory."""
        return tensor.contiguous(memory_format=self.layout(tensor.ndim))

    def convert(self, tensor: Tensor) -> Tensor:
        """Return a tensor in this dtype, on this device, in that order of memory, without its graph."""
        return self.arrange(tensor.detach().to(self.device, self.dtype))

    def empty(self, rows: int, shape: torch.Size) -> Tensor:
        """What torch's backward functions ask for when they only need the shape of a forward input."""
        layout = self.layout(len(shape) + 1)
        return torch.empty((rows, *shape), dtype=self.dtype, device=self.device, memory_format=layout)


class Layer(ABC):
    """One layer of a chain: `forward` also returns what `backward` will need."""

    @abstractmethod
    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        """Args: h, (rows, ...) or (S * rows, ...)."""

    @abstractmethod
    def backward(self, g: Tensor, kept: Any) -> Tensor:
        """Args: g, the slope of the logits at the output; it may be overwritten."""


class Convolution(Layer):
    """A convolution, with the batch norm behind it folded in."""

    def __init__(self, layer: nn.Conv2d, norm: Norm | None, execution: Execution) -> None:
        weight, bias = _folded(layer.weight, layer.bias, norm)
        self.weight, self.bias = execution.convert(weight), None if bias is None else execution.convert(bias)
        self.where: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        self.groups, self.execution, self.made_of = layer.groups, execution, (layer, norm)

    def biases(self) -> Tensor:
        """What the convolution and the batch norm behind it each add to the output, (1 or 2, C)."""
        layer, norm = self.made_of
        bias = layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
        if norm is None:
            return bias[None]
        scale = _scale_of(norm)
        shift = (0 if norm.bias is None else norm.bias) - cast(Tensor, norm.running_mean) * scale
        return torch.stack([bias * scale, shift])

    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        return F.conv2d(h, self.weight, self.bias, groups=self.groups, **self.where), h.shape[1:]

    def backward(self, g: Tensor, kept: Any) -> Tensor:
        g = self.execution.arrange(g)
        if self._is_stem(g, kept):
            return F.pixel_shuffle(F.conv2d(g, self._unshuffled(), stride=2, padding=1), 2)
        like = self.execution.empty(len(g), kept)
        stride, padding, dilation = self.where.values()
        geometry = (stride, padding, dilation, False, [0, 0], self.groups)
        needed = [True, False, False]  # the slope at the input; not at weight and bias
        return torch.ops.aten.convolution_backward(g, like, self.weight, None, *geometry, needed)[0]

    def _is_stem(self, g: Tensor, shape: torch.Size) -> bool:
        plain = self.weight.shape[2:] == (3, 3) and list(self.where.values()) == [(1, 1)] * 3 and self.groups == 1
        even = shape[1] % 2 == 0 and shape[2] % 2 == 0
        return plain and even and shape[0] <= 4 and g.device.type == "cpu"

    def _unshuffled(self) -> Tensor:
        # Few output channels leave most of a CPU's vector unused: four neighbouring pixels at a time use four times
        # as much of it. A pixel at (i, j) of such a square sees the flipped kernel moved by (i, j).
        flipped = self.weight.transpose(0, 1).flip(2, 3)
        shifted = [F.pad(flipped, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]
        return self.execution.arrange(torch.stack(shifted, 1).flatten(0, 1))


class Dense(Layer):
    """A dense layer, with the batch norm behind it folded in: of all draws, or of each its own, (S, C, D)."""

    def __init__(self, layers: Sequence[nn.Linear], norms: Sequence[Norm | None], execution: Execution) -> None:
        one_norm = norms[0] is None or have_same_tensors(cast(Any, norms))
        self.own = not have_same_tensors(layers) or not one_norm
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        if not self.own:
            weight, bias = _folded(weights[0], biases[0], norms[0])
        elif one_norm:  # folded in all at once: on a device, each operation takes a launch
            weight, bias = _folded(torch.stack(weights), _stacked(biases), norms[0])
        else:
            folded = [_folded(*each) for each in zip(weights, biases, norms, strict=True)]
            weight, bias = torch.stack([weight for weight, _ in folded]), _stacked([bias for _, bias in folded])
        self.weight = execution.convert(weight)
        self.bias = None if bias is None else execution.convert(bias.unsqueeze(-2) if self.own else bias)

    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        if h.ndim != 2:
            raise NotAChain(f"a dense layer on {tuple(h.shape)}")
        if not self.own:
            return F.linear(h, self.weight, self.bias), None
        out = h.unflatten(0, (-1, rows)) @ self.weight.mT  # (S, R, C)
        return (out if self.bias is None else out + self.bias).flatten(0, 1), None

    def backward(self, g: Tensor, kept: Any) -> Tensor:
        if not self.own:
            return g @ self.weight
        return (g.unflatten(0, (len(self.weight), -1)) @ self.weight).flatten(0, 1)

    def slope_of(self, classes: Tensor, num_draws: int) -> Tensor:
        """Slope of each row's class at the input of this layer, its weights: (S * R, D) for classes (R,)."""
        chosen = self.weight[..., classes, :]
        return chosen.flatten(0, 1) if self.own else chosen.repeat(num_draws, 1)


class Relu(Layer):
    """A ReLU, which may be guided."""

    def __init__(self, guided: bool) -> None:
        self.guided = guided

    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        out = h.relu()
        return out, out

    def backward(self, g: Tensor, kept: Any) -> Tensor:
        if self.guided:
            g.clamp_min_(0)
        folded = g.unflatten(0, (-1, len(kept)))
        torch.ops.aten.threshold_backward.grad_input(folded, kept.expand_as(folded), 0, grad_input=folded)
        return g


class MaxPool(Layer):
    """A max pooling, which passes a slope to the largest of its inputs."""

    def __init__(self, layer: nn.MaxPool2d, execution: Execution) -> None:
        self.execution = execution
        geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        sizes = ([n, n] if isinstance(n, int) else list(n) for n in geometry)
        self.geometry: tuple[Any, ...] = (*sizes, layer.ceil_mode)

    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        out, where = F.max_pool2d_with_indices(h, *self.geometry)
        return out, (h.shape[1:], {1: where})

    def backward(self, g: Tensor, kept: Any) -> Tensor:
        shape, where = kept
        folds = len(g) // len(where[1])
        if folds not in where:  # once for all backward passes of as many draws at a time
            last = where[1].permute(0, 2, 3, 1).repeat(folds, 1, 1, 1).permute(0, 3, 1, 2)
            where[folds] = self.execution.arrange(last)
        like, g = self.execution.empty(len(g), shape), self.execution.arrange(g)
        return torch.ops.aten.max_pool2d_with_indices_backward(g, like, *self.geometry, where[folds])


class Dropout(Layer):
    """Dropout with one fixed mask per draw, the same for every row."""

    def __init__(self, layer: nn.Module, seeds: Sequence[Seed], call: int, execution: Execution) -> None:
        self.rate: float = layer.p  # type: ignore[assignment]
        self.by_channel = not isinstance(layer, nn.Dropout)
        self.seeds, self.call, self.execution = seeds, call, execution
        self.mask: Tensor | None = None  # (S, 1, ...)

    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        mask = self.mask_of(h.shape[1:])
        return (h.unflatten(0, (-1, rows)) * mask).flatten(0, 1), None

    def backward(self, g: Tensor, kept: Any) -> Tensor:
        if self.mask is not None:
            g.unflatten(0, (len(self.mask), -1)).mul_(self.mask)
        return g

    def mask_of(self, shape: torch.Size) -> Tensor:
        """Masks of all draws over one row, (S, 1, ...), divided by the share that is kept."""
        if self.mask is None:
            shape = torch.Size((shape[0], *(1,) * (len(shape) - 1))) if self.by_channel else shape
            numbers = (self.call, shape, self.rate, self.execution.device)
            kept = torch.stack([unit_mask(seed, *numbers) for seed in self.seeds])
            self.mask = (self.execution.convert(kept) / (1 - self.rate if self.rate < 1 else 1)).unsqueeze(1)
        return self.mask


class Flatten(Layer):
    """All axes of a row as one."""

    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        return h.flatten(1), h.shape[1:]

    def backward(self, g: Tensor, kept: Any) -> Tensor:
        return g.unflatten(1, kept)


class Other(Layer):
    """A layer that is not known by hand: an autograd graph of its own, with one backward pass per fold."""

    def __init__(self, layer: nn.Module, execution: Execution) -> None:
        self.layer, self.mode = FixedNetwork(layer), execution.mode if execution.guided else None

    def forward(self, h: Tensor, rows: int) -> tuple[Tensor, Any]:
        with torch.enable_grad():
            leaf = (h.clone() if h.is_inference() else h).detach().requires_grad_()
            out = self.layer(leaf) if self.mode is None else self.mode.evaluate(self.layer, leaf)
        return out.detach().to(h.dtype), (leaf, out)

    def backward(self, g: Tensor, kept: Any) -> Tensor:
        leaf, out = kept
        if not out.requires_grad:
            raise ValueError(NO_GRADIENT)
        # As `out` lies: torch's batch and instance norms misread the slope of one row that lies otherwise.
        parts = [torch.empty_like(out).copy_(part) for part in g.split(len(out))]
        slopes = [torch.autograd.grad(out, leaf, part, retain_graph=True)[0] for part in parts]
        if len(slopes) > 1:
            return torch.cat(slopes)
        # Behind a sum it is one number seen many times, into which the next layer could not write.
        return slopes[0].contiguous() if 0 in slopes[0].stride() else slopes[0]


def _folded(weight: Tensor, bias: Tensor | None, norm: Norm | None) -> tuple[Tensor, Tensor | None]:
    """Fold a batch norm into a kernel, (C, D, h, w), or into dense weights, (C, D), also of many draws, (S, C, D)."""
    if norm is None:
        return weight, bias
    scale, mean = _scale_of(norm), cast(Tensor, norm.running_mean)
    shift = (0 if bias is None else bias) - mean
    rows = scale.view(-1, *(1,) * (3 if weight.ndim == 4 else 1))
    return weight * rows, shift * scale + (0 if norm.bias is None else norm.bias)


def _stacked(biases: Sequence[Tensor | None]) -> Tensor | None:
    return None if biases[0] is None else torch.stack(cast(list[Tensor], list(biases)))


def _scale_of(norm: Norm) -> Tensor:
    scale = (cast(Tensor, norm.running_var) + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight
