"""Explainers: plain functions `(network, x, target) -> attribution`, shaped like x.

Every explainer here explains the logit (or the one output of a regression network), never the probability. It leaves
network and x as they were, works inside `torch.no_grad()`, and returns an attribution without a graph.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xuqlib.checks import check_count, check_examples, check_number, check_seed, check_tensor
from xuqlib.device import sent
from xuqlib.explainers.baselines import make_baseline
from xuqlib.explainers.declaring import explainer
from xuqlib.path import Network, Path, along, rows_per_pass, select_logits
from xuqlib.posteriors.trial import try_out


def _attribute(
    network: Network, x: Tensor, target: Any, path_of: Callable[..., Path], *, chunk: int | None = None, **options: Any
) -> Tensor:
    check_examples(x)
    try_out(network, x)
    path = path_of(x.detach(), **options)
    return along(network, path, target, rows_per_pass(x, chunk))


@explainer("gradient", path=Path)
def gradient(network: Network, x: Tensor, target: Any = None) -> Tensor:
    """Attribute each target logit to the input by its slope, d logit / d x.

    Args:
        network: maps x to logits (N, C), or (N,) for regression. A fixed draw: its answer does not change.
        x: examples, (N, ...), in the units that the network was trained on.
        target: class index of each example, (N,), or one int for all; None only if the network has one output.

    Returns:
        Attribution in logits per unit of x, shaped like x.

    Raises:
        TypeError, ValueError: x, target or the network's output is not as described; the network is in training
            mode with dropout or BatchNorm in it.

    Source: Simonyan, Vedaldi & Zisserman 2014, section 3, without the absolute value. arXiv 1312.6034.
    """
    return _attribute(network, x, target, Path)


def _gradient_x_input_path(x: Tensor) -> Path:
    return Path(x, scale=x)


@explainer("gradient_x_input", path=_gradient_x_input_path)
def gradient_x_input(network: Network, x: Tensor, target: Any = None) -> Tensor:
    """Attribute each target logit to the input by slope times value; complete if the network is linear without bias.

    Args, Raises: as for `gradient`.

    Returns:
        Attribution in logits, shaped like x.

    Source: Shrikumar, Greenside, Shcherbina & Kundaje 2016, section 3. arXiv 1605.01713.
    """
    return _attribute(network, x, target, _gradient_x_input_path)


def _guided_path(x: Tensor) -> Path:
    return Path(x, guided=True)


@explainer("guided_backprop", path=_guided_path)
def guided_backprop(network: Network, x: Tensor, target: Any = None) -> Tensor:
    """Attribute each target logit by a backward pass through whose ReLUs only positive signal flows.

    Backward through each ReLU passes dy * 1[dy > 0] * 1[x > 0]; every other layer passes its gradient. Right for
    `nn.ReLU`, `F.relu`, `clamp(min=0)`, ReLU6, in-place ReLUs and ReLUs with a skip connection around them. A scripted
    network (torch.jit) hides its ReLUs.

    Args, Raises: as for `gradient`.

    Returns:
        Attribution in logits per unit of x, shaped like x.

    Warns:
        UserWarning: no ReLU was met, so the result is the plain gradient.

    Source: Springenberg, Dosovitskiy, Brox & Riedmiller 2015, section 3.4. arXiv 1412.6806.
    """
    return _attribute(network, x, target, _guided_path)


def _straight_path(x: Tensor, *, baseline: Tensor | None = None, num_steps: int = 32) -> Path:
    """The path from a baseline that `make_baseline` made; zeros by default."""
    nodes, weights = _quadrature(check_count(num_steps, 1, "num_steps"), x.dtype, x.device)
    start = make_baseline(None, x) if baseline is None else baseline
    whole = x - start
    return Path(start, whole, nodes.view(-1, *[1] * (x.dim() - 1)), weights, scale=whole)


@functools.lru_cache(64)
@torch.inference_mode(False)
def _quadrature(num_steps: int, dtype: torch.dtype, where: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes on [0, 1] and their weights, (K,), sent to a device once."""
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)  # on [-1, 1]
    return sent(torch.as_tensor((nodes + 1) / 2).to(dtype), where), sent(torch.as_tensor(weights / 2).to(dtype), where)


@explainer("integrated_gradients", path=_straight_path, per_example={"baseline": make_baseline})
def integrated_gradients(
    network: Network,
    x: Tensor,
    target: Any = None,
    *,
    baseline: str | Tensor | None = None,
    num_steps: int = 32,
    chunk: int | None = None,
) -> Tensor:
    """Attribute each target logit to the input, along a straight path from `baseline` to `x`.

    The attribution sums to network(x) - network(baseline) at `target`, up to quadrature error; `completeness_gap`
    measures it. The path is integrated at Gauss-Legendre nodes, not by the paper's Riemann sum (eq. 3): at equal
    `num_steps` the error is several times smaller.

    Args:
        network, x, target: as for `gradient`.
        baseline: start of the path: "black" (zeros; the default), "blurred", "mean" or a tensor; see `make_baseline`.
        num_steps: nodes on the path; one forward and one backward pass each.
        chunk: rows (examples times steps) in one pass; chosen by device and size of x if None.

    Returns:
        Attribution in logits, shaped like x.

    Raises:
        TypeError, ValueError: as for `gradient` and `make_baseline`; num_steps or chunk is below 1.

    Source: Sundararajan, Taly & Yan 2017, eq. 1. arXiv 1703.01365.
    """

    def path_of(x: Tensor) -> Path:
        return _straight_path(x, baseline=make_baseline(baseline, x), num_steps=num_steps)

    return _attribute(network, x, target, path_of, chunk=chunk)


def completeness_gap(
    network: Network, x: Tensor, attribution: Tensor, target: Any = None, *, baseline: str | Tensor | None = None
) -> Tensor:
    """Return sum(attribution) - (network(x) - network(baseline)) at target, (N,), in logits; 0 if complete.

    Raises:
        TypeError, ValueError: as for `integrated_gradients`; attribution and x differ in shape.
    """
    check_examples(x)
    check_tensor(attribution, "attribution")
    try_out(network, x)
    if attribution.shape != x.shape:
        raise ValueError(f"attribution is {tuple(attribution.shape)} but x is {tuple(x.shape)}; pass the same examples")
    with torch.no_grad():
        end = select_logits(network, x.clone(), target)
        start = select_logits(network, make_baseline(baseline, x).clone(), target)
    return attribution.detach().flatten(1).sum(1) - (end - start)


def _noisy_path(x: Tensor, *, num_samples: int = 32, noise: float = 0.1, seed: int = 0) -> Path:
    check_number(noise, 0, "noise")
    check_seed(seed)
    unit = _unit_noise(seed, (check_count(num_samples, 1, "num_samples"), *x.shape[1:]), x.dtype, x.device)
    extent = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    spread = (noise * extent).view(-1, *[1] * (x.dim() - 1))
    return Path(x, spread, unit, x.new_full((num_samples,), 1 / num_samples))


@functools.lru_cache(1)
@torch.inference_mode(False)
def _unit_noise(seed: int, shape: tuple[int, ...], dtype: torch.dtype, where: torch.device) -> Tensor:
    """Standard normal noise, made and sent to a device once for all parts of the examples."""
    stream = torch.Generator().manual_seed(seed)
    return sent(torch.randn(shape, generator=stream, dtype=torch.float64).to(dtype), where)


@explainer("smoothgrad", path=_noisy_path)
def smoothgrad(
    network: Network,
    x: Tensor,
    target: Any = None,
    *,
    num_samples: int = 32,
    noise: float = 0.1,
    seed: int = 0,
    chunk: int | None = None,
) -> Tensor:
    """Attribute each target logit by its gradient, averaged over noisy copies of x.

    All examples share the same standard normal noise, so the result does not depend on how examples are chunked, and
    all draws see the same noise. One seed gives one noise on every device and for every dtype.

    Args:
        network, x, target: as for `gradient`.
        num_samples: noisy copies of each example.
        noise: standard deviation of the noise as a fraction of each example's range, max - min.
        seed: of the noise.
        chunk: rows (examples times copies) in one pass; chosen by device and size of x if None.

    Returns:
        Attribution in logits per unit of x, shaped like x.

    Raises:
        TypeError, ValueError: as for `gradient`; num_samples below 1, noise negative.

    Source: Smilkov et al. 2017, section 3. arXiv 1706.03825.
    """
    return _attribute(network, x, target, _noisy_path, chunk=chunk, num_samples=num_samples, noise=noise, seed=seed)
