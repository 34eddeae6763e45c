"""Verdicts of the grid: differences that are decided or not, ranks, and means over seeds and explainers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_cells import definitions
from scipy.stats import kendalltau

from xuqlib.study.judging.scores import expected_calibration_error

CELLS = definitions("17", datasets=["d", "t"])
CRITERIA = list(CELLS.CRITERIA)
at_each_size, beats, best_depends, cell_means = CELLS.at_each_size, CELLS.beats, CELLS.best_depends, CELLS.cell_means
over_explainers, rank_agreement, rank_table = CELLS.over_explainers, CELLS.rank_agreement, CELLS.rank_table
ranking, resample_all = CELLS.ranking, CELLS.resample_all


def noise(count, seed):
    return np.random.default_rng(seed).standard_normal(count)


def made(means, spread=0.01, seed=0):
    """Resamples of columns a, b, ... with these means."""
    columns = np.array(means) + spread * np.random.default_rng(seed).standard_normal((500, len(means)))
    return pd.DataFrame(np.vstack([means, columns]), columns=list("abcdef")[: len(means)])


def test_resampled_calibration_is_that_of_each_resample():
    probs = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1) ** 3
    probs, truth = probs / probs.sum(1, keepdim=True), torch.arange(60) % 3
    confidence, answer = probs.max(1)
    rows = pd.DataFrame({"confidence": confidence.numpy(), "error": answer.ne(truth).double().numpy()})
    times = np.vstack([np.ones(60, dtype=int), np.random.default_rng(4).multinomial(60, np.full(60, 1 / 60), 2)])
    found = CELLS.calibration_error(rows, times / 60, column="confidence")
    for value, counts in zip(found, times, strict=True):
        picked = torch.arange(60).repeat_interleave(torch.from_numpy(counts))
        assert value == pytest.approx(expected_calibration_error(probs[picked], truth[picked]), abs=1e-6)


def test_a_ranking_by_hand():
    samples = pd.DataFrame({"a": [1.0, 1.0, 3.0], "b": [2.0, 2.0, 2.0]})
    found = ranking(samples).set_index("who")
    assert found["rank"].to_dict() == {"a": 1, "b": 2}
    assert found["first"].to_dict() == {"a": 0.5, "b": 0.5}  # of two resamples
    assert found.at["a", "low"] == pytest.approx(1.05)  # 2.5 % of the way from 1 to 3
    assert ranking(samples, sign=1).set_index("who")["rank"].to_dict() == {"a": 2, "b": 1}


def test_a_difference_counts_from_so_many_standard_errors_on():
    error = 0.01 * 2**0.5  # of a difference of two columns
    assert beats(made([0.0, 1.9 * error])).to_numpy().sum() == 0
    assert beats(made([0.0, 2.2 * error])).at["a", "b"]
    assert not beats(made([0.0, 2.2 * error]), num_comparisons=15).at["a", "b"]  # z is 2.94 there
    assert beats(made([0.0, 3.3 * error]), num_comparisons=15).at["a", "b"]
    assert beats(made([0.0, 3.3 * error]), sign=1).at["b", "a"]


def test_the_best_depends_on_the_data_where_two_decided_winners_differ():
    holds, best = best_depends({"x": made([0.0, 1.0, 2.0]), "y": made([1.0, 0.0, 2.0], seed=1)})
    assert holds is True and best == {"x": "a", "y": "b"}


def test_the_best_does_not_depend_where_one_beats_all_everywhere():
    assert best_depends({"x": made([0.0, 1.0, 2.0]), "y": made([0.0, 2.0, 1.0], seed=1)})[0] is False
    larger = best_depends({"x": made([0.0, 1.0]), "y": made([0.0, 2.0])}, sign=1)
    assert larger == (False, {"x": "b", "y": "b"})


def test_winners_within_the_noise_decide_nothing():
    assert best_depends({"x": made([0.0, 0.001, 2.0]), "y": made([0.001, 0.0, 2.0], seed=1)})[0] is None
    assert best_depends({"x": made([0.0, 1.0]), "y": made([0.0, 0.001], seed=1)})[0] is None
    decided, open_ = made([0.0, 1.0]), made([0.001, 0.0], seed=1)
    assert best_depends({"x": decided, "y": open_})[0] is best_depends({"x": open_, "y": decided})[0] is None


def test_columns_that_a_data_set_lacks_do_not_compete():
    assert best_depends({"x": made([1.0, 2.0, 0.0]), "y": made([0.0, 1.0])}) == (False, {"x": "a", "y": "a"})


def test_rank_agreement_is_kendalls_tau():
    a, b = made(noise(6, 2), spread=0.5), made(noise(6, 3), spread=0.5)
    value, low, high = rank_agreement(a, b)
    taus = [kendalltau(left, right).statistic for left, right in zip(a.to_numpy(), b.to_numpy(), strict=True)]
    assert value == pytest.approx(taus[0])
    assert (low, high) == pytest.approx(tuple(np.quantile(taus[1:], (0.025, 0.975))))
    assert rank_agreement(a, -a).value == -1
    assert rank_agreement(a, a[["e", "b"]]).value == 1  # only columns that both have, by name


def test_a_cell_mean_takes_seeds_before_examples():
    rows = [(0, 0, 1.0), (1, 0, 3.0), (0, 1, 6.0)]  # example 0 under two seeds, example 1 under one
    frame = pd.DataFrame(rows, columns=["seed", "example", "value_of"]).assign(name="a", empty=np.nan)
    found = cell_means(frame, ["value_of", "empty"], by=["name"])
    assert found.to_dict("records") == [
        {"name": "a", "measure": "value_of", "value": 4.0, "se": 2.0, "n": 2, "seeds": 2}  # of 2 and 6
    ]


def frames_of_a_grid():
    """Two data sets; posterior p has T of 2 and 4, q only 2; "t" is a regression, without areas or confidence."""
    rng, cells, predictions = np.random.default_rng(0), [], []
    for dataset, posterior, draws in (("d", "p", 2), ("d", "p", 4), ("d", "q", 2), ("t", "p", 2), ("t", "q", 2)):
        key = {"dataset": dataset, "posterior": posterior, "draws": draws, "seed": 0, "example": range(9)}
        gain = {
            f"{kind}_blurred_gain": rng.random(9) if dataset == "d" else np.nan for kind in ("insertion", "deletion")
        }
        for explainer in ("a", "b"):
            cells.append(pd.DataFrame({**key, "explainer": explainer, "cv_ratio": rng.random(9), **gain}))
        known = {"brier": rng.random(9), "confidence": rng.random(9), "error": 0.0} if dataset == "d" else {}
        predictions.append(pd.DataFrame({**key, "nll": rng.random(9), **known}))
    return pd.concat(cells, ignore_index=True), pd.concat(predictions, ignore_index=True)


def test_each_size_picks_the_largest_and_the_common_number_of_draws():
    cells, _ = frames_of_a_grid()
    at = {
        size: part.query("dataset == 'd'").groupby("posterior")["draws"] for size, part in at_each_size(cells).items()
    }
    assert at["usual"].unique().map(list).to_dict() == {"p": [4], "q": [2]}
    assert at["equal"].unique().map(list).to_dict() == {"p": [2], "q": [2]}


def test_every_criterion_that_a_data_set_has_is_resampled():
    cells, predictions = frames_of_a_grid()
    samples, _ = resample_all(predictions, over_explainers(cells, 6), num_resamples=5, seed=0)
    assert {key[1] for key in samples if key[2] == "t"} == {"nll", "cv"}
    assert {key[1] for key in samples if key[2] == "d"} == set(CRITERIA)
    rows = cells.query("dataset == 'd' and posterior == 'p' and draws == 4 and example < 6")
    assert samples["usual", "cv", "d"].at[0, "p"] == pytest.approx(np.log(rows["cv_ratio"]).mean())
    few = predictions.query("dataset == 'd' and posterior == 'p' and draws == 2")
    assert samples["equal", "nll", "d"].at[0, "p"] == pytest.approx(few["nll"].mean())


def test_an_example_that_one_explainer_lacks_does_not_count():
    cells, predictions = frames_of_a_grid()
    cells.loc[(cells["explainer"] == "b") & (cells["example"] == 3), "cv_ratio"] = np.nan
    samples, _ = resample_all(predictions, over_explainers(cells, 9), num_resamples=5, seed=0)
    rows = cells.query("dataset == 't' and posterior == 'q' and example != 3")
    assert samples["usual", "cv", "t"].at[0, "q"] == pytest.approx(np.log(rows["cv_ratio"]).mean())


def test_the_rank_table_says_who_is_tied_with_the_first():
    samples = {("usual", "nll", "d"): made([0.0, 0.001, 5.0]), ("usual", "insertion", "d"): made([0.0, 0.001, 5.0])}
    found = rank_table(samples)
    assert list(found["criterion"].unique()) == ["nll", "insertion"]
    assert found["tied"].tolist() == [True, True, False, False, False, True]
    assert found["rank"].tolist() == [1, 2, 3, 3, 2, 1]
