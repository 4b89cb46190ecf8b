"""An ONNX graph as it was meant: sizes computed, and activations put together again that exporters take apart.

``x·σ(x)`` is a product of two signals to anybody who looks at it operator by operator, and has no Lipschitz constant as
such; as SiLU it has. What is put together is written as an operator again, of the same graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lipcert.errors import ImportFileError

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["DOMAINS", "simplified"]

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]
_Pattern: TypeAlias = "str | float | tuple[Any, ...]"
_Binding: TypeAlias = dict[str, Any]

DOMAINS = ("", "ai.onnx")
"""Of ONNX's own operators."""
_LARGEST = 2**10  # entries of what is computed here: shapes and amounts of padding, not weights
_SIZES = {
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Mul", "Neg", "Reshape", "Shape", "Slice", "Squeeze",
    "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
_COMMUTE = {"Add", "Mul"}

# In a pattern "x" is the signal, "λ" a number, the same at each place, "-λ" its negative; a number is itself, as
# float32 or float64 stores it; a tuple is an operator with its inputs.
_SHRINK_PARTS = (
    ("Where", ("Greater", "x", "λ"), ("Sub", "x", "λ"), 0.0),
    ("Where", ("Less", "x", "-λ"), ("Add", "x", "λ"), 0.0),
)
_SHRINK_SIGN = ("Where", ("Greater", ("Abs", "x"), "λ"), ("Sub", "x", ("Mul", ("Sign", "x"), "λ")), ("Mul", "x", 0.0))
_TIMES = ("Mul", "x", "λ")
_ERF = [("Add", ("Erf", ("Div", "x", 2**0.5)), 1.0), ("Add", ("Erf", ("Mul", "x", 0.5**0.5)), 1.0)]
_CUBES = [("Pow", "x", 3.0), ("Mul", "x", ("Mul", "x", "x"))]
_TANH = [("Add", ("Tanh", ("Mul", (2 / np.pi) ** 0.5, ("Add", "x", ("Mul", 0.044715, cube)))), 1.0) for cube in _CUBES]


def _halved(gate: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """``x·gate/2``, however it is bracketed."""
    return [
        ("Mul", ("Mul", "x", gate), 0.5),
        ("Mul", "x", ("Mul", gate, 0.5)),
        ("Mul", ("Mul", "x", 0.5), gate),
    ]


_PATTERNS: list[tuple[_Pattern, str, dict[str, Any]]] = [
    (("Mul", "x", ("Sigmoid", "x")), "Swish", {}),
    (("Mul", "x", ("Tanh", ("Softplus", "x"))), "Mish", {}),
    (("Mul", "x", ("HardSigmoid", "x")), "HardSwish", {}),
    (("Where", ("Greater", "x", 20.0), "x", ("Softplus", "x")), "Softplus", {}),
    (("Where", ("Greater", _TIMES, 20.0), "x", ("Div", ("Softplus", _TIMES), "λ")), "Softplus", {"beta": "λ"}),
    (("Div", "x", ("Add", ("Abs", "x"), 1.0)), "Softsign", {}),
    (_SHRINK_SIGN, "Shrink", {"bias": "λ", "lambd": "λ"}),
    (("Add", *_SHRINK_PARTS), "Shrink", {"bias": "λ", "lambd": "λ"}),
    (("Where", ("LessOrEqual", "x", "λ"), "λ", "x"), "Clip", {"min": "λ"}),
    (("Where", ("Greater", "x", "λ"), "x", "λ"), "Clip", {"min": "λ"}),
    *((p, "Gelu", {}) for gate in _ERF for p in _halved(gate)),
    *((p, "Gelu", {"approximate": "tanh"}) for gate in _TANH for p in _halved(gate)),
]


class _Matcher:
    """Looks for patterns in a graph."""

    def __init__(self, producers: Mapping[str, NodeProto], arrays: Mapping[str, Any]) -> None:
        self.producers, self.arrays = producers, arrays

    def find(self, pattern: _Pattern, name: str, known: _Binding) -> Iterator[_Binding]:
        """Each way in which a value is what a pattern says."""
        if isinstance(pattern, tuple):
            yield from self._operator(pattern, name, known)
        elif pattern == "x":
            if name not in self.arrays and known.get("x", name) == name:
                yield {**known, "x": name}
        elif (value := self._number(name)) is not None:
            if isinstance(pattern, str):  # it becomes an attribute, which is stored in float32
                value = -value if pattern.startswith("-") else value
                if value == float(np.float32(value)) and known.get("λ", value) == value:
                    yield {**known, "λ": value}
            elif value == pattern or value == float(np.float32(pattern)):
                yield known

    def _operator(self, pattern: tuple[Any, ...], name: str, known: _Binding) -> Iterator[_Binding]:
        node = self.producers.get(name)
        operator, *parts = pattern
        if node is None or node.op_type != operator or len(node.input) != len(parts) or len(node.output) != 1:
            return
        if operator == "HardSigmoid" and not _is_sixth(node):
            return
        orders = [list(node.input)]
        if operator in _COMMUTE:
            orders.append(orders[0][::-1])
        for order in orders:
            yield from self._all(list(zip(parts, order, strict=True)), known)

    def _all(self, pairs: list[tuple[_Pattern, str]], known: _Binding) -> Iterator[_Binding]:
        if not pairs:
            yield known
            return
        (pattern, name), *rest = pairs
        for found in self.find(pattern, name, known):
            yield from self._all(rest, found)

    def _number(self, name: str) -> float | None:
        array = self.arrays.get(name)
        if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind != "f":
            return None
        return float(array.reshape(()))


def _is_sixth(node: NodeProto) -> bool:
    """``clip(x/6 + 1/2, 0, 1)``, which is not what HardSigmoid is if nothing is said."""
    given = {a.name: a.f for a in node.attribute}
    return given.get("alpha") == float(np.float32(1 / 6)) and given.get("beta", 0.5) == 0.5


def _sizes(onnx: Any, node: NodeProto, arrays: Arrays, opset: int) -> np.ndarray[Any, Any] | None:
    """What an operator computes of whole numbers alone, if it does."""
    inputs = [arrays.get(name) for name in node.input]
    if (
        node.op_type not in _SIZES
        or node.domain not in DOMAINS
        or len(node.output) != 1
        or not inputs
        or any(v is None for v in inputs)
    ):
        return None
    given = [v for v in inputs if v is not None]
    if node.op_type != "Shape" and any(v.dtype.kind not in "iub" for v in given):
        return None
    if node.op_type != "Shape" and any(v.size > _LARGEST for v in given):
        return None  # weights of whole numbers, which are computed where the network runs
    if node.op_type == "ConstantOfShape" and (entries := float(np.prod(given[0].astype(float)))) > _LARGEST:
        raise ImportFileError(f"ConstantOfShape makes {entries:g} numbers: export with constants folded.")
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(node, opsets={"": opset})
        (result,) = evaluator.run(None, dict(zip(node.input, given, strict=True)))
    except Exception as error:  # of whatever kind the package has
        raise ImportFileError(f"{node.op_type} of constants could not be computed: {error}") from error
    if np.size(result) > _LARGEST:
        raise ImportFileError(f"{node.op_type} makes {np.size(result)} numbers of constants: export with them folded.")
    return np.asarray(result)


def simplified(
    onnx: Any, graph: GraphProto, constants: Mapping[str, Any], opset: int
) -> tuple[list[NodeProto], Arrays]:
    """The operators that are left, in order, and all constants.

    Args:
        onnx: the package.
        graph: of the file.
        constants: its initializers and what its ``Constant`` operators hold, by name.
        opset: of the file.

    Raises:
        ImportFileError: constants of which too much, or nothing sensible, is computed.
    """
    arrays: Arrays = dict(constants)
    results = [v.name for v in graph.output]
    nodes: list[NodeProto] = []
    for node in _used(graph.node, results):
        if node.op_type == "Constant":
            continue
        value = _sizes(onnx, node, arrays, opset)
        if value is None:
            nodes.append(node)
        else:
            arrays[node.output[0]] = value
    producers = {name: node for node in nodes if node.domain in DOMAINS for name in node.output if name}
    matcher = _Matcher(producers, arrays)
    changed = [_fused(onnx, node, matcher) for node in nodes]
    kept = _used(changed, results)
    needed = {name for node in kept for name in node.input} | set(results)
    return kept, {name: array for name, array in arrays.items() if name in needed}


def _fused(onnx: Any, node: NodeProto, matcher: _Matcher) -> NodeProto:
    """The activation whose last operator this is, if it is one."""
    if len(node.output) != 1 or node.domain not in DOMAINS:
        return node
    for pattern, operator, attributes in _PATTERNS:
        for found in matcher.find(pattern, node.output[0], {}):
            given = {k: found["λ"] if v == "λ" else v for k, v in attributes.items()}
            made: NodeProto = onnx.helper.make_node(operator, [found["x"]], list(node.output), **given)
            return made
    return node


def _used(nodes: Iterable[NodeProto], results: Iterable[str]) -> list[NodeProto]:
    """Those on which the results depend."""
    needed, kept = set(results), list["NodeProto"]()
    for node in reversed(list(nodes)):
        if needed & set(node.output):
            kept.append(node)
            needed |= {name for name in node.input if name}
    return kept[::-1]
