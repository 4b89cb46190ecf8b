"""Data sets: loading by name, and batches of them.

>>> from lipcert.data import Augment, Batches, load
>>> train = load("digits")
>>> batches = Batches(train, 100, shuffle=True, seed=0, augment=Augment(shift=0.125))
>>> x, y = next(batches.epoch(0))
>>> x.shape, y.shape
(torch.Size([100, 1, 8, 8]), torch.Size([100]))
"""

from __future__ import annotations

from . import catalog as _catalog  # noqa: F401  registers the data sets
from .augment import Augment
from .batches import Batches
from .dataset import Dataset, as_float
from .download import download
from .imagefolder import image_folder
from .registry import DatasetInfo, available, default_root, load
from .splits import split

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "DatasetInfo",
    "as_float",
    "available",
    "default_root",
    "download",
    "image_folder",
    "load",
    "split",
]
