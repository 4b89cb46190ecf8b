"""Every case of the catalogue: the graph is the module, and T is what is left of it between the activations."""

from __future__ import annotations

import copy
import importlib
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lipcert
from cases import CASES, loop_map, traced
from catalogue import Fn
from lipcert.errors import TraceError
from lipcert.graph.capture import in_eval_mode
from lipcert.graph.types import Elementwise, Graph, VectorMap
from lipcert.loop import LoopMap
from lipcert.norms import dense

capturing = importlib.import_module("lipcert.graph.capture")
ALL = list(CASES)


def _points(name: str, rows: int = 6) -> Tensor:
    """A batch with values small, ordinary and large."""
    case = CASES[name]
    return torch.cat([case.inputs(rows, seed=s, scale=scale) for s, scale in ((1, 0.1), (2, 1.0), (3, 6.0))])


@pytest.mark.parametrize("name", ALL)
def test_the_graph_computes_what_the_module_computes(name: str) -> None:
    module, graph, x = CASES[name].module(), traced(name), _points(name)
    for rows in (1, 2, len(x)):
        with torch.no_grad():
            expected, values = module(x[:rows].clone()), graph.forward(x[:rows])
        torch.testing.assert_close(values[graph.output], expected, rtol=1e-12, atol=1e-12)
    assert graph.output_shape == tuple(expected.shape[1:])
    for node, value in zip(graph.nodes, values, strict=True):
        assert tuple(value.shape[1:]) == node.shape


def _noise(loop: LoopMap, rows: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn((rows, *shape), generator=generator, dtype=torch.float64)

    sources = [draw(loop.source_shape(j)) for j in range(loop.depth + 1)]
    targets = [draw(loop.target_shape(k)) for k in range(1, loop.depth + 2)]
    return sources, targets


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return torch.stack([(u * v).reshape(len(u), -1).sum(1) for u, v in zip(a, b, strict=True)]).sum(0)


@pytest.mark.parametrize("name", ALL)
def test_t_is_linear_and_its_adjoint_is_the_adjoint(name: str) -> None:
    loop = loop_map(name)
    (u, v), (p, _) = _noise(loop, 2, 7), _noise(loop, 2, 8)
    torch.testing.assert_close(_inner(loop.forward(u), v), _inner(u, loop.adjoint(v)), rtol=1e-10, atol=1e-10)
    mixed = loop.forward([2 * a - 3 * b for a, b in zip(u, p, strict=True)])
    for got, a, b in zip(mixed, loop.forward(u), loop.forward(p), strict=True):
        torch.testing.assert_close(got, 2 * a - 3 * b, rtol=1e-10, atol=1e-10)


def _feedback(graph: Graph, loop: LoopMap, values: list[Tensor]) -> list[Tensor]:
    """The w_k that the real activations put out: (φ(z) − c·z)/r, 0 where r is; f(z)/g for the others."""
    result = []
    for node in graph.nonlinear:
        z, a = values[node.inputs[0]], values[node.index]
        if isinstance(node, Elementwise):
            slopes = loop.resolved.slopes[node.index]
            c, r = (torch.as_tensor(v, dtype=torch.float64) for v in (slopes.centre, slopes.radius))
            safe = torch.where(r > 0, r, torch.ones_like(r))
            result.append(torch.where(r > 0, (a - c * z) / safe, torch.zeros_like(z)))
        else:
            assert isinstance(node, VectorMap)
            result.append(a / node.constant)
    return result


@pytest.mark.parametrize("name", ALL)
def test_real_differences_satisfy_t_and_the_slopes(name: str) -> None:
    graph, loop, x = traced(name), loop_map(name), _points(name)
    with torch.no_grad():
        values = graph.forward(x)
    feedback = _feedback(graph, loop, values)
    n = len(x) // 2
    move = [v[:n] - v[n:] for v in (x, *feedback)]
    wanted = [values[node.inputs[0]] for node in graph.nonlinear] + [values[graph.output]]
    with torch.no_grad():
        images = loop.forward(move)
    for k, (got, value) in enumerate(zip(images, wanted, strict=True), start=1):
        difference = value[:n] - value[n:]
        if not torch.isfinite(value).all():  # padded with −∞ before a maximum
            continue
        torch.testing.assert_close(got, difference, rtol=1e-9, atol=1e-9, msg=lambda m, k=k: f"target {k}: {m}")
    for node, w, z in zip(graph.nonlinear, move[1:], images[:-1], strict=True):
        if isinstance(node, Elementwise):
            assert bool((w.abs() <= z.abs() * (1 + 1e-9) + 1e-8).all()), node.describe()
        else:
            assert bool((w.reshape(n, -1).norm(dim=1) <= z.reshape(n, -1).norm(dim=1) * (1 + 1e-9)).all())


def test_weights_are_read_live() -> None:
    module = CASES["residual-projection"].module()
    graph, x = traced.__wrapped__("residual-projection"), CASES["residual-projection"].inputs(3)
    module = graph.capture.module
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(1.5).add_(0.01)
        for b in module.buffers():
            if b.is_floating_point():
                b.add_(0.1)
        torch.testing.assert_close(graph.forward(x)[graph.output], module(x))


@pytest.mark.parametrize("name", ["mlp", "bn2d-before", "residual-inplace", "weight-norm", "prelu-channels"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    """A float64 resolution is the real-arithmetic network of the stored weights."""
    import lipcert

    module = CASES[name].module(dtype)
    graph = lipcert.trace(module, CASES[name].shape)
    x = CASES[name].inputs(4)
    exact = module.double()(x.clone())
    torch.testing.assert_close(graph.forward(x, graph.resolve(torch.float64))[graph.output], exact)


def test_equal_steps_are_one_node_and_different_ones_are_not() -> None:
    count = len([n for n in traced("math-same-twice").nodes if n.operation == "aten.relu.default"])
    assert count == 1
    # the same operation and signal, another constant or another order: told apart (they were not, once)
    for name in ("math-einsum-two-weights", "math-cat-either-side"):
        nodes = [n.operation for n in traced(name).nodes]
        assert max(nodes.count("aten.einsum.default"), nodes.count("aten.cat.default")) == 2


def test_a_graph_is_not_copied_behind_its_module() -> None:
    """The copy would read the weights of the module that it was not made for."""
    net = nn.Sequential(nn.Linear(3, 2)).eval()
    for action in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TraceError, match="trace the copy"):
            action(lipcert.trace(net, (3,)))  # type: ignore[operator]


def test_a_divisor_that_is_negative() -> None:
    """Its sign is in a coefficient, so that |T| is the map of absolute values: here ‖T‖ = 3/2."""

    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(x, 1, divisor_override=-2) - x

    bound = lipcert.lipschitz(Pooled().eval(), (1, 3, 3), guarantee="upper")
    assert 1.5 <= float(bound) < 1.5 + 1e-9
    graph = lipcert.trace(Pooled().eval(), (1, 3, 3))
    loop = LoopMap(graph, graph.resolve(torch.float64))
    assert dense.absolute_norm(loop, (1, 0)) >= 1.5
    window = lipcert.lipschitz(nn.AvgPool2d(2, divisor_override=-3).eval(), (1, 4, 4), guarantee="upper")
    assert float(window) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "f", [F.softsign, lambda z: z / (1 + z.abs()), lambda z: z / (z.abs() + 1), lambda z: z / torch.add(1, z.abs())]
)
def test_softsign_is_one_activation(f: Callable[[Tensor], Tensor]) -> None:
    """Torch divides by 1 + |x|: as three operations it would be a quotient of signals."""
    graph = lipcert.trace(Fn(lambda s, x: f(s.a(x)), a=nn.Linear(3, 4)).eval(), (3,))
    (node,) = graph.nonlinear
    assert (node.slopes(None).lower, node.slopes(None).upper) == (0, 1)
    assert len(graph.nodes) == 3
    z = torch.randn(5, 4)
    torch.testing.assert_close(node.function(z, None), F.softsign(z))


def test_what_softsign_divides_by_may_be_used_elsewhere() -> None:
    net = Fn(lambda s, x: F.softsign(x) + x.abs()).eval()
    assert float(lipcert.lipschitz(net, (3,))) == pytest.approx(2)


def test_what_a_gpu_cannot_record_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's BatchNorm takes large batches another way, so that there is no program of a batch of any size."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    tried: list[nn.Module] = []
    export = capturing._export

    def failing_first(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
        tried.append(module)
        if len(tried) == 1:
            raise RuntimeError("Constraints violated (batch)")
        return export(module, x)

    class Elsewhere(Tensor):
        is_cuda = True  # type: ignore[assignment]

    monkeypatch.setattr(capturing, "_export", failing_first)
    x = torch.rand(3, 1, 4, 4)
    there = x.as_subclass(Elsewhere)
    monkeypatch.setattr(Elsewhere, "cpu", lambda self: x)
    with in_eval_mode(net):
        program = capturing._record(net, there)
    assert tried[0] is net
    assert tried[1] is not net
    assert {s.target for s in program.graph_signature.input_specs} >= {"0.weight", "1.running_mean", "4.bias"}


def test_a_network_that_looks_at_the_size_of_its_batch_is_refused() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 100 * self.fc(x) if x.shape[0] > 70_000 else self.fc(x)

    with pytest.raises(TraceError, match="cannot be recorded"):
        lipcert.trace(Sized().eval(), (4,))
