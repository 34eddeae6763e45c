"""Posteriors stand around any network: they find its output layer, copy it whole, or refuse it in one sentence."""

from __future__ import annotations

import random
import threading
import warnings
from typing import Any

import pytest
import torch
from core_networks import EXACT, assert_same, clones, loop, randn, seeded, snapshot, table_mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

from xuqlib import DeepEnsemble, Draws, Flipout, Laplace, MCDropConnect, MCDropout, explain, gradient
from xuqlib.posteriors.kinds import weighted_layers

X = randn(4, 5)


def loader(x: Tensor, y: Tensor, **options: Any) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), **{"batch_size": 8, **options})


def classes(count: int = 24) -> tuple[Tensor, Tensor]:
    return randn(count, 5), torch.arange(count) % 3


class Net(nn.Module):
    """A forward pass of one's own over layers registered in a misleading order."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.steps = forward

    def forward(self, x: Tensor) -> Any:
        return self.steps(self, x)


def pair(forward: Any, **more: nn.Module) -> Net:
    """`out` is registered before what it stands on, and an unused `aux` comes last."""
    return Net(forward, out=nn.Linear(8, 3), hid=nn.Linear(5, 8), **more, aux=nn.Linear(8, 3))


def plainly(n: Any, x: Tensor) -> Tensor:
    return n.out(torch.relu(n.hid(x)))


def temperature() -> nn.Module:
    network = pair(lambda n, x: plainly(n, x) / n.temperature.exp())
    network.temperature = nn.Parameter(torch.zeros(1))
    return network


def keeping() -> nn.Module:
    """Keeps its features, as for a CAM: a tensor in the middle of a graph, also inside a list and a dict."""

    def forward(n: Any, x: Tensor) -> Tensor:
        n.features = torch.relu(n.hid(x))
        n.kept = [{"features": n.features}]
        return n.out(n.drop(n.features))

    return pair(forward, drop=nn.Dropout(0.5))


def control_flow(n: Any, x: Tensor) -> Tensor:
    return plainly(n, x if x.sum() > -1e9 else -x)


class WithOptions(Net):
    def forward(self, x: Tensor, labels: Tensor | None = None, scale: float = 1.0) -> Any:
        out = self.steps(self, x * scale)
        return out if labels is None else (F.cross_entropy(out, labels), out)


OUTPUTS: dict[str, tuple[Any, str]] = {
    "registered first": (lambda: pair(plainly), "out"),
    "followed by a softmax": (lambda: pair(lambda n, x: plainly(n, x).softmax(-1)), "out"),
    "followed by a squeeze": (lambda: pair(lambda n, x: plainly(n, x)[:, :1].squeeze(1)), "out"),
    "followed by a learned temperature": (temperature, "out"),
    "followed by normalisation": (lambda: pair(lambda n, x: n.norm(plainly(n, x)), norm=nn.BatchNorm1d(3)), "out"),
    "called twice": (lambda: pair(lambda n, x: plainly(n, x) - plainly(n, -x)), "out"),
    "registered twice": (lambda: Net(lambda n, x: n.b(n.h(x)), a=(a := nn.Linear(8, 3)), b=a, h=nn.Linear(5, 8)), "a"),
    "inside a head": (
        lambda: pair(lambda n, x: n.head(n.hid(x)), head=nn.Sequential(nn.ReLU(), nn.Linear(8, 3))),
        "head.1",
    ),
    "behind code that cannot be traced": (
        lambda: Net(lambda n, x: n.out(n.body(x)), out=nn.Linear(3, 3), body=pair(control_flow)),
        "out",
    ),
    "with options that are left out": (lambda: WithOptions(plainly, out=nn.Linear(8, 3), hid=nn.Linear(5, 8)), "out"),
    "in eval mode alone": (lambda: pair(lambda n, x: (plainly(n, x), x) if n.training else plainly(n, x)), "out"),
    "in the shape of x": (lambda: pair(lambda n, x: plainly(n, x).view(x.size(0), -1, x.shape[1] - 4)), "out"),
    "times a random number": (lambda: pair(lambda n, x: plainly(n, x) * torch.rand(1)), "out"),
    "convolution": (
        lambda: Net(lambda n, x: n.out(n.hid(x)).mean(2), out=nn.Conv1d(2, 3, 1), hid=nn.Conv1d(1, 2, 1)),
        "out",
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.usefixtures("untouched_generators")
def test_the_layer_that_gives_the_output_is_found(name):
    build, layer = OUTPUTS[name]
    network = seeded(build)
    before, own = snapshot(network), dict(vars(network))
    assert weighted_layers(network) == [layer]
    assert MCDropConnect(network).layers == [layer]
    assert_same(before, snapshot(network))
    assert vars(network) == own, "looking at the code left something in the network"


@pytest.mark.parametrize(
    "forward",
    [
        control_flow,
        lambda n, x: plainly(n, x) + F.pad(x, (0, -2)),
        lambda n, x: torch.cat([n.out(n.hid(x)), n.aux(n.hid(x))], 1),
        lambda n, x: (n.out(n.hid(x)), n.hid(x)),
        lambda n, x: F.linear(n.hid(x), n.out.weight),
    ],
    ids=["control flow", "beside a skip connection", "two heads", "with features", "its weight read, not called"],
)
@pytest.mark.parametrize("method", [MCDropConnect, Flipout, Laplace])
def test_where_no_layer_alone_can_be_seen_to_give_the_output_its_name_is_asked_for(forward, method):
    network = pair(forward)
    with pytest.raises(ValueError, match="cannot see which layers of Net placement 'last' means; .* list of .*'aux'"):
        method(network)
    named = {"layer": "out"} if method is Laplace else {"placement": ["out"]}
    assert method(network, **named) is not None


def test_an_unused_head_stays_as_it_is_and_the_output_layer_is_drawn():
    network = seeded(lambda: pair(plainly))
    draw = MCDropConnect(network, p=0.5).sample(1, seed=1)[0].network
    assert torch.equal(draw.aux.weight, network.aux.weight)
    assert not torch.equal(draw.out.weight, network.out.weight)
    assert_close(draw(X), F.linear(torch.relu(network.hid(X)), draw.out.layer.weight, network.out.bias), **EXACT)


def test_a_layer_of_two_names_is_random_under_both():
    posterior = MCDropConnect(seeded(OUTPUTS["registered twice"][0]), p=0.5)
    assert posterior.network.a is posterior.network.b
    draws = posterior.sample(2, seed=1)
    assert draws[0].network.a.layer.weight is draws[0].network.b.layer.weight
    assert not torch.equal(*draws(X))


@pytest.mark.parametrize("method", [MCDropConnect, Flipout, lambda n: Laplace(n, layer="out")])
def test_a_layer_whose_weight_is_another_layers_too_is_refused(method):
    network = Net(lambda n, x: n.out(n.emb(x.long()).mean(1)), emb=nn.Embedding(7, 4), out=nn.Linear(4, 7, bias=False))
    network.out.weight = network.emb.weight
    with pytest.raises(ValueError, match="weights of layer 'out' are .*another layer's too"):
        method(network)


def test_an_empty_weight_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about such a layer
        network = nn.Sequential(nn.Linear(5, 0), nn.Linear(0, 3))
    with pytest.raises(ValueError, match="weights of layer '1' are empty"):
        MCDropConnect(network)


TRANSPOSED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "1d": (lambda: nn.ConvTranspose1d(2, 3, 2, stride=2), (4, 2, 5)),
    "2d": (lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, groups=2), (4, 2, 5, 4)),
    "3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (4, 2, 3, 3, 3)),
}


@pytest.mark.parametrize("method", [MCDropConnect, Flipout])
@pytest.mark.parametrize("kind", TRANSPOSED)
def test_transposed_convolutions_are_drawn_and_trained(kind, method):
    build, shape = TRANSPOSED[kind]
    network = seeded(lambda: nn.Sequential(build(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), dtype=torch.float32)
    x = randn(*shape, dtype=torch.float32)
    network(x)
    posterior = method(network, placement="all")
    assert posterior.layers == ["0", "3"]
    draws = posterior.sample(2, seed=1)
    assert_close(draws(x), loop(draws, x))
    assert not torch.equal(draws[0].network[0].layer.weight, draws[1].network[0].layer.weight)
    with torch.random.fork_rng():
        posterior.network.train()(x).sum().backward()
    assert posterior.network[0].layer.weight.grad.abs().sum() > 0


def test_flipouts_signs_factorise_over_a_transposed_convolution():
    layer = Flipout(seeded(TRANSPOSED["2d"][0]), initial_std=0.3).network
    x, signs = randn(2, 2, 5, 4), []
    layer._random_signs = lambda t: (
        signs.append(torch.where(randn(*t.shape[:2], seed=len(signs)) > 0, 1.0, -1.0))
        or (signs[-1].double()[:, :, None, None])
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        given = layer.train()(x)
        torch.manual_seed(3)
        noise = layer.std * torch.randn_like(layer.rho)
    for row in range(2):  # by hand: one weight per example, its noise under the signs of its inputs and outputs
        inputs, outputs = signs[0][row], signs[1][row].view(2, 2)  # (groups, outputs of a group)
        weight = layer.weight + noise * inputs[:, None, None, None] * outputs[:, :, None, None]
        wanted = F.conv_transpose2d(x[row : row + 1], weight, layer.bias, stride=2, groups=2)
        assert_close(given[row : row + 1], wanted, **EXACT)


def test_a_random_layer_takes_the_output_size_of_a_transposed_convolution():
    up = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    network = seeded(lambda: Net(lambda n, x: n.up(x, output_size=[8, 8]), up=up))
    x = randn(2, 2, 4, 4)
    for method in (MCDropConnect, Flipout):
        posterior = method(network)
        with torch.random.fork_rng():
            assert posterior.network.train()(x).shape == posterior.network.eval()(x).shape == (2, 3, 8, 8)


def parametrized(kind: str) -> nn.Module:
    wrap = {
        "weight_norm": parametrizations.weight_norm,
        "spectral_norm": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
        "old weight_norm": nn.utils.weight_norm,
        "old spectral_norm": nn.utils.spectral_norm,
        "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.4),
        "pruned twice": lambda layer: prune.random_unstructured(prune.l1_unstructured(layer, "weight", 2), "weight", 2),
        "both": lambda layer: parametrizations.weight_norm(parametrizations.weight_norm(layer), "bias", dim=None),
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old weight_norm announces its end
        network = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.4), wrap(nn.Linear(4, 3))))
    network(X)  # and so it has been used
    return network.eval()


PARAMETRIZED = [
    *("weight_norm", "spectral_norm", "orthogonal", "old weight_norm", "old spectral_norm"),
    *("pruned", "pruned twice", "both"),
]


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_draws_of_a_parametrized_network_answer_as_it_does_and_leave_it_as_it_is(kind):
    network = parametrized(kind)
    before, wanted = snapshot(network), network(X)
    draws = DeepEnsemble([network]).sample()
    assert_close(draws(X)[0], wanted, **EXACT)
    explain(draws, "gradient", X, 1), draws.to(torch.float64)
    assert_close(draws(X)[0], wanted, **EXACT)
    assert_same(before, snapshot(network))
    assert torch.equal(network(X), wanted), "the network itself is as parametrized as before"
    draws = MCDropout(network).sample(2, seed=1)
    assert_close(draws(X), loop(draws, X), **EXACT)


@pytest.mark.parametrize("method", [MCDropConnect, Flipout, Laplace])
@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_posteriors_over_a_layer_refuse_its_parametrization(kind, method):
    network = parametrized(kind)
    with pytest.raises(
        ValueError, match=r"weights of layer '3' are .*computed by a parametrization.*; give it its own"
    ):
        method(network)
    if method is not Laplace:
        assert method(network, placement=["0"]).sample(2)(X).shape == (2, 4, 3), "another layer's is no obstacle"


def test_dropout_in_a_users_parametrization_is_drawn():
    network = nn.Linear(5, 3, dtype=torch.float64)
    parametrize.register_parametrization(network, "weight", nn.Dropout(0.5))
    draws = MCDropout(network).sample(2, seed=1)
    assert parametrize.is_parametrized(draws[0].network)
    with pytest.raises(ValueError, match="weights of layer '' are .*computed by a parametrization"):
        Laplace(network)


class Data(nn.DataParallel):
    """Of no device, as on a machine without any."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


WRAPPERS = {"compiled": lambda n: torch.compile(n, backend="eager"), "data parallel": Data}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inside", [False, True])
def test_wrapped_networks_are_drawn_as_those_inside_of_them(wrapper, inside):
    network, wrap = seeded(table_mlp), WRAPPERS[wrapper]
    wrapped = nn.Sequential(*network[:3], wrap(network[3:])) if inside else Data(wrap(network))
    plain = nn.Sequential(*network[:3], network[3:]) if inside else network
    before = snapshot(wrapped)
    posteriors = {
        "ensemble": lambda n: DeepEnsemble([n, n]),
        "dropout": MCDropout,
        "dropconnect": lambda n: MCDropConnect(n, placement="all"),
        "flipout": Flipout,
        "laplace": lambda n: Laplace(n).fit(loader(*classes())),
    }
    for name, build in posteriors.items():
        assert torch.equal(build(wrapped).sample(2, seed=1)(X), build(plain).sample(2, seed=1)(X)), name
    assert_same(before, snapshot(wrapped))


def test_a_network_compiled_in_place_is_copied_without_that():
    network = seeded(table_mlp)
    network.compile(backend="eager")
    copied = DeepEnsemble([network]).sample()[0].network
    assert copied._compiled_call_impl is None and network._compiled_call_impl is not None


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of these
        return torch.ao.quantization.quantize_dynamic(table_mlp().eval(), {nn.Linear})


@pytest.mark.parametrize(
    "posterior", [MCDropout, MCDropConnect, Flipout, Laplace, lambda network: DeepEnsemble([network])]
)
@pytest.mark.parametrize(
    ("build", "error", "what"),
    [
        (quantized, TypeError, "layer 0 hides its operations: .*quantized"),
        (
            lambda: torch.export.export(table_mlp().eval(), (torch.zeros(4, 5),)).module(),
            TypeError,
            r"layer \(itself\) hides its operations: .*exported",
        ),
        (
            lambda: nn.Sequential(nn.Dropout(0.5), nn.LazyLinear(3)),
            ValueError,
            "tensor '1.weight' holds no dense numbers: .*not initialised",
        ),
        (
            lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3, device="meta")),
            ValueError,
            "'1.weight' holds no dense numbers: .*meta",
        ),
        (lambda: sparse(), ValueError, "tensor '1.weight' holds no dense numbers: .*sparse"),
        (lambda: replaced(), TypeError, "layer 0 hides its operations: .*replaced its forward"),
        (lambda: {"a": table_mlp()}, TypeError, "got a dict; pass a network"),
    ],
    ids=["quantized", "exported", "lazy", "meta", "sparse", "forward replaced", "no network"],
)
def test_what_hides_its_operations_or_has_no_numbers_is_refused(posterior, build, error, what):
    with pytest.raises(error, match=what):
        posterior(build())


def sparse() -> nn.Module:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))
    network[1].weight = nn.Parameter(network[1].weight.detach().to_sparse())
    return network


def replaced() -> nn.Module:
    network = table_mlp()
    layer = network[0]
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias)
    return network


def test_a_graph_module_is_a_network_like_any_other():
    network = seeded(table_mlp)
    traced = torch.fx.symbolic_trace(network)
    for build in (MCDropConnect, lambda n: DeepEnsemble([n])):
        assert torch.equal(build(traced).sample(1, seed=1)(X), build(network).sample(1, seed=1)(X))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name_when_sampled(value):
    posteriors = [
        build(seeded(table_mlp)) for build in (MCDropout, MCDropConnect, Flipout, lambda n: DeepEnsemble([n]))
    ]
    fitted = Laplace(seeded(table_mlp)).fit(loader(*classes()))
    for posterior in [*posteriors, fitted]:
        bias = posterior.network[0].bias
        bias.data[1] = value
        with pytest.raises(ValueError, match=r"Sequential holds NaN or infinite weights in '0\.bias'"):
            posterior.sample(1)


def test_a_mask_of_minus_infinity_is_no_weight():
    network = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5))
    network.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    assert len(MCDropout(network).sample(2)) == 2


def test_what_a_network_keeps_of_its_last_forward_pass_is_no_obstacle():
    network = seeded(keeping)
    network(X)
    features = network.features
    for build in (
        MCDropout,
        MCDropConnect,
        lambda n: DeepEnsemble([n, n]),
        lambda n: Laplace(n).fit(loader(*classes())),
    ):
        draws = build(network).sample(2, seed=1)
        assert_close(draws(X), loop(draws, X), **EXACT)
    assert network.features is features and features.grad_fn is not None
    kept = DeepEnsemble([network]).sample()[0].network
    assert torch.equal(kept.kept[0]["features"], features) and kept.features.grad_fn is None
    assert kept.kept[0]["features"] is kept.features, "what was one tensor is one tensor"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (lambda: (i for i in range(3)), "generator"),
        (threading.Lock, "lock"),
        (lambda: [{"file": open(__file__)}], "TextIOWrapper"),  # noqa: SIM115
    ],
)
def test_what_cannot_be_copied_is_refused_by_the_name_of_its_layer(value, what):
    network = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5))
    network[0].thing = held = value()
    for build in (lambda n: MCDropout(n).sample(2), lambda n: DeepEnsemble([n]).sample(), Flipout, Laplace):
        with pytest.raises(TypeError, match=rf"cannot copy Sequential because of .*its layer 0 \(.*{what}"):
            build(network)
    if isinstance(held, list):
        held[0]["file"].close()


def test_an_error_that_is_no_attributes_fault_is_not_renamed():
    class Odd(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("a bug of the network's own")

    with pytest.raises(RuntimeError, match="^a bug of the network's own$"):
        DeepEnsemble([Odd(5, 3)]).sample()


def test_draws_that_answer_in_other_shapes_or_types_are_refused():
    with pytest.raises(ValueError, match=r"the draws answer \(4, 2\) torch.float64 on cpu and \(4, 3\) torch.float64"):
        DeepEnsemble([seeded(lambda size=size: nn.Linear(5, size)) for size in (3, 2)]).sample()(X)
    members = [nn.Linear(5, 3), nn.Linear(5, 3, dtype=torch.float64)]
    with pytest.raises(ValueError, match="cannot evaluate .*dtype"):
        DeepEnsemble(members).sample()(X)


def test_draws_know_what_their_networks_answer():
    ensemble = DeepEnsemble(clones(table_mlp, 3))
    assert ensemble.sample().output is None
    ensemble.output = "regression"
    draws = ensemble.sample()
    assert draws.output == draws[:2].output == "regression"
    assert Draws(list(draws)).output is None
    assert Laplace(seeded(table_mlp)).fit(loader(*classes())).sample(2).output == "logits"
    assert Laplace(seeded(table_mlp)).fit(loader(X, randn(4, 3))).sample(2).output == "regression"


class Threaded(nn.Linear):
    """Answers as a linear layer; while it is asked for the first time, another thread draws random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if not vars(self).setdefault("asked", 0):
            thread = threading.Thread(target=random.random)
            thread.start()
            thread.join()
        self.asked += 1
        return super().forward(x)


def test_random_numbers_of_another_thread_are_not_taken_for_the_networks():
    network, x = Threaded(3, 2).eval(), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert_close(gradient(network, x, 1), network.weight[1].expand(4, 3).detach())
