"""FER+: faces with ten votes each, read as the usual reader does, without pictures that leak between the parts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from xuqlib.study.data.download import DataError, File, Folder, Layout, known_file, locate
from xuqlib.study.data.readers import Raw, decode, frozen

CLASSES = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
COLUMNS = (*CLASSES, "unknown", "NF")
USAGE = {"train": "Training", "validation": "PublicTest", "test": "PrivateTest"}


def fer_plus(part: str, data: Folder = None) -> Raw:
    """FER2013 faces with FER+ votes, as the usual reader keeps them, without leaks between the parts.

    A vote of 1 counts 0. A face whose winner is then unknown or not-a-face is dropped; the votes for the eight
    emotions are renormalised, and the label is the first of the largest. The test part keeps every such face; the
    validation part loses pictures that also occur in the test file, the training part those in either.

    Source: Barsoum et al. 2016, arXiv 1608.01041; duplicates: a known fault of FER2013.
    """
    later = {"train": ("validation", "test"), "validation": ("test",), "test": ()}[part]
    pixels, votes = _fer_file(part, data)
    y, probs, keep = fer_labels(votes)
    seen = {face.tobytes() for name in later for face in _fer_file(name, data)[0]}
    keep &= np.array([face.tobytes() not in seen for face in pixels])
    return Raw(pixels[keep, None], y[keep], probs[keep], CLASSES)


def fer_labels(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn ten vote counts per face, (N, 10), into labels (N,), soft labels (N, 8) and which faces to keep (N,)."""
    votes = np.where(votes > 1, votes, 0)
    emotions = votes[:, : len(CLASSES)]
    keep = (votes.argmax(1) < len(CLASSES)) & (emotions.sum(1) > 0)
    probs = emotions / np.maximum(emotions.sum(1, keepdims=True), 1)  # a face without a vote is not kept
    return emotions.argmax(1), probs, keep


def _fer_file(part: str, data: Folder) -> tuple[np.ndarray, np.ndarray]:
    name = {"validation": "valid"}.get(part, part)
    help_text = (
        "FER+ has no open download. Get fer2013.csv of the ICML 2013 challenge, and fer2013new.csv of "
        "github.com/microsoft/FERPlus, and put both into a folder fer2013 inside $XUQ_DATA or the cache"
    )
    layouts = (
        Layout("parquet", (known_file(f"fer2013plus/{name}.parquet"),)),
        # The digest that torchvision's FER2013 checks. The votes have no published one.
        Layout(
            "csv", (File("fer2013/fer2013.csv", md5="f8428a1edbd21e88f42c73edd2a14f95"), File("fer2013/fer2013new.csv"))
        ),
    )
    found = locate(layouts, data, help_text)
    return _fer_parquet(found.paths[0]) if found.layout == "parquet" else _fer_csv(*found.paths, USAGE[part])


@cache
def _fer_parquet(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    votes = np.stack([table[name].to_numpy() for name in COLUMNS], axis=1)
    return frozen(decode(table, "L")), frozen(votes)


@cache
def _fer_csv(faces: Path, votes: Path, usage: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the two original tables, which agree row by row. A row without an image name is not a face."""
    import pandas as pd

    left, right = pd.read_csv(faces, usecols=["pixels", "Usage"]), pd.read_csv(votes)
    if len(left) != len(right) or list(left["Usage"]) != list(right["Usage"]):
        raise DataError(f"{votes} does not agree with {faces} row by row; fetch fer2013new.csv again")
    rows = (right["Usage"] == usage) & right["Image name"].notna()
    pixels = np.stack([np.array(line.split(), dtype=np.uint8) for line in left["pixels"][rows]])
    return frozen(pixels.reshape(-1, 48, 48)), frozen(right.loc[rows, list(COLUMNS)].to_numpy())
