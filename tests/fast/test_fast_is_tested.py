"""A test of the tests: whatever of the fast path is broken, the comparison with the plain loop turns red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_engine
import torch
from core_networks import EXACT, assert_fast, grey_cnn, randn, seeded
from torch import Tensor, nn
from torch.testing import assert_close

from xuqlib import DeepEnsemble, Draws, MCDropConnect, MCDropout
from xuqlib.explainers import layer_maps as saliencies
from xuqlib.explainers.fullgrad import LogitGraph, logit_graph
from xuqlib.explainers.layer_maps import ChainGraph
from xuqlib.fast import chain
from xuqlib.fast.chain import Chain
from xuqlib.fast.engine import Engine
from xuqlib.fast.layers import Convolution, Dense, Dropout, Flatten, Layer, MaxPool, Other, Relu
from xuqlib.fast.vmapped import OneByOne

X = randn(2, 3, 8, 8)


def of_every_step() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Sigmoid(), nn.Flatten()),
        *(nn.Linear(16, 9), nn.ReLU(), nn.Dropout(0.4), nn.Linear(9, 3)),
    )


def draws_of(build: Callable[[], nn.Module]) -> Draws:
    return MCDropout(seeded(build)).sample(2, seed=1)


def members() -> Draws:
    """Draws that share nothing, each a head of steps of its own."""
    return DeepEnsemble([seeded(of_every_step, seed=seed) for seed in (1, 2)]).sample()


# What is compared: attributions and their mean, logits, and maps of all logits.


def compare_attributions(draws: Draws) -> None:
    test_engine.assert_equals_the_loop(draws, X, 1, names=["gradient", "integrated_gradients"])


def compare_logits(draws: Draws) -> None:
    with assert_fast():
        found = Engine(draws, X).logits(X)
    assert test_engine.error(found, torch.stack([draw(X) for draw in draws])) < test_engine.PROMISE


def compare_graphs(draws: Draws) -> None:
    x, questions = randn(2, 1, 11, 9), randn(2, 2, 3)
    with assert_fast():
        graph = logit_graph(draws[0], x)
    wanted = LogitGraph(draws[0], x)
    assert_close(graph.logits, wanted.logits.detach(), **EXACT)
    assert_close(graph.saliencies(questions, "signed"), wanted.saliencies(questions, "signed"), **EXACT)


LAST = lambda: MCDropConnect(seeded(of_every_step), p=0.3).sample(2, seed=1)  # noqa: E731
MASKED = lambda: draws_of(of_every_step)  # noqa: E731
GREY = lambda: draws_of(grey_cnn)  # noqa: E731
STEPS = (Convolution, Dense, Relu, MaxPool, Dropout, Flatten, Other)
CASES: list[tuple[Any, str, Callable[[], Draws], Callable[[Draws], None]]] = [
    *((kind, "backward", MASKED, compare_attributions) for kind in STEPS),
    *((Dense, "slope_of", draws, compare_attributions) for draws in (MASKED, LAST, members)),
    *((Chain, name, MASKED, compare_attributions) for name in ("slopes", "mean_slope", "_through")),
    *((kind, "forward", MASKED, compare_logits) for kind in STEPS if kind is not Dropout),
    *((chain, "_masked_logits", MASKED, compare_logits), (Dropout, "mask_of", MASKED, compare_logits)),
    *((kind, "backward", GREY, compare_graphs) for kind in STEPS if kind is not Other),
    *((ChainGraph, "_at_once", GREY, compare_graphs), (saliencies, "_through", GREY, compare_graphs)),
    (saliencies, "over_channels", GREY, compare_graphs),
]
IDS = [f"{kind.__name__}.{name}, {compare.__name__}, {i}" for i, (kind, name, _, compare) in enumerate(CASES)]


def wrong(value: Any) -> Any:
    """What a step gives, 1 % too large."""
    return (1.01 * value[0], *value[1:]) if isinstance(value, tuple) else 1.01 * value


@pytest.mark.parametrize(("kind", "name", "make", "compare"), CASES, ids=IDS)
def test_whatever_is_broken_turns_the_comparison_red(monkeypatch, kind, name, make, compare):
    draws, whole = make(), getattr(kind, name)
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, lambda *args, **named: wrong(whole(*args, **named)))
        with pytest.raises(AssertionError):
            compare(draws)

    def failing(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(kind, name, failing)
        with pytest.raises(RuntimeError, match="broken"):
            compare(draws)


@pytest.mark.parametrize(("make", "compare"), list(dict.fromkeys((make, compare) for _, _, make, compare in CASES)))
def test_nothing_broken_leaves_the_comparison_green(make, compare):
    """The control: what turns red above is what was broken. `compare` asserts, and raises where it is not so."""
    compare(make())


def test_every_step_is_broken_above():
    assert set(Layer.__subclasses__()) == set(STEPS)


def test_draws_that_fall_to_the_loop_turn_the_comparison_red(monkeypatch):
    looped = lambda self, _: ("loop: for a test", OneByOne(self.draws.networks, self.execution))  # noqa: E731
    monkeypatch.setattr(Engine, "_choose", looped)
    with pytest.raises(AssertionError, match="the plain loop was taken"):
        compare_attributions(MASKED())
