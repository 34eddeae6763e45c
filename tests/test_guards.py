"""The stored notebooks and tables are guarded: change one number in either, and the tests fail."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
CELL = """
import os, pathlib
import pandas as pd

folder = pathlib.Path(os.environ["XUQ_FIGURES"], "quick")
folder.mkdir(parents=True, exist_ok=True)
frame = pd.DataFrame({"class": ["cross", "ring"], "accuracy": [0.8125, 0.9375]})
frame.to_csv(folder / "NN_scores.csv", index=False)
print(frame["accuracy"].mean())
"""
CASES = {  # what is changed in the copy of each number, and what fails then
    "00": ("notebooks/00_scores.ipynb", "unchanged", "unchanged", set()),
    "01": ("notebooks/01_scores.ipynb", "0.875", "0.876", {"Cell 0"}),
    "02": ("figures/quick/02_scores.csv", "0.9375", "0.9385", {"published numbers"}),
    "03": ("figures/quick/03_scores.csv", "ring", "rinq", {"published numbers"}),
}


@pytest.mark.slow
def test_a_changed_number_or_word_turns_the_tests_red(tmp_path, monkeypatch):
    for name in ("pyproject.toml", "conftest.py", "tests/nbval_sanitize.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("XUQ_FIGURES", str(tmp_path / "figures"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.strip())])
    NotebookClient(notebook, timeout=120, startup_timeout=120).execute()
    table = (tmp_path / "figures/quick/NN_scores.csv").read_bytes()
    for number, (stored, old, new, _) in CASES.items():
        text = nbformat.writes(notebook).replace("NN_", f"{number}_")
        (tmp_path / "notebooks" / f"{number}_scores.ipynb").write_text(text)
        (tmp_path / "figures/quick" / f"{number}_scores.csv").write_bytes(table)
        before = (tmp_path / stored).read_text()
        assert before.count(old) == 1 or number == "00"
        (tmp_path / stored).write_text(before.replace(old, new))
    environment = os.environ | {"XUQ_FIGURES": str(tmp_path / "build")}
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-rA", "--tb=no", "notebooks"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    told = re.findall(r"(PASSED|FAILED) notebooks/(\d\d)_scores\.ipynb::(Cell 0|published numbers)", done.stdout)
    assert len(told) == 2 * len(CASES), done.stdout + done.stderr
    assert {n: {part for said, of, part in told if of == n and said == "FAILED"} for n in CASES} == {
        n: failing for n, (*_, failing) in CASES.items()
    }
