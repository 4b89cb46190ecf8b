"""Data that is missing, damaged, or not what was asked for, as the command line tells it."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pooch
import pytest

from runs import TINY, refused

MNIST = ["train", "mnist-4c3f-quick", *TINY]


@pytest.fixture(autouse=True)
def _no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pooch not tell what it fetches: it would tell it to the standard error of the first test."""
    monkeypatch.setattr(pooch.get_logger(), "disabled", True)


@pytest.fixture
def mirror() -> Iterator[str]:
    """A server on this machine that has something for every name."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"not what was published")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_missing_data_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    said = refused(*MNIST, "--data", tmp_path / "data", "--out", tmp_path / "run", "--json")
    assert said.startswith(f"MNIST is not in {tmp_path / 'data'}: looked for MNIST/raw/")
    assert "download" in said
    assert "LIPCERT_DATA" in said
    monkeypatch.chdir(tmp_path)
    said = refused(*MNIST, "--out", tmp_path / "run", LIPCERT_DATA=str(tmp_path / "other"))
    assert said.startswith(f"MNIST is not in {tmp_path / 'other'}: ")
    assert refused(*MNIST, "--out", tmp_path / "run").startswith(f"MNIST is not in {tmp_path / 'data'}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_truncated_file(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = struct.pack(">4B3I", 0, 0, 8, 3, 20, 28, 28)
    (raw / "train-images-idx3-ubyte").write_bytes(header + bytes(20 * 28 * 28 - 5))
    (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 20) + bytes(20))
    said = refused(*MNIST, "--data", tmp_path, "--out", tmp_path / "run")
    assert f"{raw / 'train-images-idx3-ubyte'}: " in said
    assert "truncated" in said
    assert not (tmp_path / "run").exists()


def test_files_of_another_data_set(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 2, 28, 28) + bytes(2 * 28 * 28))
    (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 2) + bytes(2))
    said = refused(*MNIST, "--data", tmp_path, "--out", tmp_path / "run")
    assert "are not MNIST (train): expected 60000 images, found 2" in said


def test_a_download_with_a_wrong_checksum(tmp_path: Path, mirror: str) -> None:
    options = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--download"]
    said = refused(*MNIST, *options, LIPCERT_MIRROR=mirror)
    assert said.startswith(f"{mirror}/mnist/train-images-idx3-ubyte.gz: the file served does not have the checksum ")
    assert "so it was not kept" in said
    assert list(tmp_path.iterdir()) == []


def test_a_mirror_that_does_not_answer(tmp_path: Path) -> None:
    options = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--download"]
    said = refused(*MNIST, *options, LIPCERT_MIRROR="http://127.0.0.1:9")
    assert "cannot be fetched" in said
    assert "LIPCERT_MIRROR" in said
    said = refused(*MNIST, *options, LIPCERT_MIRROR="ftp://here")
    assert "must start with http:// or https://" in said


def test_data_that_cannot_be_downloaded(tmp_path: Path) -> None:
    said = refused(*MNIST, "data.name=folder:flowers", "--data", tmp_path, "--out", tmp_path / "run", "--download")
    assert "flowers" in said
