"""A static site: each notebook as a page, each figure with its numbers and recipe, each verdict with its row.

Its pages work from a folder, without a network and without a kernel: formulas are MathML, pictures lie beside them.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import PIL.Image

from xuqlib.study.files import PRESETS, DamagedError, replace_file, whole_recipes
from xuqlib.study.names import in_script, plain
from xuqlib.study.runs import PLACEHOLDER, read_notebook
from xuqlib.study.site import cheat_sheet, glossary, slides, verdict_page
from xuqlib.study.site.look import SCRIPT, STYLE
from xuqlib.study.site.markup import escaped, heading, marked, reachable, searchable
from xuqlib.study.verdicts import gather, primary, read_chosen

# What a stored notebook shows where a widget stood; run_all.py writes it.
NO_KERNEL = "<p><em>Here the notebook has controls that need a kernel: run it to use them.</em></p>"
# nbconvert's, and cells tagged "solution" folded, whatever they show.
TEMPLATE = """{%- extends "basic/index.html.j2" -%}
{%- block any_cell -%}
{%- if "solution" in cell.metadata.get("tags", []) -%}
<details class="solution"><summary>Solution</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock any_cell -%}"""
# What an output may show; the template puts every other kind of it into the page as it is, scripts too.
SHOWN = ("text/html", "text/markdown", "text/plain", "image/png", "image/jpeg")
TAGS = [
    *("b", "br", "code", "div", "em", "i", "li", "ol", "p", "pre", "small", "span", "strong", "sub", "sup"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
]
ATTRIBUTES = {"*": ["title"], "table": ["class"], "td": ["colspan", "rowspan"], "th": ["colspan", "rowspan"]}
# Code in colours: what nbconvert's own cleaning, which takes long, leaves as it is.
_TEXT = r"(?:[^<>&\0\r]|&(?:amp|lt|gt|quot|\#39);)*"
COLOURED = re.compile(
    rf'<div class="[\w -]+"><pre><span></span>(?:{_TEXT}<span class="\w+">{_TEXT}</span>)*{_TEXT}</pre></div>\s*'
)
MATHML = "http://www.w3.org/1998/Math/MathML"
MATH_ELEMENTS = {
    *("math", "menclose", "mfrac", "mi", "mn", "mo", "mover", "mpadded", "mphantom", "mroot", "mrow", "mspace"),
    *("msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr", "munder", "munderover"),
}
MATH_ATTRIBUTES = {
    *("accent", "close", "columnalign", "columnlines", "columnspacing", "depth", "display", "displaystyle", "fence"),
    *("form", "height", "largeop", "linebreak", "linethickness", "lspace", "mathvariant", "maxsize", "minsize"),
    *("movablelimits", "open", "rowlines", "rowspacing", "rspace", "scriptlevel", "separator", "stretchy", "voffset"),
    "width",
}
PUBLISHED = r"\.\./figures/full/([0-9]{2}_[a-z0-9_]+)\.png"  # as a stored notebook links to a figure
NAVIGATION = (
    *(("index.html", "Notebooks"), ("gallery.html", "Gallery"), ("verdicts.html", "What held up")),
    *((glossary.PAGE, "Glossary"), ("search.html", "Search")),
)
REPORT, SLIDERS = ("report.html", "report.json", "report.safetensors"), "sliders.html"  # of `make_ready`
REPORT_LINK = f'<p><a href="{REPORT[0]}">A ready report</a>, as <code>xuq report</code> writes it of your network</p>'
SHEET_LINK = f'<p><a href="{cheat_sheet.PAGE}">xuq on one page</a>, to print</p>'
SLIDES_LINK = f'<p><a href="{slides.PAGE}">Slides</a> of that class</p>'
# Ways through the notebooks, by what a reader comes for.
PATHS = {
    "A student": ("what these maps are, and how far they move", ("00", "02", "03", "04", "09")),
    "A teacher": ("a class of 90 minutes; the README has the plan", ("00", "02", "04", "06", "09", "14")),
    "A researcher": ("what held up, what failed, and what can be proved", ("14", "07", "10", "22", "24", "25", "26")),
    "An engineer": ("your own network: how far to trust it, and at what cost", ("15", "13", "25", "23")),
}


def build(project: Path, folder: Path, executed: Path | None = None, ready: Path | None = None) -> Path:
    """Build the site of a project.

    Args:
        project: holds notebooks/, figures/ and README.md. Stored notebooks are shown as they are stored.
        folder: where the site goes. Files of the same name are replaced; nothing else in it is touched.
        executed: folder of copies of the notebooks, run with $XUQ_STILLS set: the choosers' pictures are theirs.
        ready: what `make_ready` made; without it, the site has no report and no figures with sliders.

    Notebooks and recipes that are damaged are left out; a damaged table of claims is an error.

    Returns:
        The first page, index.html.
    """
    notebooks = readable(project / "notebooks")
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    entries = published(project / "figures")
    terms = glossary.read_glossary(project / "notebooks" / "glossary.yaml")
    words, paragraphs = glossary.meanings(terms), []
    for place, path in enumerate(notebooks):
        copy = executed / path.name if executed else path
        before, after = notebooks[max(place - 1, 0) : place], notebooks[place + 1 : place + 2]
        body = notebook_body(path, copy if copy.exists() else path)
        paragraphs.append(searchable(body))
        _write(folder, f"{path.stem}.html", notebook_page(path, marked(body, words), [*before], [*after]))
        shutil.copyfile(path, folder / "notebooks" / path.name)
    for preset, stem in entries:
        _copy_figure(project / "figures" / preset, folder / "figures" / preset, stem)
    full, choices = project / "figures" / "full", project / "notebooks" / "claims.yaml"
    claims = gather(full) if list(full.glob("*_claims.csv")) else None
    chosen = read_chosen(choices) if choices.exists() else {}
    numbers = primary(claims, chosen) if claims is not None and chosen else None
    pages = {path.stem[:2]: _address(path) for path in notebooks}
    verdicts = verdict_page.verdicts_body(claims, numbers, chosen, pages)
    titles = {path.stem[:2]: (quote(f"{path.stem}.html"), _name(path)) for path in notebooks}
    _write(folder, "gallery.html", gallery(entries, notebooks))
    _write(folder, "verdicts.html", page("What held up?", verdicts))
    _write(folder, glossary.PAGE, page("Glossary", glossary.glossary_body(terms, titles)))
    _write(folder, "search.html", search_page(list(titles.values()), paragraphs))
    promises = project / "tests" / "README.md"
    if promises.exists():
        _write(folder, "promises.html", page("What is promised", markdown(promises.read_text(encoding="utf-8"))))
    found = "" if claims is None or numbers is None else verdict_page.findings(numbers, claims, chosen, entries)
    parts = {"found": found, "verdicts": verdict_page.verdict_table(claims)}
    readme = project / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    _write(folder, cheat_sheet.PAGE, page("xuq on one page", cheat_sheet.cheat_sheet_body(text, full)))
    if shown := slides.slides_body(text, {path.stem[:2]: path for path in notebooks}):
        _write(folder, slides.PAGE, page("A class of 90 minutes", shown))
    more = {"A student": SHEET_LINK, "A teacher": SLIDES_LINK if shown else "", "An engineer": SHEET_LINK}
    if ready is not None:
        for name in REPORT:
            shutil.copyfile(ready / name, folder / name)
        parts["sliders"] = (ready / SLIDERS).read_text(encoding="utf-8")
        more["An engineer"] += REPORT_LINK
    _write(folder, "index.html", front_page(project, notebooks, entries, more=more, **parts))
    return folder / "index.html"


def _write(folder: Path, name: str, text: str) -> None:
    replace_file(folder / name, text.encode())


def _copy_figure(source: Path, target: Path, stem: str) -> None:
    """Copy a CSV and its picture, as WebP: without loss, for less than half of the bytes."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / f"{stem}.csv", target / f"{stem}.csv")
    picture = source / f"{stem}.png"
    if picture.exists():
        with PIL.Image.open(picture) as image:
            image.save(target / f"{stem}.webp", lossless=True, quality=30, method=1)  # 2 % more, sooner


def readable(notebooks: Path) -> list[Path]:
    """The notebooks of a folder that can be read; `run_all.py` tells of the others."""
    found = []
    for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")):
        with suppress(DamagedError):
            read_notebook(path)
            found.append(path)
    return found


def published(figures: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Recipes of all published results whose CSV is there, by preset and NN_slug; the full preset first.

    Raises:
        ValueError: an index names a result otherwise, which could be a file of another folder.
    """
    found = {}
    for preset in reversed(list(PRESETS)):
        index = figures / preset / "index.json"
        recipes = dict[str, dict[str, Any]]()
        with suppress(DamagedError):  # `run_all.py` tells of it; the rest is shown
            recipes = whole_recipes(index.parent)
        if strange := [stem for stem in recipes if not re.fullmatch("[0-9]{2}_[a-z0-9_]+", stem)]:
            raise ValueError(f"{index} holds {plain(strange[0])!r}, which is no NN_name of a result; restore the file")
        found.update({(preset, stem): recipes[stem] for stem in recipes if (index.parent / f"{stem}.csv").exists()})
    return found


def title_of(notebook: Mapping[str, Any]) -> str:
    """The question that a notebook's first cell asks."""
    return "".join(notebook["cells"][0]["source"]).partition("\n")[0].lstrip("# ").strip()


def formula(tex: str, display: str = "inline") -> str:
    """A formula as MathML, which browsers draw without a script; one that cannot be translated stays code.

    So does one whose translation holds anything that is not for formulas, such as an address.
    """
    from latex2mathml.converter import convert

    given = tex.strip()
    try:
        translated = convert(given, display=display)
    except Exception:  # another's parser, of many errors without a common base; the page shows the formula as it is
        translated = "\\"
    # In HTML the name of the language is idle, and in a heading it would be written in front of every element.
    translated = translated.replace(f' xmlns="{MATHML}"', "")
    # A command that it does not know stays there, with its backslash.
    return translated if "\\" not in translated and _is_mathml(translated) else f"<code>{html.escape(tex)}</code>"


def _is_mathml(text: str) -> bool:
    """Whether a text holds elements and attributes of formulas alone: words inside a formula come unescaped."""
    try:
        elements = list(ElementTree.fromstring(text).iter())
    except ElementTree.ParseError:
        return False
    return all(each.tag in MATH_ELEMENTS and MATH_ATTRIBUTES.issuperset(each.attrib) for each in elements)


@cache
def _renderer() -> Any:
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return formula(body)

        def block_math(self, body: str) -> str:
            return formula(body, "block")

    return MarkdownWithMath(renderer=Renderer(escape=True, allow_harmful_protocols=False))


def markdown(text: str) -> str:
    """Markdown as HTML, formulas as MathML; HTML inside it is shown as it is written."""
    return str(_renderer().render(text))


def _clean_html(element: Any) -> str:
    from nbconvert.filters import clean_html

    return element if isinstance(element, str) and COLOURED.fullmatch(element) else str(clean_html(element))


@cache
def _exporter() -> Any:
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(raw_template=TEMPLATE, exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.register_filter("markdown2html", markdown)
    exporter.register_filter("clean_html", _clean_html)
    return exporter


@cache
def _cleaner() -> Any:
    from nbconvert.preprocessors.sanitize import SanitizeHTML

    return SanitizeHTML(tags=TAGS, attributes=ATTRIBUTES, strip=True)


def clean(output: Mapping[str, Any]) -> dict[str, Any]:
    """A stored output without what the page does not show, and its HTML without all but text and tables."""
    data = {kind: value for kind, value in output.get("data", {}).items() if kind in SHOWN}
    if "text/html" in data:
        text = re.sub("<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL | re.IGNORECASE)
        data["text/html"] = _cleaner().sanitize_html_tags(text)
    return {**output, "data": data} if "data" in output else dict(output)


def with_choosers(stored: dict[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    """The stored notebook, and where a widget stood: the stills of the executed copy, or a line that says what to do.

    All other outputs are made `clean`.

    Raises:
        ValueError: the copy is of another version of the notebook.
    """
    code = [[cell for cell in of["cells"] if cell["cell_type"] == "code"] for of in (stored, executed)]
    injected = [cell for cell in code[1] if "injected-parameters" not in cell["metadata"].get("tags", [])]
    if [cell["source"] for cell in code[0]] != [cell["source"] for cell in injected]:
        raise ValueError("the executed copy is of another version of this notebook; run it again")
    for cell, ran in zip(code[0], injected, strict=True):
        if PLACEHOLDER in json.dumps(cell["outputs"]):
            texts = ["".join(output.get("data", {}).get("text/html", "")) for output in ran["outputs"]]
            content = next((text for text in texts if 'class="chooser"' in text), NO_KERNEL)
            shown = {"output_type": "display_data", "metadata": {}, "data": {"text/html": content}}
            cell["outputs"] = [shown]
        else:
            cell["outputs"] = [output for output in map(clean, cell["outputs"]) if output.get("data", True)]
    return stored


def notebook_body(path: Path, executed: Path) -> str:
    """A stored notebook as HTML.

    Args:
        path: the notebook.
        executed: a copy run with $XUQ_STILLS set, or the notebook itself.
    """
    import nbformat

    notebook = with_choosers(read_notebook(path), read_notebook(executed))
    body, _ = _exporter().from_notebook_node(nbformat.reads(json.dumps(notebook), as_version=4))
    body = str(body).replace(
        "No description has been provided for this image", f"Figure of: {escaped(title_of(notebook))}"
    )
    body = re.sub(rf'href="{PUBLISHED}"', r'href="gallery.html#full-\1"', body)
    return re.sub(rf'src="{PUBLISHED}"', r'src="figures/full/\1.webp"', body)


def notebook_page(path: Path, body: str, before: Sequence[Path], after: Sequence[Path]) -> str:
    """The page of a notebook.

    Args:
        path: the notebook.
        body: from `notebook_body`.
        before, after: the notebook before and after it, if there is one.
    """
    heads = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', body)
    contents = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in heads)
    links = [f'<a href="{_address(other)}">← {_title(other)}</a>' for other in before]
    links += [f'<a href="{_address(other)}">{_title(other)} →</a>' for other in after]
    above, below = (
        f'<nav class="turn" aria-label="{where}">{"".join(links)}</nav>' for where in ("turn", "turn, below")
    )
    own = f'<p class="own"><a href="notebooks/{_address(path, path.suffix)}" download>Notebook {path.stem[:2]}</a>'
    own += f' · <a href="gallery.html#{path.stem[:2]}">its figures, numbers and recipes</a> · quick run</p>'
    contents = f"<details><summary>Contents</summary><ul>{contents}</ul></details>"
    return page(title_of(read_notebook(path)), f"{above}{own}{contents}{body}{below}")


def _name(path: Path) -> str:
    """Number and title of a notebook, as text."""
    return f"{path.stem[:2]} {title_of(read_notebook(path))}"


def _title(path: Path) -> str:
    return escaped(_name(path))


def _address(notebook: Path, suffix: str = ".html") -> str:
    """The address of a notebook's page."""
    return html.escape(quote(f"{notebook.stem}{suffix}"))


def _policy(script: str, forms: bool) -> str:
    """What a page may do: look as `STYLE` says, run this script, show pictures of the site; nothing else but forms."""
    style, digest = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (STYLE, script))
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{digest}'; img-src 'self' data:; "
        f"base-uri 'none'; form-action '{'self' if forms else 'none'}'"
    )


def page(title: str, body: str, *, alone: bool = False, script: str = "", forms: bool = False) -> str:
    """A whole page: its look and its script are inside it, so that it can be sent alone. No other script runs in it.

    Args:
        title: as text.
        body: as HTML.
        alone: for a page that is no part of the site: without its script, and without links to other pages.
        script: of a page alone.
        forms: whether it may send forms to where it came from.
    """
    links = "".join(f'<a href="{address}">{text}</a>' for address, text in NAVIGATION)
    skip = '<a class="skip" href="#to-main">Skip to the content</a>'
    top = "" if alone else f'{skip}<nav class="top" aria-label="site"><b>xuq</b>{links}</nav>'
    script = script if alone else SCRIPT
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(script, forms)}">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head><body>{top}"
        f'<main id="to-main" tabindex="-1">{reachable(body)}</main>'
        f"{script and f'<script>{script}</script>'}</body></html>\n"
    )


def gallery(entries: Mapping[tuple[str, str], Mapping[str, Any]], notebooks: Sequence[Path]) -> str:
    """All published figures by notebook, each with links to its notebook, its numbers and its recipe."""
    parts = ["<h1>Every figure, with its numbers and its recipe</h1>"]
    parts.append("<p>Full figures are of real data, quick ones of what is embedded. Click one to see it large.</p>")
    parts.append(verdict_page.controls("figures", "figures", {"preset": reversed(list(PRESETS))}))
    parts.append('<div id="figures">')
    for path in notebooks:
        own = {key: recipe for key, recipe in entries.items() if key[1][:2] == path.stem[:2]}
        ordered = sorted(own, key=lambda key: f"{key[1]}.png" not in own[key]["files"])  # tables come last
        cards = "".join(_card(*key, own[key], path) for key in ordered)
        title = heading(f'<a href="{_address(path)}">{_title(path)}</a>', 2, path.stem[:2])
        shown = f'<div class="cards">{cards}</div>' if cards else "<p>It has published nothing yet.</p>"
        parts.append(f"<section>{title}{shown}</section>")
    return page("Gallery", f"{''.join(parts)}</div>")


def _card(preset: str, stem: str, recipe: Mapping[str, Any], notebook: Path) -> str:
    words, base = html.escape(stem[3:].replace("_", " ")), f"figures/{preset}/{stem}"
    told = f"{words}: {preset} run, {escaped(recipe['dataset'])}"
    title = f"{escaped(recipe['title'])} ({told})" if recipe.get("title") else told
    picture = f'<a href="{base}.webp"><img loading="lazy" src="{base}.webp" alt="{title}"></a>'
    links = f'<a href="{_address(notebook)}">notebook {stem[:2]}</a> · <a href="{base}.csv">numbers</a>'
    details = html.escape(json.dumps(recipe, indent=1))
    return (
        f'<figure id="{preset}-{stem}" data-preset="{preset}" data-notebook="{stem[:2]}">'
        f"{picture if f'{stem}.png' in recipe['files'] else ''}<figcaption><b>{words}</b>"
        f" ({preset}, {escaped(recipe['dataset'])})<br>{links}<details><summary>recipe</summary>"
        f"<pre>{details}</pre></details></figcaption></figure>"
    )


def search_page(pages: Sequence[tuple[str, str]], paragraphs: Sequence[Sequence[tuple[str, str, str]]]) -> str:
    """A box that finds headings and paragraphs of the notebooks; what it searches is inside the page.

    Args:
        pages: address and title of each page.
        paragraphs: of each page, from `searchable`.
    """
    texts = [[number, *each] for number, found in enumerate(paragraphs) for each in found]
    body = '<h1>Search</h1><div class="controls" role="search" hidden><label>words '
    body += '<input type="search" id="query" autofocus></label><output></output></div>'
    body += '<ol id="found"></ol><noscript><p>To search, this page needs its script, which is switched off here.</p>'
    index = in_script({"pages": [[address, plain(title, 500)] for address, title in pages], "texts": texts})
    return page("Search", f'{body}</noscript><script type="application/json" id="index">{index}</script>')


def front_page(
    project: Path,
    notebooks: Sequence[Path],
    entries: Mapping[tuple[str, str], Mapping[str, Any]],
    *,
    found: str,
    verdicts: str,
    sliders: str = "",
    more: Mapping[str, str],
) -> str:
    """What the README says before its first section, what was found, ways in, the notebooks, and the verdicts.

    Args:
        project: see `build`.
        notebooks: those that can be read.
        entries: from `published`.
        found: what was found, as HTML; "" leaves the section out.
        verdicts: how all rows fell, as HTML.
        sliders: figures to step through, as HTML; "" leaves the section out.
        more: what else there is for each reader, as HTML.
    """
    readme = project / "README.md"
    opening = readme.read_text(encoding="utf-8").partition("\n## ")[0] if readme.exists() else "# The study"
    opening = re.sub(r"(\]\(figures/.*?)\.png\)", r"\1.webp)", opening)
    cards = []
    for path in notebooks:
        own = [
            key for key, recipe in entries.items() if key[1][:2] == path.stem[:2] and f"{key[1]}.png" in recipe["files"]
        ]
        image = f'<img loading="lazy" src="figures/{own[0][0]}/{own[0][1]}.webp" alt="">' if own else ""
        cards.append(f'<a class="card" href="{_address(path)}">{image}<b>{_title(path)}</b></a>')
    body = markdown(opening)
    if found:
        body += f'{heading("What was found")}{found}<p><a href="verdicts.html#numbers">All of these numbers</a></p>'
    if sliders:
        body += f"{heading('Try it')}{sliders}"
    body += (
        f'{heading("Where to begin")}{_paths(notebooks, more)}<p>A word is new? It is in the <a href="{glossary.PAGE}">'
    )
    body += 'glossary</a>. Looking for something? <a href="search.html">Search the notebooks</a>.</p>'
    body += f'{heading("The notebooks")}<div class="cards">{"".join(cards)}</div>'
    body += f"{heading('What held up?', name='held-up')}{verdicts}"
    if (project / "tests" / "README.md").exists():
        body += '<p><a href="promises.html">What is promised, and how it is tested</a></p>'
    return page("xuq", body)


def _paths(notebooks: Sequence[Path], more: Mapping[str, str]) -> str:
    """Ways through the notebooks that are here, each with what else there is for its reader."""
    here, ways = {path.stem[:2]: path for path in notebooks}, []
    for reader, (purpose, numbers) in PATHS.items():
        steps = "".join(f'<li><a href="{_address(here[n])}">{_title(here[n])}</a></li>' for n in numbers if n in here)
        if steps:
            steps = f'<ol class="path">{steps}</ol>{more.get(reader, "")}'
            ways.append(f'<div class="way"><p><b>{reader}</b>: {purpose}</p>{steps}</div>')
    return f'<div class="cards">{"".join(ways)}</div>' if ways else ""
