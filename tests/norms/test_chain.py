"""Chains of layers: the product of their norms is above the block's, and used only where nothing else is left."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import lipcert
from affine import chain_bound, matrix, norm, seeded
from cases import CASES, loop_map
from lipcert.errors import BoundError
from lipcert.loop import LoopMap
from lipcert.norms import Norm, dense, upper, upper_norms
from lipcert.norms.chain import chain, chain_norms
from lipcert.norms.confirm import confirm_norms

EXACT = {
    "moved": (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Flatten(), nn.ZeroPad1d(2)), (2, 4, 4)),
    "mean": (lambda: nn.AdaptiveAvgPool2d(1), (3, 4, 6)),
    "average": (lambda: nn.AvgPool2d(2), (3, 4, 6)),
    "repeated": (lambda: nn.Sequential(nn.ReplicationPad1d((0, 3))), (2, 4)),
    "nearest": (lambda: nn.Upsample(scale_factor=3), (2, 3, 2)),
    "matrix": (lambda: nn.Linear(5, 7), (5,)),
    "matrix of each row": (lambda: nn.Linear(5, 3), (4, 5)),
}


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -3 * x.flip(1)


class Steered(nn.Module):
    """A scaling for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.norm.weight.data = torch.tensor([0.3, -2.0, 1.0])
        self.norm.running_var.fill_(0.1)  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


@pytest.mark.parametrize("name", [*EXACT, "negated", "steered"])
def test_layers_without_taps(name: str) -> None:
    make, shape = {**EXACT, "negated": (Negated, (4, 3)), "steered": (Steered, (3, 5))}[name]
    module = seeded(make)
    truth = norm(matrix(module, shape))
    assert truth * (1 - 1e-12) <= chain_bound(module, shape) <= truth * (1 + 1e-9)


@pytest.mark.parametrize("name", list(CASES)[::4])
@pytest.mark.parametrize("centred", [False, True])
def test_every_chain_of_the_catalogue(name: str, centred: bool) -> None:
    loop = loop_map(name, centred=centred)
    for pair in loop.pairs():
        layers = chain(loop, pair, limit=100)
        if layers is not None:
            found = chain_norms(loop, {pair: layers}, {pair: 0.0})[pair].upper
            assert norm(dense.block(loop, pair)) * (1 - 1e-12) <= found


class Branches(nn.Module):
    """Two affine paths from the input to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Residual(nn.Module):
    """Skips over activations: each block of the uncentred map is a chain all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.norm, self.head = nn.Conv2d(4, 4, 1, 2), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(x + self.norm(self.b(x.relu())))
        return self.head(self.down(x).relu().mean((2, 3)))


def test_what_is_no_chain() -> None:
    loop = LoopMap(lipcert.trace(seeded(Branches), (2, 4, 4)))
    assert chain(loop, (1, 0), limit=100) is None
    with pytest.raises(BoundError, match="side of 32 exceeds the limit of 20"):
        upper_norms(loop, [(1, 0)], limit=20)
    net = seeded(lambda: nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv1d(2, 2, 3, padding=1)))
    centred = LoopMap(lipcert.trace(net, (2, 9)))
    assert chain(centred, (2, 0), limit=100) is None  # goes on through the activation
    assert {p for p in centred.pairs() if chain(centred, p, limit=100) is not None} == {(1, 0), (2, 1)}
    wide = LoopMap(lipcert.trace(seeded(lambda: nn.Sequential(nn.Linear(30, 20), nn.Unflatten(1, (4, 5)))), (30,)))
    assert chain(wide, (1, 0), limit=20) is not None
    assert chain(wide, (1, 0), limit=19) is None  # the layer's own matrix is too large
    with pytest.raises(BoundError, match="failure=1e-12"):
        lipcert.lipschitz(net, (2, 9), guarantee="upper", failure=0, dense_limit=10)


def test_chains_are_used_where_there_is_no_other_way() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU(),
                                       nn.Flatten(), nn.Linear(50, 3)))  # fmt: skip
    options = {"method": "product", "guarantee": "upper"}
    exact = lipcert.lipschitz(net, (1, 10, 10), **options, failure=0)
    large = lipcert.lipschitz(net, (1, 10, 10), **options, failure=0, dense_limit=10)
    assert {n.method for n in exact.norms.values()} == {"dense"}  # type: ignore[attr-defined]
    found = {p: n.method for p, n in large.norms.items()}  # type: ignore[attr-defined]
    assert found == {(1, 0): "torus", (2, 1): "torus", (3, 2): "dense"}
    assert large.failure == 0  # type: ignore[attr-defined]
    assert float(exact) <= float(large) <= 1.2 * float(exact)
    probable = lipcert.lipschitz(net, (1, 10, 10), **options, dense_limit=10)
    assert "torus" not in {n.method for n in probable.norms.values()}  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["product", "liplt"])
def test_chains_replace_gram_matrices_where_they_are_close_enough(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much slack is asked for, the bound stays within it, and as few Gram matrices are formed as it allows."""
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1), nn.ReLU(),
                                       nn.Flatten(), nn.Linear(50, 3)))  # fmt: skip
    monkeypatch.setattr(upper, "DENSE", 10)
    options = {"method": method, "scope": "pairwise", "guarantee": "upper", "failure": 0}
    closest = lipcert.lipschitz(net, (1, 10, 10), slack=1e-6, **options)  # type: ignore[arg-type]
    convolutions = {(1, 0), (2, 1)}
    formed = []
    for slack in (1e-5, 0.05, 0.2, 0.5):
        found = lipcert.lipschitz(net, (1, 10, 10), slack=slack, **options)  # type: ignore[arg-type]
        assert found.slack <= slack * (1 + 1e-9)  # type: ignore[attr-defined]
        assert float(found.value.max()) <= float(closest.value.max()) * (1 + slack) * (1 + 1e-5)
        methods = {p: n.method for p, n in found.norms.items()}  # type: ignore[attr-defined]
        assert {p for p, m in methods.items() if m == "torus"} <= convolutions
        formed.append(sum(m == "cholesky" for m in methods.values()))
    assert formed == sorted(formed, reverse=True)
    assert formed[0] - formed[-1] == len(convolutions)


def test_each_norm_by_itself_is_within_the_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper, "DENSE", 10)
    net = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, 2, 1)))
    loop = LoopMap(lipcert.trace(net, (1, 10, 10)), centred=False)
    for slack, method in ((1e-4, "cholesky"), (0.5, "torus")):
        for pair, found in upper_norms(loop, loop.pairs(), slack=slack).items():
            truth = norm(dense.block(loop, pair))
            assert found.method == method
            assert truth * (1 - 1e-12) <= found.upper <= truth * (1 + slack)


def test_a_residual_network_by_its_product() -> None:
    net = seeded(Residual)
    exact = LoopMap(lipcert.trace(net, (3, 8, 8)), centred=False)
    truth, found = upper_norms(exact, exact.pairs(), limit=4096), upper_norms(exact, exact.pairs(), limit=4)
    assert {n.method for n in found.values()} == {"torus", "dense"}
    for pair, claim in found.items():
        assert truth[pair].lower * (1 - 1e-10) <= claim.upper <= 1.1 * truth[pair].upper
        assert claim.lower <= claim.upper


def test_a_claim_is_confirmed_or_refuted_by_another_method() -> None:
    net = seeded(lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1)))
    loop = LoopMap(lipcert.trace(net, (2, 9, 9)), centred=False)
    claims = upper_norms(loop, loop.pairs(), limit=10)
    assert set(confirm_norms(loop, claims, limit=10, failure=1e-9).values()) == {"chebyshev"}
    assert set(confirm_norms(loop, claims, limit=1000, failure=0).values()) == {"cholesky"}
    wrong = {p: Norm(0.9 * n.upper, 0.9 * n.lower, "torus") for p, n in claims.items()}
    with pytest.raises(BoundError, match="is claimed"):
        confirm_norms(loop, wrong, limit=10, failure=1e-9)


def test_images_of_224() -> None:
    def stage(*widths: int) -> list[nn.Module]:
        pairs = itertools.pairwise(widths)
        return [m for a, b in pairs for m in (nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())] + [
            nn.MaxPool2d(2)
        ]

    net = seeded(lambda: nn.Sequential(*stage(3, 4, 4), *stage(4, 8, 8), *stage(8, 8), nn.AdaptiveAvgPool2d(2),
                                       nn.Flatten(), nn.Linear(32, 10)))  # fmt: skip
    bound = lipcert.lipschitz(net, (3, 224, 224), method="product", guarantee="upper", failure=0, dense_limit=512)
    assert {n.method for n in bound.norms.values()} == {"torus", "dense"}  # type: ignore[attr-defined]
    assert bound.failure == 0  # type: ignore[attr-defined]
    assert 0 < bound.slack < 0.05  # type: ignore[attr-defined]
