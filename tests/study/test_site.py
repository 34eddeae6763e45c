"""The static site: whole, offline, and true to what is stored and published."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch
import yaml

import run_all
from xuqlib.study import runs
from xuqlib.study.data.loading import load
from xuqlib.study.figures import choosers as widgets
from xuqlib.study.figures.charts import Picture
from xuqlib.study.files import update_index
from xuqlib.study.record import CLAIM_COLUMNS
from xuqlib.study.site import glossary, markup, pages, ready, sliders, verdict_page
from xuqlib.study.training.loading import train_or_load
from xuqlib.study.verdicts import FIGURES, gather, primary, read_chosen
from xuqlib.uncertainty import uncertainties

ROOT = Path(__file__).resolve().parents[2]
FRAME = pd.DataFrame({"posterior": ["a", "a", "b"], "statistic": ["cv", "entropy", "cv"], "value": [1, 2, 3]})
CHOOSER = runs.PLACEHOLDER
SENTENCES = {"0 0": "a: 1", "0 1": "a: 2", "1 0": "b: 3", "1 1": widgets.NO_RESULT}


def draw(rows, chosen):
    figure = Picture(figsize=(1, 1))
    figure.text(0, 0.5, str(rows["value"].iloc[0]))
    return figure, f"{chosen['posterior']}: {rows['value'].iloc[0]}"


def stills(**options) -> str:
    return widgets.stills(FRAME, ["posterior", "statistic"], draw, **options)


def shown(text: str) -> dict[str, list[str]]:
    return json.loads(re.search(r"<script[^>]*>(.*?)</script>", text, re.DOTALL).group(1))


def cell(source: str, *texts: str, plain: str = "VBox()"):
    outputs = [nbformat.v4.new_output("display_data", {"text/html": text}) for text in texts]
    outputs.append(nbformat.v4.new_output("display_data", {"text/plain": plain}))
    return nbformat.v4.new_code_cell(source, outputs=outputs)


def notebook(path: Path, title: str, *cells) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first = nbformat.v4.new_markdown_cell(f"# {title}\n\nIts mean is $\\bar p_i = \\frac{{1}}{{S}}$, `$5`.\n\n## More")
    nbformat.write(nbformat.v4.new_notebook(cells=[first, *cells]), path)
    return path


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


def make_project(tmp_path: Path, rows: int = 1) -> Path:
    """Two notebooks, one with a chooser; one figure, one table of as many claims.

    Their values fall from the first; every tenth fails.
    """
    notebook(tmp_path / "notebooks" / "50_first.ipynb", "Why & how?", cell("1 + 1", plain="2"))
    notebook(tmp_path / "notebooks" / "51_second.ipynb", "And then?", cell("explore(x)", plain=CHOOSER))
    full = tmp_path / "figures" / "full"
    full.mkdir(parents=True)
    draw(FRAME, {"posterior": "a"})[0].savefig(full / "50_bars.png")
    FRAME.to_csv(full / "50_bars.csv", index=False)
    told = ("arXiv", "95 % over examples", "claim", "above 0", "mean", "")
    claims = [
        (
            *("C1", f"<b> moves{f' {k}' * (k > 0)}", "cifar10", 0.5 - k, 0.25 - k, 0.75 - k, "nats", 20, 1),
            *("fails" if k % 10 == 9 else "holds", *told),
        )
        for k in range(rows)
    ]
    pd.DataFrame(claims, columns=list(CLAIM_COLUMNS)).to_csv(full / "50_claims.csv", index=False)
    recipe = {"notebook": "50", "dataset": "cifar10", "seed": 7}
    files = {"50_bars": ("50_bars.csv", "50_bars.png"), "50_claims": ("50_claims.csv",)}
    index = {
        stem: {**recipe, "files": {name: hashlib.sha256((full / name).read_bytes()).hexdigest() for name in names}}
        for stem, names in files.items()
    }
    update_index(full, {**index, "50_lost": {**recipe, "files": {"50_lost.csv": "digest"}}})
    (tmp_path / "README.md").write_text("# The question\n\n![A picture](figures/full/50_bars.png)\n\n## Start\n")
    return tmp_path


class Links(HTMLParser):
    """Collects every address that a page asks a browser to fetch or offers to follow."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, value) for name, value in attrs if name in ("href", "src", "srcset", "action")]
        self.ids |= {value for name, value in attrs if name == "id"}


def check_links(folder: Path) -> None:
    """Every address of every page is inside the page, or a file or an anchor of the site."""
    found = {path: Links(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html"))}
    for path, links in found.items():
        for tag, address in links.found:
            name, _, anchor = address.partition("#")
            if address.startswith("data:") or (tag == "a" and address.startswith(("http:", "https:"))):
                continue
            target = folder / name if name else path
            assert target.is_file(), f"{path.name}: {address[:80]}"
            assert not anchor or anchor in found[target].ids, f"{path.name}: {address[:80]}"
        assert not re.search(r"@import|url\(", path.read_text(encoding="utf-8"))


def test_every_link_leads_to_a_file_of_the_site_and_nothing_is_fetched_from_outside(project, tmp_path):
    first = pages.build(project, tmp_path / "site")
    assert first == tmp_path / "site" / "index.html"
    names = {path.name for path in first.parent.iterdir()}
    assert {"index.html", "gallery.html", "verdicts.html", "50_first.html", "51_second.html"} <= names
    check_links(first.parent)


def test_what_is_promised_is_a_page_of_its_own(project, tmp_path):
    (project / "tests").mkdir()
    (project / "tests" / "README.md").write_text(
        "# What is promised\n\n| promised | tested by |\n|---|---|\n| all | `a` |\n"
    )
    first = pages.build(project, tmp_path / "site")
    check_links(first.parent)
    assert 'href="promises.html"' in first.read_text()
    assert "<td>all</td>" in (first.parent / "promises.html").read_text()


def test_the_real_notebooks_translate_without_a_formula_left_over(tmp_path):
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        for each in pages.read_notebook(path)["cells"]:
            if each["cell_type"] == "markdown":
                text = pages.markdown("".join(each["source"]))
                prose = re.sub(r"<code>.*?</code>|<math.*?</math>", "", text, flags=re.DOTALL)
                assert not re.search(r"\$[^$]*\$|\\[a-z]+\{", prose), f"{path.name}: {prose[:400]}"
                assert not re.search(r"<code>[^<`]*\\[a-z]", text), f"{path.name}: {text[:400]}"


def test_formulas_become_mathml_and_code_with_a_dollar_stays_code():
    text = pages.markdown(r"The mean $\frac{a}{b}$, and `$5 and $6`." + "\n\n$$x^2$$\n")
    assert "<mfrac>" in text and 'display="inline"' in text
    assert "<msup>" in text and 'display="block"' in text
    assert "<code>$5 and $6</code>" in text


@pytest.mark.parametrize("tex", ["<a>_", r"\unknown{<a>}"])
def test_a_formula_that_cannot_be_translated_is_shown_as_code(tex):
    assert pages.formula(tex) == f"<code>{html.escape(tex)}</code>"


def test_a_page_has_its_title_its_neighbours_its_notebook_and_stored_outputs(project, tmp_path):
    folder = pages.build(project, tmp_path / "site").parent
    text = (folder / "51_second.html").read_text()
    assert "<title>And then?</title>" in text
    assert '<a href="50_first.html">← 50 Why &amp; how?</a>' in text
    assert "→" not in text.split("<h1")[0]
    assert (folder / "notebooks" / "51_second.ipynb").read_bytes() == (
        project / "notebooks" / "51_second.ipynb"
    ).read_bytes()
    assert '<span class="mi">1</span>' in (folder / "50_first.html").read_text()  # highlighted
    assert re.search(r"<pre [^>]*>2\n?</pre>", (folder / "50_first.html").read_text())


def test_a_solution_is_folded_with_its_output_and_no_other_cell_is(project, tmp_path):
    solution = cell("answer = 6 * 7", plain="forty-two")
    solution.metadata.update(tags=["solution", "nbval-ignore-output"], jupyter={"source_hidden": True})
    path = notebook(project / "notebooks" / "50_first.ipynb", "Why?", cell("2 < 3", plain="before"), solution)
    text = pages.notebook_body(path, path)
    assert text.count("<summary>Solution</summary>") == 1
    folded = text.split('<details class="solution"><summary>Solution</summary>')[1].split("</details>")[0]
    assert ">answer<" in folded and "forty-two" in folded
    assert "before" not in folded and "before" in text


def test_a_page_shows_a_published_figure_from_the_site_and_links_it_to_the_gallery(project, tmp_path):
    linked = cell("published")
    data = {"text/markdown": "".join(run_all.link("50_bars.png", "Both agree"))}
    linked.outputs = [nbformat.v4.new_output("display_data", data)]
    path = notebook(project / "notebooks" / "50_first.ipynb", "Why?", linked)
    text = pages.notebook_body(path, path)
    assert '<a href="gallery.html#full-50_bars"><img alt="Both agree" src="figures/full/50_bars.webp"/></a>' in text
    assert "../figures" not in text


def test_the_gallery_links_each_figure_to_its_page_its_numbers_and_its_recipe(project, tmp_path):
    folder = pages.build(project, tmp_path / "site").parent
    text = (folder / "gallery.html").read_text()
    card = text.split('id="full-50_bars"')[1].split("</figure>")[0]
    assert {address for _, address in Links(card).found} == {
        "figures/full/50_bars.webp",
        "figures/full/50_bars.csv",
        "50_first.html",
    }
    assert "&quot;seed&quot;: 7" in card
    assert "50_lost" not in text  # its file has gone
    assert (folder / "figures/full/50_bars.csv").read_bytes() == (project / "figures/full/50_bars.csv").read_bytes()
    assert text.index('id="full-50_bars"') < text.index('id="full-50_claims"')  # tables come last


def test_the_verdicts_show_value_interval_and_row_and_statements_are_escaped(project, tmp_path):
    folder = pages.build(project, tmp_path / "site").parent
    text = (folder / "verdicts.html").read_text()
    assert '<div class="holds"><b>cifar10</b> 1 holds</div>' in text
    claim = text.split("<tbody>")[1]
    for part in ("&lt;b&gt; moves", "0.5 nats", "0.25 to 0.75", 'href="figures/full/50_claims.csv">row 1<'):
        assert part in claim
    assert '<div class="holds">' in (folder / "index.html").read_text()


def test_without_a_full_run_the_site_says_what_makes_one(project, tmp_path):
    (project / "README.md").unlink()  # its picture is a full one
    shutil.rmtree(project / "figures")
    folder = pages.build(project, tmp_path / "site").parent
    assert "run_all.py --preset full" in (folder / "verdicts.html").read_text()
    assert "published nothing yet" in (folder / "gallery.html").read_text()
    check_links(folder)


def test_pictures_become_smaller_and_keep_every_pixel(project, tmp_path):
    import PIL.Image

    PIL.Image.effect_noise((200, 200), 50).convert("RGB").save(project / "figures" / "full" / "50_bars.png")
    folder = pages.build(project, tmp_path / "site").parent
    published, shown = project / "figures" / "full" / "50_bars.png", folder / "figures" / "full" / "50_bars.webp"
    assert shown.stat().st_size < published.stat().st_size
    with PIL.Image.open(shown) as small, PIL.Image.open(published) as large:
        assert small.convert("RGB").tobytes() == large.convert("RGB").tobytes()


def test_stills_show_every_combination():
    found = shown(stills())
    assert {key: sentence for key, (_, sentence) in found.items()} == SENTENCES
    assert found["1 1"][0] == ""
    assert len({picture for picture, _ in found.values()}) == 4
    assert all(picture.startswith("data:image/png;base64,") for key, (picture, _) in found.items() if key != "1 1")


def test_a_slider_is_a_range_whose_places_are_the_keys_and_whose_stops_are_the_values():
    text = widgets.stills(FRAME, ["posterior", "value"], draw, sliders=["value"])
    slider = re.search(r"<input type=\"range\"[^>]*>", text).group(0)
    assert 'min="0" max="2" value="0" aria-label="value"' in slider
    assert json.loads(html.unescape(re.search(r'data-stops="([^"]*)"', slider).group(1))) == ["1", "2", "3"]
    assert "<output>1</output>" in text
    assert text.count('type="radio"') == 2
    assert {key: found for key, (_, found) in shown(text).items() if found != widgets.NO_RESULT} == {
        "0 0": "a: 1",
        "0 1": "a: 2",
        "1 2": "b: 3",
    }


def test_too_many_combinations_are_cut_and_said_to_be():
    assert "combinations" not in stills()
    text = stills(most=2)
    assert "2 of 4 combinations" in text
    assert len(shown(text)) == 2


def test_explore_shows_stills_only_when_asked(monkeypatch):
    displayed = []
    monkeypatch.setattr(widgets, "display", displayed.append)
    widgets.explore(FRAME, ["posterior"], draw)
    assert not displayed
    monkeypatch.setenv("XUQ_STILLS", "1")
    widgets.explore(FRAME, ["posterior"], draw)
    assert 'class="chooser"' in displayed[0].data


def test_a_widget_becomes_the_stills_of_the_executed_copy_and_all_else_stays_as_stored(project, tmp_path):
    path = project / "notebooks" / "51_second.ipynb"
    injected = nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["injected-parameters"]})
    copies = tmp_path / "copies"
    notebook(copies / path.name, "Another text?", injected, cell("explore(x)", stills()))
    text = (pages.build(project, tmp_path / "site", copies).parent / path.name).with_suffix(".html").read_text()
    assert {key: sentence for key, (_, sentence) in shown(text).items()} == SENTENCES
    assert "And then?" in text and "Another text?" not in text
    assert CHOOSER not in text


def test_a_widget_without_stills_says_that_it_needs_a_kernel(project, tmp_path):
    folder = pages.build(project, tmp_path / "site").parent
    text = (folder / "51_second.html").read_text()
    assert "need a kernel" in text
    assert CHOOSER not in text


def test_a_copy_of_another_version_is_refused(project):
    stored = pages.read_notebook(project / "notebooks" / "51_second.ipynb")
    other = pages.read_notebook(project / "notebooks" / "50_first.ipynb")
    with pytest.raises(ValueError, match="another version"):
        pages.with_choosers(stored, other)


def test_run_all_builds_the_site_and_draws_only_what_has_a_chooser(project, tmp_path, monkeypatch, capsys):
    for path in sorted((project / "notebooks").glob("*.ipynb")):
        content = nbformat.read(path, 4)
        content.cells.insert(1, nbformat.v4.new_code_cell("seed = 0\npreset = 'quick'"))
        content.cells[1].metadata["tags"] = ["parameters"]
        nbformat.write(content, path)
    ran = []

    def run(job, force):
        ran.append((job.name, job.figures))
        job.copies.mkdir(parents=True, exist_ok=True)
        content = nbformat.read(job.source, 4)
        content.cells[-1] = cell("explore(x)", stills())
        nbformat.write(content, job.path(".ipynb"))
        return "ran", 0.0

    monkeypatch.setattr(run_all, "run", run)
    monkeypatch.setattr(run_all.os, "environ", dict(run_all.os.environ))
    assert run_all.main(["--project", str(project), "--site", str(tmp_path / "mine"), "--jobs", "1"]) == 0
    assert ran == [("51_second", project / "build" / "stills" / "figures" / "quick")]
    assert run_all.os.environ["XUQ_STILLS"] == "1"
    assert 'class="chooser"' in (tmp_path / "mine" / "51_second.html").read_text()
    assert re.search(r"site of \d+ MB; open .*index.html", capsys.readouterr().out)


@pytest.mark.parametrize(("arguments", "folder"), [([], "build/site"), (["there"], "there")])
def test_the_site_goes_to_build_unless_told_otherwise(project, arguments, folder):
    site = run_all.parse(["--project", str(project), "--site", *arguments]).site
    assert site == (project / folder if not arguments else Path(folder))


def test_the_default_folder_is_emptied_first_and_any_other_only_added_to(project, tmp_path, monkeypatch):
    monkeypatch.setattr(run_all, "choose", lambda *_: [])  # nothing to draw
    for folder, left in ((project / "build" / "site", False), (tmp_path / "mine", True)):
        folder.mkdir(parents=True)
        (folder / "old.txt").write_text("old")
        assert run_all.main(["--project", str(project), "--site", str(folder)]) == 0
        assert (folder / "index.html").exists()
        assert (folder / "old.txt").exists() == left


def test_damaged_notebooks_and_recipes_are_left_out_and_the_others_shown(project, tmp_path):
    (project / "notebooks" / "52_third.ipynb").write_text('{"cells": [')
    index = project / "figures" / "full" / "index.json"
    index.write_text(index.read_text().replace('"seed": 7', '"seed": 8', 1))
    pages.build(project, tmp_path / "site")
    assert (tmp_path / "site" / "51_second.html").exists() and not (tmp_path / "site" / "52_third.html").exists()
    assert [stem for _, stem in pages.published(project / "figures")] == ["50_claims"]
    index.write_text("[]")
    assert pages.published(project / "figures") == {}


def choose(project: Path, **entries: list[str]) -> Path:
    """Name the row of the project's claims as the one that decides each claim, on these data sets."""
    told = {"source": "this study", "notebook": "50", "row": "<b> moves", "measure": "above 0 & so on"}
    told |= {"unit": "images", "smallest": 0.1}
    path = project / "notebooks" / "claims.yaml"
    path.write_text(
        yaml.safe_dump({name: {**told, "says": f"{name} <moves>", "datasets": sets} for name, sets in entries.items()})
    )
    return path


def decided(project: Path, **entries: list[str]) -> pd.DataFrame:
    return primary(gather(project / "figures" / "full"), read_chosen(choose(project, **entries)))


def test_each_claim_has_one_row_per_data_set_with_its_number(project, tmp_path):
    choose(project, C1=["cifar10", "mnist"])
    text = (pages.build(project, tmp_path / "site").parent / "verdicts.html").read_text()
    table = text.split('class="primary"')[1].split("</table>")[0]
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    claim = "<b>C1</b>: C1 &lt;moves&gt;<br><small>above 0 &amp; so on</small>"
    assert [row[:2] for row in cells] == [[claim, "cifar10"], [claim, "mnist"]]
    assert cells[0][2:6] == ["0.5 nats", "0.25 to 0.75", "below 0.001", "holds"]
    assert cells[1][2:6] == ["", "", "", "not measured"]
    assert text.index('class="primary"') < text.index('class="claims sortable"')


def test_each_claim_has_an_anchor_and_what_it_can_be_filtered_and_sorted_by(project, tmp_path):
    text = (pages.build(project, tmp_path / "site").parent / "verdicts.html").read_text()
    row = text.split('<tr id="50-1" ')[1].split("</tr>")[0]
    assert row.startswith('data-verdict="holds" data-data="cifar10" data-notebook="50">')
    assert '<a href="#50-1">50-1</a>' in row and '<td data-order="0.5">0.5 nats</td><td data-order="0.25">' in row
    for name, value in (("verdict", "undecided"), ("data", "cifar10"), ("notebook", "50")):
        options = text.split(f'<select data-name="{name}">')[1].split("</select>")[0]
        assert f'<option value="{value}">' in options
    assert "hidden" not in row  # without a script, everything is seen
    assert 'data-items="claims" hidden>' in text  # and nothing that does not work


def told(project: Path, rows: pd.DataFrame, claims: pd.DataFrame | None = None, **options) -> str:
    claims = gather(project / "figures" / "full") if claims is None else claims
    entry = next(iter(read_chosen(project / "notebooks" / "claims.yaml").values()))
    return verdict_page.findings(rows, claims, dict.fromkeys(rows["claim"], entry), **options)


def test_what_was_found_is_said_from_the_rows_and_what_is_undecided_is_not(project):
    rows = decided(project, C1=["cifar10"], C2=["mnist"])
    text = told(project, rows)
    assert (
        '<b class="holds">holds</b>, on cifar10: C1 &lt;moves&gt;. <small>Measured: 0.5 nats (0.25 to 0.75), ' in text
    )
    assert "n = 20, 1 training (above 0 &amp; so on)." in text and 'href="gallery.html#50"' in text
    assert "chosen before the run: 2 (1 holds, 1 not measured)." in text
    assert "C2" not in text and "*" not in text and "star" not in text
    fails = rows.assign(value=-0.5, verdict=["fails", "not measured"], why=["the opposite", ""])
    assert "fails</b>, the opposite, on cifar10" in told(project, fails)
    figures = {("full", "04_against_integrated_gradients")}
    assert 'href="gallery.html#full-04_against_integrated_gradients"' in told(project, rows, figures=figures)


def test_a_number_of_an_earlier_full_run_is_told_by_its_own_verdict_and_marked(project):
    rows = decided(project, C1=["cifar10"])
    earlier = gather(project / "figures" / "full").assign(test="", verdict="fails", value=-0.25, seeds=3)
    rows = rows.assign(verdict="not measured", value=float("nan"))
    text = told(project, rows, earlier)
    assert '<b class="fails">fails*</b>, on cifar10: C1 &lt;moves&gt;.' in text
    assert "Measured: -0.25 nats" in text and "3 trainings" in text and "A star marks" in text
    assert "<li>" not in told(project, rows, earlier.assign(verdict="undecided"))
    assert "<li>" not in told(project, rows, earlier.assign(dataset="mnist"))


def test_the_figures_that_findings_lead_to_are_published():
    entries = pages.published(ROOT / "figures")
    measured = {stem[:2] for preset, stem in entries if preset == "full"}  # a finding of any other is none yet
    assert {stem for stem in FIGURES.values() if stem[:2] in measured and ("full", stem) not in entries} == set()
    assert len(measured) > 20
    names = {name.split(" ")[0] for name in read_chosen(ROOT / "notebooks" / "claims.yaml")}
    assert names == set(FIGURES)


def test_of_many_findings_each_claim_is_told_once_before_any_is_told_twice(project):
    (one,) = decided(project, C1=["cifar10"]).to_dict("records")
    rows = pd.DataFrame([{**one, "claim": name, "dataset": str(k)} for name in "ab" for k in range(8)])
    text = told(project, rows, most=3)
    assert re.findall("on ([0-9]):", text) == ["0", "1", "0"]
    assert "none" not in text and text.count("<li>") == 3
    earlier = gather(project / "figures" / "full").assign(test="", verdict="fails")
    mixed = pd.DataFrame([{**one, "claim": "a", "verdict": "not measured"}, {**one, "claim": "b"}])
    assert '<b class="holds">holds</b>' in told(project, mixed, earlier, most=1)  # what is adjusted comes first
    assert told(project, mixed, earlier).index("fails*") < told(project, mixed, earlier).index("holds</b>")


def test_what_was_made_ready_is_in_the_site_and_its_report_is_linked_for_the_engineer(project, tmp_path):
    notebook(project / "notebooks" / "15_yours.ipynb", "Yours?", cell("1 + 1", plain="2"))
    ready = tmp_path / "ready"
    ready.mkdir()
    for name in (*pages.REPORT, pages.SLIDERS):
        (ready / name).write_text(f"<p>{name}</p>")
    folder = pages.build(project, tmp_path / "site", ready=ready).parent
    check_links(folder)
    text = (folder / "index.html").read_text()
    assert re.search(r'<b>An engineer</b>((?!class="way").)*href="report.html"', text)
    assert "<p>sliders.html</p>" in text and (folder / "report.json").exists()
    assert "report.html" not in (pages.build(project, tmp_path / "bare").parent / "index.html").read_text()


def test_what_was_made_ready_is_used_again_unless_it_depends_on_something_else(tmp_path, monkeypatch):
    made = []

    def write(_network, _examples, *, out, **_options):
        made.append(out)
        for name in pages.REPORT:
            out.with_name(name).write_text("report")

    monkeypatch.setattr(ready, "report", write)
    monkeypatch.setattr(ready, "sliders", lambda: "sliders")
    folder = tmp_path / "ready"
    assert ready.make_ready(folder, "a") and not ready.make_ready(folder, "a")
    (folder / pages.REPORT[1]).unlink()
    assert ready.make_ready(folder, "a") and ready.make_ready(folder, "b") and len(made) == 3
    monkeypatch.setattr(ready, "sliders", lambda: 1 / 0)  # a run that is stopped in the middle
    with pytest.raises(ZeroDivisionError):
        ready.make_ready(folder, "c")
    assert not ready.is_ready(folder, "b") and not ready.is_ready(folder, "c")


def test_the_sliders_are_of_what_a_plain_loop_finds():
    posterior, examples = train_or_load("mc_dropout", "digits", seed=0), load("digits", num_examples=1, seed=0)
    draws, x = posterior.sample(50, seed=0), examples.x
    target = draws(x).softmax(-1).mean(0).argmax(1)
    mean = torch.arange(64.0).reshape(8, 8)  # the last pixels first
    stops = sliders.of_deletion(draws, x, target, mean, 0)
    half = x.clone()
    half.view(-1)[32:] = 0
    probability = torch.stack([draw(half).softmax(-1)[0, target[0]] for draw in draws]).mean()
    assert stops[8].name == "50%" and f"their answer {probability:.0%};" in stops[8].sentence
    maps = torch.stack([torch.full((8, 8), float(k % 2)) for k in range(50)])  # means 0, 1/2, 1/3, ... of 1/2
    assert [stop.sentence for stop in sliders.of_draws(maps)][:3] == [
        f"The mean of {k} draw{'s' * (k > 1)} is {away} away from that of all 50."
        for k, away in ((1, "100%"), (2, "0%"), (3, "33%"))
    ]
    total = uncertainties(draws, x).total.item()
    sentences = [stop.sentence for stop in sliders.of_temperature(draws, x)]
    assert all(sentence.endswith(f"all of it is {total:.2f} nats.") for sentence in sentences)
    shares = [int(re.search(r"lies on (\d+)%", sentence)[1]) for sentence in sentences]
    assert shares == sorted(shares, reverse=True) and shares[0] > 40 and shares[-1] < 20


def test_without_a_measured_number_the_front_page_says_so(project, tmp_path):
    choose(project, C1=["mnist"])
    text = (pages.build(project, tmp_path / "site").parent / "index.html").read_text()
    assert "chosen before the run: 1 (1 not measured)." in text


def test_ways_in_name_the_notebooks_that_are_here(project, tmp_path):
    notebook(project / "notebooks" / "00_start.ipynb", "Begin <here>?")
    text = (pages.build(project, tmp_path / "site").parent / "index.html").read_text()
    ways = re.findall('<b>(A \\w+)</b>.*?<ol class="path">(.*?)</ol>', text)
    link = '<li><a href="00_start.html">00 Begin &lt;here&gt;?</a></li>'
    assert ways == [("A student", link), ("A teacher", link)]
    assert {number for _, numbers in pages.PATHS.values() for number in numbers} <= {
        path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")
    }


def test_a_figure_is_described_by_its_title_where_its_recipe_has_one():
    recipe = {"dataset": "cifar10", "files": {"50_bars.png": ""}}
    path = ROOT / "notebooks" / "00_one_image_thirty_explanations.ipynb"
    plain = pages._card("full", "50_bars", recipe, path)
    titled = pages._card("full", "50_bars", {**recipe, "title": 'It "moves"'}, path)
    assert 'alt="bars: full run, cifar10"' in plain
    assert 'alt="It &quot;moves&quot; (bars: full run, cifar10)"' in titled


def test_a_page_is_reached_by_keyboard_and_has_one_h1():
    text = pages.page("t", "<h1>One</h1><h1 id='b'>Two</h1><div class='highlight'><pre>x</pre></div><table></table>")
    assert text.index('<a class="skip" href="#to-main">') < text.index("<nav") < text.index('<main id="to-main"')
    assert '<html lang="en">' in text
    assert "<h1>One</h1><h2 id='b'>Two</h2>" in text
    assert '<pre role="region" tabindex="0" aria-label="Two: code">x</pre>' in text
    assert '<div class="wide" role="region" tabindex="0" aria-label="Two: table"><table></table></div>' in text
    assert 'aria-label="link to this heading" class="anchor-link" href="#two"' in pages.page("t", markup.heading("Two"))


def test_every_page_has_one_h1_and_no_heading_without_an_anchor(project, tmp_path):
    for path in pages.build(project, tmp_path / "site").parent.glob("*.html"):
        text = path.read_text()
        assert text.count("<h1") == text.count("</h1>") == 1, path.name
        assert not re.search("<h2>|<h3>", text), path.name


@pytest.mark.parametrize("text", ["a < b & c<p", '<p title="a>b">x &amp; y<br/>', "<p>ä\n<b>z</p></i>", "<!-- <p> -->"])
def test_a_page_is_walked_without_losing_a_sign(text):
    nodes = markup.walk(text)
    assert all(text[node.start : node.end] == node.text for node in nodes if node.kind != "end")
    assert markup.reachable(text) == text


TERMS = {"draw": ("one network", "glossary.html#draw"), "LIME": ("a & b", "glossary.html#lime")}


def test_the_first_use_of_a_term_in_running_text_leads_to_what_it_means():
    text = "<h2>draws</h2><p><code>draw</code> <a>draw</a> drawn withdraw Draws, draw lime</p><li>LIME LIME</li>"
    link = '<a class="term" href="glossary.html#{}" title="{}">{}</a>'
    wanted = text.replace("Draws", link.format("draw", "one network", "Draws"))
    wanted = wanted.replace("<li>LIME", "<li>" + link.format("lime", "a &amp; b", "LIME"))
    assert markup.marked(text, TERMS) == wanted


@pytest.mark.parametrize(
    "text",
    ["<table><td><p>draw</p></table>", "<p aria-live='polite'>draw</p>", "<p><math><mi>draw</mi></math></p>", "draw"],
)
def test_no_term_is_marked_where_a_link_does_not_belong(text):
    assert markup.marked(text, TERMS) == text


def test_a_longer_term_is_found_before_a_shorter_one_and_another_word_for_it_counts_as_it():
    terms = {"uncertainty": ("u", "#u"), "total uncertainty": ("t", "#t"), "doubt": ("u", "#u")}
    text = markup.marked("<p>total uncertainty, doubt, uncertainty</p>", terms)
    assert re.findall('href="(#.)"[^>]*>([^<]*)<', text) == [("#t", "total uncertainty"), ("#u", "doubt")]


def test_the_glossary_of_this_project_names_its_notebooks_and_each_term_is_one_sentence():
    terms = glossary.read_glossary(ROOT / "notebooks" / "glossary.yaml")
    here = {path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert len(terms) > 25
    for name, term in terms.items():
        assert term.notebook in here, name
        assert re.fullmatch(r"[A-Z][^\n]*[a-z0-9]\.", term.says) and ". " not in term.says, name
    words = [word.lower() for name, term in terms.items() for word in (name, *term.also)]
    assert len(words) == len(set(words))


def test_the_glossary_is_a_page_that_notebooks_lead_to(project, tmp_path):
    told = {"mean": {"says": "A <middle>.", "notebook": "50"}, "far": {"says": "Not near.", "notebook": "99"}}
    (project / "notebooks" / "glossary.yaml").write_text(yaml.safe_dump(told))
    folder = pages.build(project, tmp_path / "site").parent
    check_links(folder)
    text = (folder / "glossary.html").read_text()
    assert '<p>A &lt;middle&gt;. Taught in <a href="50_first.html">50 Why &amp; how?</a>.</p>' in text
    assert "no notebook that is here" in text
    link = '<a class="term" href="glossary.html#mean" title="A &lt;middle&gt;.">mean</a>'
    assert link in (folder / "50_first.html").read_text()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"a": {"says": "x"}}, "glossary.yaml: 'a' needs says and notebook"),
        ({"a b": {"says": "x", "notebook": "00"}, "a-b": {"says": "y", "notebook": "00"}}, "rename one of them"),
        ({"?": {"says": "x", "notebook": "00"}}, "rename one of them"),
    ],
)
def test_a_glossary_with_a_wrong_entry_is_one_sentence(tmp_path, told, message):
    (tmp_path / "glossary.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(ValueError, match=re.escape(message)):
        glossary.read_glossary(tmp_path / "glossary.yaml")


def test_the_index_of_the_search_holds_headings_and_paragraphs_with_their_anchors(project, tmp_path):
    text = (pages.build(project, tmp_path / "site").parent / "search.html").read_text()
    (stored,) = re.findall('<script type="application/json" id="index">(.*?)</script>', text, re.DOTALL)
    index = json.loads(stored)
    assert index["pages"] == [["50_first.html", "50 Why & how?"], ["51_second.html", "51 And then?"]]
    assert [0, "More", "More", ""] in index["texts"]
    assert [0, "Why-&-how?", "Why & how?", "Its mean is …, $5."] in index["texts"]


def test_what_is_searched_ends_no_script():
    found = markup.searchable("<h2 id='x'>A &lt;/script&gt;<a>¶</a></h2><p>b <code>c</code></p><p></p><pre>d</pre>")
    assert found == [("x", "A </script>", ""), ("x", "A </script>", "b c")]
    text = pages.search_page([("a.html", "<!-- a")], [found])
    assert "A \\u003c/script>" in text and "<!-- a" not in text
