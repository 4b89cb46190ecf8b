"""Files of weights from elsewhere: read without executing anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lipcert.errors import ImportFileError
from lipcert.exchange import read_state_dict

_WEIGHTS = nn.Linear(3, 2).state_dict()


@pytest.mark.parametrize(
    "content",
    [
        _WEIGHTS,
        {"state_dict": _WEIGHTS, "epoch": 3},
        {"model": {f"module.{k}": v for k, v in _WEIGHTS.items()}},
        {f"_orig_mod.{k}": v for k, v in _WEIGHTS.items()},
    ],
)
def test_what_torch_saves(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    found = read_state_dict(tmp_path / "w.pt")
    assert set(found) == {"weight", "bias"}
    assert torch.equal(found["weight"], _WEIGHTS["weight"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(_WEIGHTS, tmp_path / "w.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "w.safetensors")["bias"], _WEIGHTS["bias"])


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(Path(os.environ["LIPCERT_TRAP"])),))


def test_code_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPCERT_TRAP", str(tmp_path / "sprung"))
    torch.save({"weight": torch.ones(2), "more": _Trap()}, tmp_path / "w.pt")
    with pytest.raises(ImportFileError, match="could execute code"):
        read_state_dict(tmp_path / "w.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ImportFileError, match="could execute code"):
        read_state_dict(tmp_path / "module.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_no_weights(name: str, tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="there is no file"):
        read_state_dict(tmp_path / name)
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(ImportFileError, match=r"damaged|could execute"):
        read_state_dict(tmp_path / name)


def test_something_else(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ImportFileError, match="no weights by name"):
        read_state_dict(tmp_path / "w.pt")
