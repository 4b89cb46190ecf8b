"""Curves of a run in the files of other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lipcert.train import RunFolder, load_config
from lipcert.train.progress import SilentReporter
from lipcert.train.tracking import Reporters, curves
from runs import SMALL, TINY, cli

_RUN = ["train", "digits-mlp-crm", *TINY, *SMALL, "train.epochs=2", "--quiet"]


def test_tensorboard(tmp_path: Path) -> None:
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    out = tmp_path / "run"
    assert cli(*_RUN, "--tensorboard", "--out", out).exit_code == 0
    found: dict[tuple[str, int], float] = {}
    for file in (out / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:  # length, its checksum, a record, its checksum
            size = int.from_bytes(data[:8], "little")
            event = proto.Event.FromString(data[12 : 12 + size])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + size :]
    expected = {(k, r["epoch"]): v for r in RunFolder(out).metrics() for k, v in curves(r).items()}
    assert found == pytest.approx(expected, rel=1e-6)


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is told; the package itself would ask for an account."""
    told: list[Any] = []
    run = SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda **how: told.append(how))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: told.append(given) or run))
    out = tmp_path / "run"
    assert cli(*_RUN, "--wandb", "proofs", "--out", out).exit_code == 0
    assert (told[0]["project"], told[0]["name"], told[0]["config"]["train"]["epochs"]) == (
        "proofs",
        "digits-mlp-crm",
        2,
    )
    assert told[1:] == [*((r["epoch"], curves(r)) for r in RunFolder(out).metrics()), {"exit_code": 0}]
    assert told[0]["id"] == (out / "wandb-id").read_text()


def test_wandb_that_refuses_or_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("no account")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse))
    result = cli(*_RUN, "--wandb", "proofs", "--out", tmp_path / "run")
    assert (result.exit_code, "--wandb: no account" in result.stderr) == (1, True)
    assert (tmp_path / "run" / "wandb-id").exists()
    RunFolder(tmp_path / "run").create(load_config("digits-mlp-crm"))  # another run in its place: curves of its own
    assert not (tmp_path / "run" / "wandb-id").exists()
    ended: list[bool] = []

    class Broken(SilentReporter):
        def stop(self, finished: bool = True) -> None:
            ended.append(finished)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Reporters([Broken(), Broken()]).stop(finished=False)
    assert ended == [False, False]


@pytest.mark.parametrize(("module", "option"), [("tensorboardX", ["--tensorboard"]), ("wandb", ["--wandb", "p"])])
def test_what_is_not_installed(module: str, option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = cli(*_RUN, *option, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert f"needs {module}" in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()
