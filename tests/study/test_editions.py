"""The student's and the teacher's edition: what they leave out, what they add, and that the student's runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient

import run_all
from xuqlib.study import editions, predictions, record
from xuqlib.study.predictions import predicted, prediction

ROOT = Path(__file__).resolve().parents[2]
HEAD = """# Why & how?

**What you need:** notebook 49 for the 12 ideas of it.
**How long:** half a minute on one core. With more, less."""
FIRST = """What stands here is prose.

## Files

*Predict:* how many files
will differ? And which? They are few.

More prose."""
README = """### In a day

| from | notebook | read and run | exercises | minutes |
|---|---|---|---|---|
| 0:00 | | welcome | | 5 |
| 0:05 | 50 | *Files* | 1, 2 | 20 |
| 1:00 | | | **2 in all** | **25** |

### In 90 minutes

| from | notebook | read and run | exercises | minutes |
|---|---|---|---|---|
| 0:10 | 50 | all of it | | 15 |
"""


def code(source: str, count: int, **metadata) -> nbformat.NotebookNode:
    output = nbformat.v4.new_output("stream", text=f"came out of {count}\n")
    return nbformat.v4.new_code_cell(source, execution_count=count, outputs=[output], metadata=metadata)


@pytest.fixture
def project(tmp_path):
    """Two notebooks; 50 imports a helper, and asks for two predictions, the second one in an exercise."""
    folder = tmp_path / "project" / "notebooks"
    (folder / "helpers" / "__pycache__").mkdir(parents=True)
    (folder / "helpers" / "__init__.py").touch()
    (folder / "helpers" / "n50.py").write_text("SEVEN = 7\n")
    (folder / "picture.png").write_bytes(b"png")
    (folder.parent / "README.md").write_text(README)
    prose = nbformat.v4.new_markdown_cell
    cells = [
        prose(HEAD),
        code('preset = "quick"', 1, tags=["parameters"]),
        prose(FIRST),
        prose("Look at the result."),
        code("from helpers.n50 import SEVEN\nSEVEN", 2),
        prose('That is that.\n\n## Exercises\n\n**1.** *Predict* the $\\tau_1$. It is "small".'),
        code("print(2)", 3, tags=["solution"], jupyter=editions.FOLDED),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "50_second.ipynb")
    cells = [prose("# And?"), code("preset = 1", 1, tags=["parameters"])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "49_first.ipynb")
    return folder.parent


def made(project: Path, edition: str, name: str = "50_second") -> nbformat.NotebookNode:
    assert run_all.main(["--project", str(project), "--class"]) == 0
    notebook = nbformat.read(project / "build" / "class" / edition / f"{name}.ipynb", 4)
    nbformat.validate(notebook)
    return notebook


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells]


def test_a_student_finds_a_box_before_each_answer_and_no_output(project):
    notebook = made(project, "student")
    found = texts(notebook)
    assert found[1] == HEAD and found[2] == editions.IMPORT
    place = found.index(FIRST)
    assert found[place + 1] == 'prediction(1, "How many files will differ? And which?")'
    assert found[place + 2 : place + 4] == ["Look at the result.", "from helpers.n50 import SEVEN\nSEVEN"]
    assert found[place + 4] == "print(predicted(1))"
    assert found[-3:] == ['prediction(2, "The $\\\\tau_1$.")', "%%solution\nprint(2)", "print(predicted(2))"]
    answers = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in answers)
    assert answers[-2].metadata == {"tags": ["solution"], "jupyter": editions.FOLDED}


def test_a_notebook_that_asks_nothing_gets_its_line_alone(project):
    assert texts(made(project, "student", "49_first"))[1:] == ["# And?", f"preset = 1\n\n{editions.OWN_FIGURES}"]


def test_a_teacher_finds_outputs_open_solutions_and_what_each_section_asks(project):
    stored = nbformat.read(project / "notebooks" / "50_second.ipynb", 4)
    notebook = made(project, "teacher")
    outputs = [[cell.outputs, cell.execution_count] for cell in notebook.cells if cell.cell_type == "code"]
    assert outputs == [[cell.outputs, cell.execution_count] for cell in stored.cells if cell.cell_type == "code"]
    assert notebook.cells[-1].metadata == {"tags": ["solution"]}
    asked = (
        "> **Asked in this section**\n>\n> - How many files will differ? And which? Answered by cell [2].\n\n## Files"
    )
    assert notebook.cells[3].source == FIRST.replace("## Files", asked)
    assert "> - The $\\tau_1$. Answered by cell [3].\n\n## Exercises" in notebook.cells[-2].source
    assert notebook.cells[0].source.splitlines()[1:] == [
        "",
        "- In a day, from 0:05, 20 minutes: *Files*; exercises 1, 2",
        "- In 90 minutes, from 0:10, 15 minutes: all of it",
    ]


def test_a_teachers_copy_shows_published_figures_from_where_they_are(project):
    path = project / "notebooks" / "49_first.ipynb"
    notebook = nbformat.read(path, 4)
    data = {"text/markdown": "".join(run_all.link("49_maps.png", "Both agree"))}
    notebook.cells[-1].outputs = [nbformat.v4.new_output("display_data", data)]
    nbformat.write(notebook, path)
    (output,) = made(project, "teacher", "49_first").cells[-1].outputs
    (address,) = set(re.findall(r"\]\(([^)]+)\)", output["data"]["text/markdown"].replace("[!", "")))
    assert (project / "build/class/teacher" / address).resolve() == project / "figures" / "full" / "49_maps.png"


def test_a_question_before_the_first_section_is_told_at_the_top():
    cells = [editions._cell("markdown", "a", "*Predict:* why?\n\n*Predict first:* how?\n\n## Later")]
    top, same = editions.teacher(cells, "line", [])
    assert "".join(top["source"]) == "line\n\n> **Asked in this section**\n>\n> - Why? \n> - How? \n\n"
    assert "".join(same["source"]) == "".join(cells[0]["source"])


def test_the_first_line_says_which_notebook_it_is_how_long_it_takes_and_what_comes_before(project):
    line = "Notebook 50 · 2 of 2 · runs in half a minute on one core · 15 to 20 minutes in class · before it: "
    for edition in ("student", "teacher"):
        assert texts(made(project, edition))[0].splitlines()[0] == f"{line}[49](49_first.ipynb)"
    assert texts(made(project, "student", "49_first"))[0] == "Notebook 49 · 1 of 2 · before it: none"


def test_the_default_folder_is_emptied_first_and_any_other_only_added_to(project, tmp_path, capsys):
    for folder, left in ((project / "build" / "class", False), (tmp_path / "mine", True)):
        (folder / "student").mkdir(parents=True)
        (folder / "student" / "old.txt").touch()
        assert run_all.main(["--project", str(project), "--class", str(folder)]) == 0
        assert (folder / "student" / "old.txt").exists() == left
        for edition in ("student", "teacher"):
            assert (folder / edition / "helpers" / "n50.py").exists() and (folder / edition / "picture.png").exists()
            assert not (folder / edition / "helpers" / "__pycache__").exists()
    assert re.search("2 notebooks in .*mine/student and .*mine/teacher", capsys.readouterr().out)


def test_a_folder_that_would_be_copied_into_itself_is_refused(project, capsys):
    with pytest.raises(SystemExit):
        run_all.main(["--project", str(project), "--class", str(project / "notebooks" / "class")])
    assert "lies in notebooks/, which it copies; name a folder outside of it" in capsys.readouterr().err
    assert not (project / "notebooks" / "class").exists()


def test_a_damaged_notebook_is_named_and_the_others_are_written(project, capsys):
    (project / "notebooks" / "49_first.ipynb").write_text("{")
    assert run_all.main(["--project", str(project), "--class"]) == 1
    assert "49_first.ipynb is damaged" in capsys.readouterr().err
    assert [path.name for path in (project / "build" / "class" / "student").glob("*.ipynb")] == ["50_second.ipynb"]


def test_every_prediction_of_the_notebooks_is_found_and_has_an_answer(tmp_path):
    """And each row of the README's paths that names a notebook and its minutes."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = "".join("".join(cell["source"]) + "\n\n" for cell in cells if cell["cell_type"] == "markdown")
        student = ["".join(cell["source"]) for cell in editions.student(cells, "")]
        boxes = [text for text in student if text.startswith("prediction(")]
        assert len(boxes) == prose.count("*Predict") == sum(text.startswith("print(predicted(") for text in student)
        assert not re.findall(r"(?<!\*)\bPredict\b.*", prose)  # each has its box
        teacher = "".join("".join(cell["source"]) for cell in editions.teacher(cells, "", []))
        assert teacher.count("Answered by cell [") == len(boxes)
    plan = editions.lessons((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sum(int(row.minutes) for row in plan if row.path == "In 90 minutes") == 90 - 5
    assert {row.path for row in plan} == {"In 90 minutes", "In a day"}


def test_each_prediction_is_answered_before_the_next_section():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        open_questions: list[str] = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code" and cell["outputs"]:
                open_questions.clear()
            for _, mark in editions.marks(cell):
                assert mark or open_questions == [], path.name
                open_questions += [mark] if mark else []


def test_an_answer_is_the_next_cell_that_shows_something_with_those_right_below():
    def cell(shows):
        return {"cell_type": "code", "outputs": [{}] if shows else []}

    prose = {"cell_type": "markdown"}
    assert editions._answered_at([prose, cell(False), prose, cell(True), cell(True), prose, cell(True)], 0) == 4
    assert editions._answered_at([prose, cell(False), prose, cell(False)], 0) == 1  # never run
    assert editions._answered_at([cell(True), prose], 1) is None


def test_a_solution_runs_and_what_it_shows_is_folded(capsys):
    shell = InteractiveShell()
    predictions.load_ipython_extension(shell)
    told = shell.run_cell_magic("solution", "", "found = 2 < 3\nprint('1 < 2')").data
    assert shell.user_ns["found"] is True and capsys.readouterr().out == ""
    assert re.fullmatch(r"<details><summary>.+</summary><pre>1 &lt; 2\n</pre></details>", told)
    with pytest.raises(AssertionError):
        shell.run_cell_magic("solution", "", "assert not found")


def test_no_notebook_needs_a_file_outside_of_its_folder():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        prose = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
        found = re.findall(r"\]\((?!https?:|#)([^)]+)\)", "".join("".join(lines) for lines in prose))
        assert [link for link in found if not (path.parent / link).exists() or ".." in link] == []


def test_a_box_keeps_what_was_written_and_an_empty_one_predicts_nothing(monkeypatch):
    monkeypatch.setattr(predictions, "WRITTEN", {})
    assert predicted(1) == "nothing was predicted"
    box = prediction(1, "How many?")
    assert (box.value, box.placeholder, box.description) == ("", "How many?", "I predict:")
    assert predicted(1) == "nothing was predicted"
    box.value = "  seven,\nor eight "
    assert predicted(1) == "You predicted: seven, or eight   (above: what came out)"
    assert prediction(1, "How many?").value == box.value
    assert predicted(2) == "nothing was predicted"
    box.value = " "
    assert predicted(1) == "nothing was predicted"


@pytest.mark.parametrize("edition", ["student", "teacher"])
def test_a_copy_publishes_into_its_own_folder_unless_told_otherwise(project, edition, monkeypatch):
    (cell,) = [cell for cell in made(project, edition).cells if "parameters" in cell.metadata.get("tags", [])]
    folder = project / "build" / "class" / edition
    monkeypatch.chdir(folder)
    for given, found in (("", Path("figures")), ("elsewhere", Path("elsewhere"))):
        monkeypatch.delenv("XUQ_FIGURES")
        if given:
            monkeypatch.setenv("XUQ_FIGURES", given)
        assert not isinstance(ast.parse(cell.source).body[-1], ast.Expr)  # it shows nothing
        exec(cell.source, {})
        assert record.figures_folder("quick") == found / "quick"
    stored = nbformat.read(project / "notebooks" / "50_second.ipynb", 4)
    assert "XUQ_FIGURES" not in "".join(texts(stored))


@pytest.mark.slow
def test_a_student_edition_runs_in_a_fresh_kernel_from_its_folder(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # and no helpers of ours
    notebook = made(project, "student")
    place = texts(notebook).index('prediction(2, "The $\\\\tau_1$.")')
    notebook.cells[place].source += '.value = "tiny"'  # as if it was typed into the box
    folder = project / "build" / "class" / "student"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    told = [cell.outputs[0].text for cell in notebook.cells if cell.source.startswith("print(predicted(")]
    assert told == ["nothing was predicted\n", "You predicted: tiny   (above: what came out)\n"]
    (box,) = [cell for cell in notebook.cells if cell.source.startswith("prediction(1")]
    assert run_all.WIDGET in box.outputs[0].data
