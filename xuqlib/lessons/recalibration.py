"""Mending a posterior's spread of explanations: fitted to a few networks, tested on others, beside its rivals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor

from xuqlib.checks import check_choice
from xuqlib.posteriors.deep_ensemble import DeepEnsemble
from xuqlib.posteriors.draws import Draws
from xuqlib.posteriors.random_weights import MCDropConnect
from xuqlib.study.judging.coverage import LEVELS, Forecast, agreement, forecast, image_blind, intervals, unit_maps
from xuqlib.study.resuming import resumable
from xuqlib.study.training.loading import train_or_load

VERSIONS = ("as it is", "factor", "floors")
_SUBSET = 2**15  # numbers that a repair is fitted on, at most: spread evenly over networks, examples and pixels
_NO_WIDTH = 1e-4  # in units of the mean |map|: keeps the root differentiable where nothing moves


@dataclass(frozen=True)
class Repair:
    """A correction of the spread: std becomes sqrt((factor std)^2 + (of_mean |mean|)^2 + floor^2), known from then on.

    score is the interval score that it reached where it was fitted.
    """

    factor: float
    of_mean: float = 0.0
    floor: float = 0.0
    score: float = math.nan

    def __call__(self, expected: Forecast) -> Forecast:
        squares = (self.factor * expected.std) ** 2 + (self.of_mean * expected.mean) ** 2 + self.floor**2
        return Forecast(expected.mean, squares.sqrt())


def recalibrate(
    expected: Forecast, held_out: Tensor, *, by: str = "score", floors: bool = False, level: float = 0.9
) -> Repair:
    """Fit a correction of the spread to a few networks that are kept for fitting.

    Args:
        expected, held_out: as for `agreement`; test on other networks and other examples.
        by: "score" minimises the mean interval score at `level`; "moments" makes the mean variance equal to the mean
            squared deviation, which the largest deviations decide.
        floors: also fit a part of the std that grows with |mean|, and a constant one: no factor mends a pixel at which
            the posterior has no spread at all.

    Raises:
        ValueError: nothing moves and there are no floors; floors by moments.
    """
    check_choice(by, ("score", "moments"), "by")
    if by == "moments" and floors:
        raise ValueError("moments give one number, the factor; fit floors by='score'")
    off = (held_out - expected.mean).abs().flatten()
    squares = torch.stack([expected.std**2, expected.mean**2, torch.ones_like(expected.mean)][: 3 if floors else 1])
    terms = squares.repeat(1, len(held_out), 1).flatten(1)
    known = off.isfinite() & terms.isfinite().all(0)
    off, terms = off[known], terms[:, known]
    step = len(off) // _SUBSET | 1  # odd, so that it walks through all columns of a picture
    scale, means = float((off**2).mean()), terms.mean(1)
    if not means[0] and not floors:
        raise ValueError("the draws do not differ anywhere, so no factor can mend their spread; pass floors=True")
    if by == "moments":
        return Repair(math.sqrt(scale / float(means[0])))
    units = torch.where(means > 0, scale / means, torch.zeros_like(means)).numpy()
    found = _least_score(off[::step].numpy(), terms[:, ::step].numpy() * units[:, None], level)
    numbers = np.zeros(3)
    numbers[: len(units)] = np.sqrt(found.x * units)
    factor, of_mean, floor = numbers.tolist()
    return Repair(factor, of_mean, floor, float(found.fun))


def _least_score(off: np.ndarray, terms: np.ndarray, level: float) -> Any:
    """Minimise the mean score of ± z std, std^2 a non-negative combination of the terms, each of the size of off^2."""
    z = norm.ppf((1 + level) / 2)

    def score(weights: np.ndarray) -> tuple[float, np.ndarray]:
        std = np.sqrt(weights @ terms + _NO_WIDTH**2)
        excess = off - z * std
        slope = 2 * z * (1 - (excess > 0) / (1 - level)) / (2 * std)  # of the score, by std^2
        return float(np.mean(2 * z * std + 2 / (1 - level) * np.maximum(excess, 0))), terms @ slope / len(off)

    start = np.full(len(terms), 1 / len(terms))
    return minimize(score, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(terms))


def leave_one_out(values: Tensor) -> tuple[Forecast, Tensor]:
    """Each draw as forecast by the others: a forecast of draw times example maps, and these maps, (1, draws * N, P).

    Good for fitting a repair without further networks. As a test of coverage it is worth little: see
    `agreement.counting_coverage`.
    """
    others = [forecast(torch.cat([values[:i], values[i + 1 :]])) for i in range(len(values))]
    mean, std = torch.cat([each.mean for each in others]), torch.cat([each.std for each in others])
    return Forecast(mean, std, len(values) - 1), values.flatten(0, 1)[None]


def compare(
    candidates: Sequence[Tensor],
    others: Tensor,
    fit: Tensor | None,
    test: Tensor,
    *,
    levels: Sequence[float] = LEVELS,
    evidence: Tensor | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Test one posterior on unseen networks: as it is, with one fitted factor, and with factor and floors.

    Repairs are fitted on the even examples and tested on the odd ones, and the other way round, so no number rests on
    an example or a network that it was fitted on.

    Args:
        candidates: maps of one or several posteriors, each (draw, example, pixel); the one whose repair reaches the
            lowest score where it is fitted is taken.
        others: maps of other pictures, (any, pixel), all from the centre: for the image-blind interval.
        fit: maps of the networks to fit on, (network, example, pixel); None fits by leaving out draws one by one.
        test: maps of the networks to test on.
        evidence: if given, adds the columns of `declared`.

    Returns:
        The rows of `agreement` with the columns version (of `VERSIONS`) and blind, the score of the image-blind
        interval on the same pixels; and the repairs: version, fold, candidate, factor, of_mean, floor, score. A single
        map has no spread to mend, so only floors can help it.
    """
    frames, repairs, blind = [], [], image_blind(others, levels)
    for fold in (0, 1):
        here = torch.arange(test.shape[1]) % 2 == fold  # fitted on
        there = (~here).nonzero()[:, 0]
        for version in VERSIONS if len(candidates[0]) > 1 else VERSIONS[2:]:
            fitted = [_fitted(values[:, here], fit if fit is None else fit[:, here], version) for values in candidates]
            number = min(range(len(fitted)), key=lambda i: fitted[i].score)
            expected = forecast(candidates[number][:, there])
            expected = expected if version == "as it is" else fitted[number](expected)
            rows = agreement(expected, test[:, there], levels=levels)
            rows["blind"] = agreement(expected, test[:, there], levels=levels, band=blind)["score"]
            if evidence is not None:
                rows = rows.merge(declared(expected, evidence[there]), on="example")
            frames.append(rows.assign(example=there.numpy()[rows["example"]], version=version))
            repairs.append({"version": version, "fold": fold, "candidate": number, **vars(fitted[number])})
    return pd.concat(frames, ignore_index=True), pd.DataFrame(repairs)


def _fitted(values: Tensor, fit: Tensor | None, version: str) -> Repair:
    expected, held_out = leave_one_out(values) if fit is None else (forecast(values), fit)
    if version == "as it is":
        rows = agreement(expected, held_out, levels=(0.9,))
        return Repair(1.0, score=float(rows.loc[rows["pixels"] == "all", "score"].mean()))
    return recalibrate(expected, held_out, floors=version == "floors")


@resumable
def trial(
    families: Mapping[str, Sequence[Draws]],
    ensembles: Mapping[str, Draws],
    networks: Mapping[str, Draws],
    explainer: Callable[..., Tensor],
    x: Tensor,
    target: Tensor | None,
    *,
    others: tuple[Tensor, Tensor | None],
    levels: Sequence[float] = LEVELS,
    evidence: Tensor | None = None,
    **options: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put every posterior around one centre, and what rivals it, to the same test: `compare`, posterior by posterior.

    Args:
        families: name of each posterior, and its candidates.
        ensembles: name of each set of trained networks; repaired by leaving one out, so they need no others.
        networks: "own", the centre, whose map with floors enters as "one_map": no posterior at all; "fit"; "test".
        explainer, x, target, **options: as for `unit_maps`.
        others: other examples and their target, for the image-blind interval.
        levels, evidence: as for `compare`.

    Returns:
        The tables of `compare`, each with the column posterior.
    """
    maps = {name: unit_maps(draws, explainer, x, target, **options) for name, draws in networks.items()}
    blind = unit_maps(networks["own"], explainer, *others, **options)[0]
    roles: dict[str, tuple[Any, Tensor | None]] = {name: ([draws], None) for name, draws in ensembles.items()}
    roles |= {name: (candidates, maps["fit"]) for name, candidates in families.items()}
    rows: list[pd.DataFrame] = []
    repairs: list[pd.DataFrame] = []
    for name, (candidates, fit) in [*roles.items(), ("one_map", ([], maps["fit"]))]:
        values = [unit_maps(draws, explainer, x, target, **options) for draws in candidates] or [maps["own"]]
        found = compare(values, blind, fit, maps["test"], levels=levels, evidence=evidence)
        for table, into in zip(found, (rows, repairs), strict=True):
            into.append(table.assign(posterior=name))
    return pd.concat(rows, ignore_index=True), pd.concat(repairs, ignore_index=True)


def declared(expected: Forecast, evidence: Tensor, *, level: float = 0.9) -> pd.DataFrame:
    """Which pixels an explanation dares to call important, and whether they are: those whose interval excludes 0.

    Args:
        expected: of `forecast`, repaired or not.
        evidence: where the known evidence is, bool (example, pixel).

    Returns:
        One row per example: declared, the share of pixels; precision, the share of these on the evidence, NaN where
        there are none; recall, the share of the evidence that is declared.
    """
    low, high = (end[0] for end in intervals(expected, (level,)))
    found = (low > 0) | (high < 0)
    hits = (found & evidence).sum(1).double()
    columns = {"declared": found.double().mean(1), "precision": hits / found.sum(1), "recall": hits / evidence.sum(1)}
    numbers = {name: value.numpy() for name, value in columns.items()}
    return pd.DataFrame({"example": range(len(found)), **numbers})


def roles(dataset: str, members: Sequence[int], seed: int) -> tuple[dict[str, Draws], dict[str, Draws]]:
    """Deal plain networks out for the centre of one seed; no network has two roles, save in an ensemble.

    Member 0 is the centre. It shares its first weights and its order of data with the other posteriors of its seed, so
    none of them is fitted to it or tested on it. Fitted to are members 1 to 4 of the seed, or of seed 0 where there are
    too few; tested on are the first five of seed 0 or 1, whichever is not the seed of those.

    Args:
        dataset: a name of `load` that has a recipe.
        members: how many networks were trained from seed 0, 1, ...; at least five from seeds 0 and 1.
        seed: of the centre.

    Returns:
        Draws called "own", "fit" and "test"; and the ensembles of the seed, "networks_5" and "networks_10".
    """

    def some(number: int, start: int, stop: int) -> Draws:
        trained = train_or_load("deep_ensemble", dataset, seed=number, num_members=stop, progress=False)
        assert isinstance(trained, DeepEnsemble)
        return DeepEnsemble(trained.members[start:]).sample()

    fitted = seed if members[seed] >= 5 else 0
    networks = {"own": some(seed, 0, 1), "fit": some(fitted, 1, 5), "test": some(0 if fitted else 1, 0, 5)}
    return networks, {f"networks_{size}": some(seed, 0, size) for size in (5, 10) if size <= members[seed]}


def family(dataset: str, method: str, seed: int, *, num_draws: int, drop_rates: Sequence[float] = ()) -> list[Draws]:
    """Draws of the posterior around one centre, or of several that are candidates.

    Args:
        method: as for `train_or_load`; "mc_dropout_all", with dropout after every block; or "dropconnect_after", which
            needs no training: it drops weights of all layers of the plain network, one candidate per drop rate.
        seed: of the centre, and of the draws.
        num_draws: of each candidate.
        drop_rates: of "dropconnect_after".
    """
    if method == "dropconnect_after":
        plain = train_or_load("deep_ensemble", dataset, seed=seed, num_members=1, progress=False).network
        candidates = [MCDropConnect(plain, p=p, placement="all") for p in drop_rates]
        return [posterior.sample(num_draws, seed=seed) for posterior in candidates]
    kind, placement = ("mc_dropout", "all") if method == "mc_dropout_all" else (method, "last")
    return [train_or_load(kind, dataset, placement=placement, seed=seed, progress=False).sample(num_draws, seed=seed)]
