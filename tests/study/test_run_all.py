"""Running notebooks: what is repeated and what is not, failures, interruptions, and wrong command lines.

Most tests ask the functions; three run real kernels in a small project of their own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest

import run_all

ROOT = Path(__file__).resolve().parents[2]
PUBLISH = """
import os, pathlib
folder = pathlib.Path(os.environ["XUQ_FIGURES"]) / preset
folder.mkdir(parents=True, exist_ok=True)
(folder / "NN_table.csv").write_text(f"seed\\n{seed}\\n")
print("threads", os.environ["OMP_NUM_THREADS"])
print("parts", pathlib.Path(os.environ["XUQ_PARTS"]).name)
"""


def write(project: Path, name: str, *code: str, parameters: str = 'preset = "quick"\nseed = 0') -> Path:
    path = project / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    first = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_code_cell(text.replace("NN", name[:2])) for text in code]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Why?"), first, *cells])
    nbformat.write(notebook, path)
    return path


def command(project: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run_all.py"), "--project", str(project), *arguments]


def start(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "XUQ_FIGURES"}
    return subprocess.run(
        command(project, *arguments), capture_output=True, text=True, check=False, cwd="/", env=environment
    )


def plan(project: Path, *arguments: str) -> list[run_all.Job]:
    return run_all.plan(run_all.parse(["--project", str(project), *arguments]))


def statuses(ran: subprocess.CompletedProcess[str]) -> dict[str, str]:
    lines = [line.split() for line in ran.stdout.splitlines() if line.startswith("[")]
    return {words[1]: words[2] for words in lines}


@pytest.mark.slow
def test_a_failing_notebook_leaves_its_traceback_the_others_go_on_and_only_what_changed_runs_again(tmp_path):
    write(tmp_path, "50_first", PUBLISH)
    write(tmp_path, "51_broken", "1 / 0")
    ran = start(tmp_path, "--jobs", "2")
    assert ran.returncode == 1
    assert statuses(ran) == {"50_first": "ran", "51_broken": "failed"}
    assert "ZeroDivisionError" in ran.stderr
    build = tmp_path / "build" / "quick"
    assert "ZeroDivisionError" in (build / "51_broken.error.txt").read_text()
    assert (build / "51_broken.failed.ipynb").exists()
    assert not (build / "51_broken.ipynb").exists()
    assert (tmp_path / "figures" / "quick" / "50_table.csv").read_text() == "seed\n0\n"
    assert "threads 1" in (build / "50_first.ipynb").read_text()

    write(tmp_path, "51_broken", PUBLISH)
    ran = start(tmp_path, "--jobs", "2")
    assert ran.returncode == 0
    assert statuses(ran) == {"50_first": "cached", "51_broken": "ran"}
    assert not list(build.glob("51_broken.[ef]*"))
    for name in ("50_first", "51_broken"):  # side by side, and yet each has a folder of its own
        assert re.search(rf"parts {name}\.\w{{16}}\.parts", (build / f"{name}.ipynb").read_text())


@pytest.fixture(scope="module")
def cluster():
    """Two processes, as they may run on two machines; a task is given up when one dies of it."""
    dask = pytest.importorskip("dask", reason="the extra `cluster` is not installed")
    from distributed import Client, LocalCluster

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.slow
def test_notebooks_are_tasks_of_a_cluster_and_leave_what_they_leave_without_one(tmp_path, cluster):
    alone, among = tmp_path / "alone", tmp_path / "among"
    address = cluster.scheduler.address
    for project, arguments in ((alone, ["--jobs", "2"]), (among, ["--scheduler", address])):
        write(project, "50_first", PUBLISH)
        write(project, "51_broken", "1 / 0")
        ran = start(project, *arguments)
        assert ran.returncode == 1
        assert statuses(ran) == {"50_first": "ran", "51_broken": "failed"}
        assert "51_broken failed:" in ran.stderr and "ZeroDivisionError" in ran.stderr
        assert "ZeroDivisionError" in (project / "build" / "quick" / "51_broken.error.txt").read_text()
    left = [
        sorted(each.relative_to(project).as_posix() for each in project.rglob("*") if "parts" not in each.name)
        for project in (alone, among)
    ]
    assert left[0] == left[1]
    table, copy = "figures/quick/50_table.csv", "build/quick/50_first.ipynb"
    assert (among / table).read_bytes() == (alone / table).read_bytes()
    assert "threads 1" in (among / copy).read_text()
    write(among, "51_broken", PUBLISH)
    ran = start(among, "--scheduler", address)
    assert ran.returncode == 0
    assert statuses(ran) == {"50_first": "cached", "51_broken": "ran"}
    assert statuses(start(among)) == {"50_first": "cached", "51_broken": "cached"}


@pytest.mark.slow
def test_a_notebook_whose_worker_dies_or_has_another_version_has_failed_and_says_so(tmp_path, cluster):
    write(tmp_path, "50_deadly", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    ran = start(tmp_path, "--scheduler", cluster.scheduler.address)
    assert ran.returncode == 1 and statuses(ran) == {"50_deadly": "failed"}
    assert "KilledWorker" in (tmp_path / "build" / "quick" / "50_deadly.error.txt").read_text()
    cluster.wait_for_workers(2)
    write(tmp_path, "50_deadly", PUBLISH)
    cluster.run(exec, "import xuqlib.scale.cluster as c; c.versions = lambda: {'torch': '1.0'}")
    ran = start(tmp_path, "--scheduler", cluster.scheduler.address)
    assert ran.returncode == 1
    assert "this worker has other versions (wanted, has): {'torch': ('2" in ran.stderr and "'1.0')" in ran.stderr
    assert not (tmp_path / "figures").exists()


def test_a_scheduler_that_does_not_answer_is_one_clear_line(tmp_path, monkeypatch, capsys):
    dask = pytest.importorskip("dask", reason="the extra `cluster` is not installed")
    pytest.importorskip("distributed")
    write(tmp_path, "50_first", PUBLISH)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        for address in ("tcp://127.0.0.1:9", "nowhere"):
            with pytest.raises(SystemExit) as stopped:
                run_all.main(["--project", str(tmp_path), "--scheduler", address])
            error = capsys.readouterr().err
            assert stopped.value.code == 2 and error.count("\n") == 1
            assert f"no Dask scheduler answers at '{address}'" in error and "start one with `dask scheduler`" in error


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    write(tmp_path, "50_first", PUBLISH)
    (job,) = plan(tmp_path)
    job.source.unlink()
    with pytest.raises(RuntimeError, match=r"does not see .*50_first.ipynb; all must share the project's folder"):
        run_all.run_elsewhere(job, {}, run_all.files.versions(), force=False)


def gone(process: int) -> bool:
    """Whether the process has ended; one that nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the kernel in /proc")
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.slow
def test_after_an_interruption_the_next_run_goes_on_from_what_is_whole(tmp_path, blow):
    marker = tmp_path / "kernel"
    write(tmp_path, "50_whole", PUBLISH)
    slow = f"import os, time, pathlib\nmarker = pathlib.Path({str(marker)!r})\nfirst = not marker.exists()\n"
    write(tmp_path, "51_slow", PUBLISH, slow + "marker.write_text(str(os.getpid()))\nif first: time.sleep(300)")
    running = subprocess.Popen(
        command(tmp_path, "--jobs", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What runs in the background of a shell script inherits that an interrupt is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: marker.exists() and marker.read_text())
    second = start(tmp_path, "--only", "50")
    assert second.returncode == 2 and second.stdout == ""
    assert re.fullmatch(rf"another run writes to .*quick \(process {running.pid}, since .*", second.stderr.strip())
    (tmp_path / "notebooks" / f".51_slow.ipynb.{running.pid}.tmp").write_text("half")  # as if it were writing
    kernels = tmp_path / "build" / "quick" / "kernels"
    (file,) = kernels.glob("*.json")  # how to reach the kernel, with its key
    assert file.stat().st_mode & 0o777 == 0o600 and kernels.stat().st_mode & 0o777 == 0o700
    running.send_signal(blow)
    running.communicate(timeout=300)
    assert running.returncode == (-blow if blow == signal.SIGKILL else 130)
    kernel = int(marker.read_text())
    wait_for(lambda: gone(kernel))
    assert kernels.exists() == (blow == signal.SIGKILL)  # which leaves no time; the next run removes them

    ran = start(tmp_path, "--jobs", "1")
    assert ran.returncode == 0, ran.stderr
    assert statuses(ran) == {"50_whole": "cached", "51_slow": "ran"}
    assert not list(tmp_path.rglob("*.tmp*"))
    assert not kernels.exists()


@pytest.mark.slow
def test_a_kernel_starts_beside_its_notebook_and_the_process_stays_where_it_is(tmp_path, monkeypatch):
    """Threads share the folder of their process: one that moves it would start the kernel of another elsewhere."""
    here = tmp_path / "here"
    write(tmp_path, "50_where", f"import os, pathlib\npathlib.Path({str(here)!r}).write_text(os.getcwd())")
    (job,) = plan(tmp_path)
    job.copies.mkdir(parents=True)
    moved: list[Path] = []
    monkeypatch.setattr(os, "chdir", lambda path: moved.append(Path(path).resolve()))
    run_all.execute(job)
    assert set(moved) <= {Path.cwd()}  # papermill reads files in the folder where it began
    assert here.read_text() == str(job.source.parent.resolve())


def finished(project: Path) -> run_all.Job:
    """A job whose results are in place, as `run` would leave them, without a kernel."""
    source = write(project, "50_first", PUBLISH)
    (job,) = plan(project)
    job.copies.mkdir(parents=True, exist_ok=True)
    job.path(".tmp.ipynb").write_bytes(source.read_bytes())
    job.figures.mkdir(parents=True, exist_ok=True)
    (job.figures / "50_table.csv").write_text("seed\n0\n")
    run_all.keep(job, {}, time.monotonic())
    return job


def test_a_finished_notebook_is_whole_and_its_outputs_do_not_matter(tmp_path):
    job = finished(tmp_path)
    assert run_all.is_whole(job)
    notebook = json.loads(job.source.read_text())
    notebook["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "new"}]
    job.source.write_text(json.dumps(notebook))
    assert run_all.is_whole(plan(tmp_path)[0])


@pytest.mark.parametrize(
    "change", ["cell", "parameter", "manifest", "deep manifest", "library", "version", "device", "retrain", "preset"]
)
def test_whatever_a_result_depends_on_makes_it_run_again(tmp_path, monkeypatch, change):
    finished(tmp_path)
    arguments = {"parameter": ["-p", "seed=1"], "retrain": ["--retrain"], "preset": ["--preset", "full"]}.get(
        change, []
    )
    if change == "cell":
        write(tmp_path, "50_first", PUBLISH + "\n1 + 1")
    elif change in (places := {"manifest": "checkpoints", "deep manifest": "checkpoints/own", "library": "xuqlib"}):
        path = tmp_path / places[change] / ("data.py" if change == "library" else "net.json")
        path.parent.mkdir(parents=True)
        path.write_text("0")
    elif change == "device":
        monkeypatch.setenv("XUQ_DEVICE", "cuda:1")
    elif change == "version":
        monkeypatch.setattr(run_all.files, "versions", lambda: {"torch": "9"})
    elif change == "preset":
        (tmp_path / "notebooks" / "sizes.yaml").write_text("full: {}")
    before, (job,) = json.loads((tmp_path / "build/quick/50_first.json").read_text())["key"], plan(tmp_path, *arguments)
    assert job.key != before
    assert not run_all.is_whole(job)


@pytest.mark.parametrize(
    "lost", ["figures/quick/50_table.csv", "build/quick/50_first.ipynb", "build/quick/50_first.json"]
)
@pytest.mark.parametrize("how", ["removed", "cut short"])
def test_a_result_that_lost_a_file_runs_again(tmp_path, lost, how):
    job = finished(tmp_path)
    if how == "removed":
        (tmp_path / lost).unlink()
    else:
        (tmp_path / lost).write_bytes((tmp_path / lost).read_bytes()[:5])
    assert not run_all.is_whole(job)


def test_figures_that_a_notebook_no_longer_makes_are_dropped(tmp_path):
    job = finished(tmp_path)
    run_all.files.update_index(job.figures, {"50_table": {"seed": 0}, "51_other": {"seed": 0}})
    before = run_all.own_figures(job)
    job.path(".tmp.ipynb").write_bytes(job.source.read_bytes())
    (job.figures / "50_new.csv").write_text("x\n1\n")
    (job.figures / "51_other.csv").write_text("x\n1\n")
    run_all.keep(job, before, time.monotonic())
    assert sorted(path.name for path in job.figures.glob("*.csv")) == ["50_new.csv", "51_other.csv"]
    assert list(json.loads((job.figures / "index.json").read_text())) == ["51_other"]
    assert run_all.is_whole(job)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "07"], "notebook 07 is not known; known are 50_first"),
        (["--only", ","], "known are 50_first"),
        (["-p", "epochz=3"], "50_first.ipynb has no parameter epochz; known are preset, seed"),
        (["epochz=3"], "has no parameter epochz"),
        (["--preset", "huge"], "invalid choice: 'huge' (choose from"),
        (["-p", "seed"], "parameter 'seed' should read name=value"),
        (["--only", "50", "--only", "51"], "--only was given 2 times; give it once, as --only 50,51"),
        (["-p", "seed=[0, 1"], "parameter 'seed=[0, 1' has no value that YAML can read"),
        (["-p", "seed=: {"], "has no value that YAML can read"),
        (["--jobs", "0"], "--jobs is 0; give 1 to 64"),
        (["--jobs", "1000000"], "--jobs is 1000000; give 1 to 64"),
        (["--jobs", "two"], "invalid int value: 'two'"),
        (["--data", "nowhere"], "--data nowhere is not a folder"),
        (["--data", ""], "'' is no folder; name one"),
        (["--data", __file__], "is no folder; name one"),
        (["--site", __file__], "is no folder; name one"),
        (["--site", "out", "seed=1"], "--site shows what is stored and published"),
        (["--class", __file__], "is no folder; name one"),
        (["--class", "out", "seed=1"], "--class shows what is stored, and runs nothing; leave out all but its folder"),
        *((["--class", *words], "--class shows what is stored") for words in (["--site"], ["--list"], ["--jobs", "2"])),
        *((["--class", *words], "--class shows what is stored") for words in (["--only", "50"], ["--preset", "full"])),
        (["--store", "--preset", "full"], "--store keeps the quick run"),
    ],
)
def test_a_wrong_command_line_stops_before_anything_runs(tmp_path, capsys, arguments, told):
    write(tmp_path, "50_first", PUBLISH)
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--project", str(tmp_path), *arguments])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "build").exists()


UNREADABLE = {
    "empty": ("", "is no JSON"),
    "cut": ('{"cells": [{"cell_ty', "is no JSON"),
    "list": ("[]", "no JSON object"),
    "null": ("null", "no JSON object"),
    "bytes": (b"\xff\xfe{}", "is no JSON"),
    "cells": ('{"cells": [7]}', "has no cells, or something else among them"),
    "tag": (lambda text: text.replace('"parameters"', '"other"'), "has 0 cells tagged 'parameters'"),
    "python": (lambda text: text.replace("seed = 0", "seed = (0"), "its parameters are no Python"),
}


@pytest.mark.parametrize("how", UNREADABLE)
def test_a_notebook_that_is_none_is_one_error_and_the_others_go_on(tmp_path, monkeypatch, capsys, how):
    for name in ("50_first", "51_broken", "52_last"):
        path = write(tmp_path, name, PUBLISH)
    path, (content, told) = tmp_path / "notebooks" / "51_broken.ipynb", UNREADABLE[how]
    content = content(path.read_text()) if callable(content) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    ran: list[str] = []
    monkeypatch.setattr(run_all, "run", lambda job, force: (ran.append(job.name), ("ran", 0.0))[1])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for arguments in ([], ["--list"], ["--only", "51"]):
        assert run_all.main(["--project", str(tmp_path), *arguments]) == 1
        out, err = capsys.readouterr()
        assert err.count("\n") == 1 and str(path) in err and told in err and "restore the notebook" in err
        assert ("52_last" in out) == (arguments != ["--only", "51"])
    assert ran == ["50_first", "52_last"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"50_table": []}'])
def test_a_damaged_index_stops_the_run_before_it_begins_and_the_list_goes_on(tmp_path, monkeypatch, capsys, content):
    job = finished(tmp_path)
    (job.figures / "index.json").write_text(content)
    monkeypatch.setattr(run_all, "run", lambda job, force: pytest.fail("ran"))
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--project", str(tmp_path)])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert (
        err.startswith(str(job.figures / "index.json")) and "restore it, or delete it" in err and err.count("\n") == 1
    )
    assert run_all.main(["--project", str(tmp_path), "--list"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("50_first") and err.startswith(str(job.figures / "index.json"))


@pytest.mark.parametrize("content", ["", "[]", "null", '{"seconds": "long"}', "changed"])
def test_a_damaged_record_is_told_and_its_notebook_runs_again(tmp_path, monkeypatch, capsys, content):
    job = finished(tmp_path)
    path = job.path(".json")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "seconds": 9.0}) if content == "changed" else content)
    assert run_all.main(["--project", str(tmp_path), "--list"]) >= 1  # and its table has no recipe
    out, err = capsys.readouterr()
    assert "last took: unknown" in out
    assert str(path) in err and "delete it; its notebook will run again" in err
    ran: list[str] = []
    monkeypatch.setattr(run_all, "run", lambda job, force: (ran.append(job.name), ("ran", 0.0))[1])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_all.main(["--project", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert ran == ["50_first"] and "0 whole already" in out and str(path) in err


def test_a_notebook_whose_recipe_was_lost_or_changed_runs_again(tmp_path):
    job = finished(tmp_path)
    run_all.files.update_index(job.figures, {"50_table": {"seed": 0}, "51_other": {"seed": 0}})
    job.path(".tmp.ipynb").write_bytes(job.source.read_bytes())
    run_all.keep(job, {}, time.monotonic())
    index = job.figures / "index.json"
    whole = index.read_text()
    assert run_all.is_whole(job)
    for changed, wanted in ((whole.replace("51_other", "51_others"), True), (whole.replace(": 0", ": 1"), False)):
        index.write_text(changed)
        assert run_all.is_whole(job) == wanted
    index.unlink()
    assert not run_all.is_whole(job)


def test_of_two_runs_the_second_stops_and_names_the_first_and_presets_do_not_meet(tmp_path, monkeypatch, capsys):
    write(tmp_path, "50_first", PUBLISH)
    (tmp_path / "notebooks" / "sizes.yaml").write_text("full: {}")
    monkeypatch.setattr(run_all, "run", lambda job, force: ("ran", 0.0))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with run_all.alone(tmp_path / "build" / "quick"):
        with pytest.raises(SystemExit) as stopped:
            run_all.main(["--project", str(tmp_path)])
        told = f"another run writes to .*build/quick \\(process {os.getpid()}, since .*; wait until it ends"
        assert stopped.value.code == 2 and re.search(told, capsys.readouterr().err)
        assert run_all.main(["--project", str(tmp_path), "--preset", "full"]) == 0
        assert run_all.main(["--project", str(tmp_path), "--list"]) == 0
    assert run_all.main(["--project", str(tmp_path)]) == 0


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("where", ["execute", "replace_file"])
def test_a_disk_that_cannot_be_written_ends_the_run_in_two_plain_lines(tmp_path, monkeypatch, capsys, error, where):
    write(tmp_path, "50_first", PUBLISH)

    def refuse(*_, **__):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(run_all if where == "execute" else run_all.files, where, refuse)
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    if where == "execute":
        monkeypatch.setattr(run_all.files, "replace_file", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--project", str(tmp_path)])
    assert stopped.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(f"cannot be written: {os.strerror(error)}")
    assert second.startswith("make room there")


def test_another_error_of_the_system_is_a_notebooks_own(tmp_path, monkeypatch, capsys):
    write(tmp_path, "50_first", PUBLISH)

    def refuse(job):
        raise OSError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(run_all, "execute", refuse)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_all.main(["--project", str(tmp_path)]) == 1
    assert "Connection refused" in (tmp_path / "build" / "quick" / "50_first.error.txt").read_text()


def test_what_a_killed_run_was_writing_is_removed_by_the_next_and_not_seen_by_git(tmp_path, monkeypatch):
    job = finished(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    parts = job.copies / "50_first.0123456789abcdef.parts"
    parts.mkdir()
    places = tmp_path, tmp_path / "notebooks", job.figures, job.copies, parts, tmp_path / "cache" / "checkpoints"
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f".a.{dead.pid}.tmp").write_text("half")
    job.path(".tmp.ipynb").write_text("half")
    monkeypatch.setattr(os, "environ", {**os.environ, "XUQ_CACHE": str(tmp_path / "cache")})
    assert run_all.main(["--project", str(tmp_path)]) == 0
    assert not list(tmp_path.rglob("*.tmp*"))
    ignored = ["git", "-c", f"core.excludesFile={ROOT / '.gitignore'}", "check-ignore", "-q", ".a.csv.1.tmp"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(ignored, cwd=tmp_path, check=True)


def test_a_folder_without_notebooks_stops_the_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        plan(tmp_path)
    assert "no notebook NN_name.ipynb" in capsys.readouterr().err


def test_notebooks_are_chosen_by_number_or_by_name(tmp_path):
    for name in ("50_first", "04_second", "08_third"):
        write(tmp_path, name)
    assert [job.name for job in plan(tmp_path, "--only", "08_third, 50")] == ["08_third", "50_first"]


def test_a_parameter_of_the_command_line_is_typed_and_its_results_stay_out_of_the_published_folder(tmp_path):
    write(tmp_path, "50_first", parameters='preset = "quick"\nseed: int = 0\nsizes = [1]')
    (job,) = plan(tmp_path, "-p", "seed=3", "sizes=[2, 4]")
    assert job.parameters == {"preset": "quick", "seed": 3, "sizes": [2, 4]}
    assert job.figures == tmp_path / "build" / "custom" / "figures" / "quick"
    assert job.copies == tmp_path / "build" / "custom" / "quick"


def test_retrained_results_stay_out_of_the_published_folder(tmp_path):
    write(tmp_path, "50_first")
    (job,) = plan(tmp_path, "--retrain")
    assert job.figures == tmp_path / "build" / "retrained" / "figures" / "quick"


def test_the_list_shows_names_and_parameters_and_runs_nothing(tmp_path, capsys):
    write(tmp_path, "04_second", parameters='preset = "quick"\nseed = 0\nnum_draws = 8')
    (tmp_path / "notebooks" / "sizes.yaml").write_text('full:\n  "04":\n    num_draws: 50\n')
    assert run_all.main(["--project", str(tmp_path), "--list", "--preset", "full"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("04_second  preset='full', seed=0, num_draws=50")
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(("workers", "threads"), [(3, "1"), (1, "5")])
def test_kernels_share_the_cores(tmp_path, monkeypatch, workers, threads):
    for name in (
        *run_all.THREAD_SETTINGS,
        "XUQ_FIGURES",
        "XUQ_SMALL",
        "XUQ_DATA",
        "XUQ_RETRAIN",
        "PYTHONPATH",
        "MPLBACKEND",
    ):
        monkeypatch.setenv(name, "")  # restored after the test
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", "")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX")
    monkeypatch.setattr(run_all, "cores", lambda: 5)
    write(tmp_path, "50_first")
    arguments = run_all.parse(["--project", str(tmp_path), "--retrain", "--data", str(tmp_path)])
    run_all.set_environment(arguments, run_all.plan(arguments), workers)
    assert [os.environ[name] for name in run_all.THREAD_SETTINGS] == [threads] * 4
    assert os.environ["XUQ_RETRAIN"] == "1"
    assert os.environ["XUQ_DATA"] == str(tmp_path)
    assert os.environ["XUQ_FIGURES"] == str(tmp_path / "build" / "retrained" / "figures")
    assert os.environ["XUQ_SMALL"] == "1"
    assert os.environ["PYTHONPYCACHEPREFIX"] == str(tmp_path / "build" / "bytecode")
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


def executed(job: run_all.Job, text: str) -> None:
    """Leave an executed copy as papermill would: an injected cell, timings, widget state, and an output."""
    notebook = nbformat.read(job.source, 4)
    injected = nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["injected-parameters"], "papermill": {}})
    notebook.cells.insert(2, injected)
    for count, cell in enumerate([cell for cell in notebook.cells if cell.cell_type == "code"], start=1):
        cell.execution_count = count
        cell.metadata["papermill"] = {"duration": 0.1}
    notebook.cells[-1].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": text}, execution_count=3)]
    notebook.metadata = {"widgets": {"state": {}}, "papermill": {}, "kernelspec": {"name": "mine", "display_name": "m"}}
    job.copies.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, job.path(".ipynb"))


def test_storing_keeps_outputs_and_tags_and_drops_what_differs_between_machines(tmp_path):
    write(tmp_path, "50_first", "1 + 1")
    (job,) = plan(tmp_path, "--store")
    executed(job, "2")
    assert run_all.store(job) == ""
    stored = nbformat.read(job.source, 4)
    nbformat.validate(stored)
    assert [cell.cell_type for cell in stored.cells] == ["markdown", "code", "code"]
    assert stored.cells[1].metadata == {"tags": ["parameters"]}
    assert stored.cells[2].outputs[0]["data"]["text/plain"] == "2"
    assert (stored.cells[2].execution_count, stored.cells[2].outputs[0].execution_count) == (2, 2)
    assert set(stored.metadata) == {"kernelspec", "language_info"}
    assert stored.metadata.kernelspec.name == "python3"
    assert plan(tmp_path)[0].key == job.key


def test_a_stored_widget_becomes_a_line_since_its_model_has_gone_with_the_kernel():
    data = {run_all.WIDGET: {"model_id": "4f2a"}, "text/plain": ["VBox()"]}
    output = {"output_type": "display_data", "metadata": {}, "data": data}
    cell = {"cell_type": "code", "metadata": {}, "source": [], "outputs": [output], "execution_count": 1}
    (kept,) = run_all.cleaned({"cells": [cell]})["cells"]
    assert list(kept["outputs"][0]["data"]) == ["text/plain"]
    assert "Run this notebook" in kept["outputs"][0]["data"]["text/plain"][0]
    assert run_all.WIDGET in data  # the executed copy keeps it


def test_a_stored_notebook_links_to_a_published_figure_which_the_executed_copy_holds():
    metadata = {"image/png": {"published": {"file": "04_maps.png", "title": "Both [agree]"}}}
    output = {"output_type": "display_data", "metadata": metadata, "data": {"image/png": "iVBOR"}}
    cell = {"cell_type": "code", "metadata": {}, "source": [], "outputs": [output], "execution_count": 1}
    (kept,) = run_all.cleaned({"cells": [cell]})["cells"]
    (shown,) = kept["outputs"]
    assert (list(shown["data"]), shown["metadata"]) == (["text/markdown"], {})
    address = "../figures/full/04_maps.png"
    assert "".join(shown["data"]["text/markdown"]).endswith(f"run:\n\n[![Both  agree ]({address})]({address})")
    assert output["data"] == {"image/png": "iVBOR"}


def test_a_notebook_that_is_too_large_or_was_changed_while_it_ran_is_not_stored(tmp_path):
    source = write(tmp_path, "50_first", "1 + 1")
    (job,) = plan(tmp_path, "--store")
    executed(job, "2" * 300_000)
    before = source.read_bytes()
    assert "show fewer or smaller figures" in run_all.store(job)
    assert source.read_bytes() == before
    executed(job, "2")
    write(tmp_path, "50_first", "1 + 2")
    assert "changed while it ran" in run_all.store(job)


OLD = pd.DataFrame({"posterior": ["a", "b"], "accuracy": [0.9, 0.8]})


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (OLD.assign(accuracy=[0.91, 0.77]), "agrees: accuracy by 0.03 (allowed 0.04)"),
        (OLD.assign(accuracy=[0.9, 0.7]), "differs: accuracy by 0.1 (allowed 0.04)"),
        (OLD.assign(accuracy=[0.9, None]), "differs: accuracy by 0 (allowed 0.04); a value is missing on one side"),
        (OLD.assign(posterior=["a", "c"]), "differs: other rows or columns than the published table"),
        (OLD[:1], "differs: other rows or columns than the published table"),
    ],
)
def test_a_retrained_table_agrees_within_its_tolerance_or_says_by_how_much_not(tmp_path, new, told):
    OLD.to_csv(tmp_path / "old.csv", index=False)
    new.to_csv(tmp_path / "new.csv", index=False)
    assert run_all.compare(tmp_path / "old.csv", tmp_path / "new.csv", {"accuracy": 0.04}) == told


def test_a_retrained_table_that_was_never_published_is_said_to_be_so(tmp_path):
    assert "not published" in run_all.compare(tmp_path / "old.csv", tmp_path / "new.csv", {"accuracy": 0.04})


def test_a_notebook_runs_again_when_a_helper_that_it_uses_has_changed(tmp_path):
    write(tmp_path, "50_first", "from helpers import n50")
    write(tmp_path, "51_second", PUBLISH)
    helpers = tmp_path / "notebooks" / "helpers"
    helpers.mkdir()
    (helpers / "n50.py").write_text("from helpers.common import size\n")
    (helpers / "common.py").write_text("size = 1\n")
    (helpers / "n52.py").write_text("")

    def keys():
        return [job.key for job in run_all.plan(run_all.parse(["--project", str(tmp_path)]))]

    before = keys()
    (helpers / "n52.py").write_text("size = 3\n")
    assert keys() == before  # nobody uses it
    for name in ("n50", "common"):  # itself, or through another
        (helpers / f"{name}.py").write_text((helpers / f"{name}.py").read_text() + "more = 2\n")
        after = keys()
        assert after[0] != before[0] and after[1] == before[1]
        before = after


@pytest.mark.parametrize(
    "sizes", ["full: [1, 2]", "full:\n  '50': 3", "- 1", "fulll: {}", "full:\n  50: {a: 1}", "", "full:", "full: ["]
)
def test_a_file_of_sizes_that_is_none_is_one_clear_error(tmp_path, capsys, sizes):
    write(tmp_path, "50_first")
    (tmp_path / "notebooks" / "sizes.yaml").write_text(sizes)
    for more in ([], ["--list"]):
        with pytest.raises(SystemExit) as stopped:
            run_all.main(["--project", str(tmp_path), "--preset", "full", *more])
        assert stopped.value.code == 2 and "sizes.yaml should hold" in capsys.readouterr().err


def test_a_full_run_without_its_sizes_is_refused_before_it_begins(tmp_path, capsys):
    write(tmp_path, "50_first")
    with pytest.raises(SystemExit) as stopped:
        run_all.main(["--project", str(tmp_path), "--preset", "full"])
    assert stopped.value.code == 2 and "sizes.yaml" in capsys.readouterr().err


def test_a_notebook_that_reads_results_is_planned_anew_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all.runs, "READS", {"51": "full/*_claims.csv"})
    write(tmp_path, "50_first", PUBLISH)
    write(tmp_path, "51_reader", PUBLISH)
    full = tmp_path / "figures" / "full"
    full.mkdir(parents=True)

    def keys():
        return {job.number: job.key for job in plan(tmp_path)}

    before = keys()
    (full / "50_claims.csv").write_text("claim\na\n")
    after = keys()
    assert after["50"] == before["50"]
    assert after["51"] != before["51"]
    (full / "51_claims.csv").write_text("its own")
    assert keys() == after


def test_a_notebook_that_reads_results_runs_after_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(run_all.runs, "READS", {"50": "full/*_claims.csv"})
    write(tmp_path, "50_reader", PUBLISH)
    write(tmp_path, "51_other", PUBLISH)
    ran: list[str] = []
    monkeypatch.setattr(run_all, "run", lambda job, force: (ran.append(job.number), ("ran", 0.0))[1])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_all.main(["--project", str(tmp_path), "--jobs", "2"]) == 0
    assert ran == ["51", "50"]


def publish_seconds(project: Path, number: str, seconds: float) -> None:
    index = {f"{number}_x": {"notebook": number, "seconds": seconds}}
    run_all.files.update_index(project / "figures" / "quick", index)


def test_a_run_says_what_it_will_do_how_long_it_takes_and_where_to_look(tmp_path, monkeypatch, capsys):
    finished(tmp_path)
    for name in ("51_known", "52_new"):
        write(tmp_path, name, PUBLISH)
    publish_seconds(tmp_path, "51", 240)
    monkeypatch.setattr(run_all, "run", lambda job, force: ("ran", 1.0))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_all.main(["--project", str(tmp_path), "--jobs", "2"]) == 0
    first, *_, figures, copies, last = capsys.readouterr().out.splitlines()
    assert first.startswith("quick preset, 2 at a time: 3 notebooks, 1 whole already, 2 to run; about 4 min")
    assert first.endswith("; 1 has never run here")
    assert figures.endswith("figures/quick") and copies.endswith("build/quick")
    assert "--site" in last


def test_where_nothing_has_run_yet_no_time_is_promised(tmp_path, monkeypatch, capsys):
    for name in ("51_new", "52_new"):
        write(tmp_path, name, PUBLISH)
    monkeypatch.setattr(run_all, "run", lambda job, force: ("ran", 1.0))
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_all.main(["--project", str(tmp_path), "--jobs", "2"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("2 to run; how long is not known; 2 have never run here")


def test_a_run_with_nothing_to_do_says_so_and_a_failed_one_says_where_to_look(tmp_path, monkeypatch, capsys):
    finished(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_all.main(["--project", str(tmp_path)]) == 0
    assert "1 notebook, 1 whole already, 0 to run; nothing to do" in capsys.readouterr().out
    monkeypatch.setattr(run_all, "run", lambda job, force: ("failed", 1.0))
    assert run_all.main(["--project", str(tmp_path), "--force"]) == 1
    out = capsys.readouterr().out
    assert "0 whole already, 1 to run" in out
    assert "1 failed; why: " in out and "NN_name.error.txt" in out


def test_a_long_run_tells_now_and_then_what_is_running(tmp_path, monkeypatch, capsys):
    write(tmp_path, "50_slow", PUBLISH)
    monkeypatch.setattr(run_all, "HEARTBEAT", 0.02)
    monkeypatch.setattr(run_all, "run", lambda job, force: (time.sleep(0.2), ("ran", 0.2))[1])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert run_all.main(["--project", str(tmp_path)]) == 0
    assert "after 0 s, running: 50_slow" in capsys.readouterr().out


def test_the_list_tells_how_long_each_took(tmp_path, capsys):
    for name in ("50_first", "51_second"):
        write(tmp_path, name)
    (tmp_path / "figures" / "quick").mkdir(parents=True)
    publish_seconds(tmp_path, "50", 300)
    assert run_all.main(["--project", str(tmp_path), "--list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("(last took: 5 min)")
    assert second.endswith("(last took: unknown)")


def test_the_site_refuses_other_choices(tmp_path, capsys):
    write(tmp_path, "50_first")
    for arguments in (["--only", "50"], ["--preset", "full"], ["--store"], ["-p", "seed=1"]):
        with pytest.raises(SystemExit):
            run_all.main(["--project", str(tmp_path), "--site", *arguments])
        assert "--site shows what is stored and published" in capsys.readouterr().err
