"""Stores: a Zarr v3 group of what was found out about each example, written a batch at a time and opened lazily."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from xuqlib.checks import check_choice, check_flag, check_number
from xuqlib.distribution import CV_KINDS, ExplanationDistribution
from xuqlib.moments import Moments, Welford
from xuqlib.study.files import sync_folder

if TYPE_CHECKING:
    import xarray

WHOLE = "whole"  # an array: which batches are written to the end


def needs(package: str) -> Any:
    """Import a package of the extra `cluster`.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"this needs {package}; install the extra: pip install 'xuq[cluster]'") from error


@dataclass(frozen=True)
class Variable:
    """An array of the store: its axes and their sizes, what it holds, and in which unit."""

    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    dtype: str
    about: str
    unit: str = ""


class Store:
    """A Zarr group in a folder that all who write to it share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def recipe(self) -> dict[str, Any]:
        """What the store was made of, as it was given to `create`.

        Raises:
            ValueError: no such store, or a damaged one.
        """
        described = self.path / "zarr.json"
        try:
            recipe: dict[str, Any] = json.loads(described.read_text(encoding="utf-8"))["attributes"]["recipe"]
        except (FileNotFoundError, NotADirectoryError):
            raise ValueError(f"path {self.path} holds no explanations; pass what was `to` of explain_dataset") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{described} is damaged, or of another program; remove it, or pass another path"
            ) from None
        return recipe

    def create(
        self, recipe: Mapping[str, Any], variables: Mapping[str, Variable], names: Mapping[str, tuple[str, ...]]
    ) -> None:
        """Lay out the arrays, all empty, unless another process has done it.

        Args:
            recipe: what the store is to be made of; its "num_examples" and "batch_size" lay it out.
            names: what stands along an axis, if it has names.
        """
        zarr, fresh = needs("zarr"), self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        group = zarr.open_group(fresh, mode="w", zarr_format=3)
        for name, variable in variables.items():
            laid = zip(variable.axes, variable.sizes, strict=True)
            is_text = variable.dtype == "str"
            group.create_array(
                name,
                shape=variable.sizes,
                chunks=tuple(recipe["batch_size"] if axis == "example" else size for axis, size in laid),
                dtype=str if is_text else variable.dtype,
                fill_value="" if is_text else math.nan if variable.dtype.startswith("float") else -1,
                dimension_names=variable.axes,
                attributes={"long_name": variable.about, "units": variable.unit},
                compressors=[zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()],  # damage is noticed by any reader
            )
        for axis, along in names.items():
            group.create_array(axis, data=np.array(along, dtype=np.dtypes.StringDType()), dimension_names=(axis,))
        count = -(-recipe["num_examples"] // recipe["batch_size"])
        group.create_array(
            WHOLE, shape=(count,), chunks=(1,), dtype="bool", fill_value=False, dimension_names=("batch",)
        )
        group.attrs["recipe"] = dict(recipe)
        with warnings.catch_warnings():  # of the specification, which does not have it yet
            warnings.filterwarnings("ignore", "Consolidated metadata")
            zarr.consolidate_metadata(fresh)
        try:
            fresh.rename(self.path)
        except OSError:
            shutil.rmtree(fresh)
            if not self.path.exists():
                raise

    def parts(self) -> list[range]:
        """The examples of each batch."""
        recipe = self.recipe
        count, size = recipe["num_examples"], recipe["batch_size"]
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def missing(self, shard: tuple[int, int] = (0, 1)) -> list[int]:
        """Numbers of the batches of a shard that are not written to the end."""
        return [
            number for number in range(len(self.parts())) if number % shard[1] == shard[0] and not self.is_whole(number)
        ]

    def is_whole(self, number: int) -> bool:
        """Whether a batch is written to the end."""
        return (self.path / WHOLE / "c" / str(number)).exists()

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a batch: its chunks, and, when those are on the disk, that it is whole."""
        group, size = needs("zarr").open_group(self.path, mode="r+", zarr_format=3), self.recipe["batch_size"]
        written = []
        for name, values in arrays.items():
            axes = group[name].metadata.dimension_names
            place = axes.index("example")
            chunk = self.path / name / "c" / "/".join(str(number if axis == "example" else 0) for axis in axes)
            start = number * size
            group[name][(slice(None),) * place + (slice(start, start + values.shape[place]),)] = values
            if chunk.exists():  # one of nothing but its fill value is not written
                written.append(chunk)
        self._sync(written)
        group[WHOLE][number] = True
        self._sync([self.path / WHOLE / "c" / str(number)])

    def _sync(self, files: Sequence[Path]) -> None:
        """Wait until files are on the disk, with their names and those of their folders."""
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for folder in {folder for path in files for folder in path.parents if folder.is_relative_to(self.path)}:
            sync_folder(folder)

    @contextmanager
    def held(self, shard: tuple[int, int] = (0, 1)) -> Iterator[None]:
        """Hold a shard while it is written to; a process that dies lets go of it.

        Raises:
            RuntimeError: another process holds this one, or one of another number of shards.
        """
        folder = self.path / WHOLE / "locks"
        folder.mkdir(exist_ok=True)
        mine = folder / f"{shard[0]}-of-{shard[1]}"
        with ExitStack() as stack:
            others = [path for path in sorted(folder.glob("*-of-*")) if not path.name.endswith(f"-of-{shard[1]}")]
            for path in (mine, *others):
                lock = FileLock(path)
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    raise RuntimeError(
                        f"another process is writing to {self.path.name} (shard {path.name}); wait for it, or pass "
                        "another `to`"
                    ) from None
                if path == mine:
                    stack.callback(lock.release)
                else:
                    lock.release()
            yield


class StoredExplanations:
    """Explanation distributions of many examples in a store, opened without reading them.

    The statistics are lazy `xarray.DataArray`s, with the axes that their names say; `stored[a:b]` reads some examples
    and returns them as an `ExplanationDistribution`, with all that it can do.

    Attributes:
        dataset: all that is stored, as an `xarray.Dataset`.
        recipe: what it was made of.
    """

    def __init__(self, path: str | Path, *, partial: bool = False) -> None:
        check_flag(partial, "partial")
        if not isinstance(path, str | Path):
            raise TypeError(f"path is a {type(path).__name__}; pass the path of a store")
        store = Store(Path(path))
        self.recipe, missing = store.recipe, store.missing()
        if missing and not partial:
            raise ValueError(
                f"{len(missing)} of {len(store.parts())} batches of {store.path.name} are missing; run explain_dataset "
                "again to finish it, or pass partial=True: what is missing is NaN then"
            )
        self.dataset: xarray.Dataset = needs("xarray").open_zarr(store.path, chunks={} if _has_dask() else None)

    def __len__(self) -> int:
        return int(self.recipe["num_examples"])

    def __repr__(self) -> str:
        made = self.recipe
        return (
            f"StoredExplanations({made['posterior']} {made['explainer']}: {made['num_draws']} draws x {len(self)} "
            f"examples x {tuple(self.mean().shape[1:])})"
        )

    def mean(self) -> xarray.DataArray:
        """Mean over draws, shaped like x, in the unit of the attribution."""
        return self.dataset["mean"]

    def std(self) -> xarray.DataArray:
        """Standard deviation over draws, divisor num_draws, shaped like x."""
        return self.dataset["std"]

    def cv(self, kind: str = "paper", *, floor: float = 0.05) -> xarray.DataArray:
        """Coefficient of variation, as by `ExplanationDistribution.cv`."""
        check_choice(kind, CV_KINDS, "kind")
        check_number(floor, 0, "floor")
        inner = [axis for axis in self.mean().dims if axis != "example"]
        if kind == "ratio":
            size = abs(self.mean()).astype("float64").sum(inner)
            return self.std().astype("float64").sum(inner) / size.where(size > 0)
        name = ("rescaled_mean", "rescaled_std") if kind == "paper" else ("mean", "std")
        mean, std = (self.dataset[each].astype("float64") for each in name)
        size = abs(mean)
        largest = size.max([axis for axis in mean.dims if axis != "example"])
        return std / size.where((size > floor * largest) & (largest > 0))

    def sign_agreement(self) -> xarray.DataArray:
        """Share of draws that agree with the more common sign, shaped like x; NaN where every draw gives 0."""
        return self.dataset["sign_agreement"]

    def uncertainties(self) -> xarray.Dataset:
        """Total, aleatoric and epistemic uncertainty of each example's prediction."""
        return self.dataset[["total", "aleatoric", "epistemic"]]

    def __getitem__(self, examples: int | slice) -> ExplanationDistribution:
        """Read some examples; a single one stays an axis of length one.

        Raises:
            OSError, ValueError: a damaged chunk.
        """
        if isinstance(examples, int):
            examples = slice(examples, examples + 1 or None)
        some = self.dataset.isel(example=examples).load()
        target = _tensor(some["target"])
        values = _tensor(some["attribution"]) if "attribution" in some else None
        running = None if values is not None else self._moments(some)
        return ExplanationDistribution(
            values=values,
            running=running,
            target=None if (target < 0).any() else target,
            explainer=self.recipe["explainer"],
            posterior=self.recipe["posterior"],
            feature_names=tuple(self.recipe["feature_names"]) if self.recipe["feature_names"] else None,
        )

    def _moments(self, some: xarray.Dataset) -> Moments:
        count, moments = self.recipe["num_draws"], Moments()
        for kind, prefix in (("raw", ""), ("folded", "folded_"), ("rescaled", "rescaled_")):
            mean, std = (_tensor(some[f"{prefix}{name}"]).double() for name in ("mean", "std"))
            moments[kind] = Welford(count, mean, std.square() * count)
        return moments


def open_explanations(path: str | Path, *, partial: bool = False) -> StoredExplanations:
    """Open what `explain_dataset` wrote, without reading it.

    Args:
        path: the store.
        partial: whether a store that is not finished is opened, too; what is missing is NaN.

    Raises:
        ValueError: no store, a damaged one, or one that is not finished.
        ImportError: without the extra `cluster`.
    """
    return StoredExplanations(path, partial=partial)


def _tensor(array: xarray.DataArray) -> Tensor:
    return torch.from_numpy(np.array(array.values))


def _has_dask() -> bool:
    return importlib.util.find_spec("dask") is not None
