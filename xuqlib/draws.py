"""Draws: networks from a posterior, each one a fixed function."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xuqlib.checks import check_examples, check_logits

# How many leading axes of the input's own shape (after the batch) carry a mask of their own; the rest share it.
_DROPOUTS: dict[Callable[..., Any], int | None] = {
    F.dropout: None,
    torch.dropout: None,
    torch.dropout_: None,
    F.dropout1d: 1,
    F.dropout2d: 1,
    F.dropout3d: 1,
    torch.feature_dropout: 1,
    torch.feature_dropout_: 1,
}
_OTHER_RANDOMNESS: set[Callable[..., Any]] = {
    *(F.alpha_dropout, F.feature_alpha_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
    *(torch.bernoulli, torch.rand, torch.randn, torch.rand_like, torch.randn_like, torch.randint, torch.normal),
    *(torch.multinomial, torch.randperm, F.gumbel_softmax, F.rrelu),
    *(Tensor.bernoulli, Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.exponential_, Tensor.multinomial),
}


def seed_of(seed: int, *path: int) -> int:
    """Mix a seed with the numbers of a draw and of a layer into one 63-bit seed; far apart for neighbours."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def generator_of(seed: int, *path: int) -> torch.Generator:
    """Return a generator on the CPU, so that the same seed means the same draw on every device."""
    return torch.Generator().manual_seed(seed_of(seed, *path))


class _FixedMasks(TorchFunctionMode):
    """Replace the dropout calls of one forward pass by multiplication with masks that the seed fixes.

    Masks are keyed by the order of calls, so dropout modules, functional dropout and a module that is called twice
    are all served alike. With `seed=None` nothing may be random: dropout that is on is refused.
    """

    def __init__(self, seed: int | None, resampling: torch.Generator | None = None) -> None:
        super().__init__()
        self.seed, self.resampling, self.calls = seed, resampling, 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        if func is F.scaled_dot_product_attention and (kwargs.get("dropout_p", 0.0) or (args[4:5] or (0.0,))[0]):
            raise RuntimeError("dropout inside scaled_dot_product_attention cannot be fixed; set its dropout_p to 0")
        if func in _OTHER_RANDOMNESS and not (func is F.rrelu and not kwargs.get("training")):
            if not (func in (F.alpha_dropout, F.feature_alpha_dropout) and not _is_on(args, kwargs)):
                name = getattr(func, "__name__", str(func))
                raise RuntimeError(
                    f"the network calls {name} in its forward pass, so a draw of it would not be a fixed function; "
                    "use nn.Dropout (or a posterior over weights), whose randomness can be fixed"
                )
        return func(*args, **kwargs)

    def _dropout(
        self,
        func: Callable[..., Any],
        input: Tensor,
        p: float = 0.5,
        training: bool = True,
        inplace: bool = False,
        **old: Any,
    ) -> Tensor:
        training = old.get("train", training)  # torch.dropout's name for it
        if self.seed is None:
            if training and p > 0:
                raise RuntimeError(
                    f"the network calls {func.__name__} with training=True although it is in eval mode, so it is "
                    "not a fixed function; pass training=self.training, or use nn.Dropout"
                )
            return input
        self.calls += 1
        if p == 0:
            return input
        own_axes = _DROPOUTS[func]
        shape = input.shape[1:] if own_axes is None else (input.shape[1], *(1,) * (input.ndim - 2))
        if self.resampling is not None:
            keep = torch.rand((len(input), *shape), generator=self.resampling) >= p
        else:
            keep = torch.rand(tuple(shape), generator=generator_of(self.seed, self.calls)) >= p
        dropped = input * (keep.to(input) / (1 - p if p < 1 else 1))
        in_place = inplace or func in (torch.dropout_, torch.feature_dropout_)
        return input.copy_(dropped) if in_place else dropped


def _is_on(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    return bool(kwargs.get("training", args[2] if len(args) > 2 else False))


class FixedNetwork(nn.Module):
    """One draw: a network in eval mode whose randomness is fixed.

    Args:
        network: maps x (N, ...) to logits (N, C).
        seed: fixes its dropout masks, one per unit, the same for every example; None for a network without any.
        resampled: draw new masks for every row of every call instead. Only to show what goes wrong then.
    """

    def __init__(self, network: nn.Module, seed: int | None = None, *, resampled: bool = False) -> None:
        super().__init__()
        self.network, self.seed = network, seed
        self.resampling = torch.Generator().manual_seed(seed) if resampled and seed is not None else None
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        with _FixedMasks(self.seed, self.resampling):
            return self.network(x)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.resampling is not None:  # a generator cannot be pickled, its state can
            state["resampling"] = self.resampling.get_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if isinstance(self.resampling, Tensor):
            generator = torch.Generator()
            generator.set_state(self.resampling)
            self.resampling = generator


class Draws(Sequence[nn.Module]):
    """Fixed networks from one posterior, along an axis called `draw`.

    `draws[3]` is an ordinary module; `draws[:10]` are draws again; `draws(x)` evaluates all of them, differentiably
    in x. What the draws of an `nn.Sequential` share before its first random layer is evaluated once.

    Args:
        networks: the draws; each answers the same every time, and shares what it can with the others.
        posterior: name of the posterior, for tables and figures.
        noise_variance: variance of the targets about the mean of one draw, in squared target units (regression).
    """

    def __init__(self, networks: Sequence[nn.Module], *, posterior: str = "", noise_variance: float = 0.0) -> None:
        if not networks:
            raise ValueError("no networks to draw from; pass at least one")
        self.networks, self.posterior, self.noise_variance = list(networks), posterior, noise_variance

    def __len__(self) -> int:
        return len(self.networks)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Draws: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Draws:
        if isinstance(index, slice):
            return Draws(self.networks[index], posterior=self.posterior, noise_variance=self.noise_variance)
        return self.networks[index]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.networks)

    def __repr__(self) -> str:
        return f"Draws({len(self)} of {self.posterior or type(self.networks[0]).__name__})"

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of every draw, (draw, example, class); one output per example is class 0."""
        check_examples(x)
        trunk, heads = shared_trunk(self.networks)
        features = trunk(x.clone())  # clones, because a layer may work in place on what it is given
        return torch.stack([check_logits(head(features.clone()), len(x)) for head in heads])

    def to(self, *args: Any, **kwargs: Any) -> Draws:
        """Move every draw to a device or dtype, as `nn.Module.to` does; return these draws."""
        for network in self.networks:
            network.to(*args, **kwargs)
        return self


def shared_trunk(networks: Sequence[nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    """Split draws into the part that all share and one head each: network(x) = head(trunk(x)).

    The trunk is empty (the identity) unless the draws are `FixedNetwork`s around one `nn.Sequential` that begins
    with torch's own layers, the same tensors in every draw and no dropout among them.
    """
    inner = [network.network for network in networks if isinstance(network, FixedNetwork) and not network.resampling]
    sequential = [network for network in inner if type(network) is nn.Sequential]
    if len(sequential) < len(networks) or len({len(network) for network in sequential}) > 1:
        return nn.Identity(), list(networks)
    depth = 0
    while depth < len(sequential[0]) and _is_shared([network[depth] for network in sequential]):
        depth += 1
    heads = [FixedNetwork(net[depth:], draw.seed) for net, draw in zip(sequential, networks, strict=True)]  # type: ignore[arg-type]
    return sequential[0][:depth], heads


def _is_shared(layers: Sequence[nn.Module]) -> bool:
    # A layer written by a user may call functional dropout, so only torch's own layers count as free of it.
    for module in layers[0].modules():
        if not type(module).__module__.startswith("torch.nn.modules") or isinstance(
            module, nn.modules.dropout._DropoutNd
        ):
            return False
    tensors = [list(layer.parameters()) + list(layer.buffers()) for layer in layers]
    return all(len(t) == len(tensors[0]) and all(a is b for a, b in zip(t, tensors[0], strict=True)) for t in tensors)


def detached_copy(network: nn.Module) -> nn.Module:
    """Copy a network with its own, frozen tensors, in eval mode."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def copy_with(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy the structure of a frozen network, sharing every tensor except those given in `weights`."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    for name, value in weights.items():
        original = network.get_parameter(name)
        memo[id(original)] = nn.Parameter(value.to(original), requires_grad=False)
    return copy.deepcopy(network, memo)
