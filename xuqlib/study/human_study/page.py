"""A page on which people compare maps, and the pairs of maps that it shows."""

from __future__ import annotations

import html
import sqlite3
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import ipywidgets
import numpy as np
from torch import Tensor

from xuqlib.study.checked import Amount, Facts, Seed, checked
from xuqlib.study.data.loading import Examples
from xuqlib.study.figures.maps import HIDDEN, map_pngs, picture_png
from xuqlib.study.human_study.pairs import CHOICES, Pair, PairStudy, Showing, chance

QUESTION = "Which map explains this answer better?"
SHORTEST = 0.3  # seconds; nobody compares two maps faster, so an answer that comes sooner is a second click


@checked
def pairs_of(
    examples: Examples,
    maps: Mapping[str, Tensor],
    facts: Facts,
    *,
    captions: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    seed: Seed = 0,
) -> list[Pair]:
    """Every two maps of each example. Each map has its own colour scale, as maps of unlike units must.

    Which of the two is called first is left to chance, so that guessing agrees half of the time, whatever the taste.

    Args:
        examples: pictures; those of `figures.HIDDEN` data sets are left out of the pairs, and their maps stay.
        maps: name of each map to its values, (N, C, H, W) or (N, H, W).
        facts: name of each metric to one number per example, of each map.
        captions: what is said above each example, such as the network's answer.
        kinds: of each map, as in `figures.map_grid`; "signed" by default.
        seed: of the choice which map is first.

    Raises:
        ValueError: fewer than two maps, maps or captions for other examples, or a metric without one of the maps.
    """
    lengths = sorted({len(examples), len(captions), *map(len, maps.values())})
    if len(maps) < 2 or len(lengths) > 1 or any(set(of) != set(maps) for of in facts.values()):
        raise ValueError(
            f"{len(maps)} maps ({', '.join(maps)}), captions and examples number {lengths}, metrics are "
            f"{', '.join(facts)}; pass two maps or more, each with every metric, for the same examples"
        )
    pairs = []
    for i, (row, x) in enumerate(zip(examples.index.tolist(), examples.x, strict=True)):
        pixels = (x.clamp(0, 1) * 255).byte().permute(1, 2, 0).expand(-1, -1, 3).numpy()
        picture = None if examples.name in HIDDEN else picture_png(np.ascontiguousarray(pixels))
        drawn = {
            name: map_pngs({name: values[i]}, kind=(kinds or {}).get(name, "signed"))[name][0]
            for name, values in maps.items()
        }
        for two in combinations(sorted(maps), 2):
            name = f"{examples.name} {row}: {two[0]} or {two[1]}"
            a, b = two if chance(seed, name)[0] % 2 else two[::-1]
            values = {metric: (float(of[a][i]), float(of[b][i])) for metric, of in facts.items()}
            pairs.append(Pair(name, row, a, b, captions[i], values, picture, drawn[a], drawn[b]))
    return pairs


@checked
def page(study: PairStudy, *, question: str = QUESTION, shortest: Amount = SHORTEST) -> ipywidgets.VBox:
    """A page that shows one pair after the other and keeps the answers; Tab, Enter and Space suffice to work it.

    Its children are the name field, a line of text, the row of pictures, the row of buttons, and a line of progress.

    Args:
        study: where pairs come from and answers go.
        question: what is asked about each pair.
        shortest: an answer that comes sooner after its pair, in seconds, is not taken.
    """
    name = ipywidgets.Text(description="your name", placeholder="one to use again", continuous_update=False)
    buttons = [ipywidgets.Button(description=text, disabled=True) for text in (*CHOICES, "undo last answer")]
    images = [ipywidgets.Image(format="png", layout={"width": "256px"}) for _ in range(3)]
    heads = [ipywidgets.HTML(f"<b>{text}</b>") for text in ("picture", *CHOICES[:2])]
    columns = [ipywidgets.VBox(two, layout={"display": "none"}) for two in zip(heads, images, strict=True)]
    text, progress = ipywidgets.HTML("Type your name, or any other, and press Enter."), ipywidgets.HTML()
    now: dict[str, Any] = {"since": 0.0}

    def show(_: object = None) -> None:
        rater = " ".join(name.value.split())
        shown, (done, total) = (study.next(rater), study.progress(rater)) if rater else (None, (0, 0))
        now.update(rater=rater, shown=shown, since=time.monotonic())
        _fill(columns, images, shown)
        for button in buttons:
            button.disabled = not (done if button is buttons[-1] else shown)
        if rater:
            text.value = (
                f"{html.escape(shown.pair.caption)} <b>{html.escape(question)}</b>"
                if shown
                else "That was all. Thank you!"
            )
            progress.value = f"{html.escape(rater)}: {done} of {total} answered"

    def click(button: ipywidgets.Button) -> None:
        seconds = time.monotonic() - now["since"]
        try:
            if button is buttons[-1]:
                study.undo(now["rater"])
            elif seconds >= shortest and now["shown"]:
                study.answer(now["rater"], now["shown"], button.description, seconds)
            show()
        except (sqlite3.Error, ValueError) as error:  # said on the page: Jupyter would hide it in a log
            progress.value = f"<b>Not kept: {html.escape(str(error))}</b>"

    name.observe(show, names="value")
    for button in buttons:
        button.on_click(click)
    return ipywidgets.VBox([name, text, ipywidgets.HBox(columns), ipywidgets.HBox(buttons), progress])


def _fill(columns: Sequence[Any], images: Sequence[Any], shown: Showing | None) -> None:
    """Put the pictures of a pair on the page, or hide what there is none of."""
    pair = shown.pair if shown else None
    maps = [pair.first_map, pair.second_map][:: -1 if shown and shown.flipped else 1] if pair else [None, None]
    for column, image, png in zip(columns, images, [pair.picture if pair else None, *maps], strict=True):
        column.layout.display = "flex" if png else "none"
        image.value = png or b""
