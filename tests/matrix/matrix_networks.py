"""The networks of the matrix: small and seeded, one of every family that a user may bring."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from core_networks import randn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    GoogLeNet,
    MaxVit,
    MNASNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
    SwinTransformer,
    VisionTransformer,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.googlenet import Inception
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import VGG
from torchvision.models.video import resnet as video
from torchvision.transforms import Normalize

from xuqlib.inputs import as_inputs

os.environ["HF_HUB_OFFLINE"] = "1"  # all networks are made from their configurations, and nothing is fetched

Builder = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """A network, and how it is explained.

    Attributes:
        build: makes it, its weights from torch's global generator.
        given: what it takes, of three examples.
        output: what of its answer is explained.
        layer: the one that is made random where nobody can see which layer gives the output.
        lime: options, for inputs whose regions are not known.
        targets: what Laplace is fitted to: the number of classes, or a tensor.
    """

    build: Builder
    given: Any
    output: Any = None
    layer: str | None = None
    lime: dict[str, Any] = field(default_factory=dict)
    targets: int | Tensor = 3


IMAGES, SIGNALS, SERIES, TABLE = randn(3, 3, 32, 32), randn(3, 2, 24), randn(3, 12, 4), randn(3, 7)
IDS = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones(3, 9, dtype=torch.long)
MASK[1, 6:], MASK[2, 4:] = 0, 0
BINS = {"segments": torch.arange(24)[None, None] // 6}
STEPS = {"segments": torch.arange(12)[None, :, None] // 3}
COLUMNS = {"segments": torch.arange(7)}


def made(case: Case, seed: int = 0) -> nn.Module:
    """Build a network in float64 whose parts all matter: nothing starts at 0, and its BatchNorms have seen the data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = case.build().double().eval()
        for name, parameter in network.named_parameters():
            if parameter.detach().abs().max() < 1e-3 or name.endswith(("layer_scale", "gamma")):
                nn.init.normal_(parameter, 0, 0.1)
            elif parameter.ndim == 1 and (parameter == 1).all():
                nn.init.uniform_(parameter, 0.7, 1.3)
        norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.train().momentum = 1.0
        inputs = as_inputs(case.given)
        if norms:
            with torch.no_grad():
                inputs.call(network, inputs.x)
        for norm in norms:
            norm.eval().momentum = 0.1
    return network


# torchvision


def resnet(block: Any, width: int, **options: Any) -> nn.Module:
    network = ResNet(block, [1, 1, 1, 1], num_classes=3, **options)
    network.layer3, network.layer4, network.fc = nn.Identity(), nn.Identity(), nn.Linear(width, 3)  # half the depth
    return network


def googlenet() -> nn.Module:
    network = GoogLeNet(num_classes=3, init_weights=False, transform_input=True)
    for name in ("inception3b", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e"):
        setattr(network, name, nn.Identity())
    network.inception5a, network.inception5b = Inception(256, 8, 8, 8, 8, 8, 8), Inception(32, 8, 8, 8, 8, 8, 8)
    network.fc = nn.Linear(32, 3)
    for head in (network.aux1, network.aux2):  # which answer in training alone
        head.fc1, head.fc2 = nn.Linear(2048, 8), nn.Linear(8, 3)
    return network


def mnasnet() -> nn.Module:
    network = MNASNet(0.1, num_classes=3)
    network.layers[9], network.layers[10] = nn.Identity(), nn.Identity()
    return network


def squeezenet() -> nn.Module:
    network = SqueezeNet("1_1", num_classes=3)
    nn.init.ones_(network.classifier[1].bias)  # there is a ReLU behind
    return network


def small_vgg() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(4)]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    with torch.device("meta"):  # of the 120 million weights of its classifier
        network = VGG(nn.Identity(), num_classes=3, init_weights=False)
    network.features, network.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
    dense = [nn.Linear(32, 16), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU(True), nn.Dropout(0.5)]
    network.classifier = nn.Sequential(*dense, nn.Linear(16, 3))
    return network


def mobilenet_v3() -> nn.Module:
    blocks = [(8, 3, 16, 8, True, "RE", 2, 1, 1), (8, 5, 24, 16, True, "HS", 2, 1, 1)]
    return MobileNetV3([InvertedResidualConfig(*each) for each in blocks], last_channel=16, num_classes=3)


def efficientnet(first: Any) -> nn.Module:
    blocks = [first(1, 3, 1, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2)]
    return EfficientNet(blocks, dropout=0.3, stochastic_depth_prob=0.3, num_classes=3, last_channel=32)


def regnet() -> nn.Module:
    blocks = BlockParams(
        depths=[1, 1], widths=[8, 16], group_widths=[4, 8], bottleneck_multipliers=[1.0, 1.0], strides=[2, 2]
    )
    blocks.se_ratio = 0.25
    return RegNet(blocks, num_classes=3, stem_width=8)


def convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.4, num_classes=3)


def swin(block: Any = None, **options: Any) -> nn.Module:
    sizes: dict[str, Any] = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4]}
    return SwinTransformer(**sizes, window_size=[4, 4], dropout=0.2, attention_dropout=0.2, num_classes=3, **options)


def swin_v2() -> nn.Module:
    return swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)


def vit() -> nn.Module:
    return VisionTransformer(32, 16, 2, 2, 8, 16, dropout=0.2, attention_dropout=0.2, num_classes=3)


def maxvit() -> nn.Module:
    sizes: dict[str, Any] = {"stem_channels": 8, "partition_size": 4, "block_channels": [8], "block_layers": [1]}
    return MaxVit((32, 32), **sizes, head_dim=4, stochastic_depth_prob=0.3, mlp_dropout=0.2, num_classes=3)


class Backbone(nn.Module):
    """Features of two depths, by name, as torchvision's segmentation networks take them."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.high = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        high = self.high(low)
        return {"low": low, "high": high, "out": high, "aux": low}


def fcn() -> nn.Module:
    return FCN(Backbone(), FCNHead(16, 3), FCNHead(8, 3))


def deeplab() -> nn.Module:
    return DeepLabV3(Backbone(), nn.Sequential(ASPP(16, (2, 3), 8), nn.Conv2d(8, 3, 1)))


def lraspp() -> nn.Module:
    return LRASPP(Backbone(), 8, 16, 3, inter_channels=8)


def r3d(maker: Any = video.Conv3DSimple) -> nn.Module:
    network = video.VideoResNet(video.BasicBlock, [maker] * 4, [1, 1, 1, 1], video.BasicStem, num_classes=3)
    network.layer2, network.layer3, network.layer4 = nn.Identity(), nn.Identity(), nn.Dropout3d(0.3)
    network.fc = nn.Linear(64, 3)
    return network


# timm


def timm(name: str, **options: Any) -> nn.Module:
    import timm as library

    return library.create_model(name, num_classes=3, drop_rate=0.2, **options)


# transformers, from configurations alone

ROUND: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_labels": 3}


NO_ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}


def hugging(name: str, task: str = "ForSequenceClassification", **options: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**{"num_labels": 3, **options})
    return getattr(transformers, f"{name}{task}")(config)


def words(name: str, **options: Any) -> nn.Module:
    return hugging(name, vocab_size=32, max_position_embeddings=16, pad_token_id=0, **options)


class Pooled(nn.Module):
    """The mean over tokens of what an encoder gives, and a dense layer."""

    def __init__(self, encoder: nn.Module, size: int = 16) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(size, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head((states * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True))


def t5() -> nn.Module:
    sizes: dict[str, Any] = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    import transformers

    return Pooled(transformers.T5EncoderModel(transformers.T5Config(**sizes, dropout_rate=0.2)))


SPEECH: dict[str, Any] = {
    **ROUND,
    "conv_dim": (8, 8),
    "conv_kernel": (5, 3),
    "conv_stride": (3, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 8,
    "hidden_dropout": 0.2,
}
PATCH_TST: dict[str, Any] = {
    "num_input_channels": 4,
    "context_length": 12,
    "patch_length": 4,
    "patch_stride": 4,
    "d_model": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "ffn_dim": 8,
    "num_targets": 3,
    "head_dropout": 0.2,
    "use_cls_token": False,
}
STAGES: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
SEGFORMER: dict[str, Any] = {
    **STAGES,
    "num_encoder_blocks": 2,
    "num_attention_heads": [1, 2],
    "patch_sizes": [3, 3],
    "strides": [4, 2],
    "sr_ratios": [2, 1],
    "mlp_ratios": [2, 2],
    "decoder_hidden_size": 8,
    "hidden_dropout_prob": 0.2,
}


# by hand


class Recurrent(nn.Module):
    """The last state of a recurrent network over a series, (example, time, channel)."""

    def __init__(self, kind: type[nn.RNNBase], sees: int = 4, *, embeds: bool = False, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, sees) if embeds else nn.Identity()
        self.rnn = kind(sees, 6, 2, dropout=0.3, **options)
        self.head = nn.Linear(12 if self.rnn.bidirectional else 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        series = self.embedding(x)
        if self.rnn.batch_first:
            return self.head(self.rnn(series)[0][:, -1])
        return self.head(self.rnn(series.transpose(0, 1))[0][-1])


def cnn_1d() -> nn.Module:
    layers = [nn.Conv1d(2, 6, 5), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.Dropout1d(0.3)]
    return nn.Sequential(*layers, nn.Conv1d(6, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3))


class TCN(nn.Module):
    """Causal, dilated and weight-normalised convolutions with a skip each."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Conv1d(2, 6, 1)
        self.blocks = nn.ModuleList(weight_norm(nn.Conv1d(6, 6, 3, dilation=2**i)) for i in range(2))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for depth, block in enumerate(self.blocks):
            x = x + self.drop(F.relu(block(F.pad(x, (2 * 2**depth, 0)))))
        return self.head(x[..., -1])


class UNet(nn.Module):
    """Down, up by a transposed convolution, and a skip across."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.3))
        self.up, self.head = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        across = self.down(x)
        return self.head(torch.cat([across, self.up(self.deep(across))], 1))


class FTTransformer(nn.Module):
    """A token per feature, numbers and categories, behind one of its own; as in arXiv 2106.11959."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(7, 8)), nn.Parameter(torch.randn(7, 8))
        self.categories, self.cls = nn.Embedding(5, 8), nn.Parameter(torch.randn(8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        tokens = [numbers[..., None] * self.weight + self.bias, self.categories(categories)]
        cls = self.cls.expand(len(numbers), 1, -1)
        return self.head(self.layer(torch.cat([cls, *tokens], 1))[:, 0].relu())


class TableNet(nn.Module):
    """Embeddings of categories beside numbers, as a mapping gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(5, 3) for _ in range(2))
        self.dense = nn.Sequential(nn.Linear(13, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))

    def forward(self, *, numbers: Tensor, categories: Tensor) -> dict[str, Tensor]:
        parts = [embed(categories[:, i]) for i, embed in enumerate(self.embeddings)]
        return {"logits": self.dense(torch.cat([numbers, *parts], 1)), "sizes": numbers.norm(dim=1)}


class ImageAndTable(nn.Module):
    """A picture and a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(23, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.head(self.drop(torch.cat([self.eye(image), table.tanh()], 1)))


class Dictionary(nn.Module):
    """Answers a mapping with more in it than logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.aux = nn.Linear(7, 8), nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = F.dropout(F.gelu(self.body(x)), 0.3, self.training)
        return {"scores": self.head(features), "aux": self.aux(features), "name": "a dictionary"}


class MeanVariance(nn.Module):
    """A mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Dropout(0.3))
        self.mean, self.log_variance = nn.Linear(12, 2), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.mean(features), self.log_variance(features).exp()


def dense(
    num_outputs: int, *behind: nn.Module, activation: Builder = nn.ReLU, drop: Builder | None = None
) -> nn.Module:
    off = nn.Dropout(0.3) if drop is None else drop()
    return nn.Sequential(nn.Linear(7, 12), activation(), off, nn.Linear(12, num_outputs), *behind)


class Graph(nn.Module):
    """Two graph convolutions with an adjacency of each example's own; the mean over nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        hidden = F.dropout(F.relu(adjacency @ self.first(nodes)), 0.3, self.training)
        return self.head(F.relu(torch.bmm(adjacency, self.second(hidden))).mean(1))


class Siamese(nn.Module):
    """One encoder for two pictures; its layers are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        )
        self.head = nn.Linear(16, 2)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return self.head((self.encoder(one) - self.encoder(other)).abs())


class Causal(nn.Module):
    """Looks at the past alone; the mean over time of what comes out. Time first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(32, 8), nn.Parameter(torch.randn(16, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
        states = self.encoder(self.embedding(ids).transpose(0, 1) + self.positions[:length], mask=mask)
        return self.head(states.mean(0))


class Affine(nn.Module):
    """Buffers and constants around a small CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize([0.4, 0.5, 0.6], [0.2, 0.3, 0.25])
        self.register_buffer("shift", torch.randn(4, 1, 1))
        self.conv, self.drop, self.head = nn.Conv2d(3, 4, 3, 2), nn.Dropout2d(0.3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(self.normalize(x)) - self.shift) + 0.1
        return 2 - self.head(F.adaptive_avg_pool2d(self.drop(x), 2).flatten(1)) / 3


class Shared(nn.Module):
    """One dense layer used at three depths, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop, self.head = nn.Linear(7, 7), nn.LayerNorm(7), nn.Dropout(0.3), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + self.drop(F.relu(self.layer(self.norm(x))))
        return self.head(x)


class InPlace(nn.Module):
    """Works in place wherever it may, on its input too."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3, inplace=True)
        self.first, self.relu, self.last = nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5).sub_(0.1)
        hidden = self.relu(self.first(self.drop(x)))
        return self.last(F.relu_(F.adaptive_avg_pool2d(hidden, 2).flatten(1).sub_(0.1)).mul(2).add_(0.1))


def normed(norm: Builder) -> nn.Module:
    first = [nn.Conv2d(3, 4, 3, 2), norm(), nn.SiLU(), nn.Dropout(0.3), nn.Conv2d(4, 4, 3, 2), nn.ReLU6()]
    return nn.Sequential(*first, nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))


class Mixer(nn.Module):
    """Dense layers over patches, then over channels: axes move back and forth."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.over_patches, self.over_channels = nn.Linear(16, 16), nn.Linear(8, 8)
        self.norm, self.drop, self.head = nn.LayerNorm(8), nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).permute(2, 0, 1)  # (patch, example, channel)
        x = x + self.drop(F.gelu(self.over_patches(self.norm(x).permute(1, 2, 0)))).permute(2, 0, 1)
        return self.head((x + self.drop(F.gelu(self.over_channels(self.norm(x))))).mean(0))


def tokens(**more: Tensor) -> dict[str, Tensor]:
    return {"input_ids": IDS, "attention_mask": MASK, **more}


CATEGORIES = IDS[:, :2] % 5
NODES, ADJACENCY = randn(3, 5, 4), randn(3, 5, 5, seed=1).softmax(-1)
PLACES: dict[str, Any] = {"output": ("out", "segmentation")}
OWN: dict[str, Case] = {
    "own LSTM": Case(partial(Recurrent, nn.LSTM, batch_first=True), SERIES, layer="head", lime=STEPS),
    "own GRU, both directions, time first": Case(
        partial(Recurrent, nn.GRU, bidirectional=True), SERIES, layer="head", lime=STEPS
    ),
    "own RNN of tokens": Case(
        partial(Recurrent, nn.RNN, embeds=True, nonlinearity="relu", batch_first=True), IDS, layer="head"
    ),
    "own 1-D CNN": Case(cnn_1d, SIGNALS, lime=BINS),
    "own TCN": Case(TCN, SIGNALS, lime=BINS),
    "own U-Net": Case(partial(UNet, 3), IMAGES[:, :, ::4, ::4], "segmentation"),
    "own U-Net, yes or no": Case(partial(UNet, 1), IMAGES[:, :, ::4, ::4], "segmentation"),
    "own FT-transformer": Case(FTTransformer, (TABLE, CATEGORIES), layer="head"),
    "own table with embeddings": Case(
        TableNet, {"numbers": TABLE, "categories": CATEGORIES}, "logits", layer="dense.4"
    ),
    "own image and table": Case(ImageAndTable, (IMAGES, TABLE)),
    "own dictionary": Case(Dictionary, TABLE, "scores", layer="head"),
    "own mean and variance": Case(MeanVariance, TABLE, "mean_variance", layer="mean", targets=randn(3, 2)),
    "own multilabel": Case(partial(dense, 4), TABLE, "multilabel", targets=4),
    "own binary": Case(partial(dense, 1), TABLE, "binary", targets=2),
    "own regression of one number": Case(partial(dense, 1, nn.Flatten(0)), TABLE, targets=randn(3)),
    "own regression of three numbers": Case(partial(dense, 3), TABLE, "regression", targets=randn(3, 3)),
    "own probabilities": Case(partial(dense, 3, nn.Softmax(1)), TABLE, "probabilities"),
    "own graph": Case(Graph, (NODES, ADJACENCY), lime={"segments": torch.arange(5)[None, :, None], "fill": 0.0}),
    "own siamese": Case(Siamese, (IMAGES, IMAGES.flip(0)), targets=2),
    "own causal transformer": Case(Causal, IDS, layer="head"),
    "own affine constants": Case(Affine, IMAGES),
    "own shared layer": Case(Shared, TABLE, layer="head"),
    "own in-place": Case(InPlace, IMAGES),
    "own GroupNorm": Case(partial(normed, partial(nn.GroupNorm, 2, 4)), IMAGES),
    "own InstanceNorm": Case(partial(normed, partial(nn.InstanceNorm2d, 4, affine=True)), IMAGES),
    "own LayerNorm": Case(partial(normed, partial(nn.LayerNorm, (4, 15, 15))), IMAGES),
    "own mixer": Case(Mixer, IMAGES, layer="head"),
    "own SELU": Case(partial(dense, 3, activation=nn.SELU, drop=partial(nn.AlphaDropout, 0.3)), TABLE),
}
TORCHVISION: dict[str, Case] = {
    "torchvision resnet": Case(partial(resnet, BasicBlock, 128), IMAGES),
    "torchvision resnext": Case(partial(resnet, Bottleneck, 512, groups=2, width_per_group=2), IMAGES),
    "torchvision vgg": Case(small_vgg, IMAGES),
    "torchvision densenet": Case(
        partial(DenseNet, growth_rate=4, block_config=(2, 1), num_init_features=8, drop_rate=0.2, num_classes=3), IMAGES
    ),
    "torchvision mobilenet v2": Case(
        partial(MobileNetV2, num_classes=3, width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [4, 32, 2, 2]]),
        IMAGES,
    ),
    "torchvision mobilenet v3": Case(mobilenet_v3, IMAGES),
    "torchvision efficientnet": Case(partial(efficientnet, MBConvConfig), IMAGES),
    "torchvision efficientnet v2": Case(partial(efficientnet, FusedMBConvConfig), IMAGES),
    "torchvision convnext": Case(convnext, IMAGES),
    "torchvision regnet": Case(regnet, IMAGES),
    "torchvision shufflenet": Case(partial(ShuffleNetV2, [2, 1, 1], [8, 8, 16, 16, 16], num_classes=3), IMAGES),
    "torchvision squeezenet": Case(squeezenet, IMAGES),
    "torchvision googlenet with auxiliary heads": Case(googlenet, IMAGES),
    "torchvision mnasnet": Case(mnasnet, IMAGES),
    "torchvision swin": Case(swin, IMAGES),
    "torchvision swin v2": Case(swin_v2, IMAGES),
    "torchvision vit": Case(vit, IMAGES),
    "torchvision maxvit": Case(maxvit, IMAGES),
    "torchvision fcn": Case(fcn, IMAGES[:, :, ::2, ::2], **PLACES, layer="classifier.4"),
    "torchvision deeplab": Case(deeplab, IMAGES[:, :, ::2, ::2], **PLACES),
    "torchvision lraspp": Case(lraspp, IMAGES[:, :, ::2, ::2], **PLACES, layer="classifier.high_classifier"),
    "torchvision r3d": Case(
        r3d, randn(3, 3, 4, 16, 16), lime={"segments": torch.arange(4)[None, None, :, None, None], "fill": 0.0}
    ),
}
TIMM: dict[str, Case] = {
    "timm vit": Case(partial(timm, "test_vit", img_size=32, drop_path_rate=0.3), IMAGES, layer="head"),
    "timm resnet": Case(partial(timm, "test_resnet", drop_path_rate=0.3), IMAGES),
    "timm convnext": Case(partial(timm, "test_convnext", drop_path_rate=0.3), IMAGES),
    "timm efficientnet": Case(partial(timm, "test_efficientnet", drop_path_rate=0.3), IMAGES),
    "timm nfnet": Case(partial(timm, "test_nfnet"), IMAGES),
    "timm mambaout": Case(partial(timm, "test_mambaout"), IMAGES),
}
HEADS: dict[str, Any] = {"output": "logits", "layer": "classifier"}
HUGGING: dict[str, Case] = {
    "transformers bert": Case(partial(words, "Bert", **ROUND), tokens(token_type_ids=MASK * 0), **HEADS),
    "transformers distilbert": Case(
        partial(words, "DistilBert", dim=16, n_layers=2, n_heads=2, hidden_dim=16), tokens(), **HEADS
    ),
    "transformers roberta": Case(
        partial(words, "Roberta", **ROUND), tokens(), output="logits", layer="classifier.out_proj"
    ),
    "transformers albert": Case(
        partial(words, "Albert", **ROUND, embedding_size=8, hidden_dropout_prob=0.2), tokens(), **HEADS
    ),
    "transformers electra": Case(
        partial(words, "Electra", **ROUND, embedding_size=8), tokens(), output="logits", layer="classifier.out_proj"
    ),
    "transformers mpnet": Case(
        partial(words, "MPNet", **ROUND), tokens(), output="logits", layer="classifier.out_proj"
    ),
    "transformers deberta v2": Case(
        partial(words, "DebertaV2", **ROUND, relative_attention=True, pos_att_type=["c2p", "p2c"]), tokens(), **HEADS
    ),
    "transformers gpt2": Case(
        partial(
            hugging, "GPT2", vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, **NO_ENDS
        ),
        tokens(),
        output="logits",
        layer="score",
    ),
    "transformers t5 encoder": Case(t5, tokens(), layer="head"),
    "transformers vit": Case(partial(hugging, "ViT", "ForImageClassification", **ROUND, **PATCHES), IMAGES, **HEADS),
    "transformers deit": Case(
        partial(hugging, "DeiT", "ForImageClassification", **ROUND, **PATCHES, hidden_dropout_prob=0.2), IMAGES, **HEADS
    ),
    "transformers swin": Case(
        partial(
            *(hugging, "Swin", "ForImageClassification"),
            **{"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2]},
            window_size=4,
            hidden_dropout_prob=0.2,
        ),
        IMAGES,
        **HEADS,
    ),
    "transformers convnext": Case(
        partial(hugging, "ConvNext", "ForImageClassification", **STAGES, num_stages=2, drop_path_rate=0.3),
        IMAGES,
        **HEADS,
    ),
    "transformers resnet": Case(
        partial(hugging, "ResNet", "ForImageClassification", **STAGES, embedding_size=8),
        IMAGES,
        output="logits",
        layer="classifier.1",
    ),
    "transformers segformer": Case(
        partial(hugging, "Segformer", "ForImageClassification", **SEGFORMER), IMAGES, **HEADS
    ),
    "transformers segformer of pixels": Case(
        partial(hugging, "Segformer", "ForSemanticSegmentation", **SEGFORMER),
        IMAGES,
        ("logits", "segmentation"),
        layer="decode_head.classifier",
    ),
    "transformers wav2vec2": Case(
        partial(hugging, "Wav2Vec2", **SPEECH), randn(3, 60), **HEADS, lime={"segments": torch.arange(60) // 12}
    ),
    "transformers hubert": Case(
        partial(hugging, "Hubert", **SPEECH), randn(3, 60), **HEADS, lime={"segments": torch.arange(60) // 12}
    ),
    "transformers patchtst": Case(
        partial(hugging, "PatchTST", "ForClassification", **PATCH_TST),
        SERIES,
        "prediction_logits",
        layer="head.linear",
        lime=STEPS,
    ),
}
CASES: dict[str, Case] = {**OWN, **TORCHVISION, **TIMM, **HUGGING}


@contextmanager
def nothing_random() -> Iterator[None]:
    """Assert that torch's global generator stays where it is."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before), "the global generator moved"
