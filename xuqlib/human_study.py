"""What people see in maps: pairs to choose between, answers kept in one file, and what the answers say together.

The file (SQLite) holds the pairs, with the very pictures that people see, and every answer in the order in which it
came. Nothing in it is changed or removed: an answer taken back, or given again, is one more row, and the last counts.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import ipywidgets
import matplotlib as mpl
import numpy as np
import pandas as pd
import PIL.Image
from scipy.stats import norm, rankdata
from torch import Tensor

from xuqlib.checks import check_choice
from xuqlib.data import Examples
from xuqlib.figures import COLOURS, HIDDEN, flat_map
from xuqlib.study import csv_bytes, replace_file

QUESTION = "Which map explains the network's answer better?"
CHOICES, UNDONE = ("left", "right", "cannot say"), "undone"
LEVELS = ("nominal", "ordinal", "interval")
OVER_PAIRS, NO_ANSWERS = "95 % over pairs", "no answers yet"
MARK = (0x78757150, 1)  # SQLite's application_id and user_version: what the file is, and the version of its tables
TABLES = (
    "CREATE TABLE pairs (id TEXT PRIMARY KEY, example INTEGER, first TEXT, second TEXT, caption TEXT, facts TEXT,"
    " picture BLOB, first_map BLOB, second_map BLOB)",
    "CREATE TABLE answers (id INTEGER PRIMARY KEY, rater TEXT NOT NULL, pair TEXT NOT NULL REFERENCES pairs,"
    " showing INTEGER NOT NULL, choice TEXT NOT NULL, at TEXT NOT NULL, seconds REAL)",
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


def _hash(*words: object) -> bytes:
    return hashlib.sha256("|".join(map(str, words)).encode()).digest()  # chance that is the same on every machine


def _png(pixels: np.ndarray) -> bytes:
    """Colours (height, width, 3) of any size as a picture about 256 pixels wide, without smoothing."""
    picture, buffer = PIL.Image.fromarray(pixels), io.BytesIO()
    factor = max(1, 256 // max(picture.size))
    picture.resize((picture.width * factor, picture.height * factor), PIL.Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def _map_png(values: Tensor, kind: str) -> bytes:
    flat = flat_map(values, kind)
    size = np.abs(flat[np.isfinite(flat)])
    limit = (float(np.quantile(size, 0.995)) or float(size.max()) or 1.0) if size.size else 1.0
    share = flat / limit / 2 + 0.5 if kind == "signed" else flat / limit
    colours = mpl.colormaps.get_cmap(COLOURS[kind]).with_extremes(bad="#d0d0d0")
    return _png(colours(np.ma.masked_invalid(share), bytes=True)[..., :3])


def pairs_of(
    examples: Examples,
    maps: Mapping[str, Tensor],
    facts: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    captions: Sequence[str],
    kinds: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[Pair]:
    """Every two maps of each example. Each map has its own colour scale, as maps of unlike units must.

    Which of the two is called first is left to chance, so that guessing agrees half of the time, whatever the taste.

    Args:
        examples: pictures; those of `figures.HIDDEN` data sets are left out of the pairs, and their maps stay.
        maps: name of each map to its values, (N, C, H, W) or (N, H, W).
        facts: name of each metric to one number per example, of each map.
        captions: what is said above each example, such as the network's answer.
        kinds: of each map, as in `figures.map_grid`; "signed" by default.
        seed: of the choice which map is first.

    Raises:
        ValueError: fewer than two maps, maps or captions for other examples, or a metric without one of the maps.
    """
    lengths = sorted({len(examples), len(captions), *map(len, maps.values())})
    if len(maps) < 2 or len(lengths) > 1 or any(set(of) != set(maps) for of in facts.values()):
        raise ValueError(
            f"{len(maps)} maps ({', '.join(maps)}), captions and examples number {lengths}, metrics are "
            f"{', '.join(facts)}; pass two maps or more, each with every metric, for the same examples"
        )
    pairs = []
    for i, (row, x) in enumerate(zip(examples.index.tolist(), examples.x, strict=True)):
        pixels = (x.clamp(0, 1) * 255).byte().permute(1, 2, 0).expand(-1, -1, 3).numpy()
        picture = None if examples.name in HIDDEN else _png(np.ascontiguousarray(pixels))
        drawn = {name: _map_png(values[i], (kinds or {}).get(name, "signed")) for name, values in maps.items()}
        for two in combinations(sorted(maps), 2):
            name = f"{examples.name} {row}: {two[0]} or {two[1]}"
            a, b = two if _hash(seed, name)[0] % 2 else two[::-1]
            values = {metric: (float(of[a][i]), float(of[b][i])) for metric, of in facts.items()}
            pairs.append(Pair(name, row, a, b, captions[i], values, picture, drawn[a], drawn[b]))
    return pairs


class PairStudy:
    """A study in a file: gives each rater one pair after the other, and keeps every answer at once.

    It may be killed at any moment and opened again, also by several programs at a time. Each rater meets the pairs in
    an order of his own, with sides left to chance, and goes on where he stopped. A share of the pairs comes a second
    time at the end, with sides swapped.

    Args:
        path: the file; it is made if there is none.
        pairs: needed to begin; later they have to be the ones in the file, whose maps and facts are then used.
        repeats: share of pairs that come twice.

    Raises:
        ValueError: no file and no pairs, other pairs than in the file, or a file that is damaged or something else.
    """

    def __init__(self, path: str | Path, pairs: Sequence[Pair] = (), *, repeats: float = 0.1) -> None:
        self.path, self.repeats = Path(path), repeats
        if not pairs and not self.path.exists():
            raise ValueError(f"there is no study {self.path.name} yet; pass pairs to begin one")
        try:
            with self._open("IMMEDIATE" if pairs else "DEFERRED") as file:
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
    def _open(self, how: str) -> Iterator[sqlite3.Connection]:
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

    def queue(self, rater: str) -> list[Showing]:
        """Everything that this rater is asked, in order; the same whenever it is called."""
        order = sorted(self.pairs.values(), key=lambda pair: _hash(rater, pair.id))
        again = order[: round(self.repeats * len(order))]
        sides = {pair.id: bool(_hash(rater, pair.id, "side")[0] % 2) for pair in order}
        return [Showing(p, 1, sides[p.id]) for p in order] + [Showing(p, 2, not sides[p.id]) for p in again]

    def next(self, rater: str) -> Showing | None:
        """The first that this rater has not answered; None when all is done."""
        done = {row[1:3] for row in self._counted() if row[0] == rater}
        return next((each for each in self.queue(rater) if (each.pair.id, each.showing) not in done), None)

    def answer(self, rater: str, shown: Showing, choice: str, seconds: float | None = None) -> None:
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
        self._add(rater, shown.pair.id, shown.showing, choice, seconds)

    def undo(self, rater: str) -> bool:
        """Take back this rater's last answer, so that it is asked again. Returns whether there was one."""
        own = [row for row in self._counted() if row[0] == rater]
        if own:
            self._add(rater, own[-1][1], own[-1][2], UNDONE, None)
        return bool(own)

    def _add(self, rater: str, pair: str, showing: int, choice: str, seconds: float | None) -> None:
        row = (rater, pair, showing, choice, datetime.now(UTC).isoformat(timespec="milliseconds"), seconds)
        with self._open("IMMEDIATE") as file:
            file.execute("INSERT INTO answers VALUES (NULL, ?, ?, ?, ?, ?, ?)", row)

    def _counted(self) -> list[tuple[Any, ...]]:
        last = "SELECT max(id) FROM answers GROUP BY rater, pair, showing"
        what = "SELECT rater, pair, showing, choice, at, seconds FROM answers"
        with self._open("DEFERRED") as file:
            return file.execute(f"{what} WHERE id IN ({last}) AND choice != ? ORDER BY id", (UNDONE,)).fetchall()

    def answers(self) -> pd.DataFrame:
        """The answers that count, one per row, in the order in which they came.

        Returns:
            Columns rater, pair, example, showing, first, second, choice, prefers_first (1, 0, or 0.5 for "cannot say"),
            left (the map that was there), at (UTC), seconds; and `metric`_first, `metric`_second of each metric.
        """
        return self._frame(self._counted())

    def _frame(self, rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
        head = ["rater", "pair", "example", "showing", "first", "second", "choice", "prefers_first", "left"]
        metrics = list(next(iter(self.pairs.values())).facts)
        table = []
        sides = {rater: {each[1:]: None for each in ()} for rater in ()}
        return pd.DataFrame(table, columns=[*head, "at", "seconds", *metrics, *sides])
