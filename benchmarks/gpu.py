"""Images a second in training on a GPU: cross-entropy and CRM with LipLT, step by step and as CUDA graphs."""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

import lipcert.train.trainer as module
from lipcert.data import Dataset
from lipcert.train import Trainer, load_config

# configuration, input shape, classes, changes
NETS: tuple[tuple[str, tuple[int, ...], int, tuple[str, ...]], ...] = (
    ("mnist-4c3f-half-hour", (1, 28, 28), 10, ()),
    ("cifar10-6c2f-quick", (3, 32, 32), 10, ()),
    ("cifar10-6c2f-quick", (3, 32, 32), 200, ()),
    ("tiny-imagenet-8c2f-crm", (3, 64, 64), 10, ("bound.power_iterations=1",)),
    ("tiny-imagenet-8c2f-crm", (3, 64, 64), 200, ("bound.power_iterations=1",)),
    ("cifar10-lipres-s-half-hour", (3, 32, 32), 10, ()),
    ("cifar10-lipres-s-half-hour", (3, 32, 32), 10, ("model.name='lipres-m'",)),
)
_COMMON = ("data.name='synthetic'", "train.precision='bfloat16'", "train.channels_last=true", "train.batch_size=256")
_LOSSES = {"ce": 'loss={kind="ce"}', "crm": "loss.start_epoch=0"}


def _images(shape: tuple[int, ...], classes: int) -> Dataset:
    """Random bytes: the time of a step does not depend on what is in the pictures."""
    count = 10_000
    images = torch.randint(256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Dataset("synthetic", "train", images, torch.arange(count) % classes, tuple(map(str, range(classes))))


def pace(
    name: str, shape: tuple[int, ...], classes: int, changes: tuple[str, ...], *, device: str, graphs: bool, steps: int
) -> float:
    """Seconds of a step, the images' way to it included."""
    module.load = lambda *_, **__: _images(shape, classes)  # type: ignore[assignment]
    config = load_config(name, [*_COMMON, *changes])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run", device=device, cuda_graphs=graphs)
        trainer.model.train()
        for x, y in islice(trainer.batches.epoch(0), 8):
            trainer._step(x, y)
        if device == "cuda":
            torch.cuda.synchronize()
        began, done = time.perf_counter(), 0
        while done < steps:
            for x, y in islice(trainer.batches.epoch(done + 1), steps - done):
                trainer._step(x, y)
                done += 1
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps


def main(steps: int = 60, device: str = "cuda") -> None:
    """Print images a second for each network, by cross-entropy and by CRM."""
    shown = torch.cuda.get_device_name() if device == "cuda" else device
    print(f"{shown}: images a second, batch 256, bfloat16, channels last; milliseconds of a step in brackets")
    print(f"{'configuration':<28} {'classes':>7} {'loss':>5} {'step by step':>18} {'CUDA graphs':>18}")
    for name, shape, classes, changes in NETS:
        for loss in ("ce", "crm"):
            cells = []
            for graphs in (False, True) if device == "cuda" else (False,):
                given = (*changes, _LOSSES[loss])
                seconds = pace(name, shape, classes, given, device=device, graphs=graphs, steps=steps)
                cells.append(f"{256 / seconds:>9.0f} ({1e3 * seconds:.2f})")
            label = name if "lipres-m" not in str(changes) else name.replace("lipres-s", "lipres-m")
            print(f"{label:<28} {classes:>7} {loss:>5} " + " ".join(f"{c:>18}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
