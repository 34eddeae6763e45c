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
    if math.isnan(value) or not defined:
        return math.nan, math.nan, math.nan
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


def tied(means: np.ndarray) -> np.ndarray:
    """The means, those that rounding alone tells apart made one."""
    near, last = {}, -math.inf
    for value in sorted(means):
        near[value] = near[last] if value - last <= 1e-6 * max(abs(means)) else value
        last = value
    return np.array([near[value] for value in means])


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


Part = dict[str, np.ndarray]  # the columns of one class's rows


def class_samples(rows: pd.DataFrame, resamples: int, seed: int) -> Iterator[dict[str, Part]]:
    """The rows of each class, and then with each class's examples drawn anew, as many as there are."""
    stream = np.random.default_rng(seed)
    parts = {
        str(name): {str(column): part[column].to_numpy() for column in part}
        for name, part in rows.groupby("group", sort=False, observed=True)
    }
    counts = {name: len(part["example"]) for name, part in parts.items()}
    picks = {name: stream.integers(n, size=(resamples, n)) for name, n in counts.items()}
    yield parts
    for number in range(resamples):
        yield {
            name: {column: values[picks[name][number]] for column, values in part.items()}
            for name, part in parts.items()
        }


def of_classes(statistic: Callable[[dict[str, Part]], float]) -> Callable[..., Ends]:
    def rule(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
        value, *others = [statistic(parts) for parts in class_samples(rows, resamples, seed)]
        return percentiles(value, others)

    return rule


def class_gap(parts: dict[str, Part]) -> float:
    means: dict[bool, list[float]] = {True: [], False: []}
    for part in parts.values():
        means[bool(part["this"][0])].append(float(part["value"].mean()))
    return float(means[True][0] - np.mean(means[False]))


def of_class_means(parts: dict[str, Part]) -> float:
    a, b = (np.array([part[name].mean() for part in parts.values()]) for name in ("a", "b"))
    return spearman(tied(a), tied(b))


def of_all(parts: dict[str, Part]) -> float:
    return spearman(*(np.concatenate([part[name] for part in parts.values()]) for name in ("a", "b")))


def within_classes(parts: dict[str, Part]) -> float:
    each = [spearman(part["a"], part["b"]) for part in parts.values() if len(part["a"]) > 2]
    defined = [rho for rho in each if not math.isnan(rho)]
    return float(np.mean(defined)) if defined else math.nan


def tables(rows: pd.DataFrame) -> list[np.ndarray]:
    """The columns a, b, ..., or of "a 0", "a 1", ... one table each, as (example, column)."""
    letters = dict.fromkeys(name[0] for name in rows if name not in ("seed", "example", "group"))
    return [
        rows[[name for name in rows if name == letter or name.startswith(f"{letter} ")]].to_numpy()
        for letter in letters
    ]


def of_tables(statistic: Callable[..., float]) -> Callable[..., Ends]:
    def rule(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
        each = tables(rows)
        value, *others = [
            statistic(*(table[some] for table in each)) for some in drawn_rows(len(rows), resamples, seed)
        ]
        return percentiles(value, others)

    return rule


def ratio(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a) / np.sum(b)) if np.sum(b) > 0 else math.nan


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Fifteen bins of confidence: share of the examples in each, times how far mean confidence is from accuracy."""
    total = 0.0
    for number in range(15):
        inside = (confidence >= number / 15) & ((confidence < (number + 1) / 15) | (number == 14))
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


def roc_areas(gain: bool, paired: bool) -> Callable[..., Ends]:
    """Over all pairs of a clean and an odd example, each as often as it was drawn: how often the odd one is higher.

    A tie counts half; an example whose score is NaN is in no pair.
    """

    def rule(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
        clean, odd = (rows[rows["group"] == name] for name in ("those", "these"))
        stream, (n, m) = np.random.default_rng(seed), (len(clean), len(odd))
        first = stream.multinomial(n, [1 / n] * n, resamples)
        second = first if paired else stream.multinomial(m, [1 / m] * m, resamples)
        times = [(np.ones(n, int), np.ones(m, int)), *zip(first, second, strict=True)]
        areas = []
        for name in ("value", "rival") if gain else ("value",):
            low, high = clean[name].to_numpy()[:, None], odd[name].to_numpy()[None, :]
            there = ~np.isnan(low) & ~np.isnan(high)
            won = np.where(there, np.where(high > low, 1.0, np.where(high == low, 0.5, 0.0)), 0.0)
            pairs = [(a @ won @ b, a @ there @ b) for a, b in times]
            areas.append(np.array([some / number if number else math.nan for some, number in pairs]))
        found = areas[0] - areas[1] if gain else areas[0]
        return percentiles(float(found[0]), list(found[1:]))

    return rule


def rounds(rows: pd.DataFrame) -> Ends:
    ratios = rows["a"] / rows["b"]
    return rows["a"].median() / rows["b"].median(), ratios.min(), ratios.max()


def once(statistic: Callable[..., float]) -> Callable[[pd.DataFrame], Ends]:
    def rule(rows: pd.DataFrame) -> Ends:
        value = float(statistic(*(table[:, 0] for table in tables(rows))))
        return value, value, value

    return rule


def slope(sizes: np.ndarray, values: np.ndarray) -> float:
    x, y = np.log(sizes), np.log(values)
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())


def two_stages(rows: pd.DataFrame, resamples: int, stream: np.random.Generator) -> dict[str, np.ndarray]:
    """The score of each group and its resamples: examples, the same ones for all, and each group's trainings.

    The score of a training is the mean of "value" over examples or, where there is "error", the calibration error of
    "value", a confidence.
    """
    parts = {name: dict(list(part.groupby("seed", sort=False))) for name, part in rows.groupby("group", sort=False)}
    shared: list[int] | None = None
    for part in parts.values():
        for training in part.values():
            names = training["example"].tolist()
            shared = names if shared is None else [name for name in shared if name in set(names)]
    assert shared
    counts = [np.ones(len(shared), int), *stream.multinomial(len(shared), [1 / len(shared)] * len(shared), resamples)]
    of_training: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        columns = []
        for training in part.values():
            there = training.set_index("example").loc[shared]
            value, known = there["value"].to_numpy(), "error" in there and there["error"].notna().all()
            if not known:
                columns.append([float((value * count).sum() / count.sum()) for count in counts])
                continue
            gaps = np.array(counts) * (value - (1 - there["error"].to_numpy()))  # (1 + resample, example)
            bins = [(value >= number / 15) & ((value < (number + 1) / 15) | (number == 14)) for number in range(15)]
            columns.append(sum(abs(gaps[:, inside].sum(axis=1)) for inside in bins) / len(shared))
        of_training[name] = np.array(columns)  # (training, 1 + resample)
    found = {}
    for name, scores in of_training.items():
        picked = stream.integers(len(scores), size=scores.T.shape)
        drawn = [float(np.mean([scores[one, number] for one in some])) for number, some in enumerate(picked)]
        found[name] = np.array([float(scores[:, 0].mean()), *drawn[1:]])
    return found


def by_contest(rows: pd.DataFrame, resamples: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """`two_stages` of each contest; groups are called "contest: who"."""
    contests = rows["group"].str.split(": ").str[0]
    found = {}
    for contest, part in rows.groupby(contests, sort=False):
        scores = two_stages(part, resamples, np.random.default_rng(seed))
        found[str(contest)] = {name.split(": ")[1]: each for name, each in scores.items()}
    return found


def agreement(rows: pd.DataFrame, resamples: int, seed: int) -> Ends:
    """Kendall's tau of two contests, of those who are in both."""
    one, other = by_contest(rows, resamples, seed).values()
    names = [name for name in one if name in other]
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    taus = [
        float(np.mean([np.sign(one[a][k] - one[b][k]) * np.sign(other[a][k] - other[b][k]) for a, b in pairs]))
        for k in range(resamples + 1)
    ]
    return percentiles(taus[0], taus[1:])


def normal_tail(share: float) -> float:
    """The number that a standard normal one exceeds with this chance."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if math.erfc(middle / math.sqrt(2)) / 2 < share else (middle, high)
    return low


def first_place(rows: pd.DataFrame, resamples: int, seed: int) -> tuple[Ends, str]:
    """How many unlike winners, of smallest score, the contests have; and whether they differ beyond doubt."""
    contests = by_contest(rows, resamples, seed)
    every = list(contests.values())
    names = [name for name in every[0] if all(name in each for each in every)]
    z = normal_tail(0.025 / (len(every) * len(names) * (len(names) - 1) // 2))

    def beats(contest: str, one: str, other: str) -> bool:
        lead = contests[contest][other] - contests[contest][one]
        return bool(lead[0] > z * lead[1:].std(ddof=1))

    best = {contest: min(names, key=lambda name: scores[name][0]) for contest, scores in contests.items()}
    unlike = any(
        beats(one, best[one], best[other]) and beats(other, best[other], best[one])
        for one in best
        for other in best
        if best[one] != best[other]
    )
    alike = len(set(best.values())) == 1 and all(
        beats(contest, winner, name) for contest, winner in best.items() for name in names if name != winner
    )
    ends = (float(len(set(best.values()))), math.nan, math.nan)
    return ends, "holds" if unlike else "fails" if alike else "undecided"


RULES: dict[str, Callable[..., Ends]] = {
    "difference of means": of_tables(lambda a, b: float(np.mean(a) - np.mean(b))),
    "ratio of means": of_tables(ratio),
    "root of the ratio of means": of_tables(lambda a, b: math.sqrt(ratio(a, b))),
    "rank correlation of column means": of_tables(lambda a, b: spearman(tied(a.mean(axis=0)), tied(b.mean(axis=0)))),
    "smallest column mean of these less the largest of those": of_tables(
        lambda a, b: min(column.mean() for column in a.T) - max(column.mean() for column in b.T)
    ),
    "difference of calibration errors": of_tables(lambda a, b, c, d: calibration_error(a, b) - calibration_error(c, d)),
    "area under the ROC": roc_areas(gain=False, paired=False),
    "area under the ROC, paired": roc_areas(gain=False, paired=True),
    "gain in area under the ROC": roc_areas(gain=True, paired=False),
    "gain in area under the ROC, paired": roc_areas(gain=True, paired=True),
    "ratio of medians, range over rounds": rounds,
    "the value": once(lambda a: a[0]),
    "largest over smallest, less 1": once(lambda a: max(a) / min(a) - 1),
    "share of the first in the sum": once(lambda a: a[0] / sum(a)),
    "slope of logarithms": once(slope),
    "agreement of two rankings": agreement,
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
# Rules that give the verdict, too: it is no matter of one interval.
VERDICTS: dict[str, Callable[..., tuple[Ends, str]]] = {"first place depends on the data": first_place}


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


def recomputed(rule: str, rows: pd.DataFrame) -> tuple[Ends, str]:
    """Value, low and high of a claim by its rule, such as "rank correlation (resamples=1000, seed=0)".

    And its verdict where the rule gives it, else "".
    """
    name, _, told = rule.removeprefix("exp of ").partition(" (")
    settings = {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", told)}
    if name in VERDICTS:
        return VERDICTS[name](wide(rows), **settings)
    ends = RULES[name](wide(rows), **settings)
    if rule.startswith("exp of "):
        ends = (math.exp(ends[0]), math.exp(ends[1]), math.exp(ends[2]))
    return ends, ""


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
            found, decided = recomputed(claim["rule"], rows)
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        told = tuple(math.nan if claim[end] == "" else float(claim[end]) for end in ("value", "low", "high"))
        scale = max([1e-12, *(abs(each) for each in (*found, *told) if math.isfinite(each))])
        largest = float(np.abs(rows["value"]).max()) / math.sqrt(len(rows))  # what float32 leaves of a difference
        if any(differs(a, b, max(scale, largest)) for a, b in zip(found, told, strict=True)):
            yield f"{name}: {told} is published, {found} follows from the rows"
        values = rows.loc[rows["variable"] == "value", "value"]
        decides = claim["rule"] != "mean of trainings" or values.nunique() > 1
        follows = decided or verdict(claim["test"], told, decides)
        if follows != claim["verdict"]:
            yield f"{name}: {claim['verdict']} is published, {follows} follows"
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
