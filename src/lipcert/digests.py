"""Hashes of tensors and texts: what files and certificates are recognised by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["digest"]


def digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of the tensors, and over the texts.

    >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)})
    True
    >>> digest({"a": torch.zeros(2)}) == digest({"a": -torch.zeros(2)})
    False
    """
    found = hashlib.sha256()
    for text in texts:
        found.update(f"{len(text.encode())}:".encode() + text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
