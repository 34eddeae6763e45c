"""Controls know less than an explanation should: each against what it must give by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from xuqlib.study.judging.controls import other_image, permuted_last_layer, sobel
from xuqlib.study.training.networks import mini_vgg


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=5).eval()


def test_sobel_finds_an_edge_and_adds_channels():
    x = torch.zeros(2, 3, 6, 6)
    x[0, :2, :, 3:] = 1.0  # an upright edge in two of three channels; the second picture is flat
    found = sobel(x)
    assert found.shape == (2, 6, 6)
    # The difference across the edge is 1 on the two columns beside it. scikit-image weighs 1/4, 1/2, 1/4, and takes
    # the root mean square of the two directions.
    expected = torch.tensor([0, 0, 1, 1, 0, 0]).double() * 2 / 2**0.5
    assert_close(found[0, 1:-1], expected.expand(4, 6))
    assert_close(found[1], torch.zeros(6, 6, dtype=torch.float64))


def test_every_example_gets_the_map_of_the_next_one():
    assert other_image(torch.tensor([[1.0], [2.0], [3.0]])).flatten().tolist() == [2.0, 3.0, 1.0]
    with pytest.raises(ValueError, match="there are 1 maps"):
        other_image(torch.zeros(1, 4))


@pytest.mark.parametrize("seed", range(5))
def test_permuted_logits_are_the_same_numbers_and_no_class_keeps_its_own(seed):
    plain = network()
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before, after = plain(x), permuted_last_layer(plain, seed=seed)(x)
    assert_close(after.sort(1).values, before.sort(1).values)
    assert before.unique().numel() == before.numel()  # so equal logits would mean the same class
    assert not (after == before).any()
    columns = [(after[:, [c]] - before).abs().sum(0).argmin().item() for c in range(5)]  # one permutation for all rows
    assert sorted(columns) == [0, 1, 2, 3, 4]
    assert_close(after, before[:, columns])


def test_permuting_leaves_the_network_alone_and_follows_its_seed():
    plain = network().train()
    before = copy.deepcopy(plain.state_dict())
    dealt = [permuted_last_layer(plain, seed=seed)[-1].bias for seed in (1, 1, 2)]
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert plain.training
    assert torch.equal(dealt[0], dealt[1])
    assert not torch.equal(dealt[0], dealt[2])


def test_two_classes_are_swapped_and_one_is_refused():
    layer = nn.Linear(3, 2)
    assert_close(permuted_last_layer(layer).weight, layer.weight.flip(0))
    with pytest.raises(ValueError, match="the number of outputs"):
        permuted_last_layer(nn.Linear(3, 1))
