"""Saving and loading: the whole state of a training run, and the weights alone.

Both are single safetensors files, written atomically and without pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.digests import digest
from lipcert.errors import CheckpointError
from lipcert.train.safefile import read_file, write_file
from lipcert.train.state_tree import flatten, unflatten

__all__ = ["check_matches", "load_state", "load_weights", "put_weights", "read_weights", "save_state", "save_weights"]

_STATE, _WEIGHTS = "lipcert-state", "lipcert-weights"
_VERSION = "1"
_AT_MOST = 20  # differences that one message lists


def _json(value: object, what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot save {what}: it must hold plain JSON values only ({error})") from error


def _stamp(kind: str, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> dict[str, str]:
    checked = {"format": kind, "version": _VERSION, **texts}
    return {**checked, "sha256": digest(tensors, *(checked[key] for key in sorted(checked)))}


def _verify(path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    found, version = metadata.get("format"), metadata.get("version")
    if found != kind:
        others = {
            _STATE: "is a training state: load it with load_state",
            _WEIGHTS: "holds weights only: load it with load_weights",
        }
        raise CheckpointError(f"{path} {others.get(str(found), 'was not written by lipcert')}")
    if version != _VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}, this lipcert reads {_VERSION!r}: use the lipcert that wrote it"
        )
    checked = [metadata[key] for key in sorted(metadata) if key != "sha256"]
    if metadata.get("sha256") != digest(tensors, *checked):
        raise CheckpointError(f"{path} is damaged: its contents do not have the checksum they were saved with")


def _parsed_header(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = json.loads(metadata["header"])
    except (KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its header is not JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is damaged: its header is not a table")
    return header


def save_state(path: str | Path, state: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Save a training state to one file, atomically.

    Args:
        path: of the file; an existing one is replaced only when the new one is complete on disk.
        state: nested mappings, lists and tuples of tensors, numbers, strings, booleans and None: model and
            optimizer state, counters, random-number states. Keys are strings or integers.
        header: plain JSON values that say what it is the state of, for :func:`check_matches`.

    Raises:
        CheckpointError: something that cannot be saved, or a file that cannot be written.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "run.safetensors"
    >>> save_state(file, {"step": 3, "w": torch.ones(2, dtype=torch.bfloat16)}, {"model": "mlp"})
    >>> load_state(file)
    ({'step': 3, 'w': tensor([1., 1.], dtype=torch.bfloat16)}, {'model': 'mlp'})
    """
    tree, tensors = flatten(state)
    texts = {"tree": _json(tree, "the state"), "header": _json(dict(header), "the header")}
    write_file(Path(path), tensors, _stamp(_STATE, tensors, texts))


def load_state(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load what :func:`save_state` saved.

    Returns:
        The state, with tensors bit for bit as they were but on the CPU and contiguous, mappings as ``dict``;
        and the header.

    Raises:
        CheckpointError: the file is missing, damaged, truncated, of another format version, or no such file.
    """
    path = Path(path)
    tensors, metadata = read_file(path)
    _verify(path, _STATE, tensors, metadata)
    try:
        state = unflatten(json.loads(metadata["tree"]), tensors)
    except (CheckpointError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return state, _parsed_header(path, metadata)


def _differences(found: object, wanted: object, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted({*found, *wanted}, key=str):
            inner = f"{path}.{key}" if path else str(key)
            if key not in found:
                yield f"{inner}: absent in the checkpoint, {wanted[key]!r} here"
            elif key not in wanted:
                yield f"{inner}: {found[key]!r} in the checkpoint, absent here"
            else:
                yield from _differences(found[key], wanted[key], inner)
    elif found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
        yield f"{path}: {found!r} in the checkpoint, {wanted!r} here"


def check_matches(header: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another model or configuration.

    Every key of ``expected`` must be in ``header`` with the same value; nested mappings are compared whole.
    Further keys of the header (a date, a step) are not looked at.

    Raises:
        CheckpointError: listing what differs.

    >>> check_matches({"model": {"name": "4c3f"}, "step": 7}, {"model": {"name": "6c2f"}})
    Traceback (most recent call last):
    ...
    lipcert.errors.CheckpointError: the checkpoint belongs to another run:
      - model.name: '4c3f' in the checkpoint, '6c2f' here
    """
    wanted = json.loads(_json(dict(expected), "what is expected"))  # tuples become lists, as in a file
    found = {key: value for key, value in header.items() if key in wanted}
    lines = list(_differences(json.loads(_json(found, "the header")), wanted, ""))
    if lines:
        more = [f"and {len(lines) - _AT_MOST} more"] if len(lines) > _AT_MOST else []
        listed = "".join(f"\n  - {line}" for line in lines[:_AT_MOST] + more)
        raise CheckpointError(f"the checkpoint belongs to another run:{listed}")


def _weights(module: nn.Module) -> dict[str, Tensor]:
    weights = module.state_dict()
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"cannot save the weights: '{name}' of the module's state is not a tensor")
    return weights


def save_weights(path: str | Path, module: nn.Module, header: Mapping[str, Any] | None = None) -> None:
    """Save the parameters and buffers of a module, and nothing else, to one safetensors file, atomically.

    The tensors have their names in ``module.state_dict()``, so that other programs can read the file.

    Args:
        path: of the file.
        module: its ``state_dict()`` must hold tensors only.
        header: plain JSON values that say what it is, returned by :func:`load_weights`.

    Raises:
        CheckpointError: something that cannot be saved, or a file that cannot be written.
    """
    _, tensors = flatten(_weights(module))
    texts = {"header": _json(dict(header or {}), "the header")}
    write_file(Path(path), tensors, _stamp(_WEIGHTS, tensors, texts))


def _holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every value of the second dtype is one of the first."""
    if wide == narrow:
        return True
    try:
        return torch.promote_types(wide, narrow) == wide
    except RuntimeError:  # the eight-bit floats are promoted to nothing
        return False


def _mismatches(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    def first(names: list[str]) -> str:
        return f"{len(names)} (first: {names[0]})"

    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    common = [name for name in wanted if name in found]
    shapes = [
        f"{name} has shape {tuple(found[name].shape)}, the module's {tuple(wanted[name].shape)}"
        for name in common
        if found[name].shape != wanted[name].shape
    ]
    # Into a wider dtype a weight goes unchanged; into a narrower one it would be another network.
    dtypes = [
        f"{name} is {found[name].dtype}, the module's {wanted[name].dtype} cannot hold it exactly"
        for name in common
        if not _holds(wanted[name].dtype, found[name].dtype)
    ]
    lines = [f"missing in the file: {first(missing)}"] if missing else []
    lines += [f"not in the module: {first(unexpected)}"] if unexpected else []
    lines += [f"other shapes: {first(shapes)}"] if shapes else []
    return lines + ([f"other dtypes: {first(dtypes)}"] if dtypes else [])


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`save_weights`, or any safetensors file, and check what can be checked without its module.

    Returns:
        The tensors, on the CPU, and the header given to :func:`save_weights`; empty for files from elsewhere.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = Path(path)
    tensors, metadata = read_file(path)
    if not metadata.get("format", "").startswith("lipcert"):
        return tensors, {}
    _verify(path, _WEIGHTS, tensors, metadata)
    return tensors, _parsed_header(path, metadata)


def put_weights(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Put weights into a module of the same architecture, strictly; on an error it is left as it was.

    Args:
        module: changed in place; its device is kept, and its dtype, which must hold the weights exactly.
        tensors: with the names of its ``state_dict()``.
        path: of the file that they come from, for the message.

    Raises:
        CheckpointError: keys, shapes or dtypes do not fit.
    """
    lines = _mismatches(tensors, _weights(module))
    if lines:
        listed = "".join(f"\n  - {line}" for line in lines)
        raise CheckpointError(f"the weights in {path} do not fit the module:{listed}")
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the module refuses the weights in {path}: {error}") from error


def load_weights(path: str | Path, module: nn.Module) -> dict[str, Any]:
    """Load weights into a module of the same architecture, strictly; on an error it is left as it was.

    Args:
        path: a file of :func:`save_weights`, or any safetensors file with the names of the ``state_dict()``.
        module: changed in place; its device is kept, and its dtype, which must hold the weights exactly.

    Returns:
        The header given to :func:`save_weights`; empty for files from elsewhere.

    Raises:
        CheckpointError: the file is missing or damaged, or has keys, shapes or dtypes that do not fit.

    >>> import tempfile
    >>> file, net = Path(tempfile.mkdtemp()) / "net.safetensors", nn.Linear(2, 3)
    >>> save_weights(file, net, {"name": "linear"})
    >>> load_weights(file, nn.Linear(2, 3))
    {'name': 'linear'}
    """
    tensors, header = read_weights(path)
    put_weights(module, tensors, path)
    return header
