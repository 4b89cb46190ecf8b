"""The losses against hand computation, loops and finite differences; and where they must stay finite."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lipcert.bounds.pairs import pair_bounds, pair_rows
from lipcert.errors import ConfigError, ShapeError
from lipcert.train.losses import (
    CRMLoss,
    CrossEntropy,
    GloRoLoss,
    LMTLoss,
    crm_loss,
    crm_term,
    cross_entropy,
    gloro_logits,
    gloro_loss,
    gloro_trades_loss,
    lmt_loss,
    margin_radii,
)

SCOPES = ["global", "class", "pairwise"]
INF = math.inf


def sample(
    seed: int, n: int = 6, classes: int = 4, scope: str = "pairwise", dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Random logits, of which about half are classified correctly, labels, and a bound in a scope."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    y = torch.where(torch.rand(n, generator=generator) < 0.6, z.argmax(1), torch.arange(n) % classes)
    shape = {"global": (), "class": (classes,), "pairwise": (classes, classes)}[scope]
    bound = 0.5 + 2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    if scope == "pairwise":
        bound = (bound + bound.t()).fill_diagonal_(0.0)
    return z.to(dtype), y, bound.to(dtype)


def pair(bound: Tensor, a: int, b: int) -> float:
    if bound.ndim == 0:
        return math.sqrt(2) * bound.item()
    return (bound[a] + bound[b]).item() if bound.ndim == 1 else bound[a, b].item()


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "soft": partial(crm_loss, temperature=3.0, radius_cap=0.7, weight=2.0),
    "hard": partial(crm_loss, temperature=3.0, radius_cap=0.7, weight=2.0, form="hard"),
    "lmt": partial(lmt_loss, epsilon=0.3),
    "gloro": partial(gloro_loss, epsilon=0.3),
    "trades": partial(gloro_trades_loss, epsilon=0.3, weight=2.0),
}
EVERY_LOSS = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


# ---------------------------------------------------------------------------------------------- pairs of classes


def test_pair_bounds_by_hand() -> None:
    root = math.sqrt(2)
    assert torch.allclose(pair_bounds(torch.tensor(3.0), 2), torch.tensor([[0, 3 * root], [3 * root, 0]]))
    assert pair_bounds(torch.tensor([1.0, 2.0]), 2).tolist() == [[0, 3], [3, 0]]
    full = torch.tensor([[math.nan, 5.0], [5.0, 7.0]])
    assert pair_bounds(full, 2).tolist() == [[0, 5], [5, 0]]
    assert full[1, 1] == 7  # the argument is left alone


@pytest.mark.parametrize("scope", SCOPES)
def test_rows_are_rows_of_the_matrix(scope: str) -> None:
    _, y, bound = sample(0, scope=scope)
    matrix = pair_bounds(bound, 4)
    assert torch.equal(matrix, matrix.t())
    assert torch.equal(pair_rows(bound, y, 4), torch.stack([matrix[i] for i in y]))
    for a, b in itertools.permutations(range(4), 2):
        assert matrix[a, b].item() == pytest.approx(pair(bound, a, b), rel=1e-15)


@settings(max_examples=100, deadline=None)
@given(value=st.floats(2.0**-99, 2.0**99, width=32), other=st.floats(2.0**-99, 2.0**99, width=32), double=st.booleans())
def test_rounding_upward_is_upward(value: float, other: float, double: bool) -> None:
    dtype = torch.float64 if double else torch.float32
    up = pair_bounds(torch.tensor(value, dtype=dtype), 2, upward=True)[0, 1].item()
    assert Fraction(up) ** 2 >= 2 * Fraction(value) ** 2
    assert up <= value * math.sqrt(2) * (1 + 1e-6)
    summed = pair_bounds(torch.tensor([value, other], dtype=dtype), 2, upward=True)[0, 1].item()
    assert Fraction(summed) >= Fraction(value) + Fraction(other)


def test_rounding_upward_keeps_zero_and_drops_gradients() -> None:
    assert pair_bounds(torch.tensor(0.0), 3, upward=True).max() == 0
    assert not pair_bounds(torch.ones(3, requires_grad=True), 3, upward=True).requires_grad


@pytest.mark.parametrize("bound", [torch.ones(3), torch.ones(4, 3), torch.ones(1), torch.ones(4).long(), 1.0])
def test_bounds_that_do_not_fit(bound: Tensor) -> None:
    with pytest.raises(ShapeError, match="bound"):
        pair_bounds(bound, 4)


# ------------------------------------------------------------------------------------------------- by hand, loops


def test_crm_by_hand() -> None:
    # Radii towards the other classes: (1, 2) → vulnerable; (−1, …) → wrong; (3, 5) → beyond the cap.
    z = torch.tensor([[4.0, 2.0, 0.0], [0.0, 2.0, 1.0], [9.0, 3.0, -1.0]])
    y = torch.tensor([0, 0, 0])
    bound = torch.tensor([[0.0, 2.0, 2.0], [2.0, 0.0, 1.0], [2.0, 1.0, 0.0]])
    radii = margin_radii(z, y, bound)
    assert radii.tolist() == [[INF, 1, 2], [INF, -1, -0.5], [INF, 3, 5]]
    soft = math.log(math.exp(-5) + math.exp(-10)) / 5
    got = crm_term(z, y, bound, temperature=5.0, radius_cap=2.5)
    assert got.item() == pytest.approx(soft / 3, rel=1e-6)
    hard = crm_term(z, y, bound, temperature=5.0, radius_cap=2.5, form="hard")
    assert hard.item() == pytest.approx(math.exp(-5) / 5 / 3, rel=1e-6)
    assert crm_term(z, y, bound, temperature=5.0, radius_cap=1.0).item() == 0  # R < cap, strictly
    loss = crm_loss(z, y, bound, temperature=5.0, radius_cap=2.5, weight=30.0)
    assert loss.item() == pytest.approx(F.cross_entropy(z, y).item() + 30 * soft / 3, rel=1e-6)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("form", ["soft", "hard"])
@pytest.mark.parametrize("seed", range(5))
def test_crm_is_the_loop(seed: int, form: str, scope: str) -> None:
    z, y, bound = sample(seed, scope=scope)
    t, cap, total = 3.0, 0.7, 0.0
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        radii = [(row[label] - row[b]) / pair(bound, label, b) for b in range(4) if b != label]
        if not 0 <= min(radii) < cap:
            continue
        if form == "soft":
            total += math.log(sum(math.exp(-t * r) for r in radii)) / t
        else:
            total += math.exp(-t * min(radii)) / t
    got = crm_term(z, y, bound, temperature=t, radius_cap=cap, form=form)
    assert got.item() == pytest.approx(total / len(y), rel=1e-12, abs=1e-15)
    weighted = crm_loss(z, y, bound, temperature=t, radius_cap=cap, weight=7.0, form=form)
    assert weighted.item() == pytest.approx(F.cross_entropy(z, y).item() + 7 * total / len(y), rel=1e-12)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("seed", range(3))
def test_lmt_and_gloro_are_the_loops(seed: int, scope: str) -> None:
    z, y, bound = sample(seed, scope=scope)
    eps, lam = 0.3, 2.0
    lmt, gloro, trades = 0.0, 0.0, 0.0
    for row, label in zip(z.tolist(), y.tolist(), strict=True):
        worst = [row[b] + (eps * pair(bound, label, b) if b != label else 0) for b in range(4)]
        lmt += math.log(sum(map(math.exp, worst))) - worst[label]
        top = max(range(4), key=row.__getitem__)
        rows = [*row, max(row[b] + eps * pair(bound, top, b) for b in range(4) if b != top)]
        gloro += math.log(sum(map(math.exp, rows))) - rows[label]
        p = [math.exp(v) / sum(map(math.exp, row)) for v in row]
        q = [math.exp(v) / sum(map(math.exp, rows)) for v in rows]
        trades += -math.log(p[label]) + lam * sum(a * math.log(a / b) for a, b in zip(p, q, strict=False))
    assert lmt_loss(z, y, bound, epsilon=eps).item() == pytest.approx(lmt / 6, rel=1e-12)
    assert gloro_loss(z, y, bound, epsilon=eps).item() == pytest.approx(gloro / 6, rel=1e-12)
    got = gloro_trades_loss(z, y, bound, epsilon=eps, weight=lam)
    assert got.item() == pytest.approx(trades / 6, rel=1e-10)


def test_lmt_with_a_global_bound_is_the_published_one() -> None:
    z, y, bound = sample(1, scope="global")
    shifted = z + math.sqrt(2) * 0.3 * bound * (1 - F.one_hot(y, 4))
    assert torch.allclose(lmt_loss(z, y, bound, epsilon=0.3), F.cross_entropy(shifted, y), rtol=1e-14)


def test_gloro_predicts_bottom_exactly_when_the_radius_is_too_small() -> None:
    z, _, bound = sample(2, n=200)
    top = z.argmax(1)
    certified = margin_radii(z, top, bound).amin(1) > 0.3
    assert torch.equal(gloro_logits(z, bound, 0.3).argmax(1) < 4, certified)
    assert certified.any()
    assert not certified.all()


def test_without_robustness_they_are_cross_entropy() -> None:
    z, y, bound = sample(3)
    plain = F.cross_entropy(z, y)
    assert torch.equal(cross_entropy(z, y), plain)
    assert torch.equal(crm_loss(z, y, bound, temperature=1.0, radius_cap=1.0, weight=0.0), plain)
    assert torch.equal(crm_loss(z, y, bound, temperature=1.0, radius_cap=0.0, weight=5.0), plain)
    assert torch.allclose(lmt_loss(z, y, bound, epsilon=0.0), plain, rtol=1e-14)
    assert torch.equal(gloro_trades_loss(z, y, bound, epsilon=0.5, weight=0.0), plain)


# --------------------------------------------------------------------------------------------------- gradients


@EVERY_LOSS
@pytest.mark.parametrize("scope", SCOPES)
def test_gradients_are_right(loss: Callable[..., Tensor], scope: str) -> None:
    z, y, bound = sample(4, scope=scope)
    off_diagonal = 1 - torch.eye(4, dtype=torch.float64) if scope == "pairwise" else 1.0

    def value(logits: Tensor, free: Tensor) -> Tensor:
        return loss(logits, y, free * off_diagonal)

    assert torch.autograd.gradcheck(value, (z.requires_grad_(), bound.requires_grad_()))


def test_radii_have_right_gradients_and_no_nan() -> None:
    z, y, bound = sample(5)
    z.requires_grad_()
    bound.requires_grad_()

    def finite(logits: Tensor, free: Tensor) -> Tensor:
        radii = margin_radii(logits, y, free)
        return radii[torch.isfinite(radii)]

    assert torch.autograd.gradcheck(finite, (z, bound))
    for reduced in (margin_radii(z, y, bound).amin(1).sum(), torch.exp(-margin_radii(z, y, bound)).sum()):
        for gradient in torch.autograd.grad(reduced, (z, bound)):
            assert torch.isfinite(gradient).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), form=st.sampled_from(["soft", "hard"]), scope=st.sampled_from(SCOPES))
def test_only_vulnerable_samples_get_a_gradient(seed: int, form: str, scope: str) -> None:
    z, y, bound = sample(seed, n=8, scope=scope, dtype=torch.float32)
    z.requires_grad_()
    bound.requires_grad_()
    least = margin_radii(z, y, bound).amin(1)
    vulnerable = (least >= 0) & (least < 0.5)
    term = crm_term(z, y, bound, temperature=4.0, radius_cap=0.5, form=form)
    to_z, to_bound = torch.autograd.grad(term, (z, bound))
    assert torch.equal(to_z.ne(0).any(1), vulnerable)
    assert bool(to_bound.ne(0).any()) == bool((vulnerable & (least > 0)).any())
    if scope == "pairwise":
        assert not to_bound[[c for c in range(4) if c not in y[vulnerable]]].any()
    if not vulnerable.any():
        assert term.item() == 0


def test_a_tie_is_vulnerable_and_pulled_apart_evenly() -> None:
    y = torch.tensor([1])
    for form in ("soft", "hard"):
        z = torch.tensor([[2.0, 2.0, 2.0]], requires_grad=True)
        term = crm_term(z, y, torch.tensor(1.0), temperature=5.0, radius_cap=1.0, form=form)
        term.backward()
        assert term.item() == pytest.approx(math.log(2) / 5 if form == "soft" else 1 / 5)
        assert z.grad is not None
        left, own, right = z.grad[0].tolist()
        assert own < 0 < left == right


# -------------------------------------------------------------------------------------------------- properties


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), t=st.floats(0.01, 1000), scope=st.sampled_from(SCOPES))
def test_the_soft_radius_is_a_lower_bound(seed: int, t: float, scope: str) -> None:
    z, _, bound = sample(seed, n=1, scope=scope)
    y = z.argmax(1)
    least = margin_radii(z, y, bound).amin().item()
    soft = -crm_term(z, y, bound, temperature=t, radius_cap=INF).item()
    assert soft <= least + 1e-12
    assert soft >= least - math.log(3) / t - 1e-12


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
@EVERY_LOSS
def test_a_global_bound_is_the_constant_pairwise_one(loss: Callable[..., Tensor], seed: int) -> None:
    z, y, bound = sample(seed, scope="global")
    full = torch.full((4, 4), math.sqrt(2) * bound.item(), dtype=torch.float64)
    assert torch.allclose(loss(z, y, bound), loss(z, y, full), rtol=1e-12)
    assert torch.allclose(loss(z, y, bound), loss(z, y, (bound / math.sqrt(2)).expand(4)), rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50))
@EVERY_LOSS
def test_only_differences_of_logits_count(loss: Callable[..., Tensor], seed: int, shift: float) -> None:
    z, y, bound = sample(seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(loss(z, y, bound), loss(z[order] + shift, y[order], bound), rtol=1e-9)


def test_units_can_be_changed() -> None:
    """Distances doubled, as by x ↦ 2x − 1: the conversion that the CIFAR-10 configuration relies on."""
    z, y, bound = sample(6, n=50)
    wide = crm_loss(z, y, bound / 2, temperature=5.0, radius_cap=0.2, weight=15.0)
    pixels = crm_loss(z, y, bound, temperature=10.0, radius_cap=0.1, weight=30.0)
    assert torch.allclose(wide, pixels, rtol=1e-14)


# ------------------------------------------------------------------------------------------------------ extremes


@EVERY_LOSS
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e-12, 1e12, 1e20, 1e30])
@pytest.mark.parametrize("spread", [0.0, 1e-20, 1.0, 1e10])
@pytest.mark.parametrize("scope", SCOPES)
def test_extremes_stay_finite(loss: Callable[..., Tensor], scale: float, spread: float, scope: str) -> None:
    z, y, bound = sample(7, scope=scope, dtype=torch.float32)
    z, bound = (z * spread).requires_grad_(), (bound * scale).requires_grad_()
    value = loss(z, y, bound)
    value.backward()
    assert torch.isfinite(value)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert bound.grad is None or torch.isfinite(bound.grad).all()


@pytest.mark.parametrize("form", ["soft", "hard"])
@pytest.mark.parametrize("temperature", [1e-3, 1e4])
def test_far_classes_do_not_poison_the_gradient(form: str, temperature: float) -> None:
    z = torch.tensor([[1.0, 0.999, -3e38]], requires_grad=True)
    bound = torch.tensor([[0.0, 1.0, 1e-30], [1.0, 0.0, 1.0], [1e-30, 1.0, 0.0]], requires_grad=True)
    term = crm_term(z, torch.tensor([0]), bound, temperature=temperature, radius_cap=1.0, form=form)
    for gradient in torch.autograd.grad(term, (z, bound)):
        assert torch.isfinite(gradient).all()
        assert gradient.any()


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    z, y, bound = sample(8, dtype=torch.float32)
    low = z.to(dtype).requires_grad_()
    value = loss(low, y, bound)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(low.detach().float(), y, bound))
    value.backward()
    assert low.grad is not None
    assert low.grad.dtype == dtype
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(low.detach(), y, bound), value)


@EVERY_LOSS
def test_a_nan_is_never_hidden(loss: Callable[..., Tensor]) -> None:
    z, y, bound = sample(9)
    assert torch.isnan(loss(z, z.argmax(1), torch.full_like(bound, math.nan)))
    assert torch.isnan(loss(torch.full_like(z, math.nan), y, bound))


# ------------------------------------------------------------------------------------------------------ mistakes


@EVERY_LOSS
def test_shapes_and_dtypes_are_checked(loss: Callable[..., Tensor]) -> None:
    z, y, bound = sample(10)
    wrong: list[tuple[str, Tensor, Tensor, Tensor]] = [
        ("logits", z[0], y, bound),
        ("logits", z.long(), y, bound),
        ("labels", z, y.int(), bound),
        ("labels", z, y.float(), bound),
        ("labels", z, y[:, None], bound),
        ("labels", z, y[:-1], bound),
        ("labels", z, torch.full_like(y, 4), bound),
        ("labels", z, torch.full_like(y, -1), bound),
        ("bound", z, y, bound[:, :3]),
        ("bound", z, y, bound.long()),
        ("empty", z[:0], y[:0], bound),
        ("two logits", z[:, :1], torch.zeros_like(y), torch.tensor(1.0)),
        ("meta", z, y, bound.to("meta")),
        ("meta", z, y.to("meta"), bound),
    ]
    for said, logits, labels, limit in wrong:
        with pytest.raises(ShapeError, match=said):
            loss(logits, labels, limit)


def test_an_empty_batch_has_radii() -> None:
    z, y, bound = sample(10)
    assert margin_radii(z[:0], y[:0], bound).shape == (0, 4)


@pytest.mark.parametrize("value", [-1.0, math.nan, "1", None, True])
def test_parameters_are_checked(value: float) -> None:
    z, y, bound = sample(11)
    for bad in (
        lambda: crm_loss(z, y, bound, temperature=value, radius_cap=1.0, weight=1.0),
        lambda: crm_loss(z, y, bound, temperature=1.0, radius_cap=value, weight=1.0),
        lambda: crm_loss(z, y, bound, temperature=1.0, radius_cap=1.0, weight=value),
        lambda: lmt_loss(z, y, bound, epsilon=value),
        lambda: gloro_loss(z, y, bound, epsilon=value),
        lambda: CRMLoss(temperature=value, radius_cap=1.0, weight=1.0),
        lambda: LMTLoss(epsilon=value),
        lambda: GloRoLoss(epsilon=value),
    ):
        with pytest.raises(ConfigError, match="must be a number"):
            bad()


def test_parameters_that_must_be_positive_finite_or_known() -> None:
    with pytest.raises(ConfigError, match="temperature must be a number above 0"):
        CRMLoss(temperature=0.0, radius_cap=1.0, weight=1.0)
    with pytest.raises(ConfigError, match="weight must be finite"):
        CRMLoss(temperature=1.0, radius_cap=1.0, weight=INF)
    with pytest.raises(ConfigError, match='"soft" or "hard"'):
        CRMLoss(temperature=1.0, radius_cap=1.0, weight=1.0, form="medium")  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- modules


def test_modules_are_the_functions() -> None:
    z, y, bound = sample(12)
    modules: list[tuple[nn.Module, Tensor]] = [
        (CrossEntropy(), F.cross_entropy(z, y)),
        (CRMLoss(temperature=3.0, radius_cap=0.7, weight=2.0), LOSSES["soft"](z, y, bound)),
        (CRMLoss(temperature=3.0, radius_cap=0.7, weight=2.0, form="hard"), LOSSES["hard"](z, y, bound)),
        (LMTLoss(epsilon=0.3), LOSSES["lmt"](z, y, bound)),
        (GloRoLoss(epsilon=0.3), LOSSES["gloro"](z, y, bound)),
        (GloRoLoss(epsilon=0.3, weight=2.0), LOSSES["trades"](z, y, bound)),
    ]
    for module, expected in modules:
        assert torch.equal(module(z, y, bound), expected)
        assert list(module.state_dict()) == []


def test_a_schedule_changes_attributes() -> None:
    z, y, bound = sample(13)
    loss = CRMLoss(temperature=3.0, radius_cap=0.1, weight=0.0)
    loss.weight, loss.radius_cap = 2.0, 0.7
    assert torch.equal(loss(z, y, bound), LOSSES["soft"](z, y, bound))
    lmt = LMTLoss(epsilon=0.0)
    lmt.epsilon = 0.3
    assert torch.equal(lmt(z, y, bound), LOSSES["lmt"](z, y, bound))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@EVERY_LOSS
def test_on_a_gpu_nothing_waits(loss: Callable[..., Tensor]) -> None:
    z, y, bound = sample(14)
    expected = loss(z, y, bound)
    on_gpu = [t.cuda() for t in (z, y, bound)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = loss(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(value.cpu(), expected)
