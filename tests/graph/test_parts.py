"""A network cut where all of it passes through one value."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lipcert
from lipcert.graph.parts import merges, part
from lipcert.layers import BlockedLinear
from lipcert.loop import LoopMap


class _Block(nn.Module):
    """x + G·act(W·x), or a longer way around."""

    def __init__(self, width: int, act: nn.Module) -> None:
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(width, width + 1), nn.Linear(width + 1, width), act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.act(self.inner(x)))


class _Ladder(nn.Module):
    """A value of the input that is used again behind everything: nothing can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_Block(4, nn.ReLU()), _Block(4, nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.blocks(x), x], 1)


def _row() -> nn.Module:
    torch.manual_seed(0)
    acts = [nn.ReLU(), nn.PReLU(5), nn.Tanh(), nn.GELU()]
    blocks = [_Block(4, act) for act in acts]
    return nn.Sequential(nn.Linear(3, 4), *blocks, nn.ReLU(), nn.Linear(4, 2)).double().eval()


def test_the_parts_one_after_another_are_the_network() -> None:
    net = _row()
    graph = lipcert.trace(net, (3,))
    resolved = graph.resolve(torch.float64)
    ends = merges(graph)
    assert [graph.nodes[i].shape for i in ends] == [(4,)] * 4
    x = torch.randn(5, 3, dtype=torch.float64)
    value, first, depth = x, 0, 0
    for last in [*ends, graph.output]:
        piece, numbers = part(graph, resolved, first, last)
        assert piece.input_shape == graph.nodes[first].shape
        assert [n.index for n in piece.nodes] == list(range(len(piece.nodes)))
        value = piece.evaluate(value, numbers)
        loop = LoopMap(piece, numbers)
        depth += loop.depth
        first = last
    torch.testing.assert_close(value, net(x))
    assert depth == LoopMap(graph).depth == 5


def test_the_map_of_a_part_is_that_block_of_the_whole() -> None:
    net = _row()
    graph = lipcert.trace(net, (3,))
    resolved = graph.resolve(torch.float64)
    first, last = merges(graph)[1:3]
    loop = LoopMap(*part(graph, resolved, first, last))
    block = net[3]
    assert isinstance(block, _Block)
    x, w = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    z, y = loop.forward([x, w])
    torch.testing.assert_close(z, x @ block.inner.weight.T)
    torch.testing.assert_close(y, x + (0.5 * z + 0.5 * w) @ block.outer.weight.T)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        nn.Linear(4, 2),
        nn.Sequential(BlockedLinear(nn.Linear(4, 4), terms=1), nn.ReLU(), BlockedLinear(nn.Linear(4, 2), terms=2)),
    ],
)
def test_a_chain_has_no_merges(net: nn.Module) -> None:
    assert merges(lipcert.trace(net.eval(), (4,))) == []


def test_a_bridge_over_everything_leaves_one_part() -> None:
    net = _Ladder().eval()
    graph = lipcert.trace(net, (4,))
    (only,) = merges(graph)
    assert only == graph.output
