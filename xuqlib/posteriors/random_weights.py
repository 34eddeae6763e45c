"""Posteriors: each one gives draws, fixed networks, through one method, `sample(num_draws, seed=)`."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import Tensor, nn

from xuqlib.checks import check_number
from xuqlib.posteriors.base import Posterior, check_draws, check_network
from xuqlib.posteriors.draws import Draws, copy_with, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork, generator_of
from xuqlib.posteriors.layers import (
    DropConnectLayer,
    FlipoutLayer,
    Placement,
    Weighted,
    replace_layers,
    weighted_layers,
)


class _WeightPosterior(Posterior):
    """A posterior over the weights of some layers: the network's layers are replaced by random ones."""

    _layer_type: type[DropConnectLayer] | type[FlipoutLayer]

    def _replace(self, network: nn.Module, placement: Placement, **options: Any) -> None:
        check_network(network)
        self.network = copy.deepcopy(network)
        self.layers = weighted_layers(self.network, placement)
        layers = [cast(Weighted, self.network.get_submodule(name)) for name in self.layers]
        replacements = [self._layer_type(layer, **options) for layer in layers]
        self.network = replace_layers(self.network, zip(self.layers, replacements, strict=True))

    def sample(self, num_draws: int, *, seed: int = 0) -> Draws:
        check_draws(num_draws, seed)
        network = detached_copy(self.network)
        layers = [cast(DropConnectLayer | FlipoutLayer, self.network.get_submodule(name)) for name in self.layers]
        drawers = [layer.drawer() for layer in layers]

        def noises(draw: int) -> list[Tensor]:
            return [layer.noise(generator_of(seed, draw, number)) for number, layer in enumerate(layers)]

        networks: list[nn.Module] = []
        # Random numbers come one after another, so several draws at a time are what keeps several cores busy.
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for noise in pool.map(noises, range(num_draws)):
                weights: dict[str, Tensor] = {}
                for name, drawer, own in zip(self.layers, drawers, noise, strict=True):
                    weights.update({f"{name}.{key}" if name else key: value for key, value in drawer(own).items()})
                networks.append(FixedNetwork(copy_with(network, weights)))
        return self._draws(networks)


class MCDropConnect(_WeightPosterior):
    """DropConnect kept on after training: a draw is one mask per weight.

    The random layers are in `self.network`, a copy of the network that was given; train that one.

    Args:
        network: any module with dense or convolutional layers.
        p: drop probability of a weight.
        placement: which layers: "last" (default), "all", or a list of names.

    Source: Mobiny et al. 2019. arXiv 1906.04569.
    """

    name = "mc_dropconnect"
    _layer_type = DropConnectLayer

    def __init__(self, network: nn.Module, *, p: float = 0.1, placement: Placement = "last") -> None:
        if not 0 < check_number(p, 0, "p") < 1:
            raise ValueError(f"p is {p}: a posterior without randomness, or without network; choose 0 < p < 1")
        self._replace(network, placement, p=p)


class Flipout(_WeightPosterior):
    """An independent Gaussian over every weight of some layers, trained with Flipout.

    Train `self.network` on the negative log likelihood plus `kl_weight * self.kl() / num_train_examples`, which is
    what `fit` does; `kl_weight=1` is the evidence lower bound. The weight decay of a recipe acts on the Gaussians
    too: it pulls means to 0 and standard deviations up (rho to 0), so only `weight_decay=0` optimises that bound
    alone. Before training, the Gaussian is centred on the weights that were given, with `initial_std`.

    Args:
        network: any module with dense or convolutional layers.
        placement: which layers: "last" (default), "all", or a list of names.
        initial_std: standard deviation of each weight before training.
        prior_std: standard deviation of the zero-mean Gaussian prior over each weight.
        kl_weight: factor on the divergence; below 1 the posterior is cold.

    Source: Wen et al. 2018. arXiv 1803.04386.
    """

    name = "flipout"
    _layer_type = FlipoutLayer

    def __init__(
        self,
        network: nn.Module,
        *,
        placement: Placement = "last",
        initial_std: float = 0.05,
        prior_std: float = 1.0,
        kl_weight: float = 1.0,
    ) -> None:
        check_number(initial_std, 0, "initial_std", above=True)
        check_number(prior_std, 0, "prior_std", above=True)
        self.kl_weight = check_number(kl_weight, 0, "kl_weight")
        self._replace(network, placement, initial_std=initial_std, prior_std=prior_std)

    def kl(self) -> Tensor:
        """Divergence of the Gaussian from its prior over all random layers, in nats."""
        layers = [cast(FlipoutLayer, self.network.get_submodule(name)) for name in self.layers]
        return torch.stack([layer.kl() for layer in layers]).sum()
