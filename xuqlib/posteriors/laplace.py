"""Last-layer Laplace: a Gaussian posterior around a network that is already trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from xuqlib.checks import check_logits, check_target
from xuqlib.posteriors.base import Posterior, check_draws, check_network
from xuqlib.posteriors.draws import Draws, copy_with, detached_copy
from xuqlib.posteriors.fixing import FixedNetwork, generator_of
from xuqlib.posteriors.kinds import weighted_layers


class Laplace(Posterior):
    """A Gaussian over the last layer of a trained network, from the curvature of its loss.

    The curvature is laplace-torch's Kronecker-factored generalised Gauss-Newton matrix; the prior precision maximises
    the marginal likelihood. For regression the noise of each output is its root mean squared training residual.

    Args:
        network: any module that answers logits (N, K), or means (N, K) or (N,).
        layer: name of a dense layer; by default the one that alone gives the output.

    Attributes (after `fit`):
        factors: for each tensor of the last layer, the eigenvectors of its Kronecker factors and the posterior
            precision in that basis, shaped like the tensor.

    Raises:
        ValueError: it cannot be seen which layer gives the output; that layer is not dense; an unknown name.

    Source: Daxberger et al. 2021, arXiv 2106.14806.
    """

    name = "laplace"

    def __init__(self, network: nn.Module, *, layer: str | None = None) -> None:
        self.network = check_network(network)
        copied = detached_copy(self.network)
        self.last_layer = weighted_layers(copied, "last" if layer is None else [layer])[0]
        if not isinstance(copied.get_submodule(self.last_layer), nn.Linear):
            raise ValueError(f"the last layer {self.last_layer!r} is not Linear; last-layer Laplace needs a dense one")
        self.factors: dict[str, dict[str, Tensor]] = {}

    def fit(self, loader: Iterable[tuple[Tensor, Tensor]]) -> Laplace:
        """Measure the curvature over the training data; return this posterior.

        Args:
            loader: a DataLoader, or any iterable of batches (x, y); y of whole numbers (N,) means classification, else
                regression, and is shaped like the network's output.

        Raises:
            TypeError: not batches of pairs of tensors; a half precision network.
            ValueError: no batches, NaN or infinite numbers, targets that do not fit the output, probabilities instead
                of logits, a last layer that is not called just once, or a curvature that cannot be decomposed.
        """
        # A DataLoader takes a seed from the global generator; the warning is about predictions, not asked for here.
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="By default `link_approx`")
            network = _Answers(detached_copy(self.network))
            batches: Any = _Batches(loader, network, self.last_layer)
            noise = [] if batches.classification else _residuals(network, batches)
            if len(noise) > 1:  # measured in its own noise, each output has a noise of 1
                network.unit = batches.unit = batches.like.new_tensor(noise)
            from laplace import KronLLLaplace  # which takes seconds: what is refused, is refused before

            network.network.get_submodule(self.last_layer).requires_grad_(True)
            kind = "classification" if batches.classification else "regression"
            last = f"network.{self.last_layer}".rstrip(".")
            sigma_noise = noise[0] if len(noise) == 1 else 1.0
            laplace = KronLLLaplace(network, kind, sigma_noise=sigma_noise, last_layer_name=last)
            try:
                laplace.fit(batches)
                laplace.optimize_prior_precision(pred_type="glm", method="marglik")
            except SystemExit as error:  # which laplace-torch raises where an eigendecomposition fails
                what = "the curvature of the last layer has no eigendecomposition"
                raise ValueError(f"{what}; its features may be too large: standardise the inputs") from error
        variances = [each**2 for each in noise]
        self.noise_variance = (
            torch.tensor(variances, dtype=torch.float64) if len(variances) > 1 else sum(variances, 0.0)
        )
        self.output = "logits" if batches.classification else "regression"
        self.factors = self._factors(laplace.posterior_precision)
        return self

    def _factors(self, precision: Any) -> dict[str, dict[str, Tensor]]:
        prefix = f"{self.last_layer}." if self.last_layer else ""
        names = ["weight", "bias"][: len(precision.deltas)]
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
        drawn = (self._draw(network, seed, draw) for draw in range(num_draws))
        return self._draws([FixedNetwork(copy_with(network, weights)) for weights in drawn])

    def _draw(self, network: nn.Module, seed: int, draw: int) -> dict[str, Tensor]:
        weights = {}
        for number, (name, factor) in enumerate(sorted(self.factors.items())):  # a checkpoint keeps no order
            mean, precision = network.get_parameter(name), factor["precision"]
            generator = generator_of(seed, draw, number)
            noise = torch.randn(precision.shape, generator=generator, dtype=torch.float32, device="cpu").to(precision)
            deviation = factor["rows"] @ (noise / precision.sqrt())
            if "columns" in factor:
                deviation = deviation @ factor["columns"].T
            weights[name] = mean + deviation.to(mean)
        return weights


class _Answers(nn.Module):
    """A network whose answers have the shape (N, K)."""

    unit: float | Tensor = 1.0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return check_logits(self.network(x), len(x)) / self.unit


class _Batches:
    """What laplace-torch asks of a loader, checked: batches that fit the network, and in `dataset` their examples."""

    unit: float | Tensor = 1.0

    def __init__(self, loader: Iterable[Any], network: _Answers, layer: str) -> None:
        if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
            raise TypeError(f"Laplace.fit got a {type(loader).__name__}; pass a torch DataLoader over (x, y)")
        self.batches = loader if isinstance(loader, DataLoader) else list(loader)
        self.like = network.network.get_submodule(layer).get_parameter("weight")
        if torch.finfo(self.like.dtype).bits < 32:
            raise TypeError(f"the network is {self.like.dtype}; Laplace wants float32 or 64, as from network.float()")
        num_examples, num_outputs = 0, 0
        for number, batch in enumerate(self.batches):
            parts = batch if isinstance(batch, Sequence) else ()
            if len(parts) != 2 or not all(isinstance(part, Tensor) for part in parts):
                kind = type(batch).__name__
                raise TypeError(f"Laplace.fit wants batches (x, y) of tensors; the loader gave a {kind}")
            for name, part in zip("xy", parts, strict=True):
                if part.is_floating_point() and not part.isfinite().all():
                    raise ValueError(f"{name} of batch {number} holds NaN or infinite numbers; drop or fill them")
            x, y = parts
            if not number:
                self.classification = not y.is_floating_point()
                num_outputs = self._try(network, layer, x)
            if self.classification:
                check_target(y.flatten() if y.shape == (len(x), 1) else y, len(x), num_outputs)
            elif y.shape != (len(x), num_outputs) and (y.shape != (len(x),) or num_outputs > 1):
                raise ValueError(f"targets have shape {tuple(y.shape)} but the network gives {(len(x), num_outputs)}")
            num_examples += len(x)
        if not num_examples:
            raise ValueError("Laplace.fit got a loader without examples; pass the training data")
        self.dataset = range(num_examples)

    def _try(self, network: _Answers, layer: str, x: Tensor) -> int:
        """Return the number of outputs."""
        calls: list[Any] = []
        hooked = network.network.get_submodule(layer).register_forward_hook(lambda *call: calls.append(call))
        with torch.no_grad(), hooked:
            answers = FixedNetwork(network)(x.to(self.like.device))
        if len(calls) != 1:
            raise ValueError(f"the network calls its layer {layer!r} {len(calls)} times; Laplace wants one call")
        if self.classification and answers.shape[1] == 1:
            what = "the targets are whole numbers, so classes, but the network has one output"
            raise ValueError(f"{what}; pass y.float() for a regression, or train it with two logits")
        sums = answers.sum(1)
        if self.classification and answers.min() >= 0 and torch.allclose(sums, torch.ones_like(sums), rtol=1e-4):
            raise ValueError("the network answers probabilities; Laplace wants logits: leave the softmax away")
        return answers.shape[1]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in self.batches:
            x, y = x.to(self.like.device), y.to(self.like.device)
            yield (
                x,
                y.flatten().long() if self.classification else y.reshape(len(x), -1).to(self.like.dtype) / self.unit,
            )


def _residuals(network: _Answers, batches: _Batches) -> list[float]:
    """The root mean squared residual of each output."""
    with torch.no_grad():
        squares = torch.cat([(network(x) - y).square() for x, y in batches])
    noise = [float(column.mean().sqrt()) for column in squares.T]
    if 0.0 in noise:
        raise ValueError(f"output {noise.index(0.0)} fits its targets without a residual; pass data that have noise")
    return noise
