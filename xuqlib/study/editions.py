"""A student's and a teacher's edition of the notebooks, made of what is stored: no kernel is needed.

The student's has no outputs, folded solutions, and a box to write each prediction in before its answer is run. The
teacher's has all outputs, open solutions, and what each section asks. Both run from their own folders.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xuqlib.study.files import replace_file
from xuqlib.study.runs import read_notebook

Cell = dict[str, Any]
FOLDED = {"outputs_hidden": True, "source_hidden": True}  # a solution and its output, until the reader opens them
# The head of a section, or what follows "*Predict:*" up to the end of its paragraph.
MARK = re.compile(
    r"^## [^\n]*|\*Predict\b[^*]*\*[,:]?\s*(?P<asked>.+?)(?=\n\s*\n|\*Predict\b|\Z)", re.DOTALL | re.MULTILINE
)
IMPORT = "%load_ext xuqlib.study.predictions\n"  # %%solution
IMPORT += "from xuqlib.study.predictions import predicted, prediction  # a box for each prediction"
SOLUTION = "%%solution\n"  # its output stays folded when it runs: JupyterLab unfolds that of a cell
# Inside the project, what a copy publishes would replace what is published.
OWN_FIGURES = "import os\n\n# this copy publishes into its own folder\n"
OWN_FIGURES += 'os.environ["XUQ_FIGURES"] = os.environ.get("XUQ_FIGURES", "figures")'
PATH = re.compile(r"^### (In [^\n]+)\n+((?:\|[^\n]*\n)+)", re.MULTILINE)  # a path through the notebooks, in the README
NOT_COPIED = ("*.ipynb", "*.toml", "__pycache__", ".*")


class Lesson(NamedTuple):
    """A row of one of the README's paths through the notebooks."""

    path: str  # "In a day"
    start: str  # "0:35"
    notebook: str  # "04", or nothing
    read: str  # sections, as Markdown
    exercises: str
    minutes: str


def build(project: Path, notebooks: Sequence[Path], folder: Path) -> None:
    """Write the editions of these notebooks into `student/` and `teacher/` of a folder, beside copies of what they use.

    Files of the same name are replaced.

    Args:
        project: holds notebooks/ and, if there is one, the README with its paths and minutes.
        notebooks: those of the project that can be read, in their order.
        folder: outside of notebooks/.
    """
    readme = project / "README.md"
    plan = lessons(readme.read_text(encoding="utf-8")) if readme.exists() else []
    for edition in ("student", "teacher"):
        ignored = shutil.ignore_patterns(*NOT_COPIED)
        shutil.copytree(project / "notebooks", folder / edition, ignore=ignored, dirs_exist_ok=True)
    for path in notebooks:
        notebook, own = read_notebook(path), [lesson for lesson in plan if lesson.notebook == path.stem[:2]]
        line = progress(path, notebooks, _text(notebook["cells"][0]), own)
        _write(folder / "student" / path.name, project, notebook, student(notebook["cells"], line))
        _write(folder / "teacher" / path.name, project, notebook, teacher(notebook["cells"], line, own))


def _write(path: Path, project: Path, notebook: Mapping[str, Any], cells: Sequence[Cell]) -> None:
    content = json.dumps(
        {**notebook, "cells": [_own(cell) for cell in cells]}, indent=1, ensure_ascii=False, sort_keys=True
    )
    published = os.path.relpath(project / "figures" / "full", path.parent).replace(os.sep, "/")
    content = content.replace("(../figures/full/", f"({published}/")  # as a stored notebook links to a figure
    replace_file(path, f"{content}\n".encode())


def _own(cell: Cell) -> Cell:
    """A cell; the one with the parameters also says where this copy's figures go, unless $XUQ_FIGURES does."""
    if "parameters" not in cell["metadata"].get("tags", []):
        return cell
    return {**cell, "source": f"{_text(cell)}\n\n{OWN_FIGURES}".splitlines(keepends=True)}


def lessons(readme: str) -> list[Lesson]:
    """The rows of the README's paths that are about a notebook and say how many minutes it takes."""
    found = []
    for name, table in PATH.findall(readme):
        for row in table.splitlines():
            columns = [column.strip() for column in row.strip("|").split("|")]
            if len(columns) == 5 and columns[4].isdigit() and columns[1]:
                found.append(Lesson(name, *columns))
    return found


def progress(path: Path, notebooks: Sequence[Path], head: str, own: Sequence[Lesson]) -> str:
    """One line: which notebook this is, how long it takes where that is stated, and which ones come before it.

    Args:
        path: the notebook.
        notebooks: all of them, in their order.
        head: text of its first cell, which may say "**How long:**" and "**What you need:**".
        own: the lessons about it.
    """
    parts = [f"Notebook {path.stem[:2]}", f"{[*notebooks].index(path) + 1} of {len(notebooks)}"]
    if runs := re.search(r"\*\*How long:\*\*\s*([^.,;:\n]+)", head):
        parts.append(f"runs in {runs[1]}")
    if minutes := sorted({int(lesson.minutes) for lesson in own}):
        least, most = minutes[0], minutes[-1]
        parts.append(f"{least if least == most else f'{least} to {most}'} minutes in class")
    needs = re.search(r"\*\*What you need:\*\*.*", head)
    numbers = re.findall(r"\b\d\d\b", needs[0]) if needs else []
    before = [other for other in notebooks if other.stem[:2] in numbers and other != path]
    links = ", ".join(f"[{other.stem[:2]}]({other.name})" for other in before)
    return " · ".join([*parts, f"before it: {links or 'none'}"])


def student(cells: Sequence[Cell], line: str) -> list[Cell]:
    """The cells of the student's edition: what came out is left out, and each prediction has a box.

    Args:
        cells: of the stored notebook.
        line: its progress, for the top.
    """
    made, waiting, number = [_cell("markdown", "edition-line", line)], dict[int, list[int]](), 0
    for index, cell in enumerate(cells):
        made.append(dict(cell))
        for asked in [mark for _, mark in marks(cell) if mark]:
            number += 1
            if (place := _answered_at(cells, index)) is not None:
                waiting.setdefault(place, []).append(number)
            box = f"prediction({number}, {json.dumps(asked, ensure_ascii=False)})"
            made.append(_cell("code", f"edition-box-{number}", box))
        if cell["cell_type"] == "code":
            made[-1].update(execution_count=None, outputs=[])
            if "solution" in cell["metadata"].get("tags", []):
                made[-1]["metadata"] = {**cell["metadata"], "jupyter": dict(FOLDED)}
                made[-1]["source"] = f"{SOLUTION}{_text(cell)}".splitlines(keepends=True)
            answered = waiting.get(index, [])
            made += [_cell("code", f"edition-answer-{each}", f"print(predicted({each}))") for each in answered]
    if number or any("solution" in cell["metadata"].get("tags", []) for cell in cells):
        made.insert(2, _cell("code", "edition-import", IMPORT))  # below the title
    return made


def teacher(cells: Sequence[Cell], line: str, own: Sequence[Lesson]) -> list[Cell]:
    """The cells of the teacher's edition: outputs as stored, solutions open, and what each section asks in front of it.

    Args:
        cells: of the stored notebook.
        line: its progress, for the top.
        own: the lessons about it, each of which is told below that line.
    """
    made, place = [dict(cell) for cell in cells], (-1, 0)
    asked: dict[tuple[int, int], list[str]] = {}
    for index, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            made[index]["metadata"] = {name: value for name, value in cell["metadata"].items() if name != "jupyter"}
        for offset, mark in marks(cell):
            if mark is None:
                place = (index, offset)
            else:
                asked.setdefault(place, []).append(f"> - {mark} {_answer(cells, index)}\n")
    top = f"{line}\n" + "".join(f"- {_told(lesson)}\n" for lesson in own)
    for (index, offset), questions in reversed(asked.items()):
        note = f"> **Asked in this section**\n>\n{''.join(questions)}\n"
        if index < 0:
            top = f"{top}\n{note}"
        else:
            text = _text(made[index])
            made[index]["source"] = f"{text[:offset]}{note}{text[offset:]}".splitlines(keepends=True)
    return [_cell("markdown", "edition-line", top.replace("\n- ", "\n\n- ", 1)), *made]


def marks(cell: Mapping[str, Any]) -> Iterator[tuple[int, str | None]]:
    """Where in a cell of prose sections begin (None) and predictions are asked for, with the question."""
    if cell["cell_type"] == "markdown":
        for found in MARK.finditer(_text(cell)):
            text = " ".join((found["asked"] or "").split())
            # Up to its last question mark; of a request, the first sentence.
            asked = text[: text.rfind("?") + 1] or re.split(r"(?<=\.)\s", text)[0]
            yield found.start(), f"{asked[:1].upper()}{asked[1:]}" or None


def _answered_at(cells: Sequence[Cell], index: int) -> int | None:
    """Which cell answers what is asked at `index`: the next one of code that shows something, with those right below.

    Where no stored cell does, it is the next one of code.
    """
    code = [place for place, cell in enumerate(cells) if place > index and cell["cell_type"] == "code"]
    place = next((each for each in code if cells[each].get("outputs")), min(code, default=None))
    while place is not None and place + 1 in code and cells[place + 1].get("outputs"):
        place += 1
    return place


def _answer(cells: Sequence[Cell], index: int) -> str:
    """Which cell answers what is asked at `index`, by the number beside it."""
    if (place := _answered_at(cells, index)) is None:
        return ""
    code = [each for each, cell in enumerate(cells) if cell["cell_type"] == "code"]
    return f"Answered by cell [{cells[place].get('execution_count') or code.index(place) + 1}]."


def _told(lesson: Lesson) -> str:
    exercises = f"; exercise{'s' * (',' in lesson.exercises)} {lesson.exercises}" if lesson.exercises else ""
    return f"{lesson.path}, from {lesson.start}, {lesson.minutes} minutes: {lesson.read}{exercises}"


def _text(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _cell(kind: str, name: str, text: str) -> Cell:
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": text.splitlines(keepends=True)}
    return {**cell, "execution_count": None, "outputs": []} if kind == "code" else cell
