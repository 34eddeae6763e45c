"""Where the repository lies: one address, from which the README's badges and first cell, and the citation, follow."""

from __future__ import annotations

import re

MARKS = ("<!-- badges: written by run_all.py --address -->", "<!-- end of badges -->")
GITHUB = re.compile(r"https://github\.com/([A-Za-z0-9-]+/[A-Za-z0-9._-]+?)(?:\.git)?/?")
FIRST = "notebooks/00_one_image_thirty_explanations.ipynb"
BINDER, COLAB = "https://mybinder.org", "https://colab.research.google.com"


def with_badges(text: str, address: str) -> str:
    """The README with badges for Binder and Colab, and with the address in the first cell on Colab.

    Args:
        text: of the README, with the two `MARKS`.
        address: https://github.com/OWNER/NAME.

    Raises:
        ValueError: another address, or a text without the marks.
    """
    place = _place(address)
    begin, end = MARKS
    if begin not in text or end not in text:
        raise ValueError(f"the README has lost its marks {begin} and {end}; put them where the badges should stand")
    badges = [
        f"[![Binder]({BINDER}/badge_logo.svg)]({BINDER}/v2/gh/{place}/HEAD?urlpath=lab/tree/{FIRST})",
        f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{place}/blob/HEAD/{FIRST})",
    ]
    before, rest = text.split(begin, 1)
    after = re.sub(r"(git clone --depth 1 )\S+( xuq)", rf"\1https://github.com/{place}\2", rest.split(end, 1)[1])
    return f"{before}{begin}\n{' '.join(badges)}\n{end}{after}"


def with_address(text: str, address: str) -> str:
    """The CITATION.cff with the address as its `repository-code`, whatever stood there.

    Args:
        text: of the file.
        address: https://github.com/OWNER/NAME.

    Raises:
        ValueError: another address.
    """
    line = f"repository-code: https://github.com/{_place(address)}\n"
    kept = re.sub(r"^repository-code:.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^license:", f"{line}license:", kept, count=1, flags=re.MULTILINE)


def _place(address: str) -> str:
    found = GITHUB.fullmatch(address)
    if not found:
        raise ValueError(f"the address is {address!r}; give https://github.com/OWNER/NAME, as Binder and Colab take it")
    return found[1]
