"""LIME: equal to scikit-learn's ridge regression, closed forms, and what it promises over draws and chunks."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from core_networks import assert_fast, randn, seeded
from torch import Tensor, nn

from xuqlib.explain import explain
from xuqlib.explainers import EXPLAINERS
from xuqlib.explainers.lime import lime, lime_fit
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.superpixels import superpixels, windows

TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}  # float64, one well-conditioned system of at most 40 unknowns


def ready(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return seeded(build, seed=seed).eval()


def mlp(seed: int = 0) -> nn.Module:
    return ready(lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)), seed)


def cnn(channels: int = 3, seed: int = 0) -> nn.Module:
    return ready(
        lambda: nn.Sequential(
            *(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(96, 3)),
        ),
        seed,
    )


TARGET = torch.tensor([0, 2, 1])


def quarters(num_examples: int) -> Tensor:
    """Four square superpixels of an 8 x 8 picture, named 0, 1, 2, 3."""
    labels = torch.zeros(8, 8, dtype=torch.int64)
    labels[:, 4:] += 1
    labels[4:] += 2
    return labels.expand(num_examples, 8, 8)


# Slow oracles


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, [0.5, 1.0, 2.0, 0.1, 3.0]])
def test_lime_of_a_table_equals_ridge_regression_one_copy_at_a_time(alpha: float, scale: float | list[float]) -> None:
    network, x = mlp(), randn(3, 5)
    design = np.random.default_rng(7).standard_normal((40, 5))
    design[0] = 0
    wanted, r2 = oracles.loop_lime_table(network, x, TARGET, design, alpha, np.broadcast_to(scale, 5))
    option = scale if isinstance(scale, float) else torch.tensor(scale)
    # The scales are read as float32 numbers where a tensor gives them so.
    close = TIGHT if isinstance(scale, float) else {"rtol": 1e-6, "atol": 1e-6}
    for given, fast in ((network, False), (FixedNetwork(network), True)):
        with assert_fast(fast):
            found = lime_fit(given, x, TARGET, num_samples=40, seed=7, alpha=alpha, scale=option)
        torch.testing.assert_close(found.attribution, torch.from_numpy(wanted), **close)
        torch.testing.assert_close(found.r2, torch.from_numpy(r2), **close)


@pytest.mark.parametrize("channels", [1, 3])
def test_lime_of_pictures_equals_ridge_regression_one_copy_at_a_time(channels: int) -> None:
    network, x = cnn(channels), randn(3, channels, 8, 8)
    segments = torch.stack([quarters(1)[0], torch.zeros(8, 8).long(), 5 * torch.arange(8)[:, None].expand(8, 8) - 3])
    uniform = np.random.default_rng(3).random((8, 30))
    wanted, r2 = oracles.loop_lime_picture(network, x, TARGET, segments.numpy(), uniform, alpha=1.0)
    for given, fast in ((network, False), (FixedNetwork(network), True)):
        with assert_fast(fast):
            found = lime_fit(given, x, TARGET, num_samples=30, seed=3, segments=segments)
        torch.testing.assert_close(found.attribution.sum(1), torch.from_numpy(wanted), **TIGHT)
        torch.testing.assert_close(found.attribution, found.attribution.mean(1, keepdim=True).expand_as(x), **TIGHT)
        torch.testing.assert_close(found.r2, torch.from_numpy(r2), **TIGHT)


def test_lime_with_its_own_superpixels_equals_lime_given_them() -> None:
    network, x = cnn(), randn(3, 3, 8, 8).sigmoid()
    segments = superpixels(x, 9)
    found = lime(network, x, TARGET, num_samples=30, num_segments=9)
    assert torch.equal(found, lime(network, x, TARGET, num_samples=30, segments=segments))


# Closed forms


def test_lime_of_a_linear_network_is_its_weight_whatever_the_scale() -> None:
    network = ready(lambda: nn.Linear(5, 3))
    for scale in (1.0, 0.01, torch.tensor([0.1, 1, 10, 2, 3], dtype=torch.float64)):
        found = lime_fit(network, randn(3, 5), TARGET, alpha=0, num_samples=50, scale=scale)
        torch.testing.assert_close(found.attribution, network.weight[TARGET].detach(), **TIGHT)
        torch.testing.assert_close(found.r2, torch.ones(3, dtype=torch.float64))


def test_lime_of_a_sum_over_superpixels_is_what_each_adds() -> None:
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    effects = torch.tensor([[[3.0, -1.0], [0.5, 0.0]]], dtype=torch.float64).repeat_interleave(4, 1)
    effects = effects.repeat_interleave(4, 2) / 16
    network = lambda batch: (batch[:, 0] * effects).flatten(1).sum(1) + 7  # noqa: E731
    found = lime_fit(network, x, alpha=0, num_samples=40, segments=quarters(1), fill=0)
    torch.testing.assert_close(found.attribution[:, 0], 16 * effects, **TIGHT)
    torch.testing.assert_close(found.r2, torch.ones(1, dtype=torch.float64))
    # Hidden at 0.25 instead of black, each superpixel adds three quarters.
    grey = lime(network, x, alpha=0, num_samples=40, segments=quarters(1), fill=torch.tensor(0.25))
    torch.testing.assert_close(grey[:, 0], 12 * effects, **TIGHT)
    # The mean colour of a flat superpixel is itself: hiding changes nothing.
    with pytest.warns(UserWarning, match="LIME hides nothing in 1 of 1 examples.*superpixel.*pass another fill"):
        same = lime_fit(network, x, alpha=0, num_samples=40, segments=quarters(1), fill="mean")
    assert torch.equal(same.attribution, torch.zeros_like(x)), "and not the rounding of a constant"
    assert torch.isnan(same.r2).all()


def test_a_network_that_lime_cannot_describe_has_a_low_r2() -> None:
    bowl = lambda batch: (batch**2).sum(1)  # noqa: E731 - at its bottom there is no slope, only curvature
    assert lime_fit(bowl, torch.zeros(1, 4, dtype=torch.float64), num_samples=500).r2 < 0.1
    assert lime_fit(bowl, torch.full((1, 4), 50.0, dtype=torch.float64), num_samples=500).r2 > 0.9


# Promises


@pytest.mark.parametrize("kind", ["table", "pictures"])
def test_the_mean_of_lime_over_networks_is_lime_of_the_mean_network(kind: str) -> None:
    build, x = (mlp, randn(3, 5)) if kind == "table" else (lambda seed: cnn(seed=seed), randn(3, 3, 8, 8))
    networks = [build(seed=seed) for seed in range(3)]
    mean = lambda batch: torch.stack([network(batch) for network in networks]).mean(0)  # noqa: E731
    each = torch.stack([lime(network, x, TARGET, num_samples=40, num_segments=9) for network in networks])
    torch.testing.assert_close(each.mean(0), lime(mean, x, TARGET, num_samples=40, num_segments=9), **TIGHT)


def test_over_draws_one_set_of_regions_serves_all_examples_however_they_are_cut() -> None:
    series, table = randn(3, 2, 12), randn(5, 5)  # as many examples as features
    recurrent = ready(lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 3)))
    for network, x, segments in ((recurrent, series, windows(series, 4, axis=2)), (mlp(), table, torch.arange(5) // 2)):
        options: dict[str, Any] = {"num_samples": 20, "segments": segments}
        wanted = lime(network, x, 1, **options)
        for chunk in (None, 2):
            found = explain([network], lime, x, 1, chunk=chunk, **options).values[0]
            torch.testing.assert_close(found, wanted, **TIGHT)


def test_examples_one_by_one_equal_all_at_once_even_if_they_differ_in_superpixels() -> None:
    x = randn(3, 3, 8, 8).sigmoid()
    segments = torch.stack([quarters(1)[0], torch.arange(64).view(8, 8), torch.arange(8).expand(8, 8)])
    options: dict[str, Any] = {"num_samples": 100, "fill": 0.5}
    whole = lime(cnn(), x, TARGET, segments=segments, **options)
    rows = [slice(i, i + 1) for i in range(3)]
    parts = [lime(cnn(), x[row], TARGET[row], segments=segments[row], **options) for row in rows]
    torch.testing.assert_close(torch.cat(parts), whole, **TIGHT)


def test_regions_that_all_examples_share_are_cut_with_the_examples() -> None:
    """Windows of time (1, 1, T), and one label per column of a table (F,)."""
    signals = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).double()
    cases = [(signals, randn(3, 2, 12), windows(randn(3, 2, 12), 4, axis=2)), (mlp(), randn(3, 5), torch.arange(5) % 2)]
    for network, x, segments in cases:
        options: dict[str, Any] = {"num_samples": 40, "fill": 0.0, "segments": segments}
        found = explain([network], "lime", x, TARGET, chunk=2, **options).values[0]
        torch.testing.assert_close(found, lime(network, x, TARGET, **options), **TIGHT)


@pytest.mark.parametrize("x", [randn(3, 5), randn(3, 3, 8, 8)], ids=["table", "pictures"])
def test_the_seed_alone_decides_the_perturbations(x: Tensor) -> None:
    network = mlp() if x.dim() == 2 else cnn()
    first = lime(network, x, TARGET, num_samples=40, seed=1, num_segments=9)
    assert torch.equal(first, lime(network, x, TARGET, num_samples=40, seed=1, num_segments=9))
    second = lime(network, x, TARGET, num_samples=40, seed=2, num_segments=9)
    assert (first - second).norm() > 0.01 * first.norm() > 0


def test_a_pass_holds_a_bounded_number_of_rows_and_no_graph() -> None:
    sizes = []

    def network(batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        assert not torch.is_grad_enabled()
        return batch.flatten(1).sum(1)

    lime(network, randn(3, 3, 32, 32), num_samples=100)
    assert sizes == [2, 2, 3, 64, 64, 64, 64, 44], "it is tried out on two examples first, then on all"


def test_superpixels_are_numbered_from_0_without_gaps_and_cut_along_edges() -> None:
    x = torch.zeros(2, 3, 16, 16)
    x[:, :, :, 6:] = 1  # not where a plain grid would cut
    for pictures in (x, x[:, :1]):
        labels = superpixels(pictures, 4)
        assert labels.shape == (2, 16, 16)
        assert torch.equal(labels[0].unique(), torch.arange(int(labels[0].max()) + 1))
        assert not set(labels[0][:, :6].unique().tolist()) & set(labels[0][:, 6:].unique().tolist())


def test_lime_is_an_ordinary_function_that_shows_its_options_and_can_be_pickled() -> None:
    parameters = inspect.signature(lime).parameters
    assert list(parameters) == list(inspect.signature(lime_fit).parameters)
    assert parameters["num_samples"].default == 1000
    assert lime.__name__ == "lime"
    assert pickle.loads(pickle.dumps(lime)) is lime
    assert list(EXPLAINERS) == [function.__name__ for function in EXPLAINERS.values()]


# Bad input

BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "three axes": (lambda: lime(lambda x: x.sum(2), randn(2, 3, 4), 0), ValueError, "which of its axes is time"),
    "one sample": (lambda: lime(mlp(), randn(2, 5), 0, num_samples=1), ValueError, "num_samples is 1"),
    "too few samples": (
        lambda: lime(mlp(), randn(2, 5), 0, num_samples=4, alpha=0),
        ValueError,
        "4 perturbations do not determine 5 coefficients at alpha = 0; raise num_samples",
    ),
    "negative alpha": (lambda: lime(mlp(), randn(2, 5), 0, alpha=-1), ValueError, "alpha is -1"),
    "zero width": (lambda: lime(mlp(), randn(2, 5), 0, kernel_width=0), ValueError, "finite number above 0"),
    "scale length": (lambda: lime(mlp(), randn(2, 5), 0, scale=torch.ones(4)), ValueError, "each of the 5 features"),
    "scale zero": (lambda: lime(mlp(), randn(2, 5), 0, scale=0.0), ValueError, "pass a positive number"),
    "segments of a table": (
        lambda: lime(mlp(), randn(2, 5), 0, segments=quarters(2)),
        ValueError,
        r"segments are \(2, 8, 8\); pass one label per place of x \(2, 5\)",
    ),
    "segments shape": (
        lambda: lime(cnn(), randn(3, 3, 8, 8), 0, segments=quarters(2)),
        ValueError,
        r"segments are \(2, 8, 8\); pass one label per place of x \(3, 3, 8, 8\), such as \(3, 8, 8\)",
    ),
    "segments float": (
        lambda: lime(cnn(), randn(2, 3, 8, 8), 0, segments=quarters(2).float()),
        ValueError,
        "torch.float32",
    ),
    "segments array": (
        lambda: lime(cnn(), randn(2, 3, 8, 8), 0, segments=quarters(2).numpy()),
        TypeError,
        "segments is a ndarray; pass a torch tensor",
    ),
    "no segments": (lambda: lime(cnn(), randn(2, 3, 8, 8), 0, num_segments=0), ValueError, "num_segments is 0"),
    "superpixels of a table": (lambda: superpixels(randn(2, 5)), ValueError, "superpixels need images"),
    "fill name": (lambda: lime(cnn(), randn(2, 3, 8, 8), 0, fill="blur"), ValueError, "unknown fill 'blur'"),
    "fill shape": (lambda: lime(cnn(), randn(2, 3, 8, 8), 0, fill=randn(5)), ValueError, "does not broadcast"),
    "fill none": (lambda: lime(cnn(), randn(2, 3, 8, 8), 0, fill=None), TypeError, "fill is None; pass a number"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_option_is_one_clear_error(what: str) -> None:
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call()
