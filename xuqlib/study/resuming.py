"""Long measurements are kept until their notebook is whole, so that an interrupted run goes on where it stopped.

`run_all.py` names a folder in `$XUQ_PARTS`, after everything that the notebook's result depends on, and removes it
when the notebook is whole. A notebook run in any other way keeps nothing. A measurement is known by the name of its
function and by its arguments, so cells may be run in any order, and another measurement put between two of them.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from pathlib import Path
from types import CodeType, EllipsisType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn

from xuqlib.study.record import replace_file

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Delayed = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]  # of joblib
_measuring = False


def fingerprint(value: Any) -> str:
    """SHA-256 of what a value is made of; equal values have equal ones, in every process.

    Raises:
        TypeError: an object whose parts cannot be seen, such as a generator.
    """
    digest = hashlib.sha256()
    for part in _parts(value):
        digest.update(part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterable[bytes]:
    yield f"<{type(value).__qualname__}>".encode()
    if value is None or isinstance(
        value, str | bytes | bool | int | float | complex | Path | range | slice | EllipsisType
    ):
        yield repr(value).encode()
    elif isinstance(value, torch.dtype | torch.device):
        yield str(value).encode()
    elif isinstance(value, torch.Generator):
        yield value.get_state().numpy().tobytes()
    elif isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        yield f"{array.dtype}{array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
    elif isinstance(value, pd.DataFrame | pd.Series):
        frame = value.to_frame() if isinstance(value, pd.Series) else value
        yield repr([(str(name), str(kind)) for name, kind in frame.dtypes.items()]).encode()
        yield pd.util.hash_pandas_object(frame).to_numpy().tobytes()
    elif isinstance(value, partial):
        yield from _parts([value.func, value.args, value.keywords])
    elif isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if code := getattr(value, "__code__", None):  # one lambda is called like another
            constants = [each for each in code.co_consts if not isinstance(each, CodeType)]
            cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
            yield from _parts([code.co_code, code.co_names, constants, getattr(value, "__defaults__", None), cells])
    elif isinstance(value, Mapping):
        yield from _parts(list(value.items()))
    elif isinstance(value, set | frozenset):
        yield from sorted(fingerprint(each).encode() for each in value)
    elif isinstance(value, nn.Module):
        yield repr(value).encode()
        yield from _parts({name: each for name, each in vars(value).items() if not name.startswith("_")})
        yield from _parts(dict(value.state_dict()))
        yield from _parts(dict(value.named_children()))
    elif is_dataclass(value):
        yield from _parts({each.name: getattr(value, each.name) for each in fields(value)})
    elif isinstance(value, Iterable) and hasattr(value, "__len__") and not vars_of(value):
        for each in value:
            yield fingerprint(each).encode()
    elif vars_of(value):
        yield from _parts(vars_of(value))
    else:
        raise TypeError(f"a measurement's argument is a {type(value).__name__}; pass numbers, names, tensors or frames")


def vars_of(value: Any) -> dict[str, Any]:
    """What an object of a class written in Python holds."""
    return dict(getattr(value, "__dict__", {}))


def place(measure: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Path | None:
    """Where a measurement of this run is kept, or None where nothing is, as inside another measurement."""
    folder = os.environ.get("XUQ_PARTS")
    if not folder or _measuring:
        return None
    name = getattr(measure, "__name__", type(measure).__name__)
    return Path(folder, f"{name}-{fingerprint([measure, args, dict(kwargs)])[:24]}.pickle")


def kept(
    path: Path | None, measure: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """`measure(*args, **kwargs)`, or what it returned before the run was interrupted, if `path` holds that."""
    global _measuring
    if path is None:
        return measure(*args, **kwargs)
    if path.is_file():
        found: Result = pickle.loads(path.read_bytes())  # written by an earlier run of the same notebook
        return found
    _measuring = True
    try:
        result = measure(*args, **kwargs)
    finally:
        _measuring = False
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, pickle.dumps(result))
    return result


def side_by_side(jobs: Iterable[Delayed], num_jobs: int) -> list[Any]:
    """What `joblib.Parallel` returns for these jobs, each a call of joblib's `delayed`; every result is `kept`."""
    calls = (delayed(kept)(place(measure, args, kwargs), measure, *args, **kwargs) for measure, args, kwargs in jobs)
    found: list[Any] = Parallel(n_jobs=num_jobs)(calls)
    return found


def resumable(measure: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a measurement that takes minutes, and that notebooks call one after the other."""

    @wraps(measure)
    def once(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return kept(place(measure, args, kwargs), measure, *args, **kwargs)

    return once
