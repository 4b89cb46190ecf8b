"""Sums of blocks are made whole for passes of T: the same map, and nothing that only looks like blocks."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import lipcert
from catalogue import Fn
from lipcert.graph.types import Affine
from lipcert.graph.unblocked import unblocked
from lipcert.layers import HalfAbs, blocked
from lipcert.loop import LoopMap
from lipcert.norms.errors import BlockErrors, relative_error, roundings_at

L, C, F = nn.Linear, nn.Conv2d, torch.nn.functional


def _loop(net: nn.Module, shape: tuple[int, ...]) -> LoopMap:
    graph = lipcert.trace(net.double().eval(), shape)
    return LoopMap(graph, graph.resolve(torch.float64))


def _plain() -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    layers = [C(3, 16, 3, 1, 1), HalfAbs(), C(16, 8, 4, 2, 1, padding_mode="zeros"), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, L(128, 20), nn.Tanh(), L(20, 5, bias=False)), (3, 8, 8)


@pytest.mark.parametrize("terms", [1, 16, 40])
def test_the_same_map_with_as_many_joined_layers_as_are_in_blocks(terms: int) -> None:
    net, shape = _plain()
    plain, short = _loop(net, shape), _loop(blocked(net, terms=terms), shape)
    divided = sum(hasattr(m, "sizes") for m in blocked(net, terms=terms).modules())
    assert len(short._blocks) == divided > 0
    rows = [torch.randn((2, *plain.source_shape(j)), dtype=torch.float64) for j in range(plain.depth + 1)]
    results = plain.forward(rows)
    assert all(map(torch.equal, short.forward(rows), results))  # one convolution each, and not a sum of many
    assert all(map(torch.equal, short.adjoint(results), plain.adjoint(results)))
    sizes = plain.absolute().forward(rows)
    assert all(map(torch.equal, short.absolute().forward(rows), sizes))
    assert plain.pairs() == short.pairs()
    for k, j in plain.pairs():
        names = [[(type(n), n.shape, getattr(n, "terms", None)) for n in loop.between(k, j)] for loop in (plain, short)]
        assert names[0] == names[1]
    errs, granted = (BlockErrors(loop, dict.fromkeys(plain.pairs(), 1.0)).relative for loop in (plain, short))
    assert all(errs[k] <= granted[k] <= (1.5 if terms > 1 else 9) * errs[k] for k in errs)  # a signal has more users
    assert relative_error(short) >= relative_error(plain)


def test_weights_that_moved_and_their_gradients() -> None:
    net, shape = _plain()
    plain, short = _loop(net, shape), _loop(blocked(net, terms=16), shape)
    found = []
    for loop in (plain, short):
        loop = loop.at(loop.graph.resolve(torch.float64))
        row = torch.ones((1, *shape), dtype=torch.float64)
        loop.forward([row, *(None for _ in range(loop.depth))])[-1].square().sum().backward()
        first = next(p for p in loop.graph.capture.module.parameters())
        assert first.grad is not None
        found.append(first.grad)
    torch.testing.assert_close(found[0], found[1])


def test_the_graph_that_is_executed_stays_what_it_is() -> None:
    net, shape = _plain()
    loop = _loop(blocked(net, terms=16), shape)
    assert loop.walked is not loop.graph
    joined = [loop.walked.nodes[i] for i in loop._blocks]
    for node in joined:
        assert isinstance(node, Affine)
        blocks = [loop.graph.nodes[i] for i in loop._blocks[node.index]]
        assert roundings_at(loop, node) <= sum(roundings_at(loop, block) for block in blocks)
    x = torch.rand((3, *shape), dtype=torch.float64)
    torch.testing.assert_close(loop.graph.forward(x)[loop.graph.output], net.double()(x))
    graph = lipcert.trace(net.eval(), shape)
    assert unblocked(graph) == (graph, {})


class _Heads(nn.Module):
    """Many layers of one signal, whose adjoint adds up as many numbers at it."""

    def __init__(self, many: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(2, 1, bias=False) for _ in range(many))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], dim=1)


def test_layers_in_blocks_that_share_their_sections() -> None:
    """The signal has two users, its sections, and in passes a hundred."""
    many = 100
    net = _Heads(many).double().eval()
    with torch.no_grad():
        for i, head in enumerate(net.heads):
            head.weight.copy_(torch.tensor([[2.0**-10 if i < many - 1 else 1.0, 0.0]]))
    loop = _loop(blocked(net, terms=1), (2,))
    assert (len(loop._blocks), loop.graph.users[0]) == (many, 2)
    p = torch.full((1, many), 0.999 * 2.0**-43, dtype=torch.float64)
    p[0, -1] = 1.0
    with torch.no_grad():
        found = float(loop.adjoint([p])[0][0, 0])
    weights = [float(head.weight.detach()[0, 0]) for head in net.heads]  # type: ignore[index]
    exact = sum((Fraction(float(v)) * Fraction(w) for v, w in zip(p[0], weights, strict=True)), Fraction(0))
    lost = float(abs(Fraction(found) - exact))
    assert 60 * 2.0**-53 < lost <= BlockErrors(loop, {}).error((1, 0)) * float(p.norm())


def test_a_sum_of_many_terms_one_behind_another() -> None:
    def running(m: nn.Module, x: Tensor) -> Tensor:
        total = m.weight * x
        for i in range(1, 200):
            total = total + float(i) * x
        return total

    graph = lipcert.trace(Fn(running, weight=torch.ones(())).eval(), (2,))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        assert unblocked(graph) == (graph, {})
    finally:
        sys.setrecursionlimit(limit)


def _wide(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(x[:, :2], w[:, :2], padding=1) + F.conv2d(x[:, 2:], w[:, 2:], padding=1)


def _shared(x: Tensor, w: Tensor) -> Tensor:
    a = F.conv2d(x[:, :2], w[:, :2], padding=1)
    return torch.cat([a + F.conv2d(x[:, 2:], w[:, 2:], padding=1), a], dim=1)


def _both(x: Tensor, w: Tensor) -> Tensor:
    return _wide(x, w) + _wide(x.tanh(), w[:, [3, 1, 2, 0]])


LIKE_BLOCKS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "blocks": (_wide, 1),
    "blocks in another order": (lambda x, w: F.conv2d(x[:, 2:], w[:, 2:]) + F.conv2d(x[:, :2], w[:, :2]), 1),
    "weights that are no slices of one": (lambda x, w: F.conv2d(x[:, 1:], w[:, :3]) + F.conv2d(x[:, :1], w[:, :1]), 1),
    "a shortcut around blocks": (lambda x, w: x + _wide(x, w[:4]), 1),
    "a shortcut around them in the middle": (
        lambda x, w: F.conv2d(x[:, :2], w[:4, :2], padding=1) + x + F.conv2d(x[:, 2:], w[:4, 2:], padding=1),
        0,
    ),
    "blocks of two layers": (_both, 2),
    "a block is used again": (_shared, 0),
    "blocks overlap": (lambda x, w: F.conv2d(x[:, :3], w[:, :3]) + F.conv2d(x[:, 2:], w[:, 2:]), 0),
    "one block twice": (lambda x, w: F.conv2d(x[:, :2], w[:, :2]) + F.conv2d(x[:, :2], w[:, 2:]), 0),
    "a channel is left out": (lambda x, w: F.conv2d(x[:, 1:2], w[:, 1:2]) + F.conv2d(x[:, 2:], w[:, 2:]), 0),
    "steps": (lambda x, w: F.conv2d(x[:, ::2], w[:, :2]) + F.conv2d(x[:, 1::2], w[:, 2:]), 0),
    "a difference": (lambda x, w: F.conv2d(x[:, :2], w[:, :2]) - F.conv2d(x[:, 2:], w[:, 2:]), 0),
    "a multiple": (
        lambda x, w: torch.add(F.conv2d(x[:, :2], w[:, :2]), F.conv2d(x[:, 2:], w[:, 2:]), alpha=2),
        0,
    ),
    "another padding": (
        lambda x, w: F.conv2d(x[:, :2], w[:, :2, :1, :1]) + F.conv2d(x[:, 2:], w[:, 2:], padding=1),
        0,
    ),
    "other kernels": (
        lambda x, w: (
            F.conv2d(x[:, :2], w[:, :2, :, :2], stride=2, padding=1) + F.conv2d(x[:, 2:], w[:, 2:], stride=2, padding=1)
        ),
        0,
    ),
    "blocks of rows": (lambda x, w: F.conv2d(x[:, :, :3], w) + F.conv2d(x[:, :, 3:], w), 0),
    "two signals": (lambda x, w: F.conv2d(x[:, :2], w[:, :2]) + F.conv2d(x.relu()[:, 2:], w[:, 2:]), 0),
    "groups": (
        lambda x, w: F.conv2d(x[:, :2], w[:, :1], groups=2) + F.conv2d(x[:, 2:], w[:, :1], groups=2),
        0,
    ),
    "transposed": (
        lambda x, w: F.conv_transpose2d(x[:, :2], w[:2]) + F.conv_transpose2d(x[:, 2:], w[2:4]),
        1,
    ),
    "transposed, with a stride of which some entries meet nothing": (
        lambda x, w: (
            F.conv_transpose2d(x[:, :3], w[:3], stride=4, output_padding=1)
            + F.conv_transpose2d(x[:, 3:], w[3:4], stride=4, output_padding=1)
        ),
        1,
    ),
    "transposed, of groups": (
        lambda x, w: F.conv_transpose2d(x[:, :2], w[:2], groups=2) + F.conv_transpose2d(x[:, 2:], w[2:4], groups=2),
        0,
    ),
    "transposed and not": (
        lambda x, w: F.conv_transpose2d(x[:, :2], w[:2, :2], padding=1) + F.conv2d(x[:, 2:], w[2:4, :2], padding=1),
        0,
    ),
    "along another dimension": (
        lambda x, w: F.linear(x[:, :2], w[0, 0, :2, :1]) + F.linear(x[:, 2:], w[0, 1, :2, :1]),
        0,
    ),
}


@pytest.mark.parametrize("name", LIKE_BLOCKS)
def test_what_looks_like_blocks(name: str) -> None:
    torch.manual_seed(1)
    make, joined = LIKE_BLOCKS[name]
    weight = torch.randn(8, 4, 3, 3, dtype=torch.float64)
    size = {"along another dimension": 1, "other kernels": 5}.get(name, 6)
    loop = _loop(Fn(lambda m, x: make(x, m.weight).relu(), weight=weight), (4, 6, size))
    assert len(loop._blocks) == joined
    rows = [torch.randn((2, *loop.source_shape(j)), dtype=torch.float64) for j in range(loop.depth + 1)]
    other = LoopMap(loop.graph, loop.resolved)
    other.walked, other._blocks, other._joined = loop.graph, {}, {}
    other._reach = [other._reachable(j) for j in range(other.depth + 1)]
    other._need = [set[int]()] + [other._needed(k) for k in range(1, other.depth + 2)]
    for one, two in zip(loop.forward(rows), other.forward(rows), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
