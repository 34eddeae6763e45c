"""Signals whose truth is known step by step: where the evidence is, what is ambiguous, what is novel.

Each signal has 128 steps: smooth and rough noise, and one motif of 24 steps that decides the label. Four kinds of
signals, which `planted.kinds` tells apart by their masks:

    plain      the motif is one of the five common ones.
    ambiguous  the motif is a morph of two common ones. The label was drawn from the two, and `probs` says how.
    rare       the motif is the sixth, of which training holds a handful; called so in test only.
    unseen     test only: a plain signal with a second motif elsewhere, which training never shows.

The masks, (N, 128), mean what they mean in `planted`.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from xuqlib.checks import check_choice
from xuqlib.study.checked import checked
from xuqlib.study.data.planted import PARTS, Planted, labels

SEED = 20_261_102
LENGTH = 128
MOTIF = 24
# Heights of 24 steps, 0 to 8, with 4 for none.
_MOTIFS = {
    "hill": "445566777888888777665544",
    "valley": "443322111000000111223344",
    "box": "448888888888888888888844",
    "ramp": "444455556666777788880004",
    "twins": "446688664444444466886644",
    "wave": "468864200246886420024688",
    "spikes": "484044840448404484044840",
}
CLASS_NAMES = tuple(_MOTIFS)[:-1]
RARE = CLASS_NAMES.index("wave")
UNSEEN = "spikes"


def motif(name: str) -> np.ndarray:
    """Return a motif, float64 (24,), between -1 and 1."""
    check_choice(name, _MOTIFS, "name of a motif")
    return (np.array([int(height) for height in _MOTIFS[name]]) - 4) / 4


@checked
@cache
def generate(split: str) -> Planted:
    """Generate a split, the same on every machine.

    Noise, place and strength are drawn before the labels and apart from them.

    Args:
        split: "train", "validation" or "test".

    Returns:
        x, float32 (N, 1, 128); y; probs (N, 6); masks (N, 128).
    """
    check_choice(split, PARTS, "split")
    part = PARTS[split]
    scene_stream, label_stream = (np.random.default_rng([SEED, list(PARTS).index(split), i]) for i in range(2))
    evidence, second = _windows(scene_stream, part.num_examples)
    x = _noise(scene_stream, part.num_examples)
    strength = 1.2 + 0.6 * scene_stream.random((part.num_examples, 1))
    y, probs, novel = labels(label_stream, part)
    unseen = novel & (y != RARE)
    # A product, then a sum: a matrix product may be rounded in another way on another machine.
    morph = (probs[:, :, None] * np.stack([motif(name) for name in CLASS_NAMES])).sum(1)
    x[evidence] += (strength * morph).ravel()
    shown = second & unseen[:, None]
    x[shown] += (strength[unseen] * motif(UNSEEN)).ravel()
    masks = {
        "evidence": evidence,
        "ambiguous": evidence & (probs.max(1) < 1)[:, None],
        "novel": np.where(unseen[:, None], second, evidence) & novel[:, None],
    }
    return Planted(x.astype(np.float32)[:, None], y, probs, masks).frozen()


def _windows(stream: np.random.Generator, n: int) -> np.ndarray:
    """Mark two windows of 24 steps that do not overlap, bool (2, N, 128); each is uniform where it fits."""
    span = LENGTH - MOTIF + 1
    first = np.floor(stream.random(n) * span)
    second = first.copy()
    while (near := np.abs(second - first) < MOTIF).any():
        second[near] = np.floor(stream.random(int(near.sum())) * span)
    offset = np.arange(LENGTH) - np.stack([first, second])[..., None]
    inside: np.ndarray = (offset >= 0) & (offset < MOTIF)
    return inside


def _noise(stream: np.random.Generator, n: int) -> np.ndarray:
    """Draw smooth noise between -0.5 and 0.5 and rough noise between -0.3 and 0.3, float64 (N, 128)."""
    step = 16
    grid = stream.random((n, LENGTH // step + 1)) - 0.5
    cell, part = np.divmod(np.arange(LENGTH), step)
    smooth = grid[:, cell] * (1 - part / step) + grid[:, cell + 1] * (part / step)
    noise: np.ndarray = smooth + 0.6 * stream.random((n, LENGTH)) - 0.3
    return noise
