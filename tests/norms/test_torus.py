"""Norms of single convolutions, by frequency: never below the explicit matrix's, and as near as they can be."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from affine import chain_bound, matrix, norm, seeded
from exact import is_upper_bound
from lipcert.errors import BoundError
from lipcert.graph.forms import Convolution
from lipcert.norms import torus
from lipcert.norms.torus import convolution_norm, zero_padded_torus

NEAR = 1e-9


def circulant(weight: Tensor, sides: list[int], stride: list[int], dilation: list[int], groups: int = 1) -> Tensor:
    """The matrix of a circular convolution, entry by entry from its definition (any dtype, object arrays excepted)."""
    out, inside, *kernel = weight.shape
    channels, m = inside * groups, [n // s for n, s in zip(sides, stride, strict=True)]
    result = weight.new_zeros((out, *m, channels, *sides))
    for o, i in itertools.product(range(out), range(inside)):
        source = o // (out // groups) * inside + i
        for place in itertools.product(*map(range, m)):
            for tap in itertools.product(*map(range, kernel)):
                read = [(s * u + d * t) % n for s, u, d, t, n in zip(stride, place, dilation, tap, sides, strict=True)]
                result[(o, *place, source, *read)] += weight[(o, i, *tap)]
    return result.reshape(out * math.prod(m), -1)


# --- the torus itself ---------------------------------------------------------------------------------------------
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_circular_convolutions_exactly(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 3))
    stride = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    sides = [s * data.draw(st.integers(1, (0, 6, 3, 2)[axes])) for s in stride]
    dilation = data.draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    kernel = data.draw(st.lists(st.integers(1, 4), min_size=axes, max_size=axes))
    groups, out, inside = (data.draw(st.integers(1, n)) for n in (2, 3, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    weight = torch.randn((groups * out, inside, *kernel), generator=generator, dtype=torch.float64)
    truth = norm(circulant(weight, sides, stride, dilation, groups))
    found = convolution_norm(weight, sides, stride=stride, dilation=dilation, groups=groups)
    assert found >= truth * (1 - 1e-12)
    assert found <= truth * (1 + NEAR) + 1e-7 * float(weight.abs().sum())


ORDINARY = {
    "one by one": (lambda: nn.Conv2d(3, 5, 1), (3, 5, 4)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 9, 7)),
    "even same": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 6, 7)),
    "valid": (lambda: nn.Conv2d(2, 3, 3), (2, 8, 8)),
    "full": (lambda: nn.Conv2d(2, 3, 3, padding=2), (2, 6, 6)),
    "more than full": (lambda: nn.Conv2d(2, 3, (3, 1), padding=(4, 3)), (2, 5, 5)),
    "published stride": (lambda: nn.Conv2d(3, 4, 4, 2, 1), (3, 8, 10)),
    "stride 3 of 2": (lambda: nn.Conv2d(2, 3, 2, 3), (2, 10, 11)),
    "stride beyond the kernel": (lambda: nn.Conv2d(2, 3, 1, 2), (2, 7, 6)),
    "stride and dilation": (lambda: nn.Conv2d(2, 3, 3, 2, 2, 3), (2, 9, 8)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, 1, 1, groups=2), (4, 6, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, 2, 1, groups=4), (4, 6, 6)),
    "larger than the image": (lambda: nn.Conv2d(2, 2, 5, padding=3), (2, 3, 2)),
    "sequence": (lambda: nn.Conv1d(3, 4, 5, 2, 3, 2), (3, 20)),
    "volume": (lambda: nn.Conv3d(2, 2, (2, 3, 2), (1, 2, 1), (1, 1, 0)), (2, 4, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1), (3, 4, 5)),
    "transposed groups": (lambda: nn.ConvTranspose1d(4, 6, 4, 3, 1, groups=2, dilation=2), (4, 6)),
    "transposed volume": (lambda: nn.ConvTranspose3d(2, 2, 2, 2), (2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("seed", range(3))
def test_zero_padding_is_a_compression(name: str, seed: int) -> None:
    make, shape = ORDINARY[name]
    module = seeded(make, seed)
    truth, found = norm(matrix(module, shape)), chain_bound(module, shape)
    assert truth * (1 - 1e-12) <= found <= 1.6 * truth  # on images of few pixels; see below for how it falls


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_zero_padding_is_a_compression_of_any_kind(data: st.DataObject) -> None:
    kernel, stride, dilation = (data.draw(st.integers(1, n)) for n in (5, 4, 3))
    padding, size = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 12))
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return
    shape, seed = (data.draw(st.integers(1, 2)), size), data.draw(st.integers(0, 10**6))
    module = seeded(lambda: nn.Conv1d(shape[0], 2, kernel, stride, padding, dilation), seed)
    out = matrix(module, shape).shape[0] // 2
    form = Convolution((size,), (out,), (stride,), (padding,), (dilation,))
    weight = module.weight
    assert isinstance(weight, Tensor)
    found = convolution_norm(weight, zero_padded_torus(form, [kernel]), stride=[stride], dilation=[dilation])
    assert found >= norm(matrix(module, shape)) * (1 - 1e-12)


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_what_zero_padding_costs_vanishes_like_the_square_of_the_side(size: int) -> None:
    module = seeded(lambda: nn.Conv1d(2, 2, 3, padding=1))
    ratio = chain_bound(module, (2, size)) / norm(matrix(module, (2, size)))
    assert 1 <= ratio <= 1 + (3 * math.pi / size) ** 2


CIRCULAR = {
    "same": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6, 5)),
    "stride": (lambda: nn.Conv2d(2, 3, 4, 2, 1, padding_mode="circular"), (2, 6, 8)),
    "even": (lambda: nn.Conv1d(2, 2, 4, padding="same", padding_mode="circular"), (2, 7)),
    "dilation": (lambda: nn.Conv1d(3, 2, 3, padding=2, dilation=2, padding_mode="circular"), (3, 9)),
    "volume": (lambda: nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular"), (1, 3, 4, 3)),
}


@pytest.mark.parametrize("name", CIRCULAR)
def test_circular_padding_is_exact(name: str) -> None:
    make, shape = CIRCULAR[name]
    module = seeded(make)
    truth, found = norm(matrix(module, shape)), chain_bound(module, shape)
    assert truth * (1 - 1e-12) <= found <= truth * (1 + NEAR)


def test_circular_padding_that_makes_no_torus() -> None:
    """The stride does not divide, the convolution adds zeros, the padding is more than the kernel wants: no pair."""
    for make, shape in (
        (lambda: nn.Conv1d(2, 3, 3, 2, 1, padding_mode="circular"), (2, 7)),
        (lambda: nn.Sequential(nn.CircularPad1d(1), nn.Conv1d(2, 2, 3, padding=1)), (2, 6)),
        (lambda: nn.Sequential(nn.CircularPad1d(3), nn.Conv1d(2, 2, 3)), (2, 6)),
        (lambda: nn.Sequential(nn.CircularPad2d((1, 1, 0, 0)), nn.Conv2d(2, 2, (2, 3))), (2, 4, 5)),
    ):
        module = seeded(make)
        truth = norm(matrix(module, shape))
        assert truth * (1 - 1e-12) <= chain_bound(module, shape) <= 2.2 * truth


# --- what is wrong is seen to be wrong ------------------------------------------------------------------------------
def test_the_kernel_as_a_matrix_is_no_bound() -> None:
    module = seeded(lambda: nn.Conv2d(3, 3, 3, padding=1))
    assert norm(module.weight.detach().reshape(3, -1)) < norm(matrix(module, (3, 8, 8)))  # type: ignore[operator, union-attr]


def test_a_torus_of_the_image_itself_is_no_bound() -> None:
    """With padding 1 the far ends would meet: x[m+1] − x[m−1] vanishes on two points of a circle."""
    weight = torch.tensor([[[1.0, 0.0, -1.0]]], dtype=torch.float64)
    module = seeded(lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False))
    module.weight.data = weight
    truth = norm(matrix(module, (1, 2)))
    assert convolution_norm(weight, [2], stride=[1], dilation=[1]) < 1e-6 < truth <= chain_bound(module, (1, 2))


@pytest.mark.parametrize("taps", [2, 3, 6])
def test_fewer_frequencies(taps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse grid, with the cosine, is above all frequencies."""
    weight = torch.randn((2, 2, taps), generator=torch.Generator().manual_seed(taps), dtype=torch.float64)
    side = 30011
    angles = 2 * math.pi / side * torch.outer(torch.arange(taps), torch.arange(side)).double()
    kernels = torch.einsum("oit,tf->foi", weight.to(torch.complex128), torch.polar(torch.ones_like(angles), angles))
    truth = float(torch.linalg.svdvals(kernels).max())
    for excess in (1e-3, 0.03, 0.5):
        monkeypatch.setattr(torus, "_EXCESS", excess)
        found = convolution_norm(weight, [side], stride=[1], dilation=[1])
        assert truth <= found <= truth * (1 + excess) * (1 + 1e-9)
        assert found == convolution_norm(weight, [10**12], stride=[1], dilation=[7])  # whatever the side and the steps


def norm_on(weight: Tensor, points: int) -> float:
    """The largest norm on a grid."""
    angles = 2 * math.pi / points * torch.outer(torch.arange(weight.shape[2]), torch.arange(points)).double()
    phases = torch.polar(torch.ones_like(angles), angles)
    return float(torch.linalg.svdvals(torch.einsum("oit,tf->foi", weight.to(torch.complex128), phases)).max())


def test_the_cosine_is_reached() -> None:
    """The lemma is sharp: 1 − e^{iω} is largest at ω = π, which an odd number of points straddles."""
    weight = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    for points in (3, 5, 9):
        assert norm_on(weight, points) < 2  # a grid alone is no bound
        assert norm_on(weight, points) / math.cos(math.pi / (2 * points)) == pytest.approx(2, rel=1e-12)


# --- rounding -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_not_below_in_rational_numbers(seed: int, side: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn((2, 1 + seed % 2, 3), generator=generator, dtype=torch.float64)
    out, inside, taps = weight.shape
    exact = [[Fraction(0)] * (inside * side) for _ in range(out * side)]
    for o, m, i, t in itertools.product(range(out), range(side), range(inside), range(taps)):
        exact[o * side + m][i * side + (m + t) % side] += Fraction(float(weight[o, i, t]))
    found = convolution_norm(weight, [side], stride=[1], dilation=[1])
    assert is_upper_bound(found, exact)
    assert not is_upper_bound(found * (1 - 1e-11), exact)


@pytest.mark.parametrize("exponent", [-1000, -500, -3, 500, 1000])
def test_any_scale(exponent: int) -> None:
    weight = torch.randn((3, 2, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options = {"stride": [2, 1], "dilation": [1, 2]}
    plain = convolution_norm(weight, [8, 7], **options)
    scaled = convolution_norm(weight * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2), [8, 7], **options)
    assert scaled / 2.0 ** (exponent // 2) / 2.0 ** (exponent - exponent // 2) == plain


def test_the_smallest_floats_and_none() -> None:
    smallest = torch.full((1, 1, 3), 2.0**-1074, dtype=torch.float64)
    assert convolution_norm(smallest, [5], stride=[1], dilation=[1]) >= 2.0**-1022
    assert convolution_norm(torch.zeros((1, 1, 3)).double(), [5], stride=[1], dilation=[1]) == 0
    for odd in (math.inf, math.nan):
        with pytest.raises(BoundError, match="not finite"):
            convolution_norm(torch.full((1, 1, 3), odd).double(), [5], stride=[1], dilation=[1])


def test_all_frequencies_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """An orthogonal convolution has the norm 1 everywhere: one eigenvalue problem, not one a frequency."""
    calls: list[int] = []
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda a: calls.append(len(a)) or eigvalsh(a))
    q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    weight = nn.functional.pad(q[:, :, None, None], (1, 1, 1, 1))
    assert convolution_norm(weight, [33, 33], stride=[1, 1], dilation=[1, 1]) == pytest.approx(1, abs=1e-11)
    assert sum(calls) <= 2
