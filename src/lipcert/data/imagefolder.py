"""Image folders: one folder for each class, with the images in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from lipcert.errors import DataError

from .cache import cached, files_key, slot_name
from .dataset import Dataset, check_split
from .decode import decode_images, decoder_version, is_grey
from .files import IMAGE_SUFFIXES, Item, folders_in, images_in

__all__ = ["image_folder", "list_folder"]

Splits = dict[str, list[Item]]


def image_folder(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    cache_root: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load one split of a folder of images, ``path/{train,test}/CLASS/*.jpg`` or ``path/CLASS/*.jpg``.

    The folders ``train`` and ``test`` (or ``val``, where there is no ``test``) are the splits; with only one of
    them there is only that split. With neither, a fifth of each class is the test split: its images are ranked
    by the SHA-256 of ``CLASS/FILE`` and the first fifth (rounded down, at least one) taken, so the split depends
    on nothing but the names. Classes are the folders' names in sorted order; images come by class, then by file
    name. The result is (N, 1, H, W) if every image of every split is grey, else (N, 3, H, W) in RGB.

    Args:
        path: the folder.
        split: ``"train"`` or ``"test"``.
        size: a side, or (H, W), in pixels, to which all images are resized; without it all must have one size
            already.
        cache_root: keep the decoded images in ``cache_root/.lipcert-cache``; without it in the user's cache
            folder. They are decoded again when a file changes.

    Raises:
        DataError: the layout is another, a class is empty or missing from a split, a file is broken, or the
            images have several sizes.
    """
    check_split(split)
    folder, root = Path(path).expanduser(), None if cache_root is None else Path(cache_root)
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and (len(shape) != 2 or min(shape) < 1):
        raise DataError(f"size must be a positive side or (H, W) in pixels, found {size!r}")
    classes, splits = list_folder(folder)
    if split not in splits:
        names = "'test' or 'val'" if split == "test" else "'train'"
        raise DataError(f"{folder}: has no folder {names} with class folders in it, so no {split} split")
    items = splits[split]
    # All splits count, for one coloured image among the test images makes the training images coloured too.
    everything = [item for part in splits.values() for item in part]

    def build() -> Dataset:
        grey = all(is_grey(folder / item.name) for item in everything)
        images = decode_images([folder / item.name for item in items], grey=grey, size=shape)
        return Dataset(folder.resolve().name, split, images, torch.tensor([item.label for item in items]), classes)

    key = files_key([*items, *everything], [decoder_version(), split, shape, classes])
    return cached(slot_name(folder, root, split, shape), key, root, build)


def list_folder(folder: Path) -> tuple[tuple[str, ...], Splits]:
    """Return the classes of an image folder and the files of each split it has.

    Raises :class:`DataError` as :func:`image_folder` does, as far as that can be told without opening an
    image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    where = _split_folders(folder)
    if not where:
        classes, items = _list_classes(folder, "")
        return classes, _divide(folder, classes, items)
    listed = {split: _list_classes(folder, name) for split, name in where.items()}
    found = {split: classes for split, (classes, _) in listed.items()}
    if len(set(found.values())) > 1:
        odd = sorted(set(found["train"]) ^ set(found["test"]))
        raise DataError(
            f"{folder}: '{where['train']}' and '{where['test']}' have different classes, so labels would not "
            f"agree; only in one of them: {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}"
        )
    return next(iter(found.values())), {split: items for split, (_, items) in listed.items()}


def _split_folders(folder: Path) -> dict[str, str]:
    """Say which folder holds which split: one with folders in it, for a class may be called 'train' too."""
    inner = {name for name in folders_in(folder) if name in ("train", "test", "val") and folders_in(folder / name)}
    where = {"train": "train"} if "train" in inner else {}
    if "test" in inner or "val" in inner:
        where["test"] = "test" if "test" in inner else "val"
    return where


def _list_classes(folder: Path, part: str) -> tuple[tuple[str, ...], list[Item]]:
    place = folder / part
    names = folders_in(place)
    if not names:
        raise DataError(
            f"{place}: not an image folder: expected one folder for each class, with images in it "
            f"({' '.join(IMAGE_SUFFIXES)}), or folders 'train' and 'test' that have those"
        )
    stray = next((path.name for path in place.iterdir() if _is_stray(path)), None)
    if stray is not None:
        raise DataError(f"{place}: the image {stray} lies beside the class folders; move it into one of them")
    items = []
    for label, name in enumerate(names):
        images = images_in(folder, f"{part}/{name}" if part else name, label)
        if not images:
            raise DataError(f"{place / name}: no image in this class folder; add images, or remove the folder")
        items += images
    return tuple(names), items


def _is_stray(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")


def _divide(folder: Path, classes: tuple[str, ...], items: list[Item]) -> Splits:
    members: list[list[Item]] = [[] for _ in classes]
    for item in items:
        members[item.label].append(item)
    test: set[str] = set()
    for name, group in zip(classes, members, strict=True):
        if len(group) < 2:
            raise DataError(f"{folder / name}: one image cannot be divided into train and test; add images")
        ranked = sorted(group, key=lambda item: hashlib.sha256(item.name.encode()).digest())
        test |= {item.name for item in ranked[: max(1, len(group) // 5)]}
    return {
        "train": [item for item in items if item.name not in test],
        "test": [item for item in items if item.name in test],
    }
