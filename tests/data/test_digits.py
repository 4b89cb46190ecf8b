from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from lipcert.data import load
from lipcert.errors import DataError


def test_the_split_is_fixed() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.input_shape == test.input_shape == (1, 8, 8)
    assert train.classes == tuple("0123456789")
    # Results are quoted against exactly these images.
    assert train.fingerprint == "2d05516e30d5e7a68d6c0a88e2467c9cfc4588e2483a4daae17a124f1ff2bef9"
    assert test.fingerprint == "3919a03e5c4fe68f0361adb9abc8838de8ee1fc2a962bf64555db53a449b5f96"


def test_the_split_is_stratified_and_complete() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    share = test.labels.bincount() / (test.labels.bincount() + train.labels.bincount())
    assert ((share - 0.2).abs() < 0.006).all()
    both = torch.cat([train.images, test.images]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    values = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both.numpy())) == sorted(map(bytes, values))


def test_missing_scikit_learn_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"scikit-learn, which is not installed: pip install 'lipcert\[demo\]'"):
        load("digits")


def test_other_images_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    bunch.images = bunch.images[:-1]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: bunch)
    with pytest.raises(DataError, match="not 1797 images of 8x8"):
        load("digits")
