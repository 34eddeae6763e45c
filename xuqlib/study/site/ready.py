"""What the site shows of computed results and no notebook shows: made before the site, kept, and used again."""

from __future__ import annotations

from pathlib import Path

from xuqlib.study.data.loading import load
from xuqlib.study.files import replace_file
from xuqlib.study.report.making import report
from xuqlib.study.site.pages import REPORT, SLIDERS
from xuqlib.study.site.sliders import sliders
from xuqlib.study.training.loading import train_or_load

DATASET, NUM_EXAMPLES, NUM_DRAWS = "digits", 60, 20
KEY = "key.txt"


def make_ready(folder: Path, key: str) -> bool:
    """Write a report about a published network on embedded data, and the figures with sliders.

    Args:
        folder: where they go; made if it is not there.
        key: digest of everything that they depend on. Those of the same key are used again.

    Returns:
        Whether they were made now.
    """
    if is_ready(folder, key):
        return False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / KEY).unlink(missing_ok=True)
    network = train_or_load("mc_dropout_all", DATASET, seed=0, progress=False).network
    examples = load(DATASET, split="test", num_examples=NUM_EXAMPLES, seed=0)
    report(network, examples, out=folder / REPORT[0], num_examples=NUM_EXAMPLES, num_draws=NUM_DRAWS, progress=False)
    replace_file(folder / SLIDERS, sliders().encode())
    replace_file(folder / KEY, key.encode())  # last: now all of it is whole
    return True


def is_ready(folder: Path, key: str) -> bool:
    """Whether all that `make_ready` writes is there, made with this key."""
    names = (*REPORT, SLIDERS, KEY)
    return all((folder / name).is_file() for name in names) and (folder / KEY).read_text(encoding="utf-8") == key
