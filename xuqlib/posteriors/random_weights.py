"""Posteriors over the weights of some layers: DropConnect and Flipout, and the layers that they put into a network."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from xuqlib.checks import check_number
from xuqlib.posteriors.base import WeightPosterior, check_network
from xuqlib.posteriors.draws import rebuilt, trainable_copy
from xuqlib.posteriors.fixing import Seed, generator_of
from xuqlib.posteriors.kinds import Placement, RandomLayer, Weighted, weighted_layers


class DropConnectLayer(RandomLayer):
    """A dense or convolutional layer that drops each weight with probability `p` while it trains.

    In eval mode it is the layer itself. The mask is on the weight, not on the bias, and kept weights are divided
    by 1 - p. One mask serves a whole batch while training (a choice: one mask per example costs N weight tensors).

    Source: Wan et al. 2013; Mobiny et al. 2019, arXiv 1906.04569.
    """

    def __init__(self, layer: Weighted, p: float) -> None:
        super().__init__(layer)
        self.p = p

    def forward(self, x: Tensor, *size: Any, **options: Any) -> Tensor:  # of a transposed convolution's output
        if not self.training:
            return self.layer(x, *size, **options)
        weight = F.dropout(self.layer.weight, self.p)
        return functional_call(self.layer, {"weight": weight}, (x, *size), options)

    def sample(self, generator: torch.Generator) -> Tensor:
        weight = self.layer.weight.detach()
        noise = torch.rand(weight.shape, generator=generator, dtype=torch.float32, device=generator.device)
        return noise.ge_(self.p).to(weight).mul_(weight).div_(1 - self.p)  # in the memory of the noise, where it may be


class FlipoutLayer(RandomLayer):
    """A dense or convolutional layer with an independent Gaussian over each weight, trained with Flipout.

    Weight w ~ N(layer.weight, softplus(rho)^2); the bias stays a point. While training, each example sees the same
    weight noise under its own random signs, so gradients of different examples are decorrelated. The signs are a
    training-time trick: in eval mode the layer is its mean, and `sample` gives plain samples of the Gaussian.

    Args:
        layer: holds the means; trained on.
        initial_std: standard deviation of every weight at the start.
        prior_std: standard deviation of the zero-mean Gaussian prior, for `kl`.

    Source: Wen et al. 2018, eq. 5. arXiv 1803.04386.
    """

    def __init__(self, layer: Weighted, *, initial_std: float = 0.05, prior_std: float = 1.0) -> None:
        super().__init__(layer)
        self.prior_std = prior_std
        rho = math.log(math.expm1(initial_std))  # softplus(rho) is initial_std
        self.rho = nn.Parameter(torch.full_like(layer.weight.detach(), rho))

    @property
    def std(self) -> Tensor:
        """Standard deviation of each weight, shaped like it."""
        return F.softplus(self.rho)

    def forward(self, x: Tensor, *size: Any, **options: Any) -> Tensor:  # of a transposed convolution's output
        mean = self.layer(x, *size, **options)
        if not self.training:
            return mean
        noise = {"weight": self.std * torch.randn_like(self.rho)}
        if self.layer.bias is not None:
            noise["bias"] = torch.zeros_like(self.layer.bias)
        perturbation = functional_call(self.layer, noise, (x * self._random_signs(x), *size), options)
        return mean + perturbation * self._random_signs(perturbation)

    def _random_signs(self, x: Tensor) -> Tensor:
        # A convolution keeps one sign per channel over the image: otherwise the noise would not factorise.
        dense = isinstance(self.layer, nn.Linear)
        shape = x.shape if dense else x.shape[:2] + (1,) * (x.ndim - 2)
        return torch.randint(0, 2, shape, device=x.device).to(x) * 2 - 1

    def kl(self) -> Tensor:
        """Divergence of this Gaussian from the prior, summed over weights, in nats."""
        ratio = (self.std / self.prior_std) ** 2
        return 0.5 * (ratio + (self.layer.weight / self.prior_std) ** 2 - 1 - ratio.log()).sum()

    def sample(self, generator: torch.Generator) -> Tensor:
        mean = self.layer.weight.detach()
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32, device=generator.device)
        return noise.to(mean).mul_(self.std.detach()).add_(mean)


class _RandomLayers(WeightPosterior):
    """A posterior over the weights of some layers: the network's layers are replaced by random ones."""

    _layer_type: type[RandomLayer]

    def _replace(self, network: nn.Module, placement: Placement, **options: Any) -> None:
        network = trainable_copy(check_network(network))
        self.layers = weighted_layers(network, placement)
        layers = [cast(Weighted, network.get_submodule(name)) for name in self.layers]
        self.network = rebuilt(network, {layer: self._layer_type(layer, **options) for layer in layers})

    def weights(self, network: nn.Module, seed: Seed, draw: int) -> dict[str, Tensor]:
        layers = {name: cast(RandomLayer, network.get_submodule(name)) for name in self.layers}
        return {
            f"{name}.layer.weight".lstrip("."): layer.sample(generator_of(seed, draw, number))
            for number, (name, layer) in enumerate(layers.items())
        }


class MCDropConnect(_RandomLayers):
    """DropConnect kept on after training: a draw is one mask per weight.

    The random layers are in `self.network`, a copy of the network that was given; train that one.

    Args:
        network: any module with dense or convolutional layers.
        p: drop probability of a weight.
        placement: which layers: "last" (default), the one that gives the output; "all"; or a list of names.

    Source: Mobiny et al. 2019. arXiv 1906.04569.
    """

    name = "mc_dropconnect"
    _layer_type = DropConnectLayer

    def __init__(self, network: nn.Module, *, p: float = 0.1, placement: Placement = "last") -> None:
        if not 0 < check_number(p, 0, "p") < 1:
            raise ValueError(f"p is {p}: a posterior without randomness, or without network; choose 0 < p < 1")
        self._replace(network, placement, p=p)


class Flipout(_RandomLayers):
    """An independent Gaussian over every weight of some layers, trained with Flipout.

    Train `self.network` on the negative log likelihood plus `kl_weight * self.kl() / num_train_examples`, which is
    what `fit` does; `kl_weight=1` is the evidence lower bound. The weight decay of a recipe acts on the Gaussians
    too: it pulls means to 0 and standard deviations up (rho to 0), so only `weight_decay=0` optimises that bound
    alone. Before training, the Gaussian is centred on the weights that were given, with `initial_std`.

    Args:
        network: any module with dense or convolutional layers.
        placement: which layers: "last" (default), the one that gives the output; "all"; or a list of names.
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
