"""A stream of explanations: any number of examples, a batch at a time, into a store that any of many processes fills.

A batch is the unit of work. It is written whole or not at all, so that a process may be killed at any time, and run
again: the store itself says what is left to do. Batches are cut alike however many processes share them.
"""

from __future__ import annotations

import errno
import operator
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from xuqlib.checks import check_choice, check_count, check_flag, check_target
from xuqlib.device import check_device
from xuqlib.explainers import Explainer
from xuqlib.explainers.declaring import named
from xuqlib.posteriors.base import Posterior, check_draws
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.scale.batches import DRAWS_AT_ONCE, NUMBERS_AT_ONCE, POOLS, Job, variables
from xuqlib.scale.cluster import by_dask, connected
from xuqlib.scale.sources import as_source
from xuqlib.scale.store import Store, StoredExplanations, needs, open_explanations
from xuqlib.study.resuming import fingerprint

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class IncompleteError(RuntimeError):
    """Some batches could not be explained; the others are stored. `failed` holds the error of each, by its number."""

    def __init__(self, message: str, failed: Mapping[int, str]) -> None:
        super().__init__(message)
        self.failed = dict(failed)


def explain_dataset(
    draws: Draws | Posterior,
    explainer: Explainer | str,
    data: Any,
    *,
    to: str | Path,
    target: Tensor | int | str | None = None,
    output: Any = None,
    keep: str = "moments",
    pool: int | None = None,
    batch_size: int | None = None,
    num_draws: int = 30,
    seed: int = 0,
    dtype: str = "float32",
    device: torch.device | str | None = None,
    scheduler: Any = None,
    shard: tuple[int, int] | str | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> StoredExplanations:
    """Explain every example of a data set by every draw, and write what the draws say together into a store.

    It equals `explain` of all examples at once. Memory does not grow with the number of examples; of more draws, their
    answers to a batch are held, not their attributions. Networks that a posterior over weights draws are made from
    their seeds as they are used, where they do not fit together: a few at a time, twice for each batch. A killed run
    is finished by the next call; batches that are whole are not explained a second time.

    Args:
        draws: from `posterior.sample`; or a posterior, of which each process draws for itself.
        explainer: as for `explain`.
        data: `Examples`; a tensor, tuple or mapping of them; a `Dataset`, or a `DataLoader` that does not shuffle; the
            path of a CSV or Parquet file (a row an example, a column a feature) or of a folder of images (RGB, in
            [0, 1]).
        to: the store, a folder: Zarr v3, which any user of xarray can open.
        target: class of each example, (N,), or one for all; "labels", those of the data; by default as for `explain`.
        output: as for `explain`.
        keep: "moments", means and spreads over draws; "all", every attribution, too.
        pool: average each attribution to this many places along each axis of an image, before anything else.
        batch_size: examples of a batch, the unit of work and of storage; chosen from their size by default.
        num_draws, seed: for a posterior.
        dtype: of the stored maps, "float32" or "float16"; `rounding` says how far a map is off for it.
        device: where to compute; `xuqlib.device.device()` of each process by default, each worker of a cluster on its
            own.
        scheduler: share the batches among processes by Dask: the address of a scheduler, a `Client`, or "local", a
            process for each core of this machine; they all see the folder of `to`. Where workers were started with
            `--resources GPU=1`, they alone get batches, one at a time. By default this process works alone.
        shard: (i, n), or "i/n": explain every n-th batch only, for n runs without a scheduler; "auto" takes them from
            $SLURM_ARRAY_TASK_ID and $SLURM_ARRAY_TASK_COUNT, or $RANK and $WORLD_SIZE.
        overwrite: replace a store that is made of something else; one that is made of the same goes on.
        progress: show a bar of batches.
        **options: passed on to the explainer; those that it declares to hold one entry per example are cut.

    Returns:
        The store, opened; where other shards are missing, it is opened partially.

    Raises:
        TypeError, ValueError: as for `explain`, before the work begins; a store that is made of something else; a shard
            that does not exist.
        RuntimeError: another process writes to the store; a worker has other versions.
        IncompleteError: some batches failed. The others are stored.
        OSError: the disk is full, or cannot be written to.
        ImportError: without the extra `cluster`.
    """
    for package in ("zarr", "xarray"):
        needs(package)
    check_draws(num_draws, seed)
    for flag, what in ((overwrite, "overwrite"), (progress, "progress")):
        check_flag(flag, what)
    if batch_size is not None:
        check_count(batch_size, 1, "batch_size")
    if not isinstance(to, str | Path):
        raise TypeError(f"to is a {type(to).__name__}; pass the path of a folder")
    if Path(to).is_file():
        raise ValueError(f"to is {Path(to).name!r}, a file; pass the path of a folder")
    if device is not None and scheduler is None:
        check_device(device)
    check_choice(keep, ("moments", "all"), "keep")
    check_choice(dtype, ("float32", "float16"), "dtype")
    if not isinstance(draws, Draws | Posterior):
        raise TypeError(f"draws is a {type(draws).__name__}; pass a posterior, or posterior.sample(num_draws)")
    if not callable(explainer) and not isinstance(explainer, str):
        raise TypeError(f"explainer is {explainer!r}; pass a function (network, x, target), such as xuqlib.gradient")
    part, source, path = _shard(shard), as_source(data), Path(to)
    if isinstance(target, str):
        check_choice(target, ("labels",), "target")
    elif target is not None and not isinstance(target, int):
        target = check_target(target, len(source), 2**31)
    x = source.read(range(1)).inputs.x
    if pool is not None and (x.dim() - 1 not in POOLS or min(x.shape[2:]) < check_count(pool, 1, "pool")):
        raise ValueError(f"pool is {pool}, but an example has shape {tuple(x.shape[1:])}; pass images to fewer places")
    job = Job(
        path=path,
        draws=draws,
        num_draws=len(draws) if isinstance(draws, Draws) else num_draws,
        seed=seed,
        explainer=named(explainer),
        source=source,
        target=target,
        output=output,
        keep=keep,
        pool=pool,
        dtype=dtype,
        device=None if device is None or scheduler is not None else str(device),  # this process may have none
        options=dict(options),
    )
    with nullcontext() if scheduler is None else connected(scheduler) as client:  # which may be out of reach
        remote = replace(job, device=None if device is None else str(device))
        explained = partial(_here, job) if client is None else partial(by_dask, client, _attempt, remote)
        return _filled(job, _recipe(job, batch_size), part, overwrite, progress, explained)


def _filled(
    job: Job,
    recipe: dict[str, Any],
    part: tuple[int, int],
    overwrite: bool,
    progress: bool,
    explained: Callable[[dict[int, range]], Iterator[tuple[int, str]]],
) -> StoredExplanations:
    """Have what is missing in the part of a job's store explained, and open it."""
    store, path = Store(job.path), job.path
    if path.exists():
        there = store.recipe
        differing = [name for name in recipe if there.get(name) != recipe[name]]
        if differing and not overwrite:
            how = (f"{name} {_short(there.get(name))}, not {_short(recipe[name])}" for name in differing)
            raise ValueError(
                f"{path.name} was made of something else: {', '.join(how)}; pass another `to`, or overwrite=True"
            )
        if differing:
            with store.held():
                shutil.rmtree(path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        names = job.source.feature_names
        is_table = job.source.read(range(1)).inputs.x.dim() == 2
        store.create(recipe, variables(job, len(job.source)), {"feature": names} if names and is_table else {})
        if store.recipe != recipe:  # another process was faster, with another
            raise RuntimeError(f"another process has just made {path.name} of something else; pass another `to`")
    with store.held(part):
        parts, failed = store.parts(), {}
        todo = {number: parts[number] for number in store.missing(part)}
        for number, error in tqdm(explained(todo), total=len(todo), desc="explain", unit="batch", disable=not progress):
            if error:
                failed[number] = error
    if failed:
        rows = parts[min(failed)]
        raise IncompleteError(
            f"{len(failed)} of {len(todo)} batches failed, first examples {rows.start} to {rows.stop - 1} (0 to "
            f"{len(rows) - 1} of their batch): {failed[min(failed)]}; the others are in {path.name}. Mend or leave out "
            "those examples and run again",
            failed,
        )
    return open_explanations(path, partial=part != (0, 1))


def _recipe(job: Job, batch_size: int | None) -> dict[str, Any]:
    """What a store is made of: another one of these gives other bytes."""
    numbers = job.source.read(range(1)).inputs.x.numel() * min(job.group_size, DRAWS_AT_ONCE)
    return {
        "explainer": getattr(job.explainer, "__name__", type(job.explainer).__name__),
        "posterior": job.draws.posterior if isinstance(job.draws, Draws) else job.draws.name,
        "num_draws": job.num_draws,
        "num_examples": len(job.source),
        "batch_size": batch_size or job.source.batch_size or min(max(NUMBERS_AT_ONCE // numbers, 1), 2**14),
        "keep": job.keep,
        "pool": job.pool,
        "dtype": job.dtype,
        "feature_names": None if job.source.feature_names is None else list(job.source.feature_names),
        "networks": fingerprint(_identity(job)),
        "data": fingerprint(job.source.contents),
        "options": fingerprint([job.explainer, job.options, job.target, job.output]),
        "versions": job.versions,
    }


def _identity(job: Job) -> Any:
    """What tells these draws from others; networks that they share are looked at once."""
    draws = job.draws
    if isinstance(draws, Posterior):
        return [type(draws).__qualname__, vars(draws), job.num_draws, job.seed]
    inside = [each.network if isinstance(each, FixedNetwork) else each for each in draws]
    shared = {id(network): network for network in inside}
    known = {key: fingerprint(network) for key, network in shared.items()}
    seeds = [each.seed if isinstance(each, FixedNetwork) else None for each in draws]
    return [[known[id(network)] for network in inside], seeds, draws.output, draws.noise_variance]


def _shard(given: tuple[int, int] | str | None) -> tuple[int, int]:
    """Read (i, n), i of 0 to n - 1."""
    if given is None:
        return 0, 1
    if given == "auto":
        for index, among in (("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("RANK", "WORLD_SIZE")):
            if index in os.environ and among in os.environ:
                least = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0")) if index.startswith("SLURM") else 0
                return _shard((int(os.environ[index]) - least, int(os.environ[among])))
        raise ValueError(
            'shard is "auto", but neither $SLURM_ARRAY_TASK_ID and $SLURM_ARRAY_TASK_COUNT nor $RANK and $WORLD_SIZE '
            "are set; pass (i, n)"
        )
    parts = given.split("/") if isinstance(given, str) else given
    try:
        number, count = (int(part) if isinstance(part, str) else operator.index(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"shard is {given!r}; pass (i, n), i of 0 to n - 1, or 'i/n'") from None
    if not 0 <= number < count:
        raise ValueError(f"shard is {given!r}; of {count} shards there are numbers 0 to {count - 1}")
    return number, count


def _short(value: Any) -> str:
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def _attempt(job: Job, number: int, rows: range) -> tuple[int, str]:
    """Explain a batch; return its number, and what went wrong with its examples, if anything.

    Raises:
        OSError: nothing more can be written.
        MemoryError, RuntimeError: not the examples' fault.
    """
    try:
        job.run(number, rows)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        return number, f"{type(error).__name__}: {error}".partition("\n")[0]
    except OSError as error:
        if error.errno in FULL:
            raise OSError(
                error.errno, f"{os.strerror(error.errno or 0)} while writing {job.path.name}; make room and run again"
            ) from None
        raise
    return number, ""


def _here(job: Job, todo: dict[int, range]) -> Iterator[tuple[int, str]]:
    for number, rows in todo.items():
        yield _attempt(job, number, rows)
