from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lipcert.data import available, default_root, load
from lipcert.data.registry import DatasetInfo, register
from lipcert.errors import DataError

Picture = Callable[..., np.ndarray]


def test_available() -> None:
    infos = {info.name: info for info in available()}
    assert list(infos) == [
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "tiny-imagenet-200",
        "tiny-imagenet-200:CLASSES",
        "folder:PATH",
    ]
    assert infos["cifar10"].shape == (3, 32, 32)
    assert infos["tiny-imagenet-200"].num_classes == 200
    for info in infos.values():
        assert info.title
        assert info.layout
        assert info.citation
    assert [name for name, info in infos.items() if not info.downloadable] == ["digits", "folder:PATH"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("minst", "; did you mean 'mnist'?"),
        ("MNIST", "; did you mean 'mnist'?"),
        ("FashionMNIST", "; did you mean 'fashion-mnist'?"),
        ("cifar-10", "; did you mean 'cifar10'?"),
        ("fashion", "; did you mean 'fashion-mnist'?"),
        ("pet", "; did you mean 'pets'?"),
        ("zzzzzz", "there are: digits, mnist, fashion-mnist"),
        ("../pets", "or an image folder's name in"),
        ("..", "there are:"),
        (".", "there are:"),
        ("", "there are:"),
        (".hidden", "there are:"),
        ("other:pets", "there are:"),
        ("mnist:5", "; did you mean 'mnist'?"),
        (":CLASSES", "there are:"),
    ],
)
def test_unknown_names(tmp_path: Path, picture: Picture, name: str, hint: str) -> None:
    for folder in ("pets", "MNIST", "FashionMNIST", ".hidden"):
        picture(tmp_path / folder / "train" / "a" / "1.png")
    with pytest.raises(DataError) as caught:
        load(name, root=tmp_path)
    assert f"unknown data set '{name}'; " in str(caught.value)
    assert hint in str(caught.value)
    assert "folder:PATH" in str(caught.value)


def test_folders_by_name(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "pets" / "train" / "a" / "1.png")
    for name in ("pets", "folder:pets", f"folder:{tmp_path / 'pets'}"):
        assert load(name, root=tmp_path).name == "pets"
    monkeypatch.setenv("LIPCERT_DATA", str(tmp_path))
    assert default_root() == tmp_path
    assert load("pets").name == "pets"
    monkeypatch.delenv("LIPCERT_DATA")
    monkeypatch.chdir(tmp_path.parent)
    assert load(f"folder:../{tmp_path.name}/pets", root=tmp_path.name).name == "pets"
    assert default_root() == Path("data")
    with pytest.raises(DataError, match="'folder:' needs a path"):
        load("folder:", root=tmp_path)
    with pytest.raises(DataError, match="absent: no such folder"):
        load("folder:absent", root=tmp_path, download=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: not an image folder"):
        load("empty", root=tmp_path)


def test_splits_are_checked_first(tmp_path: Path) -> None:
    for split in ("val", "TRAIN", ""):
        with pytest.raises(DataError, match=f"unknown split '{split}': use 'train' or 'test'"):
            load("mnist", split, root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100", "tiny-imagenet-200"])
def test_missing_data_is_explained_and_nothing_is_fetched(tmp_path: Path, name: str) -> None:
    root = tmp_path / "absent"
    with pytest.raises(DataError, match=r"is not in .*absent: looked for .*LIPCERT_DATA.*download=True"):
        load(name, root=root)
    assert not root.exists()


def test_names_are_registered_once() -> None:
    info = DatasetInfo("mnist", "", "", "")
    with pytest.raises(ValueError, match="registered already"):
        register(info)(lambda request: load("digits"))
