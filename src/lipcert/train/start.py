"""What a training begins with instead of fresh weights: those of another run, or of a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.bounds.evidence import KINDS, Scaling, check_start
from lipcert.certify.identity import weights_digest
from lipcert.errors import BoundError, CheckpointError, ConfigError
from lipcert.graph import Graph, trace
from lipcert.loop import LoopMap
from lipcert.models.registry import options_of
from lipcert.train.checkpoint import put_weights, read_weights
from lipcert.train.factory import kind_of
from lipcert.train.run_folder import RunFolder
from lipcert.train.schema import BoundConfig, ModelConfig

__all__ = ["Start", "fitting_scaling"]

# What of a model's options says nothing of the function of its weights: how fresh ones are drawn, how sums are made.
_SAME = {"init", "terms"}


@dataclass(frozen=True, eq=False)
class Start:
    """Weights for a training to begin with.

    Attributes:
        source: where they are from, in words.
        weights: by the names of the module's ``state_dict()``, on the CPU.
        path: of their file.
        model: which model they are of, where that is known.
        folder: the run that they are of, which may have the weights D of a small-gain bound too.
    """

    source: str
    weights: dict[str, Tensor]
    path: Path
    model: ModelConfig | None = None
    folder: RunFolder | None = None

    @staticmethod
    def of(source: RunFolder | str | Path) -> Start:
        """Read a finished run, or a safetensors file.

        Raises:
            CheckpointError: it is missing, not finished, or damaged.
        """
        if not isinstance(source, RunFolder) and (file := Path(source)).suffix.lower() == ".safetensors":
            weights, header = read_weights(file)
            return Start(file.name, weights, file, _model_of(header, file))
        folder = source if isinstance(source, RunFolder) else RunFolder(source)
        module, _ = folder.load_model()
        return Start(
            folder.path.resolve().name, dict(module.state_dict()), folder.model_file, folder.config().model, folder
        )

    def put_into(self, module: nn.Module, config: ModelConfig) -> None:
        """Put the weights into a module that was built by a configuration.

        Raises:
            ConfigError: they are of another model.
            CheckpointError: they do not fit.
        """
        if self.model is not None and _computed(self.model) != _computed(config):
            mine, other = _computed(self.model), _computed(config)
            keys = [key for key in mine | other if mine.get(key) != other.get(key)]
            differing = ", ".join(f"{k}: {mine.get(k)!r} there, {other.get(k)!r} here" for k in keys)
            raise ConfigError(
                f"the weights of {self.source} are of another model ({differing}): give the model that they are of, or "
                "train from the start."
            )
        put_weights(module, self.weights, self.path)

    def scaling(self, module: nn.Module, shape: tuple[int, ...], config: BoundConfig) -> Scaling | None:
        """The weights D that the run ended with, if it and what is to be trained have a small-gain bound of a kind.

        Raises:
            CheckpointError: their file is damaged, or not of that run.
        """
        if self.folder is None or config.method != "smallgain":
            return None
        return fitting_scaling(self.folder, trace(module, shape, allow_train_mode=True), kind_of(config))

    def described(self, module: nn.Module) -> dict[str, Any]:
        """What a summary says of it, once the weights are in the module."""
        return {"source": self.source, "weights_sha256": weights_digest(module)}


def _model_of(header: dict[str, Any], path: Path) -> ModelConfig | None:
    """Which model a file of weights says that it is of, if it says so.

    Raises:
        CheckpointError: it says nothing that makes sense.
    """
    if "model" not in header:
        return None
    try:
        return ModelConfig.model_validate(header["model"])
    except ValueError as error:
        raise CheckpointError(f"{path} does not say which model it belongs to") from error


def _computed(model: ModelConfig) -> dict[str, Any]:
    """What of a model's configuration says what it computes, defaults filled in, as plain JSON values."""
    options: dict[str, Any] = json.loads(json.dumps({**options_of(model.name), **model.options}))
    computed = {f"model.options.{k}": v for k, v in options.items() if k not in _SAME}
    return {"model.name": model.name, **computed, "model.normalize": model.model_dump(mode="json")["normalize"]}


def fitting_scaling(folder: RunFolder, graph: Graph, wanted: str) -> Scaling | None:
    """The weights D that a run ended with, unless they are finer than what is wanted.

    Raises:
        CheckpointError: they are damaged, or not of this network.
    """
    found = folder.scaling()
    if found is None or (wanted in KINDS and KINDS.index(found.kind) > KINDS.index(wanted)):
        return None
    try:
        check_start(LoopMap(graph, graph.resolve(torch.float64)), found, found.kind)
    except BoundError as error:
        raise CheckpointError(
            f"{folder.scaling_file} does not fit this network: {error} Delete it; a search will take longer without it."
        ) from error
    return found
