"""Blocks of any size that are chains of affine layers: ``‖A_kj‖ ≤ Π ‖layer‖ · max r_j``, each layer by itself.

It is deterministic and as good as its layers: exact for one convolution with circular padding, and a little more for
zero padding (some (π·k/n)² of it, for a kernel of side k on an image of side n). A block that has several paths, or
that goes on through an activation, is no chain: the product of norms would give away what LipLT is for.

Layers that neither sum with weights nor are convolutions (moving, repeating, scaling, averaging entries) are bounded by
``√(‖S‖₁·‖S‖_∞)``, two passes of |S| (Schur's test): 1 or max|s| where each entry goes to one place at most, and exact
wherever all rows and all columns have the same sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lipcert.errors import BoundError
from lipcert.graph.forms import CircularPadding, Convolution
from lipcert.graph.types import Affine
from lipcert.loop import LoopMap, Pair
from lipcert.norms.errors import TINY, UNIT, relative_error
from lipcert.norms.result import Norm
from lipcert.norms.torus import circular_torus, convolution_norm, zero_padded_torus

__all__ = ["chain", "chain_norms"]


def chain(loop: LoopMap, pair: Pair, *, limit: int) -> list[Affine] | None:
    """The layers of a block, in order, if it is one path of layers each of which can be bounded by itself; or None.

    Args:
        loop: T.
        pair: the block.
        limit: the largest smaller side of a matrix that may be formed: a layer's own, or one frequency's.
    """
    source, *rest = loop.between(*pair)
    layers, before = list[Affine](), source
    for node in rest:
        if not isinstance(node, Affine) or not _bounded(loop, node, limit):
            return None
        active = [i for i in node.inputs if i == source.index or any(i == n.index for n in rest)]
        if active != [before.index]:
            return None
        layers.append(node)
        before = node
    return layers


def _bounded(loop: LoopMap, node: Affine, limit: int) -> bool:
    """Whether a good bound of a layer's own norm is within reach."""
    coefficients = loop.coefficients(node)
    if isinstance(node.form, Convolution):
        (weight,) = coefficients
        assert isinstance(weight, Tensor)
        return min(weight.shape[0] // node.form.groups, weight.shape[1] * math.prod(node.form.stride)) <= limit
    entrywise = node.terms is not None and node.terms[0] <= len(node.inputs) and node.terms[1] == 1
    return entrywise or not any(isinstance(c, Tensor) for c in coefficients)


def _convolution(loop: LoopMap, before: Affine | None, node: Affine) -> tuple[float, bool]:
    """The norm of a convolution, together with the circular padding in front of it where they make a torus."""
    form, weight = node.form, loop.coefficients(node)[0]
    assert isinstance(form, Convolution)
    assert isinstance(weight, Tensor)
    torus = None
    if before is not None and isinstance(before.form, CircularPadding):
        torus = circular_torus(before.form, form, weight.shape[2:])
    sides = zero_padded_torus(form, weight.shape[2:]) if torus is None else torus
    value = convolution_norm(weight, sides, stride=form.stride, dilation=form.dilation, groups=form.groups)
    return value, torus is not None


def _schur(loop: LoopMap, node: Affine, source: int) -> float:
    """``√(‖S‖₁·‖S‖_∞)`` of a layer S as a map of one of its inputs."""
    sizes, nodes = loop.absolute().coefficients(node), loop.walked.nodes
    like = torch.zeros((), dtype=loop.resolved.dtype, device=loop.resolved.device)
    with torch.enable_grad():
        one = like.new_ones((1, *nodes[source].shape)).requires_grad_()
        operands = [one if i == source else like.new_zeros((1, *nodes[i].shape)) for i in node.inputs]
        row_sums = node.apply(operands, sizes)
        (column_sums,) = torch.autograd.grad(row_sums.sum(), one)
    value = math.sqrt(float(row_sums.detach().max())) * math.sqrt(float(column_sums.max()))
    return max(value * (1 + relative_error(loop)) * (1 + 4 * UNIT), TINY if value else 0.0)


def _product(
    loop: LoopMap, pair: Pair, layers: list[Affine], known: dict[tuple[int, int], tuple[float, bool]]
) -> float:
    """The bound of one chain; ``known`` keeps what convolutions (behind which layer) were found to have."""
    source = loop.between(*pair)[0].index
    total = float(torch.as_tensor(loop.radius(pair[1]), dtype=torch.float64).detach().max()) if pair[1] else 1.0
    factors: list[float] = []
    for i, node in enumerate(layers):
        enters = layers[i - 1].index if i else source
        if isinstance(node.form, Convolution):
            if (enters, node.index) not in known:
                known[enters, node.index] = _convolution(loop, layers[i - 1] if i else None, node)
            value, joined = known[enters, node.index]
            if joined:  # with the padding in front of it
                factors.pop()
        else:
            value = _schur(loop, node, enters)
        factors.append(value)
    for value in factors:
        total = max(total * value * (1 + 2 * UNIT), TINY)
    if not math.isfinite(total):
        raise BoundError("the bound is not finite: the weights are so large that a block overflows float64.")
    return max(total, TINY)


def chain_norms(
    loop: LoopMap, chains: Mapping[Pair, list[Affine]], estimates: Mapping[Pair, float]
) -> dict[Pair, Norm]:
    """Upper bounds on ‖A_kj‖₂ from the norms of the layers on the block's only path; deterministic, at any size.

    Args:
        loop: T in float64.
        chains: for each block its layers, from :func:`chain`.
        estimates: of the norms, from below.

    Raises:
        BoundError: weights that are not finite, or a norm that overflows.
    """
    norms, known = dict[Pair, Norm](), dict[tuple[int, int], tuple[float, bool]]()
    for pair, layers in chains.items():
        upper = _product(loop, pair, layers, known)
        norms[pair] = Norm(upper, min(estimates[pair], upper), "torus")
    return norms
