"""The distribution without draws: of a linear network by hand, through a Jacobian, and close to many draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_networks import EXACT, assert_fast, randn, seeded
from torch import Tensor, nn
from torch.testing import assert_close

from xuqlib import (
    DeepEnsemble,
    Flipout,
    Laplace,
    MCDropConnect,
    analytic_distribution,
    explain,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
)
from xuqlib.explainers.lime import lime


def plain_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))


def plain_cnn() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def fitted(network: nn.Module, x: Tensor) -> Laplace:
    """A Laplace posterior in the dtype of x, whose curvature comes from a few random examples."""
    pairs = torch.utils.data.TensorDataset(x.float(), torch.arange(len(x)) % 3)
    posterior = Laplace(network.float()).fit(torch.utils.data.DataLoader(pairs, batch_size=8))
    posterior.network = network.to(x.dtype)
    for factor in posterior.factors.values():
        factor.update({key: value.to(x.dtype) for key, value in factor.items()})
    return posterior


POSTERIORS: dict[str, Any] = {
    "laplace": lambda build, x: fitted(seeded(build), x),
    "flipout": lambda build, x: Flipout(seeded(build), initial_std=0.3),
    "mc_dropconnect": lambda build, x: MCDropConnect(seeded(build), p=0.2),
}
EXPLAINERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gradient": (gradient, {}),
    "gradient_x_input": (gradient_x_input, {}),
    "integrated_gradients": (integrated_gradients, {"num_steps": 5}),
    "smoothgrad": (smoothgrad, {"num_samples": 4}),
}


@pytest.fixture(params=POSTERIORS)
def posterior_of(request):
    return POSTERIORS[request.param]


def test_the_slope_of_a_linear_network_spreads_as_its_weights_do():
    posterior = Flipout(nn.Sequential(nn.Linear(2, 2, bias=False)).double())
    layer = posterior.network[0]
    with torch.no_grad():
        layer.layer.weight.copy_(Tensor([[2.0, -1.0], [0.5, 3.0]]))
        layer.rho.copy_(torch.tensor([[0.1, 0.4], [0.2, 0.3]], dtype=torch.float64).expm1().log())  # softplus(rho)
    found = analytic_distribution(posterior, gradient, randn(2, 2), torch.tensor([0, 1]), keep_roots=True)
    assert_close(found.mean, torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64))
    assert_close(found.std, torch.tensor([[0.1, 0.4], [0.2, 0.3]], dtype=torch.float64))
    assert_close(found.covariance(1), torch.diag(torch.tensor([0.04, 0.09], dtype=torch.float64)))


def test_the_covariance_is_that_of_the_weights_through_the_jacobian(posterior_of):
    x = randn(3, 2, 6, 6)
    posterior = posterior_of(plain_cnn, randn(16, 2, 6, 6, seed=5))
    with assert_fast():
        found = analytic_distribution(posterior, gradient, x, torch.tensor([0, 2, 1]), keep_roots=True)
    many = posterior.sample(800, seed=3)
    trunk = nn.Sequential(*list(posterior.network)[:-1]).eval()
    name = "weight" if isinstance(posterior, Laplace) else "layer.weight"
    weights = torch.stack([draw.network[-1].get_parameter(name) for draw in many])  # (S, C, D)
    for example, target in enumerate([0, 2, 1]):
        jacobian = torch.autograd.functional.jacobian(lambda p: trunk(p[None])[0], x[example]).flatten(1)  # (D, P)
        drawn = torch.cov(weights[:, target].T, correction=0)
        empirical = jacobian.T @ drawn @ jacobian
        off = (found.covariance(example) - empirical).norm() / empirical.norm()
        # A covariance of 800 draws of 64 weights is off by about sqrt(64 / 800) in this norm.
        assert off < 0.3
        assert_close(found.covariance(example).diagonal().sqrt().view_as(x[0]), found.std[example], **EXACT)


def test_laplace_covariance_equals_its_definition_to_round_off():
    x = randn(2, 5)
    posterior = fitted(seeded(plain_mlp), randn(16, 5, seed=5))
    factor = posterior.factors["2.weight"]
    # Of vec(rows @ (noise / sqrt(precision)) @ columns^T), written out.
    mixing = torch.einsum("ci,ij,dj->cdij", factor["rows"], factor["precision"].rsqrt(), factor["columns"])
    weights = torch.einsum("cdij,ceij->cde", mixing, mixing)  # (C, D, D)
    with assert_fast():
        found = analytic_distribution(posterior, gradient, x, 1, keep_roots=True)
    hidden = (x @ posterior.network[0].weight.T + posterior.network[0].bias > 0).double()
    for example in range(2):
        jacobian = hidden[example][:, None] * posterior.network[0].weight  # (D, F)
        assert_close(found.covariance(example), jacobian.T @ weights[1] @ jacobian, **EXACT)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_many_draws_come_close(posterior_of, name):
    explainer, options = EXPLAINERS[name]
    x = randn(3, 5)
    posterior = posterior_of(plain_mlp, randn(16, 5, seed=5))
    with assert_fast():
        found = analytic_distribution(posterior, explainer, x, 2, **options)
        e = explain(posterior.sample(1000, seed=1), explainer, x, 2, keep="moments", **options)
    # 1000 draws: a std is off by 2.2 % (1 / sqrt(2 T)), a mean by 3.2 % of it; 15 numbers, so four times that.
    assert_close(e.std(), found.std, rtol=0.09, atol=1e-12)
    assert float(((e.mean() - found.mean).abs() / found.std).nan_to_num(0).max()) < 0.13


def test_the_default_target_is_the_class_of_the_mean_network():
    posterior = Flipout(seeded(plain_mlp, seed=4))
    x = 5 * randn(8, 5)
    with torch.no_grad():
        posterior.network[-1].layer.bias.zero_()
    classes = posterior.network.eval()(x).argmax(1)
    assert len(classes.unique()) > 1
    found = [analytic_distribution(posterior, gradient, x, target) for target in (None, classes)]
    assert torch.equal(found[0].mean, found[1].mean)
    assert torch.equal(found[0].std, found[1].std)


def test_the_network_is_left_as_it_was():
    posterior = Flipout(seeded(plain_mlp)).network.train()
    before = {key: value.clone() for key, value in posterior.state_dict().items()}
    analytic_distribution(Flipout(posterior[:2].append(nn.Linear(16, 3).double())), gradient, randn(2, 5))
    assert posterior.training
    assert all(torch.equal(before[key], value) for key, value in posterior.state_dict().items())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda x: analytic_distribution(Flipout(plain_mlp()), guided_backprop, x),
            ValueError,
            "guided_backprop is not",
        ),
        (lambda x: analytic_distribution(Flipout(plain_mlp()), lime, x), ValueError, "lime is not linear"),
        (lambda x: analytic_distribution(DeepEnsemble([plain_mlp()]), gradient, x), TypeError, "DeepEnsemble; pass"),
        (lambda x: analytic_distribution(Laplace(plain_mlp()), gradient, x), ValueError, "call fit"),
        (
            lambda x: analytic_distribution(MCDropConnect(plain_mlp(), placement="all"), gradient, x),
            ValueError,
            "wanted one dense layer",
        ),
        (lambda x: analytic_distribution(Flipout(plain_mlp()), gradient, x, 7), ValueError, "target 7"),
        (lambda x: analytic_distribution(Flipout(plain_mlp()), gradient, x).covariance(0), ValueError, "keep_roots"),
    ],
)
def test_bad_input_is_one_clear_error(call, kind, message):
    with pytest.raises(kind, match=message):
        call(randn(2, 5, dtype=torch.float32))
