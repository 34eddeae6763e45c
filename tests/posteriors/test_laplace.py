"""Laplace: the sampled Gaussian is laplace-torch's own posterior."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from core_networks import FunctionalRelu, assert_same, pickled, randn, seeded, snapshot, torchvision_resnet
from torch import Tensor, nn
from torch.testing import assert_close

from xuqlib import Laplace

SIGMAS = 5  # of a standard error


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def loader(x: Tensor, y: Tensor, **options: Any) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, **options)


@pytest.fixture(params=["classification", "regression"])
def task(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    network = seeded(tiny)
    x = randn(48, 4)
    y = (x[:, 0] > 0).long() if request.param == "classification" else network(x).detach() + 0.3 * randn(48, 2, seed=7)
    return network, loader(x, y)


def own_posterior(network: nn.Module, data: Any) -> Any:
    """laplace-torch used as its manual says, without this library."""
    from laplace import Laplace as LaplaceTorch

    classification = not data.dataset.tensors[1].is_floating_point()
    kind = "classification" if classification else "regression"
    options: dict[str, Any] = {}
    if not classification:
        x, y = data.dataset.tensors
        options["sigma_noise"] = float((network(x) - y).detach().square().mean().sqrt())
    laplace = LaplaceTorch(network, kind, subset_of_weights="last_layer", hessian_structure="kron", **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="By default `link_approx`")
        laplace.fit(data)
        laplace.optimize_prior_precision(method="marglik")
    return laplace


def covariance(posterior: Laplace) -> Tensor:
    """Dense covariance that the factors stand for, block by block: each column is what one unit of noise adds."""
    blocks = []
    for factor in posterior.factors.values():
        shape, columns = factor["precision"].shape, []
        for place in range(factor["precision"].numel()):
            unit = torch.zeros(shape.numel(), dtype=torch.float64)
            unit[place] = 1
            part = factor["rows"].double() @ (unit.view(shape) / factor["precision"].double().sqrt())
            columns.append((part @ factor["columns"].double().T if "columns" in factor else part).flatten())
        root = torch.stack(columns, 1)
        blocks.append(root @ root.T)
    return torch.block_diag(*blocks)


def test_the_covariance_is_laplace_torchs(task):
    network, data = task
    posterior = Laplace(network).fit(data)
    own = own_posterior(seeded(tiny), data)
    # optimised by 100 steps of Adam in float32: equal steps, rounded in another order
    assert_close(
        covariance(posterior), own.posterior_precision.to_matrix(exponent=-1).detach().double(), rtol=1e-3, atol=1e-6
    )


def test_the_samples_have_that_covariance_and_the_trained_weights_as_mean(task):
    network, data = task
    posterior, count = Laplace(network).fit(data), 1500
    draws = [
        torch.cat([draw.network[2].weight.flatten(), draw.network[2].bias]) for draw in posterior.sample(count, seed=1)
    ]
    sampled = torch.stack(draws)
    mean = torch.cat([network[2].weight.flatten(), network[2].bias]).detach()
    expected = covariance(posterior)
    std = expected.diagonal().sqrt()
    assert ((sampled.mean(0) - mean).abs() < SIGMAS * std / count**0.5).all()
    # var(ab) of two Gaussians is s_aa s_bb + s_ab^2.
    error = ((torch.outer(std**2, std**2) + expected**2) / count).sqrt()
    assert ((torch.cov(sampled.T) - expected).abs() < SIGMAS * error).all()


def test_only_the_last_layer_is_random(task):
    network, data = task
    draw = Laplace(network).fit(data).sample(1)[0].network
    assert torch.equal(draw[0].weight, network[0].weight)
    assert not torch.equal(draw[2].weight, network[2].weight)


def test_regression_takes_its_noise_from_the_residuals():
    network, x = seeded(tiny), randn(48, 4)
    noise = 0.3 * randn(48, 2, seed=7)
    posterior = Laplace(network).fit(loader(x, network(x).detach() + noise))
    assert posterior.noise_variance == pytest.approx(float(noise.square().mean()), rel=1e-9)
    assert posterior.sample(2).noise_variance == posterior.noise_variance


@pytest.mark.usefixtures("untouched_generators")
def test_fitting_leaves_the_network_and_the_global_generator_as_they_were(task):
    network, data = task
    network.train().requires_grad_(False)
    before = snapshot(network)
    shuffled = loader(*data.dataset.tensors, shuffle=True)
    Laplace(network).fit(shuffled)
    assert_same(before, snapshot(network))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (FunctionalRelu, (5,)),
        (torchvision_resnet, (3, 8, 8)),
        (lambda: nn.Linear(5, 3), (5,)),
        (lambda: nn.Sequential(nn.Linear(5, 3)), (5,)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 3, bias=False)), (5,)),
    ],
    ids=["functional relu", "resnet18", "one linear layer", "a sequence of one", "no bias"],
)
def test_laplace_stands_around_any_network_with_a_dense_last_layer(build, shape):
    network = seeded(build, dtype=torch.float32)
    x = randn(12, *shape, dtype=torch.float32)
    draws = Laplace(network).fit(loader(x, torch.arange(12) % 3)).sample(3, seed=1)
    answers = draws(x)
    assert answers.shape == (3, 12, 3) and answers.isfinite().all()
    assert not torch.allclose(answers[0], answers[1])
    assert torch.equal(pickled(draws)(x), answers)


def test_more_data_narrow_the_posterior():
    network, spreads = seeded(tiny), []
    for count in (16, 1600):
        x = randn(count, 4)
        spreads.append(covariance(Laplace(network).fit(loader(x, (x[:, 0] > 0).long()))).trace())
    assert spreads[1] < spreads[0]
