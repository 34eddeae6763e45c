"""The bootstrap of whole tables, against the standard error of a mean."""

from __future__ import annotations

import numpy as np
import pytest

from xuqlib.study.intervals import bootstrap


def test_the_bootstrap_interval_of_a_mean_is_that_of_its_standard_error():
    table = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 2))
    value, low, high = bootstrap(lambda rows: rows.mean(0), table, num_resamples=2000, seed=1)
    error = 1.96 * table.std(0) / 20
    np.testing.assert_allclose(value, table.mean(0))
    np.testing.assert_allclose([value - low, high - value], [error, error], rtol=0.08)  # its own noise: 2000 draws


def test_the_bootstrap_keeps_the_rows_of_two_tables_together():
    table = np.random.default_rng(0).normal(size=(30, 1))
    _, low, high = bootstrap(lambda a, b: np.abs(a - b).max(), table, table)
    assert low == high == 0
    with pytest.raises(ValueError, match=r"tables have \[30, 29\] rows"):
        bootstrap(lambda a, b: a.mean() - b.mean(), table, table[1:])
