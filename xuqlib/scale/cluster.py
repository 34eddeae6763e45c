"""Batches shared among the workers of a Dask cluster."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from xuqlib.scale.store import needs

LIVES = 5  # workers that may die with a batch in hand, before the batch is held to be the reason


def by_dask(
    scheduler: Any, attempt: Callable[[Any, int, range], tuple[int, str]], job: Any, todo: dict[int, range]
) -> Iterator[tuple[int, str]]:
    """Yield `attempt(job, number, rows)` of each batch as it ends; what a dying worker had in hand is tried again.

    Args:
        scheduler: an address, a `Client`, or "local".
        job: sent to each worker once.

    Raises:
        TypeError: another scheduler.
        Exception: whatever else `attempt` raises ends the run.
    """
    distributed = needs("distributed")
    with _client(distributed, scheduler) as client:
        sent = _sent(client, job)
        deaths = dict.fromkeys(todo, 0)
        numbers = {client.submit(attempt, sent, number, rows, pure=False): number for number, rows in todo.items()}
        ended = distributed.as_completed(list(numbers))
        for future in ended:
            number = numbers.pop(future)
            if not isinstance(future.exception(), distributed.KilledWorker):
                outcome: tuple[int, str] = future.result()
                yield outcome
            elif deaths[number] == LIVES:
                yield number, "its workers died again and again; does an example fit into their memory?"
            else:
                deaths[number] += 1
                again = client.submit(attempt, sent, number, todo[number], pure=False)
                numbers[again] = number
                ended.add(again)


def _sent(client: Any, job: Any) -> Any:
    """Send the job to the scheduler, which makes it anew for the next worker when those that held it have died."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # networks are; scattered, they would be lost
        return client.submit(_itself, job, pure=False)


def _itself(job: Any) -> Any:
    return job


def _client(distributed: Any, scheduler: Any) -> AbstractContextManager[Any]:
    if isinstance(scheduler, distributed.Client):
        return nullcontext(scheduler)
    if not isinstance(scheduler, str):
        raise TypeError(f"scheduler is a {type(scheduler).__name__}; pass an address, a dask Client, or 'local'")
    if scheduler == "local":
        client: AbstractContextManager[Any] = distributed.Client(
            processes=True, threads_per_worker=1, dashboard_address=None
        )
        return client
    connected: AbstractContextManager[Any] = distributed.Client(scheduler)
    return connected
