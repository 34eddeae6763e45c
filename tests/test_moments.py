"""Running moments equal numpy's, whatever the order in which the draws come."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from core_networks import EXACT, randn
from torch.testing import assert_close

from xuqlib.moments import Moments, Welford, folded, rescaled


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_running_moments_equal_numpys(correction, shift):
    values = randn(7, 3, 4) + shift
    running = Welford()
    for value in values:
        running.append(value)
    assert_close(running.mean, torch.from_numpy(values.numpy().mean(0)), rtol=1e-12, atol=0)
    expected = torch.from_numpy(values.numpy().std(0, ddof=correction))
    # float64 resolves 1e6 to 1e-10: a mean of squares less a squared mean would be off by 1e-4
    assert_close(running.std(correction), expected, rtol=1e-8, atol=0)


def test_one_value_has_no_spread_and_no_unbiased_one():
    running = Welford()
    running.append(torch.ones(2))
    assert torch.equal(running.std(), torch.zeros(2, dtype=torch.float64))
    assert running.std(1).isnan().all()


def test_float32_is_accumulated_in_float64():
    running = Welford()
    for _ in range(3):
        running.append(torch.full((1,), 0.1))
    assert running.mean.dtype == torch.float64
    assert running.std().item() < 1e-17


def test_pictures_fold_their_channels_and_tables_keep_their_features():
    assert torch.equal(folded(torch.tensor([[-1.0, 2.0]])), torch.tensor([[1.0, 2.0]]))
    picture = torch.tensor([[-1.0, 2.0], [3.0, -4.0]]).view(1, 2, 1, 2)
    assert torch.equal(folded(picture), torch.tensor([[[4.0, 6.0]]]))


def test_a_rescaled_map_is_clipped_at_its_99th_percentile_and_runs_from_0_to_1():
    table = randn(3, 500) ** 3
    expected = []
    for row in table.abs().numpy():
        top = np.quantile(row, 0.99)
        expected.append((np.minimum(row, top) - row.min()) / (top - row.min()))
    assert_close(rescaled(table), torch.from_numpy(np.stack(expected)), **EXACT)
    assert (rescaled(table).amax(1) == 1).all() and (rescaled(table).amin(1) == 0).all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_flat_map_becomes_zeros(value):
    assert torch.equal(rescaled(torch.full((2, 3, 4, 4), value)), torch.zeros(2, 4, 4))


def test_moments_of_parts_join_to_those_of_the_whole():
    values = randn(6, 5, 3, 4, 4)
    whole = Moments.streamed(values)
    joined = Moments.joined([Moments.streamed(values[:, :2]), Moments.streamed(values[:, 2:])])
    assert joined.num_draws == whole.num_draws == 6
    for name in ("raw", "folded", "rescaled"):
        assert torch.equal(joined[name].mean, whole[name].mean)
        assert torch.equal(joined[name].std(), whole[name].std())


def test_what_is_kept_does_not_grow_with_the_number_of_draws():
    def numbers(moments: Moments) -> int:
        return sum(w.mean.numel() + w.squares.numel() for w in moments.values())

    few, many = Moments.streamed(randn(2, 5, 3, 4, 4)), Moments.streamed(randn(40, 5, 3, 4, 4))
    assert numbers(few) == numbers(many) == 2 * 5 * (3 + 1 + 1) * 16
    kept = [value for w in many.values() for value in vars(w).values() if isinstance(value, torch.Tensor)]
    assert math.prod(kept[0].shape) == kept[0].untyped_storage().nbytes() / 8, "no view of something larger"


def test_many_values_at_once_are_as_many_one_by_one():
    values = randn(9, 2, 3, 5, 5) + 1e3
    one_by_one, at_once = Moments.streamed(values), Moments()
    for some in values.split([4, 1, 4]):
        at_once.extend(some)
    for kind in ("raw", "folded", "rescaled"):
        assert at_once[kind].count == 9
        assert_close(at_once[kind].mean, one_by_one[kind].mean, **EXACT)
        assert_close(at_once[kind].std(1), one_by_one[kind].std(1), rtol=1e-9, atol=1e-12)
