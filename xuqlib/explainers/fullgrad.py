"""FullGrad: a logit is the sum of what the input and what each bias adds to it, and its map shows where they do.

Biases are found by watching torch's calls rather than modules, so functional layers, layers that are called more than
once, and the layers inside a fixed network all count, and no hook can stay behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

from xuqlib.checks import check_choice, check_examples, check_fixed, check_logits, check_target
from xuqlib.explainers.declaring import explainer
from xuqlib.explainers.layer_maps import PSI, ChainGraph, as_map, over_channels
from xuqlib.fast.layers import NotAChain, raise_clearer
from xuqlib.path import NO_GRADIENT, Network, blocks, rows_per_pass


def _layer_bias(input: Tensor, weight: Tensor, bias: Tensor | None = None, *_: Any, **__: Any) -> Tensor | None:
    return bias


def _batch_norm_bias(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what BatchNorm adds to its rescaled input: beta - mean * gamma / sqrt(var + eps)."""
    if training or running_mean is None or running_var is None:
        raise ValueError(
            "a BatchNorm of the network uses the statistics of the batch, so an example's answer depends on the "
            "others; explain a network in eval mode with running statistics"
        )
    shift = -running_mean * torch.rsqrt(running_var + eps) * (1 if weight is None else weight)
    return shift if bias is None else shift + bias


# Each call with a bias: how to read the bias off its arguments, and the axis of the channels in its output.
_CALLS: dict[Any, tuple[Callable[..., Tensor | None], int]] = {
    F.linear: (_layer_bias, -1),
    **dict.fromkeys((F.conv1d, F.conv_transpose1d), (_layer_bias, -2)),
    **dict.fromkeys((F.conv2d, F.conv_transpose2d), (_layer_bias, -3)),
    **dict.fromkeys((F.conv3d, F.conv_transpose3d), (_layer_bias, -4)),
    F.batch_norm: (_batch_norm_bias, 1),
}


class _Biased(NamedTuple):
    """One call with a bias: where its output enters the graph, and the bias, broadcastable to that output."""

    edge: GradientEdge
    bias: Tensor
    is_map: bool


class _BiasMode(TorchFunctionMode):
    """While on, notes every call that adds a bias to what depends on x."""

    def __init__(self, num_examples: int) -> None:
        super().__init__()
        self.num_examples = num_examples
        self.met: list[_Biased] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        read, axis = _CALLS.get(func, (None, 0))
        bias = read(*args, **kwargs) if read and output.requires_grad else None
        if bias is None:
            return output
        if output._is_view():  # the edge of a view leaves the graph once the next layer works in place
            output = output.clone()
        shape = [1] * output.dim()
        shape[axis] = -1
        is_map = func is not F.linear and output.dim() == 4 and len(output) == self.num_examples
        # The edge, not the tensor: an in-place ReLU makes the tensor its own, the edge stays where the bias came in.
        self.met.append(_Biased(get_gradient_edge(output), bias.detach().view(shape), is_map))
        return output


class FullGradTerms(NamedTuple):
    """What adds up to one logit of each example, in logits.

    input: x * d logit / d x, shaped like x.
    maps: bias * d logit / d feature of each convolution and BatchNorm of images, (N, channel, h, w), as called.
    dense: the same of every other layer with a bias, which has no place in the image.
    """

    input: Tensor
    maps: tuple[Tensor, ...] = ()
    dense: tuple[Tensor, ...] = ()

    def total(self) -> Tensor:
        """Return the sum of all terms, (N,).

        Raises:
            ValueError: a layer's output does not have the examples first, so its term cannot be told apart by them.
        """
        total = self.input.flatten(1).sum(1)
        for term in (*self.maps, *self.dense):
            if len(term) != len(total):
                raise ValueError(f"a layer's output {tuple(term.shape)} does not begin with the {len(total)} examples")
            total = total + term.flatten(1).sum(1)
        return total


class LogitGraph:
    """The logits of a batch and their graph: one forward pass, then one backward pass for each question about them.

    With ten classes that is 1.6 to 2.1 times as fast, on a CPU, as one pass over a copy of each example per class.

    Attributes:
        logits: (N, C).
        is_fast: false; a `ChainGraph` is.
    """

    is_fast = False

    def __init__(self, network: Network, x: Tensor) -> None:
        mode = _BiasMode(len(x))
        with torch.inference_mode(False), torch.enable_grad():
            self.x = x.detach().clone().requires_grad_()
            with mode:
                output = network(self.x.clone())  # an in-place first layer may not write into a leaf
        self.logits, self.biased = check_logits(output, len(x)), mode.met

    def one_hot(self, target: Any) -> Tensor:
        """Return weights (N, C) that select each example's target."""
        return F.one_hot(check_target(target, *self.logits.shape), self.logits.shape[1]).to(self.logits)

    def terms(self, weights: Tensor) -> FullGradTerms:
        """Return the terms of sum_c weights[n, c] * logits[n, c] of each example n."""
        slope, reached = self._slopes(weights)
        return FullGradTerms(
            input=self.x.detach() * slope,
            maps=tuple(call.bias * slope for call, slope in reached if call.is_map),
            dense=tuple(call.bias * slope for call, slope in reached if not call.is_map),
        )

    def saliencies(self, weights: Tensor, psi: str) -> Tensor:
        """Return `saliency` of the terms of sum_c weights[k, n, c] * logits[n, c], for each question k: (K, N, ...)."""
        maps = []
        for question in weights:
            slope, reached = self._slopes(question)
            parts = [(slope, call.bias.flatten()[None]) for call, slope in reached if call.is_map]
            maps.append(as_map(self.x.detach() * slope, [over_channels(*part, psi) for part in parts], psi))
        return torch.stack(maps)

    def _slopes(self, weights: Tensor) -> tuple[Tensor, list[tuple[_Biased, Tensor]]]:
        inputs: list[Any] = [self.x, *(call.edge for call in self.biased)]
        slopes: tuple[Tensor | None, ...] = (None,)
        if self.logits.requires_grad:
            with torch.inference_mode(False), torch.enable_grad():
                # A sum, not weights as grad_outputs: to check their shape, torch would import sympy for two seconds.
                wanted = (self.logits * weights.detach().clone()).sum()
                slopes = torch.autograd.grad(wanted, inputs, retain_graph=True, allow_unused=True)
        if slopes[0] is None:
            raise ValueError(NO_GRADIENT)
        calls = zip(self.biased, slopes[1:], strict=True)
        return slopes[0], [(call, slope) for call, slope in calls if slope is not None]


def logit_graph(network: Network, x: Tensor) -> ChainGraph | LogitGraph:
    """Return the faster graph of the two that the network allows. They differ by rounding alone.

    Raises:
        RuntimeError: the faster graph fails where the other does not, which is a fault of this library; any other
            error is that of the network.
    """
    try:
        return ChainGraph(network, x)
    except NotAChain:
        return LogitGraph(network, x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise_clearer(error, lambda: LogitGraph(network, x))


def fullgrad_terms(network: Network, x: Tensor, target: Any = None) -> FullGradTerms:
    """Split each target logit into what the input and what each bias adds to it.

    The terms sum to the logit if the network is piecewise linear: dense and convolutional layers, BatchNorm, ReLU,
    dropout, max and average pooling, skip connections. A smooth activation, LayerNorm, attention or a constant that
    forward adds leave a remainder: compare `total()` with the logit.

    Args:
        network, x, target: as for `gradient`; all examples in one pass.

    Raises:
        TypeError, ValueError: as for `gradient`; a BatchNorm without running statistics.

    Source: Srinivas & Fleuret 2019, section 4. arXiv 1905.00780.
    """
    check_examples(x)
    check_fixed(network)
    graph = LogitGraph(network, x)
    return graph.terms(graph.one_hot(target))


@explainer()
def fullgrad(
    network: Network, x: Tensor, target: Any = None, *, psi: str = "minmax", chunk: int | None = None
) -> Tensor:
    """Attribute each target logit by FullGrad's map, which shows where input and biases add to it.

    An image's map has no channels: each channel holds 1/C of it, so that a sum over channels gives the map. Not
    complete: psi changes the terms, and dense biases have no place in an image.

    Args:
        network, target: as for `gradient`.
        x: images (N, C, H, W), or a table (N, F), whose map is psi of the input term alone.
        psi: what becomes of each term before they are added: "minmax", "raw" or "signed"; see `saliency`.
        chunk: examples in one pass; chosen by device and size of x if None.

    Returns:
        Attribution, shaped like x; in logits unless psi is "minmax".

    Raises:
        TypeError, ValueError: as for `fullgrad_terms`; unknown psi; x is neither images nor a table.

    Source: Srinivas & Fleuret 2019, section 5. arXiv 1905.00780.
    """
    check_mappable(x)
    check_fixed(network)
    check_choice(psi, PSI, "psi")
    parts = []
    for block in blocks(len(x), rows_per_pass(x, chunk)):
        graph = LogitGraph(network, x[block])
        classes = check_target(target, len(x), graph.logits.shape[1])[block]
        parts.append(graph.saliencies(graph.one_hot(classes)[None], psi)[0])
    maps = torch.cat(parts)
    return maps if x.dim() == 2 else (maps[:, None] / x.shape[1]).expand_as(x).contiguous()


def saliency(terms: FullGradTerms, psi: str = "minmax") -> Tensor:
    """Add the terms of images up to one map, (N, H, W); of a table, psi of the input term, (N, F).

    Each term goes through psi at its own resolution, is summed over its channels, and is then stretched to the size
    of the image, linearly between the middles of its cells (the authors' code aligns the corners instead).

    Args:
        psi: "minmax", the absolute value, rescaled to [0, 1] over all channels and places of an example's term, as in
            the authors' code; "raw", the absolute value; "signed", the term, stretched so that its sum stays: the map
            then sums to the logit without its dense terms.
    """
    check_choice(psi, PSI, "psi")
    return as_map(terms.input, [PSI[psi](term).sum(1) for term in terms.maps], psi)


def check_mappable(x: Any) -> None:
    """Refuse examples other than images (N, C, H, W) and tables (N, F).

    Raises:
        TypeError, ValueError: as for `check_examples`; another number of axes.
    """
    check_examples(x)
    if x.dim() not in (2, 4):
        raise ValueError(f"x has shape {tuple(x.shape)}; pass images (N, C, H, W) or a table (N, features)")
