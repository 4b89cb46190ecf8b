"""The table of slopes against thirty digits: every interval contains the true one, and by less than 1e-14."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from cases import CASES, traced
from lipcert.graph.rules import activations
from lipcert.graph.types import Elementwise, Slopes

mp = pytest.importorskip("mpmath")


def _gelu(x: object) -> object:
    return x * mp.ncdf(x)


def _gelu_tanh(x: object) -> object:
    return x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)))


def _silu(x: object) -> object:
    return x / (1 + mp.exp(-x))


def _mish(x: object) -> object:
    return x * mp.tanh(mp.log(1 + mp.exp(x)))


@pytest.mark.parametrize(
    ("f", "slopes", "starts"),
    [
        (_gelu, activations._GELU, (-1.4, 1.4)),
        (_gelu_tanh, activations._GELU_TANH, (-1.4, 1.4)),
        (_silu, activations._SILU, (-2.4, 2.4)),
        (_mish, activations._MISH, (-2.2, 1.5)),
    ],
)
def test_smooth_activations_that_dip(f: Callable, slopes: Slopes, starts: tuple[float, float]) -> None:
    with mp.workdps(30):
        least, most = (mp.diff(f, mp.findroot(lambda x: mp.diff(f, x, 2), start)) for start in starts)
        assert mp.mpf(slopes.lower) <= least <= mp.mpf(slopes.lower) + mp.mpf("1e-14")
        assert mp.mpf(slopes.upper) - mp.mpf("1e-14") <= most <= mp.mpf(slopes.upper)
        for x in range(-300, 300):  # and nowhere is it steeper
            assert least <= mp.diff(f, mp.mpf(x) / 20) <= most


def test_fixed_slopes_that_are_not_round() -> None:
    with mp.workdps(30):
        scale, alpha = mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717")
        for name, true in (("selu", scale * alpha), ("erf", 2 / mp.sqrt(mp.pi)), ("hardsigmoid", mp.mpf(1) / 6)):
            upper = mp.mpf(activations._FIXED[name].upper)
            assert true <= upper <= true * (1 + mp.mpf("1e-15"))


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("act-", "fn-", "prelu"))])
def test_difference_quotients_lie_in_the_interval(name: str) -> None:
    """Of every activation in the catalogue, at random pairs of points near and far."""
    graph = traced(name)
    resolved = graph.resolve(torch.float64)
    generator = torch.Generator().manual_seed(0)
    for node in graph.nonlinear:
        assert isinstance(node, Elementwise)
        spread = 10.0 ** torch.empty((400, *(1,) * len(node.shape)), dtype=torch.float64).uniform_(
            -3, 1.5, generator=generator
        )
        a, b = (spread * torch.randn((400, *node.shape), generator=generator, dtype=torch.float64) for _ in range(2))
        step, rise = a - b, node.function(a, resolved.live) - node.function(b, resolved.live)
        slopes = resolved.slopes[node.index]
        gap = (rise - slopes.centre * step).abs() - slopes.radius * step.abs()
        assert bool((gap <= 1e-8 + 1e-12 * step.abs()).all())


@pytest.mark.parametrize("slope", [0.01, 1 / 3, 1 - 2**-53, 1 + 2**-52, -1 + 2**-53, 0.0, 7.7])
def test_centre_and_radius_span_the_interval(slope: float) -> None:
    """A hair is lost in rounding them at most, which the forming error covers."""
    slopes = Slopes(min(slope, 1.0), max(slope, 1.0))
    assert math.isclose(slopes.centre + slopes.radius, max(slope, 1.0), rel_tol=2**-52)
    assert math.isclose(
        slopes.centre - slopes.radius, min(slope, 1.0), rel_tol=0, abs_tol=2**-51 * max(abs(slope), 1.0)
    )
    assert slopes.lipschitz == max(abs(slope), 1.0)
