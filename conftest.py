"""Settings for all tests and for the kernels of notebooks that run as tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Kernels and workers inherit these, so they are set before anything imports torch: with several processes at work,
# more than one thread each is slower by a factor of five.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = "1"
# A notebook that runs as a test must not touch the published figures.
if "XUQ_FIGURES" not in os.environ:
    _figures = tempfile.TemporaryDirectory(prefix="xuq-figures-")
    os.environ["XUQ_FIGURES"] = _figures.name


def pytest_configure() -> None:
    import matplotlib

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
