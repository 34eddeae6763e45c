"""Pictures in which every pixel has a label, and whose truth is known: what is an object, where its edge is ambiguous.

Each picture is 32x32, in colour: smooth noise, discs and strokes that say nothing, and in each quarter nothing, a disc
or a square (in the last never nothing), of a size that no clutter has. Its pixels are to be told apart: background,
disc, square. Three kinds of pictures, which `planted.kinds` tells apart by their masks:

    plain      every object has a sharp edge.
    ambiguous  objects fade out over four pixels. Where each ends was drawn once for it, and `probs` says how.
    unseen     test only: an empty quarter of a plain picture shows a cross, which training never shows. It is labelled
               background.

The mask "evidence" marks every pixel that may belong to an object; "ambiguous" those that may as well not; "novel"
the cross, in test pictures.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from xuqlib.checks import check_choice
from xuqlib.study.checked import checked
from xuqlib.study.data.planted import SIZE, Part, Planted, background, colours, deal, distract

SEED = 20_261_104
CLASS_NAMES = ("background", "disc", "square")
PARTS = {"train": Part(2000, 0, 0), "validation": Part(250, 0, 0), "test": Part(500, 0, 100)}
FADE = 2.0
QUARTER = SIZE // 2
EMPTY, DISC, SQUARE, CROSS = range(4)


@checked
@cache
def generate(split: str) -> Planted:
    """Generate a split, the same on every machine.

    Args:
        split: "train", "validation" or "test".

    Returns:
        x, uint8 (N, 3, 32, 32); y (N, 32, 32); probs (N, 3, 32, 32); masks (N, 32, 32).
    """
    check_choice(split, PARTS, "split")
    part = PARTS[split]
    stream = np.random.default_rng([SEED, list(PARTS).index(split)])
    n = part.num_examples
    faded, _, unseen = deal(stream, part)
    shape = np.floor(3.0 * stream.random((n, 4))).astype(np.int64)  # empty, disc or square
    shape[:, 3] = 1 + np.floor(2.0 * stream.random(n)).astype(np.int64)  # no picture is empty
    shape[unseen, 0] = CROSS
    fade = np.zeros((n, 1, 1))
    fade[faded] = FADE
    inside, certain = np.zeros((2, 3, n, SIZE, SIZE))  # odds, and what was drawn, of a disc, a square and a cross
    for quarter in range(4):
        distance, radius = _distances(stream, shape[:, quarter], quarter)
        edge = radius + fade * (2.0 * stream.random((n, 1, 1)) - 1.0)
        odds = np.where(fade > 0, np.clip((radius + fade - distance) / (2.0 * FADE), 0.0, 1.0), distance <= radius)
        for kind in (DISC, SQUARE, CROSS):
            here = (shape[:, quarter] == kind)[:, None, None]
            inside[kind - 1] += odds * here
            certain[kind - 1] += (distance <= edge) & here
    picture = distract(stream, background(stream, n), np.logical_not(inside.any(0)))
    for quarter in range(4):
        rows, columns = _quarter(quarter)
        picture[:, :, rows, columns] += inside.sum(0)[:, None, rows, columns] * (
            colours(stream, n)[:, :, None, None] - picture[:, :, rows, columns]
        )
    picture += 16.0 * stream.random(picture.shape) - 8.0
    objects = inside[: CROSS - 1]
    probs = np.stack([1.0 - objects.sum(0), *objects], axis=1)
    masks = {"evidence": probs[:, 0] < 1, "ambiguous": (objects.sum(0) > 0) & (probs[:, 0] > 0)}
    masks["novel"] = inside[CROSS - 1] > 0
    y = (np.arange(1, 3)[:, None, None, None] * certain[:2]).sum(0).astype(np.int64)
    x = np.clip(np.floor(picture + 0.5), 0, 255).astype(np.uint8)
    return Planted(x, y, probs, masks).frozen()


def _quarter(quarter: int) -> tuple[slice, slice]:
    row, column = (QUARTER * side for side in divmod(quarter, 2))
    return slice(row, row + QUARTER), slice(column, column + QUARTER)


def _distances(stream: np.random.Generator, shape: np.ndarray, quarter: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw a centre and a radius, and measure how far each pixel is, in the metric of its shape.

    Returns:
        distance, (N, 32, 32), infinite outside of the quarter; radius, (N, 1, 1), up to which the shape reaches.
    """
    n = len(shape)
    centre = QUARTER / 2 - 0.5 + 2.0 * stream.random((n, 2, 1, 1)) - 1.0
    radius = 3.5 + stream.random((n, 1, 1))
    steps = np.arange(QUARTER)
    dr, dc = np.abs(steps[:, None] - centre[:, 0]), np.abs(steps - centre[:, 1])
    far, near = np.maximum(dr, dc), np.minimum(dr, dc)
    kind = shape[:, None, None]
    metric = np.select(
        [kind == DISC, kind == SQUARE], [np.sqrt(dr * dr + dc * dc), far], np.where(near < 1.5, far, 99.0)
    )
    distance = np.full((n, SIZE, SIZE), np.inf)
    rows, columns = _quarter(quarter)
    distance[:, rows, columns] = metric
    return distance, radius
