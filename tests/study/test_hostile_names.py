"""A name that came with data is shown as it is written: it is never markup, a formula, or a path."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import ipywidgets
import matplotlib as mpl
import pandas as pd
import pytest
import torch
from helpers import n05, n08, n19
from hostile import CALL, NAMES, PIECES, WRITABLE, hostile_site
from matplotlib.text import Text

from xuqlib import load
from xuqlib.study.figures import charts, choosers, maps
from xuqlib.study.figures.charts import Picture, styled
from xuqlib.study.figures.panels import panels
from xuqlib.study.files import update_index
from xuqlib.study.human_study.page import page
from xuqlib.study.human_study.pairs import Pair, PairStudy
from xuqlib.study.names import file_name, in_script, plain, plain_lines, seen
from xuqlib.study.record import CLAIM_COLUMNS, Notebook, csv_bytes, save
from xuqlib.study.site import pages, verdict_page
from xuqlib.study.verdicts import gather, markdown_table, tally, verdict_bars, verdict_grid

each_name = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
each_writable = pytest.mark.parametrize("name", WRITABLE.values(), ids=WRITABLE)
# Markup is nothing to a figure.
UNSEEN = "".join(PIECES[key] for key in ("nul", "newline", "escape sequence", "right to left"))
DRAWN = [UNSEEN, *(PIECES[key] for key in ("formula that is none", "many newlines", "very long"))]
# What pages and widgets of ours are made of. No name may add to it.
OURS = """a b body br code details div em fieldset figcaption figure h1 h2 h3 head hr html i img input label legend li
link main meta nav noscript ol option output p pre script section select small span strong style sub summary sup
table tbody td th thead title tr ul
math mi mn mo mrow mspace msub msup mtext"""
ELEMENTS = set(OURS.split())


class Found(HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)
        self.text += data


def assert_harmless(text: str) -> Found:
    """Fail if a page or part of one holds anything that could run, or leads where a script would."""
    found = Found(text)
    assert set(found.tags) <= ELEMENTS
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [name for name, _ in found.attributes if not re.fullmatch(r"[a-z\-]+", name)]
    addresses = [value for name, value in found.attributes if name in ("href", "src", "action", "srcdoc")]
    assert not [value for value in addresses if re.match(r"\s*(javascript|vbscript|file|data:text)", value, re.I)]
    return found


@each_name
def test_a_plain_name_is_short_and_all_of_it_is_seen(name):
    text = plain(name)
    assert text.isprintable() and len(text) <= 48
    assert plain("every day") == "every day"
    assert seen(name).replace("\n", "").isprintable() and plain_lines(name).count("\n") < 8


def test_plain_shows_what_cannot_be_seen_as_its_code():
    assert plain("a\0b\u202ec\t") == r"a\x00b\u202ec\t"
    assert plain("abcdef", 4) == "abc…" and plain("abcd", 4) == "abcd"
    assert plain("a\nb") == r"a\nb" and seen("a\nb\t") == plain_lines("a\nb\t") == "a\nb\\t"
    assert plain("Größe, 年") == "Größe, 年" and plain(7) == "7"


def test_the_names_of_files_are_parts_of_paths_and_unlike(tmp_path):
    parts = {file_name(name) for name in NAMES.values()}
    assert len(parts) == len(set(NAMES.values()))
    for part in parts:
        (tmp_path / f"{part}.png").write_bytes(b"x")
        assert (tmp_path / part).resolve().parent == tmp_path
    assert len(list(tmp_path.iterdir())) == len(parts)
    assert file_name("T-shirt/top") == "T-shirt%2Ftop" and file_name("sport shoe 3") == "sport shoe 3"


@each_name
def test_json_in_a_script_is_the_same_and_ends_nothing(name):
    text = in_script({name: [name]})
    assert json.loads(text) == {name: [name]}
    assert "<" not in text


def draw_of(name):
    def draw(rows, chosen):
        figure = Picture(figsize=(1, 1))
        figure.text(0, 0.5, name)
        return figure, f"{name} is {name}"

    return draw


@each_writable
def test_a_widget_shows_a_name_as_text(name):
    frame = pd.DataFrame({"kind": [name, "other"], name + "!": [name, "other"], "value": [1, 2]})
    box = choosers.explore(frame, ["kind", name + "!", "value"], draw_of(name), sliders=["value"])
    line = next(child for child in box.children if isinstance(child, ipywidgets.HTML))
    assert Found(line.value).tags == []
    assert Found(line.value.replace("\r", "\n")).text.replace("\r", "\n") == f"{name} is {name}".replace("\r", "\n")
    for chooser in box.children[:-2]:
        assert all(label.isprintable() for label in chooser._options_labels)
        assert not chooser.description_allow_html


@each_writable
def test_stills_show_a_name_as_text(name):
    frame = pd.DataFrame({"kind": [name, "other"], name + "!": [name, "other"]})
    text = choosers.stills(frame, ["kind", name + "!"], draw_of(name), sliders=["kind"])
    found = assert_harmless(text)
    assert found.tags.count("img") == found.tags.count("script") == found.tags.count("p") == 1
    ((_, sentence),) = {tuple(shown) for key, shown in json.loads(found.scripts[0]).items() if key == "0 0"}
    assert sentence == f"{name} is {name}"


def assert_drawn_as_text(figure):
    """Draw the figure, as saving does; any warning is an error here."""
    assert bytes(choosers.png(figure)).startswith(b"\x89PNG")
    assert not any(text.get_parse_math() for text in figure.findobj(Text))


@styled
def of_any_text(name):
    figure = Picture(figsize=(8, 3))
    axes = figure.subplots()
    axes.plot([0, 1], label=plain(name) or "none")
    axes.legend()
    return figure


def figures_of(name):
    """Every figure that shows names of classes, features, data sets, or words."""
    two = pd.DataFrame({"feature": [name, "b"], "mean": [1.0, -1.0], "std": 0.1, "group": [name, "b"]})
    line = pd.DataFrame({"x": [0.0, 1.0, 0.0, 1.0], "y": 1.0, "hue": [name, name, "b", "b"], "low": 0.5, "high": 2.0})
    x, picture = torch.ones(1, 1, 2, 2), {"dataset": name, "row_titles": [name]}
    classes = pd.DataFrame({"class": [name, "b"], "value": [1.0, 2.0], "low": 0.5, "high": 2.5, "n": 3})
    classes = classes.assign(posterior=name, explainer=name, statistic=name)
    cvs = pd.DataFrame({"feature": [name] * 5, "posterior": list("abcde"), "explainer": name, "cv": 0.5})
    kinds = pd.DataFrame({"panel": name, "dataset": name, "kind": [name, "b"], "error": [0.1, 0.2], "cv": [1.0, 2.0]})
    words = n19.word_frame([name, "b"], {"map": (torch.ones(2), "signed", "nats")})
    rows = [(c, c, name, 0.5, 0.2, 0.7, name, 2, 1, "holds", *[name] * 6) for c in ("C1", "C2")]
    claims = pd.DataFrame(rows, columns=list(CLAIM_COLUMNS)).assign(notebook=name, row=1)
    numbers = {"house": name, "explainer": name, "posterior": name}
    house = two.assign(value=1.0, prediction=1.0, total=0.1, truth=1.0, unit="$", agreement=1.0, **numbers)
    return {
        "bars of features": lambda: charts.feature_bars(two, hue="group", unit="$"),
        "curve": lambda: charts.curve(line, x="x", y="y", hue="hue", low="low", high="high", interval="of $"),
        "bars": lambda: charts.bars(line, x="hue", y="y", hue="hue"),
        "dots": lambda: charts.dots(line, x="x", y="hue", hue="hue", label="$ and $"),
        "panels": lambda: panels(line, lambda axes, part: axes.plot(part["x"]), by="hue", labels=("$x", "$y")),
        "maps": lambda: maps.maps(x, x, x, x[:, 0], **picture),
        "examples": lambda: maps.example_maps(x, {name: x}, **picture)[0],
        "class dots": lambda: choosers.class_dots(classes, classes.iloc[0].to_dict())[0],
        "grid of verdicts": lambda: verdict_grid(tally(claims), {"C1": "one"}),
        "bars of verdicts": lambda: verdict_bars(claims),
        "classes of notebook 05": lambda: n05.class_panels(kinds, {}),
        "features of notebook 08": lambda: n08.cv_panels(cvs),
        "bars of notebook 08": lambda: n08.house_bars(house, numbers)[0],
        "words of notebook 19": lambda: n19.coloured_words(words, title="words"),
        "a figure of one's own": lambda: of_any_text(name),
    }


@pytest.mark.parametrize("kind", figures_of("a"))
def test_a_figure_shows_a_name_as_text(kind):
    for name in DRAWN:
        assert_drawn_as_text(figures_of(name)[kind]())


def test_dollar_signs_are_drawn_and_not_set_whenever_they_are_put_into_a_figure():
    figure = of_any_text("a")
    axes = figure.axes[0]
    axes.set_xticks([0, 1], ["$a_{$b", "$c$"])
    figure.suptitle("costs $5, and $6", parse_math=True)
    assert_drawn_as_text(figure)
    ticks = axes.get_xticklabels()
    assert [text.get_text() for text in ticks] == ["$a_{$b", "$c$"]
    assert mpl.rcParams["text.parse_math"]  # figures of others are left alone
    other = mpl.figure.Figure()
    other.text(0, 0, "$a_{$b")
    with pytest.raises(ValueError, match="ParseException|Expected"):
        choosers.png(other)


def test_two_features_that_are_cut_to_one_text_keep_a_bar_each():
    frame = pd.DataFrame({"feature": ["W" * 90 + "1", "W" * 90 + "2"], "mean": [1.0, 2.0], "std": 0.1})
    figure = charts.feature_bars(frame)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [1.0, 2.0]
    assert [bar.get_y() + bar.get_height() / 2 for bar in figure.axes[0].patches] == [0, 1]


@each_name
def test_the_page_of_the_human_study_shows_a_name_as_text(name, tmp_path):
    if "\udc80" in name:
        name = name.replace("\udc80", "?")  # SQLite keeps text as UTF-8
    pair = Pair(name, 0, "a", "b", name, {"m": (0.0, 1.0)}, None, b"1", b"2")
    box = page(PairStudy(tmp_path / "study.db", [pair], repeats=0), question=name)
    box.children[0].value = name or "someone"
    for child in (box.children[1], box.children[-1]):
        assert set(Found(child.value).tags) <= {"b"}
    shown = Found(box.children[1].value).text
    assert shown.split() == f"{name} {name}".split() or not name.split()


@each_name
def test_no_name_becomes_the_name_of_a_published_file(name, tmp_path):
    frame = pd.DataFrame({"x": [1]})
    recipe = {"preset": "quick", "seed": 0, "dataset": name, "dataset_digest": name, "posterior": name}
    for wrong in ({"name": name, "notebook": "04"}, {"name": "good", "notebook": name}):
        with pytest.raises(ValueError, match="should be"):
            save(None, frame, **wrong, **recipe, folder=tmp_path)
    with pytest.raises(ValueError, match="not known"):
        Notebook("04", preset=name, seed=0)
    with pytest.raises(ValueError, match="unknown"):
        load(name)
    assert list(tmp_path.iterdir()) == []


@each_writable
def test_names_in_a_recipe_and_its_numbers_come_back_as_they_were(name, tmp_path):
    frame = pd.DataFrame({"kind": [name, "b"], "value": [1.0, 2.0]})
    names = {"dataset": name, "dataset_digest": name, "posterior": name}
    save(None, frame, "good", notebook="04", preset="quick", seed=0, **names, device="cpu", folder=tmp_path)
    recipe = json.loads((tmp_path / "index.json").read_text())["04_good"]
    assert (recipe["dataset"], recipe["posterior"]) == (name, name)
    again = pd.read_csv(tmp_path / "04_good.csv", keep_default_na=False)
    assert again["kind"].str.replace("\r", "").tolist() == [name.replace("\r", ""), "b"]
    assert csv_bytes(frame) == (tmp_path / "04_good.csv").read_bytes()


@pytest.mark.parametrize("key", ["../../outside", "50_../x", "/50_x", "50_<b>", "50", "", "\u0665\u0660_x", "50_a\n"])
def test_an_index_whose_keys_are_no_names_of_results_is_refused_and_nothing_is_copied(key, tmp_path):
    full = tmp_path / "project" / "figures" / "full"
    full.mkdir(parents=True)
    (tmp_path / "project" / "figures" / "outside.csv").write_text("x\n1\n")
    update_index(full, {key: {"files": {}, "dataset": "x"}})
    with pytest.raises(ValueError, match=r"index.json holds .* no NN_name of a result; restore the file"):
        pages.build(tmp_path / "project", tmp_path / "site")
    assert not list(tmp_path.rglob("site/**/outside*"))


@each_writable
def test_markdown_and_formulas_hold_no_markup_of_a_name(name):
    for text in (name, f"# {name}", f"**{name}**", f"`{name}`", f"[{name}]({name})", f"| a |\n|---|\n| {name} |"):
        assert_harmless(pages.markdown(text))
    assert_harmless(pages.formula(name))


@each_writable
def test_a_row_of_verdicts_stays_a_row(name, tmp_path):
    row = ("C1", name, name, 0.5, 0.25, 0.75, name, 20, 1, "holds", *[name] * 6)
    pd.DataFrame([row], columns=list(CLAIM_COLUMNS)).to_csv(tmp_path / "50_claims.csv", index=False)
    claims = gather(tmp_path)
    table = markdown_table(claims, {"C1": "one"})
    assert len(table.split("\n")) == 3
    assert len(re.findall(r"(?<!\\)\|", table.split("\n")[2])) == 4
    found = assert_harmless(pages.markdown(table))
    assert found.tags.count("td") == 3 and "a" not in found.tags
    assert_harmless(pages.page("What held up?", verdict_page.verdicts_body(claims, None, {}, {})))


def test_a_site_of_hostile_names_holds_no_markup_of_them(tmp_path):
    folder = hostile_site(tmp_path)
    files = sorted(folder.glob("*.html"))
    assert len(files) == 8
    for path in files:
        found = assert_harmless(path.read_text(encoding="utf-8"))
        assert (CALL in found.text) != (path.name == "cheat_sheet.html")  # which shows no name of this project
        ours = [script for script in found.scripts if script == pages.SCRIPT]
        assert len(ours) == 1
        for script in set(found.scripts) - set(ours):
            json.loads(script)
    assert not list(tmp_path.rglob("*outside*"))


def test_every_page_says_that_no_other_script_may_run():
    text = pages.page("title", "body")
    (policy,) = re.findall('<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert text.index("Content-Security-Policy") < text.index("<style>") < text.index("<script>")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
