"""Fetching data sets from where they are published, or from a mirror; only ever when asked to."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lipcert.errors import DataError

from .archives import extract_zip
from .registry import default_root

__all__ = ["SOURCES", "Source", "download"]

_TIMEOUT = 30.0  # seconds without a byte


@dataclass(frozen=True)
class Source:
    """Where a data set is published.

    Attributes:
        base: the address of the folder that has the files, with a slash at the end.
        files: the files' names, each with its checksum, written ``md5:...`` or ``sha256:...``.
        folder: where the files go, relative to the root.
        unpack: for a zip file, the one folder in it, which takes the zip file's place; else empty.
    """

    base: str
    files: dict[str, str]
    folder: str
    unpack: str = ""


SOURCES: dict[str, Source] = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
        },
        "MNIST/raw",
    ),
    "fashion-mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
        },
        "FashionMNIST/raw",
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530"},
        ".",
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "md5:03b5dce01913d631647c71ecec9e9cb8"},
        ".",
    ),
    "tiny-imagenet-200": Source(
        "http://cs231n.stanford.edu/",
        {"tiny-imagenet-200.zip": "md5:90528d7ca1a48142e341f4ef8d21d0de"},
        ".",
        unpack="tiny-imagenet-200",
    ),
}


def download(
    name: str, root: str | os.PathLike[str] | None = None, *, mirror: str | None = None, repair: bool = False
) -> list[Path]:
    """Fetch the files of a data set that are not there yet; return where all of them are.

    Files are checked against the published checksums under a temporary name and appear under their own names
    only when all are there. A file that is there already is left alone, unless it is to be repaired.

    Args:
        name: a downloadable data set, see :func:`lipcert.data.available`.
        root: the folder to put it under, made if need be; by default :func:`lipcert.data.default_root`.
        mirror: an address to fetch ``mirror/NAME/FILE`` from instead of the publisher's; by default the
            environment variable ``LIPCERT_MIRROR``, if set.
        repair: replace files that are there but have another checksum. (An unpacked folder has none.)

    Raises:
        DataError: the data set has no known source, the server does not answer, a checksum is wrong, or the
            disk refuses; nothing is left behind then.
    """
    name = name.partition(":")[0] if name.startswith("tiny-imagenet-200:") else name  # a part comes with the whole
    if name not in SOURCES:
        raise DataError(f"'{name}' cannot be downloaded; these can: {', '.join(SOURCES)}")
    source, place = SOURCES[name], default_root() if root is None else Path(root).expanduser()
    mirror = mirror or os.environ.get("LIPCERT_MIRROR")
    base = f"{mirror.rstrip('/')}/{name}/" if mirror else source.base
    if not base.startswith(("http://", "https://")):
        raise DataError(f"the mirror {mirror!r} (LIPCERT_MIRROR) must start with http:// or https://")
    folder = place / source.folder
    targets = [folder / source.unpack] if source.unpack else [folder / file for file in source.files]
    try:
        if source.unpack:
            missing = [] if targets[0].exists() else list(source.files)
        else:
            checks = source.files if repair else dict.fromkeys(source.files)
            missing = [file for file, checksum in checks.items() if not _is_there(folder / file, checksum)]
        if not missing:
            return targets
        with _made(place), tempfile.TemporaryDirectory(prefix=".lipcert-download-", dir=place) as temporary:
            fetched = [_fetch(base + file, source.files[file], Path(temporary), folder) for file in missing]
            if source.unpack:
                fetched = [extract_zip(fetched[0], Path(temporary), source.unpack)]
            folder.mkdir(parents=True, exist_ok=True)
            for path in fetched:
                _move(path, folder / path.name)
    except OSError as error:
        raise DataError(f"cannot write under {place} ({error.strerror or error}); choose another root=") from error
    return targets


def _is_there(path: Path, checksum: str | None) -> bool:
    """Whether a file is there, and has the checksum, if one is given."""
    if checksum is None or not path.is_file():
        return path.exists()
    kind, _, expected = checksum.partition(":")
    return hashlib.new(kind, path.read_bytes()).hexdigest() == expected


def _fetch(url: str, checksum: str, temporary: Path, folder: Path) -> Path:
    import pooch

    file = url.rpartition("/")[2]
    advice = (
        f"Put {file} into {folder.resolve()} by hand, or set LIPCERT_DATA to a folder that has the data set, "
        "or LIPCERT_MIRROR to a server that has NAME/FILE"
    )
    try:
        downloader = pooch.HTTPDownloader(chunk_size=1 << 16, timeout=_TIMEOUT)
        path = Path(pooch.retrieve(url, checksum, fname=file, path=temporary, downloader=downloader))
        probe = temporary / "probe"
        probe.touch()  # pooch makes files that only their owner can read; give this one what the umask allows
        path.chmod(probe.stat().st_mode & 0o777)
        return path
    except ValueError as error:  # the address is known to be one, so this is pooch's word for a wrong checksum
        raise DataError(
            f"{url}: the file served does not have the checksum {checksum}, so it was not kept. {advice}"
        ) from error
    except OSError as error:  # all of requests' errors are
        raise DataError(f"{url}: cannot be fetched ({str(error)[:200]}). {advice}") from error


def _move(path: Path, target: Path) -> None:
    try:
        os.replace(path, target)
    except OSError:
        if not target.is_dir():  # else another process put the whole folder there in the meantime
            raise


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder for the time of a block, and keep it if the block does not raise."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):  # not empty: someone else uses it
                path.rmdir()
        raise
