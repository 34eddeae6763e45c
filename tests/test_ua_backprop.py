"""UA-Backprop: its steps by hand, one pass per draw, class and example as the slow oracle, and completeness."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from core_networks import (
    EXACT,
    PICTURES,
    TABLE,
    OneOutput,
    assert_fast,
    assert_same,
    inplace_cnn,
    late_cnn,
    randn,
    seeded,
    snapshot,
    table_mlp,
    torchvision_resnet,
)
from oracles import psi_of, slow_map
from torch import nn, tensor
from torch.testing import assert_close

from xuqlib import DeepEnsemble, Draws, MCDropout, integrated_gradients, uncertainties
from xuqlib.explainers.fullgrad import fullgrad_terms
from xuqlib.study.judging.rivals import ua_backprop_linear
from xuqlib.ua_backprop import (
    COEFFICIENTS,
    SETTINGS,
    class_maps,
    logit_coefficients,
    spread_shares,
    ua_backprop,
)
from xuqlib.uncertainty import KINDS, uncertainty_shares

LOG2 = math.log(2)


def log_odds(*probs):
    return tensor(probs, dtype=torch.float64).log()


def linear(weight):
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    layer.weight.data = tensor(weight, dtype=torch.float64)
    return layer


def case(name, num_draws=3, dtype=torch.float64):
    """Draws and examples of their kind, (4, 5) or (3, 3, 8, 8)."""
    if name == "resnet":
        members = [seeded(torchvision_resnet, seed=seed, dtype=dtype) for seed in range(2)]
        return DeepEnsemble(members).sample(), 5 * randn(*PICTURES, dtype=dtype)
    build = {"cnn": inplace_cnn, "mlp": table_mlp, "late cnn": late_cnn}[name]
    x = 3 * randn(*(TABLE if name == "mlp" else PICTURES), dtype=dtype)
    return MCDropout(seeded(build, dtype=dtype)).sample(num_draws, seed=1), x


# By hand


def test_shares_of_two_draws_by_hand():
    logits = torch.stack([log_odds(0.75, 0.25), log_odds(0.25, 0.75)])[:, None]
    total = tensor([[0.75, 0.25], [0.25, 0.75]], dtype=torch.float64)[:, None] * LOG2 / 2
    log3 = math.log(3)
    aleatoric = [[0.75 * (2 * LOG2 - log3) / 2, 0.25 * 2 * LOG2 / 2]]
    epistemic = [[0.75 * (log3 - LOG2) / 2, -0.25 * LOG2 / 2]]
    mirrored = lambda rows: tensor([rows, [rows[0][::-1]]], dtype=torch.float64)  # noqa: E731
    assert_close(uncertainty_shares(logits, "total"), total, **EXACT)
    assert_close(uncertainty_shares(logits, "aleatoric"), mirrored(aleatoric), **EXACT)
    assert_close(uncertainty_shares(logits, "epistemic"), mirrored(epistemic), **EXACT)


def test_coefficients_of_three_classes_by_hand():
    logits = log_odds(0.5, 0.25, 0.25)
    jacobian = tensor([[8, -4, -4], [-4, 6, -2], [-4, -2, 6]], dtype=torch.float64) / 32
    ratio = tensor([[6, 3, 3], [4, 6, 2], [4, 2, 6]], dtype=torch.float64) / 12
    sign = 2 * torch.eye(3, dtype=torch.float64) - 1
    assert_close(logit_coefficients(logits, "softmax", 0.2), (jacobian / 0.2).softmax(-1), **EXACT)
    assert_close(logit_coefficients(logits, "ratio"), ratio, **EXACT)
    assert_close(logit_coefficients(logits, "row-normalised", 0.2), (sign * ratio / 0.2).softmax(-1), **EXACT)
    assert_close(jacobian.abs() / jacobian.abs().sum(-1, keepdim=True), ratio, **EXACT)


def test_weights_of_the_pixels_by_hand():
    maps = tensor([[[0.0, math.log(3)], [1.0, 3.0]]], dtype=torch.float64)
    shares = tensor([[4.0, 8.0]], dtype=torch.float64)
    halves = [4 / (1 + 3**2) + 8 / (1 + math.exp(4)), 4 * 9 / (1 + 3**2) + 8 / (1 + math.exp(-4))]
    assert_close(spread_shares(shares, maps, tau2=0.5), tensor([halves], dtype=torch.float64), **EXACT)
    assert_close(spread_shares(shares, maps, normalise="sum"), tensor([[2.0, 10.0]], dtype=torch.float64), **EXACT)
    # Pixels of both maps lie one standard deviation either side of their mean, so tau2 = 1/2 puts 4 between them.
    one = [4 / (1 + math.exp(4)) + 8 / (1 + math.exp(4)), 4 / (1 + math.exp(-4)) + 8 / (1 + math.exp(-4))]
    found = spread_shares(shares, maps, normalise="relative", tau2=0.5)
    assert_close(found, tensor([one], dtype=torch.float64), **EXACT)
    for normalise in ("softmax", "relative", "sum"):
        assert spread_shares(shares, 0 * maps, normalise=normalise).tolist() == [[6.0, 6.0]]
        rounded = spread_shares(shares.float(), randn(1, 2, 500).abs().float(), normalise=normalise)
        assert rounded.dtype == torch.float64 and rounded.sum().item() == pytest.approx(12, rel=1e-14)


def test_two_linear_draws_by_hand():
    # Logits (log 3, 0) and (0, log 3): the mean is even. With two classes the ratio gives each logit half of
    # every share, so log 2 / 4 of the total to each of four logits, whose maps are |w| |x| over its sum.
    step = math.log(3)
    draws = [linear([[0.75 * step, 0.25 * step], [3.0, -3.0]]), linear([[2.0, -2.0], [step, 0.0]])]
    x = torch.ones(1, 2, dtype=torch.float64)
    found = ua_backprop(draws, x, "total", setting="recommended", coefficients="ratio")
    quarter = LOG2 / 4 * tensor([[0.75 + 0.5 + 0.5 + 1.0, 0.25 + 0.5 + 0.5]], dtype=torch.float64)
    assert_close(found, quarter, **EXACT)
    # Signed, and by the logits themselves: the same shares times w x, which is 0 for the two sure rows.
    signed = LOG2 / 4 * tensor([[0.75 * step + 3 + 2 + step, 0.25 * step - 3 - 2]], dtype=torch.float64)
    assert_close(ua_backprop_linear(draws, x, "total", coefficients="ratio"), signed, **EXACT)


# One pass per draw, class and example


def slow_ua(draws, x, kind, setting, slow_map=slow_map):
    """UA-Backprop in loops over single numbers, from the equations."""
    num_draws, out = len(draws), []
    for example in x:
        logits = np.array([network(example[None])[0].tolist() for network in draws])
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        mean, total, classes = probs.mean(0), 0, range(probs.shape[1])
        for network, p in zip(draws, probs, strict=True):
            for j in classes:
                share = 0.0
                for i in classes:
                    surprise = {
                        "total": -math.log(mean[i]),
                        "aleatoric": -math.log(p[i]),
                        "epistemic": math.log(p[i]) - math.log(mean[i]),
                    }[kind]
                    share += p[i] * surprise / num_draws * slow_coefficients(p, i, setting)[j]
                found = slow_map(network, example, j, setting.psi)
                unit = found.std(correction=0) if setting.normalise == "relative" else 1
                weights = (found / unit / setting.tau2).flatten().softmax(0).view(found.shape)
                total = total + share * (found / found.sum() if setting.normalise == "sum" else weights)
        out.append(total)
    return torch.stack(out)


def slow_coefficients(p, i, setting):
    row = np.array([p[i] * ((i == j) - p[j]) for j in range(len(p))])
    if setting.coefficients == "ratio":
        return np.abs(row) / np.abs(row).sum()
    if setting.coefficients == "row-normalised":
        row = row / np.abs(row).sum()
    raised = np.exp((row - row.max()) / setting.tau1)  # the largest taken off, or it overflows
    return raised / raised.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_it_equals_one_pass_per_draw_class_and_example(name, setting, kind):
    draws, x = case(name)
    with assert_fast():
        found = ua_backprop(draws, x, kind, setting=setting)
    assert_close(found, slow_ua(draws, x, kind, SETTINGS[setting]), **EXACT)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_each_argument_replaces_what_the_setting_says(name):
    draws, x = case(name)
    choices = [{"tau1": 0.03}, {"tau2": 0.4}, {"psi": "raw"}, {"normalise": "sum"}, {"coefficients": "row-normalised"}]
    for given in [*choices, {"coefficients": "ratio"}, {"normalise": "relative", "tau2": 0.7}]:
        wanted = slow_ua(draws, x, "epistemic", SETTINGS["paper"]._replace(**given))
        with assert_fast():
            found = ua_backprop(draws, x, **given)
        assert_close(found, wanted, **EXACT)


def test_a_relative_temperature_does_not_depend_on_the_unit_of_the_maps():
    shares, maps = randn(3, 4).double(), randn(3, 4, 5, 5).abs().double()
    found = [spread_shares(shares, scale * maps, normalise="relative", tau2=0.3) for scale in (1, 1e-9, 140)]
    assert_close(found[1], found[0], **EXACT)
    assert_close(found[2], found[0], **EXACT)
    softmax = [spread_shares(shares, scale * maps, tau2=0.3) for scale in (1, 140)]
    assert (softmax[1] - softmax[0]).abs().max() > 0.1  # as the paper's does


def test_any_explainer_can_be_plugged_in():
    draws, x = case("cnn", num_draws=2)
    steps = {"num_steps": 5}

    def slow(network, example, label, psi):
        attribution = integrated_gradients(network, example[None], label, **steps)
        return psi_of(attribution, psi)[0].sum(0)

    wanted = slow_ua(draws, x, "total", SETTINGS["paper"], slow)
    for explainer in ("integrated_gradients", integrated_gradients):
        assert_close(ua_backprop(draws, x, "total", explainer=explainer, **steps), wanted, **EXACT)
    plain = class_maps(draws[0], x, explainer="gradient_x_input", psi="raw")
    for label in range(3):
        assert_close(plain[:, label], fullgrad_terms(draws[0], x, label).input.abs().sum(1), **EXACT)


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "late cnn"])
def test_the_linear_variant_weighs_the_signed_terms_of_every_logit(name, coefficients):
    draws, x = case(name)
    with assert_fast():
        found = ua_backprop_linear(draws, x, "epistemic", coefficients=coefficients)
    logits = draws(x).detach()
    handed_on = logit_coefficients(logits, coefficients, SETTINGS["paper"].tau1)
    shares = torch.einsum("sni,snij->snj", uncertainty_shares(logits), handed_on)
    wanted = 0
    for network, share in zip(draws, shares, strict=True):
        for label in range(3):
            terms = fullgrad_terms(network, x, label)
            placed = terms.input.flatten(1).sum(1)
            wanted = wanted + share[:, label] * (placed + sum(term.flatten(1).sum(1) for term in terms.maps))
    assert_close(found.flatten(1).sum(1), wanted, **EXACT)
    assert found.shape == (x.shape if name == "mlp" else (3, 8, 8))


# Completeness


@pytest.mark.parametrize("explainer", ["fullgrad", "gradient_x_input"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "late cnn"])
def test_it_sums_to_the_uncertainty(name, setting, explainer):
    draws, x = case(name)
    for kind, coefficients in itertools.product(KINDS, COEFFICIENTS):
        options = {"setting": setting, "coefficients": coefficients, "explainer": explainer}
        found = ua_backprop(draws, x, kind, **options).flatten(1).sum(1)
        assert_close(found, getattr(uncertainties(draws, x), kind), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_it_sums_to_the_uncertainty_of_residual_networks(kind):
    draws, x = case("resnet")
    wanted = getattr(uncertainties(draws, x), kind)
    assert wanted.min() > 1e-3
    assert_close(ua_backprop(draws, x, kind).flatten(1).sum(1), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_in_float32_it_sums_to_the_uncertainty_up_to_its_rounding(name, setting):
    draws, x = case(name, dtype=torch.float32)
    for kind in KINDS:
        found, wanted = ua_backprop(draws, x, kind, setting=setting), getattr(uncertainties(draws, x), kind)
        assert found.dtype == torch.float32 and not found.requires_grad
        # The promise of METHODS; a sum of 64 rounded numbers stays far below.
        assert ((found.flatten(1).sum(1) - wanted).abs() <= 1e-5 * wanted.clamp(min=1)).all()


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_sure_draws_that_disagree_keep_all_they_have_to_tell(size):
    logits = tensor([[[size, 0.0, 0.0]], [[0.0, size, 0.0]]], dtype=torch.float64)
    for kind, coefficients in itertools.product(KINDS, COEFFICIENTS):
        rows = logit_coefficients(logits, coefficients)
        shares = torch.einsum("sni,snij->snj", uncertainty_shares(logits, kind), rows)
        assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]), **EXACT)
        assert shares.sum().item() == pytest.approx(0 if kind == "aleatoric" else LOG2, abs=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_input_on_which_draws_agree_gets_no_epistemic_attribution(setting):
    network = seeded(inplace_cnn).eval()
    x = randn(*PICTURES)
    assert torch.equal(ua_backprop([network], x, setting=setting), torch.zeros(3, 8, 8, dtype=torch.float64))
    assert ua_backprop([network] * 3, x, setting=setting).abs().max() < 1e-15
    sure = linear([[1e4, 1e4], [0.0, 0.0]])
    assert torch.equal(ua_backprop([sure, sure], torch.ones(1, 2).double(), "total"), torch.zeros(1, 2).double())


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_blank_picture_is_attributed_evenly(setting):
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    found = ua_backprop([head], x, "total", setting=setting)
    even = uncertainties(Draws([head]), x).total[:, None, None].expand(2, 2, 2) / 4
    assert_close(found, even, **EXACT)


def test_shares_over_draws_and_over_classes_are_never_negative():
    shares = uncertainty_shares(5 * randn(6, 200, 4))
    assert shares.min() < -0.01
    assert (shares.sum(0) >= -1e-15).all() and (shares.sum(-1) >= -1e-15).all()


def test_temperatures_near_zero_give_all_to_the_largest():
    jacobian_row = logit_coefficients(randn(4, 3), "softmax", 1e-320)
    assert torch.equal(jacobian_row, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    maps, shares = randn(2, 3, 5).abs(), torch.ones(2, 3)
    assert spread_shares(shares, maps, tau2=1e-320).sum(1).tolist() == [3.0, 3.0]


# What it promises besides


@pytest.mark.parametrize("attribute", [ua_backprop, ua_backprop_linear])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_chunking_does_not_change_the_result(name, attribute):
    draws, x = case(name)
    wanted = attribute(draws, x)
    for chunk in (1, 6, 9, 1000):
        assert_close(attribute(draws, x, chunk=chunk), wanted, **EXACT)


@pytest.mark.parametrize("chunk", [1, 3])
def test_no_pass_has_more_rows_than_asked_for(chunk):
    sizes = []
    network = seeded(table_mlp).eval()
    network.register_forward_hook(lambda *call: sizes.append(len(call[1][0])))
    ua_backprop([network], randn(*TABLE), chunk=chunk)
    # It is tried out on two examples, twice; the next pass is that of the logits.
    assert sizes == [2, 2, 4, *([1, 1, 1, 1] if chunk == 1 else [3, 1])]


@pytest.mark.parametrize("build", [inplace_cnn, late_cnn], ids=lambda build: build.__name__)
def test_networks_and_x_are_left_untouched(build):
    network = seeded(build).eval()
    network[1].weight.grad = torch.ones_like(network[1].weight)
    x = randn(*PICTURES).requires_grad_()
    before, values = snapshot(network), x.detach().clone()
    for explainer in ("fullgrad", "gradient_x_input", lambda network, x, target: 2 * x):
        assert not ua_backprop([network], x, "total", explainer=explainer).requires_grad
    assert not ua_backprop_linear([network], x, "total").requires_grad
    assert_same(before, snapshot(network))
    assert torch.equal(x, values) and x.grad is None


def test_the_shares_of_a_regression_hold_its_noise_to_the_last_digit():
    answers = torch.tensor([[[1.0]], [[2.0]]], dtype=torch.float64)
    shares = uncertainty_shares(answers, "total", 0.1, "regression")  # in float32, 0.1 is off by 1.5e-9
    assert_close(shares.sum(), torch.tensor(0.35, dtype=torch.float64), rtol=1e-15, atol=0)


@pytest.mark.parametrize("attribute", [ua_backprop, ua_backprop_linear])
def test_it_gives_the_same_inside_no_grad_and_inference_mode(attribute):
    draws, x = case("cnn")
    wanted = attribute(draws, x)
    with torch.no_grad():
        assert torch.equal(attribute(draws, x), wanted)
    with torch.inference_mode():
        assert torch.equal(attribute(draws, x * 1), wanted)


# Bad input

DRAWS, X = case("mlp")
BAD = {
    "kind": (lambda: ua_backprop(DRAWS, X, "both"), ValueError, "kind 'both'; known: total, aleatoric, epistemic"),
    "setting": (lambda: ua_backprop(DRAWS, X, setting="best"), ValueError, "setting 'best'; known: paper, recommended"),
    "coefficients": (lambda: ua_backprop(DRAWS, X, coefficients="J"), ValueError, "'J'; known: softmax, row-norm"),
    "psi": (lambda: ua_backprop(DRAWS, X, psi="signed"), ValueError, "psi 'signed'; known: minmax, raw"),
    "normalise": (
        lambda: ua_backprop(DRAWS, X, normalise="max"),
        ValueError,
        "normalise 'max'; known: softmax, relative, sum",
    ),
    "explainer": (
        lambda: ua_backprop(DRAWS, X, explainer="shap"),
        ValueError,
        "explainer 'shap'; known: gradient, .*fullgrad",
    ),
    "no explainer": (lambda: ua_backprop(DRAWS, X, explainer=3), TypeError, "explainer is 3"),
    "batch statistics": (
        lambda: class_maps(nn.BatchNorm1d(5, track_running_stats=False).double().eval(), randn(4, 5)),
        ValueError,
        "a BatchNorm needs running statistics",
    ),
    "option": (lambda: ua_backprop(DRAWS, X, num_steps=3), TypeError, "fullgrad takes no option 'num_steps'"),
    "map shape": (
        lambda: ua_backprop(DRAWS, X, explainer=lambda network, x, target: x[:, :2]),
        ValueError,
        r"returned \(4, 2\), not an attribution shaped like x \(4, 5\)",
    ),
    "tau1": (lambda: ua_backprop(DRAWS, X, tau1=0), ValueError, "tau1 is 0.0; pass a finite number above 0"),
    "tau2": (lambda: ua_backprop(DRAWS, X, tau2=-1.0), ValueError, "tau2 is -1.0; pass a finite number above 0"),
    "tau word": (lambda: ua_backprop(DRAWS, X, tau2="hot"), TypeError, "tau2 is 'hot'; pass a number"),
    "tau1 of a ratio": (
        lambda: ua_backprop(DRAWS, X, coefficients="ratio", tau1=0.1),
        ValueError,
        "tau1 is 0.1 but has no effect with coefficients='ratio'",
    ),
    "tau2 of a sum": (lambda: ua_backprop(DRAWS, X, setting="recommended", tau2=1.0), ValueError, "normalise='sum'"),
    "chunk": (lambda: ua_backprop(DRAWS, X, chunk=0), ValueError, "chunk is 0"),
    "x shape": (lambda: ua_backprop(DRAWS, X[0]), ValueError, r"shape \(5,\); pass \(N, features\)"),
    "x NaN": (lambda: ua_backprop(DRAWS, X / 0 * 0), ValueError, "NaN"),
    "one network": (lambda: ua_backprop(seeded(table_mlp).eval(), X), TypeError, "posterior.sample"),
    "training": (lambda: ua_backprop([seeded(table_mlp)], X), ValueError, "training mode"),
    "regression": (
        lambda: ua_backprop(MCDropout(seeded(OneOutput)).sample(2), X, "aleatoric"),
        ValueError,
        "noise_variance, the same for all x",
    ),
    "linear": (lambda: ua_backprop_linear(DRAWS, X, "both"), ValueError, "unknown kind 'both'"),
    "linear tau1": (lambda: ua_backprop_linear(DRAWS, X, tau1=-1), ValueError, "tau1 is -1.0"),
    "shares": (lambda: uncertainty_shares(randn(2, 3, 4), "both"), ValueError, "unknown kind 'both'"),
    "flat logits": (lambda: uncertainty_shares(randn(2, 3)), ValueError, r"shape \(2, 3\)"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error(what):
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call()
