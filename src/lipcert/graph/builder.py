"""What a rule works with: the growing graph, the arguments of a call by name, and the checks all rules share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from lipcert.errors import UnsupportedError
from lipcert.graph.aliases import module_path
from lipcert.graph.forms import Form
from lipcert.graph.types import (
    Affine,
    Coefficient,
    Elementwise,
    InputNode,
    Live,
    Node,
    Slopes,
    VectorMap,
)

__all__ = ["RULES", "Builder", "Call", "Rule", "Value", "rule"]

Value: TypeAlias = "int | tuple[int, ...]"
"""What a step of the program became: a graph node, or several (``chunk``, ``sort``)."""

Rule: TypeAlias = Callable[["Builder", "Call"], Value]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for aten operations by name (``"conv2d"``; all overloads and the in-place form too)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two rules for aten::{name}")
            RULES[name] = function
        return function

    return register


class Call:
    """One recorded call: its out-of-place operation and its arguments by their schema's names."""

    def __init__(self, node: fx.Node) -> None:
        self.node, self.place = node, module_path(node)
        self.name = str(node.target)
        self.operation = self.name
        self.target: Any = node.target
        self.arguments: dict[str, Any] = {}
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return
        self.name = schema.name.removeprefix("aten::")
        if any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments):
            self.name = self.name.removesuffix("_")
            packet = getattr(torch.ops.aten, self.name)
            self.target = getattr(packet, schema.overload_name or "default")
            schema = self.target._schema
        positional = list(node.args)
        for i, argument in enumerate(schema.arguments):
            if i < len(positional):
                self.arguments[argument.name] = positional[i]
            elif argument.name in node.kwargs:
                self.arguments[argument.name] = node.kwargs[argument.name]
            elif argument.has_default_value():
                self.arguments[argument.name] = argument.default_value

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that not every overload has."""
        return self.arguments.get(name, default)

    def run(self, /, **replaced: Any) -> Any:
        """Call the operation with some arguments replaced (all others must be plain values)."""
        return self.target(**{**self.arguments, **replaced})

    def refuse(self, reason: str, remedy: str = "") -> UnsupportedError:
        """The error that says why this call is not supported."""
        return UnsupportedError(self.operation, self.place, reason, remedy)


# Weight expressions of these are what is stored, moved about or with its sign changed: nothing rounds.
_EXACT = frozenset(
    """
    t transpose permute numpy_T mT view reshape _unsafe_view flatten unflatten squeeze unsqueeze expand
    select slice narrow index_select split split_with_sizes chunk unbind flip roll repeat tril triu cat stack
    detach clone alias contiguous lift_fresh_copy zeros ones zeros_like ones_like new_zeros new_ones
    neg abs relu sym_size getitem
    """.split()  # noqa: SIM905 - a list of fifty quotes is harder to read
)


def _operation(node: fx.Node) -> str:
    return "getitem" if node.target is operator.getitem else str(node.target).removeprefix("aten.").split(".")[0]


def _converts(node: fx.Node) -> bool:
    """Whether a result is of another dtype than an operand (integers joined to floats, say)."""
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return len({v.dtype for v in values if isinstance(v, Tensor)}) > 1


class Builder:
    """Collects graph nodes; identical steps (same operation, same operands) become one node."""

    def __init__(self, input_node: fx.Node) -> None:
        self.values: dict[fx.Node, Value] = {input_node: 0}
        self._batch = str(input_node.meta["val"].shape[0])
        shape = tuple(int(n) for n in input_node.meta["val"].shape[1:])
        self.nodes: list[Node] = [InputNode(0, "input", "", (), shape)]
        self._known: dict[Any, int] = {}

    # --- what arguments are -------------------------------------------------------------------------------
    def is_signal(self, argument: Any) -> bool:
        """Whether an argument depends on the network's input."""
        return isinstance(argument, fx.Node) and argument in self.values

    def signal(self, call: Call, name: str) -> int:
        """The graph node of an argument that must be a signal, with no other argument being one."""
        others = [k for k, v in call.arguments.items() if k != name and self._has_signal(v)]
        value = call[name]
        if others or not self.is_signal(value):
            raise call.refuse(
                f"its argument '{(others or [name])[0]}' depends on the network's input where a constant is "
                "expected, so the map is a product of two signals and has no global Lipschitz constant.",
                "Use fixed weights there.",
            )
        index = self.values[value]
        if isinstance(index, tuple):  # pragma: no cover - operations take tensors, not tuples
            raise call.refuse("it takes several tensors as one.")
        return index

    def carried(self, call: Call, name: str) -> Value:
        """What an argument became that must be a signal, whatever the other arguments are."""
        value = call[name]
        if not self.is_signal(value):
            raise call.refuse(
                "it makes a constant from the shape or dtype of a signal.",
                "Give the shape or dtype itself: expand(x.shape), to(x.dtype).",
            )
        return self.values[value]

    def _has_signal(self, value: Any) -> bool:
        found: list[bool] = []
        fx.node.map_arg(value, lambda n: found.append(self.is_signal(n)))
        return any(found)

    def shape_of(self, call: Call, meta: Any = None) -> tuple[int, ...]:
        """Shape of one sample of a call's result; refuses results that mix or move the batch."""
        value = call.node.meta.get("val") if meta is None else meta
        if not isinstance(value, Tensor):
            raise call.refuse("its result is not a tensor.")
        if value.ndim < 1 or str(value.shape[0]) != self._batch:
            raise call.refuse(
                f"its result has shape {tuple(map(str, value.shape))}, whose first dimension is not the batch: the "
                "samples of a batch are mixed or moved.",
                "Keep the batch first and treat each sample alone.",
            )
        if not value.is_floating_point():
            raise call.refuse(f"its result is of {value.dtype}: a piecewise constant map has no Lipschitz constant.")
        if any(not isinstance(n, int) for n in value.shape[1:]):
            raise call.refuse("a dimension other than the batch depends on the batch size.")
        if 0 in value.shape[1:]:
            raise call.refuse("its result is empty.", "Leave out steps that keep nothing of the signal.")
        return tuple(value.shape[1:])

    def check_constant(self, call: Call, value: Any, ndim: int) -> None:
        """Refuse a constant operand that differs from sample to sample of a batch (``ndim`` of the result)."""
        meta = value.meta.get("val") if isinstance(value, fx.Node) else value
        if isinstance(meta, Tensor) and meta.ndim >= ndim and str(meta.shape[0]) not in ("1", self._batch):
            raise call.refuse("a constant operand differs from sample to sample of the batch.")

    def check_aligned(self, call: Call, index: int, ndim: int) -> None:
        """Refuse broadcasting that moves a signal's batch dimension (``ndim`` of the result, batch included)."""
        if len(self.nodes[index].shape) + 1 != ndim:
            raise call.refuse(
                "broadcasting adds a dimension in front of the batch.", "Use unsqueeze to align the operands."
            )

    # --- what rules make ----------------------------------------------------------------------------------
    def _add(self, key: Any, make: Callable[[int], Node]) -> int:
        if key is not None and key in self._known:
            return self._known[key]
        index = len(self.nodes)
        self.nodes.append(make(index))
        if key is not None:
            self._known[key] = index
        return index

    def _key(self, call: Call, inputs: Sequence[int], extra: Any) -> Any:
        def name(node: fx.Node) -> Any:  # lists may hold signals and constants: both tell calls apart
            return ("signal", self.values[node]) if self.is_signal(node) else node.name

        arguments = sorted((k, fx.node.map_arg(v, name)) for k, v in call.arguments.items())
        return (call.operation, tuple(inputs), str(arguments), extra)

    def affine(
        self,
        call: Call,
        inputs: Sequence[int],
        apply: Callable[[Sequence[Tensor], Sequence[Coefficient]], Tensor],
        *,
        coefficients: Sequence[Callable[[Live], Coefficient]] = (),
        offset: Callable[[Live], Tensor] | None = None,
        shape: tuple[int, ...] | None = None,
        part: Any = None,
        terms: tuple[int, int] | None = None,
        roundings: int | None = None,
        offset_size: Callable[[Live], Tensor] | None = None,
        amplifies: Callable[[Live], Tensor] | None = None,
        form: Form | None = None,
        contracts: tuple[int, int] | None = None,
    ) -> int:
        """Add an affine map. ``part`` tells apart several nodes made from one call; the rest as in :class:`Affine`."""
        shape = self.shape_of(call) if shape is None else shape
        numbers, obstacle = tuple(coefficients), ""
        if roundings is not None and self._computed(call):
            roundings, obstacle = None, "its weights are computed in the forward"

        def make(i: int) -> Node:
            where = (i, call.operation, call.place, tuple(inputs), shape)
            counts = (terms, roundings, obstacle, offset_size, amplifies)
            return Affine(*where, apply, numbers, offset, *counts, form, contracts)

        return self._add(self._key(call, inputs, ("affine", part)), make)

    def _computed(self, call: Call) -> bool:
        """Whether an argument is a weight expression that rounds."""
        pending: list[fx.Node] = []
        fx.node.map_arg(call.arguments, lambda n: None if self.is_signal(n) else pending.append(n))
        while pending:
            node = pending.pop()
            if node.op == "placeholder":
                continue
            if _operation(node) not in _EXACT or _converts(node):
                return True
            pending += node.all_input_nodes
        return False

    def elementwise(
        self,
        call: Call,
        source: int,
        slopes: Callable[[Live], Slopes],
        function: Callable[[Tensor, Live], Tensor],
        departure: float = 0.0,
        roundings: int = 16,
        homogeneous: bool = False,
    ) -> int:
        """Add a slope-bounded activation; ``departure``, ``roundings``, ``homogeneous`` as in :class:`Elementwise`."""
        shape = self.shape_of(call)
        if shape != self.nodes[source].shape:
            raise call.refuse("its result does not have the shape of its input.")
        errs = None if self._computed(call) else roundings

        def make(i: int) -> Node:
            where = (i, call.operation, call.place, (source,), shape)
            return Elementwise(*where, function, slopes, departure, errs, homogeneous)

        return self._add(self._key(call, (source,), "elementwise"), make)

    def vector_map(
        self,
        call: Call,
        source: int,
        constant: float,
        function: Callable[[Tensor, Live], Tensor],
        shape: tuple[int, ...] | None = None,
        apart: tuple[int, ...] = (),
    ) -> int:
        """Add a Lipschitz map that is not elementwise; see :class:`VectorMap`."""
        shape = self.shape_of(call) if shape is None else shape
        return self._add(
            self._key(call, (source,), "vector"),
            lambda i: VectorMap(i, call.operation, call.place, (source,), shape, function, constant, apart),
        )
