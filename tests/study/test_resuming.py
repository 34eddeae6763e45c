"""Measurements of an interrupted notebook are not made again, and never mistaken for others."""

from __future__ import annotations

import copy
from functools import partial

import nbformat
import pandas as pd
import pytest
import torch
from joblib import Parallel, delayed

import run_all
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
def test_results_come_in_the_order_of_the_jobs(kernel, tmp_path, monkeypatch, processes):
    monkeypatch.setenv("XUQ_PARTS", str(tmp_path))
    for _ in range(2):
        kernel()
        assert side_by_side((delayed(abs)(-each) for each in range(6)), processes) == list(range(6))
    assert len(list(tmp_path.glob("*.part"))) == 6


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
