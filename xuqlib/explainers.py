"""Explainers: plain functions `(network, x, target) -> attribution`, shaped like x.

Every explainer here explains the logit (or the one output of a regression network), never the probability. It leaves
network and x as they were, works inside `torch.no_grad()`, and returns an attribution without a graph.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xuqlib.baselines import make_baseline
from xuqlib.checks import (
    check_choice,
    check_count,
    check_examples,
    check_fixed,
    check_logits,
    check_number,
    check_target,
)
from xuqlib.guided import GuidedMode

Network = Callable[[Tensor], Tensor]
Explainer = Callable[..., Tensor]

# Numbers that enter the network in one pass: 128 colour pictures of 32 x 32. On a CPU a larger batch is slower, since
# its intermediate results leave the cache; an accelerator wants thousands of rows.
_NUMBERS_CPU = 128 * 3 * 32 * 32


def select_logits(network: Network, x: Tensor, target: Any) -> Tensor:
    """Return the logit of each example's target, (N,); checks the network's output and the target."""
    logits = check_logits(network(x), len(x))
    # A copy, since autograd will not keep a target that was made in inference mode.
    classes = check_target(target, len(x), logits.shape[1]).to(logits.device).clone()
    return logits.gather(1, classes[:, None]).squeeze(1)


def _input_gradient(network: Network, x: Tensor, target: Any) -> Tensor:
    """Gradient of each target logit with respect to its own example; checks nothing but output and target."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        # The network gets a copy: an in-place first layer may not write into a leaf.
        selected = select_logits(network, leaf.clone(), target)
        gradient = torch.autograd.grad(selected.sum(), leaf, allow_unused=True)[0] if selected.requires_grad else None
    if gradient is None:
        raise ValueError(
            "network's output does not depend on x as far as autograd can see (a detach, no_grad or argmax in "
            "forward?); return logits that are differentiable in x, or explain with lime, which needs no gradient"
        )
    return gradient


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
    check_examples(x)
    check_fixed(network)
    return _input_gradient(network, x, target)


def gradient_x_input(network: Network, x: Tensor, target: Any = None) -> Tensor:
    """Attribute each target logit to the input by slope times value; complete if the network is linear without bias.

    Args, Raises: as for `gradient`.

    Returns:
        Attribution in logits, shaped like x.

    Source: Shrikumar, Greenside, Shcherbina & Kundaje 2016, section 3. arXiv 1605.01713.
    """
    return gradient(network, x, target) * x.detach()


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
    check_examples(x)
    check_fixed(network)
    mode = GuidedMode()

    def guided_network(batch: Tensor) -> Tensor:
        with mode:
            return network(batch)

    attribution = _input_gradient(guided_network, x, target)
    if not mode.num_met:
        warnings.warn("network called no ReLU, so guided_backprop gave the plain gradient", stacklevel=2)
    return attribution


def rows_per_pass(x: Tensor, chunk: int | None) -> int:
    """Rows (examples times steps) of one pass: `chunk` if given, else what suits the size of x and its device."""
    if chunk is not None:
        return check_count(chunk, 1, "chunk")
    numbers = _NUMBERS_CPU if x.device.type == "cpu" else 16 * _NUMBERS_CPU
    return min(max(numbers // x[0].numel(), 8), 4096)


def _path_gradient(
    network: Network, origin: Tensor, factor: Tensor, spread: Tensor, weights: Tensor, target: Any, rows: int
) -> Tensor:
    """Return sum_k weights[k] * gradient at origin + factor[k] * spread, shaped like origin (N, ...).

    Folds as many steps k as fit into `rows` into one pass. factor is (K, ...), broadcastable over an example.
    """
    with torch.no_grad():  # a network may write into its input, so it gets a copy
        num_classes = check_logits(network(origin[:rows].clone()), len(origin[:rows])).shape[1]
    classes = check_target(target, len(origin), num_classes)
    total = torch.zeros_like(origin)
    for first in range(0, len(origin), rows):
        block = slice(first, first + rows)
        num_examples = len(origin[block])
        steps_per_pass = max(1, rows // num_examples)
        for start in range(0, len(factor), steps_per_pass):
            steps = slice(start, start + steps_per_pass)
            points = origin[block] + factor[steps, None] * spread[block]  # (K, N, ...)
            slopes = _input_gradient(network, points.flatten(0, 1), classes[block].repeat(len(points)))
            total[block] += torch.tensordot(weights[steps], slopes.reshape(points.shape), dims=1)
    return total


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
    check_examples(x)
    check_fixed(network)
    nodes, weights = np.polynomial.legendre.leggauss(check_count(num_steps, 1, "num_steps"))  # on [-1, 1]
    start = make_baseline(baseline, x)
    x = x.detach()
    factor = torch.as_tensor((nodes + 1) / 2).to(x).view(-1, *[1] * (x.dim() - 1))
    rows = rows_per_pass(x, chunk)
    slope = _path_gradient(network, start, factor, x - start, torch.as_tensor(weights / 2).to(x), target, rows)
    return (x - start) * slope


def completeness_gap(
    network: Network, x: Tensor, attribution: Tensor, target: Any = None, *, baseline: str | Tensor | None = None
) -> Tensor:
    """Return sum(attribution) - (network(x) - network(baseline)) at target, (N,), in logits; 0 if complete.

    Raises:
        TypeError, ValueError: as for `integrated_gradients`; attribution and x differ in shape.
    """
    check_examples(x)
    check_fixed(network)
    if attribution.shape != x.shape:
        raise ValueError(f"attribution is {tuple(attribution.shape)} but x is {tuple(x.shape)}; pass the same examples")
    with torch.no_grad():
        end = select_logits(network, x.clone(), target)
        start = select_logits(network, make_baseline(baseline, x).clone(), target)
    return attribution.detach().flatten(1).sum(1) - (end - start)


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
    check_examples(x)
    check_fixed(network)
    check_number(noise, 0, "noise")
    generator = torch.Generator().manual_seed(check_count(seed, 0, "seed"))
    shape = (check_count(num_samples, 1, "num_samples"), *x.shape[1:])
    unit = torch.randn(shape, generator=generator, dtype=torch.float64).to(x)
    x = x.detach()
    extent = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    spread = (noise * extent).view(-1, *[1] * (x.dim() - 1))
    weights = x.new_full((num_samples,), 1 / num_samples)
    return _path_gradient(network, x, unit, spread, weights, target, rows_per_pass(x, chunk))


def from_captum(method: type | str, **init_options: Any) -> Explainer:
    """Return a Captum attribution method as an explainer; options of its `attribute` pass through.

    Args:
        method: a class such as `captum.attr.DeepLift`, or its name.
        init_options: passed when the method is built around a network.

    Raises:
        ImportError: a name was given and Captum is not installed.
        TypeError: method is not an attribution class.
        ValueError: unknown name; from the explainer, an attribution that is not shaped like x.
    """
    if isinstance(method, str):
        try:
            known = importlib.import_module("captum.attr")
        except ImportError:
            raise ImportError("from_captum needs Captum, an optional package: pip install captum") from None
        check_choice(method, known.__all__, "Captum method")
        method = getattr(known, method)
    if not isinstance(method, type) or not hasattr(method, "attribute"):
        raise TypeError(f"{method!r} is not an attribution class; pass one, such as captum.attr.DeepLift")
    build: Callable[..., Any] = method

    def explainer(network: Network, x: Tensor, target: Any = None, **options: Any) -> Tensor:
        check_examples(x)
        check_fixed(network)
        with torch.no_grad():
            output = network(x.clone())
        classes = check_target(target, len(x), check_logits(output, len(x)).shape[1]).to(x.device)
        with torch.enable_grad(), warnings.catch_warnings():
            # Captum announces hooks that it removes again, and that its input now requires a gradient.
            warnings.filterwarnings("ignore", message="Setting (forward, )?backward hooks|Input Tensor")
            inside = build(network, **init_options)
            found = inside.attribute(x.detach().clone(), target=classes if output.dim() == 2 else None, **options)
        if not isinstance(found, Tensor) or found.shape != x.shape:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{build.__name__} returned {what}, not an attribution shaped like x {tuple(x.shape)}")
        return found.detach().to(x.dtype)

    explainer.__name__ = explainer.__qualname__ = f"captum_{build.__name__}"
    explainer.__doc__ = f"Attribute each target logit with captum.attr.{build.__name__}. Returns a map shaped like x."
    return explainer
