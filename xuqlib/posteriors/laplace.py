"""Last-layer Laplace: a Gaussian posterior around a network that is already trained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from xuqlib.checks import check_choice, check_target
from xuqlib.device import sent
from xuqlib.inputs import LABELS, Inputs, as_inputs
from xuqlib.outputs import Output, are_probabilities, as_output
from xuqlib.posteriors.base import WeightPosterior, check_network
from xuqlib.posteriors.draws import detached_copy
from xuqlib.posteriors.fixing import FixedNetwork, Seed, generator_of, mapped
from xuqlib.posteriors.kinds import weighted_layers


class Laplace(WeightPosterior):
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

    def fit(self, loader: Iterable[Any], *, output: Any = None) -> Laplace:
        """Measure the curvature over the training data; return this posterior.

        Args:
            loader: a DataLoader, or any iterable of batches (inputs, y), inputs as for `Inputs`; or of mappings that
                hold `labels` (or `label`, `target`, `targets`) too, as collators give. y of whole numbers (N,) means
                classification, else regression, and is shaped like the network's output.
            output: what of the answer is meant, as for `Output`: logits or a regression, or where they are found.

        Raises:
            TypeError: not batches of inputs and targets; a half precision network.
            ValueError: no batches, NaN or infinite numbers, targets that do not fit the output, labels of 0 and 1 that
                are no whole numbers, probabilities instead of logits, a last layer that is not called just once, or a
                curvature that cannot be decomposed.
        """
        read_as = as_output(output)
        check_choice(read_as.kind or "logits", ("logits", "regression"), "output of a Laplace posterior")
        # A DataLoader takes a seed from the global generator; the warning is about predictions, not asked for here.
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="By default `link_approx`")
            network = _Answers(detached_copy(self.network), read_as, lambda: batches.at_hand)
            layer = network.network.get_submodule(self.last_layer)
            batches: Any = _Batches(loader, layer.get_parameter("weight"), network)
            answers, targets = self._answers(network, layer, batches)
            batches.dataset, kind, noise = range(len(answers)), "classification", torch.zeros(1)
            if targets.is_floating_point():  # measured in its own noise, each output has a noise of 1
                if read_as.kind != "regression" and ((targets == 0) | (targets == 1)).all():
                    raise ValueError(
                        "targets are 0.0 and 1.0, as of labels behind a sigmoid, of which this Laplace knows nothing; "
                        'pass output="regression" if they are plain numbers, or train with whole classes and softmax'
                    )
                kind, noise = "regression", _noise(answers, targets)
                network.unit = noise
            elif answers.shape[1] == 1:
                raise ValueError("one output for classes; pass y.float() for a regression, or train it with two logits")
            elif are_probabilities(answers):
                raise ValueError("the network answers probabilities; Laplace wants logits: leave the softmax away")
            else:
                check_target(targets, len(answers), answers.shape[1])
            from laplace import KronLLLaplace  # which takes seconds: what is refused, is refused before

            layer.requires_grad_(True)
            laplace = KronLLLaplace(network, kind, last_layer_name=f"network.{self.last_layer}".rstrip("."))
            try:
                laplace.fit(batches)
                laplace.optimize_prior_precision(pred_type="glm", method="marglik")
            except SystemExit as error:  # which laplace-torch raises where an eigendecomposition fails
                what = f"the curvature of the last layer has no eigendecomposition in {answers.dtype}"
                raise ValueError(f"{what}; standardise the inputs, drop NaN, or pass network.double()") from error
        variance = noise.double().square().cpu()
        self.noise_variance = variance if len(variance) > 1 else float(variance)
        self.output = "logits" if kind == "classification" else "regression"
        self.factors = self._factors(laplace.posterior_precision)
        return self

    def _answers(self, network: nn.Module, layer: nn.Module, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
        """What the network answers to all batches, (N, K), and their targets."""
        calls: list[None] = []
        fixed, counting = FixedNetwork(network), layer.register_forward_hook(lambda *_: calls.append(None))
        with torch.no_grad(), counting:
            pairs = [(fixed(x), y) for x, y in batches]
        if not all(answer.isfinite().all() for answer, _ in pairs):
            raise ValueError("the network answers NaN or infinite numbers; drop or fill NaN in what the loader gives")
        if not pairs:
            raise ValueError("Laplace.fit got a loader without examples; pass the training data")
        if len(calls) != len(pairs):
            times = f"{len(calls) // len(pairs)} times"
            raise ValueError(f"the network calls its layer {self.last_layer!r} {times}; Laplace wants one call")
        return torch.cat([answers for answers, _ in pairs]), torch.cat([targets for _, targets in pairs])

    def _factors(self, precision: Any) -> dict[str, dict[str, Tensor]]:
        parts = (precision.eigenvectors, precision.eigenvalues, precision.deltas)
        factors = {}
        for name, vectors, values, delta in zip(("weight", "bias"), *parts, strict=False):  # there may be no bias
            values = [value.detach().clamp(min=0) for value in values]  # round-off below zero
            product = values[0] if len(values) == 1 else torch.outer(*values)
            # Laid out as in a checkpoint, so that its draws are the same to the last bit.
            bases = zip(("rows", "columns"), (own.detach().contiguous() for own in vectors), strict=False)
            factors[f"{self.last_layer}.{name}".lstrip(".")] = {"precision": product + delta.detach(), **dict(bases)}
        return factors

    def _on(self, where: torch.device | None) -> Self:
        there = copy.copy(self)
        factors = self.factors if where is None else mapped(lambda tensor: sent(tensor, where), self.factors)
        # On a CPU in float64: no processor's order of sums is left when the weights are rounded.
        there.factors = mapped(lambda tensor: tensor.double() if tensor.is_cpu else tensor, factors)
        return there

    def weights(self, network: nn.Module, seed: Seed, draw: int) -> dict[str, Tensor]:
        if not self.factors:
            raise ValueError("this Laplace posterior has no curvature yet; call fit(loader) first")
        weights = {}
        for number, (name, factor) in enumerate(sorted(self.factors.items())):  # a checkpoint keeps no order
            mean, root = network.get_parameter(name), factor["precision"].sqrt().view(len(factor["rows"]), -1)
            stream = generator_of(seed, draw, number)
            # The covariance's symmetric root: directions of equal precision have no eigenvectors of their own, only
            # those that rounding picks, and what a processor rounds must not decide a draw.
            rows, *columns = (factor[key] for key in ("rows", "columns") if key in factor)  # a bias is one column
            noise = torch.randn(root.shape, generator=stream, dtype=torch.float32, device=stream.device)
            turned = torch.linalg.multi_dot([rows.T, noise.to(root), *columns]) / root
            drawn = torch.linalg.multi_dot([rows, turned, *(basis.T for basis in columns)])
            weights[name] = mean + drawn.view_as(mean).to(mean)
        return weights


class _Answers(nn.Module):
    """A network whose answers have the shape (N, K): to the first examples of the batch that is at hand.

    Args:
        at_hand: gives that batch; a function, of which laplace-torch makes no copy.
    """

    unit: float | Tensor = 1.0

    def __init__(self, network: nn.Module, output: Output, at_hand: Callable[[], Inputs]) -> None:
        super().__init__()
        self.network, self.output, self.at_hand = network, output, at_hand

    def forward(self, x: Tensor) -> Tensor:
        answer = self.at_hand().at(slice(len(x))).call(self.network, x)
        return self.output.read(answer, len(x)) / self.unit


class _Batches:
    """What laplace-torch asks of a loader: batches where the network is, and in `dataset` their examples."""

    dataset = range(0)
    at_hand: Inputs

    def __init__(self, loader: Iterable[Any], like: Tensor, network: _Answers) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(f"loader is a {type(loader).__name__}; pass a DataLoader, or a list of batches (x, y)")
        self.batches, self.like = loader if isinstance(loader, DataLoader) else list(loader), like
        self.network = network

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            is_pair = isinstance(batch, Sequence) and len(batch) == 2
            labels = [batch[key] for key in LABELS & batch.keys()] if isinstance(batch, Mapping) else []
            given, y = batch if is_pair else (batch, *labels) if len(labels) == 1 else (batch, None)
            if not isinstance(y, Tensor) or not isinstance(given, Tensor | Sequence | Mapping):
                kind = type(batch).__name__
                raise TypeError(f"Laplace.fit wants batches (x, y) of inputs and targets; the loader gave a {kind}")
            inputs: Any = tuple(given) if isinstance(given, list) else given
            try:
                self.at_hand = as_inputs(inputs).changed(lambda value: value.to(self.like.device))
            except ValueError as error:
                raise ValueError(f"the loader gave a batch whose {error}") from None
            y = y.to(self.like.device)
            numbers = y[:, None].flatten(1).to(self.like) / self.network.unit if y.is_floating_point() else None
            yield self.at_hand.x, y.flatten().long() if numbers is None else numbers


def _noise(answers: Tensor, targets: Tensor) -> Tensor:
    """The root mean squared residual of each output, (K,)."""
    if targets.shape != answers.shape:
        raise ValueError(f"targets have shape {tuple(targets.shape)} but the network gives {tuple(answers.shape)}")
    noise = (answers - targets).square().mean(0).sqrt()
    if not ((noise > 0) & noise.isfinite()).all():
        raise ValueError(f"residuals of the outputs are {noise.tolist()}; pass data that have noise, and no NaN")
    return noise
