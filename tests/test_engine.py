"""However draws x examples x steps are evaluated, the result is the plain loop over draws: on networks made at random."""

from __future__ import annotations

import gc
import random
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from core_networks import (
    EXACT,
    FunctionalDropout,
    FunctionalRelu,
    OneOutput,
    TwiceDropout,
    assert_same,
    clones,
    late_cnn,
    randn,
    seeded,
    snapshot,
    table_mlp,
    torchvision_resnet,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from xuqlib import (
    DeepEnsemble,
    Draws,
    Flipout,
    Laplace,
    MCDropConnect,
    MCDropout,
    engine,
    explain,
    explaining,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    load,
    smoothgrad,
    train_or_load,
)
from xuqlib.chains import Chain
from xuqlib.draws import FixedNetwork
from xuqlib.engine import computing_in, mean_over_draws, over_draws
from xuqlib.networks import weighted_layers
from xuqlib.paths import NO_RELU
from xuqlib.steps import Convolution, Dense

PROMISE = 1e-10  # largest error in float64, relative to the largest number of the map: what the engine promises

EXPLAINERS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "gradient": (gradient, {}),
    "gradient_x_input": (gradient_x_input, {}),
    "guided_backprop": (guided_backprop, {}),
    "integrated_gradients": (integrated_gradients, {"num_steps": 3}),
    "integrated_gradients, many steps": (integrated_gradients, {"num_steps": 41, "baseline": "mean"}),
    "smoothgrad": (smoothgrad, {"num_samples": 5, "seed": 3}),
}
LINEAR = [name for name in EXPLAINERS if name != "guided_backprop"]


def looped(draws: Any, explainer: Callable[..., Tensor], x: Tensor, target: Any = None, **options: Any) -> Tensor:
    """The oracle: every draw by itself, (draw, example, ...)."""
    return torch.stack([explainer(draw, x, target, **options) for draw in draws])


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest number; maps that are zero everywhere must be so exactly."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max()) / (float(expected.abs().max()) or 1e-300)


def assert_equals_the_loop(draws: Any, x: Tensor, target: Any = None, *, names: Any = EXPLAINERS) -> None:
    """All attributions and their mean, by each explainer."""
    for name in names:
        explainer, options = EXPLAINERS[name]
        expected = looped(draws, explainer, x, target, **options)
        found = explain(draws, explainer, x, target, **options).values
        assert error(found, expected) < PROMISE, name
        mean = explain(draws, explainer, x, target, keep="mean", **options).mean()
        assert error(mean, expected.mean(0)) < PROMISE, f"{name}, mean"


# Networks at random


class Growing:
    """A network that grows by the layers that fit."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.h, self.layers = torch.zeros(2, *shape[1:]), list[nn.Module]()

    def add(self, layer: nn.Module) -> None:
        # What autograd needs of a layer's output may not be overwritten.
        free = nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.MaxPool2d
        if hasattr(layer, "inplace") and self.layers and not isinstance(self.layers[-1], free):
            layer.inplace = False
        try:
            h = layer.eval()(self.h.clone())
        except (RuntimeError, ValueError):  # too small a picture
            return
        if h.isfinite().all():  # else a pooling sees nothing but padding, which torch's own backward pass cannot stand
            self.h = h
            self.layers.append(layer)

    @property
    def width(self) -> int:
        return self.h.shape[1]


def random_convolution(rng: random.Random, channels: int) -> nn.Conv2d:
    bias = rng.random() < 0.7
    if rng.random() < 0.4:  # what most networks are made of
        return nn.Conv2d(channels, rng.randint(1, 6), 3, padding=1, bias=bias)
    groups = rng.choice([1, 1, channels])
    padding = rng.choice([0, 1, 2, (0, 1), "same", "valid"])
    return nn.Conv2d(
        channels,
        groups * rng.randint(1, 3),
        rng.choice([1, 2, 3, (1, 3), (3, 2), 5]),
        stride=1 if padding == "same" else rng.choice([1, 2, (1, 2)]),
        padding=padding,
        dilation=rng.choice([1, 1, 2]),
        groups=groups,
        bias=bias,
        padding_mode=rng.choice(["zeros", "zeros", "zeros", "reflect"]),
    )


def random_pool(rng: random.Random) -> nn.Module:
    if rng.random() < 0.2:
        return nn.AvgPool2d(2, ceil_mode=True)
    kernel, stride = rng.choice([2, 2, 3, (2, 3)]), rng.choice([None, None, 1, 2])
    padding, dilation = rng.choice([0, 0, 1]), rng.choice([1, 1, 1, 2])
    return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=rng.random() < 0.3)


def random_other(rng: random.Random, width: int) -> nn.Module:
    """Layers that the engine does not know by hand, and one that does nothing."""
    kinds = (nn.Sigmoid, nn.GELU, nn.ELU, nn.ReLU6, nn.PReLU, nn.Identity, lambda: nn.LeakyReLU(0.1, inplace=True))
    return rng.choice([*kinds, lambda: nn.GroupNorm(1, width), lambda: nn.InstanceNorm2d(width)])()


def random_dropout(rng: random.Random, kinds: tuple[type[nn.Module], ...] = (nn.Dropout, nn.Dropout2d)) -> nn.Module:
    return rng.choice(kinds)(rng.choice([0.0, 0.2, 0.5]), inplace=rng.random() < 0.3)


def add_hidden(rng: random.Random, growing: Growing) -> None:
    growing.add(nn.Linear(growing.width, rng.randint(3, 9), bias=rng.random() < 0.8))
    if rng.random() < 0.3:
        growing.add(nn.BatchNorm1d(growing.width, affine=rng.random() < 0.7))
    growing.add(nn.ReLU(inplace=rng.random() < 0.5) if rng.random() < 0.8 else nn.Tanh())
    if rng.random() < 0.4:
        growing.add(random_dropout(rng, (nn.Dropout,)))


def nested(rng: random.Random, layers: list[nn.Module]) -> nn.Sequential:
    """Put some neighbours into an `nn.Sequential` of their own."""
    if len(layers) < 4 or rng.random() < 0.4:
        return nn.Sequential(*layers)
    start = rng.randrange(len(layers) - 2)
    stop = rng.randint(start + 1, len(layers))
    return nn.Sequential(*layers[:start], nested(rng, layers[start:stop]), *layers[stop:])


def finished(rng: random.Random, growing: Growing, *, plain_end: bool) -> nn.Sequential:
    """Add a dropout that is on, the output layer, and perhaps something after it."""
    growing.add(nn.Dropout(0.3))
    growing.add(nn.Linear(growing.width, 3))
    if not plain_end and rng.random() < 0.3:
        growing.add(rng.choice([nn.Tanh, nn.ReLU, nn.Identity, lambda: nn.LogSoftmax(1), lambda: nn.Dropout(0.2)])())
    network = nested(rng, growing.layers)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1, 1)
                nn.init.normal_(module.bias)
    return network


def random_cnn(seed: int, shape: tuple[int, ...], *, plain_end: bool = False) -> nn.Sequential:
    rng, growing = random.Random(seed), Growing(shape)
    if rng.random() < 0.4:
        growing.add(rng.choice([random_dropout(rng), random_other(rng, growing.width), nn.ReLU(inplace=True)]))
    for _ in range(rng.randint(1, 3)):
        growing.add(random_convolution(rng, growing.width))
        if rng.random() < 0.5:
            growing.add(nn.BatchNorm2d(growing.width, affine=rng.random() < 0.7))
        relu, pool = nn.ReLU(inplace=rng.random() < 0.5), random_pool(rng)
        for layer in rng.choice([(relu, pool), (relu, pool), (pool, relu), (relu,), (pool,)]):
            growing.add(layer)
        if rng.random() < 0.4:
            growing.add(random_dropout(rng))
        if rng.random() < 0.3:
            growing.add(random_other(rng, growing.width))
    if rng.random() < 0.2:
        growing.add(nn.AdaptiveAvgPool2d(rng.choice([1, 2])))
    growing.add(nn.Flatten())
    for _ in range(rng.randint(0, 2)):
        add_hidden(rng, growing)
    return finished(rng, growing, plain_end=plain_end)


def random_mlp(seed: int, shape: tuple[int, ...], *, plain_end: bool = False) -> nn.Sequential:
    rng, growing = random.Random(seed), Growing(shape)
    if rng.random() < 0.4:
        growing.add(rng.choice([nn.Dropout(0.2), nn.BatchNorm1d(growing.width), nn.Sigmoid()]))
    for _ in range(rng.randint(0, 3)):
        add_hidden(rng, growing)
    return finished(rng, growing, plain_end=plain_end)


def random_shape(seed: int, *, pictures: bool) -> tuple[int, ...]:
    rng = random.Random(f"shape {seed}")
    num_examples = rng.choice([1, 2, 3, 5])
    if not pictures:
        return num_examples, rng.randint(1, 9)
    return num_examples, rng.choice([1, 3, 5]), rng.randint(5, 12), rng.randint(5, 12)


# Posteriors over them


def laplace(build: Callable[..., nn.Module], shape: tuple[int, ...], num_draws: int) -> Draws:
    x = randn(8, *shape[1:], seed=5, dtype=torch.float32)
    pairs = torch.utils.data.TensorDataset(x, torch.arange(8) % 3)
    network = seeded(lambda: build(plain_end=True), dtype=torch.float32).eval()
    posterior = Laplace(network).fit(torch.utils.data.DataLoader(pairs, batch_size=8))
    return posterior.sample(num_draws, seed=1).to(torch.float64)


def some_layers(network: nn.Module) -> list[str]:
    names = weighted_layers(network, "all")
    return names[len(names) // 2 :: 2] or names


def weights(method: Any, placement: Any, **options: Any) -> Callable[..., Draws]:
    def draws(build: Callable[..., nn.Module], shape: tuple[int, ...], num_draws: int) -> Draws:
        network = seeded(build)
        where = placement(network) if callable(placement) else placement
        return method(network, placement=where, **options).sample(num_draws, seed=1)

    return draws


POSTERIORS: dict[str, Callable[..., Draws]] = {
    "mc_dropout": lambda build, shape, count: MCDropout(seeded(build)).sample(count, seed=1),
    "mc_dropconnect last": weights(MCDropConnect, "last", p=0.3),
    "mc_dropconnect all": weights(MCDropConnect, "all", p=0.3),
    "mc_dropconnect some": weights(MCDropConnect, some_layers, p=0.3),
    "flipout last": weights(Flipout, "last", initial_std=0.3),
    "flipout all": weights(Flipout, "all", initial_std=0.3),
    "deep_ensemble": lambda build, shape, count: DeepEnsemble(clones(build, count)).sample(),
    "laplace": laplace,
}


def a_case(kind: str, posterior: str, seed: int) -> tuple[Draws, Tensor, Tensor]:
    shape = random_shape(seed, pictures=kind == "cnn")
    make = {"cnn": random_cnn, "mlp": random_mlp}[kind]
    draws = POSTERIORS[posterior](lambda **options: make(seed, shape, **options), shape, 1 + seed % 4)
    return draws, randn(*shape, seed=seed), torch.arange(shape[0]) % 3


def cut_to(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (engine, explaining):
        monkeypatch.setattr(module, "rows_per_pass", lambda *_: rows)


IGNORE_NO_RELU = pytest.mark.filterwarnings(f"ignore:{NO_RELU}")
SEEDS = range(1, 5)  # 2 to 5 draws


@IGNORE_NO_RELU
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_on_random_networks_explaining_equals_the_loop_over_draws(monkeypatch, kind, posterior, seed):
    draws, x, target = a_case(kind, posterior, seed + 10 * list(POSTERIORS).index(posterior))
    assert_equals_the_loop(draws, x, target)
    rows, chunk = (random.Random(seed).randint(1, most) for most in (9, 5))
    cut_to(monkeypatch, rows)  # steps, examples and draws are each cut in blocks, at other places
    for name in random.Random(seed).sample(list(EXPLAINERS), 3):
        explainer, options = EXPLAINERS[name]
        expected = looped(draws, explainer, x, target, **options)
        found = explain(draws, explainer, x, target, chunk=chunk, **options).values
        assert error(found, expected) < PROMISE, f"{name}, {chunk} examples and {rows} rows at a time"
        mean = explain(draws, explainer, x, target, keep="mean", chunk=chunk, **options).mean()
        assert error(mean, expected.mean(0)) < PROMISE, f"mean of {name}, {chunk} and {rows} at a time"
