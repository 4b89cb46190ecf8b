"""A network as a row of parts: where all of it passes through one value, it can be cut in two.

y = f_N(…f_2(f_1(x))): what is known of each part by itself gives something of the whole.
"""

from __future__ import annotations

from dataclasses import replace

from lipcert.graph.types import Graph, InputNode, Node, Nonlinear, Resolved

__all__ = ["merges", "part"]


def merges(graph: Graph) -> list[int]:
    """The nodes at which branches come together and through which every path to the output leads, in order.

    Behind each block of a residual network there is one; in a chain of layers, none. Branches without an activation are
    one affine map together, and no others than a layer.
    """
    last_use = dict.fromkeys(range(graph.output + 1), 0)
    for node in graph.nodes[: graph.output + 1]:
        for i in node.inputs:
            last_use[i] = node.index
    found, furthest, bent = [], 0, False  # the last node that uses anything before the present one
    for node in graph.nodes[: graph.output + 1]:
        if furthest <= node.index:  # all of the network passes through it
            found += [node.index] if bent and len(node.inputs) > 1 else []
            bent = False
        else:
            bent = bent or isinstance(node, Nonlinear)
        furthest = max(furthest, last_use[node.index])
    return found


def part(graph: Graph, resolved: Resolved, first: int, last: int) -> tuple[Graph, Resolved]:
    """The network from the value of one node to that of another, with its numbers.

    Args:
        graph: the whole.
        resolved: its numbers.
        first: a node through which every path from the input to ``last`` leads.
        last: a later one.
    """
    wanted = {last}
    for node in reversed(graph.nodes[first + 1 : last + 1]):
        if node.index in wanted:
            wanted.update(node.inputs)
    kept = sorted(wanted | {first})
    number = {old: new for new, old in enumerate(kept)}
    nodes: list[Node] = [InputNode(0, "input", "", (), graph.nodes[first].shape)]
    for old in kept[1:]:
        node = graph.nodes[old]
        nodes.append(replace(node, index=number[old], inputs=tuple(number[i] for i in node.inputs)))
    numbers = Resolved(
        ((), *(resolved.coefficients[old] for old in kept[1:])),
        {number[old]: slopes for old, slopes in resolved.slopes.items() if old in number and old > first},
        resolved.live,
        resolved.dtype,
        resolved.device,
    )
    return Graph(tuple(nodes), number[last], graph.capture), numbers
