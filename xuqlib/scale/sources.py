"""Sources: examples in a known order, read a batch at a time, from memory, from a table or from a folder of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, default_collate

from xuqlib.inputs import Inputs, as_inputs

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ID_COLUMNS, TARGET_COLUMNS = ("id", "index"), ("target", "label", "y")


@dataclass(frozen=True)
class Batch:
    """Some examples: what the networks take, the label of each if there is one, and what each is called."""

    inputs: Inputs
    labels: Tensor | None
    ids: list[str]


class Source(ABC):
    """Examples in an order that does not change."""

    feature_names: tuple[str, ...] | None = None
    batch_size: int | None = None  # that was asked for, if any

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Sequence[int]) -> Batch:
        """Read some examples."""

    @property
    @abstractmethod
    def contents(self) -> Any:
        """What tells these examples from others, for a fingerprint."""


class InMemory(Source):
    """Tensors, or `Examples`."""

    def __init__(self, data: Any) -> None:
        self.inputs, labels = as_inputs(data), getattr(data, "y", None)
        self.labels = labels if isinstance(labels, Tensor) else None
        index = getattr(data, "index", None)
        self.ids = index.tolist() if isinstance(index, Tensor) else range(len(self))
        self.feature_names = getattr(data, "feature_names", None)

    def __len__(self) -> int:
        return self.inputs.num_examples

    def read(self, rows: Sequence[int]) -> Batch:
        some: Any = slice(rows.start, rows.stop) if isinstance(rows, range) else list(rows)
        labels = None if self.labels is None else self.labels[some]
        return Batch(self.inputs.at(some), labels, [str(self.ids[row]) for row in rows])

    @property
    def contents(self) -> Any:
        return [self.inputs.values, self.inputs.layer, self.inputs.absent_id, list(self.ids)]


class Indexed(Source):
    """A `Dataset`, whose items are an example, or an example and its label; or a `DataLoader` of one.

    Its items are not read for the fingerprint, but for the first and the last: they may be a terabyte.
    """

    def __init__(self, data: Any) -> None:
        self.collate: Callable[[list[Any]], Any] = default_collate
        self.data = data
        if isinstance(data, DataLoader):
            if not isinstance(data.sampler, SequentialSampler):
                raise ValueError(
                    "the loader has an order of its own, so nobody would know whose explanation is whose; pass "
                    "shuffle=False and no sampler"
                )
            self.data, self.collate, self.batch_size = data.dataset, data.collate_fn, data.batch_size
        if len(self) == 0:
            raise ValueError("the data set is empty; pass at least one example")

    def __len__(self) -> int:
        return len(self.data)

    def read(self, rows: Sequence[int]) -> Batch:
        batch, labels = self.collate([self.data[row] for row in rows]), None
        if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[1], Tensor):
            batch, labels = batch
        return Batch(as_inputs(tuple(batch) if isinstance(batch, list) else batch), labels, list(map(str, rows)))

    @property
    def contents(self) -> Any:
        ends = [self.read(range(row, row + 1)).inputs.values for row in (0, len(self) - 1)]
        return [type(self.data).__qualname__, len(self), ends]


class Table(Source):
    """A CSV or Parquet file: a row is an example, a column of numbers a feature.

    A column "id" or "index" names the rows; without one, the index that pandas wrote does, which a CSV file has in its
    first column, without a name. "target", "label" or "y" is their label, if of numbers, and no feature.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        columns = list(self.frame.columns)
        self.id_column = next((name for name in columns if name.lower() in ID_COLUMNS), None)
        self.target_column = next((name for name in columns if name.lower() in TARGET_COLUMNS), None)
        features = [name for name in columns if name not in (self.id_column, self.target_column)]
        if self.frame.empty:
            raise ValueError(f"{path.name} has no rows; write one for each example, below the names of the columns")
        words = [name for name in features if not pd.api.types.is_numeric_dtype(self.frame[name])]
        if words or not features:
            raise ValueError(
                f"{path.name} has {f'columns that are no numbers: {words}' if words else 'no features'}; write a table "
                "of the numbers that the network takes"
            )
        bad = np.argwhere(~np.isfinite(self.frame[features].to_numpy(np.float32)))
        if len(bad):
            raise ValueError(
                f"{path.name} has {len(bad)} missing or infinite numbers, the first in row {bad[0, 0]} (from 0), "
                f"column {features[bad[0, 1]]!r}; drop or fill them"
            )
        self.feature_names = tuple(features)

    @cached_property
    def frame(self) -> pd.DataFrame:
        if self.path.suffix == ".parquet":
            return pd.read_parquet(self.path)
        frame = pd.read_csv(self.path)
        return frame.set_index("Unnamed: 0") if "Unnamed: 0" in frame.columns[:1] else frame

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "frame"}  # workers read the file

    def __len__(self) -> int:
        return len(self.frame)

    def read(self, rows: Sequence[int]) -> Batch:
        some = self.frame.iloc[list(rows)]
        x = torch.from_numpy(some[list(self.feature_names or ())].to_numpy(np.float32, copy=True))
        labels = None
        if self.target_column is not None and pd.api.types.is_numeric_dtype(self.frame[self.target_column]):
            labels = torch.from_numpy(some[self.target_column].to_numpy(copy=True))
        ids = list(map(str, some.index if self.id_column is None else some[self.id_column]))
        return Batch(as_inputs(x), labels, ids)

    @property
    def contents(self) -> Any:
        return self.frame


class Folder(Source):
    """A folder of images, at any depth, in the order of their paths: float32 (N, 3, H, W) in [0, 1]."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(
            each.relative_to(path).as_posix() for each in path.rglob("*") if each.suffix.lower() in IMAGES
        )
        if not self.names:
            raise ValueError(f"{path} holds no images ({', '.join(IMAGES)}); pass a folder of some")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, rows: Sequence[int]) -> Batch:
        images = [self._image(self.names[row]) for row in rows]
        sizes = sorted({tuple(image.shape[1:]) for image in images})
        if len(sizes) > 1:
            raise ValueError(f"the images have sizes {sizes[:3]}; pass a `Dataset` whose transform makes them equal")
        return Batch(as_inputs(torch.stack(images)), None, [self.names[row] for row in rows])

    def _image(self, name: str) -> Tensor:
        try:
            with Image.open(self.path / name) as image:
                if image.mode[0] in "IF":
                    raise ValueError("its pixels are no bytes, and would be cut off at 255; write it with 8 bits")
                pixels = np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises
            raise ValueError(f"cannot read the image {name}: {error}") from error
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255

    @property
    def contents(self) -> Any:
        return [(name, (self.path / name).stat().st_size) for name in self.names]


def as_source(data: Any) -> Source:
    """Return a source of what was given.

    Args:
        data: `Examples`; a tensor, tuple or mapping as for `explain`; a `Dataset` or a `DataLoader` in a fixed order;
            the path of a CSV or Parquet file or of a folder of images; or a `Source`.

    Raises:
        TypeError, ValueError: anything else, or examples whose number or order is not known.
        FileNotFoundError: no such file or folder.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str | Path):
        path = Path(data)
        if not path.exists():
            raise FileNotFoundError(f"data is {str(data)!r}, but there is no such file or folder")
        if path.is_dir():
            return Folder(path)
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"data is {path.name}; pass a .csv or .parquet file, or a folder of images")
        return Table(path)
    dataset = data.dataset if isinstance(data, DataLoader) else data
    holds_x = isinstance(getattr(data, "x", None), Tensor) and not isinstance(data, Dataset)
    if holds_x or isinstance(data, Inputs | Tensor | np.ndarray | tuple | dict):
        return InMemory(data)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(
            f"data is a {type(data).__name__}, whose length and order are not known; pass Examples, a tensor, a "
            "Dataset with __len__ and __getitem__, a CSV or Parquet file, or a folder of images"
        )
    return Indexed(data)
