"""A signed, complete attribution of uncertainty for one backward pass: what would a pixel of another image change?

Replace pixel i of x by the same pixel of a random training image b. To first order the uncertainty falls by
dU/dx_i (x_i - b_i), and on average over training images by dU/dx_i (x_i - m_i), where m is their mean. Pixels whose
replacement would make the networks surer are positive, pixels that keep the uncertainty down are negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from xuqlib.checks import check_choice, check_target
from xuqlib.explainers import explainer
from xuqlib.explainers.baselines import make_baseline
from xuqlib.explainers.gradients import gradient
from xuqlib.path import Network
from xuqlib.posteriors.draws import Draws, fixed_draws
from xuqlib.uncertainty import KINDS, attribute_uncertainty, columns_of, uncertainties


def ua_replacement(
    draws: Draws | Sequence[nn.Module],
    x: Any,
    kind: str = "epistemic",
    *,
    reference: str | Tensor,
    output: Any = None,
    target: Tensor | int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Attribute the uncertainty of each prediction to the pixels whose replacement is expected to lower it.

    Signed, and complete: it sums to `uncertainties(draws, x)` of that kind. What first-order falls leave over is
    spread evenly, since no pixel has a claim to it: that changes no order of pixels, and says nothing about any.

    Args:
        draws, x, kind, output, target, chunk: as for `attribute_uncertainty`.
        reference: m, the mean of the training examples, broadcastable to x; or a name that `make_baseline` knows.
            "black" gives signed gradient x input, up to what is spread evenly.

    Returns:
        Attribution in nats, (N, H, W) or (N, F), of x's dtype.

    Raises:
        TypeError, ValueError: as for `attribute_uncertainty`; a reference that does not broadcast to x.

    Source: derived here; an average over references as in Erion et al. 2021, arXiv 1906.10670, but at x alone.
    """
    check_choice(kind, KINDS, "kind")
    draws, x, _ = fixed_draws(draws, x, output)
    fall = attribute_uncertainty(
        draws, x, kind, target=target, explainer=_first_order_fall, baseline=reference, chunk=chunk
    ).double()
    values = columns_of(draws, getattr(uncertainties(draws, x), kind))
    chosen = check_target(target, *values.shape)
    left = values.gather(1, chosen[:, None])[:, 0].to(fall) - fall.flatten(1).sum(1)
    share = left / fall[0].numel()
    return (fall + share.view(-1, *[1] * (fall.dim() - 1))).to(x)


@explainer(per_example={"baseline": make_baseline})
def _first_order_fall(network: Network, x: Tensor, target: int, *, baseline: Tensor) -> Tensor:
    return gradient(network, x, target) * (x - baseline)
