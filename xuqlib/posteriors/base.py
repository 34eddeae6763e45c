"""Posteriors: each one gives draws, fixed networks, through one method, `sample(num_draws, seed=)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from xuqlib.checks import check_count
from xuqlib.posteriors.draws import Draws


class Posterior(ABC):
    """A distribution over networks.

    Attributes:
        network: what is trained, an ordinary module; sampling leaves it as it is.
        noise_variance: variance of the targets about one draw's answer, for regression; 0 until it is set.
    """

    name = "posterior"
    network: nn.Module
    noise_variance: float = 0.0

    @abstractmethod
    def sample(self, num_draws: int, *, seed: int = 0) -> Draws:
        """Draw fixed networks.

        The same seed gives the same draws, and the first k of n draws are the k draws of that seed.

        Raises:
            ValueError: fewer than one draw, or a negative seed.
        """

    def _draws(self, networks: Sequence[nn.Module]) -> Draws:
        return Draws(networks, posterior=self.name, noise_variance=self.noise_variance)


def check_draws(num_draws: int, seed: int) -> None:
    """Refuse fewer than one draw, and a negative seed."""
    check_count(num_draws, 1, "num_draws")
    check_count(seed, 0, "seed")


def check_network(network: nn.Module) -> None:
    """Refuse what is no network, or one whose operations cannot be seen.

    Raises:
        TypeError: not an `nn.Module`, or a scripted one.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"got a {type(network).__name__}; pass a network (nn.Module)")
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise TypeError("a scripted network hides its operations; pass the nn.Module that it was scripted from")
