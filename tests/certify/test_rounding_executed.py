"""E and the radii of execution, against torch's own float32: the whole catalogue, extremes, and what is refused."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lipcert
from cases import CASES, named
from catalogue import Fn
from flushing import flushing
from lipcert.bounds.lipschitz import graph_bound
from lipcert.certify.contest import _rounded
from lipcert.certify.logits import executed_logits
from lipcert.certify.rounding import Account, Rounding
from lipcert.errors import BoundError
from lipcert.graph import Graph

LOGITS = named(without=("image",))


def _executed(net: nn.Module, shape: tuple[int, ...], x: Tensor, scope: str = "global") -> tuple[Tensor, Rounding]:
    return _of(lipcert.trace(net, shape), x, scope)


def _of(graph: Graph, x: Tensor, scope: str = "global") -> tuple[Tensor, Rounding]:
    bound = graph_bound(graph, scope=scope, guarantee="upper")
    logits, _, rounding = executed_logits(graph, bound, [x], torch.float32)
    return logits, rounding


def _share(net: nn.Module, rounding: Rounding, centre: Tensor, points: Tensor) -> float:
    """The largest ``|executed − real| / E`` of the differences of logits at points of the balls' boundaries."""
    with torch.no_grad():
        executed, real = net(points.clone()).double(), copy.deepcopy(net).double()(points.double())
    wrong = executed - real
    distances = (points.double() - centre.double()).flatten(1).norm(dim=1)
    found, classes = 0.0, wrong.shape[1]
    for a in range(classes):
        still, growing = _rounded(rounding.accounts, torch.full((len(points),), a), classes)
        limit = still + growing * distances[:, None]
        share = (wrong[:, a : a + 1] - wrong).abs() / limit.clamp_min(1e-300)
        assert bool(torch.isfinite(share).all())
        found = max(found, float(share.max()))
    return found


def _first(rounding: Rounding, rows: int) -> Rounding:
    accounts = tuple(
        Account({j: g[:rows] for j, g in a.sources.items()}, a.heads, a.final[:rows]) for a in rounding.accounts
    )
    return Rounding(accounts, rounding.reach[:rows], rounding.precision)


def _points(x: Tensor, radius: float, seed: int) -> Tensor:
    away = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    length = away.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.ndim - 1))
    return (x.double() + radius * away / length).float()


@pytest.mark.parametrize("name", LOGITS[::4])
def test_float32_stays_within(name: str) -> None:
    case = CASES[name]
    net = case.module(torch.float32)
    x = case.inputs(17, dtype=torch.float32)  # more than 16: torch takes other paths for small batches
    graph = lipcert.trace(net, case.shape)
    if any(getattr(node, "roundings", 0) is None for node in graph.nodes):
        with pytest.raises(BoundError, match=r"rounding is not known.*precision='real'"):
            lipcert.certify(net, x)
        return
    _, rounding = _of(graph, x)
    for radius, some in itertools.product((0.0, 0.5, 30.0), (17, 1)):
        points = _points(x, radius, seed=some)
        assert _share(net, _first(rounding, some), x[:some], points[:some]) <= 1


def _image_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3), nn.GELU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 5),
    )  # fmt: skip
    with torch.no_grad():
        net[1].running_mean.normal_(), net[1].running_var.uniform_(0.3, 2.0)
    return net.eval()


def test_however_torch_executes_it() -> None:
    """Another layout, other batch sizes, threads, and without oneDNN."""
    net, x = _image_net(), torch.rand(20, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    _, rounding = _executed(net, (3, 12, 12), x, "pairwise")
    threads = torch.get_num_threads()
    ways = [(n, layout, onednn) for n in (1, 2) for layout in (False, True) for onednn in (False, True)]
    try:
        for n, channels_last, onednn in ways:
            torch.set_num_threads(n)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            with torch.backends.mkldnn.flags(enabled=onednn):
                assert 1e-4 < _share(net.to(memory_format=layout), rounding, x, x.to(memory_format=layout)) <= 1
                for i in (0, 7):
                    points = _points(x, 0.1 * (i + 1), seed=i)
                    assert _share(net, rounding, x, points.to(memory_format=layout)) <= 1
    finally:
        torch.set_num_threads(threads)


def _mlp(*exponents: int, bias: float = 1.0) -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.LeakyReLU(0.1), nn.Linear(16, 3)).eval()
    total = 0
    with torch.no_grad():
        for layer, e in zip((net[0], net[2], net[4]), exponents, strict=True):
            total += e
            layer.weight.mul_(2.0**e), layer.bias.mul_(bias * 2.0**total)
    return net


@pytest.mark.parametrize("exponents", [(0, 0, 0), (40, -80, 40), (-60, 0, 60), (100, -100, 0), (-100, 100, 0)])
@pytest.mark.parametrize("bias", [0.0, 1.0, 1e6])
def test_scaled_layers_and_large_biases(exponents: tuple[int, int, int], bias: float) -> None:
    net, x = _mlp(*exponents, bias=bias), torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    _, rounding = _executed(net, (6,), x)
    assert 1e-3 < max(_share(net, rounding, x, _points(x, r, 0)) for r in (0.0, 1.0)) <= 1
    _, plain = _executed(_mlp(0, 0, 0, bias=bias), (6,), x)
    if min(exponents) > -100:  # there, subnormal numbers are allowed for
        rest = [_rounded(r.accounts, torch.zeros(16, dtype=torch.int64), 3) for r in (rounding, plain)]
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(*rest, strict=True))  # powers of two change nothing


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("exponents", [(-110, 60, 50), (-125, 100, 25), (-140, 100, 40), (-60, -60, 120)])
def test_numbers_that_underflow(exponents: tuple[int, int, int], flush: bool) -> None:
    net, x = _mlp(*exponents), torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    _, rounding = _executed(net, (6,), x)
    still, _ = _rounded(rounding.accounts, torch.zeros(16, dtype=torch.int64), 3)
    with flushing(flush):
        executed = net(x).double()
    wrong = executed - copy.deepcopy(net).double()(x.double())
    assert bool(((wrong[:, :1] - wrong).abs() <= still).all())


@pytest.mark.parametrize("exponents", [(124, 0, -124), (100, 26, -126), (120, 10, -130)])
def test_nothing_is_claimed_where_something_overflows(exponents: tuple[int, int, int]) -> None:
    net, x = _mlp(*exponents), torch.randn(8, 6, generator=torch.Generator().manual_seed(0)) * 4
    if not bool(torch.isfinite(net(torch.rand(9, 6) * 4 - 2)).all()):
        return  # tracing refuses it
    result = lipcert.certify(net, x)
    with torch.no_grad():
        fine = torch.isfinite(net(x)).all(1)
        assert bool((result.radius[~fine] == 0).all())
        for seed in range(5):
            away = _points(torch.zeros_like(x), 1.0, seed)
            points = (x.double() + 0.999 * result.radius[:, None] * away.double()).float()
            assert bool((net(points).argmax(1) == result.prediction)[result.radius > 0].all())


def test_samples_that_are_not_numbers_harm_no_others() -> None:
    net, x = _mlp(0, 0, 0), torch.rand(6, 6, generator=torch.Generator().manual_seed(0))
    alone = lipcert.certify(net, x)
    for bad in (float("nan"), float("inf"), -float("inf")):
        worse = x.clone()
        worse[2, 1] = bad
        found = lipcert.certify(net, worse)
        assert (found.radius[2], found.prediction[2]) == (0, -1)
        others = torch.arange(6) != 2
        assert torch.allclose(found.radius[others], alone.radius[others], rtol=1e-9, atol=0)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert torch.allclose(lipcert.certify(net, x[order]).radius, alone.radius[order], rtol=1e-9, atol=0)
    assert torch.allclose(lipcert.certify(net, x, batch_size=1).radius, alone.radius, rtol=1e-6, atol=0)
    assert lipcert.certify(net, x[:0]).radius.shape == (0,)


@pytest.mark.parametrize("name", ["mlp-mixed", "residual-identity", "pool-max", "bn2d-before", "prelu-channels"])
@pytest.mark.parametrize("scope", ["pairwise", "class", "global"])
def test_execution_costs_some_of_the_radius_and_in_float64_next_to_none(name: str, scope: str) -> None:
    case = CASES[name]
    x = case.inputs(10, dtype=torch.float32)
    radii = {}
    for dtype in (torch.float32, torch.float64):
        net = case.module(torch.float32).to(dtype)
        radii[dtype] = lipcert.certify(net, x.to(dtype), scope=scope)
        assert bool((radii[dtype].radius <= radii[dtype].real).all())
        assert radii[dtype].precision == str(dtype).removeprefix("torch.")
        real = lipcert.certify(net, x.to(dtype), scope=scope, precision="real")
        assert torch.equal(real.radius, radii[dtype].real)
    single, double = radii[torch.float32], radii[torch.float64]
    certain = double.real > 0
    assert bool((single.radius[certain] < single.real[certain]).all())
    assert torch.allclose(double.radius, double.real, rtol=1e-8, atol=1e-11)
    assert torch.allclose(single.radius, single.real, rtol=1e-2, atol=1e-3)


def _refusals() -> dict[str, tuple[nn.Module, str]]:
    upsampled = Fn(lambda s, x: s.a(F.interpolate(x[:, None], 8, mode="linear").flatten(1)), a=nn.Linear(8, 3))
    computed = Fn(lambda s, x: F.linear(x, s.w.tanh()), w=torch.rand(3, 4))
    return {
        "parametrised": (nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3))), "remove_parametrizations"),
        "computed": (computed, "weights are computed in the forward"),
        "interpolated": (upsampled, "its rounding is not known"),
        "einsum": (Fn(lambda s, x: torch.einsum("bi,oi->bo", x, s.w), w=torch.rand(3, 4)), "rounding is not known"),
        "bfloat16": (nn.Linear(4, 3).bfloat16(), "nothing useful can be said of rounding in torch.bfloat16"),
        "float16": (nn.Linear(4, 3).half(), "nothing useful can be said of rounding in torch.float16"),
    }


@pytest.mark.parametrize("kind", list(_refusals()))
def test_what_nobody_has_counted_is_refused_by_name(kind: str) -> None:
    net, message = _refusals()[kind]
    x = torch.rand(2, 4, dtype=next(net.parameters(), torch.zeros(())).dtype)
    with pytest.raises(BoundError, match=message) as error:
        lipcert.certify(net.eval(), x)
    assert "precision='real'" in str(error.value)
    assert lipcert.certify(net, x, precision="real").precision == "real"


def test_a_precision_that_is_not_the_modules_is_refused() -> None:
    net, x = nn.Linear(4, 3).eval(), torch.rand(2, 4)
    for precision, message in (("float64", "the module runs in float32"), ("float8", "precision must be one of")):
        with pytest.raises(BoundError, match=message):
            lipcert.certify(net, x, precision=precision)
    with pytest.raises(BoundError, match="for upper bounds: an estimate certifies nothing"):
        lipcert.certify(net, x, guarantee="estimate", precision="float32")
    assert lipcert.certify(net, x, guarantee="estimate").precision == "real"


PIECEWISE = {"relu", "relu6", "leaky", "rrelu", "hardtanh", "threshold", "abs", "softsign"}
ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "abs": torch.abs, "leaky": lambda z: F.leaky_relu(z, 0.3),
    "rrelu": lambda z: F.rrelu(z, 0.1, 0.4), "hardtanh": lambda z: F.hardtanh(z, -0.3, 2.1),
    "threshold": lambda z: F.threshold(z, 0.3, 0.3), "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf,
    "logsigmoid": F.logsigmoid, "silu": F.silu, "mish": F.mish, "hardsigmoid": F.hardsigmoid, "atan": torch.atan,
    "hardswish": F.hardswish, "selu": F.selu, "elu": F.elu, "celu": lambda z: F.celu(z, 0.3), "gelu": F.gelu,
    "gelu-tanh": lambda z: F.gelu(z, approximate="tanh"), "softshrink": lambda z: F.softshrink(z, 0.2),
    "softplus": F.softplus, "softplus-beta": lambda z: F.softplus(z, 3.0), "sin": torch.sin, "cos": torch.cos,
    "asinh": torch.asinh, "softsign": F.softsign,
}  # fmt: skip


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_torchs_activations_err_as_little_as_is_assumed(name: str) -> None:
    """At all exponents of float32, and closely around 0."""
    f = ACTIVATIONS[name]
    node = lipcert.trace(Fn(lambda s, x: f(x)).eval(), (2,)).nonlinear[0]
    units, slopes = node.roundings, node.slopes(None)
    assert units == (0 if name in ("relu", "relu6", "abs") else 3 if name in PIECEWISE - {"threshold"} else 16)
    generator = torch.Generator().manual_seed(0)
    powers = 2.0 ** torch.arange(-149.0, 125.0, dtype=torch.float64)
    spread = (1 + torch.rand((60, 1), generator=generator, dtype=torch.float64)) * powers
    near = (torch.rand(40_000, generator=generator, dtype=torch.float64) - 0.5) * 30
    z = torch.cat([spread.flatten(), -spread.flatten(), near]).float()
    still = f(torch.zeros(1, dtype=torch.float64)).abs()
    allowed = units * 2.0**-24 * (still + slopes.lipschitz * z.double().abs()) + node.departure + 4 * 2.0**-126
    assert bool(((f(z).double() - f(z.double())).abs() <= allowed).all())
