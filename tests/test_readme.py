"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


OWN = ["images", "text", "signals", "tables", "segmentation"]  # networks of the reader's own


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["tour", "uncertainty", *OWN])
def test_the_snippet_runs_after_the_tour_and_shows_something(snippet, capsys):
    names: dict[str, object] = {}
    if snippet != SNIPPETS[0]:
        exec(compile(SNIPPETS[0], "README.md", "exec"), names)
        capsys.readouterr()
    exec(compile(snippet, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("snippet", SNIPPETS[2:], ids=OWN)
def test_a_network_of_ones_own_is_explained_in_four_lines_after_the_imports(snippet):
    lines = [line for line in snippet.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) == 4


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
