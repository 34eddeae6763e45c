"""Which class is an explanation asked about: the predicted one, the true one, or each draw its own?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from xuqlib.checks import check_target
from xuqlib.distribution import ExplanationDistribution
from xuqlib.explain import explain
from xuqlib.explainers.gradients import Explainer
from xuqlib.lessons.classes import PAPER, Way, hardness
from xuqlib.lessons.reporting import judge
from xuqlib.metrics.similarity import spearman, ssim
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import Examples
from xuqlib.study.judging.controls import other_image, runner_up
from xuqlib.study.record import Notebook
from xuqlib.study.resuming import resumable
from xuqlib.uncertainty import logits_of

ASKED = ("predicted class", "true label", "own answer", "runner-up", "another picture")


def explain_own(
    draws: Draws | Sequence[nn.Module], explainer: Explainer, x: Tensor, **options: Any
) -> ExplanationDistribution:
    """Explain every draw at the class that it answers itself, so the class may change from draw to draw.

    It equals the plain loop `explainer(draws[i], x, draws[i](x).argmax(1))` over i.

    Args:
        draws, explainer, x, **options: as for `explain`; every attribution is kept.

    Returns:
        The distribution; its `target` is None, since there is no one class.

    Raises:
        ValueError: `keep` is given.
    """
    if "keep" in options:
        raise ValueError("explain_own keeps every attribution; leave out keep")
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    options["progress"] = False
    own = logits_of(draws, x).argmax(-1)  # (S, N)
    parts = [explain([draw], explainer, x, target, **options) for draw, target in zip(draws, own, strict=True)]
    values = torch.cat([part.values for part in parts if part.values is not None])
    return ExplanationDistribution(values, explainer=parts[0].explainer, posterior=draws.posterior)


def by_target(
    draws: Draws | Sequence[nn.Module], explainer: Explainer, x: Tensor, target: Tensor, **options: Any
) -> pd.DataFrame:
    """Explain the same pictures with another class asked about, and compare with the predicted class's mean map.

    The predicted class is the argmax of the mean probabilities, the same for every draw. Where another question comes
    to the same class, the maps are the same and nothing is computed.

    Args:
        draws, explainer, x, **options: as for `explain`; x is pictures (N, C, H, W), at least two.
        target: the true label of each picture, (N,).

    Returns:
        One row per example and entry of `ASKED`: example, answer ("right" or "wrong"), asked; spearman and ssim
        between its mean map and that of the predicted class; cv_ratio, its own ratio CV. "another picture" is the next
        example's map at that one's predicted class, the floor of every similarity; it has no CV.
    """
    draws = draws if isinstance(draws, Draws) else Draws(draws)
    probs = logits_of(draws, x).double().softmax(-1)  # (S, N, C)
    target = check_target(target, len(x), probs.shape[-1])
    mean = probs.mean(0)
    predicted = mean.argmax(1)

    def found(rows: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        if classes is None:
            e = explain_own(draws, explainer, x[rows], **options)
        else:
            e = explain(draws, explainer, x[rows], classes[rows], keep="moments", progress=False, **options)
        return e.mean(), e.cv("ratio")

    first, cv = found(torch.arange(len(x)), predicted)
    own = (probs.argmax(-1) != predicted).any(0)
    others = ((target != predicted, target), (own, None), (torch.ones_like(own), runner_up(mean)))
    answered: list[tuple[Tensor, Tensor]] = [(first, cv)]
    for changed, classes in others:
        maps, cvs, rows = first.clone(), cv.clone(), changed.nonzero()[:, 0]
        if len(rows):
            maps[rows], cvs[rows] = found(rows, classes)
        answered.append((maps, cvs))
    answered.append((other_image(first), torch.full_like(cv, math.nan)))
    fixed = {"example": range(len(x)), "answer": np.where(predicted == target, "right", "wrong")}
    scores = [{"spearman": spearman(maps, first), "ssim": ssim(maps, first), "cv_ratio": cvs} for maps, cvs in answered]
    parts = [pd.DataFrame(fixed | {"asked": name} | each) for name, each in zip(ASKED, scores, strict=True)]
    return pd.concat(parts, ignore_index=True)


@resumable
def by_target_of(draws: Draws, examples: Examples, ways: Mapping[str, Way]) -> pd.DataFrame:
    """`by_target` for the first right and the first wrong answers, by several explainers.

    Args:
        draws: examples are chosen by what all of them answer together; the column answer is that of those that explain.
        examples: pictures with classes.
        ways: name of each explainer and how to use it.

    Returns:
        The columns of `by_target`, then explainer; example counts within `examples`.
    """
    found, parts = hardness(draws, examples), []
    for name, way in ways.items():
        rows = found.groupby("error").head(way.num_answers).index.tolist()
        table = by_target(draws[: way.num_draws], way.explainer, examples.x[rows], examples.y[rows], **way.options)
        parts.append(table.assign(explainer=name, example=np.array(rows)[table["example"]]))
    return pd.concat(parts, ignore_index=True)


def claim_targets(study: Notebook, asked: pd.DataFrame) -> None:
    """Claim, for each data set and explainer, that the true label, and the runner-up, give nearly the same map.

    Nearly means nearer to the map of the predicted class than halfway to the floor, another picture's map. The true
    label is judged by the wrong answers, where it is another class; the runner-up by all.

    Args:
        study: the notebook that makes the claims.
        asked: columns dataset, explainer, answer, asked, example and spearman, one row each.
    """
    for (dataset, explainer), part in asked.groupby(["dataset", "explainer"], sort=False):
        wide = part.pivot(index=["answer", "example"], columns="asked", values="spearman")
        above = wide.sub((1 + wide[ASKED[-1]]) / 2, axis=0).dropna()
        facts: dict[str, Any] = {"dataset": dataset, "unit": "Spearman above halfway"}
        wrong = above[above.index.get_level_values("answer") == "wrong"]
        text = f"{explainer}: where wrong, the true label gives nearly the map of the predicted class"
        judge(study, text, wrong[ASKED[1]], claim="C4", source=PAPER, **facts)
        text = f"{explainer} is class-blind: the runner-up gives nearly the map of the predicted class"
        judge(study, text, above[ASKED[3]], **facts)
