"""Training: what fit promises, and how a trained posterior is found again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from core_networks import randn, same_networks, seeded, tabular
from torch import nn
from torch.nn import functional as F

from xuqlib import DeepEnsemble, Examples, Flipout, Laplace, MCDropConnect, MCDropout, Recipe, fit, mlp
from xuqlib.posteriors.fixing import seed_of
from xuqlib.study.training import checkpoints, fitting
from xuqlib.study.training import loading as training
from xuqlib.study.training.checkpoints import CheckpointError, load_checkpoint
from xuqlib.study.training.fitting import augmented, predict
from xuqlib.study.training.loading import METHODS, train_or_load
from xuqlib.study.training.recipes import RECIPES, build, recipe_for

SHORT = Recipe(epochs=3, batch_size=16, learning_rate=3e-2)


def network(dropout: float = 0.0, classes: int = 3) -> nn.Module:
    return seeded(lambda: mlp(num_features=5, num_outputs=classes, hidden=(8,), dropout=dropout), dtype=torch.float32)


def loss_of(model: nn.Module, examples: Examples) -> float:
    return float(F.cross_entropy(predict(model, examples.x), examples.y))


def test_training_lowers_the_loss_and_ends_in_eval_mode_on_the_best_epoch():
    model, train, validation = network(), tabular(256), tabular(64, seed=1, split="validation")
    before = loss_of(model, train)
    history = fit(model, train, validation, SHORT, progress=False)
    assert list(history.columns) == ["epoch", "train_loss", "validation_loss", "seconds"]
    assert history.epoch.tolist() == [1, 2, 3]
    assert loss_of(model, train) < before / 2
    assert not model.training
    assert loss_of(model, validation) == pytest.approx(history.validation_loss.min(), rel=1e-6)


def test_early_stopping_keeps_the_best_epoch():
    # Labels of noise: after a while the validation loss can only rise.
    train, validation = tabular(32), tabular(64, seed=1)
    stream = torch.Generator().manual_seed(0)
    noisy = dataclasses.replace(train, y=torch.randint(3, (32,), generator=stream))
    recipe = Recipe(epochs=40, patience=4, batch_size=8, learning_rate=3e-2, weight_decay=0.0)
    model = network()
    history = fit(model, noisy, validation, recipe, progress=False)
    best = int(history.validation_loss.idxmin()) + 1
    assert len(history) == best + 4 < 40, "it stopped 4 epochs after its best"
    assert loss_of(model, validation) == pytest.approx(history.validation_loss.min(), rel=1e-6)
    shorter = network()
    fit(shorter, noisy, validation, dataclasses.replace(recipe, patience=40), progress=False)
    assert same_networks(shorter, model), "patience changes only how long it looks"


@pytest.mark.usefixtures("untouched_generators")
@pytest.mark.parametrize(
    "kind", [lambda n: n, MCDropout, MCDropConnect, Flipout], ids=["plain", "drop", "connect", "flip"]
)
def test_the_same_seed_gives_the_same_network_bit_for_bit(kind):
    train, validation = tabular(65), tabular(20, seed=1)
    fitted = []
    for seed in (3, 3, 4):
        posterior = kind(network(dropout=0.3))
        fit(posterior, train, validation, SHORT, seed=seed, progress=False)
        fitted.append(posterior if isinstance(posterior, nn.Module) else posterior.network)
    assert same_networks(fitted[0], fitted[1])
    assert not same_networks(fitted[0], fitted[2])


def test_what_others_draw_does_not_matter():
    fitted = []
    for seed in (11, 12):
        model = network(dropout=0.3)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            fit(MCDropout(model), tabular(33), tabular(20, seed=1), SHORT, progress=False)
        fitted.append(model)
    assert same_networks(*fitted)


def test_pictures_are_augmented_by_the_seed_too():
    x = randn(40, 1, 8, 8, dtype=torch.float32)
    pictures = Examples(
        name="p", split="train", x=x, y=torch.arange(40) % 2, index=torch.arange(40), class_names=("a", "b")
    )
    recipe = Recipe("mini_vgg", (("widths", (2, 2, 2)), ("hidden", 4)), epochs=1, augment="shift+flip", batch_size=16)
    fitted = []
    for seed in (0, 0, 1):
        model = seeded(lambda: build(recipe, pictures), dtype=torch.float32)
        fit(model, pictures, pictures, recipe, seed=seed, progress=False)
        fitted.append(model)
    assert same_networks(fitted[0], fitted[1]) and not same_networks(fitted[0], fitted[2])


def test_a_last_batch_of_one_example_is_left_out():
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), dtype=torch.float32)
    history = fit(model, tabular(33), tabular(20, seed=1), SHORT, progress=False)  # 16 + 16 + 1
    assert len(history) == 3 and np.isfinite(history.train_loss).all()


def test_a_loss_that_runs_away_is_one_clear_error():
    wild = Recipe(epochs=5, batch_size=16, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"training diverged in epoch \d .*; lower learning_rate"):
        fit(network(), tabular(64), tabular(20, seed=1), wild, progress=False)


@pytest.mark.parametrize("flat", [False, True])
def test_regression_is_by_squares_whether_the_output_is_a_column_or_flat(flat):
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(x).squeeze(1) if flat else self.line(x)

    model, train = seeded(Flat, dtype=torch.float32), tabular(256, classes=None)
    fit(
        model,
        train,
        tabular(20, classes=None, seed=1),
        Recipe(epochs=40, batch_size=32, learning_rate=3e-2, weight_decay=0.0),
        progress=False,
    )
    assert float((predict(model, train.x).view(-1, 1) - train.y).square().mean()) < 0.01 * float(train.y.var())


def test_soft_labels_replace_the_class_index():
    train = tabular(64)
    soft = dataclasses.replace(train, probs=F.one_hot((train.y + 1) % 3, 3).float())
    model = network()
    fit(model, soft, soft, dataclasses.replace(SHORT, soft=True, epochs=30), progress=False)
    assert (predict(model, soft.x).argmax(1) == (soft.y + 1) % 3).float().mean() > 0.8


def test_flipout_learns_under_its_kl_weight():
    train, validation = tabular(1024), tabular(64, seed=1)
    # One epoch, since the epoch with the best prediction is kept, and only the first under a huge divergence.
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=5e-2, weight_decay=0.0)
    spread = {}
    for weight in (0.0, 1e6):
        posterior = Flipout(network(), initial_std=0.05, prior_std=0.7, kl_weight=weight)
        before = loss_of(posterior.network, train)
        fit(posterior, train, validation, recipe, progress=False)
        assert (loss_of(posterior.network, train) < before / 2) == (weight == 0)
        spread[weight] = posterior.network.get_submodule(posterior.layers[0]).std.detach()
    assert spread[0.0].mean() < 0.2
    assert (spread[1e6] - 0.7).abs().max() < 0.1, "only the prior counts"


@pytest.mark.parametrize("has_it", [True, False])
def test_a_cpu_without_bfloat16_trains_in_float32(monkeypatch, has_it):
    monkeypatch.setattr(fitting, "has_bfloat16", lambda where: has_it)
    with fitting._computing(Recipe(precision="bfloat16"), torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") is has_it
    with fitting._computing(Recipe(), torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")


def test_augmentation_shifts_each_picture_by_at_most_an_eighth():
    x = torch.zeros(200, 1, 16, 16)
    x[:, :, 8, 4] = 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shifted, flipped = augmented(x, "shift"), augmented(x, "shift+flip")
    assert augmented(x, "none") is x
    rows, columns = shifted[:, 0].flatten(1).argmax(1) // 16, shifted[:, 0].flatten(1).argmax(1) % 16
    assert sorted(set(rows.tolist())) == [6, 7, 8, 9, 10] and sorted(set(columns.tolist())) == [2, 3, 4, 5, 6]
    sides = flipped[:, 0].flatten(1).argmax(1) % 16
    assert set(sides.tolist()) == {*range(2, 7), *range(9, 14)}
    assert 60 < int((sides > 8).sum()) < 140, "half of them are mirrored"


def test_predicting_restores_the_mode_and_does_not_depend_on_the_batches():
    model, x = network(dropout=0.5).train(), randn(50, 5, dtype=torch.float32)
    outputs = predict(model, x, batch_size=7)
    assert model.training
    torch.testing.assert_close(outputs, predict(model, x), rtol=1e-5, atol=1e-6)


def test_the_quick_preset_shortens_what_is_not_embedded():
    assert recipe_for("digits", "quick") == recipe_for("digits") == RECIPES["digits"]
    quick = recipe_for("cifar10", "quick")
    assert (quick.epochs, quick.num_train) == (3, 10_000)
    assert dataclasses.replace(quick, epochs=15, num_train=None) == RECIPES["cifar10"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No checkpoint anywhere, a folder for new ones, and a recipe for diabetes that takes no time."""
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    monkeypatch.delenv("XUQ_RETRAIN", raising=False)
    short = dataclasses.replace(RECIPES["diabetes"], epochs=2, options=(("hidden", (16,)),))
    monkeypatch.setitem(RECIPES, "diabetes", short)
    return tmp_path / "cache" / "checkpoints"


def forbid_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("it was trained although there is a checkpoint")

    for where, name in ((training, "fit"), (training, "fit_together"), (Laplace, "fit")):
        monkeypatch.setattr(where, name, train)


def diabetes(method: str = "mc_dropout", **options: Any) -> Any:
    return train_or_load(method, "diabetes", progress=False, num_members=2, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_posterior_is_trained_once_and_loaded_ever_after(home, monkeypatch, method):
    x = randn(3, 10, dtype=torch.float32)
    trained = diabetes(method)
    forbid_training(monkeypatch)
    loaded = diabetes(method)
    assert same_networks(trained.network, loaded.network)
    assert trained.noise_variance == loaded.noise_variance > 0
    assert torch.equal(trained.sample(2, seed=1)(x), loaded.sample(2, seed=1)(x))
    assert not torch.equal(*trained.sample(2, seed=1)(x))
    assert loaded.name == method.removesuffix("_all") and not loaded.network.training


@pytest.mark.parametrize("method", ["mc_dropout", "mc_dropconnect", "flipout"])
def test_a_posterior_that_is_random_in_every_layer_has_a_name_of_its_own(home, monkeypatch, method):
    trained = diabetes(method, placement="all")
    forbid_training(monkeypatch)
    assert same_networks(trained.network, diabetes(f"{method}_all").network)
    with pytest.raises(ValueError, match="leave one of the two out"):
        diabetes(f"{method}_all", placement="last")


def test_the_manifest_says_how_a_network_came_about(home):
    diabetes(seed=3)
    (path,) = home.glob("*.json")
    assert path.name == "diabetes-mc_dropout-last-seed3.json"
    manifest = json.loads(path.read_text())
    assert manifest["recipe"] == json.loads(json.dumps(dataclasses.asdict(RECIPES["diabetes"])))
    assert {"sha256", "train_digest", "versions", "device", "seconds", "epochs_run"} <= set(manifest)
    assert (manifest["seed"], manifest["member"], manifest["dataset"]) == (3, 0, "diabetes")
    assert set(manifest["scores"]) == {"validation_mse", "validation_r2", "test_mse", "test_r2"}
    assert manifest["noise_variance"] == manifest["scores"]["validation_mse"]


def test_members_methods_placements_and_seeds_have_checkpoints_of_their_own(home):
    diabetes("deep_ensemble"), diabetes("laplace"), diabetes(), diabetes(placement="all"), diabetes(seed=1)
    assert {path.stem.removeprefix("diabetes-") for path in home.glob("*.json")} == {
        *("plain-member0-seed0", "plain-member1-seed0", "laplace-last-seed0"),
        *("mc_dropout-last-seed0", "mc_dropout-all-seed0", "mc_dropout-last-seed1"),
    }


def note_training(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, dict[str, Any]]]]:
    """Note what `fit` and `fit_together` return, and their options, each time."""
    calls: dict[str, list[Any]] = {"fit": [], "fit_together": []}

    def noted(name: str) -> Any:
        whole = getattr(training, name)

        def call(*given: Any, **options: Any) -> Any:
            calls[name].append((whole(*given, **options), options))
            return calls[name][-1][0]

        return call

    for name in calls:
        monkeypatch.setattr(training, name, noted(name))
    return calls


def test_missing_mlps_are_trained_together_and_each_is_kept(home, monkeypatch):
    calls, clock = note_training(monkeypatch), iter([0.0, 30.0])
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    trained = train_or_load("deep_ensemble", "diabetes", num_members=3, progress=False)
    ((histories, options),) = calls["fit_together"]
    assert not calls["fit"] and options["seeds"] == [seed_of(0, member) for member in range(3)]
    manifests = [json.loads((home / f"diabetes-plain-member{m}-seed0.json").read_text()) for m in range(3)]
    assert [manifest["member"] for manifest in manifests] == [0, 1, 2]
    assert [manifest["epochs_run"] for manifest in manifests] == [len(history) for history in histories]
    assert [manifest["seconds"] for manifest in manifests] == [10.0] * 3, "each its share"
    forbid_training(monkeypatch)
    loaded = train_or_load("deep_ensemble", "diabetes", num_members=3, progress=False)
    for one, other, manifest in zip(trained.members, loaded.members, manifests, strict=True):
        assert same_networks(one, other)
        test = training.load("diabetes", split="test")
        assert float(F.mse_loss(predict(other, test.x), test.y)) == manifest["scores"]["test_mse"]


def test_a_member_trained_together_is_the_one_trained_alone(home):
    ensemble = diabetes("deep_ensemble")
    alone = train_or_load("deep_ensemble", "diabetes", num_members=1, retrain=True, progress=False)
    for one, other in zip(ensemble.members[0].parameters(), alone.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-5)  # float16 has 11 bits
    assert not same_networks(*ensemble.members)
    for suffix in (".json", ".safetensors"):
        (home / f"diabetes-plain-member1-seed0{suffix}").unlink()
    for one, other in zip(diabetes("deep_ensemble").members, ensemble.members, strict=True):
        for parameter, wanted in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(parameter, wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("missing", "calls_wanted"), [([1], (1, 0)), ([0, 2], (0, 1))], ids=["one", "two"])
def test_an_interrupted_ensemble_goes_on_with_the_missing_members(home, monkeypatch, missing, calls_wanted):
    train_or_load("deep_ensemble", "diabetes", num_members=3, progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in home.glob("*.json")}
    for member in missing:
        (home / f"diabetes-plain-member{member}-seed0.json").unlink()
    calls = note_training(monkeypatch)
    with pytest.warns(
        UserWarning, match=r"plain-member\d-seed0 is trained anew: .*safetensors has no manifest"
    ) as told:
        train_or_load("deep_ensemble", "diabetes", num_members=3, progress=False)
    assert len(told) == len(missing)
    assert (len(calls["fit"]), len(calls["fit_together"])) == calls_wanted
    changed = {path.name for path in home.glob("*.json") if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {f"diabetes-plain-member{member}-seed0.json" for member in missing}


def test_convolutional_members_are_trained_one_after_another(home, monkeypatch):
    tiny = {"options": (("widths", (2, 2, 2)), ("hidden", 4)), "epochs": 1, "num_train": 40}
    monkeypatch.setitem(RECIPES, "digits", dataclasses.replace(RECIPES["digits"], **tiny))
    calls = note_training(monkeypatch)
    ensemble = train_or_load("deep_ensemble", "digits", num_members=2, progress=False)
    assert (len(calls["fit"]), len(calls["fit_together"])) == (2, 0)
    assert not same_networks(*ensemble.members) and len(list(home.glob("*.safetensors"))) == 2


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_retraining_trains_anew(home, monkeypatch, how):
    first = diabetes()
    forbid_training(monkeypatch)
    if how == "environment":
        monkeypatch.setenv("XUQ_RETRAIN", "1")
    options = {"retrain": True} if how == "argument" else {}
    with pytest.raises(AssertionError, match="it was trained"):
        diabetes(**options)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "ROOT", home.parent.parent)
    monkeypatch.setenv("XUQ_CACHE", str(home.parent))
    assert first.network is not None


def test_the_same_seed_retrained_gives_the_same_posterior(home):
    assert same_networks(diabetes().network, diabetes(retrain=True).network)


def test_a_checkpoint_of_another_recipe_is_not_used_even_if_it_is_published(home, monkeypatch):
    diabetes()
    published = home.parent.parent / "checkpoints"
    home.rename(published)
    monkeypatch.setitem(RECIPES, "diabetes", dataclasses.replace(RECIPES["diabetes"], epochs=1))
    with pytest.warns(UserWarning, match=r"checkpoints/diabetes-mc.* has another recipe \(epochs 2 instead of 1\)"):
        diabetes()
    assert len(list(home.glob("*.json"))) == 1, "trained into the cache"
    forbid_training(monkeypatch)
    diabetes()  # and found there, behind the stale one


@pytest.mark.parametrize("method", ["deep_ensemble", "mc_dropout", "laplace"])
def test_another_seeds_pair_under_this_seeds_name_is_refused(home, method):
    for seed in (0, 1):
        diabetes(method, seed=seed)
    name = {"deep_ensemble": "plain-member0", "mc_dropout": "mc_dropout-last", "laplace": "laplace-last"}[method]
    for suffix in (".json", ".safetensors"):
        (home / f"diabetes-{name}-seed1{suffix}").replace(home / f"diabetes-{name}-seed0{suffix}")
    with pytest.raises(CheckpointError, match=f"{name}-seed0.json and its tensors are those of diabetes-{name}-seed1"):
        diabetes(method)


def test_a_laplace_approximation_of_another_network_is_fitted_anew(home):
    diabetes("laplace")
    path = home / "diabetes-plain-member0-seed0.safetensors"
    tensors, manifest = load_checkpoint(path.with_suffix(".json"))
    tensors[next(iter(tensors))].mul_(2)
    checkpoints.save_checkpoint(path.stem, tensors, manifest, home)
    with pytest.warns(UserWarning, match="diabetes-laplace-last-seed0 is trained anew: .* has another network"):
        again = diabetes("laplace")
    assert same_networks(again.network, diabetes("laplace").network)


def test_a_recipe_of_ones_own_is_kept_under_its_networks_name_beside_the_data_sets(home, monkeypatch):
    own = Recipe(epochs=1, options=(("hidden", (8,)),))
    first = diabetes()
    network = diabetes(recipe=own).network
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [8, 1]
    assert {path.stem for path in home.glob("*.json")} == {
        "diabetes-mc_dropout-last-seed0",
        "diabetes-mlp-mc_dropout-last-seed0",
    }
    forbid_training(monkeypatch)
    assert same_networks(diabetes(recipe=own).network, network)
    assert same_networks(diabetes().network, first.network)


def test_a_damaged_checkpoint_is_refused_not_retrained(home):
    diabetes()
    (path,) = home.glob("*.safetensors")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CheckpointError, match="damaged: expected SHA-256 [0-9a-f]{64}, found [0-9a-f]{64}"):
        diabetes()


def test_a_network_is_rounded_once_so_its_scores_are_those_of_the_checkpoint(home):
    posterior = diabetes()
    (path,) = home.glob("*.json")
    test = training.load("diabetes", split="test")
    mse = float(F.mse_loss(predict(posterior.network, test.x), test.y))
    assert json.loads(path.read_text())["scores"]["test_mse"] == mse


def test_an_ensembles_noise_is_the_mean_of_its_members(home):
    ensemble = diabetes("deep_ensemble")
    assert isinstance(ensemble, DeepEnsemble)
    noises = [json.loads(path.read_text())["noise_variance"] for path in home.glob("*.json")]
    assert ensemble.noise_variance == pytest.approx(np.mean(noises))
