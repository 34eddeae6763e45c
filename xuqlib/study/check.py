"""What is here, what is missing, what is damaged, and what to do about it: `python -m xuqlib check`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from xuqlib.device import device
from xuqlib.study import files, runs
from xuqlib.study.data import download
from xuqlib.study.data.loading import DATASETS, EMBEDDED, KINDS
from xuqlib.study.training import checkpoints


class Section(NamedTuple):
    """A heading, lines under it, and how many of the things that it tells of are damaged."""

    title: str
    lines: list[str]
    damaged: int = 0


class Wanted(NamedTuple):
    """What a reader looks for: the layouts that would do, and what a person should fetch."""

    layouts: tuple[download.Layout, ...]
    help_text: str


class _Asked(Exception):
    """Carries what a reader wanted to locate."""


@contextmanager
def _asking(module: str) -> Iterator[None]:
    """Within it, a module's readers say which files they want instead of finding, fetching and decoding them."""

    def tell(layouts: tuple[download.Layout, ...], data: download.Folder, help_text: str) -> download.Found:
        raise _Asked(Wanted(layouts, help_text))

    with mock.patch(f"{module}.locate", tell):
        yield


def wanted(name: str) -> list[Wanted]:
    """What each published part of a data set needs on disk; nothing for one that is embedded."""
    kind, found = KINDS[name], []
    reader = getattr(kind.reader, "func", kind.reader)  # of a partial, which has no module
    with _asking(reader.__module__):
        for part in () if name in EMBEDDED else kind.parts if "train" in kind.splits else kind.splits:
            try:
                kind.reader(part)
            except _Asked as asked:
                found.append(asked.args[0])
    return found


def data_line(name: str) -> tuple[str, bool]:
    """Where a data set lies, or what to do; and whether a file of it is damaged."""
    if name in EMBEDDED:
        return "embedded", False
    places = {folder: _where(folder) for folder in (download.data_folder(None), download.cache_folder()) if folder}
    told, damaged = [], False
    for need in wanted(name):
        hits = [(folder, layout) for folder in places for layout in need.layouts if _complete(folder, layout)]
        if hits:
            folder, layout = hits[0]
            broken = [problem for file in layout.files if (problem := _problem(folder / file.path, file))]
            told += broken or [f"whole, in {places[folder]}"]
            damaged = damaged or bool(broken)
        elif any(all(file.url for file in layout.files) for layout in need.layouts):
            told.append(f'missing; load("{name}") downloads it')
        else:
            told.append(f"missing; {need.help_text}")
    if name == "cifar10h":
        told.append("needs cifar10, too")
    return "; ".join(dict.fromkeys(told)), damaged


def _where(folder: Path) -> str:
    return "$XUQ_DATA" if folder == download.data_folder(None) else "the cache"


def _complete(folder: Path, layout: download.Layout) -> bool:
    return all((folder / file.path).is_file() for file in layout.files)


def _problem(path: Path, file: download.File) -> str:
    try:
        download.verify(path, sha256=file.sha256, md5=file.md5)
    except download.DataError:
        return f"DAMAGED: {file.path}; restore it, or delete it to have it fetched again"
    return ""


def check_machine() -> Section:
    """Versions, device and threads."""
    versions = ", ".join(f"{name} {version}" for name, version in files.versions().items())
    lines, damaged = [versions], 0
    try:
        where = device()
        torch.ones(2, device=where).sum().item()
        name = torch.cuda.get_device_name(where) if where.type == "cuda" else "no GPU is used"
        lines.append(f"computes on {where} ({name}); $XUQ_DEVICE chooses another")
    except (ValueError, RuntimeError) as error:
        lines, damaged = [*lines, f"DAMAGED: the device does not compute: {str(error).splitlines()[0]}"], 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines.append(f"{torch.get_num_threads()} threads of {cores} cores; OMP_NUM_THREADS sets them")
    return Section("This machine", lines, damaged)


def check_data() -> Section:
    """Each data set that `load` knows: where it lies, or what to do."""
    try:
        local = download.data_folder(None)
    except download.DataError as error:
        return Section("Data", [f"DAMAGED: {error}"], 1)
    lines = [f"$XUQ_DATA is {local or 'not set'}; the cache is {download.cache_folder()}"]
    found = {name: data_line(name) for name in DATASETS}
    lines += [f"{name:20}{line}" for name, (line, _) in found.items()]
    return Section("Data", lines, sum(broken for _, broken in found.values()))


def check_checkpoints() -> Section:
    """Whether each trained network is what its manifest says."""
    lines, damaged = [], 0
    for folder in checkpoints.folders():
        manifests = sorted(folder.rglob("*.json"))
        stems = {path.with_suffix("") for path in (*manifests, *folder.rglob("*.safetensors"))}
        broken = [problem for stem in sorted(stems) if (problem := _damage(stem.parent / f"{stem.name}.json"))]
        lines.append(f"{folder}: {len(manifests)} checkpoints, {len(broken)} damaged")
        lines += [f"DAMAGED: {problem}" for problem in broken]
        damaged += len(broken)
    return Section("Checkpoints", lines, damaged)


def _damage(manifest: Path) -> str:
    try:
        checkpoints.load_checkpoint(manifest)
    except FileNotFoundError:
        return f"{manifest.name} is missing beside its tensors; restore it, or delete them to train anew"
    except checkpoints.CheckpointError as error:
        return str(error)
    return ""


def check_figures(project: Path = files.ROOT) -> Section:
    """Whether each published figure and table is what `index.json` says."""
    lines, damaged = [], 0
    for preset in files.PRESETS:
        folder = project / "figures" / preset
        broken = files.index_problems(folder)
        try:
            recipes = files.whole_recipes(folder)
        except files.DamagedError:
            recipes = {}
        listed = {file: known for recipe in recipes.values() for file, known in recipe["files"].items()}
        if not listed and not broken:
            lines.append(f"{preset}: none published; run_all.py --preset {preset} makes them")
            continue
        wrong = [file for file, known in listed.items() if _digest(folder / file) != known]
        broken += [f"{preset}/{file}; restore it, or run notebook {file[:2]} again" for file in wrong]
        lines.append(f"{preset}: {len(listed)} files, {len(broken)} damaged")
        lines += [f"DAMAGED: {problem}" for problem in broken]
        damaged += len(broken)
    return Section("Published figures", lines, damaged)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def check_notebooks(project: Path = files.ROOT) -> Section:
    """Whether each notebook can be read, and when it last ran here."""
    lines: list[str] = []
    damaged = 0
    for path in sorted((project / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        told, broken = [], []
        for tell in (
            partial(_readable, path),
            *(partial(_last, project, preset, path.stem) for preset in files.PRESETS),
        ):
            try:
                told.append(tell())
            except files.DamagedError as error:
                broken.append(f"DAMAGED: {error}")
        lines += broken or [f"{path.stem}: {'; '.join(filter(None, told)) or 'never ran here'}"]
        damaged += len(broken)
    return Section("Notebooks", lines, damaged)


def _readable(path: Path) -> str:
    runs.read_notebook(path)
    return ""


def _last(project: Path, preset: str, name: str) -> str:
    done = project / "build" / preset / f"{name}.json"
    if done.with_suffix(".error.txt").exists():
        return f"{preset} run FAILED, see build/{preset}/{name}.error.txt"
    if not runs.record(project, preset, name):
        return ""
    when = datetime.fromtimestamp(done.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    return f"{preset} run {when}, took {runs.in_words(runs.last_seconds(project, preset, name))}"


def report(sections: list[Section]) -> str:
    """The sections as text, and a last line that says whether anything is damaged."""
    parts = [f"{section.title}\n" + "".join(f"  {line}\n" for line in section.lines) for section in sections]
    count = sum(section.damaged for section in sections)
    things = "Nothing is damaged." if not count else f"{count} damaged: see the lines that say DAMAGED."
    return "\n".join([*parts, things]) + "\n"


def check() -> tuple[str, int]:
    """The whole report, and how many things are damaged. What is merely missing does not count."""
    sections = [check_machine(), check_data(), check_checkpoints(), check_figures(), check_notebooks()]
    return report(sections), sum(section.damaged for section in sections)
