"""Files that are replaced whole or not at all, whoever writes them."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lipcert.files import replacing


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_the_new_file_has_the_mode_of_new_files(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a"
    path.touch(mode=0o400)
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".a.")
        temporary.unlink()
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("step", ["block", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    path = tmp_path / "a"
    write(path, "old")

    def fail(*_: object) -> None:
        raise error

    if step == "block":
        monkeypatch.setattr(Path, "write_text", lambda self, text: fail(self.touch()))
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_folder_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, synced = os.fsync, []

    def watched(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), (tmp_path / "a").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write(tmp_path / "a", "text")
    assert synced == [(False, False), (True, True)]  # the content before the renaming, the folder after it


@pytest.mark.parametrize("place", ["folder", "absent/a", "file/a", "."])
def test_places_that_cannot_be_written(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError):  # noqa: PT011  which one is the system's
        write(Path(place), "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_many_at_once(tmp_path: Path) -> None:
    path, wrong = tmp_path / "a", []
    write(path, "0" * 9999)

    def work(number: int) -> None:
        for _ in range(20):
            write(path, str(number) * 9999)
            text = path.read_text()
            if text != text[0] * 9999:
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert list(tmp_path.iterdir()) == [path]
