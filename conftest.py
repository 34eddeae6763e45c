"""Settings for all tests and for the kernels of notebooks that run as tests."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Kernels and workers inherit these, so they are set before anything imports torch: with several processes at work,
# more than one thread each is slower by a factor of five.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["XUQ_SMALL"] = "1"  # as run_all.py sets it: to draw the inline figures larger takes longer
# Where Python is not to write bytecode beside its sources, as in many containers, each kernel and worker would compile
# torch anew, which takes most of its start: theirs goes to a folder that is gone after the tests.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", "") and "PYTHONPYCACHEPREFIX" not in os.environ:
    _bytecode = tempfile.TemporaryDirectory(prefix="xuq-bytecode-")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = _bytecode.name
    sys.dont_write_bytecode = False
# A notebook that runs as a test must not touch the published figures.
if "XUQ_FIGURES" not in os.environ:
    _figures = tempfile.TemporaryDirectory(prefix="xuq-figures-")
    os.environ["XUQ_FIGURES"] = _figures.name


ROOT = Path(__file__).resolve().parent
TIMED = {"13", "23"}  # publish how long things took, which no two runs share
TOLERANCE = 1e-4  # of a column's largest number: what float32 sums lose in another order, and a CSV's six digits


def tables(folder: Path, number: str) -> dict[str, Path]:
    """The CSVs that a notebook's quick run wrote below `folder`."""
    return {path.name: path for path in sorted((folder / "quick").glob(f"{number}_*.csv"))}


def check_published(folder: Path, number: str) -> None:
    """Fail unless the notebook's CSVs below `folder` are the published ones, up to rounding."""
    import numpy as np
    import pandas as pd

    published, found = tables(ROOT / "figures", number), tables(folder, number)
    assert published
    assert found.keys() == published.keys()
    for name in published:
        wanted, given = pd.read_csv(published[name]), pd.read_csv(found[name])
        assert list(given.columns) == list(wanted.columns)
        for column in wanted:
            where = f"{name}: {column}"
            if pd.api.types.is_numeric_dtype(wanted[column]):
                # The largest is NaN, and there is nothing to compare, in an empty column.
                tolerance = TOLERANCE * float(np.nan_to_num(wanted[column].abs().max()))
                np.testing.assert_allclose(given[column], wanted[column], rtol=0, atol=tolerance, err_msg=where)
            else:
                assert given[column].equals(wanted[column]), where


class PublishedNumbers(pytest.Item):
    """After a notebook's cells have run as tests: the CSVs that they wrote are the published ones."""

    def runtest(self) -> None:
        check_published(Path(os.environ["XUQ_FIGURES"]), self.path.name[:2])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    last = {item.path: place for place, item in enumerate(items) if item.path.suffix == ".ipynb"}
    for path, place in sorted(last.items(), key=lambda entry: -entry[1]):
        if path.name[:2].isdigit() and path.name[:2] not in TIMED:
            items.insert(place + 1, PublishedNumbers.from_parent(items[place].parent, name="published numbers"))


def pytest_configure() -> None:
    import matplotlib

    if os.environ.get("XUQ_DEVICE") == "pretend":  # which any test can be run on
        import pretend_device  # noqa: F401

    matplotlib.use("Agg")  # not through MPLBACKEND: the kernels would inherit it and show no figure


@pytest.fixture
def untouched_generators() -> Iterator[None]:
    """Fails if the test reads or changes a global random generator of torch or numpy."""
    import numpy as np
    import torch

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before[0]), "the global torch generator was used"
    state = np.random.get_state()  # noqa: NPY002
    assert (state[1] == before[1]).all(), "the global numpy generator was used"
    assert state[2] == before[2], "the global numpy generator was used"


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to which this test publishes; the quick preset's figures go to its `quick`."""
    monkeypatch.setenv("XUQ_FIGURES", str(tmp_path))
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock for what measures time, in seconds; it stands still until a test moves it."""
    from xuqlib.study.judging import timing

    now = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])
    return now
