"""Seconds of an epoch of the whole loop (data, augmentation, step) for 6C2F on 50,000 images of 3×32×32."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from lipcert.data import Dataset
from lipcert.train import Trainer, load_config

CASES = {
    "quick (bfloat16, channels last)": [],
    "batch 128": ["train.batch_size=128"],
    "batch 512, float32, contiguous": [
        "train.batch_size=512", 'train.precision="float32"', "train.channels_last=false",
    ],
}  # fmt: skip


def _images(name: str, split: str, **_: object) -> Dataset:
    """Random bytes in the place of CIFAR-10: the time of an epoch does not depend on what is in the pictures."""
    count = 50_000 if split == "train" else 1_000
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Dataset(name, split, images, torch.arange(count) % 10, tuple("0123456789"))


def main() -> None:
    """Print seconds an epoch and images a second for each case."""
    import lipcert.train.trainer as module

    module.load = _images  # type: ignore[assignment]
    print(f"{'case':<36} {'s an epoch':>10} {'images/s':>9}")
    for name, changes in CASES.items():
        config = load_config("cifar10-6c2f-quick", ["train.epochs=1", *changes])
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(config, Path(folder) / "run", device="cpu")
            began = time.perf_counter()
            trainer.fit()
            seconds = trainer.seconds
            del began
        print(f"{name:<36} {seconds:>10.1f} {50_000 / seconds:>9.0f}")


if __name__ == "__main__":
    main()
