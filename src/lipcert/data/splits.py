"""Holding out a part of a data set."""

from __future__ import annotations

import torch

from lipcert.errors import DataError

from .batches import derived_generator
from .dataset import Dataset

__all__ = ["split"]


def split(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide a data set into ``(rest, held_out)``, at random but with the same share of every class.

    ``held_out`` has ``round(fraction * N)`` images, of each class its share rounded down or up; both parts
    keep the original order. The same data set, fraction and seed give the same parts.

    Raises:
        DataError: ``fraction`` is not between 0 and 1, or so small or large that a part would be empty.

    >>> dots = torch.zeros(10, 1, 1, 1, dtype=torch.uint8)
    >>> data = Dataset("dots", "train", dots, torch.arange(10) % 2, ("a", "b"))
    >>> rest, held_out = split(data, 0.2, seed=0)
    >>> len(rest), held_out.labels.sort().values.tolist()
    (8, [0, 1])
    """
    total = round(fraction * len(dataset)) if 0 < fraction < 1 else 0
    if not 0 < total < len(dataset):
        raise DataError(f"a fraction of {fraction} of {len(dataset)} images leaves a part empty")
    labels = dataset.labels.cpu()
    counts = torch.bincount(labels, minlength=dataset.num_classes).tolist()
    chosen = torch.zeros(len(dataset), dtype=torch.bool)
    for label, count in enumerate(_shares(counts, total)):
        members = (labels == label).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=derived_generator(seed, "split", label))
        chosen[members[order[:count]]] = True
    return dataset.subset(~chosen), dataset.subset(chosen)


def _shares(counts: list[int], total: int) -> list[int]:
    """Divide ``total`` in proportion to ``counts``, shares rounded down or up (largest remainders first)."""
    whole = sum(counts)
    shares = [count * total // whole for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda label: (-(counts[label] * total % whole), label))
    for label in by_remainder[: total - sum(shares)]:
        shares[label] += 1
    return shares
