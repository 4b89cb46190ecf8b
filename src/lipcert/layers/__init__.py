"""Layers with a Lipschitz bound of their own, and the activations that models are built with."""

from __future__ import annotations

from lipcert.layers.activations import ACTIVATIONS, HalfAbs, MaxMin, make_activation
from lipcert.layers.blocked import BlockedConv2d, BlockedConvTranspose2d, BlockedLinear, blocked
from lipcert.layers.construction import by_construction
from lipcert.layers.fold import fold
from lipcert.layers.linear import LipschitzConv2d, LipschitzLinear, PairwiseLinear
from lipcert.layers.normalised import Normalised
from lipcert.layers.parts import Pool
from lipcert.layers.residual import ResidualConv2d, ResidualLinear
from lipcert.layers.smallgain import SmallGainConv2d, SmallGainLinear

__all__ = [
    "ACTIVATIONS",
    "BlockedConv2d",
    "BlockedConvTranspose2d",
    "BlockedLinear",
    "HalfAbs",
    "LipschitzConv2d",
    "LipschitzLinear",
    "MaxMin",
    "Normalised",
    "PairwiseLinear",
    "Pool",
    "ResidualConv2d",
    "ResidualLinear",
    "SmallGainConv2d",
    "SmallGainLinear",
    "blocked",
    "by_construction",
    "fold",
    "make_activation",
]
