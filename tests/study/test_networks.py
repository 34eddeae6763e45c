"""The networks of the study, and the layers whose weights can be drawn."""

from __future__ import annotations

import pytest
import torch
from core_networks import EXACT, Attention, randn, seeded
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from xuqlib import lenet, mini_vgg, mlp, resnet18
from xuqlib.posteriors.fixing import generator_of
from xuqlib.posteriors.kinds import weighted_layers
from xuqlib.posteriors.random_weights import DropConnectLayer, FlipoutLayer

SIGMAS = 5  # of a standard error, allowed in tests of moments: a fair estimate is beyond it once in 1.7 million


def kinds(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network.modules() if not list(module.children())]


def test_mini_vgg_has_three_blocks_and_two_dense_layers():
    block = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert kinds(mini_vgg()) == [*block * 3, "Flatten", "Linear", "ReLU", "Linear"]
    assert mini_vgg(in_channels=1, image_size=24, num_classes=7)(torch.zeros(2, 1, 24, 24)).shape == (2, 7)
    assert mini_vgg(widths=(4, 8), image_size=12)(torch.zeros(2, 3, 12, 12)).shape == (2, 10)


@pytest.mark.parametrize(
    ("build", "last", "everywhere"),
    [(mini_vgg, 1, 4), (lenet, 1, 3), (resnet18, 1, 5), (lambda **o: mlp(num_features=4, **o), 1, 2)],
    ids=["mini_vgg", "lenet", "resnet18", "mlp"],
)
def test_dropout_stands_before_the_output_or_after_every_block(build, last, everywhere):
    assert kinds(build()).count("Dropout") == 0
    at_the_end = kinds(build(dropout=0.25))
    assert at_the_end.count("Dropout") == last and at_the_end.index("Dropout") == len(at_the_end) - 2
    assert kinds(build(dropout=0.25, placement="all")).count("Dropout") == everywhere


def test_networks_map_examples_to_logits():
    assert lenet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert lenet(in_channels=3, image_size=8, num_classes=4)(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert mlp(num_features=8)(torch.zeros(5, 8)).shape == (5, 1)
    network = resnet18(num_classes=4, in_channels=1, dropout=0.1, placement="all").eval()
    assert network(torch.zeros(1, 1, 16, 16)).shape == (1, 4)
    assert network.conv1.stride == (1, 1)


def test_weighted_layers_are_the_last_all_or_those_named():
    network = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Flatten(), nn.Linear(8, 3))))
    assert weighted_layers(network) == ["1.1"]
    assert weighted_layers(network, "all") == ["0", "1.1"]
    assert weighted_layers(network, ["1.1", "0"]) == ["0", "1.1"]
    assert weighted_layers(nn.Linear(2, 2)) == [""]


def test_projections_inside_attention_are_no_weighted_layers():
    assert weighted_layers(Attention(0.0), "all") == ["head"]


@pytest.mark.parametrize("kind", ["linear", "convolution", "grouped"])
@pytest.mark.parametrize("random", [DropConnectLayer, FlipoutLayer])
def test_a_random_layer_is_the_layer_itself_in_eval_mode(kind, random):
    layer, x = layer_of(kind)
    wrapped = DropConnectLayer(layer, 0.5) if random is DropConnectLayer else FlipoutLayer(layer).double()
    assert_close(wrapped.eval()(x), layer(x), **EXACT)
    assert wrapped.weight is layer.weight and wrapped.bias is layer.bias


def layer_of(kind: str) -> tuple[nn.Module, torch.Tensor]:
    if kind == "linear":
        return seeded(lambda: nn.Linear(4, 3)), randn(2, 4)
    groups = 2 if kind == "grouped" else 1
    return seeded(lambda: nn.Conv2d(4, 6, 3, groups=groups)), randn(2, 4, 4, 4)


def test_dropconnect_keeps_weights_at_its_rate_and_divides_by_it():
    layer = DropConnectLayer(seeded(lambda: nn.Linear(200, 300)), p=0.3)
    drawn = layer.sample(generator_of(0))
    kept = drawn != 0
    error = (0.3 * 0.7 / kept.numel()) ** 0.5  # of a mean of Bernoullis
    assert abs(kept.double().mean() - 0.7) < SIGMAS * error
    assert_close(drawn[kept], layer.layer.weight.detach()[kept] / 0.7, **EXACT)
    by_row = kept.double().mean(1)  # one mask per weight, not per unit
    assert by_row.min() > 0.4 and by_row.max() < 0.95


def test_dropconnect_trains_with_the_mean_of_its_eval_mode():
    layer = DropConnectLayer(seeded(lambda: nn.Linear(4, 3)), p=0.3).train()
    x, count = randn(2, 4), 4000
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        outputs = torch.stack([layer(x) for _ in range(count)])
    assert_close(outputs.var(0), 0.3 / 0.7 * (x**2 @ layer.weight.detach().T ** 2), rtol=0.15, atol=0)
    error = outputs.std(0) / count**0.5
    assert ((outputs.mean(0) - layer.eval()(x)).abs() < SIGMAS * error).all()


def test_flipout_draws_gaussian_weights_with_the_mean_and_the_std_of_the_layer():
    layer = FlipoutLayer(seeded(lambda: nn.Linear(3, 2)), initial_std=0.2).double()
    layer.rho.data += randn(2, 3)  # each weight its own spread
    count = 4000
    drawn = torch.stack([layer.sample(generator_of(0, i)) for i in range(count)])
    std = layer.std.detach()
    assert ((drawn.mean(0) - layer.weight.detach()).abs() < SIGMAS * std / count**0.5).all()
    assert ((drawn.std(0) / std - 1).abs() < SIGMAS / (2 * count) ** 0.5).all()
    correlation = torch.corrcoef(drawn.flatten(1).T) - torch.eye(6)
    assert correlation.abs().max() < SIGMAS / count**0.5, "the weights are independent"


def test_flipout_starts_with_the_std_that_was_asked_for():
    assert_close(FlipoutLayer(nn.Linear(3, 2), initial_std=0.2).std.detach(), torch.full((2, 3), 0.2))


@pytest.mark.parametrize("kind", ["linear", "convolution", "grouped"])
def test_flipout_trains_with_the_law_of_plain_gaussian_weights_for_each_example(kind):
    plain, x = layer_of(kind)
    layer, count = FlipoutLayer(plain, initial_std=0.3).double().train(), 6000
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        outputs = torch.stack([layer(x) for _ in range(count)]).flatten(2)  # (count, N, units)
    mean = plain(x).detach().flatten(1)
    # sum_i x_i w_i with independent w_i ~ N(mean, 0.3^2) has this variance.
    shape = (plain.weight.shape[0], -1)
    ones = {"weight": torch.full_like(plain.weight, 0.09), "bias": torch.zeros_like(plain.bias)}
    variance = torch.func.functional_call(plain, ones, (x**2,)).detach().flatten(1)
    assert shape[0] in (3, 6)
    assert ((outputs.mean(0) - mean).abs() < SIGMAS * (variance / count) ** 0.5).all()
    # The fourth moment of a Gaussian gives a variance this standard error.
    assert ((outputs.var(0) / variance - 1).abs() < SIGMAS * (2 / count) ** 0.5).all()
    noise = (outputs - mean) / variance.sqrt()
    assert (noise[:, 0] * noise[:, 1]).mean(0).abs().max() < SIGMAS / count**0.5, "examples share no noise"


def test_flipout_flips_both_what_enters_and_what_leaves():
    layer, count = FlipoutLayer(seeded(lambda: nn.Linear(4, 2)), initial_std=1.0).double().train(), 3000
    x = torch.ones(2, 4, dtype=torch.float64)  # two equal examples
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        noise = torch.stack([layer(x) for _ in range(count)]) - layer.layer(x)  # (count, example, unit)
    # Were only outputs flipped, equal examples would have noise of equal size.
    assert not torch.allclose(noise[:, 0].abs(), noise[:, 1].abs(), rtol=0.1)
    only_one = torch.zeros_like(x)
    only_one[:, 0] = 1
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        noise = torch.stack([layer(only_one) for _ in range(count)]) - layer.layer(only_one)
    # Were only inputs flipped, all units of an example would flip together, and this mean would be 1.
    together = noise.prod(2).prod(1)
    assert abs(together.mean()) < SIGMAS * together.std() / count**0.5


def test_plain_gaussian_weights_would_correlate_the_examples():
    # The control of the test above: without signs, examples that point the same way share their noise.
    weight = 0.3 * randn(6000, 3, 4, seed=3)
    x = randn(2, 4)
    noise = torch.einsum("kuf,nf->knu", weight, torch.stack([x[0], 2 * x[0]]))
    assert (noise[:, 0] * noise[:, 1]).mean() / noise.std() ** 2 > 0.5


@pytest.mark.parametrize("prior_std", [0.5, 2.0])
def test_flipouts_divergence_is_that_of_torch(prior_std):
    layer = FlipoutLayer(seeded(lambda: nn.Conv2d(2, 3, 3)), initial_std=0.2, prior_std=prior_std).double()
    layer.rho.data += 0.3 * randn(*layer.rho.shape)
    expected = kl_divergence(Normal(layer.weight, layer.std), Normal(0.0, prior_std)).sum()
    assert_close(layer.kl(), expected, **EXACT)


def test_the_divergence_is_zero_at_the_prior():
    layer = FlipoutLayer(nn.Linear(3, 2), initial_std=0.7, prior_std=0.7)
    nn.init.zeros_(layer.layer.weight)
    assert_close(layer.kl().detach(), torch.tensor(0.0), rtol=0, atol=1e-6)


def test_softplus_of_rho_is_the_std():
    layer = FlipoutLayer(nn.Linear(3, 2))
    assert torch.equal(layer.std, F.softplus(layer.rho))
