"""Draws: networks from a posterior, each one a fixed function."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xuqlib.checks import check_examples, check_fixed, check_logits, check_noise, is_finite
from xuqlib.device import device_of, sent
from xuqlib.inputs import as_inputs
from xuqlib.outputs import as_output
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.posteriors.kinds import unwrapped
from xuqlib.posteriors.shared import split
from xuqlib.posteriors.trial import try_out
from xuqlib.views import OfClasses, OfExamples, View, at


class Draws(Sequence[nn.Module]):
    """Fixed networks from one posterior, along an axis called `draw`.

    `draws[3]` is an ordinary module; `draws[:10]` are draws again; `draws(x)` evaluates all of them, differentiably
    in x. What the draws of an `nn.Sequential` share before its first random layer is evaluated once.

    Args:
        networks: the draws; each answers the same every time, and shares what it can with the others.
        posterior: name of the posterior, for tables and figures.
        noise_variance: variance of the targets about the mean of one draw, in squared target units (regression): one
            number, or one for each output.
        output: what kind of numbers the networks answer, a name in `xuqlib.outputs.OUTPUTS`, if that is known.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        *,
        posterior: str = "",
        noise_variance: Any = 0.0,
        output: str | None = None,
    ) -> None:
        # An nn.Sequential is a sequence too: of its layers.
        listed = [] if isinstance(networks, nn.Module) or not isinstance(networks, Sequence) else list(networks)
        if not listed or not all(isinstance(network, nn.Module) for network in listed):
            what = f"a {type(networks).__name__}; pass posterior.sample(num_draws)"
            raise TypeError(f"got {what}, or a list of at least one network (nn.Module)")
        check_noise(noise_variance)
        self.networks, self.posterior = listed, posterior
        self.noise_variance, self.output = noise_variance, output

    def __len__(self) -> int:
        return len(self.networks)

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Draws: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Draws:
        if isinstance(index, slice):
            return self._with(self.networks[index])
        return self.networks[index]

    def _with(self, networks: Sequence[nn.Module], **changed: Any) -> Draws:
        kept = {key: value for key, value in vars(self).items() if key != "networks"}
        return Draws(networks, **{**kept, **changed})

    def __repr__(self) -> str:
        return f"Draws({len(self)} of {self.posterior or type(self.networks[0]).__name__})"

    def __call__(self, x: Any, output: Any = None) -> Tensor:
        """Return the numbers that every draw answers, (draw, example, class); one number per example is class 0.

        Args:
            x: examples, as for `Inputs`.
            output: what of the answer, as for `Output`.
        """
        if output is not None or not isinstance(x, Tensor) or not x.is_floating_point():
            draws, x = self.seen(x, output, explained=False)
            return draws.read(x)
        check_examples(x)
        x = x.to(device_of(self.networks[0], x))
        parts, heads = split(self.networks), self.networks
        if parts is not None and parts.trunk:
            x, heads = FixedNetwork(nn.Sequential(*parts.trunk))(x), parts.fixed_heads()
        return stacked([check_logits(head(x.clone()), len(x)) for head in heads])

    def read(self, x: Tensor) -> Tensor:
        """Return the numbers of every draw, (draw, example, class, ...), with the places of a segmentation."""
        if not isinstance(self.networks[0], View):
            return self(x)
        return stacked([view.read(x) for view in cast(list[View], self.networks)])

    def seen(self, given: Any, output: Any = None, *, explained: bool = True) -> tuple[Draws, Tensor]:
        """Return these draws as maps from one floating tensor x, (N, ...), to numbers (N, K), and that x.

        The draws are tried out first. They are these themselves where their input is one tensor, and their answer one.

        Args:
            given, output: see `Inputs` and `Output`.
            explained: False where x is not to change: token ids need no embedding then, and places are not summed.

        Raises:
            TypeError, ValueError: as for `Inputs`, `Output` and `try_out`.
        """
        if isinstance(self.networks[0], OfExamples):
            return self, given
        inputs, read_as = as_inputs(given), as_output(output, self.output)
        distinct = {id(inner(network)): network for network in reversed(self.networks)}.values()
        first = {_look_of(network): network for network in distinct}.values()
        where = device_of(self.networks[0], inputs.x)
        if inputs.is_one_tensor and read_as.is_plain:

            def check(answer: Any) -> None:
                read_as.settled(read_as.read(answer, 2), inputs.num_examples)

            ends = inputs.x[:: max(1, inputs.num_examples - 1)].to(where)  # the first and the last are tried
            answers = [try_out(network, ends, check) for network in first]
            if all(answer is None or isinstance(answer, Tensor) for answer in answers):
                _check_alike(first, ends)
                return self._with(self.networks, output=read_as.kind), inputs.x
        inputs = inputs.changed(lambda value: value.to(where))
        inputs = inputs.with_layer(self.networks[0]) if explained else inputs
        for network in first:
            try_out(View(network, inputs, read_as), inputs.x)
        _check_alike([View(network, inputs.at(slice(1)), read_as) for network in first], inputs.x)
        one = View(self.networks[0], inputs.at(slice(1)), read_as)
        with torch.no_grad():
            read_as = read_as.settled(one.read(one.inputs.x), inputs.num_examples)
        views = [View(network, inputs, read_as) for network in self.networks]
        seen = self._with(views, output=read_as.kind)
        if explained and read_as.kind == "segmentation" and read_as.where is None:
            areas = seen._areas(inputs.x)
            for view in views:
                view.output = replace(read_as, where=areas)
        return seen, inputs.x

    def at(self, examples: slice) -> Draws:
        """Return these draws for some of the examples that they are seen with; see `seen`."""
        return self._with([at(network, examples) for network in self.networks])

    def in_rows(self, num_examples: int, copies: int, at_once: int) -> Iterator[tuple[Draws, Tensor, Tensor]]:
        """Yield up to `at_once` rows, copies of examples, at a time: draws for them, and example and copy of each."""
        if not isinstance(self.networks[0], OfExamples):
            for row in torch.arange(num_examples * copies).split(at_once):
                yield self, row // copies, row % copies
            return
        for examples in torch.arange(num_examples).split(at_once):  # repeated whole, as such draws want them
            seen = self.at(slice(int(examples[0]), int(examples[-1]) + 1))
            for some in torch.arange(copies).split(max(1, at_once // len(examples))):
                yield seen, examples.repeat(len(some)), some.repeat_interleave(len(examples))

    def of_classes(self) -> Draws:
        """Return draws that were seen as maps to logits of classes; see `Output.of_classes`.

        Raises:
            ValueError: their output is no classes.
        """
        views = cast(list[View], self.networks)
        views[0].output.check_classes()
        return self._with([OfClasses(view) for view in views], output="logits")

    @torch.no_grad()
    def _areas(self, x: Tensor) -> Tensor:
        """Where each class of a segmentation is the most probable in the mean over draws, (N, K, ...)."""
        masks = []
        for example in range(len(x)):
            some = slice(example, example + 1)
            logits = self.at(some).read(x[some])  # (S, 1, K, ...)
            probs = (logits.softmax(2) if logits.shape[2] > 1 else logits.sigmoid()).mean(0)
            masks.append(probs > 0.5 if logits.shape[2] == 1 else probs == probs.amax(1, keepdim=True))
        return torch.cat(masks)

    def to(self, *args: Any, **kwargs: Any) -> Draws:
        """Move every draw to a device or dtype, as `nn.Module.to` does; return these draws."""
        moved: dict[int, tuple[Any, Any]] = {}  # buffers that draws share, before and after
        for network in self.networks:
            held = [(m._buffers, name, m._buffers[name]) for m in network.modules() for name in m._buffers]
            for buffers, name, old in held:
                buffers[name] = moved.get(id(old), (old, old))[1]
            network.to(*args, **kwargs)
            moved |= {id(old): (old, buffers[name]) for buffers, name, old in held if id(old) not in moved}
        return self

    @torch.inference_mode(False)  # or the copies could never be differentiated
    def on(self, where: torch.device) -> Draws:
        """Return copies of these draws on a device, which share what these share; themselves if they are there."""
        where = torch.empty(0, device=where).device  # of "cuda", its number
        networks = {id(network): network for network in map(inner, self.networks)}.values()
        if all(t.device == where for network in networks for t in chain(network.parameters(), network.buffers())):
            return self
        weights = {id(weight): weight for network in networks for weight in network.parameters()}
        memo: dict[int, Any] = {k: nn.Parameter(sent(w.detach(), where), w.requires_grad) for k, w in weights.items()}
        fixed = (each for network in self.networks for each in network.modules() if isinstance(each, FixedNetwork))
        memo |= {id(each.plans): each.plans for each in fixed}
        with _Copying(where):
            copies = [copy.deepcopy(network, memo) for network in self.networks]
        for layer in {module for network in copies for module in network.modules() if isinstance(module, nn.RNNBase)}:
            layer.flatten_parameters()  # as cuDNN wants them
        return self._with(copies)


def fixed_draws(
    draws: Draws | Sequence[nn.Module], x: Any, output: Any = None, *, explained: bool = True
) -> tuple[Draws, Tensor, torch.device]:
    """Return draws, or a list of networks, as maps from x, that x, and the device of the draws; see `Draws.seen`.

    Raises:
        TypeError, ValueError: as for `Draws` and `Draws.seen`; a network in training mode.
    """
    draws, x = (draws if isinstance(draws, Draws) else Draws(draws)).seen(x, output, explained=explained)
    for network in {id(inner(network)): network for network in draws}.values():
        check_fixed(network)
    return draws, x, device_of(draws[0], x)


def inner(network: nn.Module) -> nn.Module:
    """The network that a draw fixes, which draws that differ in their dropout masks alone have in common."""
    network = network.network if isinstance(network, View) else network
    return network.network if isinstance(network, FixedNetwork) else network


def stacked(outputs: Sequence[Tensor]) -> Tensor:
    """Put what the draws answer along a first axis; refuse answers of several shapes, dtypes or devices."""
    looks = sorted({f"{tuple(output.shape)} {output.dtype} on {output.device}" for output in outputs})
    if len(looks) > 1:
        raise ValueError(f"the draws answer {' and '.join(looks)}; pass networks of one task, dtype and device")
    return torch.stack(list(outputs))


def _look_of(network: nn.Module) -> tuple[Any, ...]:
    """What decides how a network's answers look: its layers, and the shapes of their weights."""
    return (*map(type, network.modules()), *(parameter.shape for parameter in network.parameters()))


@torch.no_grad()
def _check_alike(networks: Collection[nn.Module], x: Tensor) -> None:
    """Refuse networks that answer other numbers of classes."""
    if len(networks) > 1:
        stacked([check_logits(network(x[:1]), 1) for network in networks])


class _Copying(TorchFunctionMode):
    """Lets a deep copy hold what a network keeps of its last forward pass, such as the features for a CAM.

    Args:
        where: a device to which tensors are copied; None leaves them where they are.
    """

    def __init__(self, where: torch.device | None = None) -> None:
        super().__init__()
        self.where = where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is Tensor.__deepcopy__ and self.where is not None and id(args[0]) not in args[1]:
            args[1][id(args[0])] = sent(args[0].detach(), self.where).requires_grad_(args[0].requires_grad)
        elif func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


@torch.inference_mode(False)  # or the copies could never be differentiated
def trainable_copy(network: nn.Module) -> nn.Module:
    """Copy a network with its own tensors, and without the wrappers in it.

    Raises:
        TypeError: it holds what cannot be copied.
    """
    memo: dict[int, Any] = {}
    with _Copying():
        for name, module in reversed(list(network.named_modules())):  # what is inside comes first
            try:
                memo[id(module)] = copy.deepcopy(unwrapped(module), memo)
            except TypeError as error:
                raise TypeError(
                    f"cannot copy {type(network).__name__} because of an attribute of its layer {name or '(itself)'} "
                    f"({error}); keep that outside of the network, or make it when needed"
                ) from error
    return cast(nn.Module, memo[id(network)])


def detached_copy(network: nn.Module) -> nn.Module:
    """Copy a network with its own, frozen tensors, in eval mode.

    Raises:
        TypeError: it holds what cannot be copied.
        ValueError: a weight is NaN or infinite.
    """
    for name, weight in network.named_parameters():
        if not is_finite(weight.detach()):
            raise ValueError(f"{type(network).__name__} holds NaN or infinite weights in {name!r}; train it again")
    return trainable_copy(network).eval().requires_grad_(False)


def copy_with(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy the structure of a frozen network, sharing every tensor except those given in `weights`."""
    fresh = {network.get_parameter(name): value for name, value in weights.items()}
    return rebuilt(network, {old: nn.Parameter(value.to(old), requires_grad=False) for old, value in fresh.items()})


def rebuilt(network: nn.Module, parts: Mapping[Any, Any]) -> nn.Module:
    """Copy the modules that lead to some tensors or layers, with others in their place; all else is shared.

    Args:
        parts: what takes the place of a tensor or layer, by that.
    """
    replaced: dict[int, Any] = {id(old): new for old, new in parts.items()}
    # A user's module may hold others in a list or a closure, where only a deep copy finds them.
    kept = [
        module
        for module in network.modules()
        if all(type(inside).__module__.startswith(("torch.nn.modules", "xuqlib.")) for inside in module.modules())
        and replaced.keys().isdisjoint(map(id, (*module.parameters(), *module.modules())))
    ]
    memo = {id(part): part for part in (*network.parameters(), *network.buffers(), *kept)}
    return copy.deepcopy(network, memo | replaced)
