from __future__ import annotations

import pandas as pd
import pytest
import torch

from xuqlib.lessons.reporting import judge
from xuqlib.study.figures.maps import pixel_frame
from xuqlib.study.record import Notebook


def test_a_row_of_a_pixel_frame_is_the_same_pixel_of_every_map():
    frame = pixel_frame({"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.zeros(2, 2)})
    assert frame["pixel"].tolist() == [0, 1, 2, 3]
    assert frame["a"].tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(("shift", "verdict"), [(3.0, "holds"), (-3.0, "fails"), (0.0, "undecided")])
def test_two_standard_errors_decide_a_claim(figures, shift, verdict):
    study = Notebook("04", preset="quick", seed=0)
    values = pd.Series([-1.0, 1.0, -1.0, 1.0]) + shift  # standard error 2 / sqrt(3) / 2
    judge(study, "the mean is above 0", values)
    row = study.claims().iloc[0]
    assert row["verdict"] == verdict
    assert (row["high"] - row["low"]) / 4 == pytest.approx(1 / 3**0.5)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_claim_needs_two_finite_numbers(values):
    with pytest.raises(ValueError, match="two or more finite"):
        judge(Notebook("04", preset="quick", seed=0), "too little", pd.Series(values))


def test_the_difference_of_two_groups_carries_the_error_of_both(figures):
    study = Notebook("04", preset="quick", seed=0)
    judge(study, "more", pd.Series([2.0, 4.0]), against=pd.Series([0.0, 1.0, 2.0]))
    row = study.claims().iloc[0]
    assert row["value"] == pytest.approx(2)
    assert (row["high"] - row["value"]) / 2 == pytest.approx((2 / 2 + 1 / 3) ** 0.5)
