"""Sanity checks: does an explanation, and its spread over draws, notice that a network forgot what it had learned?"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import check_choice
from xuqlib.explain import explain
from xuqlib.explainers import Explainer
from xuqlib.posteriors.draws import Draws, inner
from xuqlib.posteriors.fixing import FixedNetwork, seed_of
from xuqlib.study.checked import Batch, Names, Seed, Target, checked
from xuqlib.study.judging.controls import other_image
from xuqlib.study.judging.similarity import spearman, ssim

ORDERS = ("cascading", "independent")
OTHER_PICTURE = "another picture"


@checked
def independent(network: nn.Module) -> list[list[str]]:
    """Name the layers that can be re-initialised, one group per dense or convolutional layer, from output to input.

    A normalisation belongs to the layer before it. Layers without `reset_parameters` are not named.

    Args:
        network: any module whose layers are registered in the order in which they are called.

    Raises:
        ValueError: there is no such layer.
    """
    groups: list[list[str]] = []
    for name, module in network.named_modules():
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if not tensors or not hasattr(module, "reset_parameters"):
            continue
        weighted = max(tensor.ndim for tensor in tensors) > 1
        if weighted or not groups:
            groups.append([])
        groups[-1].append(name)
    if not groups:
        raise ValueError(f"{type(network).__name__} has no layer with reset_parameters; there is nothing to randomise")
    return groups[::-1]


@checked
def cascade(network: nn.Module) -> list[list[str]]:
    """Name the layers to re-initialise at every step of the cascade: the output layer, the last two, ..., all."""
    return list(itertools.accumulate(independent(network)))


@checked
def randomised(draws: Draws, layers: Names, *, seed: Seed = 0) -> Draws:
    """Copy draws with some of their layers re-initialised, as before training; batch norm forgets its statistics, too.

    What the draws share is drawn once and stays shared; what each draw has of its own is drawn for each. So what was
    random over draws still is, and nothing else becomes so: members of an ensemble forget independently, networks that
    differ in their dropout masks forget together, and the spread over draws stays defined. (With the same new weights
    in every member, a fully randomised ensemble would be one network.)

    Args:
        draws: fixed networks.
        layers: names of layers of a draw's network, as `cascade` gives them.
        seed: of the new weights.

    Raises:
        ValueError: a name is not known, or its layer has no `reset_parameters`.
    """
    networks: dict[int, nn.Module] = {}
    fresh: dict[int, Tensor] = {}  # by the identity of the tensor that is replaced
    for draw in draws:
        network = inner(draw)
        if id(network) not in networks:
            networks[id(network)] = _reset(network, layers, seed_of(seed, len(networks)), fresh)
    copies = [FixedNetwork(networks[id(inner(draw))], getattr(draw, "seed", None)) for draw in draws]
    return Draws(copies, posterior=draws.posterior, noise_variance=draws.noise_variance, output=draws.output)


@torch.inference_mode(False)
def _reset(network: nn.Module, layers: Sequence[str], seed: int, fresh: dict[int, Tensor]) -> nn.Module:
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied, known = copy.deepcopy(network, kept), dict(network.named_modules())
    for name in layers:
        layer = known.get(name)
        if layer is None or not hasattr(layer, "reset_parameters"):
            what = "is not known" if layer is None else f"({type(layer).__name__}) has no reset_parameters"
            raise ValueError(f"layer {name!r} {what}; choose among {list(itertools.chain(*independent(network)))}")
        new = copy.deepcopy(layer).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, *name.encode()))
            new.reset_parameters()
        target = copied.get_submodule(name)
        for place, values in ((target._parameters, new._parameters), (target._buffers, new._buffers)):
            for key, old in place.items():
                if old is not None:
                    place[key] = fresh.setdefault(id(old), _like(values[key], old))  # type: ignore[assignment]
    return copied


def _like(value: Any, old: Tensor) -> Tensor:
    moved: Tensor = value.detach().to(old.device)
    return nn.Parameter(moved, requires_grad=False) if isinstance(old, nn.Parameter) else moved


@checked
def sanity_checks(
    draws: Draws,
    explainer: Explainer,
    x: Batch,
    target: Target,
    *,
    how: str = "cascading",
    seed: Seed = 0,
    **options: Any,
) -> pd.DataFrame:
    """Randomise layers of every draw, explain again, and compare the mean map and the std map with those before.

    An explanation that stays the same does not depend on what these layers had learned. Its low spread is then no
    sign that it can be trusted. Maps of two pictures are alike, too: that is the floor, in rows of their own.

    Args:
        draws: fixed networks.
        explainer, **options: as for `explain`.
        x: pictures (N, C, H, W) or tables (N, F), at least two.
        target: class of each example, (N,), the same before and after.
        how: "cascading" from the output to the input, or "independent", one layer at a time.
        seed: of the new weights.

    Returns:
        One row per step, statistic and example: step (0 for the floor), layer (the last one that was randomised, or
        "another picture"), statistic ("mean" or "std"), example, signed and absolute (Spearman of the maps summed over
        channels, with and without sign), ssim (of absolute maps; NaN for tables and pictures below 7 pixels). NaN where
        a map is constant.

    Raises:
        ValueError: `how` is not known.

    Source: Adebayo et al. 2018, section 3. arXiv 1810.03292.
    """
    check_choice(how, ORDERS, "how")
    steps = (cascade if how == "cascading" else independent)(inner(draws[0]))
    before = _maps(draws, explainer, x, target, options)
    frames = [_similarity(before, {key: other_image(each) for key, each in before.items()}, 0, OTHER_PICTURE)]
    for step, (layers, own) in enumerate(zip(steps, independent(inner(draws[0])), strict=True), start=1):
        after = _maps(randomised(draws, layers, seed=seed), explainer, x, target, options)
        frames.append(_similarity(before, after, step, own[0]))
    return pd.concat(frames, ignore_index=True)


def _maps(draws: Draws, explainer: Explainer, x: Tensor, target: Tensor, options: dict[str, Any]) -> dict[str, Tensor]:
    e = explain(draws, explainer, x, target, progress=False, **options)
    return {"mean": e.mean(), "std": e.std()}


def _similarity(before: dict[str, Tensor], after: dict[str, Tensor], step: int, layer: str) -> pd.DataFrame:
    frames = []
    for statistic, old in before.items():
        new = after[statistic]
        a, b = ((each.sum(1) if each.ndim == 4 else each).abs() for each in (old, new))
        large = a.ndim == 3 and min(a.shape[1:]) >= 7
        columns = {"signed": spearman(old, new), "absolute": spearman(a.flatten(1), b.flatten(1))}
        columns["ssim"] = ssim(a, b) if large else pd.Series(np.nan, range(len(a)))
        about = {"step": step, "layer": layer, "statistic": statistic, "example": range(len(a))}
        frames.append(pd.DataFrame(about | columns))
    return pd.concat(frames)
