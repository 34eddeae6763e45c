"""The page to print and the slides: numbers from the published tables, questions and figures from the notebooks."""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
import pandas as pd
from test_site import cell, check_links, make_project, notebook

from xuqlib.study.editions import lessons
from xuqlib.study.record import csv_bytes
from xuqlib.study.site import cheat_sheet, pages, slides

ROOT = Path(__file__).resolve().parents[2]
README = """# xuq

```python
from xuqlib import a
print("<b>", a)
```

1. A **thing** has one `method`.

### In 90 minutes

| from | notebook | read and run | exercises | minutes |
|---|---|---|---|---|
| 0:00 | | welcome | | 5 |
| 0:05 | 50 | *Two <i>* | 2 | 20 |
| 0:25 | 51 | all of it | | 10 |
"""
PICTURE = nbformat.v4.new_output("display_data", {"image/png": "aGVsbG8="})


def ranks() -> pd.DataFrame:
    rows = [("deep_ensemble", 1, True), ("laplace", 3, True), ("flipout", 2, False)]
    frame = pd.DataFrame(rows, columns=["posterior", "rank", "tied"]).assign(criterion="nll", size="usual", dataset="a")
    other = frame.assign(dataset="b", rank=[2, 1, 3], tied=[True, False, False])
    return pd.concat([frame, other, other.assign(criterion="ece", rank=9), other.assign(size="equal", rank=9)])


def test_the_posterior_that_is_advised_is_the_first_by_mean_rank_of_the_published_table():
    text = cheat_sheet.which_posterior(ranks())
    assert "<b>deep ensemble</b>, with a mean rank of 1.5 over 2 data sets" in text
    assert "one trained network: <b>laplace</b> (2.0)" in text
    rows = re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td><td>([^<]*)</td>', text)
    assert rows == [("deep ensemble", "1.5", "2 of 2"), ("laplace", "2.0", "1 of 2"), ("flipout", "2.5", "0 of 2")]
    turned = ranks().replace({"deep_ensemble": "flipout", "flipout": "deep_ensemble"})
    assert "<b>flipout</b>" in cheat_sheet.which_posterior(turned)


def test_the_explainer_and_the_number_of_draws_follow_from_the_published_tables():
    rows = [("a", "x", "cv_ratio", 0.5), ("a", "y", "cv_ratio", 0.25), ("a", "x", "deletion_blurred_gain", 0.125)]
    rows += [("a", "y", "deletion_blurred_gain", -0.5), ("table", "y", "cv_ratio", 9.0)]
    grid = pd.DataFrame(rows, columns=["dataset", "explainer", "measure", "value"])
    seconds = pd.DataFrame({"dataset": "a", "explainer": ["x", "y"], "seconds": [2.0, 0.5]})
    text = cheat_sheet.which_explainer(grid, seconds)
    assert "Steadiest: <b>y</b>. Marks the pixels that deletion needs best: <b>x</b>." in text
    assert '<th scope="row">x</th><td>0.50</td><td>+0.125</td><td>4.0 times</td>' in text
    means = pd.DataFrame({"line": "measured", "draws": [5, 10, 25], "distance": [0.06, 0.05, 0.02]})
    spreads = pd.DataFrame({"curve": ["a", "b", "a", "1/sqrt"], "draws": [8, 16, 16, 4], "error": [0.3, 0.2, 0.1, 0.1]})
    text = cheat_sheet.how_many_draws(means, spreads)
    assert "at most 5%: <b>10 draws</b>; Map of the spread off by at most 20%: <b>16 draws</b>" in text
    far = cheat_sheet.how_many_draws(means.assign(distance=1.0), spreads.assign(error=1.0))
    assert far.count("more draws than were measured") == 2


def test_the_page_to_print_holds_the_readmes_lines_and_leaves_out_what_is_not_published(tmp_path):
    (tmp_path / "17_ranks.csv").write_bytes(csv_bytes(ranks()))
    text = cheat_sheet.cheat_sheet_body(README, tmp_path)
    assert (
        "from xuqlib import a\nprint(&quot;&lt;b&gt;&quot;, a)</code>" in text
        and "<li>A thing has one method.</li>" in text
    )
    assert "Which posterior?" in text and "Which explainer?" not in text and "How many draws?" not in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    own = cheat_sheet.cheat_sheet_body(readme, ROOT / "figures" / "full")
    lines = own.split("<code>")[1].split("</code>")[0].splitlines()
    tour = readme.split("```python\n")[1].split("```")[0].splitlines()
    assert [html.unescape(line) for line in lines] == tour and own.count("<li>") == 3
    assert own.count("<table>") == 3


def make_class(tmp_path: Path) -> Path:
    project = make_project(tmp_path)
    (project / "README.md").write_text(README)
    path = project / "notebooks" / "50_first.ipynb"
    content = nbformat.read(path, 4)
    prose = nbformat.v4.new_markdown_cell
    content.cells += [
        prose("## Two <i>\n\nThe `first` words.\nAnd more.\n\nNot these.\n\n*Predict:* why `so`?"),
        nbformat.v4.new_code_cell("1", outputs=[PICTURE, PICTURE]),
        prose("## Exercises\n\n**1. One.** No.\n\n**2. Find it.** *Where* is $x$?"),
    ]
    nbformat.write(content, path)
    return project


def test_slides_show_what_the_path_names_in_its_order(tmp_path):
    project = make_class(tmp_path)
    notebook(project / "notebooks" / "00_zero.ipynb", "Zero?", cell("1", plain="1"))  # one of the teacher's
    folder = pages.build(project, tmp_path / "site").parent
    check_links(folder)
    text = (folder / slides.PAGE).read_text()
    heads = re.findall(r"<h[12][^>]*>(.*?)</h[12]>", text)
    assert heads[1:4] == ["Why &amp; how?", "Two &lt;i&gt;", 'Exercise 2 of <a href="50_first.html">notebook 50</a>']
    assert heads[4:] == ["And then?", "More"] and "A class of 90 minutes." in text
    two = text.split("Two &lt;i&gt;</h2>")[1].split("</section>")[0]
    assert "<p>The first words. And more.</p>" in two and "Not these" not in two
    assert "<b>Predict:</b> Why so?" in two and two.count("<img") == 1
    assert 'src="data:image/png;base64,aGVsbG8="' in two and 'alt="Figure of the section: Two &lt;i&gt;"' in two
    assert "Find it. Where is x?" in text and "One. No." not in text
    assert f'href="{slides.PAGE}"' in (folder / "index.html").read_text()


def test_a_slide_ends_with_a_sentence():
    assert slides._sentences("One. Two? Three is long.", 12) == "One. Two?"
    assert slides._sentences("One. Two?", 9) == "One. Two?"
    assert slides._sentences("endless", 4) == "endl"


def test_without_a_path_there_are_no_slides(tmp_path):
    project = make_project(tmp_path)
    folder = pages.build(project, tmp_path / "site").parent
    assert not (folder / slides.PAGE).exists() and slides.PAGE not in (folder / "index.html").read_text()


def test_the_slides_of_this_project_show_every_section_that_its_path_names():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    notebooks = {path.stem[:2]: path for path in pages.readable(ROOT / "notebooks")}
    text = slides.slides_body(readme, notebooks)
    own = [lesson for lesson in lessons(readme) if lesson.path == slides.WHICH and lesson.notebook]
    named = [name for lesson in own for name in re.findall(r"\*([^*]+)\*", lesson.read)]
    assert len(named) > 8 and all(f"<h2>{pages.escaped(name)}</h2>" in text for name in named)
    assert text.count("<h2>Exercise ") == sum(len(re.findall(r"\d+", lesson.exercises)) for lesson in own)
    assert text.count("<img") > 10


def test_a_picture_of_a_solution_and_what_is_no_base64_are_not_on_a_slide():
    hidden = nbformat.v4.new_code_cell("1", outputs=[PICTURE], metadata={"tags": ["solution"]})
    odd = nbformat.v4.new_output("display_data", {"image/png": 'aGV"><script>'})
    shown = nbformat.v4.new_code_cell("1", outputs=[odd])
    (found,) = slides.sections([nbformat.v4.new_markdown_cell("## A"), cell("1"), hidden])
    assert found.picture == ""
    (found,) = slides.sections([nbformat.v4.new_markdown_cell("## A"), shown])
    assert found.picture == "aGVscript"
