"""``lipcert export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.common import guarded, run_of, say
from lipcert.errors import ConfigError
from lipcert.exchange import save_exported, save_onnx

__all__ = ["export"]

_WRITERS = {".onnx": save_onnx, ".pt2": save_exported}


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `lipcert train` leaves it.")],
    file: Annotated[Path, typer.Argument(help="The file to write: .onnx, or .pt2 for torch.export.")],
) -> None:
    """Write a trained model for other programs, for batches of any size.

    Layers with a Lipschitz bound of their own are folded: their guarantee is in the weights.

    For example:

    - `lipcert export runs/digits digits.onnx`

    - `lipcert export runs/digits digits.pt2`
    """
    with guarded():
        writer = _WRITERS.get(file.suffix.lower())
        if writer is None:
            raise ConfigError(f"{file}: the name must end in {' or '.join(_WRITERS)}, which says the format.")
        if not file.resolve().parent.is_dir():
            raise ConfigError(f"{file}: there is no folder {file.resolve().parent}.")
        model, header = run_of(run).load_model()
        writer(model, tuple(header["input_shape"]), file)
    say(f"{file}: {model.__class__.__name__} on inputs of {tuple(header['input_shape'])}, read back and compared.")
