"""MobileNetV2: the weights of others, in a network of ours, as right on photographs as is known of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib import MCDropout, load
from xuqlib.study.data.download import DataError
from xuqlib.study.training.mobilenet import _untrained, mobilenet_v2

LOCAL = os.environ.get("XUQ_DATA")
real_data = pytest.mark.skipif(
    not LOCAL or not Path(LOCAL, "imagenet_mobilenet").is_dir(), reason="$XUQ_DATA does not hold the weights"
)


def by_the_graph(x: Tensor) -> Tensor:
    """Walk through the operations of the file one by one, padding as TensorFlow defines it; pictures to logits."""
    folder = Path(LOCAL or "", "imagenet_mobilenet")
    graph = json.loads((folder / "mobilenet_v2_1.0_224.json").read_text())
    integers = np.load(folder / "mobilenet_v2_1.0_224.npz")
    values = {graph["input"]: (255 * x - 128) / 128}
    for operation in graph["ops"]:
        given = [values[number] for number in operation["inp"]]
        if operation["op"].endswith("CONV_2D"):
            k, (value,) = operation["layer"], given
            weight = (integers[f"{k}.weight"].astype(float) - operation["weight_zero"]) * operation["weight_scale"]
            is_depthwise = operation["op"].startswith("DEPTHWISE")
            kernel = torch.from_numpy(weight.transpose((3, 0, 1, 2) if is_depthwise else (0, 3, 1, 2)).copy())
            bias = torch.from_numpy(integers[f"{k}.bias"] * operation["bias_scale"])
            n, size, stride = value.shape[-1], kernel.shape[-1], operation["stride"]
            total = max((-(-n // stride) - 1) * stride + size - n, 0)
            value = F.pad(value, (total // 2, total - total // 2) * 2)
            groups = len(kernel) if is_depthwise else 1
            value = F.conv2d(value, kernel, bias, stride=stride, groups=groups)
            value = value.clamp(0, 6) if operation["act"] == "relu6" else value
        elif operation["op"] == "ADD":
            value = given[0] + given[1]
        elif operation["op"] == "AVERAGE_POOL_2D":
            value = F.avg_pool2d(given[0], operation["window"])
        elif operation["op"] == "RESHAPE":
            value = given[0].flatten(1)
        else:
            assert operation["op"] == "SOFTMAX", operation["op"]
            value = given[0]
        values[operation["out"]] = value
    return values[graph["output"]]


@real_data
def test_its_logits_are_those_of_the_graph_walked_through_operation_by_operation():
    x = load("imagenet_photos").x[7:8].double()
    with torch.no_grad():
        found, wanted = mobilenet_v2().double()(x), by_the_graph(x)
    # The network's weights are float32: the graph's are rounded once, 2**-24, in each of 53 layers.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@real_data
def test_it_is_as_right_on_the_photographs_as_is_known_of_these_weights():
    examples, network = load("imagenet_photos"), mobilenet_v2()
    with torch.no_grad():
        best = torch.cat([network(x) for x in examples.x.split(25)]).topk(5).indices
    right = best == examples.y[:, None]
    assert (int(right[:, 0].sum()), int(right.any(1).sum())) == (111, 124)


@real_data
def test_it_has_dropout_before_its_last_layer_when_asked():
    network = mobilenet_v2(dropout=0.2)
    assert not any(isinstance(module, nn.Dropout) for module in mobilenet_v2().modules())
    first, second = MCDropout(network).sample(2)
    x = load("imagenet_photos").x[:1]
    assert not torch.equal(first(x), second(x)) and torch.equal(first(x), first(x))
    assert not network.training


def test_its_blocks_are_those_of_the_paper():
    network = _untrained()
    assert sum(p.numel() for p in network.parameters() if p.ndim == 4) == 2_189_760 and len(network) == 26
    assert network[-1].weight.shape == (1001, 1280)


def test_without_its_weights_it_says_what_is_missing_and_a_rate_of_1_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"weights of MobileNetV2 are needed.*mobilenet_v2_1.0_224.npz"):
        mobilenet_v2(data=tmp_path)
    with pytest.raises(ValueError, match="dropout is 1.0; pass a probability below 1"):
        mobilenet_v2(dropout=1.0)
