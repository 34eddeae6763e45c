"""Fixing a network: what makes its dropout, and so its answer, the same in every call."""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from xuqlib.device import sent
from xuqlib.posteriors import unrolled
from xuqlib.posteriors.kinds import drops_by_itself

_DROPOUTS: set[Callable[..., Any]] = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
    *(torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
    *(torch.dropout_, torch.feature_dropout_, torch.alpha_dropout_, torch.feature_alpha_dropout_),
}
# Random too, although torch does not mark them so; some of them unless they are given their numbers.
_UNMARKED = {"_standard_gamma", "_sample_dirichlet", "binomial", "random_", "gumbel_softmax", "rrelu", "rrelu_"}
_UNMARKED |= {"kaiming_normal_", "kaiming_uniform_", "fractional_max_pool2d", "fractional_max_pool3d"}
# What a SELU gives far below 0, which `AlphaDropout` puts in place of what it drops.
_SELU_AT_MINUS_INFINITY = -1.7580993408473766


def seed_of(seed: int, *path: int) -> int:
    """Mix a seed with the numbers of a draw and of a layer into one 63-bit seed; far apart for neighbours."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1, np.uint64)[0] >> 1)


class SeedOn(NamedTuple):
    """A seed whose numbers a device's own generator draws: the same on every device of its kind, and on no other."""

    number: int
    device: str


Seed = int | SeedOn


def generator_of(seed: Seed, *path: int) -> torch.Generator:
    """Return a generator on the CPU, so that one seed means one draw on every device; or on that of a `SeedOn`."""
    number, where = seed if isinstance(seed, SeedOn) else (seed, "cpu")
    return torch.Generator(where).manual_seed(seed_of(number, *path))


class RandomNetworkError(RuntimeError):
    """A network whose answer would change from call to call, in a way that cannot be fixed."""


class Call(NamedTuple):
    """One of a network's random calls: which units have a number of their own, and how often one is dropped."""

    units: tuple[int, ...]  # broadcastable to what is dropped from: 1 along the axis of the examples, which share it
    axis: int | None  # of the examples; None where there is none, as in a weight
    rate: float | None  # None asks for the numbers in [0, 1) themselves


class FixedMasks(TorchFunctionMode):
    """Replace the random calls of one forward pass by masks that the seed fixes.

    Masks are keyed by the order of calls, so dropout modules, functional dropout, attention, recurrent layers and a
    module that is called twice are all served alike. With `seed=None` nothing may be random: dropout that is on is
    refused.

    Args:
        seed: of one draw.
        num_examples: in the batch.
        plan: the calls to come, as `Plans` finds them.
        resampling: gives new masks for every example.
    """

    def __init__(
        self, seed: Seed | None, num_examples: int, plan: Sequence[Call], resampling: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.seed, self.num_examples, self.resampling, self.plan, self.calls = seed, num_examples, resampling, plan, 0
        self.fold: Fold | None = getattr(_here, "fold", None)

    def __enter__(self) -> FixedMasks:
        _here.depth = getattr(_here, "depth", 0) + (self.seed is not None)
        super().__enter__()
        return self

    def __exit__(self, kind: Any, *error: Any) -> None:
        super().__exit__(kind, *error)
        _here.depth -= self.seed is not None
        if kind is None and self.calls != len(self.plan):
            raise RandomNetworkError(f"{_OTHER_CALLS}: {self.calls} times, not {len(self.plan)} times; {_INSTEAD}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return self._dropout(func, *args, **kwargs)
        written_out = unrolled.KNOWN.get(func)
        if written_out is not None:
            rate, is_on = unrolled.dropout_inside(func, args, kwargs)
            if rate > 0 and self.seed is not None:
                return written_out(self._dropped, func, *args, **kwargs)
            if self.fold is not None and any(number <= self.calls for number in self.fold.known):
                self.fold.attends = True
            is_random = rate > 0 and is_on
        elif self.seed is not None and func is torch.rand and not {"generator", "out"} & set(kwargs):
            like = torch.empty(*args, **kwargs)
            return cast(Tensor, self._chance(like, None)).to(like).expand_as(like).clone()
        elif self.seed is not None and func is Tensor.bernoulli_ and len(args) == 2 and isinstance(args[1], float):
            keep = self._chance(args[0], 1 - args[1])
            full = torch.ones_like(args[0]) if keep is None else torch.zeros_like(args[0]) + keep
            return self._written(args[0], full)
        else:
            is_off = kwargs.get("training") is False or kwargs.get("_random_samples") is not None
            is_random = _is_random(func) and not is_off
        if is_random:
            raise RandomNetworkError(
                f"the network calls {func.__name__} in its forward pass, so a draw would not be a fixed function; use "
                "nn.Dropout (or a posterior over weights), whose randomness can be fixed"
            )
        return func(*args, **kwargs)

    def _dropout(
        self, func: Any, input: Tensor, p: float, training: bool = True, inplace: bool = False, **old: Any
    ) -> Tensor:
        if self.seed is None:
            if old.get("train", training) and p > 0:  # torch.dropout's name for it
                raise RandomNetworkError(
                    f"the network calls {func.__name__} with training=True although it is in eval mode, so it is "
                    "not a fixed function; pass training=self.training, or use nn.Dropout"
                )
            return input
        by_channel = func.__name__.startswith(("feature", "dropout1", "dropout2", "dropout3"))
        dropped = self._dropped(input, p, by_channel, "alpha" in func.__name__)
        in_place = (inplace or func.__name__.endswith("_")) and p > 0
        return self._written(input, dropped) if in_place else dropped

    def _written(self, tensor: Tensor, values: Tensor) -> Tensor:
        """Write into a tensor; side by side, draws share it before their first mask, and it cannot hold what each does.

        Who reads it again there gets NaN, by which the comparison of a draw with itself knows. With a graph it stays:
        what was saved for a backward pass is not harmed.
        """
        if self.fold is None:
            return tensor.copy_(values)
        if not torch.is_grad_enabled():
            tensor.fill_(torch.nan)
        return values

    def _dropped(self, input: Tensor, p: float, by_channel: bool = False, is_alpha: bool = False) -> Tensor:
        keep = self._chance(input, p, by_channel)
        if keep is None:
            return input
        if not is_alpha or p == 1:
            return input * (keep.to(input) / (1 - p if p < 1 else 1))
        # Klambauer et al. 2017, section "new dropout technique": mean and variance stay as they are.
        low = _SELU_AT_MINUS_INFINITY
        scale = ((1 - p) * (1 + p * low**2)) ** -0.5
        return (torch.where(keep, input, low) - p * low) * scale

    def _chance(self, input: Tensor, rate: float | None, by_channel: bool = False) -> Tensor | None:
        """Which units of `input` are kept, broadcastable to it; None for all of them."""
        self.calls += 1
        call = self._call(input, rate, by_channel)
        return None if rate == 0 else self._numbers(call, input)

    def _call(self, input: Tensor, rate: float | None, by_channel: bool) -> Call:
        planned = self.plan[self.calls - 1 : self.calls]
        axis = planned[0].axis if planned else 0
        call = Call(_units(input, axis, by_channel), axis, rate)
        if planned != [call] or (axis is not None and input.shape[axis] % self.num_examples):
            raise RandomNetworkError(
                f"{_OTHER_CALLS}: from a tensor of shape {tuple(input.shape)} for {self.num_examples} examples in its "
                f"call number {self.calls}; {_INSTEAD}"
            )
        return call

    def _numbers(self, call: Call, input: Tensor) -> Tensor:
        if self.fold is not None:
            return self.fold.numbers(self.calls, call, input.device)
        if self.resampling is None:
            return unit_mask(cast(Seed, self.seed), self.calls, call.units, call.rate, input.device)
        own = list(call.units)
        if call.axis is not None:
            own[call.axis] = input.shape[call.axis]
        return _kept(own, call.rate, self.resampling)


_here = threading.local()
_CPU = torch.device("cpu")
_OTHER_CALLS = "the network drops otherwise than when it was tried, so a draw would not be a fixed function"
_INSTEAD = "let what it drops from not depend on the batch"


class Fold:
    """Masks of several draws that share a network, of which `torch.func.vmap` sees one for each `index`.

    Attributes:
        attends: whether behind the first mask there is attention that for one draw by itself is one fused operation.
    """

    def __init__(self, seeds: Sequence[Seed | None]) -> None:
        self.seeds, self.index = seeds, torch.tensor(0)
        self.known: dict[int, Tensor] = {}
        self.attends = False

    @contextmanager
    def at(self, index: Tensor) -> Iterator[None]:
        """Evaluate draws with the masks of the draw number `index`, instead of their own."""
        self.index, before = index, getattr(_here, "fold", None)
        _here.fold = self
        try:
            yield
        finally:
            _here.fold = before

    def numbers(self, number: int, call: Call, device: torch.device) -> Tensor:
        """Return what the random call of this number keeps, of one draw; all draws' together are kept."""
        if number not in self.known:
            each = [unit_mask(cast(Seed, seed), number, call.units, call.rate, device) for seed in self.seeds]
            self.known[number] = torch.stack(each)
        return self.known[number][self.index]


class _WhileDrawn:
    """The `training` of a module that drops by itself: true while masks are fixed, and false elsewhere."""

    def __bool__(self) -> bool:
        return getattr(_here, "depth", 0) > 0

    def __reduce__(self) -> str:
        return "WHILE_DRAWN"


WHILE_DRAWN = _WhileDrawn()


def _units(input: Tensor, axis: int | None, by_channel: bool) -> tuple[int, ...]:
    return tuple(1 if i == axis or (by_channel and i > 1) else size for i, size in enumerate(input.shape))


def unit_mask(seed: Seed, call: int, shape: Sequence[int], p: float | None, where: torch.device = _CPU) -> Tensor:
    """Which units the `call`-th random call of a draw keeps: true or false; numbers in [0, 1) where p is None.

    They are drawn on the CPU for every device, or on that of a `SeedOn`. What is not on the CPU alone is kept, so that
    it is drawn and sent once.
    """
    if where.type == "cpu" and not isinstance(seed, SeedOn):
        return _kept(shape, p, generator_of(seed, call))
    with torch._C._DisableFuncTorch():  # or the vmap that asks first would keep what others are to get
        return _on_device(seed, call, tuple(shape), p, where)


@functools.lru_cache(1024)
@torch.inference_mode(False)
def _on_device(seed: Seed, call: int, shape: tuple[int, ...], p: float | None, where: torch.device) -> Tensor:
    return sent(_kept(shape, p, generator_of(seed, call)), where)


def _kept(shape: Sequence[int], rate: float | None, generator: torch.Generator) -> Tensor:
    numbers = torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device=generator.device)
    return numbers if rate is None else numbers >= rate


@functools.cache
def _is_random(func: Any) -> bool:
    name = getattr(func, "__name__", "").partition(".")[0]  # of a function, a method, or an overload of torch.ops.aten
    marked = None if name.startswith("_") else getattr(torch.ops.aten, name, None)
    overloads = [getattr(marked, overload) for overload in marked.overloads()] if marked else []
    return name in _UNMARKED or any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)


class _Tried(FixedMasks):
    """A forward pass that notes its random calls, and drops nothing."""

    def __init__(self, num_examples: int) -> None:
        self.seen: list[_Seen] = []
        super().__init__(0, num_examples, cast(Any, self.seen))  # of which none is amiss

    def _call(self, input: Tensor, rate: float | None, by_channel: bool) -> Call:
        if _is_recomputed():
            raise RandomNetworkError(
                "the network drops inside torch.utils.checkpoint, which evaluates it again in the backward pass, where "
                "masks are not fixed; switch checkpointing off"
            )
        self.seen.append((torch.empty(input.shape, device="meta"), rate, by_channel))
        return Call((), None, rate)

    def _numbers(self, call: Call, input: Tensor) -> Tensor:
        return torch.tensor(0.5 if call.rate is None else True)


def _is_recomputed() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != checkpoint.__file__:
        frame = frame.f_back
    return frame is not None


class Plans:
    """Where the examples are in what a network drops from: found by trying, once for all draws that share the network.

    A network is evaluated on two and on three copies of an example. The axis that grows with them is the examples';
    one that is a multiple of their number, as in (N * T, features), holds rows that share a mask; where none grows,
    one mask serves the whole tensor.
    """

    def __init__(self) -> None:
        self._plans: dict[str, list[Call]] = {}
        self.of_network: nn.Module | None = None  # that was put into eval mode last
        # By the shape and kind of evaluation: why vmap refuses, "" where it does not; and whether a `Fold` attends.
        self.known_of_vmap: dict[Any, tuple[str, bool]] = {}

    def of(self, network: nn.Module, given: Any) -> list[Call]:
        """Return the calls of a network by trying it, or as they were when inputs of these shapes came before.

        Raises:
            RandomNetworkError: a call, or the number of calls, depends on the batch in a way that cannot be fixed.
        """
        key = repr(mapped(lambda tensor: (tensor.shape[1:], tensor.dtype), given))
        with _TRYING:
            if key not in self._plans:
                if not self._plans:
                    _switch_on(network, given)
                two, three = (_answer(network, given, count)[1] for count in (2, 3))
                if len(two) != len(three):
                    raise RandomNetworkError(f"{_OTHER_CALLS}: {len(three)} times, not {len(two)} times; {_INSTEAD}")
                self._plans[key] = [_planned(*pair) for pair in zip(two, three, strict=True)]
        return self._plans[key]


_TRYING = threading.RLock()
_Seen = tuple[Tensor, float | None, bool]


def _answer(network: nn.Module, given: Any, count: int) -> tuple[Any, list[_Seen]]:
    """Evaluate a network on `count` copies of the first example: what it answers, and its random calls."""
    num_examples = count_examples(given)

    def copies(tensor: Tensor) -> Tensor:
        is_of_examples = tensor.ndim > 0 and len(tensor) == num_examples
        return tensor.detach()[:1].repeat(count, *(1,) * (tensor.ndim - 1)) if is_of_examples else tensor.clone()

    inputs, named = mapped(copies, given)
    tried = _Tried(count)
    with torch.no_grad(), _without_hooks(network), tried:
        answer = network(*inputs, **named)
    return answer, tried.seen


@contextmanager
def _without_hooks(network: nn.Module) -> Iterator[None]:
    """Keep what only tries a network from the user's hooks, which may count what they see; those of the library that a
    layer is from are part of what it does."""
    hooked = [(module, module._forward_pre_hooks, module._forward_hooks) for module in network.modules()]
    for module, *both in hooked:
        library = f"{type(module).__module__.partition('.')[0]}."
        module._forward_pre_hooks, module._forward_hooks = (
            OrderedDict((key, hook) for key, hook in hooks.items() if f"{hook.__module__}".startswith(library))
            for hooks in both
        )
    try:
        yield
    finally:
        for module, before, behind in hooked:
            module._forward_pre_hooks, module._forward_hooks = before, behind


def _planned(two: _Seen, three: _Seen) -> Call:
    (a, rate, by_channel), (b, *_) = two, three
    growing = [axis for axis, sizes in enumerate(zip(a.shape, b.shape, strict=False)) if sizes[0] != sizes[1]]
    fits = a.ndim == b.ndim and all(3 * a.shape[axis] == 2 * b.shape[axis] for axis in growing)
    if len(growing) > 1 or not fits:
        raise RandomNetworkError(
            f"the network drops from a tensor of shape {tuple(a.shape)} for 2 examples and {tuple(b.shape)} for 3, so "
            "no one axis of it is the examples, and a mask would not be the same for each; drop from each example"
        )
    axis = growing[0] if growing else None
    return Call(_units(a, axis, by_channel), axis, rate)


def _switch_on(network: nn.Module, given: Any) -> None:
    """Let modules that drop by themselves while they train do so in draws, if the network still answers in one form.

    An attention that calls `f(x, dropout_p=self.p if self.training else 0)` would drop nothing in eval mode.
    """
    names = {
        name or type(module).__name__: module for name, module in network.named_modules() if drops_by_itself(module)
    }
    if not names:
        return
    quiet = _form(network, given)
    for module in names.values():
        module.training = cast(bool, WHILE_DRAWN)
    try:
        is_same = _form(network, given) == quiet
    except Exception:  # a user's network raises what it likes, now that it believes to be trained
        is_same = False
    if not is_same:
        for module in names.values():
            module.training = False
        warnings.warn(
            f"with {', '.join(names)} in training mode the network fails, or its answer has another form, so the "
            "dropout that this switches on stays off in every draw",
            stacklevel=2,
        )


def _form(network: nn.Module, given: Any) -> Any:
    answer = _answer(network, given, 2)[0]
    return type(answer), mapped(lambda tensor: tensor.shape, answer, of_others=type)


def mapped(function: Callable[[Tensor], Any], value: Any, of_others: Callable[[Any], Any] | None = None) -> Any:
    """Return `value`, a tensor or tuples, lists and dicts of them, with `function` of each tensor in its place.

    What is none of these stays as it is, or becomes `of_others` of it.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(function, part, of_others) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [mapped(function, part, of_others) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value if of_others is None else of_others(value)


def tensors_in(value: Any) -> list[Tensor]:
    """List the tensors in a network's inputs.

    Raises:
        TypeError: there is none with an axis of examples.
    """
    tensors: list[Tensor] = []
    mapped(tensors.append, value)
    if not any(tensor.ndim for tensor in tensors):
        raise TypeError("a draw was given no tensor with an axis of examples; pass its inputs as tensors (N, ...)")
    return tensors


def count_examples(given: Any) -> int:
    """Return the length of the first axis of the first tensor among a network's inputs."""
    return next(len(tensor) for tensor in tensors_in(given) if tensor.ndim)


@contextmanager
def naming_inputs(*given: Any) -> Iterator[None]:
    """Say which inputs a network cannot evaluate: torch's word of a shape or dtype starts in the middle of it."""
    try:
        yield
    except (RuntimeError, IndexError) as error:  # a number that is none of an embedding, say
        if type(error) not in (RuntimeError, IndexError):  # out of memory, say
            raise
        what = " and ".join(f"x of shape {tuple(x.shape)}, {x.dtype}, on {x.device}" for x in tensors_in(given))
        raise ValueError(f"the network cannot evaluate {what}; pass what it was trained on ({error})") from error


class FixedNetwork(nn.Module):
    """One draw: a network in eval mode whose randomness is fixed.

    Args:
        network: maps x (N, ...), or several inputs, to logits (N, C).
        seed: fixes its dropout masks, one per unit, the same for every example; None for a network without any.
        resampled: draw new masks for every row of every call instead. Only to show what goes wrong then.
        plans: of the network, if other draws share it.
    """

    def __init__(
        self, network: nn.Module, seed: Seed | None = None, *, resampled: bool = False, plans: Plans | None = None
    ) -> None:
        super().__init__()
        self.network, self.seed, self.plans = network, seed, plans or Plans()
        self.resampling = (
            torch.Generator().manual_seed(seed).get_state() if resampled and isinstance(seed, int) else None
        )
        self.training = False
        if self.plans.of_network is not network:  # else another draw has done it
            self.plans.of_network = network
            for module in network.modules():  # not eval(): the layers of other draws may be in a new container
                if cast(Any, module.training) is not WHILE_DRAWN:
                    module.training = False

    def train(self, mode: bool = True) -> FixedNetwork:
        """Stay as it is: a draw has one mode."""
        return self

    def forward(self, *inputs: Any, **named: Any) -> Any:
        given, generator = (inputs, named), None
        if self.resampling is not None:
            generator = torch.Generator()
            generator.set_state(self.resampling)
        with naming_inputs(given):
            plan = [] if self.seed is None else self.plans.of(self.network, given)
            with FixedMasks(self.seed, count_examples(given), plan, generator):
                copies, named_copies = mapped(Tensor.clone, given)  # a layer may work in place on what it is given
                answer = self.network(*copies, **named_copies)
        if generator is not None:
            self.resampling = generator.get_state()  # and not the generator itself, which cannot be pickled
        return answer
