"""What notebook 22 defines, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import EXACT, randn
from helpers import n22
from notebook_cells import definitions
from torch import nn
from torch.testing import assert_close

from xuqlib import Draws, uncertainties

HALF = torch.full((2, 2), 0.5, dtype=torch.float64)


@pytest.fixture
def theory():
    return definitions("22", seed=0)


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False).double().eval()
    layer.weight.data = torch.tensor(rows, dtype=torch.float64)
    return layer


def test_a_check_keeps_the_worst_value_and_nan_fails(theory, capsys):
    theory.check("identity", "a", [1e-14, -1.0])
    theory.check("bound", "b", [0.1, 0.3], bound=0.2)
    theory.check("counterexample", "c", [0.5, 0.05], bound=0.1)
    theory.check("counterexample", "d", [0.5, 0.2], bound=0.1, dataset="digits")
    theory.check("identity", "e", [0.0, math.nan])
    kept = [(row[1], row[2], row[4]) for row in theory.checks]
    assert kept[:4] == [
        (True, 1e-14, "random"),
        (False, 0.3, "random"),
        (False, 0.05, "random"),
        (True, 0.2, "digits"),
    ]
    assert not kept[4][0] and math.isnan(kept[4][1])
    assert "b: 3.0e-01 (at most 0.2)" in capsys.readouterr().out


def test_the_jacobian_of_two_equal_logits_is_a_quarter(theory):
    wanted = torch.tensor([[0.25, -0.25], [-0.25, 0.25]])
    assert_close(theory.jacobian(torch.zeros(2)), wanted)


def test_weights_of_logits_weigh_their_maps(theory):
    """One draw with z = (2 x0, 3 x1); a half of each share goes to each logit, so to 0.5 (a + b) (2 x0, 3 x1)."""
    x, shares = torch.tensor([[5.0, 7.0]]).double(), torch.tensor([[[0.25, 0.75]]]).double()
    values = theory.weighted_map([linear([2.0, 0.0], [0.0, 3.0])], x, shares, HALF[None, None])
    assert values.tolist() == [[5.0, 10.5]]


def test_a_tilted_network_has_one_function_more_in_every_logit(theory):
    network, x = linear([2.0, 0.0], [0.0, 3.0]), torch.tensor([[5.0, 7.0]]).double()
    tilted = theory.Tilted(network, torch.tensor([1.0, -1.0]).double())
    assert tilted(x).tolist() == [[8.0, 19.0]]
    draws = [network, linear([1.0, 1.0], [0.0, 2.0])]
    before, after = (uncertainties(Draws(each), x / 9) for each in (draws, [tilted, theory.Tilted(draws[1], x[0])]))
    assert_close(after.epistemic, before.epistemic, **EXACT)


def test_a_mirrored_network_is_the_network_at_its_centre_and_turns_elsewhere(theory):
    centre = torch.tensor([[5.0, 7.0]]).double()
    mirrored = theory.Mirrored(linear([2.0, 3.0]), centre, torch.tensor([True, False]))
    assert mirrored(centre).item() == 31.0
    assert mirrored(centre + 1).item() == 31.0 - 2.0 + 3.0


def test_one_unit_that_is_dropped_half_the_time_is_0_or_twice_itself(theory):
    """w v = 6 becomes 0 or 12, each half of the time: its standard deviation is 6."""
    roots = theory.roots(torch.tensor([[3.0], [-1.0]]), 0.5)
    assert_close(theory.spread(roots, torch.tensor([[2.0]])), torch.tensor([[6.0, 2.0]]))
    factor = {"rows": torch.eye(2), "columns": torch.eye(1), "precision": torch.tensor([[4.0], [25.0]])}
    assert_close(theory.spread(theory.laplace_roots(factor), torch.tensor([2.0])), torch.tensor([1.0, 0.4]))


def test_laplace_roots_are_those_of_the_covariance_of_its_weights(theory):
    rows, columns = (torch.linalg.qr(randn(size, size, seed=size)).Q for size in (2, 3))
    precision, v = randn(2, 3).exp(), randn(3, seed=1)
    whole = torch.kron(rows, columns)  # of the flat weights: (class, unit)
    covariance = (whole @ torch.diag(1 / precision.flatten()) @ whole.T).view(2, 3, 2, 3)
    wanted = torch.stack([(v @ covariance[c, :, c] @ v).sqrt() for c in range(2)])
    roots = theory.laplace_roots({"rows": rows, "columns": columns, "precision": precision})
    assert_close(theory.spread(roots, v), wanted, **EXACT)


def test_every_mask_of_two_bits(theory):
    assert theory.every_mask(2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_features_stop_before_the_last_layer_and_its_dropout(theory):
    front = [nn.Linear(4, 3), nn.ReLU()]
    assert len(theory.features_of(nn.Sequential(*front, nn.Dropout(0.5), nn.Linear(3, 2)))) == 2
    assert len(theory.features_of(nn.Sequential(*front, nn.Linear(3, 2)))) == 2


def test_the_own_share_of_two_classes_is_a_sigmoid(theory):
    """Both slopes of a row are +-p (1-p), so the own share is 1 / (1 + exp(-2 p (1-p) / tau1))."""
    assert theory.own_share(0.9, tau1=0.05, classes=2) == pytest.approx(1 / (1 + math.exp(-3.6)))


def test_a_cv_of_zeros_and_ones(theory):
    assert theory.folded_cv(torch.tensor([0.0, 0.0, 0.0, 4.0])).item() == pytest.approx(3**0.5)


def test_an_opposite_map_has_the_same_sum_and_the_opposite_order(theory):
    values = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    wanted = torch.tensor([[[4.0, 3.5], [3.0, 1.5]]])  # the mean is 3, and the distances are halved
    assert_close(theory.opposite(values, torch.tensor([12.0]), strength=0.5), wanted)


def test_a_sum_of_functions_is_0_at_0(theory):
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    own = definitions("22", seed=0, first=first, second=second)
    assert own.additive(torch.tensor([[3.0, 2.0], [0.0, 0.0]])).tolist() == [[25.0], [0.0]]


def test_each_line_is_named_by_its_probability():
    shares = {"p": [0.9, 0.9, 0.99, 0.99], "tau1": [0.01, 1, 0.001, 0.1], "own share": [1, 0.1, 0.9, 0.2]}
    figure = n22.own_share_curve(pd.DataFrame(shares), paper=1e-5, title="a title")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.9", "0.99", "tau1\nof paper"]
    assert [text.get_position()[0] for text in axes.texts[:2]] == [1, 0.1]


def test_the_ceiling_is_drawn_where_it_is():
    frame = pd.DataFrame({"dataset": ["digits"], "mean": [0.5], "cv": [0.4]})
    dots, curve, top = n22.ceiling_panels(frame, most=3.0, title="a title").axes[0].lines
    assert dots.get_xydata().tolist() == [[0.5, 0.4]]
    means, ceilings = curve.get_xydata().T
    np.testing.assert_allclose(ceilings**2, (1 - means) / means, atol=1e-12)
    assert ceilings.max() == pytest.approx(3.0) and top.get_ydata().tolist() == [3.0, 3.0]
