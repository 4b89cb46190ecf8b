"""Several processes: their shares add up, and their runs, certificates and ends are those of one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from lipcert.data import Augment, Batches, load
from lipcert.errors import ConfigError, ParallelError
from lipcert.parallel import ALONE, Ranks, joined
from lipcert.train import Interrupted, RunFolder, Trainer, TrainingBound, load_config
from runs import ENVIRONMENT, SMALL, STATEFUL, TINY, cli, tiny

CPU = torch.device("cpu")
ODD = ["train.batch_size=255"]  # which two processes do not share evenly


class Silent(Ranks):
    """One of several processes, of which the others are not there."""

    def add(self, *tensors: torch.Tensor) -> None:
        pass


@given(st.integers(0, 100), st.integers(1, 9))
def test_parts_are_all_of_it(count: int, size: int) -> None:
    parts = [Ranks(i, size).part(count) for i in range(size)]
    assert [i for p in parts for i in range(p.start, p.stop)] == list(range(count))
    assert max(p.stop - p.start for p in parts) - min(p.stop - p.start for p in parts) <= 1


@pytest.mark.parametrize("augment", [None, Augment(flip=True, shift=0.2), Augment(flip=True, shift=0.2, rotate=9.0)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_parts_of_batches(augment: Augment | None, layout: torch.memory_format) -> None:
    """Together they are the batches of one process, each image changed as it is there."""

    def batches(ranks: Ranks) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data = load("digits", "test")
        made = Batches(data, 100, shuffle=True, seed=3, augment=augment, memory_format=layout, ranks=ranks)
        return list(made.epoch(1))

    parts = [batches(Ranks(i, 3)) for i in range(3)]
    for whole, *some in zip(batches(ALONE), *parts, strict=True):
        for a, b in zip(whole, zip(*some, strict=True), strict=True):
            assert torch.equal(a, torch.cat(b))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)), (5,)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
        ).to(memory_format=torch.channels_last),
        (2, 6, 6),
    ),
}


@pytest.mark.parametrize(
    ("name", "scope", "size"),
    [("conv", "pairwise", 2), ("conv", "class", 3), ("mlp", "global", 2), ("mlp", "pairwise", 3), ("mlp", "global", 9)],
)
def test_shares_of_a_pass_add_up(name: str, scope: str, size: int) -> None:
    """Gradients, norms, vectors and rows of the head of a pass that is divided are those of the whole."""
    torch.manual_seed(0)
    make, shape = NETS[name]
    net = make().double()

    def step(ranks: Ranks) -> tuple[TrainingBound, list[torch.Tensor]]:
        bound = TrainingBound(net, shape, scope=scope)
        bound.share(ranks)
        value = bound()
        weights = torch.rand(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
        found = torch.autograd.grad((value * weights).sum(), list(net.parameters()), allow_unused=True)
        return bound, [torch.zeros(()) if g is None else g for g in found]

    whole, gradients = step(ALONE)
    shares = [step(Silent(i, size)) for i in range(size)]
    for expected, *some in zip(gradients, *(g for _, g in shares), strict=True):
        torch.testing.assert_close(sum(some), expected)
    for key, value in whole.state_dict().items():
        if key == "norms" or key.startswith("rows_"):
            torch.testing.assert_close(sum(b.state_dict()[key] for b, _ in shares), value)
    for i, (_, source) in enumerate(whole.pairs):
        at = [p[1] for p in whole.pairs[:i]].count(source)
        owner = shares[i % size][0]
        torch.testing.assert_close(
            owner.get_buffer(f"vectors_{source}")[at], whole.get_buffer(f"vectors_{source}")[at], check_stride=False
        )
    for bound, _ in shares:  # also by those that have nothing to send
        bound.refresh()
        bound.settle()


def test_the_environment_of_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(CPU) as (ranks, device):
        assert (ranks, device) == (ALONE, CPU)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for wrong in ("", "-1", "one"):
        monkeypatch.setenv("RANK", wrong)
        with pytest.raises(ConfigError, match="torchrun"), joined(CPU):
            pass
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="numbered from 0"), joined(CPU):
        pass
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "no port")
    with pytest.raises(ParallelError, match="could not meet"), joined(CPU):
        pass


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start fewer"):
        Trainer(tiny("train.batch_size=1"), tmp_path / "a", ranks=Silent(0, 2))
    with pytest.raises(ConfigError, match="BatchNorm"):
        Trainer(tiny('model={name="resnet-small"}'), tmp_path / "b", ranks=Silent(0, 2))


# --- processes ------------------------------------------------------------------------------------------------------
_DRIVER = """
import os, sys, torch
from lipcert.cli.main import app
from lipcert.parallel import joined
torch.set_num_threads(1)
with joined(torch.device("cpu")):
    for line in sys.argv[1:]:
        *arguments, code = line.format(rank=os.environ["RANK"]).split("|")
        found = app(arguments, standalone_mode=False) or 0
        if found != int(code):
            sys.exit(found or 1)
threads = {open(f"/proc/self/task/{t}/comm").read().strip() for t in os.listdir("/proc/self/task")}
assert not any("gloo" in name for name in threads), threads  # a group that outlives its end aborts the process
"""


@contextmanager
def _launched(*lines: list[object]) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that run commands, one after another; each ends with the exit status that stands behind it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = ["|".join(map(str, line)) for line in lines]
    env = ENVIRONMENT | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _DRIVER, *given],
            env=env | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield processes
    finally:
        for p in processes:
            p.kill()
            p.communicate()


def _waited(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    said = [p.communicate(timeout=240) for p in processes]
    return [(p.returncode, *words) for p, words in zip(processes, said, strict=True)]


def _train(out: Path, *changes: str) -> list[object]:
    return ["train", "digits-mlp-crm", *TINY, *SMALL, *changes, "--quiet", "--out", out, 0]


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Training by both bounds, with all that has a state, gone on with in the middle, and a certificate."""
    ways = {"liplt": [*STATEFUL, *ODD], "smallgain": [*ODD, "bound.method=smallgain"]}
    file, own = tmp_path / "two.json", tmp_path / "one.json"
    certify = ["certify", tmp_path / "liplt", "-e", "0.05", "--local", "--first", "21", "--save"]
    lines = [_train(tmp_path / way, *changes) for way, changes in ways.items()]
    with pytest.raises(Interrupted):  # in one process, where the bound's gradient is one to be used again
        Trainer(tiny(*ways["liplt"]), tmp_path / "resumed").fit(steps=3)
    for rank in range(2):
        shutil.copytree(tmp_path / "resumed", tmp_path / f"stale-{rank}")
    other = load_config(tmp_path / "stale-1" / "config.toml", ["seed=1"])
    (tmp_path / "stale-1" / "config.toml").write_text(other.to_toml())
    refused = ["train", "--resume", "--quiet", "--out", tmp_path / "stale-{rank}", 1]
    lines += [["train", "--resume", "--quiet", "--out", tmp_path / "resumed", 0], [*certify, file, 0], refused]
    with _launched(*lines) as processes:
        results = _waited(processes)
    assert [code for code, _, _ in results] == [0, 0], results
    assert "clean accuracy" in results[0][1]
    assert results[1][1] == ""  # only the first speaks
    assert "do not have the same configuration and data" in " ".join(results[1][2].split())
    assert results[1][2].startswith("error: process 1: ")
    ways["resumed"] = ways["liplt"]
    for way, changes in ways.items():
        Trainer(tiny(*changes), tmp_path / f"{way}-alone").fit()
        a, b = (load_file(tmp_path / name / "model.safetensors") for name in (way, f"{way}-alone"))
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], rtol=2e-3, atol=2e-4)
        a, b = (RunFolder(tmp_path / name).metrics() for name in (way, f"{way}-alone"))
        for one, other in zip(a, b, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert one["train_accuracy"] == pytest.approx(other["train_accuracy"], abs=2e-3)
            assert one["bound"] == pytest.approx(other["bound"], rel=2e-2)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("resumed", "liplt-alone"))
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-5)
    assert cli(*certify, own).exit_code == 0
    a, b = (json.loads(path.read_text())["samples"] for path in (file, own))
    assert a["radius"] == pytest.approx(b["radius"], rel=1e-9)
    assert (a["prediction"], a["label"]) == (b["prediction"], b["label"])
    assert cli("verify", file, tmp_path / "liplt").exit_code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_of_two_is_told_to_stop_or_killed(number: signal.Signals, tmp_path: Path) -> None:
    """Told to stop, both do after the same step; where one is gone, the other says so; either run goes on."""
    out = tmp_path / "run"
    with _launched(_train(out, "train.epochs=3000", "train.eval_every=1000")) as processes:
        patience = time.monotonic() + 100
        while not (out / "checkpoint.safetensors").exists():
            assert time.monotonic() < patience
            assert all(p.poll() is None for p in processes), _waited(processes)
            time.sleep(0.05)
        os.kill(processes[1].pid, number)
        (first, _, said), (second, _, _) = _waited(processes)
    if number == signal.SIGTERM:
        assert (first, second) == (130, 130), said
        assert "the state is saved" in said
    else:
        assert (first, second) == (1, -signal.SIGKILL), said
        assert said.startswith("error: another process of this run has stopped"), said
        assert "Go on with: lipcert train --resume" in said
        assert "Traceback" not in said
    trainer = Trainer(RunFolder(out).config(), out)
    trainer.restore()
    assert trainer.epoch >= 1
    assert trainer.sums[2] == trainer.batch * 256
