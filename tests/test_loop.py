"""T itself, as matrices, against the two independent references; and the bookkeeping of rows that travel together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import explicit
import lipcert
from cases import AFFINE, CASES, loop_map, named, reference_blocks
from catalogue import Fn
from lipcert.loop import Group, LoopMap
from lipcert.norms.dense import block
from references import Blocks, blocks

ALL = list(CASES)


def _dense(loop: LoopMap, k: int, j: int) -> np.ndarray:
    """A_kj from :func:`lipcert.norms.dense.block`, the right way up."""
    matrix = block(loop, (k, j)).numpy()
    outputs = int(np.prod(loop.target_shape(k)))
    return matrix if outputs <= int(np.prod(loop.source_shape(j))) else matrix.T


def _agree(loop: LoopMap, expected: Blocks, tolerance: float = 1e-6) -> None:
    connected = set(loop.pairs())
    assert {pair for pair, matrix in expected.items() if matrix.any()} <= connected
    for pair in connected:
        got = _dense(loop, *pair)
        want = expected.get(pair, np.zeros_like(got))
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("name", [n for n in ALL if n != "math-same-twice"])  # there lipcert merges two activations
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "product"])
def test_t_is_the_reference(name: str, centred: bool) -> None:
    _agree(loop_map(name, centred=centred), reference_blocks(name, centred=centred))


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("mlp-deep", explicit.mlp),
        ("conv2d-no-divide", explicit.convolutions),
        ("dense-concat", explicit.dense),
    ],
)
def test_t_by_hand(name: str, by_hand: object) -> None:
    expected = by_hand(CASES[name].module())  # type: ignore[operator]
    _agree(loop_map(name), expected, 1e-12)
    reference = reference_blocks(name)
    for pair, matrix in expected.items():
        if pair in reference:
            np.testing.assert_allclose(reference[pair], matrix, atol=1e-12)


def test_a_residual_block_by_hand() -> None:
    torch.manual_seed(3)
    net = Fn(lambda s, x: s.d(x + s.b(s.a(x).relu())), a=nn.Linear(4, 4), b=nn.Linear(4, 4), d=nn.Linear(4, 3)).double()
    expected = explicit.residual(net)
    _agree(LoopMap(lipcert.trace(net.eval(), (4,))), expected, 1e-12)
    for pair, matrix in blocks(net, (4,)).items():
        np.testing.assert_allclose(matrix, expected[pair], atol=1e-12)


def test_parts_that_no_path_joins_are_known_to_be_zero() -> None:
    chain = loop_map("mlp-deep", centred=False)
    assert chain.pairs() == [(k, k - 1) for k in range(1, 6)]
    maxmin = loop_map("sorting-maxmin")
    assert maxmin.pairs() == [(1, 0), (2, 1)]


# --- rows that travel together ------------------------------------------------------------------------------------
def _alone(loop: LoopMap, k: int, j: int, rows: Tensor) -> Tensor:
    inputs: list[Tensor | None] = [None] * (loop.depth + 1)
    inputs[j] = rows
    return loop.forward(inputs)[k - 1]


@pytest.mark.parametrize("name", ["mlp-deep", "residual-projection", "dense-concat", "two-branches-unequal", "unet",
                                  "pool-twice", "sorting-maxmin", "math-sub", "ends-in-activation"])  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_groups_do_not_mix(name: str, seed: int) -> None:
    """Any selection of blocks, in any order, with any numbers of rows, gives what each gives alone."""
    loop = loop_map(name)
    random = np.random.default_rng(seed)
    pairs = [loop.pairs()[i] for i in random.permutation(len(loop.pairs()))[: 3 + 4 * seed]]
    counts = [int(n) for n in random.integers(1, 4, len(pairs))]
    rows = [
        torch.as_tensor(random.standard_normal((n, *loop.source_shape(j))))
        for n, (_, j) in zip(counts, pairs, strict=True)
    ]
    plan = loop.plan([Group(n, frozenset({j}), frozenset({k})) for n, (k, j) in zip(counts, pairs, strict=True)])
    seeds = {j: torch.cat([r for r, (_, i) in zip(rows, pairs, strict=True) if i == j]) for _, j in pairs}
    with torch.no_grad():
        out = loop.run(plan, seeds)
    for k, value in out.items():
        expected = torch.cat([_alone(loop, k, pairs[g][1], rows[g]) for g in plan.rows(k)])
        torch.testing.assert_close(value, expected)
    assert sorted(g for k in out for g in plan.rows(k)) == list(range(len(pairs)))


@pytest.mark.parametrize("name", ["residual-chain", "dense-concat", "act-prelu", "unet", "pool-max-overlapping"])
def test_a_group_with_several_sources_and_targets(name: str) -> None:
    loop = loop_map(name)
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn((2, *loop.source_shape(j)), generator=generator, dtype=torch.float64) for j in range(loop.depth + 1)
    ]
    with torch.no_grad():
        whole = loop.forward(inputs)
        parts = [loop.forward([v if i == j else None for i, v in enumerate(inputs)]) for j in range(len(inputs))]
    for k, value in enumerate(whole):
        torch.testing.assert_close(value, sum(p[k] for p in parts))


@pytest.mark.parametrize("name", ["mlp", "residual-identity", "dense-concat", "pool-max", "act-gelu"])
def test_amplification(name: str) -> None:
    """It is not below what |T| does to errors of 1 in all sources, which are some of all nodes."""
    loop = loop_map(name)
    forward, back = loop.amplification()
    for k in range(1, loop.depth + 2):
        made = sum(np.abs(_dense(loop, k, j)).sum(1) for j in range(loop.depth + 1) if loop.connected(k, j))
        assert bool((forward[k - 1].flatten().numpy() >= made - 1e-9).all())
    for j in range(loop.depth + 1):
        made = sum(np.abs(_dense(loop, k, j)).sum(0) for k in range(1, loop.depth + 2) if loop.connected(k, j))
        assert bool((back[j].flatten().numpy() >= made - 1e-9).all())


def test_amplification_of_a_chain() -> None:
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)).double().eval()
    net[0].weight.data.fill_(-3.0)
    net[2].weight.data.fill_(5.0)
    forward, back = LoopMap(lipcert.trace(net, (1,))).amplification()
    # errors: 1 at x, z, relu(z), y. z gets 3·1 + 1, y gets 5·(½·4 + 1) + 1; back: 5 + 1 at relu, ½·6 at z, …
    assert [float(v) for v in forward] == [4.0, 16.0]
    assert [float(v) for v in back] == [3.0 * (1 + 0.5 * (1 + 5)) + 1, 0.5 * (1 + 5)]


@pytest.mark.parametrize("name", named(without=("image", "twin")))
def test_which_cases_have_no_activation(name: str) -> None:
    assert (loop_map(name).depth == 0) == (name in AFFINE)
