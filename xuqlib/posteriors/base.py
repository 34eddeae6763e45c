"""Posteriors: each one gives draws, fixed networks, through one method, `sample(num_draws, seed=)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from xuqlib.checks import check_count
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.kinds import unwrapped


class Posterior(ABC):
    """A distribution over networks.

    Attributes:
        network: what is trained, an ordinary module; sampling leaves it as it is.
        noise_variance: variance of the targets about one draw's answer, for regression: one number, or one for each
            output; 0 until it is set.
        output: what the network answers, such as "logits" or "regression"; None where that is not known.
    """

    name = "posterior"
    network: nn.Module
    noise_variance: Any = 0.0
    output: str | None = None

    @abstractmethod
    def sample(self, num_draws: int, *, seed: int = 0) -> Draws:
        """Draw fixed networks.

        The same seed gives the same draws, and the first k of n draws are the k draws of that seed.

        Raises:
            ValueError: fewer than one draw, or a negative seed.
        """

    def _draws(self, networks: Sequence[nn.Module]) -> Draws:
        return Draws(networks, posterior=self.name, noise_variance=self.noise_variance, output=self.output)


def check_draws(num_draws: int, seed: int) -> None:
    """Refuse fewer than one draw, and a negative seed."""
    check_count(num_draws, 1, "num_draws")
    check_count(seed, 0, "seed")


def check_network(network: Any) -> nn.Module:
    """Return the network inside of its wrappers, those of `torch.compile` and of training on several devices.

    Raises:
        TypeError: not an `nn.Module`, or one whose operations or weights cannot be seen.
        ValueError: a tensor of it has no numbers yet, or is sparse.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"got a {type(network).__name__}; pass a network (nn.Module)")
    for name, module in network.named_modules():
        is_quantized = type(module).__module__.startswith("torch.") and ".quantized" in type(module).__module__
        is_exported = isinstance(module, fx.GraphModule) and "eval" in vars(module)
        kind = "quantized" if is_quantized else "exported" if is_exported else "scripted"
        if is_quantized or is_exported or isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"this {kind} network hides its operations; pass the nn.Module that it was {kind} from")
        if isinstance(vars(module).get("forward"), FunctionType) and unwrapped(module) is module:
            where = f"layer {name!r}" if name else "the network"
            what = f"the forward of {where} was replaced by a function, which a copy would share"
            raise TypeError(f"{what}; pass the network with the forward of its class")
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"tensor {name!r} is not initialised yet; run the network on a batch of examples first")
        if tensor.is_meta or (tensor.layout is not torch.strided and isinstance(tensor, nn.Parameter)):
            kind = "on the meta device" if tensor.is_meta else f"sparse ({tensor.layout})"
            raise ValueError(f"tensor {name!r} is {kind}; pass a network with dense weights that hold numbers")
    return unwrapped(network)
