"""How far can you trust a neural network's explanation, and where does its uncertainty come from?"""

from xuqlib.distribution import ExplanationDistribution
from xuqlib.explain import explain
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
from xuqlib.metrics import deletion, insertion
from xuqlib.posteriors import DeepEnsemble, Draws, Flipout, Laplace, MCDropConnect, MCDropout, Posterior
from xuqlib.study.data.loading import DataError, Examples, load
from xuqlib.study.judging.analytic import analytic_distribution
from xuqlib.study.judging.rivals import ua_backprop_linear
from xuqlib.study.judging.scores import scores
from xuqlib.study.judging.variance import variance_split
from xuqlib.study.record import Notebook, versions
from xuqlib.study.training.fitting import fit
from xuqlib.study.training.loading import train_or_load
from xuqlib.study.training.networks import lenet, mini_vgg, mlp, resnet18
from xuqlib.study.training.recipes import Recipe
from xuqlib.ua_backprop import ua_backprop
from xuqlib.ua_replacement import ua_replacement
from xuqlib.uncertainty import Uncertainties, UncertaintyOf, attribute_uncertainty, uncertainties

__all__ = [
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
    "Posterior",
    "Recipe",
    "Uncertainties",
    "UncertaintyOf",
    "analytic_distribution",
    "attribute_uncertainty",
    "completeness_gap",
    "deletion",
    "explain",
    "fit",
    "from_captum",
    "fullgrad",
    "gradient",
    "gradient_x_input",
    "guided_backprop",
    "insertion",
    "integrated_gradients",
    "lenet",
    "lime",
    "lime_fit",
    "load",
    "mini_vgg",
    "mlp",
    "resnet18",
    "scores",
    "smoothgrad",
    "train_or_load",
    "ua_backprop",
    "ua_backprop_linear",
    "ua_replacement",
    "uncertainties",
    "variance_split",
    "versions",
]
