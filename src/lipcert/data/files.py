"""Listing image files, with what tells whether one has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lipcert.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "Item", "folders_in", "images_in"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".pgm", ".ppm", ".webp", ".tif", ".tiff")


class Item(NamedTuple):
    """One image file: its path relative to the data set's folder (with ``/``), label, size and mtime."""

    name: str
    label: int
    size: int
    mtime: int


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error})") from error


def folders_in(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, sorted; hidden ones are left out."""
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def images_in(base: Path, folder: str, label: int) -> list[Item]:
    """Return the image files directly in ``base/folder``, sorted by name, each with ``label``.

    Other files are passed over (:data:`IMAGE_SUFFIXES` says what an image is called). Raises
    :class:`DataError` if the folder cannot be listed or has folders in it, whose images would otherwise be
    left out unnoticed.
    """
    found = []
    prefix = f"{folder}/" if folder else ""
    for entry in _entries(base / folder):
        if entry.is_dir():
            raise DataError(
                f"{base / folder}: has the folder '{entry.name}' in it: "
                "images must lie directly in their class's folder"
            )
        if entry.name.lower().endswith(IMAGE_SUFFIXES):
            try:
                state = entry.stat()
            except OSError as error:
                raise DataError(f"{entry.path}: cannot be read ({error.strerror or error})") from error
            found.append(Item(prefix + entry.name, label, state.st_size, state.st_mtime_ns))
    return found
