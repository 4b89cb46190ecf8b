from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipcert.data import pickles
from lipcert.data.pickles import read_pickle
from lipcert.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3), dtype=np.uint8)


def python2_batch(pixels: np.ndarray, labels: list[int], order: bytes = b"\x89") -> bytes:
    """Write what Python 2's cPickle wrote for CIFAR, byte for byte in the manner of the published files."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = pixels.tobytes("F" if order == b"\x88" else "C")
    rows, columns = pixels.shape
    return b"".join(
        [
            b"\x80\x02}q\x01(",
            text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03",
            text(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e",
            text(b"data") + b"q\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\t",
            text(b"b") + b"q\n\x87q\x0bRq\x0c(K\x01",
            b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86q\rcnumpy\ndtype\nq\x0e",
            text(b"u1") + b"q\x0fK\x00K\x01\x87q\x10Rq\x11(K\x03" + text(b"|") + b"q\x12NNN",
            b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x13b" + order,
            b"T" + struct.pack("<i", len(raw)) + raw + b"tq\x14b",
            text(b"filenames") + b"q\x15]q\x16(" + text(b"a.png") + b"q\x17" + text(b"b\xff.png") + b"q\x18eu.",
        ]
    )


@pytest.mark.parametrize("order", [b"\x88", b"\x89"])
def test_python_2(order: bytes) -> None:
    batch = read_pickle(python2_batch(PIXELS, [3, 1], order), "x")
    assert np.array_equal(batch["data"], PIXELS)
    assert batch["labels"] == [3, 1]
    assert batch["batch_label"] == b"training batch 1 of 5"
    assert batch["filenames"] == [b"a.png", b"b\xff.png"]


def test_python_2_files_are_well_formed() -> None:
    """Python's own disassembler checks stack and memo, and executes nothing; every call is one that numpy makes."""
    listing = io.StringIO()
    pickletools.dis(python2_batch(PIXELS, [3, 1]), out=listing)
    names = re.findall(r"GLOBAL +'([^']+)'", listing.getvalue())
    assert names == ["numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"]
    assert "highest protocol among opcodes = 2" in listing.getvalue()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("kind", [str, str.encode])
@pytest.mark.parametrize("order", ["C", "F"])
def test_python_3(protocol: int, kind: Any, order: str) -> None:
    value = {
        kind("data"): np.array(PIXELS, order=order),
        kind("fine_labels"): [1, 300, 70_000, -5, 1 << 40],
        kind("filenames"): [b"\xe9", "\u0142"],
        kind("more"): (None, True, False, (1, 2, 3, 4), (), [], {}),
    }
    batch = read_pickle(pickle.dumps(value, protocol=protocol), "x")
    assert np.array_equal(batch.pop("data"), PIXELS)
    assert batch == {(k if isinstance(k, str) else k.decode()): v for k, v in value.items() if k != kind("data")}


class Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = function, arguments

    def __reduce__(self) -> Any:
        return self.parts


def test_nothing_is_called(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    evil = pickle.dumps({"data": Call(os.system, f"touch {witness}")}, protocol=2)
    with pytest.raises(DataError, match=r"x: not a CIFAR batch: it names the global 'posix system'.*was run"):
        read_pickle(evil, "x")
    for function in (eval, exec, getattr, np.load, __import__):
        with pytest.raises(DataError, match="names the global"):
            read_pickle(pickle.dumps({"a": Call(function, "1")}, protocol=2), "x")
    assert not witness.exists()


def test_nothing_is_imported() -> None:
    assert "this" not in sys.modules
    with pytest.raises(DataError, match="names the global 'this d'"):
        read_pickle(b"\x80\x02cthis\nd\n.", "x")
    assert "this" not in sys.modules


# Parts of programs: the globals that are known, put together in ways that no array is.
ENCODE, MAKE, ARRAY, DTYPE = (
    b"c_codecs\nencode\n",
    b"cnumpy.core.multiarray\n_reconstruct\n",
    b"cnumpy\nndarray\n",
    b"cnumpy\ndtype\n",
)
LATIN = b"X\x06\x00\x00\x00latin1"
U1 = DTYPE + b"U\x02u1\x85R"
NEW = MAKE + ARRAY + b"K\x00\x85U\x01b\x87R"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"", "damaged pickle|does not end"),
        (b"}", "damaged pickle"),
        (b"}.trailing", "trailing bytes"),
        (b"}}.", "exactly one value"),
        (b".", "exactly one value"),
        (b"].", "does not hold a dict"),
        (b"(.", "does not hold a dict"),
        (b"\xffnonsense.", "damaged pickle"),
        (b"\x80\x04}.", "protocol 4"),
        (b"\x95\x02\x00\x00\x00\x00\x00\x00\x00}.", "opcode FRAME"),
        (b"}0.", "opcode POP"),
        (b"}2.", "opcode DUP"),
        (b"\x8c\x01a\x8c\x01b\x93.", "opcode SHORT_BINUNICODE"),
        (b"(i__main__\nx\n.", "opcode INST"),
        (b"(o.", "opcode OBJ"),
        (b"Pabc\n.", "opcode PERSID"),
        (b"}Q.", "opcode BINPERSID"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"}}\x81.", "opcode NEWOBJ"),
        (b"F1.5\n.", "opcode FLOAT"),
        (b"I5\n.", "opcode INT"),
        (b"V" + b"a" * 10 + b"\n.", "opcode UNICODE"),
        (b"h\x05.", "value 5, which it has not stored"),
        (b"(q\x00.", "stores a mark"),
        (b"q\x00.", "damaged pickle"),
        (b"\x85.", "damaged pickle"),
        (b"(\x85.", "an operand is missing"),
        (b"t.", "damaged pickle"),
        (b"}K\x01a.", "not a list"),
        (b"]K\x01K\x02s.", "not a dict"),
        (b"}(K\x01u.", "not a dict"),
        (b"}K\x01K\x02s.", "key of a dict is not a string"),
        (b"}]K\x02s.", "key of a dict is not a string"),
        (b"}}R.", "not a known global"),
        (ENCODE + b"}R.", "not a known global"),
        (ARRAY + b")R.", "calls 'numpy ndarray'"),
        (ENCODE + b")R.", "damaged pickle"),
        (ENCODE + b"K\x01" + LATIN + b"\x86R.", "not Latin-1 text"),
        (ENCODE + b"X\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R.", "not Latin-1 text"),
        (ENCODE + b"X\x02\x00\x00\x00\xc5\x82" + LATIN + b"\x86R.", "damaged pickle"),
        (MAKE + b")R.", "array in an unknown way"),
        (MAKE + DTYPE + b"K\x00\x85U\x01b\x87R.", "array in an unknown way"),
        (DTYPE + b"U\x02f8\x85R.", "not of unsigned bytes"),
        (DTYPE + b"U\x01O\x85R.", "not of unsigned bytes"),
        (b"}" + b"K\x01b.", "state of something that is not an array"),
        (NEW + b"K\x01b.", "state of something that is not an array"),
        (NEW + b"(K\x01K\x02\x85" + U1 + b"\x89U\x03abctb.", r"shape \(2,\) comes with 3 bytes"),
        (NEW + b"(K\x01J\xff\xff\xff\xff\x85" + U1 + b"\x89U\x03abctb.", "not of unsigned bytes"),
        (NEW + b"(K\x01\x8a\x08" + b"\xff" * 7 + b"\x7f\x85" + U1 + b"\x89U\x00tb.", "comes with 0 bytes"),
        (NEW + b"(K\x01K\x03\x85U\x02f8\x89U\x03abctb.", "not of unsigned bytes"),
        (NEW + b"(K\x01K\x03\x85" + U1 + b"\x89]tb.", "not of unsigned bytes"),
        (b"}U\x04data" + NEW + b"s.", "an array has no content"),
        (b"}T\xff\xff\xff\x7fabc.", "damaged pickle"),
        (b"}T\xff\xff\xff\xffabc.", "damaged pickle"),
    ],
)
def test_other_programs_are_refused(program: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_pickle(program, "batch")
    assert str(caught.value).startswith("batch: ")
    assert len(str(caught.value)) < 400


def test_every_truncation_is_refused() -> None:
    whole = python2_batch(PIXELS, [3, 1])
    for length in range(len(whole)):
        with pytest.raises(DataError):
            read_pickle(whole[:length], "x")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_altered_bytes_raise_nothing_else() -> None:
    whole = python2_batch(PIXELS, [3, 1])
    random = np.random.default_rng(0)
    for _ in range(3000):
        altered = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            altered[place] = random.integers(256)
        with contextlib.suppress(DataError):
            read_pickle(bytes(altered), "x")


def test_a_value_that_holds_itself_comes_to_an_end() -> None:
    assert read_pickle(b"}q\x00U\x01ah\x00s.", "x")["a"]
    # Each list holds the one before twice: 2**60 leaves, if anyone counted them.
    twice = [b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60)]
    doubled = b"]q\x00" + b"".join(twice)
    with pytest.raises(DataError, match="exactly one value"):
        read_pickle(doubled + b".", "x")
    pairs = b"U\x01aq\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))
    with pytest.raises(DataError, match="not of unsigned bytes"):
        read_pickle(DTYPE + pairs + b"\x85R.", "x")


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="more than 2000000 opcodes"):
        read_pickle(b"}" + b"}" * 2_000_001 + b".", "x")
    monkeypatch.setattr(pickles, "_MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"101 bytes is refused \(at most 100\)"):
        read_pickle(bytes(101), "x")


def test_data_cannot_be_multiplied() -> None:
    text = b"X" + struct.pack("<i", 100) + b"a" * 100 + b"q\x00"
    again = ENCODE + b"h\x00" + LATIN + b"\x86R"
    with pytest.raises(DataError, match="more data than its size"):
        read_pickle(text + again * 50 + b".", "x")


def test_shapes_of_many_huge_sides_are_not_multiplied() -> None:
    side = b"\x8a\xff" + b"\xff" * 254 + b"\x7f"  # 2**2039 - 1
    # It took minutes to multiply them.
    for shape in (b"(" + side * 10_000 + b"t", side + side + b"\x86", b"K\x01K\x01K\x03\x87"):
        with pytest.raises(DataError, match=r"an array of shape \(.* comes with 3 bytes") as caught:
            read_pickle(NEW + b"(K\x01" + shape + U1 + b"\x89U\x03abctb.", "x")
        assert len(str(caught.value)) < 500
