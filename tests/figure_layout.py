"""What is wrong with the text of a figure as it is seen: too small, cut off, or one upon the other."""

from __future__ import annotations

from itertools import combinations
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 9.0  # points of 1/72 inch, where an inch is 96 pixels of a browser
NOTEBOOK, FILE = 60, 110  # dpi in a notebook and of a file
COLUMN, PAGE = 934, 960  # pixels of the widest picture in a notebook, on a laptop's screen, and on a page


def smallest_seen(size: float, width: float) -> float:
    """Points at which type of a size is seen, in a notebook or on a page, whichever is smaller.

    Args:
        size: in points of the figure.
        width: of the figure, in inches.
    """
    return size / 96 * min(NOTEBOOK, COLUMN / width, FILE, PAGE / width)


def texts(figure: Figure) -> list[tuple[str, float, Bbox]]:
    """Words, size and place of each text that is drawn, and of no other: ticks out of sight are none."""
    found, draw = [], Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_fontsize(), self.get_window_extent(renderer)))
        return draw(self, renderer, *args, **kwargs)

    with mock.patch.object(Text, "draw", record):
        FigureCanvasAgg(figure).draw()
    return found


def layout_problems(figure: Figure) -> list[str]:
    """A sentence for each text that cannot be read; boxes may touch, and a pixel is forgiven for rounding."""
    drawn, (right, top) = texts(figure), figure.bbox.max
    problems = [
        f"{words!r} is seen at {seen:.1f} pt"
        for words, size, _ in drawn
        if (seen := smallest_seen(size, figure.get_figwidth())) < SMALLEST
    ]
    problems += [
        f"{words!r} is cut off"
        for words, _, box in drawn
        if box.x0 < -1 or box.y0 < -1 or box.x1 > right + 1 or box.y1 > top + 1
    ]
    for (one, _, a), (other, _, b) in combinations(drawn, 2):
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1:
            problems.append(f"{one!r} lies on {other!r}")
    return problems
