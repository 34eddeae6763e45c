"""Pasted patches, search windows and planted masks, by hand and against brute force."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

import xuqlib as xuq
from xuqlib.study.judging.anomaly import ada, chance, iou, mass_accuracy, paste, random_windows, rank_accuracy, window


def pictures(count=6, channels=3, side=12, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, side, side, generator=stream, dtype=torch.float64)


def cut(x, box, size):
    return x[..., box[0] : box[0] + size, box[1] : box[1] + size]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_patch_is_the_middle_of_another_picture_and_nothing_else_changes(size, untouched_generators):
    x, others = pictures(), pictures(4, side=9, seed=1)
    found = paste(x, others, size, seed=3)
    middles = [cut(other, ((9 - size) // 2,) * 2, size) for other in others]
    for i, box in enumerate(found.boxes.tolist()):
        mask = torch.zeros(12, 12, dtype=torch.bool)
        cut(mask, box, size)[:] = True
        assert torch.equal(found.masks[i], mask)
        assert torch.equal(found.pictures[i][:, ~mask], x[i][:, ~mask])
        assert any(torch.equal(cut(found.pictures[i], box, size), middle) for middle in middles)
    assert torch.equal(x, pictures())


def test_a_patch_never_comes_from_the_picture_itself_and_comes_from_all_others():
    x = (torch.arange(4.0) / 4)[:, None, None, None].expand(4, 1, 5, 5)
    seen = set()
    for seed in range(40):
        found = paste(x, None, 2, seed=seed)
        seen |= {(i, 4 * float(cut(found.pictures[i], box, 2).mean())) for i, box in enumerate(found.boxes)}
    assert seen == {(i, j) for i in range(4) for j in range(4) if i != j}


def test_every_place_is_as_likely_and_follows_the_seed():
    x = torch.zeros(9000, 1, 5, 6)
    for boxes in (paste(x, x + 1, 3, seed=0).boxes, random_windows(9000, (5, 6), 3, seed=0)):
        counts = torch.bincount(boxes[:, 0] * 4 + boxes[:, 1])
        assert len(counts) == 12 and (boxes >= 0).all()
        assert ((counts - 750).abs() < 5 * math.sqrt(750)).all()  # five standard deviations of a Poisson count
    first, again, other = (random_windows(9, (5, 6), 3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_matched_patch_has_the_mean_of_what_it_covers_and_the_pattern_that_it_had():
    x = pictures(40) * torch.rand(40, 3, 1, 1, generator=torch.Generator().manual_seed(1)) ** 2  # dark and bright ones
    raw, found = (paste(x, 1 - x, 4, seed=2, matched=matched) for matched in (False, True))
    assert torch.equal(raw.boxes, found.boxes)
    for i, box in enumerate(found.boxes):
        before, patch, after = (cut(each[i], box, 4) for each in (x, raw.pictures, found.pictures))
        assert_close(after.mean((1, 2)), before.mean((1, 2)))
        for channel in range(3):  # a linear function of the patch, rising
            pattern = torch.corrcoef(torch.stack([patch[channel].flatten(), after[channel].flatten()]))[0, 1]
            assert_close(pattern, torch.ones_like(pattern))
    assert found.pictures.min() >= 0 and found.pictures.max() <= 1


def test_matching_by_hand():
    x, patch = tensor([[[[0.2, 0.2]] * 2]]), tensor([[[[0.2, 0.6]] * 2]])  # mean 0.2 and 0.4
    assert_close(paste(x, patch, 2, seed=0, matched=True).pictures, tensor([[[[0.1, 0.3]] * 2]]))  # halved
    lighter = paste(x + 0.5, patch, 2, seed=0, matched=True).pictures  # distance to white halved
    assert_close(lighter, tensor([[[[0.6, 0.8]] * 2]]))
    for grey in (0.0, 0.5, 1.0):  # black and white patches have no pattern, only a mean
        for flat in (0.0, 1.0):
            found = paste(torch.full((1, 1, 2, 2), grey), torch.full((1, 1, 2, 2), flat), 2, seed=0, matched=True)
            assert_close(found.pictures, torch.full((1, 1, 2, 2), grey))


def test_a_patch_that_changes_too_little_goes_elsewhere():
    x = torch.zeros(50, 1, 6, 6)
    x[..., 3:] = 0.5  # a black patch shows on the right only
    found = paste(x, torch.zeros(1, 1, 2, 2), 2, seed=0, min_change=0.5)
    assert set(found.boxes[:, 1].tolist()) == {3, 4}
    assert set(paste(x, torch.zeros(1, 1, 2, 2), 2, seed=0).boxes[:, 1].tolist()) == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="50 of 50 patches change"):
        paste(x, torch.zeros(1, 1, 2, 2), 2, seed=0, min_change=0.6)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_window_is_that_of_a_search_through_all(size):
    maps = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0))
    for found, each in zip(window(maps, size).tolist(), maps.double(), strict=True):
        places = list(itertools.product(range(8 - size), range(10 - size)))
        assert tuple(found) == max(places, key=lambda place: float(cut(each, place, size).sum()))


def test_of_equal_windows_the_first_in_order_of_reading_is_taken():
    dot = torch.zeros(1, 9, 9)
    dot[0, 5, 6] = 1
    assert window(dot, 3).tolist() == [[3, 4]]
    for level in (0.0, 0.1, -0.3, 1e6 / 3):  # sums of such numbers round
        assert window(torch.full((1, 28, 28), level), 8).tolist() == [[0, 0]]


def test_a_window_counts_what_speaks_against_it():
    maps = torch.tensor([[[3.0, -9.0, 2.0, 2.0]] * 2])
    assert window(maps, 2).tolist() == [[0, 2]]
    assert window(maps.abs(), 2).tolist() == [[0, 0]]


def test_overlap_counts_pixels():
    boxes = tensor(list(itertools.product(range(4), range(4))))
    masks = torch.zeros(16, 6, 6, dtype=torch.bool)
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        cut(mask, box, 3)[:] = True
    pairs = tensor(list(itertools.product(range(16), range(16))))
    a, b = masks[pairs[:, 0]], masks[pairs[:, 1]]
    expected = (a & b).sum((1, 2)) / (a | b).sum((1, 2))
    assert_close(iou(boxes[pairs[:, 0]], boxes[pairs[:, 1]], 3), expected.double(), check_dtype=False)


def test_accuracy_is_the_share_of_overlaps_above_one_half_and_not_at_it():
    assert ada(tensor([0.5, 0.51, 1.0, 0.0]).double()) == 0.5
    assert ada(tensor([0.5, 0.51, 1.0, 0.0]).double(), at=0.0) == 0.75


def test_the_mask_as_a_map_finds_every_patch_and_random_windows_hardly_any():
    x = pictures(300, 1, 20)
    found = paste(x, None, 5, seed=0)
    assert ada(iou(window(found.masks.float(), 5), found.boxes, 5)) == 1
    assert ada(iou(random_windows(300, (20, 20), 5, seed=1), found.boxes, 5)) < 0.1


def test_mass_and_rank_by_hand():
    maps = tensor([[[4.0, 3.0], [2.0, -1.0]]])
    for mask, mass, rank in (
        ([[1, 0], [0, 0]], 4 / 9, 1.0),
        ([[0, 1], [0, 0]], 3 / 9, 0.0),
        ([[1, 0], [1, 0]], 6 / 9, 0.5),
        ([[0, 0], [1, 1]], 2 / 9, 0.0),
        ([[1, 1], [1, 1]], 1.0, 1.0),
    ):
        masks = tensor([mask], dtype=torch.bool)
        assert_close(mass_accuracy(maps, masks), tensor([mass]).double())
        assert_close(rank_accuracy(maps, masks), tensor([rank]).double())
        assert_close(chance(masks), tensor([sum(map(sum, mask)) / 4]).double())


def test_rank_with_ties_is_the_mean_over_all_ways_to_break_them():
    maps = tensor([2.0, 1.0, 1.0, 1.0, 1.0, 0.0]).view(1, 2, 3)
    for inside in itertools.chain.from_iterable(itertools.combinations(range(6), count) for count in range(1, 7)):
        masks = torch.zeros(6, dtype=torch.bool)
        masks[list(inside)] = True
        # The largest pixel comes first, the four that tie in any order, and the smallest last.
        orders = [(0, *tied, 5) for tied in itertools.permutations(range(1, 5))]
        hits = [len(set(order[: len(inside)]) & set(inside)) for order in orders]
        expected = sum(hits) / len(hits) / len(inside)
        assert float(rank_accuracy(maps, masks.view(1, 2, 3))) == pytest.approx(expected)


def test_a_flat_map_scores_chance_and_where_there_is_nothing_to_find_there_is_no_score():
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 1:3, 1] = True
    for score in (mass_accuracy, rank_accuracy):
        found = score(torch.full((2, 4, 4), 0.3), masks)
        assert_close(found[0], chance(masks)[0])
        assert found[1].isnan()
    assert mass_accuracy(-torch.ones(2, 4, 4), masks).isnan().all()


def test_on_planted_pictures_the_mask_itself_is_the_best_map():
    examples = xuq.load("planted", split="test", num_examples=30)
    masks = examples.masks["evidence"]
    for score in (mass_accuracy, rank_accuracy):
        assert_close(score(masks.double(), masks), torch.ones(30).double())
        assert_close(score((~masks).double(), masks), torch.zeros(30).double())


X, MAPS = pictures(), torch.zeros(2, 4, 4)
MASKS = MAPS > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paste(X, None, 13, seed=0), "size is 13 but pictures of x are 12 x 12"),
        (lambda: paste(X, X[..., :3], 4, seed=0), "size is 4 but pictures of others are 12 x 3"),
        (lambda: paste(X, X[:, :1], 4, seed=0), "others have 1 channels but x has 3"),
        (lambda: paste(X * 255, None, 4, seed=0), r"numbers in \[0, 1\]"),
        (lambda: paste(X[:, 0], None, 4, seed=0), r"pictures \(N, C, H, W\)"),
        (lambda: paste(X[:1], None, 4, seed=0), "one picture"),
        (lambda: paste(X, None, 0, seed=0), "size is 0"),
        (lambda: paste(X, None, 4, seed=0, min_change=-1), "min_change is -1"),
        (lambda: window(MAPS, 5), "size is 5 but the maps are 4 x 4"),
        (lambda: window(MAPS + math.nan, 2), "without NaN"),
        (lambda: window(MAPS[:, None], 2), r"pass \(N, H, W\)"),
        (lambda: random_windows(3, (4, 9), 5, seed=0), "size is 5"),
        (lambda: iou(tensor([[0, 0]]), tensor([[0, 0], [1, 1]]), 2), "boxes are"),
        (lambda: ada(tensor([0.2]), at=1.0), "at is 1.0"),
        (lambda: ada(tensor([])), r"overlap is a tensor \(0,\)"),
        (lambda: ada(tensor([0.2, math.nan])), "pass what iou gives"),
        (lambda: mass_accuracy(MAPS + math.nan, MASKS), "without NaN"),
        (lambda: mass_accuracy(MAPS, MASKS[:1]), "masks are"),
        (lambda: rank_accuracy(MAPS, MASKS[:, :2]), "masks are"),
        (lambda: rank_accuracy(MAPS, MASKS.float()), r"masks \(N, H, W\), True or False"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
