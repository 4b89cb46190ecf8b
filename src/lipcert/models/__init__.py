"""Network architectures by name: ``build("6c2f", input_shape=(3, 32, 32), num_classes=10)``."""

from __future__ import annotations

from lipcert.layers import MaxMin

# Importing a file of builders registers them.
from lipcert.models import convnets, lipres, mlp, resnet
from lipcert.models.normalize import Normalize
from lipcert.models.registry import available, build, options_of, register

__all__ = [
    "MaxMin",
    "Normalize",
    "available",
    "build",
    "convnets",
    "lipres",
    "mlp",
    "options_of",
    "register",
    "resnet",
]
