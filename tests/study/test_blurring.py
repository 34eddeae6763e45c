"""The blurring test: curves of uncertainty, their scores and the greedy order, by hand and against slow loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from core_networks import assert_same, seeded, snapshot
from torch import nn, tensor
from torch.testing import assert_close

import xuqlib as xuq
from xuqlib.explainers.baselines import make_baseline
from xuqlib.metrics.deletion import pixel_order
from xuqlib.study.judging.blurring import (
    BUDGETS,
    BlurringCurves,
    auc_urr,
    budget_table,
    default_shares,
    greedy_order,
    highest_reduction,
    murr,
    reduction,
    uncertain,
    uncertainty_curves,
)
from xuqlib.study.judging.controls import random_order
from xuqlib.study.training.networks import mini_vgg

LOG2 = math.log(2)
KINDS = ["total", "aleatoric", "epistemic"]
QUARTERS = [0, 0.25, 0.5, 0.75, 1]


def linear(weights, bias=0.0):
    """Draws of two classes with logits weight . x + bias and 0, one per weight."""
    networks = []
    for weight in weights:
        layer = nn.Linear(len(weight), 2).double()
        layer.weight.data = tensor([weight, [0.0] * len(weight)]).double()
        layer.bias.data = tensor([bias, 0.0]).double()
        networks.append(nn.Sequential(nn.Flatten(), layer))
    return xuq.Draws(networks)


def pair(weight):
    """Two draws that disagree: their mean is 1/2, so U_e = log 2 - H(sigmoid(weight . x)), which rises with |.|."""
    return linear([weight, [-each for each in weight]])


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def entropy(p):
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def pictures(count=3, side=8):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small_draws(count=3):
    build = [lambda: mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3)] * count
    draws = xuq.DeepEnsemble([seeded(each, seed=seed) for seed, each in enumerate(build)]).sample()
    for draw in draws:
        next(each for each in reversed(list(draw.modules())) if isinstance(each, nn.Linear)).weight.data *= 8
    return draws


def slow_uncertainty(draws, picture, kind):
    """Of one picture, from the definitions; differentiable."""
    probs = torch.stack([draw(picture[None]).softmax(-1)[0] for draw in draws])
    total = -(probs.mean(0) * probs.mean(0).log()).sum()
    aleatoric = -(probs * probs.log()).sum(1).mean()
    return {"total": total, "aleatoric": aleatoric, "epistemic": total - aleatoric}[kind]


ONES, READING = torch.ones(1, 1, 2, 2).double(), tensor([[0, 1, 2, 3]])


def test_the_curve_of_two_draws_that_disagree_is_that_computed_by_hand():
    found = uncertainty_curves(pair([4.0, 2.0, 1.0, -1.0]), ONES, READING, fill="black", shares=QUARTERS)
    assert_close(found.uncertainty, tensor([[LOG2 - entropy(sigmoid(z)) for z in (6, 2, 0, -1, 0)]]).double())
    assert_close(found.shares, tensor(QUARTERS).double())


@pytest.mark.parametrize(("target", "sign"), [(None, 1), (tensor([1]), -1)])
def test_probability_and_answer_are_of_the_first_prediction_or_of_the_label(target, sign):
    draws, fill = linear([[1.0, 2.0, 4.0, -2.0]]), tensor(-1.0)  # weight . x goes 5, 3, -1, -9, -5
    found = uncertainty_curves(draws, ONES, READING, "total", target=target, fill=fill, shares=QUARTERS)
    assert_close(found.probability, tensor([[sigmoid(sign * z) for z in (5, 3, -1, -9, -5)]]).double())
    assert found.kept.tolist() == [[z * sign > 0 for z in (5, 3, -1, -9, -5)]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", ["blurred", "black", "mean_colour", torch.full((3, 1, 1), 0.25)])
def test_curves_equal_a_loop_over_examples_and_shares(kind, fill):
    x, draws, shares = pictures(), small_draws(), [0, 0.02, 0.3, 0.34, 1]
    order, replacement = random_order(3, (8, 8), seed=1), make_baseline(fill, x)
    found = uncertainty_curves(draws, x, order, kind, fill=fill, shares=shares)
    for i, (column, count) in itertools.product(range(3), enumerate((0, 1, 19, 21, 64))):
        picture = x[i].clone()
        for pixel in order[i, :count].tolist():
            picture[:, pixel // 8, pixel % 8] = replacement[i, :, pixel // 8, pixel % 8]
        probs, first = (torch.stack([d(at[None]).softmax(-1)[0] for d in draws]).mean(0) for at in (picture, x[i]))
        # A difference of entropies of order 1, in float64.
        assert_close(found.uncertainty[i, column], slow_uncertainty(draws, picture, kind), rtol=0, atol=1e-12)
        assert_close(found.probability[i, column], probs[first.argmax()])
        assert bool(found.kept[i, column]) == bool(probs.argmax() == first.argmax())


CURVES = BlurringCurves(
    shares=tensor([0, 0.02, 0.05, 1]).double(),
    uncertainty=tensor([[2, 1, 1.5, 0.5], [1, 2, 3, 4], [1e-15, 1, 1, 1]]).double(),
    probability=torch.ones(3, 4).double(),
    kept=tensor([[True, True, False, False], [True] * 4, [True] * 4]),
)


def test_reduction_its_maximum_and_its_area_by_hand():
    assert_close(reduction(CURVES)[:2], tensor([[0, 0.5, 0.25, 0.75], [0, -1, -2, -3]]).double())
    assert_close(highest_reduction(CURVES)[:2], tensor([[0, 0.5, 0.5, 0.75], [0, 0, 0, 0]]).double())
    assert_close(torch.stack([murr(CURVES, budget)[:2] for budget in BUDGETS], 1)[0], tensor([0.5, 0.5, 0.75]).double())
    areas = [0.25, (0.02 * 0.25 + 0.03 * 0.5) / 0.05, 0.02 * 0.25 + 0.03 * 0.5 + 0.95 * 0.625]
    assert_close(torch.stack([auc_urr(CURVES, budget)[0] for budget in BUDGETS]), tensor(areas).double())
    assert murr(CURVES, 1.0)[1] == auc_urr(CURVES, 1.0)[1] == 0


def test_without_uncertainty_there_is_no_rate_and_the_table_says_how_often():
    same = linear([[4.0, 2.0, 1.0, -1.0]] * 3)
    found = uncertainty_curves(same, ONES, READING, fill="black", shares=QUARTERS)
    assert reduction(found).isnan().all() and murr(found, 0.5).isnan().all() and auc_urr(found, 0.5).isnan().all()
    assert budget_table(found, [0.5])[["mean", "low", "high", "median"]].isna().all(axis=None)
    table = budget_table(CURVES).set_index(["budget", "score"])
    assert table["undefined"].tolist() == pytest.approx([1 / 3] * 6)
    assert table.loc[(1.0, "MURR"), ["mean", "median"]].tolist() == pytest.approx([0.375, 0.375])
    assert table.loc[(0.02, "AUC-URR"), "mean"] == pytest.approx(0.125)
    assert table.loc[(0.02, "AUC-URR"), ["low", "high"]].tolist() == pytest.approx([0, 0.25])  # of two examples
    assert table["kept"].tolist() == pytest.approx([1, 1, 2 / 3, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize(("side", "within"), [(8, (1, 3, 64)), (28, (15, 39, 784)), (32, (20, 51, 1024))])
def test_budgets_are_on_the_axis_and_are_never_exceeded(side, within):
    shares = default_shares(side * side)
    counts = (shares * side * side + 1e-6).floor().int().tolist()
    assert [counts[shares.tolist().index(budget)] for budget in BUDGETS] == list(within)
    assert set(range(within[1] + 1)) <= set(counts)  # every pixel up to 5 %
    assert (shares.diff() > 0).all() and shares[0] == 0 and shares[-1] == 1
    # The entropy of this network tells how many pixels are left.
    x, draws = torch.ones(1, 1, side, side).double(), linear([[4 / side**2] * side**2])
    order = random_order(1, (side, side))
    found = uncertainty_curves(draws, x, order, "total", fill="black")
    left = [entropy(sigmoid(4 - 4 * count / side**2)) for count in within]
    places = [shares.tolist().index(budget) for budget in BUDGETS]
    assert_close(found.uncertainty[0, places], tensor(left).double())


def test_large_pictures_are_followed_in_few_steps_that_hold_the_budgets():
    shares = default_shares(224 * 224).tolist()
    assert len(shares) < 64 + 20 + 4
    assert set(BUDGETS) <= set(shares)


def test_a_share_of_whole_pixels_loses_none_to_rounding():
    x, draws = torch.ones(1, 1, 10, 10).double(), linear([[0.04] * 100])
    assert 0.29 * 100 < 29  # in floating point
    found = uncertainty_curves(draws, x, random_order(1, (10, 10)), "total", fill="black", shares=[0, 0.29])
    assert_close(found.uncertainty[0, 1], tensor(entropy(sigmoid(4 - 0.04 * 29))).double())


def test_no_order_beats_that_by_weight_and_its_reverse_is_the_worst():
    orders = [tensor([order]) for order in itertools.permutations(range(4))]
    draws = pair([1.5, 1.0, 0.5, 0.2])
    curves = [uncertainty_curves(draws, ONES, order, fill="black", shares=QUARTERS) for order in orders]
    for budget in (0.5, 1.0):
        areas = [float(auc_urr(each, budget)) for each in curves]
        assert areas[0] == max(areas) > areas[-1] == min(areas)


def additive(start, step):
    """Four classes made of two independent halves: U_total = H(sigmoid(a)) + H(sigmoid(b)), two pixels move each.

    a = start[0] + step * (pixel 0 + pixel 1), b = start[1] + step * (pixel 2 + pixel 3).
    """
    layer = nn.Linear(4, 4).double()
    layer.weight.data = step * tensor([[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]).double()
    layer.bias.data = tensor([0, start[0], start[1], start[0] + start[1]]).double()
    return xuq.Draws([nn.Sequential(nn.Flatten(), layer)])


def test_the_greedy_order_is_the_best_of_all_where_every_single_gradient_fails():
    draws, x = additive((1.5, 2.2), 1.0), torch.zeros(1, 1, 2, 2).double()  # the second pixel of a half gains little
    options = {"fill": tensor(1.0), "shares": QUARTERS}

    def area(order, budget):
        return float(auc_urr(uncertainty_curves(draws, x, order, "total", **options), budget))

    found = greedy_order(draws, x, "total", budget=1.0, fill=options["fill"])
    assert found.tolist() == [[0, 2, 1, 3]]
    orders = [tensor([order]) for order in itertools.permutations(range(4))]
    point = x.clone().requires_grad_()
    gradient = torch.autograd.grad(slow_uncertainty(draws, point[0], "total"), point)[0].sum(1)
    singles = [pixel_order(each) for each in (-gradient, gradient.abs(), gradient * (x - 1).sum(1), gradient)]
    for budget in (0.5, 1.0):
        assert area(found, budget) == pytest.approx(max(area(order, budget) for order in orders), abs=1e-12)
        assert max(area(order, budget) for order in singles) < area(found, budget) - 0.005


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("group", "budget", "starts"), [(1, 0.1, range(6)), (4, 0.15, (0, 4, 8)), (1, 0.001, (0,))])
def test_the_greedy_order_equals_a_loop_that_looks_again_after_each_step(kind, group, budget, starts):
    x, draws = pictures(), small_draws()
    replacement = make_baseline("blurred", x)
    found = greedy_order(draws, x, kind, budget=budget, group=group, batch_size=2)
    for i in range(3):
        picture, left, order = x[i].clone(), set(range(64)), []
        for start in starts:
            point = picture.clone().requires_grad_()
            slope = torch.autograd.grad(slow_uncertainty(draws, point, kind), point)[0]
            fall = -(slope * (replacement[i] - picture)).sum(0).flatten()
            ranked = sorted(left, key=lambda pixel: -fall[pixel])
            taken = ranked if start == starts[-1] else ranked[:group]
            for pixel in taken:
                picture[:, pixel // 8, pixel % 8] = replacement[i, :, pixel // 8, pixel % 8]
            order, left = order + taken, left - set(taken)
        assert found[i].tolist() == order


def test_candidates_are_tried_for_real_where_the_slope_overshoots():
    # Pixel 0 has the largest slope but takes weight . x from 2 to -3: a U of 3 instead of 2. Pixel 1 takes it to 0.
    draws, x = pair([5.0, 2.0, -4.0, -1.0]), ONES
    assert greedy_order(draws, x, budget=0.25, fill="black").tolist()[0][0] == 0
    found = greedy_order(draws, x, budget=0.25, fill="black", candidates=2)
    assert found.tolist() == [[1, 0, 3, 2]]
    assert_close(murr(uncertainty_curves(draws, x, found, fill="black", shares=QUARTERS), 0.25), tensor([1.0]).double())


def test_trying_every_pixel_is_an_exhaustive_search_at_each_step():
    x, draws = pictures(2), small_draws()
    replacement = make_baseline("blurred", x)
    found = greedy_order(draws, x, budget=0.05, candidates=64, batch_size=50)
    for i in range(2):
        picture, order = x[i].clone(), []
        for _ in range(3):
            left = {}
            for pixel in set(range(64)) - set(order):
                moved = picture.clone()
                moved[:, pixel // 8, pixel % 8] = replacement[i, :, pixel // 8, pixel % 8]
                left[pixel] = float(slow_uncertainty(draws, moved, "epistemic"))
            order.append(min(left, key=left.get))
            picture[:, order[-1] // 8, order[-1] % 8] = replacement[i, :, order[-1] // 8, order[-1] % 8]
        assert found[i, :3].tolist() == order
        assert sorted(found[i].tolist()) == list(range(64))


def test_on_planted_pictures_the_greedy_order_lowers_most_of_the_uncertainty_and_chance_does_not():
    draws = xuq.train_or_load("deep_ensemble", "planted", preset="quick", progress=False).sample(2)
    x = xuq.load("planted", split="test", num_examples=20).x
    x = x[uncertain(draws, x, num_examples=3).uncertain]
    orders = {"random": random_order(3, (32, 32)), "greedy": greedy_order(draws, x, budget=0.01, candidates=8)}
    found = {
        name: auc_urr(uncertainty_curves(draws, x, order, shares=[0, 0.0025, 0.005, 0.01]), 0.01)
        for name, order in orders.items()
    }
    assert (found["greedy"] > found["random"] + 0.2).all()


def test_the_size_of_batches_does_not_matter_and_draws_are_left_as_found(untouched_generators):
    x, draws = pictures(), small_draws()
    before = [snapshot(draw) for draw in draws]
    order = greedy_order(draws, x, budget=0.05)
    assert torch.equal(order, greedy_order(draws, x, budget=0.05, batch_size=1))
    many, few = (uncertainty_curves(draws, x, order, batch_size=size) for size in (128, 2))
    assert_close(many, few)
    with torch.no_grad():
        assert torch.equal(order, greedy_order(draws, x, budget=0.05))
    for earlier, draw in zip(before, draws, strict=True):
        assert_same(earlier, snapshot(draw))


def test_a_very_sure_draw_has_a_slope_and_an_order():
    draws = linear([[4000.0, 2000.0, 1000.0, -1000.0], [0.1, 0.0, 0.0, 0.3]])
    assert greedy_order(draws, ONES, "aleatoric", budget=0.25, fill=tensor(2.0)).tolist()[0][0] == 3


def test_uncertain_examples_lie_above_the_median_and_random_ones_anywhere():
    x = torch.arange(1.0, 21).double().view(20, 1, 1, 1) / 4
    draws = pair([1.0])  # the further from 0, the more they disagree
    found = uncertain(draws, x, num_examples=10)
    assert found.uncertain.tolist() == list(range(10, 20))
    assert found.random.tolist() == sorted(set(found.random.tolist())) and len(found.random) == 10
    assert (found.random < 10).any()
    assert uncertain(draws, x, "aleatoric", num_examples=10).uncertain.tolist() == list(range(10))
    few = [uncertain(draws, x, num_examples=4, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(few[0].uncertain, few[1].uncertain) and torch.equal(few[0].random, few[1].random)
    assert not torch.equal(few[0].uncertain, few[2].uncertain)
    with pytest.raises(ValueError, match="10 of 20 examples lie above the median"):
        uncertain(draws, x, num_examples=11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "human"}, "unknown kind 'human'"),
        ({"fill": "white"}, "baseline 'white'"),
        ({"shares": [0.1, 1]}, "rise from 0 to at most 1"),
        ({"shares": [0, 0.5, 0.5]}, "rise from 0 to at most 1"),
        ({"shares": [0, 2]}, r"shares is \[0, 2\]; pass a list of numbers from 0 to 1"),
        ({"order": torch.zeros(3, 64, dtype=torch.int64)}, "every pixel number"),
        ({"target": tensor([0, 1])}, "target has 2 entries"),
        ({"x": torch.zeros(3, 4)}, "a torch tensor of pictures"),
        ({"draws": [nn.Sequential(nn.Flatten(), nn.Linear(192, 1).double())]}, "a regression"),
        ({"draws": [nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 2).double())]}, "training mode"),
    ],
)
def test_bad_input_to_the_curves_is_refused(change, message):
    good = {"draws": small_draws(1), "x": pictures(), "order": random_order(3, (8, 8))}
    with pytest.raises(ValueError, match=message):
        uncertainty_curves(**(good | change))


def test_a_budget_that_is_no_share_or_no_size_is_refused():
    with pytest.raises(ValueError, match="budget is 0.03, where the curves have no point"):
        murr(CURVES, 0.03)
    with pytest.raises(ValueError, match="budget is 1.5; pass a number from 0 to 1"):
        murr(CURVES, 1.5)
    for budget in (0, -0.5):
        with pytest.raises(ValueError, match="budget is"):
            auc_urr(CURVES, budget)
        with pytest.raises(ValueError, match="budget is"):
            greedy_order(small_draws(1), pictures(), budget=budget)
    with pytest.raises(ValueError, match="budget is 1.5; pass a number from 0 to 1"):
        greedy_order(small_draws(1), pictures(), budget=1.5)
    with pytest.raises(ValueError, match="group is 0"):
        greedy_order(small_draws(1), pictures(), budget=0.1, group=0)
