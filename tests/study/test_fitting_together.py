"""Training together: each member ends where `fit` alone would have left it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from core_networks import EXACT, randn, same_networks, seeded, tabular
from torch import nn
from torch.nn import functional as F

from xuqlib import Examples, Recipe, fit, mlp
from xuqlib.study.training.fitting import predict
from xuqlib.study.training.fitting_together import fit_together

SHORT = Recipe(epochs=4, batch_size=16, learning_rate=3e-2)


def table(num_examples: int, classes: int | None = 3, *, seed: int = 0, noisy: bool = False) -> Examples:
    """`tabular` in float64; noisy labels are independent of x."""
    examples = tabular(num_examples, classes=classes, seed=seed)
    y = randn(num_examples, 1, seed=seed + 50, dtype=torch.float32)
    if classes is not None:
        y = torch.randint(classes, (num_examples,), generator=torch.Generator().manual_seed(seed + 50))
    return dataclasses.replace(examples, x=examples.x.double(), y=y if noisy else examples.y)


def members_of(build: Callable[[], nn.Module], num_members: int = 3, dtype: torch.dtype = torch.float64) -> list[Any]:
    return [seeded(build, seed=member, dtype=dtype) for member in range(num_members)]


def small(**options: Any) -> nn.Module:
    return mlp(**{"num_features": 5, "num_outputs": 3, "hidden": (8,), **options})


def assert_as_one_by_one(
    members: list[nn.Module], train: Examples, validation: Examples, recipe: Recipe, seeds: list[int]
) -> list[pd.DataFrame]:
    alone = copy.deepcopy(members)
    histories = fit_together(members, train, validation, recipe, seeds=seeds, progress=False)
    for network, twin, history, seed in zip(members, alone, histories, seeds, strict=True):
        wanted = fit(twin, train, validation, recipe, seed=seed, progress=False)
        for (name, parameter), (_, other) in zip(network.named_parameters(), twin.named_parameters(), strict=True):
            torch.testing.assert_close(parameter, other, **EXACT, msg=lambda text, name=name: f"{name}: {text}")
        assert list(history.columns) == list(wanted.columns)
        # Losses are taken in float32, as `fit` takes them.
        pd.testing.assert_frame_equal(history.drop(columns="seconds"), wanted.drop(columns="seconds"), rtol=1e-6)
        assert not network.training
    return histories


@pytest.mark.usefixtures("untouched_generators")
@pytest.mark.parametrize("classes", [None, 2, 4], ids=["regression", "two-classes", "four-classes"])
@pytest.mark.parametrize(
    ("hidden", "num_members", "num_train", "batch_size"),
    [
        ((7,), 4, 60, 16),
        ((3, 11), 2, 65, 16),  # a last batch of one
        ((1, 2, 6), 3, 131, 2),  # more batches than are copied at once
        ((9, 4), 1, 40, 64),  # one member, one batch
    ],
)
def test_the_weights_are_those_of_training_one_by_one(classes, hidden, num_members, num_train, batch_size):
    recipe = dataclasses.replace(SHORT, batch_size=batch_size, weight_decay=0.1)
    members = members_of(lambda: small(num_outputs=classes or 1, hidden=hidden), num_members)
    before = copy.deepcopy(members)
    seeds = [5, 0, 2, 11][:num_members]
    assert_as_one_by_one(members, table(num_train, classes), table(30, classes, seed=1), recipe, seeds)
    assert not any(same_networks(*pair) for pair in zip(members, before, strict=True))


@pytest.mark.parametrize("classes", [None, 3], ids=["regression", "classification"])
def test_each_member_stops_by_itself_and_keeps_its_own_best_epoch(classes):
    # Labels of noise: the validation loss of each soon rises.
    train, validation = table(32, classes, noisy=True), table(64, classes, seed=1, noisy=True)
    recipe = Recipe(epochs=12, patience=2, batch_size=8, learning_rate=1e-2)
    members = members_of(lambda: small(num_outputs=classes or 1), 5)
    histories = assert_as_one_by_one(members, train, validation, recipe, seeds=[0, 1, 2, 3, 4])
    lengths = {len(history) for history in histories}
    best = {int(history.validation_loss.idxmin()) for history in histories}
    assert len(lengths) > 1 and min(lengths) < 12 and len(best) > 1, "otherwise this test shows nothing"


def test_training_ends_when_all_members_are_over(monkeypatch):
    epochs: list[int] = []
    whole = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *a, **k: epochs.append(1) or whole(*a, **k))
    recipe = Recipe(epochs=60, patience=2, batch_size=8, learning_rate=3e-2)
    histories = fit_together(
        members_of(small), table(32, noisy=True), table(64, seed=1, noisy=True), recipe, seeds=range(3), progress=False
    )
    assert len(epochs) == 3 * max(len(history) for history in histories) < 3 * 60


def test_soft_labels_and_many_validation_rows_too():
    train, validation = (
        dataclasses.replace(part, probs=randn(len(part), 3, seed=7, dtype=torch.float32).softmax(1))
        for part in (table(50), table(700, seed=1))
    )
    recipe = dataclasses.replace(SHORT, soft=True)
    members = members_of(small)
    hard = copy.deepcopy(members)
    assert_as_one_by_one(members, train, validation, recipe, seeds=[0, 1, 2])
    fit_together(hard, train, validation, SHORT, seeds=[0, 1, 2], progress=False)
    assert not same_networks(hard[0], members[0])


def test_any_order_of_dense_layers_and_relus_will_do():
    relu = nn.ReLU()  # the same module twice
    members = members_of(
        lambda: nn.Sequential(
            *(nn.ReLU(inplace=True), nn.Linear(5, 6, bias=False), nn.Linear(6, 6), relu),
            *(nn.Linear(6, 4), relu, nn.Linear(4, 3, bias=False)),
        )
    )
    train = table(50)
    x = train.x.clone()
    fit_together(copy.deepcopy(members), train, table(20, seed=1), SHORT, seeds=[0, 1, 2], progress=False)
    assert torch.equal(train.x, x)
    # `fit` itself would change the validation rows under an in-place first layer.
    for member in members:
        member[0] = nn.ReLU()
    assert_as_one_by_one(members, train, table(20, seed=1), SHORT, seeds=[0, 1, 2])


def test_members_own_their_weights_afterwards():
    members = members_of(small, dtype=torch.float32)
    fit_together(members, tabular(40), tabular(20, seed=1), SHORT, seeds=[0, 1, 2], progress=False)
    for member in members:
        for parameter in member.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.nbytes and parameter.requires_grad


def test_they_learn_in_float32():
    train = tabular(256)
    members = members_of(small, dtype=torch.float32)
    fit_together(
        members, train, tabular(64, seed=1), dataclasses.replace(SHORT, epochs=20), seeds=[0, 1, 2], progress=False
    )
    assert all(float(F.cross_entropy(predict(member, train.x), train.y)) < 0.2 for member in members)


def test_a_loss_that_runs_away_names_its_member_and_changes_none():
    train = table(64)
    members = members_of(small)
    with torch.no_grad():
        members[1][0].weight.fill_(1e200)
    before = copy.deepcopy(members)
    with pytest.raises(FloatingPointError, match=r"member 1 diverged in epoch 1 .*; lower learning_rate"):
        fit_together(members, train, train, SHORT, seeds=[0, 1, 2], progress=False)
    assert all(same_networks(*pair) for pair in zip(members, before, strict=True))


def frozen() -> nn.Module:
    network = small()
    network[0].bias.requires_grad_(False)
    return network


def tied() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.ReLU(), layer)


def hooked() -> nn.Module:
    network = small()
    network[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return network


class Subclass(nn.Sequential):
    """May have a forward of its own."""


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(dropout=0.5), r"member 0 is or has a Dropout; .* nn.Linear and nn.ReLU"),
        (lambda: Subclass(nn.Linear(5, 3)), "member 0 is or has a Subclass"),
        (lambda: nn.Linear(5, 3), "member 0 is or has a Linear"),
        (hooked, "without hooks"),
        (frozen, "a parameter is frozen"),
        (lambda: nn.Sequential(nn.ReLU()), "or there is none"),
        (tied, "share a parameter"),
    ],
)
def test_other_networks_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        fit_together([build(), build()], tabular(40), tabular(20), SHORT, seeds=[0, 1])


@pytest.mark.parametrize(
    "other",
    [
        lambda: small(hidden=(9,)),
        lambda: small(hidden=(8, 8)),
        lambda: small().double(),
        lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3), nn.ReLU()),
        lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)),
    ],
)
def test_members_of_different_architectures_are_refused(other):
    with pytest.raises(ValueError, match="member 1 differs from member 0"):
        fit_together([small(), other()], tabular(40), tabular(20), SHORT, seeds=[0, 1])


def test_a_member_given_twice_is_refused():
    member = small()
    with pytest.raises(ValueError, match="share a parameter"):
        fit_together([member, member], tabular(40), tabular(20), SHORT, seeds=[0, 1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"members": small()}, TypeError, "got a Sequential; pass a list of networks"),
        ({"members": [], "seeds": []}, ValueError, "0 networks and 0 seeds"),
        ({"seeds": [0]}, ValueError, "2 networks and 1 seeds; pass a seed per network"),
        ({"seeds": [0, -1]}, ValueError, "seed is -1"),
        ({"recipe": Recipe(augment="shift")}, ValueError, "augment is 'shift'; .* 'none'"),
        ({"recipe": Recipe(precision="bfloat16")}, ValueError, "precision is 'bfloat16'; .* 'float32'"),
        ({"train": tabular(1)}, ValueError, "train has 1 examples"),
        ({"validation": randn(4, 5)}, TypeError, "validation is a Tensor"),
        (
            {"train": dataclasses.replace(tabular(4), x=randn(4, 1, 8, 8))},
            ValueError,
            r"\(4, 1, 8, 8\); fit_together is for tables",
        ),
    ],
)
def test_what_it_cannot_do_is_one_clear_error(options, error, message):
    given = {"members": [small(), small()], "train": tabular(40), "validation": tabular(20), "seeds": [0, 1]}
    with pytest.raises(error, match=message):
        fit_together(**{**given, **options})
