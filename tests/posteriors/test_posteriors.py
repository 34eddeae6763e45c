"""Every posterior around any network, and the moments of what it draws."""

from __future__ import annotations

import warnings

import pytest
import torch
from core_networks import (
    EXACT,
    PICTURES,
    TABLE,
    WITHOUT_DROPOUT,
    Attention,
    CarelessDropout,
    EncoderLayer,
    FunctionalDropout,
    FunctionalRelu,
    Recurrent,
    channel_dropout,
    clones,
    randn,
    seeded,
    table_mlp,
    torchvision_resnet,
)
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from xuqlib import DeepEnsemble, Flipout, MCDropConnect, MCDropout

SIGMAS = 5  # of a standard error


def test_dropout_keeps_units_at_its_rate_and_divides_by_it():
    draws = MCDropout(nn.Sequential(nn.Dropout(0.3))).sample(200, seed=1)
    answers = draws(torch.ones(2, 500, dtype=torch.float64))
    assert torch.equal(answers[:, 0], answers[:, 1]), "one mask for all examples"
    assert set(answers.unique().tolist()) == {0.0, 1 / 0.7}
    error = (0.3 * 0.7 / (200 * 500)) ** 0.5
    assert abs((answers[:, 0] > 0).double().mean() - 0.7) < SIGMAS * error
    by_unit = (answers[:, 0] > 0).double().mean(0)
    assert (by_unit - 0.7).abs().max() < SIGMAS * (0.3 * 0.7 / 200) ** 0.5, "no unit is special"


def test_two_calls_of_one_dropout_have_two_masks():
    drop = nn.Dropout(0.5)
    draw = MCDropout(nn.Sequential(drop, drop)).sample(1, seed=1)[0]
    kept = draw(torch.ones(1, 2000)) > 0
    assert abs(kept.double().mean() - 0.25) < SIGMAS * (0.25 * 0.75 / 2000) ** 0.5


@pytest.mark.parametrize(("kind", "shape"), [(nn.Dropout1d, (2, 50, 6)), (nn.Dropout2d, (2, 50, 3, 4))])
def test_channel_dropout_masks_whole_channels(kind, shape):
    answers = MCDropout(nn.Sequential(kind(0.4))).sample(40, seed=1)
    masks = torch.stack([draw(torch.ones(shape)) for draw in answers]).flatten(3)  # (S, N, C, pixels)
    assert (masks == masks[..., :1]).all()
    assert 0.4 < (masks[:, 0, :, 0] > 0).double().mean() < 0.8


def test_the_mean_over_dropout_draws_of_a_linear_network_is_its_eval_answer():
    network = seeded(lambda: nn.Sequential(nn.Dropout(0.4), nn.Linear(5, 3)))
    x, count = randn(4, 5), 1000
    answers = MCDropout(network).sample(count, seed=1)(x)
    error = answers.std(0) / count**0.5
    assert ((answers.mean(0) - network.eval()(x)).abs() < SIGMAS * error).all()


def test_flipout_draws_spread_the_logits_as_gaussian_weights_do():
    posterior = Flipout(seeded(lambda: nn.Linear(5, 3)), initial_std=0.2)
    x, count = randn(4, 5), 1000
    answers = posterior.sample(count, seed=1)(x)
    std = 0.2 * x.norm(dim=1, keepdim=True).expand(4, 3)
    assert ((answers.mean(0) - posterior.network.eval()(x)).abs() < SIGMAS * std / count**0.5).all()
    assert ((answers.std(0) / std - 1).abs() < SIGMAS / (2 * count) ** 0.5).all()


def test_dropconnect_and_flipout_leave_the_bias_and_other_layers_alone():
    for method in (MCDropConnect, Flipout):
        posterior = method(seeded(table_mlp), placement=["3"])
        given = dict(posterior.network.named_parameters())
        for draw in posterior.sample(2):
            tensors = dict(draw.network.named_parameters())
            changed = [name for name, value in tensors.items() if not torch.equal(value, given[name])]
            assert changed == ["3.layer.weight"]


def test_posteriors_over_weights_train_a_copy():
    network = seeded(table_mlp)
    for method in (MCDropConnect, Flipout):
        posterior = method(network, placement="all")
        assert {id(p) for p in posterior.network.parameters()}.isdisjoint(id(p) for p in network.parameters())
    assert type(network[0]) is nn.Linear


def test_an_ensemble_of_one_has_no_spread():
    draws = DeepEnsemble([seeded(FunctionalRelu)]).sample()
    assert len(draws) == 1
    assert torch.equal(draws(randn(*TABLE)).std(0, correction=0), torch.zeros(4, 3, dtype=torch.float64))


def test_an_ensembles_draws_are_its_members_in_order():
    members = clones(table_mlp, 3)
    x = randn(*TABLE)
    for seed in (0, 7):
        assert_close(DeepEnsemble(members).sample(seed=seed)(x), torch.stack([m.eval()(x) for m in members]), **EXACT)


@pytest.mark.parametrize("build", [torchvision_resnet, FunctionalRelu, lambda: nn.Linear(5, 3)])
def test_a_network_without_dropout_is_refused_by_mc_dropout(build):
    with pytest.raises(ValueError, match="(ResNet|FunctionalRelu|Linear) has no dropout .*without randomness"):
        MCDropout(seeded(build))


def test_dropout_inside_a_function_that_a_layer_was_given_is_dropout():
    class Lambda(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, x):
            return self.function(x)

    drops = nn.Sequential(nn.Linear(5, 3), Lambda(lambda x: F.dropout(x, 0.4)))
    answers = MCDropout(drops).sample(6)(torch.ones(1, 5))
    assert len(answers.unique(dim=0)) > 1
    with pytest.raises(ValueError, match="no dropout"):
        MCDropout(nn.Sequential(nn.Linear(5, 3), Lambda(lambda x: F.relu(x))))


def test_random_numbers_that_start_the_weights_are_no_randomness_of_draws():
    class Started(FunctionalDropout):
        def _init_weights(self):
            nn.init.normal_(self.first.weight)
            self.first.weight.data.normal_()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = MCDropout(seeded(Started)).sample(6)(torch.ones(1, 5, dtype=torch.float64))
    assert len(answers.unique(dim=0)) > 1


def test_a_rate_of_something_else_is_no_dropout_of_the_network():
    class Reads(FunctionalRelu):
        def kernel(self, config):
            return config.attention_dropout

    with pytest.raises(ValueError, match="Reads has no dropout"):
        MCDropout(seeded(Reads))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_that_never_or_always_drops_is_no_randomness(p):
    with pytest.raises(ValueError, match="no dropout with 0 < p < 1"):
        MCDropout(nn.Sequential(nn.Dropout(p), nn.Linear(2, 2)))


def test_a_functional_dropout_of_rate_zero_is_no_randomness():
    class Off(FunctionalDropout):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = 0.0

        def forward(self, x):
            return nn.functional.dropout(self.first(x), self.dropout, self.training)

    with pytest.raises(ValueError, match="without randomness"):
        MCDropout(Off())


@pytest.mark.parametrize("build", [Recurrent, lambda: Attention(0.2), lambda: channel_dropout(nn.Dropout2d)])
def test_dropout_that_is_off_in_eval_mode_is_no_obstacle_to_other_posteriors(build):
    network, x = seeded(build), randn(*(PICTURES if build not in (Recurrent,) and "2d" in repr(build()) else TABLE))
    for posterior in (Flipout(network), MCDropConnect(network)):
        assert posterior.sample(2, seed=1)(x).shape[:2] == (2, len(x))
    assert_close(DeepEnsemble([network]).sample()(x)[0], network.eval()(x), **EXACT)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces the end of scripting
        return torch.jit.script(nn.Linear(5, 3))


@pytest.mark.parametrize("posterior", [MCDropout, MCDropConnect, Flipout, lambda network: DeepEnsemble([network])])
def test_a_scripted_network_is_refused(posterior):
    with pytest.raises(TypeError, match=r"layer \(itself\) hides its operations: it is scripted"):
        posterior(scripted())
    with pytest.raises(TypeError, match="layer 0 hides .*scripted"):
        posterior(nn.Sequential(scripted(), nn.Dropout(0.5)))


@pytest.mark.parametrize("name", WITHOUT_DROPOUT)
def test_the_mean_of_a_weight_posterior_is_the_network_that_was_given(name):
    build, shape = WITHOUT_DROPOUT[name]
    network, x = seeded(build).eval(), randn(*shape)
    for posterior in (Flipout(network, placement="all"), MCDropConnect(network, placement="all")):
        assert_close(posterior.network.eval()(x), network(x), **EXACT)


def test_torchs_transformer_layer_can_be_drawn_and_trained():
    posterior = Flipout(seeded(EncoderLayer), placement="all")
    x = randn(*TABLE)
    with torch.no_grad():  # torch's fast path, which reads weights without calling layers
        fast = posterior.sample(2, seed=1)(x)
    slow = posterior.sample(2, seed=1)(x.requires_grad_())
    assert_close(fast, slow.detach(), **EXACT)
    assert not torch.allclose(fast[0], fast[1])
    with torch.random.fork_rng():
        posterior.network.train()(x).sum().backward()
    assert all(p.grad is not None for name, p in posterior.network.named_parameters() if "rho" in name)


def test_functional_dropout_is_found_in_any_method():
    class Inner(CarelessDropout):
        def forward(self, x):
            return self.helper(x)

        def helper(self, x):
            return nn.functional.dropout2d(self.first(x)[..., None, None], 0.3).flatten(1)

    assert len(MCDropout(seeded(Inner)).sample(2)) == 2
