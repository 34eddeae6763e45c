"""Layers whose weights are random, and which layers of a network those replace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from xuqlib.checks import check_choice

PLACEMENTS = ("last", "all")
Placement = str | Sequence[str]
Drawer = Callable[[Tensor], dict[str, Tensor]]
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class _RandomLayer(nn.Module):
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


class DropConnectLayer(_RandomLayer):
    """A dense or convolutional layer that drops each weight with probability `p` while it trains.

    In eval mode it is the layer itself. The mask is on the weight, not on the bias, and kept weights are divided
    by 1 - p. One mask serves a whole batch while training (a choice: one mask per example costs N weight tensors).

    Source: Wan et al. 2013; Mobiny et al. 2019, arXiv 1906.04569.
    """

    def __init__(self, layer: Weighted, p: float) -> None:
        super().__init__(layer)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.layer(x)
        weight = F.dropout(self.layer.weight, self.p)
        return functional_call(self.layer, {"weight": weight}, (x,))

    def noise(self, generator: torch.Generator) -> Tensor:
        """Return the random numbers of one draw, shaped like the weight."""
        return torch.rand(self.layer.weight.shape, generator=generator, dtype=torch.float32, device="cpu")

    def drawer(self) -> Drawer:
        """Return what turns the noise of a draw into its masked weight, `{"layer.weight": tensor}`; detached."""
        kept, p = self.layer.weight.detach() / (1 - self.p), self.p
        return lambda noise: {"layer.weight": torch.where((noise >= p).to(kept.device), kept, kept.new_zeros(()))}


class FlipoutLayer(_RandomLayer):
    """A dense or convolutional layer with an independent Gaussian over each weight, trained with Flipout.

    Weight w ~ N(layer.weight, softplus(rho)^2); the bias stays a point. While training, each example sees the same
    weight noise under its own random signs, so gradients of different examples are decorrelated. The signs are a
    training-time trick: in eval mode the layer is its mean, and `drawer` gives plain samples of the Gaussian.

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

    def forward(self, x: Tensor) -> Tensor:
        mean = self.layer(x)
        if not self.training:
            return mean
        noise = {"weight": self.std * torch.randn_like(self.rho)}
        if self.layer.bias is not None:
            noise["bias"] = torch.zeros_like(self.layer.bias)
        perturbation = functional_call(self.layer, noise, (x * self._random_signs(x),))
        return mean + perturbation * self._random_signs(perturbation)

    def _random_signs(self, x: Tensor) -> Tensor:
        # A convolution keeps one sign per channel over the picture: otherwise the noise would not factorise.
        dense = isinstance(self.layer, nn.Linear)
        shape = x.shape if dense else x.shape[:2] + (1,) * (x.ndim - 2)
        return torch.randint(0, 2, shape, device=x.device).to(x) * 2 - 1

    def kl(self) -> Tensor:
        """Divergence of this Gaussian from the prior, summed over weights, in nats."""
        ratio = (self.std / self.prior_std) ** 2
        return 0.5 * (ratio + (self.layer.weight / self.prior_std) ** 2 - 1 - ratio.log()).sum()

    def noise(self, generator: torch.Generator) -> Tensor:
        """Return the standard normal numbers of one draw, shaped like the weight."""
        return torch.randn(self.layer.weight.shape, generator=generator, dtype=torch.float32, device="cpu")

    def drawer(self) -> Drawer:
        """Return what turns the noise of a draw into its sampled weight, `{"layer.weight": tensor}`; detached."""
        mean, std = self.layer.weight.detach().clone(), self.std.detach()
        return lambda noise: {"layer.weight": (noise.to(mean) * std).add_(mean)}


def weighted_layers(network: nn.Module, placement: Placement = "last") -> list[str]:
    """Name the dense and convolutional layers that a posterior over weights makes random.

    Projections inside `nn.MultiheadAttention` are left out: it reads their weights without calling them.

    Args:
        network: any module.
        placement: "last", the one registered last, commonly the output layer; "all"; or a list of names.

    Raises:
        ValueError: unknown placement or names, or a network without such layers.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    attention = [name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, kinds) and not any(name.startswith(f"{outer}.") for outer in attention)
    ]
    if not names:
        raise ValueError(f"{type(network).__name__} has no Linear or Conv layer whose weights could be drawn")
    if isinstance(placement, str):
        check_choice(placement, PLACEMENTS, "placement")
        return names[-1:] if placement == "last" else names
    if not isinstance(placement, Sequence) or not all(isinstance(name, str) for name in placement):
        raise TypeError(f"placement is {placement!r}; pass 'last', 'all', or a list of names of layers")
    unknown = sorted(set(placement) - set(names))
    if unknown or not placement:
        raise ValueError(f"placement names {unknown or 'no layer'}; the layers of this network are {names}")
    return [name for name in names if name in set(placement)]


def replace_layers(network: nn.Module, replacements: Iterable[tuple[str, nn.Module]]) -> nn.Module:
    """Put each named layer's replacement in its place, in `network` itself; return the network.

    A network that is itself the layer (its name is "") is replaced as a whole.
    """
    for name, layer in replacements:
        if not name:
            return layer
        network.set_submodule(name, layer)
    return network
