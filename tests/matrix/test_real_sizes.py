"""Networks at the size at which they are used: explained in float64 as by the plain loop over draws, and completely."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torchvision
from core_networks import randn, seeded
from matrix_cells import assert_equal
from matrix_networks import hugging
from torch import Tensor, nn

from xuqlib import MCDropout, explain, guided_backprop, integrated_gradients, load, ua_backprop, uncertainties
from xuqlib.study.training.mobilenet import mobilenet_v2

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.filterwarnings("ignore:network called no ReLU"),
    pytest.mark.filterwarnings("ignore:FullGrad's terms miss the logit"),
]
LOCAL = os.environ.get("XUQ_DATA")
has_weights = pytest.mark.skipif(
    not LOCAL or not Path(LOCAL, "imagenet_mobilenet").is_dir(), reason="$XUQ_DATA does not hold the weights"
)


def resnet_50() -> tuple[nn.Module, Any, Any]:
    network = torchvision.models.resnet50(weights=None)
    network.fc = nn.Sequential(nn.Dropout(0.2), network.fc)
    return network, randn(1, 3, 224, 224), None


def vit_b_16() -> tuple[nn.Module, Any, Any]:
    network = torchvision.models.vit_b_16(weights=None, dropout=0.1, attention_dropout=0.1)
    nn.init.normal_(network.heads.head.weight, 0, 0.02)  # which starts at 0
    return network, randn(1, 3, 224, 224), None


def bert_base() -> tuple[nn.Module, Any, Any]:
    ids = torch.randint(1000, 30_000, (1, 24), generator=torch.Generator().manual_seed(0))
    return hugging("Bert"), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, "logits"


def real_mobilenet_v2() -> tuple[nn.Module, Any, Any]:
    return mobilenet_v2(dropout=0.2), load("imagenet_photos").x[7:8].double(), None


def ten_of(answer: Any) -> Tensor:
    """Logits of ten classes: a map of each of a thousand would be a thousand backward passes."""
    return answer[:, :10] if isinstance(answer, Tensor) else answer.logits


@pytest.mark.parametrize("build", [resnet_50, vit_b_16, bert_base, pytest.param(real_mobilenet_v2, marks=has_weights)])
def test_a_network_of_real_size_is_explained_as_by_the_loop(build: Callable[[], tuple[nn.Module, Any, Any]]) -> None:
    given: list[Any] = []

    def network_alone() -> nn.Module:
        network, *rest = build()
        given.extend(rest)
        return network

    draws = MCDropout(seeded(network_alone).eval()).sample(2, seed=3)
    x, output = given
    target = torch.tensor([1])
    seen, explained = draws.seen(x, output)
    guided = explain(draws, guided_backprop, x, target, output=output)
    assert_equal(guided.values, torch.stack([guided_backprop(draw, explained, target) for draw in seen]))
    along = explain(draws, integrated_gradients, x, target, output=output, num_steps=2)
    zeros = torch.zeros_like(explained)
    loop = [oracles.loop_integrated_gradients(draw, explained, target, zeros, 2) for draw in seen]
    assert_equal(along.values, torch.stack(loop))
    assert guided.how == along.how == "vmap" and (guided.values[0] - guided.values[1]).abs().max() > 0
    attribution = ua_backprop(draws, x, "epistemic", output=(ten_of, "logits"))
    wanted = uncertainties(draws, x, output=(ten_of, "logits")).epistemic
    assert_equal(attribution.flatten(1).sum(1), wanted)
    assert wanted > 0
