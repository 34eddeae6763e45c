"""What the package offers, and where each name is imported from when it is first asked for."""

from .conformal import ConformalExplainer
from .distribution import ExplanationDistribution
from .explain import explain
from .explainers.adapters import from_captum
from .explainers.fullgrad import fullgrad
from .explainers.gradients import (
    completeness_gap,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
)
from .explainers.lime import lime, lime_fit
from .metrics import deletion, insertion
from .posteriors import DeepEnsemble, Draws, Flipout, Laplace, MCDropConnect, MCDropout, Posterior
from .scale.saved import load_draws, save_draws
from .scale.store import StoredExplanations, open_explanations
from .scale.stream import explain_dataset
from .study.data.loading import DataError, Examples, load
from .study.files import versions
from .study.judging.analytic import analytic_distribution
from .study.judging.rivals import ua_backprop_linear
from .study.judging.scores import scores
from .study.judging.variance import variance_split
from .study.record import Notebook
from .study.report.making import report
from .study.training.fitting import fit
from .study.training.loading import train_or_load
from .study.training.networks import lenet, mini_vgg, mlp, resnet18
from .study.training.recipes import Recipe
from .ua_backprop import ua_backprop
from .ua_replacement import ua_replacement
from .uncertainty import Uncertainties, UncertaintyOf, attribute_uncertainty, uncertainties

# The method: draws of networks, explanations of each draw, what they say together, what is uncertain and why.
__all__ = ["DeepEnsemble", "Draws", "Flipout", "Laplace", "MCDropConnect", "MCDropout", "Posterior"]
__all__ += ["gradient", "gradient_x_input", "guided_backprop", "integrated_gradients", "smoothgrad"]
__all__ += ["completeness_gap", "from_captum", "fullgrad", "lime", "lime_fit"]
__all__ += ["ConformalExplainer", "ExplanationDistribution", "deletion", "explain", "insertion"]
__all__ += ["Uncertainties", "UncertaintyOf", "attribute_uncertainty", "ua_backprop", "ua_replacement", "uncertainties"]
# Draws in a file, and explanations of more examples than fit into memory.
__all__ += ["StoredExplanations", "explain_dataset", "load_draws", "open_explanations", "save_draws"]
# What the study hands on: data, training, the record of a notebook, and measures of its own.
__all__ += ["DataError", "Examples", "Recipe", "fit", "lenet", "load", "mini_vgg", "mlp", "resnet18", "train_or_load"]
__all__ += ["Notebook", "analytic_distribution", "report", "scores", "ua_backprop_linear", "variance_split", "versions"]
