"""Files that are whole or refused: written at once, sealed, and listed in the `index.json` of what is published.

Whatever the study writes and reads again bears a seal, the digest of all that it says: what was damaged since is
refused by name, and never taken for a result. Nothing here imports more than the standard library and filelock.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("quick", "full")


def figures_folder(preset: str) -> Path:
    """Folder of the figures of `preset`: `figures/<preset>` here, or under $XUQ_FIGURES. It may not exist yet.

    Raises:
        ValueError: the preset is not known.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; choose one of {', '.join(PRESETS)}")
    return Path(os.environ.get("XUQ_FIGURES") or ROOT / "figures") / preset


def versions() -> dict[str, str]:
    """Versions that results depend on, and the kind of machine."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy", "pandas", "xuq"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "machine": platform.machine()}


class DamagedError(ValueError):
    """A file of the study that is not what was written. The message names it and says what to do."""


def seal(facts: Mapping[str, object], content: bytes = b"") -> str:
    """SHA-256 of a JSON object, its own "sha256" left out, and of the bytes that it tells of."""
    told = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode() + content).hexdigest()


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: of the file.
        remedy: what to do where it holds none, for the message.

    Raises:
        FileNotFoundError: there is no file.
        DamagedError: it holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is no JSON ({error}); {remedy}") from None
    if not isinstance(found, dict):
        raise DamagedError(f"{path} is damaged: it holds no JSON object; {remedy}")
    return found


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that no reader, no interruption and no power cut ever leaves half of it.

    Raises:
        OSError: it cannot be written; what stood there still does, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a full disk does not say which file it was
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive a power cut, as the contents of its files do."""
    if os.name == "nt":  # where folders cannot be opened, and names are written at once
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def remove_temporaries(folder: Path) -> None:
    """Remove what `replace_file` was writing in a folder when its process was killed."""
    for path in folder.glob(".*.tmp"):
        owner = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if owner and not is_running(int(owner[1])):
            path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether a process of this number is alive on this machine."""
    if os.name == "nt":  # where asking would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def update_index(folder: Path, entries: Mapping[str, Mapping[str, object] | None]) -> None:
    """Add or replace entries of the folder's `index.json`, and seal them; None drops one. Safe among several writers.

    Raises:
        DamagedError: the file is no index.
    """
    with FileLock(folder / ".index.lock", timeout=60):
        index = read_index(folder)
        for stem, recipe in entries.items():
            index.pop(stem, None)
            if recipe is not None:
                index[stem] = {"sha256": "", **recipe} | {"sha256": _seal_of(stem, recipe)}  # it stands first
        kept = {stem: index[stem] for stem in sorted(index)}
        replace_file(folder / "index.json", (json.dumps(kept, indent=1) + "\n").encode())


def _seal_of(stem: str, recipe: Mapping[str, object]) -> str:
    return seal({**recipe, "stem": stem})


def read_index(folder: Path) -> dict[str, dict[str, Any]]:
    """The recipes in a folder's `index.json`, by stem; none where there is no such file.

    Raises:
        DamagedError: the file is no index.
    """
    path, remedy = folder / "index.json", "restore it, or delete it and run the notebooks again"
    if not path.exists():
        return {}
    index = read_object(path, remedy)
    if not all(isinstance(recipe, dict) for recipe in index.values()):
        raise DamagedError(f"{path} is damaged: it holds something else than recipes; {remedy}")
    return index


def whole_recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """The recipes of `read_index` whose seals are unbroken."""
    index = read_index(folder)
    return {stem: recipe for stem, recipe in index.items() if recipe.get("sha256") == _seal_of(stem, recipe)}


def index_problems(folder: Path) -> list[str]:
    """What is wrong with a folder's `index.json`, and what to do, one sentence each; the files are not looked at."""
    path = folder / "index.json"
    try:
        index, whole = read_index(folder), whole_recipes(folder)
    except DamagedError as error:
        return [str(error)]
    lost = {table.stem for table in folder.glob("[0-9][0-9]_*.csv")} - set(index)
    if lost and not path.exists():
        return [f"{path} is missing beside tables; restore it, or run their notebooks again"]
    wrong = [(stem, "is damaged at") for stem in index if stem not in whole] + [
        (stem, "has nothing on") for stem in lost
    ]
    return [f"{path} {what} {stem}; restore it, or run notebook {stem[:2]} again" for stem, what in sorted(wrong)]


def read_published(path: Path) -> bytes:
    """A published file's content, compared with the digest in the `index.json` beside it, if there is one.

    Raises:
        FileNotFoundError: there is no file.
        DamagedError: file or index is damaged.
    """
    content, index = path.read_bytes(), read_index(path.parent)
    known = whole_recipes(path.parent).get(path.stem, {}).get("files", {}).get(path.name)
    if index and hashlib.sha256(content).hexdigest() != known:
        raise DamagedError(f"{path} is not what index.json says; restore both, or run notebook {path.name[:2]} again")
    return content
