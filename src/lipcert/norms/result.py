"""What is known of the norm of one block, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Norm"]


@dataclass(frozen=True)
class Norm:
    """The 2-norm of a block, from above.

    Attributes:
        upper: not below the norm, except with probability ``failure``.
        lower: what the norm was seen to reach, up to rounding.
        method: ``"dense"``: from the explicit matrix; ``"cholesky"``: from its Gram matrix; ``"torus"``: the product
            of the norms of its layers, each by itself; ``"chebyshev"``: the randomised test.
        failure: 0 for a deterministic bound.
    """

    upper: float
    lower: float
    method: Literal["dense", "cholesky", "torus", "chebyshev"]
    failure: float = 0.0
