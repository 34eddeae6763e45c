"""Whatever is wrong with an input, every public function says in one clear error what was given or wanted."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_networks import CarelessDropout, FunctionalRelu, randn, seeded, table_mlp, tabular
from torch import nn, tensor

import xuqlib
from xuqlib import (
    DeepEnsemble,
    Draws,
    ExplanationDistribution,
    Flipout,
    Laplace,
    MCDropConnect,
    MCDropout,
    Recipe,
    UncertaintyOf,
    analytic_distribution,
    attribute_uncertainty,
    completeness_gap,
    deletion,
    explain,
    fit,
    from_captum,
    gradient,
    gradient_x_input,
    guided_backprop,
    insertion,
    integrated_gradients,
    lenet,
    load,
    mini_vgg,
    mlp,
    resnet18,
    scores,
    smoothgrad,
    train_or_load,
    ua_backprop,
    ua_backprop_linear,
    ua_replacement,
    uncertainties,
    variance_split,
)
from xuqlib.explainers.fullgrad import fullgrad
from xuqlib.explainers.lime import lime
from xuqlib.posteriors.kinds import weighted_layers
from xuqlib.study.judging.clue import clue, clue_counterfactuals, delta_clue, path_integral
from xuqlib.study.judging.mitigation import attended, fit_attended, unit_maps
from xuqlib.study.judging.scores import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    scores_of,
    standard_errors,
)
from xuqlib.study.training.fitting import augmented
from xuqlib.study.training.fitting_together import fit_together
from xuqlib.study.training.recipes import recipe_for
from xuqlib.study.training.vae import PictureVAE, train_or_load_vae
from xuqlib.uncertainty import decompose

X = randn(4, 5, dtype=torch.float32)
PICTURES = randn(2, 3, 8, 8, dtype=torch.float32)
NET = seeded(table_mlp, dtype=torch.float32).eval()
DRAWS = MCDropout(NET).sample(3)
SOFT = torch.full((4, 3), 1 / 3)
TRAIN, VALIDATION = tabular(16), tabular(8, seed=1)


def dist(values: Any = None) -> ExplanationDistribution:
    return ExplanationDistribution(randn(3, 4, 5) if values is None else values)


def loader(x: torch.Tensor, y: torch.Tensor) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)


def nan_in(x: torch.Tensor, value: float = math.nan) -> torch.Tensor:
    x = x.clone()
    x[1, 2] = value
    return x


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x, x


class Spatial(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


EXPLAINERS: tuple[Callable[..., Any], ...] = (
    *(gradient, gradient_x_input, guided_backprop, integrated_gradients, smoothgrad, lime, from_captum("Saliency")),
)

# What, the call, the error, and what its message says.
Case = tuple[str, Callable[[], Any], type[Exception], str]
DATA: list[Case] = [
    ("load, unknown name", lambda: load("cifar"), ValueError, "unknown data set 'cifar'; known: planted, digits"),
    ("load, unknown split", lambda: load("digits", split="dev"), ValueError, "'dev'; known: train, validation, test"),
    (
        "load, nothing",
        lambda: load("digits", num_examples=0),
        ValueError,
        "num_examples is 0; pass a whole number of at least 1",
    ),
    ("load, too many", lambda: load("digits", num_examples=10**6), ValueError, "1000000 but digits test has"),
    ("load, fraction", lambda: load("digits", num_examples=1.5), TypeError, "num_examples is 1.5; pass a whole number"),
    ("load, seed", lambda: load("digits", seed=-1), ValueError, "seed is -1; pass a whole number of at least 0"),
    ("examples, row", lambda: TRAIN[99], IndexError, "99 is out of (range|bounds).* 16"),
]
NETWORKS: list[Case] = [
    ("mini_vgg, size", lambda: mini_vgg(image_size=30), ValueError, "image_size is 30; mini_vgg halves it 3 times"),
    ("mini_vgg, tiny", lambda: mini_vgg(image_size=4), ValueError, "image_size is 4; pass at least 8"),
    (
        "mini_vgg, no width",
        lambda: mini_vgg(widths=()),
        ValueError,
        "widths is .*a list of whole numbers of at least 1",
    ),
    ("mini_vgg, placement", lambda: mini_vgg(placement="first"), ValueError, "placement 'first'; known: last, all"),
    ("mini_vgg, rate", lambda: mini_vgg(dropout=1.5), ValueError, "dropout is 1.5; pass a number from 0 to 1"),
    (
        "mlp, no hidden",
        lambda: mlp(num_features=4, hidden=()),
        ValueError,
        "hidden is .*a list of whole numbers of at least 1",
    ),
    (
        "mlp, no feature",
        lambda: mlp(num_features=0),
        ValueError,
        "num_features is 0; pass a whole number of at least 1",
    ),
    ("lenet, size", lambda: lenet(image_size=30), ValueError, "image_size is 30; lenet halves it 2 times"),
    ("resnet18, placement", lambda: resnet18(placement="none"), ValueError, "placement 'none'; known: last, all"),
    (
        "layers, unknown",
        lambda: weighted_layers(NET, ["9"]),
        ValueError,
        r"layers of \w+ placement \['9'\] means; pass 'last', 'all'",
    ),
    (
        "layers, none named",
        lambda: weighted_layers(NET, []),
        ValueError,
        r"placement \[\] means; pass 'last', 'all'",
    ),
    ("layers, number", lambda: weighted_layers(NET, 3), ValueError, "placement 3 means; pass 'last', 'all' or a list"),
]
POSTERIORS: list[Case] = [
    ("dropout, none", lambda: MCDropout(FunctionalRelu()), ValueError, "FunctionalRelu has no dropout.*randomness"),
    ("dropout, p of 0", lambda: MCDropout(nn.Dropout(0.0)), ValueError, "no dropout with 0 < p < 1"),
    ("dropout, no network", lambda: MCDropout("mlp"), TypeError, r"got a str; pass a network \(nn.Module\)"),
    (
        "dropout, masks",
        lambda: MCDropout(NET).sample(2, masks="new"),
        ValueError,
        "masks 'new'; known: fixed, resampled",
    ),
    ("no draws", lambda: MCDropout(NET).sample(0), ValueError, "num_draws is 0; pass at least 1"),
    ("a half draw", lambda: MCDropout(NET).sample(2.5), TypeError, "num_draws is 2.5; pass a whole number"),
    ("negative seed", lambda: Flipout(NET).sample(2, seed=-3), ValueError, "seed is -3; pass at least 0"),
    ("seed as text", lambda: MCDropConnect(NET).sample(2, seed="a"), TypeError, "seed is 'a'; pass a whole number"),
    ("dropconnect, p of 0", lambda: MCDropConnect(NET, p=0), ValueError, "p is 0: a posterior without randomness"),
    ("dropconnect, p of 1", lambda: MCDropConnect(NET, p=1), ValueError, "choose 0 < p < 1"),
    ("dropconnect, text", lambda: MCDropConnect(NET, p="0.1"), TypeError, "p is '0.1'; pass a number"),
    (
        "dropconnect, no layer",
        lambda: MCDropConnect(nn.ReLU()),
        ValueError,
        r"layers of ReLU placement 'last' means; .* layers \[\]",
    ),
    ("flipout, std", lambda: Flipout(NET, initial_std=0.0), ValueError, "initial_std is 0.0; .* above 0"),
    ("flipout, prior", lambda: Flipout(NET, prior_std=math.nan), ValueError, "prior_std is nan; pass a finite"),
    ("flipout, weight", lambda: Flipout(NET, kl_weight=-1.0), ValueError, "kl_weight is -1.0"),
    ("ensemble, empty", lambda: DeepEnsemble([]), TypeError, "empty list; pass a list of networks"),
    ("ensemble, network", lambda: DeepEnsemble(NET), TypeError, "got a Sequential; pass a list of networks"),
    ("ensemble, texts", lambda: DeepEnsemble(["a"]), TypeError, r"got a str; pass a network"),
    ("ensemble, number", lambda: DeepEnsemble(3), TypeError, "got a int; pass a list of networks"),
    ("ensemble, too many", lambda: DeepEnsemble([NET]).sample(2), ValueError, "asked for 2 draws .* has 1 members"),
    ("laplace, unfitted", lambda: Laplace(NET).sample(2), ValueError, r"no curvature yet; call fit\(loader\) first"),
    ("laplace, tensor", lambda: Laplace(NET).fit(X), TypeError, "the loader gave a Tensor"),
    ("laplace, no pairs", lambda: Laplace(NET).fit(torch.utils.data.DataLoader(X)), TypeError, r"batches \(x, y\)"),
    ("laplace, convolution", lambda: Laplace(nn.Conv2d(3, 3, 1)), ValueError, "is not Linear; .*needs a dense one"),
    (
        "laplace, shapes",
        lambda: Laplace(mlp(num_features=5)).fit(loader(X, X[:, :2])),
        ValueError,
        r"\(4, 2\) .* \(4, 1\)",
    ),
]
CALLS: list[Case] = [
    ("draws, none", lambda: Draws([]), TypeError, "got a list; .* at least one network"),
    (
        "draws, a network",
        lambda: Draws(NET),
        TypeError,
        r"got a Sequential; pass posterior.sample\(num_draws\)",
    ),
    ("draws, a posterior", lambda: Draws(MCDropout(NET)), TypeError, "got a MCDropout; pass posterior.sample"),
    (
        "draws, functions",
        lambda: Draws([len]),
        TypeError,
        r"got a list; .*at least one network \(nn.Module\)",
    ),
    ("draws, empty slice", lambda: DRAWS[:0], TypeError, "at least one network"),
    ("draws(x), list", lambda: DRAWS([[1.0]]), TypeError, "x is a list; pass a torch tensor"),
    ("draws(x), uint8", lambda: DRAWS(X.to(torch.uint8)), TypeError, "x is uint8.*divide by 255"),
    ("draws(x), one example", lambda: DRAWS(X[0]), ValueError, r"x has shape \(5,\); .*x\[None\]"),
    ("draws(x), empty", lambda: DRAWS(X[:0]), ValueError, r"\(0, 5\).*at least one example"),
    ("draws(x), NaN", lambda: DRAWS(nan_in(X)), ValueError, "1 NaN and 0 infinite values, the first in example 1"),
    ("draws(x), width", lambda: DRAWS(X[:, :3]), ValueError, r"cannot evaluate x of shape \(4, 3\)"),
    ("draws(x), picture", lambda: DRAWS(PICTURES), ValueError, r"cannot evaluate x of shape \(2, 3, 8, 8\)"),
    ("draws(x), float64", lambda: DRAWS(X.double()), ValueError, "cannot evaluate x of .*torch.float64"),
    (
        "draws(x), pair",
        lambda: Draws([Pair()])(X),
        TypeError,
        "returned a tuple; say what of it is explained by output=",
    ),
    (
        "draws(x), maps",
        lambda: Draws([Spatial()])(PICTURES),
        ValueError,
        r"\(2, 3, 8, 8\) for 2 examples; wanted logits",
    ),
    ("draws(x), random", lambda: DeepEnsemble([CarelessDropout()]).sample()(X), RuntimeError, "training=True"),
]
EXPLAINING: list[Case] = [
    ("explain, network", lambda: explain(NET, gradient, X), TypeError, "got a Sequential; pass posterior.sample"),
    ("explain, name", lambda: explain(DRAWS, "gradiant", X), ValueError, "explainer 'gradiant'; known: "),
    ("explain, number", lambda: explain(DRAWS, 3, X), TypeError, "explainer is 3; pass a function"),
    ("explain, keep", lambda: explain(DRAWS, gradient, X, keep="std"), ValueError, "'std'; known: all, moments, mean"),
    ("explain, precision", lambda: explain(DRAWS, gradient, X, precision="half"), ValueError, "known: float32, tf32"),
    ("std of a mean", lambda: explain(DRAWS, gradient, X, keep="mean").std(), ValueError, "only the mean .*moments"),
    ("cv of a mean", lambda: explain(DRAWS, gradient, X, keep="mean").cv(), ValueError, "only the mean .*moments"),
    ("explain, chunk", lambda: explain(DRAWS, gradient, X, chunk=0), ValueError, "chunk is 0; pass at least 1"),
    ("explain, infinite", lambda: explain(DRAWS, gradient, nan_in(X, math.inf)), ValueError, "0 NaN and 1 infinite"),
    ("explain, target", lambda: explain(DRAWS, gradient, X, 3), ValueError, "target 3 .*classes are 0 to 2"),
    ("explain, targets", lambda: explain(DRAWS, gradient, X, tensor([0, 1])), ValueError, "2 entries but x has 4"),
    ("explain, float", lambda: explain(DRAWS, gradient, X, torch.zeros(4)), TypeError, "torch.float32; pass class num"),
    ("explain, option", lambda: explain(DRAWS, integrated_gradients, X, num_steps=0), ValueError, "num_steps is 0"),
    (
        "explain, baseline",
        lambda: explain(DRAWS, integrated_gradients, X, baseline="w"),
        ValueError,
        "baseline 'w'; known",
    ),
    (
        "explain, shape",
        lambda: explain(DRAWS, lambda n, x, t: x[:, :2], X),
        ValueError,
        r"returned \(4, 2\), not an attribution shaped like x \(4, 5\)",
    ),
    (
        "explain, nothing",
        lambda: explain(DRAWS, lambda n, x, t: None, X),
        ValueError,
        "returned a NoneType, not an attribution",
    ),
    (
        "split, repeats",
        lambda: variance_split(DRAWS, lime, X, num_repeats=1),
        ValueError,
        "num_repeats is 1; pass a whole number of at",
    ),
    (
        "split, one draw",
        lambda: variance_split(DRAWS[:1], lime, X),
        ValueError,
        "number of draws is 1; pass at least 2",
    ),
    (
        "split, seed",
        lambda: variance_split(DRAWS, lime, X, seed=-1),
        ValueError,
        "seed is -1; pass a whole number of at least 0",
    ),
    ("split, uint8", lambda: variance_split(DRAWS, lime, X.byte()), TypeError, "x is uint8"),
    ("gap, shape", lambda: completeness_gap(NET, X, X[:, :2], 0), ValueError, r"\(4, 2\) but x is \(4, 5\)"),
    ("lime, samples", lambda: lime(NET, X, 0, num_samples=1), ValueError, "num_samples is 1; pass at least 2"),
    ("smoothgrad, noise", lambda: smoothgrad(NET, X, 0, noise=-1.0), ValueError, "noise is -1.0"),
    ("captum, name", lambda: from_captum("Salience"), ValueError, "unknown Captum method 'Salience'; known: "),
    ("captum, class", lambda: from_captum(dict), TypeError, "is not an attribution class"),
]
for _explainer in EXPLAINERS:
    _name = _explainer.__name__
    EXPLAINING += [
        (f"{_name}, uint8", lambda e=_explainer: e(NET, X.byte(), 0), TypeError, "x is uint8"),
        (f"{_name}, NaN", lambda e=_explainer: e(NET, nan_in(X), 0), ValueError, "x holds 1 NaN"),
        (f"{_name}, no target", lambda e=_explainer: e(NET, X), ValueError, "network has 3 outputs; pass one class"),
        (f"{_name}, target", lambda e=_explainer: e(NET, X, 7), ValueError, "target 7 of example 0 is out of range"),
        (f"{_name}, not fixed", lambda e=_explainer: e(nn.Dropout(0.5), X, 0), ValueError, "in training mode"),
        (f"{_name}, no network", lambda e=_explainer: e(3, X, 0), TypeError, "network is a int"),
    ]
STATISTICS: list[Case] = [
    ("values, axes", lambda: dist(randn(4, 5)), ValueError, r"shape \(4, 5\); wanted \(draw, example, feature\)"),
    ("values, array", lambda: dist(randn(3, 4, 5).numpy()), TypeError, "values is a ndarray; pass a torch tensor"),
    ("values, neither", lambda: ExplanationDistribution(None), ValueError, "pass either values, .* or running moments"),
    ("cv, kind", lambda: dist().cv("mean"), ValueError, "kind 'mean'; known: paper, signed, ratio"),
    ("cv, floor", lambda: dist().cv(floor=-1), ValueError, "floor is -1"),
    ("cv, floor as text", lambda: dist().cv(floor="low"), TypeError, "floor is 'low'; pass a number"),
    ("undefined, kind", lambda: dist().undefined_share("all"), ValueError, "kind 'all'; known: paper"),
    ("quantile", lambda: dist().quantile(95), ValueError, r"q is 95; a quantile lies in \[0, 1\]"),
    ("error, of", lambda: dist().standard_error("median"), ValueError, "of 'median'; known: mean, std, cv"),
    ("error, one draw", lambda: dist(randn(1, 4, 5)).standard_error(), ValueError, "needs at least two draws"),
    ("row", lambda: dist()[9], IndexError, "9 is out of bounds .* size 4"),
]
SCORES: list[Case] = [
    ("uncertainties, uint8", lambda: uncertainties(DRAWS, X.byte()), TypeError, "x is uint8"),
    ("uncertainties, network", lambda: uncertainties(NET, X), TypeError, r"Sequential; pass posterior.sample"),
    (
        "uncertainties, noise",
        lambda: uncertainties(DRAWS, X, noise_variance=-1.0),
        ValueError,
        "noise_variance is -1.0",
    ),
    ("decompose, shape", lambda: decompose(randn(4, 3)), ValueError, r"\(4, 3\); wanted \(draw, example, class\)"),
    ("decompose, NaN", lambda: decompose(randn(2, 4, 3) * math.nan), ValueError, "logits hold NaN or infinite"),
    (
        "decompose, array",
        lambda: decompose(randn(2, 4, 3).numpy()),
        TypeError,
        "logits is a ndarray; pass a torch tensor",
    ),
    ("decompose, empty", lambda: decompose(randn(0, 4, 3)), ValueError, r"\(0, 4, 3\)"),
    ("nll, logits", lambda: negative_log_likelihood(randn(4, 3), tensor([0] * 4)), ValueError, "summing to 1"),
    (
        "nll, list",
        lambda: negative_log_likelihood([[1.0]], tensor([0])),
        TypeError,
        r"probs is \[\[1.0\]\]; pass a tensor of floating",
    ),
    ("brier, length", lambda: brier_score(SOFT, tensor([0])), ValueError, "1 entries but x has 4 examples"),
    ("brier, range", lambda: brier_score(SOFT, tensor([0, 1, 2, 3])), ValueError, "target 3 of example 3"),
    ("ece, bins", lambda: expected_calibration_error(SOFT, tensor([0] * 4), num_bins=0), ValueError, "num_bins is 0"),
    (
        "ece, float target",
        lambda: expected_calibration_error(SOFT, torch.zeros(4)),
        TypeError,
        "target is torch.float32",
    ),
    ("scores, tensor", lambda: scores(DRAWS, X), TypeError, "examples is a tensor .*; pass Examples"),
    (
        "scores, target",
        lambda: scores_of(randn(2, 4, 1), randn(4)),
        ValueError,
        r"target has shape \(4,\); wanted \(4, 1\)",
    ),
    (
        "errors",
        lambda: standard_errors(randn(2, 4, 3), tensor([0] * 4), num_resamples=1),
        ValueError,
        "num_resamples is 1",
    ),
]
TRAINING: list[Case] = [
    ("recipe, epochs", lambda: Recipe(epochs=0), ValueError, "epochs is 0; pass a whole number of at least 1"),
    (
        "recipe, batches of one",
        lambda: Recipe(batch_size=1),
        ValueError,
        "batch_size is 1; pass a whole number of at least 2",
    ),
    ("recipe, patience", lambda: Recipe(patience=0), ValueError, "patience is 0; pass a whole number of at least 1"),
    ("recipe, rate", lambda: Recipe(learning_rate=0.0), ValueError, "learning_rate is 0.0; .* above 0"),
    ("recipe, decay", lambda: Recipe(weight_decay=-1.0), ValueError, "weight_decay is -1.0"),
    ("recipe, network", lambda: Recipe("vgg16"), ValueError, "network 'vgg16'; known: mini_vgg, mlp"),
    ("recipe, augment", lambda: Recipe(augment="flip"), ValueError, r"augment 'flip'; known: none, shift, shift\+flip"),
    ("recipe, precision", lambda: Recipe(precision="half"), ValueError, "precision 'half'; known: float32, bfloat16"),
    ("recipe for", lambda: recipe_for("svhn"), ValueError, "dataset 'svhn'; known: planted"),
    ("recipe, preset", lambda: recipe_for("digits", "fast"), ValueError, "preset 'fast'; known: quick, full"),
    (
        "fit, no network",
        lambda: fit("mlp", TRAIN, VALIDATION),
        TypeError,
        "posterior is 'mlp'; pass Posterior, or a network",
    ),
    ("fit, tensors", lambda: fit(NET, X, VALIDATION), TypeError, "train is a tensor .*; pass Examples"),
    ("fit, validation", lambda: fit(NET, TRAIN, None), TypeError, "validation is None; pass Examples"),
    ("fit, one example", lambda: fit(NET, TRAIN[:1], VALIDATION), ValueError, "train has 1 examples; pass at least 2"),
    ("fit, none held out", lambda: fit(NET, TRAIN, TRAIN[:0]), ValueError, "validation has 0 examples"),
    ("fit, ensemble", lambda: fit(DeepEnsemble([NET, NET]), TRAIN, VALIDATION), ValueError, "one network, not 2"),
    ("fit, frozen", lambda: fit(DRAWS[0], TRAIN, VALIDATION), ValueError, "no parameter that requires a gradient"),
    (
        "fit, seed",
        lambda: fit(NET, TRAIN, VALIDATION, seed=-1),
        ValueError,
        "seed is -1; pass a whole number of at least 0",
    ),
    (
        "fit, shifted table",
        lambda: fit(mlp(num_features=5, num_outputs=3), TRAIN, VALIDATION, Recipe(augment="shift"), progress=False),
        ValueError,
        r"augment is 'shift'.*x is \(16, 5\)",
    ),
    ("augmented", lambda: augmented(PICTURES, "turn"), ValueError, "augment 'turn'; known: none"),
    (
        "train_or_load, method",
        lambda: train_or_load("dropout", "digits"),
        ValueError,
        "method 'dropout'; known: deep_ens",
    ),
    ("train_or_load, data", lambda: train_or_load("laplace", "svhn"), ValueError, "dataset 'svhn'; known: planted"),
    ("train_or_load, preset", lambda: train_or_load("laplace", "digits", preset="x"), ValueError, "preset 'x'; known"),
    (
        "train_or_load, place",
        lambda: train_or_load("flipout", "digits", placement="x"),
        ValueError,
        "placement 'x'; known",
    ),
    (
        "train_or_load, all",
        lambda: train_or_load("laplace", "digits", placement="all"),
        ValueError,
        "no placement 'all'",
    ),
    (
        "train_or_load, members",
        lambda: train_or_load("deep_ensemble", "digits", num_members=0),
        ValueError,
        "members is 0",
    ),
    ("train_or_load, seed", lambda: train_or_load("flipout", "digits", seed=-1), ValueError, "seed is -1"),
]
UNCERTAINTY: list[Case] = [
    ("ua_backprop, kind", lambda: ua_backprop(DRAWS, X, kind="model"), ValueError, "kind 'model'; known: total"),
    ("ua_backprop, setting", lambda: ua_backprop(DRAWS, X, setting="best"), ValueError, "setting 'best'; known: paper"),
    ("ua_backprop, tau", lambda: ua_backprop(DRAWS, X, tau1=0.0), ValueError, "tau1 is 0"),
    ("ua_backprop, NaN", lambda: ua_backprop(DRAWS, nan_in(X)), ValueError, "1 NaN"),
    ("ua_backprop_linear", lambda: ua_backprop_linear(DRAWS, X, kind="all"), ValueError, "kind 'all'; known: total"),
    ("uncertainty of, kind", lambda: UncertaintyOf(DRAWS, "all"), ValueError, "kind 'all'; known: total"),
    ("rival, NaN", lambda: attribute_uncertainty(DRAWS, nan_in(X)), ValueError, "1 NaN"),
    ("rival, explainer", lambda: attribute_uncertainty(DRAWS, X, explainer="x"), ValueError, "explainer 'x'; known"),
    ("replacement", lambda: ua_replacement(DRAWS, X, reference="grey"), ValueError, "baseline 'grey'; known: black"),
    ("clue, table", lambda: clue(DRAWS, X, vae=NET), ValueError, "pass a torch tensor of pictures"),
    (
        "clue, counterfactuals",
        lambda: clue_counterfactuals(DRAWS, X, vae=NET),
        ValueError,
        "pass a torch tensor of pictures",
    ),
    (
        "delta clue, table",
        lambda: delta_clue(DRAWS, X, vae=NET, delta=1.0),
        ValueError,
        "pass a torch tensor of pictures",
    ),
    ("path integral, table", lambda: path_integral(DRAWS, X, vae=NET), ValueError, "pass a torch tensor of pictures"),
    ("unit maps, NaN", lambda: unit_maps(nan_in(X)), ValueError, "NaN"),
    ("attended, not a unit map", lambda: attended(X, X * 0 + 2), ValueError, "[0, 1]"),
    (
        "attended training",
        lambda: fit_attended([], X, X[:, 0]),
        ValueError,
        r"networks is \[\]; pass a list of networks",
    ),
    ("vae, sides", lambda: PictureVAE((1, 6, 6), latent=2), ValueError, "sides divisible by 4"),
    ("vae, data set", lambda: train_or_load_vae("diabetes"), ValueError, "dataset of an autoencoder 'diabetes'"),
    ("deletion, order", lambda: deletion(DRAWS, X, X, 0), ValueError, "every pixel number from 0 to 4"),
    ("insertion, target", lambda: insertion(DRAWS, X, X, [0]), ValueError, "target has 1 entries"),
    ("fullgrad, psi", lambda: fullgrad(NET, X, 0, psi="max"), ValueError, "psi 'max'; known"),
    ("fullgrad, target", lambda: fullgrad(NET, X, 3), ValueError, "classes are 0 to 2"),
    ("analytic, explainer", lambda: analytic_distribution(Flipout(NET), lime, X), ValueError, "lime is not linear"),
    ("analytic, posterior", lambda: analytic_distribution(MCDropout(NET), gradient, X), TypeError, "got a MCDropout"),
    (
        "fit_together, seeds",
        lambda: fit_together([mlp(num_features=5)], TRAIN, VALIDATION, seeds=[0, 1]),
        ValueError,
        "seeds",
    ),
]
CASES = [*DATA, *UNCERTAINTY, *NETWORKS, *POSTERIORS, *CALLS, *EXPLAINING, *STATISTICS, *SCORES, *TRAINING]


@pytest.mark.parametrize(("call", "error", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_is_one_clear_error(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error or error is RuntimeError
    text = str(caught.value)
    assert text and "Traceback" not in text and "\n" not in text.split("(")[0]


def test_the_table_has_a_case_for_every_public_function_that_takes_input():
    # A result or a record that the user does not build, and a helper for notebooks with tests of its own.
    without = {
        *("DataError", "Examples", "Posterior", "Uncertainties", "Notebook"),
        *("lime_fit", "versions"),
        *("StoredExplanations", "explain_dataset", "open_explanations"),  # in test_wrong_calls, and of tests/scale
        *("load_draws", "save_draws"),  # likewise
        *("ConformalExplainer", "report"),  # in test_wrong_calls, and of test_conformal and tests/study/test_report
    }
    called = set()
    for _, call, _, _ in CASES:
        called |= set(call.__code__.co_names)
    called |= {explainer.__name__ for explainer in EXPLAINERS}
    missing = [name for name in xuqlib.__all__ if name not in called | without and name != "ExplanationDistribution"]
    assert missing == []
    assert len(CASES) >= 45


def test_good_input_of_the_same_kind_is_taken():
    # The controls: what the table calls wrong is wrong by what it says, and not by something else.
    assert explain(DRAWS, gradient, X, 2, chunk=1).num_draws == 3
    assert fit(seeded(table_mlp, dtype=torch.float32), TRAIN, VALIDATION, Recipe(epochs=1), progress=False).shape == (
        1,
        4,
    )
    assert dataclasses.replace(Recipe(), batch_size=2).batch_size == 2
    assert brier_score(SOFT, tensor([0, 1, 2, 0])) == pytest.approx(2 / 3)
