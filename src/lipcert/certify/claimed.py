"""What a certificate claims of norms, compared with what they are seen to reach, and confirmed by another method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from lipcert.bounds.evidence import Evidence
from lipcert.certify.report import NotChecked, Refuted
from lipcert.graph.capture import ordinary_mode
from lipcert.loop import LoopMap, Pair
from lipcert.norms import Norm, estimate_norms
from lipcert.norms.confirm import confirm_norms
from lipcert.norms.scaled import confirm_scaled

__all__ = ["TOLERANCE", "Claimed"]

TOLERANCE = 1e-9
"""By which two machines may differ in a bound or an estimate."""


@dataclass(frozen=True, eq=False)
class Claimed:
    """What is claimed of the norms of a network, or of a part of it: ``of`` says which, for messages.

    ``known`` is what is claimed of its blocks elsewhere, and confirmed there.
    """

    of: str
    loop: LoopMap
    norms: Mapping[Pair, Norm]
    evidence: Evidence | None
    known: Mapping[Pair, Norm] = field(default_factory=dict)

    @property
    def scaled(self) -> Norm:
        """What is claimed of the scaled map."""
        assert self.evidence is not None
        assert self.evidence.norm is not None
        return self.evidence.norm

    def below(self) -> None:
        """No claimed norm is below what a Lanczos iteration reaches."""
        with ordinary_mode(), torch.no_grad():
            seen = estimate_norms(self.loop, list(self.norms))
        for pair, claim in self.norms.items():
            if claim.upper < float(seen[pair]) * (1 - TOLERANCE):
                reached = f"its norm reaches {float(seen[pair]):.9g}, claimed is {claim.upper:.9g}"
                raise Refuted(f"block {pair}{self.of}: {reached}")
        if self.evidence is None:
            return
        with ordinary_mode(), torch.no_grad():
            most = float(estimate_norms(self.evidence.map(self.loop), [(1, 0)])[1, 0])
        if not self.scaled.upper >= most * (1 - TOLERANCE):  # nor where it overflows
            raise Refuted(f"the norm of the scaled map{self.of} reaches {most:.9g}, claimed is {self.scaled.upper:.9g}")

    def confirmed(self, limit: int, failure: float) -> tuple[Counter[str], list[str]]:
        """By which methods the norms of the blocks, and that of the scaled map if there is one, are confirmed."""
        share = failure if self.evidence is None else failure / 2
        found = confirm_norms(self.loop, self.norms, limit=limit, failure=share)
        left = [pair for pair in self.norms if pair not in found]
        if left:
            raise NotChecked(
                f"{len(left)} of {len(self.norms)} norms{self.of} could not be confirmed, the first that of block "
                f"{left[0]}: allow a probability of failure, or form larger matrices"
            )
        ways = Counter(f"{self.norms[pair].method} by {method}" for pair, method in found.items())
        if self.evidence is None:
            return ways, []
        norms = {pair: norm.upper for pair, norm in (self.known or {p: self.norms[p] for p in found}).items()}
        way = confirm_scaled(self.evidence.map(self.loop), self.scaled, limit=limit, failure=share, norms=norms)
        if way is None:
            raise NotChecked(
                f"the norm of the scaled map{self.of} could not be confirmed: allow a probability of failure"
            )
        return ways, [f"{self.scaled.method} by {way}"]
