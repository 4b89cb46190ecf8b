"""What the subcommands share: options, how numbers are shown, and how errors end."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lipcert.errors import ConfigError, LipcertError
from lipcert.train import Interrupted

__all__ = ["DataOption", "DeviceOption", "DownloadOption", "JsonOption", "console", "emit", "fail", "guarded",
           "parse_epsilon", "percent", "table"]  # fmt: skip

console = Console(highlight=False)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Where the data sets lie.", envvar="LIPCERT_DATA", show_default="./data")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is not there.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …", show_default="CUDA if any")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def fail(message: str, code: int = 1) -> NoReturn:
    """End with one message on stderr."""
    _errors.print(f"[bold red]error:[/bold red] {_escaped(message)}")
    raise typer.Exit(code)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what lipcert refuses into one message and exit status 1, an interruption into 130."""
    try:
        yield
    except Interrupted as stop:
        _errors.print(f"{stop}. Go on with: lipcert train --resume --out …")
        raise typer.Exit(130) from stop
    except LipcertError as error:
        fail(str(error))


def emit(document: Any) -> None:
    """Print one JSON document; numbers that are not finite become null."""
    json.dump(_finite(document), sys.stdout, indent=2)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def parse_epsilon(text: str) -> float:
    """A radius: ``0.5`` or a fraction of the pixel range such as ``36/255``.

    >>> parse_epsilon("51/255")
    0.2
    """
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"a radius is a number or a fraction such as 36/255; got {text!r}") from error
    if value < 0:
        raise ConfigError(f"a radius must not be negative; got {text!r}")
    return value


def percent(share: float) -> str:
    """A share as a percentage with two decimals."""
    return f"{100 * share:.2f} %"


def table(*columns: str, title: str | None = None) -> Table:
    """A plain table: the first column to the left, numbers to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    return made
