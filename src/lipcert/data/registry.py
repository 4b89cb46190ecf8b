"""Data sets by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lipcert.errors import DataError
from lipcert.hints import did_you_mean

from .dataset import Dataset, check_split

__all__ = ["DatasetInfo", "Request", "available", "check_published", "default_root", "load", "register"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is known about a data set without reading it.

    Attributes:
        name: what :func:`load` calls it.
        title: its full name.
        layout: where the files are looked for under the root.
        citation: license and source, on one line.
        shape: (C, H, W) of every image; None where the files decide.
        num_classes: the number of classes; None where the files decide.
        sizes: the number of images of each split; empty where the files decide.
        downloadable: whether ``load(..., download=True)`` can fetch it.
        fingerprints: :attr:`Dataset.fingerprint` of the published images by split, where it is known.
    """

    name: str
    title: str
    layout: str
    citation: str
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    downloadable: bool = False
    fingerprints: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Request:
    """What a reader is asked for: one split under a root folder, and whether it may be fetched."""

    root: Path
    split: str
    download: bool
    argument: str = ""


Reader = Callable[[Request], Dataset]
_READERS: dict[str, tuple[DatasetInfo, Reader]] = {}


def register(info: DatasetInfo) -> Callable[[Reader], Reader]:
    """Make a reader known as ``info.name``; for use as a decorator.

    A name that ends in a colon and a word in capitals (``folder:PATH``) takes what the user wrote after the colon as
    ``Request.argument``.
    """

    def add(reader: Reader) -> Reader:
        if info.name in _READERS:
            raise ValueError(f"a data set called {info.name!r} is registered already")
        _READERS[info.name] = info, reader
        return reader

    return add


def available() -> list[DatasetInfo]:
    """List the data sets that :func:`load` knows by name.

    >>> [info.name for info in available()][:3]
    ['digits', 'mnist', 'fashion-mnist']
    """
    return [info for info, _ in _READERS.values()]


def default_root() -> Path:
    """Return where data is looked for: the environment variable ``LIPCERT_DATA``, else ``./data``."""
    return Path(os.environ.get("LIPCERT_DATA") or "data").expanduser()


def load(
    name: str, split: str = "train", *, root: str | os.PathLike[str] | None = None, download: bool = False
) -> Dataset:
    """Load one split of a data set into memory.

    Args:
        name: a name from :func:`available`; ``folder:PATH`` for an image folder (PATH absolute or relative to
            the root); ``tiny-imagenet-200:CLASSES`` for so many of its classes; or the name of an image folder that
            lies directly under the root.
        split: ``"train"`` or ``"test"``.
        root: where the data is; by default :func:`default_root`.
        download: fetch what is missing or damaged into the root first. Without it nothing ever touches the network.

    Returns:
        The images as uint8 (N, C, H, W) and the labels as int64 (N,), on the CPU, in the published order.

    Raises:
        DataError: the name is unknown, or files are missing, damaged, or not those that were published.

    >>> load("digits", "test")  # doctest: +SKIP
    Dataset(digits, test: 360 images of 1x8x8, 10 classes, cpu)
    """
    check_split(split)
    where = default_root() if root is None else Path(root).expanduser()
    kind, colon, argument = name.partition(":")
    key = next((known for known in _READERS if colon and known.startswith(f"{kind}:")), name)
    if key not in _READERS and not colon and _is_plain(name) and (where / name).is_dir():
        key, argument = "folder:PATH", name
    if key not in _READERS:
        raise DataError(_unknown(name, where))
    info, reader = _READERS[key]
    dataset = reader(Request(where, split, download, argument))
    check_published(info, dataset, where)
    return dataset


def _is_plain(name: str) -> bool:
    """Whether a name is one folder, and not a known data set in other capitals or with other hyphens."""
    known = {_bare(known) for known in _READERS}
    return name != "" and name == Path(name).name and not name.startswith(".") and _bare(name) not in known


def _bare(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _unknown(name: str, root: Path) -> str:
    names = [info.name for info in available()]
    folders = []
    if root.is_dir():
        folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    hint = did_you_mean(name, names + folders, f"there are: {', '.join(names)}")
    return f"unknown data set '{name}'; {hint}; or an image folder's name in {root}"


def check_published(info: DatasetInfo, dataset: Dataset, root: Path) -> None:
    """Refuse files that can be read but are not the data set that was asked for: raises :class:`DataError`."""
    what = f"the files found under {root} are not {info.title} ({dataset.split})"
    expected = info.sizes.get(dataset.split)
    if expected is not None and len(dataset) != expected:
        raise DataError(f"{what}: expected {expected} images, found {len(dataset)}. Layout: {info.layout}")
    if info.shape is not None and dataset.input_shape != info.shape:
        raise DataError(f"{what}: expected images of shape {info.shape}, found {dataset.input_shape}")
    if info.num_classes is not None and dataset.num_classes != info.num_classes:
        raise DataError(f"{what}: expected {info.num_classes} classes, found {dataset.num_classes}")
    known = info.fingerprints.get(dataset.split)
    if known is not None and dataset.fingerprint != known:
        raise DataError(
            f"{what} as published: the sizes fit, but the content differs (altered, or another data set in "
            f"the same layout). Layout: {info.layout}. For images of your own use 'folder:PATH' "
            "or lipcert.data.Dataset"
        )
