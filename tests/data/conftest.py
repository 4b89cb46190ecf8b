from __future__ import annotations

import gzip
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lipcert.data import Dataset


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests off the user's cache, the user's settings and the network."""
    for name in ("LIPCERT_DATA", "LIPCERT_MIRROR", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("user-cache")))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_INET and isinstance(address, tuple) and address[0] == "127.0.0.1":
            return connect(self, address)
        raise AssertionError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", only_here)


@pytest.fixture
def tree() -> Callable[[Path], list[str]]:
    """List all files under a folder, caches left out."""

    def listing(folder: Path) -> list[str]:
        files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted(name for name in files if not name.startswith(".lipcert-cache/"))

    return listing


@pytest.fixture
def write_idx() -> Callable[[Path, np.ndarray], None]:
    def write(path: Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)

    return write


@pytest.fixture
def picture() -> Callable[..., np.ndarray]:
    """Write a random image file and return its pixels (lossless formats only keep them)."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5), mode: str = "RGB") -> np.ndarray:
        width, height = size
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return write


@pytest.fixture
def dots() -> Dataset:
    """A hundred images that all differ, of four classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (100, 3, 8, 6), dtype=torch.uint8, generator=generator)
    return Dataset("dots", "train", images, torch.arange(100) % 4, tuple("abcd"))
