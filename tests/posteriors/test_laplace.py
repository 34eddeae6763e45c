"""Laplace: the sampled Gaussian is laplace-torch's own posterior."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from core_networks import FunctionalRelu, assert_same, pickled, randn, seeded, snapshot, torchvision_resnet
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from xuqlib import Laplace
from xuqlib.posteriors.fixing import generator_of

SIGMAS = 5  # of a standard error


def tiny() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def loader(x: Tensor, y: Tensor, **options: Any) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, **options)


@pytest.fixture(params=["classification", "regression"])
def task(request: pytest.FixtureRequest) -> tuple[nn.Module, Any]:
    network = seeded(tiny)
    x = randn(48, 4)
    noise = randn(48, 2, seed=7)
    noise *= 0.3 / noise.square().mean(0).sqrt()  # the same of both outputs, all that laplace-torch itself can have
    return network, loader(
        x, (x[:, 0] > 0).long() if request.param == "classification" else network(x).detach() + noise
    )


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
    assert_close(posterior.noise_variance, noise.square().mean(0), rtol=1e-9, atol=0)  # of each output
    assert_close(posterior.sample(2).noise_variance, posterior.noise_variance)


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


def prior_precision(factor: dict[str, Tensor], curvature: Tensor) -> float:
    """What was added to the eigenvalues of the curvature, the same in every direction."""
    added = factor["precision"].sum() - curvature.diagonal().sum()
    return float(added / factor["precision"].numel())


def test_a_regression_with_several_outputs_is_bayesian_linear_regression_of_each():
    network, x = seeded(lambda: nn.Linear(4, 3, bias=False)), randn(64, 4)
    y = network(x).detach() + torch.tensor([0.1, 1.0, 20.0]) * randn(64, 3, seed=7)  # in very different units
    posterior = Laplace(network).fit(loader(x, y))
    noise = (network(x).detach() - y).square().mean(0)
    assert_close(posterior.noise_variance, noise)
    curvature = torch.block_diag(*(x.T @ x / variance for variance in noise))  # of the rows of the weight, one by one
    prior = prior_precision(posterior.factors["weight"], curvature)
    assert prior > 0
    wanted = torch.linalg.inv(curvature + prior * torch.eye(12, dtype=torch.float64))
    assert_close(covariance(posterior), wanted, rtol=1e-9, atol=1e-12)


def test_an_output_in_other_units_has_the_same_posterior_in_those_units():
    network, x = seeded(lambda: nn.Linear(4, 2, bias=False)), randn(64, 4)
    y, unit = network(x).detach() + 0.3 * randn(64, 2, seed=7), torch.tensor([1.0, 1000.0], dtype=torch.float64)
    other = seeded(lambda: nn.Linear(4, 2, bias=False))
    other.weight.data *= unit[:, None]
    one, scaled = Laplace(network).fit(loader(x, y)), Laplace(other).fit(loader(x, y * unit))
    assert_close(scaled.noise_variance, one.noise_variance * unit**2)


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_regression_with_one_output_is_the_same_however_the_output_and_the_targets_are_shaped(squeezed):
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x).squeeze(1) if squeezed else self.line(x)

    network, x = seeded(One), randn(48, 4)
    y = x.sum(1) + 0.3 * randn(48, seed=7)
    wanted = Laplace(network.line).fit(loader(x, y[:, None]))
    for targets in (y, y[:, None], y.float()):
        posterior = Laplace(network).fit(loader(x, targets))
        assert isinstance(posterior.noise_variance, float)
        assert posterior.noise_variance == pytest.approx(wanted.noise_variance, rel=1e-6)
        assert_close(covariance(posterior), covariance(wanted), rtol=1e-4, atol=0)


def test_what_follows_the_last_layer_counts():
    """An output divided by a temperature: by the chain rule, the curvature is divided by its square."""

    class Cooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.line(x) / 2

    network, x, y = seeded(Cooled), randn(48, 4), torch.arange(48) % 3
    posterior = Laplace(network).fit(loader(x, y))
    plain = seeded(lambda: nn.Linear(4, 3, bias=False))
    plain.load_state_dict({"weight": network.line.weight.detach() / 2})
    other = Laplace(plain).fit(loader(x, y))
    for key in ("rows", "columns"):
        assert_close(
            posterior.factors["line.weight"][key].abs(), other.factors["weight"][key].abs(), rtol=1e-6, atol=1e-8
        )
    ours, theirs = (p.factors[key]["precision"].flatten() for p, key in ((posterior, "line.weight"), (other, "weight")))
    assert_close((ours - ours.min()) * 4, theirs - theirs.min(), rtol=1e-6, atol=1e-8)  # the prior precision is added


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_number_dtype_and_batches_in_any_iterable_are_the_same(dtype):
    network, x, y = seeded(tiny), randn(48, 4), torch.arange(48) % 2
    wanted = Laplace(network).fit(loader(x, y))
    batches = [(part, label.to(dtype)) for part, label in zip(x.split(16), y.split(16), strict=True)]
    column = [(part, label[:, None]) for part, label in batches]
    for given in (batches, iter(batches), column, loader(x, y.to(dtype))):
        assert_close(covariance(Laplace(network).fit(given)), covariance(wanted), rtol=0, atol=0)


def test_examples_that_a_loader_leaves_out_are_not_counted():
    network, x, y = seeded(tiny), randn(47, 4), torch.arange(47) % 2
    wanted = Laplace(network).fit(loader(x[:32], y[:32]))
    assert_close(covariance(Laplace(network).fit(loader(x, y, drop_last=True))), covariance(wanted), rtol=0, atol=0)


def test_a_layer_may_be_named():
    network, x = seeded(tiny), randn(48, 4)
    draw = Laplace(network, layer="0").fit(loader(x, (x[:, 0] > 0).long())).sample(1)[0].network
    assert not torch.equal(draw[0].weight, network[0].weight)
    assert torch.equal(draw[2].weight, network[2].weight)
    with pytest.raises(ValueError, match=r"placement \['1'\] means; pass .* layers \['0', '2'\]"):
        Laplace(network, layer="1")


def test_token_ids_go_in_as_they_are():
    network = seeded(lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)))
    posterior = Laplace(network).fit(loader(torch.arange(72).view(24, 3) % 9, torch.arange(24) % 2))
    assert covariance(posterior).isfinite().all() and posterior.last_layer == "2"


class OfADictionary(nn.Module):
    """Takes what a tokenizer gives, and answers a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.classifier = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        words = self.embedding(input_ids) * attention_mask[..., None]
        return {"logits": self.classifier(words.sum(1)), "words": words}


class OfOneTensor(nn.Module):
    def __init__(self, network: OfADictionary) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x[:, 0].long(), x[:, 1])["logits"]


def test_inputs_by_name_and_answers_in_a_dictionary_have_the_curvature_of_one_tensor_and_logits():
    network = seeded(OfADictionary)
    ids, mask, y = (
        torch.arange(72).view(24, 3) % 9,
        (torch.arange(72).view(24, 3) % 4 > 0).float(),
        torch.arange(24) % 2,
    )
    named = [
        {"input_ids": ids[some], "attention_mask": mask[some], "labels": y[some]} for some in (slice(16), slice(16, 24))
    ]
    given = Laplace(network, layer="classifier").fit(named, output="logits")
    plain = Laplace(OfOneTensor(network), layer="network.classifier")
    plain.fit(loader(torch.stack([ids.float(), mask], 1), y))
    torch.testing.assert_close(covariance(given), covariance(plain))
    pairs = [((part["input_ids"], part["attention_mask"]), part["labels"]) for part in named]
    other = [{key if key != "labels" else "target": value for key, value in part.items()} for part in named]
    torch.testing.assert_close(
        covariance(Laplace(network, layer="classifier").fit(other, output="logits")), covariance(given)
    )
    again = Laplace(network, layer="classifier").fit(pairs, output=lambda answer: answer["logits"])
    torch.testing.assert_close(covariance(again), covariance(plain))


def test_targets_of_0_and_1_are_numbers_where_the_output_says_so():
    posterior = Laplace(seeded(tiny)).fit([(X, F.one_hot(Y).float())], output="regression")
    assert posterior.output == "regression" and covariance(posterior).isfinite().all()
    with pytest.raises(ValueError, match="unknown output of a Laplace posterior 'multilabel'"):
        posterior.fit([(X, Y)], output="multilabel")


X, Y = randn(32, 4), torch.arange(32) % 2


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x) - self.line(-x)


@pytest.mark.parametrize(
    ("build", "given", "error", "what"),
    [
        (tiny, lambda: loader(X, Y, collate_fn=lambda rows: {"x": X}), TypeError, "the loader gave a dict"),
        (tiny, lambda: [(X, Y, Y)], TypeError, r"batches \(x, y\) of inputs and targets"),
        (tiny, lambda: X, TypeError, "the loader gave a Tensor"),
        (tiny, lambda: [], ValueError, "a loader without examples"),
        (tiny, lambda: loader(X[:0], Y[:0]), ValueError, "a loader without examples"),
        (
            tiny,
            lambda: [(X, Y), (X.log(), Y)],
            ValueError,
            "x holds .* NaN and 0 infinite values",
        ),
        (
            tiny,
            lambda: [(X, F.one_hot(Y).float())],
            ValueError,
            "targets are 0.0 and 1.0, as of labels behind a sigmoid",
        ),
        (tiny, lambda: [(X, X[:, :2] / 0)], ValueError, "residuals of the outputs are .*(nan|inf)"),
        (tiny, lambda: [(X, Y), (X, Y + 1)], ValueError, "target 2 of example 33 is out of range"),
        (tiny, lambda: [(X, Y - 1)], ValueError, "target -1 of example 0 is out of range"),
        (tiny, lambda: [(X, F.one_hot(Y))], ValueError, "target has 64 entries but x has 32 examples"),
        (tiny, lambda: [(X, X)], ValueError, r"targets have shape \(32, 4\) but the network gives \(32, 2\)"),
        (
            tiny,
            lambda: [(X, seeded(tiny)(X).detach())],
            ValueError,
            r"residuals of the outputs are \[0.0, 0.0\]; pass data that have noise",
        ),
        (lambda: nn.Linear(4, 1), lambda: [(X, Y)], ValueError, "train it with two logits"),
        (lambda: nn.Sequential(nn.Linear(4, 2), nn.Softmax(-1)), lambda: [(X, Y)], ValueError, "answers probabilities"),
        (Twice, lambda: [(X, Y)], ValueError, "calls its layer 'line' 2 times"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_one_sentence(build, given, error, what):
    posterior = Laplace(seeded(build))
    with pytest.raises(error, match=what) as caught:
        posterior.fit(given())
    assert "\n" not in str(caught.value) and not posterior.factors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    with pytest.raises(ValueError, match=f"no eigendecomposition in {dtype}; .*double"):
        Laplace(seeded(tiny, dtype=dtype)).fit(loader(X.to(dtype), Y))


def test_laplace_never_ends_the_process(monkeypatch):
    def without_result(*_: Any, **__: Any) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", without_result)
    with pytest.raises(ValueError, match="the curvature of the last layer has no eigendecomposition"):
        Laplace(seeded(tiny)).fit(loader(X, Y))


def test_what_basis_rounding_picks_among_flat_directions_changes_no_draw():
    """Features of rank 2 in 6 dimensions: among four directions of equal precision, any basis is as good."""
    network = seeded(lambda: nn.Sequential(nn.Linear(2, 6, bias=False), nn.Linear(6, 3)).double())
    x, y = randn(48, 2).double(), torch.arange(48) % 3
    posterior = Laplace(network).fit(loader(x, y))
    factor = posterior.factors["1.weight"]
    flat = factor["precision"].amax(0) < factor["precision"].min() * (1 + 1e-9)
    assert flat.sum() == 4
    turn = torch.linalg.qr(randn(4, 4, seed=3).double()).Q
    turned = Laplace(network).fit(loader(x, y))
    turned.factors["1.weight"] = factor | {"columns": factor["columns"].clone()}
    turned.factors["1.weight"]["columns"][:, flat] @= turn
    assert (turned.factors["1.weight"]["columns"] - factor["columns"]).abs().max() > 0.1
    assert_close(covariance(turned), covariance(posterior), rtol=1e-10, atol=1e-12)
    for draw, other in zip(posterior.sample(3, seed=4), turned.sample(3, seed=4), strict=True):
        ours, theirs = (each.network[1].weight - network[1].weight for each in (draw, other))
        assert ours.abs().max() > 0.1
        assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_no_order_of_sums_changes_a_bit_of_a_draw():
    network = seeded(lambda: nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 40)), dtype=torch.float32)
    posterior = Laplace(network).fit(loader(randn(80, 4).float(), torch.arange(80) % 40))
    factor, mean = posterior.factors["2.weight"], network[2].weight.detach()
    (draw,) = posterior.sample(1, seed=4)
    number = sorted(posterior.factors).index("2.weight")
    noise = torch.randn(mean.shape, generator=generator_of(4, 0, number))
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))

    def formula(order, dtype):
        rows, columns, precision, z = (
            each.to(dtype) for each in (factor["rows"], factor["columns"], factor["precision"], noise)
        )
        turned = rows.T @ (z[:, order] @ columns[order]) / precision.sqrt()
        return mean + (rows @ turned[:, order] @ columns.T[order]).float()

    assert draw.network[2].weight.dtype == torch.float32
    for order in (shuffled, shuffled.flip(0)):
        assert torch.equal(draw.network[2].weight, formula(order, torch.float64))
    assert not torch.equal(draw.network[2].weight, formula(shuffled, torch.float32))
