from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from lipcert.data import Dataset, cache, decode, imagefolder, load
from lipcert.data.cache import cached

Picture = Callable[..., np.ndarray]


@pytest.fixture
def root(tmp_path: Path, picture: Picture) -> Path:
    for index in range(4):
        picture(tmp_path / "data" / "pets" / ("train", "test")[index % 2] / "cat" / f"{index}.png", seed=index)
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the images decoded in each call."""
    calls: list[int] = []

    def counting(paths: list[Path], **options: object) -> object:
        calls.append(len(paths))
        return decode.decode_images(paths, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(imagefolder, "decode_images", counting)
    return calls


def only_file(folder: Path) -> Path:
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


def test_decoded_once(root: Path, decoded: list[int]) -> None:
    first, second = load("pets", root=root), load("pets", root=root)
    assert decoded == [2]
    assert first.fingerprint == second.fingerprint
    assert (second.name, second.split, second.classes) == ("pets", "train", ("cat",))
    file = only_file(root / ".lipcert-cache")
    assert file.name.startswith("pets-train-")
    assert file.suffix == ".safetensors"
    mask = os.umask(0)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask
    load("pets", "test", root=root)
    load("folder:pets", "test", root=root)
    load(f"folder:{root / 'pets'}", "test", root=root)
    assert decoded == [2, 2]
    root.rename(root.with_name("elsewhere"))
    load("pets", root=root.with_name("elsewhere"))
    assert decoded == [2, 2]


def test_rebuilt_when_a_file_changes(root: Path, picture: Picture, decoded: list[int]) -> None:
    before = load("pets", root=root)
    image = root / "pets" / "train" / "cat" / "0.png"
    stamp = image.stat().st_mtime_ns
    image.touch()
    os.utime(image, ns=(stamp + 1_000_000, stamp + 1_000_000))
    load("pets", root=root)
    assert len(decoded) == 2
    picture(image, seed=50)
    changed = load("pets", root=root)
    assert changed.fingerprint != before.fingerprint
    picture(root / "pets" / "train" / "cat" / "new.png", seed=51)
    assert len(load("pets", root=root)) == 3
    image.rename(image.with_name("z.png"))
    assert (load("pets", root=root).images[2] == changed.images[0]).all()
    assert decoded == [2, 2, 2, 3, 3]
    only_file(root / ".lipcert-cache")  # an old state is replaced, not kept beside the new


def test_rebuilt_when_the_decoder_changes(root: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    load("pets", root=root)
    monkeypatch.setattr(imagefolder, "decoder_version", lambda: "another")
    load("pets", root=root)
    assert len(decoded) == 2


def test_rebuilt_when_damaged(root: Path, decoded: list[int]) -> None:
    expected = load("pets", root=root)
    file = only_file(root / ".lipcert-cache")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    labels = {"images": expected.images, "labels": expected.labels + 7}
    count = 1
    for spoil in (
        lambda: file.write_bytes(whole[:-1]),
        lambda: file.write_bytes(whole[:20]),
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(b"\xff" * 100),
        lambda: file.write_bytes(bytes(flipped)),
        lambda: save_file(labels, file),
        lambda: save_file(labels, file, metadata={"key": "other"}),
        lambda: file.write_bytes(whole.replace(b'"split":"train"', b'"split":"other"')),
        lambda: file.write_bytes(whole.replace(b"fingerprint", b"fingerprxnt")),
    ):
        spoil()
        assert load("pets", root=root).fingerprint == expected.fingerprint
        count += 1
        assert len(decoded) == count
        load("pets", root=root)
        assert len(decoded) == count


def test_elsewhere_if_the_root_cannot_be_written_to(
    root: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    user = Path(os.environ["XDG_CACHE_HOME"])
    (root / ".lipcert-cache").touch()  # not a folder: nothing can be put there, even by root
    load("pets", root=root)
    load("pets", root=root)
    assert decoded == [2]
    assert only_file(user).is_relative_to(user / "lipcert")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "pets" / "train" / "cat" / "0.png"))
    load("pets", root=root)
    load("pets", root=root)
    assert decoded == [2, 2, 2]


def test_a_root_is_not_made_for_it(root: Path, tmp_path: Path) -> None:
    load(f"folder:{root / 'pets'}", root=tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    only_file(Path(os.environ["XDG_CACHE_HOME"]))


def test_a_failed_write_leaves_nothing(tmp_path: Path, dots: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    assert cached("slot", "key", tmp_path, lambda: dots) is dots
    assert list((tmp_path / ".lipcert-cache").iterdir()) == []


def test_many_at_once(tmp_path: Path, dots: Dataset) -> None:
    kinds = [replace(dots, labels=(dots.labels + shift) % 4) for shift in range(2)]
    wrong: list[str] = []

    def work(number: int) -> None:
        for _ in range(10):
            kind = kinds[number % 2]
            found = cached("slot", f"key {number % 2}", tmp_path, lambda kind=kind: kind)
            if found.fingerprint != kind.fingerprint:
                wrong.append(found.fingerprint)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [path.name for path in (tmp_path / ".lipcert-cache").iterdir()] == ["slot"]
