"""Curves of a run for TensorBoard and Weights & Biases: what each epoch was found to be, and nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lipcert.errors import ConfigError
from lipcert.train.progress import SilentReporter
from lipcert.train.run_folder import RunFolder, write_text

__all__ = ["Reporters", "TensorBoardReporter", "WandbReporter", "curves"]


def curves(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch by the names of their curves; what is certified in training is an estimate.

    >>> record = {
    ...     "loss": 0.5, "train_accuracy": 0.9, "split": "test", "clean": 0.8, "estimated_certified": {"0.25": 0.7},
    ...     "bound": [1.0, 2.0], "lr": 1e-3, "images_per_second": 100.0,
    ... }
    >>> sorted(curves(record))[:3]
    ['accuracy/test', 'accuracy/train', 'bound/largest']
    """
    low, high = record["bound"]
    return {
        "loss": record["loss"],
        "accuracy/train": record["train_accuracy"],
        f"accuracy/{record['split']}": record["clean"],
        **{f"estimated_certified/{float(e):.10g}": share for e, share in record["estimated_certified"].items()},
        "bound/smallest": low,
        "bound/largest": high,
        "learning_rate": record["lr"],
        "images_per_second": record["images_per_second"],
    }


class Reporters(SilentReporter):
    """Several at once."""

    def __init__(self, several: Sequence[SilentReporter]) -> None:
        self.several = several

    def start(self, title: str, epochs: int, done: int, batches: int) -> None:  # noqa: D102
        for each in self.several:
            each.start(title, epochs, done, batches)

    def step(  # noqa: D102
        self, epoch: int, batch: int, loss: float, accuracy: float, *, certified: float | None, bound: float | None
    ) -> None:
        for each in self.several:
            each.step(epoch, batch, loss, accuracy, certified=certified, bound=bound)

    def epoch(self, record: Mapping[str, Any]) -> None:  # noqa: D102
        for each in self.several:
            each.epoch(record)

    def message(self, text: str) -> None:  # noqa: D102
        for each in self.several:
            each.message(text)

    def stop(self, finished: bool = True) -> None:  # noqa: D102
        with ExitStack() as all_of_them:  # whatever one of them raises
            for each in self.several:
                all_of_them.callback(each.stop, finished)


class TensorBoardReporter(SilentReporter):
    """Event files for ``tensorboard --logdir``.

    Args:
        folder: for the files; a run that is resumed goes on in it.

    Raises:
        ConfigError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import tensorboardX
        except ImportError as error:
            raise ConfigError("--tensorboard needs tensorboardX: pip install 'lipcert[tracking]'") from error
        self._make: Any = tensorboardX.SummaryWriter
        self.folder = folder
        self._writer: Any = None

    def start(self, title: str, epochs: int, done: int, batches: int) -> None:  # noqa: D102
        self._writer = self._make(str(self.folder), purge_step=done + 1, flush_secs=10)

    def epoch(self, record: Mapping[str, Any]) -> None:  # noqa: D102
        for name, value in curves(record).items():
            self._writer.add_scalar(name, value, record["epoch"])

    def stop(self, finished: bool = True) -> None:  # noqa: D102
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class WandbReporter(SilentReporter):
    """A run of Weights & Biases, which one that is resumed goes on with.

    Args:
        project: its name there.
        name, folder, settings: of the run: how it is called, where the files lie, its configuration.

    Raises:
        ConfigError: wandb is not installed, or refuses to begin.
    """

    def __init__(self, project: str, *, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("--wandb needs wandb: pip install wandb") from error
        self._wandb: Any = wandb
        self._given = {"project": project, "name": name, "dir": str(folder), "config": dict(settings)}
        self._id_file = RunFolder(folder).tracking_file
        self._run: Any = None

    def start(self, title: str, epochs: int, done: int, batches: int) -> None:  # noqa: D102
        if not self._id_file.exists():
            write_text(self._id_file, uuid.uuid4().hex)
        try:
            self._run = self._wandb.init(**self._given, id=self._id_file.read_text(), resume="allow")
        except Exception as error:  # of whatever kind the package has
            raise ConfigError(f"--wandb: {str(error).strip() or type(error).__name__}") from error

    def epoch(self, record: Mapping[str, Any]) -> None:  # noqa: D102
        self._run.log(curves(record), step=record["epoch"])

    def stop(self, finished: bool = True) -> None:  # noqa: D102
        if self._run is not None:
            self._run.finish(exit_code=0 if finished else 1)
            self._run = None
