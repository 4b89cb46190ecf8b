"""The 8x8 handwritten digits that scikit-learn carries: a data set for which nothing is downloaded."""

from __future__ import annotations

import numpy as np
import torch

from lipcert.errors import DataError

from .dataset import Dataset

__all__ = ["read_digits"]


def read_digits(split: str) -> Dataset:
    """Return 1437 training or 360 test images of shape (1, 8, 8).

    The rule of the split: with the 1797 images sorted by class (ties in their own order), every fifth one,
    from the first on, is a test image; so each class is split 4 : 1 to within one image. Both parts keep the
    original order. Values 0..16 become bytes by ``round(v * 255 / 16)``.

    Raises:
        DataError: scikit-learn is not installed, or carries other images than it used to.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "the data set 'digits' comes with scikit-learn, which is not installed: pip install 'lipcert[demo]'"
        ) from error
    bunch = load_digits()
    values, labels = np.asarray(bunch.images), np.asarray(bunch.target, dtype=np.int64)
    if values.shape != (1797, 8, 8) or labels.shape != (1797,) or not np.isin(values, range(17)).all():
        raise DataError(
            f"scikit-learn's digits are not 1797 images of 8x8 with values 0..16 (found {values.shape}): "
            "install another version of scikit-learn"
        )
    # In integers, so that the one half (8 -> 127.5) cannot round differently anywhere.
    images = ((values.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    chosen = is_test if split == "test" else ~is_test
    return Dataset(
        "digits",
        split,
        torch.from_numpy(images[chosen][:, None]),
        torch.from_numpy(labels[chosen]),
        tuple("0123456789"),
    )
