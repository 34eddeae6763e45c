"""Explain every draw: the loop that makes an explanation distribution."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from xuqlib.checks import check_attribution, check_choice, check_flag, check_target
from xuqlib.device import Where, check_device, has_bfloat16
from xuqlib.device import device as default_device
from xuqlib.distribution import ExplanationDistribution
from xuqlib.explainers import Explainer
from xuqlib.explainers.declaring import Options, declared_by, named
from xuqlib.fast.engine import PRECISIONS, Engine, computing_in
from xuqlib.moments import Moments
from xuqlib.outputs import probabilities
from xuqlib.path import blocks, rows_per_pass
from xuqlib.posteriors.draws import Draws, fixed_draws
from xuqlib.views import View

_NUMBERS_SENT = 2**28  # in examples that are sent to a device all at once; more than that go part by part


def explain(
    draws: Draws | Sequence[nn.Module],
    explainer: Explainer,
    x: Any,
    target: Tensor | int | None = None,
    *,
    output: Any = None,
    keep: str = "all",
    precision: str = "float32",
    chunk: int | None = None,
    device: Where = None,
    progress: bool | None = None,
    **options: Any,
) -> ExplanationDistribution:
    """Explain every example by every draw; the attributions of one example form its explanation distribution.

    It equals the plain loop `explainer(draws[i], x, target, **options)` over i.

    Args:
        draws: fixed networks, from `posterior.sample`.
        explainer: a function (network, x, target, **options) giving an attribution shaped like x; or the name of one
            in `xuqlib.explainers.EXPLAINERS`.
        x: examples (N, ...), in the units that the networks were trained on: a tensor of any rank, token ids (N, T),
            a tuple or mapping of what the networks take, or a loader of batches; see `xuqlib.inputs.Inputs`.
        target: class of each example, (N,), or one for all. By default the first number of a regression, else the
            class with the largest mean probability over the draws: one target per example, the same for every draw.
        output: what of the networks' answers is explained: "logits", "probabilities", "binary", "multilabel",
            "regression", "mean_variance", "segmentation", a key or function of the answer, or (key, name); see
            `xuqlib.outputs.Output`. By default what the posterior knows, else logits or the one number.
        keep: "all" stores every attribution, (draw, example, ...); "moments" keeps running means and variances only,
            so that memory does not grow with the number of draws; "mean" keeps the mean alone, which costs one
            backward pass for all draws where they differ in their last layer and the explainer is linear in it.
        precision: "float32" computes in the dtype of x, float64 too, without TF32; "tf32" allows that on a GPU.
            "bfloat16" is up to twice as fast and rounds to three digits: for dropout networks trained on CIFAR-10 the
            std over 16 draws was off by 4 to 7 %, the mean by 5 to 15 % (relative L2 over 32 images; the gradient
            worst, Guided Backprop best), their quotient by 0.3 % or less. Notebook 13 measures it anew. A CPU without
            arithmetic for bfloat16 (x86 without AVX-512) takes a hundred times as long: a warning says so.
        chunk: examples explained at a time; chosen from their size by default.
        device: where to compute; `xuqlib.device.device()` by default. Copies of the draws and of x are sent there, and
            the results come back; what is passed may be anywhere, and stays there.
        progress: show a bar; by default where more than 100 calls of the explainer are to come.
        **options: passed on to the explainer. Those that it declares to hold one entry per example (`@explainer`) are
            cut with the examples. To an explainer that declares nothing, an option with as many entries as there are
            examples may or may not be such a one: all examples are then explained at once, and `chunk` is refused.

    Raises:
        TypeError, ValueError: bad examples, target, option or `keep`; an attribution that is not shaped like x.

    Source: arXiv 2403.17224, section 3.
    """
    explainer = named(explainer)
    check_choice(keep, ("all", "moments", "mean"), "keep")
    check_choice(precision, PRECISIONS, "precision")
    if progress is not None:
        check_flag(progress, "progress")
    where = default_device() if device is None else check_device(device)
    if precision == "bfloat16" and not has_bfloat16(where):
        warnings.warn("this CPU has no arithmetic for bfloat16; float32 is many times as fast here", stacklevel=2)
    draws, x, _ = fixed_draws(draws, x, output)
    draws, x = draws.on(where), x if x.numel() > _NUMBERS_SENT else x.to(where)
    given, path_of, one = Options(explainer, options, x), declared_by(explainer).path, x[:1].detach().to(where)
    path = None if path_of is None else path_of(one, **given.of(slice(1), where))
    engine = None
    if path is not None and all(getattr(network, "resampling", None) is None for network in draws):
        engine = Engine(draws.at(slice(1)), one, guided=path.guided, precision=precision)
    # An engine has all steps of the path in one pass; what other explainers need is not known.
    rows = rows_per_pass(one, None) if engine is None else engine.rows_of_pass
    at_once = 2**18 // one.numel() if path is None else rows // path.num_steps
    parts = given.parts(max(1, at_once), chunk)
    if target is None:
        target = most_probable(mean_probs(draws, x, where, engine if precision != "bfloat16" else None))
    else:
        target = check_target(target, len(x), None)
    calls = len(parts) * len(draws)
    hidden = calls <= 100 if progress is None else not progress
    values, moments = [], []
    with tqdm(total=calls, desc="explain", leave=False, disable=hidden) as bar:
        for part in parts:
            some, here = x[part].to(where), given.of(part, where)
            classes, seen = None if target is None else target[part].to(where), draws.at(part)
            if engine is None or path_of is None:
                attributions = _one_by_one(seen, explainer, some, classes, here, precision)
            elif keep != "mean":
                attributions = engine.at(seen).attributions(path_of(some.detach(), **here), classes)
            else:
                mean = engine.at(seen).mean(path_of(some.detach(), **here), classes)
                moments.append(Moments.of_mean(mean, len(draws)))
                bar.update(len(draws))
                continue
            checked = _checked(attributions, some, bar)
            if keep == "all":
                values.append(torch.stack(list(checked)).cpu())  # (draw, n, ...)
            elif keep == "moments":
                moments.append(Moments.streamed(checked))
            else:
                moments.append(Moments.of_mean(torch.stack([a.double() for a in checked]).mean(0), len(draws)))
    return ExplanationDistribution(
        values=torch.cat(values, 1) if values else None,
        running=Moments.joined(moments) if moments else None,
        target=None if target is None else target.cpu(),
        explainer=getattr(explainer, "__name__", type(explainer).__name__),
        posterior=draws.posterior,
        how="" if engine is None else engine.how,
    )


def _one_by_one(
    draws: Draws, explainer: Explainer, x: Tensor, target: Tensor | None, options: dict[str, Any], precision: str
) -> Iterator[Tensor]:
    """Call an explainer for each draw, or once for all of them if it declares how they share its work."""
    over_draws = declared_by(explainer).over_draws
    if over_draws is not None:
        with computing_in(precision, x.device):
            attributions = list(over_draws(draws, x, target, **options))
        yield from attributions
        return
    for network in draws:
        with computing_in(precision, x.device):
            attribution = explainer(network, x, target, **options)
        yield attribution


def _checked(attributions: Iterable[Tensor], x: Tensor, bar: Any) -> Iterator[Tensor]:
    for attribution in attributions:
        check_attribution(attribution, x)
        bar.update()
        yield attribution.detach()  # left where it is: a copy per draw would make a GPU wait


@torch.no_grad()
def mean_probs(draws: Draws, x: Tensor, where: torch.device, engine: Engine | None = None) -> Tensor:
    """Return the mean over draws of what is largest for the class to be explained, (N, C), on their device.

    Args:
        where: the device of the draws.
        engine: of these draws; it evaluates them on any device but a CPU, in fewer launches than one by one.
    """
    one = x[:1].to(where)
    if where.type != "cpu" and engine is None:
        engine = Engine(draws.at(slice(1)), one)
    means = []
    for part in blocks(len(x), rows_per_pass(one, None)):
        seen, some = draws.at(part), x[part].to(where)
        means.append(
            _mean_probs(seen, seen(some) if where.type == "cpu" else cast(Engine, engine).at(seen).logits(some))
        )
    return torch.cat(means)


def most_probable(mean: Tensor) -> Tensor | None:
    """Return the class with the largest mean probability, (N,), by what `mean_probs` gives; None for one number.

    Raises:
        ValueError: logits that are NaN.
    """
    if mean.shape[1] == 1:
        return None
    if mean.isnan().any():
        raise ValueError("draws answer NaN, so no class is the most probable; did training diverge?")
    return mean.argmax(1)


def _mean_probs(draws: Draws, numbers: Tensor) -> Tensor:
    """Mean over draws of what is largest for the class to be explained, (N, C), by what they answer, (S, N, C)."""
    view = draws[0]
    if isinstance(view, View) and isinstance(view.output.where, Tensor) and view.output.where.shape[1] > 1:
        return view.output.where.flatten(2).sum(2)  # the class that fills the most places
    if draws.output in ("regression", "mean_variance"):
        return F.one_hot(torch.zeros_like(numbers[0, :, 0], dtype=torch.long), numbers.shape[2])  # the first
    return probabilities(numbers, draws.output).mean(0)
