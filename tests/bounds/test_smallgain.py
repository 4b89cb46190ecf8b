"""Small-gain bounds: above exact constants, below LipLT, as sharp as LipSDP, of odd networks too."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lipcert
import reference_bounds as textbook
from adversary_exact import Exact
from cases import CASES, loop_map, nonlinear, traced
from catalogue import Fn
from chains import matrices, network
from lipcert.bounds import UpperBound, graph_bound, smallgain
from lipcert.bounds.evidence import Evidence, Scaling, fits
from lipcert.bounds.result import Estimate, Scope
from lipcert.bounds.smallgain import evidence_value, prove
from lipcert.bounds.starts import balanced_start
from lipcert.errors import BoundError
from lipcert.loop import LoopMap
from lipcert.norms.scaled import prove_scaled
from scaled_reference import random_output, random_weights

SCOPES = get_args(Scope)
NAMES = nonlinear()
WIDTHS = [(2, 4, 3), (2, 3, 3, 2), (1, 3, 3, 3, 3)]


def _bound(net: nn.Module, shape: tuple[int, ...], scope: str = "global", **options: Any) -> UpperBound:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given: dict[str, Any] = {"seconds": 5.0, "failure": 0.0, **options}
        found = lipcert.lipschitz(net, shape, method="smallgain", scope=scope, guarantee="upper", **given)  # type: ignore[arg-type]
    assert isinstance(found, UpperBound)
    return found


def _liplt(net: nn.Module, shape: tuple[int, ...], scope: str = "global") -> Tensor:
    return lipcert.lipschitz(net, shape, scope=scope, guarantee="upper").value  # type: ignore[arg-type]


def _exactly(exact: Exact, scope: str) -> Tensor:
    if scope == "pairwise":
        return exact.pairs
    if scope == "global":
        return torch.tensor(exact.constant)
    return torch.as_tensor(np.max([np.linalg.norm(c.slope, axis=1) for c in exact.cells], axis=0))


# --- what it lies between ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("widths", WIDTHS)
def test_between_the_exact_constant_and_liplt(widths: tuple[int, ...], scope: str) -> None:
    for seed in range(2 if scope == "pairwise" else 1):
        net = network(matrices(*widths, seed=seed), seed=seed)
        exact, above = _exactly(Exact(net), scope), _liplt(net, (widths[0],), scope)
        seconds = 2.0 if scope == "global" else 0.2
        for scaling in ("layer", "neuron"):
            found = _bound(net, (widths[0],), scope, scaling=scaling, seconds=seconds)
            assert found.method == "smallgain"
            assert bool((found.value >= exact * (1 - 1e-9)).all())
            assert bool((found.value <= above).all())
            if seed:
                continue  # the estimate is of the same search
            estimate = lipcert.lipschitz(
                net,
                (widths[0],),
                method="smallgain",
                scope=scope,
                scaling=scaling,
                seconds=seconds,  # type: ignore[arg-type]
            )
            assert isinstance(estimate, Estimate)
            torch.testing.assert_close(estimate.value, found.value, rtol=3e-3, atol=1e-9)


@pytest.mark.parametrize("name", NAMES[::5])
def test_cases(name: str) -> None:
    """Not below a Jacobian of the module, nor above LipLT, with as little search as possible."""
    x = CASES[name].inputs(6)
    jacobians = textbook.jacobians(CASES[name].module(), x)
    least = {
        "global": torch.linalg.matrix_norm(jacobians, 2).amax(0),
        "class": jacobians.norm(dim=2).amax(0),
        "pairwise": (jacobians[:, :, None] - jacobians[:, None]).norm(dim=3).amax(0),
    }
    for scope, seen in least.items():
        options: dict[str, Any] = {"scope": scope, "guarantee": "upper", "failure": 0.0}
        above = graph_bound(traced(name), **options).value
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some of these cannot be searched
            found = graph_bound(traced(name), method="smallgain", seconds=0.01, **options).value
        assert bool((found <= above).all())
        assert bool((found >= seen * (1 - 1e-9)).all())


@pytest.mark.parametrize("name", NAMES[::4])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_any_weights_and_any_matrix_are_sound(name: str, spread: float) -> None:
    """Nothing but ‖S‖ needs to be true: neither feasibility, nor anything about P."""
    loop, jacobians = loop_map(name), textbook.jacobians(CASES[name].module(), CASES[name].inputs(20))
    pairs = (jacobians[:, :, None] - jacobians[:, None]).norm(dim=3).amax(0)
    with torch.no_grad():
        for kind in ("layer", "neuron"):
            weights = tuple(random_weights(loop, kind, 1, spread))
            for output, scope, seen in (
                (random_output(loop), "pairwise", pairs),
                (random_output(loop, 1), "class", jacobians.norm(dim=2).amax(0)),
                (0.01, "global", torch.linalg.matrix_norm(jacobians, 2).amax(0)),
                (-50.0, "global", torch.linalg.matrix_norm(jacobians, 2).amax(0)),
            ):
                evidence = Evidence(Scaling(kind, weights), output)  # type: ignore[arg-type]
                assert fits(loop, evidence)
                norm = prove_scaled(evidence.map(loop), dense=2048, limit=2048, failure=0.0, slack=1e-3)
                found = evidence_value(loop, Evidence(evidence.scaling, output, norm), scope)  # type: ignore[arg-type]
                assert bool((found >= seen * (1 - 1e-9)).all())


def test_schwarz_is_tight_on_a_network_of_one_neuron() -> None:
    """y = c·b·a·x by two activations of slopes [−1, 1], all weights right but for a factor: exactly σ^level."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Hardtanh(), nn.Linear(1, 1, bias=False)).double().eval()
    for p in net.parameters():
        nn.init.ones_(p)
    loop = LoopMap(lipcert.trace(net, (1,)))
    one = torch.ones((1,), dtype=torch.float64)
    with torch.no_grad():
        for weight in (0.5, 1.0, 2.0, 8.0):
            evidence = Evidence(Scaling("neuron", (one * weight,)), 1.0)
            norm = prove_scaled(evidence.map(loop), dense=9, limit=9, failure=0.0, slack=0.0)
            value = float(evidence_value(loop, Evidence(evidence.scaling, 1.0, norm), "global"))
            assert 1 <= value <= max(1.0, norm.upper) ** 2 * (1 + 1e-9)


@pytest.mark.parametrize(("per", "scaling"), [("neuron", "neuron"), ("layer", "layer")])
def test_as_sharp_as_lipsdp(per: str, scaling: str) -> None:
    for package in ("cvxpy", "scs", "clarabel"):
        pytest.importorskip(package)
    from reference_sdp import lipsdp

    for seed in range(2):
        weights = matrices(6, 8, 7, 3, seed=seed)
        net, sharp = network(weights), lipsdp(weights, per=per).value
        assert sharp * (1 - 1e-4) <= float(_bound(net, (6,), scaling=scaling)) <= sharp * 1.02
        if per == "neuron":  # one D serves all pairs, so it is sharp where there is one, and sound for each
            pair = lipsdp(weights, functional=[1.0, -1.0, 0.0]).value
            assert pair * (1 - 1e-4) <= float(_bound(net, (6,), "pairwise").value[0, 1])
            two = [*weights[:-1], weights[-1][:2]]
            assert pair * (1 - 1e-4) <= float(_bound(network(two), (6,), "pairwise").value[0, 1]) <= pair * 1.02


def test_finer_weights_are_never_much_worse() -> None:
    net = network(matrices(6, 9, 8, 7, 4, seed=2))
    asked = ("layer", "channel", "neuron", "auto")
    bounds = [_bound(net, (6,), "global", scaling=s, seconds=5.0) for s in asked]
    found = [float(b) for b in bounds]
    assert found[0] >= found[1] * (1 - 1e-2) >= found[2] * (1 - 2e-2)
    assert found[3] <= found[2] * 1.01
    kinds = [b.evidence.scaling.kind for b in bounds[:3:2] if b.evidence is not None]
    assert kinds == ["layer", "neuron"]


# --- odd networks -----------------------------------------------------------------------------------------------------
def _mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    return network(matrices(*widths, seed=seed), seed=seed)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dead", [0, 2, 4])
def test_a_dead_layer(dead: int, scope: str) -> None:
    net = _mlp(3, 5, 4, 3)
    nn.init.zeros_(net[dead].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is nothing to search
        options: dict[str, Any] = {"method": "smallgain", "scope": scope, "seconds": 0.2}
        assert float(lipcert.lipschitz(net, (3,), guarantee="upper", **options).value.max()) < 1e-290
        assert float(lipcert.lipschitz(net, (3,), **options).value.max()) == 0.0


def test_nothing_is_balanced_where_slopes_have_no_centre() -> None:
    """No block leads from x to the second activation then. Such weights had a gain of 0: the best of all, it seemed."""
    torch.manual_seed(0)
    hidden, layers = torch.full((8, 8), 2.0**-40), list[nn.Module]()
    hidden[0, 0] = 1.0
    for _ in range(6):
        layers += [nn.Linear(8, 8, bias=False), Fn(lambda s, x: x.abs())]
        layers[-2].weight.data = hidden.clone()
    net = nn.Sequential(*layers, nn.Linear(8, 3, bias=False)).double().eval().requires_grad_(False)
    graph = lipcert.trace(net, (8,))
    assert balanced_start(LoopMap(graph, graph.resolve(torch.float64)), "channel") is None
    found = graph_bound(graph, method="smallgain", scaling="channel", guarantee="upper", seconds=0.1)
    assert isinstance(found, UpperBound)
    assert found.evidence is not None


@pytest.mark.parametrize("scope", SCOPES)
def test_no_activation(scope: str) -> None:
    net = nn.Linear(3, 4).eval()
    assert torch.equal(_bound(net, (3,), scope).value, _liplt(net, (3,), scope))
    assert _bound(net, (3,), scope).evidence is None


@pytest.mark.parametrize("scope", SCOPES)
def test_logits_that_are_the_same(scope: str) -> None:
    net = _mlp(3, 5, 4, 4)
    with torch.no_grad():
        net[4].weight[1] = net[4].weight[0]
        net[4].weight[3] = 0.0
    found, above = _bound(net, (3,), scope), _liplt(net, (3,), scope)
    assert bool((found.value <= above).all())
    assert float(found.value.max()) < 0.95 * float(above.max())
    if scope == "pairwise":
        assert float(found.value[0, 1]) <= 1e-10


@pytest.mark.parametrize("scope", SCOPES)
def test_more_classes_than_neurons(scope: str) -> None:
    """N has no full rank, and errs at second order off its diagonal too; 12 heads stand for 60."""
    net = _mlp(6, 10, 9, 60)
    found, above = _bound(net, (6,), scope), _liplt(net, (6,), scope)
    assert float(found.value.max()) < 0.96 * float(above.max())
    assert found.evidence is not None
    assert found.evidence.norm is not None
    assert found.evidence.norm.upper < 1.001
    slopes = textbook.jacobians(net, torch.randn((20, 6), dtype=torch.float64))
    assert float(found.value.max()) >= float(torch.linalg.matrix_norm(slopes, 2).max() if scope == "global" else 0)


def test_images_to_images_one_class_and_float32() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).eval()
    assert float(_bound(net, (2, 5, 5), seconds=0.2)) <= float(_liplt(net, (2, 5, 5)))
    one = _mlp(3, 5, 4, 1).float()
    for scope in ("global", "class"):
        assert float(_bound(one, (3,), scope)) < float(_liplt(one, (3,), scope))
    assert float(_bound(one, (3,), "pairwise").value) == 0.0


def test_a_maximum_over_features() -> None:
    """A map whose result has fewer dimensions than its input: one weight broadcasts against both."""

    class Maximum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).reshape(-1, 4, 3).amax(2))

    torch.manual_seed(0)
    net = Maximum().eval()
    assert bool((_bound(net, (4,), "class").value <= _liplt(net, (4,), "class")).all())


@pytest.mark.parametrize("exponent", [40, -100, 290])
@pytest.mark.parametrize("small", [2.0e6, 0])
def test_scales_do_not_matter(exponent: int, small: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 too, or where that has no such numbers in float64."""
    weights = matrices(3, 5, 4, 3)
    plain = float(_bound(network(weights, biases=0.0), (3,)))
    monkeypatch.setattr(smallgain, "_SMALL", small)
    weights[0], weights[1] = weights[0] * 2.0**exponent, weights[1] * 2.0**-exponent
    assert float(_bound(network(weights, biases=0.0), (3,))) == pytest.approx(plain, rel=3e-3)


# --- options ----------------------------------------------------------------------------------------------------------
def test_no_time_at_all() -> None:
    net = _mlp(3, 5, 4, 3)
    for seconds in (0.0, 1e-9):
        found = _bound(net, (3,), seconds=seconds)
        assert found.evidence is not None
        assert found.evidence.scaling.kind == "layer"
        assert float(found) <= float(_liplt(net, (3,)))


def test_a_start() -> None:
    net = _mlp(3, 5, 4, 3)
    first = _bound(net, (3,))
    assert first.evidence is not None
    start = first.evidence.scaling
    again = _bound(net, (3,), start=start, seconds=0.0)
    assert float(again) <= float(first) * 1.01
    infeasible = Scaling("neuron", tuple(w * 1e6**k for k, w in enumerate(start.weights)))
    assert float(_bound(net, (3,), start=infeasible)) <= float(_liplt(net, (3,)))
    with pytest.raises(BoundError, match="finer than scaling='layer'"):
        _bound(net, (3,), start=infeasible, scaling="layer")


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(BoundError, match="seconds must be a number that is not negative"):
        _bound(_mlp(3, 5, 4, 3), (3,), seconds=seconds)


@pytest.mark.parametrize("guarantee", ["upper", "estimate"])
@pytest.mark.parametrize(
    ("start", "said"),
    [
        (3, "earlier small-gain bound"),
        (Scaling("each", ()), "earlier small-gain bound"),  # type: ignore[arg-type]
        (Scaling("neuron", ()), "another network"),
        (Scaling("neuron", (torch.ones(5), torch.ones(5))), "another network"),
        (Scaling("layer", (torch.ones(5), torch.ones(4))), "another network"),
        (Scaling("layer", (torch.ones(1), -torch.ones(1))), "positive"),
        (Scaling("layer", (torch.ones(1), torch.full((1,), torch.nan))), "finite"),
        (Scaling("layer", (torch.ones(1), torch.full((1,), torch.inf))), "finite"),
    ],
)
def test_a_start_of_another_network(start: Any, said: str, guarantee: str) -> None:
    with pytest.raises(BoundError, match=said):
        lipcert.lipschitz(_mlp(3, 5, 4, 3), (3,), method="smallgain", guarantee=guarantee, start=start)  # type: ignore[arg-type]


class _Residual(nn.Module):
    """x − 2·Wᵀ T⁻¹ relu(W·x): 1-Lipschitz by small gain, of LipLT's about 3."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        w = torch.randn(width, width, generator=generator, dtype=torch.float64)
        self.inner, self.outer = (nn.Linear(width, width, bias=False, dtype=torch.float64) for _ in range(2))
        self.inner.weight.data.copy_(w)
        self.outer.weight.data.copy_(-2 * w.T / (w @ w.T).abs().sum(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x).relu())


def test_a_deep_residual_network_is_taken_block_by_block() -> None:
    """LipLT says a hundred and more, and a search from there gets nowhere near what each block has."""
    net = nn.Sequential(*(_Residual(6, seed) for seed in range(10))).eval()
    assert float(_liplt(net, (6,))) > 50
    found = _bound(net, (6,), scaling="neuron", seconds=2.0)
    assert 0.1 < float(found) < 1.05
    assert found.slack < 1e-4
    assert found.evidence is not None
    again = _bound(net, (6,), scaling="neuron", seconds=0.0, start=found.evidence.scaling)
    assert float(again) < 1.05


def test_a_search_that_fails_leaves_liplt_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise BoundError("no luck")

    net = _mlp(3, 5, 4, 3)
    monkeypatch.setattr(smallgain, "search", fails)
    with pytest.warns(UserWarning, match="LipLT's is used: no luck"):
        found = lipcert.lipschitz(net, (3,), method="smallgain", guarantee="upper")
    assert float(found) == float(_liplt(net, (3,)))


def test_a_proof_by_test_states_its_probability() -> None:
    found = _bound(_mlp(3, 5, 4, 3), (3,), dense_limit=1, failure=1e-9)
    assert found.failure == 1e-9
    assert found.evidence is not None
    assert found.evidence.norm is not None
    assert found.evidence.norm.failure + sum(n.failure for n in found.norms.values()) == pytest.approx(1e-9)


def test_prove_accepts_a_careless_search() -> None:
    loop = loop_map("mlp-deep")
    with torch.no_grad():
        scaling = Scaling("neuron", tuple(random_weights(loop, "neuron")))
        gain = torch.eye(3, dtype=torch.float64) * 1e-6
        evidence = prove(loop, scaling, gain, dense=2048, limit=2048, failure=0.0, slack=1e-3)
        value = evidence_value(loop, evidence, "class")
    seen = textbook.jacobians(CASES["mlp-deep"].module(), CASES["mlp-deep"].inputs(20)).norm(dim=2).amax(0)
    assert bool((value >= seen).all())


def test_a_gain_next_to_nothing_is_no_overflow() -> None:
    loop = loop_map("mlp-deep")
    with torch.no_grad():
        scaling = Scaling("neuron", tuple(random_weights(loop, "neuron")))
        evidence = prove(loop, scaling, 1e-310, dense=2048, limit=2048, failure=0.0, slack=1e-3)
    assert evidence.norm is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seconds": "5"}, "seconds must be a number"),
        ({"seconds": float("nan")}, "seconds must be a number"),
        ({"failure": 2.0, "guarantee": "upper"}, r"less than 0\.1; got 2\.0"),
        ({"failure": -1.0, "guarantee": "upper"}, r"got -1\.0"),
        ({"dense_limit": -1}, "dense_limit must be at least 1"),
        ({"method": "liplt", "start": Scaling("layer", (torch.ones(1),))}, "is for method='smallgain'"),
        ({"start": Scaling("layer", ([1.0],))}, "tensors"),  # type: ignore[arg-type]
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with pytest.raises(BoundError, match=said):
        lipcert.lipschitz(net, (2,), **{"method": "smallgain", **options})


@pytest.mark.parametrize("factor", [1e200, 1e-200])
def test_weights_to_start_from_that_are_useless(factor: float) -> None:
    """LipLT's bound is what is left, with a warning."""
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    start = Scaling("layer", tuple(torch.full((1,), factor, dtype=torch.float64) for _ in range(2)))
    with pytest.warns(UserWarning, match="LipLT's is used"):
        found = lipcert.lipschitz(net, (2,), method="smallgain", start=start)
    assert float(found) == pytest.approx(float(lipcert.lipschitz(net, (2,))), rel=1e-3)
