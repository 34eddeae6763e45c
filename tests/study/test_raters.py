from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest

from xuqlib.study.human_study.raters import LEVELS, alpha_interval, follows_metric, krippendorff_alpha, results
from xuqlib.study.intervals import wilson

X = None
# Krippendorff 2011, section C and E: four observers, twelve units, five values, with gaps.
FOUR_OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, X, X, X],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, X, 3],
    [X, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, X],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, X],
]


def slow_alpha(ratings, distance):
    """Straight from the definition: mean distance within items, over mean distance among all ratings together."""
    items = [[r for r in item if r == r and r is not None] for item in zip(*ratings, strict=True)]
    items = [item for item in items if len(item) > 1]
    everything = [r for item in items for r in item]
    inside = sum(sum(distance(*two) for two in permutations(item, 2)) / (len(item) - 1) for item in items)
    among = sum(distance(*two) for two in permutations(everything, 2))
    return 1 - (inside / len(everything)) / (among / len(everything) / (len(everything) - 1))


def random_ratings(seed, raters=4, items=15, values=4):
    generator = np.random.default_rng(seed)
    ratings = generator.integers(0, values, (raters, items)).astype(float)
    ratings[:2] = ratings[0]
    ratings[generator.random(ratings.shape) < 0.3] = np.nan
    return ratings.tolist()


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_one_that_krippendorff_worked_out_by_hand(level, published):
    assert krippendorff_alpha(FOUR_OBSERVERS, level) == pytest.approx(published, abs=5e-4)


def test_alpha_of_labels_and_of_two_values_is_the_published_one():
    assert krippendorff_alpha([list("aabbdcccedda"), list("babbbccceddd")]) == pytest.approx(0.692, abs=5e-4)
    two = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert krippendorff_alpha(two) == pytest.approx(0.095, abs=5e-4)


@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_the_slow_definition(seed):
    ratings = random_ratings(seed)
    pairable = [r for item in zip(*ratings, strict=True) if np.isfinite(item).sum() > 1 for r in item if r == r]

    def between(a, b):
        low, high = min(a, b), max(a, b)
        return (sum(low <= r <= high for r in pairable) - (pairable.count(a) + pairable.count(b)) / 2) ** 2

    distances = {"nominal": lambda a, b: a != b, "interval": lambda a, b: (a - b) ** 2, "ordinal": between}
    for level in LEVELS:
        assert krippendorff_alpha(ratings, level) == pytest.approx(slow_alpha(ratings, distances[level]), abs=1e-12)


def test_full_agreement_is_one_and_steady_disagreement_is_below_zero():
    assert krippendorff_alpha([[0, 1, 1], [0, 1, 1]]) == 1
    assert krippendorff_alpha([[0, 1, 0, 1], [1, 0, 1, 0]]) < 0


def test_raters_who_are_right_with_probability_p_have_alpha_near_its_expectation():
    generator, truth = np.random.default_rng(0), np.arange(4000) % 2
    for p in (0.5, 0.7, 0.9):
        ratings = np.where(generator.random((4, 4000)) < p, truth, 1 - truth)
        # Two raters differ with probability 2 p (1 - p), and by chance with 1 / 2: alpha = (2 p - 1) ** 2.
        assert krippendorff_alpha(ratings.tolist()) == pytest.approx((2 * p - 1) ** 2, abs=0.03)
        _, low, high = alpha_interval(ratings.tolist(), num_resamples=100)
        assert low < (2 * p - 1) ** 2 < high
        assert high - low < 0.06


@pytest.mark.parametrize("ratings", [[], [[X, 1], [1, X]], [[1, 1, 1], [1, 1, X]]])
def test_alpha_is_nan_where_nothing_can_be_compared_or_nothing_varies(ratings):
    assert np.isnan(krippendorff_alpha(ratings))
    assert np.isnan(list(alpha_interval(ratings, num_resamples=10))).all()


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="nominal, ordinal, interval"):
        krippendorff_alpha(FOUR_OBSERVERS, "ratio")


def test_wilson_solves_its_quadratic_and_stays_inside_zero_and_one():
    for share, n in [(0.5, 10), (0.9, 20), (0.0, 5), (1.0, 5)]:
        found = wilson(share, n)
        for end in (found.low, found.high):
            assert (share - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / n, abs=1e-7)
    assert wilson(1.0, 5).low > 0.5 and wilson(1.0, 5).high == pytest.approx(1)
    assert np.isnan([wilson(0.5, 0).low, wilson(0.5, 0).high]).all()


def answers(prefers, first=(3.0, 1.0, 2.0, 5.0), second=(1.0, 2.0, 2.0, 1.0), showing=1):
    """Answers of raters, one list each, to four pairs; the maps of the third pair have the same value."""
    rows = [
        {"rater": f"r{i}", "pair": j, "showing": showing, "choice": "left", "prefers_first": value}
        | {"inside_first": first[j], "inside_second": second[j]}
        for i, each in enumerate(prefers)
        for j, value in enumerate(each)
    ]
    return pd.DataFrame(rows)


def test_following_a_metric_counts_each_pair_once_and_leaves_out_ties_and_silence():
    frame = follows_metric(answers([[1, 0, 1, 0.5], [1, 1, 0, 1], [1, 0, 0, 0]]), "inside").set_index("what")
    row = frame.loc["prefer the map with more inside"]
    assert row["value"] == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)  # of 3 raters, of 3, of the 2 who could say
    assert row["n"] == 3
    assert tuple(row[["value", "low", "high"]]) == pytest.approx(tuple(wilson(13 / 18, 3)))


def test_the_rank_correlation_is_that_of_difference_and_share():
    frame = follows_metric(answers([[1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]]), "inside").set_index("what")
    assert frame.loc["rank correlation with inside", "value"] == pytest.approx(1)  # 2, -1, 4 against 2/3, 0, 1
    backwards = follows_metric(answers([[0, 1, 1, 0]]), "inside")["value"]
    assert backwards[0] == 0 and backwards[1] < 0


def test_a_metric_without_a_value_for_a_pair_leaves_the_pair_out():
    frame = follows_metric(answers([[1, 0, 1, 1]], first=(np.nan, 1.0, 2.0, 5.0)), "inside")
    assert list(frame["n"]) == [2, 2]


def test_answers_that_rank_nothing_give_nan_and_no_warning():
    frame = follows_metric(answers([[0.5, 0.5, 0.5, 0.5]]), "inside")
    assert frame["value"].isna().all() and frame["low"].isna().all()
    assert follows_metric(answers([[1, 1, 1, 1]]), "inside")["value"].isna().tolist() == [False, True]


def test_a_metric_that_the_answers_lack_is_named_with_those_they_have():
    with pytest.raises(ValueError, match=r"no metric 'size'; known: inside$"):
        follows_metric(answers([[1, 0, 1, 1]]), "size")


def test_without_answers_the_tables_say_so_and_hold_no_number():
    for frame in (results(answers([]), ["inside"]), follows_metric(answers([]), "inside")):
        assert frame.to_dict("list") == {"what": ["no answers yet"]}


def test_the_results_of_known_answers_are_those_counted_by_hand():
    again = answers([[1, 1, 1, 1]], showing=2)
    told = pd.concat([answers([[1, 0, 0.5, 1], [1, 0, 1, 0]]), again], ignore_index=True)
    told.loc[:1, "choice"] = "right"
    frame = results(told, ["inside"]).set_index("what")
    assert frame.loc["raters", "value"] == 2
    assert frame.loc["could not say", "value"] == pytest.approx(1 / 12)
    assert frame.loc["chose the left side", "value"] == pytest.approx(9 / 11)  # of the answers that chose
    assert frame.loc["same answer twice", "value"] == pytest.approx(2 / 4)
    nominal = slow_alpha([[1, 0, X, 1], [1, 0, 1, 0]], lambda a, b: a != b)
    assert frame.loc["agreement: alpha, nominal", "value"] == pytest.approx(nominal)
    assert frame.loc["agreement: alpha, nominal", "n"] == 3  # pairs that two raters decided
    assert frame.loc["agreement: alpha, ordinal", "n"] == 4
    assert frame.loc["prefer the map with more inside", "value"] == pytest.approx(2.5 / 3)  # repeats do not count
    assert "rank correlation with inside" in frame.index
