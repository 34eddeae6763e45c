"""Signals: four sets of the UCR archive, one value per time step."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import numpy as np

from xuqlib.study.data.download import DataError, File, Folder, Layout, known_file, locate
from xuqlib.study.data.readers import Raw, frozen

ARCHIVE = "https://www.cs.ucr.edu/~eamonn/time_series_data_2018"
# The label that the archive gives each class, and what it stands for. Source: timeseriesclassification.com.
_CLASSES: dict[str, dict[int, str]] = {
    "ECG200": {-1: "infarct", 1: "normal"},
    "ECG5000": {1: "normal", 2: "R-on-T", 3: "ventricular", 4: "supraventricular", 5: "unclassified"},
    "ECGFiveDays": {1: "first day", 2: "fifth day"},
    "GunPoint": {1: "gun", 2: "point"},
}


def _ucr(name: str, part: str, data: Folder = None) -> Raw:
    """A set of the UCR archive in its published split, each signal standardised as it is there, float32 (N, 1, L)."""
    layouts = (
        Layout("npz", (known_file(f"ucr/{name}.npz"),)),
        Layout("tsv", tuple(File(f"ucr/{name}/{name}_{word}.tsv") for word in ("TRAIN", "TEST"))),
    )
    help_text = f"{name} of the UCR archive (2018) is needed: unpack its folder {name} from {ARCHIVE} below ucr"
    found = locate(layouts, data, help_text)
    path = found.paths[0 if found.layout == "npz" or part == "train" else 1]
    x, labels = _arrays(path, part)
    known = _CLASSES[name]
    if set(labels.tolist()) - set(known):
        raise DataError(f"{path} has labels {sorted(set(labels.tolist()))}, not {list(known)}; restore it")
    return Raw(x, frozen(np.searchsorted(list(known), labels)), class_names=tuple(known.values()))


ecg200 = partial(_ucr, "ECG200")
ecg5000 = partial(_ucr, "ECG5000")
ecg_five_days = partial(_ucr, "ECGFiveDays")
gun_point = partial(_ucr, "GunPoint")


@cache
def _arrays(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return signals, float32 (N, 1, L), and the archive's labels (N,); of a table the label comes first."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            x, y = content[f"x_{part}"], content[f"y_{part}"]
    else:
        table = np.loadtxt(path, ndmin=2)
        x, y = table[:, 1:], table[:, 0]
    return frozen(x.astype(np.float32)[:, None]), frozen(y.astype(np.int64))
