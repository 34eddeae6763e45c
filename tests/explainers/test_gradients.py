"""Gradient explainers: closed forms, slow oracles, and what every explainer promises."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from core_networks import randn, seeded
from torch import Tensor, nn

from xuqlib.explain import explain
from xuqlib.explainers import EXPLAINERS
from xuqlib.explainers import explainer as declared
from xuqlib.explainers.adapters import from_captum
from xuqlib.explainers.baselines import make_baseline
from xuqlib.explainers.gradients import completeness_gap, gradient, gradient_x_input, integrated_gradients, smoothgrad
from xuqlib.path import rows_per_pass
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.ua_backprop import ua_backprop
from xuqlib.uncertainty import attribute_uncertainty

TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}  # float64, a few hundred sums
FEW: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"num_steps": 5},
    "smoothgrad": {"num_samples": 5},
    "lime": {"num_samples": 60, "num_segments": 9},
}


def ready(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return seeded(build, seed=seed).eval()


def mlp() -> nn.Module:
    return ready(lambda: nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)))


def cnn() -> nn.Module:
    """An ordinary convolutional network with BatchNorm, dropout and in-place ReLUs."""
    return ready(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.5)),
            *(nn.Flatten(), nn.Linear(36, 3)),
        )
    )


TARGET = torch.tensor([0, 2, 1, 1])


@pytest.fixture(params=["table", "pictures"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """A network in float64 and four examples of its kind; all classes are 0 to 2."""
    return (mlp(), randn(4, 5)) if request.param == "table" else (cnn(), randn(4, 3, 10, 10))


@pytest.fixture(params=EXPLAINERS)
def explainer(request: pytest.FixtureRequest) -> Iterator[Callable[..., Tensor]]:
    """Each explainer with few steps; those of a linear network may say that they met no ReLU."""
    options = FEW.get(request.param, {})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="network called no ReLU")
        yield lambda *args: EXPLAINERS[request.param](*args, **options)


# Closed forms


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight)).double()
    layer.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return layer


def test_gradient_of_a_linear_network_is_its_weight() -> None:
    network = linear([[2.0, -1.0], [0.5, 3.0]], [1.0, 7.0])
    x = torch.tensor([[3.0, 5.0], [1.0, 1.0]], dtype=torch.float64)
    assert gradient(network, x, torch.tensor([0, 1])).tolist() == [[2.0, -1.0], [0.5, 3.0]]
    assert gradient_x_input(network, x, torch.tensor([0, 1])).tolist() == [[6.0, -5.0], [0.5, 3.0]]
    assert gradient(network, x, 1).tolist() == [[0.5, 3.0], [0.5, 3.0]]


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_integrated_gradients_of_a_linear_network_is_weight_times_distance_from_the_baseline(num_steps: int) -> None:
    network = linear([[2.0, -1.0]], [1.0])
    x = torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(
        integrated_gradients(network, x, num_steps=num_steps), torch.tensor([[6.0, -5.0]], dtype=torch.float64)
    )
    baseline = torch.tensor([1.0, 1.0], dtype=torch.float64)
    attribution = integrated_gradients(network, x, baseline=baseline, num_steps=num_steps)
    torch.testing.assert_close(attribution, torch.tensor([[4.0, -4.0]], dtype=torch.float64))


def test_integrated_gradients_of_a_polynomial_is_exact_up_to_twice_the_number_of_nodes() -> None:
    # Along the path of x1^2 x2 the gradient is quadratic: by hand (2/3, 1/3) of 3^2 * 5, and two nodes are enough.
    network = lambda batch: batch[:, 0] ** 2 * batch[:, 1]  # noqa: E731
    x = torch.tensor([[3.0, 5.0]], dtype=torch.float64)
    wanted = torch.tensor([[30.0, 15.0]], dtype=torch.float64)
    torch.testing.assert_close(integrated_gradients(network, x, num_steps=2), wanted, **TIGHT)
    assert not torch.allclose(integrated_gradients(network, x, num_steps=1), wanted, rtol=0.01)


def test_smoothgrad_of_a_square_is_its_slope_plus_the_mean_noise() -> None:
    x = torch.tensor([[1.0, 3.0]], dtype=torch.float64)  # range 2
    network = lambda batch: (batch**2).sum(1)  # noqa: E731
    unit = torch.randn((8, 2), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = smoothgrad(network, x, num_samples=8, noise=0.25, seed=4)
    torch.testing.assert_close(found, 2 * (x + 0.25 * 2 * unit.mean(0)), **TIGHT)
    torch.testing.assert_close(smoothgrad(network, x, noise=0), gradient(network, x), **TIGHT)


# Slow oracles


def test_gradient_equals_one_example_at_a_time(case: tuple[nn.Module, Tensor]) -> None:
    network, x = case
    torch.testing.assert_close(gradient(network, x, TARGET), oracles.loop_gradient(network, x.clone(), TARGET), **TIGHT)


@pytest.mark.parametrize("baseline", ["black", "mean"])
@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 1000])
def test_integrated_gradients_equals_one_example_and_step_at_a_time(
    case: tuple[nn.Module, Tensor], baseline: str, chunk: int | None
) -> None:
    network, x = case
    start = torch.zeros_like(x) if baseline == "black" else x.mean(0).expand_as(x)
    wanted = oracles.loop_integrated_gradients(network, x, TARGET, start, num_steps=6)
    found = integrated_gradients(network, x, TARGET, baseline=baseline, num_steps=6, chunk=chunk)
    torch.testing.assert_close(found, wanted, **TIGHT)


@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_smoothgrad_equals_one_example_and_copy_at_a_time(case: tuple[nn.Module, Tensor], chunk: int | None) -> None:
    network, x = case
    generator = torch.Generator().manual_seed(9)
    unit = torch.randn((6, *x.shape[1:]), generator=generator, dtype=torch.float64)
    wanted = oracles.loop_smoothgrad(network, x, TARGET, 0.2, unit)
    torch.testing.assert_close(
        smoothgrad(network, x, TARGET, num_samples=6, noise=0.2, seed=9, chunk=chunk), wanted, **TIGHT
    )


@pytest.mark.parametrize("name", ["IntegratedGradients", "Saliency", "DeepLift"])
def test_a_captum_method_as_explainer_equals_captum(name: str, case: tuple[nn.Module, Tensor]) -> None:
    attr = pytest.importorskip("captum.attr")
    network, x = case
    if name == "DeepLift":  # its hooks refuse in-place ReLUs
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
    method = getattr(attr, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = method(network).attribute(x.clone(), target=TARGET).detach()
    explainer = from_captum(method)
    torch.testing.assert_close(explainer(network, x, TARGET), wanted, **TIGHT)
    torch.testing.assert_close(from_captum(name)(network, x, TARGET), wanted, **TIGHT)
    assert explainer.__name__ == f"captum_{name}"


@pytest.mark.parametrize("squeeze", [False, True])
def test_captum_explains_the_one_output_of_a_regression(squeeze: bool) -> None:
    pytest.importorskip("captum.attr")
    network = ready(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1), *[nn.Flatten(0)] * squeeze))
    x = randn(4, 5)
    wanted = integrated_gradients(network, x, num_steps=20)
    found = from_captum("IntegratedGradients", multiply_by_inputs=True)(network, x, n_steps=20)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)  # Captum rounds its weights to float32
    assert from_captum("DeepLift")(network, x).shape == x.shape


# Integrated Gradients: baselines and completeness


def test_the_completeness_gap_falls_with_the_number_of_steps(case: tuple[nn.Module, Tensor]) -> None:
    network, x = case
    gaps = []
    for num_steps in (2, 16, 128):
        attribution = integrated_gradients(network, 3 * x, TARGET, num_steps=num_steps, baseline="mean")
        gaps.append(completeness_gap(network, 3 * x, attribution, TARGET, baseline="mean").abs().max().item())
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] > 0


def test_the_completeness_gap_is_the_surplus_of_each_example_by_hand() -> None:
    network = linear([[2.0, -1.0]], [1.0])
    x = torch.tensor([[3.0, 5.0], [1.0, 0.0]], dtype=torch.float64)
    attribution = torch.tensor([[6.0, -5.0], [2.0, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(completeness_gap(network, x, attribution), torch.tensor([0.0, 0.5], dtype=torch.float64))


def test_baselines_by_name_are_zeros_the_mean_of_the_call_and_a_blur() -> None:
    x = randn(3, 2, 16, 16)
    assert torch.equal(make_baseline(None, x), torch.zeros_like(x))
    assert torch.equal(make_baseline("black", x), torch.zeros_like(x))
    torch.testing.assert_close(make_baseline("mean", x)[1], (x[0] + x[1] + x[2]) / 3)
    tensor = randn(2, 1, 1, seed=1)
    assert torch.equal(make_baseline(tensor, x)[2, :, 5, 5], tensor[:, 0, 0])
    flat = torch.full((1, 1, 8, 8), 0.7, dtype=torch.float64)
    torch.testing.assert_close(make_baseline("blurred", flat), flat)


def test_the_blurred_baseline_equals_a_gaussian_filter_of_an_eighth_of_the_longer_side() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = randn(2, 3, 16, 12)
    wanted = ndimage.gaussian_filter(x.numpy(), sigma=(0, 0, 2, 2), mode="nearest", truncate=3)
    torch.testing.assert_close(make_baseline("blurred", x), torch.from_numpy(wanted), **TIGHT)


def test_rows_of_a_pass_follow_the_size_of_an_example() -> None:
    assert rows_per_pass(torch.zeros(1, 3, 32, 32), None) == 64
    assert rows_per_pass(torch.zeros(1, 8), None) == 4096
    assert rows_per_pass(torch.zeros(1, 3, 224, 224), None) == 8
    assert rows_per_pass(torch.zeros(1, 8), 5) == 5


# What every explainer promises


def test_an_attribution_is_shaped_like_x_and_has_no_graph(
    explainer: Callable[..., Tensor], case: tuple[nn.Module, Tensor]
) -> None:
    network, x = case
    for dtype in (torch.float32, torch.float64):
        attribution = explainer(network.to(dtype), x.to(dtype), TARGET)
        assert attribution.shape == x.shape
        assert attribution.dtype == dtype
        assert not attribution.requires_grad
        assert torch.isfinite(attribution).all()
        assert attribution.abs().max() > 1e-3


def test_an_explainer_leaves_network_x_and_the_global_generators_as_they_were(
    explainer: Callable[..., Tensor], case: tuple[nn.Module, Tensor]
) -> None:
    network, x = case
    next(network.parameters()).requires_grad_(False)
    bias = next(itertools.islice(network.parameters(), 1, None))
    bias.grad = torch.ones_like(bias)
    x.requires_grad_()
    before, x_before = copy.deepcopy(network), x.detach().clone()
    states = torch.get_rng_state(), pickle.dumps(np.random.get_state())  # noqa: NPY002 - it must stay as it is
    explainer(network, x, TARGET)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert pickle.dumps(np.random.get_state()) == states[1]  # noqa: NPY002
    assert x.requires_grad
    assert x.grad is None
    assert torch.equal(x, x_before)
    for old, new in zip(before.parameters(), network.parameters(), strict=True):
        assert torch.equal(old, new)
        assert old.requires_grad == new.requires_grad
        assert new.grad is None or (new is bias and torch.equal(new.grad, torch.ones_like(new)))
    for old_buffer, new_buffer in zip(before.buffers(), network.buffers(), strict=True):
        assert torch.equal(old_buffer, new_buffer)
    for module in network.modules():
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_a_network_that_writes_into_its_input_is_explained_like_one_that_does_not(
    explainer: Callable[..., Tensor],
) -> None:
    tail = ready(lambda: nn.Linear(5, 3))
    x, baseline = randn(4, 5), randn(5, seed=1)
    before, start = x.clone(), baseline.expand(4, 5).clone()
    writing, plain = nn.Sequential(nn.ReLU(inplace=True), tail), nn.Sequential(nn.ReLU(), tail)
    assert torch.equal(explainer(writing, x, TARGET), explainer(plain, x, TARGET))
    path = {"baseline": start, "num_steps": 4}
    attribution = integrated_gradients(writing, x, TARGET, **path)
    assert torch.equal(attribution, integrated_gradients(plain, x, TARGET, **path))
    gap = completeness_gap(writing, x, attribution, TARGET, baseline=start)
    assert torch.equal(gap, completeness_gap(plain, x, attribution, TARGET, baseline=start))
    assert torch.equal(x, before)
    assert torch.equal(start, baseline.expand(4, 5))


def test_captum_leaves_x_alone_even_if_the_network_writes_into_its_input() -> None:
    pytest.importorskip("captum.attr")
    tail = ready(lambda: nn.Linear(5, 3))
    x = randn(4, 5)
    before = x.clone()
    from_captum("FeatureAblation")(nn.Sequential(nn.ReLU(inplace=True), tail), x, TARGET)
    assert torch.equal(x, before)


def test_an_explainer_gives_the_same_inside_no_grad_and_inference_mode(
    explainer: Callable[..., Tensor], case: tuple[nn.Module, Tensor]
) -> None:
    network, x = case
    wanted = explainer(network, x, TARGET)
    with torch.no_grad():
        assert torch.equal(explainer(network, x, TARGET), wanted)
    with torch.inference_mode():
        assert torch.equal(explainer(network, x * 1, TARGET), wanted)


def test_explaining_examples_in_chunks_equals_explaining_them_at_once(
    explainer: Callable[..., Tensor], case: tuple[nn.Module, Tensor]
) -> None:
    network, x = case
    parts = [explainer(network, x[:1], TARGET[:1]), explainer(network, x[1:], TARGET[1:])]
    torch.testing.assert_close(torch.cat(parts), explainer(network, x, TARGET), **TIGHT)


def test_a_regression_network_needs_no_target_and_may_return_one_axis(explainer: Callable[..., Tensor]) -> None:
    network = ready(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)))
    x = randn(4, 5)
    wanted = explainer(network, x, torch.zeros(4, dtype=torch.int64))
    assert torch.equal(explainer(network, x), wanted)
    assert torch.equal(explainer(lambda batch: network(batch).squeeze(1), x), wanted)


def test_one_int_is_the_target_of_all_examples(
    explainer: Callable[..., Tensor], case: tuple[nn.Module, Tensor]
) -> None:
    network, x = case
    assert torch.equal(explainer(network, x, 2), explainer(network, x, torch.full((4,), 2)))


def test_a_linear_layer_in_training_mode_is_explained(explainer: Callable[..., Tensor]) -> None:
    assert explainer(linear([[2.0, -1.0]], [1.0]).train(), randn(2, 2)).shape == (2, 2)


# Bad input

BAD: dict[str, tuple[Callable[[Callable[..., Tensor]], Any], type[Exception], str]] = {
    "numpy": (lambda e: e(mlp(), np.zeros((2, 5)), 0), TypeError, "x is a ndarray; pass a torch tensor"),
    "uint8": (lambda e: e(cnn(), torch.zeros(2, 3, 10, 10, dtype=torch.uint8), 0), TypeError, "divide by 255"),
    "int64": (lambda e: e(mlp(), torch.zeros(2, 5, dtype=torch.int64), 0), TypeError, "floating point"),
    "one axis": (lambda e: e(mlp(), randn(5), 0), ValueError, r"shape \(5,\).*x\[None\]"),
    "empty": (lambda e: e(mlp(), randn(0, 5), 0), ValueError, "at least one example"),
    "NaN": (
        lambda e: e(mlp(), torch.cat([randn(2, 5), torch.full((1, 5), torch.nan)]), 0),
        ValueError,
        "5 NaN and 0 infinite values, the first in example 2",
    ),
    "infinite": (lambda e: e(mlp(), randn(2, 5) / 0, 0), ValueError, "0 NaN and 10 infinite"),
    "no target": (lambda e: e(mlp(), randn(2, 5)), ValueError, "network has 3 outputs; pass one class per example"),
    "short target": (lambda e: e(mlp(), randn(4, 5), TARGET[:3]), ValueError, "target has 3 entries but x has 4"),
    "float target": (lambda e: e(mlp(), randn(4, 5), TARGET.double()), TypeError, r"float64.*target\.long"),
    "one-hot": (lambda e: e(mlp(), randn(3, 5), torch.eye(3).long()), ValueError, r"shape \(3, 3\); pass one class"),
    "named target": (lambda e: e(mlp(), randn(3, 5), "deer"), TypeError, "target is a str"),
    "class 3 of 3": (lambda e: e(mlp(), randn(4, 5), TARGET + 1), ValueError, "target 3 of example 1.*0 to 2"),
    "class -1": (lambda e: e(mlp(), randn(4, 5), -1), ValueError, "target -1 of example 0 is out of range"),
    "no network": (lambda e: e("mlp", randn(4, 5), 0), TypeError, "network is a str"),
    "tuple out": (lambda e: e(lambda x: (x, x), randn(4, 5), 0), TypeError, "network returned a tuple"),
    "rows out": (lambda e: e(lambda x: x.repeat(2, 1), randn(4, 5), 0), ValueError, r"\(8, 5\) for 4 examples"),
    "maps out": (lambda e: e(lambda x: x[..., None], randn(4, 5), 0), ValueError, r"\(4, 5, 1\) for 4 examples"),
    "dropout on": (
        lambda e: e(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)).double(), randn(4, 5), 0),
        ValueError,
        r"training mode.*layer 1 \(Dropout\).*eval\(\)",
    ),
    "batchnorm on": (
        lambda e: e(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double(), randn(4, 5), 0),
        ValueError,
        r"layer 0 \(BatchNorm1d\).*posterior\.sample",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error(what: str, explainer: Callable[..., Tensor]) -> None:
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call(explainer)


class Halved:
    """An attribution method in the manner of Captum whose map is not shaped like x."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        self.network = network

    def attribute(self, x: Tensor, target: Tensor) -> Tensor:
        return x[:, ::2]


BAD_OPTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "zero steps": (lambda: integrated_gradients(mlp(), randn(2, 5), 0, num_steps=0), ValueError, "num_steps is 0"),
    "half a step": (lambda: integrated_gradients(mlp(), randn(2, 5), 0, num_steps=1.5), TypeError, "whole number"),
    "zero chunk": (lambda: integrated_gradients(mlp(), randn(2, 5), 0, chunk=0), ValueError, "chunk is 0"),
    "blurred table": (
        lambda: integrated_gradients(mlp(), randn(2, 5), 0, baseline="blurred"),
        ValueError,
        "blurred baseline needs images",
    ),
    "unknown baseline": (
        lambda: integrated_gradients(mlp(), randn(2, 5), 0, baseline="blakc"),
        ValueError,
        "unknown baseline 'blakc'; known: black, blurred, mean",
    ),
    "baseline shape": (
        lambda: integrated_gradients(mlp(), randn(2, 5), 0, baseline=randn(4)),
        ValueError,
        "does not broadcast",
    ),
    "baseline NaN": (
        lambda: integrated_gradients(mlp(), randn(2, 5), 0, baseline=randn(5) / 0),
        ValueError,
        "baseline holds NaN or infinite",
    ),
    "gap of others": (lambda: completeness_gap(mlp(), randn(2, 5), randn(3, 5), 0), ValueError, "the same examples"),
    "negative noise": (lambda: smoothgrad(mlp(), randn(2, 5), 0, noise=-0.1), ValueError, "noise is -0.1"),
    "noise NaN": (lambda: smoothgrad(mlp(), randn(2, 5), 0, noise=float("nan")), ValueError, "finite"),
    "noise word": (lambda: smoothgrad(mlp(), randn(2, 5), 0, noise="low"), TypeError, "pass a number"),
    "no samples": (lambda: smoothgrad(mlp(), randn(2, 5), 0, num_samples=0), ValueError, "num_samples is 0"),
    "negative seed": (lambda: smoothgrad(mlp(), randn(2, 5), 0, seed=-1), ValueError, "seed is -1"),
    "no gradient": (lambda: gradient(lambda x: x.detach(), randn(2, 5), 0), ValueError, "does not depend on x"),
    "not captum": (lambda: from_captum(nn.Linear), TypeError, "not an attribution class"),
    "captum name": (lambda: from_captum("DeepLyft"), ValueError, "unknown Captum method 'DeepLyft'"),
    "captum shape": (
        lambda: from_captum(Halved)(nn.Identity(), randn(2, 5), 0),
        ValueError,
        r"Halved returned \(2, 3\), not an attribution shaped like x \(2, 5\)",
    ),
}


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_a_bad_option_is_one_clear_error(what: str) -> None:
    call, error, message = BAD_OPTIONS[what]
    with pytest.raises(error, match=message):
        call()


def test_without_captum_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match="pip install captum"):
        from_captum("DeepLift")


def an_explainer(network, x, target=None, *, weight=None):
    return x


@pytest.mark.parametrize(
    ("declare", "error", "message"),
    [
        (lambda: declared(an_explainer), TypeError, "with brackets"),
        (lambda: declared(per_example="weight"), TypeError, "a list of names"),
        (lambda: declared(per_example=["wieght"])(an_explainer), TypeError, "names ['wieght'], which an_explainer"),
        (lambda: declared("gradient")(an_explainer), ValueError, "'gradient' is that of another explainer"),
    ],
)
def test_what_an_explainer_cannot_mean_is_refused_where_it_is_declared(declare, error, message):
    before = dict(EXPLAINERS)
    with pytest.raises(error, match=re.escape(message)):
        declare()
    assert before == EXPLAINERS


def test_explain_takes_the_name_of_an_explainer():
    draws, x = DeepEnsemble([mlp()]).sample(), randn(2, 5)
    assert torch.equal(explain(draws, "gradient", x, 1).values, explain(draws, gradient, x, 1).values)
    with pytest.raises(ValueError, match="explainer 'gradiant'"):
        explain(draws, "gradiant", x, 1)


def test_an_explainer_of_ones_own_is_known_wherever_a_name_is_taken(monkeypatch):
    monkeypatch.delitem(EXPLAINERS, "mine", raising=False)
    monkeypatch.setitem(EXPLAINERS, "mine", an_explainer)
    draws, x = DeepEnsemble([mlp(), mlp()]).sample(), randn(2, 5)
    assert torch.equal(explain(draws, "mine", x, 1).values[0], x)
    assert torch.equal(attribute_uncertainty(draws, x, explainer="mine"), x)
    assert ua_backprop(draws, x, explainer="mine").shape == x.shape
