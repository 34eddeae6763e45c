"""Every published claim once more, from its published rows, by numpy and pandas alone.

Nothing here is imported from the project: the rules are written a second time, one resample after the other, from what
`claims.csv` says of them. `faults` names each claim whose value, interval, verdict or number of examples and trainings
does not follow from its rows. Resamples are those of numpy's `default_rng` with the seed that the rule names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

Ends = tuple[float, float, float]  # value, low, high
TOLERANCE = 2e-5  # of the largest number in play: tables have six digits, rows seven


def mean(rows: pd.DataFrame) -> Ends:
    values = rows["value"]
    middle, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    return middle, middle - 2 * error, middle + 2 * error


def mean_difference(rows: pd.DataFrame) -> Ends:
    these, those = (rows.loc[rows["group"] == name, "value"] for name in ("these", "those"))
    middle = these.mean() - those.mean()
    error = math.sqrt(these.var(ddof=1) / len(these) + those.var(ddof=1) / len(those))
    return middle, middle - 2 * error, middle + 2 * error


def student(freedom: int, level: float = 0.975) -> float:
    """Quantile of Student's t, by the integral of its density."""

    def below(end: float) -> float:
        points = np.linspace(0, end, 20001)
        density = (1 + points**2 / freedom) ** (-(freedom + 1) / 2)
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        return 0.5 + scale * float(np.sum((density[1:] + density[:-1]) / 2 * np.diff(points)))

    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < level else (low, middle)
    return low


def trainings(rows: pd.DataFrame) -> Ends:
    values = rows["value"]
    if len(values) < 2:
        return values.iloc[0], math.nan, math.nan
    reach = student(len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean(), values.mean() - reach, values.mean() + reach


def share(rows: pd.DataFrame) -> Ends:
    n, p, z = len(rows), rows["value"].mean(), 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def centres(rows: pd.DataFrame) -> Ends:
    each = [mean(part) for _, part in rows.groupby("seed")]
    values, lows, highs = zip(*each, strict=True)
    return float(np.mean(values)), min(lows), max(highs)


def percentiles(value: float, drawn: list[float]) -> Ends:
    defined = [each for each in drawn if math.isfinite(each)]
    return (value, *(float(end) for end in np.quantile(defined, [0.025, 0.975])))


def two_ways(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
    table = rows.pivot(index="seed", columns="example", values="value").dropna(axis=1, how="all").to_numpy(float)
    stream = np.random.default_rng(seed)
    seeds, examples = (stream.multinomial(n, [1 / n] * n, resamples) for n in table.shape)
    found = []
    for some, others in zip(seeds, examples, strict=True):
        weights = np.outer(some, others) * ~np.isnan(table)
        found.append(np.nansum(weights * table) / weights.sum() if weights.sum() else math.nan)
    return percentiles(float(np.nanmean(table)), found)


def ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    if len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return math.nan
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def drawn_rows(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    yield np.arange(n)
    yield from np.random.default_rng(seed).integers(n, size=(resamples, n))


def rank_correlation(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
    a, b = rows["a"].to_numpy(), rows["b"].to_numpy()
    value, *others = [spearman(a[some], b[some]) for some in drawn_rows(len(a), resamples, seed)]
    return percentiles(value, others)


def partial_correlation(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
    columns, found = [rows[name].to_numpy() for name in ("a", "b", "given")], []
    for some in drawn_rows(len(rows), resamples, seed):
        a, b, given = (column[some] for column in columns)
        ab, ag, bg = spearman(a, b), spearman(a, given), spearman(b, given)
        rest = math.sqrt(max(1 - ag * ag, 0)) * math.sqrt(max(1 - bg * bg, 0))
        found.append((ab - ag * bg) / rest if rest > 0 else math.nan)
    return percentiles(found[0], found[1:])


def class_samples(rows: pd.DataFrame, resamples: int, seed: int) -> Iterator[dict[str, pd.DataFrame]]:
    """The rows of each class, and then with each class's examples drawn anew, as many as there are."""
    stream = np.random.default_rng(seed)
    parts = {str(name): part for name, part in rows.groupby("group", sort=False, observed=True)}
    picks = {name: stream.integers(len(part), size=(resamples, len(part))) for name, part in parts.items()}
    yield parts
    for number in range(resamples):
        yield {name: part.iloc[picks[name][number]] for name, part in parts.items()}


def of_classes(statistic: Callable[[dict[str, pd.DataFrame]], float]) -> Callable[..., Ends]:
    def rule(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
        value, *others = [statistic(parts) for parts in class_samples(rows, resamples, seed)]
        return percentiles(value, others)

    return rule


def class_gap(parts: dict[str, pd.DataFrame]) -> float:
    means = {bool(part["this"].iloc[0]): [] for part in parts.values()}
    for part in parts.values():
        means[bool(part["this"].iloc[0])].append(part["value"].mean())
    return float(means[True][0] - np.mean(means[False]))


def of_class_means(parts: dict[str, pd.DataFrame]) -> float:
    means = np.array([part[["a", "b"]].mean() for part in parts.values()])
    return spearman(means[:, 0], means[:, 1])


def of_all(parts: dict[str, pd.DataFrame]) -> float:
    whole = np.concatenate([part[["a", "b"]].to_numpy() for part in parts.values()])
    return spearman(whole[:, 0], whole[:, 1])


def within_classes(parts: dict[str, pd.DataFrame]) -> float:
    each = [spearman(part["a"].to_numpy(), part["b"].to_numpy()) for part in parts.values() if len(part) > 2]
    defined = [rho for rho in each if not math.isnan(rho)]
    return float(np.mean(defined)) if defined else math.nan


RULES: dict[str, Callable[..., Ends]] = {
    "mean": mean,
    "mean of these less mean of those": mean_difference,
    "mean of trainings": trainings,
    "mean of trainings and examples": two_ways,
    "mean of centres, spanning their intervals": centres,
    "share": share,
    "rank correlation": rank_correlation,
    "rank correlation beyond what is given": partial_correlation,
    "mean of this class less those of the others": of_classes(class_gap),
    "rank correlation of class means": of_classes(of_class_means),
    "rank correlation, by class": of_classes(of_all),
    "mean of rank correlations within classes": of_classes(within_classes),
}


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """The long rows of one claim with a column for each variable, in their order.

    Raises:
        ValueError: an example stands there twice.
    """
    variables = list(dict.fromkeys(rows["variable"]))
    parts = [rows[rows["variable"] == name].reset_index(drop=True) for name in variables]
    keys = parts[0][["seed", "example", "group"]]
    if keys.duplicated().any():
        raise ValueError("an example stands there twice")
    if any(not part[list(keys)].equals(keys) for part in parts):
        raise ValueError(f"not every example has all of {', '.join(variables)}")
    table = keys.assign(**{name: part["value"].astype(float) for name, part in zip(variables, parts, strict=True)})
    return table.astype({"group": str})


def recomputed(rule: str, rows: pd.DataFrame) -> Ends:
    """Value, low and high of a claim by its rule, such as "rank correlation (resamples=1000, seed=0)"."""
    name, _, told = rule.removeprefix("exp of ").partition(" (")
    settings = {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", told)}
    ends = RULES[name](wide(rows), **settings)
    if rule.startswith("exp of "):
        ends = (math.exp(ends[0]), math.exp(ends[1]), math.exp(ends[2]))
    return ends


def verdict(test: str, ends: Ends, decides: bool) -> str:
    """What a test, "above 0" or "from 0.85 to 0.95", says of an interval."""
    _, low, high = ends
    bounds = [float(number) for number in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", test)]
    if not decides or math.isnan(low):
        return "undecided"
    if test.startswith("above"):
        return "holds" if low > bounds[0] else "fails" if high <= bounds[0] else "undecided"
    if bounds[0] <= low and high <= bounds[1]:
        return "holds"
    return "fails" if high < bounds[0] or low > bounds[1] else "undecided"


def differs(one: float, other: float, scale: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) != math.isnan(other)
    return abs(one - other) > TOLERANCE * scale


def faults(folder: Path, notebook: str, skip: Callable[[str], bool] = lambda rule: False) -> Iterator[str]:
    """Sentences, one for each published claim of a notebook that does not follow from its rows."""
    claims = pd.read_csv(folder / f"{notebook}_claims.csv", keep_default_na=False, na_values={"value": [""]})
    if not claims.get("rows", pd.Series(dtype=str)).any():
        return
    every = pd.read_parquet(folder / f"{notebook}_rows.parquet").astype({"group": str, "variable": str})
    for number, claim in enumerate(claims.to_dict("records"), 1):
        if not claim["rows"] or skip(claim["rule"]):
            continue
        name, rows = f"{notebook}, claim {number} ({claim['statement']})", every[every["claim"] == number]
        try:
            found = recomputed(claim["rule"], rows)
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        told = tuple(math.nan if claim[end] == "" else float(claim[end]) for end in ("value", "low", "high"))
        scale = max(1e-12, *(abs(each) for each in (*found, *told) if math.isfinite(each)))
        largest = float(np.abs(rows["value"]).max()) / math.sqrt(len(rows))  # what float32 leaves of a difference
        if any(differs(a, b, max(scale, largest)) for a, b in zip(found, told, strict=True)):
            yield f"{name}: {told} is published, {found} follows from the rows"
        values = rows.loc[rows["variable"] == "value", "value"]
        decides = claim["rule"] != "mean of trainings" or values.nunique() > 1
        if verdict(claim["test"], told, decides) != claim["verdict"]:
            yield f"{name}: {claim['verdict']} is published, {verdict(claim['test'], told, decides)} follows"
        yield from _counts(name, claim, rows)


def _counts(name: str, claim: dict[str, object], rows: pd.DataFrame) -> Iterator[str]:
    seeds, first = rows["seed"].nunique(), rows["variable"] == rows["variable"].iloc[0]
    if seeds > 1 and seeds != claim["seeds"]:
        yield f"{name}: {claim['seeds']} trainings are told, the rows are of {seeds}"
    told = claim["n"]
    if seeds == 1 and told != "" and (rows["group"] != "those").sum():
        counted = int((first & (rows["group"] != "those")).sum())
        if counted != int(float(str(told))):
            yield f"{name}: {told} examples are told, the rows are of {counted}"
