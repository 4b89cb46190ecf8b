"""Reading CIFAR's pickled batches as plain data, without unpickling.

A pickle is a program, and running the one in a downloaded file would let that file do anything. Here the
program is only looked at: of all opcodes, the few that write down dicts, lists, tuples, numbers, strings and
byte arrays are followed, on values of this module; a global is a name to compare, and nothing is ever
imported or called.
"""

from __future__ import annotations

import math
import pickletools
import reprlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lipcert.errors import DataError

__all__ = ["read_pickle"]

_MOST_BYTES = 1 << 29  # CIFAR-100, written by Python 3, has 230 MB
_MOST_OPCODES = 2_000_000

_ENCODE = ("_codecs encode",)
_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_NDARRAY = ("numpy ndarray",)
_DTYPE = ("numpy dtype",)


@dataclass(frozen=True)
class _Name:
    """A global that the file mentions. It stays a name."""

    text: str


@dataclass
class _Array:
    """An array whose content is still to come."""

    content: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class _Bytes:
    """The dtype uint8, the only one taken."""


class _Mark:
    """Where a run of items starts on the stack."""


class _RefusedError(Exception):
    """What is wrong with the file; the caller adds which file."""


def read_pickle(data: bytes, source: str) -> dict[str, object]:
    """Return the dict that a pickle of protocol 2 or 3 holds, with text for keys.

    An array among its values is a read-only uint8 array; everything else is what the file says (Python 2's
    strings come back as bytes), not looked into any further. ``source`` names the file in errors.

    Raises:
        DataError: the pickle is damaged, too large, or uses anything else; nothing in it was run.
    """
    if len(data) > _MOST_BYTES:
        raise DataError(f"{source}: a pickle of {len(data)} bytes is refused (at most {_MOST_BYTES})")
    try:
        return _contents(_Reader(data).read())
    except _RefusedError as refused:
        raise DataError(f"{source}: not a CIFAR batch: {refused}. Nothing in the file was run.") from None
    except (ValueError, IndexError, KeyError, TypeError) as error:
        # From pickletools: an unknown or cut-off opcode. From here: an opcode without its operands.
        raise DataError(f"{source}: damaged pickle ({str(error)[:200]}). Nothing in the file was run.") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.encoded = 0  # bytes made by the `encode` global so far

    def read(self) -> object:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(self.data)):
            if count >= _MOST_OPCODES:
                raise _RefusedError(f"more than {_MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                return self._end(position)
            handler = _HANDLERS.get(opcode.name)
            if handler is None:
                raise _RefusedError(f"it uses the opcode {opcode.name}")
            handler(self, argument)
        raise _RefusedError("it does not end")

    def _end(self, position: int | None) -> object:
        if position != len(self.data) - 1:
            raise _RefusedError("there are trailing bytes after its end")
        if len(self.stack) != 1:
            raise _RefusedError("it does not hold exactly one value")
        return self.stack[0]

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        value = self.stack.pop()
        if isinstance(value, _Mark):
            raise _RefusedError("an operand is missing")
        return value

    def items(self) -> list[object]:
        """Take everything above the last mark off the stack, and the mark."""
        found: list[object] = []
        while not isinstance(value := self.stack.pop(), _Mark):
            found.append(value)
        return found[::-1]

    def protocol(self, argument: object) -> None:
        if argument not in (2, 3):
            raise _RefusedError(f"it has protocol {argument}, not 2 or 3")

    def put(self, argument: object) -> None:
        top = self.stack[-1]
        if isinstance(top, _Mark) or not isinstance(argument, int):
            raise _RefusedError("it stores a mark")
        self.memo[argument] = top

    def get(self, argument: object) -> None:
        if argument not in self.memo:
            raise _RefusedError(f"it refers to the value {argument}, which it has not stored")
        self.push(self.memo[argument])

    def tuple_of(self, length: int) -> None:
        values = [self.pop() for _ in range(length)]
        self.push(tuple(values[::-1]))

    def append(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise _RefusedError("it appends to something that is not a list")
        target.extend(values)

    def set_items(self, values: list[object]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise _RefusedError("it sets items of something that is not a dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, (bytes, str)):
                raise _RefusedError("a key of a dict is not a string")
            target[key] = value

    def global_name(self, argument: object) -> None:
        if argument not in _ENCODE + _RECONSTRUCT + _NDARRAY + _DTYPE:
            raise _RefusedError(f"it names the global {str(argument)[:80]!r}")
        self.push(_Name(str(argument)))

    def reduce(self, _: object) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _RefusedError("it calls something that is not a known global")
        if function.text in _ENCODE:
            self.push(self._encode(arguments))
        elif function.text in _RECONSTRUCT:
            if arguments[:1] != (_Name(_NDARRAY[0]),) or len(arguments) != 3:
                raise _RefusedError("it makes an array in an unknown way")
            self.push(_Array())
        elif function.text in _DTYPE:
            if arguments[:1] not in (("u1",), (b"u1",), ("|u1",), (b"|u1",)):
                raise _RefusedError("it holds an array that is not of unsigned bytes")
            self.push(_Bytes())
        else:
            raise _RefusedError(f"it calls {function.text!r}")

    def _encode(self, arguments: tuple[object, ...]) -> bytes:
        text, codec = arguments
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise _RefusedError("it encodes something that is not Latin-1 text")
        self.encoded += len(text)
        if self.encoded > len(self.data):  # the same text again and again: more than the file can honestly hold
            raise _RefusedError("it holds more data than its size")
        return text.encode("latin-1")

    def build(self, _: object) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, _Bytes):
            return  # byte order and fields, of which uint8 has none
        if not isinstance(target, _Array) or not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("it sets the state of something that is not an array")
        _, shape, dtype, fortran, content = state
        sizes = tuple(side for side in shape if isinstance(side, int) and side >= 0) if isinstance(shape, tuple) else ()
        if shape != sizes or not isinstance(dtype, _Bytes) or not isinstance(content, bytes):
            raise _RefusedError("an array is not of unsigned bytes")
        # Many huge sides would take minutes to multiply, and pages to print.
        if len(sizes) > 2 or any(side > len(content) for side in sizes) or math.prod(sizes) != len(content):
            raise _RefusedError(f"an array of shape {reprlib.repr(sizes)} comes with {len(content)} bytes")
        target.content = np.frombuffer(content, dtype=np.uint8).reshape(
            sizes, order="F" if fortran in (True, 1) else "C"
        )


def _contents(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _RefusedError("it does not hold a dict")
    found: dict[str, object] = {}
    for key, item in value.items():
        # Only the first level: values may refer to each other, so that walking all of them need not come to
        # an end.
        name = key.decode("latin-1") if isinstance(key, bytes) else key
        if isinstance(item, _Array) and item.content is None:
            raise _RefusedError("an array has no content")
        found[name] = item.content if isinstance(item, _Array) else item
    return found


def _latin(argument: object) -> bytes:
    # pickletools hands out Python 2's byte strings as Latin-1 text.
    return str(argument).encode("latin-1")


Handler = Callable[[_Reader, object], None]
_HANDLERS: dict[str, Handler] = {
    "PROTO": _Reader.protocol,
    "MARK": lambda r, _: r.push(_Mark()),
    "EMPTY_DICT": lambda r, _: r.push({}),
    "EMPTY_LIST": lambda r, _: r.push([]),
    "EMPTY_TUPLE": lambda r, _: r.push(()),
    "NONE": lambda r, _: r.push(None),
    "NEWTRUE": lambda r, _: r.push(True),
    "NEWFALSE": lambda r, _: r.push(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Reader.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINBYTES", "BINBYTES"), _Reader.push),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda r, argument: r.push(_latin(argument))),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Reader.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Reader.get),
    "TUPLE": lambda r, _: r.push(tuple(r.items())),
    "TUPLE1": lambda r, _: r.tuple_of(1),
    "TUPLE2": lambda r, _: r.tuple_of(2),
    "TUPLE3": lambda r, _: r.tuple_of(3),
    "APPEND": lambda r, _: r.append([r.pop()]),
    "APPENDS": lambda r, _: r.append(r.items()),
    "SETITEM": lambda r, _: r.set_items([r.pop(), r.pop()][::-1]),
    "SETITEMS": lambda r, _: r.set_items(r.items()),
    "GLOBAL": _Reader.global_name,
    "REDUCE": _Reader.reduce,
    "BUILD": _Reader.build,
}
