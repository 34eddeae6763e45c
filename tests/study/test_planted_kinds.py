"""The generated sentences, signals, tables and pixels: the truth that comes with each is the truth."""

from __future__ import annotations

import hashlib
from collections import Counter
from types import ModuleType

import numpy as np
import pytest

from xuqlib import load
from xuqlib.study.data import planted_pixels, planted_signals, planted_table, planted_words
from xuqlib.study.data.planted import PARTS, kinds
from xuqlib.study.data.planted_table import FEATURE_GROUPS, FEATURE_NAMES, NUMBERS, RARE, SHIFTS

WITH_CLASSES = [planted_words, planted_signals]
SETS = ["planted_words", "planted_signals", "planted_table", "planted_pixels"]


def counts(masks: dict[str, np.ndarray]) -> dict[str, int]:
    return dict(Counter(kinds(masks).tolist()))


@pytest.mark.parametrize("module", WITH_CLASSES, ids=["words", "signals"])
def test_each_kind_is_there_as_often_as_it_is_said_to_be(module: ModuleType):
    for split, part in PARTS.items():
        found = counts(module.generate(split).masks)
        ambiguous = part.num_examples // 5
        assert found["ambiguous"] == ambiguous
        if split == "test":
            assert (found["rare"], found["unseen"]) == (60, 100)
        else:
            assert found == {"ambiguous": ambiguous, "plain": part.num_examples - ambiguous}, "nothing novel is marked"


@pytest.mark.parametrize("module", WITH_CLASSES, ids=["words", "signals"])
def test_a_label_is_drawn_from_its_odds(module: ModuleType):
    split = module.generate("train")
    odds = split.probs[np.arange(len(split.y)), split.y]
    np.testing.assert_allclose(split.probs.sum(1), 1)
    sure = split.probs.max(1) == 1
    assert (odds[sure] == 1).all() and (~sure).sum() > 0
    # The more likely class is drawn as often as its odds say, within four standard errors.
    best = split.probs[~sure].max(1)
    won = split.probs[~sure].argmax(1) == split.y[~sure]
    assert abs(won.sum() - best.sum()) < 4 * (best * (1 - best)).sum() ** 0.5


@pytest.mark.parametrize("name", SETS)
def test_masks_have_the_shape_of_x_without_its_channels(name):
    examples = load(name, num_examples=3)
    wanted = (3, *examples.x.shape[2 if examples.x.ndim > 2 else 1 :])
    assert {tuple(mask.shape) for mask in examples.masks.values()} == {wanted}
    assert list(examples.masks) == ["evidence", "ambiguous", "novel"]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("planted_words", "d36d586627319c6c41c33469df2b570d3a78bf689f03cad2cdf72e0b8afe995b"),
        ("planted_signals", "8fe113ccdca62a44bd2b8122816fc64c6138c3eda8faa3683e0a3914117d3549"),
        ("planted_table", "91e086aa79e705fb8e9f7c36e3f8ce28241dfa801ac710ade0b22605de2d6c30"),
        ("planted_pixels", "faf703b7d3da0bb5bb38095d4ac669ab960cef078f2e3ce84ad7aaf2de9ecb8d"),
    ],
)
def test_the_test_part_is_the_same_on_every_machine(name, digest):
    assert load(name).digest == digest


@pytest.mark.parametrize("module", [*WITH_CLASSES, planted_table, planted_pixels])
def test_what_is_generated_cannot_be_written_to(module: ModuleType):
    split = module.generate("validation")
    for array in (*split[:3], *split.masks.values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]


def test_the_marked_word_alone_decides_the_topic_and_no_other_word_tells_it():
    train, test = planted_words.generate("train"), planted_words.generate("test")
    topic_of = {noun: topic for topic, nouns in enumerate(planted_words.NOUNS) for noun in nouns}
    others: Counter[tuple[str, int]] = Counter()
    for words, mask, y in zip(train.x, train.masks["evidence"], train.y, strict=True):
        (place,) = np.flatnonzero(mask)
        noun = words[place]
        assert topic_of.get(noun, y) == y
        assert noun in {*topic_of, *planted_words.AMBIGUOUS, *planted_words.RARE}
        for word in {*words[:place], *words[place + 1 :]}:
            assert word not in topic_of
            others[word, y] += 1
    # Every other word is as common in one topic as in another: chi-squared, far below what 60 words reach by chance.
    per_topic = np.bincount(train.y, minlength=4) / len(train.y)
    seen = {word for word, _ in others}
    table = np.array([[others[word, topic] for topic in range(4)] for word in seen])
    wanted = table.sum(1, keepdims=True) * per_topic
    degrees = 3 * len(seen)
    assert abs(((table - wanted) ** 2 / wanted).sum() - degrees) < 5 * (2 * degrees) ** 0.5
    assert len({tuple(x) for x in test.x} & {tuple(x) for x in train.x}) < 0.02 * len(test.x)


def test_an_ambiguous_word_has_two_topics_and_the_odds_that_are_written_beside_it():
    split = planted_words.generate("train")
    for word, (first, second, odds) in planted_words.AMBIGUOUS.items():
        rows = [row for row, words in enumerate(split.x) if word in words]
        y = [planted_words.CLASS_NAMES[split.y[row]] for row in rows]
        assert set(y) == {first, second} and split.masks["ambiguous"][rows].any(1).all()
        assert abs(y.count(first) - odds * len(y)) < 4 * (odds * (1 - odds) * len(y)) ** 0.5


def test_a_rare_word_is_shown_twice_in_training_and_an_unseen_one_never():
    train, test = load("planted_words", split="train"), load("planted_words")
    shown = Counter(word for sentence in train.words for word in sentence)
    assert {shown[word] for word in planted_words.RARE} == {2}
    assert not set(planted_words.UNSEEN) & set(shown)
    novel = test.masks["novel"]
    marked = [test.words[row][place] for row, place in novel.nonzero().tolist()]
    assert set(marked) == {*planted_words.RARE, *planted_words.UNSEEN} and len(marked) == 160
    unknown = test.x == 1
    assert unknown.sum() == 100 and (unknown & novel).sum() == 100, "only unseen words are unknown"


def test_a_sentence_is_whole_and_fits():
    longest = max(len(words) for split in PARTS for words in planted_words.generate(split).x)
    assert longest == planted_words.LENGTH
    assert all(words[-1] == "." for words in planted_words.generate("test").x)


def best_motif(windows: np.ndarray) -> np.ndarray:
    """Name the motif that correlates most with each window, (N, 24) to (N,)."""
    motifs = np.stack([planted_signals.motif(name) for name in planted_signals.CLASS_NAMES])
    motifs = motifs - motifs.mean(1, keepdims=True)
    windows = windows - windows.mean(1, keepdims=True)
    norms = np.linalg.norm(motifs, axis=1) * np.linalg.norm(windows, axis=1)[:, None]
    return (windows @ motifs.T / norms).argmax(1)


def test_the_motif_is_where_the_mask_says_and_nothing_else_tells_it():
    split = planted_signals.generate("test")
    sure = split.probs.max(1) == 1
    evidence = split.masks["evidence"]
    assert (evidence.sum(1) == planted_signals.MOTIF).all()
    inside = split.x[:, 0][evidence].reshape(len(split.x), -1)
    assert (best_motif(inside)[sure] == split.y[sure]).mean() > 0.97
    elsewhere = np.roll(evidence, 2 * planted_signals.MOTIF, axis=1) & ~evidence
    plain = (kinds(split.masks) == "plain") & (elsewhere.sum(1) == planted_signals.MOTIF)
    outside = split.x[:, 0][plain][elsewhere[plain]].reshape(plain.sum(), -1)
    right = (best_motif(outside) == split.y[plain]).mean()
    assert abs(right - 1 / 6) < 0.1, "five common motifs, six to choose from"


def test_the_unseen_motif_is_in_no_training_signal_and_overlaps_no_evidence():
    for name in ("train", "validation"):
        assert not planted_signals.generate(name).masks["novel"].any()
    split = planted_signals.generate("test")
    unseen = kinds(split.masks) == "unseen"
    novel = split.masks["novel"][unseen]
    assert not (novel & split.masks["evidence"][unseen]).any() and (novel.sum(1) == planted_signals.MOTIF).all()
    strongest = split.x[:, 0][unseen][novel].reshape(100, -1)
    spikes = planted_signals.motif(planted_signals.UNSEEN)
    assert np.corrcoef(strongest.mean(0), spikes)[0, 1] > 0.99


def test_every_row_of_the_table_follows_the_formula():
    split = planted_table.generate("test")
    for row in (0, 17, 999):  # the slow way
        a, b, c, d, e = (split.x[row, NUMBERS.index(name)] for name in "abcde")
        (colour,) = np.flatnonzero(split.x[row, len(NUMBERS) :])
        mean = 2 * a - 1.5 * abs(b) + a * c + list(SHIFTS.values())[colour]
        deviation = 0.1 + 0.4 * (1 + d) if e > 0 else 0.1 + 0.1 * (1 + d)
        np.testing.assert_allclose(split.moments[row], [mean, deviation**2], rtol=1e-12)
    surprise = (split.y - split.moments[:, 0]) / split.moments[:, 1] ** 0.5
    assert abs(surprise.mean()) < 4 / 1000**0.5 and abs(surprise.var() - 1) < 4 * (2 / 1000) ** 0.5


def test_what_the_mean_and_the_noise_depend_on_is_marked_and_nothing_else_is():
    split = planted_table.generate("train")
    marked = {name: [FEATURE_NAMES[i] for i in np.flatnonzero(mask[0])] for name, mask in split.masks.items()}
    assert marked["evidence"] == ["a", "b", "c", *(f"colour = {colour}" for colour in SHIFTS)]
    assert marked["ambiguous"] == ["d", "e"] and marked["novel"] == []
    assert all((mask == mask[0]).all() for mask in split.masks.values())


def test_a_rare_colour_and_a_number_out_of_range_are_novel():
    train, test = planted_table.generate("train"), planted_table.generate("test")
    violet = FEATURE_NAMES.index(f"colour = {RARE}")
    assert train.x[:, violet].sum() == 8 and test.x[:, violet].sum() == 60
    assert np.abs(train.x).max() <= 1
    far = test.x[:, NUMBERS.index("f")] > 1
    assert far.sum() == 100 and test.masks["novel"][far, NUMBERS.index("f")].all()
    colours = list(FEATURE_GROUPS["colour"])
    assert test.masks["novel"][test.x[:, violet] == 1][:, colours].all()
    assert test.masks["novel"].sum() == 100 + 60 * len(SHIFTS)
    assert counts(test.masks)["unseen"] == 100 and counts(test.masks)["rare"] == 60


def test_a_sharp_object_has_the_label_of_its_shape_and_a_fading_one_is_drawn_from_its_odds():
    split = planted_pixels.generate("train")
    np.testing.assert_allclose(split.probs.sum(1), 1)
    odds = np.take_along_axis(split.probs, split.y[:, None], 1)[:, 0]
    assert (odds > 0).all()
    ambiguous = split.masks["ambiguous"]
    assert (odds[~ambiguous] == 1).all()
    # Pixels of one object are drawn together, so the unit is the picture.
    faded = ambiguous.any((1, 2))
    assert faded.sum() == 400
    surplus = ((split.y > 0) - split.probs[:, 1:].sum(1))[faded].sum((1, 2))
    assert abs(surplus.mean()) < 4 * surplus.std() / 400**0.5
    assert surplus.std() > 5, "an edge is drawn once for each object, not pixel by pixel"


def test_shapes_are_what_their_names_say_and_lie_in_a_quarter_each():
    split = planted_pixels.generate("validation")
    sharp = np.flatnonzero(~split.masks["ambiguous"].any((1, 2)))
    seen = {1: 0, 2: 0}
    for row in sharp[:60]:
        for top, left in ((0, 0), (0, 16), (16, 0), (16, 16)):
            quarter = split.y[row, top : top + 16, left : left + 16]
            (labels,) = (set(np.unique(quarter)) - {0},)
            assert len(labels) <= 1
            for label in labels:
                rows, columns = np.nonzero(quarter)
                box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
                share = len(rows) / box  # a square fills its box, a disc pi / 4 of it
                assert share == 1 if label == 2 else share < 0.93
                seen[label] += 1
    assert min(seen.values()) > 10


def test_a_cross_is_in_test_alone_and_is_labelled_background():
    assert not planted_pixels.generate("train").masks["novel"].any()
    split = planted_pixels.generate("test")
    novel = split.masks["novel"]
    assert novel.any((1, 2)).sum() == 100
    assert not (novel & split.masks["evidence"]).any() and (split.y[novel] == 0).all()
    assert counts(split.masks) == {"plain": 300, "ambiguous": 100, "unseen": 100}


def test_the_noise_around_the_objects_does_not_tell_what_they_are():
    split = planted_pixels.generate("train")
    outside = ~(split.masks["evidence"] | split.masks["novel"])
    empty = [split.x.transpose(0, 2, 3, 1)[row][outside[row]].mean() for row in range(len(split.x))]
    discs = (split.y == 1).sum((1, 2))
    assert abs(np.corrcoef(empty, discs)[0, 1]) < 4 / len(empty) ** 0.5


def test_a_digest_is_of_the_bytes():
    examples = load("planted_words", num_examples=2)
    state = hashlib.sha256(f"{(2, 17)}".encode() + examples.x.numpy().tobytes())
    state.update(b"(2,)" + examples.y.numpy().tobytes())
    assert examples.digest == state.hexdigest()
