"""In which arithmetic a network is trained."""

from __future__ import annotations

import torch

__all__ = ["computes_bfloat16"]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, in place of emulating it, which takes many times as long.

    >>> isinstance(computes_bfloat16(torch.device("cpu")), bool)
    True
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # absent where torch is without oneDNN
        return known is not None and bool(known())
    return True  # nothing is known of it
