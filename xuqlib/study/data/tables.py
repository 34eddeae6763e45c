"""Tables: numbers as they are, and each category of a column in a column of its own."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xuqlib.study.data.download import DataError, Folder, Layout, known_file, locate
from xuqlib.study.data.readers import Raw, frozen

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"
ADULT_CATEGORIES = (
    *("workclass", "education", "marital_status", "occupation", "relationship", "race", "sex"),
    "native_country",
)
ADULT_COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship"),
    *("race", "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income"),
)
CREDIT_COLUMNS = (
    *("checking_status", "duration", "credit_history", "purpose", "credit_amount", "savings", "employment"),
    *("installment_rate", "personal_status", "other_debtors", "residence_since", "property", "age"),
    *("other_installment_plans", "housing", "existing_credits", "job", "num_dependents", "telephone"),
    *("foreign_worker", "risk"),
)
CREDIT_CATEGORIES = (
    *("checking_status", "credit_history", "purpose", "savings", "employment", "personal_status", "other_debtors"),
    *("property", "other_installment_plans", "housing", "job", "telephone", "foreign_worker"),
)
BIKE_CATEGORIES = ("season", "mnth", "hr", "weekday", "weathersit")


def adult(part: str, data: Folder = None) -> Raw:
    """Adult: does a person of the census of 1994 earn more than 50,000 dollars a year? An unknown is a category."""
    # A category that only the test part shows has no column.
    train = _adult_table("train", data)
    values = {column: sorted(set(train[column])) for column in ADULT_CATEGORIES}
    table = _adult_table(part, data)
    x, names, groups = _columns(table.drop(columns="income"), ADULT_CATEGORIES, values)
    return _labelled(x, table["income"] == ">50K", ("at most 50,000", "more than 50,000"), names, groups)


def _adult_table(part: str, data: Folder) -> pd.DataFrame:
    name, published = f"tables/adult_{part}.csv", f"{UCI}/adult/adult.{'data' if part == 'train' else 'test'}"
    layouts = (
        Layout("csv", (known_file(f"{name}.gz"),)),
        Layout("csv", (known_file(name, published, plain_adult),)),
    )
    return _table(locate(layouts, data, "Adult (Census Income) is needed").paths)


def german_credit(part: str, data: Folder = None) -> Raw:
    """German credit: 1,000 loans, good or bad; the categories keep their codes (A11 ...)."""
    file = known_file("tables/german_credit.csv", f"{UCI}/statlog/german/german.data", plain_credit)
    table = _table(locate((Layout("csv", (file,)),), data, "German credit (Statlog) is needed").paths)
    x, names, groups = _columns(table.drop(columns="risk"), CREDIT_CATEGORIES)
    return _labelled(x, table["risk"] == 2, ("good", "bad"), names, groups)


def wine_quality(part: str, data: Folder = None) -> Raw:
    """Wine quality: the grade of red and white wines from eleven measurements. Of equal rows the first is kept."""
    kinds = ("red", "white")
    published = tuple(
        known_file(f"tables/wine_{kind}.csv", f"{UCI}/wine-quality/winequality-{kind}.csv", plain_wine)
        for kind in kinds
    )
    layouts = (Layout("csv", (known_file("tables/wine_quality.csv"),)), Layout("pair", published))
    paths = locate(layouts, data, "Wine quality is needed").paths
    table = _table(paths)
    if len(paths) > 1:
        colour = pd.Series(np.repeat(kinds, [len(_table((path,))) for path in paths]), name="type")
        table = pd.concat([colour, table], axis=1)
    table = table.drop_duplicates()  # a wine that is in training and in test would be known
    x, names, groups = _columns(table.drop(columns="quality"), ("type",))
    return Raw(x, frozen(table["quality"].to_numpy(np.float64)), feature_names=names, feature_groups=groups)


def bike_sharing(part: str, data: Folder = None) -> Raw:
    """Bike sharing: how many bicycles are rented in each hour of two years."""
    published = known_file("tables/bike_hour.csv", f"{UCI}/00275/Bike-Sharing-Dataset.zip", unzip_bikes)
    layouts = (Layout("csv", (known_file("tables/bike_hour.csv.gz"),)), Layout("csv", (published,)))
    table = _table(locate(layouts, data, "Bike sharing is needed").paths)
    # The count is casual + registered, and the date is told by the other columns.
    known = table.drop(columns=["instant", "dteday", "casual", "registered", "cnt"])
    x, names, groups = _columns(known, BIKE_CATEGORIES)
    return Raw(x, frozen(table["cnt"].to_numpy(np.float64)), feature_names=names, feature_groups=groups)


def _labelled(x: np.ndarray, is_second: Any, class_names: tuple[str, ...], names: Any, groups: Any) -> Raw:
    y = frozen(np.asarray(is_second).astype(np.int64))
    return Raw(x, y, class_names=class_names, feature_names=names, feature_groups=groups)


@cache
def _table(paths: tuple[Path, ...]) -> pd.DataFrame:
    return pd.concat([pd.read_csv(path, keep_default_na=False) for path in paths], ignore_index=True)


def _columns(
    table: pd.DataFrame, categories: Iterable[str], values: dict[str, list[Any]] | None = None
) -> tuple[np.ndarray, tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Give every category a column of 0 and 1.

    Returns:
        The numbers, float64 (N, F); the name of each of the F columns; and which of them belong to which column of
        the table.
    """
    columns: list[np.ndarray] = []
    names: list[str] = []
    groups: dict[str, tuple[int, ...]] = {}
    for column in table.columns:
        first = len(names)
        if column in categories:
            known = values[column] if values else sorted(set(table[column]))
            columns += [(table[column] == value).to_numpy(np.float64) for value in known]
            names += [f"{column} = {value}" for value in known]
        else:
            columns.append(table[column].to_numpy(np.float64))
            names.append(column)
        groups[column] = tuple(range(first, len(names)))
    return frozen(np.column_stack(columns)), tuple(names), groups


def _rewritten(rewrite: Callable[[str], Iterable[str]]) -> Callable[[Path], None]:
    """Return a function that rewrites a text file in place, line by line."""

    def convert(path: Path) -> None:
        try:
            lines = list(rewrite(path.read_text(encoding="latin-1")))
        except ValueError as error:
            raise DataError(f"the file fetched is not the table ({error}); nothing was kept") from error
        path.write_text("".join(f"{line}\n" for line in lines), encoding="latin-1", newline="\n")

    return convert


def _adult_lines(text: str) -> Iterable[str]:
    yield ",".join(ADULT_COLUMNS)
    for line in text.splitlines():
        if line.strip() and not line.startswith("|"):  # the test file opens with a remark, and its labels end in a stop
            yield line.strip().removesuffix(".").replace(", ", ",")


def _credit_lines(text: str) -> Iterable[str]:
    yield ",".join(CREDIT_COLUMNS)
    yield from (",".join(line.split()) for line in text.splitlines() if line.strip())


def _wine_lines(text: str) -> Iterable[str]:
    head, *rows = text.splitlines()
    yield head.replace('"', "").replace(";", ",")
    # Copies write the same number in more than one way.
    yield from (",".join(format(float(value), ".15g") for value in row.split(";")) for row in rows if row.strip())


plain_adult, plain_credit, plain_wine = map(_rewritten, (_adult_lines, _credit_lines, _wine_lines))


def unzip_bikes(path: Path) -> None:
    """Put the table of hours in place of the archive that holds it."""
    try:
        with zipfile.ZipFile(path) as archive:
            body = archive.read("hour.csv")
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"the file fetched for bike sharing is no archive with hour.csv ({error})") from error
    lines = [line for line in body.decode().splitlines() if line]
    path.write_text("".join(f"{line}\n" for line in lines), newline="\n")
