"""CIFAR-10 and CIFAR-100, from their binary or Python archives, unpacked or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from lipcert.errors import DataError

from .archives import read_tar_members
from .dataset import Dataset, first_whole
from .pickles import read_pickle

__all__ = ["CIFAR10", "CIFAR100", "CifarLayout", "read_cifar"]

_PIXELS = 3 * 32 * 32
# A batch of Python's kind also holds file names, and Python 3 writes each byte from 80 on in two (UTF-8).
_MOST_PER_IMAGE = 2 * (_PIXELS + 64)


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two data sets is laid out.

    Attributes:
        name: the data set's name; also tried as a folder under the root.
        classes: the class names, in the order of the labels.
        binary: the folder, and the stem of the archive, of the binary files.
        python: the folder, and the stem of the archive, of the Python files.
        files: for each split, the stem of each file and how many images it holds.
        label_bytes: how many bytes stand before the pixels of a binary record; the last of them is the label.
        label_key: under which key Python's files hold the labels.
    """

    name: str
    classes: tuple[str, ...]
    binary: tuple[str, str]
    python: tuple[str, str]
    files: dict[str, dict[str, int]]
    label_bytes: int
    label_key: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CIFAR10 = CifarLayout(
    name="cifar10",
    classes=_words("airplane automobile bird cat deer dog frog horse ship truck"),
    binary=("cifar-10-batches-bin", "cifar-10-binary"),
    python=("cifar-10-batches-py", "cifar-10-python"),
    files={"train": {f"data_batch_{i}": 10_000 for i in range(1, 6)}, "test": {"test_batch": 10_000}},
    label_bytes=1,
    label_key="labels",
)

CIFAR100 = CifarLayout(
    name="cifar100",
    classes=_words(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
        can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
        lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
        palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
        rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
        sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
        willow_tree wolf woman worm
        """
    ),
    binary=("cifar-100-binary", "cifar-100-binary"),
    python=("cifar-100-python", "cifar-100-python"),
    files={"train": {"train": 50_000}, "test": {"test": 10_000}},
    label_bytes=2,
    label_key="fine_labels",
)

Contents = list[tuple[str, bytes, int]]
Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
Parser = Callable[[str, bytes, int, CifarLayout], Batch]


def read_cifar(root: Path, split: str, layout: CifarLayout) -> Dataset | None:
    """Read one split, shape (3, 32, 32), from the first place under ``root`` that has it whole; None if none has it.

    In ``root``, then ``root/cifar10`` and the like: the unpacked folder and the ``.tar.gz`` of the binary
    version, then those of the Python version, whose pickles are read as data and never run. An archive is
    read where it is.

    Raises:
        DataError: what is wrong in the first place that has it, if none has it whole: a file is missing, or
            does not have exactly the size, the number of images or the labels it must.
    """
    return first_whole(_attempts(root, split, layout))


def _attempts(root: Path, split: str, layout: CifarLayout) -> Iterator[Callable[[], Dataset]]:
    for place in (root, root / layout.name, root / layout.name.upper()):
        for (folder, stem), suffix, parse in (
            (layout.binary, ".bin", _parse_binary),
            (layout.python, "", _parse_python),
        ):
            names = {f"{file}{suffix}": count for file, count in layout.files[split].items()}
            for source, read in ((place / folder, _read_folder), (place / f"{stem}.tar.gz", _read_archive)):
                if source.exists():
                    yield partial(_read, layout, split, partial(read, source, folder, names), parse)


def _read(layout: CifarLayout, split: str, read: Callable[[], Contents], parse: Parser) -> Dataset:
    batches = [parse(*item, layout) for item in read()]
    images = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([labels for _, labels in batches])
    return Dataset(layout.name, split, torch.from_numpy(images), torch.from_numpy(labels), layout.classes)


def _limit(count: int) -> int:
    """How many bytes a file of ``count`` images can have at most, in either version."""
    return count * _MOST_PER_IMAGE + 4096


def _read_folder(source: Path, _: str, names: dict[str, int]) -> Contents:
    contents: Contents = []
    for name, count in names.items():
        path = source / name
        try:
            if path.stat().st_size > _limit(count):
                raise DataError(f"{path}: too large for {count} images ({path.stat().st_size} bytes); fetch it again")
            contents.append((str(path), path.read_bytes(), count))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error}); unpack the archive again") from error
    return contents


def _read_archive(source: Path, folder: str, names: dict[str, int]) -> Contents:
    limits = {f"{folder}/{name}": _limit(count) for name, count in names.items()}
    members = read_tar_members(source, limits)
    return [(f"{source}:{folder}/{name}", members[f"{folder}/{name}"], count) for name, count in names.items()]


def _parse_binary(path: str, content: bytes, count: int, layout: CifarLayout) -> Batch:
    record = layout.label_bytes + _PIXELS
    if len(content) != count * record:
        raise DataError(
            f"{path}: expected {count * record} bytes ({count} records of {record}), found {len(content)}: "
            "truncated or not a CIFAR file; fetch it again"
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(count, record)
    labels = rows[:, layout.label_bytes - 1].astype(np.int64)
    if labels.max(initial=0) >= len(layout.classes):
        raise DataError(f"{path}: a label is {labels.max()}, outside 0 to {len(layout.classes) - 1}: not a CIFAR file")
    return rows[:, layout.label_bytes :], labels


def _parse_python(path: str, content: bytes, count: int, layout: CifarLayout) -> Batch:
    batch = read_pickle(content, path)
    pixels, labels = batch.get("data"), batch.get(layout.label_key)
    if not isinstance(pixels, np.ndarray) or pixels.shape != (count, _PIXELS):
        found = f"shape {pixels.shape}" if isinstance(pixels, np.ndarray) else "none"
        raise DataError(f"{path}: expected an array 'data' of shape ({count}, {_PIXELS}), found {found}")
    if not isinstance(labels, list) or len(labels) != count:
        found = f"{len(labels)}" if isinstance(labels, list) else "none"
        raise DataError(f"{path}: expected a list '{layout.label_key}' of {count} labels, found {found}")
    if not all(type(label) is int and 0 <= label < len(layout.classes) for label in labels):
        raise DataError(f"{path}: a label is not an integer from 0 to {len(layout.classes) - 1}")
    return pixels, np.array(labels, dtype=np.int64)
