"""The words of the field, each in one sentence, and where it is taught; from `notebooks/glossary.yaml`."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from xuqlib.study.site.markup import escaped, heading

PAGE = "glossary.html"


@dataclass(frozen=True)
class Term:
    """An entry of the glossary.

    Attributes:
        says: what it means, in one sentence.
        notebook: number of the notebook that teaches it.
        also: other words for it.
    """

    says: str
    notebook: str
    also: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The sentence and the other words, as text."""
        return f"{self.says} Also: {', '.join(self.also)}." if self.also else self.says


def read_glossary(path: Path) -> dict[str, Term]:
    """The terms of a file like `notebooks/glossary.yaml`, in the order of the alphabet; none where there is no file.

    Raises:
        ValueError: an entry lacks a field, or has another; two terms would share an anchor.
    """
    told = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, entry in told.items():
        if not isinstance(entry, dict) or not {"says", "notebook"} <= set(entry) <= {"says", "notebook", "also"}:
            raise ValueError(f"{path.name}: {name!r} needs says and notebook, and may have also; correct the entry")
    if len(anchors := {_anchor(name) for name in told}) < len(told) or "" in anchors:
        raise ValueError(f"{path.name} has terms that differ in no letter or digit, or have none; rename one of them")
    terms = {name: Term(str(e["says"]), str(e["notebook"]), tuple(e.get("also", ()))) for name, e in told.items()}
    return dict(sorted(terms.items(), key=lambda pair: pair[0].lower()))


def address_of(term: str) -> str:
    """The address of a term's entry."""
    return f"{PAGE}#{_anchor(term)}"


def _anchor(term: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", term.lower()))


def meanings(glossary: Mapping[str, Term]) -> dict[str, tuple[str, str]]:
    """What each word of the glossary means, and the address that says so: for `marked`."""
    return {
        word: (f"{name}: {term.says}" if word != name else term.says, address_of(name))
        for name, term in glossary.items()
        for word in (name, *term.also)
    }


def glossary_body(glossary: Mapping[str, Term], titles: Mapping[str, tuple[str, str]]) -> str:
    """The page of the glossary.

    Args:
        glossary: from `read_glossary`.
        titles: address and title of each notebook's page, by its number.
    """
    parts = ["<h1>Glossary</h1><p>The words of the field, as this study uses them, and where each is taught.</p>"]
    if not glossary:
        parts.append("<p>There is no <code>notebooks/glossary.yaml</code>, so no word is explained yet.</p>")
    for name, term in glossary.items():
        address, title = titles.get(term.notebook, ("", ""))
        taught = f'<a href="{html.escape(address)}">{escaped(title)}</a>' if address else "no notebook that is here"
        parts.append(f"{heading(escaped(name), 2, _anchor(name))}<p>{escaped(term.words)} Taught in {taught}.</p>")
    return "".join(parts)
