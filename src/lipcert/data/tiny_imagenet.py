"""Tiny-ImageNet as it is published. Its test images have no labels; the split ``test`` is its ``val``."""

from __future__ import annotations

from pathlib import Path

import torch

from lipcert.errors import DataError

from .cache import cached, files_key, slot_name
from .dataset import Dataset
from .decode import decode_images, decoder_version
from .files import Item, folders_in, images_in

__all__ = ["read_tiny_imagenet", "word_net_ids"]


def read_tiny_imagenet(
    folder: Path, split: str, *, classes: int | None = None, cache_root: Path | None = None
) -> Dataset:
    """Load ``train`` or, as ``test``, ``val``, in RGB; shape (3, 64, 64) for the published files.

    Labels are the WordNet ids in sorted order; a class is called by its first word and its id. Training
    images come by class, then by file name, validation images in the order of ``val_annotations.txt``.

    With ``classes`` = n, of the N ids in sorted order only those at ⌊iN/n⌋, i = 0 … n − 1, are read: neighbours in
    that order are alike, so that the first n would be another task. The data set is called ``tiny-imagenet-200:n``.

    Raises:
        DataError: a file is missing or broken, or the lists do not agree with the images.
    """
    wnids = word_net_ids(folder)
    items = _train_items(folder, wnids) if split == "train" else _val_items(folder, wnids)
    names, called = _class_names(folder, wnids), "tiny-imagenet-200"
    if classes is not None:
        if not 1 <= classes <= len(wnids):
            raise DataError(f"{folder}: {classes} classes were asked for; it has {len(wnids)}")
        chosen = [i * len(wnids) // classes for i in range(classes)]
        place = {label: position for position, label in enumerate(chosen)}
        items = [item._replace(label=place[item.label]) for item in items if item.label in place]
        names, called = tuple(names[label] for label in chosen), f"{called}:{classes}"

    def build() -> Dataset:
        images = decode_images([folder / item.name for item in items], grey=False)
        labels = torch.tensor([item.label for item in items])
        return Dataset(called, split, images, labels, names)

    key = files_key(items, [decoder_version(), split, names])
    settings = "tiny-imagenet" if classes is None else f"tiny-imagenet:{classes}"
    return cached(slot_name(folder, cache_root, split, settings), key, cache_root, build)


def word_net_ids(folder: Path) -> list[str]:
    """The ids of the classes, sorted. Raises :class:`DataError` where the list of them is missing or broken."""
    wnids = sorted(line.strip() for line in _lines(folder / "wnids.txt"))
    if not wnids or len(set(wnids)) != len(wnids):
        raise DataError(f"{folder / 'wnids.txt'}: expected one WordNet id a line, each once; found {len(wnids)} lines")
    return wnids


def _train_items(folder: Path, wnids: list[str]) -> list[Item]:
    present = folders_in(folder / "train")
    if present != wnids:
        odd = sorted(set(present) ^ set(wnids))
        raise DataError(
            f"{folder / 'train'}: its folders are not the {len(wnids)} ids of wnids.txt; only in one "
            f"of the two: {', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}"
        )
    items = []
    for label, wnid in enumerate(wnids):
        images = images_in(folder, f"train/{wnid}/images", label)
        if not images:
            raise DataError(f"{folder / 'train' / wnid / 'images'}: no image in this class folder")
        items += images
    return items


def _val_items(folder: Path, wnids: list[str]) -> list[Item]:
    annotations = folder / "val" / "val_annotations.txt"
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    present = {Path(item.name).name: item for item in images_in(folder, "val/images", 0)}
    items: dict[str, Item] = {}
    for number, line in enumerate(_lines(annotations), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0].strip()
        if wnid not in labels:
            raise DataError(f"{annotations}, line {number}: expected FILE<tab>ID, with an ID from wnids.txt: {line!r}")
        if name not in present:
            raise DataError(f"{annotations}, line {number}: there is no image {name!r} in {folder / 'val' / 'images'}")
        if name in items:
            raise DataError(f"{annotations}, line {number}: {name!r} is listed twice")
        items[name] = present[name]._replace(label=labels[wnid])
    if len(items) != len(present):
        name = next(name for name in present if name not in items)
        raise DataError(f"{annotations}: lists {len(items)} of {len(present)} images; {name} has no label")
    return list(items.values())


def _class_names(folder: Path, wnids: list[str]) -> tuple[str, ...]:
    """Name classes by their first word; with the id too, for two classes may share a word."""
    words: dict[str, str] = {}
    if (folder / "words.txt").is_file():
        for line in _lines(folder / "words.txt"):
            wnid, _, text = line.partition("\t")
            words[wnid] = text.partition(",")[0].strip()
    return tuple(f"{words[wnid]} ({wnid})" if words.get(wnid) else wnid for wnid in wnids)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise DataError(f"{path}: cannot be read ({reason}); unpack tiny-imagenet-200.zip again") from error
