"""Rivals of UA-Backprop: U as a network, its explanations by hand, and covariances against the matrix itself."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from core_networks import (
    EXACT,
    PICTURES,
    TABLE,
    OneOutput,
    assert_same,
    inplace_cnn,
    late_cnn,
    randn,
    seeded,
    snapshot,
    table_mlp,
)
from torch import nn, tensor
from torch.testing import assert_close

from xuqlib import (
    Draws,
    MCDropout,
    explain,
    gradient,
    gradient_x_input,
    integrated_gradients,
    smoothgrad,
    ua_backprop,
    uncertainties,
)
from xuqlib.checks import check_fixed
from xuqlib.explainers.fullgrad import fullgrad, fullgrad_terms
from xuqlib.explainers.lime import lime
from xuqlib.study.judging.rivals import (
    CONTROLS,
    RIVALS,
    covariance_of_explanations,
    distance_to_blur,
    fullgrad_of_prediction,
    intensity,
    random,
    shuffled_shares,
)
from xuqlib.uncertainty import UncertaintyOf, attribute_uncertainty, uncertainty_shares

KINDS = ("total", "aleatoric", "epistemic")
EVERY = RIVALS | CONTROLS
PICTURES_ONLY = {"ig_blurred", "distance_to_blur"}
SEEDED = {"random", "shuffled_shares"}  # another deal for each place in the batch
FEW = {"lime": {"num_samples": 60, "num_segments": 6}, "smoothgrad": {"num_samples": 3}}
FEW |= {name: {"num_steps": 3} for name in RIVALS if name.startswith(("ig", "covig"))}


def case(name, num_draws=3, dtype=torch.float64):
    """Draws that disagree, and examples of their kind, (4, 5) or (3, 3, 8, 8)."""
    build = {"cnn": inplace_cnn, "mlp": table_mlp, "late cnn": late_cnn}[name]
    x = 3 * randn(*(TABLE if name == "mlp" else PICTURES), dtype=dtype)
    return MCDropout(seeded(build, dtype=dtype)).sample(num_draws, seed=1), x


def linear(weight):
    layer = nn.Linear(len(weight[0]), len(weight), bias=False).double()
    layer.weight.data = tensor(weight, dtype=torch.float64)
    return layer


def u_of(draws, x, kind):
    return getattr(uncertainties(draws if isinstance(draws, Draws) else Draws(draws), x), kind)


# U as a network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "late cnn"])
def test_the_uncertainty_as_a_network_equals_uncertainties(name, kind):
    draws, x = case(name)
    found, wanted = UncertaintyOf(draws, kind)(x), u_of(draws, x, kind)
    assert found.shape == (len(x), 1)
    assert wanted.min() > 1e-4
    assert_close(found[:, 0], wanted, rtol=1e-12, atol=1e-15)


def test_in_float32_entropies_are_still_taken_in_float64():
    probs = tensor([[0.5 + 1e-5, 0.5 - 1e-5], [0.5 - 1e-5, 0.5 + 1e-5]], dtype=torch.float64)
    logits = probs.log().float()
    heads = [nn.Sequential(nn.Linear(1, 2)) for _ in logits]
    for head, row in zip(heads, logits, strict=True):
        nn.init.zeros_(head[0].weight)
        head[0].bias.data = row
    found = UncertaintyOf(heads, "epistemic")(torch.ones(1, 1))
    # 2 e^2 nats, e = 1e-5: in float32, differences of entropies of 0.69 begin at 6e-8.
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(2e-10, rel=0.02)  # the logits are rounded to 6e-8 of 0.7


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "late cnn"])
def test_its_gradient_equals_finite_differences(name, kind):
    draws, x = case(name)
    found, step = gradient(UncertaintyOf(draws, kind), x, 0), 1e-5
    for place in range(0, x[0].numel(), 1 if name == "mlp" else 37):
        moved = torch.zeros_like(x[0]).flatten()
        moved[place] = step
        ahead, behind = (u_of(draws, x + sign * moved.view(x[0].shape), kind) for sign in (1, -1))
        # Central differences are off by step^2 and by rounding / step: about 1e-10 here.
        assert_close(found.flatten(1)[:, place], (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def test_the_gradient_of_the_total_uncertainty_of_linear_networks_by_hand():
    draws = [linear([[1.0, -2.0], [0.5, 0.0], [-1.0, 1.0]]), linear([[0.0, 1.0], [2.0, -1.0], [1.0, 0.5]])]
    x = tensor([[0.7, -0.3]], dtype=torch.float64)
    probs = [network(x)[0].softmax(0) for network in draws]
    mean = (probs[0] + probs[1]) / 2
    # dU/dp_i = -(log mean_i + 1) / S; dp_i/dz_j = p_i (1[i = j] - p_j); dz_j/dx = row j of the weight.
    wanted = torch.zeros(2, dtype=torch.float64)
    for network, p in zip(draws, probs, strict=True):
        jacobian = torch.diag(p) - torch.outer(p, p)
        wanted += -(mean.log() + 1) / 2 @ jacobian @ network.weight.detach()
    assert_close(gradient(UncertaintyOf(draws, "total"), x, 0)[0], wanted.detach(), **EXACT)
    assert_close(attribute_uncertainty(draws, x, "total")[0], (x[0] * wanted).detach(), **EXACT)


def test_every_explainer_takes_it_for_a_network():
    draws, x = case("late cnn")
    network = UncertaintyOf(draws, "total")
    check_fixed(network)
    assert not network.training
    for explainer in (gradient, gradient_x_input, integrated_gradients):
        found = explainer(network, x, 0)
        assert_close(found, explainer(network, x, torch.zeros(len(x), dtype=torch.long)), **EXACT)
        assert found.shape == x.shape
        assert found.abs().max() > 1e-3
    assert smoothgrad(network, x, 0, num_samples=2).isfinite().all()
    assert lime(network, x, 0, num_samples=60, num_segments=6).abs().max() > 1e-3
    with pytest.warns(UserWarning, match="not piecewise linear"):  # an entropy is not
        assert fullgrad(network, x, 0).abs().max() > 1e-3


def test_rounding_takes_it_nowhere_below_zero():
    network, x = seeded(table_mlp).eval(), 3 * randn(100, 5)
    draws = Draws([network] * 10)
    assert uncertainty_shares(draws(x)).sum((0, 2)).min() < 0  # ten draws that agree, by a few 1e-17
    assert UncertaintyOf(draws)(x).min() >= 0


def test_a_network_in_training_mode_is_found_inside_of_it():
    with pytest.raises(ValueError, match="training mode"):
        check_fixed(UncertaintyOf([seeded(table_mlp)]))


# Any explainer


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_sum_to_what_u_gains_over_the_baseline(kind):
    draws, x = case("mlp")
    start = 0.5 * torch.ones_like(x)
    found = attribute_uncertainty(
        draws, x, kind, explainer="integrated_gradients", baseline=start, num_steps=400, chunk=1000
    )
    # ReLUs make kinks on the path, so the error falls as 1 / num_steps only.
    assert_close(found.sum(1), u_of(draws, x, kind) - u_of(draws, start, kind), rtol=0, atol=3e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_gradients_of_smooth_networks_sum_exactly(kind):
    draws, x = [linear(randn(3, 5, seed=seed).tolist()) for seed in range(4)], randn(*TABLE, seed=9)
    found = attribute_uncertainty(draws, x, kind, explainer="integrated_gradients", num_steps=64)
    gained = u_of(draws, x, kind) - u_of(draws, 0 * x, kind)
    assert_close(found.sum(1), gained, **EXACT)
    if kind == "epistemic":
        assert gained.min() > 0.01


def test_channels_are_summed_with_their_sign_or_without():
    draws, x = case("cnn")
    plain = gradient_x_input(UncertaintyOf(draws), x, 0)
    assert_close(attribute_uncertainty(draws, x), plain.sum(1), **EXACT)
    assert_close(attribute_uncertainty(draws, x, absolute=True), plain.abs().sum(1), **EXACT)
    assert_close(RIVALS["gradient"](draws, x), gradient(UncertaintyOf(draws), x, 0).abs().sum(1), **EXACT)


def test_fullgrad_of_u_adds_up_its_signed_terms():
    draws, x = case("late cnn")
    terms = fullgrad_terms(UncertaintyOf(draws, "total"), x, 0)
    wanted = terms.input.flatten(1).sum(1) + sum(term.flatten(1).sum(1) for term in terms.maps)
    assert len(terms.maps) == 2  # the convolution and the BatchNorm behind it
    assert_close(RIVALS["fullgrad_of_u"](draws, x, "total").flatten(1).sum(1), wanted, **EXACT)
    with pytest.warns(UserWarning, match="not piecewise linear"):
        raw = fullgrad(UncertaintyOf(draws, "total"), x, 0, psi="raw").sum(1)
    assert_close(RIVALS["fullgrad_of_u"](draws, x, "total", psi="raw"), raw, **EXACT)


def test_options_with_one_entry_per_example_are_cut_with_the_examples():
    draws, x = case("cnn")
    start = randn(*PICTURES, seed=5)
    whole, parts = (RIVALS["ig_black"](draws, x, baseline=start, chunk=chunk) for chunk in (1000, 1))
    assert_close(whole, parts, **EXACT)
    quarters = torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4
    segments = torch.stack([quarters, quarters.T, 0 * quarters])
    options = {"segments": segments, "num_samples": 60}
    found = RIVALS["lime"](draws, x, chunk=1, **options)
    assert_close(found, RIVALS["lime"](draws, x, **options), **EXACT)
    assert [len(each.unique()) for each in found] == [4, 4, 1]
    # The mean over examples is a baseline of all of them, whatever the chunk.
    mean = [RIVALS["ig_black"](draws, x, baseline="mean", chunk=chunk) for chunk in (1, 1000)]
    assert_close(*mean, **EXACT)


def test_a_scale_for_each_feature_is_not_taken_for_one_for_each_example():
    draws, x = case("mlp")
    square = torch.cat([x, x[:1]])  # five examples of five features
    scale = torch.arange(1.0, 6.0)
    one_by_one = [RIVALS["lime"](draws, row[None], scale=scale, num_samples=60) for row in square]
    assert_close(RIVALS["lime"](draws, square, scale=scale, num_samples=60, chunk=2), torch.cat(one_by_one), **EXACT)


# Covariance of explanations


@pytest.mark.parametrize("explainer", [gradient_x_input, integrated_gradients])
def test_the_diagonal_is_the_variance_of_an_explanation_distribution(explainer):
    draws, x = case("mlp", num_draws=5)
    found = covariance_of_explanations(draws, x, explainer=explainer.__name__)
    assert_close(found, explain(draws, explainer, x).std() ** 2, **EXACT)
    assert found.min() > 0


def test_the_diagonal_of_pictures_is_the_variance_after_channels_are_summed():
    draws, x = case("cnn", num_draws=5)
    each = torch.stack([gradient_x_input(network, x, draws(x).softmax(-1).mean(0).argmax(1)) for network in draws])
    assert_close(RIVALS["covgi_diag"](draws, x), each.sum(2).var(0, correction=0), **EXACT)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_diagonal_and_margin_equal_those_of_the_covariance_matrix(name):
    draws, x = case(name, num_draws=4)
    target = draws(x).softmax(-1).mean(0).argmax(1)
    for family, explainer in (("covgi", gradient_x_input), ("covig", integrated_gradients)):
        values = [explainer(network, x, target) for network in draws]
        values = torch.stack([value.sum(1) if value.dim() == 4 else value for value in values]).flatten(2)
        diag, marg = (RIVALS[f"{family}_{form}"](draws, x).flatten(1) for form in ("diag", "marg"))
        for example in range(len(x)):
            matrix = torch.cov(values[:, example].T, correction=0)  # (P, P)
            assert_close(diag[example], matrix.diagonal(), **EXACT)
            assert_close(marg[example], matrix.sum(1), **EXACT)


def test_the_margin_sums_to_the_variance_of_the_logit_that_is_gained():
    draws, x = [linear(randn(3, 5, seed=seed).tolist()) for seed in range(6)], randn(*TABLE, seed=9)
    start = randn(*TABLE, seed=3)
    logits = torch.stack([network(x) - network(start) for network in draws]).detach()
    mean = torch.stack([network(x).softmax(-1) for network in draws]).mean(0)
    gained = logits.gather(2, mean.argmax(1).expand(6, 1, -1).movedim(1, 2)).squeeze(2)  # (S, N)
    found = RIVALS["covig_marg"](draws, x, baseline=start)
    assert_close(found.sum(1), gained.var(0, correction=0), **EXACT)


def test_the_margin_sums_to_the_variance_of_the_logit_of_a_convolutional_network():
    draws, x = case("late cnn", num_draws=5)
    target = draws(x).softmax(-1).mean(0).argmax(1)
    gained = torch.stack([(network(x) - network(0 * x)).gather(1, target[:, None])[:, 0] for network in draws])
    found = RIVALS["covig_marg"](draws, x, num_steps=200).flatten(1).sum(1)
    assert_close(found, gained.detach().var(0, correction=0), rtol=0.01, atol=0)  # kinks on the path


def test_many_examples_are_explained_in_parts(monkeypatch):
    draws, x = case("mlp")
    start = randn(*TABLE, seed=3)
    wanted = RIVALS["covig_marg"](draws, x, baseline=start)
    sizes, at_once = [], explain
    monkeypatch.setattr(
        "xuqlib.study.judging.rivals.explain", lambda *a, **k: (sizes.append(len(a[2])), at_once(*a, **k))[1]
    )
    monkeypatch.setattr("xuqlib.study.judging.rivals.LARGEST", 3 * 5 * 2)  # draws, features, examples
    assert_close(RIVALS["covig_marg"](draws, x, baseline=start), wanted, **EXACT)
    assert sizes == [2, 2]


# Controls


def test_controls_that_know_no_network_by_hand():
    draws, x = case("cnn")
    flat = torch.full_like(x, 0.5)
    assert torch.equal(intensity(draws, x), x.sum(1))
    assert distance_to_blur(draws, flat).abs().max() < 1e-15
    spot = torch.zeros_like(x)
    spot[:, :, 4, 4] = 1
    assert distance_to_blur(draws, spot).flatten(1).argmax(1).tolist() == [36, 36, 36]
    noise = random(draws, x)
    assert len(noise.unique()) == noise.numel()  # no two examples, or pixels, alike
    assert torch.equal(noise, random(draws, x))
    assert not torch.equal(noise, random(draws, x, seed=1))


@pytest.mark.parametrize("setting", ["paper", "recommended"])
def test_fullgrad_of_the_prediction_is_the_mean_of_the_maps_of_the_predicted_class(setting):
    draws, x = case("late cnn")
    target = draws(x).softmax(-1).mean(0).argmax(1)
    psi = {"paper": "minmax", "recommended": "raw"}[setting]
    wanted = torch.stack([fullgrad(network, x, target, psi=psi).sum(1) for network in draws]).mean(0)
    assert_close(fullgrad_of_prediction(draws, x, setting=setting), wanted, **EXACT)
    assert_close(fullgrad_of_prediction(draws, x, "total", setting=setting), wanted, **EXACT)


@pytest.mark.parametrize("setting", ["paper", "recommended"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_shuffled_shares_still_sum_to_the_uncertainty(name, kind, setting):
    draws, x = case(name)
    found = shuffled_shares(draws, x, kind, setting=setting)
    assert_close(found.flatten(1).sum(1), u_of(draws, x, kind), rtol=0, atol=1e-12)
    assert (found - ua_backprop(draws, x, kind, setting=setting)).abs().max() > 1e-5
    assert not torch.equal(found, shuffled_shares(draws, x, kind, setting=setting, seed=1))


def test_two_shares_are_dealt_crosswise():
    # One draw of two classes: two logits, whose weights w x select a feature each, so shares lie bare in the map.
    draws, x = [linear([[1.0, 0.0], [0.0, 2.0]])], torch.ones(1, 2).double()
    options = {"setting": "recommended", "tau1": 1e-6}  # each probability's share goes to its own logit
    one, other = (find(draws, x, "total", **options) for find in (ua_backprop, shuffled_shares))
    p = 1 / (1 + math.exp(1))
    assert_close(one, tensor([[-p * math.log(p), -(1 - p) * math.log(1 - p)]], dtype=torch.float64), **EXACT)
    assert_close(other, one.flip(1), **EXACT)


def test_no_logit_keeps_its_share():
    # Each logit reads a pixel of its own, so the map holds the shares themselves.
    draws = [linear([[0.0] * 3 * s + [float(c == i) for c in range(3)] + [0.0] * 3 * (3 - s) for i in range(3)])
             for s in range(4)]  # fmt: skip
    x = randn(5, 12).abs() + 0.1
    options = {"setting": "recommended", "tau1": 1e-6}
    shares, dealt = (find(draws, x, "total", **options) for find in (ua_backprop, shuffled_shares))
    assert_close(dealt.sort(1).values, shares.sort(1).values, **EXACT)
    assert (dealt - shares).abs().min() > 1e-9
    places = torch.cdist(dealt[..., None], shares[..., None]).argmin(2)
    assert len(places.unique(dim=0)) == 5  # another deal for each example


# What each promises


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EVERY)
def test_each_gives_finite_maps_without_channels(name, kind, dtype):
    for build in ("cnn", "mlp"):
        draws, x = case(build, dtype=dtype)
        if name.startswith("cov") and kind != "epistemic":
            with pytest.raises(ValueError, match=f"kind is '{kind}'; a covariance over draws"):
                EVERY[name](draws, x, kind)
        elif name in PICTURES_ONLY and build == "mlp":
            with pytest.raises(ValueError, match="needs images"):
                EVERY[name](draws, x, kind)
        else:
            found = EVERY[name](draws, x, kind, **FEW.get(name, {}))
            assert found.shape == ((3, 8, 8) if build == "cnn" else (4, 5))
            assert found.dtype == dtype
            assert not found.requires_grad
            assert found.isfinite().all()
            assert found.flatten(1).std(1).min() > 0


@pytest.mark.parametrize("name", [name for name in EVERY if name not in CONTROLS or name == "shuffled_shares"])
def test_each_knows_which_uncertainty_it_explains(name):
    if not name.startswith("cov"):
        draws, x = case("cnn")
        total, epistemic = (EVERY[name](draws, x, kind, **FEW.get(name, {})) for kind in ("total", "epistemic"))
        assert (total - epistemic).abs().max() > 1e-5
        assert torch.equal(EVERY[name](draws, x, **FEW.get(name, {})), epistemic)


@pytest.mark.parametrize("name", EVERY)
def test_many_examples_at_once_are_those_one_by_one(name):
    draws, x = case("cnn")
    find, options = EVERY[name], FEW.get(name, {})
    wanted = find(draws, x, **options)
    if name not in SEEDED:
        assert_close(torch.cat([find(draws, row[None], **options) for row in x]), wanted, **EXACT)
    takes_chunk = "chunk" in inspect.signature(find).parameters
    assert takes_chunk == (name not in {"random", "intensity", "distance_to_blur", "fullgrad_of_prediction"}
                           and not name.startswith("cov"))  # fmt: skip
    for chunk in (1, 2, 7) if takes_chunk else ():
        assert_close(find(draws, x, chunk=chunk, **options), wanted, **EXACT)


def test_no_pass_has_more_rows_than_asked_for():
    for name, num_steps in (("ig_black", 32), ("smoothgrad", 25), ("gradient", 1), ("fullgrad_of_u", 1)):
        sizes: list[int] = []
        network = seeded(table_mlp).eval()
        network.register_forward_hook(lambda *call, sizes=sizes: sizes.append(len(call[1][0])))
        RIVALS[name]([network], randn(*TABLE), chunk=3)
        assert max(sizes) <= 3
        assert sum(sizes) >= 4 * num_steps


def test_with_many_draws_fewer_rows_are_taken_at_once():
    sizes: list[int] = []
    network = seeded(table_mlp).eval()
    network.register_forward_hook(lambda *call: sizes.append(len(call[1][0])))
    RIVALS["gradient"]([network] * 20, randn(2000, 5))
    assert max(sizes) == 8 * 4096 // 20  # of 4096 for one draw


@pytest.mark.parametrize("name", EVERY)
def test_draws_and_examples_are_left_as_they_were(name, untouched_generators):
    network = seeded(inplace_cnn).eval()
    network[1].weight.grad = torch.ones_like(network[1].weight)
    other = seeded(inplace_cnn, seed=1).eval()
    x = randn(*PICTURES).requires_grad_()
    before, values = snapshot(network), x.detach().clone()
    for _ in range(2):
        with torch.inference_mode() if _ else torch.no_grad():
            assert not EVERY[name]([network, other], x, **FEW.get(name, {})).requires_grad
    assert_same(before, snapshot(network))
    assert torch.equal(x, values)
    assert x.grad is None


@pytest.mark.parametrize("name", [name for name in EVERY if name not in CONTROLS or name == "shuffled_shares"])
def test_draws_that_agree_give_zeros(name):
    network, x = seeded(inplace_cnn).eval(), randn(*PICTURES)
    for count in (1, 3):
        # Rounding of x * dU/dx, at most; LIME's smallest weights multiply it by a few thousand.
        assert EVERY[name]([network] * count, x, **FEW.get(name, {})).abs().max() < 1e-12


@pytest.mark.parametrize("name", [name for name in RIVALS if not name.startswith("cov")])
def test_sure_draws_give_zeros_and_no_nan(name):
    sure = nn.Sequential(nn.Flatten(), linear([[1e5] * 192, [-1e5] * 192]))
    x = randn(*PICTURES).abs()
    for kind in KINDS:
        assert EVERY[name]([sure, sure], x, kind, **FEW.get(name, {})).abs().max() == 0


# Bad input

DRAWS, X = case("mlp")
BAD = {
    "kind": (lambda find: find(DRAWS, X, "both"), ValueError, "unknown kind 'both'; known: total, aleatoric, epist"),
    "x shape": (lambda find: find(DRAWS, X[:, None]), ValueError, r"returned shape \(2, 1, 3\)"),
    "x NaN": (lambda find: find(DRAWS, X / 0 * 0), ValueError, "NaN"),
    "x list": (lambda find: find(DRAWS, X.tolist()), TypeError, "x is a list"),
    "one network": (lambda find: find(seeded(table_mlp).eval(), X), TypeError, "posterior.sample"),
    "training": (lambda find: find([seeded(table_mlp)], X), ValueError, "training mode"),
}
OF_VARIANCE = {
    "gradient",
    "gradient_x_input",
    "gradient_x_input_abs",
    "smoothgrad",
    "ig_black",
    "fullgrad_of_u",
    "lime",
}
OF_VARIANCE |= {"signed_gradient_x_input"}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", EVERY)
def test_all_refuse_what_ua_backprop_refuses(name, what):
    call, error, message = BAD[what]
    with pytest.raises(error, match=message):
        call(EVERY[name])


@pytest.mark.parametrize("name", EVERY)
def test_explainers_of_u_explain_the_variance_of_a_regression_and_all_others_refuse_it(name):
    draws = MCDropout(seeded(OneOutput)).sample(3)
    if name in OF_VARIANCE:
        assert EVERY[name](draws, X, **FEW.get(name, {})).shape == X.shape
    elif name == "ig_blurred":
        with pytest.raises(ValueError, match="blurred baseline needs images"):
            EVERY[name](draws, X)
    else:
        with pytest.raises(ValueError, match=r"logits have shape \(3, 1, 1\).*at least two classes, not a regression"):
            EVERY[name](draws, X)
    if name == "gradient":
        leaf = X.clone().requires_grad_()
        variance = torch.stack([draw(leaf) for draw in draws]).var(0, correction=0)
        wanted = torch.autograd.grad(variance.sum(), leaf)[0].abs()
        assert_close(EVERY[name](draws, X), wanted, rtol=1e-10, atol=1e-12)


OWN = {
    "kind of U": (lambda: UncertaintyOf(DRAWS, "both"), ValueError, "unknown kind 'both'"),
    "draws of U": (lambda: UncertaintyOf(seeded(table_mlp)), TypeError, "posterior.sample"),
    "noise of U": (lambda: UncertaintyOf([seeded(OneOutput).eval()], "aleatoric")(X), ValueError, "the same for all x"),
    "explainer": (lambda: attribute_uncertainty(DRAWS, X, explainer="shap"), ValueError, "'shap'; known: gradient, "),
    "no explainer": (lambda: attribute_uncertainty(DRAWS, X, explainer=3), TypeError, "explainer is 3"),
    "chunk": (lambda: attribute_uncertainty(DRAWS, X, chunk=0), ValueError, "chunk is 0"),
    "map shape": (
        lambda: attribute_uncertainty(DRAWS, X, explainer=lambda network, x, target: x[:, :2]),
        ValueError,
        r"returned \(4, 2\), not an attribution shaped like x \(4, 5\)",
    ),
    "form": (lambda: covariance_of_explanations(DRAWS, X, form="full"), ValueError, "'full'; known: diag, marg"),
    "explainer of a covariance": (
        lambda: covariance_of_explanations(DRAWS, X, explainer="fullgrad"),
        ValueError,
        "unknown explainer 'fullgrad'",
    ),
    "setting": (lambda: shuffled_shares(DRAWS, X, setting="best"), ValueError, "setting 'best'; known: paper, recom"),
    "choice": (lambda: shuffled_shares(DRAWS, X, tau3=1), ValueError, "unknown option 'tau3'; known: coefficients, ta"),
    "setting of FullGrad": (lambda: fullgrad_of_prediction(DRAWS, X, setting="best"), ValueError, "setting 'best'"),
}


@pytest.mark.parametrize("what", OWN)
def test_bad_options_are_one_clear_error(what):
    call, error, message = OWN[what]
    with pytest.raises(error, match=message):
        call()
