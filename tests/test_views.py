"""Any input, any output: what is explained equals what a loop written for that network by hand gives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_networks import randn, seeded
from torch import Tensor, nn

from xuqlib import (
    DeepEnsemble,
    Draws,
    MCDropout,
    attribute_uncertainty,
    deletion,
    explain,
    insertion,
    lime,
    ua_backprop,
    ua_replacement,
    uncertainties,
)
from xuqlib.inputs import Inputs
from xuqlib.metrics import pixel_order
from xuqlib.outputs import Output
from xuqlib.superpixels import windows
from xuqlib.uncertainty import logits_of

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 9]])


class Words(nn.Module):
    """Token ids, and a mask beside them, to a dict of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(10, 6), nn.Embedding(5, 6)
        self.drop, self.out = nn.Dropout(0.3), nn.Linear(6, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        h = self.words(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        h = torch.tanh(self.drop(h))
        if attention_mask is not None:
            h = h * attention_mask[..., None]
        return {"logits": self.out(h.mean(1)), "hidden": h}


class Two(nn.Module):
    """An image and a row of a table, by name or by position."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read, self.drop = nn.Linear(12, 6), nn.Linear(4, 6), nn.Dropout(0.4)
        self.out = nn.Linear(6, 2)

    def forward(self, image: Tensor, row: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.out(self.drop(torch.relu(self.see(image.flatten(1)) * self.read(row))))


class Pixels(nn.Module):
    """Logits of the classes of each pixel."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.see, self.drop, self.out = nn.Conv2d(2, 4, 3, padding=1), nn.Dropout2d(0.4), nn.Conv2d(4, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.drop(torch.relu(self.see(x))))


class Noisy(nn.Module):
    """A mean and a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = nn.Linear(4, 8), nn.Dropout(0.3)
        self.mean, self.log_variance = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.drop(torch.relu(self.body(x)))
        return self.mean(h), self.log_variance(h).exp()


class Answer(NamedTuple):
    logits: Tensor
    loss: Tensor | None = None


def table(num_outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, num_outputs))


class Around(nn.Module):
    """A network whose answer is put into something."""

    def __init__(self, put: Any, num_outputs: int = 3) -> None:
        super().__init__()
        self.inside, self.put = table(num_outputs), put

    def forward(self, x: Tensor) -> Any:
        return self.put(self.inside(x))


def drawn(build: Any, *args: Any, num_draws: int = 4) -> Draws:
    return MCDropout(seeded(lambda: build(*args)).eval()).sample(num_draws)


def slope(function: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


def assert_near(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, **TIGHT)


# Inputs


def at_embedding(draw: Any, target: Tensor, factor: float, start: Tensor | float, **named: Tensor) -> Tensor:
    """Slope of the target logits at a point between `start` and the embedding, features and all, by hand."""
    embedded = draw.network.words(IDS).detach()
    point = (start + factor * (embedded - start)).requires_grad_()
    handle = draw.network.words.register_forward_hook(lambda *_: point)
    logits = draw(input_ids=IDS, **named)["logits"]
    handle.remove()
    return torch.autograd.grad(logits[torch.arange(len(IDS)), target].sum(), point)[0]


@pytest.mark.parametrize("absent", [None, 0])
def test_integrated_gradients_of_token_ids_are_those_at_the_embedding_summed_over_features(absent):
    draws, mask = drawn(Words), torch.tensor([[1.0, 1, 1, 1, 0]] * 3, dtype=torch.float64)
    inputs = Inputs({"input_ids": IDS, "attention_mask": mask}, absent_id=absent)
    e = explain(draws, "integrated_gradients", inputs, output="logits", num_steps=8)
    assert e.values is not None and e.values.shape == (4, 3, 5) and e.target is not None
    nodes, weights = np.polynomial.legendre.leggauss(8)
    for draw, found in zip(draws, e.values, strict=True):
        words: Any = draw.network.words
        start = 0.0 if absent is None else words.weight[absent]
        slopes = [at_embedding(draw, e.target, (node + 1) / 2, start, attention_mask=mask) for node in nodes]
        total = sum(weight / 2 * one for weight, one in zip(weights.tolist(), slopes, strict=True))
        assert_near(found, ((words(IDS) - start) * total).sum(-1).to(found))


def test_the_members_of_an_ensemble_are_explained_each_at_its_own_embedding():
    members = [seeded(Words, seed=seed).eval() for seed in range(3)]
    draws = DeepEnsemble(members).sample()
    e = explain(draws, "gradient_x_input", IDS, 1, output="logits")
    for draw, found in zip(draws, e._values("test"), strict=True):
        by_hand = at_embedding(draw, torch.tensor([1, 1, 1]), 1.0, 0.0)
        assert_near(found, (draw.network.words(IDS) * by_hand).sum(-1).to(found))


def test_examples_one_by_one_or_in_a_loader_equal_all_at_once():
    draws, mask = drawn(Words), torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.float64)
    whole = {"input_ids": IDS, "attention_mask": mask}
    batches = [{name: value[i : i + 1] for name, value in whole.items()} | {"labels": torch.ones(1)} for i in range(3)]
    for explainer in ("gradient", "integrated_gradients", "smoothgrad", lime):
        wanted = explain(draws, explainer, whole, output="logits").values
        assert_near(explain(draws, explainer, whole, output="logits", chunk=1).values, wanted)
        assert_near(explain(draws, explainer, batches, output="logits").values, wanted)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(randn(5, 4), torch.arange(5)), batch_size=2)
    before = torch.get_rng_state()
    found = explain(drawn(table), "gradient", loader, 1).values
    assert torch.equal(torch.get_rng_state(), before)
    assert_near(found, explain(drawn(table), "gradient", randn(5, 4), 1).values)


def test_one_of_several_inputs_is_explained_and_the_others_pass_along():
    draws, image, row = drawn(Two), randn(3, 3, 2, 2), randn(3, 4, seed=1)
    named = {"image": image, "row": row, "scale": 2.0}
    for given, names in ((named, ("image", "row")), ((image, row), (0, 1))):
        factor = 2 if isinstance(given, dict) else 1
        for wrt, x in zip(names, (image, row), strict=True):
            found = explain(draws, "gradient", Inputs(given, wrt=wrt), 1).values
            for draw, one in zip(draws, found, strict=True):
                other = (
                    (lambda leaf, draw=draw: draw(leaf, row))
                    if x is image
                    else lambda leaf, draw=draw: draw(image, leaf)
                )
                assert_near(one, factor * slope(lambda leaf, other=other: other(leaf)[:, 1], x))
    assert_near(
        explain(draws, "gradient", named, 1).values, explain(draws, "gradient", Inputs(named, wrt="image"), 1).values
    )


def test_signals_and_volumes_are_explained_like_images():
    for build, shape in ((lambda: nn.Conv1d(2, 3, 3), (3, 2, 9)), (lambda: nn.Conv3d(1, 3, 2), (2, 1, 3, 4, 5))):
        layers = (nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool1d(1) if len(shape) == 3 else nn.AdaptiveAvgPool3d(1))
        draws = drawn(lambda build=build, layers=layers: nn.Sequential(build(), *layers, nn.Flatten()))
        x = randn(*shape)
        e = explain(draws, "integrated_gradients", x, 1, baseline="blurred")
        assert e.values is not None and e.values.shape == (4, *shape)
        for statistic in (e.mean(), e.std(), e.snr(), e.sign_agreement(), e.cv("signed")):
            assert statistic.shape == shape
        folded = shape if len(shape) == 3 else (2, 3, 4, 5)
        assert e.cv("paper").shape == folded and e.diagnose() is not None and len(e.summary()) == len(x)
        assert list(e.to_xarray().dims[:2]) == ["draw", "example"]
        assert ua_backprop(draws, x).shape == folded


# Outputs


def test_a_key_an_attribute_a_function_and_a_position_pick_what_is_explained():
    x = randn(5, 4)
    wanted = explain(drawn(table), "gradient", x, 2).values
    for put, output in (
        (lambda z: {"logits": z, "loss": None}, "logits"),
        (lambda z: {"scores": z}, "scores"),
        (lambda z: Answer(z), "logits"),
        (lambda z: (None, z), lambda answer: answer[1]),
        (lambda z: (None, z), (1, "logits")),
        (lambda z: z[:, None], lambda answer: answer[:, 0]),
    ):
        assert_near(explain(drawn(Around, put), "gradient", x, 2, output=output).values, wanted)


def test_probabilities_are_asked_about_and_then_read_as_such():
    draws, x = drawn(Around, lambda z: z.softmax(-1)), randn(5, 4)
    for ask in (lambda: explain(draws, "gradient", x), lambda: uncertainties(draws, x), lambda: ua_backprop(draws, x)):
        with pytest.raises(ValueError, match='answers are probabilities.*say output="probabilities"'):
            ask()
    plain = drawn(table)
    wanted = uncertainties(plain, x)
    for name, value in vars(uncertainties(draws, x, output="probabilities")).items():
        assert_near(value, getattr(wanted, name))
    assert_near(
        ua_backprop(draws, x, output="probabilities", explainer="gradient_x_input"),
        ua_backprop(plain, x, explainer=lambda network, x, target: slope_of_log_prob(network, x, target)),
    )
    e = explain(draws, "gradient", x, output="probabilities")
    assert torch.equal(torch.as_tensor(e.target), torch.as_tensor(explain(plain, "gradient", x).target))
    assert_near(e.values[0], slope(lambda leaf: plain[0](leaf).softmax(-1).gather(1, e.target[:, None]), x))
    with pytest.raises(ValueError, match="no probabilities"):
        uncertainties(plain, x, output="probabilities")


def slope_of_log_prob(network: Any, x: Tensor, target: int) -> Tensor:
    return x * slope(lambda leaf: network(leaf).log_softmax(-1)[:, target], x)


def test_one_logit_is_two_classes_and_several_labels_are_each_by_themselves():
    draws, x = drawn(table, 1), randn(5, 4)
    z = torch.stack([draw(x) for draw in draws]).detach()
    p = z.sigmoid()
    total = -(p.mean(0) * p.mean(0).log() + (1 - p.mean(0)) * (1 - p.mean(0)).log())
    aleatoric = -(p * p.log() + (1 - p) * (1 - p).log()).mean(0)
    found = uncertainties(draws, x, output="binary")
    assert_near(found.total, total[:, 0])
    assert_near(found.aleatoric, aleatoric[:, 0])
    a = ua_backprop(draws, x, output="binary")
    assert_near(a.sum(1), found.epistemic)
    both = drawn(Around, lambda z: torch.cat([z, -2 * z], 1), 1)
    labels = uncertainties(both, x, output="multilabel")
    assert labels.total.shape == (5, 2) and list(labels.to_frame()) == [
        "example",
        "output",
        "total",
        "aleatoric",
        "epistemic",
    ]
    assert_near(labels.total[:, 0], total[:, 0])
    attribution = attribute_uncertainty(both, x, output="multilabel", target=0, explainer="gradient")
    assert_near(attribution, attribute_uncertainty(draws, x, output="binary", explainer="gradient"))
    with pytest.raises(ValueError, match="the output is multilabel.*pick one label"):
        ua_backprop(both, x, output="multilabel")
    assert_near(ua_backprop(both, x, output=(lambda answer: answer[:, 0], "binary")), a)
    with pytest.raises(ValueError, match="2 outputs; pass one class per example"):
        attribute_uncertainty(both, x, output="multilabel")
    e = explain(both, "gradient", x, output="multilabel")
    assert torch.equal(
        torch.as_tensor(e.target), torch.stack([p.mean(0)[:, 0], (-2 * z).sigmoid().mean(0)[:, 0]]).argmax(0)
    )


def test_regressions_of_several_outputs_have_a_variance_each():
    draws, x = drawn(table, 2), randn(5, 4)
    z = torch.stack([draw(x) for draw in draws]).detach()
    found = uncertainties(draws, x, output="regression", noise_variance=0.25)
    assert_near(found.epistemic, z.var(0, correction=0))
    assert_near(found.total, z.var(0, correction=0) + 0.25)
    wanted = slope(lambda leaf: torch.stack([draw(leaf) for draw in draws]).var(0, correction=0)[:, 1], x)
    assert_near(attribute_uncertainty(draws, x, output="regression", target=1, explainer="gradient"), wanted)
    of_all = ua_backprop(draws, x, output="regression")
    assert_near(of_all.sum(1), found.epistemic.sum(1))
    assert torch.equal(of_all, ua_backprop(draws.seen(x, "regression")[0], x))
    shares = ((z - z.mean(0)) ** 2 / len(z)).unbind(0)
    maps = [[(x * slope(lambda leaf, d=d, k=k: d(leaf)[:, k], x)).abs() for k in (0, 1)] for d in draws]
    raw = ua_backprop(draws, x, output="regression", setting="recommended")
    by_hand = sum(
        s[:, k, None] * m[k] / m[k].sum(1, keepdim=True) for s, m in zip(shares, maps, strict=True) for k in (0, 1)
    )
    assert_near(raw, by_hand)
    e = explain(draws, "gradient", x, output="regression")
    assert torch.equal(torch.as_tensor(e.target), torch.zeros(5, dtype=torch.long)), "the first number"
    complete = ua_replacement(draws, x, reference="black", output="regression", target=1)
    assert_near(complete.sum(1), found.epistemic[:, 1])
    for refused, message in (
        (lambda: ua_backprop(draws, x, "aleatoric", output="regression"), "the same for all x"),
        (lambda: attribute_uncertainty(draws, x, "aleatoric", output="regression", target=0), "the same for all x"),
        (lambda: deletion(draws, x, pixel_order(x), 0, output="regression"), "need class scores"),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


@pytest.mark.filterwarnings("ignore:FullGrad.s terms miss")  # an exponential is not piecewise linear
def test_a_variance_head_says_the_aleatoric_part_and_both_can_be_explained():
    draws, x = drawn(Noisy), randn(5, 4)
    means, variances = (torch.stack([draw(x)[part] for draw in draws])[..., 0].detach() for part in (0, 1))
    found = uncertainties(draws, x, output="mean_variance")
    assert_near(found.epistemic, means.var(0, correction=0))
    assert_near(found.aleatoric, variances.mean(0))
    for kind in ("total", "aleatoric", "epistemic"):
        assert_near(ua_backprop(draws, x, kind, output="mean_variance", psi="raw").sum(1), getattr(found, kind))
    for part in (0, 1):
        e = explain(draws, "gradient", x, part, output="mean_variance")
        assert_near(e.values[2], slope(lambda leaf, part=part: draws[2](leaf)[part], x))
    wanted = slope(lambda leaf: torch.stack([draw(leaf)[1] for draw in draws]).mean(0), x)
    assert_near(attribute_uncertainty(draws, x, "aleatoric", output="mean_variance", explainer="gradient"), wanted)
    logs = drawn(table, 2)
    with pytest.raises(ValueError, match="a variance is negative.*exp"):
        uncertainties(logs, 3 * x, output="mean_variance")
    read = (lambda answer: (answer[:, :1], answer[:, 1:].exp()), "mean_variance")
    assert_near(
        uncertainties(logs, x, output=read).aleatoric, torch.stack([d(x) for d in logs])[..., 1].exp().mean(0).detach()
    )


def test_a_segmentation_is_summed_over_the_places_of_a_class_a_mask_or_one_place():
    draws, x = drawn(Pixels), randn(3, 2, 4, 5)
    logits = torch.stack([draw(x) for draw in draws]).detach()
    best = logits.softmax(2).mean(0).argmax(1)  # (N, H, W)
    e = explain(draws, "integrated_gradients", x, 1, output="segmentation", num_steps=3)
    assert_near(e.values.sum((2, 3, 4)), _fall(draws, x, lambda z: (z[:, 1] * (best == 1)).sum((1, 2))))
    area = F.one_hot(best, 3).sum((1, 2))
    assert torch.equal(torch.as_tensor(explain(draws, "gradient", x, output="segmentation").target), area.argmax(1))
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1:3, 2] = True
    for where, value in (((1, 2), lambda z: z[:, 2, 1, 2]), (mask, lambda z: z[:, 2, 1:3, 2].sum(1))):
        found = explain(draws, "gradient", x, 2, output=Output("segmentation", where=where)).values
        assert_near(found[1], slope(lambda leaf, value=value: value(draws[1](leaf)), x))
        assert_near(explain(draws, "gradient", x, 2, output=Output("segmentation", where=where), chunk=1).values, found)


def _fall(draws: Draws, x: Tensor, value: Any) -> Tensor:
    """What a linear path's end points differ by, where the networks are linear enough: sums of slopes by midpoints."""
    nodes, weights = np.polynomial.legendre.leggauss(3)
    total = []
    for draw in draws:
        slopes = [slope(lambda leaf, draw=draw: value(draw(leaf)), x * (node + 1) / 2) * x for node in nodes]
        total.append(sum(w / 2 * one.flatten(1).sum(1) for w, one in zip(weights.tolist(), slopes, strict=True)))
    return torch.stack(total)


def test_a_segmentation_has_an_uncertainty_in_each_place_which_is_attributed():
    draws, x = drawn(Pixels), randn(3, 2, 4, 5)
    p = torch.stack([draw(x) for draw in draws]).detach().softmax(2)
    found = uncertainties(draws, x, output="segmentation")
    total = torch.special.entr(p.mean(0)).sum(1)
    assert_near(found.total, total)
    assert_near(found.aleatoric, torch.special.entr(p).sum(2).mean(0))
    assert list(found.to_frame())[:3] == ["example", "row", "column"]
    one = Output("segmentation", where=(1, 2))
    assert_near(ua_backprop(draws, x, output=one).sum((1, 2)), found.epistemic[:, 1, 2])
    of_all = Output("segmentation", where=torch.ones(4, 5))
    u = ua_replacement(draws, x, "total", reference="black", output=of_all)
    assert_near(u.sum((1, 2)), total.sum((1, 2)))
    by_class = attribute_uncertainty(draws, x, "total", output="segmentation", target=0, explainer="gradient")
    best = p.mean(0).argmax(1)

    def of_area(leaf: Tensor) -> Tensor:
        probs = torch.stack([draw(leaf) for draw in draws]).softmax(2).mean(0)
        return (-(probs * probs.log()).sum(1) * (best == 0)).sum((1, 2))

    assert_near(by_class, slope(of_area, x).sum(1))
    binary = drawn(Pixels, 1)
    q = torch.stack([draw(x) for draw in binary]).detach().sigmoid().mean(0)[:, 0]
    assert_near(
        uncertainties(binary, x, output="segmentation").total, torch.special.entr(q) + torch.special.entr(1 - q)
    )


# Regions and curves


def test_lime_of_words_windows_and_groups_of_columns_is_what_each_adds():
    draws = drawn(Words)
    found = lime(draws.seen(IDS, "logits")[0][0], torch.ones(3, 5), 1, num_samples=2000, alpha=0)
    assert found.shape == (3, 5)
    x = randn(2, 2, 6)
    effects = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def network(batch: Tensor) -> Tensor:  # a sum over each third of the time, of both channels
        return (batch.sum(1).unflatten(1, (3, 2)).sum(2) * effects).sum(1)

    segments = windows(x, 3, axis=2)
    assert segments.shape == (1, 1, 6)
    by_window = lime(network, x, num_samples=200, alpha=0, segments=segments, fill=0.0)
    wanted = x.sum(1).unflatten(1, (3, 2)).sum(2) * effects
    assert_near(by_window.sum(1)[:, ::2], wanted)
    groups = torch.tensor([0, 0, 1, 2])  # two columns are one feature
    rows, weight = randn(3, 4), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    by_group = lime(lambda batch: batch @ weight, rows, num_samples=200, alpha=0, segments=groups, fill=0.0)
    added = rows * weight
    assert_near(by_group[:, 0], added[:, :2].sum(1))
    assert_near(by_group[:, 2:], added[:, 2:])


def test_deletion_of_words_signals_and_columns_ends_with_nothing():
    for draws, given, output, absent, size in (
        (drawn(Words), IDS, "logits", None, 5),
        (drawn(lambda: nn.Sequential(nn.Flatten(), *table())), randn(3, 1, 4), None, randn(3, 1, 4) * 0, 4),
        (drawn(table), randn(3, 4), None, randn(3, 4) * 0, 4),
    ):
        order, target = (
            torch.stack([torch.randperm(size, generator=torch.Generator().manual_seed(i)) for i in range(3)]),
            1,
        )
        curve = deletion(draws, given, order, target, output=output)
        assert curve.shape == (3, size + 1)
        read = (
            (lambda answer: answer["logits"]) if isinstance(given, Tensor) and not given.is_floating_point() else None
        )
        first = torch.stack([(read(draw(given)) if read else draw(given)).softmax(-1) for draw in draws]).mean(0)[:, 1]
        assert_near(curve[:, 0].double(), first.double().detach().to(curve.dtype).double())
        if absent is not None:
            last = torch.stack([draw(absent).softmax(-1) for draw in draws]).mean(0)[:, 1]
            assert_near(curve[:, -1], last.detach())
        back = insertion(draws, given, order.flip(1), target, output=output, fill="black")
        assert_near(back.flip(1), curve)


# Refusals


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: explain(drawn(Words), "gradient", IDS),
            TypeError,
            r"returned a dict with \['logits', 'hidden'\]; say what",
        ),
        (
            lambda: explain(drawn(Words), "gradient", IDS, output="scores"),
            ValueError,
            r"has no 'scores'; it is \['logits', 'hidden'\]",
        ),
        (
            lambda: explain(drawn(Words), "gradient", Inputs(IDS, wrt="w"), output="logits"),
            ValueError,
            "no layer 'w' embeds them.*words, network.places",
        ),
        (lambda: explain(drawn(table), "gradient", torch.ones(3, 4).long()), ValueError, "cannot evaluate x|token ids"),
        (
            lambda: Inputs((randn(3, 4), randn(2, 4))),
            ValueError,
            r"input 1 has shape \(2, 4\) but there are 3 examples",
        ),
        (lambda: Inputs((randn(3, 4), randn(3, 4) / 0)), ValueError, "input 1 holds NaN or infinite"),
        (lambda: Inputs({"a": randn(3, 4)}, wrt="b"), ValueError, r"wrt is 'b'; the inputs are \['a'\]"),
        (lambda: Inputs([]), TypeError, "x is a list; pass a torch tensor"),
        (lambda: Inputs(iter(())), ValueError, "batches"),
        (lambda: Inputs([(randn(3, 4), 1, 2)]), ValueError, "a batch holds 3 parts"),
        (lambda: Inputs(shuffling()), ValueError, "the loader shuffles"),
        (lambda: Output("logit"), ValueError, "unknown kind of output 'logit'; known: logits, probabilities"),
        (lambda: Output("logits", where=(1, 2)), ValueError, "where is for segmentation"),
        (
            lambda: explain(drawn(table), "gradient", randn(3, 4), output=3),
            TypeError,
            "output is 3; pass one of logits",
        ),
        (lambda: uncertainties(drawn(Pixels), randn(1, 2, 4, 4)), ValueError, "say what by output="),
        (lambda: of_pixels((4, 0)), ValueError, r"where is \(4, 0\); the places are \(4, 4\)"),
        (lambda: of_pixels(torch.ones(3, 3)), ValueError, r"where is of shape \(3, 3\); the places are \(4, 4\)"),
        (lambda: uncertainties(drawn(table, 2), randn(3, 4), output="binary"), ValueError, "binary is one logit"),
        (lambda: windows(randn(2, 3, 4), 9, axis=2), ValueError, "num_segments is 9 but there are 4 places"),
        (lambda: windows(randn(2, 3, 4), 2, axis=3), ValueError, "axis is 3"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_before_the_work(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert str(caught.value).count("\n") == 0


def shuffling() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(randn(4, 4)), shuffle=True)


def of_pixels(where: Any) -> Any:
    return explain(drawn(Pixels), "gradient", randn(1, 2, 4, 4), 0, output=Output("segmentation", where=where))


class Mixing(nn.Module):
    """A network whose answer to an example is not its own affair, in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.inside, self.calls = way, nn.Linear(4, 3), 0
        self.norm = nn.BatchNorm1d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.inside(x)
        self.calls += 1
        return {
            "batch norm": lambda: self.norm(z),
            "mean of the batch": lambda: z - z.mean(0),
            "numpy": lambda: z + float(np.random.rand()),  # noqa: NPY002
            "distribution": lambda: z + torch.distributions.Normal(0.0, 1.0).sample(z.shape).to(z),
            "aten": lambda: z + torch.ops.aten.rand([3]).to(z),
            "counter": lambda: z + self.calls,
        }[self.way]()


@pytest.mark.parametrize("way", ["batch norm", "mean of the batch", "numpy", "distribution", "aten", "counter"])
def test_a_network_that_is_no_function_of_each_example_is_refused_and_nothing_is_left_changed(way):
    network, x = seeded(lambda: Mixing(way)).eval(), randn(3, 4)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for call in (
        lambda: explain([network], "gradient", x, 1),
        lambda: lime(network, x, 1),
        lambda: uncertainties(Draws([network]), x),
        lambda: ua_backprop([network], x),
        lambda: DeepEnsemble([network]).sample()(x, "logits"),
    ):
        with pytest.raises(
            (ValueError, RuntimeError), match="changes with the others of its batch|random|forward pass"
        ):
            call()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002


def test_a_network_is_tried_once_for_examples_of_a_kind():
    network = seeded(lambda: Mixing("none")).eval()
    network.way = "x"
    network.forward = lambda x, calls=[]: (calls.append(len(x)), network.inside(x))[1]  # type: ignore[assignment]
    calls = network.forward.__defaults__[0]
    explain([network], "gradient", randn(3, 4), 1)
    before = len(calls)
    explain([network], "gradient", randn(3, 4), 1)
    assert len(calls) < 2 * before and calls[before:] == [n for n in calls[before:] if n != 2]


def test_masked_logits_and_nan_are_refused_everywhere_the_same():
    for value in (-math.inf, math.nan):
        draws = drawn(Around, lambda z, value=value: torch.cat([z, torch.full_like(z[:, :1], value)], 1))
        for call in (uncertainties, ua_backprop, attribute_uncertainty):
            with pytest.raises(ValueError, match="logits hold NaN or infinite values"):
                call(draws, randn(3, 4))
    assert torch.isfinite(logits_of(drawn(table), randn(3, 4))).all()
