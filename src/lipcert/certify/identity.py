"""What a certificate is of: a network and samples, described so that anyone can see whether they have the same ones."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from lipcert.digests import digest
from lipcert.errors import CertificateError, ShapeError
from lipcert.graph import Graph
from lipcert.graph.builder import Call
from lipcert.graph.types import Affine, Elementwise, InputNode, Node
from lipcert.models.normalize import Normalize
from lipcert.version import __version__

if TYPE_CHECKING:
    from lipcert.data import Dataset

__all__ = ["Origin", "Samples", "describe_graph", "normalisations", "versions", "weights_digest"]


@dataclass(frozen=True)
class Origin:
    """How a model was built, as far as it is known: by name from the registry, with options, for these classes."""

    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None

    @property
    def plain_options(self) -> dict[str, Any]:
        """The options as JSON has them, with lists for tuples.

        Raises:
            CertificateError: there is more in them than plain values.
        """
        try:
            plain: dict[str, Any] = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise CertificateError(f"the model's options must be plain JSON values: {error}") from error
        return plain


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs in the units of the radius, with labels and a name; read a batch at a time, as often as asked for.

    Attributes:
        name: what they are called.
        split: which part of it they are.
        classes: the name of each class; labels are positions in it.
        labels: (N,) int64.
        shape: of one input.
        sha256: over inputs and labels.
        batches: ``batches(n)`` goes through the inputs, n at a time: ``(n, *shape)``, floating-point.

    Example:
        >>> samples = Samples.of(torch.rand(5, 3), torch.tensor([0, 1, 1, 0, 1]), name="mine")
        >>> len(samples), samples.classes, [len(x) for x in samples.batches(2)]
        (5, ('0', '1'), [2, 2, 1])
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: Tensor
    shape: tuple[int, ...]
    sha256: str
    batches: Callable[[int], Iterator[Tensor]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def of(
        x: Tensor, y: Tensor, *, name: str = "unnamed", split: str = "all", classes: Sequence[str] | None = None
    ) -> Samples:
        """Tensors as samples.

        Args:
            x: ``(N, *shape)``, floating-point, N ≥ 1.
            y: (N,) integers.
            name: what they are called.
            split: which part of it they are.
            classes: names; by default the numbers 0 … max(y), at least two.

        Raises:
            ShapeError: shapes or dtypes that do not fit.
        """
        integers = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
        if x.ndim < 2 or not len(x) or not x.is_floating_point() or y.shape != x.shape[:1] or not integers:
            raise ShapeError(
                "samples are a floating-point tensor (N, *shape), N ≥ 1, and one integer for each; got "
                f"{tuple(x.shape)} of {x.dtype} and {tuple(y.shape)} of {y.dtype}"
            )
        labels = y.to(dtype=torch.int64, device="cpu")
        names = tuple(classes) if classes is not None else tuple(map(str, range(max(2, int(labels.max()) + 1))))

        def batches(size: int) -> Iterator[Tensor]:
            return (x[i : i + size] for i in range(0, len(x), size))

        return Samples(name, split, names, labels, tuple(x.shape[1:]), digest({"x": x, "y": labels}), batches)

    @staticmethod
    def from_dataset(data: Dataset) -> Samples:
        """A data set as samples: bytes b become b/255, as in training and certifying; the hash is its fingerprint."""
        from lipcert.data import as_float

        def batches(size: int) -> Iterator[Tensor]:
            return (as_float(data.images[i : i + size]) for i in range(0, len(data), size))

        return Samples(
            data.name, data.split, data.classes, data.labels.cpu(), data.input_shape, data.fingerprint, batches
        )


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {"lipcert": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of ``module.state_dict()``.

    Raises:
        CertificateError: its state holds something that is not a tensor.
    """
    state = module.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise CertificateError(f"the weights cannot be hashed: {name!r} of the module's state is not a tensor")
    return digest(state)


def normalisations(module: nn.Module) -> list[dict[str, Any]]:
    """Our normalisation layers: where they are, mean and standard deviation."""
    return [
        {"place": name, "mean": tuple(m.mean.flatten().tolist()), "std": tuple(m.std.flatten().tolist())}
        for name, m in module.named_modules()
        if isinstance(m, Normalize)
    ]


def _kind(node: Node) -> str:
    if isinstance(node, InputNode):
        return "input"
    return "affine" if isinstance(node, Affine) else "elementwise" if isinstance(node, Elementwise) else "vector map"


def describe_graph(graph: Graph) -> tuple[list[dict[str, Any]], str]:
    """The nodes of a network, and a hash of all that it computes except its weights.

    The hash is over the nodes and the recorded program behind them: every operation that the output needs, with
    every argument by name (strides, slopes, factors, which weight is where), and the bytes of constants that are in no
    ``state_dict()``. It holds no memory address, no device and no name that the recording made up.
    """
    nodes = [
        {"operation": n.operation, "place": n.place, "kind": _kind(n), "inputs": n.inputs, "shape": n.shape}
        for n in graph.nodes[: graph.output + 1]
    ]
    text = json.dumps([nodes, _program(graph)], separators=(",", ":"), sort_keys=True)
    return nodes, hashlib.sha256(text.encode()).hexdigest()


def _program(graph: Graph) -> list[Any]:
    capture = graph.capture
    result = next(n for n in capture.nodes if n.op == "output")
    needed, pending = set[fx.Node](), list(result.all_input_nodes)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    kept = set(capture.module.state_dict())
    steps: list[Any] = []
    numbers: dict[fx.Node, int] = {}
    for node in (n for n in capture.nodes if n in needed and n.op != "placeholder"):
        for source in (n for n in node.all_input_nodes if n.op == "placeholder" and n not in numbers):
            numbers[source] = len(steps)  # in the order of use: that of the recording is its own affair
            steps.append(_source(graph, source, kept))
        numbers[node] = len(steps)
        call = Call(node)
        arguments = call.arguments or {str(i): a for i, a in enumerate(node.args)}
        steps.append([call.operation, {k: _plain(v, numbers) for k, v in arguments.items()}])
    return [steps, _plain(result.args[0], numbers)]


def _source(graph: Graph, node: fx.Node, kept: set[str]) -> list[Any]:
    if node is graph.capture.input:
        return ["input"]
    _, name = graph.capture.sources[node]
    if name in kept:
        return ["weight", name]
    value = graph.capture.stored(node)
    return ["constant", digest({"": value}) if isinstance(value, Tensor) else repr(value)]


def _plain(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    """An argument as JSON: nodes by number, numbers exactly, devices left out."""
    if isinstance(value, fx.Node):
        return {"step": numbers[value]}
    if isinstance(value, (list, tuple)):
        return [_plain(v, numbers) for v in value]
    if isinstance(value, torch.device):
        return "device"
    if isinstance(value, float):
        return {"number": repr(value)}  # an infinity is one, too
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return str(value)
    raise CertificateError(f"the network cannot be described: an argument is a {type(value).__name__}")
