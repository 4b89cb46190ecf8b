"""Every bound of every case against the textbook on explicit matrices, and against what the network really does."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lipcert
import reference_bounds as textbook
from cases import CASES, named, reference_blocks, traced
from lipcert.bounds import Estimate, UpperBound, graph_bound
from lipcert.errors import BoundError, ShapeError

ALL = [n for n in CASES if n != "math-same-twice"]  # there lipcert merges two activations, and the textbook does not
LOGITS = [n for n in ALL if "image" not in CASES[n].tags and n != "identity"]
METHODS = ("liplt", "product")


def _bound(name: str, method: str = "liplt", scope: str = "global", guarantee: str = "upper") -> np.ndarray:
    return graph_bound(traced(name), method=method, scope=scope, guarantee=guarantee).value.numpy()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALL)
def test_global_bounds_are_the_textbook(name: str) -> None:
    for method in METHODS:
        blocks = reference_blocks(name, centred=method == "liplt")
        assert float(_bound(name, method)) == pytest.approx(textbook.global_bound(blocks), rel=1e-6)


@pytest.mark.parametrize("name", LOGITS)
def test_class_and_pair_bounds_are_the_textbook(name: str) -> None:
    classes = traced(name).output_shape[0]
    for method in METHODS if len(name) % 3 == 0 else METHODS[:1]:
        blocks = reference_blocks(name, centred=method == "liplt")
        np.testing.assert_allclose(_bound(name, method, "class"), textbook.class_bounds(blocks, classes), rtol=1e-6)
        pairs, expected = _bound(name, method, "pairwise"), textbook.pair_bounds(blocks, classes)
        np.testing.assert_allclose(pairs, expected, rtol=1e-6, atol=1e-9)
        assert (pairs == pairs.T).all()
        assert (pairs.diagonal() == 0).all()
        assert (pairs <= np.sqrt(2) * float(_bound(name, method)) * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ALL)
def test_no_point_and_no_pair_of_points_is_steeper(name: str) -> None:
    """Jacobians at random points and gradient ascent over pairs of points stay below every upper bound."""
    case, module = CASES[name], CASES[name].module()
    x = torch.cat([case.inputs(6, seed=1), case.inputs(6, seed=2, scale=0.2), case.inputs(6, seed=3, scale=5.0)])
    jacobians = textbook.jacobians(module, x)
    steepest = max(float(torch.linalg.matrix_norm(jacobians, 2).max()), textbook.steepest_quotient(module, x[:8], 6))
    assert steepest <= min(float(_bound(name, m)) for m in METHODS) * (1 + 1e-9)
    if name in LOGITS:
        rows = (jacobians[:, :, None] - jacobians[:, None, :]).norm(dim=3).amax(0).numpy()
        assert (rows <= _bound(name, "liplt", "pairwise") * (1 + 1e-9) + 1e-12).all()
        assert (jacobians.norm(dim=2).amax(0).numpy() <= _bound(name, "liplt", "class") * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", named("chain"))
def test_liplt_is_not_above_the_product_on_a_chain(name: str) -> None:
    centred, product = _bound(name), _bound(name, "product")
    assert float(centred) <= float(product) * (1 + 1e-9) + 1e-12


def _mlp(widths: list[int], seed: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    modules = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*modules[:-1]).double().eval()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=3, max_size=5), st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 30.0]))
def test_liplt_is_not_above_the_product_on_random_chains(widths: list[int], seed: int, scale: float) -> None:
    net = _mlp(widths, seed)
    for p in net.parameters():
        p.data *= scale
    graph = lipcert.trace(net, (widths[0],))
    bounds = {m: float(graph_bound(graph, method=m, guarantee="upper")) for m in METHODS}  # type: ignore[arg-type]
    assert bounds["liplt"] <= bounds["product"] * (1 + 1e-12)


# --- published values ---------------------------------------------------------------------------------------------
@pytest.mark.skipif(
    "LIPCERT_LIPSDP_DATA" not in os.environ, reason="set LIPCERT_LIPSDP_DATA to the folder with the .mat files"
)
@pytest.mark.parametrize(
    ("file", "product", "liplt"), [("mnist_weights.mat", 31.50, 27.76), ("random_weights.mat", 43.31, 39.86)]
)
def test_check_values(file: str, product: float, liplt: float) -> None:
    """The two weight sets of the LipSDP repository: the product and LipLT as published to two digits."""
    from scipy.io import loadmat

    weights = loadmat(Path(os.environ["LIPCERT_LIPSDP_DATA"]) / file)["weights"].ravel()
    net = _mlp([weights[0].shape[1], *(w.shape[0] for w in weights)], 0)
    for linear, w in zip(net[::2], weights, strict=True):
        linear.weight.data = torch.as_tensor(w, dtype=torch.float64)
    for method, value in (("product", product), ("liplt", liplt)):
        for guarantee in ("upper", "estimate"):
            bound = lipcert.lipschitz(net, (weights[0].shape[1],), method=method, guarantee=guarantee)  # type: ignore[arg-type]
            assert float(bound) == pytest.approx(value, abs=0.006)


# --- heads of many classes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("classes", [10, 200, 1000])
@pytest.mark.parametrize("guarantee", ["estimate", "upper"])
def test_pairwise_of_many_classes_is_the_direct_difference(classes: int, guarantee: str) -> None:
    net = _mlp([5, 6, classes], 1)
    with torch.no_grad():  # near-equal and equal rows: their Gram matrix cancels
        net[2].weight[1] = net[2].weight[0] * (1 + 1e-10)
        net[2].weight[2] = net[2].weight[0]
    got = lipcert.lipschitz(net, (5,), scope="pairwise", guarantee=guarantee).value  # type: ignore[arg-type]
    first, last = (net[i].weight.detach().numpy() for i in (0, 2))
    m1 = textbook.norm(first)
    pairs = [(0, 1), (0, 2), (1, 2), (0, classes - 1), (classes - 1, 5), (3, 7)]
    random = np.random.default_rng(0)
    for a, b in pairs + [tuple(random.integers(0, classes, 2)) for _ in range(50)]:
        row = last[a] - last[b]
        want = np.linalg.norm(row @ first) / 2 + np.linalg.norm(row) / 2 * m1
        assert float(got[a, b]) == pytest.approx(want, rel=1e-6, abs=1e-12)
        assert guarantee == "estimate" or float(got[a, b]) >= want


def test_heads_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipcert.bounds import heads

    whole = {s: _bound("ten-classes", scope=s) for s in ("class", "pairwise")}
    monkeypatch.setattr(heads, "_MEMORY", 14 * 3)  # three classes at a time
    for scope, value in whole.items():
        np.testing.assert_allclose(_bound("ten-classes", scope=scope), value, rtol=1e-12)
    np.testing.assert_allclose(
        _bound("ten-classes", scope="pairwise", guarantee="estimate"), whole["pairwise"], rtol=1e-4
    )


# --- invariances --------------------------------------------------------------------------------------------------
def _same(a: nn.Module, b: nn.Module, shape: tuple[int, ...], rel: float = 1e-12) -> None:
    for scope in ("global", "pairwise"):
        for method in METHODS:
            values = [
                lipcert.lipschitz(n.eval(), shape, scope=scope, method=method, guarantee="upper").value for n in (a, b)
            ]  # type: ignore[arg-type]
            torch.testing.assert_close(values[0], values[1], rtol=rel, atol=rel)


@pytest.mark.parametrize("power", [-300, -7, 3, 40, 300])
def test_rescaling_relu_layers_changes_nothing(power: int) -> None:
    a, b = _mlp([4, 5, 6, 3], 2), _mlp([4, 5, 6, 3], 2)
    for layer, k in ((0, power), (4, -power)):
        b[layer].weight.data *= 2.0**k
    b[0].bias.data *= 2.0**power
    b[2].bias.data *= 2.0**power
    _same(a, b, (4,))


def test_biases_and_dropout_change_nothing() -> None:
    a = _mlp([4, 5, 3], 3)
    b = nn.Sequential(
        nn.Linear(4, 5), nn.Dropout(0.4), nn.ReLU(), nn.Identity(), nn.Dropout(0.1), nn.Linear(5, 3)
    ).double()
    for i, j in ((0, 0), (2, 5)):
        b[j].weight.data = a[i].weight.data.clone()
        b[j].bias.data.normal_(0, 100)
    _same(a, b, (4,))


def test_permuting_classes_permutes_the_bounds() -> None:
    a, b = _mlp([4, 6, 7], 4), _mlp([4, 6, 7], 4)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    b[2].weight.data, b[2].bias.data = a[2].weight.data[order], a[2].bias.data[order]
    for scope in ("class", "pairwise"):
        one, two = (lipcert.lipschitz(n, (4,), scope=scope, guarantee="upper").value for n in (a, b))  # type: ignore[arg-type]
        torch.testing.assert_close(two, one[order] if scope == "class" else one[order][:, order], rtol=1e-12, atol=0)


def test_a_batchnorm_is_its_folded_weights() -> None:
    torch.manual_seed(0)
    bn = nn.BatchNorm1d(5).double()
    bn.running_var.uniform_(0.1, 3)
    bn.weight.data.normal_()
    a = nn.Sequential(nn.Linear(4, 5), bn, nn.ReLU(), nn.Linear(5, 3)).double()
    b = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    b[0].weight.data = a[0].weight.data * (bn.weight / (bn.running_var + bn.eps).sqrt())[:, None].data
    b[2].weight.data = a[3].weight.data
    _same(a, b, (4,))


@pytest.mark.parametrize("exponent", [100, 400, 540, 700, 1000])
@pytest.mark.parametrize("method", METHODS)
def test_no_scope_loses_a_residual_branch_to_underflow(exponent: int, method: str) -> None:
    """y = x + W3·relu(W2·relu(W1·x)) with W1, W2 multiplied and W3 divided: the squares of W3's rows underflow."""

    class Skip(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    net = Skip(_mlp([3, 4, 4, 3], 5)).eval()
    graph = lipcert.trace(net, (3,))
    scopes = ("global", "class", "pairwise")
    plain = {s: graph_bound(graph, method=method, scope=s, guarantee="upper").value for s in scopes}  # type: ignore[arg-type]
    for i, k in ((0, exponent // 2), (2, exponent - exponent // 2), (4, -exponent)):
        net.inner[i].weight.data *= 2.0**k
    for scope in scopes:
        value = graph_bound(graph, method=method, scope=scope, guarantee="upper").value  # type: ignore[arg-type]
        assert bool((value >= plain[scope] * (1 - 1e-12)).all())
        torch.testing.assert_close(value, plain[scope], rtol=0.01, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_hidden_bound_that_underflows_is_not_lost(method: str) -> None:
    """m_2 is 2^-1100, which is no number of float64; what follows multiplies it by 2^1000 again."""
    net = _mlp([3, 3, 3, 3, 2], 6)
    graph = lipcert.trace(net, (3,))
    plain = graph_bound(graph, method=method, guarantee="upper").value  # type: ignore[arg-type]
    for i, k in ((0, -600), (2, -500), (4, 600), (6, 400)):
        net[i].weight.data *= 2.0**k
    value = graph_bound(graph, method=method, guarantee="upper").value  # type: ignore[arg-type]
    assert bool(value >= plain * 2.0**-100 * (1 - 1e-12))


# --- what comes out, and what is refused --------------------------------------------------------------------------
def test_the_two_kinds_of_bound_are_two_types() -> None:
    upper, estimate = (lipcert.lipschitz(_mlp([3, 4, 2], 0), (3,), guarantee=g) for g in ("upper", "estimate"))  # type: ignore[arg-type]
    assert type(upper) is UpperBound
    assert type(estimate) is Estimate
    assert upper.value.dtype == estimate.value.dtype == torch.float64
    assert "not a certificate" in estimate.summary()
    assert "not a certificate" not in upper.summary()
    assert float(estimate) <= float(upper) <= float(estimate) * 1.01


@pytest.mark.parametrize(
    "options", [{"method": "LipLT"}, {"scope": "pair"}, {"guarantee": "certificate"}, {"guarantee": True}]
)
def test_unknown_options(options: dict) -> None:
    with pytest.raises(BoundError, match="must be one of"):
        lipcert.lipschitz(_mlp([3, 2], 0), (3,), **options)


def test_classes_of_an_image() -> None:
    with pytest.raises(ShapeError, match="Use scope='global'"):
        graph_bound(traced("image-to-image"), scope="pairwise")


def test_a_bound_that_overflows() -> None:
    net = _mlp([3, 3, 3], 0)
    graph = lipcert.trace(net, (3,))
    for p in net.parameters():
        p.data *= 1e200
    for guarantee in ("upper", "estimate"):
        with pytest.raises(BoundError, match="not finite"):
            graph_bound(graph, guarantee=guarantee)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "context", [torch.inference_mode, lambda: torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad]
)
def test_the_context_does_not_matter(context: object) -> None:
    net = _mlp([3, 4, 2], 0).float()
    plain = {g: lipcert.lipschitz(net, (3,), guarantee=g).value for g in ("upper", "estimate")}  # type: ignore[arg-type]
    with context():  # type: ignore[operator]
        for guarantee, value in plain.items():
            assert torch.equal(lipcert.lipschitz(net, (3,), guarantee=guarantee).value, value)  # type: ignore[arg-type]
    assert all(p.grad is None for p in net.parameters())
