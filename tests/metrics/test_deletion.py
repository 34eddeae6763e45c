"""Orders of pixels, deletion and insertion curves and their areas, against hand calculations and a slow oracle."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torchvision.transforms.v2.functional as tvf
from core_networks import two_networks
from torch import nn
from torch.testing import assert_close

import xuqlib as xuq
from xuqlib import ExplanationDistribution
from xuqlib.explainers.baselines import make_baseline
from xuqlib.metrics.deletion import CURVES, auc, deletion, insertion, perturbed, pixel_order
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.study.judging.controls import one_draw, random_order
from xuqlib.study.judging.orderings import importance


def linear_network(weight):
    """Two classes; the logits are weight . x and 0, so the probability of the first is a sigmoid."""
    layer = nn.Linear(len(weight), 2, bias=False)
    layer.weight.data = torch.tensor([weight, [0.0] * len(weight)])
    return FixedNetwork(nn.Sequential(nn.Flatten(), layer))


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def pictures(num_examples=3, size=8):
    return torch.rand(num_examples, 3, size, size, generator=torch.Generator().manual_seed(0))


WEIGHT, ONES = [4.0, 2.0, 1.0, -1.0], torch.ones(1, 1, 2, 2)
FIRST = torch.tensor([0])


def test_the_curves_of_a_linear_network_are_those_computed_by_hand():
    order = torch.tensor([[0, 1, 2, 3]])
    found = deletion([linear_network(WEIGHT)], ONES, order, FIRST, num_steps=4)
    assert_close(found, torch.tensor([[sigmoid(6), sigmoid(2), sigmoid(0), sigmoid(-1), sigmoid(0)]]))
    found = insertion([linear_network(WEIGHT)], ONES, order, FIRST, fill="black", num_steps=4)
    assert_close(found, torch.tensor([[sigmoid(0), sigmoid(4), sigmoid(6), sigmoid(7), sigmoid(6)]]))


def test_by_default_a_step_is_one_row_of_pixels():
    order = torch.tensor([[0, 1, 2, 3]])
    found = deletion([linear_network(WEIGHT)], ONES, order, FIRST)
    assert_close(found, torch.tensor([[sigmoid(6), sigmoid(0), sigmoid(0)]]))


def test_the_score_is_the_mean_probability_and_not_the_probability_of_the_mean():
    draws = [linear_network(WEIGHT), linear_network([0.0, 0.0, 0.0, 0.0])]
    found = deletion(draws, ONES, torch.tensor([[0, 1, 2, 3]]), FIRST, num_steps=1)
    assert_close(found, torch.tensor([[(sigmoid(6) + 0.5) / 2, 0.5]]))


def test_no_order_beats_that_by_contribution_and_none_is_worse_than_its_reverse():
    orders = [torch.tensor([order]) for order in itertools.permutations(range(4))]  # the first is by contribution
    for kind, sign in (("deletion", 1), ("insertion", -1)):
        networks = [linear_network(WEIGHT)]
        curves = [CURVES[kind](networks, ONES, order, FIRST, fill="black", num_steps=4) for order in orders]
        areas = [sign * float(auc(curve)) for curve in curves]
        assert areas[0] == min(areas) < areas[-1] == max(areas)


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
@pytest.mark.parametrize("fill", ["black", "blurred", "mean_colour", torch.full((3, 1, 1), 0.25)])
def test_curves_equal_a_loop_over_examples_and_steps(kind, fill):
    x, draws, target = pictures().double(), xuq.Draws(two_networks()).to(torch.float64), torch.tensor([2, 0, 1])
    order = random_order(3, (8, 8), seed=1)
    replacement = make_baseline(fill, x)
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for i, step in itertools.product(range(3), range(5)):
        start, end = (x[i], replacement[i]) if kind == "deletion" else (replacement[i], x[i])
        picture = start.clone()
        for pixel in order[i, : 16 * step].tolist():
            picture[:, pixel // 8, pixel % 8] = end[:, pixel // 8, pixel % 8]
        expected[i, step] = torch.stack([draw(picture[None]).softmax(-1)[0, target[i]] for draw in draws]).mean()
    found = CURVES[kind](draws, x, order, target, fill=fill, num_steps=4, batch_size=4)
    assert_close(found, expected)  # float64 on both sides: the default tolerance is 1e-7


def test_curves_start_and_end_at_the_two_pictures():
    x, draws, target = pictures(), xuq.Draws(two_networks()), torch.tensor([0, 1, 2])
    found = insertion(draws, x, random_order(3, (8, 8)), target)
    for end, picture in ((found[:, 0], make_baseline("blurred", x)), (found[:, -1], x)):
        assert_close(end, draws(picture).softmax(-1).mean(0).gather(1, target[:, None])[:, 0])


def test_with_one_fill_insertion_is_deletion_in_reverse_order_read_backwards():
    x, draws, target, order = pictures(), two_networks(), torch.tensor([0, 1, 2]), random_order(3, (8, 8))
    forth = insertion(draws, x, order, target, fill="blurred")
    assert_close(deletion(draws, x, order.flip(1), target, fill="blurred"), forth.flip(1))


def test_a_perturbed_picture_has_all_channels_of_the_first_pixels_replaced():
    x, order = pictures(1, 2) + 1, torch.tensor([[3, 0, 1, 2]])
    found = perturbed(x, order, 0.5)
    assert_close(found == 0, torch.tensor([[True, False], [False, True]]).expand(1, 3, 2, 2))
    assert_close(found[found != 0], x[found != 0])
    assert_close(perturbed(x, order, 0.0), x, rtol=0, atol=0)
    assert_close(perturbed(x, order, 1.0, kind="insertion"), x, rtol=0, atol=0)


def test_fills_by_hand():
    x = pictures()
    assert_close(make_baseline("mean_colour", x)[1, 2], x[1, 2].mean().expand(8, 8))
    assert make_baseline("black", x).abs().max() == 0
    # torchvision reflects at the border, we repeat it: only far from it are the two the same
    wide = pictures(1, 64)
    blurred = tvf.gaussian_blur(wide, kernel_size=[49, 49], sigma=[8.0, 8.0])
    assert_close(make_baseline("blurred", wide)[..., 30:34, 30:34], blurred[..., 30:34, 30:34], rtol=1e-3, atol=1e-4)


def test_an_area_is_that_of_the_trapezoid():
    assert_close(auc(torch.tensor([[1.0, 0.5, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])), torch.tensor([0.5, 1.0, 0.5]))


def test_importance_by_hand():
    values = torch.tensor([[1.0, -2.0], [3.0, -2.0]]).view(2, 1, 2, 1, 1)  # two draws, two channels, one pixel
    e = ExplanationDistribution(values)  # folded: 3 and 5; summed: -1 and 1
    found = {name: importance(e, name).item() for name in ("mean", "std", "cv", "signed")}
    assert found == pytest.approx({"mean": 4, "std": 1, "cv": 0.25, "signed": 0})


def test_a_pixel_without_a_cv_is_least_important():
    values = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 4.0]]).view(2, 1, 1, 1, 3)
    assert_close(pixel_order(importance(ExplanationDistribution(values), "cv")), torch.tensor([[2, 1, 0]]))


def test_equal_pixels_keep_the_order_of_reading():
    maps = torch.zeros(1, 40, 40)
    maps[0, 20, 5] = 1
    rest = [pixel for pixel in range(1600) if pixel != 805]
    assert pixel_order(maps)[0].tolist() == [805, *rest]


def test_a_single_draw_is_another_one_for_each_example():
    values = torch.arange(6.0).view(2, 3, 1, 1, 1) - 10
    assert_close(one_draw(ExplanationDistribution(values)).flatten(), torch.tensor([10.0, 6.0, 8.0]).double())
    assert_close(one_draw(ExplanationDistribution(values), first=1).flatten(), torch.tensor([7.0, 9.0, 5.0]).double())


def test_random_orders_are_permutations_that_differ_and_follow_their_seed():
    order = random_order(2, (4, 4), seed=5)
    assert_close(order.sort(1).values, torch.arange(16).expand(2, 16))
    assert not torch.equal(order[0], order[1])
    assert torch.equal(order, random_order(2, (4, 4), seed=5))
    assert not torch.equal(order, random_order(2, (4, 4), seed=6))


def test_on_planted_pictures_a_map_beats_its_reverse():
    examples = xuq.load("planted", split="test", num_examples=8)
    draws = xuq.train_or_load("deep_ensemble", "planted", preset="quick", progress=False).sample(2)
    target = draws(examples.x).softmax(-1).mean(0).argmax(-1)
    maps = importance(xuq.explain(draws, xuq.guided_backprop, examples.x, target), "mean")
    # Not to black: on these pictures black says more than the pixels that it hides, as notebook 06 shows.
    for kind, sign in (("deletion", -1), ("insertion", 1)):
        options = {"fill": "blurred", "num_steps": 8}
        good, bad = (auc(CURVES[kind](draws, examples.x, pixel_order(m), target, **options)) for m in (maps, -maps))
        assert sign * (good - bad).mean() > 0.1


def test_bad_input_is_refused():
    x, draws, order, target = pictures(), two_networks(), random_order(3, (8, 8)), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="5 steps do not divide 64 pixels"):
        deletion(draws, x, order, target, num_steps=5)
    with pytest.raises(ValueError, match="every pixel number"):
        deletion(draws, x, torch.zeros(3, 64, dtype=torch.int64), target)
    with pytest.raises(ValueError, match="kind 'ablation'"):
        perturbed(x, order, 0.5, kind="ablation")
    with pytest.raises(ValueError, match="baseline 'white'"):
        make_baseline("white", x)
    with pytest.raises(ValueError, match="mean_colour baseline needs images"):
        make_baseline("mean_colour", torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"order is \(2, 5\); wanted .* 0 to 4 or 4 or 24 once"):
        perturbed(torch.zeros(2, 5, 5), torch.arange(5).expand(2, 5), 0.5)
    with pytest.raises(ValueError, match="share is 2"):
        perturbed(x, order, 2)
    with pytest.raises(ValueError, match="NaN"):
        pixel_order(torch.full((1, 2, 2), math.nan))
    with pytest.raises(ValueError, match='keep="all"'):
        one_draw(xuq.explain(draws, xuq.gradient, x, keep="moments"))
    one = FixedNetwork(nn.Sequential(nn.Flatten(), nn.Linear(192, 1)))
    with pytest.raises(ValueError, match="a regression"):
        deletion([one], x, order, torch.zeros(3, dtype=torch.int64))
