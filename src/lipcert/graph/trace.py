"""From a module to a graph, and the proof by example that the graph is the module."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn

import lipcert.graph.rules as _rules
from lipcert.errors import ModuleStateError, ShapeError, TraceError, UnsupportedError
from lipcert.graph.aliases import check_in_place, module_path
from lipcert.graph.builder import RULES, Builder, Call
from lipcert.graph.capture import Capture, capture, first_line, in_eval_mode, ordinary_mode
from lipcert.graph.rules.activations import softsign_of
from lipcert.graph.rules.refused import REFUSED
from lipcert.graph.rules.shape import getitem
from lipcert.graph.types import Elementwise, Graph, VectorMap

__all__ = ["check_mode", "trace"]

_GETITEM = "getitem"


def check_mode(module: nn.Module) -> None:
    """Refuse a module in train mode: dropout and batch statistics make it another function at every call.

    Raises:
        ModuleStateError: naming the first submodule in train mode.
    """
    for name, m in module.named_modules():
        if m.training:
            where = f"submodule '{name}'" if name else "the module"
            raise ModuleStateError(
                f"{where} is in train mode, where dropout and BatchNorm do something else than in use. "
                "Call module.eval() first."
            )


def _dependent(nodes: Sequence[fx.Node], source: fx.Node) -> set[fx.Node]:
    """Everything that is computed from the input's values (sizes are not values)."""
    found = {source}
    for node in nodes:
        if node.op != "call_function" or node.target is torch.ops.aten.sym_size.int:
            continue
        if any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _needed(output: fx.Node, *, meant: bool = False) -> set[fx.Node]:
    """Everything that a result is computed from; with ``meant``, what several operations mean counts as one."""
    found, pending = set(), [output]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            whole = softsign_of(node) if meant else None
            pending.extend(node.all_input_nodes if whole is None else [whole])
    return found


def _check_deterministic(constants: Iterable[fx.Node]) -> None:
    for node in constants:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise UnsupportedError(
                str(node.target), module_path(node), "it is random.", "Draw once and keep the result in a buffer."
            )


# Constants may have the batch size in their shape (zeros for a state, say) as long as it stays there: nothing may be
# computed from it. These make a shape, or keep one.
_SHAPED = frozenset(
    """
    zeros ones full empty new_zeros new_ones new_full zeros_like ones_like full_like
    expand broadcast_to view reshape _unsafe_view unsqueeze cat stack
    add sub mul div neg to _to_copy clone contiguous detach detach_ lift_fresh_copy alias type_as
    """.split()  # noqa: SIM905 - a list of one hundred quotes is harder to read
)


def _sized_by_batch(value: object) -> bool:
    return isinstance(value, Tensor) and any(isinstance(n, torch.SymInt) for n in value.shape)


def _keeps_batch(node: fx.Node, name: str) -> bool:
    """Whether an operation on constants that are sized by the batch treats all their rows alike."""
    if name == "slice":
        defaults: list[object] = [0, None, None, 1]
        dim, start, end, step = list(node.args[1:]) + defaults[len(node.args) - 1 :]
        return bool(dim != 0 or (start in (None, 0) and end in (None, 2**63 - 1) and step == 1))
    return name in _SHAPED


def _check_batch_size(nodes: Iterable[fx.Node], dependent: set[fx.Node]) -> None:
    """Refuse numbers that are computed from the batch size: a graph has none, so they would be another network's."""
    for node in nodes:
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if name == "sym_size" or (name == "slice" and node in dependent):  # the rule of slicing sees to the latter
            continue
        value, arguments = node.meta.get("val"), [*node.args, *node.kwargs.values()]
        numbers = [a for a in arguments if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), torch.SymInt)]
        sized = [n for n in (node, *node.all_input_nodes) if _sized_by_batch(n.meta.get("val"))]
        mixed = node not in dependent and sized and not (_keeps_batch(node, name) and _sized_by_batch(value))
        if numbers or mixed or isinstance(value, torch.SymInt):
            raise UnsupportedError(
                str(node.target),
                module_path(node),
                "it computes with the batch size, so the network is another one for each size of batch.",
                "Write the number that is meant, or divide by x.shape[0] outside of the module.",
            )


def _build(recorded: Capture) -> Graph:
    result = next(n for n in recorded.nodes if n.op == "output")
    returned = result.args[0]
    assert isinstance(returned, (tuple, list))
    output = returned[0]
    dependent = _dependent(recorded.nodes, recorded.input)
    if not isinstance(output, fx.Node) or output not in dependent:
        raise TraceError("the module's output does not depend on its input.")
    needed = _needed(output)
    check_in_place(recorded.nodes, {*needed, result}, recorded.input)
    _check_deterministic([n for n in needed if n not in dependent])
    _check_batch_size([n for n in recorded.nodes if n in needed], dependent)
    b, built = Builder(recorded.input), _needed(output, meant=True)
    for node in recorded.nodes:
        if node is recorded.input or node not in dependent or node not in built:
            continue
        if getattr(node.target, "__name__", "") == _GETITEM:
            part = getitem(b, node)
            if part is None:
                raise UnsupportedError(
                    str(node.args[0]),
                    module_path(node),
                    "its indices are used: they jump.",
                    "Use the values only.",
                )
            b.values[node] = part
            continue
        call = Call(node)
        function = RULES.get(call.name)
        if function is None:
            raise UnsupportedError(
                call.operation,
                call.place,
                "lipcert has no rule for this operation.",
                "See docs/architecture.md, 'Adding a rule', or replace it by a supported layer.",
            )
        b.values[node] = function(b, call)
    index = b.values[output]
    if isinstance(index, tuple):
        raise TraceError("the module returns several tensors.")
    return Graph(tuple(b.nodes), index, recorded)


def _close(a: Tensor, b: Tensor, tolerance: float, noise: float = 0.0) -> bool:
    scale = max(float(a.abs().max()), float(b.abs().max()), torch.finfo(a.dtype).tiny)
    return bool(((a - b).abs() <= tolerance * scale + noise).all())


def _check_coefficients(graph: Graph, tolerance: float) -> None:
    """Weights must mean the same in float64, where bounds are computed, as in the module's own dtype."""
    own, exact = graph.resolve(), graph.resolve(torch.float64)
    for node, mine, wide in zip(graph.nodes, own.coefficients, exact.coefficients, strict=True):
        for a, b in zip(mine, wide, strict=True):
            if isinstance(a, Tensor) and isinstance(b, Tensor) and not _close(a.double(), b, tolerance):
                raise TraceError(
                    f"the weights of {node.describe()} are something else in float64, where bounds are computed: "
                    "they come from an expression (a rounding, a comparison) that jumps between dtypes. Store its "
                    "result in a buffer."
                )


def _fewer(module: nn.Module, x: Tensor, rows: int) -> Tensor:
    try:
        y: Tensor = module(x[:rows].clone())
    except Exception as error:
        raise TraceError(f"the module fails on a batch of {rows}: {first_line(error)}") from error
    if y.ndim < 1 or y.shape[0] != rows:
        raise TraceError(f"the module maps a batch of {rows} to an output of shape {tuple(y.shape)}.")
    return y


def _check(graph: Graph, module: nn.Module) -> None:
    """The graph must compute what the module computes, each sample by itself, within the claimed slopes."""
    sample = graph.capture.sample
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(sample.dtype, 5e-2)
    with torch.no_grad():
        _check_coefficients(graph, tolerance)
    generator = torch.Generator().manual_seed(1)
    for scale, shift in ((1.0, 0.0), (4.0, -2.0)):
        x = torch.rand(sample.shape, generator=generator, dtype=torch.float64).to(sample) * scale + shift
        with torch.no_grad(), in_eval_mode(module):
            expected, fewer = module(x.clone()), [_fewer(module, x, n) for n in (1, 2)]
            with torch.enable_grad():
                fewer.append(_fewer(module, x.requires_grad_(), 3).detach())
            values = graph.forward(x.requires_grad_(False))
            noise = float((graph.forward(x.double())[graph.output] - values[graph.output]).abs().max())
        if not _close(values[graph.output], expected, tolerance):
            raise TraceError(
                "the traced graph does not compute what the module computes (largest difference "
                f"{float((values[graph.output] - expected).abs().max()):.3g}): its forward is random, or changes "
                "state that it reads. If it is neither, please report this as a bug in lipcert."
            )
        if any(
            y.shape[1:] != expected.shape[1:] or not _close(y, expected[: len(y)], tolerance, 10 * noise) for y in fewer
        ):
            raise TraceError(
                "the module's output for a sample depends on the other samples of the batch, or on whether gradients "
                "are wanted, so a guarantee for each sample would be meaningless. Use BatchNorm with stored "
                "statistics, in eval mode, and no `if torch.is_grad_enabled()`."
            )
        _check_slopes(graph, values, tolerance)


def _check_slopes(graph: Graph, values: list[Tensor], tolerance: float) -> None:
    resolved = graph.resolve(values[0].dtype, values[0].device)
    for node in graph.nonlinear:
        z, a = values[node.inputs[0]], values[node.index]
        dz, da = (z[1:] - z[:1]).double(), (a[1:] - a[:1]).double()
        slack = tolerance * max(float(z.abs().max()), float(a.abs().max()), 1e-30)
        if isinstance(node, Elementwise):
            slopes = resolved.slopes[node.index]
            gap = (da - slopes.centre * dz).abs() - slopes.radius * dz.abs()
        else:
            assert isinstance(node, VectorMap)
            gap = da.reshape(len(da), -1).norm(dim=1) - node.constant * dz.reshape(len(dz), -1).norm(dim=1)
            slack *= max(1.0, a[0].numel() ** 0.5)
        if bool((gap > slack).any()):
            raise TraceError(
                f"{node.describe()} is steeper than its rule claims. Please report this as a bug in lipcert."
            )


def _sizes(input_shape: Sequence[int]) -> tuple[int, ...]:
    try:
        sizes = tuple(n if isinstance(n, bool) else operator.index(n) for n in input_shape)
    except TypeError:
        sizes = ()
    if not sizes or any(isinstance(n, bool) or n < 1 for n in sizes):
        raise ShapeError(f"input_shape must hold positive integers, without the batch dimension; got {input_shape!r}")
    return sizes


def trace(module: nn.Module, input_shape: Sequence[int], *, allow_train_mode: bool = False) -> Graph:
    """Turn a module into a graph of affine maps and slope-bounded activations.

    The graph comes from the module's real computation (``torch.export``), so functional calls and operators are
    seen as well as layers. It is checked: at random inputs it must compute what the module computes.

    Args:
        module: any ``nn.Module`` in eval mode with one input and one output tensor, batch first.
        input_shape: shape of one input, without the batch dimension.
        allow_train_mode: trace the eval form of a module that is in train mode (used while training).

    Raises:
        UnsupportedError: an operation has no Lipschitz rule; says which, where, and what to use instead.
        TraceError: the computation cannot be recorded, or the graph is not the module.
        ModuleStateError: the module is in train mode, or holds a NaN or an infinity.
        ShapeError: the module does not accept the shape.

    Example:
        >>> import torch
        >>> class Residual(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.inner, self.outer = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        ...     def forward(self, x):
        ...         return x + self.outer(torch.relu(self.inner(x)))
        >>> graph = trace(Residual().eval(), (4,))
        >>> len(graph.nonlinear), graph.output_shape
        (1, (4,))
    """
    assert _rules  # importing them registers them
    if isinstance(module, nn.Module) and not allow_train_mode:
        check_mode(module)
    with ordinary_mode():
        try:
            graph = _build(capture(module, _sizes(input_shape)))
        except TraceError as error:
            if (attention := _attention(module, error)) is not None:
                raise attention from error
            raise
        _check(graph, module)
    return graph


def _attention(module: nn.Module, error: TraceError) -> UnsupportedError | None:
    """What torch's own attention is refused with: its forward stumbles over its shapes before it comes to the point."""
    for name, m in module.named_modules() if isinstance(module, nn.Module) else ():
        if isinstance(m, nn.MultiheadAttention) and getattr(error, "place", name).startswith(name):
            return UnsupportedError("nn.MultiheadAttention", name, *REFUSED["scaled_dot_product_attention"])
    return None
