"""``lipcert fold``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.common import guarded, run_of, say
from lipcert.errors import ConfigError
from lipcert.layers import fold as folded
from lipcert.layers.fold import FOLDABLE
from lipcert.train import RunFolder
from lipcert.train.schema import ModelConfig

__all__ = ["fold"]


def fold(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `lipcert train` leaves it.")],
    out: Annotated[Path, typer.Argument(help="The folder for the folded run; a new one.")],
) -> None:
    """Write the bounds of a trained model's layers into ordinary weights, as a run of its own.

    For models of layers with a Lipschitz bound of their own (lipres-s …). The folded run computes the same, faster,
    and is certified and verified as float32 executes it.

    For example:

    - `lipcert fold runs/lipres runs/lipres-folded`
    """
    with guarded():
        source, target = run_of(run), RunFolder(out)
        model, header = source.load_model()
        config = source.config()
        if config.model.options.get("folded"):
            raise ConfigError(f"the model in {run} is folded already.")
        options = {**config.model.options, "folded": True}
        changed = config.model_copy(update={"model": ModelConfig(**{**config.model.model_dump(), "options": options})})
        if out.suffix.lower() == ".onnx":
            raise ConfigError(f"{out}: a folder, please; lipcert export writes ONNX files.")
        if out.resolve().is_relative_to(run.resolve()):
            raise ConfigError(f"{out} is in the run that is to be folded: name a folder outside of {run}.")
        target.check_new()
        if not any(isinstance(m, FOLDABLE) for m in model.modules()):
            raise ConfigError(f"the model in {run} has no layers with a bound of their own: there is nothing to fold.")
        plain = folded(model)
        target.create(changed)
        target.save_model(plain, changed, tuple(header["input_shape"]), tuple(header["classes"]))
    say(f"{out}: the same model of ordinary layers. Certify it: lipcert certify {out}")
