"""The numbers behind the figures: the same on every run, and nearly the same on any number of threads."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
TIMED = {"13"}  # publishes how long things took, which no two runs share
NOTEBOOKS = [path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")) if path.name[:2] not in TIMED]
TOLERANCE = 1e-4  # of a column's largest number: what float32 sums lose in another order, and a CSV's six digits


def run(path: Path, folder: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute a notebook as it is stored; its figures and CSVs go to `folder`/quick."""
    monkeypatch.setenv("XUQ_FIGURES", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, startup_timeout=120, resources={"metadata": {"path": path.parent}}).execute()


def tables(folder: Path, number: str) -> dict[str, Path]:
    return {path.name: path for path in sorted((folder / "quick").glob(f"{number}_*.csv"))}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_four_threads_give_the_published_numbers(path, tmp_path, monkeypatch):
    run(path, tmp_path, 4, monkeypatch)
    published, found = tables(ROOT / "figures", path.name[:2]), tables(tmp_path, path.name[:2])
    assert published
    assert found.keys() == published.keys()
    for name in published:
        wanted, given = pd.read_csv(published[name]), pd.read_csv(found[name])
        assert list(given.columns) == list(wanted.columns)
        for column in wanted:
            if pd.api.types.is_numeric_dtype(wanted[column]):
                # The largest is NaN, and there is nothing to compare, in an empty column.
                tolerance = TOLERANCE * float(np.nan_to_num(wanted[column].abs().max()))
                np.testing.assert_allclose(
                    given[column],
                    wanted[column],
                    rtol=0,
                    atol=tolerance,
                    err_msg=f"{name}: {column}",
                )
            else:
                assert given[column].equals(wanted[column]), f"{name}: {column}"


def test_two_runs_give_the_same_bytes(tmp_path, monkeypatch):
    path = NOTEBOOKS[0]
    for folder in ("first", "second"):
        run(path, tmp_path / folder, 1, monkeypatch)
    first, second = (tables(tmp_path / folder, path.name[:2]) for folder in ("first", "second"))
    assert first
    assert {name: file.read_bytes() for name, file in first.items()} == {
        name: file.read_bytes() for name, file in second.items()
    }
