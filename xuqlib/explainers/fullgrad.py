"""FullGrad: a logit is the sum of what the input and what each constant adds to it, and its map shows where they do.

A piecewise linear network is at x a chain of calls h -> J h + c. With g the slope of the logit, sum_h g(h) . h over all
intermediate results telescopes, which leaves logit = x . g(x) + sum_c c . g(h), over every constant c of every call.
Constants are found by watching torch's calls rather than modules, so functional layers, layers that are called more
than once, buffers, and the layers inside a fixed network all count, and no hook can stay behind. What no call shows is
measured: it is the logit less the sum of the terms.
"""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from xuqlib.checks import check_choice, check_examples, check_logits, check_target
from xuqlib.explainers.declaring import explainer
from xuqlib.explainers.layer_maps import PSI, ChainGraph, as_map, over_channels, wide
from xuqlib.fast.layers import NotAChain
from xuqlib.guided import depends
from xuqlib.path import NO_GRADIENT, Network, blocks, rows_per_pass
from xuqlib.posteriors.trial import try_out
from xuqlib.views import at

NOT_COMPLETE = (
    "FullGrad's terms miss the logit, so the network is not piecewise linear (a smooth activation, attention, "
    "LayerNorm) or adds a constant out of sight; fullgrad_terms(network, x, target).remainder says by how much"
)


# Calls that are affine in what depends on x: with zeros in its place they return the constant that they add. That of a
# layer is the same for every example, and but for a dense one at every place of a channel.
_OF_CHANNELS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm"}
_LAYERS = _OF_CHANNELS | {"linear"}
_AFFINE = {"add", "radd", "iadd", "sub", "rsub", "isub", "subtract", "lerp", "addcmul", "addcdiv", "addmm", "addmv"}
_AFFINE |= {"addr", "addbmm", "baddbmm", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "pad"}
_AFFINE |= {"column_stack", "where", "masked_fill", "masked_scatter", "index_fill", "index_put", "index_copy", "copy"}
_AFFINE |= {"index_add", "scatter", "scatter_add", "slice_scatter", "select_scatter", "setitem", "fill"} | _LAYERS
# Calls that are piecewise linear: their constant is what they return less their slope times their input.
_PIECEWISE = {"clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6", "threshold", "maximum", "minimum", "fmax"}
_PIECEWISE |= {"fmin", "hardsigmoid", "softshrink", "round", "floor", "ceil"}


class _Biased(NamedTuple):
    """What a term is of, x or a call with a constant: where it enters, and that, broadcastable to its slope."""

    edge: GradientEdge
    bias: Tensor
    is_map: bool


class _BiasMode(TorchFunctionMode):
    """While on, notes every call that adds a constant to what depends on x."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.num_examples = len(x)
        self.sizes = {x.shape[2:]} if x.dim() == 4 else set()  # of images, and of what convolutions make of them
        self.met = [_Biased(get_gradient_edge(x), x.detach(), is_map=False)]
        self.known = {self.met[0].edge.node: True}  # whether what comes out of a node depends on x

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").split(".")[0].strip("_")
        if name in _AFFINE | _PIECEWISE and "out" not in kwargs:
            return self._with_constant(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _note(self, output: Tensor, constant: Tensor, has_places: bool) -> None:
        # The edge, not the tensor: an in-place ReLU makes the tensor its own, the edge stays where the bias came in.
        is_map = output.dim() == 4 and len(output) == self.num_examples and output.shape[2:] in self.sizes
        self.met.append(_Biased(get_gradient_edge(output), constant, is_map and has_places))

    def _with_constant(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        values, structure = tree_flatten((args, kwargs))
        inputs = [number for number, value in enumerate(values) if self._depends_on_x(value)]
        others = [value for value in values if isinstance(value, Tensor | Real) and not self._depends_on_x(value)]
        if not inputs or (name in _AFFINE and not others):
            return func(*args, **kwargs)

        def call(*given: Tensor) -> Tensor:
            copies = [value.detach() if isinstance(value, Tensor) else value for value in values]
            for number, tensor in zip(inputs, given, strict=True):
                copies[number] = tensor
            if name not in _LAYERS:  # which may write into what it is given
                copies = [value.clone() if isinstance(value, Tensor) else value for value in copies]
            own, named = tree_unflatten(copies, structure)
            output = func(*own, **named)
            return own[0] if output is None else output

        # Before the call itself, which may work in place.
        given = tuple(values[number].detach() for number in inputs)
        if name in _LAYERS and inputs == [0] and given[0].dim() >= values[1].dim():  # not one image without a batch
            constant = call(torch.zeros_like(given[0][:1]))
            if name in _OF_CHANNELS:
                first_place: Any = (..., *[slice(1)] * (constant.dim() - 2))
                constant = constant[first_place]
        elif name in _AFFINE:
            constant = call(*map(torch.zeros_like, given))
        else:  # number by number, so that the slope of the sum is that of each
            shape = torch.broadcast_shapes(*(value.shape for value in values if isinstance(value, Tensor)))
            with torch.enable_grad():
                given = tuple(tensor.expand(shape).clone().requires_grad_() for tensor in given)
                whole = call(*given)
                slopes = torch.autograd.grad(whole.sum(), given)
            linear = sum(tensor.detach() * slope for tensor, slope in zip(given, slopes, strict=True))
            constant = whole.detach() - linear
        output = func(*args, **kwargs)
        made = args[0] if output is None else output
        if name in _OF_CHANNELS and made.dim() == 4 and len(made) == self.num_examples:
            self.sizes.add(made.shape[2:])
        if made is not args[0] and made._is_view():  # its edge leaves the graph once the next layer works in place
            output = made = made.clone()
        if made is args[0] and made._is_view():  # what is used later may be what it is a view of
            view, made = made, made._base
            whole = torch.zeros_like(made) if 0 in inputs else made.detach().clone()
            whole.as_strided(view.shape, view.stride(), view.storage_offset() - made.storage_offset()).copy_(constant)
            constant = whole
        if made.requires_grad and constant.any():
            # A constant that is infinite, as where attention is masked, has no slope behind it.
            self._note(made, torch.nan_to_num(constant, nan=0.0, posinf=0.0, neginf=0.0), name != "linear")
        return output

    def _depends_on_x(self, value: Any) -> bool:
        """Whether autograd's graph leads from a tensor to x; that of a weight does not."""
        return isinstance(value, Tensor) and value.requires_grad and depends(get_gradient_edge(value).node, self.known)


class FullGradTerms(NamedTuple):
    """What adds up to one logit of each example, in logits.

    input: x * d logit / d x, shaped like x.
    maps: constant * d logit / d feature of each call that adds one to images, (N, channel, h, w), in their order: a
        convolution, a BatchNorm, a constant that forward adds.
    dense: the same of every other call, which has no place in the image.
    remainder: the logit less the sum of all terms, (N,): rounding, if the network is piecewise linear. None where
        nobody measured it, or a term cannot be told apart by the examples.
    """

    input: Tensor
    maps: tuple[Tensor, ...] = ()
    dense: tuple[Tensor, ...] = ()
    remainder: Tensor | None = None

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
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            mode = _BiasMode(x)
            with mode:
                output = network(x.clone())  # an in-place first layer may not write into a leaf
        self.logits, self.biased = check_logits(output, len(x)), mode.met

    def one_hot(self, target: Any) -> Tensor:
        """Return weights (N, C) that select each example's target."""
        return F.one_hot(check_target(target, *self.logits.shape), self.logits.shape[1]).to(self.logits)

    def terms(self, weights: Tensor) -> FullGradTerms:
        """Return the terms of sum_c weights[n, c] * logits[n, c] of each example n."""
        reached = self._slopes(weights)
        (own, _), *others = [(wide(call.bias) * slope, call.is_map) for call, slope in reached]
        missing, _ = self._missing(weights, reached)
        return FullGradTerms(
            input=own,
            maps=tuple(term for term, is_map in others if is_map),
            dense=tuple(term for term, is_map in others if not is_map),
            remainder=missing if missing.dim() else None,
        )

    def saliencies(self, weights: Tensor, psi: str) -> Tensor:
        """Return `saliency` of the terms of sum_c weights[k, n, c] * logits[n, c], for each question k: (K, N, ...)."""
        maps, misses = [], []
        for question in weights:
            reached = self._slopes(question)
            parts = [_summed(slope, call.bias, psi) for call, slope in reached if call.is_map]
            maps.append(as_map(wide(reached[0][0].bias) * reached[0][1], parts, psi))
            missing, tolerated = self._missing(question, reached)
            misses.append(~(missing.abs() <= tolerated).all())
        if torch.stack(misses).any():
            warnings.warn(NOT_COMPLETE, stacklevel=2)
        return torch.stack(maps)

    def _missing(self, weights: Tensor, reached: list[tuple[_Biased, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the logit less the sum of its terms, and what rounding explains of it: (N,).

        Both are of the whole batch, (), if a term cannot be told apart by the examples.
        """
        sums = [wide(self.logits.detach() * weights).sum(1)]
        for call, slope in reached:
            few = slope.sum_to_size(len(slope), *call.bias.shape[1:])  # where the constant is one for many
            sums.append(-(wide(call.bias) * few).flatten(1).sum(1))
        if any(len(each) != len(weights) for each in sums):
            sums = [each.sum() for each in sums]
        coarsest = max(torch.finfo(each.dtype).eps for each in (self.logits, *(slope for _, slope in reached)))
        coarsest = max(coarsest, 0 if weights.device.type == "cpu" else 2**-10)  # that of TF32
        return torch.stack(sums).sum(0), math.sqrt(coarsest) * torch.stack(sums).abs().sum(0)

    def _slopes(self, weights: Tensor) -> list[tuple[_Biased, Tensor]]:
        """Return the slope at x, which comes first, and at every call that the logits depend on."""
        slopes: tuple[Tensor | None, ...] = (None,) * len(self.biased)
        if self.logits.requires_grad:
            with torch.inference_mode(False), torch.enable_grad():
                # A sum, not weights as grad_outputs: to check their shape, torch would import sympy for two seconds.
                wanted = (self.logits * weights.detach().clone()).sum()
                edges = [call.edge for call in self.biased]
                slopes = torch.autograd.grad(wanted, edges, retain_graph=True, allow_unused=True)
        if slopes[0] is None:
            raise ValueError(NO_GRADIENT)
        return [(call, slope) for call, slope in zip(self.biased, slopes, strict=True) if slope is not None]


def _summed(slope: Tensor, bias: Tensor, psi: str) -> Tensor:
    is_per_channel = bias.shape == (1, bias.shape[1], 1, 1)
    return over_channels(slope, bias.flatten()[None], psi) if is_per_channel else PSI[psi](wide(bias) * slope).sum(1)


def logit_graph(network: Network, x: Tensor) -> ChainGraph | LogitGraph:
    """Return the faster graph of the two that the network allows. They differ by rounding alone."""
    try:
        return ChainGraph(network, x)
    except NotAChain:
        return LogitGraph(network, x)


def fullgrad_terms(network: Network, x: Tensor, target: Any = None) -> FullGradTerms:
    """Split each target logit into what the input and what each constant adds to it.

    The terms sum to the logit if the network is piecewise linear: dense and convolutional layers, BatchNorm, ReLU,
    dropout, max and average pooling, skip connections, and constants that forward adds. A smooth activation, LayerNorm
    or attention leaves a `remainder`.

    Args:
        network, x, target: as for `gradient`; all examples in one pass.

    Raises:
        TypeError, ValueError: as for `gradient`; a BatchNorm without running statistics.

    Source: Srinivas & Fleuret 2019, section 4. arXiv 1905.00780.
    """
    check_examples(x)
    try_out(network, x)
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
        x: images (N, C, H, W), or other examples, (N, ...), whose map is psi of the input term alone.
        psi: what becomes of each term before they are added: "minmax", "raw" or "signed"; see `saliency`.
        chunk: examples in one pass; chosen by device and size of x if None.

    Returns:
        Attribution, shaped like x; in logits unless psi is "minmax".

    Raises:
        TypeError, ValueError: as for `fullgrad_terms`; unknown psi.

    Warns:
        UserWarning: the terms do not sum to the logit.

    Source: Srinivas & Fleuret 2019, section 5. arXiv 1905.00780.
    """
    check_examples(x)
    try_out(network, x)
    check_choice(psi, PSI, "psi")
    parts = []
    for block in blocks(len(x), rows_per_pass(x, chunk)):
        graph = LogitGraph(at(network, block), x[block])
        classes = check_target(target, len(x), graph.logits.shape[1])[block]
        parts.append(graph.saliencies(graph.one_hot(classes)[None], psi)[0])
    maps = torch.cat(parts).to(x.dtype)
    return maps if x.dim() < 4 else (maps[:, None] / x.shape[1]).expand_as(x).contiguous()


def saliency(terms: FullGradTerms, psi: str = "minmax") -> Tensor:
    """Add the terms of images up to one map, (N, H, W); of a table or signal, psi of the input term, shaped like it.

    Each term goes through psi at its own resolution, is summed over its channels, and is then stretched to the size
    of the image, linearly between the middles of its cells (the authors' code aligns the corners instead).

    Args:
        psi: "minmax", the absolute value, rescaled to [0, 1] over all channels and places of an example's term, as in
            the authors' code, which makes a map even of rounding where the logit does not depend on x; "raw", the
            absolute value; "signed", the term, stretched so that its sum stays: the map then sums to the logit
            without its dense terms.
    """
    if not isinstance(terms, FullGradTerms):
        raise TypeError(f"terms is a {type(terms).__name__}; pass what fullgrad_terms gives")
    check_choice(psi, PSI, "psi")
    return as_map(terms.input, [PSI[psi](term).sum(1) for term in terms.maps], psi)
