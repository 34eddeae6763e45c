"""Every wrong value of every argument of every public callable is one clear error, or does no harm."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import wrong_values
from wrong_values import HARMLESS, INTERNAL, KINDS, SLOW, Case, bound, cases, is_clear, kind_of, outcome, public, run

import xuqlib

# Calls whose error is another program's, as the docstring says.
ELSEWHERE = {"study.judging.timing.peak_memory(calls) short": "what the other process wrote before it ended"}


def named(case: Case) -> str:
    return f"{case.place}({case.parameter}) {case.label}"


@pytest.mark.parametrize("place", public())
def test_a_wrong_value_is_one_clear_error_or_does_no_harm(place):
    call = public()[place]
    if place not in SLOW:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(
                bound(place, call), wrong_values.valid_arguments(place, call)
            )  # so that the wrong ones have no other reason
    found = [outcome(case) for case in cases(place, call)]
    told = [
        f"{each.outcome}: {named(each.case)}: {each.said[:200]}" for each in found if named(each.case) not in ELSEWHERE
    ]
    assert [line for line in told if line.startswith(("unclear", "accepted", "hangs"))] == []


def test_the_public_names_are_tried():
    tried = {place.removesuffix(".__init__").rpartition(".")[2] for place in public()}
    callables = {name for name in xuqlib.__all__ if callable(getattr(xuqlib, name))}
    internal = {
        "DataError",
        "Posterior",
        "Uncertainties",
        "versions",
    }  # an error, an abstract class, a record, no argument
    assert callables - internal <= tried


def test_what_is_internal_or_harmless_is_there():
    """A name that is gone, or a reason that no case needs, would hide what takes its place."""
    known = {f"{place}.{name}" if name else place for place, name in wrong_values.places()}
    assert [name for name in INTERNAL if not any(f"{each}.".startswith(f"{name.rstrip('.')}.") for each in known)] == []
    for key in HARMLESS:
        assert (
            ": " in key
            or key.startswith("(")
            or ".*" in key
            or any(f"{place}(" in f"study.{key}" or key.startswith(f"{place}(") for place in public())
        )


def test_a_parameter_that_no_kind_knows_stops_with_what_to_do():
    def function(quark: int) -> None: ...

    (parameter,) = inspect.signature(function).parameters.values()
    with pytest.raises(AssertionError, match=r"no kind knows the parameter 'quark' \(int\).*add it to one in KINDS"):
        kind_of("somewhere.function", parameter)


def errors() -> list[tuple[Exception, bool]]:
    found: list[tuple[Exception, bool]] = []
    calls: list[tuple[Any, tuple[Any, ...], bool]] = [
        (xuqlib.load, ("nope",), True),  # ours: what was given, and what is known
        (xuqlib.Recipe, (None,), True),
        (int, ("seed",), False),  # a function of another library
        ({}.__getitem__, ("seed",), False),
    ]
    for call, arguments, clear in calls:
        try:
            call(*arguments)
        except Exception as error:
            found.append((error, clear))
    return found


@pytest.mark.parametrize(("error", "clear"), errors())
def test_an_error_is_clear_if_it_is_ours_and_names_the_argument(error, clear):
    parameter = "network" if "network" in str(error) else "name"
    assert is_clear(error, Case("somewhere", int, parameter, "name", "none", {parameter: object()})) == clear


def test_every_kind_has_wrong_values():
    assert all(kind.parameters.strip() and kind.wrong for kind in KINDS.values())
