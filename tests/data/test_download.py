from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lipcert.data import Dataset, catalog, download, load, registry
from lipcert.data.download import SOURCES
from lipcert.errors import DataError

Tree = Callable[[Path], list[str]]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if "short" in self.path:  # promises more than it sends, as a broken connection does
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            return
        super().do_GET()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    (tmp_path / "www").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "www")))
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mirror(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


def offer(www: Path, name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put files on the server, and their checksums where the published ones are."""
    (www / name).mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (www / name / file).write_bytes(content)
    known = {file: md5(content) for file, content in files.items()}
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], files=known))
    info, reader = registry._READERS[name]
    monkeypatch.setitem(registry._READERS, name, (replace(info, sizes={}, fingerprints={}), reader))


def mnist_files() -> dict[str, bytes]:
    files = {}
    for stem, count in (("train", 3), ("t10k", 2)):
        images = bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 28, 28) + bytes(count * 784)
        files[f"{stem}-images-idx3-ubyte.gz"] = gzip.compress(images)
        files[f"{stem}-labels-idx1-ubyte.gz"] = gzip.compress(
            bytes([0, 0, 8, 1]) + struct.pack(">I", count) + bytes(count)
        )
    return files


def test_mnist(
    tmp_path: Path, mirror: str, server: ThreadingHTTPServer, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = mnist_files()
    offer(tmp_path / "www", "mnist", files, monkeypatch)
    monkeypatch.setenv("LIPCERT_MIRROR", mirror + "/")
    root = tmp_path / "new" / "root"
    assert len(load("mnist", root=root, download=True)) == 3
    assert tree(root) == sorted(f"MNIST/raw/{file}" for file in files)
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in (root / "MNIST/raw").iterdir()} == {0o666 & ~mask}
    assert len(load("mnist", "test", root=root, download=True)) == 2
    assert len(server.asked) == 4  # type: ignore[attr-defined]
    (root / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="is missing beside"):
        load("mnist", "test", root=root)
    assert len(load("mnist", "test", root=root, download=True)) == 2
    assert server.asked[4:] == ["/mnist/t10k-labels-idx1-ubyte.gz"]  # type: ignore[attr-defined]


def test_damaged_files_are_fetched_again(
    tmp_path: Path, mirror: str, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, root = mnist_files(), tmp_path / "root"
    offer(tmp_path / "www", "mnist", files, monkeypatch)
    download("mnist", root, mirror=mirror)
    damaged = root / "MNIST/raw/t10k-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged or truncated gzip file"):
        load("mnist", "test", root=root)
    assert len(load_with(mirror, "mnist", root, "test")) == 2
    assert damaged.read_bytes() == files[damaged.name]
    assert server.asked[4:] == [f"/mnist/{damaged.name}"]  # type: ignore[attr-defined]
    damaged.write_bytes(b"mine")
    assert damaged in download("mnist", root, mirror=mirror)
    assert damaged.read_bytes() == b"mine"
    download("mnist", root, mirror=mirror, repair=True)
    assert damaged.read_bytes() == files[damaged.name]


@pytest.mark.parametrize("damage", ["folder", "archive"])
def test_a_damaged_cifar_is_fetched_again(
    tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(catalog, "CIFAR10", replace(catalog.CIFAR10, files={"test": {"test_batch": 2}}))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        member.size = 2 * 3073
        archive.addfile(member, io.BytesIO(bytes(2 * 3073)))
    offer(tmp_path / "www", "cifar10", {"cifar-10-binary.tar.gz": stream.getvalue()}, monkeypatch)
    root = tmp_path / "root"
    (root / "cifar-10-batches-bin").mkdir(parents=True)
    if damage == "archive":
        (root / "cifar-10-binary.tar.gz").write_bytes(stream.getvalue()[:-9])
    with pytest.raises(DataError, match="unpack the archive again"):
        load("cifar10", "test", root=root)
    assert len(load_with(mirror, "cifar10", root, "test")) == 2
    assert len(load("cifar10", "test", root=root)) == 2


def test_a_damaged_folder_is_not_replaced(tmp_path: Path, mirror: str, server: ThreadingHTTPServer) -> None:
    (tmp_path / "tiny-imagenet-200").mkdir()
    with pytest.raises(DataError, match=r"wnids\.txt: cannot be read .*fetched again, delete .*tiny-imagenet-200$"):
        load_with(mirror, "tiny-imagenet-200", tmp_path)
    assert server.asked == []  # type: ignore[attr-defined]


def test_files_that_are_there_are_left_alone(tmp_path: Path, mirror: str) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"mine")
    assert download("cifar10", tmp_path, mirror=mirror) == [tmp_path / "cifar-10-binary.tar.gz"]
    assert (tmp_path / "cifar-10-binary.tar.gz").read_bytes() == b"mine"


@pytest.mark.parametrize("there", [False, True])
def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, mirror: str, tree: Tree, there: bool) -> None:
    (tmp_path / "www" / "cifar10").mkdir(parents=True)
    (tmp_path / "www" / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(b"not it")
    root = tmp_path / "a" / "root"
    if there:
        root.mkdir(parents=True)
    with pytest.raises(DataError, match=r"does not have the checksum md5:c32a1d4ab5d0.*not kept.*by hand"):
        load_with(mirror, "cifar10", root)
    assert root.exists() == there
    assert (tmp_path / "a").exists() == there
    assert not there or list(root.iterdir()) == []


def load_with(mirror: str, name: str, root: Path, split: str = "train") -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIPCERT_MIRROR", mirror)
        return load(name, split, root=root, download=True)


def test_one_bad_file_of_four_keeps_none(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "www", "mnist", mnist_files(), monkeypatch)
    (tmp_path / "www/mnist/t10k-labels-idx1-ubyte.gz").write_bytes(b"not it")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: the file served"):
        download("mnist", tmp_path / "root", mirror=mirror)
    assert not (tmp_path / "root").exists()


def test_servers_that_do_not_answer(tmp_path: Path, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    short = {"short.tar.gz": "md5:0"}
    monkeypatch.setitem(SOURCES, "cifar100", replace(SOURCES["cifar100"], files=short))
    for address, name, message in (
        (dead, "cifar10", "cannot be fetched"),
        (mirror, "cifar10", "cannot be fetched .*404"),
        (mirror, "cifar100", "cannot be fetched|does not have the checksum"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            download(name, root, mirror=address)
        for advice in (str(root), "by hand", "LIPCERT_DATA", "LIPCERT_MIRROR"):
            assert advice in str(caught.value)
        assert list(root.iterdir()) == []


def test_what_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="'digits' cannot be downloaded; these can: mnist, fashion-mnist"):
        download("digits", tmp_path)
    for mirror in ("ftp://x", "/etc", "file:///etc"):
        with pytest.raises(DataError, match="must start with http"):
            download("mnist", tmp_path, mirror=mirror)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write under .*choose another root="):
        download("mnist", tmp_path / "file", mirror="http://127.0.0.1:1")


def zipped(names: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_zip(tmp_path: Path, mirror: str, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    file, root = "tiny-imagenet-200.zip", tmp_path / "root"
    content = zipped({"tiny-imagenet-200/wnids.txt": b"n01", "tiny-imagenet-200/words.txt": b"n01\tfish"})
    offer(tmp_path / "www", "tiny-imagenet-200", {file: content}, monkeypatch)
    assert download("tiny-imagenet-200", root, mirror=mirror) == [root / "tiny-imagenet-200"]
    assert tree(root) == ["tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/words.txt"]
    assert [path.name for path in root.iterdir()] == ["tiny-imagenet-200"]


@pytest.mark.parametrize("name", ["../evil", "evil", "tiny-imagenet-200/../../evil"])
def test_zip_traversal(tmp_path: Path, mirror: str, tree: Tree, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = zipped({"tiny-imagenet-200/wnids.txt": b"n01", name: b"x"})
    offer(tmp_path / "www", "tiny-imagenet-200", {"tiny-imagenet-200.zip": content}, monkeypatch)
    with pytest.raises(DataError, match="refused, nothing was unpacked"):
        load_with(mirror, "tiny-imagenet-200", tmp_path / "root")
    assert tree(tmp_path) == ["www/tiny-imagenet-200/tiny-imagenet-200.zip"]
    assert not (tmp_path / "root").exists()


def test_published_sources() -> None:
    downloadable = [info.name for info in registry.available() if info.downloadable]
    assert downloadable[-1].startswith("tiny-imagenet-200:")
    assert [*SOURCES, "tiny-imagenet-200:CLASSES"] == downloadable  # the last is a part of the one before
    for source in SOURCES.values():
        assert source.base.endswith("/")
        assert all(len(known) == len("md5:") + 32 for known in source.files.values())
