"""explain is the plain loop over draws; its options change the work and not the result."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from core_networks import (
    EXACT,
    OneOutput,
    assert_fast,
    inplace_cnn,
    late_cnn,
    randn,
    seeded,
    table_mlp,
)
from torch import Tensor, nn, tensor
from torch.testing import assert_close

from xuqlib import (
    DeepEnsemble,
    Draws,
    Flipout,
    MCDropout,
    attribute_uncertainty,
    explain,
    from_captum,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    mlp,
    smoothgrad,
    ua_backprop,
    ua_replacement,
    variance_split,
)
from xuqlib.distribution import CV_KINDS
from xuqlib.explainers import explainer as declare
from xuqlib.explainers.lime import lime

explaining = sys.modules["xuqlib.explain"]  # the function of that name hides its module

EXPLAINERS: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "gradient": (gradient, {}),
    "gradient_x_input": (gradient_x_input, {}),
    "guided_backprop": (guided_backprop, {}),
    "integrated_gradients": (integrated_gradients, {"num_steps": 4}),
    "integrated_gradients from the mean": (integrated_gradients, {"num_steps": 4, "baseline": "mean"}),
    "smoothgrad": (smoothgrad, {"num_samples": 4, "seed": 3}),
    "lime": (lime, {"num_samples": 40, "seed": 3, "num_segments": 4}),
    "saliency by captum": (from_captum("Saliency"), {"abs": False}),
}


@pytest.fixture(params=["table", "pictures", "shared trunk"])
def case(request: pytest.FixtureRequest) -> tuple[Draws, Tensor]:
    build = {"table": table_mlp, "pictures": inplace_cnn, "shared trunk": late_cnn}[request.param]
    shape = (5, 5) if request.param == "table" else (5, 3, 8, 8)
    return MCDropout(seeded(build)).sample(3, seed=1), randn(*shape)


TARGET = tensor([0, 2, 1, 1, 0])


@pytest.mark.usefixtures("untouched_generators")
@pytest.mark.parametrize("name", EXPLAINERS)
def test_explaining_equals_the_plain_loop_over_draws(case, name):
    draws, x = case
    explainer, options = EXPLAINERS[name]
    # Captum's explainers are only known as functions of one network.
    with nullcontext() if "captum" in name else assert_fast():
        e = explain(draws, explainer, x, TARGET, **options)
        chunked = explain(draws, explainer, x, TARGET, chunk=2, **options)
    loop = torch.stack([explainer(draws[i], x, TARGET, **options) for i in range(len(draws))])
    assert e.values is not None and e.values.shape == (3, *x.shape)
    assert_close(e.values, loop, **EXACT)
    assert not torch.allclose(loop[0], loop[1]), "the draws do not differ"
    assert (e.explainer, e.posterior) == (explainer.__name__, "mc_dropout")
    assert_close(chunked.values, loop, **EXACT)


def test_moments_equal_those_of_all_attributions(case):
    draws, x = case
    full = explain(draws, gradient, x, TARGET)
    for chunk in (None, 2):
        streamed = explain(draws, gradient, x, TARGET, keep="moments", chunk=chunk)
        assert streamed.values is None and streamed.num_draws == 3
        assert_close(streamed.mean(), full.mean(), **EXACT)
        assert_close(streamed.std(), full.std(), **EXACT)
        for kind in CV_KINDS:
            assert_close(streamed.cv(kind), full.cv(kind), equal_nan=True, **EXACT)
        assert_close(streamed.cv(rescale=False), full.cv(rescale=False), equal_nan=True, **EXACT)


def test_what_moments_hold_does_not_grow_with_the_draws():
    posterior, x = MCDropout(seeded(table_mlp)), randn(4, 5)

    def numbers(num_draws: int) -> int:
        e = explain(posterior.sample(num_draws), gradient, x, keep="moments")
        assert e.values is None
        return sum(welford.mean.numel() + welford.squares.numel() for welford in e.moments.values())

    assert numbers(2) == numbers(30) == 2 * 3 * 20


def test_attributions_are_let_go_one_by_one_while_moments_are_kept():
    import weakref

    alive: list[Any] = []

    def watched(network: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        assert sum(ref() is not None for ref in alive) <= 2, "earlier attributions are still held"
        attribution = gradient(network, x, target)
        alive.append(weakref.ref(attribution))
        return attribution

    explain(MCDropout(seeded(table_mlp)).sample(8), watched, randn(4, 5), keep="moments")
    assert len(alive) == 8


def test_the_target_is_the_argmax_of_the_mean_probability_for_every_draw(case):
    draws, x = case
    expected = draws(x).softmax(-1).mean(0).argmax(1)
    for chunk in (None, 2):
        e = explain(draws, gradient, x, chunk=chunk)
        assert torch.equal(e.target, expected)
    assert_close(e.values, explain(draws, gradient, x, expected).values, **EXACT)


def test_the_mean_is_of_probabilities_not_of_logits():
    class Constant(nn.Module):
        def __init__(self, logits: list[float]) -> None:
            super().__init__()
            self.logits = nn.Parameter(tensor(logits))

        def forward(self, x: Tensor) -> Tensor:
            return self.logits.expand(len(x), -1) + 0 * x.sum(1, keepdim=True)

    # One draw is wild about class 0; the two others prefer class 1, and win two votes to one.
    draws = DeepEnsemble([Constant([100.0, 0.0]), Constant([0.0, 3.0]), Constant([0.0, 3.0])]).sample()
    assert draws(torch.zeros(1, 2)).mean(0).argmax().item() == 0
    assert explain(draws, gradient, torch.zeros(1, 2)).target.tolist() == [1]


def test_one_class_for_all_examples(case):
    draws, x = case
    e = explain(draws, gradient, x, 2)
    assert e.target.tolist() == [2] * 5
    assert_close(e.values, explain(draws, gradient, x, torch.full((5,), 2)).values, **EXACT)


@pytest.mark.parametrize("build", [OneOutput, lambda: mlp(num_features=5, dropout=0.3)], ids=["flat", "column"])
def test_a_regression_explains_its_one_output(build):
    draws, x = MCDropout(seeded(build)).sample(4), randn(6, 5)
    for name in ("gradient", "integrated_gradients", "lime"):
        explainer, options = EXPLAINERS[name]
        e = explain(draws, explainer, x, **options)
        assert e.target is None and "target" not in e.summary()
        loop = torch.stack([explainer(draw, x, **options) for draw in draws])
        assert_close(e.values, loop, **EXACT)


def test_a_mean_baseline_is_of_all_examples_whatever_the_chunk(case):
    draws, x = case
    e = explain(draws, integrated_gradients, x, TARGET, baseline="mean", num_steps=3, chunk=1)
    mean = x.mean(0, keepdim=True).expand_as(x)
    whole = torch.stack([integrated_gradients(draw, x, TARGET, baseline=mean, num_steps=3) for draw in draws])
    assert_close(e.values, whole, **EXACT)


def test_options_with_one_entry_per_example_are_cut_with_the_examples():
    x = randn(5, 3, 8, 8)

    @declare(per_example=["per_pixel", "per_place", "per_example"])
    def weighted(network: nn.Module, x: Tensor, target: Tensor, **options: Tensor) -> Tensor:
        assert {name: len(value) for name, value in options.items()} == {
            **dict.fromkeys(("per_pixel", "per_place", "per_example"), len(x)),
            "other": 7,
        }
        shaped = options["per_example"].view(-1, 1, 1, 1)
        return gradient(network, x, target) * shaped * options["per_pixel"] * options["per_place"][:, None]

    options = {"per_pixel": randn(5, 3, 8, 8, seed=2), "per_place": randn(5, 8, 8, seed=3)}
    options |= {"per_example": randn(5, seed=4), "other": randn(7)}
    draws = MCDropout(seeded(late_cnn)).sample(2)
    whole = explain(draws, weighted, x, TARGET, **options)
    assert_close(explain(draws, weighted, x, TARGET, chunk=2, **options).values, whole.values, **EXACT)


def test_an_option_per_feature_is_not_cut_when_there_are_as_many_examples():
    draws, x = MCDropout(seeded(table_mlp)).sample(2), randn(5, 5)
    scale = torch.arange(1.0, 6.0, dtype=torch.float64)
    options = {"scale": scale, "num_samples": 40}
    whole = torch.stack([lime(draw, x, TARGET, **options) for draw in draws])
    assert_close(explain(draws, lime, x, TARGET, chunk=2, **options).values, whole, **EXACT)


@pytest.mark.parametrize("per_example", [True, False])
def test_where_nobody_knows_whether_an_option_is_per_example_all_are_explained_at_once(per_example):
    x = randn(3, 2**17, dtype=torch.float32)  # two of these would fill a call
    shift = torch.arange(3.0)[:, None] if per_example else torch.arange(3.0)
    calls: list[int] = []

    def shifted(network: nn.Module, x: Tensor, target: Tensor, *, shift: Tensor) -> Tensor:
        calls.append(len(x))
        return x + (shift if per_example else shift.sum())

    draws, whole = Draws([nn.Identity()]), x + (shift if per_example else shift.sum())
    assert torch.equal(explain(draws, shifted, x, 0, shift=shift).values[0], whole)
    explain(draws, shifted, x, 0, shift=tensor([1.0]))  # surely not one per example
    assert calls == [3, 2, 1]
    with pytest.raises(ValueError, match="option shift has as many entries as there are examples; say whether"):
        explain(draws, shifted, x, 0, shift=shift, chunk=2)
    declare(per_example=["shift"] if per_example else [])(shifted)
    assert torch.equal(explain(draws, shifted, x, 0, shift=shift, chunk=1).values[0], whole)


@pytest.mark.parametrize("kind", [list, np.array, lambda values: tensor(values, dtype=torch.float64)])
def test_options_per_example_may_be_lists_and_arrays(kind):
    @declare(per_example=["sign"])
    def signed(network: nn.Module, x: Tensor, target: Tensor, *, sign: Any) -> Tensor:
        return gradient(network, x, target) * torch.as_tensor(sign).to(x)[:, None]

    draws, x, sign = MCDropout(seeded(table_mlp)).sample(2), randn(5, 5), [1.0, -1.0, 2.0, -2.0, 3.0]
    expected = explain(draws, gradient, x, TARGET).values * tensor(sign, dtype=torch.float64)[:, None]
    assert_close(explain(draws, signed, x, TARGET, sign=kind(sign), chunk=2).values, expected, **EXACT)
    with pytest.raises(ValueError, match="option sign has 4 entries but x has 5 examples; pass one entry per example"):
        explain(draws, signed, x, TARGET, sign=kind(sign[:4]), chunk=4)


def test_a_function_around_an_explainer_is_called_and_not_the_path_of_what_is_inside():
    draws, x = MCDropout(seeded(table_mlp)).sample(2), randn(5, 5)

    @functools.wraps(gradient)
    def negated(*args: Any) -> Tensor:
        return -gradient(*args)

    expected = explain(draws, gradient, x, TARGET).values
    assert_close(explain(draws, negated, x, TARGET).values, -expected, **EXACT)
    one_step = functools.partial(integrated_gradients, num_steps=1)
    whole = explain(draws, integrated_gradients, x, TARGET, num_steps=1, baseline="mean").values
    assert_close(explain(draws, one_step, x, TARGET, baseline="mean", chunk=2).values, whole, **EXACT)


def test_a_list_of_networks_will_do_for_draws():
    networks = [seeded(table_mlp, seed=s).eval() for s in range(2)]
    e = explain(networks, gradient, randn(4, 5), 0)
    assert_close(e.values[1], gradient(networks[1], randn(4, 5), 0), **EXACT)


def test_an_explainer_that_knows_how_draws_share_their_work_is_given_all_of_them():
    def together(draws: Draws, x: Tensor, target: Tensor) -> list[Tensor]:
        return [gradient(draw, x, target) + 1 for draw in draws]

    @declare(over_draws=together)
    def explainer(*_: Any) -> Tensor:
        raise AssertionError("called draw by draw")

    draws, x = MCDropout(seeded(table_mlp)).sample(3), randn(4, 5)
    expected = explain(draws, gradient, x, 1).values + 1
    assert_close(explain(draws, explainer, x, 1).values, expected, **EXACT)


@pytest.mark.parametrize(
    ("progress", "calls", "shown"), [(None, 101, True), (None, 100, False), (True, 2, True), (False, 101, False)]
)
def test_a_bar_shows_where_the_work_is_long(monkeypatch, progress, calls, shown):
    bars: list[dict[str, Any]] = []
    whole = explaining.tqdm
    monkeypatch.setattr(
        explaining, "tqdm", lambda **options: bars.append(options) or whole(**{**options, "disable": True})
    )
    draws = Draws([seeded(table_mlp).eval()] * calls)
    explain(draws, lambda n, x, t: x, randn(1, 5), 0, progress=progress)
    assert bars[0]["disable"] is not shown and bars[0]["total"] == calls


# Where the spread comes from


class Slope(nn.Module):
    """A network whose gradient is known: `slope` everywhere."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(tensor(slope, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope * x).sum(1, keepdim=True)


def noisy(network: nn.Module, x: Tensor, target: Tensor | None, *, seed: int, noise: float = 0.0) -> Tensor:
    """The slope of the network, plus noise of the explainer's own."""
    stream = torch.Generator().manual_seed(seed)
    return gradient(network, x, target) + noise * torch.randn(x.shape, generator=stream, dtype=torch.float64).to(x)


def test_the_split_recovers_both_variances():
    networks = [Slope(float(s)) for s in 2 * randn(200, seed=1)]
    split = variance_split(networks, noisy, torch.zeros(1, 300, dtype=torch.float64), noise=3.0, num_repeats=3, seed=5)
    # 200 networks and 300 features of independent noise: the explainer's part is known to a percent.
    assert split.explainer.mean().item() == pytest.approx(9.0, rel=5 * math.sqrt(2 / (200 * 2 * 300)))
    # The model's part is the variance of 200 slopes, and the noise that is left in the means averages out.
    slopes = torch.stack([network.slope for network in networks]).detach()
    assert split.model.mean().item() == pytest.approx(slopes.var().item(), rel=0.1)
    assert slopes.var().item() == pytest.approx(4.0, rel=5 * math.sqrt(2 / 200))
    assert_close(split.total, split.model + split.explainer, **EXACT)


def test_an_explainer_of_noise_alone_leaves_nothing_to_the_model():
    split = variance_split([Slope(1.0)] * 50, noisy, torch.zeros(1, 400, dtype=torch.float64), noise=1.0, num_repeats=2)
    # Mean of 400 differences of variances, each with a standard error of about 0.15.
    assert abs(split.model.mean()) < 5 * 0.15 / 20
    assert (split.model < 0).any(), "unbiased estimates fall on both sides of 0"


def test_an_explainer_without_noise_has_no_part():
    split = variance_split([Slope(1.0), Slope(3.0)], noisy, torch.zeros(2, 3, dtype=torch.float64))
    assert torch.equal(split.explainer, torch.zeros(2, 3, dtype=torch.float64))
    assert_close(split.model, torch.full((2, 3), 2.0, dtype=torch.float64), **EXACT)


@pytest.mark.usefixtures("untouched_generators")
def test_limes_own_noise_shrinks_with_its_copies():
    draws, x = Flipout(seeded(table_mlp), initial_std=0.2).sample(3), randn(2, 5)
    few, many = (
        variance_split(draws, lime, x, num_repeats=3, num_samples=n).explainer.mean().item() for n in (30, 600)
    )
    assert 0 < many < few / 5
    again = variance_split(draws, lime, x, num_repeats=3, num_samples=30).explainer.mean().item()
    assert again == few
    assert variance_split(draws, lime, x, num_repeats=3, num_samples=30, seed=1).explainer.mean().item() != few


def test_the_parts_are_shaped_like_x_and_share_one_target():
    draws, x = MCDropout(seeded(late_cnn)).sample(3), randn(2, 3, 8, 8)
    split = variance_split(draws, smoothgrad, x, num_repeats=2, num_samples=3)
    assert split.model.shape == split.explainer.shape == x.shape
    given = variance_split(draws, smoothgrad, x, explain(draws, gradient, x).target, num_repeats=2, num_samples=3)
    assert torch.equal(given.model, split.model)


class Counts(nn.Module):
    """Answers by how often it was called."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Embeds(nn.Module):
    """A number, and the code of a category, which it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.line = nn.Embedding(3, 4), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(torch.cat([x[:, :1], self.codes(x[:, 1].long())], 1))


def test_members_with_other_numbers_of_classes_are_refused_whatever_the_target():
    three, four = DeepEnsemble([nn.Linear(4, 3).eval()]), DeepEnsemble([nn.Linear(4, 4).eval()])
    mixed = [*three.sample(), *four.sample()]
    for target in (None, 1):
        with pytest.raises(
            ValueError, match=r"the draws answer \(1, 3\) .* and \(1, 4\) .*; pass networks of one task"
        ):
            explain(mixed, gradient, torch.randn(2, 4), target)
    with pytest.raises(ValueError, match="pass networks of one task"):
        explain(mixed, gradient, (torch.randn(2, 4),), 1, output=lambda answer: answer * 2)


def test_what_cannot_be_explained_is_told_in_the_words_of_who_asked():
    x, line = torch.rand(2, 4), [nn.Linear(4, 3).eval()]
    with pytest.raises(ValueError, match="target -1 of example 0 is out of range; they are counted from 0"):
        explain(line, gradient, x, -1)
    with pytest.raises(TypeError, match="gradient takes no option 'num_steps'; it takes none"):
        explain(line, gradient, x, 1, num_steps=4)
    with pytest.raises(TypeError, match="takes no option 'num_step'; it takes .*num_steps"):
        explain(line, integrated_gradients, x, 1, num_step=4)
    with pytest.raises(ValueError, match="changes from call to call: it keeps something from one call to the next"):
        explain([Counts().eval()], gradient, x, 1)
    codes = torch.tensor([[0.5, 1.0], [0.1, 2.0]])
    with pytest.raises(ValueError, match=r"the network cannot evaluate x of shape .*index out of range"):
        explain(DeepEnsemble([Embeds().eval()]).sample(), gradient, codes + 2, 1)


@pytest.mark.parametrize(
    "attribute", [ua_backprop, functools.partial(ua_replacement, reference="black"), attribute_uncertainty]
)
def test_an_unknown_kind_of_uncertainty_is_refused_before_a_network_is_called(attribute):
    network = nn.Linear(4, 3).eval()
    network.register_forward_hook(lambda *_: pytest.fail("it was called"))
    with pytest.raises(ValueError, match="unknown kind 'both'"):
        attribute([network, network], torch.rand(2, 4), "both")


def test_a_relu_by_the_absolute_value_is_warned_about():
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + x.abs()) / 2 + torch.relu(x)

    with pytest.warns(UserWarning, match="these keep their plain gradient: abs"):
        explain([Halves().eval()], guided_backprop, torch.randn(2, 4), 1)
