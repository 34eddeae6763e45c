"""The pages' words on what held up: one number for each claim, how the rows fell, and every claim."""

from __future__ import annotations

import html
from collections.abc import Container, Iterable, Mapping
from typing import Any

import pandas as pd

from xuqlib.study.record import VERDICTS
from xuqlib.study.site.markup import escaped, heading
from xuqlib.study.verdicts import FIGURES, STARRED, STATEMENTS, Chosen, found, tally

NO_RUN = "<p>No full run has been published yet: <code>run_all.py --preset full</code> makes one.</p>"


# The published figure of each claim, by its first word.
def controls(items: str, of: str, selects: Mapping[str, Iterable[str]]) -> str:
    """A box and selects that leave of some items those that fit; a script shows and works them.

    Args:
        items: what the items are, for the reader.
        of: id of the element that holds them; each carries its values as data-NAME.
        selects: the values of each name to choose from.
    """
    fields = f'<label>filter <input type="search" size="26" placeholder="{items} with these words"></label>'
    for name, values in selects.items():
        options = "".join(f'<option value="{escaped(value)}">{escaped(value)}</option>' for value in values if value)
        fields += f'<label>{name} <select data-name="{name}"><option value="">all</option>{options}</select></label>'
    work = f'data-of="{of}" data-items="{items}"'
    return f'<div class="controls" role="search" {work} hidden>{fields}<output></output></div>'


def verdict_table(claims: pd.DataFrame | None) -> str:
    """The claims of `STATEMENTS` and how their rows fell on each data set."""
    if claims is None:
        return NO_RUN
    counts = tally(claims)
    rows = ["<tr><th>claim</th><th>what was found, on each data set (rows of each verdict)</th></tr>"]
    for name, text in STATEMENTS.items():
        found = "".join(_verdict(row) for row in counts[counts["claim"] == name].to_dict("records"))
        rows.append(f"<tr><th>{html.escape(name)}: {html.escape(text)}</th><td>{found or 'not measured'}</td></tr>")
    return f'<table class="verdicts">{"".join(rows)}</table>'


def _verdict(row: Mapping[Any, Any]) -> str:
    counted = ", ".join(f"{row[verdict]} {verdict}" for verdict in VERDICTS.values() if row[verdict])
    known = f"{row['verdict']}: " if row["verdict"] == "mixed" else ""
    return f'<div class="{row["verdict"]}"><b>{escaped(row["dataset"])}</b> {known}{counted}</div>'


def primary_table(numbers: pd.DataFrame, chosen: Mapping[str, Chosen]) -> str:
    """One number for each claim, on each data set.

    Args:
        numbers: from `primary`.
        chosen: from `read_chosen`.
    """
    heads = ("claim", "data", "value", "interval", "adjusted p", "verdict", "why")
    rows = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for row in numbers.to_dict("records"):
        measured = pd.notna(row.get("value"))
        claim = f"<b>{escaped(row['claim'])}</b>: {escaped(row['says'])}"
        claim += f"<br><small>{escaped(chosen[row['claim']].measure)}</small>"
        p = row.get("p")
        cells = [claim, escaped(row["dataset"]), _value(row) if measured else "", _interval(row)]
        cells.append("" if p is None or pd.isna(p) else "below 0.001" if p < 0.001 else f"{p:.3f}")
        verdict = f'<td class="{row["verdict"] if measured else "undecided"}">{escaped(row["verdict"])}</td>'
        scope = f"about {row['scope']}" if measured else ""
        why = "; ".join(filter(None, [escaped(row["why"]), scope]))
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}{verdict}<td>{why}</td></tr>")
    return f'<table class="primary">{"".join(rows)}</table>'


def _value(row: Mapping[Any, Any]) -> str:
    return f"{row['value']:.3g} {escaped(row['unit'])}".strip()


def _interval(row: Mapping[Any, Any]) -> str:
    known = pd.notna(row.get("low")) and pd.notna(row.get("high"))
    return f"{row['low']:.3g} to {row['high']:.3g}" if known else ""


def findings(
    numbers: pd.DataFrame,
    claims: pd.DataFrame,
    chosen: Mapping[str, Chosen],
    figures: Container[tuple[str, str]] = (),
    most: int = 10,
) -> str:
    """What was found, a sentence for each of `found`, and how many numbers decide the claims.

    Args:
        numbers: from `primary`.
        claims: from `gather`.
        chosen: from `read_chosen`.
        figures: (preset, NN_slug) of those that are published.
        most: sentences.
    """
    told = found(numbers, claims, chosen, most)
    lines = "".join(f"<li>{_finding(row, figures)}</li>" for row in told)
    counts = {verdict: int((numbers["verdict"] == verdict).sum()) for verdict in (*VERDICTS.values(), "not measured")}
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    rest = f"Numbers that decide the claims, chosen before the run: {len(numbers)} ({counted})."
    if any("adjusted" not in row for row in told):
        rest += f" {STARRED}"
    return f'<ul class="found">{lines}</ul><p>{rest}</p>' if lines else f"<p>{rest}</p>"


def _finding(row: Mapping[Any, Any], figures: Container[tuple[str, str]]) -> str:
    why = f", {escaped(row['why'])}" if row["why"] else ""
    star = "" if "adjusted" in row else "*"
    interval = f" ({_interval(row)})" if _interval(row) else ""
    n, seeds = row.get("n"), row.get("seeds")
    facts = [f"n = {int(n)}"] if pd.notna(n) else []
    facts += [f"{int(seeds)} training{'s' * (seeds != 1)}"] if pd.notna(seeds) else []
    stem = FIGURES.get(row["claim"].split(" ")[0], "")
    is_there = ("full", stem) in figures
    address = f"gallery.html#{f'full-{stem}' if is_there else row['notebook']}"
    return (
        f'<b class="{row["verdict"]}">{row["verdict"]}{star}</b>{why}, on {escaped(row["dataset"])}: '
        f"{escaped(row['says'])}. <small>Measured: {_value(row)}{interval}, {', '.join(facts)} "
        f'({escaped(row["measure"])}). <a href="{address}">Figure</a></small>'
    )


def verdicts_body(
    claims: pd.DataFrame | None, numbers: pd.DataFrame | None, chosen: Mapping[str, Chosen], pages: Mapping[str, str]
) -> str:
    """One number for each claim, then how all rows fell, then every claim with its value, interval and origin.

    Args:
        claims: from `gather`; None where nothing is published.
        numbers: from `primary`; None where no claim was chosen.
        chosen: from `read_chosen`.
        pages: the page of each notebook, by its number.
    """
    parts = ["<h1>What held up?</h1>"]
    if numbers is not None:
        parts.append(heading("One number for each claim", name="numbers"))
        parts.append("<p>Each claim is decided by one number, named before the run that measures it. P-values")
        parts.append(f" are adjusted by Holm's method over all rows.</p>{primary_table(numbers, chosen)}")
    parts.append(heading("How all rows fell", name="rows"))
    parts.append("<p>Counted are rows: one for each way to draw networks, each explainer, each definition.")
    parts.append(f" A claim is <i>mixed</i> where its rows differ.</p>{verdict_table(claims)}")
    if claims is not None:
        parts.append(heading("Every claim", name="claims"))
        selects = {
            "verdict": VERDICTS.values(),
            "data": sorted(set(claims["dataset"])),
            "notebook": sorted(set(claims["notebook"])),
        }
        parts.append(controls("claims", "every", selects))
        heads = ("name", "statement", "data", "value", "interval", "verdict", "source", "from")
        parts.append('<table class="claims sortable" id="every"><thead>')
        parts.append(f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead><tbody>")
        parts += [_claim_row(row, pages) for row in claims.to_dict("records")]
        parts.append("</tbody></table>")
    return "".join(parts)


def _claim_row(row: Mapping[Any, Any], pages: Mapping[str, str]) -> str:
    number, interval = row["notebook"], _interval(row)
    name = f"{number}-{row['row']}"
    interval += f"<br><small>{escaped(row['note'])}</small>" if interval else ""
    origin = f'<a href="{pages.get(number, "index.html")}">{number}</a>, '
    origin += f'<a href="figures/full/{number}_claims.csv">row {row["row"]}</a>'
    order = {"value": row["value"], "low": row["low"]}
    keys = {key: f' data-order="{value}"' if pd.notna(value) else ' data-order=""' for key, value in order.items()}
    cells = [f'<td><a href="#{name}">{name}</a></td>']
    claim = f"<b>{escaped(row['claim'])}</b>: " if row["claim"] != name else ""
    cells.append(f"<td>{claim}{escaped(row['statement'])}</td><td>{escaped(row['dataset'])}</td>")
    cells.append(
        f"<td{keys['value']}>{_value(row) if pd.notna(row['value']) else ''}</td><td{keys['low']}>{interval}</td>"
    )
    cells.append(
        f'<td class="{row["verdict"]}">{row["verdict"]}</td><td>{escaped(row["source"])}</td><td>{origin}</td>'
    )
    data = f'data-verdict="{row["verdict"]}" data-data="{escaped(row["dataset"])}" data-notebook="{number}"'
    return f'<tr id="{name}" {data}>{"".join(cells)}</tr>'
