"""Explainers of Captum: equal to the library called by hand, and nothing global is moved."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from core_networks import PICTURES, TABLE, inplace_cnn, randn, seeded, table_mlp
from torch import nn, tensor
from torch.testing import assert_close

from xuqlib import from_captum

attr = pytest.importorskip("captum.attr")


def global_state():
    numpy_state = np.random.get_state()  # noqa: NPY002 - that it stays is what is tested
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:], random.getstate()


def at_random(name):
    """An explainer that draws at random, and options that keep it small."""
    regions = torch.arange(64).view(1, 1, 8, 8) // 16
    shap = {"baselines": torch.cat([0 * randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=4)]), "n_samples": 3}
    options = {"feature_mask": regions, "n_samples": 9}
    noisy = {"nt_samples": 3, "stdevs": 0.5}
    return {
        "Lime": (from_captum("Lime"), options),
        "KernelShap": (from_captum("KernelShap"), options),
        "ShapleyValueSampling": (from_captum("ShapleyValueSampling"), {**options, "n_samples": 2}),
        "GradientShap": (from_captum("GradientShap"), shap),
        "NoiseTunnel": (from_captum(lambda network: attr.NoiseTunnel(attr.Saliency(network))), noisy),
    }[name]


@pytest.mark.parametrize("name", ["Lime", "KernelShap", "ShapleyValueSampling", "GradientShap", "NoiseTunnel"])
def test_a_method_that_draws_at_random_is_fixed_by_its_seed_alone(name):
    network, x, target = seeded(inplace_cnn).eval(), randn(*PICTURES), tensor([0, 2, 1])
    explainer, options = at_random(name)
    before = global_state()
    first = explainer(network, x, target, **options)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert torch.equal(explainer(network, x, target, seed=0, **options), first)
    assert not torch.equal(explainer(network, x, target, seed=1, **options), first)
    assert global_state() == before


def test_a_method_that_fails_leaves_the_generators_as_they_were():
    before = global_state()
    with pytest.raises(ZeroDivisionError):
        from_captum(lambda network: Failing())(seeded(table_mlp).eval(), randn(*TABLE), 0)
    assert global_state() == before


class Failing:
    def attribute(self, x, target):
        random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - as other libraries do
        raise ZeroDivisionError


def test_a_seeded_method_is_captums_own_after_that_seed():
    network, x, target = seeded(table_mlp).eval(), randn(*TABLE), tensor([0, 2, 1, 1])
    with torch.random.fork_rng():
        torch.manual_seed(7)
        wanted = attr.KernelShap(network).attribute(x[:1], target=target[:1], n_samples=20)
    assert_close(from_captum("KernelShap")(network, x[:1], target[:1], seed=7, n_samples=20), wanted.to(x))


@pytest.mark.parametrize("shape", [(5,), (5, 4), (2, 3, 4), (2, 2, 3, 2)])
@pytest.mark.parametrize("name", ["InputXGradient", "IntegratedGradients", "FeatureAblation", "Occlusion"])
def test_examples_may_have_any_number_of_axes(name, shape):
    size = int(np.prod(shape))
    network = nn.Sequential(nn.Flatten(), seeded(lambda: nn.Linear(size, 3)))
    x = randn(2, *shape)
    options = {"sliding_window_shapes": (1,) * len(shape)} if name == "Occlusion" else {}
    wanted = network[1].weight[1].view(shape) * x  # each of these, where the network is linear
    # Captum holds weights of its sums in float32.
    assert_close(from_captum(name)(network, x, 1, **options), wanted.detach(), rtol=1e-6, atol=1e-7)


def test_a_method_around_another_says_how_it_is_passed():
    with pytest.raises(TypeError, match=r"NoiseTunnel is built around .* lambda network: NoiseTunnel\(Saliency"):
        from_captum("NoiseTunnel")
