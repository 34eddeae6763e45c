"""The house rules, and the three tools that hold most of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "xuqlib").glob("*.py"))
LESSONS = sorted((ROOT / "xuqlib" / "lessons").glob("*.py"))  # what single notebooks measure with
MODULES = [path for path in (*LIBRARY, *LESSONS) if path.stem != "__init__"]

# A module imports only from those before it.
ORDER = (
    *(
        "presets",
        "study",
        "planted",
        "download",
        "readers",
        "fer",
        "checks",
        "estimates",
        "data",
        "networks",
        "baselines",
    ),
    *("guided", "fixing", "sharing", "draws", "randomness", "posteriors", "laplace", "checkpoints", "recipes"),
    *("fitting", "fitting_together", "training", "vae", "uncertainty"),
    *("paths", "steps", "chains", "engine", "explainers", "superpixels", "lime"),
    *("moments", "diagnosis", "distribution", "explaining", "analytic", "saliencies", "fullgrad", "ua_backprop"),
    *("ua_rivals", "ua_replacement", "clue", "mitigation"),
    *("metrics", "controls", "orderings", "blurring", "anomalies", "sanity", "stress", "agreement"),
    *("charts", "panels", "figures", "widgets"),
    # The lessons: nothing above imports them.
    *("resuming", "predictions", "steadiness", "reporting", "timing", "resampling", "summaries", "centres"),
    *("recalibration", "tables", "contests", "classes", "targets", "houses", "grid", "verdicts", "raters"),
    *("pair_study", "human_study", "sources", "your_own", "pointing", "rivalry", "duels", "inside", "parts", "paired"),
    *("mitigating", "adding", "page_look", "runs", "pages", "__main__"),
)
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".ipynb", ".cfg", ".json", ".cff", ".csv", ""}


@pytest.mark.parametrize(
    "command", ["ruff check --no-cache .", "ruff format --no-cache --check .", "mypy xuqlib run_all.py"]
)
def test_the_tool_finds_nothing(command, tmp_path):
    tool, *arguments = command.split()
    if tool == "mypy":
        arguments += ["--cache-dir", str(ROOT / ".mypy_cache")]
    ran = subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_library_is_thin():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (*LIBRARY, *LESSONS)}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
    assert sum(code_lines(path) for path in LIBRARY) < 7000
    assert sum(code_lines(path) for path in LESSONS) < 3600


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    tree, text = ast.parse(path.read_text()), path.read_text().splitlines()
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    kept = [line for number, line in enumerate(text, 1) if number not in prose and line.strip()]
    return sum(not line.strip().startswith("#") for line in kept)


def definitions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("path", [*MODULES, ROOT / "run_all.py"], ids=lambda path: path.stem)
def test_functions_have_fewer_than_forty_lines_below_their_docstring(path):
    for node in definitions(path):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        assert lines < 40, f"{path.name}: {node.name} has {lines}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_library_does_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_import_only_from_those_before_them(path):
    assert path.stem in ORDER, f"give {path.stem} its place in ORDER"
    before = ORDER[: ORDER.index(path.stem)]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xuqlib":
            parts = [part for part in (node.module or "").split(".")[1:] if part != "lessons"]
            used = parts[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            used = [alias.name.split(".")[-1] for alias in node.names if alias.name.startswith("xuqlib.")]
        elif isinstance(node, ast.ImportFrom) and node.level:
            used = node.module.split(".")[:1] if node.module else [alias.name for alias in node.names]
        else:
            continue
        assert set(used) <= set(before), f"{path.name} line {node.lineno} imports {used}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_public_function_says_what_it_computes(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


def tracked() -> list[Path]:
    """Text files in git, or all but the ignored ones where the tree is not a repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    names = [name for name in listed.stdout.split("\0") if name]
    if not names:
        names = ["README.md", "run_all.py", *(str(path.relative_to(ROOT)) for path in LIBRARY)]
    return [ROOT / name for name in names if Path(name).suffix in TEXT and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_registry():
    machine = re.compile(r"(?<![\w.~/])/(?:home|root|tmp|work|Users|workspace)/\w")
    registry = re.compile(r"https?://[^\s\"')]+(?:/simple\b|/packages/|\.whl\b)|pypi\.org|pythonhosted")
    assert machine.search("in " + "/tmp" + "/x")
    assert registry.search("from https://" + "example.org/simple")
    for path in tracked():
        text = path.read_text(encoding="utf-8", errors="ignore")
        if path != Path(__file__):
            found = machine.search(text) or registry.search(text)
            assert found is None, f"{path.relative_to(ROOT)}: {found and found.group(0)}"
