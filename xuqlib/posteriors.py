"""Posteriors: each one gives draws, fixed networks, through one method, `sample(num_draws, seed=)`."""

from __future__ import annotations

import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_count, check_number
from xuqlib.draws import Draws, FixedNetwork, copy_with, detached_copy, generator_of, seed_of
from xuqlib.networks import DropConnectLayer, FlipoutLayer, Placement, Weighted, replace_layers, weighted_layers


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


class DeepEnsemble(Posterior):
    """Networks trained independently; each is a draw. Source: Lakshminarayanan et al. 2017, arXiv 1612.01474."""

    name = "deep_ensemble"

    def __init__(self, members: Sequence[nn.Module]) -> None:
        if isinstance(members, nn.Module) or not isinstance(members, Sequence):
            raise TypeError(f"DeepEnsemble got a {type(members).__name__}; pass a list of networks, one per member")
        if not members:
            raise ValueError("DeepEnsemble got an empty list; pass at least one network")
        for member in members:
            _check_network(member)
        self.members = list(members)
        self.network = self.members[0]

    def sample(self, num_draws: int | None = None, *, seed: int = 0) -> Draws:
        """Return the first `num_draws` members, all by default. There is nothing to draw, so `seed` changes nothing."""
        num_draws = len(self.members) if num_draws is None else num_draws
        _check_draws(num_draws, seed)
        if num_draws > len(self.members):
            raise ValueError(f"asked for {num_draws} draws but the ensemble has {len(self.members)} members")
        return self._draws([FixedNetwork(detached_copy(member)) for member in self.members[:num_draws]])


class MCDropout(Posterior):
    """Dropout kept on after training: a draw is one mask per dropout call, the same for every example.

    Every dropout of the network is drawn: modules, `Dropout1d/2d/3d`, and `F.dropout` inside a forward. Dropout that
    cannot be fixed is refused by name: `AlphaDropout`, and dropout inside attention and recurrent layers.

    Raises:
        ValueError: no dropout with 0 < p < 1 in the network, or dropout that cannot be fixed.

    Source: Gal & Ghahramani 2016. arXiv 1506.02142.
    """

    name = "mc_dropout"

    def __init__(self, network: nn.Module) -> None:
        _check_network(network)
        _check_dropout(network)
        self.network = network

    def sample(self, num_draws: int, *, seed: int = 0, masks: str = "fixed") -> Draws:
        """Draw one set of masks per draw.

        Args:
            masks: "fixed", the definition of a draw; "resampled" gives networks whose masks change with every row and
                every call. They are not fixed functions: use them only to show what that does to an explanation.
        """
        _check_draws(num_draws, seed)
        check_choice(masks, ("fixed", "resampled"), "masks")
        network = detached_copy(self.network)
        resampled = masks == "resampled"
        return self._draws(
            [
                FixedNetwork(copy_with(network, {}), seed_of(seed, draw), resampled=resampled)
                for draw in range(num_draws)
            ]
        )


class _WeightPosterior(Posterior):
    """A posterior over the weights of some layers: the network's layers are replaced by random ones."""

    _layer_type: type[DropConnectLayer] | type[FlipoutLayer]

    def _replace(self, network: nn.Module, placement: Placement, **options: Any) -> None:
        _check_network(network)
        self.network = copy.deepcopy(network)
        self.layers = weighted_layers(self.network, placement)
        layers = [cast(Weighted, self.network.get_submodule(name)) for name in self.layers]
        replacements = [self._layer_type(layer, **options) for layer in layers]
        self.network = replace_layers(self.network, zip(self.layers, replacements, strict=True))

    def sample(self, num_draws: int, *, seed: int = 0) -> Draws:
        _check_draws(num_draws, seed)
        network = detached_copy(self.network)
        return self._draws([FixedNetwork(copy_with(network, self._draw(seed, draw))) for draw in range(num_draws)])

    def _draw(self, seed: int, draw: int) -> dict[str, Tensor]:
        weights: dict[str, Tensor] = {}
        for number, name in enumerate(self.layers):
            layer = cast(DropConnectLayer | FlipoutLayer, self.network.get_submodule(name))
            drawn = layer.draw(generator_of(seed, draw, number))
            weights.update({f"{name}.{key}" if name else key: value for key, value in drawn.items()})
        return weights


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
    what `training.fit` does; `kl_weight=1` is the evidence lower bound. Before training, the Gaussian is centred on
    the weights that were given, with `initial_std`.

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
        _check_network(network)
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
            laplace = KronLLLaplace(
                network,
                "classification" if classification else "regression",
                sigma_noise=sigma_noise,
                last_layer_name=self.last_layer or "1",
            )
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
        _check_draws(num_draws, seed)
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


def _check_draws(num_draws: int, seed: int) -> None:
    check_count(num_draws, 1, "num_draws")
    check_count(seed, 0, "seed")


def _check_network(network: nn.Module) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"got a {type(network).__name__}; pass a network (nn.Module)")
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        raise TypeError("a scripted network hides its operations; pass the nn.Module that it was scripted from")


def _check_dropout(network: nn.Module) -> None:
    on, refused = False, []
    for name, module in network.named_modules():
        rate = getattr(module, "dropout", 0.0)
        if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
            refused.append(f"{name} ({type(module).__name__})")
        elif isinstance(module, nn.MultiheadAttention | nn.RNNBase) and isinstance(rate, float) and rate > 0:
            refused.append(f"{name} (dropout inside {type(module).__name__})")
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            on = on or 0 < module.p < 1
        elif _calls_dropout(module):
            on = True
    if refused:
        raise ValueError(f"dropout that cannot be fixed: {', '.join(refused)}; use nn.Dropout there, or set it to 0")
    if not on:
        raise ValueError(
            f"{type(network).__name__} has no dropout with 0 < p < 1, so this posterior is without randomness; "
            "add nn.Dropout layers (build with dropout=0.25), or choose another posterior"
        )


def _calls_dropout(module: nn.Module) -> bool:
    # F.dropout inside a user's forward leaves its name in the compiled code; torch's own layers are known above.
    if type(module).__module__.startswith("torch.nn."):
        return False
    methods = [method for name, method in inspect.getmembers(type(module), inspect.isfunction) if name != "__init__"]
    names = {name for method in methods for name in method.__code__.co_names if "dropout" in name and name.islower()}
    # The same name may be a layer, counted as such, or a rate that is switched off.
    return any(not isinstance(value, nn.Module) and value != 0 for value in (getattr(module, n, None) for n in names))


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
