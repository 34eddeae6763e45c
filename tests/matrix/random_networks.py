"""Networks drawn at random: layers of every spelling, dropout anywhere, odd axes, skips, reuse, in-place, constants."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torchvision.ops import StochasticDepth

AXES = {"table": 2, "series": 3, "signal": 3, "image": 4}


class Does(nn.Module):
    """A function as a layer."""

    def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name, self.function = name, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


class CallsDropout(nn.Module):
    """Functional dropout, as it is written in a forward."""

    def __init__(self, kind: str, p: float) -> None:
        super().__init__()
        self.kind, self.p = kind, p

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "torch":
            return torch.dropout(x, self.p, self.training)
        if self.kind == "alpha":
            return F.alpha_dropout(x, self.p, self.training)
        if self.kind == "feature":
            return F.feature_alpha_dropout(x, self.p, self.training)
        return F.dropout(x, self.p, training=self.training)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.p}"


class WeightDropout(nn.Module):
    """Drops from its own weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size) / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, 0.3, self.training))


class Attends(nn.Module):
    """Attention over the middle axis of (example, place, feature), by module or by function."""

    def __init__(self, size: int, kind: str) -> None:
        super().__init__()
        self.kind, self.dropout_p = kind, 0.3
        self.attention = nn.MultiheadAttention(size, 2, dropout=0.3, batch_first=kind == "module")
        self.qkv = nn.Linear(size, 3 * size)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            return self.attention(x, x, x)[0]
        if self.kind == "time first":
            y = x.transpose(0, 1)
            return self.attention(y, y, y, need_weights=False)[0].transpose(0, 1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        rate = self.dropout_p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate).transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        return self.kind


class Recurs(nn.Module):
    """A recurrent layer over the middle axis."""

    def __init__(self, kind: type[nn.RNNBase], size: int, batch_first: bool) -> None:
        super().__init__()
        self.rnn = kind(size, size, 2, dropout=0.3, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        if self.rnn.batch_first:
            return self.rnn(x)[0]
        return self.rnn(x.transpose(0, 1))[0].transpose(0, 1)


class Moved(nn.Module):
    """What is inside sees the axes in another order, the examples not first; its answer is moved back."""

    def __init__(self, inner: nn.Module, order: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.order = inner, order

    def forward(self, x: Tensor) -> Tensor:
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return self.inner(x.permute(self.order)).permute(back)

    def extra_repr(self) -> str:
        return str(self.order)


class Rows(nn.Module):
    """What is inside sees the examples and the next axis as one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        # A copy: whether flatten gives a view, into which may be written, depends on the number of examples.
        return self.inner(x.flatten(0, 1).clone()).unflatten(0, x.shape[:2])


class Skip(nn.Module):
    """What is inside, added to, or beside, or times what it was given."""

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner(x.clone() if self.how == "clone" else x)
        if self.how == "mean":
            return torch.stack([x, inner]).mean(0)
        return x * inner.sigmoid() if self.how == "gate" else x + inner

    def extra_repr(self) -> str:
        return self.how


class Twice(nn.Module):
    """The same layers, twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


class Shifted(nn.Module):
    """Constants of all kinds."""

    def __init__(self, kind: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("shift", torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "buffer":
            return x - self.shift
        if self.kind == "scaled":
            return (x - 0.3) / 0.7
        if self.kind == "reversed":
            return 1 - 0.5 * x
        if self.kind == "in place":
            return x.mul(1.2).add_(0.1).sub_(self.shift)
        return torch.where(torch.ones_like(x, dtype=torch.bool), x + self.shift, 7.0)

    def extra_repr(self) -> str:
        return self.kind


class PathDropped(nn.Module):
    """A path that is dropped whole, by numbers of torch's own while it trains."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind, self.drop_prob = inner, kind, 0.4
        self.depth = StochasticDepth(0.4, "row" if kind == "row" else "batch")

    def forward(self, x: Tensor) -> Tensor:
        path = self.inner(x)
        if self.kind != "by hand":
            return x + self.depth(path)
        if not self.training:
            return x + path
        keep = 1 - self.drop_prob
        mask = path.new_empty([len(path), *[1] * (path.dim() - 1)]).bernoulli_(keep)
        return x + path * mask / keep

    def extra_repr(self) -> str:
        return self.kind


RELUS: dict[str, Callable[[], nn.Module]] = {
    "nn.ReLU": nn.ReLU,
    "nn.ReLU6": nn.ReLU6,
    "nn.Hardtanh": lambda: nn.Hardtanh(0, 6),
    "nn.Threshold": lambda: nn.Threshold(0, 0),
    "F.relu": lambda: Does("F.relu", F.relu),
    "torch.relu": lambda: Does("torch.relu", torch.relu),
    "method": lambda: Does("method", lambda x: x.relu()),
    "clamp": lambda: Does("clamp", lambda x: x.clamp(min=0)),
    "clamp_min": lambda: Does("clamp_min", lambda x: torch.clamp_min(x, 0.0)),
    "clamp tensor": lambda: Does("clamp tensor", lambda x: x.clamp(min=torch.zeros(()))),
    "maximum": lambda: Does("maximum", lambda x: torch.maximum(x, torch.zeros_like(x))),
    "leaky 0": lambda: nn.LeakyReLU(0.0),
    "threshold": lambda: Does("threshold", lambda x: F.threshold(x, 0.0, 0.0)),
    "aten": lambda: Does("aten", torch.ops.aten.relu),
}
IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "nn.ReLU in place": lambda: nn.ReLU(inplace=True),
    "relu_": lambda: Does("relu_", lambda x: x.relu_()),
    "F.relu_": lambda: Does("F.relu_", F.relu_),
    "clamp_": lambda: Does("clamp_", lambda x: x.clamp_(min=0)),
    "leaky in place": lambda: nn.LeakyReLU(0.1, inplace=True),
    "ELU in place": lambda: nn.ELU(inplace=True),
}
SMOOTH: dict[str, Callable[[], nn.Module]] = {
    "GELU": nn.GELU,
    "SiLU": nn.SiLU,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
    "ELU": nn.ELU,
    "Mish": nn.Mish,
    "PReLU": nn.PReLU,
    "LeakyReLU": nn.LeakyReLU,
    "Hardswish": nn.Hardswish,
    "sin": lambda: Does("sin", torch.sin),
    "softsign": nn.Softsign,
    "abs": lambda: Does("abs", torch.abs),
}


DROPPING = (nn.modules.dropout._DropoutNd, CallsDropout, WeightDropout, Attends, Recurs, PathDropped)


class Maker:
    """Draws layers; says in `notes` what of them a draw, or a trial, may have to refuse."""

    def __init__(self, seed: int) -> None:
        self.random, self.notes = Random(seed), set[str]()

    def pick(self, options: Any) -> Any:
        return self.random.choice(list(options))

    def chance(self, p: float) -> bool:
        return self.random.random() < p

    def activation(self, *, in_place: bool = False) -> nn.Module:
        kinds = {**RELUS, **(IN_PLACE if in_place else {})} if self.chance(0.7) else SMOOTH
        return self.pick(kinds.values())()

    def dropout(self, kind: str) -> nn.Module:
        p = self.pick([0.2, 0.4, 0.6])
        if self.chance(0.5):
            return nn.Dropout(p, inplace=self.chance(0.2))
        own = {
            "table": [lambda: nn.AlphaDropout(p)],
            "series": [lambda: nn.Dropout1d(p), lambda: nn.FeatureAlphaDropout(p)],
            "signal": [lambda: nn.Dropout1d(p), lambda: nn.FeatureAlphaDropout(p)],
            "image": [lambda: nn.Dropout2d(p), lambda: nn.FeatureAlphaDropout(p)],
        }[kind]
        calls = [lambda: CallsDropout(self.pick(["plain", "torch", "alpha", "feature"]), p)]
        if self.chance(0.05):
            self.notes.add("drops in eval mode")
            return Does("dropout that eval mode leaves on", lambda x: F.dropout(x, p))
        return self.pick([*own, *calls, *calls])()

    def norm(self, kind: str, shape: tuple[int, ...]) -> nn.Module:
        width = shape[-1] if kind in ("table", "series") else shape[0]
        layers: list[Callable[[], nn.Module]] = []
        if kind in ("table", "series"):
            layers += [lambda: nn.LayerNorm(width), lambda: nn.RMSNorm(width)]
        if kind == "table":
            layers += [lambda: nn.BatchNorm1d(width)]
        if kind == "signal":
            layers += [lambda: nn.BatchNorm1d(width), lambda: nn.GroupNorm(2, width), lambda: nn.InstanceNorm1d(width)]
        if kind == "image":
            layers += [lambda: nn.BatchNorm2d(width)] * 2
            layers += [lambda: nn.GroupNorm(2, width), lambda: nn.InstanceNorm2d(width, affine=True)]
            layers += [lambda: nn.LocalResponseNorm(2), lambda: nn.LayerNorm(shape[1:])]
        return self.pick(layers)()

    def like(self, kind: str, width: int) -> tuple[int, ...]:
        return {"table": (1, width), "series": (1, 1, width), "signal": (1, width, 1), "image": (1, width, 1, 1)}[kind]

    def same(self, kind: str, shape: tuple[int, ...], depth: int = 2) -> nn.Module:
        """Layers that keep the shape."""
        width = shape[-1] if kind in ("table", "series") else shape[0]
        ndim = len(shape) + 1
        choices: list[Callable[[], nn.Module]] = [
            lambda: self.block(kind, shape),
            lambda: self.block(kind, shape),
            self.activation,
            lambda: self.dropout(kind),
            lambda: self.norm(kind, shape),
            lambda: Shifted(self.pick(["buffer", "scaled", "reversed", "in place", "where"]), self.like(kind, width)),
        ]
        if kind == "table":
            choices += [lambda: WeightDropout(width)]
            choices += [lambda: Does("softmax", lambda x: x.softmax(-1))]
        if kind == "series":
            choices += [lambda: Attends(width, self.pick(["module", "time first", "function"]))]
            recurrent = self.pick([nn.LSTM, nn.GRU, nn.RNN])
            choices += [lambda: Recurs(recurrent, width, self.chance(0.5))]
            choices += [
                lambda: nn.TransformerEncoderLayer(width, 2, 8, 0.3, self.pick(["relu", "gelu"]), batch_first=True),
                lambda: Moved(nn.TransformerEncoderLayer(width, 2, 8, 0.3, norm_first=True), (1, 0, 2)),
            ]
        if depth:
            inner = lambda: self.same(kind, shape, depth - 1)  # noqa: E731
            choices += [
                lambda: Skip(inner(), self.pick(["add", "clone", "mean", "gate"])),
                lambda: Skip(inner(), "add"),
                lambda: Twice(inner()),
                lambda: nn.Sequential(inner(), inner()),
                lambda: PathDropped(inner(), self.pick(["row", "batch", "by hand"])),
            ]
        if kind == "table" and depth:  # whatever keeps the last axis may see any order of the others
            choices += [lambda: Does("flip", lambda x: x.flip(-1))]
        if kind == "series":
            dense = lambda: nn.Sequential(nn.Linear(width, width), nn.Dropout(0.3))  # noqa: E731
            within = self.pick([lambda: self.dropout("table"), dense])
            choices += [lambda: Moved(within(), (1, 0, 2)), lambda: Rows(within())]
        if kind in ("image", "signal"):
            order = list(range(ndim))
            self.random.shuffle(order)
            choices += [lambda: Moved(nn.Sequential(nn.Dropout(0.3)), tuple(order))]
        return self.pick(choices)()

    def weighted(self, kind: str, width: int, out: int) -> nn.Module:
        if kind in ("table", "series"):
            layer: nn.Module = nn.Linear(width, out, bias=self.chance(0.8))
            return weight_norm(layer) if self.chance(0.1) else layer
        conv = nn.Conv1d if kind == "signal" else nn.Conv2d
        more: dict[str, Any] = {"padding": 1, "padding_mode": self.pick(["zeros", "zeros", "reflect", "circular"])}
        if self.chance(0.2):
            more = {"padding": "same", "dilation": 2}
        groups = 2 if width % 2 == out % 2 == 0 and self.chance(0.2) else 1
        return conv(width, out, 3, groups=groups, bias=self.chance(0.8), **more)

    def block(self, kind: str, shape: tuple[int, ...], out: int | None = None) -> nn.Module:
        """A layer with weights; perhaps a normalisation, an activation and a dropout behind it."""
        width = shape[-1] if kind in ("table", "series") else shape[0]
        out = width if out is None else out
        layers, new = (
            [self.weighted(kind, width, out)],
            ((*shape[:-1], out) if kind in ("table", "series") else (out, *shape[1:])),
        )
        if self.chance(0.4):
            layers.append(self.norm(kind, new))
        if self.chance(0.8):
            layers.append(self.activation(in_place=True))
        if self.chance(0.3):
            layers.append(self.dropout(kind))
        return nn.Sequential(*layers)

    def flat(self, kind: str, shape: tuple[int, ...]) -> tuple[list[nn.Module], int]:
        """Layers to (N, F), and F."""
        if kind == "table":
            return [], shape[0]
        if kind == "series":
            how = self.pick(["mean", "last", "flatten", "amax"])
            if how == "flatten":
                return [nn.Flatten()], shape[0] * shape[1]
            calls = {"mean": lambda x: x.mean(1), "last": lambda x: x[:, -1], "amax": lambda x: x.amax(1)}
            return [Does(how, calls[how])], shape[1]
        pools = {
            "signal": [nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d],
            "image": [nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d],
        }[kind]
        size = self.pick([1, 2])
        return [self.pick(pools)(size), nn.Flatten()], shape[0] * size ** (len(shape) - 1)

    def pool(self, kind: str) -> nn.Module:
        if kind == "signal":
            return self.pick([nn.MaxPool1d(2), nn.AvgPool1d(2), nn.MaxPool1d(3, 2, 1), nn.LPPool1d(2, 2)])
        overlapping = [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(3, 2, 1)]
        return self.pick([*overlapping, nn.Conv2d(4, 4, 3, 2, 1), nn.MaxPool2d(3, 2)])


class Answers(nn.Module):
    """A body and a dense head; takes more than one input, or answers in a mapping, if it says so."""

    def __init__(self, body: nn.Module, head: nn.Module, embedding: nn.Module | None, form: str, takes: str) -> None:
        super().__init__()
        self.embedding, self.body, self.head, self.form, self.takes = embedding, body, head, form, takes

    def forward(self, x: Tensor, other: Tensor | None = None) -> Any:
        # Not the embedding alone: a norm behind it would not see its length, and a slope along it would be 0.
        features = self.body(x if self.embedding is None else self.embedding(x) + torch.arange(4) / 4)
        if other is not None:
            features = features * (1 + other.mean(1, keepdim=True))
        logits = self.head(features)
        return {"logits": logits, "features": features} if self.form == "mapping" else logits


class Sample:
    """A network drawn at random, what it takes, and what may be refused.

    Attributes:
        network, given, output: as for `explain`.
        kind: of input.
        notes: what is special about it.
    """

    def __init__(self, seed: int) -> None:
        maker = Maker(seed)
        self.random, self.notes = maker.random, maker.notes
        self.kind = maker.pick(["table", "table", "series", "signal", "image", "image", "tokens"])
        kind = "series" if self.kind == "tokens" else self.kind
        shape = {"table": (6,), "series": (5, 4), "signal": (4, 10), "image": (4, 8, 8)}[kind]
        num_outputs, plain = maker.pick([1, 2, 3, 3, 3]), self.kind != "tokens" and maker.chance(0.4)
        generator = torch.Generator().manual_seed(seed)
        num_examples = maker.pick([1, 2, 3, 4])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = shape
            layers: list[nn.Module] = []
            if kind == "image" and maker.chance(0.6):
                first = (3, 8, 8)
                layers.append(maker.block(kind, first, 4))
            for _ in range(maker.pick([1, 1, 2, 3])):
                layers.append(maker.same(kind, shape))
            if kind in ("image", "signal") and maker.chance(0.5):
                layers.append(maker.pool(kind))
            flat, width = maker.flat(kind, self._after(layers, first))
            layers += flat
            if maker.chance(0.3):
                layers.append(maker.block("table", (width,), 6))
                width = 6
            if maker.chance(0.3) or not any(isinstance(part, DROPPING) for layer in layers for part in layer.modules()):
                layers.append(maker.dropout("table"))
            head = nn.Linear(width, num_outputs)
            self.form = maker.pick(["tensor", "tensor", "mapping"]) if not plain else "tensor"
            takes = maker.pick(["one", "one", "two"]) if not plain else "one"
            embedding = nn.Embedding(12, 4) if self.kind == "tokens" else None
            self.network: nn.Module = (
                nn.Sequential(*layers, head)
                if plain
                else Answers(nn.Sequential(*layers), head, embedding, self.form, takes)
            )
            self.head = str(len(layers)) if plain else "head"
            self._settle()
        x: Tensor = torch.randn(num_examples, *first, generator=generator, dtype=torch.float64)
        if self.kind == "tokens":
            # No token twice: without positions they would tie in a maximum, which rounding then decides.
            x = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in range(num_examples)])
        other = torch.randn(num_examples, 3, generator=generator, dtype=torch.float64)
        self.given: Any = (x, other) if takes == "two" else x
        self.is_mapping_in = takes == "two" and maker.chance(0.5)
        if self.is_mapping_in:
            self.given = {"x": x, "other": other}
        self.output: Any = ("logits", "logits" if num_outputs > 1 else "regression") if self.form == "mapping" else None
        if self.form == "tensor":
            self.output = "logits" if num_outputs > 1 else "regression"
        self.num_outputs = num_outputs

    @staticmethod
    def _after(layers: list[nn.Module], shape: tuple[int, ...]) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(nn.Sequential(*layers).eval()(torch.randn(2, *shape)).shape[1:])

    def _settle(self) -> None:
        self.network.double().eval()
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
