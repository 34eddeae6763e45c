"""A reader's own network: four lines attribute its uncertainty; torchvision's networks do what the notebook says."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from core_networks import EXACT, assert_same, randn, seeded, snapshot
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

from xuqlib import (
    Draws,
    Laplace,
    MCDropConnect,
    Notebook,
    gradient,
    guided_backprop,
    load,
    ua_backprop,
    ua_replacement,
    uncertainties,
)
from xuqlib.lessons import your_own
from xuqlib.study.judging.scores import scores_of
from xuqlib.study.training.recipes import Recipe
from xuqlib.ua_backprop import SETTINGS


class Readers(nn.Module):
    """What a reader might write: convolution, BatchNorm, a skip connection, ReLUs as functions."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(6)])
        self.classify = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norms[0](self.first(x)))
        x = F.relu(x + self.norms[1](self.second(x)))
        return self.classify(x.mean((2, 3)))


def a_loader():
    return DataLoader(TensorDataset(randn(24, 3, 8, 8), torch.arange(24) % 4), batch_size=8)


def test_the_uncertainty_of_a_readers_own_network_is_attributed_in_four_lines():
    network, loader, x = seeded(Readers).eval(), a_loader(), randn(5, 3, 8, 8, seed=1)
    posterior = Laplace(network).fit(loader)
    draws = posterior.sample(20, seed=0)
    attribution = ua_backprop(draws, x)
    total = attribution.sum((1, 2))
    assert_close(total, uncertainties(draws, x).epistemic, rtol=1e-12, atol=0)
    assert uncertainties(draws, x).epistemic.min() > 1e-3


@pytest.fixture(scope="module")
def resnet():
    return seeded(lambda: your_own.plain_resnet18(4)).eval()


@pytest.mark.parametrize("kind", ["total", "aleatoric", "epistemic"])
def test_the_maps_of_torchvisions_resnet18_sum_to_the_uncertainty_and_leave_it_alone(resnet, kind):
    draws, x, before = MCDropConnect(resnet, p=0.3).sample(2, seed=0), randn(2, 3, 8, 8), snapshot(resnet)
    wanted = getattr(uncertainties(draws, x), kind)
    found = {setting: ua_backprop(draws, x, kind, setting=setting) for setting in SETTINGS}
    found["replacement"] = ua_replacement(draws, x, kind, reference="black")
    for each in found.values():
        assert_close(each.sum((1, 2)), wanted, rtol=1e-12, atol=0)
    assert your_own.misses(found, wanted)["paper"] < 1e-12
    assert_same(before, snapshot(resnet))


def test_a_miss_is_the_largest_gap_in_nats_and_relative_above_one_nat():
    maps = {"right": torch.tensor([[[0.5]], [[2.0]]]), "wrong": torch.tensor([[[0.4]], [[2.5]]])}
    missed = your_own.misses(maps, torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert missed == {"right": 0.0, "wrong": pytest.approx(0.25)}


def test_resnet50_is_piecewise_linear_and_a_transformer_has_no_relu_and_a_remainder():
    networks, x = your_own.other_networks(4, seed=0), randn(1, 3, 32, 32)
    found = {name: your_own.what_holds(network, x) for name, network in networks.items()}
    bottlenecks, transformer = found["ResNet-50"], found["transformer"]
    assert bottlenecks["guided"] > 0.5
    assert bottlenecks["fullgrad"] < 1e-12
    assert transformer["guided"] == 0.0
    assert transformer["fullgrad"] > 0.01
    assert max(bottlenecks["ua_backprop"], transformer["ua_backprop"]) < 1e-12
    with pytest.warns(UserWarning, match="no ReLU"):
        assert_close(guided_backprop(networks["transformer"], x, 1), gradient(networks["transformer"], x, 1), **EXACT)


@pytest.mark.parametrize(("name", "layer"), [("ResNet-50", "fc"), ("transformer", "heads.head")])
def test_laplace_finds_the_last_layer(name, layer):
    assert Laplace(your_own.other_networks(4)[name]).last_layer == layer


def test_a_folder_gives_back_the_pictures_and_the_classes(tmp_path):
    examples = load("planted", num_examples=12)
    folder = ImageFolder(your_own.write_pictures(examples, tmp_path), transform=ToTensor())
    x, y = default_collate(list(folder))
    order = examples.y.argsort(stable=True)
    assert [name.split("_", 1)[1] for name in folder.classes] == list(examples.class_names)
    assert torch.equal(y, examples.y[order])
    assert torch.equal(x, examples.x[order])


TINY = Recipe("resnet18", epochs=2, batch_size=8, augment="shift", learning_rate=1e-2)


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.usefixtures("untouched_generators")
def test_training_that_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    x, y = randn(24, 3, 8, 8, dtype=torch.float32).sigmoid(), torch.arange(24) % 3
    whole = your_own.train_plainly(seeded(Small, dtype=torch.float32), x, y, TINY)
    assert F.cross_entropy(whole(x), y) < F.cross_entropy(seeded(Small, dtype=torch.float32).eval()(x), y)

    class Interrupted(Exception):
        pass

    state, save = tmp_path / "net.state", torch.save

    def save_once(*args):
        save(*args)
        monkeypatch.setattr(your_own.torch, "save", interrupt)

    def interrupt(*_):
        raise Interrupted

    monkeypatch.setattr(your_own.torch, "save", save_once)
    with pytest.raises(Interrupted):
        your_own.train_plainly(seeded(Small, dtype=torch.float32), x, y, TINY, state=state)
    monkeypatch.setattr(your_own.torch, "save", save)
    other = seeded(Small, seed=5, dtype=torch.float32)
    resumed = your_own.train_plainly(other, x, y, TINY, state=state)
    assert all(torch.equal(whole.state_dict()[key], value) for key, value in resumed.state_dict().items())
    assert not resumed.training


def test_the_trained_network_is_kept_without_what_stayed_as_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path))
    monkeypatch.setattr("xuqlib.study.training.checkpoints.ROOT", tmp_path / "nothing")
    monkeypatch.setitem(your_own.RECIPES, "planted", replace(TINY, epochs=1))
    few = load("planted", num_examples=16)
    monkeypatch.setattr(your_own, "load", lambda *_, **__: few)
    trained = your_own.trained_resnet18("planted")
    start = your_own.plain_resnet18(6).state_dict()
    assert [path.name for path in tmp_path.glob("**/*.state")] == []
    (path,) = tmp_path.glob("checkpoints/your_own/planted-resnet18-seed0.safetensors")
    assert path.stat().st_size < 2_000_000
    monkeypatch.setattr(your_own, "train_plainly", lambda *_, **__: pytest.fail("trained again"))
    found = your_own.trained_resnet18("planted").state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(found[key], value), key
        kept = key.startswith(("layer3", "layer4")) and value.ndim == 4
        assert torch.equal(value, start[key]) == kept or "num_batches" in key, key
    with pytest.raises(ValueError, match="unknown data set 'mnist'"):
        your_own.trained_resnet18("mnist")


def test_the_published_network_is_of_todays_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path))
    monkeypatch.setattr(your_own, "train_plainly", lambda *_, **__: pytest.fail("not published"))
    network, examples = your_own.trained_resnet18("planted"), load("planted", split="validation")
    with torch.no_grad():
        assert (network(examples.x).argmax(1) == examples.y).double().mean() > 0.8


def test_scores_are_compared_on_the_same_examples():
    logits, target = randn(1, 40, 3), torch.arange(40) % 3
    sharper = 3 * logits
    table = your_own.compare_scores(logits, sharper, target, num_resamples=50)
    assert list(table.index) == ["accuracy", "nll", "brier", "ece"]
    for score, value in scores_of(sharper, target).items():
        assert table.loc[score, "posterior"] == pytest.approx(value)
        assert table.loc[score, "difference"] == pytest.approx(value - scores_of(logits, target)[score])
    assert table.loc["accuracy", ["low", "high"]].tolist() == [0, 0], "paired: the answers are the same"
    assert table.loc["nll", "low"] < table.loc["nll", "difference"] < table.loc["nll", "high"]


class Spot(nn.Module):
    """Two classes; the logit is +-a times the pixel at the top left."""

    def __init__(self, a):
        super().__init__()
        self.a = a

    def forward(self, x):
        z = self.a * x[:, 0, 0, 0]
        return torch.stack([z, -z], 1)


def test_blurring_the_one_pixel_that_matters_first_scores_above_blurring_it_last():
    x = torch.zeros(3, 1, 10, 10, dtype=torch.float64)
    x[:2, 0, 0, 0] = 1  # of the third picture there is no uncertainty
    first = torch.arange(100).expand(3, 100)
    orders = {"first": first, "last": first.flip(1)}
    curves, areas = your_own.blur_in_order(Draws([Spot(1.0), Spot(-1.0)]), x, orders, budget=0.1, num_steps=2)
    found = areas.groupby("map")["auc"].mean()
    assert found["first"] > 0.5
    assert found["last"] == pytest.approx(0)
    assert sorted(areas["example"].unique()) == [0, 1]
    assert curves.groupby("map")["share"].unique().map(list)["first"] == [0, 0.05, 0.1]


@pytest.mark.parametrize(("sign", "verdict"), [(1, "holds"), (-1, "fails")])
def test_a_verdict_can_go_either_way(sign, verdict):
    study = Notebook("15", preset="quick", seed=0, dataset="planted")
    ends = np.array([[0.02, 0.03], [-0.3, -0.1], [-0.2, -0.1], [-0.2, -0.1]]) * sign
    table = pd.DataFrame(np.sort(ends), columns=["low", "high"], index=["accuracy", "nll", "brier", "ece"])
    table["difference"] = table.mean(axis=1)
    areas = pd.DataFrame({"map": np.repeat(["a map", "random"], 4), "example": [*range(4)] * 2})
    areas["auc"] = [*(0.5 + sign * np.array([0.2, 0.21, 0.2, 0.21])), *[0.5] * 4]
    your_own.claim_all(study, table, {"a map": 1e-7 if sign > 0 else 1e-3}, areas, num_scored=9)
    assert [claim["verdict"] for claim in study._claims] == [verdict] * 5


def test_the_accuracy_may_fall_by_a_point_and_a_wide_interval_decides_nothing():
    study = Notebook("15", preset="quick", seed=0, dataset="planted")
    table = pd.DataFrame(
        {"low": [-0.008, -0.1, -0.1], "high": [0.0, 0.1, 0.1]}, index=["accuracy", "nll", "ece"]
    ).assign(difference=0.0)
    areas = pd.DataFrame({"map": ["random"] * 2, "example": [0, 1], "auc": 0.5})
    your_own.claim_all(study, table, {}, areas, num_scored=9)
    assert [claim["verdict"] for claim in study._claims] == ["holds", "undecided", "undecided"]


def test_no_warning_is_left_by_what_holds():
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        your_own.what_holds(your_own.other_networks(3)["transformer"], randn(1, 3, 32, 32))
    assert left == []
