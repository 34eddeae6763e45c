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
from xuqlib.scale import StoredExplanations, explain_dataset, open_explanations
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

# The method: draws of networks, explanations of each draw, what they say together, what is uncertain and why.
__all__ = ["DeepEnsemble", "Draws", "Flipout", "Laplace", "MCDropConnect", "MCDropout", "Posterior"]
__all__ += ["gradient", "gradient_x_input", "guided_backprop", "integrated_gradients", "smoothgrad"]
__all__ += ["completeness_gap", "from_captum", "fullgrad", "lime", "lime_fit"]
__all__ += ["ExplanationDistribution", "deletion", "explain", "insertion"]
__all__ += ["Uncertainties", "UncertaintyOf", "attribute_uncertainty", "ua_backprop", "ua_replacement", "uncertainties"]
# The same for more examples than fit into memory.
__all__ += ["StoredExplanations", "explain_dataset", "open_explanations"]
# What the study hands on: data, training, the record of a notebook, and measures of its own.
__all__ += ["DataError", "Examples", "Recipe", "fit", "lenet", "load", "mini_vgg", "mlp", "resnet18", "train_or_load"]
__all__ += ["Notebook", "analytic_distribution", "scores", "ua_backprop_linear", "variance_split", "versions"]
