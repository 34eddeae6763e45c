"""MobileNetV2 as it was trained on ImageNet by others: its weights are read, none is trained here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

from xuqlib.study.checked import Share, checked
from xuqlib.study.data.download import Folder, Layout, known_file, locate

# Channels out, stride of the depthwise convolution, and how often: Sandler et al. 2018, table 2.
_STAGES = ((16, 1, 1), (24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: wider by six, a convolution per channel, narrow again; added to x where shapes agree."""

    def __init__(self, width_in: int, width_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = width_in * expansion
        self.body = nn.Sequential(
            *(_convolution(width_in, wide, 1) if expansion > 1 else ()),
            *_convolution(wide, wide, 3, stride=stride, groups=wide),
            nn.Conv2d(wide, width_out, 1),
        )
        self.adds = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, width_out, H / stride, W / stride)."""
        return x + self.body(x) if self.adds else self.body(x)


@checked
def mobilenet_v2(*, dropout: Share = 0.0, data: Folder = None) -> nn.Sequential:
    """Build MobileNetV2 with the weights that Google trained on ImageNet; pictures in [0, 1] to logits.

    Pictures are (N, 3, 224, 224). There are 1,001 classes, of which 0 is the background. Batch norm is part of the
    weights, which are the exact values of their 8-bit integers; nothing in between is rounded, as it is on a phone.

    Args:
        dropout: drop probability before the last layer, 0.2 in the source; 0 builds no dropout layer.
        data: folder of local data; $XUQ_DATA by default.

    Raises:
        ValueError: dropout is no probability below 1.
        DataError: the weights are not there, or damaged.

    Source: Sandler et al. 2018, arXiv 1801.04381; weights of github.com/google-coral/edgetpu, Apache 2.0.
    """
    if dropout == 1:
        raise ValueError(f"dropout is {dropout}; pass a probability below 1")
    files = tuple(known_file(f"imagenet_mobilenet/mobilenet_v2_1.0_224.{ending}") for ending in ("json", "npz"))
    help_text = "the weights of MobileNetV2 are needed, which have no open download in this form (integers and scales)"
    graph, weights = locate((Layout("npz", files),), data, help_text).paths
    network = _untrained(dropout)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    operations = [entry for entry in json.loads(graph.read_text())["ops"] if "layer" in entry]
    with np.load(weights, allow_pickle=False) as integers, torch.no_grad():
        for layer, operation in zip(layers, operations, strict=True):
            _fill(layer, operation, integers)
    return network.eval()


def _untrained(dropout: float = 0.0) -> nn.Sequential:
    blocks: list[nn.Module] = []
    width = 32
    for width_out, stride, times in _STAGES:
        for turn in range(times):
            blocks.append(InvertedResidual(width, width_out, stride if turn == 0 else 1, 6 if blocks else 1))
            width = width_out
    return nn.Sequential(
        Normalize([128 / 255] * 3, [128 / 255] * 3),
        *_convolution(3, 32, 3, stride=2),
        *blocks,
        *_convolution(width, 1280, 1),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *([nn.Dropout(dropout)] if dropout else ()),
        nn.Linear(1280, 1001),
    )


def _convolution(
    width_in: int, width_out: int, size: int, *, stride: int = 1, groups: int = 1
) -> tuple[nn.Module, ...]:
    """A convolution and ReLU6, padded as TensorFlow pads: of an even picture halved, at the bottom and right alone."""
    padding = size // 2 if stride == 1 else 0
    convolution = nn.Conv2d(width_in, width_out, size, stride=stride, padding=padding, groups=groups)
    return (*(() if stride == 1 else (nn.ZeroPad2d((0, 1, 0, 1)),)), convolution, nn.ReLU6())


def _fill(layer: nn.Conv2d | nn.Linear, operation: Mapping[str, Any], integers: Mapping[str, np.ndarray]) -> None:
    """Write a layer's weights: (integer - zero) * scale, in the order of axes that torch has."""
    number = operation["layer"]
    weight = (integers[f"{number}.weight"].astype(np.float64) - operation["weight_zero"]) * operation["weight_scale"]
    # (out, h, w, in), or (1, h, w, channels) where each channel has a kernel of its own.
    weight = weight.transpose(3, 0, 1, 2) if operation["op"] == "DEPTHWISE_CONV_2D" else weight.transpose(0, 3, 1, 2)
    layer.weight.copy_(torch.from_numpy(weight.reshape(layer.weight.shape)))
    assert layer.bias is not None
    layer.bias.copy_(torch.from_numpy(integers[f"{number}.bias"] * operation["bias_scale"]))
