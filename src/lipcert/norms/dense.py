"""Upper bounds by an explicit matrix: a basis is pushed through the smaller side, in float64.

What is returned is not below the norm of the real-arithmetic block of the stored weights. Three errors are added
to the computed norm:

* *forming* the block: every entry is a sum of products along paths, so it errs by at most γ_N·|T|, where |T| is the
  same map with all coefficients made positive and N the length of the longest chain of sums (in any order);
  ``‖|A|‖₂ ≤ √(‖|A|‖₁ ‖|A|‖_∞)`` costs two passes of |T|. A product that underflows errs by another 2⁻¹⁰²² at most,
  wherever it is, and grows with |T| from there.
* the *Gram matrix*, where one is formed: γ_m ‖A‖_F².
* the *decomposition*: backward stable, within a small multiple of n·u of the Frobenius norm.

Source: Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 3 (γ_n) and 18–20.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.loop import BlockMap, Group, LoopMap, Pair
from lipcert.norms.errors import TINY, UNIT, Lost, absolute_norm, gamma, relative_error, underflow
from lipcert.norms.result import Norm
from lipcert.norms.scaling import row_norms

__all__ = [
    "ROOM",
    "adjoint_rows",
    "basis",
    "block",
    "chunk",
    "dense_norms",
    "forming_error",
    "rows_error",
    "smaller_side",
    "spectral_norm_upper",
]

_DECOMPOSITION = 16.0  # a safe stand-in for LAPACK's modest polynomial, times the larger dimension
_MAX_SVD = 2048
_MEMORY = 2**28  # entries of matrices held at once where that saves passes (2 GiB)
_CHUNK = {"cpu": 2**21, "cuda": 2**25}  # entries of the widest layer in flight at once: few stay in a CPU's cache
ROOM = 64.0  # times n²·u: what it takes to show as much by a Cholesky factorisation of the Gram matrix


def _require_float64(loop: BlockMap) -> None:
    if loop.resolved.dtype != torch.float64:
        raise BoundError("upper bounds are computed in float64: resolve the graph with dtype=torch.float64.")


def chunk(loop: BlockMap) -> int:
    """How many rows may travel through the network at once."""
    widest = max(math.prod(node.shape) for node in loop.graph.nodes)
    return max(1, min(1024, _CHUNK.get(loop.resolved.device.type, 2**25) // widest))


def basis(start: int, stop: int, shape: tuple[int, ...], loop: BlockMap) -> Tensor:
    """Unit vectors start…stop of a space whose elements have this shape: (stop − start, *shape)."""
    size = math.prod(shape)
    rows = torch.zeros((stop - start, size), dtype=loop.resolved.dtype, device=loop.resolved.device)
    rows[torch.arange(stop - start), torch.arange(start, stop)] = 1.0
    return rows.reshape(stop - start, *shape)


def adjoint_rows(loop: BlockMap, target: int, sources: Iterable[int], start: int, stop: int) -> dict[int, Tensor]:
    """Rows ``start…stop`` of the blocks from each source to a target, flat: {source: (stop − start, n_j)}."""
    (rows,) = _passes(loop, target, sources, start, stop, stop - start)
    return rows


def _passes(
    loop: BlockMap, target: int, sources: Iterable[int], start: int, stop: int, step: int
) -> Iterator[dict[int, Tensor]]:
    """:func:`adjoint_rows`, so many at a time; what autograd goes back along is recorded once for all of them."""
    wanted = [j for j in sources if loop.connected(target, j)]
    recorded: tuple[int, Tensor, list[Tensor]] | None = None
    for begin in range(start, stop, step):
        end = min(begin + step, stop)
        if wanted and (recorded is None or recorded[0] != end - begin):
            plan = loop.plan([Group(end - begin, frozenset(wanted), frozenset({target}))])
            like = torch.zeros((), dtype=loop.resolved.dtype, device=loop.resolved.device)
            with torch.enable_grad():
                seeds = {j: like.new_zeros((end - begin, *loop.source_shape(j))).requires_grad_() for j in wanted}
                recorded = end - begin, loop.run(plan, seeds)[target], list(seeds.values())
        back: Sequence[Tensor] = ()
        if recorded is not None:
            _, out, leaves = recorded
            cotangents = basis(begin, end, loop.target_shape(target), loop)
            back = torch.autograd.grad(out, leaves, cotangents, retain_graph=True)
        yield {j: v.reshape(end - begin, -1) for j, v in zip(wanted, back, strict=True)}


def block(loop: BlockMap, pair: Pair) -> Tensor:
    """The explicit matrix A_kj (or its transpose, whichever has fewer rows)."""
    k, j = pair
    n_in, n_out = math.prod(loop.source_shape(j)), math.prod(loop.target_shape(k))
    step = chunk(loop)
    if n_out <= n_in:
        return _from_target(loop, k, [j])[j]
    parts = []
    for start in range(0, n_in, step):
        stop = min(start + step, n_in)
        plan = loop.plan([Group(stop - start, frozenset({j}), frozenset({k}))])
        with torch.no_grad():
            out = loop.run(plan, {j: basis(start, stop, loop.source_shape(j), loop)})
        parts.append(out[k].reshape(stop - start, -1))
    return torch.cat(parts)


def _from_target(loop: BlockMap, target: int, sources: Sequence[int]) -> dict[int, Tensor]:
    """The explicit matrices from several sources to one target, all by the same adjoint passes."""
    parts = list(_passes(loop, target, sources, 0, math.prod(loop.target_shape(target)), chunk(loop)))
    return {j: torch.cat([p[j] for p in parts]) for j in sources}


def _blocks(loop: LoopMap, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, Tensor]]:
    """The matrices of several blocks; those with few rows at the same target are made together, if memory allows."""
    alone: list[Pair] = []
    together: dict[int, list[int]] = {}
    for k, j in pairs:
        wide = math.prod(loop.target_shape(k)) <= math.prod(loop.source_shape(j))
        together.setdefault(k, []).append(j) if wide else alone.append((k, j))
    for k, sources in together.items():
        entries = math.prod(loop.target_shape(k)) * sum(math.prod(loop.source_shape(j)) for j in sources)
        if entries > _MEMORY:
            alone += [(k, j) for j in sources]
        else:
            yield from (((k, j), matrix) for j, matrix in _from_target(loop, k, sources).items())
    yield from ((pair, block(loop, pair)) for pair in alone)


def forming_error(loop: BlockMap, pair: Pair, lost: Lost) -> float:
    """A bound on ``‖fl(A_kj) − A_kj‖₂`` of the block as :func:`block` computes it; ``lost`` is :func:`underflow`."""
    k, j = pair
    entries = math.prod(loop.source_shape(j)) * math.prod(loop.target_shape(k))
    return relative_error(loop) * absolute_norm(loop, pair) + math.sqrt(entries) * max(lost[0][k], lost[1][j])


def rows_error(
    loop: BlockMap, target: int, sources: Iterable[int], start: int, stop: int, lost: Lost
) -> dict[int, Tensor]:
    """For each row of :func:`adjoint_rows` a bound on the 2-norm of its error: {source: (stop − start,)}."""
    sizes = loop.absolute()
    parts = [{j: row_norms(v) for j, v in p.items()} for p in _passes(sizes, target, sources, start, stop, chunk(loop))]
    lengths = {j: math.prod(loop.source_shape(j)) for j in parts[0]}
    return {
        j: relative_error(loop) * torch.cat([p[j] for p in parts]) * (1 + gamma(n + 4))
        + math.sqrt(n) * max(lost[0][target], lost[1][j])
        for j, n in lengths.items()
    }


def spectral_norm_upper(matrix: Tensor) -> float:
    """Not below ``‖matrix‖₂``, at any scale: the matrix is divided by a power of two first, which is exact."""
    largest = float(matrix.abs().max())
    if largest == 0.0:
        return 0.0
    if not math.isfinite(largest):
        raise BoundError("the bound is not finite: the weights are so large that a block overflows float64.")
    exponent = math.frexp(largest)[1]
    low, high = exponent // 2, exponent - exponent // 2
    value = _norm_of_scaled(matrix * math.ldexp(1.0, -low) * math.ldexp(1.0, -high))
    return max(value * math.ldexp(1.0, low) * math.ldexp(1.0, high), TINY)


def _norm_of_scaled(matrix: Tensor) -> float:
    rows, columns = matrix.shape
    frobenius = float(matrix.norm()) * (1 + gamma(rows * columns))
    if max(rows, columns) <= _MAX_SVD:
        value = _largest_singular_value(matrix)
        return value + _DECOMPOSITION * max(rows, columns) * UNIT * frobenius
    gram = matrix @ matrix.T
    top = float(torch.linalg.eigvalsh(gram.cpu())[-1])
    slack = gamma(columns) * frobenius**2 + _DECOMPOSITION * rows * UNIT * float(gram.norm())
    return math.sqrt(max(top, 0.0) + slack) * (1 + 4 * UNIT)


def _largest_singular_value(matrix: Tensor) -> float:
    try:
        return float(torch.linalg.svdvals(matrix.cpu())[0])  # by LAPACK, whose error is the one allowed for
    except RuntimeError as error:  # LAPACK did not converge
        raise BoundError(
            f"the singular values of a block of {matrix.shape[0]}×{matrix.shape[1]} could not be computed: {error}."
        ) from error


def smaller_side(loop: BlockMap, pair: Pair) -> int:
    """Rows of the smaller of A_kj and its transpose."""
    return min(math.prod(loop.source_shape(pair[1])), math.prod(loop.target_shape(pair[0])))


def dense_norms(loop: LoopMap, pairs: Iterable[Pair]) -> dict[Pair, Norm]:
    """Upper bounds on ‖A_kj‖₂ from explicit float64 matrices.

    Raises:
        BoundError: a block that is not finite, or of which no norm can be computed.
    """
    _require_float64(loop)
    norms, lost = {}, underflow(loop)
    for pair, matrix in _blocks(loop, pairs):
        value, forming, n = spectral_norm_upper(matrix), forming_error(loop, pair, lost), len(matrix)
        # what its Gram matrix can show: the least σ with σ² ≥ (value + e)² + c·e·(2σ + e), e = forming, c = √(2n)
        room = math.sqrt(2 * n)
        confirmable = room * forming + math.hypot(value + forming, math.sqrt(room * room + room) * forming)
        norms[pair] = Norm(confirmable * (1 + ROOM * (n + 4) ** 2 * UNIT), value + forming, "dense")
    return norms
