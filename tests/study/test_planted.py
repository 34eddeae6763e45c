"""The generated pictures: the label is in the evidence patch and nowhere else, and the masks tell the truth."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from xuqlib.study.data.loading import load
from xuqlib.study.data.planted import CLASS_NAMES, PARTS, PATCH, RARE, SIZE, UNSEEN, Planted, generate, kinds, shape

COMMON = len(CLASS_NAMES) - 1


def patches(split: Planted) -> np.ndarray:
    """Cut the evidence patch out of each picture, (N, 3, 9, 9)."""
    rows, columns = split.masks["evidence"].any(2).argmax(1), split.masks["evidence"].any(1).argmax(1)
    pictures = zip(split.x, rows, columns, strict=True)
    return np.stack([picture[:, row : row + PATCH, column : column + PATCH] for picture, row, column in pictures])


def match(crops: np.ndarray) -> np.ndarray:
    """Name the shape in each crop by the largest squared correlation, whatever its colour, (N,)."""
    templates = np.stack([shape(name) for name in CLASS_NAMES]).reshape(len(CLASS_NAMES), -1)
    templates = templates - templates.mean(1, keepdims=True)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    values = crops.reshape(len(crops), 3, -1).astype(float)
    values -= values.mean(2, keepdims=True)
    return ((values @ templates.T) ** 2).sum(1).argmax(1)


def best_match_anywhere(x: np.ndarray) -> np.ndarray:
    """Name the shape that matches best at any place of each picture, (N,): a detector that needs no mask."""
    windows = np.lib.stride_tricks.sliding_window_view(x, (PATCH, PATCH), axis=(2, 3))  # (N, 3, 24, 24, 9, 9)
    templates = np.stack([shape(name) for name in CLASS_NAMES[:COMMON]]).reshape(COMMON, -1)
    templates = templates - templates.mean(1, keepdims=True)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    score = np.stack(
        [
            ((w.reshape(3, -1, PATCH**2) @ templates.T.astype(np.float32)) ** 2).sum(0).max(0)
            for w in windows.astype(np.float32)
        ]
    )
    return score.argmax(1)


def hidden(split: Planted) -> np.ndarray:
    """Cover the evidence patch of each picture with noise that is drawn alike for every label."""
    noise = np.random.default_rng(0).integers(0, 256, split.x.shape, dtype=np.uint8)
    return np.where(split.masks["evidence"][:, None], noise, split.x)


def plain(split: Planted) -> np.ndarray:
    """Rows of the plain pictures of common classes."""
    return np.flatnonzero((kinds(split.masks) == "plain") & (split.y != RARE))


def within_chance(num_right: int, num_examples: int) -> bool:
    """Whether a count is within four standard deviations of guessing among the common classes."""
    chance = 1 / COMMON
    return abs(num_right - num_examples * chance) < 4 * (num_examples * chance * (1 - chance)) ** 0.5


def ridge_predictions(x: np.ndarray, y: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Fit a ridge classifier on random ReLU features and classify the queries."""

    def features(pictures: np.ndarray) -> np.ndarray:
        values = pictures.reshape(len(pictures), -1) / 255 - 0.5
        weight = np.random.default_rng(1).standard_normal((values.shape[1], 400))
        return np.hstack([values @ weight, np.maximum(values @ weight, 0), np.ones((len(values), 1))])

    inputs = features(x)
    solution = np.linalg.solve(inputs.T @ inputs + 100.0 * np.eye(inputs.shape[1]), inputs.T @ np.eye(COMMON)[y])
    return (features(queries) @ solution).argmax(1)


def test_the_label_can_be_read_off_the_evidence_patch_alone():
    for name in PARTS:
        split = generate(name)
        sure = split.probs.max(1) == 1
        assert (match(patches(split)[sure]) == split.y[sure]).mean() > 0.99


def test_a_template_finds_the_label_in_the_picture_and_only_chance_with_the_patch_hidden():
    test = generate("test")
    rows = plain(test)[:300]
    right = best_match_anywhere(test.x[rows]) == test.y[rows]
    assert right.mean() > 0.9
    right = best_match_anywhere(hidden(test)[rows]) == test.y[rows]
    assert within_chance(right.sum(), len(rows))


def test_a_classifier_trained_on_the_rest_is_at_chance_and_one_trained_on_the_patch_is_not():
    train, test = generate("train"), generate("test")
    rows, queries = plain(train)[:2000], plain(test)
    right = ridge_predictions(hidden(train)[rows], train.y[rows], hidden(test)[queries]) == test.y[queries]
    assert within_chance(right.sum(), len(queries))
    # The same classifier, shown the patch, is far from chance: it is not too weak to tell.
    right = ridge_predictions(patches(train)[rows], train.y[rows], patches(test)[queries]) == test.y[queries]
    assert right.mean() > 0.8


def test_the_colour_and_the_place_of_the_patch_say_nothing_about_the_label():
    train, test = generate("train"), generate("test")

    def place(split: Planted) -> np.ndarray:
        mask = split.masks["evidence"][:, None]
        return np.broadcast_to(255 * mask, split.x.shape)

    def colour(split: Planted) -> np.ndarray:
        # The pixel that stands out most in the patch: on the shape, for every class.
        crops = patches(split).reshape(len(split.x), 3, -1).astype(float)
        furthest = np.abs(crops - 128).sum(1).argmax(1)
        return np.take_along_axis(crops, furthest[:, None, None], 2)[..., 0]

    for cue in (place, colour):
        rows, queries = plain(train), plain(test)
        right = ridge_predictions(cue(train)[rows], train.y[rows], cue(test)[queries]) == test.y[queries]
        assert within_chance(right.sum(), len(queries)), cue.__name__


def test_the_clutter_has_the_colours_of_the_patches():
    # The background stays within 80 and 175, give or take 8 of grain; outside the patches the rest is clutter.
    test = generate("test")
    strong = ((test.x < 65) | (test.x > 190)).all(1) & ~test.masks["evidence"] & ~test.masks["novel"]
    assert (strong.any((1, 2))).mean() > 0.95
    assert 20 < strong.sum((1, 2)).mean() < 120


@pytest.mark.parametrize("name", PARTS)
def test_masks_are_whole_squares_of_81_pixels_where_they_should_be(name):
    split = generate(name)
    area = {key: mask.sum((1, 2)) for key, mask in split.masks.items()}
    assert all(mask.shape == (PARTS[name].num_examples, SIZE, SIZE) for mask in split.masks.values())
    assert (area["evidence"] == PATCH**2).all()
    assert set(area["ambiguous"]) == {0, PATCH**2}
    assert set(area["novel"]) <= {0, PATCH**2}
    for mask in split.masks.values():
        assert ((mask.any(2).sum(1) * mask.any(1).sum(1)) == mask.sum((1, 2))).all()  # a full rectangle
    assert (split.masks["ambiguous"] <= split.masks["evidence"]).all()
    assert ((area["ambiguous"] > 0) == (split.probs.max(1) < 1)).all()


def test_the_counts_of_each_kind_are_as_stated():
    for name, part in PARTS.items():
        split = generate(name)
        names, counts = np.unique(kinds(split.masks), return_counts=True)
        found = dict(zip(names.tolist(), counts.tolist(), strict=True))
        assert found["ambiguous"] == part.num_examples // 5
        assert found.get("unseen", 0) == part.num_unseen
        assert (split.y == RARE).sum() == part.num_rare
        assert found.get("rare", 0) == (part.num_rare if name == "test" else 0)


def test_nothing_is_marked_novel_outside_the_test_split():
    assert not generate("train").masks["novel"].any()
    assert not generate("validation").masks["novel"].any()
    assert generate("test").masks["novel"].any((1, 2)).sum() == 160


def test_an_unseen_patch_lies_where_the_mask_says_and_does_not_touch_the_evidence():
    test = generate("test")
    rows = np.flatnonzero(kinds(test.masks) == "unseen")
    assert not (test.masks["novel"] & test.masks["evidence"])[rows].any()
    template = shape(UNSEEN).ravel() - shape(UNSEEN).mean()
    for row in rows:
        pixels = test.x[row][:, test.masks["novel"][row]].astype(float)  # (3, 81), row by row
        pixels -= pixels.mean(1, keepdims=True)
        cosine = (pixels @ template) ** 2 / (np.linalg.norm(template) ** 2 * (pixels**2).sum(1))
        assert cosine.max() > 0.8


def test_ambiguous_labels_are_drawn_with_the_odds_that_probs_states():
    train = generate("train")
    rows = np.flatnonzero(train.probs.max(1) < 1)
    odds = train.probs[rows]
    assert ((odds > 0).sum(1) == 2).all()
    assert (odds[odds > 0] >= 0.35 - 1e-12).all()
    np.testing.assert_allclose(odds.sum(1), 1.0)
    assert (odds[np.arange(len(rows)), train.y[rows]] > 0).all()
    # The likelier class wins as often as its odds say, within four standard deviations.
    top = odds.max(1)
    wins = (odds.argmax(1) == train.y[rows]).sum()
    assert abs(wins - top.sum()) < 4 * (top * (1 - top)).sum() ** 0.5
    # And that is not just half: the odds carry information.
    low, high = top < 0.55, top > 0.6
    right = odds.argmax(1) == train.y[rows]
    assert right[high].mean() > right[low].mean()


def test_an_ambiguous_patch_shows_both_shapes_as_strongly_as_the_odds():
    train = generate("train")
    rows = np.flatnonzero(train.probs.max(1) < 1)
    measured, stated = [], []
    for row, crop in zip(rows, patches(train)[rows].astype(float), strict=True):
        first, second = np.flatnonzero(train.probs[row])
        a, b = shape(CLASS_NAMES[first]) > 0, shape(CLASS_NAMES[second]) > 0
        if (a & b).any() and not (a | b).all():  # else there is no full strength, or none at all, to compare with
            both, only_a, neither = (crop[:, region].mean(1) for region in (a & b, a & ~b, ~a & ~b))
            measured.append((only_a - neither) @ (both - neither) / ((both - neither) @ (both - neither)))
            stated.append(train.probs[row, first])
    errors = np.array(measured) - np.array(stated)
    assert abs(errors.mean()) < 0.01
    assert errors.std() < 0.1  # the background slopes under the patch


def test_probs_of_loaded_examples_give_the_ceiling_of_accuracy():
    examples = load("planted", split="test")
    ceiling = examples.probs.max(1).values.mean().item()
    assert 0.8 + 0.2 * 0.5 < ceiling < 0.8 + 0.2 * 0.65
    assert (examples.probs.argmax(1) == examples.y).float().mean() == pytest.approx(ceiling, abs=0.04)


def test_kinds_reads_tensors_and_subsets():
    examples = load("planted", split="test", num_examples=60)
    full = kinds(generate("test").masks)
    assert (kinds(examples.masks) == full[examples.index]).all()


def test_the_pictures_are_the_same_on_every_machine():
    # The published checkpoints were trained on these bytes.
    digests = {
        name: hashlib.sha256(generate(name).x.tobytes() + generate(name).y.tobytes()).hexdigest()[:16] for name in PARTS
    }
    assert digests == {"train": "1001bd42b4cb653c", "validation": "08477e6202ecee0f", "test": "19aeee6d2a7a2a8c"}


def test_generated_arrays_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        generate("test").x[0] = 0
