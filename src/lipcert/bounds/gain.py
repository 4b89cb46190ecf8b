"""The gain matrix: for given weights D, the smallest N with Δy·Δyᵀ ≼ N·‖Δx‖², for all outputs and pairs at once.

With S_z : (x, p) ↦ D·z(x, p/D) the part of the scaled map (:mod:`lipcert.scaled`) without y, and Q = I − S_zᵀS_z, the
inequality ‖D·Δw‖ ≤ ‖D·Δz‖ of the network says ‖Δx‖² ≥ (Δx, Δp)ᵀQ(Δx, Δp). Where Q is positive definite (‖S_z‖ < 1),

    (h·Δy)² ≤ hᵀNh·‖Δx‖²  for every h,        N = T_y·Q⁻¹·T_yᵀ:

all of global (λ_max), per class (N_aa) and pairwise (N_aa + N_bb − 2N_ab) from one solution of Q·V = T_yᵀ by conjugate
gradients, C rows side by side. For any V, b_aᵀv_b + b_bᵀv_a − v_aᵀQv_b (b_a = T_yᵀe_a) is N to second order in its
error, and below N where V is not converged; its derivative in D at fixed V is that of N (envelope theorem).

``‖S_z‖ < 1`` is watched by following leading vectors of S_zᵀS_z as more rows of each product.

Source: the inequality is that of LipSDP (Fazlyab et al. 2019), by a Schur complement; N and its computation are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.loop import LoopMap
from lipcert.scaled import ScaledMap

__all__ = ["INFEASIBLE", "Probe", "Solution", "head_rows", "leading_part", "product", "solve"]

INFEASIBLE = 1 - 1e-5  # ‖S_z‖²
_PROBES = 4
_MOMENTUM = 0.2  # β at most
_NOTHING = 1e-4
_DEPENDENT = 1024  # of the precision, the square of what a vector must add to a span
_OUTSIDE = 0.3


def head_rows(loop: LoopMap, heads: Tensor) -> Tensor:
    """T_yᵀ of each head (m, *output_shape), flat: (m, n); divided by the weights it is b of :func:`solve`."""
    cotangents: list[Tensor | None] = [*[None] * loop.depth, heads]
    return torch.cat([v.reshape(len(heads), -1) for v in loop.adjoint(cotangents)], dim=1)


def product(scaled: ScaledMap, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``S_zᵀS_z·p`` and ``S_z·p`` for each row p, by one pass and one vector-Jacobian product."""
    with torch.enable_grad():
        leaf = rows.detach().requires_grad_()
        z, _ = scaled.values(leaf)
        if not z.shape[1]:
            return torch.zeros_like(rows), z.detach()
        (back,) = torch.autograd.grad(z, leaf, z.detach(), allow_unused=True)
    return torch.zeros_like(rows) if back is None else back, z.detach()


def leading_part(vectors: Tensor, images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of the span of some vectors (m, n), with images A·v, the leading right singular vectors of A there, and theirs.

    The vectors may be any, but for their length; the result is orthonormal, the leading one first.
    """
    sizes, turn = torch.linalg.eigh((vectors @ vectors.T).double())
    known = sizes > _DEPENDENT * torch.finfo(vectors.dtype).eps * sizes[-1]
    basis = turn[:, known] / sizes[known].sqrt()
    _, ritz = torch.linalg.eigh(basis.T @ (images @ images.T).double() @ basis)
    weights = (basis @ ritz.flip(1)[:, :count]).T.to(vectors)
    return weights @ vectors, weights @ images


@dataclass
class Probe:
    """The leading vectors of S_zᵀS_z as far as they are known, by subspace iteration with momentum.

    Several, as they come close together where D is good, and change places. A step is X ← S_zᵀS_z·X − β·X_before, made
    orthonormal. The best β is λ²/4, λ being the largest eigenvalue that has no vector here; the least of those that
    have one is taken for it, as eigenvalues below 2√β are not told apart.

    Attributes:
        vectors: (r, n), X.
        memory: (r, n), X_before in the basis of X; zero at first.
        seen: the largest ‖S_z‖² seen since it was set to 0.
    """

    vectors: Tensor
    memory: Tensor
    seen: float = 0.0

    @staticmethod
    def random(scaled: ScaledMap, seed: int = 0) -> Probe:
        """A Gaussian start."""
        generator = torch.Generator().manual_seed(seed)
        size = len(scaled.divisors)
        start = torch.randn((size, min(_PROBES, size)), generator=generator, dtype=torch.float64)
        vectors = torch.linalg.qr(start)[0].T.to(scaled.divisors).contiguous()
        return Probe(vectors, torch.zeros_like(vectors))

    def advance(self, images: Tensor) -> None:
        """One step, from S_zᵀS_z·vectors; the first vector is then the leading one.

        What is not finite is taken for infeasible.
        """
        projected = (images @ self.vectors.T).double()
        if not bool(torch.isfinite(projected).all()):
            self.seen = math.inf
            return
        quotients, turn = torch.linalg.eigh(projected)
        self.seen = max(self.seen, float(quotients[-1]))
        turn = turn.flip(1).T.to(images)
        momentum = min(_MOMENTUM, max(float(quotients[0]), 0.0) ** 2 / 4)
        basis, size = torch.linalg.qr((turn @ images - momentum * (turn @ self.memory)).T)
        scale = size.diagonal().abs()
        if float(scale.min()) > _NOTHING * float(scale.max()):
            self.memory = torch.linalg.solve_triangular(size.T, turn @ self.vectors, upper=False)
        else:
            self.memory = torch.zeros_like(self.memory)
        self.vectors = basis.T.contiguous()

    def include(self, vector: Tensor) -> None:
        """Take in a vector (n,) in place of the last one, unless it is nearly in their span."""
        unit = vector / vector.norm()
        if float((unit - (unit @ self.vectors.T) @ self.vectors).norm()) > _OUTSIDE:
            self.vectors = torch.linalg.qr(torch.cat([self.vectors[:-1], unit[None]]).T)[0].T.contiguous()
            self.memory = torch.zeros_like(self.memory)

    def iterate(self, scaled: ScaledMap, count: int) -> float:
        """Some steps by themselves; returns what ‖S_z‖² was seen to be."""
        self.seen = 0.0
        for _ in range(count):
            self.advance(product(scaled, self.vectors)[0])
        return self.seen


@dataclass(frozen=True)
class Solution:
    """What conjugate gradients found for some right-hand sides b (m, n).

    Attributes:
        vectors: (m, n), Q⁻¹b approximately.
        images: (m, Σ|z|), S_z of them.
        gain: (m, m), N in the basis of the heads that b belongs to; not above it, up to rounding.
        products: how many passes it took.
    """

    vectors: Tensor
    images: Tensor
    gain: Tensor
    products: int


def solve(
    scaled: ScaledMap,
    b: Tensor,
    start: Tensor | None,
    probe: Probe,
    *,
    tolerance: float,
    limit: int = 200,
) -> Solution | None:
    """Solve (I − S_zᵀS_z)·v = b for each row by conjugate gradients; None if ‖S_z‖ ≥ 1 was seen.

    Args:
        scaled: the scaled map at the present weights.
        b: (m, n), T_yᵀh divided by the weights.
        start: (m, n), what to start from.
        probe: followed as more rows; takes in a direction in which ‖S_z‖ ≥ 1.
        tolerance: of the residual, relative to b, in every row.
        limit: of iterations.
    """
    probe.seen, count, rows = 0.0, 0, len(b)

    def follow(p: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        image, z = product(scaled, torch.cat([p, probe.vectors]))
        probe.advance(image[rows:])
        return p - image[:rows], z

    tiny = torch.finfo(b.dtype).tiny
    if start is None:
        x, r = torch.zeros_like(b), b
    else:
        x, r = start, b - follow(start)[0]
    size = b.square().sum(1).clamp_min(tiny)
    p, rr = r, r.square().sum(1)
    while count < limit and bool((rr > tolerance**2 * size).any()):
        image, _ = follow(p)
        curvature = (p * image).sum(1)
        if not bool(torch.isfinite(curvature).all()):
            return None
        if bool((curvature < 0).any()):
            probe.include(p[int((curvature / p.square().sum(1).clamp_min(tiny)).argmin())])
            return None
        if probe.seen > INFEASIBLE:
            return None
        step = (rr / curvature.clamp_min(tiny)).masked_fill(rr == 0, 0.0)
        x, r = x + step[:, None] * p, r - step[:, None] * image
        new = r.square().sum(1)
        p, rr = r + (new / rr.clamp_min(tiny))[:, None] * p, new
    image, z = follow(x)
    if probe.seen > INFEASIBLE:
        return None
    cross = b @ x.T
    gain = cross + cross.T - x @ image.T
    return Solution(x, z[:rows], (gain + gain.T) / 2, count)
