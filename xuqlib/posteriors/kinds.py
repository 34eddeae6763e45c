"""What kind of layer is this, and which layers of a network are of a kind? Such questions are answered here."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.parallel import DataParallel, DistributedDataParallel

PLACEMENTS = ("last", "all")
Placement = str | Sequence[str]
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_OF_SHAPE = ("shape", "size", "dim", "ndim", "dtype", "device")  # what says nothing of a tensor's numbers
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
    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw a weight with the numbers of a generator; detached, shaped like `weight`."""


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


def drops_by_itself(module: nn.Module) -> bool:
    """Whether a user's module has a dropout rate, or dropout, that its own code uses only while it trains."""
    if "training" not in names_in(module):
        return False
    of_dropping = any(word in type(module).__name__.lower() for word in ("drop", "stochasticdepth"))
    parts = {**vars(module), **module._modules}.items()
    rates = [getattr(value, "p", value) for key, value in parts if of_dropping or "drop" in key.lower()]
    return any(isinstance(rate, float) and 0 < rate < 1 for rate in rates)


def names_in(module: nn.Module) -> set[str]:
    """Names that the methods of a user's module use, and the functions that it was given; none of torch's own."""
    found = inspect.getmembers(type(module), inspect.isfunction)
    methods = [method for name, method in found if "init" not in name]  # what starts its weights may be random
    methods += filter(inspect.isfunction, vars(module).values())
    own = [inspect.unwrap(method) for method in methods if not method.__module__.startswith("torch.nn.modules")]
    codes: list[CodeType] = [] if is_of_torch(module) else [method.__code__ for method in own]
    for code in codes:  # which grows by the lambdas and comprehensions inside
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return {name for code in codes for name in code.co_names}


def is_sure(layer: nn.Module, dropout_is_off: bool = False) -> bool:
    """Whether a layer is free of chance and keeps examples first. Only torch's own can be known to: a user's may call
    functional dropout."""
    parts = list(layer.modules())
    known = all(is_of_torch(module) and not _may_move_examples(module) for module in parts)
    return known and (dropout_is_off or not any(map(drops, parts)))


def _may_move_examples(module: nn.Module) -> bool:
    if isinstance(module, nn.Flatten):
        return module.start_dim < 1
    if isinstance(module, nn.Unflatten):
        return not (isinstance(module.dim, int) and module.dim > 0)
    return isinstance(module, nn.RNNBase) or not getattr(module, "batch_first", True)


def have_same_tensors(layers: Sequence[nn.Module]) -> bool:
    """Whether layers of several draws share every parameter and buffer."""
    return len({tuple(map(id, (*layer.parameters(), *layer.buffers()))) for layer in set(layers)}) == 1


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


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside of what `torch.compile` and training on several devices put around it."""
    if type(network).__module__ == "torch._dynamo.eval_frame":  # an import of which takes seconds
        return unwrapped(network._orig_mod)  # type: ignore[arg-type]
    return unwrapped(network.module) if isinstance(network, DataParallel | DistributedDataParallel) else network


def weighted_layers(network: nn.Module, placement: Placement = "last") -> list[str]:
    """Name the dense and convolutional layers, transposed ones too, that a posterior over weights makes random.

    Embeddings, bilinear and recurrent layers are left out, as are projections inside `nn.MultiheadAttention`, which
    reads their weights without calling them.

    Args:
        network: any module.
        placement: "last", the one that alone gives the network's output; "all"; or a list of names.

    Raises:
        ValueError: unknown placement or names, or a network without such layers; it cannot be seen which one gives
            the output; the weights of one are empty, computed from others, or another layer's too.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Weighted) and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    names, chosen = list(layers), list[str]()
    if placement == "last":
        last = layers[names[0]] if len(names) == 1 else _gives_output(network)
        chosen = [name for name in names if layers[name] is last]
    elif placement == "all":
        chosen = names
    elif isinstance(placement, list | tuple) and all(name in names for name in placement):
        chosen = [name for name in names if name in placement]
    if not chosen:
        ways = "'all'" if placement == "last" else "'last', 'all'"
        raise ValueError(
            f"cannot see which layers of {type(network).__name__} placement {placement!r} means; pass "
            f"{ways} or a list of some of its Linear and Conv layers {names[-8:]}"
            f"{', of which these are the last' if len(names) > 8 else ''} (to Laplace one of them, as layer)"
        )
    for name in chosen:
        weight, parameters = layers[name].weight, layers[name]._parameters
        others = [part for part in network.modules() if part is not layers[name]]
        is_shared = any(own is weight for part in others for own in part._parameters.values())
        if is_shared or not weight.numel() or "weight" not in parameters or "bias" not in parameters:
            raise ValueError(
                f"the weights of layer {name!r} are empty, another layer's too, or computed by a parametrization, such "
                "as a weight norm or a pruning, so they cannot be drawn; give it its own, or name other layers"
            )
    return chosen


def _gives_output(module: nn.Module) -> nn.Module | None:
    """Find the layer that alone gives a module's output, as its code shows; None where that cannot be seen.

    Behind it there may be whatever has no matrix of weights: a softmax, a squeeze, a temperature.
    """
    if isinstance(module, Weighted):
        return module
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda *_: True  # type: ignore[method-assign]  # what it calls may not be traceable
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    traced = copy.copy(module)  # since code may keep what it is given
    traced.training = False
    try:
        with torch.random.fork_rng(devices=[]):
            graph = tracer.trace(traced, concrete_args=defaults)
    except Exception:  # given no numbers, a network raises what it likes, and its layer is asked for
        return None
    matrices = [f"{name}." for name, tensor in module.named_parameters(remove_duplicate=False) if tensor.ndim > 1]
    sources: dict[fx.Node, set[str | None]] = {}  # of what each node gives: a layer's name, or None for anything else
    for node in graph.nodes:
        is_called, is_shape = node.op == "call_module", node.target is getattr and node.args[1] in _OF_SHAPE
        weighs = (is_called or node.op == "get_attr") and any(m.startswith(f"{node.target}.") for m in matrices)
        if weighs or node.op == "placeholder":
            sources[node] = {node.target if is_called else None}
        elif not is_shape and node.target not in _OF_SHAPE:
            sources[node] = set().union(*(sources.get(given, set()) for given in node.all_input_nodes))
    found = sources[node]  # the last is the output
    name = found.pop() if len(found) == 1 else None
    return None if name is None else _gives_output(module.get_submodule(name))
