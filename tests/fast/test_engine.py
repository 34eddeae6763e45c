"""However draws x examples x steps are evaluated, it is the plain loop over draws: on networks made at random."""

from __future__ import annotations

import random
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from core_networks import (
    EXACT,
    FunctionalDropout,
    FunctionalRelu,
    OneOutput,
    TwiceDropout,
    assert_fast,
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
    explain,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    load,
    smoothgrad,
    train_or_load,
)
from xuqlib.device import has_bfloat16
from xuqlib.fast import engine
from xuqlib.fast.chain import Chain
from xuqlib.fast.engine import Engine, computing_in
from xuqlib.fast.layers import Convolution, Flatten, NotAChain, Relu
from xuqlib.path import NO_RELU
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.posteriors.kinds import weighted_layers

explaining = sys.modules["xuqlib.explain"]  # the function of that name hides its module

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


def explained(draws: Any, explainer: Callable[..., Tensor], x: Tensor, target: Any = None, **options: Any) -> Any:
    """`explain`, which must take the fast path: else what is compared with the loop is that loop itself."""
    with assert_fast():
        return explain(draws, explainer, x, target, **options)


def assert_equals_the_loop(
    draws: Any, x: Tensor, target: Any = None, *, names: Any = EXPLAINERS, fast: bool = True
) -> None:
    """All attributions and their mean, by each explainer; on the fast path, or by the loop, as is known beforehand."""
    for name in names:
        explainer, options = EXPLAINERS[name]
        expected = looped(draws, explainer, x, target, **options)
        with assert_fast(fast):
            found = explain(draws, explainer, x, target, **options).values
            mean = explain(draws, explainer, x, target, keep="mean", **options).mean()
        assert error(found, expected) < PROMISE, name
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
        rng.choice([1, 3, (1, 3), 5] if padding == "same" else [1, 2, 3, (1, 3), (3, 2), 5]),
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


IGNORE_NO_RELU = pytest.mark.filterwarnings(f"ignore:{NO_RELU}", "ignore:guided_backprop guides ReLUs alone")
SEEDS = range(1, 4)  # 2 to 4 draws


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
        found = explained(draws, explainer, x, target, chunk=chunk, **options).values
        assert error(found, expected) < PROMISE, f"{name}, {chunk} examples and {rows} rows at a time"
        mean = explained(draws, explainer, x, target, keep="mean", chunk=chunk, **options).mean()
        assert error(mean, expected.mean(0)) < PROMISE, f"mean of {name}, {chunk} and {rows} at a time"


@IGNORE_NO_RELU
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("posterior", ["mc_dropout", "mc_dropconnect last", "deep_ensemble"])
def test_in_float32_the_maps_are_those_of_float64(posterior, seed):
    draws, x, target = a_case("cnn", posterior, 300 + seed)
    for name in ("gradient", "guided_backprop", "smoothgrad"):
        explainer, options = EXPLAINERS[name]
        expected = looped(draws.to(torch.float64), explainer, x, target, **options)
        found = explained(draws.to(torch.float32), explainer, x.float(), target, **options).values
        # Round-off of 2^-24 through ten layers; of these networks none has a kink so near that a ReLU flips.
        assert found.dtype == torch.float32
        assert (found - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize("name", EXPLAINERS)
def test_one_example_fills_less_than_a_pass_and_many_fill_several(monkeypatch, name):
    explainer, options = EXPLAINERS[name]
    draws = MCDropout(seeded(late_cnn)).sample(3, seed=1)
    for num_examples in (1, 11):
        x = randn(num_examples, 3, 8, 8)
        expected = looped(draws, explainer, x, 1, **options)
        for rows in (None, 1, 4):
            if rows:
                cut_to(monkeypatch, rows)
            assert error(explained(draws, explainer, x, 1, **options).values, expected) < PROMISE, rows
        monkeypatch.undo()


@pytest.mark.parametrize("num_draws", [1, 2, 7])
def test_draws_are_folded_into_rows_in_whatever_blocks_fit(monkeypatch, num_draws):
    draws, x = MCDropConnect(seeded(table_mlp), placement="all").sample(num_draws, seed=1), randn(2, 5)
    expected = looped(draws, gradient, x, 1)
    for rows in (1, 2, 4, 5, 100):  # 1, 1, 2, 2 and all draws at once
        cut_to(monkeypatch, rows)
        assert error(explained(draws, gradient, x, 1, chunk=2).values, expected) < PROMISE


@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("kind", ["cnn", "mlp"])
def test_on_random_networks_the_logits_equal_the_loop_over_draws(monkeypatch, kind, posterior, seed):
    draws, x, _ = a_case(kind, posterior, 1000 + seed + 10 * list(POSTERIORS).index(posterior))
    expected = torch.stack([draw(x) for draw in draws])
    for rows in (None, 3):
        if rows:
            cut_to(monkeypatch, rows)
        with assert_fast():
            found = Engine(draws, x[:1]).logits(x)
        assert error(found, expected) < PROMISE and not found.requires_grad


# Dropout that is off, and masks


@pytest.mark.parametrize("posterior", ["mc_dropconnect last", "flipout all", "deep_ensemble"])
def test_dropout_layers_are_off_in_draws_of_weights(posterior):
    # By hand: a Dropout in eval mode hands on what it is given, and does not divide by 1 - p.
    one = seeded(lambda: nn.Sequential(nn.Linear(2, 2, bias=False), nn.Dropout(0.5), nn.Linear(2, 2, bias=False)))
    found = explained(DeepEnsemble([one, one]).sample(), gradient, randn(1, 2), 0).values
    assert_close(found[0, 0], one[2].weight[0].detach() @ one[0].weight.detach(), **EXACT)
    draws = POSTERIORS[posterior](lambda **_: table_mlp(), (4, 5), 3)
    assert_equals_the_loop(draws, randn(4, 5), 1)


def test_draws_with_and_without_masks_may_be_mixed():
    network = seeded(table_mlp).eval()
    draws = Draws([FixedNetwork(network, 3), FixedNetwork(network, None), FixedNetwork(network, 4)])
    assert_equals_the_loop(draws, randn(4, 5), 1, fast=False)


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.Dropout1d, nn.Dropout3d])
def test_each_kind_of_dropout_and_each_of_its_calls_has_the_mask_of_the_fixed_network(kind):
    twice = kind(0.4)  # one module, two calls: two masks
    layers = [nn.Conv2d(3, 4, 3), kind(0.3), nn.ReLU(), twice, nn.Conv2d(4, 4, 1), twice, nn.Dropout(0.0), nn.Flatten()]
    flat = 4 * (5 if kind is nn.Dropout3d else 6) ** 2
    if kind in (nn.Dropout1d, nn.Dropout3d):  # which want other shapes than pictures
        shape = (4, 6) if kind is nn.Dropout1d else (1, 4, 3, 3)
        layers = [nn.Flatten(), nn.Linear(192, 24 if kind is nn.Dropout1d else 36), nn.Unflatten(1, shape), kind(0.3)]
        layers += [twice, nn.ReLU(), twice, nn.Flatten()]
        flat = 24 if kind is nn.Dropout1d else 36
    draws = MCDropout(seeded(lambda: nn.Sequential(*layers, nn.Linear(flat, 3)))).sample(3, seed=1)
    assert_equals_the_loop(draws, randn(2, 3, 8, 8), 1)


def test_a_rate_of_one_drops_everything():
    draws = MCDropout(seeded(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 4), nn.Dropout(1.0), nn.Linear(4, 3))))
    found = explained(draws.sample(3), gradient, randn(2, 5), 0).values
    assert torch.equal(found, torch.zeros(3, 2, 5, dtype=torch.float64))


def test_masks_that_change_with_every_row_are_left_to_the_loop():
    x = randn(1, 5).expand(6, 5)
    for masks, alike in (("fixed", True), ("resampled", False)):
        found = explain(MCDropout(seeded(table_mlp)).sample(1, masks=masks), gradient, x, 0).values[0]
        assert torch.allclose(found[0], found[1]) is alike


# Guided ReLUs


def test_a_guided_relu_sees_the_sum_of_the_slopes_of_windows_that_overlap():
    # By hand, in one dimension: windows (2, 1) and (1, 1) ... of a row 0 2 0, whose peak is in all of them.
    network = seeded(lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d((1, 2), 1), nn.Flatten(), nn.Linear(2, 1)))
    network[3].weight.data = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    x = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64).view(1, 1, 1, 3)
    found = explained(DeepEnsemble([network, network]).sample(), guided_backprop, x).values
    assert found[0].flatten().tolist() == [0, 2, 0]  # 3 - 1 is positive; 3 alone would be the sum of positive parts


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, 2), nn.MaxPool2d(2, 2, 1, 2)])
def test_a_relu_before_or_after_a_pooling_is_guided_as_it_stands(pool):
    def build(first: nn.Module, second: nn.Module) -> nn.Module:
        head = (nn.Conv2d(6, 4, 2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.LazyLinear(3))
        network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), first, second, *head)
        network(torch.zeros(1, 3, 8, 8))
        return network

    for layers in ((nn.ReLU(), pool), (pool, nn.ReLU())):
        draws = MCDropout(seeded(lambda layers=layers: build(*layers))).sample(2, seed=1)
        assert_equals_the_loop(draws, randn(2, 3, 8, 8), 1, names=["gradient", "guided_backprop"])


def no_relu_warnings(action: Callable[[], Any]) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    assert {str(warning.message) for warning in caught} <= {NO_RELU}
    return len(caught)


@pytest.mark.parametrize("keep", ["all", "moments", "mean"])
@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("kind", ["chain", "blocks", "loop"])
def test_guided_backprop_without_a_relu_warns_once_per_call_of_explain(keep, chunk, kind):
    def build(relu: Callable[[Tensor], Tensor]) -> nn.Module:
        if kind == "loop":
            return Named(relu=relu)
        inside = Residual(4, relu) if kind == "blocks" else nn.ReLU() if relu is F.relu else nn.Tanh()
        return nn.Sequential(nn.Linear(5, 4), inside, nn.Linear(4, 3))

    def warnings_of(relu: Callable[[Tensor], Tensor]) -> int:
        draws = MCDropConnect(seeded(lambda: build(relu)), placement="all").sample(3)
        return no_relu_warnings(lambda: explain(draws, guided_backprop, randn(5, 5), 0, keep=keep, chunk=chunk))

    assert (warnings_of(torch.tanh), warnings_of(F.relu)) == (1, 0)


@pytest.mark.parametrize("relu", [nn.ReLU, nn.ReLU6, lambda: nn.Hardtanh(0, 6)], ids=["ReLU", "ReLU6", "Hardtanh"])
def test_relus_of_every_kind_are_met_in_draws_that_are_folded(relu):
    build = lambda: nn.Sequential(nn.Linear(5, 8), relu(), nn.Linear(8, 3))  # noqa: E731
    draws = MCDropConnect(seeded(build), p=0.3, placement="all").sample(3, seed=1)
    for keep in ("all", "mean"):
        assert no_relu_warnings(lambda keep=keep: explained(draws, guided_backprop, randn(2, 5), 1, keep=keep)) == 0
    assert_equals_the_loop(draws, randn(2, 5), 1, names=["guided_backprop"])


# Networks that are no chain of known layers


class Residual(nn.Module):
    """A user's block: a skip connection around a dense layer, with its ReLU as a function unless one is given."""

    def __init__(self, width: int, relu: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.inside, self.relu = nn.Linear(width, width), relu

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relu(self.inside(x))


class Summed(nn.Module):
    """Gives the sum of its input, whose slope is one number seen many times."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)


class Named(nn.Module):
    """A network with an output layer by name; `given` makes what that layer is called with."""

    def __init__(
        self,
        output: nn.Module | None = None,
        given: Callable[[nn.Module, Tensor], Any] = lambda layer, h: layer(h),
        relu: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.body, self.output, self.given, self.relu = nn.Linear(5, 4), output or nn.Linear(4, 3), given, relu

    def forward(self, x: Tensor) -> Tensor:
        return self.given(self.output, self.relu(self.body(x)))


class WithScale(nn.Module):
    """An output layer that may be called with a number beside its input, or with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.line = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor | list[Tensor], scale: float = 1.0) -> Tensor:
        return self.line(torch.tanh(self.drop(scale * (x[0] if isinstance(x, list) else x))))


class ReadsItsOutputLayer(nn.Module):
    """Uses the weight of its output layer also before it."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.relu(F.linear(x, self.output.weight)))


class Scaled(nn.Module):
    """Scales its input by a plain number."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.body = scale, nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.scale * x)


class Hidden(nn.Module):
    """Holds a layer where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.output, self.layers = nn.Linear(4, 3), [nn.Linear(5, 4, dtype=torch.float64).requires_grad_(False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.output(torch.tanh(self.layers[0](x)))


def residual_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), Residual(6), nn.Dropout(0.3), Residual(6), nn.Linear(6, 3))


def sums() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), Summed())


OF_USERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "functional relu": (FunctionalRelu, (4, 5)),
    "functional dropout": (FunctionalDropout, (4, 5)),
    "a dropout called twice": (TwiceDropout, (4, 5)),
    "residual blocks": (residual_mlp, (4, 5)),
    "a sum at the end": (sums, (4, 5)),
    "a dense layer on pictures": (
        lambda: nn.Sequential(
            *(nn.Linear(8, 6), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3))
        ),
        (2, 3, 8, 8),
    ),
    "a dense layer on pictures, behind dropout": (
        lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)),
        (2, 3, 8, 8),
    ),
    "batch norm behind an unusual convolution": (
        lambda: nn.Sequential(
            *(nn.Dropout(0.2), nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten()),
            nn.Linear(256, 3),
        ),
        (2, 3, 8, 8),
    ),
    "dropout first": (lambda: nn.Sequential(nn.Dropout(0.4), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), (4, 5)),
    "dropout last": (lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.4)), (4, 5)),
    "dropout and softmax": (lambda: nn.Sequential(nn.Dropout(0.4), nn.Linear(5, 3), nn.Softmax(1)), (4, 5)),
    "no dense layer": (
        lambda: nn.Sequential(nn.Dropout2d(0.4), nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        (2, 3, 8, 8),
    ),
    "an output layer called with a number too": (
        lambda: Named(WithScale(), lambda layer, h: layer(h, scale=3.0)),
        (4, 5),
    ),
    "an output layer called with a list": (lambda: Named(WithScale(), lambda layer, h: layer([h])), (4, 5)),
    "the weight of the output layer used before it": (ReadsItsOutputLayer, (4, 5)),
}


WITHOUT_DROPOUT = ("functional relu", "a sum at the end", "the weight of the output layer used before it")
USERS_CASES = [
    (name, posterior)
    for name in OF_USERS
    for posterior in ("mc_dropout", "mc_dropconnect last", "flipout all", "deep_ensemble")
    if posterior != "mc_dropout" or name not in WITHOUT_DROPOUT
]

LOOPED = {  # each member has a function of its own, which vmap cannot put side by side
    ("an output layer called with a number too", "deep_ensemble"),
    ("an output layer called with a list", "deep_ensemble"),
}


@IGNORE_NO_RELU
@pytest.mark.parametrize(("name", "posterior"), USERS_CASES)
def test_networks_of_users_are_explained_as_by_the_loop(name, posterior):
    build, shape = OF_USERS[name]
    draws = POSTERIORS[posterior](lambda **_: build(), shape, 3)
    target = None if name == "a sum at the end" else 1
    names = ["gradient", "guided_backprop", "integrated_gradients"]
    assert_equals_the_loop(draws, randn(*shape), target, names=names, fast=(name, posterior) not in LOOPED)


class TinyVit(nn.Module):
    """torchvision's vision transformer, for pictures of 8 x 8, whose dropout layers are off."""

    def __new__(cls) -> nn.Module:  # type: ignore[misc]
        from torchvision.models import VisionTransformer

        sizes = {"image_size": 8, "patch_size": 4, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
        vit = VisionTransformer(**sizes, num_classes=3)
        nn.init.normal_(vit.heads.head.weight)  # torchvision starts it at 0
        return vit


@IGNORE_NO_RELU
@pytest.mark.parametrize("build", [torchvision_resnet, TinyVit], ids=["resnet18", "vision transformer"])
def test_what_draws_of_the_output_layer_of_a_torchvision_network_share_is_run_once(monkeypatch, build):
    network, x = seeded(build), randn(4, 3, 8, 8)
    last = MCDropConnect(network, p=0.3).sample(4, seed=1)
    engine, path, target = Engine(last, x), gradient.declared.path(x), torch.ones(4).long()
    num_convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    with monkeypatch.context() as patch:
        calls = count_backward(patch, nn.Conv2d, "forward")
        found = torch.stack(list(engine.attributions(path, target)))
    assert engine.how == "vmap" and len(calls) == num_convolutions, "one pass for 4 draws"
    assert error(found, looped(last, gradient, x, 1)) < PROMISE
    mean = explained(last, integrated_gradients, x, 1, keep="mean", num_steps=2).mean()
    assert error(mean, looped(last, integrated_gradients, x, 1, num_steps=2).mean(0)) < PROMISE


@IGNORE_NO_RELU
@pytest.mark.parametrize("build", [torchvision_resnet, TinyVit], ids=["resnet18", "vision transformer"])
def test_draws_of_all_layers_of_a_torchvision_network_are_looped_over(build):
    draws, x = MCDropConnect(seeded(build), placement="all").sample(2, seed=1), randn(2, 3, 8, 8)
    assert_equals_the_loop(draws, x, 1, names=["guided_backprop"], fast=False)


def test_what_draws_of_the_output_layer_share_is_run_once_behind_blocks_of_a_user_too(monkeypatch):
    network, x = seeded(residual_mlp), randn(3, 5)
    draws = MCDropConnect(network, p=0.3).sample(4, seed=1)
    engine = Engine(draws, x)
    calls = count_backward(monkeypatch, type(network[2]), "forward")
    found = torch.stack(list(engine.attributions(gradient.declared.path(x), torch.ones(3).long())))
    blocks = sum(type(module) is type(network[2]) for module in network.modules())
    assert engine.how == "vmap" and len(calls) == blocks, "one pass for 4 draws"
    assert error(found, looped(draws, gradient, x, 1)) < PROMISE


@pytest.mark.parametrize("posterior", ["mc_dropout", "mc_dropconnect last", "mc_dropconnect all", "deep_ensemble"])
@pytest.mark.parametrize("where", [0, 1, 2, -1, None])
@pytest.mark.parametrize("kind", ["forward", "input", "backward"])
def test_hooks_of_the_user_are_obeyed(posterior, where, kind):
    def build(**_: Any) -> nn.Module:
        network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))
        hook(network if where is None else network[where], kind)
        return network

    draws = POSTERIORS[posterior](build, (4, 5), 3)
    # Torch's own layers may have one, if all draws share it; a layer that is drawn or drops is then a user's.
    shared = {"mc_dropout": (0, 1, -1), "mc_dropconnect last": (0, 1), "mc_dropconnect all": (1,)}
    fast = where in shared.get(posterior, ())
    assert_equals_the_loop(draws, randn(4, 5), 1, names=["gradient", "guided_backprop"], fast=fast)


def hook(module: nn.Module, kind: str) -> None:
    if kind == "forward":
        module.register_forward_hook(lambda _, __, output: 2 * output)
    elif kind == "input":
        module.register_forward_pre_hook(lambda _, inputs: (torch.tanh(3 * inputs[0]),))
    else:
        module.register_full_backward_hook(lambda _, given, __: (5 * given[0],))


@pytest.mark.parametrize("kind", ["forward", "input", "backward"])
@pytest.mark.parametrize("name", ["", "first", "last"])
def test_hooks_in_a_network_of_the_user_are_obeyed_once(kind, name):
    network = seeded(FunctionalRelu)
    hook(network.get_submodule(name), kind)
    draws, x = MCDropConnect(network, p=0.3).sample(3, seed=1), randn(4, 5)
    assert_equals_the_loop(draws, x, 1, names=["gradient", "integrated_gradients"], fast=False)
    assert_close(draws(x), torch.stack([draw(x) for draw in draws]), **EXACT)


def test_a_hook_on_one_draw_or_one_member_is_obeyed():
    def twice(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return 2 * output

    x, build = randn(4, 5), (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)))
    members = clones(build, 2)
    members[1][0].register_forward_hook(twice)
    hooked = MCDropout(seeded(table_mlp)).sample(3)
    hooked[1].register_forward_hook(twice)
    for draws in (DeepEnsemble(members).sample(), hooked):
        assert_equals_the_loop(draws, x, 1, names=["gradient"], fast=False)
        assert_close(draws(x), torch.stack([draw(x) for draw in draws]), **EXACT)


# Draws of several kinds


def mlp_of(activation: type[nn.Module] = nn.ReLU, width: int = 8, *, bias: bool = True, p: float = 0.3) -> nn.Module:
    layers = (nn.Dropout(p), nn.Linear(5, width, bias=bias), activation(), nn.Linear(width, 3))
    return nn.Sequential(nn.Flatten(), *layers)


DIFFERENT: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "activations": (mlp_of, lambda: mlp_of(nn.Tanh)),
    "widths": (mlp_of, lambda: mlp_of(width=9)),
    "with bias and without": (mlp_of, lambda: mlp_of(bias=False)),
    "without bias and with": (lambda: mlp_of(bias=False), mlp_of),
    "first layers": (
        lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.Tanh(), nn.Linear(5, 3)),
    ),
    "slopes of a layer": (
        lambda: nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(5, 3)),
        lambda: nn.Sequential(nn.LeakyReLU(0.7), nn.Linear(5, 3)),
    ),
    "lengths": (mlp_of, lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 3))),
    "a sequential and a network of the user": (mlp_of, FunctionalRelu),
    "numbers in a network of the user": (lambda: Scaled(1.0), lambda: Scaled(3.0)),
    "layers that torch does not see": (Hidden, Hidden),
    "a sequential in a sequential": (mlp_of, lambda: nn.Sequential(nn.Identity(), mlp_of())),
}


@IGNORE_NO_RELU
@pytest.mark.parametrize("name", DIFFERENT)
def test_members_of_different_architectures_are_each_explained_as_they_are(name):
    members = [seeded(build, seed=seed).eval() for seed, build in enumerate(DIFFERENT[name])]
    x = randn(4, 5)
    for networks in (members, members[::-1]):
        draws = DeepEnsemble(networks).sample()
        names = ["gradient", "guided_backprop", "integrated_gradients"]
        assert_equals_the_loop(draws, x, 1, names=names, fast=False)
        assert_close(draws(x), torch.stack([draw(x) for draw in draws]), **EXACT)


def test_draws_whose_dropout_has_another_rate_keep_it():
    few, many = (seeded(lambda p=p: mlp_of(p=p)).eval() for p in (0.1, 0.6))
    draws = Draws([FixedNetwork(few, 1), FixedNetwork(many, 1), FixedNetwork(few, 2)])
    assert_equals_the_loop(draws, randn(4, 5), 1, names=["gradient"], fast=False)


def test_the_same_network_may_be_several_draws():
    network = seeded(late_cnn).eval()
    fixed, masked = Draws([FixedNetwork(network)] * 3), Draws([FixedNetwork(network, 1)] * 2)
    for draws, fast in ((fixed, True), (masked, True), (Draws([network] * 2), False)):
        assert_equals_the_loop(draws, randn(2, 3, 8, 8), 1, names=["gradient", "guided_backprop"], fast=fast)


def test_a_network_without_layers_is_the_identity():
    found = explain(DeepEnsemble([nn.Sequential()]).sample(), gradient, randn(2, 5), 3).values
    assert torch.equal(found[0, :, 3], torch.ones(2, dtype=torch.float64)) and found.sum() == 2


@pytest.mark.parametrize(
    "build",
    [
        OneOutput,
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 1)),
        lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 1), nn.Flatten(0)),
    ],
    ids=["flat, of a user", "column", "flat"],
)
@pytest.mark.parametrize("posterior", ["mc_dropout", "mc_dropconnect all", "deep_ensemble"])
@IGNORE_NO_RELU
def test_a_regression_is_explained_with_one_output_per_example(build, posterior):
    draws = POSTERIORS[posterior](lambda **_: build(), (4, 5), 3)
    assert_equals_the_loop(draws, randn(4, 5))


# Options of explainers


def test_a_baseline_for_every_example_is_cut_with_the_examples(monkeypatch):
    draws, x, start = MCDropout(seeded(late_cnn)).sample(2), randn(5, 3, 8, 8), randn(5, 3, 8, 8, seed=7)
    options = {"baseline": start, "num_steps": 3}
    expected = looped(draws, integrated_gradients, x, 1, **options)
    for chunk in (None, 2):
        found = explained(draws, integrated_gradients, x, 1, chunk=chunk, **options).values
        assert error(found, expected) < PROMISE


# The mean


def count_backward(monkeypatch: pytest.MonkeyPatch, step: type, name: str = "backward") -> list[int]:
    whole, calls = getattr(step, name), list[int]()

    def counted(self: Any, *args: Any) -> Any:
        calls.append(1)
        return whole(self, *args)

    monkeypatch.setattr(step, name, counted)
    return calls


def two_convolutions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 9), nn.ReLU()),
        *(nn.Dropout(0.4), nn.Linear(9, 3)),
    )


LAST: dict[str, Callable[[int], Draws]] = {
    "mc_dropout": lambda count: MCDropout(seeded(two_convolutions)).sample(count, seed=1),
    "mc_dropconnect": lambda count: MCDropConnect(seeded(two_convolutions), p=0.3).sample(count, seed=1),
    "flipout": lambda count: Flipout(seeded(two_convolutions)).sample(count, seed=1),
    "laplace": lambda count: laplace(lambda **_: two_convolutions(), (2, 3, 8, 8), count),
}


@pytest.mark.parametrize("posterior", LAST)
def test_the_mean_over_last_layer_draws_is_one_way_back_however_many_there_are(monkeypatch, posterior):
    x = randn(4, 3, 8, 8)
    for num_draws in (1, 8):
        draws = LAST[posterior](num_draws)
        for name in LINEAR:
            explainer, options = EXPLAINERS[name]
            expected = looped(draws, explainer, x, 1, **options).mean(0)
            with monkeypatch.context() as patch:
                calls = count_backward(patch, Convolution)
                found = explained(draws, explainer, x, 1, keep="mean", **options).mean()
            assert len(calls) == 2, f"two convolutions of {name}, {num_draws} draws"
            assert error(found, expected) < PROMISE, name


def test_the_mean_of_guided_maps_takes_one_way_back_for_each_draw(monkeypatch):
    # The guided rule is not linear in the slope behind it, so the mean slope does not give the mean map.
    draws, x = MCDropout(seeded(two_convolutions)).sample(8, seed=1), randn(4, 3, 8, 8)
    expected = looped(draws, guided_backprop, x, 1).mean(0)
    cut_to(monkeypatch, 4)  # one draw at a time
    calls = count_backward(monkeypatch, Convolution)
    assert error(explained(draws, guided_backprop, x, 1, keep="mean", chunk=4).mean(), expected) < PROMISE
    assert len(calls) == 2 * 8


def test_a_distribution_of_which_only_the_mean_was_kept_says_so():
    e = explained(MCDropout(seeded(late_cnn)).sample(3), gradient, randn(2, 3, 8, 8), 1, keep="mean")
    assert e.num_draws == 3 and e.mean().shape == (2, 3, 8, 8) and e.mean().dtype == torch.float64
    for statistic in (e.std, e.snr, e.cv, lambda: e.cv("signed"), lambda: e.cv("ratio"), e.standard_error):
        with pytest.raises(ValueError, match="only the mean over draws was kept; explain with keep="):
            statistic()


def test_the_mean_of_an_explainer_of_the_user_is_that_of_the_loop():
    def doubled(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return 2 * gradient(network, x, target)

    draws, x = MCDropout(seeded(table_mlp)).sample(3), randn(4, 5)
    found = explain(draws, doubled, x, 1, keep="mean", chunk=3).mean()
    assert error(found, looped(draws, doubled, x, 1).mean(0)) < PROMISE


@pytest.mark.parametrize("posterior", LAST)
def test_what_last_layer_draws_share_is_run_forward_once(monkeypatch, posterior):
    calls = {}
    for num_draws in (1, 8):
        draws, x = LAST[posterior](num_draws), randn(2, 3, 8, 8)
        with monkeypatch.context() as patch:
            counted = count_backward(patch, Convolution, "forward")
            explained(draws, integrated_gradients, x, 1, num_steps=3)
        calls[num_draws] = len(counted)
    assert calls == {1: 4, 8: 4}, "two convolutions, and a look at an example; whatever the number of draws"


# Out of memory


class SmallMemory:
    """Refuses passes through a chain's trunk of more rows than fit, together with those that are still held."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.held: list[weakref.ref[Any]] = []
        self.most, whole = 0, Chain.forward

        def forward(chain: Chain, points: Tensor) -> Any:
            rows = len(points) + sum(len(passed.h) for ref in self.held if (passed := ref()) is not None)
            if rows > room:
                raise torch.OutOfMemoryError(f"{rows} rows")
            self.most = max(self.most, rows)
            passed = whole(chain, points)
            self.held.append(weakref.ref(passed))
            return passed

        monkeypatch.setattr(Chain, "forward", forward)


def halvings(caught: Any) -> list[str]:
    return [str(warning.message) for warning in caught if "memory" in str(warning.message)]


@pytest.mark.parametrize("room", [2, 3, 5])
@pytest.mark.parametrize("keep", ["all", "moments", "mean"])
@pytest.mark.parametrize("name", ["gradient", "guided_backprop", "integrated_gradients"])
def test_out_of_memory_halves_the_pass_and_goes_on(monkeypatch, name, keep, room):
    explainer, options = EXPLAINERS[name]
    draws, x = MCDropout(seeded(late_cnn)).sample(3, seed=1), randn(6, 3, 8, 8)
    expected = looped(draws, explainer, x, 1, **options)
    memory = SmallMemory(monkeypatch, room)
    with pytest.warns(UserWarning, match="out of memory; going on with .* rows in one pass"):
        e = explained(draws, explainer, x, 1, keep=keep, **options)
    assert memory.most <= room
    assert e.num_draws == 3 and error(e.mean(), expected.mean(0)) < PROMISE
    if keep == "all":
        assert error(e.values, expected) < PROMISE, "each draw once, in order"
    if keep == "moments":
        assert error(e.std(), expected.std(0, correction=0)) < 1e-7  # a difference of squares


def test_out_of_memory_is_said_once(monkeypatch):
    draws, x = MCDropout(seeded(late_cnn)).sample(3, seed=1), randn(8, 3, 8, 8)
    SmallMemory(monkeypatch, 2)
    with pytest.warns(UserWarning, match="memory") as caught:
        explained(draws, gradient, x, 1, chunk=4)
    assert len(halvings(caught)) == 1


def test_memory_that_runs_out_between_draws_loses_none_and_repeats_none(monkeypatch):
    draws, x = MCDropConnect(seeded(late_cnn), p=0.3).sample(6, seed=1), randn(2, 3, 8, 8)
    expected, whole, asked = looped(draws, gradient, x, 1), Chain.slopes, list[range]()

    def slopes(chain: Chain, passed: Any, draws: range) -> Tensor:
        asked.append(draws)
        if len(asked) == 2:
            raise torch.OutOfMemoryError("the second block of draws")
        return whole(chain, passed, draws)

    monkeypatch.setattr(Chain, "slopes", slopes)
    cut_to(monkeypatch, 4)
    with pytest.warns(UserWarning, match="2 rows"):
        found = explained(draws, gradient, x, 1, chunk=2).values
    assert [list(some) for some in asked] == [[0, 1], [2, 3], [2], [3], [4], [5]]
    assert error(found, expected) < PROMISE


@pytest.mark.parametrize("keep", ["all", "mean"])
def test_one_row_that_does_not_fit_is_an_error(monkeypatch, keep):
    SmallMemory(monkeypatch, 0)
    with (
        pytest.warns(UserWarning, match="out of memory"),
        pytest.raises(torch.OutOfMemoryError, match="one example at one step of its path does not fit"),
    ):
        explained(MCDropout(seeded(late_cnn)).sample(2), gradient, randn(2, 3, 8, 8), 1, keep=keep)


class Narrow(nn.Module):
    """Has room for few rows at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.first, self.last = room, nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"{len(x)} rows")
        return self.last(torch.relu(self.first(x)))


@pytest.mark.parametrize("name", EXPLAINERS)
def test_out_of_memory_in_the_loop_over_draws_halves_the_pass_too(name):
    explainer, options = EXPLAINERS[name]
    draws, x = MCDropConnect(seeded(lambda: Narrow(999)), placement="all").sample(3, seed=1), randn(4, 5)
    expected = looped(draws, explainer, x, 1, **options)
    for draw in draws:
        draw.network.room = 3
    for keep in ("all", "mean"):
        with pytest.warns(UserWarning, match="out of memory"):
            e = explain(draws, explainer, x, 1, keep=keep, **options)
        assert error(e.mean(), expected.mean(0)) < PROMISE
        assert e.values is None or error(e.values, expected) < PROMISE


# Precision


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def tf32_is_on() -> list[bool]:
    return [backend.fp32_precision == "tf32" for backend in (MATMUL, CUDNN.conv)]


@pytest.fixture(params=[True, False])
def tf32_before(request: pytest.FixtureRequest) -> Iterator[bool]:
    at_first = MATMUL.allow_tf32, CUDNN.allow_tf32
    MATMUL.allow_tf32 = CUDNN.allow_tf32 = request.param
    yield request.param
    assert (MATMUL.allow_tf32, CUDNN.allow_tf32) == (request.param, request.param), "the user's choice was changed"
    MATMUL.allow_tf32, CUDNN.allow_tf32 = at_first


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_tf32_is_on_only_where_it_is_asked_for_and_is_put_back_even_after_an_error(precision, tf32_before):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117 - the block is what is tested
        with computing_in(precision, torch.device("cpu")):
            assert tf32_is_on() == [precision == "tf32"] * 2
            assert torch.is_autocast_enabled("cpu") is (precision == "bfloat16")
            raise ZeroDivisionError
    assert tf32_is_on() == [tf32_before] * 2
    assert not torch.is_autocast_enabled("cpu")


def test_tf32_is_off_while_draws_are_explained(tf32_before):
    seen: list[list[bool]] = []
    network = seeded(lambda: Named(given=lambda layer, h: seen.append(tf32_is_on()) or layer(h)))
    draws = DeepEnsemble([network]).sample()
    for precision in ("float32", "tf32"):
        explain(draws, gradient, randn(2, 5), 1, precision=precision)
        assert seen[-1] == [precision == "tf32"] * 2
    assert tf32_is_on() == [tf32_before] * 2


def test_a_choice_of_tf32_by_torchs_newer_names_is_no_obstacle_and_is_put_back():
    at_first = MATMUL.fp32_precision
    MATMUL.fp32_precision = "tf32"
    try:
        assert explained(DeepEnsemble([seeded(table_mlp)]).sample(), gradient, randn(2, 5), 1).num_draws == 1
        assert MATMUL.fp32_precision == "tf32"
    finally:
        MATMUL.fp32_precision = at_first


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="unknown precision 'float16'; known: float32, tf32, bfloat16"):
        explained(MCDropout(seeded(table_mlp)).sample(1), gradient, randn(2, 5), 1, precision="float16")


@pytest.mark.parametrize("has_it", [True, False])
def test_who_asks_for_bfloat16_on_a_cpu_without_it_hears_that_it_is_slow(monkeypatch, has_it):
    monkeypatch.setattr(explaining, "has_bfloat16", lambda where: has_it)
    draws, heard = MCDropout(seeded(table_mlp)).sample(1), "no arithmetic for bfloat16"
    with pytest.warns(UserWarning, match=heard) if not has_it else nullcontext():
        explain(draws, gradient, randn(2, 5), 1, precision="bfloat16")
    explain(draws, gradient, randn(2, 5), 1)


def test_a_gpu_has_bfloat16_and_a_cpu_if_onednn_says_so(monkeypatch):
    assert has_bfloat16(torch.device("cuda"))
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_is_mkldnn_bf16_supported=lambda: True))
    assert has_bfloat16(torch.device("cpu"))
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not has_bfloat16(torch.device("cpu"))


# Bounds on the relative L2 error of the mean and the std map of 8 draws of the published network. Measured: 16 and 12,
# 7 and 7, 15 and 12 percent. Where inputs of a max pooling round to the same number, the slope goes to another pixel.
BFLOAT16 = {"gradient": (0.32, 0.23), "guided_backprop": (0.15, 0.15), "integrated_gradients": (0.31, 0.24)}


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_rounds_the_maps_of_a_trained_network_a_little(name):
    explainer, options = EXPLAINERS[name]
    options = {"num_steps": 8} if options else {}
    posterior = train_or_load("mc_dropout", "planted", progress=False)
    x, draws = load("planted").x[:8], posterior.sample(8, seed=1)
    full = explained(draws, explainer, x, **options)
    rounded = explained(draws, explainer, x, full.target, precision="bfloat16", **options)
    assert rounded.values.dtype == torch.float32
    for statistic, bound in zip(("mean", "std"), BFLOAT16[name], strict=True):
        found, expected = getattr(rounded, statistic)(), getattr(full, statistic)()
        assert 1e-4 < (found - expected).norm() / expected.norm() < bound, statistic


@pytest.mark.parametrize("keep", ["all", "mean"])
@pytest.mark.parametrize("build", [late_cnn, lambda: random_cnn(8, (2, 3, 8, 8)), torchvision_resnet])
def test_bfloat16_gives_float32_maps_of_networks_of_every_kind(build, keep):
    draws = MCDropConnect(seeded(build, dtype=torch.float32), p=0.3).sample(2, seed=1)
    x = randn(2, 3, 8, 8, dtype=torch.float32)
    # Autocast is not known to vmap where weights are each draw's own.
    run = explain if build is torchvision_resnet else explained
    full, rounded = (run(draws, gradient, x, 1, keep=keep, precision=p) for p in ("float32", "bfloat16"))
    # 8 bits of mantissa, and ReLUs near their kink flip: these networks are not trained.
    assert 0 < (rounded.mean() - full.mean()).norm() < 0.5 * full.mean().norm()
    if keep == "all":
        assert rounded.values.dtype == torch.float32


# Errors


def failing(*_: Any) -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("keep", ["all", "moments", "mean"])
@pytest.mark.parametrize("kind", [Convolution, Relu, Flatten])
def test_a_layer_that_fails_is_not_hidden_by_the_loop(monkeypatch, kind, keep):
    draws, x = MCDropout(seeded(two_convolutions)).sample(3, seed=1), randn(2, 3, 8, 8)
    monkeypatch.setattr(kind, "backward", failing)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        explain(draws, gradient, x, 1, keep=keep)


@pytest.mark.parametrize("error", [RuntimeError, NotAChain, ValueError])
def test_a_failure_of_any_kind_is_raised_and_the_engine_stays_fast(monkeypatch, error):
    def stop(*_: Any) -> None:
        raise error("a bug")

    draws, x = MCDropout(seeded(two_convolutions)).sample(3, seed=1), randn(2, 3, 8, 8)
    found = Engine(draws, x)
    with monkeypatch.context() as patch:
        patch.setattr(Convolution, "forward", stop)
        for call in (
            lambda: next(found.attributions(gradient.declared.path(x), torch.ones(2, dtype=torch.long))),
            lambda: found.mean(gradient.declared.path(x), torch.ones(2, dtype=torch.long)),
            lambda: found.logits(x),
        ):
            with pytest.raises(error, match="a bug"):
                call()
    assert found.is_fast
    assert error_of_logits(found, draws, x) < PROMISE


def error_of_logits(found: Engine, draws: Draws, x: Tensor) -> float:
    return error(found.logits(x), torch.stack([draw(x) for draw in draws]))


def test_a_failure_while_an_engine_is_built_is_raised_unless_it_says_that_there_is_no_chain(monkeypatch):
    draws, x = MCDropout(seeded(two_convolutions)).sample(2, seed=1), randn(2, 3, 8, 8)
    for name in ("__init__", "forward"):
        with monkeypatch.context() as patch:
            patch.setattr(Convolution, name, failing)
            with pytest.raises(ZeroDivisionError, match="a bug"):
                Engine(draws, x)

    def not_a_chain(*_: Any) -> None:
        raise NotAChain("of another kind")

    monkeypatch.setattr(Convolution, "forward", not_a_chain)
    assert Engine(draws, x).how == "vmap"


def test_whether_draws_are_a_chain_is_known_before_they_are_evaluated():
    for name, (build, shape) in OF_USERS.items():
        if name.startswith("a dense layer on pictures"):
            assert Engine(MCDropout(seeded(build)).sample(2), randn(*shape)).how == "vmap", name


def test_x_that_does_not_fit_the_network_is_said_by_the_network():
    draws, good, bad = MCDropout(seeded(table_mlp)).sample(2), randn(3, 5), randn(3, 4)
    message, target = r"the network cannot evaluate x of shape \(3, 4\)", torch.ones(3, dtype=torch.long)
    found = Engine(draws, bad)
    assert Engine(draws, good).is_fast and not found.is_fast
    for call in (
        lambda: next(found.attributions(gradient.declared.path(bad), target)),
        lambda: found.mean(gradient.declared.path(bad), target),
        lambda: found.logits(bad),
    ):
        with pytest.raises(ValueError, match=message):
            call()


class Picky(nn.Module):
    """A block of a user that refuses some numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if (x > 9).any():
            raise LookupError("more than 9")
        return x


@pytest.mark.parametrize("keep", ["all", "mean"])
def test_what_a_block_of_a_user_raises_is_what_is_raised(keep):
    draws = MCDropConnect(seeded(lambda: nn.Sequential(Picky(), nn.Linear(5, 3))), p=0.3).sample(2, seed=1)
    assert_equals_the_loop(draws, randn(2, 5), 1, names=["gradient"])
    with pytest.raises(LookupError, match="more than 9"):
        explain(draws, gradient, torch.cat([randn(2, 5), torch.full((1, 5), 10.0).double()]), 1, keep=keep)


class Squeeze(nn.Module):
    """Drops all axes of one entry: that of the examples too, where there is one example."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze()


@pytest.mark.parametrize("num_outputs", [3, 1])
def test_networks_for_which_one_example_has_another_shape_are_explained_as_by_the_loop(num_outputs):
    def build() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), Squeeze(), nn.Linear(3, num_outputs))

    draws = MCDropConnect(seeded(build), p=0.3).sample(2, seed=1)
    target = None if num_outputs == 1 else 1
    assert_equals_the_loop(draws, randn(4, 3, 2, 2), target, names=["gradient"], fast=num_outputs == 1)
    if num_outputs == 1:  # a single number is a regression's answer to one example
        assert_equals_the_loop(draws, randn(1, 3, 2, 2), names=["gradient"])
    else:
        with pytest.raises(ValueError, match=r"network returned shape \(3,\) for 1 examples"):
            explain(draws, gradient, randn(1, 3, 2, 2), 1)


class Threshold(nn.Module):
    """A layer that autograd does not see through."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)


def test_a_layer_without_a_slope_has_logits_and_no_gradient():
    build = lambda: nn.Sequential(nn.Linear(5, 6), Threshold(), nn.Dropout(0.3), nn.Linear(6, 3))  # noqa: E731
    draws, x = MCDropout(seeded(build)).sample(3, seed=1), randn(2, 5)
    assert error_of_logits(Engine(draws, x), draws, x) < PROMISE
    with pytest.raises(ValueError, match="does not depend on x as far as autograd can see"):
        explain(draws, gradient, x, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("build", [table_mlp, residual_mlp], ids=["chain", "blocks"])
def test_logits_are_evaluated_where_gradients_are_off(build, mode):
    draws = MCDropConnect(seeded(build), p=0.3).sample(3, seed=1)
    with mode(), assert_fast():
        assert error_of_logits(Engine(draws, randn(2, 5)), draws, randn(2, 5)) < PROMISE


# Nothing is left behind


@pytest.mark.parametrize("keep", ["all", "moments", "mean"])
@pytest.mark.parametrize("build", [late_cnn, residual_mlp, FunctionalRelu], ids=["chain", "blocks", "loop"])
@IGNORE_NO_RELU
def test_explaining_leaves_networks_and_examples_as_they_were(build, keep):
    x = randn(3, *((3, 8, 8) if build is late_cnn else (5,)))
    network = seeded(build)
    network.train()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    next(network.parameters()).requires_grad_(False)
    posterior = MCDropConnect(network, p=0.3)
    draws = posterior.sample(2, seed=1)
    given = DeepEnsemble([network]).network
    before, before_draws, before_x = snapshot(network), [snapshot(draw) for draw in draws], x.clone()
    for name in ("gradient", "guided_backprop", "integrated_gradients"):
        explainer, options = EXPLAINERS[name]
        found = explained(draws, explainer, x, 1, keep=keep, **options)
        assert not found.mean().requires_grad and (found.values is None or not found.values.requires_grad)
    assert given is network
    assert_same(before, snapshot(network))
    for one, draw in zip(before_draws, draws, strict=True):
        assert_same(one, snapshot(draw))
    assert torch.equal(x, before_x) and x.grad is None


def test_networks_of_the_user_in_a_list_stay_as_they_are():
    networks, x = [seeded(table_mlp, seed=seed).eval() for seed in range(2)], randn(3, 5).requires_grad_()
    before = [snapshot(network) for network in networks]
    found = explain(networks, guided_backprop, x, 1)
    for one, network in zip(before, networks, strict=True):
        assert_same(one, snapshot(network))
    assert x.requires_grad and x.grad is None and not found.values.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("keep", ["all", "mean"])
@pytest.mark.parametrize("build", [late_cnn, residual_mlp, FunctionalRelu], ids=["chain", "blocks", "loop"])
@IGNORE_NO_RELU
def test_explaining_works_where_gradients_are_off(build, keep, mode):
    draws = MCDropConnect(seeded(build), p=0.3).sample(3, seed=1)
    shape = (3, 3, 8, 8) if build is late_cnn else (3, 5)
    x = randn(*shape)
    for name in ("gradient", "guided_backprop", "integrated_gradients"):
        explainer, options = EXPLAINERS[name]
        expected = looped(draws, explainer, x, 1, **options)
        with mode():
            found = explained(draws, explainer, randn(*shape), 1, keep=keep, **options)
        assert error(found.mean(), expected.mean(0)) < PROMISE, name


@pytest.mark.parametrize("posterior", ["mc_dropout", "mc_dropconnect last", "flipout all", "deep_ensemble"])
def test_draws_that_were_made_where_gradients_are_off_can_be_explained(posterior):
    with torch.inference_mode():
        draws = POSTERIORS[posterior](lambda **_: table_mlp(), (4, 5), 2)
    assert_equals_the_loop(draws, randn(4, 5), 1, names=["gradient"])


def test_a_long_network_is_no_deep_recursion():
    def build() -> nn.Module:
        layers = [layer for _ in range(600) for layer in (nn.Linear(2, 2), nn.Tanh())]
        return nn.Sequential(nn.Linear(5, 2), *layers, nn.Dropout(0.3), nn.Linear(2, 3))

    draws = MCDropout(seeded(build)).sample(2, seed=1)
    assert_equals_the_loop(draws, randn(2, 5), 1, names=["gradient"])


@pytest.mark.parametrize("lay", ["permuted", "expanded", "every other", "channels last"])
def test_examples_may_lie_in_memory_as_they_like(lay):
    x = {
        "permuted": randn(8, 8, 3, 4).permute(3, 2, 0, 1),
        "expanded": randn(1, 3, 8, 1).expand(4, 3, 8, 8),
        "every other": randn(8, 3, 8, 8)[::2],
        "channels last": randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last),
    }[lay]
    assert_equals_the_loop(MCDropout(seeded(late_cnn)).sample(2), x, 1, names=["gradient", "integrated_gradients"])


# Maps come one after another


def test_no_more_draws_are_evaluated_than_have_been_asked_for(monkeypatch):
    draws, x = MCDropConnect(seeded(two_convolutions), p=0.3).sample(8, seed=1), randn(2, 3, 8, 8)
    cut_to(monkeypatch, 4)  # two draws at a time
    calls = count_backward(monkeypatch, Convolution)
    maps = Engine(draws, x).attributions(gradient.declared.path(x), torch.ones(2, dtype=torch.long))
    next(maps), next(maps)
    assert len(calls) == 2
    next(maps)
    assert len(calls) == 4


def test_no_maps_but_those_of_one_pass_are_held_while_moments_are_kept(monkeypatch):
    draws, x = MCDropConnect(seeded(two_convolutions), p=0.3).sample(12, seed=1), randn(2, 3, 8, 8)
    cut_to(monkeypatch, 4)  # two draws at a time
    whole, blocks = Chain.slopes, list[weakref.ref[Tensor]]()

    def slopes(chain: Chain, passed: Any, draws: range) -> Tensor:
        found = whole(chain, passed, draws)
        assert sum(ref() is not None for ref in blocks) <= 1, "maps of earlier draws are still held"
        blocks.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Chain, "slopes", slopes)
    explained(draws, gradient, x, 1, keep="moments", chunk=2)
    assert len(blocks) == 6
