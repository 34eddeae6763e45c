"""Find a data file, check it against its published digest, or fetch it whole or not at all."""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from xuqlib.study.files import ROOT

CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30.0


Folder = str | os.PathLike[str] | None

# SHA-256 of the files as they are published; an IDX file without .gz is the one that torchvision unpacks.
SHA256 = {
    "MNIST/raw/train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "MNIST/raw/train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "MNIST/raw/t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "notMNIST/raw/t10k-images-idx3-ubyte.gz": "70ae9e06201f2827e5b0a3781a3169d735dd2efc69996b9eeaee7f10ed4044d7",
    "notMNIST/raw/t10k-labels-idx1-ubyte.gz": "1fa03836e01c862542f8eb83463bb951bebec6fcb3efa28dad748c6b38a9021b",
    "california_housing/cal_housing.csv.gz": "3f4630ae7e22621e621529a7a3a90d0710920012d60528b8ada1c8235e697211",
    "california_housing/cal_housing.tgz": "aaa5c9a6afe2225cc2aed2723682ae403280c4a3695a2ddda4ffb5d8215ea681",
    "cifar10/data_batch_1.parquet": "29a2e837d5cd54cd0beea5eba30f9a2c42ad282bbcdc548741a9374cdb3d88e6",
    "cifar10/data_batch_2.parquet": "c1a01dee32d281e5da98a6a5145116c82ab058b56a16794e5f4d6c1c2ea1895b",
    "cifar10/data_batch_3.parquet": "783da965061c681ea1d36ceff61b459995cc081cf7aa9a0c7281934bfa69f8c8",
    "cifar10/data_batch_4.parquet": "987b9cdf4bc1b97f63ce9d071d977f8428b779847d51807b12b4303d3167a5c0",
    "cifar10/data_batch_5.parquet": "5c317ff60d413a32fb5215e78bdded838b9c7a6aae0462b83b173f951aa4370f",
    "cifar10/test_batch.parquet": "c9174e37a356fd8d3474b652ef54b55829bae718ae93e99733aecd895a17292b",
    "cifar100_subset/test_1000.parquet": "a914f8e7e7c96fa1d9959d642a71e7abe3a267ad6f8d3aa0a861295a3a495fb9",
    "cifar10_human/cifar10h_counts.npy": "1428924725020a238b51763eaf54396e639f4bcd9f50567d0eab63ab822cfb25",
    "fer2013plus/train.parquet": "275d2527d70e32529cf7cce316180b0638b1cc491906fff7e2865c3640019d5b",
    "fer2013plus/valid.parquet": "226364be0b2d1d5ed81dc4babe07b170294fa95194d91c5b2f69d521c8acd26b",
    "fer2013plus/test.parquet": "7422f1629ddb76a25038e434b7277f8c3d32969f5185163dd1060f4fac9fb951",
    "FashionMNIST/raw/train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "FashionMNIST/raw/train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    "tiny_imagenet_subset/train.parquet": "1903b6566ddd354ed2dc2376b3df3721559877270b7853490d38cead1aef7b32",
    "tiny_imagenet_subset/val.parquet": "b54beae5e2629d9d19105a005e65653fdd64901906af0b39b810c8171640ce01",
    "imagenet_mobilenet/labels.txt": "b8aaeb5630c62626a7d124a05c0e14230a7ffdd2136a31d0190a4fb71c1d82f1",
    "imagenet_mobilenet/pictures.parquet": "0fef282489007a0bc1aa44bc7bdbf50e11e8068102c12a58b982a24efef63ca4",
    "imagenet_mobilenet/mobilenet_v2_1.0_224.json": "f0b58cc4ed80ef9df00466aa10d7ade58b46b1490010dc5efea5cd7cf8c32662",
    "imagenet_mobilenet/mobilenet_v2_1.0_224.npz": "bf259804c11424d5cc309a9dc3dec7a19b138462160cd5ba25d20a18289b5e75",
    "nuclei_dsb2018/train.parquet": "064ab00b973df064de338f0c2655ddacc3ac6420f18a70216d2dd68e1ba044e2",
    "nuclei_dsb2018/test.parquet": "538bd085539a221b73cee5c28fc7906b59e5c88a3d8eba7e1c18797c04e61011",
    "ucr/ECG200.npz": "3557cc9d4d325913ce1760dfeb50e5471eaab7e86ef6e7aeba051582416c1290",
    "ucr/ECG5000.npz": "b54304278c53a05e2b3d14fc02e3df82abf9574e6bf7d4e30e6dade2f33d7574",
    "ucr/ECGFiveDays.npz": "5a5ff4ac30261553f225996f343f6537d083699acb484e57415fb0ad8ece4dca",
    "ucr/GunPoint.npz": "eafeccdebbddd22c407ef188dfd44b0a1f7930a39ed34ce3c2bfeca14ced523e",
    "text/rt-polarity.neg": "4ace77d558c3714723843f1d65b60c01e3417b208180f0728808d76ad0eeeaca",
    "text/rt-polarity.pos": "2da124ec187a9d5a29c9f04e91c540e02baed5af8868f550a26bd6fd4dbf8bf0",
    "text/trec_train_5500.label": "f96f211c9d180d3fa25b1841febd9be6f0a6fc65e5b6a99344b5946163b35009",
    "text/trec_test_10.label": "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e",
    "tables/adult_train.csv.gz": "33518054b3b257d17cc033d35a81a9650ae2e402a7c1a3150f0e788b555488f1",
    "tables/adult_test.csv.gz": "fb275b5ea0af63bb7744ff1ae9ee95e747b6deabcf73ebf0f404195a2fabf25b",
    "tables/bike_hour.csv.gz": "1abd77b7daec435ad6b14b7a3bfabc40aaf0868cfd3fb7a98e41cc5fe784dab2",
    "tables/german_credit.csv": "5f1b242858898f4d94d049637930af34994d30c7ce2eb8f157e226cb461269a3",
    "tables/wine_quality.csv": "1c28f3fe53be537f704aa7700a22a914e626bbc9ee65a3e17e16a2b5836c3d87",
    "text/train_5500.label": "9e4c8bdcaffb96ed61041bd64b564183d52793a8e91d84fc3a8646885f466ec3",
    "text/TREC_10.label": "033f22c028c2bbba9ca682f68ffe204dc1aa6e1cf35dd6207f2d4ca67f0d0e8e",
    "tables/adult_train.csv": "3b8a6abd697a6623ef2ccbffc3e2802e167e7fdaa853003d3bd557b0ce7f5d2a",
    "tables/adult_test.csv": "eb6e9f02496bed4137b1a069b8af64b90eb534ba46143948667034dddef9abd9",
    "tables/bike_hour.csv": "e2041d15e576593a53a605868995ff6c97a7f1b83ceb318483be3f090480e48f",
    "tables/wine_red.csv": "beeb42e13e74d1cabcdf3f1d7fe5a3c6ce9cabe6a2ab84a564f6bc0cdd5aea26",
    "tables/wine_white.csv": "81c25bde36c78c3cd5f119b905f78d8d0c7a3959bf5bbaa322dc59a0a537cce3",
    # The python release, rebuilt from the Parquet files; their MD5 are the published ones.
    "cifar-10-batches-py/data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "cifar-10-batches-py/data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "cifar-10-batches-py/data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "cifar-10-batches-py/data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "cifar-10-batches-py/data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "cifar-10-batches-py/test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    # The publishers give an MD5. These are what Keras (CIFAR) and TensorFlow Datasets (SVHN) check.
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


class DataError(RuntimeError):
    """A data file is missing, damaged or cannot be fetched."""


class File(NamedTuple):
    """A file of a data set: its place below a data folder, what it must hash to, where it can be fetched.

    A file with an address has a SHA-256; an MD5 is for files that a reader brings, where nothing better is published.
    `convert` rewrites a fetched file in place before its digest is taken, where the published form differs.
    """

    path: str
    sha256: str | None = None
    md5: str | None = None
    url: str | None = None
    convert: Callable[[Path], None] | None = None


def known_file(path: str, url: str | None = None, convert: Callable[[Path], None] | None = None) -> File:
    """Return a file of the table `SHA256`."""
    return File(path, sha256=SHA256[path], url=url, convert=convert)


class Layout(NamedTuple):
    """One way in which a data set may lie on disk: the files that must all be there."""

    name: str
    files: tuple[File, ...]


class Found(NamedTuple):
    """The layout that was found, and its files in the layout's order."""

    layout: str
    paths: tuple[Path, ...]


def cache_folder() -> Path:
    """Return the folder that downloads go to: $XUQ_CACHE, else `.cache` beside the package. It may not exist yet."""
    override = os.environ.get("XUQ_CACHE")
    return Path(override).expanduser() if override else ROOT / ".cache"


def data_folder(data: Folder) -> Path | None:
    """Return the folder of local data: `data`, else $XUQ_DATA, else None. It is only read.

    Raises:
        DataError: the folder does not exist.
    """
    given = data if data is not None else os.environ.get("XUQ_DATA") or None
    if given is None:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        where = "data=" if data is not None else "$XUQ_DATA"
        raise DataError(f"{where} is {folder}, which is not a folder; pass the folder that holds the data sets")
    return folder


def file_digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digest of a file. A file that has not changed since is hashed once per process."""
    state = path.stat()
    return _file_digest(path, algorithm, state.st_size, state.st_mtime_ns)


@functools.cache
def _file_digest(path: Path, algorithm: str, size: int, mtime_ns: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def verify(path: Path, *, sha256: str | None = None, md5: str | None = None, remedy: str | None = None) -> None:
    """Check that a file exists and hashes to what it should. Without a digest only existence is checked.

    Args:
        path: the file.
        sha256: expected SHA-256, hexadecimal.
        md5: expected MD5, where the publisher gives only that.
        remedy: what the error advises; by default to delete or restore the file.

    Raises:
        DataError: the file is missing, or its digest is another one.
    """
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if not path.is_file():
            raise DataError(f"{path} is missing (expected {algorithm} {expected}); {remedy or 'restore the file'}")
        if expected and (found := file_digest(path, algorithm)) != expected:
            advice = remedy or "restore it from the original, or delete it to have it fetched again"
            raise DataError(
                f"{path} is damaged or truncated ({path.stat().st_size:,} bytes): "
                f"expected {algorithm} {expected}, found {found}; {advice}"
            )


def fetch(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None,
    convert: Callable[[Path], None] | None = None,
) -> Path:
    """Download a file with a progress bar, and put it in place only when its digest is right.

    The body goes to a temporary file beside `path`, which is removed whatever goes wrong, an interrupt
    included. A file that is already in place and right is kept, without a connection. Who may read it is
    what the umask says.

    Args:
        url: address of the file: https, or http of a mirror that the reader names.
        path: where it goes; folders are made.
        sha256: expected SHA-256, hexadecimal.
        convert: rewrites the fetched file in place before its digest is taken.

    Raises:
        ValueError: no digest was given.
        DataError: no connection, an address of another kind, an HTTP error, a truncated body or another digest; or
            `path` exists and is damaged.
    """
    if not sha256:
        raise ValueError("fetch needs sha256=: a download that cannot be checked is not kept")
    path = Path(path)
    if path.exists():
        verify(path, sha256=sha256)
        return path
    if urlsplit(url).scheme not in ("https", "http"):
        raise DataError(f"{url} is not fetched: it is no web address; a folder is read in place as data= or $XUQ_DATA")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        _stream(url, part, path)
        if convert is not None:
            convert(part)
        verify(part, sha256=sha256, remedy=f"the body of {url} is not the published file, nothing was kept")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to an encrypted address, or from one that was not encrypted to another."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(newurl).scheme not in ("https", urlsplit(req.full_url).scheme):
            raise urllib.error.URLError(f"it leads to {newurl}, which is not encrypted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _stream(url: str, part: Path, path: Path) -> None:
    """Write the body of `url` to `part`; a connection that breaks off is an error, not a short file."""
    advice = f"connect to the network and call again, or fetch the file by other means and put it at {path}"
    try:
        opener = urllib.request.build_opener(_Redirects)
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response, part.open("xb") as stream:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            with tqdm(total=total, unit="B", unit_scale=True, desc=path.name, leave=False) as progress:
                while chunk := response.read(CHUNK_BYTES):
                    stream.write(chunk)
                    progress.update(len(chunk))
            # read(n) returns a short body silently when the server hangs up.
            if total is not None and stream.tell() != total:
                raise DataError(
                    f"{url} broke off after {stream.tell():,} of {total:,} bytes, nothing was kept; {advice}"
                )
    except (urllib.error.URLError, HTTPException, OSError) as error:
        raise DataError(f"could not fetch {url} ({error}); {advice}") from error


def locate(layouts: tuple[Layout, ...], data: Folder, help_text: str) -> Found:
    """Find a data set on disk in any of its layouts, or download the first layout that has addresses.

    Order: the local folder (`data` or $XUQ_DATA), the cache, the network. $XUQ_MIRROR replaces the
    address of every file by `$XUQ_MIRROR/<path below the cache>`; the digests stay.

    Args:
        layouts: the layouts, the preferred one first.
        data: the local folder, see `data_folder`.
        help_text: what a person should fetch, for the error when there is no address.

    Raises:
        DataError: a file is damaged; a layout of the local folder lacks a file; nothing was found nor fetched.
    """
    local = data_folder(data)
    cache = cache_folder()
    for folder in (local, cache):
        if folder is None:
            continue
        for layout in layouts:
            paths = tuple(folder / file.path for file in layout.files)
            if all(path.is_file() for path in paths):
                for path, file in zip(paths, layout.files, strict=True):
                    verify(path, sha256=file.sha256, md5=file.md5)
                return Found(layout.name, paths)
        # Part of a layout in the user's own folder is a mistake to report, not a reason to download.
        for layout in layouts if folder == local else ():
            if any((folder / file.path).is_file() for file in layout.files):
                for file in layout.files:
                    verify(folder / file.path, sha256=file.sha256, md5=file.md5)
    for layout in layouts:
        if all(file.url for file in layout.files):
            return Found(layout.name, tuple(_fetch_to(cache, file) for file in layout.files))
    places = " or ".join(", ".join(file.path for file in layout.files) for layout in layouts)
    raise DataError(f"{help_text}; looked in {local or '(no $XUQ_DATA)'} and {cache} for {places}")


def _fetch_to(cache: Path, file: File) -> Path:
    mirror = os.environ.get("XUQ_MIRROR")
    url = f"{mirror.rstrip('/')}/{file.path}" if mirror else file.url
    assert url is not None  # locate asks only for files that have an address
    return fetch(url, cache / file.path, sha256=file.sha256, convert=file.convert)
