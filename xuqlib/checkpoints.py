"""Checkpoints: tensors in safetensors beside a manifest of how they came about, guarded by a digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from xuqlib.study import ROOT


class CheckpointError(RuntimeError):
    """A checkpoint that is damaged, or whose manifest is missing or does not fit it."""


def folders() -> list[Path]:
    """Return where checkpoints are looked for, in order; new ones go to the last.

    The published ones are in `checkpoints/`, those trained on this machine in `.cache/checkpoints/`. While
    `XUQ_RETRAIN` is set, only `build/retrained/checkpoints/` counts, so that everything is trained anew, once.
    """
    if os.environ.get("XUQ_RETRAIN"):
        return [ROOT / "build" / "retrained" / "checkpoints"]
    return [ROOT / "checkpoints", Path(os.environ.get("XUQ_CACHE", ROOT / ".cache")) / "checkpoints"]


def rounded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round every weight matrix or kernel to float16; vectors (biases, batch norm) are left in full precision.

    A network is rounded once, at the end of its training, so its checkpoint takes half the space and gives back
    exactly the network that was evaluated.
    """
    wide = {name: value for name, value in tensors.items() if value.is_floating_point() and value.ndim >= 2}
    return {**tensors, **{name: value.half() for name, value in wide.items()}}


def save_checkpoint(name: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], folder: Path) -> Path:
    """Write NAME.safetensors and NAME.json; each appears whole or not at all, the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    partial = folder / f".{name}.{os.getpid()}.partial"
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial)
    digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    os.replace(partial, path)
    partial.write_text(json.dumps({**manifest, "sha256": digest}, indent=2, sort_keys=True) + "\n")
    os.replace(partial, path.with_suffix(".json"))
    return path


def find_checkpoint(name: str) -> Path | None:
    """Return the manifest of a checkpoint, or None where neither folder has one."""
    return next((path for folder in folders() if (path := folder / f"{name}.json").exists()), None)


def load_checkpoint(manifest_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, in float32, and the manifest.

    Raises:
        CheckpointError: the file is missing, or its SHA-256 is not the manifest's.
    """
    manifest = json.loads(manifest_path.read_text())
    path = manifest_path.with_suffix(".safetensors")
    if not path.exists():
        raise CheckpointError(f"{path.name} is missing beside its manifest; restore it, or delete {manifest_path.name}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != manifest["sha256"]:
        raise CheckpointError(
            f"{path.name} is damaged: expected SHA-256 {manifest['sha256']}, found {found}; restore the file, or "
            "delete it and its .json to train it anew"
        )
    tensors = load_file(path)
    half = {name for name, value in tensors.items() if value.dtype == torch.float16}
    return {name: value.float() if name in half else value for name, value in tensors.items()}, manifest
