"""Slips of one sign, one count or one constant that every other test lets pass, each with what it would cost."""

from __future__ import annotations

import inspect
import io
import math
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from core_networks import EXACT, FunctionalDropout, assert_fast, randn, seeded, table_mlp
from skimage.segmentation import slic
from torch import Tensor, nn, tensor
from torch.nn import functional as F
from torch.testing import assert_close

from xuqlib import (
    DeepEnsemble,
    Draws,
    ExplanationDistribution,
    Flipout,
    Laplace,
    MCDropConnect,
    MCDropout,
    completeness_gap,
    explain,
    from_captum,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
    ua_backprop,
    ua_replacement,
)
from xuqlib.checks import (
    check_choice,
    check_count,
    check_examples,
    check_flag,
    check_logits,
    check_noise,
    check_number,
    check_seed,
    check_target,
    check_tensor,
    is_finite,
)
from xuqlib.device import check_device, sent
from xuqlib.device import device as default_device
from xuqlib.explainers.baselines import make_baseline
from xuqlib.explainers.declaring import Declared
from xuqlib.explainers.declaring import explainer as declared
from xuqlib.explainers.fullgrad import NOT_COMPLETE, FullGradTerms, LogitGraph, fullgrad, fullgrad_terms, saliency
from xuqlib.explainers.gradients import _quadrature
from xuqlib.explainers.layer_maps import ChainGraph, _stretching
from xuqlib.explainers.lime import lime_fit
from xuqlib.fast.chain import DRAWS_KEPT, Chain
from xuqlib.fast.engine import Engine
from xuqlib.fast.layers import Execution
from xuqlib.fast.vmapped import OneByOne
from xuqlib.inputs import Inputs
from xuqlib.metrics.deletion import deletion, insertion, perturbed, pixel_order
from xuqlib.moments import Moments
from xuqlib.outputs import Output, are_probabilities, as_output
from xuqlib.path import Path, along, rows_per_pass
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.draws import stacked, trainable_copy
from xuqlib.posteriors.fixing import RandomNetworkError, _is_random, _on_device, count_examples, seed_of, tensors_in
from xuqlib.posteriors.kinds import (
    RandomLayer,
    _may_move_examples,
    drops,
    drops_by_itself,
    have_same_tensors,
    is_fixed_norm,
    is_known,
    is_sure,
    is_zero_padded,
    kind_of,
    layers_of,
)
from xuqlib.posteriors.random_weights import FlipoutLayer
from xuqlib.posteriors.trial import _agree
from xuqlib.posteriors.unrolled import dropout_inside
from xuqlib.study.judging.blurring import default_shares, greedy_order
from xuqlib.study.judging.coverage import scaled_maps
from xuqlib.study.judging.scores import standard_errors
from xuqlib.superpixels import check_segments, superpixels, windows
from xuqlib.ua_backprop import SETTINGS, class_maps, logit_coefficients, spread_shares
from xuqlib.uncertainty import (
    Uncertainties,
    UncertaintyOf,
    attribute_uncertainty,
    decompose,
    logits_of,
    uncertainties,
    uncertainty_shares,
)


def of(values: list) -> ExplanationDistribution:
    return ExplanationDistribution(torch.as_tensor(values, dtype=torch.float64))


def linear(weight: list[list[float]]) -> nn.Module:
    """Logits weight @ x, (class, feature), for tables and pictures."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=torch.float64)
    layer.weight.data = tensor(weight, dtype=torch.float64)
    return nn.Sequential(nn.Flatten(), layer).eval()


# Statistics of draws


def test_the_ratio_cv_adds_sizes_so_that_positive_and_negative_pixels_do_not_cancel_to_no_signal():
    e = of([[[2.0, -2.0]], [[4.0, -4.0]]])  # means 3 and -3, stds 1 and 1
    assert e.cv("ratio").tolist() == [pytest.approx(2 / 6)]


def test_the_signal_of_a_negative_pixel_is_its_size_so_that_evidence_against_a_class_is_no_noise():
    assert of([[[-1.0, 1.0]], [[-3.0, 3.0]]]).snr().tolist() == [[2.0, 2.0]]


def test_the_error_of_a_std_by_moments_divides_by_2_n_minus_2_or_few_draws_look_surer_than_they_are():
    values = tensor([[[0.0]], [[2.0]]])  # std sqrt(2) with divisor 1, over sqrt(2 (2 - 1))
    e = ExplanationDistribution(None, Moments.over(values))
    assert e.standard_error("std").item() == pytest.approx(1.0)


def test_a_std_without_a_degree_of_freedom_is_nan_and_never_infinite_or_zero():
    e = of([[[0.0, 1.0]], [[2.0, 1.0]]])
    assert e.std(correction=1).tolist() == [[pytest.approx(math.sqrt(2)), 0.0]]
    for correction in (2, 3):
        assert e.std(correction=correction).isnan().all()


# Explainers


class Doubling:
    """As Captum's perturbation methods do, it returns numbers of another precision than it was given."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attribute(self, x: Tensor, target: Tensor) -> Tensor:
        return 2 * x.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_of_captum_has_the_dtype_of_x_or_stacks_of_explainers_could_not_be_compared(dtype):
    x = randn(2, 3, dtype=dtype)
    found = from_captum(Doubling)(linear([[1.0, 2.0, 3.0]]).to(dtype), x)
    assert found.dtype == dtype and torch.equal(found, 2 * x)


def spread_of_a_term(span: float) -> Tensor:
    """Minmax map, (2, 2), of a network in float32 one of whose terms reaches from 0 to `span`; x itself is 0."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(4, 2, bias=False)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1.0), network[0].bias.fill_(1.0)
        network[2].weight.copy_(tensor([[0.0, 0.25, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]]) * span)
    return fullgrad(network, torch.zeros(1, 1, 2, 2), 0)[0, 0]


def test_a_term_is_flat_only_where_its_span_cannot_be_divided_by_or_faint_layers_would_leave_the_map():
    assert_close(spread_of_a_term(1e-30), tensor([[0.0, 0.25], [0.5, 1.0]]))
    assert torch.equal(spread_of_a_term(1e-40), torch.zeros(2, 2)), "1 / 1e-40 is infinite in float32"


def stepped(height: float):
    """A logit of 1,000 that rises by `height` where the first feature is positive, in float32."""
    return lambda x: 1000 + height * (x[:, 0] > 0).to(x)


def test_lime_explains_a_change_of_many_last_digits_and_calls_one_of_few_a_constant_or_it_would_explain_rounding():
    x = torch.zeros(1, 2)
    # 32 last digits of 1,000 are 0.0038; the logit of half of the copies is higher, which is a std of half a step.
    few, many = (lime_fit(stepped(height), x, num_samples=200) for height in (1e-3, 2e-2))
    assert few.r2.isnan().all() and torch.equal(few.attribution, torch.zeros(1, 2))
    assert many.r2.item() > 0.5 and many.attribution[0, 0] > 0.001 > many.attribution[0, 1].abs()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_fast_path_sums_a_path_of_any_number_of_steps_or_its_first_layer_would_see_steps_as_examples(steps):
    draws, x, target = MCDropout(seeded(table_mlp)).sample(3, seed=1), randn(4, 5), tensor([0, 2, 1, 1])
    for explainer, options in (
        (integrated_gradients, {"num_steps": steps}),
        (smoothgrad, {"num_samples": steps, "noise": 0.3}),
    ):
        with assert_fast():
            found = explain(draws, explainer, x, target, **options).values
        assert_close(found, torch.stack([explainer(draw, x, target, **options) for draw in draws]), **EXACT)


# Posteriors and outputs


@pytest.mark.parametrize("posterior", [Flipout, MCDropConnect])
def test_layers_of_one_shape_have_noise_of_their_own_or_their_weights_would_move_together(posterior):
    network = nn.Sequential(nn.Linear(60, 60, bias=False), nn.Linear(60, 60, bias=False))
    for layer in network:
        nn.init.ones_(layer.weight)
    for draw in posterior(network, placement="all").sample(2, seed=1):
        weights = [value for name, value in draw.state_dict().items() if name.endswith("layer.weight")]
        first, second = (weight - weight.mean() for weight in weights)
        correlation = (first * second).mean() / (first.std() * second.std())
        assert abs(correlation) < 5 / 60  # five standard errors of the correlation of 3,600 pairs


def constant(*answer: float) -> nn.Module:
    """A network that answers the same whatever x, (N, 2), is."""
    layer = nn.Linear(2, len(answer), dtype=torch.float64)
    layer.weight.data.zero_(), layer.bias.data.copy_(tensor(answer, dtype=torch.float64))
    return layer.eval()


def test_rows_that_nearly_sum_to_one_are_logits_or_a_user_could_not_explain_them():
    with pytest.raises(ValueError, match="answers are probabilities"):
        explain([constant(0.4, 0.6)], gradient_x_input, randn(3, 2))
    found = explain([constant(0.4, 0.605)], gradient_x_input, randn(3, 2))
    assert torch.equal(found.values, torch.zeros(1, 3, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="rows are no probabilities"):
        decompose(tensor([[[0.4, 0.605]]]), output="probabilities")


# Measures of the study


@pytest.mark.parametrize("block", [1, 2, 3])
def test_maps_of_every_block_explain_the_targets_of_their_own_examples(block):
    x, target = tensor([[1.0, 1.0]] * 3, dtype=torch.float64), tensor([0, 1, 1])
    found = scaled_maps([linear([[1.0, 3.0], [-1.0, 0.0]])], gradient_x_input, x, target, block=block)
    assert found.tolist() == [[[0.5, 1.5], [-2.0, 0.0], [-2.0, 0.0]]]  # weight * x over its mean size


def test_a_standard_error_of_two_resamples_divides_by_one_or_every_error_of_the_study_is_too_small():
    logits = F.one_hot(tensor([0, 0, 0, 1, 1, 0, 1]), 2).double()[None]
    found = standard_errors(logits, torch.zeros(7, dtype=torch.int64), num_resamples=2, seed=2)["accuracy"]
    # Two accuracies k / 7: their std is |difference| / sqrt(2), which for a divisor of 2 would be |difference| / 2.
    sevenths = found * math.sqrt(2) * 7
    assert sevenths == pytest.approx(round(sevenths)) and round(sevenths) > 0


def test_the_fine_shares_of_a_curve_go_up_to_the_last_whole_pixel_within_five_percent():
    shares = default_shares(64).tolist()  # three pixels are 4.7 %
    assert shares[:6] == [0, 1 / 64, 0.02, 2 / 64, 3 / 64, 0.05]
    assert shares[-1] == 1 and len(shares) == 25  # then every 5 % from 10 % on


class Counting(nn.Module):
    """Two classes, of which the first gains with each pixel; counts its calls with a graph."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign, self.calls = sign, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += torch.is_grad_enabled()
        first = self.sign * x.flatten(1).sum(1, keepdim=True)
        return torch.cat([first, -first], 1)


@pytest.mark.parametrize(("budget", "wanted"), [(0.29, 29), (0.299, 29), (0.001, 1)])
def test_the_greedy_order_looks_once_for_every_whole_pixel_of_its_budget_and_loses_none_to_rounding(budget, wanted):
    assert int(0.29 * 100) == 28, "the product is 28.999999999999996"
    draws = Draws([Counting(1.0), Counting(-1.0)])
    order = greedy_order(draws, randn(1, 1, 10, 10).sigmoid() / 100, budget=budget, fill="black")
    assert order.sort(1).values.tolist() == [list(range(100))]
    assert draws[0].calls == wanted


# Slips that mutants made, and no test noticed


def test_draws_that_are_seen_with_other_inputs_move_with_all_their_weights_or_they_would_fail_on_a_gpu():
    given = (randn(3, 2), randn(3, 2))
    draws, x = Draws([Sum().eval()]).seen(given)
    assert draws.to(torch.float32)(x.float()).dtype == torch.float32


class Sum(nn.Module):
    """Two classes from two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2, dtype=torch.float64)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.one(a) + self.one(b).to(a)


def test_a_map_of_captum_is_the_same_for_examples_that_want_a_gradient_and_leaves_them_none():
    network, x = linear([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), randn(2, 3)
    wanting = x.clone().requires_grad_()
    found = from_captum("InputXGradient")(network, wanting, 0)
    assert torch.equal(found, x * tensor([1.0, 2.0, 3.0]).double()) and not found.requires_grad
    assert wanting.grad is None


def test_a_baseline_that_wants_a_gradient_leaves_no_graph_behind_the_map_or_memory_would_grow():
    baseline = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    network, x = linear([[1.0, 2.0, 3.0]]), randn(2, 3)
    found = integrated_gradients(network, x, baseline=baseline, num_steps=2)
    assert not found.requires_grad
    assert_close(found, x * tensor([1.0, 2.0, 3.0]).double(), **EXACT)


@pytest.mark.parametrize(("name", "psi", "normalise"), [("paper", "minmax", "softmax"), ("recommended", "raw", "sum")])
def test_the_named_settings_of_ua_backprop_are_the_published_ones_or_numbers_of_papers_would_not_be_repeated(
    name, psi, normalise
):
    draws = Draws([linear([[0.0, 6.0], [6.0, 0.0], [0.0, 0.1]]), linear([[0.0, 5.0], [4.0, 0.0], [0.0, 0.2]])])
    x = tensor([[0.2, 2.0], [1.0, 1.1]], dtype=torch.float64)  # the first so sure that tau1 matters
    spelled: dict[str, Any] = {"coefficients": "softmax", "psi": psi, "normalise": normalise, "tau1": 1e-5}
    spelled |= {} if normalise == "sum" else {"tau2": 1.0}
    found = ua_backprop(draws, x, setting=name)
    assert torch.equal(found, ua_backprop(draws, x, **spelled))
    assert not torch.allclose(found[:1], ua_backprop(draws, x[:1], **spelled | {"tau1": 2e-5}), rtol=1e-4)


def test_draws_with_and_without_masks_are_each_explained_as_they_are_where_no_chain_can_tell():
    network, x = seeded(FunctionalDropout), randn(3, 5)
    mixed = Draws([*MCDropout(network).sample(1, seed=1), *DeepEnsemble([network]).sample()])
    for draws in (mixed, mixed[::-1]):
        found = explain(draws, integrated_gradients, x, 1, num_steps=2).values
        assert_close(found, torch.stack([integrated_gradients(draw, x, 1, num_steps=2) for draw in draws]), **EXACT)


@pytest.mark.parametrize(("classes", "wanted"), [(1, [1.0, 0.0, 0.0, 1.0]), (2, [1.0, 0.0, 1.0, 1.0])])
def test_a_segmentation_is_explained_where_the_class_is_the_most_probable_or_maps_would_show_the_background(
    classes, wanted
):
    x = tensor([[[[2.0, -3.0], [-1.0, 4.0]]]], dtype=torch.float64)
    network = nn.Conv2d(1, classes, 1, dtype=torch.float64).eval()
    network.weight.data.fill_(1.0), network.bias.data.zero_()
    if classes == 2:  # against a class whose logit is -2 everywhere: more than -3, less than -1
        network.weight.data[1], network.bias.data[1] = 0.0, -2.0
    found = explain([network], gradient_x_input, x, 0, output="segmentation").values
    assert_close(found.flatten(), tensor(wanted).double() * x.flatten(), **EXACT)


def test_the_jackknife_never_takes_the_root_of_a_rounding_below_zero_or_steady_pixels_would_have_no_error():
    # Without the first draw nothing spreads: its square less that of the mean rounds to below 0 for half of these.
    values = randn(2, 1, 200)[[0, 1, 1]]
    found = ExplanationDistribution(values).standard_error("std")
    left = torch.stack(
        [values[[number for number in range(3) if number != gone]].std(0, correction=0) for gone in range(3)]
    )
    assert_close(found, (2 * left.var(0, correction=0)).sqrt(), rtol=1e-6, atol=1e-9)


def test_a_cv_that_is_undefined_on_half_of_the_pixels_is_no_finding_since_half_is_not_most():
    size = 1 + torch.arange(8.0).flip(0)
    for faint, wanted in ((4, 0), (5, 1)):
        values = size * torch.where(torch.arange(8) < faint, 1e-3, 1.0) * (1 + 0.1 * randn(12, 1, 8))
        assert (
            sum("no coefficient of variation" in told for told in ExplanationDistribution(values).diagnose()) == wanted
        )


class Sized(nn.Module):
    """A network with dropout, no chain of layers, that notes how many rows it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.drop, self.line = nn.Dropout(0.4), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.line(self.drop(x).tanh())


def test_a_pass_of_draws_side_by_side_holds_a_bounded_number_of_rows_or_memory_would_grow_with_examples_and_steps():
    network = Sized()
    draws, x = MCDropout(network).sample(2, seed=1), randn(300, 5, dtype=torch.float32)
    explain(draws, integrated_gradients, x, 0, num_steps=32)
    sizes = [size for draw in draws for module in draw.modules() for size in getattr(module, "sizes", [])]
    assert max(sizes) <= 2 * 4096 < 300 * 32  # draws that fill half a pass or more are evaluated one by one


def test_a_chunk_is_the_most_rows_in_one_pass_of_an_explainer_examples_times_steps():
    sizes: list[int] = []

    def network(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x.tanh()

    x = randn(3, 4)
    found = integrated_gradients(network, x, 1, num_steps=32, chunk=10)
    assert max(sizes) <= 10
    assert_close(found, integrated_gradients(network, x, 1, num_steps=32), **EXACT)


def test_coefficients_of_many_classes_are_held_for_few_examples_at_a_time_or_a_thousand_classes_would_need_gigabytes(
    monkeypatch,
):
    module, sizes = sys.modules["xuqlib.ua_backprop"], []
    whole = module.logit_coefficients
    monkeypatch.setattr(module, "logit_coefficients", lambda *args: sizes.append(whole(*args).numel()) or whole(*args))
    draws = Draws([linear([[float(label)] for label in range(300)]), linear([[1.0]] * 300)])
    x = randn(100, 1)
    assert_close(ua_backprop(draws, x).sum(1), uncertainties(draws, x).epistemic, **EXACT)
    assert sum(sizes) == 2 * 100 * 300**2 and max(sizes) <= 2**23


def test_a_network_in_training_mode_is_told_to_be_one_or_its_user_would_look_for_a_random_forward():
    with pytest.raises(ValueError, match="network is in training mode, so its layer 0 .Dropout."):
        gradient(nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3)).double(), randn(2, 5), 0)
    with pytest.raises(TypeError, match="pass a module or function"):
        gradient(3, randn(2, 5), 0)


@pytest.mark.parametrize(("first", "how"), [(nn.Unflatten(1, (1, 5)), "chain"), (nn.Flatten(), "chain")])
def test_layers_that_keep_the_examples_first_stand_in_a_chain_or_draws_would_share_nothing_behind_them(first, how):
    network = seeded(lambda: nn.Sequential(first, nn.Flatten(), nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 2)))
    assert explain(MCDropout(network).sample(2), gradient, randn(3, 5), 0).how == how


@pytest.mark.parametrize(("channels", "compactness"), [(3, 10.0), (1, 0.1), (4, 0.1)])
def test_superpixels_weigh_colour_as_published_or_regions_would_be_a_grid_or_dust(channels, compactness):
    x = F.interpolate(randn(1, channels, 5, 5).sigmoid(), (24, 24), mode="bilinear")  # of noise all would be alike
    image = x[0].movedim(0, -1).numpy()
    labels, others = (
        slic(image, n_segments=9, compactness=weight, channel_axis=-1, start_label=0)
        for weight in (compactness, 2 * compactness)
    )
    wanted = np.unique(labels, return_inverse=True)[1].reshape(24, 24)
    assert torch.equal(superpixels(x, 9)[0], torch.from_numpy(wanted)) and (labels != others).any()


def test_what_is_explained_by_default_has_a_place_to_attribute_to_and_is_no_number_per_example():
    given = {"age": randn(3), "x": randn(3, 2)}
    found = explain([Named().eval()], gradient, given, 0).values
    assert_close(found, 3 * given["age"].expand(1, 2, 3).mT, **EXACT)


class Named(nn.Module):
    """Two classes, the first 3 age (x_0 + x_1)."""

    def forward(self, age: Tensor, x: Tensor) -> Tensor:
        first = 3 * age[:, None] * x.sum(1, keepdim=True)
        return torch.cat([first, -first], 1)


@pytest.mark.parametrize("last", [nn.ReLU, nn.Flatten, nn.Softplus])
def test_a_chain_may_end_in_any_layer_or_networks_that_end_in_an_activation_could_not_be_explained(last):
    network = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 2), last()))
    draws, x = MCDropout(network).sample(3, seed=1), randn(4, 5)
    e = explain(draws, integrated_gradients, x, 1, num_steps=2)
    assert e.how == "chain"
    assert_close(e.values, torch.stack([integrated_gradients(draw, x, 1, num_steps=2) for draw in draws]), **EXACT)


def test_a_hook_on_a_layer_inside_of_a_draw_sees_that_draw_alone_or_what_it_keeps_would_mix_draws():
    draws, x, rows = MCDropout(seeded(FunctionalDropout)).sample(3, seed=1), randn(4, 5), []
    inside = next(module for module in draws[0].modules() if isinstance(module, nn.Linear))
    inside.register_forward_hook(lambda layer, given, answer: rows.append(answer.tolist()))
    e = explain(draws, gradient, x, 1)
    assert e.how.startswith("loop: hooks") and rows
    assert_close(e.values, torch.stack([gradient(draw, x, 1) for draw in draws]), **EXACT)


def test_what_draws_share_is_run_once_however_many_passes_they_take_or_a_hundred_draws_would_cost_a_hundred_trunks(
    monkeypatch,
):
    whole, calls = F.max_pool2d_with_indices, []
    monkeypatch.setattr(F, "max_pool2d_with_indices", lambda *args: calls.append(len(args[0])) or whole(*args))
    layers = nn.Conv2d(3, 2, 3), nn.MaxPool2d(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(18, 2)
    x, counts = randn(2, 3, 32, 32, dtype=torch.float32), []
    for num_draws in (1, 6):  # 32 steps of two colour images fill a pass, so each draw has one of its own
        calls.clear()
        e = explain(MCDropout(nn.Sequential(*layers)).sample(num_draws), integrated_gradients, x, 0, num_steps=32)
        assert e.how == "chain"
        counts.append(calls.count(64))
    assert counts[0] == counts[1] > 0


def test_examples_that_were_made_in_inference_mode_are_explained_by_a_chain_that_begins_with_any_layer():
    network = seeded(lambda: nn.Sequential(nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 2)))
    draws = MCDropout(network).sample(2, seed=1)
    with torch.inference_mode():
        x = randn(3, 5)
    e = explain(draws, gradient, x, 1)
    assert e.how == "chain" and torch.is_inference(x)
    assert_close(e.values, explain(draws, gradient, x.clone(), 1).values, **EXACT)


def test_superpixels_of_numbers_that_are_none_are_refused_or_regions_would_be_made_of_nan():
    with pytest.raises(ValueError, match="x holds 1 NaN"):
        superpixels(randn(1, 3, 8, 8).index_fill(3, tensor([2]), math.nan)[:, :1, :1].expand(1, 1, 1, 8))
    with pytest.raises(TypeError, match="uint8"):
        superpixels(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_an_unknown_psi_is_told_with_the_known_ones_even_for_terms_without_maps():
    with pytest.raises(ValueError, match="unknown psi 'max'; known: minmax, raw, signed"):
        saliency(FullGradTerms(randn(2, 3)), "max")


def test_the_uncertainty_of_one_number_is_a_variance_that_can_be_attributed_like_one_of_classes():
    draws, x = Draws([linear([[1.0, 0.0]]), linear([[3.0, 0.0]])]), tensor([[2.0, 5.0], [-1.0, 1.0]]).double()
    assert UncertaintyOf(draws)(x).tolist() == [[4.0], [1.0]]  # of x and 3 x: x^2
    found = attribute_uncertainty(draws, x, explainer="gradient")
    assert found.tolist() == [[4.0, 0.0], [-2.0, 0.0]]


@pytest.mark.parametrize("std", ["initial_std", "prior_std"])
def test_a_gaussian_of_no_width_is_refused_or_its_divergence_would_be_infinite(std):
    with pytest.raises(ValueError, match=f"{std} is 0.0; pass a finite number above 0"):
        Flipout(nn.Linear(5, 3), **{std: 0})


# What a sample of slips got past every test before


def test_flipout_flips_signs_and_nothing_else_or_training_would_see_larger_noise():
    (layer,) = (each for each in Flipout(nn.Linear(1, 1)).network.modules() if isinstance(each, FlipoutLayer))
    layer.train()
    with torch.no_grad():
        seen = (
            layer(torch.ones(64, 1)) - layer.layer(torch.ones(64, 1))
        ).flatten()  # one noise under 64 pairs of signs
    assert len(seen.sign().unique()) == 2
    assert_close(seen.abs(), seen.abs()[:1].expand(64))


def test_a_path_that_is_always_dropped_is_no_randomness_or_draws_would_all_be_one_network():
    class PathDrop(nn.Module):
        def __init__(self, drop: float) -> None:
            super().__init__()
            self.drop = drop

        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(len(x), 1) > self.drop) if self.training else x

    assert drops_by_itself(PathDrop(0.5))
    assert not any(drops_by_itself(PathDrop(rate)) for rate in (0.0, 1.0, 1.5))


def test_a_clamp_leaves_what_it_is_given_or_a_skip_around_it_would_carry_its_result():
    line = linear([[1.0, -1.0]])
    x = tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)

    class Skips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = line(x)
            return h.clamp(min=0) + 3 * h

    assert_close(guided_backprop(Skips().eval(), x, 0), tensor([[3.0, -3.0], [4.0, -4.0]], dtype=torch.float64))


def test_a_negative_mean_is_no_negative_variance_or_half_of_all_regressions_would_be_refused():
    pairs = tensor([[-1.0, 0.5], [-2.0, 0.25]])
    Output("mean_variance").check(pairs)
    Output("mean_variance").check(pairs[:1])
    with pytest.raises(ValueError, match="a variance is negative"):
        Output("mean_variance").check(-pairs)


@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 1, 3)])
def test_one_example_is_tried_beside_another_and_not_itself_or_a_network_that_compares_would_pass(shape):
    class Compares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.flatten(1)
            return rows + (rows.argmax(1) != rows[:1].argmax(1)).sum()  # is another's largest number elsewhere?

    with pytest.raises(ValueError, match="changes with the others of its batch"):
        explain([Compares().eval()], gradient, tensor([3.0, 1.0, 2.0]).view(shape), 0)


def test_examples_too_large_for_a_pass_are_explained_one_at_a_time_or_memory_would_hold_two():
    sizes = []

    def explainer(network: Any, x: Tensor, target: Any) -> Tensor:
        sizes.append(len(x))
        return x

    network = nn.Sequential(nn.AdaptiveAvgPool1d(1)).eval()
    explain([network], explainer, torch.ones(3, 2**18 + 1), 0, progress=False)
    assert sizes == [1, 1, 1]


def test_the_divergence_of_flipout_is_that_of_gaussians_or_training_would_pull_weights_elsewhere():
    layer = FlipoutLayer(nn.Linear(3, 2), initial_std=0.3, prior_std=2.0)
    own = torch.distributions.Normal(layer.layer.weight, layer.std)
    wanted = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 2.0)).sum()
    assert_close(layer.kl(), wanted)


def test_an_answer_without_places_is_no_segmentation_or_sums_over_nothing_would_be_explained():
    with pytest.raises(ValueError, match=r"network returned shape \(2, 3\); .* places last"):
        explain([nn.Linear(4, 3).eval()], gradient, torch.rand(2, 4), 1, output="segmentation")


def test_a_class_beyond_the_last_is_told_in_words_behind_an_activation_too():
    chain = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2), nn.Tanh()).eval()
    with pytest.raises(ValueError, match="target 3 of example 0 is out of range; network has 3 outputs"):
        explain(MCDropout(chain).sample(3), gradient, torch.rand(2, 4), 3)


def test_the_temperature_of_logits_is_by_default_that_of_the_paper():
    default = inspect.signature(logit_coefficients).parameters["tau1"].default
    assert default == SETTINGS["paper"].tau1


def test_dropout_in_place_changes_what_it_is_given_or_a_network_that_goes_on_with_it_would_drop_nothing():
    class Goes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = 2 * x
            nn.functional.dropout(h, 0.5, training=True, inplace=True)
            return h

    answers = torch.stack([draw(torch.ones(1, 64)) for draw in MCDropout(Goes()).sample(2)])
    assert set(answers.unique().tolist()) == {0.0, 4.0}


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (7, 5)])
def test_a_term_larger_than_the_image_keeps_all_of_its_sum_or_places_between_would_be_lost(size):
    term = randn(1, 2, *size)
    whole = saliency(FullGradTerms(torch.zeros(1, 1, 4, 4, dtype=torch.float64), maps=(term,)), "signed")
    assert_close(whole.sum(), term.sum())
    sizes = saliency(FullGradTerms(torch.zeros(1, 1, 4, 4, dtype=torch.float64), maps=(term,)), "raw")
    wanted = F.interpolate(term.abs().sum(1, keepdim=True), (4, 4), mode="bilinear", antialias=True)
    assert_close(sizes, wanted[:, 0])


def test_a_network_that_asks_pythons_generator_leaves_it_as_it_was():
    class Rolls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random()

    before = random.getstate()
    with pytest.raises(ValueError, match="draws random numbers"):
        explain([Rolls().eval()], gradient, torch.rand(2, 3), 0)
    assert random.getstate() == before


def test_attention_that_takes_time_first_may_move_examples_or_its_draws_would_share_what_they_do_not():
    assert _may_move_examples(nn.MultiheadAttention(4, 1)) and _may_move_examples(nn.LSTM(2, 2, batch_first=True))
    assert not _may_move_examples(nn.MultiheadAttention(4, 1, batch_first=True))


def test_every_posterior_draws_by_seed_0_unless_another_is_given():
    network, x = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)), torch.rand(2, 3)
    for posterior in (MCDropout(network), MCDropConnect(network), Flipout(network)):
        assert torch.equal(posterior.sample(2)(x), posterior.sample(2, seed=0)(x))
        assert not torch.equal(posterior.sample(2)(x), posterior.sample(2, seed=1)(x))


def test_the_terms_of_fullgrad_have_no_graph_or_memory_would_grow_with_every_question():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Hardtanh(), nn.Flatten(), nn.Linear(8, 2)).eval()
    terms = fullgrad_terms(network, 10 * randn(2, 1, 4, 4, dtype=torch.float32), 0)
    assert len(terms.maps) == 2, "the convolution's, and that of what is cut off"
    assert not any(term.requires_grad for term in (terms.input, *terms.maps, *terms.dense))


def test_the_layer_of_token_ids_may_be_named_where_two_layers_embed_them():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.other, self.drop = nn.Embedding(7, 3), nn.Embedding(7, 3), nn.Dropout(0.1)

        def forward(self, ids: Tensor) -> Tensor:
            return self.drop(self.own(ids)).sum(1) + 10 * self.other(ids).sum(1)

    network, ids = Both().eval(), torch.arange(8).view(2, 4) % 7
    draws = DeepEnsemble([network, network]).sample()
    with pytest.raises(ValueError, match=r"name the layer by Inputs\(x, wrt=...\)"):
        explain(draws, gradient, ids, 0)
    for name, factor in (("own", 1.0), ("other", 10.0)):
        found = explain(draws, gradient, Inputs(ids, wrt=name), 0).mean()
        assert_close(found, factor * network.get_submodule(name)(ids)[..., 0].double())


def test_a_seed_is_any_number_that_generators_take():
    assert check_seed(2**63 - 1) == 2**63 - 1
    with pytest.raises(ValueError, match="seed is"):
        check_seed(2**63)


def test_the_channels_of_a_signal_are_no_channels_of_an_image_or_its_times_would_be_folded_away():
    assert not ExplanationDistribution(torch.zeros(2, 1, 3, 4)).has_channels  # (draw, example, channel, time)
    assert ExplanationDistribution(torch.zeros(2, 1, 3, 4, 4)).has_channels


def test_copies_of_examples_that_belong_together_fill_a_pass_and_no_more():
    draws, x = DeepEnsemble([nn.Linear(3, 2)]).sample().seen((torch.rand(5, 3),), lambda answer: answer)
    sizes = [len(example) for _, example, _ in draws.in_rows(len(x), 3, at_once=5)]
    assert sizes == [5, 5, 5]
    assert [len(example) for _, example, _ in draws.in_rows(len(x), 2, at_once=2)] == [2, 2, 2, 2, 2]


def test_a_volume_is_cut_into_regions_as_an_image_is():
    places = torch.arange(8.0).view(8, 1, 1).expand(8, 16, 16)
    regions = superpixels((places > 3).float().expand(2, 1, 8, 16, 16), 8)
    assert regions.shape == (2, 8, 16, 16) and len(regions.unique()) > 1


# What a sample of slips got past all of these


def test_draws_on_a_device_are_taken_in_before_they_fill_its_memory(monkeypatch):
    taken, whole = [], Moments.extend
    monkeypatch.setattr(Moments, "extend", lambda self, some: taken.append(some.numel()) or whole(self, some))
    draws = (torch.empty(1, 2**22, device="meta") for _ in range(9))  # "meta" is a device without memory
    assert Moments.streamed(draws).num_draws == 9
    assert sum(taken) == 9 * 2**22 and max(taken) <= 2**24 and len(taken) < 9


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_lime_says_that_it_hides_nothing_of_dark_examples_too_or_their_empty_maps_would_be_read(sign):
    x = sign * torch.ones(1, 1, 4, 4)
    with pytest.warns(UserWarning, match="LIME hides nothing in 1 of 1 examples"):
        found = lime_fit(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), x, 0, num_segments=2)
    assert not found.attribution.any()


def test_the_steps_of_a_path_through_volumes_are_summed_as_those_of_images_are():
    layers = nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 2)
    draws, x = MCDropout(seeded(lambda: nn.Sequential(*layers))).sample(3, seed=1), randn(2, 1, 3, 3, 3)
    e = explain(draws, integrated_gradients, x, 1, num_steps=3)
    assert e.how == "chain"
    wanted = torch.stack([integrated_gradients(draw, x, 1, num_steps=3) for draw in draws])
    assert_close(e.values, wanted, **EXACT)


def test_numbers_of_a_regression_have_no_noise_unless_it_is_given_or_all_would_look_uncertain():
    numbers = tensor([[[1.0]], [[3.0]]])  # two draws: a variance of 1
    found = decompose(numbers)
    assert (found.total.item(), found.aleatoric.item(), found.epistemic.item()) == (1.0, 0.0, 1.0)
    assert uncertainty_shares(numbers, "total").sum((0, 2)).tolist() == [[1.0]]


def test_the_first_row_and_column_of_a_segmentation_are_places_too():
    network = nn.Conv2d(1, 2, 1, dtype=torch.float64).eval()
    output, x = Output("segmentation", where=(0, 0)), randn(1, 1, 2, 2)
    found = explain([network], gradient, x, 1, output=output).values
    wanted = torch.zeros_like(x)
    wanted[..., 0, 0] = network.weight[1, 0, 0, 0].detach()
    assert_close(found[0], wanted, **EXACT)


@pytest.mark.parametrize("explainer", [gradient, gradient_x_input, integrated_gradients, smoothgrad])
def test_a_map_of_examples_that_want_a_gradient_has_no_graph_or_memory_would_grow_with_every_map(explainer):
    network, x = linear([[1.0, 2.0, 3.0]]), randn(2, 3).requires_grad_()
    assert not explainer(network, x).requires_grad and x.grad is None


def test_terms_of_numbers_that_are_written_into_a_part_of_others_have_no_graph_and_are_complete():
    class Frames(nn.Module):
        """Puts what it sees into the middle of a frame of learned numbers."""

        def __init__(self) -> None:
            super().__init__()
            self.frame, self.line = nn.Parameter(torch.ones(4, 4)), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            whole = self.frame.expand(len(x), 1, 4, 4).clone()
            whole[..., 1:3, 1:3].copy_(x)
            return self.line(whole.flatten(1))

    network, x = seeded(Frames).eval(), randn(2, 1, 2, 2)
    terms = fullgrad_terms(network, x, 0)
    assert not any(term.requires_grad for term in (terms.input, *terms.maps, *terms.dense))
    assert_close(terms.total(), network(x)[:, 0].detach(), **EXACT)


def test_a_draw_leaves_what_it_is_given_beside_the_examples_though_its_network_writes_there():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor, calls: Tensor) -> Tensor:
            calls += 1
            return self.drop(x)

    (draw,), calls = MCDropout(Counts()).sample(1), tensor(0)
    draw(torch.ones(2, 3), calls)
    assert calls == 0


def test_draws_that_vmap_evaluates_one_by_one_are_left_to_the_loop_which_says_why():
    class Bounded(nn.Module):
        """Scales each row to a length of 1 at most, for which vmap has no rule of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.line, self.drop = nn.Linear(4, 3), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.renorm(self.drop(self.line(x)), 2, 0, 1.0)

    draws, x = MCDropout(seeded(Bounded)).sample(3, seed=1), randn(2, 4)
    e = explain(draws, gradient, x, 1)
    assert e.how.startswith("loop: There is a performance drop") and "aten::renorm" in e.how
    assert_close(e.values, torch.stack([gradient(draw, x, 1) for draw in draws]), **EXACT)


def test_quantiles_are_float64_whatever_the_maps_or_their_interpolation_would_lose_half_of_the_digits():
    values = tensor([[[1.0]], [[1.0 + 2**-23]]])  # neighbours in float32
    e = ExplanationDistribution(values)
    assert e.median().item() == 1 + 2**-24 and e.median().dtype == e.quantile(0.05).dtype == torch.float64
    assert e.mad().item() == 2**-24


class OnGpu(Tensor):
    """Numbers that say that they are on a GPU."""

    device = torch.device("cuda")


def test_the_rounding_of_tf32_excuses_no_missing_term_or_fullgrad_would_never_warn_on_a_gpu():
    x = randn(2, 3, dtype=torch.float32)
    for last, is_complete in ((nn.Softplus(), False), (nn.ReLU(), True)):
        network = nn.Sequential(linear([[1.0, 0, 0], [0, 1.0, 0]]), last, linear([[1.0, 2.0], [0, 1.0]])).float()
        graph = LogitGraph(network.eval(), x)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            graph.saliencies(graph.one_hot(0)[None].as_subclass(OnGpu), "raw")
        assert [str(warning.message) for warning in caught] == ([] if is_complete else [NOT_COMPLETE])


def test_the_maps_of_many_classes_are_held_some_at_a_time_or_a_thousand_classes_would_need_gigabytes(monkeypatch):
    module, sizes = sys.modules["xuqlib.ua_backprop"], []
    whole = module.spread_shares
    monkeypatch.setattr(
        module,
        "spread_shares",
        lambda shares, maps, **options: sizes.append(maps.numel()) or whole(shares, maps, **options),
    )
    draws, x = Draws([linear(randn(10, 6, seed=seed).tolist()) for seed in (1, 2)]), randn(3, 6)
    wanted = ua_backprop(draws, x)
    assert sizes == [180, 180]
    monkeypatch.setattr(module, "_AT_ONCE", 80)
    sizes.clear()
    assert_close(ua_backprop(draws, x), wanted, **EXACT)
    assert sum(sizes) == 360 and max(sizes) <= 80


def test_a_hardtanh_from_0_ends_at_1_where_nothing_else_is_said_or_signal_would_flow_above():
    class Bounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.hardtanh_(2 * x, 0.0)

    x = tensor([[-0.2, 0.2, 0.7]])
    found = torch.stack([guided_backprop(Bounded().eval(), x, label)[0] for label in range(3)])
    assert torch.equal(found, torch.diag(tensor([0.0, 2.0, 0.0])))


def test_a_tensor_with_more_axes_for_more_examples_is_refused_in_words():
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x.view(-1, *[1] * len(x)), 0.5, training=True).view_as(x)

    (draw,) = MCDropout(Drops()).sample(1)
    with pytest.raises(RandomNetworkError, match=r"for 2 examples and .* for 3, so no one axis of it"):
        draw(torch.ones(2, 3))


def test_completeness_is_measured_of_fixed_networks_alone_or_a_gap_would_be_of_another_answer():
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    x = randn(2, 3)
    with pytest.raises(ValueError, match="changes with the others of its batch"):
        completeness_gap(Centred().eval(), x, x, 0)


# Kinds of slips, each met wherever it can be made


DEFAULTS: list[tuple[Any, dict[str, Any]]] = [
    (integrated_gradients, {"baseline": None, "num_steps": 32, "chunk": None}),
    (smoothgrad, {"num_samples": 32, "noise": 0.1, "seed": 0, "chunk": None}),
    (lime_fit, {"num_samples": 1000, "seed": 0, "alpha": 1.0, "scale": 1.0, "num_segments": 40, "fill": "mean"}),
    (superpixels, {"num_segments": 40}),
    (windows, {"num_segments": 20}),
    (deletion, {"fill": "black", "num_steps": None, "batch_size": 128}),
    (insertion, {"fill": "blurred", "num_steps": None, "batch_size": 128}),
    (ExplanationDistribution.std, {"correction": 0}),
    (ExplanationDistribution.cv, {"kind": "paper", "floor": 0.05, "rescale": True}),
    (MCDropConnect, {"placement": "last", "p": 0.1}),
    (Flipout, {"placement": "last", "initial_std": 0.05, "prior_std": 1.0, "kl_weight": 1.0}),
    (FlipoutLayer, {"initial_std": 0.05, "prior_std": 1.0}),
    (MCDropout.sample, {"seed": 0, "masks": "fixed"}),
    (MCDropConnect.sample, {"seed": 0}),
    (DeepEnsemble.sample, {"num_draws": None, "seed": 0}),
    (Posterior.sample, {"seed": 0}),
    (logit_coefficients, {"coefficients": "softmax", "tau1": 1e-5}),
    (spread_shares, {"normalise": "softmax", "tau2": 1.0}),
    (logits_of, {"batch_size": 256}),
    (decompose, {"noise_variance": 0.0}),
    (uncertainty_shares, {"kind": "epistemic", "noise_variance": 0.0}),
    (attribute_uncertainty, {"explainer": "gradient_x_input", "absolute": False}),
    (Draws, {"noise_variance": 0.0}),
    (explain, {"keep": "all", "precision": "float32", "chunk": None, "device": None, "progress": None}),
]


@pytest.mark.parametrize(("function", "wanted"), DEFAULTS, ids=[each.__qualname__ for each, _ in DEFAULTS])
def test_defaults_are_those_that_papers_and_published_numbers_rest_on(function, wanted):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in wanted} == wanted
    numbers = {name for name, each in parameters.items() if isinstance(each.default, int | float)}
    assert numbers <= wanted.keys()


def test_a_pass_on_a_cpu_holds_the_numbers_of_64_small_colour_images_in_8_to_4096_rows_and_64_times_that_elsewhere():
    sizes = {(1, 3, 32, 32): 64, (5, 3, 64, 64): 16, (1, 3, 200, 200): 8, (1, 40): 4096}
    assert {shape: rows_per_pass(torch.zeros(shape), None) for shape in sizes} == sizes
    elsewhere = {(1, 3, 64, 64): 1024, (1, 3, 1024, 1024): 8}
    assert {shape: rows_per_pass(torch.zeros(shape, device="meta"), None) for shape in elsewhere} == elsewhere


STATISTICS: dict[str, Callable[[ExplanationDistribution], Tensor]] = {
    "mean": lambda e: e.mean(),
    "std": lambda e: e.std(),
    "paper": lambda e: e.cv(),
    "unscaled": lambda e: e.cv(rescale=False),
    "signed": lambda e: e.cv("signed"),
    "ratio": lambda e: e.cv("ratio"),
    "undefined": lambda e: e.undefined_share(),
    "undefined ratio": lambda e: e.undefined_share("ratio"),
    "snr": lambda e: e.snr(),
    "error of the mean": lambda e: e.standard_error("mean"),
    "error of the std": lambda e: e.standard_error("std"),
}
OF_VALUES: dict[str, Callable[[ExplanationDistribution], Tensor]] = {
    "quantile": lambda e: e.quantile(0.3),
    "median": lambda e: e.median(),
    "mad": lambda e: e.mad(),
    "sign_agreement": lambda e: e.sign_agreement(),
    "error of the cv": lambda e: e.standard_error("cv"),
}


@pytest.mark.parametrize("shape", [(5, 2, 7), (5, 2, 3, 4, 4)])
def test_statistics_of_float32_maps_are_those_of_the_same_numbers_in_float64(shape):
    values = randn(*shape, dtype=torch.float32) + 3
    one, other = ExplanationDistribution(values), ExplanationDistribution(values.double())
    kept = [ExplanationDistribution(None, Moments()) for _ in range(2)]
    for value in values:
        kept[0].running.append(value)
    kept[1].running.extend(values)
    for name, statistic in (STATISTICS | OF_VALUES).items():
        found = statistic(one)
        assert found.dtype == torch.float64, name
        assert_close(found, statistic(other), **EXACT)
        if name in STATISTICS and name != "error of the std":
            for each in kept:
                assert_close(statistic(each), found, **EXACT)


@pytest.mark.parametrize("output", ["logits", "probabilities", "binary", "multilabel", "regression", "mean_variance"])
def test_uncertainties_of_float32_numbers_are_those_of_the_same_numbers_in_float64(output):
    numbers = randn(4, 3, 1 if output == "binary" else 2, dtype=torch.float32)
    if output == "mean_variance":
        numbers = numbers.exp()
    if output == "probabilities":  # that sum to 1 in both
        yes = torch.arange(1.0, 13.0).view(4, 3) / 16
        numbers = torch.stack([yes, 1 - yes], 2)
    one, other = (vars(decompose(each, 0.0, output)) for each in (numbers, numbers.double()))
    for name, value in one.items():
        assert value.dtype == torch.float64
        assert_close(value, other[name], **EXACT)
    shares = [uncertainty_shares(each, "epistemic", 0.0, output) for each in (numbers, numbers.double())]
    assert shares[0].dtype == torch.float64
    assert_close(*shares, **EXACT)


def test_shares_of_float32_logits_and_maps_are_those_of_the_same_numbers_in_float64():
    logits, maps = randn(5, 4, dtype=torch.float32), randn(5, 4, 6, dtype=torch.float32).abs()
    for coefficients in ("softmax", "row-normalised", "ratio"):
        found = logit_coefficients(logits, coefficients, tau1=0.3)
        assert_close(found, logit_coefficients(logits.double(), coefficients, tau1=0.3), **EXACT)
    for normalise in ("softmax", "sum"):
        found = spread_shares(logits, maps, normalise=normalise, tau2=0.3)
        assert_close(found, spread_shares(logits.double(), maps.double(), normalise=normalise, tau2=0.3), **EXACT)


def said(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call returns, tensors as lists; or the kind of its error and what that says."""
    try:
        found = function(*args, **options)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return found.tolist() if isinstance(found, Tensor) else found


OUT_OF_RANGE = "of example {} is out of range; "
CHECKED: list[tuple[Callable[..., Any], tuple[Any, ...], Any]] = [
    (check_count, (1, 1, "n"), 1),
    (check_count, (np.int64(3), 1, "n"), 3),
    (check_count, (0, 1, "n"), (ValueError, "n is 0; pass at least 1")),
    (check_count, (10**9, 1, "n"), 10**9),
    (check_count, (10**9 + 1, 1, "n"), (ValueError, "n is 1000000001; pass at most 1,000,000,000")),
    (check_count, (5, 1, "n", 5), 5),
    (check_count, (6, 1, "n", 5), (ValueError, "n is 6; pass at most 5")),
    (check_count, (True, 0, "n"), (TypeError, "n is True; pass a whole number of at least 0")),
    (check_count, (2.0, 0, "n"), (TypeError, "n is 2.0; pass a whole number of at least 0")),
    (check_number, (0, 0, "q"), 0.0),
    (check_number, (-1e-9, 0, "q"), (ValueError, "q is -1e-09; pass a finite number of at least 0")),
    (check_number, (math.inf, 0, "q"), (ValueError, "q is inf; pass a finite number of at least 0")),
    (check_number, (math.nan, 0, "q"), (ValueError, "q is nan; pass a finite number of at least 0")),
    (check_number, (True, 0, "q"), (TypeError, "q is True; pass a number")),
    (check_number, ("1", 0, "q"), (TypeError, "q is '1'; pass a number")),
    (check_noise, (0,), 0.0),
    (check_noise, (tensor([[0.0, 2.0]]),), [[0.0, 2.0]]),
    (check_noise, (-1,), (ValueError, "noise_variance is -1.0; pass a finite number of at least 0")),
    (check_flag, (True, "it"), None),
    (check_flag, ("no", "it"), (TypeError, "it is 'no'; pass True or False")),
    (check_choice, ("a", ("a", "b"), "word"), None),
    (check_choice, (1, ("a", "b"), "word"), (ValueError, "unknown word 1; known: a, b")),
    (check_target, (None, 3, 1), [0, 0, 0]),
    (check_target, (2, 3, None), [2, 2, 2]),
    (check_target, ([0, 1, 2], 3, 3), [0, 1, 2]),
    (check_target, (tensor([100], dtype=torch.int8), 1, 300), [100]),
    (
        check_target,
        ([0, 1, 3], 3, 3),
        (ValueError, f"target 3 {OUT_OF_RANGE.format(2)}network has 3 outputs, so classes are 0 to 2"),
    ),
    (
        check_target,
        ([0, 1], 2, 1),
        (ValueError, f"target 1 {OUT_OF_RANGE.format(1)}network has one output, so leave target out"),
    ),
    (check_target, ([0, -1], 2, None), (ValueError, f"target -1 {OUT_OF_RANGE.format(1)}they are counted from 0")),
    (
        check_target,
        ([0, 1], 3, 2),
        (ValueError, "target has 2 entries but x has 3 examples; pass one class per example"),
    ),
    (check_target, ([[0], [1]], 2, 2), (ValueError, "target has shape (2, 1); pass one class per example, (2,)")),
    (is_finite, (tensor([3e38, 3e38]),), True),
    (is_finite, (tensor([math.inf, -math.inf]),), False),
    (
        check_examples,
        (tensor([[1.0, 1.0], [math.nan, 1.0], [math.inf, -math.inf]]),),
        (
            ValueError,
            "x holds 1 NaN and 2 infinite values, the first in example 1; drop or fill them before explaining",
        ),
    ),
    (check_tensor, (torch.zeros(2), "it", 1), None),
    (check_tensor, (torch.zeros(()), "it"), None),
    (check_tensor, (torch.zeros(2), "it", 2), (ValueError, "it has shape (2,); pass a tensor of 2 axes or more")),
    (check_logits, (tensor([1.0, 2.0]), 2), [[1.0], [2.0]]),
    (check_logits, (tensor([[1.0, 2.0]]), 1), [[1.0, 2.0]]),
]


@pytest.mark.parametrize(("check", "given", "wanted"), CHECKED, ids=[f"{c.__name__}{g}"[:60] for c, g, _ in CHECKED])
def test_a_check_lets_through_what_is_just_right_and_tells_what_is_just_wrong(check, given, wanted):
    assert said(check, *given) == wanted


def test_a_number_may_have_to_be_above_its_minimum():
    assert said(check_number, 0, 0, "q", above=True) == (ValueError, "q is 0.0; pass a finite number above 0")
    assert said(check_number, 1e-9, 0, "q", above=True) == 1e-9


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 4), (3,), (2, 0), ()])
def test_logits_of_another_shape_are_told_with_it(shape):
    error, words = said(check_logits, torch.zeros(shape), 2)
    assert error is ValueError and words.startswith(f"network returned shape {shape} for 2 examples; wanted logits")


HELD = {"explain._NUMBERS_SENT": 2**28, "moments._WAITING": 2**24, "fast.chain.NUMBERS_AT_ONCE": 2**24}


@pytest.mark.parametrize(("name", "wanted"), [*HELD.items(), ("ua_backprop._AT_ONCE", 2**23)])
def test_what_is_held_at_once_is_tens_of_megabytes_to_a_gigabyte_or_work_would_go_number_by_number(name, wanted):
    module, _, constant = f"xuqlib.{name}".rpartition(".")
    assert wanted / 4 < getattr(sys.modules[module], constant) < wanted * 4


# What a sample of another seed got past


def test_a_place_of_even_odds_is_not_of_the_class_or_an_empty_logit_would_be_explained_everywhere():
    network = nn.Conv2d(1, 1, 1, bias=False, dtype=torch.float64).eval()
    network.weight.data.fill_(1.0)
    x = tensor([[[[0.0, 2.0]]]], dtype=torch.float64)
    assert explain([network], gradient, x, 0, output="segmentation").values.flatten().tolist() == [0.0, 1.0]


def test_a_variance_may_be_0_or_networks_that_are_sure_of_a_number_would_be_refused():
    found = decompose(tensor([[[1.0, 0.0]], [[3.0, 0.0]]]), 0.0, "mean_variance")
    assert (found.total.item(), found.aleatoric.item(), found.epistemic.item()) == (1.0, 0.0, 1.0)


def test_the_class_that_fills_most_of_an_image_of_one_row_is_explained():
    network = nn.Conv2d(1, 3, 1, bias=False, dtype=torch.float64).eval()
    network.weight.data[:, 0, 0, 0] = tensor([5.0, 2.0, -3.0])  # class 0 wins where x is positive, class 2 elsewhere
    for x, wanted in (([[1.0, 2.0, -1.0]], 0), ([[1.0, -2.0, -1.0]], 2)):
        e = explain([network], gradient, tensor(x, dtype=torch.float64)[None, None], output="segmentation")
        assert e.target.tolist() == [wanted]


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_a_weight_that_dropconnect_keeps_is_divided_by_the_share_that_is_kept(p):
    network = nn.Linear(40, 3)
    for draw in MCDropConnect(network, p=p).sample(2):
        (weight,) = (value for name, value in draw.state_dict().items() if name.endswith("weight"))
        kept = weight != 0
        assert 0 < kept.sum() < kept.numel()
        assert_close(weight[kept], network.weight.detach()[kept] / (1 - p))


@pytest.mark.parametrize(
    "one",
    [
        Output("logits"),
        Path(torch.ones(1)),
        Execution(torch.float32, torch.device("cpu")),
        Declared(),
        Uncertainties(*torch.ones(3, 1)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_is_handed_around_cannot_be_changed_by_one_who_holds_it(one):
    with pytest.raises(FrozenInstanceError):
        setattr(one, next(iter(vars(one))), None)


@pytest.mark.parametrize(("num_draws", "wanted"), [(3, 3), (70, DRAWS_KEPT)])
def test_masks_of_some_draws_are_kept_for_the_next_examples_and_not_of_all_or_memory_would_grow(num_draws, wanted):
    network = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2))
    draws = MCDropout(network).sample(num_draws)
    chain = Chain(draws.networks, Execution(torch.float32, torch.device("cpu")), torch.rand(1, 5))
    passed = chain.forward(torch.rand(2, 5))
    for number in range(num_draws):
        chain.logits(passed, range(number, number + 1))
    assert sum(map(len, chain._heads)) == wanted


def test_labels_are_each_by_themselves_and_the_one_logit_of_a_place_is_a_place():
    numbers = randn(4, 3, 2)
    found = decompose(numbers, 0.0, "multilabel")
    each = [decompose(numbers[:, :, [label]], 0.0, "binary").epistemic for label in range(2)]
    assert_close(found.epistemic, torch.stack(each, 1), **EXACT)
    places = randn(4, 3, 1, 2, 5)
    found = decompose(places, 0.0, "segmentation")
    assert_close(found.total.flatten(), decompose(places.flatten(1)[..., None], 0.0, "binary").total, **EXACT)
    assert found.total.shape == (3, 2, 5)


def test_layers_drop_where_they_have_a_rate_or_what_is_before_them_would_be_run_for_every_draw():
    sure = [nn.LSTM(2, 2, 2), nn.MultiheadAttention(4, 1), nn.Linear(2, 2)]
    assert [drops(layer) for layer in sure] == [False] * 3
    random = [nn.LSTM(2, 2, 2, dropout=0.1), nn.MultiheadAttention(4, 1, dropout=0.1), nn.AlphaDropout(0.1)]
    assert [drops(layer) for layer in random] == [True] * 3


def test_what_is_sent_to_a_device_that_is_no_cuda_device_is_not_pinned_which_would_need_one():
    assert sent(torch.ones(2), torch.device("meta")).is_meta
    assert sent(torch.ones(2), torch.device("cpu")).device.type == "cpu"


OF_NETWORK: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "gradient": lambda network, x: gradient(network, x, 0),
    "gradient_x_input": lambda network, x: gradient_x_input(network, x, 0),
    "integrated_gradients": lambda network, x: integrated_gradients(network, x, 0, baseline="mean", num_steps=3),
    "smoothgrad": lambda network, x: smoothgrad(network, x, 0, num_samples=3),
    "completeness_gap": lambda network, x: completeness_gap(network, x, x + 1, 0, baseline="mean"),
    "fullgrad": lambda network, x: fullgrad(network, x, 0),
    "fullgrad_terms": lambda network, x: fullgrad_terms(network, x, 0).total(),
    "lime_fit": lambda network, x: lime_fit(network, x, 0, num_samples=20).attribution,
    "from_captum": lambda network, x: from_captum("Saliency")(network, x, 0),
    "class_maps": lambda network, x: class_maps(network, x),
    "class_maps by lime": lambda network, x: class_maps(network, x, explainer="lime", num_samples=20),
    "draws": lambda network, x: Draws([network])(x),
    "explain": lambda network, x: explain([network] * 2, gradient, x, 0).values,
    "explain by lime": lambda network, x: explain([network] * 2, "lime", x, num_samples=20).values,
    "uncertainties": lambda network, x: uncertainties([network] * 2, x).total,
    "ua_backprop": lambda network, x: ua_backprop([network] * 2, x, "total"),
    "ua_replacement": lambda network, x: ua_replacement([network] * 2, x, "total", reference="mean"),
    "attribute_uncertainty": lambda network, x: attribute_uncertainty([network] * 2, x, "total"),
}


@pytest.mark.parametrize("name", OF_NETWORK)
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (tensor([[1.0, 2.0], [math.nan, 1.0]]).double(), ValueError, "x holds 1 NaN and 0 infinite values, the first"),
        (torch.zeros(0, 2).double(), ValueError, "holds no numbers"),
        (tensor([[1, 2, 3]], dtype=torch.uint8)[:, :2], TypeError, "uint8"),
    ],
    ids=["nan", "empty", "uint8"],
)
def test_examples_that_are_none_are_refused_in_the_same_words_everywhere(name, x, error, words):
    with pytest.raises(error, match=words):
        OF_NETWORK[name](linear([[1.0, 2.0], [2.0, 0.0]]), x)


class Scaled(nn.Module):
    """Two logits of what is scaled, in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place, self.line = in_place, linear([[1.0, 2.0], [-2.0, 1.0]])

    def forward(self, x: Tensor) -> Tensor:
        return self.line((x.mul_(2) if self.in_place else 2 * x).tanh())


@pytest.mark.parametrize("name", sorted(set(OF_NETWORK) - {"from_captum"}))  # Captum gives it a leaf of the graph
@pytest.mark.filterwarnings("ignore:FullGrad's terms miss")
def test_a_network_that_writes_into_its_input_is_explained_as_one_that_does_not_and_leaves_x(name):
    x = randn(3, 2)
    kept = x.clone()
    wanted = OF_NETWORK[name](Scaled(in_place=False).eval(), x)
    assert_close(OF_NETWORK[name](Scaled(in_place=True).eval(), x), wanted, **EXACT)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", sorted(set(OF_NETWORK) - {"draws"}))
@pytest.mark.filterwarnings("ignore:FullGrad's terms miss")
def test_whoever_explains_examples_that_want_a_gradient_builds_no_graph(name):
    x = randn(3, 2)
    wanting, network = x.clone().requires_grad_(), Scaled(in_place=False).eval()
    found = OF_NETWORK[name](network, wanting)
    assert not found.requires_grad and wanting.grad is None
    assert_close(found, OF_NETWORK[name](network, x), **EXACT)


class Random(nn.Module):
    """Answers by chance, in a way that no module shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(2)


@pytest.mark.parametrize("name", sorted(set(OF_NETWORK) - {"draws"}))
def test_a_network_that_answers_by_chance_is_refused_wherever_it_is_explained(name):
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="network draws random numbers in its forward pass"):
        OF_NETWORK[name](Random().eval(), randn(3, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_few_draws_are_attributed_in_one_pass_over_the_examples_or_it_would_take_one_pass_for_each():
    sizes: list[int] = []

    class Noting(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return self.sign * x

    attribute_uncertainty([Noting(1.0).eval(), Noting(-1.0).eval()], randn(100, 3), explainer="gradient")
    assert sizes.count(100) >= 2 and set(sizes) <= {1, 2, 100}


@pytest.mark.parametrize("function", [torch.dropout, torch.feature_dropout, torch.alpha_dropout])
def test_a_dropout_that_is_not_in_place_leaves_what_it_is_given_to_whoever_reads_it_again(function):
    class Goes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            h = 2 * x
            function(h, 0.5, True)
            return self.drop(h)

    (draw,) = MCDropout(Goes()).sample(1)
    assert set(draw(torch.ones(2, 64)).unique().tolist()) == {0.0, 4.0}


def test_the_scale_of_all_columns_may_be_a_tensor_of_one_number():
    network, x = seeded(table_mlp).eval(), randn(2, 5)
    wanted = lime_fit(network, x, 1, scale=2.0, num_samples=50).attribution
    assert torch.equal(lime_fit(network, x, 1, scale=tensor([2.0]), num_samples=50).attribution, wanted)


def test_one_draw_of_one_logit_has_classes_too():
    draws, x = Draws([linear([[1.0, 2.0]])]), randn(2, 2)
    found = ua_backprop(draws, x, "aleatoric", output="binary")
    assert_close(found.sum(1), uncertainties(draws, x, output="binary").aleatoric, **EXACT)


def test_layers_that_may_move_the_examples_are_known():
    moving = [nn.Unflatten(0, (2, 2)), nn.Flatten(0), nn.GRU(2, 2)]
    assert [_may_move_examples(layer) for layer in moving] == [True] * 3
    assert not any(map(_may_move_examples, (nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.Linear(2, 2))))


def test_the_two_graphs_of_fullgrad_say_which_is_fast():
    network, x = linear([[1.0, 2.0]]), randn(1, 2)
    assert [LogitGraph(network, x).is_fast, ChainGraph(network, x).is_fast] == [False, True]


def test_examples_that_hold_x_are_one_tensor():
    assert Inputs(SimpleNamespace(x=randn(3, 2), y=tensor([0, 1, 0]))).is_one_tensor


def test_a_network_in_training_mode_is_refused_among_draws_that_look_alike():
    networks = [nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval() for _ in range(3)]
    networks[2].train()
    for function in (uncertainties, lambda draws, x: explain(draws, gradient, x, 0)):
        with pytest.raises(ValueError, match="network is in training mode, so its layer 1 .BatchNorm1d."):
            function(networks, torch.rand(4, 2))


class InPlace(nn.Module):
    """Writes into what it is given, and is no draw that copies it first."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.factor)


def test_networks_that_write_into_their_input_leave_it_to_the_next_one():
    draws, x = Draws([InPlace(2.0).eval(), InPlace(3.0).eval()]), randn(4, 3)
    assert_close(Engine(draws, x).logits(x), torch.stack([2 * x, 3 * x]), **EXACT)


def test_the_rate_of_an_attention_is_found_wherever_it_is_given_and_is_0_where_it_is_not():
    q, attend = torch.ones(1, 2, 3), F.scaled_dot_product_attention
    assert dropout_inside(attend, (q, q, q), {}) == (0.0, True)
    assert dropout_inside(attend, (q, q, q, None), {}) == (0.0, True)
    assert dropout_inside(attend, (q, q, q, None, 0.3), {}) == (0.3, True)
    assert dropout_inside(attend, (q, q, q), {"dropout_p": 0.3}) == (0.3, True)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_a_missing_term_is_measured_by_the_size_of_the_logit(factor):
    x = randn(2, 3, dtype=torch.float32)
    for last, is_complete in ((nn.Softplus(), False), (nn.ReLU(), True)):
        network = nn.Sequential(nn.Linear(3, 4), last, nn.Linear(4, 2)).eval()
        with torch.no_grad():
            network[2].weight *= factor
            network[2].bias *= factor
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fullgrad(network, x, 0)
        assert [str(warning.message) for warning in caught] == ([] if is_complete else [NOT_COMPLETE])


def test_a_probability_of_0_adds_nothing_to_an_entropy():
    found = decompose(tensor([[[0.0, 1.0]], [[0.5, 0.5]]]), output="probabilities")
    half, quarter = math.log(2) / 2, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert found.aleatoric.item() == pytest.approx(half) and found.total.item() == pytest.approx(quarter)


def test_means_and_variances_side_by_side_are_as_many():
    for columns in (2, 4, 6):
        assert Output("mean_variance").read(torch.ones(3, columns), 3).shape == (3, columns)
    for columns in (1, 3):
        with pytest.raises(ValueError, match="a pair .mean, variance."):
            Output("mean_variance").read(torch.ones(3, columns), 3)


@pytest.mark.parametrize("posterior", [Flipout, MCDropConnect])
def test_a_weight_that_is_drawn_has_no_graph_or_every_draw_would_hold_the_posterior(posterior):
    (layer,) = (module for module in posterior(nn.Linear(3, 2)).network.modules() if isinstance(module, RandomLayer))
    assert not layer.sample(torch.Generator()).requires_grad


def test_questions_to_a_chain_are_left_as_they_were():
    network, x = (
        seeded(lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), nn.ReLU())).eval(),
        randn(2, 3),
    )
    weights = randn(2, 2, 2)
    kept = weights.clone()
    ChainGraph(network, x).saliencies(weights, "raw")
    assert torch.equal(weights, kept)


@pytest.fixture
def bars(monkeypatch) -> list[Any]:
    """The bars that `explain` shows, or would."""
    module, found = sys.modules["xuqlib.explain"], []

    class Bar(module.tqdm):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options | {"disable": False, "file": io.StringIO()})
            found.append(self)

    monkeypatch.setattr(module, "tqdm", Bar)
    return found


@pytest.mark.parametrize("keep", ["all", "moments", "mean"])
@pytest.mark.parametrize("explainer", [gradient, lambda network, x, target: x])
def test_a_bar_ends_where_the_work_does(bars, keep, explainer):
    explain(MCDropout(seeded(table_mlp)).sample(3), explainer, randn(4, 5), 0, keep=keep, chunk=2)
    assert [(bar.n, bar.total) for bar in bars] == [(6, 6)]


@pytest.mark.parametrize(("num_steps", "parts"), [(32, 3), (64, 5)])
def test_as_many_examples_are_explained_at_a_time_as_have_4096_steps_together(bars, num_steps, parts):
    draws = MCDropout(seeded(table_mlp)).sample(2)
    explain(draws, lambda network, x, target: x, randn(300, 5), 0)
    along = declared(path=lambda x: Path(x, x, torch.ones(num_steps, 1), torch.ones(num_steps)))
    explain(draws, along(lambda network, x, target: None), randn(300, 5), 0, keep="mean")
    assert [bar.total for bar in bars] == [2, 2 * parts]


def test_seeds_are_63_bits_of_numpys_mixing_or_all_published_draws_would_be_others():
    mixed = [int(np.random.SeedSequence([seed, 5, 2]).generate_state(1, np.uint64)[0]) for seed in range(8)]
    assert [seed_of(seed, 5, 2) for seed in range(8)] == [number // 2 for number in mixed]


def test_what_first_order_falls_leave_over_is_spread_in_float64():
    draws, x = Draws([linear(randn(3, 4, seed=seed).tolist()).float() for seed in (1, 2)]), randn(50, 4).float()
    reference = torch.zeros(4)
    fall = attribute_uncertainty(draws, x).double()  # gradient x input, since the reference is 0
    left = uncertainties(draws, x).epistemic - fall.sum(1)
    assert torch.equal(ua_replacement(draws, x, reference=reference), (fall + left[:, None] / 4).float())


def test_what_is_kept_for_later_calls_is_made_of_ordinary_tensors_or_nobody_could_differentiate_through_it():
    def kept() -> list[Tensor]:
        _quadrature.cache_clear(), _stretching.cache_clear(), _on_device.cache_clear()
        where = torch.device("cpu")
        return [*_quadrature(3, torch.float64, where), _stretching(2, 3, True), _on_device(1, 1, (2,), 0.5, where)]

    with torch.inference_mode():
        inside = kept()
    assert not any(tensor.is_inference() for tensor in (*inside, *kept()))


@pytest.mark.parametrize(
    "sample",
    [
        lambda: MCDropout(seeded(table_mlp)).sample(2),
        lambda: DeepEnsemble([seeded(table_mlp)]).sample(),
        lambda: Flipout(seeded(table_mlp)).sample(2),
        lambda: Draws([trainable_copy(seeded(table_mlp)).eval()]),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_draws_can_be_differentiated_wherever_they_were_made(sample, inside):
    with torch.inference_mode(inside):
        draws = sample()
    x = randn(2, 5).requires_grad_()
    draws(x).sum().backward()
    assert x.grad.shape == x.shape and not any(p.is_inference() for draw in draws for p in draw.parameters())


def test_draws_of_which_some_have_masks_are_told_to_be_of_several_kinds():
    network = seeded(FunctionalDropout)
    draws = Draws([*MCDropout(network).sample(2, seed=1), *DeepEnsemble([network]).sample()])
    assert explain(draws, gradient, randn(3, 5), 1).how == "loop: one draw, or draws of several kinds"


# Boundaries of what is allowed, by hand


LIME_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"num_samples": 2, "alpha": 0.5}, ""),
    ({"num_samples": 1}, "num_samples is 1; pass at least 2"),
    ({"alpha": 0}, ""),
    ({"alpha": -0.1}, "alpha is -0.1; pass a finite number of at least 0"),
    ({"kernel_width": 0.4}, ""),
    ({"kernel_width": 0}, "kernel_width is 0.0; pass a finite number above 0"),
    ({"scale": 0.4}, ""),
    ({"scale": 0}, "scale is 0; pass a positive number, or one for each of the 2 features"),
    ({"scale": tensor([1.0, math.inf])}, "pass a positive number"),
    ({"scale": tensor([1.0, 1.0, 1.0])}, "pass a positive number"),
]


@pytest.mark.parametrize(("options", "words"), LIME_OPTIONS)
def test_an_option_of_lime_is_right_up_to_its_boundary(options, words):
    network, x = linear([[1.0, 2.0]]), randn(2, 2)
    if not words:
        assert lime_fit(network, x, **{"num_samples": 50} | options).attribution.isfinite().all()
    else:
        with pytest.raises(ValueError, match=words):
            lime_fit(network, x, **options)


def test_lime_takes_a_change_of_a_negative_logit_for_one_by_its_size():
    x = torch.zeros(1, 2)
    few, many = (lime_fit(lambda x, height=height: -stepped(height)(x), x, num_samples=200) for height in (1e-3, 2e-2))
    assert few.r2.isnan().all() and many.r2.item() > 0.5


def test_a_map_of_lime_can_be_written_into_at_one_channel():
    found = lime_fit(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval(), torch.rand(1, 3, 4, 4), 0, num_segments=2)
    found.attribution[0, 0] = 7.0
    assert (found.attribution[0, 0] == 7).all() and not (found.attribution[0, 1:] == 7).any()


def test_windows_cut_an_axis_into_as_many_as_are_asked_for_by_hand():
    x = torch.zeros(2, 3, 7)
    assert windows(x, 3, axis=2).tolist() == [[[0, 0, 0, 1, 1, 2, 2]]]
    assert windows(x, 3, axis=1).tolist() == [[[0], [1], [2]]]
    assert windows(x, 1, axis=2).tolist() == [[[0] * 7]]
    assert windows(x[0], 3, axis=1).tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    for axis in (0, 3, -1, 1.0):
        with pytest.raises(ValueError, match="has the axes 1 to 2 after the examples"):
            windows(x, 2, axis=axis)
    with pytest.raises(ValueError, match="num_segments is 8 but there are 7 places along axis 2"):
        windows(x, 8, axis=2)


def test_superpixels_are_of_images_and_volumes_alone():
    assert not superpixels(randn(2, 1, 4, 4), 1).any()
    for shape in ((2, 3, 4), (1, 1, 2, 2, 2, 2)):
        with pytest.raises(ValueError, match="superpixels need images"):
            superpixels(torch.zeros(shape))


def test_given_regions_are_numbered_from_0_for_each_example_and_broadcast_by_hand():
    x = torch.zeros(2, 3, 2, 2)
    labels = tensor([[[5, 9], [9, 5]], [[2, 2], [2, 7]]])
    wanted = [[[[0, 1], [1, 0]]], [[[0, 0], [0, 1]]]]
    assert check_segments(labels, x).tolist() == check_segments(labels[:, None], x).tolist() == wanted
    assert check_segments(labels[:1], x).tolist() == [[[[0, 1], [1, 0]]]] * 2  # three axes, as an example has
    assert check_segments(tensor([4, 8]), torch.zeros(3, 2)).tolist() == [[0, 1]] * 3
    for wrong in (labels[0], labels[:, None].expand(2, 2, 2, 2), torch.zeros(3, 1, 2, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match="pass one label per place of x"):
            check_segments(wrong, x)
    with pytest.raises(ValueError, match="segments are torch.float32; pass a whole-number tensor"):
        check_segments(labels.float(), x)


def test_a_blur_is_a_gaussian_of_an_eighth_of_the_longest_side_cut_off_at_three_sigma():
    x = torch.zeros(1, 1, 64, dtype=torch.float64)
    x[..., 32] = 1.0  # sigma is 8, so the blur reaches 24 places
    weights = torch.exp(-0.5 * (torch.arange(-24.0, 25.0).double() / 8) ** 2)
    assert_close(make_baseline("blurred", x)[0, 0, 8:57], weights / weights.sum(), **EXACT)
    assert not make_baseline("blurred", x)[..., :8].any() and not make_baseline("blurred", x)[..., 57:].any()
    image = randn(1, 2, 8, 16)
    line = make_baseline("blurred", image.transpose(2, 3)).transpose(2, 3)
    assert_close(make_baseline("blurred", image), line, **EXACT)


def test_a_share_of_pixels_is_from_none_to_all():
    x, order = torch.ones(1, 1, 2, 2), tensor([[2, 0, 1, 3]])
    for share, wanted in ((0, [1, 1, 1, 1]), (0.25, [1, 1, 0, 1]), (0.5, [0, 1, 0, 1]), (1, [0, 0, 0, 0])):
        assert perturbed(x, order, share).flatten().tolist() == wanted
        kept = perturbed(x, order, share, kind="insertion", fill="black").flatten()
        assert kept.tolist() == [1 - number for number in wanted]
    with pytest.raises(ValueError, match="share is 1.01; a share of the pixels lies in"):
        perturbed(x, order, 1.01)


@pytest.mark.parametrize(("shape", "num_steps"), [((1, 65), 13), ((1, 64), 64), ((1, 1, 3, 5), 3), ((1, 66), 33)])
def test_a_curve_has_by_default_a_step_for_each_row_or_the_most_below_65_that_divide_the_places(shape, num_steps):
    network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2)).eval()
    order = pixel_order(torch.rand(shape).flatten(1))
    assert deletion([network], torch.rand(shape), order, tensor([0])).shape == (1, num_steps + 1)
    assert deletion([network], torch.rand(shape), order, tensor([0]), num_steps=1, batch_size=1).shape == (1, 2)


def test_an_option_of_which_nobody_knows_is_not_cut_for_two_examples_either():
    def explainer(network: Any, x: Tensor, target: Any, *, words: list[str]) -> Tensor:
        return x * len(words)

    draws, x = [linear([[1.0, 2.0]])], torch.ones(2, 2, dtype=torch.float64)
    assert (explain(draws, explainer, x, words=["a", "b"], chunk=2).values == 2).all()
    with pytest.raises(ValueError, match="option words has as many entries as there are examples"):
        explain(draws, explainer, x, words=["a", "b"], chunk=1)
    assert (explain(draws, explainer, x, words=["a", "b", "c"], chunk=1).values == 3).all()


def test_a_device_that_is_none_is_told_with_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="device is 'gpu'; pass cpu, cuda"):
        check_device("gpu")
    with pytest.raises(ValueError, match="device is 'meta', which holds no numbers"):
        check_device("meta")
    monkeypatch.setenv("XUQ_DEVICE", "gpu")
    with pytest.raises(ValueError, match="XUQ_DEVICE is 'gpu'; set it to cpu, cuda"):
        default_device()
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    assert default_device() == check_device("cpu") == torch.device("cpu")


def dense(*between: nn.Module) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(5, 4), *between, nn.Linear(4, 2)))


CHAINS: dict[str, tuple[Callable[[], Draws], tuple[bool, bool, bool, int]]] = {
    "dropout last": (lambda: MCDropout(dense(nn.ReLU(), nn.Dropout(0.5))).sample(3), (True, True, True, 0)),
    "dropout twice": (
        lambda: MCDropout(dense(nn.ReLU(), nn.Dropout(0.5), nn.Dropout(0.5))).sample(3),
        (True, False, True, 0),
    ),
    "dropout before": (lambda: MCDropout(dense(nn.Dropout(0.5), nn.ReLU())).sample(3), (True, False, False, 0)),
    "last weights": (lambda: MCDropConnect(dense(nn.ReLU())).sample(3), (True, False, True, 10)),
    "all weights": (lambda: MCDropConnect(dense(nn.ReLU()), placement="all").sample(3), (True, False, False, 34)),
    "ensemble": (lambda: DeepEnsemble([dense(nn.ReLU()) for _ in range(3)]).sample(), (True, False, False, 34)),
    "linear ensemble": (lambda: DeepEnsemble([dense() for _ in range(3)]).sample(), (True, False, True, 34)),
    "ends otherwise": (
        lambda: MCDropout(nn.Sequential(dense(nn.Dropout(0.5)), nn.ReLU())).sample(3),
        (True, False, False, 0),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_what_of_a_chain_can_be_done_for_all_draws_at_once_is_seen_by_its_layers(name):
    draws, wanted = CHAINS[name][0](), CHAINS[name][1]
    chain = Chain(draws.networks, Execution(torch.float64, torch.device("cpu")), randn(1, 5))
    found = chain.is_foldable, chain.is_masked_dense, chain.is_linear_behind_trunk, chain.own_numbers
    assert found == wanted


def test_draws_of_kernels_of_their_own_are_not_folded():
    members = [seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 2))) for _ in range(2)]
    chain = Chain(
        DeepEnsemble(members).sample().networks, Execution(torch.float64, torch.device("cpu")), randn(1, 1, 2, 2)
    )
    assert not chain.is_foldable and chain.own_numbers == 10 + 6


class Some(OneByOne):
    """Draws of which nothing but their number and size is known."""

    def __init__(self, count: int, is_foldable: bool = True, own_numbers: int = 0) -> None:
        self.networks, self.is_foldable, self.own_numbers = [nn.Identity()] * count, is_foldable, own_numbers


@pytest.mark.parametrize(
    ("draws", "given", "wanted"),
    [
        (Some(7), (10, 3), [range(3), range(3, 6), range(6, 7)]),
        (Some(7), (9, 3, 2), [range(2, 5), range(5, 7)]),
        (Some(3), (100, 1), [range(3)]),
        (Some(3), (2, 5), [range(1), range(1, 2), range(2, 3)]),
        (Some(3, is_foldable=False), (100, 1), [range(1), range(1, 2), range(2, 3)]),
        (Some(3, own_numbers=2**23), (100, 1), [range(2), range(2, 3)]),
        (Some(2, own_numbers=2**26), (100, 1), [range(1), range(1, 2)]),
    ],
)
def test_a_fold_has_as_many_draws_as_fit_into_its_rows_and_numbers(draws, given, wanted):
    assert draws.folds(*given) == wanted


@pytest.mark.parametrize(
    ("where", "dtype", "axes", "is_last"),
    [
        *[("cpu", torch.float32, 4, True), ("cpu", torch.float64, 4, False), ("cpu", torch.float32, 3, False)],
        *[("meta", torch.float32, 4, True), ("meta", torch.float64, 4, True), ("meta", torch.float32, 2, False)],
    ],
)
def test_images_lie_channels_last_where_convolutions_are_fast_so(where, dtype, axes, is_last):
    execution = Execution(dtype, torch.device(where))
    assert execution.layout(axes) == (torch.channels_last if is_last else torch.contiguous_format)
    shape = torch.Size((3, 4, 5)[: axes - 1])
    made = execution.empty(2, shape)
    assert (made.shape, made.dtype, made.device.type) == ((2, *shape), dtype, where)
    if axes == 4:
        assert made.is_contiguous(memory_format=torch.channels_last) == is_last
        arranged = execution.arrange(torch.empty(2, 3, 4, 5, dtype=dtype, device=where))
        assert arranged.is_contiguous(memory_format=torch.channels_last) == is_last


def test_the_floor_of_a_cv_is_a_share_of_the_largest_mean_whatever_that_is():
    for size in (0.01, 1.0, 100.0):
        e = of([[[size, 0.04 * size, 0.06 * size]], [[3 * size, 0.12 * size, 0.18 * size]]])
        assert e.cv("signed").isnan().tolist() == [[False, True, False]]


def test_what_a_network_keeps_is_sent_without_its_past():
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.line = torch.ones(2, requires_grad=True), nn.Linear(2, 2)

    draw = Draws([Keeps().eval()]).on(torch.device("meta"))[0]
    assert draw.kept.is_meta and draw.kept.is_leaf and draw.kept.requires_grad


def test_a_probability_of_0_has_a_logit_that_is_finite():
    tiny = torch.finfo(torch.float64).tiny
    found = Output("probabilities").of_classes(tensor([[0.0, 1.0]], dtype=torch.float64))
    assert found.tolist() == [[math.log(tiny), 0.0]]


@pytest.mark.parametrize(
    "relu",
    [
        torch.relu,
        lambda h: torch.ops.aten.hardtanh(h, 0.0, 6.0),
        lambda h: torch.ops.aten.relu6(h),
        lambda h: torch.ops.aten.threshold(h, 0.0, 0.0),
        lambda h: torch.ops.aten.leaky_relu(h, 0.0),
        lambda h: torch.maximum(h, torch.zeros(())),
        lambda h: h.clip(min=0),
    ],
)
def test_a_relu_that_is_not_in_place_leaves_what_it_is_given_to_a_skip_around_it(relu):
    class Skips(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = 2 * x
            return -relu(h) + relu(h) + relu(h) + h

    x = tensor([[1.0, -1.0]])
    found = torch.cat([guided_backprop(Skips().eval(), x, label) for label in range(2)])
    assert found.tolist() == [[6.0, 0.0], [0.0, 2.0]]  # the slope of what is taken away stops at its ReLU


def test_masks_that_vmap_holds_are_of_some_draws_alone_or_memory_would_grow():
    draws, x = MCDropout(seeded(FunctionalDropout)).sample(DRAWS_KEPT + 10), randn(3, 5)
    engine = Engine(draws, x)
    assert engine.how == "vmap"
    wanted = torch.stack([draw(x) for draw in draws])
    passed = engine.together.forward(x)
    for start in range(0, len(draws), 6):
        fold = range(start, min(start + 6, len(draws)))
        assert_close(engine.together.logits(passed, fold), wanted[fold.start : fold.stop], **EXACT)
        assert len(fold) <= sum(map(len, engine.together._folds)) <= DRAWS_KEPT


def test_a_weight_of_laplace_moves_by_its_noise_over_the_root_of_its_precision():
    posterior = Laplace(nn.Linear(3, 2).double())
    moved = []
    for precision in (1.0, 16.0):
        bases = {"rows": torch.eye(2).double(), "columns": torch.eye(3).double()}
        weight = {"precision": torch.full((2, 3), precision).double(), **bases}
        bias = {"precision": torch.full((2,), precision).double(), "rows": bases["rows"]}
        posterior.factors = {"weight": weight, "bias": bias}
        states = [draw.network.state_dict() for draw in posterior.sample(60)]
        moved.append({key: torch.stack([state[key] for state in states]) for key in ("weight", "bias")})
    for key, mean in posterior.network.state_dict().items():
        assert_close(moved[0][key] - mean, 4 * (moved[1][key] - mean))
        assert 0.7 < (moved[0][key] - mean).std() < 1.3  # of 120 numbers or more: four standard errors


def test_a_quantile_reaches_from_the_smallest_to_the_largest_draw():
    e = of([[[3.0]], [[1.0]], [[2.0]]])
    assert [e.quantile(q).item() for q in (0, 0.5, 1)] == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="q is 1.01; a quantile lies in"):
        e.quantile(1.01)


def test_a_standard_error_needs_two_draws_and_values_need_three_axes():
    assert of([[[1.0]], [[3.0]]]).standard_error().item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="needs at least two draws"):
        of([[[1.0]]]).standard_error()
    with pytest.raises(ValueError, match="values have shape .2, 1.; wanted"):
        of([[1.0], [2.0]])


def test_a_distribution_says_what_it_is_of():
    values = torch.zeros(3, 2, 5)
    e = ExplanationDistribution(values, explainer="gradient", posterior="flipout", how="chain")
    assert repr(e) == "ExplanationDistribution(flipout gradient: 3 draws x 2 examples x (5,))"
    e = ExplanationDistribution(values, explainer="gradient", how="loop: hooks")
    assert repr(e) == "ExplanationDistribution(gradient: 3 draws x 2 examples x (5,), loop: hooks)"


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((5,), ["feature"]),
        ((3, 4), ["axis_1", "axis_2"]),
        ((3, 4, 5), ["channel", "height", "width"]),
        ((1, 2, 3, 2), ["channel", "depth", "height", "width"]),
        ((1, 2, 1, 2, 1), [f"axis_{n}" for n in range(1, 6)]),
    ],
)
def test_the_axes_of_a_table_of_attributions_are_named_by_what_they_are(shape, names):
    frame = ExplanationDistribution(torch.zeros(2, 2, *shape)).to_frame()
    assert list(frame.columns) == ["draw", "example", *names, "attribution"]
    assert len(frame) == 4 * math.prod(shape) and frame[names[-1]].max() == shape[-1] - 1


@pytest.mark.parametrize(
    ("shape", "names"),
    [((3,), []), ((3, 2), ["output"]), ((3, 2, 4), ["row", "column"]), ((3, 1, 2, 4), ["axis_1", "axis_2", "axis_3"])],
)
def test_the_axes_of_a_table_of_uncertainties_are_named_by_what_they_are(shape, names):
    frame = Uncertainties(*torch.rand(3, *shape)).to_frame()
    assert list(frame.columns) == ["example", *names, "total", "aleatoric", "epistemic"]
    assert len(frame) == math.prod(shape)


def test_the_noise_of_a_regression_is_attributed_only_where_a_network_says_it():
    numbers = randn(2, 3, 2).exp()
    assert uncertainty_shares(numbers, "aleatoric").shape == (2, 3, 2)
    assert uncertainty_shares(numbers, "aleatoric", output="mean_variance").shape == (2, 3, 2, 1)
    for given, output in ((numbers, "regression"), (numbers[:, :, :1], None)):
        assert uncertainty_shares(given, "epistemic", output=output).shape[:2] == (2, 3)
        with pytest.raises(ValueError, match="the aleatoric uncertainty of a regression is its noise_variance"):
            uncertainty_shares(given, "aleatoric", output=output)


def test_rows_are_probabilities_if_none_is_negative_and_they_sum_to_one():
    rows = {(0.0, 1.0): True, (0.25, 0.75): True, (-0.1, 1.1): False, (0.5, 0.4): False, (0.5, 0.6): False}
    assert {row: are_probabilities(tensor([row], dtype=torch.float64)) for row in rows} == rows


PLACES = [
    ((0, 0), [[1.0, 10.0], [7.0, 70.0]]),
    ((1, 2), [[6.0, 60.0], [12.0, 120.0]]),
    (tensor([[1, 0, 0], [0, 0, 1]]), [[7.0, 70.0], [19.0, 190.0]]),
    (tensor([[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]]]), [[1.0, 10.0], [12.0, 120.0]]),
    (tensor([[[[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 1]]]]), [[1.0, 60.0], [7.0, 120.0]]),
]


@pytest.mark.parametrize(("where", "wanted"), PLACES)
def test_the_places_of_a_segmentation_are_one_of_them_or_a_mask_by_hand(where, wanted):
    first = torch.arange(1.0, 13.0).view(2, 1, 2, 3)
    numbers = torch.cat([first, 10 * first], 1)  # (2, 2, 2, 3)
    output = Output("segmentation", where=where).settled(numbers, 2)
    assert output.columns(numbers).tolist() == wanted
    assert output.at(slice(1, 2)).columns(numbers[1:]).tolist() == wanted[1:]


@pytest.mark.parametrize("where", [(2, 0), (0, 3), (-1, 0), (0,), (0, 0, 0), torch.ones(3, 2), torch.ones(3, 2, 2, 3)])
def test_places_that_are_not_there_are_refused(where):
    with pytest.raises(ValueError, match="the places are .2, 3., counted from 0"):
        Output("segmentation", where=where).settled(torch.zeros(2, 2, 2, 3), 2)


def test_one_logit_is_two_whose_difference_it_is():
    assert Output("binary").of_classes(tensor([[3.0]])).tolist() == [[-1.5, 1.5]]
    assert Output("logits").of_classes(tensor([[3.0]])).tolist() == [[3.0]]
    assert Output("binary").of_classes(tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0]]


def test_an_output_is_a_name_a_key_a_function_or_two_of_them():
    assert as_output("binary") == as_output(None, "binary") == Output("binary")
    assert as_output("scores", "logits") == Output("logits", "scores") == as_output(("scores", "logits"))
    assert as_output(len).key is len and as_output(Output("regression"), "logits") == Output("regression")
    for wrong in (("a", "logits", 1), 3, ["logits"]):
        with pytest.raises(TypeError, match="output is .*; pass one of logits"):
            as_output(wrong)


EPS = torch.finfo(torch.float64).eps
PAIRS: list[tuple[Any, Any, bool]] = [
    (tensor([[1.0, 2.0]]), tensor([[1.0, 2.0]]), True),
    (tensor([[1.0], [2.0]]), tensor([[1.0], [5.0]]), True),  # the second example is another one
    (tensor([[1.0], [2.0]]), tensor([[3.0], [2.0]]), False),
    (tensor([[0.0, 1.0]]).double(), tensor([[10 * EPS, 1.0]]).double(), True),  # rounding of the largest number
    (tensor([[0.0, 1.0]]).double(), tensor([[1000 * EPS, 1.0]]).double(), False),
    (tensor([[0.0, -1e9]]).double(), tensor([[1e9 * 10 * EPS, -1e9]]).double(), True),
    (tensor([[0.0, 1e-9]]).double(), tensor([[10 * EPS, 1e-9]]).double(), False),
    (tensor([[math.nan, 1.0]]), tensor([[math.nan, 1.0]]), True),
    (tensor([[math.nan, 1.0]]), tensor([[0.0, 1.0]]), False),
    (tensor([[math.inf, 1.0]]), tensor([[math.inf, 1.0]]), True),
    (tensor([[math.inf, 0.0]]), tensor([[math.inf, 0.5]]), False),
    (tensor([[0.0]]), tensor([[0.1]]), False),
    (tensor([[1, 2]]), tensor([[1, 2]]), True),
    (tensor([[1, 2]]), tensor([[1, 3]]), False),
    (tensor([[1, 2], [3, 4]]), tensor([[1, 2], [5, 6]]), True),
    (torch.zeros(1, 0), torch.zeros(1, 0), True),
    (torch.zeros(1, 2), torch.zeros(1, 3), True),  # which others refuse
    (tensor(1.0), tensor(2.0), True),
    ("a", "b", True),
    ("a", tensor([1.0]), False),
    (None, 1, False),
]


@pytest.mark.parametrize(("one", "other", "wanted"), PAIRS)
def test_two_answers_agree_if_their_first_examples_do_up_to_rounding(one, other, wanted):
    assert _agree(one, other) is wanted


def test_rows_are_copies_of_examples_one_after_another():
    draws = Draws([nn.Linear(2, 2)])
    found = [(example.tolist(), copy.tolist()) for _, example, copy in draws.in_rows(3, 2, at_once=4)]
    assert found == [([0, 0, 1, 1], [0, 1, 0, 1]), ([2, 2], [0, 1])]


def test_examples_are_counted_by_the_first_tensor_that_has_an_axis():
    assert count_examples((tensor(1.0), [torch.zeros(3, 2), torch.zeros(5)])) == 3
    assert [len(each) for each in tensors_in({"a": (torch.zeros(2), "b"), "c": torch.zeros(4)})] == [2, 4]
    with pytest.raises(TypeError, match="no tensor with an axis of examples"):
        count_examples((tensor(1.0), 3))


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda *_: None)
    return layer


def test_what_the_fast_path_knows_of_a_layer_by_hand():
    conv, norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2).eval()
    padded = [conv, nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding="same")]
    assert [is_zero_padded(each) for each in padded] == [True, True, False]
    assert not is_zero_padded(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    fixed = [is_fixed_norm(norm, nn.Conv2d), is_fixed_norm(nn.BatchNorm1d(2).eval(), nn.Linear)]
    assert fixed == [True, True]
    others = [nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False).eval(), hooked(nn.BatchNorm2d(2).eval())]
    assert not any(is_fixed_norm(each, nn.Conv2d) for each in (*others, nn.BatchNorm1d(2).eval(), nn.Identity()))
    assert not is_fixed_norm(norm, nn.Linear)
    assert [is_sure(each) for each in (nn.GELU(), nn.Dropout(0.1), nn.Flatten(0), Random())] == [True, *[False] * 3]
    assert [is_sure(each, True) for each in (nn.GELU(), nn.Dropout(0.1), nn.Flatten(0))] == [True, True, False]
    assert [is_known(each) for each in (nn.Dropout(0.1), nn.GELU(), Random(), nn.LSTM(2, 2))] == [
        True,
        True,
        False,
        False,
    ]
    assert kind_of(conv) is nn.Conv2d and kind_of(hooked(nn.Conv2d(2, 2, 3))) is nn.Module
    assert have_same_tensors([conv, conv]) and have_same_tensors([nn.ReLU(), nn.ReLU()])
    assert not have_same_tensors([conv, nn.Conv2d(2, 2, 3)])


def test_the_layers_of_a_network_are_those_of_its_sequences_unless_a_hook_sees_them():
    one, two, three = nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)
    inner = nn.Sequential(two, three)
    assert layers_of(nn.Sequential(one, inner)) == [one, two, three]
    assert layers_of(one) == [one] and layers_of(nn.Sequential(one, hooked(inner))) == [one, inner]


RANDOM = [torch.rand_like, torch.bernoulli, torch.poisson, torch.multinomial, F.gumbel_softmax, F.rrelu, Tensor.random_]
SURE = [torch.relu, F.linear, torch.zeros, Tensor.mul_, F.softmax]


def test_which_functions_of_torch_are_random():
    assert all(map(_is_random, RANDOM)) and not any(map(_is_random, SURE))


def test_draws_of_several_shapes_are_told_with_them():
    with pytest.raises(
        ValueError, match=r"the draws answer \(2,\) torch.float32 on cpu and \(3,\) torch.float32 on cpu"
    ):
        stacked([torch.zeros(2), torch.zeros(3), torch.zeros(2)])
    assert stacked([torch.zeros(2), torch.ones(2)]).shape == (2, 2)


@pytest.mark.parametrize("output", ["regression", "mean_variance"])
def test_one_draw_of_several_numbers_is_explained_at_the_first_of_them(output):
    network = nn.Sequential(linear([[1.0, 2.0], [3.0, 4.0]]), nn.Softplus()).eval()
    x = randn(3, 2)
    e = explain([network], gradient, x, output=output)
    assert e.target.tolist() == [0, 0, 0]
    assert_close(e.values[0], gradient(network, x, 0), **EXACT)


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_the_steps_of_a_path_without_weights_count_once_each(rows):
    network, x = seeded(table_mlp).eval(), randn(3, 5)
    path = Path(x, randn(3, 5, seed=1), torch.arange(4.0).double().view(4, 1))
    points = [x + step * path.spread for step in range(4)]
    wanted = sum(gradient(network, point, 1) for point in points)
    assert_close(along(network, path, 1, rows), wanted, **EXACT)
    draws = MCDropout(network).sample(2)
    with assert_fast():
        found = Engine(draws, x[:1]).attributions(path, torch.ones(3, dtype=torch.long))
    assert_close(torch.stack(list(found)), torch.stack([along(draw, path, 1, rows) for draw in draws]), **EXACT)


@pytest.mark.parametrize("rooted", [True, False], ids=["of a graph", "a leaf"])
def test_what_a_copy_changes_of_its_last_pass_is_its_own(rooted):
    network = seeded(table_mlp)
    network.last = torch.ones(3, requires_grad=True)
    if rooted:
        network.last = network.last * 2
    before = network.last.detach().clone()
    with torch.no_grad():
        trainable_copy(network).last.add_(5)
    assert_close(network.last.detach(), before, **EXACT)
