"""Measurements of an interrupted notebook are not made again, and never mistaken for others."""

from __future__ import annotations

from itertools import count

import nbformat
import pytest
from joblib import delayed

import run_all
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
    return lambda: monkeypatch.setattr(resuming, "_places", count())


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
    assert [*made, "square 3"] == MADE  # what an inner measurement keeps would shift all places


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_jobs(kernel, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path))
    for _ in range(2):
        kernel()
        assert side_by_side((delayed(abs)(-each) for each in range(6)), processes) == list(range(6))
    assert len(list(tmp_path.glob("*.pickle"))) == 6


def test_a_measurement_that_fails_leaves_nothing_and_does_not_silence_the_next(kernel, tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path))
    kernel()
    with pytest.raises(TypeError):
        side_by_side([delayed(square)("three")], 1)
    assert not list(tmp_path.glob("*.pickle"))
    inner(1)
    assert len(list(tmp_path.glob("*.pickle"))) == 1


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
