"""CLUE: optima known by hand or from a fine grid, paths that add up, and what every search promises."""

from __future__ import annotations

import pytest
import torch
from core_networks import EXACT, assert_same, randn, seeded, snapshot
from torch import nn, tensor
from torch.testing import assert_close

from xuqlib import DeepEnsemble, Draws, uncertainties
from xuqlib.study.judging.clue import clue, clue_counterfactuals, delta_clue, path_integral
from xuqlib.study.training.vae import PictureVAE
from xuqlib.uncertainty import KINDS, UncertaintyOf

AGREE = 0.4  # where the two draws of `disagreeing` say the same
FAST = {"num_steps": 12, "learning_rate": 0.3}


class Flat:
    """A generative model without any blur: the latent numbers are the pixels."""

    def __init__(self, shape=(1, 1, 2)):
        self.shape = shape

    def encode(self, x):
        return x.flatten(1), torch.zeros_like(x.flatten(1))

    def decode(self, z):
        return z.unflatten(1, self.shape)


def disagreeing():
    """Two linear draws of pictures of two pixels: sure of opposite classes, the more the first pixel leaves AGREE."""
    networks = []
    for sign in (4.0, -4.0):
        layer = nn.Linear(2, 2).double()
        layer.weight.data = tensor([[sign, 0.0], [0.0, 0.0]], dtype=torch.float64)
        layer.bias.data = tensor([0.5 - sign * AGREE, 0.0], dtype=torch.float64)
        networks.append(nn.Sequential(nn.Flatten(), layer))
    return Draws(networks)


def two_pixels(*values):
    return tensor(values, dtype=torch.float64).view(-1, 1, 1, 2)


def case(dtype=torch.float64, num_examples=3):
    """Smooth draws, so that midpoints converge, and an untrained autoencoder with more than blur in it."""

    def member():
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3))

    members = [seeded(member, seed=seed, dtype=dtype) for seed in range(3)]
    vae = seeded(lambda: PictureVAE((1, 8, 8), latent=3, widths=(4, 4), narrow=2), dtype=dtype)
    for parameter in (*vae.decoder.parameters(), *(network[-1].weight for network in members)):
        parameter.data *= 4
    return (
        DeepEnsemble(members).sample(),
        2 * torch.rand(num_examples, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype),
        vae,
    )


def objective(draws, x, vae, z, weight=2.0, kind="epistemic"):
    decoded = vae.decode(z)
    return getattr(uncertainties(draws, decoded), kind) + weight * (decoded - x).abs().flatten(1).mean(1)


# By hand


def test_without_a_price_for_distance_the_pixel_that_the_draws_disagree_about_moves_to_where_they_agree():
    draws, x = disagreeing(), two_pixels([0.9, 0.7], [0.1, 0.2])
    found = clue_counterfactuals(draws, x, vae=Flat(), distance_weight=0.0, num_steps=200, learning_rate=0.02)
    assert_close(found.pictures, two_pixels([AGREE, 0.7], [AGREE, 0.2]), rtol=0, atol=1e-3)
    assert (found.before > 0.05).all() and (found.after < 1e-4).all()
    attribution = clue(draws, x, vae=Flat(), distance_weight=0.0, num_steps=200, learning_rate=0.02)
    assert_close(attribution, tensor([[[0.5, 0.0]], [[0.3, 0.0]]], dtype=torch.float64), rtol=0, atol=1e-3)


def test_with_a_price_it_ends_where_a_fine_grid_has_its_lowest_objective():
    draws, x = disagreeing(), two_pixels([0.9, 0.7])
    values = torch.linspace(0, 1, 5001, dtype=torch.float64)
    grid = torch.stack([values, torch.full_like(values, 0.7)], 1)
    wanted = values[objective(draws, x, Flat(), grid, weight=1.0).argmin()]
    assert 0.41 < wanted < 0.89, "the price matters, and so does the uncertainty"
    found = clue_counterfactuals(draws, x, vae=Flat(), distance_weight=1.0, num_steps=300, learning_rate=0.01)
    assert found.latents[0, 0].item() == pytest.approx(wanted.item(), abs=2e-3)


def test_with_a_high_price_nothing_moves():
    draws, x = disagreeing(), two_pixels([0.9, 0.7])
    assert_close(clue(draws, x, vae=Flat(), distance_weight=1e3), torch.zeros(1, 1, 2, dtype=torch.float64), **EXACT)


def test_a_ball_stops_the_pixel_at_its_edge():
    draws, x = disagreeing(), two_pixels([0.9, 0.7])
    options = {"distance_weight": 0.0, "num_steps": 100, "learning_rate": 0.02}
    attribution = delta_clue(draws, x, vae=Flat(), delta=0.2, num_starts=1, **options)
    assert_close(attribution, tensor([[[0.2, 0.0]]], dtype=torch.float64), rtol=0, atol=1e-6)


def test_the_path_between_two_pictures_of_which_one_pixel_differs_charges_that_pixel_alone():
    draws, x = disagreeing(), two_pixels([0.9, 0.7])
    found = clue_counterfactuals(draws, x, vae=Flat(), distance_weight=0.0, num_steps=200, learning_rate=0.02)
    attribution = path_integral(draws, x, vae=Flat(), num_steps=200, counterfactuals=found)
    by_hand = uncertainties(draws, x).epistemic - uncertainties(draws, two_pixels([AGREE, 0.7])).epistemic
    assert attribution[0, 0, 0].item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert attribution[0, 0, 1].item() == pytest.approx(0, abs=1e-12)


# What holds for any draws and any autoencoder


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_falls_and_the_report_is_that_of_the_pictures(kind):
    draws, x, vae = case()
    found = clue_counterfactuals(draws, x, kind, vae=vae, distance_weight=0.1, **FAST)
    start = vae.encode(x)[0].detach()
    ended, began = (objective(draws, x, vae, z, 0.1, kind).detach() for z in (found.latents, start))
    assert (ended < began).all()
    assert_close(found.pictures, vae.decode(found.latents).detach(), **EXACT)
    assert_close(found.reconstructions, vae.decode(start).detach(), **EXACT)
    for name, pictures in (("before", x), ("reconstructed", found.reconstructions), ("after", found.pictures)):
        assert_close(getattr(found, name), getattr(uncertainties(draws, pictures), kind), **EXACT)


def test_steps_that_only_do_harm_leave_the_reconstruction():
    draws, x, vae = case()
    weight = 50.0  # moving far is dear, and one step goes far
    found = clue_counterfactuals(draws, vae.decode(vae.encode(x)[0]), vae=Flat((1, 8, 8)), distance_weight=weight)
    assert_close(found.pictures, found.reconstructions, **EXACT)
    found = clue_counterfactuals(draws, x, vae=vae, num_steps=1, learning_rate=1e4, distance_weight=weight)
    began = objective(draws, x, vae, vae.encode(x)[0], weight)
    assert (objective(draws, x, vae, found.latents, weight) <= began + 1e-12).all()


def test_more_steps_are_never_worse():
    draws, x, vae = case()
    ended = [
        objective(draws, x, vae, clue_counterfactuals(draws, x, vae=vae, num_steps=steps).latents) for steps in (3, 9)
    ]
    assert (ended[1] <= ended[0] + 1e-12).all()


@pytest.mark.parametrize("delta", [0.05, 0.5])
def test_latents_stay_in_the_ball_and_more_starts_are_never_worse(delta):
    draws, x, vae = case()
    ended = {}
    for starts in (1, 4):
        found = clue_counterfactuals(draws, x, vae=vae, delta=delta, num_starts=starts, **FAST)
        away = (found.latents - vae.encode(x)[0]).norm(dim=1)
        assert (away <= delta * (1 + 1e-9)).all() and away.max() > 0
        ended[starts] = objective(draws, x, vae, found.latents)
    assert (ended[4] <= ended[1] + 1e-12).all()


def test_a_ball_that_is_never_left_changes_nothing_and_the_seed_decides_the_starts():
    draws, x, vae = case()
    free = clue(draws, x, vae=vae, **FAST)
    assert_close(delta_clue(draws, x, vae=vae, delta=1e6, num_starts=1, **FAST), free, rtol=1e-6, atol=1e-9)
    # One tiny step: what is best among the starts stays there.
    options = {"delta": 5.0, "num_starts": 8, "num_steps": 1, "learning_rate": 1e-9, "distance_weight": 0.0}
    one, same, other = (clue_counterfactuals(draws, x, vae=vae, seed=seed, **options).latents for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_integral_sums_to_the_uncertainty_that_the_counterfactual_has_not(kind):
    draws, x, vae = case()
    found = clue_counterfactuals(draws, x, kind, vae=vae, distance_weight=0.1, **FAST)
    lost = found.before - found.after
    coarse, fine = (
        path_integral(draws, x, kind, vae=vae, counterfactuals=found, num_steps=steps).sum((1, 2)) - lost
        for steps in (6, 60)
    )
    assert lost.abs().max() > 0.01, "there is something to attribute"
    assert fine.abs().max() < 1e-3 * lost.abs().max()
    assert fine.abs().max() < coarse.abs().max() / 10, "midpoints: an error of at most the first order in the step"


def test_the_path_integral_equals_the_slow_sum_over_its_points():
    draws, x, vae = case(num_examples=1)
    found = clue_counterfactuals(draws, x, vae=vae, **FAST)
    end, slow = vae.encode(x)[0].detach(), 0
    for first, last, decode in ((found.latents, end, vae.decode), (vae.decode(end).detach(), x, lambda x: x)):
        for step in range(3):
            middle = decode(first + (step + 0.5) / 3 * (last - first)).detach().requires_grad_()
            (slope,) = torch.autograd.grad(UncertaintyOf(draws)(middle).sum(), middle)
            ends = [decode(first + share / 3 * (last - first)) for share in (step, step + 1)]
            slow = slow + slope * (ends[1] - ends[0]).detach()
    assert_close(path_integral(draws, x, vae=vae, counterfactuals=found, num_steps=3), slow.sum(1), **EXACT)


def rivals(draws, x, vae, **options):
    yield clue(draws, x, vae=vae, **FAST, **options)
    yield clue(draws, x, vae=vae, against="reconstruction", **FAST, **options)
    yield delta_clue(draws, x, vae=vae, delta=0.5, **FAST, **options)
    yield path_integral(draws, x, vae=vae, num_steps=4, **options)


def test_examples_together_are_explained_as_one_by_one():
    draws, x, vae = case()
    alone = zip(*(rivals(draws, one[None], vae) for one in x), strict=True)
    for together, chunked, separate in zip(rivals(draws, x, vae), rivals(draws, x, vae, chunk=2), alone, strict=True):
        # Adam divides by the size of the slope, so a rounding error can grow a little from step to step.
        assert_close(together, torch.cat(separate), rtol=1e-6, atol=1e-8)
        assert_close(together, chunked, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("untouched_generators")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_maps_have_the_shape_and_dtype_of_x_and_nothing_is_left_behind(dtype):
    draws, x, vae = case(dtype)
    vae.train()  # it has nothing that depends on the mode, and keeps it
    modules = [*draws, vae]
    before, kept = [snapshot(module) for module in modules], x.clone()
    for attribution in rivals(list(draws), x.requires_grad_(), vae):
        assert attribution.shape == (3, 8, 8) and attribution.dtype == dtype and attribution.isfinite().all()
        assert not attribution.requires_grad
    for module, was in zip(modules, before, strict=True):
        assert_same(was, snapshot(module))
    assert torch.equal(x, kept) and x.grad is None
    with torch.inference_mode():
        assert torch.equal(clue(draws, x, vae=vae, **FAST), clue(draws, x, vae=vae, **FAST))


def test_draws_that_agree_everywhere_leave_the_picture_as_it_is():
    network = disagreeing()[0]
    for attribution in (clue, path_integral):
        found = attribution(Draws([network, network]), two_pixels([0.9, 0.7]), vae=Flat())
        assert_close(found, torch.zeros(1, 1, 2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rival", [clue, clue_counterfactuals, path_integral], ids=lambda function: function.__name__)
def test_bad_draws_pictures_and_autoencoders_are_refused_in_one_sentence(rival):
    draws, x, vae = case(num_examples=1)
    with pytest.raises(ValueError, match=r"x is a tensor \(3, 5\) .*; pass a torch tensor of pictures"):
        rival(draws, randn(3, 5), vae=vae)
    with pytest.raises(ValueError, match="unknown kind 'both'"):
        rival(draws, x, "both", vae=vae)
    with pytest.raises(TypeError, match="vae is 'mnist'; pass one with encode and decode"):
        rival(draws, x, vae="mnist")
    with pytest.raises(ValueError, match=r"made for pictures \(1, 8, 8\)"):
        rival(draws, torch.rand(1, 3, 8, 8, dtype=torch.float64), vae=vae)
    with pytest.raises(ValueError, match=r"the vae decodes to \(1, 2, 32\) but pictures are \(1, 8, 8\)"):
        rival(draws, x, vae=Flat((1, 2, 32)))
    one_output = Draws([nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double()])
    with pytest.raises(ValueError, match="the draws have one output"):
        rival(one_output, x, vae=vae)
    with pytest.raises(ValueError, match="in training mode"):
        rival([nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2)).double().train()], x, vae=vae)


def test_options_without_sense_are_refused():
    draws, x, vae = case(num_examples=1)
    for delta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="delta is"):
            delta_clue(draws, x, vae=vae, delta=delta)
    with pytest.raises(ValueError, match="there is no ball to start in"):
        clue_counterfactuals(draws, x, vae=vae, num_starts=3)
    with pytest.raises(ValueError, match="num_steps is 0"):
        clue(draws, x, vae=vae, num_steps=0)
    with pytest.raises(ValueError, match="learning_rate is 0"):
        clue(draws, x, vae=vae, learning_rate=0)
    with pytest.raises(ValueError, match="distance_weight is -1"):
        clue(draws, x, vae=vae, distance_weight=-1)
    with pytest.raises(ValueError, match="unknown against 'blur'"):
        clue(draws, x, vae=vae, against="blur")
    found = clue_counterfactuals(draws, x, vae=vae, **FAST)
    with pytest.raises(ValueError, match="counterfactuals are of 1 examples but x has 2"):
        path_integral(draws, torch.cat([x, x]), vae=vae, counterfactuals=found)
