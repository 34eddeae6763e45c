"""Loading: names, splits, subsets, scales and every layout on disk."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import datasets as tv

from xuqlib.study.data import download, fer, readers
from xuqlib.study.data import loading as data_module
from xuqlib.study.data.download import DataError
from xuqlib.study.data.loading import DATASETS, Examples, load

EMBEDDED = ("planted", "digits", "diabetes")
LOCAL = os.environ.get("XUQ_DATA")
real_data = pytest.mark.skipif(
    not LOCAL or not Path(LOCAL, "cifar10").is_dir(), reason="$XUQ_DATA does not hold the real data sets"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of local data, and no way around it: no network address can be reached."""
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XUQ_MIRROR", "http://127.0.0.1:9")
    monkeypatch.delenv("XUQ_DATA", raising=False)
    (tmp_path / "local").mkdir()
    return tmp_path / "local"


@pytest.fixture
def put(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a file below the folder and make its digest the expected one."""

    def write(path: str, body: bytes) -> str:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
        if path in download.SHA256:
            monkeypatch.setitem(download.SHA256, path, hashlib.sha256(body).hexdigest())
        return hashlib.md5(body).hexdigest()

    return write


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def parquet(pictures: np.ndarray, columns: dict[str, list[int]], metadata: dict[str, str] | None = None) -> bytes:
    def webp(picture: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "WEBP", lossless=True)
        return stream.getvalue()

    image = pa.array([{"bytes": webp(p), "path": "x.png"} for p in pictures])
    table = pa.table({"image": image, **{key: pa.array(value) for key, value in columns.items()}})
    stream = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), stream)
    return stream.getvalue()


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_sets_need_no_file_and_their_splits_share_no_row(name, folder):
    parts = [load(name, split=split) for split in ("train", "validation", "test")]
    assert all(isinstance(part, Examples) and part.x.dtype == torch.float32 for part in parts)
    rows = {row.numpy().tobytes() for part in parts for row in part.x}
    # digits holds no two equal pictures, nor do the others: an overlap would shrink the set.
    assert len(rows) == sum(map(len, parts))


def test_digits_are_grey_pictures_between_0_and_1(folder):
    examples = load("digits", split="train")
    assert examples.x.shape[1:] == (1, 8, 8)
    assert (examples.x.min(), examples.x.max()) == (0, 1)
    assert (examples.task, examples.num_classes, examples.y.dtype) == ("classification", 10, torch.int64)
    assert sum(len(load("digits", split=split)) for split in data_module.SPLITS) == 1797


def test_a_target_and_features_go_back_to_their_units(folder):
    from sklearn.datasets import load_diabetes

    raw = load_diabetes(scaled=False)
    examples = load("diabetes", split="train")
    mean, std, unit = examples.target_scale
    target = (examples.y.double() * std + mean).squeeze(1)
    features = examples.x.double() * torch.tensor(examples.feature_scale.std) + torch.tensor(
        examples.feature_scale.mean
    )
    known = torch.from_numpy(np.column_stack([raw.data, raw.target]))
    distance = torch.cdist(torch.column_stack([features, target]), known).min(1).values
    assert distance.max() < 1e-3  # float32 of values up to 346
    assert unit == "disease progression score"
    assert examples.feature_names == tuple(raw.feature_names)
    assert (examples.task, examples.num_classes, examples.y.shape) == ("regression", None, (len(examples), 1))


def test_tables_are_standardised_by_training_rows_only(folder):
    train, test = load("diabetes", split="train"), load("diabetes", split="test")
    for values in (train.x, train.y):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-6, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    assert test.target_scale == train.target_scale
    assert test.y.mean().abs() > 0.01


def test_held_out_rows_are_the_same_share_of_every_class():
    labels = np.repeat(np.arange(3), [100, 50, 20])
    rows = {s: data_module._split_rows(labels.tobytes(), s, True) for s in data_module.SPLITS}
    assert np.bincount(labels[rows["test"]]).tolist() == [20, 10, 4]
    assert np.bincount(labels[rows["validation"]]).tolist() == [8, 4, 2]  # 1.6 of 20 is rounded up
    assert sorted(np.concatenate(list(rows.values()))) == list(range(170))


@pytest.mark.parametrize("num_examples", [1, 7, 10, 64, 364])
def test_a_subset_has_class_counts_as_equal_as_they_can_be(num_examples, folder):
    examples = load("digits", num_examples=num_examples, seed=3)
    counts = torch.bincount(examples.y, minlength=10)
    available = torch.bincount(load("digits").y, minlength=10)
    assert len(examples) == num_examples
    # A class falls behind the largest by more than one only when it has no rows left.
    assert ((counts >= counts.max() - 1) | (counts == available)).all()


def test_a_subset_takes_all_of_a_rare_class_before_it_is_uneven(folder):
    counts = torch.bincount(load("planted", split="validation", num_examples=300).y)
    assert counts.tolist()[5] == 1
    assert counts[:5].max() - counts[:5].min() <= 1


def test_a_rare_class_comes_first_as_often_as_a_common_one():
    labels = np.repeat([0, 1], [1000, 10])
    rare = sum(labels[data_module._subset(labels, 1010, 1, seed)].item() for seed in range(200))
    assert abs(rare - 100) < 4 * 50**0.5


def test_a_seed_decides_a_subset_and_smaller_ones_are_part_of_it(folder):
    for name in ("digits", "diabetes"):
        first, again = (load(name, num_examples=50, seed=1) for _ in range(2))
        assert first.digest == again.digest
        assert load(name, num_examples=50, seed=2).digest != first.digest
        smaller = load(name, num_examples=20, seed=1)
        assert set(smaller.index.tolist()) < set(first.index.tolist())
        assert (first.index.diff() > 0).all()


def test_index_names_the_row_in_the_full_split(folder):
    full = load("planted")
    part = load("planted", num_examples=30, seed=5)
    assert torch.equal(full.x[part.index], part.x)
    assert torch.equal(full.probs[part.index], part.probs)
    assert torch.equal(full.masks["novel"][part.index], part.masks["novel"])


def test_loading_leaves_the_global_generators_alone(folder):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load("digits", num_examples=5)
    load("planted", num_examples=5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(3, 6), [3, 4, 5]),
        (2, [2]),
        (-1, [9]),
        (np.int64(2), [2]),
        ([4, 1], [4, 1]),
        ([], []),
        (torch.tensor([4, 1]), [4, 1]),
        (np.array([4, 1]), [4, 1]),
        (torch.tensor([True] * 2 + [False] * 8), [0, 1]),
    ],
)
def test_rows_of_examples_are_examples_with_everything_that_belongs_to_them(rows, expected, folder):
    examples = load("planted", num_examples=10)
    part = examples[rows]
    assert isinstance(part, Examples)
    for values, whole in (
        (part.x, examples.x),
        (part.y, examples.y),
        (part.index, examples.index),
        (part.probs, examples.probs),
        (part.masks["evidence"], examples.masks["evidence"]),
    ):
        assert torch.equal(values, whole[expected])
    assert (part.name, part.split, part.class_names) == ("planted", "test", examples.class_names)


@pytest.mark.parametrize(
    ("row", "message"),
    [(10, "out of bounds"), (-11, "out of bounds"), (1.5, "used as ind"), ([True] * 9, "shape of the mask")],
)
def test_a_row_that_does_not_exist_is_an_error(row, message, folder):
    with pytest.raises(IndexError, match=message):
        load("digits", num_examples=10)[row]


def test_a_loop_over_examples_ends(folder):
    assert [len(example) for example in load("digits", num_examples=3)] == [1, 1, 1]


def test_a_digest_is_the_sha256_of_shapes_and_bytes(folder):
    examples = load("digits", num_examples=4)
    state = hashlib.sha256(b"(4, 1, 8, 8)" + examples.x.numpy().tobytes() + b"(4,)" + examples.y.numpy().tobytes())
    assert examples.digest == state.hexdigest()
    assert examples[:3].digest != examples.digest


def test_a_repr_is_one_short_line(folder):
    assert repr(load("digits", num_examples=3)) == "Examples(digits test: 3 x (1, 8, 8), 10 classes)"
    assert "target in disease progression score" in repr(load("diabetes", num_examples=3))
    assert repr(load("planted")).endswith("6 classes; probs, mask evidence, mask ambiguous, mask novel)")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "cifar"}, ValueError, "unknown data set 'cifar'; known: planted, digits, .*cifar10h"),
        ({"name": 3}, TypeError, "name is 3; pass text"),
        ({"split": "dev"}, ValueError, "unknown split of digits 'dev'; known: train, validation, test"),
        ({"name": "svhn", "split": "train"}, ValueError, "unknown split of svhn 'train'; known: test"),
        ({"num_examples": 0}, ValueError, "num_examples is 0; pass a whole number of at least 1"),
        ({"num_examples": -5}, ValueError, "num_examples is -5; pass a whole number of at least 1"),
        ({"num_examples": 2.5}, TypeError, "num_examples is 2.5; pass a whole number"),
        ({"num_examples": "10"}, TypeError, "num_examples is '10'; pass a whole number"),
        ({"num_examples": True}, TypeError, "num_examples is True; pass a whole number"),
        ({"num_examples": 365}, ValueError, "num_examples is 365 but digits test has 364 examples; ask for fewer"),
        ({"seed": -1}, ValueError, "seed is -1; pass a whole number of at least 0"),
        ({"seed": None}, TypeError, "seed is None; pass a whole number"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, error, message, folder):
    with pytest.raises(error, match=message):
        load(**({"name": "digits"} | arguments))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_mnist_is_read_from_its_folder(packed, folder, put):
    x, y = pixels(12, 28, 28), np.arange(12, dtype=np.uint8) % 10
    for name, array in (("images-idx3", x), ("labels-idx1", y)):
        path, body = f"MNIST/raw/t10k-{name}-ubyte", idx(array)
        put(path + ".gz", gzip.compress(body)) if packed else put(path, body)
    examples = load("mnist", data=folder)
    assert torch.equal(examples.x, torch.from_numpy(x[:, None]).float() / 255)
    assert examples.y.tolist() == y.tolist()


@pytest.mark.parametrize("layout", ["parquet", "pickle", "archive"])
def test_cifar10_is_read_from_each_of_its_layouts(layout, folder, put):
    x, y = pixels(20, 32, 32, 3), [i % 10 for i in range(20)]
    flat = x.transpose(0, 3, 1, 2).reshape(20, -1)
    batch = pickle.dumps({"data": flat, "labels": y})
    if layout == "parquet":
        put("cifar10/test_batch.parquet", parquet(x, {"label": y}))
    elif layout == "pickle":
        put("cifar-10-batches-py/test_batch", batch)
    else:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
            member.size = len(batch)
            archive.addfile(member, io.BytesIO(batch))
        put("cifar-10-python.tar.gz", stream.getvalue())
    examples = load("cifar10", data=folder)
    assert torch.equal(examples.x, torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255)
    assert examples.y.tolist() == y
    assert examples.class_names[3] == "cat"


def test_cifar10h_pairs_the_test_pictures_with_shares_of_votes(folder, put):
    put("cifar10/test_batch.parquet", parquet(pixels(2, 32, 32, 3), {"label": [0, 1]}))
    counts = io.BytesIO()
    np.save(counts, np.array([[50] + [0] * 9, [10, 30] + [0] * 8], dtype=np.uint8))
    put("cifar10_human/cifar10h_counts.npy", counts.getvalue())
    examples = load("cifar10h", data=folder)
    torch.testing.assert_close(examples.probs[:, :2], torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    assert examples.y.tolist() == [0, 1]


@pytest.mark.parametrize("layout", ["parquet", "pickle"])
def test_cifar100_knows_its_hundred_names_in_each_layout(layout, folder, put, monkeypatch):
    names, x = [f"name {i}" for i in range(100)], pixels(3, 32, 32, 3)
    if layout == "parquet":
        quoted = ", ".join(f'"{name}"' for name in names)
        info = {"huggingface": f'{{"info": {{"features": {{"label": {{"names": [{quoted}]}}}}}}}}'}
        put("cifar100_subset/test_1000.parquet", parquet(x, {"label": [0, 50, 99]}, info))
    else:
        batch = {"data": x.transpose(0, 3, 1, 2).reshape(3, -1), "fine_labels": [0, 50, 99]}
        parts = {"test": batch, "meta": {"fine_label_names": names}}
        for name, part in parts.items():
            path = f"cifar-100-python/{name}"
            monkeypatch.setitem(readers.CIFAR100_MD5, path, put(path, pickle.dumps(part)))
    examples = load("cifar100", data=folder)
    assert examples.class_names == tuple(names)
    assert torch.equal(examples.x, torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255)
    assert examples.y.tolist() == [0, 50, 99]


def test_files_of_cifar100_are_those_that_torchvision_checks():
    files = [tv.CIFAR100.test_list[0], (tv.CIFAR100.meta["filename"], tv.CIFAR100.meta["md5"])]
    assert {f"{tv.CIFAR100.base_folder}/{name}": md5 for name, md5 in files} == readers.CIFAR100_MD5
    assert tv.CIFAR100.filename in download.SHA256


def test_svhn_calls_its_class_10_the_digit_0(folder, put):
    from scipy.io import savemat

    x, stream = pixels(3, 32, 32, 3), io.BytesIO()
    savemat(stream, {"X": x.transpose(1, 2, 3, 0), "y": np.array([[1], [10], [9]], dtype=np.uint8)})
    put("test_32x32.mat", stream.getvalue())
    examples = load("svhn", data=folder)
    assert examples.y.tolist() == [1, 0, 9]
    assert torch.equal(examples.x, torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255)


def housing_table() -> np.ndarray:
    stream = np.random.default_rng(0)
    return np.round(stream.uniform(1, 100, (40, 9)), 4)


@pytest.mark.parametrize("layout", ["csv", "archive", "sklearn"])
def test_california_housing_has_the_features_of_scikit_learn_in_each_layout(layout, folder, put, monkeypatch):
    import joblib
    from sklearn.datasets import fetch_california_housing

    table, (folder_name, reference) = housing_table(), ("california_housing", folder / "reference")
    reference.mkdir()
    joblib.dump(table[:, [8, 7, 2, 3, 4, 5, 6, 1, 0]], reference / "cal_housing_py3.pkz", compress=6)
    monkeypatch.setattr(readers, "HOUSING_SHAPE", table.shape)
    x, y = fetch_california_housing(data_home=reference, download_if_missing=False, return_X_y=True)
    digest = hashlib.sha256(np.column_stack([x, y]).tobytes()).hexdigest()
    monkeypatch.setattr(readers, "HOUSING_VALUES", digest)
    text = "\n".join(",".join(map(repr, row)) for row in table.tolist()).encode()
    if layout == "csv":
        put(f"{folder_name}/cal_housing.csv.gz", gzip.compress(b"header\n" + text))
    elif layout == "sklearn":
        put("cal_housing_py3.pkz", (reference / "cal_housing_py3.pkz").read_bytes())
    else:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            member = tarfile.TarInfo("CaliforniaHousing/cal_housing.data")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        put(f"{folder_name}/cal_housing.tgz", stream.getvalue())
    raw = readers.california_housing("all", folder)
    np.testing.assert_array_equal(raw.x, x)
    np.testing.assert_array_equal(raw.y, y)
    assert [len(load("california_housing", split=split, data=folder)) for split in data_module.SPLITS] == [28, 4, 8]


def test_values_or_a_cache_of_scikit_learn_that_are_not_california_housing_are_refused(folder, put):
    import joblib

    stream = io.BytesIO()
    joblib.dump(np.tile(housing_table(), (516, 1)), stream, compress=6)
    put("cal_housing_py3.pkz", stream.getvalue())
    with pytest.raises(DataError, match=r"cal_housing_py3.pkz: expected values with sha256 9b9082.*found"):
        load("california_housing", data=folder)
    put("california_housing/cal_housing_py3.pkz", stream.getvalue()[:50])
    with pytest.raises(DataError, match=r"cal_housing_py3.pkz is damaged or truncated"):
        load("california_housing", data=folder)


@pytest.mark.parametrize(
    ("votes", "label", "soft"),
    [
        # neutral happiness surprise sadness anger disgust fear contempt unknown NF
        ([6, 4, 0, 0, 0, 0, 0, 0, 0, 0], 0, [0.6, 0.4]),
        ([1, 6, 0, 0, 0, 0, 0, 0, 3, 0], 1, [0.0, 1.0]),  # the single vote counts 0, unknown leaves the sum
        ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], 0, [0.5, 0.5]),  # the first of the largest
        ([3, 2, 0, 0, 0, 0, 0, 0, 5, 0], None, None),  # unknown wins
        ([4, 0, 0, 0, 0, 0, 0, 0, 0, 6], None, None),  # not a face
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None, None),  # single votes only
    ],
)
def test_votes_become_labels_as_the_usual_reader_has_it(votes, label, soft):
    y, probs, keep = fer.fer_labels(np.array([votes]))
    assert keep.tolist() == [label is not None]
    if label is not None:
        assert y.tolist() == [label]
        np.testing.assert_allclose(probs[0, :2], soft)
        assert probs.sum() == pytest.approx(1)


def test_a_face_that_occurs_in_a_later_part_is_dropped_and_test_keeps_all(folder, put):
    faces = pixels(6, 48, 48)
    a, b, c, d, e, f = faces
    happy = {name: [0] for name in fer.COLUMNS} | {"happiness": [10]}
    parts = {"train": [a, b, c, d], "valid": [b, e, c], "test": [c, f, f]}
    for name, pictures in parts.items():
        put(
            f"fer2013plus/{name}.parquet", parquet(np.stack(pictures), {k: v * len(pictures) for k, v in happy.items()})
        )
    found = {split: load("fer_plus", split=split, data=folder).x for split in data_module.SPLITS}
    for split, expected in {"train": [a, d], "validation": [b, e], "test": [c, f, f]}.items():
        assert torch.equal(found[split], torch.from_numpy(np.stack(expected))[:, None].float() / 255)


def test_fer_plus_is_read_from_its_two_original_tables(folder):
    faces, row = pixels(3, 48, 48), ",".join(["0", "8"] + ["0"] * 6 + ["2", "0"])
    usages = ["Training", "PrivateTest", "Training"]
    text = [f"0,{' '.join(map(str, face.ravel()))},{usage}" for face, usage in zip(faces, usages, strict=True)]
    (folder / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *text]))
    images = ["fer0.png", "fer1.png", ""]
    votes = [f"{usage},{image},{row}" for usage, image in zip(usages, images, strict=True)]
    header = ",".join(["Usage", "Image name", *fer.COLUMNS])
    (folder / "fer2013new.csv").write_text("\n".join([header, *votes]))
    x, counts = fer._fer_csv(folder / "fer2013.csv", folder / "fer2013new.csv", "Training")
    np.testing.assert_array_equal(x, faces[:1])  # the third has no image name: not a face
    assert counts.tolist() == [[0, 8, 0, 0, 0, 0, 0, 0, 2, 0]]
    (folder / "short.csv").write_text("\n".join([header, *votes[:2]]))
    with pytest.raises(DataError, match=r"short.csv does not agree with .*fer2013.csv"):
        fer._fer_csv(folder / "fer2013.csv", folder / "short.csv", "Training")


def test_pictures_are_decoded_once_for_train_and_validation(folder, put, monkeypatch):
    for i in range(1, 6):
        put(f"cifar10/data_batch_{i}.parquet", parquet(pixels(20, 32, 32, 3), {"label": [j % 2 for j in range(20)]}))
    calls = []
    original = readers.decode
    monkeypatch.setattr(readers, "decode", lambda *arguments: calls.append(1) or original(*arguments))
    train, validation = (load("cifar10", split=split, data=folder) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (90, 10)
    assert len(calls) == 5
    assert torch.bincount(validation.y).tolist() == [5, 5]


def test_what_is_returned_can_be_changed_without_changing_the_next_load(folder):
    first = load("digits", num_examples=5)
    expected = first.x.clone()
    first.x.zero_()
    assert torch.equal(load("digits", num_examples=5).x, expected)
    with pytest.raises(ValueError, match="read-only"):
        readers.digits("all").x[0] = 0


@real_data
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mnist", (53_994, 6_006, 10_000)),
        ("fer_plus", (27_698, 3_509, 3_545)),
        ("california_housing", (14_860, 1_652, 4_128)),
        ("notmnist", (None, None, 10_000)),
        ("cifar100", (None, None, 1_000)),
        ("cifar10h", (None, None, 10_000)),
        ("cifar10", (None, None, 10_000)),
    ],
)
def test_the_real_sets_load_with_their_sizes(name, sizes):
    for split, size in zip(data_module.SPLITS, sizes, strict=True):
        if size is not None:
            examples = load(name, split=split)
            assert len(examples) == size
            assert torch.isfinite(examples.x).all()


@real_data
def test_no_face_of_one_part_of_fer_plus_is_in_another():
    faces = [{row.numpy().tobytes() for row in load("fer_plus", split=split).x} for split in data_module.SPLITS]
    assert all(not faces[i] & faces[j] for i, j in ((0, 1), (0, 2), (1, 2)))


@real_data
def test_the_votes_of_cifar10h_mostly_agree_with_the_labels():
    examples = load("cifar10h")
    agree = (examples.probs.argmax(1) == examples.y).double().mean().item()
    assert agree == pytest.approx(0.9921, abs=5e-5)  # the share that the release states


def test_every_name_is_listed():
    assert set(DATASETS) == {
        *EMBEDDED,
        "cifar10",
        "mnist",
        "fer_plus",
        "california_housing",
        "notmnist",
        "cifar100",
        "svhn",
        "cifar10h",
        *("planted_words", "planted_signals", "planted_table", "planted_pixels"),
        *("fashion_mnist", "tiny_imagenet", "imagenet_photos", "nuclei"),
        *("trec", "rt_polarity", "ecg200", "ecg5000", "ecg_five_days", "gun_point"),
        *("adult", "german_credit", "wine_quality", "bike_sharing"),
    }
