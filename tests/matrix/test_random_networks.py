"""Networks drawn at random are explained as by the plain loop over draws, and nothing of the caller's changes."""

from __future__ import annotations

import copy
import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from core_networks import assert_same, snapshot
from matrix_cells import ROUNDING, assert_equal, rows
from random_networks import Sample
from torch import Tensor, nn

from xuqlib import DeepEnsemble, Draws, Flipout, Laplace, MCDropConnect, MCDropout, ua_backprop, uncertainties
from xuqlib.explain import explain
from xuqlib.explainers import EXPLAINERS
from xuqlib.explainers.fullgrad import fullgrad
from xuqlib.inputs import as_inputs
from xuqlib.posteriors.fixing import RandomNetworkError
from xuqlib.views import View

# What a network drawn at random may be refused for, before the work.
REFUSED = (
    "with training=True although it is in eval mode",  # functional dropout that is always on, in draws without masks
    "computed by a parametrization",  # weight normalisation, and weights to be drawn
)


def posterior_of(sample: Sample, pick: random.Random) -> Any:
    network, x = sample.network, as_inputs(sample.given)
    kind = pick.choice(["dropout", "dropout", "dropout", "ensemble", "dropconnect", "flipout", "laplace"])
    if kind == "laplace" and isinstance(sample.given, Tensor) and sample.form == "tensor":
        count, outputs = x.num_examples, sample.num_outputs
        y = torch.arange(count) % outputs if outputs > 1 else torch.linspace(-1, 1, count, dtype=torch.float64)[:, None]
        return Laplace(network, layer=sample.head).fit([(sample.given, y)])
    if kind == "ensemble":
        return DeepEnsemble([network, changed(network, 1), changed(network, 2)])
    if kind == "dropconnect":
        return MCDropConnect(network, p=0.3, placement=pick.choice(["all", [sample.head]]))
    if kind == "flipout":
        return Flipout(network, placement=pick.choice(["all", [sample.head]]), initial_std=0.2)
    return MCDropout(network)


def changed(network: nn.Module, seed: int) -> nn.Module:
    other, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


@contextmanager
def left_alone(sample: Sample) -> Iterator[None]:
    """Assert that weights, modes, hooks, gradients, inputs and every global generator stay as they are."""
    before, network = look(sample), snapshot(sample.network)
    yield
    after = look(sample)
    assert_same(network, snapshot(sample.network))
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, Tensor) else value == after[key]
        assert same, f"{key} changed"


def look(sample: Sample) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in as_inputs(sample.given).values.items():
        seen[f"input {key}"] = value.clone()
    seen["torch"], seen["python"] = torch.get_rng_state(), random.getstate()
    seen["numpy"] = str(np.random.get_state())  # noqa: NPY002 - to watch it
    return seen


def check(seed: int) -> str:
    """Check one network; return "equal", or what it was refused for."""
    sample, pick = Sample(seed), random.Random(seed)
    with left_alone(sample):
        try:
            check_draws(sample, pick, posterior_of(sample, pick))
        except (ValueError, TypeError, RandomNetworkError) as error:
            message = str(error)
            refused = [words for words in REFUSED if words in message]
            if not refused or "\n" in message:
                raise
            return refused[0]
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            assert not has_gradient(sample), "the network itself has a gradient"
            return "in-place operations that leave no gradient"
    return "equal"


class Holds(nn.Module):
    """A network by the name that it has in a draw."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.network(*inputs, **named)


def has_gradient(sample: Sample) -> bool:
    """Whether torch itself can differentiate the network while it drops, as training does."""
    network = copy.deepcopy(sample.network)
    for module in network.modules():
        module.training = not isinstance(module, nn.modules.batchnorm._BatchNorm)
    seen, x = MCDropout(sample.network).sample(1).seen(sample.given, sample.output)
    view = View(Holds(network), seen[0].inputs, seen[0].output) if isinstance(seen[0], View) else network
    point = x.clone().requires_grad_()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.autograd.grad(view(point.clone()).sum(), point)
    except RuntimeError:
        return False
    return True


def check_draws(sample: Sample, pick: random.Random, posterior: Any) -> None:
    draws = posterior.sample(3, seed=5)
    seen, x = draws.seen(sample.given, sample.output)
    with torch.no_grad():
        answers = torch.stack([network(x) for network in seen])
        assert_equal(seen(x), answers)
        assert_equal(
            torch.stack([network(x) for network in posterior.sample(2, seed=5).seen(sample.given, sample.output)[0]]),
            answers[:2],
        )
        alone = [torch.cat([seen.at(one)[s](x[one]) for one in rows(len(x))]) for s in range(3)]
        assert_equal(torch.stack(alone), answers)
        assert_equal(torch.stack([network(torch.cat([x, x])) for network in seen]), torch.cat([answers, answers], 1))
    target = torch.arange(len(x)) % answers.shape[2]
    for name in pick.sample(sorted(LOOPS), 3):
        check_explainer(name, draws, seen, x, sample, target, pick)
    kind = pick.choice(["total", "aleatoric", "epistemic"] if answers.shape[2] > 1 else ["total", "epistemic"])
    attribution = ua_backprop(
        draws,
        sample.given,
        kind,
        output=sample.output,
        setting="recommended",
        explainer=pick.choice(["fullgrad", "gradient"]),
    )
    total = vars(uncertainties(draws, sample.given, output=sample.output))
    error = attribution.flatten(1).sum(1) - total[kind]
    assert error.abs().max() <= 1e-10 * float(total["total"].abs().max()) + 1e-24, f"not complete by {error}"


def check_explainer(
    name: str, draws: Draws, seen: Draws, x: Tensor, sample: Sample, target: Tensor, pick: random.Random
) -> None:
    options, loop = LOOPS[name]
    if name == "lime" and x.dim() == 3:
        options = {**options, "segments": torch.arange(x.shape[1])[:, None] // 2}
    function = {**EXPLAINERS, "fullgrad": fullgrad}[name]
    keep = {"output": sample.output, **options}
    if name == "fullgrad":
        raw = explain(draws, function, sample.given, target, psi="raw", **keep).values
        if raw.abs().max() <= ROUNDING:  # nothing depends on x, so "minmax" would scale rounding up to [0, 1]
            return
    values = explain(draws, function, sample.given, target, **keep).values
    wanted = [
        torch.cat([loop(seen.at(one)[s], x[one], target[one], function, options) for one in rows(len(x))])
        for s in range(len(draws))
    ]
    assert_equal(values, torch.stack(wanted))
    chunk = pick.choice([1, 2])
    assert_equal(explain(draws, function, sample.given, target, chunk=chunk, **keep).values, values)
    mean = explain(draws, function, sample.given, target, keep="mean", **keep).mean()
    assert_equal(mean.double(), values.mean(0))


def called(network: Any, x: Tensor, target: Tensor, function: Any, options: dict[str, Any]) -> Tensor:
    return function(network, x, target, **options)


LOOPS: dict[str, tuple[dict[str, Any], Callable[..., Tensor]]] = {
    "gradient": ({}, lambda network, x, target, *_: oracles.loop_gradient(network, x, target)),
    "gradient_x_input": ({}, lambda network, x, target, *_: x * oracles.loop_gradient(network, x, target)),
    "integrated_gradients": (
        {"num_steps": 3},
        lambda network, x, target, *_: oracles.loop_integrated_gradients(network, x, target, torch.zeros_like(x), 3),
    ),
    "smoothgrad": ({"num_samples": 2}, called),
    "guided_backprop": ({}, called),
    "lime": ({"num_samples": 8, "num_segments": 4}, called),
    "fullgrad": ({}, called),
}


def hunt(first_seed: int, seconds: float) -> dict[str, int]:
    """Check networks for so long; return how many came to which end.

    Raises:
        AssertionError: names the first seed whose network is explained wrongly.
    """
    counts: dict[str, int] = {}
    end, seed = time.monotonic() + float(os.environ.get("XUQ_HUNT_SECONDS", seconds)), first_seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no ReLU, nothing to hide: the networks are what they are
        while time.monotonic() < end:
            try:
                result = check(seed)
            except Exception as error:
                raise AssertionError(f"network {seed}: {Sample(seed).network}: {error}") from error
            counts[result] = counts.get(result, 0) + 1
            seed += 1
    return counts


@pytest.mark.slow
def test_random_networks_are_explained_as_by_the_loop_or_refused_before() -> None:
    counts = hunt(0, seconds=15)
    assert counts["equal"] > 0.8 * sum(counts.values()), counts


@pytest.mark.nightly
def test_ten_minutes_of_random_networks_find_nothing() -> None:
    today = int(time.time() // 86400)
    counts = hunt(today * 100_000, seconds=600)
    assert counts["equal"] > 0.8 * sum(counts.values()), counts
