"""A signed, complete attribution of uncertainty: its falls by hand and by brute force, and what it promises."""

from __future__ import annotations

import pytest
import torch
from core_networks import PICTURES, TABLE, assert_same, late_cnn, randn, seeded, snapshot, table_mlp
from torch import nn, tensor
from torch.testing import assert_close

from xuqlib import MCDropout, UncertaintyOf, attribute_uncertainty, ua_replacement, uncertainties

KINDS = ("total", "aleatoric", "epistemic")


def case(build, shape, num_draws=3):
    return MCDropout(seeded(build)).sample(num_draws, seed=1), 3 * randn(*shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("build", "shape"), [(late_cnn, PICTURES), (table_mlp, TABLE)])
def test_it_sums_to_the_uncertainty(build, shape, kind):
    draws, x = case(build, shape)
    found = ua_replacement(draws, x, kind, reference=x.mean(0))
    assert found.shape == (x.shape[:1] + x.shape[2:] if x.dim() == 4 else x.shape)
    assert_close(found.flatten(1).sum(1), getattr(uncertainties(draws, x), kind), atol=1e-12, rtol=0)
    single = ua_replacement(draws.to(torch.float32), x.float(), kind, reference=x.float().mean(0))
    assert (single.double().flatten(1).sum(1) - found.flatten(1).sum(1)).abs().max() <= 1e-5


def test_two_opposed_linear_draws_have_the_falls_of_their_closed_form():
    # One draw's logit difference is w x, the other's -w x: the mean is even, and U = log 2 - H(sigmoid(w x)).
    weight, x, reference = tensor([[0.8, -0.3]], dtype=torch.float64), tensor([[1.0, 2.0]]).double(), tensor([0.5, 0.5])
    draws = []
    for sign in (1, -1):
        layer = nn.Linear(2, 2, bias=False).double()
        layer.weight.data = torch.cat([sign * weight, torch.zeros_like(weight)])
        draws.append(layer.requires_grad_(False))
    z = (x @ weight.T).squeeze()
    slope = z * torch.sigmoid(z) * torch.sigmoid(-z)  # -dH/dz of a two-way choice whose logit is z
    fall = slope * weight * (x - reference)
    entropy = -(torch.sigmoid(z) * torch.sigmoid(z).log() + torch.sigmoid(-z) * torch.sigmoid(-z).log())
    left = torch.log(tensor(2.0).double()) - entropy - fall.sum()
    assert_close(ua_replacement(draws, x, reference=reference), fall + left / 2, atol=1e-12, rtol=0)


def test_it_is_the_mean_fall_over_replacements_that_are_small():
    # The replacement goes a tiny part of the way to each of five others, one feature at a time.
    draws, x = case(table_mlp, TABLE)
    others, small = randn(5, x.shape[1], seed=7), 1e-6
    of, falls = UncertaintyOf(draws), torch.zeros_like(x)
    for other in others:
        for feature in range(x.shape[1]):
            moved = x.clone()
            moved[:, feature] += small * (other[feature] - x[:, feature])
            falls[:, feature] += (of(x) - of(moved))[:, 0] / small / len(others)
    found = ua_replacement(draws, x, reference=others.mean(0))
    assert_close(found - found.mean(1, keepdim=True), falls - falls.mean(1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_with_a_black_reference_it_orders_pixels_as_signed_gradient_times_input():
    draws, x = case(late_cnn, PICTURES)
    found, rival = ua_replacement(draws, x, reference="black"), attribute_uncertainty(draws, x)
    shift = (found - rival).flatten(1)
    assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-12, rtol=0)
    assert (found < 0).any() and (found > 0).any()


def test_chunks_and_single_examples_change_nothing_and_nothing_is_left_behind():
    draws, x = case(late_cnn, PICTURES)
    before, reference = [snapshot(network) for network in draws], randn(*x.shape, seed=3)  # another for each example
    whole = ua_replacement(draws, x, "total", reference=reference)
    assert_close(ua_replacement(draws, x, "total", reference=reference, chunk=1), whole, atol=1e-12, rtol=0)
    alone = [ua_replacement(draws, x[[i]], "total", reference=reference[[i]]) for i in range(len(x))]
    assert_close(torch.cat(alone), whole, atol=1e-12, rtol=0)
    for network, state in zip(draws, before, strict=True):
        assert_same(snapshot(network), state)


def test_draws_that_agree_leave_nothing_to_attribute():
    network = seeded(table_mlp).eval()
    found = ua_replacement([network, network], randn(*TABLE), reference="mean")
    assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


def test_a_reference_of_another_size_is_refused():
    draws, x = case(table_mlp, TABLE)
    with pytest.raises(ValueError, match="does not broadcast"):
        ua_replacement(draws, x, reference=torch.zeros(3))
