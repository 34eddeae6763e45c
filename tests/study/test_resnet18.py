"""The ResNet-18s of notebook 15: an ordinary training that goes on where it was interrupted, and is kept small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from core_networks import randn, seeded
from torch import nn
from torch.nn import functional as F

from xuqlib import load
from xuqlib.study.training import resnet18
from xuqlib.study.training.recipes import Recipe

TINY = Recipe("resnet18", epochs=2, batch_size=8, augment="shift", learning_rate=1e-2)


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


@pytest.mark.usefixtures("untouched_generators")
def test_training_that_was_interrupted_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    x, y = randn(24, 3, 8, 8, dtype=torch.float32).sigmoid(), torch.arange(24) % 3
    whole = resnet18.train_plainly(seeded(Small, dtype=torch.float32), x, y, TINY)
    assert F.cross_entropy(whole(x), y) < F.cross_entropy(seeded(Small, dtype=torch.float32).eval()(x), y)

    class Interrupted(Exception):
        pass

    state, write = tmp_path / "net.state", resnet18.replace_file

    def write_once(*args):
        write(*args)
        monkeypatch.setattr(resnet18, "replace_file", interrupt)

    def interrupt(*_):
        raise Interrupted

    monkeypatch.setattr(resnet18, "replace_file", write_once)
    with pytest.raises(Interrupted):
        resnet18.train_plainly(seeded(Small, dtype=torch.float32), x, y, TINY, state=state)
    monkeypatch.setattr(resnet18, "replace_file", write)
    kept = state.read_bytes()
    other = seeded(Small, seed=5, dtype=torch.float32)
    resumed = resnet18.train_plainly(other, x, y, TINY, state=state)
    assert all(torch.equal(whole.state_dict()[key], value) for key, value in resumed.state_dict().items())
    assert not resumed.training
    for damaged in (kept[:-1], kept[:5], b"", kept[:-9] + b"?" + kept[-8:]):
        state.write_bytes(damaged)
        again = seeded(Small, dtype=torch.float32)
        with pytest.warns(UserWarning, match="net.state is damaged, in .*; the training begins anew"):
            resnet18.train_plainly(again, x, y, TINY, state=state)
        assert all(torch.equal(whole.state_dict()[key], value) for key, value in again.state_dict().items())


def test_the_trained_network_is_kept_without_what_stayed_as_it_started(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path))
    monkeypatch.setattr("xuqlib.study.training.checkpoints.ROOT", tmp_path / "nothing")
    monkeypatch.setitem(resnet18.RECIPES, "planted", replace(TINY, epochs=1))
    few = load("planted", num_examples=16)
    monkeypatch.setattr(resnet18, "load", lambda *_, **__: few)
    trained = resnet18.trained_resnet18("planted")
    start = resnet18.plain_resnet18(6).state_dict()
    assert [path.name for path in tmp_path.glob("**/*.state")] == []
    (path,) = tmp_path.glob("checkpoints/your_own/planted-resnet18-seed0.safetensors")
    assert path.stat().st_size < 2_000_000
    monkeypatch.setattr(resnet18, "train_plainly", lambda *_, **__: pytest.fail("trained again"))
    found = resnet18.trained_resnet18("planted").state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(found[key], value), key
        kept = key.startswith(("layer3", "layer4")) and value.ndim == 4
        assert torch.equal(value, start[key]) == kept or "num_batches" in key, key
    with pytest.raises(ValueError, match="unknown data set 'mnist'"):
        resnet18.trained_resnet18("mnist")


def test_the_published_network_is_of_todays_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path))
    monkeypatch.setattr(resnet18, "train_plainly", lambda *_, **__: pytest.fail("not published"))
    network, examples = resnet18.trained_resnet18("planted"), load("planted", split="validation")
    with torch.no_grad():
        assert (network(examples.x).argmax(1) == examples.y).double().mean() > 0.8
