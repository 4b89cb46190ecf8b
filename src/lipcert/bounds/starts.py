"""Weights D to start the search for a small-gain bound from, for the whole of a network at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lipcert.bounds.evidence import Kind, Scaling
from lipcert.bounds.gain import Probe
from lipcert.bounds.scaling import steepest
from lipcert.errors import BoundError
from lipcert.loop import LoopMap, Pair
from lipcert.scaled import ScaledMap, levels, weight_shapes

__all__ = ["balanced_start", "feasible_start"]

_STARTS = 100
_NO_FLOW = 1e-12
_LEAST = 1e-80  # of m_k: weights that are larger cannot stand in a certificate
_PROBED = 1e6  # entries of all Gaussian vectors together
_LOOKS, _LOOK_CLOSE = 60, 1e-4


def feasible_start(loop: LoopMap, hidden: Mapping[int, float], norms: Mapping[Pair, float] | None = None) -> Scaling:
    """One weight a layer with ‖S_z‖ < 1, from Lipschitz constants m_k of x ↦ z_k: D_k = t^level·√e_k/m_k.

    With ‖A_kj‖ (k = K + 1 for y), LipLT sends a share s_kj = ‖A_kj‖·m_j/m_k of m_k to source j. Let 1 flow in at y, and
    e_j = Σ_k s_kj·e_k be what comes by at z_j. As ‖z_k‖² ≤ m_k·Σ_j ‖A_kj‖·‖w_j‖²/m_j (Cauchy and Schwarz), t = 1 proves
    LipLT's own bound; without the norms, e = 1. ‖S_z‖ shrinks by t at least, so some t is small enough.

    Raises:
        BoundError: a pass overflows.
    """
    steps = levels(loop)
    ones = weight_shapes(loop, "layer")
    logs = [-math.log(max(hidden[k], _LEAST)) for k in range(1, loop.depth + 1)]
    if norms:
        logs = [v + 0.5 * math.log(e) for v, e in zip(logs, _flow(loop, hidden, norms), strict=True)]
    else:
        logs = [v - 0.35 * n for v, n in zip(logs, steps[1:], strict=False)]
    weights = [torch.full(s, math.exp(v), dtype=torch.float64) for s, v in zip(ones, logs, strict=True)]
    limits = (0.99, 0.97) if norms else (0.9, 0.85)
    return _loosened(loop, Scaling("layer", tuple(weights)), _glance, *limits)


def balanced_start(loop: LoopMap, kind: Kind, *, seed: int = 0) -> Scaling | None:
    """Weights with ‖S_z‖ < 1 from what enters and leaves each group: ``D² = t^level·‖A_y,g‖/‖A_g,0‖`` for group g.

    With W to an activation and B from it that is ‖B_i‖/‖W_i‖: of a block x − WᵀT⁻¹φ(Wx) with slopes in [0, 2] just
    the weights that prove it (D² = T⁻¹). The norms are those of Frobenius, from products with Gaussian vectors. None
    where some activation has no block from x or to y, as behind slopes in [−1, 1]: nothing is there to be balanced.

    Raises:
        BoundError: a pass overflows.
    """
    entries = sum(math.prod(loop.source_shape(j)) for j in range(loop.depth + 1))
    rows = int(min(max(_PROBED / entries, 16), 256))
    generator = torch.Generator().manual_seed(seed)

    def gaussian(shape: Sequence[int]) -> Tensor:
        made = torch.randn((rows, *shape), generator=generator, dtype=torch.float64)
        return made.to(dtype=loop.resolved.dtype, device=loop.resolved.device)

    *entering, _ = loop.forward([gaussian(loop.source_shape(0)), *[None] * loop.depth])
    _, *leaving = loop.adjoint([*[None] * loop.depth, gaussian(loop.target_shape(loop.depth + 1))])
    weights = []
    for shape, z, w in zip(weight_shapes(loop, kind), entering, leaving, strict=True):
        into, out = (v.double().square().mean(0).cpu() for v in (z, w))
        if not (float(into.sum()) > 0 and float(out.sum()) > 0):
            return None
        ratio = [v.sum_to_size(shape) / v.sum() for v in (out, into)]
        scale = out.sum() / into.sum()
        found = scale.clamp(1e-60, 1e60) * (ratio[0] + _NO_FLOW) / (ratio[1] + _NO_FLOW)
        weights.append(found**0.25)
    return _loosened(loop, Scaling(kind, tuple(weights)), _look, 0.995, 0.995)


def _glance(scaled: ScaledMap) -> float:
    """‖S_z‖², roughly."""
    return Probe.random(scaled).iterate(scaled, 12)


def _look(scaled: ScaledMap) -> float:
    """‖S_z‖² of weights of which many singular values may be close to the largest."""
    return steepest(scaled, tolerance=_LOOK_CLOSE, products=_LOOKS)[0]


def _loosened(loop: LoopMap, start: Scaling, look: Callable[[ScaledMap], float], enough: float, aim: float) -> Scaling:
    """The weights D_k·t^level with ‖S_z‖² below ``enough``; each t aims at ``aim`` for ‖S_z‖."""
    steps, like = levels(loop), loop.resolved
    weights = list(start.weights)
    for _ in range(_STARTS):
        scaled = ScaledMap(loop, [d.to(dtype=like.dtype, device=like.device) for d in weights], None)
        seen = look(scaled)
        if seen < enough:
            return Scaling(start.kind, tuple(weights))
        if not math.isfinite(seen):
            break
        shrink = min(math.log(aim / math.sqrt(seen)), -1e-3)
        weights = [d * math.exp(steps[k] * shrink) for k, d in enumerate(weights, start=1)]
    raise BoundError(f"there are no weights to start a small-gain bound from in {like.dtype}: use method='liplt'.")


def _flow(loop: LoopMap, hidden: Mapping[int, float], norms: Mapping[Pair, float]) -> list[float]:
    """e_1 … e_K; not below what leaves a weight that nothing depends on positive."""
    last = loop.depth + 1
    constants = {0: 1.0, **hidden}
    constants[last] = sum(norms.get((last, j), 0.0) * constants[j] for j in range(last))
    arrived = {last: 1.0}
    for k in range(last, 0, -1):
        for j in range(k):
            share = norms.get((k, j), 0.0) * constants[j] / max(constants[k], _LEAST)
            arrived[j] = arrived.get(j, 0.0) + min(share, 1.0) * arrived.get(k, 0.0)
    return [max(arrived.get(k, 0.0), _NO_FLOW) for k in range(1, last)]
