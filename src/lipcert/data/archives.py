"""Reading archives that came from elsewhere: nothing is written outside the folder that was asked for."""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from lipcert.errors import DataError

__all__ = ["extract_zip", "read_tar_members"]

# The sets that come as archives unpack to less than a third of this.
_MOST_BYTES = 1 << 30
_MOST_ZIP_MEMBERS = 1_000_000
_MOST_TAR_MEMBERS = 1_000


class _Limited:
    """A gzip stream that ends in an error, not in the machine's memory, if it unpacks to too much."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self.stream, self.path, self.left = stream, path, _MOST_BYTES

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(self.left + 1 if size < 0 else min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise DataError(f"{self.path}: unpacks to more than {_MOST_BYTES} bytes: not the archive it should be")
        return content


def read_tar_members(path: Path, limits: Mapping[str, int]) -> dict[str, bytes]:
    """Return the content of the members of a ``.tar.gz`` that ``limits`` names; it limits their bytes.

    Nothing is written to disk; a member counts only if it is a regular file of exactly that name.

    Raises:
        DataError: a member is missing, occurs twice or is too large, or the archive is damaged or unpacks to
            too much.
    """
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path, "rb") as stream:
            limited = _Limited(stream, path)
            with tarfile.open(fileobj=limited, mode="r|") as archive:  # type: ignore[call-overload]  # read() will do
                for count, member in enumerate(archive):
                    if count > _MOST_TAR_MEMBERS:
                        raise DataError(
                            f"{path}: has more than {_MOST_TAR_MEMBERS} members: not the archive it should be"
                        )
                    name = member.name.removeprefix("./")
                    if name not in limits:
                        continue
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is None or name in found or member.size > limits[name]:
                        problem = "is there twice" if name in found else f"is too large ({member.size} bytes)"
                        problem = "is not a regular file" if content is None else problem
                        raise DataError(f"{path}: the member {name} {problem}: not the archive it should be")
                    found[name] = content.read()
            while limited.read(1 << 20):  # to the end, where gzip's checksum is
                pass
    except (EOFError, zlib.error, tarfile.TarError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged or truncated archive ({error}); fetch it again") from error
    missing = sorted(set(limits) - set(found))
    if missing:
        raise DataError(f"{path}: the archive lacks {', '.join(missing)}")
    return found


def extract_zip(path: Path, into: Path, top: str) -> Path:
    """Extract a zip file whose members all lie under the folder ``top``, and return ``into/top``.

    Every name is checked before anything is written: no absolute paths, no ``..``, no links, nothing beside
    ``top``. ``into`` should be a temporary folder, to be thrown away if this raises.

    Raises:
        DataError: a name is refused, or the file is damaged, encrypted or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _check_member(path, member, top)
            total = sum(member.file_size for member in members)
            if total > _MOST_BYTES or len(members) > _MOST_ZIP_MEMBERS:
                raise DataError(
                    f"{path}: unpacks to {len(members)} files of {total} bytes: not the archive it should be"
                )
            for member in members:
                target = into / member.filename
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as sink:
                    shutil.copyfileobj(source, sink)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
        NotImplementedError,
        OSError,
        ValueError,
    ) as error:
        raise DataError(f"{path}: cannot be unpacked ({error})") from error
    return into / top


def _check_member(path: Path, member: zipfile.ZipInfo, top: str) -> None:
    name = PurePosixPath(member.filename)
    tricks = name.is_absolute() or ".." in name.parts or any(sign in member.filename for sign in "\\:\0")
    if tricks or name.parts[:1] != (top,):
        raise DataError(f"{path}: refused, nothing was unpacked: it has a member named {member.filename!r}")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{path}: refused, nothing was unpacked: the member {member.filename!r} is a link")
