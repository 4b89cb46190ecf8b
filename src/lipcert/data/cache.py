"""Decoded images kept on disk, so that a folder of files is decoded once.

A cache file belongs to one folder, split and size. It says in its metadata from which state of the files it
was made and carries a checksum of its content; where either does not fit it is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lipcert.files import replacing

from .dataset import Dataset
from .files import Item

__all__ = ["FOLDER", "cached", "files_key", "slot_name"]

FOLDER = ".lipcert-cache"
_FORMAT = "1"


def files_key(items: Sequence[Item], settings: object) -> str:
    """Return a digest of the files' names, labels, sizes and mtimes, and of JSON-like decoder settings."""
    digest = hashlib.sha256(json.dumps([_FORMAT, settings]).encode())
    for item in items:
        digest.update(json.dumps(item).encode() + b"\n")
    return digest.hexdigest()


def slot_name(folder: Path, root: Path | None, split: str, settings: object) -> str:
    """Return a cache file's name, one for each folder, split and setting; it stays when the root is moved."""
    place = folder.resolve()
    if root is not None and place.is_relative_to(root.resolve()):
        place = place.relative_to(root.resolve())
    digest = hashlib.sha256(json.dumps([place.as_posix(), split, settings]).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', folder.resolve().name)[:60]}-{split}-{digest[:12]}.safetensors"


def cached(slot: str, key: str, root: Path | None, build: Callable[[], Dataset]) -> Dataset:
    """Return the data set in the cache file ``slot`` if it was made under ``key``, else build it and keep it.

    The file lies in ``root/.lipcert-cache`` if ``root`` is a folder that can be written to, else in the
    user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``, under ``lipcert``). If neither can be written to,
    nothing is kept. Raises only what ``build`` raises.
    """
    for directory in _directories(root):
        found = _read(directory / slot, key)
        if found is not None:
            return found
    dataset = build()
    for directory in _directories(root):
        if _write(directory / slot, key, dataset):
            break
    return dataset


def _directories(root: Path | None) -> Iterator[Path]:
    if root is not None and root.is_dir():  # a root that is not there is not made for a cache's sake
        yield root / FOLDER
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    mark = hashlib.sha256(str(root and root.resolve()).encode()).hexdigest()[:12]
    yield Path(base) / "lipcert" / mark


def _read(path: Path, key: str) -> Dataset | None:
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("key") != key:
                return None
            classes = tuple(json.loads(meta["classes"]))
            dataset = Dataset(
                meta["name"], meta["split"], file.get_tensor("images"), file.get_tensor("labels"), classes
            )
        return dataset if dataset.fingerprint == meta["fingerprint"] else None
    except Exception:  # however a file is damaged, the remedy is the same
        return None


def _write(path: Path, key: str, dataset: Dataset) -> bool:
    meta = {
        "key": key,
        "name": dataset.name,
        "split": dataset.split,
        "classes": json.dumps(dataset.classes),
        "fingerprint": dataset.fingerprint,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            save_file({"images": dataset.images, "labels": dataset.labels}, part, metadata=meta)
    except (OSError, SafetensorError):
        return False
    return True
