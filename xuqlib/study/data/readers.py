"""Read each published data set, in any of its usual layouts, into arrays in canonical order."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickletools
import tarfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xuqlib.study.data import planted as pictures
from xuqlib.study.data import planted_pixels as pixels
from xuqlib.study.data import planted_signals as signals
from xuqlib.study.data import planted_table as table
from xuqlib.study.data import planted_words as words
from xuqlib.study.data.download import DataError, File, Folder, Found, Layout, known_file, locate

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOUSING_FEATURES = (
    "MedInc",
    "HouseAge",
    "AveRooms",
    "AveBedrms",
    "Population",
    "AveOccup",
    "Latitude",
    "Longitude",
)
DIABETES_FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
# SHA-256 of the 20,640 x 9 float64 values (eight features, then the target), whatever file they came in.
HOUSING_VALUES = "9b9082ab86651a01d663a8e4a70ea14c0b41d0b2bd693bccd3221dcd111e15ca"
HOUSING_SHAPE = (20640, 9)
HOUSING_ARCHIVE = "https://ndownloader.figshare.com/files/5976036"
NOTMNIST = "https://raw.githubusercontent.com/davidflanagan/notMNIST-to-MNIST/c58c29ff93d7b8c809c449b380a232f9f39909fd"
FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
FASHION_CLASSES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
CIFAR = "https://www.cs.toronto.edu/~kriz"
CIFAR100_MD5 = {  # what torchvision checks; its import takes seconds
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
}
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
SVHN = "https://ufldl.stanford.edu/housenumbers"
CIFAR10H = "https://raw.githubusercontent.com/jcpeterson/cifar-10h/597cbc5f07266c9405b830ee4a53463539124c4f/data"


class Raw(NamedTuple):
    """One canonical part of a data set, unscaled. The arrays are shared between calls and read-only.

    x: pictures, uint8 or float32 (N, C, H, W); a table, float64 (N, F); signals, float32 (N, C, L); or sentences,
    tuples of words (N,). y: int64 class index (N,), or of each pixel (N, H, W); or float64 target (N,).
    probs: soft labels (N, C, ...), or None. class_names: None for regression. masks: bool (N, ...) each, without the
    axis of channels, or None. moments: true mean and variance of the target, float64 (N, 2), or None.
    feature_names, feature_groups: of a table's F columns, and which of them are one feature.
    """

    x: np.ndarray
    y: np.ndarray
    probs: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    masks: dict[str, np.ndarray] | None = None
    feature_names: tuple[str, ...] | None = None
    feature_groups: dict[str, tuple[int, ...]] | None = None
    moments: np.ndarray | None = None


def planted(part: str, data: Folder = None) -> Raw:
    """The generated pictures of `xuqlib.study.data.planted`. No file is needed."""
    x, y, probs, masks = pictures.generate(part)
    return Raw(x, y, probs, pictures.CLASS_NAMES, masks)


def planted_words(part: str, data: Folder = None) -> Raw:
    """The generated sentences of `xuqlib.study.data.planted_words`. No file is needed."""
    x, y, probs, masks = words.generate(part)
    return Raw(x, y, probs, words.CLASS_NAMES, masks)


def planted_signals(part: str, data: Folder = None) -> Raw:
    """The generated signals of `xuqlib.study.data.planted_signals`. No file is needed."""
    x, y, probs, masks = signals.generate(part)
    return Raw(x, y, probs, signals.CLASS_NAMES, masks)


def planted_table(part: str, data: Folder = None) -> Raw:
    """The generated table of `xuqlib.study.data.planted_table`. No file is needed."""
    x, y, moments, masks = table.generate(part)
    names, groups = table.FEATURE_NAMES, table.FEATURE_GROUPS
    return Raw(x, y, masks=masks, feature_names=names, feature_groups=groups, moments=moments)


def planted_pixels(part: str, data: Folder = None) -> Raw:
    """The generated pictures of `xuqlib.study.data.planted_pixels`, a label per pixel. No file is needed."""
    x, y, probs, masks = pixels.generate(part)
    return Raw(x, y, probs, pixels.CLASS_NAMES, masks)


@cache
def digits(part: str, data: Folder = None) -> Raw:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey values 0 to 16. No file is needed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Raw(frozen(bunch.images.astype(np.uint8)[:, None]), frozen(bunch.target), class_names=tuple("0123456789"))


@cache
def diabetes(part: str, data: Folder = None) -> Raw:
    """scikit-learn's 442 diabetes patients, ten features in their own units. No file is needed."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return Raw(frozen(bunch.data), frozen(bunch.target), feature_names=DIABETES_FEATURES)


def cifar10(part: str, data: Folder = None) -> Raw:
    """CIFAR-10, `part` "train" or "test": Parquet files, or torchvision's folder or archive."""
    batches = [f"data_batch_{i}" for i in range(1, 6)] if part == "train" else ["test_batch"]
    members, archive = tuple(f"cifar-10-batches-py/{batch}" for batch in batches), "cifar-10-python.tar.gz"
    layouts = (
        Layout("parquet", tuple(known_file(f"cifar10/{batch}.parquet") for batch in batches)),
        Layout("pickle", tuple(known_file(member) for member in members)),
        Layout("archive", (known_file(archive, f"{CIFAR}/{archive}"),)),
    )
    x, y = _cifar_arrays(locate(layouts, data, "CIFAR-10 (python version) is needed"), members, "labels")
    return Raw(x, y, class_names=CIFAR10_CLASSES)


def cifar10h(part: str, data: Folder = None) -> Raw:
    """The CIFAR-10 test pictures with the votes of 47 to 63 people each (CIFAR-10H) as soft labels."""
    file = known_file("cifar10_human/cifar10h_counts.npy", f"{CIFAR10H}/cifar10h-counts.npy", narrow_counts)
    found = locate((Layout("npy", (file,)),), data, "the votes of CIFAR-10H are needed")
    counts = np.load(found.paths[0], allow_pickle=False).astype(np.float64)
    return cifar10(part, data)._replace(probs=counts / counts.sum(1, keepdims=True))


def cifar100(part: str, data: Folder = None) -> Raw:
    """CIFAR-100 test pictures with their 100 fine labels: a 1,000-picture subset, or torchvision's files."""
    test, meta = CIFAR100_MD5
    archive = "cifar-100-python.tar.gz"
    layouts = (
        Layout("parquet", (known_file("cifar100_subset/test_1000.parquet"),)),
        Layout("pickle", tuple(File(path, md5=md5) for path, md5 in CIFAR100_MD5.items())),
        Layout("archive", (known_file(archive, f"{CIFAR}/{archive}"),)),
    )
    found = locate(layouts, data, "CIFAR-100 (python version) is needed")
    x, y = _cifar_arrays(found, (test,), "fine_labels")
    return Raw(x, y, class_names=_cifar100_classes(found, meta))


def svhn(part: str, data: Folder = None) -> Raw:
    """Street View House Numbers, cropped digits, test part; classes "0" to "9"."""
    name = f"{part}_32x32.mat"
    found = locate((Layout("mat", (known_file(name, f"{SVHN}/{name}"),)),), data, f"SVHN's {name} is needed")
    x, y = _mat_arrays(found.paths[0])
    return Raw(x, y, class_names=tuple("0123456789"))


def mnist(part: str, data: Folder = None) -> Raw:
    """MNIST, `part` "train" or "test": torchvision's folder MNIST/raw, files packed or unpacked."""
    prefix = "train" if part == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]
    layouts = (
        Layout("gz", tuple(known_file(f"MNIST/raw/{name}.gz", f"{MNIST}/{name}.gz") for name in names)),
        Layout("idx", tuple(known_file(f"MNIST/raw/{name}") for name in names)),
    )
    images, labels = locate(layouts, data, "MNIST is needed").paths
    return Raw(_idx(images)[:, None], _idx(labels).astype(np.int64), class_names=tuple("0123456789"))


def fashion_mnist(part: str, data: Folder = None) -> Raw:
    """Fashion-MNIST, `part` "train" or "test": torchvision's folder FashionMNIST/raw, files packed."""
    prefix = "train" if part == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"]
    layout = Layout("gz", tuple(known_file(f"FashionMNIST/raw/{name}", f"{FASHION}/{name}") for name in names))
    images, labels = locate((layout,), data, "Fashion-MNIST is needed").paths
    return Raw(_idx(images)[:, None], _idx(labels).astype(np.int64), class_names=FASHION_CLASSES)


def notmnist(part: str, data: Folder = None) -> Raw:
    """notMNIST: 10,000 letters A to J in MNIST's form."""
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    layout = Layout("gz", tuple(known_file(f"notMNIST/raw/{name}", f"{NOTMNIST}/{name}") for name in names))
    images, labels = locate((layout,), data, "notMNIST is needed").paths
    return Raw(_idx(images)[:, None], _idx(labels).astype(np.int64), class_names=tuple("ABCDEFGHIJ"))


def tiny_imagenet(part: str, data: Folder = None) -> Raw:
    """Twenty classes of Tiny-ImageNet, 64x64: 100 training pictures of each, and as test its 50 for validation."""
    name = f"tiny_imagenet_subset/{'train' if part == 'train' else 'val'}.parquet"
    help_text = (
        "twenty classes of Tiny-ImageNet are needed as Parquet, which has no open download: a column image of the JPEGs"
    )
    found = locate((Layout("parquet", (known_file(name),)),), data, help_text)
    return Raw(*_parquet_arrays(found.paths[0]), class_names=_parquet_classes(found.paths[0]))


def imagenet_photos(part: str, data: Folder = None) -> Raw:
    """125 photographs, 224x224, of every eighth class of ImageNet; y counts from 1, as class 0 is the background.

    The centre of each file's 256x256 is taken; seven photographs without a label are left out.
    """
    files = tuple(known_file(f"imagenet_mobilenet/{name}") for name in ("pictures.parquet", "labels.txt"))
    help_text = (
        "photographs of ImageNet are needed as Parquet, which has no open download: columns image (256x256) and label"
    )
    pictures, labels = locate((Layout("parquet", files),), data, help_text).paths
    x, y = _parquet_arrays(pictures)
    names = tuple(labels.read_text(encoding="utf-8").splitlines())
    return Raw(frozen(x[y >= 0, :, 16:240, 16:240]), frozen(y[y >= 0]), class_names=names)


def nuclei(part: str, data: Folder = None) -> Raw:
    """Cell nuclei (2018 Data Science Bowl): grey pictures, and of each pixel whether it belongs to a nucleus.

    The files' 256x256 pixels are averaged over squares of four; a pixel is a nucleus where at least two of them are.
    """
    file = known_file(f"nuclei_dsb2018/{part}.parquet")
    help_text = "the nuclei of BBBC038 are needed as Parquet: columns image, and mask (a number for each nucleus)"
    found = locate((Layout("parquet", (file,)),), data, help_text)
    return Raw(*_nuclei_arrays(found.paths[0]), class_names=("background", "nucleus"))


def california_housing(part: str, data: Folder = None) -> Raw:
    """California Housing: the eight derived features of scikit-learn, target in 100,000 dollars."""
    folder = "california_housing"
    layouts = (
        Layout("csv", (known_file(f"{folder}/cal_housing.csv.gz"),)),
        Layout("archive", (known_file(f"{folder}/cal_housing.tgz", HOUSING_ARCHIVE),)),
        Layout("sklearn", (File(f"{folder}/cal_housing_py3.pkz"),)),
        Layout("sklearn", (File("cal_housing_py3.pkz"),)),
    )
    found = locate(layouts, data, "California Housing is needed")
    return Raw(*_housing_arrays(found), feature_names=HOUSING_FEATURES)


@cache
def _cifar_arrays(found: Found, members: tuple[str, ...], label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode CIFAR pictures to uint8 (N, 3, 32, 32) and labels to int64 (N,)."""
    if found.layout == "parquet":
        import pyarrow.parquet as pq

        tables = [pq.read_table(path) for path in found.paths]
        x = np.concatenate([decode(table, "RGB") for table in tables]).transpose(0, 3, 1, 2)
        y = np.concatenate([table["label"].to_numpy() for table in tables])
    else:
        contents = _contents(found, members)
        x = np.concatenate([pickled_pictures(content, "data") for content in contents])
        y = np.concatenate([pickled_list(content, label_key) for content in contents])
    return frozen(x), frozen(y.astype(np.int64))


def _contents(found: Found, members: tuple[str, ...]) -> list[bytes]:
    """The bytes of files, from their folder or from within the archive."""
    if found.layout == "pickle":
        return [path.read_bytes() for path in found.paths[: len(members)]]
    with tarfile.open(found.paths[0]) as archive:
        streams = [archive.extractfile(name) for name in members]
        return [stream.read() for stream in streams if stream is not None]


def _words(content: bytes, key: str) -> Iterator[tuple[str, Any]]:
    """What a pickled dictionary says after a key, word by word: the name of each and its argument.

    A pickle is a program. It is read here as text is, and not run, so it can name what it likes: nothing is called.
    """
    words = ((word.name, argument) for word, argument, _ in pickletools.genops(content))
    if all(argument != key for _, argument in words):
        raise ValueError(f"the file has no {key!r}")
    return ((name, argument) for name, argument in words if "PUT" not in name and name != "MEMOIZE")


def pickled_list(content: bytes, key: str) -> list[Any]:
    """The list of numbers or names that a pickled dictionary holds under a key; nothing is unpickled.

    Raises:
        ValueError: there is no such list of two or more, or `content` is no pickle.
    """
    words, found, inside = _words(content, key), list[Any](), False
    start, _ = next(words, ("", None))
    for name, argument in words if start == "EMPTY_LIST" else ():
        if name in ("MARK", "APPENDS"):
            inside = name == "MARK"
        elif not inside:
            break
        elif name.startswith(("BININT", "SHORT_BIN", "BINUNICODE")):
            found.append(argument)
        else:
            raise ValueError(f"the list {key!r} holds a {name}; wanted numbers or names")
    if not found:
        raise ValueError(f"the file has no list {key!r}")
    return found


def pickled_pictures(content: bytes, key: str) -> np.ndarray:
    """The pictures, uint8 (N, 3, 32, 32), of the array that a pickled dictionary holds under a key; as above.

    Raises:
        ValueError: there is no such array, or `content` is no pickle.
    """
    # Of an array's words, its names, shape and type are short: only its values are as long as a picture.
    for _, argument in _words(content, key):
        if isinstance(argument, str | bytes | bytearray) and len(argument) >= 3 * 32 * 32:
            values = argument.encode("latin-1") if isinstance(argument, str) else argument
            return np.frombuffer(values, np.uint8).reshape(-1, 3, 32, 32)
    raise ValueError(f"the file has no pictures {key!r}")


@cache
def _parquet_classes(path: Path) -> tuple[str, ...]:
    import json

    import pyarrow.parquet as pq

    info = json.loads(pq.read_schema(path).metadata[b"huggingface"])
    return tuple(info["info"]["features"]["label"]["names"])


@cache
def _cifar100_classes(found: Found, member: str) -> tuple[str, ...]:
    if found.layout == "parquet":
        return _parquet_classes(found.paths[0])
    chosen = found._replace(paths=found.paths[-1:])
    return tuple(pickled_list(_contents(chosen, (member,))[0], "fine_label_names"))


@cache
def _parquet_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read colour pictures, uint8 (N, 3, H, W), and labels, int64 (N,)."""
    import pyarrow.parquet as pq

    content = pq.read_table(path)
    x = decode(content, "RGB").transpose(0, 3, 1, 2)
    return frozen(x), frozen(content["label"].to_numpy().astype(np.int64))


@cache
def _nuclei_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq
    from PIL import Image

    content = pq.read_table(path)
    masks = content["mask"].combine_chunks().field("bytes").to_pylist()
    instances = np.stack([np.asarray(Image.open(io.BytesIO(mask))) for mask in masks])
    x, y = (
        array.reshape(len(array), 128, 2, 128, 2).mean((2, 4), dtype=np.float32)
        for array in (decode(content, "L"), instances > 0)
    )
    return frozen(x[:, None]), frozen((y >= 0.5).astype(np.int64))


def decode(table: Any, mode: str) -> np.ndarray:
    """Decode the lossless pictures of a Parquet table to uint8, (N, H, W) or (N, H, W, 3)."""
    from PIL import Image

    content = table["image"].combine_chunks().field("bytes").to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(picture)).convert(mode)) for picture in content])


@cache
def _idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: a header of 4 + 4 * dimensions bytes, then the values."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", count=dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@cache
def _mat_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    content = loadmat(path)
    y = content["y"].astype(np.int64).squeeze(1) % 10  # the file calls the digit 0 class 10
    return frozen(content["X"].transpose(3, 2, 0, 1)), frozen(y)


@cache
def _housing_arrays(found: Found) -> tuple[np.ndarray, np.ndarray]:
    path = found.paths[0]
    x, y = _derive_housing(_housing_table(found))
    digest = hashlib.sha256(np.column_stack([x, y]).astype("<f8").tobytes()).hexdigest()
    if digest != HOUSING_VALUES:
        raise DataError(f"{path}: expected values with sha256 {HOUSING_VALUES}, found {digest}; delete the file")
    return frozen(x), frozen(y)


def _housing_table(found: Found) -> np.ndarray:
    if found.layout == "csv":
        return np.loadtxt(found.paths[0], delimiter=",", skiprows=1)
    if found.layout == "sklearn":
        return _cached_housing(found.paths[0])
    with tarfile.open(found.paths[0]) as archive:
        stream = archive.extractfile("CaliforniaHousing/cal_housing.data")
        assert stream is not None  # the archive's digest has been checked
        return np.loadtxt(stream, delimiter=",")


def _cached_housing(path: Path) -> np.ndarray:
    """Read scikit-learn's cache without unpickling it: StatLib's columns, (20640, 9).

    joblib writes a compressed pickle whose last words are the values, column by column, and a full stop. Where they
    are found is sure, since the digest of all values is checked.
    """
    num_bytes, unpacker = 8 * HOUSING_SHAPE[0] * HOUSING_SHAPE[1], zlib.decompressobj()
    try:
        content = unpacker.decompress(path.read_bytes(), num_bytes + 4096)  # what says more is another file
    except zlib.error:
        content = b""
    if not unpacker.eof or len(content) <= num_bytes:
        raise DataError(f"{path} is damaged or truncated; delete it to have it fetched again")
    columns = np.frombuffer(content[-num_bytes - 1 : -1], "<f8").reshape(HOUSING_SHAPE[::-1])
    return columns[[8, 7, 2, 3, 4, 5, 6, 1, 0]].T


def _derive_housing(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make scikit-learn's eight features and target from StatLib's nine columns."""
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = table.T
    with np.errstate(all="ignore"):  # of another table, which its digest gives away
        ratios = [rooms / households, bedrooms / households, population, population / households]
    return np.column_stack([income, age, *ratios, latitude, longitude]), value / 100_000.0


def narrow_counts(path: Path) -> None:
    """Store CIFAR-10H's counts as uint8; the release has a wider type."""
    try:
        counts = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"the file fetched for CIFAR-10H is no array ({error}); nothing was kept") from error
    with path.open("wb") as stream:
        np.save(stream, counts.astype(np.uint8))


def frozen(array: np.ndarray) -> np.ndarray:
    """Return the array contiguous and read-only, since it is shared between calls."""
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array
