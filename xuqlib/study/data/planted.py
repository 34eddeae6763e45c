"""Pictures whose truth is known pixel by pixel: where the evidence is, what is ambiguous, what is novel.

Each picture is 32x32, in colour: smooth coloured noise, a few discs and strokes that say nothing, and one 9x9 patch
that decides the label. Four kinds of pictures, which `kinds` tells apart by their masks:

    plain      the patch is one of the five common shapes.
    ambiguous  the patch is a morph of two common shapes. The label was drawn from the two, and `probs` says how.
    rare       the patch is the sixth shape, of which training holds a handful; called so in test only.
    unseen     test only: a plain picture with a second patch elsewhere, of a shape that training never shows.

The mask "evidence" is the deciding patch of every picture; "ambiguous" the same square where it is a morph; "novel"
the rare patch, or the unseen one, in test pictures. No mask "novel" is set in train or validation.

Every number comes from `Generator.random`, and from sums, products and square roots, which round alike on every
machine; the pictures are whole numbers 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np

from xuqlib.checks import check_choice
from xuqlib.study.checked import checked

SIZE = 32
PATCH = 9
SEED = 20_240_917
MORPH_SHARE = 0.2
MORPH_RANGE = (0.35, 0.65)
NUM_DISTRACTORS = 5
BLOCK = 125


class Part(NamedTuple):
    """How many pictures of each kind a split holds; the rest are plain."""

    num_examples: int
    num_rare: int
    num_unseen: int


# In train and validation the rare shape is as rare; more of it in test, to have something to count.
PARTS = {"train": Part(4000, 8, 0), "validation": Part(500, 1, 0), "test": Part(1000, 60, 100)}

_SHAPES = {
    "cross": "...###... ...###... ...###... ######### ######### ######### ...###... ...###... ...###...",
    "ring": ".#######. ######### ##.....## ##.....## ##.....## ##.....## ##.....## ######### .#######.",
    "stripes": "######### ######### ......... ......... ######### ......... ......... ######### #########",
    "checker": "###...### ###...### ###...### ...###... ...###... ...###... ###...### ###...### ###...###",
    "triangle": "....#.... ....#.... ...###... ...###... ..#####.. ..#####.. .#######. .#######. #########",
    "saltire": "##.....## ###...### .###.###. ..#####.. ...###... ..#####.. .###.###. ###...### ##.....##",
    "pillars": "##..#..## ##..#..## ##..#..## ##..#..## ##..#..## ##..#..## ##..#..## ##..#..## ##..#..##",
}
CLASS_NAMES = tuple(_SHAPES)[:-1]
RARE = CLASS_NAMES.index("saltire")
# Of five shapes that were tried, the one that a trained network took for evidence most; the others it ignored.
UNSEEN = "pillars"


class Planted(NamedTuple):
    """One split: x uint8 (N, 3, 32, 32); y int64 (N,); probs float64 (N, 6), the true odds; masks bool (N, 32, 32).

    Other planted sets have other shapes, and the same names of masks.
    """

    x: np.ndarray
    y: np.ndarray
    probs: np.ndarray
    masks: dict[str, np.ndarray]

    def frozen(self) -> Planted:
        """Return itself, with arrays that cannot be written to: they are shared between calls."""
        for array in (self.x, self.y, self.probs, *self.masks.values()):
            array.flags.writeable = False
        return self


def shape(name: str) -> np.ndarray:
    """Return a shape as float64 (9, 9), 1 where it is drawn and 0 elsewhere."""
    check_choice(name, _SHAPES, "name of a shape")
    return np.array([[cell == "#" for cell in row] for row in _SHAPES[name].split()], dtype=np.float64)


@checked
@cache
def generate(split: str) -> Planted:
    """Generate a split, the same on every machine.

    The scene (noise, discs, strokes, place of the patch) is drawn before the labels and apart from them, so nothing
    outside the evidence patch depends on the label.

    Args:
        split: "train", "validation" or "test".
    """
    check_choice(split, PARTS, "split")
    part = PARTS[split]
    scene_stream, label_stream = (np.random.default_rng([SEED, list(PARTS).index(split), i]) for i in range(2))
    corner = _places(scene_stream, part.num_examples)
    evidence, second = _squares(corner[0]), _squares(corner[1])
    y, probs, novel = labels(label_stream, part)
    unseen = novel & (y != RARE)
    free = ~(evidence | (second & unseen[:, None, None]))
    blocks = np.array_split(free, max(1, len(free) // BLOCK))  # arrays that stay in the processor's cache
    picture = np.concatenate([distract(scene_stream, background(scene_stream, len(b)), b) for b in blocks])
    alphas = np.einsum("nc,chw->nhw", probs, np.stack([shape(name) for name in CLASS_NAMES]))
    picture = _paste(picture, corner[0], alphas, colours(scene_stream, part.num_examples))
    strange = colours(scene_stream, part.num_examples)
    picture[unseen] = _paste(picture[unseen], corner[1][unseen], shape(UNSEEN)[None], strange[unseen])
    picture += 16.0 * scene_stream.random(picture.shape) - 8.0
    x = np.clip(np.floor(picture + 0.5), 0, 255).astype(np.uint8)
    masks = {
        "evidence": evidence,
        "ambiguous": evidence & (probs.max(1) < 1)[:, None, None],
        "novel": np.where(unseen[:, None, None], second, evidence) & novel[:, None, None],
    }
    return Planted(x, y, probs, masks).frozen()


@checked
def kinds(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Name the kind of each example from its masks, (N, ...): "plain", "ambiguous", "rare" or "unseen", (N,).

    A rare patch is novel where the evidence is; an unseen patch is novel elsewhere. In train and validation, where no
    mask is novel, the few pictures of the rare class count as plain.
    """
    for name in ("evidence", "ambiguous", "novel"):
        check_choice(name, masks, "mask")
    evidence, ambiguous, novel = (np.asarray(masks[name], dtype=bool) for name in ("evidence", "ambiguous", "novel"))
    names = np.full(len(evidence), "plain", dtype="<U9")
    for name, mask in (("ambiguous", ambiguous), ("rare", novel & evidence), ("unseen", novel & ~evidence)):
        names[mask.reshape(len(mask), -1).any(1)] = name
    return names


def deal(stream: np.random.Generator, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw which rows of a split are ambiguous, which rare and which unseen; the others are plain."""
    order = np.argsort(stream.random(part.num_examples), kind="stable")  # a permutation: exact counts of each kind
    num_morphs = int(MORPH_SHARE * part.num_examples)
    rare = order[num_morphs : num_morphs + part.num_rare]
    return order[:num_morphs], rare, order[num_morphs + part.num_rare :][: part.num_unseen]


def labels(stream: np.random.Generator, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw labels (N,), true class probabilities (N, 6) and which pictures show something novel (N,)."""
    n, num_common = part.num_examples, len(CLASS_NAMES) - 1
    morph, rare, unseen = deal(stream, part)
    first = (stream.random(n) * num_common).astype(np.int64)
    other = (first + 1 + (stream.random(n) * (num_common - 1)).astype(np.int64)) % num_common
    low, high = MORPH_RANGE
    weight = low + (high - low) * stream.random(n)
    take_first = stream.random(n) < weight
    y, probs = first.copy(), np.eye(len(CLASS_NAMES))[first]
    y[morph] = np.where(take_first, first, other)[morph]
    probs[morph, first[morph]] = weight[morph]
    probs[morph, other[morph]] = 1.0 - weight[morph]
    y[rare] = RARE
    probs[rare] = np.eye(len(CLASS_NAMES))[RARE]
    novel = np.zeros(n, dtype=bool)
    if part.num_unseen:  # the split that shows what training does not
        novel[np.concatenate([rare, unseen])] = True
    return y, probs, novel


def _places(stream: np.random.Generator, n: int) -> np.ndarray:
    """Draw the corners of two 9x9 squares that do not overlap, (2, N, 2); each is uniform where it fits."""
    span = SIZE - PATCH + 1
    first = np.floor(stream.random((n, 2)) * span).astype(np.int64)
    second = np.empty_like(first)
    waiting = np.arange(n)
    while len(waiting):
        second[waiting] = np.floor(stream.random((len(waiting), 2)) * span).astype(np.int64)
        waiting = waiting[(np.abs(second - first)[waiting] < PATCH).all(1)]
    return np.stack([first, second])


def _squares(corner: np.ndarray) -> np.ndarray:
    """Mark the 9x9 square at each corner, bool (N, 32, 32)."""
    offset = np.arange(SIZE) - corner[..., None]  # (N, 2, 32)
    inside = (offset >= 0) & (offset < PATCH)
    square: np.ndarray = inside[:, 0, :, None] & inside[:, 1, None, :]
    return square


def background(stream: np.random.Generator, n: int) -> np.ndarray:
    """Draw smooth coloured noise around mid-grey, float64 (N, 3, 32, 32) between 80 and 175."""
    picture = np.full((n, 3, SIZE, SIZE), 80.0)
    for num_cells, height in ((4, 64), (8, 31)):
        grid = np.floor(stream.random((n, 3, num_cells + 1, num_cells + 1)) * (height + 1))
        step = SIZE // num_cells
        position = np.arange(SIZE) / step
        cell = position.astype(np.int64)
        part = position - cell  # a multiple of 1/8, so every product below is exact
        rows = grid[:, :, cell] * (1 - part)[:, None] + grid[:, :, cell + 1] * part[:, None]
        picture += rows[..., cell] * (1 - part) + rows[..., cell + 1] * part
    return picture


def colours(stream: np.random.Generator, n: int) -> np.ndarray:
    """Draw colours that stand out from the background: each channel below 50 or above 205, float64 (N, 3)."""
    colour: np.ndarray = np.floor(stream.random((n, 3)) * 51.0) + 205.0 * (stream.random((n, 3)) < 0.5)
    return colour


def distract(stream: np.random.Generator, picture: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Draw discs and strokes in the colours of the patches, only on the free pixels (N, 32, 32)."""
    n = len(picture)
    row, column = np.arange(SIZE)[:, None], np.arange(SIZE)[None, :]
    for _ in range(NUM_DISTRACTORS):
        centre = SIZE * stream.random((n, 2, 1, 1))
        is_stroke = stream.random((n, 1, 1, 1)) < 0.6
        half = np.where(is_stroke, 12.0 * stream.random((n, 2, 1, 1)) - 6.0, 0.0)
        radius = np.where(is_stroke[:, 0], 0.7, 1.5 + 1.5 * stream.random((n, 1, 1)))
        drawn = stream.random((n, 1, 1)) < 0.8
        dr, dc = row - centre[:, 0], column - centre[:, 1]
        # Distance to the segment centre +- half; a disc is a segment of no length, hence the floor.
        length = np.maximum((half * half).sum(1), 1e-6)
        along = np.clip((dr * half[:, 0] + dc * half[:, 1]) / length, -1.0, 1.0)
        dr, dc = dr - along * half[:, 0], dc - along * half[:, 1]
        alpha = np.clip(radius + 0.5 - np.sqrt(dr * dr + dc * dc), 0.0, 1.0) * (drawn & free)
        colour = colours(stream, n)[:, :, None, None]
        picture = picture + alpha[:, None] * (colour - picture)
    return picture


def _paste(picture: np.ndarray, corner: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Blend a colour (N, 3) into the 9x9 squares at `corner` (N, 2), as strongly as alpha (N or 1, 9, 9) says."""
    picture = picture.copy()
    rows = corner[:, 0, None, None] + np.arange(PATCH)[:, None]
    columns = corner[:, 1, None, None] + np.arange(PATCH)
    examples = np.arange(len(picture))[:, None, None]
    square = picture[examples, :, rows, columns]  # (N, 9, 9, 3)
    picture[examples, :, rows, columns] = square + alpha[..., None] * (colour[:, None, None] - square)
    return picture
