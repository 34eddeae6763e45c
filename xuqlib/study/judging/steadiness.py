"""How steady explanations are: tables over many examples, for the notebooks that measure it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from joblib import delayed
from torch import Tensor, nn

from xuqlib.checks import check_choice
from xuqlib.distribution import ExplanationDistribution
from xuqlib.explain import explain
from xuqlib.explainers import Explainer
from xuqlib.explainers.gradients import completeness_gap, integrated_gradients
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.mc_dropout import MCDropout
from xuqlib.study.checked import Batch, Count, Counts, Seed, Stack, Table, Target, check_columns, checked, shown
from xuqlib.study.intervals import over_examples
from xuqlib.study.resuming import side_by_side
from xuqlib.superpixels import superpixels

CVS = ("cv_ratio", "cv_pooled", "cv_signed", "cv_paper", "cv_paper_unscaled")


@checked
def pool(values: Stack, segments: Tensor, how: str = "sum") -> Tensor:
    """Pool the attributions of pixels to regions, so that explainers of unlike granularity can be compared.

    Args:
        values: (draw, example, channel, height, width).
        segments: region of each pixel, (example, height, width), numbered from 0.
        how: "sum" for attributions of pixels; "mean" for LIME, which repeats a region's number at each of its pixels.

    Returns:
        (draw, example, region), summed over channels; 0 where a picture has fewer regions than another.
    """
    check_choice(how, ("sum", "mean"), "how")
    if (
        values.dim() != 5
        or segments.shape != values[0, :, 0].shape
        or segments.is_floating_point()
        or segments.min() < 0
    ):
        raise ValueError(f"values are {shown(values)}, segments {shown(segments)}; pass whole numbers (N, H, W) from 0")
    flat = values.sum(2).flatten(2)  # (S, N, H * W)
    where = segments.flatten(1).expand(flat.shape)
    empty = flat.new_zeros(*flat.shape[:2], int(segments.max()) + 1)
    return empty.scatter_reduce(2, where, flat, how, include_self=False)


@checked
def steadiness(
    draws: Draws | Sequence[nn.Module],
    explainer: Explainer,
    x: Batch,
    *,
    how: str = "sum",
    block: Count = 32,
    num_jobs: Count = 1,
    **options: Any,
) -> pd.DataFrame:
    """Every CV of every example, one row each, in blocks of examples, so that memory does not grow with their number.

    Args:
        draws, explainer, x, **options: as for `explain`; x is pictures (N, C, H, W).
        how: of `pool`, over the superpixels that `lime` uses.
        block: examples explained at a time.
        num_jobs: processes that share the blocks, one thread each; on a CPU several are faster than several threads.

    Returns:
        The columns of `ExplanationDistribution.summary`, and cv_pooled, the ratio CV over superpixels.
    """
    starts = range(0, len(x), block)
    one = delayed(_steadiness_of_block)
    jobs = (one(draws, explainer, x[start : start + block], start, how, options) for start in starts)
    return pd.concat(side_by_side(jobs, num_jobs), ignore_index=True)


def _steadiness_of_block(
    draws: Draws | Sequence[nn.Module], explainer: Explainer, x: Tensor, start: int, how: str, options: dict[str, Any]
) -> pd.DataFrame:
    e = explain(draws, explainer, x, progress=False, **options)
    regions = ExplanationDistribution(pool(e.values, superpixels(x), how)) if e.values is not None else None
    frame = e.summary().assign(cv_pooled=np.nan if regions is None else regions.cv("ratio").numpy())
    return frame.assign(example=frame["example"] + start)


@checked
def log_quotients(frame: Table, explainer: str, rival: str) -> pd.DataFrame:
    """Logarithm of CV / CV of a rival, example by example: below 0 the explainer is the steadier one.

    Each example is its own control: only those that both explained, under the same posterior, count.

    Args:
        frame: rows of `steadiness` with the columns posterior and explainer added.
        explainer, rival: two values of the column explainer.

    Returns:
        Columns posterior, example, definition (of `CVS`), log_quotient; no row where a CV is 0 or undefined.
    """
    check_columns(frame, "posterior", "explainer", "example", *CVS)
    for name, what in ((explainer, "explainer"), (rival, "rival")):
        check_choice(name, frame["explainer"].unique(), what)
    sides = [
        frame[frame["explainer"] == name].set_index(["posterior", "example"])[list(CVS)] for name in (explainer, rival)
    ]
    # The rows of the first side keep their order.
    quotient = sides[0].where(sides[0] > 0) / sides[1].where(sides[1] > 0).reindex(sides[0].index)
    long = quotient.apply(np.log).reset_index()
    return long.melt(["posterior", "example"], var_name="definition", value_name="log_quotient").dropna()


@checked
def quotients(frame: Table, explainer: str, rival: str) -> pd.DataFrame:
    """How many times steadier one explainer is than another: geometric mean over examples of CV / CV of the rival.

    Args:
        frame, explainer, rival: as for `log_quotients`.

    Returns:
        Columns posterior, definition (of `CVS`), quotient, and low, high: two standard errors of the mean logarithm.
    """
    logs = log_quotients(frame, explainer, rival).rename(columns={"log_quotient": "quotient"})
    means = over_examples(logs, ["posterior", "definition"], "quotient")
    ends = ["quotient", "low", "high"]
    return means.assign(**{end: np.exp(means[end]) for end in ends})


@checked
def std_errors(values: Stack, reference: Stack, counts: Counts) -> pd.DataFrame:
    """How far the std over few draws is from that over many, relative to it: root mean square over pixels.

    Args:
        values: attributions (draw, example, ...), cut into as many groups of T draws as there are.
        reference: attributions of other draws, (draw, example, ...).
        counts: the numbers of draws T.

    Returns:
        Columns draws (T), example, error. For Gaussian attributions error is about 1 / sqrt(2 (T - 1)).
    """
    values, truth = values.double().flatten(2), reference.double().flatten(2).std(0)
    frames = []
    for count in counts:
        groups = values[: len(values) // count * count].unflatten(0, (-1, count))
        off = ((groups.std(1) - truth) ** 2).mean(0).sum(1) / (truth**2).sum(1)
        frames.append(pd.DataFrame({"draws": count, "example": range(len(off)), "error": off.sqrt().numpy()}))
    return pd.concat(frames, ignore_index=True)


@checked
def mask_walk(
    posterior: MCDropout, x: Batch, target: Target, step_counts: Counts, *, num_draws: Count, seed: Seed = 0
) -> pd.DataFrame:
    """What becomes of Integrated Gradients' spread when dropout masks are drawn anew at every step of its path.

    Args:
        posterior: its draws are taken with fixed and with resampled masks.
        x, target: as for `explain`.
        step_counts: numbers of steps, ascending.

    Returns:
        Columns masks ("fixed", "resampled"), steps, example; std, summed over the input; gap, the completeness gap in
        logits, root mean square over draws; relative, std over that with fixed masks at the most steps.
    """
    frames = []
    for masks in ("fixed", "resampled"):
        for steps in step_counts:
            draws = posterior.sample(num_draws, seed=seed, masks=masks)
            e = explain(draws, integrated_gradients, x, target, num_steps=steps, progress=False)
            pairs = zip(draws.to(x.device), e.values if e.values is not None else [], strict=True)
            gap = Tensor([completeness_gap(draw, x, each, target).square().tolist() for draw, each in pairs])
            columns = {"std": e.std().flatten(1).sum(1).numpy(), "gap": gap.mean(0).sqrt().numpy()}
            frames.append(pd.DataFrame({"masks": masks, "steps": steps, "example": range(len(x)), **columns}))
    walk = pd.concat(frames, ignore_index=True)
    fixed = walk[walk["masks"] == "fixed"].groupby("example")["std"].last()
    return walk.assign(relative=walk["std"] / walk["example"].map(fixed))
