"""Draws are fixed functions, and evaluating them at once equals the plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from core_networks import (
    EXACT,
    WITH_DROPOUT,
    WITHOUT_DROPOUT,
    CarelessDropout,
    NoiseInside,
    OneOutput,
    assert_same,
    clones,
    inplace_cnn,
    late_cnn,
    loop,
    pickled,
    randn,
    seeded,
    snapshot,
    table_mlp,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from xuqlib import DeepEnsemble, Draws, Flipout, Laplace, MCDropConnect, MCDropout, Posterior, explain, gradient
from xuqlib.posteriors.fixing import FixedNetwork, RandomNetworkError, generator_of
from xuqlib.posteriors.shared import split


def fitted_laplace(network: nn.Module, shape: tuple[int, ...]) -> Laplace:
    x = randn(16, *shape[1:], seed=5, dtype=torch.float32)
    pairs = torch.utils.data.TensorDataset(x, torch.arange(16) % 3)
    return Laplace(network.float()).fit(torch.utils.data.DataLoader(pairs, batch_size=8))


def table_posteriors() -> dict[str, Callable[[], Posterior]]:
    return {
        "mc_dropout": lambda: MCDropout(seeded(table_mlp)),
        "mc_dropconnect": lambda: MCDropConnect(seeded(table_mlp), placement="all"),
        "flipout": lambda: Flipout(seeded(table_mlp), placement="all"),
        "deep_ensemble": lambda: DeepEnsemble(clones(table_mlp, 4)),
        "laplace": lambda: fitted_laplace(seeded(table_mlp), (4, 5)),
    }


@pytest.fixture(params=table_posteriors())
def posterior(request: pytest.FixtureRequest) -> Posterior:
    return table_posteriors()[request.param]()


def table(posterior: Posterior, num_examples: int = 4) -> Tensor:
    return randn(num_examples, 5).to(next(posterior.network.parameters()))


@pytest.fixture(params=WITH_DROPOUT)
def dropout_case(request: pytest.FixtureRequest) -> tuple[Draws, Tensor]:
    build, shape = WITH_DROPOUT[request.param]
    return MCDropout(seeded(build)).sample(3, seed=1), randn(*shape)


def test_dropout_draws_at_once_equal_the_loop_over_draws(dropout_case):
    draws, x = dropout_case
    together = draws(x)
    assert_close(together, loop(draws, x), **EXACT)
    assert not torch.allclose(together[0], together[1]), "the draws do not differ"


@pytest.mark.parametrize("method", [MCDropConnect, Flipout])
@pytest.mark.parametrize("placement", ["last", "all"])
@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_weight_draws_at_once_equal_the_loop_over_draws(name, method, placement):
    build, shape = WITHOUT_DROPOUT[name]
    draws = method(seeded(build), placement=placement).sample(3, seed=1)
    x = randn(*shape)
    together = draws(x)
    assert_close(together, loop(draws, x), **EXACT)
    assert not torch.allclose(together[0], together[1]), "the draws do not differ"


def test_a_draw_answers_the_same_twice_after_other_calls_and_in_another_order(dropout_case):
    draws, x = dropout_case
    first = draws[0](x)
    draws[1](x), draws(x), draws[0](x[:1])  # whatever else is asked in between
    assert torch.equal(draws[0](x), first)
    assert torch.equal(torch.stack([n(x) for n in reversed(list(draws))][::-1]), torch.stack([n(x) for n in draws]))


def test_an_answer_does_not_depend_on_the_other_examples_in_the_batch(dropout_case):
    draws, x = dropout_case
    whole = draws(x)
    # Another batch size may choose another kernel, whose rounding differs.
    assert_close(torch.cat([draws(row[None]) for row in x], 1), whole, **EXACT)
    assert_close(draws(x.flip(0)).flip(1), whole, **EXACT)
    others = torch.cat([x[:1], 100 * randn(6, *x.shape[1:], seed=9)])
    assert_close(draws(others)[:, :1], whole[:, :1], **EXACT)


def test_the_first_draws_are_the_same_however_many_are_drawn(posterior):
    x = table(posterior)
    many, few = posterior.sample(4, seed=3), posterior.sample(2, seed=3)
    assert torch.equal(many(x)[:2], few(x))
    assert torch.equal(many[:2](x), few(x))


def test_the_same_seed_gives_the_same_draws_and_another_gives_others(posterior):
    x = table(posterior)
    one, again, other = (posterior.sample(3, seed=seed)(x) for seed in (3, 3, 4))
    assert torch.equal(one, again)
    if posterior.name != "deep_ensemble":  # whose members are given, not drawn
        assert all(not torch.allclose(a, b) for a in one for b in other)
        assert not torch.allclose(one[0], one[1])


def test_draws_keep_their_names_when_sliced(posterior):
    posterior.noise_variance = 0.3
    draws = posterior.sample(4)
    assert (len(draws), len(draws[1:]), len(list(draws))) == (4, 3, 4)
    assert draws[1:].posterior == posterior.name
    assert draws[1:].noise_variance == 0.3
    assert posterior.name in repr(draws)
    with pytest.raises(IndexError):
        draws[4]


@pytest.mark.usefixtures("untouched_generators")
def test_the_training_network_is_left_as_it_was_found(posterior):
    network = posterior.network.train()
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    next(network.parameters()).requires_grad_(False)
    before = snapshot(network)
    x = table(posterior)
    draws = posterior.sample(3, seed=1)
    draws(x), explain(draws, gradient, x, progress=False)
    assert_same(before, snapshot(network))
    for draw in draws:  # nothing is shared with it either
        assert not draw.training
        assert {id(p) for p in draw.parameters()}.isdisjoint(id(p) for p in network.parameters())
        draw(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert not torch.equal(draws(x), posterior.sample(3, seed=1)(x)), "the draws follow the training network"


def test_draws_do_not_depend_on_the_default_dtype(monkeypatch, posterior):
    x = table(posterior)
    expected = posterior.sample(2, seed=1)(x)
    torch.set_default_dtype(torch.float64)
    try:
        assert_close(posterior.sample(2, seed=1)(x), expected, rtol=0, atol=0)
    finally:
        torch.set_default_dtype(torch.float32)


def test_draws_can_be_pickled(posterior):
    draws, x = posterior.sample(3, seed=1), table(posterior)
    again = pickled(draws)
    assert torch.equal(again(x), draws(x))
    assert again.posterior == draws.posterior
    shared, kept = split(draws.networks), split(again.networks)
    assert len(kept.trunk) == len(shared.trunk), "pickling lost what the draws share"


def test_resampled_draws_can_be_pickled_and_go_on_where_they_were():
    draws = MCDropout(seeded(table_mlp)).sample(2, seed=1, masks="resampled")
    x = randn(4, 5)
    draws(x)
    again = pickled(draws)
    assert torch.equal(again(x), draws(x))
    assert torch.equal(copy.deepcopy(draws)(x), draws(x))


def test_resampled_masks_change_with_every_call_and_every_row():
    draw = MCDropout(seeded(table_mlp)).sample(1, seed=1, masks="resampled")[0]
    x = randn(1, 5).expand(6, 5)
    first, second = draw(x), draw(x)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[0], first[1])
    fixed = MCDropout(seeded(table_mlp)).sample(1, seed=1)[0](x)
    assert torch.equal(fixed[0], fixed[1])


def test_logits_are_differentiable_in_x(dropout_case):
    draws, x = dropout_case
    x = x[:1].requires_grad_()
    weight = randn(*draws(x).shape, seed=4)
    # Finite differences are off where a ReLU or a pooling switches within the step of 1e-6; a direction suffices.
    slope = torch.autograd.grad((draws(x) * weight).sum(), x)[0]
    direction, step = randn(*x.shape, seed=8), 1e-6
    ahead, behind = ((draws(x.detach() + sign * step * direction) * weight).sum() for sign in (1, -1))
    assert_close((slope * direction).sum(), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


def test_the_gradient_passes_gradcheck():
    draws = MCDropout(seeded(late_cnn)).sample(2, seed=1)
    assert torch.autograd.gradcheck(draws, (randn(1, 3, 8, 8).requires_grad_(),), fast_mode=True)


def test_evaluating_leaves_x_as_it_was():
    for build in (inplace_cnn, late_cnn):
        x = randn(2, 3, 8, 8)
        before = x.clone()
        MCDropout(seeded(build)).sample(2)(x)
        assert torch.equal(x, before)


def test_one_output_per_example_becomes_a_class_axis_of_one():
    draws = MCDropout(seeded(OneOutput)).sample(3)
    assert draws[0](randn(4, 5)).shape == (4,)
    assert draws(randn(4, 5)).shape == (3, 4, 1)


def count_calls(layer: nn.Module) -> list[int]:
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("method", [MCDropout, MCDropConnect, Flipout])
def test_what_the_draws_share_is_evaluated_once(method):
    network = seeded(late_cnn)
    calls = count_calls(network[0])  # copies of the network share the hook, and its list
    draws = method(network).sample(5, seed=1)
    together = draws(randn(2, 3, 8, 8))
    assert len(calls) == 1
    assert_close(loop(draws, randn(2, 3, 8, 8)), together, **EXACT)
    assert len(calls) == 6


def test_what_the_draws_share_survives_a_move():
    draws = MCDropout(seeded(late_cnn, dtype=torch.float32)).sample(3, seed=1)
    depth = len(split(draws.networks).trunk)
    assert draws.to(torch.float64) is draws
    assert len(split(draws.networks).trunk) == depth == 5
    x = randn(2, 3, 8, 8)
    assert_close(draws(x), loop(draws, x), **EXACT)


def test_a_layer_of_the_user_ends_what_is_shared_since_it_may_drop():
    class Drop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5)

    draws = MCDropout(seeded(lambda: nn.Sequential(nn.Linear(5, 8), Drop(), nn.Linear(8, 3)))).sample(3)
    x = randn(4, 5)
    assert_close(draws(x), loop(draws, x), **EXACT)
    assert not torch.allclose(draws(x)[0], draws(x)[1])


def test_a_hook_on_the_whole_network_is_obeyed():
    network = seeded(late_cnn)
    network.register_forward_hook(lambda _, __, output: 2 * output)
    draws, x = MCDropout(network).sample(2, seed=1), randn(2, 3, 8, 8)
    assert_close(draws(x), loop(draws, x), **EXACT)
    assert_close(draws(x), 2 * MCDropout(seeded(late_cnn)).sample(2, seed=1)(x), **EXACT)


def test_draws_of_several_kinds_of_network_are_evaluated_one_by_one():
    draws = Draws([seeded(table_mlp).eval(), seeded(nn.Sequential).eval(), *clones(table_mlp, 1)][::2])
    x = randn(4, 5)
    assert draws(x).shape == (2, 4, 3)
    mixed = Draws([FixedNetwork(seeded(table_mlp)), FixedNetwork(seeded(lambda: nn.Sequential(nn.Linear(5, 3))))])
    assert_close(mixed(x), loop(mixed, x), **EXACT)


def test_tied_weights_stay_tied_in_every_draw_of_another_layer():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(5, 5)
            self.two = nn.Linear(5, 5)
            self.head = nn.Linear(5, 3)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.two(self.one(x)))

    draw = Flipout(seeded(Tied)).sample(1, seed=1)[0].network
    assert draw.one.weight is draw.two.weight


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (CarelessDropout, "dropout with training=True"),
        (NoiseInside, "randn_like"),
        (lambda: nn.Sequential(nn.Linear(5, 3), Random(torch.rand)), "rand"),
        (lambda: nn.Sequential(nn.Linear(5, 3), Random(lambda *s: torch.empty(*s).normal_())), "normal_"),
        (lambda: nn.Sequential(nn.Linear(5, 3), Random(lambda *s: torch.bernoulli(torch.ones(*s)))), "bernoulli"),
        (
            lambda: nn.Sequential(nn.Linear(5, 3), Random(lambda *s: F.alpha_dropout(torch.ones(*s), 0.5, True))),
            "alpha",
        ),
        (lambda: nn.Sequential(nn.Linear(5, 3), Random(lambda *s: F.rrelu(torch.ones(*s), training=True))), "rrelu"),
        (lambda: nn.Sequential(nn.Linear(5, 3), Attend()), "scaled_dot_product_attention"),
    ],
)
def test_randomness_that_cannot_be_fixed_is_refused_by_name(network, what):
    draws = DeepEnsemble([seeded(network)]).sample()
    with pytest.raises(RandomNetworkError, match=what):
        draws(randn(2, 5))


class Random(nn.Module):
    """Adds what `noise` gives."""

    def __init__(self, noise: Callable[..., Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise(*x.shape)


class Attend(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.5)[:, 0]


def test_random_layers_that_are_off_in_eval_mode_are_no_obstacle():
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.AlphaDropout(0.5), nn.RReLU(), nn.Linear(4, 3)))
    x = randn(4, 5)
    assert_close(DeepEnsemble([network]).sample()(x)[0], network.eval()(x), **EXACT)


def test_seeds_of_draws_and_layers_are_far_apart():
    firsts = [float(torch.rand((), generator=generator_of(*path))) for path in [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]]
    assert len(set(firsts)) == 5
