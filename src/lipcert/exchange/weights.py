"""Plain files of weights: safetensors, and torch's own format without what could execute code."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lipcert.errors import ImportFileError
from lipcert.graph.capture import first_line

__all__ = ["read_state_dict"]

_INSIDE = ("state_dict", "model_state_dict", "model", "weights")
_PREFIXES = ("module.", "_orig_mod.")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights in a file of somebody else's, safely.

    Args:
        path: of a ``.safetensors`` file, or of one that ``torch.save`` wrote (``.pt``, ``.pth``, ``.bin``, …): then
            only tensors and plain containers are unpickled (``weights_only``). Where the file holds a dictionary with
            one of the usual names for weights in it (``state_dict``, ``model``, …), these are taken; prefixes that
            ``DataParallel`` and ``torch.compile`` put in front of all names are taken off.

    Raises:
        ImportFileError: the file is missing, damaged, holds more than weights, or none.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ImportFileError(f"there is no file {path}.") from error
    except pickle.UnpicklingError as error:
        raise ImportFileError(
            f"{path} holds more than weights, which is not read because it could execute code. Where you trust it, "
            "load it yourself, and save module.state_dict() alone."
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError, zipfile.BadZipFile) as error:
        raise ImportFileError(f"{path} is damaged, or no file of weights: {first_line(error)}") from error
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ImportFileError(f"{path} holds no weights by name: save module.state_dict().")
    if not all(isinstance(k, str) for k in found) or any(v.layout != torch.strided for v in found.values()):
        raise ImportFileError(f"{path}: weights must be dense tensors by name.")
    weights = dict(found)
    for prefix in _PREFIXES:
        if all(k.startswith(prefix) for k in weights):
            weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    return weights
