"""Slow, obvious versions of the explainers, written from the equations: one example, one step, one ReLU at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor, nn

Array = np.ndarray[Any, Any]


def loop_gradient(network: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> Tensor:
    """Gradient of one logit of one example at a time."""
    rows = []
    for example, label in zip(x, target.tolist(), strict=True):
        point = example.detach().clone()[None].requires_grad_()
        rows.append(torch.autograd.grad(network(point)[0, label], point)[0][0])
    return torch.stack(rows)


def loop_integrated_gradients(
    network: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, baseline: Tensor, num_steps: int
) -> Tensor:
    """(x - baseline) times the weighted sum of gradients at the Gauss-Legendre nodes, one node at a time."""
    nodes, weights = np.polynomial.legendre.leggauss(num_steps)
    total = torch.zeros_like(x)
    for node, weight in zip(nodes, weights, strict=True):
        point = baseline + (node + 1) / 2 * (x - baseline)
        total += weight / 2 * loop_gradient(network, point, target)
    return (x - baseline) * total


def loop_smoothgrad(
    network: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, noise: float, unit: Tensor
) -> Tensor:
    """Mean gradient over x + noise * (max - min) * unit[k], one copy of one example at a time."""
    rows = []
    for example, label in zip(x, target, strict=True):
        extent = example.max() - example.min()
        copies = [loop_gradient(network, (example + noise * extent * u)[None], label[None]) for u in unit]
        rows.append(torch.cat(copies).mean(0))
    return torch.stack(rows)


def _guide(slope: Array, z: Array) -> Array:
    """The rule of guided backpropagation at one ReLU with input z: dy * 1[dy > 0] * 1[z > 0]."""
    return slope * (slope > 0) * (z > 0)


def guided_mlp(weights: list[Array], biases: list[Array], x: Array, target: Array) -> Array:
    """Guided Backprop of linear, ReLU, linear, ReLU, ..., linear, by hand."""
    h, inputs = x, []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(h @ weight.T + bias)
        h = np.maximum(inputs[-1], 0)
    slope = weights[-1][target]  # (N, hidden)
    for weight, z in zip(weights[-2::-1], inputs[::-1], strict=True):
        slope = _guide(slope, z) @ weight
    return slope


def guided_skip(weights: list[Array], biases: list[Array], x: Array, target: Array) -> Array:
    """Guided Backprop of z = A x + a, y = D (B relu(z) + b + z) + d: the skip passes its slope as it is."""
    a, b, d = weights
    z = x @ a.T + biases[0]
    slope = d[target]
    return (_guide(slope @ b, z) + slope) @ a


def guided_resnet(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Guided Backprop of a torchvision ResNet of basic blocks in eval mode, layer by layer from the output."""
    tape: list[Callable[[Tensor], Tensor]] = []

    def through(layer: Callable[[Tensor], Tensor], h: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        out, back = torch.func.vjp(layer, h)
        return out, lambda slope: back(slope)[0]

    def relu(z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return torch.where(z > 0, z, 0), lambda slope: slope * (slope > 0) * (z > 0)

    def block(part: nn.Module, h: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        z1, back1 = through(lambda t: part.bn1(part.conv1(t)), h)
        r1, guide1 = relu(z1)
        z2, back2 = through(lambda t: part.bn2(part.conv2(t)), r1)
        skip, back_skip = through(part.downsample or nn.Identity(), h)
        out, guide2 = relu(z2 + skip)

        def back(slope: Tensor) -> Tensor:
            slope = guide2(slope)
            return back1(guide1(back2(slope))) + back_skip(slope)

        return out, back

    h, back = through(lambda t: network.bn1(network.conv1(t)), x)
    tape.append(back)
    h, back = relu(h)
    tape.append(back)
    h, back = through(network.maxpool, h)
    tape.append(back)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for part in stage:
            h, back = block(part, h)
            tape.append(back)
    _, back = through(lambda t: network.fc(network.avgpool(t).flatten(1)), h)
    slope = back(torch.eye(network.fc.out_features, dtype=x.dtype)[target])
    for back in reversed(tape):
        slope = back(slope)
    return slope


def ridge(design: Array, weights: Array, y: Array, alpha: float) -> tuple[Array, float]:
    """Coefficients and weighted R2 of scikit-learn's ridge regression, for the logits of one example."""
    model = Ridge(alpha=alpha).fit(design, y, sample_weight=weights)
    return model.coef_, float(model.score(design, y, sample_weight=weights))


def loop_lime_table(
    network: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, design: Array, alpha: float, scale: Array
) -> tuple[Array, Array]:
    """LIME of a table, one example and one copy at a time: coefficients per unit of x, (N, F), and R2, (N,)."""
    width = 0.75 * np.sqrt(x.shape[1])
    weights = np.array([np.exp(-(row @ row) / width**2) for row in design])
    fits = []
    for example, label in zip(x.numpy(), target.tolist(), strict=True):
        copies = [torch.as_tensor(example + scale * row)[None] for row in design]
        y = np.array([network(copy)[0, label].item() for copy in copies])
        fits.append(ridge(design, weights, y, alpha))
    return np.stack([c for c, _ in fits]) / scale, np.array([r2 for _, r2 in fits])


def loop_lime_picture(
    network: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, segments: Array, uniform: Array, alpha: float
) -> tuple[Array, Array]:
    """LIME of pictures with mean-colour fill, one copy at a time: maps (N, H, W) of coefficients, and R2, (N,).

    uniform: (K, M) numbers in [0, 1); superpixel k is shown in copy m if uniform[k, m] < 0.5; copy 0 shows all.
    """
    maps, scores = [], []
    for picture, label, regions in zip(x.numpy(), target.tolist(), segments, strict=True):
        names = np.unique(regions)
        design = (uniform[: len(names)] < 0.5).T.astype(float)
        design[0] = 1
        y, weights = [], []
        for row in design:
            copy = picture.copy()
            for name, shown in zip(names, row, strict=True):
                if not shown:
                    inside = regions == name
                    copy[:, inside] = picture[:, inside].mean(1, keepdims=True)
            y.append(network(torch.as_tensor(copy)[None])[0, label].item())
            norm = np.sqrt(row @ row) * np.sqrt(len(row))
            distance = 1 - row.sum() / norm if norm else 1.0
            weights.append(np.sqrt(np.exp(-(distance**2) / 0.25**2)))
        coefficients, score = ridge(design, np.array(weights), np.array(y), alpha)
        maps.append(sum(c * (regions == name) for c, name in zip(coefficients, names, strict=True)))
        scores.append(score)
    return np.stack(maps), np.array(scores)


BIASED = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


def slow_terms(network, example, label):
    """FullGrad's terms of one example by hooks: pairs of a layer and bias * slope, the input's first."""
    met, handles = [], []
    for module in network.modules():
        if isinstance(module, BIASED):
            handles.append(module.register_forward_hook(lambda layer, _, y: met.append((layer, y)) or y + 0))
    point = example[None].clone().requires_grad_()
    logit = network(point)[0, label]
    slopes = torch.autograd.grad(logit, [point, *(y for _, y in met)])
    for handle in handles:
        handle.remove()
    found = [(None, (point * slopes[0]).detach())]
    for (layer, _), slope in zip(met, slopes[1:], strict=True):
        bias = layer.bias.detach()
        if hasattr(layer, "running_mean"):
            bias = bias - layer.running_mean * layer.weight.detach() / (layer.running_var + layer.eps).sqrt()
        axes = (-1,) if isinstance(layer, nn.Linear) else (-1, *[1] * (slope.dim() - 2))
        found.append((layer, bias.view(axes) * slope))
    return found


def slow_map(network, example, label, psi):
    """FullGrad's map of one example, (H, W) or (F,): one term at a time, in the words of the definition."""
    total = 0
    for layer, term in slow_terms(network, example, label):
        if example.dim() == 1 and layer is None:
            return psi_of(term, psi)[0]
        if not isinstance(layer, nn.Linear):
            stretched = F.interpolate(psi_of(term, psi), size=example.shape[1:], mode="bilinear", align_corners=False)
            total = total + stretched.sum(1)[0]
    return total


def psi_of(term, psi):
    size = term.abs()
    if psi == "raw":
        return size
    return (size - size.min()) / (size.max() - size.min()) if size.max() > size.min() else 0 * size
