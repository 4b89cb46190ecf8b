"""What is computed on a GPU is what the CPU says: bounds, radii, training, attacks. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import lipcert
from cases import CASES, named
from lipcert.data import load
from lipcert.train import Interrupted, RunFolder, Trainer, TrainingBound, load_config
from lipcert.train.captured import CapturedSteps
from runs import LOSSES, Notes, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SLACK = 8e-3  # of a proved norm, at most, by default
NETS = named(without=("image", "twin"))[::6]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("guarantee", ["estimate", "upper"])
def test_a_bound_is_that_of_the_cpu(name: str, guarantee: str) -> None:
    case = CASES[name]
    here = lipcert.lipschitz(case.module(), case.shape, scope="pairwise", guarantee=guarantee)  # type: ignore[arg-type]
    there = lipcert.lipschitz(case.module().cuda(), case.shape, scope="pairwise", guarantee=guarantee)  # type: ignore[arg-type]
    torch.testing.assert_close(there.value.cpu(), here.value, rtol=3 * SLACK, atol=1e-9)


@pytest.mark.parametrize("name", NETS[::3])
def test_small_gain_is_that_of_the_cpu(name: str) -> None:
    case = CASES[name]
    options = {"scope": "pairwise", "guarantee": "upper", "method": "smallgain", "scaling": "channel"}
    here = lipcert.lipschitz(case.module(), case.shape, **options)  # type: ignore[arg-type]
    there = lipcert.lipschitz(case.module().cuda(), case.shape, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(there.value.cpu(), here.value, rtol=5e-2, atol=1e-9)  # two searches end at two places


def _digits(device: str) -> tuple[Tensor, Tensor]:
    data = load("digits", "test")
    return (data.images.float() / 255).to(device), data.labels.to(device)


@pytest.mark.parametrize("precision", ["real", "float32"])
def test_radii_are_those_of_the_cpu(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    net = lipcert.load("digits-mlp-crm")
    found = []
    for device in ("cpu", "cuda"):
        x, y = _digits(device)
        found.append(lipcert.certify(net.to(device), x, y, precision=precision))  # type: ignore[arg-type]
    here, there = found
    assert there.clean_accuracy == here.clean_accuracy
    torch.testing.assert_close(there.radius.cpu(), here.radius.cpu(), rtol=3 * SLACK, atol=1e-5)


def test_tf32_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x, y = _digits("cuda")
    with pytest.warns(UserWarning, match="TF32"):
        lipcert.certify(lipcert.load("digits-mlp-crm").cuda(), x, y, precision="float32")


# --- training -------------------------------------------------------------------------------------------


def _weights(out: Path) -> dict[str, Tensor]:
    return {k: v.detach().cpu() for k, v in RunFolder(out).load_model()[0].state_dict().items()}


def _close(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float) -> None:
    for name, value in a.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, b[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_recorded_steps_are_steps(loss: str, tmp_path: Path) -> None:
    """By a CUDA graph, one by one, and on the CPU."""
    changes = [LOSSES[loss], "optimizer.clip_norm=1.0", "schedule={kind='cosine',warmup=0.5}"]
    if "weight" in LOSSES[loss]:
        changes.append("loss.weight={start=0.5,end=2.0,epochs=[0,3]}")
    config, notes = tiny(*changes), Notes()
    for name, device, graphs in (("graph", "cuda", True), ("eager", "cuda", False), ("cpu", "cpu", False)):
        trainer = Trainer(config, tmp_path / name, device=device, cuda_graphs=graphs, reporter=notes)
        trainer.fit()
        assert (trainer.captured is not None) == graphs
        if trainer.captured is not None:
            assert trainer.captured.possible, notes.messages
            assert trainer.captured.recordings == 1  # forgotten at the end, with its memory
    _close(_weights(tmp_path / "graph"), _weights(tmp_path / "eager"), 1e-4)
    _close(_weights(tmp_path / "eager"), _weights(tmp_path / "cpu"), 1e-2)


def test_a_recorded_run_is_taken_up_again(tmp_path: Path) -> None:
    config = tiny(LOSSES["crm-soft"], "train.ema=0.9", "data.augment.shift=0.125")
    Trainer(config, tmp_path / "whole", device="cuda").fit()
    with pytest.raises(Interrupted):
        Trainer(config, tmp_path / "parts", device="cuda").fit(steps=7)
    Trainer(config, tmp_path / "parts", device="cuda").fit(resume=True)
    _close(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"), 1e-4)
    with pytest.raises(Interrupted):  # and on the CPU what was begun on a GPU
        Trainer(config, tmp_path / "moved", device="cuda").fit(steps=7)
    Trainer(config, tmp_path / "moved", device="cpu").fit(resume=True)
    _close(_weights(tmp_path / "whole"), _weights(tmp_path / "moved"), 1e-2)


@pytest.mark.parametrize("model", ["4c3f", "lipres-s", "6c2f"])
def test_networks_of_convolutions_are_recorded(model: str, tmp_path: Path) -> None:
    method = "layers" if "lipres" in model else "liplt"
    config = load_config(
        "digits-mlp-crm",
        [
            f"model={{name='{model}',options={{}}}}",
            f"bound.method='{method}'",
            "train.epochs=2",
            "train.batch_size=128",
            "train.precision='bfloat16'",
            "train.channels_last=true",
        ],
    )
    notes = Notes()
    trainer = Trainer(config, tmp_path / "run", device="cuda", reporter=notes)
    trainer._set_numbers(0)
    x, y = next(iter(trainer.batches.epoch(0)))
    trainer._work(x, y)  # the first makes the state of the optimizer
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._work(x, y)  # nothing in a step waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.fit()
    assert trainer.captured is not None
    assert trainer.captured.possible, notes.messages


def test_what_cannot_be_recorded_leaves_nothing_behind() -> None:
    device, notes = torch.device("cuda", torch.cuda.current_device()), Notes()
    weight, x, y = torch.zeros(3, device=device), torch.ones(3, device=device), torch.zeros(3, device=device)

    def waits(a: Tensor, b: Tensor) -> None:
        weight.add_(float(a.sum()))

    def adds(a: Tensor, b: Tensor) -> None:
        weight.add_(a)

    before = torch.cuda.current_stream()
    steps = CapturedSteps(waits, device, notes.message)
    for _ in range(6):
        steps(x, y)
    assert weight.tolist() == [18.0] * 3
    assert "waits for the GPU" in notes.messages[0]
    assert torch.cuda.current_stream() == before
    assert torch.rand(2, device=device).isfinite().all()
    steps = CapturedSteps(adds, device, notes.message)
    for _ in range(6):
        steps(x, y)
    assert steps.possible
    assert steps.recordings == 1
    assert weight.tolist() == [24.0] * 3


@pytest.mark.parametrize("change", ["optimizer={kind='adamw',lr=1e-3,weight_decay=0.01}", "loss.start_epoch=1.4"])
def test_other_steps_are_recorded_too(change: str, tmp_path: Path) -> None:
    config = tiny(LOSSES["crm-soft"], change, "train.ema=0.9")
    for name, graphs in (("graph", True), ("eager", False)):
        trainer = Trainer(config, tmp_path / name, device="cuda", cuda_graphs=graphs)
        trainer.fit()
        assert trainer.captured is None or (trainer.captured.possible and trainer.captured.recordings)
    _close(_weights(tmp_path / "graph"), _weights(tmp_path / "eager"), 1e-4)


def test_a_bound_moves_to_another_device() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    bound = TrainingBound(net.cuda(), (4,))
    value = bound.refresh(30).cpu()
    net.cpu()
    bound.cpu()
    bound().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(bound.refresh(30), value, rtol=1e-4, atol=1e-6)


# --- attacks --------------------------------------------------------------------------------------------


def test_attacks_find_what_they_find_on_the_cpu() -> None:
    pytest.importorskip("foolbox")
    from lipcert.attacks import attack

    found = []
    for device in ("cpu", "cuda"):
        x, y = _digits(device)
        net = lipcert.load("digits-mlp-crm").to(device)
        found.append(attack(net, x[:32], y[:32], epsilons=[0.5], methods=["ddn"]))
    here, there = found
    torch.testing.assert_close(there.distances.cpu(), here.distances.cpu(), rtol=5e-2, atol=1e-3)
