"""IDX files: the format of MNIST and of the sets made in its likeness."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from lipcert.errors import DataError

from .dataset import Dataset

__all__ = ["find_idx", "read_idx", "read_idx_pair"]

# Deflate cannot shrink data by more than this factor, so a header that claims more is lying.
_MOST_DEFLATE = 1032
_MOST_BYTES = 1 << 31  # unpacked; MNIST has 47 MB
_STEMS = {"train": "train", "test": "t10k"}


def read_idx(path: Path, dims: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes with ``dims`` dimensions, gzipped if its name ends in ``.gz``.

    Raises:
        DataError: the file cannot be read, is not such a file, or its size is not exactly what its header
            says. Nothing is allocated on the word of a header that the size of the file does not allow.
    """
    try:
        stored = path.stat().st_size
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as stream:
                return _parse(path, stream, dims, min(stored * _MOST_DEFLATE, _MOST_BYTES))
        with path.open("rb") as plain:
            return _parse(path, plain, dims, stored)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or truncated gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(path: Path, stream: BinaryIO | gzip.GzipFile, dims: int, most: int) -> npt.NDArray[np.uint8]:
    read = stream.read
    header = read(4 + 4 * dims)
    if header[:4] != bytes([0, 0, 8, dims])[: len(header)] or len(header) < 4:
        raise DataError(
            f"{path}: not an IDX file of bytes with {dims} dimension(s): "
            f"expected magic 00 00 08 {dims:02x}, found {header[:4].hex(' ') or 'an empty file'}"
        )
    if len(header) < 4 + 4 * dims:
        raise DataError(f"{path}: truncated: expected a header of {4 + 4 * dims} bytes, found {len(header)} bytes")
    shape = struct.unpack(f">{dims}I", header[4:])
    expected = math.prod(shape)
    if expected > most:
        raise DataError(
            f"{path}: the header announces {expected} bytes (shape {shape}), but a file of this "
            f"size holds at most {most}: truncated or altered; fetch it again"
        )
    content = bytearray()
    while len(content) <= expected and (piece := read(min(1 << 20, expected + 1 - len(content)))):
        content += piece
    if len(content) != expected:
        found = f"{len(content)} bytes" if len(content) < expected else "more"
        problem = "truncated" if len(content) < expected else "trailing bytes"
        raise DataError(
            f"{path}: {problem}: expected {expected} bytes after the header (shape {shape}), found {found}; "
            "fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def read_idx_pair(images: Path, labels: Path, *, name: str, split: str, classes: tuple[str, ...]) -> Dataset:
    """Read images (N, H, W) and labels (N,) from two IDX files into a data set of shape (N, 1, H, W).

    Raises :class:`DataError` where :func:`read_idx` does and if the two do not belong together.
    """
    for path, other in ((images, labels), (labels, images)):
        if other.is_file() and not path.is_file():
            raise DataError(f"{path}(.gz) is missing beside {other.name}")
    pixels, targets = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(targets):
        raise DataError(f"{images} holds {len(pixels)} images but {labels} holds {len(targets)} labels")
    try:
        return Dataset(
            name,
            split,
            torch.from_numpy(pixels)[:, None],
            torch.from_numpy(targets.astype(np.int64)),
            classes,
        )
    except DataError as error:
        raise DataError(f"{images} and {labels}: {error}") from error


def find_idx(folders: Sequence[Path], split: str) -> Iterator[tuple[Path, Path]]:
    """Yield the images' and the labels' file of a split, in each folder that has either, as they are to be tried.

    Both spellings ``train-images-idx3-ubyte`` and ``train-images.idx3-ubyte`` are taken, with or without
    ``.gz``; a folder that has several yields all pairs. Where one of the two is missing, its usual name stands for it.
    """
    for folder in folders:
        kinds = [f"{_STEMS[split]}-{kind}" for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
        images, labels = ([path for path in _spellings(folder, kind) if path.is_file()] for kind in kinds)
        if images or labels:
            yield from product(images or [folder / kinds[0]], labels or [folder / kinds[1]])


def _spellings(folder: Path, name: str) -> list[Path]:
    return [folder / (stem + suffix) for suffix in ("", ".gz") for stem in (name, name.replace("-idx", ".idx"))]
