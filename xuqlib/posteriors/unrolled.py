"""Calls of torch that drop inside, written out: attention and recurrent layers with a dropout that is handed in.

Each takes a function (tensor, rate) -> tensor that drops, the function of torch that was called, and its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Dropout = Callable[[Tensor, float], Tensor]


def attention(
    dropout: Dropout,
    _: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Evaluate `F.scaled_dot_product_attention`: softmax(query key^T scale + mask), dropped from, times value."""
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[-3] // part.shape[-3], -3) for part in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    blocked = scores.isneginf().all(-1, keepdim=True)  # a query that may look nowhere is answered by 0
    weights = scores.masked_fill(blocked, 0).softmax(-1).masked_fill(blocked, 0)
    return dropout(weights, dropout_p) @ value


def multi_head_attention(dropout: Dropout, function: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Evaluate `F.multi_head_attention_forward`, with a mask for each head whether or not weights are asked for."""
    num_heads = args[4]

    def by_head(weights: Tensor, p: float) -> Tensor:  # (N * heads, ...)
        return dropout(weights.unflatten(0, (-1, num_heads)), p).flatten(0, 1)

    def attend(*parts: Any) -> Tensor:
        return attention(dropout, F.scaled_dot_product_attention, *parts)

    replaced = {"dropout": by_head, "scaled_dot_product_attention": attend, "has_torch_function": lambda _: False}
    own = FunctionType(function.__code__, vars(F) | replaced, function.__name__, function.__defaults__)
    return own(*args, **kwargs | {"training": True})


def recurrent(
    dropout: Dropout,
    function: Callable[..., Any],
    input: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    p: float,
    _: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    """Evaluate torch's LSTM, GRU or RNN layer by layer, dropping from what each but the last gives."""
    if not isinstance(bias, bool):
        raise ValueError(
            "dropout between layers that are given a PackedSequence cannot be fixed, since its rows are not the "
            "examples; pass padded sequences, or set the dropout of the recurrent layer to 0"
        )
    size, num_states = len(weights) // num_layers, 2 if bidirectional else 1
    finals: list[Sequence[Tensor]] = []
    for layer in range(num_layers):
        input = dropout(input, p) if layer else input
        own = slice(layer * num_states, (layer + 1) * num_states)
        start = states[own] if isinstance(states, Tensor) else tuple(state[own] for state in states)
        some = weights[layer * size : (layer + 1) * size]
        input, *final = function(input, start, some, bias, 1, 0.0, False, bidirectional, batch_first)
        finals.append(final)
    return input, *(torch.cat(parts) for parts in zip(*finals, strict=True))


KNOWN: dict[Callable[..., Any], Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention,
    F.multi_head_attention_forward: multi_head_attention,
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), recurrent),
}


def dropout_inside(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, bool]:
    """Return the dropout rate inside a call of a known function, and whether it is on."""
    if function is F.scaled_dot_product_attention:
        return kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0), True
    if function is F.multi_head_attention_forward:
        return args[10], kwargs["training"]  # torch passes its arguments on by position up to `dropout_p`
    # A packed sequence comes with one more argument, the sizes of its batches.
    is_packed = not isinstance(args[3], bool)
    num_layers, p, training = args[4 + is_packed : 7 + is_packed]
    return (p if num_layers > 1 else 0.0), training
