"""Published claims follow from their published rows, by code that shares nothing with the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recomputing

from xuqlib.study import intervals
from xuqlib.study.record import ROOT, Notebook, parquet_bytes

STREAM = np.random.default_rng(5)
ONE = pd.Series(STREAM.normal(0.3, 1, 40))
GRID = pd.DataFrame(
    {
        "seed": np.repeat(range(4), 25),
        "example": np.tile(range(25), 4),
        "class": np.tile(["a", "b", "c", "d", "e"], 20),
        "value": STREAM.normal(0.5, 1, 100),
        "other": STREAM.normal(0.5, 1, 100),
    }
)
FIRST = GRID[GRID["seed"] == 0]
ESTIMATES = {
    "mean": lambda: intervals.mean_of_examples(ONE),
    "difference": lambda: intervals.mean_of_examples(ONE, against=ONE[:15] - 0.4),
    "trainings": lambda: intervals.mean_of_trainings(ONE[:5]),
    "one training": lambda: intervals.mean_of_trainings(ONE[:1]),
    "alike trainings": lambda: intervals.mean_of_trainings([0.5, 0.5, 0.5]),
    "both": lambda: intervals.clustered(GRID[GRID["value"] < 1.5], "value", num_resamples=60, seed=3),
    "centres": lambda: intervals.mean_of_centres(GRID, "value"),
    "share": lambda: intervals.wilson(0.7, 30),
    "rank correlation": lambda: intervals.rank_correlation(FIRST["value"], FIRST["other"], num_resamples=60),
    "beyond": lambda: intervals.rank_correlation(
        ONE[:30].to_numpy(), ONE[10:].to_numpy(), given=ONE[5:35].to_numpy(), num_resamples=60
    ),
    "class gap": lambda: intervals.class_gap(FIRST, "value", "c", num_resamples=60),
    "a factor": lambda: intervals.class_gap(FIRST, "value", "c", num_resamples=60).exp(),
    "class means": lambda: intervals.class_correlation(FIRST, "value", "other", num_resamples=60),
    "all": lambda: intervals.correlation(FIRST, "value", "other", num_resamples=60, seed=2),
    "within": lambda: intervals.correlation(FIRST, "value", "other", within=True, num_resamples=60),
}


@pytest.fixture
def figures(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XUQ_FIGURES", str(tmp_path))
    return tmp_path / "quick"


def published(figures: Path, *estimates: intervals.Estimate, **test: object) -> Path:
    study = Notebook("50", preset="quick", seed=0, dataset="planted")
    for estimate in estimates:
        study.judge("a number is large", estimate, **test)
    study.claims()
    return figures


@pytest.mark.parametrize("test", [{"above": 0.1}, {"between": (-0.2, 0.9)}], ids=["above", "between"])
@pytest.mark.parametrize("name", ESTIMATES)
def test_every_rule_gives_the_same_from_the_rows(name, test, figures):
    published(figures, ESTIMATES[name](), **test)
    assert list(recomputing.faults(figures, "50")) == []
    row = pd.read_csv(figures / "50_claims.csv").iloc[0]
    assert row["rows"] == "50_rows.parquet, claim 1" and row["rule"]


def test_every_rule_of_the_second_code_is_tried():
    tried = {estimate().rule.removeprefix("exp of ").split(" (")[0] for estimate in ESTIMATES.values()}
    assert tried == set(recomputing.RULES)


def _wrong_sign(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(value=rows["value"].where(rows.index != 3, -rows["value"]))


def _another_training(rows: pd.DataFrame) -> pd.DataFrame:
    swapped = rows["seed"].map({0: 1, 1: 0}).fillna(rows["seed"]).astype(int)
    return rows.assign(seed=rows["seed"].where(rows["example"] != 4, swapped))


def _twice(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([rows, rows.iloc[[7]]], ignore_index=True)


def _copied(rows: pd.DataFrame) -> pd.DataFrame:
    copy = rows.iloc[[7]].assign(example=999)
    return pd.concat([rows, copy], ignore_index=True)


@pytest.mark.parametrize("change", [_wrong_sign, _another_training, _twice, _copied])
def test_a_planted_fault_is_named(change, figures):
    published(figures, ESTIMATES["both"](), above=0)
    path = figures / "50_rows.parquet"
    path.write_bytes(parquet_bytes(change(pd.read_parquet(path))))
    assert list(recomputing.faults(figures, "50"))


@pytest.mark.parametrize("change", [("verdict", "fails"), ("value", 0.9), ("high", 9.0), ("n", 41), ("seeds", 3)])
def test_a_changed_table_is_named(change, figures):
    published(figures, ESTIMATES["both" if change[0] == "seeds" else "mean"](), above=0)
    path, (column, value) = figures / "50_claims.csv", change
    pd.read_csv(path).assign(**{column: value}).to_csv(path, index=False)
    assert list(recomputing.faults(figures, "50"))


def test_a_check_is_no_claim_and_has_no_rows(figures):
    study = Notebook("50", preset="quick", seed=0, dataset="planted")
    study.check("one is one", True, value=1.0)
    study.claim("a claim by hand", None, value=0.5)
    study.claims()
    table = pd.read_csv(figures / "50_claims.csv", keep_default_na=False)
    assert table["kind"].tolist() == ["check", "claim"] and table["rows"].tolist() == ["", ""]
    assert not (figures / "50_rows.parquet").exists()


NOTEBOOKS = [
    (preset, path.name[:2])
    for preset in ("quick", "full")
    for path in sorted((ROOT / "figures" / preset).glob("[0-9][0-9]_claims.csv"))
]


@pytest.mark.parametrize(("preset", "notebook"), NOTEBOOKS, ids="-".join)
def test_published_claims_follow_from_their_rows(preset, notebook):
    assert list(recomputing.faults(ROOT / "figures" / preset, notebook)) == []
