"""Each step's hand-written backward pass is that of autograd, for one draw and for several that come back together."""

from __future__ import annotations

import copy
import itertools
import random
from typing import Any

import pytest
import torch
from core_networks import EXACT, randn, seeded
from torch import Tensor, nn
from torch.testing import assert_close

from xuqlib import guided_backprop
from xuqlib.fast.chain import fast_layers
from xuqlib.fast.layers import (
    Convolution,
    Dense,
    Dropout,
    Execution,
    Flatten,
    Layer,
    MaxPool,
    NotAChain,
    Other,
    Relu,
)
from xuqlib.guided import GuidedMode
from xuqlib.posteriors.fixing import FixedNetwork, unit_mask

CPU = torch.device("cpu")
EXACTLY, ROUNDED = Execution(torch.float64, CPU), Execution(torch.float32, CPU)


def slope_of(layer: Any, x: Tensor, g: Tensor) -> Tensor:
    """The oracle: autograd."""
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(layer(leaf.clone()), leaf, g)[0]


def assert_step_is(step: Layer, layer: Any, x: Tensor, **tolerance: Any) -> None:
    """Forward, and backward of one draw and of three draws that share the forward pass."""
    tolerance = tolerance or EXACT
    before = x.clone()
    with torch.no_grad():
        h = x.clone(memory_format=torch.preserve_format)
        out, kept = step.forward(h, len(x))
        expected = layer(x.clone())
        assert_close(out, expected, **tolerance)
        for folds in (1, 3, 1, 2):  # in any order: what is kept serves all
            g = randn(folds * len(expected), *expected.shape[1:], seed=folds, dtype=x.dtype)
            with torch.enable_grad():
                parts = torch.cat([slope_of(layer, x, part) for part in g.split(len(expected))])
            for layout in (torch.contiguous_format, torch.channels_last)[: 2 if g.ndim == 4 else 1]:
                found = step.backward(g.clone().contiguous(memory_format=layout).clone(), kept)
                assert_close(found, parts, **tolerance)
    assert torch.equal(x, before)


def frozen(layer: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    return seeded(lambda: layer, dtype=dtype).eval().requires_grad_(False)


# Convolutions


GEOMETRIES = [
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 0)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 2, "dilation": (1, 3)},
    {"kernel_size": 3, "padding": 1, "groups": 3},
    {"kernel_size": 5, "stride": 3, "padding": 4, "groups": 3, "bias": False},
]


@pytest.mark.parametrize("norm", [None, "affine", "plain"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_convolution_with_its_norm_is_that_of_torch(geometry, norm):
    convolution = frozen(nn.Conv2d(3, 6, **geometry))
    behind = None if norm is None else frozen(nn.BatchNorm2d(6, affine=norm == "affine"))
    if norm == "affine":
        behind.weight.copy_(randn(6, seed=3)), behind.bias.copy_(randn(6, seed=4))
    whole = nn.Sequential(convolution, *([behind] if behind is not None else []))
    for shape in ((2, 3, 9, 8), (1, 3, 7, 7)):
        assert_step_is(Convolution(convolution, behind, EXACTLY), whole, randn(*shape))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 8), (7, 8), (8, 7), (3, 3), (2, 1)])
def test_a_first_convolution_may_come_back_four_pixels_at_a_time(channels, size):
    # Up to four channels and even sides; the others come back as torch has it. Both must give the same.
    convolution = frozen(nn.Conv2d(channels, 6, 3, padding=1))
    assert_step_is(Convolution(convolution, None, EXACTLY), convolution, randn(2, channels, *size))


def test_only_plain_convolutions_of_few_channels_and_even_sides_come_back_four_pixels_at_a_time(monkeypatch):
    shuffled: list[int] = []
    whole = torch.nn.functional.pixel_shuffle
    monkeypatch.setattr(torch.nn.functional, "pixel_shuffle", lambda *a: shuffled.append(1) or whole(*a))
    for channels, size, options, count in (
        (3, (8, 8), {"padding": 1}, 1),
        (4, (2, 6), {"padding": 1}, 1),
        (5, (8, 8), {"padding": 1}, 0),
        (3, (7, 8), {"padding": 1}, 0),
        (3, (8, 8), {"padding": 0}, 0),
        (3, (8, 8), {"padding": 1, "stride": 2}, 0),
        (3, (8, 8), {"padding": 2, "dilation": 2}, 0),
        (3, (8, 8), {"padding": 1, "groups": 3}, 0),
    ):
        shuffled.clear()
        convolution = frozen(nn.Conv2d(channels, 6, 3, **options))
        assert_step_is(Convolution(convolution, None, EXACTLY), convolution, randn(1, channels, *size))
        assert bool(shuffled) is bool(count)


def test_convolutions_of_random_shapes_are_those_of_torch_in_float32_too():
    rng = random.Random(0)
    for _ in range(40):
        channels, out = rng.randint(1, 5), rng.randint(1, 5)
        layer = nn.Conv2d(channels, out, rng.randint(1, 3), rng.choice([1, 2]), rng.randint(0, 2), rng.choice([1, 2]))
        x = randn(rng.randint(1, 3), channels, rng.randint(5, 9), rng.randint(5, 9), dtype=torch.float32)
        layer = frozen(layer, torch.float32)
        assert_step_is(Convolution(layer, None, ROUNDED), layer, x, rtol=1e-4, atol=1e-5)  # sums of 45 terms of 2^-24


# Dense layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [False, True])
def test_a_dense_layer_with_its_norm_is_that_of_torch(bias, norm):
    dense, behind = frozen(nn.Linear(5, 4, bias=bias)), frozen(nn.BatchNorm1d(4)) if norm else None
    if behind is not None:
        behind.running_mean.copy_(randn(4, seed=3)), behind.running_var.copy_(randn(4, seed=4) ** 2)
        behind.weight.copy_(randn(4, seed=5)), behind.bias.copy_(randn(4, seed=6))
    step = Dense([dense], [behind], EXACTLY)
    whole = nn.Sequential(dense, *([behind] if behind is not None else []))
    assert_step_is(step, whole, randn(3, 5))
    classes = torch.tensor([2, 0, 3])
    picked = torch.nn.functional.one_hot(classes, 4).double()
    expected = slope_of(whole, randn(3, 5), picked)
    assert_close(step.slope_of(classes, 2), expected.repeat(2, 1), **EXACT)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [True, False], ids=["one input for all", "an input for each"])
def test_dense_layers_of_several_draws_stand_side_by_side(bias, shared):
    layers = [seeded(lambda: nn.Linear(5, 4, bias=bias), seed=s).requires_grad_(False) for s in range(3)]
    norms = [frozen(nn.BatchNorm1d(4)), frozen(nn.BatchNorm1d(4)), frozen(nn.BatchNorm1d(4))]
    for seed, norm in enumerate(norms):
        norm.running_mean.copy_(randn(4, seed=seed))
    step = Dense(layers, norms, EXACTLY)
    x = randn(2, 5) if shared else randn(6, 5)
    out, kept = step.forward(x, 2)
    inputs = [x] * 3 if shared else x.split(2)
    expected = torch.cat([norm(layer(part)) for layer, norm, part in zip(layers, norms, inputs, strict=True)])
    assert_close(out, expected, **EXACT)
    g = randn(6, 4, seed=1)
    parts = zip(layers, norms, inputs, g.split(2), strict=True)
    slopes = [slope_of(nn.Sequential(layer, norm), part, piece) for layer, norm, part, piece in parts]
    assert_close(step.backward(g.clone(), kept), torch.cat(slopes), **EXACT)
    picked = torch.nn.functional.one_hot(torch.tensor([3, 1]), 4).double()
    rows = [slope_of(nn.Sequential(a, b), p, picked) for a, b, p in zip(layers, norms, inputs, strict=True)]
    assert_close(step.slope_of(torch.tensor([3, 1]), 3), torch.cat(rows), **EXACT)


def test_a_dense_layer_on_more_than_rows_is_refused():
    with pytest.raises(NotAChain, match=r"a dense layer on \(2, 3, 5\)"):
        Dense([frozen(nn.Linear(5, 4))], [None], EXACTLY).forward(randn(2, 3, 5), 2)


# ReLUs


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5), (1, 2, 1, 1)])
def test_a_relu_is_that_of_torch(shape):
    assert_step_is(Relu(guided=False), torch.relu, randn(*shape))


def guided_relu(x: Tensor) -> Tensor:
    with GuidedMode():
        return torch.relu(x)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5)])
def test_a_guided_relu_is_that_of_guided_mode(shape):
    assert_step_is(Relu(guided=True), guided_relu, randn(*shape))


def test_relus_at_zero_and_their_rule_by_hand():
    x, g = torch.tensor([[-1.0, 0.0, 2.0, 2.0]]), torch.tensor([[3.0, 3.0, 3.0, -3.0]])
    for guided, expected in ((False, [0, 0, 3, -3]), (True, [0, 0, 3, 0])):
        step = Relu(guided)
        _, kept = step.forward(x, 1)
        assert step.backward(g.clone(), kept).tolist() == [expected]


def test_a_relu_leaves_what_it_is_given():
    x = randn(2, 5)
    Relu(guided=False).forward(x, 2)
    assert torch.equal(x, randn(2, 5))


# Poolings


POOLINGS = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1)},
    {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 3, "stride": 1, "dilation": 2, "ceil_mode": True},
]


@pytest.mark.parametrize("options", POOLINGS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (1, 1, 7, 7), (3, 2, 5, 6)])
def test_a_max_pooling_is_that_of_torch(shape, options):
    layer = nn.MaxPool2d(**options)
    assert_step_is(MaxPool(layer, EXACTLY), layer, randn(*shape))
    assert_step_is(MaxPool(layer, ROUNDED), layer, randn(*shape, dtype=torch.float32))  # picks, and adds up to 9


def test_a_max_pooling_gives_a_tie_to_its_first_input():
    step = MaxPool(nn.MaxPool2d(2), EXACTLY)
    out, kept = step.forward(torch.ones(1, 1, 2, 4, dtype=torch.float64), 1)
    assert out.shape == (1, 1, 1, 2)
    found = step.backward(torch.tensor([[[[5.0, 7.0]]]], dtype=torch.float64), kept)
    assert found.tolist() == [[[[5, 0, 7, 0], [0, 0, 0, 0]]]]


# Dropout


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d])
@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_dropout_has_the_masks_of_the_fixed_network(kind, rate):
    shape = {nn.Dropout: (4, 6), nn.Dropout1d: (4, 6), nn.Dropout2d: (4, 3, 3), nn.Dropout3d: (4, 2, 2, 2)}[kind]
    x, seeds = randn(2, *shape), [5, 6, 7]
    step = Dropout(kind(rate), seeds, 1, EXACTLY)
    fixed = [FixedNetwork(kind(rate), seed) for seed in seeds]
    for given, inputs in ((x, [x] * 3), (torch.cat([x, 2 * x, 3 * x]), [x, 2 * x, 3 * x])):
        out, kept = step.forward(given.clone(), 2)
        assert_close(out, torch.cat([f(part) for f, part in zip(fixed, inputs, strict=True)]), **EXACT)
        g = randn(6, *shape, seed=1)
        slopes = [slope_of(f, part, p) for f, part, p in zip(fixed, inputs, g.split(2), strict=True)]
        assert_close(step.backward(g.clone(), kept), torch.cat(slopes), **EXACT)


def test_the_second_dropout_call_has_the_second_mask():
    layers = [nn.Dropout(0.5), nn.Linear(40, 40), nn.Dropout(0.5)]
    steps = [step for step in fast_layers([layers], [3], EXACTLY) if isinstance(step, Dropout)]
    masks = [step.forward(torch.ones(1, 40, dtype=torch.float64), 1)[0] for step in steps]
    for number, mask in enumerate(masks, start=1):
        assert torch.equal(mask[0] > 0, unit_mask(3, number, (40,), 0.5))
    assert not torch.equal(*masks)


# Shapes, and layers of any kind


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 6), (1, 2, 1, 1), (2, 3, 4)])
def test_flattening_is_that_of_torch(shape):
    assert_step_is(Flatten(), nn.Flatten(), randn(*shape))


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True)


OTHERS = [
    *(nn.Sigmoid(), nn.GELU(), nn.LeakyReLU(0.2, inplace=True), nn.PReLU(), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)),
    *(nn.BatchNorm2d(4), nn.InstanceNorm2d(4, affine=True), nn.GroupNorm(2, 4), nn.LocalResponseNorm(2), Sum()),
    *(nn.Conv2d(4, 3, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Softmax(1)),
    *(nn.ConvTranspose2d(4, 2, 3), nn.Upsample(scale_factor=2), nn.PixelShuffle(2), nn.Linear(6, 3), nn.Dropout(0.4)),
    nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(64, 3)),
]


@pytest.mark.parametrize("num_examples", [1, 3])
@pytest.mark.parametrize("layer", OTHERS, ids=lambda layer: type(layer).__name__)
def test_any_other_layer_keeps_a_graph_of_its_own(layer, num_examples):
    x = randn(num_examples, 4, 6, 6)
    for dtype, tolerance in ((torch.float64, EXACT), (torch.float32, {"rtol": 1e-4, "atol": 1e-5})):
        layer = frozen(copy.deepcopy(layer), dtype)
        step = Other(layer, Execution(dtype, CPU))
        assert_step_is(step, FixedNetwork(layer), x.to(dtype), **tolerance)
        # As convolutions of pictures leave it in memory.
        last = x.to(dtype).contiguous(memory_format=torch.channels_last)
        assert_step_is(step, FixedNetwork(layer), last, **tolerance)


def test_the_slope_that_another_layer_gives_may_be_written_into():
    for layer in (Sum(), nn.Identity(), nn.AdaptiveAvgPool2d(1)):
        step = Other(layer, EXACTLY)
        out, kept = step.forward(randn(2, 4, 3, 3), 2)
        g = step.backward(torch.ones_like(out), kept)
        relu = Relu(guided=False)
        _, where = relu.forward(randn(2, 4, 3, 3, seed=1), 2)
        expected = g.clone() * (randn(2, 4, 3, 3, seed=1) > 0)
        assert_close(relu.backward(g, where), expected, **EXACT)


def test_another_layer_lets_relus_of_its_own_be_guided():
    layer = frozen(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5)))
    step = Other(layer, Execution(torch.float64, CPU, guided=True))
    _, kept = step.forward(randn(3, 5), 3)
    assert step.mode is not None and step.mode.num_met == 1
    picked = torch.nn.functional.one_hot(torch.tensor([1, 1, 1]), 5).double()
    assert_close(step.backward(picked, kept), guided_backprop(layer, randn(3, 5), 1), **EXACT)


def test_another_layer_that_does_not_depend_on_its_input_is_refused():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    step = Other(Constant(), EXACTLY)
    out, kept = step.forward(randn(2, 5), 2)  # which lime needs
    with pytest.raises(ValueError, match="does not depend on x as far as autograd can see"):
        step.backward(out, kept)


# Steps of layers


def kinds(*layers: nn.Module, seeds: tuple[int | None, ...] = (1,)) -> list[str]:
    heads = [[layer.double().eval() for layer in layers]] * len(seeds)
    return [type(step).__name__ for step in fast_layers(heads, list(seeds), EXACTLY)]


def test_layers_become_the_steps_that_stand_for_them():
    conv, same = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding="same")
    reflect = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    norm, dense = nn.BatchNorm2d(4), nn.Linear(5, 4)
    assert kinds(conv, norm, nn.ReLU(), nn.MaxPool2d(2)) == ["Convolution", "Relu", "MaxPool"]
    assert kinds(dense, nn.BatchNorm1d(4), nn.Identity(), nn.ReLU()) == ["Dense", "Relu"]
    assert kinds(norm, conv, nn.ReLU(), norm) == ["Other", "Convolution", "Relu", "Other"]
    assert kinds(same, norm) == kinds(reflect, norm) == ["Other", "Other"]
    assert kinds(same, norm, seeds=(1, 2, 3)) == ["Other", "Other"], "one norm, whatever the number of draws"
    assert kinds(conv, nn.BatchNorm2d(4, track_running_stats=False)) == ["Convolution", "Other"]
    assert kinds(dense, nn.BatchNorm2d(3), nn.Flatten()) == ["Dense", "Other", "Flatten"]
    assert kinds(nn.Flatten(2), nn.Flatten(0), nn.Flatten()) == ["Other", "Other", "Flatten"]
    assert kinds(nn.Dropout(0.2), nn.Dropout2d(0.2), nn.Identity()) == ["Dropout", "Dropout"]
    assert kinds(nn.Sigmoid(), nn.AvgPool2d(2)) == ["Other", "Other"]


def test_a_layer_with_a_hook_is_called_as_it_is():
    for layer in (nn.Linear(5, 4), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Identity()):
        layer.register_forward_hook(lambda *_: None)
        assert kinds(layer) == ["Other"]


@pytest.mark.parametrize("layer", [Sum, lambda: nn.AlphaDropout(0.2)], ids=["a user's", "drops in its own way"])
def test_a_layer_that_is_not_known_is_no_part_of_a_chain(layer):
    with pytest.raises(NotAChain, match="a layer of a user's own"):
        kinds(layer(), nn.Linear(5, 4))


def test_what_torch_is_told_of_a_shape_lies_as_the_setting_says():
    for setting, num_axes in itertools.product((EXACTLY, ROUNDED), (2, 4)):
        like = setting.empty(2, torch.Size((3, 4, 5)[: num_axes - 1]))
        fast = num_axes == 4 and setting is ROUNDED
        assert like.is_contiguous(memory_format=torch.channels_last if fast else torch.contiguous_format)
        assert like.dtype == setting.dtype
    assert Execution(torch.float32, torch.device("cuda")).layout(4) is torch.channels_last
    assert Execution(torch.float64, torch.device("cuda")).layout(4) is torch.channels_last
    assert ROUNDED.convert(randn(2, 3, 4, 5).requires_grad_()).requires_grad is False
