"""Rounding of the executed network: how far its logits may be from those of real arithmetic, anywhere in a ball.

For a sample x and every input x′ with ‖x′ − x‖ ≤ R, the logits that a float32 (or float64) execution computes at x′
differ from the real-arithmetic ones by at most

    |(ŷ_a − ŷ_b) − (y_a − y_b)| ≤ E_ab = e_ab + f_ab·R.

*One segment*, the affine map S_k from the input and the activations before z_k: a sum of n terms, made in any order
and with or without fused multiply-adds, errs by at most γ_{n+1}·max(P, N), where P and N are the sums of its positive
and of its negative terms: no partial sum can be larger. As P + N = |S||u| + |b| and P − N = z, max(P, N) is the mean of
|S||u| + |b| and |z|: one pass of |S| for each sample. Away from x, |û(x′) − u(x)| adds ‖|S|‖ times its norm. Its norm
is η_k; an activation that is not computed exactly adds θ_k.

*The rest of the network* sees η_k as a change of z_k. In the loop transformation the errors of the z_k obey LipLT's own
recursion, with the norms that the bound was proved by; with F for what the last segment adds,

    μ_k = η_k + Σ_{j<k} ‖A_kj‖·g_j,     g_j = μ_j + max|c_j/r_j|·η_j + θ_j/min r_j,
    E_ab = Σ_j ‖(e_a − e_b)ᵀA_yj‖·g_j + F_a + F_b.

*A row of parts* (:mod:`lipcert.bounds.parts`), where the bound knows each part's constants: part p, of Lipschitz
constant c_p, executed on what the parts before it gave, is at most ε_p = c_p·ε_{p−1} + λ_p from the truth, λ_p being
what it loses itself: E of the part, in a ball around u_{p−1}(x) of radius U_{p−1}·R + ε_{p−1}, where U_p is a constant
of all up to its end. With L_ab(p) for those of all behind it,

    |(ŷ_a − ŷ_b) − (y_a − y_b)| ≤ Σ_p L_ab(p)·λ_p + E_ab of the last part.

No segment goes on behind a merge then; along the shortcuts of a residual network |S| would grow from block to block,
which the network does not.

No product of norms and errors is lost to underflow: 2⁻¹⁰²² is added wherever one is made.

What is assumed of the execution is listed in :data:`ASSUMPTIONS`.

Sources: Higham, *Accuracy and Stability of Numerical Algorithms*, ch. 3 and 4 (sums in any order); Murray, arXiv
2603.13334 (2026), for taking E off the margin. Carrying η through the loop transformation is ours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lipcert.bounds.result import UpperBound
from lipcert.bounds.rows import constants_behind, constants_until, row
from lipcert.certify.arithmetic import Arithmetic, Precision, at_zero, count, gamma, granted, segment_roundings
from lipcert.certify.resting import Resting, flat_sides
from lipcert.errors import BoundError
from lipcert.graph import Graph
from lipcert.graph.types import Affine, Coefficient, Elementwise, Node, Nonlinear
from lipcert.loop import LoopMap
from lipcert.norms.errors import TINY, absolute_norm, underflow
from lipcert.norms.scaling import row_norms

__all__ = [
    "ASSUMPTIONS",
    "Account",
    "Errors",
    "Recursion",
    "Rounding",
    "check_tf32",
    "far_from",
    "require",
]

ASSUMPTIONS = (
    "the module runs operation by operation, in eval mode, on inputs and weights of this dtype, without autocast",
    "each addition, multiplication, fused multiply-add and division is rounded to the nearest number of this dtype; "
    "sums may be made in any order",
    "no convolution or matrix product in TF32 or bfloat16, or by Winograd's method or FFT "
    "(torch.backends.cudnn.allow_tf32 and torch.backends.cuda.matmul.allow_tf32 off)",
    "subnormal numbers may be flushed to zero",
    "activations that are not piecewise linear err by at most 16 units in the last place of |φ(0)| + max|φ'|·|z|",
    "the same operation on the same numbers gives the same result",
)


_SAFE = 1 + 2.0**-20  # covers the float64 arithmetic of this file, and what float64 does to the values at x
_FAR = 2.0**10  # no radius is claimed beyond this many times the input's own size
_STEEP = 2.0**10  # where c/r is larger, the uncentred map is the better one


@dataclass(frozen=True, eq=False)
class Account:
    """``E_ab = e_ab + f_ab·R`` of a batch, in parts; the last dimension of each holds (e, f).

    Attributes:
        sources: for each source j of the bound's heads, g_j: (N, 2).
        heads: the norms ‖row·A_yj‖ that go with them: scalars, or in the bound's shape.
        final: (N, C, 2), what the last segment adds to each logit.
    """

    sources: dict[int, Tensor]
    heads: dict[int, Tensor]
    final: Tensor

    @staticmethod
    def join(parts: Sequence[Account]) -> Account:
        """Of several batches, one."""
        first = parts[0]
        sources = {j: torch.cat([p.sources[j] for p in parts]) for j in first.sources}
        return Account(sources, first.heads, torch.cat([p.final for p in parts]))


@dataclass(frozen=True, eq=False)
class Rounding:
    """What execution adds to the logits of a batch.

    Attributes:
        accounts: each says it all; of each coefficient e_ab and f_ab the least counts. The first is that of this file,
            the second, where the bound is by small gain, that of :mod:`lipcert.certify.weighed`.
        reach: (N,), the largest R for which nothing overflows; 0 where something does at x.
        precision: the arithmetic that it is of.
        near: None, or one more account, and (N,) R up to which alone it holds; its f is that of the second.
    """

    accounts: tuple[Account, ...]
    reach: Tensor
    precision: Precision
    near: tuple[Account, Tensor] | None = None

    @staticmethod
    def join(parts: Sequence[Rounding]) -> Rounding:
        """Of several batches, one."""
        accounts = tuple(Account.join(each) for each in zip(*(p.accounts for p in parts), strict=True))
        nears = [p.near for p in parts if p.near is not None]  # of all batches, or of none
        near = (Account.join([a for a, _ in nears]), torch.cat([r for _, r in nears])) if nears else None
        return Rounding(accounts, torch.cat([p.reach for p in parts]), parts[0].precision, near)


def _rounds(node: Node) -> bool:
    return isinstance(node, Affine) and node.roundings != 0


def _row_norms(value: Tensor) -> Tensor:
    return row_norms(value.reshape(len(value), math.prod(value.shape[1:])).double()) * _SAFE


class Errors:
    """Watches an evaluation, and bounds entry by entry what rounding adds to each node since the last activation.

    Attributes:
        errors: of the nodes that are still needed, entry by entry; None: nothing.
        local: (N,), the norm of those of each z_k.
        sizes: (N,), ‖z_k‖ where the activation rounds.
        ends: (N,), the norm of those of each node of ``cuts``, behind which the next part begins without.
        weighed, weighed_sizes: as ``local`` and ``sizes``, of D_k times the same, where weights are given.
        resting: then also, of z_k that an activation is flat behind, D_k times the errors by how far z_k is from where
            that ends.
    """

    def __init__(
        self,
        loop: LoopMap,
        arithmetic: Arithmetic,
        dtype: torch.dtype,
        cuts: Iterable[int] = (),
        weights: Sequence[Tensor] = (),
        caution: float = 0.0,
    ) -> None:
        self.loop, self.arithmetic, self.dtype = loop, arithmetic, dtype
        self.cuts, self.weights, self.caution = frozenset(cuts), list(weights), caution
        self.sides = {k: sides for k in range(1, len(self.weights) + 1) if (sides := flat_sides(loop, k)) is not None}
        absolute = loop.resolved.absolute()
        self.live = loop.resolved.live
        self.coefficients = [
            [c.to(dtype) * (1 + 2.0**-20 if _rounds(node) else 1) if isinstance(c, Tensor) else c for c in cs]
            for node, cs in zip(loop.graph.nodes, absolute.coefficients, strict=True)
        ]
        self.offsets = {n.index: n.offset_terms(self.live).to(dtype) for n in loop.graph.nodes if isinstance(n, Affine)}
        self.lost = [self._lost(n, cs) for n, cs in zip(loop.graph.nodes, absolute.coefficients, strict=True)]
        self.targets = {n.index: k for k, n in enumerate(loop.nonlinear, start=1)}
        self.last = {i: n.index for n in loop.graph.nodes for i in n.inputs}
        self.reset()

    def _lost(self, node: Node, coefficients: Sequence[Coefficient]) -> tuple[float, float]:
        """What flushing one subnormal number to zero changes in an entry, and what more for each unit of the operands.

        A product, an operand or an offset that is subnormal costs a bounded amount; a coefficient costs in proportion.
        """
        if not isinstance(node, Affine) or not (roundings := count(self.loop, node)):
            return 0.0, 0.0
        amplified = 1.0 if node.amplifies is None else max(1.0, float(node.amplifies(self.live).abs().max()))
        tiny = self.arithmetic.tiny * amplified
        values = [torch.as_tensor(c, dtype=torch.float64) for c in coefficients]
        each = 4 * (roundings + 2) * tiny
        return each * (1 + sum(float(v.max()) for v in values)), each * any(
            bool(((v > 0) & (v < tiny)).any()) for v in values
        )

    def reset(self, far: Sequence[Tensor] = ()) -> None:
        """Forget the last batch; ``far`` is how large each node's value can be in any ball around the next one."""
        self.far = [float(s.max()) for s in far]
        self.errors: dict[int, Tensor | None] = {}
        self.local: dict[int, Tensor] = {}
        self.sizes: dict[int, Tensor] = {}
        self.ends: dict[int, Tensor] = {}
        self.weighed: dict[int, Tensor] = {}
        self.weighed_sizes: dict[int, Tensor] = {}
        self.resting: dict[int, Resting] = {}

    def __call__(self, node: Node, operands: Sequence[Tensor], value: Tensor) -> None:
        """Called at each node of an evaluation."""
        errors: Tensor | None = None
        if isinstance(node, Affine):
            errors = self._affine(node, operands, value)
        elif isinstance(node, Nonlinear):
            k, before = self.targets[node.index], self.errors[node.inputs[0]]
            nothing = value.new_zeros(len(value))
            rounds = count(self.loop, node) if isinstance(node, Elementwise) else 0
            self.local[k] = nothing if before is None else _row_norms(before)
            if rounds:
                self.sizes[k] = _row_norms(operands[0])
            if self.weights:
                self._weigh(k, operands[0], before, self.weights[k - 1], rounds=rounds)
        if node.index in self.cuts:  # what is behind it is another part, which begins without errors of its own
            self.ends[node.index] = value.new_zeros(len(value)) if errors is None else _row_norms(errors)
            errors = None
        self.errors[node.index] = errors
        for i in node.inputs:
            if self.last[i] == node.index and i != self.loop.graph.output:
                self.errors[i] = None

    def _weigh(self, k: int, z: Tensor, errors: Tensor | None, weight: Tensor, *, rounds: int) -> None:
        scaled, lost = z.double() * weight, None if errors is None else errors.double() * weight
        self.weighed[k] = z.new_zeros(len(z), dtype=torch.float64) if lost is None else _row_norms(lost)
        if rounds:
            self.weighed_sizes[k] = _row_norms(scaled)
        if lost is not None and k in self.sides:
            self.resting[k] = Resting(lost, scaled, self.sides[k], self.caution)

    def _affine(self, node: Affine, operands: Sequence[Tensor], value: Tensor) -> Tensor | None:
        coefficients, arithmetic = self.coefficients[node.index], self.arithmetic
        roundings = count(self.loop, node)
        # what is computed here in the same dtype: sums of terms that are not negative, so their error is relative
        own = (1 + gamma(roundings + 4, arithmetic.unit)) ** 2 * (1 + 2.0**-18)
        total: Tensor | None = None
        before = [self.errors[i] for i in node.inputs]
        if any(e is not None for e in before):
            given = [
                torch.zeros_like(x, dtype=self.dtype) if e is None else e for e, x in zip(before, operands, strict=True)
            ]
            total = node.apply(given, coefficients).mul(own)
        if roundings:
            sizes = [x.abs().to(self.dtype) for x in operands]
            size = node.apply(sizes, coefficients) + self.offsets[node.index]
            size = size.add(value.abs().to(self.dtype)).mul_(
                0.5 * own * gamma(granted(self.loop, node), arithmetic.unit)
            )
            # a term, or a number in it, that is subnormal may be lost whole; here, and in computing these sizes
            still, growing = self.lost[node.index]
            size.add_(still + (growing * sum(self.far[i] for i in node.inputs) if growing else 0.0))
            total = size if total is None else total.add_(size)
        return total


def require(graph: Graph) -> None:
    """Refuse a network with an operation of whose execution's roundings nobody has said how many there are."""
    for node in graph.nodes[: graph.output + 1]:
        if isinstance(node, (Affine, Elementwise)) and node.roundings is None:
            computed = isinstance(node, Elementwise) or node.obstacle
            reason, remedy = "its rounding is not known", ""
            if computed:
                reason = "its weights are computed in the forward, and their rounding is not known"
                remedy = (
                    "store the weights themselves (lipcert.layers.fold, lipcert fold RUN OUT, "
                    "torch.nn.utils.parametrize.remove_parametrizations, "
                    "torch.nn.utils.remove_weight_norm), or "
                )
            raise BoundError(
                f"{node.describe()}: {reason}, so no radius can be stated for its execution: {remedy}certify the "
                "network of real arithmetic with precision='real'."
            )


class _Stretch:
    """What of E does not depend on the sample, of one part of a network, or of the whole: made once.

    Args:
        loop: T of the part, not centred for a product bound.
        bound: of the part.
        arithmetic: of the execution.
        before: how many activations of the network are in the parts before this one.
    """

    def __init__(self, loop: LoopMap, bound: UpperBound, arithmetic: Arithmetic, before: int) -> None:
        self.loop, self.arithmetic, self.depth, self.before = loop, arithmetic, loop.depth, before
        last = loop.depth + 1
        flat = LoopMap(loop.graph, loop.resolved, centred=False)
        self.steep = {j: float(torch.as_tensor(flat.radius(j), dtype=torch.float64).max()) for j in range(1, last)}
        gentle = {0: 1.0} | {j: flat.ratios(j)[1] for j in range(1, last)}
        lost = underflow(flat)
        self.segments = {(k, j): absolute_norm(flat, (k, j), lost) * gentle[j] for k, j in flat.pairs()}
        roundings = {k: segment_roundings(loop, k)[0] for k in range(1, last + 1)}
        self.gammas = {k: gamma(n, arithmetic.unit) if n else 0.0 for k, n in roundings.items()}
        self.norms = {p: n.upper for p, n in bound.norms.items()}
        self.heads = {j: v for j, v in bound.heads.items() if j}
        self.hidden = {0: 1.0, **bound.hidden}
        self.ratios = {j: loop.ratios(j) for j in range(1, last)}
        self.still = {j: at_zero(loop, j) for j in range(1, last)}
        if any(ratio > _STEEP or not math.isfinite(inverse) for ratio, inverse in self.ratios.values()):
            self.norms = {p: absolute_norm(flat, p, lost) for p in flat.pairs()}
            self.heads = {
                j: loop.resolved.scalar(self.norms[last, j]) for j in range(1, last) if (last, j) in self.norms
            }
            self.ratios = {j: flat.ratios(j) for j in range(1, last)}

    def run(self, errors: Errors, entering: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """g_j for each source j whose head is known, and what moving away from x adds to the last segment: (N, 2).

        ``entering`` is how far what enters may be from its value at x, (N, 2).
        """
        unit, last = self.arithmetic.unit, self.depth + 1
        nothing = torch.zeros_like(entering)

        def still(e: Tensor | float) -> Tensor:
            made = nothing.clone()
            made[:, 0] = e
            return made

        moved = {0: entering}  # ‖û_j(x′) − u_j(x)‖
        gained: dict[int, Tensor] = {}  # g_j

        def ball(k: int) -> Tensor:
            near = [self.segments[k, j] * moved[j] for j in range(k) if (k, j) in self.segments]
            return self.gammas[k] * sum(near, start=nothing) + TINY

        for k in range(1, last):
            node, (ratio, inverse) = self.loop.nonlinear[k - 1], self.ratios[k]
            # more than what underflows in a product with a norm
            own = still(errors.local[self.before + k] + 4 * self.arithmetic.tiny) + ball(k)
            error = own + sum((self.norms[k, j] * g for j, g in gained.items() if (k, j) in self.norms), start=nothing)
            departs, shift = nothing, self.hidden[k] * entering + TINY
            if isinstance(node, Elementwise) and (roundings := count(self.loop, node)):
                size = still(errors.sizes[self.before + k]) + shift + error
                departs = roundings * unit * (still(self.still[k]) + self.steep[k] * size)
            each = node.departure if isinstance(node, Elementwise) else 0.0
            # even a comparison may take a subnormal number for zero, at any slope
            each += 4 * self.arithmetic.tiny * max(1.0, self.steep[k])
            departs = departs + still(each * math.sqrt(math.prod(node.shape)))
            gained[k] = error + (ratio * own if ratio else 0.0) + inverse * departs + TINY
            moved[k] = self.steep[k] * (error + shift) + departs + TINY
        return {j: gained[j] * _SAFE for j in self.heads}, ball(last) * _SAFE


class Recursion:
    """What of E does not depend on the sample: made once for a network and a bound.

    Attributes:
        cuts: the nodes at which an evaluation is to be watched part by part (:class:`Errors`).
        heads: for each source of :meth:`run`, by how much it counts in the bound's scope.
    """

    def __init__(self, loop: LoopMap, bound: UpperBound, arithmetic: Arithmetic) -> None:
        pieces = row(loop) if bound.parts else []
        if len(pieces) != len(bound.parts):
            raise BoundError(
                f"this bound has {len(bound.parts)} parts, the network {len(pieces)}: it is of another one."
            )
        self.cuts = tuple(piece.end for piece in pieces[:-1])
        loops = [piece.loop for piece in pieces] or [loop]
        self.bounds = bound.parts or (bound,)
        self.stretches: list[_Stretch] = []
        before = 0
        for one, of in zip(loops, self.bounds, strict=True):
            self.stretches.append(_Stretch(one, of, arithmetic, before))
            before += one.depth
        self.until = constants_until(pieces, bound.parts) if bound.parts else []
        # source −p is what part p loses
        losses = constants_behind(pieces, bound.parts, bound.scope) if bound.parts else []
        self.heads = {**{-p: value for p, value in enumerate(losses, start=1)}, **self.stretches[-1].heads}
        self.tiny = arithmetic.tiny

    def run(self, errors: Errors, final: Tensor | None, rows: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """g_j for each source j, (N, 2), and (N, C, 2) of the last segment; ``rows`` is the output, for its shape."""
        wrong = torch.zeros((len(rows), 2), dtype=torch.float64, device=rows.device)  # ε_p
        ball = wrong + torch.tensor([0.0, 1.0], dtype=torch.float64, device=rows.device)
        shift, losses = ball, dict[int, Tensor]()  # U_p·R, and λ_p
        *front, last = self.stretches
        each = zip(front, self.bounds[:-1], self.cuts, self.until, strict=True)
        for p, (stretch, bound, cut, most) in enumerate(each, start=1):
            gained, lost = stretch.run(errors, shift + wrong)
            lost[:, 0] += errors.ends[cut] + 4 * self.tiny
            for j, g in gained.items():
                lost = lost + float(stretch.heads[j]) * g
            losses[-p] = lost * _SAFE + TINY
            wrong = (float(bound.value) * wrong + lost) * _SAFE + TINY
            shift = most * ball * _SAFE + TINY
        known, rest = last.run(errors, shift + wrong)
        known |= losses
        ended = rest[:, None, :].expand(*rows.shape, 2).clone()
        if final is not None:
            ended[..., 0] += final.double()
        return known, ended * _SAFE


def far_from(loop: LoopMap, batch: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(n,), radii beyond which nothing is claimed, and how large each node's value can be in any such ball."""
    size = batch.to(dtype=torch.float64, device=loop.resolved.device).abs().nan_to_num(0.0, 0.0, 0.0)
    far = _FAR * (1 + size.reshape(len(size), math.prod(size.shape[1:])).amax(1))
    largest = size.amax(0, keepdim=True) if len(size) else size.new_zeros((1, *size.shape[1:]))
    most = float(far.max()) if len(far) else _FAR
    return far, loop.graph.sizes(largest + most, loop.resolved, per_rounding=2.0**-30)


def check_tf32(device: torch.device, dtype: torch.dtype) -> None:
    """Warn where this very process would break one of the assumptions; torch allows TF32 to convolutions by default."""
    allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda" and dtype == torch.float32 and allowed:
        warnings.warn(
            "the radii are for float32, but torch may use TF32 on this device: set torch.backends.cudnn.allow_tf32 and "
            "torch.backends.cuda.matmul.allow_tf32 to False where the network runs.",
            stacklevel=2,
        )
