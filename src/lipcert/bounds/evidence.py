"""What proves a small-gain bound, and what a search for one can start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.loop import LoopMap
from lipcert.norms.result import Norm
from lipcert.scaled import ScaledMap, weight_shapes

__all__ = ["KINDS", "Evidence", "Kind", "Scaling", "check_start", "fits"]

Kind = Literal["layer", "channel", "neuron"]
KINDS: tuple[Kind, ...] = ("layer", "channel", "neuron")


@dataclass(frozen=True, eq=False)
class Scaling:
    """The weights D_1…D_K of a small-gain bound: positive, for the free inputs w_k and results z_k.

    Attributes:
        kind: what shares a weight: ``"layer"``, ``"channel"`` or ``"neuron"``.
        weights: float64, on the CPU, each of a shape that broadcasts against z_k.
    """

    kind: Kind
    weights: tuple[Tensor, ...]

    def refined(self, loop: LoopMap, kind: Kind) -> Scaling:
        """The same weights with finer groups."""
        shapes = weight_shapes(loop, kind)
        return Scaling(kind, tuple(d.expand(s).clone() for d, s in zip(self.weights, shapes, strict=True)))


@dataclass(frozen=True, eq=False)
class Evidence:
    """What proves a small-gain bound: anybody can form S from it and prove its norm.

    Attributes:
        scaling: the weights, D.
        output: P, (C, C) float64, or a number for the output as a whole.
        norm: of S; None as long as nothing is proved.
    """

    scaling: Scaling
    output: Tensor | float
    norm: Norm | None = None

    def map(self, loop: LoopMap) -> ScaledMap:
        """S of a network."""
        device, output = loop.resolved.device, self.output
        weights = [d.to(dtype=loop.resolved.dtype, device=device) for d in self.scaling.weights]
        return ScaledMap(loop, weights, output.to(loop.resolved.scalar(0.0)) if isinstance(output, Tensor) else output)


def check_start(loop: LoopMap, scaling: Scaling, wanted: str) -> None:
    """Refuse weights to start from that are not such as this network and a scaling (or ``"auto"``) ask for.

    Raises:
        BoundError: they are of another kind or shape, not positive and finite, or finer than what is wanted.
    """
    if not isinstance(scaling, Scaling) or scaling.kind not in KINDS:
        raise BoundError("start must be the scaling of an earlier small-gain bound, such as bound.evidence.scaling.")
    if not all(isinstance(d, Tensor) for d in scaling.weights):
        raise BoundError("start must hold tensors of weights.")
    found, expected = [tuple(d.shape) for d in scaling.weights], weight_shapes(loop, scaling.kind)
    if found != expected:
        raise BoundError(f"start is of another network: its weights are of shapes {found}, not {expected}.")
    if not all(bool(((d > 0) & torch.isfinite(d)).all()) for d in scaling.weights):
        raise BoundError("start holds weights that are not positive, or not finite.")
    if wanted in KINDS and KINDS.index(scaling.kind) > KINDS.index(wanted):
        raise BoundError(f"start has weights for each {scaling.kind}, which is finer than scaling={wanted!r}.")


def fits(loop: LoopMap, evidence: Evidence) -> bool:
    """Whether the weights are of the shapes that this network asks for, and P of its output's."""
    expected = weight_shapes(loop, evidence.scaling.kind)
    classes = loop.target_shape(loop.depth + 1)
    square = not isinstance(evidence.output, Tensor) or evidence.output.shape == (*classes, *classes)
    return square and [tuple(d.shape) for d in evidence.scaling.weights] == expected
