"""Agreement of maps and the share on the evidence, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from xuqlib.figures import example_maps
from xuqlib.metrics import alike, on_evidence, ssim


def test_maps_are_alike_by_the_order_of_their_pixels_with_sign():
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3)
    b = torch.tensor([[1.0, 8.0, 27.0, 64.0], [-1.0, -2.0, -3.0, -4.0], [5.0, 5.0, 5.0, 5.0]])
    found = alike(a, b)
    assert found[:2].tolist() == pytest.approx([1.0, -1.0])
    assert math.isnan(found[2])


def test_channels_are_summed_before_maps_are_compared():
    a = torch.tensor([[[[1.0, 2.0, 3.0]], [[3.0, 2.0, -5.0]]]])  # sums 4, 4, -2
    assert alike(a, torch.tensor([[[[4.0, 4.0, -2.0]], [[0.0, 0.0, 0.0]]]])).tolist() == pytest.approx([1.0])
    with pytest.raises(ValueError, match="the same examples"):
        alike(a, a[:, :1])


def test_the_share_the_hit_and_the_area_of_a_map_by_hand():
    attribution = torch.tensor([[[[1.0, -2.0], [0.0, 1.0]]], [[[4.0, 4.0], [4.0, 0.0]]]])
    mask = torch.tensor([[[False, True], [False, False]], [[True, False], [False, False]]])
    found = on_evidence(attribution, mask)
    assert found["share"].tolist() == pytest.approx([0.5, 1 / 3])
    assert found["hit"].tolist() == pytest.approx([1.0, 1 / 3])  # three pixels tie for the largest
    assert found["area"].tolist() == pytest.approx([0.25, 0.25])


def test_example_maps_publish_what_they_show():
    x, maps = torch.rand(3, 3, 2, 2), {"one": torch.tensor([[[[1.0, -4.0], [0.0, 2.0]]]])}
    figure, frame = example_maps(x, maps, dataset="planted", scaled=True)
    assert len(figure.axes) == 2  # one row: the only example with a map
    assert frame["one, picture 0"].tolist() == [0.25, -1.0, 0.0, 0.5]


def test_structural_similarity_is_one_for_equal_maps_of_any_scale_and_low_for_others():
    torch.manual_seed(0)
    a = torch.randn(3, 2, 8, 8)
    a[2] = 0
    found = ssim(a, 5 * a)
    assert found[:2].tolist() == pytest.approx([1.0, 1.0])
    assert math.isnan(found[2])
    assert (ssim(a, a.roll(1, 0))[1:2] < 0.5).all()
    assert ssim(a.sum(1), a.sum(1))[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="the same examples"):
        ssim(a, a[:, :1])
