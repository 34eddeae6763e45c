"""What held up: every published claim in one table, and how often each of the first paper's claims holds."""

from __future__ import annotations

import html
import io
import math
import re
import textwrap
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.patches import Rectangle
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from xuqlib.checks import check_choice
from xuqlib.study.checked import Column, Names, Numbers, Table, check_columns, checked, shown
from xuqlib.study.data.loading import DATASETS
from xuqlib.study.figures.charts import HUES, Picture, styled
from xuqlib.study.files import ROOT, read_published
from xuqlib.study.names import known, plain
from xuqlib.study.record import CLAIM_COLUMNS, VERDICTS
from xuqlib.study.runs import READS

PUBLISHED = ROOT / "figures" / "full"
CHOSEN = ROOT / "notebooks" / "claims.yaml"
# Claims of arXiv 2403.17224 by the names that they have here; not quoted, but put so that they can fail.
PAPER_CLAIMS: Mapping[str, str] = {
    "C1": "Guided Backprop moves less (CV) than IG and LIME",
    "C2": "the mean map marks pixels better than a single draw's map",
    "C3": "some classes are explained less steadily, and not only because they are harder",
    "C4": "explaining the true class instead of the predicted one changes little",
    "C5": "CV rises under corruption and out of distribution",
    "C6": "a low CV is trustworthiness: the map changes when the weights are replaced",
    "C7": "which posterior is best depends on the data",
    "C8": "explanation uncertainty notices adversarial examples",
}
# Claims of arXiv 2304.04824, in the same way.
SECOND_CLAIMS: Mapping[str, str] = {
    "U1": "UA-Backprop's map adds up to the uncertainty",
    "U2": "what it marks makes the prediction uncertain: blurred first, it lowers the uncertainty more than any rival",
    "U3": "its largest window finds a pasted patch, better than chance and than any rival",
    "U4": "the map of each kind of uncertainty finds that kind's patch, and the other kind's map does not as well",
    "U5": "only the plain gradient takes less time",
    "U6": "networks that look away from what it marks become better",
}
# The question that the first paper's method invites: notebook 07. What it leaves open about targets: notebook 26.
# Our own map: notebook 10.
OWN_CLAIMS: Mapping[str, str] = {
    "coverage": "a posterior's 90 % intervals hold what another training run would explain, within 5 points",
    "mended": "one factor per explainer, fitted on a few networks, makes them do so",
    "conformal": "intervals calibrated on a few trainings hold 88 to 92 % of another's map and 85 % of its largest "
    "features, around one network, at no more than 1.3 times the width of an ensemble's",
    "targets": "where a network is wrong, the true class is explained less steadily than the predicted one, and the "
    "distance of their maps finds wrong labels better than the loss",
    "signed": "a signed, complete map of the uncertainty beats signed gradient x input, and keeps the answer as often",
}
# What an evaluation suite found with its measures, arXiv 2603.24524: notebook 24.
SUITE_CLAIMS: Mapping[str, str] = {
    "yardsticks": "DropConnect's maps of uncertainty are better than dropout's in most measures",
}
STATEMENTS: Mapping[str, str] = {**PAPER_CLAIMS, **SECOND_CLAIMS, **OWN_CLAIMS, **SUITE_CLAIMS}
SEVERAL = "several"  # what a row on more than one data set counts for
FIGURES = {
    **{"C1": "04_against_integrated_gradients", "C2": "06_against_single", "C3": "05_at_equal_entropy"},
    **{"C4": "05_asked", "C5": "12_novel", "C6": "12_forgetting", "C7": "17_ranks", "C8": "12_attack"},
    **{"U2": "10_blurring", "U3": "10_anomaly", "U4": "10_truth", "U5": "10_seconds", "U6": "11_accuracy"},
    **{"coverage": "07_coverage", "mended": "07_mended_integrated_gradients", "conformal": "25_coverage"},
    **{"signed": "10_blurring", "yardsticks": "24_headline"},
    "targets": "26_steadiness",
}
STARRED = (
    "A star marks a row of a full run that was made before its number was chosen: it is judged by its own interval, "
    "not adjusted for all claims."
)
FOUND = ("<!-- findings: written by run_all.py -->", "<!-- end of findings -->")
MARKS = ("<!-- verdicts: written by run_all.py -->", "<!-- end of verdicts -->")
COLOURS = {"holds": HUES[2], "fails": HUES[4], "undecided": "#d9d9d9", "mixed": HUES[1]}


@checked
def gather(folder: Path = PUBLISHED) -> pd.DataFrame:
    """Read the claims of every notebook from `NN_claims.csv` in a folder, but those about this very table.

    Returns:
        One claim per row: notebook, row (in its CSV, counted from 1), then the columns of the CSV.

    Raises:
        ValueError: a file has other columns, or an unknown verdict; there is no file.
        DamagedError: a file is not what `index.json` says.
    """
    parts = []
    for path in sorted(folder.glob("[0-9][0-9]_claims.csv")):
        if path.name[:2] in READS:
            continue
        missing = {"value": [""], "low": [""], "high": [""], "n": [""]}
        frame = pd.read_csv(io.BytesIO(read_published(path)), keep_default_na=False, na_values=missing)
        if list(frame) not in (list(CLAIM_COLUMNS), list(CLAIM_COLUMNS[:-4])) or not set(frame["verdict"]) <= set(
            VERDICTS.values()
        ):
            raise ValueError(f"{path.name} is no table of claims of this version; run its notebook again")
        kind = frame.get("kind", "claim")  # tables of a former version name neither kind nor rows
        frame = frame.reindex(columns=list(CLAIM_COLUMNS), fill_value="").assign(kind=kind)
        place = {"notebook": path.name[:2], "row": range(1, len(frame) + 1)}
        parts.append(pd.concat([pd.DataFrame(place, index=frame.index), frame], axis=1))
    if not parts:
        raise ValueError(f"no NN_claims.csv in {folder.name}; run_all.py writes them")
    return pd.concat(parts, ignore_index=True).astype({"n": "Int64"})


@dataclass(frozen=True)
class Chosen:
    """The one number that decides a claim, chosen before the run; the entries of `notebooks/claims.yaml`.

    Attributes:
        says: the claim, in words that can be wrong.
        source: who claims it: an arXiv id and section, or this study.
        notebook, row: where it is measured: a notebook's number, and the statement of a row of its claims.
        datasets: on which data sets; each is a test of its own.
        measure: what the number is, and in which direction it speaks for the claim.
        unit: what an interval generalises over.
        smallest: the smallest effect that matters, a distance from the bound, in the unit of the number.
    """

    says: str
    source: str
    notebook: str
    row: str
    datasets: tuple[str, ...]
    measure: str
    unit: str
    smallest: float


@checked
def read_chosen(path: Path = CHOSEN) -> dict[str, Chosen]:
    """The entries of a file like `notebooks/claims.yaml`, by the names of their claims.

    Raises:
        ValueError: an entry lacks a field, or has another; a smallest effect that is not above 0.
    """
    entries = {}
    for name, told in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if set(told) != (wanted := {each.name for each in fields(Chosen)}):
            raise ValueError(f"{path.name}: {name} has {', '.join(sorted(told))}; wanted {', '.join(sorted(wanted))}")
        entry = Chosen(**{**told, "datasets": tuple(told["datasets"]), "smallest": float(told["smallest"])})
        if not entry.smallest > 0:
            raise ValueError(f"{path.name}: the smallest effect of {name} is {entry.smallest}; pass a number above 0")
        entries[name] = entry
    return entries


@checked
def holm(p: Numbers) -> np.ndarray:
    """P-values of several tests, adjusted so that below 5 % one of them is wrong with a chance of at most 5 %.

    Raises:
        ValueError: one of them does not lie between 0 and 1.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    values = np.asarray(p, float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p is {shown(p)}; pass numbers between 0 and 1")
    order = np.argsort(values, kind="stable")
    steps = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted


def _bounds(test: str) -> list[float]:
    """The bounds of a test as `Notebook.judge` writes it: "above 0", or "from 0.85 to 0.95"."""
    return [float(number) for number in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", test)]


def _p_value(claim: Any) -> float:
    """How likely an interval as far from its bound is where the truth lies at the bound, two-sided.

    An interval of two standard errors, or of 95 %, tells the standard error; that of a mean of trainings is Student's.
    """
    bounds, ends = _bounds(claim.test), [claim.value, claim.low, claim.high]
    if not bounds or not all(map(math.isfinite, ends)):
        return math.nan
    if claim.rule.startswith("exp of "):
        bounds, ends = [math.log(bound) for bound in bounds], [math.log(end) for end in ends]
    value, low, high = ends
    if claim.rule == "mean of trainings":
        freedom = claim.seeds - 1
        error, tail = (high - low) / 2 / stdtrit(freedom, 0.975), lambda size: stdtr(freedom, -size)
    else:
        error, tail = (high - low) / 2 / (ndtri(0.975) if "bootstrap" in claim.note else 2), lambda size: ndtr(-size)
    distances = [abs(value - bound) for bound in bounds]
    if error == 0:
        return float(min(distances) == 0)
    if len(bounds) == 1:
        return float(2 * tail(distances[0] / error))
    inside = bounds[0] <= value <= bounds[1]
    return float(tail(min(distances) / error)) if inside else 1.0  # two one-sided tests of equivalence


@checked
def primary(claims: Table, chosen: Mapping[str, Chosen]) -> pd.DataFrame:
    """What became of the claims that were chosen beforehand, each by one number on each data set.

    A claim **holds** where its number lies on its side of the bound, by a p-value below 5 % after Holm's adjustment
    over all rows, and nothing says that the effect is smaller than the smallest that matters. It **fails** where the
    number lies on the other side by the same measure, or the whole interval stays below that smallest effect. Else it
    is **undecided**. With one training, that is about this training; the column scope says so.

    Args:
        claims: from `gather`.
        chosen: from `read_chosen`.

    Returns:
        A row for each claim and data set: claim, says, dataset, value, low, high, unit, n, seeds, scope, p (adjusted),
        verdict ("not measured" where there is no such row, or one without a test), why. A test without a bound has no
        p, and keeps its own verdict.
    """
    check_columns(
        claims, "notebook", "statement", "dataset", "test", "rule", "note", *("value", "low", "high", "seeds")
    )
    if not isinstance(chosen, Mapping) or not all(isinstance(entry, Chosen) for entry in chosen.values()) or not chosen:
        raise TypeError(f"chosen is {shown(chosen)}; pass what read_chosen returns")
    rows = []
    for name, entry in chosen.items():
        for dataset in entry.datasets:
            here = (claims["notebook"] == entry.notebook) & (claims["dataset"] == dataset) & (claims["test"] != "")
            found = claims[here & (claims["statement"] == entry.row)]
            if len(found) > 1:
                raise ValueError(f"{name}: notebook {entry.notebook} has {len(found)} rows {entry.row!r} on {dataset}")
            numbers = found.iloc[0] if len(found) else pd.Series(dtype=object)
            rows.append({**numbers, "claim": name, "says": entry.says, "dataset": dataset, "smallest": entry.smallest})
    table = pd.DataFrame(rows)
    measured = table.get("test", pd.Series(index=table.index, dtype=object)).notna()
    if not measured.any():
        return table.assign(verdict="not measured", why="")[["claim", "says", "dataset", "verdict", "why"]]
    raw = pd.Series([_p_value(row) for row in table[measured].itertuples()], table.index[measured]).dropna()
    table["p"] = pd.Series(holm(raw) if len(raw) else [], raw.index, float)
    judged = [
        _judged(row) if there else ("not measured", "") for row, there in zip(table.itertuples(), measured, strict=True)
    ]
    table["verdict"], table["why"] = zip(*judged, strict=True)
    table["scope"] = np.where(table["seeds"].fillna(0) > 1, "trainings", "this training")
    columns = ["claim", "says", "dataset", "value", "low", "high", "unit", "n", "seeds", "scope", "p", "verdict", "why"]
    return table[columns]


def _judged(row: Any) -> tuple[str, str]:
    bounds = _bounds(row.test)
    if not bounds:
        return row.verdict, "by a rule of its own"
    if len(bounds) == 2:
        if row.high < bounds[0] or row.low > bounds[1]:
            return "fails", "the interval lies outside"
        return ("holds", "") if row.p < 0.05 else ("undecided", "")
    if row.high < bounds[0] + row.smallest:
        return "fails", "the opposite" if row.high < bounds[0] else "smaller than what matters"
    return ("holds", "") if row.p < 0.05 and row.value > bounds[0] else ("undecided", "")


@checked
def tally(claims: Table) -> pd.DataFrame:
    """Count the verdicts of each claim on each data set.

    Args:
        claims: from `gather`.

    Returns:
        One row per claim and dataset ("several" where a row is about more than one): holds, fails, undecided and rows
        (counts), and the verdict of them together: that of all rows where they agree, else "mixed".
    """
    check_columns(claims, "claim", "dataset", "verdict")
    names = claims["dataset"].str.split(", ")
    where = claims["dataset"].mask(names.map(lambda each: len(set(each) & set(DATASETS)) > 1), SEVERAL)
    counts = pd.crosstab([claims["claim"], where], claims["verdict"])
    counts = counts.reindex(columns=list(VERDICTS.values()), fill_value=0).reset_index().rename_axis(columns=None)
    counts["rows"] = counts[list(VERDICTS.values())].sum(axis=1)
    counts["verdict"] = "mixed"
    for verdict in VERDICTS.values():
        counts.loc[counts[verdict] == counts["rows"], "verdict"] = verdict
    return counts.sort_values("claim", key=lambda names: names.map(_natural), kind="stable", ignore_index=True)


@checked
def about(table: Table, names: Names) -> pd.DataFrame:
    """The rows about some claims, and about parts of them: of C2 also "C2 deletion", of C1 also "C1, other CVs".

    Args:
        table: from `gather` or `tally`.
        names: of claims, as in `STATEMENTS`.

    Raises:
        ValueError: one of the names is not there.
    """
    check_columns(table, "claim")
    for name in names:
        check_choice(name, STATEMENTS, "claim")
    return table[table["claim"].map(_whole).isin(list(names))].copy()


def _whole(name: str) -> str:
    """The claim that a claim is a part of: C2 of "C2 deletion"."""
    return re.split("[ ,]", name)[0]


def _with_parts(counts: pd.DataFrame, statements: Mapping[str, str]) -> dict[str, str]:
    """The statements by the names under which they were measured: those of their parts, where there are any."""
    parts = {name: list(dict.fromkeys(counts.loc[counts["claim"].map(_whole) == name, "claim"])) for name in statements}
    return {part: text for name, text in statements.items() for part in parts[name] or [name]}


def _natural(name: str) -> str:
    return re.sub(r"\d+", lambda number: number.group().zfill(4), name)


@styled
@checked
def verdict_grid(counts: Table, statements: Mapping[str, str] = STATEMENTS, *, title: str = "") -> Picture:
    """A field for each claim and data set: its verdict, and how many rows hold / fail / are undecided.

    Args:
        counts: from `tally`.
        statements: claims to show, from the top, and what they say.
        title: of the figure.
    """
    check_columns(counts, "claim", "dataset", "rows", *VERDICTS.values())
    statements = _with_parts(counts, statements)
    datasets = sorted(dict.fromkeys(counts["dataset"]), key=lambda name: name == SEVERAL)  # in their order, that last
    labels = [_wrapped(f"{name}: {text}") for name, text in statements.items()]
    tops = np.cumsum([0.0, *(0.25 + 0.29 * max(2, label.count("\n") + 1) for label in labels)])  # inches
    figure = Picture(figsize=(min(15.5, 5.5 + 1.75 * len(datasets)), 1.7 + tops[-1]))  # a laptop's screen, at most
    axes = figure.subplots()
    for row in counts[counts["claim"].isin(list(statements))].to_dict("records"):
        x, y = datasets.index(row["dataset"]), list(statements).index(row["claim"])
        axes.add_patch(_field(x, tops[y], tops[y + 1], COLOURS[row["verdict"]]))
        counted = "/".join(str(row[verdict]) for verdict in VERDICTS.values())
        middle = (tops[y] + tops[y + 1]) / 2
        axes.text(x, middle, f"{row['verdict']}\n{counted}", ha="center", va="center", fontsize=14.5)
    axes.set(xlim=(-0.5, len(datasets) - 0.5), ylim=(tops[-1], 0))
    axes.set_xticks(range(len(datasets)), [known(name).replace(" ", "\n", 1).replace("_", "\n") for name in datasets])
    axes.set_yticks((tops[:-1] + tops[1:]) / 2, labels)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    figure.suptitle(title)
    return figure


@styled
@checked
def verdict_bars(claims: Table, *, by: Column = "notebook", title: str = "") -> Picture:
    """One bar for each value of a column: how many claims hold, are undecided, and fail.

    Args:
        claims: from `gather`.
        by: column of `claims`.
        title: of the figure.
    """
    check_columns(claims, "verdict")
    counts = pd.crosstab(claims[by], claims["verdict"])
    names = [plain(name) for name in counts.index]
    figure = Picture(figsize=(9, 1.8 + 0.42 * len(names)))
    axes, left = figure.subplots(), pd.Series(0, index=counts.index)
    for verdict, hatch in (("holds", ""), ("undecided", ".."), ("fails", "//")):
        length = counts.get(verdict, pd.Series(0, index=counts.index))
        look: Any = {"color": COLOURS[verdict], "hatch": hatch, "edgecolor": "white"}
        axes.barh(range(len(names)), length, left=left, label=verdict, **look)
        left = left + length
    axes.set(xlabel="claims", ylabel=by)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3)
    figure.suptitle(title)
    return figure


def _field(x: int, top: float, bottom: float, colour: str) -> Rectangle:
    return Rectangle((x - 0.48, top + 0.03), 0.96, bottom - top - 0.06, facecolor=colour, edgecolor="none", alpha=0.75)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 44))


@checked
def markdown_table(claims: Table, statements: Mapping[str, str] = STATEMENTS) -> str:
    """The tally as a Markdown table: a row per claim of `statements`, and how its rows fell on each data set."""
    counts = tally(claims)
    lines = ["| claim | what was found (rows of each verdict) | notebooks |", "|---|---|---|"]
    for name, text in _with_parts(counts, statements).items():
        found = counts[counts["claim"] == name].to_dict("records")
        fields = [f"{_cell(row['dataset'])}: {_counted(row)}" for row in found]
        notebooks = ", ".join(sorted(set(claims.loc[claims["claim"] == name, "notebook"])))
        lines.append(f"| {name}: {text} | {'; '.join(fields) or 'not measured'} | {notebooks} |")
    return "\n".join(lines)


def _cell(name: object) -> str:
    """A name inside a row of a Markdown table: neither markup nor the end of the field."""
    text = html.escape(plain(name), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


@checked
def with_table(text: str, claims: Table) -> str:
    """Put today's `markdown_table` between the two marks of a Markdown text; a text without them stays as it is."""
    check_columns(claims, "claim", "dataset", "verdict")
    return _between(text, MARKS, markdown_table(claims))


@checked
def with_findings(text: str, numbers: Table, claims: Table, chosen: Mapping[str, Chosen]) -> str:
    """Put what is `found` today between the two marks of a Markdown text; a text without them stays as it is.

    Args:
        text: of a file beside `figures/`, to which it links.
        numbers: from `primary`.
        claims: from `gather`.
        chosen: from `read_chosen`.
    """
    rows = found(numbers, claims, chosen)
    lines = []
    for row in rows:
        starred = "" if "adjusted" in row else "\\*"
        interval = f" ({row['low']:.3g} to {row['high']:.3g})" if pd.notna(row["low"]) else ""
        why = f", {row['why']}" if row["why"] else ""
        trainings = f"{row['seeds']:.0f} training{'s' * (row['seeds'] != 1)}"
        measured = f"{row['value']:.3g} {row['unit']}".strip()
        stem = FIGURES.get(row["claim"].split(" ")[0])
        figure = f" [Figure](figures/full/{stem}.png)" if stem else ""
        lines.append(
            f"- **{row['verdict']}**{starred}{why}, on {row['dataset']}: {row['says']}. Measured: "
            f"{measured}{interval}, n = {row['n']:.0f}, {trainings}.{figure}"
        )
    if any("adjusted" not in row for row in rows):
        lines.append(f"\n{STARRED}")
    return _between(text, FOUND, "\n".join(lines))


def _between(text: str, marks: tuple[str, str], new: str) -> str:
    begin, end = marks
    if begin not in text or end not in text:
        return text
    before, rest = text.split(begin, 1)
    return f"{before}{begin}\n\n{new}\n\n{end}{rest.split(end, 1)[1]}"


def found(
    numbers: pd.DataFrame, claims: pd.DataFrame, chosen: Mapping[str, Chosen], most: int = 10
) -> list[dict[str, Any]]:
    """The numbers that decided a claim: first one of each claim, then the others, and those with an adjusted p-value
    before those without.

    A claim whose number no run of this version has measured is told by the same row of the last full run, and by the
    verdict that this row bears; it has no entry "adjusted".

    Args:
        numbers: from `primary`.
        claims: from `gather`.
        chosen: from `read_chosen`.
        most: numbers to return.
    """
    rows: list[dict[str, Any]] = []
    for row in numbers.to_dict("records"):
        entry = chosen[row["claim"]]
        one = row | {"adjusted": True}
        if row["verdict"] == "not measured":
            same = claims[(claims["notebook"] == entry.notebook) & (claims["statement"] == entry.row)]
            same = same[same["dataset"] == row["dataset"]]
            one = row | (same.iloc[0].to_dict() if len(same) == 1 else {}) | {"claim": row["claim"], "why": ""}
        rows.append({str(name): value for name, value in one.items()} | {"notebook": entry.notebook})
        rows[-1]["measure"] = entry.measure
    told = [row for row in rows if row["verdict"] in ("holds", "fails")]
    turns = pd.DataFrame(told, columns=["claim"]).groupby("claim").cumcount().tolist()
    order = sorted(range(len(told)), key=lambda place: (turns[place], "adjusted" not in told[place]))[:most]
    return [told[place] for place in sorted(order)]


def _counted(row: Mapping[Hashable, object]) -> str:
    return ", ".join(f"{row[verdict]} {verdict}" for verdict in VERDICTS.values() if row[verdict])
