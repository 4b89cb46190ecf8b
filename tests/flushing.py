"""Subnormal numbers become zero, as the assumptions of rounded radii allow."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["flushing"]


@contextmanager
def flushing(flush: bool) -> Iterator[None]:
    """Run with subnormal numbers flushed to zero, or not.

    A processor that cannot flush runs without: what is claimed must hold for it too.
    """
    if flush:
        flushed = torch.set_flush_denormal(True)
        assert flushed or platform.machine().lower() not in ("x86_64", "amd64"), "every such processor can"
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_flush_denormal(False)
