"""Parameters, claims, and the publishing of results."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import ImageChops

from xuqlib.device import device
from xuqlib.study import files
from xuqlib.study import record as study
from xuqlib.study.files import DamagedError, figures_folder, update_index, versions
from xuqlib.study.record import Notebook, csv_bytes, save
from xuqlib.study.runs import parameters

RECIPE = {
    "notebook": "04",
    "preset": "quick",
    "seed": 3,
    "dataset": "planted",
    "dataset_digest": "ab",
    "posterior": "p",
}
FRAME = pd.DataFrame({"draws": [8, 32], "error": [0.25, 0.125]})


def test_quick_changes_only_the_preset():
    assert parameters("quick", "04") == {"preset": "quick"}


def test_full_explains_real_data_with_at_least_the_promised_sizes():
    assert parameters("full", "08")["dataset"] == "california_housing"
    values = parameters("full", "04")
    assert values["preset"] == "full"
    assert values["dataset"] == "cifar10"
    assert int(values["num_draws"]) >= 50  # type: ignore[call-overload]


def test_every_first_notebook_has_full_parameters():
    assert set(yaml.safe_load((files.ROOT / "notebooks" / "sizes.yaml").read_text())["full"]) >= {
        "00",
        "01",
        "02",
        "03",
        "04",
        "08",
    }


@pytest.mark.parametrize("ask", [lambda: parameters("big", "04"), lambda: figures_folder("big")])
def test_an_unknown_preset_is_refused_with_the_known_ones(ask):
    with pytest.raises(ValueError, match="'big' is not known; choose one of quick, full"):
        ask()


def test_the_device_can_be_chosen_by_name(monkeypatch):
    monkeypatch.setenv("XUQ_DEVICE", "cpu")
    assert device() == torch.device("cpu")
    monkeypatch.setenv("XUQ_DEVICE", "abacus")
    with pytest.raises(ValueError, match="XUQ_DEVICE is 'abacus'"):
        device()


def test_without_a_choice_the_device_is_cuda_where_there_is_one(monkeypatch):
    monkeypatch.delenv("XUQ_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device().type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device().type == "cuda"


def test_versions_name_what_is_installed():
    found = versions()
    assert found["numpy"] == np.__version__
    assert set(found) == {"python", "torch", "torchvision", "numpy", "pandas", "xuq", "machine"}


def test_a_csv_holds_six_digits_and_no_negative_zero():
    frame = pd.DataFrame({"n": [1, 2], "x": [1 / 3, -0.0], "y": np.array([0.1, np.nan], np.float32), "s": ["a", "b"]})
    assert csv_bytes(frame) == b"n,x,y,s\n1,0.333333,0.1,a\n2,0,,b\n"


def test_saving_writes_picture_numbers_and_recipe(figures):
    save(Figure(figsize=(1, 1)), FRAME, "std_error", **RECIPE, device="cpu", seconds=1.26)
    folder = figures / "quick"
    assert (folder / "04_std_error.csv").read_text() == "draws,error\n8,0.25\n32,0.125\n"
    assert (folder / "04_std_error.png").read_bytes().startswith(b"\x89PNG")
    entry = json.loads((folder / "index.json").read_text())["04_std_error"]
    assert {name: entry[name] for name in RECIPE} == RECIPE
    assert entry["seconds"] == 1.3
    assert entry["device"] == "cpu"
    assert entry["versions"] == versions()
    assert set(entry["files"]) == {"04_std_error.csv", "04_std_error.png"}


def test_a_recipe_holds_the_title_of_its_figure(figures):
    figure = Figure(figsize=(1, 1))
    save(figure, FRAME, "plain", **RECIPE)
    figure.suptitle("It moves\nlittle")
    save(figure, FRAME, "titled", **RECIPE)
    save(None, FRAME, "table", **RECIPE)
    entries = json.loads((figures / "quick" / "index.json").read_text())
    titles = {name: entry.get("title") for name, entry in entries.items()}
    assert titles == {"04_plain": None, "04_titled": "It moves little", "04_table": None}


def test_the_same_figure_gives_the_same_bytes(figures):
    written = []
    for _ in range(2):
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([1, 3, 2])
        save(figure, FRAME, "line", **RECIPE)
        written.append((figures / "quick" / "04_line.png").read_bytes())
    assert written[0] == written[1]
    assert b"matplotlib" not in written[0].lower()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "lower-case words"),
        ({"name": "Two Words"}, "lower-case words"),
        ({"notebook": "4"}, "two-digit number"),
        ({"notebook": "٠٤"}, "two-digit number"),
        ({"preset": "big"}, "not known"),
        ({"frame": FRAME.iloc[:0]}, "a frame of 0 rows .*; pass a frame with at least one row"),
    ],
)
def test_a_malformed_publication_is_refused_and_writes_nothing(figures, change, message):
    with pytest.raises(ValueError, match=message):
        save(**{"figure": None, "frame": FRAME, "name": "x", **RECIPE, **change})
    assert not list(figures.rglob("*.csv"))


def test_a_write_that_breaks_off_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "index.json"
    files.replace_file(path, b"old")

    def broken(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="No space left.*index.json"):
        files.replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["index.json"]


def test_a_file_and_its_name_are_on_the_disk_before_anything_rests_on_them(tmp_path, monkeypatch):
    steps, replace, fsync = [], os.replace, os.fsync

    def of(number: int) -> str:
        return "folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file"

    monkeypatch.setattr(os, "fsync", lambda number: (steps.append(of(number)), fsync(number))[1])
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("name"), replace(*paths))[1])
    files.replace_file(tmp_path / "a", b"new")
    assert steps == ["file", "name", "folder"]


def test_temporaries_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = f".a.csv.{dead.pid}.tmp", f".a.csv.{os.getpid()}.tmp", ".index.lock", "b.csv", ".mine.tmp"
    for name in names:
        (tmp_path / name).write_text("half")
    files.remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


def _publish_many(folder: Path, start: int) -> None:
    for number in range(start, start + 20):
        update_index(folder, {f"{number:02}_x": {"seed": number}})


def test_notebooks_that_publish_at_once_lose_no_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_publish_many, args=(tmp_path, start)) for start in (0, 20, 40)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    index = json.loads((tmp_path / "index.json").read_text())
    assert list(index) == [f"{number:02}_x" for number in range(60)]


def test_an_index_entry_can_be_dropped(tmp_path):
    update_index(tmp_path, {"a": {"seed": 1}, "b": {"seed": 2}})
    update_index(tmp_path, {"a": None})
    (entry,) = json.loads((tmp_path / "index.json").read_text()).items()
    assert entry == ("b", {"sha256": hashlib.sha256(b'{"seed": 2, "stem": "b"}').hexdigest(), "seed": 2})


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "7", '{"04_a": 1}', '{"04_a": []}'])
def test_an_index_that_is_none_is_one_error_with_its_remedy_and_stays_as_it_is(tmp_path, content):
    path = tmp_path / "index.json"
    path.write_text(content)
    told = f"{re.escape(str(path))} is damaged: .*; restore it, or delete it and run the notebooks again$"
    for ask in (files.read_index, files.whole_recipes, lambda folder: update_index(folder, {"b": {"seed": 2}})):
        with pytest.raises(DamagedError, match=told):
            ask(tmp_path)
    assert len(files.index_problems(tmp_path)) == 1
    assert path.read_text() == content


def test_an_entry_that_was_changed_or_renamed_or_lost_is_told_by_name(tmp_path):
    update_index(tmp_path, {"04_a": {"seed": 1}, "05_b": {"seed": 1}, "06_c": {"seed": 1}})
    (tmp_path / "04_a.csv").write_text("x")
    assert files.index_problems(tmp_path) == []
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace("04_a", "04_z", 1).replace('"seed": 1\n }\n}', '"seed": 2\n }\n}'))
    told = [problem.rpartition("index.json ")[2] for problem in files.index_problems(tmp_path)]
    assert told == [
        "has nothing on 04_a; restore it, or run notebook 04 again",
        "is damaged at 04_z; restore it, or run notebook 04 again",
        "is damaged at 06_c; restore it, or run notebook 06 again",
    ]
    assert set(files.whole_recipes(tmp_path)) == {"05_b"}
    update_index(tmp_path, files.read_index(tmp_path))  # whoever vouches for what stands there seals it again
    assert set(files.whole_recipes(tmp_path)) == {"04_z", "05_b", "06_c"}


def test_an_index_that_is_missing_beside_tables_is_told(tmp_path):
    assert files.index_problems(tmp_path) == []
    for stem in ("04_a", "05_b"):
        (tmp_path / f"{stem}.csv").write_text("x")
    (told,) = files.index_problems(tmp_path)
    assert told == f"{tmp_path / 'index.json'} is missing beside tables; restore it, or run their notebooks again"


def test_a_published_file_is_read_only_as_it_was_published(figures):
    save(None, FRAME, "std_error", **RECIPE)
    path = figures / "quick" / "04_std_error.csv"
    assert files.read_published(path) == csv_bytes(FRAME)
    path.write_text("draws,error\n8,0.26\n32,0.125\n")
    with pytest.raises(DamagedError, match="04_std_error.csv is not what index.json says; restore both, or run noteb"):
        files.read_published(path)


def notebook() -> Notebook:
    return Notebook("04", preset="quick", seed=3, dataset="planted", dataset_digest="ab", posterior="mc_dropout")


def test_a_notebook_publishes_under_its_own_recipe_unless_told_otherwise(figures):
    figure = Figure(figsize=(1, 1))
    assert notebook().save(figure, FRAME, "one") is figure
    notebook().save(figure, FRAME, "two", posterior="flipout")
    index = json.loads((figures / "quick" / "index.json").read_text())
    assert index["04_one"]["posterior"] == "mc_dropout"
    assert index["04_two"]["posterior"] == "flipout"
    assert index["04_two"]["dataset"] == "planted"
    assert index["04_two"]["seconds"] >= 0


def test_results_of_a_readers_own_data_go_to_their_own_folder_and_nothing_published_is_shown(figures, tmp_path):
    study = Notebook("04", preset="quick", seed=0, dataset="mine", folder=tmp_path / "mine")
    study.save(Figure(figsize=(1, 1)), FRAME, "line")
    study.claim("it holds", True, value=1.0)
    study.claims()
    assert {path.name for path in (tmp_path / "mine").glob("04_*")} == {"04_line.csv", "04_line.png", "04_claims.csv"}
    assert json.loads((tmp_path / "mine" / "index.json").read_text())["04_line"]["dataset"] == "mine"
    assert not (figures / "quick").exists()
    assert "nothing is published" in study.published("how_steady").data


def test_claims_are_published_and_a_negative_verdict_reads_like_any_other(figures):
    running = notebook()
    running.claim(
        "spread falls", np.bool_(True), value=0.5, interval=(0.4, 0.6), unit="nats", note="95 % over examples"
    )
    running.claim("spread is zero", False, value=torch.tensor(0.5).item())
    running.claim("maps differ", None, value=0.1)
    frame = running.claims()
    assert list(frame.columns) == ["claim", "statement", "value", "low", "high", "unit", "verdict", "note"]
    assert list(frame["verdict"]) == ["holds", "fails", "undecided"]
    assert frame.loc[0, ["low", "high"]].tolist() == [0.4, 0.6]
    written = pd.read_csv(figures / "quick" / "04_claims.csv")
    assert list(written["verdict"]) == list(frame["verdict"])
    assert list(written.columns) == list(study.CLAIM_COLUMNS)
    assert list(written["claim"]) == ["04-1", "04-2", "04-3"]
    assert set(written["dataset"]) == {"planted"}
    assert written["n"].isna().all()
    assert not (figures / "quick" / "04_claims.png").exists()


def test_an_interval_must_be_ordered_and_say_what_it_is_of():
    with pytest.raises(ValueError, match="pass its low end first"):
        notebook().claim("c", True, value=1.0, interval=(2.0, 1.0), note="95 % over examples")
    with pytest.raises(ValueError, match="needs a note"):
        notebook().claim("c", True, value=1.0, interval=(0.0, 1.0))


def test_a_notebook_without_claims_cannot_close():
    with pytest.raises(ValueError, match="notebook 04 has made no claim"):
        notebook().claims()


def test_the_published_figure_is_shown_whole_under_a_line_and_its_absence_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "ROOT", tmp_path)
    assert "Not published yet: `figures/full/04_maps.png`" in notebook().published("maps").data
    folder = tmp_path / "figures" / "full"
    folder.mkdir(parents=True)
    figure = Figure(figsize=(20, 10))
    figure.subplots().plot([1, 2])
    figure.savefig(folder / "04_maps.png", dpi=110)
    digest = hashlib.sha256((folder / "04_maps.png").read_bytes()).hexdigest()
    files.update_index(folder, {"04_maps": {"title": "Both agree", "files": {"04_maps.png": digest}}})
    shown = notebook().published("maps")
    assert shown.metadata == {"published": {"file": "04_maps.png", "title": "Both agree"}}
    with PIL.Image.open(folder / "04_maps.png") as own, PIL.Image.open(io.BytesIO(shown.data)) as seen:
        assert seen.size == (own.width, own.height + 44)
        below = seen.crop((0, 44, *seen.size)).convert("RGB")
        assert ImageChops.difference(below, own.convert("RGB")).getbbox() is None
        assert min(seen.crop((0, 0, own.width, 44)).convert("L").tobytes()) < 128  # the line
    files.update_index(folder, {"04_maps": {"files": {"04_maps.png": "another"}}})
    told = notebook().published("maps").data  # which a notebook stores
    assert "Not shown: figures/full/04_maps.png is not what index.json says" in told and str(tmp_path) not in told
