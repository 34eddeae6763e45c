"""Run the notebooks of the study, several at a time, and keep what is whole.

    run_all.py                              the quick preset: minutes, embedded data
    run_all.py --preset full --data FOLDER  real data
    run_all.py --only 00,04 -p seed=1       two notebooks with another seed; their results go to build/custom/
    run_all.py --retrain                    train anew and compare the scores with the published ones
    run_all.py --scheduler tcp://host:8786  on the workers of a Dask cluster, which all see this folder
    run_all.py --site                       build/site: notebooks, figures and verdicts as pages; open its index.html
    run_all.py --address URL                say where this repository lies: its badges and citation are written anew
    run_all.py --class                      build/class: a student's and a teacher's edition of the notebooks

A notebook runs again only when it, the library, its parameters, the published checkpoints or the versions of the
packages have changed, or a file that it wrote has gone. A run may be interrupted at any moment: every file is written
whole or not at all, and a notebook counts as done only when everything it leaves is in place. Of two runs that would
write to the same folder, the second stops.
"""

from __future__ import annotations

import argparse
import ast
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock, Timeout

from xuqlib.study import editions, files, runs
from xuqlib.study.runs import PLACEHOLDER, read_notebook

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
WIDGET = "application/vnd.jupyter.widget-view+json"  # names a model that lives no longer than its kernel
SITE = Path("build") / "site"
CLASS = Path("build") / "class"
READY = Path("build") / "ready"  # what the site shows and no notebook does
STORED_LIMIT = 300_000  # bytes of a stored notebook
MOST_JOBS = 64
HEARTBEAT = 30.0  # seconds without news after which a run tells what it is doing
CHOOSER = re.compile(r"\bexplore\w*\(")  # a cell that shows a chooser of xuqlib.study.figures.choosers
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m")
# A disk that is full, or that may not be written: no fault of a notebook's, and none that the next one would not meet.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def stop(message: str) -> NoReturn:
    """End the run before it has begun, with the exit code of a wrong command line."""
    print(message, file=sys.stderr)
    sys.exit(2)


def give_up(error: OSError) -> NoReturn:
    """End a run whose results cannot be written, without waiting for its notebooks."""
    told = f"{error.filename} cannot be written: {error.strerror}\n"
    sys.stderr.write(told + "make room there, or have it writable, and run the same again: what is whole is kept\n")
    sys.stderr.flush()
    os._exit(2)  # their kernels end when this process has gone


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it, no other run writes to this folder of copies. Stops where one does; a dead run holds nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".run.lock"), folder / ".run.txt"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        whose = holder.read_text() if holder.exists() else "it has just begun"
        stop(f"another run writes to {folder} ({whose}); wait until it ends, then run the same again")
    try:
        files.replace_file(holder, f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def remove_leftovers(args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Remove what runs that were killed had begun to write, here and among the checkpoints."""
    from xuqlib.study.training.checkpoints import folders

    places = {args.project, args.project / "notebooks", args.site, *folders()}
    places |= {place for folder in folders() for place in folder.glob("*/")}
    for job in jobs:
        places |= {job.copies, job.figures, *job.copies.glob("*.parts")}
        for begun in job.copies.glob("*.tmp.ipynb"):
            begun.unlink()
    for place in places - {None}:
        files.remove_temporaries(place)


@dataclass(frozen=True)
class Job:
    """One notebook with its parameters, and where its results go."""

    source: Path
    parameters: Mapping[str, object]
    copies: Path  # folder of executed copies
    figures: Path  # folder of this preset's figures
    key: str  # digest of everything that the result depends on

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def number(self) -> str:
        return self.name[:2]

    def path(self, suffix: str) -> Path:
        return self.copies / f"{self.name}{suffix}"

    @property
    def kernels(self) -> Path:
        """How to reach the kernels of this run, each with its key."""
        return self.copies.resolve() / "kernels"

    @property
    def parts(self) -> Path:
        """What a notebook of exactly this job has measured so far; see `xuqlib.study.resuming`."""
        return self.path(f".{self.key[:16]}.parts").resolve()


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tags(cell: Mapping[str, Any]) -> list[str]:
    found: list[str] = cell.get("metadata", {}).get("tags", [])
    return found


def sources(notebook: Mapping[str, Any]) -> list[list[object]]:
    """What a notebook's result depends on: type, tags and text of each cell, and not its outputs."""
    cells = [cell for cell in notebook["cells"] if "injected-parameters" not in tags(cell)]
    return [[cell["cell_type"], sorted(tags(cell)), "".join(cell["source"])] for cell in cells]


def known_parameters(path: Path) -> dict[str, str]:
    """Names in the cell tagged `parameters`, each with its stored value as written.

    Raises:
        DamagedError: no notebook, or one without such a cell, or with something else than Python in it.
    """
    cells = [cell for cell in read_notebook(path)["cells"] if "parameters" in tags(cell)]
    if len(cells) != 1:
        told = f"{path} has {len(cells)} cells tagged 'parameters'; it should have one: restore the notebook"
        raise files.DamagedError(told)
    found = {}
    try:
        lines = ast.parse("".join(cells[0]["source"])).body
    except (SyntaxError, ValueError) as error:  # null bytes are another error
        told = f"{path} is damaged: its parameters are no Python ({error}); restore the notebook"
        raise files.DamagedError(told) from None
    for line in lines:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            found[line.targets[0].id] = ast.unparse(line.value)
        elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            found[line.target.id] = ast.unparse(line.value)
    return found


def choose(notebooks: Path, only: str | None) -> list[Path]:
    """The notebooks asked for, by number or name, in order; all of them without `only`."""
    known = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not known:
        stop(f"no notebook NN_name.ipynb in {notebooks}")
    if only is None:
        return known
    wanted = [word.strip() for word in only.split(",") if word.strip()]
    unknown = [word for word in wanted if not any(word in (path.stem, path.stem[:2]) for path in known)]
    if unknown or not wanted:
        names = ", ".join(path.stem for path in known)
        stop(f"notebook {', '.join(unknown) or '(none given)'} is not known; known are {names}")
    return [path for path in known if path.stem in wanted or path.stem[:2] in wanted]


def readable(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The notebooks asked for that can be read, and what is wrong with the others."""
    found, problems = [], []
    for path in choose(args.project / "notebooks", args.only):
        try:
            known_parameters(path)
        except files.DamagedError as error:
            problems.append(str(error))
        else:
            found.append(path)
    return found, problems


def tell(problems: Sequence[str]) -> int:
    """Print what is damaged; return how much."""
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    sys.stderr.flush()
    return len(problems)


def record_problems(records: Sequence[Path]) -> list[str]:
    """Which of these records of notebooks' last runs are damaged."""
    found = []
    for path in records:
        try:
            runs.read_record(path)
        except files.DamagedError as error:
            found.append(str(error))
    return found


def overrides(words: Sequence[str]) -> dict[str, object]:
    """Parameters given as name=value on the command line; values are YAML, so 3 is a number and [0, 1] a list."""
    import yaml

    found: dict[str, object] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name.isidentifier():
            stop(f"parameter {word!r} should read name=value")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            stop(f"parameter {word!r} has no value that YAML can read ({' '.join(str(error).split())})")
    return found


def environment_key(project: Path) -> str:
    """Digest of the library, the published checkpoints' manifests, the package versions and the chosen device."""
    code = [*(project / "xuqlib").rglob("*.py"), *(project / "xuqlib").rglob("*.pyi")]
    found = sorted([*code, *(project / "checkpoints").rglob("*.json")])
    parts = [[str(file.relative_to(project)), digest(file)] for file in found]
    return hashlib.sha256(json.dumps([parts, files.versions(), os.environ.get("XUQ_DEVICE")]).encode()).hexdigest()


def sizes(args: argparse.Namespace, number: str) -> dict[str, object]:
    """What the preset puts into a notebook's parameters. Stops where that cannot be read."""
    try:
        return runs.parameters(args.preset, number, args.project)
    except runs.SizesError as error:
        stop(str(error))


def plan(args: argparse.Namespace) -> list[Job]:
    """The jobs of this run: of those notebooks asked for that can be read.

    Stops on the first notebook or parameter that is not known, before anything has run.
    """
    project, given = args.project, overrides([*args.parameter, *args.parameters])
    branch = "retrained" if args.retrain else "custom" if given else "stills" if args.site else ""
    build = project / "build" / branch
    figures = build / "figures" if branch else project / "figures"
    common = environment_key(project)
    jobs = []
    for source in readable(args)[0]:
        values = {**sizes(args, source.stem[:2]), **given}
        known = known_parameters(source)
        if unknown := sorted(set(values) - set(known)):
            stop(f"{source.name} has no parameter {', '.join(unknown)}; known are {', '.join(known)}")
        parts = [common, sources(read_notebook(source)), helpers_of(source), values, args.retrain]
        parts.append(read_results(project, source.stem[:2]))
        key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        jobs.append(Job(source, values, build / args.preset, figures / args.preset, key))
    return jobs


def helpers_of(source: Path) -> list[list[str]]:
    """The helpers that a notebook imports, and those that these import, each with its digest."""
    folder, found = source.parent / "helpers", dict[str, str]()
    waiting = ["".join(cell["source"]) for cell in read_notebook(source)["cells"] if cell["cell_type"] == "code"]
    while waiting:
        text = waiting.pop()
        imported = re.findall(r"^\s*(?:from|import)\s+helpers\b.*(?:\n\s.*)*", text, re.MULTILINE)
        for name in {word for line in imported for word in re.findall(r"\w+", line)} - set(found):
            if (path := folder / f"{name}.py").is_file():
                found[name] = digest(path)
                waiting.append(path.read_text(encoding="utf-8"))
    return [[name, found[name]] for name in sorted(found)]


def read_results(project: Path, number: str) -> list[list[str]]:
    """Published files that a notebook reads, its own aside, and their digests."""
    pattern = runs.READS.get(number, "")
    found = sorted((project / "figures").glob(pattern)) if pattern else []
    return [[file.name, digest(file)] for file in found if not file.name.startswith(number)]


def is_whole(job: Job) -> bool:
    """Whether an earlier run of exactly this job finished, and every file that it left is still what it was."""
    try:
        record = runs.read_record(job.path(".json"))
        recipes = files.whole_recipes(job.figures)
        return bool(
            record["key"] == job.key
            and digest(job.path(".ipynb")) == record["copy"]
            and all(digest(job.figures / name) == known for name, known in record["figures"].items())
            and all(recipes[stem]["sha256"] == known for stem, known in record["recipes"].items())
        )
    except (OSError, files.DamagedError, KeyError):
        return False  # missing, damaged, or not a record that this version wrote


def own_figures(job: Job) -> dict[str, int]:
    """When each file of this notebook in the figures folder was written."""
    return {path.name: path.stat().st_mtime_ns for path in job.figures.glob(f"{job.number}_*.*")}


def run(job: Job, *, force: bool) -> tuple[str, float]:
    """Run one notebook unless an earlier result is whole. Returns "ran", "cached" or "failed", and seconds."""
    start = time.monotonic()
    if not force and is_whole(job):
        return "cached", time.monotonic() - start
    job.copies.mkdir(parents=True, exist_ok=True)
    for suffix in (".failed.ipynb", ".error.txt"):
        job.path(suffix).unlink(missing_ok=True)
    for old in job.copies.glob(f"{job.name}.*.parts"):
        if force or old != job.parts:
            shutil.rmtree(old)
    try:
        before = own_figures(job)
        execute(job)
        keep(job, before, start)
        shutil.rmtree(job.parts, ignore_errors=True)
    except Exception as error:  # whatever happened to this notebook, the others go on
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            error.filename = error.filename or str(job.copies)
            raise
        told = "\n".join(getattr(error, "traceback", ())) or traceback.format_exc()
        told = COLOUR_CODES.sub("", told)
        files.replace_file(job.path(".error.txt"), told.encode())
        if job.path(".tmp.ipynb").exists():
            os.replace(job.path(".tmp.ipynb"), job.path(".failed.ipynb"))
        return "failed", time.monotonic() - start
    return "ran", time.monotonic() - start


def run_elsewhere(
    job: Job, environment: Mapping[str, str], versions: Mapping[str, str], *, force: bool
) -> tuple[str, float]:
    """`run`, by a worker of a cluster.

    Raises:
        RuntimeError: it has other versions, or does not see the project's folder.
    """
    from xuqlib.scale.cluster import check_versions

    check_versions(versions)
    if not job.source.exists():
        raise RuntimeError(f"this worker does not see {job.source}; all must share the project's folder")
    os.environ.pop("MPLBACKEND", None)
    os.environ.update(environment)
    return run(job, force=force)


def execute(job: Job) -> None:
    """Run the notebook in a kernel of its own, into a temporary copy."""
    # For seconds jsonschema would build a grammar of web addresses, to check some that no notebook holds.
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    import papermill  # takes seconds, and a run that finds everything cached does without
    from traitlets.config import Config

    job.kernels.mkdir(mode=0o700, exist_ok=True)
    # Notebooks run in threads of one process, which share its environment; this is set in one kernel alone.
    set_parts = f"__import__('os').environ['XUQ_PARTS'] = {str(job.parts)!r}"
    papermill.execute_notebook(
        job.source,
        job.path(".tmp.ipynb"),
        parameters=dict(job.parameters),
        kernel_name="python3",
        language="python",
        # For the kernel alone: papermill's cwd would move this whole process, and with it the kernels of other threads.
        resources={"metadata": {"path": str(job.source.parent)}},
        start_timeout=120,  # a kernel among several on a busy machine is slow to answer
        iopub_timeout=120,  # and to hand on what it has printed
        # At a lower level the kernel warns that loopback is not encrypted.
        extra_arguments=["--IPKernelApp.log_level=ERROR", f"--IPKernelApp.exec_lines={set_parts}"],
        progress_bar=False,
        config=Config(KernelManager={"connection_file": str(job.kernels / f"{job.name}.json")}),
    )


def keep(job: Job, before: Mapping[str, int], start: float) -> None:
    """Put the executed copy in place, drop figures that it no longer makes, and last write down that it is whole."""
    files.replace_file(job.path(".ipynb"), job.path(".tmp.ipynb").read_bytes())
    job.path(".tmp.ipynb").unlink()
    written = {name for name, when in own_figures(job).items() if before.get(name) != when}
    drop_stale_figures(job, set(before) - written)
    stems = {Path(name).stem for name in written}
    recipes = {stem: recipe["sha256"] for stem, recipe in files.whole_recipes(job.figures).items() if stem in stems}
    record = {
        "key": job.key,
        "copy": digest(job.path(".ipynb")),
        "figures": {name: digest(job.figures / name) for name in sorted(written)},
        "recipes": recipes,
        "parameters": job.parameters,
        "seconds": round(time.monotonic() - start, 1),
    }
    sealed = {**record, "sha256": files.seal(record)}
    files.replace_file(job.path(".json"), json.dumps(sealed, indent=1, default=str).encode())


def drop_stale_figures(job: Job, stale: set[str]) -> None:
    """Remove what an earlier version of this notebook published and this one does not."""
    if stale:
        files.update_index(job.figures, {Path(name).stem: None for name in stale if name.endswith(".csv")})
    for name in stale:
        (job.figures / name).unlink()


def cleaned(notebook: dict[str, Any]) -> dict[str, Any]:
    """A copy fit to be stored: outputs kept; widget state, timings, injected parameters and machine details dropped."""
    cells: list[dict[str, Any]] = []
    for cell in notebook["cells"]:
        if "injected-parameters" in tags(cell):
            continue
        kept = {**cell, "metadata": {"tags": tags(cell)} if tags(cell) else {}}
        if "solution" in tags(cell):
            kept["metadata"]["jupyter"] = dict(editions.FOLDED)
        if cell["cell_type"] == "code":
            kept["execution_count"] = 1 + sum(other["cell_type"] == "code" for other in cells)
            kept["outputs"] = [dict(output) for output in cell["outputs"]]
            for output in kept["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = kept["execution_count"]
                if WIDGET in output.get("data", {}):
                    output["data"] = {"text/plain": [PLACEHOLDER]}
                if linked := output.get("metadata", {}).get("image/png", {}).get("published"):
                    output |= {"data": {"text/markdown": link(**linked)}, "metadata": {}}
        cells.append(kept)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {**notebook, "cells": cells, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}


def link(file: str, title: str) -> list[str]:
    """A published figure in Markdown, as a stored notebook shows it: at its full size, from the file."""
    address, alternative = f"../figures/full/{file}", re.sub(r"[\[\]\n]", " ", title)
    return [f"{runs.PUBLISHED_RUN}\n", "\n", f"[![{alternative}]({address})]({address})"]


def store(job: Job) -> str:
    """Write the executed notebook's outputs back into the stored one. Returns what went wrong, if anything."""
    executed, stored = read_notebook(job.path(".ipynb")), read_notebook(job.source)
    if sources(executed) != sources(stored):
        return "not stored: the notebook was changed while it ran"
    content = (json.dumps(cleaned(executed), indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
    if len(content) > STORED_LIMIT:
        return f"not stored: {len(content):,} bytes is more than {STORED_LIMIT:,}; show fewer or smaller figures"
    files.replace_file(job.source, content)
    return ""


def compare(published: Path, retrained: Path, tolerances: Mapping[str, float]) -> str:
    """One line on a retrained table: does each score lie within its tolerance of the published one?"""
    import pandas as pd

    if not published.exists():
        return "not published, nothing to compare with"
    old, new = pd.read_csv(io.BytesIO(files.read_published(published))), pd.read_csv(retrained)
    scores = [column for column in tolerances if column in old]
    labels = [column for column in old if not pd.api.types.is_float_dtype(old[column])]
    if list(old) != list(new) or not old[labels].equals(new[labels]) or not scores:
        return "differs: other rows or columns than the published table"
    worst = {column: float((old[column] - new[column]).abs().max()) for column in scores}
    lost = any((old[column].isna() != new[column].isna()).any() for column in scores)
    agrees = not lost and all(not gap > tolerances[column] for column, gap in worst.items())
    told = ", ".join(f"{column} by {gap:.3g} (allowed {tolerances[column]:g})" for column, gap in worst.items())
    return f"{'agrees' if agrees else 'differs'}: {told}{'; a value is missing on one side' if lost else ''}"


def compare_retrained(jobs: Sequence[Job], project: Path) -> None:
    for job in jobs:
        for retrained in sorted(job.figures.glob(f"{job.number}_*.csv")):
            published = project / "figures" / job.figures.name / retrained.name
            if tolerances := runs.TOLERANCES.get(retrained.stem):
                print(f"retrained {retrained.stem}  {compare(published, retrained, tolerances)}")


def refresh_readme(project: Path) -> None:
    """Bring the README's table of verdicts up to what is published."""
    from xuqlib.study.verdicts import gather, primary, read_chosen, with_findings, with_table

    path, folder = project / "README.md", project / "figures" / "full"
    if not path.exists() or not list(folder.glob("*_claims.csv")):
        return
    text = path.read_text(encoding="utf-8")
    claims = gather(folder)
    fresh = with_table(text, claims)
    if (project / "notebooks" / "claims.yaml").exists():
        chosen = read_chosen(project / "notebooks" / "claims.yaml")
        fresh = with_findings(fresh, primary(claims, chosen), claims, chosen)
    if fresh != text:
        files.replace_file(path, fresh.encode())


def set_environment(args: argparse.Namespace, jobs: Sequence[Job], workers: int) -> None:
    """Settings that kernels inherit."""
    os.environ["XUQ_FIGURES"] = str(jobs[0].figures.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(args.project), os.environ.get("PYTHONPATH")]))
    os.environ["XUQ_SMALL"] = "1"  # a stored notebook is small, and published figures are whole in any case
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):  # as in many containers: each kernel would compile torch anew
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(args.project / "build" / "bytecode"))
    os.environ.pop("MPLBACKEND", None)  # an inherited backend would keep figures out of the notebook
    if args.data is not None:
        os.environ["XUQ_DATA"] = str(args.data.resolve())
    if args.retrain:
        os.environ["XUQ_RETRAIN"] = "1"
    for name in THREAD_SETTINGS:
        os.environ[name] = "1" if workers > 1 else str(cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def announce(jobs: Sequence[Job], args: argparse.Namespace, workers: int) -> None:
    """Say what will run and how long it may take."""
    todo = [job for job in jobs if args.force or not is_whole(job)]
    known = [runs.last_seconds(args.project, args.preset, job.name) for job in todo]
    strangers = known.count(None)
    time_needed = f"about {runs.in_words(runs.expected(known, workers))} if they take as long as last time"
    if strangers == len(todo):
        time_needed = "how long is not known"
    strange = f"; {strangers} {'has' if strangers == 1 else 'have'} never run here" if strangers else ""
    told = f"{time_needed}{strange}" if todo else "nothing to do"
    counted = f"{len(jobs)} notebook{'s' * (len(jobs) != 1)}, {len(jobs) - len(todo)} whole already, {len(todo)} to run"
    print(f"{args.preset} preset, {workers} at a time: {counted}; {told}", flush=True)


def run_jobs(jobs: Sequence[Job], args: argparse.Namespace, workers: int) -> int:
    """Run all jobs, tell of each as it ends and now and then what is running, and return how many failed."""
    remove_kernel_files(jobs)  # of a run that was killed
    if args.scheduler is None or not jobs:
        # threads suffice: each notebook's kernel is a process of its own
        return follow(jobs, args, ThreadPoolExecutor(workers), partial(run, force=args.force), ())
    from xuqlib.scale.cluster import connected
    from xuqlib.scale.store import needs

    inherited = ("XUQ_", "PYTHONPATH", *THREAD_SETTINGS)
    environment = {name: value for name, value in os.environ.items() if name.startswith(inherited)}
    try:
        cluster = connected(args.scheduler, workers)
    except (ConnectionError, ImportError) as error:
        stop(str(error))
    with cluster as client:
        if not client.scheduler_info()["workers"]:
            print(f"{args.scheduler} has no workers yet; the notebooks wait for some", flush=True)
        environment["XUQ_SCHEDULER"] = client.scheduler.address  # whose free workers help with long measurements
        task = partial(run_elsewhere, environment=environment, versions=files.versions(), force=args.force)
        lost = RuntimeError, CancelledError, needs("distributed").KilledWorker
        return follow(jobs, args, client.get_executor(pure=False), task, lost)


def follow(
    jobs: Sequence[Job],
    args: argparse.Namespace,
    pool: Executor,
    task: Callable[[Job], tuple[str, float]],
    lost: tuple[type[BaseException], ...],
) -> int:
    """Have a pool do the task of each job; see `run_jobs`. Where it is `lost` instead, its notebook has failed."""
    failures, width, start = 0, max((len(job.name) for job in jobs), default=0), time.monotonic()
    futures: dict[Future[tuple[str, float]], Job] = {pool.submit(task, job): job for job in jobs}
    left = set(futures)
    try:
        while left:
            ended, left = wait(left, timeout=HEARTBEAT, return_when=FIRST_COMPLETED)
            for future in ended:
                job = futures[future]
                try:
                    status, seconds = future.result()
                except lost as error:
                    status, seconds = "failed", time.monotonic() - start
                    files.replace_file(job.path(".error.txt"), f"{type(error).__name__}: {error}\n".encode())
                if status == "failed" and (told := job.path(".error.txt")).exists():  # a shared folder may be late
                    sys.stderr.write(f"\n{job.name} failed:\n{told.read_text('utf-8')}\n")
                problem = store(job) if args.store and status != "failed" else ""
                failures += status == "failed" or bool(problem)
                done = len(jobs) - len(left)
                print(f"[{done}/{len(jobs)}] {job.name:{width}}  {status:6} {seconds:7.1f} s  {problem}".rstrip())
            if not ended:
                running = [futures[future].name for future in futures if future.running()]
                waiting = "running" if running else "running or waiting for a worker"
                names = ", ".join(running or [futures[future].name for future in left])
                print(f"after {runs.in_words(time.monotonic() - start)}, {waiting}: {names}")
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; the next run goes on from what is whole", file=sys.stderr, flush=True)
        remove_kernel_files(jobs)
        os._exit(130)  # without waiting for the notebooks; their kernels end when this process has gone
    pool.shutdown()
    remove_kernel_files(jobs)
    return failures


def remove_kernel_files(jobs: Sequence[Job]) -> None:
    for folder in {job.kernels for job in jobs}:
        shutil.rmtree(folder, ignore_errors=True)


def close(shown: str, copies: str, failures: int) -> None:
    """Say where to look."""
    if os.path.isdir(shown):  # a notebook about data of a reader's own writes where it is told to
        print(f"figures and their numbers: {shown}")
    print(f"notebooks with their outputs: {copies}")
    if failures:
        print(f"{failures} failed; why: {copies}/NN_name.error.txt, and how far they came: NN_name.failed.ipynb")
    else:
        print("to read it all in a browser: run_all.py --site")


def make_site(args: argparse.Namespace, workers: int) -> int:
    """Draw the notebooks' choosers, then build the site. Returns the number of notebooks that failed."""
    from xuqlib.study.site.pages import build

    sources, problems = readable(args)
    for preset in files.PRESETS:
        problems += files.index_problems(args.project / "figures" / preset)
    failures = tell(problems)
    texts = {path: ["".join(cell["source"]) for cell in read_notebook(path)["cells"]] for path in sources}
    drawn = [path.stem for path in sources if any(CHOOSER.search(text) for text in texts[path])]
    copies = args.project / "build" / "stills" / "quick"
    args.site = args.site.resolve()
    shown = os.path.relpath(args.site / "index.html")
    with alone(copies):
        if drawn:
            args.only = ",".join(drawn)
            jobs = plan(args)
            set_environment(args, jobs, workers)
            os.environ["XUQ_STILLS"] = "1"
            remove_leftovers(args, jobs)
            announce(jobs, args, workers)
            failures += run_jobs(jobs, args, workers)
        if args.site == (args.project / SITE).resolve():  # a folder of the reader's own is only added to
            shutil.rmtree(args.site, ignore_errors=True)
        build(args.project, args.site, copies, make_ready_for(args.project))
    size = sum(path.stat().st_size for path in args.site.rglob("*") if path.is_file())
    print(f"site of {size / 1e6:.0f} MB; open {shown} in a browser")
    return failures


def make_ready_for(project: Path) -> Path | None:
    """The report and the figures with sliders of this library's own project, made where they are not there yet."""
    if project != files.ROOT:
        return None  # their networks are published in this one
    from xuqlib.study.site.ready import make_ready

    start = time.monotonic()
    if make_ready(project / READY, environment_key(project)):
        print(f"report and sliders made in {runs.in_words(time.monotonic() - start)}", flush=True)
    return project / READY


def make_editions(args: argparse.Namespace) -> int:
    """Write the student's and the teacher's edition of the notebooks. Returns how many notebooks are damaged."""
    found, problems = readable(args)
    place = args.editions.resolve()
    for edition in ("student", "teacher"):
        if place == (args.project / CLASS).resolve():  # a folder of the reader's own is only added to
            shutil.rmtree(place / edition, ignore_errors=True)
    editions.build(args.project, found, place)
    shown = os.path.relpath(place)
    print(f"{len(found)} notebooks in {shown}/student and {shown}/teacher; open one: jupyter lab {shown}/student")
    return tell(problems)


def listing(args: argparse.Namespace) -> int:
    """Print the notebooks that can be read, and what is damaged; return how much is."""
    found, problems = readable(args)
    for source in found:
        changed = sizes(args, source.stem[:2])
        values = {**known_parameters(source), **{name: repr(value) for name, value in changed.items()}}
        took = runs.in_words(runs.last_seconds(args.project, args.preset, source.stem))
        print(f"{source.stem}  {', '.join(f'{name}={value}' for name, value in values.items())}  (last took: {took})")
    sys.stdout.flush()
    problems += files.index_problems(args.project / "figures" / args.preset)
    return tell(
        problems + record_problems([args.project / "build" / args.preset / f"{path.stem}.json" for path in found])
    )


def write_address(args: argparse.Namespace) -> int:
    """Write the address of the repository into README.md and CITATION.cff."""
    from xuqlib.study.address import with_address, with_badges

    for name, changed in (("README.md", with_badges), ("CITATION.cff", with_address)):
        path = args.project / name
        try:
            fresh = changed(path.read_text(encoding="utf-8"), args.address)
        except (FileNotFoundError, ValueError) as error:
            stop(str(error))
        files.replace_file(path, fresh.encode())
    print(f"README.md and CITATION.cff name {args.address}; commit them")
    return 0


def folder(text: str) -> Path:
    """A folder named on the command line, which may not be there yet."""
    if not text.strip() or (Path(text).exists() and not Path(text).is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder; name one")
    return Path(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--preset", default="quick", choices=list(files.PRESETS))
    add("--only", metavar="00,04", action="append", help="numbers or names of notebooks; all without it")
    add("--jobs", type=int, help="notebooks at a time (3, or as many as there are cores); 1 gives one all the cores")
    add("--scheduler", metavar="ADDRESS", help="run them as tasks of this Dask scheduler, or of a 'local' one")
    add("--force", action="store_true", help="run also what is cached")
    add("--retrain", action="store_true", help="train anew into build/retrained and compare the scores")
    add("--data", type=folder, metavar="FOLDER", help="where the real data lies; sets XUQ_DATA")
    add("--store", action="store_true", help="write the outputs back into the stored notebooks (quick preset)")
    add("--list", action="store_true", help="show the notebooks, parameters and last times, and run nothing")
    add("--site", type=folder, nargs="?", const=SITE, metavar="FOLDER", help="build pages in FOLDER (build/site)")
    told = "write a student's and a teacher's edition of the notebooks into FOLDER (build/class)"
    add("--class", dest="editions", type=folder, nargs="?", const=CLASS, metavar="FOLDER", help=told)
    add(
        "--address",
        metavar="URL",
        help="https://github.com/OWNER/NAME: write the badges of the README, and CITATION.cff",
    )
    add("-p", "--parameter", action="append", default=[], metavar="name=value", help="set a parameter")
    add("parameters", nargs="*", metavar="name=value", help="the same, without -p")
    add("--project", type=folder, default=files.ROOT, help="folder that holds notebooks/, figures/ and build/")
    args = parser.parse_args(argv)
    args.project = args.project.resolve()
    if args.only and len(args.only) > 1:
        parser.error(f"--only was given {len(args.only)} times; give it once, as --only {','.join(args.only)}")
    args.only = args.only[0] if args.only else None
    if args.jobs is not None and not 1 <= args.jobs <= MOST_JOBS:
        parser.error(f"--jobs is {args.jobs}; give 1 to {MOST_JOBS}")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"--data {args.data} is not a folder")
    parameters = args.parameter or args.parameters
    if args.site and (args.preset != "quick" or args.only or args.store or args.retrain or parameters):
        parser.error("--site shows what is stored and published; leave out presets, -p, --only, --store and --retrain")
    others = args.site or args.list or args.scheduler or args.force or args.jobs or args.data
    if args.editions and (args.preset != "quick" or args.only or args.store or args.retrain or parameters or others):
        parser.error("--class shows what is stored, and runs nothing; leave out all but its folder and --project")
    if args.editions == CLASS:
        args.editions = args.project / CLASS
    if args.editions and args.editions.resolve().is_relative_to(args.project / "notebooks"):
        parser.error(f"--class {args.editions} lies in notebooks/, which it copies; name a folder outside of it")
    if args.site == SITE:
        args.site = args.project / SITE
    if args.store and (args.preset != "quick" or args.retrain or parameters):
        parser.error("--store keeps the quick run as it is published; leave out other presets, -p and --retrain")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for. Returns the number of notebooks that failed or are damaged."""
    args = parse(argv)
    try:
        if args.address is not None:
            return write_address(args)
        if args.list:
            return listing(args)
        if args.editions:
            return make_editions(args)
        workers = args.jobs or min(cores(), 3)  # each takes most of a gigabyte
        return make_site(args, workers) if args.site else run_notebooks(args, workers)
    except files.DamagedError as error:  # a table of claims, which the site and the README show
        stop(str(error))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        give_up(error)


def run_notebooks(args: argparse.Namespace, workers: int) -> int:
    """Run the notebooks asked for. Returns the number of those that failed, or are damaged."""
    jobs = plan(args)
    failures = tell(readable(args)[1])
    if not jobs:
        return failures
    figures, copies = jobs[0].figures, jobs[0].copies
    problems = files.index_problems(figures)
    try:
        files.read_index(figures)
    except files.DamagedError as error:  # no notebook could publish
        stop(str(error))
    with alone(copies):
        set_environment(args, jobs, workers)
        remove_leftovers(args, jobs)
        tell(problems + record_problems([job.path(".json") for job in jobs]))
        # papermill changes the working directory while it runs
        shown = os.path.relpath(figures), os.path.relpath(copies)
        announce(jobs, args, workers)
        failures += run_jobs([job for job in jobs if job.number not in runs.READS], args, workers)
        readers = [job for job in plan(args) if job.number in runs.READS]  # planned anew: what they read has changed
        failures += run_jobs(readers, args, workers)
        if args.preset == "full" and figures == args.project / "figures" / "full":
            refresh_readme(args.project)
        if args.retrain:
            compare_retrained(jobs, args.project)
    close(*shown, failures)
    return failures


if __name__ == "__main__":
    sys.exit(main())
