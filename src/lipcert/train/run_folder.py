"""A run's folder: everything that was asked for, everything that came out, and all that `certify` needs.

config.toml              the configuration, every default filled in
metrics.jsonl            one line an evaluated epoch
checkpoint.safetensors   the whole training state, for resuming
model.safetensors        the weights to use, with what it takes to build the model
scaling.safetensors      the weights D of its small-gain bound, if it was trained with one: `certify` starts from them
summary.json             the outcome: accuracies, bound, seconds, versions, data
certificate.json         its certificate, if it was saved there
attack.safetensors       what attacks found (lipcert attack)
wandb-id                 under which id its curves are at Weights & Biases (--wandb)
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel
from torch import nn

from lipcert.bounds.evidence import KINDS, Scaling
from lipcert.data import Dataset
from lipcert.errors import CheckpointError, ConfigError, DataError
from lipcert.files import replacing
from lipcert.models import build
from lipcert.models.options import is_positive_integer
from lipcert.train.checkpoint import put_weights, read_weights, save_weights
from lipcert.train.config import load_config
from lipcert.train.safefile import read_file, write_file
from lipcert.train.schema import ModelConfig, RunConfig

__all__ = ["MOST_INPUTS", "RunFolder", "build_model", "model_for", "write_text"]

fcntl: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None  # Windows has none

MOST_INPUTS = 2**28
"""Numbers in one input, above which a shape is taken for a mistake: no model is built for it."""


class _Summary(BaseModel):
    """What others read in a summary; there is more in it."""

    name: str
    epochs: int
    split: str
    clean_accuracy: float
    estimated_certified_accuracy: dict[float, float]


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error


def build_model(config: ModelConfig, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """The model of a configuration, with fresh weights.

    Raises:
        ConfigError: an unknown model or option.
    """
    normal = config.normalize
    mean, std = (None, None) if normal == "none" else (normal.mean, normal.std)
    options: dict[str, Any] = dict(config.options)
    given = {"name", "input_shape", "num_classes", "mean", "std"} & options.keys()
    if given:
        raise ConfigError(
            f"model.options cannot hold {', '.join(sorted(given))}: the name is model.name, the normalisation is "
            "model.normalize = {mean = [...], std = [...]}, and the shapes are the data set's"
        )
    return build(config.name, input_shape=input_shape, num_classes=num_classes, mean=mean, std=std, **options)


def _is_shape(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(map(is_positive_integer, value))


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.toml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoint_file = self.path / "checkpoint.safetensors"
        self.model_file = self.path / "model.safetensors"
        self.scaling_file = self.path / "scaling.safetensors"
        self.summary_file = self.path / "summary.json"
        self.certificate_file = self.path / "certificate.json"
        self.attack_file = self.path / "attack.safetensors"
        self.tracking_file = self.path / "wandb-id"

    @property
    def files(self) -> tuple[Path, ...]:
        """The paths of the files of a training; not all of them need be there yet."""
        files = (self.metrics_file, self.checkpoint_file, self.model_file, self.scaling_file, self.summary_file)
        return self.config_file, *files

    @property
    def exists(self) -> bool:
        """Whether there is a run in the folder."""
        return self.config_file.exists()

    def check_new(self, *, trains: bool = True) -> None:
        """Refuse a folder in which a new run would mix with another one.

        A configuration alone is no run yet, but one that ended before anything came of it: it may be replaced.

        Args:
            trains: whether what asks could go on with a run.

        Raises:
            ConfigError: the folder holds a run, or files of one.
        """
        left = [file.name for file in self.files[1:] if file.exists()]
        if left and self.exists:
            rest = "Go on with it (--resume), choose" if trains else "Choose"
            raise ConfigError(f"{self.path} holds a run already. {rest} another folder, or delete it.")
        if left:
            raise ConfigError(
                f"{self.path} holds files of another run: choose another --out or delete them ({', '.join(left)})."
            )

    def create(self, config: RunConfig) -> None:
        """Start a run: make the folder and write its configuration.

        Raises:
            ConfigError: see :meth:`check_new`; or the folder is a file.
        """
        self.check_new()
        self.begin(config)

    def begin(self, config: RunConfig) -> None:
        """Write the configuration, which is what makes a run of a folder."""
        self.make()
        with contextlib.suppress(OSError):  # of a run that came to nothing: its curves are not this one's
            self.tracking_file.unlink(missing_ok=True)
        write_text(self.config_file, config.to_toml())

    def make(self) -> None:
        """Make the folder, if it is not there.

        Raises:
            ConfigError: it cannot be made; or it is a file.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the run folder {self.path}: {error}") from error

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other trainings out of the folder meanwhile, where the system and the disk can do that.

        Raises:
            ConfigError: another training has it; or the folder is a file.
        """
        if fcntl is None:
            yield
            return
        self.make()
        try:
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(f"cannot read the run folder {self.path}: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another training is at work in {self.path}: wait for its end, stop it, or choose another --out."
                ) from error
            except OSError:  # a disk without locks
                pass
            yield
        finally:
            os.close(handle)

    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            CheckpointError: there is no run in the folder.
        """
        if not self.exists:
            raise CheckpointError(f"there is no run in {self.path}: it has no config.toml. Train one: lipcert train")
        return load_config(self.config_file)

    # --- metrics and summary ------------------------------------------------------------------------------
    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line of metrics.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.metrics_file}: {error.strerror or error}") from error

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics; one that was cut short, when the run was killed, is left out.

        Raises:
            CheckpointError: a line is whole, but does not say of which epoch it is.
        """
        if not self.metrics_file.exists():
            return []
        records = []
        lines = self.metrics_file.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(record, dict) or not is_positive_integer(record.get("epoch")):
                raise CheckpointError(f"{self.metrics_file} is damaged: line {number} has no epoch. Delete that line.")
            records.append(record)
        return records

    def drop_metrics_after(self, epoch: int) -> None:
        """Forget the lines of later epochs: those of a run that was killed after its last checkpoint."""
        if self.metrics_file.exists():
            kept = [json.dumps(record) + "\n" for record in self.metrics() if record["epoch"] <= epoch]
            write_text(self.metrics_file, "".join(kept))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the outcome."""
        write_text(self.summary_file, json.dumps(summary, indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The outcome, or None while the run is not finished.

        Raises:
            CheckpointError: it is damaged.
        """
        if not self.summary_file.exists():
            return None
        content = self.summary_file.read_bytes()
        try:
            _Summary.model_validate_json(content, strict=True)
            found: dict[str, Any] = json.loads(content)
        except ValueError as error:
            raise CheckpointError(f"{self.summary_file} is damaged: it is not the summary of a run") from error
        return found

    # --- the model ----------------------------------------------------------------------------------------
    def save_model(
        self, module: nn.Module, config: RunConfig, shape: tuple[int, ...], classes: tuple[str, ...]
    ) -> None:
        """Save the weights with what it takes to build the model."""
        header = {
            "model": config.model.model_dump(mode="json"),
            "input_shape": list(shape),
            "classes": list(classes),
            "config": config.fingerprint(),
        }
        save_weights(self.model_file, module, header)

    def load_model(self) -> tuple[nn.Module, dict[str, Any]]:
        """The trained model in eval mode, and its header (``input_shape``, ``classes``, ``model``).

        Raises:
            CheckpointError: there is none yet, it is damaged, or it belongs to another configuration.
        """
        if not self.model_file.exists():
            hint = (
                "it is not finished: go on with lipcert train --resume" if self.exists else "train one: lipcert train"
            )
            raise CheckpointError(f"there is no trained model in {self.path}; {hint}")
        config = self.config()
        tensors, header = read_weights(self.model_file)
        shape, classes = header.get("input_shape"), header.get("classes")
        if not _is_shape(shape) or not isinstance(classes, list) or not all(isinstance(c, str) for c in classes):
            raise CheckpointError(f"{self.model_file} does not say which model it belongs to")
        if math.prod(shape) > MOST_INPUTS:
            raise CheckpointError(
                f"{self.model_file} is damaged: no model takes inputs of the shape {shape} that it says"
            )
        if header.get("config") != config.fingerprint():
            raise CheckpointError(
                f"{self.model_file} belongs to another configuration than {self.config_file}: one of them was replaced"
            )
        module = build_model(config.model, tuple(shape), len(classes))
        put_weights(module, tensors, self.model_file)
        return module.eval(), header

    def finished(self) -> dict[str, Any] | None:
        """The summary of a run that is done, if its model is there too; None where either is missing or damaged."""
        try:
            summary = self.summary()
            self.load_model()
        except CheckpointError:
            return None
        return summary

    # --- the bound that it was trained with ---------------------------------------------------------------
    def save_scaling(self, scaling: Scaling, config: RunConfig) -> None:
        """Save the weights D of a small-gain bound.

        Raises:
            CheckpointError: they cannot be written.
        """
        tensors = {str(k): d.contiguous() for k, d in enumerate(scaling.weights, start=1)}
        write_file(self.scaling_file, tensors, {"kind": scaling.kind, "config": config.fingerprint()})

    def scaling(self) -> Scaling | None:
        """The weights D that training ended with, from which a search finds better ones; None if there are none.

        Raises:
            CheckpointError: the file is damaged, or belongs to another configuration.
        """
        if not self.scaling_file.exists():
            return None
        tensors, header = read_file(self.scaling_file)
        names = [str(k) for k in range(1, len(tensors) + 1)]
        kind = next((k for k in KINDS if k == header.get("kind")), None)
        if header.get("config") != self.config().fingerprint() or kind is None or set(names) != set(tensors):
            raise CheckpointError(
                f"{self.scaling_file} is not of this run, or damaged: delete it; a search will take longer without it."
            )
        return Scaling(kind, tuple(tensors[name] for name in names))


def model_for(folder: RunFolder, data: Dataset) -> nn.Module:
    """The model of a run, which must be one for this data.

    Raises:
        DataError: it is for other images, or other classes.
    """
    model, header = folder.load_model()
    if tuple(header["input_shape"]) != data.input_shape or len(header["classes"]) != data.num_classes:
        raise DataError(
            f"the model takes {tuple(header['input_shape'])} and knows {len(header['classes'])} classes, but "
            f"{data.name} holds {data.input_shape} and {data.num_classes}."
        )
    if tuple(header["classes"]) != tuple(data.classes):
        a, b = next((a, b) for a, b in zip(header["classes"], data.classes, strict=True) if a != b)
        raise DataError(
            f"the model's classes are not those of {data.name}: where it says {a!r} the data says {b!r}. Certify it on "
            "the data set that it was trained on."
        )
    return model
