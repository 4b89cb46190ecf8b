"""Tiny training runs on the digits, and what is left of one: for the tests of the loop and of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner, Result

from lipcert.cli.main import app
from lipcert.train import Interrupted, RunConfig, RunFolder, Trainer, load_config
from lipcert.train.checkpoint import load_state
from lipcert.train.progress import SilentReporter

TINY = ["train.epochs=3", "train.eval_every=1", "train.checkpoint_every=1", "train.batch_size=256"]
SMALL = ["model.options.widths=[16]"]
BATCHES = 5  # an epoch of 1437 images

# All that has a state of its own: averaged weights, shifted images, a bound that is looked at every second step.
STATEFUL = ["train.ema=0.9", "data.augment.shift=0.125", "bound.every=2", "optimizer.clip_norm=1.0"]

LOSSES = {
    "ce": 'loss={kind="ce"}',
    "crm-soft": 'loss={kind="crm",temperature=10.0,radius_cap=1.0,weight=1.0,form="soft"}',
    "crm-hard": 'loss={kind="crm",temperature=10.0,radius_cap=1.0,weight=1.0,form="hard"}',
    "lmt": 'loss={kind="lmt",epsilon=0.3}',
    "gloro": 'loss={kind="gloro",epsilon=0.3}',
    "gloro-trades": 'loss={kind="gloro-trades",epsilon=0.3,weight=1.0}',
}


def tiny(*changes: str) -> RunConfig:
    """Three epochs of five steps of an MLP with one small hidden layer, unless changed."""
    return load_config("digits-mlp-crm", [*TINY, *(() if any("model=" in c for c in changes) else SMALL), *changes])


def stopped(config: RunConfig, out: Path, steps: int, **options: Any) -> Trainer:
    """A run that was interrupted after some steps."""
    trainer = Trainer(config, out, **options)
    try:
        trainer.fit(steps=steps)
    except Interrupted:
        return trainer
    raise AssertionError("it was not interrupted")


class Notes(SilentReporter):
    """Remembers what a reporter is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.epochs: list[int] = []
        self.ended = False

    def epoch(self, record: Any) -> None:
        self.epochs.append(record["epoch"])

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stop(self, finished: bool = True) -> None:
        self.ended = True


def _bits(value: Any) -> Any:
    """Something that is equal only where every bit is."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {k: _bits(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bits(v) for v in value]
    return value


def outcome(out: Path) -> dict[str, Any]:
    """All that a finished run left, without what a clock said."""
    state, _ = load_state(out / "checkpoint.safetensors")
    del state["elapsed"], state["counters"][2]
    clock = ("seconds", "images_per_second", "training_seconds")
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = RunFolder(out).summary() or {}
    return {
        "config": (out / "config.toml").read_text(),
        "weights": _bits(load_file(out / "model.safetensors")),
        **{key: _bits(value) for key, value in state.items()},
        "metrics": [{k: v for k, v in record.items() if k not in clock} for record in metrics],
        "summary": {k: v for k, v in summary.items() if k not in clock},
    }


def differing(a: Path, b: Path) -> list[str]:
    """The parts in which two finished runs differ."""
    first, second = outcome(a), outcome(b)
    return [key for key in first.keys() | second.keys() if first.get(key) != second.get(key)]


ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LIPCERT_DATA", "FORCE_COLOR", "NO_COLOR")},
    "OMP_NUM_THREADS": "1",
    "PYTHONUTF8": "1",
}


def shell(arguments: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m lipcert …`` in a process of its own."""
    command = [sys.executable, "-m", "lipcert", *map(str, arguments)]
    env = ENVIRONMENT | environment
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, timeout=120, check=False)


def cli(*arguments: object, **environment: str) -> Result:
    """Run the command line in this process."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"LIPCERT_DATA": "", **environment})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def parsed(*arguments: object) -> Any:
    """What a successful command prints with ``--json``."""
    result = cli(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object, **environment: str) -> str:
    """The one message of a command that is refused with exit status 1 and says nothing else."""
    result = cli(*arguments, **environment)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    before, _, message = result.stderr.partition("error: ")
    assert before == ""
    assert not any(word in result.stderr for word in ("Traceback", "\x1b"))
    assert "error: " not in message
    return message.removesuffix("\n")
