"""Checks of what a caller passed: one clear error that names what was given, what was wanted and what to do."""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

MOST = 10**9  # of anything that is counted: beyond that, memory or patience ends first

# Layers whose answer depends on chance or on the other examples while they are in training mode.
_UNSTEADY_TYPES = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm, nn.RReLU)
_UNSTEADY_NAMES = re.compile("dropout|dropconnect|droppath|dropblock|stochasticdepth|batchnorm", re.IGNORECASE)


def check_examples(x: Any) -> None:
    """Refuse anything but a finite floating tensor of at least one example, (N, ...).

    Raises:
        TypeError: x is not a tensor, or its numbers are not floating point.
        ValueError: x has fewer than two axes, is empty, or holds NaN or infinite values.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; pass a torch tensor (N, ...), as from torch.as_tensor(x)")
    check_tensor(x, "x")
    if x.dtype == torch.uint8:
        raise TypeError("x is uint8, so these look like raw images; convert with x.float() and divide by 255")
    if not x.is_floating_point():
        raise TypeError(f"x is {x.dtype}; pass floating point examples, as from x.float()")
    if x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; pass (N, features) or (N, C, H, W), for one example x[None]")
    if x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, so it holds no numbers; pass at least one example")
    if not is_finite(x):
        bad = ~torch.isfinite(x)
        num_nan = int(torch.isnan(x).sum())
        first = int(bad.flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"x holds {num_nan} NaN and {int(bad.sum()) - num_nan} infinite values, the first in example {first}; "
            "drop or fill them before explaining"
        )


def is_finite(x: Tensor) -> bool:
    """Whether all numbers are finite; a sum says so in one pass, unless it overflows."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def check_tensor(value: Any, what: str, axes: int = 0) -> None:
    """Refuse anything but a tensor of real numbers, of as many axes or more.

    Raises:
        TypeError: not a tensor, or one that is sparse, complex or on the meta device.
        ValueError: too few axes.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} is a {type(value).__name__}; pass a torch tensor, as from torch.as_tensor({what})")
    if value.is_meta or value.layout != torch.strided or value.is_complex():
        given = "on the meta device" if value.is_meta else "complex" if value.is_complex() else value.layout
        raise TypeError(f"{what} is {given}; pass its numbers, as from {what}.to_dense()")
    if value.dim() < axes:
        raise ValueError(f"{what} has shape {tuple(value.shape)}; pass a tensor of {axes} axes or more")


def check_target(target: Any, num_examples: int, num_classes: int | None) -> Tensor:
    """Return the class of each example as int64, (N,), on the CPU or where the given tensor lives.

    Args:
        target: (N,) whole numbers; or one int, which stands for all examples; or None if there is just one output.
        num_examples: N.
        num_classes: outputs of the network; classes are 0 ... num_classes - 1. None where that is not known yet.

    Raises:
        TypeError: target is neither None, an int, nor an array of whole numbers.
        ValueError: target is missing, of another length, or out of range.
    """
    if target is None:
        if num_classes != 1:
            raise ValueError(
                f"network has {num_classes} outputs; pass one class per example as target, or which number"
            )
        return torch.zeros(num_examples, dtype=torch.int64)
    if isinstance(target, Tensor):
        check_tensor(target, "target")
    try:
        classes = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"target is a {type(target).__name__}; pass class numbers (N,), or one int for all") from None
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"target is {classes.dtype}; pass class numbers, as from target.long() or logits.argmax(-1)")
    if classes.dim() == 0:
        classes = classes.expand(num_examples)
    if classes.dim() != 1:
        raise ValueError(f"target has shape {tuple(classes.shape)}; pass one class per example, ({num_examples},)")
    if len(classes) != num_examples:
        raise ValueError(
            f"target has {len(classes)} entries but x has {num_examples} examples; pass one class per example"
        )
    classes = classes.long()  # or the comparison would be in the few bits of the given dtype
    outside = (classes < 0) | (classes >= (sys.maxsize if num_classes is None else num_classes))
    if outside.any():
        first = int(outside.nonzero()[0])
        known = "they are counted from 0"
        if num_classes is not None:
            known = f"network has {num_classes} outputs, so classes are 0 to {num_classes - 1}"
            known = "network has one output, so leave target out" if num_classes == 1 else known
        raise ValueError(f"target {int(classes[first])} of example {first} is out of range; {known}")
    return classes


def check_logits(output: Any, num_examples: int) -> Tensor:
    """Return the network's output as (N, C); a regression output (N,) becomes (N, 1).

    Raises:
        TypeError: the output is not a tensor.
        ValueError: its shape is neither (N, C) nor (N,).
    """
    if not isinstance(output, Tensor):
        known = f" with {list(output)}" if isinstance(output, Mapping) else ""
        raise TypeError(
            f"network returned a {type(output).__name__}{known}; say what of it is explained by output=, a key or "
            "function"
        )
    if output.dim() not in (1, 2) or len(output) != num_examples or output.numel() == 0:
        raise ValueError(
            f"network returned shape {tuple(output.shape)} for {num_examples} examples; "
            f"wanted logits ({num_examples}, classes), or ({num_examples},) for regression; if it is more, "
            "say what by output="
        )
    return output.unsqueeze(1) if output.dim() == 1 else output


def check_attribution(attribution: Any, x: Tensor, explainer: str = "the explainer") -> Tensor:
    """Return what an explainer returned, if it is an attribution.

    Raises:
        ValueError: it is no tensor, or not shaped like x.
    """
    if not isinstance(attribution, Tensor) or attribution.shape != x.shape:
        given = tuple(attribution.shape) if isinstance(attribution, Tensor) else f"a {type(attribution).__name__}"
        raise ValueError(f"{explainer} returned {given}, not an attribution shaped like x {tuple(x.shape)}")
    return attribution


def check_fixed(network: Callable[[Tensor], Tensor]) -> None:
    """Refuse a network whose answer changes from call to call, or with the other examples of the batch.

    Looks at modules only: dropout that forward calls as a function cannot be seen from outside.

    Raises:
        TypeError: network cannot be called.
        ValueError: a dropout or BatchNorm layer of it is in training mode.
    """
    if not callable(network) or isinstance(network, type):
        raise TypeError(
            f"network is a {type(network).__name__}; pass a module or function that maps x to logits (N, C)"
        )
    if not isinstance(network, nn.Module):
        return
    for name, module in network.named_modules():
        kind = type(module).__name__
        if module.training and (isinstance(module, _UNSTEADY_TYPES) or _UNSTEADY_NAMES.search(kind)):
            raise ValueError(
                f"network is in training mode, so its layer {name or '(itself)'} ({kind}) does not answer the same "
                "every time; call network.eval(), or explain a draw from posterior.sample(...)"
            )


def check_choice(value: Any, known: Iterable[str], what: str) -> None:
    """Refuse a name that is not among the known ones.

    Raises:
        ValueError: lists the known names.
    """
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(names)}")


def check_count(value: Any, minimum: int, what: str, maximum: int = MOST) -> int:
    """Return `value` as an int from `minimum` to `maximum`.

    Raises:
        TypeError: value is not a whole number.
        ValueError: value is too small, or too large.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}; pass a whole number of at least {minimum}")
    if not minimum <= count <= maximum:
        raise ValueError(f"{what} is {count}; pass at {f'least {minimum}' if count < minimum else f'most {maximum:,}'}")
    return count


def check_seed(seed: Any) -> int:
    """Return a seed as an int that every generator takes."""
    return check_count(seed, 0, "seed", 2**63 - 1)


def check_number(value: Any, minimum: float, what: str, *, above: bool = False) -> float:
    """Return `value` as a finite float of at least `minimum`, or strictly above it.

    Raises:
        TypeError: value is not a real number.
        ValueError: value is not finite or too small.
    """
    if isinstance(value, (bool, str)) or not isinstance(value, Real):
        raise TypeError(f"{what} is {value!r}; pass a number")
    number = float(value)
    if not math.isfinite(number) or number < minimum or (above and number == minimum):
        raise ValueError(f"{what} is {number}; pass a finite number {'above' if above else 'of at least'} {minimum}")
    return number


def check_flag(value: Any, what: str) -> None:
    """Refuse anything but True and False, such as a text that says "no".

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{what} is {value!r}; pass True or False")


def check_noise(value: Any) -> Tensor:
    """Return the variance of noise, float64: one number, or one for each output.

    Raises:
        TypeError, ValueError: not a number, or not finite, or below 0.
    """
    each = value.flatten().tolist() if isinstance(value, Tensor) else [value]
    return torch.tensor([check_number(one, 0, "noise_variance") for one in each], dtype=torch.float64).view(
        value.shape if isinstance(value, Tensor) else ()
    )
