"""Rules that every stored notebook keeps. That its cells run and its tables hold is nbval's part."""

from __future__ import annotations

import ast
import importlib
import io
import itertools
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROMISED = {f"{number:02}" for number in range(27)}
HELPERS = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks" / "helpers").glob("*.py")))
every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == kind]


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def solutions(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each solution with the cell before it, its question."""
    every = read(path)["cells"]
    pairs = itertools.pairwise(every)
    return [(before, cell) for before, cell in pairs if "solution" in cell["metadata"].get("tags", [])]


def test_the_promised_notebooks_exist():
    assert {path.name[:2] for path in NOTEBOOKS} >= PROMISED


@every
def test_the_title_is_a_question(path):
    first = read(path)["cells"][0]
    title = text(first).splitlines()[0]
    assert first["cell_type"] == "markdown"
    assert title.startswith("# ") and title.rstrip().endswith("?"), title


@every
def test_one_cell_holds_the_parameters_as_literals(path):
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    names = []
    for line in ast.parse(text(tagged[0])).body:
        assert isinstance(line, ast.Assign), ast.unparse(line)
        ast.literal_eval(line.value)
        names += [target.id for target in line.targets if isinstance(target, ast.Name)]
    assert {"preset", "seed"} <= set(names)
    assert "preset = 'quick'" in ast.unparse(ast.parse(text(tagged[0])))


@every
def test_each_parameter_has_a_comment(path):
    (tagged,) = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    source = text(tagged)
    comments = {
        token.start[0]
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for line in ast.parse(source).body:
        beside = comments & set(range(line.lineno, (line.end_lineno or line.lineno) + 1))
        assert beside or line.lineno - 1 in comments, ast.unparse(line)


@every
def test_at_least_half_of_the_cells_are_prose(path):
    assert len(cells(path, "markdown")) >= len(cells(path, "code"))


@every
def test_keyword_arguments_are_written_out(path):
    """A call shows what it passes. Options may be handed on by a function that takes any, and to an explainer, whose
    options differ from those of others; columns of a table may be many."""
    for cell in cells(path, "code"):
        tree = ast.parse(text(cell))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        handed_on = {node.args.kwarg.arg for node in functions if node.args.kwarg}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and not ast.unparse(node.func).endswith(".assign"):
                splats = {ast.unparse(word.value) for word in node.keywords if word.arg is None}
                assert {name for name in splats - handed_on if name.split(".")[-1] != "options"} == set(), ast.unparse(
                    node
                )


def test_every_size_of_a_full_run_is_a_parameter_of_its_notebook():
    sizes = yaml.safe_load((ROOT / "notebooks" / "sizes.yaml").read_text(encoding="utf-8"))
    assert set(sizes) == {"quick", "full"}
    for number, values in sizes["full"].items():
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        (tagged,) = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
        known = {name.id for line in ast.parse(text(tagged)).body for name in getattr(line, "targets", [])}
        assert set(values) <= known, path.stem


@every
def test_helpers_of_a_notebook_can_be_imported_where_it_runs(path):
    imported = set(
        re.findall(r"^from helpers(?:\.| import )(\w+)", "\n".join(map(text, cells(path, "code"))), re.MULTILINE)
    )
    assert imported <= {f"n{path.name[:2]}"}
    for name in imported:
        importlib.import_module(f"helpers.{name}")


@every
def test_three_exercises_have_folded_solutions_that_check_themselves(path):
    found = solutions(path)
    assert len(found) == 3
    for number, (question, solution) in enumerate(found, 1):
        assert re.search(rf"^\*\*{number}\. .+\*\* ", text(question), re.MULTILINE)
        assert solution["metadata"]["jupyter"] == {"outputs_hidden": True, "source_hidden": True}
        assert re.search(r"\bassert\b", text(solution))
        assert re.search(r"print\(|display\(", text(solution)) or solution["outputs"]
    assert "## Exercises" in text(found[0][0])


@every
def test_no_result_is_typed_into_the_prose(path):
    code = "".join(map(text, cells(path, "code"))) + HELPERS
    for cell in cells(path, "markdown"):
        prose = re.sub(r"arXiv \d{4}\.\d{4,5}|\d{4}\.\d{5}|`[^`]*`", "", text(cell))
        typed = set(re.findall(r"\d+\.\d{2,}", prose))  # a bound stands in the code, too; a result stands in its output
        assert {number for number in typed if number not in code} == set()


@every
def test_no_stored_table_is_cut_in_width(path):
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    tables = ["".join(output.get("data", {}).get("text/html", "")) for output in outputs]
    assert [cut for table in tables for cut in re.findall(r">([^<]+\.\.\.)</t[dh]>", table)] == []


@every
def test_outputs_are_stored_whole_and_without_errors(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]


@every
def test_nothing_is_stored_that_differs_between_machines(path):
    notebook = read(path)
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert all(set(cell["metadata"]) <= {"tags", "jupyter"} for cell in notebook["cells"])
    outputs = json.dumps([cell.get("outputs", []) for cell in notebook["cells"]])
    outputs = re.sub(r'"image/png": (\[[^]]*\]|"[^"]*")', '""', outputs)
    found = re.search(r"(?<![\w.~/])/(?:home|root|tmp|work|usr|opt|Users|mnt|workspace)/[\w.-]+|[A-Z]:\\\\", outputs)
    assert found is None, found and found.group(0)


@every
def test_no_output_that_is_compared_shows_an_error_of_rounding(path):
    """It differs between processors: a cell says that it is below a bound, or its output is not compared."""
    compared = [cell for cell in cells(path, "code") if "nbval-ignore-output" not in cell["metadata"].get("tags", [])]
    texts = [
        output.get("text", output.get("data", {}).get("text/plain", ""))
        for cell in compared
        for output in cell["outputs"]
    ]
    assert re.findall(r"\d(?:\.\d+)?e-(?:1[3-9]|[2-9]\d)\b", json.dumps(texts)) == []


@every
def test_a_cell_that_shows_a_published_figure_is_not_compared(path):
    """A stored notebook holds a link to it, a kernel the figure, and both change when a full run is published."""
    shown = [cell for cell in cells(path, "code") if ".published(" in text(cell)]
    assert all("nbval-ignore-output" in cell["metadata"].get("tags", []) for cell in shown)


@every
def test_a_check_of_a_solution_says_what_is_wrong(path):
    solutions = [text(cell) for cell in cells(path, "code") if "solution" in cell["metadata"].get("tags", [])]
    checks = [node for each in solutions for node in ast.walk(ast.parse(each)) if isinstance(node, ast.Assert)]
    assert checks
    assert [ast.unparse(check) for check in checks if check.msg is None] == []


@every
def test_the_notebook_is_small_enough_for_git(path):
    assert path.stat().st_size <= 300_000


@every
def test_the_closing_code_cell_shows_the_claims(path):
    calls = [cell for cell in cells(path, "code") if re.search(r"\.claims\(\)", text(cell))]
    assert len(calls) == 1
    assert calls[0] in cells(path, "code")[-2:]  # only the versions may follow
    assert "verdict" in json.dumps(calls[0]["outputs"])


@pytest.mark.slow
def test_helpers_can_be_imported_by_the_processes_that_share_a_notebooks_work():
    """A kernel runs in notebooks/; its workers are new processes, which get a helper's function by its name."""
    code = (
        "from joblib import Parallel, delayed\n"
        "from helpers.n10 import mean_scores\n"
        "print(*Parallel(n_jobs=2)(delayed(vars)(mean_scores) for _ in range(2)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "notebooks", capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0 and ran.stdout.strip() == "{} {}", ran.stderr
