"""Guided Backprop, above all where hooks on ReLU modules are silently wrong."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from xuqlib import explain
from xuqlib.explainers.gradients import gradient, guided_backprop
from xuqlib.guided import GuidedMode

TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}  # float64, a few hundred sums


class Mlp(nn.Module):
    """Three linear layers with any way to write a ReLU between them."""

    def __init__(self, relu: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layers = nn.ModuleList([nn.Linear(6, 9), nn.Linear(9, 8), nn.Linear(8, 4)])
        self.relu = relu
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.relu(layer(x))
        return self.layers[-1](x)

    def arrays(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        weights = [layer.weight.detach().numpy() for layer in self.layers]
        return weights, [layer.bias.detach().numpy() for layer in self.layers]


def ignore_result(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


def threshold_at_zero(x: Tensor) -> Tensor:
    return F.threshold(x, 0.0, 0.0)


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place, result ignored": ignore_result,
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "torch.clip": lambda x: torch.clip(x, 0.0),
    "torch.clamp_": lambda x: torch.clamp_(x, min=0.0),
    "Tensor.clamp": lambda x: x.clamp(0),
    "Tensor.clamp_": lambda x: x.clamp_(min=0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(0),
    "F.threshold": threshold_at_zero,
    "F.relu, in place by position": lambda x: F.relu(x, True),
    "Tensor.clamp_min": lambda x: x.clamp_min(0),
    "torch.clamp_min_, a tensor": lambda x: torch.clamp_min_(x, torch.zeros((), dtype=torch.int64)),
    "Tensor.clip_, a tensor for each feature": lambda x: x.clip_(torch.zeros(x.shape[1], dtype=x.dtype)),
    "torch.clamp, tensors": lambda x: torch.clamp(x, torch.tensor(0.0), torch.tensor(float("inf"))),
    "torch.maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "torch.maximum, x second": lambda x: torch.maximum(torch.zeros(()), x),
    "Tensor.maximum": lambda x: x.maximum(torch.tensor(0)),
    "torch.max": lambda x: torch.max(x, torch.zeros_like(x)),
    "torch.fmax": lambda x: torch.fmax(x, torch.tensor(0.0)),
    "F.leaky_relu without slope": lambda x: F.leaky_relu(x, 0.0),
    "F.leaky_relu_ without slope": lambda x: F.leaky_relu_(x, 0.0),
    "nn.LeakyReLU without slope, in place": nn.LeakyReLU(0.0, inplace=True),
    "F.hardtanh with a far ceiling": lambda x: F.hardtanh(x, 0, 1e6),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 1e6),
    "F.threshold_": lambda x: F.threshold_(x, 0, 0),
    "torch.ops.aten.relu": torch.ops.aten.relu,
    "torch.ops.aten.relu_.default": torch.ops.aten.relu_.default,
    "torch.ops.aten.clamp_min": lambda x: torch.ops.aten.clamp_min(x, 0),
    "torch.ops.aten.hardtanh": lambda x: torch.ops.aten.hardtanh(x, 0, 1e6),
    "in place on a view": lambda x: x.view(-1).relu_().view_as(x),
    "torch.jit.script, hidden from every mode": torch.jit.script(nn.ReLU()),
    "nn.ReLU, shared": nn.ReLU(),
    "nn.ReLU in place, shared": nn.ReLU(inplace=True),
    "nn.ReLU, built inside forward": lambda x: nn.ReLU()(x),
    "nn.Threshold, in place": nn.Threshold(0.0, 0.0, inplace=True),
}


def examples(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def captum_guided(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """The usual implementation: hooks on ReLU modules."""
    attr = pytest.importorskip("captum.attr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attr.GuidedBackprop(network).attribute(x.clone(), target=target).detach()


@pytest.fixture
def table() -> tuple[Tensor, Tensor]:
    return examples(7, 6), torch.tensor([0, 1, 2, 3, 0, 1, 2])


@pytest.mark.parametrize("name", RELUS)
def test_every_way_to_write_a_relu_equals_the_pass_by_hand(name: str, table: tuple[Tensor, Tensor]) -> None:
    x, target = table
    network = Mlp(RELUS[name])
    wanted = oracles.guided_mlp(*network.arrays(), x.numpy(), target.numpy())
    torch.testing.assert_close(guided_backprop(network, x, target), torch.from_numpy(wanted), **TIGHT)
    assert not torch.allclose(gradient(network, x, target), torch.from_numpy(wanted))


@pytest.mark.parametrize("name", ["F.relu", "F.relu in place", "nn.ReLU, built inside forward"])
def test_module_hooks_miss_a_relu_that_is_no_submodule_and_give_the_plain_gradient(
    name: str, table: tuple[Tensor, Tensor]
) -> None:
    x, target = table
    network = Mlp(RELUS[name])
    hooked = captum_guided(network, x, target)
    torch.testing.assert_close(hooked, gradient(network, x, target), **TIGHT)
    assert not torch.allclose(hooked, guided_backprop(network, x, target), rtol=0.1)


class Skip(nn.Module):
    """A ReLU whose input also feeds a skip connection."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)])
        self.relu = nn.ReLU()
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers[0](x)
        return self.layers[2](self.layers[1](self.relu(z)) + z)


def test_a_skip_connection_around_a_relu_passes_its_slope_unguided(table: tuple[Tensor, Tensor]) -> None:
    x, target = table
    network = Skip()
    weights = [layer.weight.detach().numpy() for layer in network.layers]
    biases = [layer.bias.detach().numpy() for layer in network.layers]
    wanted = torch.from_numpy(oracles.guided_skip(weights, biases, x.numpy(), target.numpy()))
    torch.testing.assert_close(guided_backprop(network, x, target), wanted, **TIGHT)
    # Hooks on the module see the slope of its input, skip included, and rectify both.
    hooked = captum_guided(network, x, target)
    assert (hooked - wanted).norm() > 0.1 * wanted.norm()


class ReluBothWays(nn.Module):
    """A ReLU whose in-place output overwrites what the skip connection reads."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=in_place)

    def forward(self, x: Tensor) -> Tensor:
        z = x * torch.tensor([1.0, -2.0, 3.0], dtype=x.dtype)
        return (self.relu(z) - z).sum(1)


def test_an_in_place_relu_changes_what_its_skip_connection_reads() -> None:
    x = torch.tensor([[1.0, 1.0, -1.0]], dtype=torch.float64)
    # Out of place: dz = guide(+1) - 1 = 0 where open, -1 where closed. In place: relu(z) - relu(z) = 0 everywhere.
    torch.testing.assert_close(
        guided_backprop(ReluBothWays(False), x), torch.tensor([[0.0, 2.0, -3.0]], dtype=torch.float64)
    )
    torch.testing.assert_close(guided_backprop(ReluBothWays(True), x), torch.zeros_like(x))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.resnet18(num_classes=5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.2)
    return network.double().eval()


def test_in_place_relus_of_resnet_blocks_equal_the_pass_by_hand(resnet: nn.Module) -> None:
    x, target = examples(2, 3, 32, 32), torch.tensor([1, 4])
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    wanted = oracles.guided_resnet(resnet, x, target).detach()
    close = {"rtol": 1e-10, "atol": 1e-10 * float(wanted.abs().max())}
    torch.testing.assert_close(guided_backprop(resnet, x, target), wanted, **close)
    # Here every ReLU is a module whose input feeds nothing else, so hooks are right too: a second, independent oracle.
    torch.testing.assert_close(captum_guided(resnet, x, target), wanted, **close)
    assert not torch.allclose(gradient(resnet, x, target), wanted, rtol=0.1)
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())


def test_a_first_in_place_relu_leaves_x_alone(table: tuple[Tensor, Tensor]) -> None:
    x, target = table
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)).double()
    before = x.clone()
    weight = network[1].weight.detach()
    wanted = weight[target] * (weight[target] > 0) * (x > 0)
    torch.testing.assert_close(guided_backprop(network, x, target), wanted, **TIGHT)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "relu6", [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, lambda x: x.clamp(0, 6), lambda x: F.hardtanh(x, 0.0, 6.0)]
)
def test_relu6_is_closed_above_six_as_well(relu6: Callable[[Tensor], Tensor]) -> None:
    weight = torch.tensor([2.0, 3.0, -1.0, 4.0], dtype=torch.float64)
    x = torch.tensor([[-1.0, 5.0, 5.0, 7.0]], dtype=torch.float64)
    attribution = guided_backprop(lambda batch: relu6(batch * 1.0) @ weight, x)
    torch.testing.assert_close(attribution, torch.tensor([[0.0, 3.0, 0.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("ceiling", [1, 2.5])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_hardtanh_from_zero_is_a_relu_with_any_ceiling(ceiling: float, in_place: bool) -> None:
    weight = torch.tensor([2.0, 3.0, -1.0, 4.0], dtype=torch.float64)
    x = torch.tensor([[-1.0, 0.5, 0.5, 3.0]], dtype=torch.float64)
    attribution = guided_backprop(lambda batch: F.hardtanh(batch * 1.0, 0, ceiling, in_place) @ weight, x)
    torch.testing.assert_close(attribution, torch.tensor([[0.0, 3.0, 0.0, 0.0]], dtype=torch.float64))


NO_RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp on both sides": lambda x: x.clamp(-1, 1),
    "clamp at a half": lambda x: x.clamp(min=0.5),
    "clamp from above": lambda x: x.clamp(max=0),
    "clamp to pictures": lambda x: x.clamp(0, 1),
    "clamp at a half for one feature": lambda x: x.clamp(min=torch.tensor([0.0, 0.5, 0.0])),
    "clamp with a ceiling for each feature": lambda x: x.clamp(x.new_zeros(3), x.new_ones(3)),
    "the larger of two": lambda x: torch.maximum(x, x.flip(1)),
    "the largest": lambda x: torch.max(x, 1, keepdim=True).values,
    "threshold with a jump": lambda x: F.threshold(x, 0.0, -1.0),
}


@pytest.mark.parametrize("clamp", NO_RELUS.values(), ids=NO_RELUS)
def test_a_clamp_that_is_no_relu_is_left_alone(clamp: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor([[-0.3, 0.7, 3.0]], dtype=torch.float64)
    network = lambda batch: -clamp(batch).sum(1)  # noqa: E731 - a guided clamp would stop this negative slope
    with pytest.warns(UserWarning, match="no ReLU"):
        attribution = guided_backprop(network, x)
    torch.testing.assert_close(attribution, gradient(network, x))
    assert (attribution != 0).any()


@pytest.mark.parametrize("name", [name for name in RELUS if not name.startswith("torch.jit")])
def test_a_network_may_write_into_what_its_relus_return(name: str, table: tuple[Tensor, Tensor]) -> None:
    x, target = table
    network = Mlp(lambda z: RELUS[name](z).mul_(2).sub_(3))
    weights, biases = network.arrays()
    # The same network with the step behind each ReLU put into the next layer.
    biases = [biases[0], *(b - 3 * w.sum(1) for w, b in zip(weights[1:], biases[1:], strict=True))]
    weights = [weights[0], *(2 * w for w in weights[1:])]
    wanted = oracles.guided_mlp(weights, biases, x.numpy(), target.numpy())
    torch.testing.assert_close(guided_backprop(network, x, target), torch.from_numpy(wanted), **TIGHT)


def test_relus_inside_a_recurrent_layer_equal_the_pass_by_hand() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        rnn = nn.RNN(3, 4, nonlinearity="relu", batch_first=True).double()
    x = examples(2, 5, 3)
    inside, own = rnn.weight_ih_l0.detach(), rnn.weight_hh_l0.detach()
    h, inputs = torch.zeros(2, 4, dtype=torch.float64), []
    for step in range(5):
        inputs.append(x[:, step] @ inside.T + h @ own.T + (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach())
        h = inputs[-1].clamp(min=0)
    wanted, slope = torch.zeros_like(x), torch.ones(2, 4, dtype=torch.float64)
    for step in reversed(range(5)):
        slope = slope * (slope > 0) * (inputs[step] > 0)
        wanted[:, step], slope = slope @ inside, slope @ own
    network = lambda batch: rnn(batch)[0][:, -1].sum(1)  # noqa: E731
    torch.testing.assert_close(guided_backprop(network, x), wanted, **TIGHT)
    assert not torch.allclose(gradient(network, x), wanted)


class RectifierOfOnesOwn(torch.autograd.Function):
    """A ReLU that no call of torch makes with a graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.relu(x)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * (ctx.saved_tensors[0] > 0)


UNGUIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "PreluKernel": lambda z: F.prelu(z, z.new_zeros(1)),
    "LeakyRelu": F.leaky_relu,
    "RreluWithNoise": F.rrelu,
    "Elu": F.selu,
    "Celu": F.celu,
    "Gelu": F.gelu,
    "Silu": F.silu,
    "Mish": F.mish,
    "Softplus": F.softplus,
    "Hardswish": F.hardswish,
    "gt(x, 0)": lambda z: z * (z > 0),
    "lt(x, 0)": lambda z: z.masked_fill(z < 0, 0),
    "ge(x, 0)": lambda z: torch.where(z >= 0.0, z, 0),
    "clamp(0, 1)": lambda z: z.clamp(0, 1),
    "RectifierOfOnesOwn": RectifierOfOnesOwn.apply,
}


@pytest.mark.parametrize("name", UNGUIDED)
@pytest.mark.parametrize("several", [False, True])
def test_what_is_not_guided_beside_a_relu_is_warned_about_by_name(
    name: str, several: bool, table: tuple[Tensor, Tensor]
) -> None:
    x, target = table
    mlp = Mlp(UNGUIDED[name])
    network = nn.Sequential(mlp, nn.ReLU(), nn.Linear(4, 4).double()).eval()

    def over_draws(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        return explain([network, network], guided_backprop, x, target, device="cpu").values[1]

    with pytest.warns(UserWarning, match=re.escape(name)) as caught:
        attribution = (over_draws if several else guided_backprop)(network, x, target)
    assert len(caught) == 1
    head, hidden = network[2].weight[target], mlp(x)
    wanted = torch.autograd.functional.vjp(mlp, x, head * (head > 0) * (hidden > 0))[1]
    torch.testing.assert_close(attribution, wanted, **TIGHT)


def test_what_does_not_depend_on_x_is_no_reason_to_warn(table: tuple[Tensor, Tensor]) -> None:
    scale = torch.ones(4, requires_grad=True)
    mlp = Mlp(F.relu)
    factor = lambda batch: F.softplus(scale) * F.gelu(batch.detach())[:, :4].exp()  # noqa: E731 - above 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribution = guided_backprop(lambda batch: mlp(batch) * factor(batch), *table)
    x, target = table
    wanted = guided_backprop(mlp, x, target) * factor(x).gather(1, target[:, None]).detach()
    torch.testing.assert_close(attribution, wanted, **TIGHT)


def test_a_relu_inside_an_autograd_function_of_ones_own_is_none_that_was_guided(table: tuple[Tensor, Tensor]) -> None:
    network = Mlp(RectifierOfOnesOwn.apply)
    with pytest.warns(UserWarning, match="no ReLU"):
        attribution = guided_backprop(network, *table)
    torch.testing.assert_close(attribution, gradient(network, *table), **TIGHT)


def test_the_larger_of_x_and_zeros_has_the_shape_and_dtype_of_both() -> None:
    x = torch.tensor([[2.0, -1.0]])
    zeros = torch.zeros(2, 3, 1, 2, dtype=torch.float64)  # x counts six times
    network = lambda batch: torch.maximum(zeros, batch).sum((0, 1, 3))  # noqa: E731
    assert network(x).dtype == torch.float64
    assert guided_backprop(network, x).tolist() == [[6.0, 0.0]]


def test_whole_numbers_that_are_clamped_are_no_relu() -> None:
    table = examples(5, 3)
    with pytest.warns(UserWarning, match="no ReLU"):
        guided_backprop(lambda batch: (batch @ table.T)[:, batch.long().argmax(1).clamp(min=0)].sum(1), examples(2, 3))


def test_without_any_relu_a_warning_says_that_it_is_the_plain_gradient(table: tuple[Tensor, Tensor]) -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    with pytest.warns(UserWarning, match="no ReLU, so guided_backprop gave the plain gradient"):
        attribution = guided_backprop(network, *table)
    torch.testing.assert_close(attribution, gradient(network, *table))


class Doubling(TorchFunctionMode):
    """Another mode: doubles whatever torch.square returns, and counts the calls that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # as torch has it
        out = func(*args, **(kwargs or {}))
        if func is torch.square:
            self.seen += 1
            return 2 * out
        return out


def test_guided_mode_composes_with_another_mode_outside_and_inside() -> None:
    x = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, -1.0], dtype=torch.float64)
    plain = lambda batch: torch.square(F.relu(batch)) @ weight  # noqa: E731
    guided_backprop(plain, x)  # it is tried out once

    def with_mode_inside(batch: Tensor) -> Tensor:
        with Doubling() as mode:
            out = plain(batch)
        assert mode.seen == 1
        return out

    wanted = torch.tensor([[12.0, 0.0]], dtype=torch.float64)  # 2 * 2 * relu(3)
    torch.testing.assert_close(guided_backprop(with_mode_inside, x), wanted)
    with Doubling() as outside:
        attribution = guided_backprop(plain, x)
    assert outside.seen == 1
    torch.testing.assert_close(attribution, wanted)


@pytest.mark.parametrize(
    "name", ["F.relu", "nn.ReLU in place, shared", "Tensor.clamp_min_", "torch.maximum", "F.hardtanh_"]
)
def test_guided_mode_under_vmap_over_weights_equals_one_network_after_another(
    name: str, table: tuple[Tensor, Tensor]
) -> None:
    x, target = table
    networks = [Mlp(RELUS[name]) for _ in range(3)]
    for number, network in enumerate(networks):
        for parameter in network.parameters():
            parameter.data += 0.1 * number
    stacked = torch.func.stack_module_state(networks)

    def logits(state: tuple[dict[str, Tensor], dict[str, Tensor]], batch: Tensor) -> Tensor:
        return torch.func.functional_call(networks[0], state, (batch,))

    copies = x.expand(3, *x.shape).clone().requires_grad_()
    with GuidedMode():
        out = torch.vmap(logits)(stacked, copies)  # (draw, example, class)
    picked = out.gather(2, target.expand(3, -1)[..., None]).sum()
    wanted = torch.stack([guided_backprop(network, x, target) for network in networks])
    torch.testing.assert_close(torch.autograd.grad(picked, copies)[0], wanted, **TIGHT)


def test_guided_mode_under_vmap_of_grad_equals_the_pass_by_hand(table: tuple[Tensor, Tensor]) -> None:
    x, target = table
    network = Mlp(F.relu)

    def logit(example: Tensor, label: Tensor) -> Tensor:
        with GuidedMode():
            return network(example[None])[0].gather(0, label[None]).squeeze()

    found = torch.vmap(torch.func.grad(logit))(x, target)
    torch.testing.assert_close(found, guided_backprop(network, x, target).detach(), **TIGHT)
