"""FullGrad: its terms by hand, the identity that they sum to the logit, and its map against one layer at a time."""

from __future__ import annotations

import copy
import functools
import random

import numpy as np
import pytest
import torch
from core_networks import (
    EXACT,
    PICTURES,
    TABLE,
    FunctionalRelu,
    assert_same,
    grey_cnn,
    inplace_cnn,
    late_cnn,
    randn,
    seeded,
    snapshot,
    table_mlp,
    torchvision_resnet,
)
from core_networks import WITH_DROPOUT as DROPOUTS
from oracles import slow_map
from torch import nn, tensor
from torch.nn import functional as F
from torch.testing import assert_close
from torchvision.transforms.v2 import Normalize

from xuqlib import Flipout, MCDropConnect, MCDropout, explain, guided_backprop, ua_backprop
from xuqlib.explainers import layer_maps as saliencies
from xuqlib.explainers.fullgrad import FullGradTerms, LogitGraph, fullgrad, fullgrad_terms, logit_graph, saliency
from xuqlib.explainers.gradients import gradient_x_input
from xuqlib.explainers.layer_maps import PSI, ChainGraph, over_channels
from xuqlib.fast.layers import Convolution, Flatten
from xuqlib.posteriors.fixing import FixedNetwork

# By hand


def test_the_terms_of_a_small_network_by_hand():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 1)).double()
    conv, head = network[0], network[3]
    conv.weight.data.fill_(2.0), conv.bias.data.fill_(1.0)
    head.weight.data = tensor([[1.0, 10.0, 100.0, 1000.0]]).double()
    head.bias.data.fill_(7.0)
    x = tensor([[[[3.0, -5.0], [0.5, 0.0]]]]).double()  # 2x + 1 is 7, -9, 2, 1: the second is cut off
    terms = fullgrad_terms(network, x, 0)
    assert terms.input.tolist() == [[[[6.0, 0.0], [100.0, 0.0]]]]
    assert [term.tolist() for term in terms.maps] == [[[[[1.0, 0.0], [100.0, 1000.0]]]]]
    assert [term.tolist() for term in terms.dense] == [[[7.0]]]
    assert terms.total().tolist() == network(x)[:, 0].tolist() == [1214.0]
    assert fullgrad(network, x, 0, psi="raw").tolist() == [[[[7.0, 0.0], [200.0, 1000.0]]]]
    minmax = [[6 / 100 + 1 / 1000, 0.0], [1 + 100 / 1000, 1.0]]
    assert_close(fullgrad(network, x, 0), tensor([[minmax]], dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("affine", [True, False])
def test_the_bias_of_batchnorm_counts_its_running_mean(affine):
    norm = nn.BatchNorm2d(1, eps=0.25, affine=affine).double().eval()
    norm.running_mean.fill_(6.0), norm.running_var.fill_(3.75)  # a standard deviation of 2
    if affine:
        norm.weight.data.fill_(5.0), norm.bias.data.fill_(1.0)
    network = nn.Sequential(norm, nn.Flatten())
    terms = fullgrad_terms(network, tensor([[[[8.0]]]]).double())
    assert terms.maps[0].item() == (1 - 6 * 5 / 2 if affine else -6 / 2)
    assert terms.input.item() == (8 * 5 / 2 if affine else 8 / 2)


def test_a_term_is_stretched_to_the_picture_and_the_signed_one_keeps_its_sum():
    terms = FullGradTerms(
        torch.zeros(1, 3, 4, 2).double(),
        (
            tensor(
                [
                    [[[1.0], [-3.0]]],
                ]
            ).double(),
        ),
    )
    # Middles of the two cells are at 1/4 and 3/4 of the height, those of the pixels at 1/8, 3/8, 5/8 and 7/8.
    assert saliency(terms, "raw").tolist() == [[[1.0, 1.0], [1.5, 1.5], [2.5, 2.5], [3.0, 3.0]]]
    assert saliency(terms, "signed").tolist() == [[[0.25, 0.25], [0.0, 0.0], [-0.5, -0.5], [-0.75, -0.75]]]


def test_minmax_is_over_all_channels_of_an_example_and_a_flat_term_vanishes():
    flat, steps = torch.full((1, 2, 2, 2), 5.0), tensor([[[[-4.0, 2.0], [3.0, 2.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    terms = FullGradTerms(torch.cat([flat, steps]).double())
    assert saliency(terms, "minmax").tolist() == [[[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.5, 0.0]]]


# The terms sum to the logit


class Everything(nn.Module):
    """Convolutions of every kind, one module called twice, one never used, tokens with an in-place ReLU after them."""

    def __init__(self):
        super().__init__()
        self.unused, self.twice = nn.Linear(1, 1), nn.Conv2d(3, 3, 3, padding=1)
        self.up, self.flat = nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Conv1d(2, 4, 3)
        self.deep, self.tokens = nn.Conv3d(1, 2, 2), nn.Linear(5, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        self.unused(x[..., :1])
        x = F.relu_(self.twice(F.relu_(self.twice(x)) + x))
        x = F.relu_(self.flat(F.relu_(self.up(x)).flatten(2)))
        x = F.relu_(self.deep(x[:, None, :, :12].reshape(len(x), 1, 4, 2, 6)))  # (N, 2, 3, 1, 5)
        return self.head(F.relu_(self.tokens(x.flatten(1, 3))).amax(1))


def draw_of(name):
    """A draw whose network is piecewise linear, and examples of its kind."""
    if name == "drop-connect":
        return MCDropConnect(seeded(inplace_cnn), placement="all", p=0.3).sample(1)[0], randn(*PICTURES)
    if name == "flipout":
        return Flipout(seeded(table_mlp), placement="all").sample(1)[0], randn(*TABLE)
    if name in ("resnet18", "functional", "everything"):
        build = {"resnet18": torchvision_resnet, "functional": FunctionalRelu, "everything": Everything}[name]
        return seeded(build).eval(), randn(*(TABLE if name == "functional" else PICTURES))
    build, shape = DROPOUTS[name]
    return MCDropout(seeded(build)).sample(1)[0], randn(*shape)


LINEAR = ["mlp", "in-place cnn", "late cnn", "functional dropout", "a module called twice", "Dropout1d", "Dropout2d"]


@pytest.mark.parametrize("name", [*LINEAR, "drop-connect", "flipout", "resnet18", "functional", "everything"])
def test_the_terms_sum_to_the_logit(name):
    network, x = draw_of(name)
    logits = network(x).detach()
    for label in range(3):
        terms = fullgrad_terms(network, x, label)
        assert_close(terms.total(), logits[:, label], **EXACT)
        assert_close(terms.input, gradient_x_input(network, x, label), **EXACT)
        if x.dim() == 4:
            places = saliency(terms, "signed").flatten(1).sum(1) + sum(term.flatten(1).sum(1) for term in terms.dense)
            assert_close(places, logits[:, label], **EXACT)


def test_a_bias_counts_even_if_its_layer_gave_a_view_that_is_overwritten():
    conv, head = seeded(lambda: nn.Conv2d(3, 4, 3)), seeded(lambda: nn.Linear(144, 2))
    one_picture = lambda x: head(F.relu_(conv(x[0])).flatten()[None])  # noqa: E731
    x = randn(1, 3, 8, 8)
    terms = fullgrad_terms(one_picture, x, 1)
    assert [term.shape for term in terms.dense] == [(4, 6, 6), (1, 2)]
    assert_close(sum(term.sum() for term in (terms.input, *terms.dense)), one_picture(x)[0, 1].detach(), **EXACT)


class Patches(nn.Module):
    """Folds four patches of a picture into the batch, and adds a dense layer's answer to a constant."""

    def __init__(self):
        super().__init__()
        self.conv, self.mixed, self.head = nn.Conv2d(3, 2, 1), nn.Linear(3, 3), nn.Linear(192, 3)
        self.constant = nn.Linear(1, 3)

    def forward(self, x):
        patches = x.unflatten(2, (2, 4)).unflatten(4, (2, 4)).permute(0, 2, 4, 1, 3, 5)  # (N, 2, 2, 3, 4, 4)
        folded = self.conv(patches.flatten(0, 2)).reshape(len(x), -1)
        tokens = self.mixed(x.movedim(1, -1)).flatten(1)
        return self.head(torch.cat([folded, tokens[:, :64]], 1)) + self.constant(x.new_ones(1))


@pytest.mark.parametrize("trained", [False, True])
def test_only_what_has_the_layout_of_the_pictures_is_on_the_map(trained):
    network, x = seeded(Patches).requires_grad_(trained), randn(1, 3, 8, 8)
    terms = fullgrad_terms(network, x, 2)
    # The patches are not examples, the last axis of the tokens is not a width; last come the head and a constant.
    assert [tuple(term.shape) for term in terms.dense] == [(4, 2, 4, 4), (1, 8, 8, 3), (1, 3), (1, 3)]
    assert not terms.maps and terms.remainder is None  # the patches' term is of no one example
    assert_close(sum(term.sum() for term in (terms.input, *terms.dense)), network(x)[0, 2].detach(), **EXACT)
    assert_close(fullgrad(network, x, 2, psi="raw").sum(1), gradient_x_input(network, x, 2).abs().sum(1), **EXACT)


def test_a_smooth_network_leaves_a_remainder_and_fullgrad_says_so():
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, 3)))
    x = randn(*TABLE)
    terms = fullgrad_terms(network, x, 0)
    assert terms.remainder.abs().min() > 1e-4
    assert_close(terms.total() + terms.remainder, network(x)[:, 0].detach(), **EXACT)
    with pytest.warns(UserWarning, match="terms miss the logit") as caught:
        fullgrad(network, x, 0)
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="terms miss the logit"):
        ua_backprop([network, network], x)


# Constants that forward adds


def test_the_terms_of_constants_by_hand():
    """2 relu(x - 1) + relu6(3x) with x = (4, 0.5): 2 (x0 - 1) + 6 + 0 + 3 x1."""
    network = lambda x: (2 * F.relu(x - 1) + F.relu6(3 * x)).sum(1)  # noqa: E731
    terms = fullgrad_terms(network, tensor([[4.0, 0.5]]).double())
    assert terms.input.tolist() == [[8.0, 1.5]]
    assert [term.tolist() for term in terms.dense] == [[[-2.0, 0.0]], [[6.0, 0.0]]]
    assert terms.total().tolist() == [13.5] and terms.remainder.tolist() == [0.0]


@pytest.mark.parametrize("psi", PSI)
def test_a_normalisation_in_front_equals_the_same_as_a_convolution(psi):
    mean, std = tensor([0.4, 0.5, 0.6]).double(), tensor([0.2, 0.25, 0.3]).double()
    body, x = seeded(inplace_cnn).eval(), randn(*PICTURES)
    same = nn.Conv2d(3, 3, 1, groups=3).double()
    same.weight.data, same.bias.data = (1 / std).view(3, 1, 1, 1), -mean / std
    wanted = fullgrad(nn.Sequential(same, body), x, 1, psi=psi)
    as_buffers = lambda x: body((x - mean[:, None, None]) / std[:, None, None])  # noqa: E731
    for network in (nn.Sequential(Normalize(mean.tolist(), std.tolist()), body), as_buffers):
        terms = fullgrad_terms(network, x, 1)
        assert len(terms.maps) == 4 and terms.maps[0].shape == x.shape
        assert_close(terms.total(), network(x)[:, 1].detach(), **EXACT)
        assert_close(fullgrad(network, x, 1, psi=psi), wanted, **EXACT)


PLACES, CHANNELS = randn(3, 8, 8, seed=5), randn(3, 1, 1, seed=6)
TRAINED = nn.Parameter(PLACES.clone())


def into_views(x):
    x[:, 0].sub_(0.4).div_(0.2)
    x[:, 1] -= 0.3
    x[:, 2, :4] = 1.5
    return x


def into_a_constant(x):
    filled = torch.ones(len(x), 3, 8, 8, dtype=x.dtype)
    filled[:, :2].copy_(x[:, 1:])
    filled[:, 2, 4:] = x[:, 0, 4:]
    return filled


ADDING = {
    "a buffer of places": lambda x: x + PLACES,
    "what depends on a weight": lambda x: x - TRAINED.exp(),
    "a number, in front": lambda x: 1 - x,
    "a number of numpy": lambda x: x - np.float32(0.25),
    "in place": lambda x: x.add_(0.5).mul_(2).sub_(CHANNELS, alpha=3),
    "into views": into_views,
    "into a constant": into_a_constant,
    "lerp": lambda x: torch.lerp(x, PLACES, 0.3),
    "addcmul": lambda x: torch.addcmul(PLACES, x, CHANNELS.expand(3, 8, 8)),
    "padding": lambda x: F.pad(x[..., 1:], (1, 0), value=2.0),
    "a constant channel": lambda x: torch.cat([x[:, :2], PLACES[:1].expand(len(x), 1, 8, 8)], 1),
    "stacked": lambda x: torch.stack([x[:, 0], x[:, 1], PLACES[0].expand(len(x), 8, 8)], 1),
    "where": lambda x: torch.where(x > 0, x, -1.0),
    "masked": lambda x: x.masked_fill(x > 1, 1.0),
    "by an index": lambda x: x.index_fill(1, tensor([1]), 0.7),
    "clamp": lambda x: x.clamp(-1, 1),
    "clamp, in place": lambda x: x.clamp_(max=0.5),
    "the larger of x and a constant": lambda x: torch.maximum(PLACES, x),
    "relu6 in place": lambda x: F.relu6(4 * x, inplace=True),
    "at the bounds of a hardtanh": lambda x: F.hardtanh(torch.cat([0 * x[:, :1] + 1, x[:, 1:]], 1), 0, 1),
    "hardsigmoid": F.hardsigmoid,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.5, -3.0),
    "steps": lambda x: x + x.round(),
    "infinite, before a ReLU": lambda x: F.relu(x.masked_fill(x > 1, -torch.inf)),
    "by aten": lambda x: torch.ops.aten.add.Tensor(x, CHANNELS),
    "without a graph": lambda x: torch.no_grad()(x.add_)(CHANNELS),
}


@pytest.mark.parametrize("name", ADDING)
def test_every_constant_counts_wherever_forward_adds_it(name):
    body, x = seeded(inplace_cnn).eval(), randn(*PICTURES)
    network = lambda x: body(ADDING[name](x)) + torch.arange(3)  # noqa: E731
    values, logits = x.clone(), network(x.clone()).detach()
    terms = fullgrad_terms(network, x, 2)
    assert_close(terms.total(), logits[:, 2], **EXACT)
    assert_close(terms.remainder, torch.zeros(len(x)).double(), **EXACT)
    assert len(terms.maps) > 3, "what has the shape of the images has a place in them"
    places = fullgrad(network, x, 2, psi="signed").flatten(1).sum(1)
    assert_close(places + sum(term.flatten(1).sum(1) for term in terms.dense), logits[:, 2], **EXACT)
    assert torch.equal(x, values)


def test_a_constant_of_channels_last_has_no_place_in_the_image():
    body, x = seeded(inplace_cnn).eval(), randn(*PICTURES)
    network = lambda x: body((x.permute(0, 2, 3, 1) + PLACES.permute(1, 2, 0)).permute(0, 3, 1, 2))  # noqa: E731
    terms = fullgrad_terms(network, x, 0)
    assert (len(terms.maps), terms.dense[0].shape) == (3, (3, 8, 8, 3))
    assert_close(terms.total(), network(x)[:, 0].detach(), **EXACT)


def test_a_layer_whose_bias_depends_on_x_adds_the_constant_that_is_left():
    inner, x = seeded(lambda: nn.Linear(5, 3)), randn(*TABLE)
    network = lambda x: F.linear(torch.ones(len(x), 3).double(), torch.eye(3).double(), inner(x[:1]).sum(0))  # noqa: E731
    assert [term.shape for term in fullgrad_terms(network, x[:1], 0).dense] == [(1, 3), (1, 3)]
    assert_close(fullgrad_terms(network, x[:1], 0).total(), network(x[:1])[:, 0].detach(), **EXACT)


# Random networks that are piecewise linear


def random_step(rng):
    """A step of a network of images with 3 channels: as forward writes it, and the same without side effects."""
    kind = rng.choice(["conv", "norm", "relu", "relu", "clip", "constant", "scale", "pool", "skip", "dropped"])
    places, number = randn(3, 6, 6, seed=rng.randrange(99)), rng.choice([-0.5, 0.25, 1.5])
    mask = (randn(3, 6, 6, seed=rng.randrange(99)) > -1).double()
    layer = seeded(
        {"norm": lambda: nn.BatchNorm2d(3)}.get(kind, lambda: nn.Conv2d(3, 3, 3, padding=1)), seed=number > 0
    )
    layer.eval().requires_grad_(rng.random() < 0.5)
    if kind == "skip":
        inner = [random_step(rng) for _ in range(rng.randint(1, 3))]
        return ("skip", inner, None)
    written = {
        "conv": [layer],
        "norm": [layer],
        "relu": [
            F.relu,
            F.relu_,
            nn.ReLU(),
            nn.ReLU(inplace=True),
            lambda x: x.clamp_(min=0),
            lambda x: x.clamp_min(0),
        ],
        "clip": [lambda x: x.clamp(-1, 1), lambda x: x.clamp_(-1, 1), lambda x: F.hardtanh(x, inplace=True)],
        "constant": [lambda x: x + places, lambda x: x.add_(places), lambda x: places + x, lambda x: x - -places],
        "scale": [lambda x: number * x, lambda x: x.mul_(number), lambda x: x / (1 / number)],
        "pool": [nn.MaxPool2d(3, 1, 1), lambda x: F.max_pool2d(x, 3, 1, 1)],
        "dropped": [lambda x: x * mask, lambda x: x.mul_(mask)],
    }[kind]
    return kind, rng.choice(written), written[0]


def forward(steps, x):
    for kind, written, _ in steps:
        x = forward(written, x.clone()) + x if kind == "skip" else written(x)
        x = (
            x.clone() if kind == "relu" else x
        )  # torch needs what its ReLU returned, and the next step may work in place
    return x


def guided_by_hand(steps, x):
    """Walk the steps: what comes out, and the way back from a slope there to x."""
    ways = []
    for kind, written, plain in steps:
        if kind == "skip":
            out, inner = guided_by_hand(written, x)
            x, way = out + x, lambda slope, inner=inner: inner(slope) + slope
        elif kind == "relu":
            x, way = x.clamp(min=0), lambda slope, z=x: slope * (slope > 0) * (z > 0)
        else:
            x, back = torch.func.vjp(plain, x)
            way = lambda slope, back=back: back(slope)[0]  # noqa: E731
        ways.append(way)
    return x, lambda slope: functools.reduce(lambda slope, way: way(slope), reversed(ways), slope)


@pytest.mark.parametrize("seed", range(30))
def test_terms_and_guided_slopes_of_a_random_network(seed):
    rng = random.Random(seed)
    steps = [*(random_step(rng) for _ in range(9)), ("relu", F.relu, F.relu)]
    head, x = randn(3, 108, seed=seed), randn(2, 3, 6, 6, seed=seed)
    network = lambda x: forward(steps, x).flatten(1) @ head.T + torch.arange(3)  # noqa: E731
    logits = network(x.clone()).detach()
    terms = fullgrad_terms(network, x, 1)
    assert_close(terms.total(), logits[:, 1], **EXACT)
    assert_close(terms.remainder / (1 + logits[:, 1].abs()), 0 * logits[:, 1], rtol=0, atol=1e-10)
    fullgrad(network, x, 1)
    _, back = guided_by_hand(steps, x)
    assert_close(guided_backprop(network, x, 1), back(head[1].view(3, 6, 6).expand_as(x)), **EXACT)


# Half precision


@pytest.mark.parametrize("psi", PSI)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"])
def test_half_precision_gives_the_map_within_its_rounding(psi, dtype):
    network = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), seeded(late_cnn, dtype=torch.float32)).eval()
    network, x = (copy.deepcopy(network), randn(*PICTURES, dtype=torch.float32))
    if dtype != "autocast":
        network, x = network.to(dtype), x.to(dtype)
    exact = copy.deepcopy(network).double()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        maps = {"whole": fullgrad(network, x, 1, psi=psi), "chain": fullgrad(network[1], x, 1, psi=psi)}
        if psi != "signed":
            maps["ua"] = ua_backprop([network[1]] * 2, x, kind="total", psi=psi)
    assert all(each.dtype == x.dtype for each in maps.values())
    wanted = {
        "whole": fullgrad(exact, x.double(), 1, psi=psi),
        "chain": fullgrad(exact[1], x.double(), 1, psi=psi),
        "ua": ua_backprop([exact[1]] * 2, x.double(), kind="total", psi="raw" if psi == "signed" else psi),
    }
    for name, each in maps.items():
        missed = (each.double() - wanted[name]).abs().max() / wanted[name].abs().max()
        # 2 % in float16: six layers, and uncertainties, which are differences.
        assert missed < 20 * torch.finfo(torch.bfloat16 if dtype == "autocast" else dtype).eps, name


def test_a_chain_steps_aside_under_autocast_and_half_maps_are_added_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(logit_graph(seeded(late_cnn).eval(), randn(*PICTURES)), LogitGraph)
    huge = tensor([[[[6e4, 0.0]], [[6e4, 1.0]]]], dtype=torch.float16)  # float16 ends at 65504
    assert saliency(FullGradTerms(huge), "raw").tolist() == [[[120000.0, 1.0]]]


@pytest.mark.parametrize("psi", PSI)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nothing_but_the_slopes_is_rounded_to_half_precision(psi, dtype):
    network, x = seeded(late_cnn, dtype=torch.float32).to(dtype).eval(), randn(*PICTURES).to(dtype)
    terms = LogitGraph(network, x).terms(F.one_hot(tensor([0, 1, 2]), 3))
    exact = FullGradTerms(terms.input.double(), tuple(term.double() for term in terms.maps))
    found = LogitGraph(network, x).saliencies(F.one_hot(tensor([[0, 1, 2]]), 3), psi)[0]
    assert found.dtype == torch.float32
    assert_close(found.double(), saliency(exact, psi), rtol=1e-5, atol=1e-5 * float(saliency(exact, psi).abs().max()))


# The map against one layer and one example at a time


@pytest.mark.parametrize("psi", ["minmax", "raw"])
@pytest.mark.parametrize("build", [inplace_cnn, late_cnn, table_mlp], ids=lambda build: build.__name__)
def test_the_map_equals_one_example_and_layer_at_a_time(build, psi):
    network = seeded(build)
    x = randn(*(TABLE if build is table_mlp else PICTURES))
    draw, target = MCDropout(network).sample(1, seed=3)[0], torch.arange(len(x)) % 3
    wanted = torch.stack([slow_map(draw, example, int(label), psi) for example, label in zip(x, target, strict=True)])
    for chunk in (None, 1, 2):
        found = fullgrad(draw, x, target, psi=psi, chunk=chunk)
        assert found.shape == x.shape and not found.requires_grad
        assert_close(found if x.dim() == 2 else found.sum(1), wanted, **EXACT)


# The faster ways: sums without terms, and chains without a graph


@pytest.mark.parametrize("psi", PSI)
def test_a_sum_over_channels_needs_no_terms(psi):
    slope, biases = randn(4, 5, 3, 2), randn(2, 5, seed=1)
    slope[1] = 0.0
    slope[2, :, 0] = 0.0  # then the smallest is 0
    wanted = sum(PSI[psi](bias[:, None, None] * slope).sum(1) for bias in biases)
    for laid_out in (slope, slope.contiguous(memory_format=torch.channels_last)):
        assert_close(over_channels(laid_out, biases, psi), wanted, **EXACT)


def test_a_term_too_flat_to_be_rescaled_vanishes():
    ones = torch.ones(1, 1, 2, 2)
    assert over_channels(3 * ones, ones[:, :, 0, 0], "minmax").tolist() == [[[0.0, 0.0], [0.0, 0.0]]]
    steps = tensor([[[[0.0, 1e-40], [2e-40, 0.0]]]])  # 1 / 2e-40 is infinite in float32
    assert over_channels(steps, ones[:, :, 0, 0], "minmax").tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def chains():
    grey = seeded(grey_cnn)
    for posterior in (MCDropout(grey), MCDropConnect(grey, placement="all"), Flipout(grey, placement="all")):
        yield posterior.sample(1, seed=2)[0], randn(3, 1, 11, 9)
    yield seeded(inplace_cnn).eval(), randn(*PICTURES)
    yield MCDropout(seeded(table_mlp)).sample(1)[0], randn(*TABLE)


@pytest.mark.parametrize("psi", PSI)
def test_a_chain_of_known_layers_gives_what_autograd_gives(psi, monkeypatch):
    for network, x in chains():
        found, wanted = logit_graph(network, x), LogitGraph(network, x)
        assert isinstance(found, ChainGraph) and found.is_fast and not wanted.is_fast
        assert_close(found.logits, wanted.logits.detach(), **EXACT)
        weights = randn(5, *wanted.logits.shape)
        slow = torch.stack([saliency(wanted.terms(question), psi) for question in weights])
        assert_close(wanted.saliencies(weights, psi), slow, **EXACT)
        for rows in (1, 2 * len(x), 1000):
            monkeypatch.setattr(saliencies, "rows_per_pass", lambda *_, rows=rows: rows)
            assert_close(found.saliencies(weights, psi), slow, **EXACT)


def test_the_way_back_of_a_chain_takes_no_more_rows_than_suit_the_device(monkeypatch):
    met, whole = [], saliencies.over_channels
    monkeypatch.setattr(saliencies, "over_channels", lambda g, *rest: met.append(len(g)) or whole(g, *rest))
    monkeypatch.setattr(saliencies, "rows_per_pass", lambda *_: 7)
    ChainGraph(seeded(late_cnn).eval(), randn(*PICTURES)).saliencies(randn(5, 3, 3), "raw")
    assert set(met) == {6, 3}


def test_what_is_no_chain_of_known_layers_keeps_its_graph():
    hooked, inside = seeded(inplace_cnn).eval(), seeded(inplace_cnn).eval()
    hooked.register_forward_hook(lambda *call: 2 * call[2])
    inside[0].register_forward_hook(lambda *call: 2 * call[2])
    smooth = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.GELU(), nn.Linear(4, 3))).eval()
    batch_norm_first = seeded(lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))).eval()
    drawn_anew = FixedNetwork(seeded(inplace_cnn), 3, resampled=True)
    for network in (hooked, inside, FixedNetwork(hooked), smooth, batch_norm_first, drawn_anew, lambda x: 2 * x):
        x = randn(2, 3) if not isinstance(network, nn.Module) else randn(*PICTURES)
        assert isinstance(logit_graph(network, x), LogitGraph)
    on_pictures = seeded(lambda: nn.Sequential(nn.Linear(8, 6), nn.Flatten(), nn.Linear(144, 3))).eval()
    assert isinstance(logit_graph(on_pictures, randn(*PICTURES)), LogitGraph), "a dense layer on more than features"


def failing(*_):
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("name", ["forward", "__init__"])
def test_a_chain_that_fails_is_not_hidden_by_the_graph(monkeypatch, name):
    monkeypatch.setattr(Convolution, name, failing)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        logit_graph(seeded(late_cnn).eval(), randn(*PICTURES))


def test_a_backward_pass_that_fails_raises(monkeypatch):
    graph = logit_graph(seeded(late_cnn).eval(), randn(*PICTURES))
    monkeypatch.setattr(Flatten, "backward", failing)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        graph.saliencies(randn(1, 3, 3), "raw")


def test_what_the_network_refuses_is_said_by_the_network():
    draw = MCDropout(seeded(late_cnn)).sample(1)[0]
    with pytest.raises(ValueError, match=r"cannot evaluate x of shape \(2, 2, 8, 8\)"):
        fullgrad(draw, randn(3, 2, 8, 8), 0)


# What every explainer promises


@pytest.mark.parametrize("build", [inplace_cnn, late_cnn], ids=lambda build: build.__name__)
def test_the_network_and_x_are_left_untouched(build):
    network = seeded(build).eval()
    network[1].weight.grad = torch.ones_like(network[1].weight)
    x = randn(*PICTURES).requires_grad_()
    before, values = snapshot(network), x.detach().clone()
    fullgrad(network, x, 0)
    with pytest.raises(ValueError, match="unknown psi"):
        fullgrad(network, x, 0, psi="abs")
    assert_same(before, snapshot(network))
    assert torch.equal(x, values) and x.grad is None


def test_it_gives_the_same_inside_no_grad_and_inference_mode():
    network, x, target = seeded(inplace_cnn).eval(), randn(*PICTURES), tensor([0, 2, 1])
    wanted = fullgrad(network, x, target)
    with torch.no_grad():
        assert torch.equal(fullgrad(network, x, target), wanted)
    with torch.inference_mode():
        assert torch.equal(fullgrad(network, x * 1, target * 1), wanted)


def test_it_is_an_explainer_of_draws():
    draws, x = MCDropout(seeded(late_cnn)).sample(3), randn(*PICTURES)
    values = explain(draws, fullgrad, x, 1, psi="raw").values
    for draw, value in zip(draws, values, strict=True):
        assert torch.equal(value, fullgrad(draw, x, 1, psi="raw"))


# Bad input

BAD = {
    "psi": (lambda: fullgrad(seeded(table_mlp).eval(), randn(*TABLE), 0, psi="abs"), "psi 'abs'; known: minmax, raw"),
    "three axes": (lambda: fullgrad(nn.Linear(5, 3).double(), randn(2, 4, 5), 0), r"returned shape \(2, 4, 3\)"),
    "NaN": (lambda: fullgrad(nn.Linear(5, 3).double(), randn(2, 5) / 0 * 0, 0), "x holds 10 NaN"),
    "class": (lambda: fullgrad(seeded(table_mlp).eval(), randn(*TABLE), 3), "target 3 of example 0 is out of range"),
    "no target": (lambda: fullgrad_terms(seeded(table_mlp).eval(), randn(*TABLE)), "pass one class per example"),
    "short target": (
        lambda: fullgrad(seeded(table_mlp).eval(), randn(*TABLE), tensor([0, 1]), chunk=2),
        "target has 2 entries but x has 4",
    ),
    "training": (lambda: fullgrad_terms(seeded(table_mlp), randn(*TABLE), 0), "training mode"),
    "training mode": (lambda: fullgrad(seeded(table_mlp), randn(*TABLE), 0), "training mode"),
    "detached": (lambda: fullgrad(lambda x: x.detach(), randn(*TABLE), 0), "does not depend on x"),
    "constant": (lambda: fullgrad(seeded(OnlyBias), randn(*TABLE), 0), "does not depend on x"),
    "batch statistics": (
        lambda: fullgrad(nn.BatchNorm1d(5, track_running_stats=False).double().eval(), randn(*TABLE), 0),
        "changes with the others of its batch.*a BatchNorm needs running statistics",
    ),
    "examples second": (
        lambda: fullgrad_terms(seeded(FeaturesFirst), randn(*TABLE), 0).total(),
        r"output \(5, 4, 3\) does not begin with the 4 examples",
    ),
}


class OnlyBias(nn.Linear):
    """Trainable, but blind to x."""

    def __init__(self):
        super().__init__(5, 3)

    def forward(self, x):
        return self.bias.expand(len(x), 3)


class FeaturesFirst(nn.Linear):
    """A dense layer on (feature, example, 1)."""

    def __init__(self):
        super().__init__(1, 3)

    def forward(self, x):
        return super().forward(x.T[..., None]).sum(0)


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call()
