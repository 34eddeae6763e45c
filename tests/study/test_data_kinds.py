"""Words, signals, tables and pixels: read from each of their layouts, and numbered, scaled and named as promised."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from xuqlib import load
from xuqlib.study.data import download, tables, words
from xuqlib.study.data.download import SHA256, DataError, fetch
from xuqlib.study.data.loading import SPLITS
from xuqlib.study.data.planted_table import FEATURE_GROUPS, SHIFTS

LOCAL = os.environ.get("XUQ_DATA")
real_data = pytest.mark.skipif(
    not LOCAL or not Path(LOCAL, "tables").is_dir(), reason="$XUQ_DATA does not hold the real data sets"
)


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write files into a folder of local data and make their digests the expected ones; no address is reached."""
    monkeypatch.setenv("XUQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XUQ_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("XUQ_DATA", str(tmp_path / "local"))
    (tmp_path / "local").mkdir()

    def write(path: str, body: bytes) -> None:
        target = tmp_path / "local" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
        if path in SHA256:
            monkeypatch.setitem(download.SHA256, path, hashlib.sha256(body).hexdigest())

    return write


def test_a_sentence_is_cut_into_words_and_signs():
    assert words.words_of("What's the U.S. well-known  'A-B'?") == (
        *("what's", "the", "u", ".", "s", ".", "well-known", "'", "a-b", "'", "?"),
    )
    assert words.words_of("") == ()


def test_a_vocabulary_is_the_words_that_occur_twice_the_commonest_first():
    sentences = [("b", "a", "c"), ("c", "b"), ("c", "d")]
    assert words.vocabulary_of(sentences) == ("<padding>", "<unknown>", "c", "b")


def test_words_are_numbered_with_1_for_unknown_and_0_behind_the_sentence():
    ids = words.encode([("c", "x"), (), ("b", "c", "c")], ("<padding>", "<unknown>", "c", "b"), 3)
    assert ids.tolist() == [[2, 1, 0], [0, 0, 0], [3, 2, 2]] and ids.dtype == np.int64
    with pytest.raises(ValueError, match="a sentence has 4 words, more than 3; pass a larger length"):
        words.encode([("a",) * 4], ("<padding>", "<unknown>"), 3)


TREC_TRAIN = "".join(
    f"{line}\n"
    for line in [
        *("HUM:ind Who was Galileo ?", "NUM:date When was he born ?", "HUM:ind Who was she ?"),
        *("LOC:city Where is \xf0 Rome ?", "HUM:gr Who won ?", "HUM:gr Who lost ?"),
    ]
).encode("latin-1")


@pytest.mark.parametrize("names", [("trec_train_5500", "trec_test_10"), ("train_5500", "TREC_10")])
def test_trec_is_read_from_both_of_its_layouts_without_the_questions_of_the_test(names, put):
    put(f"text/{names[0]}.label", TREC_TRAIN)
    put(f"text/{names[1]}.label", b"HUM:ind Who was Galileo ?\nDESC:def What is a fugue ?\n")
    train, test = (load("trec", split=split) for split in ("train", "test"))
    kept = Counter(word for split in ("train", "validation") for s in load("trec", split=split).words for word in s)
    assert "galileo" not in kept and kept["rome"] == 1
    assert [test.class_names[label] for label in test.y] == ["person", "description"]
    assert test.x.shape == (2, 37) and test.x.dtype == torch.int64
    assert test.words == (("who", "was", "galileo", "?"), ("what", "is", "a", "fugue", "?"))
    shown = [test.vocabulary[number] for number in test.x[0].tolist()]
    assert shown[4:] == ["<padding>"] * 33
    assert [word if word in train.vocabulary else "<unknown>" for word in test.words[0]] == shown[:4]
    assert set(train.vocabulary[2:]) <= {word for sentence in train.words for word in sentence}


def test_film_reviews_are_read_line_by_line_in_their_encoding(put):
    put("text/rt-polarity.neg", "dull\x85 and dull .\nno\n".encode("latin-1"))
    put("text/rt-polarity.pos", "a café film , a film\nyes\n".encode("cp1252"))
    parts = [load("rt_polarity", split=split) for split in SPLITS]
    said = {sentence: parts[0].class_names[label] for p in parts for sentence, label in zip(p.words, p.y, strict=True)}
    assert said[("a", "café", "film", ",", "a", "film")] == "positive"
    assert said[("dull", "…", "and", "dull", ".")] == "negative"
    assert sum(map(len, parts)) == 4


def test_rows_of_sentences_keep_their_words(put):
    put("text/trec_train_5500.label", TREC_TRAIN)
    put("text/trec_test_10.label", b"HUM:ind Who ?\nNUM:date When was it ?\nLOC:city Where ?\n")
    whole = load("trec")
    for rows, wanted in ((1, [1]), ([2, 0], [2, 0]), (torch.tensor([True, False, True]), [0, 2])):
        part = whole[rows]
        assert part.words == tuple(whole.words[row] for row in wanted)
        assert torch.equal(part.x, whole.x[wanted]) and part.vocabulary == whole.vocabulary


@pytest.mark.parametrize("layout", ["npz", "tsv"])
def test_a_signal_is_read_from_both_of_its_layouts(layout, put):
    x = np.random.default_rng(0).random((4, 96)).astype(np.float32)
    labels = np.array([1, -1, -1, 1])
    if layout == "npz":
        stream = io.BytesIO()
        np.savez(stream, x_train=x[:1], y_train=labels[:1].astype(np.int8), x_test=x, y_test=labels.astype(np.int8))
        put("ucr/ECG200.npz", stream.getvalue())
    else:
        rows = ["\t".join(map(repr, [label, *row])) for label, row in zip(labels.tolist(), x.tolist(), strict=True)]
        put("ucr/ECG200/ECG200_TEST.tsv", "\n".join(rows).encode())
        put("ucr/ECG200/ECG200_TRAIN.tsv", rows[0].encode())
    examples = load("ecg200")
    assert torch.equal(examples.x, torch.from_numpy(x)[:, None])
    assert [examples.class_names[label] for label in examples.y] == ["normal", "infarct", "infarct", "normal"]


def test_labels_that_the_archive_does_not_have_are_refused(put):
    put("ucr/GunPoint/GunPoint_TEST.tsv", b"3\t0.5\t0.25\n")
    put("ucr/GunPoint/GunPoint_TRAIN.tsv", b"1\t0.5\t0.25\n")
    with pytest.raises(DataError, match=r"GunPoint_TEST.tsv has labels \[3\], not \[1, 2\]"):
        load("gun_point")


ADULT = [
    "39,State-gov,77516,Bachelors,13,Never-married,Adm-clerical,Not-in-family,White,Male,2174,0,40,United-States,<=50K",
    "50,?,83311,Masters,14,Divorced,Sales,Husband,Black,Female,0,0,20,Cuba,>50K",
    "28,Private,338409,Bachelors,13,Divorced,Sales,Wife,Black,Female,0,5,40,Cuba,<=50K",
    "60,Private,5,Bachelors,13,Divorced,Sales,Wife,Black,Female,0,9,45,Cuba,>50K",
]


@pytest.mark.parametrize("packed", [True, False])
def test_a_category_has_a_column_and_one_that_only_the_test_shows_has_none(packed, put):
    head = ",".join(tables.ADULT_COLUMNS)
    strange = ADULT[1].replace("Cuba", "Peru")
    for part, rows in (("train", ADULT), ("test", [strange, ADULT[0]])):
        body = "\n".join([head, *rows]).encode() + b"\n"
        put(f"tables/adult_{part}.csv" + ".gz" * packed, gzip.compress(body) if packed else body)
    examples = load("adult")
    assert list(examples.feature_groups) == list(tables.ADULT_COLUMNS[:-1])
    columns = [column for group in examples.feature_groups.values() for column in group]
    assert columns == list(range(examples.x.shape[1])) and len(examples.feature_names) == len(columns)
    work, country = examples.feature_groups["workclass"], examples.feature_groups["native_country"]
    assert [examples.feature_names[i] for i in work] == [f"workclass = {w}" for w in ("?", "Private", "State-gov")]
    assert examples.x[:, work].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert examples.x[:, country].tolist() == [[0, 0], [0, 1]]
    assert [examples.class_names[label] for label in examples.y] == ["more than 50,000", "at most 50,000"]
    assert (examples.task, examples.target_scale) == ("classification", None)
    train = load("adult", split="train")
    (age,) = examples.feature_groups["age"]
    ages = train.x[:, age].double() * examples.feature_scale.std[age] + examples.feature_scale.mean[age]
    torch.testing.assert_close(train.x[:, age].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert set(ages.round().tolist()) <= {39.0, 50.0, 28.0, 60.0}


def test_of_equal_wines_one_is_kept_and_the_two_files_are_as_good_as_the_one(put, monkeypatch):
    measured = [f"{i}.5,0.7,0,1.9,0.076,11,34,0.9978,3.51,0.56,9.4,{3 + i % 5}" for i in range(12)]
    names = "fixed acidity,volatile acidity,citric acid,residual sugar,chlorides,free sulfur dioxide"
    names += ",total sulfur dioxide,density,pH,sulphates,alcohol,quality"
    red, white = [*measured[:6], measured[0]], [measured[0], *measured[6:]]
    one = [f"type,{names}", *(f"red,{row}" for row in red), *(f"white,{row}" for row in white)]
    put("tables/wine_quality.csv", "\n".join(one).encode())
    together = [load("wine_quality", split=split) for split in SPLITS]
    assert sum(map(len, together)) == 13, "a white wine with the numbers of a red one is another wine"
    Path(os.environ["XUQ_DATA"], "tables/wine_quality.csv").unlink()
    for kind, rows in (("red", red), ("white", white)):
        put(f"tables/wine_{kind}.csv", "\n".join([names, *rows]).encode())
    for examples, wanted in zip((load("wine_quality", split=split) for split in SPLITS), together, strict=True):
        assert torch.equal(examples.x, wanted.x) and torch.equal(examples.y, wanted.y)
        assert examples.feature_names[:2] == ("type = red", "type = white")


def test_bicycles_are_told_without_what_adds_up_to_them(put):
    head = (
        "instant,dteday,season,yr,mnth,hr,holiday,weekday,workingday,weathersit,temp,atemp,hum,windspeed,"
        "casual,registered,cnt"
    )
    rows = [f"{i},2011-01-01,{1 + i % 4},0,{i % 12},{i},0,6,0,1,0.2{i},0.28,0.81,0,3,{i},{3 + i}" for i in range(20)]
    put("tables/bike_hour.csv.gz", gzip.compress("\n".join([head, *rows]).encode()))
    examples = load("bike_sharing", split="train")
    assert not {"instant", "dteday", "casual", "registered", "cnt"} & set(examples.feature_groups)
    assert len(examples.feature_groups["season"]) == 4 and len(examples.feature_groups["temp"]) == 1
    mean, std, unit = examples.target_scale
    counted = examples.y.double().flatten() * std + mean
    assert unit == "bicycles per hour" and torch.allclose(counted, counted.round(), atol=1e-4)


def test_german_credit_keeps_its_codes(put):
    loan = "A34,A43,1169,A65,A75,4,A93,A101,4,A121,67,A143,A152,2,A173,1,A192,A201"
    rows = [f"A11,{i},{loan},{1 + i % 2}" for i in range(20)]
    put("tables/german_credit.csv", "\n".join([",".join(tables.CREDIT_COLUMNS), *rows]).encode())
    parts = [load("german_credit", split=split) for split in SPLITS]
    assert sum(int((part.y == 1).sum()) for part in parts) == 10
    assert parts[0].class_names == ("good", "bad")
    assert parts[0].feature_groups["duration"] == (1,) and not parts[0].x[:, 0].any(), "a constant becomes 0"


@pytest.mark.parametrize(
    ("convert", "published", "wanted"),
    [
        (tables.plain_adult, "|1x3 Cross validator\n25, Private, ?, <=50K.\n\n", "25,Private,?,<=50K\n"),
        (tables.plain_credit, "A11 6 A34 1 \nA12 48  A32 2\n", "A11,6,A34,1\nA12,48,A32,2\n"),
        (tables.plain_wine, '"pH";"quality"\n3.510;5\n0.99780;6\n', "pH,quality\n3.51,5\n0.9978,6\n"),
    ],
)
def test_a_published_table_is_rewritten_before_its_digest_is_taken(convert, published, wanted, tmp_path):
    path = tmp_path / "table"
    path.write_text(published)
    convert(path)
    text = path.read_text()
    assert text == wanted if convert is tables.plain_wine else text.split("\n", 1)[1] == wanted


def test_what_is_not_the_published_table_is_one_clear_error(tmp_path):
    path = tmp_path / "table"
    path.write_text("<html>\nnot here\n")
    with pytest.raises(DataError, match="the file fetched is not the table"):
        tables.plain_wine(path)
    with pytest.raises(DataError, match="no archive with hour.csv"):
        tables.unzip_bikes(path)


def parquet(path_of: str, put, **columns: pa.Array) -> None:
    stream = io.BytesIO()
    names = {b"huggingface": b'{"info": {"features": {"label": {"names": ["goldfish", "lion"]}}}}'}
    pq.write_table(pa.table(columns).replace_schema_metadata(names), stream)
    put(path_of, stream.getvalue())


def image_column(pictures: np.ndarray, kind: str = "PNG") -> pa.Array:
    def packed(picture: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, kind)
        return stream.getvalue()

    return pa.array([{"bytes": packed(picture), "path": "x"} for picture in pictures])


def test_nuclei_are_averaged_over_squares_of_four_pixels_and_so_are_their_masks(put):
    stream = np.random.default_rng(0)
    x = stream.integers(0, 256, (2, 256, 256), dtype=np.uint8)
    instances = stream.integers(0, 3, (2, 256, 256), dtype=np.uint8)
    parquet("nuclei_dsb2018/test.parquet", put, image=image_column(x), mask=image_column(instances))
    examples = load("nuclei")
    assert (examples.task, examples.num_classes, examples.y.shape) == ("segmentation", 2, (2, 128, 128))
    for row, column in ((0, 0), (5, 77), (127, 127)):  # the slow way
        square = slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)
        assert float(examples.x[1, 0, row, column]) == pytest.approx(x[1][square].mean() / 255, abs=1e-6)
    count = sum((instances[:, i::2, j::2] > 0).astype(int) for i in range(2) for j in range(2))
    assert np.array_equal(examples.y.numpy(), count >= 2) and (count == 2).any()
    assert len(examples[[1]].y) == 1


def test_photographs_without_a_label_are_left_out_and_the_centre_is_taken(put):
    x = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    parquet("imagenet_mobilenet/pictures.parquet", put, image=image_column(x), label=pa.array([2, -1, 1]))
    put("imagenet_mobilenet/labels.txt", b"background\ntench\ngoldfish\n")
    examples = load("imagenet_photos")
    assert examples.y.tolist() == [2, 1] and examples.class_names == ("background", "tench", "goldfish")
    wanted = torch.from_numpy(x[[0, 2], 16:240, 16:240]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(examples.x, wanted)


def test_tiny_imagenet_is_tested_on_its_validation_part(put):
    x = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    parquet("tiny_imagenet_subset/val.parquet", put, image=image_column(x), label=pa.array([0, 1, 0, 1]))
    examples = load("tiny_imagenet")
    assert examples.x.shape == (4, 3, 64, 64) and examples.class_names == ("goldfish", "lion")


def test_examples_know_whether_a_class_is_of_each_one_each_pixel_or_several_at_once():
    from dataclasses import replace

    examples = load("digits", num_examples=4)
    assert examples.task == "classification"
    assert replace(examples, y=torch.zeros(4, 8, 8, dtype=torch.int64)).task == "segmentation"
    assert replace(examples, y=torch.zeros(4, 10)).task == "multilabel"
    assert load("planted_table", num_examples=4).task == "regression"


def test_each_number_of_a_table_is_a_feature_of_one_column():
    examples = load("diabetes", num_examples=3)
    assert examples.feature_groups == {name: (i,) for i, name in enumerate(examples.feature_names)}
    assert load("planted_table", num_examples=3).feature_groups == FEATURE_GROUPS


def test_the_true_moments_of_a_target_are_scaled_as_the_target_is():
    from xuqlib.study.data.planted_table import generate

    examples, table = load("planted_table", split="train"), generate("train")
    mean, std, _ = examples.target_scale
    torch.testing.assert_close(
        examples.moments.double() * torch.tensor([std, std**2]) + torch.tensor([mean, 0.0]),
        torch.from_numpy(np.array(table.moments)),
        rtol=1e-5,
        atol=1e-5,
    )
    assert len(SHIFTS) == 5 and examples[3:5].moments.shape == (2, 2)


@real_data
@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("trec", (4894, 547, 500), (37,)),
        ("rt_polarity", (7676, 852, 2134), (61,)),
        ("ecg200", (89, 11, 100), (1, 96)),
        ("ecg5000", (448, 52, 4500), (1, 140)),
        ("ecg_five_days", (20, 3, 861), (1, 136)),
        ("gun_point", (44, 6, 150), (1, 150)),
        ("german_credit", (720, 80, 200), (61,)),
        ("wine_quality", (3830, 426, 1064), (13,)),
        ("bike_sharing", (12512, 1391, 3476), (58,)),
        ("adult", (29304, 3257, 16281), (108,)),
        ("nuclei", (240, 27, 67), (1, 128, 128)),
        ("tiny_imagenet", (1800, 200, 1000), (3, 64, 64)),
        ("fashion_mnist", (None, None, 10_000), (1, 28, 28)),
        ("imagenet_photos", (None, None, 125), (3, 224, 224)),
    ],
)
def test_the_real_sets_load_with_their_sizes(name, sizes, shape):
    for split, size in zip(SPLITS, sizes, strict=True):
        if size is not None:
            examples = load(name, split=split)
            assert (len(examples), tuple(examples.x.shape[1:])) == (size, shape)
            assert torch.isfinite(examples.x.float()).all()


@real_data
def test_the_longest_sentence_fits_exactly_and_no_question_is_in_two_parts():
    for name in ("trec", "rt_polarity", "planted_words"):
        parts = [load(name, split=split) for split in SPLITS]
        assert max(len(sentence) for part in parts for sentence in part.words) == parts[0].x.shape[1]
    trec = [set(load("trec", split=split).words) for split in SPLITS]
    assert not trec[0] & trec[2] and not trec[1] & trec[2]


def digest(path: Path, of: str) -> str:
    return hashlib.new(of, path.read_bytes()).hexdigest()


@real_data
def test_adult_as_it_was_published_becomes_the_table_that_is_read(tmp_path):
    rows = gzip.decompress(Path(LOCAL or "", "tables/adult_train.csv.gz").read_bytes()).decode().split("\n")[1:-1]
    path = tmp_path / "adult.data"
    path.write_text("".join(row.replace(",", ", ") + "\n" for row in rows) + "\n", newline="\n")
    assert digest(path, "md5") == "5d7c39d7b8804f071cdd1f2a7c460872"  # as it is known of the file that UCI publishes
    tables.plain_adult(path)
    assert digest(path, "sha256") == SHA256["tables/adult_train.csv"]


@real_data
def test_the_wines_of_both_colours_in_their_published_form_become_the_table_that_is_read(tmp_path):
    head, *rows = Path(LOCAL or "", "tables/wine_quality.csv").read_text().splitlines()
    names = ";".join(f'"{name}"' for name in head.split(",")[1:])
    for kind in ("red", "white"):
        path = tmp_path / kind
        own = [row.split(",", 1)[1].replace(",", ";") for row in rows if row.startswith(kind)]
        path.write_text("".join(f"{line}\n" for line in [names, *own]), newline="\n")
        tables.plain_wine(path)
        assert digest(path, "sha256") == SHA256[f"tables/wine_{kind}.csv"]


@real_data
def test_the_archive_of_bicycles_becomes_the_table_that_is_read(tmp_path):
    body = gzip.decompress(Path(LOCAL or "", "tables/bike_hour.csv.gz").read_bytes())
    path = tmp_path / "bikes.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hour.csv", body.replace(b"\n", b"\r\n") + b"\r\n")
    tables.unzip_bikes(path)
    assert digest(path, "sha256") == SHA256["tables/bike_hour.csv"]


@real_data
def test_german_credit_as_it_was_published_becomes_the_table_that_is_read(tmp_path):
    body = Path(LOCAL or "", "tables/german_credit.csv").read_bytes().split(b"\n", 1)[1]
    path = tmp_path / "german.data"
    path.write_bytes(body.replace(b",", b" "))
    assert path.stat().st_size == 79_793
    tables.plain_credit(path)
    assert digest(path, "sha256") == SHA256["tables/german_credit.csv"]
    assert fetch("http://127.0.0.1:9/none", path, sha256=SHA256["tables/german_credit.csv"]) == path
