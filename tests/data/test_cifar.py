from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lipcert.data import load
from lipcert.data.cifar import CIFAR10, CIFAR100, CifarLayout, read_cifar
from lipcert.errors import DataError

SMALL10 = replace(CIFAR10, files={"train": {"data_batch_1": 3, "data_batch_2": 2}, "test": {"test_batch": 2}})
SMALL100 = replace(CIFAR100, files={"train": {"train": 4}, "test": {"test": 2}})
Files = dict[str, bytes]
Made = tuple[np.ndarray, list[int], Files, Files]


def make(layout: CifarLayout, split: str) -> Made:
    """Return pixels, labels, and the files that hold them in the binary and in the Python version."""
    random = np.random.default_rng(1)
    pixels, labels, binary, python = [], [], {}, {}
    for name, count in layout.files[split].items():
        rows = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        targets = random.integers(0, len(layout.classes), count).tolist()
        head = np.array([[7] * (layout.label_bytes - 1) + [target] for target in targets], dtype=np.uint8)
        binary[f"{name}.bin"] = np.concatenate([head, rows], axis=1).tobytes()
        batch = {b"data": rows, layout.label_key.encode(): targets, b"filenames": [b"x.png"] * count}
        python[name] = pickle.dumps(batch, protocol=2)
        pixels.append(rows)
        labels += targets
    return np.concatenate(pixels).reshape(-1, 3, 32, 32), labels, binary, python


def put(folder: Path, files: Files) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def tar(path: Path, files: Files) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("layout", [SMALL10, SMALL100], ids=lambda layout: layout.name)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("place", ["", "cifar10", "CIFAR100"])
@pytest.mark.parametrize("version", ["binary", "python"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_version(tmp_path: Path, layout: CifarLayout, split: str, place: str, version: str, packed: bool) -> None:
    pixels, labels, binary, python = make(layout, split)
    files = binary if version == "binary" else python
    folder, stem = layout.binary if version == "binary" else layout.python
    root = tmp_path / place
    root.mkdir(exist_ok=True)
    if packed:
        tar(root / f"{stem}.tar.gz", {f"{folder}/{name}": content for name, content in files.items()})
    else:
        put(root / folder, files)
    data = read_cifar(tmp_path, split, layout)
    if place and place.lower() != layout.name:
        assert data is None
        return
    assert data is not None
    assert np.array_equal(data.images.numpy(), pixels)
    assert data.labels.tolist() == labels
    assert data.classes == layout.classes
    assert (data.name, data.split) == (layout.name, split)
    data.images[0] = 0  # a tensor of its own, not a read-only view of a file


def test_class_names() -> None:
    assert len(set(CIFAR10.classes)) == 10
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert (CIFAR100.classes[19], CIFAR100.classes[99]) == ("cattle", "worm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:-1], "expected 6146 bytes .2 records of 3073., found 6145: truncated"),
        (lambda c: c + b"x", "expected 6146 bytes .* found 6147"),
        (lambda c: b"", "found 0"),
        (lambda c: c + bytes(20_000), "too large for 2 images"),
        (lambda c: b"\x0a" + c[1:], "a label is 10, outside 0 to 9"),
    ],
)
def test_damaged_binary(tmp_path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    binary = make(SMALL10, "test")[2]
    put(tmp_path / "cifar-10-batches-bin", {name: change(content) for name, content in binary.items()})
    with pytest.raises(DataError, match=message) as caught:
        read_cifar(tmp_path, "test", SMALL10)
    assert str(tmp_path / "cifar-10-batches-bin" / "test_batch.bin") in str(caught.value)


def test_a_missing_batch(tmp_path: Path) -> None:
    put(tmp_path / "cifar-10-batches-bin", {"data_batch_1.bin": make(SMALL10, "train")[2]["data_batch_1.bin"]})
    with pytest.raises(DataError, match=r"data_batch_2\.bin: cannot be read .*unpack the archive again"):
        read_cifar(tmp_path, "train", SMALL10)


def test_a_damaged_copy_beside_a_whole_one(tmp_path: Path) -> None:
    pixels, _, binary, python = make(SMALL10, "test")
    (tmp_path / "cifar-10-batches-bin").mkdir()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"batches-bin.test_batch\.bin: cannot be read"):  # the first
        read_cifar(tmp_path, "test", SMALL10)
    put(tmp_path / "cifar10" / "cifar-10-batches-py", python)
    data = read_cifar(tmp_path, "test", SMALL10)
    assert data is not None
    assert np.array_equal(data.images.numpy(), pixels)
    tar(tmp_path / "cifar-10-binary.tar.gz", {f"cifar-10-batches-bin/{name}": file for name, file in binary.items()})
    (tmp_path / "cifar10" / "cifar-10-batches-py" / "test_batch").unlink()
    assert read_cifar(tmp_path, "test", SMALL10) is not None


GOOD = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"data": GOOD}, "expected a list 'labels' of 2 labels, found none"),
        ({"labels": [1, 2]}, r"array 'data' of shape \(2, 3072\), found none"),
        ({"data": GOOD[:1], "labels": [1, 2]}, r"found shape \(1, 3072\)"),
        ({"data": GOOD.reshape(3072, 2), "labels": [1, 2]}, r"found shape \(3072, 2\)"),
        ({"data": GOOD, "labels": [1]}, "of 2 labels, found 1"),
        ({"data": GOOD, "labels": [1, 10]}, "not an integer from 0 to 9"),
        ({"data": GOOD, "labels": [1, -1]}, "not an integer from 0 to 9"),
        ({"data": GOOD, "labels": [1, True]}, "not an integer from 0 to 9"),
        ({"data": GOOD, "labels": [1, "2"]}, "not an integer from 0 to 9"),
        ({"data": GOOD.astype(np.int16), "labels": [1, 2]}, "not of unsigned bytes"),
        ([1], "does not hold a dict"),
    ],
)
def test_damaged_python(tmp_path: Path, batch: object, message: str) -> None:
    put(tmp_path / "cifar-10-batches-py", {"test_batch": pickle.dumps(batch, protocol=2)})
    with pytest.raises(DataError, match=message) as caught:
        read_cifar(tmp_path, "test", SMALL10)
    assert str(tmp_path / "cifar-10-batches-py" / "test_batch") in str(caught.value)


def test_archives_are_checked(tmp_path: Path, tree: Callable[[Path], list[str]]) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    files = make(SMALL10, "test")[2]
    whole = {f"cifar-10-batches-bin/{name}": content for name, content in files.items()}
    name, content = next(iter(whole.items()))

    def refused(message: str) -> None:
        with pytest.raises(DataError, match=message):
            read_cifar(tmp_path, "test", SMALL10)
        assert tree(tmp_path) == ["cifar-10-binary.tar.gz"]

    tar(path, {f"../{name}": content, f"/{name}": content})
    refused(f"the archive lacks {name}")
    tar(path, {name: bytes(100_000)})
    refused(r"test_batch\.bin is too large \(100000 bytes\)")
    tar(path, {name: content[:-1]})
    refused(r"tar\.gz:cifar-10-batches-bin/test_batch\.bin: expected 6146 bytes")
    tar(path, whole)
    packed = path.read_bytes()
    for bad in (packed[:-100], packed[: len(packed) // 2], b"not a tar file", gzip.compress(b"x" * 600)):
        path.write_bytes(bad)
        refused(r"damaged or truncated archive|lacks")
    flipped = bytearray(packed)
    flipped[-6] ^= 1
    path.write_bytes(flipped)
    refused("damaged or truncated archive")


def test_load_says_what_is_missing(tmp_path: Path) -> None:
    for name in ("cifar10", "cifar100"):
        with pytest.raises(DataError, match=r"CIFAR-1.* is not in .*-binary\.tar\.gz.*LIPCERT_DATA.*download=True"):
            load(name, root=tmp_path)
