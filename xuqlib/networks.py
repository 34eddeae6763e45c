"""Small networks for small pictures and tables, and the layers whose weights can be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from xuqlib.checks import check_choice, check_count

Placement = str | Sequence[str]
Drawer = Callable[[Tensor], dict[str, Tensor]]
Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
PLACEMENTS = ("last", "all")


def mini_vgg(
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    image_size: int = 32,
    widths: Sequence[int] = (64, 128, 128),
    hidden: int = 256,
    dropout: float = 0.0,
    placement: str = "last",
) -> nn.Sequential:
    """Build three blocks of convolution, batch norm, ReLU and pooling, then two dense layers.

    Its layers stand in one `nn.Sequential`, so what comes before the first random layer is easy to see.

    Args:
        in_channels: 3 for colour, 1 for grey.
        num_classes: width of the output, in logits.
        image_size: height and width of the pictures, which every block halves: a multiple of 8 for three blocks.
        widths: channels of the blocks. The defaults are a choice: the source names no sizes.
        hidden: width of the dense layer.
        dropout: drop probability; 0 builds a network without any dropout layer.
        placement: "last", one dropout before the output layer; "all", also one after every block.

    Source: after arXiv 2403.17224, section 4; sizes from public code by its second author.
    """
    check_choice(placement, PLACEMENTS, "placement")
    halved = _halved(image_size, len(_at_least_one(widths, "widths")), "mini_vgg")
    blocks: list[list[nn.Module]] = [
        [nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU(), nn.MaxPool2d(2)]
        for width_in, width_out in zip((in_channels, *widths), widths, strict=False)
    ]
    return _in_line(blocks, widths[-1] * halved**2, hidden, num_classes, dropout, placement)


def mlp(
    *,
    num_features: int,
    num_outputs: int = 1,
    hidden: Sequence[int] = (32, 32),
    dropout: float = 0.0,
    placement: str = "last",
) -> nn.Sequential:
    """Build dense layers with ReLUs between them; (N, num_features) to (N, num_outputs).

    `dropout` and `placement` are those of `mini_vgg`, a hidden layer being a block.
    """
    check_choice(placement, PLACEMENTS, "placement")
    check_count(num_features, 1, "num_features")
    _at_least_one(hidden, "hidden")
    layers: list[nn.Module] = []
    for depth, (width_in, width_out) in enumerate(zip((num_features, *hidden), hidden, strict=False), start=1):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        if dropout and (placement == "all" or depth == len(hidden)):
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden[-1], num_outputs))


def lenet(
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: int = 28,
    widths: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.0,
    placement: str = "last",
) -> nn.Sequential:
    """Build LeNet with ReLUs and max pooling: two blocks of a 5x5 convolution, then two dense layers.

    `widths`, `hidden`, `dropout` and `placement` are those of `mini_vgg`. Source: LeCun et al. 1998, with today's
    non-linearities.
    """
    check_choice(placement, PLACEMENTS, "placement")
    halved = _halved(image_size, len(_at_least_one(widths, "widths")), "lenet")
    blocks: list[list[nn.Module]] = [
        [nn.Conv2d(width_in, width_out, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        for width_in, width_out in zip((in_channels, *widths), widths, strict=False)
    ]
    return _in_line(blocks, widths[-1] * halved**2, hidden, num_classes, dropout, placement)


def resnet18(
    *, in_channels: int = 3, num_classes: int = 10, dropout: float = 0.0, placement: str = "last"
) -> nn.Module:
    """Build torchvision's ResNet-18 with the stem for 32x32 pictures: a 3x3 convolution, no first pooling.

    `dropout` and `placement` are those of `mini_vgg`, a group of residual blocks being a block.

    Source: He et al. 2016, section 4.2. arXiv 1512.03385.
    """
    check_choice(placement, PLACEMENTS, "placement")
    from torchvision.models import resnet18 as torchvision_resnet18

    network = torchvision_resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    if dropout and placement == "all":
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(network, name, nn.Sequential(getattr(network, name), nn.Dropout(dropout)))
    if dropout:
        network.fc = nn.Sequential(nn.Dropout(dropout), network.fc)
    return network


class _RandomLayer(nn.Module):
    """A dense or convolutional layer whose weight is random; in eval mode it is the layer itself."""

    def __init__(self, layer: Weighted) -> None:
        super().__init__()
        self.layer = layer

    # torch's own transformer layers read the weight and the bias of the layers in them.
    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias


class DropConnectLayer(_RandomLayer):
    """A dense or convolutional layer that drops each weight with probability `p` while it trains.

    In eval mode it is the layer itself. The mask is on the weight, not on the bias, and kept weights are divided
    by 1 - p. One mask serves a whole batch while training (a choice: one mask per example costs N weight tensors).

    Source: Wan et al. 2013; Mobiny et al. 2019, arXiv 1906.04569.
    """

    def __init__(self, layer: Weighted, p: float) -> None:
        super().__init__(layer)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.layer(x)
        weight = F.dropout(self.layer.weight, self.p)
        return functional_call(self.layer, {"weight": weight}, (x,))

    def noise(self, generator: torch.Generator) -> Tensor:
        """Return the random numbers of one draw, shaped like the weight."""
        return torch.rand(self.layer.weight.shape, generator=generator, dtype=torch.float32, device="cpu")

    def drawer(self) -> Drawer:
        """Return what turns the noise of a draw into its masked weight, `{"layer.weight": tensor}`; detached."""
        kept, p = self.layer.weight.detach() / (1 - self.p), self.p
        return lambda noise: {"layer.weight": torch.where((noise >= p).to(kept.device), kept, kept.new_zeros(()))}


class FlipoutLayer(_RandomLayer):
    """A dense or convolutional layer with an independent Gaussian over each weight, trained with Flipout.

    Weight w ~ N(layer.weight, softplus(rho)^2); the bias stays a point. While training, each example sees the same
    weight noise under its own random signs, so gradients of different examples are decorrelated. The signs are a
    training-time trick: in eval mode the layer is its mean, and `drawer` gives plain samples of the Gaussian.

    Args:
        layer: holds the means; trained on.
        initial_std: standard deviation of every weight at the start.
        prior_std: standard deviation of the zero-mean Gaussian prior, for `kl`.

    Source: Wen et al. 2018, eq. 5. arXiv 1803.04386.
    """

    def __init__(self, layer: Weighted, *, initial_std: float = 0.05, prior_std: float = 1.0) -> None:
        super().__init__(layer)
        self.prior_std = prior_std
        rho = math.log(math.expm1(initial_std))  # softplus(rho) is initial_std
        self.rho = nn.Parameter(torch.full_like(layer.weight.detach(), rho))

    @property
    def std(self) -> Tensor:
        """Standard deviation of each weight, shaped like it."""
        return F.softplus(self.rho)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.layer(x)
        if not self.training:
            return mean
        noise = {"weight": self.std * torch.randn_like(self.rho)}
        if self.layer.bias is not None:
            noise["bias"] = torch.zeros_like(self.layer.bias)
        perturbation = functional_call(self.layer, noise, (x * self._random_signs(x),))
        return mean + perturbation * self._random_signs(perturbation)

    def _random_signs(self, x: Tensor) -> Tensor:
        # A convolution keeps one sign per channel over the picture: otherwise the noise would not factorise.
        dense = isinstance(self.layer, nn.Linear)
        shape = x.shape if dense else x.shape[:2] + (1,) * (x.ndim - 2)
        return torch.randint(0, 2, shape, device=x.device).to(x) * 2 - 1

    def kl(self) -> Tensor:
        """Divergence of this Gaussian from the prior, summed over weights, in nats."""
        ratio = (self.std / self.prior_std) ** 2
        return 0.5 * (ratio + (self.layer.weight / self.prior_std) ** 2 - 1 - ratio.log()).sum()

    def noise(self, generator: torch.Generator) -> Tensor:
        """Return the standard normal numbers of one draw, shaped like the weight."""
        return torch.randn(self.layer.weight.shape, generator=generator, dtype=torch.float32, device="cpu")

    def drawer(self) -> Drawer:
        """Return what turns the noise of a draw into its sampled weight, `{"layer.weight": tensor}`; detached."""
        mean, std = self.layer.weight.detach().clone(), self.std.detach()
        return lambda noise: {"layer.weight": (noise.to(mean) * std).add_(mean)}


def weighted_layers(network: nn.Module, placement: Placement = "last") -> list[str]:
    """Name the dense and convolutional layers that a posterior over weights makes random.

    Projections inside `nn.MultiheadAttention` are left out: it reads their weights without calling them.

    Args:
        network: any module.
        placement: "last", the one registered last, commonly the output layer; "all"; or a list of names.

    Raises:
        ValueError: unknown placement or names, or a network without such layers.
    """
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    attention = [name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, kinds) and not any(name.startswith(f"{outer}.") for outer in attention)
    ]
    if not names:
        raise ValueError(f"{type(network).__name__} has no Linear or Conv layer whose weights could be drawn")
    if isinstance(placement, str):
        check_choice(placement, PLACEMENTS, "placement")
        return names[-1:] if placement == "last" else names
    if not isinstance(placement, Sequence) or not all(isinstance(name, str) for name in placement):
        raise TypeError(f"placement is {placement!r}; pass 'last', 'all', or a list of names of layers")
    unknown = sorted(set(placement) - set(names))
    if unknown or not placement:
        raise ValueError(f"placement names {unknown or 'no layer'}; the layers of this network are {names}")
    return [name for name in names if name in set(placement)]


def replace_layers(network: nn.Module, replacements: Iterable[tuple[str, nn.Module]]) -> nn.Module:
    """Put each named layer's replacement in its place, in `network` itself; return the network.

    A network that is itself the layer (its name is "") is replaced as a whole.
    """
    for name, layer in replacements:
        if not name:
            return layer
        network.set_submodule(name, layer)
    return network


def _in_line(
    blocks: Iterable[list[nn.Module]], num_features: int, hidden: int, num_classes: int, dropout: float, placement: str
) -> nn.Sequential:
    """Blocks, then two dense layers, with dropout where `placement` puts it."""
    layers: list[nn.Module] = []
    for block in blocks:
        layers += block
        if dropout and placement == "all":
            layers.append(nn.Dropout(dropout))
    layers += [nn.Flatten(), nn.Linear(num_features, hidden), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(hidden, num_classes))


def _halved(image_size: int, times: int, network: str) -> int:
    check_count(image_size, 2**times, "image_size")
    if image_size % 2**times:
        raise ValueError(
            f"image_size is {image_size}; {network} halves it {times} times: pass a multiple of {2**times}"
        )
    return image_size // 2**times


def _at_least_one(widths: Sequence[int], what: str) -> Sequence[int]:
    if not isinstance(widths, Sequence) or not widths:
        raise ValueError(f"{what} is {widths!r}; pass a list of at least one width")
    return widths
