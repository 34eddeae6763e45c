"""Maps of FullGrad's terms: psi of each, summed over channels and stretched to the image; and a faster way to them.

A term is bias * slope, so its absolute value, its extremes and its sum over channels can be had from the slope without
the term. Where the layers of a network stand in a chain, the slopes come from the engine's backward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xuqlib.checks import check_logits
from xuqlib.fast.chain import fast_layers
from xuqlib.fast.layers import Convolution, Execution, NotAChain, Other, without_graph
from xuqlib.path import Network, rows_per_pass
from xuqlib.posteriors.fixing import FixedNetwork, Seed
from xuqlib.posteriors.kinds import is_hooked, layers_of


def wide(numbers: Tensor) -> Tensor:
    """Return numbers in float32 at least: the squares and spans of float16 leave its range."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def _minmax(term: Tensor) -> Tensor:
    size = term.abs().flatten(1)
    low, high = size.amin(1, keepdim=True), size.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1)  # the same everywhere: 0 / 1
    return ((size - low) / span).view(term.shape)


PSI: dict[str, Callable[[Tensor], Tensor]] = {"minmax": _minmax, "raw": torch.abs, "signed": torch.clone}


def over_channels(slope: Tensor, biases: Tensor, psi: str) -> Tensor:
    """Sum psi(bias * slope) over channels and over the biases of one place, without writing the terms down.

    Args:
        slope: d logit / d feature, (N, C, h, w).
        biases: (B, C); each row makes a term.
        psi: see `xuqlib.explainers.fullgrad.saliency`.

    Returns:
        (N, h, w).
    """
    size = wide(slope.flatten(2))
    biases, shift = biases.to(size), size.new_zeros(1)
    if psi != "signed":
        size, biases = size.abs(), biases.abs()
    weights = biases.sum(0).expand(len(size), -1)
    if psi == "minmax":
        low = (biases * size.amin(2)[:, None]).amin(2)  # (N, B)
        span = (biases * size.amax(2)[:, None]).amax(2) - low
        flat = span <= 1e6 * torch.finfo(span.dtype).tiny  # no span to divide by, or one whose inverse is infinite
        scale = torch.where(flat, 0, 1 / span)
        weights, shift = scale @ biases, biases.shape[1] * (scale * low).sum(1)
    return ((weights[:, None] @ size)[:, 0] - shift[:, None]).unflatten(1, slope.shape[2:])


def as_map(term: Tensor, parts: Sequence[Tensor], psi: str) -> Tensor:
    """Add psi of the input's term, and what each layer adds, stretched: once for all layers of one size."""
    term = wide(term)
    if term.dim() != 4:  # layers of a table or a signal have no places that are those of the input
        return PSI[psi](term) if term.dim() < 4 else PSI[psi](term).sum(1)
    total, sizes = PSI[psi](term).sum(1), {part.shape[1:]: part.new_zeros(()) for part in parts}
    for part in parts:
        sizes[part.shape[1:]] = sizes[part.shape[1:]] + part
    for size, part in sizes.items():
        pairs = zip(size, term.shape[2:], strict=True)
        rows, columns = (_stretching(*pair, psi == "signed").to(part) for pair in pairs)
        total = total + rows.T @ part @ columns
    return total


@cache
@torch.inference_mode(False)
def _stretching(size: int, wanted: int, keep_sum: bool) -> Tensor:
    """Return the matrix (size, wanted) that stretches rows linearly; its rows sum to 1 if they keep the sum."""
    cells = torch.eye(size, dtype=torch.float64)[None, None]
    weights = F.interpolate(cells, size=(size, wanted), mode="bilinear", antialias=True)[0, 0]
    return weights / weights.sum(1, keepdim=True) if keep_sum else weights


class ChainGraph:
    """A `LogitGraph` of a network whose layers stand in a chain and are known by hand: several questions at once.

    Its layers are the engine's, which fold a BatchNorm into what is before it. Both biases are at one place then.

    Attributes:
        logits: (N, C).
        is_fast: true; a `LogitGraph` is not.

    Raises:
        NotAChain: any other network.
    """

    is_fast = True

    @without_graph
    def __init__(self, network: Network, x: Tensor) -> None:
        inner, seed = network, cast(Seed | None, None)
        if isinstance(network, FixedNetwork) and network.resampling is None and not is_hooked(network):
            inner, seed = network.network, network.seed
        layers = layers_of(inner) if isinstance(inner, nn.Sequential) else []
        execution = Execution(x.dtype, x.device)
        self.layers = fast_layers([layers], [seed], execution)
        is_known = layers and not any(isinstance(layer, Other) for layer in self.layers)
        if not is_known or torch.is_autocast_enabled(x.device.type):
            raise NotAChain("a layer that is not known by hand, or autocast, which chooses a dtype for each call")
        self.x, self.kept = x.detach(), list[Any]()
        h = execution.convert(x)
        for layer in self.layers:
            h, keep = layer.forward(h, len(x))
            self.kept.append(keep)
        self.logits = check_logits(h, len(x))

    @without_graph
    def saliencies(self, weights: Tensor, psi: str) -> Tensor:
        """As `LogitGraph.saliencies`, with as many rows (examples times questions) in one pass as suits the device."""
        at_once = max(1, rows_per_pass(self.x, None) // len(self.x))
        return torch.cat([self._at_once(some, psi) for some in weights.split(at_once)])

    def _at_once(self, weights: Tensor, psi: str) -> Tensor:
        g, parts = weights.flatten(0, 1).to(self.logits, copy=True), []
        for layer, keep in zip(reversed(self.layers), reversed(self.kept), strict=True):
            if isinstance(layer, Convolution):
                parts.append(over_channels(g, layer.biases(), psi))
                g = _through(layer, g, keep)
            else:
                g = layer.backward(g, keep)
        term = wide(self.x) * g.unflatten(0, weights.shape[:2])
        return as_map(term.flatten(0, 1), parts, psi).unflatten(0, weights.shape[:2])


def _through(layer: Convolution, g: Tensor, shape: torch.Size) -> Tensor:
    """The backward pass of a convolution, to inputs (C, H, W): a matrix product, where there is one channel."""
    if layer.weight.shape[1] > 1 or layer.groups > 1:
        return layer.backward(g, shape)
    return F.fold(layer.weight.flatten(1).T @ g.flatten(2), shape[1:], layer.weight.shape[2:], **layer.where)
