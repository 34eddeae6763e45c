"""What draws are seen to share, and copies of networks that share what they can."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_networks import (
    EXACT,
    CarelessDropout,
    FunctionalDropout,
    FunctionalRelu,
    TwiceDropout,
    clones,
    inplace_cnn,
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

from xuqlib import DeepEnsemble, Draws, MCDropConnect, MCDropout
from xuqlib.posteriors.draws import copy_with
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.posteriors.kinds import have_same_tensors, is_hooked, is_sure, layers_of
from xuqlib.posteriors.random_weights import DropConnectLayer
from xuqlib.posteriors.shared import Split, split

TABLE, PICTURES = (4, 5), (2, 3, 8, 8)


def depths(draws: Draws, shape: tuple[int, ...] = TABLE) -> tuple[int, int] | None:
    """Numbers of layers in the trunk and in each head; None where nothing is known to be shared."""
    found = split(draws.networks)
    if found is None:
        return None
    assert len(found.heads) == len(found.seeds) == len(draws)
    assert_is_right(found, draws, randn(*shape))
    return len(found.trunk), len(found.heads[0])


def assert_is_right(found: Split, draws: Draws, x: Tensor) -> None:
    """Each head behind the trunk is its draw, for other examples than the one that was looked at."""
    with torch.no_grad():
        features = FixedNetwork(nn.Sequential(*found.trunk))(x)
        heads = [found.fixed_heads()[draw] for draw in range(len(draws))]
        assert_close(torch.stack([head(features) for head in heads]), torch.stack([draw(x) for draw in draws]), **EXACT)


def last(build: Callable[[], nn.Module], **options: Any) -> Draws:
    return MCDropConnect(seeded(build), p=0.3, **options).sample(3, seed=1)


def dropped(build: Callable[[], nn.Module]) -> Draws:
    return MCDropout(seeded(build)).sample(3, seed=1)


# What a sequential shares


def test_a_sequential_is_cut_before_its_first_random_layer():
    assert depths(dropped(late_cnn), PICTURES) == (5, 2)
    assert depths(last(late_cnn), PICTURES)[1] <= 2  # its dropout is off, and may be on either side
    assert depths(dropped(inplace_cnn), PICTURES) == (0, 10), "dropout comes first"
    assert depths(dropped(table_mlp)) == (2, 4)
    assert depths(last(table_mlp, placement="all")) == (0, 6)
    assert depths(last(table_mlp, placement=["3"])) in {(2, 4), (3, 3)}
    assert depths(DeepEnsemble(clones(table_mlp, 3)).sample()) == (0, 6)


def test_sequentials_in_sequentials_are_one_list_of_layers():
    def build() -> nn.Module:
        inside = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.Sequential()), nn.Dropout(0.3))
        return nn.Sequential(nn.Sequential(nn.Linear(5, 6)), inside, nn.Linear(6, 3))

    assert [type(layer).__name__ for layer in layers_of(build())] == ["Linear", "ReLU", "Linear", "Dropout", "Linear"]
    assert depths(dropped(build)) == (3, 2)


def test_a_hooked_sequential_stays_whole():
    def build() -> nn.Module:
        inside = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        inside.register_forward_hook(lambda _, __, output: 2 * output)
        return nn.Sequential(nn.Linear(5, 6), inside, nn.Dropout(0.3), nn.Linear(6, 3))

    assert len(layers_of(build())) == 4
    assert depths(dropped(build)) is not None
    whole = seeded(late_cnn)
    whole.register_forward_hook(lambda _, __, output: 2 * output)
    assert layers_of(whole) == [whole]


class LikeSequential(nn.Sequential):
    """A user's own, whose forward may do more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_sequential_of_the_users_own_is_one_layer():
    network = LikeSequential(nn.Linear(5, 4), nn.Dropout(0.3), nn.Linear(4, 3))
    assert layers_of(network) == [network]
    for draws in (dropped(lambda: copy.deepcopy(network)), last(lambda: copy.deepcopy(network))):
        assert depths(draws) in {None, (0, 1)}


def test_one_draw_or_the_same_network_twice_has_all_but_the_last_layer_in_common():
    network = seeded(table_mlp).eval()
    for networks in ([FixedNetwork(network)], [FixedNetwork(network)] * 3):
        trunk, head = depths(Draws(networks))
        assert trunk + head == 6 and head >= 1


@pytest.mark.parametrize(
    ("layer", "sure"),
    [
        (nn.Linear(2, 2), True),
        (nn.BatchNorm2d(2), True),
        (nn.RReLU(), True),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), True),
        (nn.TransformerEncoderLayer(4, 2, dropout=0.1), False),
        (nn.Dropout(0.0), False),
        (nn.AlphaDropout(0.3), False),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout2d(0.3)), False),
        (DropConnectLayer(nn.Linear(2, 2), 0.3), False),
        (FunctionalRelu(), False),
        (nn.Sequential(nn.Sequential(FunctionalRelu())), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_torchs_own_layers_without_dropout_are_sure_to_be_free_of_chance(layer, sure):
    assert is_sure(layer) is sure


@pytest.mark.parametrize(
    "register",
    [
        lambda module: module.register_forward_hook(lambda *_: None),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.register_full_backward_hook(lambda *_: None),
        lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    ],
    ids=["forward", "before forward", "backward", "before backward"],
)
def test_every_kind_of_hook_is_seen_and_none_after_it_is_gone(register):
    module = nn.Linear(2, 2)
    assert not is_hooked(module)
    handle = register(module)
    assert is_hooked(module)
    handle.remove()
    assert not is_hooked(module)


def test_layers_have_the_same_tensors_if_each_is_the_same_object():
    one, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert have_same_tensors([one, one]) and not have_same_tensors([one, other])
    other.weight, other.bias = one.weight, one.bias
    assert not have_same_tensors([one, other]), "their batch statistics are their own"
    other._buffers = dict(one._buffers)
    assert have_same_tensors([one, other])
    assert not have_same_tensors([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)])


# What other networks share


@pytest.mark.parametrize("build", [FunctionalRelu, TwiceDropout, torchvision_resnet])
def test_networks_that_are_no_sequential_share_nothing(build):
    assert depths(last(build), PICTURES if build is torchvision_resnet else TABLE) is None


@pytest.mark.parametrize("kind", ["a number", "a layer that torch does not see"])
def test_members_that_differ_where_no_tensor_tells_share_nothing(kind):
    class Member(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.output, self.scale = nn.Linear(5, 3), scale
            self.layers = [nn.Linear(5, 5, dtype=torch.float64).requires_grad_(False)]

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.layers[0](x) if kind != "a number" else self.scale * x)

    members = [seeded(lambda scale=scale: Member(scale), seed=scale) for scale in (1, 2)]
    assert depths(DeepEnsemble(members).sample()) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: nn.Sequential(nn.ReLU(), nn.Linear(5, 3)), lambda: nn.Sequential(nn.Tanh(), nn.Linear(5, 3))),
        (lambda: nn.Sequential(nn.ELU(1.0), nn.Linear(5, 3)), lambda: nn.Sequential(nn.ELU(2.0), nn.Linear(5, 3))),
        (lambda: nn.Sequential(nn.Linear(5, 3)), lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh())),
        (lambda: nn.Sequential(nn.Linear(5, 3)), lambda: nn.Linear(5, 3)),
        (table_mlp, FunctionalRelu),
    ],
    ids=["layers", "settings", "lengths", "kinds", "networks"],
)
def test_networks_that_are_not_alike_share_no_layer_that_differs(one, other):
    members = [seeded(one).eval(), seeded(other, seed=1).eval()]
    for networks in (members, members[::-1]):
        draws = DeepEnsemble(networks).sample()
        assert depths(draws) in {None, (0, 2)}
        assert_close(draws(randn(*TABLE)), torch.stack([draw(randn(*TABLE)) for draw in draws]), **EXACT)


def test_plain_networks_resampled_masks_and_hooked_draws_share_nothing():
    network = seeded(table_mlp).eval()
    assert split([network, network]) is None
    assert split(MCDropout(network).sample(2, masks="resampled").networks) is None
    hooked = MCDropout(network).sample(2)
    hooked[1].register_forward_hook(lambda _, __, output: 2 * output)
    assert split(hooked.networks) is None


def test_a_network_that_fails_on_the_example_shares_nothing_and_says_why_when_it_is_evaluated():
    draws = MCDropConnect(seeded(FunctionalRelu)).sample(2)
    assert split(draws.networks) is None
    with pytest.raises(ValueError, match=r"cannot evaluate x of shape \(4, 6\)"):
        draws(randn(4, 6))
    assert split(DeepEnsemble([seeded(CarelessDropout)]).sample().networks) is None


def test_a_network_that_refuses_an_example_by_itself_is_explained_all_the_same():
    class Picky(FunctionalRelu):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 1:
                raise LookupError("one is not enough")
            return super().forward(x)

    draws = last(Picky, placement=["last"])
    assert split(draws.networks) is None
    assert_close(draws(randn(*TABLE)), torch.stack([draw(randn(*TABLE)) for draw in draws]), **EXACT)


@pytest.mark.parametrize("build", [late_cnn, torchvision_resnet, TwiceDropout, FunctionalDropout])
def test_looking_for_what_is_shared_leaves_networks_and_examples_as_they_were(build):
    shape = PICTURES if build in (late_cnn, torchvision_resnet) else TABLE
    draws = last(build)
    before, x = [snapshot(draw) for draw in draws], randn(*shape)
    split(draws.networks)
    draws(x)
    for one, draw in zip(before, draws, strict=True):
        now = snapshot(draw)
        assert {key: one[key] for key in ("hooks", "modes", "identities")} == {
            key: now[key] for key in ("hooks", "modes", "identities")
        }
        assert all(torch.equal(value, now["tensors"][key]) for key, value in one["tensors"].items())
    assert torch.equal(x, randn(*shape))


# Copies


def weight_of(network: nn.Module, name: str) -> Tensor:
    return randn(*network.get_parameter(name).shape, seed=9)


def test_a_copy_of_a_plain_network_is_new_only_where_its_weights_are():
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))))
    network.requires_grad_(False)
    fresh = weight_of(network, "1.1.weight")
    copied = copy_with(network, {"1.1.weight": fresh})
    assert copied is not network and copied[1] is not network[1] and copied[1][1] is not network[1][1]
    assert copied[0] is network[0] and copied[1][0] is network[1][0]
    assert copied[1][1].bias is network[1][1].bias
    assert torch.equal(copied[1][1].weight, fresh) and not copied[1][1].weight.requires_grad
    assert isinstance(copied[1][1].weight, nn.Parameter)
    assert not torch.equal(network[1][1].weight, fresh), "the network was changed"
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in network.named_parameters()]


def test_a_copy_takes_the_dtype_of_the_network():
    network = seeded(lambda: nn.Linear(5, 3), dtype=torch.float32).requires_grad_(False)
    assert copy_with(network, {"weight": randn(3, 5)}).weight.dtype == torch.float32


def test_adding_a_layer_to_a_copy_does_not_add_it_to_the_network():
    network = seeded(table_mlp).requires_grad_(False)
    copied = copy_with(network, {"5.weight": weight_of(network, "5.weight")})
    copied.add_module("6", nn.Identity())
    copied[5].register_buffer("count", torch.zeros(1))
    assert len(network) == 6 and "5.count" not in network.state_dict()


def test_a_hook_on_a_copy_is_not_on_the_network_or_another_copy():
    network = seeded(table_mlp).requires_grad_(False)
    one, other = (copy_with(network, {"5.weight": weight_of(network, "5.weight")}) for _ in range(2))
    one[5].register_forward_hook(lambda _, __, output: 2 * output)
    assert not is_hooked(other[5]) and not is_hooked(network[5])


class InAList(nn.Module):
    """Calls its layers through lists of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 3)
        self.order = [self.one, nn.ReLU(), self.two]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return x


def test_a_copy_of_a_users_module_calls_its_own_layers_wherever_they_are_held():
    network = seeded(InAList).requires_grad_(False)
    fresh = weight_of(network, "two.weight")
    copied = copy_with(network, {"two.weight": fresh})
    assert copied.order[2] is copied.two and copied.order[0] is copied.one
    assert copied.one.weight is network.one.weight, "tensors are shared all the same"
    x = randn(*TABLE)
    assert_close(copied(x), F.linear(F.relu(network.one(x)), fresh, network.two.bias), **EXACT)
    assert not torch.allclose(copied(x), network(x))


@pytest.mark.parametrize("plain", [True, False])
def test_tied_weights_stay_tied(plain):
    def build() -> nn.Module:
        network = nn.Sequential(
            nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), *([] if plain else [InAList()])
        )
        network[2].weight = network[0].weight
        return network

    network = seeded(build).requires_grad_(False)
    copied = copy_with(network, {"0.weight": weight_of(network, "0.weight")})
    assert copied[0].weight is copied[2].weight and copied[0].weight is not network[0].weight
    assert network[0].weight is network[2].weight


def test_a_layer_that_is_held_twice_has_the_new_weight_in_both_places():
    def build() -> nn.Module:
        twice = nn.Linear(5, 5)
        return nn.Sequential(twice, nn.ReLU(), twice)

    network = seeded(build).requires_grad_(False)
    copied = copy_with(network, {"0.weight": weight_of(network, "0.weight")})
    assert copied[0].weight is copied[2].weight
    x = randn(*TABLE)
    expected = network(x)
    assert not torch.allclose(copied(x), expected) and torch.equal(network(x), expected)


def test_a_copy_without_new_weights_is_the_network_itself_if_it_is_plain():
    network = seeded(table_mlp).requires_grad_(False)
    assert copy_with(network, {}) is network
