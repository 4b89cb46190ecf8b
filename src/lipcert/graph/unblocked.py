"""Sums of blocks made whole again, for passes of T: what an execution does in blocks is one linear map all the same.

A layer that adds up its sum in blocks (:mod:`lipcert.layers.blocked`) is a tree of additions over convolutions, each of
some channels of one signal. How that is executed decides what float32 loses. T is the same map either way, and goes
several times faster through one convolution than through many small ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lipcert.graph.forms import Section, Sum
from lipcert.graph.types import Affine, Coefficient, Graph, Node

__all__ = ["joined_weight", "unblocked"]


def unblocked(graph: Graph) -> tuple[Graph, dict[int, tuple[int, ...]]]:
    """The graph with one map in the place of each sum over blocks, for its linear part.

    Nodes keep their numbers, and what is the same in both graphs has the same value. What is summed up to a joined map
    stays in the graph without being on any path. Offsets are not carried over: T has none.

    Returns:
        the graph, and for each joined node the nodes of its blocks, in order: its weight is theirs side by side
        (:func:`joined_weight`). The graph itself, and nothing, where there is nothing to join.

    >>> import torch, lipcert
    >>> from lipcert.layers import blocked
    >>> net = blocked(torch.nn.Sequential(torch.nn.Linear(6, 4)).eval(), terms=2)
    >>> whole, joined = unblocked(lipcert.trace(net, (6,)))
    >>> joined, whole.nodes[8].inputs, whole.nodes[8].terms
    ({8: (4, 5, 6)}, (0,), (6, 4))
    """
    nodes, joined, within = list(graph.nodes), dict[int, tuple[int, ...]](), set[int]()
    for node in reversed(graph.nodes):  # the largest trees first: a shortcut is added to a sum of blocks
        if not _adds(node) or node.index in within:
            continue
        leaves, sums = list[Node](), set[int]()
        for summand, leaf in _tree(graph, node):
            if not leaf:
                sums.add(summand.index)
            elif not _may_join(graph, summand):
                break
            else:
                leaves.append(summand)
        else:
            found = _ordered(graph, leaves)
            if found is not None:
                source, blocks = found
                joined[node.index] = tuple(block.index for block in blocks)
                nodes[node.index] = _whole(node, source, blocks)
                within |= sums
    return (Graph(tuple(nodes), graph.output, graph.capture), joined) if joined else (graph, {})


def joined_weight(node: Node, blocks: Sequence[int], coefficients: Sequence[tuple[Coefficient, ...]]) -> Tensor:
    """The weight of a joined map: those of its blocks side by side, in the dimension over which it is a sum."""
    assert isinstance(node, Affine)
    assert node.contracts is not None
    return torch.cat([torch.as_tensor(coefficients[i][0]) for i in blocks], dim=node.contracts[1])


def _adds(node: Node) -> bool:
    return isinstance(node, Affine) and isinstance(node.form, Sum)


def _alone(graph: Graph, node: Node) -> bool:
    """Whether only one other node asks for the value of this."""
    return graph.users[node.index] == 1 and node.index != graph.output


def _tree(graph: Graph, root: Node) -> Iterator[tuple[Node, bool]]:
    """What a tree of sums adds up, the last first, as far as nobody else asks for what is between: sums and leaves."""
    pending = list(root.inputs)
    while pending:
        node = graph.nodes[pending.pop()]
        between = _adds(node) and _alone(graph, node)
        yield node, not between
        if between:
            pending += node.inputs


def _may_join(graph: Graph, leaf: Node) -> bool:
    """Whether it takes a section of a signal in the dimension that it sums over, and nobody else asks for it."""
    if not isinstance(leaf, Affine) or leaf.contracts is None or not _alone(graph, leaf):
        return False
    before, along = graph.nodes[leaf.inputs[0]], leaf.contracts[0]
    return isinstance(before, Affine) and isinstance(before.form, Section) and before.form.dimension == along


def _ordered(graph: Graph, leaves: Sequence[Node]) -> tuple[int, list[Affine]] | None:
    """The signal that leaves are blocks of, and they in its order; None where it is not one, or not all of it."""
    found = list[tuple[Section, Affine]]()
    sources = set[int]()
    for leaf in leaves:
        before = graph.nodes[leaf.inputs[0]]
        assert isinstance(leaf, Affine)
        assert leaf.contracts is not None
        assert isinstance(before, Affine)
        assert isinstance(before.form, Section)
        along = leaf.contracts[0]
        sources.add(before.inputs[0])
        found.append((before.form, leaf))
    found.sort(key=lambda pair: pair[0].start)
    first, source = found[0][1], sources.pop()
    edges = [0, *(section.stop for section, _ in found)]
    adjoining = [section.start for section, _ in found] == edges[:-1] and all(
        a < b for a, b in itertools.pairwise(edges)
    )
    if sources or not adjoining or edges[-1] != graph.nodes[source].shape[along]:
        return None
    alike = all(
        (leaf.operation, leaf.form, leaf.shape, leaf.contracts)
        == (first.operation, first.form, first.shape, first.contracts)
        for _, leaf in found
    )
    return (source, [leaf for _, leaf in found]) if alike else None


def _whole(node: Node, source: int, blocks: Sequence[Affine]) -> Affine:
    counted = [block.terms for block in blocks if block.terms is not None]
    terms = (sum(a for a, _ in counted), max(b for _, b in counted)) if len(counted) == len(blocks) else None
    return replace(
        blocks[0],
        index=node.index,
        place=node.place,
        inputs=(source,),
        shape=node.shape,
        coefficients=(),
        offset=None,
        terms=terms,
        roundings=None,
        offset_size=None,
        amplifies=None,
    )
