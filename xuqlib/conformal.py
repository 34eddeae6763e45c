"""ConformalExplainer: intervals that hold where another training of the same recipe would put the explanation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xuqlib.checks import check_choice, check_count, check_examples, check_flag, check_number, check_seed, check_tensor
from xuqlib.distribution import ExplanationDistribution
from xuqlib.explain import explain, mean_probs, most_probable
from xuqlib.explainers import EXPLAINERS, Explainer
from xuqlib.posteriors.base import Posterior
from xuqlib.posteriors.draws import Draws, fixed_draws

SCALES = ("map", "spread", "learned")
BANDS = ("feature", "largest", "class", "simultaneous")
LARGEST = 0.2  # share of an example's features that count as its largest
_FLOOR = 0.05  # of the mean |attribution|, which is added to each scale
_MOST_ROWS = 200_000  # from which a scale is learned


@dataclass(frozen=True)
class ExplanationInterval:
    """Where the explanation of another training would lie, feature by feature.

    All in units of the example's mean |attribution|, since networks that agree on a map may differ in its size: times
    `unit`, it is in that of this network. The channels of an image are summed.

    Attributes:
        low, centre, high: (N, H, W) for images, else shaped like x.
        unit: mean |attribution| of each example, (N,).
        level, band: what was asked for.
    """

    low: Tensor
    centre: Tensor
    high: Tensor
    unit: Tensor
    level: float
    band: str

    def certain_sign(self) -> Tensor:
        """1 or -1 where the whole interval is above or below 0, else 0; shaped like `low`."""
        return (self.low > 0).long() - (self.high < 0).long()

    def holds(self, attribution: Tensor) -> Tensor:
        """Where the attribution of another network, shaped like x, lies inside; bool, shaped like `low`."""
        check_tensor(attribution, "attribution", axes=2)
        other = _Centre.of(attribution.cpu()[None]).map
        if other.shape != self.low.shape:
            raise ValueError(f"attribution gives maps {tuple(other.shape)}; the intervals are {tuple(self.low.shape)}")
        return (self.low <= other) & (other <= self.high)


class _Centre(NamedTuple):
    """A network's map and its spread over draws, in units of the mean |attribution|, and this unit."""

    map: Tensor
    spread: Tensor
    unit: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Centre:
        """Of attributions (draw, N, ...)."""
        folded = values.double().sum(2) if values.ndim > 4 else values.double()
        mean = folded.mean(0)
        unit = mean.abs().flatten(1).mean(1)
        size = torch.where(unit > 0, unit, 1).view(-1, *[1] * (mean.ndim - 1))
        return cls(mean / size, folded.std(0, correction=0) / size, unit)


class ConformalExplainer:
    """Intervals for the explanation that another training of the same recipe would give, from a few such trainings.

    The attribution of one network is the centre. How far those of other trainings lie from it, in units of a scale
    that is known for the centre alone, is measured on calibration examples. A quantile of that, times the scale, is
    half the width of the interval.

    What is promised: let networks be independent trainings of one recipe, examples independent draws of one
    distribution, and none of them part of the calibration. Then the interval holds another network's attribution with
    a chance of `level`, on average over features, examples and networks, in the limit of many networks and examples.
    With few networks, `conservative=True` takes the quantile at level (k + 1) / k for k networks beside the centre, of
    which it needs level / (1 - level), 9 for 90 %. That is proven for one centre that stays and many examples; here all
    networks take turns as the centre, so it is a margin, not a proof. What is not promised: anything about a single
    example or feature, another recipe, or shifted data, unless `weights` tell how it has shifted.

    Args:
        explainer: as for `explain`.
        level: share of what the intervals are to hold.
        posterior: makes a posterior of a network, such as `MCDropConnect`. Then the mean over its draws is the centre.
        scale: of the distances: "learned", by default, from attribution, spread over the posterior's draws, example and
            their surroundings, by boosted trees on half of the calibration examples, which the quantile does not see;
            "spread" alone; or "map", |attribution| alone.
        num_draws, seed: of the posterior; the seed also splits the examples.
        **options: passed on to the explainer.

    Source: Vovk, Gammerman & Shafer 2005 (split conformal prediction); Lee, Barber & Willett 2023, arXiv 2306.06342
    (groups); Tibshirani et al. 2019, arXiv 1904.06019 (weights). To use them on explanations is this project's own.
    """

    def __init__(
        self,
        explainer: str | Explainer,
        *,
        level: float = 0.9,
        posterior: Callable[[nn.Module], Posterior] | None = None,
        scale: str = "learned",
        num_draws: int = 20,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if isinstance(explainer, str):
            check_choice(explainer, tuple(EXPLAINERS), "explainer")
            explainer = EXPLAINERS[explainer]
        if not callable(explainer) or not (posterior is None or callable(posterior)):
            raise TypeError(f"explainer {explainer!r}, posterior {posterior!r}; pass functions, such as MCDropConnect")
        self.explainer, self.posterior, self.scale, self.options = explainer, posterior, scale, options
        self.level = check_number(level, 0, "level", above=True)
        if self.level >= 1:
            raise ValueError(f"level is {level}; pass a number between 0 and 1, such as 0.9")
        check_choice(scale, SCALES, "scale")
        if scale == "spread" and posterior is None:
            raise ValueError('scale "spread" is that of the draws of a posterior; pass posterior=, or another scale')
        self.num_draws, self.seed = check_count(num_draws, 2, "num_draws"), check_seed(seed)
        self._quantiles: dict[str, dict[int, float]] = {}
        self._trees: Any = None

    def fit(
        self,
        networks: Sequence[nn.Module] | Draws,
        x: Tensor,
        target: Tensor | int | None = None,
        *,
        weights: Tensor | None = None,
        conservative: bool = False,
    ) -> ConformalExplainer:
        """Measure how far the explanations of trainings lie from each other.

        Args:
            networks: independent trainings of one recipe, three or more; each is the centre for all others.
            x: calibration examples that no network was trained on, ten or more.
            target: class to explain, (N,) or one for all; by default the most probable one over the networks.
            weights: how much likelier each example is where the intervals will be used than here, (N,).
            conservative: whether few networks are made up for by wider intervals; see the class.

        Returns:
            Itself. `held_out` is then the coverage of each network's map in intervals made without it, (network,).

        Raises:
            ValueError: too few networks or examples; one network twice; weights that are negative, or all 0.
        """
        members = list(networks if isinstance(networks, Draws) else Draws(networks))
        check_examples(x)
        check_flag(conservative, "conservative")
        needed = math.ceil(self.level / (1 - self.level) - 1e-9)
        if (others := len(members) - 1) < (needed if conservative else 2):
            least = f"{needed + 1} for a conservative {self.level:.0%}" if conservative else "three or more"
            raise ValueError(f"there are {len(members)} networks; pass {least} trainings of one recipe")
        if len(x) < 10:
            raise ValueError(f"there are {len(x)} examples; pass ten or more that no network was trained on")
        check_tensor(weights := torch.ones(len(x)) if weights is None else weights, "weights")
        share = weights.double()
        if share.shape != (len(x),) or (share < 0).any() or not 0 < share.sum() < math.inf:
            raise ValueError(f"weights are {tuple(share.shape)}; pass one per example, none negative and not all 0")
        means = mean_probs(*fixed_draws(members, x))
        self._outputs, self._shape = means.shape[1], x.shape[1:]
        target = most_probable(means) if target is None else target
        plain = [self._explained([network], x, target) for network in members]
        if any(torch.equal(one.map, other.map) for one, other in combinations(plain, 2)):
            raise ValueError("two of the networks explain all alike; pass trainings that differ, each once")
        centres = plain if self.posterior is None else [self._centre(network, x, target) for network in members]
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self.seed))
        judged = order[len(x) // 2 :].sort().values if self.scale == "learned" else torch.arange(len(x))
        pairs = list(permutations(range(len(members)), 2))
        if self.scale == "learned":
            learnt = order[: len(x) // 2]
            far = [(plain[other].map - centres[own].map)[learnt].abs() for own, other in pairs]
            self._learn([self._features(x[learnt], _at(centres[own], learnt)) for own, _ in pairs], far)
        half = [self._half(x[judged], _at(centre, judged)) for centre in centres]
        scores = {(own, other): (plain[other].map - centres[own].map)[judged].abs() / half[own] for own, other in pairs}
        level = self.level * (others + 1) / others if conservative else self.level
        classes = None if target is None else torch.as_tensor(target, device="cpu").expand(len(x))[judged]
        for band in BANDS:
            if band == "class" and classes is None:
                continue
            groups = {own: _groups(band, _at(centre, judged).map, classes) for own, centre in enumerate(centres)}
            self._quantiles[band] = _quantiles(scores, groups, share[judged], level)
        everywhere = {own: torch.zeros_like(part, dtype=torch.long) for own, part in enumerate(half)}
        coverage = []
        for out in range(len(members)):
            known = {pair: each for pair, each in scores.items() if out not in pair}
            reach = _quantiles(known, everywhere, share[judged], level)[0]
            about = [(each <= reach).double().mean() for (_, other), each in scores.items() if other == out]
            coverage.append(torch.stack(about).mean())
        self.held_out, self.num_networks = torch.stack(coverage), len(members)
        return self

    def interval(
        self,
        explained: nn.Module | ExplanationDistribution,
        x: Tensor,
        target: Tensor | int | None = None,
        *,
        band: str = "feature",
    ) -> ExplanationInterval:
        """Intervals around a network's explanation.

        Args:
            explained: a network; or, if there is a posterior, its explanation distribution, with its draws.
            x: the examples.
            target: class to explain; by default the one that the network predicts. A distribution has its own.
            band: what is held at the level: "feature", features of all sizes together; "largest", the largest 20 % of
                an example, and the others, apart; "class", features of the examples of each class; "simultaneous", all
                features of an example at once.

        Raises:
            RuntimeError: before `fit`.
            ValueError: an unknown band; a class that the calibration did not have; a distribution of another explainer;
                a network with another number of outputs; examples of another shape.
        """
        if not self._quantiles:
            raise RuntimeError("nothing is calibrated yet; call fit(networks, x) first")
        check_choice(band, tuple(self._quantiles), "band")
        check_examples(x)
        if isinstance(explained, ExplanationDistribution):
            outputs, target, centre = self._outputs, explained.target, self._of_distribution(explained, x)
        else:
            means = mean_probs(*fixed_draws([explained], x))
            outputs, target = means.shape[1], most_probable(means) if target is None else target
            centre = self._centre(explained, x, target)
        if (outputs, x.shape[1:]) != (self._outputs, self._shape):
            known = f"{self._outputs} outputs for examples {tuple(self._shape)}"
            raise ValueError(f"there are {outputs} outputs for examples {tuple(x.shape[1:])}; calibrated were {known}")
        classes = None if target is None else torch.as_tensor(target, device="cpu").expand(len(x))
        groups, reaches = _groups(band, centre.map, classes), self._quantiles[band]
        if strange := sorted(set(groups.unique().tolist()) - set(reaches)):
            raise ValueError(f"the calibration had no example of class {strange[0]}; pass more, or another band")
        reach = torch.zeros_like(centre.map)
        for group, quantile in reaches.items():
            reach[(groups == group).expand_as(reach)] = quantile
        half = reach * self._half(x, centre)
        return ExplanationInterval(centre.map - half, centre.map, centre.map + half, centre.unit, self.level, band)

    def _explained(self, networks: Any, x: Tensor, target: Any) -> _Centre:
        values = explain(networks, self.explainer, x, target, progress=False, **self.options).values
        assert values is not None  # all draws are kept
        return _Centre.of(values)

    def _centre(self, network: nn.Module, x: Tensor, target: Any) -> _Centre:
        if self.posterior is None:
            return self._explained([network], x, target)
        return self._explained(self.posterior(network).sample(self.num_draws, seed=self.seed), x, target)

    def _of_distribution(self, e: ExplanationDistribution, x: Tensor) -> _Centre:
        name = getattr(self.explainer, "__name__", type(self.explainer).__name__)
        if e.explainer != name:
            raise ValueError(f"the distribution is of {e.explainer}; the calibration was of {name}")
        if self.posterior is None:
            raise ValueError("the calibration was of single networks; pass the network, or fit with posterior=")
        if e.values is None:
            raise ValueError('the distribution has only moments; explain with keep="all"')
        if e.num_examples != len(x):
            raise ValueError(f"the distribution has {e.num_examples} examples, x {len(x)}; pass the same")
        return _Centre.of(e.values)

    def _half(self, x: Tensor, centre: _Centre) -> Tensor:
        """The scale of each feature, shaped like the map."""
        if self.scale == "learned":
            log = torch.from_numpy(self._trees.predict(self._features(x, centre).numpy()))
            return log.view(centre.map.shape).exp()
        return _FLOOR + (centre.spread if self.scale == "spread" else centre.map.abs())

    def _features(self, x: Tensor, centre: _Centre) -> Tensor:
        """What a scale is learned from: a row for each feature of each example."""
        columns = [centre.map.abs(), centre.spread]
        if centre.map.ndim == 3 and x.ndim == 4:
            picture = x.double().sum(1)
            columns += [_smooth(each) for each in columns] + [(picture - _smooth(picture)).abs(), picture]
        else:
            numbers = torch.arange(centre.map[0].numel(), dtype=torch.float64).view_as(centre.map[0])
            columns += [x.double().expand_as(centre.map), numbers.expand_as(centre.map)]
        return torch.stack([each.flatten() for each in columns], 1)

    def _learn(self, features: Sequence[Tensor], far: Sequence[Tensor]) -> None:
        from sklearn.ensemble import HistGradientBoostingRegressor

        table, log = torch.cat(list(features)), (torch.cat([each.flatten() for each in far]) + _FLOOR).log()
        rows = torch.randperm(len(log), generator=torch.Generator().manual_seed(self.seed))[:_MOST_ROWS]
        trees = HistGradientBoostingRegressor(random_state=self.seed, max_iter=100)
        self._trees = trees.fit(table[rows].numpy(), log[rows].numpy())


def _at(centre: _Centre, rows: Tensor) -> _Centre:
    return _Centre(*(each[rows] for each in centre))


def _smooth(maps: Tensor) -> Tensor:
    """Mean over the 5 x 5 surroundings, (N, H, W)."""
    return F.avg_pool2d(maps[:, None], 5, 1, 2, count_include_pad=False)[:, 0]


def _groups(band: str, maps: Tensor, classes: Tensor | None) -> Tensor:
    """Which quantile each feature has: (N, ...), or (N, 1, ...) where it is that of the example."""
    if band == "largest":
        flat = maps.abs().flatten(1)
        least = flat.topk(max(1, round(LARGEST * flat.shape[1])), dim=1).values[:, -1:]
        return (flat >= least).long().view_as(maps)
    each = torch.zeros(len(maps), dtype=torch.long) if band != "class" or classes is None else classes
    groups = each.view(-1, *[1] * (maps.ndim - 1))
    return -1 - groups if band == "simultaneous" else groups


def _quantiles(
    scores: dict[tuple[int, int], Tensor], groups: dict[int, Tensor], share: Tensor, level: float
) -> dict[int, float]:
    """The level's weighted quantile of the scores of each group; below 0 is one of whole examples, by their largest."""
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for (own, _), each in scores.items():
        weight = share.view(-1, *[1] * (each.ndim - 1)).expand_as(each)
        which = groups[own].expand_as(each)
        for group in groups[own].unique().tolist():
            inside = which == group
            part = (each.flatten(1).amax(1), share) if group < 0 else (each[inside], weight[inside])
            found.setdefault(group, []).append(part)
    quantiles = {}
    for group, parts in found.items():
        values, order = torch.cat([value for value, _ in parts]).sort()
        mass = torch.cat([weight for _, weight in parts])[order].cumsum(0)
        place = int(torch.searchsorted(mass, min(level, 1.0) * mass[-1] * (1 - 1e-12)))
        quantiles[group] = float(values[min(place, len(values) - 1)])
    return quantiles
