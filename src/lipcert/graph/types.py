"""What a traced network is: affine maps, slope-bounded activations and Lipschitz vector maps in a DAG.

Shapes here are those of one sample; every tensor that flows through a graph has one more dimension in front,
the batch. Nothing in a graph is a number: weights are read from the live module each time a graph is resolved,
so that a graph traced once follows the weights through training.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor

from lipcert.errors import TraceError
from lipcert.graph.forms import Form

if TYPE_CHECKING:
    from lipcert.graph.capture import Capture

__all__ = [
    "Affine",
    "Coefficient",
    "Elementwise",
    "Graph",
    "InputNode",
    "Live",
    "Node",
    "Nonlinear",
    "Resolved",
    "Slopes",
    "VectorMap",
]

Coefficient: TypeAlias = Tensor | float
"""A weight of an affine map. Each map is linear in its inputs *and* has non-negative structure in its
coefficients, so that |coefficients| give the map of absolute values (used by rounding analysis)."""


class Live(Protocol):
    """Reads the present value of a weight, a buffer or an expression of them, in one dtype and on one device."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, argument: Any) -> Any:
        """The value of a graph argument that does not depend on the input."""


@dataclass(frozen=True)
class Slopes:
    """An elementwise function whose difference quotients lie in ``[lower, upper]``.

    Both are numbers, or tensors that broadcast against one sample (a slope for each channel, say).
    """

    lower: Coefficient
    upper: Coefficient

    @property
    def centre(self) -> Coefficient:
        """``c = (α + β)/2``."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Coefficient:
        """``r = (β − α)/2``."""
        return (self.upper - self.lower) / 2

    @property
    def lipschitz(self) -> Coefficient:
        """``max(|α|, |β|)``, the Lipschitz constant of the function."""
        if isinstance(self.lower, Tensor) or isinstance(self.upper, Tensor):
            # a number beside a tensor becomes one of the same dtype, not of the default one
            dtype = next(v.dtype for v in (self.lower, self.upper) if isinstance(v, Tensor))
            lower, upper = torch.as_tensor(self.lower, dtype=dtype), torch.as_tensor(self.upper, dtype=dtype)
            return torch.maximum(lower.abs(), upper.abs())
        return max(abs(self.lower), abs(self.upper))

    @staticmethod
    def about(centre: Tensor, radius: Tensor) -> Slopes:
        """Slopes of that centre and radius, to the last digit."""
        return _Given(centre - radius, centre + radius, (centre, radius))


@dataclass(frozen=True)
class _Given(Slopes):
    """Slopes of which centre and radius are given rather than computed: adding them up could lose a small one."""

    given: tuple[Coefficient, Coefficient] = (0.0, 0.0)

    @property
    def centre(self) -> Coefficient:
        return self.given[0]

    @property
    def radius(self) -> Coefficient:
        return self.given[1]


@dataclass(frozen=True, eq=False)
class Node:
    """One step of the computation; ``inputs`` are indices of earlier nodes."""

    index: int
    operation: str
    place: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]

    def describe(self) -> str:
        """A short name for messages, such as ``aten.conv2d in 'features.0'``."""
        return f"{self.operation} in '{self.place}'" if self.place else self.operation


@dataclass(frozen=True, eq=False)
class InputNode(Node):
    """The network's input."""


@dataclass(frozen=True, eq=False)
class Affine(Node):
    """``x ↦ apply(x, coefficients) + offset``; ``apply`` is linear in the tensors it is given.

    ``terms`` says how many products an entry of the result sums at most, and an entry of the adjoint's result: what
    the rounding of a sum depends on. None where nobody has counted; it may then be all entries of the inputs.

    ``roundings`` says how often an entry of the executed result is rounded at most, in whatever order its sum is made;
    0 where entries are only moved. None where that is not known; ``obstacle`` then says why, if the operation itself
    is not the reason. ``offset_size`` is what is rounded on the way to the offset, where that is more than the offset,
    and ``amplifies`` what stored numbers are multiplied by before they meet the signal.

    ``form`` says what kind of map it is, where that is needed to bound its norm at any size (``norms/chain.py``).
    ``contracts`` names the dimension of a sample along which it is a sum, and that of its weight w, its only
    coefficient, over which it is: cut both in the same places, and the results of the pieces add up to the whole.
    """

    apply: Callable[[Sequence[Tensor], Sequence[Coefficient]], Tensor]
    coefficients: tuple[Callable[[Live], Coefficient], ...] = ()
    offset: Callable[[Live], Tensor] | None = None
    terms: tuple[int, int] | None = None
    roundings: int | None = None
    obstacle: str = ""
    offset_size: Callable[[Live], Tensor] | None = None
    amplifies: Callable[[Live], Tensor] | None = None
    form: Form | None = None
    contracts: tuple[int, int] | None = None

    def offset_terms(self, live: Live) -> Tensor:
        """How large what is summed up to the offset is; zero if there is none."""
        if self.offset_size is not None:
            return self.offset_size(live)
        if self.offset is not None:
            return self.offset(live).abs()
        return torch.zeros((), dtype=live.dtype, device=live.device)


@dataclass(frozen=True, eq=False)
class Nonlinear(Node):
    """A node at which the loop is opened: everything between two of them is affine."""

    function: Callable[[Tensor, Live], Tensor]


@dataclass(frozen=True, eq=False)
class Elementwise(Nonlinear):
    """A slope-bounded function applied to each entry.

    ``departure`` is how far torch's function departs from it, beyond rounding (softplus gives way to x for large x).
    ``roundings`` n: the executed function errs by n·u·(|φ(0)| + max(|α|, |β|)·|z|) at most.
    ``homogeneous``: φ(λ·z) = λ·φ(z) for λ ≥ 0, so it is linear on either side of 0, with slopes φ(1) and −φ(−1).
    """

    slopes: Callable[[Live], Slopes]
    departure: float = 0.0
    roundings: int | None = 16
    homogeneous: bool = False


@dataclass(frozen=True, eq=False)
class VectorMap(Nonlinear):
    """A map with ``‖f(z) − f(z')‖ ≤ constant·‖z − z'‖`` that is not elementwise (max pooling, sorting).

    Every entry of its result is one of its input's, or lies between two of them.

    ``apart`` names the dimensions of a sample along which it keeps apart: with the input's indices along these given, f
    is a map of its own, of the same constant, and its result has the same indices there.
    """

    constant: float
    apart: tuple[int, ...] = ()


@dataclass(frozen=True)
class Resolved:
    """The numbers of a graph at one moment, in one dtype and on one device.

    Attributes:
        coefficients: for each node the coefficients of its affine map (empty for the others).
        slopes: for each elementwise node, by index, its slopes.
        live: reads further values (offsets, weights of activations).
    """

    coefficients: tuple[tuple[Coefficient, ...], ...]
    slopes: dict[int, Slopes]
    live: Live
    dtype: torch.dtype
    device: torch.device

    def absolute(self) -> Resolved:
        """The same numbers without their signs: the map ``|T|`` that bounds the rounding of ``T``."""
        return self._absolute

    @cached_property
    def _absolute(self) -> Resolved:
        return Resolved(
            tuple(tuple(_size(c) for c in cs) for cs in self.coefficients),
            {i: _Given(0.0, s.lipschitz, (_size(s.centre), s.radius)) for i, s in self.slopes.items()},
            self.live,
            self.dtype,
            self.device,
        )

    def steepest(self) -> Resolved:
        """The same numbers with ℓ for the centre of each activation and 1 for its radius: above any choice of lines."""
        steep = {i: s.lipschitz for i, s in self.slopes.items()}
        slopes: dict[int, Slopes] = {i: _Given(0.0, v, (v, 1.0)) for i, v in steep.items()}
        return Resolved(self.coefficients, slopes, self.live, self.dtype, self.device)

    def scalar(self, value: float) -> Tensor:
        """A number in the same dtype and on the same device."""
        return torch.tensor(value, dtype=self.dtype, device=self.device)

    def tensors(self) -> list[Tensor]:
        """Every tensor among the numbers, in a fixed order."""
        found = [c for cs in self.coefficients for c in cs if isinstance(c, Tensor)]
        found += [v for s in self.slopes.values() for v in (s.lower, s.upper) if isinstance(v, Tensor)]
        return found

    def with_tensors(self, tensors: Sequence[Tensor]) -> Resolved:
        """The same with its tensors replaced by others, in the order of :meth:`tensors`."""
        rest = iter(tensors)

        def take(value: Coefficient) -> Coefficient:
            return next(rest) if isinstance(value, Tensor) else value

        coefficients = tuple(tuple(take(c) for c in cs) for cs in self.coefficients)
        slopes = {i: Slopes(take(s.lower), take(s.upper)) for i, s in self.slopes.items()}
        return Resolved(coefficients, slopes, self.live, self.dtype, self.device)


def _size(value: Coefficient) -> Coefficient:
    return value.abs() if isinstance(value, Tensor) else abs(value)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network as a DAG in topological order: the first node is the input, ``output`` the last of interest.

    Example:
        >>> import torch, lipcert
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
        >>> graph = lipcert.trace(net, (3,))
        >>> [type(node).__name__ for node in graph.nodes]
        ['InputNode', 'Affine', 'Elementwise', 'Affine']
        >>> graph.input_shape, graph.output_shape
        ((3,), (2,))
    """

    nodes: tuple[Node, ...]
    output: int
    capture: Capture

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refused: a graph belongs to one module, and a copy would go on reading that one's weights."""
        raise TraceError(
            "a traced graph, and what holds one (a TrainingBound, say), cannot be copied or pickled: it reads the "
            "weights of the module that it was traced from. Copy the module and trace the copy; keep a TrainingBound "
            "outside of the module that is copied, and save its state_dict()."
        )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.nodes[0].shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one output."""
        return self.nodes[self.output].shape

    @property
    def nonlinear(self) -> tuple[Nonlinear, ...]:
        """The K nodes at which the loop is opened, in order."""
        return tuple(node for node in self.nodes if isinstance(node, Nonlinear))

    @cached_property
    def users(self) -> Counter[int]:
        """How many times the value of each node is used by others."""
        return Counter(i for node in self.nodes for i in node.inputs)

    def resolve(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Resolved:
        """Read every weight now, cast to ``dtype`` and moved to ``device`` (by default as the module has them).

        Parameters are cast *before* parametrisations and normalisation scales are computed from them, so a
        float64 resolution is the real-arithmetic network of the stored weights. Autograd follows through.
        """
        live = self.capture.live(dtype, device)

        def settle(value: Coefficient) -> Coefficient:
            return value.to(dtype=live.dtype, device=live.device) if isinstance(value, Tensor) else value

        coefficients = tuple(
            tuple(settle(get(live)) for get in node.coefficients) if isinstance(node, Affine) else ()
            for node in self.nodes
        )
        slopes = {n.index: n.slopes(live) for n in self.nodes if isinstance(n, Elementwise)}
        slopes = {i: Slopes(settle(s.lower), settle(s.upper)) for i, s in slopes.items()}
        return Resolved(coefficients, slopes, live, live.dtype, live.device)

    def forward(self, x: Tensor, resolved: Resolved | None = None) -> list[Tensor]:
        """The value of every node at a batch ``x`` of shape ``(N, *input_shape)``: the network itself, unrolled."""
        values = self.resolve(x.dtype, x.device) if resolved is None else resolved
        results: list[Tensor] = []
        for node in self.nodes:
            results.append(x if isinstance(node, InputNode) else self._value(node, results, values))
        return results

    def evaluate(
        self,
        x: Tensor,
        resolved: Resolved,
        watch: Callable[[Node, Sequence[Tensor], Tensor], None] | None = None,
        *,
        activate: Callable[[Nonlinear, Tensor], Tensor] | None = None,
        offsets: bool = True,
    ) -> Tensor:
        """The output at a batch; like :meth:`forward`, but no value is kept longer than it is needed.

        Args:
            x: ``(N, *input_shape)``.
            resolved: the numbers.
            watch: ``watch(node, operands, value)`` is called at each node, in order.
            activate: makes the value of a nonlinear node from its operand, instead of the node's own function.
            offsets: whether affine maps add theirs.
        """
        last = {i: node.index for node in self.nodes[: self.output + 1] for i in node.inputs}
        results: list[Tensor] = []
        gone = x.new_zeros(())
        for node in self.nodes[: self.output + 1]:
            if isinstance(node, InputNode):
                value = x
            elif activate is not None and isinstance(node, Nonlinear):
                value = activate(node, results[node.inputs[0]])
            else:
                value = self._value(node, results, resolved, offsets)
            results.append(value)
            if watch is not None:
                watch(node, [results[i] for i in node.inputs], results[-1])
            for i in node.inputs:
                if last[i] == node.index:
                    results[i] = gone
        return results[self.output]

    def _value(self, node: Node, results: Sequence[Tensor], resolved: Resolved, offsets: bool = True) -> Tensor:
        operands = [results[i] for i in node.inputs]
        if isinstance(node, Affine):
            out = node.apply(operands, resolved.coefficients[node.index])
            return out + node.offset(resolved.live) if offsets and node.offset is not None else out
        assert isinstance(node, Nonlinear)
        return node.function(operands[0], resolved.live)

    def sizes(self, largest: Tensor, resolved: Resolved, *, per_rounding: float) -> list[Tensor]:
        """How large each node's value, and everything that is summed up in it, can be where ``|x| ≤ largest``.

        ``|W|·s + |b|`` at affine maps, ``|φ(0)| + ℓ·s`` at activations. A computation with n roundings on each path
        errs by at most ``γ_n`` times this, entry by entry.

        Args:
            largest: ``(n, *input_shape)``, not negative.
            resolved: the numbers.
            per_rounding: the γ_n with which the result will be multiplied; what errs absolutely is divided by it.

        Returns:
            for each node up to the output ``(n, *shape)``.
        """
        absolute, results = resolved.absolute(), list[Tensor]()
        for node in self.nodes[: self.output + 1]:
            operands = [results[i] for i in node.inputs]
            if isinstance(node, InputNode):
                size = largest
            elif isinstance(node, Affine):
                size = node.apply(operands, absolute.coefficients[node.index])
                size = size + node.offset_terms(resolved.live)
            elif isinstance(node, Elementwise):
                still = node.function(torch.zeros_like(operands[0]), resolved.live).abs()
                size = still + operands[0] * resolved.slopes[node.index].lipschitz + node.departure / per_rounding
            else:
                rows = len(operands[0])
                most = operands[0].reshape(rows, math.prod(operands[0].shape[1:])).amax(1)
                size = most.reshape(rows, *(1,) * len(node.shape)).expand(rows, *node.shape)
            results.append(size + 2.0**-900)  # more than what underflow can take from it
        return results
