"""A reader's own network: four lines attribute its uncertainty; torchvision's networks do what the notebook says."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from core_networks import EXACT, assert_same, randn, seeded, snapshot
from hostile import WRITABLE
from notebook_cells import definitions
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from xuqlib import (
    Draws,
    Laplace,
    MCDropConnect,
    gradient,
    guided_backprop,
    load,
    ua_backprop,
    ua_replacement,
    uncertainties,
)
from xuqlib.study.judging.scores import scores_of
from xuqlib.study.report.reading import Reading, read
from xuqlib.study.training.resnet18 import plain_resnet18
from xuqlib.ua_backprop import SETTINGS

notebook = definitions("15", yours=False)


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
    return seeded(lambda: plain_resnet18(4)).eval()


@pytest.mark.parametrize("kind", ["total", "aleatoric", "epistemic"])
def test_the_maps_of_torchvisions_resnet18_sum_to_the_uncertainty_and_leave_it_alone(resnet, kind):
    draws, x, before = MCDropConnect(resnet, p=0.3).sample(2, seed=0), randn(2, 3, 8, 8), snapshot(resnet)
    wanted = getattr(uncertainties(draws, x), kind)
    found = {setting: ua_backprop(draws, x, kind, setting=setting) for setting in SETTINGS}
    found["replacement"] = ua_replacement(draws, x, kind, reference="black")
    for each in found.values():
        assert_close(each.sum((1, 2)), wanted, rtol=1e-12, atol=0)
    assert notebook.misses(found, wanted)["paper"] < 1e-12
    assert_same(before, snapshot(resnet))


def test_a_miss_is_the_largest_gap_in_nats_and_relative_above_one_nat():
    maps = {"right": torch.tensor([[[0.5]], [[2.0]]]), "wrong": torch.tensor([[[0.4]], [[2.5]]])}
    missed = notebook.misses(maps, torch.tensor([0.5, 2.0], dtype=torch.float64))
    assert missed == {"right": 0.0, "wrong": pytest.approx(0.25)}


def promises(network, x):
    classes = network(x).argmax(1)
    return {name: measure(network, x, classes) for name, measure in notebook.PROMISES.items()}


def test_resnet50_is_piecewise_linear_and_a_transformer_has_no_relu_and_a_remainder():
    networks, x = notebook.other_networks(4, seed=0), randn(1, 3, 32, 32)
    found = {name: promises(network, x) for name, network in networks.items()}
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
    assert Laplace(notebook.other_networks(4)[name]).last_layer == layer


def from_folder(folder, count, *, classes=None, size=None, channels=3, seed=0):
    return read(folder, Reading(classes, size, channels), most=count, seed=seed)


def test_a_folder_gives_back_the_pictures_and_the_classes_in_the_order_of_the_outputs(tmp_path):
    examples = load("planted", num_examples=12)
    names = notebook.write_images(examples, tmp_path)
    found = from_folder(tmp_path, 12, classes=names)
    assert found.class_names == examples.class_names
    # Files come sorted by the name of their folder, then by that of their own, which is the row.
    order = sorted(range(12), key=lambda row: (examples.class_names[examples.y[row]], row))
    assert torch.equal(found.labels, examples.y[order])
    assert torch.equal(found.inputs.x, examples.x[order])
    assert from_folder(tmp_path, 12).class_names == tuple(sorted(names)), "alphabetical where nobody says"


@pytest.mark.parametrize("name", WRITABLE.values(), ids=WRITABLE)
def test_no_name_of_a_class_leads_out_of_the_folder_of_its_pictures(name, tmp_path):
    examples = replace(load("planted", num_examples=2), y=torch.tensor([0, 1]), class_names=(name, "other"))
    names = notebook.write_images(examples, tmp_path / "inside")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    found = from_folder(tmp_path / "inside", 2, classes=names)
    assert found.class_names == tuple(names)
    assert torch.equal(found.inputs.x[found.labels.argsort()], examples.x)


def write_pictures(folder, sizes, *, suffix=".jpg"):
    folder.mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size, (10 * number, 0, 0)).save(folder / f"a picture {number}{suffix}")


def test_folders_of_any_name_and_pictures_of_any_size_are_read_and_no_more_than_asked_for(tmp_path):
    write_pictures(tmp_path / "Zürich 1", [(20, 30)] * 5)
    write_pictures(tmp_path / "a_b_c", [(40, 16), (16, 16)], suffix=".PNG")
    (tmp_path / "a_b_c" / "notes.txt").write_text("no picture")
    found = from_folder(tmp_path, 100, size=8)
    assert found.class_names == ("Zürich 1", "a_b_c")
    assert found.inputs.x.shape == (7, 3, 8, 8) and found.labels.tolist() == [0] * 5 + [1] * 2
    few = from_folder(tmp_path, 3, size=8, channels=1, seed=1)
    assert few.inputs.x.shape == (3, 1, 8, 8) and len(few.labels) == 3
    assert torch.equal(few.inputs.x, from_folder(tmp_path, 3, size=8, channels=1, seed=1).inputs.x)


def test_a_flat_folder_has_no_classes(tmp_path):
    write_pictures(tmp_path / "all", [(8, 8)] * 3)
    found = from_folder(tmp_path / "all", 10)
    assert found.inputs.x.shape == (3, 3, 8, 8) and found.labels is None and found.class_names is None


def test_scores_are_compared_on_the_same_examples():
    logits, target = randn(1, 40, 3), torch.arange(40) % 3
    sharper = 3 * logits
    table = notebook.compare_scores(logits, sharper, target, num_resamples=50)
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
    curves, areas = notebook.blur_in_order(Draws([Spot(1.0), Spot(-1.0)]), x, orders, budget=0.1, num_steps=2)
    found = areas.groupby("map")["auc"].mean()
    assert found["first"] > 0.5
    assert found["last"] == pytest.approx(0)
    assert sorted(areas["example"].unique()) == [0, 1]
    assert curves.groupby("map")["share"].unique().map(list)["first"] == [0, 0.05, 0.1]


def test_no_warning_is_left_by_the_promises():
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        promises(notebook.other_networks(3)["transformer"], randn(1, 3, 32, 32))
    assert left == []
