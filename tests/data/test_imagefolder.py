from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lipcert.data import decode, image_folder
from lipcert.errors import DataError

Picture = Callable[..., np.ndarray]


@pytest.fixture
def folder(tmp_path: Path, picture: Picture) -> Path:
    """Three images of each of two classes to train, one of each to test."""
    for index, part in enumerate(("train", "train", "train", "test")):
        for label, name in enumerate(("cat", "dog")):
            picture(tmp_path / "pets" / part / name / f"{index}.png", seed=10 * label + index)
    return tmp_path / "pets"


def test_splits_in_folders(folder: Path) -> None:
    train, test = image_folder(folder), image_folder(folder, "test")
    assert train.classes == test.classes == ("cat", "dog")
    assert (train.name, train.input_shape) == ("pets", (3, 5, 6))
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert test.labels.tolist() == [0, 1]
    expected = np.random.default_rng(12).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    assert np.array_equal(train.images[5].permute(1, 2, 0).numpy(), expected)


def test_val_is_the_test_split(folder: Path, picture: Picture) -> None:
    (folder / "test").rename(folder / "val")
    assert len(image_folder(folder, "test")) == 2
    picture(folder / "test" / "0.png")  # unlabelled test images, as competitions have them
    assert len(image_folder(folder, "test")) == 2


def test_only_a_test_split(tmp_path: Path, picture: Picture) -> None:
    picture(tmp_path / "test" / "a" / "1.png", mode="L")
    picture(tmp_path / "test" / "b" / "1.png")
    data = image_folder(tmp_path, "test")
    assert (data.classes, data.labels.tolist(), data.input_shape) == (("a", "b"), [0, 1], (3, 5, 6))
    with pytest.raises(DataError, match="has no folder 'train' with class folders in it, so no train split"):
        image_folder(tmp_path)


def test_no_splits(tmp_path: Path, picture: Picture) -> None:
    for label, (name, count) in enumerate((("a", 10), ("b", 4), ("train", 2))):
        for index in range(count):
            picture(tmp_path / name / f"{index}.png", seed=100 * label + index)
    train, test = image_folder(tmp_path), image_folder(tmp_path, "test")
    assert train.classes == test.classes == ("a", "b", "train")
    assert train.labels.bincount().tolist() == [8, 3, 1]
    assert test.labels.bincount().tolist() == [2, 1, 1]
    both = {image.numpy().tobytes() for data in (train, test) for image in data.images}
    assert len(both) == 16
    ranked = sorted((hashlib.sha256(f"a/{i}.png".encode()).digest(), i) for i in range(10))
    for place, index in enumerate(sorted(i for _, i in ranked[:2])):
        expected = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        assert np.array_equal(test.images[place].permute(1, 2, 0).numpy(), expected)


def test_grey_only_if_all_are(tmp_path: Path, picture: Picture) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            picture(tmp_path / part / name / "1.png", mode="L")
    grey = image_folder(tmp_path)
    assert grey.input_shape == (1, 5, 6)
    picture(tmp_path / "test" / "b" / "2.png")  # one coloured image, in the other split
    for split in ("train", "test"):
        assert image_folder(tmp_path, split).input_shape == (3, 5, 6)
    assert (image_folder(tmp_path).images[:, 1] == grey.images[:, 0]).all()


def test_black_and_white_counts_as_grey(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("1", (3, 2), 1).save(tmp_path / "train" / name / "1.png")
    data = image_folder(tmp_path)
    assert data.input_shape == (1, 2, 3)
    assert (data.images == 255).all()


def test_other_files_are_passed_over(folder: Path) -> None:
    (folder / "README.txt").write_text("hello")
    (folder / "train" / "list.csv").write_text("hello")
    (folder / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"x")
    (folder / "train" / ".hidden").mkdir()
    shutil.copy(folder / "train" / "cat" / "0.png", folder / "train" / "cat" / "9.PNG")
    assert len(image_folder(folder)) == 7


def test_size(folder: Path, picture: Picture) -> None:
    picture(folder / "train" / "cat" / "big.png", size=(20, 10))
    with pytest.raises(DataError, match=r"0\.png is 6x5 \(width x height\) but .*big\.png is 20x10.*size="):
        image_folder(folder)
    assert image_folder(folder, size=4).input_shape == (3, 4, 4)
    assert image_folder(folder, size=(4, 7)).input_shape == (3, 4, 7)
    for size in (0, (3, -1), (1, 2, 3)):
        with pytest.raises(DataError, match="size must be a positive side"):
            image_folder(folder, size=size)  # type: ignore[arg-type]


def test_what_is_no_stray_image(folder: Path) -> None:
    """Only an image that can be seen is one: a class may be called like a file, and macOS leaves hidden ones."""
    for split in ("train", "test"):
        (folder / split / "cat").rename(folder / split / "cat.png")
        (folder / split / "._x.png").touch()
    assert image_folder(folder, size=4).classes[0] == "cat.png"


def spoil(folder: Path) -> dict[str, Callable[[], object]]:
    cat = folder / "train" / "cat"
    big = (cat / "0.png").read_bytes()
    return {
        r"1\.png: cannot be decoded \(truncated": lambda: (cat / "1.png").write_bytes(big[:60]),
        r"1\.png: cannot be decoded .*not an image": lambda: (cat / "1.png").write_text("hello"),
        r"0\.png: cannot be decoded ": lambda: (cat / "0.png").write_bytes(b""),
        r"1\.jpg: cannot be decoded": lambda: (cat / "1.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"),
        r"2\.png: has more than 8 bits a channel": lambda: Image.new("I;16", (6, 5)).save(cat / "2.png"),
        r"train.cat: no image in this class folder": lambda: [path.unlink() for path in cat.iterdir()],
        r"train.empty: no image in this class folder": (folder / "train" / "empty").mkdir,
        r"the image x\.png lies beside the class folders": (folder / "train" / "x.png").touch,
        r"has the folder 'sub' in it: images must lie directly": (cat / "sub").mkdir,
        r"different classes.*only in one of them: dog": lambda: shutil.rmtree(folder / "test" / "dog"),
    }


@pytest.mark.parametrize("number", range(10))
def test_what_is_wrong_is_named(folder: Path, number: int, tree: Callable[[Path], list[str]]) -> None:
    message, change = list(spoil(folder).items())[number]
    change()
    before = tree(folder)
    with pytest.raises(DataError, match=message):
        image_folder(folder, cache_root=folder.parent)
    assert tree(folder) == before
    assert not (folder.parent / ".lipcert-cache").exists()


def test_layouts_that_are_none(tmp_path: Path, picture: Picture) -> None:
    with pytest.raises(DataError, match=r"absent: no such folder"):
        image_folder(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: no such folder"):
        image_folder(tmp_path / "file")
    with pytest.raises(DataError, match="not an image folder: expected one folder for each class"):
        image_folder(tmp_path)
    picture(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match="not an image folder"):
        image_folder(tmp_path / "flat")
    picture(tmp_path / "one" / "a" / "1.png")
    with pytest.raises(DataError, match=r"one.a: one image cannot be divided"):
        image_folder(tmp_path / "one")
    picture(tmp_path / "half" / "train" / "a" / "1.png")
    with pytest.raises(DataError, match="has no folder 'test' or 'val'"):
        image_folder(tmp_path / "half", "test")
    picture(tmp_path / "other" / "test" / "a" / "1.png")
    with pytest.raises(DataError, match="has no folder 'train'"):
        image_folder(tmp_path / "other")
    with pytest.raises(DataError, match="unknown split 'valid'"):
        image_folder(tmp_path / "half", "valid")


def png(bits: int, colour: int, channels: int) -> bytes:
    """A PNG of 2x2 zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = bytes(1 + 2 * channels * bits // 8) * 2
    header = struct.pack(">IIBBBBB", 2, 2, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(bits: int) -> bytes:
    """An RGB TIFF of 2x2 zeros."""
    pixels, end = bytes(12 * bits // 8), 8 + 2 + 12 * 8 + 4
    tags = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, end), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, end + 6), (277, 3, 1, 3), (279, 4, 1, len(pixels))]
    table = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + table + bytes(4) + struct.pack("<3H", *[bits] * 3) + pixels


@pytest.mark.parametrize(
    ("name", "content", "bits"),
    [
        *((f"{colour}.png", png(16, colour, channels), 16) for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4))),
        ("rgb.ppm", b"P6 2 2 65535 " + bytes(24), 16),
        ("rgb.ppm", b"P6\n# a comment, 255\n2 2\n# another\r1023\n" + bytes(24), 10),
        ("plain.ppm", b"P3 2 2 256 " + b"0 " * 12, 9),
        ("grey.pgm", b"P5 2 2 65535 " + bytes(8), 16),
        ("float.pgm", b"Pf 2 2 -1.0 " + bytes(16), 32),
        ("rgb.tif", tiff(16), 16),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_more_than_eight_bits(tmp_path: Path, name: str, content: bytes, bits: int) -> None:
    place = tmp_path / "train" / "a"
    place.mkdir(parents=True)
    (place / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: has more than 8 bits a channel \({bits}\); convert it"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"{colour}.png", png(8, colour, channels)) for colour, channels in ((0, 1), (2, 3), (4, 2), (6, 4))),
        ("rgb.ppm", b"P6\n# 16 bits: 65535\n2 2\n# not here: 65535\r255\n" + bytes(12)),
        ("few.ppm", b"P6 2 2 15 " + bytes(12)),
        ("plain.ppm", b"P3 2 2 255 " + b"0 " * 12),
        ("tall.pbm.ppm", b"P4 2 512 " + bytes(512)),
        ("rgb.tif", tiff(8)),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_eight_bits_or_fewer(tmp_path: Path, name: str, content: bytes) -> None:
    place = tmp_path / "train" / "a"
    place.mkdir(parents=True)
    (place / name).write_bytes(content)
    black = 255 if "pbm" in name else 0
    assert (image_folder(tmp_path).images == black).all()


def test_too_many_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_MOST_PIXELS", 29)
    with pytest.raises(DataError, match="refused, 6x5 is more than 29 pixels"):
        image_folder(folder)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(DataError, match="refused, more than 29 pixels"):
        image_folder(folder)


def test_too_little_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_memory", lambda: 100)
    with pytest.raises(DataError, match=r"6 images of 6x5 take .* GiB, more than this machine's"):
        image_folder(folder)


def test_many_images_in_several_threads(tmp_path: Path, picture: Picture) -> None:
    for name in ("a", "b"):
        for index in range(400):
            picture(tmp_path / "train" / name / f"{index:03}.png", seed=index, size=(3, 2))
    data = image_folder(tmp_path)
    assert len(data) == 800
    assert (data.images[:400] == data.images[400:]).all()
    expected = np.random.default_rng(399).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    assert np.array_equal(data.images[399].permute(1, 2, 0).numpy(), expected)
    picture(tmp_path / "train" / "b" / "350.png", size=(3, 3))
    with pytest.raises(DataError, match=r"350\.png is 3x3"):
        image_folder(tmp_path)
