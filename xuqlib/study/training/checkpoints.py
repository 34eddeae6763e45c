"""Checkpoints: tensors in safetensors beside a manifest of how they came about, both guarded by one digest."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xuqlib.study.files import ROOT, DamagedError, read_object, replace_file, seal

if TYPE_CHECKING:  # what lies where is asked by runs that need no torch
    from torch import Tensor

MADE_FROM = ("recipe", "network")  # facts that make a checkpoint stale where they have changed since


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
    """Write NAME.safetensors and NAME.json; each appears whole or not at all, the manifest last.

    The manifest is given two entries: `name`, and `sha256`, a digest of the tensors' file and of the manifest itself.
    """
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    facts = json.loads(json.dumps({**manifest, "name": name}))  # as they will be read
    path.with_suffix(".json").unlink(missing_ok=True)  # it would call the new tensors damaged
    replace_file(path, content)
    text = json.dumps({**facts, "sha256": seal(facts, content)}, indent=2, sort_keys=True)
    replace_file(path.with_suffix(".json"), f"{text}\n".encode())
    return path


def find_checkpoint(name: str, recipe: Mapping[str, Any] | None = None, **asked: object) -> Path | None:
    """Return the manifest of a checkpoint; None where neither folder has one, or only one of another recipe.

    Args:
        name: of its files.
        recipe: as its manifest should have it; any by default.
        asked: what else its manifest should say, such as seed=0. A checkpoint of another recipe, or made from another
            `network`, is stale; one that differs in anything else is not what its name says.

    Raises:
        CheckpointError: what is there is damaged, or says something else than was asked.

    Warns:
        UserWarning: something is there, but it does not serve; the message says why.
    """
    # JSON turns tuples into lists.
    wanted = json.loads(json.dumps(asked if recipe is None else {**asked, "recipe": recipe}))
    reasons = []
    for folder in folders():
        path = folder / f"{name}.json"
        if not path.exists():
            if path.with_suffix(".safetensors").exists():
                reasons.append(f"{path.with_suffix('.safetensors')} has no manifest beside it")
            continue
        manifest = _manifest(path)
        other = [key for key, value in wanted.items() if manifest.get(key) != value]
        if not other:
            return path
        load_checkpoint(path)  # a damaged manifest says anything
        if wrong := {key: wanted[key] for key in other if key not in MADE_FROM}:
            raise CheckpointError(f"{path.name} has {_difference(manifest, wrong)}; {_remedy(path)}")
        old = manifest.get("recipe")
        told = _difference(old, wanted["recipe"]) if isinstance(old, dict) and "recipe" in other else "or none"
        reasons.append(f"{path} has another {' and '.join(other)} ({told})")
    if reasons:
        warnings.warn(f"{name} is trained anew: {'; '.join(reasons)}", stacklevel=2)
    return None


def _difference(old: Mapping[str, object], new: Mapping[str, object]) -> str:
    names = [name for name in new if old.get(name) != new[name]]
    return ", ".join(f"{name} {old.get(name)!r} instead of {new[name]!r}" for name in names)


def _remedy(manifest_path: Path) -> str:
    stem = manifest_path.stem
    return f"restore {stem}.json and {stem}.safetensors, or delete both to train anew"


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = read_object(path, _remedy(path))
    except DamagedError as error:
        raise CheckpointError(str(error)) from None
    if not {"name", "sha256"} <= set(manifest):
        raise CheckpointError(f"{path.name} is not the manifest of a checkpoint; {_remedy(path)}")
    return manifest


def load_checkpoint(manifest_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors, in float32, and the manifest.

    Raises:
        CheckpointError: a file is missing or cannot be read, the two have another digest than the manifest says, or
            they belong to a checkpoint of another name.
    """
    import torch
    from safetensors.torch import load

    manifest, path = _manifest(manifest_path), manifest_path.with_suffix(".safetensors")
    if not path.exists():
        raise CheckpointError(f"{path.name} is missing beside its manifest; {_remedy(manifest_path)}")
    content = path.read_bytes()
    if (found := seal(manifest, content)) != manifest["sha256"]:
        raise CheckpointError(
            f"{path.name} or its manifest is damaged: expected SHA-256 {manifest['sha256']}, found {found}; "
            f"{_remedy(manifest_path)}"
        )
    if manifest["name"] != manifest_path.stem:
        raise CheckpointError(
            f"{manifest_path.name} and its tensors are those of {manifest['name']}; {_remedy(manifest_path)}"
        )
    tensors = load(content)
    half = {name for name, value in tensors.items() if value.dtype == torch.float16}
    return {name: value.float() if name in half else value for name, value in tensors.items()}, manifest
