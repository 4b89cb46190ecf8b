"""Norms of rows at every scale that float64 has."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lipcert.norms.scaling import row_differences, row_norms


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_row_norms_like_hypot(values: list[float]) -> None:
    got = float(row_norms(torch.tensor([values], dtype=torch.float64)))
    want = math.hypot(*values)
    assert got == pytest.approx(want, rel=1e-14, abs=2.0**-1022)
    assert got >= want * (1 - 1e-15)


@pytest.mark.parametrize("scale", [1.0, 1e-170, 1e-300, 1e170, 1e300, 5e-324])
def test_row_differences(scale: float) -> None:
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 6.0], [0.0, 0.0]], dtype=torch.float64) * scale
    rows[0, 0] = scale
    got = row_differences(rows, rows)
    for a in range(4):
        for b in range(4):
            want = math.hypot(*(rows[a] - rows[b]).tolist())
            assert float(got[a, b]) == pytest.approx(want, rel=1e-14, abs=2.0**-1022)
            assert (float(got[a, b]) == 0) == (want == 0)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_rows_among_themselves(count: int) -> None:
    rows = torch.randn((count, 50), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = row_differences(rows, rows)
    torch.testing.assert_close(got, row_differences(rows, rows.clone()), rtol=1e-14, atol=0)
    assert torch.equal(got, got.T)
    assert not got.diagonal().any()


def test_a_small_difference_among_large_rows() -> None:
    rows = torch.tensor([[1e200, 0.0], [0.0, 1e-200], [0.0, 4e-200]], dtype=torch.float64)
    assert float(row_differences(rows, rows)[1, 2]) == pytest.approx(3e-200)


def test_what_is_not_finite_stays_so() -> None:
    rows = torch.tensor([[math.inf, 0.0], [math.nan, 1.0], [1.0, 0.0]], dtype=torch.float64)
    assert not torch.isfinite(row_norms(rows)[:2]).any()
    assert not torch.isfinite(row_differences(rows, rows)[0, 1:]).any()
