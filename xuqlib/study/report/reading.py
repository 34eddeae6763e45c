"""What a report is about: a network, its weights, and labelled examples from a folder, a table or memory."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, resize, rgb_to_grayscale

from xuqlib.checks import check_count, check_tensor
from xuqlib.inputs import Inputs
from xuqlib.posteriors.fixing import generator_of
from xuqlib.scale.sources import TARGET_COLUMNS, Batch, Folder, Source, Table, as_source
from xuqlib.study.checked import Count, Counts, Names, Numbers, checked


class ReportError(ValueError):
    """What was given does not fit together. The message says what was given and what to do."""


@checked
@dataclass(frozen=True)
class Reading:
    """How files are read, and what the network expects of them; see `report`."""

    classes: Names | None = None
    image_size: Count | None = None
    channels: int = 3
    mean: Numbers | None = None
    std: Numbers | None = None
    shape: Counts | None = None
    tokens: bool = False

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; pass 3 for colour, 1 for grey")
        if self.image_size is not None:
            check_count(self.image_size, 1, "image_size", 10**4)
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"mean is {self.mean} and std is {self.std}; pass both, or neither")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes are {', '.join(self.classes)}; give each output a name of its own")

    def before(self, network: nn.Module) -> nn.Module:
        """The network behind the normalisation of its training."""
        return network if self.mean is None or self.std is None else Normalised(network, self.mean, self.std).eval()


@dataclass(frozen=True)
class Given:
    """Examples that a report is about.

    Attributes:
        inputs: what the network takes, N examples.
        labels: class numbers or target numbers, (N,), or words; None where nobody said what is right.
        ids: what each example is called.
        class_names: one for each output, if they are known.
        feature_names: of the columns of a table.
        vocabulary: the word of each token, if it is known.
        total: number of the examples that these were drawn from.
    """

    inputs: Inputs
    labels: Tensor | None
    ids: list[str]
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None
    vocabulary: tuple[str, ...] | None
    total: int


class Normalised(nn.Module):
    """A network behind the normalisation of its training, for images in [0, 1]: black stays black.

    Args:
        network: takes (x - mean) / std, x (N, C, H, W).
        mean, std: of each channel, (C,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Numbers, std: Numbers) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean is {mean} and std is {std}; pass as many numbers, one per channel, std above 0")
        self.network, like = network, next(network.parameters(), torch.zeros(1))
        for name, values in (("mean", mean), ("std", std)):
            column = torch.as_tensor(values).to(like)[:, None, None]
            self.register_buffer(name, column)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or len(self.mean) not in (1, x.shape[1]):
            raise ValueError(f"mean and std are of {len(self.mean)} channels of images (N, C, H, W); leave them out")
        answer: Tensor = self.network((x - self.mean) / self.std)
        return answer


def network_of(name: str) -> nn.Module:
    """Build a network from "module:factory", such as "my_code:trained_network"; it comes in eval mode.

    Raises:
        ReportError: another name, a module or factory that is not there, or one that gives no network.
    """
    module, colon, factory = name.partition(":")
    if not colon or "/" in module or module.endswith(".py"):
        raise ReportError(f"network is {name!r}; pass 'module:factory', as it is imported: no path, no .py")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports what is not
        raise ReportError(f"network is {name!r} but there is no module {module!r} here or on PYTHONPATH") from None
    if not callable(getattr(found, factory, None)):
        known = ", ".join(key for key, what in vars(found).items() if callable(what) and not key.startswith("_"))
        raise ReportError(f"{module} has no function {factory!r}; it has {known or 'none'}")
    try:
        network = getattr(found, factory)()
    except TypeError as error:
        if error.__traceback__ and error.__traceback__.tb_next:
            raise  # inside the factory
        raise ReportError(f"{name} takes arguments ({error}); pass a function without any that calls it") from None
    if not isinstance(network, nn.Module):
        raise ReportError(f"{name} gave a {type(network).__name__}; wanted an nn.Module")
    return network.eval()


def load_weights(network: nn.Module, path: Path) -> None:
    """Give a network the weights of a safetensors file. Nothing is unpickled.

    Raises:
        ReportError: no such file, another format, or tensors that do not fit the network.
    """
    if not path.is_file():
        raise ReportError(f"weights is {str(path)!r} but there is no such file")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ReportError(
            f"{path.name} is no safetensors file ({error}); write one where the network was trained: "
            "safetensors.torch.save_model(network, 'weights.safetensors')"
        ) from None
    own = network.state_dict()
    other = [key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape]
    missing, unknown = (set(), []) if other else safetensors.torch.load_model(network, path, strict=False)
    kinds = [
        [f"{key} is {tuple(tensors[key].shape)}, wanted {tuple(own[key].shape)}" for key in sorted(other)],
        [f"{key} is missing" for key in sorted(missing)],
        [f"{key} is unknown" for key in sorted(unknown)],
    ]
    if faults := [fault for kind in kinds for fault in kind[:3]]:
        more = sum(map(len, kinds)) - len(faults)
        raise ReportError(
            f"{path.name} does not fit the network: {'; '.join(faults)}{f', and {more} more' * (more > 0)}"
        )


class ClassFolders(Folder):
    """A folder of images, whose class is the name of the folder that each lies in.

    Args:
        path: with a folder for each class; or with images alone, which then have no class.
        size: images are cut to squares with this side; None leaves them as they are.
        channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: no images, images beside folders of classes, or a single class.
    """

    def __init__(self, path: Path, size: int | None, channels: int) -> None:
        super().__init__(path)
        self.size, self.channels = size, channels
        places = [name.split("/")[0] if "/" in name else None for name in self.names]
        self.classes = sorted({place for place in places if place is not None})
        if self.classes and None in places:
            raise ValueError(f"{path} holds images beside its folders of classes; put them into one")
        if len(self.classes) == 1:
            raise ValueError(
                f"{path} holds images of one class, {self.classes[0]!r}, so nothing can be told apart; pass a folder "
                "with one folder for each class, or one of images alone, which then have no class"
            )
        self.words = np.array(places, dtype=object) if self.classes else None

    def read(self, rows: Sequence[int]) -> Batch:
        images = [self._image(self.names[row]) for row in rows]
        sizes = sorted({tuple(image.shape[1:]) for image in images})
        if len(sizes) > 1:
            raise ValueError(
                f"{self.path} holds images of {len(sizes)} sizes, {sizes[0]} to {sizes[-1]}; say image_size, the side "
                "that the network was trained on"
            )
        return Batch(Inputs(torch.stack(images)), None, [self.names[row] for row in rows])

    def _image(self, name: str) -> Tensor:
        image = super()._image(name)
        image = rgb_to_grayscale(image) if self.channels == 1 else image
        return image if self.size is None else center_crop(resize(image, [self.size], antialias=True), [self.size])


class LabelledTable(Table):
    """A CSV or Parquet file whose label may be a word, too.

    Raises:
        ValueError: it cannot be read as a table, or none of its columns is the label.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            names = [str(name) for name in self.frame.columns]
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.name} cannot be read as a table: {error}") from None
        if not {name.lower() for name in names} & set(TARGET_COLUMNS):
            raise ValueError(
                f"{path.name} has no column {', '.join(TARGET_COLUMNS)}, so nothing says what is right; its first line "
                f"has {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}: call that of the truth 'target'"
            )
        super().__init__(path)
        self.words, self.target_column = self.frame[self.target_column].to_numpy(), None


def read(data: Any, how: Reading, *, labels: Any = None, most: int, seed: int) -> Given:
    """Read at most so many examples, drawn by the seed, and the label of each.

    Args:
        data: as for `as_source`; a folder of images may hold a folder for each class.
        how: files are read.
        labels: of data in memory, (N,); by default those that the data brings.
        most: examples.
        seed: of the choice.

    Raises:
        TypeError, ValueError, OSError: data that cannot be read, or whose labels are not known.
    """
    source = _source(data, how)
    total = len(source)
    if total < 2:
        raise ValueError(f"data holds {total} example; a report needs two or more")
    rows = torch.randperm(total, generator=generator_of(seed))[:most].sort().values.tolist()
    batch = source.read(rows)
    if isinstance(labels, Tensor):
        check_tensor(labels, "labels")
        labels = labels.detach().cpu()
    labels = getattr(source, "words", None) if labels is None else np.asarray(labels)
    if labels is not None and labels.shape[:1] != (total,):
        raise ValueError(f"labels have shape {labels.shape} but there are {total} examples; pass one for each")
    if labels is not None:
        labels = labels[rows]
    elif batch.labels is not None:
        labels = np.asarray(batch.labels)
    names = getattr(data, "class_names", None) or getattr(source, "classes", None) or None
    if how.classes is not None:
        names = list(how.classes)
    numbers, names = _as_classes(labels, names)
    inputs = batch.inputs
    if how.tokens or how.shape is not None:
        if not isinstance(source, Table):
            raise ValueError("shape and tokens say how the rows of a table are read, and data is none; leave them out")
        inputs = Inputs(inputs.x.long() if how.tokens else _shaped(inputs.x, how.shape))
    return Given(
        inputs,
        numbers,
        batch.ids,
        None if names is None else tuple(names),
        source.feature_names if inputs is batch.inputs else None,
        getattr(data, "vocabulary", None),
        total,
    )


def _source(data: Any, how: Reading) -> Source:
    path = Path(data) if isinstance(data, str | Path) else Path()
    if isinstance(data, str | Path) and path.is_dir():
        if how.mean is not None and any(value > 1 for value in how.mean):
            raise ValueError(f"mean is {how.mean} but images are read in [0, 1]; divide mean and std by 255")
        return ClassFolders(path, how.image_size, how.channels)
    is_table = path.suffix in (".csv", ".parquet") and path.is_file()
    return LabelledTable(path) if is_table else as_source(data)


def _shaped(x: Tensor, shape: Sequence[int] | None) -> Tensor:
    wanted = tuple(shape or ())
    if not wanted or x.shape[1] != int(np.prod(wanted)):
        raise ValueError(f"shape is {wanted} but a row has {x.shape[1]} numbers; their product has to be as many")
    return x.reshape(-1, *wanted)


def _as_classes(labels: np.ndarray | None, names: Sequence[str] | None) -> tuple[Tensor | None, Sequence[str] | None]:
    """Labels as numbers, and the names of the classes; words are numbered in the order of the names, or sorted."""
    if labels is None:
        return None, names
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}; a report takes one class or number per example, (N,)")
    if labels.dtype.kind in "OUST":
        words = [str(word) for word in labels]
        names = sorted(set(words)) if names is None else list(names)
        if unknown := sorted(set(words) - set(names)):
            raise ValueError(f"label {unknown[0]!r} is not among the classes {', '.join(names)}; name all of them")
        return torch.tensor([names.index(word) for word in words]), names
    if pd.isna(labels).any():
        raise ValueError(f"{int(pd.isna(labels).sum())} labels are NaN; drop these examples")
    numbers = torch.from_numpy(labels.astype(np.int64 if labels.dtype.kind in "biu" else np.float64))
    return numbers, names
