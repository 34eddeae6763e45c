"""A stream of explanations: any number of examples, a batch at a time, into a store that any of many processes fills.

A batch is the unit of work. It is written whole or not at all, so that a process may be killed at any time, and run
again: the store itself says what is left to do. Batches are cut alike however many processes share them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from xuqlib.checks import check_choice, check_count, check_target
from xuqlib.device import device as default_device
from xuqlib.explain import explain, predicted
from xuqlib.explainers import Explainer
from xuqlib.explainers.declaring import declared_by, named
from xuqlib.moments import Moments
from xuqlib.path import blocks
from xuqlib.posteriors.base import Posterior, check_draws
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.scale.sources import Batch, Source, as_source
from xuqlib.scale.store import StoredExplanations, Store, Variable, needs, open_explanations
from xuqlib.study.record import versions
from xuqlib.study.resuming import fingerprint
from xuqlib.uncertainty import decompose, logits_of

NUMBERS_AT_ONCE = 2**23  # of attributions of some draws of a batch
DRAWS_AT_ONCE = 32  # whose trunk is evaluated once
AXES = {1: ("feature",), 2: ("channel", "time"), 3: ("channel", "height", "width")}
AXES[4] = ("channel", "depth", "height", "width")
POOLS: dict[int, Callable[[Tensor, int], Tensor]] = {2: F.adaptive_avg_pool1d, 3: F.adaptive_avg_pool2d}
POOLS[4] = F.adaptive_avg_pool3d
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class IncompleteError(RuntimeError):
    """Some batches could not be explained; the others are stored. `failed` holds the error of each, by its number."""

    def __init__(self, message: str, failed: Mapping[int, str]) -> None:
        super().__init__(message)
        self.failed = dict(failed)


@dataclass
class Job:
    """All that a process needs to explain any batch, and nothing that it can make itself.

    Attributes:
        draws: they themselves, or a posterior, of which each process takes `num_draws` by `seed`.
        target: class of each example, (N,), or one for all; "labels", of the data; None, the predicted one.
        num_draws, seed: for a posterior.
        dtype: of the stored maps.
    """

    path: Path
    draws: Draws | Posterior
    num_draws: int
    seed: int
    explainer: Explainer
    source: Source
    target: Tensor | int | str | None
    output: Any
    keep: str
    pool: int | None
    dtype: str
    device: str
    options: dict[str, Any]
    versions: dict[str, str] = field(default_factory=versions)

    def __getstate__(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}  # each process draws for itself

    @cached_property
    def networks(self) -> Draws:
        """The draws."""
        if isinstance(self.draws, Draws):
            return self.draws
        return self.draws.sample(self.num_draws, seed=self.seed)

    def run(self, number: int, rows: range) -> None:
        """Explain a batch and write it.

        Raises:
            RuntimeError: this process has other versions than the one that made the store.
        """
        if (here := versions()) != self.versions:
            differing = {name: (self.versions[name], here.get(name)) for name in here if self.versions.get(name) != here[name]}
            raise RuntimeError(f"this worker has other versions (wanted, has): {differing}; install the same everywhere")
        Store(self.path).write(number, self.explained(rows))

    def explained(self, rows: range) -> dict[str, np.ndarray]:
        """What is stored of some examples, by the names of `variables`."""
        batch = self.source.read(rows)
        where = torch.device(self.device)
        draws, x = self.networks.seen(batch.inputs, self.output)
        target = self._target(batch, rows)
        target = predicted(draws, x, where) if target is None else check_target(target, len(x), 2**31)
        numbers = logits_of(self.networks, batch.inputs, output=self.output)
        split = decompose(numbers, draws.noise_variance, draws.output)
        found = {name: value.float().numpy() for name, value in vars(split).items()}
        found["answer_mean"], found["answer_std"] = (
            each.float().numpy() for each in (numbers.double().mean(0), numbers.double().std(0, correction=0))
        )
        found["target"] = np.full(len(x), -1) if target is None else target.numpy()
        found["id"] = np.array(batch.ids, dtype=np.dtypes.StringDType())
        return found | self._maps(draws, x, target, rows)

    def _target(self, batch: Batch, rows: range) -> Tensor | int | None:
        if isinstance(self.target, str):
            if batch.labels is None:
                raise ValueError('target is "labels", but the data has none; pass a class, or one per example')
            return batch.labels
        return self.target[rows.start : rows.stop] if isinstance(self.target, Tensor) else self.target

    def _maps(self, draws: Draws, x: Tensor, target: Tensor | None, rows: range) -> dict[str, np.ndarray]:
        options, moments, signs, values = self._options(rows), Moments(), (0, 0), []
        at_once = min(DRAWS_AT_ONCE, max(1, NUMBERS_AT_ONCE // x.numel()))
        for some in blocks(len(draws), at_once):
            e = explain(draws[some], self.explainer, x, target, device=self.device, progress=False, **options)
            assert e.values is not None
            for value in e.values:
                value = pooled(value, self.pool)
                moments.append(value)
                signs = signs[0] + (value > 0).int(), signs[1] + (value < 0).int()
                if self.keep == "all":
                    values.append(value)
        agreeing = torch.maximum(*signs).double() / len(draws)
        maps = {"sign_agreement": torch.where(agreeing > 0, agreeing, torch.nan)}
        for kind, prefix in (("raw", ""), ("folded", "folded_"), ("rescaled", "rescaled_")):
            maps |= {f"{prefix}mean": moments.of[kind].mean, f"{prefix}std": moments.of[kind].std()}
        if values:
            maps["attribution"] = torch.stack(values)
        stored = {name: value.numpy().astype(self.dtype) for name, value in maps.items()}
        mean, back = moments.of["raw"].mean.flatten(1), torch.from_numpy(stored["mean"]).double().flatten(1)
        error = (back - mean).norm(dim=1) / mean.norm(dim=1)
        return stored | {"rounding": error.float().nan_to_num().numpy()}

    def _options(self, rows: range) -> dict[str, Any]:
        per_example = declared_by(self.explainer).per_example or {}
        is_cut = {
            name: name in per_example and hasattr(value, "__len__") and len(value) == len(self.source)
            for name, value in self.options.items()
        }
        return {
            name: value[rows.start : rows.stop] if is_cut[name] else value for name, value in self.options.items()
        }


def pooled(attribution: Tensor, size: int | None) -> Tensor:
    """Average maps (N, C, ...) to `size` places along each axis; as they are if it is None."""
    return attribution if size is None else POOLS[attribution.ndim - 1](attribution, size)


def variables(job: Job, num_examples: int) -> dict[str, Variable]:
    """The arrays of a store, laid out by what is found out about the first example."""
    found, num_draws = job.explained(range(1)), job.num_draws
    shape = found["mean"].shape[1:]
    axes = AXES.get(len(shape), tuple(f"axis_{axis}" for axis in range(1, len(shape) + 1)))
    inner = {"mean": axes, "folded_mean": axes[1:] if len(shape) > 2 else axes}
    maps = {
        "mean": "mean attribution over draws",
        "std": "standard deviation of the attribution over draws",
        "sign_agreement": "share of draws that agree with the more common sign",
        "folded_mean": "mean over draws of |attribution|, summed over channels",
        "folded_std": "standard deviation of that",
        "rescaled_mean": "mean over draws of |attribution|, clipped at its 99th percentile and scaled to [0, 1]",
        "rescaled_std": "standard deviation of that",
        "attribution": "attribution of each draw",
    }
    places = found["total"].shape[1:]
    unit = "squared units of the target" if job.networks.output in ("regression", "mean_variance") else "nats"
    rows = {
        "total": ("total uncertainty of the prediction", unit),
        "aleatoric": ("aleatoric part", unit),
        "epistemic": ("epistemic part", unit),
        "answer_mean": ("mean over draws of what the networks answer", ""),
        "answer_std": ("standard deviation of that", ""),
        "target": ("class that is explained; -1 for none", ""),
        "id": ("name of the example", ""),
        "rounding": ("relative error (L2) of the stored mean map by rounding", ""),
    }
    made: dict[str, Variable] = {}
    for name, values in found.items():
        if name in maps:
            along = inner["folded_mean"] if name.startswith(("folded", "rescaled")) else axes
            lead, dtype, (about, measure) = (("draw",) if name == "attribution" else ()), job.dtype, (maps[name], "")
        else:
            (about, measure), lead = rows[name], ()
            width = ("output", "row", "column", "depth") if name.startswith("answer") else ("output",)
            if name in ("total", "aleatoric", "epistemic") and len(places) > 1:
                width = ("row", "column", "depth")
            along = width[: values.ndim - 1]
            dtype = {"id": "str", "target": "int64"}.get(name, "float32")
        sizes = values.shape[2:] if lead else values.shape[1:]
        made[name] = Variable(
            (*lead, "example", *along), (*((num_draws,) if lead else ()), num_examples, *sizes), dtype, about, measure
        )
    return made


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

    It equals `explain` of all examples at once. Memory grows neither with the number of examples nor of draws. A
    killed run is finished by calling it again; batches that are whole are not explained a second time.

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
        device: where to compute; `xuqlib.device.device()` of each process by default.
        scheduler: share the batches among processes by Dask: the address of a scheduler, a `Client`, or "local", a
            process for each core of this machine; they all see the folder of `to`. By default this process works alone.
        shard: (i, n), or "i/n": explain every n-th batch only, for n runs without a scheduler; "auto" takes them from
            $SLURM_ARRAY_TASK_ID and $SLURM_ARRAY_TASK_COUNT, or $RANK and $WORLD_SIZE.
        overwrite: replace a store that is made of something else.
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
    needs("zarr"), needs("xarray")
    source = as_source(data)
    job = _job(draws, explainer, source, to, target, output, keep, pool, num_draws, seed, dtype, device, options)
    size = batch_size or source.batch_size or _suitable(job)
    recipe = {
        "explainer": getattr(job.explainer, "__name__", type(job.explainer).__name__),
        "posterior": getattr(draws, "posterior", getattr(draws, "name", "")),
        "num_draws": job.num_draws,
        "num_examples": len(source),
        "batch_size": check_count(size, 1, "batch_size"),
        "keep": keep,
        "pool": pool,
        "dtype": dtype,
        "feature_names": None if source.feature_names is None else list(source.feature_names),
        "networks": fingerprint(_identity(draws, job)),
        "data": fingerprint(source.contents),
        "options": fingerprint([job.explainer, job.options, target, output]),
        "versions": job.versions,
    }
    part, store = _shard(shard), Store(job.path)
    if store.path.exists() and overwrite:
        with store.held():
            shutil.rmtree(store.path)
    if not store.path.exists():
        store.path.parent.mkdir(parents=True, exist_ok=True)
        store.create(recipe, variables(job, len(source)), _names(source, job))
    if differing := [name for name in recipe if store.recipe.get(name) != recipe[name]]:
        raise ValueError(
            f"{store.path.name} was made of something else: "
            + ", ".join(f"{name} {_short(store.recipe.get(name))}, not {_short(recipe[name])}" for name in differing)
            + "; pass another `to`, or overwrite=True"
        )
    with store.held(part):
        todo, parts = store.missing(part), store.parts()
        outcomes = _here(job, todo, parts) if scheduler is None else _by_dask(scheduler, job, todo, parts)
        failed = {}
        with tqdm(outcomes, total=len(todo), desc="explain", unit="batch", disable=not progress) as bar:
            for number, error in bar:
                if error:
                    failed[number] = error
    if failed:
        first = min(failed)
        rows = parts[first]
        raise IncompleteError(
            f"{len(failed)} of {len(todo)} batches failed, first examples {rows.start} to {rows.stop - 1} (below: 0 to {len(rows) - 1}): "
            f"{failed[first]}; the others are in {store.path.name}. Mend or leave out those examples and run again",
            failed,
        )
    return open_explanations(store.path, partial=part != (0, 1))


def _job(
    draws: Any,
    explainer: Any,
    source: Source,
    to: str | Path,
    target: Any,
    output: Any,
    keep: str,
    pool: int | None,
    num_draws: int,
    seed: int,
    dtype: str,
    device: Any,
    options: dict[str, Any],
) -> Job:
    """Check what was asked for, before anything is computed."""
    if not isinstance(draws, Draws | Posterior):
        raise TypeError(f"draws is a {type(draws).__name__}; pass a posterior, or posterior.sample(num_draws)")
    check_draws(num_draws, seed)
    check_choice(keep, ("moments", "all"), "keep")
    check_choice(dtype, ("float32", "float16"), "dtype")
    if not callable(explainer) and not isinstance(explainer, str):
        raise TypeError(f"explainer is {explainer!r}; pass a function (network, x, target), such as xuqlib.gradient")
    if pool is not None:
        check_count(pool, 1, "pool")
        shape = source.read(range(1)).inputs.x.shape
        if len(shape) - 1 not in POOLS or min(shape[2:]) < pool:
            raise ValueError(f"pool is {pool}, but an example has shape {tuple(shape[1:])}; pool images to fewer places")
    if isinstance(target, str):
        check_choice(target, ("labels",), "target")
    elif target is not None and not isinstance(target, int):
        target = check_target(target, len(source), 2**31)
    count = len(draws) if isinstance(draws, Draws) else num_draws
    where = str(default_device() if device is None else torch.device(device))
    return Job(
        Path(to), draws, count, seed, named(explainer), source, target, output, keep, pool, dtype, where, dict(options)
    )


def _suitable(job: Job) -> int:
    """Examples whose attributions by some draws are held at once."""
    numbers = job.source.read(range(1)).inputs.x.numel()
    return min(max(NUMBERS_AT_ONCE // (numbers * min(job.num_draws, DRAWS_AT_ONCE)), 1), 2**14)


def _identity(draws: Draws | Posterior, job: Job) -> Any:
    """What tells these draws from others; networks that they share are looked at once."""
    if isinstance(draws, Posterior):
        return [type(draws).__qualname__, vars(draws), job.num_draws, job.seed]
    inside = [each.network if isinstance(each, FixedNetwork) else each for each in draws]
    shared = {id(network): network for network in inside}
    known = {key: fingerprint(network) for key, network in shared.items()}
    seeds = [each.seed if isinstance(each, FixedNetwork) else None for each in draws]
    return [[known[id(network)] for network in inside], seeds, draws.output, draws.noise_variance]


def _names(source: Source, job: Job) -> dict[str, tuple[str, ...]]:
    names = source.feature_names
    return {} if names is None or job.source.read(range(1)).inputs.x.ndim != 2 else {"feature": tuple(names)}


def _shard(given: tuple[int, int] | str | None) -> tuple[int, int]:
    """Read (i, n), i of 0 to n - 1."""
    if given is None:
        return 0, 1
    if given == "auto":
        for index, count in (("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("RANK", "WORLD_SIZE")):
            if index in os.environ and count in os.environ:
                least = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0")) if index.startswith("SLURM") else 0
                return _shard((int(os.environ[index]) - least, int(os.environ[count])))
        raise ValueError(
            'shard is "auto", but neither $SLURM_ARRAY_TASK_ID and $SLURM_ARRAY_TASK_COUNT nor $RANK and $WORLD_SIZE '
            "are set; pass (i, n)"
        )
    parts = given.split("/") if isinstance(given, str) else given
    try:
        index, count = (int(part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"shard is {given!r}; pass (i, n), i of 0 to n - 1, or 'i/n'") from None
    if not 0 <= index < count:
        raise ValueError(f"shard is {given!r}; of {count} shards there are numbers 0 to {count - 1}")
    return index, count


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


def _here(job: Job, todo: list[int], parts: list[range]) -> Iterator[tuple[int, str]]:
    for number in todo:
        yield _attempt(job, number, parts[number])


def _by_dask(scheduler: Any, job: Job, todo: list[int], parts: list[range]) -> Iterator[tuple[int, str]]:
    """Share batches among the workers of a Dask cluster; what those that die had in hand is given to others."""
    distributed = needs("distributed")
    with _client(distributed, scheduler) as client:
        [sent] = client.scatter([job], broadcast=True)
        futures = {
            client.submit(_attempt, sent, number, parts[number], pure=False, retries=0): number for number in todo
        }
        waiting = distributed.as_completed(list(futures))
        lost: dict[int, int] = {}
        for future in waiting:
            number = futures.pop(future)
            if future.status == "error" and isinstance(future.exception(), distributed.KilledWorker):
                lost[number] = lost.get(number, 0) + 1
                if lost[number] > 5:
                    yield number, "its workers died again and again; is one example too large for their memory?"
                    continue
                again = client.submit(_attempt, sent, number, parts[number], pure=False)
                futures[again] = number
                waiting.add(again)
                continue
            yield cast(tuple[int, str], future.result())


def _client(distributed: Any, scheduler: Any) -> Any:
    """Connect to a scheduler, a cluster of this machine, or what a client is connected to."""
    if isinstance(scheduler, distributed.Client):
        from contextlib import nullcontext

        return nullcontext(scheduler)
    if scheduler == "local":
        return distributed.Client(processes=True, threads_per_worker=1, dashboard_address=None)
    if not isinstance(scheduler, str):
        raise TypeError(f"scheduler is a {type(scheduler).__name__}; pass an address, a dask Client, or 'local'")
    return distributed.Client(scheduler)
