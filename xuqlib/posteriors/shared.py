"""What the draws of one posterior have in common: the part of their networks before anything is random."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any, NamedTuple

from torch import nn

from xuqlib.posteriors.fixing import FixedNetwork, Plans, Seed
from xuqlib.posteriors.kinds import have_same_tensors, hooks_of, is_hooked, is_sure, layers_of


class Split(NamedTuple):
    """Draws cut in two: network(x) is its own `heads[i]` after the `trunk` that all share, each a list of layers.

    No layer of the trunk is random. `seeds` fix the dropout of each head, `plans` say how, for all heads.
    """

    trunk: list[nn.Module]
    heads: list[list[nn.Module]]
    seeds: list[Seed | None]
    plans: Plans

    def fixed_heads(self) -> list[nn.Module]:
        """Return each head as a draw by itself."""
        heads = zip(self.heads, self.seeds, strict=True)
        return [FixedNetwork(nn.Sequential(*layers), seed, plans=self.plans) for layers, seed in heads]


def split(networks: Sequence[nn.Module]) -> Split | None:
    """Cut draws where they begin to differ; None where that cannot be seen from outside.

    It can be seen in an `nn.Sequential`, whose own layers of torch come one after another.
    """
    fixed = [network for network in networks if isinstance(network, FixedNetwork) and network.resampling is None]
    if len(fixed) < len(networks) or any(is_hooked(network) for network in fixed):
        return None
    if len({network.seed is None for network in fixed}) > 1:  # draws of several kinds
        return None
    each, seeds = [layers_of(network.network) for network in fixed], [network.seed for network in fixed]
    distinct = list({id(network.network): network.network for network in fixed}.values())
    if not each[0] or not isinstance(distinct[0], nn.Sequential) or not look_alike(distinct):
        return None
    depth, last, is_off = 0, len(each[0]) - 1, all(seed is None for seed in seeds)
    while depth < last and is_sure(each[0][depth], is_off) and have_same_tensors([layers[depth] for layers in each]):
        depth += 1
    return Split(each[0][:depth], [layers[depth:] for layers in each], seeds, Plans())


_OF_EVERY_MODULE = set(vars(nn.Module()))
_PLAIN = (bool, int, float, str, tuple, type(None), FunctionType)


def look_alike(networks: Sequence[nn.Module]) -> bool:
    """Whether networks have the same layers with the same settings and hooks, so that only tensors differ."""
    first, *others = [list(network.modules()) for network in networks]
    if any(len(modules) != len(first) for modules in others):
        return False
    pairs = (pair for modules in others for pair in zip(first, modules, strict=True))
    return all(one is other or look_of(one) == look_of(other) for one, other in pairs)


def look_of(module: nn.Module) -> tuple[Any, ...]:
    """Return a layer's type, settings, shapes and hooks: all but its numbers and the layers inside."""
    settings = {
        key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE and isinstance(value, _PLAIN)
    }
    shapes = {key: None if value is None else value.shape for key, value in module._parameters.items()}
    return type(module), list(module._modules), settings, shapes, hooks_of(module)
