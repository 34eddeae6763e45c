"""What every page does to its HTML: its headings, what can be reached by keyboard, terms, and what can be searched.

Pages are read by a parser and only added to: every sign that was there stays, whoever wrote it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from html.parser import HTMLParser
from typing import NamedTuple

from xuqlib.study.names import plain

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
CODE = {"code", "math", "pre", "script", "style"}
# Where no link to a term stands: in what is a link itself, is read as a unit, or is replaced by a script.
UNMARKED = {*CODE, *HEADINGS, "a", "button", "fieldset", "live", "summary", "table"}


def escaped(name: object, most: int = 500) -> str:
    """A name or sentence that came with data, as a part of a page."""
    return html.escape(plain(name, most))


def heading(text: str, level: int = 2, name: str = "") -> str:
    """A heading with an anchor.

    Args:
        text: as HTML.
        level: 1 to 6.
        name: of the anchor; the text in lower case by default.
    """
    words = re.sub(r"<[^>]*>|&\w+;", "", text).lower()
    name = name or "-".join(re.findall("[a-z0-9]+", words))
    return f'<h{level} id="{name}">{text}<a class="anchor-link" href="#{name}">¶</a></h{level}>'


class Node(NamedTuple):
    """A tag or a text of a page.

    Attributes:
        kind: "start", "end" or "text".
        name: of the element; "" for a text.
        start, end: where it stands.
        text: what stands there.
        inside: the open elements around it, from the outermost; "live" stands for one that a script rewrites.
        attributes: of a start tag.
    """

    kind: str
    name: str
    start: int
    end: int
    text: str
    inside: tuple[str, ...]
    attributes: Mapping[str, str | None]


class _Walk(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.nodes: list[Node] = []
        self.open: list[str] = []
        self.inside: list[tuple[str, ...]] = [()]  # around what comes next, by the number of open elements
        self.lines = [0]
        for line in text.split("\n"):
            self.lines.append(self.lines[-1] + len(line) + 1)
        self.feed(text)
        self.close()

    def _add(self, kind: str, name: str, text: str, attributes: Mapping[str, str | None] | None = None) -> None:
        line, column = self.getpos()
        start = self.lines[line - 1] + column
        self.nodes.append(Node(kind, name, start, start + len(text), text, self.inside[-1], attributes or {}))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._add("start", tag, self.get_starttag_text() or "", attributes)
        if tag not in VOID:
            self.open.append(tag)
            self.inside.append((*self.inside[-1], tag, *(["live"] if "aria-live" in attributes else [])))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._add("start", tag, self.get_starttag_text() or "", dict(attrs))  # of MathML

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass
            del self.inside[len(self.open) + 1 :]
        self._add("end", tag, f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self._add("text", "", data)

    def handle_entityref(self, name: str) -> None:
        self._add("text", "", f"&{name};")

    def handle_charref(self, name: str) -> None:
        self._add("text", "", f"&#{name};")


@lru_cache(maxsize=1)  # what is searched in a page is marked in it next
def walk(text: str) -> tuple[Node, ...]:
    """The tags and texts of a page, in their order."""
    return tuple(_Walk(text).nodes)


def _spliced(text: str, parts: list[tuple[int, int, str]]) -> str:
    """A text with some of its parts (from, to, new text) replaced; they come in their order."""
    out, place = [], 0
    for start, end, new in parts:
        out += [text[place:start], new]
        place = end
    return "".join([*out, text[place:]])


def reachable(body: str) -> str:
    """A page whose wide parts can be scrolled by keyboard, with one h1 and with named links to its headings."""
    parts, title, number = list[tuple[int, int, str]](), list[str](), 0
    nodes = walk(body)
    for before, node in zip([None, *nodes], nodes, strict=False):
        start = node.kind == "start"
        role = f' role="region" tabindex="0" aria-label="{html.escape(html.unescape("".join(title)))}: '
        if node.name in HEADINGS and start:
            title, number = [], number + (node.name == "h1")
        if node.kind == "text" and "a" not in node.inside and {*HEADINGS} & {*node.inside}:
            title.append(node.text)
        elif node.name == "h1" and number > 1:
            place = node.start + (1 if start else 2)
            parts.append((place, place + 2, "h2"))
        elif node.name == "pre" and start:
            code = before and "highlight" in (before.attributes.get("class") or "")
            parts.append((node.start + 4, node.start + 4, f'{role}{"code" if code else "text"}"'))
        elif node.name == "table" and "table" not in node.inside:
            place, wrap = (node.start, f'<div class="wide"{role}table">') if start else (node.end, "</div>")
            parts.append((place, place, wrap))
        elif node.attributes.get("class") == "anchor-link":
            parts.append((node.start + 2, node.start + 2, ' aria-label="link to this heading"'))
    return _spliced(body, parts)


def searchable(body: str) -> list[tuple[str, str, str]]:
    """The paragraphs of a page: anchor of the heading above it, that heading, and the text; a formula is dots."""
    found, anchor, above = list[tuple[str, str, str]](), "", ""
    words, is_heading = list[str](), False

    def end() -> None:
        nonlocal above
        text = " ".join("".join(words).split())
        words.clear()
        if is_heading:
            above = text
        if text:
            found.append((anchor, above, "" if is_heading else text))

    for node in walk(body):
        if node.name in (*HEADINGS, "p", "li"):
            end()
            is_heading = node.name in HEADINGS and node.kind == "start"
            anchor = node.attributes.get("id") or anchor if is_heading else anchor
        elif node.name == "math" and node.kind == "start":
            words.append("…")
        elif node.kind == "text" and {*HEADINGS, "p", "li"} & {*node.inside}:
            link = is_heading and "a" in node.inside  # the heading's own anchor
            if not link and not {"math", "script", "style", "pre", "live"} & {*node.inside}:
                words.append(html.unescape(node.text))
    return found


def marked(body: str, terms: Mapping[str, tuple[str, str]]) -> str:
    """A page on which the first use of each term in running text leads to what it means.

    Args:
        body: as HTML.
        terms: what each word or its plural means, and the address that says so.
    """
    parts, left = list[tuple[int, int, str]](), dict(terms)
    for node in walk(body):
        running = {"p", "li"} & {*node.inside} and not UNMARKED & {*node.inside}
        if node.kind != "text" or not running or body[node.start : node.end] != node.text:
            continue
        place = 0
        while left and (match := _pattern(tuple(left)).search(node.text, place)):
            place = match.end()
            name = next(term for term in left if _pattern((term,)).fullmatch(match[0]))
            meaning, address = left[name]
            left = {term: told for term, told in left.items() if told[1] != address}
            link = f'<a class="term" href="{html.escape(address)}" title="{html.escape(meaning)}">{match[0]}</a>'
            parts.append((node.start + match.start(), node.start + match.end(), link))
    return _spliced(body, parts)


@cache
def _pattern(terms: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the terms or its plural, the longest first; case counts in those that are names."""
    each = [
        f"{'' if term != term.lower() else '(?i:'}{re.escape(term)}(?:s|es)?{'' if term != term.lower() else ')'}"
        for term in sorted(terms, key=len, reverse=True)
    ]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(each)})(?![\w-])")
