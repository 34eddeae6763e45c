"""Baselines: what an example looks like with its evidence taken away."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from xuqlib.checks import check_choice, check_tensor

BASELINES = ("black", "blurred", "mean", "mean_colour")


def make_baseline(kind: str | Tensor | None, x: Tensor) -> Tensor:
    """Return the baseline of each example, shaped like x.

    Call this before splitting x into chunks: "mean" depends on all the examples that it is given.

    Args:
        kind: None or "black" for zeros; "blurred" for a Gaussian blur along all axes after the channels (images,
            volumes, signals (N, C, L)), whose sigma is an eighth of the longest (4 pixels of 32); "mean" for the mean
            over the examples of x (for the mean of the training data pass that tensor); "mean_colour" for the mean of
            each channel over the places of its own example; or a tensor broadcastable to x.
        x: examples, (N, ...).

    Raises:
        ValueError: unknown name, "blurred" or "mean_colour" of tables, or a tensor that does not broadcast to x.
    """
    check_tensor(x, "x", axes=2)
    if isinstance(kind, Tensor):
        baseline = expand(kind, x, "baseline")
        if not torch.isfinite(baseline).all():
            raise ValueError("baseline holds NaN or infinite values; the path from it to x must be finite")
        return baseline
    kind = "black" if kind is None else kind
    check_choice(kind, BASELINES, "baseline")
    if kind == "black":
        return torch.zeros_like(x).detach()
    if kind == "mean":
        return x.detach().mean(0).expand_as(x)
    if x.dim() < 3:
        raise ValueError(
            f"{kind} baseline needs images (N, C, H, W) or signals (N, C, L), x is {tuple(x.shape)}; use black, mean "
            "or a tensor"
        )
    if kind == "mean_colour":
        return x.detach().mean(tuple(range(2, x.dim())), keepdim=True).expand_as(x)
    return _blur(x.detach(), sigma=max(x.shape[2:]) / 8)


def expand(value: Tensor, x: Tensor, what: str) -> Tensor:
    """Return a tensor that broadcasts to x with x's shape, dtype and device.

    Raises:
        ValueError: it does not broadcast; `what` names it.
    """
    check_tensor(value, what)
    try:
        return value.detach().to(x).expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"{what} has shape {tuple(value.shape)}, which does not broadcast to x {tuple(x.shape)}"
        ) from None


def _blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur along the sides of an image (N, C, H, W), truncated at three sigma, edges repeated."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = (-0.5 * (offsets / sigma) ** 2).exp()
    kernel = (kernel / kernel.sum())[None, None]
    for axis in range(2, x.dim()):
        lines = x.movedim(axis, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        x = F.conv1d(padded, kernel).reshape(lines.shape).movedim(-1, axis)
    return x
