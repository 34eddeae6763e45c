"""Posteriors: each one gives draws, fixed networks, through one method, `sample(num_draws, seed=)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from xuqlib.checks import check_count, check_seed
from xuqlib.device import Where, check_device
from xuqlib.posteriors.draws import Draws, copy_with, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork, Seed, SeedOn
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
    def sample(self, num_draws: int, *, seed: int = 0, device: Where = None) -> Draws:
        """Draw fixed networks.

        The same seed gives the same draws, and the first k of n draws are the k draws of that seed.

        Args:
            device: where the draws are to be, and whose own generator draws them: what they share is sent there once,
                and no random number. The same seed gives the same draws on every device of its kind, and others on
                another. By default they are where `network` is, and drawn on the CPU: the same on every device.

        Raises:
            ValueError: fewer than one draw, a negative seed, or a device that is not there.
        """

    @torch.inference_mode(False)  # in which these are made; else they could never be differentiated
    def _draws(self, networks: Iterable[nn.Module], device: Where = None) -> Draws:
        draws = Draws(list(networks), posterior=self.name, noise_variance=self.noise_variance, output=self.output)
        return draws if device is None else draws.on(check_device(device))


class WeightPosterior(Posterior):
    """A posterior over some of the weights of a network, which are drawn on their own."""

    @abstractmethod
    def weights(self, network: nn.Module, seed: Seed, draw: int) -> dict[str, Tensor]:
        """Draw weights by name, for a copy of `self.network`."""

    def sample(self, num_draws: int, *, seed: int = 0, device: Where = None) -> Draws:
        check_draws(num_draws, seed)
        return self.drawn(range(num_draws), seed, device)

    def drawn(self, numbers: range, seed: int, device: Where = None) -> Draws:
        """Draw only the networks of these numbers: those that `sample` with this seed has there."""
        (network,) = self._draws([detached_copy(self.network)], device)
        source, own = self._on(None if device is None else check_device(device)), seed_on(seed, device)
        # Random numbers come one after another, so several draws at a time are what keeps several cores busy.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            drawn = pool.map(lambda draw: source.weights(network, own, draw), numbers)
            return self._draws(FixedNetwork(copy_with(network, weights)) for weights in drawn)

    def _on(self, where: torch.device | None) -> Self:
        """Return what draws: this posterior; a copy, if it has tensors besides the network, with those on a device."""
        return self


def seed_on(seed: int, device: Where) -> Seed:
    """Return the seed of what a device draws by its own generator; None stands for the CPU."""
    where = check_device("cpu" if device is None else device)
    return seed if where.type == "cpu" else SeedOn(seed, str(where))


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
