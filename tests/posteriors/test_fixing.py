"""What is random in a network is fixed, wherever its examples are; what cannot be is refused in one sentence."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from core_networks import EXACT, TABLE, Attention, FunctionalDropout, FunctionalRelu, Recurrent, pickled, randn, seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from xuqlib import DeepEnsemble, Flipout, MCDropout, explain, gradient
from xuqlib.posteriors import unrolled
from xuqlib.posteriors.fixing import FixedNetwork, RandomNetworkError, unit_mask
from xuqlib.posteriors.kinds import is_hooked
from xuqlib.posteriors.shared import split

SIGMAS = 5  # of a standard error


class Dropping(nn.Module):
    """Works on sequences (N, T, 3), and drops from what `before` makes of them, (N, T, 6)."""

    def __init__(self, before, behind=lambda h: h, drop=None) -> None:
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(3, 6), nn.Linear(6, 2), drop or nn.Dropout(0.5)
        self.before, self.behind = before, behind

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.behind(self.drop(self.before(torch.tanh(self.first(x))))).mean(1))


class WeightDropping(nn.Module):
    """Drops from a weight, which has no axis of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(x, F.dropout(self.first.weight, 0.5, self.training), self.first.bias).mean(1))


class Encoder(nn.Module):
    """torch's transformer layer, or an attention layer with weights, over sequences in either order."""

    def __init__(self, batch_first: bool, kind: str) -> None:
        super().__init__()
        self.first, self.last, self.batch_first = nn.Linear(3, 4), nn.Linear(4, 2), batch_first
        if kind == "transformer":
            self.inside: nn.Module = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.4, batch_first=batch_first)
        elif kind == "attention":
            self.inside = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=batch_first)
        else:
            self.inside = nn.GRU(4, 2, 3, dropout=0.4, batch_first=batch_first, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) if self.batch_first else self.first(x).transpose(0, 1)
        out = self.inside(h, h, h) if isinstance(self.inside, nn.MultiheadAttention) else self.inside(h)
        out = out[0] if isinstance(out, tuple) else out
        return self.last((out if self.batch_first else out.transpose(0, 1)).mean(1))


def swap(h: Tensor) -> Tensor:
    return h.transpose(0, 1)


SEQUENCES = {
    "(T, N, F)": lambda: Dropping(swap, swap),
    "(N, T, F)": lambda: Dropping(lambda h: h),
    "(F, T, N)": lambda: Dropping(lambda h: h.permute(2, 1, 0), lambda h: h.permute(2, 1, 0)),
    "(N * T, F)": lambda: Dropping(lambda h: h.flatten(0, 1), lambda h: h.unflatten(0, (-1, 7))),
    "(F, N * T)": lambda: Dropping(lambda h: h.flatten(0, 1).T, lambda h: h.T.unflatten(0, (-1, 7))),
    "channels of (T, N, F)": lambda: Dropping(swap, swap, nn.Dropout1d(0.5)),
    "alpha (T, N, F)": lambda: Dropping(swap, swap, nn.AlphaDropout(0.5)),
    "alpha channels (N, T, F)": lambda: Dropping(lambda h: h, drop=nn.FeatureAlphaDropout(0.5)),
    "a weight": WeightDropping,
    **{f"{k} {b}": lambda k=k, b=b: Encoder(b, k) for k in ("transformer", "attention", "gru") for b in (True, False)},
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_draw_is_one_function_of_a_row_wherever_the_examples_are(name):
    draw = MCDropout(seeded(SEQUENCES[name])).sample(1, seed=1)[0]
    rows = randn(5, 7, 3)
    alone = torch.cat([draw(row[None]) for row in rows])
    assert not torch.allclose(alone, draw.network(rows)), "nothing was dropped"
    for count in range(1, 6):
        assert_close(draw(rows[:count]), alone[:count], **EXACT)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(draw(rows[order]), alone[order], **EXACT)
    equal = draw(rows[:1].expand(7, -1, -1))  # as many examples as times
    assert_close(equal, equal[:1].expand_as(equal), **EXACT)


def test_an_axis_that_is_not_the_examples_has_a_mask_of_its_own():
    class OverTime(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x.transpose(0, 1), 0.5).transpose(0, 1).flatten(1)

    draw = MCDropout(OverTime()).sample(1, seed=1)[0]
    x = randn(4, 8, 3)
    mask = unit_mask(draw.seed, 1, (8, 1, 3), 0.5).transpose(0, 1)
    assert_close(draw(x), (x * mask / 0.5).flatten(1), **EXACT)


@pytest.mark.parametrize("kind", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_gives_torchs_two_values(kind):
    x = torch.full((1, 200, 3), 0.7, dtype=torch.float64)
    ours = MCDropout(nn.Sequential(kind(0.3))).sample(1, seed=1)[0](x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torchs = kind(0.3).double().train()(x)
    assert_close(ours.unique(), torchs.unique(), **EXACT)
    assert 0.5 < (ours == ours.max()).double().mean() < 0.9
    assert (ours[0, :, 0] == ours[0, :, 1]).all() == (kind is nn.FeatureAlphaDropout)


def keep_all(weights: Tensor, p: float) -> Tensor:
    return weights


def blocked_row() -> Tensor:
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1], mask[2, :3] = False, False
    return mask


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": blocked_row()},
        {"attn_mask": randn(2, 1, 4, 5, seed=8)},
        {"enable_gqa": True},
    ],
    ids=str,
)
def test_attention_written_out_equals_torchs(options):
    heads = 3 if "enable_gqa" in options else 6
    query, key, value = (randn(2, h, n, 3, seed=n + h) for h, n in ((6, 4), (heads, 5), (heads, 5)))
    parts = [part.requires_grad_() for part in (query, key, value)]
    ours, torchs = (
        unrolled.attention(keep_all, F.relu, *parts, **options),
        F.scaled_dot_product_attention(*parts, **options),
    )
    assert_close(ours, torchs, **EXACT)
    slopes = [torch.autograd.grad((out * randn(*out.shape)).sum(), parts) for out in (ours, torchs)]
    assert_close(slopes[0], slopes[1], **EXACT)


def test_attention_drops_with_a_mask_for_each_head_and_place():
    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.unflatten(2, (2, 3)).transpose(1, 2)  # (N, 2 heads, T, 3)
            return F.scaled_dot_product_attention(q, q, q, dropout_p=0.4, is_causal=True).transpose(1, 2).flatten(1)

    network, x = Attend(), randn(3, 4, 6)
    draw = FixedNetwork(network, 11)
    mask = unit_mask(11, 1, (2, 4, 4), 0.4)
    wanted = torch.zeros(3, 4, 2, 3, dtype=torch.float64)
    for n in range(3):
        for head in range(2):
            part = x[n, :, 3 * head : 3 * head + 3]
            for t in range(4):
                weights = torch.stack([part[t] @ part[s] / 3**0.5 for s in range(t + 1)]).softmax(0)
                for s in range(t + 1):
                    wanted[n, t, head] += weights[s] * mask[head, t, s] / 0.6 * part[s]
    assert_close(draw(x), wanted.flatten(1), **EXACT)
    with pytest.raises(RandomNetworkError, match="calls scaled_dot_product_attention in its forward"):
        FixedNetwork(network)(x)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_an_attention_layer_drops_with_a_mask_for_each_head(batch_first, need_weights, masked):
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(6, 2, dropout=0.4, batch_first=batch_first)

        def forward(self, x: Tensor) -> Tensor:
            h = x if batch_first else x.transpose(0, 1)
            h = self.layer(h, h, h, need_weights=need_weights, attn_mask=mask)[0]
            return (h if batch_first else h.transpose(0, 1)).flatten(1)

    mask = torch.ones(4, 4, dtype=torch.bool).triu(1) if masked else None
    network, x = seeded(Attends), randn(3, 4, 6)
    draw = MCDropout(network).sample(1, seed=1)[0]
    layer, kept = network.layer, unit_mask(draw.seed, 1, (2, 4, 4), 0.4)
    q, k, v = (x @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, dim=2)
    heads = []
    for head, part in enumerate((slice(0, 3), slice(3, 6))):
        scores = q[..., part] @ k[..., part].mT / 3**0.5
        scores = scores if mask is None else scores.masked_fill(mask, -torch.inf)
        heads.append((scores.softmax(-1) * kept[head] / 0.6) @ v[..., part])
    assert_close(draw(x), layer.out_proj(torch.cat(heads, 2)).flatten(1), **EXACT)
    assert_close(FixedNetwork(network)(x), network.eval()(x), **EXACT)


def test_a_transformer_layer_is_the_paper_s_equations_under_four_masks():
    layer = seeded(lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True))
    draw, x = MCDropout(layer).sample(1, seed=1)[0], randn(2, 5, 4)
    shapes = ((2, 5, 5), (5, 4), (5, 8), (5, 4))
    weights, first, inside, last = (
        unit_mask(draw.seed, i + 1, shape, 0.3).double() / 0.7 for i, shape in enumerate(shapes)
    )
    attention = layer.self_attn
    q, k, v = ((x @ attention.in_proj_weight.T + attention.in_proj_bias).unflatten(2, (6, 2)).transpose(1, 2)).chunk(
        3, 1
    )
    seen = ((q @ k.mT / 2**0.5).softmax(-1) * weights) @ v
    h = layer.norm1(x + attention.out_proj(seen.transpose(1, 2).flatten(2)) * first)
    wanted = layer.norm2(h + layer.linear2(layer.linear1(h).relu() * inside) * last)
    assert_close(draw(x), wanted, **EXACT)


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "lstm both ways": (nn.LSTM, {"bidirectional": True}),
    "lstm projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {"bias": False}),
    "gru both ways": (nn.GRU, {"bidirectional": True}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu", "bidirectional": True}),
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_drops_between_its_layers_as_layers_of_their_own_would(name, batch_first):
    kind, options = RECURRENT[name]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = kind(3, 4, 3, dropout=0.4, batch_first=batch_first, **options)

        def forward(self, x: Tensor) -> Tensor:
            out, states = self.layers(x if batch_first else x.transpose(0, 1))
            self.states = states
            return (out if batch_first else out.transpose(0, 1)).flatten(1)

    network, x = seeded(Whole), randn(2, 5, 3)
    draw = MCDropout(network).sample(1, seed=1)[0]
    h, finals = x if batch_first else x.transpose(0, 1), []
    for number in range(3):
        one = kind(h.shape[2], 4, 1, batch_first=batch_first, **options).double()
        for key, value in one.named_parameters():
            value.data = getattr(network.layers, key.replace("l0", f"l{number}")).data
        h, state = one(h)
        finals.append(state[0] if isinstance(state, tuple) else state)
        if number < 2:
            shape = (1, 5, h.shape[2]) if batch_first else (5, 1, h.shape[2])
            h = h * unit_mask(draw.seed, number + 1, shape, 0.4) / 0.6
    assert_close(draw(x), (h if batch_first else h.transpose(0, 1)).flatten(1), **EXACT)
    states = draw.network.states
    assert_close(states[0] if isinstance(states, tuple) else states, torch.cat(finals), **EXACT)


def test_dropout_in_a_packed_sequence_is_refused_and_off_elsewhere():
    class Packed(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            rows = nn.utils.rnn.pack_padded_sequence(x[:, :, None], torch.full((len(x),), 3), batch_first=True)
            return self.head(self.lstm(rows)[1][0][-1])

    network, x = seeded(Packed), randn(4, 5)
    with pytest.raises(ValueError, match=r"a PackedSequence cannot be fixed.*pass padded sequences"):
        MCDropout(network).sample(1)[0](x)
    assert_close(DeepEnsemble([network]).sample()[0](x), network.eval()(x), **EXACT)


class Branch(nn.Module):
    """A residual branch that is dropped as a whole."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(5, 5), nn.Linear(5, 3), drop

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.drop(torch.tanh(self.first(x))))


class DropPath(nn.Module):
    """As in timm."""

    def __init__(self, drop_prob: float, by_rand: bool = False) -> None:
        super().__init__()
        self.drop_prob, self.by_rand = drop_prob, by_rand

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep, shape = 1 - self.drop_prob, (x.shape[0],) + (1,) * (x.ndim - 1)
        if self.by_rand:  # as in transformers
            return x.div(keep) * (keep + torch.rand(shape, dtype=x.dtype, device=x.device)).floor_()
        return x * x.new_empty(shape).bernoulli_(keep).div_(keep)


def paths() -> dict[str, nn.Module]:
    from torchvision.ops import StochasticDepth

    own = {"timm": DropPath(0.4), "transformers": DropPath(0.4, by_rand=True)}
    return own | {mode: StochasticDepth(0.4, mode) for mode in ("row", "batch")}


@pytest.mark.parametrize("name", ["timm", "transformers", "row", "batch"])
@pytest.mark.usefixtures("untouched_generators")
def test_a_path_that_is_dropped_is_one_coin_for_all_examples(name):
    network, x = seeded(lambda: Branch(paths()[name])), randn(4, 5)
    draws = MCDropout(network).sample(60, seed=1)
    branch = torch.tanh(network.first(x))
    with_it, without = network.last(x + branch / 0.6), network.last(x)
    kept = [torch.allclose(draw(x), with_it, rtol=1e-10) for draw in draws]
    assert all(torch.allclose(draws[i](x), with_it if kept[i] else without, rtol=1e-10) for i in range(60))
    assert abs(sum(kept) / 60 - 0.6) < SIGMAS * (0.6 * 0.4 / 60) ** 0.5
    assert_close(draws[0].network(x), network.eval()(x), **EXACT)  # by itself, the network is in eval mode
    assert torch.equal(pickled(draws)[3](x), draws[3](x)) and torch.equal(copy.deepcopy(draws[3])(x), draws[3](x))
    assert torch.equal(draws[3].eval()(x), draws[3].train()(x))


def test_draws_that_were_looked_at_together_still_drop_their_paths():
    network, x = seeded(lambda: nn.Sequential(Branch(paths()["row"]), nn.ReLU(), nn.Linear(3, 2))), randn(4, 5)
    draws = MCDropout(network).sample(8, seed=1)
    alone = torch.stack([draw(x) for draw in draws])
    assert len(alone.unique(dim=0)) > 1
    for look in (draws, lambda x: explain(draws, gradient, x, 0), lambda x: split(draws.networks).fixed_heads()[0]):
        look(x)
        assert torch.equal(torch.stack([draw(x) for draw in draws]), alone)


def test_dropped_blocks_are_the_same_for_every_example():
    from torchvision.ops import DropBlock2d

    network = nn.Sequential(DropBlock2d(0.3, 3), nn.Flatten())
    x, draws = randn(4, 2, 9, 9), MCDropout(network).sample(3, seed=1)
    for draw in draws:
        alone = torch.cat([draw(row[None]) for row in x])
        assert_close(draw(x), alone, rtol=1e-7, atol=0)  # it adds 1e-6 to the number of kept units of a batch
        assert 0 < (alone[0] == 0).sum() < alone[0].numel()
        assert torch.equal(alone[0] == 0, alone[1] == 0)


class OwnAttention(nn.Module):
    """Attention whose dropout its own code switches off in eval mode, as in ViTs and in transformers."""

    def __init__(self, changes_form: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)
        self.attn_drop, self.changes_form = nn.Dropout(0.4), changes_form

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)[:, None]
        h = F.scaled_dot_product_attention(h, h, h, dropout_p=self.attn_drop.p if self.training else 0.0)
        answer = self.last(h[:, 0].mean(1))
        return (answer, h) if self.training and self.changes_form else answer


def test_dropout_that_a_module_switches_off_by_itself_is_on_in_draws():
    network, x = seeded(OwnAttention), randn(3, 4, 3)
    draw = MCDropout(network).sample(1, seed=1)[0]
    h = network.first(x)
    weights = (h @ h.mT / 6**0.5).softmax(-1) * unit_mask(draw.seed, 1, (4, 4), 0.4) / 0.6
    assert_close(draw(x), network.last((weights @ h).mean(1)), **EXACT)
    assert network.training is True, "the training network is left as it was"


def test_a_module_whose_answer_changes_form_while_it_trains_stays_off_and_is_named():
    network = seeded(lambda: nn.Sequential(OwnAttention(changes_form=True), nn.Dropout(0.3)))
    draw, x = MCDropout(network).sample(1, seed=1)[0], randn(3, 4, 3)
    with pytest.warns(UserWarning, match="with 0 in training mode.*stays off in every draw"):
        given = draw(x)
    assert_close(given, network[0].eval()(x) * unit_mask(draw.seed, 1, (2,), 0.3) / 0.7, **EXACT)


def test_other_randomness_of_training_is_named():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x) if self.training else x

    with pytest.warns(UserWarning, match=r"off in every draw: 0 \(Noisy\), 1 \(RReLU\)"):
        MCDropout(nn.Sequential(Noisy(), nn.RReLU(), nn.Dropout(0.5)))


UNFIXABLE = {
    "aten bernoulli": lambda x: torch.ops.aten.bernoulli(x.sigmoid()),
    "aten rand_like": lambda x: torch.ops.aten.rand_like.default(x),
    "native_dropout": lambda x: torch.native_dropout(x, 0.5, True)[0],
    "standard_gamma": lambda x: torch.distributions.Gamma(x.exp(), 1.0).sample(),
    "sample_dirichlet": lambda x: torch.distributions.Dirichlet(x.exp()).sample(),
    "normal": lambda x: torch.distributions.Normal(x, 1.0).rsample(),
    "exponential_": lambda x: torch.distributions.Exponential(x.exp()).sample(),
    "multinomial": lambda x: torch.distributions.Categorical(logits=x).sample()[:, None] + x,
    "uniform_": lambda x: nn.init.uniform_(torch.empty_like(x)),
    "fractional_max": lambda x: nn.FractionalMaxPool2d(2, output_size=1)(x[:, None, None].expand(-1, 1, 4, -1)).flatten(
        1
    ),
    "rand": lambda x: torch.rand(x.shape, generator=torch.Generator()),
    "bernoulli_": lambda x: torch.empty_like(x).bernoulli_(x.sigmoid()),
    "gumbel_softmax": F.gumbel_softmax,
    "rrelu": lambda x: torch.rrelu(x, 0.1, 0.3, True),
}


@pytest.mark.parametrize("name", UNFIXABLE)
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.usefixtures("untouched_generators")
def test_random_calls_that_cannot_be_fixed_are_refused(name, seed):
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return UNFIXABLE[name](x)

    with pytest.raises(RandomNetworkError, match=f"the network calls .*{name.split()[-1]}.* in its forward pass"):
        FixedNetwork(Calls(), seed)(randn(*TABLE))


def test_a_mask_over_pairs_of_examples_is_refused():
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x @ x.T, 0.5) @ x

    with pytest.raises(RandomNetworkError, match=r"\(2, 2\) for 2 examples and \(3, 3\) for 3, so no one axis"):
        MCDropout(Pairs()).sample(1)[0](randn(*TABLE))


def test_random_calls_that_depend_on_the_batch_are_refused():
    class PerRow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([F.dropout(row, 0.5) for row in x])

    with pytest.raises(RandomNetworkError, match=r"otherwise than when it was tried.*: 3 times, not 2 times; let what"):
        MCDropout(PerRow()).sample(1)[0](randn(*TABLE))


def test_random_calls_that_depend_on_the_values_are_refused():
    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(F.dropout(x, 0.5) if x[0, 0] > 0 else x, 0.5)

    draw, x = MCDropout(Sometimes()).sample(1)[0], torch.ones(2, 5)
    draw(x)
    with pytest.raises(RandomNetworkError, match=r"otherwise than when it was tried.*: 1 times, not 2 times"):
        draw(-x)
    draw = MCDropout(Sometimes()).sample(1)[0]
    draw(-x)
    with pytest.raises(RandomNetworkError, match=r"of shape \(2, 5\) for 2 examples in its call number 2"):
        draw(x)


@pytest.mark.parametrize(("use_reentrant", "drops"), [(True, True), (False, True), (False, False)])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # torch, since trying asks for none
def test_dropout_that_is_computed_again_in_the_backward_pass_is_refused(use_reentrant, drops):
    class Saving(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inside = nn.Dropout(0.5) if drops else nn.Identity()
            self.part, self.drop = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), inside), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(checkpoint(self.part, x, use_reentrant=use_reentrant))

    network, x = seeded(Saving), randn(*TABLE)
    draw = MCDropout(network).sample(1, seed=1)[0]
    if drops:
        with pytest.raises(RandomNetworkError, match="inside torch.utils.checkpoint.*; switch checkpointing off"):
            gradient(draw, x, 0)
        return
    given = gradient(draw, x, 0)
    y, keep = torch.tanh(network.part[0](x)), unit_mask(draw.seed, 1, (5,), 0.5) / 0.5
    assert_close(given, keep[0] * (1 - y[:, :1] ** 2) * network.part[0].weight[0], **EXACT)


def count_calls(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    whole = type(network).forward
    monkeypatch.setattr(type(network), "forward", lambda self, x: seen.append(len(x)) or whole(self, x))
    return seen


def test_a_network_is_tried_once_for_all_draws_and_sizes_of_batch(monkeypatch):
    network = seeded(SEQUENCES["(T, N, F)"])
    seen = count_calls(network, monkeypatch)
    draws = MCDropout(network).sample(3, seed=1)
    x = randn(4, 7, 3)
    for draw in draws:
        draw(x), draw(x[:1])
    assert seen == [2, 3, 4, 1, 4, 1, 4, 1]
    seen.clear()
    for again in (pickled(draws), copy.deepcopy(draws), draws.to(torch.float64)):
        again[1](x)
    assert seen == [4] * 3
    seen.clear()
    draws[0](x[:, :6])
    assert seen == [2, 3, 4], "another length of sequence"


def test_rows_of_one_example_in_a_sequence_of_torchs_layers_share_a_mask():
    parts = nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1), nn.Dropout(0.5), nn.Unflatten(0, (-1, 2)), nn.Flatten()
    x, draws = randn(4, 6), MCDropout(nn.Sequential(*parts)).sample(2, seed=1)
    masks = torch.stack([unit_mask(draw.seed, 1, (3,), 0.5).repeat(2) for draw in draws])[:, None] * 2
    assert_close(draws(x), x * masks, **EXACT)
    given = explain(draws, gradient, x, 1, progress=False).values
    assert_close(given, (masks * torch.tensor([0, 1.0, 0, 0, 0, 0])).expand(2, 4, 6).double(), **EXACT)


def test_trying_keeps_no_network_alive_and_is_not_seen_by_hooks():
    network = seeded(SEQUENCES["a weight"])
    draws = MCDropout(network).sample(2)
    seen: list[int] = []
    draws[0].network.first.register_forward_hook(lambda *_: seen.append(1))
    draws[0].network.register_forward_pre_hook(lambda *_: seen.append(2))
    draws[0](randn(4, 7, 3))
    assert seen == [2]
    inner = weakref.ref(draws[0].network)
    del draws
    gc.collect()
    assert inner() is None


def test_a_draw_takes_several_inputs_by_place_and_by_name():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.drop, self.last = nn.Embedding(9, 4), nn.Dropout(0.5), nn.Linear(4, 2)

        def forward(self, batch: dict[str, Tensor], *, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
            batch["ids"].add_(0)  # in place, in what is a copy
            h = self.drop(self.embed(batch["ids"]))
            return scale * self.last((h if mask is None else h * mask[..., None]).mean(1))

    network = seeded(Two)
    draw = MCDropout(network).sample(1, seed=1)[0]
    ids, mask = torch.arange(12).view(3, 4) % 9, randn(3, 4)
    h = network.embed(ids) * unit_mask(draw.seed, 1, (4, 4), 0.5) / 0.5
    assert_close(draw({"ids": ids}, mask=mask, scale=2.0), 2 * network.last((h * mask[..., None]).mean(1)), **EXACT)
    assert_close(draw({"ids": ids}), network.last(h.mean(1)), **EXACT)
    with pytest.raises(TypeError, match="no tensor with an axis of examples; pass"):
        draw({"ids": [1]})


def test_dropout_in_training_alone_is_drawn_beside_an_answer_that_is_a_new_object_each_time():
    class Cached(FunctionalRelu):
        def __init__(self) -> None:
            super().__init__()
            self.dropout_rate = 0.4

        def forward(self, x: Tensor) -> dict[str, Any]:
            rate = self.dropout_rate if self.training else 0.0
            return {"logits": self.last(F.dropout(F.relu(self.first(x)), rate)), "cache": object()}

    draws = MCDropout(seeded(Cached)).sample(3)
    assert len(draws(randn(*TABLE), "logits").unique(dim=0)) == 3


def test_a_hook_that_a_library_puts_on_its_own_layer_works_while_a_network_is_tried():
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        kept[:] = [output]

    class Library(FunctionalDropout):
        def forward(self, x: Tensor) -> Tensor:
            kept.clear()
            super().forward(x)
            return self.last(F.dropout(kept[0], 0.4, self.training))

    Library.__module__, keep.__module__ = "library.networks", "library.hooks"
    network, x = seeded(Library), randn(*TABLE)
    network.first.__class__ = type("Layer", (nn.Linear,), {"__module__": "library.layers"})
    network.first.register_forward_hook(keep)
    draws = MCDropout(network).sample(3)
    assert len(draws(x).unique(dim=0)) == 3


def test_a_hook_on_every_module_is_seen():
    network = nn.Linear(2, 2)
    assert not is_hooked(network)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert is_hooked(network)
    finally:
        handle.remove()
    assert not is_hooked(network)


@pytest.mark.parametrize("build", [lambda: Attention(0.4), Recurrent, lambda: Branch(DropPath(0.4))])
def test_dropout_inside_other_layers_is_randomness_enough(build):
    network, x = seeded(build), randn(*TABLE)
    draws = MCDropout(network).sample(12, seed=1)
    assert draws(x).std(0).max() > 1e-3
    assert_close(Flipout(network).network.eval()(x), network.eval()(x), **EXACT)


@pytest.mark.parametrize("build", [lambda: Attention(0.0), lambda: nn.LSTM(3, 3, dropout=0.0), DropPath])
def test_dropout_of_rate_zero_inside_other_layers_is_no_randomness(build):
    with pytest.raises(ValueError, match="without randomness"):
        MCDropout(build(0.0) if build is DropPath else build())
