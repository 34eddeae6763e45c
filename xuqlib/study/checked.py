"""Arguments checked by their annotations: a signature says what is wanted, and an error says what was given.

Of `@checked def wilson(share: Share, n: Place)` the call wilson(90, 5) says: share is 90; pass a number from 0 to 1.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence, ValuesView
from functools import cache, wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import MOST, check_examples, check_target, check_tensor

Function = TypeVar("Function", bound=Callable[..., Any])
BOOLS = (bool, np.bool_)
# Names for annotations, which say more than a type; what each stands for is in KINDS.
Count = int  # 1 or more
Several = int  # 2 or more
Place = int  # 0 or more
Seed = int
Finite = float
Amount = float  # 0 or more
Positive = float
Share = float  # from 0 to 1
Level = float  # between 0 and 1
Batch = Tensor  # examples (N, ...)
Pictures = Tensor  # (N, C, H, W)
Maps = Tensor  # (N, ...), NaN where undefined
Stack = Tensor  # (draw, example, ...)
Boxes = Tensor  # (N, 2)
Floats = Tensor  # of any shape
Map = Tensor  # (H, W) or (C, H, W)
Masks = Tensor  # (N, H, W), bool
Order = Tensor  # pixel numbers (N, H * W)
Target = Tensor  # class numbers (N,)
Column = str  # of the frame
Columns = Sequence[str]
Names = Sequence[str]
Counts = Sequence[int]
Shape = Sequence[int]  # height and width
Levels = Sequence[float]
Shares = Sequence[float]
Numbers = Sequence[float] | np.ndarray | pd.Series | Tensor
Interval = Sequence[float]  # low and high
Size = tuple[float, float]  # width and height
Networks = Sequence[nn.Module]
Table = pd.DataFrame  # of one row or more
Options = tuple[tuple[str, Any], ...]
Grid = Sequence[Sequence[Tensor | None]]
Band = tuple[Tensor, Tensor]  # low and high ends
Tests = Mapping[str, Mapping[str, Any]]
Facts = Mapping[str, Mapping[str, Sequence[float]]]
Ratings = pd.DataFrame | Sequence[Sequence[Any]]


class Kind(NamedTuple):
    """What an argument has to be: of some types, and so that it fits the others; `wanted` says so in an error."""

    wanted: str
    types: Any
    fits: Callable[[Any, Mapping[str, Any]], bool] = lambda value, others: True


def _whole(minimum: int, maximum: int = MOST) -> Kind:
    most = f"at most {maximum:,}" if maximum == MOST else "below 2**63"
    return Kind(f"a whole number of at least {minimum}, {most}", Integral, lambda n, _: minimum <= n <= maximum)


def _number(wanted: str, fits: Callable[[float], bool]) -> Kind:
    return Kind(f"a number {wanted}", Real, lambda value, _: math.isfinite(value) and fits(value))


def _tensor(wanted: str, fits: Callable[[Tensor], bool] = lambda value: True) -> Kind:
    return Kind(wanted, Tensor, lambda value, _: _holds_numbers(value) and fits(value))


def _listed(wanted: str, fits: Callable[[Any], bool], length: int | None = None) -> Kind:
    """A list, tuple or array of a length, or not empty, all of whose members fit."""

    def fit(values: Any, _: object) -> bool:
        given = not isinstance(values, str) and (len(values) > 0 if length is None else len(values) == length)
        return given and all(map(fits, values))

    return Kind(wanted, (Sequence, ValuesView, np.ndarray, pd.Series), fit)


def _by_name(wanted: str, fits: Callable[[Any], bool], names: Any = str) -> Kind:
    """A mapping, not empty, of names to what fits."""

    def fit(values: Mapping[Any, Any], _: object) -> bool:
        return bool(values) and all(isinstance(key, names) and fits(value) for key, value in values.items())

    return Kind(wanted, Mapping, fit)


def _examples(x: Tensor, axes: int | None = None) -> bool:
    check_examples(x)  # which says more
    return axes is None or x.dim() == axes


def _is_floating(values: Tensor, axes: int) -> bool:
    return values.is_floating_point() and values.dim() >= axes and values.numel() > 0


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_numbers(values: Any) -> bool:
    if isinstance(values, Tensor) and not _holds_numbers(values):
        return False
    array = np.asarray(values)
    return array.ndim == 1 and array.size > 0 and array.dtype.kind in "fiu"


def _columns(others: Mapping[str, Any]) -> list[Any]:
    return list(next((value for value in others.values() if isinstance(value, pd.DataFrame)), ()))


def _are_columns(names: Sequence[str], others: Mapping[str, Any]) -> bool:
    return len(names) > 0 and all(isinstance(name, str) and name in _columns(others) for name in names)


def _is_target(target: Tensor, others: Mapping[str, Any]) -> bool:
    """Whether there is one class per example of whatever else there is of examples."""
    check_tensor(target, "target")
    beside = [others.get("x"), others.get("probs"), others.get("logits", [None])[0]]
    count = next((len(each) for each in beside if isinstance(each, Tensor) and each.dim()), target.numel())
    check_target(target, count, MOST)
    return target.dim() == 1


def _is_option(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)


def _is_row(row: Any) -> bool:
    return isinstance(row, list | tuple | ValuesView) and all(each is None or _holds_numbers(each) for each in row)


def _is_shape(sides: Any) -> bool:
    return len(sides) == 2 and all(map(_is_whole, sides)) and min(sides) > 0 and math.prod(sides) <= MOST


def _are_ratings(ratings: Any, _: object) -> bool:
    is_frame = isinstance(ratings, pd.DataFrame)
    return not isinstance(ratings, str) and (is_frame or not any(isinstance(row, int | float | str) for row in ratings))


def _is_autoencoder(value: Any, _: object) -> bool:
    return all(callable(getattr(value, name, None)) for name in ("encode", "decode"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_texts(values: Sequence[Any], _: object = None) -> bool:
    return all(map(_is_text, values))


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_complex()


KINDS: dict[str, Kind] = {
    "None": Kind("None", type(None)),
    "bool": Kind("True or False", BOOLS),
    "str": Kind("text", str),
    "bytes": Kind("bytes", bytes),
    "Path": Kind("a path", Path),
    "int": Kind("a whole number", Integral),
    "Count": _whole(1),
    "Several": _whole(2),
    "Place": _whole(0),
    "Seed": _whole(0, 2**63 - 1),
    "float": Kind("a number", Real),
    "Finite": _number("that is finite", lambda value: True),
    "Amount": _number("of at least 0", lambda value: value >= 0),
    "Positive": _number("above 0", lambda value: value > 0),
    "Share": _number("from 0 to 1", lambda value: 0 <= value <= 1),
    "Level": _number("between 0 and 1", lambda value: 0 < value < 1),
    "Tensor": _tensor("a tensor that holds its numbers"),
    "Batch": Kind("a torch tensor of floating point examples (N, ...)", Tensor, lambda x, _: _examples(x)),
    "Pictures": Kind("a torch tensor of pictures (N, C, H, W)", Tensor, lambda x, _: _examples(x, 4)),
    "Stack": _tensor("floating point numbers (draw, example, ...)", lambda values: _is_floating(values, 3)),
    "Boxes": _tensor(
        "whole numbers (N, 2), row and column",
        lambda boxes: not boxes.is_floating_point() and boxes.dtype != torch.bool and boxes.shape[-1:] == (2,),
    ),
    "Maps": _tensor("a tensor of floating point numbers (N, ...)", lambda maps: _is_floating(maps, 2)),
    "Floats": _tensor("a tensor of floating point numbers", lambda values: values.is_floating_point()),
    "Map": _tensor("a map (H, W) or (C, H, W)", lambda maps: _is_floating(maps, 2)),
    "Masks": _tensor("masks (N, H, W), True or False", lambda m: m.dtype == torch.bool and m.dim() == 3 and len(m) > 0),
    "Order": _tensor("pixel numbers (N, H * W)", lambda order: not order.is_floating_point() and order.dim() == 2),
    "Target": Kind("a tensor of class numbers (N,)", Tensor, _is_target),
    "Table": Kind("a frame with at least one row", pd.DataFrame, lambda frame, _: not frame.empty),
    "Column": Kind("a column of the frame", str, lambda name, others: _are_columns([name], others)),
    "Columns": Kind("columns of the frame", (list, tuple), _are_columns),
    "Names": _listed("a list of names", _is_text),
    "Counts": _listed("a list of whole numbers of at least 1", lambda value: _is_whole(value) and 1 <= value <= MOST),
    "Shape": Kind("a height and a width, whole numbers of at least 1", Sequence, lambda sides, _: _is_shape(sides)),
    "Levels": _listed("a list of numbers between 0 and 1", lambda value: _is_number(value) and 0 < value < 1),
    "Shares": _listed("a list of numbers from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "Numbers": Kind(
        "a list of numbers", (Sequence, np.ndarray, pd.Series, Tensor), lambda values, _: _are_numbers(values)
    ),
    "Interval": _listed(
        "two numbers, the lower end first", lambda value: _is_number(value) and not math.isnan(value), 2
    ),
    "Size": _listed("two numbers above 0", lambda value: _is_number(value) and 0 < value < math.inf, 2),
    "Networks": _listed("a list of networks, as posterior.sample gives", lambda value: isinstance(value, nn.Module)),
    "Grid": _listed("rows of maps", _is_row),
    "Band": _listed("two tensors, the low and the high ends", _holds_numbers, 2),
    "Options": Kind("pairs of a name and a value", tuple, lambda pairs, _: all(map(_is_option, pairs))),
    "Tests": _by_name("arguments of `agreement` by the name of each", _is_mapping),
    "Facts": Kind("numbers of each map, by metric", Mapping, lambda facts, _: all(map(_is_mapping, facts.values()))),
    "Ratings": Kind("a frame, or a list of ratings per rater", (pd.DataFrame, Sequence, np.ndarray), _are_ratings),
    "Folder": Kind("a folder", (str, os.PathLike, type(None)), lambda folder, _: folder != ""),
    # Names that other modules give to functions, and to what has no class at run time.
    "Explainer": Kind("an explainer (network, x, target) -> attribution", Callable),
    "Drawing": Kind("a function (rows, chosen) -> figure, sentence", Callable),
    "Attend": Kind("a function (draws, x) -> examples", Callable),
    "Autoencoder": Kind("one with encode and decode, as from train_or_load_vae", object, _is_autoencoder),
    "Candidates": _by_name("what to call, by the name of each", callable, (str, int)),
    "Figure": Kind("a figure", object, lambda value, _: callable(getattr(value, "savefig", None))),
    "pd.DataFrame": Kind("a frame", pd.DataFrame),
    "np.ndarray": Kind("an array of numbers", np.ndarray, lambda values, _: values.dtype.kind in "fiub"),
    "nn.Module": Kind("a network (nn.Module)", nn.Module),
    "torch.Tensor": _tensor("a tensor that holds its numbers"),
    "torch.dtype": Kind("a floating dtype", torch.dtype, lambda dtype, _: dtype.is_floating_point),
    "Sequence[nn.Module]": _listed(
        "a list of networks, as posterior.sample gives", lambda value: isinstance(value, nn.Module)
    ),
    "Sequence[str]": Kind("a list of texts", (list, tuple), _are_texts),
    "tuple[str, ...]": Kind("a tuple of texts", tuple, _are_texts),
    "tuple[str, str]": _listed("two texts", _is_text, 2),
    "tuple[tuple[str, ...], ...]": Kind("a tuple of tuples of words", tuple),
    "dict[str, Tensor]": Kind("a dict of tensors", dict, lambda masks, _: all(map(_holds_numbers, masks.values()))),
    "dict[str, tuple[int, ...]]": Kind("a dict of columns", dict),
    "Mapping[str, Tensor]": _by_name("a tensor by the name of each", _holds_numbers),
    "Mapping[str, torch.Tensor]": _by_name("a tensor by the name of each", _holds_numbers),
    "Mapping[str, np.ndarray]": _by_name(
        "an array by the name of each", lambda value: isinstance(value, np.ndarray | Tensor)
    ),
    "Mapping[str, str]": _by_name("a text by the name of each", _is_text),
    "Mapping[str, object]": _by_name("a value by the name of each", lambda value: True),
}


def checked(function: Function) -> Function:
    """Check what a function, or the constructor of a class, is given, by the annotations of its parameters.

    An annotation is a key of `KINDS`, the name of a class, or several of these between bars; of what else it says
    nothing is checked.

    Raises:
        TypeError: an argument of another type.
        ValueError: one of the right type that does not fit.
    """
    if isinstance(function, type):
        function.__init__ = checked(function.__init__)  # type: ignore[misc]
        return function
    signature, scope = inspect.signature(function), inspect.unwrap(function).__globals__

    @cache
    def kinds_of(name: str) -> tuple[Kind, ...]:
        parts = str(signature.parameters[name].annotation).split(" | ")
        found = [KINDS.get(part) or _of_class(part, scope) for part in parts]
        return tuple(kind for kind in found if kind) if all(found) else ()

    @wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        for name, value in given.items():
            if signature.parameters[name].kind != inspect.Parameter.VAR_KEYWORD:
                row = signature.parameters[name].kind == inspect.Parameter.VAR_POSITIONAL
                for one in value if row else [value]:
                    _check(name, one, kinds_of(name), given)
        return function(*args, **kwargs)

    return checking  # type: ignore[return-value]


def check_columns(frame: pd.DataFrame, *wanted: str) -> None:
    """Refuse a frame without some of its columns.

    Raises:
        ValueError: names those that are missing.
    """
    if missing := [column for column in wanted if column not in frame]:
        raise ValueError(f"the frame has no column {', '.join(missing)}; its columns are {', '.join(map(str, frame))}")


def check_alike(**tensors: Tensor) -> None:
    """Refuse tensors whose shapes do not go together.

    Raises:
        ValueError: names them and their shapes.
    """
    try:
        torch.broadcast_shapes(*(tensor.shape for tensor in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes do not go together: {shapes}; pass numbers of the same examples") from None


def _check(name: str, value: Any, kinds: Sequence[Kind], others: Mapping[str, Any]) -> None:
    typed = [kind for kind in kinds if _is_of(value, kind.types)]
    if kinds and not any(kind.fits(value, others) for kind in typed):
        known = f"of the frame, {', '.join(map(str, _columns(others)))}"
        wanted = ", or ".join(kind.wanted.replace("of the frame", known) for kind in kinds)
        wanted = f"{name} is {shown(value)}; pass {wanted}"
        raise ValueError(wanted) if any(kind.types is not object for kind in typed) else TypeError(wanted)


def _of_class(name: str, scope: Mapping[str, Any]) -> Kind | None:
    """What a class or a list of its objects has to be; None where nothing can be said."""
    if name.startswith("Callable"):
        return Kind("a function", Callable)
    of = scope.get(name.removeprefix("Sequence[").removesuffix("]"))
    if not isinstance(of, type) or of is Any:
        return None
    if name.startswith("Sequence["):
        return Kind(f"a list of {of.__name__}", (list, tuple), lambda all_, _: all(isinstance(one, of) for one in all_))
    return Kind(name, of)


def _is_of(value: Any, types: Any) -> bool:
    return isinstance(value, types) and (types in (BOOLS, object) or not isinstance(value, bool))


def shown(value: Any) -> str:
    """Say what was given, in a few words."""
    if isinstance(value, Tensor):
        where = ", on the meta device" if value.is_meta else "" if value.layout == torch.strided else ", sparse"
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}{where}"
    if isinstance(value, pd.DataFrame):
        return f"a frame of {len(value)} rows with columns {', '.join(map(str, value))}"
    if value is None or (
        isinstance(value, str | bytes | int | float | complex | list | tuple) and len(repr(value)) < 80
    ):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
