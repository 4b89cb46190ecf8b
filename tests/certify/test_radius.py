"""Certified radii: closed forms, ties, what is not finite, what is refused, and attacks that must fail."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lipcert.bounds import Estimate, UpperBound
from lipcert.certify import CertifiedRadii, EstimatedRadii, certify
from lipcert.certify import radii as radii_of
from lipcert.errors import BoundError, ModuleStateError, ShapeError, UnsupportedError


def _net(seed: int = 0, widths: tuple[int, ...] = (4, 8, 3), dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    modules: list[nn.Module] = []
    for a, b in zip(widths, widths[1:]):  # noqa: B905, RUF007
        modules += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*modules[:-1]).to(dtype).eval()


radii = partial(radii_of, errors=torch.zeros(()))
"""Of logits that are exact."""


def _upper(value: object) -> UpperBound:
    v = torch.as_tensor(value, dtype=torch.float64)
    return UpperBound(v, "liplt", ("global", "class", "pairwise")[v.ndim])  # type: ignore[arg-type]


# --- closed forms -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scope", ["global", "class", "pairwise"])
def test_the_linear_classifier(scope: str) -> None:
    """Its radius is min_b (z_a − z_b)/‖w_a − w_b‖: exactly what pairwise bounds give, and no other gives more."""
    torch.manual_seed(0)
    net, x = nn.Linear(6, 5).double().eval(), torch.randn(40, 6, dtype=torch.float64)
    result = certify(net, x, scope=scope)  # type: ignore[arg-type]
    z, w = net(x).detach(), net.weight.detach()
    top = z.argmax(1)
    gaps = (z.gather(1, top[:, None]) - z) / (w[top][:, None] - w[None]).norm(dim=2)
    true = gaps.masked_fill(torch.nn.functional.one_hot(top, 5).bool(), math.inf).min(1).values
    assert torch.equal(result.prediction, top)
    assert bool((result.radius <= true).all())
    if scope == "pairwise":
        torch.testing.assert_close(result.radius, true, rtol=1e-9, atol=1e-12)


def test_all_scopes_of_one_net_are_ordered() -> None:
    net, x = _net(), torch.randn(30, 4, dtype=torch.float64)
    by_scope = {s: certify(net, x, scope=s).radius for s in ("global", "class", "pairwise")}  # type: ignore[arg-type]
    assert bool((by_scope["pairwise"] >= by_scope["global"] * (1 - 1e-9)).all())
    assert bool((by_scope["pairwise"] >= by_scope["class"] * (1 - 1e-9)).all())


def test_pairs_of_each_scope() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64)
    assert float(radii(logits, _upper(2.0)).radius) == pytest.approx(2 / (2 * math.sqrt(2)))
    assert float(radii(logits, _upper([1.0, 1.0, 9.0])).radius) == pytest.approx(3 / 10)
    pairs = [[0.0, 4.0, 1.0], [4.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    assert float(radii(logits, _upper(pairs)).radius) == pytest.approx(0.5)


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_rounded_down(margin: float, bound: float, base: float) -> None:
    """Exactly, in rational numbers: radius·L ≤ z_a − z_b."""
    from fractions import Fraction

    logits = torch.tensor([[base + margin, base]], dtype=torch.float64)
    radius = float(radii(logits, _upper([[0.0, bound], [bound, 0.0]])).radius)
    true = Fraction(float(logits[0, 0])) - Fraction(float(logits[0, 1]))
    assert Fraction(radius) * Fraction(bound) <= true
    assert radius >= float(true) / bound * (1 - 1e-14)


def test_rounded_down_for_thousands_of_quotients() -> None:
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    bound = 1.9999999
    result = radii(logits, _upper([[0.0, bound], [bound, 0.0]])).radius.tolist()
    for (a, b), radius in zip(logits.tolist(), result, strict=True):
        assert Fraction(radius) * Fraction(bound) <= abs(Fraction(a) - Fraction(b))


def test_sqrt_two_is_rounded_up() -> None:
    from fractions import Fraction

    for value in (1.0, 3.0, 0.1, 1 / 3):
        radius = float(radii(torch.tensor([[1.0, 0.0]]), _upper(value)).radius)
        assert 2 * (Fraction(radius) * Fraction(value)) ** 2 <= 1


# --- ties, NaN, infinity ------------------------------------------------------------------------------------------
def test_ties_and_what_is_not_finite() -> None:
    rows = [[1.0, 1.0, 0.0], [2.0, 2.0, 2.0], [math.nan, 1.0, 0.0], [0.0, math.inf, 0.0], [0.0, 1.0, -math.inf]]
    labels = torch.tensor([0, 0, 1, 1, 1])
    result = radii(torch.tensor(rows), _upper(1.0), labels)
    assert result.radius.tolist() == [0.0] * 5
    assert result.prediction.tolist()[2:] == [-1] * 3
    assert result.certified_accuracy(0.0) == 0.0
    assert result.clean_accuracy == pytest.approx(0.4)


@pytest.mark.parametrize("first", [nn.ReLU(), nn.Tanh(), nn.Hardtanh(), nn.Linear(4, 4), nn.Softplus()])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_an_input_that_is_not_finite_certifies_nothing(first: nn.Module, bad: float) -> None:
    """A ReLU or a tanh makes finite logits of an infinite input."""
    torch.manual_seed(0)
    net = nn.Sequential(first, nn.Linear(4, 3)).eval()
    x = torch.rand(3, 4)
    x[1, 2] = bad
    result = certify(net, x)
    assert float(result.radius[1]) == 0.0
    assert int(result.prediction[1]) == -1
    assert bool((result.radius[[0, 2]] > 0).all())


def test_certified_means_strictly_more() -> None:
    result = radii(torch.tensor([[1.0, 0.0]]), _upper([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0]))
    radius = float(result.radius)
    assert 1 - 1e-15 <= radius <= 1
    assert result.certified_accuracy(radius) == 0.0
    assert result.certified_accuracy(math.nextafter(radius, 0)) == 1.0
    assert result.certified_accuracy(0) == 1.0
    for epsilon in (-1e-9, math.nan):
        with pytest.raises(ShapeError, match="negative"):
            result.certified_accuracy(epsilon)


# --- bounds that certify nothing ----------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 5e-324, 1e-300])
def test_a_bound_that_is_no_bound(bad: float) -> None:
    for value in (bad, [[0.0, bad], [bad, 0.0]]):
        with pytest.raises(BoundError, match="zero, or not finite"):
            radii(torch.tensor([[1.0, 0.0]]), _upper(value))


def test_a_constant_network_has_no_radius() -> None:
    net = _net()
    net[2].weight.data.zero_()
    for scope in ("global", "class", "pairwise"):
        with pytest.raises(BoundError, match="zero, or not finite"):
            certify(net, torch.rand(2, 4, dtype=torch.float64), scope=scope)  # type: ignore[arg-type]


def test_an_estimate_cannot_certify() -> None:
    net, x, y = _net(), torch.rand(9, 4, dtype=torch.float64), torch.zeros(9, dtype=torch.int64)
    result = certify(net, x, y, guarantee="estimate")
    assert type(result) is EstimatedRadii
    assert result.guarantee == "estimate"
    with pytest.raises(BoundError, match="certifies nothing"):
        result.certified_accuracy(0.0)
    assert result.estimated_accuracy(0.0) == pytest.approx(result.clean_accuracy)
    assert not isinstance(result, CertifiedRadii)
    given_estimate = Estimate(torch.tensor(1.0, dtype=torch.float64), "liplt", "global")
    assert type(radii(torch.rand(2, 3), given_estimate)) is EstimatedRadii
    assert type(certify(net, x, y, bound=given_estimate, guarantee="upper")) is EstimatedRadii


# --- arguments ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("y", "says"),
    [
        (torch.zeros(4), "one integer"),
        (torch.zeros(5, dtype=torch.int64), "one integer"),
        (torch.zeros(4, 1, dtype=torch.int64), "one integer"),
        (torch.tensor([0, 1, 2, 3]), r"must lie in 0…2"),
        (torch.tensor([0, 1, 2, -1]), r"must lie in 0…2"),
        ([0, 1], "one integer"),
    ],
)
def test_labels_that_do_not_fit(y: object, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        certify(_net(), torch.rand(4, 4, dtype=torch.float64), y)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(3, 5, dtype=torch.float64),
        torch.rand(4, dtype=torch.float64),
        torch.ones(3, 4, dtype=torch.int64),
        [[0.0] * 4],
    ],
)
def test_inputs_that_do_not_fit(x: object) -> None:
    with pytest.raises(ShapeError):
        certify(_net(), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("y", ["cat", [0, 1, None, 2], torch.ones(4).bool(), torch.ones(4, dtype=torch.complex64)])
def test_labels_that_are_no_integers(y: object) -> None:
    with pytest.raises(ShapeError, match="one integer"):
        certify(_net(), torch.rand(4, 4, dtype=torch.float64), y)  # type: ignore[arg-type]


def test_an_upper_bound_asks_how_exact_the_logits_are() -> None:
    """Else rounded logits would make radii that call themselves certified."""
    with pytest.raises(BoundError, match="exact_logits"):
        radii_of(torch.rand(2, 3), _upper(1.0))


def test_what_is_no_bound_or_no_logits() -> None:
    for bound in (1.0, torch.tensor(1.0)):
        with pytest.raises(BoundError, match=r"lipcert\.lipschitz"):
            certify(_net(), torch.rand(4, 4, dtype=torch.float64), bound=bound)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="real"):
        radii(torch.rand(2, 3, dtype=torch.complex64), _upper(1.0))


def test_bounds_that_do_not_fit() -> None:
    for value in ([1.0, 2.0], [[0.0, 1.0], [1.0, 0.0]]):
        with pytest.raises(ShapeError, match="classes"):
            radii(torch.rand(2, 3), _upper(value))
    with pytest.raises(ShapeError, match="C ≥ 2"):
        radii(torch.rand(2, 1), _upper(1.0))
    with pytest.raises(ShapeError, match="C ≥ 2"):
        radii(torch.rand(2), _upper(1.0))


def test_other_states_and_sizes() -> None:
    net, x = _net(), torch.rand(7, 4, dtype=torch.float64)
    with pytest.raises(ModuleStateError, match="train mode"):
        certify(net.train(), x)
    assert net.training
    net.eval()
    with pytest.raises(ShapeError, match="batch_size"):
        certify(net, x, batch_size=0)
    empty = certify(net, x[:0], torch.zeros(0, dtype=torch.int64))
    assert len(empty) == 0
    assert math.isnan(empty.clean_accuracy)
    whole, parts = certify(net, x), certify(net, x, batch_size=2)
    torch.testing.assert_close(whole.radius, parts.radius, rtol=1e-9, atol=1e-12)
    with pytest.raises(ShapeError, match="no labels"):
        whole.certified_accuracy(0.1)
    with pytest.raises(UnsupportedError):
        certify(nn.Sequential(net, nn.Softmax(1)).eval(), x)


def test_nothing_of_the_callers_is_changed() -> None:
    for dtype in (torch.float32, torch.float64):
        net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 3)).to(dtype).eval()
        x = torch.randn(5, 4, dtype=dtype)
        before = x.clone()
        certify(net, x)
        certify(net, x, guarantee="estimate")
        assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_agree(dtype: torch.dtype) -> None:
    exact = certify(_net(dtype=torch.float32).double(), torch.linspace(0, 1, 20).reshape(5, 4).double())
    result = certify(_net(dtype=torch.float32).to(dtype), torch.linspace(0, 1, 20).reshape(5, 4).to(dtype))
    assert result.radius.dtype == torch.float64
    torch.testing.assert_close(result.real, exact.real, rtol=1e-9, atol=1e-12)
    assert result.precision == str(dtype).removeprefix("torch.")
    assert bool((result.radius <= result.real).all())
    torch.testing.assert_close(result.radius, exact.radius, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(result.bound.value, exact.bound.value, rtol=1e-12, atol=0)


def test_the_real_arithmetic_radius_of_a_float32_classifier() -> None:
    """Two rows that nearly agree: float32 rounds the margin by as much as it is, and the radius with it."""
    torch.manual_seed(0)
    net, x = nn.Linear(784, 2).eval(), torch.rand(500, 784)
    with torch.no_grad():
        net.weight[1] = net.weight[0] + 1e-4 * torch.randn(784)
        net.bias.zero_()
    difference = (net.weight[0].double() - net.weight[1].double()).detach()
    true = (x.double() @ difference).abs() / difference.norm()
    assert bool((certify(net, x).radius <= true * (1 + 1e-9)).all())
