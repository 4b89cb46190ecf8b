"""In which arithmetic a network is trained, and which layout of memory it cannot be trained in."""

from __future__ import annotations

import torch
from torch import nn

from lipcert.errors import ConfigError

__all__ = ["check_channels_last", "computes_bfloat16"]

_BLOCK = 16  # channels that oneDNN takes at a time: 16 with AVX-512, 8 without


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


def check_channels_last(model: nn.Module, device: torch.device) -> None:
    """Refuse layers of which oneDNN, in this layout, makes wrong gradients or writes outside of its memory.

    Raises:
        ConfigError: a convolution of 1 × 1 kernels with a stride and fewer than 16 channels, on a processor.

    Source: seen with torch 2.13 on a processor without AVX-512 (below 8 channels), and reported, for AVX-512 too, as
    oneDNN's issue 6035.

    >>> check_channels_last(nn.Conv2d(16, 32, 1, stride=2), torch.device("cpu"))
    >>> check_channels_last(nn.Conv2d(4, 16, 1, stride=2), torch.device("cpu"))
    Traceback (most recent call last):
    ...
    lipcert.errors.ConfigError: train.channels_last: torch's gradient of the layer '' (Conv2d(4, 16, kernel_size=(1, 1), stride=(2, 2))) is wrong on a processor in this layout, for fewer than 16 channels. Set train.channels_last=false, or give it 16 channels.
    """  # noqa: E501
    if device.type != "cpu":
        return
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.groups > 1 or layer.in_channels >= _BLOCK:
            continue
        if max(layer.kernel_size) == 1 and max(layer.stride) > 1:
            raise ConfigError(
                f"train.channels_last: torch's gradient of the layer '{name}' ({layer}) is wrong on a processor in "
                f"this layout, for fewer than {_BLOCK} channels. Set train.channels_last=false, or give it {_BLOCK} "
                "channels."
            )
