"""Last-layer Laplace: a Gaussian posterior around a network that is already trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xuqlib.posteriors.base import Posterior, check_draws, check_network
from xuqlib.posteriors.draws import Draws, copy_with, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork, generator_of
from xuqlib.posteriors.kinds import weighted_layers


class Laplace(Posterior):
    """A Gaussian over the last layer of a trained network, from the curvature of its loss.

    The curvature is laplace-torch's Kronecker-factored generalised Gauss-Newton matrix; the prior precision maximises
    the marginal likelihood. For regression the noise is the root mean squared training residual.

    Attributes (after `fit`):
        factors: for each tensor of the last layer, the eigenvectors of its Kronecker factors and the posterior
            precision in that basis, shaped like the tensor.

    Source: Daxberger et al. 2021, arXiv 2106.14806.
    """

    name = "laplace"

    def __init__(self, network: nn.Module) -> None:
        check_network(network)
        self.network = network
        self.last_layer = weighted_layers(network, "last")[0]
        if not isinstance(network.get_submodule(self.last_layer), nn.Linear):
            raise ValueError(f"the last layer {self.last_layer!r} is not Linear; last-layer Laplace needs a dense one")
        self.factors: dict[str, dict[str, Tensor]] = {}

    def fit(self, loader: Iterable[tuple[Tensor, Tensor]]) -> Laplace:
        """Measure the curvature over the training data; return this posterior.

        Args:
            loader: a DataLoader over (x, y); y of whole numbers means classification, else regression, and is shaped
                like the network's output.

        Raises:
            TypeError: not a DataLoader over pairs.
            ValueError: targets of a regression that are not shaped like the output.
        """
        from laplace import KronLLLaplace

        if not isinstance(loader, torch.utils.data.DataLoader):
            raise TypeError(f"Laplace.fit got a {type(loader).__name__}; pass a torch DataLoader over (x, y)")
        # A DataLoader takes a seed from the global generator; the warning is about predictions, not asked for here.
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="By default `link_approx`")
            network = detached_copy(self.network)
            network.get_submodule(self.last_layer).requires_grad_(True)
            if not self.last_layer:  # laplace-torch wants the last layer inside of something
                network = nn.Sequential(nn.Identity(), network)
            classification = not _first_target(loader).is_floating_point()
            sigma_noise = 1.0 if classification else _rms_residual(network, loader)
            kind, last = "classification" if classification else "regression", self.last_layer or "1"
            laplace = KronLLLaplace(network, kind, sigma_noise=sigma_noise, last_layer_name=last)
            laplace.fit(loader)
            laplace.optimize_prior_precision(pred_type="glm", method="marglik")
        self.noise_variance = 0.0 if classification else sigma_noise**2
        self.factors = self._factors(laplace.posterior_precision)
        return self

    def _factors(self, precision: Any) -> dict[str, dict[str, Tensor]]:
        prefix = f"{self.last_layer}." if self.last_layer else ""
        names = [name for name, _ in self.network.get_submodule(self.last_layer).named_parameters()]
        blocks = zip(names, precision.eigenvectors, precision.eigenvalues, precision.deltas, strict=True)
        factors = {}
        for name, vectors, values, delta in blocks:
            values = [value.detach().clamp(min=0) for value in values]  # round-off below zero
            product = values[0] if len(values) == 1 else torch.outer(values[0], values[1])
            # Laid out as in a checkpoint, so that its draws are the same to the last bit.
            factors[prefix + name] = {"precision": product + delta.detach(), "rows": vectors[0].detach().contiguous()}
            if len(vectors) == 2:
                factors[prefix + name]["columns"] = vectors[1].detach().contiguous()
        return factors

    def sample(self, num_draws: int, *, seed: int = 0) -> Draws:
        if not self.factors:
            raise ValueError("this Laplace posterior has no curvature yet; call fit(loader) first")
        check_draws(num_draws, seed)
        network = detached_copy(self.network)
        return self._draws([FixedNetwork(copy_with(network, self._draw(seed, draw))) for draw in range(num_draws)])

    def _draw(self, seed: int, draw: int) -> dict[str, Tensor]:
        weights = {}
        for number, (name, factor) in enumerate(sorted(self.factors.items())):  # a checkpoint keeps no order
            mean, precision = self.network.get_parameter(name).detach(), factor["precision"]
            generator = generator_of(seed, draw, number)
            noise = torch.randn(precision.shape, generator=generator, dtype=torch.float32, device="cpu").to(precision)
            deviation = factor["rows"] @ (noise / precision.sqrt())
            if "columns" in factor:
                deviation = deviation @ factor["columns"].T
            weights[name] = mean + deviation.to(mean)
        return weights


def _first_target(loader: Iterable[Any]) -> Tensor:
    batch = next(iter(loader))
    if not isinstance(batch, Sequence) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise TypeError(f"Laplace.fit wants batches (x, y) of tensors; the loader gave a {type(batch).__name__}")
    return batch[1]


def _rms_residual(network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> float:
    squares = []
    for x, y in loader:
        with torch.no_grad():
            output = network(x)
        if output.shape != y.shape:
            raise ValueError(f"targets have shape {tuple(y.shape)} but the network gives {tuple(output.shape)}")
        squares.append((output - y).square().flatten())
    return float(torch.cat(squares).mean().sqrt())
