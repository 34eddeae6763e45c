"""Claims that one number decides, chosen beforehand: p-values, Holm's adjustment, and the smallest effect."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from xuqlib.study.files import ROOT
from xuqlib.study.intervals import Estimate, mean_of_examples, mean_of_trainings
from xuqlib.study.record import CLAIM_COLUMNS, Notebook
from xuqlib.study.verdicts import (
    OWN_CLAIMS,
    PAPER_CLAIMS,
    SECOND_CLAIMS,
    SUITE_CLAIMS,
    Chosen,
    gather,
    holm,
    primary,
    read_chosen,
)

ENTRY = Chosen("a is larger", "this study", "50", "a is above b", ("planted",), "a - b", "examples", 0.1)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x .01, then 2 x .03, then at least that
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    for wrong in ([], [0.5, 1.5], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="p is "):
            holm(wrong)


def test_holm_keeps_its_promise_where_nothing_is_true():
    stream = np.random.default_rng(0)
    wrong = [(holm(stream.uniform(size=8)) < 0.05).any() for _ in range(2000)]
    assert np.mean(wrong) < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def claims(tmp_path, monkeypatch, *judged: tuple[Estimate, dict[str, object]]) -> pd.DataFrame:
    monkeypatch.setenv("XUQ_FIGURES", str(tmp_path))
    study = Notebook("50", preset="quick", seed=0, dataset="planted")
    for number, (estimate, told) in enumerate(judged):
        told = {"statement": f"claim {number}", **told}
        study.judge(told.pop("statement"), estimate, **told)
    study.claims()
    return gather(tmp_path / "quick")


@pytest.mark.parametrize(
    ("shift", "verdict", "why"),
    [(1.0, "holds", ""), (-1.0, "fails", "the opposite"), (0.03, "fails", "smaller than what matters"),
     (0.09, "undecided", "")],
)  # fmt: skip
def test_a_verdict_needs_evidence(shift, verdict, why, tmp_path, monkeypatch):
    values = shift + 0.2 * np.tile([-1.0, 1.0], 200)  # standard error 0.01
    table = claims(tmp_path, monkeypatch, (mean_of_examples(values), {"statement": ENTRY.row}))
    if shift == 0.09:  # an interval of 0.07 to 0.11 does not tell it from the smallest effect, 0.1; p does from 0
        (row,) = primary(table, {"A": ENTRY}).itertuples()
        assert row.verdict == "holds"
        table = claims(
            tmp_path, monkeypatch, (mean_of_examples(0.09 + 10 * (values - shift)), {"statement": ENTRY.row})
        )
    (row,) = primary(table, {"A": ENTRY}).itertuples()
    assert (row.verdict, row.why, row.scope) == (verdict, why, "this training")


def test_p_values_are_those_of_the_tests_that_the_intervals_belong_to(tmp_path, monkeypatch):
    stream = np.random.default_rng(3)
    trainings, examples = stream.normal(0.5, 1, 6), stream.normal(0.1, 1, 400)
    table = claims(
        tmp_path,
        monkeypatch,
        (mean_of_trainings(trainings), {"statement": "t"}),
        (mean_of_examples(examples), {"statement": "z"}),
        (replace(mean_of_examples(examples).exp()), {"statement": "factor", "above": 1}),
        (mean_of_examples(examples), {"statement": "inside", "between": (-0.5, 0.5)}),
    )
    one = [primary(table, {"A": replace(ENTRY, row=name)})["p"].iloc[0] for name in ("t", "z", "factor", "inside")]
    z = examples.mean() / stats.sem(examples)
    tost = stats.norm.sf((0.5 - abs(examples.mean())) / stats.sem(examples))
    wanted = [stats.ttest_1samp(trainings, 0).pvalue, 2 * stats.norm.sf(abs(z)), 2 * stats.norm.sf(abs(z)), tost]
    assert one == pytest.approx(wanted, rel=1e-3)
    entries = {name: replace(ENTRY, row=name) for name in ("t", "z", "factor")}
    assert primary(table, entries)["p"].to_numpy() == pytest.approx(holm(wanted[:3]), rel=1e-3)


def test_a_rule_without_a_bound_keeps_its_verdict_and_spends_no_test(tmp_path, monkeypatch):
    values = 1 + np.tile([-1.0, 1.0], 50)
    table = claims(tmp_path, monkeypatch, (mean_of_examples(values), {"statement": "a"}), (Estimate(2.0), {}))
    table.loc[1, ["test", "verdict"]] = ["first place depends on the data", "undecided"]
    found = primary(table, {"A": replace(ENTRY, row="a"), "B": replace(ENTRY, row="claim 1")})
    assert found["verdict"].tolist() == ["holds", "undecided"] and found["p"].isna().tolist() == [False, True]
    assert found["why"].tolist() == ["", "by a rule of its own"]


def test_what_was_not_measured_is_told_and_no_test_is_spent_on_it(tmp_path, monkeypatch):
    values = 1 + np.tile([-1.0, 1.0], 50)
    table = claims(tmp_path, monkeypatch, (mean_of_examples(values), {"statement": ENTRY.row}))
    found = primary(table, {"A": replace(ENTRY, datasets=("planted", "mnist"))})
    assert found["verdict"].tolist() == ["holds", "not measured"]
    assert primary(table, {"A": replace(ENTRY, row="another")})["verdict"].tolist() == ["not measured"]
    twice = pd.concat([table, table], ignore_index=True)
    with pytest.raises(ValueError, match="A: notebook 50 has 2 rows"):
        primary(twice, {"A": ENTRY})


@pytest.mark.parametrize(
    ("text", "message"),
    [("A: {says: x}", "A has says; wanted datasets"), ("smallest: 0", "smallest effect of A is 0.0; pass a number")],
)
def test_a_faulty_entry_is_named(text, message, tmp_path):
    path = tmp_path / "claims.yaml"
    whole = "{says: x, source: y, notebook: '50', row: r, datasets: [planted], measure: m, unit: u, smallest: 0}"
    path.write_text(text if text.startswith("A") else f"A: {whole}")
    with pytest.raises(ValueError, match=message):
        read_chosen(path)


def test_a_table_of_a_former_version_has_neither_tests_nor_rows(tmp_path):
    row = dict.fromkeys(CLAIM_COLUMNS[:-4], "") | {"claim": "C1", "verdict": "holds", "value": 1.0}
    pd.DataFrame([row]).to_csv(tmp_path / "50_claims.csv", index=False)
    table = gather(tmp_path)
    assert table[["kind", "test", "rule", "rows"]].to_numpy().tolist() == [["claim", "", "", ""]]


def test_each_claim_that_is_no_algebra_has_its_number():
    chosen = read_chosen()
    stated = {*PAPER_CLAIMS, *SECOND_CLAIMS, *OWN_CLAIMS, *SUITE_CLAIMS}
    assert {name.split()[0] for name in chosen} == stated - {"U1"}
    assert all(entry.unit and entry.measure and entry.says for entry in chosen.values())


def test_a_number_stands_among_the_rows_of_its_notebook():
    """Of the quick runs, whose data sets are others: statements are compared without their data, classes and sizes."""
    quick = gather(ROOT / "figures" / "quick")
    for name, entry in read_chosen().items():
        known = {_bare(each) for each in quick.loc[quick["notebook"] == entry.notebook, "statement"]}
        told = entry.row.startswith(("generative:", "mnist,"))  # the clock runs in the full run alone; other sizes
        assert told or _bare(entry.row) in known, name


def _bare(statement: str) -> str:
    return re.sub(
        r"PGD \d+|\d+ pictures, |(of|of class) (deer|saltire|stripes)|^(gradient|integrated_gradients), mc_dropout_all",
        "",
        statement,
    )
