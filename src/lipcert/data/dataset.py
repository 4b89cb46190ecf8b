"""A labelled set of images, held as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from lipcert.errors import DataError

__all__ = ["SPLITS", "Dataset", "as_float", "check_split", "first_whole"]

SPLITS = ("train", "test")


def check_split(split: str) -> str:
    """Return ``split`` if it is ``"train"`` or ``"test"``; raise :class:`DataError` otherwise.

    >>> check_split("test")
    'test'
    """
    if split not in SPLITS:
        raise DataError(
            f"unknown split {split!r}: use 'train' or 'test' (a folder's or Tiny-ImageNet's 'val' is 'test'; "
            "to hold out part of the training images use lipcert.data.split)"
        )
    return split


def as_float(images: torch.Tensor) -> torch.Tensor:
    """Turn bytes (any shape) into float32 in [0, 1]: each value divided by 255, correctly rounded.

    The memory format is kept and the input is left alone. Raises :class:`~lipcert.errors.DataError` unless
    ``images`` is uint8.

    >>> as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    if images.dtype != torch.uint8:
        raise DataError(f"as_float needs uint8 images, found {images.dtype}")
    # A Python scalar would become a multiplication by the reciprocal on CUDA, which is off by one ulp for
    # some bytes.
    return images.to(torch.float32).div_(torch.full((), 255.0, device=images.device))


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images and labels of one split of one data set; checked when made, not to be changed afterwards.

    Attributes:
        name: what the data set is called, for example ``mnist``.
        split: ``"train"`` or ``"test"``.
        images: uint8 of shape (N, C, H, W), N >= 1, contiguous; a byte b stands for the intensity b/255.
        labels: int64 of shape (N,), each in ``range(num_classes)``, on the same device as the images.
        classes: the name of each class; ``labels`` are positions in it.

    Raises:
        DataError: a shape, dtype, device, length or label does not fit.

    >>> dots = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    >>> data = Dataset("dots", "train", dots, torch.tensor([0, 1, 1]), ("a", "b"))
    >>> data, len(data), data.input_shape, data.num_classes
    (Dataset(dots, train: 3 images of 1x2x2, 2 classes, cpu), 3, (1, 2, 2), 2)
    >>> len(data.subset(slice(1, None)))
    2
    """

    name: str
    split: str
    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_split(self.split)
        images, labels, what = self.images, self.labels, f"data set '{self.name}' ({self.split})"
        if images.dtype != torch.uint8 or images.dim() != 4 or 0 in images.shape:
            raise DataError(
                f"{what}: images must be uint8 of shape (N, C, H, W) with nothing empty, "
                f"found {images.dtype} of shape {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise DataError(
                f"{what}: labels must be int64 of shape (N,), found {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if len(labels) != len(images):
            raise DataError(f"{what}: {len(images)} images but {len(labels)} labels")
        if labels.device != images.device:
            raise DataError(f"{what}: images are on {images.device} but labels on {labels.device}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"{what}: labels run from {low} to {high}, outside 0 to {len(self.classes) - 1} "
                f"({len(self.classes)} classes)"
            )
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "images", images.contiguous())
        object.__setattr__(self, "labels", labels.contiguous())

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        return (
            f"Dataset({self.name}, {self.split}: {len(self)} images of {shape}, "
            f"{self.num_classes} classes, {self.device})"
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.images.device

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the shape, the bytes of the images and the labels; the same on every device."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().numpy().data.cast("B"))
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def subset(self, indices: slice | Sequence[int] | torch.Tensor) -> Dataset:
        """Return the images at ``indices``: a slice, integers in [-N, N), or a bool mask of shape (N,).

        A contiguous slice shares memory with this data set. Raises :class:`~lipcert.errors.DataError` if an index
        is out of range, is not an integer, or if nothing is left.
        """
        what = f"subset of data set '{self.name}' ({self.split})"
        if isinstance(indices, slice):
            try:
                chosen = range(len(self))[indices]
            except (TypeError, ValueError) as error:
                raise DataError(f"{what}: {indices} is not a slice of integers ({error})") from error
            if chosen.step > 0:
                indices = slice(chosen.start, chosen.stop, chosen.step)
                images, labels = self.images[indices], self.labels[indices]
                if len(labels) == 0:
                    raise DataError(f"{what}: no image is left")
                return replace(self, images=images, labels=labels)
            indices = chosen  # torch has no negative steps
        where = self._positions(indices, what)
        return replace(self, images=self.images[where], labels=self.labels[where])

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on ``device`` (itself if it is there already)."""
        images, labels = self.images.to(device), self.labels.to(device)
        if images is self.images and labels is self.labels:
            return self
        moved = replace(self, images=images, labels=labels)
        if "fingerprint" in self.__dict__:  # the same bytes: no need to hash them again
            moved.__dict__["fingerprint"] = self.fingerprint
        return moved

    def _positions(self, indices: Sequence[int] | torch.Tensor, what: str) -> torch.Tensor:
        try:
            where = torch.as_tensor(indices, device=self.device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(f"{what}: the indices are not integers that fit ({error})") from error
        if where.dtype == torch.bool and where.shape == self.labels.shape:
            where = where.nonzero()[:, 0]
        if where.numel() == 0:
            raise DataError(f"{what}: no image is left")
        if where.dim() != 1 or where.dtype.is_floating_point or where.dtype.is_complex or where.dtype == torch.bool:
            raise DataError(
                f"{what}: indices must be a list of integers, or a bool mask of shape ({len(self)},); "
                f"found {where.dtype} of shape {tuple(where.shape)}"
            )
        where = where.to(torch.int64)  # torch reads uint8 indices as a mask
        low, high = int(where.min()), int(where.max())
        if low < -len(self) or high >= len(self):
            raise DataError(f"{what}: index {high if high >= len(self) else low} is outside its {len(self)} images")
        return where


def first_whole(attempts: Iterable[Callable[[], Dataset]]) -> Dataset | None:
    """Return what the first attempt returns that finds nothing wrong; None if there are none.

    Raises :class:`DataError`, the first one met, if all do.
    """
    first = None
    for attempt in attempts:
        try:
            return attempt()
        except DataError as error:
            first = first or error
    if first is not None:
        raise first
    return None
