"""Widgets: choosers around a figure of stored results. None of them trains, draws or explains."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import pandas as pd
from matplotlib.figure import Figure

Drawing = Callable[[pd.DataFrame, Mapping[str, object]], tuple[Figure, str]]


def explore(frame: pd.DataFrame, by: Sequence[str], draw: Drawing) -> ipywidgets.VBox:
    """Choose a value of each column in `by`, and see the figure and the sentence of the rows that have them.

    The children are one chooser per column, named after it and operated by mouse or arrow keys; an `Image`; and an
    `HTML` line. Where no row has all chosen values, the line says so and the picture stays.

    Args:
        frame: results, one observation per row.
        by: columns to choose by; a column with one value gets no chooser.
        draw: (rows chosen, chosen values) to a figure and one sentence about it.

    Raises:
        ValueError: the frame has no row, or no such column.
    """
    if frame.empty or set(by) - set(frame):
        raise ValueError(f"the frame has {len(frame)} rows and columns {', '.join(map(str, frame))}; wanted {list(by)}")
    options = {column: list(dict.fromkeys(frame[column])) for column in by}
    choosers = {
        column: ipywidgets.Dropdown(
            options=[(str(value).replace("_", " "), value) for value in values],
            description=column.replace("_", " "),
            style={"description_width": "120px"},
            layout={"width": "420px"},
        )
        for column, values in options.items()
        if len(values) > 1
    }
    picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
    line = ipywidgets.HTML()

    def show(_: object = None) -> None:
        chosen = {column: choosers[column].value if column in choosers else options[column][0] for column in by}
        rows = frame
        for column, value in chosen.items():
            rows = rows[rows[column] == value]
        if rows.empty:
            line.value = "<b>No such result: choose another combination.</b>"
            return
        figure, sentence = draw(rows, chosen)
        picture.value, line.value = png(figure), sentence

    for chooser in choosers.values():
        chooser.observe(show, names="value")
    show()
    return ipywidgets.VBox([*choosers.values(), picture, line])


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a small PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return buffer.getvalue()
