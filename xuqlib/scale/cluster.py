"""Work shared among the workers of a Dask cluster."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from xuqlib.scale.store import needs
from xuqlib.study.files import versions

LIVES = 5  # workers that may die with a batch in hand, before the batch is held to be the reason
PATIENCE = 60.0  # seconds without a worker, until that is said


def by_dask(
    client: Any, attempt: Callable[[Any, int, range], tuple[int, str]], job: Any, todo: dict[int, range]
) -> Iterator[tuple[int, str]]:
    """Yield `attempt(job, number, rows)` of each batch as it ends; what a dying worker had in hand is tried again.

    Args:
        client: of Dask, see `connected`.
        job: sent to each worker once.

    Raises:
        ConnectionError: the workers of a `LocalCluster` have ended, and nobody starts others.
        Exception: whatever else `attempt` raises ends the run.
    """
    distributed = needs("distributed")
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    resources = {"GPU": 1} if any("GPU" in each["resources"] for each in workers) else None
    submit = partial(client.submit, attempt, resources=resources, pure=False)
    sent = _sent(client, job)
    deaths = dict.fromkeys(todo, 0)
    numbers = {submit(sent, number, rows): number for number, rows in todo.items()}
    ended = distributed.as_completed(list(numbers), loop=client.loop)
    for future in _awaited(ended, client):
        number = numbers.pop(future)
        if not isinstance(future.exception(), distributed.KilledWorker):
            outcome: tuple[int, str] = future.result()
            yield outcome
        elif deaths[number] == LIVES:
            yield number, "its workers died again and again; does an example fit into their memory?"
        else:
            deaths[number] += 1
            sent = _sent(client, job) if sent.status == "error" else sent  # those who died had just fetched the job
            again = submit(sent, number, todo[number])
            numbers[again] = number
            ended.add(again)


def _awaited(ended: Any, client: Any) -> Iterator[Any]:
    """The futures of an `as_completed` as they end, with a word where there is nobody to work."""
    seen = time.monotonic()
    while not ended.is_empty():
        if ended.has_ready():
            yield next(ended)
        elif time.monotonic() - seen < PATIENCE:
            time.sleep(0.01)
            continue
        elif isinstance(client.cluster, needs("distributed").LocalCluster):  # whose nannies start those that died anew
            if all(nanny.status.name in ("closing", "closed", "failed") for nanny in client.cluster.workers.values()):
                raise ConnectionError("all workers of the local cluster are given up; run this again with another")
        elif not client.nthreads():
            warnings.warn(f"no worker is there; start one with `dask worker {client.scheduler.address}`", stacklevel=2)
        seen = time.monotonic()


def _sent(client: Any, job: Any) -> Any:
    """Send the job to the scheduler, which makes it anew for the next worker when those that held it have died."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # networks are; scattered, they would be lost
        return client.submit(_itself, job, pure=False)


def _itself(job: Any) -> Any:
    return job


def check_versions(wanted: Mapping[str, str]) -> None:
    """Refuse to work in this process where it has other versions than those wanted.

    Raises:
        RuntimeError: it has.
    """
    here = versions()
    differing = {name: (wanted.get(name), here[name]) for name in here if wanted.get(name) != here[name]}
    if differing:
        raise RuntimeError(f"this worker has other versions (wanted, has): {differing}; install the same everywhere")


def connected(scheduler: Any, num_workers: int | None = None) -> AbstractContextManager[Any]:
    """Connect to a scheduler, for as long as the context lasts; a `Client` is used as it is.

    Args:
        scheduler: an address, a `Client`, or "local".
        num_workers: processes of "local"; one for each core by default.

    Raises:
        TypeError: another scheduler.
        ConnectionError: none answers at this address.
        ImportError: without the extra `cluster`.
    """
    distributed = needs("distributed")
    if isinstance(scheduler, distributed.Client):
        return nullcontext(scheduler)
    if not isinstance(scheduler, str):
        raise TypeError(f"scheduler is a {type(scheduler).__name__}; pass an address, a dask Client, or 'local'")
    if scheduler == "local":
        return _local(num_workers)
    try:
        client: AbstractContextManager[Any] = distributed.Client(scheduler, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {scheduler!r} ({str(error).partition(chr(10))[0]}); start one with `dask "
            "scheduler` and pass its address, such as tcp://host:8786, or pass 'local'"
        ) from error
    return client


@contextmanager
def _local(num_workers: int | None) -> Iterator[Any]:
    """A cluster on this machine. Dask gives up whom it misses 15 s after a death; to import torch can take longer."""
    patient = {"distributed.deploy.lost-worker-timeout": "10 days"}
    options = {"n_workers": num_workers, "threads_per_worker": 1, "dashboard_address": ":0", "set_as_default": False}
    with needs("dask").config.set(patient), needs("distributed").Client(processes=True, **options) as client:
        yield client
