"""Long measurements are kept until their notebook is whole, so that an interrupted run goes on where it stopped.

`run_all.py` names a folder in `$XUQ_PARTS`, after everything that the notebook's result depends on, and removes it
when the notebook is whole. A notebook run in any other way keeps nothing. A measurement is known by its place in the
run, since a notebook measures in the same order every time.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable
from functools import wraps
from itertools import count
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from joblib import Parallel, delayed

from xuqlib.study.record import replace_file

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Delayed = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]  # of joblib
_places, _measuring = count(), False


def place() -> Path | None:
    """Where the next measurement of this run is kept, or None where nothing is, as inside another measurement."""
    folder = os.environ.get("XUQ_PARTS")
    return Path(folder, f"{next(_places)}.pickle") if folder and not _measuring else None


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
    calls = (delayed(kept)(place(), measure, *args, **kwargs) for measure, args, kwargs in jobs)
    found: list[Any] = Parallel(n_jobs=num_jobs)(calls)
    return found


def resumable(measure: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a measurement that takes minutes, and that notebooks call one after the other."""

    @wraps(measure)
    def once(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return kept(place(), measure, *args, **kwargs)

    return once
