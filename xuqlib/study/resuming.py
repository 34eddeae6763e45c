"""Long measurements are kept until their notebook is whole, so that an interrupted run goes on where it stopped.

`run_all.py` names a folder in `$XUQ_PARTS`, after everything that the notebook's result depends on, and removes it
when the notebook is whole. A notebook run in any other way keeps nothing. A measurement is known by the name of its
function and by its arguments, so cells may be run in any order, and another measurement put between two of them.
What is kept is data alone: reading it runs nothing. What was damaged since is measured again, with a warning.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from types import CodeType, EllipsisType
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from joblib import Parallel, cpu_count, delayed, parallel_config
from torch import Tensor, nn

from xuqlib.study.files import DamagedError, replace_file, seal, versions

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
    elif isinstance(value, Tensor | np.ndarray | np.generic):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
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
    elif isinstance(value, inspect.Signature):  # of a function whose arguments are checked
        yield from _parts([(each.name, str(each.annotation)) for each in value.parameters.values()])
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


def packed(value: Any, name: str) -> bytes:
    """A value as bytes that hold data alone: a line of JSON, then its tensors, arrays and frames one after the other.

    Args:
        value: numbers, words, tensors, arrays and frames, in lists, tuples and dicts of any depth.
        name: the only one under which `unpacked` gives it back.

    Raises:
        TypeError: something in it is of another kind, or would not come back as it was.
    """
    blobs: list[bytes] = []
    try:
        tree = _tree(value, blobs)
    except (ValueError, NotImplementedError) as error:  # numpy's and Arrow's words for what they cannot write
        raise TypeError(f"an array or a frame in it holds something else than data: {error}") from error
    facts = {"name": name, "tree": tree, "sizes": [len(blob) for blob in blobs]}
    content = b"".join(blobs)
    line = json.dumps({**facts, "sha256": seal(facts, content)}).encode()
    if fingerprint(_grown(json.loads(json.dumps(tree)), iter(blobs))) != fingerprint(value):
        raise TypeError("a frame or an array in it would not come back as it was")
    return line + b"\n" + content


def _tree(value: Any, blobs: list[bytes]) -> Any:
    """The value's shape and its small parts as JSON; the large parts are added to `blobs`, in the same order."""
    kind = type(value)  # a subclass, such as a named tuple, would come back as another type
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple):
        return {kind.__name__: [_tree(each, blobs) for each in value]}
    if kind is dict:
        return {"dict": [[_tree(key, blobs), _tree(each, blobs)] for key, each in value.items()]}
    if kind is Tensor:
        blobs.append(safetensors.torch.save({"": value.detach().cpu().contiguous()}))
        # The order of its axes in memory, too: sums over another order round otherwise.
        return {"tensor": [str(value.device), torch.empty_like(value).stride()]}
    buffer = io.BytesIO()
    if kind is np.ndarray or isinstance(value, np.generic):
        np.save(buffer, value, allow_pickle=False)
    elif kind is pd.DataFrame:
        value.to_parquet(buffer)
    else:
        raise TypeError(f"a {kind.__name__} in it is no data that can be kept")
    blobs.append(buffer.getvalue())
    return {"frame" if kind is pd.DataFrame else "array" if kind is np.ndarray else "number": None}


def _grown(tree: Any, blobs: Iterator[bytes]) -> Any:
    """The value of a tree."""
    if not isinstance(tree, dict):
        return tree
    ((kind, inner),) = tree.items()
    if kind == "dict":
        return {_grown(key, blobs): _grown(each, blobs) for key, each in inner}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_grown(each, blobs) for each in inner)
    if kind == "tensor":
        (where, strides), found = inner, safetensors.torch.load(next(blobs))[""]
        return torch.empty_strided(found.shape, strides, dtype=found.dtype, device=where).copy_(found)
    buffer = io.BytesIO(next(blobs))
    if kind == "frame":
        return pd.read_parquet(buffer)
    array = np.load(buffer, allow_pickle=False)
    return array if kind == "array" else array[()]


def unpacked(content: bytes, name: str) -> Any:
    """What `packed` was given.

    Raises:
        DamagedError: the bytes are not those that `packed` gave, or of another name.
    """
    line, _, rest = content.partition(b"\n")
    try:
        facts = json.loads(line)
        whole = facts["sha256"] == seal(facts, rest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole or facts["name"] != name:
        raise DamagedError(f"{name} is damaged" if not whole else f"{name} holds {facts['name']}")
    ends = np.cumsum([0, *facts["sizes"]])
    return _grown(facts["tree"], (rest[start:end] for start, end in pairwise(ends)))


def place(measure: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Path | None:
    """Where a measurement of this run is kept, or None where nothing is, as inside another measurement."""
    folder = os.environ.get("XUQ_PARTS")
    if not folder or _measuring:
        return None
    name = getattr(measure, "__name__", type(measure).__name__)
    return Path(folder, f"{name}-{fingerprint([measure, args, dict(kwargs)])[:24]}.part")


def kept(
    path: Path | None, measure: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """`measure(*args, **kwargs)`, or what it returned before the run was interrupted, if `path` holds that whole.

    Warns:
        UserWarning: the file is damaged, so it is measured again; or the result is none that can be kept.
    """
    global _measuring
    if path is None:
        return measure(*args, **kwargs)
    if path.is_file():
        try:
            found: Result = unpacked(path.read_bytes(), path.stem)
        except DamagedError as error:
            warnings.warn(f"{error}, in {path.parent}; it is measured again", stacklevel=2)
        else:
            return found
    _measuring = True
    try:
        result = measure(*args, **kwargs)
    finally:
        _measuring = False
    try:
        content = packed(result, path.stem)
    except TypeError as error:
        warnings.warn(f"{path.stem} is not kept for an interrupted run: {error}", stacklevel=2)
        return result
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    return result


def side_by_side(jobs: Iterable[Delayed], num_jobs: int) -> list[Any]:
    """What `joblib.Parallel` returns for these jobs, each a call of joblib's `delayed`; every result is `kept`.

    In a run by `run_all.py --scheduler`, whose address is in `$XUQ_SCHEDULER`, the workers of its cluster help.
    """
    calls = [delayed(kept)(place(measure, args, kwargs), measure, *args, **kwargs) for measure, args, kwargs in jobs]
    address = os.environ.get("XUQ_SCHEDULER")
    if address and calls:
        from xuqlib.scale.cluster import connected  # needs the extra, and is not needed otherwise

        with connected(address) as client:
            return with_help(calls, client)
    # $OMP_NUM_THREADS, which a notebook that runs alone has set to all cores, would count for each of the processes.
    with parallel_config("loky", inner_max_num_threads=max(1, cpu_count() // max(1, num_jobs))):
        found: list[Any] = Parallel(n_jobs=num_jobs)(calls)
    return found


def with_help(calls: Sequence[Delayed], client: Any) -> list[Any]:
    """Results of calls that workers of a Dask cluster begin at the front and this process at the back.

    A notebook may hold the only place of its worker: it waits for nobody, but does itself what is not done yet, and
    what a worker has failed in or taken with it when it died.
    """
    from xuqlib.scale.store import needs

    pickle = needs("distributed.protocol.pickle")  # takes functions of a notebook, too
    names = [name for name in os.environ if name.startswith("XUQ_") and name not in ("XUQ_PARTS", "XUQ_SCHEDULER")]
    environment = {name: os.environ[name] for name in names}
    told = environment, list(sys.path), torch.get_num_threads(), versions()
    send = partial(client.submit, _there, *told, pure=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # networks are
        futures = [send(pickle.dumps(call)) for call in calls]
    found: list[Any] = [None] * len(calls)
    try:
        for number, (call, args, kwargs) in reversed([*enumerate(calls)]):
            if futures[number].status == "finished":
                found[number] = futures[number].result()
            else:
                if futures[number].status == "error":
                    error = futures[number].exception()
                    warnings.warn(f"a worker failed and this process goes on: {error!r}", stacklevel=3)
                found[number] = call(*args, **kwargs)
                futures[number].cancel()
    finally:
        client.cancel(futures)
    return found


def _there(
    environment: Mapping[str, str], path: list[str], num_threads: int, wanted: Mapping[str, str], call: bytes
) -> Any:
    """What a call returns, by a worker that finds data and modules, and rounds, as its sender does.

    Raises:
        RuntimeError: it has other versions.
    """
    from xuqlib.scale.cluster import check_versions
    from xuqlib.scale.store import needs

    check_versions(wanted)
    pickle = needs("distributed.protocol.pickle")
    os.environ.update(environment)
    sys.path.extend(each for each in path if each not in sys.path)
    torch.set_num_threads(num_threads)
    measure, args, kwargs = pickle.loads(call)
    return measure(*args, **kwargs)


def resumable(measure: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a measurement that takes minutes, and that notebooks call one after the other."""

    @wraps(measure)
    def once(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return kept(place(measure, args, kwargs), measure, *args, **kwargs)

    return once
