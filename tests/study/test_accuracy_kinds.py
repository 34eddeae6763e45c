"""The published networks for words, signals, tables and pixels score as stated, and are unsure where the truth says."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xuqlib import load, train_or_load
from xuqlib.study.data.download import DataError
from xuqlib.study.data.loading import Examples
from xuqlib.study.data.planted import kinds
from xuqlib.study.training.fitting import predict
from xuqlib.study.training.loading import _overlap
from xuqlib.study.training.recipes import RECIPES

PUBLISHED = Path(__file__).resolve().parents[2] / "checkpoints"
PLANTED = ("planted_words", "planted_signals", "planted_table", "planted_pixels")
REAL = ("trec", "ecg200", "ecg5000", "adult", "bike_sharing", "nuclei", "fashion_mnist")
FIRST = {"adult": 1000, "fashion_mnist": 250, "nuclei": 8, "planted_pixels": 100}  # of test, to take a second at most
SIGMAS = 3


@pytest.fixture(autouse=True)
def _published_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine's cache is looked at, and nothing is trained."""
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path))
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    monkeypatch.delenv("XUQ_RETRAIN", raising=False)

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("no published checkpoint of today's recipe, so it would be trained")

    monkeypatch.setattr("xuqlib.study.training.loading._Job.train", train)


def at_hand(dataset: str, **options: Any) -> Examples:
    try:
        return load(dataset, **options)
    except DataError as error:
        pytest.skip(f"the data of {dataset} are not at hand: {str(error).splitlines()[0]}")


def manifests(dataset: str) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in PUBLISHED.glob(f"{dataset}-*-seed0.json")}


@pytest.mark.parametrize("dataset", [*PLANTED, *REAL])
def test_every_network_was_trained_on_todays_examples(dataset):
    at_hand(dataset, num_examples=1)
    train = load(dataset, split="train", num_examples=RECIPES[dataset].num_train)
    found = {manifest["train_digest"] for manifest in manifests(dataset).values()}
    assert found == {train.digest}


@pytest.mark.parametrize("dataset", [*PLANTED, *REAL])
@pytest.mark.parametrize("method", ["deep_ensemble", "mc_dropout"])
def test_a_network_scores_as_its_manifest_states(dataset, method):
    examples = at_hand(dataset)
    name = "plain-member0" if method == "deep_ensemble" else "mc_dropout"
    (stated,) = (m["scores"] for stem, m in manifests(dataset).items() if stem.startswith(f"{dataset}-{name}"))
    shown = examples[: FIRST.get(dataset, len(examples))]
    network = train_or_load(method, dataset, num_members=1, progress=False).network
    answer = predict(network, shown.x)
    whole = len(shown) == len(examples)
    if examples.task == "regression":
        found = 1 - float((answer[0] - shown.y).square().mean() / shown.y.var(correction=0))
        assert found == pytest.approx(stated["test_r2"], abs=1e-4)
    elif examples.task == "segmentation":
        # Pixels of a picture belong together, so a few pictures tell the whole only roughly.
        assert _overlap(answer.argmax(1), shown.y) == pytest.approx(stated["test_iou"], abs=0.08)
    else:
        p = stated["test_accuracy"]
        # An example on the edge may fall to the other side on another machine.
        error = 2.5 / len(shown) if whole else SIGMAS * (p * (1 - p) / len(shown)) ** 0.5
        assert float((answer.argmax(1) == shown.y).double().mean()) == pytest.approx(p, abs=error)


@cache
def answers(dataset: str, method: str) -> list[Any]:
    draws = train_or_load(method, dataset, progress=False).sample(5)
    with torch.no_grad():
        return [draw(load(dataset).x) for draw in draws]


def entropy(probs: Tensor, axis: int) -> Tensor:
    return torch.special.entr(probs).sum(axis)


def parts(dataset: str, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean probabilities, and aleatoric and epistemic uncertainty in nats, over the draws."""
    probs = torch.stack(answers(dataset, method)).double().softmax(2)
    aleatoric = entropy(probs, 2).mean(0)
    return probs.mean(0), aleatoric, entropy(probs.mean(0), 1) - aleatoric


@pytest.mark.parametrize("method", ["deep_ensemble", "mc_dropout"])
@pytest.mark.parametrize("dataset", ["planted_words", "planted_signals"])
def test_draws_know_what_is_plain_and_are_unsure_in_the_way_that_was_planted(dataset, method):
    examples = load(dataset)
    shown = kinds({name: mask.numpy() for name, mask in examples.masks.items()})
    mean, aleatoric, epistemic = parts(dataset, method)
    right = mean.argmax(1) == examples.y
    rows = {kind: torch.from_numpy(np.flatnonzero(shown == kind)) for kind in np.unique(shown)}
    assert right[rows["plain"]].double().mean() > 0.98
    for kind in ("ambiguous", "rare", "unseen"):
        assert aleatoric[rows["ambiguous"]].mean() > 4 * aleatoric[rows["plain"]].mean()
        if kind != "ambiguous":
            assert epistemic[rows[kind]].mean() > 4 * epistemic[rows["plain"]].mean(), kind
    # Whoever knows the odds is right as often as they say.
    odds = examples.probs[rows["ambiguous"]].amax(1).double()
    error = float((odds * (1 - odds)).sum().sqrt()) / len(odds)
    assert right[rows["ambiguous"]].double().mean() >= float(odds.mean()) - SIGMAS * error
    surprise = entropy(examples.probs.double(), 1)
    ambiguous = rows["ambiguous"]
    assert aleatoric[ambiguous].mean() == pytest.approx(float(surprise[ambiguous].mean()), rel=0.5)


@pytest.mark.parametrize("method", ["deep_ensemble", "mc_dropout"])
def test_the_variance_head_has_the_noise_that_was_planted_and_draws_differ_where_a_number_is_out_of_range(method):
    examples = load("planted_table")
    means, variances = (torch.stack(part)[..., 0] for part in zip(*answers("planted_table", method), strict=True))
    known = ~examples.masks["novel"].any(1)
    assert variances.mean(0)[known].mean() == pytest.approx(float(examples.moments[known, 1].mean()), rel=0.15)
    both = torch.stack([variances.mean(0)[known].log(), examples.moments[known, 1].log()])
    assert torch.corrcoef(both)[0, 1] > 0.85
    far = examples.masks["novel"] & ~examples.masks["evidence"]
    assert means.var(0)[far.any(1)].mean() > 1.5 * means.var(0)[known].mean()


@pytest.mark.parametrize("method", ["deep_ensemble", "mc_dropout"])
def test_pixels_are_unsure_at_fading_edges_and_on_what_was_never_shown(method):
    examples = load("planted_pixels")
    mean, aleatoric, epistemic = parts("planted_pixels", method)
    edge, cross = examples.masks["ambiguous"], examples.masks["novel"]
    rest = ~edge & ~cross
    assert (mean.argmax(1) == examples.y)[rest].double().mean() > 0.98
    assert aleatoric[edge].mean() > 5 * aleatoric[rest].mean()
    assert epistemic[cross].mean() > 5 * epistemic[rest].mean()


@pytest.mark.skipif(not os.environ.get("XUQ_DATA"), reason="$XUQ_DATA does not hold the real data sets")
def test_five_networks_are_better_than_one_at_questions():
    examples = at_hand("trec")
    draws = train_or_load("deep_ensemble", "trec", progress=False).sample()
    with torch.no_grad():
        probs = torch.stack([draw(examples.x) for draw in draws]).softmax(-1)
    alone = [float((p.argmax(1) == examples.y).double().mean()) for p in probs]
    assert float((probs.mean(0).argmax(1) == examples.y).double().mean()) > sum(alone) / len(alone)
