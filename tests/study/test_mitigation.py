"""Attention by hand, a plain training loop as oracle, and a case where attention must help."""

from __future__ import annotations

import math

import pytest
import torch
from core_networks import EXACT
from torch import nn, tensor
from torch.nn import functional as F
from torch.testing import assert_close

from xuqlib import Recipe
from xuqlib.posteriors.fixing import generator_of
from xuqlib.study.judging.mitigation import attended, fit_attended, paste_square, unit_maps
from xuqlib.study.training.fitting import one_cycle


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator_of(seed), dtype=torch.float64)


def linear(seed=0, features=4, classes=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(features, classes).double()


def test_a_unit_map_starts_at_its_least_positive_part_and_ends_at_1():
    maps = tensor([[[-4.0, 0.0], [1.0, 3.0]], [[2.0, 3.0], [2.5, 4.0]]])
    assert_close(unit_maps(maps), tensor([[[0.0, 0.0], [1 / 3, 1.0]], [[0.0, 0.5], [0.25, 1.0]]]))


@pytest.mark.parametrize("value", [-1.0, 0.0, 2.0])
def test_a_flat_map_takes_nothing_away(value):
    assert_close(unit_maps(torch.full((1, 2, 2), value)), torch.zeros(1, 2, 2))


def test_attention_is_1_minus_the_map_on_every_channel():
    x = tensor([[[[2.0, 4.0]], [[-1.0, 8.0]]]])  # one picture, two channels, 1 x 2 pixels
    maps = tensor([[[0.25, 1.0]]])
    assert_close(attended(x, maps), tensor([[[[1.5, 0.0]], [[-0.75, 0.0]]]]))
    assert_close(attended(x, maps, tau=0.5), x * tensor([math.exp(-0.5), math.exp(-2.0)]))
    assert_close(attended(x, maps, fill=tensor([[[1.0, 1.0]]])), tensor([[[[1.75, 1.0]], [[-0.5, 1.0]]]]))


def test_a_table_is_attended_feature_by_feature():
    assert_close(attended(tensor([[4.0, 6.0]]), tensor([[0.5, 0.0]])), tensor([[2.0, 6.0]]))


@pytest.mark.parametrize("maps", [torch.full((1, 2, 2), 1.5), torch.full((1, 2, 2), math.nan), torch.zeros(1, 1, 2, 2)])
def test_maps_that_are_no_attention_are_one_clear_error(maps):
    with pytest.raises(ValueError, match="rescale them with unit_maps"):
        attended(torch.ones(1, 1, 2, 2), maps)


def test_training_is_a_plain_loop_for_each_network():
    x, y, recipe = normal(10, 4), torch.arange(10) % 2, Recipe(epochs=3, batch_size=4, learning_rate=0.1)
    networks, twins = ([linear(seed) for seed in (1, 2)] for _ in range(2))
    state = torch.get_rng_state()
    assert fit_attended(networks, x, y, recipe, seed=5) == 9
    assert torch.equal(torch.get_rng_state(), state)
    for member, twin in enumerate(twins):
        optimiser, schedule = one_cycle(twin.parameters(), recipe, 10)
        order = generator_of(5, 1, member)
        for _ in range(3):
            for batch in torch.randperm(10, generator=order).split(4):
                optimiser.zero_grad()
                nn.functional.cross_entropy(twin(x[batch]), y[batch]).backward()
                optimiser.step()
                schedule.step()
        assert_close(networks[member].weight, twin.weight, **EXACT)


def test_inside_the_loop_the_inputs_are_attended_anew_by_the_networks_of_the_moment():
    x, y, recipe = normal(8, 4), torch.arange(8) % 2, Recipe(epochs=7, batch_size=8, learning_rate=0.1)
    seen = []

    def attend(draws, plain):
        seen.append((len(draws), draws[0].network.weight.clone(), plain))
        return 0 * plain  # from now on the weights have no gradient, the biases do

    network = linear()
    steps = fit_attended([network], x, y, recipe, attend=attend, every=3)
    assert steps == fit_attended([linear()], x, y, recipe) == 7
    assert [(count, plain is x) for count, _, plain in seen] == [(1, True)] * 2  # before epochs 4 and 7
    twin = linear()
    fit_attended([twin], x, y, recipe, attend=lambda _, plain: plain, every=3)
    assert not torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(network.weight, twin.weight)
    plain = linear()
    fit_attended([plain], x, y, recipe)
    assert_close(twin.weight, plain.weight, **EXACT)


def test_training_that_diverges_is_one_clear_error():
    with pytest.raises(FloatingPointError, match="epoch 1; lower learning_rate"):
        fit_attended([linear()], torch.full((4, 4), 1e308, dtype=torch.float64), torch.zeros(4).long())


def test_attention_on_the_true_noise_helps_and_a_random_map_does_not():
    # The first two features hold the class, faintly; thirty others hold noise that training fits instead.
    def examples(count, seed):
        y = torch.arange(count) % 2
        x = 5 * normal(count, 32, seed=seed)
        x[:, :2] = 0.7 * (2 * y[:, None] - 1) + 0.3 * normal(count, 2, seed=seed + 1)
        return x, y

    (x, y), (test, truth) = examples(24, 1), examples(400, 3)
    mask = (torch.arange(32) >= 2).double()
    noise = torch.rand(424, 32, generator=generator_of(7), dtype=torch.float64)
    scores = {}
    arms = {"none": (0 * noise[:24], 0 * noise[24:]), "random": (noise[:24], noise[24:])}
    arms["true"] = (mask.expand(24, 32), mask.expand(400, 32))
    for name, (taken, taken_too) in arms.items():
        network = linear(features=32)
        fit_attended([network], attended(x, taken), y, Recipe(epochs=15, batch_size=8, learning_rate=0.05))
        answer = network(attended(test, taken_too)).argmax(1)
        scores[name] = float((answer == truth).double().mean())
    assert scores["true"] > 0.95
    assert scores["true"] > scores["none"] + 0.2
    assert scores["random"] < scores["none"] + 0.05


def test_squares_go_clockwise_along_the_border_and_nothing_else_changes():
    # 4 x 8 pixels, so the square is one pixel, and the way around the border has 2 (3 + 7) = 20 places
    x, place = torch.full((20, 2, 4, 8), 0.5), torch.arange(20)
    shown, inside = paste_square(x, place, 20)
    corner, right, bottom, left = (
        [(0, c) for c in range(8)],
        [(1, 7), (2, 7)],
        [(3, c) for c in range(7, -1, -1)],
        [
            (2, 0),
            (1, 0),
        ],
    )
    assert [tuple(each.nonzero()[0].tolist()) for each in inside] == corner + right + bottom + left
    assert inside.sum((1, 2)).tolist() == [1.0] * 20
    assert torch.equal(shown, torch.where(inside[:, None] == 1, 1.0, 0.5).expand_as(x))
    few = paste_square(x[:4], torch.arange(4), 4)[1]  # every fifth of them
    assert torch.equal(few, inside[::5])


def test_a_square_is_a_quarter_as_wide_and_a_border_holds_only_so_many():
    _, inside = paste_square(torch.zeros(3, 1, 8, 8), torch.tensor([0, 2, 3]), 4)
    assert torch.equal(inside[0], F.pad(torch.ones(2, 2), (0, 6, 0, 6)))
    assert torch.equal(inside[1], inside[0].flip(0, 1))
    assert torch.equal(inside[2], inside[0].flip(0))
    with pytest.raises(ValueError, match="border of 8 x 8 has 24"):
        paste_square(torch.zeros(1, 1, 8, 8), torch.tensor([0]), 25)
