"""Writing networks for other programs: ONNX, and the archive of torch.export."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import nn

from lipcert.errors import ImportFileError
from lipcert.exchange.onnx_import import load_onnx
from lipcert.files import replacing
from lipcert.graph.capture import first_line
from lipcert.graph.trace import check_mode
from lipcert.layers.fold import fold

__all__ = ["save_exported", "save_onnx"]


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk a lot about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _plain(module: nn.Module, input_shape: Sequence[int]) -> tuple[nn.Module, torch.Tensor]:
    """The module with the layers of lipcert folded, on the CPU, and a batch for it."""
    check_mode(module)
    folded = fold(module).cpu()
    dtype = next((t.dtype for t in (*folded.parameters(), *folded.buffers()) if t.is_floating_point()), torch.float32)
    return folded, torch.rand((2, *input_shape)).to(dtype)


def save_onnx(module: nn.Module, input_shape: Sequence[int], path: str | Path) -> None:
    """Write a network to an ONNX file, for batches of any size, and check that it reads back as the same.

    Layers of :mod:`lipcert.layers` are folded, so that their guarantee is in the weights.

    Args:
        module: in eval mode.
        input_shape: of one input, without the batch dimension.
        path: of the file, which is there whole or not at all.

    Raises:
        ImportFileError: a package is missing, the module cannot be exported, or the file computes something else.
        ModuleStateError: the module is in train mode.
    """
    path = Path(path)
    folded, x = _plain(module, input_shape)
    try:
        with replacing(path) as temporary:
            with _quiet():
                try:
                    torch.onnx.export(
                        folded,
                        (x,),
                        str(temporary),
                        dynamo=True,
                        external_data=False,
                        input_names=["input"],
                        output_names=["output"],
                        dynamic_shapes=({0: torch.export.Dim("batch")},),
                        verbose=False,
                    )
                except ImportError as error:
                    raise ImportFileError(
                        "writing ONNX needs the packages onnx and onnxscript: pip install onnx onnxscript."
                    ) from error
                except Exception as error:  # the exporter raises whatever it meets
                    raise ImportFileError(f"the module cannot be written as ONNX: {first_line(error)}") from error
            again = load_onnx(temporary)
            with torch.no_grad():
                mine, theirs = folded(x), again(x)
            if not torch.allclose(mine, theirs, rtol=1e-3, atol=1e-5):
                raise ImportFileError("the ONNX file computes something else than the module: please report this bug.")
    except OSError as error:
        raise ImportFileError(f"{path} cannot be written: {error}") from error


def save_exported(module: nn.Module, input_shape: Sequence[int], path: str | Path) -> None:
    """Write a network to an archive of ``torch.export`` (``.pt2``), for batches of any size.

    Args:
        module: in eval mode; layers of :mod:`lipcert.layers` are folded.
        input_shape: of one input, without the batch dimension.
        path: of the file, which is there whole or not at all.

    Raises:
        ImportFileError: the module cannot be exported, or the file not written.
        ModuleStateError: the module is in train mode.
    """
    path = Path(path)
    folded, x = _plain(module, input_shape)
    try:
        with replacing(path) as temporary, _quiet():
            try:
                program = torch.export.export(folded, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            except Exception as error:  # as above
                raise ImportFileError(f"the module cannot be exported: {first_line(error)}") from error
            with temporary.open("wb") as file:
                torch.export.save(program, file)
            again = torch.export.load(temporary).module()  # of this program's own writing
            with torch.no_grad():
                if not torch.allclose(folded(x), again(x), rtol=1e-3, atol=1e-5):
                    raise ImportFileError("the exported program computes something else than the module.")
    except OSError as error:
        raise ImportFileError(f"{path} cannot be written: {error}") from error
