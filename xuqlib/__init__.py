"""How far can you trust a neural network's explanation, and where does its uncertainty come from?"""

from xuqlib.distribution import ExplanationDistribution
from xuqlib.explain import VarianceSplit, explain, variance_split
from xuqlib.explainers.adapters import from_captum
from xuqlib.explainers.fullgrad import fullgrad
from xuqlib.explainers.gradients import (
    completeness_gap,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
)
from xuqlib.explainers.lime import lime, lime_fit
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.laplace import Laplace
from xuqlib.posteriors.mc_dropout import MCDropout
from xuqlib.posteriors.random_weights import Flipout, MCDropConnect
from xuqlib.study.data.loading import DataError, Examples, load
from xuqlib.study.judging.analytic import AnalyticDistribution, analytic_distribution
from xuqlib.study.judging.clue import clue, clue_counterfactuals, delta_clue, path_integral
from xuqlib.study.judging.mitigation import attended, fit_attended, unit_maps
from xuqlib.study.judging.scores import brier_score, expected_calibration_error, negative_log_likelihood, scores
from xuqlib.study.record import Notebook
from xuqlib.study.training.fitting import fit
from xuqlib.study.training.fitting_together import fit_together
from xuqlib.study.training.loading import train_or_load
from xuqlib.study.training.networks import lenet, mini_vgg, mlp, resnet18
from xuqlib.study.training.recipes import Recipe
from xuqlib.study.training.vae import PictureVAE, train_or_load_vae
from xuqlib.ua_backprop import ua_backprop, ua_backprop_linear
from xuqlib.ua_replacement import ua_replacement
from xuqlib.uncertainty import Uncertainties, UncertaintyOf, attribute_uncertainty, uncertainties

__all__ = [
    "AnalyticDistribution",
    "DataError",
    "DeepEnsemble",
    "Draws",
    "Examples",
    "ExplanationDistribution",
    "Flipout",
    "Laplace",
    "MCDropConnect",
    "MCDropout",
    "Notebook",
    "PictureVAE",
    "Posterior",
    "Recipe",
    "Uncertainties",
    "UncertaintyOf",
    "VarianceSplit",
    "analytic_distribution",
    "attended",
    "attribute_uncertainty",
    "brier_score",
    "clue",
    "clue_counterfactuals",
    "completeness_gap",
    "delta_clue",
    "expected_calibration_error",
    "explain",
    "fit",
    "fit_attended",
    "fit_together",
    "from_captum",
    "fullgrad",
    "gradient",
    "gradient_x_input",
    "guided_backprop",
    "integrated_gradients",
    "lenet",
    "lime",
    "lime_fit",
    "load",
    "mini_vgg",
    "mlp",
    "negative_log_likelihood",
    "path_integral",
    "resnet18",
    "scores",
    "smoothgrad",
    "train_or_load",
    "train_or_load_vae",
    "ua_backprop",
    "ua_backprop_linear",
    "ua_replacement",
    "uncertainties",
    "unit_maps",
    "variance_split",
]
