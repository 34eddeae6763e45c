"""Tables of how well, and how surely, a posterior answers: one row per posterior, per example or per confidence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from xuqlib.checks import check_target
from xuqlib.posteriors.draws import Draws
from xuqlib.study.checked import Amount, Batch, Count, Counts, Seed, Stack, Table, Target, check_columns, checked
from xuqlib.study.data.loading import Examples
from xuqlib.study.judging.scores import scores_of, standard_errors
from xuqlib.uncertainty import decompose, logits_of

SCORES = ("accuracy", "r2", "nll", "brier", "ece")


@checked
def score_row(logits: Stack, examples: Examples, *, noise_variance: Amount = 0.0, seed: Seed = 0) -> dict[str, float]:
    """Every score of `SCORES` and its standard error over examples, NAME_se; NaN where the task has no such score.

    Args:
        logits: (draw, example, class), as `uncertainty.logits_of` gives them.
        examples: what was predicted.
        noise_variance: for regression, that of the draws.
        seed: of the bootstrap.
    """
    found = scores_of(logits, examples.y, noise_variance=noise_variance)
    errors = standard_errors(logits, examples.y, noise_variance=noise_variance, seed=seed)
    row = {name: found.get(name, np.nan) for name in SCORES}
    return row | {f"{name}_se": errors.get(name, np.nan) for name in SCORES}


@checked
def answers(logits: Stack, target: Target) -> pd.DataFrame:
    """What the mean prediction of the draws answers to each example, and how surely.

    Args:
        logits: (draw, example, class), more than one class.
        target: class of each example, (N,).

    Returns:
        One row per example: example, answer ("right" or "wrong"), confidence (probability of the answer), nll (of the
        truth), total, aleatoric, epistemic, the last four in nats.
    """
    target = check_target(target, logits.shape[1], logits.shape[-1])
    probs, parts = logits.double().softmax(-1).mean(0), decompose(logits)  # (N, C)
    confidence, answer = probs.max(1)
    frame = parts.to_frame()
    frame.insert(1, "answer", np.where(answer == target, "right", "wrong"))
    frame.insert(2, "confidence", confidence.numpy())
    frame.insert(3, "nll", -probs.gather(1, target[:, None])[:, 0].log().numpy())
    return frame


@checked
def reliability(frame: Table, *, num_bins: Count = 10, fewest: Count = 10) -> pd.DataFrame:
    """Accuracy of the answers of like confidence, in bins of equal width.

    Args:
        frame: columns answer and confidence, as `answers` gives them.
        num_bins: bins between 0 and 1.
        fewest: bins with fewer answers are left out.

    Returns:
        One row per bin: confidence (mean), accuracy, num_answers, and low, high: two binomial standard errors.
    """
    check_columns(frame, "answer", "confidence")
    place = (frame["confidence"] * num_bins).clip(upper=num_bins - 0.5).astype(int)
    groups = frame.assign(right=frame["answer"].eq("right").astype(float)).groupby(place.rename("bin"))
    bins = groups.agg(confidence=("confidence", "mean"), accuracy=("right", "mean"), num_answers=("right", "size"))
    error = (bins["accuracy"] * (1 - bins["accuracy"]) / bins["num_answers"]) ** 0.5
    bins = bins.assign(low=bins["accuracy"] - 2 * error, high=bins["accuracy"] + 2 * error)
    return bins[bins["num_answers"] >= fewest].reset_index(drop=True)


@checked
def score_points(table: Table) -> pd.DataFrame:
    """Scores one per row, for a figure: dataset, posterior, score, value, se, and panel, which names set and score.

    Args:
        table: rows of `score_row` with the columns dataset and posterior added.
    """
    keys = ["dataset", "posterior"]
    check_columns(table, *keys, *SCORES)
    parts = [
        table[[*keys, name, f"{name}_se"]].set_axis([*keys, "value", "se"], axis=1).assign(score=name)
        for name in SCORES
    ]
    points = pd.concat(parts).dropna(subset="value")
    shown = points["score"].map(lambda name: {"accuracy": name, "brier": "Brier"}.get(name, name.upper()))
    order = {name: place for place, name in enumerate(dict.fromkeys(table["dataset"]))}
    return points.assign(panel=points["dataset"] + ": " + shown).sort_values(
        "dataset", key=lambda names: names.map(order), kind="stable", ignore_index=True
    )


@checked
def settling(draws: Draws, x: Batch, counts: Counts) -> pd.DataFrame:
    """How far the mean prediction of a few draws is from that of many others.

    The first half of the draws is cut into as many groups of T as there are; the second half is the reference.

    Args:
        draws: of a classifier; at least twice the largest count.
        x: examples (N, ...).
        counts: the numbers of draws T.

    Returns:
        Columns draws (T), example, distance: total variation, half the sum over classes of |difference|, in [0, 1],
        averaged over groups. It includes the reference's own error.

    Raises:
        ValueError: a count is larger than half the draws.
    """
    half = len(draws) // 2
    if not counts or max(counts) > half:
        raise ValueError(f"counts are {list(counts)} but half the draws are {half}; sample more, or ask for fewer")
    probs = logits_of(draws, x).double().softmax(-1)  # (S, N, C)
    few, reference, frames = probs[:half], probs[half:].mean(0), []
    for count in counts:
        groups = few[: half // count * count].unflatten(0, (-1, count)).mean(1)
        distance = 0.5 * (groups - reference).abs().sum(-1).mean(0)
        frames.append(pd.DataFrame({"draws": count, "example": range(len(x)), "distance": distance.numpy()}))
    return pd.concat(frames, ignore_index=True)
