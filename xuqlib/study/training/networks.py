"""Small networks for small pictures and tables, and the layers whose weights can be drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from xuqlib.checks import check_choice, check_count
from xuqlib.posteriors.kinds import PLACEMENTS


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
