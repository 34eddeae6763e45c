"""Widgets: choosers around a figure of stored results. None of them trains, draws or explains."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import pandas as pd
import PIL.Image
import torch
from IPython.display import HTML, display
from matplotlib.figure import Figure

from xuqlib.study.checked import Columns, Count, Maps, Table, check_columns, checked, shown
from xuqlib.study.figures.charts import HUES, dots
from xuqlib.study.figures.maps import map_grid
from xuqlib.study.names import in_script, plain

Drawing = Callable[[pd.DataFrame, Mapping[str, object]], tuple[Figure, str]]
BY_CLASS = ("posterior", "explainer", "statistic")
RESULT = ("value", "low", "high", "n")
MOST_STILLS = 400  # combinations that `stills` draws; about 10 kB each
NO_RESULT = "No such result: choose another combination."


@checked
def explore(frame: Table, by: Columns, draw: Drawing, *, sliders: Sequence[str] = ()) -> ipywidgets.VBox:
    """Choose a value of each column in `by`, and see the figure and the sentence of the rows that have them.

    The children are one chooser per column, named after it: a row of buttons, operated by mouse or by Tab and Enter,
    or a slider, operated by mouse, or by Tab and the arrow keys; an `Image`; and an `HTML` line. Where no row has all
    chosen values, the line says so and the picture stays.
    While $XUQ_STILLS is set, `stills` are shown above it, for pages without a kernel.

    Args:
        frame: results, one observation per row.
        by: columns to choose by; a column with one value gets no chooser.
        draw: (rows chosen, chosen values) to a figure and one sentence about it, which is text and not HTML.
        sliders: those of `by` that get a slider; its stops are the column's values, in order of appearance.

    Raises:
        ValueError: the frame has no row, or no such column, or a slider is for a column that is not in `by`.
    """
    _check_sliders(sliders, by)
    options = {column: list(dict.fromkeys(frame[column])) for column in by}
    if os.environ.get("XUQ_STILLS"):
        display(HTML(stills(frame, by, draw, sliders=sliders)))
    choosers = {
        column: _chooser(column, values, column in sliders) for column, values in options.items() if len(values) > 1
    }
    picture = ipywidgets.Image(format="png", layout={"width": "640px", "max_width": "100%", "align_self": "flex-start"})
    line = ipywidgets.HTML()

    def show(_: object = None) -> None:
        chosen = {column: choosers[column].value if column in choosers else options[column][0] for column in by}
        rows = _chosen(frame, chosen)
        if rows.empty:
            line.value = NO_RESULT
            return
        figure, sentence = _drawn(draw, rows, chosen)
        picture.value, line.value = png(figure), html.escape(sentence)

    for chooser in choosers.values():
        chooser.observe(show, names="value")
    show()
    return ipywidgets.VBox([*choosers.values(), picture, line])


def _chooser(
    column: str, values: Sequence[object], slider: bool
) -> ipywidgets.ToggleButtons | ipywidgets.SelectionSlider:
    """Buttons or a slider for the values of a column, labelled with its name."""
    named = [(_words(value), value) for value in values]
    label = {"description": _words(column)}
    if slider:
        return ipywidgets.SelectionSlider(
            options=named, **label, style={"description_width": "110px"}, layout={"width": "640px", "max_width": "100%"}
        )
    # Not a Dropdown: JupyterLab keeps its arrow keys and letters for commands to the notebook.
    return ipywidgets.ToggleButtons(
        options=named, **label, style={"description_width": "110px", "button_width": "auto"}
    )


@checked
def stills(
    frame: Table,
    by: Columns,
    draw: Drawing,
    *,
    sliders: Sequence[str] = (),
    most: Count = MOST_STILLS,
) -> str:
    """Draw what `explore` shows for every combination, as HTML that needs no kernel.

    Of a chooser with too many combinations, the column with the most values keeps its first ones only, and a line says
    how many are left. `pages` brings the few lines of script that switch between them.

    Args:
        frame, by, draw, sliders: as for `explore`.
        most: combinations to draw at most.
    """
    _check_sliders(sliders, by)
    options = {column: list(dict.fromkeys(frame[column])) for column in by}
    full = math.prod(map(len, options.values()))
    while math.prod(map(len, options.values())) > max(most, 1):
        max(options.values(), key=len).pop()
    shown: dict[str, list[str]] = {}
    for places in itertools.product(*(range(len(values)) for values in options.values())):
        chosen = {column: values[place] for (column, values), place in zip(options.items(), places, strict=True)}
        rows = _chosen(frame, chosen)
        figure, sentence = (None, NO_RESULT) if rows.empty else _drawn(draw, rows, chosen)
        shown[" ".join(map(str, places))] = [_small(png(figure)) if figure else "", sentence]
    first = next(found for found in shown.values() if found[0])
    left = "" if len(shown) == full else f"<p>{len(shown)} of {full} combinations; the notebook has all of them.</p>"
    fields = "".join(
        (_range if column in sliders and len(values) > 1 else _radios)(column, values)
        for column, values in options.items()
    )
    return (
        f'<div class="chooser">{fields}{left}<img alt="Figure of the chosen results" src="{first[0]}">'
        f'<p aria-live="polite">{html.escape(first[1])}</p>'
        f'<script type="application/json">{in_script(shown)}</script></div>'
    )


def _words(name: object) -> str:
    """A value or column as it is read."""
    return plain(name).replace("_", " ")


def _chosen(frame: pd.DataFrame, chosen: Mapping[str, object]) -> pd.DataFrame:
    """The rows that have all chosen values."""
    for column, value in chosen.items():
        frame = frame[frame[column] == value]
    return frame


def _radios(column: str, values: Sequence[object]) -> str:
    """Radio buttons for the values of a column; none for a single value. The script gives each group its name."""
    words = [html.escape(_words(value)) for value in values]
    buttons = "".join(
        f'<label><input type="radio" value="{place}"{" checked" * (not place)}> {word}</label>'
        for place, word in enumerate(words)
    )
    hidden = " hidden" if len(values) == 1 else ""
    return f"<fieldset{hidden}><legend>{html.escape(_words(column))}</legend>{buttons}</fieldset>"


def _range(column: str, values: Sequence[object]) -> str:
    """A slider over the places of a column's values; the script writes the value beside it."""
    words = [_words(value) for value in values]
    name, stops = html.escape(_words(column)), html.escape(json.dumps(words))
    slider = f'<input type="range" min="0" max="{len(words) - 1}" value="0" aria-label="{name}" data-stops="{stops}">'
    return f"<fieldset><legend>{name}</legend>{slider}<output>{html.escape(words[0])}</output></fieldset>"


def _small(picture: bytes) -> str:
    """A PNG as a data address, with a palette: about a third of the bytes."""
    buffer = io.BytesIO()
    with PIL.Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(96).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@checked
def png(figure: Figure) -> bytes:
    """The figure as the bytes of a small PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


@checked
def explore_draws(maps: Maps) -> ipywidgets.VBox:
    """Step through the draws behind a mean, by `draw_step`.

    Args:
        maps: one example's attributions, (draw, height, width).

    Raises:
        ValueError: the shape is another.
    """
    return explore(draw_distances(maps), ["draw"], lambda _, chosen: draw_step(maps, chosen), sliders=["draw"])


@checked
def draw_distances(maps: Maps) -> pd.DataFrame:
    """How far the mean of the first k draws is from the mean of all, relative to the size of that mean (L2 norms).

    Args:
        maps: one example's attributions, (draw, height, width).

    Returns:
        One row per draw k = 1 ... S: draw, distance; 0 at the last one, where both means are the same.

    Raises:
        ValueError: the shape is another.
    """
    if maps.ndim != 3 or not len(maps):
        raise ValueError(f"maps have shape {tuple(maps.shape)}; wanted (draw, height, width), one draw at least")
    flat = maps.detach().cpu().double().flatten(1)
    number = torch.arange(1, len(flat) + 1)
    running = flat.cumsum(0) / number[:, None]
    distance = (running - running[-1]).norm(dim=1) / running[-1].norm()
    return pd.DataFrame({"draw": number, "distance": distance})


@checked
def draw_step(maps: Maps, chosen: Mapping[str, object]) -> tuple[Figure, str]:
    """One draw's map, the mean of the draws up to it, the mean of all, and how far these two are apart.

    Args:
        maps: as for `explore_draws`.
        chosen: draw, counted from 1.

    Returns:
        The figure, its three maps on one colour scale, which is the same for every draw; and a sentence.

    Raises:
        ValueError: the shape is another.
    """
    _check_chosen(chosen, "draw")
    frame, k = draw_distances(maps), int(str(chosen["draw"]))
    row: list[torch.Tensor | None] = [maps[k - 1], maps[:k].mean(0), maps.mean(0), None]
    heads = (f"draw {k}", f"mean of {k}", f"mean of all {len(maps)}", "distance of\nthe two means")
    figure = map_grid([row], kinds=["signed"] * 4, column_titles=heads, dataset="")
    limit = float(maps.detach().abs().double().quantile(0.995)) or 1.0
    for axes in figure.axes[:3]:
        axes.images[0].set_clim(-limit, limit)
        axes.set_xlabel(f"±{limit:.2g}", fontsize=14.5)
    axes = figure.axes[3]
    axes.plot(frame["draw"], frame["distance"], color=HUES[0], linewidth=2)
    axes.plot(k, frame["distance"][k - 1], "o", color=HUES[4], markersize=11)
    top = max(0.0, frame["distance"].max())
    axes.set(xticks=[1, len(maps)], yticks=[0, top], yticklabels=["0", f"{top:.0%}"], box_aspect=1)
    axes.set_xlabel("draws", fontsize=14.5)
    figure.set_layout_engine("none")  # it would lay out each figure twice, and a slider should not wait
    for place, axes in enumerate(figure.axes):
        axes.set_position((0.01 + 0.24 * place + 0.05 * (place == 3), 0.1, 0.2, 0.7))
    sentence = f"Draw {k}; the mean of the first {k} is {frame['distance'][k - 1]:.1%} away from the mean of all."
    return figure, sentence


@checked
def explore_classes(frame: Table) -> ipywidgets.VBox:
    """Choose posterior, explainer, statistic and class, and see that class among the others, by `class_dots`.

    Args:
        frame: results, one per row: columns posterior, explainer, statistic, class, value, low, high and n; a row
            whose value is NaN counts as no result.

    Raises:
        ValueError: the frame has no row, or lacks a column.
    """
    check_columns(frame, *BY_CLASS, "class", *RESULT)
    frame = frame.dropna(subset="value")
    return explore(frame, [*BY_CLASS, "class"], lambda _, chosen: class_dots(frame, chosen))


@checked
def class_dots(frame: Table, chosen: Mapping[str, object]) -> tuple[Figure, str]:
    """All classes of one posterior, explainer and statistic, the chosen class marked, and a sentence about it.

    Args:
        frame: as for `explore_classes`.
        chosen: posterior, explainer, statistic and class.

    Returns:
        The figure, classes from the largest value down; the sentence gives the class's value, interval and place.

    Raises:
        ValueError: the frame lacks a column, or no row is chosen.
    """
    check_columns(frame, *BY_CLASS, "class", *RESULT)
    _check_chosen(chosen, *BY_CLASS, "class")
    rows = frame
    for column in BY_CLASS:
        rows = rows[rows[column] == chosen[column]]
    rows = rows.sort_values("value", ascending=False, kind="stable", ignore_index=True)
    marked = rows.index[rows["class"] == chosen["class"]]
    if marked.empty:
        raise ValueError(f"no row for {', '.join(map(str, chosen.values()))}; choose values that the frame has")
    place, row = int(marked[0]), rows.loc[marked[0]]
    statistic = plain(chosen["statistic"])
    title = ", ".join(_words(chosen[column]) for column in ("posterior", "explainer"))
    of = "95 % over examples"
    figure = dots(rows, x="value", y="class", low="low", high="high", interval=of, label=statistic, title=title)
    figure.axes[0].axhspan(place - 0.5, place + 0.5, color=HUES[1], alpha=0.35, zorder=0)
    sentence = (
        f"{plain(row['class'])}: {statistic} {row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g}, {of}, "
        f"n = {row['n']}); number {place + 1} of {len(rows)} classes, the largest first."
    )
    return figure, sentence


def _check_chosen(chosen: Mapping[str, object], *wanted: str) -> None:
    if missing := [name for name in wanted if name not in chosen]:
        raise ValueError(f"chosen is {dict(chosen)}; choose a value of {', '.join(missing)}")


def _check_sliders(sliders: Sequence[str], by: Sequence[str]) -> None:
    if set(sliders) - set(by):
        raise ValueError(f"sliders are {list(sliders)} but the columns to choose by are {list(by)}; name some of these")


def _drawn(draw: Drawing, rows: pd.DataFrame, chosen: Mapping[str, object]) -> tuple[Figure, str]:
    drawn = draw(rows, chosen)
    if not isinstance(drawn, tuple) or len(drawn) != 2:
        raise TypeError(f"draw gave {shown(drawn)}; let it return a figure and a sentence")
    return drawn
