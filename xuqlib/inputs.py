"""Inputs: what a network is given, and which part of it is explained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from xuqlib.checks import check_count, check_examples, is_finite

LABELS = {"labels", "label", "target", "targets"}  # what loaders give beside the inputs


class Inputs:
    """Examples as a network takes them: one tensor `x` that is explained, among others that are passed along.

    Token ids are explained at their embedding. There, x is a switch per token, (N, T): at 1 the network sees the
    token's embedding, at 0 that of no token, on a straight line between. A slope with respect to it is the sum over
    features of slope times embedding, and Integrated Gradients from 0 are those at the embedding, summed over features.

    Args:
        given: a tensor (N, ...) of any rank; a tuple of what the network takes by position, or a mapping of what it
            takes by name (as tokenizers give); `Examples`; or a DataLoader, or another iterable of batches (inputs,
            target), in a fixed order. All tensors have the N examples first; what else there is passes along.
        wrt: what is explained: a position, a name, or the name of the layer that embeds token ids. By default the
            `input_ids`, else the first floating tensor of two axes or more, else the first token ids.
        absent_id: token whose embedding stands for no token, such as that of a mask; a vector of zeros by default.

    Raises:
        TypeError, ValueError: nothing that could be explained; tensors that disagree about N, or hold NaN; batches in
            an order that changes.

    Source of the switch: derived here; equal to Integrated Gradients at the embedding, arXiv 1703.01365, section 6.
    """

    def __init__(self, given: Any, *, wrt: str | int | None = None, absent_id: int | None = None) -> None:
        self.values = _by_name(given)
        self.layer: str | None = None
        self.dtype = torch.float32  # of the switches
        self.absent_id = None if absent_id is None else check_count(absent_id, 0, "absent_id")
        tensors = {key: value for key, value in self.values.items() if isinstance(value, Tensor) and value.dim()}
        floating = [key for key, value in tensors.items() if value.is_floating_point() and value.dim() > 1]
        ids = [key for key, value in tensors.items() if _are_ids(value)]
        if wrt is not None and (not isinstance(wrt, str | int) or wrt not in self.values):
            if not isinstance(wrt, str) or not ids:
                raise ValueError(f"wrt is {wrt!r}; the inputs are {list(self.values)}, or name a layer of token ids")
            self.layer, floating = wrt, []
        first = ["input_ids"] if "input_ids" in ids else []  # beside which a mask may be floating
        self.explained: Any = wrt if wrt in self.values else [*first, *floating, *ids, *self.values, None][0]
        value: Any = self.values.get(self.explained)
        self.are_tokens = isinstance(value, Tensor) and _are_ids(value)
        if not self.are_tokens:
            check_examples(value)
        self.num_examples = len(value)
        for key, tensor in tensors.items():
            if len(tensor) != self.num_examples:
                raise ValueError(
                    f"input {key!r} has shape {tuple(tensor.shape)} but there are {self.num_examples} examples; every "
                    "tensor has the examples first, so give what all share to the network itself (functools.partial)"
                )
            if tensor.is_floating_point() and not is_finite(tensor):
                raise ValueError(f"input {key!r} holds NaN or infinite values; drop or fill them before explaining")

    @property
    def is_one_tensor(self) -> bool:
        """Whether a network is given nothing but x."""
        return list(self.values) == [0] and not self.are_tokens

    @property
    def x(self) -> Tensor:
        """What is explained, floating, (N, ...); for token ids the switches, all 1, (N, T)."""
        value: Tensor = self.values[self.explained]
        return torch.ones(value.shape, dtype=self.dtype, device=value.device) if self.are_tokens else value

    def at(self, examples: slice) -> Inputs:
        """Return some of the examples."""
        return self.changed(lambda value: value[examples])

    def changed(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the same with every tensor changed."""
        changed = copy.copy(self)
        changed.values = {k: change(v) if isinstance(v, Tensor) and v.dim() else v for k, v in self.values.items()}
        changed.num_examples = len(changed.values[self.explained])
        return changed

    def call(self, network: Callable[..., Any], x: Tensor, copies: int = 1) -> Any:
        """Return a network's answer with x in its place, for the N examples repeated whole `copies` times."""
        repeated = self if copies == 1 else self.changed(lambda value: value.repeat(copies, *[1] * (value.dim() - 1)))
        values = repeated.values if self.are_tokens else {**repeated.values, self.explained: x}
        args = [value for key, value in values.items() if isinstance(key, int)]
        named = {key: value for key, value in values.items() if isinstance(key, str)}
        if not self.are_tokens or self.layer is None:
            return network(*args, **named)
        with self._switched(network, x):
            return network(*args, **named)

    @contextmanager
    def _switched(self, network: Any, x: Tensor) -> Iterator[None]:
        layer = network.get_submodule(self.layer)
        absent = 0 if self.absent_id is None else cast(nn.Embedding, layer).weight[self.absent_id]

        def switch(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return absent + x.to(output)[..., None] * (output - absent) if output.shape[:-1] == x.shape else output

        handle = layer.register_forward_hook(switch)
        try:
            yield
        finally:
            handle.remove()

    def with_layer(self, network: nn.Module) -> Inputs:
        """Return the same with the layer that embeds the token ids, if they are explained: the one that is given them.

        Raises:
            ValueError: no such layer, or more than one.
        """
        if not self.are_tokens:
            return self
        layers, named, ids = dict(network.named_modules()), copy.copy(self), self.values[self.explained][:1]
        # Of the network that a draw fixes, or of a network by itself.
        found = {name for name in (self.layer, f"network.{self.layer}") if name in layers}
        if self.layer is None:
            given: list[nn.Module] = []

            def note(module: nn.Module, inputs: Any) -> None:
                if isinstance(module, nn.Embedding) and torch.equal(inputs[0], ids):
                    given.append(module)

            with register_module_forward_pre_hook(note), torch.no_grad():
                self.at(slice(1)).call(network, self.x[:1])
            found = {name for name, layer in layers.items() if any(layer is each for each in given)}
        if len(found) != 1:
            embeddings = [name for name, layer in layers.items() if isinstance(layer, nn.Embedding)]
            wanted = "no one layer" if self.layer is None else f"no layer {self.layer!r}"
            raise ValueError(
                f"x is whole numbers, read as token ids, but {wanted} embeds them; pass floating point examples, or "
                f"name the layer by Inputs(x, wrt=...): {', '.join(embeddings)}"
            )
        named.layer = found.pop()
        named.dtype = next((each.dtype for each in layers[named.layer].parameters()), self.dtype)
        return named


def as_inputs(given: Any) -> Inputs:
    """Return what was given as inputs; see `Inputs`."""
    return given if isinstance(given, Inputs) else Inputs(given)


def _are_ids(value: Tensor) -> bool:
    return value.dim() == 2 and value.dtype in (torch.int64, torch.int32) and value.numel() > 0


def _by_name(given: Any) -> dict[Any, Any]:
    """What a network is given, by position or by name."""
    if isinstance(given, Tensor | np.ndarray | str) or given is None:
        return {0: given}
    if isinstance(given, Mapping):
        return {key: value for key, value in given.items() if key not in LABELS}
    if isinstance(given, tuple):
        return dict(enumerate(given))
    if isinstance(getattr(given, "x", None), Tensor):  # Examples
        return {0: given.x}
    if isinstance(given, Iterable) and not (isinstance(given, list) and _holds_numbers(given)):
        return _gathered(given)
    return {0: given}


def _holds_numbers(values: list[Any]) -> bool:
    first = values[0] if values else 0.0
    return _holds_numbers(first) if isinstance(first, list) else not isinstance(first, Tensor | tuple | Mapping)


def _gathered(batches: Iterable[Any]) -> dict[Any, Any]:
    """Put the inputs of batches together, in their order."""
    if isinstance(getattr(batches, "sampler", None), torch.utils.data.RandomSampler):
        raise ValueError("the loader shuffles, so nobody would know whose explanation is whose; pass shuffle=False")
    with torch.random.fork_rng(devices=[]):  # a DataLoader takes a seed from the global generator
        parts = [_of_batch(batch) for batch in batches]
    if not parts or any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError(f"the batches hold {[list(part) for part in parts[:2]]}; pass batches of the same inputs")
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _of_batch(batch: Any) -> dict[Any, Any]:
    if isinstance(batch, list | tuple):
        batch, *target = batch or [None]
        if len(target) > 1:
            raise ValueError(f"a batch holds {len(target) + 1} parts; pass batches (inputs, target), inputs a tuple")
        batch = tuple(batch) if isinstance(batch, list) else batch
    named = _by_name(batch) if isinstance(batch, Tensor | tuple | Mapping) else {"": batch}
    if not all(isinstance(value, Tensor) for value in named.values()):
        raise TypeError(f"x is batches of {type(batch).__name__}; pass a torch tensor (N, ...), or batches of tensors")
    return named
