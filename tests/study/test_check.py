"""`python -m xuqlib check`: it sees what is whole, missing and damaged, and says what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import subprocess
import sys

import pytest
import torch

from xuqlib import __main__ as cli
from xuqlib.study import check as command
from xuqlib.study import files, runs
from xuqlib.study.data import download, readers
from xuqlib.study.data.loading import DATASETS
from xuqlib.study.training import checkpoints

MNIST = [f"MNIST/raw/{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty folder of data and an empty cache."""
    for name in ("XUQ_DATA", "XUQ_CACHE"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path / "XUQ_DATA", tmp_path / "XUQ_CACHE"


def write_record(path, seconds):
    found = {"seconds": seconds}
    path.write_text(json.dumps({**found, "sha256": files.seal(found)}))


def put_mnist(folder, monkeypatch):
    for name in MNIST:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.gz").write_bytes(gzip.compress(name.encode(), mtime=0))
        known = hashlib.sha256((folder / f"{name}.gz").read_bytes()).hexdigest()
        monkeypatch.setitem(download.SHA256, f"{name}.gz", known)


def test_every_data_set_has_a_line_and_asking_reads_and_fetches_nothing(places, monkeypatch):
    monkeypatch.setattr(download, "fetch", lambda *_, **__: pytest.fail("fetched"))
    for name in ("torchvision", "torchvision.datasets"):  # an import of which takes seconds, and would fail now
        monkeypatch.setitem(sys.modules, name, None)
    section = command.check_data()
    assert [line.split()[0] for line in section.lines[1:]] == list(DATASETS)
    assert section.damaged == 0
    said = {line.split()[0]: line for line in section.lines[1:]}
    assert "embedded" in said["planted"]
    assert 'load("cifar10") downloads it' in said["cifar10"]
    assert "fer2013.csv" in said["fer_plus"] and "missing" in said["fer_plus"]
    assert readers.locate is download.locate  # put back


@pytest.mark.parametrize("place", [0, 1])
def test_a_data_set_is_found_in_either_folder(places, monkeypatch, place):
    put_mnist(places[place], monkeypatch)
    assert command.data_line("mnist") == (f"whole, in {['$XUQ_DATA', 'the cache'][place]}", False)


def test_a_damaged_and_an_incomplete_data_set_are_told_apart(places, monkeypatch):
    put_mnist(places[0], monkeypatch)
    broken = places[0] / f"{MNIST[2]}.gz"
    broken.write_bytes(broken.read_bytes()[:-3])
    told, damaged = command.data_line("mnist")
    assert damaged
    assert told == f"whole, in $XUQ_DATA; DAMAGED: {MNIST[2]}.gz; restore it, or delete it to have it fetched again"
    broken.unlink()
    assert command.data_line("mnist") == ('whole, in $XUQ_DATA; missing; load("mnist") downloads it', False)


def test_a_data_folder_that_is_not_there_is_damage(monkeypatch):
    monkeypatch.setenv("XUQ_DATA", "nowhere")
    section = command.check_data()
    assert section.damaged == 1
    assert "nowhere, which is not a folder" in section.lines[0]


def test_damaged_checkpoints_are_counted_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "folders", lambda: [tmp_path])
    for name in ("whole", "cut", "orphan", "bare"):
        checkpoints.save_checkpoint(name, {"w": torch.ones(3)}, {"recipe": {}}, tmp_path)
    assert command.check_checkpoints().damaged == 0
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    (tmp_path / "orphan.json").unlink()
    (tmp_path / "bare.safetensors").unlink()
    section = command.check_checkpoints()
    assert section.damaged == 3
    assert [line.split()[1] for line in section.lines[1:]] == ["bare.safetensors", "cut.safetensors", "orphan.json"]
    assert all(line.startswith("DAMAGED: ") and "delete" in line for line in section.lines[1:])


def test_a_changed_manifest_and_a_pair_under_anothers_name_are_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "folders", lambda: [tmp_path])
    for name in ("noisy", "first", "second"):
        checkpoints.save_checkpoint(name, {"w": torch.ones(3)}, {"noise_variance": 0.5}, tmp_path)
    noisy = tmp_path / "noisy.json"
    noisy.write_text(noisy.read_text().replace("0.5", "5.0"))
    for suffix in (".json", ".safetensors"):
        (tmp_path / f"second{suffix}").replace(tmp_path / f"first{suffix}")
    section = command.check_checkpoints()
    assert section.damaged == 2
    assert "first.json and its tensors are those of second" in section.lines[1]
    assert "noisy.safetensors or its manifest is damaged" in section.lines[2]


def test_checkpoints_in_a_folder_below_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "folders", lambda: [tmp_path])
    (tmp_path / "your_own").mkdir()
    checkpoints.save_checkpoint("below", {"w": torch.ones(3)}, {"recipe": {}}, tmp_path / "your_own")
    assert command.check_checkpoints().damaged == 0
    (tmp_path / "your_own" / "below.safetensors").write_bytes(b"cut")
    assert command.check_checkpoints().damaged == 1


def test_figures_are_compared_with_their_recipes(tmp_path):
    folder = tmp_path / "figures" / "quick"
    folder.mkdir(parents=True)
    (folder / "50_a.csv").write_text("a")
    listed = {"50_a.csv": hashlib.sha256(b"a").hexdigest(), "50_b.csv": "gone"}
    files.update_index(folder, {"50_a": {"files": listed}})
    section = command.check_figures(tmp_path)
    assert section.damaged == 1
    assert section.lines[0] == "quick: 2 files, 1 damaged"
    assert "50_b.csv; restore it, or run notebook 50 again" in section.lines[1]
    assert "none published" in section.lines[2]
    whole = (folder / "index.json").read_text()
    for content in ("{", "", "[]", "null", '{"50_a": 1}', whole.replace("gone", "lost")):
        (folder / "index.json").write_text(content)
        section = command.check_figures(tmp_path)
        assert section.damaged == 1, content
        assert "restore it" in section.lines[1], content
    (folder / "index.json").unlink()
    section = command.check_figures(tmp_path)
    assert section.damaged == 1 and "index.json is missing beside tables" in section.lines[1]


def test_notebooks_tell_of_their_last_run(tmp_path):
    whole = '{"cells": [{"cell_type": "markdown", "metadata": {}, "source": []}]}'
    for name, text in {"50_a": whole, "51_b": whole, "52_c": whole, "53_d": "{"}.items():
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(text)
    build = tmp_path / "build" / "full"
    build.mkdir(parents=True)
    write_record(build / "50_a.json", 240.0)
    (build / "51_b.error.txt").write_text("ZeroDivisionError")
    section = command.check_notebooks(tmp_path)
    first, second, third, fourth = section.lines
    assert "full run 20" in first and "took 4 min" in first
    assert "full run FAILED, see build/full/51_b.error.txt" in second
    assert third == "52_c: never ran here"
    assert re.search(r"DAMAGED: .*53_d.ipynb is damaged: it is no JSON .*; restore the notebook", fourth)
    assert section.damaged == 1


@pytest.mark.parametrize("content", ["", "[]", "null", '{"seconds": "long"}', '{"seconds": 240.0}'])
def test_a_damaged_record_of_a_run_is_told_with_its_remedy(tmp_path, content):
    for folder in ("notebooks", "build/quick"):
        (tmp_path / folder).mkdir(parents=True)
    cell = {"cell_type": "code", "metadata": {}, "source": "", "outputs": []}
    (tmp_path / "notebooks" / "50_a.ipynb").write_text(json.dumps({"cells": [cell]}))
    (tmp_path / "build" / "quick" / "50_a.json").write_text(content)
    section = command.check_notebooks(tmp_path)
    assert section.damaged == 1
    (line,) = section.lines
    assert "quick/50_a.json is damaged" in line and "delete it; its notebook will run again" in line
    assert runs.last_seconds(tmp_path, "quick", "50_a") is None


@pytest.mark.parametrize(
    "cells",
    [
        *(None, {}, [], [1], [{}], [{"cell_type": "code"}]),
        [{"cell_type": "code", "metadata": {}, "source": 3, "outputs": []}],
        [{"cell_type": "code", "metadata": [], "source": "", "outputs": []}],
        [{"cell_type": "code", "metadata": {"tags": 1}, "source": "", "outputs": []}],
        [{"cell_type": "code", "metadata": {"tags": [1]}, "source": "", "outputs": []}],
        [{"cell_type": "code", "metadata": {}, "source": ""}],
        [{"cell_type": "code", "metadata": {}, "source": "", "outputs": [1]}],
    ],
    ids=str,
)
def test_cells_that_are_none_are_told_before_anything_reads_them(tmp_path, cells):
    (tmp_path / "50_a.ipynb").write_text(json.dumps({"cells": cells}))
    with pytest.raises(
        files.DamagedError, match=r"50_a.ipynb is damaged: it has no cells, or .*; restore the notebook"
    ):
        runs.read_notebook(tmp_path / "50_a.ipynb")


def test_a_device_that_does_not_exist_is_damage(monkeypatch):
    assert command.check_machine().damaged == 0
    monkeypatch.setenv("XUQ_DEVICE", "abacus")
    section = command.check_machine()
    assert section.damaged == 1
    assert "abacus" in " ".join(section.lines)


@pytest.mark.parametrize("damaged", [0, 3, 1000])
def test_the_exit_code_counts_what_is_damaged(monkeypatch, capsys, damaged):
    monkeypatch.setattr(command, "check_data", lambda: command.Section("Data", ["a line"], damaged))
    others = "check_machine", "check_checkpoints", "check_figures", "check_notebooks"
    for name in others:
        monkeypatch.setattr(command, name, lambda name=name: command.Section(name, []))
    assert cli.main(["check"]) == min(damaged, 100)
    out = capsys.readouterr().out
    assert "Data\n  a line\n" in out
    assert out.endswith(f"{damaged} damaged: see the lines that say DAMAGED.\n" if damaged else "Nothing is damaged.\n")


def test_it_runs_as_a_module_and_other_commands_are_refused():
    ran = subprocess.run([sys.executable, "-m", "xuqlib", "chek"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "invalid choice: 'chek'" in ran.stderr


def test_the_last_run_here_goes_before_the_published_one(tmp_path):
    assert runs.last_seconds(tmp_path, "quick", "50_a") is None
    figures, build = tmp_path / "figures" / "quick", tmp_path / "build" / "quick"
    for folder in (figures, build):
        folder.mkdir(parents=True)
    recipes = {"50_x": ("50", 3.0), "50_y": ("50", 9.0), "50_z": ("50", None), "51_x": ("51", 99.0)}
    index = {stem: {"notebook": number, "seconds": seconds} for stem, (number, seconds) in recipes.items()}
    files.update_index(figures, index)
    assert runs.last_seconds(tmp_path, "quick", "50_a") == 9.0
    write_record(build / "50_a.json", 12.5)
    assert runs.last_seconds(tmp_path, "quick", "50_a") == 12.5


@pytest.mark.parametrize(
    ("seconds", "workers", "wanted"), [([10, 20, 30], 1, 60), ([10, 20, 30], 3, 30), ([5, 5, None], 2, 5), ([], 2, 0)]
)
def test_jobs_side_by_side_take_as_long_as_the_longest_or_their_share(seconds, workers, wanted):
    assert runs.expected(seconds, workers) == wanted


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "unknown"), (45.4, "45 s"), (240, "4 min"), (9000, "2.5 h"), (0, "0 s")]
)
def test_durations_are_told_in_the_unit_that_one_reads(seconds, words):
    assert runs.in_words(seconds) == words
