"""IDX files: the format of MNIST and of the sets made in its likeness."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
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


def find_idx(folders: Sequence[Path], split: str) -> tuple[Path, Path] | None:
    """Return the images' and the labels' file of a split in the first folder that has either, or None.

    Both spellings ``train-images-idx3-ubyte`` and ``train-images.idx3-ubyte`` are taken, with or without
    ``.gz``. Raises :class:`DataError` if one of the two files is missing from that folder.
    """
    for folder in folders:
        kinds = ("images?idx3-ubyte", "labels?idx1-ubyte")
        images, labels = (_first(folder, f"{_STEMS[split]}-{kind}") for kind in kinds)
        if images is not None and labels is not None:
            return images, labels
        if images is not None:
            raise DataError(f"{folder}: {_STEMS[split]}-labels-idx1-ubyte(.gz) is missing beside {images.name}")
        if labels is not None:
            raise DataError(f"{folder}: {_STEMS[split]}-images-idx3-ubyte(.gz) is missing beside {labels.name}")
    return None


def _first(folder: Path, pattern: str) -> Path | None:
    for suffix in ("", ".gz"):
        for sign in "-.":
            path = folder / (pattern.replace("?", sign) + suffix)
            if path.is_file():
                return path
    return None
