"""Explainers: plain functions `(network, x, target) -> attribution`, shaped like x, and the registry of their names."""

from __future__ import annotations

from xuqlib.explainers.gradients import (
    Explainer,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
)
from xuqlib.explainers.lime import lime

# Wherever a name of an explainer is taken, it is one of these; each explains the logit of a class.
EXPLAINERS: dict[str, Explainer] = {
    "gradient": gradient,
    "gradient_x_input": gradient_x_input,
    "guided_backprop": guided_backprop,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    "lime": lime,
}
