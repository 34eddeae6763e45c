"""What holds on a device, shown on a pretended one; `test_device.py` runs this file in a process of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pretend_device
import pytest
import torch
from core_networks import EXACT, FunctionalDropout, OneOutput, inplace_cnn, late_cnn, randn, seeded, table_mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import xuqlib as xuq
from xuqlib.explainers import EXPLAINERS
from xuqlib.metrics.deletion import deletion, insertion, pixel_order
from xuqlib.posteriors.draws import Draws
from xuqlib.study.judging.blurring import greedy_order, uncertainty_curves

HERE = torch.device("pretend", 0)


class Residual(nn.Module):
    """A residual network: a stem, a block with a skip connection and batch norms, dropout in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(F.relu(self.norm(self.stem(x))))
        h = F.relu(h + self.two(F.relu(self.one(h))))
        return self.head(h.mean((2, 3)))


class Transformer(nn.Module):
    """A small encoder over the rows of an image, with torch's own dropout inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(24, 2, dim_feedforward=16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x.movedim(1, 2).flatten(2)).mean(1))


class Tokens(nn.Module):
    """A classifier of token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.drop, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Dropout(0.3), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.mix(self.embed(ids)))).mean(1))


PICTURES, TABLE = randn(3, 3, 8, 8), randn(4, 5)
IDS = torch.arange(12).view(2, 6) % 9
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "cnn": (inplace_cnn, PICTURES),
    "late cnn": (late_cnn, PICTURES),
    "mlp": (table_mlp, TABLE),
    "functional": (FunctionalDropout, TABLE),
    "residual": (Residual, PICTURES),
    "transformer": (Transformer, PICTURES),
    "tokens": (Tokens, IDS),
    "regression": (OneOutput, TABLE),
}
POSTERIORS: dict[str, Callable[[Callable[[], nn.Module]], xuq.Posterior]] = {
    "dropout": lambda build: xuq.MCDropout(seeded(build).eval()),
    "dropconnect": lambda build: xuq.MCDropConnect(seeded(build).eval(), p=0.3, placement="last"),
    "flipout": lambda build: xuq.Flipout(seeded(build).eval(), placement="all"),
    "ensemble": lambda build: xuq.DeepEnsemble([seeded(build, seed=seed).eval() for seed in range(3)]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"num_steps": 3},
    "smoothgrad": {"num_samples": 3},
    "lime": {"num_samples": 24, "num_segments": 4},
}


def draws_of(posterior: str, network: str, num_draws: int = 3) -> Draws:
    return POSTERIORS[posterior](NETWORKS[network][0]).sample(num_draws, seed=1)


@cache
def pair(posterior: str, network: str) -> tuple[Draws, Draws, Tensor]:
    """Draws on the CPU, the same draws put on the device, and examples on the CPU."""
    return draws_of(posterior, network), draws_of(posterior, network).to(HERE), NETWORKS[network][1]


def places(draws: Draws) -> set[str]:
    return {tensor.device.type for network in draws for tensor in (*network.parameters(), *network.buffers())}


def identities(draws: Draws) -> list[tuple[int, int]]:
    return [(id(t), t.data_ptr()) for network in draws for t in (*network.parameters(), *network.buffers())]


def launches(work: Callable[[], Any]) -> pretend_device.Counts:
    """What `work` asks of the device, once all that is made once has been made."""
    work()
    with pretend_device.counting() as counts:
        work()
    return counts


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_explanations_on_a_device_are_those_of_the_cpu(posterior, network):
    cpu, there, x = pair(posterior, network)
    names = [name for name in EXPLAINERS if name != "guided_backprop" or network not in ("regression", "late cnn")]
    for name in names:
        if network == "tokens" and name == "smoothgrad":
            continue
        options = OPTIONS.get(name, {})
        wanted = xuq.explain(cpu, name, x, device="cpu", **options)
        with pretend_device.counting() as counts:
            found = xuq.explain(cpu, name, x, device=HERE, **options)
            again = xuq.explain(there, name, x, device=HERE, **options)
        assert counts.launches
        assert found.values.is_cpu and again.values.is_cpu
        for each in (found, again):
            assert_close(each.values, wanted.values, **EXACT, msg=f"{posterior} {network} {name}")
        assert (found.target is None) == (wanted.target is None)
        assert places(cpu) == {"cpu"} and places(there) == {"pretend"}
