"""Explainers of other libraries, called like our own."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xuqlib.checks import check_attribution, check_choice, check_examples, check_fixed, check_logits, check_target
from xuqlib.explainers.declaring import Explainer
from xuqlib.path import Network


def from_captum(method: type | str, **init_options: Any) -> Explainer:
    """Return a Captum attribution method as an explainer; options of its `attribute` pass through.

    Args:
        method: a class such as `captum.attr.DeepLift`, or its name.
        init_options: passed when the method is built around a network.

    Raises:
        ImportError: a name was given and Captum is not installed.
        TypeError: method is not an attribution class.
        ValueError: unknown name; from the explainer, an attribution that is not shaped like x.
    """
    if isinstance(method, str):
        try:
            known = importlib.import_module("captum.attr")
        except ImportError as error:
            raise ImportError("from_captum needs Captum, an optional package: pip install captum") from error
        check_choice(method, known.__all__, "Captum method")
        method = getattr(known, method)
    if not isinstance(method, type) or not hasattr(method, "attribute"):
        raise TypeError(f"{method!r} is not an attribution class; pass one, such as captum.attr.DeepLift")
    build: Callable[..., Any] = method

    def explainer(network: Network, x: Tensor, target: Any = None, **options: Any) -> Tensor:
        check_examples(x)
        check_fixed(network)
        with torch.no_grad():
            output = network(x.clone())
        classes = check_target(target, len(x), check_logits(output, len(x)).shape[1]).to(x.device)
        with torch.enable_grad(), warnings.catch_warnings():
            # Captum announces hooks that it removes again, and that its input now requires a gradient.
            warnings.filterwarnings("ignore", message="Setting (forward, )?backward hooks|Input Tensor")
            inside = build(network, **init_options)
            returned = inside.attribute(x.detach().clone(), target=classes if output.dim() == 2 else None, **options)
        return check_attribution(returned, x, build.__name__).detach().to(x.dtype)

    explainer.__name__ = explainer.__qualname__ = f"captum_{build.__name__}"
    explainer.__doc__ = f"Attribute each target logit with captum.attr.{build.__name__}. Returns a map shaped like x."
    return explainer
