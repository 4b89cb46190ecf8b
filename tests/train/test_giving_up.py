"""When a run gives up: a loss or weights that are not finite, a network that has collapsed; and what it leaves."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lipcert.errors import TrainingError
from lipcert.train import Interrupted, RunFolder, Trainer
from lipcert.train.checkpoint import load_state
from lipcert.train.health import is_stuck
from runs import BATCHES, LOSSES, Notes, tiny


def check_left(out: Path, epoch: int | None) -> None:
    """No model, no summary, no half-written file; and a checkpoint with finite weights, if there is one."""
    files = {path.name for path in out.iterdir()}
    assert files <= {"config.toml", "metrics.jsonl", "checkpoint.safetensors"}
    assert ("checkpoint.safetensors" in files) == (epoch is not None)
    if epoch is not None:
        state, _ = load_state(out / "checkpoint.safetensors")
        assert state["counters"][0] == epoch
        assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())


@pytest.mark.parametrize("loss", list(LOSSES))
def test_a_loss_that_is_not_finite(tmp_path: Path, loss: str) -> None:
    config = tiny('optimizer={kind="sgd",lr=1e30}', LOSSES[loss])
    with pytest.raises(TrainingError, match=r"not finite in epoch 1. Train again with a lower optimizer.lr") as caught:
        Trainer(config, tmp_path / "run").fit()
    assert "checkpoint" not in str(caught.value)
    check_left(tmp_path / "run", None)


def _spoil(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, at: tuple[int, int], value: float) -> None:
    """Let one step put one number into the weights that does not belong there."""
    update = trainer.optimizer.step

    def step() -> None:
        update()
        if (trainer.epoch, trainer.batch) == at:
            with torch.no_grad():
                next(trainer.model.parameters()).view(-1)[3] = value

    monkeypatch.setattr(trainer.optimizer, "step", step)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """In the last step of an epoch the loss does not show it yet."""
    trainer = Trainer(tiny("train.eval_every=3"), tmp_path / "run")
    _spoil(trainer, monkeypatch, (1, BATCHES - 1), value)
    with pytest.raises(TrainingError, match=r"the weights are not finite in epoch 2.*The checkpoint .* is from before"):
        trainer.fit()
    check_left(tmp_path / "run", 1)
    Trainer(tiny("train.eval_every=3"), tmp_path / "run").fit(resume=True)
    assert RunFolder(tmp_path / "run").summary() is not None


def test_stopping_does_not_save_what_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny(), tmp_path / "run")
    _spoil(trainer, monkeypatch, (1, 1), math.nan)
    with pytest.raises(TrainingError, match="not finite"):
        trainer.fit(steps=BATCHES + 2)
    check_left(tmp_path / "run", 1)


@pytest.mark.parametrize("scope", ["global", "class", "pairwise"])
def test_a_network_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str) -> None:
    """With weights of zero two logits no longer differ by the input, and no radius can be given."""
    trainer = Trainer(tiny(f'bound.scope="{scope}"'), tmp_path / "run")
    update = trainer.optimizer.step

    def step() -> None:
        update()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.mul_(float(trainer.epoch == 0))

    monkeypatch.setattr(trainer.optimizer, "step", step)
    with pytest.raises(TrainingError, match=r"collapsed: in epoch 2|bounded in epoch 2: the bound between two classes"):
        trainer.fit()
    check_left(tmp_path / "run", 1)


def test_a_network_that_collapses(tmp_path: Path) -> None:
    changes = ["loss.weight=1000", "loss.radius_cap=10", "train.batch_size=64", "train.epochs=30"]
    with pytest.raises(
        TrainingError, match=r"has collapsed: in epoch \d+ it predicts one class .*loss.weight"
    ) as caught:
        Trainer(tiny(*changes), tmp_path / "run").fit()
    stopped_at = RunFolder(tmp_path / "run").metrics()[-1]["epoch"]
    assert f"in epoch {stopped_at} it" in str(caught.value)
    check_left(tmp_path / "run", stopped_at - 1)


def test_samples_of_one_class_show_no_collapse(tmp_path: Path) -> None:
    """One image is predicted to be of one class, whatever the network is worth."""
    config = tiny("data.validation=0.0007", "train.epochs=12")
    assert len(Trainer(config, tmp_path / "run").eval_data) == 1
    assert Trainer(config, tmp_path / "run").fit()["epochs"] == 12


def test_a_slow_start_is_no_collapse(tmp_path: Path) -> None:
    """CRM holds this network at one class for its first epochs, and then it learns."""
    changes = ["model.options.widths=[64,32]", "train.batch_size=64", "train.epochs=12"]
    trainer = Trainer(tiny(*changes), tmp_path / "run")
    with pytest.raises(Interrupted):
        trainer.fit(steps=2 * 22 + 1)
    assert trainer.flat >= 2
    assert Trainer(tiny(*changes), tmp_path / "run").fit(resume=True)["clean_accuracy"] > 0.5


def test_a_short_run_that_has_not_learned_ends_with_a_word_of_warning(tmp_path: Path) -> None:
    notes = Notes()
    config = tiny("model.options.widths=[128,64]", "train.epochs=2", "train.batch_size=64")
    summary = Trainer(config, tmp_path / "run", reporter=notes).fit()
    assert summary["clean_accuracy"] < 0.2
    assert [message.partition(":")[0] for message in notes.messages] == ["Careful"]


@pytest.mark.parametrize(
    ("flat", "bound", "epoch", "steps", "expected"),
    [
        (2, 0.1, 20, 600, True),
        (2, 0.1, 59, 9999, True),
        (1, 0.1, 20, 600, False),
        (9, 0.1, 19, 600, False),
        (9, 0.1, 20, 499, False),
        (9, 0.1, 60, 9999, False),  # too late to save anyone's time
        (1, 1e-12, 1, 5, True),
        (1, 1e-12, 60, 9999, True),
        (0, 1e-12, 20, 600, False),
    ],
)
def test_when_to_give_up(flat: int, bound: float, epoch: int, steps: int, expected: bool) -> None:
    assert is_stuck(flat, bound, epoch=epoch, epochs=60, steps=steps) is expected
