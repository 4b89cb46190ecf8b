"""What is claimed of a network, by lipcert and by a foil: the same formula with power iteration in place of a proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import lipcert
from lipcert.bounds import Bound, graph_bound
from lipcert.certify import exact_logits, radii
from lipcert.certify.network import certified
from lipcert.errors import BoundError
from lipcert.loop import LoopMap


@dataclass(frozen=True)
class Claims:
    """What is claimed of a network: a global bound, a bound for each pair of logits, and radii of some inputs."""

    whole: float
    pairs: Tensor
    radius: Tensor
    prediction: Tensor


def proved(graph: lipcert.Graph, x: Tensor) -> Claims:
    """lipcert's: the smaller of both methods for the whole, pairwise LipLT, and its radii, as `certify` makes them."""
    whole = min(float(graph_bound(graph, method=m, guarantee="upper")) for m in ("liplt", "product"))
    return _claims(graph, x, whole, graph_bound(graph, scope="pairwise", guarantee="upper"))


def proved_by_small_gain(graph: lipcert.Graph, x: Tensor, seconds: float = 0.02) -> Claims:
    """The same by small gain, after a short search: any weights are to be sound."""
    bounds = [
        graph_bound(graph, method="smallgain", scope=scope, guarantee="upper", scaling="neuron", seconds=seconds)
        for scope in ("global", "pairwise")
    ]
    return _claims(graph, x, float(bounds[0]), bounds[1])


def _claims(graph: lipcert.Graph, x: Tensor, whole: float, pairs: Bound) -> Claims:
    """With the radii of a pairwise bound."""
    logits, errors = exact_logits(graph, [x])
    try:
        result = radii(logits, pairs, errors=errors)
    except BoundError:  # a constant network, which has no radius: then nothing may be steep at all
        assert float(pairs.value.min(1).values.max()) < 1e-250
        return Claims(whole, pairs.value, torch.zeros(len(x), dtype=torch.float64), logits.argmax(1))
    return Claims(whole, pairs.value, result.radius, result.prediction)


def proved_locally(graph: lipcert.Graph, x: Tensor) -> Claims:
    """The same with local bounds added to the radii."""
    claims = proved(graph, x)
    if not bool((claims.radius > 0).any()):
        return claims
    result = certified(graph, graph_bound(graph, scope="pairwise", guarantee="upper"), [x], None, "real", local=True)
    return Claims(claims.whole, claims.pairs, result.radius, result.prediction)


def five_steps(matrix: np.ndarray, steps: int = 5) -> float:
    """What many tools take for a norm: power iteration from a random start, from below."""
    v = np.random.default_rng(0).standard_normal(matrix.shape[1])
    for _ in range(steps):
        v = matrix.T @ (matrix @ v)
        v /= max(float(np.linalg.norm(v)), 1e-300)
    return float(np.linalg.norm(matrix @ v))


def foil(graph: lipcert.Graph, x: Tensor, norm: Callable[[np.ndarray], float] = five_steps) -> Claims:
    """LipLT with another norm of the blocks: exact blocks, exact rows of the head, exact logits, but nothing proved."""
    loop = LoopMap(graph, graph.resolve(torch.float64))
    sizes = [int(np.prod(loop.source_shape(j))) for j in range(loop.depth + 1)]
    basis = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, 1)
    with torch.no_grad():
        images = loop.forward([b.reshape(-1, *loop.source_shape(j)) for j, b in enumerate(basis)])
    blocks = {}
    for k, image in enumerate(images, start=1):
        columns = image.flatten(1).split(sizes)
        blocks |= {(k, j): columns[j].T.numpy() for j in range(loop.depth + 1) if loop.connected(k, j)}
    m, last = [1.0], loop.depth + 1
    for k in range(1, last + 1):
        m.append(sum(norm(blocks[k, j]) * m[j] for j in range(k) if (k, j) in blocks))
    heads = {j: blocks[last, j] for j in range(last) if (last, j) in blocks}
    apart = sum(m[j] * np.linalg.norm(rows[:, None] - rows[None], axis=2) for j, rows in heads.items())
    pairs = torch.as_tensor(apart)
    logits = exact_logits(graph, [x])[0]
    top, prediction = logits.max(1)
    own = nn.functional.one_hot(prediction, logits.shape[1]).bool()
    quotients = ((top[:, None] - logits) / pairs[prediction]).masked_fill(own, float("inf"))
    return Claims(m[last], pairs, quotients.min(1).values, prediction)
