"""Tables of steadiness: pooling, paired quotients, and the error of a std, against hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from xuqlib import MCDropout, explain, gradient
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.study.intervals import over_examples
from xuqlib.study.judging.steadiness import CVS, mask_walk, pool, quotients, std_errors, steadiness
from xuqlib.study.training.networks import mini_vgg


def two_networks():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [FixedNetwork(mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3)) for _ in range(2)]


def test_an_interval_over_examples_is_two_standard_errors_of_each_group():
    frame = pd.DataFrame({"group": ["b", "b", "b", "a"], "value": [1.0, 2.0, 3.0, 5.0]})
    found = over_examples(frame, ["group"], "value")
    assert list(found["group"]) == ["b", "a"]  # in order of appearance
    error = 1 / math.sqrt(3)  # the sample standard deviation is 1
    np.testing.assert_allclose(found.loc[0, ["value", "low", "high"]].astype(float), [2, 2 - 2 * error, 2 + 2 * error])
    assert math.isnan(found.loc[1, "low"])


def test_pooling_sums_pixels_and_channels_of_each_region():
    values = torch.arange(8.0).view(1, 1, 2, 2, 2)  # channels [0 1; 2 3] and [4 5; 6 7]
    segments = torch.tensor([[[0, 1], [1, 1]]])
    torch.testing.assert_close(pool(values, segments), torch.tensor([[[4.0, 24.0]]]))
    torch.testing.assert_close(pool(values, segments, "mean"), torch.tensor([[[4.0, 8.0]]]))


def test_pooling_refuses_an_unknown_way():
    with pytest.raises(ValueError, match="how 'max'"):
        pool(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), "max")


def test_blocks_of_examples_give_the_same_table_as_all_at_once():
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    draws = two_networks()
    whole = steadiness(draws, gradient, x, block=5)
    pd.testing.assert_frame_equal(steadiness(draws, gradient, x, block=2), whole, rtol=1e-4)
    assert list(whole["example"]) == [0, 1, 2, 3, 4]
    expected = explain(draws, gradient, x).cv("ratio").numpy()
    np.testing.assert_allclose(whole["cv_ratio"], expected, rtol=1e-6)
    assert whole["cv_pooled"].between(0, np.inf, inclusive="neither").all()


def test_a_quotient_compares_each_example_with_itself():
    rows = [("p", "a", 0, 1.0), ("p", "a", 1, 8.0), ("p", "a", 2, 9.0), ("p", "b", 0, 2.0), ("p", "b", 1, 4.0)]
    frame = pd.DataFrame(rows, columns=["posterior", "explainer", "example", "cv_ratio"])
    frame = frame.assign(**dict.fromkeys(CVS[1:], frame["cv_ratio"]))
    found = quotients(frame, "a", "b").set_index("definition").loc["cv_ratio"]
    assert found["quotient"] == pytest.approx(1.0)  # sqrt(1/2 * 2); example 2 has no partner
    assert found["high"] == pytest.approx(math.exp(2 * math.log(2)))  # logs -log 2 and log 2: standard error log 2


def test_the_error_of_a_std_is_that_of_the_formula_for_gaussian_attributions():
    stream = torch.Generator().manual_seed(0)
    values = torch.randn(64, 2, 2000, generator=stream, dtype=torch.float64)
    reference = torch.randn(2000, 2, 2000, generator=stream, dtype=torch.float64)
    found = std_errors(values, reference, [8, 32]).groupby("draws")["error"].mean()
    # The formula is the first term of a series in 1/T; at 8 draws it is 1 % off.
    assert found[8] == pytest.approx(1 / math.sqrt(14), rel=0.04)
    assert found[32] == pytest.approx(1 / math.sqrt(62), rel=0.04)


def test_only_fixed_masks_keep_the_spread_and_the_sum_of_integrated_gradients():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # One random layer and no ReLU after it: with fixed masks the path's integral is exact from one step on.
        network = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 2)).eval()
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    walk = mask_walk(MCDropout(network), x, torch.tensor([0, 1]), [4, 64], num_draws=32)
    table = walk.groupby(["masks", "steps"])[["relative", "gap"]].mean()
    np.testing.assert_allclose(table.loc["fixed", "relative"], 1, rtol=1e-4)
    assert table.loc["fixed", "gap"].max() < 1e-5
    # Gauss-Legendre weights at 64 nodes: the sum of their squares is about 1.2 / 64.
    assert table.loc[("resampled", 64), "relative"] == pytest.approx(math.sqrt(1.23 / 64), rel=0.15)
    assert table.loc[("resampled", 64), "gap"] > 0.1


def test_the_error_of_a_std_by_hand():
    values = torch.tensor([0.0, 2.0]).view(2, 1, 1)  # std, divisor one, sqrt(2)
    reference = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1)  # std 1
    assert std_errors(values, reference, [2])["error"].tolist() == pytest.approx([math.sqrt(2) - 1])
