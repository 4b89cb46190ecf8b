"""Tests are small: more threads would only get in each other's way. And none hangs on how fast a search goes."""

from __future__ import annotations

import gc

import pytest
import torch

from lipcert.bounds import parts, portfolio, refine, scaling, smallgain, stages

torch.set_num_threads(1)
# Thousands of small networks are recorded: looking through everything for garbage so often finds little.
gc.set_threshold(100_000, 50, 1000)


def pytest_collection_finish() -> None:
    """All that has been imported stays: nothing of it is looked at for garbage."""
    gc.collect()
    gc.freeze()


class _Steps:
    """A clock that goes on each time that it is looked at."""

    def __init__(self) -> None:
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += 1e-3
        return self._now


@pytest.fixture(autouse=True)
def _searches_count_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is to stop after some seconds finds the same on any machine, whatever else it does meanwhile."""
    for module in (parts, portfolio, refine, scaling, smallgain, stages):
        monkeypatch.setattr(module, "time", _Steps())
