"""The autoencoder: its bound by hand, its shapes, and how a trained one is found again."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from core_networks import EXACT, randn, seeded
from torch import distributions, nn, tensor
from torch.testing import assert_close

from xuqlib import Examples
from xuqlib.study.training import vae
from xuqlib.study.training.vae import (
    VAE_RECIPES,
    PictureVAE,
    VAERecipe,
    fit_vae,
    kl_from_prior,
    train_or_load_vae,
    vae_recipe_for,
    vae_scores,
)

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "planted": (3, 32, 32), "cifar10": (3, 32, 32), "fer": (1, 48, 48)}
SHORT = VAERecipe(2, widths=(4, 4), narrow=2, epochs=4, batch_size=16, learning_rate=1e-2)


def small(shape=(1, 8, 8), dtype=torch.float64, seed=0):
    return seeded(lambda: PictureVAE(shape, latent=2, widths=(4, 4), narrow=2), seed=seed, dtype=dtype)


def blobs(num_examples, seed=0):
    """Pictures of one bright row each, at one of two places."""
    stream = torch.Generator().manual_seed(seed)
    x, y = torch.zeros(num_examples, 1, 8, 8), torch.randint(2, (num_examples,), generator=stream)
    for place, label in enumerate(y):
        x[place, 0, 1 + 4 * label] = 1
    return Examples(name="blobs", split="train", x=x, y=y, index=torch.arange(num_examples), class_names=("a", "b"))


def test_the_divergence_from_the_prior_is_that_of_torch_distributions():
    mean, log_var = randn(5, 3), randn(5, 3, seed=1)
    q, prior = distributions.Normal(mean, (log_var / 2).exp()), distributions.Normal(0.0, 1.0)
    assert_close(kl_from_prior(mean, log_var), distributions.kl_divergence(q, prior).sum(1), **EXACT)
    assert kl_from_prior(tensor([[1.0, 2.0]]), tensor([[0.0, 0.0]])).item() == pytest.approx(2.5)  # half of 1 + 4


def test_the_bound_of_an_autoencoder_of_zeros_by_hand():
    model = small()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    # q is the prior, so the divergence is 0; every pixel is decoded to sigmoid(0) = 1/2 with deviation exp(0) = 1.
    x = torch.full((3, 1, 8, 8), 0.25, dtype=torch.float64)
    by_hand = 64 * (-0.5 * 0.25**2 - 0.5 * math.log(2 * math.pi))
    assert_close(model.elbo(x, randn(3, 2)), torch.full((3,), by_hand, dtype=torch.float64), **EXACT)


def test_the_bound_is_the_likelihood_of_the_drawn_latent_minus_the_divergence():
    model, x, noise = small(), torch.rand(4, 1, 8, 8, dtype=torch.float64), randn(4, 2)
    mean, log_var = model.encode(x)
    q = distributions.Normal(mean, (log_var / 2).exp())
    decoder = distributions.Normal(model.decode(q.mean + q.stddev * noise), model.log_std.exp())
    likelihood = decoder.log_prob(x).flatten(1).sum(1)
    divergence = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0)).sum(1)
    assert_close(model.elbo(x, noise), likelihood - divergence, **EXACT)


def test_the_bound_stays_below_the_evidence():
    # log p(x) of a decoder of one latent, by the trapezoid rule on a fine grid.
    model = seeded(lambda: PictureVAE((1, 4, 4), latent=1, widths=(4, 4), narrow=2), dtype=torch.float64)
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    with torch.no_grad():
        log_p = (
            distributions.Normal(model.decode(z[:, None])[:, None], model.log_std.exp()).log_prob(x).flatten(2).sum(2)
        )
        joint = log_p + distributions.Normal(0.0, 1.0).log_prob(z)[:, None]
        evidence = joint.logsumexp(0) + math.log(float(z[1] - z[0]))
        noise = randn(2000, 1)
        bound = torch.stack([model.elbo(picture.expand(2000, -1, -1, -1), noise).mean() for picture in x])
    assert (bound < evidence).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_picture_comes_back_in_its_shape_and_in_0_to_1_one_by_one_or_together(shape):
    model, x = small(shape), torch.rand(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, log_var = model.encode(x)
    assert mean.shape == log_var.shape == (3, 2)
    decoded = model.decode(mean)
    assert decoded.shape == x.shape and decoded.min() >= 0 and decoded.max() <= 1
    assert_close(decoded, torch.cat([model.decode(model.encode(one[None])[0]) for one in x]), **EXACT)


@pytest.mark.parametrize("dataset", VAE_RECIPES)
def test_every_network_fits_the_repository(dataset):
    recipe, shape = VAE_RECIPES[dataset], SHAPES[dataset[:3] if dataset == "fer_plus" else dataset]
    model = PictureVAE(shape, latent=recipe.latent, widths=recipe.widths, narrow=recipe.narrow)
    assert 4 * sum(parameter.numel() for parameter in model.parameters()) < 1.2e6  # bytes in float32


def test_training_raises_the_bound_and_decodes_what_it_saw():
    train, model = blobs(64), small(dtype=torch.float32)
    before = vae_scores(model, train.x)
    history = fit_vae(model, train, dataclasses.replace(SHORT, epochs=40), progress=False)
    after = vae_scores(model, train.x)
    assert list(history.columns) == ["epoch", "train_loss", "seconds"] and len(history) == 40
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    assert after["elbo"] > before["elbo"] + 50
    of_mean_picture = float((train.x - train.x.mean(0)).square().mean().sqrt())
    assert after["rmse"] < 0.8 * of_mean_picture
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_are_those_of_the_pictures_by_hand():
    model, x = small(), torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = vae_scores(model, x)
    error = (model.decode(model.encode(x)[0]) - x).detach()
    assert found["rmse"] == pytest.approx(float(error.square().mean().sqrt()))
    assert found["mae"] == pytest.approx(float(error.abs().mean()))
    assert found["kl"] == pytest.approx(kl_from_prior(*model.encode(x)).mean().item())


@pytest.mark.usefixtures("untouched_generators")
def test_the_same_seed_gives_the_same_autoencoder_bit_for_bit_and_another_seed_another():
    trained = []
    for seed in (3, 3, 4):
        model = small(dtype=torch.float32)
        fit_vae(model, blobs(33), SHORT, seed=seed, progress=False)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no published checkpoints, and a recipe that takes no time."""
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path))
    monkeypatch.delenv("XUQ_RETRAIN", raising=False)
    monkeypatch.setattr("xuqlib.study.training.checkpoints.ROOT", tmp_path / "nothing")
    monkeypatch.setitem(VAE_RECIPES, "digits", dataclasses.replace(SHORT, epochs=1, num_train=40))
    return tmp_path / "checkpoints"


@pytest.mark.usefixtures("untouched_generators")
def test_a_trained_autoencoder_is_found_again_and_a_changed_recipe_trains_anew(cache, monkeypatch):
    first = train_or_load_vae("digits", seed=1, progress=False)
    manifest = json.loads((cache / "digits-vae-seed1.json").read_text())
    assert manifest["recipe"]["latent"] == 2 and manifest["scores"].keys() >= {"validation_elbo", "test_rmse"}
    monkeypatch.setattr(vae, "fit_vae", lambda *_, **__: pytest.fail("it trained again"))
    again = train_or_load_vae("digits", seed=1, progress=False)
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not again.training
    monkeypatch.setitem(VAE_RECIPES, "digits", dataclasses.replace(SHORT, epochs=2, num_train=40))
    with pytest.warns(UserWarning, match="another recipe"), pytest.raises(pytest.fail.Exception, match="trained again"):
        train_or_load_vae("digits", seed=1, progress=False)


def test_quick_shortens_only_what_is_not_embedded():
    assert vae_recipe_for("planted", "quick") == VAE_RECIPES["planted"]
    short = vae_recipe_for("mnist", "quick")
    assert (short.num_train, short.epochs) == (10_000, 3) and short.latent == VAE_RECIPES["mnist"].latent


def test_errors_say_what_was_wanted():
    with pytest.raises(ValueError, match=r"pictures of shape \(1, 10, 8\).*divisible by 4"):
        PictureVAE((1, 10, 8), latent=2)
    model = small()
    with pytest.raises(ValueError, match=r"made for pictures \(1, 8, 8\)"):
        model.encode(torch.rand(2, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"pass latents \(N, 2\)"):
        model.decode(randn(2, 3))
    with pytest.raises(ValueError, match="unknown dataset of an autoencoder 'diabetes'"):
        train_or_load_vae("diabetes")
    with pytest.raises(ValueError, match="unknown preset"):
        train_or_load_vae("mnist", preset="huge")
    broken = small(dtype=torch.float32)
    nn.init.constant_(broken.log_std, -200.0)  # the variance underflows to 0
    with pytest.raises(FloatingPointError, match="diverged in epoch 1"):
        fit_vae(broken, blobs(8), SHORT, progress=False)
