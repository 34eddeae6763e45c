from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import nn

from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import Examples
from xuqlib.study.judging.predictions import SCORES, answers, reliability, score_points, score_row, settling


def logits_for(probs):
    return torch.tensor(probs, dtype=torch.float64).log()


def test_an_answer_is_that_of_the_mean_probability():
    # Two draws, two examples; mean probabilities (0.6, 0.4) and (0.5, 0.5) + a hair.
    frame = answers(logits_for([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.4, 0.6]]]), torch.tensor([0, 0]))
    assert frame["answer"].tolist() == ["right", "wrong"]
    assert frame["confidence"].tolist() == pytest.approx([0.6, 0.6])
    assert frame["nll"].tolist() == pytest.approx([-math.log(0.6), -math.log(0.4)])
    assert frame["epistemic"][0] > 0 and frame["epistemic"][1] == pytest.approx(0, abs=1e-12)


def test_reliability_compares_confidence_with_accuracy_bin_by_bin():
    frame = pd.DataFrame(
        {"confidence": [0.95] * 10 + [1.0] * 10 + [0.55] * 3, "answer": ["right"] * 20 + ["wrong"] * 3}
    )
    frame.loc[:4, "answer"] = "wrong"
    (row,) = reliability(frame, fewest=4).to_dict("records")  # certainty itself falls into the last bin
    assert row["confidence"] == pytest.approx(0.975)
    assert row["accuracy"] == 0.75 and row["num_answers"] == 20
    assert row["high"] - row["low"] == pytest.approx(4 * math.sqrt(0.75 * 0.25 / 20))


def test_a_score_that_the_task_has_not_is_nan():
    x, y = torch.zeros(20, 3), torch.linspace(-1, 1, 20)[:, None]
    examples = Examples(name="line", split="test", x=x, y=y, index=torch.arange(20))
    row = score_row(y[None], examples, noise_variance=1.0)
    assert set(row) == {*SCORES, *(f"{name}_se" for name in SCORES)}
    assert row["r2"] == 1 and math.isnan(row["accuracy"]) and math.isnan(row["ece_se"])
    assert row["nll"] == pytest.approx(0.5 * math.log(2 * math.pi))


def test_score_points_hold_each_score_of_the_table_once_with_its_error():
    rows = [{"dataset": "b", "posterior": "p", "accuracy": 0.5, "accuracy_se": 0.1, "nll": 2.0, "nll_se": 0.2}]
    rows += [{"dataset": "a", "posterior": "p", "r2": 0.7, "r2_se": 0.3, "nll": 1.0, "nll_se": 0.4}]
    columns = [*SCORES, *(f"{name}_se" for name in SCORES)]
    points = score_points(pd.DataFrame(rows).reindex(columns=["dataset", "posterior", *columns]))
    assert points["panel"].tolist() == ["b: accuracy", "b: NLL", "a: R2", "a: NLL"]
    assert points["value"].tolist() == [0.5, 2.0, 0.7, 1.0]
    assert points["se"].tolist() == [0.1, 0.2, 0.3, 0.4]


def constant(probability):
    """A network that gives two classes fixed probabilities."""
    network = nn.Linear(1, 2)
    nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor([probability, 1 - probability]).log()
    return network.requires_grad_(False)


def test_settling_compares_groups_of_the_first_half_with_the_second():
    draws = Draws([constant(p) for p in (0.2, 0.4, 0.5, 0.5)])
    frame = settling(draws, torch.zeros(3, 1), [1, 2])
    assert frame["example"].tolist() == [0, 1, 2, 0, 1, 2]
    assert frame["distance"].tolist() == pytest.approx([0.2] * 3 + [0.2] * 3)  # mean of .3, .1; and .5 - .3
    with pytest.raises(ValueError, match="half the draws"):
        settling(draws, torch.zeros(3, 1), [3])
