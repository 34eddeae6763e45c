"""Measures of maps of uncertainty: by hand, by theory, or against a slow loop written from the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import tensor
from torch.testing import assert_close

from xuqlib.study.judging.yardsticks import (
    blurred_rows,
    complexity,
    first_order,
    flipping,
    flipping_area,
    flipping_of_rows,
    input_stability,
    likeness,
    patch_masks,
    rank_agreement,
    rank_improvement,
    repeatability,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_complexity_is_an_entropy_in_nats():
    maps = tensor([[1.0, 1, 1, 1], [0, 5, 0, 0], [0, 0, 0, 0], [3, 1, 0, 0]], dtype=torch.float64)
    by_hand = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert complexity(maps).tolist() == pytest.approx([math.log(4), 0, 0, by_hand])
    assert_close(complexity(7 * maps), complexity(maps))
    for wrong in (-maps - 1, maps * math.nan, maps + math.inf):
        with pytest.raises(ValueError, match="maps hold negative numbers, NaN or infinities"):
            complexity(wrong)


def test_likeness_is_cosine_and_spearman_and_knows_no_factor():
    a, b = random(5, 3, 4), random(5, 3, 4, seed=1)
    b[:, 0] = 0.5  # ties
    found = likeness(a, 3 * b)
    for row, one, other in zip(found.itertuples(), a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True):
        assert row.cosine == pytest.approx(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
        assert row.spearman == pytest.approx(stats.spearmanr(one, other).statistic)
    constant = likeness(torch.ones(1, 2, 2), random(1, 2, 2))
    assert constant["cosine"].notna().all() and constant["spearman"].isna().all()
    assert likeness(torch.zeros(1, 2, 2), random(1, 2, 2)).isna().all(axis=None)
    with pytest.raises(ValueError, match="pass the same examples"):
        likeness(a, b[:, :2])


def test_pixels_that_are_always_zero_are_ties_that_agree_unless_they_are_left_out():
    a, b = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    a[0, 0, :4], b[0, 0, :4] = tensor([1.0, 2, 3, 4]), tensor([4.0, 3, 2, 1])  # the reverse order
    assert likeness(a, b)["spearman"][0] > 0.9
    assert likeness(a, b, mask=a > 0)["spearman"][0] == pytest.approx(-1)


def test_repeatability_is_a_mean_over_sets():
    a = random(2, 3, 3)
    sets = torch.stack([a, a.flip(2)])
    wanted = (1 + likeness(a, a.flip(2))["cosine"]) / 2
    assert repeatability(a, sets)["cosine"].tolist() == pytest.approx(wanted.tolist())
    with pytest.raises(ValueError, match="pass maps of the same examples"):
        repeatability(a, sets[:, :1])


def test_first_order_is_the_variance_of_a_linear_explanation():
    slopes, stds = random(3, 2, 4) - 0.5, tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    noise = torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * stds
    drawn = torch.einsum("tk,knd->tnd", noise, slopes)
    found = first_order(slopes * stds[:, None, None])
    assert_close(found, drawn.var(0), rtol=0.02, atol=0)  # five standard errors of a variance of so many draws
    with pytest.raises(ValueError, match="values hold NaN"):
        first_order(slopes * math.nan)


def test_a_blur_along_rows_runs_over_their_ends():
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 1, 3] = 1.0  # the last of its row
    found = blurred_rows(x)
    assert found[0, 0, 2, 0] == pytest.approx(float(found[0, 0, 1, 2])) and found[0, 0, 2, 0] > 0.2  # both neighbours
    assert found[0, 0, 0, 3] < 1e-3  # four away, the Gaussian's end


def flipped_slowly(function, x, maps, reference, size):
    curves = []
    for one, map_, new in zip(x, maps, reference, strict=True):
        order = sorted(range(map_.numel()), key=lambda place, m=map_: -float(m.flatten()[place]))
        curve, changed = [float(function(one[None]))], one.clone()
        for step in range(len(order) // size):
            for place in order[step * size : (step + 1) * size]:
                changed.flatten(1)[:, place] = new.flatten(1)[:, place]
            curve.append(float(function(changed[None])))
        curves.append(curve)
    return tensor(curves, dtype=torch.float64).T


def test_flipping_is_a_loop_over_the_pixels_of_each_map():
    x, maps, weight = random(3, 2, 3, 3), random(3, 3, 3, seed=1), random(2, 3, 3, seed=2)
    maps[0, 0] = 0.5  # ties: in the order of the pixels
    maps[1] = 0
    function = lambda x: (x * weight).flatten(1).sum(1) ** 2  # noqa: E731
    reference = blurred_rows(x)
    found = flipping(function, x, maps, reference, size=2)
    assert found.shape == (5, 3)  # nine pixels: the last one stays
    assert_close(found, flipped_slowly(function, x, maps, reference, 2))
    with pytest.raises(ValueError, match="size is 10, but maps have 9 pixels"):
        flipping(function, x, maps, reference, size=10)
    with pytest.raises(TypeError, match="one uncertainty per example"):
        flipping(lambda x: x, x, maps, reference)
    with pytest.raises(ValueError, match="pass a map and a filled picture for each"):
        flipping(function, x, maps, reference[:1])


def test_the_area_of_a_curve_by_hand():
    curves = tensor([[2.0, 1, 0], [1.0, 1, 1], [0.0, 3, 1]])  # (1 + steps, N)
    assert flipping_area(curves)[:2].tolist() == pytest.approx([(1.5 + 0.5) / 2 / 2, (1 + 2) / 2 / 1])
    assert math.isnan(flipping_area(curves)[2])  # it starts at 0
    with pytest.raises(ValueError, match="pass finite curves"):
        flipping_area(curves[:1])


def test_a_conditional_fill_takes_rows_that_are_alike_in_what_is_left():
    # Feature 0 is 0 or 1, and feature 1 is ten times that: of a row whose feature 1 is flipped, feature 0 tells it.
    known = tensor([[0.0, 0.0], [1.0, 10.0]]).repeat(50, 1)
    x, maps = tensor([[0.0, 99.0], [1.0, 99.0]]), tensor([[1.0, 2.0], [1.0, 2.0]])
    seen = []
    flipping_of_rows(lambda x: seen.append(x) or x[:, 0], x, maps, known, num_copies=4)
    first_step = torch.stack(seen[1:5])
    assert first_step[:, 0].tolist() == [[0.0, 0.0]] * 4 and first_step[:, 1].tolist() == [[1.0, 10.0]] * 4
    assert {tuple(row) for row in torch.cat(seen[5:]).tolist()} == {(0.0, 0.0), (1.0, 10.0)}  # nothing is left: any


def test_a_conditional_fill_is_even_where_no_row_is_alike():
    known = tensor([[5.0, 1.0], [6.0, 2.0]])
    seen = []
    x, maps = tensor([[0.0, 0.0]]), tensor([[1.0, 2.0]])
    flipping_of_rows(lambda x: seen.append(x) or x[:, 0], x, maps, known, num_copies=200)
    share = float((torch.cat(seen[1:201])[:, 1] == 1.0).double().mean())
    assert abs(share - 0.5) < 4 * 0.5 / 200**0.5  # four standard errors
    with pytest.raises(ValueError, match="pass rows"):
        flipping_of_rows(lambda x: x[:, 0], x, maps, known[:, :1])


def test_patches_are_cut_at_the_border_and_no_two_are_at_one_place():
    masks = patch_masks((6, 5), size=4, num_samples=30)
    areas = sorted(int(mask.sum()) for mask in masks)
    wanted = sorted(min(4, 6 - row) * min(4, 5 - column) for row in range(6) for column in range(5))
    assert areas == wanted and len({tuple(mask.flatten().tolist()) for mask in masks}) == 30
    with pytest.raises(ValueError, match="num_samples is 31, but there are 30 places"):
        patch_masks((6, 5), num_samples=31)


def test_rank_improvement_by_hand():
    maps = tensor([[[4.0, 3.0], [2.0, 1.0]]])
    after = tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[4.0, 3.0], [2.0, 1.0]]]])
    masks = tensor([[[False, False], [True, True]], [[True, False], [False, False]]])
    # The first patch: ranks 3 and 4 become 2 and 1, so (1/3 + 3/4) / 2; the second patch: nothing moves.
    assert rank_improvement(maps, after, masks).tolist() == pytest.approx([(1 / 3 + 3 / 4) / 2 / 2])
    assert rank_improvement(maps, maps[None], masks[:1]).tolist() == [0.0]
    with pytest.raises(ValueError, match="pass one patch with pixels for each"):
        rank_improvement(maps, after, masks & False)


def test_ties_rise_in_their_order_as_published_or_together():
    maps, after = torch.zeros(1, 1, 4), tensor([[[0.0, 0.0, 0.0, 1.0]]])
    mask = tensor([[[False, False, False, True]]])
    assert rank_improvement(maps, after[None], mask, ties="first").tolist() == pytest.approx([(4 - 1) / 4])
    assert rank_improvement(maps, after[None], mask).tolist() == pytest.approx([(2.5 - 1) / 2.5])


def test_input_stability_by_hand():
    x, copies = tensor([[3.0, 4.0]]), tensor([[[3.0, 4.5]], [[3.0, 4.1]], [[0.0, 0.0]]])
    maps, after = tensor([[1.0, 2.0]]), tensor([[[2.0, 2.0]], [[1.0, 2.0]], [[math.nan, 9.0]]])
    quotient = (1 / 5**0.5) / (0.5 / 5)  # of the first; the second does not move, the third does not count
    assert input_stability(maps, after, x, copies).tolist() == pytest.approx([quotient])
    assert input_stability(maps, after, x, copies, by_pixel=True).tolist() == pytest.approx([1 / (0.5 / 4)])
    assert math.isnan(input_stability(maps, after[2:], x, copies[2:]))
    assert math.isnan(input_stability(maps * 0, after, x, copies))
    with pytest.raises(ValueError, match="pass finite copies"):
        input_stability(maps, after, x, copies[:1])


def test_divided_pixel_by_pixel_a_black_pixel_is_all_that_counts():
    x = random(1, 20) + 0.5
    noise = 0.01 * torch.randn(1, 1, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps, after = random(1, 20), random(1, 1, 20, seed=1)
    plain = float(input_stability(maps, after, x, x + noise, by_pixel=True))
    x[0, 0] = 0.0
    black = float(input_stability(maps, after, x, x + noise, by_pixel=True))
    assert black < 1e-4 * plain


def test_rank_agreement_is_a_mean_over_pairs_of_columns():
    values = random(20, 4)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    wanted = np.mean([stats.spearmanr(values[:, i], values[:, j]).statistic for i, j in pairs])
    assert rank_agreement(values) == pytest.approx(wanted)
    assert rank_agreement(values[:, [0, 0]]) == pytest.approx(1)
    assert math.isnan(rank_agreement(torch.ones(5, 2)))
    with pytest.raises(ValueError, match="two columns at least"):
        rank_agreement(values[:, :1])
