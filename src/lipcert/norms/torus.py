"""Norms of single convolutions of any size: frequency by frequency on a torus, deterministic, rounding included.

**From zeros to a torus.** Let ``y[m] = Σ_t w[t]·x[s·m + δ·t − p]`` for 0 ≤ m < M, x being zero outside 0…n−1. Put x
at its places on a circle of N points. Nothing changes as long as no place outside of 0…n−1 that is read falls on one
inside, that is for N ≥ n + p and N > b = s·(M−1) + δ·(k−1) − p, the last place read (entries beyond b need no place).
If s divides N and s·M ≤ N, the rows of the map are then M different rows of the circular convolution, its columns are
columns of it: a compression, whose norm is not larger. The same in each axis. The adjoint has the same norm.

**Stride.** With ``x_v[u] = x[s·u + v]`` for v = 0…s−1 (a mere relabelling) the place s·m + δ·t is entry m + ⌊δt/s⌋ of
x_v, v = δt mod s: a circular convolution of stride 1 on N/s points, of C_in·s channels, with each tap in one of them.

**Frequencies.** A circular convolution of stride 1 is diagonal in the unitary Fourier basis: its norm is the largest
``‖K(ω)‖₂``, ``K(ω) = Σ_r W_r·e^{i⟨r, ω⟩}``, over ω = 2πg/N; that of −ω is the same, as W is real.

**Fewer frequencies.** Along one axis with taps r = 0…R let S = ‖K(ω*)‖ be the largest of *all* ω, and u, v unit
vectors with u*K(ω*)v = S. Then ``q(ω) = Re(u*K(ω)v·e^{−iR(ω−ω*)/2})`` is a trigonometric polynomial of degree R in
ω/2, and |q| ≤ S = q(ω*): by M. Riesz's lemma q(ω) ≥ S·cos(R(ω − ω*)/2) for |ω − ω*| ≤ 2π/R. One of M > R points has
|ω − ω*| ≤ π/M, so S ≤ max over them / cos(πR/(2M)). Axis after axis, the cosines multiply. No torus is larger than
all frequencies, so this holds for images of any size. Positions with a common divisor may be divided by it there.

**Rounding.** The angle of a phase is made from integers, so it errs by some 100·u, and an entry of K(ω) by
ρ = 128·u + γ_{T+2} times Σ_r|W_r|. A Gram matrix G = KK* errs by 2γ_{2m+4}·‖K‖_F² for m columns, its eigenvalues by
a multiple of n·u·‖G‖_F, and a Cholesky factor of b·I − G shows λ_max(G) ≤ b + 8γ_{4(n+2)}·n·b, as in ``cholesky.py``
with γ_{4n} for complex sums. Eigenvalues are computed where that fails, and of one frequency to know what to try.

Sources: Sedghi, Gupta, Long, "The singular values of convolutional layers" (ICLR 2019), for the torus; M. Riesz (1914),
and Ehlich, Zeller, "Schwankung von Polynomen zwischen Gitterpunkten" (1964), for the lemma and its use on grids;
Higham, *Accuracy and Stability of Numerical Algorithms*, §3.6 (complex sums), Theorem 10.3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.graph.forms import CircularPadding, Convolution
from lipcert.norms.errors import TINY, UNIT, gamma

__all__ = ["circular_torus", "convolution_norm", "zero_padded_torus"]

_PHASE = 128 * UNIT
_DECOMPOSITION = 64.0  # times n·u·‖G‖: LAPACK's modest polynomial, for complex matrices
_ALLOWED = 8.0  # times the error of a textbook factorisation
_EXCESS = 1e-3  # what a norm may lose by looking at fewer frequencies than the torus has
_ENTRIES = 2**20  # complex numbers held at once, several times over
_POWERS = 8


def zero_padded_torus(form: Convolution, kernel: Sequence[int]) -> tuple[int, ...]:
    """The smallest torus of which a zero-padded convolution with a kernel of these sides is a compression.

    Example:
        >>> zero_padded_torus(Convolution((32,), (32,), (1,), (1,), (1,)), (3,))
        (33,)
        >>> zero_padded_torus(Convolution((32,), (16,), (2,), (1,), (1,)), (4,))
        (34,)
    """
    sides = []
    for n, m, s, p, d, k in zip(form.reads, form.writes, form.stride, form.padding, form.dilation, kernel, strict=True):
        read = s * (m - 1) + d * (k - 1) - p + 1
        side = max(read, min(n, read) + p, s * m)
        sides.append(-(-side // s) * s)
    return tuple(sides)


def circular_torus(pad: CircularPadding, form: Convolution, kernel: Sequence[int]) -> tuple[int, ...] | None:
    """The torus of circular padding and a convolution behind it, taken together; None where they do not make one.

    They do where the convolution adds no zeros, the stride divides the side, and no output comes twice.
    """
    if len(pad.amounts) != len(form.reads):
        return None
    sides = list(zero_padded_torus(form, kernel))
    for i, (front, behind) in enumerate(pad.amounts):
        if front or behind:
            side = form.reads[i] - front - behind
            if (
                min(front, behind) < 0
                or form.padding[i]
                or side % form.stride[i]
                or form.stride[i] * form.writes[i] > side
            ):
                return None
            sides[i] = side
    return tuple(sides)


def convolution_norm(
    weight: Tensor, torus: Sequence[int], *, stride: Sequence[int], dilation: Sequence[int], groups: int = 1
) -> float:
    """An upper bound on the 2-norm of a circular convolution, and of its adjoint, with rounding accounted for.

    ``max_ω ‖K(ω)‖₂``: see the head of this file. Where that is more than enough, a grid coarser than the torus is used,
    for up to 0.1 % in the result.

    Args:
        weight: (C_out, C_in/groups, *k), float64; for a transposed convolution torch's weight as it is.
        torus: N along each axis, a multiple of the stride.
        stride: s along each axis.
        dilation: δ along each axis.
        groups: into how many parts the channels fall.

    Raises:
        BoundError: weights that are not finite, or eigenvalues that cannot be computed.

    Example:
        Differences x[m+1] − x[m] on a circle are largest, 2, where the signs alternate:

        >>> w = torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64)
        >>> 2 <= convolution_norm(w, [10], stride=[1], dilation=[1]) < 2 + 1e-12
        True
        >>> 2 <= convolution_norm(w, [10**9], stride=[1], dilation=[1]) < 2.002
        True
    """
    weight = weight.detach().double().cpu()
    largest = float(weight.abs().max())
    if largest == 0.0:
        return 0.0
    if not math.isfinite(largest):
        raise BoundError("the bound is not finite: a convolution has weights that are not.")
    exponent = math.frexp(largest)[1]
    low, high = exponent // 2, exponent - exponent // 2
    weight = weight * math.ldexp(1.0, -low) * math.ldexp(1.0, -high)
    kernel, taps = _polyphase(weight, stride, dilation, groups)
    grids = [_grid(taps[:, i], n // s, taps.shape[1]) for i, (n, s) in enumerate(zip(torus, stride, strict=True))]
    value = _largest_norm(kernel, grids)
    for grid in grids:
        value = value / grid.least_share * (1 + 2 * UNIT)
    return max(value * math.ldexp(1.0, low) * math.ldexp(1.0, high), TINY)


def _polyphase(weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int) -> tuple[Tensor, Tensor]:
    """The kernel of stride 1, (groups, C_out/groups, channels, T), and the place of each of its taps, (T, axes)."""
    out, inside, *sides = weight.shape
    steps = list(itertools.product(*([(d * t) for t in range(k)] for k, d in zip(sides, dilation, strict=True))))
    places = [tuple(t // s for t, s in zip(step, stride, strict=True)) for step in steps]
    phases = [tuple(t % s for t, s in zip(step, stride, strict=True)) for step in steps]
    present = {phase: i for i, phase in enumerate(sorted(set(phases)))}
    flat = weight.reshape(out, inside, len(steps))
    kernel = flat.new_zeros((out, inside, len(present), len(steps)))
    for t, phase in enumerate(phases):
        kernel[:, :, present[phase], t] = flat[:, :, t]
    shape = (groups, out // groups, inside * len(present), len(steps))
    return kernel.reshape(shape), torch.tensor(places, dtype=torch.int64).reshape(len(steps), len(sides))


@dataclass(frozen=True)
class _Grid:
    """Along one axis: frequencies 2πg/points, the places of the taps, and what the largest norm seen is at least."""

    points: int
    places: Tensor
    least_share: float


def _grid(places: Tensor, side: int, axes: int) -> _Grid:
    reach = int(places.max())
    if reach == 0:  # all frequencies are alike
        return _Grid(1, places, 1.0)
    shared = math.gcd(*places.tolist())
    reach //= shared
    points = math.ceil(math.pi * reach / 2 / math.acos((1 + _EXCESS) ** (-1 / axes)))
    if side <= points:
        return _Grid(side, places, 1.0)
    return _Grid(points, places // shared, math.cos(math.pi * reach / (2 * points)) - 16 * UNIT)


def _phases(grids: Sequence[_Grid], start: int, stop: int) -> tuple[Tensor, Tensor]:
    """The real and imaginary part of e^{i⟨r, ω⟩} for each tap and each of some frequencies: (T, stop − start)."""
    rest, turns = torch.arange(start, stop), torch.zeros(1, dtype=torch.float64)
    for i, grid in reversed(list(enumerate(grids))):
        rest, index = (torch.zeros_like(rest), rest) if i == 0 else (rest // grid.points, rest % grid.points)
        turns = turns + (grid.places[:, None] * index % grid.points).double() / grid.points
    return torch.cos(2 * math.pi * turns), torch.sin(2 * math.pi * turns)


def _largest_norm(kernel: Tensor, grids: Sequence[_Grid]) -> float:
    """Not below ``‖K(ω)‖₂`` at any frequency of the grids; the largest weight is about 1."""
    groups, rows, columns, taps = kernel.shape
    points = [g.points for g in grids]
    real = all(n == 1 for n in points)
    total = 1 if real else (points[0] // 2 + 1) * math.prod(points[1:])  # the others are −ω of one of these
    step = max(1, _ENTRIES // (groups * rows * columns + taps))
    flat, best = kernel.reshape(-1, taps), 0.0
    for start in range(0, total, step):
        stop = min(start + step, total)
        if real:
            matrices = flat.sum(1, keepdim=True)
        else:
            cosines, sines = _phases(grids, start, stop)
            matrices = torch.complex(flat @ cosines, flat @ sines)
        matrices = matrices.T.reshape(-1, rows, columns)
        gram = matrices @ matrices.mH if rows <= columns else matrices.mH @ matrices
        best = _cover(gram, best)
    sizes = kernel.abs().sum(-1)
    frobenius = float(sizes.square().sum((1, 2)).max())
    spread = math.sqrt(float(sizes.sum(1).max()) * float(sizes.sum(2).max()))
    forming = _PHASE + 2 * gamma(taps + 2)
    square = best + 2 * gamma(2 * max(rows, columns) + 4) * frobenius * (1 + 2.0**-20)
    return (math.sqrt(square) + forming * spread * (1 + 2.0**-20)) * (1 + 16 * UNIT)


def _cover(gram: Tensor, best: float) -> float:
    """A number that no eigenvalue of these Hermitian matrices (B, n, n) exceeds: ``best``, if that is one."""
    n, take = gram.shape[-1], 1
    excess = _ALLOWED * gamma(4 * (n + 2)) * n + 4 * UNIT
    while True:
        if best > 0:
            gram = gram[~_below(gram, best / (1 + excess) * (1 - 4 * UNIT))]
        if not len(gram):
            return best
        if len(gram) > take:
            gram = gram[_estimates(gram).argsort(descending=True)]
        some, gram = gram[:take], gram[take:]
        size = float(torch.linalg.matrix_norm(some).max()) * (1 + gamma(2 * n * n))
        try:
            top = float(torch.linalg.eigvalsh(some)[:, -1].max())
        except RuntimeError as error:  # LAPACK did not converge
            raise BoundError(f"the eigenvalues of a convolution could not be computed: {error}.") from error
        # a little more than it needs to be, so that frequencies with the same norm are covered too
        best = max(best, (max(top, 0.0) + _DECOMPOSITION * n * UNIT * size) * (1 + 2 * excess), TINY)
        take *= 4


def _below(gram: Tensor, bound: float) -> Tensor:
    """For which of the matrices bound·I − G has a Cholesky factor."""
    rest = -gram
    rest.diagonal(dim1=-2, dim2=-1).add_(bound)
    found: Tensor = torch.linalg.cholesky_ex(rest).info == 0
    return found


def _estimates(gram: Tensor) -> Tensor:
    """Largest eigenvalues, from below and roughly: they only say which matrices to look at first."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn((gram.shape[-1], 1), generator=generator, dtype=torch.float64).to(gram.dtype)
    image = gram @ vector
    for _ in range(_POWERS):
        image = gram @ (image / torch.linalg.vector_norm(image, dim=1, keepdim=True).clamp_min(TINY))
    found: Tensor = torch.linalg.vector_norm(image, dim=(1, 2))
    return found
