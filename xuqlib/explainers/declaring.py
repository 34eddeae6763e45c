"""What an explainer says of itself where it is defined: its name, its path, and its options per example.

An explainer is a plain function `(network, x, target, **options) -> attribution`, shaped like x. It need not declare
anything: what it declares changes how much work `explain` does at once, and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from xuqlib.checks import check_choice, check_count
from xuqlib.path import Path, blocks

Explainer = Callable[..., Tensor]
_Function = TypeVar("_Function", bound=Explainer)
PerExample = Mapping[str, Callable[[Any, Tensor], Any]]

EXPLAINERS: dict[str, Explainer] = {}  # by their names; each explains the logit of a class


@dataclass(frozen=True)
class Declared:
    """What `explainer` was told of a function; see there."""

    function: Explainer | None = None
    path: Callable[..., Path] | None = None
    over_draws: Callable[..., Iterable[Tensor]] | None = None
    per_example: PerExample | None = None


def explainer(
    name: str | None = None,
    *,
    path: Callable[..., Path] | None = None,
    over_draws: Callable[..., Iterable[Tensor]] | None = None,
    per_example: PerExample | Iterable[str] = (),
) -> Callable[[_Function], _Function]:
    """Declare, above its definition, what an explainer is; the function itself stays as it is.

    Args:
        name: key in `EXPLAINERS`, for an explainer of this library.
        path: (x, **options) to the path that the explainer takes, `Path`. The engine then evaluates it for many draws
            at once, instead of calling the explainer.
        over_draws: (draws, x, target, **options) to one attribution per draw, for an explainer that knows what the
            draws can share. Called instead of the explainer.
        per_example: names of options that hold one entry per example, along their first axis; `explain` cuts those
            together with the examples, and no others. Or by name a function (value, x) that makes such a tensor of what
            may be passed, given all examples; what it leaves as no tensor serves all of them.

    Raises:
        TypeError: written without brackets; `per_example` is one string, or names what the explainer does not take.
        ValueError: the name is taken.
    """
    if callable(name) or isinstance(per_example, str):
        raise TypeError("write @explainer(), with brackets, and per_example as a list of names")
    makers = per_example if isinstance(per_example, Mapping) else dict.fromkeys(per_example, lambda value, _: value)

    def declare(function: _Function) -> _Function:
        takes = inspect.signature(function).parameters
        unknown = set(makers) - set(takes)
        if unknown and not any(each.kind is each.VAR_KEYWORD for each in takes.values()):
            raise TypeError(f"per_example names {sorted(unknown)}, which {function.__name__} does not take")
        if name is not None and name in EXPLAINERS and EXPLAINERS[name].__module__ != function.__module__:
            raise ValueError(f"the name {name!r} is that of another explainer; choose one of your own")
        vars(function)["declared"] = Declared(function, path, over_draws, makers)
        if name is not None:
            EXPLAINERS[name] = function
        return function

    return declare


def declared_by(function: Explainer) -> Declared:
    """What an explainer declares of itself. A `functools.partial` has no path, since it knows options of its own."""
    if isinstance(function, partial):
        return Declared(per_example=declared_by(function.func).per_example)
    declared: Declared = getattr(function, "declared", Declared())
    return declared if declared.function is function else Declared()  # not that of what it wraps


def named(function: str | Explainer, known: Mapping[str, Explainer] = EXPLAINERS) -> Explainer:
    """Return the explainer of a name, or the function that was passed instead of one.

    Raises:
        TypeError, ValueError: neither a name nor a function; no such name.
    """
    if callable(function):
        return function
    if not isinstance(function, str):
        raise TypeError(f"explainer is {function!r}; pass a function (network, x, target), such as xuqlib.gradient")
    check_choice(function, known, "explainer")
    return known[function]


class Options:
    """The options of an explainer, for some examples at a time.

    Where an explainer declares nothing and an option has as many entries as there are examples, nobody knows whether
    these are one per example. All examples are then explained at once, as in the plain loop over draws.

    Raises:
        TypeError: an option that the explainer does not take.
        ValueError: an option that is declared to hold one entry per example has another number of them.
    """

    def __init__(self, function: Explainer, options: Mapping[str, Any], x: Tensor) -> None:
        takes, name = _taken_by(function), getattr(function, "__name__", type(function).__name__)
        if takes is not None and (unknown := [option for option in options if option not in takes]):
            words = f"it takes {', '.join(takes)}" if takes else "it takes none"
            raise TypeError(f"{name} takes no option {unknown[0]!r}; {words}")
        per_example, self.num_examples = declared_by(function).per_example, len(x)
        made = {name: make(options[name], x) for name, make in (per_example or {}).items() if name in options}
        self.values = {**options, **made}
        self.cut = {name for name, value in made.items() if _num_entries(value) is not None}
        for name in self.cut:
            if _num_entries(made[name]) != len(x):
                raise ValueError(
                    f"option {name} has {_num_entries(made[name])} entries but x has {len(x)} examples; "
                    "pass one entry per example"
                )
        known = self.values if per_example is not None else ()
        self.unclear = [name for name in options if name not in known and _num_entries(options[name]) == len(x) > 1]

    def parts(self, rows: int, chunk: int | None = None) -> list[slice]:
        """Cut the examples into parts of `chunk`, if that is given, else of `rows`.

        Raises:
            ValueError: `chunk` is given although an option may or may not have to be cut.
        """
        if chunk is not None:
            check_count(chunk, 1, "chunk")
        if self.unclear and chunk is not None and chunk < self.num_examples:
            raise ValueError(
                f"option {self.unclear[0]} has as many entries as there are examples; say whether it is one per "
                f'example, by @explainer(per_example=["{self.unclear[0]}"]) or @explainer() above the definition of '
                "your explainer, or leave out chunk"
            )
        return blocks(self.num_examples, self.num_examples if self.unclear else chunk or rows)

    def of(self, examples: slice, where: torch.device) -> dict[str, Any]:
        """Return the options for some examples, tensors on the device `where`."""
        cut = {name: value[examples] if name in self.cut else value for name, value in self.values.items()}
        return {name: value.to(where) if isinstance(value, Tensor) else value for name, value in cut.items()}


def _taken_by(function: Explainer) -> list[str] | None:
    """Names of the options that an explainer takes behind network, x and target; None where it may take any."""
    try:
        takes = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function that is not written in Python
        return None
    if any(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in takes):
        return None
    return [each.name for each in takes[3:]]


def _num_entries(value: Any) -> int | None:
    """Entries along the first axis; None for what has none."""
    if isinstance(value, Tensor | np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, list | tuple) else None
