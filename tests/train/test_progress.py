"""What a person sees of a training run."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from lipcert.train.progress import Reporter

RECORD: dict[str, Any] = {
    "epoch": 7,
    "loss": -1.5,
    "train_accuracy": 0.987,
    "split": "validation",
    "clean": 0.95,
    "estimated_certified": {"0.1411764705882353": 0.5, "0.25": 0.25},
    "bound": [1.25, 17.5],
    "seconds": 12.34,
}


def seen(*, terminal: bool, width: int = 80) -> str:
    file = io.StringIO()
    reporter = Reporter(
        Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    )
    reporter.start("my [run] of [/all]: 1,210 parameters", 1000, 3, 200)
    reporter.step(999, 100, -1234.567, 0.9999, certified=0.9999, bound=12345.678)
    if terminal:
        assert reporter._bar is not None
        reporter._bar.refresh()
    reporter.epoch(RECORD)
    reporter.message("[a] message, and " + "more of it " * 20)
    reporter.stop()
    reporter.stop()
    return file.getvalue()


def test_in_a_file_there_is_one_line_for_each_thing() -> None:
    lines = seen(terminal=False, width=30).splitlines()
    assert len(lines) == 3
    assert lines[0] == "my [run] of [/all]: 1,210 parameters"
    assert lines[1] == (
        "epoch    7  loss  -1.5000  train 98.70%  validation 95.00%  est. certified @0.1412 50.00%  @0.25 25.00%  "
        "L 1.25…17.5  12.3 s"
    )
    assert lines[2].startswith("[a] message")


def test_the_bar_fits_into_80_columns() -> None:
    shown = seen(terminal=True)
    assert "loss -1234.567  train 100.0%  est. cert. 100.0%  L≈1.23e+04" in shown
    assert "epoch 999/1000" in shown


@pytest.mark.parametrize(("certified", "bound"), [(None, None), (0.5, None), (None, 2.0)])
def test_what_is_not_known_is_not_shown(certified: float | None, bound: float | None) -> None:
    file = io.StringIO()
    reporter = Reporter(Console(file=file, force_terminal=True, width=80, color_system=None, legacy_windows=False))
    reporter.start("run", 2, 0, 5)
    reporter.step(1, 1, 1.0, 0.5, certified=certified, bound=bound)
    reporter.stop()
    assert ("est. cert." in file.getvalue()) == (certified is not None)
    assert ("L≈" in file.getvalue()) == (bound is not None)
