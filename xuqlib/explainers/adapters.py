"""Explainers of another library, called like our own."""

from __future__ import annotations

import importlib
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xuqlib.checks import check_attribution, check_choice, check_examples, check_logits, check_target
from xuqlib.explainers.declaring import Explainer
from xuqlib.path import Network
from xuqlib.posteriors.trial import try_out


def from_captum(method: Callable[..., Any] | str, **init_options: Any) -> Explainer:
    """Return a Captum attribution method as an explainer; options of its `attribute` pass through.

    What the method draws at random, `seed` fixes, an option of the explainer: the same for every network and call.

    Args:
        method: a class such as `captum.attr.DeepLift`, or its name; or a function of a network that builds a method,
            such as lambda network: NoiseTunnel(Saliency(network)).
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
    if not callable(method) or (isinstance(method, type) and not hasattr(method, "attribute")):
        raise TypeError(f"{method!r} is not an attribution class; pass one, such as captum.attr.DeepLift")
    build, name = method, getattr(method, "__name__", type(method).__name__)
    if "attribution_method" in inspect.signature(build).parameters:
        raise TypeError(f"{name} is built around another method; pass lambda network: {name}(Saliency(network)), say")

    def explainer(network: Network, x: Tensor, target: Any = None, *, seed: int = 0, **options: Any) -> Tensor:
        check_examples(x)
        try_out(network, x)
        with torch.no_grad():
            output = network(x.clone())
        classes = check_target(target, len(x), check_logits(output, len(x)).shape[1]).to(x.device)
        with torch.enable_grad(), seeded(seed, x.device), warnings.catch_warnings():
            # Captum announces hooks that it removes again, a gradient of its input, and LIME of several examples.
            told = "Setting (forward, )?backward hooks|Input Tensor|You are providing multiple inputs"
            warnings.filterwarnings("ignore", message=told)
            inside = build(network, **init_options)
            returned = inside.attribute(x.detach().clone(), target=classes if output.dim() == 2 else None, **options)
        return check_attribution(returned, x, name).detach().to(x.dtype)

    explainer.__name__ = explainer.__qualname__ = f"captum_{name}"
    explainer.__doc__ = f"Attribute each target logit with captum.attr.{name}. Returns a map shaped like x."
    return explainer


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed every generator that other libraries read, and leave each as it was."""
    cards = [] if device.type == "cpu" else [device]
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - theirs, not ours
    with torch.random.fork_rng(cards, device_type="cuda" if not cards else device.type):
        torch.default_generator.manual_seed(seed)
        for card in cards:
            torch.get_device_module(card).manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)  # noqa: NPY002
