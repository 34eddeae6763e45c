from __future__ import annotations

import pandas as pd
import pytest

from xuqlib.study.figures.panels import panels


def test_each_value_of_the_column_gets_its_own_rows_in_order_of_appearance():
    frame = pd.DataFrame({"set": ["b", "a", "b"], "value": [1, 2, 3]})
    seen = []
    figure = panels(frame, lambda axes, part: seen.append(list(part["value"])), by="set", labels=("x", "y"), columns=1)
    assert seen == [[1, 3], [2]]
    assert [axes.get_title() for axes in figure.axes] == ["b", "a"]


def test_places_without_a_panel_are_left_empty():
    frame = pd.DataFrame({"set": list("abc"), "value": [1, 2, 3]})
    figure = panels(frame, lambda axes, part: axes.plot(part["value"]), by="set", labels=("x", "y"), columns=2)
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]


@pytest.mark.parametrize("frame", [pd.DataFrame({"set": []}), pd.DataFrame({"value": [1]})])
def test_a_frame_without_rows_or_without_the_column_is_refused(frame):
    with pytest.raises(
        ValueError, match="a frame of 0 rows with columns set|by is 'set'; pass a column of the frame, value"
    ):
        panels(frame, lambda axes, part: None, by="set", labels=("x", "y"))
