"""In-place operations: harmless where nothing looks at the old value, refused elsewhere.

A graph is functional: ``relu_(x)`` becomes ``relu(x)``. That is the same function only if no later step reads
``x``, or a view of it, expecting to see it changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from lipcert.errors import UnsupportedError

__all__ = ["check_in_place", "is_in_place"]

# Return their argument itself in eval mode, though their schema does not say so.
_PASS_THROUGH = (
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
)


def _schema(node: fx.Node) -> torch._C.FunctionSchema | None:
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def is_in_place(node: fx.Node) -> bool:
    """Whether the call writes to one of its arguments."""
    schema = _schema(node)
    return schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def _aliased(node: fx.Node) -> list[fx.Node]:
    """Arguments whose memory the result may share."""
    schema = _schema(node)
    if schema is None:  # getitem of a tuple: shares memory with what made the tuple
        return list(node.all_input_nodes) if node.op == "call_function" else []
    if schema.name in _PASS_THROUGH or schema.name.startswith("aten::rrelu"):
        return list(node.all_input_nodes[:1])
    shared = []
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None:
            shared += [value] if isinstance(value, fx.Node) else []
    return shared


def check_in_place(nodes: Sequence[fx.Node]) -> None:
    """Refuse programs in which a changed value is read again under its old name.

    Raises:
        UnsupportedError: naming the in-place operation.
    """
    group: dict[fx.Node, set[fx.Node]] = {}
    position = {node: i for i, node in enumerate(nodes)}
    for node in nodes:
        mine = {node}
        for other in _aliased(node):
            mine |= group[other]
        for member in mine:
            group[member] = mine
    for node in nodes:
        if not is_in_place(node):
            continue
        schema = _schema(node)
        assert schema is not None
        written = {
            value
            for argument, value in zip(schema.arguments, node.args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node)
        }
        before = {m for w in written for m in group[w] if position[m] < position[node]}
        stale = [user for m in before for user in m.users if position[user] > position[node] and user is not node]
        if stale or not node.users:
            raise UnsupportedError(
                str(node.target),
                module_path(node),
                "it changes a tensor in place that is read again later under its old name.",
                "Use the out-of-place form: y = F.relu(x), y = y + x, or torch.cat of the parts instead of "
                "assigning to a slice.",
            )


def module_path(node: fx.Node) -> str:
    """The submodule in which a step was recorded, as in ``named_modules()``."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [entry[0] for entry in stack.values() if isinstance(entry, tuple)]
    return "" if not names or names[-1].startswith("_empty") else str(names[-1])
