"""How far can you trust a neural network's explanation, and where does its uncertainty come from?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xuqlib.conformal import ConformalExplainer
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
from xuqlib.ua_backprop import ua_backprop
from xuqlib.ua_replacement import ua_replacement
from xuqlib.uncertainty import Uncertainties, UncertaintyOf, attribute_uncertainty, uncertainties

if TYPE_CHECKING:
    from xuqlib.scale import StoredExplanations, explain_dataset, load_draws, open_explanations, save_draws
    from xuqlib.study.handed_on import *


def __getattr__(name: str) -> Any:
    """Import what needs pandas and the like when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    of_scale = name in ("StoredExplanations", "explain_dataset", "load_draws", "open_explanations", "save_draws")
    return getattr(import_module("xuqlib.scale" if of_scale else "xuqlib.study.handed_on"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


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
