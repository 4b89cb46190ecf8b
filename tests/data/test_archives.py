from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lipcert.data import archives
from lipcert.data.archives import extract_zip, read_tar_members
from lipcert.errors import DataError

Tree = Callable[[Path], list[str]]


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_tar_members(tmp_path: Path, tree: Tree) -> None:
    path = tmp_path / "a.tar.gz"
    write_tar(path, [(tarfile.TarInfo(name), name.encode()) for name in ("./x/1", "x/2", "x/3")])
    assert read_tar_members(path, {"x/1": 5, "x/2": 3}) == {"x/1": b"./x/1", "x/2": b"x/2"}
    assert tree(tmp_path) == ["a.tar.gz"]
    with pytest.raises(DataError, match=r"a\.tar\.gz: the member x/2 is too large \(3 bytes\)"):
        read_tar_members(path, {"x/2": 2})
    with pytest.raises(DataError, match="the archive lacks y, z"):
        read_tar_members(path, {"z": 1, "y": 1})


def test_tar_tricks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "a.tar.gz", tarfile.TarInfo("x")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(path, [(link, b"")])
    with pytest.raises(DataError, match="the member x is not a regular file"):
        read_tar_members(path, {"x": 5})
    write_tar(path, [(tarfile.TarInfo("x"), b"1"), (tarfile.TarInfo("x"), b"2")])
    with pytest.raises(DataError, match="the member x is there twice"):
        read_tar_members(path, {"x": 5})
    write_tar(path, [(tarfile.TarInfo("other"), bytes(50_000)), (tarfile.TarInfo("x"), b"2")])
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_MOST_BYTES", 30_000)
        with pytest.raises(DataError, match="unpacks to more than 30000 bytes"):
            read_tar_members(path, {"x": 5})
    write_tar(path, [(tarfile.TarInfo("x"), b"2")])
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(50_000)))  # after the last member
    assert read_tar_members(path, {"x": 5}) == {"x": b"2"}
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_MOST_BYTES", 30_000)
        with pytest.raises(DataError, match="unpacks to more than 30000 bytes"):
            read_tar_members(path, {"x": 5})
    write_tar(path, [(tarfile.TarInfo(f"m{i}"), b"") for i in range(1100)])
    with pytest.raises(DataError, match="more than 1000 members"):
        read_tar_members(path, {"x": 5})
    # A name that claims to be four gigabytes long.
    header = bytearray(tarfile.TarInfo("././@LongLink").tobuf())
    header[156:157], header[124:136] = b"L", b"37777777777\0"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    path.write_bytes(gzip.compress(bytes(header) + bytes(1_000_000)))
    with pytest.raises(DataError, match="damaged or truncated"):
        read_tar_members(path, {"x": 5})


def write_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"" if name.endswith("/") else name.encode())


def test_zip(tmp_path: Path, tree: Tree) -> None:
    write_zip(tmp_path / "a.zip", ["top/", "top/a/b.txt", "top/c"])
    assert extract_zip(tmp_path / "a.zip", tmp_path, "top") == tmp_path / "top"
    assert tree(tmp_path) == ["a.zip", "top/a/b.txt", "top/c"]
    assert (tmp_path / "top/a/b.txt").read_bytes() == b"top/a/b.txt"


@pytest.mark.parametrize(
    "name", ["../evil", "top/../../evil", "/evil", "top\\..\\evil", "C:/evil", "evil", "topmost/x", "top/a:b"]
)
def test_zip_traversal(tmp_path: Path, tree: Tree, name: str) -> None:
    (tmp_path / "in").mkdir()
    write_zip(tmp_path / "a.zip", ["top/fine", name])
    with pytest.raises(DataError, match=r"a\.zip: refused, nothing was unpacked: .*member named") as caught:
        extract_zip(tmp_path / "a.zip", tmp_path / "in", "top")
    assert name.encode("unicode_escape").decode()[-4:] in str(caught.value)
    assert tree(tmp_path) == ["a.zip"]


def test_zip_links_bombs_and_damage(tmp_path: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("top/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(DataError, match="'top/link' is a link"):
        extract_zip(path, tmp_path, "top")
    write_zip(path, ["top/1", "top/2"])
    with monkeypatch.context() as patch:
        patch.setattr(archives, "_MOST_BYTES", 9)
        with pytest.raises(DataError, match="unpacks to 2 files of 10 bytes"):
            extract_zip(path, tmp_path, "top")
    whole = path.read_bytes()
    for bad in (whole[:-10], b"", b"not a zip"):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="cannot be unpacked"):
            extract_zip(path, tmp_path, "top")
    assert tree(tmp_path) == ["a.zip"]
    path.write_bytes(whole.replace(b"top/1top/1", b"top/1top/X"))
    with pytest.raises(DataError, match=r"cannot be unpacked .*CRC"):
        extract_zip(path, tmp_path / "in", "top")
    write_zip(path, ["top/1", "top/1/2"])
    with pytest.raises(DataError, match="cannot be unpacked"):
        extract_zip(path, tmp_path / "other", "top")
