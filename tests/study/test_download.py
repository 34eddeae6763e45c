"""Files arrive whole or not at all: checked against a server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from xuqlib.study.data import download, readers
from xuqlib.study.data.download import DataError, File, Layout, fetch, locate
from xuqlib.study.data.loading import load

BODY = bytes(range(256)) * 9000  # more than two chunks
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the server's `bodies` hold; a name with "short" in it hangs up half-way."""

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.path.lstrip("/") in self.server.moved:
            self.send_response(302)
            self.send_header("Location", self.server.moved[self.path.lstrip("/")])
            self.end_headers()
            return
        body = self.server.bodies.get(self.path.lstrip("/"))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if "short" in self.path else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.bodies, running.moved, running.requests = {"good.bin": BODY, "short.bin": BODY}, {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XUQ_CACHE", str(folder))
    monkeypatch.delenv("XUQ_DATA", raising=False)
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_good_file_arrives_under_its_name_and_nothing_else(server, tmp_path):
    path = fetch(f"{server.url}/good.bin", tmp_path / "new" / "good.bin", sha256=SHA)
    assert path.read_bytes() == BODY
    assert files_in(tmp_path) == ["good.bin"]


def test_an_md5_of_a_file_that_a_reader_brings_is_checked_too(cache, tmp_path):
    (tmp_path / "mine.bin").write_bytes(BODY)
    md5 = hashlib.md5(BODY).hexdigest()
    assert locate((Layout("plain", (File("mine.bin", md5=md5),)),), tmp_path, "needed").layout == "plain"
    with pytest.raises(DataError, match=f"expected md5 {'0' * 32}, found {md5}"):
        locate((Layout("plain", (File("mine.bin", md5="0" * 32),)),), tmp_path, "needed")


def test_a_file_already_in_place_is_not_fetched_again(server, tmp_path):
    (tmp_path / "good.bin").write_bytes(BODY)
    fetch(f"{server.url}/good.bin", tmp_path / "good.bin", sha256=SHA)
    assert server.requests == []


def test_a_truncated_body_leaves_nothing_behind(server, tmp_path):
    with pytest.raises(DataError, match=r"short.bin .*(broke off|more expected|IncompleteRead)"):
        fetch(f"{server.url}/short.bin", tmp_path / "short.bin", sha256=SHA)
    assert files_in(tmp_path) == []


def test_a_wrong_digest_leaves_nothing_behind_and_names_both_digests(server, tmp_path):
    with pytest.raises(DataError, match=f"good.bin.*expected sha256 {'0' * 64}, found {SHA}.*nothing was kept"):
        fetch(f"{server.url}/good.bin", tmp_path / "good.bin", sha256="0" * 64)
    assert files_in(tmp_path) == []


def test_a_page_that_is_not_there_is_one_error_that_says_what_to_do(server, tmp_path):
    with pytest.raises(DataError, match=r"could not fetch .*/none.bin .*404.*put it at"):
        fetch(f"{server.url}/none.bin", tmp_path / "none.bin", sha256=SHA)
    assert files_in(tmp_path) == []


def test_a_closed_port_is_one_error_that_says_what_to_do(server, tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_port
    with pytest.raises(DataError, match=r"could not fetch .*connect to the network"):
        fetch(f"http://127.0.0.1:{port}/good.bin", tmp_path / "good.bin", sha256=SHA)
    assert files_in(tmp_path) == []


def test_an_interrupt_half_way_leaves_nothing_behind(server, tmp_path, monkeypatch):
    seen = []

    def interrupt(self: object, num_bytes: int) -> None:
        seen.extend(files_in(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr(download.tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server.url}/good.bin", tmp_path / "good.bin", sha256=SHA)
    assert seen
    assert "good.bin" not in seen
    assert files_in(tmp_path) == []


def test_a_download_without_a_digest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sha256=.*cannot be checked"):
        fetch("https://127.0.0.1/x", tmp_path / "x", sha256=None)


@pytest.mark.parametrize("scheme", ["file://", "FILE:", "ftp://127.0.0.1", "data:,", ""])
def test_a_mirror_is_a_web_address_and_no_file_of_this_machine(scheme, cache, tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/good.bin").write_bytes(BODY)
    monkeypatch.setenv("XUQ_MIRROR", f"{scheme}{tmp_path}")
    layouts = (Layout("plain", (File("set/good.bin", sha256=SHA, url="https://elsewhere.invalid/x"),)),)
    with pytest.raises(DataError, match=r"no web address; a folder is read in place as data= or \$XUQ_DATA"):
        locate(layouts, None, "needed")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("start", "end", "followed"),
    [
        ("https://a.invalid/x", "https://b.invalid/x", True),
        ("http://a.invalid/x", "https://b.invalid/x", True),
        ("http://a.invalid/x", "http://b.invalid/x", True),
        ("https://a.invalid/x", "http://a.invalid/x", False),
        ("http://a.invalid/x", "ftp://a.invalid/x", False),
    ],
)
def test_a_redirection_never_leaves_encryption(start, end, followed):
    redirects, request = download._Redirects(), urllib.request.Request(start)
    if followed:
        assert redirects.redirect_request(request, None, 302, "Found", {}, end).full_url == end
        return
    with pytest.raises(urllib.error.URLError, match="not encrypted"):
        redirects.redirect_request(request, None, 302, "Found", {}, end)


def test_a_redirection_of_a_server_is_followed_or_refused(server, tmp_path):
    server.moved["old.bin"] = f"{server.url}/good.bin"
    assert fetch(f"{server.url}/old.bin", tmp_path / "good.bin", sha256=SHA).read_bytes() == BODY
    server.moved["old.bin"] = f"ftp://{server.url[7:]}/good.bin"
    with pytest.raises(DataError, match=r"could not fetch .*old.bin .*leads to ftp:.*not encrypted"):
        fetch(f"{server.url}/old.bin", tmp_path / "other.bin", sha256=SHA)
    assert files_in(tmp_path) == ["good.bin"]


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_fetched_file_is_what_the_umask_says(server, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = fetch(f"{server.url}/good.bin", tmp_path / "new" / "good.bin", sha256=SHA)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert path.parent.stat().st_mode & 0o777 == 0o777 & ~umask


def test_the_local_folder_comes_before_the_cache_and_the_cache_before_the_network(server, cache, tmp_path):
    layouts = (Layout("plain", (File("set/good.bin", sha256=SHA, url=f"{server.url}/good.bin"),)),)
    assert locate(layouts, None, "needed").paths == (cache / "set/good.bin",)
    assert len(server.requests) == 1
    assert locate(layouts, None, "needed").paths == (cache / "set/good.bin",)
    (tmp_path / "mine/set").mkdir(parents=True)
    assert locate(layouts, tmp_path / "mine", "needed").paths == (cache / "set/good.bin",)
    (tmp_path / "mine/set/good.bin").write_bytes(BODY)
    assert locate(layouts, tmp_path / "mine", "needed").paths == (tmp_path / "mine/set/good.bin",)
    assert len(server.requests) == 1


def test_a_mirror_replaces_the_address(server, cache, monkeypatch):
    server.bodies["set/good.bin"] = BODY
    monkeypatch.setenv("XUQ_MIRROR", server.url)
    layouts = (Layout("plain", (File("set/good.bin", sha256=SHA, url="http://elsewhere.invalid/x"),)),)
    assert locate(layouts, None, "needed").paths[0].read_bytes() == BODY
    assert server.requests == ["/set/good.bin"]


@pytest.mark.parametrize("damage", [b"", BODY[:-1], BODY[:-1] + b"x"], ids=["empty", "truncated", "one byte"])
def test_a_damaged_local_file_is_named_with_both_digests_and_is_not_replaced(server, cache, tmp_path, damage):
    path = tmp_path / "set/good.bin"
    path.parent.mkdir()
    path.write_bytes(damage)
    layouts = (Layout("plain", (File("set/good.bin", sha256=SHA, url=f"{server.url}/good.bin"),)),)
    with pytest.raises(DataError, match=f"{path} is damaged.*{SHA}.*{hashlib.sha256(damage).hexdigest()}"):
        locate(layouts, tmp_path, "needed")
    assert server.requests == []
    assert path.read_bytes() == damage


def test_a_damaged_file_in_the_cache_says_to_delete_it(cache):
    (cache / "set").mkdir(parents=True)
    (cache / "set/good.bin").write_bytes(BODY[:100])
    layouts = (Layout("plain", (File("set/good.bin", sha256=SHA, url="http://elsewhere.invalid/x"),)),)
    with pytest.raises(DataError, match="delete it to have it fetched again"):
        locate(layouts, None, "needed")


def test_a_missing_file_of_a_local_set_is_named(cache, tmp_path):
    (tmp_path / "a.bin").write_bytes(BODY)
    layouts = (Layout("pair", (File("a.bin", sha256=SHA), File("b.bin", sha256=SHA, url="http://elsewhere.invalid/"))),)
    with pytest.raises(DataError, match=rf"b\.bin is missing \(expected sha256 {SHA}\)"):
        locate(layouts, tmp_path, "needed")


def test_a_data_folder_that_does_not_exist_is_an_error(cache, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"data= is .*nowhere, which is not a folder"):
        load("mnist", data=tmp_path / "nowhere")
    monkeypatch.setenv("XUQ_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"\$XUQ_DATA is .*nowhere, which is not a folder"):
        load("mnist")


def test_fer_plus_without_files_says_what_to_fetch_and_where_to_put_it(cache, tmp_path):
    with pytest.raises(DataError, match=r"no open download.*fer2013.csv.*fer2013new.csv.*looked in"):
        load("fer_plus", data=tmp_path)


PICTURES = ["cifar10", "mnist", "fashion_mnist", "notmnist", "cifar100", "svhn", "cifar10h"]
TABLES = ["california_housing", "adult", "german_credit", "wine_quality", "bike_sharing"]


@pytest.mark.parametrize("name", [*PICTURES, *TABLES, "trec", "rt_polarity"])
def test_every_open_set_asks_the_mirror_and_reports_its_absence(name, server, cache, monkeypatch):
    monkeypatch.setenv("XUQ_MIRROR", server.url)
    with pytest.raises(DataError, match="could not fetch"):
        load(name)
    assert len(server.requests) == 1
    assert files_in(cache) == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tiny_imagenet", r"Tiny-ImageNet.*no open download.*tiny_imagenet_subset/val.parquet"),
        ("imagenet_photos", r"no open download.*imagenet_mobilenet/pictures.parquet"),
        ("nuclei", r"BBBC038.*nuclei_dsb2018/test.parquet"),
        ("ecg5000", r"UCR archive.*https://www.cs.ucr.edu.*ucr/ECG5000/ECG5000_TRAIN.tsv"),
    ],
)
def test_a_set_without_a_download_says_what_to_fetch_and_where_to_put_it(name, wanted, cache, tmp_path):
    with pytest.raises(DataError, match=wanted):
        load(name, data=tmp_path)


def test_every_address_is_encrypted_and_every_download_has_a_sha256(cache):
    from xuqlib.study.check import wanted
    from xuqlib.study.data.loading import DATASETS

    files = [file for name in DATASETS for need in wanted(name) for layout in need.layouts for file in layout.files]
    fetched = [file for file in files if file.url]
    assert len(fetched) > 15
    assert [file.url for file in fetched if not file.url.startswith("https://")] == []
    assert [file.path for file in fetched if not re.fullmatch("[0-9a-f]{64}", file.sha256 or "")] == []


def test_the_counts_of_cifar10h_are_narrowed_before_their_digest_is_taken(server, tmp_path):
    counts = np.arange(20, dtype=np.int64).reshape(2, 10)
    np.save(tmp_path / "wide.npy", counts)
    np.save(tmp_path / "narrow.npy", counts.astype(np.uint8))
    server.bodies["counts.npy"] = (tmp_path / "wide.npy").read_bytes()
    sha256 = hashlib.sha256((tmp_path / "narrow.npy").read_bytes()).hexdigest()
    path = fetch(f"{server.url}/counts.npy", tmp_path / "c/counts.npy", sha256=sha256, convert=readers.narrow_counts)
    assert np.load(path).dtype == np.uint8
    with pytest.raises(DataError, match="is no array"):
        fetch(f"{server.url}/good.bin", tmp_path / "c/other.npy", sha256=sha256, convert=readers.narrow_counts)
    assert files_in(tmp_path / "c") == ["counts.npy"]


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    calls = []
    original = hashlib.file_digest
    monkeypatch.setattr(download.hashlib, "file_digest", lambda *a: calls.append(1) or original(*a))
    assert download.file_digest(path, "sha256") == download.file_digest(path, "sha256")
    assert len(calls) == 1
    path.write_bytes(b"other")
    assert download.file_digest(path, "sha256") == hashlib.sha256(b"other").hexdigest()
    assert len(calls) == 2
