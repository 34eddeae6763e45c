"""Fixing a network: what makes its dropout, and so its answer, the same in every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xuqlib.checks import check_logits

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


class FixedMasks(TorchFunctionMode):
    """Replace the dropout calls of one forward pass by multiplication with masks that the seed fixes.

    Masks are keyed by the order of calls, so dropout modules, functional dropout and a module that is called twice
    are all served alike. With `seed=None` nothing may be random: dropout that is on is refused.
    """

    def __init__(self, seed: int | None, num_examples: int, resampling: torch.Generator | None = None) -> None:
        super().__init__()
        self.seed, self.num_examples, self.resampling, self.calls = seed, num_examples, resampling, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
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
        self, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **old: Any
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
        shape = tuple(input.shape[1:]) if own_axes is None else (input.shape[1], *(1,) * (input.ndim - 2))
        own = (len(input), *shape)  # a mask for each row
        keep = unit_mask(self.seed, self.calls, shape, p) if self.resampling is None else _kept(own, p, self.resampling)
        dropped = input * (keep.to(input) / (1 - p if p < 1 else 1))
        in_place = inplace or func in (torch.dropout_, torch.feature_dropout_)
        return input.copy_(dropped) if in_place else dropped


def unit_mask(seed: int, call: int, shape: Sequence[int], p: float) -> Tensor:
    """Which units the `call`-th dropout call of a draw keeps: true or false, drawn on the CPU for every device."""
    return _kept(shape, p, generator_of(seed, call))


def _kept(shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu") >= p


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
        self.resampling = torch.Generator().manual_seed(seed).get_state() if resampled and seed is not None else None
        self.training = False
        if network.training:
            network.eval()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor)]
        x, generator = tensors[0], None
        if self.resampling is not None:
            generator = torch.Generator()
            generator.set_state(self.resampling)
        try:
            with FixedMasks(self.seed, len(x), generator):
                # A layer may work in place on what it is given.
                copies = [value.clone() if isinstance(value, Tensor) else value for value in inputs]
                return self.network(
                    *copies, **{k: value.clone() if isinstance(value, Tensor) else value for k, value in named.items()}
                )
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # out of memory, say
                raise
            # What torch says of a shape or dtype that does not fit starts in the middle of the network.
            given = f"x of shape {tuple(x.shape)}, {x.dtype}, on {x.device}"
            raise ValueError(f"the network cannot evaluate {given}; pass what it was trained on ({error})") from error
        finally:
            if generator is not None:
                self.resampling = generator.get_state()  # and not the generator itself, which cannot be pickled


@torch.no_grad()
def can_evaluate(network: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a network gives logits of x. Only to be asked where evaluating the network itself comes next if not."""
    try:
        check_logits(network(x.clone()), len(x))
    except Exception:  # a user's network raises what it likes, and will raise it again
        return False
    return True
