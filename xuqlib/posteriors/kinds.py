"""What kind of layer is this, and which layers of a network are of a kind? Such questions are answered here."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import _has_any_global_hook

from xuqlib.checks import check_choice

PLACEMENTS = ("last", "all")
Placement = str | Sequence[str]
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_BY_HAND = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity, *DROPOUTS)


class RandomLayer(nn.Module):
    """A dense or convolutional layer whose weight is random; in eval mode it is the layer itself."""

    def __init__(self, layer: Weighted) -> None:
        super().__init__()
        self.layer = layer

    # torch's own transformer layers read the weight and the bias of the layers in them.
    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias

    @abstractmethod
    def sampler(self) -> Callable[[torch.Generator], Tensor]:
        """Return what draws a weight with the numbers of a generator; detached, shaped like `weight`."""


def layers_of(network: nn.Module) -> list[nn.Module]:
    """List the layers of an `nn.Sequential`, nested ones too; any other network is a single layer."""
    if type(network) is not nn.Sequential or is_hooked(network):
        return [network]
    return [layer for child in network for layer in layers_of(child)]


def hooks_of(module: nn.Module) -> list[list[Any]]:
    """List the hooks of the user that see, and may change, what goes through this module."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [list(some.values()) for some in hooks]


def is_hooked(module: nn.Module) -> bool:
    """Whether a hook of the user sees what goes through this module, or through every module."""
    return any(hooks_of(module)) or _has_any_global_hook()


def is_of_torch(module: nn.Module) -> bool:
    """Whether this is one of torch's own layers; a user's may do anything."""
    return type(module).__module__.startswith("torch.nn.modules")


def drops(module: nn.Module) -> bool:
    """Whether this is one of torch's own layers that drop, or has dropout inside."""
    inside = isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0
    return inside or isinstance(module, _DropoutNd)


def has_dropout(layer: nn.Module) -> bool:
    """Whether a layer is, or holds, one of torch's layers that drop."""
    return any(drops(module) for module in layer.modules())


def drops_by_itself(module: nn.Module) -> bool:
    """Whether a user's module has a dropout rate, or dropout, that its own code uses only while it trains."""
    if is_of_torch(module) or "training" not in names_in(module):
        return False
    of_dropping = any(word in type(module).__name__.lower() for word in ("drop", "stochasticdepth"))
    parts = {**vars(module), **module._modules}.items()
    rates = [getattr(value, "p", value) for key, value in parts if of_dropping or "drop" in key.lower()]
    return any(isinstance(rate, float) and 0 < rate < 1 for rate in rates)


def names_in(module: nn.Module) -> set[str]:
    """Names that the methods of a user's module use."""
    methods = [method for name, method in inspect.getmembers(type(module), inspect.isfunction) if name != "__init__"]
    own = [inspect.unwrap(method) for method in methods if not method.__module__.startswith("torch.nn.modules")]
    return {name for method in own for name in _names_of(method.__code__)}


def _names_of(code: CodeType) -> set[str]:
    inside = [constant for constant in code.co_consts if isinstance(constant, CodeType)]  # a lambda, a comprehension
    return set(code.co_names).union(*map(_names_of, inside))


def is_sure(layer: nn.Module, dropout_is_off: bool = False) -> bool:
    """Whether a layer is free of chance and keeps examples first. Only torch's own can be known to: a user's may call
    functional dropout."""
    parts = list(layer.modules())
    known = all(is_of_torch(module) and not _may_move_examples(module) for module in parts)
    return known and (dropout_is_off or not has_dropout(layer))


def _may_move_examples(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten):
        return module.start_dim < 1
    if isinstance(module, nn.Unflatten):
        return not (isinstance(module.dim, int) and module.dim > 0)
    return isinstance(module, nn.RNNBase) or not getattr(module, "batch_first", True)


def keeps_examples_first(network: nn.Module) -> bool:
    """Whether a network is made of torch's own layers alone, each of which takes and gives the examples first."""
    if any(is_hooked(module) for module in network.modules()):
        return False
    return all(type(layer) in DROPOUTS or is_sure(layer) for layer in layers_of(network))


def have_same_tensors(layers: Sequence[nn.Module]) -> bool:
    """Whether layers of several draws share every parameter and buffer."""
    if all(layer is layers[0] for layer in layers):
        return True
    tensors = [list(layer.parameters()) + list(layer.buffers()) for layer in layers]
    return all(len(t) == len(tensors[0]) and all(a is b for a, b in zip(t, tensors[0], strict=True)) for t in tensors)


def plain(layer: nn.Module) -> nn.Module:
    """What a layer with random weights is once they are drawn; any other layer as it is."""
    return layer.layer if isinstance(layer, RandomLayer) and not is_hooked(layer) else layer


def kind_of(layer: nn.Module) -> type[nn.Module]:
    """The type of a layer once its weights are drawn; plain `nn.Module` for one with a hook, which may do anything."""
    drawn = plain(layer)
    return nn.Module if is_hooked(drawn) else type(drawn)


def is_known(layer: nn.Module) -> bool:
    """Whether the fast path can stand for a layer: by hand, or by a graph of its own since it is free of chance."""
    return kind_of(layer) in _BY_HAND or is_sure(layer)


def is_zero_padded(layer: nn.Conv2d) -> bool:
    """Whether a convolution is padded with zeros, by numbers of pixels."""
    return isinstance(layer.padding, tuple) and layer.padding_mode == "zeros"


def is_fixed_norm(layer: nn.Module, behind: type[nn.Module]) -> bool:
    """Whether a layer is a BatchNorm that rescales every example alike, and fits behind a layer of the given type."""
    kind = nn.BatchNorm2d if behind is nn.Conv2d else nn.BatchNorm1d
    return type(layer) is kind and layer.running_mean is not None and not layer.training and not is_hooked(layer)


def windows_overlap(pool: nn.MaxPool2d) -> bool:
    """Whether a pixel lies in more than one window of a max pooling."""
    sizes = ([n, n] if isinstance(n, int) else n for n in (pool.kernel_size, pool.stride, pool.dilation))
    return any(dilation * (kernel - 1) >= stride for kernel, stride, dilation in zip(*sizes, strict=True))


def weighted_layers(network: nn.Module, placement: Placement = "last") -> list[str]:
    """Name the dense and convolutional layers that a posterior over weights makes random.

    Projections inside `nn.MultiheadAttention` are left out: it reads their weights without calling them.

    Args:
        network: any module.
        placement: "last", the one registered last, commonly the output layer; "all"; or a list of names.

    Raises:
        ValueError: unknown placement or names, or a network without such layers.
    """
    attention = [name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, Weighted) and not any(name.startswith(f"{outer}.") for outer in attention)
    ]
    if not names:
        raise ValueError(f"{type(network).__name__} has no Linear or Conv layer whose weights could be drawn")
    if isinstance(placement, str):
        check_choice(placement, PLACEMENTS, "placement")
        return names[-1:] if placement == "last" else names
    if not isinstance(placement, Sequence) or not all(isinstance(name, str) for name in placement):
        raise TypeError(f"placement is {placement!r}; pass 'last', 'all', or a list of names of layers")
    unknown = sorted(set(placement) - set(names))
    if unknown or not placement:
        raise ValueError(f"placement names {unknown or 'no layer'}; the layers of this network are {names}")
    return [name for name in names if name in set(placement)]


def replace_layers(network: nn.Module, replacements: Iterable[tuple[str, nn.Module]]) -> nn.Module:
    """Put each named layer's replacement in its place, in `network` itself; return the network.

    A network that is itself the layer (its name is "") is replaced as a whole.
    """
    for name, layer in replacements:
        if not name:
            return layer
        network.set_submodule(name, layer)
    return network
