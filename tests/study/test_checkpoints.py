"""Checkpoints give back what was saved, or say what is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from core_networks import randn
from safetensors.torch import save_file

from xuqlib.study.training import checkpoints
from xuqlib.study.training.checkpoints import (
    CheckpointError,
    find_checkpoint,
    folders,
    load_checkpoint,
    rounded,
    save_checkpoint,
)

TENSORS = {
    "weight": randn(4, 3, dtype=torch.float32),
    "bias": randn(4, dtype=torch.float32, seed=1),
    "count": torch.tensor(7),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for published and cached checkpoints alike."""
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XUQ_RETRAIN", raising=False)
    return tmp_path


def test_rounding_halves_matrices_alone_and_survives_the_file_exactly(tmp_path):
    kept = rounded(TENSORS)
    assert [kept[name].dtype for name in TENSORS] == [torch.float16, torch.float32, torch.int64]
    path = save_checkpoint("it", kept, {"seed": 3}, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["it.json", "it.safetensors"]
    loaded, manifest = load_checkpoint(path.with_suffix(".json"))
    facts = b'{"name": "it", "seed": 3}'  # the digest is of both, the manifest's own entries sorted
    assert manifest == {"seed": 3, "name": "it", "sha256": hashlib.sha256(facts + path.read_bytes()).hexdigest()}
    for name, value in TENSORS.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], kept[name].to(value.dtype))
    again, _ = load_checkpoint(save_checkpoint("again", rounded(loaded), {}, tmp_path).with_suffix(".json"))
    assert all(torch.equal(again[name], loaded[name]) for name in TENSORS), "rounding twice is rounding once"


def test_a_damaged_file_is_refused_and_both_digests_are_named(tmp_path):
    path = save_checkpoint("it", TENSORS, {}, tmp_path)
    expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(b'{"name": "it"}' + content).hexdigest()
    told = f"it.safetensors or its manifest is damaged: expected SHA-256 {expected}, found {found}; restore it.json"
    with pytest.raises(CheckpointError, match=told):
        load_checkpoint(path.with_suffix(".json"))


def test_a_truncated_file_is_refused_too(tmp_path):
    path = save_checkpoint("it", TENSORS, {}, tmp_path)
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path.with_suffix(".json"))


def test_a_manifest_without_its_file_is_refused(tmp_path):
    path = save_checkpoint("it", TENSORS, {}, tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="it.safetensors is missing beside its manifest; restore it.json"):
        load_checkpoint(path.with_suffix(".json"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"recipe": 1}', '{"sha256": 1}', "null", "7", "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(tmp_path, content):
    path = save_checkpoint("it", TENSORS, {}, tmp_path).with_suffix(".json")
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"it.json is (not the manifest|damaged).*; restore it.json and it.saf"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_variance": 5.0},
        {"noise_variance": float("nan")},
        {"noise_variance": "0.5"},
        {"recipe": {"epochs": 2}},
        {"seed": 1},
        {"dataset": "mnist"},
        {"more": None},
        {"name": "other"},
    ],
    ids=str,
)
def test_a_manifest_that_was_changed_is_refused_whatever_is_asked_of_it(home, change):
    manifest = {"noise_variance": 0.5, "recipe": {"epochs": 1}, "seed": 0, "dataset": "digits"}
    path = save_checkpoint("it", TENSORS, manifest, folders()[0]).with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match="manifest is damaged"):
        load_checkpoint(path)
    if set(change) & {"recipe", "seed", "dataset"}:  # neither stale nor another's: nobody knows what it was
        with pytest.raises(CheckpointError, match="manifest is damaged"):
            find_checkpoint("it", {"epochs": 1}, seed=0, dataset="digits")


def test_a_pair_under_anothers_name_is_refused(home):
    path = save_checkpoint("digits-seed1", TENSORS, {"seed": 1}, folders()[0])
    for suffix in (".json", ".safetensors"):
        path.with_suffix(suffix).rename(path.with_name(f"digits-seed0{suffix}"))
    found = find_checkpoint("digits-seed0")
    with pytest.raises(CheckpointError, match="digits-seed0.json and its tensors are those of digits-seed1; restore"):
        load_checkpoint(found)


@pytest.mark.parametrize(
    "asked", [{"seed": 1}, {"dataset": "mnist"}, {"member": 2}, {"placement": "all"}], ids=lambda asked: "".join(asked)
)
def test_a_whole_checkpoint_that_is_not_what_was_asked_for_is_refused(home, asked):
    facts = {"seed": 0, "dataset": "digits", "member": 0, "placement": "last"}
    save_checkpoint("it", TENSORS, facts, folders()[0])
    assert find_checkpoint("it", **facts) == folders()[0] / "it.json"
    ((name, value),) = asked.items()
    with pytest.raises(CheckpointError, match=f"it.json has {name} {facts[name]!r} instead of {value!r}; restore"):
        find_checkpoint("it", **{**facts, **asked})


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("older", [False, True])
def test_an_interrupted_save_is_as_if_it_had_not_begun(home, monkeypatch, step, older):
    folder = folders()[-1]
    if older:
        save_checkpoint("it", TENSORS, {"version": 1}, folder)
    whole, calls = os.replace, []

    def replace(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == step:
            raise Interrupted
        whole(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Interrupted):
        save_checkpoint("it", {"weight": torch.zeros(9)}, {"version": 2}, folder)
    monkeypatch.undo()
    monkeypatch.setattr(checkpoints, "ROOT", home)
    monkeypatch.setenv("XUQ_CACHE", str(home / "cache"))
    is_orphan = older or step == 2
    told = r"it is trained anew: .*it.safetensors has no manifest beside it"
    with pytest.warns(UserWarning, match=told) if is_orphan else nullcontext():
        assert find_checkpoint("it") is None, "nothing is half there"
    save_checkpoint("it", TENSORS, {"version": 3}, folder)
    found = find_checkpoint("it")
    assert found is not None and load_checkpoint(found)[1]["version"] == 3


def test_published_checkpoints_come_before_those_of_the_cache(home):
    assert folders() == [home / "checkpoints", home / "cache" / "checkpoints"]
    assert find_checkpoint("it") is None
    save_checkpoint("it", TENSORS, {"recipe": {"epochs": 1}}, folders()[1])
    assert find_checkpoint("it") == folders()[1] / "it.json"
    save_checkpoint("it", TENSORS, {"recipe": {"epochs": 2, "widths": [1, 2]}}, folders()[0])
    assert find_checkpoint("it") == folders()[0] / "it.json"


def test_one_of_another_recipe_does_not_hide_one_of_this(home):
    save_checkpoint("it", TENSORS, {"recipe": {"epochs": 2}}, folders()[0])
    save_checkpoint("it", TENSORS, {"recipe": {"epochs": 1, "widths": (1, 2)}}, folders()[1])
    assert find_checkpoint("it", {"epochs": 1, "widths": (1, 2)}) == folders()[1] / "it.json"
    reasons = r"published/it.json.*\(epochs 2 instead of 3\); .*cache/checkpoints/it.json.*\(epochs 1 instead of 3\)"
    with pytest.warns(UserWarning, match=reasons.replace("published", "checkpoints")):
        assert find_checkpoint("it", {"epochs": 3}) is None


def test_one_that_was_made_from_another_network_is_stale(home):
    save_checkpoint("it", TENSORS, {"recipe": {"epochs": 2}, "network": "ab"}, folders()[0])
    assert find_checkpoint("it", {"epochs": 2}, network="ab") is not None
    with pytest.warns(UserWarning, match="it.json has another network"):
        assert find_checkpoint("it", {"epochs": 2}, network="cd") is None


def test_while_everything_is_trained_anew_no_older_checkpoint_counts(home, monkeypatch):
    save_checkpoint("it", TENSORS, {}, folders()[0])
    monkeypatch.setenv("XUQ_RETRAIN", "1")
    assert folders() == [home / "build" / "retrained" / "checkpoints"]
    assert find_checkpoint("it") is None


def test_a_leftover_of_an_interrupted_save_is_no_checkpoint(home):
    folders()[1].mkdir(parents=True)
    save_file(TENSORS, folders()[1] / ".it.safetensors.1.tmp")
    assert find_checkpoint("it") is None
