"""Our explainers, as the metrics of Quantus call them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from xuqlib.checks import check_attribution, check_examples, check_target
from xuqlib.explainers import Explainer
from xuqlib.explainers.adapters import seeded
from xuqlib.path import Network
from xuqlib.posteriors.draws import Draws
from xuqlib.study.checked import Batch, Seed, checked


@checked
def to_quantus(
    metric: Callable[..., Any],
    draws: Draws | Sequence[nn.Module],
    explainer: Explainer,
    x: Batch,
    target: Any,
    *,
    seed: Seed = 0,
    **options: Any,
) -> list[Any]:
    """Score each draw's own explanation by a metric of Quantus, one draw after another.

    What the metric draws at random, as its perturbations, is the same for every draw.

    Args:
        metric: one of Quantus, such as `quantus.MaxSensitivity()`; any function of its keywords will do.
        draws: fixed networks, from `posterior.sample`.
        explainer: a function (network, x, target, **options) giving an attribution shaped like x.
        x, target: examples (N, ...), float32 as Quantus makes them, and the class of each, (N,).
        seed: of the metric's randomness.
        **options: passed on to the explainer.

    Returns:
        What the metric returned for each draw; mostly one number per example, so numpy.array of it is
        (draw, example).

    Raises:
        TypeError, ValueError: bad examples or target.

    Source: Hedstroem et al. 2023. arXiv 2202.06861.
    """
    check_examples(x)

    def explain_func(model: Network, inputs: Any, targets: Any, **_: Any) -> Any:
        some = torch.as_tensor(inputs).to(x)
        attribution = explainer(model, some, torch.as_tensor(targets).to(x.device), **options)
        return check_attribution(attribution, some).detach().cpu().numpy()

    classes = check_target(target, len(x), None).cpu().numpy()
    given: dict[str, Any] = {"x_batch": x.detach().cpu().numpy(), "y_batch": classes, "a_batch": None}
    given |= {"explain_func": explain_func, "device": str(x.device), "channel_first": True}
    scores = []
    for network in draws:
        with seeded(seed, x.device):
            scores.append(metric(model=network, **given))
    return scores
