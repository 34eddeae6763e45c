"""No file is unpickled: a pickle is a program, and a data folder may come from anyone."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from xuqlib.study.data import download, readers
from xuqlib.study.data.download import DataError
from xuqlib.study.data.loading import load
from xuqlib.study.training.mobilenet import mobilenet_v2

ROOT = Path(__file__).resolve().parents[2]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def tar(name: str, body: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(body)
        archive.addfile(member, io.BytesIO(body))
    return stream.getvalue()


def batch(hostile: Hostile) -> bytes:
    return pickle.dumps({"first": hostile, "data": hostile, "labels": hostile, "fine_labels": hostile})


def objects(hostile: Hostile) -> np.ndarray:
    return np.array([hostile, None], dtype=object)


# Where a pickle can lie, and who reads it. Digests are made to agree: the reader itself must not run it.
PLACES = {
    "california_housing/cal_housing_py3.pkz": ("california_housing", lambda h: zlib.compress(pickle.dumps(h))),
    "cal_housing_py3.pkz": ("california_housing", lambda h: pickle.dumps(h)),
    "california_housing/cal_housing.csv.gz": ("california_housing", lambda h: gzip.compress(pickle.dumps(h))),
    "cifar-10-batches-py/test_batch": ("cifar10", batch),
    "cifar-10-python.tar.gz": ("cifar10", lambda h: tar("cifar-10-batches-py/test_batch", batch(h))),
    "cifar-100-python.tar.gz": ("cifar100", lambda h: tar("cifar-100-python/test", batch(h))),
    "cifar10_human/cifar10h_counts.npy": ("cifar10h", lambda h: npy(objects(h))),
    "ucr/ECG200.npz": ("ecg200", lambda h: npz(x_test=objects(h), y_test=objects(h))),
}


@pytest.mark.parametrize("path", PLACES)
def test_a_pickle_in_a_data_folder_is_refused_and_not_run(path, tmp_path, monkeypatch):
    name, make = PLACES[path]
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    mark, file = tmp_path / "ran", tmp_path / "data" / path
    file.parent.mkdir(parents=True)
    file.write_bytes(make(Hostile(mark)))
    monkeypatch.setitem(download.SHA256, path, hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises((DataError, ValueError)):
        load(name, data=tmp_path / "data")
    assert not mark.exists()


def test_weights_that_are_pickled_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    folder, name = tmp_path / "imagenet_mobilenet", "imagenet_mobilenet/mobilenet_v2_1.0_224"
    folder.mkdir()
    hostile = objects(Hostile(tmp_path / "ran"))
    for ending, body in {
        "json": b'{"ops": [' + b",".join([b'{"layer": 0}'] * 53) + b"]}",
        "npz": npz(**{"0.weight": hostile}),
    }.items():
        (tmp_path / f"{name}.{ending}").write_bytes(body)
        monkeypatch.setitem(download.SHA256, f"{name}.{ending}", hashlib.sha256(body).hexdigest())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        mobilenet_v2(data=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_unpickling_these_files_would_have_run_them(tmp_path):
    pickle.loads(batch(Hostile(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def python_2_batch(pictures: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 wrote it, protocol 2: with this, the files of CIFAR-10 have their published MD5."""
    values = pictures.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x14testing batch 1 of 1q\x03U\x06labelsq\x04]q\x05(",
            *(b"K" + bytes([label]) for label in labels[:1000]),
            b"e",
            *([b"(", *(b"K" + bytes([label]) for label in labels[1000:]), b"e"] if labels[1000:] else []),
            b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\t",
            b"(K\x01M"
            + struct.pack("<H", len(pictures))
            + b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b",
            b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T" + struct.pack("<i", len(values)) + values,
            b"tbU\tfilenamesq\x0c]q\r(U\x05a.pngq\x0eU\x05b.pngq\x0feu.",
        ]
    )


@pytest.mark.parametrize("count", [2, 1000, 1500])
def test_a_batch_of_python_2_is_read_as_pickle_reads_it(count):
    stream = np.random.default_rng(count)
    pictures, labels = stream.integers(0, 256, (count, 3072), dtype=np.uint8), stream.integers(0, 100, count).tolist()
    content = python_2_batch(pictures, labels)
    known = pickle.loads(content, encoding="latin1")  # made three lines above
    assert readers.pickled_list(content, "labels") == labels == known["labels"]
    assert readers.pickled_list(content, "filenames") == ["a.png", "b.png"] == known["filenames"]
    np.testing.assert_array_equal(readers.pickled_pictures(content, "data").reshape(count, -1), pictures)
    np.testing.assert_array_equal(known["data"], pictures)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_lists_of_every_binary_protocol_are_read(protocol):
    known = {"names": ["apple", "pear"], "other": ["no", "no!"], "labels": [0, 300, 70_000]}
    content = pickle.dumps(known, protocol)
    assert {key: readers.pickled_list(content, key) for key in known} == known


@pytest.mark.parametrize(
    ("value", "message"),
    [([], "no list"), ("text", "no list"), ({"labels": 1}, "no list"), ([[1], [2]], "holds a EMPTY_LIST")],
)
def test_a_pickle_without_the_list_is_an_error(value, message):
    with pytest.raises(ValueError, match=message):
        readers.pickled_list(pickle.dumps({"labels": value}), "labels")
    with pytest.raises(ValueError, match="has no 'data'"):
        readers.pickled_list(pickle.dumps({"labels": value}), "data")
    with pytest.raises(ValueError, match="no pictures 'labels'"):
        readers.pickled_pictures(pickle.dumps({"labels": value}), "labels")
    with pytest.raises(ValueError, match="exhausted"):
        readers.pickled_list(pickle.dumps({"labels": value})[:-1], "data")


def test_a_cache_of_scikit_learn_that_unfolds_without_end_is_refused(tmp_path):
    packed = zlib.compressobj()
    (tmp_path / "cal_housing_py3.pkz").write_bytes(packed.compress(bytes(80_000_000)) + packed.flush())
    with pytest.raises(DataError, match=r"cal_housing_py3.pkz is damaged or truncated"):
        load("california_housing", data=tmp_path)


def test_a_cache_of_scikit_learn_with_other_numbers_is_refused(tmp_path):
    (tmp_path / "cal_housing_py3.pkz").write_bytes(zlib.compress(bytes(20640 * 9 * 8) + b"."))
    with pytest.raises(DataError, match=r"cal_housing_py3.pkz: expected values with sha256"):
        load("california_housing", data=tmp_path)


UNSAFE = ("joblib.load", "pd.read_pickle", "fetch_california_housing", "fetch_openml")


def sources() -> list[Path]:
    folders = [ROOT / "xuqlib", ROOT / "notebooks" / "helpers"]
    return [ROOT / "run_all.py", *(path for folder in folders for path in sorted(folder.rglob("*.py")))]


def unpickling(source: str) -> list[str]:
    """What a module imports or calls that unpickles: a list of names, empty for a module that does not."""
    found, tree = [], ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in ("pickle", "dill", "shelve", "cloudpickle")]
        elif isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "shelve", "cloudpickle"):
            found.append(node.module)
        elif isinstance(node, ast.Call):
            told, options = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            safe = {"torch.load": ("weights_only", "True"), "np.load": ("allow_pickle", "False")}.get(told)
            if told in UNSAFE or (safe and options.get(safe[0]) != safe[1]):
                found.append(told)
    return found


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from pickle import loads", "joblib.load(f)", "pd.read_pickle(f)", "torch.load(f)"),
        *("np.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f, weights_only=False)"),
    ],
)
def test_what_unpickles_is_recognised(line):
    assert unpickling(line)
    assert unpickling("torch.load(f, weights_only=True), np.load(f, allow_pickle=False), json.load(f)") == []


def test_no_module_unpickles_a_file():
    found = {str(path.relative_to(ROOT)): unpickling(path.read_text(encoding="utf-8")) for path in sources()}
    assert {path: names for path, names in found.items() if names} == {}
