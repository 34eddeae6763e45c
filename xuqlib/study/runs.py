"""Runs of notebooks: with which parameters, what they read, and how long they took when they last ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from xuqlib.study.files import PRESETS, ROOT, DamagedError, read_object, seal, whole_recipes

# A notebook that reads what others published runs after them, and again when that has changed.
READS: Mapping[str, str] = {"14": "full/*_claims.csv"}

PLACEHOLDER = "Run this notebook to use the widget that stands here."  # in a stored notebook, which has no kernel

PUBLISHED_RUN = "The same figure, from the published full run:"  # above it, wherever a notebook shows one

# How far a retrained score may lie from the published one, absolute, in the column's unit. Training in float32 is
# chaotic (another thread count moved accuracies by some percent), so these are wide; tables not named are not compared.
TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "01_scores": {"accuracy": 0.05, "r2": 0.05, "nll": 0.3, "brier": 0.08, "ece": 0.05},
}


class SizesError(ValueError):
    """`sizes.yaml` is missing, or holds something else than sizes."""


def parameters(preset: str, number: str, project: Path = ROOT) -> dict[str, object]:
    """Parameters that `preset` puts into the notebook with this number; one without a row gets the preset alone.

    They are read from `notebooks/sizes.yaml` of the project.

    Raises:
        ValueError: the preset is not known.
        SizesError: the file is missing, or none of sizes.
    """
    import yaml

    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; choose one of {', '.join(PRESETS)}")
    path = project / "notebooks" / "sizes.yaml"
    wanted = f"{path.name} should hold, for each of {', '.join(PRESETS)} and each notebook ('04'), names and values"
    try:
        sizes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if preset == "quick":  # a project of one's own, whose notebooks hold their only sizes
            return {"preset": preset}
        raise SizesError(f"{wanted}; it is missing") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SizesError(f"{wanted}; it cannot be read: {error}") from error
    if not isinstance(sizes, dict) or not set(sizes) <= set(PRESETS):
        raise SizesError(wanted)
    if not all(isinstance(row, dict) for row in sizes.values()):
        raise SizesError(wanted)
    for notebook, values in (item for row in sizes.values() for item in row.items()):
        # Without quotation marks 04 is the number 4, and its notebook would run at its quick size.
        if not isinstance(notebook, str) or not isinstance(values, dict):
            raise SizesError(f"{wanted}; it has {notebook!r}")
    return {"preset": preset, **sizes.get(preset, {}).get(number, {})}


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook's JSON.

    Raises:
        DamagedError: the file is no notebook.
    """
    remedy = "restore the notebook"
    notebook = read_object(path, remedy)
    cells = notebook.get("cells")
    if not isinstance(cells, list) or not cells or not all(map(_is_cell, cells)):
        raise DamagedError(f"{path} is damaged: it has no cells, or something else among them; {remedy}")
    return notebook


def _is_cell(cell: object) -> bool:
    if not isinstance(cell, dict) or not isinstance(cell.get("cell_type"), str):
        return False
    tags = cell["metadata"].get("tags", []) if isinstance(cell.get("metadata"), dict) else None
    lines = [cell["source"]] if isinstance(cell.get("source"), str) else cell.get("source")
    is_code = cell["cell_type"] == "code"
    outputs = _all(cell.get("outputs"), dict) if is_code else "outputs" not in cell
    return _all(tags, str) and _all(lines, str) and outputs


def _all(values: object, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def read_record(path: Path) -> dict[str, Any]:
    """What `run_all.py` wrote down about a notebook's last whole run; empty where there was none.

    Raises:
        DamagedError: the file is no such record.
    """
    remedy = "delete it; its notebook will run again"
    try:
        found = read_object(path, remedy)
    except FileNotFoundError:
        return {}
    if found.get("sha256") != seal(found):
        raise DamagedError(f"{path} is damaged: it is not what was written; {remedy}")
    return found


def record(project: Path, preset: str, name: str) -> dict[str, Any]:
    """`read_record` of a notebook's last run with its own parameters.

    Args:
        project: holds build/ and figures/.
        preset: "quick" or "full".
        name: the notebook's file name without its suffix.
    """
    return read_record(project / "build" / preset / f"{name}.json")


def last_seconds(project: Path, preset: str, name: str) -> float | None:
    """Seconds of the last run here, else of the run that was published, else None. Arguments as for `record`.

    Damaged files count as missing; `run_all.py` and `python -m xuqlib check` tell of them.
    """
    with suppress(DamagedError):
        if own := record(project, preset, name).get("seconds"):
            return float(own)
    with suppress(DamagedError):
        recipes = whole_recipes(project / "figures" / preset).values()
        # Each figure says how long after the start it was saved, so the last one is nearly the whole run.
        known = [float(recipe["seconds"] or 0) for recipe in recipes if recipe["notebook"] == name[:2]]
        return max(known, default=0.0) or None
    return None


def expected(seconds: Sequence[float | None], workers: int) -> float:
    """Seconds that jobs take side by side: no less than the longest, nor than their sum over the workers."""
    known = [value for value in seconds if value is not None]
    return max(sum(known) / workers, max(known, default=0.0))


def in_words(seconds: float | None) -> str:
    """A duration as one reads it: "45 s", "4 min", "1.5 h"; "unknown" for None."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
