"""Means, gaps and correlations by class, each with its bootstrap interval."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from xuqlib.study import intervals
from xuqlib.study.intervals import Estimate, class_correlation, class_gap, class_means, correlation

TWO = pd.DataFrame({"class": ["b", "b", "b", "a", "a"], "value": [1.0, 2.0, 6.0, 10.0, 14.0]})


def many(n=300, seed=0):
    """Classes a, b, c of n examples each; noise alone, but value is 2 times entropy."""
    stream = np.random.default_rng(seed)
    entropy = stream.random(3 * n)
    frame = pd.DataFrame({"class": np.repeat(["a", "b", "c"], n), "entropy": entropy, "value": 2 * entropy})
    return frame.assign(noise=stream.normal(size=3 * n))


def test_an_estimate_is_above_a_bound_only_where_its_interval_decides():
    assert Estimate(2, 1, 3).above(0.5) is True
    assert Estimate(2, 1, 3).above(3) is False
    assert Estimate(2, 1, 3).above(1.5) is None
    assert Estimate(math.nan, math.nan, math.nan).above(0) is None
    assert tuple(Estimate(0.0, -math.log(2), math.log(2)).exp()) == pytest.approx((1, 0.5, 2))


def test_a_class_mean_is_that_of_its_examples_and_its_interval_that_of_their_standard_error():
    table = class_means(TWO, ["value"]).set_index("class")
    assert list(table.index) == ["b", "a"]  # in order of appearance
    assert table.loc["b", "value"] == 3
    assert table.loc["a", "value"] == 12
    assert table["n"].to_list() == [3, 2]
    assert table.loc["a", ["low", "high"]].to_list() == [10, 14]  # of two examples every mean is 10, 12 or 14
    wide = class_means(many(), ["noise"])
    error = 1.96 / math.sqrt(300)  # 1000 resamples give a quantile to about 4 %
    np.testing.assert_allclose(wide["high"] - wide["low"], 2 * error, rtol=0.15)


def test_the_bootstrap_depends_on_its_seed_alone():
    first = class_means(many(), ["noise"], seed=1)
    pd.testing.assert_frame_equal(class_means(many(), ["noise"], seed=1), first)
    assert not class_means(many(), ["noise"], seed=2)["low"].equals(first["low"])


def test_an_example_without_a_number_does_not_count_and_one_example_has_no_interval():
    frame = pd.DataFrame({"class": ["a", "a", "b"], "value": [1.0, math.nan, math.nan], "whole": [1.0, 2.0, 3.0]})
    table = class_means(frame, ["value", "whole"]).set_index(["statistic", "class"])
    assert list(table.index) == [("value", "a"), ("whole", "a"), ("whole", "b")]
    assert table["n"].to_list() == [1, 2, 1]
    assert table["low"].isna().to_list() == [True, False, True]


def test_the_gap_of_a_class_is_to_the_mean_of_the_other_classes_means():
    frame = pd.DataFrame({"class": ["a", "b", "b", "c"], "value": [5.0, 1.0, 1.0, 3.0]})
    assert tuple(class_gap(frame, "value", "a")) == (3, 3, 3)  # 5 - (1 + 3) / 2, and no class varies
    gap = class_gap(TWO, "value", "a")
    assert gap.value == 9
    assert gap.low < 9 < gap.high


def test_the_gap_of_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="wanted 'z'"):
        class_gap(TWO, "value", "z")
    with pytest.raises(ValueError, match="one more"):
        class_gap(TWO[:3], "value", "b")


def test_the_correlation_over_classes_is_that_of_the_class_means():
    frame = pd.DataFrame({"class": ["a", "b", "c", "d"], "x": [1.0, 2.0, 3.0, 4.0], "y": [10.0, 30.0, 20.0, 40.0]})
    assert class_correlation(frame, "x", "y").value == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)
    assert all(math.isnan(end) for end in class_correlation(frame.assign(y=1.0), "x", "y"))


def test_rounding_decides_no_tie_between_classes():
    thirds = {"a": [1 / 3, 2 / 3, 0.0, 0.0], "b": [0.5, 0.25, 0.125, 0.125], "c": [0.0, 0.0, 0.0, 0.0]}
    thirds["d"] = [0.2, 0.4, 0.2 + 0.2, 1e-9]  # means 1/4, 1/4, 0, 1/4 + 2.5e-10
    frame = pd.DataFrame([(name, value) for name, values in thirds.items() for value in values], columns=["class", "y"])
    frame["x"] = frame["class"].map({"a": 1.0, "b": 2.0, "c": 0.0, "d": 3.0})
    # Ranks of x 2, 3, 1, 4; of y 3, 3, 1, 3: covariance 3, squares 5 and 3.
    assert class_correlation(frame, "x", "y").value == pytest.approx(3 / math.sqrt(15))
    wide = frame.pivot_table("y", index=frame.groupby("class").cumcount(), columns="class").to_numpy()
    asked = np.tile([1.0, 2.0, 0.0, 3.0], (4, 1))
    assert intervals.bootstrapped("rank correlation of column means", asked, wide).value == pytest.approx(
        3 / math.sqrt(15)
    )


def test_the_correlation_over_examples_is_that_of_scipy_ties_included():
    stream = np.random.default_rng(3)
    frame = pd.DataFrame({"class": "a", "x": stream.integers(5, size=200), "y": stream.normal(size=200)})
    frame["y"] += frame["x"]
    found = correlation(frame, "x", "y")
    assert found.value == pytest.approx(spearmanr(frame["x"], frame["y"]).statistic, abs=1e-12)
    assert 0 < found.low < found.value < found.high < 1
    # Fisher: an interval of about 2 * 1.96 / sqrt(n - 3) in atanh.
    assert math.atanh(found.high) - math.atanh(found.low) == pytest.approx(3.92 / math.sqrt(197), rel=0.3)


def test_within_classes_a_difference_between_classes_makes_no_correlation():
    frame = many().assign(
        x=lambda f: f["noise"] + 10 * f["class"].eq("a"), y=lambda f: f["entropy"] + 10 * f["class"].eq("a")
    )
    assert correlation(frame, "x", "y").value > 0.6
    inside = [spearmanr(part["x"], part["y"]).statistic for _, part in frame.groupby("class")]
    assert correlation(frame, "x", "y", within=True).value == pytest.approx(np.mean(inside), abs=1e-12)
    assert abs(np.mean(inside)) < 0.1


def test_within_classes_of_two_examples_no_correlation_is_defined():
    found = correlation(TWO[3:].assign(other=[1.0, 2.0]), "value", "other", within=True)
    assert math.isnan(found.value)
    assert found.above(0) is None


def test_a_frame_without_examples_is_refused():
    with pytest.raises(ValueError, match="no example has value"):
        class_means(TWO.assign(value=math.nan), ["value"])
