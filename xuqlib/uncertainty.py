"""Predictive uncertainty: total = aleatoric + epistemic, and how well a posterior predicts."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import check_attribution, check_choice, check_count, check_fixed, check_number, check_target
from xuqlib.explainers import EXPLAINERS, Explainer
from xuqlib.explainers.declaring import Options, named
from xuqlib.explainers.fullgrad import fullgrad
from xuqlib.fast.engine import Engine
from xuqlib.moments import folded
from xuqlib.outputs import Output
from xuqlib.path import blocks, rows_per_pass
from xuqlib.posteriors.draws import Draws, inner
from xuqlib.views import OfExamples, View


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
        axes = {0: (), 1: ("output",), 2: ("row", "column")}.get(self.total.ndim - 1)
        names = ("example", *(axes if axes is not None else [f"axis_{n}" for n in range(1, self.total.ndim)]))
        index = pd.MultiIndex.from_product([range(size) for size in self.total.shape], names=names)
        columns = {name: value.flatten().numpy() for name, value in vars(self).items()}
        return pd.DataFrame(columns, index=index).reset_index()


def logits_of(draws: Draws, x: Any, *, batch_size: int = 256, output: Any = None) -> Tensor:
    """Evaluate all draws in batches without a graph: (draw, example, class), on the CPU.

    Args:
        x, output: as for `explain`; a segmentation gives (draw, example, class, ...).
    """
    if not isinstance(draws, Draws):
        raise TypeError(f"draws is a {type(draws).__name__}; pass posterior.sample(num_draws)")
    check_count(batch_size, 1, "batch_size")
    draws, x = draws.seen(x, output, explained=False)
    where = next((p.device for p in draws[0].parameters()), torch.device("cpu"))
    evaluate: Callable[[Draws, Tensor], Tensor] = Draws.read
    if draws.output != "segmentation" and not isinstance(inner(draws[0]), nn.Sequential):
        engine = Engine(draws.at(slice(1)), x[:1].to(where))
        if engine.how == "vmap":  # what draws share, such as all before a last layer, is evaluated once
            batch_size = min(batch_size, max(1, engine.rows // len(draws)))
            evaluate = lambda some, x: engine.at(some).logits(x)  # noqa: E731
    with torch.no_grad():
        parts = blocks(len(x), batch_size)
        return torch.cat([evaluate(draws.at(part), x[part].to(where)).cpu() for part in parts], dim=1)


def uncertainties(draws: Draws, x: Any, *, noise_variance: float | None = None, output: Any = None) -> Uncertainties:
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
    if not isinstance(draws, Draws):
        raise TypeError(f"draws is a {type(draws).__name__}; pass posterior.sample(num_draws)")
    draws, x = draws.seen(x, output, explained=False)
    noise_variance = draws.noise_variance if noise_variance is None else noise_variance
    return decompose(logits_of(draws, x), noise_variance, draws.output)


def decompose(logits: Tensor, noise_variance: float | Tensor = 0.0, output: str | None = None) -> Uncertainties:
    """`uncertainties` of given numbers, (draw, example, class).

    Args:
        noise_variance: one number, or one for each output of a regression.
        output: a name in `xuqlib.outputs.OUTPUTS`; by default one class means regression, several logits.
    """
    _check_stack(logits, "segmentation" if output == "segmentation" else None)
    logits, noise = logits.double(), torch.as_tensor(noise_variance, dtype=torch.float64)
    for value in noise.flatten().tolist():
        check_number(value, 0, "noise_variance")
    if output == "segmentation":  # logits of the classes, or one of yes against no, in each place
        logits, output = logits.movedim(2, -1), "binary" if logits.shape[2] == 1 else "logits"
    if output in ("binary", "multilabel"):
        parts = vars(_of_classes(torch.stack([-logits / 2, logits / 2], -1).log_softmax(-1)))
        return Uncertainties(**{name: part[..., 0] if output == "binary" else part for name, part in parts.items()})
    if output == "mean_variance":
        means, variances = logits.chunk(2, -1)
        Output(output).check(logits)
        return _of_numbers(means, variances.mean(0))
    if output == "regression" or (output is None and logits.shape[-1] == 1):
        return _of_numbers(logits, noise.expand(logits.shape[1:]))
    if output == "probabilities":
        Output(output).check(logits)
        return _of_classes(logits.clamp(min=torch.finfo(torch.float64).tiny).log())
    return _of_classes(logits.log_softmax(-1))


def _of_numbers(answers: Tensor, aleatoric: Tensor) -> Uncertainties:
    """Variances of what the draws answer, (draw, example, number); (N,) where that is one number."""
    epistemic = answers.var(0, correction=0)
    if epistemic.shape[-1] == 1:
        epistemic, aleatoric = epistemic[..., 0], aleatoric[..., 0]
    return Uncertainties(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)


def _of_classes(log_probs: Tensor) -> Uncertainties:
    """Entropies of classes, the last axis of (draw, example, ..., class)."""
    log_mean = log_probs.logsumexp(0) - math.log(len(log_probs))  # (N, C)
    aleatoric = torch.special.entr(log_probs.exp()).sum(-1).mean(0)
    # The mean divergence from the mean, which is never a difference of two large numbers; only rounding is below 0.
    epistemic = (log_probs.exp() * (log_probs - log_mean)).sum(-1).mean(0).clamp(min=0)
    return Uncertainties(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)


def _check_stack(logits: Tensor, output: str | None = None) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError("logits are no floating point tensor; pass draws(x), (draw, example, class)")
    if (logits.ndim < 4 if output == "segmentation" else logits.ndim != 3) or not logits.numel():
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; wanted (draw, example, class), at least one of each"
        )
    if not logits.isfinite().all():
        raise ValueError("logits hold NaN or infinite values, so their uncertainty is undefined; did training diverge?")


KINDS = ("total", "aleatoric", "epistemic")


def probability_shares(logits: Tensor, kind: str = "epistemic") -> Tensor:
    """Split an uncertainty into one share per probability of each draw; they sum to it over draws and classes.

    total -p log(mean p) / S, aleatoric -p log(p) / S, epistemic p log(p / mean p) / S. An epistemic share may be below
    0; its sums over draws and over classes are not.

    Args:
        logits: (draw, example, class), at least two classes.
        kind: "total", "aleatoric" or "epistemic".

    Returns:
        Shares in nats, (draw, example, class), float64.

    Raises:
        ValueError: unknown kind; logits of another shape, or of a regression.
    """
    check_choice(kind, KINDS, "kind")
    _check_stack(logits)
    if logits.shape[-1] < 2:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)}; UA-Backprop splits entropies of class probabilities, so pass "
            "(draw, example, class) with at least two classes, not a regression"
        )
    log_probs = logits.double().log_softmax(-1)  # (S, N, C)
    log_mean = log_probs.logsumexp(0) - math.log(len(logits))  # (N, C)
    surprise = {"total": -log_mean, "aleatoric": -log_probs, "epistemic": log_probs - log_mean}[kind]
    return log_probs.exp() * surprise / len(logits)


def number_shares(numbers: Tensor, kind: str, noise_variance: float | Tensor, output: str | None) -> Tensor:
    """Split the variances of a regression, summed over its numbers, into one share per number of each draw.

    Epistemic (y - mean y)^2 / S; aleatoric what a draw says of its own variance, / S, a share of that number; total
    both, or with the noise of a regression that says none.

    Args:
        numbers: (draw, example, number), as `Draws.read` gives them.
        kind, noise_variance, output: as for `decompose`.

    Returns:
        Shares in squared target units, (draw, example, number), float64.

    Raises:
        ValueError: unknown kind; the aleatoric part of a regression that says none.
    """
    check_choice(kind, KINDS, "kind")
    _check_stack(numbers)
    numbers = numbers.double()
    says_variance = output == "mean_variance"
    means, variances = numbers.chunk(2, -1) if says_variance else (numbers, None)
    epistemic = (means - means.mean(0)) ** 2 / len(means)
    if variances is None:
        if kind == "aleatoric":
            raise ValueError(_SAME_NOISE)
        noise = torch.as_tensor(noise_variance, dtype=torch.float64)
        return epistemic + (noise / len(means) if kind == "total" else 0)
    aleatoric = variances / len(means)
    none = torch.zeros_like(means)
    return torch.cat([none if kind == "aleatoric" else epistemic, none if kind == "epistemic" else aleatoric], -1)


_SAME_NOISE = (
    "the aleatoric uncertainty of a regression is its noise_variance, the same for all x; pass networks that say a "
    'variance (output="mean_variance"), or another kind'
)


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
        numbers = self.draws.read(x)
        if self.draws.output in (None, "logits") and numbers.shape[2] > 1:
            shares = probability_shares(numbers, self.kind)  # (S, N, C), float64
            return shares.sum((0, 2)).clamp(min=0).to(x.dtype)[:, None]  # only rounding is below 0
        if self.kind == "aleatoric" and self.draws.output in (None, "regression"):
            raise ValueError(_SAME_NOISE)
        parts = decompose(numbers, self.draws.noise_variance, self.draws.output)
        return columns_of(self.draws, getattr(parts, self.kind)).to(x.dtype)


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


def checked_draws(
    draws: Draws | Sequence[nn.Module], x: Any, kind: str, output: Any = None
) -> tuple[Draws, Tensor, torch.device]:
    """As `fixed_draws`, of networks that tell classes apart: others are refused."""
    draws, x, where = class_draws(draws, x, output)
    probability_shares(logits_of(draws.at(slice(1)), x[:1]), kind)  # refuses an unknown kind, and one output
    return draws, x, where


def class_draws(draws: Draws | Sequence[nn.Module], x: Any, output: Any = None) -> tuple[Draws, Tensor, torch.device]:
    """As `fixed_draws`, as maps to logits of classes, or numbers of a regression; another output is refused."""
    draws, x, where = fixed_draws(draws, x, output)
    return draws if draws.output in (None, "logits", "regression", "mean_variance") else draws.of_classes(), x, where


def fixed_draws(draws: Draws | Sequence[nn.Module], x: Any, output: Any = None) -> tuple[Draws, Tensor, torch.device]:
    """Refuse what `Draws.seen` refuses; return the draws as maps from x, that x, and the device of the draws."""
    draws, x = (draws if isinstance(draws, Draws) else Draws(draws)).seen(x, output)
    for network in draws:
        check_fixed(network)
    return draws, x, next((parameter.device for parameter in draws[0].parameters()), x.device)


def without_channels(attribution: Tensor) -> Tensor:
    """Sum an attribution of images over channels, (N, H, W); that of a table or signal stays as it is."""
    return attribution.sum(1) if attribution.dim() > 3 else attribution
