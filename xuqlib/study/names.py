"""What a name that came with data becomes where it is shown or written: never markup, a formula, or a path."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any
from urllib.parse import quote

LONGEST_LINE = 48  # signs of a name that a figure has room for
MOST_LINES = 8
LONGEST_FILE = 100  # signs; file systems take 255, and an ending is still to come


def seen(text: str) -> str:
    """A text in which every sign is seen: one that is not, such as a change of direction, as its code. Lines stay."""
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


def plain(name: object, most: int = LONGEST_LINE) -> str:
    """A name as one line of text, every sign of it `seen`. In HTML it is to be escaped all the same.

    Args:
        name: what `str` makes of it is shown.
        most: signs; a longer name is cut.
    """
    shown = seen(str(name)[: most + 1]).replace("\n", "\\n")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def plain_lines(title: str) -> str:
    """A title of some lines, each of them `known`."""
    return "\n".join(map(known, title.split("\n")[:MOST_LINES]))


def file_name(name: str) -> str:
    """A name as one part of a path: unlike names have unlike parts, and none leads to another folder."""
    part = quote(name, safe=" ,()'+&=", errors="surrogatepass")
    part = part.replace(".", "%2E", 1) if part.startswith(".") else part
    if not part or len(part) > LONGEST_FILE:
        part = f"{part[: LONGEST_FILE - 17]}-{hashlib.sha256(part.encode()).hexdigest()[:16]}"
    return part


def in_script(value: Any) -> str:
    """JSON that can stand inside <script>: no sign of it ends the script, or begins a comment."""
    return json.dumps(value).replace("<", "\\u003c")


SPOKEN = {  # names that are code, as a figure shows them
    "deep_ensemble": "deep ensemble",
    "mc_dropout": "dropout, last layer",
    "mc_dropout_all": "dropout, every block",
    "mc_dropconnect": "DropConnect",
    "flipout": "Flipout",
    "laplace": "Laplace",
    "guided_backprop": "Guided Backprop",
    "integrated_gradients": "Integrated Gradients",
    "GBP": "Guided Backprop",
    "IG": "Integrated Gradients",
    "lime": "LIME",
    "cifar10": "CIFAR-10",
    "fer_plus": "FER+",
    "mnist": "MNIST",
    "california_housing": "California Housing",
    "r2": "R2",
    "nll": "NLL",
    "brier": "Brier",
    "ece": "ECE",
    "mutual_information": "mutual information",
    "cv_ratio": "ratio CV",
    "cv_pooled": "pooled CV",
    "cv_signed": "signed CV",
    "cv_paper": "paper CV",
    "cv_paper_unscaled": "paper CV, unscaled",
}


_IN_TEXT = re.compile("|".join(rf"\b{name}\b" for name in sorted(SPOKEN, key=len, reverse=True) if "_" in name))


def in_words(text: str) -> str:
    """A text `seen`, with the names of our code in it as a figure shows them: those that no language has."""
    return SPOKEN.get(text) or _IN_TEXT.sub(lambda found: SPOKEN[found[0]], seen(text))


def known(name: object) -> str:
    """A name as a figure shows it: that of a method or a data set in words, another `plain`."""
    return SPOKEN.get(str(name), plain(name))


def spoken(name: object) -> str:
    """A name as it is said: `known`, or its underscores as spaces."""
    return SPOKEN.get(str(name), plain(name).replace("_", " "))
