"""The numbers behind the figures: the same on every run, and nearly the same on any number of threads."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import check_published, tables

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
# That one thread gives the published numbers is asked of every notebook, after its cells have run as tests.
SEVERAL = [path for path in NOTEBOOKS if path.name[:2] in {"00", "08", "12"}]


def run(path: Path, folder: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute a notebook as it is stored; its figures and CSVs go to `folder`/quick."""
    monkeypatch.setenv("XUQ_FIGURES", str(folder))
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, startup_timeout=120, resources={"metadata": {"path": path.parent}}).execute()


NIGHTLY = pytest.mark.nightly
BY_THREADS = [pytest.param(path, id=path.stem, marks=() if path.name[:2] == "00" else NIGHTLY) for path in SEVERAL]


@pytest.mark.parametrize("path", BY_THREADS)  # the shortest of them in the test line
def test_four_threads_give_the_published_numbers(path, tmp_path, monkeypatch):
    run(path, tmp_path, 4, monkeypatch)
    check_published(tmp_path, path.name[:2])


def test_two_runs_give_the_same_bytes(tmp_path, monkeypatch):
    path = NOTEBOOKS[0]
    for folder in ("first", "second"):
        run(path, tmp_path / folder, 1, monkeypatch)
    first, second = (tables(tmp_path / folder, path.name[:2]) for folder in ("first", "second"))
    assert first
    assert {name: file.read_bytes() for name, file in first.items()} == {
        name: file.read_bytes() for name, file in second.items()
    }
