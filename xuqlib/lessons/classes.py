"""Class by class: is a class explained unsteadily because it is hard?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from xuqlib.explainers.gradients import Explainer
from xuqlib.explainers.lime import lime
from xuqlib.posteriors.draws import Draws
from xuqlib.study.data.loading import Examples
from xuqlib.study.intervals import BOOTSTRAP, class_correlation, class_gap, correlation
from xuqlib.study.judging.predictions import answers
from xuqlib.study.judging.steadiness import steadiness
from xuqlib.study.record import Notebook
from xuqlib.study.resuming import resumable
from xuqlib.uncertainty import logits_of

CVS = ("cv_ratio", "cv_pooled", "cv_paper")
PAPER = "arXiv 2403.17224, sec. 4"
VIEWS = {"log_cv": "CV", "at_equal_entropy": "CV at equal entropy"}
RUN = ("dataset", "posterior", "training", "explainer")


class Way(NamedTuple):
    """One explainer and how much of it: options, pictures of each class, draws, and right and wrong answers each."""

    explainer: Explainer
    options: Mapping[str, Any]
    per_class: int
    num_draws: int
    num_answers: int = 0


def hardness(draws: Draws, examples: Examples) -> pd.DataFrame:
    """How hard each example is for the mean prediction of the draws.

    Returns:
        One row per example: example, class (its true one), error (0 or 1), entropy (of the mean prediction) and
        mutual_information in nats, label_entropy (of the soft label, in nats; NaN without one).

    Raises:
        ValueError: the examples have no classes.
    """
    if examples.class_names is None:
        raise ValueError(f"{examples.name} is a regression; pass examples that have classes")
    found = answers(logits_of(draws, examples.x), examples.y)
    columns = {
        "example": found["example"],
        "class": [examples.class_names[label] for label in examples.y],
        "error": found["answer"].eq("wrong").astype(float),
        "entropy": found["total"],
        "mutual_information": found["epistemic"],
        "label_entropy": math.nan,
    }
    if examples.probs is not None:
        columns["label_entropy"] = torch.special.entr(examples.probs.double()).sum(1).numpy()
    return pd.DataFrame(columns)


@resumable
def steadiness_of_classes(draws: Draws, examples: Examples, ways: Mapping[str, Way]) -> pd.DataFrame:
    """CVs of the first examples of each class, beside their hardness.

    Args:
        draws: the hardness is that of all of them.
        examples: pictures with classes.
        ways: name of each explainer and how to use it.

    Returns:
        The columns of `hardness`, then explainer and the CVs named in `CVS`, as `steadiness` gives them.
    """
    found, parts = hardness(draws, examples), []
    for name, way in ways.items():
        rows = found.groupby("class").head(way.per_class)
        x, how = examples.x[rows.index.tolist()], "mean" if way.explainer is lime else "sum"
        table = steadiness(draws[: way.num_draws], way.explainer, x, how=how, block=16, **way.options)
        parts.append(rows.assign(explainer=name).join(table.set_index(rows.index)[list(CVS)]))
    return pd.concat(parts, ignore_index=True)


def beside_entropy(cvs: pd.DataFrame) -> pd.DataFrame:
    """Add log_cv, of the ratio CV, and at_equal_entropy: what is left of it when the entropy's rank is taken out.

    Args:
        cvs: rows of `steadiness_of_classes`, with the columns of `RUN` that they lack.
    """
    found = cvs.assign(log_cv=np.log(cvs["cv_ratio"].where(cvs["cv_ratio"] > 0)))
    return found.assign(at_equal_entropy=taken_out(found, "log_cv", "entropy", by=RUN))


def per_picture(cvs: pd.DataFrame, *, posteriors: bool = False) -> pd.DataFrame:
    """Average each example's numbers over trainings, and then over posteriors unless these are to be kept.

    Args:
        cvs: columns of `RUN`, class, example, and numbers.
        posteriors: whether there is a row per posterior.
    """
    keys = ["dataset", "posterior", "explainer", "class", "example"]
    numbers = list(cvs.select_dtypes("number").columns.difference(["example", "training"], sort=False))
    means = cvs.groupby(keys, sort=False)[numbers].mean()
    if not posteriors:
        means = means.groupby([key for key in keys if key != "posterior"], sort=False).mean()
    return means.reset_index()


def taken_out(frame: pd.DataFrame, value: str, given: str, *, by: Sequence[str]) -> pd.Series:
    """What is left of a column when its straight line in the rank of another one is taken out, group by group.

    The rank does not ask for the other column's scale. What is left has mean 0 in each group; where the other column
    is constant, only the mean is taken out.

    Args:
        frame: one row per example and group; rows with a NaN in either column stay NaN.
        value, given: names of the two columns.
        by: columns that make the groups.
    """
    both = frame.dropna(subset=[value, given])
    groups = [both[column] for column in by]
    rank = both.groupby(groups)[given].rank()
    x, y = (each - each.groupby(groups).transform("mean") for each in (rank, both[value]))
    square = (x**2).groupby(groups).transform("sum")
    slope = (x * y).groupby(groups).transform("sum") / square.where(square > 0)
    return (y - slope.fillna(0) * x).reindex(frame.index)


def class_gaps(pictures: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """How many times larger each class's CV is than that of the other classes, as it is and at equal entropy.

    Args:
        pictures: rows of `per_picture`.
        seed: of the bootstrap.

    Returns:
        Columns view (of `VIEWS`), dataset, explainer, class (named after its data set, too), value, low, high; within
        a data set and explainer, the class of the smallest error comes first.
    """
    rows = []
    for view in VIEWS:
        for (dataset, explainer), part in pictures.groupby(["dataset", "explainer"], sort=False):
            for name in part.groupby("class")["error"].mean().sort_values(kind="stable").index:
                gap = class_gap(part, view, name, seed=seed).exp()
                rows.append((view, dataset, explainer, f"{dataset}: {name}", *gap))
    return pd.DataFrame(rows, columns=["view", "dataset", "explainer", "class", "value", "low", "high"])


def least_steady(frame: pd.DataFrame, value: str) -> tuple[str, pd.DataFrame]:
    """Pick the class with the largest mean on every other example of each class, and leave the others to judge it.

    The largest of several noisy means is too large, so the examples that picked a class may not judge it.

    Returns:
        The class, and the rows that did not pick it.
    """
    second = frame.groupby("class").cumcount() % 2 == 1
    return str(frame[~second].groupby("class", sort=False)[value].mean().idxmax()), frame[second]


def claim_classes(
    study: Notebook,
    pictures: pd.DataFrame,
    *,
    named: Mapping[str, str] | None = None,
    seeds: Mapping[str, int] | None = None,
    seed: int = 0,
) -> None:
    """Claim, for each data set and explainer, that one class moves more, and that CV follows error and entropy.

    Args:
        study: the notebook that makes the claims.
        pictures: rows of `per_picture`.
        named: the class of a data set that was named beforehand, which all examples judge; else `least_steady` picks.
        seeds: trainings behind the numbers of a data set; 1 where it says nothing.
        seed: of the bootstrap.
    """
    for (dataset, explainer), part in pictures.groupby(["dataset", "explainer"], sort=False):
        name = str(dataset)
        kind, judged = (named[name], part) if named and name in named else least_steady(part, "log_cv")
        how = "named beforehand" if judged is part else "picked on the other half"
        facts: dict[str, Any] = {"dataset": name, "seeds": (seeds or {}).get(name, 1)}
        for column, view in VIEWS.items():
            gap = class_gap(judged, column, kind, seed=seed).exp()
            text = f"{explainer}: {view} of {kind} is above that of the other classes"
            c3: dict[str, Any] = {"claim": "C3", "source": PAPER, "unit": "times", "n": len(judged)}
            note = f"{how}; {BOOTSTRAP}"
            study.claim(text, gap.above(1), value=gap.value, interval=(gap.low, gap.high), note=note, **c3, **facts)
        found = {
            "CV of a class rises with its error": class_correlation(part, "log_cv", "error", seed=seed),
            "CV of a picture rises with its entropy": correlation(part, "log_cv", "entropy", seed=seed),
            "CV of a picture rises with its entropy within its class": correlation(
                part, "log_cv", "entropy", within=True, seed=seed
            ),
        }
        facts |= {"n": len(part), "unit": "Spearman", "note": BOOTSTRAP}
        for text, each in found.items():
            study.claim(
                f"{explainer}: {text}", each.above(0), value=each.value, interval=(each.low, each.high), **facts
            )
