"""`explain_dataset` on a real cluster of processes: the same bytes, whoever dies."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scale.test_stream import Poisoned, contents, images, stream
from torch import nn

import xuqlib as xuq
from xuqlib.scale import explain_dataset
from xuqlib.scale.batches import Job
from xuqlib.scale.cluster import by_dask, connected
from xuqlib.scale.stream import IncompleteError

dask = pytest.importorskip("dask", reason="the extra `cluster` is not installed")
distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")


def slow_gradient(network, x, target):
    """Take long enough to be killed."""
    time.sleep(0.02)
    return xuq.gradient(network, x, target)


@pytest.fixture(scope="module")
def posterior() -> xuq.Posterior:
    torch.manual_seed(0)
    return xuq.MCDropout(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 5)).eval()
    )


@pytest.fixture(scope="module")
def client():
    with connected("local", 2) as client:
        client.run(torch.set_num_threads, 1)
        yield client


@pytest.fixture(scope="module")
def alone(posterior, tmp_path_factory) -> Path:
    """The store of a run that nothing disturbed, in one process."""
    to = tmp_path_factory.mktemp("alone") / "maps.zarr"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stream(posterior, images(40), to, slow_gradient, batch_size=2)
    torch.set_num_threads(threads)
    return to


def kill_workers(client, number: int, seed: int, stop: threading.Event) -> list[int]:
    """Kill `number` workers at random moments, each when it is up again."""
    chance, killed = np.random.default_rng(seed), []
    while len(killed) < number and not stop.wait(chance.uniform(0.1, 0.5)):
        found = client.run(os.getpid, on_error="return").values()  # an error, of one that was just killed
        if alive := [pid for pid in found if isinstance(pid, int)]:
            os.kill(int(chance.choice(alive)), signal.SIGKILL)
            killed.append(1)
    return killed


def until_whole(*what, **options) -> None:
    """`stream`, and the same call again where workers died more often than Dask forgives a task."""
    try:
        stream(*what, **options)
    except IncompleteError as error:
        if "workers died" not in str(error):
            raise
        until_whole(*what, **options)


@pytest.mark.parametrize("kills", [0, 3, pytest.param(20, marks=pytest.mark.nightly)])
def test_a_cluster_whose_workers_are_killed_writes_the_same_bytes_as_one_process(
    client, posterior, alone, tmp_path, kills, monkeypatch
):
    monkeypatch.setattr("xuqlib.scale.cluster.PATIENCE", 0.5)  # that nobody is there for longer ends nothing
    killed = list[int]()
    for run in range(max(kills, 1)):  # until there were as many kills
        to, stop, before = tmp_path / f"{run}.zarr", threading.Event(), len(killed)
        killer = threading.Thread(
            target=lambda to_kill, seed, stop: killed.extend(kill_workers(client, to_kill, seed, stop)),
            args=(kills - before, kills + run, stop),
        )
        killer.start()
        try:
            until_whole(posterior, images(40), to, slow_gradient, batch_size=2, scheduler=client)
        finally:
            stop.set()
            killer.join()
        assert contents(to) == contents(alone)
        if len(killed) == kills:
            break
    print(f"{len(killed)} kills in {run + 1} runs")
    assert len(killed) == kills


def test_a_local_cluster_without_workers_is_an_error_and_another_one_a_warning(posterior, tmp_path, monkeypatch):
    monkeypatch.setattr("xuqlib.scale.cluster.PATIENCE", 0.5)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as of_cluster,
        distributed.Client(cluster.scheduler_address) as of_address,
    ):
        with pytest.raises(ConnectionError, match="workers of the local cluster are given up; run this again"):
            stream(posterior, images(4), tmp_path / "local.zarr", scheduler=of_cluster)
        come = threading.Timer(3, cluster.scale, [1])
        come.start()
        with pytest.warns(UserWarning, match="no worker is there; start one with `dask worker tcp://"):
            stored = stream(posterior, images(4), tmp_path / "other.zarr", scheduler=of_address)
        come.join()
        assert len(stored.dataset["example"]) == 4


def test_a_batch_that_is_whole_is_not_explained_again_when_its_worker_died_before_it_was_heard(
    posterior, tmp_path, monkeypatch
):
    jobs, run = [], Job.run
    monkeypatch.setattr(Job, "run", lambda job, *what: (jobs.append(job), run(job, *what)))
    to = tmp_path / "maps.zarr"
    stream(posterior, images(4), to, batch_size=2)
    monkeypatch.setattr(Job, "explained", lambda *_: pytest.fail("explained again"))
    before = contents(to)
    jobs[0].run(1, range(2, 4))
    assert contents(to) == before
    Path(to, "whole", "c", "1").unlink()
    with pytest.raises(pytest.fail.Exception, match="explained again"):
        jobs[0].run(1, range(2, 4))


def noting(network, x, target, *, folder):
    """The gradient, and a note of who computed it, and on what."""
    with (Path(folder) / str(os.getpid())).open("a") as file:
        file.write(f"{x.device.type}\n")
    return xuq.gradient(network, x, target)


def test_batches_go_to_the_workers_that_have_a_gpu_and_each_computes_on_its_own_device(
    client, posterior, tmp_path, monkeypatch
):
    notes = tmp_path / "notes"
    notes.mkdir()
    stream(posterior, images(6), tmp_path / "alone.zarr", noting, batch_size=2, folder=str(notes))
    assert [each.name for each in notes.iterdir()] == [str(os.getpid())]
    shutil.rmtree(notes)
    notes.mkdir()
    environment = {**os.environ, "XUQ_DEVICE": "pretend", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*sys.path, str(Path(__file__).parents[1])])
    command = [sys.executable, "-m", "distributed.cli.dask_worker", client.scheduler.address, "--nthreads", "1"]
    command += ["--no-nanny", "--no-dashboard", "--resources", "GPU=1", "--preload", "pretend_device"]
    with subprocess.Popen(command, env=environment) as worker:
        try:
            client.wait_for_workers(3)
            to = tmp_path / "pretend.zarr"
            stream(posterior, images(6), to, noting, batch_size=2, scheduler=client, folder=str(notes))
            by = {each.name: set(each.read_text().split()) for each in notes.iterdir()}
            assert by.pop(str(worker.pid)) == {"pretend"}, "the one with a GPU alone, on its own device"
            assert set(by) <= {str(os.getpid())}, "this process has looked at one example, for the shapes"
            options = {"batch_size": 2, "scheduler": client, "device": "cuda:7"}
            with pytest.raises(RuntimeError, match=r"device is 'cuda:7', which this machine has not.* \(on "):
                stream(posterior, images(6), tmp_path / "other.zarr", **options)
        finally:
            worker.kill()
    while len(client.scheduler_info(n_workers=-1)["workers"]) > 2:
        time.sleep(0.1)
    for name in ("mean", "std", "cv"):
        there, here = (
            getattr(xuq.open_explanations(tmp_path / store), name)() for store in ("pretend.zarr", "alone.zarr")
        )
        np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-6)


class DeadlyOnce:
    """A job that kills the first worker which receives it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return received, (self.marker,)


def received(marker: Path) -> DeadlyOnce | str:
    if multiprocessing.parent_process() is None:  # the scheduler, which hands it on
        return DeadlyOnce(marker)
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "job"


def told(job: str, number: int, rows: range) -> tuple[int, str]:
    return number, f"{job} {rows.start}"


def test_a_job_whose_receiver_died_is_sent_again(tmp_path):
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        connected("local", 1) as client,
    ):
        outcomes = by_dask(client, told, DeadlyOnce(tmp_path / "seen"), {0: range(0, 2), 1: range(2, 4)})
        assert sorted(outcomes) == [(0, "job 0"), (1, "job 2")]
    assert (tmp_path / "seen").exists()


def test_a_poisoned_example_fails_its_batch_alone_on_a_cluster_too(client, posterior, tmp_path):
    with pytest.raises(IncompleteError, match="1 of 3 batches failed, first examples 4 to 7 .*holds 192 NaN"):
        stream(posterior, Poisoned(5), tmp_path / "maps.zarr", scheduler=client)


def test_a_worker_of_another_version_is_named_before_it_writes(client, posterior, tmp_path, monkeypatch):
    monkeypatch.setattr("xuqlib.scale.batches.versions", lambda: {"torch": "1.0"})
    with pytest.raises(RuntimeError, match=r"this worker has other versions .*'torch': \('1.0', '2"):
        stream(posterior, images(4), tmp_path / "maps.zarr", scheduler=client)


def test_a_scheduler_that_is_none_is_refused(posterior, tmp_path):
    with pytest.raises(TypeError, match="scheduler is a int; pass an address, a dask Client, or 'local'"):
        explain_dataset(posterior, xuq.gradient, images(4), to=tmp_path / "maps.zarr", scheduler=3)
    with pytest.raises(ConnectionError, match="no Dask scheduler answers at 'foo' .*; start one with `dask scheduler`"):
        explain_dataset(posterior, xuq.gradient, images(4), to=tmp_path / "maps.zarr", scheduler="foo")
    assert not (tmp_path / "maps.zarr").exists()
