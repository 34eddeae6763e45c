"""Files that are flipped, cut, emptied or half written, and runs that are killed: nothing of it is taken for truth.

A generator damages every kind of file that the study writes and reads again, at seeded places; what is read then is
the same value, or an error or a warning that names the file. Crash points are exact: a child process is killed before
each single opening, renaming, removing and syncing of a file, or in the middle of writing it.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import PIL.Image
import pytest
import torch
from filelock import FileLock
from matplotlib.figure import Figure

import run_all
from xuqlib.study import files, record, resuming, runs, verdicts
from xuqlib.study.training import checkpoints

ROOT = Path(__file__).resolve().parents[2]
RECIPE = {"notebook": "50", "preset": "quick", "seed": 3, "dataset": "planted", "dataset_digest": "ab"}
FRAME = pd.DataFrame({"draws": [8, 32], "error": [0.25, 0.125], "word": ["a", "b"]})
Reader = Callable[[], Any]  # what a file says, in a form that can be compared
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children of this process")


def notebook(path: Path, *code: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first = nbformat.v4.new_code_cell('preset = "quick"\nseed = 0', metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# Why?"), first, *map(nbformat.v4.new_code_cell, code)]
    for place, cell in enumerate(cells):
        cell["id"] = f"cell-{place}"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def job_of(project: Path) -> run_all.Job:
    (job,) = run_all.plan(run_all.parse(["--project", str(project)]))
    return job


def publish(folder: Path, frame: pd.DataFrame = FRAME) -> None:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 3, 2])
    record.save(figure, frame, "table", **RECIPE, posterior="p", device="cpu", seconds=9.0, folder=folder)


def finish(project: Path) -> run_all.Job:
    """A project whose one notebook has run, without a kernel."""
    notebook(project / "notebooks" / "50_first.ipynb", "1 + 1")
    job = job_of(project)
    job.copies.mkdir(parents=True, exist_ok=True)
    publish(job.figures)
    job.path(".tmp.ipynb").write_bytes(job.source.read_bytes())
    run_all.keep(job, {}, time.monotonic())
    return job


def some_checkpoint() -> tuple[Path, Reader]:
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(7)}
    manifest = {"recipe": {"epochs": 3}, "noise_variance": 0.5, "seed": 0, "dataset": "digits"}
    path = checkpoints.save_checkpoint("it", tensors, manifest, checkpoints.folders()[-1])

    def read() -> object:
        found = checkpoints.find_checkpoint("it", {"epochs": 3}, seed=0, dataset="digits")
        if found is None:
            return None
        loaded, facts = checkpoints.load_checkpoint(found)
        return {name: value.tolist() for name, value in loaded.items()}, facts

    return path, read


def a_tensors_file(_: Path) -> tuple[Path, Reader]:
    return some_checkpoint()


def a_manifest(_: Path) -> tuple[Path, Reader]:
    path, read = some_checkpoint()
    return path.with_suffix(".json"), read


def a_kept_part(folder: Path) -> tuple[Path, Reader]:
    value = {("lime", 3): (torch.arange(4.0), FRAME, [0.25, None, "word"])}
    path = folder / "measure-0123.part"
    resuming.kept(path, lambda: value)
    return path, lambda: resuming.fingerprint(resuming.kept(path, lambda: value))


def a_record(folder: Path) -> tuple[Path, Reader]:
    path = finish(folder).path(".json")
    return path, lambda: runs.read_record(path)


def an_index(folder: Path) -> tuple[Path, Reader]:
    job = finish(folder)

    def read() -> object:
        if problems := files.index_problems(job.figures):
            raise files.DamagedError(problems[0])
        return files.read_index(job.figures)

    return job.figures / "index.json", read


def a_published_table(folder: Path) -> tuple[Path, Reader]:
    claims = pd.DataFrame([dict.fromkeys(record.CLAIM_COLUMNS, 1.5) | {"claim": "C1", "verdict": "holds", "n": 8}])
    record.save(None, claims, "claims", **RECIPE, posterior="p", folder=folder)
    return folder / "50_claims.csv", lambda: verdicts.gather(folder).to_dict()


def a_published_picture(folder: Path) -> tuple[Path, Reader]:
    publish(folder)
    path = folder / "50_table.png"
    return path, lambda: PIL.Image.open(io.BytesIO(files.read_published(path))).tobytes()


def a_notebook(folder: Path) -> tuple[Path, Reader]:
    """What it computes is its reader's own; but whatever is changed in it, it runs again or is named."""
    path = notebook(folder / "notebooks" / "50_first.ipynb", "1 + 1")

    def read() -> object:
        known, cells = run_all.known_parameters(path), run_all.sources(run_all.read_notebook(path))
        if (known, cells) != whole:
            raise files.DamagedError(f"{path} has another key")
        return cells

    whole = run_all.known_parameters(path), run_all.sources(run_all.read_notebook(path))
    return path, read


KINDS = (
    *(a_tensors_file, a_manifest, a_kept_part, a_record),
    *(an_index, a_published_table, a_published_picture, a_notebook),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with one thing wrong with it."""
    place = draw.randrange(len(content))
    end = min(len(content), place + draw.randint(1, 32))
    how = draw.choice(["bit", "bit", "byte", "digit", "run", "hole", "cut", "cut", "twice"])
    if how == "bit":
        return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]
    if how == "byte":
        return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    if how == "digit":  # what stays well-formed JSON, and says something else
        places = [match.start() for match in re.finditer(rb"[0-9]", content)]
        at = draw.choice(places)
        return content[:at] + str(draw.randrange(10)).encode() + content[at + 1 :]
    if how == "run":
        return content[:place] + bytes(end - place) + content[end:]
    if how == "hole":
        return content[:place] + content[end:]
    return content[:place] if how == "cut" else content + content[place:]


@pytest.fixture(autouse=True)
def _checkpoints_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XUQ_RETRAIN", raising=False)


def outcome(path: Path, read: Reader, whole: object) -> str:
    """ "same", "told" where an error or a warning names the file, "gone" for none; anything else is a fault."""
    found, told = None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = read()
        except (files.DamagedError, checkpoints.CheckpointError) as error:
            told = str(error)
    words = [told, *(str(warning.message) for warning in caught)]
    assert all(path.stem in word for word in filter(None, words)), words
    if found is not None:
        assert found == whole, f"{path.name} is taken for truth"
    assert found is not None or any(words), f"{path.name} is gone without a word"
    return "told" if any(words) else "same"


def campaign(kind: Callable[[Path], tuple[Path, Reader]], folder: Path, number: int, seed: int) -> dict[str, int]:
    path, read = kind(folder)
    content, whole, draw = path.read_bytes(), read(), random.Random(seed)
    counts = {"same": 0, "told": 0}
    for wrong in (b"", b"[]", b"null", b"7", b'"long"', *(damaged(content, draw) for _ in range(number))):
        path.write_bytes(wrong)
        counts[outcome(path, read, whole)] += 1
    path.write_bytes(content)
    assert outcome(path, read, whole) == "same"
    return counts


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_whatever_happens_to_a_file_it_says_the_same_or_is_named(tmp_path, kind):
    counts = campaign(kind, tmp_path, 30, seed=0)
    assert counts["told"] > 15, "the generator damages nothing"


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_whatever_happens_to_a_file_at_length(tmp_path, kind, seed):
    counts = campaign(kind, tmp_path, 100, seed=100 + seed)
    print(kind.__name__, counts)
    assert counts["told"] > 50, "the generator damages nothing"


STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "fsync"}


def work(project: Path) -> None:
    """Everything that writes, once more, over what `finish` and `some_checkpoint` left."""
    tensors = {"weight": torch.ones(2, 3), "count": torch.tensor(8)}
    manifest = {"recipe": {"epochs": 3}, "noise_variance": 0.25, "seed": 0, "dataset": "digits"}
    checkpoints.save_checkpoint("it", tensors, manifest, checkpoints.folders()[-1])
    resuming.kept(job_of(project).parts / "measure-0123.part", lambda: {"a": torch.ones(3)})
    job = job_of(project)
    before = run_all.own_figures(job)
    publish(job.figures, FRAME.assign(error=[0.5, 0.75]))
    job.path(".tmp.ipynb").write_bytes(job.source.read_bytes())
    run_all.keep(job, before, time.monotonic())


def child(project: Path, step: int, half: bool) -> int:
    """Work in a child that is killed before its step of this number; return the steps that it came to, if it did."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        count, sync = [0], os.fsync

        def took(event: str, args: tuple[Any, ...] = ()) -> None:
            inside = event == "fsync" or (args and str(project) in str(args[0]))
            if event in STEPS and inside:
                count[0] += 1
                if count[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        def synced(number: int) -> None:
            if half and count[0] + 1 == step and stat.S_ISREG(os.fstat(number).st_mode):
                os.ftruncate(number, os.fstat(number).st_size // 2)
            took("fsync")
            sync(number)

        try:
            os.fsync = synced
            sys.addaudithook(took)
            work(project)
            os.write(write, str(count[0]).encode())
        finally:
            os._exit(0)
    os.close(write)
    ended = os.waitpid(process, 0)[1]
    told = os.read(read, 100)
    os.close(read)
    assert bool(told) != (os.WIFSIGNALED(ended) and os.WTERMSIG(ended) == signal.SIGKILL), "the work itself failed"
    return int(told or 0)


def assert_crash_is_harmless_or_named(project: Path, step: int, half: bool) -> None:
    """Kill the work at a step, and see that everything is as before, as after, or named."""
    for folder in project.glob("*/"):
        shutil.rmtree(folder)
    job = finish(project)
    _, read = some_checkpoint()
    old = read()
    assert child(project, step, half) == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read()
    if found is None:
        assert "it.safetensors has no manifest" in str(caught[0].message)
    else:
        assert found[1]["noise_variance"] == (0.5 if found[0] == old[0] else 0.25)
    part = resuming.kept(job_of(project).parts / "measure-0123.part", lambda: {"a": torch.ones(3)})
    assert part["a"].tolist() == [1.0] * 3
    index = files.whole_recipes(job.figures)
    assert index.keys() == {"50_table"} == files.read_index(job.figures).keys()
    try:
        table = files.read_published(job.figures / "50_table.csv").decode()
    except files.DamagedError as error:  # killed between the table and its recipe
        told = "50_table.csv is not what index.json says; restore both, or run notebook 50 again"
        table = "" if str(error).endswith(told) and not run_all.is_whole(job) else str(error)
    assert table in ("", "draws,error,word\n8,0.25,a\n32,0.125,b\n", "draws,error,word\n8,0.5,a\n32,0.75,b\n")
    runs.read_record(job.path(".json"))
    if run_all.is_whole(job):
        assert json.loads(job.path(".ipynb").read_text())["cells"]
    run_all.remove_leftovers(run_all.parse(["--project", str(project)]), [job])
    assert not list(project.rglob("*.tmp*"))
    work(project)  # goes on
    assert run_all.is_whole(job)


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child touches nothing but its files
@pytest.mark.parametrize("place", range(4))
def test_work_killed_before_a_step_or_in_the_middle_of_one_is_as_before_or_after_or_named(tmp_path, place):
    draw = random.Random(place)
    assert_crash_is_harmless_or_named(tmp_path, draw.randint(1, 30), half=draw.random() < 0.5)


@needs_fork
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("half", [False, True])
def test_work_killed_before_each_of_its_steps(tmp_path, half):
    finish(tmp_path)
    some_checkpoint()
    steps = child(tmp_path, 0, half)
    assert steps >= 30
    for step in range(1, steps + 1):
        assert_crash_is_harmless_or_named(tmp_path, step, half)
    print("crash points", steps)


MEASURE = """
import time
import pandas as pd
from matplotlib.figure import Figure
from xuqlib import Notebook
from xuqlib.study.resuming import resumable

study = Notebook("NN", preset=preset, seed=seed, dataset="planted", dataset_digest="ab", posterior="p")

@resumable
def measure(number):
    time.sleep(0.2)
    return pd.DataFrame({"number": [number], "third": [number / 3]})

for name in ("first", "second"):
    frame = pd.concat([measure(number) for number in range(4)], ignore_index=True)
    study.save(Figure(figsize=(1, 1)), frame, name)
study.claim("it holds", True, value=1.0)
study.claims()
"""


def run_of(project: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "XUQ_FIGURES"}
    command = [sys.executable, str(ROOT / "run_all.py"), "--project", str(project), "--jobs", "2"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=project, **pipes)  # type: ignore[call-overload]


def tables(project: Path) -> dict[str, bytes]:
    return {path.name: files.read_published(path) for path in sorted(project.glob("figures/quick/*.csv"))}


@pytest.mark.nightly
@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_runs_killed_at_seeded_moments_lose_tear_and_change_nothing(tmp_path):
    for project in ("whole", "p"):
        for number in ("50", "51"):
            path = tmp_path / project / "notebooks" / f"{number}_it.ipynb"
            notebook(path, MEASURE.replace("NN", number))
    started = time.monotonic()
    undisturbed = run_of(tmp_path / "whole")
    assert undisturbed.communicate()[1] == "" and undisturbed.returncode == 0
    needed, expected, project = time.monotonic() - started, tables(tmp_path / "whole"), tmp_path / "p"
    draw, kills, ended = random.Random(0), 0, 0
    while kills < 50:
        running, started = run_of(project), time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            running.wait(draw.uniform(0.05, 1.1) * needed)
            needed = time.monotonic() - started  # now: other work on the machine comes and goes
        running.kill()
        told = running.communicate()[1]
        assert "Traceback" not in told, told
        kills, ended = kills + (running.returncode == -signal.SIGKILL), ended + (running.returncode == 0)
        assert running.returncode in (0, -signal.SIGKILL), told
        figures, copies = project / "figures" / "quick", project / "build" / "quick"
        if copies.exists():
            with FileLock(copies / ".run.lock", timeout=0):  # the dead hold nothing
                pass
        assert files.whole_recipes(figures) == files.read_index(figures)
        assert all(runs.read_record(path)["seconds"] > 0 for path in copies.glob("*.json"))
        if running.returncode == 0:  # from the beginning, so that kills fall everywhere
            assert tables(project) == expected
            for folder in ("build", "figures"):
                shutil.rmtree(project / folder)
    last = run_of(project)
    told = last.communicate()[1]
    assert last.returncode == 0, told
    assert tables(project) == expected
    assert not list(project.rglob("*.tmp*"))
    print("kills", kills, "whole runs between", ended)


@pytest.mark.nightly
@pytest.mark.parametrize("options", ["size=96k", "size=1m,ro"])
def test_a_full_and_a_read_only_disk_end_in_two_plain_lines(tmp_path, options):
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("may not mount")
    text = f"print({'x' * 200_000!r})"
    notebook(tmp_path / "notebooks" / "50_first.ipynb", text)
    (tmp_path / "build").mkdir()
    mounted = f"mount -t tmpfs -o {options} none build && exec {sys.executable} {ROOT / 'run_all.py'} --project ."
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", mounted], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    first, second = ran.stderr.splitlines()
    assert ran.returncode == 2
    assert re.search(r"build.* cannot be written: (No space left on device|Read-only file system)", first)
    assert second == "make room there, or have it writable, and run the same again: what is whole is kept"
