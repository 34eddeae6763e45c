"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from IPython.core.inputtransformer2 import TransformerManager
from PIL import Image
from torch import nn

import xuqlib
from xuqlib.study.data.loading import DATASETS

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


OWN = ["images", "text", "signals", "tables", "segmentation"]  # networks of the reader's own


SAVED, STREAM, DASK = SNIPPETS[3:6]


@pytest.mark.parametrize(
    "snippet",
    [*SNIPPETS[:5], *SNIPPETS[6:]],
    ids=["tour", "uncertainty", "conformal", "saved", "stream", "report", *OWN],
)
def test_the_snippet_runs_after_the_tour_and_shows_something(snippet, capsys, monkeypatch, tmp_path):
    names: dict[str, object] = {}
    monkeypatch.chdir(tmp_path)
    if snippet != SNIPPETS[0]:
        exec(compile(SNIPPETS[0], "README.md", "exec"), names)
        capsys.readouterr()
    exec(compile(snippet, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("snippet", SNIPPETS[7:], ids=OWN)
def test_a_network_of_ones_own_is_explained_in_four_lines_after_the_imports(snippet):
    lines = [line for line in snippet.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) == 4


def test_the_recipe_for_dask_runs_as_a_script_of_its_own(tmp_path):
    (tmp_path / "script.py").write_text(DASK)
    command = [sys.executable, "script.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "30 draws x 400 examples" in ran.stdout


def test_the_recipe_for_slurm_is_finished_by_its_last_task(tmp_path, monkeypatch):
    (line,) = re.findall(r"`(explain_dataset\([^`]*shard=\"auto\"\))`", TEXT)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    for name in "abc":
        Image.new("RGB", (6, 6), "#8040c0").save(f"photographs/{name}.png")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3)).eval()
    names = {"posterior": xuqlib.MCDropout(network), **{name: getattr(xuqlib, name) for name in xuqlib.__all__}}
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    for task in ("1", "0"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        exec(compile(line, "README.md", "exec"), dict(names))
    assert xuqlib.open_explanations("maps.zarr").dataset["id"].values.tolist() == ["a.png", "b.png", "c.png"]


def test_the_tour_has_at_most_eight_lines():
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) <= 8


def test_the_first_cell_for_colab_does_nothing_elsewhere(monkeypatch):
    (cell,) = re.findall(r"```ipython\n(.*?)```", TEXT, re.DOTALL)
    ran = []
    shell = SimpleNamespace(system=ran.append, run_line_magic=lambda *words: ran.append(words))
    code = compile(TransformerManager().transform_cell(cell), "README.md", "exec")
    exec(code, {"get_ipython": lambda: shell})
    assert ran == []
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    exec(code, {"get_ipython": lambda: shell})
    assert "git clone" in ran[0] and ran[1:] == [("cd", "xuq/notebooks")]
    assert (ROOT / "notebooks" / sys.path[0] / "xuqlib").is_dir()


def test_every_picture_and_file_that_is_named_exists():
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)|`((?:xuqlib|figures|checkpoints|tests)/[\w/.]*)`", TEXT)
    paths = [picture or path for picture, path in named]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_table_lists_every_notebook():
    rows = re.findall(r"^\| (\d\d) \|", TEXT, re.MULTILINE)
    assert rows == sorted(path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def test_every_data_set_is_named():
    section = TEXT[TEXT.index("## Data") : TEXT.index("## Speed")]
    assert [name for name in DATASETS if f"`{name}`" not in section] == []


def test_every_test_that_stands_for_a_promise_exists():
    text = (ROOT / "tests" / "README.md").read_text()
    named = re.findall(r"`((?:\w+/)*\w+\.py)(?:::(\w+))?`", text)
    assert len(named) > 40
    for file, test in named:
        code = (ROOT / "tests" / file).read_text()
        assert f"def {test}(" in code if test else code, (file, test)
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|") and "---" not in line]
    assert all(len(cells) == 5 and cells[2].strip() for cells in rows)
