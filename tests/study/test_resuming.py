"""Measurements of an interrupted notebook are not made again, and never mistaken for others."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import nbformat
import pandas as pd
import pytest
import torch
from joblib import Parallel, cpu_count, delayed

import run_all
import xuqlib
from xuqlib import MCDropout, Recipe, mlp
from xuqlib.study import resuming
from xuqlib.study.resuming import resumable, side_by_side

MADE: list[str] = []


def square(number):
    MADE.append(f"square {number}")
    return number**2


@resumable
def inner(number):
    MADE.append(f"inner {number}")
    return number + 0.5


@resumable
def outer(number):
    MADE.append(f"outer {number}")
    return [inner(number), *side_by_side((delayed(square)(each) for each in range(number)), 1)]


@pytest.fixture
def kernel(monkeypatch):
    """Call it where a new kernel would start."""
    monkeypatch.delenv("XUQ_PARTS", raising=False)
    MADE.clear()
    return lambda: monkeypatch.setattr(resuming, "_measuring", False)


def test_without_a_folder_nothing_is_kept(kernel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [outer(1), outer(1)] == [[1.5, 0]] * 2
    assert MADE == ["outer 1", "inner 1", "square 0"] * 2
    assert not list(tmp_path.iterdir())


def test_a_second_kernel_takes_up_what_the_first_has_measured(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path / "parts"))
    kernel()
    first = [outer(2), inner(7)]
    made = list(MADE)
    kernel()
    assert [outer(2), inner(7), *side_by_side([delayed(square)(3)], 1)] == [*first, 9]
    assert [*made, "square 3"] == MADE


def test_a_measurement_is_known_by_its_name_and_arguments_wherever_it_stands(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path / "parts"))
    kernel()
    first = [inner(1), inner(2)]
    MADE.clear()
    kernel()
    assert [inner(3), inner(2), inner(1)] == [3.5, *reversed(first)]  # another cell in front, the others turned round
    assert MADE == ["inner 3"]


def test_what_differs_has_another_fingerprint_and_what_is_equal_the_same():
    layer = torch.nn.Linear(2, 1)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.bias += 1
    unlike = [
        *(None, 0, 0.0, "0", [0], (0,), {"a": 0}, {"a": 1}, torch.zeros(1), torch.zeros(1).double(), torch.zeros(1, 1)),
        *(layer, other, MCDropout(mlp(num_features=2, dropout=0.5)), pd.Series([0]), pd.Series([1]), abs, max),
        *(lambda x: x[..., 0], lambda x: x[0, ...], lambda x: x[:, 0]),
        *(lambda: 1, lambda: 2, partial(max, 1), partial(max, 2), Recipe(), Recipe(epochs=3), torch.float32, "float32"),
    ]
    found = [resuming.fingerprint(each) for each in unlike]
    assert len(set(found)) == len(found)
    assert found == [resuming.fingerprint(copy.deepcopy(each)) for each in unlike]


@pytest.mark.slow
def test_a_fingerprint_is_the_same_in_another_process():
    values = [{"b", "a", "c"}, {"a": torch.arange(3)}, Recipe(), pd.DataFrame({"a": [1.0], "b": ["x"]})]
    found = Parallel(n_jobs=2)(delayed(resuming.fingerprint)(value) for value in values)
    assert found == [resuming.fingerprint(value) for value in values]


def test_what_cannot_be_told_apart_is_refused(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path))
    kernel()
    with pytest.raises(TypeError, match="generator; pass numbers"):
        inner(each for each in range(2))


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_the_cores_whatever_the_notebook_may_use(kernel, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # as run_all.py sets it for a notebook that runs alone
    kernel()
    found = side_by_side([delayed(os.getenv)("OMP_NUM_THREADS")] * 2, processes)
    assert found == ["7" if processes == 1 else str(max(1, cpu_count() // processes))] * 2


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(kernel, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path))
    for _ in range(2):
        kernel()
        assert side_by_side((delayed(abs)(-each) for each in range(6)), processes) == list(range(6))
    assert len(list(tmp_path.glob("*.part"))) == 6


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("dask", reason="the extra `cluster` is not installed")
    from distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with LocalCluster(n_workers=1, **options) as machine, Client(machine, set_as_default=False) as client:
        yield client


@pytest.mark.slow
def test_a_cluster_helps_with_long_measurements_and_what_it_finds_is_the_same(cluster, kernel, tmp_path, monkeypatch):
    def who(number):  # local: it travels by value, as a function of a notebook does
        time.sleep(0.2)
        with (tmp_path / "measured").open("a") as file:
            file.write(f"{number}\n")
        return os.getpid(), number, os.environ.get("XUQ_DATA"), torch.get_num_threads()

    monkeypatch.setenv("XUQ_PARTS", str(tmp_path))
    monkeypatch.setenv("XUQ_SCHEDULER", cluster.scheduler.address)
    monkeypatch.setenv("XUQ_DATA", "a folder")
    cluster.submit(resuming.fingerprint, 0).result()  # it has imported what it needs
    found = side_by_side((delayed(who)(each) for each in range(30)), 1)
    worker = cluster.run(os.getpid).popitem()[1]
    places = [pid for pid, *_ in found]
    assert set(places) == {worker, os.getpid()}, "both have worked"
    assert places[0] == worker and places[-1] == os.getpid(), "one from the front, the other from the back"
    assert [rest for _, *rest in found] == [[each, "a folder", torch.get_num_threads()] for each in range(30)]
    time.sleep(1)  # the last that the worker had in hand
    measured = (tmp_path / "measured").read_text().split()
    assert 30 <= len(measured) <= 31, "where the two meet, both may measure"
    kernel()
    again = side_by_side((delayed(who)(each) for each in range(30)), 1)
    assert [rest for _, *rest in again] == [rest for _, *rest in found]
    assert (tmp_path / "measured").read_text().split() == measured, "kept, by whoever measured it"


@pytest.mark.slow
def test_a_worker_of_another_version_measures_nothing_and_that_is_said(cluster, kernel, monkeypatch):
    def where(_):
        time.sleep(0.5)
        return os.getpid()

    monkeypatch.setenv("XUQ_SCHEDULER", cluster.scheduler.address)
    cluster.wait_for_workers(1)
    cluster.submit(resuming.fingerprint, 0).result()
    monkeypatch.setattr(resuming, "versions", lambda: {"torch": "1.0"})
    with pytest.warns(UserWarning, match="a worker failed and this process goes on.*other versions"):
        assert side_by_side((delayed(where)(each) for each in range(4)), 1) == 4 * [os.getpid()]


@pytest.mark.slow
def test_a_measurement_waits_for_no_worker_and_is_not_lost_with_one(cluster, kernel, monkeypatch):
    monkeypatch.setenv("XUQ_SCHEDULER", cluster.scheduler.address)
    here = os.getpid()

    def deadly(number):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "a worker failed", UserWarning)  # or had not begun
        assert side_by_side((delayed(deadly)(each) for each in range(3)), 1) == [0, 1, 2]
    cluster.wait_for_workers(1)
    held = cluster.submit(time.sleep, 20, pure=False)  # as by a notebook that has the only place
    assert side_by_side((delayed(abs)(-each) for each in range(3)), 1) == [0, 1, 2]
    held.cancel()
    warnings.filterwarnings("ignore", "a worker failed", UserWarning)
    with pytest.raises(ZeroDivisionError):
        side_by_side([delayed(divmod)(1, 0)], 1)


def test_a_measurement_that_fails_leaves_nothing_and_does_not_silence_the_next(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path))
    kernel()
    with pytest.raises(TypeError):
        side_by_side([delayed(square)("three")], 1)
    assert not list(tmp_path.glob("*.part"))
    inner(1)
    assert len(list(tmp_path.glob("*.part"))) == 1


@pytest.mark.parametrize(("change", "first"), [([], 2), (["-p", "seed=1"], 0), (["--force"], 0)], ids=str)
def test_a_run_goes_on_within_its_notebook(kernel, tmp_path, monkeypatch, change, first):
    parameters = nbformat.v4.new_code_cell('preset = "quick"\nseed = 0', metadata={"tags": ["parameters"]})
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters]), tmp_path / "notebooks" / "50_long.ipynb")
    broken = [True]

    def execute(job):
        monkeypatch.setenv("XUQ_PARTS", str(job.parts))
        kernel()
        side_by_side((delayed(square)(each) for each in range(2)), 1)
        if broken.pop() if broken else False:
            raise KeyboardInterrupt
        side_by_side([delayed(square)(2)], 1)
        job.path(".tmp.ipynb").write_bytes(job.source.read_bytes())

    monkeypatch.setattr(run_all, "execute", execute)
    arguments = ["--project", str(tmp_path)]
    (job,) = run_all.plan(run_all.parse(arguments))
    with pytest.raises(KeyboardInterrupt):
        run_all.run(job, force=False)
    (job,) = run_all.plan(run_all.parse([*arguments, *change]))
    MADE.clear()
    assert run_all.run(job, force="--force" in change)[0] == "ran"
    assert [f"square {each}" for each in range(first, 3)] == MADE
    assert not list(job.copies.glob("*.parts"))


def test_a_function_of_a_notebook_that_names_the_library_runs_in_other_processes(tmp_path):
    """Such a function is sent by its source and all that it names, as joblib and Dask both do."""
    script = tmp_path / "script.py"
    script.write_text(
        "from joblib import Parallel, delayed\n"
        "import xuqlib as xuq\n"
        "def side(count):\n"
        "    return xuq.load('planted', split='test')[:count].x.shape[-1]\n"
        "if __name__ == '__main__':\n"
        "    print(Parallel(n_jobs=2)(delayed(side)(count) for count in (1, 2)))\n"
    )
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "[32, 32]", ran.stderr
    assert pickle.loads(pickle.dumps(xuqlib)) is xuqlib
