"""Slides of the class of 90 minutes: the questions, headings and figures of the stored notebooks, in its order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xuqlib.study.editions import Lesson, lessons, marks
from xuqlib.study.runs import read_notebook
from xuqlib.study.site.markup import escaped

PAGE, WHICH = "slides.html", "In 90 minutes"
CLOSING = ("Exercises", "What holds", "References", "Bring your own network", "Look for yourself")


class Section(NamedTuple):
    """A part of a notebook: heading, first paragraph, what it asks, and its first picture (PNG in base64), if any."""

    heading: str
    words: str
    asked: list[str]
    picture: str


def slides_body(readme: str, notebooks: Mapping[str, Path]) -> str:
    """All slides as HTML; "" where the README has no such path, or its notebooks are not here.

    Args:
        readme: text of the README.
        notebooks: by number.
    """
    plan = [lesson for lesson in lessons(readme) if lesson.path == WHICH and lesson.notebook in notebooks]
    if not plan:
        return ""
    first = '<h1>How far can you trust a neural network\'s explanation?</h1><p class="about">A class of '
    shown = [f"{first}{WHICH.removeprefix('In ')}. The next slide: Page Down, the arrow keys, or the links below.</p>"]
    for lesson in plan:
        shown += lesson_slides(lesson, read_notebook(notebooks[lesson.notebook]), notebooks[lesson.notebook].stem)
    parts = []
    for number, text in enumerate(shown, 1):
        back = f'<a href="#slide-{number - 1}">← back</a>' if number > 1 else ""
        on = f'<a href="#slide-{number + 1}">next →</a>' if number < len(shown) else ""
        turn = f'<p class="turn"><span>{back}</span><span>{number} of {len(shown)}</span><span>{on}</span></p>'
        parts.append(f'<section class="slide" id="slide-{number}" aria-label="slide {number}">{text}{turn}</section>')
    return f'<div class="slides">{"".join(parts)}</div>'


def lesson_slides(lesson: Lesson, notebook: Mapping[str, Any], stem: str) -> list[str]:
    """Slides of a lesson: its question, a slide for each section that it reads, and its exercises.

    Args:
        lesson: a row of the README's path.
        notebook: as stored.
        stem: name of the notebook's page.
    """
    cells = notebook["cells"]
    title = escaped("".join(cells[0]["source"]).partition("\n")[0].lstrip("# "))
    link = f'<a href="{escaped(stem)}.html">notebook {lesson.notebook}</a>'
    told = f'<p class="about">From {escaped(lesson.start)}, {escaped(lesson.minutes)} minutes, {link}</p>'
    shown = [f"<h2>{title}</h2>{told}"]
    named = re.findall(r"\*([^*]+)\*", lesson.read)
    for section in sections(cells):
        if section.heading in named or (not named and section.heading not in CLOSING):
            asked = "".join(f"<p><b>Predict:</b> {escaped(_plain(each))}</p>" for each in section.asked)
            words = f"Figure of the section: {section.heading}"
            image = f'<img src="data:image/png;base64,{section.picture}" alt="{escaped(words)}">'
            prose = f"<p>{escaped(section.words)}</p>" if section.words else ""
            shown.append(f"<h2>{escaped(_plain(section.heading))}</h2>{prose}{asked}{image if section.picture else ''}")
    for number in re.findall(r"\d+", lesson.exercises):
        if found := exercise(cells, number):
            shown.append(f"<h2>Exercise {number} of {link}</h2><p>{escaped(found)}</p>")
    return shown


def sections(cells: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The parts of a notebook below its headings of the second level, in their order."""
    found = list[Section]()
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for offset, asked in marks(cell):
                if asked is None:
                    found.append(Section(*_begun(text[offset:]), [], ""))
                elif found:
                    found[-1].asked.append(asked)
        elif found and not found[-1].picture and "solution" not in cell["metadata"].get("tags", []):
            pictures = [
                output["data"]["image/png"] for output in cell["outputs"] if "image/png" in output.get("data", {})
            ]
            found[-1] = found[-1]._replace(picture=re.sub(r"[^A-Za-z0-9+/=]", "", "".join(pictures[:1])))
    return found


def _begun(text: str) -> tuple[str, str]:
    """Heading and first paragraph of a section; "" where that is a formula, a list, a table, or asks."""
    head, _, rest = text.partition("\n")
    first = rest.strip().partition("\n\n")[0]
    is_prose = not re.search(r"\$|\*Predict|^[|>#]|^[*-] |^\d+\.", first, re.MULTILINE)
    return head.lstrip("# ").strip(), _sentences(_plain(first), 400) if is_prose else ""


def exercise(cells: Sequence[Mapping[str, Any]], number: str) -> str:
    """What an exercise asks, as plain text; "" where there is none of this number."""
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and (start := re.search(rf"^\*\*{number}\. ", text, re.MULTILINE)):
            return _sentences(_plain(text[start.end() :]), 700)
    return ""


def _sentences(text: str, most: int) -> str:
    """As many whole sentences as fit; a first one that is longer is cut."""
    ends = [end.end() for end in re.finditer(r"[.?!](?=\s|$)", text) if end.end() <= most]
    return text[: ends[-1] if ends else most]


def _plain(text: str) -> str:
    """Markdown without the signs that only its renderer reads."""
    return " ".join(re.sub(r"[*`$]", "", text).split())
