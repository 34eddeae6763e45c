"""Explain every draw: the loop that makes an explanation distribution, and the explainer's own part of its spread."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from xuqlib.checks import check_choice, check_count, check_examples, check_target
from xuqlib.device import device as default_device
from xuqlib.distribution import ExplanationDistribution
from xuqlib.explainers.baselines import make_baseline
from xuqlib.fast.engine import PRECISIONS, Engine, computing_in
from xuqlib.moments import Moments
from xuqlib.path import Path, rows_per_pass
from xuqlib.posteriors.draws import Draws, inner
from xuqlib.posteriors.fixing import seed_of

Explainer = Callable[..., Tensor]


def explain(
    draws: Draws | Sequence[nn.Module],
    explainer: Any,
    x: Tensor,
    target: Tensor | int | None = None,
    *,
    keep: str = "all",
    precision: str = "float32",
    chunk: int | None = None,
    device: torch.device | str | None = None,
    progress: bool | None = None,
    **options: Any,
) -> ExplanationDistribution:
    """Explain every example by every draw; the attributions of one example form its explanation distribution.

    It equals the plain loop `explainer(draws[i], x, target, **options)` over i.

    Args:
        draws: fixed networks, from `posterior.sample`.
        explainer: a function (network, x, target, **options) giving an attribution shaped like x.
        x: examples (N, ...), in the units that the networks were trained on.
        target: class of each example, (N,), or one for all. By default the one output of a regression, else the
            class with the largest mean probability over the draws: one target per example, the same for every draw.
        keep: "all" stores every attribution, (draw, example, ...); "moments" keeps running means and variances only,
            so that memory does not grow with the number of draws; "mean" keeps the mean alone, which costs one way
            back for all draws where they differ in their last layer and the explainer is linear in it.
        precision: "float32" computes in the numbers of x, float64 ones too, without TF32; "tf32" allows that on a GPU.
            "bfloat16" is up to twice as fast and rounds to three digits: for dropout networks trained on CIFAR-10 the
            std over 16 draws was off by 4 to 7 %, the mean by 5 to 15 % (relative L2 over 32 pictures; the gradient
            worst, Guided Backprop best), their quotient by 0.3 % or less. Notebook 13 measures it anew.
        chunk: examples explained at a time; chosen from their size by default.
        device: where to compute; `study.device()` by default. The draws are moved there, the results come back.
        progress: show a bar; by default where more than 100 calls of the explainer are to come.
        **options: passed on to the explainer. A tensor with one entry per example is cut with the examples.

    Raises:
        TypeError, ValueError: bad examples, target, option or `keep`; an attribution that is not shaped like x.

    Source: arXiv 2403.17224, section 3.
    """
    check_examples(x)
    _check_explainer(explainer)
    check_choice(keep, ("all", "moments", "mean"), "keep")
    check_choice(precision, PRECISIONS, "precision")
    where = torch.device(device) if device is not None else default_device()
    draws = _moved(draws if isinstance(draws, Draws) else Draws(draws), where)
    one = x[:1].to(where)
    if options.get("baseline") is not None:
        options["baseline"] = make_baseline(options["baseline"], x)  # from all examples, whatever the chunk
    options_of_one = {name: _cut(value, slice(1), x, where) for name, value in options.items()}
    path = explainer.path(one, **options_of_one) if hasattr(explainer, "path") else None
    rows = _examples_at_once(one, path) if chunk is None else check_count(chunk, 1, "chunk")
    if any(isinstance(value, Tensor) and value.shape == x.shape[:1] == x.shape[1:2] for value in options.values()):
        rows = len(x)  # one entry per example, or per feature? Uncut, it does not matter
    target = _targets(draws, x, target, where)
    parts = [slice(start, start + rows) for start in range(0, len(x), rows)]
    calls = len(parts) * len(draws)
    engine = None if path is None else Engine(draws, one, guided=path.guided, precision=precision)
    values, moments = [], []
    hidden = calls <= 100 if progress is None else not progress
    with tqdm(total=calls, desc="explain", leave=False, disable=hidden) as bar:
        for part in parts:
            here = {name: _cut(value, part, x, where) for name, value in options.items()}
            targets = None if target is None else target[part].to(where)
            job = _Part(draws, explainer, engine, x[part].to(where), targets, here, precision)
            if keep == "all":
                values.append(torch.stack(list(job.attributions(bar))).cpu())  # (draw, n, ...)
            elif keep == "moments":
                moments.append(Moments.streamed(job.attributions(bar)))
            else:
                moments.append(Moments.of_mean(job.mean(bar), len(draws)))
    return ExplanationDistribution(
        values=torch.cat(values, 1) if values else None,
        running=Moments.joined(moments) if moments else None,
        target=target,
        explainer=getattr(explainer, "__name__", type(explainer).__name__),
        posterior=draws.posterior,
    )


def _examples_at_once(x: Tensor, path: Path | None) -> int:
    if path is None:
        return max(1, 2**18 // x[0].numel())
    return max(1, rows_per_pass(x, None) // path.num_steps)  # with all their steps in one pass


@dataclass(frozen=True)
class _Part:
    """Some examples, to be explained by every draw: all at once where the explainer says how, else one by one."""

    draws: Draws
    explainer: Any
    engine: Engine | None
    x: Tensor
    target: Tensor | None
    options: dict[str, Any]
    precision: str

    def attributions(self, bar: Any) -> Iterator[Tensor]:
        for attribution in self._found():
            if not isinstance(attribution, Tensor) or attribution.shape != self.x.shape:
                what = (
                    tuple(attribution.shape) if isinstance(attribution, Tensor) else f"a {type(attribution).__name__}"
                )
                raise ValueError(
                    f"the explainer returned {what} for x of {tuple(self.x.shape)}; an attribution is shaped like x"
                )
            bar.update()
            yield attribution.detach()  # left where it is: a copy per draw would make a GPU wait

    def mean(self, bar: Any) -> Tensor:
        if self.engine is None:
            return torch.stack([attribution.double() for attribution in self.attributions(bar)]).mean(0)
        bar.update(len(self.draws))
        return self.engine.mean(self.explainer.path(self.x, **self.options), self.target)

    def _found(self) -> Iterator[Tensor]:
        if self.engine is not None:
            yield from self.engine.attributions(self.explainer.path(self.x, **self.options), self.target)
        elif hasattr(self.explainer, "over_draws"):  # an explainer may know how draws share its work
            with computing_in(self.precision, self.x.device):
                found = list(self.explainer.over_draws(self.draws, self.x, self.target, **self.options))
            yield from found
        else:
            for network in self.draws:
                with computing_in(self.precision, self.x.device):
                    attribution = self.explainer(network, self.x, self.target, **self.options)
                yield attribution


@dataclass(frozen=True)
class VarianceSplit:
    """Var_total = Var_model + E[Var_explainer], each shaped like x, in squared units of the attribution.

    Unbiased estimates, so `model` may fall below 0 where the explainer's own noise hides the networks' spread.
    """

    model: Tensor
    explainer: Tensor

    @property
    def total(self) -> Tensor:
        return self.model + self.explainer


def variance_split(
    draws: Draws | Sequence[nn.Module],
    explainer: Explainer,
    x: Tensor,
    target: Tensor | int | None = None,
    *,
    num_repeats: int = 5,
    seed: int = 0,
    **options: Any,
) -> VarianceSplit:
    """Split the spread of an explainer that samples into the networks' part and its own.

    Every draw is explained `num_repeats` times, each time with another seed. The variance of one explanation, of a
    random draw under a random seed, is the variance over draws of the mean explanation plus the mean over draws of the
    variance over seeds (law of total variance), estimated without bias as in a one-way analysis of variance.

    Args:
        draws, explainer, x, target, **options: as for `explain`; the explainer takes `seed=`.
        num_repeats: explanations of each draw, at least 2.
        seed: of the explainer's seeds.

    Raises:
        ValueError: fewer than two draws or repeats.
    """
    check_examples(x)
    _check_explainer(explainer)
    check_count(num_repeats, 2, "num_repeats")
    check_count(seed, 0, "seed")
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    check_count(len(draws), 2, "the number of draws")
    if target is None:
        where = default_device()
        target = _targets(draws.to(where), x, None, where)
    means, variances = [], []
    for number, network in enumerate(draws):
        repeats = Moments()
        for repeat in range(num_repeats):
            one = explain([network], explainer, x, target, seed=seed_of(seed, number, repeat), **options)
            repeats.append(one.mean())
        means.append(repeats.of["raw"].mean)
        variances.append(repeats.of["raw"].std(correction=1) ** 2)
    within = torch.stack(variances).mean(0)
    between = torch.stack(means).var(0)  # holds 1/num_repeats of the explainer's variance
    return VarianceSplit(model=between - within / num_repeats, explainer=within)


def _targets(draws: Draws, x: Tensor, target: Tensor | int | None, where: torch.device) -> Tensor | None:
    with torch.no_grad():
        if target is not None:
            return check_target(target, len(x), sys.maxsize)  # the networks will tell how many classes they know
        rows = rows_per_pass(x[:1].to(where), None)
        mean = torch.cat([draws(part.to(where)).softmax(-1).mean(0).cpu() for part in x.split(rows)])  # (N, C)
    return None if mean.shape[1] == 1 else mean.argmax(1)


def _moved(draws: Draws, where: torch.device) -> Draws:
    there = all(parameter.device == where for network in draws for parameter in inner(network).parameters())
    return draws if there else draws.to(where)


def _check_explainer(explainer: Any) -> None:
    if not callable(explainer):
        raise TypeError(f"explainer is {explainer!r}; pass a function (network, x, target), such as xuqlib.gradient")


def _cut(value: Any, part: slice, x: Tensor, where: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    per_example = value.shape in (x.shape, x.shape[:1], x.shape[:1] + x.shape[2:])
    return (value[part] if per_example else value).to(where)
