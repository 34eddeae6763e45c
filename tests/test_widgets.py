from __future__ import annotations

import ipywidgets
import pandas as pd
import pytest

from xuqlib.charts import Picture
from xuqlib.widgets import explore

FRAME = pd.DataFrame(
    {"posterior": ["a", "a", "b"], "statistic": ["cv", "entropy", "cv"], "kind": "one", "value": [1, 2, 3]}
)


def draw(rows, chosen):
    figure = Picture(figsize=(1, 1))
    figure.text(0, 0.5, str(rows["value"].iloc[0]))
    return figure, f"{chosen['posterior']}: {rows['value'].iloc[0]}"


def parts(box):
    *choosers, picture, line = box.children
    return {chooser.description: chooser for chooser in choosers}, picture, line


def test_choosing_a_value_shows_the_figure_and_the_sentence_of_its_rows():
    choosers, picture, line = parts(explore(FRAME, ["posterior", "statistic", "kind"], draw))
    assert list(choosers) == ["posterior", "statistic"]  # nothing to choose in kind
    assert line.value == "a: 1"
    first = picture.value
    assert bytes(first).startswith(b"\x89PNG")
    choosers["statistic"].value = "entropy"
    assert line.value == "a: 2"
    assert picture.value != first


def test_a_combination_without_results_is_said_and_the_picture_stays():
    choosers, picture, line = parts(explore(FRAME, ["posterior", "statistic"], draw))
    choosers["statistic"].value = "entropy"
    before = picture.value
    choosers["posterior"].value = "b"
    assert "No such result" in line.value
    assert picture.value == before
    choosers["statistic"].value = "cv"
    assert line.value == "b: 3"


def test_choosers_are_operated_by_keyboard_and_labelled():
    choosers, *_ = parts(explore(FRAME, ["posterior", "statistic"], draw))
    assert all(isinstance(chooser, ipywidgets.Dropdown) and chooser.description for chooser in choosers.values())


@pytest.mark.parametrize(("frame", "by"), [(FRAME.iloc[:0], ["posterior"]), (FRAME, ["nothing"])])
def test_a_frame_without_rows_or_column_is_refused(frame, by):
    with pytest.raises(ValueError, match="wanted"):
        explore(frame, by, draw)
