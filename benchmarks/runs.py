"""Trained models to measure: those that ``LIPCERT_RUNS=DIR:DIR…`` names, as `lipcert train` leaves them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lipcert.certify.network import BATCH
from lipcert.data import Batches, Dataset, load
from lipcert.train import RunConfig, RunFolder

__all__ = ["Run", "runs"]


@dataclass(frozen=True)
class Run:
    """A trained model in eval mode, its input shape, and how it was trained."""

    folder: RunFolder
    module: nn.Module
    shape: tuple[int, ...]
    config: RunConfig

    @property
    def name(self) -> str:
        return self.folder.path.name

    def test_data(self) -> Dataset:
        """The test images, found as usual."""
        return load(self.config.data.name, "test")

    def first(self, count: int) -> tuple[list[Tensor], Tensor]:
        """The first test images, in batches, and their labels."""
        data, batches, left = self.test_data(), list[Tensor](), count
        for x, _ in Batches(data, BATCH, shuffle=False, seed=0, device=torch.device("cpu")).epoch(0):
            batches.append(x[:left])
            left -= len(batches[-1])
            if left <= 0:
                break
        return batches, data.labels[:count]


def runs() -> Iterator[Run]:
    for path in filter(None, os.environ.get("LIPCERT_RUNS", "").split(os.pathsep)):
        folder = RunFolder(Path(path))
        module, header = folder.load_model()
        yield Run(folder, module, tuple(header["input_shape"]), folder.config())
