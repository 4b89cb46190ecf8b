"""A run that was stopped, anywhere and however, ends exactly where the undisturbed one does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lipcert.train import Interrupted, RunFolder, Trainer
from lipcert.train.checkpoint import load_state
from lipcert.train.interrupt import stop_on_signal
from runs import BATCHES, ENVIRONMENT, LOSSES, SMALL, STATEFUL, TINY, cli, differing, stopped, tiny


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    Trainer(tiny(*STATEFUL), out).fit()
    return out


# Runs the command line, and waits in one step for the signal that the test sends.
_CHILD = """
import sys
import torch
import lipcert.train.trainer as module
from lipcert.cli.main import run

step = module.Trainer._step

def waiting(self, x, y):
    if (self.epoch, self.batch) == (1, 2):
        print("here", flush=True)
        sys.stdin.readline()
    step(self, x, y)

module.Trainer._step = waiting
torch.set_num_threads(1)
sys.argv = ["lipcert", *sys.argv[1:]]
run()
"""


def _signalled(out: Path, number: signal.Signals) -> tuple[int, str]:
    """Train in a process of its own and send it a signal in the third step of the second epoch."""
    arguments = ["train", "digits-mlp-crm", *TINY, *SMALL, *STATEFUL, "--out", str(out), "--quiet"]
    command = [sys.executable, "-c", _CHILD, *arguments]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, text=True, env=ENVIRONMENT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        _, said = child.communicate("go on\n", timeout=60)
    return child.returncode, said


def test_a_killed_run_goes_on_from_its_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    code, _ = _signalled(tmp_path / "run", signal.SIGKILL)
    assert code == -signal.SIGKILL
    state, _ = load_state(tmp_path / "run" / "checkpoint.safetensors")
    assert state["counters"][:2] == [1, 0]
    result = cli("train", "--resume", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert differing(whole, tmp_path / "run") == []


def test_ctrl_c_saves_in_the_middle_of_an_epoch(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    code, said = _signalled(out, signal.SIGINT)
    assert code == 130
    assert said.strip() == (
        f"stopped in epoch 2 of 3; the state is saved in {out}. Go on with: lipcert train --resume --out '{out}'"
    )
    state, _ = load_state(out / "checkpoint.safetensors")
    assert state["counters"][:2] == [1, 3]
    assert RunFolder(out).summary() is None
    result = cli("train", "--resume", "--out", out)
    assert result.exit_code == 0, result.output
    assert differing(whole, out) == []


@pytest.mark.parametrize("steps", [0, 1, BATCHES, BATCHES + 1, 3 * BATCHES])
def test_stopped_after_any_number_of_steps(whole: Path, tmp_path: Path, steps: int) -> None:
    trainer = stopped(tiny(*STATEFUL), tmp_path / "run", steps)
    assert trainer.epoch * BATCHES + trainer.batch == steps
    Trainer(tiny(*STATEFUL), tmp_path / "run").fit(resume=True)
    assert differing(whole, tmp_path / "run") == []


def test_stopped_again_and_again(whole: Path, tmp_path: Path) -> None:
    trainer = stopped(tiny(*STATEFUL), tmp_path / "run", 2)
    for _ in range(3):
        with pytest.raises(Interrupted):
            trainer.fit(resume=True, steps=4)  # the same object may be used again
    Trainer(tiny(*STATEFUL), tmp_path / "run").fit(resume=True)
    assert differing(whole, tmp_path / "run") == []


def test_an_epoch_lasts_as_long_as_its_parts_together(tmp_path: Path) -> None:
    trainer = stopped(tiny(), tmp_path / "run", 3)
    assert trainer.elapsed == trainer.seconds > 0
    trainer = Trainer(tiny(), tmp_path / "run")
    trainer.restore()
    trainer.elapsed = 100.0
    trainer.save()
    summary = Trainer(tiny(), tmp_path / "run").fit(resume=True)
    first, *others = RunFolder(tmp_path / "run").metrics()
    assert first["seconds"] > 100
    assert first["images_per_second"] == pytest.approx(BATCHES * 256 / first["seconds"])
    assert all(record["seconds"] < 50 for record in others)
    assert summary["training_seconds"] < 50


@pytest.mark.parametrize(
    "changes",
    [
        ['optimizer={kind="sgd",lr=0.05}', "data.augment.flip=true", "bound.power_iterations=2"],
        ['optimizer={kind="adamw",lr=1e-3,weight_decay=0.01}', 'train.precision="bfloat16"', "bound.every=3"],
        ["loss.start_epoch=1.5", "loss.weight={start=0.0,end=3.0,epochs=[1,3]}", "data.augment.rotate=10"],
        ['bound.method="product"', "data.validation=0.2", "train.eval_every=2", "train.checkpoint_every=2"],
        [
            "model.options.widths=[16,16,16]",
            'model.options.activation="tanh"',
            "train.ema=0.5",
            "train.adversarial=0.1",
        ],
    ],
)
def test_other_settings(tmp_path: Path, changes: list[str]) -> None:
    Trainer(tiny(*changes), tmp_path / "whole").fit()
    stopped(tiny(*changes), tmp_path / "run", BATCHES + 2)
    Trainer(tiny(*changes), tmp_path / "run").fit(resume=True)
    assert differing(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize(
    "changes",
    [
        ["train.channels_last=true"],
        ["train.channels_last=true", "model.options.norm=false", 'optimizer={kind="sgd",lr=1e-3}'],
    ],
)
def test_batch_normalisation_and_channels_last(tmp_path: Path, changes: list[str]) -> None:
    """The fused optimizers pair weights and moments as they lie in memory."""
    resnet = 'model={name="resnet-small",options={widths=[16,16,16]}}'
    config = tiny(resnet, *changes, "train.epochs=2", "train.batch_size=700")
    Trainer(config, tmp_path / "whole").fit()
    stopped(config, tmp_path / "run", 3)
    Trainer(config, tmp_path / "run").fit(resume=True)
    assert differing(tmp_path / "whole", tmp_path / "run") == []


@pytest.mark.parametrize(
    ("loss", "scope"),
    [
        *zip(LOSSES, ["pairwise", "class", "global", "pairwise", "class", "global"], strict=True),
        *[("crm-soft", "global"), ("gloro-trades", "pairwise"), ("lmt", "class")],
    ],
)
def test_every_loss_and_every_scope(tmp_path: Path, loss: str, scope: str) -> None:
    config = tiny(LOSSES[loss], f'bound.scope="{scope}"', "train.epochs=1")
    Trainer(config, tmp_path / "whole").fit()
    stopped(config, tmp_path / "run", 2)
    Trainer(config, tmp_path / "run").fit(resume=True)
    assert differing(tmp_path / "whole", tmp_path / "run") == []


def test_the_second_ctrl_c_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_random_numbers_go_on(tmp_path: Path) -> None:
    stopped(tiny(), tmp_path / "run", 2)
    expected = torch.rand(3)
    trainer = Trainer(tiny(), tmp_path / "run")
    torch.manual_seed(99)
    trainer.restore()
    assert torch.equal(torch.rand(3), expected)
