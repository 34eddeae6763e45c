"""A table whose truth is known column by column: what moves the mean, what moves the noise, what is novel.

Eight numbers a ... h, uniform between -1 and 1, and a colour. With n a standard normal number,

    target = 2 a - 1.5 |b| + a c + shift of the colour + deviation * n
    deviation = 0.1 + 0.4 (1 + d) where e > 0, and 0.1 + 0.1 (1 + d) elsewhere,

so a, b, c and the colour move the mean, d and e the variance, and f, g and h nothing. In 60 test rows the colour is
the rare one, of which training holds eight; in 100 others f is far outside what training shows.

The masks, (N, 13), follow `planted`: "evidence" marks what moves the mean, "ambiguous" what moves the noise (both in
every row), "novel" the columns of the rare colour or the f that is out of range, in test rows.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from xuqlib.checks import check_choice
from xuqlib.study.checked import checked
from xuqlib.study.data.planted import PARTS, deal

SEED = 20_261_103
NUMBERS = tuple("abcdefgh")
SHIFTS = {"red": 0.0, "green": 0.7, "blue": -0.7, "yellow": 1.4, "violet": -1.4}
RARE = "violet"
FEATURE_NAMES = (*NUMBERS, *(f"colour = {colour}" for colour in SHIFTS))
FEATURE_GROUPS = {name: (i,) for i, name in enumerate(NUMBERS)} | {"colour": tuple(range(8, 13))}
MEAN = ("a", "b", "c", "colour")
NOISE = ("d", "e")


class PlantedTable(NamedTuple):
    """One split: x float64 (N, 13); y float64 (N,); moments, the true mean and variance of y, (N, 2); masks (N, 13)."""

    x: np.ndarray
    y: np.ndarray
    moments: np.ndarray
    masks: dict[str, np.ndarray]


@checked
@cache
def generate(split: str) -> PlantedTable:
    """Generate a split, the same on every machine.

    Args:
        split: "train", "validation" or "test".
    """
    check_choice(split, PARTS, "split")
    part = PARTS[split]
    stream = np.random.default_rng([SEED, list(PARTS).index(split)])
    n = part.num_examples
    numbers = 2.0 * stream.random((n, len(NUMBERS))) - 1.0
    colour = (stream.random(n) * (len(SHIFTS) - 1)).astype(np.int64)
    _, rare, unseen = deal(stream, part)
    colour[rare] = list(SHIFTS).index(RARE)
    numbers[unseen, NUMBERS.index("f")] = 3.0 + stream.random(part.num_unseen)
    a, b, c, d, e, *_ = numbers.T
    mean = 2.0 * a - 1.5 * np.abs(b) + a * c + np.array(list(SHIFTS.values()))[colour]
    deviation = 0.1 + np.where(e > 0, 0.4, 0.1) * (1.0 + d)
    # The sum of twelve uniform numbers is as good as normal, and needs nothing that machines round differently.
    y = mean + deviation * (stream.random((12, n)).sum(0) - 6.0)
    x = np.concatenate([numbers, np.eye(len(SHIFTS))[colour]], axis=1)
    masks = {"evidence": _marked(MEAN, n), "ambiguous": _marked(NOISE, n), "novel": np.zeros(x.shape, dtype=bool)}
    if part.num_unseen:  # the split that shows what training does not
        masks["novel"][rare] = _marked(("colour",), len(rare))
        masks["novel"][unseen] = _marked(("f",), len(unseen))
    table = PlantedTable(x, y, np.stack([mean, deviation * deviation], axis=1), masks)
    for array in (*table[:3], *masks.values()):
        array.flags.writeable = False
    return table


def _marked(features: tuple[str, ...], n: int) -> np.ndarray:
    """Mark the columns of some features, bool (n, 13)."""
    mask = np.zeros((n, len(FEATURE_NAMES)), dtype=bool)
    mask[:, [column for name in features for column in FEATURE_GROUPS[name]]] = True
    return mask
