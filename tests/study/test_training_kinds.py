"""Training for every kind of answer: its loss is the textbook's, and what is trained says what it answers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from core_networks import EXACT, randn, seeded, tabular
from torch import nn
from torch.nn import functional as F

from xuqlib import Examples, Recipe, fit, load, mlp, train_or_load
from xuqlib.study.training import checkpoints, fitting
from xuqlib.study.training.fitting import augmented_together, loss_of, predict
from xuqlib.study.training.fitting_together import fit_together
from xuqlib.study.training.loading import _overlap
from xuqlib.study.training.networks import MeanVariance, UNet
from xuqlib.study.training.recipes import LARGE, RECIPES, build, recipe_for

LOCAL = os.environ.get("XUQ_DATA")


def test_the_loss_of_a_mean_and_a_variance_is_minus_the_log_of_a_gaussian():
    mean, variance, y = randn(5, 1), randn(5, 1, seed=1).exp(), randn(5, 1, seed=2)
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(y)[:, 0]
    torch.testing.assert_close(loss_of((mean, variance), y, "none", task="regression"), -density, **EXACT)
    torch.testing.assert_close(loss_of((mean, variance), y), -density.mean(), **EXACT)


def test_the_loss_of_several_labels_at_once_is_that_of_each_by_itself():
    logits, y = randn(4, 3), (randn(4, 3, seed=1) > 0).double()
    slow = [
        -sum(math.log(p if label else 1 - p) for p, label in zip(row.sigmoid().tolist(), labels.tolist(), strict=True))
        / 3
        for row, labels in zip(logits, y, strict=True)
    ]
    wanted = torch.tensor(slow, dtype=torch.float64)
    torch.testing.assert_close(loss_of(logits, y, "none", task="multilabel"), wanted, **EXACT)
    torch.testing.assert_close(loss_of(logits, y, task="multilabel"), wanted.mean(), **EXACT)


def test_the_loss_of_pixels_is_the_mean_over_them():
    logits, y = randn(2, 3, 4, 5), torch.arange(40).reshape(2, 4, 5) % 3
    slow = torch.stack(
        [
            torch.stack([F.cross_entropy(logits[n, :, i, j], y[n, i, j]) for i in range(4) for j in range(5)]).mean()
            for n in range(2)
        ]
    )
    torch.testing.assert_close(loss_of(logits, y, "none", task="segmentation"), slow, **EXACT)
    torch.testing.assert_close(loss_of(logits, y, task="segmentation"), slow.mean(), **EXACT)


def test_the_loss_of_a_regression_of_several_outputs_is_squared_error_and_not_cross_entropy():
    output, y = randn(4, 3), randn(4, 3, seed=1)
    torch.testing.assert_close(loss_of(output, y, "none", task="regression"), (output - y).square().mean(1), **EXACT)


@pytest.mark.parametrize("task", [None, "classification"])
def test_classes_and_soft_labels_have_the_cross_entropy_they_always_had(task):
    logits, y = randn(4, 3), torch.tensor([0, 2, 1, 1])
    for target in (y, randn(4, 3, seed=1).softmax(1)):
        assert torch.equal(loss_of(logits, target, task=task), F.cross_entropy(logits, target))


def test_one_logit_is_that_of_the_second_of_two_classes_and_no_more_are_told_apart():
    logit, y = randn(5, 1), torch.tensor([0, 1, 1, 0, 1])
    wanted = F.cross_entropy(torch.cat([torch.zeros_like(logit), logit], dim=1), y, reduction="none")
    torch.testing.assert_close(loss_of(logit, y, "none", task="classification"), wanted, **EXACT)
    with pytest.raises(ValueError, match="the network has one output but class 2 is a target; give it one per class"):
        loss_of(logit, y + 1, task="classification")


def several_labels(n: int, seed: int = 0) -> Examples:
    x = randn(n, 5, seed=seed, dtype=torch.float32)
    y = (x[:, :3] > 0).float()
    index = torch.arange(n)
    return Examples(name="labels", split="train", x=x, y=y, index=index, class_names=("a", "b", "c"))


def test_several_labels_at_once_are_learnt():
    train, validation = several_labels(256), several_labels(64, seed=1)
    network = seeded(lambda: mlp(num_features=5, num_outputs=3, hidden=(16,)), dtype=torch.float32)
    fit(network, train, validation, Recipe(epochs=20, batch_size=16, learning_rate=3e-2), progress=False)
    assert ((predict(network, validation.x) > 0) == (validation.y > 0)).float().mean() > 0.95


def test_members_that_learn_several_labels_together_are_those_trained_alone():
    train, validation = several_labels(65), several_labels(20, seed=1)
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=3e-2)
    together = [seeded(lambda: mlp(num_features=5, num_outputs=3, hidden=(8,)), seed=s) for s in range(2)]
    alone = [seeded(lambda: mlp(num_features=5, num_outputs=3, hidden=(8,)), seed=s) for s in range(2)]
    train, validation = (dataclasses.replace(e, x=e.x.double(), y=e.y.double()) for e in (train, validation))
    fit_together(together, train, validation, recipe, seeds=[3, 4], progress=False)
    for network, other, seed in zip(alone, together, (3, 4), strict=True):
        fit(network, train, validation, recipe, seed=seed, progress=False)
        for one, same in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)


def test_a_variance_is_learnt_where_the_noise_is():
    examples = load("planted_table", split="train", num_examples=2000)
    network = MeanVariance(seeded(lambda: mlp(num_features=13, num_outputs=2, hidden=(32,)), dtype=torch.float32))
    recipe = Recipe(epochs=15, batch_size=64, learning_rate=1e-2)
    fit(network, examples, load("planted_table", split="validation"), recipe, progress=False)
    test = load("planted_table")
    known = ~test.masks["novel"].any(1)
    mean, variance = (part[known, 0] for part in predict(network, test.x))
    truth = test.moments[known]
    assert torch.corrcoef(torch.stack([mean, truth[:, 0]]))[0, 1] > 0.97
    assert torch.corrcoef(torch.stack([variance.log(), truth[:, 1].log()]))[0, 1] > 0.8


@pytest.mark.parametrize("augment", ["none", "shift", "shift+flip"])
def test_the_labels_of_pixels_move_with_the_picture(augment):
    y = torch.randint(0, 3, (20, 16, 16), generator=torch.Generator().manual_seed(0))
    x = torch.stack([y, 2 * y], dim=1).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved, labels = augmented_together(x, y, augment)
        soft = augmented_together(x, F.one_hot(y, 3).movedim(-1, 1).double(), augment)
    assert labels.dtype == y.dtype and labels.shape == y.shape
    assert torch.equal(moved, torch.stack([labels, 2 * labels], dim=1).float())
    assert torch.equal(labels, y) == (augment == "none")
    assert torch.equal(soft[0][:, 0], soft[1].argmax(1).float())


def test_fit_moves_the_labels_of_pixels_with_the_pictures(monkeypatch):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(fitting, "augmented_together", lambda x, y, how: seen.append((x, y)) or (x, y))
    train = load("planted_pixels", split="validation", num_examples=8)
    network = seeded(lambda: UNet(num_classes=3, widths=(2,)), dtype=torch.float32)
    fit(network, train, train, Recipe(epochs=1, batch_size=4, augment="shift"), progress=False)
    assert len(seen) == 2 and all(len(x) == len(y) == 4 for x, y in seen)


def test_pixels_are_learnt():
    train, validation = (load("planted_pixels", split=split, num_examples=64) for split in ("train", "validation"))
    network = seeded(lambda: UNet(num_classes=3, widths=(4, 8)), dtype=torch.float32)
    history = fit(network, train, validation, Recipe(epochs=3, batch_size=8, learning_rate=3e-2), progress=False)
    assert history.validation_loss.iloc[-1] < 0.8 * history.validation_loss.iloc[0]


def test_intersection_over_union_leaves_the_background_out():
    y = torch.tensor([[0, 0, 1, 1, 2, 2]])
    assert _overlap(y, y) == 1
    assert _overlap(torch.tensor([[0, 1, 1, 1, 2, 0]]), y) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert _overlap(torch.zeros_like(y), y) == 0


@pytest.mark.parametrize("batch_size", [3, 100])
def test_an_answer_of_several_tensors_is_predicted_in_batches(batch_size):
    network, x = MeanVariance(seeded(lambda: mlp(num_features=5, num_outputs=2))), randn(10, 5)
    for found, wanted in zip(predict(network, x, batch_size=batch_size), network(x), strict=True):
        torch.testing.assert_close(found, wanted.detach().float())


@pytest.mark.parametrize("dataset", ["planted_words", "planted_signals", "planted_table", "planted_pixels"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_recipe_of_each_planted_set_builds_a_network_that_answers(dataset, dropout):
    examples = load(dataset, num_examples=2)
    network = build(RECIPES[dataset], examples, dropout=dropout, placement="all").eval()
    answer = network(examples.x)
    wanted = {
        "planted_words": (2, 4),
        "planted_signals": (2, 6),
        "planted_table": (2, 1),
        "planted_pixels": (2, 3, 32, 32),
    }
    assert (answer[1] if isinstance(answer, tuple) else answer).shape == wanted[dataset]
    assert any(isinstance(module, nn.Dropout | nn.Dropout2d) for module in network.modules()) == (dropout > 0)


def test_a_variance_of_classes_is_refused():
    with pytest.raises(ValueError, match="the recipe asks for a variance but t has classes; leave the option out"):
        build(Recipe(options=(("variance", True),)), dataclasses.replace(tabular(4), name="t"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No checkpoint anywhere, a folder for new ones, and recipes that take no time."""
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    monkeypatch.delenv("XUQ_RETRAIN", raising=False)
    for name in ("planted_words", "planted_table", "planted_pixels"):
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], epochs=1, num_train=64))
    return tmp_path / "cache" / "checkpoints"


def manifest_of(home: Path, name: str) -> dict[str, Any]:
    return json.loads((home / f"{name}.json").read_text())


@pytest.mark.parametrize("method", ["mc_dropout", "deep_ensemble"])
def test_a_posterior_of_means_and_variances_says_so_and_is_found_again(home, method):
    posterior = train_or_load(method, "planted_table", num_members=2, progress=False)
    assert (posterior.output, posterior.noise_variance) == ("mean_variance", 0.0)
    again = train_or_load(method, "planted_table", num_members=2, progress=False)
    x = load("planted_table", num_examples=3).x
    for one, other in zip(posterior.network(x), again.network(x), strict=True):
        assert torch.equal(one, other)
    assert again.output == "mean_variance"
    (name, *_) = (path.stem for path in sorted(home.glob("*.json")))
    assert {"test_nll", "test_mse", "test_r2"} <= set(manifest_of(home, name)["scores"])


def test_a_plain_regression_says_so_and_classes_say_nothing(monkeypatch, home):
    monkeypatch.setitem(RECIPES, "diabetes", Recipe(epochs=1))
    for method in ("mc_dropout", "laplace"):
        assert train_or_load(method, "diabetes", progress=False).output == "regression"
    assert train_or_load("mc_dropout", "planted_words", progress=False).output is None


def test_dropout_of_a_transformer_is_everywhere_unless_it_is_said_to_be_last(home):
    everywhere = train_or_load("mc_dropout", "planted_words", progress=False).network
    last = train_or_load("mc_dropout", "planted_words", placement="last", progress=False).network
    dropouts = [[m.p for m in network.modules() if isinstance(m, nn.Dropout)] for network in (everywhere, last)]
    assert len(dropouts[0]) > 5 and dropouts[1] == [0.1]
    assert {path.stem for path in home.glob("*.json")} == {
        "planted_words-mc_dropout-all-seed0",
        "planted_words-mc_dropout-last-seed0",
    }


def test_pixels_are_scored_by_what_overlaps(home):
    train_or_load("mc_dropout", "planted_pixels", progress=False)
    scores = manifest_of(home, "planted_pixels-mc_dropout-all-seed0")["scores"]
    assert set(scores) == {f"{split}_{key}" for split in ("validation", "test") for key in ("accuracy", "nll", "iou")}


@pytest.mark.skipif(not LOCAL or not Path(LOCAL, "text").is_dir(), reason="$XUQ_DATA does not hold the real data sets")
@pytest.mark.parametrize("dataset", ["trec", "ecg5000", "ecg200", "adult", "bike_sharing", "nuclei"])
def test_the_quick_recipe_asks_for_no_more_rows_than_there_are(dataset):
    quick = recipe_for(dataset, "quick")
    assert quick.epochs == 3
    num_train = len(load(dataset, split="train"))
    assert (dataset in LARGE) == (num_train > 10_000)
    assert quick.num_train == (10_000 if dataset in LARGE else None)
