"""Notebook 15: images of any folder, and a network by its name."""

from __future__ import annotations

import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import center_crop, resize, to_tensor
from tqdm.auto import tqdm

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


class Images(NamedTuple):
    """Images x, (N, C, H, W) in [0, 1]; their classes y, (N,), and the names of these.

    y and names are None for a folder without folders of classes.
    """

    x: Tensor
    y: Tensor | None
    names: list[str] | None


def read_images(
    folder: str | Path,
    count: int,
    *,
    classes: Sequence[str] | None = None,
    size: int | None = None,
    channels: int = 3,
    seed: int = 0,
) -> Images:
    """Read at most so many images of a folder, drawn by the seed, sorted by class.

    Args:
        folder: with one folder per class, whatever their names; or with images alone.
        count: how many; fewer where there are not so many.
        classes: names of the class folders, in the order of the network's outputs; in
            alphabetical order by default.
        size: cut the images to squares with this side; by default they are as they are.
        channels: 3 for colour, 1 for grey.
        seed: of the choice.

    Raises:
        ValueError: no images; classes that are not the folders; unlike sizes.
    """
    root = Path(folder).expanduser()
    files = [f for f in sorted(root.rglob("*")) if f.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(f"{root} holds no images; wanted files {', '.join(SUFFIXES)}")
    found = sorted({f.relative_to(root).parts[0] for f in files if f.parent != root})
    names = list(classes or found)
    if found and set(found) - set(names):
        raise ValueError(
            f"{root} has the folders {found} but classes are {names}; name each folder"
        )
    if found and any(f.parent == root for f in files):
        raise ValueError(
            f"{root} holds images beside its folders of classes; put them into one"
        )

    def label(file: Path) -> int:
        return names.index(file.relative_to(root).parts[0]) if found else 0

    files.sort(key=lambda file: (label(file), file))
    chosen = sorted(
        random.Random(seed).sample(range(len(files)), min(count, len(files)))
    )
    bar = tqdm(chosen, desc=f"read {root.name}", leave=False, disable=len(chosen) < 500)
    images = [_image(files[i], size, channels) for i in bar]
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"{root} holds images of {len(sizes)} sizes, {sizes[0]} to {sizes[-1]}; "
            "set image_size to the side that the network was trained on"
        )
    y = torch.tensor([label(files[i]) for i in chosen]) if found else None
    return Images(torch.stack(images), y, names if found else None)


def _image(file: Path, size: int | None, channels: int) -> Tensor:
    with Image.open(file) as opened:
        image: Tensor = to_tensor(opened.convert("RGB" if channels == 3 else "L"))
    if size is None:
        return image
    return center_crop(resize(image, [size], antialias=True), [size])


def network_of(name: str) -> nn.Module:
    """Build a network from "module:factory", such as "my_code:trained_network".

    Raises:
        ValueError: another name, or a factory that gives no network.
    """
    module, colon, factory = name.partition(":")
    if not colon:
        raise ValueError(
            f"network is {name!r}; pass 'module:factory', a function without arguments"
        )
    found = importlib.import_module(module)
    if not callable(getattr(found, factory, None)):
        known = ", ".join(n for n, what in vars(found).items() if callable(what))
        raise ValueError(f"{module} has no function {factory!r}; it has {known}")
    network = getattr(found, factory)()
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} gave a {type(network).__name__}; wanted an nn.Module")
    return network.eval()
