"""Small networks for pictures, tables, sentences, signals and pixels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib.checks import check_choice, check_count
from xuqlib.posteriors.kinds import PLACEMENTS
from xuqlib.study.checked import Count, Counts, Share, checked

Item = TypeVar("Item")


@checked
def mini_vgg(
    *,
    in_channels: Count = 3,
    num_classes: Count = 10,
    image_size: Count = 32,
    widths: Counts = (64, 128, 128),
    hidden: Count = 256,
    dropout: Share = 0.0,
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


@checked
def mlp(
    *,
    num_features: Count,
    num_outputs: Count = 1,
    hidden: Counts = (32, 32),
    dropout: Share = 0.0,
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


@checked
def lenet(
    *,
    in_channels: Count = 1,
    num_classes: Count = 10,
    image_size: Count = 28,
    widths: Counts = (32, 64),
    hidden: Count = 128,
    dropout: Share = 0.0,
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


@checked
def resnet18(
    *, in_channels: Count = 3, num_classes: Count = 10, dropout: Share = 0.0, placement: str = "last"
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


@checked
def cnn_1d(
    *,
    in_channels: Count = 1,
    num_classes: Count = 2,
    widths: Counts = (16, 32, 64),
    dropout: Share = 0.0,
    placement: str = "last",
) -> nn.Sequential:
    """Build blocks of convolution, batch norm, ReLU and pooling along time, then a mean and a dense layer.

    (N, in_channels, L) to (N, num_classes), of signals of any length of at least 2 to the number of blocks. `widths`,
    `dropout` and `placement` are those of `mini_vgg`.
    """
    check_choice(placement, PLACEMENTS, "placement")
    layers: list[nn.Module] = []
    for width_in, width_out in zip((in_channels, *_at_least_one(widths, "widths")), widths, strict=False):
        layers += [nn.Conv1d(width_in, width_out, 7, padding=3), nn.BatchNorm1d(width_out), nn.ReLU(), nn.MaxPool1d(2)]
        if dropout and placement == "all":
            layers.append(nn.Dropout(dropout))
    layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))


@checked
class SignalLSTM(nn.Module):
    """An LSTM over time, the mean of its answers, and a dense layer: (N, in_channels, L) to (N, num_classes).

    Args:
        in_channels, num_classes: as in `cnn_1d`.
        window: time steps that the LSTM reads at once; a rest at the end is filled up with zeros.
        width: numbers that the LSTM remembers.
        depth: LSTMs on top of each other; with `placement="all"` there is dropout between them, too.
        dropout, placement: those of `mini_vgg`.

    Source: Hochreiter & Schmidhuber 1997.
    """

    def __init__(
        self,
        *,
        in_channels: Count = 1,
        num_classes: Count = 2,
        window: Count = 4,
        width: Count = 32,
        depth: Count = 1,
        dropout: Share = 0.0,
        placement: str = "last",
    ) -> None:
        super().__init__()
        inner = _inner(dropout, placement)
        between = inner if depth > 1 else 0.0
        self.window = check_count(window, 1, "window")
        self.lstm = nn.LSTM(in_channels * window, width, num_layers=depth, dropout=between, batch_first=True)
        self.inner = _dropout(inner)
        self.dropout = _dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of signals (N, in_channels, L)."""
        steps = F.pad(x, (0, -x.shape[-1] % self.window)).unflatten(2, (-1, self.window))  # (N, C, T, window)
        states, _ = self.lstm(steps.transpose(1, 2).flatten(2))  # (N, T, width)
        return self.head(self.dropout(self.inner(states).mean(1)))


class Attention(nn.Module):
    """Self-attention of several heads, with dropout on its weights. Source: Vaswani et al. 2017, arXiv 1706.03762."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width is {width} and heads is {heads}; pass a width that the heads divide")
        self.heads = heads
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.dropout = _dropout(dropout)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return what each token gathers, (N, T, width), of tokens x; none looks at the ignored, (N, T)."""
        n, t, width = x.shape
        parts = self.queries_keys_values(x).reshape(n, t, 3, self.heads, width // self.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # (N, heads, T, width / heads) each
        scores = queries @ keys.transpose(-1, -2) / (width // self.heads) ** 0.5
        if ignored is not None:
            # The least number, not minus infinity: a row of padding alone stays finite.
            scores = scores.masked_fill(ignored[:, None, None], torch.finfo(scores.dtype).min)
        gathered = self.dropout(scores.softmax(-1)) @ values
        return self.out(gathered.transpose(1, 2).reshape(n, t, width))


class TransformerBlock(nn.Module):
    """Attention, then two dense layers with a ReLU, each added to the tokens; layer norm comes first in both."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.dropout = _dropout(dropout)
        self.dense = nn.Sequential(
            *(nn.Linear(width, 2 * width), nn.ReLU(), _dropout(dropout)),
            *(nn.Linear(2 * width, width), _dropout(dropout)),
        )

    def forward(self, x: Tensor, ignored: Tensor | None = None) -> Tensor:
        """Return tokens (N, T, width)."""
        x = x + self.dropout(self.attention(self.first_norm(x), ignored))
        return x + self.dense(self.second_norm(x))


@checked
class TextTransformer(nn.Module):
    """A transformer that reads a sentence: the numbers of its words, (N, T), to logits (N, num_classes).

    Number 0 is padding, which no word looks at and which does not count in the mean over words: an answer does not
    depend on how much padding there is.

    Args:
        num_words: size of the vocabulary.
        num_classes: width of the output.
        length: T, the most words that a sentence can have.
        width: numbers per word; heads: of the attention; depth: blocks.
        dropout: drop probability; 0 builds a network without any dropout layer.
        placement: "all", dropout on the embedded words, the attention weights and behind every layer; "last", one
            dropout before the output layer.
    """

    def __init__(
        self,
        *,
        num_words: Count,
        num_classes: Count = 2,
        length: Count = 64,
        width: Count = 64,
        heads: Count = 4,
        depth: Count = 2,
        dropout: Share = 0.0,
        placement: str = "all",
    ) -> None:
        super().__init__()
        inner = _inner(dropout, placement)
        self.embedding = nn.Embedding(num_words, width, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.inner = _dropout(inner)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, inner) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.dropout = _dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (N, num_classes) of sentences, int64 (N, T)."""
        ignored = ids == 0
        x = self.inner(self.embedding(ids) + self.positions[: ids.shape[1]])
        for block in self.blocks:
            x = block(x, ignored)
        words = (~ignored)[..., None].to(x)
        mean = (self.norm(x) * words).sum(1) / words.sum(1).clamp(min=1)
        return self.head(self.dropout(mean))


@checked
class VisionTransformer(nn.Module):
    """A transformer that looks at squares of a picture: (N, C, H, W) to logits (N, num_classes).

    Args:
        in_channels, num_classes, image_size: as in `mini_vgg`.
        patch: side of a square, which divides image_size.
        width, heads, depth, dropout, placement: those of `TextTransformer`.

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, with the mean over squares in place of a class token.
    """

    def __init__(
        self,
        *,
        in_channels: Count = 3,
        num_classes: Count = 10,
        image_size: Count = 32,
        patch: Count = 4,
        width: Count = 64,
        heads: Count = 4,
        depth: Count = 3,
        dropout: Share = 0.0,
        placement: str = "all",
    ) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(f"image_size is {image_size} and patch is {patch}; pass a patch that divides it")
        inner = _inner(dropout, placement)
        self.embedding = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((image_size // patch) ** 2, width))
        self.inner = _dropout(inner)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, inner) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.dropout = _dropout(dropout)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of pictures (N, C, H, W)."""
        tokens = self.embedding(x).flatten(2).transpose(1, 2)  # (N, T, width)
        tokens = self.blocks(self.inner(tokens + self.positions))
        return self.head(self.dropout(self.norm(tokens).mean(1)))


@checked
class TableTransformer(nn.Module):
    """A transformer whose tokens are the features of a table: (N, F) to (N, num_outputs).

    Args:
        groups: the columns of each feature, as in `Examples.feature_groups`: one for a number, one per category for
            what is none.
        num_outputs: width of the output.
        width, heads, depth, dropout, placement: those of `TextTransformer`.

    Source: after Gorishniy et al. 2021, arXiv 2106.11959 (FT-Transformer), with the mean over features in place of a
    class token.
    """

    member: Tensor

    def __init__(
        self,
        *,
        groups: Sequence[Sequence[int]],
        num_outputs: Count = 1,
        width: Count = 32,
        heads: Count = 4,
        depth: Count = 2,
        dropout: Share = 0.0,
        placement: str = "all",
    ) -> None:
        super().__init__()
        inner = _inner(dropout, placement)
        if sorted(itertools.chain(*_at_least_one(groups, "groups"))) != list(range(sum(map(len, groups)))):
            raise ValueError(f"groups are {groups}; put each column, 0 to the last, into one group")
        num_features = sum(map(len, _at_least_one(groups, "groups")))
        member = torch.zeros(len(groups), num_features)
        for row, columns in zip(member, groups, strict=True):
            row[list(columns)] = 1
        self.register_buffer("member", member, persistent=False)  # (feature, column)
        self.weight = nn.Parameter(torch.randn(num_features, width) / width**0.5)
        self.bias = nn.Parameter(torch.randn(len(groups), width) / width**0.5)
        self.inner = _dropout(inner)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, inner) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.dropout = _dropout(dropout)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, num_outputs) of rows (N, F)."""
        tokens = torch.einsum("nf,gf,fd->ngd", x, self.member, self.weight) + self.bias  # (N, feature, width)
        return self.head(self.dropout(self.norm(self.blocks(self.inner(tokens))).mean(1)))


@checked
class MeanVariance(nn.Module):
    """Read two outputs of a network, (N, 2), as a mean and a variance, (N, 1) each; the variance is above 0.

    Source: Nix & Weigend 1994.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (mean, variance) of examples x."""
        mean, raw = self.body(x).chunk(2, dim=1)
        # A variance of 0 would have an infinite loss; 1e-6 is a thousandth of a standardised target's deviation.
        return mean, F.softplus(raw) + 1e-6


@checked
class UNet(nn.Module):
    """A small U-Net: pictures (N, C, H, W) to a logit for each class and pixel, (N, num_classes, H, W).

    Args:
        in_channels: 3 for colour, 1 for grey.
        num_classes: of each pixel.
        widths: channels of the levels; every level but the last halves the picture.
        dropout: drop probability of whole channels; 0 builds a network without any dropout layer.
        placement: "last", one dropout before the output layer; "all", also one behind every level.

    Source: Ronneberger et al. 2015, arXiv 1505.04597, with padding, batch norm, and nearest neighbours on the way up.
    """

    def __init__(
        self,
        *,
        in_channels: Count = 3,
        num_classes: Count = 2,
        widths: Counts = (8, 16, 32),
        dropout: Share = 0.0,
        placement: str = "all",
    ) -> None:
        super().__init__()
        inner = _inner(dropout, placement)
        pairs = list(zip((in_channels, *_at_least_one(widths, "widths")), widths, strict=False))
        self.down = nn.ModuleList(_twice(width_in, width_out, inner) for width_in, width_out in pairs)
        self.up = nn.ModuleList(
            _twice(deep + width, width, inner if width != widths[0] else 0.0)
            for deep, width in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.head = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes, H, W).

        Raises:
            ValueError: a side that cannot be halved as often as there are levels.
        """
        times = len(self.down) - 1
        if x.shape[-1] % 2**times or x.shape[-2] % 2**times:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; this U-Net halves it {times} times: pass sides divisible by {2**times}"
            )
        kept: list[Tensor] = []
        for level in self.down:
            x = level(F.max_pool2d(kept[-1], 2) if kept else x)
            kept.append(x)
        for level, skip in zip(self.up, kept[-2::-1], strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1))
        return self.head(self.dropout(x))


def _twice(width_in: int, width_out: int, dropout: float) -> nn.Sequential:
    """Two convolutions with batch norm and ReLU, and dropout of whole channels behind them."""
    return nn.Sequential(
        *(nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()),
        *(nn.Conv2d(width_out, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()),
        *([nn.Dropout2d(dropout)] if dropout else ()),
    )


def _inner(dropout: float, placement: str) -> float:
    """The drop probability inside of a network: that of the output layer, or none."""
    check_choice(placement, PLACEMENTS, "placement")
    return dropout if placement == "all" else 0.0


def _dropout(rate: float) -> nn.Module:
    return nn.Dropout(rate) if rate else nn.Identity()


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


def _at_least_one(widths: Sequence[Item], what: str) -> Sequence[Item]:
    if not isinstance(widths, Sequence) or not widths:
        raise ValueError(f"{what} is {widths!r}; pass a list of at least one width")
    return widths
