"""Every claim is found again, counted right, and shown."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from figure_layout import layout_problems

from xuqlib.study.files import ROOT
from xuqlib.study.record import CLAIM_COLUMNS, Notebook
from xuqlib.study.verdicts import (
    FOUND,
    MARKS,
    about,
    found,
    gather,
    markdown_table,
    primary,
    read_chosen,
    tally,
    verdict_bars,
    verdict_grid,
    with_findings,
    with_table,
)


@pytest.fixture
def published(figures):
    """Two notebooks' claims; the folder that holds them."""
    for number, dataset, verdicts in (("05", "planted", [True, False]), ("06", "digits", [None, True, True])):
        study = Notebook(number, preset="quick", seed=0, dataset=dataset)
        for place, holds in enumerate(verdicts):
            study.claim(f"statement {place}", holds, value=place, claim=f"C{10 if place == 2 else 2}", n=7)
        study.claims()
    return figures / "quick"


def test_a_gathered_claim_names_the_row_of_the_file_that_it_came_from(published):
    claims = gather(published)
    assert list(claims) == ["notebook", "row", *CLAIM_COLUMNS]
    for row in claims.to_dict("records"):
        source = pd.read_csv(published / f"{row['notebook']}_claims.csv").iloc[row["row"] - 1]
        assert (source["statement"], source["verdict"]) == (row["statement"], row["verdict"])
    assert claims["n"].tolist() == [7] * 5


def test_verdicts_are_counted_per_claim_and_data_set(published):
    counts = tally(gather(published))
    assert counts["claim"].tolist() == ["C2", "C2", "C10"]  # by number, not by letter
    rows = {(row["claim"], row["dataset"]): row for row in counts.to_dict("records")}
    assert [rows["C2", "planted"][key] for key in ("holds", "fails", "undecided", "rows")] == [1, 1, 0, 2]
    assert rows["C2", "planted"]["verdict"] == "mixed"
    assert rows["C2", "digits"]["verdict"] == "mixed"  # one row holds, one is undecided
    assert rows["C10", "digits"]["verdict"] == "holds"


def test_the_table_for_readers_says_what_was_not_measured(published):
    table = markdown_table(gather(published), {"C2": "two", "C3": "three"})
    assert "| C2: two | digits: 1 holds, 1 undecided; planted: 1 holds, 1 fails | 05, 06 |" in table
    assert "| C3: three | not measured |  |" in table


def test_parts_of_a_claim_have_rows_of_their_own(published):
    claims = gather(published)
    claims.loc[claims["notebook"] == "05", "claim"] = "C2 deletion"
    claims.loc[3, "claim"] = "C2, other"
    lines = markdown_table(claims, {"C2": "two", "C3": "three"}).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [
        "C2: two",
        "C2 deletion: two",
        "C2, other: two",
        "C3: three",
    ]
    assert about(claims, ["C2"])["claim"].tolist() == ["C2 deletion"] * 2 + ["C2", "C2, other"]
    assert about(claims, ["C1"]).empty  # C10 is no part of it
    axes = verdict_grid(tally(claims), {"C2": "two"}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["C2: two", "C2 deletion: two", "C2, other: two"]


def test_each_claim_and_data_set_has_one_field_in_the_figure(published):
    axes = verdict_grid(tally(gather(published)), {"C2": "two", "C10": "ten"}).axes[0]
    assert len(axes.patches) == 3
    assert sorted(text.get_text() for text in axes.texts) == ["holds\n1/0/0", "mixed\n1/0/1", "mixed\n1/1/0"]


def test_long_claims_about_many_data_sets_can_be_read_on_a_laptop(published):
    counts = tally(gather(published)).iloc[:1]
    names = ["california_housing", "cifar10", "fer_plus", "planted", "trec", "diabetes", "digits", "mnist", "several"]
    counts = pd.concat([counts.assign(dataset=name, verdict="undecided") for name in names])
    long = {"C2": "intervals calibrated on a few trainings " * 5, "C10": "one factor, fitted on a few networks " * 3}
    counts = pd.concat([counts.assign(claim=claim) for claim in long])
    assert layout_problems(verdict_grid(counts, long, title="What held up")) == []


def test_rows_about_several_data_sets_stand_last(published):
    counts = (
        tally(gather(published)).replace({"dataset": {"digits": "several"}}).sort_values("dataset", ascending=False)
    )
    axes = verdict_grid(counts, {"C2": "two"}).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["planted", "several"]


def test_the_bars_of_a_notebook_add_up_to_its_claims(published):
    axes = verdict_bars(gather(published)).axes[0]
    widths = {box.get_label(): [bar.get_width() for bar in box] for box in axes.containers}
    assert widths == {"holds": [1, 2], "undecided": [0, 1], "fails": [1, 0]}
    assert [bar.get_x() for bar in axes.containers[2]] == [1, 3]


def test_the_table_of_claims_leaves_out_what_is_said_about_it(published):
    (published / "14_claims.csv").write_text("no table at all")
    assert set(gather(published)["notebook"]) == {"05", "06"}


def test_the_table_is_put_between_the_marks_and_nothing_else_changes(published):
    claims = gather(published)
    old = f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n"
    new = with_table(old, claims)
    assert new == f"before\n{MARKS[0]}\n\n{markdown_table(claims)}\n\n{MARKS[1]}\nafter\n"
    assert with_table(new, claims) == new
    assert with_table("no marks", claims) == "no marks"


def test_the_readme_shows_the_published_verdicts():
    text = (ROOT / "README.md").read_text()
    assert MARKS[0] in text
    assert with_table(text, gather()) == text, "run `run_all.py --preset full --only 14`, which writes the table"


def test_findings_are_those_decided_numbers_with_what_each_rests_on():
    claims, chosen = gather(), read_chosen()
    numbers = primary(claims, chosen)
    text = with_findings(f"before\n{FOUND[0]}\nold\n{FOUND[1]}\nafter\n", numbers, claims, chosen)
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    rows = found(numbers, claims, chosen)
    assert len(lines) == len(rows) == 10 and text.startswith("before\n") and text.endswith(f"{FOUND[1]}\nafter\n")
    for line, row in zip(lines, rows, strict=True):
        published = claims[(claims["notebook"] == row["notebook"]) & (claims["statement"] == chosen[row["claim"]].row)]
        (one,) = published[published["dataset"] == row["dataset"]].to_dict("records")
        assert row["verdict"] in ("holds", "fails") and line.startswith(f"- **{row['verdict']}**")
        assert f"{one['value']:.3g}" in line and f"({one['low']:.3g} to {one['high']:.3g})" in line
        assert f"n = {one['n']}, {one['seeds']} training" in line
        for link in re.findall(r"\]\(([^)]+)\)", line):
            assert (ROOT / link).is_file()
    assert len({row["claim"] for row in rows}) >= len(rows) - 1  # as many claims as there are
    assert with_findings("no marks", numbers, claims, chosen) == "no marks"


def test_the_readme_tells_what_is_found_today():
    text, claims, chosen = (ROOT / "README.md").read_text(), gather(), read_chosen()
    assert FOUND[0] in text
    fresh = with_findings(text, primary(claims, chosen), claims, chosen)
    assert fresh == text, "run `run_all.py --preset full --only 14`, which writes them"


@pytest.mark.parametrize(
    ("text", "message"), [("claim,value\na,1\n", "04_claims.csv is no table"), (None, "no NN_claims.csv")]
)
def test_a_foreign_table_and_an_empty_folder_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "04_claims.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        gather(tmp_path)
