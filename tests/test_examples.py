"""The examples run, and what they print is so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).parents[1] / "examples"


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_policy() -> None:
    found = _example("policy").main(steps=100)
    assert found["points"] <= found["smallgain"] <= found["liplt"] <= found["product"] * 1.003


def test_the_denoiser() -> None:
    found = _example("denoiser").main(steps=25)
    assert found["nonexpansive"][0] < 1
    assert found["nonexpansive"][1] <= 1.01
    assert found["plain"][1] > found["nonexpansive"][1]
