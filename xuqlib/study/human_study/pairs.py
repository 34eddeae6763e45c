"""Pairs of maps and what people answered about them, kept in one file that no accident spoils.

The file (SQLite) holds the pairs, with the very pictures that people see, and every answer in the order in which it
came. Nothing in it is changed or removed: an answer taken back, or given again, is one more row, and the last counts.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from xuqlib.checks import check_choice
from xuqlib.study.checked import Amount, Count, Seed, Share, checked
from xuqlib.study.files import replace_file
from xuqlib.study.record import csv_bytes

CHOICES, UNDONE = ("left", "right", "cannot say"), "undone"
MARK = (0x78757150, 1)  # SQLite's application_id and user_version: what the file is, and the version of its tables
TABLES = (
    "CREATE TABLE pairs (id TEXT PRIMARY KEY, example INTEGER, first TEXT, second TEXT, caption TEXT, facts TEXT,"
    " picture BLOB, first_map BLOB, second_map BLOB)",
    "CREATE TABLE answers (id INTEGER PRIMARY KEY, rater TEXT NOT NULL, pair TEXT NOT NULL REFERENCES pairs,"
    " showing INTEGER NOT NULL, flipped INTEGER NOT NULL, choice TEXT NOT NULL, at TEXT NOT NULL, seconds REAL)",
)


class Pair(NamedTuple):
    """Two maps of one example, with names that raters do not see, and facts: metric to (of first, of second)."""

    id: str
    example: int
    first: str
    second: str
    caption: str
    facts: Mapping[str, Sequence[float]]
    picture: bytes | None  # PNG; None where pictures of the data set may not be kept
    first_map: bytes
    second_map: bytes


class Showing(NamedTuple):
    """A pair as one rater sees it: for the 1st or the 2nd time, and whether its second map is on the left."""

    pair: Pair
    showing: int
    flipped: bool


def chance(*words: object) -> bytes:
    """Bytes that look random, and are the same for the same words on every machine."""
    return hashlib.sha256("|".join(map(str, words)).encode()).digest()


@checked
class PairStudy:
    """A study in a file: gives each rater one pair after the other, and keeps every answer at once.

    It may be killed at any moment and opened again, also by several programs at a time. Each rater meets the pairs in
    another order, with sides left to chance, and may stop and go on later. A share of the pairs comes a second time at
    the end, with sides swapped.

    Args:
        path: the file; it is made if there is none.
        pairs: needed to begin; later they have to be the ones in the file, whose maps and facts are then used.
        repeats: share of pairs that come twice.

    Raises:
        ValueError: no file and no pairs, other pairs than in the file, or a file that is damaged or something else.
    """

    def __init__(self, path: str | Path, pairs: Sequence[Pair] = (), *, repeats: Share = 0.1) -> None:
        self.path, self.repeats = Path(path), repeats
        if not pairs and not self.path.exists():
            raise ValueError(f"there is no study {self.path.name} yet; pass pairs to begin one")
        try:
            with self._file("IMMEDIATE" if pairs else "DEFERRED") as file:
                if pairs and not file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    self._begin(file, pairs)
                mark = tuple(file.execute(f"PRAGMA {of}").fetchone()[0] for of in ("application_id", "user_version"))
                if mark != MARK or file.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                    raise sqlite3.DatabaseError("it holds something else, or only a part, or is of another version")
                rows = file.execute("SELECT * FROM pairs ORDER BY rowid").fetchall()
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path.name} cannot be read as a study ({error}); name another file") from error
        kept = [Pair(*row)._replace(facts=json.loads(row[5])) for row in rows]
        self.pairs = {pair.id: pair for pair in kept}
        if pairs and [pair[:4] for pair in pairs] != [pair[:4] for pair in kept]:
            raise ValueError(f"{self.path.name} was begun with other pairs; name another file, or pass none")

    @contextmanager
    def _file(self, how: str) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as file:
            file.execute("PRAGMA foreign_keys = ON")
            file.execute(f"BEGIN {how}")
            with file:  # all of it or nothing
                yield file

    def _begin(self, file: sqlite3.Connection, pairs: Sequence[Pair]) -> None:
        for statement in (*TABLES, f"PRAGMA application_id = {MARK[0]}", f"PRAGMA user_version = {MARK[1]}"):
            file.execute(statement)
        rows = [pair._replace(facts=json.dumps(pair.facts)) for pair in pairs]  # type: ignore[arg-type]
        file.executemany(f"INSERT INTO pairs VALUES ({', '.join('?' * len(Pair._fields))})", rows)

    @checked
    def queue(self, rater: str) -> list[Showing]:
        """Everything that this rater is asked, in order; the same whenever it is called."""
        order = sorted(self.pairs.values(), key=lambda pair: chance(rater, pair.id))
        again = order[: round(self.repeats * len(order))]
        sides = {pair.id: bool(chance(rater, pair.id, "side")[0] % 2) for pair in order}
        return [Showing(p, 1, sides[p.id]) for p in order] + [Showing(p, 2, not sides[p.id]) for p in again]

    @checked
    def next(self, rater: str) -> Showing | None:
        """The first that this rater has not answered; None when all is done."""
        return next(iter(self._waiting(rater)), None)

    @checked
    def progress(self, rater: str) -> tuple[int, int]:
        """How many this rater has answered, and of how many."""
        total = len(self.queue(rater))
        return total - len(self._waiting(rater)), total

    def _waiting(self, rater: str) -> list[Showing]:
        done = {row[1:3] for row in self._counted() if row[0] == rater}
        return [each for each in self.queue(rater) if (each.pair.id, each.showing) not in done]

    @checked
    def answer(self, rater: str, shown: Showing, choice: str, seconds: Amount | None = None) -> None:
        """Keep one answer; it is in the file when this returns.

        Args:
            rater: a name that the rater will use again.
            shown: as `next` gave it.
            choice: "left", "right" or "cannot say".
            seconds: how long the rater looked, in seconds.

        Raises:
            ValueError: an unknown choice or pair, or a rater without a name or with that of a simulated one.
        """
        check_choice(choice, CHOICES, "choice")
        if not rater.strip() or rater.startswith("simulated") or shown.pair.id not in self.pairs:
            raise ValueError(f"answer of {rater!r} to {shown.pair.id!r}: pass a person's name and a pair of this study")
        self._add(rater, shown.pair.id, shown.showing, shown.flipped, choice, seconds)

    @checked
    def undo(self, rater: str) -> bool:
        """Take back this rater's last answer, so that it is asked again. Returns whether there was one."""
        own = [row for row in self._counted() if row[0] == rater]
        if own:
            self._add(*own[-1][:4], UNDONE, None)
        return bool(own)

    def _add(self, *row: Any) -> None:
        *what, seconds = row
        with self._file("IMMEDIATE") as file:
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            file.execute("INSERT INTO answers VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", (*what, at, seconds))

    def _counted(self) -> list[tuple[Any, ...]]:
        last = "SELECT max(id) FROM answers GROUP BY rater, pair, showing"
        what = "SELECT rater, pair, showing, flipped, choice, at, seconds FROM answers"
        with self._file("DEFERRED") as file:
            return file.execute(f"{what} WHERE id IN ({last}) AND choice != ? ORDER BY id", (UNDONE,)).fetchall()

    def answers(self) -> pd.DataFrame:
        """The answers that count, one per row, in the order in which they came.

        Returns:
            Columns rater, pair, example, first, second, showing (1, or 2 for the repeat), left (the map there),
            choice, prefers_first (1, 0, or 0.5 for "cannot say"), at (UTC), seconds; and `metric`_first and
            `metric`_second of each metric.
        """
        return self._frame(self._counted())

    def _frame(self, rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
        columns = ["rater", "pair", "example", "first", "second", "showing", "left", "choice", "prefers_first"]
        metrics = next(iter(self.pairs.values())).facts
        columns += ["at", "seconds", *(f"{metric}_{which}" for metric in metrics for which in ("first", "second"))]
        table = []
        for rater, name, showing, flipped, choice, at, seconds in rows:
            pair = self.pairs[name]
            likes = 0.5 if choice == CHOICES[2] else float((choice == CHOICES[0]) != bool(flipped))
            facts = [value for metric in metrics for value in pair.facts[metric]]
            left = pair.second if flipped else pair.first
            table.append([rater, name, *pair[1:4], showing, left, choice, likes, at, seconds, *facts])
        return pd.DataFrame(table, columns=columns)

    @checked
    def export(self, path: str | Path) -> None:
        """Write `answers` as CSV, whole or not at all; without answers, only its first line."""
        replace_file(Path(path), csv_bytes(self.answers()))

    @checked
    def simulated(
        self, num_raters: Count, metric: str, *, accuracy: Share, silent: Share = 0.0, seed: Seed
    ) -> pd.DataFrame:
        """What `answers` would be if each rater chose the map with more of `metric`; nothing is put into the file.

        Args:
            num_raters: how many raters there are, called "simulated 1" and so on.
            metric: of the pairs' facts.
            accuracy: chance of choosing that map and not the other.
            silent: chance of "cannot say".
            seed: of the raters' chance.
        """
        check_choice(metric, next(iter(self.pairs.values())).facts, "metric")
        generator, rows = np.random.default_rng(seed), []
        for rater in (f"simulated {number + 1}" for number in range(num_raters)):
            for pair, showing, flipped in self.queue(rater):
                right, speaks = generator.random() < accuracy, generator.random() >= silent
                first = (pair.facts[metric][0] > pair.facts[metric][1]) == right
                choice = CHOICES[int(first == flipped)] if speaks else CHOICES[2]
                rows.append((rater, pair.id, showing, flipped, choice, "", float("nan")))
        return self._frame(rows)
