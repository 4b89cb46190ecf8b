"""An ONNX file as an ``nn.Module``, which is then traced like any other.

The module runs the file's graph operator by operator in torch (:mod:`lipcert.exchange.operators`); what has a Lipschitz
bound and what has not is decided where a module is traced, in one place. It is compared with another implementation
of ONNX at random inputs before it is handed out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lipcert.errors import ImportFileError
from lipcert.exchange.operators import OPERATORS, VALUES, Sizes
from lipcert.exchange.simplify import DOMAINS, simplified
from lipcert.graph.capture import first_line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

__all__ = ["OnnxModule", "load_onnx"]

_OLDEST = 7
_ROWS = 3  # that are compared with the other implementation
_TOLERANCE, _NOISE = 1e-3, 256
_SCALES = (1e-2, 1.0, 30.0)
_FLOATS = {1: torch.float32, 10: torch.float16, 11: torch.float64}


def _package() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportFileError("ONNX files need the package onnx: pip install onnx.") from error
    return onnx


class _Step(nn.Module):
    """One operator, with its constants."""

    def __init__(self, node: NodeProto, attributes: dict[str, Any]) -> None:
        super().__init__()
        self.operator, self.attributes = node.op_type, attributes
        self.inputs, self.outputs = list(node.input), list(node.output)

    def forward(self, values: dict[str, Any], arrays: Mapping[str, Any]) -> None:
        inputs = [values[name] if name else None for name in self.inputs]
        for i in VALUES.get(self.operator, ()):
            if i < len(inputs) and inputs[i] is not None:
                inputs[i] = self._array(self.inputs[i], values, arrays)
        while inputs and inputs[-1] is None:
            inputs.pop()
        result = OPERATORS[self.operator](self.attributes, *inputs)
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip([n for n in self.outputs if n], results, strict=False))

    def _array(self, name: str, values: dict[str, Any], arrays: Mapping[str, Any]) -> Any:
        found = values[name]
        if name in arrays:
            return arrays[name]
        if isinstance(found, Sizes) and all(isinstance(n, int) for n in found[2:]):
            return np.array([0, 0, *found[2:]])  # sizes of a Resize, of which the batch is left alone
        raise ImportFileError(f"{self.operator} with values that are computed in the network is not supported.")

    def extra_repr(self) -> str:
        return self.operator


class OnnxModule(nn.Module):
    """The computation of an ONNX graph with one input and one output.

    Attributes:
        input_shape: of one sample; the first dimension of the file's input is the batch.
        dtype: of the file's input.
    """

    dtype = torch.float32

    def __init__(self, graph: GraphProto, input_shape: Sequence[int], batch: int | None, opset: int) -> None:
        super().__init__()
        onnx = _package()
        self.input_shape, self.batch = tuple(input_shape), batch
        self.steps = nn.ModuleDict()
        nodes, constants = simplified(onnx, graph, _constants(onnx, graph), opset)
        _check_operators(nodes)
        for i, node in enumerate(nodes):
            attributes = {a.name: _attribute(onnx, a) for a in node.attribute}
            attributes |= {"outputs": len(node.output), "opset": opset, "upsample": node.op_type == "Upsample"}
            self.steps[f"{i}_{node.op_type}"] = _Step(node, attributes)
        self.names: dict[str, str] = {}
        self.arrays = {name: np.array(value) for name, value in constants.items()}  # of the machine's byte order
        statistics = {n for node in nodes if node.op_type == "BatchNormalization" for n in node.input[3:5]}
        for i, (name, value) in enumerate(self.arrays.items()):
            if value.dtype.kind == "f":
                self.names[name] = f"constant_{i}"
                if name in statistics:
                    self.register_buffer(self.names[name], torch.from_numpy(value))
                else:
                    setattr(self, self.names[name], nn.Parameter(torch.from_numpy(value)))
        (self.source,) = [v.name for v in graph.input if v.name not in {t.name for t in graph.initializer}]
        self.result = graph.output[0].name

    def forward(self, x: Tensor) -> Tensor:
        """The file's output at a batch of any size."""
        values: dict[str, Any] = {
            name: Sizes(array.reshape(-1).tolist(), array.shape) for name, array in self.arrays.items()
        }
        values |= {name: getattr(self, own) for name, own in self.names.items()}
        values[self.source] = x
        for step in self.steps.values():
            assert isinstance(step, _Step)
            if step.operator == "Reshape" and self.batch is not None and isinstance(values[step.inputs[0]], Tensor):
                values = self._free_batch(step, values)
            step(values, self.arrays)
        result: Tensor = values[self.result]
        return result

    def _free_batch(self, step: _Step, values: dict[str, Any]) -> dict[str, Any]:
        """A file that was written for one size of batch has it in its shapes: there it means the batch."""
        shape = values[step.inputs[1]]
        if not isinstance(shape, Sizes) or not shape or shape[0] != self.batch:
            return values
        return {**values, step.inputs[1]: Sizes([values[step.inputs[0]].shape[0], *shape[1:]])}


def _attribute(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value


def _constants(onnx: Any, graph: GraphProto) -> dict[str, Any]:
    """Initializers, and what ``Constant`` operators hold."""
    found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = _constant({a.name: _attribute(onnx, a) for a in node.attribute})
    return found


def _constant(attributes: Mapping[str, Any]) -> Any:
    for name in ("value", "value_float", "value_floats", "value_int", "value_ints"):
        if name in attributes:
            dtype = np.float32 if "float" in name else np.int64 if "int" in name else None
            return np.asarray(attributes[name], dtype)
    raise ImportFileError("the file has a constant that is neither a tensor nor a number.")


def _shape(value: ValueInfoProto) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def _check(model: ModelProto) -> None:
    """Refuse what cannot be read, all of it in one message."""
    graph = model.graph
    for imported in model.opset_import:
        if imported.domain in DOMAINS and imported.version < _OLDEST:
            raise ImportFileError(f"opset {imported.version} is too old: export with opset {_OLDEST} or later.")
    given = {t.name for t in graph.initializer}
    inputs = [v for v in graph.input if v.name not in given]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise ImportFileError(
            f"the network has {len(inputs)} inputs and {len(graph.output)} outputs; lipcert bounds maps from one "
            "tensor to one. Concatenate several inputs before the network and split them in it."
        )
    if graph.sparse_initializer or model.functions:
        raise ImportFileError("sparse weights and functions of the file's own are not supported: export without them.")


def _check_operators(nodes: Sequence[NodeProto]) -> None:
    """Refuse what is not read, all of it in one message."""
    unknown = sorted({n.op_type if n.domain in DOMAINS else f"{n.domain}.{n.op_type}" for n in nodes} - set(OPERATORS))
    if unknown:
        raise ImportFileError(
            f"operators that lipcert's ONNX importer does not read: {', '.join(unknown)}. It reads "
            f"{', '.join(sorted(OPERATORS))}."
        )


def _reference(path: Path, model: ModelProto) -> Any:
    """Another implementation of ONNX: a function from the input to the output, as arrays."""
    name = next(v.name for v in model.graph.input if v.name not in {t.name for t in model.graph.initializer})
    try:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {name: x})[0]
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(model)
        return lambda x: evaluator.run(None, {name: x})[0]  # type: ignore[index]


def load_onnx(path: str | Path, *, check: bool = True) -> OnnxModule:
    """Read a network from an ONNX file.

    Args:
        path: of the file. Weights in further files beside it are read too.
        check: compare with another implementation of ONNX (onnxruntime where it is installed, else the one that comes
            with the package onnx) at random inputs.

    Returns:
        A module in eval mode, in the dtype of the file's weights, from ``(N, *input_shape)`` to
        ``(N, *output_shape)`` for any N.

    Raises:
        ImportFileError: it is no ONNX file, has an operator that is not read, more than one input or output, an input
            of unknown size, or computes something else than the other implementation.

    Example:
        >>> import lipcert
        >>> module = lipcert.load_onnx("model.onnx")                  # doctest: +SKIP
        >>> lipcert.lipschitz(module, module.input_shape)             # doctest: +SKIP
    """
    onnx, path = _package(), Path(path)
    try:
        model = onnx.load(path)
        onnx.checker.check_model(str(path))
    except FileNotFoundError as error:
        raise ImportFileError(f"there is no file {path}, or the file of its weights is missing.") from error
    except Exception as error:  # the package has no common kind of its own
        raise ImportFileError(f"{path} is not a valid ONNX file: {first_line(error)}") from error
    try:
        _check(model)
        return _read(path, model, check)
    except ImportFileError as error:
        raise ImportFileError(f"{path}: {error}") from error


def _read(path: Path, model: ModelProto, check: bool) -> OnnxModule:
    graph = model.graph
    source = next(v for v in graph.input if v.name not in {t.name for t in graph.initializer})
    batch, *sizes = _shape(source) or [None]
    if source.type.tensor_type.elem_type not in _FLOATS:
        raise ImportFileError(f"its input '{source.name}' does not hold floating-point numbers.")
    if not sizes or any(n is None or n < 1 for n in sizes):
        shown = ", ".join("?" if n is None else str(n) for n in (batch, *sizes))
        raise ImportFileError(
            f"its input '{source.name}' has the shape ({shown}): all but the first dimension, which is the batch, "
            "must be known numbers."
        )
    opset = max((i.version for i in model.opset_import if i.domain in DOMAINS), default=_OLDEST)
    module = OnnxModule(graph, [n for n in sizes if n is not None], batch or None, opset).eval()
    module.dtype = _FLOATS[source.type.tensor_type.elem_type]
    if check:
        try:
            reference = _reference(path, model)
        except Exception as error:  # of whichever implementation it is
            raise ImportFileError(f"another implementation of ONNX refuses it: {first_line(error)}") from error
        _compare(module, reference)
    return module


def _check_batches(module: OnnxModule, x: Tensor, y: Tensor) -> None:
    """A file that was written for one size of batch must make sense for others."""
    again = torch.cat([x, x[:1]])
    try:
        with torch.no_grad():
            same = torch.allclose(module(again)[: len(y)], y, rtol=1e-3, atol=1e-5)
    except (RuntimeError, ValueError, IndexError):
        same = False
    if not same:
        raise ImportFileError(
            f"it was exported for batches of {module.batch} alone, and its shapes depend on that: export it with a "
            "batch of any size (dynamic_shapes or dynamic_axes of torch.onnx.export)."
        )


def _compare(module: OnnxModule, reference: Any) -> None:
    """Set differences of outputs beside each other, entry by entry: a large constant must not hide a small signal."""
    dtype = module.dtype
    rows = _ROWS if module.batch is None else module.batch
    generator = torch.Generator().manual_seed(0)
    for scale in _SCALES:
        x = torch.randn((2 * rows, *module.input_shape), generator=generator).mul(scale).to(dtype)
        (a, b), (c, d) = _both(module, reference, x[:rows]), _both(module, reference, x[rows:])
        gap, spread = ((a - c) - (b - d)).abs().amax(0), (b - d).abs().amax(0)
        if not all(bool(torch.isfinite(v).all()) for v in (a, b, c, d)):
            raise ImportFileError(f"its output is not finite at inputs of about {scale:g}: it has no bound as it runs.")
        # an entry is a sum of what may be as large as the largest, and differs by its rounding
        noise = _NOISE * torch.finfo(dtype).eps * torch.maximum(b.abs(), d.abs()).amax()
        if not bool((gap <= _TOLERANCE * spread + noise).all()):
            raise ImportFileError(
                "what was read computes something else than another implementation of ONNX: outputs differ by up to "
                f"{float(gap.max()):.3g} of {float(spread.max()):.3g}. Please report this as a bug in lipcert."
            )


def _both(module: OnnxModule, reference: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output here and there, in float64."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mine, theirs = module(x), torch.from_numpy(np.array(reference(x.numpy())))
        except ImportFileError:
            raise
        except Exception as error:
            raise ImportFileError(f"it does not run: {first_line(error)}") from error
    if not isinstance(mine, Tensor) or not mine.is_floating_point():
        raise ImportFileError("its output is not a floating-point tensor that is computed from the input.")
    if module.batch is not None:
        _check_batches(module, x, mine)
    if mine.shape != theirs.shape or not mine.numel():
        raise ImportFileError(f"read as a map to {tuple(mine.shape)}, where it is one to {tuple(theirs.shape)}.")
    return mine.double(), theirs.double()
