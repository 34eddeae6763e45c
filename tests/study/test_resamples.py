"""The bootstrap in two stages: known spreads, pairing, and examples that all have."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from xuqlib.study.intervals import resamples


def rows(values, *, posterior="p", seed=0):
    return pd.DataFrame({"example": range(len(values)), "score": values, "posterior": posterior, "seed": seed})


def mean(part, weights):
    return weights @ part["score"].to_numpy()


def noise(count, seed):
    return np.random.default_rng(seed).standard_normal(count)


def test_a_resampled_mean_spreads_by_its_standard_error():
    values = noise(400, 0)
    found = resamples(rows(values), mean, by="posterior", num_resamples=2000)["p"]
    assert len(found) == 2001 and found[0] == pytest.approx(values.mean())
    assert found[1:].std() == pytest.approx(values.std() / 20, rel=0.06)  # 2000 resamples: 1.6 % standard error


def test_competitors_share_their_examples():
    values = noise(50, 1)
    frame = pd.concat([rows(values), rows(values + 0.1, posterior="q")])
    found = resamples(frame, mean, by="posterior", num_resamples=50)
    np.testing.assert_allclose(found["q"] - found["p"], 0.1)


def test_the_spread_over_training_seeds_counts():
    frame = pd.concat([rows(np.zeros(9)), rows(np.ones(9), seed=1)])
    found = resamples(frame, mean, by="posterior", num_resamples=4000)["p"]
    assert found[0] == 0.5
    assert found[1:].std() == pytest.approx(0.125**0.5, rel=0.05)  # the mean of two fair coins
    three = pd.concat([rows(np.full(9, each), seed=seed) for seed, each in enumerate([0.0, 1.0, 5.0])])
    measured = [resamples(three, mean, by="posterior", num_resamples=2, seed=seed).at[0, "p"] for seed in range(4)]
    assert measured == pytest.approx([2.0] * 4)  # what was measured is not resampled


def test_only_examples_that_all_have_count():
    frame = pd.concat([rows([1.0, 2.0, 9.0]), rows([3.0, 4.0], posterior="q")])
    assert resamples(frame, mean, by="posterior", num_resamples=2).iloc[0].to_dict() == {"p": 1.5, "q": 3.5}
    apart = pd.concat([rows([1.0]), rows([1.0], posterior="q").assign(example=7)])
    with pytest.raises(ValueError, match="no example is there for every posterior and seed"):
        resamples(apart, mean, by="posterior")
    with pytest.raises(ValueError, match="a frame of 0 rows"):
        resamples(apart.iloc[:0], mean, by="posterior")


def test_a_statistic_may_weigh_a_whole_table():
    def largest(part, weights):
        return np.where(weights > 0, part["score"].to_numpy(), -np.inf).max(1)

    found = resamples(rows([1.0, 5.0, 3.0]), largest, by="posterior", num_resamples=50)["p"]
    assert found[0] == 5.0 and set(found) <= {1.0, 3.0, 5.0} and found.nunique() > 1
