"""What notebook 23 compares, fits and predicts, and what it does without the extra `cluster`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_cells import definitions
from torch import nn

from xuqlib.study.files import ROOT


def cells(folder=ROOT, **given):
    return definitions("23", folder=folder, **given)


def test_the_copies_begin_with_the_images_themselves_and_are_the_same_for_a_seed():
    x = torch.rand(3, 1, 6, 6)
    first, again = (torch.stack(list(cells().copies(x, 8, 4))) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(first[:3], x)
    for image, source in zip(first[3:], x[[0, 1, 2, 0, 1]], strict=True):
        assert torch.equal(image.flatten().sort().values, source.flatten().sort().values)
    assert any(not torch.equal(image, source) for image, source in zip(first[3:6], x, strict=True))


def test_a_file_that_is_missing_or_otherwise_differs_and_only_chunks_are_compared(tmp_path):
    for store, chunk in (("a", b"1"), ("b", b"2")):
        for array, content in (("mean", b"same"), ("std", chunk)):
            (tmp_path / store / array / "c" / "0").mkdir(parents=True)
            (tmp_path / store / array / "c" / "0" / "0").write_bytes(content)
        (tmp_path / store / "zarr.json").write_bytes(chunk)
    differing = cells(tmp_path).differing
    assert (differing("a", "b"), differing("a", "a")) == (1, 0)
    (tmp_path / "b" / "mean" / "c" / "0" / "0").unlink()
    assert (differing("a", "b"), differing("b", "a")) == (2, 1)


def test_the_exponent_of_a_power_is_found_whatever_its_factor():
    sizes = np.array([2, 4, 16])
    frame = pd.DataFrame({"what": "images", "size": sizes, "seconds": 3 * sizes**1.5, "MB": 7.0})
    found = cells().with_exponents(frame)
    assert found["time_exponent"].tolist() == pytest.approx([1.5] * 3)
    assert found["memory_exponent"].tolist() == pytest.approx([0] * 3, abs=1e-12)
    assert found["times_size"].tolist() == [1, 2, 8]


def test_numbers_moved_are_the_input_and_the_output_of_each_layer_forward_and_back():
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    assert cells().moved(network, torch.rand(1, 3)) == 2 * ((3 + 5) + (5 + 5) + (5 + 2))
    assert not any(layer._forward_hooks for layer in network)


def test_the_roof_is_the_slower_of_multiplying_and_moving():
    machine = {"FLOP/s": 10.0, "bytes/s": 4.0}
    assert cells().roofline(20.0, 4.0, machine) == (2.0, "multiplying")
    assert cells().roofline(20.0, 12.0, machine) == (3.0, "moving numbers")


def test_without_the_extra_the_stored_run_is_shown_and_nothing_is_measured():
    stored = cells(missing=["zarr"]).measured("disk", lambda: pytest.fail("measured"))
    assert len(stored) == 5 and stored["kB"].min() > 0
    assert cells(missing=[]).measured("disk", lambda: 3) == 3
