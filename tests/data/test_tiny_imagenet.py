from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lipcert.data import load
from lipcert.data.tiny_imagenet import read_tiny_imagenet
from lipcert.errors import DataError

WNIDS = ("n03", "n01", "n02")


@pytest.fixture
def folder(tmp_path: Path, picture: Callable[..., np.ndarray]) -> Path:
    base = tmp_path / "tiny-imagenet-200"
    for label, wnid in enumerate(WNIDS):
        for index in range(2):
            picture(base / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", seed=10 * label + index)
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("a box")
    for index in range(11):
        picture(base / "val" / "images" / f"val_{index}.JPEG", seed=100 + index, mode="L" if index == 3 else "RGB")
    lines = [f"val_{index}.JPEG\t{WNIDS[index % 3]}\t0\t0\t6\t5\n" for index in range(11)]
    (base / "val" / "val_annotations.txt").write_text("".join(lines))
    (base / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (base / "words.txt").write_text("n00\tentity\nn01\tgoldfish, Carassius auratus\nn03\tcrane\n")
    return base


def test_reads_both_splits(folder: Path) -> None:
    train, test = read_tiny_imagenet(folder, "train"), read_tiny_imagenet(folder, "test")
    assert train.classes == test.classes == ("goldfish (n01)", "n02", "crane (n03)")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert test.input_shape == (3, 5, 6)
    assert (test.images[3, 0] == test.images[3, 1]).all()  # a grey file among coloured ones
    assert not (test.images[10] == test.images[1]).all()


def test_some_classes_evenly_spaced(folder: Path) -> None:
    for split in ("train", "test"):
        whole, two = read_tiny_imagenet(folder, split), read_tiny_imagenet(folder, split, classes=2)
        assert two.name == "tiny-imagenet-200:2"
        assert two.classes == ("goldfish (n01)", "n02")
        kept = whole.labels < 2
        assert torch.equal(two.labels, whole.labels[kept])
        assert torch.equal(two.images, whole.images[kept])
    one = read_tiny_imagenet(folder, "test", classes=1)  # not what the cache holds for two
    assert one.labels.tolist() == [0, 0, 0, 0]
    assert torch.equal(one.images, read_tiny_imagenet(folder, "test").images[torch.tensor([1, 4, 7, 10])])
    assert read_tiny_imagenet(folder, "train", classes=3).classes == read_tiny_imagenet(folder, "train").classes
    with pytest.raises(DataError, match="4 classes were asked for; it has 3"):
        read_tiny_imagenet(folder, "train", classes=4)


@pytest.mark.parametrize("count", ["", "1", "200", "-5", "ten", "٣", "5.0", "010", "9" * 5000])
def test_a_number_of_classes_is_2_to_199(folder: Path, count: str) -> None:
    with pytest.raises(DataError, match="after the colon comes how many classes, 2 to 199, for example"):
        load(f"tiny-imagenet-200:{count}", root=folder.parent)


def test_load_insists_on_the_published_size(folder: Path) -> None:
    with pytest.raises(DataError, match=r"its wnids.txt has 3 classes, Tiny-ImageNet 200"):
        load("tiny-imagenet-200:2", root=folder.parent)
    with pytest.raises(DataError, match=r"are not Tiny-ImageNet \(train\): expected 100000 images, found 6"):
        load("tiny-imagenet-200", root=folder.parent)


def spoil(folder: Path) -> dict[str, tuple[str, Callable[[], object]]]:
    notes = folder / "val" / "val_annotations.txt"
    text = notes.read_text()
    return {
        r"wnids\.txt: cannot be read": ("train", (folder / "wnids.txt").unlink),
        r"wnids\.txt: expected one .* found 2": ("train", lambda: (folder / "wnids.txt").write_text("a\na\n")),
        r"wnids\.txt: .* found 0": ("train", lambda: (folder / "wnids.txt").write_text("\n")),
        r"not the 2 ids of wnids\.txt; .*: n02": ("train", lambda: (folder / "wnids.txt").write_text("n01\nn03\n")),
        r"images: no image in this class": (
            "train",
            lambda: [path.unlink() for path in (folder / "train/n02/images").iterdir()],
        ),
        r"val_annotations\.txt: cannot be read": ("test", notes.unlink),
        r"line 2: expected FILE<tab>ID": ("test", lambda: notes.write_text(text.replace("n01", "n07"))),
        r"line 11: there is no image 'val_10\.JPEG'": ("test", (folder / "val/images/val_10.JPEG").unlink),
        r"line 12: 'val_0\.JPEG' is listed twice": ("test", lambda: notes.write_text(text + text)),
        r"lists 10 of 11 images; val_10\.JPEG has no label": (
            "test",
            lambda: notes.write_text("".join(text.splitlines(keepends=True)[:-1])),
        ),
        r"val_4\.JPEG: cannot be decoded": ("test", lambda: (folder / "val/images/val_4.JPEG").write_bytes(b"")),
        r"words\.txt: cannot be read \(not text\)": ("train", lambda: (folder / "words.txt").write_bytes(b"\xff")),
    }


@pytest.mark.parametrize("number", range(12))
def test_what_is_wrong_is_named(folder: Path, number: int) -> None:
    message, (split, change) = list(spoil(folder).items())[number]
    change()
    with pytest.raises(DataError, match=message) as caught:
        read_tiny_imagenet(folder, split)
    assert str(folder) in str(caught.value)
