"""``lipcert doctor``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from lipcert import data
from lipcert.cli.common import DataOption, JsonOption, console, emit, guarded, say, table
from lipcert.data import default_root, load
from lipcert.errors import DataError
from lipcert.version import __version__

__all__ = ["doctor"]

_EXTRAS = {
    "attacks": ("foolbox", "pyautoattack"),
    "demo": ("scikit-learn", "matplotlib"),
    "onnx": ("onnx", "onnxscript"),
    "tracking": ("tensorboardX",),
    "references": ("cvxpy", "scs", "clarabel"),
}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    count = torch.cuda.device_count()
    return {
        "lipcert": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(count)],
        "tf32": torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32 if count else False,
    }


def _found(root: Path | None) -> dict[str, str]:
    """Of each data set that is known by name, how many images there are, or why there are none."""
    found = {}
    for info in data.available():
        if ":" in info.name:
            continue
        try:
            samples = load(info.name, "test", root=root)
            found[info.name] = f"{len(samples):,} test images"
        except DataError as error:
            found[info.name] = str(error).split(". ")[0].split("; ")[0]
        except OSError as error:
            found[info.name] = str(error)
    return found


def _advice(machine: dict[str, Any], extras: dict[str, list[str]]) -> list[str]:
    said = []
    if machine["threads"] > machine["cores"]:
        said.append(f"torch uses {machine['threads']} threads on {machine['cores']} cores: set OMP_NUM_THREADS.")
    if machine["tf32"]:
        said.append(
            "TF32 is allowed: radii for float32 do not hold for it. lipcert refuses to certify while it is on; "
            "torch.backends.cudnn.allow_tf32 = False and torch.backends.cuda.matmul.allow_tf32 = False turn it off."
        )
    for extra, missing in extras.items():
        if missing:
            said.append(f"For {_FOR[extra]}: pip install 'lipcert[{extra}]'")
    return said


_FOR = {
    "attacks": "`lipcert attack`",
    "demo": "`lipcert demo` and the digits",
    "onnx": "networks in ONNX files",
    "tracking": "`lipcert train --tensorboard`",
    "references": "benchmarks against LipSDP",
}


def doctor(
    root: DataOption = None,
    data_sets: Annotated[
        bool, typer.Option("--data-sets/--no-data-sets", help="Read the data sets, which can take a while.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Say what lipcert finds on this machine: versions, devices, threads, extras, data sets.

    For example:

    - `lipcert doctor --data ~/data`

    - `lipcert doctor --json`, to go with a report of something that went wrong
    """
    with guarded():
        _doctor(root, data_sets, as_json)


def _doctor(root: Path | None, data_sets: bool, as_json: bool) -> None:
    machine = _machine()
    installed = {extra: {name: _installed(name) for name in names} for extra, names in _EXTRAS.items()}
    missing = {extra: [n for n, v in found.items() if v is None] for extra, found in installed.items()}
    found = _found(root) if data_sets else {}
    advice = _advice(machine, missing)
    if as_json:
        emit(
            {
                **machine,
                "extras": installed,
                "data": {"root": str(root or default_root()), "found": found},
                "advice": advice,
            }
        )
        return
    shown = table("", "")
    shown.columns[1].justify = "left"
    for key in ("lipcert", "torch", "python", "system", "cores", "threads"):
        shown.add_row(key, str(machine[key]))
    shown.add_row("CUDA", ", ".join(machine["cuda"]) or "none")
    for extra, packages in installed.items():
        listed = ", ".join(f"{n} {v or 'missing'}" for n, v in packages.items())
        shown.add_row(escape(f"lipcert[{extra}]"), listed)
    for name, text in found.items():
        shown.add_row(name, escape(text))
    console.print(shown)
    for line in advice:
        say(line)
