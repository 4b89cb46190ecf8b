"""One safetensors file, written so that it is there whole or not at all, and read with suspicion.

The layout is that of https://github.com/huggingface/safetensors: eight bytes with the length of a JSON header,
the header, the tensors. No pickle: reading a file executes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lipcert.errors import CheckpointError
from lipcert.files import replacing

__all__ = ["read_file", "read_metadata", "write_file"]

# Files with longer headers are refused when written too, not only by the reader. (safetensors itself: 100 MB.)
MAX_HEADER = 64 * 2**20


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and strings; after a failure or a crash the file at ``path`` is the old one, whole.

    Folders that are missing are made.

    Raises:
        CheckpointError: it cannot be written, or its header would be too large to be read again.
    """
    names = sum(len(name.encode()) + 128 for name in tensors)
    if len(json.dumps(dict(metadata)).encode()) + names > MAX_HEADER:
        raise CheckpointError(
            f"cannot save {path}: what is to be saved beside the tensors is larger than "
            f"{MAX_HEADER // 2**20} MiB; put large lists of numbers into tensors"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"cannot save {path}: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The strings of a file, without its tensors.

    Raises:
        CheckpointError: the file is missing, cannot be read, or is no safetensors file.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER):
                raise CheckpointError(f"{path} is damaged or no safetensors file: its header does not fit")
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: its header is not JSON") from error
    metadata = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path} is damaged or no safetensors file: its header is not a table")
    return metadata


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors, on the CPU in memory of their own, and all strings.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or no safetensors file.
    """
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Copies: what safe_open gives may be a view of the file, which is about to be replaced.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
    return tensors, metadata
