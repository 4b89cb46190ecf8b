"""Batches that can be made again, each on its own, from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import torch

from lipcert.errors import DataError
from lipcert.parallel import ALONE, Ranks

from .dataset import Dataset, as_float

__all__ = ["Batches", "derived_generator"]

Change = Callable[..., torch.Tensor]


def derived_generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator whose seed depends on ``parts`` and on nothing else.

    >>> derived_generator(1, "a").initial_seed() == derived_generator(1, "a").initial_seed()
    True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Batches:
    """The batches of a data set, epoch after epoch.

    The bytes of the data set lie on the device; a batch is taken out of them by index. What is in batch b of
    epoch k, and how it is changed, follows from ``(seed, k, b)`` alone: a run that stopped can be taken up at
    any batch.

    >>> dots = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
    >>> data = Dataset("dots", "train", dots, torch.arange(5), tuple("abcde"))
    >>> batches = Batches(data, 2, shuffle=False, seed=0)
    >>> len(batches), [y.tolist() for _, y in batches.epoch(0)]
    (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        augment: Change | None = None,
        device: torch.device | str | None = None,
        drop_last: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
        ranks: Ranks = ALONE,
    ) -> None:
        """Put the data on the device.

        Args:
            dataset: what to go through.
            batch_size: images in a batch, at least 1; the last batch has what is left.
            shuffle: take the images in a new random order in each epoch, else always in their own.
            seed: what all randomness is derived from.
            augment: turns bytes (N, C, H, W) and a generator into floats in [0, 1], for example
                :class:`lipcert.data.Augment`. Where several processes share a batch it is also told ``(first, count)``:
                which images of how many these are.
            device: where the data is to lie; by default where it is.
            drop_last: leave out a last batch that is not full.
            memory_format: ``torch.contiguous_format`` or ``torch.channels_last``, of the batches.
            ranks: several processes that go through the same batches: each gets its part of every batch.

        Raises:
            DataError: ``batch_size`` is not positive, no batch would be full, or the memory format is
                another.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise DataError(f"batch_size must be a whole number of at least 1, found {batch_size}")
        if drop_last and batch_size > len(dataset):
            raise DataError(f"batch_size {batch_size} with drop_last leaves nothing of {len(dataset)} images")
        if memory_format not in (torch.contiguous_format, torch.channels_last):
            raise DataError(f"memory_format must be contiguous or channels_last, found {memory_format}")
        self.dataset = dataset if device is None else dataset.to(device)
        self.batch_size, self.shuffle, self.seed, self.augment = batch_size, shuffle, seed, augment
        self.drop_last, self.memory_format, self.ranks = drop_last, memory_format, ranks
        # Indexed along the first dimension, (N, H, W, C) gives batches that are channels-last when permuted
        # back.
        self._pixels = self.dataset.images
        if memory_format == torch.channels_last:
            self._pixels = self._pixels.permute(0, 2, 3, 1).contiguous()

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        count = len(self.dataset)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Go through epoch ``number``, from batch ``start`` on (``len(self)`` is allowed: nothing is left).

        Yields ``(x, y)``: float32 (B, C, H, W) in [0, 1] and int64 (B,), fresh memory each time. Raises
        :class:`~lipcert.errors.DataError` at once, not at the first batch, if ``number`` or ``start`` is out of range.
        """
        if number < 0:
            raise DataError(f"an epoch has a number from 0 on, found {number}")
        if not 0 <= start <= len(self):
            raise DataError(f"start must be a batch from 0 to {len(self)}, found {start}")
        return self._from(number, start)

    def _from(self, number: int, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = None
        if self.shuffle:
            # Made on the CPU, so that every device has the same order.
            order = torch.randperm(len(self.dataset), generator=derived_generator(self.seed, number, "order"))
            order = order.to(self.dataset.device)
        for batch in range(start, len(self)):
            begin = batch * self.batch_size
            count = min(self.batch_size, len(self.dataset) - begin)
            own = self.ranks.part(count)
            part = slice(begin + own.start, begin + own.stop)
            if order is None:
                pixels, labels = self._pixels[part], self.dataset.labels[part].clone()
            else:
                pixels, labels = self._pixels[order[part]], self.dataset.labels[order[part]]
            if self.memory_format == torch.channels_last:
                pixels = pixels.permute(0, 3, 1, 2)
            if self.augment is None:
                yield as_float(pixels), labels
            else:
                among = () if self.ranks.size == 1 else ((own.start, count),)
                yield self.augment(pixels, derived_generator(self.seed, number, batch), *among), labels
