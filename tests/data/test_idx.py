from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipcert.data import load, registry
from lipcert.data.idx import find_idx, read_idx, read_idx_pair
from lipcert.errors import DataError

Write = Callable[[Path, np.ndarray], None]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 0], dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_what_was_written(tmp_path: Path, write_idx: Write, suffix: str) -> None:
    write_idx(tmp_path / f"images{suffix}", PIXELS)
    write_idx(tmp_path / f"labels{suffix}", LABELS)
    data = read_idx_pair(
        tmp_path / f"images{suffix}", tmp_path / f"labels{suffix}", name="x", split="test", classes=("a", "b", "c")
    )
    assert data.images.shape == (5, 1, 4, 3)
    assert (data.images[:, 0].numpy() == PIXELS).all()
    assert data.labels.tolist() == LABELS.tolist()


HEADER = bytes([0, 0, 8, 3]) + struct.pack(">3I", 5, 4, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\x00\x00", "expected magic 00 00 08 03, found 00 00"),
        (bytes([0, 0, 8, 1]) + HEADER[4:] + bytes(60), "expected magic 00 00 08 03, found 00 00 08 01"),
        (bytes([0, 0, 13, 3]) + HEADER[4:] + bytes(60), "found 00 00 0d 03"),
        (HEADER[:10], "truncated: expected a header of 16 bytes, found 10"),
        (HEADER + bytes(59), "expected 60 bytes after the header|announces 60 bytes"),
        (HEADER + bytes(61), "trailing bytes: expected 60 bytes"),
        (HEADER + bytes(1000), "trailing bytes: expected 60 bytes"),
        (bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(60), r"announces \d{29} bytes .* holds at most"),
        (bytes([0, 0, 8, 3]) + struct.pack(">3I", 1 << 30, 64, 64) + bytes(60), "announces 4398046511104 bytes"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_content_is_refused(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 3)
    assert str(path) in str(caught.value)


def test_bad_gzip_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(HEADER + PIXELS.tobytes())
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum
    for content in (whole[:-20], bytes(flipped), b"not gzip at all", whole + b"more"):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.gz: damaged or truncated gzip file"):
            read_idx(tmp_path / "bad.gz", 3)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    bomb = bytes([0, 0, 8, 1]) + struct.pack(">I", 10) + bytes(50_000_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(DataError, match="trailing bytes"):
        read_idx(tmp_path / "bomb.gz", 1)


def test_labels_that_do_not_fit(tmp_path: Path, write_idx: Write) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    write_idx(images, PIXELS)
    write_idx(labels, LABELS[:4])
    with pytest.raises(DataError, match=r"holds 5 images but .*labels holds 4 labels"):
        read_idx_pair(images, labels, name="x", split="train", classes=("a", "b", "c"))
    write_idx(labels, LABELS)
    with pytest.raises(DataError, match=r"images and .*labels: .*labels run from 0 to 2, outside 0 to 1"):
        read_idx_pair(images, labels, name="x", split="train", classes=("a", "b"))


def test_unreadable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "absent", 3)


def test_finding(tmp_path: Path, write_idx: Write) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    names = {"name": "x", "split": "train", "classes": ("a", "b", "c")}
    assert list(find_idx([a, b], "train")) == []
    write_idx(b / "train-images.idx3-ubyte", PIXELS)
    (pair,) = find_idx([a, b], "train")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\(\.gz\) is missing beside train-images"):
        read_idx_pair(*pair, **names)
    write_idx(b / "train-labels-idx1-ubyte.gz", LABELS)
    (pair,) = find_idx([a, b], "train")
    assert [path.name for path in pair] == ["train-images.idx3-ubyte", "train-labels-idx1-ubyte.gz"]
    write_idx(b / "train-images-idx3-ubyte.gz", PIXELS)
    assert [images.name for images, _ in find_idx([a, b], "train")] == [
        "train-images.idx3-ubyte",
        "train-images-idx3-ubyte.gz",
    ]
    write_idx(a / "t10k-labels-idx1-ubyte", LABELS)
    (pair,) = find_idx([a], "test")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\(\.gz\) is missing"):
        read_idx_pair(*pair, **names)


@pytest.mark.parametrize(("whole", "names"), [("MNIST/raw", (".gz",)), ("mnist", ("", ".gz"))])
def test_a_damaged_copy_beside_a_whole_one(
    tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch, whole: str, names: tuple[str, ...]
) -> None:
    info, reader = registry._READERS["mnist"]
    monkeypatch.setitem(registry._READERS, "mnist", (replace(info, sizes={}, fingerprints={}), reader))
    damaged = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(HEADER[:10])
    for suffix in names:
        write_idx(tmp_path / whole / f"t10k-images-idx3-ubyte{suffix}", np.zeros((5, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / whole / f"t10k-labels-idx1-ubyte{suffix}", LABELS)
    assert load("mnist", "test", root=tmp_path).labels.tolist() == LABELS.tolist()
    for path in (tmp_path / whole).iterdir():
        path.write_bytes(b"")
    damaged.write_bytes(HEADER[:10])
    with pytest.raises(DataError, match=r"MNIST/raw.*(found 10 bytes|is missing beside)"):  # the first
        load("mnist", "test", root=tmp_path)


@pytest.mark.parametrize("folder", ["MNIST/raw", "mnist", "."])
def test_load_takes_only_the_published_images(
    tmp_path: Path, write_idx: Write, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    pixels = np.zeros((5, 28, 28), dtype=np.uint8)
    write_idx(tmp_path / folder / "t10k-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / folder / "t10k-labels-idx1-ubyte.gz", LABELS)
    with pytest.raises(DataError, match=r"are not MNIST .*expected 10000 images, found 5"):
        load("mnist", "test", root=tmp_path)
    info, reader = registry._READERS["mnist"]
    monkeypatch.setitem(registry._READERS, "mnist", (replace(info, sizes={"test": 5}), reader))
    with pytest.raises(DataError, match=r"not MNIST .*content differs"):
        load("mnist", "test", root=tmp_path)
    relaxed = replace(info, sizes={}, fingerprints={})
    monkeypatch.setitem(registry._READERS, "mnist", (relaxed, reader))
    assert len(load("mnist", "test", root=tmp_path)) == 5
    monkeypatch.setitem(registry._READERS, "mnist", (replace(relaxed, shape=(1, 32, 32)), reader))
    with pytest.raises(DataError, match=r"expected images of shape \(1, 32, 32\), found \(1, 28, 28\)"):
        load("mnist", "test", root=tmp_path)
