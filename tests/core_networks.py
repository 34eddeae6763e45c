"""Small seeded networks of every kind that a user may bring, and other helpers of the tests of the core."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xuqlib import Draws, Examples
from xuqlib.explainers.fullgrad import LogitGraph
from xuqlib.explainers.layer_maps import ChainGraph
from xuqlib.fast.engine import Engine
from xuqlib.posteriors.fixing import FixedNetwork
from xuqlib.study.training.networks import mini_vgg

# A sum of a few thousand float64 terms, in another order: 1e-13 at most; the promise is 1e-10.
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def seeded(build: Callable[[], nn.Module], *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a network with known weights and batch statistics, leaving the global generator as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build().to(dtype)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
    return network


class FunctionalRelu(nn.Module):
    """ReLUs as functions, no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x)))


class FunctionalDropout(FunctionalRelu):
    """Dropout as a function, as tutorials write it, and off in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(F.relu(self.first(x)), 0.4, training=self.training))


class CarelessDropout(FunctionalRelu):
    """Functional dropout that eval mode does not switch off."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.dropout(F.relu(self.first(x)), 0.4))


class NoiseInside(FunctionalRelu):
    """Adds noise of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x) + torch.randn_like(self.first(x))))


class TwiceDropout(FunctionalRelu):
    """One dropout module that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(F.relu(self.first(self.drop(x)))))


class Recurrent(nn.Module):
    """An LSTM over the pixels of a row of features, with torch's own dropout between its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 4, num_layers=2, dropout=0.3, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, :, None])[0][:, -1])


class Attention(nn.Module):
    """Self-attention over features; `dropout` is the one inside it."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, dropout=dropout, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x[:, :, None].expand(-1, -1, 4)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class SequenceFirst(nn.Module):
    """Drops from a tensor whose first axis is not the batch: (feature, example, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(x.T[:, :, None].expand(-1, -1, 4)).mean(0))


class OneOutput(nn.Module):
    """A regression network that answers (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.drop = nn.Linear(5, 1), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self.drop(x)).squeeze(1)


class EncoderLayer(nn.Module):
    """torch's transformer layer, which reads the weights of the dense layers in it without calling them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x[:, :, None].expand(-1, -1, 4)).mean(1))


def table_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def inplace_cnn() -> nn.Module:
    """In-place dropout first, then in-place ReLUs."""
    return nn.Sequential(
        *(nn.Dropout(0.2, inplace=True), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5)),
        nn.Linear(16, 3),
    )


def late_cnn() -> nn.Module:
    """Random at its end alone, so that its draws share a trunk; the first layer works in place."""
    return nn.Sequential(
        *(nn.ReLU(inplace=True), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6 * 64, 3)),
    )


def channel_dropout(kind: type[nn.Module]) -> nn.Module:
    if kind is nn.Dropout2d:
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Dropout2d(0.4), nn.Flatten(), nn.Linear(216, 3))
    return nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 6, 2), nn.Dropout1d(0.4), nn.Flatten(), nn.Linear(24, 3))


def torchvision_resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=3)


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    vit = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=8, dropout=0.3, num_classes=3
    )
    nn.init.normal_(vit.heads.head.weight)  # torchvision starts it at 0
    return vit


TABLE, PICTURES = (4, 5), (3, 3, 8, 8)
WITH_DROPOUT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (table_mlp, TABLE),
    "in-place cnn": (inplace_cnn, PICTURES),
    "late cnn": (late_cnn, PICTURES),
    "functional dropout": (FunctionalDropout, TABLE),
    "functional dropout that eval leaves on": (CarelessDropout, TABLE),
    "a module called twice": (TwiceDropout, TABLE),
    "Dropout1d": (lambda: channel_dropout(nn.Dropout1d), TABLE),
    "Dropout2d": (lambda: channel_dropout(nn.Dropout2d), PICTURES),
    "vision transformer": (torchvision_vit, PICTURES),
    "one output": (OneOutput, TABLE),
    "features before examples": (SequenceFirst, TABLE),
    "attention": (lambda: Attention(0.3), TABLE),
    "an LSTM of two layers": (Recurrent, TABLE),
    "alpha": (lambda: nn.Sequential(nn.Linear(5, 8), nn.SELU(), nn.AlphaDropout(0.3), nn.Linear(8, 3)), TABLE),
}
WITHOUT_DROPOUT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (torchvision_resnet, PICTURES),
    "functional relu": (FunctionalRelu, TABLE),
    "attention": (lambda: Attention(0.0), TABLE),
    "transformer layer": (EncoderLayer, TABLE),
    "one linear layer": (lambda: nn.Linear(5, 3), TABLE),
}


def loop(draws: Draws, x: Tensor) -> Tensor:
    """The slow oracle of `draws(x)`: every draw by itself, (draw, example, class)."""
    outputs = [draws[i](x) for i in range(len(draws))]
    return torch.stack([output if output.ndim == 2 else output[:, None] for output in outputs])


@contextmanager
def assert_fast(wanted: bool = True) -> Iterator[None]:
    """Every engine and graph of logits that is built inside takes the fast path; or none does, if not `wanted`.

    Without this, a test that compares with the plain loop over draws may compare that loop with itself.
    """
    built: list[bool] = []

    def noting(init: Callable[..., None]) -> Callable[..., None]:
        def noted(self: Any, *args: Any, **options: Any) -> None:
            init(self, *args, **options)
            built.append(self.is_fast)

        return noted

    kinds: list[Any] = [Engine, ChainGraph, LogitGraph]
    before = [kind.__init__ for kind in kinds]
    for kind, init in zip(kinds, before, strict=True):
        kind.__init__ = noting(init)
    try:
        yield
    finally:
        for kind, init in zip(kinds, before, strict=True):
            kind.__init__ = init
    assert built, "neither an engine nor a graph of logits was built"
    assert built == [wanted] * len(built), "the plain loop was taken" if wanted else "the fast path was taken"


def snapshot(network: nn.Module) -> dict[str, Any]:
    """Everything about a network that sampling and explaining must leave as it is."""
    return {
        "tensors": {key: value.clone() for key, value in network.state_dict().items()},
        "identities": [id(parameter) for parameter in network.parameters()],
        "modes": [module.training for module in network.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in network.modules()
        ],
        "wanting": [parameter.requires_grad for parameter in network.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in ("identities", "modes", "hooks", "wanting"):
        assert before[name] == after[name], name
    for key, value in before["tensors"].items():
        assert torch.equal(value, after["tensors"][key]), key
    for one, other in zip(before["grads"], after["grads"], strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def clones(build: Callable[[], nn.Module], count: int) -> list[nn.Module]:
    return [seeded(build, seed=seed) for seed in range(count)]


def tabular(num_examples: int = 64, *, classes: int | None = 3, seed: int = 0, split: str = "train") -> Examples:
    """A linear problem on 5 features: `classes` classes, or a regression if None."""
    x = randn(num_examples, 5, seed=seed, dtype=torch.float32)
    score = x @ randn(5, classes or 1, seed=99, dtype=torch.float32)
    y = score if classes is None else score.argmax(1)
    names = None if classes is None else tuple(f"class {c}" for c in range(classes))
    return Examples(name="linear", split=split, x=x, y=y, index=torch.arange(num_examples), class_names=names)


def same_networks(one: nn.Module, other: nn.Module) -> bool:
    tensors = copy.copy(other.state_dict())
    return all(torch.equal(value, tensors[key]) for key, value in one.state_dict().items())


def two_networks():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return [FixedNetwork(mini_vgg(image_size=8, widths=(4, 4, 4), hidden=8, num_classes=3)) for _ in range(2)]


def grey_cnn():
    """Convolutions with every geometry, two of them from one channel; one BatchNorm without weights."""
    first = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3)
    middle = nn.Conv2d(4, 1, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(1, affine=False), nn.ReLU()
    last = nn.Conv2d(1, 4, (3, 2)), nn.MaxPool2d(2, ceil_mode=True), nn.ReLU(), nn.Conv2d(4, 6, 1, groups=2)
    return nn.Sequential(*first, *middle, nn.Sequential(*last), nn.Flatten(), nn.Dropout(0.4), nn.Linear(24, 3))
