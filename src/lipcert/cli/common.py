"""What the subcommands share: options, how numbers are shown, and how errors end."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lipcert import zoo
from lipcert.bounds import Bound, UpperBound
from lipcert.bounds.evidence import Scaling
from lipcert.errors import ConfigError, LipcertError, out_of_memory
from lipcert.graph import Graph
from lipcert.parallel import launched_rank
from lipcert.train import Interrupted, RunFolder
from lipcert.train.factory import default_device
from lipcert.train.start import fitting_scaling

__all__ = [
    "DataOption",
    "DeviceOption",
    "DownloadOption",
    "JsonOption",
    "command",
    "console",
    "describe",
    "emit",
    "fail",
    "find_device",
    "folder_name",
    "guarded",
    "is_onnx",
    "parse_epsilon",
    "progress_bar",
    "run_of",
    "say",
    "shipped",
    "table",
    "trained_scaling",
]

console = Console(highlight=False)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Where the data sets lie.", envvar="LIPCERT_DATA", show_default="./data")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Fetch the data set if it is not there.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …", show_default="CUDA if any")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]


def fail(message: str, code: int = 1) -> NoReturn:
    """End with one message on stderr, which says who speaks if it is not the first of several processes."""
    who = f"process {launched_rank()}: " if launched_rank() else ""
    _errors.print(f"[bold red]error:[/bold red] {escape(who + message)}")
    raise typer.Exit(code)


def say(text: str) -> None:
    """Print one paragraph as it is: not wrapped, so that a command or a path in it can be copied."""
    console.print(text, markup=False, soft_wrap=True)


def command(*words: object) -> str:
    """A command line to copy, quoted where a shell needs it.

    >>> command("lipcert", "certify", Path("my runs/a"))
    "lipcert certify 'my runs/a'"
    """
    return shlex.join(map(str, words))


def is_onnx(path: Path) -> bool:
    """Whether a path is that of an ONNX file rather than of a run's folder."""
    return path.suffix.lower() == ".onnx"


@contextmanager
def progress_bar(*, show: bool = True) -> Iterator[Callable[[float, str], None]]:
    """A bar on a terminal, which is told the share that is done and of what; nothing elsewhere."""
    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description:16}"), BarColumn(), TimeRemainingColumn())
    off = not (show and terminal.is_terminal)  # a bar that is not shown would still end with a newline
    with Progress(*columns, console=terminal, transient=True, disable=off) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share, what: bar.update(task, completed=share, description=what)


@contextmanager
def guarded(after_stop: str = "") -> Iterator[None]:
    """Turn what lipcert refuses into one message and exit status 1, an interruption into 130.

    Args:
        after_stop: what to say to someone who stopped a run: how it goes on.
    """
    try:
        yield
    except Interrupted as stop:
        if launched_rank():
            raise typer.Exit(130) from stop  # the first of several has said it
        _errors.print(f"{stop}. {after_stop}".rstrip(), markup=False)
        raise typer.Exit(130) from stop
    except LipcertError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read the output has seen enough; click knows what to do
        raise
    except OSError as error:  # a full disk, a name that is too long, a folder that may not be read
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        fail(
            "there is not enough memory. To train, choose a smaller train.batch_size; to bound or certify, a lower "
            "--dense-limit; or another --device."
        )


def run_of(path: Path) -> RunFolder:
    """The run in a folder, or, where there is no such folder, the model of that name that lipcert comes with."""
    return zoo.folder(str(path)) if shipped(path) else RunFolder(path)


def trained_scaling(source: RunFolder | Path, graph: Graph, method: str, scaling: str) -> Scaling | None:
    """The weights D that a run was trained with, for a search to start from, if they are such as are asked for.

    Raises:
        CheckpointError: they are damaged, or not of this network.
    """
    if method not in ("smallgain", "best") or (isinstance(source, Path) and is_onnx(source)):
        return None
    run = source if isinstance(source, RunFolder) else run_of(source)
    return fitting_scaling(run, graph, scaling)


def shipped(path: Path) -> bool:
    """Whether a model that lipcert comes with is meant: there is nothing of that name on disk."""
    return not path.exists() and str(path) in zoo.available()


def find_device(name: str | None) -> torch.device:
    """The device of an option, by default CUDA where there is one.

    Raises:
        ConfigError: there is no such device, or it is neither a CPU nor a CUDA device.
    """
    try:
        device = torch.device(name) if name else default_device()
        if device.type in ("cpu", "cuda"):
            torch.empty(0, device=device)
            return device
    except (RuntimeError, AssertionError):
        pass
    count = torch.cuda.device_count()
    here = f"cpu and {count} CUDA device{'s' * (count > 1)}" if count else "cpu only, no CUDA device"
    raise ConfigError(f"--device is cpu, cuda or cuda:N; got {name!r}. Here torch finds {here}.")


def describe(bound: Bound) -> dict[str, Any]:
    """What a bound is and how it was proved, for a JSON document."""
    proof: dict[str, Any] = {}
    if isinstance(bound, UpperBound):
        methods = sorted({n.method for n in bound.norms.values()})
        proof = {"failure_probability": bound.failure, "relative_slack": bound.slack, "norms": methods}
    if bound.attempts:
        proof["attempts"] = [
            {**describe(a.bound), "low": a.bound.ends()[0], "high": a.bound.ends()[1], "seconds": a.seconds}
            for a in bound.attempts
        ]
    return {"method": bound.method, "scope": bound.scope, "guarantee": bound.guarantee, **proof}


def emit(document: Any) -> None:
    """Print one JSON document; numbers that are not finite become null."""
    json.dump(_finite(document), sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()  # before anything on stderr


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def folder_name(text: str | Path) -> Path:
    """A folder to write to, as an option gives it.

    Raises:
        typer.BadParameter: the name is empty, as that of a variable that is not set: it would be the current folder.
    """
    if not str(text).strip():
        raise typer.BadParameter("a folder's name cannot be empty; the current folder is '.'")
    return Path(text)


def parse_epsilon(text: str) -> float:
    """A radius: ``0.5`` or a fraction of the pixel range such as ``36/255``.

    >>> parse_epsilon("51/255")
    0.2
    """
    above, slash, below = text.partition("/")
    try:
        value = float(above) / (float(below) if slash else 1.0)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"a radius is a number or a fraction such as 36/255; got {text!r}") from error
    if not 0 <= value < math.inf:
        raise ConfigError(f"a radius must be finite and not negative; got {text!r}")
    return value


def table(*columns: str, between: int = 3) -> Table:
    """A plain table: the first column to the left, numbers to the right, so many blanks between them."""
    made = Table(box=None, pad_edge=False, padding=(0, between, 0, 0))
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return made
