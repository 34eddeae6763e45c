"""How long notebooks took when they last ran: what `run_all.py` announces and `python -m xuqlib check` reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def record(project: Path, preset: str, name: str) -> dict[str, Any]:
    """What `run_all.py` wrote down about a notebook's last whole run here; empty where there was none.

    Args:
        project: holds build/ and figures/.
        preset: "quick" or "full".
        name: the notebook's file name without its suffix.
    """
    try:
        found = json.loads((project / "build" / preset / f"{name}.json").read_text())
    except (OSError, ValueError):  # not there, or no JSON: then it has not run here
        return {}
    return found if isinstance(found, dict) else {}


def last_seconds(project: Path, preset: str, name: str) -> float | None:
    """Seconds of the last run here, else of the run that was published, else None. Arguments as for `record`."""
    if own := record(project, preset, name).get("seconds"):
        return float(own)
    try:
        index = json.loads((project / "figures" / preset / "index.json").read_text())
    except (OSError, ValueError):  # not there, or no JSON, which `python -m xuqlib check` reports
        return None
    # Each figure says how long after the start it was saved, so the last one is nearly the whole run.
    known = [float(recipe["seconds"] or 0) for recipe in index.values() if recipe["notebook"] == name[:2]]
    return max(known, default=0.0) or None


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
