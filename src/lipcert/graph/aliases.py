"""In-place operations: harmless where nothing looks at the old value, refused elsewhere.

A graph is functional: ``relu_(x)`` becomes ``relu(x)``. That is the same function only if no later step reads
``x``, or a view of it, expecting to see it changed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from lipcert.errors import UnsupportedError

__all__ = ["check_in_place", "is_in_place"]

# May return their argument itself, or a view of it, though their schema does not say so.
_PASS_THROUGH = (
    "aten::dropout",
    "aten::feature_dropout",
    "aten::alpha_dropout",
    "aten::feature_alpha_dropout",
    "aten::type_as",
    "aten::channel_shuffle",
)


def _schema(node: fx.Node) -> torch._C.FunctionSchema | None:
    return getattr(node.target, "_schema", None) if node.op == "call_function" else None


def is_in_place(node: fx.Node) -> bool:
    """Whether the call writes to one of its arguments."""
    schema = _schema(node)
    return schema is not None and any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments)


def _marked(node: fx.Node, schema: torch._C.FunctionSchema, *, written: bool) -> list[fx.Node]:
    """Arguments whose memory the result may share or, with ``written``, that are written to."""
    found: list[fx.Node] = []
    for i, argument in enumerate(schema.arguments):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and (argument.alias_info.is_write or not written):
            fx.node.map_arg(value, found.append)
    return found


def _aliased(node: fx.Node) -> list[fx.Node]:
    """Arguments whose memory the result may share."""
    schema = _schema(node)
    if schema is None or schema.name == "aten::einsum":  # getitem of a tuple shares with what made the tuple
        return list(node.all_input_nodes) if node.op == "call_function" else []
    if schema.name in _PASS_THROUGH or schema.name.startswith("aten::rrelu"):
        return list(node.all_input_nodes[:1])
    return _marked(node, schema, written=False)


def check_in_place(nodes: Sequence[fx.Node], needed: Collection[fx.Node], network_input: fx.Node) -> None:
    """Refuse programs in which a changed value is read again under its old name, or the module's state is changed.

    Args:
        nodes: the whole program, in order.
        needed: what the output depends on; changes of anything else (a counter, say) do no harm.
        network_input: may be written to, as it is not part of the module's state.

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
        touched = {m for w in _marked(node, schema, written=True) for m in group[w]}
        if not any(m in needed for m in touched):
            continue
        if any(m.op == "placeholder" and m is not network_input for m in touched):
            raise UnsupportedError(
                str(node.target),
                module_path(node),
                "it changes a parameter or a buffer that the output depends on, so every call is another network.",
                "Compute without changing the module's state.",
            )
        before = {m for m in touched if position[m] < position[node]}
        if any(user in needed and position[user] > position[node] for m in before for user in m.users):
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
