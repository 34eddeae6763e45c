"""The house rules, and the three tools that hold most of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import xuqlib

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "xuqlib"
STUDY = sorted((LIBRARY / "study").rglob("*.py"))
COMMAND = LIBRARY / "__main__.py"  # `python -m xuqlib`, of the study
# What is to write to a disk or a cluster will have a wing of its own, xuqlib/scale, above the method.
METHOD = sorted(
    path
    for path in LIBRARY.rglob("*.py")
    if path != COMMAND and path.relative_to(LIBRARY).parts[0] not in ("study", "scale")
)
HELPERS = sorted((ROOT / "notebooks" / "helpers").glob("*.py"))
MODULES = [path for path in (*METHOD, *STUDY, *HELPERS) if path.stem != "__init__"]
HANDED_ON = {"DataError", "Examples", "Notebook", "Recipe", "analytic_distribution", "fit", "lenet", "load", "mini_vgg"}
HANDED_ON |= {
    "mlp",
    "report",
    "resnet18",
    "scores",
    "train_or_load",
    "ua_backprop_linear",
    "variance_split",
    "versions",
}
TEXT = {".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".ipynb", ".cfg", ".json", ".cff", ".csv", ""}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> dict[str, int]:
    """Modules of this project that a file imports, wherever in it, with the line."""
    found = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} line {node.lineno}: import by the whole name"
            module = node.module or ""
            for alias in node.names:  # a module of a package, or a name of a module
                inside = ROOT / f"{module}.{alias.name}".replace(".", "/")
                is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
                found[f"{module}.{alias.name}" if is_module else module] = node.lineno
        elif isinstance(node, ast.Import):
            found |= {alias.name: node.lineno for alias in node.names}
    return {name: line for name, line in found.items() if name.split(".")[0] in ("xuqlib", "helpers", "run_all")}


def test_every_tool_and_storey_has_files():
    assert len(METHOD) > 20 and len(STUDY) > 20 and len(HELPERS) > 5


@pytest.mark.parametrize(
    "command",
    [
        "ruff check --no-cache .",
        "ruff format --no-cache --check .",
        pytest.param("mypy xuqlib run_all.py notebooks/helpers", marks=pytest.mark.slow),
    ],
)
def test_the_tool_finds_nothing(command):
    tool, *arguments = command.split()
    if tool == "mypy":
        arguments += ["--cache-dir", str(ROOT / ".mypy_cache")]
    ran = subprocess.run(
        [sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("path", METHOD, ids=module_name)
def test_the_method_imports_nothing_of_the_study_but_what_the_package_hands_on(path):
    upwards = {name for name in imports_of(path) if name.startswith(("xuqlib.study", "xuqlib.scale", "helpers"))}
    if path != LIBRARY / "__init__.py":
        assert upwards == set()
        assert "xuqlib" not in imports_of(path), "the package hands on the study, too: import from the module itself"


def test_what_the_package_hands_on_of_the_study_is_known():
    of_study = {name for name in xuqlib.__all__ if getattr(xuqlib, name).__module__.startswith("xuqlib.study")}
    stub = (LIBRARY / "__init__.pyi").read_text(encoding="utf-8")
    listed = re.findall(r'"(\w+)"', "".join(re.findall(r"^__all__.*", stub, re.MULTILINE)))  # for type checkers
    assert of_study == HANDED_ON and sorted(listed) == sorted(xuqlib.__all__) == sorted(dir(xuqlib))
    with pytest.raises(AttributeError, match="nothing"):
        _ = xuqlib.nothing


@pytest.mark.parametrize("path", STUDY, ids=module_name)
def test_the_study_imports_no_lesson(path):
    assert {name for name in imports_of(path) if name.startswith(("helpers", "run_all"))} == set()


@pytest.mark.parametrize("path", HELPERS, ids=module_name)
def test_a_helper_serves_one_notebook_and_imports_no_other(path):
    assert {name for name in imports_of(path) if name.startswith(("helpers", "run_all"))} == set()
    number = re.fullmatch(r"n(\d\d)", path.stem)
    assert path.stem == "__init__" or (number and list((ROOT / "notebooks").glob(f"{number[1]}_*.ipynb")))


def test_modules_import_in_no_circle():
    paths = {module_name(path): path for path in (*METHOD, *STUDY)}
    graph = {name: set(imports_of(path)) & set(paths) - {"xuqlib"} for name, path in paths.items() if name != "xuqlib"}
    while leaves := {name for name, used in graph.items() if not used & set(graph)}:
        graph = {name: used for name, used in graph.items() if name not in leaves}
    assert graph == {}


def test_from_outside_the_fast_path_is_its_engine():
    """FullGrad's maps, which have no path, build on the layers too."""
    known = {"xuqlib.fast.engine", "xuqlib.fast.chain", "xuqlib.fast.layers"}
    users = {path for path in METHOD if path.parent.name != "fast" and known & set(imports_of(path))}
    inside = {path.stem for path in users if (known - {"xuqlib.fast.engine"}) & set(imports_of(path))}
    assert inside == {"fullgrad", "layer_maps"}


def test_the_method_is_read_in_an_afternoon():
    """3,570 lines; a second fast path, which stays for its speed; what devices ask for, and what they draw; intervals.

    Measured, the backward pass by hand of an `nn.Sequential` is 2 to 3.9 times as fast as vmap for convolutional
    networks, and 1.1 to 1.9 times for dense ones. `chain.py`, `layers.py` and what they ask for take about 400 lines.
    To send each number once, to wait for none, and to leave draws where they are takes about 150. That a device draws
    by its own generator takes about 30, and intervals that hold another training's explanation about 230.
    """
    assert sum(code_lines(path) for path in METHOD) <= 3570 + 450 + 150 + 30 + 230


def test_the_public_names_are_about_forty():
    assert len(xuqlib.__all__) <= 50
    assert all(hasattr(xuqlib, name) for name in xuqlib.__all__)


def loaded(code: str) -> set[str]:
    """The packages that a new process has imported after this code."""
    told = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


def test_importing_the_method_imports_nothing_that_only_the_study_needs():
    heavy = {"IPython", "dask", "joblib", "matplotlib", "pandas", "scipy", "seaborn", "skimage", "sklearn", "xarray"}
    found = loaded("import xuqlib; xuqlib.explain; xuqlib.MCDropout; xuqlib.lime")
    assert heavy.isdisjoint(found) and {"torch", "xuqlib"} <= found


def test_what_asks_for_no_network_waits_for_no_torch():
    """The package imports what it offers when that is asked for; run_all.py lists and starts notebooks without it."""
    found = loaded("import xuqlib, run_all; run_all.plan(run_all.parse([]))")
    assert {"torch", "numpy", "pandas", "matplotlib"}.isdisjoint(found) and {"run_all", "xuqlib"} <= found


def test_a_function_keeps_its_name_where_the_module_of_that_name_is_imported():
    code = "import xuqlib.explain, xuqlib.ua_backprop, xuqlib.ua_replacement; import xuqlib as x"
    told = f"{code}; print(*map(callable, (x.explain, x.ua_backprop, x.ua_replacement)))"
    ran = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True"] * 3


def test_statistics_of_the_study_do_without_the_slow_import_of_scipys():
    imports = [f"import {name}" for name in ("xuqlib.study.verdicts", "xuqlib.study.figures.charts")]
    imports += [f"import xuqlib.study.judging.{name}" for name in ("coverage", "recalibration", "similarity")]
    code = "\n".join([*imports, "import sys; print('scipy.stats' in sys.modules, 'scipy.special' in sys.modules)"])
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True"]


def test_helpers_are_few_lines_and_hold_no_claim_and_no_loader():
    assert sum(code_lines(path) for path in HELPERS) <= 2500
    for path in HELPERS:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\.(claim|judge|claims)\(", text), path.name
        assert not re.search(r"\b(load|train_or_load|train_or_load_vae)\(", text), path.name


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank lines, comments or docstrings."""
    tree, text = ast.parse(path.read_text()), path.read_text().splitlines()
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            prose.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    kept = [line for number, line in enumerate(text, 1) if number not in prose and line.strip()]
    return sum(not line.strip().startswith("#") for line in kept)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_name_is_imported_from_where_it_is_defined(path):
    assert not re.search(r"import (\w+) as \1\b", path.read_text(encoding="utf-8")), "no name is handed on as itself"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_the_library_does_not_print(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
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
        names = ["README.md", "run_all.py", *(str(path.relative_to(ROOT)) for path in MODULES)]
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
