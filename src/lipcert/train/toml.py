"""Reading and writing TOML. Python reads it (from 3.11 on) but does not write it."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from typing import Any

from lipcert.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

__all__ = ["dumps", "loads", "parse_value"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# A value on a command line that was plainly meant as text: 4c3f, fashion-mnist, runs/a.txt.
_BARE_WORD = re.compile(r"[^\s\[\]{}\"'=,#]+")


def loads(text: str) -> dict[str, Any]:
    """Parse a TOML document.

    Raises:
        ConfigError: a syntax error, with its line.

    >>> loads("[train]" + chr(10) + "epochs = 3")
    {'train': {'epochs': 3}}
    """
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a mistake, or an integer of thousands of digits
        raise ConfigError(f"not valid TOML: {error}") from error
    return document


def parse_value(text: str) -> Any:
    """Parse one TOML value; a bare word that is none is a string.

    Raises:
        ConfigError: neither.

    >>> [parse_value(v) for v in ("1e-3", "true", "[1, 2]", "adam", "4c3f", '"5"')]
    [0.001, True, [1, 2], 'adam', '4c3f', '5']
    """
    text = text.strip()
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if isinstance(error, tomllib.TOMLDecodeError) and _BARE_WORD.fullmatch(text):
            return text
        raise ConfigError(
            f"{text!r} is neither a TOML value nor a single word (numbers are written 0.9, not .9; text with "
            "spaces or brackets needs quotes)"
        ) from error
    if list(document) != ["value"]:
        raise ConfigError(f"{text!r} is more than one value")
    return document["value"]


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _string(key)


def _inline(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_inline(item) for item in value)}]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {_inline(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    raise ConfigError(f"TOML cannot hold {value!r} of type {type(value).__name__}")


def _table(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    plain = [f"{_key(key)} = {_inline(v)}" for key, v in table.items() if not isinstance(v, Mapping)]
    inner = [(key, v) for key, v in table.items() if isinstance(v, Mapping)]
    lines = []
    if path and (plain or not inner):
        lines = ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += plain
    for key, value in inner:
        lines += _table((*path, key), value)
    return lines


def dumps(document: Mapping[str, Any]) -> str:
    """Write a nested mapping of strings, numbers, booleans, lists and mappings as TOML.

    Raises:
        ConfigError: another kind of value (TOML has no null).

    >>> print(dumps({"name": "a", "train": {"lr": 1e-05, "betas": [0.9, 0.99]}}), end="")
    name = "a"
    <BLANKLINE>
    [train]
    lr = 1e-05
    betas = [0.9, 0.99]
    """
    return "\n".join(_table((), document)).lstrip("\n") + "\n"
