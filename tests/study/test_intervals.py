"""The statistics of the study: means with intervals, resamples, and the verdicts that they decide."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xuqlib.study.intervals import (
    BOOTSTRAP,
    OVER_EXAMPLES,
    OVER_SEEDS,
    Estimate,
    bootstrap,
    bootstrapped,
    clustered,
    from_resamples,
    mean_of_examples,
    mean_of_trainings,
    measured_once,
    over_examples,
    over_seeds,
    ratio_of_rounds,
    roc_area,
    wilson,
)
from xuqlib.study.record import Notebook


def test_an_estimate_unpacks_to_value_low_and_high():
    value, low, high = Estimate(2.0, 1.0, 3.0, "of something", n=7)
    assert (value, low, high) == (2, 1, 3)
    assert tuple(Estimate(0.0, -1.0, 1.0).exp()) == pytest.approx((1, math.exp(-1), math.e))


@pytest.mark.parametrize(
    ("low", "high", "above", "between"),
    [(1, 3, True, False), (-3, -1, False, False), (-1, 1, None, None), (0.2, 0.8, True, True), (0, 3, None, None)],
)
def test_an_interval_decides_a_bound_only_where_all_of_it_lies_on_one_side(low, high, above, between):
    estimate = Estimate((low + high) / 2, low, high)
    assert estimate.above(0) is above
    assert estimate.between(0.1, 0.9) is between
    assert Estimate(0.0).above(0) is None and Estimate(0.0).between(-1, 1) is None  # without an interval


def test_a_mean_of_examples_has_two_standard_errors():
    estimate = mean_of_examples([2.0, 4.0, 2.0, 4.0])  # standard deviation 2 / sqrt(3)
    assert tuple(estimate) == pytest.approx((3, 3 - 2 / 3**0.5, 3 + 2 / 3**0.5))
    assert (estimate.of, estimate.n, estimate.seeds) == (OVER_EXAMPLES, 4, 1)


def test_the_difference_of_two_groups_carries_the_error_of_both():
    estimate = mean_of_examples([2.0, 4.0], against=[0.0, 1.0, 2.0])
    assert estimate.value == pytest.approx(2)
    assert (estimate.high - estimate.value) / 2 == pytest.approx((2 / 2 + 1 / 3) ** 0.5)


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_a_mean_of_examples_needs_two_finite_numbers(values):
    with pytest.raises(ValueError, match="two or more finite"):
        mean_of_examples(values)


def test_a_mean_of_trainings_is_scipys_t_interval():
    values = [0.1, 0.4, 0.2, 0.9]
    wanted = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert tuple(mean_of_trainings(values)) == pytest.approx((0.4, *wanted))
    assert (mean_of_trainings(values).of, mean_of_trainings(values).seeds) == (OVER_SEEDS, 4)


def test_one_training_and_trainings_that_are_all_the_same_decide_nothing():
    assert mean_of_trainings([1.0]).above(0) is None
    assert mean_of_trainings([1.0, 1.0, 1.0]).above(0) is None
    assert mean_of_trainings([1.0, 1.01, 1.02]).above(0) is True


def grid(trainings, examples, stream, training_std=1.0, example_std=1.0, noise=0.3):
    """Numbers whose mean is 0, with a part for each training, a part for each example, and noise."""
    values = (
        training_std * stream.normal(size=(trainings, 1))
        + example_std * stream.normal(size=(1, examples))
        + noise * stream.normal(size=(trainings, examples))
    )
    seed, example = np.indices(values.shape)
    return pd.DataFrame({"seed": seed.ravel(), "example": example.ravel(), "score": values.ravel()})


def test_a_clustered_interval_equals_one_resample_at_a_time():
    frame = grid(3, 5, np.random.default_rng(0))
    table = frame.pivot(index="seed", columns="example", values="score").to_numpy()
    stream = np.random.default_rng(7)
    trainings = stream.multinomial(3, np.full(3, 1 / 3), 50)
    examples = stream.multinomial(5, np.full(5, 1 / 5), 50)
    means = [
        np.mean([table[t, e] for t in np.repeat(range(3), a) for e in np.repeat(range(5), b)])
        for a, b in zip(trainings, examples, strict=True)
    ]
    wanted = (table.mean(), *np.quantile(means, [0.025, 0.975]))
    estimate = clustered(frame, "score", num_resamples=50, seed=7)
    assert tuple(estimate) == pytest.approx(wanted, rel=1e-12)
    assert (estimate.n, estimate.seeds, estimate.of) == (5, 3, "95 % bootstrap over 3 trainings and 5 examples")


def test_a_clustered_interval_holds_the_mean_where_one_over_examples_alone_does_not():
    stream, held, alone, runs = np.random.default_rng(1), 0, 0, 120
    for run in range(runs):
        frame = grid(12, 40, stream)
        low, high = list(clustered(frame, "score", num_resamples=200, seed=run))[1:]
        held += low <= 0 <= high
        low, high = list(mean_of_examples(frame["score"]))[1:]
        alone += low <= 0 <= high
    assert held / runs > 0.85  # of 0.95; a percentile bootstrap of twelve trainings is a little narrow
    assert alone / runs < 0.4


def test_with_one_training_a_clustered_interval_says_so():
    estimate = clustered(grid(1, 50, np.random.default_rng(2)), "score")
    assert estimate.seeds == 1 and estimate.of == f"{BOOTSTRAP}, this training"


def test_missing_numbers_of_a_grid_do_not_count():
    frame = grid(3, 6, np.random.default_rng(3))
    thinned = frame.drop(index=[1, 8])
    assert clustered(thinned, "score").value == pytest.approx(thinned["score"].mean())
    with pytest.raises(ValueError, match="1 examples have a 'score'"):
        clustered(frame[frame["example"] == 0], "score")


def test_resamples_that_are_undefined_do_not_count_and_an_undefined_value_has_no_interval():
    values = np.array([0.5, *np.linspace(0, 1, 41), np.nan])
    assert tuple(from_resamples(values)) == pytest.approx((0.5, 0.025, 0.975))
    assert np.isnan(list(from_resamples(np.array([np.nan, 1.0])))).all()


def test_a_wilson_interval_is_scipys():
    for count, n in [(0, 5), (3, 10), (5, 5)]:
        wanted = stats.binomtest(count, n).proportion_ci(method="wilson")
        assert tuple(wilson(count / n, n)) == pytest.approx((count / n, wanted.low, wanted.high))


def test_a_bootstrap_keeps_the_rows_of_all_tables_together():
    a = np.random.default_rng(0).normal(size=30)
    value, low, high = bootstrap(lambda a, b: (a - b).mean(), a, a + 1)
    assert (value, low, high) == pytest.approx((-1, -1, -1))


def test_a_named_statistic_is_bootstrapped_like_a_function():
    stream = np.random.default_rng(4)
    a, b = stream.random((25, 3)), stream.random((25, 3))
    ends = bootstrap(lambda a, b: stats.spearmanr(a.mean(0), b.mean(0)).statistic, a, b, seed=2)
    found = bootstrapped("rank correlation of column means", a, b, seed=2)
    assert tuple(found) == pytest.approx(tuple(map(float, ends)))
    assert found.n == 25 and list(found.rows) == ["example", "a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]


def test_a_ratio_to_nothing_is_undefined():
    assert math.isnan(bootstrapped("ratio of means", np.ones(3), np.array([-1.0, 0, 1])).value)
    some = bootstrapped("ratio of means", np.ones(2), np.array([-1.0, 3.0]))  # resamples with a mean of -1 do not count
    assert tuple(some) == pytest.approx((1, 1 / 3, 1))


def test_calibration_errors_by_hand():
    confidence, right = np.array([0.95, 0.95, 0.55, 1.0]), np.array([1.0, 0.0, 1.0, 1.0])
    sure = np.ones(4)
    found = bootstrapped("difference of calibration errors", confidence, right, sure, right)
    last = abs(0.95 + 0.95 + 1.0 - 2)  # three in the last bin, two of them right
    assert found.value == pytest.approx((last + 0.45) / 4 - 1 / 4)


@pytest.mark.parametrize(
    ("tables", "message"), [((), "have"), ((np.ones(0),), "rows"), ((np.ones(2), np.ones(3)), "2, 3")]
)
def test_tables_of_no_or_of_unlike_examples_are_refused(tables, message):
    with pytest.raises(ValueError, match=message):
        bootstrapped("ratio of means", *tables)
    with pytest.raises(ValueError, match=f"{message}|list of numbers"):
        measured_once("slope of logarithms", *tables)


def test_an_area_and_its_gain_by_hand():
    clean, odd, rival = [1.0, 2.0], [2.0, 3.0, math.nan], ([5.0, 1.0, 1.0], [1.0, 1.0])
    area = roc_area(odd, clean)
    assert area.value == pytest.approx(3.5 / 4) and area.n == 3  # one tie; the NaN is in no pair
    gain = roc_area(odd, clean, other_values=rival[0], other_against=rival[1])
    assert gain.value == pytest.approx(3.5 / 4 - (2 + 4 * 0.5) / 6)
    with pytest.raises(ValueError, match="2 of those"):
        roc_area(odd, clean, paired=True)
    with pytest.raises(ValueError, match="other_against is missing"):
        roc_area(odd, clean, other_values=odd)


def test_pairs_are_resampled_together():
    clean = np.arange(30.0)
    paired, apart = (roc_area(clean + 0.5, clean, paired=each) for each in (True, False))
    assert paired.value == apart.value
    assert paired.high - paired.low < 0.5 * (apart.high - apart.low)


def test_a_ratio_of_rounds_by_hand():
    found = ratio_of_rounds([4.0, 6.0, 20.0], [2.0, 2.0, 4.0])
    assert tuple(found) == (3, 2, 5) and found.of == "range over rounds"
    with pytest.raises(ValueError, match="not above 0"):
        ratio_of_rounds([1.0], [0.0])


def test_what_was_measured_once_has_no_interval():
    assert tuple(measured_once("slope of logarithms", [1, 10, 100], [3, 300, 30000])) == pytest.approx((2, 2, 2))
    assert tuple(measured_once("largest over smallest, less 1", [2, 3, 4])) == (1, 1, 1)
    assert tuple(measured_once("share of the first in the sum", [3, 1])) == (0.75,) * 3


def test_tables_of_means_have_a_row_per_group_in_order_of_appearance():
    frame = pd.DataFrame({"who": ["b", "b", "a", "a"], "gain": [1.0, 3.0, 0.0, 0.0]})
    for table, make in (
        (over_examples(frame, ["who"], "gain"), mean_of_examples),
        (over_seeds(frame, ["who"]), mean_of_trainings),
    ):
        assert table["who"].tolist() == ["b", "a"]
        assert tuple(table.iloc[0][["gain", "low", "high"]]) == pytest.approx(tuple(make([1.0, 3.0])))


@pytest.mark.parametrize(("shift", "verdict"), [(3.0, "holds"), (-3.0, "fails"), (0.0, "undecided")])
def test_a_notebook_judges_an_estimate(figures, shift, verdict):
    study = Notebook("04", preset="quick", seed=0, dataset="planted")
    study.judge("above 0", mean_of_examples([shift - 1, shift + 1] * 2), unit="nats", claim="C9", source="a paper")
    study.judge("between", mean_of_examples([shift - 1, shift + 1] * 2), between=(shift - 2, shift + 2), seeds=3)
    first, second = (row for _, row in pd.read_csv(_claims(study, figures)).iterrows())
    assert (first["verdict"], second["verdict"]) == (verdict, "holds")
    assert (first["claim"], first["unit"], first["source"], first["note"]) == ("C9", "nats", "a paper", OVER_EXAMPLES)
    assert (first["n"], first["seeds"], second["seeds"], first["dataset"]) == (4, 1, 3, "planted")


def test_an_estimate_without_an_interval_is_undecided_and_two_rules_are_refused(figures):
    study = Notebook("04", preset="quick", seed=0)
    study.judge("one training", mean_of_trainings([1.0]))
    with pytest.raises(ValueError, match="two rules"):
        study.judge("both", mean_of_examples([1.0, 2.0]), above=0, between=(0, 1))
    (row,) = pd.read_csv(_claims(study, figures)).to_dict("records")
    assert row["verdict"] == "undecided" and math.isnan(row["low"]) and math.isnan(row["high"])


def _claims(study, figures):
    study.claims()
    return figures / "quick" / "04_claims.csv"


@pytest.mark.parametrize(
    ("estimate", "rule", "error", "message"),
    [
        (0.3, {}, TypeError, "rests on a float; pass an Estimate"),
        (Estimate(0.5, 0.1, 0.9), {"between": (1, 0)}, ValueError, "the lower bound first"),
        (Estimate(0.5, 0.1, 0.9), {"above": math.nan}, ValueError, "above is nan; pass a number that is finite"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(estimate, rule, error, message):
    with pytest.raises(error, match=message):
        Notebook("04", preset="quick", seed=0).judge("a claim", estimate, **rule)


def test_round_off_in_a_spread_of_nothing_decides_nothing():
    assert mean_of_trainings([0.1, 0.1, 0.1]).above(0) is None
