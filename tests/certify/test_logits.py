"""The logits behind a certificate are those of the real-arithmetic network, enclosed: no margin is all rounding."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
from cases import named, traced
from exact import rational
from lipcert.bounds import UpperBound, graph_bound
from lipcert.certify import exact_logits
from lipcert.certify import logits as module_of_logits


def _shifted() -> nn.Sequential:
    """y_0 = x, y_1 = 0, by way of numbers at which float32 has lost all digits behind the point."""
    net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.fill_(2.0**24)
        net[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
        net[1].bias.copy_(torch.tensor([-(2.0**24), 0.0]))
    return net


def test_a_large_bias_does_not_lend_a_radius() -> None:
    """In float32 the margin at 1.3 comes out as 2; the prediction flips at 0."""
    net, x = _shifted(), torch.tensor([[1.3]])
    assert float(net(x)[0, 0].detach()) == 2.0
    radius = float(lipcert.certify(net, x, precision="real").radius)
    assert 1.3 - 1e-6 < radius <= float(x)
    assert lipcert.certify(net, x).radius == 0  # at 0.9 float32 says 0: of its execution nothing can be said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_radius_exceeds_that_of_float64_logits(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).to(dtype).eval()
    x = torch.rand(500, 20).to(dtype)
    result = lipcert.certify(net, x, precision="real")
    z = net.double()(x.double())
    margins = z.max(1).values[:, None] - z
    own = torch.nn.functional.one_hot(z.argmax(1), 5).bool()
    true = (margins / result.bound.value[z.argmax(1)]).masked_fill(own, float("inf")).min(1).values
    assert bool((result.radius <= true).all())
    assert bool((result.radius >= true * (1 - 1e-6) - 1e-9).all())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-40, 40), size=st.integers(1, 6))
def test_the_enclosure_in_rational_numbers(seed: int, exponent: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(size, 5), nn.ReLU(), nn.Linear(5, 3)).double().eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 2.0**exponent)
    x = torch.rand(2, size, generator=generator)
    logits, errors = exact_logits(lipcert.trace(net, (size,)), [x])
    first, second = net[0], net[2]
    for row, found, error in zip(rational(x), logits.tolist(), errors.tolist(), strict=True):
        hidden = [
            max(Fraction(0), sum(w * v for w, v in zip(ws, row, strict=True)) + b)
            for ws, (b,) in zip(rational(first.weight), rational(first.bias[:, None]), strict=True)
        ]
        for a, (ws, (b,)) in enumerate(zip(rational(second.weight), rational(second.bias[:, None]), strict=True)):
            true = sum(w * v for w, v in zip(ws, hidden, strict=True)) + b
            assert abs(true - Fraction(found[a])) <= Fraction(error[a])


@pytest.mark.parametrize("name", named()[::4])
def test_every_kind_of_layer_is_enclosed_and_closely(name: str) -> None:
    """Against the same float64 module; the allowance stays far below what float32 would need."""
    graph = traced(name)
    x = torch.rand((4, *graph.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, errors = exact_logits(graph, [x[:3], x[3:]])
    with torch.no_grad():
        true = graph.capture.module(x.clone())
    assert bool(((logits - true).abs() <= errors).all())
    assert float(errors.max()) <= 1e-6 * max(1.0, float(true.abs().max()))


def test_the_output_alone_is_the_last_of_all_values() -> None:
    graph = traced("residual-two-open")
    x = torch.rand((3, *graph.input_shape), dtype=torch.float64)
    assert torch.equal(graph.evaluate(x, graph.resolve()), graph.forward(x)[graph.output])


def test_an_input_that_is_not_finite_spoils_no_other() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(3, 3)
    x[1, 0] = float("inf")
    radius = lipcert.certify(net, x).radius
    assert radius[1] == 0
    assert float(radius[0]) == pytest.approx(float(lipcert.certify(net, x[:1]).radius), rel=1e-9)


class _Residual(nn.Module):
    """x + G·relu(W·x + b)."""

    def __init__(self, width: int, generator: torch.Generator, size: float) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * size)
            self.outer.weight.copy_(-2 * self.inner.weight.T / self.inner.weight.norm() ** 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


def _stack(seed: int, depth: int, width: int, size: float) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    last = nn.Linear(width, 3)
    with torch.no_grad():
        for p in last.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return nn.Sequential(*(_Residual(width, generator, size) for _ in range(depth)), last).double().eval()


def _affine(layer: nn.Linear, row: list[Fraction]) -> list[Fraction]:
    bias = [Fraction(0)] * layer.out_features if layer.bias is None else [b for (b,) in rational(layer.bias[:, None])]
    return [
        sum((w * v for w, v in zip(ws, row, strict=True)), b)
        for ws, b in zip(rational(layer.weight), bias, strict=True)
    ]


def _exactly(net: nn.Sequential, row: list[Fraction]) -> list[Fraction]:
    *blocks, last = net
    for block in blocks:
        assert isinstance(block, _Residual)
        hidden = [max(Fraction(0), v) for v in _affine(block.inner, row)]
        row = [u + v for u, v in zip(row, _affine(block.outer, hidden), strict=True)]
    assert isinstance(last, nn.Linear)
    return _affine(last, row)


def _upper(net: nn.Module, shape: tuple[int, ...], method: str = "liplt") -> tuple[lipcert.Graph, UpperBound]:
    graph = lipcert.trace(net, shape)
    bound = graph_bound(graph, scope="pairwise", guarantee="upper", method=method)  # type: ignore[arg-type]
    assert isinstance(bound, UpperBound)
    return graph, bound


@pytest.mark.parametrize("method", ["liplt", "product"])
@pytest.mark.parametrize(("depth", "size"), [(1, 1.0), (3, 1e3), (6, 1e-3), (10, 1.0)])
def test_differences_of_deep_logits_in_rational_numbers(
    depth: int, size: float, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the norms of a bound the enclosure holds for differences of logits, and does not grow with every block."""
    monkeypatch.setattr(module_of_logits, "_MATTERS", 0.0)
    net = _stack(depth, depth, 4, size)
    graph, bound = _upper(net, (4,), method)
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(depth))
    logits, errors = exact_logits(graph, [x], bound=bound)
    crude = exact_logits(graph, [x])[1]
    assert torch.equal(errors[..., 0], crude)
    if depth == 10 and method == "liplt":
        assert bool((errors[..., 1].sum(1) < 0.1 * crude.sum(1)).all())
    for row, found, several in zip(rational(x), logits.tolist(), errors.tolist(), strict=True):
        true = _exactly(net, row)
        for a in range(3):
            for b in range(a):
                off = true[a] - true[b] - (Fraction(found[a]) - Fraction(found[b]))
                assert all(abs(off) <= Fraction(u) + Fraction(v) for u, v in zip(several[a], several[b], strict=True))


@pytest.mark.parametrize("name", named(without=("image",))[1::4])
def test_every_kind_of_layer_is_enclosed_by_norms_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same float64 module, which computes in another order."""
    graph = traced(name)
    bound = graph_bound(graph, scope="class", guarantee="upper")
    assert isinstance(bound, UpperBound)
    monkeypatch.setattr(module_of_logits, "_MATTERS", 0.0)
    x = torch.rand((4, *graph.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits, errors = exact_logits(graph, [x[:3], x[3:]], bound=bound)
    assert bool(torch.isfinite(errors).all())
    with torch.no_grad():
        off = graph.capture.module(x.clone()) - logits
    assert errors.shape == (*logits.shape, 2)
    for e in errors.unbind(2):
        gap = (off[:, :, None] - off[:, None, :]).abs() - (e[:, :, None] + e[:, None, :])
        assert float(gap.max()) <= 0


def test_squares_that_underflow_hide_no_error() -> None:
    """The hidden layers are at 1e-160, and the network makes up for it: float64 loses 1e-8 on the way, and says so."""
    m, small = 2.0**30, 2.0**-108
    weights = [[[m, 1.0], [m, 0.0]], [[1.0, -1.0], [-1.0, 1.0]], *[[[small, 0.0], [0.0, small]]] * 5]
    weights_behind = [*[[[1 / small, 0.0], [0.0, 1 / small]]] * 5, [[1.0, 0.0], [0.0, 0.0]]]
    layers: list[nn.Module] = []
    for w in [*weights, None, *weights_behind]:
        if w is None:
            layers.append(nn.ReLU())
            continue
        layer = nn.Linear(2, 2)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(w))
            nn.init.zeros_(layer.bias)
        layers.append(layer)
    with torch.no_grad():
        layers[-1].bias[1] = 1.1e-7  # type: ignore[union-attr, index]
    net = nn.Sequential(*layers).eval()
    result = lipcert.certify(net, torch.tensor([[0.3, 1e-7]]), precision="real")
    assert float(result.radius) == 0  # the true logits are 1.0e-7 and 1.1e-7: float64 has the other class


def test_one_output_has_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_logits, "_MATTERS", 0.0)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    graph = lipcert.trace(net, (3,))
    bound = graph_bound(graph, guarantee="upper")
    assert isinstance(bound, UpperBound)
    assert exact_logits(graph, [torch.rand(2, 3)], bound=bound)[1].shape == (2, 1)


@pytest.mark.parametrize("each", [False, True])
def test_nothing_known_is_infinite(each: bool) -> None:
    """inf·0 in the sizes is no number, and no number is above nothing."""
    net = nn.Sequential(nn.Linear(3, 2), nn.Hardtanh(-1e3, 1e3), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
        net[2].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    x = torch.tensor([[1.7e308, 1.7e308, 0.5]], dtype=torch.float64)
    errors = exact_logits(lipcert.trace(net, (3,)), [x], each=each)[1]
    assert not bool(torch.isnan(errors).any())
