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
    *(torch.multinomial, torch.randperm, torch.randint_like, torch.poisson, torch.binomial, F.gumbel_softmax, F.rrelu),
    *(Tensor.bernoulli, Tensor.bernoulli_, Tensor.uniform_, Tensor.normal_, Tensor.exponential_, Tensor.multinomial),
    *(Tensor.random_, Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_),
}
_WHILE_TRAINING: set[Callable[..., Any]] = {F.alpha_dropout, F.feature_alpha_dropout, F.rrelu}


def seed_of(seed: int, *path: int) -> int:
    """Mix a seed with the numbers of a draw and of a layer into one 63-bit seed; far apart for neighbours."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


def generator_of(seed: int, *path: int) -> torch.Generator:
    """Return a generator on the CPU, so that the same seed means the same draw on every device."""
    return torch.Generator("cpu").manual_seed(seed_of(seed, *path))


class RandomNetworkError(RuntimeError):
    """A network whose answer would change from call to call, in a way that cannot be fixed."""


class _FixedMasks(TorchFunctionMode):
    """Replace the dropout calls of one forward pass by multiplication with masks that the seed fixes.

    Masks are keyed by the order of calls, so dropout modules, functional dropout and a module that is called twice
    are all served alike. With `seed=None` nothing may be random: dropout that is on is refused.
    """

    def __init__(self, seed: int | None, num_examples: int, resampling: torch.Generator | None = None) -> None:
        super().__init__()
        self.seed, self.num_examples, self.resampling, self.calls = seed, num_examples, resampling, 0

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
        if _drops_in_attention(func, args, kwargs):
            raise RandomNetworkError(f"dropout inside {func.__name__} cannot be fixed; set its dropout_p to 0")
        if func in _OTHER_RANDOMNESS and (func not in _WHILE_TRAINING or kwargs.get("training")):
            raise RandomNetworkError(
                f"the network calls {getattr(func, '__name__', func)} in its forward pass, so a draw would not be a "
                "fixed function; use nn.Dropout (or a posterior over weights), whose randomness can be fixed"
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
                raise RandomNetworkError(
                    f"the network calls {func.__name__} with training=True although it is in eval mode, so it is "
                    "not a fixed function; pass training=self.training, or use nn.Dropout"
                )
            return input
        self.calls += 1
        if p == 0:
            return input
        if len(input) % self.num_examples:
            raise RandomNetworkError(
                f"the network drops from a tensor of shape {tuple(input.shape)}, whose first axis is not the "
                f"{self.num_examples} examples, so a mask would not be the same for each; put the examples first"
            )
        own_axes = _DROPOUTS[func]
        shape = input.shape[1:] if own_axes is None else (input.shape[1], *(1,) * (input.ndim - 2))
        generator = generator_of(self.seed, self.calls)
        if self.resampling is not None:
            shape, generator = (len(input), *shape), self.resampling
        keep = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu") >= p
        dropped = input * (keep.to(input) / (1 - p if p < 1 else 1))
        in_place = inplace or func in (torch.dropout_, torch.feature_dropout_)
        return input.copy_(dropped) if in_place else dropped


def _drops_in_attention(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if func is F.scaled_dot_product_attention:
        return bool(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0))
    # torch passes this one's arguments on by position up to dropout_p, the eleventh.
    return func is F.multi_head_attention_forward and bool(args[10] and kwargs.get("training"))


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
        try:
            with _FixedMasks(self.seed, len(x), self.resampling):
                return self.network(x.clone())  # a layer may work in place on what it is given
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # out of memory, say
                raise
            # What torch says of a shape or dtype that does not fit starts in the middle of the network.
            given = f"x of shape {tuple(x.shape)}, {x.dtype}, on {x.device}"
            raise ValueError(f"the network cannot evaluate {given}; pass what it was trained on ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.resampling is not None:  # a generator cannot be pickled, its state can
            state["resampling"] = self.resampling.get_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.resampling is not None:
            self.resampling = torch.Generator("cpu")
            self.resampling.set_state(state["resampling"])


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
        # An nn.Sequential is a sequence too: of its layers.
        if isinstance(networks, nn.Module) or not isinstance(networks, Sequence):
            raise TypeError(f"got a {type(networks).__name__}; pass posterior.sample(num_draws), or a list of networks")
        if not networks:
            raise ValueError("no networks to draw from; pass at least one")
        if not all(isinstance(network, nn.Module) for network in networks):
            raise TypeError(f"got a list of {type(networks[0]).__name__}; each draw is a network (nn.Module)")
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
        features = trunk(x)
        outputs = (head(features if isinstance(head, FixedNetwork) else features.clone()) for head in heads)
        return torch.stack([check_logits(output, len(x)) for output in outputs])

    def to(self, *args: Any, **kwargs: Any) -> Draws:
        """Move every draw to a device or dtype, as `nn.Module.to` does; return these draws."""
        moved: dict[Tensor, Tensor] = {}  # by identity
        for network in self.networks:
            buffers = [(m, key, b) for m in network.modules() for key, b in m._buffers.items() if b is not None]
            network.to(*args, **kwargs)
            for module, key, buffer in buffers:  # torch gives every module its own copy: share it again
                module._buffers[key] = moved.setdefault(buffer, module._buffers[key])  # type: ignore[arg-type]
        return self


def shared_trunk(networks: Sequence[nn.Module]) -> tuple[nn.Module, Sequence[nn.Module]]:
    """Split draws into the part that all share and one head each: network(x) = head(trunk(x)).

    The trunk is empty (the identity) unless the draws are `FixedNetwork`s around one `nn.Sequential` that begins
    with torch's own layers, the same tensors in every draw and no dropout among them.
    """
    inner = [network.network for network in networks if isinstance(network, FixedNetwork) and not network.resampling]
    sequential = [network for network in inner if type(network) is nn.Sequential]
    hooked = any(network._forward_hooks or network._forward_pre_hooks for network in sequential)
    if hooked or len(sequential) < len(networks) or len({len(network) for network in sequential}) > 1:
        return nn.Identity(), list(networks)
    depth = 0
    while depth < len(sequential[0]) and _is_shared([network[depth] for network in sequential]):
        depth += 1
    seeds = [network.seed for network in networks if isinstance(network, FixedNetwork)]
    heads = [FixedNetwork(network[depth:], seed) for network, seed in zip(sequential, seeds, strict=True)]
    return FixedNetwork(sequential[0][:depth]), heads


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
