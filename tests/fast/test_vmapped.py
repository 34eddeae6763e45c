"""Draws of any network under vmap equal the plain loop over draws, and are known to have been evaluated so."""

from __future__ import annotations

import warnings

import pytest
import torch
from core_networks import Recurrent, clones, randn, seeded, table_mlp, torchvision_resnet, torchvision_vit
from test_engine import EXPLAINERS, PROMISE, error, looped
from torch import Tensor, nn
from torch.nn import functional as F

import xuqlib.fast.vmapped as vmapped_module
from xuqlib import DeepEnsemble, Draws, Flipout, MCDropConnect, MCDropout, explain, gradient, guided_backprop
from xuqlib.fast.engine import Engine
from xuqlib.fast.vmapped import Vmapped
from xuqlib.path import Path
from xuqlib.posteriors.fixing import FixedNetwork, Fold

PICTURES, TABLE = (3, 3, 16, 16), (4, 5)


class Resnet(nn.Module):
    """ResNet-18 with dropout in the middle; its ReLUs work in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = torchvision_resnet()
        self.inside.layer3 = nn.Sequential(nn.Dropout(0.3), self.inside.layer3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


class Skip(nn.Module):
    """A dense network with a skip connection, a layer and a dropout that are called twice, and one in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.drop, self.in_place = nn.Dropout(0.4), nn.Dropout(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.in_place(self.first(x)).relu()
        return self.last(h + self.drop(self.twice(self.drop(self.twice(h).relu()))).relu_())


class Unet(nn.Module):
    """Down and up again, with norms of two kinds and dropout of whole channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inside = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(inplace=True))
        self.up, self.last, self.drop = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 3, 1), nn.Dropout2d(0.4)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.norm(self.down(x)))
        deep = self.drop(self.inside(F.max_pool2d(wide, 2)))
        return self.last(torch.cat([wide, self.up(deep)], 1)).mean((2, 3))


class Paths(nn.Module):
    """Blocks that are dropped as a whole."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import StochasticDepth

        self.blocks = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.drop, self.last = StochasticDepth(0.4, "row"), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.drop(block(x).relu())
        return self.last(x)


class Encoder(nn.Module):
    """torch's transformer layer over time first, behind a weight that is dropped from."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.last = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3), nn.Linear(4, 3)
        self.weight = nn.Parameter(torch.randn(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x.T[:, :, None], F.dropout(self.weight, 0.2, self.training))  # (T, N, 4)
        return self.last(self.inside(h).mean(0))


def attentive_vit() -> nn.Module:
    vit = torchvision_vit()
    for module in vit.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.2
    return vit


CASES = {
    "resnet": (lambda: MCDropout(seeded(Resnet)), (2, 3, 32, 32)),
    "vision transformer": (lambda: MCDropout(seeded(torchvision_vit)), (3, 3, 8, 8)),
    "vision transformer, attention too": (lambda: MCDropout(seeded(attentive_vit)), (3, 3, 8, 8)),
    "skip": (lambda: MCDropout(seeded(Skip)), TABLE),
    "u-net": (lambda: MCDropout(seeded(Unet)), PICTURES),
    "paths": (lambda: MCDropout(seeded(Paths)), TABLE),
    "transformer layer": (lambda: MCDropout(seeded(Encoder)), TABLE),
    "skip, weights": (lambda: Flipout(seeded(Skip), placement="all"), TABLE),
    "skip, some weights": (lambda: MCDropConnect(seeded(Skip), placement=["twice"], p=0.3), TABLE),
    "skip, members": (lambda: DeepEnsemble(clones(Skip, 4)), TABLE),
}


@pytest.mark.filterwarnings("ignore:network called no ReLU")
@pytest.mark.parametrize("name", CASES)
def test_draws_under_vmap_equal_the_loop(name):
    build, shape = CASES[name]
    draws, x = build().sample(4, seed=1), randn(*shape)
    for guided in (False, True):
        assert Engine(draws, x, guided=guided).how == "vmap"
    paths = [key for key in EXPLAINERS if "lime" not in key]
    for key in paths if shape == TABLE else ("gradient", "guided_backprop"):
        explainer, options = EXPLAINERS[key]
        expected = looped(draws, explainer, x, 1, **options)
        found = explain(draws, explainer, x, 1, progress=False, **options).values
        assert error(found, expected) < PROMISE, key
    assert error(Engine(draws, x).logits(x), torch.stack([draw(x) for draw in draws])) < PROMISE


def test_draws_of_half_a_pass_or_more_are_evaluated_one_by_one():
    draws = MCDropout(seeded(Skip)).sample(4, seed=1)
    together = Engine(draws, randn(*TABLE)).together
    assert together.folds(16, 7) == [range(0, 2), range(2, 4)]
    assert together.folds(16, 8) == [range(i, i + 1) for i in range(4)]


@pytest.mark.parametrize("rows", [1, 3, 7, 12, 4096])
def test_rows_cut_draws_examples_and_steps(monkeypatch, rows):
    draws, x = MCDropout(seeded(Skip)).sample(5, seed=1), randn(*TABLE)
    explainer, options = EXPLAINERS["integrated_gradients"]
    expected = looped(draws, explainer, x, 1, **options)
    met = []
    whole = Vmapped.slopes
    monkeypatch.setattr(
        Vmapped,
        "slopes",
        lambda self, passed, draws: met.append((len(draws), len(passed.h))) or whole(self, passed, draws),
    )
    engine = Engine(draws, x)
    engine.rows = rows
    met.clear()
    found = torch.stack(list(engine.attributions(explainer.declared.path(x, **options), torch.ones(4).long())))
    assert error(found, expected) < PROMISE
    assert met and all(num_draws * num_rows <= rows for num_draws, num_rows in met if num_draws > 1)
    assert max(num_rows for _, num_rows in met) <= engine.rows_of_pass == 2 * rows


def test_a_pass_of_one_draw_is_twice_as_long_as_a_fold_until_memory_is_short():
    engine = Engine(MCDropout(seeded(Skip)).sample(3, seed=1), randn(*TABLE))
    assert engine.how == "vmap" and (engine.rows, engine.rows_of_pass) == (4096, 8192)
    engine.is_short_of_memory = True
    assert engine.rows_of_pass == 4096
    chain = Engine(MCDropout(table_mlp()).sample(3, seed=1), randn(*TABLE))
    assert chain.how == "chain" and (chain.rows, chain.rows_of_pass) == (4096, 4096)


def test_memory_that_runs_out_halves_the_rows(monkeypatch):
    draws, x = MCDropout(seeded(Skip)).sample(8, seed=1), randn(*TABLE)
    engine, whole = Engine(draws, x), Vmapped.slopes

    def limited(self, passed, draws):
        if len(passed.h) * len(draws) > 16:
            raise torch.OutOfMemoryError("too many rows")
        return whole(self, passed, draws)

    monkeypatch.setattr(Vmapped, "slopes", limited)
    with pytest.warns(UserWarning, match="out of memory; going on with 16 rows"):
        found = torch.stack(list(engine.attributions(Path(x), torch.ones(4).long())))
    assert error(found, looped(draws, gradient, x, 1)) < PROMISE


class Scaled(Skip):
    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        return {"answer": super().forward(x) * scale}


def vit_before_its_head() -> nn.Module:
    vit = torchvision_vit()
    for module in vit.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    vit.heads = nn.Sequential(nn.Dropout(0.3), vit.heads)
    return vit


@pytest.mark.filterwarnings("ignore:network called no ReLU")
@pytest.mark.parametrize(
    ("build", "is_split"), [(torchvision_vit, True), (attentive_vit, False), (vit_before_its_head, False)]
)
def test_many_rows_of_attention_behind_a_mask_are_evaluated_draw_by_draw(build, is_split):
    draws, x = MCDropout(seeded(build)).sample(3, seed=1), randn(5, 3, 8, 8)
    for _ in range(2):  # the second engine knows what the first found
        engine = Engine(draws, x)
        assert engine.how == "vmap"
        assert [len(some) for some in engine.together.folds(64, 4)] == [3]
        assert [len(some) for some in engine.together.folds(64, 5)] == ([1, 1, 1] if is_split else [3])
        found = torch.stack(list(engine.attributions(Path(x), torch.ones(5).long())))
        assert error(found, looped(draws, gradient, x, 1)) < PROMISE


def test_draws_seen_through_a_view_are_evaluated_under_vmap():
    x, scale = randn(*TABLE), randn(4, 1, seed=3)
    drawn = MCDropout(seeded(Scaled)).sample(4, seed=1)
    draws, _ = drawn.seen({"x": x, "scale": scale}, "answer")
    explainer, options = EXPLAINERS["integrated_gradients"]
    expected = looped(draws, explainer, x, 1, **options)
    engine, target = Engine(draws.at(slice(1)), x).at(draws), torch.ones(4).long()
    assert engine.how == "vmap"
    for rows in (1, 16, 4096):
        engine.rows = rows
        found = torch.stack(list(engine.attributions(explainer.declared.path(x, **options), target)))
        assert error(found, expected) < PROMISE


def test_draws_seen_through_a_view_are_compared_with_themselves_once(monkeypatch):
    probed, whole = [], Vmapped._probe
    monkeypatch.setattr(Vmapped, "_probe", lambda self, points: probed.append(1) or whole(self, points))
    drawn, x, scale = MCDropout(seeded(Scaled)).sample(4, seed=1), randn(*TABLE), randn(4, 1, seed=3)
    for given, output in [((x, scale), "answer"), ((-x[:2], scale[:2]), "answer"), ((x, scale), lambda a: a["answer"])]:
        draws, _ = drawn.seen(given, output)
        assert Engine(draws.at(slice(1)), given[0][:1]).how == "vmap"
    assert len(probed) == 2  # the function may read something else


def test_what_draws_share_before_the_first_mask_is_evaluated_once(monkeypatch):
    draws, x, rows = MCDropout(seeded(Resnet)).sample(4, seed=1), randn(1, 3, 32, 32), []
    engine, whole = Engine(draws, x), torch.conv2d
    Engine(draws, x)  # what was found is known
    seen = torch.nn.Conv2d._conv_forward

    def conv(self, input, weight, bias):
        rows.append(torch._C._functorch.is_batchedtensor(torch._C._functorch.get_unwrapped(input)))
        return seen(self, input, weight, bias)

    monkeypatch.setattr(torch.nn.Conv2d, "_conv_forward", conv)
    list(engine.attributions(Path(x), torch.ones(1).long()))
    assert rows == [False] * 10 + [True] * 10
    assert whole is torch.conv2d


class Sometimes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5) * (2.0 if float(F.dropout(x, 0.5).abs().max()) < 1e9 else 1.0)


def recurrent(kind: type[nn.RNNBase]) -> nn.Module:
    network = seeded(Recurrent)
    network.lstm = kind(1, 4, num_layers=2, dropout=0.3, batch_first=True).double()
    return network


REFUSED = {
    "a recurrent layer": (
        lambda: MCDropout(recurrent(nn.GRU)).sample(3),
        "Batching rule not implemented for aten::gru",
    ),
    "an LSTM": (lambda: Flipout(seeded(Recurrent)).sample(3), "an LSTM is one operation on a CPU"),
    "control by values": (lambda: MCDropout(Sometimes()).sample(3), r"vmap: It looks like you're calling .item\(\)"),
    "one draw": (lambda: MCDropout(seeded(Skip)).sample(1), "one draw, or draws of several kinds"),
    "no draws": (
        lambda: Draws([each.eval() for each in clones(Skip, 2)]),
        "not every draw is a network with fixed masks",
    ),
    "resampled": (lambda: MCDropout(seeded(Skip)).sample(3, masks="resampled"), "not every draw"),
    "of two kinds": (
        lambda: Draws([FixedNetwork(each) for each in (*clones(Skip, 1), *clones(Paths, 1))]),
        "networks of several kinds",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_vmap_refuses_is_looped_over_and_says_why(name):
    build, why = REFUSED[name]
    draws, x = build(), randn(*TABLE)
    for _ in range(2):
        engine = Engine(draws, x)
        assert engine.how.startswith("loop: ") and not engine.is_fast
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(engine.how)
    if name != "resampled":
        assert error(explain(draws, gradient, x, 1, progress=False).values, looped(draws, gradient, x, 1)) < PROMISE


def test_relus_inside_torchs_own_layers_are_guided_whatever_one_example_shows():
    """Pooling by a norm calls a ReLU that autograd's graph alone shows; nothing of class 0 would be stopped there."""

    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 3)
            self.last.weight.data[0].abs_()

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.last(F.lp_pool1d(x, 2, 2).flatten(1))

    draws, x, target = DeepEnsemble(clones(Pools, 3)).sample(), randn(4, 2, 8), torch.tensor([0, 1, 2, 0])
    found = explain(draws, guided_backprop, x, target).values
    assert error(found, looped(draws, guided_backprop, x, target)) <= PROMISE
    assert "inside one of torch's own layers" in Engine(draws, x, guided=True).how and Engine(draws, x).is_fast


class ReadAgain(nn.Module):
    """Adds to what dropout left in a tensor, in place, the tensor itself; nothing behind sees how large that is."""

    def __init__(self, is_read_again: bool) -> None:
        super().__init__()
        self.line, self.drop, self.is_read_again = nn.Linear(5, 3), nn.Dropout(0.2, inplace=True), is_read_again

    def forward(self, x: Tensor) -> Tensor:
        dropped = self.drop(x)
        return self.line(F.normalize(dropped + x if self.is_read_again else dropped))


@pytest.mark.parametrize("is_read_again", [True, False])
def test_what_draws_wrote_over_is_not_read_side_by_side(is_read_again):
    """A draw that drops none of five features has nothing to tell whoever compares it with itself."""
    network, x = seeded(lambda: ReadAgain(is_read_again)), randn(4, 5)
    for seed in range(8):
        draws = MCDropout(network).sample(3, seed=seed)
        assert error(explain(draws, gradient, x, 1).values, looped(draws, gradient, x, 1)) <= PROMISE
        assert Engine(draws, x).how.startswith("loop: vmap gives another answer" if is_read_again else "vmap")


def test_convolutions_of_each_draw_are_not_put_side_by_side_nor_copied_to_find_out(monkeypatch):
    draws = Flipout(seeded(Unet), placement="all").sample(3)
    monkeypatch.setattr(torch, "stack", lambda *_: pytest.fail("weights were stacked"))
    assert "convolutions of their own" in Engine(draws, randn(*PICTURES)).how


def test_hooks_see_draws_one_after_another():
    draws, x, seen = MCDropout(seeded(Skip)).sample(3), randn(*TABLE), []
    draws[0].network.first.register_forward_hook(lambda *_: seen.append(1))
    assert Engine(draws, x).how == "loop: hooks see what goes through the network"
    explain(draws, gradient, x, 1, progress=False)
    assert len(seen) >= 3


def test_a_chain_in_folds_comes_first():
    draws, x = MCDropout(seeded(table_mlp)).sample(3), randn(*TABLE)
    assert Engine(draws, x).how == "chain"


@pytest.mark.parametrize("broken", ["masks", "slopes", "weights"])
def test_what_is_broken_turns_the_comparison_red(monkeypatch, broken):
    draws = (Flipout(seeded(Skip), placement="all") if broken == "weights" else MCDropout(seeded(Skip))).sample(
        4, seed=1
    )
    x = randn(*TABLE)
    engine, expected = Engine(draws, x), looped(draws, gradient, x, 1)
    if broken == "masks":
        whole = Fold.numbers
        monkeypatch.setattr(Fold, "numbers", lambda *args: ~whole(*args))
    elif broken == "slopes":
        monkeypatch.setattr(vmapped_module, "grad", lambda f: lambda x: 1.01 * torch.func.grad(f)(x))
    else:
        engine.together.own = {key: tensor.flip(0) for key, tensor in engine.together.own.items()}
    found = torch.stack(list(engine.attributions(Path(x), torch.ones(4).long())))
    assert error(found, expected) > 1e-3


def test_a_draw_that_vmap_answers_otherwise_is_looped_over(monkeypatch):
    whole = Fold.numbers
    monkeypatch.setattr(Fold, "numbers", lambda *args: ~whole(*args))
    how = Engine(MCDropout(seeded(Skip)).sample(3), randn(*TABLE)).how
    assert how == "loop: vmap gives another answer than the draw by itself"


@pytest.mark.usefixtures("untouched_generators")
def test_no_generator_is_moved_and_the_network_is_left_as_it_was():
    draws, x = MCDropout(seeded(Skip)).sample(4, seed=1), randn(*TABLE)
    before = {key: value.clone() for key, value in draws[0].state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(draws, gradient, x, 1, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in draws[0].state_dict().items())
    with torch.inference_mode():
        inside = explain(draws, gradient, x, 1, progress=False).values
    assert error(inside, looped(draws, gradient, x, 1)) < PROMISE


def test_an_explanation_says_that_its_draws_were_looped_over_and_why():
    looped_over = explain(MCDropout(Sometimes()).sample(3), gradient, randn(*TABLE), 1)
    assert looped_over.how.startswith("loop: vmap:") and looped_over.how in repr(looped_over)
    by_vmap = explain(MCDropout(seeded(Skip)).sample(3), gradient, randn(*TABLE), 1)
    assert by_vmap.how == "vmap" and "loop" not in repr(by_vmap)
