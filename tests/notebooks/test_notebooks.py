"""Rules that every stored notebook keeps. That its cells run and its tables hold is nbval's part."""

from __future__ import annotations

import ast
import itertools
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROMISED = {
    "00",
    "01",
    "02",
    "03",
    "04",
    "05",
    "06",
    "07",
    "08",
    "09",
    "10",
    "11",
    "12",
    "13",
    "14",
    "15",
    "16",
    "17",
    "18",
}
LESSONS = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "xuqlib" / "lessons").glob("*.py")))
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


def code_lines(cell: dict[str, Any]) -> int:
    return len(text(cell).strip().splitlines())


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
def test_the_notebook_is_short_and_at_least_half_prose(path):
    code, prose, solved = cells(path, "code"), cells(path, "markdown"), solutions(path)
    assert 20 <= len(code) + len(prose) - 2 * len(solved) <= 35  # an exercise is its question and its solution
    assert len(prose) >= len(code)


@every
def test_three_exercises_have_folded_solutions_that_check_themselves(path):
    found = solutions(path)
    assert len(found) == 3
    for number, (question, solution) in enumerate(found, 1):
        assert re.search(rf"^\*\*{number}\. .+\*\* ", text(question), re.MULTILINE)
        assert solution["metadata"]["jupyter"] == {"source_hidden": True}
        assert re.search(r"\bassert\b", text(solution))
        assert re.search(r"print\(|display\(", text(solution)) or solution["outputs"]
    assert "## Exercises" in text(found[0][0])


@every
def test_there_are_four_words_of_prose_for_each_line_of_code(path):
    words = sum(len(text(cell).split()) for cell in cells(path, "markdown"))
    assert words >= 4 * sum(code_lines(cell) for cell in cells(path, "code"))


@every
def test_no_result_is_typed_into_the_prose(path):
    code = "".join(map(text, cells(path, "code"))) + LESSONS
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
def test_code_cells_are_small(path):
    lengths = [code_lines(cell) for cell in cells(path, "code")]
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 25


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
def test_the_notebook_is_small_enough_for_git(path):
    assert path.stat().st_size <= 300_000


@every
def test_the_closing_code_cell_shows_the_claims(path):
    calls = [cell for cell in cells(path, "code") if re.search(r"\.claims\(\)", text(cell))]
    assert len(calls) == 1
    assert calls[0] in cells(path, "code")[-2:]  # only the versions may follow
    assert "verdict" in json.dumps(calls[0]["outputs"])
