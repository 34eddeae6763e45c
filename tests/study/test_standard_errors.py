from __future__ import annotations

import math

import pytest
import torch

from xuqlib.study.judging.scores import scores_of, standard_errors


def test_the_standard_error_of_accuracy_is_that_of_a_coin():
    right = torch.arange(1000) % 5 > 0  # 80 % of them
    logits = torch.where(right[:, None], torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0]))[None]
    target = torch.zeros(1000, dtype=torch.int64)
    assert scores_of(logits, target)["accuracy"] == pytest.approx(0.8)
    # The standard deviation of 800 resamples is itself off by 1 / sqrt(1600), 2.5 %; four of these.
    found = standard_errors(logits, target, num_resamples=800)["accuracy"]
    assert found == pytest.approx(math.sqrt(0.8 * 0.2 / 1000), rel=0.1)


def test_draws_that_agree_give_the_same_standard_errors_as_one_draw():
    stream = torch.Generator().manual_seed(0)
    logits, target = torch.randn((1, 50, 3), generator=stream), torch.randint(3, (50,), generator=stream)
    once, thrice = (standard_errors(x, target, num_resamples=20, seed=3) for x in (logits, logits.repeat(3, 1, 1)))
    assert once == pytest.approx(thrice, rel=1e-6)
    assert once["nll"] > 0


def test_a_regression_has_standard_errors_of_its_own_scores():
    stream = torch.Generator().manual_seed(0)
    mean = torch.randn((1, 200, 1), generator=stream)
    target = mean[0] + 0.5 * torch.randn((200, 1), generator=stream)
    found = standard_errors(mean, target, noise_variance=0.25, num_resamples=50)
    assert set(found) == {"r2", "rmse", "nll"}
    assert found["rmse"] == pytest.approx(0.5 / math.sqrt(400), rel=0.4)  # sd of a sample sd; 50 resamples: 10 %


def test_fewer_than_two_resamples_are_refused():
    with pytest.raises(ValueError, match="num_resamples"):
        standard_errors(torch.zeros(1, 4, 2), torch.zeros(4, dtype=torch.int64), num_resamples=1)
