"""Intervals for the explanation of another training: their quantiles by hand, and what they promise, by simulation."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import nn

import xuqlib as xuq
from xuqlib import ConformalExplainer, MCDropConnect, explain
from xuqlib.conformal import BANDS, _quantiles

TRUE = torch.linspace(-2, 2, 24, dtype=torch.float64)


def training(seed: int, noise: float = 0.4) -> nn.Linear:
    """A network of one layer whose first row is the truth and noise, more of it where the truth is large."""
    network = nn.Linear(24, 3).double()
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        error = torch.randn(24, generator=stream, dtype=torch.float64)
        network.weight[0] = TRUE + noise * (0.2 + TRUE.abs()) * error
        network.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # class 0 is predicted
    return network


def pooling(seed: int) -> nn.Module:
    """A network of signals of any length."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv1d(1, 3, 5), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()


def any_size() -> ConformalExplainer:
    return ConformalExplainer("gradient", scale="map").fit([pooling(seed) for seed in range(3)], X[:, None])


def examples(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 9


def unit_map(network: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    attribution = network.weight[0].detach() * x
    return attribution / attribution.abs().mean(1, keepdim=True)


NETWORKS, X = [training(seed) for seed in range(12)], examples(40)
TWICE = [*NETWORKS[:3], deepcopy(NETWORKS[1])]


def fitted(scale: str = "map", count: int = 12, level: float = 0.9, **given) -> ConformalExplainer:
    return ConformalExplainer("gradient_x_input", scale=scale, level=level).fit(NETWORKS[:count], X, **given)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_by_hand(level):
    maps = [unit_map(network, X) for network in NETWORKS[:5]]
    scores = [((maps[b] - maps[a]).abs() / (0.05 + maps[a].abs())) for a, b in permutations(range(5), 2)]
    reach = np.quantile(torch.stack(scores).numpy().ravel(), level, method="inverted_cdf")
    new, x = training(77), examples(6, seed=3)
    found = fitted(count=5, level=level).interval(new, x)
    centre = unit_map(new, x)
    torch.testing.assert_close(found.centre, centre)
    torch.testing.assert_close(found.high - found.centre, reach * (0.05 + centre.abs()))
    torch.testing.assert_close(found.centre - found.low, reach * (0.05 + centre.abs()))
    torch.testing.assert_close(found.unit, (new.weight[0] * x).abs().mean(1).detach())


def test_the_quantiles_of_groups_by_hand():
    centre = unit_map(NETWORKS[0], X)
    large = centre.abs() >= centre.abs().topk(5, dim=1).values[:, -1:]  # 20 % of 24, rounded
    three = [unit_map(network, X) for network in NETWORKS[:3]]
    pooled = {"large": [], "small": [], "whole": []}
    for a, b in permutations(range(3), 2):
        each = (three[b] - three[a]).abs() / (0.05 + three[a].abs())
        is_large = three[a].abs() >= three[a].abs().topk(5, dim=1).values[:, -1:]
        pooled["large"].append(each[is_large]), pooled["small"].append(each[~is_large])
        pooled["whole"].append(each.amax(1))
    assert large.sum() == 5 * len(X)
    wanted = {name: np.quantile(torch.cat(parts).numpy(), 0.9, method="inverted_cdf") for name, parts in pooled.items()}
    conformal = fitted(count=3)
    found = conformal.interval(NETWORKS[0], X, band="largest")
    half = (found.high - found.centre) / (0.05 + centre.abs())
    assert half[large].numpy() == pytest.approx(wanted["large"]) and half[~large].numpy() == pytest.approx(
        wanted["small"]
    )
    whole = conformal.interval(NETWORKS[0], X, band="simultaneous")
    assert ((whole.high - whole.centre) / (0.05 + centre.abs())).numpy() == pytest.approx(wanted["whole"])


@pytest.mark.parametrize("scale", ["map", "learned", "spread"])
def test_unseen_trainings_are_held_as_often_as_promised(scale):
    posterior = partial(MCDropConnect, p=0.3, placement="last") if scale == "spread" else None
    held = {band: [] for band in BANDS}
    for run in range(4):
        networks = [training(100 * run + seed) for seed in range(16)]
        conformal = ConformalExplainer("gradient_x_input", scale=scale, posterior=posterior, num_draws=6)
        conformal.fit(networks, examples(60, seed=run))
        x = examples(40, seed=1000 + run)
        for own, other in [(50, 51), (52, 53), (54, 55), (56, 57), (58, 59)]:
            attribution = xuq.gradient_x_input(training(100 * run + other), x, 0)
            for band, found in held.items():
                inside = conformal.interval(training(100 * run + own), x, band=band).holds(attribution)
                found.append((inside.flatten(1).all(1) if band == "simultaneous" else inside).double().mean().item())
    for found in held.values():
        error = np.std(found, ddof=1) / len(found) ** 0.5
        assert abs(np.mean(found) - 0.9) < max(3 * error, 0.03)


def test_what_is_conservative_is_wider_and_needs_nine_others():
    some = X[:37]  # so that no share of the scores is exactly the level
    conformal = [
        ConformalExplainer("gradient_x_input", scale="map").fit(NETWORKS, some, conservative=sure)
        for sure in (False, True)
    ]
    reach = [each.interval(NETWORKS[0], X) for each in conformal]
    assert (reach[1].high > reach[0].high).all()
    maps = [unit_map(network, some) for network in NETWORKS]
    scores = [((maps[b] - maps[a]).abs() / (0.05 + maps[a].abs())) for a, b in permutations(range(12), 2)]
    wanted = np.quantile(torch.stack(scores).numpy().ravel(), 0.9 * 12 / 11, method="inverted_cdf")
    assert ((reach[1].high - reach[1].centre) / (0.05 + reach[1].centre.abs())).numpy() == pytest.approx(wanted)
    with pytest.raises(ValueError, match="there are 9 networks; pass 10 for a conservative 90%"):
        fitted(count=9, conservative=True)
    assert fitted(count=10, conservative=True).num_networks == 10


def test_held_out_networks_are_covered_about_as_often():
    conformal = fitted()
    assert conformal.held_out.shape == (12,) and 0.8 < conformal.held_out.mean() < 0.95
    strange = [*NETWORKS[:11], training(5, noise=4.0)]
    assert ConformalExplainer("gradient_x_input", scale="map").fit(strange, X).held_out[-1] < 0.8


def test_weights_are_examples_more_often():
    weights = torch.arange(40) % 3
    often = torch.cat([X[row : row + 1].expand(int(count), -1) for row, count in enumerate(weights) if count])
    ours = fitted(count=4, weights=weights).interval(NETWORKS[0], X)
    theirs = ConformalExplainer("gradient_x_input", scale="map").fit(NETWORKS[:4], often).interval(NETWORKS[0], X)
    torch.testing.assert_close(ours.high, theirs.high)


def test_a_weighted_quantile_is_the_first_value_that_reaches_the_level():
    scores = {(0, 1): torch.tensor([[1.0], [2.0], [3.0], [4.0]])}
    groups = {0: torch.zeros(4, 1, dtype=torch.long)}
    for weights, level, wanted in (
        ([1, 1, 1, 1], 0.5, 2),
        ([1, 1, 1, 1], 0.51, 3),
        ([0, 0, 1, 3], 0.25, 3),
        ([8, 1, 1, 1], 0.5, 1),
    ):
        assert _quantiles(scores, groups, torch.tensor(weights, dtype=torch.float64), level)[0] == wanted


def test_certain_signs_and_the_way_back_to_the_unit():
    found = fitted(level=0.5).interval(NETWORKS[3], X)
    sign = found.certain_sign()
    assert ((sign == 1) == (found.low > 0)).all() and ((sign == -1) == (found.high < 0)).all() and (sign == 0).any()
    back = found.centre * found.unit[:, None]
    torch.testing.assert_close(back, (NETWORKS[3].weight[0] * X).detach())


def test_a_distribution_is_its_own_centre_and_spread():
    posterior = partial(MCDropConnect, p=0.3, placement="last")
    conformal = ConformalExplainer("gradient_x_input", scale="spread", posterior=posterior, num_draws=6, seed=4)
    conformal.fit(NETWORKS[:4], X)
    e = explain(posterior(NETWORKS[5]).sample(6, seed=4), xuq.gradient_x_input, X, 0)
    ours, theirs = conformal.interval(e, X), conformal.interval(NETWORKS[5], X, 0)
    torch.testing.assert_close(ours.low, theirs.low)
    with pytest.raises(ValueError, match="the distribution is of gradient; the calibration was of gradient_x_input"):
        conformal.interval(explain(NETWORKS[:2], xuq.gradient, X, 0), X)
    with pytest.raises(ValueError, match="has 40 examples, x 3"):
        conformal.interval(e, X[:3])
    few = explain(posterior(NETWORKS[5]).sample(6, seed=4), xuq.gradient_x_input, X, 0, keep="moments")
    with pytest.raises(ValueError, match='explain with keep="all"'):
        conformal.interval(few, X)
    with pytest.raises(ValueError, match="of single networks"):
        fitted(count=3).interval(e, X)


@pytest.mark.parametrize("scale", ["map", "learned"])
def test_images_have_maps_without_channels(scale):
    torch.manual_seed(0)
    networks = [xuq.mini_vgg(num_classes=3, image_size=16, dropout=0.0).eval() for _ in range(3)]
    x = torch.rand(10, 3, 16, 16)
    found = ConformalExplainer("guided_backprop", scale=scale).fit(networks, x).interval(networks[0], x)
    assert found.low.shape == (10, 16, 16) and found.low.dtype == torch.float64
    target = networks[0](x).argmax(1)
    own = xuq.guided_backprop(networks[0], x, target)
    assert found.holds(own).all()
    torch.testing.assert_close(found.centre * found.unit[:, None, None], own.double().sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ConformalExplainer("grad"), ValueError, "explainer 'grad'; known: "),
        (lambda: ConformalExplainer("gradient", level=1.0), ValueError, "level is 1.0; pass a number between 0 and 1"),
        (lambda: ConformalExplainer("gradient", scale="spread"), ValueError, "pass posterior="),
        (lambda: ConformalExplainer("gradient", scale="big"), ValueError, "scale 'big'; known: map"),
        (lambda: ConformalExplainer("gradient").interval(NETWORKS[0], X), RuntimeError, "call fit"),
        (lambda: fitted(count=2), ValueError, "there are 2 networks; pass three or more"),
        (lambda: ConformalExplainer("gradient").fit(NETWORKS, X[:9]), ValueError, "there are 9 examples; pass ten"),
        (lambda: ConformalExplainer("gradient").fit(TWICE, X), ValueError, "two of the networks explain all alike"),
        (lambda: fitted(count=3).interval(NETWORKS[0], X[:, 1:]), ValueError, "the network cannot evaluate x"),
        (lambda: ConformalExplainer("gradient").fit(NETWORKS, X[:, 1:]), ValueError, "the network cannot evaluate x"),
        (lambda: fitted(count=3).interval(nn.Linear(24, 4).double(), X), ValueError, "there are 4 outputs"),
        (lambda: any_size().interval(pooling(4), X[:, None, :20]), ValueError, r"examples \(1, 20\); calibrated"),
        (lambda: fitted(weights=torch.ones(3)), ValueError, r"weights are \(3,\); pass one per example"),
        (lambda: fitted(weights=-torch.ones(40)), ValueError, "none negative"),
        (lambda: fitted(count=3).interval(NETWORKS[0], X, band="all"), ValueError, "band 'all'; known: feature"),
        (lambda: fitted(count=3).interval(NETWORKS[0], X, 2, band="class"), ValueError, "no example of class 2"),
        (lambda: fitted(count=3).interval(NETWORKS[0], X).holds(X[:, :5]), ValueError, r"maps \(40, 5\)"),
    ],
)  # fmt: skip
def test_bad_calls_are_told(call, error, message):
    with pytest.raises(error, match=message):
        call()
