"""A nested training state as one JSON document and a flat dictionary of tensors, and back.

Mappings, lists and tuples of tensors, strings, numbers, booleans and None. JSON has no tuples, no integer keys
and no NaN, and an optimizer's state has all three, so that these are written as objects with one marked key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lipcert.errors import CheckpointError

__all__ = ["flatten", "unflatten"]


def _plain(tensor: Tensor, path: str) -> Tensor:
    """A dense, contiguous copy on the CPU that shares memory with nothing: what a file can hold."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        raise CheckpointError(f"cannot save {path}: a {kind} tensor; make it dense (.to_dense()) first")
    resolved = tensor.detach().resolve_conj().resolve_neg()
    return resolved.cpu().clone(memory_format=torch.contiguous_format)


def _key(key: object, path: str) -> str | int:
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise CheckpointError(f"cannot save {path}: the key {key!r} is neither a string nor an integer")
    return key


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path
        # The keys 1 and "1" of one mapping give the same path, and two names are not for tensors.
        while name in tensors or name in ("", "__metadata__"):
            name += "'"
        tensors[name] = _plain(value, path)
        return {"tensor": name}
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    prefix = f"{path}/" if path else ""
    if isinstance(value, Mapping):
        pairs = [[_key(k, path), _encode(v, f"{prefix}{k}", tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        items = [_encode(v, f"{prefix}{i}", tensors) for i, v in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    raise CheckpointError(
        f"cannot save {path or 'the state'}: it is a {type(value).__name__}; a state holds tensors, numbers, "
        "strings, booleans, None, and mappings, lists and tuples of them. Convert it (torch.as_tensor, .item())"
    )


def flatten(state: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Take the tensors out of a nested state.

    Returns:
        A JSON document in which each tensor is replaced by its name, and copies of the tensors by name. A name
        is the path to the tensor, for example ``model/conv1.weight``.

    Raises:
        CheckpointError: something that is neither a tensor nor plain, with its path.

    >>> tree, tensors = flatten({"model": {"w": torch.zeros(2)}, "step": 3})
    >>> tree
    {'dict': [['model', {'dict': [['w', {'tensor': 'model/w'}]]}], ['step', 3]]}
    >>> list(tensors)
    ['model/w']
    """
    tensors: dict[str, Tensor] = {}
    return _encode(state, "", tensors), tensors


def _decode(node: Any, tensors: Mapping[str, Tensor], seen: set[str]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors, seen) for item in node]
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        seen.add(content)
        return tensors[content]
    if kind == "dict":
        return {_key(k, "a mapping"): _decode(v, tensors, seen) for k, v in content}
    if kind == "tuple":
        return tuple(_decode(item, tensors, seen) for item in content)
    if kind == "float":
        return float(content)
    raise ValueError(f"unknown mark {kind!r}")


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of :func:`flatten`; mappings come back as ``dict``.

    Raises:
        CheckpointError: the document is not one that :func:`flatten` makes, or not of these tensors.

    >>> unflatten(*flatten({"betas": (0.9, 0.999), "state": {0: [None, float("inf")]}}))
    {'betas': (0.9, 0.999), 'state': {0: [None, inf]}}
    """
    seen: set[str] = set()
    try:
        state = _decode(tree, tensors, seen)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"the description of its contents does not fit them ({error})") from error
    if not isinstance(state, dict) or seen != set(tensors):
        raise CheckpointError("the description of its contents does not fit them")
    return state
