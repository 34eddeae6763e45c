"""Examples that know their names: one call loads a data set, split and stratified subset."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from xuqlib.checks import check_choice, check_target
from xuqlib.study.checked import Count, Seed, checked
from xuqlib.study.data import fer, readers, signals, tables, words
from xuqlib.study.data.download import DataError, Folder

__all__ = ["DATASETS", "DataError", "Examples", "FeatureScale", "TargetScale", "load"]

SPLITS = ("train", "validation", "test")
# Decides which rows are held out where nobody published it. Changing it changes every result.
SPLIT_SEED = 1802
VALIDATION_SHARE = 0.1
TEST_SHARE = 0.2


class TargetScale(NamedTuple):
    """Training mean and standard deviation of a regression target, in `unit`: target = mean + std * y."""

    mean: float
    std: float
    unit: str


class FeatureScale(NamedTuple):
    """Training mean and standard deviation of each feature, (F,) each: feature = mean + std * x."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Rows of one split of a data set, with the names and scales needed to read a figure made of them.

    An index, slice or index tensor gives `Examples` again; a single row stays a batch of one.

    Attributes:
        name: the data set, as in `load`.
        split: "train", "validation" or "test".
        x: float32. Pictures (N, C, H, W) in [0, 1]; signals (N, C, L); tables (N, F), numbers standardised by the
            training rows and categories a column of 0 and 1 each. Sentences are int64 (N, T): the numbers of the
            words, 1 for an unknown one, 0 behind the last.
        y: class index, int64 (N,), or of each pixel (N, H, W); or a target standardised by the training rows,
            float32 (N, 1); or for several labels at once 0 and 1, float32 (N, C).
        class_names: one per class; None for regression.
        feature_names: one per feature of a table; else None.
        probs: soft labels, float32 (N, C, ...): shares of human votes (fer_plus, cifar10h), true odds (planted sets);
            or None.
        masks: truth of the planted sets, bool, shaped like x without an axis of channels: "evidence", "ambiguous",
            "novel"; else empty.
        target_scale: takes a regression target back to its unit; else None.
        feature_scale: takes features back to their units; else None.
        feature_groups: the columns of a table that are one feature, by its name; else empty.
        vocabulary: the word of each number; None if x is no sentences.
        words: the words of each sentence, the unknown ones too; else None.
        moments: true mean and variance of y, float32 (N, 2), of planted_table; else None.
        index: row of each example in the full split, int64 (N,).
    """

    name: str
    split: str
    x: Tensor
    y: Tensor
    index: Tensor
    class_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None
    probs: Tensor | None = None
    masks: dict[str, Tensor] = field(default_factory=dict)
    target_scale: TargetScale | None = None
    feature_scale: FeatureScale | None = None
    feature_groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    vocabulary: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    moments: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(each.shape) for each in (self.x, self.y, self.index)]
        if len({shape[:1] for shape in shapes}) > 1 or () in shapes:
            raise ValueError(f"x, y and index have shapes {shapes}; pass tensors of the same examples")
        if self.task == "classification" and len(self.y):
            check_target(self.y, len(self.y), len(self.class_names or ()))

    @property
    def task(self) -> str:
        """ "classification", "regression", "segmentation" (a class per pixel) or "multilabel" (classes at once)."""
        if self.class_names is None:
            return "regression"
        if self.y.ndim == 1:
            return "classification"
        return "multilabel" if self.y.is_floating_point() else "segmentation"

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None for regression."""
        return None if self.class_names is None else len(self.class_names)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shapes and little-endian bytes of x and y. Equal data give it on every machine."""
        state = hashlib.sha256()
        for tensor in (self.x, self.y):
            array = tensor.cpu().numpy()
            state.update(str(array.shape).encode())
            state.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
        return state.hexdigest()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: SupportsIndex | slice | Sequence[int] | np.ndarray | Tensor) -> Examples:
        """Return the chosen rows: a number, a slice, row numbers or a mask of booleans.

        Raises:
            IndexError: a row number is out of range or not whole, or a mask has another length.
        """
        chosen = rows if isinstance(rows, slice) else _row_numbers(rows)
        return replace(
            self,
            x=self.x[chosen],
            y=self.y[chosen],
            index=self.index[chosen],
            probs=None if self.probs is None else self.probs[chosen],
            masks={name: mask[chosen] for name, mask in self.masks.items()},
            words=None if self.words is None else tuple(self.words[row] for row in torch.arange(len(self))[chosen]),
            moments=None if self.moments is None else self.moments[chosen],
        )

    def __repr__(self) -> str:
        scale = self.target_scale
        what = f"target in {scale.unit}" if scale else f"{self.num_classes} classes"
        extras = ["probs"] * (self.probs is not None) + [f"mask {name}" for name in self.masks]
        tail = f"; {', '.join(extras)}" if extras else ""
        return f"Examples({self.name} {self.split}: {len(self)} x {tuple(self.x.shape[1:])}, {what}{tail})"


def _row_numbers(rows: Any) -> Tensor:
    """Turn one number, numbers or booleans into a tensor of one axis."""
    # torch warns about a read-only array, so it gets a copy
    chosen = torch.as_tensor(np.array(rows) if isinstance(rows, np.ndarray) else rows)
    chosen = chosen.reshape(1) if chosen.dim() == 0 else chosen
    return chosen if len(chosen) else chosen.long()  # an empty list makes a tensor of floats


class Kind(NamedTuple):
    """How a data set is read: `reader(part, data)`, its splits, and which of them are published parts.

    unit: of a regression target. top: the brightest value of a picture, by which x is divided; not used for tables.
    length: places for the words of a sentence, as many as the longest has; 0 for what is no sentence.
    """

    reader: Callable[..., readers.Raw]
    splits: tuple[str, ...] = SPLITS
    parts: tuple[str, ...] = ("train", "test")
    unit: str = ""
    top: float = 255.0
    length: int = 0


KINDS = {
    "planted": Kind(readers.planted, parts=SPLITS),
    "digits": Kind(readers.digits, parts=("all",), top=16.0),
    "diabetes": Kind(readers.diabetes, parts=("all",), unit="disease progression score"),
    "planted_words": Kind(readers.planted_words, parts=SPLITS, length=17),
    "planted_signals": Kind(readers.planted_signals, parts=SPLITS, top=1.0),
    "planted_table": Kind(readers.planted_table, parts=SPLITS, unit="1"),
    "planted_pixels": Kind(readers.planted_pixels, parts=SPLITS),
    "cifar10": Kind(readers.cifar10),
    "mnist": Kind(readers.mnist),
    "fashion_mnist": Kind(readers.fashion_mnist),
    "tiny_imagenet": Kind(readers.tiny_imagenet),
    "fer_plus": Kind(fer.fer_plus, parts=SPLITS),
    "nuclei": Kind(readers.nuclei),
    "trec": Kind(words.trec, length=37),
    "rt_polarity": Kind(words.rt_polarity, parts=("all",), length=61),
    "ecg200": Kind(signals.ecg200, top=1.0),
    "ecg5000": Kind(signals.ecg5000, top=1.0),
    "ecg_five_days": Kind(signals.ecg_five_days, top=1.0),
    "gun_point": Kind(signals.gun_point, top=1.0),
    "adult": Kind(tables.adult),
    "german_credit": Kind(tables.german_credit, parts=("all",)),
    "wine_quality": Kind(tables.wine_quality, parts=("all",), unit="grade, 0 to 10"),
    "bike_sharing": Kind(tables.bike_sharing, parts=("all",), unit="bicycles per hour"),
    "california_housing": Kind(readers.california_housing, parts=("all",), unit="100,000 dollars"),
    "imagenet_photos": Kind(readers.imagenet_photos, splits=("test",)),
    "notmnist": Kind(readers.notmnist, splits=("test",)),
    "cifar100": Kind(readers.cifar100, splits=("test",)),
    "svhn": Kind(readers.svhn, splits=("test",)),
    "cifar10h": Kind(readers.cifar10h, splits=("test",)),
}
DATASETS = tuple(KINDS)
EMBEDDED = ("planted", "digits", "diabetes", "planted_words", "planted_signals", "planted_table", "planted_pixels")


@checked
def load(
    name: str,
    *,
    split: str = "test",
    num_examples: Count | None = None,
    seed: Seed = 0,
    data: Folder = None,
) -> Examples:
    """Load a split of a data set, or a stratified subset of it.

    Looks in the local folder first, then in the cache, then downloads what has an open address. The planted sets,
    `digits` and `diabetes` need no file. The test rows are the published ones where there are any; else a fixed
    fifth. The validation rows are the published ones, or a fixed stratified tenth of the training part. Of two
    subsets with one seed the smaller is part of the larger.

    Args:
        name: one of `DATASETS`.
        split: "train", "validation" or "test"; sets that are only for testing have "test" alone.
        num_examples: size of the subset, with class counts as equal as the split allows; all rows by default.
        seed: chooses the subset; whole splits do not depend on it.
        data: folder of local data, which is only read; $XUQ_DATA by default.

    Returns:
        The examples, in ascending row order.

    Raises:
        ValueError: unknown name or split, or num_examples below 1 or above the rows there are.
        TypeError: num_examples or seed is not a whole number.
        DataError: a file is missing, damaged or cannot be fetched.
    """
    check_choice(name, DATASETS, "data set")
    kind = KINDS[name]
    check_choice(split, kind.splits, f"split of {name}")
    raw, rows = _rows_of(name, split, data)
    available = len(rows)
    chosen = np.arange(available)
    if num_examples is not None:
        if num_examples > available:
            raise ValueError(
                f"num_examples is {num_examples} but {name} {split} has {available} examples; ask for fewer"
            )
        chosen = _subset(raw.y[rows] if _has_classes(raw) else None, available, num_examples, seed)
    return _examples(name, split, raw, rows, chosen, data)


def _examples(name: str, split: str, raw: readers.Raw, rows: np.ndarray, chosen: np.ndarray, data: Folder) -> Examples:
    """Scale the chosen rows of a split and give them their names."""
    kind, rows = KINDS[name], rows[chosen]
    y = torch.from_numpy(raw.y[rows])
    own: dict[str, Any] = {}
    if kind.length:
        train, train_rows = _rows_of(name, "train", data)
        own = {"vocabulary": words.vocabulary_of(train.x[train_rows]), "words": tuple(raw.x[rows])}
        x = torch.from_numpy(words.encode(own["words"], own["vocabulary"], kind.length))
    elif raw.feature_names is not None:
        features, target = _scales(name, data)
        x = torch.from_numpy(((raw.x[rows] - features.mean) / features.std).astype(np.float32))
        groups = raw.feature_groups or {feature: (i,) for i, feature in enumerate(raw.feature_names)}
        own = {"feature_scale": features, "feature_names": raw.feature_names, "feature_groups": groups}
        if target is not None:
            y = torch.from_numpy(((raw.y[rows, None] - target.mean) / target.std).astype(np.float32))
            own["target_scale"] = target
        if target is not None and raw.moments is not None:
            moments = (raw.moments[rows] - (target.mean, 0.0)) / (target.std, target.std**2)
            own["moments"] = torch.from_numpy(moments.astype(np.float32))
    else:
        x = torch.from_numpy(raw.x[rows]).float().div_(kind.top)
    return Examples(
        name=name,
        split=split,
        x=x,
        y=y,
        index=torch.from_numpy(chosen),
        class_names=raw.class_names,
        probs=None if raw.probs is None else torch.from_numpy(raw.probs[rows].astype(np.float32)),
        masks={key: torch.from_numpy(mask[rows]) for key, mask in (raw.masks or {}).items()},
        **own,
    )


def _has_classes(raw: readers.Raw) -> bool:
    """Whether each example as a whole has a class, so that rows can be dealt class by class."""
    return raw.class_names is not None and raw.y.ndim == 1


def _rows_of(name: str, split: str, data: Folder) -> tuple[readers.Raw, np.ndarray]:
    """Return the published part that holds a split, and the split's rows in it."""
    kind = KINDS[name]
    part = split if split in kind.parts else "train" if "train" in kind.parts else "all"
    raw = kind.reader(part, data)
    if split in kind.parts and (split != "train" or "validation" in kind.parts):
        return raw, np.arange(len(raw.y))
    labels = raw.y if _has_classes(raw) else np.zeros(len(raw.y), dtype=np.int64)
    return raw, _split_rows(labels.tobytes(), split, part == "all")


@cache
def _split_rows(labels: bytes, split: str, with_test: bool) -> np.ndarray:
    """Deal the rows of a published part into splits, the same share of every class; (N,), ascending."""
    y = np.frombuffer(labels, dtype=np.int64)
    order = np.random.default_rng(SPLIT_SEED).random(len(y))
    place = np.empty(len(y))
    for label in np.unique(y):
        rows = np.flatnonzero(y == label)
        place[rows[np.argsort(order[rows], kind="stable")]] = np.arange(len(rows)) / len(rows)  # 0 <= place < 1
    test_end = TEST_SHARE if with_test else 0.0
    validation_end = test_end + VALIDATION_SHARE * (1.0 - test_end)
    bounds = {"test": (0.0, test_end), "validation": (test_end, validation_end), "train": (validation_end, 1.0)}
    low, high = bounds[split]
    return np.flatnonzero((place >= low) & (place < high))


def _subset(y: np.ndarray | None, available: int, num_examples: int, seed: int) -> np.ndarray:
    """Choose rows, one of each class in turn while it has any left; (num_examples,), ascending."""
    stream = np.random.default_rng(seed)
    order = np.argsort(stream.random(available), kind="stable")
    if y is not None:
        turn, tie = np.empty(available, dtype=np.int64), np.empty(available)
        for label in np.unique(y):
            rows = order[y[order] == label]
            turn[rows], tie[rows] = np.arange(len(rows)), stream.random()  # which class goes first in every turn
        order = np.lexsort((tie, turn))
    return np.sort(order[:num_examples])


def _scales(name: str, data: Folder) -> tuple[FeatureScale, TargetScale | None]:
    """Mean and standard deviation of the numbers and of a regression target over the training rows.

    A column that is one of the categories of a feature is left as it is. fsum rounds once, so that the last digit does
    not depend on the machine's vector width.
    """
    raw, rows = _rows_of(name, "train", data)
    categories = {column for group in (raw.feature_groups or {}).values() if len(group) > 1 for column in group}
    scales = [
        (0.0, 1.0) if number in categories else _mean_and_std(column) for number, column in enumerate(raw.x[rows].T)
    ]
    means, stds = zip(*scales, strict=True)
    target = None if raw.class_names else TargetScale(*_mean_and_std(raw.y[rows]), KINDS[name].unit)
    return FeatureScale(means, stds), target


def _mean_and_std(column: np.ndarray) -> tuple[float, float]:
    if column.min() == column.max():
        return float(column[0]), 1.0  # a constant has no unit of its own; it becomes 0
    mean = math.fsum(column) / len(column)
    return mean, math.sqrt(math.fsum((column - mean) ** 2) / len(column))
