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

from xuqlib.study.record import ROOT


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
    path.with_suffix(".json").unlink(missing_ok=True)  # it would call the new tensors damaged
    os.replace(partial, path)
    partial.write_text(json.dumps({**manifest, "sha256": digest}, indent=2, sort_keys=True) + "\n")
    os.replace(partial, path.with_suffix(".json"))
    return path


def find_checkpoint(name: str, recipe: Mapping[str, Any] | None = None) -> Path | None:
    """Return the manifest of a checkpoint, of this recipe if one is given; None where neither folder has one."""
    paths = (path for folder in folders() if (path := folder / f"{name}.json").exists())
    # JSON turns tuples into lists.
    wanted = None if recipe is None else json.loads(json.dumps(recipe))
    return next((path for path in paths if wanted is None or _manifest(path).get("recipe") == wanted), None)


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
    except ValueError:
        manifest = None
    if not isinstance(manifest, dict) or "sha256" not in manifest:
        raise CheckpointError(
            f"{path.name} is not the manifest of a checkpoint; restore it, or delete it to train anew"
        )
    return manifest


def load_checkpoint(manifest_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, in float32, and the manifest.

    Raises:
        CheckpointError: the file is missing, its SHA-256 is not the manifest's, or the manifest cannot be read.
    """
    manifest = _manifest(manifest_path)
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
