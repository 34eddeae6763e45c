"""`explain_dataset` equals `explain` of all examples, however many processes share the work and whatever kills them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import xuqlib as xuq
from xuqlib.inputs import Inputs
from xuqlib.scale import batches, explain_dataset, open_explanations
from xuqlib.scale.sources import Source, as_source
from xuqlib.scale.store import Store
from xuqlib.scale.stream import IncompleteError, _shard
from xuqlib.study.judging.timing import peak_memory

pytest.importorskip("zarr", reason="the extra `cluster` is not installed")


def images(count: int = 11, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 5)).eval()


def contents(path: Path) -> dict[str, bytes]:
    """All files of a store but its locks."""
    files = [each for each in path.rglob("*") if each.is_file() and each.parent.name != "locks"]
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in files}


def stream(draws, data, to, explainer=xuq.gradient, **options):
    return explain_dataset(draws, explainer, data, to=to, progress=False, **{"batch_size": 4, "num_draws": 6} | options)


def test_a_stream_equals_explain_of_all_examples_at_once(network, tmp_path):
    posterior, x = xuq.MCDropout(network), images()
    stored = stream(posterior, x, tmp_path / "maps.zarr", xuq.integrated_gradients, num_steps=4)
    draws = posterior.sample(6, seed=0)
    e = xuq.explain(draws, xuq.integrated_gradients, x, keep="moments", num_steps=4)
    every = xuq.explain(draws, xuq.integrated_gradients, x, num_steps=4)
    u = xuq.uncertainties(draws, x)
    for name, wanted in {
        "mean": e.mean(),
        "std": e.std(),
        "sign_agreement": every.sign_agreement(),
        "rescaled_std": e.moments["rescaled"].std(),
        "folded_mean": e.moments["folded"].mean,
        "total": u.total,
        "epistemic": u.epistemic,
        "answer_std": draws(x).double().std(0, correction=0),
    }.items():
        assert_close(torch.from_numpy(stored.dataset[name].values), wanted.float(), rtol=1e-5, atol=1e-8, msg=name)
    assert stored.dataset["target"].values.tolist() == e.target.tolist()
    assert stored.dataset["id"].values.tolist() == [str(i) for i in range(11)]
    for kind in ("paper", "signed", "ratio"):
        cv = torch.from_numpy(np.array(stored.cv(kind).values))
        assert_close(cv, e.cv(kind), rtol=1e-4, atol=1e-6, equal_nan=True)


def test_a_slice_is_an_explanation_distribution_with_all_that_it_can_do(network, tmp_path):
    x = images()
    draws = xuq.MCDropout(network).sample(6)
    stored = stream(draws, x, tmp_path / "all.zarr", keep="all")
    some, wanted = stored[3:7], xuq.explain(draws, xuq.gradient, x)[3:7]
    assert_close(some.values, wanted.values)
    assert some.target.tolist() == wanted.target.tolist()
    pd.testing.assert_frame_equal(some.to_frame(), wanted.to_frame())
    moments = stream(draws, x, tmp_path / "moments.zarr")[-1]
    assert_close(moments.cv(), xuq.explain(draws, xuq.gradient, x)[-1].cv(), rtol=1e-4, atol=1e-6, equal_nan=True)
    with pytest.raises(ValueError, match="only moments were kept"):
        moments.quantile(0.5)


@pytest.mark.parametrize("count", [2, 7])
def test_shards_write_the_same_bytes_as_one_run(network, tmp_path, count):
    draws, x = xuq.MCDropout(network).sample(4), images()
    stream(draws, x, tmp_path / "one.zarr", batch_size=2)
    for shard in reversed(range(count)):
        stream(draws, x, tmp_path / "many.zarr", batch_size=2, shard=f"{shard}/{count}")
    assert contents(tmp_path / "many.zarr") == contents(tmp_path / "one.zarr")
    assert len(contents(tmp_path / "one.zarr")) > 6 * 12


def test_a_store_that_is_not_finished_says_so(network, tmp_path):
    draws, x, to = xuq.MCDropout(network).sample(4), images(), tmp_path / "maps.zarr"
    partial = stream(draws, x, to, shard=(1, 3))
    assert np.isnan(partial.mean().values[0]).all() and np.isfinite(partial.mean().values[4:8]).all()
    with pytest.raises(ValueError, match=r"2 of 3 batches of maps.zarr are missing; run explain_dataset again"):
        open_explanations(to)


SCRIPT = """
import sys, time, torch
import xuqlib as xuq
from xuqlib.scale import explain_dataset
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, 5)).eval()
x = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(1))
def slow(network, x, target):
    time.sleep(0.01)
    return xuq.gradient(network, x, target)
for to in sys.argv[1:]:
    explain_dataset(xuq.MCDropout(network), slow, x, to=to, num_draws=3, batch_size=2, progress=False)
"""


def test_a_run_that_is_killed_at_any_moment_is_finished_by_the_next_one(tmp_path):
    script, to = tmp_path / "run.py", tmp_path / "maps.zarr"
    script.write_text(SCRIPT)
    whole, chunks = tmp_path / "whole.zarr", to / "whole" / "c"
    for some in (2, 7):
        run = subprocess.Popen([sys.executable, script, to])
        while not chunks.exists() or sum(path.name.isdigit() for path in chunks.iterdir()) < some:  # not half written
            assert run.poll() is None, "it ended before it was killed"
            time.sleep(0.003)
        run.kill()
        assert run.wait() == -signal.SIGKILL
        assert some <= 30 - len(Store(to).missing()) < 30
    subprocess.run([sys.executable, script, to, whole], check=True, capture_output=True)
    assert contents(to) == contents(whole)


def test_what_is_whole_is_not_explained_again(network, tmp_path):
    draws, x, calls = xuq.MCDropout(network).sample(3), images(), []

    def counted(network, x, target):
        calls.append(len(x))
        return xuq.gradient(network, x, target)

    stream(draws, x, tmp_path / "maps.zarr", counted, shard=(0, 2))
    calls.clear()
    stream(draws, x, tmp_path / "maps.zarr", counted)
    assert calls == [4, 4, 4]  # examples 4 to 7 alone, by each of three draws


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_draws": 5}, "num_draws 4, not 5"),
        ({"seed": 1}, "networks .*, not"),
        ({"data": images(12)}, "num_examples 11, not 12"),
        ({"data": images() * 0.5}, "data .*, not"),
        ({"explainer": xuq.guided_backprop}, "explainer 'gradient', not 'guided_backprop'"),
        ({"pool": 2}, "pool None, not 2"),
    ],
)
def test_another_recipe_is_refused_and_nothing_is_mixed(network, tmp_path, changed, named):
    posterior, to = xuq.MCDropout(network), tmp_path / "maps.zarr"
    given = {"data": images(), "num_draws": 4}
    stream(posterior, to=to, **given)
    before = contents(to)
    with pytest.raises(ValueError, match=f"made of something else: .*{named}.*overwrite=True"):
        stream(posterior, to=to, **given | changed)
    assert contents(to) == before
    stream(posterior, to=to, overwrite=True, **given | changed)


def test_two_runs_do_not_write_the_same_store_at_once(network, tmp_path):
    draws, x, to = xuq.MCDropout(network).sample(3), images(), tmp_path / "maps.zarr"
    stream(draws, x, to, shard=(0, 2))
    with Store(to).held((0, 2)):
        stream(draws, x, to, shard=(1, 2))
        for other in ((0, 2), (0, 1), (0, 3)):
            with pytest.raises(RuntimeError, match=r"another process is writing to maps.zarr \(shard 0-of-2\)"):
                stream(draws, x, to, shard=other)
    stream(draws, x, to)


class Poisoned(torch.utils.data.Dataset):
    def __init__(self, bad: int) -> None:
        self.x, self.bad = images(), bad

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.x[row] * (float("nan") if row == self.bad else 1)


def test_a_poisoned_example_fails_its_batch_alone_and_says_which(network, tmp_path):
    draws, to = xuq.MCDropout(network).sample(3), tmp_path / "maps.zarr"
    with pytest.raises(IncompleteError, match="1 of 3 batches failed, first examples 4 to 7 .*holds 192 NaN") as caught:
        stream(draws, Poisoned(5), to)
    assert list(caught.value.failed) == [1]
    found = open_explanations(to, partial=True).mean().values
    assert np.isfinite(found[[0, 3, 8, 10]]).all() and np.isnan(found[4:8]).all()


def test_a_full_disk_ends_the_run_in_one_line_and_the_next_goes_on(network, tmp_path, monkeypatch):
    draws, x, to = xuq.MCDropout(network).sample(3), images(), tmp_path / "maps.zarr"
    write, calls = Store.write, []

    def full(self, number, arrays):
        calls.append(number)
        if number == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, number, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "write", full)
        with pytest.raises(OSError, match="No space left on device while writing maps.zarr; make room and run again"):
            stream(draws, x, to)
    assert calls == [0, 1]
    assert Store(to).missing() == [1, 2]
    stream(draws, x, to)


def test_a_damaged_chunk_is_noticed_by_whoever_reads_it(network, tmp_path):
    to = tmp_path / "maps.zarr"
    stored = stream(xuq.MCDropout(network).sample(3), images(), to)
    chunk = to / "mean" / "c" / "1" / "0" / "0" / "0"
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    assert stored[:4].mean().isfinite().all()
    with pytest.raises(ValueError, match="checksum"):
        stored[4:8]


def test_maps_are_pooled_draw_by_draw(network, tmp_path):
    draws, x = xuq.MCDropout(network).sample(5), images()
    stored = stream(draws, x, tmp_path / "maps.zarr", pool=2)
    values = xuq.explain(draws, xuq.gradient, x).values.unflatten(-1, (2, 4)).unflatten(-3, (2, 4)).mean((-1, -3))
    assert_close(torch.from_numpy(stored.std().values), values.std(0, correction=0), rtol=1e-4, atol=1e-7)


def test_float16_says_how_far_each_map_is_off(network, tmp_path):
    draws, x = xuq.MCDropout(network).sample(5), images()
    stored = stream(draws, x, tmp_path / "half.zarr", dtype="float16")
    mean = xuq.explain(draws, xuq.gradient, x).mean().flatten(1)
    error = (torch.from_numpy(stored.mean().values).double().flatten(1) - mean).norm(dim=1) / mean.norm(dim=1)
    assert_close(torch.from_numpy(stored.dataset["rounding"].values).double(), error, rtol=1e-3, atol=1e-7)
    assert 0 < float(error.max()) < 2**-10


def frame() -> pd.DataFrame:
    values = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    return pd.DataFrame(values, columns=["age", "height", "weight"]).assign(id=[f"p{i}" for i in range(9)], label=1)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_is_read_from_its_file(tmp_path, suffix):
    path, table = tmp_path / f"people.{suffix}", frame()
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    torch.manual_seed(0)
    draws = xuq.MCDropout(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).eval()).sample(4)
    stored = stream(draws, path, tmp_path / "maps.zarr", target="labels")
    x = torch.tensor(table[["age", "height", "weight"]].to_numpy())
    e = xuq.explain(draws, xuq.gradient, x, 1)
    assert_close(torch.from_numpy(stored.mean().values).double(), e.mean(), rtol=1e-4, atol=1e-7)
    assert stored.dataset["feature"].values.tolist() == ["age", "height", "weight"]
    assert stored.dataset["id"].values.tolist() == table["id"].tolist()
    assert stored[2].feature_names == ("age", "height", "weight")


@pytest.mark.parametrize(("index", "wanted"), [(["ann", "bob"], ["ann", "bob"]), ([7, 3], ["7", "3"])])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_index_that_pandas_writes_names_the_rows_and_is_no_feature(tmp_path, suffix, index, wanted):
    path = tmp_path / f"t.{suffix}"
    table = pd.DataFrame({"a": [1.0, 2.0], "y": [0, 1]}, index=index)
    table.to_csv(path) if suffix == "csv" else table.to_parquet(path)
    source = as_source(path)
    assert source.feature_names == ("a",) and source.read([1, 0]).ids == wanted[::-1]


def test_a_folder_of_images_is_read_in_the_order_of_its_paths(network, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "photos" / "b").mkdir(parents=True)
    names = ["a.png", "b/c.png", "d.png"]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(tmp_path / "photos" / name)
    draws = xuq.MCDropout(network).sample(3)
    stored = stream(draws, tmp_path / "photos", tmp_path / "maps.zarr")
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    wanted = xuq.explain(draws, xuq.gradient, x).mean()
    assert_close(torch.from_numpy(stored.mean().values).double(), wanted, rtol=1e-5, atol=1e-8)
    assert stored.dataset["id"].values.tolist() == names
    (tmp_path / "photos" / "d.png").write_bytes(b"no image")
    with pytest.raises(IncompleteError, match=r"cannot read the image d\.png"):
        stream(draws, tmp_path / "photos", tmp_path / "other.zarr", batch_size=1)


def test_a_table_that_cannot_be_explained_is_told_and_labels_may_be_words(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n1,2,no\n3,4,yes\n")
    batch = as_source(path).read([1])
    assert batch.inputs.x.tolist() == [[3, 4]] and batch.labels is None
    for text, message in {
        "a,b,y\n1,2,0\n3,,1\n": r"1 missing or infinite numbers, the first in row 1 \(from 0\), column 'b'",
        "a,b,y\ninf,2,0\n3,,1\n": r"2 missing or infinite numbers, the first in row 0 \(from 0\), column 'a'",
        "a,b,y\n": r"t\.csv has no rows",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            as_source(path)
    with pytest.raises(ValueError, match="holds no explanations; pass"):
        open_explanations(path)


def test_an_image_that_bytes_cannot_hold_or_that_is_damaged_is_named(tmp_path):
    plain = np.full((2, 2), 51, np.uint8)
    Image.fromarray(plain).save(tmp_path / "a.png")
    assert_close(as_source(tmp_path).read([0]).inputs.x, torch.full((1, 3, 2, 2), 0.2))
    for wide in (plain * np.uint16(257), plain / np.float32(255)):  # Pillow would make all of it white, or black
        Image.fromarray(wide).save(tmp_path / "a.tiff")
        with pytest.raises(ValueError, match=r"the image a\.tiff: its pixels are no bytes.* write it with 8 bits"):
            as_source(tmp_path).read([1])
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.tiff").write_bytes(
        whole[:36] + bytes([whole[36] - 8]) + whole[37:]
    )  # a chunk that says it is shorter
    with pytest.raises(ValueError, match=r"cannot read the image a\.tiff: broken PNG"):
        as_source(tmp_path).read([1])
    huge = whole[:16] + (10**6).to_bytes(4) * 2 + whole[24:29]
    (tmp_path / "a.tiff").write_bytes(huge + zlib.crc32(huge[12:]).to_bytes(4) + whole[33:])
    with pytest.raises(ValueError, match=r"cannot read the image a\.tiff: Image size"):
        as_source(tmp_path).read([1])


@pytest.mark.parametrize("kind", ["dataset", "loader", "examples", "inputs"])
def test_whatever_holds_the_examples_gives_the_same(network, tmp_path, kind):
    x, draws = images(9), xuq.MCDropout(network).sample(3)
    labelled = TensorDataset(x, torch.zeros(9, dtype=torch.long))
    given = {"dataset": labelled, "loader": DataLoader(labelled, batch_size=5), "inputs": Inputs(x)}
    given["examples"] = xuq.Examples("mine", "test", x, torch.zeros(9, dtype=torch.long), torch.arange(9))
    stored = stream(draws, given[kind], tmp_path / "maps.zarr", batch_size=None)
    assert stored.recipe["batch_size"] == (5 if kind == "loader" else 9) or kind in ("dataset", "examples", "inputs")
    wanted = xuq.explain(draws, xuq.gradient, x).mean()
    assert_close(torch.from_numpy(stored.mean().values).double(), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (iter([1]), TypeError, "length and order are not known"),
        ("nowhere.csv", FileNotFoundError, "no such file or folder"),
        (DataLoader(TensorDataset(images()), shuffle=True), ValueError, "shuffle=False"),
        (torch.zeros(0, 3, 8, 8), ValueError, "at least one example"),
        (3, TypeError, "length and order are not known"),
    ],
)
def test_data_without_an_order_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        as_source(data)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"pool": 9}, ValueError, "pool is 9, but an example has shape"),
        ({"keep": "mean"}, ValueError, "unknown keep 'mean'"),
        ({"dtype": "int8"}, ValueError, "unknown dtype"),
        ({"shard": (2, 2)}, ValueError, "of 2 shards there are numbers 0 to 1"),
        ({"shard": "a"}, ValueError, "shard is 'a'"),
        ({"target": [1, 2]}, ValueError, "target has 2 entries"),
        ({"target": "truth"}, ValueError, "unknown target"),
        ({"batch_size": -1}, ValueError, "batch_size is -1"),
        ({"num_draws": 0}, ValueError, "num_draws is 0"),
        ({"draws": [nn.Linear(2, 2)]}, TypeError, "draws is a list; pass a posterior"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(network, tmp_path, wrong, error, message):
    given = {"draws": xuq.MCDropout(network), "data": images(), "to": tmp_path / "maps.zarr"} | wrong
    with pytest.raises(error, match=message):
        stream(given.pop("draws"), given.pop("data"), given.pop("to"), **given)
    assert list(tmp_path.iterdir()) == []


def test_a_store_does_not_take_the_place_of_a_file(network, tmp_path):
    (tmp_path / "maps.zarr").write_text("notes")
    with pytest.raises(ValueError, match="to is 'maps.zarr', a file; pass the path of a folder"):
        stream(xuq.MCDropout(network), images(), tmp_path / "maps.zarr", overwrite=True)
    assert (tmp_path / "maps.zarr").read_text() == "notes"


def test_shards_are_read_from_the_job_arrays_of_schedulers(monkeypatch):
    for name in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match='shard is "auto", but neither'):
        _shard("auto")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert _shard("auto") == (2, 3)
    for name, value in {"ID": "5", "COUNT": "4", "MIN": "3"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert _shard("auto") == (2, 4)


class Endless(Source):
    """Any number of small examples, made when they are read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def read(self, rows: range):
        generator = torch.Generator().manual_seed(rows.start)
        x = torch.rand(len(rows), 6, generator=generator)
        return as_source(x).read(range(len(rows)))

    @property
    def contents(self):
        return self.count


@pytest.mark.parametrize("pool", [None, 2])
def test_attributions_of_some_draws_are_gone_when_the_next_are_explained(network, tmp_path, monkeypatch, pool):
    made, explain = list[StorageWeakRef](), batches.explain

    def watched(*given, **options):
        assert all(storage.expired() for storage in made)
        e = explain(*given, **options)
        made.append(StorageWeakRef(e.values.untyped_storage()))
        assert not made[-1].expired()
        return e

    monkeypatch.setattr(batches, "explain", watched)
    monkeypatch.setattr(batches, "DRAWS_AT_ONCE", 2)
    stored = stream(xuq.MCDropout(network), images(), tmp_path / "maps.zarr", pool=pool)
    assert len(made) >= 3 * 3 and stored.mean().shape[0] == 11  # three groups of draws for each of three batches


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_examples(tmp_path):
    """From one batch to forty; a map of each example held would be 2.5 MB more."""
    setup = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch, zarr
from scale.test_stream import Endless
from xuqlib import MCDropout, explain_dataset, gradient
torch.set_num_threads(1)
network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2))
def run(count):
    to = {str(tmp_path)!r} + f"/{{count}}.zarr"
    explain_dataset(MCDropout(network.eval()), gradient, Endless(count), to=to, batch_size=250, progress=False)
"""
    few, many = peak_memory(["run(250)", "run(10_000)"], setup=setup)
    assert many <= 1.05 * few


def test_a_store_of_the_same_is_gone_on_with_and_another_folder_is_never_removed(network, tmp_path):
    draws, x, to = xuq.MCDropout(network).sample(3), images(), tmp_path / "maps.zarr"
    stream(draws, x, to, shard=(0, 2), overwrite=True)
    before = contents(to)
    stream(draws, x, to, shard=(1, 2), overwrite=True)
    assert before.items() < contents(to).items()
    photographs = tmp_path / "photographs"
    (photographs / "whole").mkdir(parents=True)
    (photographs / "a.png").write_bytes(b"dear")
    with pytest.raises(ValueError, match="photographs holds no explanations; pass"):
        stream(draws, x, photographs, overwrite=True)
    assert (photographs / "a.png").read_bytes() == b"dear"


def test_draws_that_do_not_fit_together_are_made_as_they_are_used_and_give_the_same_bytes(
    network, tmp_path, monkeypatch
):
    posterior, x, made = xuq.MCDropConnect(network, placement="all"), images(), []
    draws, drawn = posterior.sample(7, seed=3), xuq.MCDropConnect.drawn
    monkeypatch.setattr("xuqlib.scale.batches.WEIGHTS_AT_ONCE", 3000)  # of 828 numbers a draw: three
    held = stream(draws, x, tmp_path / "held.zarr", keep="all")
    monkeypatch.setattr(xuq.MCDropConnect, "drawn", lambda *given: (made.append(given[1]), drawn(*given))[1])
    stream(posterior, x, tmp_path / "made.zarr", keep="all", num_draws=7, seed=3)
    assert set(made) == {range(2), range(3), range(3, 6), range(6, 7)}  # the first to see how large they are
    assert made.count(range(3, 6)) == 2 * 4  # for three batches, and for the layout of the store
    stores = [contents(tmp_path / name) for name in ("held.zarr", "made.zarr")]
    assert {name: held for name, held in stores[0].items() if "/c/" in name}.items() <= stores[1].items()
    monkeypatch.undo()
    wanted = xuq.explain(draws, xuq.gradient, x)
    assert_close(held[:].values, wanted.values)
    assert held.dataset["target"].values.tolist() == wanted.target.tolist()


def test_a_draw_alone_is_the_one_that_sample_has_at_its_place(network):
    posterior = xuq.Flipout(network, placement="all")
    for alone, among in zip(posterior.drawn(range(2, 5), 1), posterior.sample(6, seed=1)[2:5], strict=True):
        assert contents_of(alone) == contents_of(among)


def contents_of(network: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in network.state_dict().values()]


def test_the_places_of_a_segmentation_are_those_of_all_draws_whatever_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr("xuqlib.scale.batches.WEIGHTS_AT_ONCE", 1)
    torch.manual_seed(0)
    posterior = xuq.MCDropConnect(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), placement="all")
    stored = stream(posterior, images(2), tmp_path / "maps.zarr", output="segmentation", num_draws=3)
    wanted = xuq.explain(posterior.sample(3), xuq.gradient, images(2), output="segmentation").mean()
    assert_close(torch.from_numpy(stored.mean().values).double(), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_draws_of_large_weights(tmp_path, monkeypatch):
    """Of a million weights each: forty draws that exist at once are 144 MB more than four.

    Threads draw them, and malloc's arenas, one a thread, keep up to 60 MB of what they have freed; so it has one here.
    """
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    setup = f"""
import torch, zarr
from xuqlib import MCDropConnect, explain_dataset, gradient
from xuqlib.scale import batches
torch.set_num_threads(1)
batches.WEIGHTS_AT_ONCE = 2_200_000
network = torch.nn.Sequential(torch.nn.Linear(1000, 1000), torch.nn.ReLU(), torch.nn.Linear(1000, 2)).eval()
posterior, x = MCDropConnect(network, placement="all"), torch.rand(2, 1000)
def run(count):
    to = {str(tmp_path)!r} + f"/{{count}}.zarr"
    explain_dataset(posterior, gradient, x, to=to, num_draws=count, batch_size=2, progress=False)
"""
    few, many = peak_memory(["run(4)", "run(40)"], setup=setup)
    assert many <= 1.05 * few
