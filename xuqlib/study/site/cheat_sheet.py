"""One page to print: the lines to begin with, and which posterior, explainer and number of draws; numbers published."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd

from xuqlib.study.files import read_published
from xuqlib.study.site.markup import escaped, heading

PAGE = "cheat_sheet.html"
RANKS, GRID, SECONDS = "17_ranks", "17_grid", "17_seconds"
MEANS, SPREADS = "00_settling", "04_std_error"
WANTED_MEAN, WANTED_SPREAD = 0.05, 0.2  # how far a mean map and a map of the spread may be off


def cheat_sheet_body(readme: str, figures: Path) -> str:
    """The page's HTML.

    Args:
        readme: text of the README, whose first lines of Python are shown.
        figures: folder of published tables. What rests on a table that is not there is left out.
    """
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    parts = ["<h1>xuq on one page</h1>"]
    if code:
        parts.append(f"{heading('The tour')}<pre><code>{escaped_code(code[1])}</code></pre>")
    if ideas := re.findall(r"^\d\. (A[^\n]*\*\*[^\n]*)$", readme, re.MULTILINE):
        told = "".join(f"<li>{escaped(re.sub('[*`]', '', idea))}</li>" for idea in ideas[:3])
        parts.append(f"{heading('Three ideas')}<ol>{told}</ol>")
    tables = {
        name: pd.read_csv(io.BytesIO(read_published(path)))
        for name in (RANKS, GRID, SECONDS, MEANS, SPREADS)
        if (path := figures / f"{name}.csv").exists()
    }
    if RANKS in tables:
        parts.append(f"{heading('Which posterior?')}{which_posterior(tables[RANKS])}")
    if GRID in tables and SECONDS in tables:
        parts.append(f"{heading('Which explainer?')}{which_explainer(tables[GRID], tables[SECONDS])}")
    if MEANS in tables and SPREADS in tables:
        parts.append(f"{heading('How many draws?')}{how_many_draws(tables[MEANS], tables[SPREADS])}")
    parts.append(
        "<p><small>Numbers are read from the last full run: figures 17 ranks, 17 grid, 17 seconds, 00 settling and "
        '04 std error of the <a href="gallery.html">gallery</a>. Means over data sets, without intervals; those are '
        "in the notebooks.</small></p>"
    )
    return f'<div class="sheet">{"".join(parts)}</div>'


def escaped_code(text: str) -> str:
    """Lines of code, each of them a text."""
    return "\n".join(escaped(line) for line in text.rstrip().split("\n"))


def which_posterior(ranks: pd.DataFrame) -> str:
    """On how many data sets each posterior may be the best by likelihood, and its mean rank.

    Args:
        ranks: as `17_ranks`.
    """
    own = ranks[(ranks["criterion"] == "nll") & (ranks["size"] == "usual")]
    table = own.groupby("posterior").agg(rank=("rank", "mean"), best=("tied", "sum")).sort_values("rank", kind="stable")
    count = own["dataset"].nunique()
    single = [name for name in table.index if name != "deep_ensemble"]
    first = _words(table.index[0])
    advice = f"By likelihood <b>{first}</b>, with a mean rank of {table['rank'].iloc[0]:.1f} over {count} data sets."
    if single and table.index[0] == "deep_ensemble":
        advice += f" If you have one trained network: <b>{_words(single[0])}</b> ({table['rank'][single[0]]:.1f})."
    rows = [[_words(name), f"{row['rank']:.1f}", f"{row['best']:.0f} of {count}"] for name, row in table.iterrows()]
    return f"<p>{advice}</p>{_table(('posterior', 'mean rank', 'may be the best on'), rows)}"


def which_explainer(grid: pd.DataFrame, seconds: pd.DataFrame) -> str:
    """How steady each explainer's maps are, what deletion says of their mean, and what they cost.

    Args:
        grid: as `17_grid`.
        seconds: as `17_seconds`.
    """
    both = grid[grid["measure"] == "deletion_blurred_gain"]["dataset"].unique()
    own = grid[grid["dataset"].isin(both)]
    means = {
        name: own[own["measure"] == measure].groupby("explainer")["value"].mean()
        for name, measure in (("moves", "cv_ratio"), ("gain", "deletion_blurred_gain"))
    }
    times = seconds[seconds["dataset"].isin(both)].groupby("explainer")["seconds"].median()
    table = pd.DataFrame({**means, "times": times / times.min()}).sort_values("gain", ascending=False, kind="stable")
    steady, marks = _words(table["moves"].idxmin()), _words(table["gain"].idxmax())
    advice = f"Steadiest: <b>{steady}</b>. Marks the pixels that deletion needs best: <b>{marks}</b>."
    rows = [
        [_words(name), f"{row['moves']:.2f}", f"{row['gain']:+.3f}", f"{row['times']:.1f} times"]
        for name, row in table.iterrows()
    ]
    heads = ("explainer", "ratio CV (moves)", "gain in deletion", "time")
    return f"<p>{advice} Over {len(both)} data sets of images and all posteriors.</p>{_table(heads, rows)}"


def how_many_draws(means: pd.DataFrame, spreads: pd.DataFrame) -> str:
    """The least numbers of draws that were measured at which mean and spread are as near as is wanted.

    Args:
        means: as `00_settling`: how far the mean map of some draws is from that of many.
        spreads: as `04_std_error`: the error of the standard deviation.
    """
    measured = means[means["line"] == "measured"].sort_values("draws")
    enough = measured.loc[measured["distance"] <= WANTED_MEAN, "draws"]
    curves = spreads[~spreads["curve"].str.startswith("1/")].groupby("draws")["error"].max()
    stds = curves.index[curves <= WANTED_SPREAD]
    told = [
        f"Mean map off by at most {WANTED_MEAN:.0%}: {_from(enough.min() if len(enough) else None)}",
        f"Map of the spread off by at most {WANTED_SPREAD:.0%}: {_from(stds.min() if len(stds) else None)}",
    ]
    rows = [[f"{row.draws:.0f}", f"{row.distance:.1%}"] for row in measured.itertuples()]
    return f"<p>{'; '.join(told)}. Four times the draws halve both.</p>{_table(('draws', 'mean map off by'), rows)}"


def _from(draws: float | None) -> str:
    return "more draws than were measured" if draws is None else f"<b>{draws:.0f} draws</b>"


def _words(name: object) -> str:
    return escaped(str(name).replace("_", " "))


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{each}</td>" for each in row[1:])}</tr>' for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
