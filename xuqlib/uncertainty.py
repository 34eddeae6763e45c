"""Predictive uncertainty: total = aleatoric + epistemic, and how well a posterior predicts."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from xuqlib.checks import (
    check_attribution,
    check_choice,
    check_count,
    check_flag,
    check_noise,
    check_target,
    check_tensor,
    is_finite,
)
from xuqlib.explainers import EXPLAINERS, Explainer
from xuqlib.explainers.declaring import Options, named
from xuqlib.explainers.fullgrad import fullgrad
from xuqlib.fast.engine import Engine
from xuqlib.moments import folded
from xuqlib.outputs import Output
from xuqlib.path import blocks, rows_per_pass
from xuqlib.posteriors.draws import Draws, fixed_draws, inner
from xuqlib.views import OfExamples, View

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("total", "aleatoric", "epistemic")


@dataclass(frozen=True)
class Uncertainties:
    """What is uncertain about each example's prediction, float64: in nats, for regression in squared units.

    total = aleatoric + epistemic. Each is (N,); (N, K) for K labels or numbers; (N, ...) for the places of an image.
    """

    total: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    def to_frame(self) -> pd.DataFrame:
        """One row per number: example, then output, or row and column, if any; total, aleatoric, epistemic."""
        import pandas as pd

        axes = {0: (), 1: ("output",), 2: ("row", "column")}.get(self.total.ndim - 1)
        names = ("example", *(axes if axes is not None else [f"axis_{n}" for n in range(1, self.total.ndim)]))
        index = pd.MultiIndex.from_product([range(size) for size in self.total.shape], names=names)
        columns = {name: value.flatten().numpy() for name, value in vars(self).items()}
        return pd.DataFrame(columns, index=index).reset_index()


def logits_of(draws: Draws | Sequence[nn.Module], x: Any, *, batch_size: int = 256, output: Any = None) -> Tensor:
    """Evaluate all draws in batches without a graph: (draw, example, class), on the CPU.

    Args:
        x, output: as for `explain`; a segmentation gives (draw, example, class, ...).
    """
    check_count(batch_size, 1, "batch_size")
    draws, x, where = fixed_draws(draws, x, output, explained=False)
    evaluate: Callable[[Draws, Tensor], Tensor] = Draws.read
    if draws.output != "segmentation" and not isinstance(inner(draws[0]), nn.Sequential):
        engine = Engine(draws.at(slice(1)), x[:1].to(where))
        if engine.how == "vmap":  # what draws share, such as all before a last layer, is evaluated once
            batch_size = min(batch_size, max(1, engine.rows // len(draws)))
            evaluate = lambda some, x: engine.at(some).logits(x)  # noqa: E731
    with torch.no_grad():
        parts = blocks(len(x), batch_size)
        return torch.cat([evaluate(draws.at(part), x[part].to(where)).cpu() for part in parts], dim=1)


def uncertainties(
    draws: Draws | Sequence[nn.Module], x: Any, *, noise_variance: float | None = None, output: Any = None
) -> Uncertainties:
    """Split the uncertainty about each prediction into what more networks would and would not resolve.

    Classes: total is the entropy of the mean probability, aleatoric the mean entropy over draws, epistemic their
    difference, the mutual information; computed in float64, since in float32 it can fall below 0. The same for each
    label of "multilabel", and for each place of a "segmentation".
    Regression: epistemic is the variance of the draws' answers, of each number by itself; aleatoric the variance of
    the targets about one draw's answer, which "mean_variance" networks say, in the mean over draws.

    Args:
        draws: fixed networks, from `posterior.sample`.
        x, output: as for `explain`.
        noise_variance: for regression; `draws.noise_variance` by default, which `train_or_load` takes from validation
            residuals. Networks with one output state no noise of their own: without either it is 0.

    Source: arXiv 2304.04824, section 3; Depeweg et al. 2018, arXiv 1710.07283; Kendall & Gal 2017, arXiv 1703.04977,
        eq. 9, for networks that say a variance.
    """
    draws, x, _ = fixed_draws(draws, x, output, explained=False)
    noise_variance = draws.noise_variance if noise_variance is None else noise_variance
    return decompose(logits_of(draws, x), noise_variance, draws.output)


def decompose(logits: Tensor, noise_variance: float | Tensor = 0.0, output: str | None = None) -> Uncertainties:
    """`uncertainties` of given numbers, (draw, example, class).

    Args:
        noise_variance: one number, or one for each output of a regression.
        output: a name in `xuqlib.outputs.OUTPUTS`; by default one class means regression, several logits.
    """
    aleatoric, epistemic = (shares.sum(2).mean(0) for shares in _shares(logits, noise_variance, output))
    if epistemic.shape[1:] == (1,) and output not in ("multilabel", "segmentation"):
        aleatoric, epistemic = aleatoric[:, 0], epistemic[:, 0]
    epistemic = epistemic.clamp(min=0)  # only rounding is below 0
    return Uncertainties(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)


def uncertainty_shares(
    numbers: Tensor, kind: str = "epistemic", noise_variance: float | Tensor = 0.0, output: str | None = None
) -> Tensor:
    """Split an uncertainty into one share per number of each draw; they sum to it over draws and numbers.

    Classes: total -p log(mean p) / S, aleatoric -p log(p) / S, epistemic p log(p / mean p) / S, one for each
    probability p of S draws. An epistemic share may be below 0; its sums over draws and over classes are not.
    Regression: epistemic (y - mean y)^2 / S for each number y, aleatoric the variance that a draw says / S; total is
    both, or with the noise where draws say none.

    Args:
        numbers: what the draws answer, (draw, example, number), as `Draws.read` gives it.
        kind: "total", "aleatoric" or "epistemic".
        noise_variance, output: as for `decompose`.

    Returns:
        Shares, float64: (draw, example, class) in nats; of K labels (draw, example, 2, K), no and yes; of K numbers
        (draw, example, 1, K) in their squared units, or (draw, example, 2, K) of means and variances.

    Raises:
        ValueError: unknown kind; logits of another shape; the aleatoric part of a regression that says none.
    """
    check_choice(kind, KINDS, "kind")
    aleatoric, epistemic = _shares(numbers, noise_variance, output)
    if kind == "aleatoric" and (output == "regression" or (output is None and numbers.shape[2] == 1)):
        raise ValueError(
            "the aleatoric uncertainty of a regression is its noise_variance, the same for all x; pass networks that "
            'say a variance (output="mean_variance"), or another kind'
        )
    return {"total": aleatoric + epistemic, "aleatoric": aleatoric, "epistemic": epistemic}[kind] / len(numbers)


def _shares(numbers: Tensor, noise_variance: float | Tensor, output: str | None) -> tuple[Tensor, Tensor]:
    """What each draw has to do with the aleatoric and epistemic uncertainty, (draw, example, share, ...).

    Its mean over draws and sum over shares is the uncertainty, of each label, number or place behind the shares.
    """
    _check_stack(numbers, output)
    Output(output).check(numbers)
    numbers, noise = numbers.double(), check_noise(noise_variance)
    is_one = numbers.shape[2] == 1
    if output == "mean_variance":
        means, variances = numbers.chunk(2, 2)
        none = torch.zeros_like(means)
        return torch.stack([none, variances], 2), torch.stack([(means - means.mean(0)) ** 2, none], 2)
    if output == "regression" or (output is None and is_one):
        return noise.expand_as(numbers)[:, :, None], ((numbers - numbers.mean(0)) ** 2)[:, :, None]
    if output in ("binary", "multilabel") or (output == "segmentation" and is_one):
        yes = numbers[:, :, 0] if output == "segmentation" else numbers
        numbers = torch.stack([-yes / 2, yes / 2], 2)  # whose softmax is the sigmoid
    tiny = torch.finfo(torch.float64).tiny
    log_probs = numbers.clamp(min=tiny).log() if output == "probabilities" else numbers.log_softmax(2)
    log_mean = log_probs.logsumexp(0) - math.log(len(log_probs))  # (N, C)
    # Epistemic is the mean divergence from the mean, which is never a difference of two large numbers.
    return -log_probs.exp() * log_probs, log_probs.exp() * (log_probs - log_mean)


def _check_stack(logits: Tensor, output: str | None = None) -> None:
    check_tensor(logits, "logits")
    if not logits.is_floating_point():
        raise TypeError("logits are no floating point tensor; pass draws(x), (draw, example, class)")
    if (logits.ndim < 4 if output == "segmentation" else logits.ndim != 3) or not logits.numel():
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; wanted (draw, example, class), at least one of each"
        )
    if not is_finite(logits):
        raise ValueError("logits hold NaN or infinite values, so their uncertainty is undefined; did training diverge?")


# FullGrad's signed terms add up to U as far as it can; other explainers are taken as they come.
OF_UNCERTAINTY = ChainMap[str, Explainer]({"fullgrad": partial(fullgrad, psi="signed")}, EXPLAINERS)


class UncertaintyOf(OfExamples):
    """The uncertainty of a prediction as a network, (N, 1), in nats: differentiable in x.

    Equals `uncertainties(draws, x)` of that kind. Wherever an explainer takes a network, it takes this one, with
    target 0; of several labels or numbers, (N, K), the target is one of them. That of a segmentation is summed over the
    places of each class, or over `Output.where`. It is computed in float64, the answer has x's dtype.

    Args:
        draws: fixed networks, as they are or seen with inputs and an output (`Draws.seen`), or a list of networks.
            They are held, not copied.
        kind: "total", "aleatoric" or "epistemic".

    Raises:
        TypeError, ValueError: no networks; unknown kind; when called, the noise of a regression, the same for all x.
    """

    def __init__(self, draws: Draws | Sequence[nn.Module], kind: str = "epistemic") -> None:
        super().__init__()
        check_choice(kind, KINDS, "kind")
        self.draws, self.kind = draws if isinstance(draws, Draws) else Draws(draws), kind
        self.networks = nn.ModuleList(self.draws)  # so that a check of this network finds what is inside
        self.training = False

    def at(self, examples: slice) -> UncertaintyOf:
        return UncertaintyOf(self.draws.at(examples), self.kind)

    def forward(self, x: Tensor) -> Tensor:
        shares = uncertainty_shares(self.draws.read(x), self.kind, self.draws.noise_variance, self.draws.output)
        return columns_of(self.draws, shares.sum((0, 2)).clamp(min=0)).to(x.dtype)  # only rounding is below 0


def columns_of(draws: Draws, values: Tensor) -> Tensor:
    """Lay uncertainties out as (N, K), what is attributed; of a segmentation, sums over the places of each class."""
    if draws.output == "segmentation":
        return cast(View, draws[0]).output.columns(values[:, None])
    return values if values.dim() == 2 else values[:, None]


def attribute_uncertainty(
    draws: Draws | Sequence[nn.Module],
    x: Any,
    kind: str = "epistemic",
    *,
    output: Any = None,
    target: Tensor | int | None = None,
    explainer: str | Explainer = "gradient_x_input",
    absolute: bool = False,
    chunk: int | None = None,
    **options: Any,
) -> Tensor:
    """Attribute the uncertainty of each prediction to the input by any explainer.

    What the explainer promises holds for U: Integrated Gradients sums to U(x) - U(baseline), gradient x input to
    nothing in particular.

    Args:
        draws, kind: as for `ua_backprop`.
        x, output: as for `explain`; of a regression, the uncertainty is a variance.
        target: of several labels or numbers, the one whose uncertainty it is: (N,), or one for all.
        explainer: a name in `xuqlib.explainers.EXPLAINERS`; "fullgrad", which keeps the signs of its terms unless
            `psi` says otherwise; or a function (network, x, target) like those.
        absolute: add up absolute values over channels, instead of the values.
        chunk: rows (examples, or examples times steps) in one pass through all draws; chosen by device, size of x and
            number of draws if None.
        **options: passed on to the explainer, such as num_steps, baseline or segments; cut with the examples as by
            `explain`.

    Returns:
        Attribution (N, H, W) or (N, F), of x's dtype: for a gradient in nats per unit of x, else in nats; of a
        regression in squared target units.

    Raises:
        TypeError, ValueError: bad draws, x or option; several outputs and no target; an attribution not shaped like x.

    Source: the rivals of Wang, Joshi, Wang & Ji 2023, arXiv 2304.04824; each explainer names its own.
    """
    check_choice(kind, KINDS, "kind")
    check_flag(absolute, "absolute")
    draws, x, where = fixed_draws(draws, x, output)
    explainer = named(explainer, OF_UNCERTAINTY)
    rows = rows_per_pass(x[:1].to(where), chunk)
    if chunk is None:  # U keeps the graphs of all its draws
        rows = max(1, min(rows, 8 * rows // len(draws)))
    if "chunk" in inspect.signature(explainer).parameters:
        options["chunk"] = rows
    network, attributions, given = UncertaintyOf(draws, kind), [], Options(explainer, options, x)
    with torch.no_grad():  # refuses what has no such uncertainty
        num_outputs = network.at(slice(1))(x[:1].detach().to(where)).shape[1]
    outputs = check_target(target, len(x), num_outputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "FullGrad's terms miss")  # an entropy is not linear, so they always do
        for part in given.parts(rows, chunk):
            some, which = x[part].detach().to(where), outputs[part].to(where)
            attribution = check_attribution(explainer(network.at(part), some, which, **given.of(part, where)), some)
            attributions.append((folded(attribution) if absolute else without_channels(attribution)).to(x))
    return torch.cat(attributions)


def without_channels(attribution: Tensor) -> Tensor:
    """Sum an attribution of images over channels, (N, H, W); that of a table or signal stays as it is."""
    return attribution.sum(1) if attribution.dim() > 3 else attribution
