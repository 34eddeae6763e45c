"""Draws: networks from a posterior, each one a fixed function."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from xuqlib.checks import check_examples, check_logits
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.posteriors.kinds import is_of_torch
from xuqlib.posteriors.shared import split


class Draws(Sequence[nn.Module]):
    """Fixed networks from one posterior, along an axis called `draw`.

    `draws[3]` is an ordinary module; `draws[:10]` are draws again; `draws(x)` evaluates all of them, differentiably
    in x. What the draws of an `nn.Sequential` share before its first random layer is evaluated once.

    Args:
        networks: the draws; each answers the same every time, and shares what it can with the others.
        posterior: name of the posterior, for tables and figures.
        noise_variance: variance of the targets about the mean of one draw, in squared target units (regression).
    """

    def __init__(self, networks: Sequence[nn.Module], *, posterior: str = "", noise_variance: float = 0.0) -> None:
        # An nn.Sequential is a sequence too: of its layers.
        if isinstance(networks, nn.Module) or not isinstance(networks, Sequence):
            raise TypeError(f"got a {type(networks).__name__}; pass posterior.sample(num_draws), or a list of networks")
        if not networks:
            raise ValueError("no networks to draw from; pass at least one")
        if not all(isinstance(network, nn.Module) for network in networks):
            raise TypeError(f"got a list of {type(networks[0]).__name__}; each draw is a network (nn.Module)")
        self.networks, self.posterior, self.noise_variance = list(networks), posterior, noise_variance

    def __len__(self) -> int:
        return len(self.networks)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Draws: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Draws:
        if isinstance(index, slice):
            return Draws(self.networks[index], posterior=self.posterior, noise_variance=self.noise_variance)
        return self.networks[index]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.networks)

    def __repr__(self) -> str:
        return f"Draws({len(self)} of {self.posterior or type(self.networks[0]).__name__})"

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of every draw, (draw, example, class); one output per example is class 0."""
        check_examples(x)
        trunk, heads = shared_trunk(self.networks, x)
        features = trunk(x)
        outputs = (head(features if isinstance(head, FixedNetwork) else features.clone()) for head in heads)
        return torch.stack([check_logits(output, len(x)) for output in outputs])

    def to(self, *args: Any, **kwargs: Any) -> Draws:
        """Move every draw to a device or dtype, as `nn.Module.to` does; return these draws."""
        moved: dict[Tensor, Tensor] = {}  # by identity
        for network in {id(inner(network)): network for network in self.networks}.values():
            buffers = [(m, key, b) for m in network.modules() for key, b in m._buffers.items() if b is not None]
            network.to(*args, **kwargs)
            for module, key, buffer in buffers:  # torch gives every module its own copy: share it again
                module._buffers[key] = moved.setdefault(buffer, module._buffers[key])  # type: ignore[arg-type]
        return self


def inner(network: nn.Module) -> nn.Module:
    """The network that a draw fixes, which draws that differ in their dropout masks alone have in common."""
    return network.network if isinstance(network, FixedNetwork) else network


def shared_trunk(networks: Sequence[nn.Module], x: Tensor) -> tuple[nn.Module, Sequence[nn.Module]]:
    """Split draws into the part that all share and one head each, by `split`: network(x) = head(trunk(x)).

    The trunk is the identity where nothing is known to be shared.
    """
    parts = split(networks, x)
    if parts is None or not parts.trunk:
        return nn.Identity(), list(networks)
    return FixedNetwork(nn.Sequential(*parts.trunk)), [parts.head(draw) for draw in range(len(networks))]


@torch.inference_mode(False)  # or the copies could never be differentiated
def detached_copy(network: nn.Module) -> nn.Module:
    """Copy a network with its own, frozen tensors, in eval mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.inference_mode(False)
def copy_with(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy the structure of a frozen network, sharing every tensor except those given in `weights`."""
    fresh = {
        id(original): nn.Parameter(_normal(value.to(original)), requires_grad=False)
        for original, value in ((network.get_parameter(name), value) for name, value in weights.items())
    }
    if all(_is_plain(module) for module in network.modules()):
        return _rebuilt(network, fresh)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo | fresh)


def _normal(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _is_plain(module: nn.Module) -> bool:
    # A user's module may hold others in a list or a closure, where only a deep copy finds them.
    return is_of_torch(module) or type(module).__module__.startswith("xuqlib.")


def _rebuilt(module: nn.Module, fresh: Mapping[int, nn.Parameter]) -> nn.Module:
    """Copy the modules that lead to the tensors in `fresh`; all others are shared."""
    children = {name: child and _rebuilt(child, fresh) for name, child in module._modules.items()}
    tensors = {name: fresh.get(id(tensor), tensor) for name, tensor in module._parameters.items()}
    kept = all(children[name] is child for name, child in module._modules.items())
    if kept and all(tensors[name] is tensor for name, tensor in module._parameters.items()):
        return module
    rebuilt = copy.copy(module)
    rebuilt.__dict__ |= {key: value.copy() for key, value in vars(module).items() if isinstance(value, OrderedDict)}
    rebuilt.__dict__ |= {"_modules": children, "_parameters": tensors, "_buffers": dict(module._buffers)}
    return rebuilt
