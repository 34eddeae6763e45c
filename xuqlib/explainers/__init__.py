"""Explainers: plain functions `(network, x, target) -> attribution`, and the registry that knows them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import numpy as np
import torch
from torch import Tensor, nn

from xuqlib.checks import check_count, check_examples, check_fixed, check_logits, check_number, check_target
from xuqlib.explainers.gradients import (
    Explainer,
    gradient,
    gradient_x_input,
    guided_backprop,
    integrated_gradients,
    smoothgrad,
)
from xuqlib.explainers.lime import lime
from xuqlib.explainers.superpixels import check_segments, filled, superpixels
from xuqlib.fast.engine import Engine
from xuqlib.path import Network, rows_per_pass
from xuqlib.posteriors.draws import Draws

EXPLAINERS: dict[str, Explainer] = {
    "gradient": gradient,
    "gradient_x_input": gradient_x_input,
    "guided_backprop": guided_backprop,
    "integrated_gradients": integrated_gradients,
    "smoothgrad": smoothgrad,
    "lime": lime,
}
