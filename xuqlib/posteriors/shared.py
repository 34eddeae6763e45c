"""What the draws of one posterior have in common: the part of their networks before anything is random."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xuqlib.posteriors.fixing import FixedMasks, FixedNetwork, Plans, RandomNetworkError, can_evaluate
from xuqlib.posteriors.kinds import drops, has_dropout, have_same_tensors, hooks_of, is_hooked, is_sure, layers_of


class Split(NamedTuple):
    """Draws cut in two: network(x) is its own `heads[i]` after the `trunk` that all share, each a list of layers.

    No layer of the trunk is random. `seeds` fix the dropout of each head, `plans` say how, for all heads.
    """

    trunk: list[nn.Module]
    heads: list[list[nn.Module]]
    seeds: list[int | None]
    plans: Plans

    def head(self, draw: int) -> FixedNetwork:
        return FixedNetwork(nn.Sequential(*self.heads[draw]), self.seeds[draw], plans=self.plans)


def split(networks: Sequence[nn.Module], x: Tensor) -> Split | None:
    """Cut draws where they begin to differ; None where that cannot be seen from outside.

    It can be seen in an `nn.Sequential` of torch's own layers. In any other network, the cut is before the layer that
    gives the output, such as `fc` of a ResNet, if all that is random lies in it; one example of x shows that.
    """
    fixed = [network for network in networks if isinstance(network, FixedNetwork) and network.resampling is None]
    if len(fixed) < len(networks) or any(is_hooked(network) for network in fixed):
        return None
    inner, seeds = [network.network for network in fixed], [network.seed for network in fixed]
    layers = [layers_of(network) for network in _distinct(inner)]
    if not layers[0] or not look_alike(_distinct(inner)):
        return None
    if not isinstance(inner[0], nn.Sequential):
        return _before_output(fixed, x)
    depth, last, is_off = 0, len(layers[0]) - 1, all(seed is None for seed in seeds)
    while depth < last and is_sure(layers[0][depth], is_off) and have_same_tensors([each[depth] for each in layers]):
        depth += 1
    ends_in_a_users_layer = depth < last and not has_dropout(layers[0][depth])
    if ends_in_a_users_layer and have_same_tensors([each[depth] for each in layers]):
        parts = _before_output(fixed, x)
        if parts is not None:
            return parts
    by_network = {id(network): each[depth:] for network, each in zip(_distinct(inner), layers, strict=True)}
    return Split(layers[0][:depth], [by_network[id(network)] for network in inner], seeds, Plans())


def _before_output(fixed: Sequence[FixedNetwork], x: Tensor) -> Split | None:
    inner, seeds = [network.network for network in fixed], [network.seed for network in fixed]
    holding = _holding(inner, seeds)
    if not holding:
        return None
    try:
        name = _output_layer(fixed[0], holding, x[:1])
    except Exception:
        if can_evaluate(fixed[0], x[:1]):  # then looking at it is what failed
            raise
        return None  # evaluating the draws themselves will say what is wrong
    if name is None:
        return None
    heads = [layers_of(network.get_submodule(name)) for network in inner]
    parts = Split([_Until(inner[0], name)], heads, seeds, Plans())
    return parts if _gives_the_same(parts, fixed[-1], x[:1]) else None


_OF_EVERY_MODULE = set(vars(nn.Module()))
_PLAIN = (bool, int, float, str, tuple, type(None), FunctionType)


def look_alike(networks: Sequence[nn.Module]) -> bool:
    """Whether networks have the same layers with the same settings and hooks, so that only tensors differ."""
    first, *others = [list(network.modules()) for network in networks]
    if any(len(modules) != len(first) for modules in others):
        return False
    pairs = (pair for modules in others for pair in zip(first, modules, strict=True))
    return all(one is other or _looks(one) == _looks(other) for one, other in pairs)


def _looks(module: nn.Module) -> tuple[Any, ...]:
    settings = {
        key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE and isinstance(value, _PLAIN)
    }
    shapes = {key: None if value is None else value.shape for key, value in module._parameters.items()}
    return type(module), list(module._modules), settings, shapes, hooks_of(module)


def _gives_the_same(parts: Split, network: nn.Module, x: Tensor) -> bool:
    """Whether the last head behind the trunk, which is the first draw's, gives what the last draw gives.

    It does not where a network reads its random weights before they are called, holds layers that torch does not see,
    or hands more than the trunk's output to its head.
    """
    with torch.no_grad():
        wanted, features = network(x), FixedNetwork(nn.Sequential(*parts.trunk))(x)
        try:
            given = parts.head(len(parts.heads) - 1)(features)
        except (ValueError, RandomNetworkError):  # as it refuses what another draw's features, or not examples, are
            return False
    if not isinstance(given, Tensor) or not isinstance(wanted, Tensor):
        return False
    alike = (given.shape, given.dtype, given.device) == (wanted.shape, wanted.dtype, wanted.device)
    return alike and torch.allclose(given, wanted, rtol=1e-3)


def _distinct(networks: Sequence[nn.Module]) -> list[nn.Module]:
    return list({id(network): network for network in networks}.values())


class _Reached(Exception):
    """A forward pass came to where it was to end."""


class _Until(nn.Module):
    """A network up to one of its layers: what that layer would be given."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x: Tensor) -> Tensor:
        given: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Tensor]) -> None:
            given.append(inputs[0])
            raise _Reached

        handle = self.network.get_submodule(self.name).register_forward_pre_hook(stop, prepend=True)
        try:
            self.network(x)
        except _Reached:
            return given[0]
        finally:
            handle.remove()
        raise RuntimeError(f"the network did not come to its layer {self.name!r}, as it had before")


def _holding(networks: Sequence[nn.Module], seeds: Sequence[int | None]) -> list[str]:
    """Name the layers each of which holds all that is random in a network."""
    network, names = networks[0], _random_names(networks, seeds)
    outer = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)} - {""}
    holding = [name for name in outer if all(f"{inside}.".startswith(f"{name}.") for inside in names)]
    hooked = {name for name, module in network.named_modules() if is_hooked(module)}
    # A hook on what is around a layer would not see the output.
    return [name for name in holding if not any(around == "" or name.startswith(f"{around}.") for around in hooked)]


def _output_layer(fixed: FixedNetwork, holding: Sequence[str], x: Tensor) -> str | None:
    """Name the innermost of the layers `holding` whose output is the network's, if there is one."""
    with torch.no_grad(), fixed.masks(x) as masks:
        calls = {name: _Calls(fixed.network.get_submodule(name), masks) for name in holding}
        try:
            result = fixed.network(x.clone())
        finally:
            for call in calls.values():
                call.forget()
    fit = [name for name, call in calls.items() if call.gave(result)]
    return max(fit, key=len, default=None)


class _Calls:
    """The calls of one layer during a forward pass, and how many masks had been drawn before and after."""

    def __init__(self, layer: nn.Module, masks: FixedMasks) -> None:
        self.masks = masks
        self.before: list[tuple[bool, int]] = []
        self.outputs: list[tuple[Any, int]] = []
        entering = layer.register_forward_pre_hook(self.enter, with_kwargs=True)
        self.handles = [entering, layer.register_forward_hook(self.leave)]

    def enter(self, _: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        is_alone = len(inputs) == 1 and isinstance(inputs[0], Tensor) and not options
        self.before.append((is_alone, self.masks.calls))

    def leave(self, _: nn.Module, __: Any, output: Any) -> None:
        self.outputs.append((output, self.masks.calls))

    def gave(self, result: Any) -> bool:
        """Whether its only call took just a tensor before any mask was drawn, and gave this result after the last."""
        if self.before != [(True, 0)] or len(self.outputs) != 1:
            return False
        return self.outputs[0][0] is result and self.outputs[0][1] == self.masks.calls

    def forget(self) -> None:
        for handle in self.handles:
            handle.remove()


def _random_names(networks: Sequence[nn.Module], seeds: Sequence[int | None]) -> list[str]:
    tensors = [dict(network.state_dict(keep_vars=True)) for network in _distinct(networks)]
    differing = {key.rpartition(".")[0] for key in tensors[0] if any(t[key] is not tensors[0][key] for t in tensors)}
    dropping = {name for name, module in networks[0].named_modules() if drops(module)}
    return sorted(differing | dropping if any(seed is not None for seed in seeds) else differing)
