"""Posteriors: each one gives draws, fixed networks, through one method, `sample(num_draws, seed=)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xuqlib.checks import check_count, check_seed
from xuqlib.posteriors.draws import Draws, copy_with, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork
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

    @torch.inference_mode(False)  # in which these are made; else they could never be differentiated
    def _draws(self, networks: Iterable[nn.Module]) -> Draws:
        return Draws(list(networks), posterior=self.name, noise_variance=self.noise_variance, output=self.output)


class WeightPosterior(Posterior):
    """A posterior over some of the weights of a network, which are drawn on their own."""

    @abstractmethod
    def weights(self, network: nn.Module, *path: int) -> dict[str, Tensor]:
        """Draw weights by name, for a copy of `self.network`; `path` is the seed and the number of the draw."""

    def sample(self, num_draws: int, *, seed: int = 0) -> Draws:
        check_draws(num_draws, seed)
        return self.drawn(range(num_draws), seed)

    def drawn(self, numbers: range, seed: int) -> Draws:
        """Draw only the networks of these numbers: those that `sample` with this seed has there."""
        network = detached_copy(self.network)
        # Random numbers come one after another, so several draws at a time are what keeps several cores busy.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            drawn = pool.map(lambda draw: self.weights(network, seed, draw), numbers)
            return self._draws(FixedNetwork(copy_with(network, weights)) for weights in drawn)


def check_draws(num_draws: int, seed: int) -> None:
    """Refuse fewer than one draw, more than a million, and a negative seed."""
    check_count(num_draws, 1, "num_draws", 10**6)
    check_seed(seed)


def check_network(network: Any) -> nn.Module:
    """Return the network inside of its wrappers, those of `torch.compile` and of training on several devices.

    Raises:
        TypeError: not an `nn.Module`, or one whose operations or weights cannot be seen.
        ValueError: a tensor of it has no numbers yet, or is sparse.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"got a {type(network).__name__}; pass a network (nn.Module)")
    for name, module in network.named_modules():
        kind, own = type(module).__module__, vars(module)
        is_other = isinstance(module, torch.jit.ScriptModule) or (kind.startswith("torch.") and ".quantized" in kind)
        if is_other or "eval" in own or (isinstance(own.get("forward"), FunctionType) and unwrapped(module) is module):
            raise TypeError(
                f"layer {name or '(itself)'} hides its operations: it is scripted, quantized, exported, or a function "
                "replaced its forward; pass the nn.Module that it was made from"
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor) or tensor.is_meta or (tensor.layout != torch.strided and isinstance(tensor, nn.Parameter)):
            raise ValueError(
                f"tensor {name!r} holds no dense numbers: it is not initialised yet, on the meta device, or sparse; "
                "run the network on a batch of examples first, or pass one with dense weights"
            )
    return unwrapped(network)
