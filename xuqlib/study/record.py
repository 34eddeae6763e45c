"""The study's own bookkeeping: paths, claims, and the recipe of every published result.

Only notebooks write results, and they all do it here: a figure, the numbers that were plotted, and one entry in
`index.json` saying how they were made. Nothing in this module knows about networks or explanations.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xuqlib.device import device
from xuqlib.study.checked import Amount, Count, Finite, Interval, Place, Seed, Table, checked
from xuqlib.study.files import (
    ROOT,
    DamagedError,
    figures_folder,
    read_index,
    read_published,
    replace_file,
    update_index,
    versions,
)
from xuqlib.study.runs import PUBLISHED_RUN

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image, Markdown
    from matplotlib.figure import Figure

    from xuqlib.study.intervals import Estimate

VERDICTS = {True: "holds", False: "fails", None: "undecided"}
CLAIM_COLUMNS = (
    *("claim", "statement", "dataset", "value", "low", "high", "unit"),
    *("n", "seeds", "verdict", "source", "note", "kind", "test", "rule", "rows"),
)
SHOWN_COLUMNS = ("claim", "statement", "value", "low", "high", "unit", "verdict", "note")


ROWS_COLUMNS = ("claim", "seed", "example", "group", "variable", "value")


def _device_name() -> str:
    return str(device())


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """The frame as the study's CSV: no index, six significant digits, `\\n` line ends; the same bytes on every run."""
    plain = frame.copy()
    for column in plain.columns[[kind.kind == "f" for kind in plain.dtypes]]:
        plain[column] = plain[column] + 0.0  # -0.0 would print as "-0"
    return plain.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """The frame as a Parquet file: float32, whole numbers of four bytes, and texts as dictionaries."""
    kinds = {"f": "float32", "i": "int32", "b": "int32", "O": "category"}
    small = frame.astype({name: kinds.get(dtype.kind, "category") for name, dtype in frame.dtypes.items()})
    buffer = io.BytesIO()
    small.to_parquet(buffer, index=False, compression="zstd")
    return buffer.getvalue()


@checked
def save(
    figure: Figure | None,
    frame: Table,
    name: str,
    *,
    notebook: str,
    preset: str,
    seed: Seed,
    dataset: str,
    dataset_digest: str,
    posterior: str,
    device: str | None = None,
    seconds: Amount | None = None,
    folder: Path | None = None,
    rows: pd.DataFrame | None = None,
) -> None:
    """Publish a figure with its numbers and its recipe: `NN_name.png`, `NN_name.csv` and an entry in `index.json`.

    Each file is written whole or not at all, and several notebooks may save at once.

    Args:
        figure: what was drawn; None publishes the numbers alone.
        frame: exactly the frame that was plotted, one observation per row.
        name: a few words in lower case joined by underscores; the files are called after notebook and name.
        notebook: its two-digit number.
        preset: "quick" or "full"; decides the folder.
        seed: the notebook's seed.
        dataset: the name that `load` knows.
        dataset_digest: digest of the examples used.
        posterior: name of the posterior, or of several.
        device: where it was computed; `device()` by default.
        seconds: time it took, in seconds.
        folder: where to write; that of the preset by default.
        rows: what the frame rests on, published as `NN_rows.parquet`.

    Raises:
        ValueError: name, notebook or preset is malformed, or the frame has no row.
    """
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
        raise ValueError(f"figure name {name!r} should be lower-case words joined by underscores, such as 'std_error'")
    _check_number(notebook)
    if frame.empty:
        raise ValueError(f"the frame of figure {name!r} has no row; pass the frame that was plotted")
    own, stem = figures_folder(preset), f"{notebook}_{name}"
    folder = own if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{stem}.csv": csv_bytes(frame)}
    if figure is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})  # no version, so no idle changes
        files[f"{stem}.png"] = buffer.getvalue()
    if rows is not None:
        files[f"{notebook}_rows.parquet"] = parquet_bytes(rows)
    for file, content in files.items():
        replace_file(folder / file, content)
    recipe = {
        "notebook": notebook,
        "preset": preset,
        "seed": seed,
        "dataset": dataset,
        "dataset_digest": dataset_digest,
        "posterior": posterior,
        "versions": versions(),
        "device": device or _device_name(),
        "seconds": None if seconds is None else round(seconds, 1),
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in sorted(files.items())},
    }
    if figure is not None and figure.get_suptitle():
        recipe["title"] = " ".join(figure.get_suptitle().split())  # what the picture says, for those who do not see it
    update_index(folder, {stem: recipe})


def _check_number(notebook: str) -> None:
    if not re.fullmatch("[0-9]{2}", notebook):
        raise ValueError(f"notebook {notebook!r} should be its two-digit number, such as '04'")


@checked
class Notebook:
    """A running notebook: its number, preset, seed and data, the results it publishes and the claims it makes.

    Every notebook begins with `study = Notebook("04", preset=preset, seed=seed)`, shows and publishes with
    `study.save(...)`, and ends with `study.claims()`. Pandas then shows words whole, and up to a hundred rows.
    Results of data of a reader's own go to a `folder` of their own, and nothing published is shown beside them.
    """

    def __init__(
        self,
        number: str,
        *,
        preset: str,
        seed: Seed,
        dataset: str = "",
        dataset_digest: str = "",
        posterior: str = "",
        folder: Path | None = None,
    ) -> None:
        import pandas as pd

        _check_number(number)
        figures_folder(preset)  # an unknown preset stops here, before the work
        pd.set_option("display.max_colwidth", None, "display.max_rows", 100)
        self.number, self.preset, self.seed, self.folder = number, preset, seed, folder
        self.dataset, self.dataset_digest, self.posterior = dataset, dataset_digest, posterior
        self._start = time.monotonic()
        self._claims: list[dict[str, object]] = []
        self._rows: list[pd.DataFrame] = []

    @checked
    def save(
        self,
        figure: Figure,
        frame: Table,
        slug: str,
        *,
        dataset: str | None = None,
        dataset_digest: str | None = None,
        posterior: str | None = None,
    ) -> Figure:
        """Publish a figure as `NN_slug`, and return it so that the cell shows it.

        Args:
            figure: what was drawn.
            frame: exactly the frame that was plotted.
            slug: a few words joined by underscores.
            dataset, dataset_digest, posterior: where this figure departs from the notebook's own.
        """
        self._publish(figure, frame, slug, dataset=dataset, dataset_digest=dataset_digest, posterior=posterior)
        return figure

    @checked
    def claim(
        self,
        statement: str,
        holds: bool | None,
        *,
        value: float,
        interval: Interval | None = None,
        unit: str = "",
        note: str = "",
        claim: str = "",
        dataset: str | None = None,
        n: Place | None = None,
        seeds: Count = 1,
        source: str = "this study",
        estimate: Estimate | None = None,
        test: str = "",
    ) -> None:
        """Add a claim, its measured value and its verdict to the notebook's closing table.

        Args:
            statement: the claim, in words that can be wrong.
            holds: computed from the values, never typed; None where they do not decide it.
            value: the number that the verdict rests on.
            interval: its low and high end.
            unit: unit of value and interval.
            note: what the interval is of ("95 % over examples"); required with an interval.
            claim: short name, such as "C1"; the notebook's number and a count by default.
            dataset: what it was measured on; the notebook's own by default.
            n: examples behind the value.
            seeds: independent trainings behind the value.
            source: who claims it: an arXiv id and section, or this study.
            estimate: what value and verdict rest on: its rows and its rule are published.
            test: by which the verdict follows from them, such as "above 0".

        Raises:
            TypeError: the estimate is none.
            ValueError: the interval is not (low, high), or comes without a note.
        """
        from xuqlib.study.intervals import Estimate

        if not isinstance(estimate, Estimate | None):
            raise TypeError(
                f"claim {statement!r} rests on a {type(estimate).__name__}; pass an Estimate, as from intervals"
            )
        low, high = (float("nan"), float("nan")) if interval is None else (float(end) for end in interval)
        if low > high:
            raise ValueError(f"interval of {statement!r} is ({low}, {high}); pass its low end first")
        if interval is not None and not note:
            raise ValueError(
                f"interval of {statement!r} needs a note saying what it is of, such as '95 % over examples'"
            )
        name, data = claim or f"{self.number}-{len(self._claims) + 1}", self.dataset if dataset is None else dataset
        verdict = VERDICTS[None if holds is None else bool(holds)]
        values = (name, statement, data, float(value), low, high, unit, n, seeds, verdict, source, note)
        rows = None if estimate is None else estimate.rows
        place = f"{self.number}_rows.parquet, claim {len(self._claims) + 1}" if rows is not None else ""
        told = ("claim", test, estimate.rule if estimate else "", place)
        self._claims.append(dict(zip(CLAIM_COLUMNS, (*values, *told), strict=True)))
        if rows is not None:
            self._rows.append(_long(rows).assign(claim=len(self._claims)))

    @checked
    def check(self, statement: str, holds: bool, **told: Any) -> None:
        """Add a check to the closing table: an identity, or that a program does what it should. It is no finding.

        Args:
            statement, holds: as for `claim`.
            **told: further arguments of `claim`; the value is needed.
        """
        self.claim(statement, holds, **told)
        self._claims[-1]["kind"] = "check"

    @checked
    def judge(
        self,
        statement: str,
        estimate: Estimate,
        *,
        above: Finite | None = None,
        between: Interval | None = None,
        unit: str = "",
        claim: str = "",
        dataset: str | None = None,
        source: str = "this study",
        note: str | None = None,
        n: Place | None = None,
        seeds: Count | None = None,
    ) -> None:
        """Add a claim that an estimate lies above a bound, or between two; undecided where its interval does not say.

        Args:
            statement: the claim, in words that can be wrong.
            estimate: from `xuqlib.study.intervals`, which says what its interval is of.
            above: it holds where the whole interval lies above, and fails where none of it does; 0 by default.
            between: it holds where the whole interval lies inside, and fails where none of it does.
            unit, claim, dataset, source: as for `claim`.
            note, n, seeds: replace what the estimate says of its interval, examples and trainings.

        Raises:
            TypeError: the estimate is none.
            ValueError: both `above` and `between` are given; a bound is NaN, or the two are turned round.
        """
        from xuqlib.study.intervals import Estimate

        if not isinstance(estimate, Estimate):
            raise TypeError(
                f"claim {statement!r} rests on a {type(estimate).__name__}; pass an Estimate, as from intervals"
            )
        if between is not None and above is not None:
            raise ValueError(f"claim {statement!r} has two rules; pass above=, or between=")
        bounds = (0.0 if above is None else above,) if between is None else between
        if any(map(math.isnan, bounds)) or list(bounds) != sorted(bounds):
            raise ValueError(f"claim {statement!r} is judged by {bounds}; pass numbers, the lower bound first")
        holds = estimate.above(above or 0.0) if between is None else estimate.between(*between)
        ends = (estimate.low, estimate.high)
        self.claim(
            statement,
            holds,
            value=estimate.value,
            interval=None if all(map(math.isnan, ends)) else ends,
            unit=unit,
            note=estimate.of if note is None else note,
            claim=claim,
            dataset=dataset,
            n=estimate.n if n is None else n,
            seeds=estimate.seeds if seeds is None else seeds,
            source=source,
            estimate=estimate,
            test=f"above {bounds[0]:g}" if between is None else f"from {bounds[0]:g} to {bounds[1]:g}",
        )

    def claims(self) -> pd.DataFrame:
        """Publish the claims as `NN_claims.csv`, failed ones like any others, and return the columns to read.

        The rows that they rest on go to `NN_rows.parquet`: columns claim (its row in that table, from 1), seed (of a
        training), example, group, variable and value.
        """
        import pandas as pd

        if not self._claims:
            raise ValueError(f"notebook {self.number} has made no claim; call claim(...) first")
        frame = pd.DataFrame(self._claims, columns=list(CLAIM_COLUMNS)).astype({"n": "Int64"})
        rows = pd.concat(self._rows)[list(ROWS_COLUMNS)] if self._rows else None
        self._publish(None, frame, "claims", rows=rows)
        return frame[list(SHOWN_COLUMNS)]

    @checked
    def published(self, slug: str) -> Image | Markdown:
        """This notebook's published full figure, or a line saying that there is none.

        It is read from the repository's `figures/full`, wherever this run writes its own. A stored notebook holds a
        link to it, by the metadata "published". The cell should be tagged `nbval-ignore-output`: what it shows changes
        when a full run is published.
        """
        import PIL.Image
        import PIL.ImageDraw
        import PIL.ImageOps
        from IPython.display import Image, Markdown

        path = ROOT / "figures" / "full" / f"{self.number}_{slug}.png"
        if self.folder is not None:
            return Markdown("*These are results of data of your own: nothing is published to compare them with.*")
        if not path.exists():
            return Markdown(f"*Not published yet: `figures/full/{path.name}`; `run_all.py --preset full` makes it.*")
        try:
            content = read_published(path)
        except DamagedError as error:
            return Markdown(f"*Not shown: {str(error).replace(f'{ROOT}/', '')}.*")
        with PIL.Image.open(io.BytesIO(content)) as picture:
            whole = PIL.ImageOps.expand(picture.convert("RGB"), (0, 44, 0, 0), fill="white")  # room for a line
        PIL.ImageDraw.Draw(whole).text((12, 8), PUBLISHED_RUN, "#555555", font_size=24)
        buffer = io.BytesIO()
        whole.save(buffer, format="png")
        title = read_index(path.parent).get(path.stem, {}).get("title", slug.replace("_", " "))
        return Image(data=buffer.getvalue(), metadata={"published": {"file": path.name, "title": title}})

    def _publish(self, figure: Figure | None, frame: pd.DataFrame, slug: str, **recipe: Any) -> None:
        own: dict[str, Any] = {name: getattr(self, name) for name in ("dataset", "dataset_digest", "posterior")}
        own.update({name: value for name, value in recipe.items() if value is not None})
        seconds = time.monotonic() - self._start
        own |= {"notebook": self.number, "preset": self.preset, "seed": self.seed, "folder": self.folder}
        save(figure, frame, slug, seconds=seconds, **own)


def _long(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of an estimate, a number in each: columns of `ROWS_COLUMNS` but the claim; order is kept."""
    import pandas as pd

    keys: dict[str, Any] = {"seed": 0, "example": 0, "group": ""}
    whole = rows.assign(**{name: value for name, value in keys.items() if name not in rows})
    for name in ("seed", "example"):
        if whole[name].dtype.kind != "i":
            whole[name] = pd.factorize(whole[name])[0]
    parts = {str(name): whole[name] for name in whole if name not in keys}
    each = [whole[list(keys)].assign(variable=name, value=values.astype(float)) for name, values in parts.items()]
    return pd.concat(each, ignore_index=True)
