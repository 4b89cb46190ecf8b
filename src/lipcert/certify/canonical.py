"""The one form in which a certificate's content is written, and reading it with suspicion.

A file is UTF-8 text: ``{``, one line for each top-level entry in the schema's order, a last one with the checksum,
``}``. Within a line JSON has no spaces, keys are sorted, other characters than ASCII are escaped, and numbers are as
Python prints them (the shortest that is read back exactly). The checksum is the SHA-256 of all that stands before its
line, so ``head -n -2 FILE | sha256sum`` gives it, too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from lipcert.errors import CertificateError

__all__ = ["MAX_BYTES", "canonical", "parse", "read_bytes", "shown"]

MAX_BYTES = 64 * 2**20
"""No larger file is read, or written."""
_MAX_DEPTH, _MAX_TOKENS, _MAX_KEYS, _MAX_DIGITS = 16, 2**20, 100, 32
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*){0,10000}"|["\[{\]}]', re.DOTALL)  # a quote alone: a string gone wrong


def shown(text: object, most: int = 80) -> str:
    r"""A text from a file in one line for people: shortened, with whatever could steer a terminal escaped.

    >>> print(shown("a" + chr(27) + "[31m"))
    'a\x1b[31m'
    """
    short = str(text)
    return repr(short if len(short) <= most else short[: most - 1] + "…")


def canonical(content: Mapping[str, Any]) -> bytes:
    """The bytes of a certificate with this content (plain JSON values, without the checksum).

    Raises:
        CertificateError: a number that is not finite, or more than :data:`MAX_BYTES`.
    """
    try:
        lines = [
            f"{json.dumps(key)}:{json.dumps(value, allow_nan=False, separators=(',', ':'), sort_keys=True)},\n"
            for key, value in content.items()
        ]
    except (TypeError, ValueError, RecursionError) as error:
        raise CertificateError(f"this cannot stand in a certificate: {error}") from error
    body = ("{\n" + "".join(lines)).encode("ascii")
    if len(body) > MAX_BYTES - 200:
        raise CertificateError(f"a certificate of more than {MAX_BYTES // 2**20} MiB is neither written nor read")
    return body + f'"sha256":"{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode("ascii")


def read_bytes(path: Path) -> bytes:
    """The bytes of an ordinary file of at most :data:`MAX_BYTES`; a link is followed, as the caller named it.

    Raises:
        CertificateError: there is none, it cannot be read, is larger, or is a folder, a pipe or a device.
    """
    name = shown(path, 500)
    try:
        # Opened before it is looked at, so that it cannot be replaced in between; without waiting for a pipe's writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise CertificateError(f"{name} is not an ordinary file")
            if status.st_size > MAX_BYTES:
                raise CertificateError(
                    f"{name} has {status.st_size:,} bytes; no certificate is larger than {MAX_BYTES // 2**20} MiB"
                )
            with open(handle, "rb", closefd=False) as file:
                content = file.read(MAX_BYTES + 1)
        finally:
            os.close(handle)
    except FileNotFoundError as error:
        raise CertificateError(f"there is no file {name}") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = getattr(error, "strerror", None) or error
        raise CertificateError(f"cannot read {name}: {reason}") from error
    if len(content) > MAX_BYTES:
        raise CertificateError(f"{name} grew while it was read")
    return content


def _check_structure(content: bytes) -> None:
    depth = 0
    for count, token in enumerate(_TOKENS.finditer(content)):
        first = content[token.start()]
        if first in b'"' and token.end() == token.start() + 1:
            raise CertificateError("it is not JSON: a string has no end, or too many escapes")
        depth += 1 if first in b"[{" else -1 if first in b"]}" else 0
        if depth > _MAX_DEPTH:
            raise CertificateError(f"it is nested more than {_MAX_DEPTH} levels deep")
        if count >= _MAX_TOKENS:
            raise CertificateError("it has too many lists, objects and strings to be a certificate")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MAX_KEYS:
        raise CertificateError(f"an object in it has {len(pairs):,} keys, more than any in a certificate")
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise CertificateError(f"the key {shown(key)} is there twice")
        made[key] = value
    return made


def _number(text: str, kind: type) -> Any:
    value = kind(text) if len(text) <= _MAX_DIGITS else math.inf
    if not -math.inf < value < math.inf or (kind is int and abs(value) >= 2**63):
        raise CertificateError(f"the number {shown(text, 40)} is too large, or too long")
    return value


def _constant(text: str) -> NoReturn:
    raise CertificateError(f"{text} is no number of JSON")


def parse(content: bytes) -> dict[str, Any]:
    """The content of a certificate's bytes, without the checksum, if they are its one form and the checksum is right.

    Raises:
        CertificateError: saying what is wrong; not yet whether the content is that of a certificate.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CertificateError(f"it is not UTF-8 text (byte {error.start})") from error
    if text.startswith("\ufeff"):
        raise CertificateError("it begins with a byte order mark")
    _check_structure(content)
    try:
        found = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=lambda t: _number(t, int),
            parse_float=lambda t: _number(t, float),
            parse_constant=_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CertificateError("it is not a JSON object")
    if found.get("format") == "lipcert-estimate":
        raise CertificateError("it holds an estimate, which is not a certificate: nothing in it is proved")
    found.pop("sha256", None)
    if canonical(found) != content:
        raise CertificateError(
            "it is not, byte for byte, what lipcert writes, or does not have the checksum that it was written with: "
            "it is damaged, was changed, or is no certificate"
        )
    return found
